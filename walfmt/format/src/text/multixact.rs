//! MultiXact.
//!
//! Rules: `src/backend/access/rmgrdesc/mxactdesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::multixact::{self, Create, Truncate};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    match info {
        multixact::ZERO_OFF_PAGE => Some("ZERO_OFF_PAGE"),
        multixact::ZERO_MEM_PAGE => Some("ZERO_MEM_PAGE"),
        multixact::CREATE_ID => Some("CREATE_ID"),
        multixact::TRUNCATE_ID => Some("TRUNCATE_ID"),
        _ => None,
    }
}

pub(super) fn describe(
    record: &Record<'_>,
    version: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    let main = record.main_data;
    match record.header.opcode() {
        multixact::ZERO_OFF_PAGE | multixact::ZERO_MEM_PAGE => {
            out.int(multixact::read_written_page(main, version)?);
        }
        multixact::CREATE_ID => {
            let create = Create::read_written(main)?;
            out.uint(create.multi).text(" offset ").uint(create.offset);
            out.text(" nmembers ").uint(create.members().len() as u64).text(": ");
            // A space after each, the last too.
            for member in create.members() {
                out.xid(member.xid).text(status(member.status));
            }
        }
        multixact::TRUNCATE_ID => {
            let truncate = Truncate::read_written(main)?;
            out.text("offsets [").uint(truncate.start_multi).text(", ").uint(truncate.end_multi);
            out.text("), members [").uint(truncate.start_offset);
            out.text(", ").uint(truncate.end_offset).text(")");
        }
        _ => (),
    }
    Ok(())
}

/// What a member holds the row for (`out_member`), with the space before it and the one behind.
const fn status(status: u8) -> &'static str {
    match status {
        0 => " (keysh) ",
        1 => " (sh) ",
        2 => " (fornokeyupd) ",
        3 => " (forupd) ",
        4 => " (nokeyupd) ",
        5 => " (upd) ",
        _ => " (unk) ",
    }
}
