//! `pg_logical/mappings`: where rows of rewritten catalogs went, for logical decoding by a server.
//!
//! Only a logical slot needs these files, and the store has none: so all of them go at the next
//! restart point, as in a standby without slots (`CheckPointLogicalRewriteHeap` in
//! `src/backend/access/heap/rewriteheap.c`).

use crate::error::FileError;
use crate::layout::Layout;

const DIRECTORY: &str = "pg_logical/mappings";

/// Writes `bytes` at `offset` and cuts the file behind them: what was there was not safe.
pub(crate) fn write(
    layout: &Layout,
    name: &str,
    offset: u64,
    bytes: &[u8],
) -> Result<(), FileError> {
    let file = layout.open_or_create(&layout.at(DIRECTORY).join(name))?;
    file.set_len(offset)?;
    file.write_at(offset, bytes)
}

/// Removes all of them.
pub(crate) fn remove_all(layout: &Layout) -> Result<(), FileError> {
    let directory = layout.at(DIRECTORY);
    for entry in layout.list_existing(&directory)? {
        if entry.name.starts_with("map-") {
            layout.remove_file(&directory.join(entry.name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_again_takes_the_place_of_what_came_after() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path()).unwrap();
        remove_all(&layout).unwrap();
        let path = directory.path().join("pg_logical/mappings/map-1");
        write(&layout, "map-1", 0, b"aaaa").unwrap();
        write(&layout, "map-1", 4, b"bbbb").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"aaaabbbb");
        write(&layout, "map-1", 2, b"c").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"aac");
        std::fs::write(path.with_file_name("other"), "").unwrap();
        remove_all(&layout).unwrap();
        assert!(!path.exists() && path.with_file_name("other").exists());
    }
}
