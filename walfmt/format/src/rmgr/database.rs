//! Database: directories of databases that come and go.
//!
//! ```text
//! CREATE_FILE_COPY, 16 bytes        CREATE_WAL_LOG, 8 bytes     DROP
//! offset  size  field               offset  size  field         offset  size  field
//!      0     4  db_id                    0     4  db_id              0     4  db_id
//!      4     4  tablespace_id            4     4  tablespace_id      4     4  ntablespaces
//!      8     4  src_db_id                                            8        tablespace_ids u32[]
//!     12     4  src_tablespace_id
//! ```
//!
//! CREATE_FILE_COPY speaks for all files of the new database; after CREATE_WAL_LOG they follow one
//! by one. In 13 and 14 opcode 0x10 is DROP. Rules: `src/include/commands/dbcommands_xlog.h`.

use crate::bytes::u32_at;
use crate::cursor::{Cursor, CursorError};
use crate::relation::{DatabaseLocator, GLOBAL_TABLESPACE};

/// `XLOG_DBASE_CREATE_FILE_COPY`.
pub const CREATE_FILE_COPY: u8 = 0x00;
/// `XLOG_DBASE_CREATE_WAL_LOG`.
pub const CREATE_WAL_LOG: u8 = 0x10;
/// `XLOG_DBASE_DROP`.
pub const DROP: u8 = 0x20;

/// A Database record that is not what it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DatabaseError {
    /// Too few bytes, or too many.
    #[error(transparent)]
    Length(#[from] CursorError),
    /// No database has a directory there.
    #[error("database {} in tablespace {}", .0.database, .0.tablespace)]
    Place(DatabaseLocator),
    /// A database cannot be copied onto itself.
    #[error("a copy of database {} in tablespace {} onto itself", .0.database, .0.tablespace)]
    Itself(DatabaseLocator),
}

/// CREATE_FILE_COPY (`xl_dbase_create_file_copy_rec`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileCopy {
    /// The new directory.
    pub to: DatabaseLocator,
    /// The one that is copied.
    pub from: DatabaseLocator,
}

impl FileCopy {
    /// Reads main data.
    ///
    /// # Errors
    /// [`DatabaseError`] if its length is wrong or there can be no such directories.
    pub fn read(main_data: &[u8]) -> Result<Self, DatabaseError> {
        let mut cursor = Cursor::new(main_data);
        let copy = Self::read_from(&mut cursor)?;
        [copy.to, copy.from].into_iter().try_for_each(check)?;
        cursor.finish("src_tablespace_id")?;
        if copy.to == copy.from { Err(DatabaseError::Itself(copy.to)) } else { Ok(copy) }
    }

    /// Reads main data as they are written, whether or not there can be such directories.
    ///
    /// # Errors
    /// [`CursorError`] if they are too short.
    pub fn read_written(main_data: &[u8]) -> Result<Self, CursorError> {
        Self::read_from(&mut Cursor::new(main_data))
    }

    fn read_from(cursor: &mut Cursor<'_>) -> Result<Self, CursorError> {
        Ok(Self {
            to: read_locator(cursor, "db_id", "tablespace_id")?,
            from: read_locator(cursor, "src_db_id", "src_tablespace_id")?,
        })
    }
}

/// Reads CREATE_WAL_LOG's main data: the new directory.
///
/// # Errors
/// [`DatabaseError`] if its length is wrong or there can be no such directory.
pub fn read_create_wal_log(main_data: &[u8]) -> Result<DatabaseLocator, DatabaseError> {
    let mut cursor = Cursor::new(main_data);
    let locator = read_locator(&mut cursor, "db_id", "tablespace_id")?;
    check(locator)?;
    cursor.finish("tablespace_id")?;
    Ok(locator)
}

/// Reads CREATE_WAL_LOG's main data as they are written, whether or not there can be such a
/// directory.
///
/// # Errors
/// [`CursorError`] if they are too short.
pub fn read_written_create_wal_log(main_data: &[u8]) -> Result<DatabaseLocator, CursorError> {
    read_locator(&mut Cursor::new(main_data), "db_id", "tablespace_id")
}

/// The new directory of a record that creates one; nothing if the record does something else.
///
/// # Errors
/// [`DatabaseError`] if its length is wrong or there can be no such directory.
pub fn read_created(
    opcode: u8,
    main_data: &[u8],
) -> Result<Option<DatabaseLocator>, DatabaseError> {
    match opcode {
        CREATE_FILE_COPY => Ok(Some(FileCopy::read(main_data)?.to)),
        CREATE_WAL_LOG => read_create_wal_log(main_data).map(Some),
        _ => Ok(None),
    }
}

/// DROP (`xl_dbase_drop_rec`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DropDatabase<'a> {
    /// The database.
    pub database: u32,
    tablespaces: &'a [u8],
}

impl<'a> DropDatabase<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`DatabaseError`] if its length is not what it says, or there can be no such directory.
    pub fn read(main_data: &'a [u8]) -> Result<Self, DatabaseError> {
        let mut cursor = Cursor::new(main_data);
        let dropped = Self::read_from(&mut cursor)?;
        cursor.finish("tablespace_ids")?;
        dropped.directories().try_for_each(check)?;
        Ok(dropped)
    }

    /// Reads main data as they are written, whether or not there can be such directories.
    ///
    /// # Errors
    /// [`CursorError`] if they are too short.
    pub fn read_written(main_data: &'a [u8]) -> Result<Self, CursorError> {
        Self::read_from(&mut Cursor::new(main_data))
    }

    fn read_from(cursor: &mut Cursor<'a>) -> Result<Self, CursorError> {
        let database = cursor.u32("db_id")?;
        let count = cursor.count(4, "ntablespaces")?;
        Ok(Self { database, tablespaces: cursor.take(count * 4, "tablespace_ids")? })
    }

    /// Its directories, one in each tablespace.
    pub fn directories(&self) -> impl Iterator<Item = DatabaseLocator> + 'a {
        let database = self.database;
        self.tablespaces
            .chunks_exact(4)
            .map(move |oid| DatabaseLocator { tablespace: u32_at(oid, 0), database })
    }
}

fn read_locator(
    cursor: &mut Cursor<'_>,
    database: &'static str,
    tablespace: &'static str,
) -> Result<DatabaseLocator, CursorError> {
    let database = cursor.u32(database)?;
    Ok(DatabaseLocator { tablespace: cursor.u32(tablespace)?, database })
}

/// `pg_global` has no directories of databases.
fn check(locator: DatabaseLocator) -> Result<(), DatabaseError> {
    if locator.database == 0 || [0, GLOBAL_TABLESPACE].contains(&locator.tablespace) {
        return Err(DatabaseError::Place(locator));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn records_read_back_and_contradictions_are_refused() {
        let place = |tablespace, database| DatabaseLocator { tablespace, database };
        assert_eq!(
            FileCopy::read(&words(&[16400, 1663, 1, 16390])),
            Ok(FileCopy { to: place(1663, 16400), from: place(16390, 1) })
        );
        assert!(FileCopy::read(&words(&[5, 1663, 5, 1663])).is_err(), "onto itself");
        assert!(FileCopy::read(&words(&[5, 1664, 4, 1663])).is_err(), "in pg_global");
        assert!(FileCopy::read(&words(&[5, 1663, 4])).is_err());
        assert_eq!(read_create_wal_log(&words(&[7, 1663])), Ok(place(1663, 7)));
        assert!(read_create_wal_log(&words(&[0, 1663])).is_err());
        let main = words(&[7, 2, 1663, 16390]);
        let dropped = DropDatabase::read(&main).expect("sound");
        assert!(dropped.directories().eq([place(1663, 7), place(16390, 7)]));
        for wrong in [words(&[7, 2, 1663]), words(&[7, u32::MAX, 1663]), words(&[7, 1, 1664])] {
            assert!(DropDatabase::read(&wrong).is_err());
        }
    }
}
