//! What is in a snapshot.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::SnapshotError;
use crate::{
    disk::DiskFiles,
    driver::{MachineConfig, VmmIdentity},
    memory::Written,
    paths::hex,
};

/// Grows when a program of today could not read what is written. The second one has memory in generations, the third disks
/// in layers.
const FORMAT: u32 = 3;
const OLDEST_FORMAT: u32 = 1;
const MAGIC: &str = "wrenn-snapshot";

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotManifest {
    /// Nanoseconds since the Unix epoch.
    pub created_at_ns: i64,
    /// By what it was taken, and can be restored.
    pub identity: VmmIdentity,
    pub machine: MachineConfig,
    pub memory: MemoryLayout,
    pub state: FileDigest,
    pub disk: Option<DiskEntry>,
    /// [`Snapshot::id`](super::Snapshot::id) of what the machine was itself restored from.
    pub parent: Option<String>,
}

/// How the memory lies on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "layout", rename_all = "kebab-case")]
pub enum MemoryLayout {
    /// One file, one to one.
    Flat {
        bytes: u64,
        /// Digest of its content, as a data file's of [`memory`](crate::memory); unset where most of it is a clone and
        /// was not read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
    },
    /// What changed since the last snapshot, beside what is still needed of earlier ones: see
    /// [`memory`](crate::memory).
    Generations {
        bytes: u64,
        /// The header, which has the digests of the data files. The digest is the one in its last 32 bytes, of all
        /// bytes before.
        header: FileDigest,
    },
}

impl MemoryLayout {
    /// Size of the memory.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Flat { bytes, .. } | Self::Generations { bytes, .. } => *bytes,
        }
    }
}

impl From<&Written> for MemoryLayout {
    fn from(written: &Written) -> Self {
        let header = FileDigest { bytes: written.header_bytes, sha256: hex(&written.checksum) };
        Self::Generations { bytes: written.memory_bytes, header }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileDigest {
    pub bytes: u64,
    /// Lowercase hexadecimal.
    pub sha256: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskEntry {
    /// As the guest sees it.
    pub bytes: u64,
    /// Size of the disk's file, where that has only what was changed of a base beside it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changes_bytes: Option<u64>,
    /// Further files of that size between the two, of what was changed before.
    #[serde(default)]
    pub layers: usize,
}

impl From<DiskFiles> for DiskEntry {
    fn from(DiskFiles { bytes, changes_bytes, layers }: DiskFiles) -> Self {
        Self { bytes, changes_bytes, layers }
    }
}

impl SnapshotManifest {
    pub(super) fn encode(&self) -> Vec<u8> {
        let body = serde_json::to_string_pretty(self).unwrap_or_else(|error| {
            // Only maps with keys that are not text, and types that refuse, cannot be written.
            unreachable!("a manifest is plain data: {error}")
        });
        format!("{MAGIC} {FORMAT} {}\n{body}\n", digest(&body)).into_bytes()
    }

    /// `directory` is for the errors.
    pub(super) fn decode(bytes: &[u8], directory: &Path) -> Result<Self, SnapshotError> {
        let corrupt =
            |what: &str| SnapshotError::Corrupt { directory: directory.to_owned(), what: what.to_owned() };
        let text = std::str::from_utf8(bytes).map_err(|_| corrupt("the manifest is not text"))?;
        let (first, body) = text.split_once('\n').ok_or_else(|| corrupt("the manifest is cut off"))?;
        let mut words = first.split(' ');
        if words.next() != Some(MAGIC) {
            return Err(corrupt("the manifest is none"));
        }
        let format = words.next().unwrap_or_default();
        if !(OLDEST_FORMAT..=FORMAT).any(|known| format == known.to_string()) {
            let directory = directory.to_owned();
            return Err(SnapshotError::Format { directory, found: format.to_owned(), expected: FORMAT });
        }
        let body = body.strip_suffix('\n').ok_or_else(|| corrupt("the manifest is cut off"))?;
        if words.next() != Some(digest(body).as_str()) {
            return Err(corrupt("the manifest does not match its digest"));
        }
        serde_json::from_str(body).map_err(|error| corrupt(&format!("the manifest cannot be read: {error}")))
    }
}

fn digest(body: &str) -> String {
    hex(&Sha256::digest(body))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub fn manifest() -> SnapshotManifest {
        SnapshotManifest {
            created_at_ns: 1_790_000_000_123_456_789,
            identity: VmmIdentity {
                driver: "qemu".into(),
                version: "7.2.22".into(),
                accelerator: "tcg".into(),
                cpu_model: "qemu64,+aes".into(),
                device_layout: 1,
                kernel: "6.1.0-35-cloud-amd64".into(),
                tsc_khz: 2_599_998,
            },
            machine: MachineConfig { vcpus: 2, memory_mib: 512 },
            memory: MemoryLayout::Flat { bytes: 512 << 20, digest: None },
            state: FileDigest { bytes: 3, sha256: hex(&Sha256::digest("abc")) },
            disk: Some(DiskEntry { bytes: 1 << 30, changes_bytes: None, layers: 0 }),
            parent: Some("5ca1ab1e".into()),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let manifest = manifest();
        assert_eq!(SnapshotManifest::decode(&manifest.encode(), Path::new("/s")).unwrap(), manifest);
    }

    #[test]
    fn another_format_is_named() {
        let text = String::from_utf8(manifest().encode()).unwrap();
        let text = text.replacen("wrenn-snapshot 3 ", "wrenn-snapshot 4 ", 1);
        let error = SnapshotManifest::decode(text.as_bytes(), Path::new("/s")).unwrap_err();
        assert_eq!(error.to_string(), "the snapshot at /s has format 4, this program reads 3");
        for older in 1..3 {
            let text = text.replacen("wrenn-snapshot 4 ", &format!("wrenn-snapshot {older} "), 1);
            assert_eq!(SnapshotManifest::decode(text.as_bytes(), Path::new("/s")).unwrap(), manifest());
        }
    }

    proptest! {
        #[test]
        fn a_truncated_manifest_is_refused(keep in 0usize..10_000) {
            let bytes = manifest().encode();
            let keep = keep % bytes.len();
            prop_assert!(SnapshotManifest::decode(&bytes[..keep], Path::new("/s")).is_err());
        }

        #[test]
        fn a_manifest_with_a_changed_bit_is_refused(position in 0usize..100_000) {
            let mut bytes = manifest().encode();
            let bit = position % (bytes.len() * 8);
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(SnapshotManifest::decode(&bytes, Path::new("/s")).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(SnapshotManifest::decode(&bytes, Path::new("/s")).is_err());
        }
    }
}
