//! Views by copying: the last resort, on any file system.

use std::path::{Path, PathBuf};

use async_trait::async_trait;

use super::{
    AttachedDisk, DiskError, DiskStore, DiskStoreKind, DiskView, attach_file, check_is_plain,
    data::{Space, space},
    remove_file, sparse,
};
use crate::failure::blocking;

/// On a file system that cannot share blocks.
pub struct CopyStore {
    /// All file systems whose room limits what can be written.
    pub rooms: Vec<PathBuf>,
}

#[async_trait]
impl DiskStore for CopyStore {
    fn kind(&self) -> DiskStoreKind {
        DiskStoreKind::Copy
    }

    async fn create(&self, base: &Path, at: &Path) -> Result<DiskView, DiskError> {
        check_is_plain(base)?;
        self.clone_file(base, at).await?;
        Ok(DiskView { path: at.to_owned() })
    }

    async fn attach(&self, view: &DiskView) -> Result<AttachedDisk, DiskError> {
        attach_file(view)
    }

    async fn detach(&self, disk: AttachedDisk) -> Result<DiskView, DiskError> {
        Ok(disk.view)
    }

    async fn prepare_clone(&self, _view: &DiskView) -> Result<(), DiskError> {
        Ok(())
    }

    async fn clone_stopped(&self, view: &DiskView, to: &Path) -> Result<DiskView, DiskError> {
        self.create(&view.path, to).await
    }

    async fn remove(&self, view: DiskView) -> Result<(), DiskError> {
        blocking(move || remove_file(&view)).await
    }

    async fn clone_file(&self, from: &Path, to: &Path) -> Result<(), DiskError> {
        let (from, to) = (from.to_owned(), to.to_owned());
        Ok(blocking(move || sparse::copy(&from, &to)).await?)
    }

    async fn free_bytes(&self) -> Result<u64, DiskError> {
        space(&self.rooms, Space::Free)
    }

    async fn total_bytes(&self) -> Result<u64, DiskError> {
        space(&self.rooms, Space::Total)
    }
}
