//! Tablespace.
//!
//! Rules: `src/backend/access/rmgrdesc/tblspcdesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::tablespace::{self, CreateTablespace};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    match info {
        tablespace::CREATE => Some("CREATE"),
        tablespace::DROP => Some("DROP"),
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
        tablespace::CREATE => {
            let create = CreateTablespace::read_written(main)?;
            // Quotes in the path stay as they are.
            out.uint(create.tablespace).text(" \"").raw(create.location).text("\"");
        }
        tablespace::DROP => {
            out.uint(tablespace::read_written_drop(main)?);
        }
        _ => (),
    }
    Ok(())
}
