//! Reading a memory that is in generations.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    BLOCK, BlockAt, DataDigest, Generation, Header, MemoryError, MemoryMap, Run, clone::RangeWriter,
    data_path, header_path, whole_blocks,
};
use crate::failure::{Doing as _, Failure};

/// A memory in generations, open for reading. Clones share the open files, from any number of threads; the
/// files may be removed meanwhile.
#[derive(Clone, Debug)]
pub struct Generations {
    header: Arc<Header>,
    /// In the order of the header's generations.
    files: Arc<[DataFile]>,
    checksum: [u8; 32],
}

#[derive(Debug)]
struct DataFile {
    path: PathBuf,
    file: File,
}

impl Generations {
    /// Reads the header in `directory` and checks that every data file it names is there, whole. What is in them is
    /// only read by [`verify`](Self::verify).
    pub fn open(directory: &Path) -> Result<Self, MemoryError> {
        let (header, checksum) = Header::read(&header_path(directory))?;
        let files = header
            .generations
            .iter()
            .map(|generation| DataFile::open(data_path(directory, generation.number), generation.bytes))
            .collect::<Result<_, _>>()?;
        Ok(Self { header: Arc::new(header), files, checksum })
    }

    /// A flat image as the one generation there is: its holes are zero. It must not change any more.
    pub fn of_flat(image: &Path, digest: Option<[u8; 32]>) -> Result<Self, MemoryError> {
        let doing = || format!("looking for the data in {}", image.display());
        let bytes = fs::metadata(image).doing(doing)?.len();
        let file = DataFile::open(image.to_owned(), bytes)?;
        if bytes == 0 || !bytes.is_multiple_of(BLOCK) {
            return Err(file.damaged(format!("{bytes} bytes are no whole blocks")));
        }
        let mut changes = Vec::new();
        for (start, end) in whole_blocks(&file.file).doing(doing)? {
            let at = BlockAt::Data { generation: 0, offset: start };
            changes.push(Run { first: start / BLOCK, count: (end - start) / BLOCK, at });
        }
        let map = MemoryMap::zero(bytes / BLOCK).overlay(&changes);
        let header = Header { generations: vec![Generation { number: 0, bytes, digest }], map };
        Ok(Self { header: Arc::new(header), files: [file].into(), checksum: [0; 32] })
    }

    /// Size of the memory.
    pub fn bytes(&self) -> u64 {
        self.blocks() * BLOCK
    }

    pub fn blocks(&self) -> u64 {
        self.header.map.blocks()
    }

    /// How many generations there are.
    pub fn count(&self) -> usize {
        self.header.generations.len()
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// SHA-256 of the header, as in its last bytes; zeros for a flat image, which has none.
    pub(crate) fn checksum(&self) -> [u8; 32] {
        self.checksum
    }

    /// Where a block's content is. Beyond the end there is nothing.
    pub fn block(&self, index: u64) -> BlockAt {
        self.header.map.block(index)
    }

    /// The open data file of a generation, for who reads by [`block`](Self::block).
    pub fn file(&self, generation: usize) -> Option<&File> {
        self.files.get(generation).map(|of| &of.file)
    }

    /// Reads `count` blocks from `first` on into `buffer`, which has exactly that size.
    pub fn read(&self, first: u64, count: u64, buffer: &mut [u8]) -> Result<(), MemoryError> {
        let end = first.checked_add(count).filter(|end| *end <= self.blocks());
        let Some(end) = end.filter(|_| buffer.len() as u64 == count * BLOCK) else {
            let (buffer, blocks) = (buffer.len(), self.blocks());
            return Err(MemoryError::Range { first, count, buffer, blocks });
        };
        let mut rest = buffer;
        for run in self.header.map.runs_in(first..end) {
            let (part, after) = rest.split_at_mut((run.count * BLOCK) as usize);
            rest = after;
            match run.at {
                BlockAt::Zero => part.fill(0),
                BlockAt::Data { generation, offset } => {
                    let of = &self.files[generation];
                    of.file.read_exact_at(part, offset).doing(|| of.reading())?;
                }
            }
        }
        Ok(())
    }

    /// Where in which files the content of such blocks is, in bytes; what is zero is nowhere.
    pub(crate) fn places(&self, first: u64, count: u64) -> impl Iterator<Item = (&File, u64, u64)> {
        self.header.map.runs_in(first..first + count).filter_map(|run| match run.at {
            BlockAt::Zero => None,
            BlockAt::Data { generation, offset } => {
                Some((&self.files[generation].file, offset, run.count * BLOCK))
            }
        })
    }

    /// What is not zero, in order, in blocks.
    pub fn data_ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        self.header.map.data_ranges()
    }

    /// Reads all data files and compares them with their digests; one whose digest is not known passes.
    pub fn verify(&self) -> Result<(), MemoryError> {
        for (generation, of) in self.header.generations.iter().zip(&*self.files) {
            let Some(expected) = generation.digest else { continue };
            if DataDigest::of(&of.file).doing(|| of.reading())? != expected {
                return Err(of.damaged("it does not match its digest".to_owned()));
            }
        }
        Ok(())
    }

    /// Makes a flat image at `to`, which must not exist: one byte of file for each byte of memory, sharing blocks
    /// with the data files where the file system can. Not synced.
    pub fn flatten(&self, to: &Path) -> Result<(), MemoryError> {
        let making = || format!("making {}", to.display());
        let options = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).clone();
        let file = options.open(to).doing(making)?;
        self.flatten_into(&file).inspect_err(|_| {
            // Half an image is nobody's memory.
            let _ = fs::remove_file(to);
        })
    }

    /// The same into a file that is empty.
    pub fn flatten_into(&self, file: &File) -> Result<(), MemoryError> {
        file.set_len(self.bytes()).doing(|| "making room for a flat image")?;
        let mut writer = RangeWriter::new(file);
        for run in self.header.map.runs() {
            if let BlockAt::Data { generation, offset } = run.at {
                let of = &self.files[generation];
                writer
                    .bring(&of.file, offset, run.first * BLOCK, run.count * BLOCK)
                    .doing(|| format!("copying {} into a flat image", of.path.display()))?;
            }
        }
        Ok(())
    }

    /// Gives the files further names in `directory`, which is made anew on the same file system, so that they stay
    /// when this directory goes. Answers what is there then.
    pub fn link_into(&self, directory: &Path) -> Result<Self, MemoryError> {
        let making = || format!("making {}", directory.display());
        match fs::remove_dir_all(directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).doing(making)?,
            _ => {}
        }
        crate::paths::create_directory(directory, 0o700)?;
        for index in 0..self.count() {
            self.link(index, directory)?;
        }
        let header = header_path(directory);
        fs::write(&header, self.header.encode()).doing(|| format!("writing {}", header.display()))?;
        Self::open(directory)
    }

    /// Gives one data file a further name.
    pub(super) fn link(&self, index: usize, directory: &Path) -> Result<(), Failure> {
        let (of, number) = (&self.files[index], self.header.generations[index].number);
        let to = data_path(directory, number);
        fs::hard_link(&of.path, &to).doing(|| format!("linking {} to {}", of.path.display(), to.display()))
    }

    /// Of a generation that comes after all these.
    pub(super) fn next_number(&self) -> u64 {
        self.header.generations.iter().map(|generation| generation.number + 1).max().unwrap_or(0)
    }

    pub(super) fn map(&self) -> &MemoryMap {
        &self.header.map
    }

    pub(super) fn source(&self, generation: usize) -> (&File, &Path) {
        (&self.files[generation].file, &self.files[generation].path)
    }
}

impl DataFile {
    fn open(path: PathBuf, expected: u64) -> Result<Self, MemoryError> {
        let doing = || format!("opening {}", path.display());
        let file = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(MemoryError::Data { path, what: "it is missing".to_owned() });
            }
            result => result.doing(doing)?,
        };
        let found = file.metadata().doing(doing)?.len();
        let opened = Self { path, file };
        if found != expected {
            return Err(opened.damaged(format!("it has {found} bytes instead of {expected}")));
        }
        Ok(opened)
    }

    fn damaged(&self, what: String) -> MemoryError {
        MemoryError::Data { path: self.path.clone(), what }
    }

    fn reading(&self) -> String {
        format!("reading {}", self.path.display())
    }
}
