//! What can go wrong, by who must act.

use std::io;
use std::path::{Path, PathBuf};

use walfmt::control::{ClusterState, ControlError};
use walfmt::relation::PageId;
use walfmt::replication_state::ReplicationStateError;
use walfmt::rmgr::RmgrId;
use walfmt::two_phase::TwoPhaseError;
use walfmt::{DecodeError, Lsn, RelFileLocator, Timeline};
use walfmt_physical::RedoError;

/// A file call that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}: {source}", path.display())]
pub struct FileError {
    /// What was tried, as a verb.
    pub action: &'static str,
    /// With which file.
    pub path: PathBuf,
    /// What the operating system said.
    pub source: io::Error,
}

impl FileError {
    /// Whether it was a sync. Then the kernel may have dropped what was written, and may call the
    /// next sync a success.
    #[must_use]
    pub fn is_sync(&self) -> bool {
        self.action.starts_with("sync")
    }

    /// Whether the file was not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// For `map_err`: names the call and the file.
    pub(crate) fn of(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self { action, path: path.to_owned(), source }
    }
}

/// The store is somebody's already.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// A server runs in the directory, or another agent.
    #[error("process {pid} is running in {}, as its postmaster.pid says", directory.display())]
    Server {
        /// That process.
        pid: u32,
        /// The data directory.
        directory: PathBuf,
    },
    /// Another agent, or another part of this one, has the store open.
    #[error("{} is open already{}", directory.display(), pid.map(|pid| format!(", by process {pid}")).unwrap_or_default())]
    Agent {
        /// That process, if its postmaster.pid can be read.
        pid: Option<u32>,
        /// The data directory.
        directory: PathBuf,
    },
    /// The lock's files could not be read or written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Why a directory cannot be opened as a store.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file call failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// Somebody else has it.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// `pg_control` cannot be used.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// `PG_VERSION` does not name the major that `pg_control` belongs to.
    #[error("PG_VERSION says {found:?}, pg_control belongs to {expected}")]
    Major {
        /// The major of the control file.
        expected: u16,
        /// The contents of `PG_VERSION`.
        found: String,
    },
    /// The directory is not a store: a server left it in another state.
    #[error("pg_control is in state {}, expected {} (in archive recovery)", found.0, ClusterState::IN_ARCHIVE_RECOVERY.0)]
    State {
        /// The state found.
        found: ClusterState,
    },
    /// A base backup that was not prepared yet.
    #[error("{} is there: a base backup that was not made a store", path.display())]
    BackupLabel {
        /// The label.
        path: PathBuf,
    },
    /// Something in `pg_tblspc` is not a tablespace of this store.
    #[error("{}: {what}", path.display())]
    Tablespace {
        /// An entry of `pg_tblspc`.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// A file of `pg_twophase` is not what it can be.
    #[error("{}: {source}", path.display())]
    TwoPhase {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: TwoPhaseError,
    },
    /// `pg_logical/replorigin_checkpoint` is not what it can be.
    #[error("{}: {source}", path.display())]
    Origins {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ReplicationStateError,
    },
    /// The cluster has a setting that cannot be replayed.
    #[error("pg_control: {0}")]
    Refused(Refusal),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
}

/// Something a leader can do that walferry does not follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Without page images a crash leaves torn pages that no record repairs.
    #[error("full_page_writes is off: pages torn by a crash could not be repaired")]
    FullPageWritesOff,
    /// Changes to relations created in the same transaction may be missing from the WAL.
    #[error("wal_level is minimal: the WAL does not hold all changes")]
    WalLevelMinimal,
    /// Timelines are not followed.
    #[error("a new timeline begins, {to} after {from}: timelines are not followed yet")]
    Timeline {
        /// The store's timeline.
        from: Timeline,
        /// The record's timeline.
        to: Timeline,
    },
    /// The leader was shut down while the base backup was taken.
    #[error(
        "the base backup the store comes from was canceled on the leader: it cannot become consistent"
    )]
    BackupCanceled,
    /// Shared relations lie in `pg_global`, and no others.
    #[error("there can be no relation {0}: tablespace and database do not fit together")]
    Place(RelFileLocator),
}

/// What is wrong with a page, found by the worker that owns it.
#[derive(Debug, thiserror::Error)]
pub enum PageFault {
    /// The record does not fit the page.
    #[error("{page}: {source}")]
    Redo {
        /// The page.
        page: PageId,
        /// What redo said.
        source: RedoError,
    },
    /// The page on disk is not what was written.
    #[error("{page} has checksum {found:#06x}, expected {expected:#06x} (byte {offset} of {})", file.display())]
    Checksum {
        /// The page.
        page: PageId,
        /// The file it was read from.
        file: PathBuf,
        /// Where in the file.
        offset: u64,
        /// Computed over the page.
        expected: u16,
        /// `pd_checksum`.
        found: u16,
    },
    /// The page after replay is not the leader's, of which the record carries an image.
    #[error(
        "{page} differs from the leader's at byte {offset} after a {rmgr} record, opcode \
         {opcode:#04x}: expected {expected:#04x}, found {found:#04x}"
    )]
    Differs {
        /// The page.
        page: PageId,
        /// The record's resource manager.
        rmgr: RmgrId,
        /// The record's opcode (`xl_info & 0xF0`).
        opcode: u8,
        /// The first byte that differs, counted from the page's start.
        offset: usize,
        /// The leader's byte.
        expected: u8,
        /// Ours.
        found: u8,
    },
    /// The page, or the leader's image of it, cannot be compared.
    #[error("{page} cannot be compared with the record's image of it: {what}")]
    Image {
        /// The page.
        page: PageId,
        /// What is wrong.
        what: String,
    },
    /// A consistent store lacks a page that the record changes.
    #[error("{page} is missing or empty, and the store was consistent before")]
    Missing {
        /// The page.
        page: PageId,
    },
    /// A file call failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// A record that the dispatcher could decode, the worker could not: an invariant of ours.
    #[error("a record changed on its way to a worker: {0}")]
    Record(DecodeError),
}

/// Why a database cannot be copied as it was at a record. PostgreSQL would go on, and lose data: it
/// can happen when a database is created with `STRATEGY file_copy` while a base backup is taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CopyFault {
    /// The source was changed after the record.
    #[error("its source is newer: block {block} of {} is as of {lsn}", file.display())]
    Newer {
        /// A file of the source.
        file: PathBuf,
        /// The page's block in this file.
        block: u64,
        /// The page's LSN.
        lsn: Lsn,
    },
    /// The source was removed after the record, and the copy is still there.
    #[error("its source {} is gone, and {} would be lost", from.display(), to.display())]
    Gone {
        /// The source's directory.
        from: PathBuf,
        /// The copy's directory.
        to: PathBuf,
    },
}

/// Why replay stopped.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The record's contents contradict themselves.
    #[error("record at {at}: {source}")]
    Decode {
        /// Where it begins.
        at: Lsn,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The record cannot be replayed. Nothing of it was applied.
    #[error(transparent)]
    Redo(#[from] RedoError),
    /// The record says something of the leader that walferry does not follow. Nothing of it was
    /// applied.
    #[error("record at {at}: {refusal}")]
    Refused {
        /// Where it begins.
        at: Lsn,
        /// What.
        refusal: Refusal,
    },
    /// A worker stopped at a page. Later records may be on other pages already, up to
    /// `others_reached`: the store is consistent again only when replayed past that.
    #[error("record at {at}: {fault} (pages of other workers are at {others_reached})")]
    Page {
        /// Where the record begins.
        at: Lsn,
        /// What is wrong with the page.
        fault: PageFault,
        /// The end of the last record that any worker has applied something of.
        others_reached: Lsn,
    },
    /// A database cannot be copied as it was at this record. Nothing of the record was applied.
    #[error("record at {at}, a file copy of a database: {fault}")]
    Copy {
        /// Where the record begins.
        at: Lsn,
        /// Why not.
        fault: CopyFault,
    },
    /// A page is missing in a consistent store, seen before anything was applied.
    #[error("record at {at}: {page} is missing, and the store was consistent before")]
    Missing {
        /// Where the record begins.
        at: Lsn,
        /// The page.
        page: PageId,
    },
    /// A file call of the dispatcher failed.
    #[error("replay at {at}: {source}")]
    File {
        /// How far replay had come.
        at: Lsn,
        /// The call.
        source: FileError,
    },
    /// Records must come in the order of the WAL.
    #[error("record at {found} was given after the one that ends at {expected}")]
    Order {
        /// The end of the record before.
        expected: Lsn,
        /// The record's start.
        found: Lsn,
    },
    /// Replay stopped before, at this record or position; the reason was given then.
    #[error("replay stopped at {at}")]
    Stopped {
        /// Where.
        at: Lsn,
    },
    /// A thread of the store is gone: an invariant of ours is broken.
    #[error("a thread of the page store ended unexpectedly")]
    ThreadGone,
}

/// Why the store is not consistent (yet).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotConsistent {
    /// The store was not stopped cleanly, and nobody said how far the archive reached.
    #[error("the store was not stopped cleanly, and how far it had come is not known")]
    UncleanStop,
    /// The end of the base backup was not replayed.
    #[error("the end of the base backup begun at {start} was not replayed yet")]
    BackupEnd {
        /// The backup's redo pointer.
        start: Lsn,
    },
    /// Pages may be ahead of replay.
    #[error("replayed up to {applied}, pages may be as of {required}")]
    Behind {
        /// Where replay is.
        applied: Lsn,
        /// Where it must be.
        required: Lsn,
    },
    /// Records changed pages that are not there, and no later record explained it.
    #[error("{count} pages that records changed are missing, the first is {first} at {at}")]
    InvalidPages {
        /// How many.
        count: usize,
        /// One of them.
        first: PageId,
        /// The record that changed it.
        at: Lsn,
    },
}

/// Why the store cannot be handed over to a server.
#[derive(Debug, thiserror::Error)]
pub enum PromotionError {
    /// A server would find pages from the future.
    #[error("the store is not consistent: {0}")]
    NotConsistent(#[from] NotConsistent),
    /// Replay stopped.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// The lock could not be released.
    #[error(transparent)]
    File(#[from] FileError),
    /// The server will replay CREATE TABLESPACE, which takes the leader's location as it is.
    #[error("the server will replay the creation of tablespace {tablespace} at {at} and needs an empty directory {}", location.display())]
    Tablespace {
        /// Its OID.
        tablespace: u32,
        /// Where the record begins.
        at: Lsn,
        /// The location that the record names.
        location: PathBuf,
    },
}

/// Why a base backup cannot be made a store.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// A file call failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// `pg_control` cannot be used.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The checkpoint is not the one the label speaks of.
    #[error("{field} of the checkpoint is {found}, backup_label says {expected}")]
    Checkpoint {
        /// Which field.
        field: &'static str,
        /// What the label says.
        expected: String,
        /// What the checkpoint says.
        found: String,
    },
    /// The cluster has a setting that cannot be replayed.
    #[error("pg_control: {0}")]
    Refused(Refusal),
    /// A backup said to be from a standby whose control file is not that of one.
    #[error("backup_label says the backup is from a standby, pg_control is in state {}", found.0)]
    NotFromStandby {
        /// The state found.
        found: ClusterState,
    },
}
