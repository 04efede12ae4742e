//! The header of a memory in generations: whatever the bytes, an error or a header that is sound in itself.

#![no_main]

use libfuzzer_sys::fuzz_target;
use sha2::{Digest as _, Sha256};
use wrenn_vmm::memory::{BLOCK, BlockAt, Header};

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    // Nothing gets past the checksum by chance: once more with one that fits.
    let mut forged = bytes.to_vec();
    forged.extend(Sha256::digest(bytes));
    check(&forged);
});

fn check(bytes: &[u8]) {
    let Ok(header) = Header::decode(bytes) else { return };
    let mut end = 0;
    for run in header.map.runs() {
        assert_eq!(run.first, end);
        end = run.end();
        if let BlockAt::Data { generation, offset } = run.at {
            assert!(offset + run.count * BLOCK <= header.generations[generation].bytes);
        }
        assert_eq!(header.map.block(run.first), run.at);
    }
    assert_eq!(end, header.map.blocks());
    assert_eq!(Header::decode(&header.encode()).as_ref(), Ok(&header));
}
