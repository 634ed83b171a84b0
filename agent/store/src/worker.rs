//! A worker: it owns its share of all pages.
//!
//! A page is read, changed and written by its owner alone, so that no page needs a lock and the
//! records of a page are applied in their order. Workers run ahead of each other within what the
//! dispatcher has handed over.
//!
//! Free space is the one thing a worker tells another: what a heap page has left goes to the owner
//! of the free space map's page, as a message that nobody waits for. So free space maps grow behind
//! the dispatcher's back, and for this fork a worker asks the file where the dispatcher would know.
//!
//! The map's page may also get an image from a record, and the outcome must be that of the records'
//! order. So a note of a record that its owner has not come to is kept until it has; and a note of a
//! record before the page's image comes to nothing (`redo_page`). A restart point waits for the notes
//! of all records before it.

use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use walfmt::relation::{BlockNumber, PageId};
use walfmt::{ForkNumber, Lsn, Record};
use walfmt_physical::{
    Page, PageChange, PageNeed, RedoContext, freespace, likely_item, redo_page, write_rows,
};

use crate::batch::{Batch, RecordBuffer, Task};
use crate::cache::{Hint, PageCache, PageKey};
use crate::crew::{Crew, Member};
use crate::error::PageFault;
use crate::files::{Files, owner_of};
use crate::gate::{Held, WritingRestartPoint, Written};
use crate::relations::ForkId;
use crate::removals::Removals;
use crate::rows::{Rows, put_in_order};
use crate::shared::{Failure, Shared};
use crate::verify::{BrokenRule, verify};
use crate::writeback::{WriteBack, checksum_mismatch};

/// How many tasks ahead a page is looked for and its header brought near, and how many tasks ahead
/// then what the header points to. Memory is nearly always far away from a page that is changed at
/// random: waiting for one after the other would take most of the time. More would not fit into the
/// nearest cache.
///
/// Both are done for several tasks in a row: what the processor itself must wait for then, entries of
/// the index and translations of addresses, comes for several at a time too.
const HEADER_AHEAD: usize = 16;
const ITEMS_AHEAD: usize = 4;
const IN_A_ROW: usize = 8;

/// With how many notes before it a note is compared, in case it takes the place of one.
const NOTES_COMPARED: usize = 4;

/// What a worker is told, in this order and no other.
pub(crate) enum Message {
    /// Apply this.
    Batch(Batch),
    /// What heap pages have left, from their owners.
    FreeSpace(Vec<FreeSpaceNote>),
    /// A worker has met the restart point's marker: its notes from before it were sent.
    FreeSpaceSent,
    /// Answer when all before this is done, with the end of the last record you have applied
    /// something of.
    Pass(Sender<Lsn>),
    /// Forget these pages, changed or not, and close their files. Then answer.
    Forget(Arc<Doomed>, Sender<Lsn>),
    /// Write all pages that are changed by now, but go on with what follows meanwhile. Then
    /// answer whether it was done.
    WriteBack(Sender<Written>),
    /// Rows are durable up to where you have said: write the pages that you have held back, and go on.
    WriteHeld,
    /// Answer with a copy of the page.
    Read(PageKey, Sender<PageCopy>),
}

/// A page, if it is there and can be read.
pub(crate) type PageCopy = (PageKey, Option<Box<Page>>);

/// Pages that are going to be removed.
pub(crate) enum Doomed {
    /// A fork from this block on.
    Tail { fork: ForkId, blocks: BlockNumber },
    /// All of these relations, by number; sorted.
    Relations(Vec<u32>),
}

impl Doomed {
    fn holds(&self, key: PageKey) -> bool {
        match self {
            Self::Tail { fork, blocks } => key.fork == *fork && key.block >= *blocks,
            Self::Relations(relations) => relations.binary_search(&key.fork.relation()).is_ok(),
        }
    }

    fn touches(&self, fork: ForkId) -> bool {
        match self {
            Self::Tail { fork: cut, .. } => fork == *cut,
            Self::Relations(relations) => relations.binary_search(&fork.relation()).is_ok(),
        }
    }
}

/// A heap page's free space after the record at `at`, for the owner of the map's page.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FreeSpaceNote {
    pub(crate) map_page: PageKey,
    pub(crate) heap_block: BlockNumber,
    pub(crate) free_bytes: u16,
    pub(crate) at: Lsn,
}

/// What a worker is made of.
pub(crate) struct WorkerParts {
    pub(crate) number: usize,
    pub(crate) shared: Arc<Shared>,
    pub(crate) files: Files,
    pub(crate) cache: PageCache,
    /// Whether pages carry checksums.
    pub(crate) checksums: bool,
    pub(crate) context: RedoContext,
    /// See [`StoreConfig::verify_images`](crate::StoreConfig::verify_images).
    pub(crate) verify_images: bool,
    pub(crate) broken_rule: Option<BrokenRule>,
    /// Who wants to see the rows that change.
    pub(crate) rows: Option<Arc<Rows>>,
    pub(crate) inbox: Receiver<Message>,
    /// All workers, itself included.
    pub(crate) crew: Arc<Crew>,
    /// Where emptied task lists go.
    pub(crate) returns: Sender<Vec<Task>>,
}

pub(crate) struct Worker {
    pub(crate) parts: WorkerParts,
    pub(crate) write_back: WriteBack,
    pub(crate) held: Held,
    pub(crate) restart_point: Option<WritingRestartPoint>,
    /// How many workers have met the marker of the restart point at hand, or of the next one.
    pub(crate) free_space_sent: usize,
    notes: Vec<Vec<FreeSpaceNote>>,
    /// Notes of records that lie behind `given`. In order as far as they speak of the same heap page.
    early_notes: Vec<FreeSpaceNote>,
    /// The end of the last batch that came here.
    given: Lsn,
    /// The end of the last record that something was applied of.
    reached: Lsn,
    /// Images that were compared in the batch at hand.
    images_verified: u64,
    /// The rows that were changed in the batch at hand.
    row_entries: Vec<u8>,
    pub(crate) removals: Removals,
}

impl Member for Worker {
    fn work(&mut self) {
        Self::work(self);
    }

    fn has_more(&self) -> bool {
        self.has_to_write()
    }

    fn prepare(&mut self) -> bool {
        self.parts.cache.prepare()
    }
}

impl Worker {
    pub(crate) fn new(parts: WorkerParts) -> Self {
        Self {
            write_back: WriteBack::new(parts.checksums),
            held: Held::default(),
            restart_point: None,
            free_space_sent: 0,
            notes: (0..parts.crew.len()).map(|_| Vec::new()).collect(),
            early_notes: Vec::new(),
            given: Lsn::INVALID,
            reached: Lsn::INVALID,
            images_verified: 0,
            row_entries: Vec::new(),
            removals: Removals::default(),
            parts,
        }
    }

    /// Does what it was told, up to the next batch, or writes some pages of a restart point.
    fn work(&mut self) {
        loop {
            let message = self.parts.inbox.try_recv().ok();
            if message.is_none() && !self.has_to_write() {
                return;
            }
            self.apply_early_notes();
            let is_much = matches!(message, None | Some(Message::Batch(_)));
            match message {
                None => {}
                Some(Message::Batch(batch)) => self.apply(batch),
                Some(Message::FreeSpace(notes)) => self.apply_notes(notes),
                Some(Message::FreeSpaceSent) => self.free_space_sent += 1,
                Some(Message::Pass(answer)) => {
                    let _ = answer.send(self.reached);
                }
                Some(Message::Forget(doomed, answer)) => {
                    self.forget(&doomed);
                    let _ = answer.send(self.reached);
                }
                Some(Message::WriteBack(answer)) => self.begin_restart_point(answer),
                Some(Message::WriteHeld) => self.write_held(),
                Some(Message::Read(key, answer)) => {
                    let _ = answer.send((key, self.copy_page(key))); // or nobody waits any more
                }
            }
            self.continue_restart_point();
            if is_much {
                return;
            }
        }
    }

    fn apply(&mut self, batch: Batch) {
        let Batch { records, mut tasks, context, end } = batch;
        self.parts.context = context;
        if let Some(rows) = &self.parts.rows {
            self.removals.begin_batch(rows.files());
        }
        let applied = self.apply_tasks(&records, &tasks);
        drop(records); // before the answer: the dispatcher uses the buffer again
        self.send_notes();
        if let Some(rows) = &self.parts.rows {
            let removed = self.removals.take();
            rows.put(
                self.parts.number,
                {
                    // As large as this one: growing copies it time and again.
                    let empty = Vec::with_capacity(self.row_entries.len());
                    std::mem::replace(&mut self.row_entries, empty)
                },
                removed,
            );
        }
        self.parts.shared.count_verified(std::mem::take(&mut self.images_verified));
        match applied {
            Ok(true) => self.parts.shared.publish(self.parts.number, end),
            Ok(false) => {}
            Err(failure) => self.parts.shared.fail(failure),
        }
        tasks.clear();
        let _ = self.parts.returns.send(tasks); // nobody listens while the store is being dropped
        self.given = end;
    }

    /// Applies tasks; `false` if another worker's failure lies before the last of them.
    fn apply_tasks(&mut self, records: &RecordBuffer, tasks: &[Task]) -> Result<bool, Failure> {
        let mut record = Record::blank();
        let mut ahead = Ahead::new(records, tasks);
        for of_record in tasks.chunk_by(|a, b| a.record == b.record) {
            let raw = records.get(of_record[0].record);
            let at = raw.start;
            if self.parts.shared.is_stopped_before(at) {
                return Ok(false);
            }
            record
                .read(&raw, self.parts.shared.version)
                .map_err(|error| Failure::Page { at, fault: PageFault::Record(error) })?;
            let begun = self.row_entries.len();
            for task in of_record {
                let slot = ahead.advance(&self.parts.cache);
                self.apply_task(&record, task, slot)
                    .map_err(|fault| Failure::Page { at, fault })?;
            }
            if of_record.len() > 1 && self.row_entries.len() > begun {
                put_in_order(&mut self.row_entries[begun..]);
            }
            self.reached = raw.end;
        }
        Ok(true)
    }

    /// `hint` is where the page was a while ago.
    fn apply_task(
        &mut self,
        record: &Record<'_>,
        task: &Task,
        hint: Option<Hint>,
    ) -> Result<(), PageFault> {
        let key = task.page_key();
        let watched = self.removals.are_watched() && self.is_removal(record, task);
        let slot = match self.parts.cache.find_near(key, hint) {
            Some(slot) => {
                if watched {
                    self.removals.remember(self.parts.cache.raw_page(key));
                }
                slot
            }
            None => match self.bring(key, task.need, task.extends)? {
                Some(slot) => {
                    if watched {
                        self.remember_from_file(record, task)?;
                    }
                    slot
                }
                None => return Ok(()),
            },
        };
        let page_id = match task.change {
            PageChange::Block(index) => {
                record.blocks.get(usize::from(index)).map(|block| block.page)
            }
            _ => None,
        };
        let page_id = page_id.unwrap_or_else(|| self.parts.files.page_id(key));
        let (page, loose) = self.parts.cache.loose_page_mut(slot);
        let outcome = redo_page(record, task.change, page_id, page, loose, &self.parts.context)
            .map_err(|source| PageFault::Redo { page: page_id, source })?;
        if watched && outcome.changed() {
            self.removals.compare(record, task.change, self.parts.cache.raw_page(key));
        }
        if self.parts.rows.is_some() {
            let page = self.parts.cache.page_mut(slot);
            write_rows(record, task.change, page, &outcome, &mut self.row_entries)
                .map_err(|source| PageFault::Redo { page: page_id, source })?;
        }
        if let Some(broken_rule) = self.parts.broken_rule {
            broken_rule(record, self.parts.cache.page_mut(slot));
        }
        if self.parts.verify_images
            && !outcome.missing()
            && let PageChange::Block(index) = task.change
            && let Some(block) = record.blocks.get(usize::from(index))
        {
            let page = self.parts.cache.page_mut(slot);
            self.images_verified += u64::from(verify(record, block, page_id, page)?);
        }
        // Map pages also if their bytes are what they should be already: after a failed sync they
        // may be in the kernel's cache only, and not every change to them has an image.
        if outcome.changed() || task.extends || is_map(key.fork) {
            self.parts.cache.mark_changed(slot);
        }
        if outcome.missing() {
            let reported = self.parts.shared.invalid_pages.report(page_id, record.start);
            reported.map_err(|_consistent| PageFault::Missing { page: page_id })?;
        }
        if let Some(free_bytes) = outcome.free_space() {
            self.note_free_space(page_id, key, free_bytes, record.start);
        }
        Ok(())
    }

    /// Brings a page into memory as the change needs it; nothing if it needs one that exists and
    /// does not.
    fn bring(
        &mut self,
        key: PageKey,
        need: PageNeed,
        extends: bool,
    ) -> Result<Option<usize>, PageFault> {
        let is_free_space_map = key.fork.fork() == ForkNumber::FreeSpace;
        let slot = self.claim(key)?;
        if need == PageNeed::Nothing {
            return Ok(Some(slot)); // whatever is there: the change does not look at it
        }
        if extends && !is_free_space_map {
            self.parts.cache.page_mut(slot).fill(0);
            return Ok(Some(slot));
        }
        match self.read(key, slot, need) {
            Ok(false) if need == PageNeed::IfExists && is_free_space_map => {
                self.parts.cache.release(slot);
                Ok(None)
            }
            Ok(_) => Ok(Some(slot)),
            Err(fault) => {
                self.parts.cache.release(slot);
                Err(fault)
            }
        }
    }

    /// Reads a page from its file and checks it; `false` if the file does not reach it. Map pages
    /// are hints, or safe when zero: a damaged one counts as zeros (`RBM_ZERO_ON_ERROR`).
    fn read(&mut self, key: PageKey, slot: usize, need: PageNeed) -> Result<bool, PageFault> {
        let page = self.parts.cache.page_mut(slot);
        // The dispatcher makes a fork's file before its first page; for this fork it cannot.
        let create = need == PageNeed::ExistingOrZero && key.fork.fork() == ForkNumber::FreeSpace;
        let is_there = self.parts.files.read(key, page, create)?;
        if !self.parts.checksums {
            return Ok(is_there);
        }
        let Some((expected, found)) = checksum_mismatch(page, key) else {
            return Ok(is_there);
        };
        if is_map(key.fork) || need == PageNeed::ExistingOrZero {
            page.fill(0);
            return Ok(is_there);
        }
        let page = self.parts.files.page_id(key);
        let (file, offset) = self.parts.files.place(key);
        Err(PageFault::Checksum { page, file, offset, expected, found })
    }

    fn note_free_space(&mut self, heap_page: PageId, heap: PageKey, free_bytes: u16, at: Lsn) {
        let map_page = PageKey {
            fork: heap.fork.sibling(ForkNumber::FreeSpace),
            block: freespace::free_space_page(heap_page).block,
        };
        let owner = owner_of(map_page.fork, map_page.block, self.notes.len());
        let note = FreeSpaceNote { map_page, heap_block: heap_page.block, free_bytes, at };
        let notes = &mut self.notes[owner];
        // Of several that follow each other the last one counts.
        let is_same = |other: &&mut FreeSpaceNote| {
            (other.map_page, other.heap_block) == (note.map_page, note.heap_block)
        };
        match notes.iter_mut().rev().take(NOTES_COMPARED).find(is_same) {
            Some(before) => *before = note,
            None => notes.push(note),
        }
    }

    fn send_notes(&mut self) {
        for (peer, notes) in self.notes.iter_mut().enumerate() {
            if !notes.is_empty() {
                // A peer that is gone is the dispatcher's to notice.
                let _ = self.parts.crew.tell(peer, Message::FreeSpace(std::mem::take(notes)));
            }
        }
    }

    /// Applies the notes that are kept of records which this worker has come to by now.
    fn apply_early_notes(&mut self) {
        if !self.early_notes.is_empty() {
            let notes = std::mem::take(&mut self.early_notes);
            self.apply_notes(notes);
        }
    }

    fn apply_notes(&mut self, mut notes: Vec<FreeSpaceNote>) {
        // The dispatcher tells whoever sleeps of batches that hold nothing for it by this alone.
        let given = self.given.max(self.parts.shared.progress(self.parts.number));
        for note in notes.extract_if(.., |note| note.at < given) {
            if self.parts.shared.is_stopped_before(note.at) {
                return;
            }
            let task = Task {
                record: 0,
                fork: note.map_page.fork,
                block: note.map_page.block,
                change: PageChange::RecordFreeSpace {
                    heap_block: note.heap_block,
                    free_bytes: note.free_bytes,
                },
                need: PageNeed::ExistingOrZero,
                extends: false,
            };
            if let Err(fault) = self.apply_task(&no_record(note.at), &task, None) {
                self.parts.shared.fail(Failure::Page { at: note.at, fault });
                return;
            }
        }
        self.early_notes.append(&mut notes);
    }

    fn forget(&mut self, doomed: &Doomed) {
        self.parts.cache.forget(|key| doomed.holds(key));
        self.parts.files.close(|fork| doomed.touches(fork));
        if let Doomed::Relations(relations) = doomed {
            for relation in relations {
                self.parts.files.forget_name(*relation);
            }
        }
        if let Some(restart_point) = &mut self.restart_point {
            restart_point.forget(|key| doomed.holds(key));
        }
    }
}

/// Looks for the pages of tasks before their turn, and brings near what will be looked at there.
struct Ahead<'a> {
    records: &'a RecordBuffer,
    tasks: &'a [Task],
    /// The next task whose page is looked for.
    header: usize,
    /// The next task whose page's items are brought near.
    items: usize,
    /// The next task.
    done: usize,
    /// What is known of tasks: of as many as can be under way, and a power of two.
    known: [Known; KNOWN],
}

const KNOWN: usize = 32;

#[derive(Clone, Copy)]
struct Known {
    /// Where the page was when it was looked for.
    hint: Option<Hint>,
    /// The item that the record speaks of, if it is likely to speak of one.
    item: Option<u16>,
}

impl<'a> Ahead<'a> {
    const fn new(records: &'a RecordBuffer, tasks: &'a [Task]) -> Self {
        let known = [Known { hint: None, item: None }; KNOWN];
        Self { records, tasks, header: 0, items: 0, done: 0, known }
    }

    /// Goes on to the next task; gives where its page was when it was looked for.
    #[inline]
    fn advance(&mut self, cache: &PageCache) -> Option<Hint> {
        for _ in self.in_a_row(self.header, HEADER_AHEAD, self.tasks.len()) {
            self.known[self.header % KNOWN] = self.look_up(cache);
            self.header += 1;
        }
        for _ in self.in_a_row(self.items, ITEMS_AHEAD, self.header) {
            let Known { hint, item } = self.known[self.items % KNOWN];
            if self.tasks[self.items].need != PageNeed::Nothing
                && let Some(hint) = hint
            {
                cache.approach_items(hint.slot, item);
            }
            self.items += 1;
        }
        self.done += 1;
        self.known[(self.done - 1) % KNOWN].hint
    }

    /// The tasks from `next` on that are to be done now: none while `ahead` are done, or all before
    /// `end`.
    #[inline]
    fn in_a_row(&self, next: usize, ahead: usize, end: usize) -> Range<usize> {
        if next < end.min(self.done + ahead) {
            next..end.min(self.done + ahead + IN_A_ROW)
        } else {
            0..0
        }
    }

    fn look_up(&self, cache: &PageCache) -> Known {
        let task = &self.tasks[self.header];
        let key = task.page_key();
        let hint = match self.header.checked_sub(1) {
            Some(before) if self.tasks[before].page_key() == key => self.known[before % KNOWN].hint,
            _ => cache.look_up(key),
        };
        let (true, Some(Hint { slot, .. })) = (task.need != PageNeed::Nothing, hint) else {
            return Known { hint, item: None };
        };
        let item = likely_item(self.records.bytes(task.record));
        cache.approach_header(slot, item);
        Known { hint, item }
    }
}

/// Whether pages of the fork are begun anew when they are damaged.
fn is_map(fork: ForkId) -> bool {
    matches!(fork.fork(), ForkNumber::FreeSpace | ForkNumber::VisibilityMap)
}

/// Free space belongs to no record: redo of it looks at none.
fn no_record(at: Lsn) -> Record<'static> {
    Record { start: at, end: at, ..Record::blank() }
}
