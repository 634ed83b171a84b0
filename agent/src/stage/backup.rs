//! Backup: a base backup of the server beside us, relayed to a node that has nothing yet.
//!
//! ```text
//! server ═══ replication connection ═══► relay ─► parts, a few ─► connection ═══► walferry bootstrap
//!   └─ a slot keeps WAL until ───────────► archived up to the backup's end
//! ```
//!
//! Nothing of it is kept here. When either side goes, so does the other: the server then ends its
//! backup.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use walferry_wire::{
    BACKUP_DATA_MAX, BackupArchive, BackupContent, BackupEnd, BackupPart, BackupRequest,
    BackupStarted, PlainText, RefusalCode, Sender, SenderEvent,
};
use walfmt::Lsn;

use crate::clock;
use crate::config::Source;
use crate::configuration::{self, CONFIGURATION_BYTES_MAX};
use crate::identity::Identity;
use crate::node::Node;
use crate::positions::Position;
use crate::server::replication::{BackupOptions, BackupPiece, ReplicationConnection};
use crate::stage::{State, tail};
use crate::tls::Connection;
use crate::trouble::{Kind, Trouble};

/// Parts between server and follower. The server waits while they are not taken.
const QUEUE_PARTS: usize = 8;
/// A follower that takes nothing for this long is gone; its disk may be slow.
const WRITE_LIMIT: Duration = Duration::from_secs(120);
/// How long a backup waits for this node's archive to be opened, as after its own start.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
const OPEN_CHECK_INTERVAL: Duration = Duration::from_millis(50);
/// How often it is asked whether the WAL still comes.
const TAIL_CHECK_INTERVAL: Duration = Duration::from_secs(1);

enum Relayed {
    Part(BackupPart),
    Failed(Trouble),
}

/// The rest of a connection on which a backup was asked for. Gives the reason of its end.
pub(crate) async fn serve(
    node: &Arc<Node>,
    mut connection: Connection,
    mut sender: Sender,
    request: BackupRequest,
) -> anyhow::Result<String> {
    let (parts, mut relayed) = mpsc::channel(QUEUE_PARTS);
    let mut relay = JoinSet::new(); // ends its task when it is dropped
    let mut reason = format!("base backup for {} complete", request.node.as_str());
    let place = node.backups.try_acquire();
    let conninfo = match &place {
        Ok(_) => conninfo(node),
        Err(_) => Err("other nodes are being given backups: try again later".to_owned()),
    };
    match conninfo {
        Ok(conninfo) => {
            tracing::info!(follower = request.node.as_str(), "base backup begins");
            let node = Arc::clone(node);
            relay.spawn(async move {
                if let Err(trouble) = self::relay(&node, &conninfo, &request, &parts).await {
                    let _ = parts.send(Relayed::Failed(trouble)).await;
                }
            });
        }
        Err(text) => {
            sender.refuse(RefusalCode::NOT_READY, &text)?;
            reason = text;
        }
    }
    let mut buffer = [0; 4096];
    loop {
        while let Some(event) = sender.poll_event() {
            if let SenderEvent::Goodbye(goodbye) = event {
                reason = goodbye.reason.to_string();
            }
        }
        if node.stopping() && !sender.is_closed() {
            "this agent stops".clone_into(&mut reason);
            sender.goodbye(&reason);
        }
        while let Some(bytes) = sender.poll_transmit() {
            tokio::time::timeout(WRITE_LIMIT, connection.write(&bytes)).await??;
        }
        if sender.is_closed() {
            connection.close().await;
            return Ok(reason);
        }
        let deadline = sender.poll_timeout().unwrap_or_else(Instant::now);
        tokio::select! {
            part = relayed.recv() => match part {
                Some(Relayed::Part(part)) => sender.send_backup(clock::now(), part)?,
                Some(Relayed::Failed(trouble)) => {
                    reason = match trouble.hint() {
                        Some(hint) => format!("{trouble} (hint: {hint})"),
                        None => trouble.to_string(),
                    };
                    tracing::warn!("base backup failed: {reason}");
                    sender.goodbye(&reason);
                }
                None => sender.goodbye("the backup has ended early"),
            },
            read = connection.stream.read(&mut buffer) => match read? {
                0 => return Ok("closed by the follower".to_owned()),
                length => sender.handle_bytes(clock::now(), &buffer[..length])?,
            },
            () = tokio::time::sleep_until(deadline.into()) => sender.handle_timeout(clock::now())?,
            () = node.stopped() => {}
        }
    }
}

/// How to reach the server; or why there is no backup here.
fn conninfo(node: &Node) -> Result<String, String> {
    match (node.config.source(), &node.config.source.conninfo) {
        (Ok(Source::Tail(_)), Some(conninfo)) => Ok(conninfo.clone()),
        (Ok(Source::Tail(_)), None) => {
            Err("this node's [source] has no conninfo, so it cannot ask its server for a backup"
                .to_owned())
        }
        _ => {
            Err("this node has no server beside it: ask the leader's agent for a backup".to_owned())
        }
    }
}

async fn relay(
    node: &Node,
    conninfo: &str,
    request: &BackupRequest,
    parts: &mpsc::Sender<Relayed>,
) -> Result<(), Trouble> {
    let identity = wait_until_open(node).await?;
    let mut server = ReplicationConnection::connect(conninfo).await?;
    // The stage that also asks it may not have come to that yet, as behind a failed try.
    let server_version_num = server.server_version().await?;
    let options = BackupOptions {
        // Nothing that the backup needs may be removed before it is in the archive.
        slot: format!("walferry_bootstrap_{:016x}", rand::random::<u64>()),
        label: format!("walferry bootstrap of {}", request.node.as_str()),
        fast_checkpoint: request.fast_checkpoint,
        max_rate: request.max_rate,
    };
    // It will ask for WAL from the redo pointer of a checkpoint that is still to come.
    let expected = Expected::new(node, request.node.as_str());
    expected.from(node.positions.get(Position::Appended));
    let start = server.base_backup(&options).await?;
    if start.timeline != identity.timeline {
        let (server, archive) = (start.timeline, identity.timeline);
        return Err(Trouble::new(
            Kind::Refused,
            format_args!("the server is on timeline {server}, this node's archive on {archive}"),
        )
        .with_hint("the leader's agent needs a new archive after a promotion of its server"));
    }
    check_tail(node)?;
    expected.from(start.start);
    let started = BackupStarted {
        node: node.name(),
        agent_version: PlainText::fitted(env!("CARGO_PKG_VERSION")),
        system_identifier: identity.system_identifier,
        segment_size: identity.segment_size,
        server_version_num,
        timeline: start.timeline,
        start: start.start,
        bytes: start.bytes,
    };
    let send = async |part| parts.send(Relayed::Part(part)).await.is_ok();
    let mut goes_on = send(BackupPart::Started(started)).await;
    for part in configuration(conninfo).await {
        goes_on &= send(part).await;
    }
    while goes_on {
        let part = match server.next().await? {
            BackupPiece::Archive(oid) => BackupPart::Archive(BackupArchive {
                content: oid.map_or(BackupContent::Base, BackupContent::Tablespace),
                is_compressed: start.is_compressed,
            }),
            BackupPiece::Manifest => BackupPart::Archive(BackupArchive {
                content: BackupContent::Manifest,
                is_compressed: false,
            }),
            BackupPiece::Data(bytes) => BackupPart::Data(bytes),
            BackupPiece::End { end, timeline } => {
                wait_until_archived(node, end).await?;
                goes_on = false;
                BackupPart::Ended(BackupEnd { timeline, end })
            }
        };
        goes_on &= send(part).await;
    }
    Ok(())
}

/// What a base backup lacks where the server's configuration lies outside of its data directory. A
/// backup is worth having without it.
async fn configuration(conninfo: &str) -> Vec<BackupPart> {
    let told = configuration::of_server(conninfo).await;
    for warning in &told.warnings {
        tracing::warn!("base backup: {warning}");
    }
    let json = match serde_json::to_vec(&told) {
        Ok(json) if json.len() as u64 <= CONFIGURATION_BYTES_MAX => Bytes::from(json),
        Ok(json) => {
            tracing::warn!("the server's configuration is not sent: {} bytes", json.len());
            return Vec::new();
        }
        Err(error) => {
            tracing::warn!("the server's configuration is not sent: {error}");
            return Vec::new();
        }
    };
    let begin = BackupArchive { content: BackupContent::Configuration, is_compressed: false };
    let data = (0..json.len())
        .step_by(BACKUP_DATA_MAX)
        .map(|from| BackupPart::Data(json.slice(from..json.len().min(from + BACKUP_DATA_MAX))));
    std::iter::once(BackupPart::Archive(begin)).chain(data).collect()
}

/// A node that is being bootstrapped: the archive keeps what it will ask for, as for a follower that is
/// connected, and for a while after it has gone.
struct Expected<'a> {
    node: &'a Node,
    name: &'a str,
}

impl<'a> Expected<'a> {
    fn new(node: &'a Node, name: &'a str) -> Self {
        node.positions.with_follower(name, |follower| follower.connections += 1);
        Self { node, name }
    }

    /// It will need WAL from here on.
    fn from(&self, lsn: Lsn) {
        self.node.positions.with_follower(self.name, |follower| follower.needs = lsn);
    }
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.node.positions.with_follower(self.name, |follower| follower.connections -= 1);
    }
}

/// Just after a start nobody knows yet whose WAL it is: who asks then need not ask a second time.
async fn wait_until_open(node: &Node) -> Result<Identity, Trouble> {
    let deadline = Instant::now() + OPEN_LIMIT;
    loop {
        if let Some(identity) = node.identity() {
            return Ok(identity);
        }
        check_tail(node)?;
        if Instant::now() >= deadline || node.stopping() {
            return Err(Trouble::new(Kind::Refused, "the archive is not open yet").with_hint(
                "`walferry status` of the leader's agent says what its tail waits for",
            ));
        }
        tokio::time::sleep(OPEN_CHECK_INTERVAL).await;
    }
}

/// Waits until the slot is needed no more.
async fn wait_until_archived(node: &Node, end: Lsn) -> Result<(), Trouble> {
    let mut changes = node.positions.subscribe();
    while node.positions.get(Position::Appended) < end && !node.stopping() {
        check_tail(node)?;
        let _ = tokio::time::timeout(TAIL_CHECK_INTERVAL, changes.changed()).await;
    }
    Ok(())
}

/// A backup is worth nothing without the WAL behind it.
fn check_tail(node: &Node) -> Result<(), Trouble> {
    if let Some(trouble) = node.shipping_forbidden() {
        return Err(trouble);
    }
    match node.stages.all().get(tail::STAGE) {
        Some(report) if report.state == State::Stopped => {
            let words = format_args!("the leader's agent reads no WAL: {}", report.detail);
            Err(Trouble::new(Kind::Refused, words)
                .with_hint("its own status says why; mend that first"))
        }
        _ => Ok(()),
    }
}
