//! What Heap2's records do: pruning, vacuum, freezing, inserts of many tuples, the bits of the
//! visibility map, and files for logical decoding of rewritten catalogs.
//!
//! Rules: `src/backend/access/heap/heapam.c`, from `heap_xlog_prune` on, of 15.

use walfmt::page::ItemId;
use walfmt::relation::ForkNumber;
use walfmt::rmgr::heap::{LOCK_ALL_FROZEN_CLEARED, Lock, insert_flags};
use walfmt::rmgr::heap2::{self, FreezePage, MultiInsert, Prune, RewriteMapping, Visible};
use walfmt::{BlockReference, Record, TransactionId};

use crate::fault::Fault;
use crate::heap::{self, Clears, Tuple};
use crate::visibilitymap::{self, ALL_FROZEN, VALID_BITS};
use crate::{Loose, Page, page};

/// Checks that the opcode and block references of a record of pages are possible. Adds the bits of
/// the visibility map that it clears.
pub(crate) fn check(record: &Record<'_>, clears: &mut Clears) -> Result<(), Fault> {
    match record.header.info & heap2::OPCODE_MASK {
        heap2::NEW_CID => Ok(()),
        heap2::VISIBLE => check_visible(record),
        opcode => {
            heap::check_heap_block(record, opcode == heap2::MULTI_INSERT)?;
            add_clears(record, clears)
        }
    }
}

/// Whether it is a REWRITE record, which has no page.
pub(crate) fn is_rewrite(record: &Record<'_>) -> bool {
    record.header.info & heap2::OPCODE_MASK == heap2::REWRITE
}

/// The file that a REWRITE record writes to.
pub(crate) fn rewrite_mapping<'a>(record: &Record<'a>) -> Result<RewriteMapping<'a>, Fault> {
    let mapping = RewriteMapping::read(record.main_data)?;
    let end = mapping.offset.checked_add(mapping.mappings.len() as u64);
    if end.is_none_or(|end| i64::try_from(end).is_err()) {
        return Err(Fault::corrupt(format!("a mapping file written at {}", mapping.offset)));
    }
    Ok(mapping)
}

/// VISIBLE has two block references, which must fit together: 0 the map's page, 1 the heap's.
fn check_visible(record: &Record<'_>) -> Result<(), Fault> {
    let (Some(map), Some(heap)) = (record.block(0), record.block(1)) else {
        return Err(Fault::corrupt("block reference 0 or 1 is missing"));
    };
    let expected = visibilitymap::visibility_page(heap.page);
    if map.page != expected || heap.page.fork != ForkNumber::Main {
        return Err(Fault::corrupt(format!(
            "the map's page is {}, the heap's {}, whose bits are on {expected}",
            map.page, heap.page
        )));
    }
    let flags = Visible::read(record.main_data)?.flags;
    if flags & !VALID_BITS != 0 {
        return Err(Fault::corrupt(format!("visibility map bits {flags:#04x}")));
    }
    Ok(())
}

/// Adds the bits of the visibility map that the record clears.
pub(crate) fn add_clears(record: &Record<'_>, clears: &mut Clears) -> Result<(), Fault> {
    let main = record.main_data;
    let bits = match record.header.info & heap2::OPCODE_MASK {
        heap2::MULTI_INSERT => {
            let flags = MultiInsert::read(main, record.header.info)?.flags;
            if flags & insert_flags::ALL_VISIBLE_CLEARED != 0 { VALID_BITS } else { 0 }
        }
        heap2::LOCK_UPDATED => {
            let flags = Lock::read(main)?.flags;
            if flags & LOCK_ALL_FROZEN_CLEARED != 0 { ALL_FROZEN } else { 0 }
        }
        _ => 0,
    };
    if bits != 0 {
        clears.push((heap::block_0(record)?.page.block, bits));
    }
    Ok(())
}

/// Changes a heap page that needs it. VISIBLE is not here: its two pages have LSN rules of their
/// own.
pub(crate) fn redo(
    record: &Record<'_>,
    block: &BlockReference<'_>,
    page: &mut Page,
    loose: &mut Loose,
) -> Result<(), Fault> {
    let main = record.main_data;
    match record.header.info & heap2::OPCODE_MASK {
        heap2::PRUNE => prune(&Prune::read(main, block.data)?, page, loose),
        heap2::VACUUM => {
            for offset in heap2::read_vacuum(main, block.data)?.iter() {
                page::set_item_id(page, offset, ItemId::UNUSED)?;
            }
            Ok(page::truncate_line_pointers(page)?)
        }
        heap2::FREEZE_PAGE => freeze(&FreezePage::read(main, block.data)?, page),
        heap2::MULTI_INSERT => {
            let insert = MultiInsert::read(main, record.header.info)?;
            multi_insert(record, &insert, block, page, loose)
        }
        heap2::LOCK_UPDATED => heap::lock_updated(Lock::read(main)?, page),
        opcode => Err(Fault::unknown_opcode(opcode)),
    }
}

/// `heap_page_prune_execute`.
fn prune(prune: &Prune<'_>, page: &mut Page, loose: &mut Loose) -> Result<(), Fault> {
    let mut set = |item, id| {
        loose.free(page, page::item_id(page, item)?);
        page::set_item_id(page, item, id)
    };
    for (from, to) in prune.redirected() {
        set(from, ItemId::redirect(to))?;
    }
    for offset in prune.dead.iter() {
        set(offset, ItemId::DEAD)?;
    }
    for offset in prune.unused.iter() {
        set(offset, ItemId::UNUSED)?;
    }
    Ok(loose.begin(page)?)
}

/// `heap_execute_freeze_tuple`, for each tuple.
fn freeze(freeze: &FreezePage<'_>, page: &mut Page) -> Result<(), Fault> {
    for plan in freeze.plans() {
        let mut tuple = Tuple::normal(page, plan.offnum)?;
        tuple.set_xmax(plan.xmax);
        if plan.flags & heap2::FREEZE_XVAC != 0 {
            tuple.set_field3(TransactionId::FROZEN.0);
        }
        if plan.flags & heap2::INVALID_XVAC != 0 {
            tuple.set_field3(TransactionId::INVALID.0);
        }
        tuple.set_infomask(plan.infomask);
        tuple.set_infomask2(plan.infomask2);
    }
    Ok(())
}

fn multi_insert(
    record: &Record<'_>,
    insert: &MultiInsert<'_>,
    block: &BlockReference<'_>,
    page: &mut Page,
    loose: &mut Loose,
) -> Result<(), Fault> {
    if block.will_init {
        page::init(page, 0);
    }
    for tuple in insert.tuples(block.data) {
        let (offset, image) = tuple?;
        heap::put_inserted(record, block.page.block, offset, &image, page, loose)?;
    }
    if insert.flags & insert_flags::ALL_VISIBLE_CLEARED != 0 {
        heap::clear_all_visible(page);
    }
    if insert.flags & insert_flags::ALL_FROZEN_SET != 0 {
        heap::set_all_visible(page);
    }
    Ok(())
}

/// Sets the bits of VISIBLE on the map's page, which needs it; says whether the page changed.
pub(crate) fn redo_visible_map(record: &Record<'_>, page: &mut Page) -> Result<bool, Fault> {
    let visible = Visible::read(record.main_data)?;
    let heap = record.block(1).ok_or_else(|| Fault::corrupt("block reference 1 is missing"))?;
    Ok(visibilitymap::set(page, heap.page.block, visible.flags, record.end))
}
