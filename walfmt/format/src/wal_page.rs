//! The header of a WAL page.
//!
//! ```text
//! offset  size  field
//!      0     2  xlp_magic       which major wrote it
//!      2     2  xlp_info        flags
//!      4     4  xlp_tli         timeline
//!      8     8  xlp_pageaddr    LSN of the page's first byte
//!     16     4  xlp_rem_len     bytes of a record begun earlier that follow, here and later
//!     20     4  (padding)
//!             -- only on a segment's first page:
//!     24     8  xlp_sysid       system identifier
//!     32     4  xlp_seg_size    segment size
//!     36     4  xlp_xlog_blcksz WAL page size
//! ```
//!
//! Rules: `src/include/access/xlog_internal.h`; the checks are those of
//! `XLogReaderValidatePageHeader` in `src/backend/access/transam/xlogreader.c`.

use crate::bytes::{u16_at, u32_at, u64_at};
use crate::lsn::{Lsn, Timeline};
use crate::relation::BLOCK_SIZE;
use crate::segment::SegmentSize;

/// WAL page size in bytes (`XLOG_BLCKSZ`).
pub const WAL_PAGE_SIZE: usize = BLOCK_SIZE;
/// Header size on all pages but a segment's first (`SizeOfXLogShortPHD`).
pub const SHORT_HEADER_SIZE: usize = 24;
/// Header size on a segment's first page (`SizeOfXLogLongPHD`).
pub const LONG_HEADER_SIZE: usize = 40;

const XLP_FIRST_IS_CONTRECORD: u16 = 0x0001;
const XLP_LONG_HEADER: u16 = 0x0002;
const XLP_FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;
const XLP_ALL_FLAGS: u16 = 0x000F;

/// The size of the header of the page that begins at `page`.
#[must_use]
pub const fn header_size(page: Lsn, segment_size: SegmentSize) -> usize {
    if segment_size.offset_of(page) == 0 { LONG_HEADER_SIZE } else { SHORT_HEADER_SIZE }
}

/// The start of the page that `lsn` lies on.
#[must_use]
pub const fn page_start(lsn: Lsn) -> Lsn {
    Lsn(lsn.0 - lsn.0 % WAL_PAGE_SIZE as u64)
}

/// A page header that was read, nothing checked yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalPageHeader {
    /// `xlp_magic`.
    pub magic: u16,
    /// `xlp_info`.
    pub info: u16,
    /// `xlp_tli`.
    pub timeline: Timeline,
    /// `xlp_pageaddr`.
    pub address: Lsn,
    /// `xlp_rem_len`, bytes.
    pub remaining_length: u32,
    /// What only a segment's first page carries.
    pub long: Option<LongHeader>,
}

/// What a segment's first page says beyond the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongHeader {
    /// `xlp_sysid`.
    pub system_identifier: u64,
    /// `xlp_seg_size`, bytes.
    pub segment_size: u32,
    /// `xlp_xlog_blcksz`, bytes.
    pub page_size: u32,
}

impl WalPageHeader {
    /// Reads the header at the front of `bytes`; nothing if they are too short for the header that
    /// their flags announce.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < SHORT_HEADER_SIZE {
            return None;
        }
        let xlp_info = u16_at(bytes, 2);
        let long = if xlp_info & XLP_LONG_HEADER != 0 {
            if bytes.len() < LONG_HEADER_SIZE {
                return None;
            }
            Some(LongHeader {
                system_identifier: u64_at(bytes, 24),
                segment_size: u32_at(bytes, 32),
                page_size: u32_at(bytes, 36),
            })
        } else {
            None
        };
        Some(Self {
            magic: u16_at(bytes, 0),
            info: xlp_info,
            timeline: Timeline(u32_at(bytes, 4)),
            address: Lsn(u64_at(bytes, 8)),
            remaining_length: u32_at(bytes, 16),
            long,
        })
    }

    /// Whether the page begins with the rest of a record.
    #[must_use]
    pub const fn first_is_contrecord(&self) -> bool {
        self.info & XLP_FIRST_IS_CONTRECORD != 0
    }

    /// Whether the record that ran up to this page was given up, and a new one begins here.
    #[must_use]
    pub const fn first_is_overwrite_contrecord(&self) -> bool {
        self.info & XLP_FIRST_IS_OVERWRITE_CONTRECORD != 0
    }

    /// Whether a flag is set that no known server sets.
    #[must_use]
    pub const fn has_unknown_flags(&self) -> bool {
        self.info & !XLP_ALL_FLAGS != 0
    }

    /// Whether all that was read is zero: nothing has been written here.
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.magic == 0 && self.info == 0 && self.timeline.0 == 0 && self.address.0 == 0
    }
}
