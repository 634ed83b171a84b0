//! Decode: the rows that replay sees, into the row spool.
//!
//! ```text
//! store ─► Rows ─► this thread ─► spool files ─► walferry decode, at its own pace
//!   └─ the catalogs, once, at a position where nothing is under way ──┘
//! ```
//!
//! A spool that reaches to where replay begins again goes on. Otherwise it begins anew, with the catalogs,
//! when the store is consistent and has caught up: rows of before are not captured.
//!
//! Trouble with the spool ends this stage alone: replay goes on, and rows are not captured from there on.

mod catalogs;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use walferry_store::Rows;
use walfmt::Lsn;
use walfmt::row::Entry;

pub(crate) use self::catalogs::{Watch, load_all};
use crate::config::DecodeSection;
use crate::identity::Identity;
use crate::node::Node;
use crate::positions::Position;
use crate::spool::Writer;
use crate::stage::State;
use crate::trouble::{Kind, Trouble};

pub(crate) const STAGE: &str = "decode";
/// How much is put into the spool at once, in bytes.
const CHUNK_BYTES: usize = 1 << 20;
const IDLE_WAIT: Duration = Duration::from_millis(100);
/// How often the spool is synced while rows come; a restart point asks for it, too.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// What replay and this stage tell each other.
#[derive(Default)]
pub(crate) struct Capture {
    pub(crate) rows: Arc<Rows>,
    state: Mutex<CaptureState>,
    changed: Condvar,
    replay_has_ended: AtomicBool,
}

#[derive(Default)]
struct CaptureState {
    /// Where the spool ends, once it is open; nothing in it is nothing.
    end: Option<Option<Lsn>>,
    /// The spool is to begin anew: rows until then would stand behind a hole.
    is_discarding: bool,
    /// Where rows begin, with the catalogs, if the spool is to begin anew.
    begin: Option<(Lsn, Vec<u8>)>,
    /// Nothing is captured any more.
    has_failed: bool,
}

impl Capture {
    /// For replay, before it begins at `from`: whether the spool must begin anew. Nothing if there is
    /// no capture any more.
    pub(crate) fn needs_catalogs(&self, node: &Node, from: Lsn) -> Option<bool> {
        let mut state = self.lock();
        loop {
            match state.end {
                _ if state.has_failed || node.stopping() => return None,
                Some(end) => {
                    state.is_discarding |= end.is_none_or(|end| end < from);
                    return Some(state.is_discarding);
                }
                None => state = self.wait(state),
            }
        }
    }

    /// For replay: all is applied up to `at`, and these are the catalogs there.
    pub(crate) fn begin(&self, at: Lsn, catalogs: Vec<u8>) {
        self.lock().begin = Some((at, catalogs));
        self.changed.notify_all();
    }

    /// For replay: no row comes any more.
    pub(crate) fn end(&self) {
        self.replay_has_ended.store(true, Ordering::SeqCst);
    }

    fn lock(&self) -> MutexGuard<'_, CaptureState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, CaptureState>) -> MutexGuard<'a, CaptureState> {
        match self.changed.wait_timeout(state, IDLE_WAIT) {
            Ok((state, _)) => state,
            Err(poisoned) => poisoned.into_inner().0,
        }
    }
}

/// Captures until replay ends, or the spool fails.
pub(crate) fn run(node: &Arc<Node>) {
    let (Some(capture), Some(config)) = (&node.capture, &node.config.decode) else { return };
    if let Err(trouble) = run_until_end(node, capture, config) {
        node.stages.fail(STAGE, State::Stopped, &trouble);
        capture.lock().has_failed = true;
        capture.rows.abandon();
        capture.changed.notify_all();
    }
}

fn run_until_end(node: &Node, capture: &Capture, config: &DecodeSection) -> Result<(), Trouble> {
    let Some(identity) = wait_for_identity(node) else { return Ok(()) };
    let writer = Writer::open(&config.directory, identity, identity.version.major)?;
    let end = writer.end();
    capture.lock().end = Some(end);
    capture.changed.notify_all();
    let mut capturing = Capturing { node, capture, writer, from: end, synced_at: Instant::now() };
    if end.is_some() {
        node.stages.set(STAGE, State::Streaming, "");
    } else {
        let words = "for the store to be consistent: rows are captured from there on";
        node.stages.set(STAGE, State::Waiting, words);
    }
    let mut entries = Vec::with_capacity(CHUNK_BYTES + (CHUNK_BYTES >> 2));
    loop {
        let has_ended = capture.replay_has_ended.load(Ordering::SeqCst);
        entries.clear();
        let taken = capture.rows.take(&mut entries, CHUNK_BYTES, IDLE_WAIT);
        capturing.put(&entries, taken)?;
        let begin = capture.lock().begin.take();
        if let Some((at, catalogs)) = begin {
            capturing.begin(at, &catalogs)?;
            node.stages.set(STAGE, State::Streaming, "");
        }
        if has_ended && entries.is_empty() {
            break;
        }
    }
    capturing.sync()
}

fn wait_for_identity(node: &Node) -> Option<Identity> {
    loop {
        match node.identity() {
            Some(identity) => return Some(identity),
            None if node.stopping() => return None,
            None => node.sleep(IDLE_WAIT),
        }
    }
}

struct Capturing<'a> {
    node: &'a Node,
    capture: &'a Capture,
    writer: Writer,
    /// Rows before this are in the spool; nothing if none are captured.
    from: Option<Lsn>,
    synced_at: Instant,
}

impl Capturing<'_> {
    /// These are all rows before `end` that did not come before.
    fn put(&mut self, entries: &[u8], end: Lsn) -> Result<(), Trouble> {
        // Replay says so before it brings the first row.
        let is_discarding = self.capture.lock().is_discarding;
        let Some(from) = self.from.filter(|_| !is_discarding) else {
            self.capture.rows.set_durable(end); // nothing is to be kept of it
            return Ok(());
        };
        if end > from {
            let new = after(entries, from)?;
            if !new.is_empty() {
                self.writer.append(new, end)?;
            }
            self.reached(end);
        }
        let is_wanted = self.capture.rows.durable_is_wanted();
        if is_wanted || self.synced_at.elapsed() >= SYNC_INTERVAL {
            self.sync()?;
        }
        Ok(())
    }

    fn begin(&mut self, at: Lsn, catalogs: &[u8]) -> Result<(), Trouble> {
        self.writer.begin(at, catalogs)?;
        self.reached(at);
        self.capture.lock().is_discarding = false;
        self.sync()?;
        tracing::info!(from = %at, "rows are captured");
        Ok(())
    }

    /// All rows before `end` are in the spool. Replay that begins again, in this process, asks for it.
    fn reached(&mut self, end: Lsn) {
        self.from = Some(end);
        self.capture.lock().end = Some(Some(end));
        self.node.positions.advance(Position::Decoded, end);
    }

    fn sync(&mut self) -> Result<(), Trouble> {
        // Also if there is nothing: a restart point may lie behind the last row, and whoever opens the
        // spool must see that it reaches there.
        if let Some(from) = self.from
            && self.writer.end().is_some_and(|end| end < from)
        {
            self.writer.append(&[], from)?;
        }
        if self.writer.is_dirty() {
            self.writer.sync()?;
        }
        self.synced_at = Instant::now();
        if let Some(from) = self.from {
            self.capture.rows.set_durable(from);
        }
        Ok(())
    }
}

/// The entries of records from `from` on.
fn after(mut entries: &[u8], from: Lsn) -> Result<&[u8], Trouble> {
    while !entries.is_empty() {
        let (entry, rest) = Entry::read(entries).map_err(|error| {
            Trouble::new(Kind::Corrupt, format_args!("rows of replay: {error}"))
        })?;
        if entry.start >= from {
            break;
        }
        entries = rest;
    }
    Ok(entries)
}
