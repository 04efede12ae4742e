//! Many generations into one. The order of its steps is drawn in the [module's](super) own text.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{
    BLOCK, BlockAt, CHUNK, DATA, Generation, Generations, Header, MemoryError, MemoryMap, clone::Sharing,
    data_path, header_path, runs, writer::DataWriter,
};
use crate::{
    failpoint,
    failure::{Doing as _, Failure},
    paths::{partial, sync_directory},
};

/// What is written is synced each time it has grown by so much, so that a merge never takes long to stop.
const SYNC_EVERY: u64 = 16 << 20;

/// How a merge ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Merged {
    /// There is one generation now, or none for a memory that is all zero.
    Done,
    /// There was no more than one.
    Needless,
    /// It was told to stop, and everything is as it was.
    Stopped,
}

/// Makes one generation of all that are in `directory`, to which nobody else writes. A crash at any instant leaves the
/// memory as it was, in the old generations or in the new one; what else is left goes with the next merge. Whoever
/// has the old ones open reads on from them. Stops soon after `stop` is set.
pub fn merge(directory: &Path, stop: &AtomicBool) -> Result<Merged, MemoryError> {
    let merged = merge_all(directory, stop);
    // The old generations where it is done, half a new one where it is not: whatever the header does not name.
    // What cannot be removed now goes with the next merge.
    if let Ok((header, _)) = Header::read(&header_path(directory)) {
        remove_strays(directory, &header);
    }
    reach("memory.merge.removed", directory)?;
    merged
}

fn merge_all(directory: &Path, stop: &AtomicBool) -> Result<Merged, MemoryError> {
    let from = Generations::open(directory)?;
    // Of a merge that crashed.
    remove_strays(directory, from.header());
    if from.count() < 2 {
        return Ok(Merged::Needless);
    }
    let number = from.next_number();
    let path = data_path(directory, number);
    let Some(header) = pack(&from, number, &path, stop)? else {
        return Ok(Merged::Stopped);
    };
    reach("memory.merge.written", directory)?;
    if !header.generations.is_empty() {
        sync(&path)?;
    }
    reach("memory.merge.synced", directory)?;
    replace_header(directory, &header)?;
    Ok(Merged::Done)
}

/// Writes every block that is not zero, from where it is, into one data file. `None` if it was told to stop.
fn pack(
    from: &Generations,
    number: u64,
    path: &Path,
    stop: &AtomicBool,
) -> Result<Option<Header>, MemoryError> {
    let mut data = DataWriter::new(path.to_owned());
    let mut map = MemoryMap::default();
    let mut sharing = Sharing::new();
    let mut buffer = vec![0; CHUNK as usize];
    for run in from.map().runs() {
        let BlockAt::Data { generation, offset } = run.at else {
            map.push(run.count, BlockAt::Zero);
            continue;
        };
        let (source, source_path) = from.source(generation);
        let (mut position, end) = (offset, offset + run.count * BLOCK);
        while position < end {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let length = (end - position).min(CHUNK);
            // Read in any case: the digest needs it, and a flat image may have zeros where it has no holes.
            let content = &mut buffer[..length as usize];
            source.read_exact_at(content, position).doing(|| format!("reading {}", source_path.display()))?;
            if data.unsynced() >= SYNC_EVERY {
                data.sync()?;
            }
            pack_chunk((&mut data, &mut map), &mut sharing, content, (source, position))?;
            position += length;
        }
    }
    let (bytes, digest) = data.finish()?;
    let generation = Generation { number, bytes, digest: Some(digest) };
    Ok(Some(Header { generations: if bytes == 0 { Vec::new() } else { vec![generation] }, map }))
}

/// `content` is what the source has at this position.
fn pack_chunk(
    (data, map): (&mut DataWriter, &mut MemoryMap),
    sharing: &mut Sharing,
    content: &[u8],
    (source, position): (&File, u64),
) -> Result<(), Failure> {
    for (zero, start, length) in runs(content) {
        let at = if zero {
            BlockAt::Zero
        } else {
            let offset = data.append_by(&content[start..start + length], |file, to| {
                sharing.share((source, position + start as u64), (file, to), length as u64)
            })?;
            BlockAt::Data { generation: 0, offset }
        };
        map.push(length as u64 / BLOCK, at);
    }
    Ok(())
}

fn replace_header(directory: &Path, header: &Header) -> Result<(), MemoryError> {
    let path = header_path(directory);
    let partial = partial(&path);
    fs::write(&partial, header.encode()).doing(|| format!("writing {}", partial.display()))?;
    reach("memory.merge.header-written", directory)?;
    sync(&partial)?;
    // The data file's name must be there before the header that tells of it.
    sync_directory(directory).doing(|| format!("syncing {}", directory.display()))?;
    reach("memory.merge.header-synced", directory)?;
    fs::rename(&partial, &path).doing(|| format!("replacing {}", path.display()))?;
    reach("memory.merge.header-renamed", directory)?;
    sync_directory(directory).doing(|| format!("syncing {}", directory.display()))?;
    Ok(reach("memory.merge.committed", directory)?)
}

/// Removes what the header does not name, as far as it can be removed.
fn remove_strays(directory: &Path, header: &Header) {
    let named: BTreeSet<_> =
        header.generations.iter().map(|generation| data_path(directory, generation.number)).collect();
    let removed = fs::read_dir(directory).and_then(|entries| {
        for entry in entries {
            let path = entry?.path();
            let ours =
                path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(DATA.as_bytes()));
            if ours && path != header_path(directory) && !named.contains(&path) {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    });
    if let Err(error) = removed {
        tracing::warn!(path = %directory.display(), %error, "removing old generations");
    }
}

fn sync(path: &Path) -> Result<(), Failure> {
    File::open(path).and_then(|file| file.sync_all()).doing(|| format!("syncing {}", path.display()))
}

fn reach(name: &'static str, directory: &Path) -> Result<(), Failure> {
    failpoint::reach(name).doing(|| format!("merging the generations in {}", directory.display()))
}
