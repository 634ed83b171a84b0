//! What an inspection found.

use std::fmt;

use walfmt::page::PageError;
use walfmt::{BlockNumber, Lsn};

/// Everything that was looked at, and what is wrong.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// Files of relations.
    pub files: u64,
    /// Their pages.
    pub pages: u64,
    /// How many of those are all zero: added to a file and never filled.
    pub empty_pages: u64,
    /// Pages of transaction status, multixacts and commit timestamps.
    pub slru_pages: u64,
    /// Relation maps.
    pub relation_maps: u64,
    /// Files of prepared transactions.
    pub prepared_transactions: u64,
    /// What is wrong.
    pub damages: Listing,
    /// Damaged pages of free space and visibility maps: they count as zeros, and nothing is lost.
    pub damaged_maps: Listing,
    /// Files among the relations' that are none, relative to the data directory.
    pub not_checked: Vec<String>,
}

impl Findings {
    pub(super) fn add(&mut self, other: Self) {
        self.pages += other.pages;
        self.empty_pages += other.empty_pages;
        self.damages.add(other.damages);
        self.damaged_maps.add(other.damaged_maps);
    }

    pub(super) fn sort(&mut self) {
        self.damages.listed.sort();
        self.damaged_maps.listed.sort();
        self.not_checked.sort();
    }
}

/// Damage, listed up to a bound: a disk can lose more than anybody would read.
#[derive(Clone, Debug, Default)]
pub struct Listing {
    count: u64,
    beyond_repair: u64,
    listed: Vec<Damage>,
}

impl Listing {
    /// How much there is.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// How much of it replay would not repair, see [`DamageKind::may_be_repaired`].
    #[must_use]
    pub const fn beyond_repair(&self) -> u64 {
        self.beyond_repair
    }

    /// What is listed of it, by file and block: all up to [`Listing::MAX`].
    #[must_use]
    pub fn listed(&self) -> &[Damage] {
        &self.listed
    }

    /// How many are listed.
    pub const MAX: usize = 1000;

    pub(super) fn push(&mut self, damage: Damage) {
        self.count += 1;
        self.beyond_repair += u64::from(!damage.kind.may_be_repaired());
        if self.listed.len() < Self::MAX {
            self.listed.push(damage);
        }
    }

    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.beyond_repair += other.beyond_repair;
        let room = Self::MAX.saturating_sub(self.listed.len());
        self.listed.extend(other.listed.into_iter().take(room));
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Damage {
    /// The file, relative to the data directory.
    pub file: String,
    /// The page, counted from the begin of the fork, not of the file; nothing if it is the file.
    pub block: Option<BlockNumber>,
    /// What.
    pub kind: DamageKind,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.block {
            Some(block) => write!(f, "{} block {block}: {}", self.file, self.kind),
            None => write!(f, "{}: {}", self.file, self.kind),
        }
    }
}

/// What is wrong with a page or a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum DamageKind {
    /// The page is not what was written.
    #[error("checksum {found:#06x}, expected {expected:#06x}")]
    Checksum {
        /// Computed over the page.
        expected: u16,
        /// `pd_checksum`.
        found: u16,
    },
    /// The page's header contradicts itself, or a page that was never filled is not all zero.
    #[error("{0}")]
    Header(String),
    /// The page is newer than the store.
    #[error("LSN {found}, expected at most {newest}, the store's minimum recovery point")]
    Newer {
        /// Of the store, see [`Inspection::newest`](super::Inspection::newest).
        newest: Lsn,
        /// The page's.
        found: Lsn,
    },
    /// A relation file of no length that one can have at its place.
    #[error("{found} bytes, expected {expected}")]
    Length {
        /// In words.
        expected: &'static str,
        /// In bytes.
        found: u64,
    },
    /// A part of it cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(String),
    /// A file that is right or wrong as a whole.
    #[error("{0}")]
    Whole(String),
}

impl From<PageError> for DamageKind {
    fn from(error: PageError) -> Self {
        Self::Header(error.to_string())
    }
}

impl DamageKind {
    /// Whether replay from the last restart point may repair it, after an unclean stop.
    #[must_use]
    pub const fn may_be_repaired(&self) -> bool {
        !matches!(self, Self::Unreadable(_) | Self::Whole(_))
    }
}
