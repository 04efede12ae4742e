//! Who a process is, beyond a number that the kernel uses again.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde::{Deserialize, Serialize};

use super::ProcessError;
use crate::failure::{Doing as _, Failure};

/// A process for all time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    pub pid: i32,
    /// Clock ticks after the machine's start: `starttime` of proc(5).
    pub start_time: u64,
    pub executable: PathBuf,
    /// Of the machine's life that pid and start time belong to.
    pub boot_id: String,
}

impl ProcessIdentity {
    /// Of a process that lives now.
    pub fn of(pid: i32) -> Result<Self, ProcessError> {
        let gone_or = |failure: Failure| match failure.source.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => ProcessError::Gone(pid),
            _ => failure.into(),
        };
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).doing(|| format!("reading {path}")).map_err(gone_or)?;
        let (state, start_time) = parse_stat(&stat)
            .ok_or_else(|| Failure::new(format!("reading {path}"), io::ErrorKind::InvalidData))?;
        // A zombie has no executable any more and will do nothing more.
        if matches!(state, 'Z' | 'X') {
            return Err(ProcessError::Gone(pid));
        }
        let path = format!("/proc/{pid}/exe");
        let executable = fs::read_link(&path).doing(|| format!("reading {path}")).map_err(gone_or)?;
        Ok(Self { pid, start_time, executable: without_deleted(&executable), boot_id: boot_id()?.to_owned() })
    }

    /// Whether the process of this number is still this one.
    pub fn verify(&self) -> Result<(), ProcessError> {
        if self.boot_id != boot_id()? {
            return Err(ProcessError::Gone(self.pid));
        }
        let found = Self::of(self.pid)?;
        if found == *self {
            return Ok(());
        }
        let difference = if found.start_time == self.start_time {
            format!("it runs {}, not {}", found.executable.display(), self.executable.display())
        } else {
            format!("it started at tick {}, not {}", found.start_time, self.start_time)
        };
        Err(ProcessError::NotTheSame { pid: self.pid, difference })
    }
}

/// State and start time: fields 3 and 22. The name, in parentheses, may hold anything.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let mut fields = rest.split(' ');
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

/// The kernel marks an executable whose file was replaced, as an upgrade does.
fn without_deleted(path: &Path) -> PathBuf {
    let text = path.to_string_lossy();
    text.strip_suffix(" (deleted)").map_or_else(|| path.to_owned(), PathBuf::from)
}

/// Random, new at each start of the machine.
pub(crate) fn boot_id() -> Result<&'static str, Failure> {
    static BOOT_ID: OnceLock<String> = OnceLock::new();
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    if let Some(known) = BOOT_ID.get() {
        return Ok(known);
    }
    let read = fs::read_to_string(PATH).doing(|| format!("reading {PATH}"))?;
    Ok(BOOT_ID.get_or_init(|| read.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let fields = (4..22).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
        let stat = format!("42 (a) Z (b) S {fields} 777 23\n");
        assert_eq!(parse_stat(&stat), Some(('S', 777)));
        assert_eq!(parse_stat("42 (cut"), None);
    }

    #[test]
    fn an_upgraded_executable_is_still_the_same() {
        assert_eq!(without_deleted(Path::new("/usr/bin/qemu (deleted)")), Path::new("/usr/bin/qemu"));
    }
}
