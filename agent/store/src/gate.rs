//! The gate: pages of TOAST relations wait for rows before they are written.
//!
//! ```text
//! WAL       R ........ S ...... X ........ P        R  where replay begins again after a crash
//! spool     ──────────►|                            S  rows before it are durable
//! a page    ──────────────────────────────►|        P  its LSN: pruned behind X
//! ```
//!
//! Whoever takes rows looks up values that updates left alone. After a crash he comes by the update at X
//! again, and its value must still be there. In memory it is: what is pruned behind X was kept until he
//! was done. On disk it is not, if the page was written with LSN P meanwhile: replay does not prune it
//! again before it comes to the first record behind R that changes the page, which brings an image of all
//! of it. So a page of a TOAST relation's heap, or of its index, is not written before all rows before
//! its LSN are durable. Then S is not before P, and whatever is looked up at X is on pages that are all as
//! of one position, or replay takes it off them. That goes for torn pages, too: those had their image.
//!
//! Pages reach their files in three ways.
//!
//! - *To make room for another one.* Pages that have to wait are passed over. If all have to, the cache
//!   grows, and the dispatcher hands nothing more over until they may be written.
//! - *For a restart point*, or because somebody is going to look at files. A page that has to wait is
//!   copied, since it may never be old enough otherwise, and the copy is written later. The worker goes
//!   on with replay meanwhile; whoever has it write waits for the rows, and tells it.
//! - *With its file*: when that is cut, removed or copied. Cuts and removals wait for rows on their own
//!   account (`dispatcher/routing.rs`). A copy comes after all pages were written as above, and what it
//!   replaces is of no use to rows behind it, which need what is copied.
//!
//! Maps of free space and visibility hold no values: they are written at any time.
//!
//! # Nobody waits for himself
//!
//! A worker never waits here: it passes over, copies or grows. So it always gets to the end of what it was
//! handed, and all that was handed over is applied sometime, whatever else happens. Who waits until rows
//! before a page's LSN are durable is the dispatcher, who answers whoever takes them meanwhile, or the
//! sync thread, for whom the dispatcher never waits without answering. A page was changed by nothing but
//! what was handed over; hence its LSN is not beyond that, and whoever takes rows can take all before it,
//! get answers to all he has to ask, and say that they are durable, without another record.
//!
//! # How much the cache grows
//!
//! When a worker has to grow the dispatcher gives it no new batch. It has some still: all workers together
//! have about nine of 64 kB for each of them. Only pages that these change and that have to wait as well
//! take new slots. A record that deletes a chunk of its own page is, with that of the row it belongs to,
//! about 110 bytes long, so these are about 5000 pages for a worker. [`GROWTH_PAGES_MAX`] is more than
//! that. Should that be in use nevertheless, pages are written early, which is counted and said. Memory
//! must not be used up for decoding's sake, and replay cannot stop in the midst of a batch.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam_channel::Sender;
use walfmt::relation::BLOCK_SIZE;
use walfmt::{ForkNumber, Lsn, page};
use walfmt_physical::Page;

use crate::cache::PageKey;
use crate::error::{FileError, PageFault};
use crate::rows::Rows;
use crate::shared::Failure;
use crate::worker::{Message, Worker};

/// By how many pages a worker's cache may grow: 64 MB.
const GROWTH_PAGES_MAX: usize = 8192;

/// How many pages of a restart point are written between two batches: 4 MB.
const WRITE_BACK_STEP_PAGES: usize = 512;

/// How many copies a worker keeps before it waits until they are written: 4 MB. One more step may come.
const COPIES_MAX: usize = 512;

/// How many cold pages are written at most when one is in the way: 8 MB.
const COLD_PAGES_MAX: usize = 1024;

/// What all workers have in common: what is told of the gate, and how a test can change it.
pub(crate) struct Gate {
    pub(crate) held: AtomicU64,
    pub(crate) early: AtomicU64,
    /// All pages may pass.
    is_off: AtomicBool,
    growth_max: AtomicUsize,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            held: AtomicU64::new(0),
            early: AtomicU64::new(0),
            is_off: AtomicBool::new(false),
            growth_max: AtomicUsize::new(GROWTH_PAGES_MAX),
        }
    }
}

impl Gate {
    pub(crate) fn growth_max(&self) -> usize {
        self.growth_max.load(Ordering::Relaxed)
    }
}

impl Rows {
    /// How often a page of a TOAST relation was not written when its turn came, because rows before its
    /// last change were not durable.
    #[must_use]
    pub fn pages_held(&self) -> u64 {
        self.gate.held.load(Ordering::Relaxed)
    }

    /// How many such pages were written nevertheless, because memory for more of them was used up. A crash
    /// before those rows are durable may cost values that updates left alone.
    #[must_use]
    pub fn pages_written_early(&self) -> u64 {
        self.gate.early.load(Ordering::Relaxed)
    }
}

#[cfg(any(test, feature = "testing"))]
impl Rows {
    /// Has pages written whether rows before them are durable or not, to see what comes of that.
    pub fn switch_gate_off(&self) {
        self.gate.is_off.store(true, Ordering::SeqCst);
    }

    /// Lets the memory of each worker of stores opened from now on grow by no more than this many pages.
    pub fn limit_growth(&self, pages: usize) {
        self.gate.growth_max.store(pages, Ordering::SeqCst);
    }
}

/// What a worker knows of the pages that it passes over.
#[derive(Default)]
pub(crate) struct Held {
    /// Up to where rows were durable when the first of them was.
    durable: Lsn,
    /// What was known of files then.
    files_version: u64,
    /// The greatest of their LSNs.
    until: Lsn,
}

/// What a worker answers that was told to write.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Written {
    /// All is written.
    All,
    /// It could not be, or must not after a failure.
    Failed,
    /// There is more. Answers again once it was told that rows are durable until there.
    Held { worker: usize, until: Lsn },
}

/// The pages that a worker was told to write.
pub(crate) struct WritingRestartPoint {
    /// Pages still to be written, last first.
    keys: Vec<PageKey>,
    /// Pages that had to wait when it was their turn, as they were then.
    copies: Vec<Copy>,
    /// Nothing is written until all copies may be.
    is_waiting: bool,
    /// Whether pages of free space maps were added: those changed by the last notes from before.
    has_free_space: bool,
    /// Who waits.
    answer: Sender<Written>,
}

struct Copy {
    key: PageKey,
    page: Box<Page>,
}

impl WritingRestartPoint {
    /// Pages that are gone, or whose relations' numbers may get new names.
    pub(crate) fn forget(&mut self, doomed: impl Fn(PageKey) -> bool) {
        self.keys.retain(|key| !doomed(*key));
        self.copies.retain(|copy| !doomed(copy.key));
    }

    fn copied_until(&self) -> Lsn {
        self.copies.iter().map(|copy| page::lsn(&copy.page)).max().unwrap_or_default()
    }
}

impl Worker {
    /// A slot for a page that is not in memory.
    pub(crate) fn claim(&mut self, key: PageKey) -> Result<usize, PageFault> {
        if self.parts.cache.held().0 > 0 {
            self.let_go();
        }
        loop {
            if let Some(slot) = self.parts.cache.claim(key) {
                return Ok(slot);
            }
            let mut cold = self.cold_pages();
            if cold.is_empty() {
                if let Some(slot) = self.grow(key) {
                    return Ok(slot);
                }
                self.parts.cache.let_go();
                cold = self.cold_pages();
                self.count_early(&cold);
            } else {
                self.hold_back(&mut cold);
            }
            self.write_evicted(&cold)?;
        }
    }

    fn cold_pages(&self) -> Vec<PageKey> {
        let limit = (self.parts.cache.capacity() / 4).clamp(1, COLD_PAGES_MAX);
        self.parts.cache.cold_changed(limit)
    }

    fn write_evicted(&mut self, cold: &[PageKey]) -> Result<(), FileError> {
        self.write_back.write(cold, &mut self.parts.cache, &mut self.parts.files)?;
        // What was copied before is older.
        if let Some(restart_point) = &mut self.restart_point {
            restart_point.copies.retain(|copy| cold.binary_search(&copy.key).is_err());
        }
        Ok(())
    }

    /// Whether the page has to wait, and for which rows. To be asked after [`has_gate`](Self::has_gate).
    fn held_until(&mut self, key: PageKey) -> Option<Lsn> {
        if key.fork.fork() != ForkNumber::Main || !self.is_toast(key) {
            return None;
        }
        let lsn = page::lsn(self.parts.cache.raw_page(key)?);
        let is_durable = self.parts.rows.as_ref().is_none_or(|rows| rows.is_durable(lsn));
        (!is_durable).then_some(lsn)
    }

    /// Whether any page may have to wait.
    fn has_gate(&mut self) -> bool {
        self.parts.rows.as_ref().is_some_and(|rows| {
            self.removals.refresh(rows.files()) && !rows.gate.is_off.load(Ordering::Relaxed)
        })
    }

    /// Leaves those pages that may be written, and has the others passed over.
    fn hold_back(&mut self, cold: &mut Vec<PageKey>) {
        if !self.has_gate() {
            return;
        }
        let Some(rows) = self.parts.rows.clone() else { return };
        let (durable, files_version) = (rows.durable(), rows.files().version()); // before the pages
        let mut count = 0;
        cold.retain(|key| {
            let Some(until) = self.held_until(*key) else { return true };
            if self.parts.cache.held().0 == 0 {
                self.held = Held { durable, files_version, until };
            }
            self.held.until = self.held.until.max(until);
            self.parts.cache.hold(*key);
            count += 1;
            false
        });
        rows.gate.held.fetch_add(count, Ordering::Relaxed);
        // The rows are made durable now and then anyway. Not so early that the others get no room.
        let (held, pages) = self.parts.cache.held();
        if count > 0 && held > pages / 4 {
            rows.want_durable(self.held.until);
        }
    }

    /// Passes over no page any more if some may be written by now.
    fn let_go(&mut self) {
        let Some(rows) = &self.parts.rows else { return };
        let before = (self.held.durable, self.held.files_version);
        if (rows.durable(), rows.files().version()) != before || rows.is_abandoned() {
            self.parts.cache.let_go();
        }
    }

    /// All pages in memory have to wait.
    fn grow(&mut self, key: PageKey) -> Option<usize> {
        if let Some(rows) = &self.parts.rows {
            rows.pause(self.held.until);
        }
        self.parts.cache.grow(key)
    }

    fn count_early(&self, pages: &[PageKey]) {
        let Some(rows) = &self.parts.rows else { return };
        let count = u64::try_from(pages.len()).unwrap_or(u64::MAX);
        if count > 0 && rows.gate.early.fetch_add(count, Ordering::Relaxed) == 0 {
            let until = self.held.until;
            tracing::warn!(
                %until,
                "pages of TOAST relations are written before rows are durable: memory for them is used \
                 up. After a crash now, values that updates left alone may not be found"
            );
        }
    }

    pub(crate) fn begin_restart_point(&mut self, answer: Sender<Written>) {
        let mut keys = self.parts.cache.all_changed();
        keys.reverse();
        let copies = Vec::new();
        self.restart_point = Some(WritingRestartPoint {
            keys,
            copies,
            is_waiting: false,
            has_free_space: false,
            answer,
        });
        for peer in 0..self.parts.crew.len() {
            // Behind all notes so far. A peer that is gone is the dispatcher's to notice.
            let _ = self.parts.crew.tell(peer, Message::FreeSpaceSent);
        }
    }

    /// Whether there is something to write for a restart point, or it is done.
    pub(crate) fn has_to_write(&self) -> bool {
        self.restart_point.as_ref().is_some_and(|restart_point| {
            !restart_point.is_waiting
                && (!restart_point.keys.is_empty()
                    || self.free_space_sent >= self.parts.crew.len()
                    || self.parts.shared.has_failed())
        })
    }

    /// Writes the next pages of a restart point. A page that was changed again meanwhile is written
    /// as it is now: replay from the restart point brings the same changes again.
    pub(crate) fn continue_restart_point(&mut self) {
        let Some(mut restart_point) = self.restart_point.take_if(|it| !it.is_waiting) else {
            return;
        };
        // After a failure pages may be ahead of the failing record: they stay in memory.
        if self.parts.shared.has_failed() {
            let _ = restart_point.answer.send(Written::Failed);
            return;
        }
        let WritingRestartPoint { keys, copies, has_free_space, .. } = &mut restart_point;
        if keys.is_empty() && !*has_free_space && self.free_space_sent >= self.parts.crew.len() {
            self.free_space_sent -= self.parts.crew.len();
            *has_free_space = true;
            let is_free_space_map = |key: &PageKey| key.fork.fork() == ForkNumber::FreeSpace;
            keys.extend(self.parts.cache.all_changed().into_iter().rev().filter(is_free_space_map));
        }
        let mut step = keys.split_off(keys.len().saturating_sub(WRITE_BACK_STEP_PAGES));
        step.reverse();
        if self.has_gate() {
            self.copy_held(&mut step, copies);
        }
        if let Err(error) =
            self.write_back.write(&step, &mut self.parts.cache, &mut self.parts.files)
        {
            self.parts.shared.fail(Failure::Sync(error));
            let _ = restart_point.answer.send(Written::Failed);
            return;
        }
        let is_done = restart_point.keys.is_empty() && restart_point.has_free_space;
        let count = restart_point.copies.len();
        if count >= COPIES_MAX || (is_done && count > 0) {
            restart_point.is_waiting = true;
            let (worker, until) = (self.parts.number, restart_point.copied_until());
            let _ = restart_point.answer.send(Written::Held { worker, until });
        } else if is_done {
            let _ = restart_point.answer.send(Written::All);
            return;
        }
        self.restart_point = Some(restart_point);
    }

    /// Leaves those pages that may be written, and copies the others.
    fn copy_held(&mut self, step: &mut Vec<PageKey>, copies: &mut Vec<Copy>) {
        let before = copies.len();
        step.retain(|key| {
            if self.held_until(*key).is_none() {
                return true;
            }
            if let Some(page) = self.parts.cache.changed_page(*key) {
                let mut copy = Box::new([0; BLOCK_SIZE]);
                copy.copy_from_slice(page);
                copies.push(Copy { key: *key, page: copy });
            }
            false
        });
        if let Some(rows) = &self.parts.rows {
            let count = u64::try_from(copies.len() - before).unwrap_or(u64::MAX);
            rows.gate.held.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Writes the copies, whose rows are durable. Pages stay changed: not every later change shows.
    pub(crate) fn write_held(&mut self) {
        let Some(restart_point) = &mut self.restart_point else { return };
        restart_point.is_waiting = false;
        if self.parts.shared.has_failed() {
            return; // nothing is written any more
        }
        for Copy { key, page } in restart_point.copies.drain(..) {
            let written = self.write_back.write_copy(key, &page, &mut self.parts.files);
            if let Err(error) = written {
                self.parts.shared.fail(Failure::Sync(error));
                return;
            }
        }
    }
}
