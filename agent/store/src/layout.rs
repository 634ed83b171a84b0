//! Where things are in a data directory, and with which permissions.
//!
//! ```text
//! base/<database>/<relation>[_fsm|_vm|_init][.<n>]     files of 1 GB each, the first without .<n>
//! global/<relation>...                                 shared relations
//! global/pg_control
//! pg_xact/<4 hex digits>                               transaction status
//! postmaster.pid, walferry.lock                        see `lock.rs`
//! ```
//!
//! Rules: `GetRelationPath` in `src/common/relpath.c`, `_mdfd_segpath` in
//! `src/backend/storage/smgr/md.c`, `src/common/file_perm.c`.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use walfmt::RelFileLocator;
use walfmt::relation::{
    BLOCK_SIZE, BLOCKS_PER_FILE, BlockNumber, DEFAULT_TABLESPACE, GLOBAL_TABLESPACE, RelFork,
};

use crate::error::FileError;

/// A full relation file's length, in bytes.
pub(crate) const FILE_SIZE_MAX: u64 = BLOCKS_PER_FILE as u64 * BLOCK_SIZE as u64;

/// The paths of one data directory.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
    group_access: bool,
}

impl Layout {
    /// The layout of the data directory `root`, which must exist. As a server does, new files are
    /// open to the group if the directory is.
    pub(crate) fn new(root: &Path) -> Result<Self, FileError> {
        let metadata = std::fs::metadata(root).map_err(FileError::of("open", root))?;
        let root = std::path::absolute(root).map_err(FileError::of("open", root))?;
        Ok(Self { root, group_access: metadata.permissions().mode() & 0o050 == 0o050 })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// A file or directory by its name relative to the data directory.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Whether the relation lies in `pg_default` or `pg_global`.
    pub(crate) const fn holds(locator: RelFileLocator) -> bool {
        match locator.tablespace {
            DEFAULT_TABLESPACE => locator.database != 0,
            GLOBAL_TABLESPACE => locator.database == 0,
            _ => false,
        }
    }

    /// The `number`th file of a fork. The relation must be one that the store [holds](Self::holds).
    pub(crate) fn fork_file(&self, fork: RelFork, number: u32) -> PathBuf {
        let RelFileLocator { tablespace, database, relation } = fork.locator;
        let suffix = fork.fork.file_suffix();
        let directory = if tablespace == GLOBAL_TABLESPACE {
            "global".to_owned()
        } else {
            format!("base/{database}")
        };
        self.root.join(match number {
            0 => format!("{directory}/{relation}{suffix}"),
            _ => format!("{directory}/{relation}{suffix}.{number}"),
        })
    }

    /// Opens a file for reading and writing, and creates it if it is not there; its directory too,
    /// as a server in recovery does (`TablespaceCreateDbspace`).
    pub(crate) fn open_or_create(&self, path: &Path) -> Result<File, FileError> {
        let open = || {
            let mode = if self.group_access { 0o640 } else { 0o600 };
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(mode).open(path)
        };
        let opened = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.create_directory(path.parent().unwrap_or(&self.root))?;
                open()
            }
            opened => opened,
        };
        opened.map_err(FileError::of("open", path))
    }

    fn create_directory(&self, path: &Path) -> Result<(), FileError> {
        let mode = if self.group_access { 0o750 } else { 0o700 };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(FileError::of("create", path))
    }
}

/// Which of a fork's files a block is in, and where in it, in bytes.
pub(crate) const fn place_of(block: BlockNumber) -> (u32, u64) {
    (block / BLOCKS_PER_FILE, (block % BLOCKS_PER_FILE) as u64 * BLOCK_SIZE as u64)
}

/// Opens an existing file for reading and writing; nothing if it is not there.
pub(crate) fn open_existing(path: &Path) -> Result<Option<File>, FileError> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(FileError::of("open", path)(error)),
    }
}

/// Removes a file; whether it was there.
pub(crate) fn remove_file(path: &Path) -> Result<bool, FileError> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(FileError::of("remove", path)(error)),
    }
}

/// Makes the names in a directory durable.
pub(crate) fn sync_directory(path: &Path) -> Result<(), FileError> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(FileError::of("sync", path))
}

#[cfg(test)]
mod tests {
    use walfmt::ForkNumber;

    use super::*;

    #[test]
    fn paths_are_postgresqls() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path()).unwrap();
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
        ];
        for (fork, number, name) in cases {
            assert_eq!(layout.fork_file(fork, number), layout.at(name));
            assert!(Layout::holds(fork.locator));
        }
        for (tablespace, database) in [(16400, 5), (1664, 5), (1663, 0)] {
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
