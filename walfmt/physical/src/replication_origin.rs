//! What ReplicationOrigin's records do to the progress of replication origins, which commits, aborts
//! and prepared transactions move too (`xact.rs`).
//!
//! Rules: `replorigin_redo` and `replorigin_advance` in `src/backend/replication/logical/origin.c`.

use walfmt::rmgr::replication_origin::{self, DO_NOT_REPLICATE, NO_ORIGIN, Set};
use walfmt::{Lsn, Record};

use crate::fault::Fault;

/// A change to the progress of a replication origin; its number is neither 0 nor 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OriginChange {
    /// Changes up to here are applied.
    Advance {
        /// Which origin.
        origin: u16,
        /// The end of the change in the origin's own WAL.
        remote_lsn: Lsn,
        /// Whether progress may also go back.
        force: bool,
    },
    /// The origin is gone.
    Drop {
        /// Which origin.
        origin: u16,
    },
}

/// Reads a ReplicationOrigin record; none if nobody keeps the progress of its origin.
pub(crate) fn read(record: &Record<'_>) -> Result<Option<OriginChange>, Fault> {
    match record.header.opcode() {
        replication_origin::SET => {
            let Set { remote_lsn, origin, force } = Set::read(record.main_data)?;
            advance(origin, remote_lsn, force)
        }
        replication_origin::DROP => {
            let origin = replication_origin::read_drop(record.main_data)?;
            Ok(is_kept(origin)?.then_some(OriginChange::Drop { origin }))
        }
        opcode => Err(Fault::unknown_opcode(opcode)),
    }
}

/// Progress of `origin` up to `remote_lsn`; none if nobody keeps it.
pub(crate) fn advance(
    origin: u16,
    remote_lsn: Lsn,
    force: bool,
) -> Result<Option<OriginChange>, Fault> {
    let advance = OriginChange::Advance { origin, remote_lsn, force };
    Ok(is_kept(origin)?.then_some(advance))
}

fn is_kept(origin: u16) -> Result<bool, Fault> {
    if origin == NO_ORIGIN {
        return Err(Fault::corrupt("progress of replication origin 0"));
    }
    Ok(origin != DO_NOT_REPLICATE)
}
