//! Takes the uncompressed kernel out of a `bzImage`.
//!
//! The offsets are those of the x86 boot protocol (Documentation/arch/x86/boot.rst of Linux); the payload is in
//! LZ4's *legacy* frame format, to which the kernel's build appends the uncompressed size.

use lz4_flex::block::DecompressError;

const SETUP_SECTS: usize = 0x1f1;
const HEADER_MAGIC: usize = 0x202;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;

const LZ4_LEGACY: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// The most that one block of a legacy frame holds uncompressed.
const LZ4_BLOCK: usize = 8 << 20;

/// How other compressions begin, for saying which one it is.
const OTHERS: [(&[u8], &str); 6] = [
    (&[0x1f, 0x8b], "gzip"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "xz"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd"),
    (b"BZh", "bzip2"),
    (&[0x5d, 0x00, 0x00], "lzma"),
    (&[0x89, b'L', b'Z', b'O'], "lzo"),
];

#[derive(Debug, thiserror::Error)]
pub enum BzImageError {
    #[error("it is not a Linux kernel in the bzImage format")]
    NotBzImage,
    #[error("its payload is compressed with {0}; only lz4 can be read")]
    Compression(&'static str),
    #[error("it ends too early")]
    Truncated,
    #[error("its payload is damaged")]
    Lz4(#[source] DecompressError),
    #[error("its payload has {got} bytes uncompressed and says it has {said}")]
    Size { got: usize, said: usize },
    #[error("its payload is not an ELF file")]
    NotElf,
}

/// The ELF kernel (`vmlinux`) inside a `bzImage`.
pub fn extract(image: &[u8]) -> Result<Vec<u8>, BzImageError> {
    if image.get(HEADER_MAGIC..HEADER_MAGIC + 4) != Some(b"HdrS") {
        return Err(BzImageError::NotBzImage);
    }
    // Zero sectors mean four, for the sake of very old loaders.
    let sectors = match image[SETUP_SECTS] {
        0 => 4,
        n => usize::from(n),
    };
    let start = (sectors + 1) * SECTOR + read_u32(image, PAYLOAD_OFFSET)?;
    let end = start + read_u32(image, PAYLOAD_LENGTH)?;
    let kernel = decompress(image.get(start..end).ok_or(BzImageError::Truncated)?)?;
    if kernel.starts_with(b"\x7fELF") { Ok(kernel) } else { Err(BzImageError::NotElf) }
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, BzImageError> {
    let Some(mut blocks) = payload.strip_prefix(&LZ4_LEGACY) else {
        let other = OTHERS.iter().find(|(magic, _)| payload.starts_with(magic));
        return Err(BzImageError::Compression(other.map_or("something unknown", |(_, name)| *name)));
    };
    let mut kernel = Vec::new();
    let mut buffer = vec![0; LZ4_BLOCK];
    // What remains after the last block is the four bytes of the size.
    while blocks.len() > 4 {
        let length = read_u32(blocks, 0)?;
        let block = blocks.get(4..4 + length).ok_or(BzImageError::Truncated)?;
        let n = lz4_flex::block::decompress_into(block, &mut buffer).map_err(BzImageError::Lz4)?;
        kernel.extend_from_slice(&buffer[..n]);
        blocks = &blocks[4 + length..];
    }
    match read_u32(blocks, 0)? {
        said if said == kernel.len() => Ok(kernel),
        said => Err(BzImageError::Size { got: kernel.len(), said }),
    }
}

fn read_u32(bytes: &[u8], at: usize) -> Result<usize, BzImageError> {
    let field =
        bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).ok_or(BzImageError::Truncated)?;
    Ok(u32::from_le_bytes(field) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `bzImage` of two setup sectors with this payload 16 bytes into its protected-mode part.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR + 16];
        image[SETUP_SECTS] = 2;
        image[HEADER_MAGIC..HEADER_MAGIC + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET] = 16;
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image.extend_from_slice(b"what follows the payload");
        image
    }

    fn lz4(blocks: &[&[u8]], size: usize) -> Vec<u8> {
        let mut payload = LZ4_LEGACY.to_vec();
        for block in blocks {
            let block = lz4_flex::block::compress(block);
            payload.extend_from_slice(&(block.len() as u32).to_le_bytes());
            payload.extend_from_slice(&block);
        }
        payload.extend_from_slice(&(size as u32).to_le_bytes());
        payload
    }

    #[test]
    fn blocks_are_joined() {
        let first = [b"\x7fELF".as_slice(), &[7; 5000]].concat();
        let image = image(&lz4(&[&first, b"and the rest"], first.len() + 12));
        assert_eq!(extract(&image).unwrap(), [first.as_slice(), b"and the rest"].concat());
    }

    #[test]
    fn damage_is_an_error_each_of_its_own() {
        let good = lz4(&[b"\x7fELF kernel"], 11);
        assert!(extract(&image(&good)).is_ok());
        assert!(matches!(extract(b"short"), Err(BzImageError::NotBzImage)));
        assert!(matches!(
            extract(&image(&lz4(&[b"\x7fELF"], 5))),
            Err(BzImageError::Size { got: 4, said: 5 })
        ));
        assert!(matches!(extract(&image(&lz4(&[b"text"], 4))), Err(BzImageError::NotElf)));
        assert!(matches!(extract(&image(&good[..good.len() - 6])), Err(BzImageError::Truncated)));
        let whole = image(&good);
        assert!(matches!(extract(&whole[..whole.len() - 30]), Err(BzImageError::Truncated)));
        let mut damaged = good;
        damaged[8] = 0x0f; // a first token that refers to bytes before the start
        assert!(matches!(extract(&image(&damaged)), Err(BzImageError::Lz4(_))));
    }

    #[test]
    fn other_compressions_are_named() {
        let error = extract(&image(&[0x28, 0xb5, 0x2f, 0xfd, 0, 0])).unwrap_err();
        assert_eq!(error.to_string(), "its payload is compressed with zstd; only lz4 can be read");
        assert!(matches!(extract(&image(&[0; 8])), Err(BzImageError::Compression("something unknown"))));
    }
}
