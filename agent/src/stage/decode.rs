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
mod toast;

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use walferry_store::Rows;
use walfmt::relation::DatabaseLocator;
use walfmt::row::Entry;
use walfmt::{Lsn, TransactionId, Version};
use walfmt_logical::{Decoder, EntrySource, Event, EventSink, Place};

pub(crate) use self::catalogs::{Watch, load_all};
use crate::config::DecodeSection;
use crate::identity::Identity;
use crate::node::Node;
use crate::positions::Position;
use crate::spool::Writer;
use crate::stage::State;
use crate::stage::heart::Heart;
use crate::trouble::{Kind, Trouble};

pub(crate) const STAGE: &str = "decode";
/// How much is put into the spool at once, in bytes.
const CHUNK_BYTES: usize = 1 << 20;
const IDLE_WAIT: Duration = Duration::from_millis(100);
/// How often the spool is synced while rows come, so that a restart point, which asks for it, too, need not
/// wait for much.
const SYNC_INTERVAL: Duration = Duration::from_secs(5);

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
    begin: Option<(Lsn, Vec<u8>, Catalogs)>,
    /// Databases whose creation the spool has seen the begin of, and not the end.
    made: Vec<(TransactionId, DatabaseLocator)>,
    /// Nothing is captured any more.
    has_failed: bool,
}

/// How the spool goes on when replay begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beginning {
    GoesOn,
    /// It does not reach to where replay begins.
    Anew,
    /// It does; but what its next rows need may be gone.
    AnewWithoutValues,
}

impl Capture {
    /// For replay, before it begins at `from`: whether the spool goes on, as it cannot if values that rows
    /// need may be gone. Nothing if there is no capture any more.
    pub(crate) fn beginning(
        &self,
        node: &Node,
        from: Lsn,
        values_are_there: bool,
    ) -> Option<Beginning> {
        let mut state = self.lock();
        loop {
            match state.end {
                _ if state.has_failed || node.stopping() => return None,
                Some(end) => {
                    let is_behind = end.is_none_or(|end| end < from);
                    state.is_discarding |= is_behind || !values_are_there;
                    return Some(match (state.is_discarding, is_behind) {
                        (false, _) => Beginning::GoesOn,
                        (true, true) => Beginning::Anew,
                        (true, false) => Beginning::AnewWithoutValues,
                    });
                }
                None => state = self.wait(state),
            }
        }
    }

    /// For replay, after that: databases that were being made where the spool ends.
    pub(crate) fn databases_made(&self) -> Vec<(TransactionId, DatabaseLocator)> {
        self.lock().made.clone()
    }

    /// For replay: all is applied up to `at`, and these are the catalogs there.
    pub(crate) fn begin(
        &self,
        at: Lsn,
        entries: Vec<u8>,
        identity: Identity,
    ) -> Result<(), Trouble> {
        let mut catalogs = Catalogs::new(identity.version);
        catalogs.put(&entries)?;
        // Before the next record is replayed.
        catalogs.tell_files(&self.rows);
        self.lock().begin = Some((at, entries, catalogs));
        self.changed.notify_all();
        Ok(())
    }

    /// For replay, after [`begin`](Self::begin): whether the spool has begun, durably. Nothing if it will not.
    pub(crate) fn has_begun(&self) -> Option<bool> {
        let state = self.lock();
        (!state.has_failed).then_some(!state.is_discarding)
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
        if let Err(error) = capture.rows.lose() {
            tracing::error!("rows that are captured later may lack long values: {error}");
        }
    }
    // A promotion waits for whoever takes rows.
    capture.rows.abandon();
    capture.changed.notify_all();
}

fn run_until_end(node: &Node, capture: &Capture, config: &DecodeSection) -> Result<(), Trouble> {
    let Some(identity) = wait_for_identity(node) else { return Ok(()) };
    let heart = node.hearts.start(STAGE, &[STAGE]);
    loop {
        heart.beat();
        let mut capturing = Capturing::open(node, capture, config, identity, &heart)?;
        let ended = capturing.run()?;
        capturing.sync()?;
        // The store is gone before it could be asked: what was taken last comes again from another one.
        if ended || capture.replay_has_ended.load(Ordering::SeqCst) {
            return Ok(());
        }
        capture.lock().end = None;
    }
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
    catalogs: Catalogs,
    /// See [`DecodeSection::max_bytes`].
    bytes_max: u64,
    /// Rows before this are in the spool; nothing if none are captured.
    from: Option<Lsn>,
    /// How many values were nowhere.
    unknown: u64,
    synced_at: Instant,
    heart: &'a Heart,
}

impl<'a> Capturing<'a> {
    fn open(
        node: &'a Node,
        capture: &'a Capture,
        config: &DecodeSection,
        identity: Identity,
        heart: &'a Heart,
    ) -> Result<Self, Trouble> {
        let mut catalogs = Catalogs::new(identity.version);
        let major = identity.version.major;
        let writer =
            Writer::open(&config.directory, identity, major, |entries| catalogs.put(entries))?;
        // Before replay is told that it may begin.
        catalogs.tell_files(&capture.rows);
        let end = writer.end();
        catalogs.decoder.set_oldest(writer.oldest());
        {
            let mut state = capture.lock();
            state.end = Some(end);
            state.made = catalogs.decoder.databases_made().collect();
        }
        capture.changed.notify_all();
        if end.is_some() {
            node.stages.set(STAGE, State::Streaming, "");
        } else {
            let words = "for the store to be consistent: rows are captured from there on";
            node.stages.set(STAGE, State::Waiting, words);
        }
        let bytes_max = config.max_bytes;
        let (unknown, synced_at) = (0, Instant::now());
        Ok(Self {
            node,
            capture,
            writer,
            catalogs,
            bytes_max,
            from: end,
            unknown,
            synced_at,
            heart,
        })
    }

    /// Captures until replay ends; `false` if the store goes before.
    fn run(&mut self) -> Result<bool, Trouble> {
        let mut entries = Vec::with_capacity(CHUNK_BYTES + (CHUNK_BYTES >> 2));
        loop {
            self.heart.beat();
            let has_ended = self.capture.replay_has_ended.load(Ordering::SeqCst);
            entries.clear();
            let taken = self.capture.rows.take(&mut entries, CHUNK_BYTES, IDLE_WAIT);
            // Looked at after rows were taken and before they are put: replay says where they begin
            // before it brings the first one, and does not wait.
            let begin = self.capture.lock().begin.take();
            if let Some((at, entries, catalogs)) = begin {
                self.catalogs = catalogs;
                self.begin(at, &entries)?;
                self.node.stages.set(STAGE, State::Streaming, "");
            }
            if !self.put(&entries, taken)? {
                return Ok(false);
            }
            if has_ended && entries.is_empty() {
                return Ok(true);
            }
        }
    }

    /// These are all rows before `end` that did not come before. `false` if the store is gone that has what
    /// they need.
    fn put(&mut self, entries: &[u8], end: Lsn) -> Result<bool, Trouble> {
        let rows = &self.capture.rows;
        // Replay says so before it brings the first row.
        let is_discarding = self.capture.lock().is_discarding;
        let Some(from) = self.from.filter(|_| !is_discarding) else {
            rows.set_done(end); // nothing is to be kept of it
            rows.set_durable(end);
            return Ok(true);
        };
        if end > from {
            let new = after(entries, from)?;
            if !new.is_empty() {
                let needed = toast::needed(new, &mut self.catalogs)?;
                self.catalogs.tell_files(rows);
                let ended = || self.capture.replay_has_ended.load(Ordering::SeqCst);
                let before = self.unknown;
                // Replay answers, which has a heart of its own and may be waiting for a disk.
                self.heart.rest();
                let whole = toast::complete(new, needed, rows, ended, &mut self.unknown)?;
                self.heart.beat();
                let Some(whole) = whole else { return Ok(false) };
                if self.unknown > before {
                    let (values, until) = (self.unknown - before, end);
                    tracing::warn!(%from, %until, values, "values that updates left alone are nowhere");
                }
                self.writer.append(&whole, end)?;
                if self.writer.is_full() {
                    let (catalogs, oldest) = self.catalogs.write(end);
                    self.writer.go_on(&catalogs, oldest)?;
                    self.writer.remove_oldest(self.bytes_max)?;
                }
            }
            self.reached(end);
        }
        let rows = &self.capture.rows;
        rows.set_done(end);
        let is_wanted = rows.durable_is_wanted();
        if is_wanted || self.synced_at.elapsed() >= SYNC_INTERVAL {
            self.sync()?;
        }
        Ok(true)
    }

    fn begin(&mut self, at: Lsn, catalogs: &[u8]) -> Result<(), Trouble> {
        self.writer.begin(at, catalogs)?;
        self.reached(at);
        self.sync()?;
        self.capture.lock().is_discarding = false;
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
        self.capture.lock().made = self.catalogs.decoder.databases_made().collect();
        if let Some(from) = self.from {
            self.capture.rows.set_durable(from);
        }
        Ok(())
    }
}

/// Tells the store which files of what was loaded have long values.
fn tell_files(entries: &[u8], version: &'static Version, rows: &Rows) -> Result<(), Trouble> {
    let mut catalogs = Catalogs::new(version);
    catalogs.put(entries)?;
    catalogs.tell_files(rows);
    Ok(())
}

/// The catalogs as they are at the spool's end.
struct Catalogs {
    decoder: Decoder,
}

impl Catalogs {
    fn new(version: &'static Version) -> Self {
        Self { decoder: Decoder::watching(version) }
    }

    /// What came next.
    fn put(&mut self, mut entries: &[u8]) -> Result<(), Trouble> {
        while !entries.is_empty() {
            let (entry, rest) = Entry::read(entries).map_err(|error| broken(&error))?;
            self.put_one(&entry)?;
            entries = rest;
        }
        Ok(())
    }

    #[inline]
    fn put_one(&mut self, entry: &Entry<'_>) -> Result<(), Trouble> {
        let watched = self.decoder.push(entry, Place(0), &mut Nothing, &mut Nothing);
        watched.map_err(|error| broken(&error))
    }

    /// Tells the store which files are new, and which of them have long values.
    fn tell_files(&mut self, rows: &Rows) {
        for (database, file, is_toast) in self.decoder.take_new_files() {
            if is_toast {
                rows.set_toast(database, &[file]);
            } else {
                rows.set_not_toast(database, &[file]);
            }
        }
    }

    /// As entries, with where the first row may be of a transaction that has not ended.
    fn write(&self, at: Lsn) -> (Vec<u8>, Lsn) {
        let mut entries = Vec::new();
        let oldest = self.decoder.write_state(at, &mut entries);
        (entries, oldest)
    }
}

fn broken(error: &dyn std::fmt::Display) -> Trouble {
    Trouble::new(Kind::Corrupt, format_args!("rows of replay: {error}"))
}

/// A decoder that only watches asks nobody, and tells nobody.
struct Nothing;

impl EntrySource for Nothing {
    type Error = &'static str;

    fn entry(&mut self, _: Place) -> Result<Entry<'_>, &'static str> {
        Err("an entry was asked for that nobody keeps")
    }
}

impl EventSink for Nothing {
    type Error = Infallible;

    fn event(&mut self, _: &Event<'_>) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The entries of records from `from` on.
fn after(mut entries: &[u8], from: Lsn) -> Result<&[u8], Trouble> {
    while !entries.is_empty() {
        let (entry, rest) = Entry::read(entries).map_err(|error| broken(&error))?;
        if entry.start >= from {
            break;
        }
        entries = rest;
    }
    Ok(entries)
}
