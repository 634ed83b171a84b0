//! SPGist records: what they contain, the tuples in them, and the pages of such an index.
//!
//! All data is main data, with nothing aligned behind the fixed parts; each tuple is as long as it says.
//!
//! ```text
//! opcode           main data                                 block references
//! ADD_LEAF         spgxlogAddLeaf, leaf tuple                0 leaf; 1 parent, if any
//! MOVE_LEAFS       spgxlogMoveLeafs, deleted offsets         0 leaf they come from; 1 leaf they go to;
//!                  u16[nMoves], inserted offsets u16[n],     2 parent
//!                  n leaf tuples; n is nMoves + 1, or 1
//!                  with replaceDead
//! ADD_NODE         spgxlogAddNode, inner tuple               0 page; 1 page the tuple goes to, if it
//!                                                            does not stay; 2 parent, if it is neither
//! SPLIT_TUPLE      spgxlogSplitTuple, prefix inner tuple,    0 page; 1 page of the postfix tuple, if it
//!                  postfix inner tuple                       is another
//! PICKSPLIT        spgxlogPickSplit, deleted offsets         0 leaf, unless it is the root; 1 other
//!                  u16[nDelete], inserted offsets            leaf, if any; 2 inner page; 3 parent, if
//!                  u16[nInsert], pages u8[nInsert],          any and not block 2
//!                  inner tuple, nInsert leaf tuples
//! VACUUM_LEAF      spgxlogVacuumLeaf, offsets u16[]: dead,   0 leaf
//!                  placeholders, moved from, moved to,
//!                  linked, linked to
//! VACUUM_ROOT      nDelete u16, 2 of padding, state,         0 root, a leaf
//!                  offsets
//! VACUUM_REDIRECT  spgxlogVacuumRedirect, offsets            0 page
//!
//! spgxlogAddLeaf, 10 bytes      spgxlogMoveLeafs, 20 bytes    spgxlogAddNode, 20 bytes
//!   0  1  newPage                 0  2  nMoves                  0  2  offnum
//!   1  1  storesNulls             2  1  newPage                 2  2  offnumNew
//!   2  2  offnumLeaf              3  1  replaceDead             4  1  newPage
//!   4  2  offnumHeadLeaf          4  1  storesNulls             5  1  parentBlk  i8
//!   6  2  offnumParent            6  2  offnumParent            6  2  offnumParent
//!   8  2  nodeI                   8  2  nodeI                   8  2  nodeI
//!                                12  8  state                  12  8  state
//! spgxlogPickSplit, 28 bytes
//!   0  1  isRootSplit           spgxlogSplitTuple, 6 bytes    spgxlogVacuumLeaf, 16 bytes
//!   2  2  nDelete                 0  2  offnumPrefix            0  2  nDead
//!   4  2  nInsert                 2  2  offnumPostfix           2  2  nPlaceholder
//!   6  1  initSrc                 4  1  newPage                 4  2  nMove
//!   7  1  initDest                5  1  postfixBlkSame          6  2  nChain
//!   8  2  offnumInner                                           8  8  state
//!  10  1  initInner             spgxlogVacuumRedirect
//!  11  1  storesNulls             0  2  nToPlaceholder        state (spgxlogState), 8 bytes
//!  12  1  innerIsParent           2  2  firstPlaceholder        0  4  redirectXid
//!  14  2  offnumParent            4  4  snapshotConflictHorizon 4  1  isBuild, then 3 of padding
//!  16  2  nodeI                 and with the catalog flag:
//!  20  8  state                   8  1  isCatalogRel, then 1 of padding
//! ```
//!
//! A page has 8 bytes of special space (`SpGistPageOpaqueData`); block 0 is the meta page, 1 the root, 2 the
//! root of rows whose value is null:
//!
//! ```text
//! special space                               meta page, from byte 24 (SpGistMetaPageData), 68 bytes
//!   0  2  flags           SPGIST_*              0  4  magicNumber
//!   2  2  nRedirection                          4  8 * 8  pages last used, each blkno u32, freeSpace i32
//!   4  2  nPlaceholder
//!   6  2  spgist_page_id  SPGIST_PAGE_ID
//! ```
//!
//! Rules: `src/include/access/spgxlog.h`, `spgist_private.h`; `src/backend/access/spgist/spgxlog.c`.

mod tuple;

pub use self::tuple::{
    InnerTuple, LeafTuple, LeafTuples, SPGIST_DEAD, SPGIST_LIVE, SPGIST_PLACEHOLDER,
    SPGIST_REDIRECT,
};
use super::items::Offsets;
use crate::cursor::{Cursor, CursorError};
use crate::lsn::TransactionId;
use crate::relation::BlockNumber;
use crate::version::Version;

#[allow(missing_docs)] // the names are PostgreSQL's, what they mean is drawn above
mod opcodes {
    pub const XLOG_SPGIST_ADD_LEAF: u8 = 0x10;
    pub const XLOG_SPGIST_MOVE_LEAFS: u8 = 0x20;
    pub const XLOG_SPGIST_ADD_NODE: u8 = 0x30;
    pub const XLOG_SPGIST_SPLIT_TUPLE: u8 = 0x40;
    pub const XLOG_SPGIST_PICKSPLIT: u8 = 0x50;
    pub const XLOG_SPGIST_VACUUM_LEAF: u8 = 0x60;
    pub const XLOG_SPGIST_VACUUM_ROOT: u8 = 0x70;
    pub const XLOG_SPGIST_VACUUM_REDIRECT: u8 = 0x80;
}
pub use opcodes::*;

/// `spgist_page_id`: tells an SPGist page from those of other indexes.
pub const SPGIST_PAGE_ID: u16 = 0xFF82;
/// `magicNumber`.
pub const SPGIST_MAGIC_NUMBER: u32 = 0xBA0B_ABEE;
/// Size of an SPGist page's special space, in bytes.
pub const OPAQUE_SIZE: usize = 8;
/// The root (`SPGIST_ROOT_BLKNO`).
pub const ROOT_BLOCK: BlockNumber = 1;
/// The root of rows whose value is null (`SPGIST_NULL_BLKNO`).
pub const NULL_BLOCK: BlockNumber = 2;

/// Meta page.
pub const SPGIST_META: u16 = 1 << 0;
/// Never set.
pub const SPGIST_DELETED: u16 = 1 << 1;
/// Leaf page.
pub const SPGIST_LEAF: u16 = 1 << 2;
/// In the tree of rows whose value is null.
pub const SPGIST_NULLS: u16 = 1 << 3;

/// What redo must know to make dead tuples as the server did (`spgxlogState`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// The transaction that redirections have (`redirectXid`).
    pub redirect_xid: TransactionId,
    /// Whether the index is being built, so that nobody can be on the way (`isBuild`).
    pub is_build: bool,
}

impl State {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, CursorError> {
        let redirect_xid = TransactionId(cursor.u32("redirectXid")?);
        let is_build = flag(cursor, "isBuild")?;
        cursor.take(3, "padding")?;
        Ok(Self { redirect_xid, is_build })
    }
}

fn flag(cursor: &mut Cursor<'_>, field: &'static str) -> Result<bool, CursorError> {
    Ok(cursor.u8(field)? != 0)
}

/// Where a downlink is that now points to what the record made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentLink {
    /// The inner tuple's item number; 0 if no downlink changes (`offnumParent`).
    pub item: u16,
    /// Which of its nodes, from 0 (`nodeI`).
    pub node: u16,
}

impl ParentLink {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, CursorError> {
        Ok(Self { item: cursor.u16("offnumParent")?, node: cursor.u16("nodeI")? })
    }
}

/// The main data of ADD_LEAF (`spgxlogAddLeaf`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddLeaf<'a> {
    /// Whether block 0 is built from nothing (`newPage`).
    pub is_new_page: bool,
    /// Whether the page is in the tree of nulls (`storesNulls`).
    pub stores_nulls: bool,
    /// The new tuple's item number (`offnumLeaf`).
    pub item: u16,
    /// The first of its chain: 0 if there is none, the same if the tuple takes a dead one's place
    /// (`offnumHeadLeaf`).
    pub head: u16,
    /// The downlink, on block 1.
    pub parent: ParentLink,
    /// The new tuple.
    pub tuple: LeafTuple<'a>,
}

impl<'a> AddLeaf<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what it says.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            is_new_page: flag(&mut cursor, "newPage")?,
            stores_nulls: flag(&mut cursor, "storesNulls")?,
            item: cursor.u16("offnumLeaf")?,
            head: cursor.u16("offnumHeadLeaf")?,
            parent: ParentLink::read(&mut cursor)?,
            tuple: LeafTuple::read(&mut cursor)?,
        };
        cursor.finish("leaf tuple")?;
        Ok(this)
    }
}

/// The main data of MOVE_LEAFS (`spgxlogMoveLeafs`).
#[derive(Clone, Debug)]
pub struct MoveLeafs<'a> {
    /// Whether block 1 is built from nothing (`newPage`).
    pub is_new_page: bool,
    /// Whether all that moves is a new tuple, in the place of a chain's dead head (`replaceDead`).
    pub replaces_dead: bool,
    /// Whether the pages are in the tree of nulls (`storesNulls`).
    pub stores_nulls: bool,
    /// The downlink, on block 2.
    pub parent: ParentLink,
    /// For the dead tuples on block 0 (`stateSrc`).
    pub state: State,
    /// Items of block 0 that go; `nMoves` is their number.
    pub deleted: Offsets<'a>,
    /// The item numbers of `tuples` on block 1.
    pub inserted: Offsets<'a>,
    /// The tuples, the last of which is the chain's head.
    pub tuples: LeafTuples<'a>,
}

impl<'a> MoveLeafs<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short; whether the tuples are whole shows when they are read.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let moves = usize::from(cursor.u16("nMoves")?);
        let is_new_page = flag(&mut cursor, "newPage")?;
        let replaces_dead = flag(&mut cursor, "replaceDead")?;
        let stores_nulls = flag(&mut cursor, "storesNulls")?;
        cursor.take(1, "padding")?;
        let parent = ParentLink::read(&mut cursor)?;
        cursor.take(2, "padding")?;
        let state = State::read(&mut cursor)?;
        let count = if replaces_dead { 1 } else { moves + 1 };
        let deleted = Offsets::read(&mut cursor, moves, "toDelete")?;
        let inserted = Offsets::read(&mut cursor, count, "toInsert")?;
        let tuples = LeafTuples::new(cursor, count);
        Ok(Self {
            is_new_page,
            replaces_dead,
            stores_nulls,
            parent,
            state,
            deleted,
            inserted,
            tuples,
        })
    }
}

/// The main data of ADD_NODE (`spgxlogAddNode`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddNode<'a> {
    /// The tuple's item number on block 0 (`offnum`).
    pub item: u16,
    /// Its new item number on block 1; 0 if it stays where it is (`offnumNew`).
    pub new_item: u16,
    /// Whether block 1 is built from nothing (`newPage`).
    pub is_new_page: bool,
    /// The block that has the downlink: 0, 1 or 2; -1 if it does not change (`parentBlk`). Not checked.
    pub parent_block: i8,
    /// The downlink there.
    pub parent: ParentLink,
    /// For the dead tuple on block 0 (`stateSrc`).
    pub state: State,
    /// The tuple with one more node.
    pub tuple: InnerTuple<'a>,
}

impl<'a> AddNode<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what it says.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let (item, new_item) = (cursor.u16("offnum")?, cursor.u16("offnumNew")?);
        let is_new_page = flag(&mut cursor, "newPage")?;
        let parent_block = i8::from_le_bytes(*cursor.array("parentBlk")?);
        let parent = ParentLink::read(&mut cursor)?;
        cursor.take(2, "padding")?;
        let state = State::read(&mut cursor)?;
        let tuple = InnerTuple::read(&mut cursor)?;
        cursor.finish("inner tuple")?;
        Ok(Self { item, new_item, is_new_page, parent_block, parent, state, tuple })
    }
}

/// The main data of SPLIT_TUPLE (`spgxlogSplitTuple`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SplitTuple<'a> {
    /// The item number, on block 0, of the tuple that is split, and of the prefix tuple (`offnumPrefix`).
    pub prefix_item: u16,
    /// The postfix tuple's item number (`offnumPostfix`).
    pub postfix_item: u16,
    /// Whether block 1 is built from nothing (`newPage`).
    pub is_new_page: bool,
    /// Whether the postfix tuple is on block 0 too, not on block 1 (`postfixBlkSame`).
    pub is_same_page: bool,
    /// The upper part of what the tuple was.
    pub prefix: InnerTuple<'a>,
    /// The lower part.
    pub postfix: InnerTuple<'a>,
}

impl<'a> SplitTuple<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what it says.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let this = Self {
            prefix_item: cursor.u16("offnumPrefix")?,
            postfix_item: cursor.u16("offnumPostfix")?,
            is_new_page: flag(&mut cursor, "newPage")?,
            is_same_page: flag(&mut cursor, "postfixBlkSame")?,
            prefix: InnerTuple::read(&mut cursor)?,
            postfix: InnerTuple::read(&mut cursor)?,
        };
        cursor.finish("inner tuple")?;
        Ok(this)
    }
}

/// The main data of PICKSPLIT (`spgxlogPickSplit`).
#[derive(Clone, Debug)]
pub struct PickSplit<'a> {
    /// Whether the root was a leaf until now (`isRootSplit`).
    pub is_root_split: bool,
    /// Whether block 0 is built from nothing (`initSrc`).
    pub is_source_new: bool,
    /// Whether block 1 is built from nothing (`initDest`).
    pub is_destination_new: bool,
    /// The inner tuple's item number on block 2 (`offnumInner`).
    pub inner_item: u16,
    /// Whether block 2 is built from nothing (`initInner`).
    pub is_inner_new: bool,
    /// Whether the pages are in the tree of nulls (`storesNulls`).
    pub stores_nulls: bool,
    /// Whether the downlink is on block 2, not on block 3 (`innerIsParent`).
    pub inner_is_parent: bool,
    /// The downlink.
    pub parent: ParentLink,
    /// For the dead tuples on block 0 (`stateSrc`).
    pub state: State,
    /// Items of block 0 that go.
    pub deleted: Offsets<'a>,
    /// The item numbers of `leaves`.
    pub inserted: Offsets<'a>,
    /// For each of `leaves` its page: 0 is block 0, anything else block 1.
    pub pages: &'a [u8],
    /// The new inner tuple.
    pub inner: InnerTuple<'a>,
    /// The leaf tuples.
    pub leaves: LeafTuples<'a>,
}

impl<'a> PickSplit<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short; whether the leaf tuples are whole shows when they are read.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let is_root_split = flag(&mut cursor, "isRootSplit")?;
        cursor.take(1, "padding")?;
        let deletes = cursor.u16("nDelete")?;
        let inserts = usize::from(cursor.u16("nInsert")?);
        let is_source_new = flag(&mut cursor, "initSrc")?;
        let is_destination_new = flag(&mut cursor, "initDest")?;
        let inner_item = cursor.u16("offnumInner")?;
        let is_inner_new = flag(&mut cursor, "initInner")?;
        let stores_nulls = flag(&mut cursor, "storesNulls")?;
        let inner_is_parent = flag(&mut cursor, "innerIsParent")?;
        cursor.take(1, "padding")?;
        let parent = ParentLink::read(&mut cursor)?;
        cursor.take(2, "padding")?;
        let state = State::read(&mut cursor)?;
        let deleted = Offsets::read(&mut cursor, deletes, "toDelete")?;
        let inserted = Offsets::read(&mut cursor, inserts, "toInsert")?;
        let pages = cursor.take(inserts, "leafPageSelect")?;
        let inner = InnerTuple::read(&mut cursor)?;
        let leaves = LeafTuples::new(cursor, inserts);
        Ok(Self {
            is_root_split,
            is_source_new,
            is_destination_new,
            inner_item,
            is_inner_new,
            stores_nulls,
            inner_is_parent,
            parent,
            state,
            deleted,
            inserted,
            pages,
            inner,
            leaves,
        })
    }
}

/// The main data of VACUUM_LEAF (`spgxlogVacuumLeaf`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VacuumLeaf<'a> {
    /// For the dead tuples (`stateSrc`).
    pub state: State,
    /// Items that become dead: their chain is empty.
    pub dead: Offsets<'a>,
    /// Items that become placeholders.
    pub placeholders: Offsets<'a>,
    /// Items that move, as many as `moved_to`, and leave a placeholder.
    pub moved_from: Offsets<'a>,
    /// The item numbers they get.
    pub moved_to: Offsets<'a>,
    /// Items that get another successor, as many as `linked_to`.
    pub linked: Offsets<'a>,
    /// The successors, or 0.
    pub linked_to: Offsets<'a>,
}

impl<'a> VacuumLeaf<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what it says.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let (dead, placeholders) = (cursor.u16("nDead")?, cursor.u16("nPlaceholder")?);
        let (moves, links) = (cursor.u16("nMove")?, cursor.u16("nChain")?);
        let this = Self {
            state: State::read(&mut cursor)?,
            dead: Offsets::read(&mut cursor, dead, "toDead")?,
            placeholders: Offsets::read(&mut cursor, placeholders, "toPlaceholder")?,
            moved_from: Offsets::read(&mut cursor, moves, "moveSrc")?,
            moved_to: Offsets::read(&mut cursor, moves, "moveDest")?,
            linked: Offsets::read(&mut cursor, links, "chainSrc")?,
            linked_to: Offsets::read(&mut cursor, links, "chainDest")?,
        };
        cursor.finish("chainDest")?;
        Ok(this)
    }
}

/// The main data of VACUUM_ROOT (`spgxlogVacuumRoot`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VacuumRoot<'a> {
    /// Not needed (`stateSrc`).
    pub state: State,
    /// Items that go.
    pub deleted: Offsets<'a>,
}

impl<'a> VacuumRoot<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what it says.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let count = cursor.u16("nDelete")?;
        cursor.take(2, "padding")?;
        let state = State::read(&mut cursor)?;
        let deleted = Offsets::read(&mut cursor, count, "toDelete")?;
        cursor.finish("toDelete")?;
        Ok(Self { state, deleted })
    }
}

/// The main data of VACUUM_REDIRECT (`spgxlogVacuumRedirect`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VacuumRedirect<'a> {
    /// From this item on all are placeholders, and go; 0 for none (`firstPlaceholder`).
    pub first_placeholder: u16,
    /// The newest transaction of the redirections (`snapshotConflictHorizon`).
    pub conflict_horizon: TransactionId,
    /// Whether the table is a catalog for logical decoding (`isCatalogRel`); `false` in majors that do not
    /// say it.
    pub is_catalog: bool,
    /// Redirections that become placeholders.
    pub placeholders: Offsets<'a>,
}

impl<'a> VacuumRedirect<'a> {
    /// Reads it.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what it says.
    pub fn read(main_data: &'a [u8], version: &Version) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let count = cursor.u16("nToPlaceholder")?;
        let first_placeholder = cursor.u16("firstPlaceholder")?;
        let conflict_horizon = TransactionId(cursor.u32("snapshotConflictHorizon")?);
        let mut is_catalog = false;
        if version.conflicts_have_catalog_flag {
            is_catalog = flag(&mut cursor, "isCatalogRel")?;
            cursor.take(1, "padding")?;
        }
        let placeholders = Offsets::read(&mut cursor, count, "offsets")?;
        cursor.finish("offsets")?;
        Ok(Self { first_placeholder, conflict_horizon, is_catalog, placeholders })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rmgr::spgist::tuple::tests::{INNER, LEAF};

    #[test]
    fn fixed_parts_are_as_long_as_postgresql_writes_them() {
        let bytes = [0; 40];
        let [without, with] = [15, 16].map(|major| Version::from_major(major).expect("known"));
        let lengths = |read: &dyn Fn(&[u8]) -> bool| {
            (0..=bytes.len()).filter(|&length| read(&bytes[..length])).collect::<Vec<_>>()
        };
        assert_eq!(lengths(&|b| AddLeaf::read(b).is_ok()), [10 + 16]);
        assert_eq!(lengths(&|b| AddNode::read(b).is_ok()), [20 + 8]);
        assert_eq!(lengths(&|b| SplitTuple::read(b).is_ok()), [6 + 8 + 8]);
        assert_eq!(lengths(&|b| VacuumLeaf::read(b).is_ok()), [16]);
        assert_eq!(lengths(&|b| VacuumRoot::read(b).is_ok()), [12]);
        assert_eq!(lengths(&|b| VacuumRedirect::read(b, without).is_ok()), [8]);
        assert_eq!(lengths(&|b| VacuumRedirect::read(b, with).is_ok()), [10]);
    }

    #[test]
    fn lists_lie_one_behind_the_other() {
        let mut bytes = vec![0; 20];
        bytes[0] = 1; // nMoves
        bytes.extend([4, 0, 1, 0, 2, 0]);
        bytes.extend([LEAF, LEAF].concat());
        let moved = MoveLeafs::read(&bytes).expect("long enough");
        assert_eq!(moved.deleted.iter().collect::<Vec<_>>(), [4]);
        assert_eq!(moved.inserted.iter().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(moved.tuples.iter().filter(|tuple| tuple.is_ok()).count(), 2);
        bytes.push(0);
        let moved = MoveLeafs::read(&bytes).expect("long enough");
        assert!(moved.tuples.iter().any(|tuple| tuple.is_err()));

        let mut bytes = vec![0; 28];
        (bytes[2], bytes[4]) = (1, 1); // nDelete, nInsert
        bytes.extend([4, 0, 1, 0, 1]);
        bytes.extend([INNER, LEAF].concat());
        let split = PickSplit::read(&bytes).expect("long enough");
        assert_eq!((split.inserted.len(), split.pages), (1, &[1][..]));
        assert_eq!(split.inner.bytes(), INNER);
        assert!(split.leaves.iter().all(|tuple| tuple.is_ok()));
    }
}
