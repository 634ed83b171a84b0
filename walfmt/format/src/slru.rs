//! Where an SLRU keeps what: segments, pages, bytes and bits.
//!
//! ```text
//! directory              page holds                      an entry
//! pg_xact                32,768 transactions             2 bits: 0 in progress, 1 committed,
//!                                                        2 aborted, 3 subtransaction committed
//! pg_commit_ts           819 transactions                time i64, origin u16
//! pg_multixact/offsets   2,048 multixacts                first member u32
//! pg_multixact/members   409 groups of 4 members         group: 4 flag bytes, then 4 xids u32
//!
//! segment, a file        32 pages of 8192 bytes, without page headers and checksums
//! ```
//!
//! A table of [`SlruKind`]s says what is different between them; there is one row each.
//!
//! Rules: `slru.c`, `clog.c`, `commit_ts.c` and `multixact.c` in `src/backend/access/transam`.

use crate::lsn::TransactionId;
use crate::relation::BLOCK_SIZE;

/// How many pages a segment file of any SLRU holds (`SLRU_PAGES_PER_SEGMENT`).
pub const PAGES_PER_SEGMENT: u64 = 32;

/// How many transactions a byte of `pg_xact` holds (`CLOG_XACTS_PER_BYTE`).
pub const CLOG_XACTS_PER_BYTE: u32 = 4;

/// How many transactions a page of `pg_xact` holds (`CLOG_XACTS_PER_PAGE`).
pub const CLOG_XACTS_PER_PAGE: u32 = BLOCK_SIZE as u32 * CLOG_XACTS_PER_BYTE;

/// The page of the last transaction id before they wrap around.
pub const CLOG_PAGE_MAX: u64 = (u32::MAX / CLOG_XACTS_PER_PAGE) as u64;

/// Size of an entry of `pg_commit_ts`, in bytes (`SizeOfCommitTimestampEntry`).
pub const COMMIT_TS_ENTRY_SIZE: usize = 10;

/// How many transactions a page of `pg_commit_ts` holds (`COMMIT_TS_XACTS_PER_PAGE`).
pub const COMMIT_TS_XACTS_PER_PAGE: u32 = (BLOCK_SIZE / COMMIT_TS_ENTRY_SIZE) as u32;

/// How many multixacts a page of `pg_multixact/offsets` holds (`MULTIXACT_OFFSETS_PER_PAGE`).
pub const MULTIXACT_OFFSETS_PER_PAGE: u32 = BLOCK_SIZE as u32 / 4;

const MEMBERS_PER_GROUP: u32 = 4;
const MEMBER_GROUP_SIZE: u32 = MEMBERS_PER_GROUP * (1 + 4);
const MEMBER_GROUPS_PER_PAGE: u32 = BLOCK_SIZE as u32 / MEMBER_GROUP_SIZE;

/// How many members a page of `pg_multixact/members` holds (`MULTIXACT_MEMBERS_PER_PAGE`).
pub const MULTIXACT_MEMBERS_PER_PAGE: u32 = MEMBER_GROUPS_PER_PAGE * MEMBERS_PER_GROUP;

/// What is different between SLRUs.
#[derive(Debug)]
pub struct SlruKind {
    /// Where its segments are, from the data directory.
    pub directory: &'static str,
    /// The page of the last entry before they wrap around.
    pub page_max: u64,
    /// Whether a page lies before another, in their circle: all entries of the one must be older
    /// than all of the other's (`PagePrecedes` of `SlruCtlData`).
    pub page_precedes: fn(u64, u64) -> bool,
}

/// `pg_xact`: what became of transactions.
pub static CLOG: SlruKind =
    SlruKind { directory: "pg_xact", page_max: CLOG_PAGE_MAX, page_precedes: clog_page_precedes };

/// `pg_commit_ts`: when transactions committed, and where they came from.
pub static COMMIT_TS: SlruKind = SlruKind {
    directory: "pg_commit_ts",
    page_max: (u32::MAX / COMMIT_TS_XACTS_PER_PAGE) as u64,
    page_precedes: |page, other| xid_page_precedes(page, other, COMMIT_TS_XACTS_PER_PAGE),
};

/// `pg_multixact/offsets`: where the members of a multixact begin.
pub static MULTIXACT_OFFSETS: SlruKind = SlruKind {
    directory: "pg_multixact/offsets",
    page_max: (u32::MAX / MULTIXACT_OFFSETS_PER_PAGE) as u64,
    page_precedes: |page, other| circle_page_precedes(page, other, MULTIXACT_OFFSETS_PER_PAGE),
};

/// `pg_multixact/members`: which transactions hold a row, and how.
pub static MULTIXACT_MEMBERS: SlruKind = SlruKind {
    directory: "pg_multixact/members",
    page_max: (u32::MAX / MULTIXACT_MEMBERS_PER_PAGE) as u64,
    page_precedes: |page, other| circle_page_precedes(page, other, MULTIXACT_MEMBERS_PER_PAGE),
};

/// Where a transaction's two status bits are in `pg_xact`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClogPosition {
    /// The page's number (`TransactionIdToPage`).
    pub page: u64,
    /// The byte in the page (`TransactionIdToByte`).
    pub byte: usize,
    /// How far the bits are from the byte's lowest: 0, 2, 4 or 6.
    pub shift: u32,
}

impl ClogPosition {
    /// The place of `xid`.
    #[must_use]
    pub const fn of(xid: TransactionId) -> Self {
        let in_page = xid.0 % CLOG_XACTS_PER_PAGE;
        Self {
            page: (xid.0 / CLOG_XACTS_PER_PAGE) as u64,
            byte: (in_page / CLOG_XACTS_PER_BYTE) as usize,
            shift: in_page % CLOG_XACTS_PER_BYTE * 2,
        }
    }
}

/// Where an entry of whole bytes begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryPosition {
    /// The page's number.
    pub page: u64,
    /// The entry's first byte in the page.
    pub byte: usize,
}

impl EntryPosition {
    /// Where `pg_commit_ts` has the commit time of `xid` (`TransactionIdToCTsPage`).
    #[must_use]
    pub const fn of_commit_ts(xid: TransactionId) -> Self {
        Self {
            page: (xid.0 / COMMIT_TS_XACTS_PER_PAGE) as u64,
            byte: (xid.0 % COMMIT_TS_XACTS_PER_PAGE) as usize * COMMIT_TS_ENTRY_SIZE,
        }
    }

    /// Where `pg_multixact/offsets` has the first member of `multi` (`MultiXactIdToOffsetPage`).
    #[must_use]
    pub const fn of_multixact_offset(multi: u32) -> Self {
        Self {
            page: (multi / MULTIXACT_OFFSETS_PER_PAGE) as u64,
            byte: (multi % MULTIXACT_OFFSETS_PER_PAGE) as usize * 4,
        }
    }
}

/// Where a member of a multixact is in `pg_multixact/members`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberPosition {
    /// The page's number (`MXOffsetToMemberPage`).
    pub page: u64,
    /// The byte of its status in the page (`MXOffsetToFlagsOffset` and `MXOffsetToFlagsBitShift`).
    pub status: usize,
    /// The first byte of its transaction id in the page (`MXOffsetToMemberOffset`).
    pub xid: usize,
}

impl MemberPosition {
    /// The place of the member with this number.
    #[must_use]
    pub const fn of(offset: u32) -> Self {
        let group = offset / MEMBERS_PER_GROUP % MEMBER_GROUPS_PER_PAGE * MEMBER_GROUP_SIZE;
        let in_group = offset % MEMBERS_PER_GROUP;
        Self {
            page: (offset / MULTIXACT_MEMBERS_PER_PAGE) as u64,
            status: (group + in_group) as usize,
            xid: (group + MEMBERS_PER_GROUP + in_group * 4) as usize,
        }
    }
}

/// The segment a page is in.
#[must_use]
pub const fn segment_of_page(page: u64) -> u64 {
    page / PAGES_PER_SEGMENT
}

/// Where a page begins in its segment file, in bytes.
#[must_use]
pub const fn offset_in_segment(page: u64) -> u64 {
    page % PAGES_PER_SEGMENT * BLOCK_SIZE as u64
}

/// The name of a segment's file: at least four hexadecimal digits (`SlruFileName`).
#[must_use]
pub fn segment_file_name(segment: u64) -> String {
    format!("{segment:04X}")
}

/// The segment whose file has this name, if it is one's (`SlruScanDirectory`).
#[must_use]
pub fn segment_number(name: &str) -> Option<u64> {
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    ((4..=6).contains(&name.len()) && name.bytes().all(is_digit))
        .then(|| u64::from_str_radix(name, 16).ok())
        .flatten()
}

/// Whether `page` lies before `other`, in the circle of `pg_xact` pages (`CLOGPagePrecedes`): all
/// of its transactions must be older than all of the other's.
#[must_use]
pub const fn clog_page_precedes(page: u64, other: u64) -> bool {
    xid_page_precedes(page, other, CLOG_XACTS_PER_PAGE)
}

const fn xid_page_precedes(page: u64, other: u64, xids_per_page: u32) -> bool {
    let first = first_compared_xid(page, xids_per_page);
    let other_first = first_compared_xid(other, xids_per_page);
    let other_last = TransactionId(other_first.0.wrapping_add(xids_per_page - 1));
    first.precedes(other_first) && first.precedes(other_last)
}

/// A page's first transaction, moved on by so much that it is never one of the reserved ids, which
/// have an order of their own.
const fn first_compared_xid(page: u64, xids_per_page: u32) -> TransactionId {
    let first = (page as u32).wrapping_mul(xids_per_page);
    TransactionId(first.wrapping_add(TransactionId::FIRST_NORMAL.0 + 1))
}

/// The same for numbers without reserved ones (`MultiXactOffsetPagePrecedes`,
/// `MultiXactMemberPagePrecedes`).
const fn circle_page_precedes(page: u64, other: u64, entries_per_page: u32) -> bool {
    let first = (page as u32).wrapping_mul(entries_per_page);
    let other_first = (other as u32).wrapping_mul(entries_per_page);
    let other_last = other_first.wrapping_add(entries_per_page - 1);
    (first.wrapping_sub(other_first) as i32) < 0 && (first.wrapping_sub(other_last) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_of_a_transaction() {
        let place = |xid| ClogPosition::of(TransactionId(xid));
        assert_eq!(place(3), ClogPosition { page: 0, byte: 0, shift: 6 });
        assert_eq!(place(32_768 + 5), ClogPosition { page: 1, byte: 1, shift: 2 });
        assert_eq!(place(u32::MAX), ClogPosition { page: CLOG_PAGE_MAX, byte: 8191, shift: 6 });
        assert_eq!(CLOG_PAGE_MAX, 131_071);
    }

    #[test]
    fn entries_of_whole_bytes() {
        let commit_ts = |xid| EntryPosition::of_commit_ts(TransactionId(xid));
        assert_eq!(commit_ts(3), EntryPosition { page: 0, byte: 30 });
        assert_eq!(commit_ts(819 + 818), EntryPosition { page: 1, byte: 8180 });
        let offset = EntryPosition::of_multixact_offset;
        assert_eq!(offset(2047), EntryPosition { page: 0, byte: 8188 });
        assert_eq!(offset(u32::MAX), EntryPosition { page: 2_097_151, byte: 8188 });
        assert_eq!(MULTIXACT_OFFSETS.page_max, 2_097_151);
    }

    #[test]
    fn members_are_in_groups_of_four() {
        assert_eq!(MULTIXACT_MEMBERS_PER_PAGE, 1636);
        let place = MemberPosition::of;
        assert_eq!(place(0), MemberPosition { page: 0, status: 0, xid: 4 });
        assert_eq!(place(3), MemberPosition { page: 0, status: 3, xid: 16 });
        assert_eq!(place(4), MemberPosition { page: 0, status: 20, xid: 24 });
        assert_eq!(place(1635), MemberPosition { page: 0, status: 8163, xid: 8176 });
        assert_eq!(place(1636), MemberPosition { page: 1, status: 0, xid: 4 });
        assert_eq!(place(u32::MAX).page, MULTIXACT_MEMBERS.page_max);
    }

    #[test]
    fn segments() {
        assert_eq!((segment_of_page(33), offset_in_segment(33)), (1, 8192));
        assert_eq!(segment_file_name(segment_of_page(CLOG_PAGE_MAX)), "0FFF");
        let last = segment_of_page(MULTIXACT_MEMBERS.page_max);
        assert_eq!(segment_file_name(last), "14078");
        assert_eq!(segment_number("14078"), Some(last));
        assert_eq!(segment_number("0FFF"), Some(0xFFF));
        for name in ["", "000", "0000000", "00fg", "0abc", "+123"] {
            assert_eq!(segment_number(name), None, "{name}");
        }
    }

    #[test]
    fn pages_precede_in_a_circle() {
        for kind in [&CLOG, &COMMIT_TS, &MULTIXACT_OFFSETS, &MULTIXACT_MEMBERS] {
            let precedes = kind.page_precedes;
            assert!(precedes(0, 1), "{kind:?}");
            assert!(!precedes(1, 1), "{kind:?}");
            assert!(!precedes(1, 0), "{kind:?}");
            assert!(precedes(kind.page_max, 1), "{kind:?}");
            assert!(!precedes(1, kind.page_max), "{kind:?}");
        }
        assert!(clog_page_precedes(CLOG_PAGE_MAX, 0));
        assert!(!clog_page_precedes(0, CLOG_PAGE_MAX));
    }
}
