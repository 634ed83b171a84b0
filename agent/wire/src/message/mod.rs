//! The messages and their bytes. All integers are little endian.
//!
//! ```text
//!   ┌────────────┬─────────┬─────────────────┬──────────────┬─────────┐
//!   │ length u32 │ kind u8 │ payload_crc u32 │ head_crc u32 │ payload │
//!   └────────────┴─────────┴─────────────────┴──────────────┴─────────┘
//!   length       counts kind and payload
//!   payload_crc  CRC-32C of the payload
//!   head_crc     CRC-32C of the three fields before it
//!
//!   kind  message          from      payload at most
//!   1     Hello            follower    4 kB
//!   2     Welcome          leader      4 kB
//!   3     Refused          leader      4 kB
//!   4     Data             leader      4 MB
//!   5     Heartbeat        leader     64 kB
//!   6     Acknowledgement  follower   64 kB
//!   7     Goodbye          both       64 kB; 4 kB until the hello is accepted
//!   8     BackupRequest    follower    4 kB
//!   9     BackupStarted    leader      4 kB
//!   10    BackupArchive    leader      4 kB
//!   11    BackupData       leader    256 kB
//!   12    BackupEnd        leader      4 kB
//!   13    Probe            follower    4 kB
//!   14    Standing         leader      4 kB
//!
//!   The first message of each side (Hello, BackupRequest or Probe; Welcome, BackupStarted,
//!   Standing or Refused) begins with the greeting:
//!   ┌──────────────────┬─────────────┬─────────────────┐
//!   │ magic "WALFERRY" │ version u16 │ version_min u16 │
//!   └──────────────────┴─────────────┴─────────────────┘
//!   text: length u16, then UTF-8 without control characters
//! ```
//!
//! `version` is the newest protocol a side speaks, `version_min` the oldest; they speak the newest
//! that both know. What follows the greeting in a Hello is laid out as in its `version_min`. The
//! head, the greeting and Refused never change, so that two agents of any age can tell each other
//! why they cannot talk.
//!
//! The CRCs are for what the WAL's own do not cover: positions, which only ever grow and so would
//! never recover from a flipped bit, page headers and padding, and a length that would make a
//! receiver wait for megabytes that nobody sends.

mod acknowledgement;
mod backup;
mod data;
mod goodbye;
mod heartbeat;
mod hello;
mod probe;
mod refused;
mod welcome;

use bytes::{BufMut, Bytes, BytesMut};
use walfmt::cursor::{Cursor, CursorError};
use walfmt::{Lsn, SegmentSize, Timeline};

pub use acknowledgement::Acknowledgement;
pub use backup::{
    BACKUP_DATA_MAX, BackupArchive, BackupContent, BackupEnd, BackupRequest, BackupStarted,
};
pub use data::{Chunk, Data};
pub use goodbye::Goodbye;
pub use heartbeat::Heartbeat;
pub use hello::{Hello, Resume};
pub use probe::{LOCALES_MAX, LocaleName, Probe, Standing};
pub use refused::{RefusalCode, Refused};
pub use welcome::Welcome;

use crate::decoder::DecodeError;
use crate::text::{NodeName, PlainText, TextError};

/// The newest protocol version this crate speaks.
pub const PROTOCOL_VERSION: u16 = 1;
/// The oldest protocol version this crate speaks.
pub const PROTOCOL_VERSION_MIN: u16 = 1;

const MAGIC: [u8; 8] = *b"WALFERRY";

/// Length, kind and the two CRCs.
pub(crate) const HEAD_LEN: usize = 13;
pub(crate) const HEAD_CRC_AT: usize = 9;
/// No payload of another kind than Data and BackupData is longer.
const PAYLOAD_MAX: usize = 64 << 10;
/// No payload is longer until the hello is accepted.
pub(crate) const GREETING_MAX: usize = 4 << 10;

/// One message of the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// The follower's first.
    Hello(Hello),
    /// The leader's first, if it likes the hello.
    Welcome(Welcome),
    /// The leader's only one, if it does not.
    Refused(Refused),
    /// WAL.
    Data(Data),
    /// A sign of life, and positions.
    Heartbeat(Heartbeat),
    /// How far the follower is.
    Acknowledgement(Acknowledgement),
    /// The last one.
    Goodbye(Goodbye),
    /// The follower's first, if it wants a base backup.
    BackupRequest(BackupRequest),
    /// The leader's first, if it gives one.
    BackupStarted(BackupStarted),
    /// An archive of the backup begins.
    BackupArchive(BackupArchive),
    /// Bytes of it.
    BackupData(Bytes),
    /// The backup is complete.
    BackupEnd(BackupEnd),
    /// The follower's only one, if it just asks.
    Probe(Probe),
    /// The leader's answer to that.
    Standing(Standing),
}

/// The kinds of messages, by their number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "named as the messages are")]
pub enum MessageKind {
    Hello = 1,
    Welcome = 2,
    Refused = 3,
    Data = 4,
    Heartbeat = 5,
    Acknowledgement = 6,
    Goodbye = 7,
    BackupRequest = 8,
    BackupStarted = 9,
    BackupArchive = 10,
    BackupData = 11,
    BackupEnd = 12,
    Probe = 13,
    Standing = 14,
}

/// A field whose value cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {found}, expected {expected}")]
pub struct InvalidField {
    /// Which.
    pub field: &'static str,
    /// What it holds.
    pub found: String,
    /// What it may hold.
    pub expected: &'static str,
}

impl Message {
    /// Which kind of message this is.
    #[must_use]
    pub const fn kind(&self) -> MessageKind {
        match self {
            Self::Hello(_) => MessageKind::Hello,
            Self::Welcome(_) => MessageKind::Welcome,
            Self::Refused(_) => MessageKind::Refused,
            Self::Data(_) => MessageKind::Data,
            Self::Heartbeat(_) => MessageKind::Heartbeat,
            Self::Acknowledgement(_) => MessageKind::Acknowledgement,
            Self::Goodbye(_) => MessageKind::Goodbye,
            Self::BackupRequest(_) => MessageKind::BackupRequest,
            Self::BackupStarted(_) => MessageKind::BackupStarted,
            Self::BackupArchive(_) => MessageKind::BackupArchive,
            Self::BackupData(_) => MessageKind::BackupData,
            Self::BackupEnd(_) => MessageKind::BackupEnd,
            Self::Probe(_) => MessageKind::Probe,
            Self::Standing(_) => MessageKind::Standing,
        }
    }

    /// The bytes to send: first the ones that were made here, then those of [`Data`] or a backup as
    /// they came, not copied (empty for all other messages).
    #[must_use]
    pub fn encode(&self) -> [Bytes; 2] {
        let mut out = BytesMut::with_capacity(128);
        out.put_bytes(0, HEAD_LEN);
        let mut bulk = Bytes::new();
        match self {
            Self::Hello(hello) => hello.encode(&mut out),
            Self::Welcome(welcome) => welcome.encode(&mut out),
            Self::Refused(refused) => refused.encode(&mut out),
            Self::Data(data) => {
                data.encode_fields(&mut out);
                bulk = data.chunk.bytes.clone();
            }
            Self::Heartbeat(heartbeat) => heartbeat.encode(&mut out),
            Self::Acknowledgement(acknowledgement) => acknowledgement.encode(&mut out),
            Self::Goodbye(goodbye) => goodbye.encode(&mut out),
            Self::BackupRequest(request) => request.encode(&mut out),
            Self::BackupStarted(started) => started.encode(&mut out),
            Self::BackupArchive(archive) => archive.encode(&mut out),
            Self::BackupData(bytes) => bulk = bytes.clone(),
            Self::BackupEnd(end) => end.encode(&mut out),
            Self::Probe(probe) => probe.encode(&mut out),
            Self::Standing(standing) => standing.encode(&mut out),
        }
        let fields = &out[HEAD_LEN..];
        let payload_crc = crc32c::crc32c_append(crc32c::crc32c(fields), &bulk);
        let head = encode_head(self.kind() as u8, fields.len() + bulk.len(), payload_crc);
        walfmt::bytes::put(&mut out, 0, head);
        [out.freeze(), bulk]
    }

    /// Reads a whole payload.
    pub(crate) fn decode(kind: MessageKind, payload: &Bytes) -> Result<Self, DecodeError> {
        let mut cursor = Cursor::new(payload);
        let message = match kind {
            MessageKind::Hello => Self::Hello(Hello::decode(&mut cursor)?),
            MessageKind::Welcome => Self::Welcome(Welcome::decode(&mut cursor)?),
            MessageKind::Refused => Self::Refused(Refused::decode(&mut cursor)?),
            MessageKind::Data => Self::Data(Data::decode(&mut cursor, payload)?),
            MessageKind::Heartbeat => Self::Heartbeat(Heartbeat::decode(&mut cursor)?),
            MessageKind::Acknowledgement => {
                Self::Acknowledgement(Acknowledgement::decode(&mut cursor)?)
            }
            MessageKind::Goodbye => Self::Goodbye(Goodbye::decode(&mut cursor)?),
            MessageKind::BackupRequest => Self::BackupRequest(BackupRequest::decode(&mut cursor)?),
            MessageKind::BackupStarted => Self::BackupStarted(BackupStarted::decode(&mut cursor)?),
            MessageKind::BackupArchive => Self::BackupArchive(BackupArchive::decode(&mut cursor)?),
            MessageKind::BackupData => Self::BackupData(backup::decode_data(&mut cursor, payload)?),
            MessageKind::BackupEnd => Self::BackupEnd(BackupEnd::decode(&mut cursor)?),
            MessageKind::Probe => Self::Probe(Probe::decode(&mut cursor)?),
            MessageKind::Standing => Self::Standing(Standing::decode(&mut cursor)?),
        };
        cursor.finish("the last field")?;
        Ok(message)
    }
}

/// The head of a message with a payload of `length` bytes.
pub(crate) fn encode_head(kind: u8, length: usize, payload_crc: u32) -> [u8; HEAD_LEN] {
    let length = u32::try_from(length + 1).expect("a message is at most 4 MB long");
    let mut head = [0; HEAD_LEN];
    walfmt::bytes::put(&mut head, 0, length.to_le_bytes());
    walfmt::bytes::put(&mut head, 4, [kind]);
    walfmt::bytes::put(&mut head, 5, payload_crc.to_le_bytes());
    let head_crc = crc32c::crc32c(&head[..HEAD_CRC_AT]);
    walfmt::bytes::put(&mut head, HEAD_CRC_AT, head_crc.to_le_bytes());
    head
}

impl MessageKind {
    /// The kind with this number.
    #[must_use]
    pub const fn from_number(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Refused,
            4 => Self::Data,
            5 => Self::Heartbeat,
            6 => Self::Acknowledgement,
            7 => Self::Goodbye,
            8 => Self::BackupRequest,
            9 => Self::BackupStarted,
            10 => Self::BackupArchive,
            11 => Self::BackupData,
            12 => Self::BackupEnd,
            13 => Self::Probe,
            14 => Self::Standing,
            _ => return None,
        })
    }

    /// The longest payload of this kind, in bytes.
    #[must_use]
    pub const fn payload_max(self) -> usize {
        match self {
            Self::Hello | Self::Welcome | Self::Refused => GREETING_MAX,
            Self::BackupRequest | Self::BackupStarted => GREETING_MAX,
            Self::BackupArchive | Self::BackupEnd | Self::Probe | Self::Standing => GREETING_MAX,
            Self::BackupData => BACKUP_DATA_MAX,
            Self::Data => Data::PAYLOAD_MAX,
            Self::Heartbeat | Self::Acknowledgement | Self::Goodbye => PAYLOAD_MAX,
        }
    }
}

impl InvalidField {
    fn new(field: &'static str, found: impl ToString, expected: &'static str) -> Self {
        Self { field, found: found.to_string(), expected }
    }
}

/// What a side says of the protocol before anything else.
struct Greeting {
    version: u16,
    version_min: u16,
}

impl Greeting {
    fn encode(out: &mut BytesMut) {
        out.put_slice(&MAGIC);
        out.put_u16_le(PROTOCOL_VERSION);
        out.put_u16_le(PROTOCOL_VERSION_MIN);
    }

    fn decode(cursor: &mut Cursor<'_>) -> Result<Self, DecodeError> {
        let found: [u8; 8] = *cursor.array("magic")?;
        if found != MAGIC {
            return Err(DecodeError::Magic { found });
        }
        let version = cursor.u16("version")?;
        let version_min = cursor.u16("version_min")?;
        Ok(Self { version, version_min })
    }

    /// The two sides know a common version.
    fn check(&self) -> Result<(), DecodeError> {
        let Self { version, version_min } = *self;
        if version_min <= PROTOCOL_VERSION && PROTOCOL_VERSION_MIN <= version {
            Ok(())
        } else {
            Err(DecodeError::ProtocolVersion { version, version_min })
        }
    }
}

fn put_text(out: &mut BytesMut, text: &str) {
    out.put_u16_le(u16::try_from(text.len()).expect("every text type is bounded below 64 kB"));
    out.put_slice(text.as_bytes());
}

fn text<'a>(cursor: &mut Cursor<'a>, field: &'static str) -> Result<&'a str, DecodeError> {
    let length = cursor.u16(field)?;
    str::from_utf8(cursor.take(usize::from(length), field)?)
        .map_err(|_| DecodeError::Text { field, error: TextError::NotUtf8 })
}

fn node_name(cursor: &mut Cursor<'_>) -> Result<NodeName, DecodeError> {
    let field = "node";
    text(cursor, field)?.parse().map_err(|error| DecodeError::Text { field, error })
}

fn plain_text<const MAX: usize>(
    cursor: &mut Cursor<'_>,
    field: &'static str,
) -> Result<PlainText<MAX>, DecodeError> {
    text(cursor, field)?.parse().map_err(|error| DecodeError::Text { field, error })
}

fn lsn(cursor: &mut Cursor<'_>, field: &'static str) -> Result<Lsn, CursorError> {
    cursor.u64(field).map(Lsn)
}

fn timeline(cursor: &mut Cursor<'_>) -> Result<Timeline, DecodeError> {
    match cursor.u32("timeline")? {
        0 => Err(InvalidField::new("timeline", 0, "1 or more").into()),
        timeline => Ok(Timeline(timeline)),
    }
}

fn put_segment_size(out: &mut BytesMut, size: SegmentSize) {
    out.put_u32_le(u32::try_from(size.bytes()).expect("segments are at most 1 GB"));
}

fn segment_size(cursor: &mut Cursor<'_>) -> Result<SegmentSize, DecodeError> {
    let bytes = cursor.u32("segment_size")?;
    SegmentSize::new(bytes).ok_or_else(|| {
        InvalidField::new("segment_size", bytes, "a power of two from 1 MB to 1 GB").into()
    })
}
