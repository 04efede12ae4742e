//! What program is going to be run.

use std::{
    fmt, fs, io,
    path::Path,
    process::{Command, Stdio},
    str::FromStr,
};

use crate::{
    driver::DriverError,
    failure::{Doing as _, Failure},
};

/// The oldest one whose requests are those of [`super::api`]: it is the first to take `track_dirty_pages` when it
/// loads a snapshot.
const OLDEST: (u32, u32) = (1, 13);

/// As the program says it, without a `v`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(String);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why a program cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsuitable {
    #[error("{0:?} does not name a version of Firecracker")]
    Unknown(String),
    #[error("Firecracker {0} is older than {major}.{minor}", major = OLDEST.0, minor = OLDEST.1)]
    Old(String),
    #[error("it needs libraries, of which a jail has none: give a static one, as Firecracker's releases are")]
    Dynamic,
}

impl FromStr for Version {
    type Err = Unsuitable;

    /// From the first line of what the program says of itself: `Firecracker v1.16.1`.
    fn from_str(said: &str) -> Result<Self, Unsuitable> {
        let line = said.lines().next().unwrap_or_default();
        let unknown = || Unsuitable::Unknown(line.to_owned());
        let version = line.strip_prefix("Firecracker v").ok_or_else(unknown)?.trim();
        let mut numbers = version.split(['.', '-', '+']).map(str::parse);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(major)), Some(Ok(minor))) if (major, minor) >= OLDEST => Ok(Self(version.to_owned())),
            (Some(Ok(_)), Some(Ok(_))) => Err(Unsuitable::Old(version.to_owned())),
            _ => Err(unknown()),
        }
    }
}

impl Version {
    pub fn of(program: &Path) -> Result<Self, DriverError> {
        let unsuitable =
            |why: Unsuitable| DriverError::NoVmm(format!("{} is not usable: {why}", program.display()));
        if needs_libraries(program)? {
            return Err(unsuitable(Unsuitable::Dynamic));
        }
        let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
        let output = output.doing(|| format!("asking {} for its version", program.display()))?;
        String::from_utf8_lossy(&output.stdout).parse().map_err(unsuitable)
    }
}

/// Whether the program names an interpreter: `PT_INTERP` among the program headers, elf(5).
fn needs_libraries(program: &Path) -> Result<bool, Failure> {
    let doing = || format!("reading {}", program.display());
    let file = fs::File::open(program).doing(doing)?;
    interpreted(&file).doing(doing)
}

fn interpreted(file: &fs::File) -> io::Result<bool> {
    use std::os::unix::fs::FileExt as _;

    const PT_INTERP: u32 = 3;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    if &header[..5] != b"\x7fELF\x02" {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is no 64-bit ELF program"));
    }
    let (offset, size, count) = (number(&header[32..40]), number(&header[54..56]), number(&header[56..58]));
    for index in 0..count {
        let mut kind = [0; 4];
        file.read_exact_at(&mut kind, offset.saturating_add(index * size))?;
        if u32::from_le_bytes(kind) == PT_INTERP {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_what_the_program_says_first() {
        let said = "Firecracker v1.16.1\n\n2026-11-23T10:00:00 [anonymous-instance:main] exit_code=0\n";
        assert_eq!(said.parse(), Ok(Version("1.16.1".to_owned())));
        assert_eq!("Firecracker v1.17.0-dev".parse(), Ok(Version("1.17.0-dev".to_owned())));
        assert_eq!("Firecracker v1.9.1".parse::<Version>(), Err(Unsuitable::Old("1.9.1".to_owned())));
        for nonsense in ["", "QEMU emulator version 7.2", "Firecracker vone", "Firecracker v1"] {
            assert!(matches!(nonsense.parse::<Version>(), Err(Unsuitable::Unknown(_))), "{nonsense}");
        }
    }

    #[test]
    fn a_program_that_needs_libraries_is_refused() {
        let own = std::env::current_exe().unwrap();
        let refused = Version::of(&own).unwrap_err().to_string();
        assert!(refused.contains("needs libraries"), "{refused}");
        let text = tempfile::NamedTempFile::new().unwrap();
        fs::write(text.path(), [b'x'; 100]).unwrap();
        assert!(Version::of(text.path()).is_err());
    }
}
