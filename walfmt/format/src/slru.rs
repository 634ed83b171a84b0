//! Where a transaction's status lies: pages, segments and bits of `pg_xact`.
//!
//! ```text
//! pg_xact/0000     segment: 32 pages of 8192 bytes, without page headers and checksums
//! page             32768 transactions, 4 in a byte
//! byte             76543210    bits 0 and 1 are the first transaction's
//! status           0 in progress, 1 committed, 2 aborted, 3 subtransaction committed
//! ```
//!
//! Rules: `src/backend/access/transam/clog.c`, `src/backend/access/transam/slru.c`.

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

/// Whether `page` lies before `other`, in the circle of `pg_xact` pages (`CLOGPagePrecedes`): all
/// of its transactions must be older than all of the other's.
#[must_use]
pub const fn clog_page_precedes(page: u64, other: u64) -> bool {
    let first = first_compared_xid(page);
    let other_first = first_compared_xid(other);
    let other_last = TransactionId(other_first.0.wrapping_add(CLOG_XACTS_PER_PAGE - 1));
    first.precedes(other_first) && first.precedes(other_last)
}

/// A page's first transaction, moved on by so much that it is never one of the reserved ids, which
/// have an order of their own.
const fn first_compared_xid(page: u64) -> TransactionId {
    let first = (page as u32).wrapping_mul(CLOG_XACTS_PER_PAGE);
    TransactionId(first.wrapping_add(TransactionId::FIRST_NORMAL.0 + 1))
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
    fn segments() {
        assert_eq!((segment_of_page(33), offset_in_segment(33)), (1, 8192));
        assert_eq!(segment_file_name(segment_of_page(CLOG_PAGE_MAX)), "0FFF");
    }

    #[test]
    fn pages_precede_in_a_circle() {
        assert!(clog_page_precedes(0, 1));
        assert!(!clog_page_precedes(1, 1));
        assert!(!clog_page_precedes(1, 0));
        assert!(clog_page_precedes(CLOG_PAGE_MAX, 0));
        assert!(!clog_page_precedes(0, CLOG_PAGE_MAX));
    }
}
