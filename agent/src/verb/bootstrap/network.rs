//! A base backup from a peer: the leader's agent relays one of its server.
//!
//! A task owns the connection, this thread the files; between them is a short queue.

use std::cell::Cell;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use indicatif::{HumanBytes, HumanDuration, ProgressBar, ProgressStyle};
use tokio::io::AsyncReadExt;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use walferry_wire::{
    BackupArchive, BackupEnd, BackupEvent, BackupReceiver, BackupRequest, BackupStarted, Limits,
    PlainText,
};
use walfmt::Version;

use super::copy::Copy;
use super::unpack::Unpacker;
use crate::configuration::Configuration;
use crate::identity::Identity;
use crate::node::Node;
use crate::tls::{self, Tls};
use crate::trouble::{Kind, Trouble};

/// How often a line is written where no terminal is, as under systemd.
const PROGRESS_LINE_INTERVAL: Duration = Duration::from_secs(2);
const WAITING_LINE_INTERVAL: Duration = Duration::from_secs(30);
const READ_BYTES: usize = 256 << 10;
/// What was received and is not written yet: messages of at most 256 kB.
const QUEUE_ITEMS: usize = 16;

/// How the backup is to be made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) fast_checkpoint: bool,
    /// kB per second; 0 is as fast as it can.
    pub(super) max_rate: u32,
}

/// From the connection to the files.
enum Item {
    Started(BackupStarted),
    Archive(BackupArchive),
    Data(Bytes),
    Ended(BackupEnd),
    Failed(Trouble),
    Interrupted,
}

/// Fetches a backup from the first peer that gives one, and with it the leader's configuration, if its
/// agent tells that. `prepare` is told whose it is before any file
/// is made. What is there of a backup that fails is removed.
pub(super) fn fetch(
    node: &Arc<Node>,
    runtime: &Runtime,
    peers: &[String],
    target: &Path,
    options: Options,
    prepare: impl Fn(Identity) -> Result<(), Trouble>,
) -> Result<(Copy, Identity, Option<Configuration>), Trouble> {
    let mut last = Trouble::misuse("[source] names no peers");
    for peer in peers {
        let request = BackupRequest {
            node: node.name(),
            agent_version: PlainText::fitted(env!("CARGO_PKG_VERSION")),
            fast_checkpoint: options.fast_checkpoint,
            max_rate: options.max_rate,
        };
        let (send, mut items) = mpsc::channel(QUEUE_ITEMS);
        runtime.spawn(converse(Arc::clone(node), peer.clone(), request, send));
        let waiting = ProgressBar::new_spinner();
        waiting.set_message(format!("{peer}: waiting for a checkpoint of its server"));
        waiting.enable_steady_tick(Duration::from_millis(200));
        // Where no terminal is, silence for minutes would look like a hang.
        let hint = if options.fast_checkpoint { "" } else { ", or give --fast-checkpoint" };
        let first = loop {
            if waiting.is_hidden() {
                eprintln!(
                    "{peer}: waiting for a checkpoint of its server, which may take as long as its \
                     checkpoint_timeout (run CHECKPOINT there to have it at once{hint})"
                );
            }
            let next = async { tokio::time::timeout(WAITING_LINE_INTERVAL, items.recv()).await };
            if let Ok(first) = runtime.block_on(next) {
                break first;
            }
        };
        waiting.finish_and_clear();
        let started = match first {
            Some(Item::Started(started)) => started,
            Some(Item::Failed(trouble)) => {
                tracing::warn!("{trouble}");
                last = trouble;
                continue;
            }
            _ => return Err(interrupted()),
        };
        let identity = identity_of(&started)?;
        prepare(identity)?;
        let copy = Copy::empty(target)?;
        return match write(node, items, &copy, started.bytes) {
            Ok(leader) => Ok((copy, identity, leader)),
            Err(trouble) => {
                copy.discard();
                Err(trouble)
            }
        };
    }
    Err(last)
}

fn identity_of(started: &BackupStarted) -> Result<Identity, Trouble> {
    let major = u16::try_from(started.server_version_num / 10_000).unwrap_or(0);
    let version = Version::from_major(major).filter(|version| version.is_replayed);
    let version = version.ok_or_else(|| {
        let found = started.server_version_num;
        Trouble::new(Kind::Unsupported, format_args!("the leader's server is of version {found}"))
            .with_hint("the leader's agent learns it from [source] conninfo; 15 is known")
    })?;
    Ok(Identity {
        system_identifier: started.system_identifier,
        timeline: started.timeline,
        segment_size: started.segment_size,
        version,
    })
}

/// Writes the backup as it comes, and checks it. All of it is durable then. Gives the leader's
/// configuration, if that came with it.
fn write(
    node: &Node,
    items: mpsc::Receiver<Item>,
    copy: &Copy,
    bytes: u64,
) -> Result<Option<Configuration>, Trouble> {
    let progress = Progress::new(bytes);
    let mut unpacker = Unpacker::new(copy, &progress);
    let mut items = Items { items, bytes: Bytes::new(), next: None };
    let end = loop {
        match items.next_item() {
            Item::Archive(archive) => {
                if let Err(trouble) = unpacker.archive(archive, &mut items) {
                    // What ended the connection says more than that its bytes ended.
                    return Err(match items.next {
                        Some(Item::Failed(trouble)) => trouble,
                        Some(Item::Interrupted) => interrupted(),
                        _ => trouble,
                    });
                }
            }
            Item::Ended(end) => break end,
            Item::Failed(trouble) => return Err(trouble),
            Item::Interrupted => return Err(interrupted()),
            Item::Started(_) | Item::Data(_) => {
                return Err(Trouble::io("base backup", "a part of it came out of turn"));
            }
        }
    };
    let leader = unpacker.check(end.end)?;
    progress.finish();
    copy.sync()?;
    if node.stopping() { Err(interrupted()) } else { Ok(leader) }
}

/// How far it is: a bar, or where no terminal is a line from time to time.
pub(super) struct Progress {
    bar: ProgressBar,
    told: Cell<Instant>,
}

impl Progress {
    fn new(bytes: u64) -> Self {
        let bar = ProgressBar::new(bytes);
        let style = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Self { bar, told: Cell::new(Instant::now()) }
    }

    pub(super) fn add(&self, bytes: u64) {
        self.bar.inc(bytes);
        if self.bar.is_hidden() && self.told.get().elapsed() >= PROGRESS_LINE_INTERVAL {
            self.told.set(Instant::now());
            eprintln!(
                "{} of {}, {}/s, {} left",
                HumanBytes(self.bar.position()),
                HumanBytes(self.bar.length().unwrap_or_default()),
                HumanBytes(self.bar.per_sec() as u64),
                HumanDuration(self.bar.eta())
            );
        }
    }

    fn finish(&self) {
        self.bar.finish();
    }
}

/// The queue's end for files; reads as the data of one archive.
struct Items {
    items: mpsc::Receiver<Item>,
    bytes: Bytes,
    /// What ended the last archive.
    next: Option<Item>,
}

impl Items {
    fn next_item(&mut self) -> Item {
        self.next.take().or_else(|| self.items.blocking_recv()).unwrap_or(Item::Interrupted)
    }
}

impl Read for Items {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.bytes.is_empty() {
            match self.next_item() {
                Item::Data(bytes) => self.bytes = bytes,
                next @ (Item::Failed(_) | Item::Interrupted) => {
                    self.next = Some(next);
                    return Err(io::Error::other("the backup ended early"));
                }
                next => {
                    self.next = Some(next);
                    return Ok(0);
                }
            }
        }
        let length = buffer.len().min(self.bytes.len());
        self.bytes.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}

pub(super) fn interrupted() -> Trouble {
    Trouble::io("bootstrap", "interrupted; nothing of it was kept")
}

async fn converse(
    node: Arc<Node>,
    peer: String,
    request: BackupRequest,
    items: mpsc::Sender<Item>,
) {
    let last = tokio::select! {
        received = receive(node.tls.as_ref(), &peer, request, &items) => match received {
            Ok(()) => return,
            Err(trouble) => Item::Failed(trouble),
        },
        () = node.stopped() => Item::Interrupted,
    };
    let _ = items.send(last).await; // nobody listens when writing has failed
}

/// The life of one connection: moves bytes and knows no rules.
async fn receive(
    tls: Option<&Arc<Tls>>,
    peer: &str,
    request: BackupRequest,
    items: &mpsc::Sender<Item>,
) -> Result<(), Trouble> {
    let lost = |error: &dyn std::fmt::Display| Trouble::io(format_args!("peer {peer}"), error);
    let mut connection = tls::connect(tls, peer).await?;
    let mut receiver = BackupReceiver::new(request, Limits::default(), Instant::now());
    let mut buffer = vec![0; READ_BYTES];
    loop {
        while let Some(event) = receiver.poll_event() {
            let item = match event {
                BackupEvent::Started(started) => {
                    if let Some(objection) = connection.objection_to_name(&started.node) {
                        return Err(lost(&objection));
                    }
                    Item::Started(started)
                }
                BackupEvent::Archive(archive) => Item::Archive(archive),
                BackupEvent::Data(bytes) => Item::Data(bytes),
                BackupEvent::Ended(end) => Item::Ended(end),
                BackupEvent::Refused(refused) => {
                    let words = format_args!("peer {peer} gives no backup: {}", refused.text);
                    return Err(Trouble::new(Kind::Refused, words)
                        .with_hint("the log of the peer's agent says more"));
                }
                BackupEvent::Goodbye(goodbye) => {
                    let words = format_args!("the backup from {peer} failed: {}", goodbye.reason);
                    return Err(Trouble::new(Kind::Refused, words)
                        .with_hint("nothing of it was kept; mend that, then bootstrap again"));
                }
            };
            let is_last = matches!(item, Item::Ended(_));
            if items.send(item).await.is_err() || is_last {
                return Ok(());
            }
        }
        receiver.resume_listening(Instant::now());
        while let Some(bytes) = receiver.poll_transmit() {
            connection.write(&bytes).await.map_err(|error| lost(&error))?;
        }
        if receiver.is_closed() {
            return Err(lost(&"the connection is closed"));
        }
        let deadline = receiver.poll_timeout().unwrap_or_else(Instant::now);
        tokio::select! {
            read = connection.stream.read(&mut buffer) => match read.map_err(|error| lost(&error))? {
                0 if tls.is_none() => {
                    return Err(lost(&"it has closed the connection; it may want TLS, see [tls]"));
                }
                0 => return Err(lost(&"it has closed the connection")),
                length => {
                    let handled = receiver.handle_bytes(Instant::now(), &buffer[..length]);
                    if let Err(error) = handled {
                        while let Some(bytes) = receiver.poll_transmit() {
                            let _ = connection.write(&bytes).await;
                        }
                        return Err(lost(&error));
                    }
                }
            },
            () = tokio::time::sleep_until(deadline.into()) => {
                receiver.handle_timeout(Instant::now()).map_err(|error| lost(&error))?;
            }
        }
    }
}
