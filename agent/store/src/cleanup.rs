//! What a server removes before it begins recovery, and so do we.
//!
//! Rules: `RelationCacheInitFileRemove` in `src/backend/utils/cache/relcache.c`,
//! `ResetUnloggedRelations` in `src/backend/storage/file/reinit.c`.

use std::collections::HashSet;
use std::path::Path;

use crate::disk::Entry;
use crate::error::FileError;
use crate::layout::Layout;
use crate::relation_maps;

/// A relation cache's file, or one that is on its way to become one.
pub(crate) const INIT_FILE: &str = "pg_internal.init";

/// Removes relation cache init files (they would hide catalog changes that replay makes) and the
/// contents of unlogged relations (nothing in the WAL keeps them up to date; a server that takes
/// over makes them anew from their init forks). In all tablespaces. What we left unfinished goes too.
pub(crate) fn remove_stale_files(layout: &Layout) -> Result<(), FileError> {
    remove_leftovers(layout, &layout.at("global"))?;
    remove_unreachable(layout, &layout.at("global"))?;
    for directory in layout.database_directories()? {
        remove_leftovers(layout, &directory)?;
        remove_unlogged(layout, &directory)?;
        remove_unreachable(layout, &directory)?;
    }
    Ok(())
}

fn remove_leftovers(layout: &Layout, directory: &Path) -> Result<(), FileError> {
    for Entry { name, .. } in layout.list(directory)? {
        if name.starts_with(INIT_FILE) || name == relation_maps::NEW_NAME {
            layout.remove_file(&directory.join(name))?;
        }
    }
    Ok(())
}

fn remove_unlogged(layout: &Layout, directory: &Path) -> Result<(), FileError> {
    let entries = layout.list(directory)?;
    let parsed = || entries.iter().filter_map(|entry| RelationFile::parse(&entry.name));
    let unlogged: HashSet<&str> =
        parsed().filter(|file| file.fork == "init").map(|file| file.relation).collect();
    for file in parsed() {
        if file.fork != "init" && unlogged.contains(file.relation) {
            layout.remove_file(&directory.join(file.name))?;
        }
    }
    Ok(())
}

/// Removes files of a fork that do not follow on its first one. A crash leaves them of a relation
/// that was dropped: the names go one by one. Replay of the drop would not find them behind the gap,
/// nor would a server, until a relation with the same number has grown so far.
fn remove_unreachable(layout: &Layout, directory: &Path) -> Result<(), FileError> {
    let entries = layout.list(directory)?;
    let files: HashSet<(&str, &str, u32)> = entries
        .iter()
        .filter_map(|entry| RelationFile::parse(&entry.name))
        .map(|file| (file.relation, file.fork, file.number))
        .collect();
    for file in entries.iter().filter_map(|entry| RelationFile::parse(&entry.name)) {
        let is_there = |number| files.contains(&(file.relation, file.fork, number));
        if !(0..file.number).all(is_there) {
            layout.remove_file(&directory.join(file.name))?;
        }
    }
    Ok(())
}

/// The name of a relation's file.
pub(crate) struct RelationFile<'a> {
    name: &'a str,
    pub(crate) relation: &'a str,
    /// Empty for the main fork.
    pub(crate) fork: &'a str,
    /// Which of the fork's files.
    pub(crate) number: u32,
}

impl<'a> RelationFile<'a> {
    /// `<relation>[_<fork>][.<number>]` (`parse_filename_for_nontemp_relation`).
    pub(crate) fn parse(name: &'a str) -> Option<Self> {
        let (stem, number) = name.split_once('.').unwrap_or((name, "0"));
        let (relation, fork) = match stem.split_once('_') {
            Some((relation, fork)) => (relation, Some(fork)),
            None => (stem, None),
        };
        let known = matches!(fork, None | Some("fsm" | "vm" | "init"));
        let number = number.parse().ok().filter(|_| is_number(number))?;
        (known && is_number(relation)).then_some(Self {
            name,
            relation,
            fork: fork.unwrap_or_default(),
            number,
        })
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_what_a_server_removes_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let keep = [
            "base/5/16384",
            "base/5/16384.1",
            "base/5/16384.2",
            "base/5/16384_fsm",
            "base/5/16390_init",
            "base/5/PG_VERSION",
            "base/5/pg_filenode.map",
            "base/5/t3_16390",
            "global/1262",
            "pg_tblspc/16400/PG_15_202209061/5/16384",
            "pg_tblspc/16400/PG_14_202107181/5/16390",
            "pg_tblspc/16400/PG_15_202209061/5/16390_init",
            "base/pgsql_tmp/16390",
        ];
        let gone = [
            "base/5/16390",
            "base/5/16390.1",
            "base/5/16384_fsm.2",
            "base/5/16391.1",
            "base/5/16391.2",
            "base/5/16390_fsm",
            "base/5/16390_vm",
            "base/5/pg_internal.init",
            "base/5/pg_internal.init.123",
            "base/5/pg_filenode.map.walferry",
            "global/pg_internal.init",
            "global/pg_filenode.map.walferry",
            "pg_tblspc/16400/PG_15_202209061/5/16390",
            "pg_tblspc/16400/PG_15_202209061/5/16390_vm",
        ];
        for name in keep.iter().chain(&gone) {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
        }
        let layout = Layout::new(directory.path()).unwrap();
        remove_stale_files(&layout.of_version(&walfmt::version::VERSIONS[0])).unwrap();
        for name in keep {
            assert!(directory.path().join(name).exists(), "{name}");
        }
        for name in gone {
            assert!(!directory.path().join(name).exists(), "{name}");
        }
    }
}
