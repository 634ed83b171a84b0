//! A worker's watch over chunks of TOAST values that records take off their pages, and its copies of
//! pages for whoever looks for chunks.
//!
//! For a TOAST relation the page is remembered before a record that may take tuples off it, and compared
//! with what the record has left. Where the record carries the page's image, and the page is not in
//! memory, it is read for that, which redo does not need. Only pruning does: a page that any other
//! record's image replaces has the same tuples, unless it is of later, after a crash.

use walfmt::{BLOCK_SIZE, Record};
use walfmt_physical::toast::{Removal, removal, write_removed};
use walfmt_physical::{Page, PageChange, PageNeed};

use crate::batch::Task;
use crate::cache::PageKey;
use crate::error::PageFault;
use crate::toast::{ToastFiles, ToastMemo};
use crate::worker::Worker;
use crate::writeback::checksum_mismatch;

#[derive(Default)]
pub(crate) struct Removals {
    memo: ToastMemo,
    /// Whether there are TOAST relations.
    are_watched: bool,
    /// The page before the record at hand, if there was one.
    before: Option<Box<Page>>,
    has_before: bool,
    /// What was taken off pages in the batch at hand.
    entries: Vec<u8>,
}

impl Removals {
    pub(crate) fn begin_batch(&mut self, files: &ToastFiles) {
        self.are_watched = self.memo.refresh(files);
    }

    /// Learns what may have been told since; gives whether there is any TOAST relation.
    pub(crate) fn refresh(&mut self, files: &ToastFiles) -> bool {
        self.memo.refresh(files)
    }

    #[inline]
    pub(crate) const fn are_watched(&self) -> bool {
        self.are_watched
    }

    /// What the batch has taken off pages.
    pub(crate) fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.entries)
    }

    /// Remembers the page as it is before a record; nothing if it is not there.
    pub(crate) fn remember(&mut self, page: Option<&Page>) {
        self.has_before = page.is_some();
        if let Some(page) = page {
            self.buffer().copy_from_slice(page);
        }
    }

    fn buffer(&mut self) -> &mut Page {
        self.before.get_or_insert_with(|| Box::new([0; BLOCK_SIZE]))
    }

    /// Keeps what the record has taken off the page that was remembered.
    pub(crate) fn compare(
        &mut self,
        record: &Record<'_>,
        change: PageChange,
        after: Option<&Page>,
    ) {
        if let (true, Some(before), Some(after)) = (self.has_before, &self.before, after) {
            write_removed(record, change, before, after, &mut self.entries);
        }
    }
}

impl Worker {
    /// Whether the record may take chunks off the task's page.
    #[inline]
    pub(crate) fn is_removal(&mut self, record: &Record<'_>, task: &Task) -> bool {
        removal(record, task.change) != Removal::None && self.is_toast(task.page_key())
    }

    pub(crate) fn is_toast(&mut self, key: PageKey) -> bool {
        let Some(rows) = &self.parts.rows else { return false };
        let files = &mut self.parts.files;
        let memo = &mut self.removals.memo;
        memo.is_toast(rows.files(), key.fork.relation(), || files.name(key.fork).locator)
    }

    /// Remembers a page that was not in memory before the task brought it there.
    pub(crate) fn remember_from_file(
        &mut self,
        record: &Record<'_>,
        task: &Task,
    ) -> Result<(), PageFault> {
        let key = task.page_key();
        if task.need != PageNeed::Nothing {
            self.removals.remember(self.parts.cache.raw_page(key));
            return Ok(());
        }
        self.removals.has_before = false;
        if !task.extends && removal(record, task.change) == Removal::Pruning {
            let is_there = self.parts.files.read(key, self.removals.buffer(), false)?;
            // A torn page is what its image is for.
            let is_sound =
                !self.parts.checksums || checksum_mismatch(self.removals.buffer(), key).is_none();
            self.removals.has_before = is_there && is_sound;
        }
        Ok(())
    }

    /// The page, from memory or its file. It does not come into memory for that: redo alone decides
    /// what is there. A page that cannot be read is replay's trouble once it needs it.
    pub(crate) fn copy_page(&mut self, key: PageKey) -> Option<Box<Page>> {
        let mut copy = Box::new([0; BLOCK_SIZE]);
        if let Some(page) = self.parts.cache.raw_page(key) {
            copy.copy_from_slice(page);
            return Some(copy);
        }
        match self.parts.files.read(key, &mut copy, false) {
            Ok(false) => return None,
            Ok(true) if !self.parts.checksums => return Some(copy),
            Ok(true) if checksum_mismatch(&copy, key).is_none() => return Some(copy),
            Ok(true) => {
                let page = self.parts.files.page_id(key);
                tracing::warn!(%page, "a TOAST value's page has a wrong checksum");
            }
            Err(error) => tracing::warn!(%error, "a TOAST value's page cannot be read"),
        }
        None
    }
}
