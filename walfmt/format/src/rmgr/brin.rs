//! BRIN records: what they contain, and the pages of such an index.
//!
//! The opcode is `xl_info & 0x70`; bit 0x80 says, of INSERT and UPDATE, that block 0 is built from nothing.
//!
//! ```text
//! opcode           main data                          block references: their data
//! CREATE_INDEX     pagesPerRange u32, version u16     0 meta page, new
//! INSERT           xl_brin_insert                     0 regular page: tuple; 1 map page
//! UPDATE           oldOffnum u16, 2 of padding,       as INSERT; 2 the old tuple's page
//!                  xl_brin_insert
//! SAMEPAGE_UPDATE  offnum u16                         0 regular page: tuple
//! REVMAP_EXTEND    targetBlk u32                      0 meta page; 1 map page, new
//! DESUMMARIZE      pagesPerRange u32, heapBlk u32,    0 map page; 1 regular page
//!                  regOffset u16
//!
//! xl_brin_insert, 10 bytes
//!   0  4  heapBlk
//!   4  4  pagesPerRange
//!   8  2  offnum
//! ```
//!
//! Each page has 8 bytes of special space, whose last 2 are the page's type ([`PAGETYPE_META`] and so on),
//! with [`EVACUATE_PAGE`] in the 2 before. Block 0 is the meta page; then come map pages, then regular ones:
//!
//! ```text
//! meta page, from byte 24 (BrinMetaPageData)   map page, from byte 24 (RevmapContents)
//!   0  4  brinMagic                              6 * 1360  rm_tids: where the tuple of each range is
//!   4  4  brinVersion
//!   8  4  pagesPerRange                        tuple on a regular page (BrinTuple)
//!  12  4  lastRevmapPage                         0  4  bt_blkno  the range's first heap block
//!                                                4  1  bt_info   size of the header 0x1F, empty 0x20,
//!                                                                placeholder 0x40, has nulls 0x80
//! ```
//!
//! Rules: `src/include/access/brin_xlog.h`, `brin_page.h`, `brin_tuple.h`;
//! `src/backend/access/brin/brin_xlog.c`.

use crate::cursor::{Cursor, CursorError};
use crate::relation::BlockNumber;

/// The bits of `xl_info` that are the opcode (`XLOG_BRIN_OPMASK`).
pub const OPCODE_MASK: u8 = 0x70;
/// The bit of `xl_info` that says that block 0 is built from nothing (`XLOG_BRIN_INIT_PAGE`).
pub const INIT_PAGE: u8 = 0x80;

#[allow(missing_docs)] // the names are PostgreSQL's, what they mean is drawn above
mod opcodes {
    pub const XLOG_BRIN_CREATE_INDEX: u8 = 0x00;
    pub const XLOG_BRIN_INSERT: u8 = 0x10;
    pub const XLOG_BRIN_UPDATE: u8 = 0x20;
    pub const XLOG_BRIN_SAMEPAGE_UPDATE: u8 = 0x30;
    pub const XLOG_BRIN_REVMAP_EXTEND: u8 = 0x40;
    pub const XLOG_BRIN_DESUMMARIZE: u8 = 0x50;
}
pub use opcodes::*;

/// `brinMagic`.
pub const BRIN_META_MAGIC: u32 = 0xA810_9CFA;
/// Size of a BRIN page's special space, in bytes.
pub const SPECIAL_SIZE: usize = 8;
/// Type of the meta page (`BRIN_PAGETYPE_META`).
pub const PAGETYPE_META: u16 = 0xF091;
/// Type of a map page (`BRIN_PAGETYPE_REVMAP`).
pub const PAGETYPE_REVMAP: u16 = 0xF092;
/// Type of a page with tuples (`BRIN_PAGETYPE_REGULAR`).
pub const PAGETYPE_REGULAR: u16 = 0xF093;
/// The page's tuples are on their way to other pages: it becomes a map page (`BRIN_EVACUATE_PAGE`). Not in
/// the WAL.
pub const EVACUATE_PAGE: u16 = 1 << 0;
/// How many ranges a map page has room for (`REVMAP_PAGE_MAXITEMS`).
pub const REVMAP_PAGE_ITEMS_MAX: u32 = 1360;

/// The main data of CREATE_INDEX (`xl_brin_createidx`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateIndex {
    /// How many heap pages a range has (`pagesPerRange`).
    pub pages_per_range: u32,
    /// The index format's version (`version`).
    pub version: u16,
}

impl CreateIndex {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 6 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this =
            Self { pages_per_range: cursor.u32("pagesPerRange")?, version: cursor.u16("version")? };
        cursor.finish("version")?;
        Ok(this)
    }
}

/// The main data of INSERT (`xl_brin_insert`), and the last part of that of UPDATE. The tuple is block 0's
/// data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insert {
    /// The first heap page of the range (`heapBlk`).
    pub heap_block: BlockNumber,
    /// How many heap pages a range has (`pagesPerRange`). Not checked: may be 0.
    pub pages_per_range: u32,
    /// The new tuple's item number (`offnum`).
    pub item: u16,
}

impl Insert {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 10 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            heap_block: cursor.u32("heapBlk")?,
            pages_per_range: cursor.u32("pagesPerRange")?,
            item: cursor.u16("offnum")?,
        };
        cursor.finish("offnum")?;
        Ok(this)
    }
}

/// The main data of UPDATE (`xl_brin_update`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// The old tuple's item number, on block 2 (`oldOffnum`).
    pub old_item: u16,
    /// The new tuple.
    pub insert: Insert,
}

impl Update {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 14 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let old_item = cursor.u16("oldOffnum")?;
        cursor.take(2, "padding")?;
        Ok(Self { old_item, insert: Insert::read(cursor.rest())? })
    }
}

/// Reads the main data of SAMEPAGE_UPDATE (`xl_brin_samepage_update`): the tuple's item number. The new
/// tuple is block 0's data.
///
/// # Errors
/// [`CursorError`] if it is not 2 bytes long.
pub fn read_samepage_update(main_data: &[u8]) -> Result<u16, CursorError> {
    let mut cursor = Cursor::new(main_data);
    let item = cursor.u16("offnum")?;
    cursor.finish("offnum")?;
    Ok(item)
}

/// Reads the main data of REVMAP_EXTEND (`xl_brin_revmap_extend`): the new map page, the same as block 1.
///
/// # Errors
/// [`CursorError`] if it is not 4 bytes long.
pub fn read_revmap_extend(main_data: &[u8]) -> Result<BlockNumber, CursorError> {
    let mut cursor = Cursor::new(main_data);
    let block = cursor.u32("targetBlk")?;
    cursor.finish("targetBlk")?;
    Ok(block)
}

/// The main data of DESUMMARIZE (`xl_brin_desummarize`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Desummarize {
    /// How many heap pages a range has (`pagesPerRange`). Not checked: may be 0.
    pub pages_per_range: u32,
    /// The first heap page of the range (`heapBlk`).
    pub heap_block: BlockNumber,
    /// The item number of the tuple that goes, on block 1 (`regOffset`).
    pub item: u16,
}

impl Desummarize {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 10 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            pages_per_range: cursor.u32("pagesPerRange")?,
            heap_block: cursor.u32("heapBlk")?,
            item: cursor.u16("regOffset")?,
        };
        cursor.finish("regOffset")?;
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_as_long_as_postgresql_writes_them() {
        let bytes: Vec<u8> = (0..20).collect();
        let lengths = |read: &dyn Fn(&[u8]) -> bool| {
            (0..=bytes.len()).filter(|&length| read(&bytes[..length])).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&|b| CreateIndex::read(b).is_ok()), [6]);
        assert_eq!(lengths(&|b| Insert::read(b).is_ok()), [10]);
        assert_eq!(lengths(&|b| Update::read(b).is_ok()), [14]);
        assert_eq!(lengths(&|b| read_samepage_update(b).is_ok()), [2]);
        assert_eq!(lengths(&|b| read_revmap_extend(b).is_ok()), [4]);
        assert_eq!(lengths(&|b| Desummarize::read(b).is_ok()), [10]);
        assert_eq!(Update::read(&bytes[..14]).map(|update| update.insert.item), Ok(0x0D0C));
    }
}
