//! RelMap: which files hold the catalogs that are needed to find files (`pg_filenode.map`).
//!
//! ```text
//! UPDATE                          the map, which is also the file (15: 512 bytes, 62 slots)
//! offset  size  field             offset        size  field
//!      0     4  dbid, 0: shared        0           4  magic
//!      4     4  tsid                   4           4  num_mappings
//!      8     4  nbytes                 8   slots × 8  mappings: catalog's OID, its file
//!     12        the map          8+slots×8         4  crc, CRC-32C of all before
//!                                                  ...  padding
//! ```
//!
//! Magic and CRC are computed anew by whoever writes the file. Rules: `src/include/utils/relmapper.h`,
//! `src/backend/utils/cache/relmapper.c`.

use crate::bytes::{put, u32_at};
use crate::cursor::{Cursor, CursorError};
use crate::relation::{DatabaseLocator, GLOBAL_TABLESPACE};
use crate::version::Version;

/// `XLOG_RELMAP_UPDATE`.
pub const UPDATE: u8 = 0x00;

/// The first four bytes of a map's file (`RELMAPPER_FILEMAGIC`).
pub const MAGIC: u32 = 0x0059_2717;

/// The file's name in the database's directory, or in `global` (`RELMAPPER_FILENAME`).
pub const FILE_NAME: &str = "pg_filenode.map";

/// A RelMap record that is not what it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelMapError {
    /// Too few bytes, or too many.
    #[error(transparent)]
    Length(#[from] CursorError),
    /// Another size than the major's.
    #[error("a relation map of {found} bytes, expected {expected}")]
    Size {
        /// By the version.
        expected: usize,
        /// By the record.
        found: u32,
    },
    /// More mappings than there are slots.
    #[error("a relation map with {found} mappings, there is room for {slots}")]
    Count {
        /// How many there can be.
        slots: usize,
        /// How many there are.
        found: i32,
    },
    /// The shared map lies in `pg_global` and no other does.
    #[error("the relation map of database {} in tablespace {}", .0.database, .0.tablespace)]
    Database(DatabaseLocator),
}

/// A map's file that a server would not read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RelMapFileError {
    /// Too few bytes.
    #[error("a relation map's file of {found} bytes, expected {expected}")]
    Length {
        /// By the version.
        expected: usize,
        /// Its length.
        found: usize,
    },
    /// It begins with another number.
    #[error("magic {found:#010x}, expected {MAGIC:#010x}")]
    Magic {
        /// The number.
        found: u32,
    },
    /// It was changed, or only partly written.
    #[error("CRC {found:#010x}, expected {expected:#010x}")]
    Crc {
        /// Of what it holds.
        expected: u32,
        /// What it says.
        found: u32,
    },
}

/// Checks a map's file as a server does that reads it (`read_relmap_file`).
///
/// # Errors
/// [`RelMapFileError`] says what is wrong with it.
pub fn check_file(bytes: &[u8], version: &Version) -> Result<(), RelMapFileError> {
    let (expected, found) = (version.relation_map_size, bytes.len());
    let file = bytes.get(..expected).ok_or(RelMapFileError::Length { expected, found })?;
    let found = u32_at(file, 0);
    if found != MAGIC {
        return Err(RelMapFileError::Magic { found });
    }
    let crc_at = 8 + 8 * version.relation_map_slots;
    let (expected, found) = (crc32c::crc32c(&file[..crc_at]), u32_at(file, crc_at));
    if expected != found {
        return Err(RelMapFileError::Crc { expected, found });
    }
    Ok(())
}

/// What UPDATE says before the map, as it is written, whether or not there can be such a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdateHeader {
    /// Whose map it is.
    pub database: DatabaseLocator,
    /// The map's size in bytes; in C it has a sign.
    pub size: i32,
}

impl UpdateHeader {
    /// Reads the beginning of main data.
    ///
    /// # Errors
    /// [`CursorError`] if they are too short.
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let database = cursor.u32("dbid")?;
        let database = DatabaseLocator { database, tablespace: cursor.u32("tsid")? };
        Ok(Self { database, size: cursor.i32("nbytes")? })
    }
}

/// UPDATE (`xl_relmap_update`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationMap<'a> {
    /// Whose it is; database 0 in `pg_global` for the shared catalogs.
    pub database: DatabaseLocator,
    map: &'a [u8],
    slots: usize,
}

impl<'a> RelationMap<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`RelMapError`] if it is not a map of this major.
    pub fn read(main_data: &'a [u8], version: &Version) -> Result<Self, RelMapError> {
        let mut cursor = Cursor::new(main_data);
        let database = cursor.u32("dbid")?;
        let database = DatabaseLocator { database, tablespace: cursor.u32("tsid")? };
        if database.tablespace == 0
            || (database.database == 0) != (database.tablespace == GLOBAL_TABLESPACE)
        {
            return Err(RelMapError::Database(database));
        }
        let (expected, slots) = (version.relation_map_size, version.relation_map_slots);
        let found = cursor.u32("nbytes")?;
        if usize::try_from(found) != Ok(expected) {
            return Err(RelMapError::Size { expected, found });
        }
        let map = cursor.take(expected, "data")?;
        cursor.finish("data")?;
        let count = crate::bytes::i32_at(map, 4);
        match usize::try_from(count) {
            Ok(count) if count <= slots => Ok(Self { database, map, slots }),
            _ => Err(RelMapError::Count { slots, found: count }),
        }
    }

    /// The catalogs it maps: OIDs and file numbers.
    pub fn mappings(&self) -> impl Iterator<Item = (u32, u32)> + 'a {
        let count = usize::try_from(crate::bytes::i32_at(self.map, 4)).unwrap_or_default();
        let map = self.map;
        (0..count.min(self.slots))
            .map(move |at| (u32_at(map, 8 + 8 * at), u32_at(map, 12 + 8 * at)))
    }

    /// The file's bytes.
    #[must_use]
    pub fn to_file(&self) -> Vec<u8> {
        let mut file = self.map.to_vec();
        put(&mut file, 0, MAGIC.to_le_bytes());
        let crc_at = 8 + 8 * self.slots;
        let crc = crc32c::crc32c(&file[..crc_at]);
        put(&mut file, crc_at, crc.to_le_bytes());
        file
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::VERSIONS;

    fn update(database: u32, tablespace: u32, count: i32) -> Vec<u8> {
        let mut main = Vec::new();
        [database, tablespace, 512].iter().for_each(|word| main.extend(word.to_le_bytes()));
        main.extend([0; 4]); // no magic yet
        main.extend(count.to_le_bytes());
        main.resize(12 + 512, 7);
        main
    }

    #[test]
    fn the_file_has_its_own_magic_and_crc() {
        let main = update(5, 1663, 3);
        let map = RelationMap::read(&main, &VERSIONS[0]).expect("sound");
        let file = map.to_file();
        assert_eq!((file.len(), u32_at(&file, 0), u32_at(&file, 4)), (512, MAGIC, 3));
        assert_eq!(u32_at(&file, 504), crc32c::crc32c(&file[..504]));
        assert_eq!(file[8..504], main[20..516]);
    }

    #[test]
    fn what_is_no_map_is_refused() {
        let read = |main: &[u8]| RelationMap::read(main, &VERSIONS[0]).map(drop);
        assert_eq!(read(&update(0, 1664, 62)), Ok(()));
        assert_eq!(read(&update(5, 1663, 63)), Err(RelMapError::Count { slots: 62, found: 63 }));
        assert!(matches!(read(&update(5, 1663, -1)), Err(RelMapError::Count { .. })));
        assert!(matches!(read(&update(0, 1663, 1)), Err(RelMapError::Database(_))));
        assert!(matches!(read(&update(5, 1664, 1)), Err(RelMapError::Database(_))));
        let whole = update(5, 1663, 1);
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn a_spoiled_file_is_found() {
        let main = update(5, 1663, 2);
        let file = RelationMap::read(&main, &VERSIONS[0]).expect("a map").to_file();
        assert_eq!(check_file(&file, &VERSIONS[0]), Ok(()));
        let spoiled = |at: usize| {
            let mut file = file.clone();
            file[at] ^= 1;
            check_file(&file, &VERSIONS[0])
        };
        assert!(matches!(spoiled(0), Err(RelMapFileError::Magic { .. })));
        for at in [4, 100, 503, 504, 507] {
            assert!(matches!(spoiled(at), Err(RelMapFileError::Crc { .. })), "{at}");
        }
        assert_eq!(spoiled(508), Ok(()), "padding");
        let length = RelMapFileError::Length { expected: 512, found: 511 };
        assert_eq!(check_file(&file[..511], &VERSIONS[0]), Err(length));
    }
}
