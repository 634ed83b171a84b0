//! LogicalMessage: nothing on disk. Its contents are checked all the same.

use walfmt::Record;
use walfmt::rmgr::logical_message::{self, Message};

use crate::fault::Fault;

/// Checks a LogicalMessage record.
pub(crate) fn check(record: &Record<'_>) -> Result<(), Fault> {
    match record.header.opcode() {
        logical_message::MESSAGE => Ok(Message::read(record.main_data).map(drop)?),
        opcode => Err(Fault::unknown_opcode(opcode)),
    }
}
