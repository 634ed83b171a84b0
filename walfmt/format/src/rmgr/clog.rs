//! CLOG: pages of `pg_xact` that begin, and segments that are no longer needed.
//!
//! ```text
//!              15, 16                                   17, 18
//! ZEROPAGE     pageno i32                               pageno i64
//! TRUNCATE     pageno i32, oldestXact u32,              pageno i64, oldestXact u32,
//!              oldestXactDb u32                         oldestXactDb u32
//! ```
//!
//! Rules: `src/include/access/clog.h`, `clog_redo` in `src/backend/access/transam/clog.c`.

use crate::cursor::{Cursor, CursorError};
use crate::lsn::TransactionId;
use crate::version::Version;

/// `CLOG_ZEROPAGE`.
pub const ZEROPAGE: u8 = 0x00;
/// `CLOG_TRUNCATE`.
pub const TRUNCATE: u8 = 0x10;

/// A CLOG record that is not what it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClogError {
    /// Too few bytes.
    #[error(transparent)]
    Length(#[from] CursorError),
    /// A page that no transaction id belongs to.
    #[error("page {0} of pg_xact, which no transaction id belongs to")]
    Page(i64),
}

/// TRUNCATE (`xl_clog_truncate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate {
    /// Segments wholly before this page go.
    pub page: u64,
    /// The oldest transaction whose status is still needed.
    pub oldest_xact: TransactionId,
    /// The database that needs it.
    pub oldest_xact_db: u32,
}

impl Truncate {
    /// Reads main data.
    ///
    /// # Errors
    /// [`ClogError`] if it is too short or the page cannot be.
    pub fn read(main_data: &[u8], version: &Version) -> Result<Self, ClogError> {
        let WrittenTruncate { page, oldest_xact, oldest_xact_db } =
            WrittenTruncate::read(main_data, version)?;
        Ok(Self { page: check(page)?, oldest_xact, oldest_xact_db })
    }
}

/// TRUNCATE as it is written, whether or not there can be such a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenTruncate {
    /// See [`Truncate::page`].
    pub page: i64,
    /// See [`Truncate::oldest_xact`].
    pub oldest_xact: TransactionId,
    /// See [`Truncate::oldest_xact_db`].
    pub oldest_xact_db: u32,
}

impl WrittenTruncate {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &[u8], version: &Version) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        Ok(Self {
            page: cursor.slru_page(version)?,
            oldest_xact: TransactionId(cursor.u32("oldestXact")?),
            oldest_xact_db: cursor.u32("oldestXactDb")?,
        })
    }
}

/// Reads ZEROPAGE's main data: the page that begins.
///
/// # Errors
/// [`ClogError`] if it is too short or the page cannot be.
pub fn read_zeropage(main_data: &[u8], version: &Version) -> Result<u64, ClogError> {
    check(read_written_zeropage(main_data, version)?)
}

/// Reads ZEROPAGE's main data as they are written, whether or not there can be such a page.
///
/// # Errors
/// [`CursorError`] if they are too short.
pub fn read_written_zeropage(main_data: &[u8], version: &Version) -> Result<i64, CursorError> {
    Cursor::new(main_data).slru_page(version)
}

fn check(page: i64) -> Result<u64, ClogError> {
    match u64::try_from(page) {
        Ok(page) if page <= crate::slru::CLOG_PAGE_MAX => Ok(page),
        _ => Err(ClogError::Page(page)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::VERSIONS;

    #[test]
    fn a_page_must_have_transactions() {
        let last = (crate::slru::CLOG_PAGE_MAX as u32).to_le_bytes();
        assert_eq!(read_zeropage(&last, &VERSIONS[0]), Ok(131_071));
        assert!(read_zeropage(&131_072_u32.to_le_bytes(), &VERSIONS[0]).is_err());
        assert!(read_zeropage(&u32::MAX.to_le_bytes(), &VERSIONS[0]).is_err());
    }
}
