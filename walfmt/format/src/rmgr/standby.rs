//! Standby: what a server that answers queries during replay must know. Nothing of it is on disk.
//!
//! ```text
//! LOCK           nlocks i32, { xid u32, dbOid u32, relOid u32 }[]
//! RUNNING_XACTS  offset  size  field
//!                     0     4  xcnt
//!                     4     4  subxcnt
//!                     8     1  subxid_overflow
//!                    12     4  nextXid
//!                    16     4  oldestRunningXid
//!                    20     4  latestCompletedXid
//!                    24        xids u32[xcnt + subxcnt]: top-level ones first
//! INVALIDATIONS  dbId u32, tsId u32, relcacheInitFileInval bool, 3 unused, nmsgs i32,
//!                messages 16 bytes[]
//! ```
//!
//! Rules: `src/include/storage/standbydefs.h`.

use crate::bytes::u32_at;
use crate::cursor::{Cursor, CursorError};
use crate::lsn::TransactionId;

/// `XLOG_STANDBY_LOCK`.
pub const LOCK: u8 = 0x00;
/// `XLOG_RUNNING_XACTS`.
pub const RUNNING_XACTS: u8 = 0x10;
/// `XLOG_INVALIDATIONS`.
pub const INVALIDATIONS: u8 = 0x20;

/// RUNNING_XACTS (`xl_running_xacts`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningXacts<'a> {
    /// Subtransactions are missing from the list: there were too many.
    pub subxid_overflow: bool,
    /// The next transaction id to be given out.
    pub next_xid: TransactionId,
    /// The oldest transaction that still runs.
    pub oldest_running_xid: TransactionId,
    /// The newest transaction that has ended.
    pub latest_completed_xid: TransactionId,
    /// How many of the listed ones are top-level transactions.
    pub toplevel_count: usize,
    xids: &'a [u8],
}

impl<'a> RunningXacts<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let toplevel_count = cursor.u32("xcnt")? as usize;
        let subxid_count = cursor.u32("subxcnt")? as usize;
        let subxid_overflow = cursor.u8("subxid_overflow")? != 0;
        cursor.take(3, "padding")?;
        let next_xid = TransactionId(cursor.u32("nextXid")?);
        let oldest_running_xid = TransactionId(cursor.u32("oldestRunningXid")?);
        let latest_completed_xid = TransactionId(cursor.u32("latestCompletedXid")?);
        let length = toplevel_count.saturating_add(subxid_count).saturating_mul(4);
        let xids = cursor.take(length, "xids")?;
        Ok(Self {
            subxid_overflow,
            next_xid,
            oldest_running_xid,
            latest_completed_xid,
            toplevel_count,
            xids,
        })
    }

    /// The running transactions, top-level ones first.
    pub fn xids(&self) -> impl Iterator<Item = TransactionId> + 'a {
        self.xids.chunks_exact(4).map(|xid| TransactionId(u32_at(xid, 0)))
    }
}
