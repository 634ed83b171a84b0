//! A worker's pages in memory, bounded, with second-chance eviction.
//!
//! Slots form a ring with a hand. The hand takes the mark off pages that were used since it last
//! passed, and takes the first page without one. A changed page is not taken before it was written;
//! the worker then writes many cold pages at once, in file order.

use std::collections::HashMap;

use walfmt::relation::BlockNumber;
use walfmt_physical::Page;

use crate::relations::ForkId;

/// A page's name within the store. Sorts in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PageKey {
    pub(crate) fork: ForkId,
    pub(crate) block: BlockNumber,
}

struct Slot {
    key: Option<PageKey>,
    page: Box<Page>,
    changed: bool,
    used: bool,
}

pub(crate) struct PageCache {
    capacity: usize,
    index: HashMap<PageKey, u32, foldhash::fast::RandomState>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    hand: usize,
}

impl PageCache {
    /// A cache for this many pages. Memory is taken as pages come.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity: capacity.max(1),
            index: HashMap::default(),
            slots: Vec::new(),
            free: Vec::new(),
            hand: 0,
        }
    }

    /// Where the page is, if it is here.
    pub(crate) fn find(&mut self, key: PageKey) -> Option<usize> {
        let slot = *self.index.get(&key)? as usize;
        self.slots[slot].used = true;
        Some(slot)
    }

    /// A slot for a page that is not here, with undefined contents; nothing if a changed page is in
    /// the way: then [`cold_changed`](Self::cold_changed) must be written first.
    pub(crate) fn claim(&mut self, key: PageKey) -> Option<usize> {
        let slot = match self.free.pop() {
            Some(slot) => slot as usize,
            None if self.slots.len() < self.capacity => {
                self.slots.push(Slot {
                    key: None,
                    page: Box::new([0; walfmt::BLOCK_SIZE]),
                    changed: false,
                    used: false,
                });
                self.slots.len() - 1
            }
            None => self.evict()?,
        };
        self.slots[slot].key = Some(key);
        self.slots[slot].used = true;
        self.slots[slot].changed = false;
        self.index.insert(key, u32::try_from(slot).expect("fewer slots than 2^32"));
        Some(slot)
    }

    /// Gives a slot back whose page could not be read.
    pub(crate) fn release(&mut self, slot: usize) {
        if let Some(key) = self.slots[slot].key.take() {
            self.index.remove(&key);
        }
        self.slots[slot].changed = false;
        self.free.push(u32::try_from(slot).expect("fewer slots than 2^32"));
    }

    pub(crate) fn page_mut(&mut self, slot: usize) -> &mut Page {
        &mut self.slots[slot].page
    }

    pub(crate) fn mark_changed(&mut self, slot: usize) {
        self.slots[slot].changed = true;
    }

    /// The page, if it is here and was changed since it was last written.
    pub(crate) fn changed_page(&self, key: PageKey) -> Option<&Page> {
        let slot = &self.slots[*self.index.get(&key)? as usize];
        slot.changed.then_some(&*slot.page)
    }

    /// The page was written.
    pub(crate) fn mark_written(&mut self, key: PageKey) {
        if let Some(slot) = self.index.get(&key) {
            self.slots[*slot as usize].changed = false;
        }
    }

    /// All changed pages, in file order.
    pub(crate) fn all_changed(&self) -> Vec<PageKey> {
        let changed = self.slots.iter().filter(|slot| slot.changed);
        let mut keys: Vec<_> = changed.filter_map(|slot| slot.key).collect();
        keys.sort_unstable();
        keys
    }

    /// Up to `limit` changed pages that were not used lately, those under the hand first; in file
    /// order.
    pub(crate) fn cold_changed(&self, limit: usize) -> Vec<PageKey> {
        let (behind, ahead) = self.slots.split_at(self.hand.min(self.slots.len()));
        let cold = ahead.iter().chain(behind).filter(|slot| slot.changed && !slot.used);
        let mut keys: Vec<_> = cold.filter_map(|slot| slot.key).take(limit).collect();
        keys.sort_unstable();
        keys
    }

    pub(crate) const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets the pages for which `doomed` holds, changed or not.
    pub(crate) fn forget(&mut self, doomed: impl Fn(PageKey) -> bool) {
        for slot in 0..self.slots.len() {
            if self.slots[slot].key.is_some_and(&doomed) {
                self.release(slot);
            }
        }
    }

    fn evict(&mut self) -> Option<usize> {
        // After one round no page has its mark any more.
        for _ in 0..2 * self.slots.len() {
            let at = self.hand % self.slots.len();
            let slot = &mut self.slots[at];
            if slot.used {
                slot.used = false;
            } else if slot.changed {
                self.hand = at;
                return None;
            } else {
                if let Some(key) = slot.key.take() {
                    self.index.remove(&key);
                }
                self.hand = at + 1;
                return Some(at);
            }
            self.hand = at + 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use walfmt::relation::RelFork;
    use walfmt::{ForkNumber, RelFileLocator};

    use super::*;
    use crate::layout::Layout;
    use crate::relations::Relations;

    fn keys() -> impl Fn(BlockNumber) -> PageKey {
        let directory = tempfile::tempdir().unwrap();
        let mut relations = Relations::new(Layout::new(directory.path()).unwrap());
        let locator = RelFileLocator { tablespace: 1663, database: 5, relation: 1 };
        let fork = relations.intern(RelFork { locator, fork: ForkNumber::Main });
        move |block| PageKey { fork, block }
    }

    #[test]
    fn pages_in_use_get_a_second_chance() {
        let key = keys();
        let mut cache = PageCache::new(3);
        for block in 0..3 {
            cache.claim(key(block)).unwrap();
        }
        assert!(cache.claim(key(3)).is_some(), "the first round takes the marks off");
        assert!(cache.find(key(0)).is_none());
        assert!(cache.find(key(1)).is_some());
        cache.claim(key(4)).unwrap();
        assert!(cache.find(key(1)).is_some(), "was used after the hand had passed");
        assert!(cache.find(key(2)).is_none());
    }

    #[test]
    fn a_changed_page_stays_until_written() {
        let key = keys();
        let mut cache = PageCache::new(2);
        for block in [7, 5] {
            let slot = cache.claim(key(block)).unwrap();
            cache.mark_changed(slot);
        }
        assert_eq!(cache.claim(key(9)), None);
        assert_eq!(cache.cold_changed(9), [key(5), key(7)]);
        assert_eq!(cache.all_changed(), [key(5), key(7)]);
        assert_eq!(cache.cold_changed(1), [key(7)], "the one under the hand");
        cache.mark_written(key(7));
        assert!(cache.claim(key(9)).is_some());
        assert!(cache.changed_page(key(5)).is_some());
        assert!(cache.changed_page(key(9)).is_none());
    }

    #[test]
    fn forgotten_pages_are_gone_even_if_changed() {
        let key = keys();
        let mut cache = PageCache::new(4);
        for block in 0..4 {
            let slot = cache.claim(key(block)).unwrap();
            cache.mark_changed(slot);
        }
        cache.forget(|page| page.block >= 2);
        assert_eq!(cache.all_changed(), [key(0), key(1)]);
        assert!(cache.find(key(3)).is_none());
        assert!(cache.claim(key(8)).is_some() && cache.claim(key(9)).is_some());
        assert!(cache.changed_page(key(8)).is_none(), "a slot's past does not show");
    }
}
