//! Gin records: what they contain, posting lists, and the pages of such an index.
//!
//! ```text
//! opcode                 main data                    block references: their data
//! CREATE_PTREE           size u32, posting lists      0 root of the posting tree, new
//! INSERT                 flags u16 [, left child,     0 page: entry, changes or downlink, see below;
//!                        right child, 4 each, if not  1 left child, if not LEAF
//!                        LEAF]
//! SPLIT                  ginxlogSplit                 0 left page; 1 right page; 2 root, if SPLIT_ROOT;
//!                                                     all as images; 3 left child, if not LEAF
//! VACUUM_PAGE            none                         0 page, always as an image
//! DELETE_PAGE            ginxlogDeletePage            0 page; 1 parent; 2 left sibling
//! UPDATE_META_PAGE       ginxlogUpdateMeta            0 meta page, new; 1 tail of the pending list, if it
//!                                                     changes: tuples
//! INSERT_LISTPAGE        rightlink u32, ntuples i32   0 page of the pending list, new: tuples
//! DELETE_LISTPAGE        metadata, ndeleted i32, 4    0 meta page, new; 1 to ndeleted, new
//!                        of padding
//! VACUUM_DATA_LEAF_PAGE  none                         0 leaf of a posting tree: changes
//!
//! ginxlogSplit, 28 bytes        ginxlogDeletePage, 12 bytes     ginxlogUpdateMeta, 88 bytes
//!   0 12  locator                 0  2  parentOffset, padding     0 12  locator, then 4 of padding
//!  12  4  rrlink                  4  4  rightLink                16 56  metadata
//!  16  4  leftChildBlkno          8  4  deleteXid                72  4  prevTail
//!  20  4  rightChildBlkno                                        76  4  newRightlink
//!  24  2  flags, padding                                         80  4  ntuples, then 4 of padding
//!
//! metadata (GinMetaPageData), 56 bytes: also what the meta page has from byte 24
//!   0  4  head                   16  8  nPendingHeapTuples       40  8  nEntries
//!   4  4  tail                   24  4  nTotalPages              48  4  ginVersion
//!   8  4  tailFreeSize           28  4  nEntryPages              52  4  (padding)
//!  12  4  nPendingPages          32  4  nDataPages, padding
//!
//! block 0 of INSERT
//!   entry, if not ISDATA                   offset u16, isDelete u8, 1 of padding, index tuple
//!   changes, if ISDATA and LEAF            nactions u16, then each: segno u8, action u8, and of
//!                                            INSERT and REPLACE: posting list, padded to an even size
//!                                            ADDITEMS: nitems u16, 6 * nitems addresses
//!   downlink, if ISDATA and not LEAF       offset u16, child 4, key 6
//! ```
//!
//! A block's number in 4 bytes is its high half first (`BlockIdData`). A page has 8 bytes of special space
//! (`GinPageOpaqueData`); block 0 is the meta page, 1 the root:
//!
//! ```text
//! special space                                     page of a posting tree, from byte 24
//!   0  4  rightlink                                   0  8  right bound, an address and padding
//!   4  2  maxoff     downlinks, or rows of a list     8     leaf: posting lists up to pd_lower
//!   6  2  flags      GIN_*                                  else: maxoff times child 4, key 6
//! ```
//!
//! Rules: `src/include/access/ginxlog.h`, `ginblock.h`; `src/backend/access/gin/ginxlog.c`,
//! `ginpostinglist.c`.

mod posting_list;

pub use self::posting_list::PostingList;
use super::items::IndexTuples;
use crate::bytes::u16_at;
use crate::cursor::{Cursor, CursorError};
use crate::lsn::TransactionId;
use crate::page::ItemPointer;
use crate::relation::{BlockNumber, RelFileLocator};

#[allow(missing_docs)] // the names are PostgreSQL's, what they mean is drawn above
mod opcodes {
    pub const XLOG_GIN_CREATE_PTREE: u8 = 0x10;
    pub const XLOG_GIN_INSERT: u8 = 0x20;
    pub const XLOG_GIN_SPLIT: u8 = 0x30;
    pub const XLOG_GIN_VACUUM_PAGE: u8 = 0x40;
    pub const XLOG_GIN_DELETE_PAGE: u8 = 0x50;
    pub const XLOG_GIN_UPDATE_META_PAGE: u8 = 0x60;
    pub const XLOG_GIN_INSERT_LISTPAGE: u8 = 0x70;
    pub const XLOG_GIN_DELETE_LISTPAGE: u8 = 0x80;
    pub const XLOG_GIN_VACUUM_DATA_LEAF_PAGE: u8 = 0x90;
}
pub use opcodes::*;

/// Size of a Gin page's special space, in bytes.
pub const OPAQUE_SIZE: usize = 8;
/// The meta page (`GIN_METAPAGE_BLKNO`).
pub const META_BLOCK: BlockNumber = 0;
/// The root (`GIN_ROOT_BLKNO`).
pub const ROOT_BLOCK: BlockNumber = 1;

/// Size of what the meta page contains, in bytes (`sizeof(GinMetaPageData)`).
pub const METADATA_SIZE: usize = 56;

/// Page of a posting tree.
pub const GIN_DATA: u16 = 1 << 0;
/// Leaf page.
pub const GIN_LEAF: u16 = 1 << 1;
/// Deleted from its tree.
pub const GIN_DELETED: u16 = 1 << 2;
/// Meta page.
pub const GIN_META: u16 = 1 << 3;
/// Page of the pending list.
pub const GIN_LIST: u16 = 1 << 4;
/// Page of the pending list with all there is of its rows.
pub const GIN_LIST_FULLROW: u16 = 1 << 5;
/// The right sibling's downlink is missing.
pub const GIN_INCOMPLETE_SPLIT: u16 = 1 << 6;
/// Leaf page of a posting tree that has posting lists; not from before 9.4.
pub const GIN_COMPRESSED: u16 = 1 << 7;

/// Flag of INSERT and SPLIT: of a posting tree, not of the entry tree (`GIN_INSERT_ISDATA`).
pub const GIN_INSERT_ISDATA: u16 = 0x01;
/// Flag of INSERT and SPLIT: of a leaf (`GIN_INSERT_ISLEAF`).
pub const GIN_INSERT_ISLEAF: u16 = 0x02;
/// Flag of SPLIT: of the root (`GIN_SPLIT_ROOT`).
pub const GIN_SPLIT_ROOT: u16 = 0x04;

/// A change of a leaf's segment: it goes.
pub const GIN_SEGMENT_DELETE: u8 = 1;
/// A change of a leaf's segment: one comes before it.
pub const GIN_SEGMENT_INSERT: u8 = 2;
/// A change of a leaf's segment: another takes its place.
pub const GIN_SEGMENT_REPLACE: u8 = 3;
/// A change of a leaf's segment: it takes more addresses.
pub const GIN_SEGMENT_ADDITEMS: u8 = 4;

/// Reads a block's number, high half first (`BlockIdData`).
fn block_id(cursor: &mut Cursor<'_>, field: &'static str) -> Result<BlockNumber, CursorError> {
    let bytes = cursor.array::<4>(field)?;
    Ok(u32::from(u16_at(bytes, 0)) << 16 | u32::from(u16_at(bytes, 2)))
}

fn address(cursor: &mut Cursor<'_>, field: &'static str) -> Result<ItemPointer, CursorError> {
    Ok(ItemPointer::read(cursor.array::<{ ItemPointer::SIZE }>(field)?, 0))
}

/// Reads the main data of CREATE_PTREE (`ginxlogCreatePostingTree`): the posting lists of the new root, one
/// behind the other, for [`PostingList::read`].
///
/// # Errors
/// [`CursorError`] if its length is not what it says.
pub fn read_create_posting_tree(main_data: &[u8]) -> Result<&[u8], CursorError> {
    let mut cursor = Cursor::new(main_data);
    let size = cursor.u32("size")? as usize;
    let lists = cursor.take(size, "posting lists")?;
    cursor.finish("posting lists")?;
    Ok(lists)
}

/// The main data of INSERT (`ginxlogInsert`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insert {
    /// `GIN_INSERT_*` (`flags`).
    pub flags: u16,
    /// Of a page that is no leaf: the two halves of the split that the new downlink ends, left and right.
    pub children: Option<(BlockNumber, BlockNumber)>,
}

/// What INSERT puts on its page.
#[derive(Clone, Debug)]
pub enum Payload<'a> {
    /// Of the entry tree.
    Entry(Entry<'a>),
    /// Of a posting tree's leaf.
    Leaf(LeafChanges<'a>),
    /// Of another page of a posting tree.
    Downlink(Downlink),
}

impl Insert {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what the flags say.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let flags = cursor.u16("flags")?;
        let children = if flags & GIN_INSERT_ISLEAF == 0 {
            let left = block_id(&mut cursor, "left child")?;
            Some((left, block_id(&mut cursor, "right child")?))
        } else {
            None
        };
        cursor.finish("flags and children")?;
        Ok(Self { flags, children })
    }

    /// Whether it is of a posting tree.
    #[must_use]
    pub const fn is_data(&self) -> bool {
        self.flags & GIN_INSERT_ISDATA != 0
    }

    /// Whether it is of a leaf.
    #[must_use]
    pub const fn is_leaf(&self) -> bool {
        self.flags & GIN_INSERT_ISLEAF != 0
    }

    /// Reads the data of block 0. There is none if the page is an image.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn payload<'a>(&self, block_data: &'a [u8]) -> Result<Payload<'a>, CursorError> {
        Ok(match (self.is_data(), self.is_leaf()) {
            (false, _) => Payload::Entry(Entry::read(block_data)?),
            (true, true) => Payload::Leaf(LeafChanges::read(block_data)?),
            (true, false) => Payload::Downlink(Downlink::read(block_data)?),
        })
    }
}

/// A new tuple of the entry tree (`ginxlogInsertEntry`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Its item number (`offset`).
    pub item: u16,
    /// Whether it takes the place of the one that is there (`isDelete`).
    pub replaces: bool,
    /// The tuple, for [`IndexTuple::read`](crate::page::IndexTuple::read).
    pub tuple: &'a [u8],
}

impl<'a> Entry<'a> {
    fn read(block_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(block_data);
        let item = cursor.u16("offset")?;
        let replaces = cursor.u8("isDelete")? != 0;
        cursor.take(1, "padding")?;
        Ok(Self { item, replaces, tuple: cursor.rest() })
    }
}

/// A new downlink on a page of a posting tree (`ginxlogInsertDataInternal`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Downlink {
    /// Its number, counted from 1 (`offset`). The downlink that has the number until now gets the split's
    /// right half as its child.
    pub item: u16,
    /// The child.
    pub child: BlockNumber,
    /// The highest address below it, or 0 if it is the rightmost.
    pub key: ItemPointer,
}

impl Downlink {
    fn read(block_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(block_data);
        let this = Self {
            item: cursor.u16("offset")?,
            child: block_id(&mut cursor, "child")?,
            key: address(&mut cursor, "key")?,
        };
        cursor.finish("key")?;
        Ok(this)
    }
}

/// Changes of the segments of a posting tree's leaf (`ginxlogRecompressDataLeaf`): block 0 of INSERT and of
/// VACUUM_DATA_LEAF_PAGE.
#[derive(Clone, Debug)]
pub struct LeafChanges<'a> {
    /// How many (`nactions`).
    pub count: u16,
    cursor: Cursor<'a>,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentChange<'a> {
    /// Which segment, counted from 0 as the page was before all changes (`segno`).
    pub segment: u8,
    /// What becomes of it.
    pub action: SegmentAction<'a>,
}

/// What becomes of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentAction<'a> {
    /// It goes.
    Delete,
    /// This one comes before it.
    Insert(PostingList<'a>),
    /// This one takes its place.
    Replace(PostingList<'a>),
    /// It takes these addresses.
    AddItems(Addresses<'a>),
    /// None that there is. What follows cannot be read.
    Unknown(u8),
}

/// Addresses, each in its 6 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses<'a> {
    bytes: &'a [u8],
}

impl<'a> Addresses<'a> {
    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len() / ItemPointer::SIZE
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = ItemPointer> + use<'a> {
        self.bytes.chunks_exact(ItemPointer::SIZE).map(|bytes| ItemPointer::read(bytes, 0))
    }
}

impl<'a> LeafChanges<'a> {
    /// Reads block data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short for the number of changes.
    pub fn read(block_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(block_data);
        Ok(Self { count: cursor.u16("nactions")?, cursor })
    }

    /// All of them, in order. Ends after an error, which may be bytes after the last, and after an unknown
    /// action.
    pub fn iter(&self) -> impl Iterator<Item = Result<SegmentChange<'a>, CursorError>> + use<'a> {
        let (mut cursor, mut left) = (self.cursor.clone(), self.count);
        std::iter::from_fn(move || {
            if left == 0 {
                let rest = std::mem::replace(&mut cursor, Cursor::new(&[]));
                return rest.finish("actions").err().map(Err);
            }
            left -= 1;
            let change = SegmentChange::read(&mut cursor);
            if !matches!(&change, Ok(change) if !matches!(change.action, SegmentAction::Unknown(_)))
            {
                (cursor, left) = (Cursor::new(&[]), 0);
            }
            Some(change)
        })
    }
}

impl<'a> SegmentChange<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, CursorError> {
        let segment = cursor.u8("segno")?;
        let action = match cursor.u8("action")? {
            GIN_SEGMENT_DELETE => SegmentAction::Delete,
            GIN_SEGMENT_INSERT => SegmentAction::Insert(PostingList::read(cursor)?),
            GIN_SEGMENT_REPLACE => SegmentAction::Replace(PostingList::read(cursor)?),
            GIN_SEGMENT_ADDITEMS => {
                let count = usize::from(cursor.u16("nitems")?);
                let bytes = cursor.take(count * ItemPointer::SIZE, "items")?;
                SegmentAction::AddItems(Addresses { bytes })
            }
            unknown => SegmentAction::Unknown(unknown),
        };
        Ok(Self { segment, action })
    }
}

/// The main data of SPLIT (`ginxlogSplit`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// The index (`locator`).
    pub locator: RelFileLocator,
    /// The right half's right link, or of a root split the root (`rrlink`).
    pub right_link: BlockNumber,
    /// Of a page that is no leaf: the left half of the split that this one ends (`leftChildBlkno`).
    pub left_child: BlockNumber,
    /// And the right half (`rightChildBlkno`).
    pub right_child: BlockNumber,
    /// `GIN_INSERT_*` and [`GIN_SPLIT_ROOT`] (`flags`).
    pub flags: u16,
}

impl Split {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 28 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            locator: cursor.locator("locator")?,
            right_link: cursor.u32("rrlink")?,
            left_child: cursor.u32("leftChildBlkno")?,
            right_child: cursor.u32("rightChildBlkno")?,
            flags: cursor.u16("flags")?,
        };
        cursor.take(2, "padding")?;
        cursor.finish("padding")?;
        Ok(this)
    }
}

/// The main data of DELETE_PAGE (`ginxlogDeletePage`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeletePage {
    /// The parent's downlink to the page, counted from 1 (`parentOffset`).
    pub parent_item: u16,
    /// The page's right link, from now on the left sibling's (`rightLink`).
    pub right_link: BlockNumber,
    /// The last transaction that may still be on its way to the page (`deleteXid`).
    pub delete_xid: TransactionId,
}

impl DeletePage {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 12 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let parent_item = cursor.u16("parentOffset")?;
        cursor.take(2, "padding")?;
        let right_link = cursor.u32("rightLink")?;
        let delete_xid = TransactionId(cursor.u32("deleteXid")?);
        cursor.finish("deleteXid")?;
        Ok(Self { parent_item, right_link, delete_xid })
    }
}

/// What the meta page has (`GinMetaPageData`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata<'a> {
    /// As it is put into the page, padding included.
    pub bytes: &'a [u8; METADATA_SIZE],
    /// The pending list's first page (`head`).
    pub head: BlockNumber,
    /// Its last page (`tail`).
    pub tail: BlockNumber,
}

impl<'a> Metadata<'a> {
    fn read(cursor: &mut Cursor<'a>) -> Result<Self, CursorError> {
        let bytes = cursor.array::<METADATA_SIZE>("metadata")?;
        let mut cursor = Cursor::new(bytes);
        Ok(Self { bytes, head: cursor.u32("head")?, tail: cursor.u32("tail")? })
    }
}

/// The main data of UPDATE_META_PAGE (`ginxlogUpdateMeta`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdateMeta<'a> {
    /// The index (`locator`).
    pub locator: RelFileLocator,
    /// The meta page from now on.
    pub metadata: Metadata<'a>,
    /// If a list is appended: the tail so far, block 1, or
    /// [`INVALID_BLOCK`](crate::relation::INVALID_BLOCK) (`prevTail`).
    pub prev_tail: BlockNumber,
    /// If a list is appended: its first page, the tail's right link from now on (`newRightlink`).
    pub new_right_link: BlockNumber,
    /// If positive, how many tuples the tail takes; else a list is appended (`ntuples`).
    pub tuples: i32,
}

impl<'a> UpdateMeta<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 88 bytes long.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let locator = cursor.locator("locator")?;
        cursor.take(4, "padding")?;
        let this = Self {
            locator,
            metadata: Metadata::read(&mut cursor)?,
            prev_tail: cursor.u32("prevTail")?,
            new_right_link: cursor.u32("newRightlink")?,
            tuples: cursor.i32("ntuples")?,
        };
        cursor.take(4, "padding")?;
        cursor.finish("padding")?;
        Ok(this)
    }

    /// Reads the data of block 1: the tuples that come behind the tail's last, if any do.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn tail_tuples<'b>(&self, block_data: &'b [u8]) -> Result<IndexTuples<'b>, CursorError> {
        IndexTuples::new(block_data, self.tuples.try_into().unwrap_or(0), "tuples")
    }
}

/// The main data of INSERT_LISTPAGE (`ginxlogInsertListPage`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InsertListPage {
    /// The next page of the list, or [`INVALID_BLOCK`](crate::relation::INVALID_BLOCK) (`rightlink`).
    pub right_link: BlockNumber,
    /// How many tuples it has (`ntuples`).
    pub tuples: u32,
}

impl InsertListPage {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 8 bytes long.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self { right_link: cursor.u32("rightlink")?, tuples: cursor.u32("ntuples")? };
        cursor.finish("ntuples")?;
        Ok(this)
    }

    /// Reads the data of block 0: the tuples, the first of which is item 1.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn page_tuples<'a>(&self, block_data: &'a [u8]) -> Result<IndexTuples<'a>, CursorError> {
        IndexTuples::new(block_data, self.tuples as usize, "tuples")
    }
}

/// The main data of DELETE_LISTPAGE (`ginxlogDeleteListPages`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeleteListPages<'a> {
    /// The meta page from now on.
    pub metadata: Metadata<'a>,
    /// How many pages go: blocks 1 to this (`ndeleted`). Not checked.
    pub deleted: i32,
}

impl<'a> DeleteListPages<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 64 bytes long.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this =
            Self { metadata: Metadata::read(&mut cursor)?, deleted: cursor.i32("ndeleted")? };
        cursor.take(4, "padding")?;
        cursor.finish("padding")?;
        Ok(this)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_as_long_as_postgresql_writes_them() {
        let bytes = [0; 100];
        let lengths = |read: &dyn Fn(&[u8]) -> bool| {
            (0..=bytes.len()).filter(|&length| read(&bytes[..length])).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&|b| read_create_posting_tree(b).is_ok()), [4]);
        assert_eq!(lengths(&|b| Insert::read(b).is_ok()), [10]);
        assert_eq!(lengths(&|b| Downlink::read(b).is_ok()), [12]);
        assert_eq!(lengths(&|b| Split::read(b).is_ok()), [28]);
        assert_eq!(lengths(&|b| DeletePage::read(b).is_ok()), [12]);
        assert_eq!(lengths(&|b| UpdateMeta::read(b).is_ok()), [88]);
        assert_eq!(lengths(&|b| InsertListPage::read(b).is_ok()), [8]);
        assert_eq!(lengths(&|b| DeleteListPages::read(b).is_ok()), [64]);
    }

    #[test]
    fn children_are_there_unless_it_is_a_leaf() {
        let insert = Insert::read(&[1, 0, 0, 0, 5, 0, 1, 0, 6, 0]);
        assert_eq!(insert, Ok(Insert { flags: 1, children: Some((5, 0x1_0006)) }));
        assert_eq!(Insert::read(&[2, 0]), Ok(Insert { flags: 2, children: None }));
    }

    #[test]
    fn changes_end_with_an_unknown_one() {
        let mut data = vec![3, 0, 0, 1, 2, 4, 1, 0, 0, 0, 0, 0, 9, 0, 5, 7, 1, 2, 3];
        let actions = |data: &[u8]| {
            let changes = LeafChanges::read(data).expect("a number");
            changes.iter().map(|change| change.is_ok()).collect::<Vec<_>>()
        };
        assert_eq!(actions(&data), [true; 3]);
        data[0] = 2;
        assert_eq!(actions(&data), [true, true, false], "bytes are left");
        data.truncate(14);
        assert_eq!(actions(&data), [true; 2]);
        data.truncate(13);
        assert_eq!(actions(&data), [true, false]);
    }
}
