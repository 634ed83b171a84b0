//! Database.
//!
//! Rules: `src/backend/access/rmgrdesc/dbasedesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::relation::DatabaseLocator;
use crate::rmgr::database::{self, DropDatabase, FileCopy};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    match info {
        database::CREATE_FILE_COPY => Some("CREATE_FILE_COPY"),
        database::CREATE_WAL_LOG => Some("CREATE_WAL_LOG"),
        database::DROP => Some("DROP"),
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
        database::CREATE_FILE_COPY => {
            let copy = FileCopy::read_written(main)?;
            directory(copy.from, out.text("copy dir "));
            directory(copy.to, out.text(" to "));
        }
        database::CREATE_WAL_LOG => {
            let created = database::read_written_create_wal_log(main)?;
            directory(created, out.text("create dir "));
        }
        database::DROP => {
            let dropped = DropDatabase::read_written(main)?;
            out.text("dir");
            for dropped in dropped.directories() {
                directory(dropped, out.text(" "));
            }
        }
        _ => (),
    }
    Ok(())
}

fn directory(locator: DatabaseLocator, out: &mut Out<'_>) {
    out.uint(locator.tablespace).text("/").uint(locator.database);
}
