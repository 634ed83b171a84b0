//! Rows on their way from the workers to whoever decodes them.
//!
//! ```text
//! worker 0    ── entries of a batch ──► queue 0 ─┐
//! worker 1    ── entries of a batch ──► queue 1 ─┼─ merge, up to what all have applied ─► entries in
//! dispatcher  ── whole records ───────► queue 2 ─┘                                        WAL order
//! ```
//!
//! A worker gives the entries of a batch away before it says that the batch is applied. So whatever
//! lies before the end of what is applied is in the queues, and can be put in order.
//!
//! A restart point waits until all rows before its redo pointer are durable with whoever takes them:
//! replay brings those from there on again. Their pages begin with an image then, or anew, so the
//! rows are the same ones. What is asked for on the way is there, too: see `gate.rs`.
//!
//! # Who waits for whom
//!
//! Whoever takes rows waits for the dispatcher when he [asks](Rows::ask) for TOAST values. The dispatcher
//! waits for him, directly or through a restart point: for room in the queues, and before files go that
//! he may still ask for ([`wait_durable`](Rows::wait_durable), [`Rows::is_durable`]). In all these waits
//! it answers. To answer, it waits for the workers alone, who wait for nobody: they put their rows
//! without asking for room. So one of both can always go on. What the dispatcher waits for does not need
//! more than what it has handed over already: all that is taken is applied, and he can [say](
//! Rows::set_durable) that it is durable without another record. The same holds when pages wait for rows
//! to be durable before they are written: see `gate.rs`.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use walfmt::page::ItemPointer;
use walfmt::row::Entry;
use walfmt::{Lsn, RelFileLocator};

use crate::error::FileError;
use crate::gate::Gate;
use crate::lock::FreeToast;
use crate::toast::{Desk, Removed, RemovedOfBatch, ToastAnswer, ToastFiles, ToastRequest};

/// Replay waits while more than this is queued, in bytes.
const QUEUED_BYTES_MAX: usize = 64 << 20;
/// How often it is looked whether workers have come further, while entries wait for that.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// The queues between a store and whoever takes its rows. See [`StoreConfig::rows`].
///
/// [`StoreConfig::rows`]: crate::StoreConfig::rows
pub struct Rows {
    queues: Mutex<Queues>,
    /// Something was put into a queue, or taken, or is durable.
    changed: Condvar,
    queued: AtomicUsize,
    /// All before it is durable with the one who takes rows.
    durable: AtomicU64,
    /// What somebody waits for to be durable.
    wanted: AtomicU64,
    /// What must be durable before more is replayed.
    paused: AtomicU64,
    pub(crate) gate: Gate,
    /// Nobody takes rows any more.
    abandoned: AtomicBool,
    /// There is no store that gives rows.
    is_closed: AtomicBool,
    desk: Desk,
    files: ToastFiles,
    free_toast: Mutex<Option<FreeToast>>,
    waker: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

/// Puts the entries of one record in order, whose pages were changed in the order of its references: an
/// update names the new version's page first. There are two at most that need it.
pub(crate) fn put_in_order(entries: &mut [u8]) {
    let Ok((first, rest)) = Entry::read(entries) else { return };
    if let Ok((second, _)) = Entry::read(rest)
        && second.order() < first.order()
    {
        let length = entries.len() - rest.len();
        entries.rotate_left(length);
    }
}

#[derive(Default)]
struct Queues {
    sources: Vec<VecDeque<Vec<u8>>>,
    applied: Option<Arc<AtomicU64>>,
    /// Up to where entries were taken.
    taken: Lsn,
    /// The same, as it was said last.
    told: Lsn,
    /// Chunks that are on no page any more.
    removed: Removed,
    /// Which store it is, counted.
    store: u64,
    /// Which store the entries are of that were taken last.
    taken_of: u64,
    /// Some that were taken of this one are not complete, and will not be: only another one brings them again.
    is_given_up: bool,
}

impl fmt::Debug for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rows({} bytes queued)", self.queued.load(Ordering::Relaxed))
    }
}

impl Default for Rows {
    fn default() -> Self {
        Self {
            queues: Mutex::default(),
            changed: Condvar::new(),
            queued: AtomicUsize::new(0),
            durable: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            paused: AtomicU64::new(0),
            gate: Gate::default(),
            abandoned: AtomicBool::new(false),
            is_closed: AtomicBool::new(true),
            desk: Desk::default(),
            files: ToastFiles::default(),
            free_toast: Mutex::default(),
            waker: OnceLock::new(),
        }
    }
}

impl Rows {
    /// A store is opened: what was queued by another one is gone.
    pub(crate) fn begin(&self, sources: usize, applied: Arc<AtomicU64>) {
        let mut queues = self.lock();
        let taken = Lsn(applied.load(Ordering::SeqCst));
        let sources = (0..sources).map(|_| VecDeque::new()).collect();
        let (store, taken_of) = (queues.store + 1, queues.taken_of);
        let removed = Removed::default();
        *queues = Queues {
            sources,
            applied: Some(applied),
            taken,
            told: taken,
            removed,
            store,
            taken_of,
            is_given_up: false,
        };
        self.queued.store(0, Ordering::SeqCst);
        // What another store has waited for comes again, and is waited for again.
        self.wanted.store(0, Ordering::SeqCst);
        self.paused.store(0, Ordering::SeqCst); // another store was there, and this one may not be yet
        self.is_closed.store(false, Ordering::SeqCst);
        self.files.forget_created();
        self.desk.set_store(Some(store));
    }

    /// The store is gone: no question is answered any more, and nothing waited for.
    pub(crate) fn end(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        self.desk.set_store(None);
        let _queues = self.lock(); // not between somebody's look and wait
        self.changed.notify_all();
    }

    /// Adds entries of one source, behind those it has put before, and chunks that it has taken off
    /// their pages.
    pub(crate) fn put(&self, source: usize, entries: Vec<u8>, removed: Vec<u8>) {
        let bytes = entries.len() + removed.len();
        if bytes == 0 || self.abandoned.load(Ordering::Relaxed) {
            return;
        }
        let removed = (!removed.is_empty()).then(|| RemovedOfBatch::new(removed));
        let mut queues = self.lock();
        if queues.is_given_up {
            return;
        }
        self.queued.fetch_add(bytes, Ordering::SeqCst);
        // Whoever has seen some looks again soon by itself: waking it for each batch takes more time from
        // the workers than all else here.
        let were_empty = queues.are_empty();
        if !entries.is_empty() {
            queues.sources[source].push_back(entries);
        }
        if let Some(removed) = removed {
            queues.removed.put(removed);
        }
        drop(queues);
        if were_empty {
            self.changed.notify_all();
        }
    }

    /// Whether more may be put.
    pub(crate) fn has_room(&self) -> bool {
        self.queued.load(Ordering::SeqCst) <= QUEUED_BYTES_MAX
            || self.abandoned.load(Ordering::Relaxed)
    }

    /// Waits until something has changed, or a moment.
    pub(crate) fn wait_a_moment(&self) {
        let queues = self.lock();
        drop(self.changed.wait_timeout(queues, LOOK_INTERVAL));
    }

    /// Waits until all rows before `lsn` are durable, or nobody takes them; `false` if the store is
    /// gone before, or `stop` says so.
    pub(crate) fn wait_durable(&self, lsn: Lsn, stop: impl Fn() -> bool) -> bool {
        self.want_durable(lsn);
        let mut queues = self.lock();
        while !self.is_durable(lsn) {
            if self.is_closed.load(Ordering::SeqCst) || stop() {
                return false;
            }
            queues = match self.changed.wait_timeout(queues, Duration::from_millis(100)) {
                Ok((queues, _)) => queues,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }

    /// Somebody is going to wait until all rows before `lsn` are durable.
    pub(crate) fn want_durable(&self, lsn: Lsn) {
        self.wanted.fetch_max(lsn.0, Ordering::SeqCst);
        let _queues = self.lock();
        self.changed.notify_all();
    }

    /// Whether all rows before `lsn` are durable, or nobody takes them.
    pub(crate) fn is_durable(&self, lsn: Lsn) -> bool {
        self.durable.load(Ordering::SeqCst) >= lsn.0 || self.abandoned.load(Ordering::SeqCst)
    }

    /// Nothing more should be replayed until all rows before `lsn` are durable, all of which were handed
    /// over.
    pub(crate) fn pause(&self, lsn: Lsn) {
        self.paused.fetch_max(lsn.0, Ordering::SeqCst);
        self.want_durable(lsn);
    }

    /// Whether more may be replayed, when that up to `given` was handed over.
    pub(crate) fn may_go_on(&self, given: Lsn) -> bool {
        self.has_room() && self.is_durable(given.min(Lsn(self.paused.load(Ordering::SeqCst))))
    }

    /// Up to where rows are durable.
    pub(crate) fn durable(&self) -> Lsn {
        Lsn(self.durable.load(Ordering::SeqCst))
    }

    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// Whether somebody waits until more rows are durable.
    #[must_use]
    pub fn durable_is_wanted(&self) -> bool {
        self.durable.load(Ordering::SeqCst) < self.wanted.load(Ordering::SeqCst)
    }

    /// All rows before this position are durable where they were brought to, with all that they need:
    /// no TOAST value of theirs will be asked for, even after a crash. Files of TOAST relations wait
    /// for that before they go.
    pub fn set_durable(&self, lsn: Lsn) {
        self.durable.fetch_max(lsn.0, Ordering::SeqCst);
        let _queues = self.lock(); // not between somebody's look and wait
        self.changed.notify_all();
    }

    /// What the store is told when rows are lost.
    pub(crate) fn set_free_toast(&self, free_toast: FreeToast) {
        *self.free_toast.lock().unwrap_or_else(PoisonError::into_inner) = Some(free_toast);
    }

    /// Rows are lost from here on: the store keeps, durably, that values which they need may be gone when
    /// they come again. Then it goes on without, as after [`abandon`](Self::abandon).
    ///
    /// # Errors
    /// [`FileError`] if the lock file cannot be written; it goes on nevertheless.
    pub fn lose(&self) -> Result<(), FileError> {
        let told = match &*self.free_toast.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(free_toast) => free_toast.write(),
            None => Ok(()),
        };
        self.abandon();
        told
    }

    /// Nobody takes rows any more: replay goes on without.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        self.clear(&mut self.lock());
    }

    fn clear(&self, queues: &mut Queues) {
        queues.sources.iter_mut().for_each(VecDeque::clear);
        queues.removed.clear();
        self.queued.store(0, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Asks the store for the chunks of TOAST values, and waits for the answers, one for each request, as
    /// of one position between two records, behind all that was [taken](Self::take). To be called by the
    /// one thread that takes rows; each call waits until the workers have done what is under way, so ask
    /// for many values at once.
    ///
    /// Nothing if there will be no answer: the store that the rows are of is gone, or has failed, or
    /// `stop` says so. Then nothing of what was taken is complete, and it will be replayed again. No row
    /// comes before that.
    ///
    /// Chunks that are not found were taken off their pages by a record behind: see
    /// [`find_removed`](Self::find_removed).
    pub fn ask(
        &self,
        requests: Vec<ToastRequest>,
        stop: impl Fn() -> bool,
    ) -> Option<Vec<ToastAnswer>> {
        let store = self.lock().taken_of;
        let remind = || {
            self.changed.notify_all();
            if let Some(waker) = self.waker.get() {
                waker();
            }
        };
        let answer = self.desk.ask(store, requests, remind, || stop() || self.is_abandoned());
        if answer.is_none() {
            let mut queues = self.lock();
            if queues.store == store {
                queues.is_given_up = true;
                self.clear(&mut queues);
            }
        }
        answer
    }

    /// The chunks of a TOAST value, as in [`ToastAnswer`], that records behind the rows that are
    /// [done](Self::set_done) have taken off their pages. To be called after [`ask`](Self::ask): what is
    /// in neither of both is not there.
    #[must_use]
    pub fn find_removed(&self, heap: RelFileLocator, value: u32) -> Vec<Vec<u8>> {
        self.lock().removed.find(heap, value)
    }

    /// Where chunks of a TOAST value are whose entries were taken off the index, as far as
    /// [`find_removed`](Self::find_removed) goes back.
    pub(crate) fn find_unindexed(&self, index: RelFileLocator, value: u32) -> Vec<ItemPointer> {
        self.lock().removed.find_unindexed(index, value)
    }

    /// Nobody will ask for a TOAST value that a row before this position needs. To be called after each
    /// [`take`](Self::take), when the rows have what they need: what was kept for them counts as queued.
    pub fn set_done(&self, lsn: Lsn) {
        let mut queues = self.lock();
        let bytes = queues.removed.forget_before(lsn);
        if bytes > 0 {
            self.queued.fetch_sub(bytes, Ordering::SeqCst);
            drop(queues);
            self.changed.notify_all();
        }
    }

    /// These files of a database, or shared ones (0), are of TOAST relations or their indexes: what leaves
    /// their pages is kept, and they do not go as long as somebody may ask for what is in them.
    ///
    /// A relation that was created since the store was opened counts as one until this or
    /// [`set_not_toast`](Self::set_not_toast) tells what it is: whoever tells is behind. Of all others it
    /// must be told before the first record is replayed whose rows are of interest.
    pub fn set_toast(&self, database: u32, files: &[u32]) {
        self.files.tell_toast(database, files);
    }

    /// These are not.
    pub fn set_not_toast(&self, database: u32, files: &[u32]) {
        self.files.tell_other(database, files);
    }

    /// Calls this when somebody asks, so that whoever has the store does not sleep:
    /// [`Store::serve_rows`](crate::Store::serve_rows). Only the first call counts.
    pub fn set_waker(&self, waker: impl Fn() + Send + Sync + 'static) {
        let _ = self.waker.set(Box::new(waker));
    }

    pub(crate) const fn desk(&self) -> &Desk {
        &self.desk
    }

    pub(crate) const fn files(&self) -> &ToastFiles {
        &self.files
    }

    /// Adds to `merged` the entries up to where all is applied, in WAL order, at most about
    /// `bytes_max`; waits for some for at most `patience`. Gives the position before which all entries
    /// have been taken; none ([`Lsn::INVALID`]) if some must come again, see [`ask`](Self::ask).
    pub fn take(&self, merged: &mut Vec<u8>, bytes_max: usize, patience: Duration) -> Lsn {
        let deadline = Instant::now() + patience;
        let mut queues = self.lock();
        let begun = merged.len();
        loop {
            // Looked at under the lock and before the queues: see above.
            let applied = queues.applied.as_ref().map(|applied| applied.load(Ordering::SeqCst));
            let applied = Lsn(applied.unwrap_or_default());
            queues.taken_of = queues.store; // another one may have come meanwhile
            if applied > queues.taken && !queues.is_given_up {
                let end = queues.merge(applied, merged, begun.saturating_add(bytes_max));
                queues.taken = end;
                self.queued.fetch_sub(merged.len() - begun, Ordering::SeqCst);
                if merged.len() > begun {
                    self.changed.notify_all();
                    queues.told = end;
                    return end;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            // Somebody waits for the position, also if there is no row before it; or for room, and
            // there is none because of what is kept until this is done.
            let is_wanted = self.durable_is_wanted() && !self.is_durable(queues.taken);
            let is_full = queues.taken > queues.told && !self.has_room();
            if queues.is_given_up {
                if left.is_zero() {
                    return Lsn::INVALID;
                }
            } else if left.is_zero() || is_wanted || is_full {
                queues.told = queues.taken;
                return queues.taken;
            }
            let wait = if queues.are_empty() { left } else { left.min(LOOK_INTERVAL) };
            queues = match self.changed.wait_timeout(queues, wait) {
                Ok((queues, _)) => queues,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queues {
    fn are_empty(&self) -> bool {
        self.sources.iter().all(VecDeque::is_empty)
    }

    /// Moves entries before `end` to `merged`, until it has `bytes_max`. Gives up to where.
    fn merge(&mut self, end: Lsn, merged: &mut Vec<u8>, bytes_max: usize) -> Lsn {
        let mut heads: Vec<Head> = self.sources.iter_mut().map(Head::new).collect();
        let mut last = None;
        loop {
            let next = heads.iter().enumerate().filter_map(|(at, head)| Some((head.order?, at)));
            let Some(((start, ordinal, kind), at)) = next.min() else { break };
            if start >= end {
                break;
            }
            if merged.len() >= bytes_max && last != Some(start) {
                heads.into_iter().for_each(Head::finish);
                return start; // all before it is there
            }
            // As long as this source is ahead of the others there is nothing to compare.
            let others = heads.iter().enumerate().filter(|(other, _)| *other != at);
            let until = others.filter_map(|(_, head)| head.order).min();
            let until = until.unwrap_or((end, 0, 0)).min((end, 0, 0));
            debug_assert!((start, ordinal, kind) <= until || start < end);
            last = heads[at].move_before(until, merged, bytes_max);
        }
        heads.into_iter().for_each(Head::finish);
        end
    }
}

/// The front of a queue.
struct Head<'a> {
    queue: &'a mut VecDeque<Vec<u8>>,
    /// How much of its first buffer was moved.
    used: usize,
    /// Of its first entry.
    order: Option<Order>,
}

type Order = (Lsn, u16, u8);

impl<'a> Head<'a> {
    fn new(queue: &'a mut VecDeque<Vec<u8>>) -> Self {
        let mut head = Self { queue, used: 0, order: None };
        head.look();
        head
    }

    fn look(&mut self) {
        while self.queue.front().is_some_and(|front| front.len() <= self.used) {
            self.queue.pop_front();
            self.used = 0;
        }
        self.order = self.queue.front().map(|front| {
            let (entry, _) = Entry::read(&front[self.used..]).expect("as a worker has written it");
            entry.order()
        });
    }

    /// Moves the first entry, and those after it that come before `until`: of each buffer in one piece.
    /// Gives where the last one's record begins, which may have more in other queues.
    fn move_before(&mut self, until: Order, merged: &mut Vec<u8>, bytes_max: usize) -> Option<Lsn> {
        const WRITTEN: &str = "as a worker has written it";
        let mut last = None;
        while let Some(front) = self.queue.front() {
            let bytes = &front[self.used..];
            let (entry, mut rest) = Entry::read(bytes).expect(WRITTEN);
            last = Some(entry.start);
            let mut stopped_at = None;
            while !rest.is_empty() {
                let (entry, behind) = Entry::read(rest).expect(WRITTEN);
                let is_full = merged.len() + (bytes.len() - rest.len()) >= bytes_max;
                if entry.order() >= until || is_full {
                    stopped_at = Some(entry.order());
                    break;
                }
                last = Some(entry.start);
                rest = behind;
            }
            let length = bytes.len() - rest.len();
            merged.extend_from_slice(&bytes[..length]);
            self.used += length;
            if stopped_at.is_some() {
                self.order = stopped_at;
                break;
            }
            self.look();
            if self.order.is_none_or(|order| order >= until) || merged.len() >= bytes_max {
                break;
            }
        }
        last
    }

    /// Lets go of what was moved.
    fn finish(self) {
        if self.used > 0
            && let Some(front) = self.queue.front_mut()
        {
            front.drain(..self.used);
        }
    }
}

#[cfg(test)]
mod tests {
    use walfmt::relation::PageId;
    use walfmt::row::EntryKind;
    use walfmt::{RelFileLocator, TransactionId};

    use super::*;

    fn entries(rows: &[(u64, u16, EntryKind)]) -> Vec<u8> {
        let locator = RelFileLocator { tablespace: 1663, database: 5, relation: 16384 };
        let page = PageId { locator, ..PageId::default() };
        let mut bytes = Vec::new();
        for (start, ordinal, kind) in rows {
            let entry = Entry::row((Lsn(*start), TransactionId(3)), *kind, page, 1, &[0; 9]);
            Entry { ordinal: *ordinal, ..entry }.write(&mut bytes);
        }
        bytes
    }

    fn orders(mut bytes: &[u8]) -> Vec<(u64, u16, EntryKind)> {
        let mut orders = Vec::new();
        while !bytes.is_empty() {
            let (entry, rest) = Entry::read(bytes).unwrap();
            orders.push((entry.start.0, entry.ordinal, entry.kind));
            bytes = rest;
        }
        orders
    }

    #[test]
    fn entries_come_in_wal_order_up_to_what_is_applied() {
        use EntryKind::{Inserted, Record, UpdatedFrom, UpdatedTo};
        let (rows, applied) = (Rows::default(), Arc::new(AtomicU64::new(10)));
        rows.begin(3, Arc::clone(&applied));
        rows.put(
            0,
            entries(&[(10, 0, Inserted), (30, 0, UpdatedTo), (60, 0, Inserted)]),
            Vec::new(),
        );
        rows.put(
            1,
            entries(&[(20, 0, Inserted), (20, 1, Inserted), (30, 0, UpdatedFrom)]),
            Vec::new(),
        );
        rows.put(1, entries(&[(50, 0, Inserted)]), Vec::new());
        rows.put(2, entries(&[(40, 0, Record)]), Vec::new());
        let mut merged = Vec::new();
        assert_eq!(rows.take(&mut merged, 1 << 20, Duration::ZERO), Lsn(10));
        assert!(merged.is_empty(), "nothing is applied yet");

        applied.store(45, Ordering::SeqCst);
        assert_eq!(rows.take(&mut merged, 1 << 20, Duration::ZERO), Lsn(45));
        let expected = [
            (10, 0, Inserted),
            (20, 0, Inserted),
            (20, 1, Inserted),
            (30, 0, UpdatedFrom),
            (30, 0, UpdatedTo),
            (40, 0, Record),
        ];
        assert_eq!(orders(&merged), expected);

        merged.clear();
        applied.store(70, Ordering::SeqCst);
        assert_eq!(rows.take(&mut merged, 1, Duration::ZERO), Lsn(60), "a little at a time");
        assert_eq!(orders(&merged), [(50, 0, Inserted)]);
        assert_eq!(rows.take(&mut merged, 1 << 20, Duration::ZERO), Lsn(70));
        assert_eq!(orders(&merged).len(), 2);
        assert_eq!(rows.queued.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn an_updates_old_version_comes_first() {
        use EntryKind::{Inserted, UpdatedFrom, UpdatedTo};
        let mut both = entries(&[(30, 0, UpdatedTo), (30, 0, UpdatedFrom)]);
        put_in_order(&mut both);
        assert_eq!(orders(&both), [(30, 0, UpdatedFrom), (30, 0, UpdatedTo)]);
        let many = [(30, 0, Inserted), (30, 1, Inserted), (30, 2, Inserted)];
        let mut all = entries(&many);
        put_in_order(&mut all);
        assert_eq!(orders(&all), many);
    }

    #[test]
    fn a_records_rows_are_not_torn_apart() {
        use EntryKind::{UpdatedFrom, UpdatedTo};
        let (rows, applied) = (Rows::default(), Arc::new(AtomicU64::new(0)));
        rows.begin(2, Arc::clone(&applied));
        rows.put(0, entries(&[(30, 0, UpdatedTo), (40, 0, UpdatedTo)]), Vec::new());
        rows.put(1, entries(&[(30, 0, UpdatedFrom), (40, 0, UpdatedFrom)]), Vec::new());
        applied.store(50, Ordering::SeqCst);
        let mut merged = Vec::new();
        assert_eq!(rows.take(&mut merged, 1, Duration::ZERO), Lsn(40));
        assert_eq!(orders(&merged), [(30, 0, UpdatedFrom), (30, 0, UpdatedTo)]);
    }

    /// Wherever it is full: also at the end of several entries that come in one piece.
    #[test]
    fn a_records_rows_are_not_torn_apart_at_the_end_of_others() {
        use EntryKind::{Inserted, UpdatedFrom, UpdatedTo};
        let one = entries(&[(10, 0, Inserted)]).len();
        let first = [(10, 0, Inserted), (20, 0, Inserted), (30, 0, UpdatedFrom)];
        let second = [(30, 0, UpdatedTo), (40, 0, Inserted), (50, 0, Inserted), (50, 1, Inserted)];
        let all: Vec<_> = first.iter().chain(&second).copied().collect();
        for bytes_max in 1..=all.len() * one + 1 {
            let (rows, applied) = (Rows::default(), Arc::new(AtomicU64::new(0)));
            rows.begin(2, Arc::clone(&applied));
            rows.put(0, entries(&first), Vec::new());
            rows.put(1, entries(&second), Vec::new());
            applied.store(60, Ordering::SeqCst);
            let mut found = Vec::new();
            while found.len() < all.len() {
                let mut merged = Vec::new();
                let end = rows.take(&mut merged, bytes_max, Duration::ZERO);
                found.extend(orders(&merged));
                let (before, after) = all.split_at(found.len());
                assert_eq!(found, before);
                assert!(before.iter().all(|(start, ..)| *start < end.0), "{bytes_max}: {end}");
                assert!(after.iter().all(|(start, ..)| *start >= end.0), "{bytes_max}: {end}");
            }
        }
    }
}
