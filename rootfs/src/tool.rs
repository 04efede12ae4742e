//! Programs of the host that do the work.

use std::{
    env,
    ffi::OsStr,
    io,
    process::{Command, Output, Stdio},
};

use crate::error::{Error, Result};

/// Each with the Debian package that has it.
const PACKAGES: &[(&str, &str)] = &[
    ("apt-cache", "apt"),
    ("apt-get", "apt"),
    ("chroot", "coreutils"),
    ("debugfs", "e2fsprogs"),
    ("dpkg-deb", "dpkg"),
    ("e2fsck", "e2fsprogs"),
    ("mke2fs", "e2fsprogs"),
    ("mmdebstrap", "mmdebstrap"),
    ("resize2fs", "e2fsprogs"),
    ("xz", "xz-utils"),
];

/// How much of a failed program's words are repeated, in lines from the end.
const LINES_REPEATED: usize = 15;

pub struct Tool {
    name: &'static str,
    command: Command,
}

impl Tool {
    pub fn new(name: &'static str) -> Self {
        let mut command = Command::new(name);
        // Messages that are read here must be in one language, names sorted in one order; an
        // unprivileged login's PATH lacks the administrator's programs.
        let path = env::var("PATH").unwrap_or_default();
        command.env("LC_ALL", "C").env("PATH", format!("{path}:/usr/sbin:/sbin")).stdin(Stdio::null());
        Self { name, command }
    }

    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn current_dir(mut self, dir: &std::path::Path) -> Self {
        self.command.current_dir(dir);
        self
    }

    /// Runs to the end; what it said is returned if it succeeded and part of the error if not.
    pub fn run(mut self) -> Result<Output> {
        let output = self.command.output().map_err(|source| {
            let tool = self.name.to_owned();
            match PACKAGES.iter().find(|(name, _)| *name == self.name) {
                Some((_, package)) if source.kind() == io::ErrorKind::NotFound => {
                    Error::MissingTool { tool, package }
                }
                _ => Error::StartTool { tool, source },
            }
        })?;
        if output.status.success() {
            return Ok(output);
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<_> = said.trim().lines().collect();
        let last = lines[lines.len().saturating_sub(LINES_REPEATED)..].join("\n");
        Err(Error::Tool { tool: self.name.to_owned(), status: output.status, said: last })
    }

    /// Runs to the end; its standard output as text.
    pub fn text(self) -> Result<String> {
        Ok(String::from_utf8_lossy(&self.run()?.stdout).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_names_the_package_that_has_it() {
        let error = Tool::new("mmdebstrap").env("PATH", "/nonexistent").run().unwrap_err();
        assert_eq!(error.to_string(), "mmdebstrap is not installed: apt-get install mmdebstrap");
    }

    #[test]
    fn a_failed_tool_is_quoted() {
        let error = Tool::new("dpkg-deb").arg("--nonsense").run().unwrap_err();
        assert!(error.to_string().contains("unknown option --nonsense"), "{error}");
    }
}
