//! The table of a mapped device, and what the kernel says of its state: Documentation/admin-guide/device-mapper/snapshot.rst.

use super::changes::CHUNK_SECTORS;
use crate::disk::number::DeviceNumber;

/// The kernel's module is called `dm-` and this.
pub const TARGET: &str = "snapshot";

/// A base that is only read, and the changes to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotTable {
    /// Of 512 bytes; no more than the base has.
    pub sectors: u64,
    pub base: DeviceNumber,
    pub changes: DeviceNumber,
}

impl SnapshotTable {
    /// What follows start, length and target.
    pub fn parameters(&self) -> String {
        // P: persistent, the changes are found again when the device is made the next time.
        format!("{} {} P {CHUNK_SECTORS}", self.base, self.changes)
    }

    /// As the kernel writes it; None if it is of another kind.
    pub fn parse(sectors: u64, target: &str, parameters: &str) -> Option<Self> {
        if target != TARGET {
            return None;
        }
        let mut words = parameters.split_ascii_whitespace();
        let (base, changes) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        // From 5.4 on options may follow.
        (words.next() == Some("P") && words.next()?.parse() == Ok(CHUNK_SECTORS)).then_some(Self {
            sectors,
            base,
            changes,
        })
    }
}

/// Whether the kernel still serves a device with this status, which are two counts of sectors as long as it does.
pub fn is_sound(status: &str) -> bool {
    status.split_once('/').is_some_and(|(used, _)| used.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: SnapshotTable = SnapshotTable {
        sectors: 2_097_152,
        base: DeviceNumber { major: 7, minor: 3 },
        changes: DeviceNumber { major: 7, minor: 12 },
    };

    #[test]
    fn a_table_is_read_back_as_it_was_written() {
        assert_eq!(TABLE.parameters(), "7:3 7:12 P 8");
        assert_eq!(SnapshotTable::parse(TABLE.sectors, "snapshot", "7:3 7:12 P 8"), Some(TABLE));
        assert_eq!(SnapshotTable::parse(TABLE.sectors, "snapshot", "7:3 7:12 P 8 0"), Some(TABLE));
    }

    #[test]
    fn a_table_of_another_kind_is_none_of_ours() {
        for (target, parameters) in [
            ("linear", "7:3 0"),
            ("snapshot-origin", "7:3"),
            ("snapshot", ""),
            ("snapshot", "7:3 7:12 N 8"),
            ("snapshot", "7:3 7:12 P 32"),
            ("snapshot", "/dev/loop3 7:12 P 8"),
        ] {
            assert_eq!(SnapshotTable::parse(8, target, parameters), None, "{target} {parameters}");
        }
    }

    #[test]
    fn only_counts_mean_that_all_is_well() {
        assert!(is_sound("16/2105344 16"));
        for broken in ["Invalid", "Overflow", "Unknown", "Merge failed", ""] {
            assert!(!is_sound(broken), "{broken}");
        }
    }
}
