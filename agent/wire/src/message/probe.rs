//! A question before anything else is wanted: who are you, and may I?
//!
//! ```text
//!   Probe     greeting | node text | agent_version text
//!   Standing  greeting | node text | agent_version text | stamp i64 | system_identifier u64
//!             | timeline u32 | segment_size u32 | server_major u16 | server_version_num u32
//!             | first u64 | may u8 | locales u8 | a text for each
//!
//!   may      1: have WAL, 2: have a base backup, 3: both
//!   locales  at most 32
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
use crate::time::Stamp;

/// The name of an operating system's locale.
pub type LocaleName = PlainText<64>;
/// How many of them are told: with all of them an answer is within what a stranger may send.
pub const LOCALES_MAX: usize = 32;

/// A node asks how it stands with a leader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its name.
    pub node: NodeName,
    /// The version of its agent.
    pub agent_version: PlainText<64>,
}

/// How it stands: whose WAL the leader has, and what the node may ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The leader's name.
    pub node: NodeName,
    /// The version of its agent.
    pub agent_version: PlainText<64>,
    /// The leader's clock.
    pub stamp: Stamp,
    /// The cluster (`pg_control`'s `system_identifier`); 0 while the leader does not know.
    pub system_identifier: u64,
    /// The newest timeline it knows.
    pub timeline: Timeline,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// The server's major version; 0 if unknown.
    pub server_major: u16,
    /// The server's `server_version_num`; 0 if unknown.
    pub server_version_num: u32,
    /// Where the leader's archive begins; invalid if it has none yet.
    pub first: Lsn,
    /// Whether the node may have WAL.
    pub may_follow: bool,
    /// Whether the node may have a base backup.
    pub may_bootstrap: bool,
    /// The locales that the server's databases need of the operating system, at most
    /// [`LOCALES_MAX`]; none while the leader does not know.
    pub locales: Vec<LocaleName>,
}

impl Probe {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        Greeting::encode(out);
        put_text(out, self.node.as_str());
        put_text(out, self.agent_version.as_str());
    }

    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Greeting::decode(cursor)?.check()?;
        Ok(Self { node: node_name(cursor)?, agent_version: plain_text(cursor, "agent_version")? })
    }
}

impl Standing {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        Greeting::encode(out);
        put_text(out, self.node.as_str());
        put_text(out, self.agent_version.as_str());
        out.put_i64_le(self.stamp.0);
        out.put_u64_le(self.system_identifier);
        out.put_u32_le(self.timeline.0);
        put_segment_size(out, self.segment_size);
        out.put_u16_le(self.server_major);
        out.put_u32_le(self.server_version_num);
        out.put_u64_le(self.first.0);
        out.put_u8(u8::from(self.may_follow) | u8::from(self.may_bootstrap) << 1);
        let locales = &self.locales[..self.locales.len().min(LOCALES_MAX)];
        out.put_u8(u8::try_from(locales.len()).expect("at most 32"));
        for locale in locales {
            put_text(out, locale.as_str());
        }
    }

    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Greeting::decode(cursor)?.check()?;
        let standing = Self {
            node: node_name(cursor)?,
            agent_version: plain_text(cursor, "agent_version")?,
            stamp: Stamp(cursor.i64("stamp")?),
            system_identifier: cursor.u64("system_identifier")?,
            timeline: timeline(cursor)?,
            segment_size: segment_size(cursor)?,
            server_major: cursor.u16("server_major")?,
            server_version_num: cursor.u32("server_version_num")?,
            first: lsn(cursor, "first")?,
            may_follow: false,
            may_bootstrap: false,
            locales: Vec::new(),
        };
        let may = match cursor.u8("may")? {
            may @ 0..=3 => may,
            other => return Err(InvalidField::new("may", other, "0 to 3").into()),
        };
        let locales = match usize::from(cursor.u8("locales")?) {
            count @ 0..=LOCALES_MAX => {
                (0..count).map(|_| plain_text(cursor, "locale")).collect::<Result<_, _>>()?
            }
            other => return Err(InvalidField::new("locales", other, "0 to 32").into()),
        };
        Ok(Self { may_follow: may & 1 != 0, may_bootstrap: may & 2 != 0, locales, ..standing })
    }
}
