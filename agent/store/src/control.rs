//! `global/pg_control` on disk: read, changed in memory, written whole.
//!
//! A server overwrites the file in place and trusts that its first 512 bytes are written at once.
//! We write a new file and rename it, which needs no such trust.

use std::fs::File;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use walfmt::control::ControlFile;

use crate::error::FileError;
use crate::layout::{Layout, remove_file, sync_directory};

const NAME: &str = "global/pg_control";
/// Left by a crash between write and rename; removed when the store is opened.
const NEW_NAME: &str = "global/pg_control.walferry";

/// Reads the control file's bytes.
pub(crate) fn read(layout: &Layout) -> Result<Vec<u8>, FileError> {
    let path = layout.at(NAME);
    std::fs::read(&path).map_err(FileError::of("read", &path))
}

/// Replaces the control file, durably. Its time becomes now.
pub(crate) fn write(layout: &Layout, control: &mut ControlFile) -> Result<(), FileError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    control.time = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let (path, new_path) = (layout.at(NAME), layout.at(NEW_NAME));
    let write_new = |mut file: File| {
        file.set_len(0)?;
        file.write_all(&control.to_bytes())?;
        file.sync_all()
    };
    write_new(layout.open_or_create(&new_path)?).map_err(FileError::of("write", &new_path))?;
    std::fs::rename(&new_path, &path).map_err(FileError::of("replace", &path))?;
    sync_directory(&layout.at("global"))
}

/// Removes what an interrupted [`write`] left.
pub(crate) fn remove_leftovers(layout: &Layout) -> Result<(), FileError> {
    remove_file(&layout.at(NEW_NAME)).map(drop)
}
