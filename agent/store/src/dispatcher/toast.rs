//! Looking up TOAST values for whoever takes rows, and waiting for him.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use walfmt::page::{self, ItemPointer, LP_NORMAL, Page};
use walfmt::relation::{BlockNumber, RelFork};
use walfmt::row::TUPLE_FROM;
use walfmt::{ForkNumber, Lsn, RelFileLocator};
use walfmt_physical::btree_search::{SearchError, ToastSearch};
use walfmt_physical::toast::chunk_of;

use crate::cache::PageKey;
use crate::dispatcher::{Dispatcher, RecordRows};
use crate::error::ReplayError;
use crate::layout::Layout;
use crate::relations::ForkId;
use crate::rows::Rows;
use crate::toast::{ToastAnswer, ToastRequest};
use crate::workers::ThreadGone;

/// How often it is looked whether somebody asks, while a restart point is waited for.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);
/// How many pages are kept while questions are answered: 8 MB.
const PAGES_MAX: usize = 1024;
/// How many pages of a heap are read at once.
const PAGES_AT_ONCE: usize = 64;
/// A value has no more bytes (`MaxAllocSize`); more chunks are of several, one after the other.
const VALUE_BYTES_MAX: usize = 1 << 30;

impl Drop for Dispatcher {
    fn drop(&mut self) {
        // Before the sync thread is waited for, which may wait for whoever asks.
        if let Some(RecordRows { rows, .. }) = &self.rows {
            rows.end();
        }
    }
}

impl Dispatcher {
    /// Answers if somebody asks for TOAST values.
    pub(crate) fn serve_rows(&mut self) -> Result<(), ReplayError> {
        let answered = self.answer_rows();
        answered.map_err(|ThreadGone| self.stop(self.dispatched, ReplayError::ThreadGone))
    }

    /// The same, also in the middle of a record that waits for a file action: what was handed over are
    /// whole records as far as heaps and indexes are concerned, and nothing more is until this returns.
    /// Whoever asks has taken no row of what is not handed over.
    fn answer_rows(&mut self) -> Result<(), ThreadGone> {
        let Some(RecordRows { rows, .. }) = &self.rows else { return Ok(()) };
        if !rows.desk().is_asked() {
            return Ok(());
        }
        let rows = Arc::clone(rows);
        let Some((ticket, requests)) = rows.desk().take() else { return Ok(()) };
        let answers = self.look_up(&requests);
        // After a failure workers stop at different records.
        let is_sound = self.stopped.is_none() && !self.shared.has_failed();
        let (answers, looked_up) = match answers {
            Ok(answers) => (is_sound.then_some(answers), Ok(())),
            Err(gone) => (None, Err(gone)),
        };
        rows.desk().answer(ticket, answers);
        looked_up
    }

    /// Waits until `is_over`, or something has failed, and answers meanwhile.
    pub(super) fn wait_for_rows(
        &mut self,
        is_over: impl Fn(&Rows) -> bool,
    ) -> Result<(), ThreadGone> {
        let Some(RecordRows { rows, .. }) = &self.rows else { return Ok(()) };
        if is_over(rows) {
            return Ok(());
        }
        let rows = Arc::clone(rows);
        while !is_over(&rows) && !self.shared.has_failed() {
            self.answer_rows()?;
            if self.workers.has_panicked() {
                return Err(ThreadGone);
            }
            if !self.workers.help() {
                rows.wait_a_moment();
            }
        }
        Ok(())
    }

    /// Waits until nobody will ask for anything that rows before `at` need, all of which must be handed
    /// over: not even replay from the last restart point on may come by them again, since what is
    /// going to be removed stays so.
    pub(super) fn wait_rows_durable(&mut self, at: Lsn) -> Result<(), ThreadGone> {
        if let Some(RecordRows { rows, .. }) = &self.rows {
            rows.want_durable(at);
        }
        self.wait_for_rows(|rows| rows.is_durable(at))
    }

    /// Waits until no restart point is under way. It may wait for whoever takes rows.
    pub(super) fn wait_restart_point(&mut self) -> Result<(), ThreadGone> {
        if self.rows.is_none() {
            return self.restart_points.wait(&self.workers);
        }
        while self.restart_points.is_running() {
            self.answer_rows()?;
            self.restart_points.wait_at_most(&self.workers, LOOK_INTERVAL)?;
        }
        Ok(())
    }

    fn look_up(&mut self, requests: &[ToastRequest]) -> Result<Vec<ToastAnswer>, ThreadGone> {
        self.workers.pass()?;
        let mut answers = vec![ToastAnswer::default(); requests.len()];
        // Neighbours are on the same pages.
        let mut in_order: Vec<_> = requests.iter().zip(&mut answers).collect();
        in_order.sort_unstable_by_key(|(request, _)| **request);
        let mut lookup = Lookup { dispatcher: self, pages: HashMap::default() };
        for (request, answer) in in_order {
            answer.chunks = lookup.chunks(request)?;
        }
        Ok(answers)
    }

    /// The main fork's number and length; nothing if it is not there.
    fn main_fork(&mut self, locator: RelFileLocator) -> Option<(ForkId, BlockNumber)> {
        if !Layout::holds(locator) {
            return None;
        }
        let is_new = self.relations.known(&[locator]).is_empty();
        let fork = RelFork { locator, fork: ForkNumber::Main };
        let id = self.relations.intern(fork);
        let blocks = self.relations.blocks(id, fork);
        match blocks {
            Ok(blocks) if blocks > 0 => return Some((id, blocks)),
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "a TOAST value's file cannot be looked at"),
        }
        if is_new {
            self.relations.forget(locator); // a number for each name that is asked for would be many
        }
        None
    }
}

/// Questions that are answered at one position.
struct Lookup<'a> {
    dispatcher: &'a mut Dispatcher,
    /// Pages as they are there.
    pages: HashMap<PageKey, Option<Box<Page>>, foldhash::fast::RandomState>,
}

impl Lookup<'_> {
    fn chunks(&mut self, request: &ToastRequest) -> Result<Vec<Vec<u8>>, ThreadGone> {
        let index = self.dispatcher.main_fork(request.index);
        let (Some(index), Some(heap)) = (index, self.dispatcher.main_fork(request.heap)) else {
            return Ok(Vec::new());
        };
        let value = request.value;
        match self.search(index, value)? {
            Ok(mut places) => {
                if let Some(RecordRows { rows, .. }) = &self.dispatcher.rows {
                    places.extend(rows.find_unindexed(request.index, value));
                    places.sort_unstable();
                    places.dedup();
                }
                self.fetch(heap, value, &places)
            }
            // Decoding says what it has not found; redo, that the index is damaged.
            Err(error) => {
                let index = request.index;
                tracing::warn!(%index, value, %error, "a TOAST value cannot be looked up");
                Ok(Vec::new())
            }
        }
    }

    fn search(
        &mut self,
        (index, blocks): (ForkId, BlockNumber),
        value: u32,
    ) -> Result<Result<Vec<ItemPointer>, SearchError>, ThreadGone> {
        const MISSING: SearchError = SearchError::Page("a page is missing");
        let Some(meta) = self.page(index, 0)? else { return Ok(Err(MISSING)) };
        let mut search = match ToastSearch::begin(meta, value, blocks) {
            Ok(search) => search,
            Err(error) => return Ok(Err(error)),
        };
        while let Some(block) = search.block() {
            let page = if block < blocks { self.page(index, block)? } else { None };
            let Some(page) = page else { return Ok(Err(MISSING)) };
            if let Err(error) = search.look(page) {
                return Ok(Err(error));
            }
        }
        Ok(Ok(search.found()))
    }

    /// The value's chunks among what is at these places, which are in order.
    fn fetch(
        &mut self,
        (heap, blocks): (ForkId, BlockNumber),
        value: u32,
        places: &[ItemPointer],
    ) -> Result<Vec<Vec<u8>>, ThreadGone> {
        let (mut chunks, mut bytes) = (Vec::new(), 0);
        let by_block: Vec<_> = places
            .chunk_by(|a, b| a.block == b.block)
            .filter(|places| places[0].block < blocks)
            .collect();
        for group in by_block.chunks(PAGES_AT_ONCE) {
            let key = |places: &&[ItemPointer]| PageKey { fork: heap, block: places[0].block };
            self.bring(&group.iter().map(key).collect::<Vec<_>>())?;
            for places in group {
                let Some(Some(page)) = self.pages.get(&key(places)) else { continue };
                let items = places.iter().map(|place| place.offset);
                for tuple in items.filter_map(|item| normal_item(page, item)) {
                    // Another tuple may have come there.
                    if chunk_of(tuple).is_some_and(|(of, _)| of == value) {
                        chunks.push(tuple[TUPLE_FROM..].to_vec());
                        bytes += tuple.len();
                    }
                }
            }
            if bytes > VALUE_BYTES_MAX {
                break;
            }
        }
        Ok(chunks)
    }

    fn page(&mut self, fork: ForkId, block: BlockNumber) -> Result<Option<&Page>, ThreadGone> {
        let key = PageKey { fork, block };
        self.bring(&[key])?;
        Ok(self.pages.get(&key).and_then(Option::as_deref))
    }

    /// Gets the pages from their owners, unless they are here.
    fn bring(&mut self, keys: &[PageKey]) -> Result<(), ThreadGone> {
        if self.pages.len() + keys.len() > PAGES_MAX {
            self.pages.clear();
        }
        let missing: Vec<_> =
            keys.iter().filter(|key| !self.pages.contains_key(key)).copied().collect();
        let workers = &self.dispatcher.workers;
        let copies = workers.read(&missing)?;
        for _ in &missing {
            let (key, page) = workers.wait(&copies)?;
            self.pages.insert(key, page);
        }
        Ok(())
    }
}

/// An item that has not been taken off its page. Of a page that is pruned and not packed, too.
fn normal_item(page: &Page, item: u16) -> Option<&[u8]> {
    let id = page::item_id(page, item).ok()?;
    if id.flags == LP_NORMAL { page::item(page, item).ok() } else { None }
}
