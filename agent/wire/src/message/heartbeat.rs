//! The leader's sign of life.
//!
//! ```text
//!   stamp i64 | source_durable u64 | appended u64 | server_flush u64
//! ```

use bytes::{BufMut, BytesMut};
use walfmt::cursor::Cursor;

use super::lsn;
use crate::decoder::DecodeError;
use crate::positions::LeaderPositions;
use crate::time::Stamp;

/// How far the leader is; sent when there is no WAL to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heartbeat {
    /// The leader's clock.
    pub stamp: Stamp,
    /// How far it is.
    pub positions: LeaderPositions,
}

impl Heartbeat {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_i64_le(self.stamp.0);
        out.put_u64_le(self.positions.source_durable.0);
        out.put_u64_le(self.positions.appended.0);
        out.put_u64_le(self.positions.server_flush.0);
    }

    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            stamp: Stamp(cursor.i64("stamp")?),
            positions: LeaderPositions {
                source_durable: lsn(cursor, "source_durable")?,
                appended: lsn(cursor, "appended")?,
                server_flush: lsn(cursor, "server_flush")?,
            },
        })
    }
}
