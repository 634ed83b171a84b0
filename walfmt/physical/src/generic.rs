//! What Generic's records do: bytes of pages are replaced, and the unused middle becomes zeros.
//!
//! The middle is no part of the difference, and the server that wrote the record emptied it too.
//!
//! Rules: `generic_redo` in `src/backend/access/transam/generic_xlog.c`.

use walfmt::page::bounds;
use walfmt::rmgr::generic::{PAGES_MAX, fragments};
use walfmt::{BlockReference, Record};

use crate::Page;
use crate::fault::Fault;

/// Checks that a record's block references are possible.
pub(crate) fn check(record: &Record<'_>) -> Result<(), Fault> {
    for block in &record.blocks {
        if usize::from(block.id) >= PAGES_MAX || block.will_init {
            return Err(Fault::corrupt(format!("block reference {} to {}", block.id, block.page)));
        }
        for fragment in fragments(block.data) {
            fragment?;
        }
    }
    Ok(())
}

pub(crate) fn redo(block: &BlockReference<'_>, page: &mut Page) -> Result<(), Fault> {
    for fragment in fragments(block.data) {
        let fragment = fragment?;
        page[fragment.offset..fragment.offset + fragment.bytes.len()]
            .copy_from_slice(fragment.bytes);
    }
    let (lower, upper, _) = bounds(page)?;
    page[lower..upper].fill(0);
    Ok(())
}
