//! What the test host is told to run.

use std::fmt::Write as _;
use std::path::PathBuf;

/// A program with its arguments and what is added to its environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    pub environment: Vec<(String, String)>,
    pub binary: PathBuf,
    pub arguments: Vec<String>,
}

impl Job {
    /// `[NAME=VALUE…] BINARY [ARGUMENT…]`, with blanks between them and none in them.
    pub fn parse(line: &str) -> Result<Self, String> {
        let mut words = line.split_whitespace().peekable();
        let mut environment = Vec::new();
        while let Some((name, value)) = words.peek().and_then(|word| assignment(word)) {
            environment.push((name.to_owned(), value.to_owned()));
            words.next();
        }
        let binary = words.next().ok_or("there is no program in it")?.into();
        Ok(Self { environment, binary, arguments: words.map(str::to_owned).collect() })
    }

    /// For people.
    pub fn name(&self) -> String {
        let file = self.binary.file_name().unwrap_or_default().to_string_lossy();
        // Cargo ends the names of test binaries with a digest.
        let name = match file.rsplit_once('-') {
            Some((name, digest)) if digest.len() == 16 && digest.bytes().all(|b| b.is_ascii_hexdigit()) => {
                name
            }
            _ => &file,
        };
        let assignments = self.environment.iter().map(|(name, value)| format!("{name}={value}"));
        let words = assignments.chain([name.to_owned()]).chain(self.arguments.iter().cloned());
        words.collect::<Vec<_>>().join(" ")
    }

    /// As a script for `sh`, with the program at `binary`.
    pub fn script(&self, binary: &str) -> String {
        let mut script = String::new();
        for (name, value) in &self.environment {
            // Writing to a string cannot fail.
            _ = writeln!(script, "export {name}={}", quoted(value));
        }
        _ = write!(script, "exec {}", quoted(binary));
        for argument in &self.arguments {
            _ = write!(script, " {}", quoted(argument));
        }
        script.push('\n');
        script
    }
}

/// `NAME=VALUE`, where the name can be one of a variable.
fn assignment(word: &str) -> Option<(&str, &str)> {
    let (name, value) = word.split_once('=')?;
    let of_a_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(of_a_name))
        .then_some((name, value))
}

/// One word for the shell, whatever is in it.
pub fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_is_written_as_a_command_line_is() {
        let job =
            Job::parse("WRENN_VMM=firecracker A=b=c target/debug/deps/machine-0123456789abcdef --x=y life::")
                .unwrap();
        assert_eq!(job.environment, [("WRENN_VMM".into(), "firecracker".into()), ("A".into(), "b=c".into())]);
        assert_eq!(job.arguments, ["--x=y", "life::"]);
        assert_eq!(job.name(), "WRENN_VMM=firecracker A=b=c machine --x=y life::");
        assert_eq!(
            job.script("/t/machine"),
            "export WRENN_VMM='firecracker'\nexport A='b=c'\nexec '/t/machine' '--x=y' 'life::'\n"
        );
        assert_eq!(Job::parse("power-tests").unwrap().name(), "power-tests");
        assert!(Job::parse(" A=b ").is_err());
    }

    #[test]
    fn the_shell_changes_nothing() {
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }
}
