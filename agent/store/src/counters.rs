//! What replay learns of the leader's counters.
//!
//! A checkpoint of a server at rest says them exactly; one of a running server is a lower bound,
//! and other records move them on. Nothing on disk depends on them: a server that takes over reads
//! the same WAL again. They are for status and for decoding.
//!
//! Rules: `xlog_redo` in `src/backend/access/transam/xlog.c`.

use walfmt::TransactionId;
use walfmt::rmgr::xlog::CheckPoint;

/// The leader's counters as of the last record given to replay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// The next transaction id; the epoch is in the high half.
    pub next_xid: u64,
    /// The next OID. Exact only after a shutdown; else the end of a range given out ahead.
    pub next_oid: u32,
    /// The next multixact id.
    pub next_multi: u32,
    /// The next multixact member.
    pub next_multi_offset: u32,
    /// The oldest transaction id still in any table.
    pub oldest_xid: TransactionId,
    /// The oldest multixact id still in any table.
    pub oldest_multi: u32,
}

impl Counters {
    /// As a server starts recovery (`StartupXLOG`).
    pub(crate) const fn from_checkpoint(checkpoint: &CheckPoint) -> Self {
        Self {
            next_xid: checkpoint.next_xid,
            next_oid: checkpoint.next_oid,
            next_multi: checkpoint.next_multi,
            next_multi_offset: checkpoint.next_multi_offset,
            oldest_xid: checkpoint.oldest_xid,
            oldest_multi: checkpoint.oldest_multi,
        }
    }

    /// A checkpoint of a server at rest.
    pub(crate) const fn set(&mut self, checkpoint: &CheckPoint) {
        *self = Self::from_checkpoint(checkpoint);
    }

    /// A checkpoint of a running server; it says nothing of OIDs.
    pub(crate) const fn advance(&mut self, checkpoint: &CheckPoint) {
        if self.next_xid < checkpoint.next_xid {
            self.next_xid = checkpoint.next_xid;
        }
        if multi_precedes(self.next_multi, checkpoint.next_multi) {
            self.next_multi = checkpoint.next_multi;
        }
        if multi_precedes(self.next_multi_offset, checkpoint.next_multi_offset) {
            self.next_multi_offset = checkpoint.next_multi_offset;
        }
        if self.oldest_xid.precedes(checkpoint.oldest_xid) {
            self.oldest_xid = checkpoint.oldest_xid;
        }
        if multi_precedes(self.oldest_multi, checkpoint.oldest_multi) {
            self.oldest_multi = checkpoint.oldest_multi;
        }
    }

    /// `xid` has been given out (`AdvanceNextFullTransactionIdPastXid`).
    pub(crate) const fn advance_past_xid(&mut self, xid: TransactionId) {
        let next = TransactionId(self.next_xid as u32);
        if !xid.is_normal() || xid.precedes(next) {
            return;
        }
        let mut epoch = self.next_xid >> 32;
        let mut after = xid.0.wrapping_add(1);
        if after < TransactionId::FIRST_NORMAL.0 {
            after = TransactionId::FIRST_NORMAL.0;
        }
        if after < next.0 {
            epoch = epoch.wrapping_add(1);
        }
        self.next_xid = epoch << 32 | after as u64;
    }

    pub(crate) const fn set_next_oid(&mut self, oid: u32) {
        self.next_oid = oid;
    }
}

/// Multixact ids and member offsets wrap around at 2^32 (`MultiXactIdPrecedes`).
const fn multi_precedes(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(next_xid: u64, next_oid: u32, next_multi: u32) -> CheckPoint {
        CheckPoint { next_xid, next_oid, next_multi, ..CheckPoint::default() }
    }

    #[test]
    fn shutdown_is_exact_and_online_a_lower_bound() {
        let mut counters = Counters::from_checkpoint(&checkpoint(1000, 16384, 10));
        counters.advance_past_xid(TransactionId(1500));
        assert_eq!(counters.next_xid, 1501);
        counters.advance_past_xid(TransactionId(1200));
        assert_eq!(counters.next_xid, 1501);
        counters.set_next_oid(24576);
        counters.advance(&checkpoint(1400, 20000, 12));
        assert_eq!((counters.next_xid, counters.next_oid, counters.next_multi), (1501, 24576, 12));
        counters.set(&checkpoint(1501, 16500, 11));
        assert_eq!((counters.next_xid, counters.next_oid, counters.next_multi), (1501, 16500, 11));
    }

    #[test]
    fn the_epoch_grows_when_ids_wrap_around() {
        let mut counters = Counters::from_checkpoint(&checkpoint(0xFFFF_FF00, 0, 0));
        counters.advance_past_xid(TransactionId(u32::MAX));
        assert_eq!(counters.next_xid, 1 << 32 | 3);
        counters.advance_past_xid(TransactionId(7));
        assert_eq!(counters.next_xid, 1 << 32 | 8);
        counters.advance_past_xid(TransactionId::INVALID);
        assert_eq!(counters.next_xid, 1 << 32 | 8);
    }
}
