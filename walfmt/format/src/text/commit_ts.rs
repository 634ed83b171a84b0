//! CommitTs.
//!
//! Rules: `src/backend/access/rmgrdesc/committsdesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::rmgr::commit_ts::{self, WrittenTruncate};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    match info {
        commit_ts::ZEROPAGE => Some("ZEROPAGE"),
        commit_ts::TRUNCATE => Some("TRUNCATE"),
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
        commit_ts::ZEROPAGE => {
            out.int(commit_ts::read_written_zeropage(main, version)?);
        }
        commit_ts::TRUNCATE => {
            let truncate = WrittenTruncate::read(main, version)?;
            out.text("pageno ").int(truncate.page);
            out.text(", oldestXid ").xid(truncate.oldest_xid);
        }
        _ => (),
    }
    Ok(())
}
