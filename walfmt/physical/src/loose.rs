//! Pruned heap pages whose tuples are moved later.
//!
//! Pruning takes the tuples of some line pointers away and moves all others together. A page that is
//! updated is pruned every few updates, and where its tuples lie matters to nobody before the page
//! leaves memory. So redo does what pruning does to the line pointers, leaves the tuples where they
//! are, and puts new ones into the gaps:
//!
//! ```text
//!                              upper                                 special
//! loose   | header, pointers |··| a | b | gap | new 2 | c | new 1 | d |
//! packed  | header, pointers |········| new 2 | new 1 | tuples by line pointer: a c b d |
//! ```
//!
//! [`Loose::pack`] makes up for it, exactly: the tuples that were there when the page was pruned go
//! into the order of their line pointers, and what was put on the page since lies below them, as it
//! came. A second pruning counts all tuples as having been there. Unused space becomes zeros.
//!
//! Nobody else may see a loose page: a server relies on the room that its WAL says there is. So it is
//! packed before it is written, compared, or changed by a record that speaks of places on the page.

use std::ops::Range;

use smallvec::SmallVec;
use walfmt::page::{
    ITEM_ID_SIZE, ItemId, PAGE_HEADER_SIZE, PageError, bounds, lower, max_align, max_offset,
    special, upper,
};

use crate::Page;
use crate::page::{self, Packing};

/// More gaps than this, and the page is packed at once.
const GAPS_MAX: usize = 64;

/// What is still to be done to a page; the default is nothing. Whoever keeps the page keeps it
/// beside it: mostly one line of the processor's cache.
#[derive(Clone, Debug, Default)]
#[repr(align(64))]
pub struct Loose {
    /// Whether there is anything.
    is_loose: bool,
    /// What all items take together in bytes, padding included.
    stored: u16,
    /// Places without items, of which there may be more.
    gaps: SmallVec<[Gap; 6]>,
    /// The items put since the page was pruned, as they came.
    since: SmallVec<[u16; 8]>,
}

#[derive(Clone, Copy, Debug)]
struct Gap {
    offset: u16,
    size: u16,
}

impl Gap {
    const fn adjoins(self, other: Self) -> bool {
        self.offset + self.size == other.offset || other.offset + other.size == self.offset
    }
}

impl Loose {
    /// Whether there is something to be done.
    #[must_use]
    pub const fn is_loose(&self) -> bool {
        self.is_loose
    }

    /// How many bytes lie free among the items, beside those between `pd_lower` and `pd_upper`.
    pub(crate) fn gain(&self, page: &Page) -> u16 {
        if !self.is_loose {
            return 0;
        }
        special(page).saturating_sub(self.stored).saturating_sub(upper(page))
    }

    /// An item of a heap page is going to lose its storage by pruning. It counts as a gap only where
    /// items can be.
    pub(crate) fn free(&mut self, page: &Page, id: ItemId) {
        let size = max_align(id.length.into());
        let end = usize::from(id.offset) + size;
        let is_inside = id.offset >= upper(page) && end <= special(page).into();
        if !id.has_storage() || !is_inside || !id.offset.is_multiple_of(8) {
            return;
        }
        let freed = Gap { offset: id.offset, size: size as u16 };
        // Tuples that came together often go together; a larger one fits where they were.
        match self.gaps.iter_mut().find(|gap| gap.adjoins(freed)) {
            Some(gap) => {
                *gap = Gap { offset: gap.offset.min(freed.offset), size: gap.size + freed.size };
            }
            None => self.gaps.push(freed),
        }
    }

    /// What pruning does after it has changed line pointers, and [told](Self::free) of them:
    /// `PageRepairFragmentation`, but for the move of the items.
    pub(crate) fn begin(&mut self, page: &mut Page) -> Result<(), PageError> {
        let stored = page::repair_line_pointers(page)?;
        let (_, upper, special) = bounds(page)?;
        self.is_loose = true;
        self.stored = stored;
        self.since.clear();
        // Together they can take more than there is only if they overlap, as on a corrupt page.
        if self.gaps.len() > GAPS_MAX || usize::from(stored) > special - upper {
            self.pack(page);
        }
        Ok(())
    }

    /// Makes room for an item of a heap page, as [`page::reserve_item`] does.
    pub(crate) fn reserve_item(
        &mut self,
        page: &mut Page,
        item: u16,
        length: usize,
    ) -> Result<Range<usize>, PageError> {
        if !self.is_loose {
            return page::reserve_item(page, item, length);
        }
        let size = max_align(length);
        let room = usize::from(upper(page).saturating_sub(lower(page)));
        let gap = self.gaps.iter().rposition(|gap| usize::from(gap.size) >= size);
        // It always fits, unless items overlap.
        let fits = size <= self.gain(page).into();
        let range = match gap {
            Some(at) if length > 0 && room >= ITEM_ID_SIZE && fits => {
                let range = page::set_heap_item(page, item, self.gaps[at].offset, length)?;
                self.fill(at, size as u16);
                range
            }
            _ if room >= size + ITEM_ID_SIZE || self.lower_gap(page, size + ITEM_ID_SIZE) => {
                page::reserve_item(page, item, length)?
            }
            _ => {
                self.pack(page);
                return page::reserve_item(page, item, length);
            }
        };
        self.stored += size as u16;
        self.since.push(item);
        Ok(range)
    }

    /// So much of a gap is in use from now on.
    fn fill(&mut self, at: usize, size: u16) {
        let gap = &mut self.gaps[at];
        gap.offset += size;
        gap.size -= size;
        if gap.size == 0 {
            self.gaps.swap_remove(at);
        }
    }

    /// Makes room of this many bytes between line pointers and items by moving the lowest items into
    /// gaps. That is less than packing, but gaps can be too small: then `false`.
    ///
    /// ```text
    /// |··| a | b | gap | c |        |······| b | a | c |
    /// ```
    fn lower_gap(&mut self, page: &mut Page, needed: usize) -> bool {
        loop {
            let bottom = upper(page);
            let room = usize::from(bottom.saturating_sub(lower(page)));
            if room >= needed {
                return true;
            }
            // On a valid page all that is moved or passed is free. Where items overlap it is not.
            let gain = self.gain(page);
            // What lies lowest may be a gap by now.
            if let Some(at) = self.gaps.iter().position(|gap| gap.offset == bottom) {
                if self.gaps[at].size > gain {
                    return false;
                }
                page::set_upper(page, (bottom + self.gaps.swap_remove(at).size).into());
                continue;
            }
            let Some((item, id)) = page::item_at(page, bottom) else { return false };
            let size = max_align(id.length.into());
            let end = usize::from(bottom) + size;
            let at = self.gaps.iter().rposition(|gap| usize::from(gap.size) >= size);
            let is_free = end <= special(page).into() && size <= gain.into();
            let Some(at) = at.filter(|_| is_free) else { return false };
            let gap = &mut self.gaps[at];
            let moved = ItemId { offset: gap.offset, ..id };
            if page::set_item_id(page, item, moved).is_err() {
                return false;
            }
            page.copy_within(usize::from(bottom)..end, gap.offset.into());
            page::set_upper(page, end);
            self.fill(at, size as u16);
        }
    }

    /// Forgets what was to be done: the page is another one.
    pub fn reset(&mut self) {
        self.is_loose = false;
        self.gaps.clear();
        self.since.clear();
    }

    /// Moves the items to where they belong. Does nothing to a page that is not loose.
    pub fn pack(&mut self, page: &mut Page) {
        if !self.is_loose {
            return;
        }
        let mut is_since = [false; page::ITEMS_MAX + 1];
        for item in &self.since {
            is_since[usize::from(*item)] = true;
        }
        let mut packing = Packing::below(special(page));
        let count = max_offset(page);
        let (pointers, _) = page[PAGE_HEADER_SIZE..].as_chunks_mut::<ITEM_ID_SIZE>();
        let pointers = &mut pointers[..count.into()];
        for (pointer, is_since) in pointers.iter_mut().zip(&is_since[1..]) {
            if !is_since {
                *pointer = packing.place(u32::from_le_bytes(*pointer)).to_le_bytes();
            }
        }
        for item in self.since.iter().map(|item| usize::from(*item)) {
            // Once, whatever a corrupt record did to it meanwhile.
            if let Some(pointer) = pointers.get_mut(item - 1)
                && std::mem::take(&mut is_since[item])
            {
                *pointer = packing.place(u32::from_le_bytes(*pointer)).to_le_bytes();
            }
        }
        packing.carry_out(page);
        // What is left in between depends on when the page was packed.
        let unused = usize::from(lower(page))..usize::from(upper(page));
        if let Some(unused) = page.get_mut(unused) {
            unused.fill(0);
        }
        self.reset();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::page::tests::any_page;
    use crate::page::{item_id, max_offset, set_item_id};

    /// What is not unused space.
    fn contents(page: &Page) -> (&[u8], &[u8]) {
        (&page[..lower(page).into()], &page[upper(page).into()..])
    }

    fn prune(page: &mut Page, loose: &mut Loose, item: u16) {
        loose.free(page, item_id(page, item).expect("is there"));
        set_item_id(page, item, ItemId::UNUSED).expect("is there");
    }

    /// The comparison below tells a loose page from a packed one.
    #[test]
    fn new_tuples_go_into_gaps_until_the_page_is_packed() {
        let mut expected = [0; walfmt::BLOCK_SIZE];
        page::init(&mut expected, 0);
        for (item, bytes) in [(1, b"one"), (2, b"two"), (3, b"six")] {
            page::put_item(&mut expected, item, bytes).expect("fits");
        }
        let (mut found, mut loose) = (expected, Loose::default());
        set_item_id(&mut expected, 1, ItemId::UNUSED).expect("is there");
        page::repair_fragmentation(&mut expected).expect("valid page");
        page::put_item(&mut expected, 4, b"new").expect("fits");
        prune(&mut found, &mut loose, 1);
        loose.begin(&mut found).expect("valid page");
        let place = loose.reserve_item(&mut found, 4, 3).expect("fits");
        found[place].copy_from_slice(b"new");

        assert_eq!(item_id(&found, 4).expect("is there").offset, 8184, "the gap");
        assert_ne!(contents(&found), contents(&expected));
        loose.pack(&mut found);
        assert_eq!(contents(&found), contents(&expected));
        assert!(!loose.is_loose());
    }

    /// Gaps of items that overlap speak of the same bytes: no more is put on the page than fits.
    #[test]
    fn overlapping_items_make_no_room() {
        let mut page = [0; walfmt::BLOCK_SIZE];
        page::init(&mut page, 0);
        page::put_item(&mut page, 1, &[7; 8000]).expect("fits");
        for item in 2..=5 {
            page::put_item(&mut page, item, b"x").expect("fits");
            set_item_id(&mut page, item, ItemId::normal(192, 8000)).expect("is there");
        }
        let mut loose = Loose::default();
        for item in 2..=5 {
            prune(&mut page, &mut loose, item);
        }
        page::set_upper(&mut page, 192);
        loose.begin(&mut page).expect("valid page");
        let put = (2..=100).take_while(|item| loose.reserve_item(&mut page, *item, 200).is_ok());
        assert_eq!(put.count(), 0);
        loose.pack(&mut page);
    }

    /// The lowest item goes into the gap where it fits; where it does not, the page is packed.
    #[test]
    fn the_lowest_items_make_room() {
        for (lowest, new, is_moved) in
            [(1000, 2000, true), (1008, 2000, false), (1000, 3000, false)]
        {
            let mut expected = [0; walfmt::BLOCK_SIZE];
            page::init(&mut expected, 0);
            for (item, size) in [(1, 3000), (2, 1000), (3, 2000), (4, lowest)] {
                page::put_item(&mut expected, item, &vec![item as u8; size]).expect("fits");
            }
            let (mut found, mut loose) = (expected, Loose::default());
            set_item_id(&mut expected, 2, ItemId::UNUSED).expect("is there");
            page::repair_fragmentation(&mut expected).expect("valid page");
            prune(&mut found, &mut loose, 2);
            loose.begin(&mut found).expect("valid page");
            assert!(page::put_item(&mut expected, 2, &vec![9; new]).is_ok() == (new == 2000));
            if let Ok(place) = loose.reserve_item(&mut found, 2, new) {
                found[place].fill(9);
            }
            assert_eq!(loose.is_loose(), is_moved, "{lowest} {new}");
            if is_moved {
                assert_eq!(item_id(&found, 4).expect("is there").offset, 4192, "the gap");
                assert_eq!(item_id(&found, 2).expect("is there").offset, 192);
                assert_ne!(contents(&found), contents(&expected));
            }
            loose.pack(&mut found);
            assert_eq!(contents(&found), contents(&expected));
        }
    }

    proptest! {
        #[test]
        fn a_packed_page_is_that_of_a_server(
            rounds in prop::collection::vec(
                prop::collection::vec(
                    (1..60_u16, prop::collection::vec(any::<u8>(), 1..300)), 1..40),
                1..12,
            ),
            pack_after in prop::collection::vec(any::<bool>(), 12),
        ) {
            let mut expected = [0; walfmt::BLOCK_SIZE];
            page::init(&mut expected, 0);
            let (mut found, mut loose) = (expected, Loose::default());
            for (round, pack) in rounds.into_iter().zip(pack_after) {
                for (item, _) in &round {
                    if item_id(&expected, *item).is_ok_and(ItemId::is_used) {
                        set_item_id(&mut expected, *item, ItemId::UNUSED).expect("is there");
                        prune(&mut found, &mut loose, *item);
                    }
                }
                page::repair_fragmentation(&mut expected).expect("valid page");
                loose.begin(&mut found).expect("valid page");
                for (item, bytes) in round {
                    let item = item.min(max_offset(&expected) + 1);
                    let place = page::reserve_item(&mut expected, item, bytes.len());
                    let loose_place = loose.reserve_item(&mut found, item, bytes.len());
                    prop_assert_eq!(place.is_ok(), loose_place.is_ok(), "{:?} {:?}", place, loose_place);
                    if let (Ok(place), Ok(loose_place)) = (place, loose_place) {
                        expected[place].copy_from_slice(&bytes);
                        found[loose_place].copy_from_slice(&bytes);
                    }
                    for free_space in [page::heap_free_space_with, page::free_space_with] {
                        prop_assert_eq!(
                            free_space(&found, loose.gain(&found)),
                            free_space(&expected, 0)
                        );
                    }
                }
                let mut packed = found;
                loose.clone().pack(&mut packed);
                prop_assert_eq!(contents(&packed), contents(&expected));
                if pack {
                    loose.pack(&mut found);
                    prop_assert_eq!(contents(&found), contents(&expected));
                    prop_assert!(found[lower(&found).into()..upper(&found).into()].iter().all(|byte| *byte == 0));
                }
            }
        }

        #[test]
        fn no_page_makes_it_panic(page in any_page(), items in prop::collection::vec(1..300_u16, 0..20), lengths in prop::collection::vec(0..3000_usize, 0..20)) {
            let (mut page, mut loose) = (page, Loose::default());
            for item in &items {
                if let Ok(id) = item_id(&page, *item) {
                    loose.free(&page, id);
                    set_item_id(&mut page, *item, ItemId::UNUSED).expect("is there");
                }
            }
            if loose.begin(&mut page).is_ok() {
                for (item, length) in items.iter().zip(lengths) {
                    if let Ok(range) = loose.reserve_item(&mut page, *item, length) {
                        prop_assert!(range.end <= walfmt::BLOCK_SIZE);
                    }
                    if length % 3 == 0 {
                        let _ = set_item_id(&mut page, *item, ItemId::UNUSED); // as VACUUM could
                    }
                }
                let _ = loose.gain(&page);
                loose.pack(&mut page);
            }
        }
    }
}
