//! Sequence.
//!
//! Rules: `src/backend/access/rmgrdesc/seqdesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::sequence::{self, SequenceRow};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    (info == sequence::LOG).then_some("LOG")
}

pub(super) fn describe(
    record: &Record<'_>,
    _: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    if record.header.opcode() == sequence::LOG {
        let row = SequenceRow::read(record.main_data)?;
        out.text("rel ").locator(row.locator);
    }
    Ok(())
}
