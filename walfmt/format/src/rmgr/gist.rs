//! Gist records: what they contain, and the pages of such an index.
//!
//! ```text
//! opcode       main data                       block references: their data
//! PAGE_UPDATE  ntodelete u16, ntoinsert u16    0 page: offsets, tuples; 1 left child whose split this
//!                                              ends, if it does
//! DELETE       gistxlogDelete                  0 leaf
//! PAGE_REUSE   gistxlogPageReuse               none
//! PAGE_SPLIT   gistxlogPageSplit               0 as block 1 of PAGE_UPDATE; 1 to npage, new, the page
//!                                              that is split first: number i32, tuples
//! PAGE_DELETE  deleteXid u64, downlinkOffset   0 leaf; 1 parent
//!              u16
//! ASSIGN_LSN   0 i32                           none
//!
//! gistxlogDelete, without and with the catalog flag; then offsets
//!   0  4  latestRemovedXid                       0  4  snapshotConflictHorizon
//!   4  2  ntodelete                              4  2  ntodelete
//!                                                6  1  isCatalogRel, then 1 of padding
//! gistxlogPageReuse, 24 bytes, 25 with the flag
//!   0 12  locator                              gistxlogPageSplit, 24 bytes
//!  12  4  block                                  0  4  origrlink, then 4 of padding
//!  16  8  snapshotConflictHorizon                8  8  orignsn
//!  24  1  isCatalogRel                          16  1  origleaf, then 1 of padding
//!                                               18  2  npage
//!                                               20  1  markfollowright, then 3 of padding
//! ```
//!
//! A page has 16 bytes of special space (`GISTPageOpaqueData`); there is no meta page, and block 0 is the
//! root:
//!
//! ```text
//! special space                                         deleted page, from byte 24
//!   0  8  nsn           high half first, as pd_lsn        0  8  deleteXid
//!   8  4  rightlink
//!  12  2  flags         F_*
//!  14  2  gist_page_id  GIST_PAGE_ID
//! ```
//!
//! Rules: `src/include/access/gistxlog.h`, `gist.h`; `src/backend/access/gist/gistxlog.c`.

use super::items::{IndexTuples, Offsets};
use crate::cursor::{Cursor, CursorError};
use crate::lsn::{Lsn, TransactionId};
use crate::relation::{BlockNumber, RelFileLocator};
use crate::version::Version;

#[allow(missing_docs)] // the names are PostgreSQL's, what they mean is drawn above
mod opcodes {
    pub const XLOG_GIST_PAGE_UPDATE: u8 = 0x00;
    pub const XLOG_GIST_DELETE: u8 = 0x10;
    pub const XLOG_GIST_PAGE_REUSE: u8 = 0x20;
    pub const XLOG_GIST_PAGE_SPLIT: u8 = 0x30;
    pub const XLOG_GIST_PAGE_DELETE: u8 = 0x60;
    pub const XLOG_GIST_ASSIGN_LSN: u8 = 0x70;
}
pub use opcodes::*;

/// `gist_page_id`: tells a Gist page from those of other indexes.
pub const GIST_PAGE_ID: u16 = 0xFF81;
/// Size of a Gist page's special space, in bytes.
pub const OPAQUE_SIZE: usize = 16;
/// The root (`GIST_ROOT_BLKNO`).
pub const ROOT_BLOCK: BlockNumber = 0;

/// Leaf page.
pub const F_LEAF: u16 = 1 << 0;
/// Deleted from the tree.
pub const F_DELETED: u16 = 1 << 1;
/// Tuples were deleted from the page.
pub const F_TUPLES_DELETED: u16 = 1 << 2;
/// The page to the right has no downlink yet.
pub const F_FOLLOW_RIGHT: u16 = 1 << 3;
/// Has dead items. A hint.
pub const F_HAS_GARBAGE: u16 = 1 << 4;

/// The main data of PAGE_UPDATE (`gistxlogPageUpdate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageUpdate {
    /// How many items go (`ntodelete`).
    pub deleted: u16,
    /// How many tuples come (`ntoinsert`).
    pub inserted: u16,
}

/// What PAGE_UPDATE changes on its page. If one item goes and one tuple comes, the tuple takes the item's
/// place; otherwise tuples come behind the last item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageChange<'a> {
    /// Items that go.
    pub deleted: Offsets<'a>,
    /// Tuples that come.
    pub inserted: IndexTuples<'a>,
}

impl PageUpdate {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 4 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self { deleted: cursor.u16("ntodelete")?, inserted: cursor.u16("ntoinsert")? };
        cursor.finish("ntoinsert")?;
        Ok(this)
    }

    /// Splits the data of block 0.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn change<'a>(&self, block_data: &'a [u8]) -> Result<PageChange<'a>, CursorError> {
        let mut cursor = Cursor::new(block_data);
        let deleted = Offsets::read(&mut cursor, self.deleted, "todelete")?;
        let inserted = IndexTuples::new(cursor.rest(), self.inserted.into(), "tuples")?;
        Ok(PageChange { deleted, inserted })
    }
}

/// The main data of DELETE (`gistxlogDelete`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delete<'a> {
    /// The newest transaction whose rows the deleted tuples were of (`snapshotConflictHorizon`).
    pub conflict_horizon: TransactionId,
    /// Whether the table is a catalog for logical decoding (`isCatalogRel`); `false` in majors that do not
    /// say it.
    pub is_catalog: bool,
    /// Items to delete.
    pub deleted: Offsets<'a>,
}

impl<'a> Delete<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what it says.
    pub fn read(main_data: &'a [u8], version: &Version) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let conflict_horizon = TransactionId(cursor.u32("snapshotConflictHorizon")?);
        let count = cursor.u16("ntodelete")?;
        let mut is_catalog = false;
        if version.conflicts_have_catalog_flag {
            is_catalog = cursor.u8("isCatalogRel")? != 0;
            cursor.take(1, "padding")?;
        }
        let deleted = Offsets::read(&mut cursor, count, "offsets")?;
        cursor.finish("offsets")?;
        Ok(Self { conflict_horizon, is_catalog, deleted })
    }
}

/// The main data of PAGE_REUSE (`gistxlogPageReuse`): changes nothing, only makes the queries of a standby
/// give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageReuse {
    /// The index (`locator`).
    pub locator: RelFileLocator,
    /// The page that is used again (`block`).
    pub block: BlockNumber,
    /// The deleted page's `deleteXid`, a 64-bit transaction id (`snapshotConflictHorizon`).
    pub conflict_horizon: u64,
    /// As [`Delete::is_catalog`].
    pub is_catalog: bool,
}

impl PageReuse {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 24 bytes long, or 25.
    pub fn read(main_data: &[u8], version: &Version) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let mut this = Self {
            locator: cursor.locator("locator")?,
            block: cursor.u32("block")?,
            conflict_horizon: cursor.u64("snapshotConflictHorizon")?,
            is_catalog: false,
        };
        if version.conflicts_have_catalog_flag {
            this.is_catalog = cursor.u8("isCatalogRel")? != 0;
        }
        cursor.finish("end of gistxlogPageReuse")?;
        Ok(this)
    }
}

/// The main data of PAGE_SPLIT (`gistxlogPageSplit`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSplit {
    /// The page to the right before the split: the last new page's right link (`origrlink`).
    pub right_link: BlockNumber,
    /// The `nsn` before the split: that of all new pages (`orignsn`).
    pub nsn: Lsn,
    /// Whether it was a leaf (`origleaf`).
    pub is_leaf: bool,
    /// How many pages it became (`npage`): blocks 1 to this. The first is a new root if it is
    /// [`ROOT_BLOCK`].
    pub pages: u16,
    /// Whether all but the last get [`F_FOLLOW_RIGHT`], unless the root was split (`markfollowright`).
    pub marks_follow_right: bool,
}

impl PageSplit {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 24 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let right_link = cursor.u32("origrlink")?;
        cursor.take(4, "padding")?;
        let nsn = Lsn(cursor.u64("orignsn")?);
        let is_leaf = cursor.u8("origleaf")? != 0;
        cursor.take(1, "padding")?;
        let pages = cursor.u16("npage")?;
        let marks_follow_right = cursor.u8("markfollowright")? != 0;
        cursor.take(3, "padding")?;
        cursor.finish("padding")?;
        Ok(Self { right_link, nsn, is_leaf, pages, marks_follow_right })
    }
}

/// Reads the data of one of PAGE_SPLIT's new pages: its tuples, the first of which is item 1.
///
/// # Errors
/// [`CursorError`] if it is too short.
pub fn read_split_page(block_data: &[u8]) -> Result<IndexTuples<'_>, CursorError> {
    let mut cursor = Cursor::new(block_data);
    let count = cursor.u32("num")?;
    IndexTuples::new(cursor.rest(), count as usize, "tuples")
}

/// The main data of PAGE_DELETE (`gistxlogPageDelete`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageDelete {
    /// The last 64-bit transaction id that may still be on its way to the page (`deleteXid`).
    pub delete_xid: u64,
    /// The item of the parent that points to the page (`downlinkOffset`).
    pub parent_item: u16,
}

impl PageDelete {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 10 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            delete_xid: cursor.u64("deleteXid")?,
            parent_item: cursor.u16("downlinkOffset")?,
        };
        cursor.finish("downlinkOffset")?;
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_as_long_as_postgresql_writes_them() {
        let bytes = [0; 40];
        let [without, with] = [15, 16].map(|major| Version::from_major(major).expect("known"));
        let lengths = |read: &dyn Fn(&[u8]) -> bool| {
            (0..=bytes.len()).filter(|&length| read(&bytes[..length])).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&|b| PageUpdate::read(b).is_ok()), [4]);
        assert_eq!(lengths(&|b| Delete::read(b, without).is_ok()), [6]);
        assert_eq!(lengths(&|b| Delete::read(b, with).is_ok()), [8]);
        assert_eq!(lengths(&|b| PageReuse::read(b, without).is_ok()), [24]);
        assert_eq!(lengths(&|b| PageReuse::read(b, with).is_ok()), [25]);
        assert_eq!(lengths(&|b| PageSplit::read(b).is_ok()), [24]);
        assert_eq!(lengths(&|b| PageDelete::read(b).is_ok()), [10]);
    }

    #[test]
    fn a_page_change_is_split_exactly() {
        let update = PageUpdate { deleted: 2, inserted: 1 };
        let data = [3, 0, 4, 0, 9, 9, 9, 9, 9, 9, 8, 0];
        let change = update.change(&data).expect("long enough");
        assert_eq!(change.deleted.iter().collect::<Vec<_>>(), [3, 4]);
        assert!(change.inserted.iter().all(|tuple| tuple.is_ok()));
        assert!(update.change(&data[..11]).is_err());

        let page = [&[1, 0, 0, 0], &data[4..]].concat();
        assert_eq!(read_split_page(&page).map(|tuples| tuples.len()), Ok(1));
        let claims = [&[0xFF; 4], &data[4..]].concat();
        assert!(read_split_page(&claims).is_err());
    }
}
