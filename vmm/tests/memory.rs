//! Memory in generations, against a plain copy of all of it. No machine runs here. One test needs root, to mount a file
//! system whose files share blocks.

use std::{
    fs::{self, File},
    ops::Range,
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use proptest::prelude::*;
use wrenn_vmm::{
    disk::{self, DiskOptions, DiskStoreChoice, DiskStoreKind},
    driver::{MachineConfig, VmmIdentity},
    memory::{BLOCK, BlockAt, GenerationWriter, Generations, MERGE_AT, MemoryError, Merged, Written, merge},
    paths::HostPaths,
    snapshot::{MemoryLayout, Snapshot, SnapshotError, SnapshotWriter},
};

/// Never set.
static GO_ON: AtomicBool = AtomicBool::new(false);

/// What a memory should be.
#[derive(Clone, PartialEq)]
struct Model(Vec<u8>);

/// Content of some blocks; zero is content too.
#[derive(Clone, Debug)]
struct Change {
    blocks: Range<u64>,
    byte: u8,
}

impl Model {
    fn new(blocks: u64) -> Self {
        Self(vec![0; (blocks * BLOCK) as usize])
    }

    fn bytes(&self) -> u64 {
        self.0.len() as u64
    }

    /// No two blocks of a change are the same, so that a block in another's place is noticed.
    fn apply(&mut self, change: &Change) {
        for block in change.blocks.clone() {
            let content = &mut self.0[(block * BLOCK) as usize..][..BLOCK as usize];
            content.fill(change.byte);
            if change.byte != 0 {
                content[..8].copy_from_slice(&block.to_le_bytes());
            }
        }
    }

    fn part(&self, blocks: &Range<u64>) -> &[u8] {
        &self.0[(blocks.start * BLOCK) as usize..(blocks.end * BLOCK) as usize]
    }
}

/// Writes `changes`, which are in order, as one generation after those in `base`.
fn write(base: Option<&Path>, to: &Path, model: &mut Model, changes: &[Change]) -> Written {
    fs::create_dir(to).unwrap();
    let mut writer = match base {
        Some(base) => GenerationWriter::after(&Generations::open(base).unwrap(), to),
        None => GenerationWriter::first(to, model.bytes()),
    };
    for change in changes {
        model.apply(change);
        writer.write(change.blocks.start * BLOCK, model.part(&change.blocks)).unwrap();
    }
    writer.finish().unwrap()
}

fn whole(memory: &Generations) -> Vec<u8> {
    let mut content = vec![1; memory.bytes() as usize];
    memory.read(0, memory.blocks(), &mut content).unwrap();
    content
}

/// Everything that can be asked of a memory is as in the model.
fn assert_is(memory: &Generations, model: &Model, scratch: &Path) {
    assert_eq!(memory.bytes(), model.bytes());
    assert!(whole(memory) == model.0, "it reads otherwise");
    for range in [0..1, 1..3, 5..memory.blocks(), memory.blocks()..memory.blocks()] {
        let mut content = vec![9; ((range.end - range.start) * BLOCK) as usize];
        memory.read(range.start, range.end - range.start, &mut content).unwrap();
        assert!(content == model.part(&range), "{range:?} reads otherwise");
    }
    let mut not_zero = Vec::new();
    for block in 0..memory.blocks() {
        let expected = model.part(&(block..block + 1));
        match memory.block(block) {
            BlockAt::Zero => assert!(expected.iter().all(|byte| *byte == 0), "block {block}"),
            BlockAt::Data { generation, offset } => {
                let mut content = vec![0; BLOCK as usize];
                memory.file(generation).unwrap().read_exact_at(&mut content, offset).unwrap();
                assert!(content == expected, "block {block}");
                not_zero.push(block);
            }
        }
    }
    assert_eq!(memory.data_ranges().flatten().collect::<Vec<_>>(), not_zero);
    memory.verify().unwrap();

    let flat = scratch.join("flat");
    memory.flatten(&flat).unwrap();
    assert!(fs::read(&flat).unwrap() == model.0, "it is otherwise when flat");
    fs::remove_file(flat).unwrap();
}

/// Changes of one generation, in order.
fn changes(blocks: u64) -> impl Strategy<Value = Vec<Change>> {
    let change = (0..blocks, 1..12u64, prop_oneof![Just(0u8), 1..=255u8]);
    proptest::collection::vec(change, 0..10).prop_map(move |mut all| {
        all.sort_unstable();
        let mut end = 0;
        let ordered = all.into_iter().filter_map(|(start, count, byte)| {
            let blocks = start.max(end)..(start + count).min(blocks);
            (blocks.start < blocks.end).then(|| {
                end = blocks.end;
                Change { blocks, byte }
            })
        });
        ordered.collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_history_reads_as_it_was_written(
        history in proptest::collection::vec((changes(80), any::<bool>()), 1..10),
        flat_base in any::<bool>(),
    ) {
        let directory = tempfile::tempdir().unwrap();
        let at = |number: usize| directory.path().join(number.to_string());
        let mut model = Model::new(80);
        let mut base = None;
        if flat_base {
            // As a machine that was booted leaves it.
            let image = directory.path().join("image");
            model.apply(&Change { blocks: 3..30, byte: 77 });
            File::create(&image).unwrap().set_len(model.bytes()).unwrap();
            File::options().write(true).open(&image).unwrap().write_all_at(model.part(&(3..30)), 3 * BLOCK).unwrap();
            let memory = Generations::of_flat(&image, None).unwrap();
            assert_is(&memory, &model, directory.path());
            base = Some(directory.path().join("base"));
            memory.link_into(&directory.path().join("base")).unwrap();
        }
        for (number, (changes, merges)) in history.iter().enumerate() {
            let written = write(base.as_deref(), &at(number), &mut model, changes);
            let memory = Generations::open(&at(number)).unwrap();
            prop_assert_eq!(written.generations, memory.count());
            let changed: u64 = changes.iter().filter(|c| c.byte != 0).map(|c| c.blocks.end - c.blocks.start).sum();
            prop_assert_eq!(written.data_bytes, changed * BLOCK);
            if let Some(base) = base {
                // What is carried over needs nothing of where it comes from.
                fs::remove_dir_all(base).unwrap();
            }
            assert_is(&memory, &model, directory.path());
            if *merges {
                let several = memory.count() > 1;
                let merged = merge(&at(number), &GO_ON).unwrap();
                prop_assert_eq!(merged, if several { Merged::Done } else { Merged::Needless });
                let merged = Generations::open(&at(number)).unwrap();
                prop_assert!(merged.count() <= 1);
                assert_is(&merged, &model, directory.path());
                // Who had it open reads on.
                assert_is(&memory, &model, directory.path());
            }
            base = Some(at(number));
        }
    }
}

/// Three generations in a directory, and what they are.
fn three(directory: &Path) -> (PathBuf, Model) {
    let mut model = Model::new(64);
    let mut base: Option<PathBuf> = None;
    for (number, (start, byte)) in [(0, 5), (10, 6), (5, 7)].into_iter().enumerate() {
        let at = directory.join(number.to_string());
        write(base.as_deref(), &at, &mut model, &[Change { blocks: start..start + 10, byte }]);
        base = Some(at);
    }
    (base.unwrap(), model)
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_is_damaged_is_refused_saying_how() {
    type Damage<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, Damage); 5] = [
        ("memory.1 is damaged: it is missing", &|at| fs::remove_file(at.join("memory.1")).unwrap()),
        ("memory.2 is damaged: it has 40000 bytes instead of 40960", &|at| {
            let file = File::options().write(true).open(at.join("memory.2")).unwrap();
            file.set_len(40000).unwrap();
        }),
        ("does not match its checksum", &|at| {
            let file = File::options().write(true).open(at.join("memory.header")).unwrap();
            file.write_all_at(&[1], 50).unwrap();
        }),
        ("it has 100 bytes instead of", &|at| {
            let file = File::options().write(true).open(at.join("memory.header")).unwrap();
            file.set_len(100).unwrap();
        }),
        ("is no memory header", &|at| fs::write(at.join("memory.header"), "").unwrap()),
    ];
    for (expected, damage) in cases {
        let directory = tempfile::tempdir().unwrap();
        let (at, _) = three(directory.path());
        damage(&at);
        let error = Generations::open(&at).unwrap_err();
        let mut said = error.to_string();
        if let Some(source) = std::error::Error::source(&error) {
            said += &format!(" {source}");
        }
        assert!(said.contains(expected), "{said} should say {expected}");
        assert!(merge(&at, &GO_ON).is_err());
    }

    let directory = tempfile::tempdir().unwrap();
    let (at, _) = three(directory.path());
    let memory = Generations::open(&at).unwrap();
    File::options().write(true).open(at.join("memory.1")).unwrap().write_all_at(&[9], 5000).unwrap();
    let Err(MemoryError::Data { path, .. }) = memory.verify() else { panic!("it was not noticed") };
    assert_eq!(path, at.join("memory.1"));
}

#[test]
fn what_is_asked_wrongly_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (at, _) = three(directory.path());
    let memory = Generations::open(&at).unwrap();
    for (first, count, buffer) in
        [(0, 65, 65 * 4096), (64, 1, 4096), (u64::MAX, 2, 8192), (0, 1, 4095), (0, 2, 4096)]
    {
        let refused = memory.read(first, count, &mut vec![0; buffer]);
        assert!(matches!(refused, Err(MemoryError::Range { .. })), "{first} {count} {buffer}: {refused:?}");
    }
    let next = directory.path().join("next");
    fs::create_dir(&next).unwrap();
    let mut writer = GenerationWriter::after(&memory, &next);
    writer.write(8 * BLOCK, &[1; 8192]).unwrap();
    for (offset, length) in [(9 * BLOCK, 4096), (11 * BLOCK, 100), (11 * BLOCK + 1, 4096), (63 * BLOCK, 8192)]
    {
        let refused = writer.write(offset, &vec![1; length]);
        assert!(matches!(refused, Err(MemoryError::Change { .. })), "{offset} {length}: {refused:?}");
    }
}

#[test]
fn a_merge_that_is_stopped_leaves_everything_as_it_was() {
    let directory = tempfile::tempdir().unwrap();
    let (at, model) = three(directory.path());
    let before = names(&at);
    assert_eq!(merge(&at, &AtomicBool::new(true)).unwrap(), Merged::Stopped);
    assert_eq!(names(&at), before);
    assert_is(&Generations::open(&at).unwrap(), &model, directory.path());
    assert_eq!(merge(&at, &GO_ON).unwrap(), Merged::Done);
    assert_eq!(names(&at), ["memory.3", "memory.header"]);
}

#[test]
fn many_threads_read_while_it_is_merged() {
    let directory = tempfile::tempdir().unwrap();
    let (at, model) = three(directory.path());
    let memory = Generations::open(&at).unwrap();
    let merged = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (memory, model, merged) = (memory.clone(), &model, merged.clone());
            scope.spawn(move || {
                let mut after = 0;
                let mut block = thread;
                while after < 100 {
                    let mut content = vec![0; 3 * BLOCK as usize];
                    memory.read(block % 61, 3, &mut content).unwrap();
                    assert!(content == model.part(&(block % 61..block % 61 + 3)));
                    after += usize::from(merged.load(Ordering::SeqCst));
                    block += 7;
                }
            });
        }
        merge(&at, &GO_ON).unwrap();
        merged.store(true, Ordering::SeqCst);
    });
}

const MEMORY: MachineConfig = MachineConfig { vcpus: 1, memory_mib: 32 };
const BLOCKS: u64 = (32 << 20) / BLOCK;
const PAUSES: u64 = 100;
/// Blocks that change in one life: some always the same, some all over the memory.
const CHANGES: u64 = 200;

/// What the nth life changes.
fn life(number: u64) -> Vec<Change> {
    let mut starts: Vec<u64> = (0..CHANGES / 2).map(|at| 1000 + at * 3).collect();
    starts.extend((0..CHANGES / 2).map(|at| 3000 + (at * 7919 + number * 104_729) % (BLOCKS - 3000)));
    starts.sort_unstable();
    starts.dedup();
    let byte = (number % 250 + 1) as u8;
    starts.into_iter().map(|start| Change { blocks: start..start + 1, byte }).collect()
}

fn identity() -> VmmIdentity {
    VmmIdentity {
        driver: "none".into(),
        version: "1".into(),
        accelerator: "none".into(),
        cpu_model: "none".into(),
        device_layout: 1,
        kernel: "none".into(),
        tsc_khz: 1,
    }
}

/// Pauses as a driver does. Answers the snapshot and how many bytes are new in it.
async fn pause(at: &Path, home: &Path, model: &mut Model, changes: &[Change]) -> (Snapshot, u64) {
    let mut snapshot = SnapshotWriter::begin(at).await.unwrap();
    fs::write(snapshot.state_path(), "state").unwrap();
    let mut writer = GenerationWriter::after(&Generations::open(home).unwrap(), snapshot.directory());
    for change in changes {
        model.apply(change);
        writer.write(change.blocks.start * BLOCK, model.part(&change.blocks)).unwrap();
    }
    let written = writer.finish().unwrap();
    let files = fs::read_dir(snapshot.directory()).unwrap().map(|entry| entry.unwrap().metadata().unwrap());
    let new = files.filter(|file| file.nlink() == 1).map(|file| file.len()).sum();
    snapshot.saved(identity(), MEMORY, MemoryLayout::from(&written)).unwrap();
    (snapshot.commit().await.unwrap(), new)
}

#[tokio::test]
async fn the_hundredth_pause_costs_what_the_second_did() {
    let directory = tempfile::tempdir_in("/var/tmp").unwrap();
    let (at, home) = (directory.path().join("cl-1"), directory.path().join("home"));
    let image = directory.path().join("golden");
    let mut model = Model::new(BLOCKS);
    model.apply(&Change { blocks: 500..3500, byte: 251 });
    let file = File::create(&image).unwrap();
    file.set_len(model.bytes()).unwrap();
    file.write_all_at(model.part(&(500..3500)), 500 * BLOCK).unwrap();
    Generations::of_flat(&image, None).unwrap().link_into(&home).unwrap();
    fs::remove_file(image).unwrap();

    let mut most_files = 0;
    for number in 1..=PAUSES {
        let changes = life(number);
        let changed = changes.len() as u64 * BLOCK;
        let (paused, new) = pause(&at, &home, &mut model, &changes).await;
        // The rest is the header, which a merge at least every eighth life keeps short.
        assert!(new <= changed * 11 / 10 + (16 << 10), "pause {number}: {new} bytes for {changed} changed");
        most_files = most_files.max(names(&at).len());

        // What the machine that was paused had goes, as at the end of its life.
        fs::remove_dir_all(&home).unwrap();
        let resumed = paused.open_memory().unwrap().link_into(&home).unwrap();
        assert!(whole(&resumed) == model.0, "life {number} does not go on where the last one was paused");
        if resumed.count() >= MERGE_AT {
            assert_eq!(merge(&home, &GO_ON).unwrap(), Merged::Done);
        }
    }
    // Manifest, state, header.
    assert!(most_files <= MERGE_AT + 3, "{most_files} files");
    let last = Snapshot::open(&at).await.unwrap();
    last.verify().await.unwrap();
    assert_is(&last.open_memory().unwrap(), &model, directory.path());
    assert_eq!(names(directory.path()), ["cl-1", "home"]);
}

/// Room in the file system that `at` is on.
fn free(at: &Path) -> u64 {
    nix::unistd::syncfs(File::open(at).unwrap()).unwrap();
    let found = nix::sys::statvfs::statvfs(at).unwrap();
    found.blocks_available() * found.fragment_size()
}

/// Needs root, xfsprogs and a loop device.
#[tokio::test]
async fn merging_and_flattening_copy_nothing_where_files_share_blocks() {
    assert!(nix::unistd::geteuid().is_root(), "mounting needs root");
    let directory = tempfile::Builder::new().prefix("wrenn-vmm-").tempdir_in("/var/tmp").unwrap();
    let paths = HostPaths::new(directory.path()).unwrap();
    let choice = DiskStoreChoice::Only(DiskStoreKind::Reflink);
    let options = DiskOptions { choice, data_size_bytes: Some(512 << 20) };
    disk::prepare(&paths, &options).await.unwrap();
    let data = paths.data();

    let mut model = Model::new(BLOCKS);
    write(None, &data.join("1"), &mut model, &[Change { blocks: 0..4000, byte: 1 }]);
    let changes = [Change { blocks: 1000..2000, byte: 2 }, Change { blocks: 5000..8000, byte: 3 }];
    write(Some(&data.join("1")), &data.join("2"), &mut model, &changes);
    write(Some(&data.join("2")), &data.join("3"), &mut model, &[Change { blocks: 1500..1501, byte: 4 }]);
    let at = data.join("3");
    let before = free(&data);
    assert_eq!(merge(&at, &GO_ON).unwrap(), Merged::Done);
    let memory = Generations::open(&at).unwrap();
    memory.flatten(&data.join("flat")).unwrap();
    let used = before - free(&data);
    // Of 28 MiB each.
    assert!(used < 1 << 20, "{used} bytes were copied");
    assert!(fs::read(data.join("flat")).unwrap() == model.0);
    assert_eq!(memory.count(), 1);
    assert_is(&memory, &model, directory.path());
    drop(memory);
    disk::unmount(&paths).await.unwrap();
}

#[tokio::test]
async fn a_snapshot_with_the_header_of_another_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (home, model) = three(directory.path());
    let one = directory.path().join("one");
    let other = directory.path().join("other");
    pause(&one, &home, &mut model.clone(), &[Change { blocks: 1..2, byte: 8 }]).await;
    pause(&other, &home, &mut model.clone(), &[Change { blocks: 1..2, byte: 9 }]).await;
    fs::copy(other.join("memory.header"), one.join("memory.header")).unwrap();
    let error = Snapshot::open(&one).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Corrupt { .. }), "{error}");
    fs::write(one.join("memory.header"), "nonsense").unwrap();
    let error = Snapshot::open(&one).await.unwrap_err();
    assert!(matches!(error, SnapshotError::Memory(MemoryError::Header { .. })), "{error}");
}
