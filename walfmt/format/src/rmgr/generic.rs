//! Generic: changes to up to four pages of any extension's making (bloom indexes, for one), as
//! differences of bytes.
//!
//! ```text
//! no main data; the data of each block that has no image is a row of fragments:
//! offset  size  field
//!      0     2  offset    where in the page
//!      2     2  length
//!      4        length bytes
//! ```
//!
//! What lies between `pd_lower` and `pd_upper` is not part of a difference. Rules:
//! `src/backend/access/transam/generic_xlog.c`.

use crate::cursor::{Cursor, CursorError};
use crate::relation::BLOCK_SIZE;

/// How many pages a record changes at most (`MAX_GENERIC_XLOG_PAGES`).
pub const PAGES_MAX: usize = 4;

/// A fragment that is not what it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FragmentError {
    /// Too few bytes.
    #[error(transparent)]
    Length(#[from] CursorError),
    /// It does not lie within a page.
    #[error("a fragment of {length} bytes at offset {offset} of a page of {BLOCK_SIZE}")]
    Place {
        /// Where it begins.
        offset: u16,
        /// Its length in bytes.
        length: u16,
    },
}

/// Bytes that take the place of a page's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment<'a> {
    /// Where in the page; all of `bytes` lies within it.
    pub offset: usize,
    /// What.
    pub bytes: &'a [u8],
}

/// The fragments in the data of one block, in order. Ends after an error.
pub fn fragments(
    block_data: &[u8],
) -> impl Iterator<Item = Result<Fragment<'_>, FragmentError>> + Clone {
    let mut cursor = Cursor::new(block_data);
    std::iter::from_fn(move || {
        if cursor.is_empty() {
            return None;
        }
        let fragment = read(&mut cursor);
        if fragment.is_err() {
            cursor = Cursor::new(&[]);
        }
        Some(fragment)
    })
}

fn read<'a>(cursor: &mut Cursor<'a>) -> Result<Fragment<'a>, FragmentError> {
    let offset = cursor.u16("offset")?;
    let length = cursor.u16("length")?;
    if usize::from(offset) + usize::from(length) > BLOCK_SIZE {
        return Err(FragmentError::Place { offset, length });
    }
    let bytes = cursor.take(length.into(), "fragment")?;
    Ok(Fragment { offset: offset.into(), bytes })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fragments_lie_within_a_page() {
        let data = [2, 0, 1, 0, 9, 0xFF, 0x1F, 1, 0, 8];
        let found: Result<Vec<_>, _> = fragments(&data).collect();
        let expected =
            [Fragment { offset: 2, bytes: &[9] }, Fragment { offset: 8191, bytes: &[8] }];
        assert_eq!(found.as_deref(), Ok(&expected[..]));
        for length in [1, 3, 4, 6, 9] {
            assert!(fragments(&data[..length]).any(|fragment| fragment.is_err()), "{length}");
        }
        let beyond = [0xFF, 0x1F, 2, 0, 8, 8];
        let place = FragmentError::Place { offset: 8191, length: 2 };
        assert_eq!(fragments(&beyond).collect::<Vec<_>>(), [Err(place)]);
    }
}
