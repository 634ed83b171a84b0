//! The primitives that change a page, byte for byte as PostgreSQL 15 does, also as to where they
//! place an item.
//!
//! All of them check what they are about to follow: a corrupt page gives a [`PageError`], never a
//! panic. After an error the page may be changed in part; replay stops there.
//!
//! There are two ways to add an item: [`add_item`] moves the following line pointers up, as
//! indexes want it, [`put_item`] fills one line pointer, as heaps want it. Numbers of items begin
//! with 1.
//!
//! Not here: `PageIndexTupleDeleteNoCompact`, which only BRIN uses.
//!
//! Rules: `src/backend/storage/page/bufpage.c`.

use walfmt::bytes::put;
pub use walfmt::page::{
    ItemId, PageError, flags, is_new, item, item_id, lsn, max_offset, prune_xid, validate,
};
use walfmt::page::{
    HEAP_ITEMS_MAX, ITEM_ID_SIZE, PAGE_HEADER_SIZE, PAGE_SIZE_AND_VERSION,
    PD_HAS_FREE_LINES, bounds, field, item_id_place, item_range, max_align, special, upper,
};
use walfmt::{BLOCK_SIZE, Lsn, TransactionId};

use crate::Page;

/// Makes the page empty: all zero, but for the header and a special space of this size
/// (`PageInit`). The special space is rounded up to a multiple of 8 and cut to what a page holds.
pub fn init(page: &mut Page, special_size: usize) {
    let special = BLOCK_SIZE - max_align(special_size).min(BLOCK_SIZE - PAGE_HEADER_SIZE);
    page.fill(0);
    set_lower(page, PAGE_HEADER_SIZE);
    set_upper(page, special);
    put_u16(page, field::PD_SPECIAL, special);
    put(page, field::PD_PAGESIZE_VERSION, PAGE_SIZE_AND_VERSION.to_le_bytes());
}

/// Sets `pd_lsn`.
pub fn set_lsn(page: &mut Page, lsn: Lsn) {
    put(page, field::PD_LSN, ((lsn.0 >> 32) as u32).to_le_bytes());
    put(page, field::PD_LSN + 4, (lsn.0 as u32).to_le_bytes());
}

/// Sets `pd_flags`.
pub fn set_flags(page: &mut Page, flags: u16) {
    put(page, field::PD_FLAGS, flags.to_le_bytes());
}

/// Sets `pd_prune_xid`.
pub fn set_prune_xid(page: &mut Page, xid: TransactionId) {
    put(page, field::PD_PRUNE_XID, xid.0.to_le_bytes());
}

/// Sets an existing line pointer.
///
/// # Errors
/// [`PageError`] if there is no such line pointer, or it cannot hold this.
pub fn set_item_id(page: &mut Page, item: u16, id: ItemId) -> Result<(), PageError> {
    let place = item_id_place(page, item)?;
    put(page, place, id.to_raw()?.to_le_bytes());
    Ok(())
}

/// The bytes of item `item`, to be changed.
///
/// # Errors
/// As [`item`].
pub fn item_mut(page: &mut Page, item: u16) -> Result<&mut [u8], PageError> {
    let range = item_range(page, item)?;
    Ok(&mut page[range])
}

/// Adds an item to an index page as number `item`; it and the following move up by one
/// (`PageAddItem`).
///
/// # Errors
/// [`PageError`] if the page is corrupt or full, or `item` is not 1..=count+1.
pub fn add_item(page: &mut Page, item: u16, bytes: &[u8]) -> Result<(), PageError> {
    let count = max_offset(page);
    if item == 0 || item > count + 1 {
        return Err(PageError::Beyond { item, count, limit: count + 1 });
    }
    place_item(page, item, bytes, true)
}

/// Puts an item on a heap page as number `item`, which must be unused or the next one
/// (`PageAddItem` with `PAI_OVERWRITE | PAI_IS_HEAP`).
///
/// # Errors
/// [`PageError`] if the page is corrupt or full, or `item` is in use, or not 1..=count+1, or
/// beyond the limit of a heap page.
pub fn put_item(page: &mut Page, item: u16, bytes: &[u8]) -> Result<(), PageError> {
    let count = max_offset(page);
    if item == 0 || item > count + 1 || item > HEAP_ITEMS_MAX {
        return Err(PageError::Beyond { item, count, limit: HEAP_ITEMS_MAX });
    }
    if item <= count {
        let id = item_id(page, item)?;
        if id.is_used() || id.has_storage() {
            return Err(PageError::InUse { item, flags: id.flags, length: id.length });
        }
    }
    place_item(page, item, bytes, false)
}

/// Copies the item in below `pd_upper` and sets line pointer `item`, which was checked to be at
/// most one more than there are. `shift` makes room for it among the others.
fn place_item(page: &mut Page, item: u16, bytes: &[u8], shift: bool) -> Result<(), PageError> {
    if bytes.is_empty() {
        return Err(PageError::Argument("an item to be added is empty"));
    }
    let (lower, upper, _) = bounds(page)?;
    let place = PAGE_HEADER_SIZE + (usize::from(item) - 1) * ITEM_ID_SIZE;
    let end = PAGE_HEADER_SIZE + usize::from(max_offset(page)) * ITEM_ID_SIZE;
    let new_lower = if shift || place == end { lower + ITEM_ID_SIZE } else { lower };
    let Some(offset) =
        upper.checked_sub(max_align(bytes.len())).filter(|&offset| offset >= new_lower)
    else {
        return Err(PageError::Full { size: bytes.len(), free: upper - lower });
    };
    if shift {
        page.copy_within(place..end, place + ITEM_ID_SIZE);
    }
    let id = ItemId::normal(offset as u16, bytes.len() as u16);
    put(page, place, id.to_raw()?.to_le_bytes());
    page[offset..offset + bytes.len()].copy_from_slice(bytes);
    set_lower(page, new_lower);
    set_upper(page, offset);
    Ok(())
}

/// Removes an item of an index page and closes both gaps, among the line pointers and among the
/// items (`PageIndexTupleDelete`).
///
/// # Errors
/// [`PageError`] if the page is corrupt or has no such item.
pub fn delete_item(page: &mut Page, item: u16) -> Result<(), PageError> {
    let (lower, upper, _) = bounds(page)?;
    let place = item_id_place(page, item)?;
    let range = aligned_item_range(page, item)?;
    let size = max_align(range.len());

    page.copy_within(place + ITEM_ID_SIZE..lower, place);
    page.copy_within(upper..range.start, upper + size);
    set_upper(page, upper + size);
    set_lower(page, lower - ITEM_ID_SIZE);
    shift_items(page, range.start, size.cast_signed())
}

/// Removes items of an index page, given by ascending numbers (`PageIndexMultiDelete`): more than
/// two at once also bring the items that stay into the order of their line pointers.
///
/// # Errors
/// [`PageError`] if the page is corrupt, has not all of these items, or they are out of order.
pub fn delete_items(page: &mut Page, items: &[u16]) -> Result<(), PageError> {
    if items.len() <= 2 {
        return items.iter().rev().try_for_each(|&item| delete_item(page, item));
    }
    let (lower, _, _) = bounds(page)?;
    let count = max_offset(page);
    let mut doomed = items.iter().copied().peekable();
    let mut together = 0;
    for item in 1..=count {
        let range = aligned_item_range(page, item)?;
        if doomed.next_if_eq(&item).is_none() {
            together += max_align(range.len());
        }
    }
    if let Some(item) = doomed.next() {
        return Err(if item == 0 || item > count {
            PageError::NoItem { item, count }
        } else {
            PageError::Argument("items to be deleted are not in ascending order")
        });
    }
    check_together(page, together)?;

    let old = *page;
    let mut doomed = items.iter().copied().peekable();
    let mut packer = Packer::new(page);
    let mut place = PAGE_HEADER_SIZE;
    for item in 1..=count {
        if doomed.next_if_eq(&item).is_none() {
            let id = packer.place(&old, item_id(&old, item)?);
            put(packer.page, place, id.to_raw()?.to_le_bytes());
            place += ITEM_ID_SIZE;
        }
    }
    packer.finish();
    debug_assert!(place <= lower);
    set_lower(page, place);
    Ok(())
}

/// Replaces an item of an index page where it is, moving its neighbours if its size changes
/// (`PageIndexTupleOverwrite`). `lp_flags` stay as they are.
///
/// # Errors
/// [`PageError`] if the page is corrupt or full, or has no such item.
pub fn overwrite_item(page: &mut Page, item: u16, bytes: &[u8]) -> Result<(), PageError> {
    if bytes.is_empty() {
        return Err(PageError::Argument("an item to be overwritten is empty"));
    }
    let (lower, upper, _) = bounds(page)?;
    let range = aligned_item_range(page, item)?;
    let (old_size, new_size) = (max_align(range.len()), max_align(bytes.len()));
    if new_size > old_size + (upper - lower) {
        return Err(PageError::Full { size: bytes.len(), free: old_size + upper - lower });
    }
    let new_start = range.start + old_size - new_size;
    if new_size != old_size {
        let new_upper = upper + old_size - new_size;
        page.copy_within(upper..range.start, new_upper);
        set_upper(page, new_upper);
        shift_items(page, range.start, old_size.cast_signed() - new_size.cast_signed())?;
    }
    let id = item_id(page, item)?;
    set_item_id(page, item, ItemId { offset: new_start as u16, length: bytes.len() as u16, ..id })?;
    page[new_start..new_start + bytes.len()].copy_from_slice(bytes);
    Ok(())
}

/// Packs the items of a heap page against its end, in the order of their line pointers, and drops
/// unused line pointers at the end of their array (`PageRepairFragmentation` of PostgreSQL 15).
///
/// # Errors
/// [`PageError`] if the page is corrupt.
pub fn repair_fragmentation(page: &mut Page) -> Result<(), PageError> {
    let (lower, upper, special) = bounds(page)?;
    let count = max_offset(page);
    let mut together = 0;
    for item in 1..=count {
        let id = item_id(page, item)?;
        if id.is_used() && id.has_storage() {
            let offset = usize::from(id.offset);
            let size = max_align(id.length.into());
            if offset < upper || offset + size > special {
                return Err(place_error(page, item, id));
            }
            together += size;
        }
    }
    check_together(page, together)?;

    let old = *page;
    let mut packer = Packer::new(page);
    let mut last_used = 0;
    let mut unused = 0;
    for item in 1..=count {
        let id = item_id(&old, item)?;
        if !id.is_used() {
            unused += 1;
            set_item_id(packer.page, item, ItemId::UNUSED)?;
            continue;
        }
        last_used = item;
        if id.has_storage() {
            let id = packer.place(&old, id);
            set_item_id(packer.page, item, id)?;
        }
    }
    packer.finish();
    let dropped = count - last_used;
    set_lower(page, lower - usize::from(dropped) * ITEM_ID_SIZE);
    hint_free_lines(page, unused > dropped);
    Ok(())
}

/// Drops unused line pointers at the end of a heap page's array, but never the first one
/// (`PageTruncateLinePointerArray`).
///
/// # Errors
/// [`PageError`] if the page is corrupt.
pub fn truncate_line_pointers(page: &mut Page) -> Result<(), PageError> {
    let (lower, _, _) = bounds(page)?;
    let count = max_offset(page);
    let mut kept = count;
    while kept > 1 && !item_id(page, kept)?.is_used() {
        kept -= 1;
    }
    let mut any_unused = false;
    for item in 1..=kept {
        any_unused |= !item_id(page, item)?.is_used();
    }
    set_lower(page, lower - usize::from(count - kept) * ITEM_ID_SIZE);
    hint_free_lines(page, any_unused);
    Ok(())
}

/// How many bytes of items can be added to a heap page, each with a new line pointer
/// (`PageGetHeapFreeSpace`): none if the line pointers have reached their limit and no unused one
/// is known.
#[must_use]
pub fn heap_free_space(page: &Page) -> u16 {
    let space = upper(page).saturating_sub(walfmt::page::lower(page));
    let space = space.saturating_sub(ITEM_ID_SIZE as u16);
    let count = max_offset(page);
    if count < HEAP_ITEMS_MAX {
        return space;
    }
    let mut items = 1..=count;
    let unused = |item| item_id(page, item).is_ok_and(|id| !id.is_used());
    if flags(page) & PD_HAS_FREE_LINES != 0 && items.any(unused) { space } else { 0 }
}

/// Lays items out below the special space, one after the other.
///
/// PostgreSQL moves what it can in place and copies the rest through a buffer; since 14 the result
/// is the same either way, the order of the line pointers.
struct Packer<'a> {
    page: &'a mut Page,
    upper: usize,
}

impl<'a> Packer<'a> {
    fn new(page: &'a mut Page) -> Self {
        let upper = special(page).into();
        Self { page, upper }
    }

    /// Takes one item over from `old`, padding included. Its place, and that of all together, was
    /// checked.
    fn place(&mut self, old: &Page, id: ItemId) -> ItemId {
        let (start, size) = (usize::from(id.offset), max_align(id.length.into()));
        self.upper -= size;
        self.page[self.upper..self.upper + size].copy_from_slice(&old[start..start + size]);
        ItemId { offset: self.upper as u16, ..id }
    }

    fn finish(self) {
        set_upper(self.page, self.upper);
    }
}

/// Where an item of an index page is; those begin at a multiple of 8.
fn aligned_item_range(page: &Page, item: u16) -> Result<std::ops::Range<usize>, PageError> {
    let range = item_range(page, item)?;
    if range.start.is_multiple_of(8) {
        Ok(range)
    } else {
        Err(place_error(page, item, item_id(page, item)?))
    }
}

fn place_error(page: &Page, item: u16, id: ItemId) -> PageError {
    let ItemId { offset, length, .. } = id;
    PageError::ItemPlace { item, offset, length, upper: upper(page), special: special(page) }
}

/// Items that do not overlap fit between line pointers and special space.
fn check_together(page: &Page, needed: usize) -> Result<(), PageError> {
    let (lower, _, special) = bounds(page)?;
    if needed > special - lower {
        return Err(PageError::ItemsTogether { needed, available: special - lower });
    }
    Ok(())
}

/// The items that begin at or before `upto` have moved by `distance`: so do their line pointers.
fn shift_items(page: &mut Page, upto: usize, distance: isize) -> Result<(), PageError> {
    for item in 1..=max_offset(page) {
        let id = item_id(page, item)?;
        if id.has_storage() && usize::from(id.offset) <= upto {
            let offset = usize::from(id.offset).checked_add_signed(distance);
            let offset = offset.ok_or_else(|| place_error(page, item, id))?;
            set_item_id(page, item, ItemId { offset: offset as u16, ..id })?;
        }
    }
    Ok(())
}

fn hint_free_lines(page: &mut Page, any: bool) {
    let others = flags(page) & !PD_HAS_FREE_LINES;
    set_flags(page, if any { others | PD_HAS_FREE_LINES } else { others });
}

pub(crate) fn set_lower(page: &mut Page, lower: usize) {
    put_u16(page, field::PD_LOWER, lower);
}

pub(crate) fn set_upper(page: &mut Page, upper: usize) {
    put_u16(page, field::PD_UPPER, upper);
}

/// Writes a position inside a page, which is at most 8192.
fn put_u16(page: &mut Page, at: usize, position: usize) {
    put(page, at, (position as u16).to_le_bytes());
}
