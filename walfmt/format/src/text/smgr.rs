//! Storage.
//!
//! Rules: `src/backend/access/rmgrdesc/smgrdesc.c`.

use super::{Out, TextError};
use crate::record::Record;
use crate::relation::{ForkNumber, RelFork};
use crate::rmgr::smgr::{self, SmgrError, Truncate};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    match info {
        smgr::CREATE => Some("CREATE"),
        smgr::TRUNCATE => Some("TRUNCATE"),
        _ => None,
    }
}

pub(super) fn describe(
    record: &Record<'_>,
    version: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    match record.header.opcode() {
        smgr::CREATE => {
            let created = smgr::read_create(record.main_data).map_err(|error| match error {
                SmgrError::Length(error) => error.into(),
                SmgrError::Fork(_) => TextError::Contents(error.to_string()),
            })?;
            out.path(created, version);
        }
        smgr::TRUNCATE => {
            let truncate = Truncate::read(record.main_data)?;
            out.path(RelFork { locator: truncate.locator, fork: ForkNumber::Main }, version);
            out.text(" to ").uint(truncate.blocks).text(" blocks flags ").int(truncate.flags);
        }
        _ => (),
    }
    Ok(())
}
