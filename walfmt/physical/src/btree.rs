//! What Btree records do to pages. As in PostgreSQL 15.
//!
//! Each of a record's pages is changed on its own; what its change needs to know of the others are
//! their block numbers, which the record has.
//!
//! Two facts differ on purpose between a replayed page and the page of the server that wrote the
//! record, in PostgreSQL's redo as here: the right page of a split has neither `BTP_SPLIT_END` nor
//! a cycle id, and VACUUM leaves the cycle id.
//!
//! Rules: `src/backend/access/nbtree/nbtxlog.c`; posting lists, `nbtdedup.c`.

use smallvec::SmallVec;
use walfmt::bytes::{put, u16_at, u32_at};
use walfmt::cursor::{Cursor, CursorError};
use walfmt::page::{INDEX_SIZE_MASK, ITEM_ID_SIZE};
use walfmt::page::{IndexTuple, ItemPointer, PAGE_HEADER_SIZE, max_align};
use walfmt::relation::{BLOCK_SIZE, BlockNumber};
use walfmt::rmgr::btree::*;
use walfmt::{BlockReference, Record};

use crate::Page;
use crate::fault::Fault;
use crate::page::{self, ItemId, PageError};

/// Why a Btree record could not be replayed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BtreeFault {
    /// The page is not what it can be, or has no room.
    #[error(transparent)]
    Page(#[from] PageError),
    /// A part of the record has the wrong length.
    #[error(transparent)]
    Payload(#[from] CursorError),
    /// Record and page, or two parts of the record, contradict each other.
    #[error("{0}")]
    Contents(String),
}

type Redo = Result<(), BtreeFault>;

/// Does to one page what the record says of it. Call it when the page is older than the record, or,
/// zeroed, when the record rebuilds it. Does not set the page's LSN.
///
/// # Errors
/// [`BtreeFault`]; the page may then be changed in part.
pub(crate) fn redo(record: &Record<'_>, block: &BlockReference<'_>, page: &mut Page) -> Redo {
    match (record.header.opcode(), block.id) {
        (XLOG_BTREE_INSERT_LEAF | XLOG_BTREE_INSERT_UPPER | XLOG_BTREE_INSERT_META, 0) => {
            let insert = Insert::read(record.main_data)?;
            Ok(page::add_item(page, insert.item, block.data)?)
        }
        (XLOG_BTREE_INSERT_UPPER | XLOG_BTREE_INSERT_META | XLOG_BTREE_NEWROOT, 1) => {
            finish_split(page)
        }
        (XLOG_BTREE_INSERT_META | XLOG_BTREE_NEWROOT, 2)
        | (XLOG_BTREE_UNLINK_PAGE_META, 4)
        | (XLOG_BTREE_META_CLEANUP, 0) => restore_meta(block, page),
        (XLOG_BTREE_INSERT_POST, 0) => insert_into_posting(record, block, page),
        (XLOG_BTREE_SPLIT_L, 0) => split_left(record, block, page, true),
        (XLOG_BTREE_SPLIT_R, 0) => split_left(record, block, page, false),
        (XLOG_BTREE_SPLIT_L | XLOG_BTREE_SPLIT_R, 1) => split_right(record, block, page),
        (XLOG_BTREE_SPLIT_L | XLOG_BTREE_SPLIT_R, 2) => {
            let right = block_number(record, 1)?;
            Opaque::change(page, |opaque| opaque.prev = right)
        }
        (XLOG_BTREE_SPLIT_L | XLOG_BTREE_SPLIT_R, 3) => finish_split(page),
        (XLOG_BTREE_DEDUP, 0) => dedup(record, block, page),
        (XLOG_BTREE_VACUUM, 0) => delete(Deletion::read_vacuum(record.main_data)?, block, page),
        (XLOG_BTREE_DELETE, 0) => delete(Deletion::read_delete(record.main_data)?, block, page),
        (XLOG_BTREE_MARK_PAGE_HALFDEAD, 0) => {
            let mark = MarkPageHalfDead::read(record.main_data)?;
            half_dead_leaf(block, page, mark.left, mark.right, mark.top_parent)
        }
        (XLOG_BTREE_MARK_PAGE_HALFDEAD, 1) => remove_downlink(record, page),
        (XLOG_BTREE_UNLINK_PAGE | XLOG_BTREE_UNLINK_PAGE_META, role @ 0..=3) => {
            unlink(UnlinkPage::read(record.main_data)?, role, block, page)
        }
        (XLOG_BTREE_NEWROOT, 0) => new_root(record, block, page),
        (opcode, id) => {
            let name = opcode_name(opcode).unwrap_or("unknown opcode");
            Err(BtreeFault::Contents(format!("{name} ({opcode:#04x}) has no block {id}")))
        }
    }
}

/// That the record is one [`redo`] knows, and that its main data says what such a record's does.
/// What belongs to single pages is checked with the page.
pub(crate) fn check(record: &Record<'_>) -> Result<(), Fault> {
    let main = record.main_data;
    match record.header.opcode() {
        XLOG_BTREE_INSERT_LEAF
        | XLOG_BTREE_INSERT_UPPER
        | XLOG_BTREE_INSERT_META
        | XLOG_BTREE_INSERT_POST => Insert::read(main).map(drop)?,
        XLOG_BTREE_SPLIT_L | XLOG_BTREE_SPLIT_R => Split::read(main).map(drop)?,
        XLOG_BTREE_VACUUM => Deletion::read_vacuum(main).map(drop)?,
        XLOG_BTREE_DELETE => Deletion::read_delete(main).map(drop)?,
        XLOG_BTREE_MARK_PAGE_HALFDEAD => MarkPageHalfDead::read(main).map(drop)?,
        XLOG_BTREE_UNLINK_PAGE | XLOG_BTREE_UNLINK_PAGE_META => {
            UnlinkPage::read(main).map(drop)?;
        }
        XLOG_BTREE_NEWROOT => NewRoot::read(main).map(drop)?,
        XLOG_BTREE_REUSE_PAGE => ReusePage::read(main).map(drop)?,
        // Its number of intervals is checked against those of the page's data.
        XLOG_BTREE_DEDUP | XLOG_BTREE_META_CLEANUP => {}
        unknown => return Err(Fault::unknown_opcode(unknown)),
    }
    Ok(())
}

/// A btree page's special space (`BTPageOpaqueData`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Opaque {
    prev: BlockNumber,
    next: BlockNumber,
    level: u32,
    flags: u16,
    cycle_id: u16,
}

impl Opaque {
    const PLACE: usize = BLOCK_SIZE - OPAQUE_SIZE;

    fn of(page: &Page) -> Result<Self, BtreeFault> {
        let special = usize::from(walfmt::page::special(page));
        if special != Self::PLACE {
            return Err(BtreeFault::Contents(format!(
                "not a btree page: special space begins at {special}, expected {}",
                Self::PLACE
            )));
        }
        Ok(Self {
            prev: u32_at(page, special),
            next: u32_at(page, special + 4),
            level: u32_at(page, special + 8),
            flags: u16_at(page, special + 12),
            cycle_id: u16_at(page, special + 14),
        })
    }

    /// Writes it to a page whose special space is known to be a btree page's.
    fn store(self, page: &mut Page) {
        put(page, Self::PLACE, self.prev.to_le_bytes());
        put(page, Self::PLACE + 4, self.next.to_le_bytes());
        put(page, Self::PLACE + 8, self.level.to_le_bytes());
        put(page, Self::PLACE + 12, self.flags.to_le_bytes());
        put(page, Self::PLACE + 14, self.cycle_id.to_le_bytes());
    }

    fn change(page: &mut Page, change: impl FnOnce(&mut Self)) -> Redo {
        let mut opaque = Self::of(page)?;
        change(&mut opaque);
        opaque.store(page);
        Ok(())
    }

    /// The number of the first item after the high key (`P_FIRSTDATAKEY`).
    fn first_data_item(self) -> u16 {
        if self.next == P_NONE { P_HIKEY } else { P_HIKEY + 1 }
    }
}

/// Begins a page anew. The record must say so too, or its page would have been left alone if it
/// were newer.
fn rebuild(block: &BlockReference<'_>, page: &mut Page, opaque: Opaque) -> Redo {
    if !block.will_init {
        return Err(BtreeFault::Contents(format!(
            "block {} is rebuilt, but the record does not say so",
            block.id
        )));
    }
    page::init(page, OPAQUE_SIZE);
    opaque.store(page);
    Ok(())
}

fn block_number(record: &Record<'_>, id: u8) -> Result<BlockNumber, BtreeFault> {
    match record.block(id) {
        Some(block) => Ok(block.page.block),
        None => Err(BtreeFault::Contents(format!("the record has no block {id}"))),
    }
}

/// The page got its downlink (`_bt_clear_incomplete_split`).
fn finish_split(page: &mut Page) -> Redo {
    Opaque::change(page, |opaque| opaque.flags &= !BTP_INCOMPLETE_SPLIT)
}

/// Writes the meta page from the record (`_bt_restore_meta`).
fn restore_meta(block: &BlockReference<'_>, page: &mut Page) -> Redo {
    let meta = Metadata::read(block.data)?;
    rebuild(block, page, Opaque { flags: BTP_META, ..Opaque::default() })?;
    let words = [
        BTREE_MAGIC,
        meta.version,
        meta.root,
        meta.level,
        meta.fast_root,
        meta.fast_level,
        meta.last_cleanup_deleted_pages,
    ];
    for (at, word) in (PAGE_HEADER_SIZE..).step_by(4).zip(words) {
        put(page, at, word.to_le_bytes());
    }
    // No longer used, and no longer in the record: -1 says "unknown".
    put(page, PAGE_HEADER_SIZE + 32, (-1.0_f64).to_le_bytes());
    put(page, PAGE_HEADER_SIZE + 40, [u8::from(meta.all_equal_image)]);
    // Without this the metadata would lie in the hole that page images leave out.
    page::set_lower(page, PAGE_HEADER_SIZE + META_PAGE_DATA_SIZE);
    Ok(())
}

/// Puts items on an empty page from a copy of another page's items, as they lay there
/// (`_bt_restore_page`): added by number, the item with the highest lay first.
fn restore_items(page: &mut Page, items: &[u8]) -> Redo {
    let mut count = 0_usize;
    let mut cursor = Cursor::new(items);
    while !cursor.is_empty() {
        take_aligned_tuple(&mut cursor)?;
        count += 1;
    }
    let start = Opaque::PLACE.checked_sub(items.len());
    let lower = PAGE_HEADER_SIZE + count * ITEM_ID_SIZE;
    let Some(start) = start.filter(|&start| lower <= start) else {
        let free = Opaque::PLACE - PAGE_HEADER_SIZE;
        return Err(PageError::Full { size: items.len() + count * ITEM_ID_SIZE, free }.into());
    };
    page[start..Opaque::PLACE].copy_from_slice(items);
    page::set_lower(page, lower);
    page::set_upper(page, start);
    let mut cursor = Cursor::new(items);
    for item in (1..=count as u16).rev() {
        let offset = Opaque::PLACE - cursor.rest().len();
        let tuple = take_aligned_tuple(&mut cursor)?;
        page::set_item_id(page, item, ItemId::normal(offset as u16, tuple.len() as u16))?;
    }
    Ok(())
}

/// The next tuple with its padding to a multiple of 8.
fn take_aligned_tuple<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], BtreeFault> {
    let size = IndexTuple::read(cursor.rest())?.size();
    Ok(cursor.take(max_align(size), "index tuple")?)
}

/// The left page of a split: its items up to where it is split, perhaps with the new one among
/// them, and its new high key. PostgreSQL builds it anew so that items lie in the order of their
/// numbers.
fn split_left(
    record: &Record<'_>,
    block: &BlockReference<'_>,
    page: &mut Page,
    new_item_left: bool,
) -> Redo {
    let split = Split::read(record.main_data)?;
    let right = block_number(record, 1)?;
    let splits_posting = split.posting_offset != 0;

    let mut cursor = Cursor::new(block.data);
    let mut new_tuple = if new_item_left || splits_posting {
        take_aligned_tuple(&mut cursor)?.to_vec()
    } else {
        Vec::new()
    };
    let high_key = take_aligned_tuple(&mut cursor)?;
    cursor.finish("left high key")?;

    let old = *page;
    let opaque = Opaque::of(&old)?;
    let old_items = opaque.first_data_item()..split.first_right_item;
    let mut new_posting = None;
    if splits_posting {
        let item = split.new_item.wrapping_sub(1);
        if !old_items.contains(&item) {
            return Err(BtreeFault::Contents(format!(
                "posting list to split is item {item}, not among the left page's {old_items:?}"
            )));
        }
        let mut posting = IndexTuple::read(page::item(&old, item)?)?.bytes().to_vec();
        swap_posting(&mut new_tuple, &mut posting, split.posting_offset.into())?;
        posting.resize(max_align(posting.len()), 0);
        new_posting = Some((item, posting));
    }

    page::init(page, OPAQUE_SIZE);
    let mut left = Appender { page, next_item: P_HIKEY };
    left.add(high_key)?;
    let mut new_item_placed = !new_item_left;
    for item in old_items.clone() {
        if let Some((_, posting)) = new_posting.as_ref().filter(|(replaced, _)| *replaced == item) {
            left.add(posting)?;
            continue;
        }
        if new_item_left && item == split.new_item {
            left.add(&new_tuple)?;
            new_item_placed = true;
        }
        left.add(page::item(&old, item)?)?;
    }
    if new_item_left && split.new_item == old_items.end.max(old_items.start) {
        left.add(&new_tuple)?;
        new_item_placed = true;
    }
    if !new_item_placed {
        return Err(BtreeFault::Contents(format!(
            "new item is number {}, not among the left page's {old_items:?}",
            split.new_item
        )));
    }
    let flags = BTP_INCOMPLETE_SPLIT | if split.level == 0 { BTP_LEAF } else { 0 };
    Opaque { next: right, flags, cycle_id: 0, ..opaque }.store(page);
    Ok(())
}

/// The right page of a split: all of it is in the record.
fn split_right(record: &Record<'_>, block: &BlockReference<'_>, page: &mut Page) -> Redo {
    let split = Split::read(record.main_data)?;
    let opaque = Opaque {
        prev: block_number(record, 0)?,
        next: record.block(2).map_or(P_NONE, |right| right.page.block),
        level: split.level,
        flags: if split.level == 0 { BTP_LEAF } else { 0 },
        cycle_id: 0,
    };
    rebuild(block, page, opaque)?;
    restore_items(page, block.data)
}

/// The new item's address belongs into the posting list before it, whose last address takes its
/// place (`btree_xlog_insert` with posting).
fn insert_into_posting(record: &Record<'_>, block: &BlockReference<'_>, page: &mut Page) -> Redo {
    let insert = Insert::read(record.main_data)?;
    let mut cursor = Cursor::new(block.data);
    let posting_offset = cursor.u16("postingoff")?;
    let mut new_tuple: SmallVec<[u8; 256]> = SmallVec::from_slice(cursor.rest());
    let posting = page::item_mut(page, insert.item.wrapping_sub(1))?;
    swap_posting(&mut new_tuple, posting, posting_offset.into())?;
    Ok(page::add_item(page, insert.item, &new_tuple)?)
}

/// Puts the new tuple's address at this position of the posting list and gives the tuple the
/// list's last address instead (`_bt_swap_posting`).
fn swap_posting(new_tuple: &mut [u8], posting: &mut [u8], position: usize) -> Redo {
    IndexTuple::read(new_tuple)?;
    let list = posting_list(IndexTuple::read(posting)?)?;
    if position == 0 || position >= list.count {
        return Err(BtreeFault::Contents(format!(
            "posting list of {} addresses cannot be split at {position}",
            list.count
        )));
    }
    let place = list.start + position * ItemPointer::SIZE;
    let last = list.end() - ItemPointer::SIZE;
    let last_address = ItemPointer::read(posting, last);
    posting.copy_within(place..last, place + ItemPointer::SIZE);
    put(posting, place, ItemPointer::read(new_tuple, 0).to_bytes());
    put(new_tuple, 0, last_address.to_bytes());
    Ok(())
}

/// The tuple's posting list, which must be there and lie inside it, after a key.
fn posting_list(tuple: IndexTuple<'_>) -> Result<PostingList, BtreeFault> {
    match PostingList::of(tuple) {
        Some(list)
            if list.start >= IndexTuple::HEADER_SIZE
                && list.start.is_multiple_of(8)
                && list.end() <= tuple.size() =>
        {
            Ok(list)
        }
        Some(list) => Err(BtreeFault::Contents(format!(
            "posting list of {} addresses at {} is not inside its tuple of {} bytes",
            list.count,
            list.start,
            tuple.size()
        ))),
        None => Err(BtreeFault::Contents("tuple has no posting list".to_owned())),
    }
}

/// A tuple with this key and these addresses, one after the other (`_bt_form_posting`): a posting
/// list, or, with one address, a plain tuple.
fn form_posting(key: &[u8], addresses: &[u8]) -> Result<Vec<u8>, BtreeFault> {
    let count = addresses.len() / ItemPointer::SIZE;
    let plain = count == 1;
    let size = if plain { key.len() } else { max_align(key.len() + addresses.len()) };
    if size > INDEX_SIZE_MASK.into() || count > BT_OFFSET_MASK.into() {
        return Err(BtreeFault::Contents(format!(
            "tuple of {size} bytes with {count} addresses is too large"
        )));
    }
    let mut tuple = vec![0; size];
    tuple[..key.len()].copy_from_slice(key);
    let info = u16_at(key, 6) & !INDEX_SIZE_MASK & !INDEX_ALT_TID_MASK | size as u16;
    if plain {
        put(&mut tuple, 6, info.to_le_bytes());
        tuple[..ItemPointer::SIZE].copy_from_slice(addresses);
    } else {
        put(&mut tuple, 6, (info | INDEX_ALT_TID_MASK).to_le_bytes());
        let head = ItemPointer { block: key.len() as u32, offset: count as u16 | BT_IS_POSTING };
        put(&mut tuple, 0, head.to_bytes());
        tuple[key.len()..key.len() + addresses.len()].copy_from_slice(addresses);
    }
    Ok(tuple)
}

/// Merges the items of each interval into one (`btree_xlog_dedup`).
fn dedup(record: &Record<'_>, block: &BlockReference<'_>, page: &mut Page) -> Redo {
    let mut intervals = DedupInterval::read_all(record.main_data, block.data)?.peekable();
    let old = *page;
    let mut opaque = Opaque::of(&old)?;
    page::init(page, OPAQUE_SIZE);
    let mut new = Appender { page, next_item: P_HIKEY };
    let mut item = opaque.first_data_item();
    if item != P_HIKEY {
        new.add(page::item(&old, P_HIKEY)?)?;
    }
    let count = page::max_offset(&old);
    let mut addresses = Vec::with_capacity(ITEM_SIZE_MAX);
    while item <= count {
        let base = IndexTuple::read(page::item(&old, item)?)?;
        let Some(interval) = intervals.next_if(|interval| interval.first_item == item) else {
            new.add(base.bytes())?;
            item += 1;
            continue;
        };
        if interval.items < 2 || interval.items - 1 > count - item {
            return Err(BtreeFault::Contents(format!(
                "interval of {} items from {item} is not on a page with {count}",
                interval.items
            )));
        }
        let key_size = match PostingList::of(base) {
            Some(_) => posting_list(base)?.start,
            None => base.size(),
        };
        addresses.clear();
        for _ in 0..interval.items {
            append_addresses(IndexTuple::read(page::item(&old, item)?)?, &mut addresses)?;
            item += 1;
        }
        let merged = form_posting(&base.bytes()[..key_size], &addresses)?;
        if merged.len() > ITEM_SIZE_MAX {
            return Err(BtreeFault::Contents(format!(
                "merged posting list has {} bytes, the limit is {ITEM_SIZE_MAX}",
                merged.len()
            )));
        }
        new.add(&merged)?;
    }
    if let Some(interval) = intervals.next() {
        return Err(BtreeFault::Contents(format!(
            "interval from item {} is out of order or not on the page",
            interval.first_item
        )));
    }
    opaque.flags &= !BTP_HAS_GARBAGE;
    opaque.store(page);
    Ok(())
}

/// The tuple's address, or all of its posting list's.
fn append_addresses(tuple: IndexTuple<'_>, addresses: &mut Vec<u8>) -> Redo {
    let range = match PostingList::of(tuple) {
        Some(_) => {
            let list = posting_list(tuple)?;
            list.start..list.end()
        }
        None => 0..ItemPointer::SIZE,
    };
    addresses.extend_from_slice(&tuple.bytes()[range]);
    Ok(())
}

/// Removes addresses from posting lists, then whole items (`btree_xlog_vacuum`,
/// `btree_xlog_delete`).
fn delete(deletion: Deletion, block: &BlockReference<'_>, page: &mut Page) -> Redo {
    let items = deletion.items(block.data)?;
    for update in items.updates() {
        let (item, positions) = update?;
        let shorter = shorten_posting(IndexTuple::read(page::item(page, item)?)?, positions)?;
        page::overwrite_item(page, item, &shorter)?;
    }
    let deleted: SmallVec<[u16; 64]> = items.deleted.iter().collect();
    page::delete_items(page, &deleted)?;
    Opaque::change(page, |opaque| opaque.flags &= !BTP_HAS_GARBAGE)
}

/// The tuple without the addresses at these positions (`_bt_update_posting`).
fn shorten_posting(tuple: IndexTuple<'_>, positions: Offsets<'_>) -> Result<Vec<u8>, BtreeFault> {
    let list = posting_list(tuple)?;
    let (key, _) = tuple.bytes().split_at(list.start);
    let addresses = &tuple.bytes()[list.start..list.end()];
    let mut doomed = positions.iter().peekable();
    let mut kept = Vec::with_capacity(addresses.len());
    for (position, address) in addresses.chunks_exact(ItemPointer::SIZE).enumerate() {
        if doomed.next_if(|&doomed| usize::from(doomed) == position).is_none() {
            kept.extend_from_slice(address);
        }
    }
    if doomed.next().is_some() || positions.is_empty() || kept.is_empty() {
        return Err(BtreeFault::Contents(format!(
            "cannot remove {} addresses from a posting list of {}: all, none, or out of order",
            positions.len(),
            list.count
        )));
    }
    form_posting(key, &kept)
}

/// The parent of a subtree to be deleted: its downlink to the subtree takes over the next one's
/// child, which goes.
fn remove_downlink(record: &Record<'_>, page: &mut Page) -> Redo {
    let mark = MarkPageHalfDead::read(record.main_data)?;
    Opaque::of(page)?;
    let next_item = mark.parent_item.saturating_add(1);
    let child = IndexTuple::read(page::item(page, next_item)?)?.tid().block;
    let pivot = page::item_mut(page, mark.parent_item)?;
    let tid = IndexTuple::read(pivot)?.tid();
    put(pivot, 0, ItemPointer { block: child, ..tid }.to_bytes());
    Ok(page::delete_item(page, next_item)?)
}

/// An empty leaf that is about to be deleted; instead of a high key it has a link to the topmost
/// page of its subtree.
fn half_dead_leaf(
    block: &BlockReference<'_>,
    page: &mut Page,
    prev: BlockNumber,
    next: BlockNumber,
    top_parent: BlockNumber,
) -> Redo {
    let flags = BTP_HALF_DEAD | BTP_LEAF;
    rebuild(block, page, Opaque { prev, next, flags, ..Opaque::default() })?;
    let mut tuple = [0; IndexTuple::HEADER_SIZE];
    put(&mut tuple, 0, ItemPointer { block: top_parent, offset: 0 }.to_bytes());
    put(&mut tuple, 6, (INDEX_ALT_TID_MASK | IndexTuple::HEADER_SIZE as u16).to_le_bytes());
    Ok(page::add_item(page, P_HIKEY, &tuple)?)
}

/// The pages around a page that leaves the tree, and the page itself.
fn unlink(unlink: UnlinkPage, role: u8, block: &BlockReference<'_>, page: &mut Page) -> Redo {
    match role {
        0 => {
            let leaf = if unlink.level == 0 { BTP_LEAF } else { 0 };
            let opaque = Opaque {
                prev: unlink.left,
                next: unlink.right,
                level: unlink.level,
                flags: BTP_DELETED | BTP_HAS_FULLXID | leaf,
                cycle_id: 0,
            };
            rebuild(block, page, opaque)?;
            put(page, PAGE_HEADER_SIZE, unlink.safe_xid.to_le_bytes());
            page::set_lower(page, PAGE_HEADER_SIZE + 8);
            Ok(())
        }
        1 => Opaque::change(page, |opaque| opaque.next = unlink.right),
        2 => Opaque::change(page, |opaque| opaque.prev = unlink.left),
        _ => {
            let (left, right) = (unlink.leaf_left, unlink.leaf_right);
            half_dead_leaf(block, page, left, right, unlink.leaf_top_parent)
        }
    }
}

fn new_root(record: &Record<'_>, block: &BlockReference<'_>, page: &mut Page) -> Redo {
    let root = NewRoot::read(record.main_data)?;
    let leaf = if root.level == 0 { BTP_LEAF } else { 0 };
    let opaque = Opaque { level: root.level, flags: BTP_ROOT | leaf, ..Opaque::default() };
    rebuild(block, page, opaque)?;
    if root.level > 0 { restore_items(page, block.data) } else { Ok(()) }
}

/// Adds items to a page one after the other.
struct Appender<'a> {
    page: &'a mut Page,
    next_item: u16,
}

impl Appender<'_> {
    fn add(&mut self, item: &[u8]) -> Redo {
        page::add_item(self.page, self.next_item, item)?;
        self.next_item += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use walfmt::record::RecordHeader;
    use walfmt::relation::PageId;
    use walfmt::rmgr::RmgrId;
    use walfmt::{Lsn, TransactionId};

    use super::*;

    const MAXIMUM_KEY: u64 = u64::MAX;

    fn with_key(tid: ItemPointer, info: u16, key: u64) -> Vec<u8> {
        let mut tuple = vec![0; 16];
        put(&mut tuple, 0, tid.to_bytes());
        put(&mut tuple, 6, (info | 16).to_le_bytes());
        put(&mut tuple, 8, key.to_le_bytes());
        tuple
    }

    /// A leaf's tuple: this key is in the row at item `row` of block 1.
    fn plain(key: u64, row: u16) -> Vec<u8> {
        with_key(ItemPointer { block: 1, offset: row }, 0, key)
    }

    /// A tuple with a downlink, or a high key.
    fn pivot(key: u64, child: BlockNumber) -> Vec<u8> {
        with_key(ItemPointer { block: child, offset: 1 }, INDEX_ALT_TID_MASK, key)
    }

    fn posting(key: u64, rows: &[u16]) -> Vec<u8> {
        let tid = ItemPointer { block: 16, offset: rows.len() as u16 | BT_IS_POSTING };
        let mut tuple = with_key(tid, INDEX_ALT_TID_MASK, key);
        for &row in rows {
            tuple.extend(ItemPointer { block: 1, offset: row }.to_bytes());
        }
        tuple.resize(max_align(tuple.len()), 0);
        let info = INDEX_ALT_TID_MASK | tuple.len() as u16;
        put(&mut tuple, 6, info.to_le_bytes());
        tuple
    }

    fn page_of(opaque: Opaque, items: &[Vec<u8>]) -> Page {
        let mut page = [0; BLOCK_SIZE];
        page::init(&mut page, OPAQUE_SIZE);
        opaque.store(&mut page);
        let mut appender = Appender { page: &mut page, next_item: 1 };
        for item in items {
            appender.add(item).expect("fits");
        }
        page
    }

    const LEAF: Opaque = Opaque { prev: 7, next: 9, level: 0, flags: BTP_LEAF, cycle_id: 5 };

    fn leaf(items: &[Vec<u8>]) -> Page {
        page_of(Opaque { flags: BTP_LEAF | BTP_HAS_GARBAGE, ..LEAF }, items)
    }

    fn items(page: &Page) -> Vec<Vec<u8>> {
        let item = |number| page::item(page, number).expect("stored").to_vec();
        (1..=page::max_offset(page)).map(item).collect()
    }

    fn opaque(page: &Page) -> Opaque {
        Opaque::of(page).expect("btree page")
    }

    fn u16s(values: &[u16]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    fn u32s(values: &[u32]) -> Vec<u8> {
        values.iter().flat_map(|value| value.to_le_bytes()).collect()
    }

    /// A record's block references: id, block number, whether it is rebuilt, data.
    type Blocks<'a> = &'a [(u8, BlockNumber, bool, &'a [u8])];

    /// Does what the record says of block `id` to `page`.
    fn apply(opcode: u8, main_data: &[u8], blocks: Blocks<'_>, id: u8, page: &mut Page) -> Redo {
        let header = RecordHeader {
            total_length: 0,
            xid: TransactionId(700),
            prev: Lsn(0),
            info: opcode,
            rmgr: RmgrId::BTREE,
            crc: 0,
        };
        let blocks = blocks.iter().map(|&(id, block, will_init, data)| {
            let page = PageId { block, ..PageId::default() };
            BlockReference { id, page, will_init, image: None, data }
        });
        let record = Record {
            start: Lsn(0x100),
            end: Lsn(0x200),
            header,
            blocks: blocks.collect::<SmallVec<_>>(),
            main_data,
            origin: 0,
            toplevel_xid: TransactionId::INVALID,
        };
        redo(&record, record.block(id).expect("given"), page)
    }

    #[test]
    fn insert_puts_the_tuple_before_its_successor() {
        let before = [pivot(9, 0), plain(1, 1), plain(3, 3)];
        let tuple = plain(2, 2);
        for opcode in [XLOG_BTREE_INSERT_LEAF, XLOG_BTREE_INSERT_UPPER, XLOG_BTREE_INSERT_META] {
            let mut page = leaf(&before);
            apply(opcode, &u16s(&[3]), &[(0, 8, false, &tuple)], 0, &mut page).expect("applies");
            assert_eq!(items(&page), [pivot(9, 0), plain(1, 1), tuple.clone(), plain(3, 3)]);
        }
        let mut page = leaf(&before);
        let beyond =
            apply(XLOG_BTREE_INSERT_LEAF, &u16s(&[5]), &[(0, 8, false, &tuple)], 0, &mut page);
        assert!(matches!(beyond, Err(BtreeFault::Page(PageError::Beyond { .. }))));
    }

    #[test]
    fn a_downlink_finishes_the_childs_split() {
        for (opcode, id) in [
            (XLOG_BTREE_INSERT_UPPER, 1),
            (XLOG_BTREE_INSERT_META, 1),
            (XLOG_BTREE_NEWROOT, 1),
            (XLOG_BTREE_SPLIT_L, 3),
            (XLOG_BTREE_SPLIT_R, 3),
        ] {
            let flags = BTP_LEAF | BTP_INCOMPLETE_SPLIT;
            let mut page = page_of(Opaque { flags, ..LEAF }, &[]);
            apply(opcode, &[], &[(id, 8, false, &[])], id, &mut page).expect("applies");
            assert_eq!(opaque(&page), LEAF);
        }
    }

    #[test]
    fn meta_page_is_written_whole() {
        let data = u32s(&[4, 30, 2, 31, 1, 17, 1]);
        for (opcode, id) in [
            (XLOG_BTREE_INSERT_META, 2),
            (XLOG_BTREE_NEWROOT, 2),
            (XLOG_BTREE_UNLINK_PAGE_META, 4),
            (XLOG_BTREE_META_CLEANUP, 0),
        ] {
            let mut page = [0; BLOCK_SIZE];
            apply(opcode, &[], &[(id, 0, true, &data)], id, &mut page).expect("applies");
            let mut meta = u32s(&[BTREE_MAGIC, 4, 30, 2, 31, 1, 17, 0]);
            meta.extend((-1.0_f64).to_le_bytes());
            meta.extend([1, 0, 0, 0, 0, 0, 0, 0]);
            assert_eq!(page[24..72], meta);
            assert_eq!(walfmt::page::lower(&page), 72);
            assert_eq!(opaque(&page), Opaque { flags: BTP_META, ..Opaque::default() });

            let unsaid = apply(opcode, &[], &[(id, 0, false, &data)], id, &mut page);
            assert!(matches!(unsaid, Err(BtreeFault::Contents(_))));
            let short = apply(opcode, &[], &[(id, 0, true, &data[1..])], id, &mut page);
            assert!(matches!(short, Err(BtreeFault::Payload(_))));
        }
    }

    #[test]
    fn an_address_inside_a_posting_list_pushes_out_the_last() {
        let before = [pivot(9, 0), posting(5, &[1, 4, 6])];
        let data = [u16s(&[1]), plain(5, 3)].concat();
        let mut page = leaf(&before);
        let insert = u16s(&[3]);
        apply(XLOG_BTREE_INSERT_POST, &insert, &[(0, 8, false, &data)], 0, &mut page)
            .expect("applies");
        assert_eq!(items(&page), [pivot(9, 0), posting(5, &[1, 3, 4]), plain(5, 6)]);

        for wrong in [0, 3, 4] {
            let data = [u16s(&[wrong]), plain(5, 3)].concat();
            let mut page = leaf(&before);
            let redo =
                apply(XLOG_BTREE_INSERT_POST, &insert, &[(0, 8, false, &data)], 0, &mut page);
            assert!(matches!(redo, Err(BtreeFault::Contents(_))), "{wrong}");
        }
    }

    fn split(level: u32, first_right: u16, new_item: u16, posting_offset: u16) -> Vec<u8> {
        [u32s(&[level]), u16s(&[first_right, new_item, posting_offset])].concat()
    }

    fn split_left_items(opcode: u8, before: &Page, main: &[u8], data: &[u8]) -> Vec<Vec<u8>> {
        let mut page = *before;
        apply(opcode, main, &[(0, 8, false, data), (1, 20, true, &[])], 0, &mut page)
            .expect("applies");
        let flags = BTP_LEAF | BTP_INCOMPLETE_SPLIT;
        assert_eq!(opaque(&page), Opaque { prev: 7, next: 20, level: 0, flags, cycle_id: 0 });
        let offsets: Vec<_> = (1..=page::max_offset(&page))
            .map(|number| page::item_id(&page, number).expect("is there").offset)
            .collect();
        assert!(offsets.is_sorted_by(|a, b| a > b), "{offsets:?}");
        items(&page)
    }

    #[test]
    fn split_keeps_the_left_items_and_the_new_one() {
        let before = leaf(&[pivot(9, 0), plain(1, 1), plain(3, 3), plain(5, 5), plain(7, 7)]);
        let high_key = pivot(5, 0);
        let new = |row: u16| [plain(row.into(), row), high_key.clone()].concat();
        let left =
            |main: Vec<u8>, data: &[u8]| split_left_items(XLOG_BTREE_SPLIT_L, &before, &main, data);
        assert_eq!(
            left(split(0, 4, 3, 0), &new(2)),
            [high_key.clone(), plain(1, 1), plain(2, 2), plain(3, 3)]
        );
        assert_eq!(
            left(split(0, 4, 4, 0), &new(4)),
            [high_key.clone(), plain(1, 1), plain(3, 3), plain(4, 4)]
        );
        assert_eq!(
            split_left_items(XLOG_BTREE_SPLIT_R, &before, &split(0, 4, 5, 0), &high_key),
            [high_key.clone(), plain(1, 1), plain(3, 3)]
        );

        let mut page = before;
        let blocks: Blocks<'_> = &[(0, 8, false, &new(2)), (1, 20, true, &[])];
        let main = split(0, 4, 5, 0);
        let misplaced = apply(XLOG_BTREE_SPLIT_L, &main, blocks, 0, &mut page);
        assert!(matches!(misplaced, Err(BtreeFault::Contents(_))));
    }

    #[test]
    fn split_of_the_rightmost_page_takes_its_first_item_too() {
        let rightmost = Opaque { next: P_NONE, ..LEAF };
        let before = page_of(rightmost, &[plain(1, 1), plain(3, 3), plain(5, 5)]);
        let high_key = pivot(5, 0);
        assert_eq!(
            split_left_items(XLOG_BTREE_SPLIT_R, &before, &split(0, 3, 4, 0), &high_key),
            [high_key, plain(1, 1), plain(3, 3)]
        );
    }

    #[test]
    fn split_may_split_a_posting_list_too() {
        let before = leaf(&[pivot(9, 0), plain(1, 1), posting(3, &[3, 5, 7]), plain(8, 8)]);
        let high_key = pivot(3, 0);
        let data = [plain(3, 4), high_key.clone()].concat();
        let halves = posting(3, &[3, 4, 5]);
        assert_eq!(
            split_left_items(XLOG_BTREE_SPLIT_L, &before, &split(0, 4, 4, 1), &data),
            [high_key.clone(), plain(1, 1), halves.clone(), plain(3, 7)]
        );
        assert_eq!(
            split_left_items(XLOG_BTREE_SPLIT_L, &before, &split(0, 5, 4, 1), &data),
            [high_key.clone(), plain(1, 1), halves.clone(), plain(3, 7), plain(8, 8)]
        );
        // The new item goes right: it is in the record only for the sake of the posting list.
        assert_eq!(
            split_left_items(XLOG_BTREE_SPLIT_R, &before, &split(0, 4, 4, 1), &data),
            [high_key, plain(1, 1), halves]
        );
        let mut page = before;
        let blocks: Blocks<'_> = &[(0, 8, false, &data), (1, 20, true, &[])];
        let main = split(0, 4, 3, 1);
        let not_a_list = apply(XLOG_BTREE_SPLIT_L, &main, blocks, 0, &mut page);
        assert!(matches!(not_a_list, Err(BtreeFault::Contents(_))));
    }

    #[test]
    fn split_rebuilds_the_right_page_and_links_it() {
        let right_items = [pivot(9, 0), plain(5, 5), posting(7, &[7, 8])];
        let data: Vec<u8> = right_items.iter().rev().flatten().copied().collect();
        let blocks: Blocks<'_> = &[(0, 8, false, &[]), (1, 20, true, &data), (2, 9, false, &[])];
        let main = split(0, 4, 5, 0);
        let mut page = [0; BLOCK_SIZE];
        apply(XLOG_BTREE_SPLIT_R, &main, blocks, 1, &mut page).expect("applies");
        let right = Opaque { prev: 8, next: 9, level: 0, flags: BTP_LEAF, cycle_id: 0 };
        assert!(page == page_of(right, &right_items));
        apply(XLOG_BTREE_SPLIT_R, &main, &blocks[..2], 1, &mut page).expect("applies");
        assert_eq!(opaque(&page), Opaque { next: P_NONE, ..right });

        let mut sibling = leaf(&[]);
        apply(XLOG_BTREE_SPLIT_R, &main, blocks, 2, &mut sibling).expect("applies");
        assert_eq!(opaque(&sibling).prev, 20);

        for spoiled in [&data[..data.len() - 8], &data[8..]] {
            let blocks: Blocks<'_> = &[(0, 8, false, &[]), (1, 20, true, spoiled)];
            assert!(apply(XLOG_BTREE_SPLIT_R, &main, blocks, 1, &mut page).is_err());
        }
        let too_many = pivot(1, 1).repeat(500);
        let blocks: Blocks<'_> = &[(0, 8, false, &[]), (1, 20, true, &too_many)];
        let full = apply(XLOG_BTREE_SPLIT_R, &main, blocks, 1, &mut page);
        assert!(matches!(full, Err(BtreeFault::Page(PageError::Full { .. }))));
    }

    #[test]
    fn dedup_merges_intervals() {
        let before = leaf(&[
            pivot(9, 0),
            plain(1, 1),
            plain(3, 3),
            plain(3, 4),
            posting(3, &[5, 6]),
            posting(4, &[1, 2]),
            plain(4, 9),
            plain(5, 1),
        ]);
        let data = u16s(&[3, 3, 6, 2]);
        let mut page = before;
        apply(XLOG_BTREE_DEDUP, &u16s(&[2]), &[(0, 8, false, &data)], 0, &mut page)
            .expect("applies");
        let merged = [
            pivot(9, 0),
            plain(1, 1),
            posting(3, &[3, 4, 5, 6]),
            posting(4, &[1, 2, 9]),
            plain(5, 1),
        ];
        assert!(page == page_of(LEAF, &merged));

        for wrong in [[3, 3, 5, 2], [3, 3, 6, 4], [6, 2, 3, 3], [3, 1, 6, 2], [3, 3, 9, 2]] {
            let data = u16s(&wrong);
            let mut page = before;
            let redo = apply(XLOG_BTREE_DEDUP, &u16s(&[2]), &[(0, 8, false, &data)], 0, &mut page);
            assert!(matches!(redo, Err(BtreeFault::Contents(_))), "{wrong:?}");
        }
    }

    #[test]
    fn vacuum_and_delete_shorten_posting_lists_and_remove_items() {
        let before = leaf(&[
            pivot(9, 0),
            plain(1, 1),
            posting(3, &[3, 4, 5]),
            plain(4, 4),
            posting(5, &[6, 7, 8, 9]),
        ]);
        let updates = u16s(&[2, 4, 3, 5, 2, 0, 2, 1, 1]);
        for (opcode, main) in [
            (XLOG_BTREE_VACUUM, u16s(&[2, 2])),
            (XLOG_BTREE_DELETE, [u32s(&[699]), u16s(&[2, 2])].concat()),
        ] {
            let mut page = before;
            apply(opcode, &main, &[(0, 8, false, &updates)], 0, &mut page).expect("applies");
            assert_eq!(items(&page), [pivot(9, 0), plain(3, 4), posting(5, &[6, 8, 9])]);
            assert_eq!(opaque(&page), LEAF);
        }
        for wrong in [
            u16s(&[2, 4, 3, 5, 3, 0, 1, 2, 1, 1]), // all of a list
            u16s(&[2, 4, 3, 5, 0, 1, 1]),          // none of it
            u16s(&[2, 4, 3, 5, 2, 2, 0, 1, 1]),    // out of order
            u16s(&[2, 4, 2, 5, 1, 0, 1, 1]),       // no list
            u16s(&[2, 9, 3, 5, 2, 0, 2, 1, 1]),    // no item
        ] {
            let (mut page, main) = (before, u16s(&[2, 2]));
            let redo = apply(XLOG_BTREE_VACUUM, &main, &[(0, 8, false, &wrong)], 0, &mut page);
            assert!(redo.is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn half_dead_leaf_points_to_its_top_parent() {
        let main = [u16s(&[2, 0]), u32s(&[8, 7, 9, u32::MAX])].concat();
        let blocks: Blocks<'_> = &[(0, 8, true, &[]), (1, 3, false, &[])];
        let mut page = [0; BLOCK_SIZE];
        apply(XLOG_BTREE_MARK_PAGE_HALFDEAD, &main, blocks, 0, &mut page).expect("applies");
        let flags = BTP_LEAF | BTP_HALF_DEAD;
        assert_eq!(opaque(&page), Opaque { prev: 7, next: 9, flags, ..Opaque::default() });
        assert_eq!(items(&page), [[0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 8, 0x20]]);

        let upper = Opaque { level: 1, flags: 0, ..LEAF };
        let mut parent =
            page_of(upper, &[pivot(MAXIMUM_KEY, 0), pivot(0, 8), pivot(5, 9), pivot(7, 10)]);
        apply(XLOG_BTREE_MARK_PAGE_HALFDEAD, &main, blocks, 1, &mut parent).expect("applies");
        assert_eq!(items(&parent), [pivot(MAXIMUM_KEY, 0), pivot(0, 9), pivot(7, 10)]);
        let mut last = page_of(upper, &[pivot(MAXIMUM_KEY, 0), pivot(0, 8)]);
        assert!(apply(XLOG_BTREE_MARK_PAGE_HALFDEAD, &main, blocks, 1, &mut last).is_err());
    }

    #[test]
    fn unlink_leaves_a_deleted_page_and_links_its_neighbours() {
        let main = |level: u32| {
            [u32s(&[7, 9, level, 0]), 0x1_0000_02BC_u64.to_le_bytes().to_vec(), u32s(&[70, 90, 33])]
                .concat()
        };
        for opcode in [XLOG_BTREE_UNLINK_PAGE, XLOG_BTREE_UNLINK_PAGE_META] {
            for (level, leaf) in [(0, BTP_LEAF), (2, 0)] {
                let mut page = [0; BLOCK_SIZE];
                apply(opcode, &main(level), &[(0, 8, true, &[])], 0, &mut page).expect("applies");
                let flags = BTP_DELETED | BTP_HAS_FULLXID | leaf;
                assert_eq!(opaque(&page), Opaque { prev: 7, next: 9, level, flags, cycle_id: 0 });
                assert_eq!(page[24..32], 0x1_0000_02BC_u64.to_le_bytes());
                assert_eq!(walfmt::page::lower(&page), 32);
                assert_eq!(walfmt::page::upper(&page), 8176);
            }
            let mut left = page_of(Opaque { next: 8, ..LEAF }, &[]);
            apply(opcode, &main(0), &[(1, 7, false, &[])], 1, &mut left).expect("applies");
            assert_eq!(opaque(&left), LEAF);
            let mut right = page_of(Opaque { prev: 8, ..LEAF }, &[]);
            apply(opcode, &main(0), &[(2, 9, false, &[])], 2, &mut right).expect("applies");
            assert_eq!(opaque(&right), LEAF);
            let mut leaf = [0; BLOCK_SIZE];
            apply(opcode, &main(2), &[(3, 80, true, &[])], 3, &mut leaf).expect("applies");
            let flags = BTP_LEAF | BTP_HALF_DEAD;
            assert_eq!(opaque(&leaf), Opaque { prev: 70, next: 90, flags, ..Opaque::default() });
            assert_eq!(items(&leaf), [[0, 0, 33, 0, 0, 0, 8, 0x20]]);
        }
    }

    #[test]
    fn new_root_is_a_leaf_or_has_two_children() {
        let mut page = [0; BLOCK_SIZE];
        apply(XLOG_BTREE_NEWROOT, &u32s(&[1, 0]), &[(0, 1, true, &[])], 0, &mut page)
            .expect("applies");
        let flags = BTP_ROOT | BTP_LEAF;
        assert!(page == page_of(Opaque { flags, ..Opaque::default() }, &[]));

        let data = [pivot(5, 2), pivot(0, 1)].concat();
        apply(XLOG_BTREE_NEWROOT, &u32s(&[3, 1]), &[(0, 3, true, &data)], 0, &mut page)
            .expect("applies");
        let root = Opaque { level: 1, flags: BTP_ROOT, ..Opaque::default() };
        assert!(page == page_of(root, &[pivot(0, 1), pivot(5, 2)]));
    }

    #[test]
    fn roles_that_no_record_has_are_refused() {
        for (opcode, id) in [
            (XLOG_BTREE_INSERT_LEAF, 1),
            (XLOG_BTREE_REUSE_PAGE, 0),
            (XLOG_BTREE_UNLINK_PAGE, 4),
            (0xF0, 0),
        ] {
            let mut page = leaf(&[]);
            let redo = apply(opcode, &[], &[(id, 8, false, &[])], id, &mut page);
            assert!(matches!(redo, Err(BtreeFault::Contents(_))), "{opcode:#04x} {id}");
        }
    }

    #[test]
    fn pages_of_other_kinds_are_refused() {
        let mut heap = [0; BLOCK_SIZE];
        page::init(&mut heap, 0);
        for page in [&mut heap, &mut [0; BLOCK_SIZE]] {
            let redo = apply(XLOG_BTREE_INSERT_UPPER, &[], &[(1, 8, false, &[])], 1, page);
            assert!(matches!(redo, Err(BtreeFault::Contents(_))));
        }
    }

    /// Parts of records: small numbers often, so that they name items that are there.
    fn numbers() -> impl Strategy<Value = Vec<u8>> {
        let number = prop_oneof![4 => 0..12_u16, 1 => any::<u16>()];
        (prop::collection::vec(number, 0..40), any::<bool>()).prop_map(|(numbers, odd)| {
            let mut bytes = u16s(&numbers);
            if odd {
                bytes.pop();
            }
            bytes
        })
    }

    fn spoiled_leaf() -> impl Strategy<Value = Page> {
        let spoil = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12);
        spoil.prop_map(|spoil| {
            let mut page = leaf(&[
                pivot(9, 0),
                plain(1, 1),
                plain(3, 3),
                plain(3, 4),
                posting(3, &[5, 6]),
                posting(4, &[1, 2, 3, 4]),
                plain(4, 9),
            ]);
            let used: Vec<usize> = (0..60).chain(7900..BLOCK_SIZE).collect();
            for (at, byte) in spoil {
                page[*at.get(&used)] = byte;
            }
            page
        })
    }

    proptest! {
        #[test]
        fn neither_pages_nor_records_make_redo_panic(
            page in prop_oneof![page::tests::any_page(), spoiled_leaf()],
            opcode in 0..16_u8,
            id in 0..5_u8,
            will_init: bool,
            main_length in prop::sample::select(vec![0, 2, 4, 8, 10, 20, 24, 36]),
            main in numbers(),
            data in prop_oneof![
                numbers(),
                (0..5_u16, 0..9_u16, 0..9_u64).prop_map(|(position, row, key)| {
                    [u16s(&[position]), plain(key, row)].concat()
                }),
                (0..9_u16, 0..9_u64).prop_map(|(row, key)| {
                    [plain(key, row), pivot(key, 0)].concat()
                }),
            ],
        ) {
            let mut main = main;
            main.resize(main_length, 1);
            let mut blocks = vec![(0, 8, false, &[][..]), (1, 9, false, &[])];
            blocks.retain(|block| block.0 != id);
            blocks.push((id, 10, will_init, &data));
            let _ = apply(opcode << 4, &main, &blocks, id, &mut page.clone());
        }
    }
}
