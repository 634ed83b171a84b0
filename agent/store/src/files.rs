//! A worker's open relation files, bounded in number, and the names behind fork numbers.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::PoisonError;

use walfmt::RelFileLocator;
use walfmt::relation::{BlockNumber, PageId, RelFork};
use walfmt_physical::Page;

use crate::cache::PageKey;
use crate::disk::DiskFile;
use crate::error::FileError;
use crate::layout::{Layout, place_of};
use crate::relations::{ForkId, Names};

/// How many files one worker keeps open.
const OPEN_FILES_MAX: usize = 64;

type FileKey = (ForkId, u32);

pub(crate) struct Files {
    layout: Layout,
    shared_names: Names,
    names: Vec<Option<RelFileLocator>>,
    open: HashMap<FileKey, OpenFile, foldhash::fast::RandomState>,
    uses: u64,
}

struct OpenFile {
    file: Box<dyn DiskFile>,
    last_use: u64,
}

impl Files {
    pub(crate) fn new(layout: Layout, names: Names) -> Self {
        Self { layout, shared_names: names, names: Vec::new(), open: HashMap::default(), uses: 0 }
    }

    /// The name behind a fork's number.
    pub(crate) fn name(&mut self, fork: ForkId) -> RelFork {
        let relation = fork.relation() as usize;
        let locator = match self.names.get(relation) {
            Some(Some(locator)) => *locator,
            _ => {
                let shared = self.shared_names.read().unwrap_or_else(PoisonError::into_inner);
                let locator = shared[relation];
                if self.names.len() <= relation {
                    self.names.resize(relation + 1, None);
                }
                self.names[relation] = Some(locator);
                locator
            }
        };
        RelFork { locator, fork: fork.fork() }
    }

    /// A page's name.
    pub(crate) fn page_id(&mut self, key: PageKey) -> PageId {
        let RelFork { locator, fork } = self.name(key.fork);
        PageId { locator, fork, block: key.block }
    }

    /// The file a page is in, and where, in bytes.
    pub(crate) fn place(&mut self, key: PageKey) -> (PathBuf, u64) {
        let (number, offset) = place_of(key.block);
        let name = self.name(key.fork);
        (self.layout.fork_file(name, number), offset)
    }

    /// Reads a page; `false` if the file does not reach it. What is missing of a page cut short
    /// reads as zeros.
    ///
    /// With `create` a missing page is made, and its file. It is written at once: a later cut of
    /// the fork must find the length it has, whether the page was ever written back or not. (Not by
    /// setting the file's length: another worker may be making a page further on.)
    pub(crate) fn read(
        &mut self,
        key: PageKey,
        page: &mut Page,
        create: bool,
    ) -> Result<bool, FileError> {
        let (number, offset) = place_of(key.block);
        let name = self.name(key.fork);
        let layout = &self.layout;
        let path = || layout.fork_file(name, number);
        if !self.open.contains_key(&(key.fork, number)) {
            let file = if create {
                Some(layout.open_or_create(&path())?)
            } else {
                layout.open_existing(&path())?
            };
            match file {
                Some(file) => remember(&mut self.open, (key.fork, number), file),
                None => {
                    page.fill(0);
                    return Ok(false);
                }
            }
        }
        self.uses += 1;
        let open = self.open.get_mut(&(key.fork, number)).expect("was opened above");
        open.last_use = self.uses;
        let filled = open.file.read_at(offset, page)?;
        page[filled..].fill(0);
        if create && filled == 0 {
            open.file.write_at(offset, page)?;
        }
        Ok(filled > 0)
    }

    /// Writes neighbouring pages of one file, of which `first` is the first.
    pub(crate) fn write(&mut self, first: PageKey, pages: &[u8]) -> Result<(), FileError> {
        let (number, offset) = place_of(first.block);
        let name = self.name(first.fork);
        if !self.open.contains_key(&(first.fork, number)) {
            let file = self.layout.open_or_create(&self.layout.fork_file(name, number))?;
            remember(&mut self.open, (first.fork, number), file);
        }
        self.uses += 1;
        let open = self.open.get_mut(&(first.fork, number)).expect("was opened above");
        open.last_use = self.uses;
        open.file.write_at(offset, pages)
    }

    /// Closes the files of forks for which `doomed` holds.
    pub(crate) fn close(&mut self, doomed: impl Fn(ForkId) -> bool) {
        self.open.retain(|(fork, _), _| !doomed(*fork));
    }

    /// Forgets the name of a dropped relation: its number may get another one.
    pub(crate) fn forget_name(&mut self, relation: u32) {
        if let Some(name) = self.names.get_mut(relation as usize) {
            *name = None;
        }
    }
}

fn remember(
    open: &mut HashMap<FileKey, OpenFile, foldhash::fast::RandomState>,
    key: FileKey,
    file: Box<dyn DiskFile>,
) {
    if open.len() >= OPEN_FILES_MAX {
        let oldest = open.iter().min_by_key(|(_, open)| open.last_use).map(|(key, _)| *key);
        if let Some(oldest) = oldest {
            open.remove(&oldest);
        }
    }
    open.insert(key, OpenFile { file, last_use: 0 });
}

/// A run of blocks that one worker owns.
const RUN_BLOCKS: BlockNumber = 16;

/// Which worker owns a page. Neighbouring blocks stay together, so that they are written together.
pub(crate) fn owner_of(fork: ForkId, block: BlockNumber, workers: usize) -> usize {
    let run = u64::from(fork.number()) << 32 | u64::from(block / RUN_BLOCKS);
    let hash = run.wrapping_mul(0x9E37_79B9_7F4A_7C15); // 2^64 divided by the golden ratio
    ((hash >> 32) as usize).wrapping_mul(workers) >> 32
}
