//! From bytes as they arrive to whole messages.

use bytes::{BufMut, Bytes, BytesMut};
use walfmt::cursor::CursorError;

use crate::message::{
    GREETING_MAX, HEAD_CRC_AT, HEAD_LEN, InvalidField, Message, MessageKind, PROTOCOL_VERSION,
    PROTOCOL_VERSION_MIN,
};
use crate::text::TextError;

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The one that sends WAL.
    Leader,
    /// The one that receives it.
    Follower,
}

/// Bytes that are not this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// What arrived is not what was sent; or the peer is no agent.
    #[error("CRC of a message's {part} is {found:#010x}, expected {expected:#010x}")]
    Crc {
        /// Head or payload.
        part: &'static str,
        /// The CRC that stands in the head.
        expected: u32,
        /// That of what arrived.
        found: u32,
    },
    /// The length that every message begins with does not even count the kind.
    #[error("message without a kind: length 0, expected 1 or more")]
    NoKind,
    /// No such kind of message.
    #[error("unknown message kind {0}, expected 1 to 12")]
    UnknownKind(u8),
    /// A kind of message that the other side sends.
    #[error("{kind:?} message from the {from:?}, who never sends one")]
    WrongSide {
        /// The message.
        kind: MessageKind,
        /// The side it came from.
        from: Side,
    },
    /// The peer announces more than it may.
    #[error("{kind:?} payload of {length} bytes, expected at most {max}")]
    TooLong {
        /// The message.
        kind: MessageKind,
        /// The length of its payload.
        length: usize,
        /// The longest it may be now.
        max: usize,
    },
    /// Not one of our agents.
    #[error("magic is {:?}, expected \"WALFERRY\"", String::from_utf8_lossy(found))]
    Magic {
        /// What stands there.
        found: [u8; 8],
    },
    /// One of our agents, but of another age.
    #[error(
        "peer speaks protocol versions {version_min} to {version}, expected one of \
         {PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION}"
    )]
    ProtocolVersion {
        /// The newest that the peer speaks.
        version: u16,
        /// The oldest.
        version_min: u16,
    },
    /// A payload is shorter or longer than its fields.
    #[error("payload does not fit: {0}")]
    Length(#[from] CursorError),
    /// A field has a value that cannot be.
    #[error(transparent)]
    Field(#[from] InvalidField),
    /// A text is not one that may be shown.
    #[error("{field}: {error}")]
    Text {
        /// Which.
        field: &'static str,
        /// What is wrong with it.
        error: TextError,
    },
}

/// Puts messages together from bytes in any portions. It keeps at most one message, and of that
/// never more than its kind may have.
///
/// After an error the place where the next message begins is unknown: the same error comes again.
#[derive(Debug)]
pub struct Decoder {
    from: Side,
    greeted: bool,
    head: [u8; HEAD_LEN],
    head_len: usize,
    /// Set when the head is complete and was found to be allowed.
    body: Option<Body>,
    failed: Option<DecodeError>,
}

#[derive(Debug)]
struct Body {
    kind: MessageKind,
    /// The length of the whole payload.
    length: usize,
    crc: u32,
    /// `payload.len() <= length`
    payload: BytesMut,
}

impl Decoder {
    /// A decoder of what this side sends.
    #[must_use]
    pub const fn new(from: Side) -> Self {
        Self { from, greeted: false, head: [0; HEAD_LEN], head_len: 0, body: None, failed: None }
    }

    /// Takes bytes off the front of `input` until one message is whole or nothing is left.
    pub fn poll(&mut self, input: &mut &[u8]) -> Result<Option<Message>, DecodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.advance(input).inspect_err(|error| {
            self.failed = Some(error.clone());
            self.body = None;
        })
    }

    /// The peer's hello (or welcome) was accepted: from now on messages may be as long as their
    /// kind allows. Until then 4 kB is all that a stranger can make us keep.
    pub const fn accept_greeting(&mut self) {
        self.greeted = true;
    }

    /// How many bytes of an unfinished message are kept.
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.head_len + self.body.as_ref().map_or(0, |body| body.payload.len())
    }

    fn advance(&mut self, input: &mut &[u8]) -> Result<Option<Message>, DecodeError> {
        if self.body.is_none() {
            let wanted = HEAD_LEN - self.head_len;
            let part = take(input, wanted);
            self.head[self.head_len..self.head_len + part.len()].copy_from_slice(part);
            self.head_len += part.len();
            if self.head_len < HEAD_LEN {
                return Ok(None);
            }
            self.body = Some(self.checked_body()?);
        }
        let Some(body) = &mut self.body else {
            return Ok(None);
        };
        let part = take(input, body.length - body.payload.len());
        body.payload.put_slice(part);
        if body.payload.len() < body.length {
            return Ok(None);
        }
        let (kind, crc) = (body.kind, body.crc);
        let payload: Bytes = std::mem::take(&mut body.payload).freeze();
        check_crc("payload", crc, &payload)?;
        self.body = None;
        self.head_len = 0;
        Message::decode(kind, &payload).map(Some)
    }

    /// What the head announces, if it may: no memory is taken before that is known.
    fn checked_body(&self) -> Result<Body, DecodeError> {
        check_crc(
            "head",
            walfmt::bytes::u32_at(&self.head, HEAD_CRC_AT),
            &self.head[..HEAD_CRC_AT],
        )?;
        let length = walfmt::bytes::u32_at(&self.head, 0) as usize;
        let length = length.checked_sub(1).ok_or(DecodeError::NoKind)?;
        let number = self.head[4];
        let kind = MessageKind::from_number(number).ok_or(DecodeError::UnknownKind(number))?;
        let allowed = match kind {
            MessageKind::Hello
            | MessageKind::BackupRequest
            | MessageKind::Probe
            | MessageKind::Acknowledgement => self.from == Side::Follower,
            MessageKind::Goodbye => true,
            _ => self.from == Side::Leader,
        };
        if !allowed {
            return Err(DecodeError::WrongSide { kind, from: self.from });
        }
        let max = match self.greeted {
            true => kind.payload_max(),
            false => kind.payload_max().min(GREETING_MAX),
        };
        if length > max {
            return Err(DecodeError::TooLong { kind, length, max });
        }
        let crc = walfmt::bytes::u32_at(&self.head, 5);
        Ok(Body { kind, length, crc, payload: BytesMut::with_capacity(length) })
    }
}

fn check_crc(part: &'static str, expected: u32, bytes: &[u8]) -> Result<(), DecodeError> {
    match crc32c::crc32c(bytes) {
        found if found == expected => Ok(()),
        found => Err(DecodeError::Crc { part, expected, found }),
    }
}

fn take<'a>(input: &mut &'a [u8], len_max: usize) -> &'a [u8] {
    let (part, rest) = input.split_at(len_max.min(input.len()));
    *input = rest;
    part
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Goodbye, encode_head};
    use crate::text::PlainText;

    fn head(payload_len: usize, kind: u8) -> Vec<u8> {
        encode_head(kind, payload_len, 0).to_vec()
    }

    /// A payload behind the head that belongs to it.
    fn sealed(payload: &[u8], kind: u8) -> Vec<u8> {
        let head = encode_head(kind, payload.len(), crc32c::crc32c(payload));
        [&head[..], payload].concat()
    }

    fn poll(decoder: &mut Decoder, bytes: &[u8]) -> Result<Option<Message>, DecodeError> {
        decoder.poll(&mut &bytes[..])
    }

    #[test]
    fn lengths_are_checked_before_anything_is_kept() {
        let four_mb = 4 << 20;
        let mut stranger = Decoder::new(Side::Leader);
        let error = poll(&mut stranger, &head(four_mb, 4)).expect_err("not greeted");
        assert!(matches!(error, DecodeError::TooLong { max: GREETING_MAX, .. }), "{error}");

        for (kind, max) in [(4, four_mb), (5, 64 << 10), (7, 64 << 10), (2, 4 << 10)] {
            let mut decoder = Decoder::new(Side::Leader);
            decoder.accept_greeting();
            assert_eq!(poll(&mut decoder, &head(max, kind)), Ok(None));
            assert_eq!(decoder.buffered(), HEAD_LEN);

            let mut decoder = Decoder::new(Side::Leader);
            decoder.accept_greeting();
            let error = poll(&mut decoder, &head(max + 1, kind)).expect_err("too long");
            assert!(matches!(error, DecodeError::TooLong { .. }), "{error}");
            assert_eq!(poll(&mut decoder, &[0]), Err(error), "and it stays that way");
        }
    }

    #[test]
    fn kinds_are_checked() {
        let mut decoder = Decoder::new(Side::Follower);
        let mut no_kind = head(0, 7);
        no_kind[0] = 0;
        let error = poll(&mut decoder, &no_kind).expect_err("another CRC");
        assert!(matches!(error, DecodeError::Crc { part: "head", .. }), "{error}");
        let crc = crc32c::crc32c(&no_kind[..HEAD_CRC_AT]);
        walfmt::bytes::put(&mut no_kind, HEAD_CRC_AT, crc.to_le_bytes());
        assert_eq!(poll(&mut Decoder::new(Side::Follower), &no_kind), Err(DecodeError::NoKind));
        for number in [0, 15, 255] {
            let mut decoder = Decoder::new(Side::Follower);
            let found = poll(&mut decoder, &head(2, number));
            assert_eq!(found, Err(DecodeError::UnknownKind(number)));
        }
        for (from, kind) in [
            (Side::Follower, 4),
            (Side::Follower, 9),
            (Side::Leader, 1),
            (Side::Leader, 6),
            (Side::Leader, 8),
            (Side::Leader, 13),
            (Side::Follower, 14),
        ] {
            let found = poll(&mut Decoder::new(from), &head(2, kind));
            assert!(matches!(found, Err(DecodeError::WrongSide { .. })), "{found:?}");
        }
    }

    #[test]
    fn a_byte_too_many_in_a_payload_is_an_error() {
        let goodbye = Message::Goodbye(Goodbye { reason: PlainText::fitted("x") });
        let [bytes, _] = goodbye.encode();
        assert_eq!(poll(&mut Decoder::new(Side::Leader), &bytes), Ok(Some(goodbye)));

        let longer = sealed(&[&bytes[HEAD_LEN..], &[0]].concat(), 7);
        let error = poll(&mut Decoder::new(Side::Leader), &longer).expect_err("too long");
        assert!(matches!(error, DecodeError::Length(CursorError::Trailing { left: 1, .. })));

        let shorter = sealed(&bytes[HEAD_LEN..bytes.len() - 1], 7);
        let error = poll(&mut Decoder::new(Side::Leader), &shorter).expect_err("too short");
        assert!(matches!(error, DecodeError::Length(CursorError::Short { .. })));
    }
}
