//! A capsule's history in its directory: written aside and renamed, dropped with a warning where it is damaged.

use std::io;
use std::path::{Path, PathBuf};

use super::history::History;
use crate::files;

#[derive(Debug, thiserror::Error)]
#[error("cannot write {}", path.display())]
pub struct WriteError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Replaces the file. It need not survive a power failure: nothing depends on it.
pub fn store(path: &Path, history: &History) -> Result<(), WriteError> {
    let failed = |source| WriteError { path: path.to_owned(), source };
    let text = serde_json::to_vec(history).map_err(|error| failed(error.into()))?;
    files::replace(path, &text, false).map_err(failed)
}

/// What an earlier life, or an earlier agent, wrote; empty if there is nothing that can be used.
pub fn load(path: &Path) -> History {
    let damaged = match std::fs::read(path) {
        Ok(text) => match serde_json::from_slice::<History>(&text) {
            Ok(history) if history.is_sound() => return history,
            Ok(_) => "it is of another format, or out of order".to_owned(),
            Err(error) => error.to_string(),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => return History::default(),
        Err(error) => error.to_string(),
    };
    tracing::warn!(path = %path.display(), damaged, "dropping the metrics of a capsule");
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "a damaged file of metrics is left");
    }
    History::default()
}

#[cfg(test)]
mod tests {
    use super::super::history::Point;
    use super::*;

    #[test]
    fn a_damaged_file_is_dropped_and_a_sound_one_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.json");
        assert_eq!(load(&path), History::default());
        let mut history = History::default();
        history.push(Point { at_ns: 1, cpu_percent: 12.5, memory_bytes: 3, disk_bytes: 4 });
        store(&path, &history).unwrap();
        assert_eq!(load(&path), history);

        let text = std::fs::read_to_string(&path).unwrap();
        for damaged in [&text[..text.len() / 2], "", "{}", &text.replace("\"format\":1", "\"format\":2")] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(load(&path), History::default(), "{damaged}");
            assert!(!path.exists(), "it is dropped: {damaged}");
        }
    }
}
