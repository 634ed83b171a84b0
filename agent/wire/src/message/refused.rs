//! The leader's answer to a hello it does not like, and its last message.
//!
//! ```text
//!   greeting | code u16 | text text          never changes, whatever the protocol version
//! ```

use std::fmt;

use bytes::{BufMut, BytesMut};
use walfmt::cursor::Cursor;

use super::{Greeting, plain_text, put_text};
use crate::decoder::DecodeError;
use crate::text::PlainText;

/// Why a follower is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// For the follower's agent.
    pub code: RefusalCode,
    /// For the follower's operator.
    pub text: PlainText<1024>,
}

/// The reason of a refusal as a number. A newer leader may know more of them than we do.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RefusalCode(pub u16);

impl RefusalCode {
    /// The follower belongs to another cluster.
    pub const WRONG_SYSTEM_IDENTIFIER: Self = Self(1);
    /// The leader does not know the follower's timeline.
    pub const WRONG_TIMELINE: Self = Self(2);
    /// The follower's segments have another size.
    pub const WRONG_SEGMENT_SIZE: Self = Self(3);
    /// The follower's server has another major version.
    pub const WRONG_SERVER_VERSION: Self = Self(4);
    /// The WAL asked for is no longer (or never was) in the leader's archive: the follower needs a
    /// new bootstrap.
    pub const NOT_ARCHIVED: Self = Self(5);
    /// The follower's WAL is not the leader's: their histories have forked.
    pub const DIVERGED: Self = Self(6);
    /// The follower has more than the leader.
    pub const AHEAD_OF_LEADER: Self = Self(7);
    /// The leader serves as many followers as it may.
    pub const TOO_MANY_CONNECTIONS: Self = Self(8);
    /// The two agents know no common protocol version.
    pub const PROTOCOL_VERSION: Self = Self(9);
    /// The leader cannot serve anybody yet, or not any more.
    pub const NOT_READY: Self = Self(10);
    /// The follower is not who it says, or may not ask for this.
    pub const NOT_ALLOWED: Self = Self(11);

    /// The name of a code that this version knows.
    #[must_use]
    pub const fn name(self) -> Option<&'static str> {
        Some(match self {
            Self::WRONG_SYSTEM_IDENTIFIER => "wrong_system_identifier",
            Self::WRONG_TIMELINE => "wrong_timeline",
            Self::WRONG_SEGMENT_SIZE => "wrong_segment_size",
            Self::WRONG_SERVER_VERSION => "wrong_server_version",
            Self::NOT_ARCHIVED => "needs_bootstrap",
            Self::DIVERGED => "diverged",
            Self::AHEAD_OF_LEADER => "ahead_of_leader",
            Self::TOO_MANY_CONNECTIONS => "too_many_connections",
            Self::PROTOCOL_VERSION => "protocol_version",
            Self::NOT_READY => "not_ready",
            Self::NOT_ALLOWED => "not_allowed",
            _ => return None,
        })
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "code {}", self.0),
        }
    }
}

impl fmt::Debug for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Refused {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        Greeting::encode(out);
        out.put_u16_le(self.code.0);
        put_text(out, self.text.as_str());
    }

    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        // No check of the versions: this message is how one learns that they do not fit.
        Greeting::decode(cursor)?;
        let code = RefusalCode(cursor.u16("code")?);
        Ok(Self { code, text: plain_text(cursor, "text")? })
    }
}
