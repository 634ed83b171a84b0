//! Files in memory that can lose what was not synced.
//!
//! [`LossyFiles`] keeps what a program sees ("live") apart from what a disk is sure to have
//! ("durable"). [`LossyFiles::crash`] makes the disk's version the live one, with whatever of the
//! rest a seed decides to have survived:
//!
//! - each 512-byte sector on its own: as written, or as it was last synced, or zeros if it is new;
//! - the length: anything between the synced one and the live one;
//! - each change of a directory on its own, unless the directory was synced after it.
//!
//! A rename is one change: it happened or it did not.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::files::{File, FileError, Files, Lock};

const SECTOR_BYTES: usize = 512;

/// Files in memory that can lose what was not synced. Clones share the files.
#[derive(Clone, Debug, Default)]
pub struct LossyFiles {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    inodes: Vec<Inode>,
    live: BTreeMap<PathBuf, usize>,
    durable: BTreeMap<PathBuf, usize>,
    /// Since the last sync of their directory, in order.
    changes: Vec<Change>,
    locks: BTreeSet<PathBuf>,
    trace: Vec<String>,
    lies_about_sync: bool,
    fails_at: Option<usize>,
}

#[derive(Debug, Default)]
struct Inode {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Before this, live and durable are the same.
    same: usize,
}

#[derive(Clone, Debug)]
enum Change {
    Create(PathBuf, usize),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl LossyFiles {
    /// No files yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The calls so far that change or sync something, in order, with file names without their
    /// directory: `write 0000000100000000000000A1.zst 0+4096`, `fdatasync ...`, `sync_dir ...`.
    #[must_use]
    pub fn trace(&self) -> Vec<String> {
        self.state().trace.clone()
    }

    /// From now on syncing does nothing, like a disk that lies. For negative controls.
    pub fn lie_about_sync(&self) {
        self.state().lies_about_sync = true;
    }

    /// After `calls` more calls that change or sync something, all of them fail with EIO.
    pub fn fail_after(&self, calls: usize) {
        let mut state = self.state();
        state.fails_at = Some(state.trace.len() + calls);
    }

    /// Loses power. Returns how many sectors, lengths and names were lost. Handles that are open
    /// must not be used afterwards; locks are released.
    pub fn crash(&self, seed: u64) -> usize {
        let mut random = Random(seed);
        let mut state = self.state();
        let state = &mut *state;
        let mut faults = 0;
        for inode in &mut state.inodes {
            faults += inode.crash(&mut random);
        }
        for change in std::mem::take(&mut state.changes) {
            if random.below(2) == 0 {
                faults += 1;
            } else {
                change.apply(&mut state.durable);
            }
        }
        state.live = state.durable.clone();
        state.locks.clear();
        state.fails_at = None;
        state.trace.push(format!("crash {seed}"));
        faults
    }

    /// A file's live bytes.
    #[must_use]
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        state.live.get(path).map(|&inode| state.inodes[inode].live.clone())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self, path: &Path, create: bool) -> Result<Box<dyn File>, FileError> {
        let mut state = self.state();
        let found = state.live.get(path).copied();
        let inode = match found {
            Some(inode) => inode,
            None if create => {
                state.record("create", path, "")?;
                let inode = state.inodes.len();
                state.inodes.push(Inode::default());
                state.live.insert(path.to_owned(), inode);
                state.changes.push(Change::Create(path.to_owned(), inode));
                inode
            }
            None => return Err(not_found("open", path)),
        };
        Ok(Box::new(LossyFile { files: self.clone(), inode, path: path.to_owned() }))
    }
}

impl Files for LossyFiles {
    fn open_read(&self, path: &Path) -> Result<Box<dyn File>, FileError> {
        self.open(path, false)
    }

    fn open_append(&self, path: &Path) -> Result<Box<dyn File>, FileError> {
        self.open(path, true)
    }

    fn create_dir(&self, _path: &Path) -> Result<(), FileError> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, FileError> {
        let state = self.state();
        let inside = state.live.keys().filter(|path| path.parent() == Some(dir));
        Ok(inside.map(|path| name(path)).collect())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        let mut state = self.state();
        state.record("rename", from, &format!(" {}", name(to)))?;
        if !state.live.contains_key(from) {
            return Err(not_found("rename", from));
        }
        state.change(Change::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), FileError> {
        let mut state = self.state();
        state.record("remove", path, "")?;
        if !state.live.contains_key(path) {
            return Err(not_found("remove", path));
        }
        state.change(Change::Remove(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), FileError> {
        let mut state = self.state();
        state.record("sync_dir", dir, "")?;
        if !state.lies_about_sync {
            let (here, elsewhere) = std::mem::take(&mut state.changes)
                .into_iter()
                .partition(|change| change.path().parent() == Some(dir));
            state.changes = elsewhere;
            let here: Vec<Change> = here;
            for change in here {
                change.apply(&mut state.durable);
            }
        }
        Ok(())
    }

    fn lock(&self, path: &Path) -> Result<Option<Box<dyn Lock>>, FileError> {
        let free = self.state().locks.insert(path.to_owned());
        Ok(free.then(|| {
            Box::new(LossyLock { files: self.clone(), path: path.to_owned() }) as Box<dyn Lock>
        }))
    }
}

impl State {
    fn record(&mut self, call: &'static str, path: &Path, rest: &str) -> Result<(), FileError> {
        if self.fails_at.is_some_and(|at| self.trace.len() >= at) {
            return Err(FileError::new(call, path, io::Error::other("injected fault")));
        }
        self.trace.push(format!("{call} {}{rest}", name(path)));
        Ok(())
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.live);
        self.changes.push(change);
    }
}

impl Change {
    fn path(&self) -> &Path {
        match self {
            Self::Create(path, _) | Self::Rename(path, _) | Self::Remove(path) => path,
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, usize>) {
        match self {
            Self::Create(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }
}

impl Inode {
    fn changed(&mut self, from: usize) {
        self.same = self.same.min(from);
    }

    fn sync(&mut self) {
        self.durable.truncate(self.same);
        self.durable.extend_from_slice(&self.live[self.same..]);
        self.same = self.live.len();
    }

    fn crash(&mut self, random: &mut Random) -> usize {
        if self.same == self.live.len() && self.same == self.durable.len() {
            return 0;
        }
        let (short, long) = {
            let (a, b) = (self.live.len(), self.durable.len());
            (a.min(b), a.max(b))
        };
        // How bad: nothing lost, only the end lost, or sectors lost as well.
        let severity = random.below(4);
        let length = match severity {
            0 => self.live.len(),
            _ if random.below(3) == 0 => self.live.len(),
            _ => short + random.below(long - short + 1),
        };
        let mut faults = usize::from(length != self.live.len());
        let mut survived = vec![0; length];
        let mut sector = self.same / SECTOR_BYTES * SECTOR_BYTES;
        let kept = sector.min(length);
        survived[..kept].copy_from_slice(&self.live[..kept]);
        while sector < length {
            let end = (sector + SECTOR_BYTES).min(length);
            let lost = severity >= 2 && random.below(if severity == 2 { 20 } else { 3 }) == 0;
            let source = if lost { &self.durable } else { &self.live };
            faults += usize::from(lost);
            let available = source.len().clamp(sector, end);
            if available > sector {
                survived[sector..available].copy_from_slice(&source[sector..available]);
            }
            sector = end;
        }
        self.live.clone_from(&survived);
        self.durable = survived;
        self.same = length;
        faults
    }
}

#[derive(Debug)]
struct LossyFile {
    files: LossyFiles,
    inode: usize,
    path: PathBuf,
}

impl File for LossyFile {
    /// Nothing here has an age.
    fn modified(&self) -> Result<SystemTime, FileError> {
        Ok(SystemTime::UNIX_EPOCH)
    }

    fn len(&self) -> Result<u64, FileError> {
        Ok(self.files.state().inodes[self.inode].live.len() as u64)
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, FileError> {
        let state = self.files.state();
        let live = &state.inodes[self.inode].live;
        let from = usize::try_from(offset).unwrap_or(usize::MAX).min(live.len());
        let count = buffer.len().min(live.len() - from);
        buffer[..count].copy_from_slice(&live[from..from + count]);
        Ok(count)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        let mut state = self.files.state();
        state.record("write", &self.path, &format!(" {offset}+{}", bytes.len()))?;
        let inode = &mut state.inodes[self.inode];
        let from = usize::try_from(offset).expect("a test file fits into memory");
        let end = from + bytes.len();
        inode.changed(from.min(inode.live.len()));
        if inode.live.len() < end {
            inode.live.resize(end, 0);
        }
        inode.live[from..end].copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, length: u64) -> Result<(), FileError> {
        let mut state = self.files.state();
        state.record("set_len", &self.path, &format!(" {length}"))?;
        let inode = &mut state.inodes[self.inode];
        let length = usize::try_from(length).expect("a test file fits into memory");
        inode.changed(length.min(inode.live.len()));
        inode.live.resize(length, 0);
        Ok(())
    }

    fn fdatasync(&self) -> Result<(), FileError> {
        let mut state = self.files.state();
        state.record("fdatasync", &self.path, "")?;
        if !state.lies_about_sync {
            state.inodes[self.inode].sync();
        }
        Ok(())
    }
}

#[derive(Debug)]
struct LossyLock {
    files: LossyFiles,
    path: PathBuf,
}

impl Lock for LossyLock {}

impl Drop for LossyLock {
    fn drop(&mut self) {
        self.files.state().locks.remove(&self.path);
    }
}

/// SplitMix64: small, and the same on every machine.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 up to, not including, `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.draw() % end as u64) as usize
    }
}

fn name(path: &Path) -> String {
    path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

fn not_found(operation: &'static str, path: &Path) -> FileError {
    FileError::new(operation, path, io::Error::from(io::ErrorKind::NotFound))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_synced_survives_and_the_rest_may_not() {
        let path = Path::new("/a/b");
        let (mut whole, mut lost, mut nameless) = (0, 0, 0);
        for seed in 0..200 {
            let files = LossyFiles::new();
            let file = files.open_append(path).expect("created");
            file.write_at(0, &[1; 700]).expect("written");
            file.fdatasync().expect("synced");
            if seed % 2 == 0 {
                files.sync_dir(Path::new("/a")).expect("synced");
            }
            file.write_at(700, &[2; 3000]).expect("written");
            files.crash(seed);
            match files.content(path) {
                None => {
                    assert!(seed % 2 == 1, "the name was synced");
                    nameless += 1;
                }
                Some(content) => {
                    assert_eq!(content[..700], [1; 700]);
                    let all = content.len() == 3700 && content[700..].iter().all(|&b| b == 2);
                    *(if all { &mut whole } else { &mut lost }) += 1;
                }
            }
        }
        assert!(whole > 10 && lost > 50 && nameless > 20, "{whole} {lost} {nameless}");
    }

    #[test]
    fn the_same_seed_loses_the_same() {
        let run = || {
            let files = LossyFiles::new();
            let file = files.open_append(Path::new("/a/b")).expect("created");
            files.sync_dir(Path::new("/a")).expect("synced");
            file.write_at(0, &[7; 100_000]).expect("written");
            (files.crash(42), files.content(Path::new("/a/b")))
        };
        assert_eq!(run(), run());
    }
}
