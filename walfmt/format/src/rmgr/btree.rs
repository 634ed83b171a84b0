//! Btree records: what they contain, and the btree pages they speak of. As from PostgreSQL 14 on.
//!
//! ```text
//! opcode           main data              block references: their data
//! INSERT_LEAF      offnum u16             0 leaf: tuple
//! INSERT_UPPER     offnum u16             0 internal page: tuple; 1 child
//! INSERT_META      offnum u16             as INSERT_UPPER; 2 meta page: metadata
//! INSERT_POST      offnum u16             0 leaf: postingoff u16, tuple
//! SPLIT_L SPLIT_R  xl_btree_split         0 left page: [new tuple,] high key; 1 right page: tuples;
//!                                         2 page to the right, if any; 3 child, if level > 0
//! DEDUP            nintervals u16         0 leaf: intervals
//! VACUUM           xl_btree_vacuum        0 leaf: deletions and updates
//! DELETE           xl_btree_delete        0 leaf: deletions and updates
//! MARK_PAGE_HALFDEAD  xl_btree_mark_..    0 leaf; 1 parent
//! UNLINK_PAGE      xl_btree_unlink_page   0 target; 1 left sibling, if any; 2 right sibling;
//!                                         3 leaf, if it is not the target
//! UNLINK_PAGE_META xl_btree_unlink_page   as UNLINK_PAGE; 4 meta page: metadata
//! NEWROOT          rootblk u32, level u32 0 root: tuples, if level > 0; 1 left child, if level > 0;
//!                                         2 meta page: metadata
//! REUSE_PAGE       xl_btree_reuse_page    none
//! META_CLEANUP     none                   0 meta page: metadata
//!
//! xl_btree_split, 10 bytes                      xl_btree_unlink_page, 36 bytes
//!   0  4  level                                   0  4  leftsib
//!   4  2  firstrightoff                           4  4  rightsib
//!   6  2  newitemoff                              8  4  level
//!   8  2  postingoff                             12  4  (padding)
//! xl_btree_metadata, 28 bytes                    16  8  safexid
//!   0  4  version                                24  4  leafleftsib
//!   4  4  root                                   28  4  leafrightsib
//!   8  4  level                                  32  4  leaftopparent
//!  12  4  fastroot                              xl_btree_mark_page_halfdead, 20 bytes
//!  16  4  fastlevel                               0  2  poffset
//!  20  4  last_cleanup_num_delpages               2  2  (padding)
//!  24  1  allequalimage                           4  4  leafblk
//!  25  3  (padding)                               8  4  leftblk
//! xl_btree_delete, 8 bytes                       12  4  rightblk
//!   0  4  latestRemovedXid (not in a VACUUM)     16  4  topparent
//!   4  2  ndeleted                              xl_btree_reuse_page, 24 bytes
//!   6  2  nupdated                                0 12  node
//!  (8  1  isCatalogRel)                          12  4  block
//!                                                16  8  latestRemovedFullXid
//! deletions and updates                         (24  1  isCatalogRel)
//!   u16 * ndeleted   items to delete, ascending
//!   u16 * nupdated   items with posting lists that become shorter
//!   nupdated times:  ndeletedtids u16, u16 * ndeletedtids positions in the posting list, from 0
//! interval, 4 bytes: baseoff u16, nitems u16
//! isCatalogRel is there in majors that say it, and makes both a byte longer
//! tuples: a copy of the page's items as they lie, so that the item with the highest number is first
//! ```
//!
//! A btree page has 16 bytes of special space (`BTPageOpaqueData`); page 0 is the meta page:
//!
//! ```text
//! special space                            meta page, from byte 24 (BTMetaPageData)
//!   0  4  btpo_prev    0 if leftmost         0  4  btm_magic
//!   4  4  btpo_next    0 if rightmost        4  4  btm_version
//!   8  4  btpo_level   0 is a leaf           8  4  btm_root
//!  12  2  btpo_flags   BTP_*                12  4  btm_level
//!  14  2  btpo_cycleid                      16  4  btm_fastroot
//!                                           20  4  btm_fastlevel
//! deleted page, from byte 24                24  4  btm_last_cleanup_num_delpages
//!   0  8  safexid                           32  8  btm_last_cleanup_num_heap_tuples  f64
//!                                           40  1  btm_allequalimage, then padding up to 48
//! ```
//!
//! Item 1 is the high key, unless the page is rightmost. A tuple whose `t_info` has
//! [`INDEX_ALT_TID_MASK`] uses `t_tid` for itself. On a leaf it is a posting list, many heap tuples
//! under one key; elsewhere, a pivot with a downlink:
//!
//! ```text
//!             t_tid block                  t_tid offset
//! posting     where the addresses begin    BT_IS_POSTING | number of addresses
//! pivot       child                        number of key attributes [| BT_PIVOT_HEAP_TID_ATTR]
//! ```
//!
//! Rules: `src/include/access/nbtxlog.h`, `nbtree.h`.

use crate::bytes::u16_at;
use crate::cursor::{Cursor, CursorError};
use crate::lsn::TransactionId;
use crate::page::{IndexTuple, ItemPointer};
use crate::relation::{BlockNumber, RelFileLocator};
use crate::version::Version;

pub use super::items::Offsets;

#[allow(missing_docs)] // the names are PostgreSQL's, what they mean is drawn above
mod opcodes {
    pub const XLOG_BTREE_INSERT_LEAF: u8 = 0x00;
    pub const XLOG_BTREE_INSERT_UPPER: u8 = 0x10;
    pub const XLOG_BTREE_INSERT_META: u8 = 0x20;
    pub const XLOG_BTREE_SPLIT_L: u8 = 0x30;
    pub const XLOG_BTREE_SPLIT_R: u8 = 0x40;
    pub const XLOG_BTREE_INSERT_POST: u8 = 0x50;
    pub const XLOG_BTREE_DEDUP: u8 = 0x60;
    pub const XLOG_BTREE_DELETE: u8 = 0x70;
    pub const XLOG_BTREE_UNLINK_PAGE: u8 = 0x80;
    pub const XLOG_BTREE_UNLINK_PAGE_META: u8 = 0x90;
    pub const XLOG_BTREE_NEWROOT: u8 = 0xA0;
    pub const XLOG_BTREE_MARK_PAGE_HALFDEAD: u8 = 0xB0;
    pub const XLOG_BTREE_VACUUM: u8 = 0xC0;
    pub const XLOG_BTREE_REUSE_PAGE: u8 = 0xD0;
    pub const XLOG_BTREE_META_CLEANUP: u8 = 0xE0;
}
pub use opcodes::*;

/// The opcode's name as `pg_waldump` prints it (`btree_identify`).
#[must_use]
pub const fn opcode_name(opcode: u8) -> Option<&'static str> {
    Some(match opcode {
        XLOG_BTREE_INSERT_LEAF => "INSERT_LEAF",
        XLOG_BTREE_INSERT_UPPER => "INSERT_UPPER",
        XLOG_BTREE_INSERT_META => "INSERT_META",
        XLOG_BTREE_SPLIT_L => "SPLIT_L",
        XLOG_BTREE_SPLIT_R => "SPLIT_R",
        XLOG_BTREE_INSERT_POST => "INSERT_POST",
        XLOG_BTREE_DEDUP => "DEDUP",
        XLOG_BTREE_DELETE => "DELETE",
        XLOG_BTREE_UNLINK_PAGE => "UNLINK_PAGE",
        XLOG_BTREE_UNLINK_PAGE_META => "UNLINK_PAGE_META",
        XLOG_BTREE_NEWROOT => "NEWROOT",
        XLOG_BTREE_MARK_PAGE_HALFDEAD => "MARK_PAGE_HALFDEAD",
        XLOG_BTREE_VACUUM => "VACUUM",
        XLOG_BTREE_REUSE_PAGE => "REUSE_PAGE",
        XLOG_BTREE_META_CLEANUP => "META_CLEANUP",
        _ => return None,
    })
}

/// Size of a btree page's special space, in bytes.
pub const OPAQUE_SIZE: usize = 16;
/// Size of what a meta page contains, in bytes, padding included (`sizeof(BTMetaPageData)`).
pub const META_PAGE_DATA_SIZE: usize = 48;
/// `btm_magic`.
pub const BTREE_MAGIC: u32 = 0x0005_3162;
/// No page: the meta page is nobody's sibling (`P_NONE`).
pub const P_NONE: BlockNumber = 0;
/// The item number of the high key.
pub const P_HIKEY: u16 = 1;
/// The largest tuple, in bytes (`BTMaxItemSize`): three fit on a page.
pub const ITEM_SIZE_MAX: usize = 2704;

/// Leaf page.
pub const BTP_LEAF: u16 = 1 << 0;
/// Root page.
pub const BTP_ROOT: u16 = 1 << 1;
/// Deleted from the tree.
pub const BTP_DELETED: u16 = 1 << 2;
/// Meta page.
pub const BTP_META: u16 = 1 << 3;
/// Empty, but still in the tree.
pub const BTP_HALF_DEAD: u16 = 1 << 4;
/// Rightmost page of a group that came from splits during one VACUUM.
pub const BTP_SPLIT_END: u16 = 1 << 5;
/// Has dead items. A hint.
pub const BTP_HAS_GARBAGE: u16 = 1 << 6;
/// The right sibling's downlink is missing.
pub const BTP_INCOMPLETE_SPLIT: u16 = 1 << 7;
/// Deleted by 14 or later: has a 64-bit `safexid`.
pub const BTP_HAS_FULLXID: u16 = 1 << 8;

/// `t_info`: `t_tid` is not a heap tuple's address.
pub const INDEX_ALT_TID_MASK: u16 = 0x2000;
/// `t_tid` offset: how many attributes or addresses.
pub const BT_OFFSET_MASK: u16 = 0x0FFF;
/// `t_tid` offset: a heap tuple's address follows the pivot's key.
pub const BT_PIVOT_HEAP_TID_ATTR: u16 = 0x1000;
/// `t_tid` offset: it is a posting list.
pub const BT_IS_POSTING: u16 = 0x2000;

/// Where the posting list of a tuple lies inside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostingList {
    /// Where the addresses begin, in bytes from the tuple's start; the key ends there.
    pub start: usize,
    /// How many there are.
    pub count: usize,
}

impl PostingList {
    /// The tuple's posting list, if it has one (`BTreeTupleIsPosting`). It may claim to be longer
    /// than the tuple: see [`PostingList::end`].
    #[must_use]
    pub fn of(tuple: IndexTuple<'_>) -> Option<Self> {
        let tid = tuple.tid();
        let is_posting = tuple.info() & INDEX_ALT_TID_MASK != 0 && tid.offset & BT_IS_POSTING != 0;
        is_posting.then(|| Self {
            start: tid.block as usize,
            count: usize::from(tid.offset & BT_OFFSET_MASK),
        })
    }

    /// Where the addresses end.
    #[must_use]
    pub const fn end(&self) -> usize {
        self.start.saturating_add(self.count * ItemPointer::SIZE)
    }
}

/// The main data of INSERT_LEAF, INSERT_UPPER, INSERT_META and INSERT_POST (`xl_btree_insert`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insert {
    /// The new item's number (`offnum`).
    pub item: u16,
}

impl Insert {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 2 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let item = cursor.u16("offnum")?;
        cursor.finish("offnum")?;
        Ok(Self { item })
    }
}

/// The main data of SPLIT_L and SPLIT_R (`xl_btree_split`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Level of the page; leaves are 0 (`level`).
    pub level: u32,
    /// The first item of the page as it was that goes to the right (`firstrightoff`).
    pub first_right_item: u16,
    /// The number the new item would have got without the split (`newitemoff`).
    pub new_item: u16,
    /// Where the posting list before the new item is split, or 0 (`postingoff`).
    pub posting_offset: u16,
}

impl Split {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 10 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let split = Self {
            level: cursor.u32("level")?,
            first_right_item: cursor.u16("firstrightoff")?,
            new_item: cursor.u16("newitemoff")?,
            posting_offset: cursor.u16("postingoff")?,
        };
        cursor.finish("postingoff")?;
        Ok(split)
    }
}

/// Items in a row that DEDUP merges into one (`BTDedupInterval`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DedupInterval {
    /// The first item's number (`baseoff`).
    pub first_item: u16,
    /// How many items (`nitems`).
    pub items: u16,
}

impl DedupInterval {
    /// Reads the main data of a DEDUP record (`xl_btree_dedup`): how many intervals there are.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 2 bytes long.
    pub fn read_count(main_data: &[u8]) -> Result<u16, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let count = cursor.u16("nintervals")?;
        cursor.finish("nintervals")?;
        Ok(count)
    }

    /// Reads the intervals of a DEDUP record: their number is its main data (`xl_btree_dedup`),
    /// they themselves are block 0's data.
    ///
    /// # Errors
    /// [`CursorError`] if number and length contradict each other.
    pub fn read_all<'a>(
        main_data: &[u8],
        block_data: &'a [u8],
    ) -> Result<impl ExactSizeIterator<Item = Self> + use<'a>, CursorError> {
        let count = Self::read_count(main_data)?;
        let mut cursor = Cursor::new(block_data);
        let bytes = cursor.take(usize::from(count) * 4, "intervals")?;
        cursor.finish("intervals")?;
        Ok(bytes
            .chunks_exact(4)
            .map(|bytes| Self { first_item: u16_at(bytes, 0), items: u16_at(bytes, 2) }))
    }
}

/// The main data of VACUUM and DELETE (`xl_btree_vacuum`, `xl_btree_delete`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// The newest transaction whose rows were deleted; VACUUM does not say it.
    pub latest_removed_xid: Option<TransactionId>,
    /// How many items go (`ndeleted`).
    pub deleted: u16,
    /// How many posting lists become shorter (`nupdated`).
    pub updated: u16,
}

impl Deletion {
    /// Reads the main data of a VACUUM record.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 4 bytes long.
    pub fn read_vacuum(main_data: &[u8]) -> Result<Self, CursorError> {
        Self::read(Cursor::new(main_data), None)
    }

    /// Reads the main data of a DELETE record.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 8 bytes long.
    pub fn read_delete(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let xid = TransactionId(cursor.u32("latestRemovedXid")?);
        Self::read(cursor, Some(xid))
    }

    /// Reads the main data of a DELETE record, in majors that say whether the table is a catalog that
    /// logical decoding reads: with that.
    ///
    /// # Errors
    /// [`CursorError`] if it is not as long as the major makes it.
    pub fn read_delete_of(
        main_data: &[u8],
        version: &Version,
    ) -> Result<(Self, Option<bool>), CursorError> {
        let (main_data, is_catalog) = split_catalog_flag(main_data, version)?;
        Ok((Self::read_delete(main_data)?, is_catalog))
    }

    fn read(mut cursor: Cursor<'_>, xid: Option<TransactionId>) -> Result<Self, CursorError> {
        let deletion = Self {
            latest_removed_xid: xid,
            deleted: cursor.u16("ndeleted")?,
            updated: cursor.u16("nupdated")?,
        };
        cursor.finish("nupdated")?;
        Ok(deletion)
    }

    /// Splits block 0's data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short for the two lists of item numbers, or goes on after them
    /// although nothing is updated.
    pub fn items<'a>(&self, block_data: &'a [u8]) -> Result<DeletedItems<'a>, CursorError> {
        let mut cursor = Cursor::new(block_data);
        let deleted = Offsets::read(&mut cursor, self.deleted, "deleted offsets")?;
        let updated = Offsets::read(&mut cursor, self.updated, "updated offsets")?;
        if updated.is_empty() {
            cursor.clone().finish("deleted offsets")?;
        }
        Ok(DeletedItems { deleted, updated, updates: cursor })
    }
}

/// What VACUUM and DELETE say of the page's items.
#[derive(Clone, Debug)]
pub struct DeletedItems<'a> {
    /// Items to delete, by the numbers they have before anything is deleted.
    pub deleted: Offsets<'a>,
    /// Items whose posting list becomes shorter.
    pub updated: Offsets<'a>,
    updates: Cursor<'a>,
}

impl<'a> DeletedItems<'a> {
    /// Each item whose posting list becomes shorter, with the positions of the addresses that go.
    pub fn updates(&self) -> impl Iterator<Item = Result<(u16, Offsets<'a>), CursorError>> {
        let mut cursor = self.updates.clone();
        let mut left = self.updated.len();
        self.updated.iter().map(move |item| {
            let count = cursor.u16("ndeletedtids")?;
            let positions = Offsets::read(&mut cursor, count, "deleted positions")?;
            left -= 1;
            if left == 0 {
                cursor.clone().finish("deleted positions")?;
            }
            Ok((item, positions))
        })
    }
}

/// The main data of MARK_PAGE_HALFDEAD (`xl_btree_mark_page_halfdead`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkPageHalfDead {
    /// The parent's item that points to the subtree (`poffset`).
    pub parent_item: u16,
    /// The leaf (`leafblk`).
    pub leaf: BlockNumber,
    /// Its left sibling, or 0 (`leftblk`).
    pub left: BlockNumber,
    /// Its right sibling (`rightblk`).
    pub right: BlockNumber,
    /// The topmost page of the subtree above the leaf, if there is one (`topparent`).
    pub top_parent: BlockNumber,
}

impl MarkPageHalfDead {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 20 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let parent_item = cursor.u16("poffset")?;
        cursor.take(2, "padding")?;
        let this = Self {
            parent_item,
            leaf: cursor.u32("leafblk")?,
            left: cursor.u32("leftblk")?,
            right: cursor.u32("rightblk")?,
            top_parent: cursor.u32("topparent")?,
        };
        cursor.finish("topparent")?;
        Ok(this)
    }
}

/// The main data of UNLINK_PAGE and UNLINK_PAGE_META (`xl_btree_unlink_page`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnlinkPage {
    /// The target's left sibling, or 0 (`leftsib`).
    pub left: BlockNumber,
    /// Its right sibling (`rightsib`).
    pub right: BlockNumber,
    /// Its level (`level`).
    pub level: u32,
    /// From when on the page may be used again, a 64-bit transaction id (`safexid`).
    pub safe_xid: u64,
    /// If the target is not the leaf: the leaf's left sibling (`leafleftsib`).
    pub leaf_left: BlockNumber,
    /// If the target is not the leaf: the leaf's right sibling (`leafrightsib`).
    pub leaf_right: BlockNumber,
    /// If the target is not the leaf: the next page of the subtree (`leaftopparent`).
    pub leaf_top_parent: BlockNumber,
}

impl UnlinkPage {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 36 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let (left, right) = (cursor.u32("leftsib")?, cursor.u32("rightsib")?);
        let level = cursor.u32("level")?;
        cursor.take(4, "padding")?;
        let this = Self {
            left,
            right,
            level,
            safe_xid: cursor.u64("safexid")?,
            leaf_left: cursor.u32("leafleftsib")?,
            leaf_right: cursor.u32("leafrightsib")?,
            leaf_top_parent: cursor.u32("leaftopparent")?,
        };
        cursor.finish("leaftopparent")?;
        Ok(this)
    }
}

/// The main data of NEWROOT (`xl_btree_newroot`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewRoot {
    /// The new root, the same as block 0 (`rootblk`).
    pub root: BlockNumber,
    /// Its level (`level`).
    pub level: u32,
}

impl NewRoot {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 8 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self { root: cursor.u32("rootblk")?, level: cursor.u32("level")? };
        cursor.finish("level")?;
        Ok(this)
    }
}

/// The main data of REUSE_PAGE (`xl_btree_reuse_page`): changes nothing, only makes the queries of
/// a standby give way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReusePage {
    /// The index (`node`).
    pub locator: RelFileLocator,
    /// The page that is used again (`block`).
    pub block: BlockNumber,
    /// The deleted page's `safexid` (`latestRemovedFullXid`).
    pub safe_xid: u64,
}

impl ReusePage {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 24 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            locator: cursor.locator("node")?,
            block: cursor.u32("block")?,
            safe_xid: cursor.u64("latestRemovedFullXid")?,
        };
        cursor.finish("latestRemovedFullXid")?;
        Ok(this)
    }

    /// Reads it, in majors that say whether the table is a catalog that logical decoding reads: with
    /// that.
    ///
    /// # Errors
    /// [`CursorError`] if it is not as long as the major makes it.
    pub fn read_of(
        main_data: &[u8],
        version: &Version,
    ) -> Result<(Self, Option<bool>), CursorError> {
        let (main_data, is_catalog) = split_catalog_flag(main_data, version)?;
        Ok((Self::read(main_data)?, is_catalog))
    }
}

/// Takes `isCatalogRel` off the end, if the major has it.
fn split_catalog_flag<'a>(
    main_data: &'a [u8],
    version: &Version,
) -> Result<(&'a [u8], Option<bool>), CursorError> {
    if !version.conflicts_have_catalog_flag {
        return Ok((main_data, None));
    }
    let (flag, rest) = main_data.split_last().ok_or(CursorError::Short {
        field: "isCatalogRel",
        needed: 1,
        left: 0,
    })?;
    Ok((rest, Some(*flag != 0)))
}

/// The meta page's block data (`xl_btree_metadata`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The index format's version (`version`).
    pub version: u32,
    /// The root (`root`).
    pub root: BlockNumber,
    /// The root's level (`level`).
    pub level: u32,
    /// The lowest page that is alone on its level: where searches begin (`fastroot`).
    pub fast_root: BlockNumber,
    /// Its level (`fastlevel`).
    pub fast_level: u32,
    /// Deleted pages that could not be used again at the last cleanup
    /// (`last_cleanup_num_delpages`).
    pub last_cleanup_deleted_pages: u32,
    /// Whether equal values are equal bytes, so that posting lists may be made (`allequalimage`).
    pub all_equal_image: bool,
}

impl Metadata {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 28 bytes long.
    pub fn read(block_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(block_data);
        let this = Self {
            version: cursor.u32("version")?,
            root: cursor.u32("root")?,
            level: cursor.u32("level")?,
            fast_root: cursor.u32("fastroot")?,
            fast_level: cursor.u32("fastlevel")?,
            last_cleanup_deleted_pages: cursor.u32("last_cleanup_num_delpages")?,
            all_equal_image: cursor.u8("allequalimage")? != 0,
        };
        cursor.take(3, "padding")?;
        cursor.finish("padding")?;
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_as_long_as_postgresql_writes_them() {
        let bytes: Vec<u8> = (0..40).collect();
        let lengths = |read: &dyn Fn(&[u8]) -> bool| {
            (0..=bytes.len()).filter(|&length| read(&bytes[..length])).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&|b| Insert::read(b).is_ok()), [2]);
        assert_eq!(lengths(&|b| Split::read(b).is_ok()), [10]);
        assert_eq!(lengths(&|b| Deletion::read_vacuum(b).is_ok()), [4]);
        assert_eq!(lengths(&|b| Deletion::read_delete(b).is_ok()), [8]);
        assert_eq!(lengths(&|b| MarkPageHalfDead::read(b).is_ok()), [20]);
        assert_eq!(lengths(&|b| UnlinkPage::read(b).is_ok()), [36]);
        assert_eq!(lengths(&|b| NewRoot::read(b).is_ok()), [8]);
        assert_eq!(lengths(&|b| ReusePage::read(b).is_ok()), [24]);
        assert_eq!(lengths(&|b| Metadata::read(b).is_ok()), [28]);
        for (major, delete, reuse) in [(15, 8, 24), (16, 9, 25)] {
            let version = Version::from_major(major).expect("known");
            assert_eq!(lengths(&|b| Deletion::read_delete_of(b, version).is_ok()), [delete]);
            assert_eq!(lengths(&|b| ReusePage::read_of(b, version).is_ok()), [reuse]);
        }
    }

    #[test]
    fn deletions_and_updates_are_split_exactly() {
        let deletion = Deletion::read_vacuum(&[2, 0, 1, 0]).expect("4 bytes");
        let data = [3, 0, 4, 0, 7, 0, 2, 0, 0, 0, 5, 0];
        let items = deletion.items(&data).expect("long enough");
        assert_eq!(items.deleted.iter().collect::<Vec<_>>(), [3, 4]);
        let updates: Vec<_> = items.updates().collect::<Result<_, _>>().expect("exact");
        assert_eq!(updates.len(), 1);
        assert_eq!(updates[0].0, 7);
        assert_eq!(updates[0].1.iter().collect::<Vec<_>>(), [0, 5]);

        let longer = [&data[..], &[0]].concat();
        let shorter = &data[..data.len() - 1];
        for spoiled in [&longer[..], shorter] {
            let items = deletion.items(spoiled).expect("lists are there");
            assert!(items.updates().any(|update| update.is_err()));
        }
    }
}
