//! Attributes of variable length, as they stand in a tuple.
//!
//! ```text
//! the first byte's low bits say what it is (little endian)
//!   xxxxxx00   u32 length << 2,       then the payload; the length counts these 4 bytes
//!   xxxxxx10   u32 length << 2 | 2,   u32 va_tcinfo, then the compressed payload
//!   xxxxxxx1   u8 length << 1 | 1,    then the payload; the length counts this byte
//!   00000001   u8 tag, then what the tag says; on disk always 18, a TOAST pointer:
//!
//! TOAST pointer, 16 bytes (varatt_external), behind 2 bytes of header
//!   i32 va_rawsize      the plain value's size, with 4 bytes for a header
//!   u32 va_extinfo      bits 0..30 the size of all chunks together, bits 30..32 the method
//!   u32 va_valueid      chunk_id of the value's chunks
//!   u32 va_toastrelid   OID of the TOAST table
//!
//! va_tcinfo
//!   bits 0..30 the plain payload's size, bits 30..32 the method: 0 pglz, 1 LZ4
//! ```
//!
//! A value whose chunks together are smaller than its payload is compressed, and its chunks begin
//! with a `va_tcinfo`. A 4-byte header begins at the type's alignment, a 1-byte header anywhere:
//! it is never 0, and the padding before a 4-byte header is.
//!
//! Rules: `src/include/varatt.h` (in 15 still part of `postgres.h`), `detoast.c` and
//! `toast_compression.c` in `src/backend/access/common`, `att_align_pointer` in
//! `src/include/access/tupmacs.h`.

use std::borrow::Cow;

use walfmt::bytes::u32_at;
use walfmt::cursor::{Cursor, CursorError};
use walfmt::pglz::{self, PglzError};

use super::Align;

/// An attribute of variable length, or where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Varlena<'a> {
    /// The payload itself.
    Plain(&'a [u8]),
    /// The payload, compressed.
    Compressed(Compressed<'a>),
    /// In a TOAST table.
    External(ToastPointer),
}

/// A compressed payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compressed<'a> {
    /// The payload's size, in bytes.
    pub raw_size: usize,
    /// How it is compressed.
    pub method: Method,
    /// The compressed bytes.
    pub bytes: &'a [u8],
}

/// How values are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// PostgreSQL's own LZ.
    Pglz,
    /// An LZ4 block.
    Lz4,
}

/// Where a value is that did not fit into its row, and what it is when it is put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ToastPointer {
    /// The payload's size in bytes (`va_rawsize` without the header).
    pub raw_size: u32,
    /// The size of all chunks together, in bytes.
    pub external_size: u32,
    /// The two bits that say how it is compressed, if it is.
    pub method_bits: u8,
    /// `chunk_id` of the chunks (`va_valueid`).
    pub value_id: u32,
    /// OID of the TOAST table (`va_toastrelid`).
    pub toast_relation: u32,
}

/// A varlena that cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VarlenaError {
    /// It ends early.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// A header's length is less than the header.
    #[error("varlena of {length} bytes has no room for its header")]
    Header {
        /// What it says.
        length: usize,
    },
    /// Something that is never on disk (or unknown).
    #[error("external varlena has tag {tag}")]
    Tag {
        /// Its `va_tag`.
        tag: u8,
    },
    /// An unknown method.
    #[error("compression method {bits} is unknown")]
    Method {
        /// The two bits.
        bits: u8,
    },
    /// A TOAST pointer's sizes contradict each other.
    #[error("TOAST pointer has va_rawsize {raw_size}, va_extinfo {external_info:#010x}")]
    Pointer {
        /// `va_rawsize`.
        raw_size: i32,
        /// `va_extinfo`.
        external_info: u32,
    },
    /// A plain value was expected.
    #[error("varlena within a value is compressed or external")]
    NotPlain,
    /// More or fewer bytes than the pointer says.
    #[error("TOAST chunks have {found} bytes together, must be {expected}")]
    Chunks {
        /// What the pointer says.
        expected: usize,
        /// What there is.
        found: usize,
    },
    /// The chunks of a value do not say the same raw size as its pointer.
    #[error("compressed TOAST value says {found} bytes, its pointer {expected}")]
    RawSize {
        /// What the pointer says.
        expected: usize,
        /// What the chunks say.
        found: usize,
    },
    /// More than the caller wants, or than a value may have, or than these bytes can hold.
    #[error("{size} compressed bytes cannot give {raw_size} (at most {limit})")]
    TooLong {
        /// How many compressed bytes there are.
        size: usize,
        /// What they say they are.
        raw_size: usize,
        /// How many they could be.
        limit: usize,
    },
    /// pglz found an error.
    #[error(transparent)]
    Pglz(#[from] PglzError),
    /// LZ4 found an error.
    #[error("LZ4: {0}")]
    Lz4(String),
}

/// No payload is longer, in bytes: a header has 30 bits for it.
pub const PAYLOAD_BYTES_MAX: usize = 0x3FFF_FFFF - 4;

/// Where the varlena begins that follows at `offset` or after padding (`att_align_pointer`).
/// Offsets count from a place that is aligned to 8 bytes: a tuple's user data, for example.
#[inline]
#[must_use]
pub fn position(bytes: &[u8], offset: usize, align: Align) -> usize {
    match bytes.get(offset) {
        Some(&byte) if byte != 0 => offset,
        _ => align.up(offset),
    }
}

impl<'a> Varlena<'a> {
    /// Reads the varlena at the front of `bytes`; gives it and its length there, in bytes, with
    /// its header.
    ///
    /// # Errors
    /// [`VarlenaError`] if it is cut off, or none that can be on disk.
    #[inline]
    pub fn read(bytes: &'a [u8]) -> Result<(Self, usize), VarlenaError> {
        let first = *Cursor::new(bytes).array::<1>("va_header")?;
        if first[0] & 1 == 1 && first[0] != 1 {
            let length = usize::from(first[0] >> 1);
            let whole = Cursor::new(bytes).take(length, "varlena")?;
            return Ok((Self::Plain(&whole[1..]), length));
        }
        if first[0] == 1 {
            let mut cursor = Cursor::new(&bytes[1..]);
            let tag = cursor.u8("va_tag")?;
            if tag != VARTAG_ONDISK {
                return Err(VarlenaError::Tag { tag });
            }
            return Ok((Self::External(ToastPointer::read(&mut cursor)?), TOAST_POINTER_SIZE));
        }
        let header = Cursor::new(bytes).u32("va_header")?;
        let length = (header >> 2) as usize;
        let mut cursor = Cursor::new(Cursor::new(bytes).take(length, "varlena")?);
        if length < 4 {
            return Err(VarlenaError::Header { length });
        }
        cursor.u32("va_header")?;
        Ok(match header & 2 {
            0 => (Self::Plain(cursor.rest()), length),
            _ => (Self::Compressed(Compressed::read(&mut cursor)?), length),
        })
    }

    /// The payload of a varlena that must be in place and not compressed, as within arrays.
    pub(super) fn read_plain(bytes: &'a [u8]) -> Result<(&'a [u8], usize), VarlenaError> {
        match Self::read(bytes)? {
            (Self::Plain(payload), length) => Ok((payload, length)),
            _ => Err(VarlenaError::NotPlain),
        }
    }
}

impl<'a> Compressed<'a> {
    /// Reads `va_tcinfo`; all that follows is the compressed payload.
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, VarlenaError> {
        let info = cursor.u32("va_tcinfo")?;
        let raw_size = (info & SIZE_MASK) as usize;
        let method = Method::from_bits((info >> METHOD_SHIFT) as u8)?;
        Ok(Self { raw_size, method, bytes: cursor.rest() })
    }

    /// Unpacks the payload. It may have `limit` bytes at most, and [`PAYLOAD_BYTES_MAX`]; memory
    /// is taken only for as much as so many compressed bytes can hold.
    ///
    /// # Errors
    /// [`VarlenaError`] if it is too long, or does not unpack to exactly `raw_size` bytes.
    pub fn decompress(&self, limit: usize) -> Result<Vec<u8>, VarlenaError> {
        let expansion = match self.method {
            Method::Pglz => pglz::EXPANSION_MAX,
            Method::Lz4 => LZ4_EXPANSION_MAX,
        };
        let limit = limit.min(PAYLOAD_BYTES_MAX).min(self.bytes.len().saturating_mul(expansion));
        if self.raw_size > limit {
            let (size, raw_size) = (self.bytes.len(), self.raw_size);
            return Err(VarlenaError::TooLong { size, raw_size, limit });
        }
        let mut payload = vec![0; self.raw_size];
        match self.method {
            Method::Pglz => pglz::decompress(self.bytes, &mut payload)?,
            Method::Lz4 => {
                let unpacked = lz4_flex::block::decompress_into(self.bytes, &mut payload)
                    .map_err(|error| VarlenaError::Lz4(error.to_string()))?;
                if unpacked != self.raw_size {
                    return Err(VarlenaError::Lz4(format!("gives {unpacked} bytes")));
                }
            }
        }
        Ok(payload)
    }
}

impl Method {
    const fn from_bits(bits: u8) -> Result<Self, VarlenaError> {
        match bits {
            0 => Ok(Self::Pglz),
            1 => Ok(Self::Lz4),
            _ => Err(VarlenaError::Method { bits }),
        }
    }
}

/// Everything in a tuple's bytes that looks like a TOAST pointer, with its bytes: what else looks like one
/// may be among them.
pub fn pointers(bytes: &[u8]) -> impl Iterator<Item = (&[u8], ToastPointer)> {
    bytes.windows(TOAST_POINTER_SIZE).filter_map(|window| {
        if window[..2] != [1, VARTAG_ONDISK] {
            return None;
        }
        let pointer = ToastPointer::read(&mut Cursor::new(&window[2..])).ok()?;
        Some((window, pointer))
    })
}

impl ToastPointer {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, VarlenaError> {
        let raw_size = cursor.i32("va_rawsize")?;
        let external_info = cursor.u32("va_extinfo")?;
        let value_id = cursor.u32("va_valueid")?;
        let toast_relation = cursor.u32("va_toastrelid")?;
        let external_size = external_info & SIZE_MASK;
        let payload_size = u32::try_from(raw_size).ok().and_then(|size| size.checked_sub(4));
        match payload_size {
            Some(size) if external_size <= size && size as usize <= PAYLOAD_BYTES_MAX => Ok(Self {
                raw_size: size,
                external_size,
                method_bits: (external_info >> METHOD_SHIFT) as u8,
                value_id,
                toast_relation,
            }),
            _ => Err(VarlenaError::Pointer { raw_size, external_info }),
        }
    }

    /// Whether the chunks together are a compressed payload.
    #[must_use]
    pub const fn is_compressed(&self) -> bool {
        self.external_size < self.raw_size
    }

    /// The payload that all chunks in their order, put together, are. It may have `limit` bytes at
    /// most; memory is taken only for as much as these chunks can hold.
    ///
    /// # Errors
    /// [`VarlenaError`] if the chunks are not what the pointer says.
    pub fn payload<'a>(
        &self,
        chunks: &'a [u8],
        limit: usize,
    ) -> Result<Cow<'a, [u8]>, VarlenaError> {
        let (expected, found) = (self.external_size as usize, chunks.len());
        if expected != found {
            return Err(VarlenaError::Chunks { expected, found });
        }
        let raw_size = self.raw_size as usize;
        if !self.is_compressed() {
            return match raw_size <= limit {
                true => Ok(Cow::Borrowed(chunks)),
                false => Err(VarlenaError::TooLong { size: found, raw_size, limit }),
            };
        }
        let compressed = Compressed::read(&mut Cursor::new(chunks))?;
        if compressed.raw_size != raw_size {
            let found = compressed.raw_size;
            return Err(VarlenaError::RawSize { expected: raw_size, found });
        }
        if compressed.method != Method::from_bits(self.method_bits)? {
            let bits = (u32_at(chunks, 0) >> METHOD_SHIFT) as u8;
            return Err(VarlenaError::Method { bits });
        }
        compressed.decompress(limit).map(Cow::Owned)
    }
}

const VARTAG_ONDISK: u8 = 18;
/// Header, tag and `varatt_external`, in bytes.
const TOAST_POINTER_SIZE: usize = 18;
const SIZE_MASK: u32 = 0x3FFF_FFFF;
const METHOD_SHIFT: u32 = 30;
/// A byte of LZ4 stands for 255 bytes at most: one more of a match's length.
const LZ4_EXPANSION_MAX: usize = 255;
