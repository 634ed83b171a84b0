//! Tablespace: directories beside the data directory.
//!
//! ```text
//! CREATE                                     DROP, 4 bytes
//! offset  size  field                        offset  size  field
//!      0     4  ts_id                             0     4  ts_id
//!      4        ts_path, NUL-terminated
//! ```
//!
//! A tablespace with an empty path is "in place": a directory in `pg_tblspc` itself. Rules:
//! `src/include/commands/tablespace.h`.

use crate::cursor::{Cursor, CursorError};
use crate::relation::{DEFAULT_TABLESPACE, GLOBAL_TABLESPACE};

/// `XLOG_TBLSPC_CREATE`.
pub const CREATE: u8 = 0x00;
/// `XLOG_TBLSPC_DROP`.
pub const DROP: u8 = 0x10;

/// A Tablespace record that is not what it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TablespaceError {
    /// Too few bytes, or too many.
    #[error(transparent)]
    Length(#[from] CursorError),
    /// One of those that are always there.
    #[error("tablespace {0}, which is not one that comes or goes")]
    BuiltIn(u32),
}

/// CREATE (`xl_tblspc_create_rec`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateTablespace<'a> {
    /// Its OID.
    pub tablespace: u32,
    /// The leader's directory; empty for one in place. Never to be used as a path here.
    pub location: &'a [u8],
}

impl<'a> CreateTablespace<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`TablespaceError`] if the path has no end, or there can be no such tablespace.
    pub fn read(main_data: &'a [u8]) -> Result<Self, TablespaceError> {
        let mut cursor = Cursor::new(main_data);
        let create = Self::read_from(&mut cursor)?;
        check(create.tablespace)?;
        cursor.finish("ts_path")?;
        Ok(create)
    }

    /// Reads main data as they are written, whether or not there can be such a tablespace.
    ///
    /// # Errors
    /// [`CursorError`] if they are too short.
    pub fn read_written(main_data: &'a [u8]) -> Result<Self, CursorError> {
        Self::read_from(&mut Cursor::new(main_data))
    }

    fn read_from(cursor: &mut Cursor<'a>) -> Result<Self, CursorError> {
        let tablespace = cursor.u32("ts_id")?;
        let length = cursor.rest().iter().take_while(|byte| **byte != 0).count();
        let location = cursor.take(length, "ts_path")?;
        cursor.u8("end of ts_path")?;
        Ok(Self { tablespace, location })
    }
}

/// Reads DROP's main data: the tablespace.
///
/// # Errors
/// [`TablespaceError`] if its length is wrong, or there can be no such tablespace.
pub fn read_drop(main_data: &[u8]) -> Result<u32, TablespaceError> {
    let mut cursor = Cursor::new(main_data);
    let tablespace = check(cursor.u32("ts_id")?)?;
    cursor.finish("ts_id")?;
    Ok(tablespace)
}

/// Reads DROP's main data as they are written, whether or not there can be such a tablespace.
///
/// # Errors
/// [`CursorError`] if they are too short.
pub fn read_written_drop(main_data: &[u8]) -> Result<u32, CursorError> {
    Cursor::new(main_data).u32("ts_id")
}

const fn check(tablespace: u32) -> Result<u32, TablespaceError> {
    match tablespace {
        oid @ (0 | DEFAULT_TABLESPACE | GLOBAL_TABLESPACE) => Err(TablespaceError::BuiltIn(oid)),
        oid => Ok(oid),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_an_end() {
        let create = CreateTablespace::read(&[1, 64, 0, 0, b'/', b'x', 0]);
        assert_eq!(create, Ok(CreateTablespace { tablespace: 16385, location: b"/x" }));
        let in_place = CreateTablespace::read(&[1, 64, 0, 0, 0]);
        assert_eq!(in_place, Ok(CreateTablespace { tablespace: 16385, location: b"" }));
        assert!(CreateTablespace::read(&[1, 64, 0, 0, b'/']).is_err());
        assert!(CreateTablespace::read(&[1, 64, 0, 0, 0, 0]).is_err());
        assert_eq!(read_drop(&[1, 64, 0, 0]), Ok(16385));
        assert_eq!(read_drop(&1663_u32.to_le_bytes()), Err(TablespaceError::BuiltIn(1663)));
    }
}
