//! What may differ between a page that was replayed and the page of the server that wrote the WAL:
//! hints, unused space, and what redo leaves out on purpose.
//!
//! A server with `wal_consistency_checking` attaches to each record the pages as they are after
//! its change. Mask such an image and the replayed page, and compare: they must be equal.
//!
//! The rules are PostgreSQL's own and no stricter: a page of the visibility map says in its header
//! that it is empty, so its bits are all masked as unused space.
//!
//! Rules: `src/backend/access/common/bufmask.c`, `heap_mask` in
//! `src/backend/access/heap/heapam.c`, `btree_mask` in `src/backend/access/nbtree/nbtxlog.c`,
//! `seq_mask`, `generic_mask`.

use walfmt::bytes::{put, u16_at};
use walfmt::page::field::PD_CHECKSUM;
use walfmt::page::{
    HEAP_XMAX_COMMITTED, HEAP_XMAX_INVALID, HEAP_XMIN_FROZEN, HeapTupleHeader, ItemPointer,
    PD_ALL_VISIBLE, PD_HAS_FREE_LINES, PD_PAGE_FULL, PageError, bounds, max_align,
};
use walfmt::relation::{BLOCK_SIZE, PageId};
use walfmt::rmgr::RmgrId;
use walfmt::rmgr::btree::{BTP_HAS_GARBAGE, BTP_LEAF, BTP_SPLIT_END, OPAQUE_SIZE};
use walfmt::{Lsn, TransactionId};

use crate::Page;
use crate::page::{self, ItemId};

/// Visibility and lock bits of `t_infomask` (`HEAP_XACT_MASK`).
const HEAP_XACT_MASK: u16 = 0xFFF0;

/// The offset in the address of a tuple that is not yet there for good (`SpecTokenOffsetNumber`).
const SPECULATIVE_OFFSET: u16 = 0xFFFE;

/// Makes equal what may differ. `rmgr` is that of the record which carries the image; pages of
/// resource managers without rules stay as they are.
///
/// # Errors
/// [`PageError`] if the page is corrupt; it may then be masked in part.
pub fn mask(rmgr: RmgrId, page_id: PageId, page: &mut Page) -> Result<(), PageError> {
    match rmgr {
        RmgrId::HEAP | RmgrId::HEAP2 => mask_heap(page_id, page),
        RmgrId::BTREE => mask_btree(page),
        // Their hints are part of the record, or of the difference.
        RmgrId::SEQUENCE | RmgrId::GENERIC => mask_checksum_and_hole(page),
        _ => Ok(()),
    }
}

fn mask_heap(page_id: PageId, page: &mut Page) -> Result<(), PageError> {
    mask_header_and_hole(page)?;
    for offset in 1..=page::max_offset(page) {
        let id = page::item_id(page, offset)?;
        if !id.has_storage() {
            continue;
        }
        if id.is_normal() {
            let ctid = ItemPointer { block: page_id.block, offset };
            mask_tuple(page::item_mut(page, offset)?, ctid)?;
        }
        let end = usize::from(id.offset) + usize::from(id.length);
        let padding_end = usize::from(id.offset) + max_align(id.length.into());
        page[end.min(BLOCK_SIZE)..padding_end.min(BLOCK_SIZE)].fill(0);
    }
    Ok(())
}

fn mask_tuple(tuple: &mut [u8], itself: ItemPointer) -> Result<(), PageError> {
    let header = HeapTupleHeader::read(tuple)?;
    let frozen = header.infomask & HEAP_XMIN_FROZEN == HEAP_XMIN_FROZEN;
    let hints = if frozen { HEAP_XMAX_INVALID | HEAP_XMAX_COMMITTED } else { HEAP_XACT_MASK };
    put(tuple, 20, (header.infomask & !hints).to_le_bytes());
    put(tuple, 8, [0; 4]); // command ids are not replayed
    if header.ctid.offset == SPECULATIVE_OFFSET {
        put(tuple, 12, itself.to_bytes());
    }
    Ok(())
}

fn mask_btree(page: &mut Page) -> Result<(), PageError> {
    mask_header_and_hole(page)?;
    let flags_at = BLOCK_SIZE - OPAQUE_SIZE + 12;
    let flags = u16_at(page, flags_at);
    if flags & BTP_LEAF != 0 {
        for offset in 1..=page::max_offset(page) {
            let id = page::item_id(page, offset)?;
            if id.is_used() {
                page::set_item_id(page, offset, ItemId { flags: ItemId::UNUSED.flags, ..id })?;
            }
        }
    }
    put(page, flags_at, (flags & !(BTP_HAS_GARBAGE | BTP_SPLIT_END)).to_le_bytes());
    put(page, flags_at + 2, [0; 2]); // btpo_cycleid
    Ok(())
}

/// `mask_page_lsn_and_checksum`, `mask_page_hint_bits` and `mask_unused_space`.
fn mask_header_and_hole(page: &mut Page) -> Result<(), PageError> {
    mask_checksum_and_hole(page)?;
    page::set_prune_xid(page, TransactionId::INVALID);
    let hints = PD_PAGE_FULL | PD_HAS_FREE_LINES | PD_ALL_VISIBLE;
    page::set_flags(page, page::flags(page) & !hints);
    Ok(())
}

/// `mask_page_lsn_and_checksum` and `mask_unused_space`.
fn mask_checksum_and_hole(page: &mut Page) -> Result<(), PageError> {
    let (lower, upper, _) = bounds(page)?;
    page::set_lsn(page, Lsn::INVALID);
    put(page, PD_CHECKSUM, [0; 2]);
    page[lower..upper].fill(0);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heap_page(infomask: u16) -> Page {
        let mut page = [0; BLOCK_SIZE];
        page::init(&mut page, 0);
        let mut tuple = [0_u8; 25];
        put(&mut tuple, 20, infomask.to_le_bytes());
        tuple[22] = 24;
        page::put_item(&mut page, 1, &tuple).expect("an empty page");
        page
    }

    fn masked(mut page: Page) -> Page {
        mask(RmgrId::HEAP, PageId::default(), &mut page).expect("a sound page");
        page
    }

    #[test]
    fn hints_are_masked_and_the_rest_is_not() {
        let page = heap_page(0x0902);
        let mut other = heap_page(0x0102);
        page::set_lsn(&mut other, Lsn(9));
        page::set_flags(&mut other, PD_ALL_VISIBLE);
        other[100] = 7; // unused space
        other[8192 - 32 + 26] = 7; // padding after 25 bytes
        other[8192 - 32 + 8] = 7; // command id
        assert_eq!(masked(page), masked(other));

        let mut spoiled = page;
        spoiled[8192 - 32 + 24] ^= 1;
        assert_ne!(masked(page), masked(spoiled));
        assert_ne!(masked(page), masked(heap_page(0x0903)), "the null bitmap's bit");
        assert_ne!(masked(heap_page(0x0B02)), masked(heap_page(0x0B42)), "a lock on a frozen one");
    }

    #[test]
    fn hints_of_a_sequence_are_not_masked() {
        let page = heap_page(0x0902);
        let masked = |mut page: Page| {
            mask(RmgrId::SEQUENCE, PageId::default(), &mut page).expect("a sound page");
            page
        };
        let mut other = page;
        page::set_lsn(&mut other, Lsn(9));
        other[100] = 7; // unused space
        assert_eq!(masked(page), masked(other));
        page::set_prune_xid(&mut other, TransactionId(9));
        assert_ne!(masked(page), masked(other));
    }

    #[test]
    fn a_page_that_is_none_is_refused() {
        let mut page = [0xFF; BLOCK_SIZE];
        assert!(mask(RmgrId::BTREE, PageId::default(), &mut page).is_err());
    }
}
