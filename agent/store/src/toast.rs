//! What whoever takes rows asks of the store: the chunks of TOAST values that no record at hand carries.
//!
//! An UPDATE that leaves a long value alone writes its pointer only. The chunks are in the store, for as
//! long as nothing takes them away; and whoever takes rows is behind the store. So:
//!
//! ```text
//! chunks are on their pages            the store looks them up, when asked         Desk
//! were taken off a page since          the worker has kept what it took off        Removed
//! their entries left the index since   the same, with where the chunks are         Removed
//! their files are to go                the store waits until nobody asks any more  ToastFiles
//! ```
//!
//! After a crash he asks again, as of where his rows were durable: see `gate.rs`.
//!
//! The last three are for TOAST relations only, which the store cannot tell from others: it is told. Until
//! it was told of a relation that it has seen being created, that counts as one.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use walfmt::page::ItemPointer;
use walfmt::row::{Entry, EntryKind};
use walfmt::{Lsn, RelFileLocator};
use walfmt_physical::toast;

/// How often whoever has asked looks whether he should go on waiting, and reminds the store.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);

/// A TOAST value whose chunks are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ToastRequest {
    /// The TOAST relation.
    pub heap: RelFileLocator,
    /// Its index, on `chunk_id` and `chunk_seq`.
    pub index: RelFileLocator,
    /// The value's `chunk_id`.
    pub value: u32,
}

/// What was found of a value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToastAnswer {
    /// Its chunks, in any order: of each, the tuple from byte 18 on, as in [`walfmt::row`]. Whether it
    /// is deleted was not looked at; some or all may be missing.
    pub chunks: Vec<Vec<u8>>,
}

/// Where one asks, and the store answers.
#[derive(Default)]
pub(crate) struct Desk {
    /// One asks at a time.
    turn: Mutex<()>,
    state: Mutex<DeskState>,
    /// There is an answer, or there will be none.
    answered: Condvar,
    is_asked: AtomicBool,
}

#[derive(Default)]
struct DeskState {
    /// Which store answers, if there is one.
    store: Option<u64>,
    /// Of the last question.
    ticket: u64,
    requests: Option<Vec<ToastRequest>>,
    answer: Option<Option<Vec<ToastAnswer>>>,
}

impl Desk {
    /// This store answers from now on, or none does. Questions to another one are over.
    pub(crate) fn set_store(&self, store: Option<u64>) {
        let mut state = lock(&self.state);
        *state = DeskState { store, ticket: state.ticket + 1, ..DeskState::default() };
        self.is_asked.store(false, Ordering::SeqCst);
        self.answered.notify_all();
    }

    /// Asks this store, and calls `remind` at once and now and then until there is an answer. Nothing
    /// if there is none, or it is another one by now, or `stop` says so.
    pub(crate) fn ask(
        &self,
        store: u64,
        requests: Vec<ToastRequest>,
        remind: impl Fn(),
        stop: impl Fn() -> bool,
    ) -> Option<Vec<ToastAnswer>> {
        let _turn = lock(&self.turn);
        let ticket = {
            let mut state = lock(&self.state);
            if state.store != Some(store) {
                return None;
            }
            state.ticket += 1;
            (state.requests, state.answer) = (Some(requests), None);
            self.is_asked.store(true, Ordering::SeqCst);
            state.ticket
        };
        loop {
            remind();
            let is_over = stop();
            let mut state = lock(&self.state);
            if state.ticket != ticket {
                return None;
            }
            if state.answer.is_none() && !is_over {
                let waited = self.answered.wait_timeout(state, LOOK_INTERVAL);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            if state.ticket == ticket
                && let Some(answer) = state.answer.take()
            {
                return answer;
            }
            if is_over {
                state.ticket += 1; // an answer comes too late
                state.requests = None;
                self.is_asked.store(false, Ordering::SeqCst);
                return None;
            }
        }
    }

    /// Whether there may be a question.
    #[inline]
    pub(crate) fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Relaxed)
    }

    /// The question, with a ticket for the answer.
    pub(crate) fn take(&self) -> Option<(u64, Vec<ToastRequest>)> {
        let mut state = lock(&self.state);
        self.is_asked.store(false, Ordering::SeqCst);
        let requests = state.requests.take()?;
        Some((state.ticket, requests))
    }

    /// Answers, or says that there will be no answer.
    pub(crate) fn answer(&self, ticket: u64, answer: Option<Vec<ToastAnswer>>) {
        let mut state = lock(&self.state);
        if state.ticket == ticket {
            state.answer = Some(answer);
            self.answered.notify_all();
        }
    }
}

/// Which files are those of TOAST relations and their indexes, as far as it is known.
#[derive(Default)]
pub(crate) struct ToastFiles {
    /// By database and file number; all others are not.
    files: RwLock<HashMap<(u32, u32), Known>>,
    /// Grows whenever something changes; 0 as long as there is none.
    version: AtomicU64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    Toast,
    /// It was created, and nobody has told yet what it is.
    Created,
}

impl ToastFiles {
    /// These are.
    pub(crate) fn tell_toast(&self, database: u32, files: &[u32]) {
        self.change(|known| {
            known.extend(files.iter().map(|file| ((database, *file), Known::Toast)));
        });
    }

    /// These are not.
    pub(crate) fn tell_other(&self, database: u32, files: &[u32]) {
        self.change(|known| {
            for file in files {
                known.remove(&(database, *file));
            }
        });
    }

    pub(crate) fn created(&self, locator: RelFileLocator) {
        self.change(|known| {
            known.entry(key(locator)).or_insert(Known::Created);
        });
    }

    pub(crate) fn dropped(&self, locators: &[RelFileLocator]) {
        if self.version() > 0 {
            self.change(|known| {
                for locator in locators {
                    known.remove(&key(*locator));
                }
            });
        }
    }

    /// A relation's number may be another one's from now on. What its files are stays: those of a database
    /// that has moved keep their names.
    pub(crate) fn numbers_changed(&self) {
        if self.version() > 0 {
            self.change(|_| ());
        }
    }

    /// A store begins anew: it will see again what is created.
    pub(crate) fn forget_created(&self) {
        self.change(|known| known.retain(|_, known| *known == Known::Toast));
    }

    /// Whether one of these may be.
    pub(crate) fn holds_any(&self, locators: &[RelFileLocator]) -> bool {
        if self.version() == 0 {
            return false;
        }
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        locators.iter().any(|locator| files.contains_key(&key(*locator)))
    }

    /// Whether the database has any.
    pub(crate) fn holds_database(&self, database: u32) -> bool {
        let files = self.files.read().unwrap_or_else(PoisonError::into_inner);
        files.keys().any(|(of, _)| *of == database)
    }

    /// Whether there is any at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.files.read().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Another one whenever something has changed.
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    fn change(&self, change: impl FnOnce(&mut HashMap<(u32, u32), Known>)) {
        let mut files = self.files.write().unwrap_or_else(PoisonError::into_inner);
        change(&mut files);
        self.version.fetch_add(1, Ordering::SeqCst);
    }
}

const fn key(locator: RelFileLocator) -> (u32, u32) {
    (locator.database, locator.relation)
}

/// What a worker knows of [`ToastFiles`], by the store's numbers of relations: no lock is taken for a
/// relation that was looked up before.
#[derive(Default)]
pub(crate) struct ToastMemo {
    version: u64,
    known: Vec<Option<bool>>,
}

impl ToastMemo {
    /// Forgets what may have changed; gives whether there is any TOAST relation. To be called at the
    /// begin of each batch: what is told later is of relations that this batch cannot know of.
    pub(crate) fn refresh(&mut self, files: &ToastFiles) -> bool {
        let version = files.version();
        if version != self.version {
            self.version = version;
            self.known.clear();
        }
        version > 0
    }

    /// Whether the relation with this number and name may be one.
    pub(crate) fn is_toast(
        &mut self,
        files: &ToastFiles,
        relation: u32,
        locator: impl FnOnce() -> RelFileLocator,
    ) -> bool {
        let at = relation as usize;
        if self.known.len() <= at {
            self.known.resize(at + 1, None);
        }
        *self.known[at].get_or_insert_with(|| files.holds_any(&[locator()]))
    }
}

/// Chunks that were taken off their pages, until nobody needs them any more.
#[derive(Default)]
pub(crate) struct Removed(VecDeque<RemovedOfBatch>);

/// What one batch has taken off, in order of its records.
pub(crate) struct RemovedOfBatch {
    /// Where the last record begins that has taken something off.
    last: Lsn,
    entries: Vec<u8>,
    /// Values, and where in `entries` they have chunks; sorted. After a large vacuum there are many.
    index: Vec<(u32, u32)>,
}

impl RemovedOfBatch {
    pub(crate) fn new(entries: Vec<u8>) -> Self {
        let (mut last, mut index) = (Lsn::INVALID, Vec::new());
        let mut rest = &entries[..];
        while !rest.is_empty() {
            let offset = entries.len() - rest.len();
            let entry;
            (entry, rest) = read(rest);
            last = entry.start;
            // Beyond 4 GB nothing is found: a batch's records speak of a few thousand pages.
            let value = match entry.kind {
                EntryKind::Unindexed => {
                    entry.contents.first_chunk().copied().map(u32::from_le_bytes)
                }
                _ => toast::chunk_of_contents(entry.contents).map(|(value, _)| value),
            };
            if let (Some(value), Ok(offset)) = (value, u32::try_from(offset)) {
                index.push((value, offset));
            }
        }
        index.sort_unstable();
        Self { last, entries, index }
    }
}

impl Removed {
    pub(crate) fn put(&mut self, batch: RemovedOfBatch) {
        self.0.push_back(batch);
    }

    /// All rows before this have what they need. Gives how many bytes are not kept any longer.
    pub(crate) fn forget_before(&mut self, done: Lsn) -> usize {
        let mut bytes = 0;
        // Whoever could see a chunk came before the record that took it away.
        self.0.retain(|batch| {
            let is_kept = batch.last >= done;
            bytes += if is_kept { 0 } else { batch.entries.len() };
            is_kept
        });
        bytes
    }

    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    /// All chunks of a value.
    pub(crate) fn find(&self, heap: RelFileLocator, value: u32) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        self.each(value, |entry| {
            if entry.kind == EntryKind::Removed && entry.locator == heap {
                found.push(entry.contents.to_vec());
            }
        });
        found
    }

    /// Where chunks of a value are whose entries have left this index.
    pub(crate) fn find_unindexed(&self, index: RelFileLocator, value: u32) -> Vec<ItemPointer> {
        let mut found = Vec::new();
        self.each(value, |entry| {
            if entry.kind == EntryKind::Unindexed && entry.locator == index {
                found.push(ItemPointer { block: entry.block, offset: entry.item });
            }
        });
        found
    }

    fn each(&self, value: u32, mut look: impl FnMut(&Entry<'_>)) {
        for RemovedOfBatch { entries, index, .. } in &self.0 {
            let begin = index.partition_point(|(of, _)| *of < value);
            for (_, offset) in index[begin..].iter().take_while(|(of, _)| *of == value) {
                let (entry, _) = read(&entries[*offset as usize..]);
                look(&entry);
            }
        }
    }
}

fn read(entries: &[u8]) -> (Entry<'_>, &[u8]) {
    Entry::read(entries).expect("as a worker has written it")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread;

    use super::*;

    const HEAP: RelFileLocator = RelFileLocator { tablespace: 1663, database: 5, relation: 16390 };

    #[test]
    fn a_question_is_answered_once_or_not_at_all() {
        let desk = Arc::new(Desk::default());
        let request = ToastRequest { heap: HEAP, index: HEAP, value: 7 };
        let ask = |store, stop: bool| {
            let desk = Arc::clone(&desk);
            thread::spawn(move || desk.ask(store, vec![request], || (), move || stop))
        };
        assert_eq!(ask(1, false).join().unwrap(), None, "there is no store");
        desk.set_store(Some(1));
        assert_eq!(ask(2, false).join().unwrap(), None, "it is another store");
        assert_eq!(ask(1, true).join().unwrap(), None, "nobody waits");
        assert!(!desk.is_asked() && desk.take().is_none());

        let wait_asked = || {
            while !desk.is_asked() {
                thread::yield_now();
            }
        };
        let asking = ask(1, false);
        wait_asked();
        let (ticket, requests) = desk.take().unwrap();
        assert_eq!(requests, [request]);
        let answer = vec![ToastAnswer { chunks: vec![vec![1]] }];
        desk.answer(ticket - 1, None);
        desk.answer(ticket, Some(answer.clone()));
        assert_eq!(asking.join().unwrap(), Some(answer));

        let asking = ask(1, false);
        wait_asked();
        desk.set_store(None);
        assert_eq!(asking.join().unwrap(), None, "the store is gone");
    }

    #[test]
    fn a_relation_counts_as_toast_until_it_is_told_what_it_is() {
        let (files, mut memo) = (ToastFiles::default(), ToastMemo::default());
        assert!(!memo.refresh(&files) && !files.holds_any(&[HEAP]));
        files.created(HEAP);
        assert!(memo.refresh(&files) && files.holds_any(&[HEAP]) && files.holds_database(5));
        assert!(memo.is_toast(&files, 3, || HEAP));
        files.tell_other(5, &[HEAP.relation]);
        assert!(memo.refresh(&files) && files.is_empty());
        assert!(!memo.is_toast(&files, 3, || HEAP));
        files.tell_toast(5, &[HEAP.relation]);
        files.created(HEAP);
        files.forget_created();
        memo.refresh(&files);
        assert!(memo.is_toast(&files, 3, || HEAP) && !files.holds_database(6));
        files.dropped(&[HEAP]);
        assert!(files.is_empty());
    }
}
