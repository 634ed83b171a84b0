//! `global/pg_control`: what a cluster knows about itself.
//!
//! ```text
//! offset  size  field
//!      0     8  system_identifier
//!      8     4  pg_control_version
//!     12     4  catalog_version_no
//!     16     4  state                     DBState
//!     24     8  time                      seconds since 1970
//!     32     8  checkPoint                LSN of the last checkpoint record
//!     40    88  checkPointCopy            that record's contents
//!    128     8  unloggedLSN
//!    136     8  minRecoveryPoint
//!    144     4  minRecoveryPointTLI
//!    152     8  backupStartPoint
//!    160     8  backupEndPoint
//!    168     1  backupEndRequired
//!    172     4  wal_level
//!    176     1  wal_log_hints
//!    180     4  MaxConnections
//!    184     4  max_worker_processes
//!    188     4  max_wal_senders
//!    192     4  max_prepared_xacts
//!    196     4  max_locks_per_xact
//!    200     1  track_commit_timestamp
//!    204     4  maxAlign                  8
//!    208     8  floatFormat               1234567.0
//!    216     4  blcksz
//!    220     4  relseg_size
//!    224     4  xlog_blcksz
//!    228     4  xlog_seg_size
//!    252     4  data_checksum_version     0 or 1
//!    288     4  crc                       CRC-32C of all before; elsewhere in other majors
//!    ...        zeros up to 8192
//! ```
//!
//! Rules: `src/include/catalog/pg_control.h`, `src/common/controldata_utils.c`.

use std::fmt;

use crate::bytes::{i32_at, i64_at, put, u8_at, u32_at, u64_at};
use crate::lsn::{Lsn, Timeline};
use crate::relation::{BLOCK_SIZE, BLOCKS_PER_FILE};
use crate::rmgr::xlog::CheckPoint;
use crate::segment::SegmentSize;
use crate::version::Version;

/// The file's length in bytes.
pub const CONTROL_FILE_SIZE: usize = 8192;

const CHECK_POINT_OFFSET: usize = 40;

/// What the cluster was last doing (`DBState`). An open set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClusterState(pub i32);

#[allow(missing_docs)] // the names are PostgreSQL's
impl ClusterState {
    pub const STARTUP: Self = Self(0);
    pub const SHUTDOWNED: Self = Self(1);
    pub const SHUTDOWNED_IN_RECOVERY: Self = Self(2);
    pub const SHUTDOWNING: Self = Self(3);
    pub const IN_CRASH_RECOVERY: Self = Self(4);
    pub const IN_ARCHIVE_RECOVERY: Self = Self(5);
    pub const IN_PRODUCTION: Self = Self(6);
}

/// The control file. Bytes that no field here speaks of are kept as they were.
#[derive(Clone, Debug)]
pub struct ControlFile {
    bytes: Contents,
    /// The major the cluster belongs to.
    pub version: &'static Version,
    /// The cluster's own number, which all its copies share.
    pub system_identifier: u64,
    /// What it was last doing.
    pub state: ClusterState,
    /// When this file was last written, in seconds since 1970.
    pub time: i64,
    /// Where the last checkpoint's record begins.
    pub check_point: Lsn,
    /// What that record says.
    pub check_point_copy: CheckPoint,
    /// Replay must reach this before the data directory is consistent.
    pub min_recovery_point: Lsn,
    /// The timeline of `min_recovery_point`.
    pub min_recovery_point_timeline: Timeline,
    /// The redo pointer of the base backup that is being restored, or 0.
    pub backup_start_point: Lsn,
    /// Where a backup taken from a standby ends, or 0.
    pub backup_end_point: Lsn,
    /// A `BACKUP_END` record must be replayed before the data directory is consistent.
    pub backup_end_required: bool,
    /// `wal_level` of the server that wrote the WAL: 0 minimal, 1 replica, 2 logical.
    pub wal_level: i32,
    /// Its `wal_log_hints`.
    pub wal_log_hints: bool,
    /// Its `max_connections`.
    pub max_connections: i32,
    /// Its `max_worker_processes`.
    pub max_worker_processes: i32,
    /// Its `max_wal_senders`.
    pub max_wal_senders: i32,
    /// Its `max_prepared_transactions`.
    pub max_prepared_transactions: i32,
    /// Its `max_locks_per_transaction`.
    pub max_locks_per_transaction: i32,
    /// Its `track_commit_timestamp`.
    pub track_commit_timestamp: bool,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// 1 if pages carry checksums, 0 if not.
    pub data_checksum_version: u32,
}

/// Two control files are equal if they are written alike.
impl PartialEq for ControlFile {
    fn eq(&self, other: &Self) -> bool {
        self.to_bytes() == other.to_bytes()
    }
}

/// The file as it was read.
#[derive(Clone)]
struct Contents(Box<[u8; CONTROL_FILE_SIZE]>);

/// Without 8192 numbers.
impl fmt::Debug for Contents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[..]")
    }
}

/// A control file that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum ControlError {
    #[error("pg_control has {found} bytes, at least {CONTROL_FILE_SIZE} expected")]
    Length { found: usize },
    #[error(
        "pg_control has control version {control_version} and catalog version {catalog_version}, which belong to no PostgreSQL version walferry knows"
    )]
    Version { control_version: u32, catalog_version: u32 },
    #[error("pg_control has CRC {found:#010x}, expected {expected:#010x}")]
    Crc { expected: u32, found: u32 },
    #[error("pg_control says {field} is {found}, only {expected} is supported")]
    Build { field: &'static str, expected: u32, found: u32 },
    #[error("pg_control says the segment size is {found} bytes")]
    SegmentSize { found: u32 },
}

impl ControlFile {
    /// Reads the file's contents.
    ///
    /// # Errors
    /// [`ControlError`] if it is cut short or corrupt, or of a version or build that walferry does
    /// not support.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ControlError> {
        let bytes: Box<[u8; CONTROL_FILE_SIZE]> = bytes
            .get(..CONTROL_FILE_SIZE)
            .and_then(|file| file.to_vec().try_into().ok())
            .ok_or(ControlError::Length { found: bytes.len() })?;
        let file = &bytes[..];
        let (control_version, catalog_version) = (u32_at(file, 8), u32_at(file, 12));
        let version = Version::from_catalog_version(catalog_version)
            .filter(|version| version.control_version == control_version && version.is_replayed)
            .ok_or(ControlError::Version { control_version, catalog_version })?;
        let crc_offset = version.control_crc_offset;
        let (expected, found) = (crc32c::crc32c(&file[..crc_offset]), u32_at(file, crc_offset));
        if expected != found {
            return Err(ControlError::Crc { expected, found });
        }
        for (field, offset, expected) in [
            ("maxAlign", 204, 8),
            ("blcksz", 216, BLOCK_SIZE as u32),
            ("relseg_size", 220, BLOCKS_PER_FILE),
            ("xlog_blcksz", 224, BLOCK_SIZE as u32),
        ] {
            let found = u32_at(file, offset);
            if found != expected {
                return Err(ControlError::Build { field, expected, found });
            }
        }
        let xlog_seg_size = u32_at(file, 228);
        let segment_size = SegmentSize::new(xlog_seg_size)
            .ok_or(ControlError::SegmentSize { found: xlog_seg_size })?;
        let check_point_copy = file[CHECK_POINT_OFFSET..]
            .first_chunk()
            .map(CheckPoint::from_bytes)
            .ok_or(ControlError::Length { found: file.len() })?;
        Ok(Self {
            version,
            system_identifier: u64_at(file, 0),
            state: ClusterState(i32_at(file, 16)),
            time: i64_at(file, 24),
            check_point: Lsn(u64_at(file, 32)),
            check_point_copy,
            min_recovery_point: Lsn(u64_at(file, 136)),
            min_recovery_point_timeline: Timeline(u32_at(file, 144)),
            backup_start_point: Lsn(u64_at(file, 152)),
            backup_end_point: Lsn(u64_at(file, 160)),
            backup_end_required: u8_at(file, 168) != 0,
            wal_level: i32_at(file, 172),
            wal_log_hints: u8_at(file, 176) != 0,
            max_connections: i32_at(file, 180),
            max_worker_processes: i32_at(file, 184),
            max_wal_senders: i32_at(file, 188),
            max_prepared_transactions: i32_at(file, 192),
            max_locks_per_transaction: i32_at(file, 196),
            track_commit_timestamp: u8_at(file, 200) != 0,
            segment_size,
            data_checksum_version: u32_at(file, 252),
            bytes: Contents(bytes),
        })
    }

    /// The file's contents, CRC included.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; CONTROL_FILE_SIZE] {
        let mut file = *self.bytes.0;
        put(&mut file, 16, self.state.0.to_le_bytes());
        put(&mut file, 24, self.time.to_le_bytes());
        put(&mut file, 32, self.check_point.0.to_le_bytes());
        put(&mut file, CHECK_POINT_OFFSET, self.check_point_copy.to_bytes());
        put(&mut file, 136, self.min_recovery_point.0.to_le_bytes());
        put(&mut file, 144, self.min_recovery_point_timeline.0.to_le_bytes());
        put(&mut file, 152, self.backup_start_point.0.to_le_bytes());
        put(&mut file, 160, self.backup_end_point.0.to_le_bytes());
        put(&mut file, 168, [u8::from(self.backup_end_required)]);
        put(&mut file, 172, self.wal_level.to_le_bytes());
        put(&mut file, 176, [u8::from(self.wal_log_hints)]);
        put(&mut file, 180, self.max_connections.to_le_bytes());
        put(&mut file, 184, self.max_worker_processes.to_le_bytes());
        put(&mut file, 188, self.max_wal_senders.to_le_bytes());
        put(&mut file, 192, self.max_prepared_transactions.to_le_bytes());
        put(&mut file, 196, self.max_locks_per_transaction.to_le_bytes());
        put(&mut file, 200, [u8::from(self.track_commit_timestamp)]);
        put(&mut file, 252, self.data_checksum_version.to_le_bytes());
        let crc_offset = self.version.control_crc_offset;
        let crc = crc32c::crc32c(&file[..crc_offset]);
        put(&mut file, crc_offset, crc.to_le_bytes());
        file
    }

    /// Whether hint bits are WAL-logged (`XLogHintBitIsNeeded`).
    #[must_use]
    pub const fn hint_bits_are_logged(&self) -> bool {
        self.data_checksum_version != 0 || self.wal_log_hints
    }
}
