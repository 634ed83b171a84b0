//! Relation maps: `pg_filenode.map`, one for the shared catalogs and one in each database.
//!
//! A server overwrites the file in place and trusts that 512 bytes are written at once. We write a
//! new file and rename it, which needs no such trust. Records are rare, so each is made durable at
//! once, as a server does.

use std::path::PathBuf;

use walfmt::relation::DatabaseLocator;
use walfmt::rmgr::relmap::{FILE_NAME, RelationMap};

use crate::error::FileError;
use crate::layout::Layout;

/// Left by a crash between write and rename; removed when the store is opened.
pub(crate) const NEW_NAME: &str = "pg_filenode.map.walferry";

/// Replaces the map's file, durably. The database's directory is made if it is not there: a later
/// record will have dropped it.
pub(crate) fn write(layout: &Layout, map: &RelationMap<'_>) -> Result<(), FileError> {
    let directory = layout.database_directory(map.database);
    let new_path = directory.join(NEW_NAME);
    let file = layout.open_or_create(&new_path)?;
    file.set_len(0)?;
    file.write_at(0, &map.to_file())?;
    file.sync()?;
    layout.rename(&new_path, &path(layout, map.database))?;
    layout.sync_directory(&directory)
}

fn path(layout: &Layout, database: DatabaseLocator) -> PathBuf {
    layout.database_directory(database).join(FILE_NAME)
}

#[cfg(test)]
mod tests {
    use walfmt::version::VERSIONS;

    use super::*;

    #[test]
    fn maps_are_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path()).unwrap().of_version(&VERSIONS[0]);
        let mut main = Vec::new();
        [0_u32, 1664, 512, 0, 1].iter().for_each(|word| main.extend(word.to_le_bytes()));
        main.resize(12 + 512, 0);
        for (database, tablespace, name) in [
            (0_u32, 1664_u32, "global/pg_filenode.map"),
            (5, 1663, "base/5/pg_filenode.map"),
            (5, 16390, "pg_tblspc/16390/PG_15_202209061/5/pg_filenode.map"),
        ] {
            main[..4].copy_from_slice(&database.to_le_bytes());
            main[4..8].copy_from_slice(&tablespace.to_le_bytes());
            let path = directory.path().join(name);
            for mappings in [2_u8, 1] {
                main[12 + 4] = mappings;
                let map = RelationMap::read(&main, &VERSIONS[0]).unwrap();
                write(&layout, &map).unwrap();
                let file = std::fs::read(&path).unwrap();
                assert_eq!((file.len(), file[4]), (512, mappings));
                assert_eq!(file, map.to_file());
            }
            let directory = path.parent().unwrap();
            assert_eq!(std::fs::read_dir(directory).unwrap().count(), 1, "nothing else is left");
        }
    }
}
