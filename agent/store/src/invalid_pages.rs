//! The table of invalid pages: pages that records change and that are not there.
//!
//! Before the store is consistent that is legal: the relation may have been truncated or dropped
//! after the base backup copied it, and the record that says so is still to come. It takes the
//! entries away. What is left when all else is consistent is a fault, and so is any entry after.
//!
//! Rules: `src/backend/access/transam/xlogutils.c`.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use walfmt::relation::{BlockNumber, DatabaseLocator, PageId, RelFork};
use walfmt::{Lsn, RelFileLocator};

use crate::error::NotConsistent;

/// Shared by the dispatcher and all workers; in a consistent store nobody ever locks it.
#[derive(Debug, Default)]
pub(crate) struct InvalidPages {
    consistent: AtomicBool,
    pages: Mutex<BTreeMap<RelFork, BTreeMap<BlockNumber, Lsn>>>,
}

/// The store is consistent: no page may be missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoreIsConsistent;

impl InvalidPages {
    /// Notes that the record at `at` changes a page that is not there.
    pub(crate) fn report(&self, page: PageId, at: Lsn) -> Result<(), StoreIsConsistent> {
        let mut pages = self.lock();
        if self.is_consistent() {
            return Err(StoreIsConsistent);
        }
        pages.entry(page.rel_fork()).or_default().entry(page.block).or_insert(at);
        Ok(())
    }

    /// The fork was cut to `blocks` blocks.
    pub(crate) fn forget_truncated(&self, fork: RelFork, blocks: BlockNumber) {
        if self.is_consistent() {
            return;
        }
        let mut pages = self.lock();
        if let Some(of_fork) = pages.get_mut(&fork) {
            of_fork.retain(|block, _| *block < blocks);
            if of_fork.is_empty() {
                pages.remove(&fork);
            }
        }
    }

    /// The relation was dropped.
    pub(crate) fn forget_dropped(&self, locator: RelFileLocator) {
        if !self.is_consistent() {
            self.lock().retain(|fork, _| fork.locator != locator);
        }
    }

    /// A database's directory was removed.
    pub(crate) fn forget_directory(&self, directory: DatabaseLocator) {
        if !self.is_consistent() {
            self.lock().retain(|fork, _| fork.locator.directory() != directory);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.is_consistent() || self.lock().is_empty()
    }

    pub(crate) fn is_consistent(&self) -> bool {
        self.consistent.load(Ordering::SeqCst)
    }

    /// From here on no page may be missing. Refused while some are.
    pub(crate) fn declare_consistent(&self) -> Result<(), NotConsistent> {
        let pages = self.lock();
        match pages.iter().next() {
            None => {
                self.consistent.store(true, Ordering::SeqCst);
                Ok(())
            }
            Some((RelFork { locator, fork }, blocks)) => {
                let (block, at) = blocks.first_key_value().expect("empty maps are removed");
                Err(NotConsistent::InvalidPages {
                    count: pages.values().map(BTreeMap::len).sum(),
                    first: PageId { locator: *locator, fork: *fork, block: *block },
                    at: *at,
                })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<RelFork, BTreeMap<BlockNumber, Lsn>>> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use walfmt::ForkNumber;

    use super::*;

    fn page(relation: u32, block: BlockNumber) -> PageId {
        let locator = RelFileLocator { tablespace: 1663, database: 5, relation };
        PageId { locator, fork: ForkNumber::Main, block }
    }

    #[test]
    fn entries_go_with_the_truncate_or_drop_that_explains_them() {
        let table = InvalidPages::default();
        table.report(page(1, 7), Lsn(0x10)).unwrap();
        table.report(page(1, 9), Lsn(0x20)).unwrap();
        table.report(page(2, 0), Lsn(0x30)).unwrap();
        table.forget_truncated(page(1, 0).rel_fork(), 8);
        assert_eq!(
            table.declare_consistent(),
            Err(NotConsistent::InvalidPages { count: 2, first: page(1, 7), at: Lsn(0x10) })
        );
        table.forget_truncated(page(1, 0).rel_fork(), 7);
        assert!(!table.is_empty());
        table.forget_dropped(page(2, 0).locator);
        assert!(table.is_empty());
        table.report(page(4, 0), Lsn(0x38)).unwrap();
        let directory = page(4, 0).locator.directory();
        table.forget_directory(DatabaseLocator { tablespace: 16390, ..directory });
        assert!(!table.is_empty(), "of another tablespace");
        table.forget_directory(directory);
        assert!(table.is_empty());
        assert_eq!(table.report(page(3, 0), Lsn(0x40)), Ok(()), "not declared yet");
        table.forget_dropped(page(3, 0).locator);
        table.declare_consistent().unwrap();
        assert_eq!(table.report(page(3, 0), Lsn(0x50)), Err(StoreIsConsistent));
    }
}
