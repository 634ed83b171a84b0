//! A worker's pages in memory, bounded, with second-chance eviction.
//!
//! Slots form a ring with a hand. The hand takes the mark off pages that were used since it last
//! passed, and takes the first page without one. A changed page is not taken before it was written;
//! the worker then writes many cold pages at once, in file order. Pages that must not be written yet are
//! passed over; if there are no others, the cache grows: see `gate.rs`.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use memmap2::{Advice, MmapMut};
use walfmt::page::{ITEM_ID_SIZE, PAGE_HEADER_SIZE};
use walfmt::relation::{BLOCK_SIZE, BlockNumber};
use walfmt_physical::{Loose, Page};

use crate::prefetch::{prefetch, prefetch_start};
use crate::relations::ForkId;

/// A page's name within the store. Sorts in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PageKey {
    pub(crate) fork: ForkId,
    pub(crate) block: BlockNumber,
}

/// A worker's share of all pages in memory.
///
/// What is looked at for every change lies close together: an index from names to slots, one byte
/// of marks for each slot, and the pages in [`Frames`].
pub(crate) struct PageCache {
    capacity: usize,
    /// By how many slots it may [grow](Self::grow).
    growth_max: usize,
    /// How many pages are passed over.
    held: usize,
    index: HashMap<PageKey, u32, foldhash::fast::RandomState>,
    frames: Frames,
    /// By slot: the page that is there; of an empty slot, the last one.
    keys: Vec<PageKey>,
    /// By slot.
    marks: Vec<u8>,
    /// By slot: what is still to be done to the page before anybody else sees it; nothing to most.
    loose: Vec<Loose>,
    free: Vec<u32>,
    hand: usize,
    /// How often a page has left its slot.
    departures: u32,
}

/// Where a page was when it was looked for.
#[derive(Clone, Copy)]
pub(crate) struct Hint {
    pub(crate) slot: usize,
    departures: u32,
}

/// The slot holds a page.
const PRESENT: u8 = 1;
/// The page was changed since it was last written.
const CHANGED: u8 = 2;
/// The page was used since the hand last passed.
const USED: u8 = 4;
/// The page was changed, and must not be written yet.
const HELD: u8 = 8;

impl PageCache {
    /// A cache for this many pages, and so many more if it [must](Self::grow). Memory is taken as pages
    /// come.
    pub(crate) fn new(capacity: usize, growth_max: usize) -> Self {
        let capacity = capacity.max(1);
        Self {
            capacity,
            growth_max,
            held: 0,
            index: HashMap::default(),
            frames: Frames::new(capacity.saturating_add(growth_max)),
            keys: Vec::new(),
            marks: Vec::new(),
            loose: Vec::new(),
            free: Vec::new(),
            hand: 0,
            departures: 0,
        }
    }

    /// Where the page is, if it is here.
    pub(crate) fn find(&mut self, key: PageKey) -> Option<usize> {
        let slot = *self.index.get(&key)? as usize;
        self.marks[slot] |= USED;
        Some(slot)
    }

    /// [`find`](Self::find), with an earlier answer of [`look_up`](Self::look_up) to begin with.
    #[inline]
    pub(crate) fn find_near(&mut self, key: PageKey, hint: Option<Hint>) -> Option<usize> {
        match hint {
            Some(Hint { slot, departures }) if departures == self.departures => {
                self.marks[slot] |= USED;
                Some(slot)
            }
            _ => self.find(key),
        }
    }

    /// Where the page is, if it is here; that does not count as a use.
    #[inline]
    pub(crate) fn look_up(&self, key: PageKey) -> Option<Hint> {
        let slot = *self.index.get(&key)? as usize;
        Some(Hint { slot, departures: self.departures })
    }

    /// The page as it lies there, if it is here: its items are where their line pointers say, and in
    /// between may be what was pruned. That does not count as a use.
    pub(crate) fn raw_page(&self, key: PageKey) -> Option<&Page> {
        let slot = *self.index.get(&key)? as usize;
        Some(self.frames.page(slot))
    }

    /// Brings the page's header near, which will be looked at soon, and the line pointer of `item`, or
    /// the first ones.
    #[inline]
    pub(crate) fn approach_header(&self, slot: usize, item: Option<u16>) {
        let page = self.frames.page(slot);
        prefetch(page, 0);
        prefetch_start(&self.loose[slot]);
        match item {
            Some(item) => prefetch(page, line_pointer(item)),
            None => prefetch(page, 64),
        }
    }

    /// Brings near what a change will look at beside the header, which should be near: the ends of the
    /// line pointers and of the items, and `item`.
    #[inline]
    pub(crate) fn approach_items(&self, slot: usize, item: Option<u16>) {
        let page = self.frames.page(slot);
        let (lower, upper) = (walfmt::page::lower(page), walfmt::page::upper(page));
        prefetch(page, lower.into());
        prefetch(page, usize::from(upper).saturating_sub(64));
        match item {
            Some(item) => {
                let pointer = walfmt::bytes::u32_at(page, line_pointer(item));
                prefetch(page, walfmt::page::ItemId::from_raw(pointer).offset.into());
            }
            None => {
                prefetch(page, upper.into());
                prefetch(page, 128);
                prefetch(page, 192);
            }
        }
    }

    /// Gets memory for pages that may come, some at once; `false` if there is enough.
    pub(crate) fn prepare(&mut self) -> bool {
        self.frames.prepare(self.keys.len(), self.capacity)
    }

    /// A slot for a page that is not here, with undefined contents; nothing if a changed page is in
    /// the way: then [`cold_changed`](Self::cold_changed) must be written first, or be
    /// [held](Self::hold).
    pub(crate) fn claim(&mut self, key: PageKey) -> Option<usize> {
        let slot = match self.free.pop() {
            Some(slot) => slot as usize,
            None if self.keys.len() < self.capacity => self.add(key),
            None => self.evict()?,
        };
        self.settle(slot, key);
        Some(slot)
    }

    /// A slot beyond the capacity, for when all pages are held; nothing if there are too many of those.
    /// It stays.
    pub(crate) fn grow(&mut self, key: PageKey) -> Option<usize> {
        if self.keys.len() >= self.capacity.saturating_add(self.growth_max) {
            return None;
        }
        let slot = self.add(key);
        self.settle(slot, key);
        Some(slot)
    }

    fn add(&mut self, key: PageKey) -> usize {
        self.keys.push(key);
        self.marks.push(0);
        self.loose.push(Loose::default());
        self.frames.reach(self.keys.len());
        self.keys.len() - 1
    }

    fn settle(&mut self, slot: usize, key: PageKey) {
        self.keys[slot] = key;
        self.marks[slot] = PRESENT | USED;
        self.loose[slot] = Loose::default();
        self.index.insert(key, u32::try_from(slot).expect("fewer slots than 2^32"));
    }

    /// Passes this page over until [`let_go`](Self::let_go).
    pub(crate) fn hold(&mut self, key: PageKey) {
        if let Some(slot) = self.index.get(&key) {
            let marks = &mut self.marks[*slot as usize];
            self.held += usize::from(*marks & HELD == 0);
            *marks |= HELD;
        }
    }

    /// How many pages are passed over, and how many are here at most by now.
    #[inline]
    pub(crate) const fn held(&self) -> (usize, usize) {
        (self.held, self.keys.len())
    }

    /// No page is passed over any more.
    pub(crate) fn let_go(&mut self) {
        for marks in &mut self.marks {
            *marks &= !HELD;
        }
        self.held = 0;
    }

    /// Gives a slot back whose page could not be read.
    pub(crate) fn release(&mut self, slot: usize) {
        if self.marks[slot] & PRESENT != 0 {
            self.depart(slot);
        }
        self.held -= usize::from(self.marks[slot] & HELD != 0);
        self.marks[slot] = 0;
        self.free.push(u32::try_from(slot).expect("fewer slots than 2^32"));
    }

    /// The page as it may be written or compared.
    pub(crate) fn page_mut(&mut self, slot: usize) -> &mut Page {
        let page = self.frames.page_mut(slot);
        self.loose[slot].pack(page);
        page
    }

    /// The page, and what is still to be done to it.
    pub(crate) fn loose_page_mut(&mut self, slot: usize) -> (&mut Page, &mut Loose) {
        (self.frames.page_mut(slot), &mut self.loose[slot])
    }

    pub(crate) fn mark_changed(&mut self, slot: usize) {
        self.marks[slot] |= CHANGED;
    }

    /// The page, if it is here and was changed since it was last written.
    pub(crate) fn changed_page(&mut self, key: PageKey) -> Option<&Page> {
        let slot = *self.index.get(&key)? as usize;
        if self.marks[slot] & CHANGED == 0 {
            return None;
        }
        Some(self.page_mut(slot))
    }

    /// The page was written.
    pub(crate) fn mark_written(&mut self, key: PageKey) {
        if let Some(slot) = self.index.get(&key) {
            let marks = &mut self.marks[*slot as usize];
            self.held -= usize::from(*marks & HELD != 0);
            *marks &= !(CHANGED | HELD);
        }
    }

    /// All changed pages, in file order.
    pub(crate) fn all_changed(&self) -> Vec<PageKey> {
        let slots = self.marks.iter().zip(&self.keys);
        let mut keys: Vec<_> =
            slots.filter(|(marks, _)| **marks & CHANGED != 0).map(|(_, key)| *key).collect();
        keys.sort_unstable();
        keys
    }

    /// Up to `limit` changed pages that were not used lately and are not held, those under the hand
    /// first; in file order. None if all pages are held and one was in the way.
    pub(crate) fn cold_changed(&self, limit: usize) -> Vec<PageKey> {
        let hand = self.hand.min(self.marks.len());
        let cold = (hand..self.marks.len())
            .chain(0..hand)
            .filter(|slot| self.marks[*slot] & (CHANGED | USED | HELD) == CHANGED);
        let mut keys: Vec<_> = cold.map(|slot| self.keys[slot]).take(limit).collect();
        keys.sort_unstable();
        keys
    }

    pub(crate) const fn capacity(&self) -> usize {
        self.capacity
    }

    /// Forgets the pages for which `doomed` holds, changed or not.
    pub(crate) fn forget(&mut self, doomed: impl Fn(PageKey) -> bool) {
        for slot in 0..self.keys.len() {
            if self.marks[slot] & PRESENT != 0 && doomed(self.keys[slot]) {
                self.release(slot);
            }
        }
    }

    fn depart(&mut self, slot: usize) {
        self.index.remove(&self.keys[slot]);
        self.departures = self.departures.wrapping_add(1);
    }

    fn evict(&mut self) -> Option<usize> {
        if self.held == self.keys.len() {
            return None;
        }
        // After one round no page has its mark any more.
        for _ in 0..2 * self.keys.len() {
            let at = self.hand % self.keys.len();
            let marks = &mut self.marks[at];
            if *marks & HELD != 0 {
                // Not now.
            } else if *marks & USED != 0 {
                *marks &= !USED;
            } else if *marks & CHANGED != 0 {
                self.hand = at;
                return None;
            } else {
                if *marks & PRESENT != 0 {
                    self.depart(at);
                }
                self.hand = at + 1;
                return Some(at);
            }
            self.hand = at + 1;
        }
        None
    }
}

/// Where an item's line pointer is, or would be.
fn line_pointer(item: u16) -> usize {
    PAGE_HEADER_SIZE + usize::from(item).saturating_sub(1) * ITEM_ID_SIZE
}

/// The memory that pages lie in: regions of addresses, which get memory as they are reached, some
/// pages at once instead of a fault for every 4 kB, or a piece of 2 MB as a huge page.
///
/// ```text
/// region, mapped    | up to a multiple of 2 MB | piece | piece | piece | ...
///                                               memory   memory  not yet
/// ```
struct Frames {
    regions: Vec<Region>,
    pages_max: usize,
    /// How many slots have memory.
    reached: usize,
    huge_pages: HugePages,
}

struct Region {
    map: MmapMut,
    /// Where its first piece begins.
    start: usize,
}

/// Whether pieces are asked for as huge pages. One needs a five-hundredth of the kernel's work, and
/// its pages are found faster ever after; but where a host has taken back what its guest did not use,
/// a fresh one takes far longer than as many small pages. So the time that one takes decides about
/// the next ones.
struct HugePages {
    /// For how many pieces not to ask.
    pause: usize,
    next_pause: usize,
}

impl HugePages {
    const SLOW: Duration = Duration::from_millis(1);
    const PAUSE_MIN: usize = 64;
    const PAUSE_MAX: usize = 1024;

    const fn new() -> Self {
        Self { pause: Self::PAUSE_MIN, next_pause: Self::PAUSE_MIN }
    }

    /// Whether to ask for the next piece as a huge page.
    const fn is_next(&mut self) -> bool {
        let is_next = self.pause == 0;
        self.pause = self.pause.saturating_sub(1);
        is_next
    }

    /// One that was asked for took this long.
    fn took(&mut self, time: Duration) {
        if time > Self::SLOW {
            self.pause = self.next_pause;
            self.next_pause = (2 * self.next_pause).min(Self::PAUSE_MAX);
        } else {
            self.next_pause = Self::PAUSE_MIN;
        }
    }

    /// The kernel does not populate when asked: times say nothing.
    const fn never(&mut self) {
        self.pause = usize::MAX;
    }
}

/// 2 MB, the size of a huge page on x86-64 and mostly elsewhere.
const PIECE_PAGES: usize = 256;
const PIECE_BYTES: usize = PIECE_PAGES * BLOCK_SIZE;

/// For how many pages memory comes at once, unless as a huge page: what others want of the address
/// space, as their allocators do, waits that long.
const STEP_PAGES: usize = 16;

/// For how many pages a thread with nothing to do gets memory before they come: 8 MB.
const AHEAD_PAGES_MAX: usize = 1024;

/// 64 MB. A power of two.
const REGION_PAGES: usize = 32 * PIECE_PAGES;

impl Frames {
    const fn new(pages_max: usize) -> Self {
        Self { regions: Vec::new(), pages_max, reached: 0, huge_pages: HugePages::new() }
    }

    /// Sees to it that there is memory for the first `pages` slots.
    fn reach(&mut self, pages: usize) {
        while self.reached < pages {
            self.step();
        }
    }

    /// Takes a step beyond the first `pages` slots, which are in use; `false` if there is memory
    /// enough already, as much as is in use or [`AHEAD_PAGES_MAX`], or for `pages_max`.
    fn prepare(&mut self, pages: usize, pages_max: usize) -> bool {
        let enough = (pages + pages.min(AHEAD_PAGES_MAX)).min(pages_max);
        let is_wanted = self.reached < enough;
        if is_wanted {
            self.step();
        }
        is_wanted
    }

    fn step(&mut self) {
        if self.reached == self.regions.len() * REGION_PAGES {
            let left = self.pages_max - self.reached;
            self.regions.push(Region::map(left.min(REGION_PAGES) * BLOCK_SIZE));
        }
        let begins_piece = self.reached.is_multiple_of(PIECE_PAGES);
        let is_huge = begins_piece && self.huge_pages.is_next();
        let count = if is_huge { PIECE_PAGES } else { STEP_PAGES };
        let count = count.min(self.pages_max - self.reached);
        if let Some(region) = self.regions.last() {
            let start = region.start + self.reached % REGION_PAGES * BLOCK_SIZE;
            let begun = Instant::now();
            match region.populate(start..start + count * BLOCK_SIZE, is_huge) {
                Ok(()) if is_huge => self.huge_pages.took(begun.elapsed()),
                Ok(()) => {}
                Err(_) => self.huge_pages.never(), // it gets memory when it is touched
            }
        }
        self.reached += count;
    }

    fn page(&self, slot: usize) -> &Page {
        let region = &self.regions[slot / REGION_PAGES];
        let offset = region.start + slot % REGION_PAGES * BLOCK_SIZE;
        region.map[offset..].first_chunk().expect("regions are whole pages")
    }

    fn page_mut(&mut self, slot: usize) -> &mut Page {
        let region = &mut self.regions[slot / REGION_PAGES];
        let offset = region.start + slot % REGION_PAGES * BLOCK_SIZE;
        region.map[offset..].first_chunk_mut().expect("regions are whole pages")
    }
}

impl Region {
    fn map(bytes: usize) -> Self {
        let map = MmapMut::map_anon(bytes + PIECE_BYTES).expect("address space for pages");
        // Once and for all: advice for a single step must wait until others are done populating.
        let _ = map.advise(Advice::NoHugePage);
        let start = map.as_ptr().addr().next_multiple_of(PIECE_BYTES) - map.as_ptr().addr();
        Self { map, start }
    }

    /// Gets memory for these bytes.
    fn populate(&self, bytes: Range<usize>, is_huge: bool) -> io::Result<()> {
        if !is_huge {
            return self.map.advise_range(Advice::PopulateWrite, bytes.start, bytes.len());
        }
        // Kernels that do not know it, or are told not to: then it is slower, not wrong.
        let _ = self.map.advise_range(Advice::HugePage, bytes.start, bytes.len());
        let populated = self.map.advise_range(Advice::PopulateWrite, bytes.start, bytes.len());
        if populated.is_err() {
            // The time it takes does not show then, so nothing is risked.
            let _ = self.map.advise_range(Advice::NoHugePage, bytes.start, bytes.len());
        }
        populated
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
        let mut cache = PageCache::new(3, 0);
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
        let mut cache = PageCache::new(2, 0);
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
    fn held_pages_are_passed_over() {
        let key = keys();
        let mut cache = PageCache::new(3, 2);
        for block in 0..3 {
            let slot = cache.claim(key(block)).unwrap();
            cache.mark_changed(slot);
        }
        assert_eq!(cache.claim(key(9)), None);
        cache.hold(key(0));
        cache.hold(key(2));
        assert_eq!(cache.held(), (2, 3));
        assert_eq!(cache.claim(key(9)), None, "one is changed and may be written");
        assert_eq!(cache.cold_changed(9), [key(1)]);
        cache.mark_written(key(1));
        let slot = cache.claim(key(9)).unwrap();
        assert!(cache.find(key(1)).is_none() && cache.changed_page(key(0)).is_some());

        cache.mark_changed(slot);
        assert_eq!(cache.claim(key(10)), None);
        cache.hold(key(9));
        assert_eq!(cache.claim(key(10)), None, "all are held");
        assert!(cache.cold_changed(9).is_empty());
        assert!(cache.grow(key(10)).is_some() && cache.grow(key(11)).is_some());
        assert_eq!(cache.grow(key(12)), None, "that much and no more");
        assert!(cache.claim(key(12)).is_some(), "what may go still goes");
        assert_eq!(cache.held(), (3, 5));

        cache.forget(|page| page == key(2));
        assert_eq!(cache.held(), (2, 5));
        cache.let_go();
        assert_eq!(cache.held(), (0, 5));
        assert_eq!(cache.all_changed(), [key(0), key(9)], "no change is lost");
    }

    #[test]
    fn memory_is_prepared_for_as_many_pages_as_are_in_use() {
        let key = keys();
        let mut cache = PageCache::new(3 * STEP_PAGES - 1, 0);
        assert!(!cache.prepare(), "none is in use");
        for (pages, has_memory) in [(1, 1), (STEP_PAGES / 2, 1), (STEP_PAGES, 2)] {
            while cache.keys.len() < pages {
                cache.claim(key(cache.keys.len() as u32)).unwrap();
            }
            while cache.prepare() {}
            assert_eq!(cache.frames.reached, has_memory * STEP_PAGES, "{pages}");
        }
        cache.claim(key(99)).unwrap();
        while cache.prepare() {}
        assert_eq!(cache.frames.reached, cache.capacity());
    }

    #[test]
    fn huge_pages_are_asked_for_less_often_while_they_are_slow() {
        let mut huge_pages = HugePages::new();
        let mut pieces_until_next = |took| {
            let pieces = (0..).position(|_| huge_pages.is_next());
            huge_pages.took(took);
            pieces
        };
        let (slow, fast) = (2 * HugePages::SLOW, HugePages::SLOW / 2);
        let found = [slow, slow, slow, slow, slow, slow, fast, fast, slow, slow, fast]
            .map(|time| pieces_until_next(time).unwrap());
        assert_eq!(found, [64, 64, 128, 256, 512, 1024, 1024, 0, 0, 64, 128]);
        huge_pages.never();
        assert!((0..10_000).all(|_| !huge_pages.is_next()));
    }

    #[test]
    fn forgotten_pages_are_gone_even_if_changed() {
        let key = keys();
        let mut cache = PageCache::new(4, 0);
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
