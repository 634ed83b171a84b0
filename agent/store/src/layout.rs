//! Where things are in a data directory, and with which permissions.
//!
//! ```text
//! base/<database>/<relation>[_fsm|_vm|_init][.<n>]     files of 1 GB each, the first without .<n>
//! global/<relation>...                                 shared relations
//! global/pg_control
//! pg_tblspc/<tablespace>/<version>/<database>/...      see `tablespaces.rs`
//! pg_xact/<4 hex digits>                               transaction status
//! postmaster.pid, walferry.lock                        see `lock.rs`
//! ```
//!
//! Rules: `GetRelationPath` in `src/common/relpath.c`, `_mdfd_segpath` in
//! `src/backend/storage/smgr/md.c`, `src/common/file_perm.c`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use walfmt::relation::{
    BLOCK_SIZE, BLOCKS_PER_FILE, BlockNumber, DEFAULT_TABLESPACE, DatabaseLocator,
    GLOBAL_TABLESPACE, RelFork,
};
use walfmt::{RelFileLocator, Version};

use crate::disk::{Disk, DiskFile, Entry, EntryKind, FileSystem, Metadata, OpenHow, OsDisk};
use crate::error::FileError;
use crate::tablespaces::tablespaces_directory;

/// A full relation file's length, in bytes.
pub(crate) const FILE_SIZE_MAX: u64 = BLOCKS_PER_FILE as u64 * BLOCK_SIZE as u64;

/// The paths of one data directory, and the disk it lies on. All file calls of the store come
/// through here.
#[derive(Clone)]
pub(crate) struct Layout {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    group_access: bool,
    /// The directory within each tablespace that belongs to the cluster's major.
    version_directory: Arc<str>,
}

impl Layout {
    /// The layout of the data directory `root`, which must exist. As a server does, new files are
    /// open to the group if the directory is.
    pub(crate) fn new(root: &Path) -> Result<Self, FileError> {
        Self::on(Arc::new(OsDisk), root)
    }

    /// The same on any disk.
    pub(crate) fn on(disk: Arc<dyn Disk>, root: &Path) -> Result<Self, FileError> {
        let metadata = disk.metadata(root)?;
        let root = std::path::absolute(root).map_err(FileError::of("open", root))?;
        let group_access = metadata.mode & 0o050 == 0o050;
        Ok(Self { disk, root, group_access, version_directory: Arc::from("") })
    }

    /// The same for a cluster of this major: without it nothing in a tablespace is found.
    pub(crate) fn of_version(self, version: &Version) -> Self {
        Self { version_directory: version.tablespace_directory().into(), ..self }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A file or directory by its name relative to the data directory.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Whether there can be such a relation: shared relations lie in `pg_global`, and no others.
    pub(crate) const fn holds(locator: RelFileLocator) -> bool {
        match locator.tablespace {
            0 => false,
            GLOBAL_TABLESPACE => locator.database == 0,
            _ => locator.database != 0,
        }
    }

    /// The `number`th file of a fork. The relation must be one that the store [holds](Self::holds).
    pub(crate) fn fork_file(&self, fork: RelFork, number: u32) -> PathBuf {
        let relation = fork.locator.relation;
        let suffix = fork.fork.file_suffix();
        let mut path = self.database_directory(fork.locator.directory());
        path.push(match number {
            0 => format!("{relation}{suffix}"),
            _ => format!("{relation}{suffix}.{number}"),
        });
        path
    }

    /// The directory of a database in one tablespace (`GetDatabasePath`).
    pub(crate) fn database_directory(&self, directory: DatabaseLocator) -> PathBuf {
        let DatabaseLocator { tablespace, database } = directory;
        match tablespace {
            GLOBAL_TABLESPACE => self.at("global"),
            DEFAULT_TABLESPACE => self.at(&format!("base/{database}")),
            _ => self.tablespace_directory(tablespace).join(database.to_string()),
        }
    }

    /// The directories of all databases, in all tablespaces.
    pub(crate) fn database_directories(&self) -> Result<Vec<PathBuf>, FileError> {
        let databases = self.databases()?.into_iter();
        Ok(databases.map(|directory| self.database_directory(directory)).collect())
    }

    /// All databases, once for each tablespace that has a directory for them.
    pub(crate) fn databases(&self) -> Result<Vec<DatabaseLocator>, FileError> {
        let mut parents = vec![(DEFAULT_TABLESPACE, self.at("base"))];
        for entry in self.list_existing(&self.at("pg_tblspc"))? {
            if let Ok(tablespace) = entry.name.parse() {
                parents.push((tablespace, self.tablespace_directory(tablespace)));
            }
        }
        let mut databases = Vec::new();
        for (tablespace, parent) in parents {
            let entries = self.list_existing(&parent)?.into_iter();
            let numbers = entries.filter_map(|entry| entry.name.parse().ok());
            databases.extend(numbers.map(|database| DatabaseLocator { tablespace, database }));
        }
        Ok(databases)
    }

    /// The link to a tablespace, or the tablespace itself if it is in place.
    pub(crate) fn tablespace_link(&self, tablespace: u32) -> PathBuf {
        self.at(&format!("pg_tblspc/{tablespace}"))
    }

    /// Where the link to a tablespace leads.
    pub(crate) fn tablespace_target(&self, tablespace: u32) -> PathBuf {
        tablespaces_directory(&self.root).join(tablespace.to_string())
    }

    /// Where the databases in a tablespace have their directories.
    pub(crate) fn tablespace_directory(&self, tablespace: u32) -> PathBuf {
        debug_assert!(!self.version_directory.is_empty(), "the layout of no version");
        self.tablespace_link(tablespace).join(self.version_directory())
    }

    /// See [`Version::tablespace_directory`].
    pub(crate) fn version_directory(&self) -> &str {
        &self.version_directory
    }

    /// Opens a file for reading and writing, and creates it if it is not there; its directory too,
    /// as a server in recovery does (`TablespaceCreateDbspace`).
    pub(crate) fn open_or_create(&self, path: &Path) -> Result<Box<dyn DiskFile>, FileError> {
        let open = || self.disk.open(path, OpenHow::OrCreate(self.file_mode()));
        match open() {
            Err(error) if error.is_not_found() => {
                self.create_directory(path.parent().unwrap_or(&self.root))?;
                open()
            }
            opened => opened,
        }
    }

    /// Creates a file that must not be there, readable by its owner only.
    pub(crate) fn create_new(&self, path: &Path) -> Result<Box<dyn DiskFile>, FileError> {
        self.disk.open(path, OpenHow::CreateNew(0o600))
    }

    /// Opens an existing file for reading and writing; nothing if it is not there.
    pub(crate) fn open_existing(
        &self,
        path: &Path,
    ) -> Result<Option<Box<dyn DiskFile>>, FileError> {
        found(self.disk.open(path, OpenHow::Existing))
    }

    /// All bytes of a file; nothing if it is not there.
    pub(crate) fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, FileError> {
        match self.open_existing(path)? {
            Some(file) => read_all(&*file).map(Some),
            None => Ok(None),
        }
    }

    /// What lies at a path, symbolic links followed; nothing if nothing does.
    pub(crate) fn metadata(&self, path: &Path) -> Result<Option<Metadata>, FileError> {
        found(self.disk.metadata(path))
    }

    /// What a directory holds; nothing if it is not there.
    pub(crate) fn list_existing(&self, directory: &Path) -> Result<Vec<Entry>, FileError> {
        Ok(found(self.disk.list(directory))?.unwrap_or_default())
    }

    /// What a path is, symbolic links not followed; nothing if nothing is there.
    pub(crate) fn kind_of(&self, path: &Path) -> Result<Option<EntryKind>, FileError> {
        let entries = self.list_existing(path.parent().unwrap_or(&self.root))?;
        let name = path.file_name().unwrap_or_default();
        Ok(entries.into_iter().find(|entry| *entry.name == *name).map(|entry| entry.kind))
    }

    /// What a directory holds.
    pub(crate) fn list(&self, directory: &Path) -> Result<Vec<Entry>, FileError> {
        self.disk.list(directory)
    }

    /// Makes a directory and those above it; no error if it is there.
    pub(crate) fn create_directory(&self, path: &Path) -> Result<(), FileError> {
        self.disk.create_directory(path, if self.group_access { 0o750 } else { 0o700 })
    }

    /// Makes a symbolic link at `path` that points to `target`.
    pub(crate) fn create_link(&self, target: &Path, path: &Path) -> Result<(), FileError> {
        self.disk.create_link(target, path)
    }

    /// Where a symbolic link points; nothing if it is not there.
    pub(crate) fn read_link(&self, path: &Path) -> Result<Option<PathBuf>, FileError> {
        found(self.disk.read_link(path))
    }

    /// Gives a file another name, in place of any file that has it.
    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        self.disk.rename(from, to)
    }

    /// Replaces all bytes of a file, at once: after a crash they are the old ones or the new ones.
    /// The new ones are durable; that they are this file's is after the next sync of its directory
    /// or file system.
    pub(crate) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<(), FileError> {
        let new_path = replacement(path);
        let file = self.open_or_create(&new_path)?;
        file.set_len(0)?;
        file.write_at(0, bytes)?;
        file.sync()?;
        self.rename(&new_path, path)
    }

    /// Removes what an interrupted [`replace`](Self::replace) left, given the name of the file or
    /// that of what is left.
    pub(crate) fn remove_replacement(&self, path: &Path) -> Result<(), FileError> {
        let is_replacement = path.extension().is_some_and(|end| end == REPLACEMENT_END);
        let left = if is_replacement { path.to_owned() } else { replacement(path) };
        self.remove_file(&left).map(drop)
    }

    /// Removes a file; whether it was there.
    pub(crate) fn remove_file(&self, path: &Path) -> Result<bool, FileError> {
        Ok(found(self.disk.remove(path))?.is_some())
    }

    /// Removes an empty directory; whether it was there.
    pub(crate) fn remove_empty_directory(&self, path: &Path) -> Result<bool, FileError> {
        Ok(found(self.disk.remove_directory(path))?.is_some())
    }

    /// Removes a directory and all in it; whether it was there. Symbolic links go, what they point
    /// to stays.
    pub(crate) fn remove_tree(&self, path: &Path) -> Result<bool, FileError> {
        let Some(entries) = found(self.disk.list(path))? else { return Ok(false) };
        for Entry { name, kind } in entries {
            let path = path.join(name);
            if kind == EntryKind::Directory {
                self.remove_tree(&path)?;
            } else {
                self.remove_file(&path)?;
            }
        }
        Ok(found(self.disk.remove_directory(path))?.is_some())
    }

    /// Copies a file's bytes to a file that does not exist yet.
    pub(crate) fn copy(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        self.disk.copy(from, to, self.file_mode())
    }

    /// Makes the names in a directory durable.
    pub(crate) fn sync_directory(&self, path: &Path) -> Result<(), FileError> {
        self.disk.sync_directory(path)
    }

    /// The file system that a directory lies on, held open.
    pub(crate) fn file_system(&self, directory: &Path) -> Result<Box<dyn FileSystem>, FileError> {
        self.disk.file_system(directory)
    }

    const fn file_mode(&self) -> u32 {
        if self.group_access { 0o640 } else { 0o600 }
    }
}

impl fmt::Debug for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Layout({})", self.root.display())
    }
}

/// How the names of files end that will replace others.
const REPLACEMENT_END: &str = "walferry";

fn replacement(path: &Path) -> PathBuf {
    path.with_added_extension(REPLACEMENT_END)
}

/// All bytes of a file.
pub(crate) fn read_all(file: &dyn DiskFile) -> Result<Vec<u8>, FileError> {
    let length = usize::try_from(file.metadata()?.length).unwrap_or(usize::MAX);
    let mut bytes = vec![0; length.min(READ_BYTES_MAX)];
    let count = file.read_at(0, &mut bytes)?;
    bytes.truncate(count);
    Ok(bytes)
}

/// Files that are read whole are small; of one that is not, this much is enough to see so: 1 MB.
const READ_BYTES_MAX: usize = 1 << 20;

fn found<T>(result: Result<T, FileError>) -> Result<Option<T>, FileError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which of a fork's files a block is in, and where in it, in bytes.
pub(crate) const fn place_of(block: BlockNumber) -> (u32, u64) {
    (block / BLOCKS_PER_FILE, (block % BLOCKS_PER_FILE) as u64 * BLOCK_SIZE as u64)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use walfmt::ForkNumber;

    use super::*;

    #[test]
    fn paths_are_postgresqls() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path()).unwrap();
        let layout = layout.of_version(&walfmt::version::VERSIONS[0]);
        let fork = |tablespace, database, fork| RelFork {
            locator: RelFileLocator { tablespace, database, relation: 16384 },
            fork,
        };
        let cases = [
            (fork(1663, 5, ForkNumber::Main), 0, "base/5/16384"),
            (fork(1663, 5, ForkNumber::Main), 2, "base/5/16384.2"),
            (fork(1663, 5, ForkNumber::FreeSpace), 0, "base/5/16384_fsm"),
            (fork(1663, 5, ForkNumber::VisibilityMap), 1, "base/5/16384_vm.1"),
            (fork(1664, 0, ForkNumber::Init), 0, "global/16384_init"),
            (fork(16400, 5, ForkNumber::Main), 1, "pg_tblspc/16400/PG_15_202209061/5/16384.1"),
        ];
        for (fork, number, name) in cases {
            assert_eq!(layout.fork_file(fork, number), layout.at(name));
            assert!(Layout::holds(fork.locator));
        }
        for (tablespace, database) in [(0, 5), (1664, 5), (1663, 0), (16400, 0)] {
            assert!(!Layout::holds(RelFileLocator { tablespace, database, relation: 1 }));
        }
    }

    #[test]
    fn a_block_is_found_beyond_the_first_file() {
        assert_eq!(place_of(0), (0, 0));
        assert_eq!(place_of(131_071), (0, FILE_SIZE_MAX - 8192));
        assert_eq!(place_of(131_072), (1, 0));
    }

    #[test]
    fn new_files_have_a_servers_permissions() {
        let directory = tempfile::tempdir().unwrap();
        for (of_root, of_file, of_directory) in [(0o700, 0o600, 0o700), (0o750, 0o640, 0o750)] {
            let permissions = std::fs::Permissions::from_mode(of_root);
            std::fs::set_permissions(directory.path(), permissions).unwrap();
            let layout = Layout::new(directory.path()).unwrap();
            let path = layout.at(&format!("base/{of_root}/16384"));
            layout.open_or_create(&path).unwrap();
            let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&path), of_file);
            assert_eq!(mode(path.parent().unwrap()), of_directory);
        }
    }
}
