//! Hash records: what they contain, and the hash index pages they speak of.
//!
//! ```text
//! opcode               main data                   block references: their data
//! INIT_META_PAGE       xl_hash_init_meta_page      0 meta page, new
//! INIT_BITMAP_PAGE     bmsize u16                  0 bitmap, new; 1 meta page
//! INSERT               offnum u16                  0 page: tuple; 1 meta page
//! ADD_OVFL_PAGE        bmsize u16, bmpage_found u8 0 overflow page, new: bucket u32; 1 page before it;
//!                                                  2 bitmap, if it has room: bit u32;
//!                                                  3 bitmap, new, if there was no room;
//!                                                  4 meta page: firstfree u32
//! SPLIT_ALLOCATE_PAGE  xl_hash_split_allocate_page 0 old bucket; 1 new bucket, new; 2 meta page: new
//!                                                  masks, new split point, each if its flag says so
//! SPLIT_PAGE           none                        0 page, always as an image
//! SPLIT_COMPLETE       old_bucket_flag u16,        0 old bucket; 1 new bucket
//!                      new_bucket_flag u16
//! MOVE_PAGE_CONTENTS   ntups u16,                  0 bucket, if it is not block 1; 1 page that takes
//!                      is_prim_bucket_same_wrt u8  them: offsets, tuples; 2 page that gives: offsets
//! SQUEEZE_PAGE         xl_hash_squeeze_page        0 bucket, if it is not block 1; 1 page that takes the
//!                                                  tuples, if anything changes: offsets, tuples;
//!                                                  2 overflow page that becomes free; 3 page before it,
//!                                                  if it is not block 1; 4 page after it, if any;
//!                                                  5 bitmap: bit u32; 6 meta page, if it changes:
//!                                                  firstfree u32
//! DELETE               clear_dead_marking u8,      0 bucket, if it is not block 1; 1 page: offsets
//!                      is_primary_bucket_page u8
//! SPLIT_CLEANUP        none                        0 bucket
//! UPDATE_META_PAGE     ntuples f64                 0 meta page
//! VACUUM_ONE_PAGE      xl_hash_vacuum_one_page     0 page; 1 meta page
//!
//! xl_hash_init_meta_page, 14 bytes         xl_hash_split_allocate_page, 9 bytes
//!   0  8  num_tuples  f64                    0  4  new_bucket
//!   8  4  procid                             4  2  old_bucket_flag
//!  12  2  ffactor                            6  2  new_bucket_flag
//! xl_hash_squeeze_page, 12 bytes             8  1  flags      XLH_SPLIT_*
//!   0  4  prevblkno                        data of block 2, each if its flag says so
//!   4  4  nextblkno                             4  lowmask
//!   8  2  ntups                                 4  highmask
//!  10  1  is_prim_bucket_same_wrt               4  ovflpoint
//!  11  1  is_prev_bucket_same_wrt               4  spares[ovflpoint]
//!
//! xl_hash_vacuum_one_page, without and with the catalog flag; both 8 bytes, then offsets
//!   0  4  latestRemovedXid                   0  4  snapshotConflictHorizon
//!   4  4  ntuples     i32                    4  2  ntuples
//!                                            6  1  isCatalogRel, then 1 of padding
//! ```
//!
//! A page has 16 bytes of special space (`HashPageOpaqueData`); block 0 is the meta page:
//!
//! ```text
//! special space                           meta page, from byte 24 (HashMetaPageData), 4544 bytes
//!   0  4  hasho_prevblkno                   0  4  hashm_magic         28  4  hashm_highmask
//!   4  4  hasho_nextblkno                   4  4  hashm_version       32  4  hashm_lowmask
//!   8  4  hasho_bucket                      8  8  hashm_ntuples f64   36  4  hashm_ovflpoint
//!  12  2  hasho_flag     LH_*              16  2  hashm_ffactor       40  4  hashm_firstfree
//!  14  2  hasho_page_id  HASHO_PAGE_ID     18  2  hashm_bsize         44  4  hashm_nmaps
//!                                          20  2  hashm_bmsize        48  4  hashm_procid
//! bitmap, from byte 24: bits, as many      22  2  hashm_bmshift       52  4 * 98    hashm_spares
//! as 8 * hashm_bmsize                      24  4  hashm_maxbucket    444  4 * 1024  hashm_mapp
//! ```
//!
//! Rules: `src/include/access/hash_xlog.h`, `hash.h`; `src/backend/access/hash/hash_xlog.c`.

use super::items::{IndexTuples, Offsets};
use crate::cursor::{Cursor, CursorError};
use crate::lsn::TransactionId;
use crate::relation::BlockNumber;
use crate::version::Version;

#[allow(missing_docs)] // the names are PostgreSQL's, what they mean is drawn above
mod opcodes {
    pub const XLOG_HASH_INIT_META_PAGE: u8 = 0x00;
    pub const XLOG_HASH_INIT_BITMAP_PAGE: u8 = 0x10;
    pub const XLOG_HASH_INSERT: u8 = 0x20;
    pub const XLOG_HASH_ADD_OVFL_PAGE: u8 = 0x30;
    pub const XLOG_HASH_SPLIT_ALLOCATE_PAGE: u8 = 0x40;
    pub const XLOG_HASH_SPLIT_PAGE: u8 = 0x50;
    pub const XLOG_HASH_SPLIT_COMPLETE: u8 = 0x60;
    pub const XLOG_HASH_MOVE_PAGE_CONTENTS: u8 = 0x70;
    pub const XLOG_HASH_SQUEEZE_PAGE: u8 = 0x80;
    pub const XLOG_HASH_DELETE: u8 = 0x90;
    pub const XLOG_HASH_SPLIT_CLEANUP: u8 = 0xA0;
    pub const XLOG_HASH_UPDATE_META_PAGE: u8 = 0xB0;
    pub const XLOG_HASH_VACUUM_ONE_PAGE: u8 = 0xC0;
}
pub use opcodes::*;

/// `hashm_magic`.
pub const HASH_MAGIC: u32 = 0x0644_0640;
/// `hasho_page_id`: tells a hash page from those of other indexes.
pub const HASHO_PAGE_ID: u16 = 0xFF80;
/// Size of a hash page's special space, in bytes.
pub const OPAQUE_SIZE: usize = 16;
/// How many split points `hashm_spares` has room for (`HASH_MAX_SPLITPOINTS`).
pub const SPLITPOINTS_MAX: usize = 98;
/// How many bitmap pages `hashm_mapp` has room for (`HASH_MAX_BITMAPS`).
pub const BITMAPS_MAX: usize = 1024;

/// `hasho_flag`: overflow page.
pub const LH_OVERFLOW_PAGE: u16 = 1 << 0;
/// `hasho_flag`: a bucket's first page.
pub const LH_BUCKET_PAGE: u16 = 1 << 1;
/// `hasho_flag`: bitmap of overflow pages in use.
pub const LH_BITMAP_PAGE: u16 = 1 << 2;
/// `hasho_flag`: meta page.
pub const LH_META_PAGE: u16 = 1 << 3;
/// `hasho_flag`: the new bucket of a split that goes on.
pub const LH_BUCKET_BEING_POPULATED: u16 = 1 << 4;
/// `hasho_flag`: the old bucket of a split that goes on.
pub const LH_BUCKET_BEING_SPLIT: u16 = 1 << 5;
/// `hasho_flag`: the old bucket still has the tuples that went to the new one.
pub const LH_BUCKET_NEEDS_SPLIT_CLEANUP: u16 = 1 << 6;
/// `hasho_flag`: has dead items. A hint.
pub const LH_PAGE_HAS_DEAD_TUPLES: u16 = 1 << 7;

/// [`SplitAllocatePage::flags`]: the masks change.
pub const XLH_SPLIT_META_UPDATE_MASKS: u8 = 1 << 0;
/// [`SplitAllocatePage::flags`]: a new split point begins.
pub const XLH_SPLIT_META_UPDATE_SPLITPOINT: u8 = 1 << 1;

/// The main data of INIT_META_PAGE (`xl_hash_init_meta_page`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct InitMetaPage {
    /// How many rows the index is made for, from which follows how many buckets it begins with
    /// (`num_tuples`).
    pub tuples: f64,
    /// The hash function's OID (`procid`).
    pub procedure: u32,
    /// How many tuples a bucket should have (`ffactor`).
    pub fill_factor: u16,
}

impl InitMetaPage {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 14 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            tuples: f64::from_bits(cursor.u64("num_tuples")?),
            procedure: cursor.u32("procid")?,
            fill_factor: cursor.u16("ffactor")?,
        };
        cursor.finish("ffactor")?;
        Ok(this)
    }
}

/// Reads the main data of INIT_BITMAP_PAGE (`xl_hash_init_bitmap_page`): the bitmap's size in bytes.
///
/// # Errors
/// [`CursorError`] if it is not 2 bytes long.
pub fn read_init_bitmap_page(main_data: &[u8]) -> Result<u16, CursorError> {
    let mut cursor = Cursor::new(main_data);
    let size = cursor.u16("bmsize")?;
    cursor.finish("bmsize")?;
    Ok(size)
}

/// Reads the main data of INSERT (`xl_hash_insert`): the new item's number.
///
/// # Errors
/// [`CursorError`] if it is not 2 bytes long.
pub fn read_insert(main_data: &[u8]) -> Result<u16, CursorError> {
    let mut cursor = Cursor::new(main_data);
    let item = cursor.u16("offnum")?;
    cursor.finish("offnum")?;
    Ok(item)
}

/// The main data of ADD_OVFL_PAGE (`xl_hash_add_ovfl_page`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddOverflowPage {
    /// A bitmap's size in bytes (`bmsize`).
    pub bitmap_size: u16,
    /// Whether a bitmap had a page that was free; otherwise the index has grown (`bmpage_found`).
    pub is_used_again: bool,
}

impl AddOverflowPage {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 3 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            bitmap_size: cursor.u16("bmsize")?,
            is_used_again: cursor.u8("bmpage_found")? != 0,
        };
        cursor.finish("bmpage_found")?;
        Ok(this)
    }
}

/// Reads block data that is one number: the bucket, the bitmap's bit or the first free bit.
///
/// # Errors
/// [`CursorError`] if it is not 4 bytes long.
pub fn read_number(block_data: &[u8], field: &'static str) -> Result<u32, CursorError> {
    let mut cursor = Cursor::new(block_data);
    let number = cursor.u32(field)?;
    cursor.finish(field)?;
    Ok(number)
}

/// The main data of SPLIT_ALLOCATE_PAGE (`xl_hash_split_allocate_page`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitAllocatePage {
    /// The new bucket, the highest (`new_bucket`).
    pub new_bucket: u32,
    /// The old bucket's `hasho_flag` from now on (`old_bucket_flag`).
    pub old_bucket_flag: u16,
    /// The new bucket's `hasho_flag` (`new_bucket_flag`).
    pub new_bucket_flag: u16,
    /// What else changes in the meta page: `XLH_SPLIT_*` (`flags`).
    pub flags: u8,
}

/// What a split changes in the meta page besides `hashm_maxbucket`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SplitMeta {
    /// New `hashm_lowmask` and `hashm_highmask`.
    pub masks: Option<(u32, u32)>,
    /// New `hashm_ovflpoint`, and what `hashm_spares` has there. May be beyond [`SPLITPOINTS_MAX`].
    pub split_point: Option<(u32, u32)>,
}

impl SplitAllocatePage {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 9 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            new_bucket: cursor.u32("new_bucket")?,
            old_bucket_flag: cursor.u16("old_bucket_flag")?,
            new_bucket_flag: cursor.u16("new_bucket_flag")?,
            flags: cursor.u8("flags")?,
        };
        cursor.finish("flags")?;
        Ok(this)
    }

    /// Whether the masks change.
    #[must_use]
    pub const fn updates_masks(&self) -> bool {
        self.flags & XLH_SPLIT_META_UPDATE_MASKS != 0
    }

    /// Whether a new split point begins.
    #[must_use]
    pub const fn updates_split_point(&self) -> bool {
        self.flags & XLH_SPLIT_META_UPDATE_SPLITPOINT != 0
    }

    /// Reads the data of block 2, the meta page.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what the flags say.
    pub fn meta(&self, block_data: &[u8]) -> Result<SplitMeta, CursorError> {
        let mut cursor = Cursor::new(block_data);
        let mut meta = SplitMeta::default();
        if self.updates_masks() {
            meta.masks = Some((cursor.u32("lowmask")?, cursor.u32("highmask")?));
        }
        if self.updates_split_point() {
            meta.split_point = Some((cursor.u32("ovflpoint")?, cursor.u32("ovflpages")?));
        }
        cursor.finish("meta page data")?;
        Ok(meta)
    }
}

/// The main data of SPLIT_COMPLETE (`xl_hash_split_complete`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitComplete {
    /// The old bucket's `hasho_flag` from now on (`old_bucket_flag`).
    pub old_bucket_flag: u16,
    /// The new bucket's (`new_bucket_flag`).
    pub new_bucket_flag: u16,
}

impl SplitComplete {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 4 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            old_bucket_flag: cursor.u16("old_bucket_flag")?,
            new_bucket_flag: cursor.u16("new_bucket_flag")?,
        };
        cursor.finish("new_bucket_flag")?;
        Ok(this)
    }
}

/// Tuples that go to a page, the data of block 1 of MOVE_PAGE_CONTENTS and SQUEEZE_PAGE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovedTuples<'a> {
    /// The item number of each, to be given in this order.
    pub items: Offsets<'a>,
    /// The tuples.
    pub tuples: IndexTuples<'a>,
}

impl<'a> MovedTuples<'a> {
    /// Reads block data with as many tuples as the main data says.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(block_data: &'a [u8], count: u16) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(block_data);
        let items = Offsets::read(&mut cursor, count, "offsets")?;
        Ok(Self { items, tuples: IndexTuples::new(cursor.rest(), count.into(), "tuples")? })
    }
}

/// Reads the items that are deleted: the data of block 2 of MOVE_PAGE_CONTENTS and of block 1 of DELETE.
///
/// # Errors
/// [`CursorError`] if its length is odd.
pub fn read_deleted(block_data: &[u8]) -> Result<Offsets<'_>, CursorError> {
    Offsets::read_all(block_data, "offsets")
}

/// The main data of MOVE_PAGE_CONTENTS (`xl_hash_move_page_contents`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovePageContents {
    /// How many tuples go from block 2 to block 1 (`ntups`).
    pub tuples: u16,
    /// Whether block 1 is the bucket's first page (`is_prim_bucket_same_wrt`).
    pub is_bucket_page: bool,
}

impl MovePageContents {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 3 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            tuples: cursor.u16("ntups")?,
            is_bucket_page: cursor.u8("is_prim_bucket_same_wrt")? != 0,
        };
        cursor.finish("is_prim_bucket_same_wrt")?;
        Ok(this)
    }
}

/// The main data of SQUEEZE_PAGE (`xl_hash_squeeze_page`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SqueezePage {
    /// The page before the one that becomes free (`prevblkno`).
    pub prev: BlockNumber,
    /// The page after it, or [`INVALID_BLOCK`](crate::relation::INVALID_BLOCK) (`nextblkno`).
    pub next: BlockNumber,
    /// How many tuples block 1 takes (`ntups`).
    pub tuples: u16,
    /// Whether block 1 is the bucket's first page (`is_prim_bucket_same_wrt`).
    pub is_bucket_page: bool,
    /// Whether block 1 is the page before the one that becomes free (`is_prev_bucket_same_wrt`).
    pub is_prev_page: bool,
}

impl SqueezePage {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 12 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            prev: cursor.u32("prevblkno")?,
            next: cursor.u32("nextblkno")?,
            tuples: cursor.u16("ntups")?,
            is_bucket_page: cursor.u8("is_prim_bucket_same_wrt")? != 0,
            is_prev_page: cursor.u8("is_prev_bucket_same_wrt")? != 0,
        };
        cursor.finish("is_prev_bucket_same_wrt")?;
        Ok(this)
    }
}

/// The main data of DELETE (`xl_hash_delete`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delete {
    /// Whether the page has no dead items any more (`clear_dead_marking`).
    pub clears_dead_marking: bool,
    /// Whether it is the bucket's first page (`is_primary_bucket_page`).
    pub is_bucket_page: bool,
}

impl Delete {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 2 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            clears_dead_marking: cursor.u8("clear_dead_marking")? != 0,
            is_bucket_page: cursor.u8("is_primary_bucket_page")? != 0,
        };
        cursor.finish("is_primary_bucket_page")?;
        Ok(this)
    }
}

/// Reads the main data of UPDATE_META_PAGE (`xl_hash_update_meta_page`): how many tuples the index has.
///
/// # Errors
/// [`CursorError`] if it is not 8 bytes long.
pub fn read_update_meta_page(main_data: &[u8]) -> Result<f64, CursorError> {
    let mut cursor = Cursor::new(main_data);
    let tuples = f64::from_bits(cursor.u64("ntuples")?);
    cursor.finish("ntuples")?;
    Ok(tuples)
}

/// The main data of VACUUM_ONE_PAGE (`xl_hash_vacuum_one_page`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VacuumOnePage<'a> {
    /// The newest transaction whose rows the deleted tuples were of (`snapshotConflictHorizon`).
    pub conflict_horizon: TransactionId,
    /// Whether the table is a catalog for logical decoding (`isCatalogRel`); `false` in majors that do not
    /// say it.
    pub is_catalog: bool,
    /// Items to delete.
    pub deleted: Offsets<'a>,
}

impl<'a> VacuumOnePage<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what it says.
    pub fn read(main_data: &'a [u8], version: &Version) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let conflict_horizon = TransactionId(cursor.u32("snapshotConflictHorizon")?);
        let (count, is_catalog) = if version.conflicts_have_catalog_flag {
            let count = usize::from(cursor.u16("ntuples")?);
            let is_catalog = cursor.u8("isCatalogRel")? != 0;
            cursor.take(1, "padding")?;
            (count, is_catalog)
        } else {
            (cursor.count(2, "ntuples")?, false)
        };
        let deleted = Offsets::read(&mut cursor, count, "offsets")?;
        cursor.finish("offsets")?;
        Ok(Self { conflict_horizon, is_catalog, deleted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_as_long_as_postgresql_writes_them() {
        let bytes = [1; 40];
        let lengths = |read: &dyn Fn(&[u8]) -> bool| {
            (0..=bytes.len()).filter(|&length| read(&bytes[..length])).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&|b| InitMetaPage::read(b).is_ok()), [14]);
        assert_eq!(lengths(&|b| read_init_bitmap_page(b).is_ok()), [2]);
        assert_eq!(lengths(&|b| read_insert(b).is_ok()), [2]);
        assert_eq!(lengths(&|b| AddOverflowPage::read(b).is_ok()), [3]);
        assert_eq!(lengths(&|b| SplitAllocatePage::read(b).is_ok()), [9]);
        assert_eq!(lengths(&|b| SplitComplete::read(b).is_ok()), [4]);
        assert_eq!(lengths(&|b| MovePageContents::read(b).is_ok()), [3]);
        assert_eq!(lengths(&|b| SqueezePage::read(b).is_ok()), [12]);
        assert_eq!(lengths(&|b| Delete::read(b).is_ok()), [2]);
        assert_eq!(lengths(&|b| read_update_meta_page(b).is_ok()), [8]);
        for (flags, length) in [(0, 0), (1, 8), (2, 8), (3, 16)] {
            let split =
                SplitAllocatePage { new_bucket: 0, old_bucket_flag: 0, new_bucket_flag: 0, flags };
            assert_eq!(lengths(&|b| split.meta(b).is_ok()), [length]);
        }
    }

    #[test]
    fn the_catalog_flag_takes_half_of_the_count() {
        let [without, with] = [15, 16].map(|major| Version::from_major(major).expect("known"));
        let mut bytes = vec![7, 0, 0, 0, 1, 0, 1, 0, 9, 0];
        let page = VacuumOnePage::read(&bytes, with).expect("long enough");
        assert!(page.is_catalog);
        assert_eq!(page.deleted.iter().collect::<Vec<_>>(), [9]);
        assert!(VacuumOnePage::read(&bytes, without).is_err(), "65537 items");
        bytes[6] = 0;
        let page = VacuumOnePage::read(&bytes, without).expect("long enough");
        assert_eq!(page.deleted.iter().collect::<Vec<_>>(), [9]);
    }
}
