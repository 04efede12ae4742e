//! The last bytes of one output stream, addressed by their offset from its beginning.

use bytes::Bytes;

/// The first allocation. The ring doubles from here, so that a quiet process costs next to nothing.
pub const FIRST: usize = 4096;

/// A byte ring with absolute offsets: it holds `[oldest, head)` and never more than its capacity.
#[derive(Debug)]
pub struct Ring {
    /// The byte with offset `o` lies at `o % bytes.len()`.
    bytes: Vec<u8>,
    capacity: usize,
    oldest: u64,
    head: u64,
}

/// What a ring has to say about an offset.
#[derive(Debug, PartialEq, Eq)]
pub enum Read {
    /// The bytes from that offset on, as many as lie in one piece.
    Data(Bytes),
    /// The offset is no longer held; this is the oldest that is.
    Gap { to: u64 },
    /// Nothing has been produced there yet.
    Empty,
}

impl Ring {
    /// An empty ring that will hold at most `capacity` bytes (at least one).
    pub fn new(capacity: usize) -> Self {
        Self { bytes: Vec::new(), capacity: capacity.max(1), oldest: 0, head: 0 }
    }

    /// The offset the next byte will have.
    pub fn head(&self) -> u64 {
        self.head
    }

    /// The lowest offset still held.
    pub fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Bytes that are held.
    pub fn held(&self) -> usize {
        (self.head - self.oldest) as usize
    }

    /// The most bytes that will be held.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of memory this ring occupies.
    pub fn footprint(&self) -> usize {
        self.bytes.capacity()
    }

    /// Appends what `source` writes to the front of the slice it is given (at most `limit` bytes) and
    /// returns how many those were.
    ///
    /// The slice still holds the oldest bytes: `source` may touch no more of it than it counts.
    pub fn fill<E>(
        &mut self,
        limit: usize,
        source: impl FnOnce(&mut [u8]) -> Result<usize, E>,
    ) -> Result<usize, E> {
        if self.held() == self.bytes.len() && self.bytes.len() < self.capacity {
            self.lay_out((self.bytes.len() * 2).max(FIRST).min(self.capacity));
        }
        // As long as it can grow nothing is overwritten.
        let grown = self.bytes.len() == self.capacity;
        let free = if grown { limit } else { limit.min(self.bytes.len() - self.held()) };
        let start = self.index(self.head);
        let end = self.bytes.len().min(start.saturating_add(free));
        let room = self.bytes.get_mut(start..end).unwrap_or_default();
        let most = room.len();
        let count = source(room)?.min(most);
        self.head += count as u64;
        self.oldest = self.oldest.max(self.head.saturating_sub(self.bytes.len() as u64));
        Ok(count)
    }

    /// What is held from `offset` on, at most `limit` bytes of it.
    pub fn read_from(&self, offset: u64, limit: usize) -> Read {
        if offset < self.oldest {
            return Read::Gap { to: self.oldest };
        }
        let available = self.head.saturating_sub(offset).min(limit as u64) as usize;
        let start = self.index(offset);
        let end = self.bytes.len().min(start.saturating_add(available));
        match self.bytes.get(start..end) {
            Some(bytes) if !bytes.is_empty() => Read::Data(Bytes::copy_from_slice(bytes)),
            _ => Read::Empty,
        }
    }

    /// Holds `capacity` bytes from now on, which are occupied at once. What is more than that is dropped, oldest first.
    pub fn resize(&mut self, capacity: usize) {
        self.capacity = capacity;
        self.oldest = self.oldest.max(self.head.saturating_sub(capacity as u64));
        self.lay_out(capacity);
    }

    /// Gives back the memory that was kept ready for more output.
    pub fn shrink(&mut self) {
        self.lay_out(self.held());
    }

    /// Moves what is held into `size` bytes, which it fits into.
    fn lay_out(&mut self, size: usize) {
        let mut bytes = vec![0; size];
        let mut offset = self.oldest;
        while offset < self.head {
            let left = (self.head - offset) as usize;
            let old = &self.bytes[self.index(offset)..];
            let new = &mut bytes[(offset % size as u64) as usize..];
            let count = left.min(old.len()).min(new.len());
            new[..count].copy_from_slice(&old[..count]);
            offset += count as u64;
        }
        self.bytes = bytes;
    }

    fn index(&self, offset: u64) -> usize {
        (offset % self.bytes.len().max(1) as u64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    /// Writes all of `data`, in as many pieces as the ring asks for.
    fn append(ring: &mut Ring, mut data: &[u8]) {
        while !data.is_empty() {
            let written = ring.fill(data.len(), |room| {
                room.copy_from_slice(&data[..room.len()]);
                Ok::<_, Infallible>(room.len())
            });
            let Ok(count) = written;
            assert!(count > 0, "the ring always takes something");
            data = &data[count..];
        }
    }

    /// Everything held from `offset` on, put together from the pieces.
    fn collect(ring: &Ring, mut offset: u64, limit: usize) -> Vec<u8> {
        let mut all = Vec::new();
        while let Read::Data(piece) = ring.read_from(offset, limit) {
            assert!(piece.len() <= limit);
            offset += piece.len() as u64;
            all.extend_from_slice(&piece);
        }
        all
    }

    proptest! {
        #[test]
        fn holds_the_tail_of_everything_written(
            capacity in 1usize..20_000,
            writes in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6000), 0..12),
            limit in 1usize..9000,
            probe in 0.0f64..1.2,
            shrink_after in 0usize..12,
        ) {
            let mut ring = Ring::new(capacity);
            let mut model = Vec::new();
            for (turn, data) in writes.iter().enumerate() {
                append(&mut ring, data);
                model.extend_from_slice(data);
                if turn == shrink_after {
                    ring.shrink();
                }
                prop_assert_eq!(ring.head(), model.len() as u64);
                prop_assert_eq!(ring.oldest(), model.len().saturating_sub(capacity) as u64);
                prop_assert!(ring.footprint() <= capacity);

                let offset = (model.len() as f64 * probe) as u64;
                if offset < ring.oldest() {
                    prop_assert_eq!(ring.read_from(offset, limit), Read::Gap { to: ring.oldest() });
                } else {
                    let rest = model.get(offset as usize..).unwrap_or_default();
                    prop_assert_eq!(collect(&ring, offset, limit), rest);
                }
            }
            prop_assert_eq!(collect(&ring, ring.oldest(), limit), &model[ring.oldest() as usize..]);
        }

        #[test]
        fn another_size_keeps_the_tail_that_fits(
            first in 1usize..20_000,
            turns in proptest::collection::vec(
                (proptest::collection::vec(any::<u8>(), 0..6000), 1usize..20_000),
                0..8,
            ),
            limit in 1usize..9000,
        ) {
            let mut ring = Ring::new(first);
            let mut model = Vec::new();
            let (mut capacity, mut oldest) = (first, 0);
            for (data, next) in turns {
                append(&mut ring, &data);
                model.extend_from_slice(&data);
                oldest = oldest.max(model.len().saturating_sub(capacity));
                prop_assert_eq!(ring.oldest(), oldest as u64);
                capacity = next;
                ring.resize(capacity);
                oldest = oldest.max(model.len().saturating_sub(capacity));
                prop_assert_eq!((ring.oldest(), ring.head()), (oldest as u64, model.len() as u64));
                prop_assert_eq!((ring.footprint(), ring.capacity()), (capacity, capacity));
                prop_assert_eq!(collect(&ring, ring.oldest(), limit), &model[oldest..]);
            }
            ring.resize(0);
            prop_assert_eq!((ring.held(), ring.footprint()), (0, 0));
            prop_assert_eq!(ring.read_from(ring.head(), limit), Read::Empty);
            if !model.is_empty() {
                prop_assert_eq!(ring.read_from(0, limit), Read::Gap { to: ring.head() });
            }
        }

        #[test]
        fn a_short_or_failed_fill_disturbs_nothing(
            capacity in 1usize..5000,
            before in proptest::collection::vec(any::<u8>(), 0..12_000),
            limit in 0usize..5000,
            short in 0usize..5000,
        ) {
            let mut ring = Ring::new(capacity);
            append(&mut ring, &before);
            let failed = ring.fill(limit, |_| Err::<usize, _>("no"));
            prop_assert_eq!(failed, Err("no"));
            prop_assert_eq!(collect(&ring, ring.oldest(), 4096), &before[ring.oldest() as usize..]);

            let mut model = before.clone();
            let Ok(count) = ring.fill(limit, |room| {
                let count = short.min(room.len());
                room[..count].fill(7);
                Ok::<_, Infallible>(count)
            });
            model.resize(before.len() + count, 7);
            prop_assert_eq!(collect(&ring, ring.oldest(), 4096), &model[ring.oldest() as usize..]);
        }
    }

    #[test]
    fn grows_only_as_it_fills() {
        let mut ring = Ring::new(1 << 20);
        assert_eq!(ring.footprint(), 0);
        append(&mut ring, b"hello");
        assert_eq!(ring.footprint(), FIRST);
        ring.shrink();
        assert!(ring.footprint() < FIRST);
    }

    #[test]
    fn the_future_is_empty() {
        let mut ring = Ring::new(16);
        append(&mut ring, b"abc");
        assert_eq!(ring.read_from(3, 10), Read::Empty);
        assert_eq!(ring.read_from(9, 10), Read::Empty);
    }
}
