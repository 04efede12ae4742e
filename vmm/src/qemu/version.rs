//! Which QEMU it is, and what follows from that.

use std::{fmt, path::Path, process::Command};

use crate::driver::DriverError;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct QemuVersion {
    major: u32,
    minor: u32,
    micro: u32,
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

impl QemuVersion {
    /// Asks the program.
    pub fn of(program: &Path) -> Result<Self, DriverError> {
        let output = Command::new(program)
            .arg("--version")
            .output()
            .map_err(|error| DriverError::NoVmm(format!("{} does not run: {error}", program.display())))?;
        let text = String::from_utf8_lossy(&output.stdout);
        Self::parse(&text).ok_or_else(|| {
            DriverError::NoVmm(format!("{} does not say its version: {:?}", program.display(), text.trim()))
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (_, rest) = text.split_once("version ")?;
        let mut numbers = rest.split_whitespace().next()?.split('.').map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(Self { major: next()?, minor: next()?, micro: next()? })
    }

    /// From 8.2 on a file that QEMU may only read can be the base of memory that the guest writes. Before,
    /// it must be able to open it for writing, though it never writes: such a file is given to no two
    /// machines, unless it is sealed.
    pub fn maps_read_only_files(self) -> bool {
        (self.major, self.minor) >= (8, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_distributions_are_understood() {
        let text = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright";
        let old = QemuVersion::parse(text).unwrap();
        assert_eq!(old.to_string(), "7.2.22");
        assert!(!old.maps_read_only_files());
        assert!(QemuVersion::parse("QEMU emulator version 8.2.0").unwrap().maps_read_only_files());
        assert!(QemuVersion::parse("QEMU emulator version 10.0.2 (x)").unwrap().maps_read_only_files());
        assert_eq!(QemuVersion::parse("qemu"), None);
    }
}
