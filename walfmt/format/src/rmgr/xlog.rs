//! XLOG: what the server says about itself: checkpoints, parameters, and plain page images.
//!
//! ```text
//! CheckPoint, 88 bytes (also a part of pg_control)
//! offset  size  field
//!      0     8  redo               where replay from this checkpoint begins
//!      8     4  ThisTimeLineID
//!     12     4  PrevTimeLineID
//!     16     1  fullPageWrites
//!     24     8  nextXid            epoch in the high half
//!     32     4  nextOid
//!     36     4  nextMulti
//!     40     4  nextMultiOffset
//!     44     4  oldestXid
//!     48     4  oldestXidDB
//!     52     4  oldestMulti
//!     56     4  oldestMultiDB
//!     64     8  time               seconds since 1970
//!     72     4  oldestCommitTsXid
//!     76     4  newestCommitTsXid
//!     80     4  oldestActiveXid    0 in shutdown checkpoints
//!
//! PARAMETER_CHANGE, 28 bytes           RESTORE_POINT, 72 bytes
//!      0     4  MaxConnections              0     8  rp_time
//!      4     4  max_worker_processes        8    64  rp_name, NUL-terminated
//!      8     4  max_wal_senders
//!     12     4  max_prepared_xacts     END_OF_RECOVERY, 16 bytes, from 17 on 24
//!     16     4  max_locks_per_xact          0     8  end_time
//!     20     4  wal_level                   8     4  ThisTimeLineID
//!     24     1  wal_log_hints              12     4  PrevTimeLineID
//!     25     1  track_commit_timestamp     16     4  wal_level, from 17 on
//!
//!                                      OVERWRITE_CONTRECORD, 16 bytes
//! NEXTOID:     u32                          0     8  overwritten_lsn
//! BACKUP_END:  u64, where it began          8     8  overwrite_time
//! FPW_CHANGE:  bool
//! CHECKPOINT_REDO, from 17 on: i32, the wal_level
//! SWITCH, NOOP, FPI, FPI_FOR_HINT: nothing; the two last have block references
//! ```
//!
//! Times in records are `TimestampTz`: microseconds since 2000-01-01 UTC. Rules:
//! `src/include/catalog/pg_control.h`, `src/include/access/xlog_internal.h`.

use crate::bytes::{i64_at, put, u8_at, u32_at, u64_at};
use crate::cursor::{Cursor, CursorError};
use crate::lsn::{Lsn, Timeline, TransactionId};
use crate::record::Record;
use crate::version::Version;

/// `XLOG_CHECKPOINT_SHUTDOWN`.
pub const CHECKPOINT_SHUTDOWN: u8 = 0x00;
/// `XLOG_CHECKPOINT_ONLINE`.
pub const CHECKPOINT_ONLINE: u8 = 0x10;
/// `XLOG_NOOP`.
pub const NOOP: u8 = 0x20;
/// `XLOG_NEXTOID`.
pub const NEXTOID: u8 = 0x30;
/// `XLOG_SWITCH`.
pub const SWITCH: u8 = 0x40;
/// `XLOG_BACKUP_END`.
pub const BACKUP_END: u8 = 0x50;
/// `XLOG_PARAMETER_CHANGE`.
pub const PARAMETER_CHANGE: u8 = 0x60;
/// `XLOG_RESTORE_POINT`.
pub const RESTORE_POINT: u8 = 0x70;
/// `XLOG_FPW_CHANGE`.
pub const FPW_CHANGE: u8 = 0x80;
/// `XLOG_END_OF_RECOVERY`.
pub const END_OF_RECOVERY: u8 = 0x90;
/// `XLOG_FPI_FOR_HINT`.
pub const FPI_FOR_HINT: u8 = 0xA0;
/// `XLOG_FPI`.
pub const FPI: u8 = 0xB0;
/// `XLOG_OVERWRITE_CONTRECORD`.
pub const OVERWRITE_CONTRECORD: u8 = 0xD0;

/// `XLOG_CHECKPOINT_REDO`, where [`Version::checkpoints_say_wal_level`].
pub const CHECKPOINT_REDO: u8 = 0xE0;

/// Size of [`CheckPoint`] on disk, in bytes.
pub const CHECKPOINT_SIZE: usize = 88;

/// Size of a restore point's name field, in bytes (`MAXFNAMELEN`).
const RESTORE_POINT_NAME_SIZE: usize = 64;

/// A checkpoint, as its record and `pg_control` hold it (`CheckPoint`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CheckPoint {
    /// Where replay from this checkpoint begins.
    pub redo: Lsn,
    /// The timeline it is on.
    pub this_timeline: Timeline,
    /// The timeline before, if this checkpoint begins a new one; else the same.
    pub prev_timeline: Timeline,
    /// Whether the first change of each page after it carries an image.
    pub full_page_writes: bool,
    /// The next transaction id to be given out; the epoch is in the high half.
    pub next_xid: u64,
    /// The next free OID.
    pub next_oid: u32,
    /// The next free multixact id.
    pub next_multi: u32,
    /// The next free multixact member.
    pub next_multi_offset: u32,
    /// The cluster-wide minimum of `datfrozenxid`.
    pub oldest_xid: TransactionId,
    /// The database that minimum is from.
    pub oldest_xid_db: u32,
    /// The cluster-wide minimum of `datminmxid`.
    pub oldest_multi: u32,
    /// The database that minimum is from.
    pub oldest_multi_db: u32,
    /// When it began, in seconds since 1970-01-01 UTC.
    pub time: i64,
    /// The oldest transaction with a commit timestamp.
    pub oldest_commit_ts_xid: TransactionId,
    /// The newest transaction with a commit timestamp.
    pub newest_commit_ts_xid: TransactionId,
    /// The oldest transaction still running, 0 in a shutdown checkpoint.
    pub oldest_active_xid: TransactionId,
}

impl CheckPoint {
    /// Reads a checkpoint.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; CHECKPOINT_SIZE]) -> Self {
        Self {
            redo: Lsn(u64_at(bytes, 0)),
            this_timeline: Timeline(u32_at(bytes, 8)),
            prev_timeline: Timeline(u32_at(bytes, 12)),
            full_page_writes: u8_at(bytes, 16) != 0,
            next_xid: u64_at(bytes, 24),
            next_oid: u32_at(bytes, 32),
            next_multi: u32_at(bytes, 36),
            next_multi_offset: u32_at(bytes, 40),
            oldest_xid: TransactionId(u32_at(bytes, 44)),
            oldest_xid_db: u32_at(bytes, 48),
            oldest_multi: u32_at(bytes, 52),
            oldest_multi_db: u32_at(bytes, 56),
            time: i64_at(bytes, 64),
            oldest_commit_ts_xid: TransactionId(u32_at(bytes, 72)),
            newest_commit_ts_xid: TransactionId(u32_at(bytes, 76)),
            oldest_active_xid: TransactionId(u32_at(bytes, 80)),
        }
    }

    /// The checkpoint as it is on disk; padding is zero.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; CHECKPOINT_SIZE] {
        let mut bytes = [0; CHECKPOINT_SIZE];
        put(&mut bytes, 0, self.redo.0.to_le_bytes());
        put(&mut bytes, 8, self.this_timeline.0.to_le_bytes());
        put(&mut bytes, 12, self.prev_timeline.0.to_le_bytes());
        put(&mut bytes, 16, [u8::from(self.full_page_writes)]);
        put(&mut bytes, 24, self.next_xid.to_le_bytes());
        put(&mut bytes, 32, self.next_oid.to_le_bytes());
        put(&mut bytes, 36, self.next_multi.to_le_bytes());
        put(&mut bytes, 40, self.next_multi_offset.to_le_bytes());
        put(&mut bytes, 44, self.oldest_xid.0.to_le_bytes());
        put(&mut bytes, 48, self.oldest_xid_db.to_le_bytes());
        put(&mut bytes, 52, self.oldest_multi.to_le_bytes());
        put(&mut bytes, 56, self.oldest_multi_db.to_le_bytes());
        put(&mut bytes, 64, self.time.to_le_bytes());
        put(&mut bytes, 72, self.oldest_commit_ts_xid.0.to_le_bytes());
        put(&mut bytes, 76, self.newest_commit_ts_xid.0.to_le_bytes());
        put(&mut bytes, 80, self.oldest_active_xid.0.to_le_bytes());
        bytes
    }
}

/// How much the server writes to its WAL (`WalLevel`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum WalLevel {
    /// Enough for the server itself after a crash. Changes to relations created in the same
    /// transaction may be missing: such WAL cannot be replayed onto an older base.
    Minimal = 0,
    /// Enough for a standby.
    Replica = 1,
    /// Enough for logical decoding by the server.
    Logical = 2,
}

impl WalLevel {
    /// The level with this number, if there is one.
    #[must_use]
    pub const fn from_number(number: i32) -> Option<Self> {
        match number {
            0 => Some(Self::Minimal),
            1 => Some(Self::Replica),
            2 => Some(Self::Logical),
            _ => None,
        }
    }
}

/// The `wal_level` that a checkpoint's record says was in force, if this major's does: a number, as it
/// is written.
///
/// # Errors
/// [`CursorError`] if it is too short.
pub fn checkpoint_wal_level(
    main_data: &[u8],
    version: &Version,
) -> Result<Option<i32>, CursorError> {
    read_wal_level_at(main_data, 20, version)
}

/// The same of END_OF_RECOVERY.
///
/// # Errors
/// [`CursorError`] if it is too short.
pub fn end_of_recovery_wal_level(
    main_data: &[u8],
    version: &Version,
) -> Result<Option<i32>, CursorError> {
    read_wal_level_at(main_data, 16, version)
}

fn read_wal_level_at(
    main_data: &[u8],
    offset: usize,
    version: &Version,
) -> Result<Option<i32>, CursorError> {
    if !version.checkpoints_say_wal_level {
        return Ok(None);
    }
    let mut cursor = Cursor::new(main_data);
    cursor.take(offset, "what is before wal_level")?;
    cursor.i32("wal_level").map(Some)
}

/// Reads CHECKPOINT_REDO's main data: the `wal_level`, a number as it is written.
///
/// # Errors
/// [`CursorError`] if it is too short.
pub fn read_checkpoint_redo(main_data: &[u8]) -> Result<i32, CursorError> {
    Cursor::new(main_data).i32("wal_level")
}

/// Reads RESTORE_POINT's main data: when, in microseconds since 2000-01-01 UTC, and the name.
///
/// # Errors
/// [`CursorError`] if it is too short.
pub fn read_restore_point(main_data: &[u8]) -> Result<(i64, &[u8]), CursorError> {
    let mut cursor = Cursor::new(main_data);
    let time = cursor.i64("rp_time")?;
    let name = cursor.take(RESTORE_POINT_NAME_SIZE, "rp_name")?;
    Ok((time, name.split(|byte| *byte == 0).next().unwrap_or_default()))
}

/// The settings a standby must follow (`xl_parameter_change`). `L` is [`WalLevel`], or `i32` where
/// the number is kept as it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParameterChange<L = WalLevel> {
    /// `max_connections`.
    pub max_connections: i32,
    /// `max_worker_processes`.
    pub max_worker_processes: i32,
    /// `max_wal_senders`.
    pub max_wal_senders: i32,
    /// `max_prepared_transactions`.
    pub max_prepared_xacts: i32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_xact: i32,
    /// `wal_level`.
    pub wal_level: L,
    /// `wal_log_hints`.
    pub wal_log_hints: bool,
    /// `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
}

/// What an XLOG record says of the server's state. Page images are no such change: they are block
/// references, and their records read as [`Change::Noop`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The server was shut down, or ended its recovery: all counters are exact, nothing runs.
    CheckpointShutdown(CheckPoint),
    /// A checkpoint while the server runs: its counters are lower bounds, its next OID means
    /// nothing.
    CheckpointOnline(CheckPoint),
    /// OIDs up to this one are given out, or will be.
    NextOid(u32),
    /// A base backup ended; a cluster restored from it is consistent from here on.
    BackupEnd {
        /// Where that backup began: the redo position of its checkpoint.
        start_point: Lsn,
    },
    /// Settings changed.
    ParameterChange(ParameterChange),
    /// A point with a name.
    RestorePoint {
        /// When, in microseconds since 2000-01-01 UTC.
        time: i64,
        /// Its name; bytes, as the server does not say in which encoding.
        name: Vec<u8>,
    },
    /// `full_page_writes` was switched on or off.
    FullPageWrites(bool),
    /// Recovery ended without a checkpoint; perhaps a new timeline begins.
    EndOfRecovery {
        /// When, in microseconds since 2000-01-01 UTC.
        time: i64,
        /// The timeline from here on.
        this_timeline: Timeline,
        /// The timeline before.
        prev_timeline: Timeline,
    },
    /// The record that began at `overwritten` was never finished.
    OverwriteContrecord {
        /// Where the abandoned record begins.
        overwritten: Lsn,
        /// When, in microseconds since 2000-01-01 UTC.
        time: i64,
    },
    /// The rest of the segment is unused.
    Switch,
    /// Nothing: an empty record, or one that only carries page images.
    Noop,
}

/// An XLOG record that is not what it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum XlogError {
    /// Too few or too many bytes.
    #[error(transparent)]
    Length(#[from] CursorError),
    /// No such opcode.
    #[error("unknown opcode {0:#04x}")]
    Opcode(u8),
    /// No such `wal_level`.
    #[error("wal_level is {0}, expected 0, 1 or 2")]
    WalLevel(i32),
}

impl Change {
    /// Reads an XLOG record's main data.
    ///
    /// # Errors
    /// [`XlogError`] if it is too short or its opcode is unknown.
    pub fn read(record: &Record<'_>) -> Result<Self, XlogError> {
        let mut cursor = Cursor::new(record.main_data);
        Ok(match record.header.opcode() {
            CHECKPOINT_SHUTDOWN => {
                Self::CheckpointShutdown(CheckPoint::from_bytes(cursor.array("CheckPoint")?))
            }
            CHECKPOINT_ONLINE => {
                Self::CheckpointOnline(CheckPoint::from_bytes(cursor.array("CheckPoint")?))
            }
            NOOP | FPI | FPI_FOR_HINT => Self::Noop,
            NEXTOID => Self::NextOid(cursor.u32("nextOid")?),
            SWITCH => Self::Switch,
            BACKUP_END => Self::BackupEnd { start_point: Lsn(cursor.u64("startpoint")?) },
            PARAMETER_CHANGE => Self::ParameterChange(ParameterChange::read(record.main_data)?),
            RESTORE_POINT => {
                let (time, name) = read_restore_point(record.main_data)?;
                Self::RestorePoint { time, name: name.to_vec() }
            }
            FPW_CHANGE => Self::FullPageWrites(cursor.u8("fullPageWrites")? != 0),
            END_OF_RECOVERY => Self::EndOfRecovery {
                time: cursor.i64("end_time")?,
                this_timeline: Timeline(cursor.u32("ThisTimeLineID")?),
                prev_timeline: Timeline(cursor.u32("PrevTimeLineID")?),
            },
            OVERWRITE_CONTRECORD => Self::OverwriteContrecord {
                overwritten: Lsn(cursor.u64("overwritten_lsn")?),
                time: cursor.i64("overwrite_time")?,
            },
            opcode => return Err(XlogError::Opcode(opcode)),
        })
    }
}

impl ParameterChange {
    fn read(main_data: &[u8]) -> Result<Self, XlogError> {
        let written = ParameterChange::<i32>::read_written(main_data)?;
        let wal_level = written.wal_level;
        Ok(Self {
            max_connections: written.max_connections,
            max_worker_processes: written.max_worker_processes,
            max_wal_senders: written.max_wal_senders,
            max_prepared_xacts: written.max_prepared_xacts,
            max_locks_per_xact: written.max_locks_per_xact,
            wal_level: WalLevel::from_number(wal_level).ok_or(XlogError::WalLevel(wal_level))?,
            wal_log_hints: written.wal_log_hints,
            track_commit_timestamp: written.track_commit_timestamp,
        })
    }
}

impl ParameterChange<i32> {
    /// Reads PARAMETER_CHANGE's main data as they are written, whether or not there is such a
    /// `wal_level`.
    ///
    /// # Errors
    /// [`CursorError`] if they are too short.
    pub fn read_written(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        Ok(Self {
            max_connections: cursor.i32("MaxConnections")?,
            max_worker_processes: cursor.i32("max_worker_processes")?,
            max_wal_senders: cursor.i32("max_wal_senders")?,
            max_prepared_xacts: cursor.i32("max_prepared_xacts")?,
            max_locks_per_xact: cursor.i32("max_locks_per_xact")?,
            wal_level: cursor.i32("wal_level")?,
            wal_log_hints: cursor.u8("wal_log_hints")? != 0,
            track_commit_timestamp: cursor.u8("track_commit_timestamp")? != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_reads_back_as_written() {
        let mut bytes = [0_u8; CHECKPOINT_SIZE];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = at as u8 + 1;
        }
        bytes[16] = 1;
        let padding = (17..24).chain(60..64).chain(84..88);
        padding.for_each(|at| bytes[at] = 0);
        let checkpoint = CheckPoint::from_bytes(&bytes);
        assert_eq!(checkpoint.redo, Lsn(0x0807_0605_0403_0201));
        assert_eq!(checkpoint.oldest_active_xid, TransactionId(0x5453_5251));
        assert_eq!(checkpoint.to_bytes(), bytes);
    }
}
