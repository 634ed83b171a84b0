//! Send: the archive's bytes to followers.
//!
//! Each follower has a task, which owns the connection, and a thread, which reads the archive for
//! it; between them a short queue. Compression happens once, when the archive is written: what is
//! sent are the bytes of its files. Only a follower that resumes in the middle of a frame gets the
//! rest of that frame compressed anew, because the blocks it lacks lean on blocks it may have
//! packed differently.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc};
use walferry_archive::{Archive, ArchiveError, ArchiveReader, FrameCompressor};
use walferry_wire::{
    Archived, Chunk, Hello, Identity, LeaderPositions, Limits, NodeName, PlainText, ProbeReply,
    RefusalCode, Resume, Sender, SenderConfig, SenderEvent,
};
use walfmt::{Lsn, RecordStream, SegmentSize, Step, StreamStart, Timeline};

use crate::clock;
use crate::node::Node;
use crate::positions::Position;
use crate::stage::{State, backup, tail};
use crate::tls::{self, Connection, Role};
use crate::trouble::Trouble;

const STAGE: &str = "send";
const CONNECTIONS_MAX: usize = 32;
/// Connections on which nobody has shown a certificate yet. They take none of the others' places.
const STRANGERS_MAX: usize = 64;
/// While nothing is due by time.
const UNTIMED_PAUSE: Duration = Duration::from_secs(1);
/// So exact is a follower's lag in seconds.
const KEEP_TIME_EVERY: Duration = Duration::from_millis(100);
/// Chunks between the archive's reader and the connection; the window of the protocol bounds what
/// is under way.
const QUEUE_CHUNKS: usize = 2;
const READ_BYTES: usize = 64 << 10;
/// A peer that takes nothing for this long is gone.
pub(crate) const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// When nobody connects.
const SIGN_OF_LIFE_EVERY: Duration = Duration::from_secs(1);
/// How long a follower that is ahead of us waits for us to catch up, as after our own restart.
const AHEAD_LIMIT: Duration = Duration::from_secs(5);

/// What the archive's reader has for the connection.
enum Feed {
    Accepted(Archived),
    Refused(RefusalCode, String),
    Chunk(Chunk),
    Failed(String),
}

/// Takes connections until the node stops.
pub(crate) async fn run(node: Arc<Node>, listener: TcpListener) {
    node.stages.set(STAGE, State::Streaming, "");
    let heart = node.hearts.start("send, listener", &[]);
    tokio::spawn(keep_time(Arc::clone(&node)));
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
    while !node.stopping() {
        heart.beat();
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = tokio::time::sleep(SIGN_OF_LIFE_EVERY) => continue,
            () = node.stopped() => return,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                let trouble = Trouble::io("accepting a connection", error);
                node.stages.fail(STAGE, State::Retrying, &trouble);
                node.pause(Duration::from_secs(1)).await;
                continue;
            }
        };
        let Ok(stranger) = Arc::clone(&strangers).try_acquire_owned() else {
            tracing::warn!(%address, "more than {STRANGERS_MAX} connections begin: refused");
            continue;
        };
        // What failed before has passed: somebody else comes.
        node.stages.set(STAGE, State::Streaming, "");
        let (node, places) = (Arc::clone(&node), Arc::clone(&places));
        tokio::spawn(async move {
            let connection = match tls::accept(node.tls.as_ref(), stream).await {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(%address, "no connection: {error}");
                    return;
                }
            };
            drop(stranger);
            let Ok(place) = places.try_acquire_owned() else {
                tracing::warn!(%address, "more than {CONNECTIONS_MAX} connections: refused");
                return;
            };
            serve(&node, connection, address).await;
            drop(place);
        });
    }
}

/// Keeps the time by which followers are behind, until the node stops.
async fn keep_time(node: Arc<Node>) {
    while !node.stopping() {
        node.positions.note_time(clock::now(), node.positions.get(readable(&node)));
        node.pause(KEEP_TIME_EVERY).await;
    }
}

async fn serve(node: &Arc<Node>, connection: Connection, address: SocketAddr) {
    let mut follower = None;
    let ended = exchange(node, connection, &mut follower).await;
    let name = follower.as_ref().map_or("unknown", |name: &NodeName| name.as_str());
    match ended {
        Ok(reason) => tracing::info!(%address, follower = name, "connection ended: {reason}"),
        Err(error) => tracing::warn!(%address, follower = name, "connection lost: {error:#}"),
    }
    if let Some(name) = follower {
        node.positions.with_follower(name.as_str(), |follower| follower.connections -= 1);
    }
}

/// The life of one connection: moves bytes and knows no rules. Gives the reason of a proper end.
async fn exchange(
    node: &Arc<Node>,
    mut connection: Connection,
    follower: &mut Option<NodeName>,
) -> anyhow::Result<String> {
    let mut sender = Sender::new(
        SenderConfig {
            identity: identity(node),
            positions: leader_positions(node),
            limits: Limits::default(),
        },
        clock::now(),
    );
    let (feed, mut fed) = mpsc::channel::<Feed>(QUEUE_CHUNKS);
    let mut feed = Some(feed);
    let mut changes = node.positions.subscribe();
    let mut buffer = vec![0; READ_BYTES];
    let mut reason = String::from("closed by the follower");
    loop {
        while let Some(event) = sender.poll_event() {
            match event {
                SenderEvent::CheckResume(hello) => {
                    let tls = node.tls.as_ref();
                    if let Some(text) = connection.objection(tls, &hello.node, Role::Follower) {
                        sender.refuse(RefusalCode::NOT_ALLOWED, &text)?;
                        continue;
                    }
                    let name = hello.node.clone();
                    node.positions.with_follower(name.as_str(), |known| {
                        known.connections += 1;
                        known.needs = hello.resume.needs();
                    });
                    *follower = Some(name);
                    if let Some(feed) = feed.take() {
                        start_reader(node, hello, feed)?;
                    }
                }
                SenderEvent::Acknowledged { positions, .. } => {
                    if let Some(name) = follower {
                        node.positions.with_follower(name.as_str(), |follower| {
                            follower.acknowledge(
                                positions.received(),
                                positions.durable(),
                                positions.replayed(),
                            );
                        });
                    }
                }
                SenderEvent::BackupRequested(request) => {
                    let tls = node.tls.as_ref();
                    if let Some(text) = connection.objection(tls, &request.node, Role::Bootstrap) {
                        sender.refuse(RefusalCode::NOT_ALLOWED, &text)?;
                        continue;
                    }
                    return backup::serve(node, connection, sender, request).await;
                }
                SenderEvent::Probed(probe) => {
                    reason = format!("{} has asked how it stands", probe.node.as_str());
                    if let Some(text) = connection.objection_to_name(&probe.node) {
                        sender.refuse(RefusalCode::NOT_ALLOWED, &text)?;
                        continue;
                    }
                    let tls = node.tls.as_ref();
                    let [follow, bootstrap] = [Role::Follower, Role::Bootstrap]
                        .map(|role| connection.objection(tls, &probe.node, role).is_none());
                    let first = archive_begin(node).await;
                    let reply = ProbeReply {
                        may_follow: follow,
                        may_bootstrap: bootstrap,
                        first,
                        locales: node.locales(),
                    };
                    sender.answer_probe(clock::now(), reply)?;
                }
                SenderEvent::Refused(refused) => reason = format!("refused: {}", refused.text),
                SenderEvent::Goodbye(goodbye) => reason = goodbye.reason.to_string(),
            }
        }
        // Looked at in every round: of the events that wake us at once, only one is taken.
        if node.stopping() && !sender.is_closed() {
            reason = "this agent stops".to_owned();
            sender.goodbye(&reason);
        }
        while let Some(bytes) = sender.poll_transmit() {
            tokio::time::timeout(WRITE_LIMIT, connection.write(&bytes)).await??;
        }
        if sender.is_closed() {
            connection.close().await;
            return Ok(reason);
        }
        let deadline = sender.poll_timeout().unwrap_or_else(|| Instant::now() + UNTIMED_PAUSE);
        tokio::select! {
            read = connection.stream.read(&mut buffer) => match read? {
                0 => return Ok(reason),
                length => sender.handle_bytes(clock::now(), &buffer[..length])?,
            },
            // Before the welcome the reader speaks first; afterwards the window decides.
            next = fed.recv(), if sender.next_start().is_none() || sender.can_send() => match next {
                Some(Feed::Accepted(archived)) => {
                    sender.set_positions(leader_positions(node))?;
                    sender.resume_accepted(clock::now(), archived)?;
                }
                Some(Feed::Refused(code, text)) => {
                    // It comes again and again, and nothing is kept for what it cannot have.
                    if let Some(name) = follower {
                        node.positions
                            .with_follower(name.as_str(), |known| known.needs = Lsn(u64::MAX));
                    }
                    sender.refuse(code, &text)?;
                }
                Some(Feed::Chunk(chunk)) => {
                    let (end, sent) = (chunk.end, chunk.bytes.len() as u64);
                    sender.set_positions(leader_positions(node))?;
                    sender.send_data(clock::now(), chunk)?;
                    if let Some(name) = follower {
                        node.positions.with_follower(name.as_str(), |known| {
                            known.shipped = end;
                            known.sent_bytes += sent;
                        });
                    }
                }
                Some(Feed::Failed(words)) => {
                    reason.clone_from(&words);
                    sender.goodbye(&words);
                }
                // The reader ends without a word only when the node stops.
                None if feed.is_none() => sender.goodbye("this agent stops"),
                None => {}
            },
            _ = changes.changed() => sender.set_positions(leader_positions(node))?,
            () = tokio::time::sleep_until(deadline.into()) => {
                sender.set_positions(leader_positions(node))?;
                sender.handle_timeout(clock::now())?;
            }
        }
    }
}

fn identity(node: &Node) -> Identity {
    let known = node.identity();
    let version_num = node.server_version();
    Identity {
        node: node.name(),
        agent_version: PlainText::fitted(env!("CARGO_PKG_VERSION")),
        system_identifier: known.map_or(0, |known| known.system_identifier),
        timeline: known.map_or(Timeline(1), |known| known.timeline),
        segment_size: known.map_or(SegmentSize::DEFAULT, |known| known.segment_size),
        server_major: known.map_or(0, |known| known.version.major),
        server_version_num: version_num,
    }
}

fn leader_positions(node: &Node) -> LeaderPositions {
    let appended = node.positions.get(readable(node));
    LeaderPositions {
        source_durable: node.positions.get(Position::SourceDurable).max(appended),
        appended,
        server_flush: node.positions.get(Position::ServerFlush),
    }
}

/// Where the archive begins; invalid if that is not known. One that has nothing may yet begin elsewhere.
async fn archive_begin(node: &Arc<Node>) -> Lsn {
    let node = Arc::clone(node);
    let looked = tokio::task::spawn_blocking(move || {
        let (archive, identity) = (node.archive()?, node.identity()?);
        let size = identity.segment_size;
        let first = archive.extent(identity.timeline).ok()??.first;
        if archive.segment_file(first).ok()?.bytes == 0 {
            return None;
        }
        Some(size.start_of(first.number(size)?))
    });
    looked.await.ok().flatten().unwrap_or_default()
}

/// Up to where this node's archive may be read: on a source node what is in `pg_wal` durably, on
/// others what their own archive holds durably.
pub(crate) fn readable(node: &Node) -> Position {
    match node.config.source.data_directory {
        Some(_) => Position::Appended,
        None => Position::Durable,
    }
}

fn start_reader(node: &Arc<Node>, hello: Hello, feed: mpsc::Sender<Feed>) -> std::io::Result<()> {
    let node = Arc::clone(node);
    thread::Builder::new().name("send".to_owned()).spawn(move || {
        let mut reader = match check_resume(&node, &hello) {
            Ok((archived, reader)) => {
                if feed.blocking_send(Feed::Accepted(archived)).is_err() {
                    return;
                }
                reader
            }
            Err((code, text)) => {
                // The connection may be gone already; then nobody needs to know.
                let _ = feed.blocking_send(Feed::Refused(code, text));
                return;
            }
        };
        let failed = match read_archive(&node, &hello, &mut reader, &feed) {
            Ok(()) => return,
            Err(error) => error,
        };
        node.stages.fail(STAGE, State::Retrying, &failed);
        let _ = feed.blocking_send(Feed::Failed(failed.to_string()));
    })?;
    Ok(())
}

type Refusal = (RefusalCode, String);

/// Whether the follower's WAL is ours, and where to begin.
fn check_resume(node: &Node, hello: &Hello) -> Result<(Archived, ArchiveReader), Refusal> {
    let failed = |error: ArchiveError| match error {
        ArchiveError::NotArchived { .. } => (RefusalCode::NOT_ARCHIVED, error.to_string()),
        _ => (RefusalCode::NOT_READY, error.to_string()),
    };
    let not_ready = || (RefusalCode::NOT_READY, "the archive is not open yet".to_owned());
    let archive = node.archive().ok_or_else(not_ready)?;
    let identity = node.identity().ok_or_else(not_ready)?;
    if hello.timeline != identity.timeline {
        let text = format!(
            "follower is on timeline {}, this node on {}; timeline switches are not followed yet",
            hello.timeline, identity.timeline
        );
        return Err((RefusalCode::WRONG_TIMELINE, text));
    }
    let start = hello.resume.start();
    let appended = wait_until_readable(node, start);
    if appended < start {
        let written = node.positions.get(Position::ServerFlush);
        return Err(ahead(start, appended, written, node.stages.is_starting(tail::STAGE)));
    }
    let extent = archive.extent(hello.timeline).map_err(failed)?.ok_or_else(not_ready)?;
    let size = archive.segment_size();
    let first = extent.first.number(size).map_or(Lsn::INVALID, |number| size.start_of(number));
    if start < first {
        let text = format!("follower asks for WAL from {start}, the archive begins at {first}");
        return Err((RefusalCode::NOT_ARCHIVED, text));
    }
    if let Resume::Continue { .. } = hello.resume
        && !is_our_history(archive, hello, appended).map_err(failed)?
    {
        let text = format!("the WAL of follower and leader before {start} is not the same");
        return Err((RefusalCode::DIVERGED, text));
    }
    let reader = ArchiveReader::open(archive, hello.timeline, start).map_err(failed)?.for_copies();
    Ok((Archived { first, appended }, reader))
}

/// Why a follower that has WAL up to `start` is not served by a node that has it up to `appended`: its
/// server may have `written` it, and it is yet to be read here. Then it can be told later whether it is
/// the same.
fn ahead(start: Lsn, appended: Lsn, written: Lsn, is_starting: bool) -> Refusal {
    if is_starting {
        return (RefusalCode::NOT_READY, "the archive's end is being read again".to_owned());
    }
    let text = format!("follower has WAL up to {start}, this node only up to {appended}");
    if written >= start {
        let text = format!("{text}, and its server up to {written}: that is being read");
        return (RefusalCode::NOT_READY, text);
    }
    (RefusalCode::AHEAD_OF_LEADER, text)
}

/// A follower can be ahead of us for a moment: after our restart, until the tail has gone through
/// the last segment again.
fn wait_until_readable(node: &Node, start: Lsn) -> Lsn {
    let deadline = Instant::now() + AHEAD_LIMIT;
    loop {
        let appended = node.positions.get(readable(node));
        let left = deadline.saturating_duration_since(Instant::now());
        if appended >= start || left.is_zero() || node.stopping() {
            return appended;
        }
        node.positions.wait_beyond(readable(node), appended, left.min(Duration::from_millis(200)));
    }
}

/// Whether our archive has the follower's last whole record, with the same CRC and the same bytes
/// behind it. Our blocks need not end where the follower's do, so the archive is read up to
/// `appended`, not just to the follower's end.
fn is_our_history(archive: &Archive, hello: &Hello, appended: Lsn) -> Result<bool, ArchiveError> {
    let Resume::Continue { record_start, record_end, record_crc, content_end, tail_crc } =
        hello.resume
    else {
        return Ok(true);
    };
    let size = archive.segment_size();
    let begin = size.start_of(size.segment_of(record_start));
    let mut reader = ArchiveReader::open(archive, hello.timeline, begin)?;
    let mut stream = RecordStream::new(StreamStart {
        lsn: begin,
        segment_size: size,
        system_identifier: Some(archive.system_identifier()),
    });
    let mut same_record = false;
    let mut crc = 0;
    stream.set_known_end(appended);
    while let Some(chunk) = reader.next(appended)? {
        stream.push(chunk.wal);
        while let Step::Record(record) = stream.poll() {
            same_record |= record.start == record_start
                && record.end == record_end
                && record.header.crc == record_crc;
        }
        let skip = record_end.bytes_since(chunk.start).min(chunk.wal.len() as u64) as usize;
        let upto = content_end.bytes_since(chunk.start).min(chunk.wal.len() as u64) as usize;
        crc = crc32c::crc32c_append(crc, &chunk.wal[skip..upto]);
        if chunk.end >= content_end {
            break;
        }
    }
    Ok(same_record && crc == tail_crc)
}

/// Reads the archive as it grows, and hands its bytes over.
fn read_archive(
    node: &Node,
    hello: &Hello,
    reader: &mut ArchiveReader,
    feed: &mpsc::Sender<Feed>,
) -> Result<(), Trouble> {
    let mut again: Option<FrameCompressor> = None;
    let mut sent = hello.resume.start();
    while !node.stopping() && !feed.is_closed() {
        let bound = node.positions.get(readable(node));
        let Some(chunk) = reader.next(bound)? else {
            node.positions.wait_beyond(readable(node), sent, Duration::from_millis(500));
            continue;
        };
        sent = chunk.end;
        let (starts_frame, bytes) = match chunk.file_bytes {
            Some(bytes) => (chunk.begins_frame, Bytes::copy_from_slice(bytes)),
            None => {
                let starts_frame = again.is_none();
                let compressor = match &mut again {
                    Some(compressor) => compressor,
                    None => {
                        again.insert(FrameCompressor::new(node.config.archive.compression_level)?)
                    }
                };
                let mut bytes = Vec::new();
                compressor.compress(chunk.wal, &mut bytes)?;
                if chunk.ends_frame {
                    compressor.end(&mut bytes)?;
                    again = None;
                } else {
                    compressor.flush(&mut bytes)?;
                }
                (starts_frame, Bytes::from(bytes))
            }
        };
        if bytes.is_empty() {
            continue;
        }
        let chunk = Chunk {
            timeline: hello.timeline,
            start: chunk.start,
            end: chunk.end,
            starts_frame,
            bytes,
        };
        if feed.blocking_send(Feed::Chunk(chunk)).is_err() {
            return Ok(());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_ahead_of_the_server_has_another_history_and_who_is_ahead_of_the_archive_waits() {
        let code = |written, is_starting| ahead(Lsn(300), Lsn(100), Lsn(written), is_starting).0;
        assert_eq!(code(299, false), RefusalCode::AHEAD_OF_LEADER);
        assert_eq!(code(0, false), RefusalCode::AHEAD_OF_LEADER, "the server was never asked");
        assert_eq!(code(300, false), RefusalCode::NOT_READY);
        assert_eq!(code(0, true), RefusalCode::NOT_READY);
    }
}
