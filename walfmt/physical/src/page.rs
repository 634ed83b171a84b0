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

use std::ops::Range;

use smallvec::SmallVec;
use walfmt::bytes::put;
use walfmt::page::{
    HEAP_ITEMS_MAX, ITEM_ID_SIZE, PAGE_HEADER_SIZE, PAGE_SIZE_AND_VERSION, PD_HAS_FREE_LINES,
    bounds, field, item_id_place, max_align, special, upper,
};
pub use walfmt::page::{
    ItemId, PageError, flags, is_new, item, item_id, item_range, lsn, max_offset, prune_xid,
    validate,
};
use walfmt::{BLOCK_SIZE, Lsn, TransactionId};

use crate::Page;

/// How many line pointers fit on a page.
pub(crate) const ITEMS_MAX: usize = (BLOCK_SIZE - PAGE_HEADER_SIZE) / ITEM_ID_SIZE;

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

/// Makes a page that was never used empty, without special space; says whether it was one.
pub(crate) fn init_if_new(page: &mut Page) -> bool {
    let new = is_new(page);
    if new {
        init(page, 0);
    }
    new
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
    place_item(page, item, bytes)
}

/// Puts an item on a heap page as number `item`, which must be unused or the next one
/// (`PageAddItem` with `PAI_OVERWRITE | PAI_IS_HEAP`).
///
/// # Errors
/// [`PageError`] if the page is corrupt or full, or `item` is in use, or not 1..=count+1, or
/// beyond the limit of a heap page.
pub fn put_item(page: &mut Page, item: u16, bytes: &[u8]) -> Result<(), PageError> {
    let range = reserve_item(page, item, bytes.len())?;
    page[range].copy_from_slice(bytes);
    Ok(())
}

/// [`put_item`] for an item that is to be written at the place this gives; until then it is
/// whatever was there.
pub(crate) fn reserve_item(
    page: &mut Page,
    item: u16,
    length: usize,
) -> Result<Range<usize>, PageError> {
    check_heap_item(page, item)?;
    reserve(page, item, length, false)
}

/// Sets a line pointer as [`reserve_item`] does, to a place among the items. There must be room for
/// one more line pointer.
pub(crate) fn set_heap_item(
    page: &mut Page,
    item: u16,
    offset: u16,
    length: usize,
) -> Result<Range<usize>, PageError> {
    check_heap_item(page, item)?;
    if item > max_offset(page) {
        set_lower(page, usize::from(walfmt::page::lower(page)) + ITEM_ID_SIZE);
    }
    set_item_id(page, item, ItemId::normal(offset, length as u16))?;
    let start = usize::from(offset);
    clear_padding(page, start, length);
    Ok(start..start + length)
}

/// An item that begins at this place, if there is one.
pub(crate) fn item_at(page: &Page, offset: u16) -> Option<(u16, ItemId)> {
    let (pointers, _) = page[PAGE_HEADER_SIZE..].as_chunks::<ITEM_ID_SIZE>();
    let pointers = pointers[..max_offset(page).into()].iter().map(|raw| u32::from_le_bytes(*raw));
    (1..)
        .zip(pointers)
        .find(|(_, raw)| *raw as u16 & 0x7FFF == offset && raw >> 17 != 0)
        .map(|(item, raw)| (item, ItemId::from_raw(raw)))
}

/// Whether an item of this number can be put on a heap page.
fn check_heap_item(page: &Page, item: u16) -> Result<(), PageError> {
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
    Ok(())
}

/// Copies an item of an index page in, between its neighbours; see [`reserve`].
fn place_item(page: &mut Page, item: u16, bytes: &[u8]) -> Result<(), PageError> {
    let range = reserve(page, item, bytes.len(), true)?;
    page[range].copy_from_slice(bytes);
    Ok(())
}

/// Makes room for an item below `pd_upper` and sets line pointer `item`, which was checked to be at
/// most one more than there are. `shift` makes room for that among the others. Gives the item's
/// place.
fn reserve(
    page: &mut Page,
    item: u16,
    length: usize,
    shift: bool,
) -> Result<Range<usize>, PageError> {
    if length == 0 {
        return Err(PageError::Argument("an item to be added is empty"));
    }
    let (lower, upper, _) = bounds(page)?;
    let place = PAGE_HEADER_SIZE + (usize::from(item) - 1) * ITEM_ID_SIZE;
    let end = PAGE_HEADER_SIZE + usize::from(max_offset(page)) * ITEM_ID_SIZE;
    let new_lower = if shift || place == end { lower + ITEM_ID_SIZE } else { lower };
    let Some(offset) = upper.checked_sub(max_align(length)).filter(|&offset| offset >= new_lower)
    else {
        return Err(PageError::Full { size: length, free: upper - lower });
    };
    if shift {
        page.copy_within(place..end, place + ITEM_ID_SIZE);
    }
    let id = ItemId::normal(offset as u16, length as u16);
    put(page, place, id.to_raw()?.to_le_bytes());
    set_lower(page, new_lower);
    set_upper(page, offset);
    clear_padding(page, offset, length);
    Ok(offset..offset + length)
}

/// Makes the last bytes that an item takes zeros. What a server leaves there is whatever was there
/// before; here no page shall depend on when it was packed.
fn clear_padding(page: &mut Page, offset: usize, length: usize) {
    put(page, offset + max_align(length) - 8, [0; 8]);
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
    let mut kept: SmallVec<[ItemId; 512]> = SmallVec::new();
    let mut kept_bytes = 0;
    for item in 1..=count {
        let size = max_align(aligned_item_range(page, item)?.len());
        if doomed.next_if_eq(&item).is_none() {
            kept.push(item_id(page, item)?);
            kept_bytes += size;
        }
    }
    if let Some(item) = doomed.next() {
        return Err(if item == 0 || item > count {
            PageError::NoItem { item, count }
        } else {
            PageError::Argument("items to be deleted are not in ascending order")
        });
    }
    check_together(page, kept_bytes)?;

    let mut packing = Packing::below(special(page));
    for (id, place) in kept.iter().zip((PAGE_HEADER_SIZE..).step_by(ITEM_ID_SIZE)) {
        put(page, place, packing.place(id.to_raw()?).to_le_bytes());
    }
    packing.carry_out(page);
    debug_assert!(PAGE_HEADER_SIZE + kept.len() * ITEM_ID_SIZE <= lower);
    set_lower(page, PAGE_HEADER_SIZE + kept.len() * ITEM_ID_SIZE);
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
    repair_line_pointers(page)?;
    let mut packing = Packing::below(special(page));
    let count = max_offset(page);
    let (pointers, _) = page[PAGE_HEADER_SIZE..].as_chunks_mut::<ITEM_ID_SIZE>();
    for pointer in &mut pointers[..count.into()] {
        let raw = u32::from_le_bytes(*pointer);
        *pointer = packing.place(raw).to_le_bytes();
    }
    packing.carry_out(page);
    Ok(())
}

/// The part of [`repair_fragmentation`] that is about line pointers: checks them, clears unused ones
/// and drops those at the end of the array. Gives what the items take together in bytes, padding
/// included.
pub(crate) fn repair_line_pointers(page: &mut Page) -> Result<u16, PageError> {
    let (lower, upper, special) = bounds(page)?;
    let count = max_offset(page);
    let (pointers, _) = page[PAGE_HEADER_SIZE..].as_chunks_mut::<ITEM_ID_SIZE>();
    let pointers = &mut pointers[..count.into()];
    // Without branches, for the sake of vector instructions: this is done for every pruned page.
    let (upper, special) = (upper as u32, special as u32);
    let (mut stored_bytes, mut unused, mut misplaced) = (0_u32, 0_u32, 0_u32);
    for pointer in &mut *pointers {
        let raw = u32::from_le_bytes(*pointer);
        let is_used = u32::from(raw >> 15 & 3 != 0);
        let raw = raw * is_used;
        *pointer = raw.to_le_bytes();
        unused += 1 - is_used;
        let (offset, size) = (raw & 0x7FFF, ((raw >> 17) + 7) & !7);
        let is_outside = u32::from(offset < upper) | u32::from(offset + size > special);
        misplaced |= is_outside & u32::from(size != 0);
        stored_bytes += size;
    }
    if misplaced != 0 {
        return Err(first_misplaced(page));
    }
    let dropped = pointers.iter().rev().take_while(|pointer| **pointer == [0; 4]).count();
    check_together(page, stored_bytes as usize)?;
    set_lower(page, lower - dropped * ITEM_ID_SIZE);
    hint_free_lines(page, unused as usize > dropped);
    Ok(stored_bytes as u16)
}

/// The error about the first item that is not between `pd_upper` and the special space; there is
/// one.
#[cold]
fn first_misplaced(page: &Page) -> PageError {
    let mut ids = (1..=max_offset(page)).filter_map(|item| Some((item, item_id(page, item).ok()?)));
    let outside = |id: ItemId| {
        id.has_storage()
            && (id.offset < upper(page)
                || usize::from(id.offset) + max_align(id.length.into()) > special(page).into())
    };
    let (item, id) = ids.find(|(_, id)| outside(*id)).unwrap_or_default();
    place_error(page, item, id)
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
    heap_free_space_with(page, 0)
}

/// `PageGetFreeSpace`, with these bytes more between line pointers and items: room for one more item
/// and its line pointer, however many there are.
pub(crate) fn free_space_with(page: &Page, gain: u16) -> u16 {
    let space = upper(page).saturating_add(gain).saturating_sub(walfmt::page::lower(page));
    space.saturating_sub(ITEM_ID_SIZE as u16)
}

/// [`heap_free_space`], with these bytes more between line pointers and items.
pub(crate) fn heap_free_space_with(page: &Page, gain: u16) -> u16 {
    let space = free_space_with(page, gain);
    let count = max_offset(page);
    if count < HEAP_ITEMS_MAX {
        return space;
    }
    let mut items = 1..=count;
    let unused = |item| item_id(page, item).is_ok_and(|id| !id.is_used());
    if flags(page) & PD_HAS_FREE_LINES != 0 && items.any(unused) { space } else { 0 }
}

/// Items on their way to lie below the special space, one after the other, in the order of their
/// line pointers.
///
/// Since 14 PostgreSQL gives the same result, whether the items lie in that order already and are
/// moved in place, or not and go through a copy (`compactify_tuples`). Neighbours that stay
/// neighbours move together: a page that was packed before moves in a few runs.
pub(crate) struct Packing {
    /// Where the last item begins.
    target: u16,
    /// Where the run at hand ends.
    run_end: u16,
    /// How far up it moves; downwards it wraps around.
    distance: u16,
    runs: SmallVec<[Run; 64]>,
}

/// Bytes that move together.
#[derive(Clone, Copy)]
struct Run {
    source: u16,
    target: u16,
    length: u16,
}

impl Run {
    const fn source(self) -> Range<usize> {
        self.source as usize..self.source as usize + self.length as usize
    }

    fn move_within(self, page: &mut Page) {
        page.copy_within(self.source(), self.target.into());
    }
}

impl Packing {
    pub(crate) fn below(special: u16) -> Self {
        Self { target: special, run_end: special, distance: 0, runs: SmallVec::new() }
    }

    /// Finds the next item's place; takes and gives its line pointer. Its old place, and what all
    /// items take together, were checked.
    #[inline]
    pub(crate) fn place(&mut self, raw: u32) -> u32 {
        let size = (((raw >> 17) + 7) & !7) as u16;
        if size == 0 {
            return raw;
        }
        let offset = (raw & 0x7FFF) as u16;
        let distance = self.target.wrapping_sub(offset + size);
        if distance != self.distance {
            self.end_run();
            self.distance = distance;
        }
        self.target -= size;
        raw & !0x7FFF | u32::from(self.target)
    }

    fn end_run(&mut self) {
        if self.distance != 0 && self.run_end > self.target {
            self.runs.push(Run {
                source: self.target.wrapping_sub(self.distance),
                target: self.target,
                length: self.run_end - self.target,
            });
        }
        self.run_end = self.target;
    }

    /// Moves the items.
    ///
    /// Most runs lie one below the other, before and after. Such runs are moved in place: first
    /// those that go up, the upper ones first, then those that go down, the lower ones first. A run
    /// that goes up does not reach the old place of one above it that goes down, since its new
    /// place is below that one's new place. Runs that overtake others, as new tuples do whose line
    /// pointers were used before, are put aside and come last.
    pub(crate) fn carry_out(&mut self, page: &mut Page) {
        self.end_run();
        set_upper(page, self.target.into());
        let mut aside: SmallVec<[u8; 1024]> = SmallVec::new();
        let mut highest = 0; // of the runs behind the one at hand
        let mut overtakes: SmallVec<[bool; 64]> = SmallVec::from_elem(false, self.runs.len());
        for (run, overtakes) in self.runs.iter().zip(&mut overtakes).rev() {
            *overtakes = run.source().start < highest;
            highest = highest.max(run.source().end);
        }
        let runs = || self.runs.iter().zip(&overtakes);
        let overtaking = || runs().filter_map(|(run, overtakes)| overtakes.then_some(*run));
        let others = || runs().filter_map(|(run, overtakes)| (!overtakes).then_some(*run));
        for run in overtaking() {
            aside.extend_from_slice(&page[run.source()]);
        }
        for run in others().filter(|run| run.target > run.source) {
            run.move_within(page);
        }
        for run in others().rev().filter(|run| run.target < run.source) {
            run.move_within(page);
        }
        let mut rest = &aside[..];
        for run in overtaking() {
            let (bytes, behind) = rest.split_at(run.length.into());
            page[usize::from(run.target)..][..bytes.len()].copy_from_slice(bytes);
            rest = behind;
        }
    }
}

/// Where an item of an index page is; those begin at a multiple of 8.
fn aligned_item_range(page: &Page, item: u16) -> Result<Range<usize>, PageError> {
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

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use walfmt::page::{LP_DEAD, PD_ALL_VISIBLE, lower};

    use super::*;

    const SPECIAL_SIZE: usize = 16;

    fn empty(special_size: usize) -> Page {
        let mut page = [0xAA; BLOCK_SIZE];
        init(&mut page, special_size);
        page
    }

    fn with_items(items: &[&[u8]]) -> Page {
        let mut page = empty(0);
        for (number, item) in (1..).zip(items) {
            put_item(&mut page, number, item).expect("fits");
        }
        page
    }

    /// The header is valid, and the items lie where items can be, do not overlap, and fill the
    /// space between `pd_upper` and the special space.
    fn check(page: &Page, packed: bool) -> Result<(), String> {
        validate(page).map_err(|error| error.to_string())?;
        let mut ranges = Vec::new();
        for number in 1..=max_offset(page) {
            if item_id(page, number).expect("in range").has_storage() {
                let range = item_range(page, number).map_err(|error| error.to_string())?;
                ranges.push((range.start, range.start + max_align(range.len())));
            }
        }
        ranges.sort_unstable();
        let mut end = usize::from(upper(page));
        for (start, item_end) in ranges {
            if start < end || packed && start != end {
                return Err(format!("item at {start}, the one before ends at {end}"));
            }
            end = item_end;
        }
        let special = usize::from(special(page));
        if end > special || packed && end != special {
            return Err(format!("items end at {end}, special space begins at {special}"));
        }
        Ok(())
    }

    fn items(page: &Page) -> Vec<Vec<u8>> {
        (1..=max_offset(page)).map(|number| item(page, number).expect("stored").to_vec()).collect()
    }

    #[test]
    fn init_is_page_init() {
        let page = empty(9);
        assert_eq!(page[12..20], [24, 0, 0xF0, 0x1F, 0xF0, 0x1F, 4, 0x20]);
        assert!(page[..12].iter().chain(&page[20..]).all(|&byte| byte == 0));
        assert!(!is_new(&page));
        assert!(is_new(&[0; BLOCK_SIZE]));
    }

    #[test]
    fn lsn_is_stored_in_two_halves() {
        let mut page = empty(0);
        set_lsn(&mut page, Lsn(0x0000_0016_B374_D848));
        assert_eq!(page[..8], [0x16, 0, 0, 0, 0x48, 0xD8, 0x74, 0xB3]);
        assert_eq!(lsn(&page), Lsn(0x0000_0016_B374_D848));
    }

    #[test]
    fn index_items_move_up_and_down() {
        let mut page = empty(SPECIAL_SIZE);
        add_item(&mut page, 1, b"one").expect("fits");
        add_item(&mut page, 2, b"three").expect("fits");
        add_item(&mut page, 2, b"two, longer").expect("fits");
        assert_eq!(items(&page), [&b"one"[..], b"two, longer", b"three"]);
        assert_eq!(item_id(&page, 2), Ok(ItemId::normal(8176 - 32, 11)));
        assert_eq!(
            add_item(&mut page, 5, b"x"),
            Err(PageError::Beyond { item: 5, count: 3, limit: 4 })
        );

        delete_item(&mut page, 1).expect("is there");
        assert_eq!(items(&page), [&b"two, longer"[..], b"three"]);
        assert_eq!(item_id(&page, 1), Ok(ItemId::normal(8176 - 24, 11)));
        assert_eq!(item_id(&page, 2), Ok(ItemId::normal(8176 - 8, 5)));
        overwrite_item(&mut page, 2, b"three grew").expect("fits");
        assert_eq!(items(&page), [&b"two, longer"[..], b"three grew"]);
        assert_eq!(item_id(&page, 1), Ok(ItemId::normal(8176 - 32, 11)));
        check(&page, true).expect("valid");
    }

    #[test]
    fn overwriting_keeps_line_pointer_flags() {
        let mut page = empty(SPECIAL_SIZE);
        add_item(&mut page, 1, b"one").expect("fits");
        let id = item_id(&page, 1).expect("is there");
        set_item_id(&mut page, 1, ItemId { flags: LP_DEAD, ..id }).expect("is there");
        overwrite_item(&mut page, 1, b"another").expect("fits");
        assert_eq!(item_id(&page, 1), Ok(ItemId { flags: LP_DEAD, length: 7, ..id }));
    }

    #[test]
    fn deleting_many_brings_items_into_the_order_of_their_numbers() {
        let mut page = empty(SPECIAL_SIZE);
        for text in ["e", "d", "c", "b", "a"] {
            add_item(&mut page, 1, text.as_bytes()).expect("fits"); // physically e d c b a
        }
        let mut few = page;
        delete_items(&mut few, &[2, 4]).expect("are there");
        assert_eq!(items(&few), [b"a", b"c", b"e"]);
        assert_eq!(item_id(&few, 1).expect("is there").offset, 8176 - 24);

        let mut many = page;
        delete_items(&mut many, &[2, 3, 4]).expect("are there");
        assert_eq!(items(&many), [b"a", b"e"]);
        assert_eq!(item_id(&many, 1).expect("is there").offset, 8176 - 8);
        assert_eq!(item_id(&many, 2).expect("is there").offset, 8176 - 16);
        delete_items(&mut page, &[1, 2, 3, 4, 5]).expect("are there");
        assert_eq!((lower(&page), upper(&page)), (24, 8176));

        for wrong in [[1, 3, 2], [1, 2, 6], [0, 1, 2]] {
            assert!(delete_items(&mut few.clone(), &wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn heap_items_fill_only_free_line_pointers() {
        let mut page = with_items(&[b"one", b"two"]);
        assert_eq!(
            put_item(&mut page, 1, b"x"),
            Err(PageError::InUse { item: 1, flags: 1, length: 3 })
        );
        assert!(matches!(put_item(&mut page, 4, b"x"), Err(PageError::Beyond { .. })));
        set_item_id(&mut page, 1, ItemId::UNUSED).expect("is there");
        put_item(&mut page, 1, b"new").expect("is free");
        assert_eq!(items(&page), [b"new", b"two"]);
        assert_eq!(lower(&page), 32);

        let mut full = empty(0);
        for number in 1..=HEAP_ITEMS_MAX {
            put_item(&mut full, number, b"x").expect("fits");
        }
        assert!(matches!(
            put_item(&mut full, 292, b"x"),
            Err(PageError::Beyond { limit: 291, .. })
        ));
        assert_eq!(heap_free_space(&full), 0);
        set_item_id(&mut full, 7, ItemId::UNUSED).expect("is there");
        assert_eq!(heap_free_space(&full), 0);
        set_flags(&mut full, PD_HAS_FREE_LINES);
        assert_eq!(heap_free_space(&full), 8192 - 24 - 291 * 12 - 4);
    }

    #[test]
    fn repair_packs_and_drops_unused_line_pointers_at_the_end() {
        let mut page = with_items(&[b"one", b"two two two", b"three", b"four", b"five"]);
        set_flags(&mut page, PD_ALL_VISIBLE);
        let four = item_id(&page, 4).expect("is there");
        set_item_id(&mut page, 1, ItemId::redirect(4)).expect("is there");
        set_item_id(&mut page, 2, four).expect("is there"); // so the order is no longer physical
        set_item_id(&mut page, 4, ItemId::UNUSED).expect("is there");
        set_item_id(&mut page, 5, ItemId { offset: 99, ..ItemId::UNUSED }).expect("is there");
        repair_fragmentation(&mut page).expect("valid page");
        assert_eq!(max_offset(&page), 3);
        assert_eq!(item_id(&page, 1), Ok(ItemId::redirect(4)));
        assert_eq!(item_id(&page, 2), Ok(ItemId::normal(8184, 4)));
        assert_eq!(item_id(&page, 3), Ok(ItemId::normal(8176, 5)));
        assert_eq!((item(&page, 2), item(&page, 3)), (Ok(&b"four"[..]), Ok(&b"three"[..])));
        assert_eq!((upper(&page), flags(&page)), (8176, PD_ALL_VISIBLE));

        set_item_id(&mut page, 2, ItemId::UNUSED).expect("is there");
        repair_fragmentation(&mut page).expect("valid page");
        assert_eq!((max_offset(&page), upper(&page)), (3, 8184));
        assert_eq!(flags(&page), PD_ALL_VISIBLE | PD_HAS_FREE_LINES);
        for number in 1..=3 {
            set_item_id(&mut page, number, ItemId::UNUSED).expect("is there");
        }
        repair_fragmentation(&mut page).expect("valid page");
        assert_eq!((lower(&page), upper(&page), flags(&page)), (24, 8192, PD_ALL_VISIBLE));
    }

    #[test]
    fn truncation_keeps_the_first_line_pointer() {
        let mut page = with_items(&[b"one", b"two", b"three"]);
        let space = upper(&page);
        set_item_id(&mut page, 3, ItemId::UNUSED).expect("is there");
        truncate_line_pointers(&mut page).expect("valid page");
        assert_eq!((max_offset(&page), flags(&page)), (2, 0));
        for number in 1..=2 {
            set_item_id(&mut page, number, ItemId::UNUSED).expect("is there");
        }
        truncate_line_pointers(&mut page).expect("valid page");
        assert_eq!((max_offset(&page), flags(&page)), (1, PD_HAS_FREE_LINES));
        assert_eq!(upper(&page), space);
    }

    #[test]
    fn items_outside_the_page_are_refused() {
        let good = with_items(&[b"one", b"two", b"three", b"four"]);
        for spoiled in
            [ItemId::normal(8188, 5), ItemId::normal(24, 8), ItemId::normal(0x7FFF, 0x7FFF)]
        {
            let mut page = good;
            set_item_id(&mut page, 2, spoiled).expect("is there");
            assert!(matches!(item(&page, 2), Err(PageError::ItemPlace { item: 2, .. })));
            assert!(repair_fragmentation(&mut page.clone()).is_err());
            assert!(delete_item(&mut page.clone(), 2).is_err());
            assert!(delete_items(&mut page.clone(), &[1, 3, 4]).is_err());
            assert!(overwrite_item(&mut page, 2, b"x").is_err());
        }
        assert!(repair_fragmentation(&mut good.clone()).is_ok());
        assert!(delete_items(&mut good.clone(), &[1, 3, 4]).is_ok());
    }

    fn is_full(error: PageError) -> bool {
        matches!(error, PageError::Full { .. })
    }

    #[derive(Clone, Debug)]
    enum Step {
        Add(u16, Vec<u8>),
        Overwrite(u16, Vec<u8>),
        Delete(u16),
        DeleteMany(Vec<u16>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let bytes = || prop::collection::vec(any::<u8>(), 1..600);
        prop::collection::vec(
            prop_oneof![
                4 => (any::<u16>(), bytes()).prop_map(|(at, bytes)| Step::Add(at, bytes)),
                2 => (any::<u16>(), bytes()).prop_map(|(at, bytes)| Step::Overwrite(at, bytes)),
                1 => any::<u16>().prop_map(Step::Delete),
                1 => prop::collection::vec(any::<u16>(), 0..9).prop_map(Step::DeleteMany),
            ],
            0..120,
        )
    }

    proptest! {
        #[test]
        fn an_index_page_holds_what_its_model_holds(steps in steps()) {
            let mut page = empty(SPECIAL_SIZE);
            page[BLOCK_SIZE - SPECIAL_SIZE..].fill(0x5A);
            let mut model: Vec<Vec<u8>> = Vec::new();
            for step in steps {
                let count = model.len() as u16;
                match step {
                    Step::Add(at, bytes) => {
                        let at = at % (count + 1);
                        match add_item(&mut page, at + 1, &bytes) {
                            Ok(()) => model.insert(at.into(), bytes),
                            Err(error) => prop_assert!(is_full(error), "{error}"),
                        }
                    }
                    Step::Overwrite(at, bytes) if count > 0 => {
                        let at = at % count;
                        match overwrite_item(&mut page, at + 1, &bytes) {
                            Ok(()) => model[usize::from(at)] = bytes,
                            Err(error) => prop_assert!(is_full(error), "{error}"),
                        }
                    }
                    Step::Delete(at) if count > 0 => {
                        delete_item(&mut page, at % count + 1).expect("is there");
                        model.remove(usize::from(at % count));
                    }
                    Step::DeleteMany(at) if count > 0 => {
                        let mut numbers: Vec<u16> = at.iter().map(|at| at % count + 1).collect();
                        numbers.sort_unstable();
                        numbers.dedup();
                        delete_items(&mut page, &numbers).expect("are there");
                        for number in numbers.iter().rev() {
                            model.remove(usize::from(*number) - 1);
                        }
                    }
                    _ => {}
                }
                prop_assert_eq!(check(&page, true), Ok(()));
                prop_assert_eq!(items(&page), model.clone());
            }
            prop_assert!(page[BLOCK_SIZE - SPECIAL_SIZE..].iter().all(|&byte| byte == 0x5A));
            // Negative control: the comparison sees one changed byte.
            if let Some(last) = model.last_mut() {
                last[0] ^= 1;
                prop_assert_ne!(items(&page), model);
            }
        }

        #[test]
        fn repair_keeps_what_is_used(
            texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 1..100),
            keep in prop::collection::vec(any::<bool>(), 100),
        ) {
            let mut page = with_items(&texts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            for number in 1..=texts.len() as u16 {
                if !keep[usize::from(number) - 1] {
                    set_item_id(&mut page, number, ItemId::UNUSED).expect("is there");
                }
            }
            repair_fragmentation(&mut page).expect("valid page");
            prop_assert_eq!(check(&page, true), Ok(()));
            for (number, (text, kept)) in (1..).zip(texts.iter().zip(keep)) {
                if kept {
                    prop_assert_eq!(item(&page, number), Ok(text.as_slice()));
                } else {
                    prop_assert!(item(&page, number).is_err());
                }
            }
            let last = item_id(&page, max_offset(&page));
            prop_assert!(max_offset(&page) == 0 || last.expect("in range").is_used());
        }

        #[test]
        fn repair_brings_items_into_the_order_of_their_line_pointers(
            rounds in prop::collection::vec(
                prop::collection::vec((0..60_usize, prop::collection::vec(any::<u8>(), 1..150)), 1..40),
                1..8,
            ),
        ) {
            let mut page = empty(0);
            let mut model: Vec<Option<Vec<u8>>> = Vec::new();
            for round in rounds {
                // Take away what is there at these numbers, pack, and put other items there.
                for (at, _) in &round {
                    if let Some(old @ Some(_)) = model.get_mut(*at) {
                        *old = None;
                        set_item_id(&mut page, *at as u16 + 1, ItemId::UNUSED).expect("is there");
                    }
                }
                repair_fragmentation(&mut page).expect("valid page");
                while model.pop_if(|item| item.is_none()).is_some() {}
                prop_assert_eq!(usize::from(max_offset(&page)), model.len());
                prop_assert_eq!(check(&page, true), Ok(()));
                let mut above = special(&page);
                for (number, expected) in (1..).zip(&model) {
                    let id = item_id(&page, number).expect("in range");
                    prop_assert_eq!(id.is_used(), expected.is_some());
                    if let Some(expected) = expected {
                        prop_assert_eq!(item(&page, number), Ok(expected.as_slice()));
                        prop_assert!(id.offset < above, "in order");
                        above = id.offset;
                    }
                }
                for (at, bytes) in round {
                    let at = at.min(model.len());
                    if at == model.len() {
                        model.push(None);
                    }
                    if model[at].is_none() {
                        match put_item(&mut page, at as u16 + 1, &bytes) {
                            Ok(()) => model[at] = Some(bytes),
                            Err(error) => prop_assert!(is_full(error), "{error}"),
                        }
                        if at + 1 > max_offset(&page).into() {
                            model.pop();
                        }
                    }
                }
            }
        }

        #[test]
        fn no_page_makes_a_primitive_panic(page in any_page(), item in 0..300_u16, bytes in prop::collection::vec(any::<u8>(), 0..9000)) {
            let _ = validate(&page);
            let _ = heap_free_space(&page);
            let _ = super::item(&page, item);
            let _ = add_item(&mut page.clone(), item, &bytes);
            let _ = put_item(&mut page.clone(), item, &bytes);
            let _ = overwrite_item(&mut page.clone(), item, &bytes);
            let _ = delete_item(&mut page.clone(), item);
            let _ = delete_items(&mut page.clone(), &[item, item + 1, item + 5]);
            let _ = repair_fragmentation(&mut page.clone());
            let _ = truncate_line_pointers(&mut page.clone());
        }
    }

    /// Random bytes under a header that is random, or makes sense, so that the checks behind the
    /// header's are reached too.
    pub(crate) fn any_page() -> impl Strategy<Value = Page> {
        let header = (24..400_u16, 0..8192_u16, 0..=8192_u16, any::<bool>());
        (any::<u64>(), header, any::<bool>()).prop_map(|(seed, header, random_header)| {
            let mut state = seed | 1;
            let mut page = [0; BLOCK_SIZE];
            for byte in &mut page {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                *byte = (state >> 24) as u8;
            }
            if !random_header {
                let (low, up, end, btree) = header;
                let special = if btree { 8176 } else { end.max(400) / 8 * 8 };
                put(&mut page, field::PD_SPECIAL, special.to_le_bytes());
                put(&mut page, field::PD_LOWER, low.to_le_bytes());
                put(&mut page, field::PD_UPPER, up.clamp(low, special).to_le_bytes());
            }
            page
        })
    }
}
