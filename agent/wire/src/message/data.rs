//! WAL on its way.
//!
//! ```text
//!   timeline u32 | flags u8 | start u64 | end u64 | source_durable u64 | stamp i64 | bytes
//!                  1: starts a frame; the other bits are 0
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use walfmt::cursor::Cursor;
use walfmt::{Lsn, Timeline};

use super::{InvalidField, lsn, timeline};
use crate::decoder::DecodeError;
use crate::time::Stamp;

/// A chunk of the leader's archive, and how far the leader was when it sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Data {
    /// The WAL.
    pub chunk: Chunk,
    /// Up to here WAL was durable at its source; at or after the chunk's end.
    pub source_durable: Lsn,
    /// The leader's clock.
    pub stamp: Stamp,
}

/// Bytes of one segment's archive file, as they are there: a part of one zstd frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The timeline in the file's name.
    pub timeline: Timeline,
    /// The first WAL position that the bytes hold.
    pub start: Lsn,
    /// The first position after them. Equal to `start` if they hold no WAL, as the end of a frame.
    pub end: Lsn,
    /// Whether a frame starts with these bytes; else they go on with the one before.
    pub starts_frame: bool,
    /// The bytes, never none.
    pub bytes: Bytes,
}

const STARTS_FRAME: u8 = 1;

impl Data {
    /// The longest payload.
    pub(crate) const PAYLOAD_MAX: usize = 4 << 20;
    const FIELDS_LEN: usize = 4 + 1 + 4 * 8;

    pub(super) fn encode_fields(&self, out: &mut BytesMut) {
        out.put_u32_le(self.chunk.timeline.0);
        out.put_u8(if self.chunk.starts_frame { STARTS_FRAME } else { 0 });
        out.put_u64_le(self.chunk.start.0);
        out.put_u64_le(self.chunk.end.0);
        out.put_u64_le(self.source_durable.0);
        out.put_i64_le(self.stamp.0);
    }

    /// `payload` is what `cursor` reads from; the chunk shares its memory.
    pub(super) fn decode(cursor: &mut Cursor<'_>, payload: &Bytes) -> Result<Self, DecodeError> {
        let timeline = timeline(cursor)?;
        let flags = cursor.u8("flags")?;
        if flags & !STARTS_FRAME != 0 {
            return Err(InvalidField::new("flags", flags, "0 or 1").into());
        }
        let start = lsn(cursor, "start")?;
        let end = lsn(cursor, "end")?;
        let source_durable = lsn(cursor, "source_durable")?;
        let stamp = Stamp(cursor.i64("stamp")?);
        let rest = cursor.rest().len();
        let bytes = payload.slice_ref(cursor.take(rest, "bytes")?);
        let starts_frame = flags == STARTS_FRAME;
        let chunk = Chunk { timeline, start, end, starts_frame, bytes };
        chunk.check()?;
        Ok(Self { chunk, source_durable, stamp })
    }
}

impl Chunk {
    /// The most bytes that one chunk can hold.
    pub const BYTES_MAX: usize = Data::PAYLOAD_MAX - Data::FIELDS_LEN;

    /// That the chunk is one, whatever was there before.
    pub(crate) fn check(&self) -> Result<(), InvalidField> {
        if self.end < self.start {
            return Err(InvalidField::new("end", self.end, "at or after start"));
        }
        if self.bytes.is_empty() || self.bytes.len() > Self::BYTES_MAX {
            return Err(InvalidField::new("length of bytes", self.bytes.len(), "1 byte to 4 MB"));
        }
        Ok(())
    }
}
