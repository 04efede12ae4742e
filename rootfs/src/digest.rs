//! SHA-256, of files and of the inputs of a result.

use std::{fs::File, io::Read, path::Path};

use sha2::{Digest, Sha256};

use crate::error::{At, Result};

/// Of a whole file, in lowercase hexadecimal.
pub fn of_file(path: &Path) -> Result<String> {
    let mut file = File::open(path).at("open", path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).at("read", path)? {
            0 => return Ok(hex(&hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// Of named inputs: changes when any name or value does, or their order.
#[derive(Default)]
pub struct Inputs(Sha256);

impl Inputs {
    pub fn with(mut self, name: &str, value: &str) -> Self {
        // Lengths first, so that no two lists of inputs are the same bytes.
        for part in [name, value] {
            self.0.update((part.len() as u64).to_le_bytes());
            self.0.update(part);
        }
        self
    }

    pub fn key(self) -> String {
        hex(&self.0.finalize())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_changes_with_every_input_and_only_then() {
        let key = |a: &str, b: &str| Inputs::default().with("package", a).with("init", b).key();
        assert_eq!(key("1", "2"), key("1", "2"));
        assert_ne!(key("1", "2"), key("1", "3"));
        assert_ne!(key("1", "2"), key("2", "2"));
        // The border between two values is part of the key.
        assert_ne!(key("12", "3"), key("1", "23"));
        assert_ne!(Inputs::default().with("a", "1").key(), Inputs::default().with("b", "1").key());
    }

    #[test]
    fn a_files_digest_is_its_sha256() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        // FIPS 180-2, appendix B.1
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_file(&path).unwrap(), expected);
    }
}
