//! What Sequence's records do: the page of a sequence is built anew.
//!
//! Rules: `seq_redo` in `src/backend/commands/sequence.c`.

use walfmt::Record;
use walfmt::bytes::put;
use walfmt::rmgr::sequence::{self, SequenceRow};

use crate::fault::Fault;
use crate::{Page, page};

/// Checks that a record's opcode and block references are possible.
pub(crate) fn check(record: &Record<'_>) -> Result<(), Fault> {
    let opcode = record.header.opcode();
    if opcode != sequence::LOG {
        return Err(Fault::unknown_opcode(opcode));
    }
    let [block] = &record.blocks[..] else {
        let count = record.blocks.len();
        return Err(Fault::corrupt(format!("{count} block references, expected 1")));
    };
    if block.id != 0 || !block.will_init {
        return Err(Fault::corrupt("block reference 0 does not say that the page is built anew"));
    }
    SequenceRow::read(record.main_data)?;
    Ok(())
}

/// Builds the page. Nothing of what it was is kept.
pub(crate) fn redo(record: &Record<'_>, page: &mut Page) -> Result<(), Fault> {
    let row = SequenceRow::read(record.main_data)?;
    page::init(page, sequence::SPECIAL_SIZE);
    let special = usize::from(walfmt::page::special(page));
    put(page, special, sequence::MAGIC.to_le_bytes());
    Ok(page::put_item(page, 1, row.tuple)?)
}
