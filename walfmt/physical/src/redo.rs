//! What a change does to its page.
//!
//! ```text
//! the record                         the page                result
//! has an image to apply              any                     the image; LSN, unless it is new
//! rebuilds the page                  any                     zeros, then the handler; LSN
//! otherwise                          all zero or not there   missing
//!                                    LSN >= record's end     as it was
//!                                    older                   the handler; LSN
//! ```
//!
//! Rules: `XLogReadBufferForRedoExtended` in `src/backend/access/transam/xlogutils.c`.

use walfmt::bytes::u16_at;
use walfmt::record::RecordHeader;
use walfmt::relation::{BLOCK_SIZE, PageId};
use walfmt::rmgr::btree as btree_records;
use walfmt::rmgr::{RmgrId, heap as heap_records, heap2 as heap2_records};
use walfmt::{BlockReference, Record};

use crate::fault::Fault;
use crate::{
    Loose, Page, PageChange, PageNeed, PageOutcome, RedoContext, RedoError, btree, freespace,
    generic, heap, heap2, page, sequence, visibilitymap,
};

/// Free space below this is told to the free space map after an insert, in bytes.
const LOW_FREE_SPACE: u16 = BLOCK_SIZE as u16 / 5;

/// What the page's owner must have at hand for this change.
#[must_use]
pub fn page_need(record: &Record<'_>, change: PageChange) -> PageNeed {
    match change {
        PageChange::Block(index) => match record.blocks.get(usize::from(index)) {
            Some(block) if block.image_to_apply().is_some() || block.will_init => PageNeed::Nothing,
            Some(block) if is_map_page(record, block) => PageNeed::ExistingOrZero,
            _ => PageNeed::Existing,
        },
        PageChange::ClearVisibility { .. } | PageChange::RecordFreeSpace { .. } => {
            PageNeed::ExistingOrZero
        }
        PageChange::TruncateVisibility { .. } | PageChange::TruncateFreeSpace { .. } => {
            PageNeed::IfExists
        }
    }
}

/// The item that a record's change to an existing page looks at, found in passing: for whoever wants
/// to bring it near before the record's turn. `record` begins with the record's bytes. A guess: it is
/// wrong where the record carries more than it must (`wal_level = logical`).
#[inline]
#[must_use]
pub fn likely_item(record: &[u8]) -> Option<u16> {
    let header = RecordHeader::from_bytes(record);
    // Main data is last. Where in it the item's number is, from its end, and which one that is from
    // there: the one before the new one holds the posting list.
    let (from_end, before) = match (header.rmgr, header.info & heap_records::OPCODE_MASK) {
        // SizeOfHeapUpdate, SizeOfHeapDelete and SizeOfHeapLock; all begin with an xmax.
        (RmgrId::HEAP, heap_records::UPDATE | heap_records::HOT_UPDATE) => (14 - 4, 0),
        (RmgrId::HEAP, heap_records::DELETE | heap_records::LOCK) => (8 - 4, 0),
        _ => match (header.rmgr, header.opcode()) {
            (RmgrId::BTREE, btree_records::XLOG_BTREE_INSERT_LEAF) => (2, 0),
            (RmgrId::BTREE, btree_records::XLOG_BTREE_INSERT_POST) => (2, 1),
            _ => return None,
        },
    };
    let item = u16_at(record, (header.total_length as usize).checked_sub(from_end)?);
    Some(item.saturating_sub(before))
}

/// Changes one page as the record says. `page_id` is the page that `route` named; `loose` is what was
/// left to be done to it before, and is kept beside it.
///
/// # Errors
/// [`RedoError`] if the record's contents and the page do not fit together; the page may then be
/// changed in part and must not be kept.
pub fn redo_page(
    record: &Record<'_>,
    change: PageChange,
    page_id: PageId,
    page: &mut Page,
    loose: &mut Loose,
    context: &RedoContext,
) -> Result<PageOutcome, RedoError> {
    let changed = |changed| Ok(PageOutcome::new(changed, None));
    let outcome = match change {
        PageChange::Block(index) => match record.blocks.get(usize::from(index)) {
            Some(block) => redo_block(record, block, page, loose, context),
            None => Err(Fault::corrupt(format!("no block reference number {index}"))),
        },
        PageChange::ClearVisibility { heap_block, bits } => {
            changed(visibilitymap::clear(page, heap_block, bits))
        }
        // An image that came with a later record says what this slot held then.
        PageChange::RecordFreeSpace { .. } if page::lsn(page) > record.start => changed(false),
        PageChange::RecordFreeSpace { heap_block, free_bytes } => {
            changed(freespace::record(page, heap_block, free_bytes))
        }
        PageChange::TruncateVisibility { heap_blocks } => {
            visibilitymap::truncate(page, heap_blocks);
            changed(true)
        }
        PageChange::TruncateFreeSpace { heap_blocks } => {
            freespace::truncate(page, page_id.block, heap_blocks);
            changed(true)
        }
    };
    outcome.map_err(|fault| fault.on(page_id).of(record))
}

/// How a page stands to its record, and with that what was done to it (`XLogRedoAction`).
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    /// Replaced by an image (`BLK_RESTORED`).
    Restored,
    /// Changed by the handler (`BLK_NEEDS_REDO`).
    Redone,
    /// Newer than the record (`BLK_DONE`).
    Done,
}

fn redo_block(
    record: &Record<'_>,
    block: &BlockReference<'_>,
    page: &mut Page,
    loose: &mut Loose,
    context: &RedoContext,
) -> Result<PageOutcome, Fault> {
    let mut changed = true;
    let action = if let Some(image) = block.image_to_apply() {
        loose.reset();
        image.restore(page)?;
        if !page::is_new(page) {
            page::set_lsn(page, record.end);
        }
        Action::Restored
    } else {
        let map = is_map_page(record, block);
        if block.will_init {
            loose.reset();
            page.fill(0);
        } else if page::is_new(page) && !map {
            return Ok(PageOutcome::MISSING);
        }
        if !block.will_init && record.end <= page::lsn(page) {
            changed = false;
            Action::Done
        } else {
            changed = if map {
                redo_map(record, block, page)?
            } else {
                redo_relation_page(record, block, page, loose, context)?
            };
            Action::Redone
        }
    };
    let free_space = free_space(record, block, page, loose, action);
    Ok(PageOutcome::new(changed, free_space))
}

/// Calls the handler of the record's resource manager and stamps the page. Says whether the page
/// changed.
fn redo_relation_page(
    record: &Record<'_>,
    block: &BlockReference<'_>,
    page: &mut Page,
    loose: &mut Loose,
    context: &RedoContext,
) -> Result<bool, Fault> {
    let mut stamp = true;
    if !matches!(record.header.rmgr, RmgrId::HEAP | RmgrId::HEAP2) {
        loose.pack(page); // others may speak of places on the page
    }
    match record.header.rmgr {
        RmgrId::HEAP => heap::redo(record, block, page, loose)?,
        RmgrId::HEAP2 if is_visible(record) => {
            // Nothing on the page is looked at, so a torn write does no harm, and without
            // checksums nobody can notice one: the page may keep its LSN.
            heap::set_all_visible(page);
            stamp = context.hint_bits_are_logged;
        }
        RmgrId::HEAP2 => heap2::redo(record, block, page, loose)?,
        RmgrId::BTREE => btree::redo(record, block, page).map_err(Fault::corrupt_by)?,
        RmgrId::SEQUENCE => sequence::redo(record, page)?,
        RmgrId::GENERIC => generic::redo(block, page)?,
        RmgrId::XLOG => return Err(Fault::corrupt("no image to apply")),
        _ => return Err(Fault::Unsupported("pages of this resource manager")),
    }
    if stamp {
        page::set_lsn(page, record.end);
    }
    Ok(true)
}

/// Changes a page of the visibility map that the record refers to. It is stamped only if bits
/// change. Says whether the page changed.
fn redo_map(
    record: &Record<'_>,
    block: &BlockReference<'_>,
    page: &mut Page,
) -> Result<bool, Fault> {
    if is_visible(record) {
        heap2::redo_visible_map(record, page)
    } else {
        let clears = heap::clears_of(record)?;
        Ok(heap::clear_registered(&clears, block, record.end, page))
    }
}

fn is_map_page(record: &Record<'_>, block: &BlockReference<'_>) -> bool {
    (is_visible(record) && block.id == 0) || heap::is_registered_map(record, block)
}

fn is_visible(record: &Record<'_>) -> bool {
    record.header.rmgr == RmgrId::HEAP2
        && record.header.info & heap2_records::OPCODE_MASK == heap2_records::VISIBLE
}

/// What the free space map is told of a heap page: after inserts only if it is nearly full and was
/// not restored, after pruning and vacuum always.
fn free_space(
    record: &Record<'_>,
    block: &BlockReference<'_>,
    page: &Page,
    loose: &Loose,
    action: Action,
) -> Option<u16> {
    let opcode = record.header.info & heap_records::OPCODE_MASK;
    let heap_free_space = || page::heap_free_space_with(page, loose.gain(page));
    let low = || {
        let free = heap_free_space();
        (action == Action::Redone && free < LOW_FREE_SPACE).then_some(free)
    };
    match (record.header.rmgr, opcode, block.id) {
        (RmgrId::HEAP, heap_records::INSERT | heap_records::UPDATE, 0)
        | (RmgrId::HEAP2, heap2_records::MULTI_INSERT, 0) => low(),
        (RmgrId::HEAP2, heap2_records::PRUNE | heap2_records::VACUUM, 0) => Some(heap_free_space()),
        (RmgrId::HEAP2, heap2_records::VISIBLE, 1) => {
            Some(page::free_space_with(page, loose.gain(page)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walfmt::image::{BlockImage, Compression};
    use walfmt::page::{HeapTupleHeader, ItemPointer, PD_ALL_VISIBLE};
    use walfmt::relation::ForkNumber;
    use walfmt::rmgr::heap::{delete_flags, infobits, update_flags};
    use walfmt::{Lsn, TransactionId};

    use super::*;
    use crate::fixture::{Calls, END, XID, block, context, heap_page, page_id, record};
    use crate::{RouteError, route};

    const HEAP: PageId = PageId {
        locator: walfmt::RelFileLocator { tablespace: 1663, database: 5, relation: 16384 },
        fork: ForkNumber::Main,
        block: 6,
    };

    fn redo(record: &Record<'_>, index: u8, page: &mut Page) -> Result<PageOutcome, RedoError> {
        let id = record.blocks[usize::from(index)].page;
        redo_page(record, PageChange::Block(index), id, page, &mut Loose::default(), &context())
    }

    fn tuple(page: &Page, item: u16) -> HeapTupleHeader {
        HeapTupleHeader::read(page::item(page, item).expect("an item")).expect("a tuple")
    }

    #[test]
    fn free_space_told_late_does_not_touch_a_later_image() {
        let insert = record(RmgrId::HEAP, heap_records::INSERT, &[], &[]);
        let map_page = crate::free_space_page(HEAP);
        let change = PageChange::RecordFreeSpace { heap_block: HEAP.block, free_bytes: 320 };
        let mut page = [0; BLOCK_SIZE];
        page::init(&mut page, 0);
        for (lsn, changes) in [(insert.start.advance(1), false), (insert.start, true)] {
            page::set_lsn(&mut page, lsn);
            let outcome =
                redo_page(&insert, change, map_page, &mut page, &mut Loose::default(), &context());
            assert_eq!(outcome.expect("sound").changed(), changes, "a page as of {lsn}");
        }
    }

    #[test]
    fn a_page_is_changed_once() {
        let main = [9, 0, 0, 0, 1, 0, infobits::KEYS_UPDATED, 0];
        let blocks = [block(0, HEAP, &[])];
        let delete = record(RmgrId::HEAP, heap_records::DELETE, &main, &blocks);
        let mut page = heap_page(2);
        assert!(redo(&delete, 0, &mut page).expect("sound").changed());
        assert_eq!((page::lsn(&page), page::prune_xid(&page)), (END, XID));
        let deleted = tuple(&page, 1);
        assert_eq!((deleted.xmax, deleted.infomask2), (TransactionId(9), 0x2000));
        assert_eq!(deleted.ctid, ItemPointer { block: 6, offset: 1 });

        let before = page;
        assert_eq!(redo(&delete, 0, &mut page).expect("sound"), PageOutcome::default());
        assert_eq!(page, before);
    }

    #[test]
    fn a_new_page_is_missing() {
        let blocks = [block(0, HEAP, &[])];
        let confirm = record(RmgrId::HEAP, heap_records::CONFIRM, &[1, 0], &blocks);
        let outcome = redo(&confirm, 0, &mut [0; BLOCK_SIZE]).expect("no contradiction");
        assert_eq!(outcome, PageOutcome::MISSING);
    }

    #[test]
    fn an_image_replaces_even_a_newer_page() {
        let (image, zeros) = (heap_page(3), [0; BLOCK_SIZE]);
        let mut blocks = [block(0, HEAP, &[])];
        blocks[0].image = Some(BlockImage {
            bytes: &image,
            hole_offset: 0,
            hole_length: 0,
            compression: Compression::None,
            apply: true,
        });
        let fpi = record(RmgrId::XLOG, walfmt::rmgr::xlog::FPI, &[], &blocks);
        let mut page = heap_page(1);
        page::set_lsn(&mut page, Lsn(u64::MAX));
        assert!(redo(&fpi, 0, &mut page).expect("sound").changed());
        assert_eq!((page::lsn(&page), page::max_offset(&page)), (END, 3));
        assert_eq!(page_need(&fpi, PageChange::Block(0)), PageNeed::Nothing);

        blocks[0].image.as_mut().expect("just set").bytes = &zeros;
        let fpi = record(RmgrId::XLOG, walfmt::rmgr::xlog::FPI, &[], &blocks);
        redo(&fpi, 0, &mut page).expect("sound");
        assert_eq!(page, zeros, "no LSN on a new page");
    }

    #[test]
    fn an_update_takes_bytes_from_the_old_tuple() {
        let mut main = [0; 14];
        main[4] = 1;
        main[7] = update_flags::PREFIX_FROM_OLD | update_flags::SUFFIX_FROM_OLD;
        main[12] = 2;
        // prefix 2, suffix 3, natts 1, no infomask, hoff 24; bitmap or padding; one byte
        let data = [2, 0, 3, 0, 1, 0, 0x20, 0, 24, 0, 0x55];
        let blocks = [block(0, HEAP, &data)];
        let update = record(RmgrId::HEAP, heap_records::HOT_UPDATE, &main, &blocks);
        let mut page = heap_page(1);
        redo(&update, 0, &mut page).expect("sound");
        let old = tuple(&page, 1);
        assert_eq!((old.ctid, old.infomask2), (ItemPointer { block: 6, offset: 2 }, 0x4000));
        let new = tuple(&page, 2);
        assert_eq!((new.xmin, new.infomask), (XID, 0), "no combo command id");
        let attributes = &page::item(&page, 2).expect("an item")[24..];
        assert_eq!(attributes, [0xAA, 0xAA, 0x55, 0xAA, 0xAA, 0xAA]);

        let data = [9, 0, 0, 0, 1, 0, 0, 0, 24, 0];
        let blocks = [block(0, HEAP, &data)];
        let update = record(RmgrId::HEAP, heap_records::HOT_UPDATE, &main, &blocks);
        let error = redo(&update, 0, &mut heap_page(1)).expect_err("9 bytes of 8");
        assert!(error.to_string().contains("from the old one, which has 8"), "{error}");
    }

    #[test]
    fn special_deletes() {
        let main = [9, 0, 0, 0, 1, 0, 0, delete_flags::IS_PARTITION_MOVE];
        let blocks = [block(0, HEAP, &[])];
        let mut page = heap_page(1);
        let delete = record(RmgrId::HEAP, heap_records::DELETE, &main, &blocks);
        redo(&delete, 0, &mut page).expect("sound");
        assert_eq!(tuple(&page, 1).ctid, ItemPointer { block: u32::MAX, offset: 0xFFFD });

        let main = [9, 0, 0, 0, 1, 0, 0, delete_flags::IS_SUPER];
        let mut page = heap_page(1);
        let delete = record(RmgrId::HEAP, heap_records::DELETE, &main, &blocks);
        redo(&delete, 0, &mut page).expect("sound");
        let tuple = tuple(&page, 1);
        assert_eq!((tuple.xmin, tuple.xmax), (TransactionId(0), TransactionId(0)));
    }

    #[test]
    fn locks_keep_the_way_to_a_newer_version() {
        let locked = infobits::XMAX_LOCK_ONLY | infobits::XMAX_EXCL_LOCK;
        let blocks = [block(0, HEAP, &[])];
        for (rmgr, info, bits, ctid_stays) in [
            (RmgrId::HEAP, heap_records::LOCK, locked, false),
            (RmgrId::HEAP, heap_records::LOCK, infobits::XMAX_IS_MULTI, true),
            (RmgrId::HEAP2, heap2_records::LOCK_UPDATED, locked, true),
        ] {
            let main = [9, 0, 0, 0, 1, 0, bits, 0];
            let mut page = heap_page(1);
            redo(&record(rmgr, info, &main, &blocks), 0, &mut page).expect("sound");
            let tuple = tuple(&page, 1);
            assert_eq!(tuple.ctid == ItemPointer::default(), ctid_stays, "{rmgr} {bits}");
            assert_eq!(tuple.xmax, TransactionId(9));
        }
    }

    #[test]
    fn visible_has_lsn_rules_of_its_own() {
        let map = page_id(ForkNumber::VisibilityMap, 0);
        let blocks = [block(0, map, &[]), block(1, HEAP, &[])];
        let visible = record(RmgrId::HEAP2, heap2_records::VISIBLE, &[0, 0, 0, 0, 3], &blocks);
        assert_eq!(page_need(&visible, PageChange::Block(0)), PageNeed::ExistingOrZero);

        let mut map_page = [0; BLOCK_SIZE];
        assert!(redo(&visible, 0, &mut map_page).expect("sound").changed());
        assert_eq!((page::lsn(&map_page), map_page[25]), (END, 0b11_0000));
        page::set_lsn(&mut map_page, Lsn(1));
        assert!(!redo(&visible, 0, &mut map_page).expect("sound").changed());
        assert_eq!(page::lsn(&map_page), Lsn(1), "no bit changed");

        for (hint_bits_are_logged, lsn) in [(true, END), (false, Lsn(0x800))] {
            let context = RedoContext { hint_bits_are_logged, ..context() };
            let mut page = heap_page(1);
            let change = PageChange::Block(1);
            let outcome =
                redo_page(&visible, change, HEAP, &mut page, &mut Loose::default(), &context)
                    .expect("sound");
            assert_eq!(outcome.free_space(), Some(8192 - 24 - 4 - 32 - 4));
            assert_eq!((page::lsn(&page), page::flags(&page)), (lsn, PD_ALL_VISIBLE));
        }
    }

    #[test]
    fn a_registered_map_page_is_stamped_if_bits_go() {
        let main = [0, 0, 0, 0, 1, 0, 0, delete_flags::ALL_VISIBLE_CLEARED];
        let blocks = [block(0, HEAP, &[]), block(1, page_id(ForkNumber::VisibilityMap, 0), &[])];
        let delete = record(RmgrId::HEAP, heap_records::DELETE, &main, &blocks);
        let mut map = [0; BLOCK_SIZE];
        visibilitymap::set(&mut map, 6, 3, Lsn(1));
        assert!(redo(&delete, 1, &mut map).expect("sound").changed());
        assert_eq!((page::lsn(&map), map[25]), (END, 0));
    }

    #[test]
    fn free_space_is_told_when_it_is_low() {
        let insert = |free: u16| {
            let mut page = heap_page(1);
            page::set_upper(&mut page, 24 + 4 + 8 + usize::from(free));
            let data = [0, 0, 0, 0, 24, 0]; // 24 bytes with the header
            let blocks = [block(0, HEAP, &data)];
            let main = [2, 0, 0];
            let insert = record(RmgrId::HEAP, heap_records::INSERT, &main, &blocks);
            redo(&insert, 0, &mut page).map(PageOutcome::free_space)
        };
        assert_eq!(insert(24 + 1637).expect("room"), Some(1637));
        assert_eq!(insert(24 + 1638).expect("room"), None);
        assert!(insert(16).is_err(), "no room");
    }

    #[test]
    fn a_sequences_page_is_built_anew() {
        let mut main = [0_u8; 12 + 41];
        main[12 + 22] = 24; // t_hoff
        main[12 + 24] = 33; // last_value
        let mut blocks = [block(0, HEAP, &[])];
        blocks[0].will_init = true;
        let log = record(RmgrId::SEQUENCE, walfmt::rmgr::sequence::LOG, &main, &blocks);
        assert_eq!(page_need(&log, PageChange::Block(0)), PageNeed::Nothing);
        let mut page = heap_page(9);
        page::set_lsn(&mut page, Lsn(u64::MAX));
        assert!(redo(&log, 0, &mut page).expect("sound").changed());
        assert_eq!((page::lsn(&page), page::max_offset(&page)), (END, 1));
        assert_eq!(page::item(&page, 1).expect("the row"), &main[12..]);
        assert_eq!(page[BLOCK_SIZE - 8..], [0x17, 0x17, 0, 0, 0, 0, 0, 0]);
        assert!(page[28..walfmt::page::upper(&page).into()].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_difference_of_bytes_is_applied_and_the_middle_is_emptied() {
        let data = [24, 0, 2, 0, 7, 8, 0xFE, 0x1F, 2, 0, 5, 6];
        let blocks = [block(0, HEAP, &data)];
        let generic = record(RmgrId::GENERIC, 0, &[], &blocks);
        let mut page = heap_page(1);
        page[100] = 9; // unused
        assert!(redo(&generic, 0, &mut page).expect("sound").changed());
        assert_eq!((page::lsn(&page), page[100]), (END, 0));
        assert_eq!((&page[24..26], &page[BLOCK_SIZE - 2..]), (&[7, 8][..], &[5, 6][..]));

        let data = [12, 0, 2, 0, 0xFF, 0xFF]; // pd_lower
        let blocks = [block(0, HEAP, &data)];
        let generic = record(RmgrId::GENERIC, 0, &[], &blocks);
        assert!(redo(&generic, 0, &mut heap_page(1)).is_err());
    }

    proptest! {
        /// Whatever a record and a page say, redo answers; it does not panic.
        #[test]
        fn nothing_panics(
            rmgr in prop::sample::select(vec![
                RmgrId::HEAP,
                RmgrId::HEAP2,
                RmgrId::BTREE,
                RmgrId::SEQUENCE,
                RmgrId::GENERIC,
            ]),
            info: u8,
            main in prop::collection::vec(any::<u8>(), 0..40),
            small_numbers: bool,
            data in prop::collection::vec(any::<u8>(), 0..80),
            ids in prop::sample::subsequence(vec![0_u8, 1, 2, 3, 4], 1..=5),
            will_init: bool,
            noise in prop::collection::vec((0_usize..BLOCK_SIZE, any::<u8>()), 0..40),
            header_noise in prop::collection::vec((8_usize..60, any::<u8>()), 0..4),
        ) {
            let mut main = main;
            if small_numbers {
                main.iter_mut().skip(1).step_by(2).for_each(|byte| *byte = 0);
            }
            let blocks: Vec<_> = ids
                .iter()
                .map(|id| {
                    let fork = if *id >= 2 || info & 0x70 == 0x40 && *id == 0 {
                        ForkNumber::VisibilityMap
                    } else {
                        ForkNumber::Main
                    };
                    let mut block = block(*id, page_id(fork, 0), &data);
                    block.will_init = will_init && *id == 0;
                    block
                })
                .collect();
            let record = record(rmgr, info, &main, &blocks);
            let mut calls = Calls::default();
            match route(&record, &context(), &mut calls) {
                Ok(()) => prop_assert!(!calls.0.is_empty()),
                Err(RouteError::Redo(_)) => prop_assert!(calls.0.is_empty()),
                Err(RouteError::Access(never)) => match never {},
            }
            for index in 0..blocks.len() {
                let mut page = heap_page(20);
                noise.iter().chain(&header_noise).for_each(|(at, byte)| page[*at] = *byte);
                let _any_answer_will_do = redo(&record, index as u8, &mut page);
                let _so_will_this = crate::mask::mask(rmgr, HEAP, &mut page);
            }
            prop_assert!(redo_page(&record, PageChange::Block(200), HEAP, &mut heap_page(1), &mut Loose::default(), &context()).is_err());
        }
    }
}
