//! The last message of a side that closes a connection on purpose.
//!
//! ```text
//!   reason text
//! ```

use bytes::BytesMut;
use walfmt::cursor::Cursor;

use super::{plain_text, put_text};
use crate::decoder::DecodeError;
use crate::text::PlainText;

/// Why the peer goes: a restart, a shutdown, or a rule that we broke.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goodbye {
    /// For the operator of the side that is left.
    pub reason: PlainText<1024>,
}

impl Goodbye {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        put_text(out, self.reason.as_str());
    }

    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Ok(Self { reason: plain_text(cursor, "reason")? })
    }
}
