//! What a Firecracker has written down of its memory, and what it is written on top of.
//!
//! Each snapshot that Firecracker makes has only the pages that were written to since the one before, so none may be
//! lost, whatever becomes of the snapshot it was made for. In the machine's home are:
//! ```text
//!  memory | generations/   the base: all that was in the memory at the last save, or at the restore; none after a boot
//!  vmm/memory.<n>          being written by Firecracker
//!  changes/<n>             written, not yet in the base; the higher number is the later
//!
//!  vmm/memory.<n> ──▶ changes/<n> ──▶ base + changes = the snapshot's memory ──▶ base ──▶ changes removed
//! ```
//! Putting changes on top of a base that has them already does no harm, as long as the oldest is removed first. So each
//! step may be the last before a crash or an error, and the next save goes on from there.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{AT_FDCWD, RenameFlags, renameat2},
    sys::statvfs::statvfs,
};

use crate::{
    disk::clone_or_copy,
    driver::{
        DriverError,
        base::open_up,
        image::{
            CHUNK, ChangedPages, SavedMemory, TakePages, save_generation, save_into_clone, save_private,
            save_whole,
        },
    },
    failure::{Doing as _, Failure},
    memory::{BLOCK, BlockAt, Generations, MemoryMap, Run, whole_blocks},
    paths::{CapsulePaths, create_directory, partial, remove_any},
    snapshot::{MemoryLayout, STATE_LIMIT, SnapshotFiles},
};

/// In a snapshot; the names of a memory's other files begin with it.
const FLAT: &str = "memory";
/// Names in [`CapsulePaths::vmm`], before the number.
const MEMORY: &str = "memory.";
const STATE: &str = "state.";

/// Of a machine that was never saved.
pub const FIRST: u64 = 0;

/// The files of the save of this number, as they are called in the directory.
pub fn names(number: u64) -> [String; 2] {
    [format!("{STATE}{number}"), format!("{MEMORY}{number}")]
}

/// Makes the directories. What Firecracker leaves out of a file must be a hole in it, of whole pages.
pub fn prepare(home: &CapsulePaths) -> Result<(), DriverError> {
    let changes = home.changes();
    create_directory(&changes, 0o700)?;
    let blocks = statvfs(&changes).doing(|| format!("asking for the block size of {}", changes.display()))?;
    let size = blocks.block_size().max(blocks.fragment_size());
    if size > BLOCK {
        let what = format!("{} has blocks of {size} bytes, {BLOCK} at most are wanted", changes.display());
        return Err(DriverError::Memory(what));
    }
    Ok(())
}

/// Takes what Firecracker has written out of its reach. It must not be writing.
pub fn take_in(home: &CapsulePaths) -> Result<(), Failure> {
    for (number, path) in numbered(&home.vmm(), MEMORY)? {
        let to = home.changes().join(number.to_string());
        fs::rename(&path, &to).doing(|| format!("moving {}", path.display()))?;
    }
    Ok(())
}

/// Brings the devices' state of the save of this number to `to`, and removes those of others, which failed.
pub fn take_state(home: &CapsulePaths, number: u64, to: &Path) -> Result<(), Failure> {
    for (found, path) in numbered(&home.vmm(), STATE)? {
        if found == number {
            let mut content = Vec::new();
            let doing = || format!("reading {}", path.display());
            let mut file = open(&path).doing(doing)?.take(STATE_LIMIT + 1);
            file.read_to_end(&mut content).doing(doing)?;
            if content.len() as u64 > STATE_LIMIT {
                return Err(Failure::new(doing(), io::Error::from(io::ErrorKind::FileTooLarge)));
            }
            fs::write(to, content).doing(|| format!("writing {}", to.display()))?;
            open_up(to)?;
        }
        fs::remove_file(&path).doing(|| format!("removing {}", path.display()))?;
    }
    Ok(())
}

/// A number that no earlier save has, also of another life of the agent.
pub fn next_number(home: &CapsulePaths) -> Result<u64, Failure> {
    let written = numbered(&home.vmm(), MEMORY)?.into_iter().chain(numbered(&home.changes(), "")?);
    Ok(written.map(|(number, _)| number + 1).max().unwrap_or(FIRST))
}

/// Writes the memory into a snapshot; what was saved is the base of the next. `base_is_there`: a clone of the base is
/// where the snapshot's memory is to be.
pub fn save(
    home: &CapsulePaths,
    bytes: u64,
    into: &SnapshotFiles,
    base_is_there: bool,
) -> Result<SavedMemory, DriverError> {
    let all = numbered(&home.changes(), "")?;
    let changes = Changes::open(&all, bytes)?;
    if !base_is_there {
        clear(into)?;
    }
    let saved = match Base::of(home) {
        Base::Nothing => save_first(&all, bytes, into)?,
        Base::Flat(base) => {
            let save = if base_is_there { save_into_clone } else { save_private };
            save(&changes, &base, into)?
        }
        Base::Generations(base) => save_generation(&changes, &Generations::open(&base)?, into)?,
    };
    advance(home, into, &saved.layout)?;
    for (_, path) in &all {
        fs::remove_file(path).doing(|| format!("removing {}", path.display()))?;
    }
    Ok(saved)
}

/// Removes the memory that an earlier save wrote into the same snapshot. It is the base now, which must not be written to.
fn clear(into: &SnapshotFiles) -> Result<(), Failure> {
    let doing = || format!("clearing {}", into.directory.display());
    for entry in fs::read_dir(&into.directory).doing(doing)? {
        let entry = entry.doing(doing)?;
        if entry.file_name().as_encoded_bytes().starts_with(FLAT.as_bytes()) {
            fs::remove_file(entry.path()).doing(doing)?;
        }
    }
    Ok(())
}

/// What changes are to be put on top of.
#[derive(Debug, PartialEq, Eq)]
pub enum Base {
    /// The machine was booted and never saved.
    Nothing,
    Flat(PathBuf),
    Generations(PathBuf),
}

impl Base {
    pub fn of(home: &CapsulePaths) -> Self {
        // A flat memory beside generations is what the VMM maps.
        if home.generations().exists() {
            Self::Generations(home.generations())
        } else if home.memory().exists() {
            Self::Flat(home.memory())
        } else {
            Self::Nothing
        }
    }
}

/// Of a machine that was booted the oldest changes are all of its memory.
fn save_first(all: &[(u64, PathBuf)], bytes: u64, into: &SnapshotFiles) -> Result<SavedMemory, DriverError> {
    let [(_, oldest), later @ ..] = all else {
        return Err(DriverError::Memory("Firecracker has written nothing of it".to_owned()));
    };
    if later.is_empty() {
        return save_whole(oldest, &into.memory);
    }
    clone_or_copy(oldest, &into.memory)?;
    save_into_clone(&Changes::open(later, bytes)?, oldest, into)
}

/// Makes what was saved the base.
fn advance(home: &CapsulePaths, saved: &SnapshotFiles, layout: &MemoryLayout) -> Result<(), DriverError> {
    match layout {
        MemoryLayout::Flat { .. } => {
            let own = home.memory();
            let aside = partial(&own);
            let doing = || format!("keeping {}", saved.memory.display());
            remove_any(&aside).doing(doing)?;
            fs::hard_link(&saved.memory, &aside).doing(doing)?;
            fs::rename(&aside, &own).doing(doing)?;
        }
        MemoryLayout::Generations { .. } => {
            let own = home.generations();
            let aside = partial(&own);
            Generations::open(&saved.directory)?.link_into(&aside)?;
            let there = own.exists();
            let flags = if there { RenameFlags::RENAME_EXCHANGE } else { RenameFlags::RENAME_NOREPLACE };
            renameat2(AT_FDCWD, &aside, AT_FDCWD, &own, flags)
                .doing(|| format!("renaming {}", aside.display()))?;
            remove_any(&aside).doing(|| format!("removing {}", aside.display()))?;
        }
    }
    Ok(())
}

/// Files of a directory that are called by a prefix and a number, the lowest first.
fn numbered(directory: &Path, prefix: &str) -> Result<Vec<(u64, PathBuf)>, Failure> {
    let doing = || format!("listing {}", directory.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).doing(doing)? {
        let entry = entry.doing(doing)?;
        let name = entry.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.strip_prefix(prefix)?.parse().ok()) {
            found.push((number, entry.path()));
        }
    }
    found.sort();
    Ok(found)
}

/// A file that Firecracker wrote, and nothing else that may be there instead.
fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Several files of changes, the later over the earlier.
#[derive(Debug)]
struct Changes {
    files: Vec<File>,
    /// What is zero there has not changed.
    map: MemoryMap,
}

impl Changes {
    fn open(all: &[(u64, PathBuf)], bytes: u64) -> Result<Self, DriverError> {
        let mut files = Vec::with_capacity(all.len());
        let mut map = MemoryMap::zero(bytes / BLOCK);
        for (generation, (_, path)) in all.iter().enumerate() {
            let doing = || format!("reading {}", path.display());
            let file = open(path).doing(doing)?;
            let size = file.metadata().doing(doing)?.len();
            if size != bytes {
                let what = format!("{} has {size} bytes instead of {bytes}", path.display());
                return Err(DriverError::Memory(what));
            }
            let run = |(start, end): (u64, u64)| {
                let at = BlockAt::Data { generation, offset: start };
                Run { first: start / BLOCK, count: (end - start) / BLOCK, at }
            };
            let runs: Vec<Run> = whole_blocks(&file).doing(doing)?.into_iter().map(run).collect();
            map = map.overlay(&runs);
            files.push(file);
        }
        Ok(Self { files, map })
    }
}

impl ChangedPages for Changes {
    fn each(&self, take: &mut TakePages<'_>) -> Result<u64, DriverError> {
        let mut buffer = vec![0; CHUNK as usize];
        let mut all = 0;
        for run in self.map.runs() {
            let BlockAt::Data { generation, offset } = run.at else { continue };
            let length = run.count * BLOCK;
            let mut done = 0;
            while done < length {
                let part = (length - done).min(CHUNK);
                let pages = &mut buffer[..part as usize];
                self.files[generation]
                    .read_exact_at(pages, offset + done)
                    .doing(|| "reading changed pages")?;
                take(pages, run.first * BLOCK + done)?;
                done += part;
            }
            all += length;
        }
        Ok(all)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 64;
    const BYTES: u64 = PAGES * BLOCK;

    /// A home, what Firecracker's memory is, and a number for each snapshot.
    struct Machine {
        directory: tempfile::TempDir,
        home: CapsulePaths,
        memory: Vec<u8>,
        /// Pages that were written to since Firecracker last wrote down any.
        dirty: Vec<u64>,
        snapshots: u32,
    }

    impl Machine {
        fn new() -> Self {
            let directory = tempfile::tempdir_in("/var/tmp").unwrap();
            let at = |name: &str| directory.path().join(name);
            let home = CapsulePaths { directory: at("home"), run: at("run") };
            home.create().unwrap();
            fs::create_dir(home.vmm()).unwrap();
            prepare(&home).unwrap();
            let all = (0..PAGES).collect();
            Self { directory, home, memory: vec![0; BYTES as usize], dirty: all, snapshots: 0 }
        }

        fn write(&mut self, page: u64, byte: u8) {
            let start = (page * BLOCK) as usize;
            self.memory[start..start + BLOCK as usize].fill(byte);
            self.dirty.push(page);
        }

        /// As Firecracker does.
        fn write_down(&mut self) {
            let number = next_number(&self.home).unwrap();
            let [_, name] = names(number);
            let file = File::create_new(self.home.vmm().join(name)).unwrap();
            file.set_len(BYTES).unwrap();
            for page in self.dirty.drain(..) {
                let start = page * BLOCK;
                let content = &self.memory[start as usize..(start + BLOCK) as usize];
                file.write_all_at(content, start).unwrap();
            }
        }

        fn snapshot(&mut self) -> SnapshotFiles {
            self.snapshots += 1;
            let directory = self.directory.path().join(self.snapshots.to_string());
            fs::create_dir(&directory).unwrap();
            SnapshotFiles { memory: directory.join("memory"), directory }
        }

        fn save(&mut self, into: &SnapshotFiles) -> SavedMemory {
            self.write_down();
            take_in(&self.home).unwrap();
            save(&self.home, BYTES, into, false).unwrap()
        }
    }

    fn content(of: &SnapshotFiles, layout: &MemoryLayout) -> Vec<u8> {
        let memory = match layout {
            MemoryLayout::Flat { .. } => Generations::of_flat(&of.memory, None).unwrap(),
            MemoryLayout::Generations { .. } => Generations::open(&of.directory).unwrap(),
        };
        let mut content = vec![1; BYTES as usize];
        memory.read(0, PAGES, &mut content).unwrap();
        content
    }

    #[test]
    fn every_save_is_all_of_the_memory_and_none_changes_another() {
        let mut machine = Machine::new();
        let mut taken = Vec::new();
        for round in 1..6_u8 {
            machine.write(u64::from(round), round);
            machine.write(20, if round % 2 == 0 { 0 } else { round });
            let into = machine.snapshot();
            let saved = machine.save(&into);
            taken.push((into, saved.layout, machine.memory.clone()));
            assert_eq!(fs::read_dir(machine.home.changes()).unwrap().count(), 0);
            for (into, layout, expected) in &taken {
                assert!(content(into, layout) == *expected, "round {round}");
            }
        }
        for (into, ..) in &taken {
            fs::remove_dir_all(&into.directory).unwrap();
        }
        machine.write(7, 77);
        let into = machine.snapshot();
        let saved = machine.save(&into);
        assert!(content(&into, &saved.layout) == machine.memory, "the machine needs none of its snapshots");
    }

    #[test]
    fn the_same_snapshot_may_be_written_again() {
        let mut machine = Machine::new();
        let into = machine.snapshot();
        for round in 1..4 {
            machine.write(round, 9);
            let saved = machine.save(&into);
            assert!(content(&into, &saved.layout) == machine.memory, "round {round}");
        }
    }

    #[test]
    fn what_is_no_memory_of_the_machine_is_an_error() {
        let mut machine = Machine::new();
        machine.write_down();
        let [_, name] = names(next_number(&machine.home).unwrap());
        std::os::unix::fs::symlink("/etc/passwd", machine.home.vmm().join(name)).unwrap();
        take_in(&machine.home).unwrap();
        let into = machine.snapshot();
        let error = save(&machine.home, BYTES, &into, false).unwrap_err();
        assert!(
            matches!(&error, DriverError::Io(failure) if failure.source.raw_os_error() == Some(libc::ELOOP)),
            "{error:?}"
        );
        let short = save(&machine.home, BYTES * 2, &into, false).unwrap_err();
        assert!(matches!(short, DriverError::Memory(_)), "{short}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        /// Saves that fail, and agents that die, at any point between.
        #[test]
        fn nothing_is_lost_whatever_becomes_of_a_save(
            steps in proptest::collection::vec((0..PAGES, any::<u8>(), 0..5_u8), 1..20),
        ) {
            let mut machine = Machine::new();
            for (page, byte, fate) in steps {
                machine.write(page, byte);
                match fate {
                    0 => {}
                    1 => machine.write_down(),
                    2 => {
                        machine.write_down();
                        take_in(&machine.home).unwrap();
                    }
                    3 => {
                        // The snapshot is given up after its memory was saved.
                        let into = machine.snapshot();
                        machine.save(&into);
                        fs::remove_dir_all(&into.directory).unwrap();
                    }
                    _ => {
                        // The agent dies before the changes that are in the base are removed.
                        machine.write_down();
                        take_in(&machine.home).unwrap();
                        let kept = numbered(&machine.home.changes(), "").unwrap().pop().unwrap();
                        let aside = machine.directory.path().join("aside");
                        fs::hard_link(&kept.1, &aside).unwrap();
                        let into = machine.snapshot();
                        save(&machine.home, BYTES, &into, false).unwrap();
                        fs::rename(&aside, &kept.1).unwrap();
                    }
                }
            }
            let into = machine.snapshot();
            let saved = machine.save(&into);
            prop_assert!(content(&into, &saved.layout) == machine.memory);
        }
    }
}
