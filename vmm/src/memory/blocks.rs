//! Which blocks of some content are zero.

use super::BLOCK;

/// Stretches of blocks that are all zero, or all not, as (zero, start, length) in bytes.
pub(crate) fn runs(content: &[u8]) -> impl Iterator<Item = (bool, usize, usize)> + '_ {
    let mut position = 0;
    std::iter::from_fn(move || {
        let mut rest = content[position..].chunks(BLOCK as usize).map(|block| (is_zero(block), block.len()));
        let (zero, mut length) = rest.next()?;
        length += rest.take_while(|(also, _)| *also == zero).map(|(_, length)| length).sum::<usize>();
        let start = position;
        position += length;
        Some((zero, start, length))
    })
}

fn is_zero(block: &[u8]) -> bool {
    let (words, rest) = block.as_chunks::<16>();
    words.iter().all(|word| u128::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_cover_everything_once() {
        let block = |byte: u8| vec![byte; BLOCK as usize];
        let content = [block(0), block(1), block(2), block(0), block(0)].concat();
        let size = BLOCK as usize;
        let found: Vec<_> = runs(&content).collect();
        assert_eq!(found, [(true, 0, size), (false, size, 2 * size), (true, 3 * size, 2 * size)]);
        assert_eq!(runs(&[]).count(), 0);
    }
}
