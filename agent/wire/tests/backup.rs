//! A base backup between the two state machines, and each rule of it with what breaks it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use walferry_wire::*;
use walfmt::{Lsn, SegmentSize, Timeline};

fn request() -> BackupRequest {
    BackupRequest {
        node: "follower".parse().expect("a name"),
        agent_version: PlainText::fitted("0.1.0"),
        fast_checkpoint: true,
        max_rate: 0,
    }
}

fn started() -> BackupStarted {
    BackupStarted {
        node: "leader".parse().expect("a name"),
        agent_version: PlainText::fitted("0.1.0"),
        system_identifier: 42,
        segment_size: SegmentSize::DEFAULT,
        server_version_num: 150_018,
        timeline: Timeline(1),
        start: Lsn(0x300_0028),
        bytes: 1 << 30,
    }
}

fn archive(content: BackupContent) -> BackupArchive {
    BackupArchive { content, is_compressed: false }
}

fn end() -> BackupEnd {
    BackupEnd { timeline: Timeline(1), end: Lsn(0x400_0000) }
}

fn leader(begun: Instant) -> Sender {
    let identity = Identity {
        node: "leader".parse().expect("a name"),
        agent_version: PlainText::fitted("0.1.0"),
        system_identifier: 42,
        timeline: Timeline(1),
        segment_size: SegmentSize::DEFAULT,
        server_major: 15,
        server_version_num: 150_018,
    };
    let config =
        SenderConfig { identity, positions: LeaderPositions::default(), limits: Limits::default() };
    Sender::new(config, now(begun))
}

fn now(monotonic: Instant) -> Now {
    Now { monotonic, wall: Stamp(1) }
}

/// Takes what one side has to say to the other.
fn carry(from: &mut Sender, to: &mut BackupReceiver, at: Instant) -> Vec<BackupEvent> {
    while let Some(bytes) = from.poll_transmit() {
        to.handle_bytes(at, &bytes).expect("fair");
    }
    std::iter::from_fn(|| to.poll_event()).collect()
}

fn connected(begun: Instant) -> (Sender, BackupReceiver) {
    let (mut leader, mut follower) =
        (leader(begun), BackupReceiver::new(request(), Limits::default(), begun));
    while let Some(bytes) = follower.poll_transmit() {
        leader.handle_bytes(now(begun), &bytes).expect("fair");
    }
    assert_eq!(leader.poll_event(), Some(SenderEvent::BackupRequested(request())));
    (leader, follower)
}

#[test]
fn a_backup_comes_whole() {
    let begun = Instant::now();
    let (mut leader, mut follower) = connected(begun);
    let later = begun + Duration::from_secs(60);
    // Nothing for a minute but signs of life: a checkpoint takes its time.
    for second in 1..=60 {
        let at = begun + Duration::from_secs(second);
        leader.handle_timeout(now(at)).expect("a follower says nothing");
        assert_eq!(carry(&mut leader, &mut follower, at), []);
        follower.handle_timeout(at).expect("it is alive");
    }
    let bytes = Bytes::from_static(b"tar");
    let parts = [
        BackupPart::Started(started()),
        BackupPart::Archive(archive(BackupContent::Configuration)),
        BackupPart::Data(bytes.clone()),
        BackupPart::Archive(archive(BackupContent::Tablespace(16390))),
        BackupPart::Data(bytes.clone()),
        BackupPart::Archive(archive(BackupContent::Base)),
        BackupPart::Archive(archive(BackupContent::Manifest)),
        BackupPart::Data(bytes.clone()),
        BackupPart::Ended(end()),
    ];
    for part in parts {
        leader.send_backup(now(later), part).expect("in order");
    }
    assert!(leader.is_closed());
    let events = carry(&mut leader, &mut follower, later);
    assert_eq!(events.len(), 9);
    assert_eq!(events[0], BackupEvent::Started(started()));
    assert_eq!(events[2], BackupEvent::Data(bytes));
    assert_eq!(events[8], BackupEvent::Ended(end()));
    assert!(follower.is_closed());
}

#[test]
fn parts_out_of_turn_are_refused() {
    let begun = Instant::now();
    let base = || Message::BackupArchive(archive(BackupContent::Base));
    let start = || Message::BackupStarted(started());
    let data = || Message::BackupData(Bytes::from_static(b"x"));
    let configuration = || Message::BackupArchive(archive(BackupContent::Configuration));
    let spoiled: [&[Message]; 9] = [
        &[start(), configuration(), configuration()],
        &[start(), base(), configuration()],
        &[start(), configuration(), Message::BackupEnd(end())],
        &[base()],
        &[start(), start()],
        &[start(), data()],
        &[start(), Message::BackupEnd(end())],
        &[start(), base(), Message::BackupEnd(end())],
        &[start(), Message::BackupArchive(archive(BackupContent::Manifest)), base()],
    ];
    for messages in spoiled {
        let mut follower = BackupReceiver::new(request(), Limits::default(), begun);
        let sent: Vec<_> = messages.iter().flat_map(|message| message.encode().concat()).collect();
        let error = follower.handle_bytes(begun, &sent).expect_err("out of turn");
        assert!(error.to_string().contains("message"), "{error}");
        assert!(follower.is_closed());
    }
    // The leader's own caller is held to it too.
    let (mut leader, _) = connected(begun);
    assert!(leader.send_backup(now(begun), BackupPart::Ended(end())).is_err());
    leader.send_backup(now(begun), BackupPart::Started(started())).expect("first");
    assert!(leader.send_backup(now(begun), BackupPart::Started(started())).is_err());
    assert!(leader.refuse(RefusalCode::NOT_READY, "late").is_err());
}

#[test]
fn a_backup_that_fails_says_why() {
    let begun = Instant::now();
    let (mut leader, mut follower) = connected(begun);
    leader.goodbye("no");
    let events = carry(&mut leader, &mut follower, begun);
    assert!(
        matches!(&events[..], [BackupEvent::Refused(refused)] if refused.text.as_str() == "no")
    );
    let (mut leader, mut follower) = connected(begun);
    leader.send_backup(now(begun), BackupPart::Started(started())).expect("first");
    leader.goodbye("checksum");
    let events = carry(&mut leader, &mut follower, begun);
    let [_, BackupEvent::Goodbye(goodbye)] = &events[..] else { panic!("{events:?}") };
    assert_eq!(goodbye.reason.as_str(), "checksum");
}

#[test]
fn a_silent_leader_is_given_up() {
    let begun = Instant::now();
    let (_, mut follower) = connected(begun);
    let at = follower.poll_timeout().expect("a time");
    // A slow disk of our own is no silence of its.
    follower.resume_listening(at);
    follower.handle_timeout(at).expect("not yet");
    let at = follower.poll_timeout().expect("a time");
    assert!(matches!(follower.handle_timeout(at), Err(ConnectionError::PeerSilent(_))));
    assert!(follower.is_closed());
}

#[test]
fn a_probe_is_answered_once() {
    let begun = Instant::now();
    let probe = Probe {
        node: "follower".parse().expect("a name"),
        agent_version: PlainText::fitted("0.1.0"),
    };
    let ask = || {
        let (mut leader, mut prober) = (leader(begun), Prober::new(probe.clone()));
        while let Some(bytes) = prober.poll_transmit() {
            leader.handle_bytes(now(begun), &bytes).expect("fair");
        }
        assert_eq!(leader.poll_event(), Some(SenderEvent::Probed(probe.clone())));
        (leader, prober)
    };
    let locales: Vec<LocaleName> = ["C", "de_DE.UTF-8"].map(LocaleName::fitted).to_vec();
    let answer = || ProbeReply {
        may_follow: true,
        may_bootstrap: false,
        first: Lsn(0x300_0000),
        locales: locales.clone(),
    };
    let (mut leader, mut prober) = ask();
    assert!(leader.send_backup(now(begun), BackupPart::Ended(end())).is_err(), "not asked for");
    leader.answer_probe(now(begun), answer()).expect("was asked");
    assert!(leader.answer_probe(now(begun), answer()).is_err(), "once");
    assert!(leader.is_closed());
    while let Some(bytes) = leader.poll_transmit() {
        prober.handle_bytes(&bytes).expect("fair");
    }
    let Some(ProbeAnswer::Standing(standing)) = prober.answer() else { panic!("no answer") };
    assert_eq!((standing.system_identifier, standing.stamp), (42, Stamp(1)));
    assert!(standing.may_follow && !standing.may_bootstrap);
    assert_eq!(standing.locales, locales);

    // However many a server has, the answer stays within what a stranger may be sent.
    let (mut leader, mut prober) = ask();
    let many = vec![LocaleName::fitted(&"x".repeat(1000)); 1000];
    leader.answer_probe(now(begun), ProbeReply { locales: many, ..answer() }).expect("was asked");
    while let Some(bytes) = leader.poll_transmit() {
        prober.handle_bytes(&bytes).expect("fair");
    }
    let Some(ProbeAnswer::Standing(standing)) = prober.answer() else { panic!("no answer") };
    assert_eq!(standing.locales.len(), LOCALES_MAX);

    let (mut leader, mut prober) = ask();
    leader.refuse(RefusalCode::NOT_ALLOWED, "who are you?").expect("was asked");
    while let Some(bytes) = leader.poll_transmit() {
        prober.handle_bytes(&bytes).expect("fair");
    }
    assert!(matches!(prober.answer(), Some(ProbeAnswer::Refused(_))));

    let (_, mut prober) = ask();
    let goodbye = Message::Goodbye(Goodbye { reason: PlainText::fitted("no") });
    assert!(prober.handle_bytes(&goodbye.encode().concat()).is_err(), "no answer to a probe");
}
