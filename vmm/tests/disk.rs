//! Disk stores on a real file system. Needs root, xfsprogs and loop devices.

use std::{
    fs,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use wrenn_vmm::{
    disk::{self, DiskError, DiskOptions, DiskStore, DiskStoreChoice, DiskStoreKind},
    memory::Generations,
    paths::HostPaths,
};

const MIB: u64 = 1 << 20;

/// On the host's root file system, which cannot share blocks where a data file system is made.
fn directory() -> (tempfile::TempDir, HostPaths) {
    assert!(nix::unistd::geteuid().is_root(), "mounting needs root");
    let directory = tempfile::Builder::new().prefix("wrenn-vmm-").tempdir_in("/var/tmp").unwrap();
    let paths = HostPaths::new(directory.path()).unwrap();
    (directory, paths)
}

fn options(choice: DiskStoreChoice) -> DiskOptions {
    DiskOptions { choice, data_size_bytes: Some(512 * MIB) }
}

const REFLINK: DiskStoreChoice = DiskStoreChoice::Only(DiskStoreKind::Reflink);
const COPY: DiskStoreChoice = DiskStoreChoice::Only(DiskStoreKind::Copy);

/// Loop devices whose file lies in this directory.
fn loop_devices(below: &Path) -> usize {
    let devices = fs::read_dir("/sys/block").unwrap().filter_map(Result::ok);
    let files = devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.filter(|file| Path::new(file.trim()).starts_with(below)).count()
}

fn mounts(below: &Path) -> usize {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().filter(|line| line.contains(&format!(" {}", below.display()))).count()
}

/// So many loop devices and mounts; the kernel lets loop devices go a little after their last user.
fn has(below: &Path, loops: usize, mounted: usize) {
    let begun = Instant::now();
    loop {
        let found = (loop_devices(below), mounts(below));
        if found == (loops, mounted) {
            return;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{loops} and {mounted} wanted: {found:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// An image with data at both ends and nothing between.
fn image(at: &Path) -> Vec<u8> {
    let mut content = vec![0; 8 * MIB as usize];
    content[..4096].fill(1);
    content[8 * MIB as usize - 4096..].fill(2);
    let file = fs::File::create(at).unwrap();
    file.write_all_at(&content[..4096], 0).unwrap();
    file.write_all_at(&content[8 * MIB as usize - 4096..], 8 * MIB - 4096).unwrap();
    content
}

/// What every store must do.
async fn behaves(store: &dyn DiskStore, paths: &HostPaths, outside: &Path) {
    let content = image(&outside.join("rootfs.ext4"));
    let base = paths.data().join("base.ext4");
    disk::install_image(&outside.join("rootfs.ext4"), &base).await.unwrap();
    disk::extend(&base, 16).await.unwrap();
    assert_eq!(fs::metadata(&base).unwrap().len(), 16 * MIB);
    assert!(matches!(disk::extend(&base, 8).await, Err(DiskError::WouldShrink { .. })));

    let view = store.create(&base, &paths.data().join("one.ext4")).await.unwrap();
    let attached = store.attach(&view).await.unwrap();
    let device = fs::OpenOptions::new().write(true).open(attached.device()).unwrap();
    device.write_all_at(&[9; 4096], MIB).unwrap();
    let view = store.detach(attached).await.unwrap();
    let copy = store.clone_stopped(&view, &paths.data().join("two.ext4")).await.unwrap();
    fs::OpenOptions::new().write(true).open(&view.path).unwrap().write_all_at(&[8; 4096], MIB).unwrap();

    let [base_content, one, two] = [&base, &view.path, &copy.path].map(|path| fs::read(path).unwrap());
    assert!(base_content[..content.len()] == content[..], "the base has changed");
    assert!(one[MIB as usize..][..4096] == [8; 4096] && two[MIB as usize..][..4096] == [9; 4096]);
    assert!(one[..4096] == content[..4096] && two[..4096] == content[..4096]);
    assert!(fs::metadata(&copy.path).unwrap().blocks() * 512 < MIB, "holes were filled");

    let (free, total) = (store.free_bytes().await.unwrap(), store.total_bytes().await.unwrap());
    assert!(0 < free && free < total);
    for view in [view, copy.clone(), copy] {
        let path = view.path.clone();
        store.remove(view).await.unwrap();
        assert!(!path.exists());
    }
    assert!(store.attach(&disk::DiskView { path: paths.data().join("one.ext4") }).await.is_err());
}

#[tokio::test]
async fn reflink_makes_its_own_file_system_once_and_takes_it_away() {
    let (directory, paths) = directory();
    fs::write(directory.path().join("data.xfs.partial"), "of a crash").unwrap();
    let store = disk::prepare(&paths, &options(REFLINK)).await.unwrap();
    assert_eq!(store.kind(), DiskStoreKind::Reflink);
    assert!(!directory.path().join("data.xfs.partial").exists());
    behaves(&*store, &paths, directory.path()).await;

    let again = disk::prepare(&paths, &options(DiskStoreChoice::Auto)).await.unwrap();
    assert_eq!(again.kind(), DiskStoreKind::Reflink);
    has(directory.path(), 1, 1);
    fs::write(paths.data().join("kept"), "kept").unwrap();

    disk::unmount(&paths).await.unwrap();
    disk::unmount(&paths).await.unwrap();
    has(directory.path(), 0, 0);
    assert!(!paths.data().join("kept").exists());

    disk::prepare(&paths, &options(REFLINK)).await.unwrap();
    assert_eq!(fs::read_to_string(paths.data().join("kept")).unwrap(), "kept");
    disk::unmount(&paths).await.unwrap();
    directory.close().unwrap();
}

/// A kernel may find no data beside what was written, although it is there.
#[tokio::test]
async fn a_memory_that_shares_blocks_is_found_whole_after_a_write() {
    const BLOCK: u64 = 4096;
    let (directory, paths) = directory();
    let store = disk::prepare(&paths, &options(REFLINK)).await.unwrap();
    let (base, mut expected) = (paths.data().join("base"), vec![0; MIB as usize]);
    let file = fs::File::create(&base).unwrap();
    file.set_len(MIB).unwrap();
    for block in [64, 65, 68, 69, 72, 73, 80_u64] {
        expected[(block * BLOCK) as usize..][..BLOCK as usize].fill(block as u8);
        file.write_all_at(&[block as u8; BLOCK as usize], block * BLOCK).unwrap();
    }
    let view = store.create(&base, &paths.data().join("memory")).await.unwrap();
    let changed = fs::OpenOptions::new().write(true).open(&view.path).unwrap();
    changed.write_all_at(&[9; BLOCK as usize], 64 * BLOCK).unwrap();
    changed.sync_all().unwrap();
    expected[64 * BLOCK as usize..][..BLOCK as usize].fill(9);

    let memory = Generations::of_flat(&view.path, None).unwrap();
    let mut content = vec![1; MIB as usize];
    memory.read(0, memory.blocks(), &mut content).unwrap();
    let wrong = (0..memory.blocks()).filter(|block| {
        let at = (block * BLOCK) as usize..((block + 1) * BLOCK) as usize;
        content[at.clone()] != expected[at]
    });
    assert_eq!(wrong.collect::<Vec<u64>>(), Vec::<u64>::new(), "blocks that are not as they were written");
    assert!(memory.data_ranges().map(|range| range.end - range.start).sum::<u64>() < 64, "holes are kept");
    drop((memory, changed, file));
    disk::unmount(&paths).await.unwrap();
    directory.close().unwrap();
}

#[tokio::test]
async fn what_was_removed_is_given_back_to_the_host() {
    let (directory, paths) = directory();
    let store = disk::prepare(&paths, &options(REFLINK)).await.unwrap();
    let image = directory.path().join("data.xfs");
    let used = || {
        nix::unistd::sync();
        fs::metadata(&image).unwrap().blocks() * 512
    };
    let path = paths.data().join("large");
    fs::write(&path, vec![7; 64 * MIB as usize]).unwrap();
    let full = used();
    store.remove(disk::DiskView { path }).await.unwrap();
    // XFS frees what was removed a little later.
    let begun = Instant::now();
    loop {
        disk::trim(&paths).await.unwrap();
        let trimmed = used();
        if trimmed + 60 * MIB < full {
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "{trimmed} bytes of {full} are still taken");
    }
    disk::unmount(&paths).await.unwrap();
    directory.close().unwrap();
}

#[tokio::test]
async fn copy_works_anywhere_and_mounts_nothing() {
    let (directory, paths) = directory();
    let store = disk::prepare(&paths, &options(COPY)).await.unwrap();
    assert_eq!(store.kind(), DiskStoreKind::Copy);
    behaves(&*store, &paths, directory.path()).await;
    assert_eq!((loop_devices(directory.path()), mounts(directory.path())), (0, 0));
    disk::unmount(&paths).await.unwrap();
}

#[tokio::test]
async fn data_of_another_store_is_never_hidden_by_a_mount() {
    let (directory, paths) = directory();
    disk::prepare(&paths, &options(COPY)).await.unwrap();
    fs::write(paths.data().join("capsule"), "").unwrap();
    let refused = disk::prepare(&paths, &options(REFLINK)).await;
    assert!(matches!(refused.err(), Some(DiskError::DataInTheWay(_))));
    let auto = disk::prepare(&paths, &options(DiskStoreChoice::Auto)).await.unwrap();
    assert_ne!(auto.kind(), DiskStoreKind::Reflink);
    assert!(paths.data().join("capsule").exists());
    assert_eq!(mounts(directory.path()), 0);
}
