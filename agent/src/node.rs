//! One node: one source, one archive, its readers. The only file that starts stages.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::signal::unix;
use walferry_archive::{Archive, ArchiveWriter, Files, OsFiles, WriterOptions};
use walferry_wire::{LagClock, LocaleName, NodeName};
use walfmt::{Lsn, Timeline};

use crate::config::{Config, Source};
use crate::control;
use crate::identity::{self, Identity};
use crate::metrics::Metrics;
use crate::positions::{Position, Positions};
use crate::service;
use crate::stage::decode::{self, Capture};
use crate::stage::heart::Hearts;
use crate::stage::{self, Stages, State, replay};
use crate::stop::{self, StageThread};
use crate::tls::Tls;
use crate::trouble::{Kind, Trouble};

/// A peer's silence for this long is lag: a few of its heartbeats.
const HEARD_FRESH: Duration = Duration::from_secs(3);
/// How many base backups are passed on at once: each reads all of the server's disk.
const BACKUPS_MAX: usize = 2;
/// How long systemd may take to hear that the node stops.
const TELL_LIMIT: Duration = Duration::from_secs(1);

/// How far a node is behind its source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lag {
    /// Behind with what: replaying, or, on a node without a store, making durable.
    pub(crate) to: Position,
    pub(crate) bytes: u64,
    /// Nothing before the source was first heard of.
    pub(crate) seconds: Option<f64>,
}

/// What the stages of a node share.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) positions: Positions,
    pub(crate) stages: Stages,
    pub(crate) hearts: Hearts,
    pub(crate) metrics: Metrics,
    /// Commands for replay; closed on a node without a store.
    pub(crate) replay: replay::Commands,
    /// How rows get from replay into the spool, if they are captured.
    pub(crate) capture: Option<Capture>,
    /// Places for base backups that are being passed on.
    pub(crate) backups: tokio::sync::Semaphore,
    /// Nothing where connections are plain text.
    pub(crate) tls: Option<Arc<Tls>>,
    files: Arc<dyn Files>,
    identity: OnceLock<Identity>,
    archive: OnceLock<Archive>,
    /// Where an archive begins that holds nothing yet, on a node without a store.
    archive_begin: OnceLock<Lsn>,
    lag_clock: Mutex<LagClock>,
    /// `server_version_num`, once known.
    server_version: AtomicU32,
    /// The locales that the server's databases need, once known.
    locales: Mutex<Vec<LocaleName>>,
    shipping_forbidden: Mutex<Option<Trouble>>,
    stopping: AtomicBool,
    /// Whoever asks for a promotion waits for the one that is under way.
    pub(crate) promoting: tokio::sync::Mutex<()>,
    /// Nothing is to be received: the store is being promoted.
    receiving_ended: AtomicBool,
    /// Nothing is received any more, and all that was has been written.
    receiving_quiet: AtomicBool,
}

impl Node {
    pub(crate) fn new(config: Config) -> Result<Self, Trouble> {
        let metrics = Metrics::new(&config.node.name)
            .map_err(|error| Trouble::misuse(format_args!("metrics: {error}")))?;
        let capture = config.decode.as_ref().map(|_| Capture::default());
        let tls = config.tls.clone().map(Tls::new).transpose()?.map(Arc::new);
        Ok(Self {
            config,
            backups: tokio::sync::Semaphore::new(BACKUPS_MAX),
            tls,
            positions: Positions::new(),
            stages: Stages::default(),
            hearts: Hearts::default(),
            metrics,
            replay: replay::Commands::default(),
            capture,
            files: Arc::new(OsFiles),
            identity: OnceLock::new(),
            archive: OnceLock::new(),
            archive_begin: OnceLock::new(),
            lag_clock: Mutex::new(LagClock::new(Instant::now(), HEARD_FRESH)),
            server_version: AtomicU32::new(0),
            locales: Mutex::default(),
            shipping_forbidden: Mutex::new(None),
            stopping: AtomicBool::new(false),
            promoting: tokio::sync::Mutex::new(()),
            receiving_ended: AtomicBool::new(false),
            receiving_quiet: AtomicBool::new(false),
        })
    }

    /// The node's name, as peers see it.
    pub(crate) fn name(&self) -> NodeName {
        self.config.node.name.parse().expect("the configuration checks the name by the same rule")
    }

    /// The file calls of archive and tail.
    pub(crate) fn files(&self) -> &Arc<dyn Files> {
        &self.files
    }

    /// Whose WAL this node has, once its source or archive has told.
    pub(crate) fn identity(&self) -> Option<Identity> {
        self.identity.get().copied()
    }

    /// The archive, once the identity is known.
    pub(crate) fn archive(&self) -> Option<&Archive> {
        self.archive.get()
    }

    /// Opens the archive of this cluster, or gives the one that is open. One node has one cluster.
    pub(crate) fn open_archive(&self, identity: Identity) -> Result<Archive, Trouble> {
        let known = self.identity().unwrap_or(identity);
        if known.system_identifier != identity.system_identifier
            || known.timeline != identity.timeline
            || known.segment_size != identity.segment_size
        {
            return Err(Trouble::new(
                Kind::Refused,
                format_args!(
                    "this node has WAL of system {}, timeline {}; its source now has system {}, \
                     timeline {}",
                    known.system_identifier,
                    known.timeline,
                    identity.system_identifier,
                    identity.timeline
                ),
            )
            .with_hint("restart the agent if the server was replaced on purpose"));
        }
        if let Some(archive) = self.archive.get() {
            return Ok(archive.clone());
        }
        let root = &self.config.archive.directory;
        self.files.create_dir(root).map_err(stage::tail::file_trouble)?;
        let archive = Archive::open(
            Arc::clone(&self.files),
            root,
            identity.system_identifier,
            identity.segment_size,
        )?;
        // In this order: who knows whose WAL it is finds the archive open.
        let archive = self.archive.get_or_init(|| archive).clone();
        self.identity.get_or_init(|| identity);
        Ok(archive)
    }

    /// Where an archive that holds nothing yet is to begin, if a peer has told.
    pub(crate) fn archive_begin(&self) -> Option<Lsn> {
        self.archive_begin.get().copied()
    }

    /// An archive that holds nothing yet begins here. It is said before the archive is opened.
    pub(crate) fn begin_archive_at(&self, lsn: Lsn) {
        // Whoever came first has told it.
        let _ = self.archive_begin.set(lsn);
    }

    /// Opens the archive for writing; cuts off what a crash left unfinished. An empty one will
    /// begin at `begin`.
    pub(crate) fn open_writer(
        &self,
        archive: &Archive,
        begin: Lsn,
    ) -> Result<ArchiveWriter, Trouble> {
        let timeline = self.identity.get().map_or(Timeline(1), |identity| identity.timeline);
        let options = WriterOptions {
            level: self.config.archive.compression_level,
            durable_at_least: self.positions.get(Position::Durable),
        };
        Ok(ArchiveWriter::open(archive, timeline, begin, options)?)
    }

    pub(crate) fn set_server_version(&self, version_num: u32) {
        self.server_version.store(version_num, Ordering::Relaxed);
    }

    /// `server_version_num` of the server whose WAL this is; 0 if unknown.
    pub(crate) fn server_version(&self) -> u32 {
        self.server_version.load(Ordering::Relaxed)
    }

    pub(crate) fn set_locales(&self, locales: Vec<LocaleName>) {
        *self.locales.lock().unwrap_or_else(PoisonError::into_inner) = locales;
    }

    /// The locales that the databases of the server beside this agent need; none if unknown.
    pub(crate) fn locales(&self) -> Vec<LocaleName> {
        self.locales.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends shipping: the server is not one whose WAL may be relied on.
    pub(crate) fn forbid_shipping(&self, trouble: Trouble) {
        *self.shipping_forbidden.lock().unwrap_or_else(PoisonError::into_inner) = Some(trouble);
    }

    pub(crate) fn shipping_forbidden(&self) -> Option<Trouble> {
        self.shipping_forbidden.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The clock that turns positions into seconds of lag.
    pub(crate) fn with_lag_clock<T>(&self, use_it: impl FnOnce(&mut LagClock) -> T) -> T {
        use_it(&mut self.lag_clock.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// How far this node is behind its source; nothing on the source node itself.
    pub(crate) fn lag(&self) -> Option<Lag> {
        // A store that was handed over is behind nobody any more.
        let is_promoted = self.stages.is_in(replay::STAGE, State::Promoted);
        if !matches!(self.config.source(), Ok(Source::Receive(_))) || is_promoted {
            return None;
        }
        let to = if self.config.store.is_some() { Position::Replayed } else { Position::Durable };
        let reached = self.positions.get(to);
        Some(Lag {
            to,
            bytes: self.positions.get(Position::SourceDurable).bytes_since(reached),
            seconds: self.with_lag_clock(|lag| lag.lag_seconds(Instant::now(), reached)),
        })
    }

    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Tells every stage to end.
    pub(crate) fn begin_stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.positions.wake();
    }

    pub(crate) fn receiving_ended(&self) -> bool {
        self.receiving_ended.load(Ordering::Acquire)
    }

    /// Receives nothing more, for a promotion, or goes on if there was none after all.
    pub(crate) fn end_receiving(&self, ended: bool) {
        self.receiving_quiet.fetch_and(ended, Ordering::AcqRel);
        self.receiving_ended.store(ended, Ordering::Release);
        self.positions.wake();
    }

    pub(crate) fn receiving_quiet(&self) -> bool {
        self.receiving_quiet.load(Ordering::Acquire)
    }

    /// Said by `receive`, after it was told to end: the archive has all it will get.
    pub(crate) fn set_receiving_quiet(&self) {
        self.receiving_quiet.store(true, Ordering::Release);
        self.positions.wake();
    }

    /// For async code: completes when the node stops.
    pub(crate) async fn stopped(&self) {
        let mut changes = self.positions.subscribe();
        while !self.stopping() {
            // The sender lives as long as the node.
            let _ = changes.changed().await;
        }
    }

    /// For async code: a pause that ends early when the node stops.
    pub(crate) async fn pause(&self, duration: Duration) {
        let _ = tokio::time::timeout(duration, self.stopped()).await;
    }

    /// For threads: a pause that ends early when the node stops.
    pub(crate) fn sleep(&self, duration: Duration) {
        let until = Instant::now() + duration;
        while !self.stopping() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(Duration::from_millis(50)));
        }
    }
}

/// Runs a node until SIGTERM or SIGINT; an error, too, if a stage did not end then.
pub(crate) fn run(config: Config) -> Result<(), Trouble> {
    let node = Arc::new(Node::new(config)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .thread_name("net")
        .build()
        .map_err(|error| Trouble::io("starting the runtime", error))?;
    let threads = runtime.block_on(async {
        // Who is told that the agent runs may stop it.
        let mut signals = Signals::listen()?;
        let threads = start(&node).await?;
        let talk = tokio::spawn(service::run(Arc::clone(&node)));
        signals.recv().await;
        tracing::info!("stopping");
        node.begin_stop();
        // In this order, since nothing is to be said after it; but no stop waits for systemd.
        let told = async {
            let _ = talk.await;
            service::stopping().await;
        };
        let _ = tokio::time::timeout(TELL_LIMIT, told).await;
        Ok::<_, Trouble>(threads)
    })?;
    let stopped = stop::wait(threads, &node.hearts, &runtime);
    runtime.shutdown_timeout(Duration::from_secs(1));
    control::remove_socket(&node.config);
    stopped
}

/// Opens every door first, so that misuse ends the process before anything has begun; then starts
/// the stages.
async fn start(node: &Arc<Node>) -> Result<Vec<StageThread>, Trouble> {
    let config = &node.config;
    let control = control::bind(config)?;
    let listen = async |key, address| match address {
        Some(address) => match TcpListener::bind(address).await {
            Ok(listener) => Ok(Some(listener)),
            Err(error) => Err(Trouble::io(format_args!("[listen] {key} {address}"), error)),
        },
        None => Ok(None),
    };
    let metrics = listen("metrics", config.listen.metrics).await?;
    let replication = listen("replication", config.listen.replication).await?;

    let mut threads = Vec::new();
    match config.source()? {
        Source::Tail(directory) => {
            if let Some(conninfo) = &config.source.conninfo {
                stage::horizon::refuse_misuse(conninfo).await?;
                tokio::spawn(stage::horizon::run(Arc::clone(node), conninfo.clone()));
            } else {
                tracing::warn!(
                    "[source] conninfo is not set: the server's fsync setting cannot be checked"
                );
            }
            threads.push(spawn("tail", node, move |node| stage::tail::run(node, &directory))?);
        }
        Source::Receive(peers) => {
            match &config.store {
                Some(store) => identity::by_store(node, &store.data_directory)?,
                // One that has no WAL yet takes that of its peers.
                None => {
                    if let Some(identity) = Identity::of_archive(&config.archive.directory)? {
                        node.open_archive(identity)?;
                    }
                }
            }
            let inbox = stage::receive::Inbox::new();
            let outlet = inbox.outlet();
            threads.push(spawn("receive", node, move |node| {
                stage::receive::write(node, inbox);
            })?);
            tokio::spawn(stage::receive::run(Arc::clone(node), peers, outlet));
        }
    }
    if config.store.is_some() {
        threads.push(spawn("replay", node, replay::run)?);
        if config.decode.is_some() {
            threads.push(spawn(decode::STAGE, node, decode::run)?);
        }
    }
    threads.push(spawn("retention", node, stage::retention::run)?);
    if let Some(listener) = replication {
        tokio::spawn(stage::send::run(Arc::clone(node), listener));
    }
    if let Some(listener) = metrics {
        tokio::spawn(control::serve_public(Arc::clone(node), listener));
    }
    tokio::spawn(control::serve(Arc::clone(node), control));
    tracing::info!(node = config.node.name, "running");
    Ok(threads)
}

fn spawn(
    name: &'static str,
    node: &Arc<Node>,
    work: impl FnOnce(&Arc<Node>) + Send + 'static,
) -> Result<StageThread, Trouble> {
    // Not before it says so itself: until then it counts as getting ready.
    node.stages.set(name, State::Starting, "");
    let node = Arc::clone(node);
    let thread = thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || work(&node))
        .map_err(|error| Trouble::io(format_args!("starting thread {name}"), error))?;
    Ok((name, thread))
}

/// SIGTERM and SIGINT, from when it is made: then neither ends the process by itself any more.
pub(crate) struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    pub(crate) fn listen() -> Result<Self, Trouble> {
        let listen =
            |kind| unix::signal(kind).map_err(|error| Trouble::io("listening for signals", error));
        Ok(Self {
            terminate: listen(unix::SignalKind::terminate())?,
            interrupt: listen(unix::SignalKind::interrupt())?,
        })
    }

    /// Waits for either.
    pub(crate) async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
