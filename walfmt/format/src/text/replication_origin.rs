//! ReplicationOrigin.
//!
//! Rules: `src/backend/access/rmgrdesc/replorigindesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::replication_origin::{self, Set};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    match info {
        replication_origin::SET => Some("SET"),
        replication_origin::DROP => Some("DROP"),
        _ => None,
    }
}

pub(super) fn describe(
    record: &Record<'_>,
    _: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    let main = record.main_data;
    match record.header.opcode() {
        replication_origin::SET => {
            let set = Set::read(main)?;
            out.text("set ").uint(set.origin).text("; lsn ").lsn(set.remote_lsn);
            out.text("; force: ").uint(set.force);
        }
        replication_origin::DROP => {
            out.text("drop ").uint(replication_origin::read_drop(main)?);
        }
        _ => (),
    }
    Ok(())
}
