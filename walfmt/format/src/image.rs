//! Page images in records: full pages, with the hole in their middle left out, perhaps compressed.
//!
//! ```text
//! page:   [0 .. hole_offset) [ hole_length zero bytes ) [ .. 8192)
//! image:  [0 .. hole_offset)                            [ .. 8192)      then pglz, LZ4 or zstd
//! ```
//!
//! Rules: `RestoreBlockImage` in `src/backend/access/transam/xlogreader.c`.

use std::cell::RefCell;
use std::io;

use zstd::bulk::Decompressor;

use crate::cursor::Cursor;
use crate::pglz;
use crate::record::DecodeError;
use crate::relation::BLOCK_SIZE;
use crate::version::Version;

/// How an image is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// PostgreSQL's own LZ.
    Pglz,
    /// An LZ4 block, without frame.
    Lz4,
    /// One Zstandard frame.
    Zstd,
}

/// A copy of a page, as a record carries it.
#[derive(Clone, Copy, Debug)]
pub struct BlockImage<'a> {
    /// The copy, without hole, perhaps compressed.
    pub bytes: &'a [u8],
    /// Where the hole begins, in bytes from the page's start.
    pub hole_offset: u16,
    /// How long it is; 0 if there is none.
    pub hole_length: u16,
    /// How `bytes` are compressed.
    pub compression: Compression,
    /// Whether replay must put it in place of the page.
    pub apply: bool,
}

/// An image that does not unpack to a page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "page image does not unpack: {compression:?}, {length} bytes should give {expected}: {reason}"
)]
pub struct ImageError {
    compression: Compression,
    length: usize,
    expected: usize,
    reason: String,
}

impl BlockImage<'_> {
    /// Reads an image's header; gives the image, still without bytes, and their number.
    pub(crate) fn read_header(
        cursor: &mut Cursor<'_>,
        id: u8,
        version: &Version,
    ) -> Result<(Self, u16), DecodeError> {
        let length = cursor.u16("bimg_len")?;
        let hole_offset = cursor.u16("hole_offset")?;
        let flags = cursor.u8("bimg_info")?;
        let bits = &version.image;
        let has_hole = flags & bits.has_hole != 0;
        let compression =
            match (flags & bits.pglz != 0, flags & bits.lz4 != 0, flags & bits.zstd != 0) {
                (false, false, false) => Compression::None,
                (true, false, false) => Compression::Pglz,
                (false, true, false) => Compression::Lz4,
                (false, false, true) => Compression::Zstd,
                _ => {
                    return Err(DecodeError::Image {
                        id,
                        length,
                        hole_offset,
                        hole_length: 0,
                        flags,
                    });
                }
            };
        let compressed = compression != Compression::None;
        let hole_length = match (compressed, has_hole) {
            (true, true) => cursor.u16("hole_length")?,
            (true, false) => 0,
            (false, _) => (BLOCK_SIZE as u16).wrapping_sub(length),
        };
        let page = BLOCK_SIZE as u16;
        let legal = if has_hole {
            hole_offset > 0
                && hole_length > 0
                && length < page
                && u32::from(hole_offset) + u32::from(hole_length) <= u32::from(page)
        } else {
            hole_offset == 0 && hole_length == 0
        } && (!compressed || length < page)
            && (compressed || has_hole || length == page);
        if !legal {
            return Err(DecodeError::Image { id, length, hole_offset, hole_length, flags });
        }
        let apply = flags & bits.apply != 0;
        Ok((Self { bytes: &[], hole_offset, hole_length, compression, apply }, length))
    }

    /// Writes the page as it was into `page`, the hole as zeros.
    ///
    /// # Errors
    /// [`ImageError`] if the bytes do not unpack to exactly a page; `page` is then undefined.
    pub fn restore(&self, page: &mut [u8; BLOCK_SIZE]) -> Result<(), ImageError> {
        let hole_start = usize::from(self.hole_offset).min(BLOCK_SIZE);
        let hole_end = (hole_start + usize::from(self.hole_length)).min(BLOCK_SIZE);
        let packed_size = BLOCK_SIZE - (hole_end - hole_start);
        let fail = |reason: String| ImageError {
            compression: self.compression,
            length: self.bytes.len(),
            expected: packed_size,
            reason,
        };
        if self.compression == Compression::None {
            if self.bytes.len() != packed_size {
                return Err(fail("wrong length".to_owned()));
            }
            page[..hole_start].copy_from_slice(&self.bytes[..hole_start]);
            page[hole_end..].copy_from_slice(&self.bytes[hole_start..]);
        } else {
            let packed = &mut page[..packed_size];
            let unpacked = match self.compression {
                Compression::None => unreachable!("handled above"),
                Compression::Pglz => pglz::decompress(self.bytes, packed)
                    .map(|()| packed_size)
                    .map_err(|error| error.to_string()),
                Compression::Lz4 => lz4_flex::block::decompress_into(self.bytes, packed)
                    .map_err(|error| error.to_string()),
                Compression::Zstd => {
                    decompress_zstd(self.bytes, packed).map_err(|error| error.to_string())
                }
            }
            .map_err(fail)?;
            if unpacked != packed_size {
                return Err(fail(format!("gives {unpacked} bytes")));
            }
            page.copy_within(hole_start..packed_size, hole_end);
        }
        page[hole_start..hole_end].fill(0);
        Ok(())
    }
}

/// Gives how many bytes of `page` were filled.
fn decompress_zstd(image: &[u8], page: &mut [u8]) -> io::Result<usize> {
    thread_local! {
        /// One for each thread: to make it takes longer than to decompress a page.
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }
    DECOMPRESSOR.with_borrow_mut(|made| {
        let decompressor = match made {
            Some(decompressor) => decompressor,
            None => made.insert(Decompressor::new()?),
        };
        decompressor.decompress_to_buffer(image, page)
    })
}
