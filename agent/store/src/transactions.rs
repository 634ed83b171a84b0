//! Everything that is kept about transactions outside of pages, in the dispatcher's hands.

use walfmt::control::ControlFile;
use walfmt::{Lsn, TransactionId};

use crate::commit_times::CommitTimes;
use crate::error::{FileError, OpenError};
use crate::layout::Layout;
use crate::multixact::MultiXacts;
use crate::origins::Origins;
use crate::transaction_log::TransactionLog;
use crate::two_phase::PreparedTransactions;

pub(crate) struct Transactions {
    pub(crate) log: TransactionLog,
    pub(crate) multixacts: MultiXacts,
    pub(crate) commit_times: CommitTimes,
    pub(crate) prepared: PreparedTransactions,
    pub(crate) origins: Origins,
}

impl Transactions {
    /// As a server starts recovery from the control file's checkpoint (`StartupXLOG`).
    pub(crate) fn open(layout: &Layout, control: &ControlFile) -> Result<Self, OpenError> {
        let checkpoint = &control.check_point_copy;
        let next_xid = TransactionId(checkpoint.next_xid as u32);
        let mut log = TransactionLog::new(layout.clone(), next_xid);
        Ok(Self {
            multixacts: MultiXacts::new(
                layout,
                checkpoint.next_multi,
                checkpoint.next_multi_offset,
            ),
            commit_times: CommitTimes::open(
                layout.clone(),
                control.track_commit_timestamp,
                next_xid,
            )?,
            prepared: PreparedTransactions::open(
                layout.clone(),
                next_xid,
                &mut log,
                control.version,
            )?,
            origins: Origins::open(layout)?,
            log,
        })
    }

    /// Writes what was changed, and what replay from `redo`, if there is to be one, must find. The
    /// origins are written by whoever syncs. Durable after the next sync.
    pub(crate) fn write_changed(&mut self, redo: Option<Lsn>) -> Result<(), FileError> {
        self.log.write_changed()?;
        self.multixacts.write_changed()?;
        self.commit_times.write_changed()?;
        redo.map_or(Ok(()), |redo| self.prepared.write_before(redo))
    }
}
