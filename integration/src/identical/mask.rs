//! Which bytes of a page need not be the same.

use std::fmt;
use std::ops::Range;

use walfmt::ForkNumber;
use walfmt::page::{self, Page, field, max_align};
use walfmt::relation::{BLOCK_SIZE, BlockNumber};

/// Where the leaves begin in a page of the free space map: behind the header, `fp_next_slot` and
/// the inner nodes (`NonLeafNodesPerPage`, `src/include/storage/fsm_internals.h`).
const FSM_LEAVES_AT: usize = page::PAGE_HEADER_SIZE + 4 + BLOCK_SIZE / 2 - 1;

/// How many pages of the next level a page of the free space map has slots for.
const FSM_SLOTS: BlockNumber = (BLOCK_SIZE - FSM_LEAVES_AT) as BlockNumber;

/// Why a byte is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Masked {
    /// Unused space between line pointers and items.
    Hole,
    /// Behind a heap tuple, up to the next multiple of 8.
    Padding,
    /// Upper nodes and levels of a free space map, and the header of its pages.
    FreeSpaceHint,
}

/// The masked bytes of one page.
#[derive(Clone, Debug, Default)]
pub(super) struct Mask(Vec<(Range<usize>, Masked)>);

impl Mask {
    /// The mask of block `block` of a fork, of which the standby has this page.
    pub(super) fn of(fork: ForkNumber, block: BlockNumber, theirs: &Page) -> Self {
        match fork {
            ForkNumber::FreeSpace => {
                let end = if is_bottom(block) { FSM_LEAVES_AT } else { BLOCK_SIZE };
                Self(vec![(0..end, Masked::FreeSpaceHint)])
            }
            // Its header says that all of the map is unused space.
            ForkNumber::VisibilityMap => Self::default(),
            ForkNumber::Main | ForkNumber::Init => Self::of_items(theirs),
        }
    }

    fn of_items(theirs: &Page) -> Self {
        let Ok((lower, upper, special)) = page::bounds(theirs) else {
            return Self::default(); // a new page, say
        };
        let mut ranges = vec![(lower..upper, Masked::Hole)];
        // Only a heap has tuples of any length, and it alone has no special space.
        if special == BLOCK_SIZE {
            for item in 1..=page::max_offset(theirs) {
                if let Ok(range) = page::item_range(theirs, item) {
                    let end = max_align(range.end).min(BLOCK_SIZE);
                    ranges.push((range.end..end, Masked::Padding));
                }
            }
        }
        ranges.retain(|(range, _)| !range.is_empty());
        Self(ranges)
    }

    pub(super) fn ranges(&self) -> &[(Range<usize>, Masked)] {
        &self.0
    }

    pub(super) fn covers(&self, at: usize) -> bool {
        self.0.iter().any(|(range, _)| range.contains(&at))
    }

    pub(super) fn apply(&self, page: &mut Page) {
        for (range, _) in &self.0 {
            page[range.clone()].fill(0);
        }
    }
}

impl fmt::Display for Masked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hole => "unused space of pages",
            Self::Padding => "padding of tuples",
            Self::FreeSpaceHint => "free space maps but for their leaves",
        })
    }
}

/// Takes `pd_checksum` out of a comparison.
pub(super) fn clear_checksum(page: &mut Page) {
    page[field::PD_CHECKSUM..field::PD_CHECKSUM + 2].fill(0);
}

/// Whether a block of a free space map speaks of heap pages. Its three levels lie depth first: the
/// root, then each page of the middle level before those of the bottom level that it speaks of
/// (`fsm_logical_to_physical`, `src/backend/storage/freespace/freespace.c`). There is one root:
/// its slots are more than a relation needs.
fn is_bottom(block: BlockNumber) -> bool {
    block > 0 && !(block - 1).is_multiple_of(FSM_SLOTS + 1)
}

#[cfg(test)]
mod tests {
    use walfmt::relation::PageId;

    use super::*;

    #[test]
    fn bottom_pages_are_those_that_redo_writes() {
        for heap in [0, 4068, 4069, 4069 * 4069 - 1, 4069 * 4069, u32::MAX - 1] {
            let heap = PageId { block: heap, ..PageId::default() };
            assert!(is_bottom(walfmt_physical::free_space_page(heap).block));
        }
        let upper = [0, 1, 1 + 4070, 1 + 2 * 4070];
        assert!(upper.into_iter().all(|block| !is_bottom(block)));
        assert_eq!((FSM_SLOTS, FSM_LEAVES_AT), (4069, 4123));
    }

    #[test]
    fn a_heap_page_is_masked_between_and_behind_its_tuples() {
        let mut page = [0; BLOCK_SIZE];
        walfmt_physical::page::init(&mut page, 0);
        for (number, length) in [(1, 25), (2, 32)] {
            let put = walfmt_physical::page::put_item(&mut page, number, &[7; 32][..length]);
            put.expect("room for two");
        }
        let mask = Mask::of(ForkNumber::Main, 0, &page);
        let expected = [(32..8128, Masked::Hole), (8185..8192, Masked::Padding)];
        assert_eq!(mask.ranges(), expected);
        assert!(mask.covers(8191) && !mask.covers(8184));
        assert!(Mask::of(ForkNumber::VisibilityMap, 0, &page).ranges().is_empty());
    }
}
