//! Chunks of TOAST values: what they are, and which of them a record takes off a page.
//!
//! ```text
//! a chunk's row       heap tuple header, then
//!   t_hoff    4  chunk_id    the value's number within the relation
//!   t_hoff+4  4  chunk_seq   from 0
//!   t_hoff+8  .. chunk_data  bytea, at most about 2 kB
//! ```
//!
//! Chunks are inserted and deleted, never updated. Their bytes leave a page when it is pruned, after
//! which vacuum frees the line pointers; or, where a record carries the page's image instead, when that
//! takes the page's place. So the page before and after tells, in all majors.
//!
//! A chunk's entry may leave the index before that: whoever inserts into a full leaf deletes entries of
//! rows that are dead to all, whether their pages were pruned or not. None of the server's own scans of
//! such an index marks those of a committed transaction as dead, since `SnapshotToast` sees them all
//! (`HeapTupleSatisfiesToast` in `src/backend/access/heap/heapam_visibility.c`), but a user's `SELECT` from
//! the TOAST relation does (`heap_hot_search_buffer` in `src/backend/access/heap/heapam.c`); and one that is
//! marked takes its neighbours along (`heap_index_delete_tuples` there, `_bt_simpledel_pass` in
//! `src/backend/access/nbtree/nbtinsert.c`). VACUUM prunes first.
//!
//! Rules: `toast_save_datum` in `src/backend/access/common/toast_internals.c`.

use std::collections::HashSet;

use walfmt::bytes::{i32_at, u16_at, u32_at};
use walfmt::page::{HEAP_HASNULL, HEAP_NATTS_MASK, HeapTupleHeader};
use walfmt::relation::PageId;
use walfmt::rmgr::btree::XLOG_BTREE_DELETE;
use walfmt::rmgr::{RmgrId, heap2};
use walfmt::row::{Entry, EntryKind, TUPLE_FROM};
use walfmt::{ForkNumber, Record};

use crate::btree_search::chunks_of_leaf;
use crate::{Page, PageChange, page};

/// How many columns a TOAST relation has.
const COLUMNS: u16 = 3;

/// The number of the value that a heap tuple is a chunk of, and which one it is; nothing if it cannot
/// be a chunk.
#[must_use]
pub fn chunk_of(tuple: &[u8]) -> Option<(u32, i32)> {
    chunk_of_contents(tuple.get(TUPLE_FROM..)?)
}

/// The same of a tuple's part that a [row's entry](walfmt::row) holds.
#[must_use]
pub fn chunk_of_contents(contents: &[u8]) -> Option<(u32, i32)> {
    const FIXED: usize = HeapTupleHeader::SIZE - TUPLE_FROM;
    let (infomask2, infomask) = (u16_at(contents, 0), u16_at(contents, 2));
    let begin = usize::from(*contents.get(4)?).checked_sub(TUPLE_FROM)?;
    let data = contents.get(begin..)?;
    let is_chunk = infomask2 & HEAP_NATTS_MASK == COLUMNS
        && infomask & HEAP_HASNULL == 0
        && begin >= FIXED
        && data.len() > 8;
    is_chunk.then(|| (u32_at(data, 0), i32_at(data, 4)))
}

/// What a record may do to the tuples of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It takes none off.
    None,
    /// It puts another page in this one's place. Whoever wrote it had told before what it took off.
    Replacement,
    /// It may take some off; or entries off a page of an index.
    Pruning,
}

/// What a record's change may do to tuples of a heap page. Cheap.
#[inline]
#[must_use]
pub fn removal(record: &Record<'_>, change: PageChange) -> Removal {
    let PageChange::Block(index) = change else { return Removal::None };
    let Some(block) = record.blocks.get(usize::from(index)) else { return Removal::None };
    if block.page.fork != ForkNumber::Main {
        return Removal::None;
    }
    // From 17 on there are three kinds of pruning, with the opcodes of these.
    let is_pruning = record.header.rmgr == RmgrId::HEAP2
        && matches!(
            record.header.info & heap2::OPCODE_MASK,
            heap2::PRUNE | heap2::VACUUM | heap2::FREEZE_PAGE
        );
    let is_deletion =
        record.header.rmgr == RmgrId::BTREE && record.header.opcode() == XLOG_BTREE_DELETE;
    if is_pruning || is_deletion {
        Removal::Pruning
    } else if matches!(record.header.rmgr, RmgrId::XLOG | RmgrId::HEAP | RmgrId::HEAP2)
        && (block.will_init || block.image_to_apply().is_some())
    {
        Removal::Replacement
    } else {
        Removal::None
    }
}

/// Adds to `buffer` the chunks, or entries of chunks, that were on a page before a record, and are not
/// after it. The pages may
/// be [`Loose`](crate::Loose).
pub fn write_removed(
    record: &Record<'_>,
    change: PageChange,
    before: &Page,
    after: &Page,
    buffer: &mut Vec<u8>,
) {
    let PageChange::Block(index) = change else { return };
    let Some(block) = record.blocks.get(usize::from(index)) else { return };
    if record.header.rmgr == RmgrId::BTREE {
        let left: HashSet<_> = chunks_of_leaf(after).into_iter().collect();
        let gone = chunks_of_leaf(before).into_iter().filter(|chunk| !left.contains(chunk));
        for (value, place) in gone {
            let of = (record.start, record.header.xid);
            let page = PageId { block: place.block, ..block.page };
            let contents = value.to_le_bytes();
            Entry::row(of, EntryKind::Unindexed, page, place.offset, &contents).write(buffer);
        }
        return;
    }
    for item in 1..=page::max_offset(before) {
        let Ok(tuple) = page::item(before, item) else { continue };
        let Some(chunk) = chunk_of(tuple) else { continue };
        let is_there = page::item(after, item).is_ok_and(|left| {
            // Hints may be others. The inserting transaction tells values apart that have one number.
            chunk_of(left) == Some(chunk) && left.get(..4) == tuple.get(..4)
        });
        if !is_there {
            let of = (record.start, record.header.xid);
            let contents = &tuple[TUPLE_FROM..];
            Entry::row(of, EntryKind::Removed, block.page, item, contents).write(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walfmt::BLOCK_SIZE;
    use walfmt::page::ItemId;

    use super::*;
    use crate::fixture::{block, page_id, record};
    use crate::page::tests::any_page;

    fn chunk(value: u32, seq: i32, attributes: u16) -> Vec<u8> {
        let mut tuple = vec![0; 24];
        tuple[18..20].copy_from_slice(&attributes.to_le_bytes());
        tuple[22] = 24;
        tuple.extend_from_slice(&value.to_le_bytes());
        tuple.extend_from_slice(&seq.to_le_bytes());
        tuple.extend_from_slice(&[7, 8, 9]);
        tuple
    }

    #[test]
    fn what_is_taken_off_a_page_is_told() {
        let mut before = [0; BLOCK_SIZE];
        page::init(&mut before, 0);
        for (item, attributes) in [(1, 3), (2, 3), (3, 2)] {
            page::put_item(&mut before, item, &chunk(500, i32::from(item) - 1, attributes))
                .expect("fits");
        }
        let mut after = before;
        for item in 2..=3 {
            page::set_item_id(&mut after, item, ItemId::DEAD).expect("is there");
        }
        let blocks = [block(0, page_id(ForkNumber::Main, 6), &[])];
        let prune = record(RmgrId::HEAP2, heap2::PRUNE, &[], &blocks);
        assert_eq!(removal(&prune, PageChange::Block(0)), Removal::Pruning);
        let mut buffer = Vec::new();
        write_removed(&prune, PageChange::Block(0), &before, &after, &mut buffer);
        let (entry, rest) = Entry::read(&buffer).expect("an entry");
        assert_eq!((entry.kind, entry.block, entry.item), (EntryKind::Removed, 6, 2));
        assert_eq!(entry.contents, &chunk(500, 1, 3)[TUPLE_FROM..]);
        assert!(rest.is_empty(), "what has two columns is no chunk");

        buffer.clear();
        write_removed(&prune, PageChange::Block(0), &before, &before, &mut buffer);
        assert!(buffer.is_empty());
    }

    proptest! {
        #[test]
        fn no_pages_do_harm(before in any_page(), after in any_page()) {
            let blocks = [block(0, page_id(ForkNumber::Main, 6), &[])];
            let prune = record(RmgrId::HEAP2, heap2::PRUNE, &[], &blocks);
            let mut buffer = Vec::new();
            write_removed(&prune, PageChange::Block(0), &before, &after, &mut buffer);
        }

        #[test]
        fn no_tuple_does_harm(tuple in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = chunk_of(&tuple);
        }
    }
}
