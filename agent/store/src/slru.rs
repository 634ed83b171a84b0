//! `pg_xact`: two bits for each transaction, in the dispatcher's hands.
//!
//! ```text
//! page:     4 transactions per byte, the first in the lowest two bits; 32,768 per page
//! segment:  32 pages, 256 kB, named by its number with at least 4 hexadecimal digits
//! status:   0 in progress, 1 committed, 2 aborted, 3 subtransaction committed
//! ```
//!
//! Pages carry no LSN and no checksum, and redo has no guard here: replaying again from a restart
//! point rewinds and redoes. A page that no file holds reads as zeros, as in a server's recovery:
//! its segment may have been removed by a later record that was replayed before.
//!
//! Rules: `src/backend/access/transam/clog.c`, `src/backend/access/transam/slru.c`.

use std::collections::HashMap;
use std::path::PathBuf;

use walfmt::TransactionId;
use walfmt::relation::BLOCK_SIZE;
use walfmt_physical::{Page, TransactionStatus};

use crate::disk::Entry;
use crate::error::FileError;
use crate::layout::Layout;

const XACTS_PER_BYTE: u32 = 4;
const XACTS_PER_PAGE: u32 = XACTS_PER_BYTE * BLOCK_SIZE as u32;
const PAGES_PER_SEGMENT: u32 = 32;

/// Pages kept in memory: 1 MB, four million transactions.
const CACHED_PAGES_MAX: usize = 128;

pub(crate) struct TransactionLog {
    layout: Layout,
    pages: HashMap<u32, CachedPage, foldhash::fast::RandomState>,
}

struct CachedPage {
    bytes: Box<Page>,
    changed: bool,
}

impl TransactionLog {
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout, pages: HashMap::default() }
    }

    pub(crate) fn set_status(
        &mut self,
        xid: TransactionId,
        status: TransactionStatus,
    ) -> Result<(), FileError> {
        let bits = match status {
            TransactionStatus::Committed => 1,
            TransactionStatus::Aborted => 2,
        };
        let page = self.page(xid.0 / XACTS_PER_PAGE)?;
        let byte = &mut page.bytes[(xid.0 % XACTS_PER_PAGE / XACTS_PER_BYTE) as usize];
        let shift = 2 * (xid.0 % XACTS_PER_BYTE);
        *byte = *byte & !(0b11 << shift) | bits << shift;
        // Also when the bits are there already: after a failed sync they may be in the kernel's
        // cache only, and no page image will ever bring them again.
        page.changed = true;
        Ok(())
    }

    /// Makes a page zeros. Page numbers beyond the range of transaction ids do not exist.
    pub(crate) fn zero_page(&mut self, number: u64) -> Result<(), FileError> {
        let Ok(number) = u32::try_from(number) else { return Ok(()) };
        self.make_room()?;
        let zeros = CachedPage { bytes: Box::new([0; BLOCK_SIZE]), changed: true };
        self.pages.insert(number, zeros);
        Ok(())
    }

    /// Removes the segments wholly before the one that `page` is in.
    pub(crate) fn truncate(&mut self, page: u64) -> Result<(), FileError> {
        let Ok(page) = u32::try_from(page) else { return Ok(()) };
        let cutoff = page - page % PAGES_PER_SEGMENT;
        let precedes_cutoff = |segment: u32| {
            let first = segment.saturating_mul(PAGES_PER_SEGMENT);
            page_precedes(first, cutoff)
                && page_precedes(first.saturating_add(PAGES_PER_SEGMENT - 1), cutoff)
        };
        self.pages.retain(|number, _| !precedes_cutoff(number / PAGES_PER_SEGMENT));
        let directory = self.layout.at("pg_xact");
        for Entry { name, .. } in self.layout.list(&directory)? {
            if segment_number(&name).is_some_and(precedes_cutoff) {
                self.layout.remove_file(&directory.join(name))?;
            }
        }
        Ok(())
    }

    /// Writes what was changed. It is durable after the next sync.
    pub(crate) fn write_changed(&mut self) -> Result<(), FileError> {
        let layout = &self.layout;
        for (number, page) in self.pages.iter_mut().filter(|(_, page)| page.changed) {
            let path = segment_path(layout, number / PAGES_PER_SEGMENT);
            let file = layout.open_or_create(&path)?;
            file.write_at(offset_in_segment(*number), &page.bytes[..])?;
            page.changed = false;
        }
        Ok(())
    }

    fn page(&mut self, number: u32) -> Result<&mut CachedPage, FileError> {
        if !self.pages.contains_key(&number) {
            self.make_room()?;
            let page = self.read(number)?;
            self.pages.insert(number, page);
        }
        Ok(self.pages.get_mut(&number).expect("was inserted above"))
    }

    /// Transactions are near each other: a full table is emptied rather than searched for its
    /// coldest page.
    fn make_room(&mut self) -> Result<(), FileError> {
        if self.pages.len() >= CACHED_PAGES_MAX {
            self.write_changed()?;
            self.pages.clear();
        }
        Ok(())
    }

    fn read(&self, number: u32) -> Result<CachedPage, FileError> {
        let mut bytes: Box<Page> = Box::new([0; BLOCK_SIZE]);
        let path = segment_path(&self.layout, number / PAGES_PER_SEGMENT);
        if let Some(file) = self.layout.open_existing(&path)? {
            file.read_at(offset_in_segment(number), &mut bytes[..])?;
        }
        Ok(CachedPage { bytes, changed: false })
    }
}

fn segment_path(layout: &Layout, number: u32) -> PathBuf {
    layout.at(&format!("pg_xact/{number:04X}"))
}

fn segment_number(name: &str) -> Option<u32> {
    let digits = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
    ((4..=6).contains(&name.len()) && name.bytes().all(digits))
        .then(|| u32::from_str_radix(name, 16).ok())
        .flatten()
}

const fn offset_in_segment(page: u32) -> u64 {
    (page % PAGES_PER_SEGMENT) as u64 * BLOCK_SIZE as u64
}

/// Whether all transactions of one page are older than those of another (`CLOGPagePrecedes`).
const fn page_precedes(a: u32, b: u32) -> bool {
    let first = TransactionId::FIRST_NORMAL.0 + 1;
    let a = TransactionId(a.wrapping_mul(XACTS_PER_PAGE).wrapping_add(first));
    let b = b.wrapping_mul(XACTS_PER_PAGE).wrapping_add(first);
    a.precedes(TransactionId(b)) && a.precedes(TransactionId(b.wrapping_add(XACTS_PER_PAGE - 1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(directory: &tempfile::TempDir) -> TransactionLog {
        std::fs::create_dir_all(directory.path().join("pg_xact")).unwrap();
        TransactionLog::new(Layout::new(directory.path()).unwrap())
    }

    #[test]
    fn status_bits_are_where_a_server_looks_for_them() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(&directory);
        log.set_status(TransactionId(5), TransactionStatus::Committed).unwrap();
        log.set_status(TransactionId(6), TransactionStatus::Aborted).unwrap();
        log.set_status(TransactionId(32 * 32768 + 1), TransactionStatus::Committed).unwrap();
        log.write_changed().unwrap();
        let first = std::fs::read(directory.path().join("pg_xact/0000")).unwrap();
        assert_eq!(first.len(), 8192);
        assert_eq!(first[1], 0b0010_0100);
        let second = std::fs::read(directory.path().join("pg_xact/0001")).unwrap();
        assert_eq!((second.len(), second[0]), (8192, 0b0000_0100));

        // Read back from the files, and turned around.
        let mut log = TransactionLog::new(Layout::new(directory.path()).unwrap());
        log.set_status(TransactionId(5), TransactionStatus::Aborted).unwrap();
        log.zero_page(2).unwrap();
        log.write_changed().unwrap();
        let first = std::fs::read(directory.path().join("pg_xact/0000")).unwrap();
        assert_eq!((first.len(), first[1]), (3 * 8192, 0b0010_1000));
    }

    #[test]
    fn more_pages_than_memory_holds() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(&directory);
        let xids = (0..300).map(|page| TransactionId(page * XACTS_PER_PAGE + 8));
        for xid in xids.clone() {
            log.set_status(xid, TransactionStatus::Committed).unwrap();
        }
        assert!(log.pages.len() <= CACHED_PAGES_MAX);
        for xid in xids {
            let page = log.page(xid.0 / XACTS_PER_PAGE).unwrap();
            assert_eq!(page.bytes[2], 1, "{xid}");
        }
    }

    #[test]
    fn truncation_removes_older_segments_only() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = log(&directory);
        for segment in 0..4 {
            log.zero_page(segment * 32).unwrap();
        }
        log.write_changed().unwrap();
        std::fs::write(directory.path().join("pg_xact/note"), "not a segment").unwrap();
        log.truncate(2 * 32 + 5).unwrap();
        log.write_changed().unwrap();
        let entries = std::fs::read_dir(directory.path().join("pg_xact")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["0002", "0003", "note"]);
    }

    #[test]
    fn pages_compare_modulo_the_range_of_transaction_ids() {
        assert!(page_precedes(1, 2) && !page_precedes(2, 1) && !page_precedes(2, 2));
        assert!(page_precedes(131_071, 0) && !page_precedes(0, 131_071));
    }
}
