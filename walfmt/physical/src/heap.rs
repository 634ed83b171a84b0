//! What Heap's records do to heap pages, and to the visibility map.
//!
//! A change to an all-visible page implies that its bits in the visibility map are cleared. In 15
//! and before, and in WAL of the first minors of 17 and 18, the map's page is no block reference:
//! the bits are cleared whatever the LSN of either page, and before anything else. Later minors
//! register the page; then it is changed like any other. Which form a record has, the record says.
//!
//! Rules: `src/backend/access/heap/heapam.c`, from `fix_infomask_from_infobits` on.

use std::ops::Range;

use smallvec::SmallVec;
use walfmt::bytes::{put, u16_at};
use walfmt::page::{
    HEAP_COMBOCID, HEAP_HOT_UPDATED, HEAP_KEYS_UPDATED, HEAP_LOCK_MASK, HEAP_MOVED, HEAP_XMAX_BITS,
    HEAP_XMAX_EXCL_LOCK, HEAP_XMAX_IS_MULTI, HEAP_XMAX_KEYSHR_LOCK, HEAP_XMAX_LOCK_ONLY,
    HeapTupleHeader, ItemPointer, PD_ALL_VISIBLE,
};
use walfmt::relation::{BlockNumber, ForkNumber, INVALID_BLOCK};
use walfmt::rmgr::RmgrId;
use walfmt::rmgr::heap::{self, Delete, Insert, Lock, TupleImage, Update, UpdatedTuple};
use walfmt::rmgr::heap::{delete_flags, infobits, insert_flags, update_flags};
use walfmt::{BlockReference, Record, TransactionId};

use crate::fault::Fault;
use crate::visibilitymap::{self, ALL_FROZEN, VALID_BITS};
use crate::{Loose, Page, heap2, page};

/// The offset in the address of a tuple that moved to another partition
/// (`MovedPartitionsOffsetNumber`); its block is [`INVALID_BLOCK`].
const MOVED_PARTITIONS_OFFSET: u16 = 0xFFFD;

/// Bits of the visibility map that a record clears: of which heap block, and which.
pub(crate) type Clears = SmallVec<[(BlockNumber, u8); 2]>;

/// Checks that a record's opcode and block references are possible. Adds the bits of the visibility
/// map that it clears.
pub(crate) fn check(record: &Record<'_>, clears: &mut Clears) -> Result<(), Fault> {
    let opcode = record.header.info & heap::OPCODE_MASK;
    if opcode == heap::TRUNCATE {
        return Ok(());
    }
    let may_init = matches!(opcode, heap::INSERT | heap::UPDATE);
    check_heap_block(record, may_init)?;
    add_clears(record, clears)
}

/// Checks block 0, the heap page of most records, and that all block references are of the forks
/// that heap records can have.
pub(crate) fn check_heap_block(record: &Record<'_>, may_init: bool) -> Result<(), Fault> {
    let block = block_0(record)?;
    if block.page.fork != ForkNumber::Main {
        return Err(Fault::corrupt(format!("{} is not a heap page", block.page)));
    }
    let init = may_init && record.header.info & heap::INIT_PAGE != 0;
    if block.will_init != init {
        return Err(Fault::corrupt("opcode and block reference differ on whether the page is new"));
    }
    let others = record.blocks.iter().filter(|block| block.id != 0);
    for other in others {
        let possible = matches!(other.page.fork, ForkNumber::Main | ForkNumber::VisibilityMap);
        if other.will_init || !possible || other.page.locator != block.page.locator {
            return Err(Fault::corrupt(format!("block {} is {}", other.id, other.page)));
        }
    }
    Ok(())
}

/// Adds the bits of the visibility map that the record clears.
fn add_clears(record: &Record<'_>, clears: &mut Clears) -> Result<(), Fault> {
    let main = record.main_data;
    let (flags, flag, bits) = match record.header.info & heap::OPCODE_MASK {
        heap::INSERT => (Insert::read(main)?.flags, insert_flags::ALL_VISIBLE_CLEARED, VALID_BITS),
        heap::DELETE => (Delete::read(main)?.flags, delete_flags::ALL_VISIBLE_CLEARED, VALID_BITS),
        heap::LOCK => (Lock::read(main)?.flags, heap::LOCK_ALL_FROZEN_CLEARED, ALL_FROZEN),
        heap::UPDATE | heap::HOT_UPDATE => {
            let flags = Update::read(main)?.flags;
            let new_block = block_0(record)?.page.block;
            if flags & update_flags::OLD_ALL_VISIBLE_CLEARED != 0 {
                clears.push((old_block(record)?, VALID_BITS));
            }
            if flags & update_flags::NEW_ALL_VISIBLE_CLEARED != 0 {
                clears.push((new_block, VALID_BITS));
            }
            return Ok(());
        }
        _ => return Ok(()),
    };
    if flags & flag != 0 {
        clears.push((block_0(record)?.page.block, bits));
    }
    Ok(())
}

/// Changes a heap page that needs it. For INSERT and UPDATE of a new page it is all zero.
pub(crate) fn redo(
    record: &Record<'_>,
    block: &BlockReference<'_>,
    page: &mut Page,
    loose: &mut Loose,
) -> Result<(), Fault> {
    let info = record.header.info;
    if info & heap::INIT_PAGE != 0 && block.will_init {
        page::init(page, 0);
    }
    let main = record.main_data;
    match info & heap::OPCODE_MASK {
        heap::INSERT => insert(record, Insert::read(main)?, block, page, loose),
        heap::DELETE => delete(record, &Delete::read(main)?, block, page),
        heap::UPDATE => update(record, &Update::read(main)?, false, block, page, loose),
        heap::HOT_UPDATE => update(record, &Update::read(main)?, true, block, page, loose),
        heap::CONFIRM => {
            let offset = heap::read_offnum(main)?;
            let mut tuple = Tuple::normal(page, offset)?;
            tuple.set_ctid(ItemPointer { block: block.page.block, offset });
            Ok(())
        }
        heap::LOCK => lock(Lock::read(main)?, block, page),
        heap::INPLACE => inplace(heap::read_offnum(main)?, block, page),
        opcode => Err(Fault::unknown_opcode(opcode)),
    }
}

fn insert(
    record: &Record<'_>,
    insert: Insert,
    block: &BlockReference<'_>,
    page: &mut Page,
    loose: &mut Loose,
) -> Result<(), Fault> {
    let image = TupleImage::read(&mut walfmt::cursor::Cursor::new(block.data))?;
    put_inserted(record, block.page.block, insert.offnum, &image, page, loose)?;
    if insert.flags & insert_flags::ALL_VISIBLE_CLEARED != 0 {
        clear_all_visible(page);
    }
    Ok(())
}

/// Puts a new tuple of the record's transaction on a page.
pub(crate) fn put_inserted(
    record: &Record<'_>,
    block: BlockNumber,
    offset: u16,
    image: &TupleImage<'_>,
    page: &mut Page,
    loose: &mut Loose,
) -> Result<(), Fault> {
    let length = HeapTupleHeader::SIZE + image.bytes.len();
    let place = loose.reserve_item(page, offset, length)?;
    let ctid = ItemPointer { block, offset };
    let header = tuple_header(record.header.xid, TransactionId::INVALID, ctid, image);
    put_tuple(page, place.start, &header, image.bytes);
    Ok(())
}

/// Writes a tuple that lies in one piece in the record.
fn put_tuple(page: &mut Page, at: usize, header: &[u8; HeapTupleHeader::SIZE], rest: &[u8]) {
    put(page, at, *header);
    page[at + HeapTupleHeader::SIZE..][..rest.len()].copy_from_slice(rest);
}

fn delete(
    record: &Record<'_>,
    delete: &Delete<'_>,
    block: &BlockReference<'_>,
    page: &mut Page,
) -> Result<(), Fault> {
    let mut tuple = Tuple::normal(page, delete.offnum)?;
    tuple.set_xmax_bits(delete.infobits);
    tuple.set_infomask2(tuple.infomask2() & !HEAP_HOT_UPDATED);
    if delete.flags & delete_flags::IS_SUPER == 0 {
        tuple.set_xmax(delete.xmax);
    } else {
        tuple.set_xmin(TransactionId::INVALID);
    }
    tuple.forget_cmax();
    tuple.set_ctid(if delete.flags & delete_flags::IS_PARTITION_MOVE == 0 {
        ItemPointer { block: block.page.block, offset: delete.offnum }
    } else {
        ItemPointer { block: INVALID_BLOCK, offset: MOVED_PARTITIONS_OFFSET }
    });
    set_prunable(page, record.header.xid);
    if delete.flags & delete_flags::ALL_VISIBLE_CLEARED != 0 {
        clear_all_visible(page);
    }
    Ok(())
}

/// Both versions on one page, or one of them: block 0 is the new one's page, and the old one's if
/// there is no block 1.
fn update(
    record: &Record<'_>,
    update: &Update<'_>,
    hot: bool,
    block: &BlockReference<'_>,
    page: &mut Page,
    loose: &mut Loose,
) -> Result<(), Fault> {
    let same_page = record.block(1).is_none();
    let new_tid = ItemPointer { block: block_0(record)?.page.block, offset: update.new_offnum };
    if block.id == 1 || same_page {
        let mut tuple = Tuple::normal(page, update.old_offnum)?;
        tuple.set_xmax_bits(update.old_infobits);
        let others = tuple.infomask2() & !HEAP_HOT_UPDATED;
        tuple.set_infomask2(if hot { others | HEAP_HOT_UPDATED } else { others });
        tuple.set_xmax(update.old_xmax);
        tuple.forget_cmax();
        tuple.set_ctid(new_tid);
        set_prunable(page, record.header.xid);
        if update.flags & update_flags::OLD_ALL_VISIBLE_CLEARED != 0 {
            clear_all_visible(page);
        }
    }
    if block.id == 0 {
        let updated = UpdatedTuple::read(block.data, update.flags)?;
        let old = same_page.then_some(update.old_offnum);
        let header = tuple_header(record.header.xid, update.new_xmax, new_tid, &updated.tuple);
        put_updated(&updated, &header, old, update.new_offnum, page, loose)?;
        if update.flags & update_flags::NEW_ALL_VISIBLE_CLEARED != 0 {
            clear_all_visible(page);
        }
    }
    Ok(())
}

/// Puts the new version, which is taken from the record and from the old version on the same page.
fn put_updated(
    updated: &UpdatedTuple<'_>,
    header: &[u8; HeapTupleHeader::SIZE],
    old_offnum: Option<u16>,
    new_offnum: u16,
    page: &mut Page,
    loose: &mut Loose,
) -> Result<(), Fault> {
    let UpdatedTuple { prefix_length, suffix_length, tuple: image } = updated;
    let (prefix, suffix) = (usize::from(*prefix_length), usize::from(*suffix_length));
    let length = HeapTupleHeader::SIZE + image.bytes.len() + prefix + suffix;
    if (prefix, suffix) == (0, 0) {
        let place = loose.reserve_item(page, new_offnum, length)?;
        put_tuple(page, place.start, header, image.bytes);
        return Ok(());
    }
    let Some(old_offnum) = old_offnum else {
        return Err(Fault::corrupt("the new tuple needs the old one, which is on another page"));
    };
    check_taken(prefix, suffix, &attributes_of(page, old_offnum)?)?;
    let bitmap = usize::from(image.hoff).checked_sub(HeapTupleHeader::SIZE);
    let parts = bitmap.and_then(|bitmap| image.bytes.split_at_checked(bitmap));
    let Some((bitmap, middle)) = parts else {
        return Err(Fault::corrupt(format!(
            "t_hoff is {}, with {} bytes of tuple",
            image.hoff,
            image.bytes.len()
        )));
    };
    let place = loose.reserve_item(page, new_offnum, length)?;
    // It may have been moved; where items overlap it may even have become another.
    let attributes = attributes_of(page, old_offnum)?;
    check_taken(prefix, suffix, &attributes)?;
    put_tuple(page, place.start, header, bitmap);
    let at = place.start + HeapTupleHeader::SIZE + bitmap.len();
    page.copy_within(attributes.start..attributes.start + prefix, at);
    page[at + prefix..][..middle.len()].copy_from_slice(middle);
    page.copy_within(attributes.end - suffix..attributes.end, at + prefix + middle.len());
    Ok(())
}

/// The old tuple has what the new one takes from it. PostgreSQL counts the suffix from the tuple's end
/// alone, so it may reach over the prefix.
fn check_taken(prefix: usize, suffix: usize, attributes: &Range<usize>) -> Result<(), Fault> {
    let available = attributes.len();
    if prefix.max(suffix) <= available {
        return Ok(());
    }
    Err(Fault::corrupt(format!(
        "the new tuple takes {prefix} and {suffix} bytes from the old one, which has {available}"
    )))
}

/// Where a tuple's attributes are on its page.
fn attributes_of(page: &Page, offnum: u16) -> Result<Range<usize>, Fault> {
    let tuple = page::item_range(page, offnum)?;
    let hoff = usize::from(HeapTupleHeader::read(&page[tuple.clone()])?.hoff);
    Ok(tuple.start + hoff..tuple.end)
}

fn lock(lock: Lock, block: &BlockReference<'_>, page: &mut Page) -> Result<(), Fault> {
    let mut tuple = Tuple::normal(page, lock.offnum)?;
    tuple.set_xmax_bits(lock.infobits);
    if is_locked_only(tuple.infomask()) {
        tuple.set_infomask2(tuple.infomask2() & !HEAP_HOT_UPDATED);
        tuple.set_ctid(ItemPointer { block: block.page.block, offset: lock.offnum });
    }
    tuple.set_xmax(lock.xmax);
    tuple.forget_cmax();
    Ok(())
}

/// HEAP2's LOCK_UPDATED: the tuple has a newer version, and keeps its way there.
pub(crate) fn lock_updated(lock: Lock, page: &mut Page) -> Result<(), Fault> {
    let mut tuple = Tuple::normal(page, lock.offnum)?;
    tuple.set_xmax_bits(lock.infobits);
    tuple.set_xmax(lock.xmax);
    Ok(())
}

fn inplace(offset: u16, block: &BlockReference<'_>, page: &mut Page) -> Result<(), Fault> {
    let tuple = Tuple::normal(page, offset)?;
    let hoff = usize::from(HeapTupleHeader::read(tuple.0)?.hoff);
    let attributes = &mut tuple.0[hoff..];
    if attributes.len() != block.data.len() {
        return Err(Fault::corrupt(format!(
            "{} bytes to overwrite the {} of item {offset}",
            block.data.len(),
            attributes.len()
        )));
    }
    attributes.copy_from_slice(block.data);
    Ok(())
}

/// The bits of the visibility map that a record of any resource manager clears.
pub(crate) fn clears_of(record: &Record<'_>) -> Result<Clears, Fault> {
    let mut clears = Clears::new();
    match record.header.rmgr {
        RmgrId::HEAP => add_clears(record, &mut clears)?,
        RmgrId::HEAP2 => heap2::add_clears(record, &mut clears)?,
        _ => {}
    }
    Ok(clears)
}

/// Whether a block reference is a page of the visibility map on which the record clears bits.
pub(crate) fn is_registered_map(record: &Record<'_>, block: &BlockReference<'_>) -> bool {
    let of_heap = matches!(record.header.rmgr, RmgrId::HEAP | RmgrId::HEAP2);
    of_heap && block.id != 0 && block.page.fork == ForkNumber::VisibilityMap
}

/// Clears bits on a page of the visibility map that the record refers to as a block.
pub(crate) fn clear_registered(
    clears: &Clears,
    block: &BlockReference<'_>,
    lsn: walfmt::Lsn,
    page: &mut Page,
) -> bool {
    let mut changed = false;
    for &(heap_block, bits) in clears {
        if heap_block / visibilitymap::HEAP_BLOCKS_PER_PAGE == block.page.block {
            changed |= visibilitymap::clear(page, heap_block, bits);
        }
    }
    if changed {
        page::set_lsn(page, lsn);
    }
    changed
}

/// Block 0, which every Heap and Heap2 record with block references has.
pub(crate) fn block_0<'r, 'a>(record: &'r Record<'a>) -> Result<&'r BlockReference<'a>, Fault> {
    record.block(0).ok_or_else(|| Fault::corrupt("block reference 0 is missing"))
}

/// The block with the old version of an UPDATE.
fn old_block(record: &Record<'_>) -> Result<BlockNumber, Fault> {
    match record.block(1) {
        Some(old) => Ok(old.page.block),
        None => Ok(block_0(record)?.page.block),
    }
}

pub(crate) fn clear_all_visible(page: &mut Page) {
    page::set_flags(page, page::flags(page) & !PD_ALL_VISIBLE);
}

pub(crate) fn set_all_visible(page: &mut Page) {
    page::set_flags(page, page::flags(page) | PD_ALL_VISIBLE);
}

/// Notes the oldest transaction that left something to prune (`PageSetPrunable`).
fn set_prunable(page: &mut Page, xid: TransactionId) {
    let noted = page::prune_xid(page);
    if !noted.is_valid() || xid.precedes(noted) {
        page::set_prune_xid(page, xid);
    }
}

/// `HEAP_XMAX_IS_LOCKED_ONLY`.
const fn is_locked_only(infomask: u16) -> bool {
    infomask & HEAP_XMAX_LOCK_ONLY != 0
        || infomask & (HEAP_XMAX_IS_MULTI | HEAP_LOCK_MASK) == HEAP_XMAX_EXCL_LOCK
}

/// The first 23 bytes of a new tuple. Command ids are not replayed: nobody is left to ask.
fn tuple_header(
    xmin: TransactionId,
    xmax: TransactionId,
    ctid: ItemPointer,
    image: &TupleImage<'_>,
) -> [u8; HeapTupleHeader::SIZE] {
    let mut tuple = [0; HeapTupleHeader::SIZE];
    put(&mut tuple, 0, xmin.0.to_le_bytes());
    put(&mut tuple, 4, xmax.0.to_le_bytes());
    put(&mut tuple, 12, ctid.to_bytes());
    put(&mut tuple, 18, image.infomask2.to_le_bytes());
    put(&mut tuple, 20, (image.infomask & !HEAP_COMBOCID).to_le_bytes());
    tuple[22] = image.hoff;
    tuple
}

/// A tuple on a page, long enough for its fixed header.
pub(crate) struct Tuple<'p>(&'p mut [u8]);

impl<'p> Tuple<'p> {
    /// The tuple of a line pointer that must be in use and neither dead nor redirected.
    pub(crate) fn normal(page: &'p mut Page, offset: u16) -> Result<Self, Fault> {
        let id = page::item_id(page, offset)?;
        if !id.is_normal() {
            let flags = id.flags;
            return Err(Fault::corrupt(format!("item {offset} has flags {flags}, expected 1")));
        }
        let bytes = page::item_mut(page, offset)?;
        if bytes.len() < HeapTupleHeader::SIZE {
            let length = bytes.len();
            return Err(Fault::corrupt(format!("the tuple of item {offset} has {length} bytes")));
        }
        Ok(Self(bytes))
    }

    pub(crate) fn set_xmin(&mut self, xid: TransactionId) {
        put(self.0, 0, xid.0.to_le_bytes());
    }

    pub(crate) fn set_xmax(&mut self, xid: TransactionId) {
        put(self.0, 4, xid.0.to_le_bytes());
    }

    pub(crate) fn set_field3(&mut self, value: u32) {
        put(self.0, 8, value.to_le_bytes());
    }

    pub(crate) fn set_ctid(&mut self, ctid: ItemPointer) {
        put(self.0, 12, ctid.to_bytes());
    }

    pub(crate) fn infomask2(&self) -> u16 {
        u16_at(self.0, 18)
    }

    pub(crate) fn set_infomask2(&mut self, infomask2: u16) {
        put(self.0, 18, infomask2.to_le_bytes());
    }

    pub(crate) fn infomask(&self) -> u16 {
        u16_at(self.0, 20)
    }

    pub(crate) fn set_infomask(&mut self, infomask: u16) {
        put(self.0, 20, infomask.to_le_bytes());
    }

    /// Forgets all that is said of xmax and says what the record says
    /// (`fix_infomask_from_infobits` after the clearing that every caller does).
    fn set_xmax_bits(&mut self, bits: u8) {
        let mut infomask = self.infomask() & !(HEAP_XMAX_BITS | HEAP_MOVED);
        for (bit, mask) in [
            (infobits::XMAX_IS_MULTI, HEAP_XMAX_IS_MULTI),
            (infobits::XMAX_LOCK_ONLY, HEAP_XMAX_LOCK_ONLY),
            (infobits::XMAX_EXCL_LOCK, HEAP_XMAX_EXCL_LOCK),
            (infobits::XMAX_KEYSHR_LOCK, HEAP_XMAX_KEYSHR_LOCK),
        ] {
            if bits & bit != 0 {
                infomask |= mask;
            }
        }
        self.set_infomask(infomask);
        let others = self.infomask2() & !HEAP_KEYS_UPDATED;
        let keys_updated = bits & infobits::KEYS_UPDATED != 0;
        self.set_infomask2(if keys_updated { others | HEAP_KEYS_UPDATED } else { others });
    }

    /// Command id 0, and not a combined one (`HeapTupleHeaderSetCmax`).
    fn forget_cmax(&mut self) {
        self.set_field3(0);
        self.set_infomask(self.infomask() & !HEAP_COMBOCID);
    }
}

#[cfg(test)]
mod tests {
    use walfmt::page::ItemId;

    use super::*;

    /// Making room moves bytes that, on a corrupt page, are the old tuple's too.
    #[test]
    fn an_old_tuple_that_is_overwritten_meanwhile_is_corrupt() {
        for hole in [0, 64] {
            let mut page = [0; walfmt::BLOCK_SIZE];
            page::init(&mut page, 0);
            let mut old = [0_u8; 32];
            old[22] = 24;
            page::put_item(&mut page, 1, &old).expect("fits");
            page::put_item(&mut page, 2, &[0; 32]).expect("fits");
            page::set_item_id(&mut page, 2, ItemId::normal(8160, 32)).expect("there");
            let upper = usize::from(walfmt::page::upper(&page)) + 32 - hole;
            page::set_upper(&mut page, upper);
            page::put_item(&mut page, 3, &vec![1; (upper - 88) / 8 * 8]).expect("fits");
            page::put_item(&mut page, 4, &[32; 32]).expect("fits");
            let mut loose = Loose::default();
            loose.free(&page, page::item_id(&page, 2).expect("there"));
            page::set_item_id(&mut page, 2, ItemId::UNUSED).expect("there");
            loose.begin(&mut page).expect("valid page");
            let image = TupleImage { infomask2: 0, infomask: 0, hoff: 24, bytes: &[0; 9] };
            let updated = UpdatedTuple { prefix_length: 8, suffix_length: 0, tuple: image };
            let header = [0; HeapTupleHeader::SIZE];
            let put = put_updated(&updated, &header, Some(1), 2, &mut page, &mut loose);
            assert!(put.is_err(), "{hole}");
        }
    }
}
