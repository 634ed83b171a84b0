//! What a WAL record does to a cluster's files: pure functions over page bytes, and file actions.
//!
//! Redo has two halves, so that it can run on as many threads as there are pages:
//!
//! ```text
//!   record ──► route ──┬─► PageAccess::change_page (page, change)   one call per page, cheap:
//!                      │                                            no page is looked at
//!                      └─► PageAccess::…                           what is not a page: files,
//!                                                                  transaction status, checkpoints
//!   (record, change, page bytes) ──► redo_page ──► PageOutcome      whoever owns the page
//! ```
//!
//! [`route`] runs once per record, in LSN order, on one thread. [`redo_page`] runs for each page
//! change, in LSN order *within that page*, wherever the page lives; it needs the record and this
//! one page, never another page. That one rule carries the whole parallel design; its only
//! exception, a free space map entry computed from a heap page after its redo, is handed back in
//! [`PageOutcome::free_space`].
//!
//! A pruned page may be left [`Loose`], for its owner to pack before anybody else sees it.
//!
//! One file per resource manager says what its records do; what they contain is in the file of the
//! same name in `walfmt::rmgr`.
#![forbid(unsafe_code)]

mod btree;
pub mod btree_search;
mod clog;
mod commit_ts;
mod database;
mod fault;
#[cfg(test)]
mod fixture;
pub mod freespace;
mod generic;
mod heap;
mod heap2;
mod logical_message;
mod loose;
pub mod mask;
mod multixact;
pub mod page;
mod redo;
mod relmap;
mod replication_origin;
mod route;
mod rows;
mod sequence;
mod smgr;
mod tablespace;
pub mod toast;
pub mod visibilitymap;
mod xact;
mod xlog;

pub use commit_ts::CommitTsChange;
pub use freespace::free_space_page;
pub use loose::Loose;
pub use multixact::MultiXactChange;
pub use redo::{likely_item, page_need, redo_page};
pub use replication_origin::OriginChange;
pub use route::{RouteError, route};
pub use rows::{changes_rows, write_rows};

use walfmt::relation::{BlockNumber, DatabaseLocator, PageId, RelFileLocator, RelFork};
use walfmt::rmgr::heap2::RewriteMapping;
use walfmt::rmgr::relmap::RelationMap;
use walfmt::rmgr::tablespace::CreateTablespace;
use walfmt::rmgr::xact::Prepare;
use walfmt::{Lsn, Record, TransactionId, Version};

/// A page, 8 kB.
pub type Page = [u8; walfmt::BLOCK_SIZE];

/// What redo must know that no record says.
#[derive(Clone, Copy, Debug)]
pub struct RedoContext {
    /// The major the WAL comes from.
    pub version: &'static Version,
    /// Whether hint bits are WAL-logged: data checksums are on, or `wal_log_hints`
    /// (`XLogHintBitIsNeeded`). Decides whether marking a heap page all-visible stamps its LSN.
    pub hint_bits_are_logged: bool,
}

/// A change to one page. Small and `Copy`: it travels to the page's owner beside the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageChange {
    /// What the record says of its block reference at this index of `Record::blocks`.
    Block(u8),
    /// Clear these visibility bits of a heap block, with neither LSN test nor LSN stamp
    /// (`visibilitymap_clear`): records of a change to an all-visible heap page imply it.
    ClearVisibility {
        /// The heap block.
        heap_block: BlockNumber,
        /// Which of its bits.
        bits: u8,
    },
    /// Note how much free space a heap page has. A hint: no LSN test, no LSN stamp.
    RecordFreeSpace {
        /// The heap block.
        heap_block: BlockNumber,
        /// Its free space in bytes.
        free_bytes: u16,
    },
    /// The heap was cut to this many blocks: forget what the map page says of the rest.
    TruncateVisibility {
        /// Heap blocks left.
        heap_blocks: BlockNumber,
    },
    /// The heap was cut to this many blocks: forget what the page says of the rest.
    TruncateFreeSpace {
        /// Heap blocks left.
        heap_blocks: BlockNumber,
    },
}

/// What the page's owner must have at hand before [`redo_page`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageNeed {
    /// Nothing: the change rebuilds the page, whatever bytes it is given. Extend the fork to it if
    /// need be.
    Nothing,
    /// The page as it is. If the fork does not reach it, or it is all zero, the change does not
    /// happen and the page goes into the table of invalid pages.
    Existing,
    /// The page as it is, or zeros if the fork does not reach it, which is then extended; a page
    /// whose checksum is wrong counts as zeros too (`RBM_ZERO_ON_ERROR`).
    ExistingOrZero,
    /// The page as it is; nothing happens if the fork does not reach it.
    IfExists,
}

/// What became of a page. One word: it goes through many hands, once for each change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageOutcome(u32);

impl PageOutcome {
    const CHANGED: u32 = 1 << 16;
    const MISSING: Self = Self(1 << 17);
    const HAS_FREE_SPACE: u32 = 1 << 18;

    fn new(changed: bool, free_space: Option<u16>) -> Self {
        let free_space = free_space.map(|bytes| Self::HAS_FREE_SPACE | u32::from(bytes));
        Self(free_space.unwrap_or(0) | if changed { Self::CHANGED } else { 0 })
    }

    /// Its bytes were changed.
    #[must_use]
    pub const fn changed(self) -> bool {
        self.0 & Self::CHANGED != 0
    }

    /// It was all zero where the record expects a page: an entry for the table of invalid pages.
    #[must_use]
    pub const fn missing(self) -> bool {
        self.0 & Self::MISSING.0 != 0
    }

    /// The heap page's free space in bytes, to be told to the free space map's page.
    #[must_use]
    pub const fn free_space(self) -> Option<u16> {
        if self.0 & Self::HAS_FREE_SPACE == 0 { None } else { Some(self.0 as u16) }
    }
}

/// Bits of a transaction's status in `pg_xact`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionStatus {
    /// 1.
    Committed,
    /// 2.
    Aborted,
}

/// Where the effects of records go. Called by [`route`], in LSN order, from one thread.
///
/// Each method's record is the one given to `route`. An error stops replay before the record.
pub trait PageAccess {
    /// Why an effect could not be taken.
    type Error;

    /// `record` changes `page`; hand it to the page's owner, who calls [`redo_page`].
    fn change_page(
        &mut self,
        record: &Record<'_>,
        page: PageId,
        change: PageChange,
    ) -> Result<(), Self::Error>;

    /// Create the fork's file, if it is not there.
    fn create_fork(&mut self, fork: RelFork) -> Result<(), Self::Error>;

    /// Cut a fork to `blocks` blocks; pages from there on are forgotten, also in the table of
    /// invalid pages. A fork that is shorter, or not there, stays as it is. The changes to its last map page were handed over before this call.
    fn truncate_fork(&mut self, fork: RelFork, blocks: BlockNumber) -> Result<(), Self::Error>;

    /// Remove all forks of these relations.
    fn drop_relations(
        &mut self,
        locators: &mut dyn Iterator<Item = RelFileLocator>,
    ) -> Result<(), Self::Error>;

    /// Replace a relation map.
    fn write_relation_map(&mut self, map: &RelationMap<'_>) -> Result<(), Self::Error>;

    /// Make a database's directory and its `PG_VERSION`; no error if they are there. Its files
    /// follow one by one.
    fn create_database(&mut self, directory: DatabaseLocator) -> Result<(), Self::Error>;

    /// Make `to`, which is removed if it is there, a copy of `from` as of this record, which is
    /// made empty if it is not there.
    fn copy_database(
        &mut self,
        from: DatabaseLocator,
        to: DatabaseLocator,
    ) -> Result<(), Self::Error>;

    /// Remove these directories and all that is in them.
    fn drop_databases(
        &mut self,
        directories: &mut dyn Iterator<Item = DatabaseLocator>,
    ) -> Result<(), Self::Error>;

    /// Make a tablespace's directory; no error if it is there.
    fn create_tablespace(&mut self, create: &CreateTablespace<'_>) -> Result<(), Self::Error>;

    /// Remove a tablespace's directory, as far as it is empty.
    fn drop_tablespace(&mut self, tablespace: u32) -> Result<(), Self::Error>;

    /// Write to a file of `pg_logical/mappings`, and cut it to where that ends.
    fn write_rewrite_mapping(
        &mut self,
        record: &Record<'_>,
        mapping: &RewriteMapping<'_>,
    ) -> Result<(), Self::Error>;

    /// Write the outcome of these transactions (one and its subtransactions) into `pg_xact`.
    fn set_transaction_status(
        &mut self,
        xids: &mut dyn Iterator<Item = TransactionId>,
        status: TransactionStatus,
    ) -> Result<(), Self::Error>;

    /// Make this page of `pg_xact` zeros.
    fn zero_clog_page(&mut self, page: u64) -> Result<(), Self::Error>;

    /// Remove the segments of `pg_xact` wholly before this page.
    fn truncate_clog(&mut self, page: u64) -> Result<(), Self::Error>;

    /// Change `pg_multixact`.
    fn change_multixacts(&mut self, change: &MultiXactChange<'_>) -> Result<(), Self::Error>;

    /// Change the pages of `pg_commit_ts`.
    fn change_commit_times(&mut self, change: &CommitTsChange) -> Result<(), Self::Error>;

    /// Write when these transactions (one and its subtransactions, in the record's order)
    /// committed into `pg_commit_ts`, if it is kept. `time` is in microseconds since 2000-01-01
    /// UTC, `origin` the replication origin they come from, or 0.
    fn set_commit_time(
        &mut self,
        xids: &mut dyn Iterator<Item = TransactionId>,
        time: i64,
        origin: u16,
    ) -> Result<(), Self::Error>;

    /// A transaction is prepared; main data of the record are its state, to be kept until it
    /// [ends](Self::finish_prepared). Gives `false` if it is known already, from its file.
    fn prepare_transaction(
        &mut self,
        record: &Record<'_>,
        prepare: &Prepare<'_>,
    ) -> Result<bool, Self::Error>;

    /// A prepared transaction has ended: its state is not needed any more. There may be none.
    fn finish_prepared(&mut self, xid: TransactionId) -> Result<(), Self::Error>;

    /// Change the progress of a replication origin.
    fn change_origin(&mut self, change: &OriginChange) -> Result<(), Self::Error>;

    /// The record's transaction id (and those it lists) have been given out.
    fn advance_next_xid(&mut self, xid: TransactionId) -> Result<(), Self::Error>;

    /// The record is about the server's state: checkpoints, parameters, end of backup, next OID.
    /// No page is touched.
    fn server_state(
        &mut self,
        record: &Record<'_>,
        change: &walfmt::rmgr::xlog::Change,
    ) -> Result<(), Self::Error>;
}

/// Why a record was not replayed.
#[derive(Debug, thiserror::Error)]
pub enum RedoError {
    /// walferry does not replay this kind of record.
    #[error("{rmgr} record, opcode {opcode:#04x}, at {lsn}: {what}")]
    Unsupported {
        /// Its resource manager.
        rmgr: walfmt::rmgr::RmgrId,
        /// Its opcode (`xl_info & 0xF0`).
        opcode: u8,
        /// Where it begins.
        lsn: Lsn,
        /// What exactly is not supported, in a few words.
        what: &'static str,
    },
    /// The record's contents, or the page it should change, are not what they can be.
    #[error("{rmgr} record, opcode {opcode:#04x}, at {lsn}: {what}")]
    Corrupt {
        /// Its resource manager.
        rmgr: walfmt::rmgr::RmgrId,
        /// Its opcode (`xl_info & 0xF0`).
        opcode: u8,
        /// Where it begins.
        lsn: Lsn,
        /// What was expected and what was found.
        what: String,
    },
}
