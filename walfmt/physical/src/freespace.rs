//! The free space map: how much room each heap page has, in steps of 32 bytes.
//!
//! ```text
//! page      header 24 bytes, fp_next_slot i32, then fp_nodes u8[8164]: a binary tree, each node
//!           the larger of its children 2i+1 and 2i+2; its last 4069 nodes, the leaves, are the
//!           slots of as many heap blocks, or of pages of the level below
//! fork      three levels, depth first: block 0 is the root, 1 the first page of the middle level,
//!           2 the first of the bottom level, 3 the next of the bottom level, ...
//! ```
//!
//! All of it is a hint. Replay writes to the bottom level only. Left out is what PostgreSQL does
//! to the two upper levels after a truncation (`FreeSpaceMapVacuumRange`): it is a change to three
//! pages that depends on all of them, its result is not kept by a server with checksums either,
//! and the next vacuum makes up for it.
//!
//! Rules: `src/backend/storage/freespace/freespace.c`, `src/backend/storage/freespace/fsmpage.c`.

use walfmt::BLOCK_SIZE;
use walfmt::page::PAGE_HEADER_SIZE;
use walfmt::relation::{BlockNumber, ForkNumber, PageId};

use crate::{Page, page};

/// Where `fp_nodes` begins, in bytes from the page's start.
const NODES_AT: usize = PAGE_HEADER_SIZE + 4;
/// `NodesPerPage`.
const NODES: usize = BLOCK_SIZE - NODES_AT;
/// `NonLeafNodesPerPage`.
const INNER_NODES: usize = BLOCK_SIZE / 2 - 1;

/// How many heap blocks one bottom page covers, and pages one upper page (`SlotsPerFSMPage`).
pub const SLOTS_PER_PAGE: u32 = (NODES - INNER_NODES) as u32;

/// `FSM_TREE_DEPTH`.
const LEVELS: u32 = 3;

/// The largest request there is, in bytes (`MaxFSMRequestSize`, which is `MaxHeapTupleSize`); from
/// there on a page counts as empty.
const REQUEST_MAX: u16 = 8160;

/// A category's size in bytes (`FSM_CAT_STEP`).
const CATEGORY_STEP: u16 = 32;

/// The map page with the slot of this heap page.
#[must_use]
pub const fn free_space_page(heap: PageId) -> PageId {
    PageId {
        locator: heap.locator,
        fork: ForkNumber::FreeSpace,
        block: bottom_block(heap.block / SLOTS_PER_PAGE),
    }
}

/// How many blocks of the map are left when the heap is cut to `heap_blocks`
/// (`FreeSpaceMapPrepareTruncateRel`).
#[must_use]
pub const fn blocks_after_truncation(heap_blocks: BlockNumber) -> BlockNumber {
    let first_removed = bottom_block(heap_blocks / SLOTS_PER_PAGE);
    if heap_blocks.is_multiple_of(SLOTS_PER_PAGE) { first_removed } else { first_removed + 1 }
}

/// The bottom page that a heap of `heap_blocks` blocks uses in part only, if there is one.
#[must_use]
pub const fn boundary_block(heap_blocks: BlockNumber) -> Option<BlockNumber> {
    if heap_blocks.is_multiple_of(SLOTS_PER_PAGE) {
        None
    } else {
        Some(bottom_block(heap_blocks / SLOTS_PER_PAGE))
    }
}

/// The block of the bottom level's page number `page` (`fsm_logical_to_physical`): before it lie
/// the bottom pages before, and the upper pages begun so far.
const fn bottom_block(page: u32) -> BlockNumber {
    let mut blocks = 0;
    let mut page = page;
    let mut level = 0;
    while level < LEVELS {
        blocks += page + 1;
        page /= SLOTS_PER_PAGE;
        level += 1;
    }
    blocks - 1
}

/// Notes a heap block's free space; says whether the page changed (`XLogRecordPageWithFreeSpace`).
pub(crate) fn record(page: &mut Page, heap_block: BlockNumber, free_bytes: u16) -> bool {
    let initialized = page::init_if_new(page);
    let value =
        if free_bytes >= REQUEST_MAX { 255 } else { (free_bytes / CATEGORY_STEP).min(254) as u8 };
    let nodes = &mut page[NODES_AT..];
    let slot = INNER_NODES + (heap_block % SLOTS_PER_PAGE) as usize;
    if nodes[slot] == value && value <= nodes[0] {
        return initialized;
    }
    nodes[slot] = value;
    let mut node = slot;
    while node > 0 {
        node = (node - 1) / 2;
        let larger = larger_child(nodes, node);
        if nodes[node] == larger {
            break;
        }
        nodes[node] = larger;
    }
    if value > nodes[0] {
        rebuild(nodes); // torn before, or an inner node was wrong
    }
    true
}

/// Forgets the free space of all heap blocks from `heap_blocks` on (`fsm_truncate_avail`).
pub(crate) fn truncate(page: &mut Page, heap_blocks: BlockNumber) {
    page::init_if_new(page);
    let nodes = &mut page[NODES_AT..];
    let slots = &mut nodes[INNER_NODES + (heap_blocks % SLOTS_PER_PAGE) as usize..];
    if slots.iter().any(|slot| *slot != 0) {
        slots.fill(0);
        rebuild(nodes);
    }
}

fn rebuild(nodes: &mut [u8]) {
    for node in (0..INNER_NODES).rev() {
        nodes[node] = larger_child(nodes, node);
    }
}

/// The larger child's value; the last inner nodes have one child or none.
fn larger_child(nodes: &[u8], node: usize) -> u8 {
    let child = |at: usize| nodes.get(at).copied().unwrap_or_default();
    child(2 * node + 1).max(child(2 * node + 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(page: &Page) -> u8 {
        page[NODES_AT]
    }

    #[test]
    fn the_root_is_the_largest_slot() {
        let mut page = [0; BLOCK_SIZE];
        assert!(record(&mut page, 3, 320));
        assert!(record(&mut page, SLOTS_PER_PAGE - 1, 8159));
        assert_eq!(root(&page), 254);
        assert!(record(&mut page, SLOTS_PER_PAGE - 1, 0));
        assert_eq!(root(&page), 10);
        assert!(!record(&mut page, SLOTS_PER_PAGE + 3, 321), "the same category");
        assert!(record(&mut page, 4, 8160));
        assert_eq!(root(&page), 255);
        truncate(&mut page, 4);
        assert_eq!(root(&page), 10);
    }

    #[test]
    fn a_wrong_inner_node_is_noticed() {
        let mut page = [0; BLOCK_SIZE];
        record(&mut page, 0, 64);
        page[NODES_AT + INNER_NODES / 2] = 9; // the parent of slot 0: as large as what comes now
        record(&mut page, 0, 288);
        assert_eq!(root(&page), 9);
    }

    #[test]
    fn pages_lie_depth_first() {
        let block = |heap| free_space_page(PageId { block: heap, ..PageId::default() }).block;
        assert_eq!(SLOTS_PER_PAGE, 4069);
        assert_eq!((block(0), block(4068), block(4069)), (2, 2, 3));
        assert_eq!(block(4069 * 4069), 2 + 4069 + 1, "after the middle level's second page");
        assert!(block(u32::MAX) > block(u32::MAX - 4069));
    }

    #[test]
    fn a_map_is_cut_at_page_boundaries() {
        assert_eq!((blocks_after_truncation(1), boundary_block(1)), (3, Some(2)));
        assert_eq!((blocks_after_truncation(4069), boundary_block(4069)), (3, None));
        assert_eq!((blocks_after_truncation(0), boundary_block(0)), (2, None));
    }
}
