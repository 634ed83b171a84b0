//! Relations as small numbers, and how long their forks are.
//!
//! The dispatcher gives each relation it meets a 32-bit number, so that tasks stay small; workers
//! look the name up when they open a file. A number is free again when its relation is dropped:
//! every worker has forgotten it by then.
//!
//! Lengths are known to the dispatcher only. They run ahead of the files: a fork is as long as the
//! last block that a record has changed, whether its owner has written it or not.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use walfmt::relation::{BLOCK_SIZE, BlockNumber, DatabaseLocator, RelFork};
use walfmt::{ForkNumber, RelFileLocator};

use crate::error::FileError;
use crate::layout::{FILE_SIZE_MAX, Layout, place_of};

/// A fork of a relation: the relation's number and, in the two low bits, the fork's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ForkId(u32);

impl ForkId {
    const fn new(relation: u32, fork: ForkNumber) -> Self {
        Self(relation << 2 | fork as u32)
    }

    pub(crate) const fn number(self) -> u32 {
        self.0
    }

    pub(crate) const fn relation(self) -> u32 {
        self.0 >> 2
    }

    pub(crate) fn fork(self) -> ForkNumber {
        ForkNumber::from_number(self.0 & 3).expect("two bits number four forks")
    }

    /// Another fork of the same relation.
    pub(crate) const fn sibling(self, fork: ForkNumber) -> Self {
        Self::new(self.0 >> 2, fork)
    }
}

/// The names behind the numbers, shared with the workers. They copy what they need and look here
/// only when they meet a number for the first time.
pub(crate) type Names = Arc<RwLock<Vec<RelFileLocator>>>;

/// What the dispatcher knows of relations.
pub(crate) struct Relations {
    layout: Layout,
    numbers: HashMap<RelFileLocator, u32, foldhash::fast::RandomState>,
    lengths: Vec<[Length; 4]>,
    free: Vec<u32>,
    names: Names,
    /// Those looked up last, each at a place of its own as a rule: most records touch relations that
    /// the records right before touched.
    recent: [Option<(RelFileLocator, u32)>; RECENT],
}

/// A power of two.
const RECENT: usize = 16;

/// How long a fork is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Length {
    /// Nobody has asked yet.
    Unknown,
    /// It has no file.
    Missing,
    Blocks(BlockNumber),
}

impl Relations {
    pub(crate) fn new(layout: Layout) -> Self {
        Self {
            layout,
            numbers: HashMap::default(),
            lengths: Vec::new(),
            free: Vec::new(),
            names: Names::default(),
            recent: [None; RECENT],
        }
    }

    pub(crate) fn names(&self) -> Names {
        Arc::clone(&self.names)
    }

    /// The fork's number; a new one if the relation has none.
    pub(crate) fn intern(&mut self, fork: RelFork) -> ForkId {
        let locator = fork.locator;
        let place = locator.relation as usize % RECENT;
        if let Some((recent, number)) = self.recent[place]
            && recent == locator
        {
            return ForkId::new(number, fork.fork);
        }
        let number = match self.numbers.get(&locator) {
            Some(number) => *number,
            None => self.add(locator),
        };
        self.recent[place] = Some((locator, number));
        ForkId::new(number, fork.fork)
    }

    /// The numbers of these relations, as far as they have one.
    pub(crate) fn known(&self, locators: &[RelFileLocator]) -> Vec<u32> {
        locators.iter().filter_map(|locator| self.numbers.get(locator).copied()).collect()
    }

    /// All relations met so far whose files are in one of these directories.
    pub(crate) fn in_directories(&self, directories: &[DatabaseLocator]) -> Vec<RelFileLocator> {
        let known = self.numbers.keys().copied();
        known.filter(|locator| directories.contains(&locator.directory())).collect()
    }

    /// How many blocks the fork has, if it has a file and its length was asked for before.
    #[inline]
    pub(crate) fn known_blocks(&self, id: ForkId) -> Option<BlockNumber> {
        match self.lengths[id.relation() as usize][(id.number() & 3) as usize] {
            Length::Blocks(blocks) => Some(blocks),
            Length::Unknown | Length::Missing => None,
        }
    }

    /// How many blocks the fork has; 0 if it has no file.
    pub(crate) fn blocks(&mut self, id: ForkId, fork: RelFork) -> Result<BlockNumber, FileError> {
        Ok(match self.length(id, fork)? {
            Length::Blocks(blocks) => blocks,
            Length::Missing | Length::Unknown => 0,
        })
    }

    /// Creates the fork's first file, if it is not there.
    pub(crate) fn create(&mut self, id: ForkId, fork: RelFork) -> Result<(), FileError> {
        if self.length(id, fork)? == Length::Missing {
            self.layout.open_or_create(&self.layout.fork_file(fork, 0))?;
            *self.slot(id) = Length::Blocks(0);
        }
        Ok(())
    }

    /// The fork is `blocks` long from now on, longer than it was.
    ///
    /// Its last page is written by the page's owner. But a server takes the first file that is
    /// shorter than 1 GB for the fork's last, so files before the last one get their full length
    /// here. No byte is written: what no record filled is a hole.
    pub(crate) fn extend(
        &mut self,
        id: ForkId,
        fork: RelFork,
        blocks: BlockNumber,
    ) -> Result<(), FileError> {
        let before = self.blocks(id, fork)?;
        *self.slot(id) = Length::Blocks(blocks);
        let (last_file, _) = place_of(blocks.saturating_sub(1));
        let (first_file, _) = place_of(before.saturating_sub(1));
        for number in first_file..last_file {
            let path = self.layout.fork_file(fork, number);
            let file = self.layout.open_or_create(&path)?;
            if file.metadata()?.length < FILE_SIZE_MAX {
                file.set_len(FILE_SIZE_MAX)?;
            }
        }
        Ok(())
    }

    /// Cuts the fork's files to `blocks` blocks. As in a server, files wholly behind stay, empty.
    /// A fork that is shorter already is left alone (`mdtruncate` in recovery).
    ///
    /// The owners have forgotten the pages behind. Pages before the cut may still be unwritten, so
    /// a file may have to grow here: the fork keeps the length it would have with them. And behind a
    /// file that is short already, others may have their length still: a crash can leave one half of
    /// an earlier life's cut.
    pub(crate) fn truncate(
        &mut self,
        id: ForkId,
        fork: RelFork,
        blocks: BlockNumber,
    ) -> Result<(), FileError> {
        let length_is_known = fork.fork != ForkNumber::FreeSpace;
        let before = self.blocks(id, fork)?;
        let end = u64::from(blocks) * BLOCK_SIZE as u64;
        for number in 0.. {
            let path = self.layout.fork_file(fork, number);
            let start = u64::from(number) * FILE_SIZE_MAX;
            let target = end.saturating_sub(start).min(FILE_SIZE_MAX);
            let Some(file) = self.layout.open_existing(&path)? else { break };
            let length = file.metadata()?.length;
            let is_unwritten = length_is_known && before > blocks && length < target;
            if length > target || is_unwritten {
                file.set_len(target)?;
            }
        }
        if before > blocks {
            *self.slot(id) = Length::Blocks(blocks);
        }
        Ok(())
    }

    /// Removes all files of all forks.
    pub(crate) fn remove(&mut self, locator: RelFileLocator) -> Result<(), FileError> {
        for fork in ForkNumber::ALL {
            let fork = RelFork { locator, fork };
            for number in 0.. {
                if !self.layout.remove_file(&self.layout.fork_file(fork, number))? {
                    break;
                }
            }
        }
        self.forget(locator);
        Ok(())
    }

    /// Forgets a relation whose files are gone. Its number is free for another one.
    pub(crate) fn forget(&mut self, locator: RelFileLocator) {
        if let Some(number) = self.numbers.remove(&locator) {
            self.lengths[number as usize] = [Length::Missing; 4];
            self.free.push(number);
        }
        self.recent[locator.relation as usize % RECENT] = None;
    }

    fn add(&mut self, locator: RelFileLocator) -> u32 {
        let mut names = self.names.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        let number = match self.free.pop() {
            Some(number) => {
                names[number as usize] = locator;
                number
            }
            None => {
                names.push(locator);
                self.lengths.push([Length::Unknown; 4]);
                u32::try_from(names.len() - 1).expect("a directory holds fewer relations than 2^30")
            }
        };
        self.lengths[number as usize] = [Length::Unknown; 4];
        self.numbers.insert(locator, number);
        number
    }

    fn slot(&mut self, id: ForkId) -> &mut Length {
        &mut self.lengths[id.relation() as usize][id.fork() as usize]
    }

    fn length(&mut self, id: ForkId, fork: RelFork) -> Result<Length, FileError> {
        if *self.slot(id) == Length::Unknown {
            *self.slot(id) = measure(&self.layout, fork)?;
        }
        Ok(*self.slot(id))
    }
}

/// The length of a fork by its files: the first one that is not full is the last (`mdnblocks`).
fn measure(layout: &Layout, fork: RelFork) -> Result<Length, FileError> {
    let mut blocks: u64 = 0;
    for number in 0.. {
        let path = layout.fork_file(fork, number);
        let length = match layout.metadata(&path)? {
            Some(metadata) => metadata.length,
            None if number == 0 => return Ok(Length::Missing),
            None => break,
        };
        blocks += length.min(FILE_SIZE_MAX) / BLOCK_SIZE as u64;
        if length < FILE_SIZE_MAX {
            break;
        }
    }
    Ok(Length::Blocks(BlockNumber::try_from(blocks).unwrap_or(BlockNumber::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORK: RelFork = RelFork {
        locator: RelFileLocator { tablespace: 1663, database: 5, relation: 16384 },
        fork: ForkNumber::Main,
    };

    fn length(layout: &Layout, number: u32) -> Option<u64> {
        std::fs::metadata(layout.fork_file(FORK, number)).ok().map(|metadata| metadata.len())
    }

    #[test]
    fn a_fork_grows_and_shrinks_across_the_border_of_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path()).unwrap();
        let mut relations = Relations::new(layout.clone());
        let id = relations.intern(FORK);
        assert_eq!(relations.length(id, FORK).unwrap(), Length::Missing);
        relations.create(id, FORK).unwrap();
        assert_eq!(length(&layout, 0), Some(0));
        assert_eq!(relations.blocks(id, FORK).unwrap(), 0);

        relations.extend(id, FORK, 131_072).unwrap();
        assert_eq!((length(&layout, 0), length(&layout, 1)), (Some(0), None));
        relations.extend(id, FORK, 2 * 131_072 + 5).unwrap();
        assert_eq!(length(&layout, 0), Some(FILE_SIZE_MAX));
        assert_eq!(length(&layout, 1), Some(FILE_SIZE_MAX));
        assert_eq!(length(&layout, 2), None, "the last file is its owner's to write");

        relations.truncate(id, FORK, 131_072 + 3).unwrap();
        assert_eq!(length(&layout, 0), Some(FILE_SIZE_MAX));
        assert_eq!(length(&layout, 1), Some(3 * 8192));
        assert_eq!(relations.blocks(id, FORK).unwrap(), 131_075);
        assert_eq!(measure(&layout, FORK).unwrap(), Length::Blocks(131_075));
        relations.truncate(id, FORK, 131_080).unwrap();
        assert_eq!(relations.blocks(id, FORK).unwrap(), 131_075, "a cut never makes longer");

        relations.truncate(id, FORK, 2).unwrap();
        assert_eq!((length(&layout, 0), length(&layout, 1)), (Some(2 * 8192), Some(0)));
        relations.remove(FORK.locator).unwrap();
        assert_eq!((length(&layout, 0), length(&layout, 1)), (None, None));
    }

    #[test]
    fn a_cut_keeps_the_length_of_pages_not_written_yet() {
        let directory = tempfile::tempdir().unwrap();
        let layout = Layout::new(directory.path()).unwrap();
        let mut relations = Relations::new(layout.clone());
        let id = relations.intern(FORK);
        relations.create(id, FORK).unwrap();
        relations.extend(id, FORK, 10).unwrap();
        relations.truncate(id, FORK, 4).unwrap();
        assert_eq!(length(&layout, 0), Some(4 * 8192));
    }

    #[test]
    fn numbers_are_used_again_after_a_drop() {
        let directory = tempfile::tempdir().unwrap();
        let mut relations = Relations::new(Layout::new(directory.path()).unwrap());
        let other = RelFork {
            locator: RelFileLocator { relation: 16385, ..FORK.locator },
            fork: ForkNumber::VisibilityMap,
        };
        let first = relations.intern(FORK);
        assert_eq!(relations.intern(FORK), first);
        assert_ne!(relations.intern(other).relation(), first.relation());
        relations.remove(FORK.locator).unwrap();
        let third = RelFork { locator: RelFileLocator { relation: 16386, ..FORK.locator }, ..FORK };
        assert_eq!(relations.intern(third), first);
        assert_eq!(relations.names().read().unwrap()[first.relation() as usize], third.locator);
        assert_eq!(first.sibling(ForkNumber::FreeSpace).fork(), ForkNumber::FreeSpace);
    }
}
