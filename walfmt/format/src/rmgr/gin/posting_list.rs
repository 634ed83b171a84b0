//! Posting lists: addresses of rows in ascending order, packed.
//!
//! ```text
//! GinPostingList
//!   0  6  first     address
//!   6  2  nbytes
//!   8     nbytes of differences to the address before: block << 11 | offset, 7 bits a byte, the lowest
//!         first, 0x80 in all but the last byte
//! ```
//!
//! One behind the other they begin at even places. Rules: `src/backend/access/gin/ginpostinglist.c`.

use super::address;
use crate::cursor::{Cursor, CursorError};
use crate::page::ItemPointer;

/// How many bits of an address in a posting list are its item number (`MaxHeapTuplesPerPageBits`).
const OFFSET_BITS: u32 = 11;

/// Addresses in ascending order, packed: a segment of a posting tree's leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostingList<'a> {
    /// The first address.
    pub first: ItemPointer,
    differences: &'a [u8],
    bytes: &'a [u8],
}

impl<'a> PostingList<'a> {
    /// Takes the next list and the byte that makes its size even, if it needs one.
    ///
    /// # Errors
    /// [`CursorError`] if the bytes end before.
    pub fn read(cursor: &mut Cursor<'a>) -> Result<Self, CursorError> {
        let mut inside = cursor.clone();
        let first = address(&mut inside, "first")?;
        let length = usize::from(inside.u16("nbytes")?);
        let differences = inside.take(length, "posting list")?;
        inside.take(length % 2, "padding")?;
        let bytes = cursor.take(cursor.rest().len() - inside.rest().len(), "posting list")?;
        Ok(Self { first, differences, bytes })
    }

    /// All of it, padding included.
    #[must_use]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// All its addresses. Ends after an error: a difference that is not whole, or too large.
    pub fn iter(&self) -> impl Iterator<Item = Result<ItemPointer, CursorError>> + use<'a> {
        let mut cursor = Cursor::new(self.differences);
        let mut number = u64::from(self.first.block) << OFFSET_BITS | u64::from(self.first.offset);
        let rest = std::iter::from_fn(move || {
            if cursor.is_empty() {
                return None;
            }
            let address = difference(&mut cursor).and_then(|difference| {
                number += difference;
                let block = u32::try_from(number >> OFFSET_BITS);
                let short = CursorError::Short { field: "block number", needed: 5, left: 4 };
                let offset = (number & ((1 << OFFSET_BITS) - 1)) as u16;
                Ok(ItemPointer { block: block.map_err(|_| short)?, offset })
            });
            if address.is_err() {
                cursor = Cursor::new(&[]);
            }
            Some(address)
        });
        std::iter::once(Ok(self.first)).chain(rest)
    }
}

/// One difference of a posting list, below 2^49 (`decode_varbyte`).
fn difference(cursor: &mut Cursor<'_>) -> Result<u64, CursorError> {
    let mut number = 0;
    for at in 0..7 {
        let byte = cursor.u8("difference")?;
        number |= u64::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(CursorError::Trailing { field: "difference", left: cursor.rest().len() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn posting_lists_are_unpacked() {
        // 300 = 0x12C: 0x2C | 0x80, 2
        let bytes = [0, 0, 1, 0, 7, 0, 3, 0, 1, 0x80 | 0x2C, 2, 0];
        let mut cursor = Cursor::new(&bytes);
        let list = PostingList::read(&mut cursor).expect("whole");
        assert!(cursor.is_empty());
        assert_eq!(list.bytes(), bytes);
        let addresses: Result<Vec<_>, _> = list.iter().collect();
        let expected = [7, 8, 308].map(|offset| ItemPointer { block: 1, offset });
        assert_eq!(addresses.as_deref(), Ok(&expected[..]));

        assert!(PostingList::read(&mut Cursor::new(&bytes[..11])).is_err(), "without its padding");
        for spoiled in [[1, 0x80, 0x80, 0], [0xFF; 4]] {
            let list = [&bytes[..6], &[4, 0], &spoiled[..3], &[0x80]].concat();
            let list = PostingList::read(&mut Cursor::new(&list)).expect("whole");
            assert!(list.iter().any(|address| address.is_err()));
        }
        let beyond = [&[0xFF; 6][..], &[7, 0], &[0xFF; 6], &[0x7F, 0]].concat();
        let list = PostingList::read(&mut Cursor::new(&beyond)).expect("whole");
        assert!(list.iter().any(|address| address.is_err()));
    }
}
