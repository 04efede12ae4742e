//! Where every block of a memory is.

use std::ops::Range;

use super::BLOCK;

/// Where a block's content is. Their order is that of a sequential read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum BlockAt {
    /// Nowhere: it is zero.
    Zero,
    /// In the data file of the generation of this index, so many bytes from its start.
    Data { generation: usize, offset: u64 },
}

impl BlockAt {
    /// Where the content of the block that lies `blocks` further on in the same run is.
    fn plus(self, blocks: u64) -> Self {
        match self {
            Self::Zero => Self::Zero,
            Self::Data { generation, offset } => Self::Data { generation, offset: offset + blocks * BLOCK },
        }
    }
}

/// Blocks one behind the other, in the memory and in the data file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Number of the first block in the memory.
    pub first: u64,
    pub count: u64,
    /// Of the first block.
    pub at: BlockAt,
}

impl Run {
    pub fn end(&self) -> u64 {
        self.first + self.count
    }
}

/// Maps every block of a memory. Grows at its end, by [`push`](Self::push).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryMap {
    blocks: u64,
    /// Where each run starts, and where the content of its first block is. In order; the first is at 0.
    runs: Vec<(u64, BlockAt)>,
}

impl MemoryMap {
    /// A memory that is all zero.
    pub fn zero(blocks: u64) -> Self {
        let mut map = Self::default();
        map.push(blocks, BlockAt::Zero);
        map
    }

    /// The next `count` blocks start at `at`.
    pub fn push(&mut self, count: u64, at: BlockAt) {
        if count == 0 {
            return;
        }
        let goes_on = self.runs.last().is_some_and(|&(first, last)| last.plus(self.blocks - first) == at);
        if !goes_on {
            self.runs.push((self.blocks, at));
        }
        self.blocks += count;
    }

    /// How many there are.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Where the block of this number is. Beyond the end there is nothing.
    pub fn block(&self, index: u64) -> BlockAt {
        if index >= self.blocks {
            return BlockAt::Zero;
        }
        let behind = self.runs.partition_point(|&(first, _)| first <= index);
        let (first, at) = self.runs[behind - 1];
        at.plus(index - first)
    }

    pub fn run_count(&self) -> usize {
        self.runs.len()
    }

    /// The runs that make up these blocks, in order, cut off at both ends.
    pub fn runs_in(&self, range: Range<u64>) -> impl Iterator<Item = Run> + '_ {
        let end = range.end.min(self.blocks);
        let start = self.runs.partition_point(|&(first, _)| first <= range.start).saturating_sub(1);
        let ends = self.runs.iter().skip(start + 1).map(|&(first, _)| first).chain([self.blocks]);
        self.runs[start.min(self.runs.len())..]
            .iter()
            .zip(ends)
            .take_while(move |&(&(first, _), _)| first < end)
            .filter(move |&(_, run_end)| run_end > range.start)
            .map(move |(&(first, at), run_end)| {
                let from = first.max(range.start);
                Run { first: from, count: run_end.min(end) - from, at: at.plus(from - first) }
            })
    }

    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs_in(0..self.blocks)
    }

    /// What is not zero, in order, in blocks.
    pub fn data_ranges(&self) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut runs = self.runs().filter(|run| run.at != BlockAt::Zero).peekable();
        std::iter::from_fn(move || {
            let run = runs.next()?;
            let mut range = run.first..run.end();
            while let Some(next) = runs.next_if(|next| next.first == range.end) {
                range.end = next.end();
            }
            Some(range)
        })
    }

    /// This map with `changes`, which are in order, in place of what was there.
    pub fn overlay(&self, changes: &[Run]) -> Self {
        let mut map = Self::default();
        for change in changes {
            map.extend(self.runs_in(map.blocks..change.first));
            map.push(change.count, change.at);
        }
        map.extend(self.runs_in(map.blocks..self.blocks));
        map
    }

    fn extend(&mut self, runs: impl Iterator<Item = Run>) {
        for run in runs {
            self.push(run.count, run.at);
        }
    }

    /// The same blocks, in generations that are numbered otherwise.
    pub(super) fn renumber(&mut self, new: impl Fn(usize) -> usize) {
        for (_, at) in &mut self.runs {
            if let BlockAt::Data { generation, .. } = at {
                *generation = new(*generation);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOCKS: u64 = 60;

    /// A change of each of some blocks to a place of its own or to zero.
    fn change() -> impl Strategy<Value = Vec<(u64, u64, bool)>> {
        proptest::collection::vec((0..BLOCKS, 1..9u64, any::<bool>()), 0..12)
    }

    proptest! {
        #[test]
        fn a_map_says_what_a_list_of_all_blocks_says(history in proptest::collection::vec(change(), 0..5)) {
            let mut model = vec![BlockAt::Zero; BLOCKS as usize];
            let mut map = MemoryMap::zero(BLOCKS);
            for (generation, changes) in history.into_iter().enumerate() {
                let mut changes = changes;
                changes.sort_unstable();
                let (mut runs, mut offset, mut end) = (Vec::new(), 0, 0);
                for (first, count, zero) in changes {
                    let count = count.min(BLOCKS - first);
                    if first < end {
                        continue;
                    }
                    let at = if zero { BlockAt::Zero } else { BlockAt::Data { generation, offset } };
                    runs.push(Run { first, count, at });
                    for block in first..first + count {
                        model[block as usize] = at.plus(block - first);
                    }
                    offset += count * BLOCK;
                    end = first + count;
                }
                map = map.overlay(&runs);
            }
            prop_assert_eq!(map.blocks(), BLOCKS);
            let said: Vec<_> = (0..BLOCKS).map(|block| map.block(block)).collect();
            prop_assert_eq!(&said, &model);
            prop_assert_eq!(map.block(BLOCKS), BlockAt::Zero);
            let data: Vec<_> = map.data_ranges().flatten().collect();
            let expected: Vec<_> = (0..BLOCKS).filter(|block| model[*block as usize] != BlockAt::Zero).collect();
            prop_assert_eq!(data, expected);
            for (start, end) in [(0, BLOCKS), (7, 23), (23, 24), (40, BLOCKS + 9), (5, 5), (BLOCKS, BLOCKS + 1)] {
                let walked: Vec<_> = map
                    .runs_in(start..end)
                    .flat_map(|run| (0..run.count).map(move |block| (run.first + block, run.at.plus(block))))
                    .collect();
                let expected: Vec<_> =
                    (start..end.min(BLOCKS)).map(|block| (block, model[block as usize])).collect();
                prop_assert_eq!(walked, expected);
            }
        }
    }

    #[test]
    fn what_goes_on_is_one_run() {
        let at = |offset| BlockAt::Data { generation: 0, offset };
        let mut map = MemoryMap::default();
        map.push(2, at(0));
        map.push(3, at(2 * BLOCK));
        map.push(1, at(9 * BLOCK));
        map.push(1, BlockAt::Zero);
        map.push(4, BlockAt::Zero);
        assert_eq!(map.run_count(), 3);
        assert_eq!(map.data_ranges().collect::<Vec<_>>(), vec![Range { start: 0, end: 6 }]);
    }
}
