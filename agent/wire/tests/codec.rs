//! Messages and bytes: whatever goes in comes out, whatever comes in does no harm.

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use walferry_wire::*;
use walfmt::{Lsn, SegmentSize, Timeline};

/// Length, kind and two CRCs.
const HEAD_LEN: usize = 13;
/// The longest message before the hello is accepted.
const STRANGER_MAX: usize = HEAD_LEN + (4 << 10);
const MESSAGE_MAX: usize = HEAD_LEN + (4 << 20);

prop_compose! {
    fn lsn()(lsn in any::<u64>()) -> Lsn { Lsn(lsn) }
}

prop_compose! {
    fn node()(text in "[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}") -> NodeName {
        text.parse().expect("an allowed name")
    }
}

fn text<const MAX: usize>() -> impl Strategy<Value = PlainText<MAX>> {
    any::<String>().prop_map(|text| PlainText::fitted(&text))
}

fn segment_size() -> impl Strategy<Value = SegmentSize> {
    (20..=30_u32).prop_map(|shift| SegmentSize::new(1 << shift).expect("a legal size"))
}

fn timeline() -> impl Strategy<Value = Timeline> {
    (1..=u32::MAX).prop_map(Timeline)
}

fn resume(size: SegmentSize) -> impl Strategy<Value = Resume> {
    let from = (1..1_u64 << 32).prop_map(move |n| Resume::From(Lsn(n * size.bytes())));
    let parts = (1..u64::MAX / 2, 1..1_u64 << 31, 0..1_u64 << 31, any::<u32>(), any::<u32>());
    let go_on = parts.prop_map(|(start, record, tail, record_crc, tail_crc)| Resume::Continue {
        record_start: Lsn(start),
        record_end: Lsn(start + record),
        record_crc,
        content_end: Lsn(start + record + tail),
        tail_crc,
    });
    prop_oneof![from, go_on]
}

prop_compose! {
    fn hello()(size in segment_size())(
        node in node(), agent_version in text(), system_identifier in any::<u64>(),
        timeline in timeline(), server_major in any::<u16>(), resume in resume(size),
        segment_size in Just(size),
    ) -> Hello {
        Hello { node, agent_version, system_identifier, timeline, segment_size, server_major, resume }
    }
}

prop_compose! {
    fn welcome()(
        node in node(), agent_version in text(), system_identifier in 1..=u64::MAX,
        timeline in timeline(), segment_size in segment_size(), server_major in any::<u16>(),
        server_version_num in any::<u32>(), first in lsn(), appended in lsn(),
    ) -> Welcome {
        let archived = Archived { first, appended };
        Welcome {
            node, agent_version, system_identifier, timeline, segment_size, server_major,
            server_version_num, archived,
        }
    }
}

prop_compose! {
    fn data()(
        timeline in timeline(), start in 0..u64::MAX / 2, len in any::<u32>(),
        starts_frame in any::<bool>(), source_durable in lsn(), stamp in any::<i64>(),
        bytes in vec(any::<u8>(), 1..3000),
    ) -> Data {
        let (start, end) = (Lsn(start), Lsn(start + u64::from(len)));
        let chunk = Chunk { timeline, start, end, starts_frame, bytes: Bytes::from(bytes) };
        Data { chunk, source_durable, stamp: Stamp(stamp) }
    }
}

fn heartbeat() -> impl Strategy<Value = Heartbeat> {
    (any::<i64>(), lsn(), lsn(), lsn()).prop_map(
        |(stamp, source_durable, appended, server_flush)| {
            let positions = LeaderPositions { source_durable, appended, server_flush };
            Heartbeat { stamp: Stamp(stamp), positions }
        },
    )
}

fn acknowledgement() -> impl Strategy<Value = Acknowledgement> {
    (lsn(), lsn(), lsn(), any::<i64>()).prop_map(|(received, durable, replayed, echo)| {
        Acknowledgement { received, durable, replayed, echo: Stamp(echo) }
    })
}

fn goodbye() -> impl Strategy<Value = Goodbye> {
    text().prop_map(|reason| Goodbye { reason })
}

prop_compose! {
    fn backup_started()(
        node in node(), agent_version in text(), system_identifier in any::<u64>(),
        segment_size in segment_size(), server_version_num in any::<u32>(),
        timeline in timeline(), start in lsn(), bytes in any::<u64>(),
    ) -> BackupStarted {
        BackupStarted {
            node, agent_version, system_identifier, segment_size, server_version_num, timeline,
            start, bytes,
        }
    }
}

prop_compose! {
    fn backup_request()(
        node in node(), agent_version in text(), fast_checkpoint in any::<bool>(),
        max_rate in any::<u32>(),
    ) -> BackupRequest {
        BackupRequest { node, agent_version, fast_checkpoint, max_rate }
    }
}

fn backup_archive() -> impl Strategy<Value = BackupArchive> {
    let content = prop_oneof![
        Just(BackupContent::Base),
        (1..=u32::MAX).prop_map(BackupContent::Tablespace),
        Just(BackupContent::Manifest),
        Just(BackupContent::Configuration),
    ];
    (content, any::<bool>())
        .prop_map(|(content, is_compressed)| BackupArchive { content, is_compressed })
}

prop_compose! {
    fn standing()(
        node in node(), agent_version in text(), stamp in any::<i64>(),
        system_identifier in any::<u64>(), timeline in timeline(), segment_size in segment_size(),
        server_major in any::<u16>(), server_version_num in any::<u32>(), first in lsn(),
        may_follow in any::<bool>(), may_bootstrap in any::<bool>(),
        locales in vec(text(), 0..=LOCALES_MAX),
    ) -> Standing {
        Standing {
            node, agent_version, stamp: Stamp(stamp), system_identifier, timeline, segment_size,
            server_major, server_version_num, first, may_follow, may_bootstrap, locales,
        }
    }
}

fn from_leader() -> impl Strategy<Value = Message> {
    prop_oneof![
        welcome().prop_map(Message::Welcome),
        (any::<u16>(), text())
            .prop_map(|(code, text)| Message::Refused(Refused { code: RefusalCode(code), text })),
        data().prop_map(Message::Data),
        heartbeat().prop_map(Message::Heartbeat),
        goodbye().prop_map(Message::Goodbye),
        backup_started().prop_map(Message::BackupStarted),
        backup_archive().prop_map(Message::BackupArchive),
        vec(any::<u8>(), 0..3000).prop_map(|bytes| Message::BackupData(bytes.into())),
        (timeline(), lsn())
            .prop_map(|(timeline, end)| Message::BackupEnd(BackupEnd { timeline, end })),
        standing().prop_map(Message::Standing),
    ]
}

fn from_follower() -> impl Strategy<Value = Message> {
    prop_oneof![
        hello().prop_map(Message::Hello),
        acknowledgement().prop_map(Message::Acknowledgement),
        goodbye().prop_map(Message::Goodbye),
        backup_request().prop_map(Message::BackupRequest),
        (node(), text())
            .prop_map(|(node, agent_version)| Message::Probe(Probe { node, agent_version })),
    ]
}

fn conversation() -> impl Strategy<Value = (Side, Vec<Message>)> {
    prop_oneof![
        vec(from_leader(), 1..6).prop_map(|messages| (Side::Leader, messages)),
        vec(from_follower(), 1..6).prop_map(|messages| (Side::Follower, messages)),
    ]
}

fn encoded(messages: &[Message]) -> Vec<u8> {
    messages.iter().flat_map(|message| message.encode().concat()).collect()
}

/// Everything that comes out of a decoder, and how it ended.
fn decoded<'a>(
    decoder: &mut Decoder,
    portions: impl Iterator<Item = &'a [u8]>,
    buffered_max: usize,
) -> (Vec<Message>, Option<DecodeError>) {
    let mut messages = Vec::new();
    for mut portion in portions {
        while !portion.is_empty() {
            match decoder.poll(&mut portion) {
                Ok(message) => messages.extend(message),
                Err(error) => return (messages, Some(error)),
            }
            assert!(decoder.buffered() <= buffered_max);
        }
    }
    (messages, None)
}

fn greeted(from: Side) -> Decoder {
    let mut decoder = Decoder::new(from);
    decoder.accept_greeting();
    decoder
}

proptest! {
    #[test]
    fn round_trip_in_any_portions((from, messages) in conversation(), portion in 1..5000_usize) {
        let bytes = encoded(&messages);
        for portion in [bytes.len(), portion, 1] {
            let found = decoded(&mut greeted(from), bytes.chunks(portion), MESSAGE_MAX);
            prop_assert_eq!(&found, &(messages.clone(), None));
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..200), kind in 0..16_u8) {
        // With a plausible head, or most inputs end at the first check.
        let mut framed = (bytes.len() as u32 + 1).to_le_bytes().to_vec();
        framed.push(kind);
        framed.extend([0; 8]);
        framed.extend(&bytes);
        seal(&mut framed);
        for bytes in [bytes, framed] {
            for from in [Side::Leader, Side::Follower] {
                let whole = decoded(&mut Decoder::new(from), [&bytes[..]].into_iter(), STRANGER_MAX);
                let single = decoded(&mut Decoder::new(from), bytes.chunks(1), STRANGER_MAX);
                prop_assert_eq!(whole, single);
                decoded(&mut greeted(from), [&bytes[..]].into_iter(), MESSAGE_MAX);
            }
        }
    }

    #[test]
    fn damaged_messages_do_no_harm(
        (from, messages) in conversation(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let mut bytes = encoded(&messages);
        for (place, byte) in damage {
            let place = place.index(bytes.len());
            bytes[place] = byte;
        }
        let intact = bytes == encoded(&messages);
        let whole = decoded(&mut greeted(from), [&bytes[..]].into_iter(), MESSAGE_MAX);
        let single = decoded(&mut greeted(from), bytes.chunks(1), MESSAGE_MAX);
        prop_assert_eq!(&whole, &single);
        // What comes out was sent, and what was damaged does not come out.
        let (found, _) = whole;
        prop_assert_eq!(&found[..], &messages[..found.len()]);
        prop_assert_eq!(found.len() == messages.len(), intact);
    }
}

/// Sets the CRCs of the one message that `bytes` are.
fn seal(bytes: &mut [u8]) {
    let payload_crc = crc32c::crc32c(&bytes[HEAD_LEN..]);
    bytes[5..9].copy_from_slice(&payload_crc.to_le_bytes());
    let head_crc = crc32c::crc32c(&bytes[..9]);
    bytes[9..13].copy_from_slice(&head_crc.to_le_bytes());
}

fn one(from: Side, bytes: &[u8]) -> Result<Option<Message>, DecodeError> {
    greeted(from).poll(&mut &bytes[..])
}

/// The bytes on the wire may not change by accident: agents of two versions meet there.
#[test]
fn golden_bytes() {
    let chunk = Chunk {
        timeline: Timeline(2),
        start: Lsn(0x10),
        end: Lsn(0x20),
        starts_frame: true,
        bytes: Bytes::from_static(b"zz"),
    };
    let data = Data { chunk, source_durable: Lsn(0x30), stamp: Stamp(-1) };
    #[rustfmt::skip]
    let expected = [
        &[40, 0, 0, 0, 4][..], &[114, 35, 16, 135, 159, 79, 215, 65],
        &[2, 0, 0, 0], &[1],
        &[0x10, 0, 0, 0, 0, 0, 0, 0], &[0x20, 0, 0, 0, 0, 0, 0, 0], &[0x30, 0, 0, 0, 0, 0, 0, 0],
        &[255; 8], b"zz",
    ]
    .concat();
    assert_eq!(encoded(&[Message::Data(data)]), expected);

    let hello = Hello {
        node: "b".parse().expect("a name"),
        agent_version: PlainText::fitted("0.1"),
        system_identifier: 7,
        timeline: Timeline(1),
        segment_size: SegmentSize::DEFAULT,
        server_major: 15,
        resume: Resume::From(Lsn(0x100_0000)),
    };
    #[rustfmt::skip]
    let expected = [
        &[48, 0, 0, 0, 1][..], &[148, 31, 9, 41, 100, 211, 180, 54],
        b"WALFERRY", &[1, 0, 1, 0],
        &[1, 0], b"b", &[3, 0], b"0.1",
        &[7, 0, 0, 0, 0, 0, 0, 0], &[1, 0, 0, 0], &[0, 0, 0, 1], &[15, 0],
        &[0], &[0, 0, 0, 1, 0, 0, 0, 0],
    ]
    .concat();
    assert_eq!(encoded(&[Message::Hello(hello)]), expected);

    let mut damaged = expected.clone();
    damaged[1] ^= 1; // the length
    let error = one(Side::Follower, &damaged).expect_err("damaged");
    assert!(matches!(error, DecodeError::Crc { part: "head", .. }), "{error}");

    // A hello of another magic, another version, another kind of resume, a resume point that is
    // no segment's start.
    assert!(one(Side::Follower, &expected).is_ok());
    let spoiled = |place: usize, byte: u8| {
        let mut bytes = expected.clone();
        bytes[place] = byte;
        let error = one(Side::Follower, &bytes).expect_err("damaged");
        assert!(matches!(error, DecodeError::Crc { part: "payload", .. }), "{error}");
        seal(&mut bytes);
        one(Side::Follower, &bytes).expect_err("spoiled")
    };
    assert!(matches!(spoiled(13, b'w'), DecodeError::Magic { .. }));
    assert_eq!(spoiled(23, 9), DecodeError::ProtocolVersion { version: 1, version_min: 9 });
    assert_eq!(spoiled(21, 0), DecodeError::ProtocolVersion { version: 0, version_min: 1 });
    assert!(matches!(spoiled(51, 2), DecodeError::Field(field) if field.field == "resume"));
    assert!(matches!(spoiled(52, 8), DecodeError::Field(field) if field.field == "start"));
    assert!(matches!(spoiled(27, b'\n'), DecodeError::Text { field: "node", .. }));
}

#[test]
fn the_longest_chunk_fits_and_a_longer_one_does_not() {
    let data = |len: usize| {
        let bytes = Bytes::from(vec![7; len]);
        let (start, end) = (Lsn(0), Lsn(1));
        let chunk = Chunk { timeline: Timeline(1), start, end, starts_frame: true, bytes };
        Message::Data(Data { chunk, source_durable: Lsn(1), stamp: Stamp(0) })
    };
    let longest = data(Chunk::BYTES_MAX);
    assert_eq!(one(Side::Leader, &encoded(std::slice::from_ref(&longest))), Ok(Some(longest)));
    let found = one(Side::Leader, &encoded(&[data(Chunk::BYTES_MAX + 1)]));
    assert!(matches!(found, Err(DecodeError::TooLong { .. })), "{found:?}");
    let found = one(Side::Leader, &encoded(&[data(0)]));
    assert!(matches!(found, Err(DecodeError::Field(_))), "{found:?}");
}

/// An agent that is a hundred protocol versions ahead can still tell us that it refuses us.
#[test]
fn a_refusal_is_readable_across_versions() {
    let text = PlainText::fitted("too old");
    let refused = Message::Refused(Refused { code: RefusalCode::PROTOCOL_VERSION, text });
    let mut bytes = encoded(std::slice::from_ref(&refused));
    bytes[21] = 100;
    bytes[23] = 100;
    seal(&mut bytes);
    assert_eq!(one(Side::Leader, &bytes), Ok(Some(refused)));
}
