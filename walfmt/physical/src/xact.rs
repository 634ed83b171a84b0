//! What Transaction's records do: outcomes into `pg_xact`, commit times into `pg_commit_ts`, files
//! that go, transactions that are prepared, progress of replication origins.
//!
//! Left out is what is not on disk here: lists of subtransactions (ASSIGNMENT), cache
//! invalidations, statistics of dropped objects, locks.
//!
//! Rules: `xact_redo` in `src/backend/access/transam/xact.c`, `PrepareRedoAdd` and
//! `PrepareRedoRemove` in `src/backend/access/transam/twophase.c`.

use walfmt::rmgr::replication_origin::NO_ORIGIN;
use walfmt::rmgr::xact::{self, End, Prepare};
use walfmt::{Record, TransactionId};

use crate::fault::Fault;
use crate::replication_origin::{self, OriginChange};
use crate::{PageAccess, RedoContext, TransactionStatus};

/// What became of a transaction.
pub(crate) enum TransactionChange<'a> {
    Ended(Ended<'a>),
    /// With the progress of the origin it comes from.
    Prepared(Prepare<'a>, Option<OriginChange>),
}

/// A transaction that ended.
pub(crate) struct Ended<'a> {
    xid: TransactionId,
    end: End<'a>,
    status: TransactionStatus,
    was_prepared: bool,
    progress: Option<OriginChange>,
}

/// Reads a Transaction record; none if it has no effect.
pub(crate) fn read<'a>(
    record: &Record<'a>,
    context: &RedoContext,
) -> Result<Option<TransactionChange<'a>>, Fault> {
    let opcode = record.header.info & xact::OPCODE_MASK;
    let status = match opcode {
        xact::COMMIT | xact::COMMIT_PREPARED => TransactionStatus::Committed,
        xact::ABORT | xact::ABORT_PREPARED => TransactionStatus::Aborted,
        xact::PREPARE => return read_prepare(record, context).map(Some),
        xact::ASSIGNMENT | xact::INVALIDATIONS => return Ok(None),
        opcode => return Err(Fault::unknown_opcode(opcode)),
    };
    let end = End::read(record.main_data, record.header.info, context.version)?;
    let was_prepared = matches!(opcode, xact::COMMIT_PREPARED | xact::ABORT_PREPARED);
    let xid = match end.twophase_xid {
        Some(xid) if was_prepared => xid,
        None if was_prepared => {
            return Err(Fault::corrupt("which prepared transaction it is about is missing"));
        }
        _ => record.header.xid,
    };
    if !xid.is_normal() {
        return Err(Fault::corrupt(format!("transaction id {xid} cannot commit or abort")));
    }
    let progress = match end.origin {
        Some((remote_lsn, _)) => replication_origin::advance(record.origin, remote_lsn, false)?,
        None => None,
    };
    Ok(Some(TransactionChange::Ended(Ended { xid, end, status, was_prepared, progress })))
}

fn read_prepare<'a>(
    record: &Record<'a>,
    context: &RedoContext,
) -> Result<TransactionChange<'a>, Fault> {
    let prepare = Prepare::read(record.main_data, context.version)?;
    let progress = match record.origin {
        NO_ORIGIN => None,
        origin => replication_origin::advance(origin, prepare.origin_lsn, false)?,
    };
    Ok(TransactionChange::Prepared(prepare, progress))
}

impl TransactionChange<'_> {
    pub(crate) fn apply<A: PageAccess>(
        &self,
        record: &Record<'_>,
        access: &mut A,
    ) -> Result<(), A::Error> {
        match self {
            Self::Ended(ended) => ended.apply(record, access),
            Self::Prepared(prepare, progress) => {
                // One that is there already was read from its file, and has made its progress.
                if access.prepare_transaction(record, prepare)?
                    && let Some(progress) = progress
                {
                    access.change_origin(progress)?;
                }
                Ok(())
            }
        }
    }
}

impl Ended<'_> {
    /// The transaction and its subtransactions.
    fn xids(&self) -> impl Iterator<Item = TransactionId> {
        std::iter::once(self.xid).chain(self.end.subxacts())
    }

    /// The newest of them (`TransactionIdLatest`).
    fn latest_xid(&self) -> TransactionId {
        let newer = |latest: TransactionId, xid| if latest.precedes(xid) { xid } else { latest };
        self.end.subxacts().fold(self.xid, newer)
    }

    fn apply<A: PageAccess>(&self, record: &Record<'_>, access: &mut A) -> Result<(), A::Error> {
        let latest = self.latest_xid();
        if latest != record.header.xid {
            access.advance_next_xid(latest)?;
        }
        if self.status == TransactionStatus::Committed {
            let time = self.end.origin.map_or(self.end.time, |(_, time)| time);
            access.set_commit_time(&mut self.xids(), time, record.origin)?;
        }
        access.set_transaction_status(&mut self.xids(), self.status)?;
        if let Some(progress) = &self.progress {
            access.change_origin(progress)?;
        }
        if self.end.drops_relations() {
            access.drop_relations(&mut self.end.dropped_relations())?;
        }
        if self.was_prepared {
            access.finish_prepared(self.xid)?;
        }
        Ok(())
    }
}
