//! What XLOG's records do: page images are put in place like any other record's; the rest is about
//! the server's state.
//!
//! Rules: `xlog_redo` in `src/backend/access/transam/xlog.c`.

use walfmt::Record;
use walfmt::rmgr::xlog::{self, Change};

use crate::fault::Fault;

/// Reads an XLOG record; none if it is only page images.
pub(crate) fn read(record: &Record<'_>) -> Result<Option<Change>, Fault> {
    let opcode = record.header.opcode();
    let change = Change::read(record)?;
    if !matches!(opcode, xlog::FPI | xlog::FPI_FOR_HINT) {
        if let Some(block) = record.blocks.first() {
            return Err(Fault::corrupt(format!("block reference to {}", block.page)));
        }
        return Ok(Some(change));
    }
    let hint = opcode == xlog::FPI_FOR_HINT;
    for block in &record.blocks {
        // A hint's image may turn out unnecessary when its record is put together.
        if block.image_to_apply().is_none() && !(hint && block.image.is_none()) {
            return Err(Fault::corrupt(format!("no image of {}", block.page)));
        }
    }
    Ok(None)
}
