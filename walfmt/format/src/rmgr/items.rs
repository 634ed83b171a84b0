//! Lists that the records of tables and of several kinds of indexes contain: item numbers, and index tuples
//! one behind the other.

use crate::bytes::u16_at;
use crate::cursor::{Cursor, CursorError};
use crate::page::{IndexTuple, PageError};

/// Item numbers or positions, as a record has them: `u16` after `u16`, not aligned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offsets<'a> {
    bytes: &'a [u8],
}

impl<'a> Offsets<'a> {
    pub(super) fn read(
        cursor: &mut Cursor<'a>,
        count: impl Into<usize>,
        field: &'static str,
    ) -> Result<Self, CursorError> {
        Ok(Self { bytes: cursor.take(count.into().saturating_mul(2), field)? })
    }

    /// Those that are all of `bytes`.
    ///
    /// # Errors
    /// [`CursorError`] if a byte is left over.
    pub(super) fn read_all(bytes: &'a [u8], field: &'static str) -> Result<Self, CursorError> {
        match bytes.len() % 2 {
            0 => Ok(Self { bytes }),
            left => Err(CursorError::Trailing { field, left }),
        }
    }

    /// Those of `bytes`; one that is left over is none, as for redo of PRUNE.
    pub(super) const fn of(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    /// The one at `position`, from 0; 0 past the end.
    pub(super) fn get(&self, position: usize) -> u16 {
        u16_at(self.bytes, position * 2)
    }

    /// How many.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.bytes.len() / 2
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u16> + use<'a> {
        self.bytes.chunks_exact(2).map(|bytes| u16_at(bytes, 0))
    }
}

/// Index tuples, each as long as its own header says, with nothing between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexTuples<'a> {
    bytes: &'a [u8],
    count: usize,
}

impl<'a> IndexTuples<'a> {
    /// `count` tuples that are all of `bytes`.
    ///
    /// # Errors
    /// [`CursorError`] if so many headers would not even fit.
    pub(super) fn new(
        bytes: &'a [u8],
        count: usize,
        field: &'static str,
    ) -> Result<Self, CursorError> {
        let needed = count.saturating_mul(IndexTuple::HEADER_SIZE);
        if needed > bytes.len() {
            return Err(CursorError::Short { field, needed, left: bytes.len() });
        }
        Ok(Self { bytes, count })
    }

    /// How many there should be; no more than would fit.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.count
    }

    /// Whether there should be none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// All of them, in order. Ends after an error: a tuple that goes beyond the bytes, or bytes after the
    /// last.
    pub fn iter(&self) -> impl Iterator<Item = Result<IndexTuple<'a>, PageError>> + use<'a> {
        let (mut rest, mut left) = (self.bytes, self.count);
        std::iter::from_fn(move || {
            if left == 0 {
                let trailing = std::mem::take(&mut rest);
                return (!trailing.is_empty())
                    .then_some(Err(PageError::Argument("bytes follow after the last tuple")));
            }
            left -= 1;
            let tuple = IndexTuple::read(rest);
            (rest, left) = match &tuple {
                Ok(tuple) => (&rest[tuple.size()..], left),
                Err(_) => (&[][..], 0),
            };
            Some(tuple)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tuples_are_all_of_their_bytes() {
        let mut bytes = [0; 24];
        (bytes[6], bytes[14]) = (8, 16);
        let sizes = |bytes, count| {
            let tuples = IndexTuples::new(bytes, count, "tuples").expect("headers fit");
            tuples.iter().map(|tuple| tuple.ok().map(|tuple| tuple.size())).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&bytes, 2), [Some(8), Some(16)]);
        assert_eq!(sizes(&bytes, 1), [Some(8), None]);
        assert_eq!(sizes(&bytes[..23], 2), [Some(8), None]);
        assert_eq!(sizes(&[], 0), []);
        assert!(IndexTuples::new(&bytes, 4, "tuples").is_err());
    }

    #[test]
    fn numbers_are_two_bytes_each() {
        let numbers = Offsets::read_all(&[1, 0, 0, 2], "offsets").expect("even");
        assert_eq!(numbers.iter().collect::<Vec<_>>(), [1, 512]);
        assert!(Offsets::read_all(&[1, 0, 0], "offsets").is_err());
    }
}
