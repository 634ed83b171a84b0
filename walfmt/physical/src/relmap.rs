//! What RelMap's records do: a relation map is replaced, whole.
//!
//! Rules: `relmap_redo` in `src/backend/utils/cache/relmapper.c`.

use walfmt::Record;
use walfmt::rmgr::relmap::{self, RelationMap};

use crate::RedoContext;
use crate::fault::Fault;

/// Reads a RelMap record.
pub(crate) fn read<'a>(
    record: &Record<'a>,
    context: &RedoContext,
) -> Result<RelationMap<'a>, Fault> {
    match record.header.opcode() {
        relmap::UPDATE => Ok(RelationMap::read(record.main_data, context.version)?),
        opcode => Err(Fault::unknown_opcode(opcode)),
    }
}
