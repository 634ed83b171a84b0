//! What CommitTs's records do to `pg_commit_ts`. The timestamps come with commits, see `xact.rs`.
//!
//! Rules: `commit_ts_redo` in `src/backend/access/transam/commit_ts.c`.

use walfmt::Record;
use walfmt::rmgr::commit_ts::{self, Truncate};

use crate::RedoContext;
use crate::fault::Fault;

/// A change to the pages of `pg_commit_ts`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommitTsChange {
    /// Make this page zeros.
    ZeroPage(u64),
    /// Remove the segments wholly before a page.
    Truncate(Truncate),
}

/// Reads a CommitTs record.
pub(crate) fn read(record: &Record<'_>, context: &RedoContext) -> Result<CommitTsChange, Fault> {
    let (main, version) = (record.main_data, context.version);
    match record.header.opcode() {
        commit_ts::ZEROPAGE => {
            Ok(CommitTsChange::ZeroPage(commit_ts::read_zeropage(main, version)?))
        }
        commit_ts::TRUNCATE => Ok(CommitTsChange::Truncate(Truncate::read(main, version)?)),
        opcode => Err(Fault::unknown_opcode(opcode)),
    }
}
