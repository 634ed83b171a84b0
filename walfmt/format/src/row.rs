//! Rows on their way from redo to decoding.
//!
//! Redo changes pages in parallel; what it saw of rows while it did is written down as entries, which
//! are merged in WAL order. An entry is one version of a row, or a whole record where decoding needs
//! to know of what is not a row: how transactions end, maps of relations, messages.
//!
//! ```text
//! offset  size  field
//!      0     4  length       of the entry, all of it
//!      4     8  start        of the record
//!     12     4  xid          of the record
//!     16     4  tablespace   )
//!     20     4  database     ) of the relation; zero if the entry is a record
//!     24     4  relation     )
//!     28     4  block        where the version lies
//!     32     2  item
//!     34     2  ordinal      several rows of one record, from 0
//!     36     1  kind         EntryKind
//!     37     1  flags        flags::*
//!     38     2  0
//!     40        the row from its byte 18 on: t_infomask2, t_infomask, t_hoff, null bitmap, values;
//!               or the record: its end, 8 bytes, and its bytes
//! ```
//!
//! Of one record, old versions come before new ones: [`Entry::order`].

use crate::bytes::{put, u16_at, u32_at, u64_at};
use crate::cursor::Cursor;
use crate::lsn::{Lsn, TransactionId};
use crate::record::{RECORD_SIZE_MAX, RawRecord, RecordHeader};
use crate::relation::{BlockNumber, PageId, RelFileLocator};
use crate::rmgr::heap::TupleImage;

/// What stands before an entry's contents, in bytes.
pub const ENTRY_HEADER_SIZE: usize = 40;
/// No entry is longer, in bytes.
pub const ENTRY_SIZE_MAX: usize = RECORD_SIZE_MAX + ENTRY_HEADER_SIZE + 8;
/// Where the part of a heap tuple begins that an entry holds.
pub const TUPLE_FROM: usize = 18;

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum EntryKind {
    /// The version that an UPDATE replaces. That of its successor follows.
    UpdatedFrom = 0,
    /// The version that an UPDATE leaves.
    UpdatedTo = 1,
    /// A new row.
    Inserted = 2,
    /// The last version of a row.
    Deleted = 3,
    /// A speculative insertion that is taken back; without contents.
    SpeculationFailed = 4,
    /// A speculative insertion that is one; without contents.
    SpeculationConfirmed = 5,
    /// A whole record.
    Record = 6,
    /// A row that was there before: part of a catalog as decoding begins with it. Its relation is the
    /// catalog's OID, its xid the transaction that has inserted it and not ended, or 0, and its block
    /// the same of the one that has deleted it.
    Loaded = 7,
    /// The page no longer showed what the record had done; without contents.
    Lost = 8,
    /// What was loaded of a database is complete, and so are all rows from here on. The contents are
    /// the transactions that had not ended, 4 bytes each; their rows are not complete. Its database is
    /// 0 for all of them.
    Begin = 9,
    /// Where a catalog's rows are: the block is its OID, the relation its file number; for catalogs
    /// that a relation map has, as loaded.
    Mapped = 10,
    /// The database begins anew: what was known of it is forgotten, what it has is loaded next.
    Database = 11,
    /// A chunk of a long value that the transaction's last update has left alone: its relation is the
    /// OID of the TOAST relation.
    Chunk = 12,
    /// A chunk of a TOAST value that the record takes off its page: whoever still needs the value has it
    /// from here. Not part of what happened.
    Removed = 13,
    /// Transactions that are prepared where decoding begins, and their subtransactions: the contents, 4
    /// bytes each. A new start of the server does not end them.
    Prepared = 14,
    /// The entry of a chunk that the record takes off a page of its TOAST relation's index, while the
    /// chunk may still be on its own page: the relation is the index, block and item are the chunk's, the
    /// contents its value, 4 bytes. Not part of what happened.
    Unindexed = 15,
}

impl EntryKind {
    const ALL: [Self; 16] = [
        Self::UpdatedFrom,
        Self::UpdatedTo,
        Self::Inserted,
        Self::Deleted,
        Self::SpeculationFailed,
        Self::SpeculationConfirmed,
        Self::Record,
        Self::Loaded,
        Self::Lost,
        Self::Begin,
        Self::Mapped,
        Self::Database,
        Self::Chunk,
        Self::Removed,
        Self::Prepared,
        Self::Unindexed,
    ];
}

/// Flags of an entry.
pub mod flags {
    /// The insertion is speculative: it counts when it is confirmed.
    pub const SPECULATIVE: u8 = 0x01;
    /// The deletion is half of a row's way to another partition.
    pub const PARTITION_MOVE: u8 = 0x02;
    /// A loaded row of `pg_attribute` that comes before all others, for what it says of the catalogs
    /// themselves. It comes again.
    pub const COLUMNS_ONLY: u8 = 0x04;
}

/// Bytes that are no entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// The bytes end inside the entry.
    #[error("an entry of {needed} bytes, {left} are left")]
    Short {
        /// What its length says, or the least it takes.
        needed: usize,
        /// What is there.
        left: usize,
    },
    /// A length that no entry has.
    #[error("an entry's length is {0}")]
    Length(u32),
    /// A kind that does not exist.
    #[error("an entry's kind is {0}")]
    Kind(u8),
    /// The row or record inside contradicts itself.
    #[error("an entry's contents: {0}")]
    Contents(&'static str),
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Where the record begins.
    pub start: Lsn,
    /// The record's transaction: a subtransaction stands for itself.
    pub xid: TransactionId,
    /// The row's relation.
    pub locator: RelFileLocator,
    /// Where this version lies.
    pub block: BlockNumber,
    /// Its line pointer.
    pub item: u16,
    /// Which of the record's rows it is.
    pub ordinal: u16,
    /// What happened.
    pub kind: EntryKind,
    /// [`flags`].
    pub flags: u8,
    /// What follows: see above.
    pub contents: &'a [u8],
}

impl<'a> Entry<'a> {
    /// One of this kind that says nothing else yet.
    #[must_use]
    pub const fn empty(start: Lsn, kind: EntryKind) -> Self {
        Self {
            start,
            xid: TransactionId::INVALID,
            locator: RelFileLocator { tablespace: 0, database: 0, relation: 0 },
            block: 0,
            item: 0,
            ordinal: 0,
            kind,
            flags: 0,
            contents: &[],
        }
    }

    /// A row of the record on the page.
    #[must_use]
    pub const fn row(
        record: (Lsn, TransactionId),
        kind: EntryKind,
        page: PageId,
        item: u16,
        contents: &'a [u8],
    ) -> Self {
        Self {
            start: record.0,
            xid: record.1,
            locator: page.locator,
            block: page.block,
            item,
            ordinal: 0,
            kind,
            flags: 0,
            contents,
        }
    }

    /// Adds the entry to `buffer`. Contents are cut to what an entry can hold, which a page or a
    /// record never exceeds.
    #[inline]
    pub fn write(&self, buffer: &mut Vec<u8>) {
        self.write_header(buffer, self.contents.len());
        buffer.extend_from_slice(self.contents);
    }

    /// Adds a whole record to `buffer`.
    pub fn write_record(record: &RawRecord<'_>, buffer: &mut Vec<u8>) {
        let entry = Self { xid: record.header.xid, ..Self::empty(record.start, EntryKind::Record) };
        entry.write_header(buffer, 8 + record.bytes.len());
        buffer.extend_from_slice(&record.end.0.to_le_bytes());
        buffer.extend_from_slice(record.bytes);
    }

    #[inline]
    fn write_header(&self, buffer: &mut Vec<u8>, contents: usize) {
        let length = u32::try_from(ENTRY_HEADER_SIZE + contents).expect("a record is below 4 GB");
        let mut header = [0; ENTRY_HEADER_SIZE];
        put(&mut header, 0, length.to_le_bytes());
        put(&mut header, 4, self.start.0.to_le_bytes());
        put(&mut header, 12, self.xid.0.to_le_bytes());
        put(&mut header, 16, self.locator.tablespace.to_le_bytes());
        put(&mut header, 20, self.locator.database.to_le_bytes());
        put(&mut header, 24, self.locator.relation.to_le_bytes());
        put(&mut header, 28, self.block.to_le_bytes());
        put(&mut header, 32, self.item.to_le_bytes());
        put(&mut header, 34, self.ordinal.to_le_bytes());
        put(&mut header, 36, [self.kind as u8, self.flags]);
        buffer.extend_from_slice(&header);
    }

    /// Reads the entry that `bytes` begin with; gives it, and what follows.
    ///
    /// # Errors
    /// [`EntryError`] if there is none.
    #[inline]
    pub fn read(bytes: &'a [u8]) -> Result<(Self, &'a [u8]), EntryError> {
        let left = bytes.len();
        if left < ENTRY_HEADER_SIZE {
            return Err(EntryError::Short { needed: ENTRY_HEADER_SIZE, left });
        }
        let length = u32_at(bytes, 0);
        let needed = length as usize;
        if !(ENTRY_HEADER_SIZE..=ENTRY_SIZE_MAX).contains(&needed) {
            return Err(EntryError::Length(length));
        }
        let Some((entry, rest)) = bytes.split_at_checked(needed) else {
            return Err(EntryError::Short { needed, left });
        };
        let kind = entry[36];
        let kind = EntryKind::ALL.get(usize::from(kind)).ok_or(EntryError::Kind(kind))?;
        let entry = Self {
            start: Lsn(u64_at(entry, 4)),
            xid: TransactionId(u32_at(entry, 12)),
            locator: RelFileLocator {
                tablespace: u32_at(entry, 16),
                database: u32_at(entry, 20),
                relation: u32_at(entry, 24),
            },
            block: u32_at(entry, 28),
            item: u16_at(entry, 32),
            ordinal: u16_at(entry, 34),
            kind: *kind,
            flags: entry[37],
            contents: &entry[ENTRY_HEADER_SIZE..],
        };
        Ok((entry, rest))
    }

    /// By what entries are put in order: a record's own are in the order of its rows, an update's old
    /// version before the new one. What was loaded at a position comes before the record there.
    #[inline]
    #[must_use]
    pub const fn order(&self) -> (Lsn, u16, u8) {
        let kind = match self.kind {
            EntryKind::Loaded
            | EntryKind::Begin
            | EntryKind::Mapped
            | EntryKind::Database
            | EntryKind::Prepared => 0,
            kind => 1 + kind as u8,
        };
        (self.start, self.ordinal, kind)
    }

    /// The row.
    ///
    /// # Errors
    /// [`EntryError::Contents`] if there is none.
    #[inline]
    pub fn tuple(&self) -> Result<TupleImage<'a>, EntryError> {
        TupleImage::read(&mut Cursor::new(self.contents))
            .map_err(|_| EntryError::Contents("a row is shorter than its header"))
    }

    /// The record.
    ///
    /// # Errors
    /// [`EntryError::Contents`] if there is none.
    pub fn record(&self) -> Result<RawRecord<'a>, EntryError> {
        let parts = self.contents.split_at_checked(8);
        let Some((end, bytes)) = parts.filter(|(_, bytes)| bytes.len() >= 24) else {
            return Err(EntryError::Contents("a record is shorter than its header"));
        };
        let header = RecordHeader::from_bytes(bytes);
        if header.total_length as usize != bytes.len() {
            return Err(EntryError::Contents("a record's length is not its entry's"));
        }
        Ok(RawRecord { start: self.start, end: Lsn(u64_at(end, 0)), header, bytes })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::relation::ForkNumber;

    #[test]
    fn an_entry_comes_back() {
        let locator = RelFileLocator { tablespace: 1663, database: 5, relation: 16384 };
        let page = PageId { locator, fork: ForkNumber::Main, block: 7 };
        let record = (Lsn(0x1_2345_6789), TransactionId(741));
        let mut entry = Entry::row(record, EntryKind::UpdatedTo, page, 3, &[2, 0, 0, 8, 24, 0, 9]);
        (entry.ordinal, entry.flags) = (12, flags::SPECULATIVE);
        let mut bytes = Vec::new();
        entry.write(&mut bytes);
        let old = Entry { kind: EntryKind::UpdatedFrom, ..entry };
        old.write(&mut bytes);

        let (first, rest) = Entry::read(&bytes).expect("an entry");
        assert_eq!(first, entry);
        let tuple = first.tuple().expect("a row");
        assert_eq!((tuple.infomask2, tuple.infomask, tuple.hoff), (2, 0x800, 24));
        assert_eq!(tuple.bytes, [0, 9]);
        let (second, rest) = Entry::read(rest).expect("another");
        assert_eq!((second, rest), (old, &[][..]));
        assert!(second.order() < first.order());
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((entry, rest)) = Entry::read(&bytes) {
                prop_assert!(rest.len() + ENTRY_HEADER_SIZE <= bytes.len());
                let _ = (entry.tuple(), entry.record());
            }
        }
    }
}
