//! The rows that a record has changed, as they stand on its page right after redo.
//!
//! ```text
//! INSERT, MULTI_INSERT        block 0: the new rows
//! UPDATE, HOT_UPDATE          block 0: the new version; the old one on block 1, or on block 0 if there
//!                             is no block 1
//! DELETE                      block 0: the old version, which redo leaves but for its header
//! CONFIRM, DELETE that takes  block 0: no row, but which one is meant
//! a speculative row back
//! ```
//!
//! The page is right whatever the record carries: a page image instead of rows, or of an update only
//! what differs from before. So old versions are whole, too, at any `wal_level`.
//!
//! Rules: `heap_xlog_insert` and what follows in `src/backend/access/heap/heapam.c`.

use walfmt::page::HeapTupleHeader;
use walfmt::rmgr::RmgrId;
use walfmt::rmgr::heap::{self, Delete, Insert, Update, delete_flags, insert_flags};
use walfmt::rmgr::heap2::{self, MultiInsert};
use walfmt::row::{Entry, EntryKind, TUPLE_FROM, flags};
use walfmt::{BlockReference, ForkNumber, Record};

use crate::fault::Fault;
use crate::{Page, PageChange, PageOutcome, RedoError, page};

/// Whether a record may change rows. Cheap: most of what is false is not looked at further.
#[inline]
#[must_use]
pub fn changes_rows(record: &Record<'_>) -> bool {
    match record.header.rmgr {
        RmgrId::HEAP => matches!(
            record.header.info & heap::OPCODE_MASK,
            heap::INSERT | heap::DELETE | heap::UPDATE | heap::HOT_UPDATE | heap::CONFIRM
        ),
        RmgrId::HEAP2 => record.header.info & heap::OPCODE_MASK == heap2::MULTI_INSERT,
        _ => false,
    }
}

/// Adds to `buffer` the rows on one page that the record has changed there, right after
/// [`redo_page`](crate::redo_page), whose `outcome` it was.
///
/// # Errors
/// [`RedoError`] if the page does not have them.
pub fn write_rows(
    record: &Record<'_>,
    change: PageChange,
    page: &Page,
    outcome: &PageOutcome,
    buffer: &mut Vec<u8>,
) -> Result<(), RedoError> {
    let PageChange::Block(index) = change else { return Ok(()) };
    let Some(block) = record.blocks.get(usize::from(index)) else { return Ok(()) };
    if block.page.fork != ForkNumber::Main || !changes_rows(record) {
        return Ok(());
    }
    let mut rows = Rows { record, block, page, buffer };
    // What the page was before or is by now is of no use.
    let written = if outcome.missing() || !outcome.changed() {
        rows.put(EntryKind::Lost, 0, 0, 0, &[]);
        Ok(())
    } else {
        rows.write()
    };
    written.map_err(|fault| fault.on(block.page).of(record))
}

struct Rows<'a, 'b> {
    record: &'a Record<'b>,
    block: &'a BlockReference<'b>,
    page: &'a Page,
    buffer: &'a mut Vec<u8>,
}

impl Rows<'_, '_> {
    fn write(&mut self) -> Result<(), Fault> {
        let main = self.record.main_data;
        let info = self.record.header.info;
        if self.record.header.rmgr == RmgrId::HEAP2 {
            return self.multi_insert(&MultiInsert::read(main, info)?);
        }
        match info & heap::OPCODE_MASK {
            heap::INSERT => {
                let insert = Insert::read(main)?;
                let speculative = insert.flags & insert_flags::IS_SPECULATIVE != 0;
                let flags = if speculative { flags::SPECULATIVE } else { 0 };
                self.put_row(EntryKind::Inserted, insert.offnum, 0, flags)
            }
            heap::DELETE => {
                let delete = Delete::read(main)?;
                if delete.flags & delete_flags::IS_SUPER != 0 {
                    self.put(EntryKind::SpeculationFailed, delete.offnum, 0, 0, &[]);
                    return Ok(());
                }
                let moved = delete.flags & delete_flags::IS_PARTITION_MOVE != 0;
                let flags = if moved { flags::PARTITION_MOVE } else { 0 };
                self.put_row(EntryKind::Deleted, delete.offnum, 0, flags)
            }
            heap::UPDATE | heap::HOT_UPDATE => {
                let update = Update::read(main)?;
                let same_page = self.record.block(1).is_none();
                if self.block.id == 1 || same_page {
                    self.put_row(EntryKind::UpdatedFrom, update.old_offnum, 0, 0)?;
                }
                if self.block.id == 0 {
                    self.put_row(EntryKind::UpdatedTo, update.new_offnum, 0, 0)?;
                }
                Ok(())
            }
            heap::CONFIRM => {
                let item = heap::read_offnum(main)?;
                self.put(EntryKind::SpeculationConfirmed, item, 0, 0, &[]);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn multi_insert(&mut self, insert: &MultiInsert<'_>) -> Result<(), Fault> {
        let ordinals = 0..insert.tuple_count;
        let mut put = |ordinal, item| self.put_row(EntryKind::Inserted, item, ordinal, 0);
        match &insert.offsets {
            Some(offsets) => ordinals.zip(offsets.iter()).try_for_each(|(at, item)| put(at, item)),
            None => ordinals.into_iter().try_for_each(|ordinal| put(ordinal, ordinal + 1)),
        }
    }

    fn put_row(
        &mut self,
        kind: EntryKind,
        item: u16,
        ordinal: u16,
        flags: u8,
    ) -> Result<(), Fault> {
        let tuple = page::item(self.page, item)?;
        if tuple.len() < HeapTupleHeader::SIZE {
            return Err(Fault::corrupt(format!("item {item} has {} bytes", tuple.len())));
        }
        self.put(kind, item, ordinal, flags, &tuple[TUPLE_FROM..]);
        Ok(())
    }

    fn put(&mut self, kind: EntryKind, item: u16, ordinal: u16, flags: u8, contents: &[u8]) {
        let record = (self.record.start, self.record.header.xid);
        let entry = Entry::row(record, kind, self.block.page, item, contents);
        Entry { ordinal, flags, ..entry }.write(self.buffer);
    }
}
