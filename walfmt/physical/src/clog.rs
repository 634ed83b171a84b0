//! What CLOG's records do to `pg_xact`.
//!
//! Rules: `clog_redo` in `src/backend/access/transam/clog.c`.

use walfmt::Record;
use walfmt::rmgr::clog::{self, Truncate};

use crate::fault::Fault;
use crate::{PageAccess, RedoContext};

/// A change to the pages of `pg_xact`.
pub(crate) enum ClogChange {
    ZeroPage(u64),
    Truncate(u64),
}

/// Reads a CLOG record.
pub(crate) fn read(record: &Record<'_>, context: &RedoContext) -> Result<ClogChange, Fault> {
    let main = record.main_data;
    match record.header.opcode() {
        clog::ZEROPAGE => Ok(ClogChange::ZeroPage(clog::read_zeropage(main, context.version)?)),
        clog::TRUNCATE => Ok(ClogChange::Truncate(Truncate::read(main, context.version)?.page)),
        opcode => Err(Fault::unknown_opcode(opcode)),
    }
}

impl ClogChange {
    pub(crate) fn apply<A: PageAccess>(&self, access: &mut A) -> Result<(), A::Error> {
        match *self {
            Self::ZeroPage(page) => access.zero_clog_page(page),
            Self::Truncate(page) => access.truncate_clog(page),
        }
    }
}
