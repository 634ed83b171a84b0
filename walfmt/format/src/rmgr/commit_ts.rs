//! CommitTs: pages of `pg_commit_ts` that begin, and segments that are no longer needed.
//!
//! ```text
//!              15, 16                         17, 18
//! ZEROPAGE     pageno i32                     pageno i64
//! TRUNCATE     pageno i32, oldestXid u32      pageno i64, oldestXid u32
//! ```
//!
//! The timestamps themselves are in commit records. Rules: `src/include/access/commit_ts.h`.

use crate::cursor::{Cursor, CursorError};
use crate::lsn::TransactionId;
use crate::slru::COMMIT_TS;
use crate::version::Version;

/// `COMMIT_TS_ZEROPAGE`.
pub const ZEROPAGE: u8 = 0x00;
/// `COMMIT_TS_TRUNCATE`.
pub const TRUNCATE: u8 = 0x10;

/// A CommitTs record that is not what it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommitTsError {
    /// Too few bytes.
    #[error(transparent)]
    Length(#[from] CursorError),
    /// A page that no transaction id belongs to.
    #[error("page {0} of pg_commit_ts, which no transaction id belongs to")]
    Page(i64),
}

/// TRUNCATE (`xl_commit_ts_truncate`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate {
    /// Segments wholly before this page go.
    pub page: u64,
    /// The oldest transaction whose commit time is still kept.
    pub oldest_xid: TransactionId,
}

impl Truncate {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CommitTsError`] if it is too short or the page cannot be.
    pub fn read(main_data: &[u8], version: &Version) -> Result<Self, CommitTsError> {
        let WrittenTruncate { page, oldest_xid } = WrittenTruncate::read(main_data, version)?;
        Ok(Self { page: check(page)?, oldest_xid })
    }
}

/// TRUNCATE as it is written, whether or not there can be such a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WrittenTruncate {
    /// See [`Truncate::page`].
    pub page: i64,
    /// See [`Truncate::oldest_xid`].
    pub oldest_xid: TransactionId,
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
            oldest_xid: TransactionId(cursor.u32("oldestXid")?),
        })
    }
}

/// Reads ZEROPAGE's main data: the page that begins.
///
/// # Errors
/// [`CommitTsError`] if it is too short or the page cannot be.
pub fn read_zeropage(main_data: &[u8], version: &Version) -> Result<u64, CommitTsError> {
    check(read_written_zeropage(main_data, version)?)
}

/// Reads ZEROPAGE's main data as they are written, whether or not there can be such a page.
///
/// # Errors
/// [`CursorError`] if they are too short.
pub fn read_written_zeropage(main_data: &[u8], version: &Version) -> Result<i64, CursorError> {
    Cursor::new(main_data).slru_page(version)
}

fn check(page: i64) -> Result<u64, CommitTsError> {
    match u64::try_from(page) {
        Ok(page) if page <= COMMIT_TS.page_max => Ok(page),
        _ => Err(CommitTsError::Page(page)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::VERSIONS;

    #[test]
    fn a_page_must_have_transactions() {
        let page = |page: u32| page.to_le_bytes();
        assert_eq!(read_zeropage(&page(5_244_160), &VERSIONS[0]), Ok(5_244_160));
        assert!(read_zeropage(&page(5_244_161), &VERSIONS[0]).is_err());
        assert!(read_zeropage(&page(u32::MAX), &VERSIONS[0]).is_err());
        let main = [3, 0, 0, 0, 9, 0, 0, 0];
        let truncate = Truncate { page: 3, oldest_xid: TransactionId(9) };
        assert_eq!(Truncate::read(&main, &VERSIONS[0]), Ok(truncate));
        assert!(Truncate::read(&main[..7], &VERSIONS[0]).is_err());
    }
}
