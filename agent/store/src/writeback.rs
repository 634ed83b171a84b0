//! Changed pages to files: in file order, neighbours in one call, checksums on the way.
//!
//! Page checksums are computed on a copy, as a server does: a page in memory keeps the one it was
//! read or imaged with. All-zero pages have none.
//!
//! The owner of the pages writes them. A thread of its own, with copies of pages handed to it, is
//! left out: with as many workers as cores it would only move the work.

use walfmt::bytes::{put, u16_at};
use walfmt::checksum::page_checksum;
use walfmt::relation::{BLOCK_SIZE, BLOCKS_PER_FILE};
use walfmt_physical::Page;

use crate::cache::{PageCache, PageKey};
use crate::error::FileError;
use crate::files::Files;

/// Bytes written at once at most: 1 MB.
const RUN_PAGES_MAX: usize = 128;

const PD_CHECKSUM: usize = 8;
const PD_UPPER: usize = 14;

pub(crate) struct WriteBack {
    checksums: bool,
    run: Vec<u8>,
}

impl WriteBack {
    pub(crate) fn new(checksums: bool) -> Self {
        Self { checksums, run: Vec::new() }
    }

    /// Writes those of these pages that are here and changed. `keys` are in file order.
    pub(crate) fn write(
        &mut self,
        keys: &[PageKey],
        cache: &mut PageCache,
        files: &mut Files,
    ) -> Result<(), FileError> {
        let mut rest = keys;
        while let Some(first) = rest.first().copied() {
            let mut length = 0;
            self.run.clear();
            while let Some(key) = rest.get(length).copied()
                && length < RUN_PAGES_MAX
                && follows(first, length, key)
                && let Some(page) = cache.changed_page(key)
            {
                self.run.extend_from_slice(page);
                self.stamp(length, key);
                length += 1;
            }
            if length > 0 {
                files.write(first, &self.run)?;
            }
            for key in &rest[..length] {
                cache.mark_written(*key);
            }
            // Nothing written: the first page is gone or was written meanwhile.
            rest = &rest[length.max(1)..];
        }
        Ok(())
    }

    /// Writes a page as it was when it was copied.
    pub(crate) fn write_copy(
        &mut self,
        key: PageKey,
        page: &Page,
        files: &mut Files,
    ) -> Result<(), FileError> {
        self.run.clear();
        self.run.extend_from_slice(page);
        self.stamp(0, key);
        files.write(key, &self.run)
    }

    /// Gives a page of the run its checksum.
    fn stamp(&mut self, at: usize, key: PageKey) {
        if self.checksums {
            stamp_checksum(&mut self.run[at * BLOCK_SIZE..], key);
        }
    }
}

/// Whether `key` is the page `distance` behind `first`, in the same file.
fn follows(first: PageKey, distance: usize, key: PageKey) -> bool {
    key.fork == first.fork
        && key.block.checked_sub(first.block).is_some_and(|blocks| blocks as usize == distance)
        && key.block / BLOCKS_PER_FILE == first.block / BLOCKS_PER_FILE
}

fn stamp_checksum(bytes: &mut [u8], key: PageKey) {
    if let Some(page) = bytes.first_chunk_mut::<BLOCK_SIZE>()
        && !is_new(page)
    {
        let checksum = page_checksum(page, key.block);
        put(page, PD_CHECKSUM, checksum.to_le_bytes());
    }
}

/// Whether a page was never initialised (`PageIsNew`).
fn is_new(page: &Page) -> bool {
    u16_at(page, PD_UPPER) == 0
}

/// The checksum a page should have and the one it has, if they differ. A page that was never
/// initialised has none, but then it must be all zero (`PageIsVerifiedExtended`).
pub(crate) fn checksum_mismatch(page: &Page, key: PageKey) -> Option<(u16, u16)> {
    let found = u16_at(page, PD_CHECKSUM);
    if is_new(page) && page.iter().all(|byte| *byte == 0) {
        return None;
    }
    let expected = page_checksum(page, key.block);
    (is_new(page) || expected != found).then_some((expected, found))
}
