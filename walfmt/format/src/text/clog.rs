//! CLOG.
//!
//! Rules: `src/backend/access/rmgrdesc/clogdesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::clog::{self, WrittenTruncate};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    match info {
        clog::ZEROPAGE => Some("ZEROPAGE"),
        clog::TRUNCATE => Some("TRUNCATE"),
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
        clog::ZEROPAGE => {
            out.text("page ").int(clog::read_written_zeropage(main, version)?);
        }
        clog::TRUNCATE => {
            let truncate = WrittenTruncate::read(main, version)?;
            out.text("page ").int(truncate.page);
            out.text("; oldestXact ").xid(truncate.oldest_xact);
        }
        _ => (),
    }
    Ok(())
}
