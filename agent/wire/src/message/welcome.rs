//! The leader's answer to a hello it likes.
//!
//! ```text
//!   greeting | node text | agent_version text | system_identifier u64 | timeline u32
//!   | segment_size u32 | server_major u16 | server_version_num u32 | first u64 | appended u64
//! ```

use bytes::{BufMut, BytesMut};
use walfmt::cursor::Cursor;
use walfmt::{SegmentSize, Timeline};

use super::{
    Greeting, InvalidField, lsn, node_name, plain_text, put_segment_size, put_text, segment_size,
    timeline,
};
use crate::decoder::DecodeError;
use crate::positions::Archived;
use crate::text::{NodeName, PlainText};

/// Who the leader is and what its archive has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The leader's name.
    pub node: NodeName,
    /// The version of its agent.
    pub agent_version: PlainText<64>,
    /// The cluster (`pg_control`'s `system_identifier`), never 0.
    pub system_identifier: u64,
    /// The newest timeline the leader knows: the follower's own or a later one. The data of this
    /// connection is of the timeline that the follower asked for.
    pub timeline: Timeline,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// The server's major version; 0 if unknown.
    pub server_major: u16,
    /// The server's `server_version_num`, such as 150018; 0 if unknown.
    pub server_version_num: u32,
    /// What is in the leader's archive for the timeline asked for.
    pub archived: Archived,
}

impl Welcome {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        Greeting::encode(out);
        put_text(out, self.node.as_str());
        put_text(out, self.agent_version.as_str());
        out.put_u64_le(self.system_identifier);
        out.put_u32_le(self.timeline.0);
        put_segment_size(out, self.segment_size);
        out.put_u16_le(self.server_major);
        out.put_u32_le(self.server_version_num);
        out.put_u64_le(self.archived.first.0);
        out.put_u64_le(self.archived.appended.0);
    }

    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Greeting::decode(cursor)?.check()?;
        let welcome = Self {
            node: node_name(cursor)?,
            agent_version: plain_text(cursor, "agent_version")?,
            system_identifier: cursor.u64("system_identifier")?,
            timeline: timeline(cursor)?,
            segment_size: segment_size(cursor)?,
            server_major: cursor.u16("server_major")?,
            server_version_num: cursor.u32("server_version_num")?,
            archived: Archived { first: lsn(cursor, "first")?, appended: lsn(cursor, "appended")? },
        };
        if welcome.system_identifier == 0 {
            return Err(InvalidField::new("system_identifier", 0, "a cluster's").into());
        }
        Ok(welcome)
    }
}
