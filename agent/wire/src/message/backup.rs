//! A base backup: the follower's request instead of a hello, and the leader's answer in parts.
//!
//! ```text
//!   BackupRequest   greeting | node text | agent_version text | fast_checkpoint u8 | max_rate u32
//!   BackupStarted   greeting | node text | agent_version text | system_identifier u64
//!                   | segment_size u32 | server_version_num u32 | timeline u32 | start u64 | bytes u64
//!   BackupArchive   content u8 | tablespace u32 | is_compressed u8
//!   BackupData      bytes
//!   BackupEnd       timeline u32 | end u64
//!
//!   content  1: a tar archive of the data directory (tablespace 0) or of a tablespace
//!            2: the manifest
//!            3: the server's configuration
//! ```
//!
//! In the order Started, then for each archive Archive and its Data, the manifest last, End. What
//! is in them is PostgreSQL's own (`src/backend/backup/basebackup.c`); but the configuration is the
//! agents', comes first if it comes, and need not come.

use bytes::{BufMut, Bytes, BytesMut};
use walfmt::cursor::Cursor;
use walfmt::{Lsn, SegmentSize, Timeline};

use super::{
    Greeting, InvalidField, lsn, node_name, plain_text, put_segment_size, put_text, segment_size,
    timeline,
};
use crate::decoder::DecodeError;
use crate::text::{NodeName, PlainText};

/// A node without WAL or store asks for a base backup of the leader's server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupRequest {
    /// Its name.
    pub node: NodeName,
    /// The version of its agent.
    pub agent_version: PlainText<64>,
    /// Whether the server's checkpoint is to be done at once, not spread over its usual time.
    pub fast_checkpoint: bool,
    /// How much the server may read at most, in kB per second; 0 is as much as it can.
    pub max_rate: u32,
}

/// The backup has begun.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupStarted {
    /// The leader's name.
    pub node: NodeName,
    /// The version of its agent.
    pub agent_version: PlainText<64>,
    /// The cluster (`pg_control`'s `system_identifier`).
    pub system_identifier: u64,
    /// Its segment size.
    pub segment_size: SegmentSize,
    /// The server's `server_version_num`.
    pub server_version_num: u32,
    /// The timeline on which it began.
    pub timeline: Timeline,
    /// Where replay of it will begin.
    pub start: Lsn,
    /// About how many bytes will come, before compression.
    pub bytes: u64,
}

/// What follows is of this archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupArchive {
    /// What it is.
    pub content: BackupContent,
    /// Whether it is compressed with zstd.
    pub is_compressed: bool,
}

/// What an archive of a backup is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupContent {
    /// What the server's configuration says that lies outside of the data directory, as far as the
    /// leader's agent may know it. The first one, if there is one.
    Configuration,
    /// The data directory, as tar.
    Base,
    /// The tablespace with this OID, as tar.
    Tablespace(u32),
    /// The list of all files with their checksums. The last one.
    Manifest,
}

/// The backup is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupEnd {
    /// The timeline on which it ended.
    pub timeline: Timeline,
    /// The end of the WAL that it needs. The leader's archive holds it.
    pub end: Lsn,
}

impl BackupRequest {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        Greeting::encode(out);
        put_text(out, self.node.as_str());
        put_text(out, self.agent_version.as_str());
        out.put_u8(self.fast_checkpoint.into());
        out.put_u32_le(self.max_rate);
    }

    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Greeting::decode(cursor)?.check()?;
        Ok(Self {
            node: node_name(cursor)?,
            agent_version: plain_text(cursor, "agent_version")?,
            fast_checkpoint: flag(cursor, "fast_checkpoint")?,
            max_rate: cursor.u32("max_rate")?,
        })
    }
}

impl BackupStarted {
    pub(super) fn encode(&self, out: &mut BytesMut) {
        Greeting::encode(out);
        put_text(out, self.node.as_str());
        put_text(out, self.agent_version.as_str());
        out.put_u64_le(self.system_identifier);
        put_segment_size(out, self.segment_size);
        out.put_u32_le(self.server_version_num);
        out.put_u32_le(self.timeline.0);
        out.put_u64_le(self.start.0);
        out.put_u64_le(self.bytes);
    }

    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Greeting::decode(cursor)?.check()?;
        Ok(Self {
            node: node_name(cursor)?,
            agent_version: plain_text(cursor, "agent_version")?,
            system_identifier: cursor.u64("system_identifier")?,
            segment_size: segment_size(cursor)?,
            server_version_num: cursor.u32("server_version_num")?,
            timeline: timeline(cursor)?,
            start: lsn(cursor, "start")?,
            bytes: cursor.u64("bytes")?,
        })
    }
}

impl BackupArchive {
    pub(super) fn encode(self, out: &mut BytesMut) {
        let (content, tablespace) = match self.content {
            BackupContent::Base => (1, 0),
            BackupContent::Tablespace(oid) => (1, oid),
            BackupContent::Manifest => (2, 0),
            BackupContent::Configuration => (3, 0),
        };
        out.put_u8(content);
        out.put_u32_le(tablespace);
        out.put_u8(self.is_compressed.into());
    }

    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let content = match (cursor.u8("content")?, cursor.u32("tablespace")?) {
            (1, 0) => BackupContent::Base,
            (1, oid) => BackupContent::Tablespace(oid),
            (2, 0) => BackupContent::Manifest,
            (3, 0) => BackupContent::Configuration,
            (other, _) => return Err(InvalidField::new("content", other, "1 to 3").into()),
        };
        Ok(Self { content, is_compressed: flag(cursor, "is_compressed")? })
    }
}

impl BackupEnd {
    pub(super) fn encode(self, out: &mut BytesMut) {
        out.put_u32_le(self.timeline.0);
        out.put_u64_le(self.end.0);
    }

    pub(super) fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        Ok(Self { timeline: timeline(cursor)?, end: lsn(cursor, "end")? })
    }
}

/// The longest [`BackupData`](super::Message::BackupData): what a server sends at once, and some room.
pub const BACKUP_DATA_MAX: usize = 256 << 10;

/// All of a payload, without a copy.
pub(super) fn decode_data(cursor: &mut Cursor<'_>, payload: &Bytes) -> Result<Bytes, DecodeError> {
    cursor.take(payload.len(), "bytes")?;
    Ok(payload.clone())
}

fn flag(cursor: &mut Cursor<'_>, field: &'static str) -> Result<bool, DecodeError> {
    match cursor.u8(field)? {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(InvalidField::new(field, other, "0 or 1").into()),
    }
}
