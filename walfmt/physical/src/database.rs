//! What Database's records do: directories of databases come and go.
//!
//! Left out: slots for logical decoding of a dropped database; the store has no slots.
//!
//! Rules: `dbase_redo` in `src/backend/commands/dbcommands.c`.

use walfmt::Record;
use walfmt::relation::DatabaseLocator;
use walfmt::rmgr::database::{self, DropDatabase, FileCopy};

use crate::PageAccess;
use crate::fault::Fault;

/// A change to directories of databases.
pub(crate) enum DatabaseChange<'a> {
    Create(DatabaseLocator),
    Copy(FileCopy),
    Drop(DropDatabase<'a>),
}

/// Reads a Database record.
pub(crate) fn read<'a>(record: &Record<'a>) -> Result<DatabaseChange<'a>, Fault> {
    let main = record.main_data;
    Ok(match record.header.opcode() {
        database::CREATE_FILE_COPY => DatabaseChange::Copy(FileCopy::read(main)?),
        database::CREATE_WAL_LOG => DatabaseChange::Create(database::read_create_wal_log(main)?),
        database::DROP => DatabaseChange::Drop(DropDatabase::read(main)?),
        opcode => return Err(Fault::unknown_opcode(opcode)),
    })
}

impl DatabaseChange<'_> {
    pub(crate) fn apply<A: PageAccess>(&self, access: &mut A) -> Result<(), A::Error> {
        match self {
            Self::Create(directory) => access.create_database(*directory),
            Self::Copy(FileCopy { from, to }) => access.copy_database(*from, *to),
            Self::Drop(dropped) => access.drop_databases(&mut dropped.directories()),
        }
    }
}
