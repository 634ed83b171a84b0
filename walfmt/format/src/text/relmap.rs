//! RelMap.
//!
//! Rules: `src/backend/access/rmgrdesc/relmapdesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::relmap::{self, UpdateHeader};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    (info == relmap::UPDATE).then_some("UPDATE")
}

pub(super) fn describe(
    record: &Record<'_>,
    _: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    if record.header.opcode() == relmap::UPDATE {
        let UpdateHeader { database, size } = UpdateHeader::read(record.main_data)?;
        out.text("database ").uint(database.database);
        out.text(" tablespace ").uint(database.tablespace).text(" size ").int(size);
    }
    Ok(())
}
