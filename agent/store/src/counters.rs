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
    /// The oldest transaction with a commit timestamp; invalid if they are not kept.
    pub oldest_commit_ts_xid: TransactionId,
    /// The newest transaction with a commit timestamp; invalid if they are not kept.
    pub newest_commit_ts_xid: TransactionId,
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
            oldest_commit_ts_xid: checkpoint.oldest_commit_ts_xid,
            newest_commit_ts_xid: checkpoint.newest_commit_ts_xid,
        }
    }

    /// A checkpoint of a server at rest. It says nothing here of commit timestamps, and the oldest
    /// multixact does not go back.
    pub(crate) const fn set(&mut self, checkpoint: &CheckPoint) {
        self.next_xid = checkpoint.next_xid;
        self.next_oid = checkpoint.next_oid;
        self.next_multi = checkpoint.next_multi;
        self.next_multi_offset = checkpoint.next_multi_offset;
        self.oldest_xid = checkpoint.oldest_xid;
        self.advance_oldest_multi(checkpoint.oldest_multi);
    }

    /// A checkpoint of a running server; it says nothing of OIDs.
    pub(crate) const fn advance(&mut self, checkpoint: &CheckPoint) {
        if self.next_xid < checkpoint.next_xid {
            self.next_xid = checkpoint.next_xid;
        }
        self.advance_multi(checkpoint.next_multi, checkpoint.next_multi_offset);
        if self.oldest_xid.precedes(checkpoint.oldest_xid) {
            self.oldest_xid = checkpoint.oldest_xid;
        }
        self.advance_oldest_multi(checkpoint.oldest_multi);
    }

    /// `multi` has been given out, with members before `end_offset` (`MultiXactAdvanceNextMXact`).
    pub(crate) const fn advance_past_multi(&mut self, multi: u32, end_offset: u32) {
        self.advance_multi(multi.wrapping_add(1), end_offset);
    }

    /// Commit timestamps are kept from now on, or no more (`ActivateCommitTs`,
    /// `DeactivateCommitTs`).
    pub(crate) const fn keep_commit_times(&mut self, are_kept: bool) {
        if !are_kept {
            self.oldest_commit_ts_xid = TransactionId::INVALID;
            self.newest_commit_ts_xid = TransactionId::INVALID;
        } else if !self.oldest_commit_ts_xid.is_valid() {
            self.oldest_commit_ts_xid = TransactionId(self.next_xid as u32);
            self.newest_commit_ts_xid = self.oldest_commit_ts_xid;
        }
    }

    /// Older commit timestamps are gone (`AdvanceOldestCommitTsXid`).
    pub(crate) const fn advance_oldest_commit_time(&mut self, xid: TransactionId) {
        if self.oldest_commit_ts_xid.is_valid() && self.oldest_commit_ts_xid.precedes(xid) {
            self.oldest_commit_ts_xid = xid;
        }
    }

    /// `xid` has a commit timestamp.
    pub(crate) const fn advance_newest_commit_time(&mut self, xid: TransactionId) {
        if self.newest_commit_ts_xid.precedes(xid) {
            self.newest_commit_ts_xid = xid;
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

    const fn advance_multi(&mut self, next_multi: u32, next_offset: u32) {
        if multi_precedes(self.next_multi, next_multi) {
            self.next_multi = next_multi;
        }
        if multi_precedes(self.next_multi_offset, next_offset) {
            self.next_multi_offset = next_offset;
        }
    }

    const fn advance_oldest_multi(&mut self, oldest_multi: u32) {
        if multi_precedes(self.oldest_multi, oldest_multi) {
            self.oldest_multi = oldest_multi;
        }
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

    #[test]
    fn multixacts_and_commit_times_move_on() {
        let mut counters = Counters::from_checkpoint(&checkpoint(700, 0, u32::MAX));
        counters.advance_past_multi(u32::MAX, 5);
        assert_eq!((counters.next_multi, counters.next_multi_offset), (0, 5));
        counters.advance_past_multi(u32::MAX - 3, 2);
        assert_eq!((counters.next_multi, counters.next_multi_offset), (0, 5));
        counters.oldest_multi = 3;
        counters.set(&checkpoint(700, 0, 9));
        assert_eq!((counters.next_multi, counters.oldest_multi), (9, 3));

        counters.advance_oldest_commit_time(TransactionId(800));
        assert_eq!(counters.oldest_commit_ts_xid, TransactionId::INVALID);
        counters.keep_commit_times(true);
        counters.advance_newest_commit_time(TransactionId(705));
        counters.advance_oldest_commit_time(TransactionId(702));
        let range = (counters.oldest_commit_ts_xid.0, counters.newest_commit_ts_xid.0);
        assert_eq!(range, (702, 705));
        counters.keep_commit_times(false);
        assert_eq!(counters.newest_commit_ts_xid, TransactionId::INVALID);
    }
}
