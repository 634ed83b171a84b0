//! Each rule of the two state machines, with what breaks it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use walferry_wire::*;
use walfmt::{Lsn, SegmentSize, Timeline};

const START: u64 = 0x300_0000;
const DURABLE: u64 = START + 0x1_0000;

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

fn hello() -> Hello {
    Hello {
        node: "follower".parse().expect("a name"),
        agent_version: PlainText::fitted("0.1.0"),
        system_identifier: 42,
        timeline: Timeline(1),
        segment_size: SegmentSize::DEFAULT,
        server_major: 15,
        resume: Resume::From(Lsn(START)),
    }
}

fn identity() -> Identity {
    Identity {
        node: "leader".parse().expect("a name"),
        agent_version: PlainText::fitted("0.1.0"),
        system_identifier: 42,
        timeline: Timeline(1),
        segment_size: SegmentSize::DEFAULT,
        server_major: 15,
        server_version_num: 150_018,
    }
}

fn welcome() -> Welcome {
    Welcome {
        node: "leader".parse().expect("a name"),
        agent_version: PlainText::fitted("0.1.0"),
        system_identifier: 42,
        timeline: Timeline(1),
        segment_size: SegmentSize::DEFAULT,
        server_major: 15,
        server_version_num: 150_018,
        archived: archived(),
    }
}

fn archived() -> Archived {
    Archived { first: Lsn(START), appended: Lsn(DURABLE) }
}

fn chunk(start: u64, end: u64, starts_frame: bool) -> Chunk {
    let bytes = Bytes::from_static(&[7; 1000]);
    Chunk { timeline: Timeline(1), start: Lsn(start), end: Lsn(end), starts_frame, bytes }
}

fn data(start: u64, end: u64, starts_frame: bool) -> Message {
    let chunk = chunk(start, end, starts_frame);
    Message::Data(Data { chunk, source_durable: Lsn(DURABLE), stamp: Stamp(77) })
}

fn heartbeat(source_durable: u64) -> Message {
    let positions = LeaderPositions {
        source_durable: Lsn(source_durable),
        appended: Lsn(DURABLE),
        server_flush: Lsn(0),
    };
    Message::Heartbeat(Heartbeat { stamp: Stamp(78), positions })
}

fn acknowledgement(received: u64, durable: u64, replayed: u64) -> Message {
    Message::Acknowledgement(Acknowledgement {
        received: Lsn(received),
        durable: Lsn(durable),
        replayed: Lsn(replayed),
        echo: Stamp(5),
    })
}

fn at(received: u64, durable: u64, replayed: u64) -> FollowerPositions {
    FollowerPositions::new(Lsn(received), Lsn(durable), Lsn(replayed)).expect("in order")
}

fn decode(from: Side, bytes: &[u8]) -> Vec<Message> {
    let mut decoder = Decoder::new(from);
    decoder.accept_greeting();
    let mut rest = bytes;
    let mut messages = Vec::new();
    while !rest.is_empty() {
        messages.extend(decoder.poll(&mut rest).expect("our own bytes"));
    }
    messages
}

/// A receiver and a time that only tests move.
struct Follower {
    receiver: Receiver,
    now: Instant,
}

impl Follower {
    fn new() -> Self {
        let now = Instant::now();
        let positions = FollowerPositions::default();
        let config = ReceiverConfig { hello: hello(), positions, limits: Limits::default() };
        let receiver = Receiver::new(config, now).expect("a fair hello");
        Self { receiver, now }
    }

    fn welcomed() -> Self {
        let mut follower = Self::new();
        follower.take(Message::Welcome(welcome())).expect("a fair welcome");
        follower.sent();
        follower
    }

    fn take(&mut self, message: Message) -> Result<Vec<ReceiverEvent>, ConnectionError> {
        self.receiver.handle_bytes(self.now, &message.encode().concat())?;
        Ok(std::iter::from_fn(|| self.receiver.poll_event()).collect())
    }

    fn sent(&mut self) -> Vec<Message> {
        let sent: Vec<Bytes> = std::iter::from_fn(|| self.receiver.poll_transmit()).collect();
        decode(Side::Follower, &sent.concat())
    }

    /// The message breaks a rule: it is no event, the leader is told, and nothing more is taken.
    #[track_caller]
    fn must_reject(mut self, message: Message) -> ConnectionError {
        let error = self.take(message).expect_err("a broken rule");
        assert_eq!(self.receiver.poll_event(), None);
        assert!(self.receiver.is_closed());
        let sent = self.sent();
        let Some(Message::Goodbye(goodbye)) = sent.last() else { panic!("{sent:?}") };
        assert_eq!(goodbye.reason.as_str(), error.to_string());
        assert_eq!(self.take(heartbeat(DURABLE)), Err(ConnectionError::Closed));
        assert_eq!(self.receiver.poll_timeout(), None);
        error
    }
}

/// A sender and a time that only tests move.
struct Leader {
    sender: Sender,
    now: Now,
}

impl Leader {
    fn new(identity: Identity) -> Self {
        let now = Now { monotonic: Instant::now(), wall: Stamp(1_000_000) };
        let source_durable = Lsn(DURABLE);
        let positions =
            LeaderPositions { source_durable, appended: source_durable, server_flush: Lsn(0) };
        let config = SenderConfig { identity, positions, limits: Limits::default() };
        Self { sender: Sender::new(config, now), now }
    }

    fn streaming() -> Self {
        let mut leader = Self::new(identity());
        let events = leader.take(Message::Hello(hello())).expect("a fair hello");
        assert_eq!(events, [SenderEvent::CheckResume(hello())]);
        leader.sender.resume_accepted(leader.now, archived()).expect("it asked");
        assert_eq!(leader.sent(), [Message::Welcome(welcome())]);
        leader
    }

    fn take(&mut self, message: Message) -> Result<Vec<SenderEvent>, ConnectionError> {
        self.sender.handle_bytes(self.now, &message.encode().concat())?;
        Ok(std::iter::from_fn(|| self.sender.poll_event()).collect())
    }

    fn sent(&mut self) -> Vec<Message> {
        let sent: Vec<Bytes> = std::iter::from_fn(|| self.sender.poll_transmit()).collect();
        decode(Side::Leader, &sent.concat())
    }

    fn pass(&mut self, duration: Duration) {
        self.now.monotonic += duration;
        self.now.wall.0 += i64::try_from(duration.as_micros()).expect("short");
    }
}

/// What the follower of this hello is told, if it is refused.
fn refusal(identity: Identity, hello: Hello) -> Option<Refused> {
    let mut leader = Leader::new(identity);
    let events = leader.take(Message::Hello(hello)).expect("well formed");
    match &events[..] {
        [SenderEvent::CheckResume(_)] => None,
        [SenderEvent::Refused(refused)] => {
            assert_eq!(leader.sent(), [Message::Refused(refused.clone())]);
            assert!(leader.sender.is_closed());
            Some(refused.clone())
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn hellos_that_fit_are_not_refused() {
    assert_eq!(refusal(identity(), hello()), None);
    assert_eq!(refusal(identity(), Hello { system_identifier: 0, ..hello() }), None);
    assert_eq!(refusal(identity(), Hello { server_major: 0, ..hello() }), None);
    assert_eq!(refusal(Identity { server_major: 0, ..identity() }, hello()), None);
    assert_eq!(refusal(Identity { timeline: Timeline(2), ..identity() }, hello()), None);
}

#[test]
fn hellos_that_do_not_fit_are_refused_in_words() {
    let small = SegmentSize::new(1 << 20).expect("a legal size");
    for (hello, code, words) in [
        (
            Hello { system_identifier: 43, ..hello() },
            RefusalCode::WRONG_SYSTEM_IDENTIFIER,
            ["43", "42"],
        ),
        (Hello { timeline: Timeline(3), ..hello() }, RefusalCode::WRONG_TIMELINE, ["3", "1"]),
        (
            Hello { segment_size: small, ..hello() },
            RefusalCode::WRONG_SEGMENT_SIZE,
            ["1048576", "16777216"],
        ),
        (Hello { server_major: 17, ..hello() }, RefusalCode::WRONG_SERVER_VERSION, ["17", "15"]),
    ] {
        let refused = refusal(identity(), hello).expect("refused");
        assert_eq!(refused.code, code);
        for word in words {
            assert!(refused.text.as_str().contains(word), "{}", refused.text);
        }
    }
    let unknown = Identity { system_identifier: 0, ..identity() };
    assert_eq!(refusal(unknown, hello()).expect("refused").code, RefusalCode::NOT_READY);
}

#[test]
fn a_resume_point_outside_the_archive_is_refused() {
    for (archived, expected) in [
        (archived(), None),
        (Archived { first: Lsn(START + 1), ..archived() }, Some(RefusalCode::NOT_ARCHIVED)),
        (Archived { first: Lsn(0), appended: Lsn(START) }, None),
        (Archived { first: Lsn(0), appended: Lsn(START - 1) }, Some(RefusalCode::AHEAD_OF_LEADER)),
    ] {
        let mut leader = Leader::new(identity());
        leader.take(Message::Hello(hello())).expect("a fair hello");
        leader.sender.resume_accepted(leader.now, archived).expect("it asked");
        let code = match &leader.sent()[..] {
            [Message::Welcome(_)] => None,
            [Message::Refused(refused)] => Some(refused.code),
            other => panic!("{other:?}"),
        };
        assert_eq!(code, expected);
    }
}

#[test]
fn the_caller_refuses_once_and_only_before_the_welcome() {
    let mut leader = Leader::new(identity());
    leader.take(Message::Hello(hello())).expect("a fair hello");
    leader.sender.refuse(RefusalCode::DIVERGED, "record at 0/1 differs").expect("it asked");
    assert!(matches!(&leader.sent()[..], [Message::Refused(_)]));
    let late = leader.sender.resume_accepted(leader.now, archived());
    assert!(matches!(late, Err(Misuse::State { call: "resume_accepted", .. })));

    let mut leader = Leader::streaming();
    assert!(leader.sender.refuse(RefusalCode::DIVERGED, "too late").is_err());

    let mut full = Leader::new(identity());
    full.sender.refuse(RefusalCode::TOO_MANY_CONNECTIONS, "serves 8").expect("before the hello");
    assert!(matches!(&full.sent()[..], [Message::Refused(_)]));
}

#[test]
fn agents_of_another_age_are_told_and_strangers_are_not() {
    let mut bytes = Message::Hello(hello()).encode().concat();
    bytes[21] = 9;
    bytes[23] = 9;
    let payload_crc = crc32c::crc32c(&bytes[13..]);
    bytes[5..9].copy_from_slice(&payload_crc.to_le_bytes());
    let head_crc = crc32c::crc32c(&bytes[..9]);
    bytes[9..13].copy_from_slice(&head_crc.to_le_bytes());
    let mut leader = Leader::new(identity());
    let error = leader.sender.handle_bytes(leader.now, &bytes).expect_err("another version");
    assert!(matches!(error, ConnectionError::Decode(DecodeError::ProtocolVersion { .. })));
    let sent = leader.sent();
    let [Message::Refused(refused)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(refused.code, RefusalCode::PROTOCOL_VERSION);

    let client_hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00\x00";
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], client_hello, &[0; 13]] {
        let mut stranger = Leader::new(identity());
        stranger.sender.handle_bytes(stranger.now, bytes).expect_err("not our protocol");
        assert_eq!(stranger.sent(), []);
    }
}

#[test]
fn the_receiver_takes_an_unbroken_chain() {
    let mut follower = Follower::new();
    assert_eq!(follower.sent(), [Message::Hello(hello())]);
    let events = follower.take(Message::Welcome(welcome())).expect("fair");
    assert_eq!(events, [ReceiverEvent::Welcomed(welcome())]);
    for message in [
        data(START, START + 8, true),
        data(START + 8, START + 8, false),
        heartbeat(DURABLE),
        data(START + 8, DURABLE, true),
    ] {
        assert_eq!(follower.take(message).expect("fair").len(), 1);
    }
    let bye = Goodbye { reason: PlainText::fitted("restart") };
    let events = follower.take(Message::Goodbye(bye.clone())).expect("fair");
    assert_eq!(events, [ReceiverEvent::Goodbye(bye)]);
    assert_eq!(follower.take(heartbeat(DURABLE)), Err(ConnectionError::Closed));
}

#[test]
fn the_receiver_sees_every_break() {
    fn chain(error: ConnectionError) -> BrokenChain {
        match error {
            ConnectionError::PeerMisbehaved(Misbehaviour::Chain(broken)) => broken,
            other => panic!("{other}"),
        }
    }
    let begun = || {
        let mut follower = Follower::welcomed();
        follower.take(data(START, START + 64, true)).expect("fair");
        follower
    };
    let expected = Lsn(START + 64);
    for found in [START, START + 63, START + 65] {
        let error = begun().must_reject(data(found, DURABLE, true));
        assert_eq!(chain(error), BrokenChain::Start { expected, found: Lsn(found) });
    }
    let error = Follower::welcomed().must_reject(data(START + 8, DURABLE, true));
    assert_eq!(chain(error), BrokenChain::Start { expected: Lsn(START), found: Lsn(START + 8) });
    let error = Follower::welcomed().must_reject(data(START, DURABLE, false));
    assert_eq!(chain(error), BrokenChain::NoFrameStart { at: Lsn(START) });

    let Message::Data(mut other) = data(START, DURABLE, true) else { unreachable!() };
    other.chunk.timeline = Timeline(2);
    let error = Follower::welcomed().must_reject(Message::Data(other));
    assert!(matches!(chain(error), BrokenChain::Timeline { .. }));

    let error = begun().must_reject(data(START + 64, DURABLE + 1, false));
    assert_eq!(
        error,
        Misbehaviour::NotDurable { end: Lsn(DURABLE + 1), source_durable: Lsn(DURABLE) }.into()
    );
    let error = begun().must_reject(heartbeat(DURABLE - 1));
    assert!(matches!(error, ConnectionError::PeerMisbehaved(Misbehaviour::WentBack { .. })));
}

#[test]
fn the_receiver_knows_its_leader() {
    let small = SegmentSize::new(1 << 20).expect("a legal size");
    for (welcome, expected) in [
        (Welcome { system_identifier: 43, ..welcome() }, "system identifier"),
        (Welcome { segment_size: small, ..welcome() }, "segment size"),
        (Welcome { server_major: 16, ..welcome() }, "server major"),
    ] {
        match Follower::new().must_reject(Message::Welcome(welcome)) {
            ConnectionError::PeerIncompatible { what, .. } => assert_eq!(what, expected),
            other => panic!("{other}"),
        }
    }
    for archived in [
        Archived { first: Lsn(START + 1), ..archived() },
        Archived { appended: Lsn(START - 1), ..archived() },
    ] {
        let error =
            Follower::new().must_reject(Message::Welcome(Welcome { archived, ..welcome() }));
        let Misbehaviour::NotInArchive { .. } = misbehaviour(error) else { panic!() };
    }
    for message in [data(START, DURABLE, true), heartbeat(DURABLE)] {
        let error = Follower::new().must_reject(message);
        assert!(matches!(misbehaviour(error), Misbehaviour::Unexpected { .. }));
    }
    let error = Follower::welcomed().must_reject(Message::Welcome(welcome()));
    assert!(matches!(misbehaviour(error), Misbehaviour::Unexpected { .. }));
}

fn misbehaviour(error: ConnectionError) -> Misbehaviour {
    match error {
        ConnectionError::PeerMisbehaved(misbehaviour) => misbehaviour,
        other => panic!("{other}"),
    }
}

#[test]
fn a_refused_receiver_takes_nothing_more() {
    let mut follower = Follower::new();
    let refused = Refused {
        code: RefusalCode::NOT_ARCHIVED,
        text: PlainText::fitted("archive starts later"),
    };
    let events = follower.take(Message::Refused(refused.clone())).expect("fair");
    assert_eq!(events, [ReceiverEvent::Refused(refused)]);
    assert!(follower.receiver.is_closed());
    let late = follower.take(Message::Welcome(welcome()));
    assert_eq!(late, Err(ConnectionError::Closed));
    let much_later = follower.now + seconds(100.0);
    assert_eq!(follower.receiver.handle_timeout(much_later), Ok(()));
}

#[test]
fn the_sender_checks_acknowledgements() {
    let begun = || {
        let mut leader = Leader::streaming();
        leader.sender.send_data(leader.now, chunk(START, DURABLE, true)).expect("fair");
        leader.take(acknowledgement(START + 64, START + 32, START + 16)).expect("fair");
        leader
    };
    let events = begun().take(acknowledgement(DURABLE, START + 32, START + 16)).expect("fair");
    let positions = at(DURABLE, START + 32, START + 16);
    assert_eq!(events, [SenderEvent::Acknowledged { positions, echo: Stamp(5) }]);

    for (position, now) in [
        ("received", acknowledgement(START + 63, START + 32, START + 16)),
        ("durable", acknowledgement(START + 64, START + 31, START + 16)),
        ("replayed", acknowledgement(START + 64, START + 32, START + 15)),
    ] {
        let mut leader = begun();
        match misbehaviour(leader.take(now).expect_err("went back")) {
            Misbehaviour::WentBack { position: found, .. } => assert_eq!(found, position),
            other => panic!("{other}"),
        }
        assert!(matches!(leader.sent().last(), Some(Message::Goodbye(_))));
        assert!(!leader.sender.can_send());
    }
    let error = begun().take(acknowledgement(DURABLE, START + 32, START + 33)).expect_err("order");
    assert!(matches!(misbehaviour(error), Misbehaviour::Misordered(_)));
    let error = begun().take(acknowledgement(DURABLE + 1, START + 32, START + 16));
    assert!(matches!(misbehaviour(error.expect_err("never sent")), Misbehaviour::NeverSent { .. }));
    let mut early = Leader::new(identity());
    let error = early.take(acknowledgement(0, 0, 0)).expect_err("before the hello");
    assert!(matches!(misbehaviour(error), Misbehaviour::Unexpected { .. }));
}

#[test]
fn the_sender_does_not_send_what_it_must_not() {
    let mut leader = Leader::streaming();
    let now = leader.now;
    let gap = leader.sender.send_data(now, chunk(START + 8, DURABLE, true));
    assert!(matches!(gap, Err(Misuse::Chain(BrokenChain::Start { .. }))));
    let half = leader.sender.send_data(now, chunk(START, DURABLE, false));
    assert!(matches!(half, Err(Misuse::Chain(BrokenChain::NoFrameStart { .. }))));
    let early = leader.sender.send_data(now, chunk(START, DURABLE + 1, true));
    assert!(matches!(early, Err(Misuse::NotDurable { .. })));
    assert_eq!(leader.sent(), []);

    assert_eq!(leader.sender.send_data(now, chunk(START, DURABLE, true)), Ok(()));
    assert_eq!(leader.sent().len(), 1);
    let positions = LeaderPositions { source_durable: Lsn(DURABLE - 1), ..Default::default() };
    assert!(matches!(leader.sender.set_positions(positions), Err(Misuse::WentBack { .. })));
}

#[test]
fn the_window_bounds_what_is_out() {
    let mut leader = Leader::streaming();
    let mut next = START;
    while leader.sender.can_send() {
        leader.sender.send_data(leader.now, chunk(next, next + 1, next == START)).expect("fair");
        next += 1;
    }
    let window = Limits::default().window_bytes as u64;
    let sent = (next - START) * 1000;
    assert!(window * 8 / 10 < sent && sent <= window, "{sent}");
    let more = leader.sender.send_data(leader.now, chunk(next, next + 1, false));
    assert!(matches!(more, Err(Misuse::WindowFull { .. })));

    leader.take(acknowledgement(START, 0, 0)).expect("fair");
    assert!(!leader.sender.can_send());
    leader.take(acknowledgement(START + 1, 0, 0)).expect("fair");
    assert!(leader.sender.can_send());
}

#[test]
fn acknowledgements_are_due_when_durable_moves_and_every_interval() {
    let mut follower = Follower::welcomed();
    follower.take(data(START, START + 64, true)).expect("fair");
    let set = |follower: &mut Follower, positions| {
        follower.receiver.set_positions(follower.now, positions).expect("fair");
        follower.sent()
    };
    assert_eq!(set(&mut follower, at(START + 64, 0, 0)), []);
    let Message::Acknowledgement(expected) = acknowledgement(START + 64, START + 64, 0) else {
        unreachable!()
    };
    let expected = Acknowledgement { echo: Stamp(77), ..expected };
    let sent = set(&mut follower, at(START + 64, START + 64, 0));
    assert_eq!(sent, [Message::Acknowledgement(expected)]);
    let idle = follower.receiver.poll_timeout().expect("a deadline");
    assert_eq!(idle, follower.now + seconds(1.0));
    assert_eq!(set(&mut follower, at(START + 64, START + 64, START + 64)), []);

    let due = follower.receiver.poll_timeout().expect("a deadline");
    assert_eq!(due, follower.now + seconds(0.05));
    assert_eq!(follower.receiver.handle_timeout(due - seconds(0.001)), Ok(()));
    assert_eq!(follower.sent(), []);
    assert_eq!(follower.receiver.handle_timeout(due), Ok(()));
    let replayed = Lsn(START + 64);
    let sent = follower.sent();
    assert_eq!(sent, [Message::Acknowledgement(Acknowledgement { replayed, ..expected })]);
    assert_eq!(follower.receiver.poll_timeout(), Some(due + seconds(1.0)));
}

/// Without it a follower whose disk is slow would let the window close.
#[test]
fn much_received_is_acknowledged_before_it_is_durable() {
    let mut follower = Follower::welcomed();
    let mut acknowledged = 0;
    for step in 0..4000 {
        let next = START + step;
        follower.take(data(next, next + 1, step == 0)).expect("fair");
        follower.receiver.set_positions(follower.now, at(next + 1, 0, 0)).expect("fair");
        acknowledged += follower.sent().len();
    }
    assert_eq!(acknowledged, 3, "4 MB, one for each that is full");
}

#[test]
fn the_receiver_does_not_acknowledge_what_it_must_not() {
    let mut follower = Follower::welcomed();
    follower.take(data(START, START + 64, true)).expect("fair");
    let (now, receiver) = (follower.now, &mut follower.receiver);
    let never = receiver.set_positions(now, at(START + 65, 0, 0));
    assert!(matches!(never, Err(Misuse::NeverArrived { .. })));
    receiver.set_positions(now, at(START + 64, START + 8, START)).expect("fair");
    let back = receiver.set_positions(now, at(START + 64, START + 7, START));
    assert!(matches!(back, Err(Misuse::WentBack { position: "durable", .. })));
    assert!(FollowerPositions::new(Lsn(1), Lsn(2), Lsn(0)).is_err());
    assert!(FollowerPositions::new(Lsn(2), Lsn(1), Lsn(2)).is_err());
}

#[test]
fn an_idle_sender_sends_heartbeats() {
    let mut leader = Leader::streaming();
    leader.pass(seconds(0.5));
    leader.sender.send_data(leader.now, chunk(START, DURABLE, true)).expect("fair");
    assert_eq!(leader.sent().len(), 1);
    let due = leader.sender.poll_timeout().expect("a deadline");
    assert_eq!(due, leader.now.monotonic + seconds(1.0), "data is a sign of life");
    leader.pass(seconds(0.999));
    leader.sender.handle_timeout(leader.now).expect("in time");
    assert_eq!(leader.sent(), []);
    leader.pass(seconds(0.001));
    leader.sender.handle_timeout(leader.now).expect("in time");
    let sent = leader.sent();
    let [Message::Heartbeat(heartbeat)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(heartbeat.stamp, Stamp(2_500_000));
    assert_eq!(heartbeat.positions.source_durable, Lsn(DURABLE));

    // A blocked socket does not collect heartbeats.
    for _ in 0..8 {
        leader.pass(seconds(1.0));
        leader.sender.handle_timeout(leader.now).expect("in time");
    }
    assert_eq!(leader.sent().len(), 1);
}

#[test]
fn silent_peers_are_given_up() {
    let mut follower = Follower::welcomed();
    follower.now += seconds(9.9);
    follower.take(heartbeat(DURABLE)).expect("fair");
    assert_eq!(follower.receiver.handle_timeout(follower.now + seconds(9.9)), Ok(()));
    let error = follower.receiver.handle_timeout(follower.now + seconds(10.0));
    assert_eq!(error, Err(ConnectionError::PeerSilent(seconds(10.0))));
    assert!(follower.receiver.is_closed());

    let mut leader = Leader::streaming();
    leader.pass(seconds(10.0));
    let error = leader.sender.handle_timeout(leader.now);
    assert_eq!(error, Err(ConnectionError::PeerSilent(seconds(10.0))));

    // No hello at all; and a long check, in which it is we who are silent.
    let mut leader = Leader::new(identity());
    assert_eq!(leader.sender.poll_timeout(), Some(leader.now.monotonic + seconds(10.0)));
    leader.take(Message::Hello(hello())).expect("fair");
    leader.pass(seconds(60.0));
    leader.sender.handle_timeout(leader.now).expect("the caller is slow, not the peer");
    leader.sender.resume_accepted(leader.now, archived()).expect("it asked");
    leader.sender.handle_timeout(leader.now).expect("silence counts from the welcome");
}

#[test]
fn goodbyes() {
    let mut follower = Follower::welcomed();
    follower.take(data(START, START + 64, true)).expect("fair");
    follower.receiver.set_positions(follower.now, at(START + 64, 0, 0)).expect("fair");
    follower.receiver.goodbye("shutdown");
    let sent = follower.sent();
    assert!(matches!(&sent[..], [Message::Acknowledgement(_), Message::Goodbye(_)]), "{sent:?}");

    let mut leader = Leader::streaming();
    leader.sender.goodbye("shutdown");
    assert!(matches!(&leader.sent()[..], [Message::Goodbye(_)]));

    let mut leader = Leader::new(identity());
    leader.sender.goodbye("shutdown");
    let sent = leader.sent();
    let [Message::Refused(refused)] = &sent[..] else { panic!("{sent:?}") };
    assert_eq!(refused.code, RefusalCode::NOT_READY);
}

#[test]
fn a_hello_that_contradicts_itself_is_not_sent() {
    let receiver = |resume, received| {
        let hello = Hello { resume, ..hello() };
        let positions = at(received, 0, 0);
        let config = ReceiverConfig { hello, positions, limits: Limits::default() };
        Receiver::new(config, Instant::now())
    };
    let go_on = |record_start, record_end, content_end| Resume::Continue {
        record_start: Lsn(record_start),
        record_end: Lsn(record_end),
        record_crc: 1,
        content_end: Lsn(content_end),
        tail_crc: 2,
    };
    assert!(receiver(go_on(10, 20, 20), 20).is_ok());
    assert!(receiver(go_on(10, 20, 25), 25).is_ok());
    assert!(receiver(Resume::From(Lsn(START)), START).is_ok());
    assert!(receiver(go_on(10, 10, 20), 0).is_err());
    assert!(receiver(go_on(10, 20, 19), 0).is_err());
    assert!(receiver(go_on(10, 20, 20), 21).is_err());
    assert!(receiver(Resume::From(Lsn(START + 8)), 0).is_err());
    assert!(receiver(Resume::From(Lsn(0)), 0).is_err());
}
