//! A leader and a follower joined by a bad network, with a clock that only the test moves.
//!
//! Faults are drawn from a seed: delays, portions of any size, cuts at any byte, stretches of bytes
//! that arrive twice or not at all, a disk that syncs late. The follower reconnects and resumes each
//! time. What its archive holds in the end must be the leader's, chunk for chunk.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;
use walferry_wire::*;
use walfmt::{Lsn, SegmentSize, Timeline};

const SEEDS: u64 = 40;
const WAL: u64 = 3 << 20;

/// A small generator of random numbers (SplitMix64), so that a seed means the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        n != 0 && self.below(n) == 0
    }
}

/// Chances of one in so many, for each portion of bytes on its way; 0 is never.
#[derive(Clone, Copy)]
struct Faults {
    cut: u64,
    repeated: u64,
    lost: u64,
}

/// One direction of a connection: what is on its way and when it arrives.
#[derive(Default)]
struct Pipe {
    portions: VecDeque<(Instant, Vec<u8>)>,
}

impl Pipe {
    fn arrived(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.portions.pop_front_if(|(at, _)| *at <= now).map(|(_, bytes)| bytes)
    }

    fn push(&mut self, at: Instant, bytes: Vec<u8>) {
        let at = self.portions.back().map_or(at, |(last, _)| at.max(*last));
        self.portions.push_back((at, bytes));
    }
}

struct Connection {
    sender: Sender,
    receiver: Receiver,
    to_follower: Pipe,
    to_leader: Pipe,
    /// Which of the leader's chunks goes next, and whether it is this connection's first.
    next_chunk: usize,
    first: bool,
}

struct Pair {
    random: Random,
    faults: Faults,
    injected: usize,
    now: Now,
    /// The leader's archive: chunks that follow each other, new ones all the time.
    leader: Vec<Chunk>,
    leader_end: u64,
    /// The follower's archive. What is not durable is there as well: nobody pulls a plug here.
    follower: Vec<Chunk>,
    durable: Lsn,
    acknowledged: FollowerPositions,
    connection: Option<Connection>,
    connections: usize,
    errors: Vec<ConnectionError>,
    on_the_way_max: usize,
}

impl Pair {
    fn new(seed: u64, faults: Faults) -> Self {
        Self {
            random: Random(seed),
            faults,
            injected: 0,
            now: Now { monotonic: Instant::now(), wall: Stamp(0) },
            leader: Vec::new(),
            leader_end: size().bytes(),
            follower: Vec::new(),
            durable: Lsn(0),
            acknowledged: FollowerPositions::default(),
            connection: None,
            connections: 0,
            errors: Vec::new(),
            on_the_way_max: 0,
        }
    }

    /// Until the follower has acknowledged all as durable.
    fn run(&mut self) {
        let end = Lsn(size().bytes() + WAL);
        for _ in 0..200_000 {
            self.step();
            if self.acknowledged.durable() == end {
                return;
            }
        }
        panic!("not done after {} connections, errors {:?}", self.connections, self.errors);
    }

    fn step(&mut self) {
        let micros = self.random.below(20_000);
        self.now.monotonic += Duration::from_micros(micros);
        self.now.wall.0 += micros as i64;
        self.write_wal();
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect(),
        };
        match self.exchange(&mut connection) {
            Ok(true) => self.connection = Some(connection),
            Ok(false) => {}
            Err(error) => self.errors.push(error),
        }
    }

    fn write_wal(&mut self) {
        let end = size().bytes() + WAL;
        while self.leader_end < end && self.random.one_in(2) {
            let start = self.leader_end;
            let border = (start / size().bytes() + 1) * size().bytes();
            let stop = (start + self.random.below(20_000) * 8).min(border).min(end);
            let starts_frame = start.is_multiple_of(size().bytes()) || self.random.one_in(8);
            let mut bytes = format!("{start:X}-{stop:X} ").into_bytes();
            bytes.resize(bytes.len() + self.random.below(50_000) as usize, b'.');
            self.leader.push(Chunk {
                timeline: Timeline(1),
                start: Lsn(start),
                // A frame starts with WAL.
                end: Lsn(if starts_frame { stop.max(start + 8) } else { stop }),
                starts_frame,
                bytes: Bytes::from(bytes),
            });
            self.leader_end = self.leader.last().expect("just pushed").end.0;
        }
    }

    fn follower_end(&self) -> Lsn {
        self.follower.last().map_or(Lsn(size().bytes()), |chunk| chunk.end)
    }

    fn positions(&self) -> FollowerPositions {
        let received = self.follower.last().map_or(Lsn(0), |chunk| chunk.end);
        FollowerPositions::new(received, self.durable, Lsn(self.durable.0 / 2)).expect("in order")
    }

    fn leader_positions(&self) -> LeaderPositions {
        let end = Lsn(self.leader_end);
        LeaderPositions { source_durable: end, appended: end, server_flush: end }
    }

    fn connect(&mut self) -> Connection {
        self.connections += 1;
        self.acknowledged = FollowerPositions::default();
        let resume = match self.follower.last() {
            None => Resume::From(Lsn(size().bytes())),
            Some(last) => Resume::Continue {
                record_start: Lsn(last.end.0 - 8),
                record_end: last.end,
                record_crc: 1,
                content_end: last.end,
                tail_crc: 0,
            },
        };
        let hello = Hello {
            node: "follower".parse().expect("a name"),
            agent_version: PlainText::fitted("0"),
            system_identifier: 1,
            timeline: Timeline(1),
            segment_size: size(),
            server_major: 15,
            resume,
        };
        let identity = Identity {
            node: "leader".parse().expect("a name"),
            agent_version: PlainText::fitted("0"),
            system_identifier: 1,
            timeline: Timeline(1),
            segment_size: size(),
            server_major: 15,
            server_version_num: 0,
        };
        let limits =
            Limits { window_bytes: 200_000, acknowledge_bytes: 50_000, ..Limits::default() };
        let sender = SenderConfig { identity, positions: self.leader_positions(), limits };
        let receiver = ReceiverConfig { hello, positions: self.positions(), limits };
        Connection {
            sender: Sender::new(sender, self.now),
            receiver: Receiver::new(receiver, self.now.monotonic).expect("a fair hello"),
            to_follower: Pipe::default(),
            to_leader: Pipe::default(),
            next_chunk: self.follower.len(),
            first: true,
        }
    }

    /// One round: both shells, and the network between them. False after a cut.
    fn exchange(&mut self, connection: &mut Connection) -> Result<bool, ConnectionError> {
        let Connection { sender, receiver, to_follower, to_leader, next_chunk, first } = connection;
        let now = self.now.monotonic;

        while let Some(bytes) = to_follower.arrived(now) {
            let handled = receiver.handle_bytes(now, &bytes);
            while let Some(event) = receiver.poll_event() {
                if let ReceiverEvent::Data(data) = event {
                    assert_eq!(data.chunk.start, self.follower_end());
                    self.follower.push(data.chunk);
                }
            }
            handled?;
        }
        if self.random.one_in(4) {
            self.durable = self.positions().received();
        }
        receiver.set_positions(now, self.positions()).expect("they only grow");
        receiver.handle_timeout(now)?;

        while let Some(bytes) = to_leader.arrived(now) {
            sender.handle_bytes(self.now, &bytes)?;
        }
        while let Some(event) = sender.poll_event() {
            match event {
                SenderEvent::CheckResume(_) => {
                    let (first, appended) = (Lsn(size().bytes()), Lsn(self.leader_end));
                    let archived = Archived { first, appended };
                    sender.resume_accepted(self.now, archived).expect("it asked");
                }
                SenderEvent::Acknowledged { positions, .. } => self.acknowledged = positions,
                other => panic!("{other:?}"),
            }
        }
        sender.set_positions(self.leader_positions()).expect("they only grow");
        while sender.can_send() {
            let Some(chunk) = self.leader.get(*next_chunk) else { break };
            // What is resumed within a frame is compressed again: here, said to start one.
            let starts_frame = chunk.starts_frame || *first;
            sender.send_data(self.now, Chunk { starts_frame, ..chunk.clone() }).expect("fair");
            *next_chunk += 1;
            *first = false;
        }
        sender.handle_timeout(self.now)?;

        let mut whole = true;
        while let Some(bytes) = receiver.poll_transmit() {
            let faults = Faults { repeated: 0, lost: 0, ..self.faults };
            whole &= self.carry(faults, to_leader, &bytes);
        }
        while let Some(bytes) = sender.poll_transmit() {
            whole &= self.carry(self.faults, to_follower, &bytes);
        }
        let on_the_way = to_follower.portions.iter().map(|(_, bytes)| bytes.len()).sum();
        self.on_the_way_max = self.on_the_way_max.max(on_the_way);
        Ok(whole)
    }

    /// Sends bytes on their way in portions. False if the connection was cut: the rest is gone.
    fn carry(&mut self, faults: Faults, pipe: &mut Pipe, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let len = (1 + self.random.below(40_000) as usize).min(bytes.len());
            let (portion, rest) = bytes.split_at(len);
            bytes = rest;
            if self.random.one_in(faults.cut) {
                self.injected += 1;
                return false;
            }
            let at = self.now.monotonic + Duration::from_micros(self.random.below(50_000));
            // Damage comes once in a run, so that the error after it can be told apart.
            let unharmed = self.injected == 0;
            if unharmed && self.random.one_in(faults.lost) {
                self.injected += 1;
                continue;
            }
            pipe.push(at, portion.to_vec());
            if unharmed && self.random.one_in(faults.repeated) {
                self.injected += 1;
                pipe.push(at, portion.to_vec());
            }
        }
        true
    }
}

fn size() -> SegmentSize {
    SegmentSize::new(1 << 20).expect("a legal size")
}

/// What is compared between the archives: a resumed chunk may have begun a frame of its own.
fn wal(chunks: &[Chunk]) -> Vec<(Lsn, Lsn, &Bytes)> {
    chunks.iter().map(|chunk| (chunk.start, chunk.end, &chunk.bytes)).collect()
}

#[test]
fn without_faults_one_connection_does_it_all() {
    let mut pair = Pair::new(1, Faults { cut: 0, repeated: 0, lost: 0 });
    pair.run();
    assert_eq!((pair.connections, pair.errors.len()), (1, 0));
    assert_eq!(wal(&pair.follower), wal(&pair.leader));
    assert!(pair.follower == pair.leader, "frames too");
    // The window and one message: 200 kB and 50 kB.
    assert!(pair.on_the_way_max < 260_000, "{}", pair.on_the_way_max);
}

#[test]
fn cut_at_any_byte_the_archives_are_the_same_in_the_end() {
    let mut injected = 0;
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let mut pair = Pair::new(seed, Faults { cut: 60, repeated: 0, lost: 0 });
        pair.run();
        assert!(pair.errors.is_empty(), "{:?}", pair.errors);
        assert_eq!(wal(&pair.follower), wal(&pair.leader));
        // Both directions may be cut at once.
        assert!(pair.connections <= pair.injected + 1);
        injected += pair.injected;
    }
    println!("{SEEDS} seeds, {injected} connections cut");
    assert!(injected > 100);
}

/// TLS lets no such thing through; should it happen, it is an error and no WAL is invented. Only
/// the message that was hit can carry wrong bytes, and the archive's frame checksum tells those.
#[test]
fn repeated_or_lost_bytes_are_noticed() {
    let (mut injected, mut noticed) = (0, 0);
    for seed in 0..SEEDS {
        println!("seed {seed}");
        for (repeated, lost) in [(30, 0), (0, 30)] {
            let mut pair = Pair::new(seed, Faults { cut: 0, repeated, lost });
            for _ in 0..20_000 {
                pair.step();
                if !pair.errors.is_empty() {
                    break;
                }
            }
            injected += pair.injected;
            noticed += pair.errors.len();
            assert!(pair.errors.len() <= pair.injected, "{:?}", pair.errors);
            if pair.errors.is_empty() {
                // A whole heartbeat was hit, or nothing: no WAL is missing.
                assert_eq!(wal(&pair.follower), wal(&pair.leader));
                continue;
            }
            let untouched = pair.follower.len().saturating_sub(1);
            assert_eq!(wal(&pair.follower[..untouched]), wal(&pair.leader[..untouched]));
        }
    }
    println!("{SEEDS} seeds, {injected} stretches repeated or lost, {noticed} noticed");
    assert!(noticed > 20);
}
