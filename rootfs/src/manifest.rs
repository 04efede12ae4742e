//! The JSON file beside a result that says what it is and what it was made from.

use std::{fs, io, path::Path};

use serde::{Serialize, de::DeserializeOwned};

use crate::error::{At, Error, Result};

/// None if there is none.
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(json) => serde_json::from_slice(&json)
            .map(Some)
            .map_err(|source| Error::Manifest { path: path.to_owned(), source }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).at("read", path),
    }
}

pub fn write<T: Serialize>(path: &Path, manifest: &T) -> Result<()> {
    let json = serde_json::to_vec_pretty(manifest)
        .map_err(|source| Error::Manifest { path: path.to_owned(), source })?;
    fs::write(path, json).at("write", path)
}
