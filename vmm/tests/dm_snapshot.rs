//! The disk store dm-snapshot on a real device-mapper. Needs root, loop devices, and a kernel that has it: the test host's
//! has (`make test-host`).
//!
//! Without device-mapper nothing of this runs, and it says so; in the test host, where `WRENN_TEST_HOST` is set, that is a
//! failure.

use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    os::unix::{
        fs::{FileExt as _, FileTypeExt as _, MetadataExt as _},
        process::ExitStatusExt as _,
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use libtest_mimic::{Arguments, Trial};
use wrenn_vmm::{
    disk::{self, AttachedDisk, DiskError, DiskOptions, DiskStore, DiskStoreChoice, DiskStoreKind, DiskView},
    failpoint::{self, Operation},
    paths::HostPaths,
};

const MIB: u64 = 1 << 20;
/// The kernel keeps changes in pieces of this size.
const CHUNK: usize = 4096;
/// Names the directory in which a process started by these tests attaches and detaches a disk.
const DIRECTORY: &str = "WRENN_TEST_DM_DIRECTORY";
/// What that disk is called.
const DISK: &str = "WRENN_TEST_DM_DISK";
/// Where a layered disk differs from its base.
const LAYERED: u64 = 14 * MIB;
const TEST_HOST: &str = "WRENN_TEST_HOST";

fn main() -> ExitCode {
    if let Some(directory) = std::env::var_os(DIRECTORY) {
        failpoint::set_up().unwrap();
        block_on(attach_and_detach(Path::new(&directory), &std::env::var(DISK).unwrap()));
        return ExitCode::SUCCESS;
    }
    let arguments = Arguments::from_args();
    if let Some(reason) = missing() {
        eprintln!("DID NOT RUN: {reason}; run `make test-host`");
        return if std::env::var_os(TEST_HOST).is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    }
    type Test = fn(Place);
    let tests: [(&str, Test); 12] = [
        ("a_view_is_its_own_and_its_base_is_not_written", |place| block_on(a_view_is_its_own(&place))),
        ("a_base_has_one_loop_device_however_many_views", |place| block_on(one_loop_device(&place))),
        ("a_stopped_machines_disk_is_cloned_with_all_it_wrote", |place| block_on(cloned_whole(&place))),
        ("a_flat_disk_is_what_the_view_was", |place| block_on(flattened(&place))),
        ("a_grown_disk_can_be_written_from_end_to_end", |place| block_on(written_whole(&place))),
        ("a_busy_device_is_waited_for", |place| block_on(waited_for(&place))),
        ("a_device_that_stays_busy_is_an_error_and_stays_whole", |place| block_on(stays_whole(&place))),
        ("devices_survive_the_agent_and_strays_do_not", |place| block_on(survives(&place))),
        ("no_step_of_attaching_leaves_anything_when_it_fails", no_step_leaves_anything),
        ("a_pause_costs_what_was_changed_however_many_there_were", |place| block_on(paused_often(&place))),
        ("a_resume_that_fails_leaves_what_was_paused", |place| block_on(resumed_in_vain(&place))),
        ("what_is_not_valid_is_refused", |place| block_on(refused(&place))),
    ];
    let trial = |(name, test): (&str, Test)| {
        Trial::test(name, move || {
            let place = Place::make();
            test(place.clone());
            place.is_clean();
            Ok(())
        })
    };
    libtest_mimic::run(&arguments, tests.into_iter().map(trial).collect()).exit_code()
}

/// Why none of this can run here.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("this is not root".to_owned());
    }
    let place = Place::make();
    match block_on(place.try_open(DiskStoreKind::DmSnapshot)).err()? {
        DiskError::Unavailable(_) => Some("no device-mapper in this kernel".to_owned()),
        error => panic!("{error}"),
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Runtime::new().unwrap().block_on(work)
}

/// A host's directory of its own.
#[derive(Clone)]
struct Place {
    directory: Arc<tempfile::TempDir>,
    paths: HostPaths,
}

impl Place {
    fn make() -> Self {
        let directory = tempfile::Builder::new().prefix("wrenn-dm-").tempdir_in("/var/tmp").unwrap();
        let paths = HostPaths::new(directory.path()).unwrap();
        Self { directory: Arc::new(directory), paths }
    }

    async fn try_open(&self, kind: DiskStoreKind) -> Result<Arc<dyn DiskStore>, DiskError> {
        let options = DiskOptions { choice: DiskStoreChoice::Only(kind), data_size_bytes: None };
        disk::prepare(&self.paths, &options).await
    }

    async fn store(&self) -> Arc<dyn DiskStore> {
        let store = self.try_open(DiskStoreKind::DmSnapshot).await.unwrap();
        assert_eq!(store.kind(), DiskStoreKind::DmSnapshot);
        store
    }

    fn at(&self, name: &str) -> PathBuf {
        self.paths.data().join(name)
    }

    /// An image with data at both ends and nothing between, as a base of 16 MiB.
    async fn base(&self) -> PathBuf {
        let image = self.directory.path().join("rootfs.ext4");
        let file = File::create(&image).unwrap();
        file.write_all_at(&[1; CHUNK], 0).unwrap();
        file.write_all_at(&[2; CHUNK], 8 * MIB - CHUNK as u64).unwrap();
        let base = self.at("golden.ext4");
        disk::install_image(&image, &base).await.unwrap();
        disk::extend(&base, 16).await.unwrap();
        base
    }

    /// A view of the base that has all sevens at `LAYERED`, from an earlier life.
    async fn layered(&self, store: &Arc<dyn DiskStore>, base: &Path, name: &str) -> DiskView {
        let view = store.create(base, &self.at(name)).await.unwrap();
        let disk = store.attach(&view).await.unwrap();
        write(&disk, LAYERED, 7);
        let paused = self.at("paused.ext4");
        let view = pause(store, disk, &paused).await;
        let layered = store.create(&view.path, &self.at(name)).await.unwrap();
        store.remove(view).await.unwrap();
        assert!(self.at(&format!("{name}.1")).exists());
        layered
    }

    /// What all files of this directory take, those with several names once.
    fn allocated(&self) -> u64 {
        let entries =
            fs::read_dir(self.paths.data()).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
        let files: HashMap<u64, u64> = entries.map(|file| (file.ino(), file.blocks() * 512)).collect();
        files.values().sum()
    }

    /// Loop devices of files in this directory.
    fn loop_devices(&self) -> Vec<String> {
        let devices = fs::read_dir("/sys/block").unwrap().filter_map(Result::ok);
        let files =
            devices.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
        files.filter(|file| Path::new(file.trim()).starts_with(self.directory.path())).collect()
    }

    /// Mapped devices that have this directory's mark.
    fn mapped_devices(&self) -> Vec<String> {
        let mark = self.paths.run().file_name().unwrap().to_string_lossy().into_owned();
        let devices = fs::read_dir("/sys/block").unwrap().filter_map(Result::ok);
        let names = devices.filter_map(|device| fs::read_to_string(device.path().join("dm/name")).ok());
        names.filter(|name| name.contains(&mark)).collect()
    }

    /// So many loop and mapped devices; the kernel lets loop devices go a little after their last user.
    fn has(&self, loops: usize, mapped: usize) {
        let begun = Instant::now();
        loop {
            let found = (self.loop_devices(), self.mapped_devices());
            if (found.0.len(), found.1.len()) == (loops, mapped) {
                return;
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "{loops} and {mapped} wanted: {found:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn is_clean(&self) {
        self.has(0, 0);
    }
}

/// The disk of a machine that ends here becomes the one of a snapshot.
async fn pause(store: &Arc<dyn DiskStore>, disk: AttachedDisk, to: &Path) -> DiskView {
    let paused = store.clone_frozen(disk.view(), to).await.unwrap();
    let view = store.detach(disk).await.unwrap();
    store.remove(view).await.unwrap();
    paused
}

fn open(disk: &AttachedDisk) -> File {
    OpenOptions::new().read(true).write(true).open(disk.device()).unwrap()
}

fn write(disk: &AttachedDisk, offset: u64, byte: u8) {
    open(disk).write_all_at(&[byte; CHUNK], offset).unwrap();
}

/// The byte that all of a chunk is.
fn read(disk: &AttachedDisk, offset: u64) -> u8 {
    let mut content = [0; CHUNK];
    open(disk).read_exact_at(&mut content, offset).unwrap();
    assert!(content.iter().all(|byte| *byte == content[0]), "a chunk is mixed");
    content[0]
}

async fn a_view_is_its_own(place: &Place) {
    let (store, base) = (place.store().await, place.base().await);
    let before = fs::read(&base).unwrap();
    let one = store.create(&base, &place.at("one.ext4")).await.unwrap();
    let two = store.create(&base, &place.at("two.ext4")).await.unwrap();
    place.has(0, 0);
    assert_eq!(fs::metadata(&one.path).unwrap().blocks(), 0, "a new view takes nothing");

    let (one, two) = (store.attach(&one).await.unwrap(), store.attach(&two).await.unwrap());
    assert!(fs::metadata(one.device()).unwrap().file_type().is_block_device());
    write(&one, 0, 9);
    write(&one, MIB, 8);
    assert_eq!((read(&one, 0), read(&one, MIB), read(&one, 8 * MIB - CHUNK as u64)), (9, 8, 2));
    assert_eq!((read(&two, 0), read(&two, MIB)), (1, 0));

    // The image may go, its views keep it; and what was written is there when it is attached again.
    fs::remove_file(&base).unwrap();
    let view = store.detach(one).await.unwrap();
    let one = store.attach(&view).await.unwrap();
    assert_eq!((read(&one, 0), read(&one, MIB), read(&one, 2 * MIB)), (9, 8, 0));
    let third = store.create(&two.view().path, &place.at("three.ext4")).await.unwrap();
    assert_eq!(fs::read(place.at("three.ext4.base")).unwrap(), before, "the base was written");
    store.remove(third).await.unwrap();

    for disk in [one, two] {
        let view = store.detach(disk).await.unwrap();
        store.remove(view.clone()).await.unwrap();
        store.remove(view).await.unwrap();
    }
    assert_eq!(fs::read_dir(place.paths.data()).unwrap().count(), 0);
    assert!(store.attach(&DiskView { path: place.at("one.ext4") }).await.is_err());
    let (free, total) = (store.free_bytes().await.unwrap(), store.total_bytes().await.unwrap());
    assert!(0 < free && free < total);
}

async fn one_loop_device(place: &Place) {
    let (store, base) = (place.store().await, place.base().await);
    let mut views = Vec::new();
    for number in 0..12 {
        views.push(store.create(&base, &place.at(&format!("{number}.ext4"))).await.unwrap());
    }
    // All at once: they want the same device of their base.
    let mut attaching = tokio::task::JoinSet::new();
    for view in views {
        let store = store.clone();
        attaching.spawn(async move { store.attach(&view).await.unwrap() });
    }
    let mut attached = attaching.join_all().await;
    place.has(1 + 12, 12);
    let last = attached.pop().unwrap();
    for disk in attached {
        store.detach(disk).await.unwrap();
    }
    place.has(1 + 1, 1);
    assert_eq!(read(&last, 0), 1);
    store.detach(last).await.unwrap();
    place.has(0, 0);
}

async fn cloned_whole(place: &Place) {
    let (store, base) = (place.store().await, place.base().await);
    let view = place.layered(&store, &base, "one.ext4").await;
    let one = store.attach(&view).await.unwrap();
    // Through the host's page cache, which the clone must not miss.
    let device = open(&one);
    for chunk in 0..600 {
        device.write_all_at(&[7; CHUNK], MIB + chunk * CHUNK as u64).unwrap();
    }
    store.prepare_clone(one.view()).await.unwrap();
    device.write_all_at(&[6; CHUNK], MIB).unwrap();
    let clone = store.clone_stopped(one.view(), &place.at("two.ext4")).await.unwrap();
    device.write_all_at(&[5; CHUNK], MIB).unwrap();
    drop(device);
    let used = fs::metadata(&clone.path).unwrap().blocks() * 512;
    assert!(used < 600 * CHUNK as u64 * 11 / 10, "{used} bytes for 600 chunks");

    let two = store.attach(&clone).await.unwrap();
    assert_eq!((read(&one, MIB), read(&two, MIB)), (5, 6));
    for chunk in 1..600 {
        assert_eq!(read(&two, MIB + chunk * CHUNK as u64), 7);
    }
    assert_eq!((read(&two, 0), read(&two, 12 * MIB), read(&two, LAYERED)), (1, 0, 7));
    for disk in [one, two] {
        store.detach(disk).await.unwrap();
    }
}

async fn flattened(place: &Place) {
    let (store, base) = (place.store().await, place.base().await);
    let view = place.layered(&store, &base, "one.ext4").await;
    let one = store.attach(&view).await.unwrap();
    // More than one index has, out of order, and some of it zeros over what the base has.
    for chunk in (0..400_u64).rev() {
        write(&one, 4 * MIB + chunk * 2 * CHUNK as u64, (chunk % 250) as u8 + 1);
    }
    write(&one, 0, 0);
    let mut shown = vec![0; 16 * MIB as usize];
    open(&one).read_exact_at(&mut shown, 0).unwrap();
    let clone = store.clone_stopped(one.view(), &place.at("two.ext4")).await.unwrap();
    store.flatten(&clone).await.unwrap();
    store.flatten(&clone).await.unwrap();
    assert!(fs::read(&clone.path).unwrap() == shown, "the flat disk is another one");
    assert!(!place.at("two.ext4.base").exists() && !place.at("two.ext4.1").exists());
    let used = fs::metadata(&clone.path).unwrap().blocks() * 512;
    assert!(used <= 402 * CHUNK as u64 + 64 * 1024, "{used} bytes: holes were filled");

    // It is a base as any other.
    let of_flat = store.create(&clone.path, &place.at("three.ext4")).await.unwrap();
    let three = store.attach(&of_flat).await.unwrap();
    assert_eq!((read(&three, 0), read(&three, 4 * MIB)), (0, 1));
    for disk in [one, three] {
        store.detach(disk).await.unwrap();
    }
}

async fn written_whole(place: &Place) {
    let (store, base) = (place.store().await, place.base().await);
    let view = store.create(&base, &place.at("one.ext4")).await.unwrap();
    let one = store.attach(&view).await.unwrap();
    let device = open(&one);
    for mib in 0..16 {
        device.write_all_at(&vec![mib as u8 + 1; MIB as usize], mib * MIB).unwrap();
    }
    device.sync_all().unwrap();
    assert!(device.write_all_at(&[1], 16 * MIB).is_err(), "it is larger than it should be");
    drop(device);
    let view = store.detach(one).await.unwrap();
    let one = store.attach(&view).await.unwrap();
    for mib in 0..16 {
        assert_eq!(read(&one, mib * MIB), mib as u8 + 1);
        assert_eq!(read(&one, (mib + 1) * MIB - CHUNK as u64), mib as u8 + 1);
    }
    assert!(matches!(disk::extend(&view.path, 32).await, Err(DiskError::FixedSize(_))));
    store.detach(one).await.unwrap();
}

async fn waited_for(place: &Place) {
    let (store, base) = (place.store().await, place.base().await);
    let view = store.create(&base, &place.at("one.ext4")).await.unwrap();
    let one = store.attach(&view).await.unwrap();
    let device = open(&one);
    let letting_go = thread::spawn(move || {
        thread::sleep(Duration::from_millis(300));
        drop(device);
    });
    store.detach(one).await.unwrap();
    letting_go.join().unwrap();
    place.has(0, 0);
}

async fn stays_whole(place: &Place) {
    let (store, base) = (place.store().await, place.base().await);
    let view = store.create(&base, &place.at("one.ext4")).await.unwrap();
    let one = store.attach(&view).await.unwrap();
    let device = open(&one);
    let Err(DiskError::Io(failure)) = store.detach(one).await else { panic!("it was removed") };
    assert_eq!(failure.source.raw_os_error(), Some(libc::EBUSY), "{failure}");
    assert!(failure.action.contains("removing the device wrenn-"), "{failure}");
    let Err(DiskError::Io(failure)) = store.remove(view.clone()).await else { panic!("it was removed") };
    assert_eq!(failure.source.raw_os_error(), Some(libc::EBUSY), "{failure}");
    place.has(2, 1);
    device.write_all_at(&[4; CHUNK], 0).unwrap();
    drop(device);
    let one = store.attach(&view).await.unwrap();
    assert_eq!(read(&one, 0), 4);
    store.remove(view).await.unwrap();
    place.has(0, 0);
}

async fn survives(place: &Place) {
    let (store, base) = (place.store().await, place.base().await);
    let view = place.layered(&store, &base, "one.ext4").await;
    let one = store.attach(&view).await.unwrap();
    let stray = place.layered(&store, &base, "stray.ext4").await;
    store.attach(&stray).await.unwrap();
    // As a VMM, which has it open whatever becomes of the agent.
    let vmm = open(&one);
    let device = one.device().to_owned();
    drop((store, one));
    place.has(1 + 4, 4);

    let store = place.store().await;
    vmm.write_all_at(&[3; CHUNK], 5 * MIB).unwrap();
    let moved = place.at("moved.ext4");
    for part in ["", ".1", ".base"] {
        let [from, to] = ["one", "moved"].map(|name| place.at(&format!("{name}.ext4{part}")));
        fs::rename(from, to).unwrap();
    }
    let one = store.attach(&DiskView { path: moved.clone() }).await.unwrap();
    assert_eq!(one.device(), device, "the same device, whatever its file is called");
    // A record that is gone: its files went, its device did not.
    fs::remove_file(&stray.path).unwrap();
    store.sweep().await.unwrap();
    store.sweep().await.unwrap();
    place.has(1 + 2, 2);
    assert_eq!((read(&one, 5 * MIB), read(&one, LAYERED)), (3, 7));
    let further = store.create(&base, &place.at("further.ext4")).await.unwrap();
    let further = store.attach(&further).await.unwrap();
    place.has(1 + 3, 3);
    store.detach(further).await.unwrap();
    drop(vmm);
    assert_eq!(store.detach(one).await.unwrap().path, moved);
}

async fn paused_often(place: &Place) {
    const LIVES: u64 = 100;
    const CHUNKS: u64 = 64;
    // A large part is written once, a small one again and again.
    const LARGE: u64 = 2048;
    const SMALL: u64 = 4 * CHUNKS;
    let (store, base) = (place.store().await, place.base().await);
    let (home, paused) = (place.at("home.ext4"), place.at("snapshot.ext4"));
    let mut expected = fs::read(&base).unwrap();
    let mut view = store.create(&base, &home).await.unwrap();
    for life in 0..=LIVES {
        let begun = place.allocated();
        let disk = store.attach(&view).await.unwrap();
        let chunks = if life == 0 {
            SMALL..SMALL + LARGE
        } else {
            let first = life * 24 % (SMALL - CHUNKS);
            first..first + CHUNKS
        };
        let content = vec![life as u8 + 1; CHUNK];
        let device = open(&disk);
        for chunk in chunks.clone() {
            device.write_all_at(&content, chunk * CHUNK as u64).unwrap();
            expected[chunk as usize * CHUNK..][..CHUNK].copy_from_slice(&content);
        }
        if life % 9 == 0 || life == LIVES {
            let mut shown = vec![0; expected.len()];
            device.read_exact_at(&mut shown, 0).unwrap();
            assert!(shown == expected, "in life {life}");
        }
        drop(device);

        // The machine's own files are there until it has ended, and with them the last snapshot's.
        let next = store.clone_frozen(disk.view(), &place.at("next.ext4")).await.unwrap();
        let (written, changed) = (place.allocated() - begun, (chunks.end - chunks.start) * CHUNK as u64);
        assert!(written <= changed * 11 / 10, "pause {life} wrote {written} bytes for {changed}");
        store.remove(store.detach(disk).await.unwrap()).await.unwrap();
        store.remove(DiskView { path: paused.clone() }).await.unwrap();
        let moved = store.clone_frozen(&next, &paused).await.unwrap();
        store.remove(next).await.unwrap();

        let before = place.allocated();
        view = store.create(&moved.path, &home).await.unwrap();
        let merged = place.allocated() - before;
        let small = 2 * SMALL * CHUNK as u64;
        assert!(
            merged <= small,
            "resume {life} wrote {merged} bytes: more than what changes again and again"
        );
    }
    assert!(place.at("home.ext4.1").exists() && !place.at("home.ext4.8").exists());
}

async fn resumed_in_vain(place: &Place) {
    let (store, base) = (place.store().await, place.base().await);
    let view = place.layered(&store, &base, "home.ext4").await;
    let disk = store.attach(&view).await.unwrap();
    write(&disk, MIB, 5);
    let snapshot = pause(&store, disk, &place.at("snapshot.ext4")).await;
    let parts = ["", ".1", ".base"].map(|part| place.at(&format!("snapshot.ext4{part}")));
    let before = parts.each_ref().map(|part| fs::read(part).unwrap());

    let home = place.at("home.ext4");
    for agent_dies in [false, true] {
        let store = place.store().await;
        let view = store.create(&snapshot.path, &home).await.unwrap();
        let disk = store.attach(&view).await.unwrap();
        for offset in [0, MIB, LAYERED] {
            write(&disk, offset, 6);
        }
        assert_eq!(read(&disk, MIB), 6);
        if agent_dies {
            drop(disk);
        } else {
            store.remove(store.detach(disk).await.unwrap()).await.unwrap();
        }
    }
    assert!(parts.each_ref().map(|part| fs::read(part).unwrap()) == before, "what was paused was written");
    // Several at once, of which the first takes the place of the one that is left.
    let store = place.store().await;
    let mut resumed = Vec::new();
    for (name, byte) in [("home.ext4", 8), ("copy.ext4", 9)] {
        let view = store.create(&snapshot.path, &place.at(name)).await.unwrap();
        let disk = store.attach(&view).await.unwrap();
        assert_eq!([0, MIB, LAYERED].map(|offset| read(&disk, offset)), [1, 5, 7]);
        write(&disk, MIB, byte);
        resumed.push(disk);
    }
    assert_eq!([0, 1].map(|number| read(&resumed[number], MIB)), [8, 9]);
    for disk in resumed {
        store.detach(disk).await.unwrap();
    }
}

async fn refused(place: &Place) {
    let (store, base) = (place.store().await, place.base().await);
    let view = store.create(&base, &place.at("one.ext4")).await.unwrap();
    let one = store.attach(&view).await.unwrap();
    write(&one, 0, 5);
    store.detach(one).await.unwrap();
    // As the kernel marks it when it could not write a change down.
    let file = OpenOptions::new().write(true).open(&view.path).unwrap();
    file.write_all_at(&[0; 4], 4).unwrap();
    let error = store.attach(&view).await.unwrap_err();
    assert!(matches!(error, DiskError::Changes(_)), "{error}");
    assert!(matches!(store.flatten(&view).await, Err(DiskError::Changes(_))));
    place.has(0, 0);

    let copies = place.try_open(DiskStoreKind::Copy).await.unwrap();
    let other = place.at("other.ext4");
    assert!(matches!(copies.attach(&view).await, Err(DiskError::OtherStore(_))));
    assert!(matches!(copies.create(&view.path, &other).await, Err(DiskError::OtherStore(_))));
    assert!(matches!(copies.clone_stopped(&view, &other).await, Err(DiskError::OtherStore(_))));
    assert!(!other.exists());
}

/// In a process of its own, which may be told to die on the way.
async fn attach_and_detach(directory: &Path, name: &str) {
    let paths = HostPaths::new(directory).unwrap();
    let choice = DiskStoreChoice::Only(DiskStoreKind::DmSnapshot);
    let options = DiskOptions { choice, data_size_bytes: None };
    let store = disk::prepare(&paths, &options).await.unwrap();
    let attached = store.attach(&DiskView { path: paths.data().join(name) }).await;
    match attached {
        Ok(disk) => match store.detach(disk).await {
            Ok(_) => println!("went well"),
            Err(error) => println!("not detached: {error}"),
        },
        Err(error) => println!("not attached: {error}"),
    }
}

fn no_step_leaves_anything(place: Place) {
    let (views, keeper) = block_on(async {
        let (store, base) = (place.store().await, place.base().await);
        let one = store.create(&base, &place.at("one.ext4")).await.unwrap();
        let views = [one, place.layered(&store, &base, "layered.ext4").await];
        for view in &views {
            let disk = store.attach(view).await.unwrap();
            write(&disk, MIB, 6);
            store.detach(disk).await.unwrap();
        }
        // Another capsule of the same base goes on all the while.
        let keeper = store.create(&base, &place.at("keeper.ext4")).await.unwrap();
        (views, store.attach(&keeper).await.unwrap())
    });
    for view in &views {
        walk(&place, view, keeper.view());
    }
    block_on(async {
        let store = place.store().await;
        let keeper = store.attach(keeper.view()).await.unwrap();
        store.detach(keeper).await.unwrap();
    });
}

fn walk(place: &Place, view: &DiskView, keeper: &DiskView) {
    let points = failpoint::POINTS.iter();
    let points = points.filter(|point| {
        [Operation::Attach, Operation::Detach].iter().any(|operation| point.operations.contains(operation))
    });
    let mut walked = 0;
    for point in points {
        let run = |action: &str| {
            let program = Command::new(std::env::current_exe().unwrap())
                .env(DIRECTORY, place.directory.path())
                .env(DISK, view.path.file_name().unwrap())
                .env("WRENN_FAILPOINTS", format!("{}={action}", point.name))
                .output()
                .unwrap();
            (program.status, String::from_utf8_lossy(&program.stdout).into_owned())
        };
        let (status, said) = run("error*1");
        assert!(status.success() && said.starts_with("not "), "{}: {status}, {said}", point.name);
        place.has(2, 1);
        let (status, _) = run("kill");
        assert_eq!(status.signal(), Some(libc::SIGKILL), "{} is not passed", point.name);
        // What it left is taken over or cleared by the next to want it …
        let (status, said) = run("delay(0ms)");
        assert!(status.success() && said.starts_with("went well"), "{}: {status}, {said}", point.name);
        place.has(2, 1);
        // … or swept where nobody does.
        run("kill");
        block_on(async {
            let store = place.store().await;
            let keeper = store.attach(keeper).await.unwrap();
            store.sweep().await.unwrap();
            place.has(2, 1);
            assert_eq!(read(&keeper, 0), 1);
            let one = store.attach(view).await.unwrap();
            assert_eq!(read(&one, MIB), 6, "{}: what was written is lost", point.name);
            store.detach(one).await.unwrap();
        });
        walked += 1;
    }
    assert!(walked >= 5, "{walked}");
}
