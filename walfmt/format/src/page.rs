//! A page of a relation: its header, its line pointers, and the headers of the tuples on it.
//!
//! ```text
//! page, 8192 bytes (PageHeaderData, ItemIdData[], items, special space)
//! offset  size  field
//!      0     4  pd_lsn.xlogid        high half of the LSN: *not* one little-endian u64
//!      4     4  pd_lsn.xrecoff       low half
//!      8     2  pd_checksum          0 if the cluster has none
//!     10     2  pd_flags             PD_*
//!     12     2  pd_lower             end of the line pointers
//!     14     2  pd_upper             begin of the items; 0 on a page that was never initialised
//!     16     2  pd_special           begin of the special space, a multiple of 8
//!     18     2  pd_pagesize_version  page size | layout version: 0x2004
//!     20     4  pd_prune_xid         oldest deletion that pruning could remove, or 0 (heap only)
//!     24   4*n  pd_linp              line pointers, item 1 first
//!           ..  free space           pd_lower .. pd_upper
//!           ..  items                pd_upper .. pd_special, each at a multiple of 8
//!           ..  special space        the access method's own; a heap has none
//!
//! line pointer, 4 bytes (ItemIdData)
//!   bit  0..15  lp_off    where the item begins; of a redirect: the number of another item
//!   bit 15..17  lp_flags  0 unused, 1 normal, 2 redirect, 3 dead
//!   bit 17..32  lp_len    length in bytes; 0 if the item has no storage
//!
//! heap tuple header, 23 bytes (HeapTupleHeaderData)
//! offset  size  field
//!      0     4  t_xmin       inserting transaction
//!      4     4  t_xmax       deleting or locking transaction or multixact, or 0
//!      8     4  t_field3     command ids, or the transaction of an old VACUUM FULL
//!     12     6  t_ctid       this version or the next one
//!     18     2  t_infomask2  number of attributes and flags
//!     20     2  t_infomask   flags
//!     22     1  t_hoff       where the user data begins, a multiple of 8
//!     23    ..  t_bits       null bitmap, if HEAP_HASNULL
//!
//! index tuple header, 8 bytes (IndexTupleData)
//!      0     6  t_tid        the heap tuple; btree has further uses for it
//!      6     2  t_info       size in bytes 0x1FFF, own bit of the access method 0x2000,
//!                            has variable-width attributes 0x4000, has nulls 0x8000
//!
//! tuple address, 6 bytes (ItemPointerData)
//!      0     2  block number, high half
//!      2     2  block number, low half
//!      4     2  item number
//! ```
//!
//! Everything here only reads. What changes a page is `walfmt-physical`'s.
//!
//! Rules: `src/include/storage/bufpage.h`, `itemid.h`, `itemptr.h`,
//! `src/include/access/htup_details.h`, `itup.h`; `PageIsVerifiedExtended` in
//! `src/backend/storage/page/bufpage.c`.

use std::fmt;

use crate::bytes::{u8_at, u16_at, u32_at};
use crate::lsn::{Lsn, TransactionId};
use crate::relation::{BLOCK_SIZE, BlockNumber};

/// A page's bytes.
pub type Page = [u8; BLOCK_SIZE];

/// Size of the page header before the line pointers, in bytes (`SizeOfPageHeaderData`).
pub const PAGE_HEADER_SIZE: usize = 24;
/// Size of a line pointer, in bytes.
pub const ITEM_ID_SIZE: usize = 4;
/// What `pd_pagesize_version` is on every page since PostgreSQL 8.3.
pub const PAGE_SIZE_AND_VERSION: u16 = BLOCK_SIZE as u16 | 4;
/// How many line pointers a heap page may have (`MaxHeapTuplesPerPage`).
pub const HEAP_ITEMS_MAX: u16 = 291;

/// Offsets of the header's fields, in bytes.
pub mod field {
    #![allow(missing_docs)] // the names are PostgreSQL's, the layout is drawn above
    pub const PD_LSN: usize = 0;
    pub const PD_CHECKSUM: usize = 8;
    pub const PD_FLAGS: usize = 10;
    pub const PD_LOWER: usize = 12;
    pub const PD_UPPER: usize = 14;
    pub const PD_SPECIAL: usize = 16;
    pub const PD_PAGESIZE_VERSION: usize = 18;
    pub const PD_PRUNE_XID: usize = 20;
}

/// Some line pointer is unused. A hint.
pub const PD_HAS_FREE_LINES: u16 = 0x0001;
/// An update found no room here. A hint.
pub const PD_PAGE_FULL: u16 = 0x0002;
/// All tuples are visible to everyone.
pub const PD_ALL_VISIBLE: u16 = 0x0004;
/// All bits that `pd_flags` may have.
pub const PD_VALID_FLAG_BITS: u16 = 0x0007;

/// `LP_UNUSED`: free for use.
pub const LP_UNUSED: u8 = 0;
/// `LP_NORMAL`: points to an item.
pub const LP_NORMAL: u8 = 1;
/// `LP_REDIRECT`: points to another line pointer of a heap page.
pub const LP_REDIRECT: u8 = 2;
/// `LP_DEAD`: no longer visible to anyone; in an index it keeps its storage.
pub const LP_DEAD: u8 = 3;

/// `x` rounded up to a multiple of 8 (`MAXALIGN`).
#[must_use]
pub const fn max_align(x: usize) -> usize {
    x.saturating_add(7) & !7
}

/// A page that is not what it can be, or that has no place for what should go there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The header contradicts itself.
    #[error(
        "page header is not valid: flags {flags:#06x}, lower {lower}, upper {upper}, special {special}"
    )]
    Header {
        /// `pd_flags`.
        flags: u16,
        /// `pd_lower`.
        lower: u16,
        /// `pd_upper`.
        upper: u16,
        /// `pd_special`.
        special: u16,
    },
    /// `pd_upper` is 0, and yet the page is not all zero.
    #[error("page has upper 0 and is not all zero: byte {at} is {found:#04x}")]
    NotZero {
        /// Where the first byte is that is not zero.
        at: usize,
        /// That byte.
        found: u8,
    },
    /// There is no such line pointer.
    #[error("no item {item}: page has {count}")]
    NoItem {
        /// The item number asked for.
        item: u16,
        /// How many line pointers the page has.
        count: u16,
    },
    /// The line pointer has no item on the page.
    #[error("item {item} has no storage: flags {flags}, offset {offset}")]
    NoStorage {
        /// The item number.
        item: u16,
        /// `lp_flags`.
        flags: u8,
        /// `lp_off`.
        offset: u16,
    },
    /// The line pointer points outside the items.
    #[error("item {item} at {offset}, {length} bytes, is not inside {upper}..{special}")]
    ItemPlace {
        /// The item number.
        item: u16,
        /// `lp_off`.
        offset: u16,
        /// `lp_len`.
        length: u16,
        /// `pd_upper`.
        upper: u16,
        /// `pd_special`.
        special: u16,
    },
    /// The items overlap.
    #[error("items need {needed} bytes together, page has {available}")]
    ItemsTogether {
        /// The sum of their aligned lengths.
        needed: usize,
        /// What is there.
        available: usize,
    },
    /// A line pointer that should be free is not.
    #[error("item {item} is in use: flags {flags}, length {length}")]
    InUse {
        /// The item number.
        item: u16,
        /// `lp_flags`.
        flags: u8,
        /// `lp_len`.
        length: u16,
    },
    /// The item number is beyond the first that could be added, or beyond a heap page's limit.
    #[error("item {item} cannot be added: page has {count}, limit is {limit}")]
    Beyond {
        /// The item number.
        item: u16,
        /// How many line pointers the page has.
        count: u16,
        /// The highest item number this kind of page may have.
        limit: u16,
    },
    /// No room.
    #[error("item of {size} bytes does not fit: {free} are free")]
    Full {
        /// The item's size.
        size: usize,
        /// `pd_upper - pd_lower`.
        free: usize,
    },
    /// An empty item, or item numbers to delete that are not in ascending order.
    #[error("{0}")]
    Argument(&'static str),
    /// A line pointer's value that its bits cannot hold.
    #[error("line pointer cannot hold offset {offset}, flags {flags}, length {length}")]
    ItemIdRange {
        /// The offset.
        offset: u16,
        /// The flags.
        flags: u8,
        /// The length.
        length: u16,
    },
    /// A tuple is shorter than its own header.
    #[error("{kind} tuple has {length} bytes, needs {needed}")]
    TupleShort {
        /// "heap" or "index".
        kind: &'static str,
        /// What is there.
        length: usize,
        /// What its header needs or speaks of.
        needed: usize,
    },
}

/// Whether the page was never initialised (`PageIsNew`). It should then be all zero.
#[inline]
#[must_use]
pub fn is_new(page: &Page) -> bool {
    upper(page) == 0
}

/// `pd_lsn`: end of the last record that changed the page.
#[inline]
#[must_use]
pub fn lsn(page: &Page) -> Lsn {
    Lsn(u64::from(u32_at(page, field::PD_LSN)) << 32 | u64::from(u32_at(page, field::PD_LSN + 4)))
}

/// `pd_checksum`.
#[must_use]
pub fn checksum(page: &Page) -> u16 {
    u16_at(page, field::PD_CHECKSUM)
}

/// `pd_flags`.
#[inline]
#[must_use]
pub fn flags(page: &Page) -> u16 {
    u16_at(page, field::PD_FLAGS)
}

/// `pd_lower`: end of the line pointers.
#[inline]
#[must_use]
pub fn lower(page: &Page) -> u16 {
    u16_at(page, field::PD_LOWER)
}

/// `pd_upper`: begin of the items.
#[inline]
#[must_use]
pub fn upper(page: &Page) -> u16 {
    u16_at(page, field::PD_UPPER)
}

/// `pd_special`: end of the items, begin of the special space.
#[inline]
#[must_use]
pub fn special(page: &Page) -> u16 {
    u16_at(page, field::PD_SPECIAL)
}

/// `pd_prune_xid`.
#[inline]
#[must_use]
pub fn prune_xid(page: &Page) -> TransactionId {
    TransactionId(u32_at(page, field::PD_PRUNE_XID))
}

/// The checks a server makes of a page it has just read, but for the checksum
/// (`PageIsVerifiedExtended`): the header makes sense, or the page is all zero.
///
/// # Errors
/// [`PageError::Header`] or [`PageError::NotZero`].
pub fn validate(page: &Page) -> Result<(), PageError> {
    if is_new(page) {
        return match page.iter().position(|&byte| byte != 0) {
            None => Ok(()),
            Some(at) => Err(PageError::NotZero { at, found: page[at] }),
        };
    }
    let (lower, upper, special) = (lower(page), upper(page), special(page));
    let sane = flags(page) & !PD_VALID_FLAG_BITS == 0
        && lower <= upper
        && upper <= special
        && usize::from(special) <= BLOCK_SIZE
        && special.is_multiple_of(8);
    if sane { Ok(()) } else { Err(header_error(page)) }
}

/// Line pointers, items and special space in their order and inside the page, as whatever changes
/// items needs them. Gives `(pd_lower, pd_upper, pd_special)`.
///
/// # Errors
/// [`PageError::Header`].
pub fn bounds(page: &Page) -> Result<(usize, usize, usize), PageError> {
    let (lower, upper, special) =
        (lower(page).into(), upper(page).into(), usize::from(special(page)));
    let sane = PAGE_HEADER_SIZE <= lower
        && lower <= upper
        && upper <= special
        && special <= BLOCK_SIZE
        && special.is_multiple_of(8);
    if sane { Ok((lower, upper, special)) } else { Err(header_error(page)) }
}

fn header_error(page: &Page) -> PageError {
    PageError::Header {
        flags: flags(page),
        lower: lower(page),
        upper: upper(page),
        special: special(page),
    }
}

/// How many line pointers the page has, which is the highest item number
/// (`PageGetMaxOffsetNumber`). Never more than fit on a page, whatever `pd_lower` says.
#[inline]
#[must_use]
pub fn max_offset(page: &Page) -> u16 {
    let lower = lower(page).min(BLOCK_SIZE as u16);
    lower.saturating_sub(PAGE_HEADER_SIZE as u16) / ITEM_ID_SIZE as u16
}

/// Where item `item`'s line pointer is, in bytes from the page's start.
///
/// # Errors
/// [`PageError::NoItem`].
#[inline]
pub fn item_id_place(page: &Page, item: u16) -> Result<usize, PageError> {
    let count = max_offset(page);
    if item == 0 || item > count {
        return Err(PageError::NoItem { item, count });
    }
    Ok(PAGE_HEADER_SIZE + (usize::from(item) - 1) * ITEM_ID_SIZE)
}

/// The line pointer of item `item`; the first is 1.
///
/// # Errors
/// [`PageError::NoItem`].
#[inline]
pub fn item_id(page: &Page, item: u16) -> Result<ItemId, PageError> {
    Ok(ItemId::from_raw(u32_at(page, item_id_place(page, item)?)))
}

/// Where the bytes of item `item` are.
///
/// # Errors
/// [`PageError`] if there is no such item, it has no storage, or it is not where items can be.
#[inline]
pub fn item_range(page: &Page, item: u16) -> Result<std::ops::Range<usize>, PageError> {
    let id = item_id(page, item)?;
    let (offset, length) = (usize::from(id.offset), usize::from(id.length));
    if !id.has_storage() {
        return Err(PageError::NoStorage { item, flags: id.flags, offset: id.offset });
    }
    let (upper, special) = (upper(page), special(page));
    if offset < usize::from(upper).max(PAGE_HEADER_SIZE)
        || offset + length > usize::from(special).min(BLOCK_SIZE)
    {
        let ItemId { offset, length, .. } = id;
        return Err(PageError::ItemPlace { item, offset, length, upper, special });
    }
    Ok(offset..offset + length)
}

/// The bytes of item `item`.
///
/// # Errors
/// As [`item_range`].
#[inline]
pub fn item(page: &Page, item: u16) -> Result<&[u8], PageError> {
    Ok(&page[item_range(page, item)?])
}

/// A line pointer (`ItemIdData`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ItemId {
    /// Where the item begins, in bytes from the page's start; of a redirect, another item's number
    /// (`lp_off`, 15 bits).
    pub offset: u16,
    /// `LP_*` (`lp_flags`, 2 bits).
    pub flags: u8,
    /// The item's length in bytes, 0 if it has no storage (`lp_len`, 15 bits).
    pub length: u16,
}

impl ItemId {
    /// An unused line pointer.
    pub const UNUSED: Self = Self { offset: 0, flags: LP_UNUSED, length: 0 };
    /// A dead one without storage.
    pub const DEAD: Self = Self { offset: 0, flags: LP_DEAD, length: 0 };

    /// One that points to an item.
    #[must_use]
    pub const fn normal(offset: u16, length: u16) -> Self {
        Self { offset, flags: LP_NORMAL, length }
    }

    /// One that points to the line pointer with number `target`.
    #[must_use]
    pub const fn redirect(target: u16) -> Self {
        Self { offset: target, flags: LP_REDIRECT, length: 0 }
    }

    /// From the four bytes on the page.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        Self {
            offset: (raw & 0x7FFF) as u16,
            flags: (raw >> 15 & 3) as u8,
            length: (raw >> 17) as u16,
        }
    }

    /// As the four bytes on the page.
    ///
    /// # Errors
    /// [`PageError::ItemIdRange`] if a field is too large for its bits.
    pub fn to_raw(self) -> Result<u32, PageError> {
        let Self { offset, flags, length } = self;
        if offset > 0x7FFF || flags > 3 || length > 0x7FFF {
            return Err(PageError::ItemIdRange { offset, flags, length });
        }
        Ok(u32::from(offset) | u32::from(flags) << 15 | u32::from(length) << 17)
    }

    /// Whether it is anything but `LP_UNUSED` (`ItemIdIsUsed`).
    #[must_use]
    pub const fn is_used(self) -> bool {
        self.flags != LP_UNUSED
    }

    /// Whether it is `LP_NORMAL` (`ItemIdIsNormal`).
    #[must_use]
    pub const fn is_normal(self) -> bool {
        self.flags == LP_NORMAL
    }

    /// Whether an item belongs to it (`ItemIdHasStorage`).
    #[must_use]
    pub const fn has_storage(self) -> bool {
        self.length != 0
    }
}

/// A tuple's address (`ItemPointerData`).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ItemPointer {
    /// The block.
    pub block: BlockNumber,
    /// The item number on it.
    pub offset: u16,
}

impl ItemPointer {
    /// Its size on disk, in bytes.
    pub const SIZE: usize = 6;

    /// The address at `offset` of `bytes`; what lies past the end reads as zero.
    #[must_use]
    pub fn read(bytes: &[u8], offset: usize) -> Self {
        Self {
            block: u32::from(u16_at(bytes, offset)) << 16 | u32::from(u16_at(bytes, offset + 2)),
            offset: u16_at(bytes, offset + 4),
        }
    }

    /// Its bytes on disk.
    #[must_use]
    pub const fn to_bytes(self) -> [u8; Self::SIZE] {
        let [b0, b1, b2, b3] = self.block.to_le_bytes();
        let [o0, o1] = self.offset.to_le_bytes();
        [b2, b3, b0, b1, o0, o1]
    }
}

impl fmt::Display for ItemPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "({},{})", self.block, self.offset)
    }
}

impl fmt::Debug for ItemPointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The fixed part of a heap tuple (`HeapTupleHeaderData`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapTupleHeader {
    /// `t_xmin`.
    pub xmin: TransactionId,
    /// `t_xmax`.
    pub xmax: TransactionId,
    /// `t_field3`.
    pub field3: u32,
    /// `t_ctid`.
    pub ctid: ItemPointer,
    /// `t_infomask2`.
    pub infomask2: u16,
    /// `t_infomask`.
    pub infomask: u16,
    /// `t_hoff`.
    pub hoff: u8,
}

impl HeapTupleHeader {
    /// Size of the fixed part, in bytes (`SizeofHeapTupleHeader`).
    pub const SIZE: usize = 23;

    /// Reads a tuple's header.
    ///
    /// # Errors
    /// [`PageError::TupleShort`] if the tuple is shorter than its fixed part or than `t_hoff`.
    pub fn read(tuple: &[u8]) -> Result<Self, PageError> {
        let header = Self {
            xmin: TransactionId(u32_at(tuple, 0)),
            xmax: TransactionId(u32_at(tuple, 4)),
            field3: u32_at(tuple, 8),
            ctid: ItemPointer::read(tuple, 12),
            infomask2: u16_at(tuple, 18),
            infomask: u16_at(tuple, 20),
            hoff: u8_at(tuple, 22),
        };
        let needed = Self::SIZE.max(header.hoff.into());
        if tuple.len() < needed {
            return Err(PageError::TupleShort { kind: "heap", length: tuple.len(), needed });
        }
        Ok(header)
    }

    /// How many attributes the tuple has (`HeapTupleHeaderGetNatts`).
    #[must_use]
    pub const fn attributes(&self) -> u16 {
        self.infomask2 & HEAP_NATTS_MASK
    }
}

// t_infomask and t_infomask2.
macro_rules! infomask_bits {
    ($($name:ident = $value:expr, $doc:literal;)*) => {
        $(#[doc = $doc] pub const $name: u16 = $value;)*
    };
}
infomask_bits! {
    HEAP_HASNULL = 0x0001, "Has a null bitmap.";
    HEAP_HASVARWIDTH = 0x0002, "Has attributes of variable width.";
    HEAP_HASEXTERNAL = 0x0004, "Has attributes stored out of line.";
    HEAP_HASOID_OLD = 0x0008, "Has an OID before its user data (written before 12).";
    HEAP_XMAX_KEYSHR_LOCK = 0x0010, "`t_xmax` is a key-shared locker.";
    HEAP_COMBOCID = 0x0020, "`t_field3` is a combo command id.";
    HEAP_XMAX_EXCL_LOCK = 0x0040, "`t_xmax` is an exclusive locker.";
    HEAP_XMAX_LOCK_ONLY = 0x0080, "`t_xmax` only locked.";
    HEAP_XMAX_SHR_LOCK = 0x0050, "`t_xmax` is a shared locker.";
    HEAP_LOCK_MASK = 0x0050, "All lock strength bits.";
    HEAP_XMIN_COMMITTED = 0x0100, "Hint: `t_xmin` committed.";
    HEAP_XMIN_INVALID = 0x0200, "Hint: `t_xmin` aborted.";
    HEAP_XMIN_FROZEN = 0x0300, "Both: visible to everyone.";
    HEAP_XMAX_COMMITTED = 0x0400, "Hint: `t_xmax` committed.";
    HEAP_XMAX_INVALID = 0x0800, "Hint: `t_xmax` aborted, or there is none.";
    HEAP_XMAX_IS_MULTI = 0x1000, "`t_xmax` is a multixact.";
    HEAP_UPDATED = 0x2000, "A newer version of a row.";
    HEAP_MOVED_OFF = 0x4000, "Moved away by `VACUUM FULL` before 9.0.";
    HEAP_MOVED_IN = 0x8000, "Moved here by `VACUUM FULL` before 9.0.";
    HEAP_MOVED = 0xC000, "Either of both.";
    HEAP_XMAX_BITS = 0x1CD0, "All that `t_infomask` says of `t_xmax`.";
    HEAP_NATTS_MASK = 0x07FF, "`t_infomask2`: number of attributes.";
    HEAP_KEYS_UPDATED = 0x2000, "`t_infomask2`: deleted, or updated in its key columns.";
    HEAP_HOT_UPDATED = 0x4000, "`t_infomask2`: the next version is on this page, without index entry.";
    HEAP_ONLY_TUPLE = 0x8000, "`t_infomask2`: has no index entry of its own.";
}

/// An index tuple whose length its header confirms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexTuple<'a> {
    bytes: &'a [u8],
}

/// `t_info`: an index tuple's size.
pub const INDEX_SIZE_MASK: u16 = 0x1FFF;

impl<'a> IndexTuple<'a> {
    /// Size of the header, in bytes (`sizeof(IndexTupleData)`).
    pub const HEADER_SIZE: usize = 8;

    /// The tuple at the front of `bytes`, as long as its header says.
    ///
    /// # Errors
    /// [`PageError::TupleShort`] if `bytes` end before, or it is shorter than a header.
    pub fn read(bytes: &'a [u8]) -> Result<Self, PageError> {
        let size = usize::from(u16_at(bytes, 6) & INDEX_SIZE_MASK);
        let short = |length, needed| PageError::TupleShort { kind: "index", length, needed };
        if bytes.len() < Self::HEADER_SIZE || size < Self::HEADER_SIZE {
            return Err(short(size.min(bytes.len()), Self::HEADER_SIZE));
        }
        match bytes.get(..size) {
            Some(bytes) => Ok(Self { bytes }),
            None => Err(short(bytes.len(), size)),
        }
    }

    /// All of it, header included.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Its size in bytes (`IndexTupleSize`), at least 8.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.bytes.len()
    }

    /// `t_tid`.
    #[must_use]
    pub fn tid(&self) -> ItemPointer {
        ItemPointer::read(self.bytes, 0)
    }

    /// `t_info`.
    #[must_use]
    pub fn info(&self) -> u16 {
        u16_at(self.bytes, 6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bytes::put;

    #[test]
    fn header_fields_are_where_postgresql_has_them() {
        // A heap page with two items, its first bytes written by hand from the layout above.
        let mut page = [0; BLOCK_SIZE];
        let head = [
            0x01, 0, 0, 0, 0xF8, 0x78, 0x2A, 0x05, 0, 0, 4, 0, 32, 0, 0xB0, 0x1F, 0, 0x20, 4, 0x20,
            0, 0, 0, 0, 0xD8, 0x9F, 0x4E, 0, 0xB0, 0x9F, 0x46, 0,
        ];
        page[..head.len()].copy_from_slice(&head);
        assert_eq!(lsn(&page).to_string(), "1/52A78F8");
        assert_eq!((flags(&page), lower(&page), upper(&page)), (4, 32, 8112));
        assert_eq!((special(&page), max_offset(&page)), (8192, 2));
        assert_eq!(item_id(&page, 1), Ok(ItemId::normal(8152, 39)));
        assert_eq!(item_id(&page, 2), Ok(ItemId::normal(8112, 35)));
        assert_eq!(item_id(&page, 3), Err(PageError::NoItem { item: 3, count: 2 }));
        assert_eq!(item_id(&page, 0), Err(PageError::NoItem { item: 0, count: 2 }));
        assert_eq!(item(&page, 2).map(<[u8]>::len), Ok(35));
        assert_eq!(validate(&page), Ok(()));
    }

    #[test]
    fn validate_finds_spoiled_headers() {
        let mut good = [0; BLOCK_SIZE];
        put(&mut good, field::PD_LOWER, 24_u16.to_le_bytes());
        put(&mut good, field::PD_UPPER, 8000_u16.to_le_bytes());
        put(&mut good, field::PD_SPECIAL, 8176_u16.to_le_bytes());
        assert_eq!(validate(&good), Ok(()));
        for (field, value) in [
            (field::PD_FLAGS, 8_u16),
            (field::PD_LOWER, 8001),
            (field::PD_UPPER, 8177),
            (field::PD_SPECIAL, 8177),
            (field::PD_SPECIAL, 8200),
        ] {
            let mut page = good;
            put(&mut page, field, value.to_le_bytes());
            assert!(matches!(validate(&page), Err(PageError::Header { .. })), "{field} {value}");
        }
        let mut zeros = [0; BLOCK_SIZE];
        assert_eq!(validate(&zeros), Ok(()));
        zeros[8191] = 7;
        assert_eq!(validate(&zeros), Err(PageError::NotZero { at: 8191, found: 7 }));
    }

    #[test]
    fn line_pointers_and_addresses_survive_their_bytes() {
        let id = ItemId { offset: 0x7FFF, flags: LP_DEAD, length: 0x1234 };
        assert_eq!(ItemId::from_raw(id.to_raw().expect("in range")), id);
        assert!(ItemId { offset: 0x8000, ..id }.to_raw().is_err());
        let tid = ItemPointer { block: 0x0102_0304, offset: 0x0506 };
        assert_eq!(tid.to_bytes(), [2, 1, 4, 3, 6, 5]);
        assert_eq!(ItemPointer::read(&tid.to_bytes(), 0), tid);
    }

    #[test]
    fn tuples_shorter_than_their_headers_are_refused() {
        assert!(IndexTuple::read(&[0; 8]).is_err());
        assert!(IndexTuple::read(&[0, 0, 0, 0, 0, 0, 16, 0]).is_err());
        let tuple = [0, 0, 9, 0, 3, 0, 8, 0, 0xFF];
        let tuple = IndexTuple::read(&tuple).expect("8 bytes");
        assert_eq!((tuple.size(), tuple.tid()), (8, ItemPointer { block: 9, offset: 3 }));
        let mut heap = [0; 24];
        heap[22] = 24;
        assert!(HeapTupleHeader::read(&heap).is_ok());
        assert!(HeapTupleHeader::read(&heap[..23]).is_err());
    }
}
