//! `global/pg_control` on disk: read, changed in memory, written whole.
//!
//! A server overwrites the file in place and trusts that its first 512 bytes are written at once.
//! We write a new file and rename it, which needs no such trust.

use std::time::{SystemTime, UNIX_EPOCH};

use walfmt::control::ControlFile;

use crate::error::FileError;
use crate::layout::Layout;

const NAME: &str = "global/pg_control";

/// Reads the control file's bytes.
pub(crate) fn read(layout: &Layout) -> Result<Vec<u8>, FileError> {
    let path = layout.at(NAME);
    let missing = || FileError::of("read", &path)(std::io::ErrorKind::NotFound.into());
    layout.read(&path)?.ok_or_else(missing)
}

/// Replaces the control file, durably. Its time becomes now.
pub(crate) fn write(layout: &Layout, control: &mut ControlFile) -> Result<(), FileError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    control.time = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    layout.replace(&layout.at(NAME), &control.to_bytes())?;
    layout.sync_directory(&layout.at("global"))
}

/// Removes what an interrupted [`write`] left.
pub(crate) fn remove_leftovers(layout: &Layout) -> Result<(), FileError> {
    layout.remove_replacement(&layout.at(NAME))
}
