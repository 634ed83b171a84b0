//! MultiXact: sets of transactions that hold a row together.
//!
//! ```text
//! ZERO_OFF_PAGE  pageno, 4 bytes, 8 from 17 on     CREATE_ID
//! ZERO_MEM_PAGE  the same                          offset  size  field
//!                                                       0     4  mid       the new multixact
//! TRUNCATE_ID, 20 bytes                                 4     4  moff      its first member
//! offset  size  field                                   8     4  nmembers
//!      0     4  oldestMultiDB                          12        { xid u32, status i32 }[]
//!      4     4  startTruncOff, a multixact
//!      8     4  endTruncOff
//!     12     4  startTruncMemb, a member
//!     16     4  endTruncMemb
//! ```
//!
//! Rules: `src/include/access/multixact.h`.

use crate::bytes::u32_at;
use crate::cursor::{Cursor, CursorError};
use crate::lsn::TransactionId;
use crate::slru::{MULTIXACT_MEMBERS, MULTIXACT_OFFSETS, SlruKind};
use crate::version::Version;

/// `XLOG_MULTIXACT_ZERO_OFF_PAGE`.
pub const ZERO_OFF_PAGE: u8 = 0x00;
/// `XLOG_MULTIXACT_ZERO_MEM_PAGE`.
pub const ZERO_MEM_PAGE: u8 = 0x10;
/// `XLOG_MULTIXACT_CREATE_ID`.
pub const CREATE_ID: u8 = 0x20;
/// `XLOG_MULTIXACT_TRUNCATE_ID`.
pub const TRUNCATE_ID: u8 = 0x30;

/// The highest status a member can have (`MaxMultiXactStatus`).
const STATUS_MAX: u32 = 5;

const MEMBER_SIZE: usize = 8;

/// A MultiXact record that is not what it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MultiXactError {
    /// Too few bytes, or too many.
    #[error(transparent)]
    Length(#[from] CursorError),
    /// A page that no multixact belongs to.
    #[error("page {page} of {directory}, which ends at page {page_max}")]
    Page {
        /// The page's number.
        page: i64,
        /// Of which SLRU.
        directory: &'static str,
        /// Its last page.
        page_max: u64,
    },
    /// No member can have this status.
    #[error("a member with status {0}, expected 0 to 5")]
    Status(u32),
    /// Multixacts begin at 1.
    #[error("multixact 0")]
    Invalid,
}

/// CREATE_ID (`xl_multixact_create`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Create<'a> {
    /// The new multixact's id; never 0.
    pub multi: u32,
    /// The number of its first member.
    pub offset: u32,
    members: &'a [u8],
}

/// A transaction of a multixact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The transaction.
    pub xid: TransactionId,
    /// What it holds the row for (`MultiXactStatus`), 0 to 5; 255 if no byte can hold it, which
    /// [`Create::read`] refuses.
    pub status: u8,
}

impl<'a> Create<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`MultiXactError`] if its length is not what its own fields say, or there is no such status.
    pub fn read(main_data: &'a [u8]) -> Result<Self, MultiXactError> {
        let mut cursor = Cursor::new(main_data);
        let create = Self::read_from(&mut cursor)?;
        cursor.finish("members")?;
        if create.multi == 0 {
            return Err(MultiXactError::Invalid);
        }
        let mut statuses = create.members.chunks_exact(MEMBER_SIZE).map(|member| u32_at(member, 4));
        match statuses.find(|status| *status > STATUS_MAX) {
            Some(status) => Err(MultiXactError::Status(status)),
            None => Ok(create),
        }
    }

    /// Reads main data as they are written, whether or not there can be such a multixact.
    ///
    /// # Errors
    /// [`CursorError`] if they are too short.
    pub fn read_written(main_data: &'a [u8]) -> Result<Self, CursorError> {
        Self::read_from(&mut Cursor::new(main_data))
    }

    fn read_from(cursor: &mut Cursor<'a>) -> Result<Self, CursorError> {
        let multi = cursor.u32("mid")?;
        let offset = cursor.u32("moff")?;
        let count = cursor.count(MEMBER_SIZE, "nmembers")?;
        Ok(Self { multi, offset, members: cursor.take(count * MEMBER_SIZE, "members")? })
    }

    /// Its members, in order.
    pub fn members(&self) -> impl ExactSizeIterator<Item = Member> + 'a {
        self.members.chunks_exact(MEMBER_SIZE).map(|member| Member {
            xid: TransactionId(u32_at(member, 0)),
            status: u8::try_from(u32_at(member, 4)).unwrap_or(u8::MAX),
        })
    }

    /// The number of the member after its last (wrapping around).
    #[must_use]
    pub const fn end_offset(&self) -> u32 {
        self.offset.wrapping_add((self.members.len() / MEMBER_SIZE) as u32)
    }
}

/// TRUNCATE_ID (`xl_multixact_truncate`): what lies between start and end is not needed any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate {
    /// The database with the oldest multixact that is still needed.
    pub oldest_multi_db: u32,
    /// The oldest multixact so far.
    pub start_multi: u32,
    /// The oldest multixact from now on.
    pub end_multi: u32,
    /// The first member so far.
    pub start_offset: u32,
    /// The first member from now on.
    pub end_offset: u32,
}

impl Truncate {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is not 20 bytes.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let truncate = Self::read_from(&mut cursor)?;
        cursor.finish("endTruncMemb").map(|()| truncate)
    }

    /// Reads main data, of which there may be more.
    ///
    /// # Errors
    /// [`CursorError`] if they are too short.
    pub fn read_written(main_data: &[u8]) -> Result<Self, CursorError> {
        Self::read_from(&mut Cursor::new(main_data))
    }

    fn read_from(cursor: &mut Cursor<'_>) -> Result<Self, CursorError> {
        Ok(Self {
            oldest_multi_db: cursor.u32("oldestMultiDB")?,
            start_multi: cursor.u32("startTruncOff")?,
            end_multi: cursor.u32("endTruncOff")?,
            start_offset: cursor.u32("startTruncMemb")?,
            end_offset: cursor.u32("endTruncMemb")?,
        })
    }
}

/// Reads ZERO_OFF_PAGE's main data: the page of `pg_multixact/offsets` that begins.
///
/// # Errors
/// [`MultiXactError`] if it is too short or the page cannot be.
pub fn read_zero_offsets_page(main_data: &[u8], version: &Version) -> Result<u64, MultiXactError> {
    read_page(main_data, version, &MULTIXACT_OFFSETS)
}

/// Reads ZERO_MEM_PAGE's main data: the page of `pg_multixact/members` that begins.
///
/// # Errors
/// [`MultiXactError`] if it is too short or the page cannot be.
pub fn read_zero_members_page(main_data: &[u8], version: &Version) -> Result<u64, MultiXactError> {
    read_page(main_data, version, &MULTIXACT_MEMBERS)
}

/// Reads ZERO_OFF_PAGE's or ZERO_MEM_PAGE's main data as they are written, whether or not there can
/// be such a page.
///
/// # Errors
/// [`CursorError`] if they are too short.
pub fn read_written_page(main_data: &[u8], version: &Version) -> Result<i64, CursorError> {
    Cursor::new(main_data).slru_page(version)
}

fn read_page(
    main_data: &[u8],
    version: &Version,
    slru: &'static SlruKind,
) -> Result<u64, MultiXactError> {
    let SlruKind { directory, page_max, .. } = *slru;
    let page = read_written_page(main_data, version)?;
    match u64::try_from(page) {
        Ok(page) if page <= page_max => Ok(page),
        _ => Err(MultiXactError::Page { page, directory, page_max }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::VERSIONS;

    fn create(members: &[(u32, u32)]) -> Vec<u8> {
        let mut main = Vec::new();
        for word in [7, u32::MAX, members.len() as u32] {
            main.extend(word.to_le_bytes());
        }
        for (xid, status) in members {
            main.extend(xid.to_le_bytes());
            main.extend(status.to_le_bytes());
        }
        main
    }

    #[test]
    fn members_are_found() {
        let main = create(&[(700, 0), (701, 5)]);
        let read = Create::read(&main).expect("well formed");
        assert_eq!((read.multi, read.offset, read.end_offset()), (7, u32::MAX, 1));
        let member = |xid, status| Member { xid: TransactionId(xid), status };
        assert_eq!(read.members().collect::<Vec<_>>(), [member(700, 0), member(701, 5)]);
        for length in 0..main.len() {
            assert!(Create::read(&main[..length]).is_err());
        }
    }

    #[test]
    fn what_no_server_writes_is_refused() {
        assert_eq!(Create::read(&create(&[(700, 6)])), Err(MultiXactError::Status(6)));
        let mut main = create(&[]);
        main[..4].fill(0);
        assert_eq!(Create::read(&main), Err(MultiXactError::Invalid));
        assert!(Truncate::read(&[0; 21]).is_err());
        let page = |page: u32| page.to_le_bytes();
        assert_eq!(read_zero_offsets_page(&page(2_097_151), &VERSIONS[0]), Ok(2_097_151));
        assert!(read_zero_offsets_page(&page(2_097_152), &VERSIONS[0]).is_err());
        assert_eq!(read_zero_members_page(&page(2_625_285), &VERSIONS[0]), Ok(2_625_285));
        assert!(read_zero_members_page(&page(2_625_286), &VERSIONS[0]).is_err());
    }
}
