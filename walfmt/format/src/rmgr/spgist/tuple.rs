//! The tuples of SPGist indexes, on pages and in records.
//!
//! ```text
//! leaf tuple (SpGistLeafTupleData)            inner tuple (SpGistInnerTupleData)
//!   0  4  state 2 bits, size 30 bits            0  4  state 2 bits, allTheSame 1 bit, nNodes 13 bits,
//!   4  2  next leaf of the chain 0x3FFF,              prefixSize 16 bits
//!         has nulls 0x8000                      4  2  size
//!   6  6  heapPtr                               8     prefix, then nodes: index tuples
//!  12     nulls, value
//! dead tuple (SpGistDeadTupleData), 16 bytes: as a leaf tuple, but heapPtr is where it went, and
//!  12  4  xid
//! ```
//!
//! Rules: `src/include/access/spgist_private.h`.

use crate::bytes::{u16_at, u32_at};
use crate::cursor::{Cursor, CursorError};
use crate::page::ItemPointer;
use crate::rmgr::items::IndexTuples;

/// A tuple's state: in use.
pub const SPGIST_LIVE: u8 = 0;
/// A tuple's state: went elsewhere; a dead tuple.
pub const SPGIST_REDIRECT: u8 = 1;
/// A tuple's state: the first of a chain of which nothing is left; a dead tuple.
pub const SPGIST_DEAD: u8 = 2;
/// A tuple's state: keeps the numbers of others; a dead tuple.
pub const SPGIST_PLACEHOLDER: u8 = 3;

/// A tuple on a leaf page, or a dead one anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafTuple<'a> {
    bytes: &'a [u8],
}

impl<'a> LeafTuple<'a> {
    /// The least size, in bytes: each must have room to become a dead tuple (`SGDTSIZE`).
    pub const SIZE_MIN: usize = 16;

    /// Takes the next tuple, as long as it says.
    ///
    /// # Errors
    /// [`CursorError`] if the bytes end before, or it says less than [`Self::SIZE_MIN`].
    pub fn read(cursor: &mut Cursor<'a>) -> Result<Self, CursorError> {
        let size = (u32_at(cursor.rest(), 0) >> 2) as usize;
        Ok(Self { bytes: cursor.take(size.max(Self::SIZE_MIN), "leaf tuple")? })
    }

    /// All of it.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// `SPGIST_LIVE` and so on.
    #[must_use]
    pub fn state(&self) -> u8 {
        (u32_at(self.bytes, 0) & 3) as u8
    }

    /// The item number of the next tuple of the chain, or 0.
    #[must_use]
    pub fn next(&self) -> u16 {
        u16_at(self.bytes, 4) & 0x3FFF
    }

    /// The row, or of a dead tuple the place it went to.
    #[must_use]
    pub fn tid(&self) -> ItemPointer {
        ItemPointer::read(self.bytes, 6)
    }
}

/// Leaf tuples one behind the other.
#[derive(Clone, Debug)]
pub struct LeafTuples<'a> {
    cursor: Cursor<'a>,
    count: usize,
}

impl<'a> LeafTuples<'a> {
    /// The next `count` tuples, which are all that is left.
    pub(super) const fn new(cursor: Cursor<'a>, count: usize) -> Self {
        Self { cursor, count }
    }

    /// How many there should be.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there should be none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All of them, in order. Ends after an error: a tuple that goes beyond the record, or bytes after the
    /// last.
    pub fn iter(&self) -> impl Iterator<Item = Result<LeafTuple<'a>, CursorError>> + use<'a> {
        let (mut cursor, mut left) = (self.cursor.clone(), self.count);
        std::iter::from_fn(move || {
            if left == 0 {
                let rest = std::mem::replace(&mut cursor, Cursor::new(&[]));
                return rest.finish("leaf tuples").err().map(Err);
            }
            left -= 1;
            let tuple = LeafTuple::read(&mut cursor);
            if tuple.is_err() {
                (cursor, left) = (Cursor::new(&[]), 0);
            }
            Some(tuple)
        })
    }
}

/// A tuple on an inner page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InnerTuple<'a> {
    bytes: &'a [u8],
}

impl<'a> InnerTuple<'a> {
    /// Size of the header, in bytes (`SGITHDRSZ`).
    pub const HEADER_SIZE: usize = 8;

    /// Takes the next tuple, as long as it says.
    ///
    /// # Errors
    /// [`CursorError`] if the bytes end before, or it says less than [`Self::HEADER_SIZE`].
    pub fn read(cursor: &mut Cursor<'a>) -> Result<Self, CursorError> {
        let size = usize::from(u16_at(cursor.rest(), 4));
        Ok(Self { bytes: cursor.take(size.max(Self::HEADER_SIZE), "inner tuple")? })
    }

    /// All of it.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// `SPGIST_LIVE` and so on.
    #[must_use]
    pub fn state(&self) -> u8 {
        (u32_at(self.bytes, 0) & 3) as u8
    }

    /// Whether all nodes stand for the same values (`allTheSame`).
    #[must_use]
    pub fn all_the_same(&self) -> bool {
        u32_at(self.bytes, 0) & 4 != 0
    }

    /// The nodes: index tuples whose `t_tid` is the child.
    ///
    /// # Errors
    /// [`CursorError`] if the tuple is too short for them.
    pub fn nodes(&self) -> Result<IndexTuples<'a>, CursorError> {
        let head = u32_at(self.bytes, 0);
        let mut cursor = Cursor::new(self.bytes);
        cursor.take(Self::HEADER_SIZE, "inner tuple header")?;
        cursor.take((head >> 16) as usize, "prefix")?;
        IndexTuples::new(cursor.rest(), (head >> 3 & 0x1FFF) as usize, "nodes")
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A leaf tuple of 16 bytes, an inner tuple of 16 with one node.
    pub(in crate::rmgr::spgist) const LEAF: [u8; 16] =
        [16 << 2, 0, 0, 0, 5, 0x80, 0, 0, 7, 0, 3, 0, 1, 2, 3, 4];
    pub(in crate::rmgr::spgist) const INNER: [u8; 16] =
        [1 << 3 | 4, 0, 0, 0, 16, 0, 0, 0, 0, 0, 9, 0, 2, 0, 8, 0];

    #[test]
    fn tuples_say_how_long_they_are() {
        let mut cursor = Cursor::new(&LEAF);
        let leaf = LeafTuple::read(&mut cursor).expect("16 bytes");
        assert_eq!((leaf.state(), leaf.next(), leaf.tid().block), (SPGIST_LIVE, 5, 7));
        let inner = InnerTuple::read(&mut Cursor::new(&INNER)).expect("16 bytes");
        assert!(inner.all_the_same());
        let children: Vec<_> = inner.nodes().expect("one fits").iter().collect();
        assert_eq!(children.len(), 1);
        assert_eq!(children[0].as_ref().map(|node| node.tid().block), Ok(9));
        for length in 0..16 {
            assert!(LeafTuple::read(&mut Cursor::new(&LEAF[..length])).is_err());
            assert!(InnerTuple::read(&mut Cursor::new(&INNER[..length])).is_err());
        }
    }
}
