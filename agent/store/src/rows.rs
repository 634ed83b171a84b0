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
//! rows are the same ones.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use walfmt::Lsn;
use walfmt::row::Entry;

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
    /// Nobody takes rows any more.
    abandoned: AtomicBool,
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
            abandoned: AtomicBool::new(false),
        }
    }
}

impl Rows {
    /// A store is opened: what was queued by another one is gone.
    pub(crate) fn begin(&self, sources: usize, applied: Arc<AtomicU64>) {
        let mut queues = self.lock();
        let taken = Lsn(applied.load(Ordering::SeqCst));
        let sources = (0..sources).map(|_| VecDeque::new()).collect();
        *queues = Queues { sources, applied: Some(applied), taken };
        self.queued.store(0, Ordering::SeqCst);
    }

    /// Adds entries of one source, behind those it has put before.
    pub(crate) fn put(&self, source: usize, entries: Vec<u8>) {
        if entries.is_empty() || self.abandoned.load(Ordering::Relaxed) {
            return;
        }
        self.queued.fetch_add(entries.len(), Ordering::SeqCst);
        let mut queues = self.lock();
        // Whoever has seen some looks again soon by itself: waking it for each batch takes more time from
        // the workers than all else here.
        let were_empty = queues.are_empty();
        queues.sources[source].push_back(entries);
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

    /// Waits a moment for room.
    pub(crate) fn wait_for_room(&self) {
        let queues = self.lock();
        if !self.has_room() {
            drop(self.changed.wait_timeout(queues, LOOK_INTERVAL));
        }
    }

    /// Waits until all rows before `redo` are durable, or nobody takes them.
    pub(crate) fn wait_durable(&self, redo: Lsn) {
        self.wanted.fetch_max(redo.0, Ordering::SeqCst);
        self.changed.notify_all();
        let mut queues = self.lock();
        while self.durable.load(Ordering::SeqCst) < redo.0 && !self.abandoned.load(Ordering::SeqCst)
        {
            queues = match self.changed.wait_timeout(queues, Duration::from_millis(100)) {
                Ok((queues, _)) => queues,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Whether somebody waits until more rows are durable.
    #[must_use]
    pub fn durable_is_wanted(&self) -> bool {
        self.durable.load(Ordering::SeqCst) < self.wanted.load(Ordering::SeqCst)
    }

    /// All rows before this position are durable where they were brought to.
    pub fn set_durable(&self, lsn: Lsn) {
        self.durable.fetch_max(lsn.0, Ordering::SeqCst);
        let _queues = self.lock(); // not between somebody's look and wait
        self.changed.notify_all();
    }

    /// Nobody takes rows any more: replay goes on without.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        let mut queues = self.lock();
        queues.sources.iter_mut().for_each(VecDeque::clear);
        self.queued.store(0, Ordering::SeqCst);
        self.changed.notify_all();
    }

    /// Adds to `merged` the entries up to where all is applied, in WAL order, at most about
    /// `bytes_max`; waits for some for at most `patience`. Gives the position before which all entries
    /// have been taken.
    pub fn take(&self, merged: &mut Vec<u8>, bytes_max: usize, patience: Duration) -> Lsn {
        let deadline = Instant::now() + patience;
        let mut queues = self.lock();
        loop {
            // Looked at under the lock and before the queues: see above.
            let applied = queues.applied.as_ref().map(|applied| applied.load(Ordering::SeqCst));
            let applied = Lsn(applied.unwrap_or_default());
            if applied > queues.taken {
                let begun = merged.len();
                let end = queues.merge(applied, merged, begun.saturating_add(bytes_max));
                queues.taken = end;
                self.queued.fetch_sub(merged.len() - begun, Ordering::SeqCst);
                if merged.len() > begun {
                    self.changed.notify_all();
                    return end;
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
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
            last = Some(start);
            // As long as this source is ahead of the others there is nothing to compare.
            let others = heads.iter().enumerate().filter(|(other, _)| *other != at);
            let until = others.filter_map(|(_, head)| head.order).min();
            let until = until.unwrap_or((end, 0, 0)).min((end, 0, 0));
            debug_assert!((start, ordinal, kind) <= until || start < end);
            heads[at].move_before(until, merged, bytes_max);
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
    fn move_before(&mut self, until: Order, merged: &mut Vec<u8>, bytes_max: usize) {
        const WRITTEN: &str = "as a worker has written it";
        while let Some(front) = self.queue.front() {
            let bytes = &front[self.used..];
            let (_, mut rest) = Entry::read(bytes).expect(WRITTEN);
            let mut stopped_at = None;
            while !rest.is_empty() {
                let (entry, behind) = Entry::read(rest).expect(WRITTEN);
                let is_full = merged.len() + (bytes.len() - rest.len()) >= bytes_max;
                if entry.order() >= until || is_full {
                    stopped_at = Some(entry.order());
                    break;
                }
                rest = behind;
            }
            let length = bytes.len() - rest.len();
            merged.extend_from_slice(&bytes[..length]);
            self.used += length;
            if stopped_at.is_some() {
                self.order = stopped_at;
                return;
            }
            self.look();
            if self.order.is_none_or(|order| order >= until) || merged.len() >= bytes_max {
                return;
            }
        }
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
        rows.put(0, entries(&[(10, 0, Inserted), (30, 0, UpdatedTo), (60, 0, Inserted)]));
        rows.put(1, entries(&[(20, 0, Inserted), (20, 1, Inserted), (30, 0, UpdatedFrom)]));
        rows.put(1, entries(&[(50, 0, Inserted)]));
        rows.put(2, entries(&[(40, 0, Record)]));
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
        rows.put(0, entries(&[(30, 0, UpdatedTo), (40, 0, UpdatedTo)]));
        rows.put(1, entries(&[(30, 0, UpdatedFrom), (40, 0, UpdatedFrom)]));
        applied.store(50, Ordering::SeqCst);
        let mut merged = Vec::new();
        assert_eq!(rows.take(&mut merged, 1, Duration::ZERO), Lsn(40));
        assert_eq!(orders(&merged), [(30, 0, UpdatedFrom), (30, 0, UpdatedTo)]);
    }
}
