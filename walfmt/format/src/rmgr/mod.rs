//! Resource managers: whose record it is, and what it contains. One file each.
//!
//! Rules: `src/include/access/rmgrlist.h`; what their records contain is in one file each.

pub mod brin;
pub mod btree;
pub mod clog;
pub mod commit_ts;
pub mod database;
pub mod generic;
pub mod gin;
pub mod gist;
pub mod hash;
pub mod heap;
pub mod heap2;
pub mod items;
pub mod logical_message;
pub mod multixact;
pub mod relmap;
pub mod replication_origin;
pub mod sequence;
pub mod smgr;
pub mod spgist;
pub mod standby;
pub mod tablespace;
pub mod xact;
pub mod xlog;

use std::fmt;

/// A resource manager's number (`RmgrId`). An open set: extensions bring their own from 128 on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RmgrId(pub u8);

/// The names of the 22 built-in resource managers, by number.
const NAMES: [&str; 22] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "Tablespace",
    "MultiXact",
    "RelMap",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "CommitTs",
    "ReplicationOrigin",
    "Generic",
    "LogicalMessage",
];

#[allow(missing_docs)] // the names are PostgreSQL's
impl RmgrId {
    pub const XLOG: Self = Self(0);
    pub const XACT: Self = Self(1);
    pub const SMGR: Self = Self(2);
    pub const CLOG: Self = Self(3);
    pub const DATABASE: Self = Self(4);
    pub const TABLESPACE: Self = Self(5);
    pub const MULTIXACT: Self = Self(6);
    pub const RELMAP: Self = Self(7);
    pub const STANDBY: Self = Self(8);
    pub const HEAP2: Self = Self(9);
    pub const HEAP: Self = Self(10);
    pub const BTREE: Self = Self(11);
    pub const HASH: Self = Self(12);
    pub const GIN: Self = Self(13);
    pub const GIST: Self = Self(14);
    pub const SEQUENCE: Self = Self(15);
    pub const SPGIST: Self = Self(16);
    pub const BRIN: Self = Self(17);
    pub const COMMIT_TS: Self = Self(18);
    pub const REPLICATION_ORIGIN: Self = Self(19);
    pub const GENERIC: Self = Self(20);
    pub const LOGICAL_MESSAGE: Self = Self(21);
}

impl RmgrId {
    /// Whether a server can have written this number: a built-in one or a custom one.
    #[must_use]
    pub const fn is_possible(self) -> bool {
        (self.0 as usize) < NAMES.len() || self.0 >= 128
    }

    /// The built-in resource manager's name as `pg_waldump` prints it.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        NAMES.get(usize::from(self.0)).copied()
    }
}

impl fmt::Display for RmgrId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "custom{:03}", self.0),
        }
    }
}

impl fmt::Debug for RmgrId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
