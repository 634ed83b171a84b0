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
//! All of it is a hint. Replay writes to the bottom level, and to the two upper levels only when the
//! heap is cut: slots of what was cut become 0, so that no search of a server that takes over is
//! led there. PostgreSQL then also copies what the last pages left say of themselves into the
//! levels above (`FreeSpaceMapVacuumRange`); we do not, because it is a change that depends on more
//! than one page. Such a slot may promise more than there is; the first search that it misleads
//! corrects it (`fsm_search`), and so does the next vacuum.
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

/// The pages of the map that keep some of their slots, or none but exist, when the heap is cut to
/// `heap_blocks` blocks: the block, and the first slot that is forgotten. One of each level at most.
pub(crate) fn cut_pages(heap_blocks: BlockNumber) -> impl Iterator<Item = (BlockNumber, u32)> {
    let bottom = bottom_block(heap_blocks / SLOTS_PER_PAGE);
    let bottom_slot = heap_blocks % SLOTS_PER_PAGE;
    let first_gone = heap_blocks.div_ceil(SLOTS_PER_PAGE);
    let middle = bottom_block(first_gone / SLOTS_PER_PAGE * SLOTS_PER_PAGE) - 1;
    let middle_slot = first_gone % SLOTS_PER_PAGE;
    let root_slot = first_gone.div_ceil(SLOTS_PER_PAGE);
    let left = blocks_after_truncation(heap_blocks);
    [(0, root_slot), (middle, middle_slot), (bottom, bottom_slot)]
        .into_iter()
        .filter(move |(block, _)| *block < left)
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

/// Forgets what the map's page number `block` says of heap blocks from `heap_blocks` on
/// (`fsm_truncate_avail`).
pub(crate) fn truncate(page: &mut Page, block: BlockNumber, heap_blocks: BlockNumber) {
    let Some((_, first)) = cut_pages(heap_blocks).find(|(cut, _)| *cut == block) else { return };
    page::init_if_new(page);
    let nodes = &mut page[NODES_AT..];
    let slots = &mut nodes[INNER_NODES + first as usize..];
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
        truncate(&mut page, 2, 4);
        assert_eq!(root(&page), 10);
        truncate(&mut page, 3, 4);
        assert_eq!(root(&page), 10, "another page");
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
        let cut = |heap_blocks| {
            (blocks_after_truncation(heap_blocks), cut_pages(heap_blocks).collect::<Vec<_>>())
        };
        assert_eq!(cut(0), (2, vec![(0, 0), (1, 0)]));
        assert_eq!(cut(1), (3, vec![(0, 1), (1, 1), (2, 1)]));
        assert_eq!(cut(4069), (3, vec![(0, 1), (1, 1)]));
        // One heap block of the last bottom page of the first middle page is left.
        let heap = 4068 * 4069 + 1;
        assert_eq!(cut(heap), (2 + 4069, vec![(0, 1), (2 + 4068, 1)]));
        // All of the first middle page is left, and the second one with nothing.
        let heap = 4069 * 4069;
        assert_eq!(cut(heap), (2 + 4069 + 1, vec![(0, 1), (2 + 4069, 0)]));
        assert!(cut_pages(u32::MAX).all(|(_, slot)| slot < SLOTS_PER_PAGE));
    }

    #[test]
    fn no_upper_page_leads_behind_a_cut() {
        let mut middle = [0; BLOCK_SIZE];
        record(&mut middle, 0, 320); // an upper page has the same tree
        record(&mut middle, 7, 640);
        truncate(&mut middle, 1, 3 * SLOTS_PER_PAGE + 5);
        assert_eq!(root(&middle), 10);
    }
}
