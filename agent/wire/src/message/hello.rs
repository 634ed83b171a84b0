//! The follower's first message.
//!
//! ```text
//!   greeting | node text | agent_version text | system_identifier u64 | timeline u32
//!   | segment_size u32 | server_major u16 | resume
//!
//!   resume:  0 u8 | start u64
//!        or  1 u8 | record_start u64 | record_end u64 | record_crc u32 | content_end u64 | tail_crc u32
//! ```

use bytes::{BufMut, BytesMut};
use walfmt::cursor::Cursor;
use walfmt::{Lsn, SegmentSize, Timeline};

use super::{
    Greeting, InvalidField, lsn, node_name, plain_text, put_segment_size, put_text, segment_size,
    timeline,
};
use crate::decoder::DecodeError;
use crate::text::{NodeName, PlainText};

/// Who the follower is and where its archive ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// The follower's name.
    pub node: NodeName,
    /// The version of its agent.
    pub agent_version: PlainText<64>,
    /// The cluster it follows (`pg_control`'s `system_identifier`); 0 if it does not know yet.
    pub system_identifier: u64,
    /// The timeline it wants WAL of.
    pub timeline: Timeline,
    /// Its segment size.
    pub segment_size: SegmentSize,
    /// The server's major version; 0 if it does not know yet.
    pub server_major: u16,
    /// Where to go on.
    pub resume: Resume,
}

/// Where a follower wants to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// It has nothing: start here, at a segment's start.
    From(Lsn),
    /// It has WAL. Two checks tell the leader whether it is the same WAL as its own: the CRC that
    /// the last whole record carries, and one over the part of the next record behind it.
    ///
    /// `record_start < record_end ≤ content_end`.
    Continue {
        /// Where the last whole record starts.
        record_start: Lsn,
        /// Where it ends.
        record_end: Lsn,
        /// Its own CRC (`xl_crc`).
        record_crc: u32,
        /// Where the archive's bytes end, and the first [`Data`](super::Data) must start.
        content_end: Lsn,
        /// CRC-32C of the bytes from `record_end` to `content_end`.
        tail_crc: u32,
    },
}

impl Resume {
    /// Where the first data must start.
    #[must_use]
    pub const fn start(&self) -> Lsn {
        match *self {
            Self::From(start) => start,
            Self::Continue { content_end, .. } => content_end,
        }
    }
}

impl Resume {
    /// From where on the leader must have the WAL: a record that is compared must be there whole.
    #[must_use]
    pub const fn needs(&self) -> Lsn {
        match *self {
            Self::From(start) => start,
            Self::Continue { record_start, .. } => record_start,
        }
    }
}

impl Hello {
    /// That the fields do not contradict each other.
    pub(crate) fn check(&self) -> Result<(), InvalidField> {
        match self.resume {
            Resume::From(start) => {
                if !start.is_valid() || self.segment_size.offset_of(start) != 0 {
                    return Err(InvalidField::new("start", start, "the start of a segment"));
                }
            }
            Resume::Continue { record_start, record_end, content_end, .. } => {
                if !record_start.is_valid() || record_start >= record_end {
                    return Err(InvalidField::new("record_end", record_end, "after record_start"));
                }
                if record_end > content_end {
                    return Err(InvalidField::new(
                        "content_end",
                        content_end,
                        "at or after record_end",
                    ));
                }
            }
        }
        Ok(())
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        Greeting::encode(out);
        put_text(out, self.node.as_str());
        put_text(out, self.agent_version.as_str());
        out.put_u64_le(self.system_identifier);
        out.put_u32_le(self.timeline.0);
        put_segment_size(out, self.segment_size);
        out.put_u16_le(self.server_major);
        match self.resume {
            Resume::From(start) => {
                out.put_u8(0);
                out.put_u64_le(start.0);
            }
            Resume::Continue { record_start, record_end, record_crc, content_end, tail_crc } => {
                out.put_u8(1);
                out.put_u64_le(record_start.0);
                out.put_u64_le(record_end.0);
                out.put_u32_le(record_crc);
                out.put_u64_le(content_end.0);
                out.put_u32_le(tail_crc);
            }
        }
    }

    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Greeting::decode(cursor)?.check()?;
        let hello = Self {
            node: node_name(cursor)?,
            agent_version: plain_text(cursor, "agent_version")?,
            system_identifier: cursor.u64("system_identifier")?,
            timeline: timeline(cursor)?,
            segment_size: segment_size(cursor)?,
            server_major: cursor.u16("server_major")?,
            resume: match cursor.u8("resume")? {
                0 => Resume::From(lsn(cursor, "start")?),
                1 => Resume::Continue {
                    record_start: lsn(cursor, "record_start")?,
                    record_end: lsn(cursor, "record_end")?,
                    record_crc: cursor.u32("record_crc")?,
                    content_end: lsn(cursor, "content_end")?,
                    tail_crc: cursor.u32("tail_crc")?,
                },
                other => return Err(InvalidField::new("resume", other, "0 or 1").into()),
            },
        };
        hello.check()?;
        Ok(hello)
    }
}
