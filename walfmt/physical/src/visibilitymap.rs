//! The visibility map: two bits for each heap block, all-visible and all-frozen.
//!
//! ```text
//! page      header 24 bytes, then 8168 bytes of bits; pd_lower and pd_upper say that it is empty
//! byte      76543210     four heap blocks; bits 0 and 1 are the first one's
//!                 ││
//!                 │└ all-visible
//!                 └─ all-frozen
//! ```
//!
//! Rules: `src/backend/access/heap/visibilitymap.c`.

use walfmt::page::PAGE_HEADER_SIZE;
use walfmt::relation::{BlockNumber, ForkNumber, PageId};
use walfmt::{BLOCK_SIZE, Lsn};

use crate::{Page, page};

/// Every tuple of the block is visible to everyone (`VISIBILITYMAP_ALL_VISIBLE`).
pub const ALL_VISIBLE: u8 = 0x01;
/// And frozen (`VISIBILITYMAP_ALL_FROZEN`).
pub const ALL_FROZEN: u8 = 0x02;
/// Both (`VISIBILITYMAP_VALID_BITS`).
pub const VALID_BITS: u8 = ALL_VISIBLE | ALL_FROZEN;

const BLOCKS_PER_BYTE: BlockNumber = 4;

/// How many heap blocks one page of the map covers (`HEAPBLOCKS_PER_PAGE`).
pub const HEAP_BLOCKS_PER_PAGE: BlockNumber =
    (BLOCK_SIZE - PAGE_HEADER_SIZE) as BlockNumber * BLOCKS_PER_BYTE;

/// The map page with the bits of this heap page.
#[must_use]
pub const fn visibility_page(heap: PageId) -> PageId {
    PageId {
        locator: heap.locator,
        fork: ForkNumber::VisibilityMap,
        block: heap.block / HEAP_BLOCKS_PER_PAGE,
    }
}

/// How many blocks of the map are left when the heap is cut to `heap_blocks`.
#[must_use]
pub const fn blocks_after_truncation(heap_blocks: BlockNumber) -> BlockNumber {
    heap_blocks.div_ceil(HEAP_BLOCKS_PER_PAGE)
}

/// The map page that a heap of `heap_blocks` blocks uses in part only, if there is one.
#[must_use]
pub const fn boundary_block(heap_blocks: BlockNumber) -> Option<BlockNumber> {
    if heap_blocks.is_multiple_of(HEAP_BLOCKS_PER_PAGE) {
        None
    } else {
        Some(heap_blocks / HEAP_BLOCKS_PER_PAGE)
    }
}

/// Clears bits of a heap block; says whether the page changed. The page's LSN stays
/// (`visibilitymap_clear`).
pub(crate) fn clear(page: &mut Page, heap_block: BlockNumber, bits: u8) -> bool {
    let initialized = page::init_if_new(page);
    let (byte, shift) = position(heap_block);
    let mask = (bits & VALID_BITS) << shift;
    let cleared = page[byte] & mask != 0;
    page[byte] &= !mask;
    initialized || cleared
}

/// Sets bits of a heap block, and the page's LSN if they were not just so before
/// (`visibilitymap_set`). Says whether the page changed.
pub(crate) fn set(page: &mut Page, heap_block: BlockNumber, bits: u8, lsn: Lsn) -> bool {
    let initialized = page::init_if_new(page);
    let (byte, shift) = position(heap_block);
    if page[byte] >> shift & VALID_BITS == bits {
        return initialized;
    }
    page[byte] |= (bits & VALID_BITS) << shift;
    page::set_lsn(page, lsn);
    true
}

/// Clears the bits of all heap blocks from `heap_blocks` on (`visibilitymap_prepare_truncate`).
pub(crate) fn truncate(page: &mut Page, heap_blocks: BlockNumber) {
    page::init_if_new(page);
    let (byte, shift) = position(heap_blocks);
    page[byte] &= (1 << shift) - 1;
    page[byte + 1..].fill(0);
}

/// The byte of the page with a heap block's bits, and how far they are from its lowest.
const fn position(heap_block: BlockNumber) -> (usize, u32) {
    let in_page = heap_block % HEAP_BLOCKS_PER_PAGE;
    let byte = PAGE_HEADER_SIZE + (in_page / BLOCKS_PER_BYTE) as usize;
    (byte, in_page % BLOCKS_PER_BYTE * 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Page {
        let mut page = [0; BLOCK_SIZE];
        page::init(&mut page, 0);
        page
    }

    #[test]
    fn bits_are_set_and_cleared_one_block_at_a_time() {
        let mut page = [0; BLOCK_SIZE];
        assert!(set(&mut page, HEAP_BLOCKS_PER_PAGE + 5, VALID_BITS, Lsn(8)));
        assert_eq!((page[25], page::lsn(&page)), (0b1100, Lsn(8)));
        assert!(!set(&mut page, 5, VALID_BITS, Lsn(16)), "nothing to change");
        assert_eq!(page::lsn(&page), Lsn(8));
        assert!(clear(&mut page, 5, ALL_FROZEN));
        assert_eq!((page[25], page::lsn(&page)), (0b0100, Lsn(8)));
        assert!(!clear(&mut page, 5, ALL_FROZEN));
        assert!(!clear(&mut page, 6, VALID_BITS), "a neighbour");
    }

    #[test]
    fn truncation_keeps_what_lies_before() {
        let mut page = empty();
        page[PAGE_HEADER_SIZE..].fill(0xFF);
        truncate(&mut page, 7);
        assert_eq!(page[24..27], [0xFF, 0b0011_1111, 0]);
        assert!(page[26..].iter().all(|byte| *byte == 0));
        let mut last = empty();
        last[PAGE_HEADER_SIZE..].fill(0xFF);
        truncate(&mut last, HEAP_BLOCKS_PER_PAGE - 1);
        assert_eq!(last[8191], 0b0011_1111);
    }

    #[test]
    fn a_map_is_cut_at_page_boundaries() {
        assert_eq!(HEAP_BLOCKS_PER_PAGE, 32_672);
        assert_eq!((blocks_after_truncation(0), boundary_block(0)), (0, None));
        assert_eq!((blocks_after_truncation(1), boundary_block(1)), (1, Some(0)));
        assert_eq!((blocks_after_truncation(32_672), boundary_block(32_672)), (1, None));
        assert_eq!((blocks_after_truncation(32_673), boundary_block(32_673)), (2, Some(1)));
    }
}
