//! One small reader for variable-length payloads: it names what was missing and notices what was
//! left over.

use crate::bytes::u32_at;
use crate::relation::RelFileLocator;
use crate::version::Version;

/// Reads little-endian values from the front of a byte slice.
#[derive(Clone, Debug)]
pub struct Cursor<'a> {
    rest: &'a [u8],
}

/// A payload is shorter or longer than its own fields say.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// The bytes end inside a field.
    #[error("{field} needs {needed} bytes, {left} are left")]
    Short {
        /// Which field, by PostgreSQL's name.
        field: &'static str,
        /// Its size.
        needed: usize,
        /// What was there.
        left: usize,
    },
    /// Bytes follow after the last field.
    #[error("{left} bytes follow after {field}")]
    Trailing {
        /// The last field.
        field: &'static str,
        /// How many bytes too many.
        left: usize,
    },
}

impl<'a> Cursor<'a> {
    /// A reader over `bytes`.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether all has been read.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next `len` bytes.
    #[inline]
    pub fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], CursorError> {
        let (head, tail) = self.rest.split_at_checked(len).ok_or(CursorError::Short {
            field,
            needed: len,
            left: self.rest.len(),
        })?;
        self.rest = tail;
        Ok(head)
    }

    /// The next `N` bytes.
    #[inline]
    pub fn array<const N: usize>(
        &mut self,
        field: &'static str,
    ) -> Result<&'a [u8; N], CursorError> {
        let (head, tail) = self.rest.split_first_chunk().ok_or(CursorError::Short {
            field,
            needed: N,
            left: self.rest.len(),
        })?;
        self.rest = tail;
        Ok(head)
    }

    /// The next `u8`.
    #[inline]
    pub fn u8(&mut self, field: &'static str) -> Result<u8, CursorError> {
        Ok(u8::from_le_bytes(*self.array(field)?))
    }

    /// The next `u16`.
    #[inline]
    pub fn u16(&mut self, field: &'static str) -> Result<u16, CursorError> {
        Ok(u16::from_le_bytes(*self.array(field)?))
    }

    /// The next `u32`.
    #[inline]
    pub fn u32(&mut self, field: &'static str) -> Result<u32, CursorError> {
        Ok(u32::from_le_bytes(*self.array(field)?))
    }

    /// The next `i32`.
    pub fn i32(&mut self, field: &'static str) -> Result<i32, CursorError> {
        Ok(i32::from_le_bytes(*self.array(field)?))
    }

    /// The next `u64`.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, CursorError> {
        Ok(u64::from_le_bytes(*self.array(field)?))
    }

    /// The next `i64`.
    pub fn i64(&mut self, field: &'static str) -> Result<i64, CursorError> {
        Ok(i64::from_le_bytes(*self.array(field)?))
    }

    /// A count (C `int`) that must not be negative, nor announce more items of `item_size` bytes
    /// than are left: so no count can make a reader allocate more than the record itself.
    pub fn count(&mut self, item_size: usize, field: &'static str) -> Result<usize, CursorError> {
        let count = self.u32(field)? as usize;
        let needed = count.saturating_mul(item_size);
        if needed > self.rest.len() {
            return Err(CursorError::Short { field, needed, left: self.rest.len() });
        }
        Ok(count)
    }

    /// The next relation locator, 12 bytes.
    #[inline]
    pub fn locator(&mut self, field: &'static str) -> Result<RelFileLocator, CursorError> {
        let bytes = self.array::<12>(field)?;
        Ok(RelFileLocator {
            tablespace: u32_at(bytes, 0),
            database: u32_at(bytes, 4),
            relation: u32_at(bytes, 8),
        })
    }

    /// The next number of an SLRU page, whose width differs between majors. As in C it has a sign.
    pub fn slru_page(&mut self, version: &Version) -> Result<i64, CursorError> {
        match version.slru_page_number_size {
            8 => self.i64("pageno"),
            _ => self.i32("pageno").map(i64::from),
        }
    }

    /// Ends the reading: nothing may be left.
    pub const fn finish(self, field: &'static str) -> Result<(), CursorError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(CursorError::Trailing { field, left: self.rest.len() })
        }
    }
}
