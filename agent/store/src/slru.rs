//! An SLRU on disk and in memory: pages of small entries, in segments of 32 pages, of which the
//! oldest go as time passes. It is in the dispatcher's hands.
//!
//! Pages carry no LSN and no checksum, and redo has no guard here: replaying again from a restart
//! point rewinds and redoes. A page that no file holds reads as zeros, as in a server's recovery:
//! its segment may have been removed by a later record that was replayed before.
//!
//! What lies where is in [`walfmt::slru`]. Rules: `src/backend/access/transam/slru.c`.

use std::collections::HashMap;
use std::path::PathBuf;

use walfmt::relation::BLOCK_SIZE;
use walfmt::slru::{
    PAGES_PER_SEGMENT, SlruKind, offset_in_segment, segment_file_name, segment_number,
    segment_of_page,
};
use walfmt_physical::Page;

use crate::disk::{DiskFile, Entry};
use crate::error::FileError;
use crate::layout::Layout;

/// Pages kept in memory: 1 MB.
const CACHED_PAGES_MAX: usize = 128;

pub(crate) struct Slru {
    layout: Layout,
    kind: &'static SlruKind,
    /// The newest page (`latest_page_number`): it is never removed.
    latest_page: u64,
    pages: HashMap<u64, CachedPage, foldhash::fast::RandomState>,
}

struct CachedPage {
    bytes: Box<Page>,
    changed: bool,
}

impl Slru {
    /// The SLRU of a cluster whose next entry is on `latest_page`.
    pub(crate) fn new(layout: Layout, kind: &'static SlruKind, latest_page: u64) -> Self {
        Self { layout, kind, latest_page, pages: HashMap::default() }
    }

    pub(crate) const fn set_latest_page(&mut self, page: u64) {
        self.latest_page = page;
    }

    /// A page as it is.
    pub(crate) fn page(&mut self, number: u64) -> Result<&Page, FileError> {
        self.cached(number).map(|page| &*page.bytes)
    }

    /// A page to be changed.
    ///
    /// It counts as changed even if its bytes are what they should be already: after a failed sync
    /// they may be in the kernel's cache only, and no page image will ever bring them again.
    pub(crate) fn change_page(&mut self, number: u64) -> Result<&mut Page, FileError> {
        let page = self.cached(number)?;
        page.changed = true;
        Ok(&mut page.bytes)
    }

    /// Makes a page zeros, and the newest one.
    pub(crate) fn zero_page(&mut self, number: u64) -> Result<(), FileError> {
        self.make_room()?;
        let zeros = CachedPage { bytes: Box::new([0; BLOCK_SIZE]), changed: true };
        self.pages.insert(number, zeros);
        self.latest_page = number;
        Ok(())
    }

    /// Whether a file holds the page (`SimpleLruDoesPhysicalPageExist`), or will at the next write.
    pub(crate) fn page_exists(&self, number: u64) -> Result<bool, FileError> {
        if self.pages.get(&number).is_some_and(|page| page.changed) {
            return Ok(true);
        }
        let metadata = self.layout.metadata(&self.segment_path(segment_of_page(number)))?;
        let end = offset_in_segment(number) + BLOCK_SIZE as u64;
        Ok(metadata.is_some_and(|file| file.length >= end))
    }

    /// Removes the segments wholly before the one that `cutoff` is in, unless the newest page would
    /// go too (`SimpleLruTruncate`).
    pub(crate) fn truncate(&mut self, cutoff: u64) -> Result<(), FileError> {
        let precedes = self.kind.page_precedes;
        if precedes(self.latest_page, cutoff) {
            tracing::warn!(
                directory = self.kind.directory,
                cutoff,
                latest = self.latest_page,
                "not truncated: apparent wraparound"
            );
            return Ok(());
        }
        self.remove_segments(|segment| {
            let first = segment * PAGES_PER_SEGMENT;
            precedes(first, cutoff) && precedes(first + PAGES_PER_SEGMENT - 1, cutoff)
        })
    }

    /// Removes the segments for which `doomed` holds, in memory and on disk.
    pub(crate) fn remove_segments(
        &mut self,
        doomed: impl Fn(u64) -> bool,
    ) -> Result<(), FileError> {
        self.pages.retain(|number, _| !doomed(segment_of_page(*number)));
        let directory = self.layout.at(self.kind.directory);
        for Entry { name, .. } in self.layout.list(&directory)? {
            if segment_number(&name).is_some_and(&doomed) {
                self.layout.remove_file(&directory.join(name))?;
            }
        }
        Ok(())
    }

    /// Writes what was changed. It is durable after the next sync.
    pub(crate) fn write_changed(&mut self) -> Result<(), FileError> {
        let mut changed: Vec<u64> = self
            .pages
            .iter()
            .filter_map(|(number, page)| page.changed.then_some(*number))
            .collect();
        changed.sort_unstable();
        let mut open: Option<(u64, Box<dyn DiskFile>)> = None;
        for number in changed {
            let segment = segment_of_page(number);
            let file = match &open {
                Some((opened, file)) if *opened == segment => file,
                _ => {
                    let file = self.layout.open_or_create(&self.segment_path(segment))?;
                    &open.insert((segment, file)).1
                }
            };
            if let Some(page) = self.pages.get_mut(&number) {
                file.write_at(offset_in_segment(number), &page.bytes[..])?;
                page.changed = false;
            }
        }
        Ok(())
    }

    fn cached(&mut self, number: u64) -> Result<&mut CachedPage, FileError> {
        if !self.pages.contains_key(&number) {
            self.make_room()?;
            let page = self.read(number)?;
            self.pages.insert(number, page);
        }
        Ok(self.pages.get_mut(&number).expect("was inserted above"))
    }

    /// Entries that are used are near each other: a full table is emptied rather than searched for
    /// its coldest page.
    fn make_room(&mut self) -> Result<(), FileError> {
        if self.pages.len() >= CACHED_PAGES_MAX {
            self.write_changed()?;
            self.pages.clear();
        }
        Ok(())
    }

    fn read(&self, number: u64) -> Result<CachedPage, FileError> {
        let mut bytes: Box<Page> = Box::new([0; BLOCK_SIZE]);
        let path = self.segment_path(segment_of_page(number));
        if let Some(file) = self.layout.open_existing(&path)? {
            file.read_at(offset_in_segment(number), &mut bytes[..])?;
        }
        Ok(CachedPage { bytes, changed: false })
    }

    fn segment_path(&self, segment: u64) -> PathBuf {
        self.layout.at(&format!("{}/{}", self.kind.directory, segment_file_name(segment)))
    }
}

#[cfg(test)]
mod tests {
    use walfmt::slru::{CLOG, MULTIXACT_MEMBERS};

    use super::*;

    fn slru(directory: &tempfile::TempDir, kind: &'static SlruKind) -> Slru {
        std::fs::create_dir_all(directory.path().join(kind.directory)).unwrap();
        Slru::new(Layout::new(directory.path()).unwrap(), kind, 0)
    }

    fn segments(directory: &tempfile::TempDir, kind: &SlruKind) -> Vec<String> {
        let entries = std::fs::read_dir(directory.path().join(kind.directory)).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    #[test]
    fn pages_are_in_their_segments() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = slru(&directory, &CLOG);
        log.change_page(33).unwrap()[7] = 1;
        assert!(log.page_exists(33).unwrap() && !log.page_exists(34).unwrap());
        log.write_changed().unwrap();
        assert!(log.page_exists(33).unwrap() && log.page_exists(32).unwrap());
        let file = std::fs::read(directory.path().join("pg_xact/0001")).unwrap();
        assert_eq!((file.len(), file[8192 + 7]), (2 * 8192, 1));

        let mut log = slru(&directory, &CLOG);
        assert_eq!(log.page(33).unwrap()[7], 1);
        log.zero_page(33).unwrap();
        log.write_changed().unwrap();
        let file = std::fs::read(directory.path().join("pg_xact/0001")).unwrap();
        assert_eq!(file, [0; 2 * 8192]);
    }

    #[test]
    fn more_pages_than_memory_holds() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = slru(&directory, &CLOG);
        for number in 0..300 {
            log.change_page(number).unwrap()[2] = number as u8;
        }
        assert!(log.pages.len() <= CACHED_PAGES_MAX);
        for number in 0..300 {
            assert_eq!(log.page(number).unwrap()[2], number as u8);
        }
    }

    #[test]
    fn truncation_removes_older_segments_only() {
        let directory = tempfile::tempdir().unwrap();
        let mut log = slru(&directory, &CLOG);
        for segment in 0..4 {
            log.zero_page(segment * 32).unwrap();
        }
        log.write_changed().unwrap();
        std::fs::write(directory.path().join("pg_xact/note"), "not a segment").unwrap();
        log.truncate(2 * 32 + 5).unwrap();
        log.write_changed().unwrap();
        assert_eq!(segments(&directory, &CLOG), ["0002", "0003", "note"]);
        // Everything would go: a server takes that for a wraparound.
        log.truncate(5 * 32).unwrap();
        assert_eq!(segments(&directory, &CLOG), ["0002", "0003", "note"]);
        log.set_latest_page(5 * 32);
        log.truncate(5 * 32).unwrap();
        assert_eq!(segments(&directory, &CLOG), ["note"]);
    }

    #[test]
    fn segments_with_longer_names() {
        let directory = tempfile::tempdir().unwrap();
        let mut members = slru(&directory, &MULTIXACT_MEMBERS);
        members.zero_page(MULTIXACT_MEMBERS.page_max).unwrap();
        members.write_changed().unwrap();
        assert_eq!(segments(&directory, &MULTIXACT_MEMBERS), ["14078"]);
        members.remove_segments(|segment| segment == 0x14078).unwrap();
        assert!(segments(&directory, &MULTIXACT_MEMBERS).is_empty());
        members.write_changed().unwrap();
        assert!(segments(&directory, &MULTIXACT_MEMBERS).is_empty());
    }
}
