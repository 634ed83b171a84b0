//! Heap2: what vacuum does to heap pages, inserts of many tuples at once, and other changes that
//! did not fit into Heap's eight opcodes.
//!
//! The opcode is `xl_info & 0x70`; bit 0x80 says, of MULTI_INSERT, that the page is built from
//! nothing. Opcodes 0x10, 0x20 and 0x30 are PRUNE, VACUUM and FREEZE_PAGE in some majors, PRUNE_ON_ACCESS,
//! PRUNE_VACUUM_SCAN and PRUNE_VACUUM_CLEANUP in later ones
//! ([`merge_prune_and_freeze`](crate::version::TableRecords::merge_prune_and_freeze)).
//!
//! ```text
//! main data                                             block references
//! REWRITE       40 bytes, then tuples, 36 bytes each      none; a file of `pg_logical/mappings`
//! PRUNE         latestRemovedXid u32, nredirected u16,  0 heap page; data: pairs from, to;
//!               ndead u16 [, isCatalogRel u8]             dead; the rest unused; each u16
//! VACUUM        nunused u16                             0 heap page; data: unused u16[]
//! FREEZE_PAGE   cutoff_xid u32, ntuples u16             0 heap page; data: plans, 12 bytes each
//!               [, isCatalogRel u8]                       [, offsets u16[] of the plans' tuples]
//! PRUNE_*       reason u8 (not initialized), flags u8   0 heap page; data: parts, by flags, see below
//!               [, conflict horizon u32, not aligned]
//! VISIBLE       cutoff_xid u32, flags u8                0 visibility map page, 1 heap page
//! MULTI_INSERT  flags u8, 1 unused, ntuples u16,        0 heap page; data: tuples, each at an
//!               offsets u16[] unless the page is new      even offset from the data's start
//! LOCK_UPDATED  as Heap's LOCK                          0 heap page
//! NEW_CID       top_xid u32, cmin u32, cmax u32,        none
//!               combocid u32, locator, tid
//!
//! freeze plan (xl_heap_freeze_tuple)      tuple (xl_multi_insert_tuple)
//! offset  size  field                     offset  size  field
//!      0     4  xmax                           0     2  datalen
//!      4     2  offset                         2     2  t_infomask2
//!      6     2  t_infomask2                    4     2  t_infomask
//!      8     2  t_infomask                     6     1  t_hoff
//!     10     1  frzflags                       7        datalen bytes: the tuple from byte 23 on
//!     11     1  (unused)
//!
//! shared freeze plan (xlhp_freeze_plan)   parts of PRUNE_*, each if its flag says so, without gaps
//! offset  size  field                     HAS_FREEZE_PLANS          nplans u16, 2 unused, plans
//!      0     4  xmax                      HAS_REDIRECTIONS          count u16, pairs from, to
//!      4     2  t_infomask2               HAS_DEAD_ITEMS            count u16, offsets
//!      6     2  t_infomask                HAS_NOW_UNUSED_ITEMS      count u16, offsets
//!      8     1  frzflags                  HAS_FREEZE_PLANS again    the offsets of each plan's tuples
//!     10     2  ntuples
//!
//! REWRITE (xl_heap_rewrite_mapping)         NEW_CID (xl_heap_new_cid)
//! offset  size  field                       offset  size  field
//!      0     4  mapped_xid                       0     4  top_xid
//!      4     4  mapped_db                        4     4  cmin
//!      8     4  mapped_rel                       8     4  cmax
//!     16     8  offset, in the file             12     4  combocid
//!     24     4  num_mappings                    16    12  target_locator
//!     32     8  start_lsn                       28     6  target_tid
//! ```
//!
//! Rules: `src/include/access/heapam_xlog.h`, `src/backend/access/heap/rewriteheap.c`, and of PRUNE_*
//! `heap_xlog_deserialize_prune_and_freeze` in `src/backend/access/rmgrdesc/heapdesc.c`.

use crate::cursor::{Cursor, CursorError};
use crate::lsn::{Lsn, TransactionId};
use crate::page::ItemPointer;
use crate::relation::RelFileLocator;
use crate::rmgr::heap::TupleImage;

mod prune;

pub use self::prune::*;
pub use crate::rmgr::heap::{INIT_PAGE, OPCODE_MASK};
pub use crate::rmgr::items::Offsets;

/// `XLOG_HEAP2_REWRITE`.
pub const REWRITE: u8 = 0x00;
/// `XLOG_HEAP2_PRUNE`.
pub const PRUNE: u8 = 0x10;
/// `XLOG_HEAP2_VACUUM`.
pub const VACUUM: u8 = 0x20;
/// `XLOG_HEAP2_FREEZE_PAGE`.
pub const FREEZE_PAGE: u8 = 0x30;
/// `XLOG_HEAP2_PRUNE_ON_ACCESS`.
pub const PRUNE_ON_ACCESS: u8 = 0x10;
/// `XLOG_HEAP2_PRUNE_VACUUM_SCAN`.
pub const PRUNE_VACUUM_SCAN: u8 = 0x20;
/// `XLOG_HEAP2_PRUNE_VACUUM_CLEANUP`.
pub const PRUNE_VACUUM_CLEANUP: u8 = 0x30;
/// `XLOG_HEAP2_VISIBLE`.
pub const VISIBLE: u8 = 0x40;
/// `XLOG_HEAP2_MULTI_INSERT`.
pub const MULTI_INSERT: u8 = 0x50;
/// `XLOG_HEAP2_LOCK_UPDATED`.
pub const LOCK_UPDATED: u8 = 0x60;
/// `XLOG_HEAP2_NEW_CID`.
pub const NEW_CID: u8 = 0x70;

/// `sizeof(LogicalRewriteMappingData)`.
const MAPPING_SIZE: usize = 36;

/// REWRITE (`xl_heap_rewrite_mapping`): where tuples of a catalog went when it was rewritten, for
/// logical decoding by a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RewriteMapping<'a> {
    /// Whoever decodes this transaction may need it.
    pub mapped_xid: TransactionId,
    /// The catalog's database, 0 for shared catalogs.
    pub database: u32,
    /// The catalog's OID.
    pub relation: u32,
    /// Where in the file, in bytes; what comes after was not safe before this record.
    pub offset: u64,
    /// Where the rewrite began.
    pub start: Lsn,
    /// What the file holds there.
    pub mappings: &'a [u8],
}

impl<'a> RewriteMapping<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what it says.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let mapped_xid = TransactionId(cursor.u32("mapped_xid")?);
        let database = cursor.u32("mapped_db")?;
        let relation = cursor.u32("mapped_rel")?;
        cursor.u32("padding")?;
        let offset = cursor.u64("offset")?;
        let count = cursor.u32("num_mappings")? as usize;
        cursor.u32("padding")?;
        let start = Lsn(cursor.u64("start_lsn")?);
        let mappings = cursor.take(count.saturating_mul(MAPPING_SIZE), "mappings")?;
        cursor.finish("mappings")?;
        Ok(Self { mapped_xid, database, relation, offset, start, mappings })
    }

    /// The file's name in `pg_logical/mappings` (`LOGICAL_REWRITE_FORMAT`); `xid` is the record's.
    #[must_use]
    pub fn file_name(&self, xid: TransactionId) -> String {
        let Lsn(start) = self.start;
        format!(
            "map-{:x}-{:x}-{:X}_{:X}-{:x}-{:x}",
            self.database,
            self.relation,
            start >> 32,
            start as u32,
            self.mapped_xid.0,
            xid.0
        )
    }
}

/// NEW_CID (`xl_heap_new_cid`): which commands of a transaction made and removed a catalog's tuple, for
/// logical decoding. Changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewCid {
    /// The transaction, not its subtransaction.
    pub top_xid: TransactionId,
    /// The command that made the tuple, or all ones.
    pub cmin: u32,
    /// The command that removed it, or all ones.
    pub cmax: u32,
    /// What stands for both in the tuple, or all ones.
    pub combo_cid: u32,
    /// The catalog.
    pub locator: RelFileLocator,
    /// The tuple.
    pub tid: ItemPointer,
}

impl NewCid {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        Ok(Self {
            top_xid: TransactionId(cursor.u32("top_xid")?),
            cmin: cursor.u32("cmin")?,
            cmax: cursor.u32("cmax")?,
            combo_cid: cursor.u32("combocid")?,
            locator: cursor.locator("target_locator")?,
            tid: ItemPointer::read(cursor.take(ItemPointer::SIZE, "target_tid")?, 0),
        })
    }
}

/// VISIBLE (`xl_heap_visible`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Visible {
    /// The newest transaction whose tuples the page holds.
    pub cutoff_xid: TransactionId,
    /// Bits of the visibility map: 1 all-visible, 2 all-frozen.
    pub flags: u8,
}

impl Visible {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        Ok(Self {
            cutoff_xid: TransactionId(cursor.u32("cutoff_xid")?),
            flags: cursor.u8("flags")?,
        })
    }
}

/// MULTI_INSERT (`xl_heap_multi_insert`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MultiInsert<'a> {
    /// [`insert_flags`](crate::rmgr::heap::insert_flags).
    pub flags: u8,
    /// How many tuples are inserted.
    pub tuple_count: u16,
    /// Their line pointers; none if the page is new: then they are 1, 2, 3 and so on.
    pub offsets: Option<Offsets<'a>>,
}

impl<'a> MultiInsert<'a> {
    /// Reads main data; `info` is the record's `xl_info`.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &'a [u8], info: u8) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let flags = cursor.u8("flags")?;
        cursor.u8("padding")?;
        let tuple_count = cursor.u16("ntuples")?;
        let offsets = if info & INIT_PAGE == 0 {
            Some(Offsets::read(&mut cursor, tuple_count, "offsets")?)
        } else {
            None
        };
        Ok(Self { flags, tuple_count, offsets })
    }

    /// The inserted tuples with their line pointers, from the data of block 0.
    pub fn tuples<'b>(&self, block_data: &'b [u8]) -> MultiInsertTuples<'a, 'b> {
        MultiInsertTuples {
            cursor: Cursor::new(block_data),
            length: block_data.len(),
            offsets: self.offsets,
            next: 0,
            count: self.tuple_count,
        }
    }
}

/// The tuples of a [`MultiInsert`]; ends after the first error.
#[derive(Clone, Debug)]
pub struct MultiInsertTuples<'a, 'b> {
    cursor: Cursor<'b>,
    length: usize,
    offsets: Option<Offsets<'a>>,
    next: u16,
    count: u16,
}

impl<'b> MultiInsertTuples<'_, 'b> {
    fn read_tuple(&mut self) -> Result<(u16, TupleImage<'b>), CursorError> {
        let offnum = match self.offsets {
            Some(offsets) => offsets.get(usize::from(self.next)),
            None => self.next.saturating_add(1),
        };
        if (self.length - self.cursor.rest().len()) % 2 == 1 {
            self.cursor.u8("padding")?;
        }
        let length = usize::from(self.cursor.u16("datalen")?);
        let infomask2 = self.cursor.u16("t_infomask2")?;
        let infomask = self.cursor.u16("t_infomask")?;
        let hoff = self.cursor.u8("t_hoff")?;
        let bytes = self.cursor.take(length, "tuple")?;
        self.next += 1;
        if self.next == self.count {
            self.cursor.clone().finish("the last tuple")?;
        }
        Ok((offnum, TupleImage { infomask2, infomask, hoff, bytes }))
    }
}

impl<'b> Iterator for MultiInsertTuples<'_, 'b> {
    type Item = Result<(u16, TupleImage<'b>), CursorError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.next >= self.count {
            return None;
        }
        let tuple = self.read_tuple();
        if tuple.is_err() {
            self.next = self.count;
        }
        Some(tuple)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_says_its_file() {
        let mut main = Vec::new();
        main.extend([500_u32, 5, 1259, 0].iter().flat_map(|word| word.to_le_bytes()));
        main.extend(72_u64.to_le_bytes());
        main.extend([1_u32, 0].iter().flat_map(|word| word.to_le_bytes()));
        main.extend(0x0000_000A_0B00_00C8_u64.to_le_bytes());
        main.extend([7; 36]);
        let mapping = RewriteMapping::read(&main).expect("sound");
        assert_eq!((mapping.offset, mapping.mappings), (72, &[7; 36][..]));
        assert_eq!(mapping.file_name(TransactionId(501)), "map-5-4eb-A_B0000C8-1f4-1f5");
        for length in 0..main.len() {
            assert!(RewriteMapping::read(&main[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn inserted_tuples_begin_at_even_offsets() {
        let main = [0, 0, 2, 0, 7, 0, 9, 0];
        let mut data = vec![2, 0, 1, 0, 2, 0, 24, 0xA0, 0xA1]; // 9 bytes, then one of padding
        data.extend([0, 1, 0, 1, 0, 2, 0, 24, 0xB0]);
        let insert = MultiInsert::read(&main, MULTI_INSERT).expect("long enough");
        let tuples: Vec<_> = insert.tuples(&data).map(|t| t.expect("long enough")).collect();
        assert_eq!(tuples.iter().map(|(offnum, _)| *offnum).collect::<Vec<_>>(), [7, 9]);
        assert_eq!(tuples[1].1.bytes, [0xB0]);

        data.push(0);
        assert!(insert.tuples(&data).any(|tuple| tuple.is_err()), "a byte too many");
        let init = MultiInsert::read(&main, MULTI_INSERT | INIT_PAGE).expect("long enough");
        assert_eq!(init.tuples(&data).next().expect("one").expect("long enough").0, 1);
    }
}
