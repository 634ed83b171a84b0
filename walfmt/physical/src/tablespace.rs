//! What Tablespace's records do: directories beside the data directory come and go.
//!
//! Rules: `tblspc_redo` in `src/backend/commands/tablespace.c`.

use walfmt::Record;
use walfmt::rmgr::tablespace::{self, CreateTablespace};

use crate::PageAccess;
use crate::fault::Fault;

/// A change to a tablespace's directory.
pub(crate) enum TablespaceChange<'a> {
    Create(CreateTablespace<'a>),
    Drop(u32),
}

/// Reads a Tablespace record.
pub(crate) fn read<'a>(record: &Record<'a>) -> Result<TablespaceChange<'a>, Fault> {
    let main = record.main_data;
    match record.header.opcode() {
        tablespace::CREATE => Ok(TablespaceChange::Create(CreateTablespace::read(main)?)),
        tablespace::DROP => Ok(TablespaceChange::Drop(tablespace::read_drop(main)?)),
        opcode => Err(Fault::unknown_opcode(opcode)),
    }
}

impl TablespaceChange<'_> {
    pub(crate) fn apply<A: PageAccess>(&self, access: &mut A) -> Result<(), A::Error> {
        match self {
            Self::Create(create) => access.create_tablespace(create),
            Self::Drop(tablespace) => access.drop_tablespace(*tablespace),
        }
    }
}
