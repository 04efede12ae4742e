//! Removing directories that others may look for.

use std::io;
use std::path::Path;

use wrenn_vmm::paths;

/// Removes a directory, in one step for everyone else. What is not there is removed already.
pub async fn remove_at_once(directory: &Path) -> io::Result<()> {
    let aside = match paths::set_aside(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        aside => aside?,
    };
    tokio::fs::remove_dir_all(aside).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_not_there_is_removed_already() {
        let dir = tempfile::tempdir().unwrap();
        let template = dir.path().join("tpl-1");
        remove_at_once(&template).await.unwrap();
        std::fs::create_dir(&template).unwrap();
        std::fs::write(template.join("memory"), "x").unwrap();
        remove_at_once(&template).await.unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
