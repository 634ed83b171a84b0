//! The file calls of the archive and of the tail, behind one small trait.
//!
//! Durability rests on *which calls are made in which order*, so that order must be testable: in
//! tests these calls go to `testing::LossyFiles`, which forgets what was not synced. Nothing
//! else is abstracted: no buffering, no handles that remember a position.

use std::fmt;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// A file system, as far as it is needed here.
pub trait Files: Send + Sync + fmt::Debug {
    /// Opens an existing file for reading. [`File::fdatasync`] works on it too.
    fn open_read(&self, path: &Path) -> Result<Box<dyn File>, FileError>;

    /// Opens a file for reading and writing, creating it empty if it is absent. A new name is
    /// durable only after [`Files::sync_dir`] of its directory.
    fn open_append(&self, path: &Path) -> Result<Box<dyn File>, FileError>;

    /// Makes a directory and those above it; no error if it is there.
    fn create_dir(&self, path: &Path) -> Result<(), FileError>;

    /// The names of what a directory holds, in no particular order. Names that are not UTF-8 are
    /// left out: none of ours are like that.
    fn list(&self, dir: &Path) -> Result<Vec<String>, FileError>;

    /// Gives a file another name, in place of any file that has it.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError>;

    /// Removes a name.
    fn remove(&self, path: &Path) -> Result<(), FileError>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> Result<(), FileError>;

    /// Takes the exclusive lock of a file, creating it if absent; nothing if someone holds it.
    /// Dropping what is returned, or the end of the process, releases it.
    fn lock(&self, path: &Path) -> Result<Option<Box<dyn Lock>>, FileError>;
}

/// An open file.
pub trait File: Send + Sync + fmt::Debug {
    /// Its length in bytes at this moment.
    fn len(&self) -> Result<u64, FileError>;

    /// Whether it is empty at this moment.
    fn is_empty(&self) -> Result<bool, FileError> {
        Ok(self.len()? == 0)
    }

    /// When its bytes were last changed.
    fn modified(&self) -> Result<SystemTime, FileError>;

    /// Fills `buffer` from `offset` on, as far as the file goes. Fewer bytes than asked for mean
    /// that the file ended there.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, FileError>;

    /// Writes all of `bytes` at `offset`, growing the file as needed.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError>;

    /// Cuts the file to `length`, or grows it with zeros.
    fn set_len(&self, length: u64) -> Result<(), FileError>;

    /// Makes the bytes and the length durable. After an error the kernel may have dropped the
    /// bytes, so a second call proves nothing: the caller must not go on.
    fn fdatasync(&self) -> Result<(), FileError>;
}

/// A lock that is held until this is dropped.
pub trait Lock: Send + Sync + fmt::Debug {}

const FDATASYNC: &str = "fdatasync";
const SYNC_DIRECTORY: &str = "sync directory";

/// A file call that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {source}", .path.display())]
pub struct FileError {
    /// What was tried, as a verb: `open`, `write`, `fdatasync`.
    pub operation: &'static str,
    /// On which file or directory.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

impl FileError {
    /// Names the operation and the path of an operating system error.
    #[must_use]
    pub fn new(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self { operation, path: path.to_owned(), source }
    }

    /// Whether it was a sync. Then the kernel may have dropped the bytes, and may call the next sync
    /// a success.
    #[must_use]
    pub fn is_sync(&self) -> bool {
        matches!(self.operation, FDATASYNC | SYNC_DIRECTORY)
    }

    /// Whether the file was not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsFiles;

impl Files for OsFiles {
    fn open_read(&self, path: &Path) -> Result<Box<dyn File>, FileError> {
        open(path, std::fs::OpenOptions::new().read(true))
    }

    fn open_append(&self, path: &Path) -> Result<Box<dyn File>, FileError> {
        // Not O_APPEND: Linux then ignores the offset of a positioned write.
        open(path, std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false))
    }

    fn create_dir(&self, path: &Path) -> Result<(), FileError> {
        std::fs::create_dir_all(path).map_err(|error| FileError::new("create", path, error))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, FileError> {
        let failed = |error| FileError::new("list", dir, error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string());
        }
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        std::fs::rename(from, to).map_err(|error| FileError::new("rename", from, error))
    }

    fn remove(&self, path: &Path) -> Result<(), FileError> {
        std::fs::remove_file(path).map_err(|error| FileError::new("remove", path, error))
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), FileError> {
        std::fs::File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|error| FileError::new(SYNC_DIRECTORY, dir, error))
    }

    fn lock(&self, path: &Path) -> Result<Option<Box<dyn Lock>>, FileError> {
        let failed = |error| FileError::new("lock", path, error);
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(failed)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(OsLock { _file: file }))),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(error)) => Err(failed(error)),
        }
    }
}

fn open(path: &Path, options: &std::fs::OpenOptions) -> Result<Box<dyn File>, FileError> {
    let file = options.open(path).map_err(|error| FileError::new("open", path, error))?;
    Ok(Box::new(OsFile { file, path: path.to_owned() }))
}

#[derive(Debug)]
struct OsFile {
    file: std::fs::File,
    path: PathBuf,
}

impl OsFile {
    fn failed(&self, operation: &'static str) -> impl FnOnce(io::Error) -> FileError {
        move |error| FileError::new(operation, &self.path, error)
    }
}

impl File for OsFile {
    fn len(&self) -> Result<u64, FileError> {
        Ok(self.file.metadata().map_err(self.failed("inspect"))?.len())
    }

    fn modified(&self) -> Result<SystemTime, FileError> {
        self.file.metadata().and_then(|found| found.modified()).map_err(self.failed("inspect"))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, FileError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.failed("read")(error)),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all_at(bytes, offset).map_err(self.failed("write"))
    }

    fn set_len(&self, length: u64) -> Result<(), FileError> {
        self.file.set_len(length).map_err(self.failed("truncate"))
    }

    fn fdatasync(&self) -> Result<(), FileError> {
        self.file.sync_data().map_err(self.failed(FDATASYNC))
    }
}

#[derive(Debug)]
struct OsLock {
    _file: std::fs::File,
}

impl Lock for OsLock {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operating_systems_files() {
        let dir = tempfile::tempdir().expect("scratch directory");
        let path = dir.path().join("a");
        let missing = OsFiles.open_read(&path).expect_err("absent");
        assert!(missing.is_not_found());
        assert!(missing.to_string().starts_with(&format!("cannot open {}", path.display())));

        let file = OsFiles.open_append(&path).expect("created");
        file.write_at(0, b"hello").expect("written");
        file.write_at(3, b"p!").expect("written");
        let reader = OsFiles.open_read(&path).expect("opened");
        let mut buffer = [0; 8];
        assert_eq!(reader.read_at(1, &mut buffer).expect("read"), 4);
        assert_eq!(&buffer[..4], b"elp!");
        reader.fdatasync().expect("a read-only descriptor can be synced");
        file.set_len(2).expect("cut");
        assert_eq!(reader.len().expect("length"), 2);

        OsFiles.rename(&path, &dir.path().join("b")).expect("renamed");
        OsFiles.sync_dir(dir.path()).expect("synced");
        assert_eq!(OsFiles.list(dir.path()).expect("listed"), ["b"]);
    }

    #[test]
    fn a_lock_is_exclusive_until_dropped() {
        let dir = tempfile::tempdir().expect("scratch directory");
        let path = dir.path().join(".lock");
        let held = OsFiles.lock(&path).expect("no error").expect("free");
        assert!(OsFiles.lock(&path).expect("no error").is_none());
        drop(held);
        assert!(OsFiles.lock(&path).expect("no error").is_some());
    }
}
