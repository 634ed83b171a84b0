//! Tablespaces: where their directories are, and that no path from the leader is ever used for it.
//!
//! ```text
//! <store>/pg_tblspc/16390 ──► <store>.tablespaces/16390     one that has a location on the leader
//! <store>/pg_tblspc/16391/                                  one "in place"
//!                    └── PG_15_202209061/<database>/<relation>
//! ```
//!
//! A server that takes over finds the links and needs to know nothing of this. But CREATE
//! TABLESPACE that it replays itself would use the leader's location: see [`Created`].
//!
//! Rules: `create_tablespace_directories` and `destroy_tablespace_directories` in
//! `src/backend/commands/tablespace.c`.

use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use walfmt::Lsn;
use walfmt::rmgr::tablespace::CreateTablespace;

use crate::disk::{Entry, EntryKind};
use crate::error::{FileError, OpenError};
use crate::layout::Layout;

/// Where the store in `data_directory` keeps its tablespaces, each in a directory named by its OID.
#[must_use]
pub fn tablespaces_directory(data_directory: &Path) -> PathBuf {
    let mut name = data_directory.file_name().unwrap_or_default().to_owned();
    name.push(".tablespaces");
    data_directory.with_file_name(name)
}

/// A tablespace with a location that was created by a record which the next server will replay
/// again, from the last restart point on. That server makes the link point to the location.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Created {
    /// Where the record begins.
    pub(crate) at: Lsn,
    pub(crate) tablespace: u32,
    pub(crate) location: PathBuf,
}

impl Created {
    /// Nothing for one in place.
    pub(crate) fn new(at: Lsn, create: &CreateTablespace<'_>) -> Option<Self> {
        let location = std::ffi::OsStr::from_bytes(create.location).into();
        let CreateTablespace { tablespace, .. } = *create;
        (!create.location.is_empty()).then_some(Self { at, tablespace, location })
    }

    /// Whether a server can make the tablespace there without touching what is somebody else's: an
    /// empty directory is waiting for it.
    pub(crate) fn location_is_ready(&self, layout: &Layout) -> bool {
        layout.list(&self.location).is_ok_and(|entries| entries.is_empty())
    }
}

/// Makes a tablespace's directory and the link to it. What is in it already stays: then this is
/// done for the second time.
pub(crate) fn create(layout: &Layout, create: &CreateTablespace<'_>) -> Result<(), FileError> {
    let tablespace = create.tablespace;
    let link = layout.tablespace_link(tablespace);
    if create.location.is_empty() {
        return layout.create_directory(&layout.tablespace_directory(tablespace));
    }
    let target = layout.tablespace_target(tablespace);
    layout.create_directory(&target.join(layout.version_directory()))?;
    match layout.kind_of(&link)? {
        Some(EntryKind::Directory) => layout.remove_empty_directory(&link)?,
        Some(_) => layout.remove_file(&link)?,
        None => false,
    };
    layout.create_directory(&layout.at("pg_tblspc"))?;
    layout.create_link(&target, &link)
}

/// Removes a tablespace's directories and its link. What is not empty stays, as in a server: the
/// leader found it empty, so nobody needs what is there.
pub(crate) fn remove(layout: &Layout, tablespace: u32) -> Result<(), FileError> {
    let directory = layout.tablespace_directory(tablespace);
    for Entry { name, .. } in layout.list_existing(&directory)? {
        remove_if_empty(layout, &directory.join(name))?;
    }
    if !remove_if_empty(layout, &directory)? {
        return Ok(());
    }
    let link = layout.tablespace_link(tablespace);
    match layout.kind_of(&link)? {
        Some(EntryKind::Directory) => remove_if_empty(layout, &link).map(drop),
        Some(_) => {
            layout.remove_file(&link)?;
            remove_if_empty(layout, &layout.tablespace_target(tablespace)).map(drop)
        }
        None => Ok(()),
    }
}

/// Checks at the opening of a store that all links lead to where this store keeps its tablespaces,
/// and makes directories that are missing there. Gives those directories.
pub(crate) fn check(layout: &Layout) -> Result<Vec<PathBuf>, OpenError> {
    let mut directories = Vec::new();
    for Entry { name, kind } in layout.list_existing(&layout.at("pg_tblspc"))? {
        let path = layout.at("pg_tblspc").join(&name);
        let tablespace = name.parse().map_err(|_| OpenError::Tablespace {
            path: path.clone(),
            what: "its name is not the OID of a tablespace".to_owned(),
        })?;
        if kind == EntryKind::Directory {
            continue;
        }
        let expected = layout.tablespace_target(tablespace);
        let found = layout.read_link(&path)?.unwrap_or_default();
        if found != expected {
            let (found, expected) = (found.display(), expected.display());
            let what = format!("it points to {found}, expected {expected}");
            return Err(OpenError::Tablespace { path, what });
        }
        // Not there if a crash came between the removal of the two.
        layout.create_directory(&expected)?;
        directories.push(expected);
    }
    Ok(directories)
}

/// Removes a directory if it is empty; whether it is gone.
fn remove_if_empty(layout: &Layout, path: &Path) -> Result<bool, FileError> {
    match layout.remove_empty_directory(path) {
        Ok(_) => Ok(true),
        Err(error) if error.source.kind() == ErrorKind::DirectoryNotEmpty => {
            tracing::warn!(path = %path.display(), "left behind by a dropped tablespace: not empty");
            Ok(false)
        }
        Err(error) if error.source.kind() == ErrorKind::NotADirectory => {
            tracing::warn!(path = %path.display(), "left behind by a dropped tablespace");
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use walfmt::version::VERSIONS;

    use super::*;

    const ELSEWHERE: CreateTablespace<'static> =
        CreateTablespace { tablespace: 16390, location: b"/leader/fast" };
    const IN_PLACE: CreateTablespace<'static> =
        CreateTablespace { tablespace: 16391, location: b"" };

    struct Place {
        directory: tempfile::TempDir,
        layout: Layout,
    }

    impl Place {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let root = directory.path().join("store");
            std::fs::create_dir_all(root.join("pg_tblspc")).unwrap();
            let layout = Layout::new(&root).unwrap().of_version(&VERSIONS[0]);
            Self { directory, layout }
        }

        fn target(&self) -> PathBuf {
            self.directory.path().join("store.tablespaces/16390")
        }

        fn link(&self) -> PathBuf {
            self.layout.at("pg_tblspc/16390")
        }
    }

    #[test]
    fn the_leaders_path_is_not_used() {
        let place = Place::new();
        let file = "PG_15_202209061/5/16400";
        for _ in 0..2 {
            create(&place.layout, &ELSEWHERE).unwrap();
            create(&place.layout, &IN_PLACE).unwrap();
            assert_eq!(std::fs::read_link(place.link()).unwrap(), place.target());
            assert!(place.layout.at("pg_tblspc/16391/PG_15_202209061").is_dir());
            // The second time the files stay.
            let path = place.link().join(file);
            place.layout.open_or_create(&path).unwrap();
            assert!(place.target().join(file).exists());
        }
        assert_eq!(check(&place.layout).unwrap(), [place.target()]);
        assert!(
            place
                .layout
                .database_directories()
                .unwrap()
                .contains(&place.layout.at("pg_tblspc/16390/PG_15_202209061/5"))
        );

        remove(&place.layout, 16390).unwrap();
        assert!(place.link().join(file).exists(), "what is not empty stays");
        std::fs::remove_file(place.link().join(file)).unwrap();
        for _ in 0..2 {
            remove(&place.layout, 16390).unwrap();
            remove(&place.layout, 16391).unwrap();
        }
        assert!(place.link().symlink_metadata().is_err() && !place.target().exists());
        assert_eq!(std::fs::read_dir(place.layout.at("pg_tblspc")).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_in_the_links_place_gives_way() {
        let place = Place::new();
        std::fs::create_dir(place.link()).unwrap();
        create(&place.layout, &ELSEWHERE).unwrap();
        assert_eq!(std::fs::read_link(place.link()).unwrap(), place.target());
    }

    #[test]
    fn links_that_lead_elsewhere_are_refused() {
        let place = Place::new();
        create(&place.layout, &ELSEWHERE).unwrap();
        std::fs::remove_dir_all(place.target()).unwrap();
        assert_eq!(check(&place.layout).unwrap(), [place.target()]);
        assert!(place.target().exists(), "made again");
        std::fs::remove_file(place.link()).unwrap();
        std::os::unix::fs::symlink(place.directory.path(), place.link()).unwrap();
        let error = check(&place.layout).unwrap_err().to_string();
        assert!(error.contains("store.tablespaces/16390"), "{error}");
        std::fs::rename(place.link(), place.layout.at("pg_tblspc/note")).unwrap();
        assert!(check(&place.layout).is_err());
    }

    #[test]
    fn a_location_is_ready_when_it_is_empty() {
        let place = Place::new();
        let location = place.directory.path().join("location");
        let create = CreateTablespace { location: location.as_os_str().as_bytes(), ..ELSEWHERE };
        let created = Created::new(Lsn(1), &create).unwrap();
        assert!(!created.location_is_ready(&place.layout), "not there");
        std::fs::create_dir(&location).unwrap();
        assert!(created.location_is_ready(&place.layout));
        std::fs::write(location.join("file"), "somebody's").unwrap();
        assert!(!created.location_is_ready(&place.layout));
        assert_eq!(Created::new(Lsn(1), &IN_PLACE), None);
    }
}
