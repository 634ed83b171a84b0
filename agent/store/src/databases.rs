//! Directories of databases: made, copied, removed.
//!
//! A file copy is the one record that reads more than it names: all of a database as of exactly
//! this record. It must never be made again from a newer source. The leader keeps the source still
//! until it has made a checkpoint, so the store makes a restart point of that checkpoint before it
//! goes on (see `dispatcher/routing.rs`), and what is left of the danger is noticed here: no page
//! of the source may be newer than the record, nor may the source be gone and its copy be there.
//!
//! Rules: `dbase_redo` in `src/backend/commands/dbcommands.c`, `src/backend/storage/file/copydir.c`.

use std::path::Path;

use walfmt::relation::{BLOCK_SIZE, DatabaseLocator};
use walfmt::{Lsn, Version};

use crate::cleanup::{INIT_FILE, RelationFile};
use crate::disk::EntryKind;
use crate::error::{CopyFault, FileError};
use crate::layout::Layout;
use crate::relation_maps;

/// How much of a file is looked at at once: 1 MB.
const READ_BYTES: usize = 128 * BLOCK_SIZE;

/// Makes a database's directory with its `PG_VERSION`, if they are not there.
pub(crate) fn create(
    layout: &Layout,
    directory: DatabaseLocator,
    version: &Version,
) -> Result<(), FileError> {
    let path = layout.database_directory(directory);
    layout.create_directory(&path)?;
    let file = layout.open_or_create(&path.join("PG_VERSION"))?;
    file.set_len(0)?;
    file.write_at(0, format!("{}\n", version.major).as_bytes())
}

/// Why `to` cannot be made what `from` was at `end`, by what their files show.
pub(crate) fn copy_fault(
    layout: &Layout,
    from: DatabaseLocator,
    to: DatabaseLocator,
    end: Lsn,
) -> Result<Option<CopyFault>, FileError> {
    let (source, target) = (layout.database_directory(from), layout.database_directory(to));
    let sources = files(layout, &source)?;
    if sources.is_empty() && !files(layout, &target)?.is_empty() {
        return Ok(Some(CopyFault::Gone { from: source, to: target }));
    }
    let mut buffer = vec![0; READ_BYTES];
    for name in sources {
        // Free space maps have no LSNs.
        if RelationFile::parse(&name).is_some_and(|file| file.fork != "fsm") {
            let newer = find_newer_page(layout, &source.join(&name), end, &mut buffer)?;
            if newer.is_some() {
                return Ok(newer);
            }
        }
    }
    Ok(None)
}

/// Looks for a page that was changed after `end`.
fn find_newer_page(
    layout: &Layout,
    path: &Path,
    end: Lsn,
    buffer: &mut [u8],
) -> Result<Option<CopyFault>, FileError> {
    let Some(file) = layout.open_existing(path)? else { return Ok(None) };
    let mut first = 0;
    loop {
        let count = file.read_at(first * BLOCK_SIZE as u64, buffer)?;
        let (pages, _) = buffer[..count].as_chunks::<BLOCK_SIZE>();
        for (block, page) in (first..).zip(pages) {
            let lsn = walfmt::page::lsn(page);
            if lsn > end {
                return Ok(Some(CopyFault::Newer { file: path.to_owned(), block, lsn }));
            }
        }
        if count < buffer.len() {
            return Ok(None);
        }
        first += pages.len() as u64;
    }
}

/// Makes `to`, removed if it is there, a copy of `from`, made empty if it is not there. Everything
/// in memory of either was written, or forgotten, before. Durable with the next restart point.
pub(crate) fn copy(
    layout: &Layout,
    from: DatabaseLocator,
    to: DatabaseLocator,
) -> Result<(), FileError> {
    let (source, target) = (layout.database_directory(from), layout.database_directory(to));
    layout.remove_tree(&target)?;
    layout.create_directory(&source)?;
    layout.create_directory(&target)?;
    for name in files(layout, &source)? {
        layout.copy(&source.join(&name), &target.join(&name))?;
    }
    Ok(())
}

/// Removes a database's directory and all that is in it.
pub(crate) fn remove(layout: &Layout, directory: DatabaseLocator) -> Result<(), FileError> {
    layout.remove_tree(&layout.database_directory(directory)).map(drop)
}

/// What of a database's directory belongs to the database: all files but caches and leftovers.
fn files(layout: &Layout, directory: &Path) -> Result<Vec<String>, FileError> {
    let entries = layout.list_existing(directory)?.into_iter();
    let belongs = |name: &str| !name.starts_with(INIT_FILE) && name != relation_maps::NEW_NAME;
    Ok(entries
        .filter(|entry| entry.kind == EntryKind::File && belongs(&entry.name))
        .map(|entry| entry.name)
        .collect())
}

#[cfg(test)]
mod tests {
    use walfmt::version::VERSIONS;

    use super::*;

    const FROM: DatabaseLocator = DatabaseLocator { tablespace: 1663, database: 1 };
    const TO: DatabaseLocator = DatabaseLocator { tablespace: 16390, database: 7 };

    fn layout(directory: &tempfile::TempDir) -> Layout {
        Layout::new(directory.path()).unwrap().of_version(&VERSIONS[0])
    }

    #[test]
    fn a_copy_takes_the_place_of_what_was_there() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        let (source, target) = (layout.database_directory(FROM), layout.database_directory(TO));
        for (path, text) in [
            (source.join("1259"), "pg_class"),
            (source.join("1259_fsm"), "room"),
            (source.join("PG_VERSION"), "15\n"),
            (source.join("pg_filenode.map"), "map"),
            (source.join("pg_internal.init"), "cache"),
            (source.join("pg_filenode.map.walferry"), "leftover"),
            (source.join("subdirectory/1"), "not a database's"),
            (target.join("999"), "old"),
        ] {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        copy(&layout, FROM, TO).unwrap();
        let mut names: Vec<_> = std::fs::read_dir(&target)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["1259", "1259_fsm", "PG_VERSION", "pg_filenode.map"]);
        assert_eq!(std::fs::read(target.join("1259")).unwrap(), b"pg_class");
        remove(&layout, TO).unwrap();
        remove(&layout, TO).unwrap();
        assert!(!target.exists() && source.exists());
    }

    #[test]
    fn a_source_that_is_gone_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        assert_eq!(copy_fault(&layout, FROM, TO, Lsn(0)).unwrap(), None);
        copy(&layout, FROM, TO).unwrap();
        for database in [FROM, TO] {
            let path = layout.database_directory(database);
            assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
        }
        let target = layout.database_directory(TO);
        std::fs::write(target.join("1259"), "kept").unwrap();
        let from = layout.database_directory(FROM);
        let gone = CopyFault::Gone { from, to: target };
        assert_eq!(copy_fault(&layout, FROM, TO, Lsn(0)).unwrap(), Some(gone));
    }

    #[test]
    fn a_page_from_the_future_is_found() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        let path = layout.database_directory(FROM);
        std::fs::create_dir_all(&path).unwrap();
        let mut bytes = vec![0; 300 * BLOCK_SIZE];
        let at = 200 * BLOCK_SIZE;
        bytes[at + 4..at + 8].copy_from_slice(&0x500_u32.to_le_bytes());
        let fault = |end| copy_fault(&layout, FROM, TO, end).unwrap();
        std::fs::write(path.join("16384_fsm"), &bytes).unwrap();
        assert_eq!(fault(Lsn(0x4FF)), None, "no LSN in this fork");
        let file = path.join("16384.1");
        std::fs::write(&file, &bytes).unwrap();
        assert_eq!(fault(Lsn(0x500)), None);
        let newer = CopyFault::Newer { file, block: 200, lsn: Lsn(0x500) };
        assert_eq!(fault(Lsn(0x4FF)), Some(newer));
    }

    #[test]
    fn a_new_directory_has_its_version() {
        let directory = tempfile::tempdir().unwrap();
        let layout = layout(&directory);
        for _ in 0..2 {
            create(&layout, TO, &VERSIONS[0]).unwrap();
            let path = layout.database_directory(TO).join("PG_VERSION");
            assert_eq!(std::fs::read_to_string(path).unwrap(), "15\n");
        }
    }
}
