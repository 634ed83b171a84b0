//! The follower's sign of life.
//!
//! ```text
//!   received u64 | durable u64 | replayed u64 | echo i64
//! ```
//!
//! That the positions are in order is no matter of form: the [`Sender`](crate::Sender) checks it
//! and says which follower broke it.

use bytes::{BufMut, BytesMut};
use walfmt::Lsn;
use walfmt::cursor::Cursor;

use super::lsn;
use crate::decoder::DecodeError;
use crate::time::Stamp;

/// How far the follower is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Acknowledgement {
    /// The end of what arrived.
    pub received: Lsn,
    /// The end of what is synced.
    pub durable: Lsn,
    /// The end of what is replayed.
    pub replayed: Lsn,
    /// The last of the leader's clock stamps that arrived; 0 before the first. The time since then
    /// is the round trip and however long the follower waited to acknowledge.
    pub echo: Stamp,
}

impl Acknowledgement {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        out.put_u64_le(self.received.0);
        out.put_u64_le(self.durable.0);
        out.put_u64_le(self.replayed.0);
        out.put_i64_le(self.echo.0);
    }

    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            received: lsn(cursor, "received")?,
            durable: lsn(cursor, "durable")?,
            replayed: lsn(cursor, "replayed")?,
            echo: Stamp(cursor.i64("echo")?),
        })
    }
}
