//! The content of files, on connections of its own between a host and its guest.
//!
//! gRPC would put every piece into a message, the message into frames and each of them through the memory of the
//! guest's daemon; here the kernel passes on what a file contains. The connection goes to [`ENVD_PORT`](crate::ENVD_PORT)
//! and begins with [`PREAMBLE`], by which it is told from HTTP/2. Exchanges follow, one after the other:
//!
//! ```text
//! host   frame(ContentRequest: read)    guest  frame(ContentAnswer: entry)  pieces  end
//! host   frame(ContentRequest: write)   guest  frame(ContentAnswer: ready)
//!        pieces  end                           frame(ContentAnswer: entry)
//! ```
//! A *frame* is the length of a message in 4 bytes, at most [`LONGEST_FRAME`], and the message. A *piece* is its
//! length in 4 bytes, 1 to [`LONGEST_PIECE`], and so many bytes of the file; the *end* is the length 0. All lengths are
//! big-endian. In the place of any answer the guest may say `error`; after one that is not the first answer of an
//! exchange, the guest ends the connection. Where a connection ends in the middle of an exchange the content is not whole:
//! nothing was written, and what was read is a part. In a read, [`BROKEN`] in the place of a length says that
//! `error` follows.

/// What a host sends first. HTTP/2 begins with another letter.
pub const PREAMBLE: &[u8; 16] = b"WRENN-CONTENT/1\n";
/// The longest message, in bytes; a path has at most 4 KiB.
pub const LONGEST_FRAME: usize = 64 << 10;
/// The longest piece, in bytes.
pub const LONGEST_PIECE: u32 = 1 << 20;
/// In the place of a piece's length: it broke off, and a frame says why.
pub const BROKEN: u32 = u32::MAX;
