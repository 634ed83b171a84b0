//! A disk that loses what was not synced, tears pages and fails when told to.
//!
//! What the store sees are real files ("live"). Beside them [`LossyDisk`] keeps what a disk would be
//! sure to have ("durable"), as far as it differs. [`LossyDisk::crash`] makes the directory what a
//! power cut might have left, with whatever of the rest a seed decides to have survived:
//!
//! - each 4 kB sector on its own: as written last, or as it was when last synced, or as the kernel
//!   may have written it meanwhile. A page has two of them, so pages are torn;
//! - the length of a file: the synced one, the live one, or one between at the end of a sector;
//! - each name that came, went or changed, on its own, unless its directory or the file system was
//!   synced after it. A rename is one change: it happened or it did not. Syncing a file does not
//!   make its name durable.
//!
//! The power goes at a moment that the test chooses: [`crash_after`](LossyDisk::crash_after) some
//! calls, in the middle of one. A write then ends at a sector.
//!
//! A sync that fails leaves the sectors as Linux does: some are durable; the others are clean, can
//! still be read, will not be written by a later sync, and are gone after a crash.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::{Disk, DiskFile, Entry, EntryKind, FileSystem, Metadata, OpenHow, OsDisk};
use crate::error::FileError;

/// What a disk writes at once.
pub const SECTOR_BYTES: usize = 4096;

const WRITE: &str = "write";
/// All actions that sync begin so.
const SYNC: &str = "sync";

const SECTOR: u64 = SECTOR_BYTES as u64;
const SECTORS_PER_PAGE: u64 = (walfmt::BLOCK_SIZE / SECTOR_BYTES) as u64;

/// A disk that can lose what was not synced. Clones are the same disk.
#[derive(Clone)]
pub struct LossyDisk {
    state: Arc<Mutex<State>>,
}

/// What a crash took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Sectors that had been written and are not there.
    pub sectors: u64,
    /// Pages of which one sector is as written and the other is not.
    pub torn_pages: u64,
    /// Files with another length than they had.
    pub lengths: u64,
    /// Names that came back, are not there, or are as before a rename.
    pub names: u64,
}

/// Which syncs do nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// All.
    All,
    /// Those of file systems only.
    FileSystems,
}

/// How calls fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The disk is full: what needs space fails.
    NoSpace,
    /// Whatever writes or syncs fails.
    Io,
    /// Syncs fail: the kernel takes what is written and cannot bring it to the disk.
    Sync,
}

struct State {
    /// Where removed files wait for their removal to be durable.
    attic: PathBuf,
    nodes: HashMap<Inode, Node>,
    /// Changes of names that are not durable, oldest first.
    changes: Vec<Change>,
    random: Random,
    /// Calls so far that change or sync something.
    calls: u64,
    /// Those of them that are not writes.
    rare_calls: u64,
    /// Handles of a life before the last crash are dead.
    life: u64,
    power: Power,
    fault: Option<(u64, Fault)>,
    faults_injected: u64,
    lie: Option<Lie>,
    /// The call in the middle of which the power went or that failed first.
    broke: Option<(&'static str, PathBuf)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Power {
    On,
    /// It goes at the call with this number.
    UntilCall(u64),
    /// The same among those that are not writes.
    UntilRareCall(u64),
    Off,
}

type Inode = u64;

/// A file, or anything else that has a name.
struct Node {
    path: PathBuf,
    durable_length: u64,
    /// What the disk has of the sectors that were written since they were synced.
    unsynced: BTreeMap<u64, Sector>,
    /// The same of those that a failed sync gave up.
    given_up: BTreeMap<u64, Sector>,
}

/// Nothing if it is all zeros.
type Sector = Option<Box<[u8; SECTOR_BYTES]>>;

enum Change {
    Add { path: PathBuf, node: Inode },
    Remove { path: PathBuf, node: Inode },
    Rename { from: PathBuf, to: PathBuf, node: Inode, replaced: Option<Inode> },
}

type Names = BTreeMap<PathBuf, Option<Inode>>;

impl LossyDisk {
    /// A disk with everything that is there now durable. `attic` is an empty directory on the same
    /// file system, which nobody else uses.
    #[must_use]
    pub fn new(attic: &Path, seed: u64) -> Self {
        let state = State {
            attic: attic.to_owned(),
            nodes: HashMap::new(),
            changes: Vec::new(),
            random: Random(seed),
            calls: 0,
            rare_calls: 0,
            life: 0,
            power: Power::On,
            fault: None,
            faults_injected: 0,
            lie: None,
            broke: None,
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// From now on some syncing does nothing, like a disk that lies. For negative controls.
    pub fn lose_synced(&self, lie: Lie) {
        self.state().lie = Some(lie);
    }

    /// The power goes in the middle of the call after `calls` more ones that change or sync
    /// something. From then on every call fails, until [`crash`](Self::crash).
    pub fn crash_after(&self, calls: u64) {
        let mut state = self.state();
        state.power = Power::UntilCall(state.calls + calls);
    }

    /// The same, but writes do not count: most calls are writes.
    pub fn crash_after_rare(&self, calls: u64) {
        let mut state = self.state();
        state.power = Power::UntilRareCall(state.rare_calls + calls);
    }

    /// Whether the power is off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.state().power == Power::Off
    }

    /// After `calls` more calls that change or sync something, they fail, until
    /// [`heal`](Self::heal).
    pub fn fail_after(&self, calls: u64, fault: Fault) {
        let mut state = self.state();
        state.fault = Some((state.calls + calls, fault));
    }

    /// Ends the faults that [`fail_after`](Self::fail_after) began. Gives how many there were.
    pub fn heal(&self) -> u64 {
        let mut state = self.state();
        state.fault = None;
        state.broke = None;
        std::mem::take(&mut state.faults_injected)
    }

    /// In the middle of which call the power went, or the first one that failed, since the last
    /// crash or [`heal`](Self::heal).
    #[must_use]
    pub fn broken_call(&self) -> Option<(&'static str, PathBuf)> {
        self.state().broke.clone()
    }

    /// How many calls there were so far that change or sync something.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state().calls
    }

    /// Loses power, if it is not off already, and comes back. Handles that are open are dead from
    /// now on.
    ///
    /// # Errors
    /// The scratch directory itself could not be changed.
    pub fn crash(&self, seed: u64) -> Result<Losses, FileError> {
        let mut state = self.state();
        state.random = Random(seed);
        let losses = state.crash()?;
        state.life += 1;
        state.power = Power::On;
        state.fault = None;
        state.broke = None;
        Ok(losses)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LossyDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LossyDisk")
    }
}

impl std::ops::AddAssign for Losses {
    fn add_assign(&mut self, other: Self) {
        self.sectors += other.sectors;
        self.torn_pages += other.torn_pages;
        self.lengths += other.lengths;
        self.names += other.names;
    }
}

/// What a call that changes something wants of the disk.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Want {
    Space,
    NoSpace,
}

/// How far a call gets.
enum Outcome {
    Whole,
    /// It fails in the middle.
    Cut(io::Error),
}

impl State {
    fn check_power(&self, action: &'static str, path: &Path) -> Result<(), FileError> {
        if self.power == Power::Off {
            return Err(failed(action, path, io::Error::other("the power is off")));
        }
        Ok(())
    }

    /// Counts a call that changes or syncs something.
    fn begin(
        &mut self,
        action: &'static str,
        path: &Path,
        want: Want,
    ) -> Result<Outcome, FileError> {
        self.check_power(action, path)?;
        let call = self.calls;
        self.calls += 1;
        let rare_call = self.rare_calls;
        let is_rare = action != WRITE;
        self.rare_calls += u64::from(is_rare);
        let goes_now = self.power == Power::UntilCall(call)
            || is_rare && self.power == Power::UntilRareCall(rare_call);
        let error = if goes_now {
            self.power = Power::Off;
            io::Error::other("the power went")
        } else {
            let errno = match self.fault {
                Some((from, Fault::Io)) if call >= from => rustix::io::Errno::IO,
                Some((from, Fault::Sync)) if call >= from && action.starts_with(SYNC) => {
                    rustix::io::Errno::IO
                }
                Some((from, Fault::NoSpace)) if call >= from && want == Want::Space => {
                    rustix::io::Errno::NOSPC
                }
                _ => return Ok(Outcome::Whole),
            };
            self.faults_injected += 1;
            errno.into()
        };
        self.broke.get_or_insert_with(|| (action, path.to_owned()));
        Ok(Outcome::Cut(error))
    }

    /// The same for a call that happens or does not.
    fn begin_whole(
        &mut self,
        action: &'static str,
        path: &Path,
        want: Want,
    ) -> Result<(), FileError> {
        match self.begin(action, path, want)? {
            Outcome::Whole => Ok(()),
            Outcome::Cut(error) => Err(failed(action, path, error)),
        }
    }

    fn node(&mut self, inode: Inode, path: &Path, length: u64) -> &mut Node {
        self.nodes.entry(inode).or_insert_with(|| Node {
            path: path.to_owned(),
            durable_length: length,
            unsynced: BTreeMap::new(),
            given_up: BTreeMap::new(),
        })
    }

    fn added(&mut self, path: &Path) -> Result<(), FileError> {
        let inode = inode_of(path)?;
        self.nodes.remove(&inode); // of a file that is gone
        self.node(inode, path, 0);
        self.changes.push(Change::Add { path: path.to_owned(), node: inode });
        Ok(())
    }

    /// Puts a file, a link or an empty directory into the attic, from where a crash may bring it
    /// back.
    fn put_away(&mut self, path: &Path) -> Result<Inode, FileError> {
        let inode = inode_of(path)?;
        let place = self.attic.join(inode.to_string());
        OsDisk.rename(path, &place)?;
        let length = length_of(&place);
        self.node(inode, &place, length).path.clone_from(&place);
        Ok(inode)
    }

    /// Everything that was written is durable.
    fn sync_all(&mut self) -> Result<(), FileError> {
        for node in self.nodes.values_mut() {
            node.sync();
        }
        self.changes.clear();
        self.clear_attic()
    }

    fn give_up(&mut self, inode: Option<Inode>) {
        let random = &mut self.random;
        let chosen = self.nodes.iter_mut();
        for (_, node) in chosen.filter(|(id, _)| inode.is_none_or(|inode| inode == **id)) {
            node.durable_length = length_of(&node.path);
            for (sector, durable) in std::mem::take(&mut node.unsynced) {
                if random.below(2) == 0 {
                    node.given_up.insert(sector, durable);
                }
            }
        }
    }

    /// What lies in the attic and cannot come back any more goes.
    fn clear_attic(&mut self) -> Result<(), FileError> {
        for Entry { name, kind } in OsDisk.list(&self.attic)? {
            let inode = name.parse::<Inode>().unwrap_or_default();
            let is_needed = self.changes.iter().any(|change| match change {
                Change::Add { node, .. } => *node == inode,
                Change::Remove { node, .. } => *node == inode,
                Change::Rename { node, replaced, .. } => *node == inode || *replaced == Some(inode),
            });
            if !is_needed {
                self.nodes.remove(&inode);
                remove_whatever(&self.attic.join(name), kind)?;
            }
        }
        Ok(())
    }

    fn crash(&mut self) -> Result<Losses, FileError> {
        let mut losses = Losses::default();
        // How bad: now and then nothing is lost, or all.
        let lost_of_8 = [0, 1, 4, 4, 4, 7, 8][self.random.below(7) as usize];
        let mut nodes: Vec<_> = self.nodes.drain().collect();
        nodes.sort_by_key(|(inode, _)| *inode);
        for (_, node) in &mut nodes {
            node.crash(&mut self.random, lost_of_8, &mut losses)?;
        }
        self.crash_names(lost_of_8, &mut losses)?;
        self.changes.clear();
        self.clear_attic()?;
        Ok(losses)
    }

    fn crash_names(&mut self, lost_of_8: u64, losses: &mut Losses) -> Result<(), FileError> {
        let mut durable = Names::new();
        for change in &self.changes {
            change.names_before(&mut durable);
        }
        let (mut live, mut kept) = (durable.clone(), durable);
        for change in &self.changes {
            change.apply(&mut live);
            if self.random.below(8) < lost_of_8 {
                losses.names += 1;
            } else {
                change.apply(&mut kept);
            }
        }
        let attic = self.attic.clone();
        let place = |inode: &Inode| attic.join(inode.to_string());
        // What is inside a directory before the directory.
        for (path, inode) in live.iter().rev() {
            if let Some(inode) = inode
                && kept.get(path) != Some(&Some(*inode))
            {
                OsDisk.rename(path, &place(inode))?;
            }
        }
        for (path, inode) in &kept {
            let parent_is_there = || path.parent().is_some_and(Path::exists);
            if let Some(inode) = inode
                && live.get(path) != Some(&Some(*inode))
                && parent_is_there()
            {
                OsDisk.rename(&place(inode), path)?;
            }
        }
        Ok(())
    }
}

impl Node {
    /// Notes what the disk has of the sectors that are about to change.
    fn changes(
        &mut self,
        file: &dyn DiskFile,
        length: u64,
        sectors: std::ops::RangeInclusive<u64>,
        random: &mut Random,
    ) -> Result<(), FileError> {
        for sector in sectors {
            if let Some(durable) = self.unsynced.get_mut(&sector) {
                // The kernel may have written it since.
                if random.below(4) == 0 {
                    *durable = read_sector(file, length, sector)?;
                    let end = ((sector + 1) * SECTOR).min(length);
                    self.durable_length = self.durable_length.max(end);
                }
            } else if let Some(durable) = self.given_up.remove(&sector) {
                self.unsynced.insert(sector, durable);
            } else {
                self.unsynced.insert(sector, read_sector(file, length, sector)?);
            }
        }
        Ok(())
    }

    fn sync(&mut self) {
        self.durable_length = length_of(&self.path);
        self.unsynced.clear();
    }

    fn crash(
        &mut self,
        random: &mut Random,
        lost_of_8: u64,
        losses: &mut Losses,
    ) -> Result<(), FileError> {
        let live_length = length_of(&self.path);
        let durable_length = self.durable_length;
        if self.unsynced.is_empty() && self.given_up.is_empty() && live_length == durable_length {
            return Ok(());
        }
        let file = OsDisk.open(&self.path, OpenHow::Existing)?;
        let length = match random.below(8) < lost_of_8 {
            false => live_length,
            true if random.below(2) == 0 && durable_length < live_length => {
                let sectors = (live_length - durable_length).div_ceil(SECTOR);
                let end = (durable_length / SECTOR + random.below(sectors + 1)) * SECTOR;
                end.clamp(durable_length, live_length)
            }
            true => durable_length,
        };
        losses.lengths += u64::from(length != live_length);
        if length > live_length {
            file.set_len(length)?;
        }
        let mut kept_before = None;
        let mut lost_before = None;
        for (&sector, durable) in &self.unsynced {
            let start = sector * SECTOR;
            // Where the file was cut and the cut is lost, everything is as before.
            if start < live_length && random.below(8) >= lost_of_8 {
                if read_sector(&*file, length, sector)? != *durable {
                    let is_torn = lost_before == Some(sector) && sector % SECTORS_PER_PAGE != 0;
                    losses.torn_pages += u64::from(is_torn);
                    kept_before = Some(sector + 1);
                }
            } else if start < length && restore(&*file, length, sector, durable)? {
                losses.sectors += 1;
                let is_torn = kept_before == Some(sector) && sector % SECTORS_PER_PAGE != 0;
                losses.torn_pages += u64::from(is_torn);
                lost_before = Some(sector + 1);
            }
        }
        for (&sector, durable) in &self.given_up {
            if sector * SECTOR < length && restore(&*file, length, sector, durable)? {
                losses.sectors += 1;
            }
        }
        file.set_len(length) // a sector put back at the end may have made it longer
    }
}

impl Change {
    /// The names as they were before this, if no change before it has said so.
    fn names_before(&self, names: &mut Names) {
        match self {
            Self::Add { path, .. } => {
                names.entry(path.clone()).or_insert(None);
            }
            Self::Remove { path, node } => {
                names.entry(path.clone()).or_insert(Some(*node));
            }
            Self::Rename { from, to, node, replaced } => {
                names.entry(from.clone()).or_insert(Some(*node));
                names.entry(to.clone()).or_insert(*replaced);
            }
        }
    }

    fn apply(&self, names: &mut Names) {
        match self {
            Self::Add { path, node } => {
                names.insert(path.clone(), Some(*node));
            }
            Self::Remove { path, .. } => {
                names.insert(path.clone(), None);
            }
            // What is renamed is a file, whatever else had its name before and came back.
            Self::Rename { from, to, node, .. } => {
                names.insert(from.clone(), None);
                names.insert(to.clone(), Some(*node));
            }
        }
    }

    fn is_in(&self, directory: &Path) -> bool {
        match self {
            Self::Add { path, .. } | Self::Remove { path, .. } => path.parent() == Some(directory),
            Self::Rename { from, to, .. } => {
                from.parent() == Some(directory) || to.parent() == Some(directory)
            }
        }
    }
}

impl Disk for LossyDisk {
    fn open(&self, path: &Path, how: OpenHow) -> Result<Box<dyn DiskFile>, FileError> {
        let path = &without_links(path);
        let mut state = self.state();
        state.check_power("open", path)?;
        let is_there = OsDisk.metadata(path).is_ok();
        if !is_there && how != OpenHow::Existing {
            // Not for a file that cannot be made.
            OsDisk.metadata(path.parent().unwrap_or(path))?;
            state.begin_whole("open", path, Want::Space)?;
        }
        let file = OsDisk.open(path, how)?;
        if !is_there {
            state.added(path)?;
        }
        let metadata = file.metadata()?;
        let inode = metadata.identity.1;
        state.node(inode, path, metadata.length);
        let life = state.life;
        Ok(Box::new(LossyFile { disk: self.clone(), life, inode, file, path: path.to_owned() }))
    }

    fn metadata(&self, path: &Path) -> Result<Metadata, FileError> {
        self.state().check_power("look at", path)?;
        OsDisk.metadata(path)
    }

    fn list(&self, directory: &Path) -> Result<Vec<Entry>, FileError> {
        self.state().check_power("list", directory)?;
        OsDisk.list(directory)
    }

    fn create_directory(&self, path: &Path, mode: u32) -> Result<(), FileError> {
        let path = &without_links(path);
        let mut state = self.state();
        let missing: Vec<&Path> = path.ancestors().take_while(|path| !path.exists()).collect();
        for path in missing.into_iter().rev() {
            state.begin_whole("create", path, Want::Space)?;
            OsDisk.create_directory(path, mode)?;
            state.added(path)?;
        }
        Ok(())
    }

    fn create_link(&self, target: &Path, path: &Path) -> Result<(), FileError> {
        let path = &without_links(path);
        let mut state = self.state();
        state.begin_whole("create", path, Want::Space)?;
        OsDisk.create_link(target, path)?;
        state.added(path)
    }

    fn read_link(&self, path: &Path) -> Result<PathBuf, FileError> {
        self.state().check_power("read", path)?;
        OsDisk.read_link(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), FileError> {
        let (from, to) = (&*without_links(from), &*without_links(to));
        let mut state = self.state();
        state.begin_whole("rename", from, Want::NoSpace)?;
        let node = inode_of(from).map_err(|error| failed("rename", from, error.source))?;
        let replaced = match inode_of(to) {
            Ok(_) => Some(state.put_away(to)?),
            Err(_) => None,
        };
        OsDisk.rename(from, to)?;
        let length = length_of(to);
        state.node(node, to, length).path = to.to_owned();
        state.changes.push(Change::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
            node,
            replaced,
        });
        Ok(())
    }

    fn remove(&self, path: &Path) -> Result<(), FileError> {
        let path = &without_links(path);
        let mut state = self.state();
        inode_of(path).map_err(|error| failed("remove", path, error.source))?;
        state.begin_whole("remove", path, Want::NoSpace)?;
        let node = state.put_away(path)?;
        state.changes.push(Change::Remove { path: path.to_owned(), node });
        Ok(())
    }

    fn remove_directory(&self, path: &Path) -> Result<(), FileError> {
        if !OsDisk.list(path)?.is_empty() {
            return OsDisk.remove_directory(path); // which says why it cannot
        }
        self.remove(path)
    }

    fn copy(&self, from: &Path, to: &Path, mode: u32) -> Result<(), FileError> {
        let to = &without_links(to);
        let mut state = self.state();
        let outcome = state.begin("copy to", to, Want::Space)?;
        OsDisk.copy(from, to, mode)?;
        state.added(to)?;
        let file = OsDisk.open(to, OpenHow::Existing)?;
        let Metadata { identity: (_, inode), mut length, .. } = file.metadata()?;
        if let Outcome::Cut(_) = outcome {
            length = state.random.below(length / SECTOR + 1) * SECTOR;
            file.set_len(length)?;
        }
        let node = state.node(inode, to, 0);
        node.unsynced.extend((0..length.div_ceil(SECTOR)).map(|sector| (sector, None)));
        match outcome {
            Outcome::Whole => Ok(()),
            Outcome::Cut(error) => Err(failed("copy to", to, error)),
        }
    }

    fn sync_directory(&self, path: &Path) -> Result<(), FileError> {
        let mut state = self.state();
        state.begin_whole(SYNC, path, Want::Space)?;
        if state.lie != Some(Lie::All) {
            let path = &path.canonicalize().unwrap_or_else(|_| path.to_owned());
            state.changes.retain(|change| !change.is_in(path));
            state.clear_attic()?;
        }
        Ok(())
    }

    fn file_system(&self, directory: &Path) -> Result<Box<dyn FileSystem>, FileError> {
        let state = self.state();
        state.check_power("open", directory)?;
        let device = OsDisk.metadata(directory)?.identity.0;
        let (disk, life) = (self.clone(), state.life);
        Ok(Box::new(LossyFileSystem { disk, life, device, path: directory.to_owned() }))
    }
}

struct LossyFile {
    disk: LossyDisk,
    life: u64,
    inode: Inode,
    file: Box<dyn DiskFile>,
    path: PathBuf,
}

impl LossyFile {
    fn state(&self, action: &'static str) -> Result<MutexGuard<'_, State>, FileError> {
        let state = self.disk.state();
        state.check_power(action, &self.path)?;
        if state.life != self.life {
            return Err(failed(action, &self.path, io::Error::other("opened before the crash")));
        }
        Ok(state)
    }
}

impl fmt::Debug for LossyFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LossyFile({})", self.path.display())
    }
}

impl DiskFile for LossyFile {
    fn metadata(&self) -> Result<Metadata, FileError> {
        drop(self.state("look at")?);
        self.file.metadata()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, FileError> {
        drop(self.state("read")?);
        self.file.read_at(offset, buffer)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), FileError> {
        let mut state = self.state(WRITE)?;
        let state = &mut *state;
        let outcome = state.begin(WRITE, &self.path, Want::Space)?;
        let mut end = offset + bytes.len() as u64;
        if let Outcome::Cut(_) = outcome {
            let sectors = end.div_ceil(SECTOR) - offset / SECTOR;
            let cut = (offset / SECTOR + state.random.below(sectors + 1)) * SECTOR;
            end = cut.clamp(offset, end);
        }
        if offset < end {
            let length = self.file.metadata()?.length;
            let sectors = offset / SECTOR..=(end - 1) / SECTOR;
            // A file without a node was removed for good: nothing of it can come back.
            if let Some(node) = state.nodes.get_mut(&self.inode) {
                node.changes(&*self.file, length, sectors, &mut state.random)?;
            }
            self.file.write_at(offset, &bytes[..(end - offset) as usize])?;
        }
        match outcome {
            Outcome::Whole => Ok(()),
            Outcome::Cut(error) => Err(failed(WRITE, &self.path, error)),
        }
    }

    fn set_len(&self, length: u64) -> Result<(), FileError> {
        let mut state = self.state("set the length of")?;
        let state = &mut *state;
        let before = self.file.metadata()?.length;
        let want = if length > before { Want::Space } else { Want::NoSpace };
        state.begin_whole("set the length of", &self.path, want)?;
        if length < before
            && let Some(node) = state.nodes.get_mut(&self.inode)
        {
            let sectors = length / SECTOR..=(before - 1) / SECTOR;
            node.changes(&*self.file, before, sectors, &mut state.random)?;
        }
        self.file.set_len(length)
    }

    fn sync(&self) -> Result<(), FileError> {
        let mut state = self.state(SYNC)?;
        match state.begin(SYNC, &self.path, Want::Space)? {
            Outcome::Whole if state.lie == Some(Lie::All) => Ok(()),
            Outcome::Whole => {
                if let Some(node) = state.nodes.get_mut(&self.inode) {
                    node.sync();
                }
                Ok(())
            }
            Outcome::Cut(error) => {
                if state.power != Power::Off {
                    state.give_up(Some(self.inode));
                }
                Err(failed(SYNC, &self.path, error))
            }
        }
    }

    fn try_lock(&self) -> Result<bool, FileError> {
        drop(self.state("lock")?);
        self.file.try_lock()
    }
}

struct LossyFileSystem {
    disk: LossyDisk,
    life: u64,
    device: u64,
    path: PathBuf,
}

impl fmt::Debug for LossyFileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LossyFileSystem({})", self.path.display())
    }
}

impl FileSystem for LossyFileSystem {
    fn device(&self) -> u64 {
        self.device
    }

    fn sync(&self) -> Result<(), FileError> {
        const ACTION: &str = "sync the file system of";
        let mut state = self.disk.state();
        if state.life != self.life {
            return Err(failed(ACTION, &self.path, io::Error::other("opened before the crash")));
        }
        match state.begin(ACTION, &self.path, Want::Space)? {
            Outcome::Whole if state.lie.is_some() => Ok(()),
            Outcome::Whole => state.sync_all(),
            Outcome::Cut(error) => {
                if state.power != Power::Off {
                    state.give_up(None);
                }
                Err(failed(ACTION, &self.path, error))
            }
        }
    }
}

/// SplitMix64: small, and the same on every machine.
#[derive(Clone, Debug)]
struct Random(u64);

impl Random {
    fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 up to, not including, `end`, which is not 0.
    fn below(&mut self, end: u64) -> u64 {
        self.draw() % end
    }
}

fn failed(action: &'static str, path: &Path, error: io::Error) -> FileError {
    FileError { action, path: path.to_owned(), source: error }
}

/// The path by which a name is known whatever becomes of the links on the way to it.
fn without_links(path: &Path) -> PathBuf {
    let mut known = path.to_owned();
    for ancestor in path.ancestors().skip(1) {
        if let (Ok(real), Ok(rest)) = (ancestor.canonicalize(), path.strip_prefix(ancestor)) {
            known = real.join(rest);
            break;
        }
    }
    known
}

/// The number of what has this name itself: of a symbolic link, not of what it points to.
fn inode_of(path: &Path) -> Result<Inode, FileError> {
    use std::os::unix::fs::MetadataExt;
    let metadata = path.symlink_metadata().map_err(|error| failed("look at", path, error))?;
    Ok(metadata.ino())
}

/// The length of a file; 0 of anything else, or nothing.
fn length_of(path: &Path) -> u64 {
    path.symlink_metadata().map_or(0, |found| if found.is_file() { found.len() } else { 0 })
}

fn read_sector(file: &dyn DiskFile, length: u64, sector: u64) -> Result<Sector, FileError> {
    if sector * SECTOR >= length {
        return Ok(None);
    }
    let mut bytes = Box::new([0; SECTOR_BYTES]);
    file.read_at(sector * SECTOR, &mut bytes[..])?;
    Ok(bytes.iter().any(|byte| *byte != 0).then_some(bytes))
}

/// Puts a sector back; whether that changed it.
fn restore(
    file: &dyn DiskFile,
    length: u64,
    sector: u64,
    durable: &Sector,
) -> Result<bool, FileError> {
    let live = read_sector(file, length, sector)?;
    if live == *durable {
        return Ok(false);
    }
    let zeros = [0; SECTOR_BYTES];
    file.write_at(sector * SECTOR, durable.as_ref().map_or(&zeros[..], |bytes| &bytes[..]))?;
    Ok(true)
}

fn remove_whatever(path: &Path, kind: EntryKind) -> Result<(), FileError> {
    if kind != EntryKind::Directory {
        return OsDisk.remove(path);
    }
    for Entry { name, kind } in OsDisk.list(path)? {
        remove_whatever(&path.join(name), kind)?;
    }
    OsDisk.remove_directory(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch {
        directory: tempfile::TempDir,
        attic: tempfile::TempDir,
    }

    impl Scratch {
        fn new() -> Self {
            Self { directory: tempfile::tempdir().unwrap(), attic: tempfile::tempdir().unwrap() }
        }

        fn disk(&self, seed: u64) -> LossyDisk {
            LossyDisk::new(self.attic.path(), seed)
        }

        fn at(&self, name: &str) -> PathBuf {
            self.directory.path().join(name)
        }

        fn content(&self, name: &str) -> Option<Vec<u8>> {
            std::fs::read(self.at(name)).ok()
        }
    }

    const CREATE: OpenHow = OpenHow::OrCreate(0o600);
    const SECTORS: usize = 20;

    #[test]
    fn what_was_synced_survives_and_the_rest_may_not() {
        let mut losses = Losses::default();
        let (mut whole, mut nameless) = (0, 0);
        for seed in 0..200 {
            let scratch = Scratch::new();
            let disk = scratch.disk(seed);
            let file = disk.open(&scratch.at("a"), CREATE).unwrap();
            file.write_at(0, &[1; SECTORS * SECTOR_BYTES]).unwrap();
            file.sync().unwrap();
            let name_is_synced = seed % 2 == 0;
            if name_is_synced {
                disk.sync_directory(scratch.directory.path()).unwrap();
            }
            file.write_at(SECTOR, &[2; (SECTORS + 9) * SECTOR_BYTES]).unwrap();
            losses += disk.crash(seed).unwrap();
            assert!(file.write_at(0, b"late").is_err(), "the handle is dead");
            assert!(OsDisk.list(scratch.attic.path()).unwrap().is_empty());
            let Some(content) = scratch.content("a") else {
                assert!(!name_is_synced);
                nameless += 1;
                continue;
            };
            assert!(content.len() >= SECTORS * SECTOR_BYTES && content.len() % SECTOR_BYTES == 0);
            for (number, sector) in content.chunks(SECTOR_BYTES).enumerate() {
                let (old, new) = (u8::from(number < SECTORS), if number == 0 { 1 } else { 2 });
                assert!(sector.iter().all(|byte| *byte == old) || sector == [new; SECTOR_BYTES]);
            }
            whole += u32::from(content[SECTOR_BYTES..] == [2; (SECTORS + 9) * SECTOR_BYTES]);
        }
        assert!(losses.sectors > 500 && losses.torn_pages > 200, "{losses:?}");
        assert!(losses.lengths > 30 && losses.names == nameless, "{losses:?}");
        assert!(whole > 10 && nameless > 20, "{whole} {nameless}");
    }

    #[test]
    fn names_come_back_go_and_are_renamed_at_once() {
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..100 {
            let scratch = Scratch::new();
            std::fs::write(scratch.at("old"), "old").unwrap();
            std::fs::write(scratch.at("current"), "before").unwrap();
            let disk = scratch.disk(seed);
            disk.remove(&scratch.at("old")).unwrap();
            let file = disk.open(&scratch.at("next"), CREATE).unwrap();
            file.write_at(0, b"after").unwrap();
            file.sync().unwrap();
            disk.sync_directory(scratch.directory.path()).unwrap();
            disk.rename(&scratch.at("next"), &scratch.at("current")).unwrap();
            disk.create_directory(&scratch.at("new/er"), 0o700).unwrap();
            disk.open(&scratch.at("new/er/file"), CREATE).unwrap();
            disk.remove(&scratch.at("new/er/file")).unwrap();
            disk.create_link(Path::new("current"), &scratch.at("link")).unwrap();
            disk.crash(seed).unwrap();
            assert_eq!(scratch.content("old"), None, "the removal was synced");
            let next = scratch.content("next").map(|bytes| String::from_utf8(bytes).unwrap());
            let current = String::from_utf8(scratch.content("current").unwrap()).unwrap();
            match next {
                None => assert_eq!(current, "after"),
                Some(next) => assert_eq!((&*current, &*next), ("before", "after")),
            }
            let there = |name| scratch.at(name).symlink_metadata().is_ok();
            seen.insert((
                current,
                there("new"),
                there("new/er"),
                there("new/er/file"),
                there("link"),
            ));
        }
        assert!(seen.len() > 10, "{seen:?}");
        assert!(seen.iter().any(|seen| seen.3), "a file whose removal was lost");
    }

    #[test]
    fn the_same_seed_loses_the_same() {
        let run = || {
            let scratch = Scratch::new();
            let disk = scratch.disk(7);
            let file = disk.open(&scratch.at("a"), CREATE).unwrap();
            disk.sync_directory(scratch.directory.path()).unwrap();
            for round in 0..5 {
                file.write_at(round * 5000, &[7; 50_000]).unwrap();
            }
            (disk.crash(42).unwrap(), scratch.content("a"))
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn the_power_goes_in_the_middle_of_a_write() {
        let mut lengths = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let scratch = Scratch::new();
            let disk = scratch.disk(seed);
            let file = disk.open(&scratch.at("a"), CREATE).unwrap();
            disk.file_system(scratch.directory.path()).unwrap().sync().unwrap();
            disk.crash_after(1);
            file.write_at(0, &[1; 3 * SECTOR_BYTES]).unwrap();
            let error = file.write_at(3 * SECTOR, &[1; 3 * SECTOR_BYTES]).unwrap_err();
            assert!(error.to_string().ends_with("a: the power went"), "{error}");
            assert!(disk.is_off());
            assert!(file.sync().is_err() && disk.list(scratch.directory.path()).is_err());
            lengths.insert(scratch.content("a").unwrap().len() / SECTOR_BYTES);
            disk.crash(seed).unwrap();
            assert!(!disk.is_off());
            disk.open(&scratch.at("a"), OpenHow::Existing).unwrap().sync().unwrap();
        }
        assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [3, 4, 5, 6]);
    }

    #[test]
    fn a_disk_that_lies_loses_what_was_synced() {
        let mut losses = Losses::default();
        for seed in 0..20 {
            let scratch = Scratch::new();
            std::fs::write(scratch.at("a"), "").unwrap();
            let disk = scratch.disk(seed);
            disk.lose_synced(Lie::All);
            let file = disk.open(&scratch.at("a"), CREATE).unwrap();
            file.write_at(0, &[1; SECTORS * SECTOR_BYTES]).unwrap();
            file.sync().unwrap();
            disk.file_system(scratch.directory.path()).unwrap().sync().unwrap();
            losses += disk.crash(seed).unwrap();
        }
        assert!(losses.sectors > 50, "{losses:?}");
    }

    #[test]
    fn a_full_disk_takes_no_more_until_there_is_room() {
        let scratch = Scratch::new();
        let disk = scratch.disk(1);
        let file = disk.open(&scratch.at("a"), CREATE).unwrap();
        disk.fail_after(1, Fault::NoSpace);
        file.write_at(0, b"fits").unwrap();
        let error = file.write_at(0, b"does not").unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::StorageFull);
        assert!(disk.open(&scratch.at("b"), CREATE).is_err());
        file.set_len(2).unwrap();
        disk.remove(&scratch.at("a")).unwrap();
        assert_eq!(disk.heal(), 2);
        disk.open(&scratch.at("b"), CREATE).unwrap().write_at(0, b"fits").unwrap();
    }

    #[test]
    fn a_failed_sync_gives_sectors_up_and_the_next_one_does_not_bring_them_back() {
        let (mut lost, mut rewritten) = (0, 0);
        for seed in 0..20 {
            let scratch = Scratch::new();
            std::fs::write(scratch.at("a"), [1; SECTORS * SECTOR_BYTES]).unwrap();
            let disk = scratch.disk(seed);
            let file = disk.open(&scratch.at("a"), CREATE).unwrap();
            file.write_at(0, &[2; SECTORS * SECTOR_BYTES]).unwrap();
            disk.fail_after(0, Fault::Sync);
            file.write_at(0, &[2; 1]).unwrap();
            assert!(file.sync().unwrap_err().is_sync());
            assert_eq!(disk.heal(), 1);
            assert_eq!(scratch.content("a").unwrap(), [2; SECTORS * SECTOR_BYTES], "still read");
            file.write_at(0, &[2; SECTOR_BYTES]).unwrap();
            disk.file_system(scratch.directory.path()).unwrap().sync().unwrap();
            disk.crash(seed).unwrap();
            let content = scratch.content("a").unwrap();
            assert_eq!(content[0], 2, "written again");
            rewritten += 1;
            lost += content.chunks(SECTOR_BYTES).filter(|sector| sector[0] == 1).count();
        }
        assert!(lost > 100 && rewritten == 20, "{lost}");
    }
}
