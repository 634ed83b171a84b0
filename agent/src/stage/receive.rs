//! Receive: WAL from a peer into this node's archive.
//!
//! A task owns the connection, a thread the archive. What arrives is decoded and every record
//! checked *before* it is written; it is acknowledged as durable when `fdatasync` has returned. A
//! chunk that does not check out costs the connection: nothing of it is written, and the next
//! connection goes on from what the archive holds.

mod early;

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot, watch};
use walferry_archive::{Archive, ArchiveError, ArchiveReader, ArchiveWriter};
use walferry_wire::{
    Backoff, Chunk, FollowerPositions, Hello, Limits, PlainText, ProbeAnswer, Receiver,
    ReceiverConfig, ReceiverEvent, RefusalCode, Refused, Resume,
};
use walfmt::{Lsn, RawRecord, RecordStream, SegmentNumber, Step, Stop, StreamStart};

use self::early::EarlySync;
use crate::identity::Identity;
use crate::node::Node;
use crate::peer;
use crate::positions::Position;
use crate::stage::State;
use crate::stage::heart::Heart;
use crate::stage::send::WRITE_LIMIT;
use crate::tls::{self, PeerAddress};
use crate::trouble::{Kind, Trouble};

pub(super) const STAGE: &str = "receive";
/// Chunks between connection and archive. The leader's window bounds their bytes.
const QUEUE_CHUNKS: usize = 256;
const READ_BYTES: usize = 256 << 10;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often a node without WAL looks whether a peer has told whose it will have.
const IDENTITY_PAUSE: Duration = Duration::from_millis(50);
/// A peer that no longer has our WAL may get it back from elsewhere; it is asked again this often.
const REFUSED_PAUSE: Duration = Duration::from_secs(5);

/// From the connection to the archive's thread.
enum Parcel {
    /// A connection begins: where does the archive end?
    Begin(oneshot::Sender<Begin>),
    Chunk {
        connection: u64,
        chunk: Chunk,
    },
}

/// Where a connection goes on.
struct Begin {
    connection: u64,
    resume: Resume,
    positions: FollowerPositions,
}

/// The thread's end of the queue.
pub(crate) struct Inbox {
    parcels: mpsc::Receiver<Parcel>,
    failed: watch::Sender<Option<(u64, Trouble)>>,
    outlet: Outlet,
}

/// The connection's end of the queue.
#[derive(Clone)]
pub(crate) struct Outlet {
    parcels: mpsc::Sender<Parcel>,
    failed: watch::Receiver<Option<(u64, Trouble)>>,
}

impl Inbox {
    pub(crate) fn new() -> Self {
        let (send, parcels) = mpsc::channel(QUEUE_CHUNKS);
        let (failed, watch) = watch::channel(None);
        Self { parcels, failed, outlet: Outlet { parcels: send, failed: watch } }
    }

    pub(crate) fn outlet(&self) -> Outlet {
        self.outlet.clone()
    }
}

/// Connects to the peers in turn until the node stops.
pub(crate) async fn run(node: Arc<Node>, peers: Vec<String>, outlet: Outlet) {
    let heart = node.hearts.start("receive, connection", &[]);
    let mut backoff = Backoff::default();
    let mut peers = peers.iter().cycle();
    while !node.stopping() {
        heart.beat();
        if node.receiving_ended() {
            // An answer says that all parcels before the question are durable.
            let (ask, answer) = oneshot::channel();
            heart.rest(); // the archive's thread has a heart of its own
            let asked = outlet.parcels.send(Parcel::Begin(ask)).await.is_ok();
            let written = asked && answer.await.is_ok();
            heart.beat();
            if written || outlet.parcels.is_closed() {
                node.stages.set(STAGE, State::Waiting, "the store is being promoted, or has been");
                node.set_receiving_quiet();
            }
            node.pause(RETRY_PAUSE).await;
            continue;
        }
        if outlet.parcels.is_closed() {
            // The archive's thread has said why it stopped; a promotion must not wait for it.
            node.set_receiving_quiet();
            node.pause(RETRY_PAUSE).await;
            continue;
        }
        let Some(peer) = peers.next() else { return };
        if node.identity().is_none()
            && let Err(trouble) = identify(&node, peer).await
        {
            heart.rest();
            node.stages.fail(STAGE, State::Retrying, &trouble);
            node.pause(backoff.next_delay(rand::random())).await;
            continue;
        }
        node.metrics.count_reconnect();
        let begun = Instant::now();
        let durable = node.positions.get(Position::Durable);
        let ended = follow(&node, peer, &outlet, &heart).await;
        // A connection that brought WAL was a good one, however short: the next comes soon.
        if node.positions.get(Position::Durable) > durable {
            backoff = Backoff::default();
        }
        let pause = match ended {
            Ok(Ended::Refused(refused)) => {
                refused_state(&node, peer, &refused);
                // A peer that is starting is ready soon.
                let soon = refused.code == RefusalCode::NOT_READY;
                if soon { backoff.next_delay(rand::random()) } else { REFUSED_PAUSE }
            }
            Ok(Ended::Closed(reason)) => {
                let trouble = Trouble::io(format_args!("peer {peer}"), reason);
                node.stages.fail(STAGE, State::Retrying, &trouble);
                backoff.connection_lived(begun.elapsed());
                backoff.next_delay(rand::random())
            }
            Err(trouble) => {
                node.stages.fail(STAGE, State::Retrying, &trouble);
                backoff.connection_lived(begun.elapsed());
                backoff.next_delay(rand::random())
            }
        };
        heart.rest();
        node.pause(pause).await;
    }
}

/// A node that has no WAL yet and no store takes that of the peer, from where the peer's archive
/// begins.
async fn identify(node: &Arc<Node>, peer: &str) -> Result<(), Trouble> {
    let standing = match peer::probe(node.tls.as_ref(), peer, node.name()).await?.answer {
        ProbeAnswer::Standing(standing) => standing,
        ProbeAnswer::Refused(refused) => {
            let words = format_args!("peer {peer} refused this node: {}", refused.text);
            return Err(Trouble::new(Kind::Refused, words));
        }
    };
    if !standing.may_follow {
        let words = format_args!("peer {peer} does not let this node have WAL");
        return Err(Trouble::new(Kind::Refused, words)
            .with_hint("it decides by its own [tls.roles]: add \"follower\" there"));
    }
    let identity = Identity::of_standing(&standing)?.filter(|_| standing.first.is_valid());
    let Some(identity) = identity else {
        let words = format_args!("peer {peer} does not know yet whose WAL it has");
        return Err(Trouble::new(Kind::NotThere, words).with_hint("it is asked again"));
    };
    node.begin_archive_at(standing.first);
    let (node, woken) = (Arc::clone(node), node);
    let opened = tokio::task::spawn_blocking(move || node.open_archive(identity).map(drop));
    opened.await.map_err(|error| Trouble::io("opening the archive", error))??;
    woken.positions.wake(); // the archive's thread waits for this
    Ok(())
}

/// Whether a peer answers, as a leader does: for a promotion, which must know that it does not.
pub(crate) async fn answers(peer: &str) -> bool {
    let Ok(PeerAddress { address, .. }) = PeerAddress::parse(peer) else { return false };
    matches!(tokio::time::timeout(CONNECT_LIMIT, TcpStream::connect(address)).await, Ok(Ok(_)))
}

fn archive_gone() -> Trouble {
    Trouble::io("archive", "its thread has stopped")
}

enum Ended {
    Closed(String),
    Refused(Refused),
}

fn refused_state(node: &Node, peer: &str, refused: &Refused) {
    let (state, hint) = match refused.code {
        RefusalCode::NOT_ARCHIVED => (
            State::NeedsBootstrap,
            match node.config.store {
                Some(_) => {
                    "the peer's archive no longer reaches back to where this node is: bootstrap it \
                     again"
                }
                None => {
                    "the peer's archive no longer reaches back to where this node is: move its \
                     archive directory away and restart it, it begins anew"
                }
            },
        ),
        RefusalCode::DIVERGED | RefusalCode::AHEAD_OF_LEADER => (
            State::Diverged,
            "the two nodes have different histories: one of them was restored or promoted",
        ),
        RefusalCode::NOT_READY => (State::Waiting, "the peer is starting"),
        RefusalCode::NOT_ALLOWED => (
            State::Retrying,
            "the peer decides by the name in this node's certificate and by its own [tls.roles]",
        ),
        _ => (State::Retrying, "check that [source] peers names the right agent"),
    };
    let trouble = Trouble::new(
        Kind::Refused,
        format_args!("peer {peer} refused this node: {}", refused.text),
    )
    .with_hint(hint);
    node.stages.fail(STAGE, state, &trouble);
}

/// The life of one connection: moves bytes and knows no rules.
async fn follow(node: &Node, peer: &str, outlet: &Outlet, heart: &Heart) -> Result<Ended, Trouble> {
    let lost = |error: &dyn std::fmt::Display| Trouble::io(format_args!("peer {peer}"), error);
    let begin = {
        let (ask, answer) = oneshot::channel();
        heart.rest(); // the archive's thread has a heart of its own
        outlet.parcels.send(Parcel::Begin(ask)).await.map_err(|_| archive_gone())?;
        answer.await.map_err(|_| archive_gone())?
    };
    let mut connection = tls::connect(node.tls.as_ref(), peer).await?; // has its own limits
    let config = ReceiverConfig {
        hello: hello(node, begin.resume)?,
        positions: begin.positions,
        limits: Limits::default(),
    };
    let mut receiver = Receiver::new(config, Instant::now()).map_err(|error| lost(&error))?;
    let mut changes = node.positions.subscribe();
    let mut failed = outlet.failed.clone();
    let mut buffer = vec![0; READ_BYTES];
    let mut reason = match node.tls {
        Some(_) => "closed by the peer".to_owned(),
        None => "closed by the peer before it answered; it may want TLS, see [tls]".to_owned(),
    };
    loop {
        heart.beat();
        while let Some(event) = receiver.poll_event() {
            match event {
                ReceiverEvent::Welcomed(welcome) => {
                    if let Some(objection) = connection.objection_to_name(&welcome.node) {
                        return Err(lost(&objection));
                    }
                    "closed by the peer".clone_into(&mut reason);
                    node.set_server_version(welcome.server_version_num);
                    let detail = format!("from {} at {peer}", welcome.node.as_str());
                    node.stages.set(STAGE, State::Streaming, detail);
                }
                ReceiverEvent::Data(data) => {
                    note_leader(node, data.stamp, data.source_durable);
                    let parcel = Parcel::Chunk { connection: begin.connection, chunk: data.chunk };
                    heart.rest(); // as long as the queue is full
                    let sent = outlet.parcels.send(parcel).await;
                    heart.beat();
                    sent.map_err(|_| archive_gone())?;
                }
                ReceiverEvent::Heartbeat(heartbeat) => {
                    node.positions.advance(Position::ServerFlush, heartbeat.positions.server_flush);
                    note_leader(node, heartbeat.stamp, heartbeat.positions.source_durable);
                }
                ReceiverEvent::Refused(refused) => return Ok(Ended::Refused(refused)),
                ReceiverEvent::Goodbye(goodbye) => reason = goodbye.reason.to_string(),
            }
        }
        // Looked at in every round: of the events that wake us at once, only one is taken.
        if (node.stopping() || node.receiving_ended()) && !receiver.is_closed() {
            reason = "this node stops receiving".to_owned();
            receiver.goodbye(&reason);
        }
        while let Some(bytes) = receiver.poll_transmit() {
            tokio::time::timeout(WRITE_LIMIT, connection.write(&bytes))
                .await
                .map_err(|_| lost(&"takes nothing"))?
                .map_err(|error| lost(&error))?;
        }
        if receiver.is_closed() {
            connection.close().await;
            return Ok(Ended::Closed(reason));
        }
        let deadline = receiver.poll_timeout().unwrap_or_else(Instant::now);
        tokio::select! {
            read = connection.stream.read(&mut buffer) => match read.map_err(|error| lost(&error))? {
                0 => return Ok(Ended::Closed(reason)),
                length => receiver
                    .handle_bytes(Instant::now(), &buffer[..length])
                    .map_err(|error| lost(&error))?,
            },
            _ = changes.changed() => {
                let positions = follower_positions(node);
                receiver.set_positions(Instant::now(), positions).map_err(|error| lost(&error))?;
            }
            changed = failed.changed() => {
                changed.map_err(|_| archive_gone())?;
                let trouble = failed.borrow_and_update().clone();
                if let Some((connection, trouble)) = trouble
                    && connection == begin.connection
                {
                    return Err(trouble);
                }
            }
            () = tokio::time::sleep_until(deadline.into()) => {
                receiver.handle_timeout(Instant::now()).map_err(|error| lost(&error))?;
            }
        }
    }
}

fn hello(node: &Node, resume: Resume) -> Result<Hello, Trouble> {
    let identity = node
        .identity()
        .ok_or_else(|| Trouble::misuse("this node does not know yet whose WAL it wants"))?;
    Ok(Hello {
        node: node.name(),
        agent_version: PlainText::fitted(env!("CARGO_PKG_VERSION")),
        system_identifier: identity.system_identifier,
        timeline: identity.timeline,
        segment_size: identity.segment_size,
        server_major: identity.version.major,
        resume,
    })
}

/// The leader said how far it is, and when.
fn note_leader(node: &Node, stamp: walferry_wire::Stamp, source_durable: Lsn) {
    node.with_lag_clock(|lag| lag.note(Instant::now(), stamp, source_durable));
    node.positions.advance(Position::SourceDurable, source_durable);
}

/// Read from the last to the first, so that no position can pass the one it depends on meanwhile.
fn follower_positions(node: &Node) -> FollowerPositions {
    let replayed = node.positions.get(Position::Replayed);
    let durable = node.positions.get(Position::Durable);
    let received = node.positions.get(Position::Received);
    FollowerPositions::new(received, durable, replayed)
        .expect("positions are read against their order, and only grow")
}

/// The archive's thread: writes what arrives, until the node stops or the archive cannot be
/// written.
pub(crate) fn write(node: &Arc<Node>, inbox: Inbox) {
    let Inbox { mut parcels, failed, outlet } = inbox;
    drop(outlet);
    let heart = node.hearts.start("receive, archive", &[STAGE]);
    let mut connection = 0;
    while !node.stopping() && !parcels.is_closed() {
        if node.identity().is_none() && node.config.store.is_none() {
            heart.rest(); // the connection finds out whose WAL this will be
            node.positions.wait_beyond(Position::Durable, Lsn::INVALID, IDENTITY_PAUSE);
            continue;
        }
        heart.beat();
        let kept = Keeper::open(node)
            .map_err(KeepError::Archive)
            .and_then(|mut keeper| keeper.keep(&mut parcels, &mut connection, &heart));
        let trouble = match kept {
            Ok(()) => return,
            Err(KeepError::Chunk(trouble)) => trouble,
            Err(KeepError::Archive(trouble)) if trouble.kind() == Kind::Io => {
                node.stages.fail(STAGE, State::Retrying, &trouble);
                node.sleep(RETRY_PAUSE);
                trouble
            }
            Err(KeepError::Archive(trouble)) => {
                node.stages.fail(STAGE, State::Stopped, &trouble);
                return;
            }
        };
        // What this connection still sends is for nobody.
        let _ = failed.send(Some((connection, trouble)));
        connection += 1;
    }
}

/// Who is to blame when a parcel was not written.
enum KeepError {
    /// The peer: its connection is closed, and the archive is as it was.
    Chunk(Trouble),
    /// The archive itself.
    Archive(Trouble),
}

/// The archive being written, and the records in it.
struct Keeper<'a> {
    node: &'a Node,
    writer: ArchiveWriter,
    chain: Chain,
    wal: Vec<u8>,
    early: EarlySync,
}

impl<'a> Keeper<'a> {
    fn open(node: &'a Node) -> Result<Self, Trouble> {
        let not_there = || {
            Trouble::misuse("the archive's cluster is not known")
                .with_hint("make the store with `walferry bootstrap`")
        };
        let archive = node.archive().ok_or_else(not_there)?.clone();
        let identity = node.identity().ok_or_else(not_there)?;
        let begin = node.archive_begin().filter(|_| node.config.store.is_none());
        let is_empty = archive.last_segment(identity.timeline)?.is_none();
        if is_empty && begin.is_none() {
            return Err(Trouble::misuse("the archive is empty, and the store needs its WAL")
                .with_hint("bootstrap the store again: `walferry bootstrap` fills the archive"));
        }
        let mut writer = node.open_writer(&archive, begin.unwrap_or_default())?;
        let chain = match begin.filter(|_| is_empty) {
            Some(begin) => Chain::new(&archive, begin),
            None => Chain::of_archive(&archive, &mut writer)?,
        };
        let durable = writer.sync()?;
        node.positions.advance(Position::Received, durable);
        node.positions.advance(Position::Durable, durable);
        let early = EarlySync::start(Arc::clone(node.files()))
            .map_err(|error| Trouble::io("starting a thread", error))?;
        Ok(Self { node, writer, chain, wal: Vec::new(), early })
    }

    /// Writes parcels until the queue closes or something is wrong with one.
    fn keep(
        &mut self,
        parcels: &mut mpsc::Receiver<Parcel>,
        connection: &mut u64,
        heart: &Heart,
    ) -> Result<(), KeepError> {
        loop {
            heart.rest();
            let Some(parcel) = parcels.blocking_recv() else { return Ok(()) };
            let mut next = Some(parcel);
            while let Some(parcel) = next {
                heart.beat();
                match parcel {
                    Parcel::Begin(answer) => {
                        // A promotion rests on this: what came before is durable when it is answered.
                        self.sync()?;
                        *connection += 1;
                        let begin = Begin {
                            connection: *connection,
                            resume: self.chain.resume(self.writer.content_end()),
                            positions: follower_positions(self.node),
                        };
                        // If nobody waits any more, nothing follows either.
                        let _ = answer.send(begin);
                    }
                    // What an earlier connection had sent before it failed.
                    Parcel::Chunk { connection: of, .. } if of != *connection => {}
                    Parcel::Chunk { chunk, .. } => self.append(&chunk)?,
                }
                next = parcels.try_recv().ok();
            }
            self.sync()?;
        }
    }

    /// Makes what was written durable, and says so.
    fn sync(&mut self) -> Result<(), KeepError> {
        self.check_early()?;
        let begun = Instant::now();
        let durable = self.writer.sync().map_err(|error| KeepError::Archive(error.into()))?;
        if durable > self.node.positions.get(Position::Durable) {
            self.node.metrics.observe_flush(begun.elapsed());
            self.node.positions.advance(Position::Durable, durable);
        }
        Ok(())
    }

    fn check_early(&self) -> Result<(), KeepError> {
        match self.early.take_failure() {
            Some(error) => Err(KeepError::Archive(ArchiveError::from(error).into())),
            None => Ok(()),
        }
    }

    fn append(&mut self, chunk: &Chunk) -> Result<(), KeepError> {
        self.check_early()?;
        self.wal.clear();
        let received = self
            .writer
            .receive(chunk.start, chunk.starts_frame, &chunk.bytes, &mut self.wal)
            .map_err(|error| match error {
                ArchiveError::File(_) | ArchiveError::Stopped | ArchiveError::Corrupt { .. } => {
                    KeepError::Archive(error.into())
                }
                _ => KeepError::Chunk(error.into()),
            })?;
        if received.end() != chunk.end {
            let words = format!(
                "a chunk from {} says it ends at {}, and holds WAL up to {}",
                chunk.start,
                chunk.end,
                received.end()
            );
            return Err(KeepError::Chunk(Trouble::new(Kind::Corrupt, words)));
        }
        self.chain.push(chunk.start, &self.wal).map_err(|stop| {
            let words = format!("WAL from the peer: {stop}");
            let hint = "nothing of it was written; the peer's archive should be verified";
            KeepError::Chunk(Trouble::new(Kind::Corrupt, words).with_hint(hint))
        })?;
        let end = received.commit().map_err(|error| KeepError::Archive(error.into()))?;
        self.early.appended(chunk.bytes.len(), || self.writer.path());
        self.node.metrics.count_archived(self.wal.len() as u64, chunk.bytes.len() as u64);
        self.node.positions.advance(Position::Received, end);
        Ok(())
    }
}

/// The records at the archive's end: what proves to a leader that its history is ours, and what
/// the next chunk is held against.
pub(crate) struct Chain {
    stream: RecordStream,
    last: Option<LastRecord>,
    /// CRC-32C of the bytes after the last whole record.
    tail_crc: u32,
}

#[derive(Clone, Copy)]
struct LastRecord {
    start: Lsn,
    end: Lsn,
    crc: u32,
}

impl Chain {
    /// Reads the archive's last segment, and earlier ones if no record ends in it. What a crash
    /// left unchecked and does not check out is cut off.
    pub(crate) fn of_archive(
        archive: &Archive,
        writer: &mut ArchiveWriter,
    ) -> Result<Self, Trouble> {
        let size = archive.segment_size();
        let first = archive
            .extent(writer.timeline())?
            .and_then(|extent| extent.first.number(size))
            .unwrap_or_default();
        let mut number = size.segment_before(writer.content_end()).max(first);
        loop {
            let begin = size.start_of(number);
            let mut chain = Self::new(archive, begin);
            match chain.read(archive, writer, begin) {
                Ok(()) if chain.last.is_some() || number <= first => return Ok(chain),
                Ok(()) => number = SegmentNumber(number.0 - 1),
                Err(ChainError::Archive(trouble)) => return Err(trouble),
                // What the last frame holds has no checksum yet, if a crash left it unfinished.
                Err(ChainError::Record(stop))
                    if writer.content_end() > writer.recovery().unchecked_from =>
                {
                    tracing::warn!("after a crash: {stop}; cut off, to be received again");
                    writer.cut_back(stop.at.max(writer.recovery().unchecked_from))?;
                }
                Err(ChainError::Record(stop)) => {
                    return Err(Trouble::new(Kind::Corrupt, format_args!("archive: {stop}"))
                        .with_hint("move the archive's last segments away and bootstrap again"));
                }
            }
        }
    }

    pub(crate) fn new(archive: &Archive, begin: Lsn) -> Self {
        let mut stream = RecordStream::new(StreamStart {
            lsn: begin,
            segment_size: archive.segment_size(),
            system_identifier: Some(archive.system_identifier()),
        });
        // All that comes is known to be whole: whatever does not check out is corrupt.
        stream.set_known_end(Lsn(u64::MAX));
        Self { stream, last: None, tail_crc: 0 }
    }

    fn read(
        &mut self,
        archive: &Archive,
        writer: &ArchiveWriter,
        begin: Lsn,
    ) -> Result<(), ChainError> {
        let mut reader = ArchiveReader::open(archive, writer.timeline(), begin)
            .map_err(|error| ChainError::Archive(error.into()))?;
        let bound = writer.content_end();
        while let Some(chunk) =
            reader.next(bound).map_err(|error| ChainError::Archive(error.into()))?
        {
            self.push(chunk.start, chunk.wal).map_err(ChainError::Record)?;
        }
        Ok(())
    }

    /// Checks the records in WAL that follows what was pushed before.
    pub(crate) fn push(&mut self, start: Lsn, wal: &[u8]) -> Result<(), Stop> {
        let before = self.stream.record_end();
        self.stream.push(wal);
        loop {
            match self.stream.poll() {
                Step::Record(record) => {
                    let RawRecord { start, end, header, .. } = record;
                    self.last = Some(LastRecord { start, end, crc: header.crc });
                }
                Step::NeedMore => break,
                Step::Stop(stop) => return Err(stop),
            }
        }
        let end = self.stream.record_end();
        let crc = if end > before { 0 } else { self.tail_crc };
        let skip = end.bytes_since(start).min(wal.len() as u64) as usize;
        self.tail_crc = crc32c::crc32c_append(crc, &wal[skip..]);
        Ok(())
    }

    fn resume(&self, content_end: Lsn) -> Resume {
        match self.last {
            Some(last) => Resume::Continue {
                record_start: last.start,
                record_end: last.end,
                record_crc: last.crc,
                content_end,
                tail_crc: self.tail_crc,
            },
            None => Resume::From(content_end),
        }
    }
}

enum ChainError {
    Archive(Trouble),
    Record(Stop),
}
