//! The file system that everything which is cloned lies in, and the store that suits it: the host's own where that can
//! share blocks between files, otherwise an XFS in a sparse file; where neither can be had, the host's own with
//! device-mapper, and where the kernel has none, with copies.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::statvfs::statvfs,
};

use super::{
    DiskError, DiskStore, DiskStoreChoice, DiskStoreKind,
    copy::CopyStore,
    dm_snapshot::DmSnapshotStore,
    loopback::{Access, LoopDevice},
    reflink::{ReflinkStore, is_unsupported, share_blocks},
};
use crate::{
    failure::{Doing as _, Failure, blocking, while_busy},
    paths::{HostPaths, create_directory, partial, sync_directory},
};

/// What the choice of a store depends on.
#[derive(Clone, Debug, Default)]
pub struct DiskOptions {
    pub choice: DiskStoreChoice,
    /// Of the file system that is made where one is needed. It takes room only as it fills. By default
    /// 80 % of what is free, 64 GiB at most.
    pub data_size_bytes: Option<u64>,
}

const DEFAULT_DATA_SIZE: u64 = 64 << 30;
/// The least that mkfs.xfs agrees to.
const MINIMUM_DATA_SIZE: u64 = 300 << 20;

/// Makes `data/` ready and answers with the best store for it. Safe to repeat, also after a crash at any
/// point; what is mounted already is used again.
pub async fn prepare(paths: &HostPaths, options: &DiskOptions) -> Result<Arc<dyn DiskStore>, DiskError> {
    let (paths, options) = (paths.clone(), options.clone());
    blocking(move || prepare_here(&paths, &options)).await
}

fn prepare_here(paths: &HostPaths, options: &DiskOptions) -> Result<Arc<dyn DiskStore>, DiskError> {
    create_directory(paths.root(), 0o755)?;
    let data = paths.data();
    create_directory(&data, 0o700)?;
    let rooms = vec![data.clone(), paths.root().to_owned()];
    match options.choice {
        DiskStoreChoice::Only(DiskStoreKind::Copy) => return Ok(Arc::new(CopyStore { rooms })),
        DiskStoreChoice::Only(DiskStoreKind::DmSnapshot) => {
            return Ok(Arc::new(DmSnapshotStore::open(paths, rooms)?));
        }
        DiskStoreChoice::Only(DiskStoreKind::Reflink) | DiskStoreChoice::Auto => {}
    }
    let cause = if clones_here(&data)? {
        return Ok(Arc::new(ReflinkStore { rooms }));
    } else if !is_empty(&data)? {
        DiskError::DataInTheWay(data)
    } else {
        match mount_data(paths, options.data_size_bytes) {
            Ok(()) => return Ok(Arc::new(ReflinkStore { rooms })),
            Err(error) => error,
        }
    };
    if options.choice != DiskStoreChoice::Auto {
        return Err(cause);
    }
    // Memory is cloned as well as disks where files share blocks, so that comes first; here only disks are spared.
    match DmSnapshotStore::open(paths, rooms.clone()) {
        Ok(store) => {
            tracing::info!(
                error = &cause as &dyn std::error::Error,
                "disks will be mapped instead of cloned"
            );
            Ok(Arc::new(store))
        }
        Err(unavailable) => {
            tracing::warn!(
                error = &cause as &dyn std::error::Error,
                also = &unavailable as &dyn std::error::Error,
                "disks will be copied instead of cloned"
            );
            Ok(Arc::new(CopyStore { rooms }))
        }
    }
}

/// Whether files in this directory can share blocks: by trying it, whatever the file system is called.
pub(crate) fn clones_here(directory: &Path) -> Result<bool, Failure> {
    let probe = || -> io::Result<bool> {
        // Another process may be trying the same.
        let name = |end: &str| directory.join(format!(".clone-{}-{end}", std::process::id()));
        let (from, to) = (name("from"), name("to"));
        fs::write(&from, [1; 4096])?;
        let result = File::create(&to).and_then(|target| share_blocks(&File::open(&from)?, &target));
        fs::remove_file(&from)?;
        fs::remove_file(&to)?;
        match result {
            Ok(()) => Ok(true),
            Err(error) if is_unsupported(&error) => Ok(false),
            Err(error) => Err(error),
        }
    };
    probe().doing(|| format!("trying to clone a file in {}", directory.display()))
}

fn is_empty(directory: &Path) -> Result<bool, Failure> {
    let mut entries = fs::read_dir(directory).doing(|| format!("listing {}", directory.display()))?;
    Ok(entries.next().is_none())
}

fn mount_data(paths: &HostPaths, size: Option<u64>) -> Result<(), DiskError> {
    let image = paths.data_image();
    if !image.exists() {
        let size = match size {
            Some(size) => size,
            None => DEFAULT_DATA_SIZE.min(space(&[paths.root().to_owned()], Space::Free)? / 5 * 4),
        };
        make_file_system(&image, size.max(MINIMUM_DATA_SIZE))?;
    }
    let device = LoopDevice::attach(&image, Access::ReadWrite)?;
    let data = paths.data();
    // Not with `discard`: it would hold up every sync for as long as the host takes to punch the holes, a
    // third of a second on a busy disk. What is freed is given back by `trim`.
    mount(Some(device.path()), &data, Some("xfs"), MsFlags::MS_NOATIME, None::<&str>)
        .doing(|| format!("mounting {} on {}", image.display(), data.display()))?;
    Ok(())
}

/// Under another name until it is complete.
fn make_file_system(image: &Path, size: u64) -> Result<(), DiskError> {
    let partial = partial(image);
    let doing = || format!("making {}", partial.display());
    let file = File::create(&partial).doing(doing)?;
    file.set_len(size).doing(doing)?;
    let output = Command::new("mkfs.xfs").args(["-q", "-f", "-m", "reflink=1"]).arg(&partial).output();
    let output = output.doing(|| "running mkfs.xfs")?;
    if !output.status.success() {
        let output = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(DiskError::Tool { program: "mkfs.xfs", output });
    }
    file.sync_all().doing(doing)?;
    fs::rename(&partial, image).doing(doing)?;
    let parent = image.parent().unwrap_or(Path::new("/"));
    Ok(sync_directory(parent).doing(doing)?)
}

/// Unmounts `data/` if [`prepare`] mounted it; its loop device goes with it, the file stays. Refused by
/// the kernel while a machine runs from it.
pub async fn unmount(paths: &HostPaths) -> Result<(), DiskError> {
    let paths = paths.clone();
    blocking(move || {
        let data = paths.data();
        let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
        let mounted = match (device(&data), device(paths.root())) {
            (Ok(inner), Ok(outer)) => inner != outer,
            _ => false,
        };
        if !mounted || !paths.data_image().exists() {
            return Ok(());
        }
        let unmount = || umount2(&data, MntFlags::empty()).doing(|| format!("unmounting {}", data.display()));
        Ok(while_busy(unmount)?)
    })
    .await
}

/// `FITRIM` of linux/fs.h.
const FITRIM: libc::c_ulong = 0xc018_5879;

#[repr(C)]
struct TrimRange {
    start: u64,
    length: u64,
    least: u64,
}

/// Gives what was freed in `data/` back to the host, where that is a file system of its own; answers how many
/// bytes. For now and then: syncs that happen meanwhile take longer.
pub async fn trim(paths: &HostPaths) -> Result<u64, DiskError> {
    if !paths.data_image().exists() {
        return Ok(0);
    }
    let data = paths.data();
    blocking(move || {
        let doing = || format!("trimming {}", data.display());
        let directory = File::open(&data).doing(doing)?;
        let mut range = TrimRange { start: 0, length: u64::MAX, least: 0 };
        // SAFETY: the request reads and writes one such structure, which lives through the call.
        let result = unsafe { libc::ioctl(directory.as_raw_fd(), FITRIM, &raw mut range) };
        Errno::result(result).doing(doing)?;
        Ok(range.length)
    })
    .await
}

pub(super) enum Space {
    Free,
    Total,
}

/// The least of what several file systems have: one lies inside the other and is larger than it on paper.
pub(super) fn space(rooms: &[PathBuf], which: Space) -> Result<u64, DiskError> {
    let mut least = u64::MAX;
    for room in rooms {
        let found = statvfs(room).doing(|| format!("asking {} for its room", room.display()))?;
        let blocks = match which {
            Space::Free => found.blocks_available(),
            Space::Total => found.blocks(),
        };
        least = least.min(blocks * found.fragment_size());
    }
    Ok(least)
}
