//! Which file and page a record speaks of.

use std::fmt;

/// The page size walferry supports (`BLCKSZ`), in bytes. WAL pages have the same size.
pub const BLOCK_SIZE: usize = 8192;

/// A block's number within its fork, across the fork's 1 GB files (`BlockNumber`).
pub type BlockNumber = u32;

/// PostgreSQL's `InvalidBlockNumber`.
pub const INVALID_BLOCK: BlockNumber = BlockNumber::MAX;

/// How many blocks one file of a relation fork holds (`RELSEG_SIZE`).
pub const BLOCKS_PER_FILE: BlockNumber = 131_072;

/// The tablespace `pg_default` (`base/`).
pub const DEFAULT_TABLESPACE: u32 = 1663;
/// The tablespace `pg_global` (`global/`).
pub const GLOBAL_TABLESPACE: u32 = 1664;

/// The file set of one relation: `RelFileLocator` (`RelFileNode` up to PostgreSQL 15), 12 bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelFileLocator {
    /// Tablespace OID (`spcOid`).
    pub tablespace: u32,
    /// Database OID (`dbOid`), 0 for shared relations.
    pub database: u32,
    /// File number (`relNumber`), which changes when the relation is rewritten.
    pub relation: u32,
}

impl fmt::Display for RelFileLocator {
    /// `spc/db/rel`, as `pg_waldump` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tablespace, self.database, self.relation)
    }
}

impl fmt::Debug for RelFileLocator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A database's directory in one tablespace; it may have one in each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DatabaseLocator {
    /// Tablespace OID.
    pub tablespace: u32,
    /// Database OID; 0 stands for the shared relations, in `pg_global`.
    pub database: u32,
}

impl RelFileLocator {
    /// The directory that the relation's files are in.
    #[must_use]
    pub const fn directory(self) -> DatabaseLocator {
        DatabaseLocator { tablespace: self.tablespace, database: self.database }
    }
}

/// A relation's fork (`ForkNumber`, `src/include/common/relpath.h`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ForkNumber {
    /// The relation's own data.
    #[default]
    Main = 0,
    /// Free space map.
    FreeSpace = 1,
    /// Visibility map.
    VisibilityMap = 2,
    /// What an unlogged relation is reset to after a crash.
    Init = 3,
}

impl ForkNumber {
    /// All forks, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Main, Self::FreeSpace, Self::VisibilityMap, Self::Init];

    /// The fork with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(number).ok()?).copied()
    }

    /// What follows the relation number in a file's name.
    #[must_use]
    pub const fn file_suffix(self) -> &'static str {
        match self {
            Self::Main => "",
            Self::FreeSpace => "_fsm",
            Self::VisibilityMap => "_vm",
            Self::Init => "_init",
        }
    }
}

/// One fork of one relation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelFork {
    /// The relation's files.
    pub locator: RelFileLocator,
    /// Which of its forks.
    pub fork: ForkNumber,
}

/// One page of one fork of one relation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId {
    /// The relation's files.
    pub locator: RelFileLocator,
    /// Which of its forks.
    pub fork: ForkNumber,
    /// The page's number within the fork.
    pub block: BlockNumber,
}

impl PageId {
    /// The fork this page is in.
    #[must_use]
    pub const fn rel_fork(self) -> RelFork {
        RelFork { locator: self.locator, fork: self.fork }
    }
}

impl fmt::Display for PageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{} block {}", self.locator, self.fork.file_suffix(), self.block)
    }
}
