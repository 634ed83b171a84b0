//! The store's file calls, behind one small trait.
//!
//! Durability rests on *which calls are made in which order*, so that order must be testable: in
//! tests these calls go to `testing::LossyDisk`, which forgets what was not synced, tears pages
//! and fails when told to. Nothing else is abstracted: no buffering, no handles that remember a
//! position. A new name is durable only after [`Disk::sync_directory`] of its directory, or a sync
//! of its whole [file system](FileSystem).

use std::fmt;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::FileError;

/// A disk, as far as the store needs one.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Opens a file for reading and writing.
    fn open(&self, path: &Path, how: OpenHow) -> Result<Box<dyn DiskFile>, FileError>;

    /// What lies at this path, symbolic links followed.
    fn metadata(&self, path: &Path) -> Result<Metadata, FileError>;

    /// What a directory holds, in no particular order. Names that are not UTF-8 are left out: no
    /// name that PostgreSQL gives is like that.
    fn list(&self, directory: &Path) -> Result<Vec<Entry>, FileError>;

    /// Makes a directory and those above it; no error if it is there.
    fn create_directory(&self, path: &Path, mode: u32) -> Result<(), FileError>;

    /// Makes a symbolic link at `path` that points to `target`.
    fn create_link(&self, target: &Path, path: &Path) -> Result<(), FileError>;

    /// Where a symbolic link points.
    fn read_link(&self, path: &Path) -> Result<PathBuf, FileError>;

    /// Gives a file another name, in place of any file that has it.
    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError>;

    /// Removes the name of a file or a symbolic link.
    fn remove(&self, path: &Path) -> Result<(), FileError>;

    /// Removes an empty directory.
    fn remove_directory(&self, path: &Path) -> Result<(), FileError>;

    /// Copies a file's bytes to a file that does not exist yet. Where the file system can, the two
    /// share their blocks.
    fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<(), FileError>;

    /// Makes the names in a directory durable.
    fn sync_directory(&self, path: &Path) -> Result<(), FileError>;

    /// The file system that a directory lies on, held open.
    fn file_system(&self, directory: &Path) -> Result<Box<dyn FileSystem>, FileError>;
}

/// An open file.
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// What it is at this moment.
    fn metadata(&self) -> Result<Metadata, FileError>;

    /// Fills `buffer` from `offset` on, as far as the file goes. Fewer bytes than asked for mean
    /// that the file ended there.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, FileError>;

    /// Writes all of `bytes` at `offset`, growing the file as needed.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError>;

    /// Cuts the file to `length`, or grows it with zeros.
    fn set_len(&self, length: u64) -> Result<(), FileError>;

    /// Makes the bytes and the length durable, not the name. After an error the kernel may have
    /// dropped the bytes, so a second call proves nothing.
    fn sync(&self) -> Result<(), FileError>;

    /// Takes the file's exclusive lock, until it is dropped; `false` if somebody holds it.
    fn try_lock(&self) -> Result<bool, FileError>;
}

/// A file system, open since some moment: its sync reports every write error since then.
pub trait FileSystem: Send + Sync + fmt::Debug {
    /// Its device number.
    fn device(&self) -> u64;

    /// Makes everything on it durable: bytes, lengths and names.
    fn sync(&self) -> Result<(), FileError>;
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenHow {
    /// It must be there.
    Existing,
    /// It is made, with these permissions, if it is not there.
    OrCreate(u32),
    /// It is made, with these permissions, and must not be there.
    CreateNew(u32),
}

/// What is known of a file or directory without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// The length of a file, in bytes.
    pub length: u64,
    /// The permission bits.
    pub mode: u32,
    /// Device and inode: two paths with the same identity are one file.
    pub identity: (u64, u64),
    /// Whether it is a directory.
    pub is_directory: bool,
}

/// Something in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name, without the directory.
    pub name: String,
    /// What it is.
    pub kind: EntryKind,
}

/// What a name in a directory stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A file, or something that is none of the others.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, wherever it points.
    Link,
}

/// The operating system's files.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn open(&self, path: &Path, how: OpenHow) -> Result<Box<dyn DiskFile>, FileError> {
        let mut options = std::fs::OpenOptions::new();
        options.read(true).write(true);
        match how {
            OpenHow::Existing => {}
            OpenHow::OrCreate(mode) => {
                options.create(true).truncate(false).mode(mode);
            }
            OpenHow::CreateNew(mode) => {
                options.create_new(true).mode(mode);
            }
        }
        let file = options.open(path).map_err(FileError::of("open", path))?;
        Ok(Box::new(OsFile { file, path: path.to_owned() }))
    }

    fn metadata(&self, path: &Path) -> Result<Metadata, FileError> {
        let metadata = std::fs::metadata(path).map_err(FileError::of("look at", path))?;
        Ok(Metadata::of(&metadata))
    }

    fn list(&self, directory: &Path) -> Result<Vec<Entry>, FileError> {
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(directory).map_err(FileError::of("list", directory))? {
            let entry = entry.map_err(FileError::of("list", directory))?;
            let kind = entry.file_type().map_err(FileError::of("look at", &entry.path()))?;
            let kind = match kind {
                kind if kind.is_dir() => EntryKind::Directory,
                kind if kind.is_symlink() => EntryKind::Link,
                _ => EntryKind::File,
            };
            if let Ok(name) = entry.file_name().into_string() {
                entries.push(Entry { name, kind });
            }
        }
        Ok(entries)
    }

    fn create_directory(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(path)
            .map_err(FileError::of("create", path))
    }

    fn create_link(&self, target: &Path, path: &Path) -> Result<(), FileError> {
        std::os::unix::fs::symlink(target, path).map_err(FileError::of("create", path))
    }

    fn read_link(&self, path: &Path) -> Result<PathBuf, FileError> {
        std::fs::read_link(path).map_err(FileError::of("read", path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        std::fs::rename(from, to).map_err(FileError::of("rename", from))
    }

    fn remove(&self, path: &Path) -> Result<(), FileError> {
        std::fs::remove_file(path).map_err(FileError::of("remove", path))
    }

    fn remove_directory(&self, path: &Path) -> Result<(), FileError> {
        std::fs::remove_dir(path).map_err(FileError::of("remove", path))
    }

    fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<(), FileError> {
        let mut source = std::fs::File::open(from).map_err(FileError::of("open", from))?;
        let mut target = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(to)
            .map_err(FileError::of("create", to))?;
        // Between files this is copy_file_range, which shares blocks where the file system can.
        io::copy(&mut source, &mut target).map(drop).map_err(FileError::of("copy to", to))
    }

    fn sync_directory(&self, path: &Path) -> Result<(), FileError> {
        std::fs::File::open(path)
            .and_then(|directory| directory.sync_all())
            .map_err(FileError::of("sync", path))
    }

    fn file_system(&self, directory: &Path) -> Result<Box<dyn FileSystem>, FileError> {
        let opened = std::fs::File::open(directory).map_err(FileError::of("open", directory))?;
        let metadata = opened.metadata().map_err(FileError::of("look at", directory))?;
        let path = directory.to_owned();
        Ok(Box::new(OsFileSystem { directory: opened, device: metadata.dev(), path }))
    }
}

impl Metadata {
    fn of(metadata: &std::fs::Metadata) -> Self {
        Self {
            length: metadata.len(),
            mode: metadata.mode() & 0o7777,
            identity: (metadata.dev(), metadata.ino()),
            is_directory: metadata.is_dir(),
        }
    }
}

#[derive(Debug)]
struct OsFile {
    file: std::fs::File,
    path: PathBuf,
}

impl DiskFile for OsFile {
    fn metadata(&self) -> Result<Metadata, FileError> {
        let metadata = self.file.metadata().map_err(FileError::of("look at", &self.path))?;
        Ok(Metadata::of(&metadata))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, FileError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.file.read_at(&mut buffer[filled..], offset + filled as u64) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(FileError::of("read", &self.path)(error)),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        self.file.write_all_at(bytes, offset).map_err(FileError::of("write", &self.path))
    }

    fn set_len(&self, length: u64) -> Result<(), FileError> {
        self.file.set_len(length).map_err(FileError::of("set the length of", &self.path))
    }

    fn sync(&self) -> Result<(), FileError> {
        self.file.sync_all().map_err(FileError::of("sync", &self.path))
    }

    fn try_lock(&self) -> Result<bool, FileError> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(std::fs::TryLockError::WouldBlock) => Ok(false),
            Err(std::fs::TryLockError::Error(error)) => {
                Err(FileError::of("lock", &self.path)(error))
            }
        }
    }
}

#[derive(Debug)]
struct OsFileSystem {
    directory: std::fs::File,
    device: u64,
    path: PathBuf,
}

impl FileSystem for OsFileSystem {
    fn device(&self) -> u64 {
        self.device
    }

    fn sync(&self) -> Result<(), FileError> {
        rustix::fs::syncfs(&self.directory)
            .map_err(|errno| FileError::of("sync the file system of", &self.path)(errno.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operating_systems_files() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        let missing = OsDisk.open(&at("a"), OpenHow::Existing).unwrap_err();
        assert!(missing.is_not_found());
        assert!(missing.to_string().starts_with(&format!("cannot open {}", at("a").display())));

        let file = OsDisk.open(&at("a"), OpenHow::CreateNew(0o600)).unwrap();
        assert!(OsDisk.open(&at("a"), OpenHow::CreateNew(0o600)).is_err());
        file.write_at(0, b"hello").unwrap();
        file.write_at(3, b"p!").unwrap();
        let mut buffer = [0; 8];
        assert_eq!(file.read_at(1, &mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"elp!");
        file.set_len(2).unwrap();
        file.sync().unwrap();
        let metadata = OsDisk.metadata(&at("a")).unwrap();
        assert_eq!((metadata.length, metadata.mode, metadata.is_directory), (2, 0o600, false));
        assert_eq!(file.metadata().unwrap(), metadata);

        OsDisk.copy(&at("a"), &at("b"), 0o640).unwrap();
        assert!(OsDisk.copy(&at("a"), &at("b"), 0o640).is_err(), "never over a file");
        OsDisk.rename(&at("b"), &at("c")).unwrap();
        OsDisk.create_directory(&at("d/e"), 0o700).unwrap();
        OsDisk.create_link(Path::new("d"), &at("f")).unwrap();
        assert_eq!(OsDisk.read_link(&at("f")).unwrap(), Path::new("d"));
        OsDisk.sync_directory(scratch.path()).unwrap();
        OsDisk.file_system(scratch.path()).unwrap().sync().unwrap();
        let mut entries = OsDisk.list(scratch.path()).unwrap();
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        let kinds: Vec<_> = entries.iter().map(|entry| (&*entry.name, entry.kind)).collect();
        assert_eq!(
            kinds,
            [
                ("a", EntryKind::File),
                ("c", EntryKind::File),
                ("d", EntryKind::Directory),
                ("f", EntryKind::Link)
            ]
        );
        OsDisk.remove(&at("f")).unwrap();
        OsDisk.remove_directory(&at("d/e")).unwrap();
        assert!(OsDisk.list(&at("d")).unwrap().is_empty(), "the link went, not what it shows");
    }

    #[test]
    fn a_lock_is_exclusive_until_dropped() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("lock");
        let open = || OsDisk.open(&path, OpenHow::OrCreate(0o600)).unwrap();
        let held = open();
        assert!(held.try_lock().unwrap());
        assert!(!open().try_lock().unwrap());
        drop(held);
        assert!(open().try_lock().unwrap());
    }
}
