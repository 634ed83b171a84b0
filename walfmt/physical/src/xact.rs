//! What Transaction's records do: outcomes into `pg_xact`, and files that go.
//!
//! Left out is what is not on disk here: lists of subtransactions (ASSIGNMENT), cache
//! invalidations, statistics of dropped objects, locks. Commit timestamps are not kept.
//!
//! Rules: `xact_redo` in `src/backend/access/transam/xact.c`.

use walfmt::rmgr::xact::{self, End};
use walfmt::{Record, TransactionId};

use crate::fault::Fault;
use crate::{PageAccess, RedoContext, TransactionStatus};

/// A transaction that ended.
pub(crate) struct Ended<'a> {
    end: End<'a>,
    status: TransactionStatus,
}

/// Reads a Transaction record; none if it has no effect.
pub(crate) fn read<'a>(
    record: &Record<'a>,
    context: &RedoContext,
) -> Result<Option<Ended<'a>>, Fault> {
    let info = record.header.info;
    let status = match info & xact::OPCODE_MASK {
        xact::COMMIT => TransactionStatus::Committed,
        xact::ABORT => TransactionStatus::Aborted,
        xact::ASSIGNMENT | xact::INVALIDATIONS => return Ok(None),
        xact::PREPARE | xact::COMMIT_PREPARED | xact::ABORT_PREPARED => {
            return Err(Fault::Unsupported("prepared transactions"));
        }
        opcode => return Err(Fault::unknown_opcode(opcode)),
    };
    let end = End::read(record.main_data, info, context.version)?;
    if end.origin.is_some() {
        return Err(Fault::Unsupported("progress of a replication origin"));
    }
    if !record.header.xid.is_normal() {
        let xid = record.header.xid;
        return Err(Fault::corrupt(format!("transaction id {xid} cannot commit or abort")));
    }
    Ok(Some(Ended { end, status }))
}

impl Ended<'_> {
    /// The newest of the transaction and its subtransactions (`TransactionIdLatest`).
    fn latest_xid(&self, xid: TransactionId) -> TransactionId {
        let newer = |latest: TransactionId, xid| if latest.precedes(xid) { xid } else { latest };
        self.end.subxacts().fold(xid, newer)
    }

    pub(crate) fn apply<A: PageAccess>(
        &self,
        record: &Record<'_>,
        access: &mut A,
    ) -> Result<(), A::Error> {
        let xid = record.header.xid;
        if self.end.subxacts().next().is_some() {
            access.advance_next_xid(self.latest_xid(xid))?;
        }
        let mut xids = std::iter::once(xid).chain(self.end.subxacts());
        access.set_transaction_status(&mut xids, self.status)?;
        if self.end.drops_relations() {
            access.drop_relations(&mut self.end.dropped_relations())?;
        }
        Ok(())
    }
}
