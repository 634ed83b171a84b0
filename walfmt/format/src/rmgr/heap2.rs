//! Heap2: what vacuum does to heap pages, inserts of many tuples at once, and other changes that
//! did not fit into Heap's eight opcodes.
//!
//! The opcode is `xl_info & 0x70`; bit 0x80 says, of MULTI_INSERT, that the page is built from
//! nothing. Opcodes 0x10, 0x20 and 0x30 mean something else before 14 and from 17 on.
//!
//! ```text
//! main data                                             block references
//! REWRITE       40 bytes, then tuples, 36 bytes each      none; a file of `pg_logical/mappings`
//! PRUNE         latestRemovedXid u32, nredirected u16,  0 heap page; data: pairs from, to;
//!               ndead u16                                 dead; the rest unused; each u16
//! VACUUM        nunused u16                             0 heap page; data: unused u16[]
//! FREEZE_PAGE   cutoff_xid u32, ntuples u16             0 heap page; data: plans, 12 bytes each
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
//! REWRITE (xl_heap_rewrite_mapping)
//! offset  size  field
//!      0     4  mapped_xid      whoever decodes this transaction may need the file
//!      4     4  mapped_db       0 for shared catalogs
//!      8     4  mapped_rel
//!     16     8  offset          where in the file
//!     24     4  num_mappings
//!     32     8  start_lsn       where the rewrite began
//! ```
//!
//! Rules: `src/include/access/heapam_xlog.h` of 15, `src/backend/access/heap/rewriteheap.c`.

use crate::bytes::{u8_at, u16_at, u32_at};
use crate::cursor::{Cursor, CursorError};
use crate::lsn::{Lsn, TransactionId};
use crate::rmgr::heap::TupleImage;

pub use crate::rmgr::heap::{INIT_PAGE, OPCODE_MASK};

/// `XLOG_HEAP2_REWRITE`.
pub const REWRITE: u8 = 0x00;
/// `XLOG_HEAP2_PRUNE`.
pub const PRUNE: u8 = 0x10;
/// `XLOG_HEAP2_VACUUM`.
pub const VACUUM: u8 = 0x20;
/// `XLOG_HEAP2_FREEZE_PAGE`.
pub const FREEZE_PAGE: u8 = 0x30;
/// `XLOG_HEAP2_VISIBLE`.
pub const VISIBLE: u8 = 0x40;
/// `XLOG_HEAP2_MULTI_INSERT`.
pub const MULTI_INSERT: u8 = 0x50;
/// `XLOG_HEAP2_LOCK_UPDATED`.
pub const LOCK_UPDATED: u8 = 0x60;
/// `XLOG_HEAP2_NEW_CID`.
pub const NEW_CID: u8 = 0x70;

/// The old `xvac` of a moved tuple becomes frozen (`XLH_FREEZE_XVAC`).
pub const FREEZE_XVAC: u8 = 0x02;
/// The old `xvac` of a moved tuple becomes invalid (`XLH_INVALID_XVAC`).
pub const INVALID_XVAC: u8 = 0x04;

const FREEZE_PLAN_SIZE: usize = 12;
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

/// Line pointer numbers, as they lie in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offsets<'a>(&'a [u8]);

impl<'a> Offsets<'a> {
    /// How many there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.0.len() / 2
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Them, in order.
    pub fn iter(&self) -> impl Iterator<Item = u16> + 'a {
        self.0.chunks_exact(2).map(|pair| u16_at(pair, 0))
    }
}

/// PRUNE (`xl_heap_prune` and the data of its block).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prune<'a> {
    /// The newest transaction whose tuples go.
    pub latest_removed_xid: TransactionId,
    redirected: Offsets<'a>,
    /// Line pointers that become dead.
    pub dead: Offsets<'a>,
    /// Line pointers that become unused.
    pub unused: Offsets<'a>,
}

impl<'a> Prune<'a> {
    /// Reads main data and the data of block 0.
    ///
    /// # Errors
    /// [`CursorError`] if either is too short.
    pub fn read(main_data: &[u8], block_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let latest_removed_xid = TransactionId(cursor.u32("latestRemovedXid")?);
        let redirected = usize::from(cursor.u16("nredirected")?);
        let dead = usize::from(cursor.u16("ndead")?);
        let mut cursor = Cursor::new(block_data);
        Ok(Self {
            latest_removed_xid,
            redirected: Offsets(cursor.take(redirected * 4, "redirected")?),
            dead: Offsets(cursor.take(dead * 2, "nowdead")?),
            unused: Offsets(cursor.rest()),
        })
    }

    /// Line pointers that become redirections: (from, to).
    pub fn redirected(&self) -> impl Iterator<Item = (u16, u16)> + 'a {
        self.redirected.0.chunks_exact(4).map(|pair| (u16_at(pair, 0), u16_at(pair, 2)))
    }
}

/// Reads VACUUM's main data and the data of block 0: the line pointers that become unused.
///
/// # Errors
/// [`CursorError`] if either is too short.
pub fn read_vacuum<'a>(main_data: &[u8], block_data: &'a [u8]) -> Result<Offsets<'a>, CursorError> {
    let count = usize::from(Cursor::new(main_data).u16("nunused")?);
    Ok(Offsets(Cursor::new(block_data).take(count * 2, "nowunused")?))
}

/// What freezing makes of one tuple (`xl_heap_freeze_tuple`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreezePlan {
    /// Its new xmax.
    pub xmax: TransactionId,
    /// Its line pointer.
    pub offnum: u16,
    /// Its new `t_infomask2`.
    pub infomask2: u16,
    /// Its new `t_infomask`.
    pub infomask: u16,
    /// [`FREEZE_XVAC`], [`INVALID_XVAC`] or 0.
    pub flags: u8,
}

/// FREEZE_PAGE (`xl_heap_freeze_page` and the data of its block).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FreezePage<'a> {
    /// Transactions before this one are frozen.
    pub cutoff_xid: TransactionId,
    plans: &'a [u8],
}

impl<'a> FreezePage<'a> {
    /// Reads main data and the data of block 0.
    ///
    /// # Errors
    /// [`CursorError`] if either is too short.
    pub fn read(main_data: &[u8], block_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let cutoff_xid = TransactionId(cursor.u32("cutoff_xid")?);
        let count = usize::from(cursor.u16("ntuples")?);
        let plans = Cursor::new(block_data).take(count * FREEZE_PLAN_SIZE, "freeze plans")?;
        Ok(Self { cutoff_xid, plans })
    }

    /// What becomes of each tuple.
    pub fn plans(&self) -> impl Iterator<Item = FreezePlan> + 'a {
        self.plans.chunks_exact(FREEZE_PLAN_SIZE).map(|plan| FreezePlan {
            xmax: TransactionId(u32_at(plan, 0)),
            offnum: u16_at(plan, 4),
            infomask2: u16_at(plan, 6),
            infomask: u16_at(plan, 8),
            flags: u8_at(plan, 10),
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
            Some(Offsets(cursor.take(usize::from(tuple_count) * 2, "offsets")?))
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
            Some(offsets) => u16_at(offsets.0, usize::from(self.next) * 2),
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
    fn prune_splits_its_offsets() {
        let main = [0, 0, 0, 0, 1, 0, 2, 0];
        let data: Vec<u8> = [1_u16, 2, 3, 4, 5, 6].iter().flat_map(|o| o.to_le_bytes()).collect();
        let prune = Prune::read(&main, &data).expect("long enough");
        assert_eq!(prune.redirected().collect::<Vec<_>>(), [(1, 2)]);
        assert_eq!(prune.dead.iter().collect::<Vec<_>>(), [3, 4]);
        assert_eq!(prune.unused.iter().collect::<Vec<_>>(), [5, 6]);
        assert!(Prune::read(&main, &data[..6]).is_err());
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
