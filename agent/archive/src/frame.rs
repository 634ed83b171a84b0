//! The zstd frame format, just far enough to step over blocks.
//!
//! The zstd library decodes; it does not say where a block ends. The archive copies whole blocks
//! between machines and cuts files back to whole blocks, so it must know. All integers are little
//! endian (RFC 8878, section 3.1.1).
//!
//! ```text
//! frame    magic 28 B5 2F FD │ descriptor │ window │ dictionary id │ content size │ blocks │ checksum
//!          4                 │ 1          │ 0..1   │ 0             │ 0..8         │        │ 4
//!
//! descriptor  bits 7-6  content size field: 0 (or 1 with bit 5), 2, 4, 8 bytes
//!             bit  5    single segment: no window byte, the content size is the window
//!             bit  4    unused, 0 here           bit 3  reserved, 0
//!             bit  2    content checksum, 1 here bits 1-0 dictionary id size, 0 here
//!
//! window      bits 7-3 exponent, bits 2-0 mantissa: (1 << (10 + exponent)) / 8 * (8 + mantissa)
//!
//! block    header, 3 bytes: bit 0 last │ bits 2-1 type │ bits 23-3 size
//!          body: raw (0) `size` bytes │ run (1) one byte that stands for `size` │ compressed (2) `size` bytes
//!
//! checksum the low 32 bits of XXH64, seed 0, of the decoded content
//! ```
//!
//! Stricter than the format, because our writer never writes otherwise and because each rule
//! catches damage: a checksum is required, dictionaries are refused, the window is bounded, and
//! **a block of no content that is not the last is refused** (three zero bytes would be one, and
//! zeros are what a file system leaves where a write was lost).
//!
//! Left out: skippable frames and the pre-1.0 formats; neither has this magic.

use walfmt::bytes::{u8_at, u16_at, u32_at, u64_at};

/// The first four bytes of a frame.
pub const MAGIC: u32 = 0xFD2F_B528;

/// The most content a block may have, and so the most bytes it may take.
pub const BLOCK_BYTES_MAX: usize = 128 << 10;

/// The largest window that is decoded; it bounds the decoder's memory.
pub const WINDOW_BYTES_MAX: u64 = 8 << 20;

/// The base-2 logarithm of [`WINDOW_BYTES_MAX`].
pub(crate) const WINDOW_LOG_MAX: u32 = 23;

const BLOCK_HEADER_BYTES: usize = 3;
const CHECKSUM_BYTES: usize = 4;
const FRAME_HEADER_BYTES_MAX: usize = 14;

/// More than any piece can take.
pub(crate) const PIECE_BYTES_MAX: usize =
    FRAME_HEADER_BYTES_MAX + BLOCK_HEADER_BYTES + BLOCK_BYTES_MAX + CHECKSUM_BYTES;

/// An empty last block: with the checksum after it, it ends a frame that was cut after any block.
const EMPTY_LAST_BLOCK: [u8; 3] = [1, 0, 0];

/// What ends a frame that was cut after a whole block, given the XXH64 of its content.
#[must_use]
pub fn frame_end(content_hash: u64) -> [u8; 7] {
    let [a, b, c, d, ..] = content_hash.to_le_bytes();
    let [x, y, z] = EMPTY_LAST_BLOCK;
    [x, y, z, a, b, c, d]
}

/// One block, together with what belongs to it: the frame header if it is the frame's first, the
/// checksum if it is the last. The smallest unit that is copied, decoded or cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its length in bytes.
    pub len: usize,
    /// Whether it begins with a frame header.
    pub begins_frame: bool,
    /// Whether it ends with a checksum.
    pub ends_frame: bool,
    /// Whether the block is compressed, neither raw nor a run.
    pub compressed: bool,
}

impl Piece {
    /// The piece that `bytes` begin with, or nothing if they end before it does. `in_frame` says
    /// whether the piece before it left its frame open.
    pub fn parse(bytes: &[u8], in_frame: bool) -> Result<Option<Self>, FrameFault> {
        let header_len = if in_frame {
            0
        } else {
            match FrameHeader::parse(bytes)? {
                Some(header) => header.len,
                None => return Ok(None),
            }
        };
        let Some(block) = BlockHeader::parse(&bytes[header_len..])? else {
            return Ok(None);
        };
        let checksum_len = if block.last { CHECKSUM_BYTES } else { 0 };
        let len = header_len + BLOCK_HEADER_BYTES + block.body_len() + checksum_len;
        Ok((bytes.len() >= len).then_some(Self {
            len,
            begins_frame: !in_frame,
            ends_frame: block.last,
            compressed: block.kind == BlockKind::Compressed,
        }))
    }
}

/// A frame's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Its length in bytes.
    pub len: usize,
    /// How far back in the content a block may refer.
    pub window_bytes: u64,
    /// The frame's content in bytes, if it says so.
    pub content_bytes: Option<u64>,
}

impl FrameHeader {
    /// The header that `bytes` begin with, or nothing if they end before it does.
    pub fn parse(bytes: &[u8]) -> Result<Option<Self>, FrameFault> {
        let magic_seen = bytes.len().min(4);
        if bytes[..magic_seen] != MAGIC.to_le_bytes()[..magic_seen] {
            return Err(FrameFault::Magic { found: u32_at(&padded(bytes), 0) });
        }
        if bytes.len() < 5 {
            return Ok(None);
        }
        let descriptor = u8_at(bytes, 4);
        let single_segment = descriptor & 0x20 != 0;
        if descriptor & 0x18 != 0 {
            return Err(FrameFault::Descriptor { found: descriptor });
        }
        if descriptor & 0x03 != 0 {
            return Err(FrameFault::Dictionary);
        }
        if descriptor & 0x04 == 0 {
            return Err(FrameFault::NoChecksum);
        }
        let window_len = usize::from(!single_segment);
        let content_size_len = match descriptor >> 6 {
            0 => usize::from(single_segment),
            1 => 2,
            2 => 4,
            _ => 8,
        };
        let len = 5 + window_len + content_size_len;
        if bytes.len() < len {
            return Ok(None);
        }
        let content_at = 5 + window_len;
        let content_bytes = match content_size_len {
            0 => None,
            1 => Some(u64::from(u8_at(bytes, content_at))),
            2 => Some(u64::from(u16_at(bytes, content_at)) + 256),
            4 => Some(u64::from(u32_at(bytes, content_at))),
            _ => Some(u64_at(bytes, content_at)),
        };
        let window_bytes = if single_segment {
            content_bytes.unwrap_or_default()
        } else {
            let window = u8_at(bytes, 5);
            let base = 1_u64 << (10 + (window >> 3));
            base + base / 8 * u64::from(window & 7)
        };
        if window_bytes > WINDOW_BYTES_MAX {
            return Err(FrameFault::Window { bytes: window_bytes });
        }
        Ok(Some(Self { len, window_bytes, content_bytes }))
    }
}

fn padded(bytes: &[u8]) -> [u8; 4] {
    let mut four = [0; 4];
    let seen = bytes.len().min(4);
    four[..seen].copy_from_slice(&bytes[..seen]);
    four
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BlockKind {
    Raw,
    Run,
    Compressed,
}

#[derive(Clone, Copy, Debug)]
struct BlockHeader {
    last: bool,
    kind: BlockKind,
    size: usize,
}

impl BlockHeader {
    fn parse(bytes: &[u8]) -> Result<Option<Self>, FrameFault> {
        let Some(&[a, b, c]) = bytes.first_chunk() else {
            return Ok(None);
        };
        let bits = u32::from_le_bytes([a, b, c, 0]);
        let last = bits & 1 != 0;
        let size = (bits >> 3) as usize;
        let kind = match bits >> 1 & 3 {
            0 => BlockKind::Raw,
            1 => BlockKind::Run,
            2 => BlockKind::Compressed,
            _ => return Err(FrameFault::BlockType),
        };
        if size > BLOCK_BYTES_MAX {
            return Err(FrameFault::BlockSize { bytes: size });
        }
        if size == 0 && !(last && kind == BlockKind::Raw) {
            return Err(FrameFault::EmptyBlock);
        }
        Ok(Some(Self { last, kind, size }))
    }

    const fn body_len(&self) -> usize {
        match self.kind {
            BlockKind::Raw | BlockKind::Compressed => self.size,
            BlockKind::Run => 1,
        }
    }
}

/// What is wrong with compressed bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameFault {
    /// No frame begins here.
    #[error("expected the zstd magic FD2FB528, found {found:08X}")]
    Magic {
        /// The four bytes that stand there (zeros where there are fewer).
        found: u32,
    },
    /// Bits of the frame header descriptor are set that must not be.
    #[error("the frame header descriptor {found:#04x} has a reserved or unused bit set")]
    Descriptor {
        /// The descriptor.
        found: u8,
    },
    /// The frame needs a dictionary.
    #[error("the frame names a dictionary; expected none")]
    Dictionary,
    /// The frame has no content checksum.
    #[error("the frame has no content checksum")]
    NoChecksum,
    /// The frame needs too much memory.
    #[error("the frame's window is {bytes} bytes; expected at most {WINDOW_BYTES_MAX}")]
    Window {
        /// The window.
        bytes: u64,
    },
    /// A block of the reserved type.
    #[error("a block has the reserved type 3")]
    BlockType,
    /// A block that is too large.
    #[error("a block is {bytes} bytes; expected at most {BLOCK_BYTES_MAX}")]
    BlockSize {
        /// Its size.
        bytes: usize,
    },
    /// A block without content that does not end its frame.
    #[error("an empty block that does not end its frame")]
    EmptyBlock,
    /// The zstd library refused a block or the checksum.
    #[error("zstd: {0}")]
    Undecodable(&'static str),
    /// More content than there is room for.
    #[error("a block decodes to more than the {room} bytes left of its frame")]
    TooLong {
        /// What was left.
        room: u64,
    },
    /// The bytes end in the middle of a block, where more of them must be.
    #[error("the bytes end in the middle of a block")]
    EndsEarly,
    /// The bytes end before the segment does.
    #[error("the file ends at {end} bytes of WAL; expected the whole segment of {expected}")]
    SegmentEndsEarly {
        /// How much WAL it holds.
        end: u64,
        /// The segment size.
        expected: u64,
    },
    /// Something follows the segment's last byte.
    #[error("there are bytes after the end of the segment")]
    TrailingBytes,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header(descriptor: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_le_bytes().to_vec();
        bytes.push(descriptor);
        bytes.extend_from_slice(rest);
        bytes
    }

    #[test]
    fn header_forms() {
        let parse = |bytes: &[u8]| FrameHeader::parse(bytes);
        let plain = header(0x04, &[0x48]);
        assert_eq!(
            parse(&plain),
            Ok(Some(FrameHeader { len: 6, window_bytes: 512 << 10, content_bytes: None }))
        );
        for shorter in 0..plain.len() {
            assert_eq!(parse(&plain[..shorter]), Ok(None), "{shorter}");
        }
        let single = header(0x64, &[0x10, 0x00]);
        assert_eq!(
            parse(&single),
            Ok(Some(FrameHeader { len: 7, window_bytes: 272, content_bytes: Some(272) }))
        );
        assert_eq!(parse(&header(0x00, &[0x48])), Err(FrameFault::NoChecksum));
        assert_eq!(parse(&header(0x05, &[0x48])), Err(FrameFault::Dictionary));
        assert_eq!(parse(&header(0x14, &[0x48])), Err(FrameFault::Descriptor { found: 0x14 }));
        assert_eq!(parse(&header(0x0C, &[0x48])), Err(FrameFault::Descriptor { found: 0x0C }));
        assert_eq!(parse(&header(0x04, &[0x69])), Err(FrameFault::Window { bytes: 9 << 20 }));
        assert_eq!(parse(&header(0x04, &[0xFF])), Err(FrameFault::Window { bytes: 15 << 38 }));
        assert!(matches!(parse(&[0x28, 0xB5, 0x2E]), Err(FrameFault::Magic { .. })));
    }

    #[test]
    fn block_forms() {
        let parse = |bytes: &[u8]| Piece::parse(bytes, true);
        let block = |last: u32, kind: u32, size: u32| {
            let bits = (last | kind << 1 | size << 3).to_le_bytes();
            let mut bytes = bits[..3].to_vec();
            bytes.extend_from_slice(&[7; 300]);
            bytes
        };
        let len = |bytes: &[u8]| parse(bytes).expect("legal").map(|piece| piece.len);
        assert_eq!(len(&block(0, 0, 10)), Some(13));
        assert_eq!(len(&block(0, 1, 1000)), Some(4));
        assert_eq!(len(&block(1, 2, 10)), Some(17));
        assert_eq!(len(&block(1, 0, 0)), Some(7));
        assert_eq!(len(&block(0, 0, 1000)), None);
        assert_eq!(parse(&block(0, 3, 10)), Err(FrameFault::BlockType));
        assert_eq!(parse(&[0; 100]), Err(FrameFault::EmptyBlock));
        assert_eq!(parse(&block(0, 2, 131_073)), Err(FrameFault::BlockSize { bytes: 131_073 }));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..600),
            with_header in any::<bool>(),
            small_blocks in any::<bool>(),
        ) {
            if with_header {
                bytes.splice(0..0, header(0x04, &[0x48]));
            }
            if small_blocks {
                bytes.iter_mut().skip(8).step_by(3).for_each(|byte| *byte = 0);
            }
            let mut rest = &bytes[..];
            let mut in_frame = false;
            while let Ok(Some(piece)) = Piece::parse(rest, in_frame) {
                prop_assert!(piece.len >= BLOCK_HEADER_BYTES && piece.len <= PIECE_BYTES_MAX);
                prop_assert_eq!(piece.begins_frame, !in_frame);
                // A piece needs all of its bytes and none after them.
                prop_assert_eq!(Piece::parse(&rest[..piece.len], in_frame), Ok(Some(piece)));
                prop_assert!(matches!(Piece::parse(&rest[..piece.len - 1], in_frame), Ok(None)));
                in_frame = !piece.ends_frame;
                rest = &rest[piece.len..];
            }
        }
    }
}
