//! The header: from bytes and to bytes. The format is drawn in the [module's](super) own text.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use sha2::{Digest as _, Sha256};

use super::{BLOCK, BlockAt, MOST_GENERATIONS, MemoryError, MemoryMap};
use crate::failure::Doing as _;

const MAGIC: &[u8; 8] = b"WRENNMEM";
const VERSION: u32 = 1;
const START_BYTES: u64 = 32;
const GENERATION_BYTES: u64 = 48;
const CHECKSUM_BYTES: u64 = 32;
/// Of a guest's memory: far more than any machine is given.
const MOST_BYTES: u64 = 1 << 40;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("is no memory header")]
    Magic,
    #[error("has format {0}, this program reads {VERSION}")]
    Version(u32),
    #[error("is damaged: it has {found} bytes instead of {expected}")]
    Size { found: u64, expected: u64 },
    #[error("is damaged: it does not match its checksum")]
    Checksum,
    #[error("is damaged: {0}")]
    Inconsistent(String),
}

/// One data file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generation {
    /// The file is `memory.<number>`.
    pub number: u64,
    /// Size of the file.
    pub bytes: u64,
    /// Of the file's content; unset where nobody has read all of it yet.
    pub digest: Option<[u8; 32]>,
}

/// What the header file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The oldest first.
    pub generations: Vec<Generation>,
    pub map: MemoryMap,
}

/// What the first bytes say of the rest.
struct Start {
    blocks: u64,
    generations: u64,
    run_bytes: u64,
}

impl Header {
    /// The bytes of the header file.
    pub fn encode(&self) -> Vec<u8> {
        let runs = self.encode_runs();
        let mut bytes = Vec::new();
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((BLOCK as u32).to_le_bytes());
        bytes.extend((self.map.blocks() * BLOCK).to_le_bytes());
        bytes.extend((self.generations.len() as u32).to_le_bytes());
        bytes.extend((runs.len() as u32).to_le_bytes());
        for generation in &self.generations {
            bytes.extend(generation.number.to_le_bytes());
            bytes.extend(generation.bytes.to_le_bytes());
            bytes.extend(generation.digest.unwrap_or_default());
        }
        bytes.extend(runs);
        let checksum = Sha256::digest(&bytes);
        bytes.extend(checksum);
        bytes
    }

    fn encode_runs(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut ends = vec![0; self.generations.len()];
        for run in self.map.runs() {
            put(&mut bytes, run.count);
            match run.at {
                BlockAt::Zero => put(&mut bytes, 0),
                BlockAt::Data { generation, offset } => {
                    put(&mut bytes, generation as u64 + 1);
                    put(&mut bytes, offset / BLOCK - ends[generation]);
                    ends[generation] = offset / BLOCK + run.count;
                }
            }
        }
        bytes
    }

    /// Reads the bytes of a header file. Whatever they are, the answer is a header that is sound in itself, or what
    /// is wrong; memory is only taken for what is really there.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderError> {
        let mut rest = Bytes(bytes);
        let start = Start::decode(&mut rest)?;
        let found = bytes.len() as u64;
        if found != start.header_bytes() {
            return Err(HeaderError::Size { found, expected: start.header_bytes() });
        }
        let (content, checksum) = bytes.split_at(bytes.len() - CHECKSUM_BYTES as usize);
        if Sha256::digest(content).as_slice() != checksum {
            return Err(HeaderError::Checksum);
        }
        let generations = decode_generations(&mut rest, start.generations)?;
        let (runs, _) = rest.0.split_at(rest.0.len() - CHECKSUM_BYTES as usize);
        let map = decode_runs(&mut Bytes(runs), start.blocks, &generations)?;
        Ok(Self { generations, map })
    }

    /// Reads the header file at `path`; answers also its checksum, by which it is known from outside.
    pub(super) fn read(path: &Path) -> Result<(Self, [u8; 32]), MemoryError> {
        let damaged = |source| MemoryError::Header { path: path.to_owned(), source };
        let doing = || format!("reading {}", path.display());
        let mut file = File::open(path).doing(doing)?;
        let found = file.metadata().doing(doing)?.len();
        let mut bytes = vec![0; found.min(START_BYTES) as usize];
        file.read_exact(&mut bytes).doing(doing)?;
        let start = Start::decode(&mut Bytes(&bytes)).map_err(damaged)?;
        if found != start.header_bytes() {
            return Err(damaged(HeaderError::Size { found, expected: start.header_bytes() }));
        }
        let rest = usize::try_from(found - START_BYTES).map_err(io::Error::other).doing(doing)?;
        bytes.try_reserve_exact(rest).map_err(io::Error::other).doing(doing)?;
        file.read_to_end(&mut bytes).doing(doing)?;
        let header = Self::decode(&bytes).map_err(damaged)?;
        let mut checksum = [0; CHECKSUM_BYTES as usize];
        checksum.copy_from_slice(&bytes[bytes.len() - CHECKSUM_BYTES as usize..]);
        Ok((header, checksum))
    }
}

impl Start {
    fn decode(bytes: &mut Bytes<'_>) -> Result<Self, HeaderError> {
        if bytes.take::<8>() != Some(*MAGIC) {
            return Err(HeaderError::Magic);
        }
        let cut_off = HeaderError::Size { found: bytes.0.len() as u64 + 8, expected: START_BYTES };
        let version = bytes.u32().ok_or_else(|| cut_off.clone())?;
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let mut start = || Some((bytes.u32()?, bytes.u64()?, bytes.u32()?, bytes.u32()?));
        let (block, memory, generations, run_bytes) = start().ok_or(cut_off)?;
        if u64::from(block) != BLOCK {
            return Err(inconsistent(format!("its blocks have {block} bytes instead of {BLOCK}")));
        }
        if memory == 0 || !memory.is_multiple_of(BLOCK) || memory > MOST_BYTES {
            return Err(inconsistent(format!("no machine has {memory} bytes of memory")));
        }
        if generations as usize > MOST_GENERATIONS {
            return Err(inconsistent(format!("it has {generations} generations")));
        }
        let (generations, run_bytes) = (u64::from(generations), u64::from(run_bytes));
        Ok(Self { blocks: memory / BLOCK, generations, run_bytes })
    }

    fn header_bytes(&self) -> u64 {
        START_BYTES + self.generations * GENERATION_BYTES + self.run_bytes + CHECKSUM_BYTES
    }
}

fn decode_generations(bytes: &mut Bytes<'_>, count: u64) -> Result<Vec<Generation>, HeaderError> {
    let mut numbers = BTreeSet::new();
    let mut generations = Vec::new();
    for _ in 0..count {
        let mut generation = || Some((bytes.u64()?, bytes.u64()?, bytes.take::<32>()?));
        let (number, size, digest) = generation().ok_or_else(cut_off)?;
        if !numbers.insert(number) {
            return Err(inconsistent(format!("two generations have the number {number}")));
        }
        if !size.is_multiple_of(BLOCK) {
            return Err(inconsistent(format!("generation {number} has {size} bytes, no whole blocks")));
        }
        generations.push(Generation { number, bytes: size, digest: (digest != [0; 32]).then_some(digest) });
    }
    Ok(generations)
}

fn decode_runs(
    bytes: &mut Bytes<'_>,
    blocks: u64,
    generations: &[Generation],
) -> Result<MemoryMap, HeaderError> {
    let mut map = MemoryMap::default();
    let mut ends = vec![0; generations.len()];
    while !bytes.0.is_empty() {
        let first = map.blocks();
        let (count, which) = bytes.number().zip(bytes.number()).ok_or_else(cut_off)?;
        if count == 0 || count > blocks - first {
            return Err(inconsistent(format!("the run at block {first} has {count} blocks")));
        }
        let Some(which) = which.checked_sub(1) else {
            map.push(count, BlockAt::Zero);
            continue;
        };
        let between = bytes.number().ok_or_else(cut_off)?;
        let generation = usize::try_from(which).ok().filter(|index| *index < generations.len());
        let generation = generation
            .ok_or_else(|| inconsistent(format!("the run at block {first} is of generation {which}")))?;
        let (start, has) = (ends[generation], generations[generation].bytes / BLOCK);
        let at = between.checked_add(start).filter(|at| at.checked_add(count).is_some_and(|end| end <= has));
        let at = at.ok_or_else(|| {
            let what = format!(
                "{count} blocks, {between} behind the {start} before, of the {has} of generation {which}"
            );
            inconsistent(format!("the run at block {first} is {what}"))
        })?;
        map.push(count, BlockAt::Data { generation, offset: at * BLOCK });
        ends[generation] = at + count;
    }
    if map.blocks() != blocks {
        return Err(inconsistent(format!("its runs cover {} of {blocks} blocks", map.blocks())));
    }
    Ok(map)
}

/// Appends a number in as many bytes as it needs.
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn inconsistent(what: String) -> HeaderError {
    HeaderError::Inconsistent(what)
}

fn cut_off() -> HeaderError {
    inconsistent("its runs are cut off".to_owned())
}

/// What is still to be read.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// As by [`put`]; none has more than 63 bits.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..63).step_by(7) {
            let [byte] = self.take()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        let mut map = MemoryMap::default();
        map.push(5, BlockAt::Zero);
        map.push(3, BlockAt::Data { generation: 1, offset: 2 * BLOCK });
        map.push(1, BlockAt::Data { generation: 0, offset: 0 });
        map.push(7, BlockAt::Zero);
        let generations = vec![
            Generation { number: 3, bytes: BLOCK, digest: Some([5; 32]) },
            Generation { number: 9, bytes: 5 * BLOCK, digest: None },
        ];
        Header { generations, map }
    }

    const RUNS: usize = 32 + 2 * 48;
    const SIZE: usize = RUNS + 10 + 32;

    /// As somebody who knows the format would forge it.
    fn forged(position: usize, value: &[u8]) -> Result<Header, HeaderError> {
        let mut bytes = header().encode();
        bytes[position..position + value.len()].copy_from_slice(value);
        let content = bytes.len() - 32;
        let checksum = Sha256::digest(&bytes[..content]);
        bytes[content..].copy_from_slice(&checksum);
        Header::decode(&bytes)
    }

    #[test]
    fn what_is_written_is_read_and_lies_where_the_format_says() {
        let bytes = header().encode();
        assert_eq!(Header::decode(&bytes).unwrap(), header());
        assert_eq!(bytes.len(), SIZE);
        assert_eq!(&bytes[..8], b"WRENNMEM");
        assert_eq!(bytes[16..24], (16 * BLOCK).to_le_bytes());
        assert_eq!(bytes[32 + 48..][..8], 9u64.to_le_bytes());
        assert_eq!(bytes[RUNS..SIZE - 32], [5, 0, 3, 2, 2, 1, 1, 0, 7, 0]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong: [(usize, &[u8], &str); 13] = [
            (0, b"X", "is no memory header"),
            (8, &[2], "has format 2, this program reads 1"),
            (12, &[0, 0x20], "is damaged: its blocks have 8192 bytes instead of 4096"),
            (16, &[1], "is damaged: no machine has 65537 bytes of memory"),
            (24, &[65], "is damaged: it has 65 generations"),
            (28, &[11], "is damaged: it has 170 bytes instead of 171"),
            (32, &[9], "is damaged: two generations have the number 9"),
            (40, &[1], "is damaged: generation 3 has 4097 bytes, no whole blocks"),
            (RUNS, &[0], "is damaged: the run at block 0 has 0 blocks"),
            (RUNS, &[4], "is damaged: its runs cover 15 of 16 blocks"),
            (RUNS + 3, &[3], "is damaged: the run at block 5 is of generation 2"),
            (
                RUNS + 4,
                &[3],
                "is damaged: the run at block 5 is 3 blocks, 3 behind the 0 before, of the 5 of generation 1",
            ),
            (RUNS + 8, &[0xff, 0xff], "is damaged: its runs are cut off"),
        ];
        for (position, value, expected) in wrong {
            assert_eq!(forged(position, value).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn numbers_take_the_bytes_they_need() {
        for (number, bytes) in [(0, 1), (127, 1), (128, 2), (1 << 28, 5), (u64::MAX >> 1, 9)] {
            let mut written = Vec::new();
            put(&mut written, number);
            assert_eq!(written.len(), bytes);
            assert_eq!(Bytes(&written).number(), Some(number));
            assert_eq!(Bytes(&written[..bytes - 1]).number(), None);
        }
        assert_eq!(Bytes(&[0xff; 20]).number(), None);
    }

    #[test]
    fn a_file_that_is_not_as_long_as_it_says_is_not_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), header().encode()).unwrap();
        let (read, checksum) = Header::read(file.path()).unwrap();
        assert_eq!(read, header());
        assert_eq!(checksum, header().encode()[header().encode().len() - 32..]);
        file.as_file().set_len(1 << 40).unwrap();
        let Err(MemoryError::Header { source, .. }) = Header::read(file.path()) else {
            panic!("it was read")
        };
        assert_eq!(source, HeaderError::Size { found: 1 << 40, expected: SIZE as u64 });
    }

    proptest! {
        #[test]
        fn a_truncated_header_is_refused(keep in 0usize..SIZE) {
            prop_assert!(Header::decode(&header().encode()[..keep]).is_err());
        }

        #[test]
        fn a_header_with_a_changed_bit_is_refused(bit in 0usize..SIZE * 8) {
            let mut bytes = header().encode();
            bytes[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Header::decode(&bytes).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            prop_assert!(Header::decode(&bytes).is_err());
        }

        #[test]
        fn a_forged_header_is_refused_or_sound(
            position in 8usize..SIZE - 32,
            value in proptest::collection::vec(any::<u8>(), 1..8),
        ) {
            let position = position.min(SIZE - 32 - value.len());
            if let Ok(header) = forged(position, &value) {
                for run in header.map.runs() {
                    if let BlockAt::Data { generation, offset } = run.at {
                        prop_assert!(offset + run.count * BLOCK <= header.generations[generation].bytes);
                    }
                }
            }
        }
    }
}
