//! Transaction: commit, abort and their two-phase forms.
//!
//! The opcode is `xl_info & 0x70`; bit 0x80 says that the word `xinfo` is there.
//!
//! ```text
//! COMMIT, ABORT, COMMIT_PREPARED, ABORT_PREPARED, in this order
//!   xact_time i64                                   always
//!   xinfo u32                                       XLOG_XACT_HAS_INFO
//!   dbId u32, tsId u32                              DBINFO
//!   nsubxacts i32, xids u32[]                       SUBXACTS
//!   nrels i32, locators 12 bytes[]                  RELFILENODES
//!   nitems i32, items[]                             DROPPED_STATS
//!   nmsgs i32, messages 16 bytes[]                  INVALS
//!   xid u32                                         TWOPHASE
//!   gid, NUL-terminated                             GID
//!   origin_lsn u64, origin_timestamp i64            ORIGIN
//!
//! item of dropped statistics, 12 bytes: kind i32, dboid u32, objoid u32
//!               from 18 on, 16 bytes: kind i32, dboid u32, objid_lo u32, objid_hi u32
//!
//! ASSIGNMENT     xtop u32, nsubxacts i32, xids u32[]
//! INVALIDATIONS  nmsgs i32, messages 16 bytes[]
//!
//! PREPARE, each part padded to a multiple of 8 bytes
//! offset  size  field
//!      0     4  magic           0x57F94534
//!      4     4  total_len       of the record's main data and a checksum of 4 bytes
//!      8     4  xid
//!     12     4  database
//!     16     8  prepared_at
//!     24     4  owner
//!     28     4  nsubxacts
//!     32     4  ncommitrels
//!     36     4  nabortrels
//!     40     4  ncommitstats
//!     44     4  nabortstats
//!     48     4  ninvalmsgs
//!     52     1  initfileinval
//!     54     2  gidlen          with its NUL
//!     56     8  origin_lsn
//!     64     8  origin_timestamp
//!     72        gid; xids u32[]; locators 12 bytes[] of a commit, then those of an abort; items of
//!               dropped statistics of both; messages 16 bytes[]; what else a server must know to
//!               go on with the transaction (locks, predicate locks, statistics), not read here
//! ```
//!
//! Main data of PREPARE is the contents of a file of `pg_twophase`, see [`crate::two_phase`].
//!
//! Rules: `src/include/access/xact.h`, `ParseCommitRecord` and `ParsePrepareRecord` in
//! `src/backend/access/rmgrdesc/xactdesc.c`, `StartPrepare` in
//! `src/backend/access/transam/twophase.c`.

use crate::bytes::{i32_at, u32_at};
use crate::cursor::{Cursor, CursorError};
use crate::lsn::{Lsn, TransactionId};
use crate::relation::RelFileLocator;
use crate::rmgr::standby::Messages;
use crate::version::Version;

/// The bits of `xl_info` that are the opcode (`XLOG_XACT_OPMASK`).
pub const OPCODE_MASK: u8 = 0x70;
/// The word `xinfo` is there (`XLOG_XACT_HAS_INFO`).
pub const HAS_INFO: u8 = 0x80;

/// `XLOG_XACT_COMMIT`.
pub const COMMIT: u8 = 0x00;
/// `XLOG_XACT_PREPARE`.
pub const PREPARE: u8 = 0x10;
/// `XLOG_XACT_ABORT`.
pub const ABORT: u8 = 0x20;
/// `XLOG_XACT_COMMIT_PREPARED`.
pub const COMMIT_PREPARED: u8 = 0x30;
/// `XLOG_XACT_ABORT_PREPARED`.
pub const ABORT_PREPARED: u8 = 0x40;
/// `XLOG_XACT_ASSIGNMENT`.
pub const ASSIGNMENT: u8 = 0x50;
/// `XLOG_XACT_INVALIDATIONS`.
pub const INVALIDATIONS: u8 = 0x60;

/// Bits of `xinfo` (`XACT_XINFO_HAS_*`, `XACT_COMPLETION_*`).
#[allow(missing_docs)] // the names are PostgreSQL's
pub mod xinfo {
    pub const DBINFO: u32 = 0x001;
    pub const SUBXACTS: u32 = 0x002;
    pub const RELFILENODES: u32 = 0x004;
    pub const INVALS: u32 = 0x008;
    pub const TWOPHASE: u32 = 0x010;
    pub const ORIGIN: u32 = 0x020;
    pub const AE_LOCKS: u32 = 0x040;
    pub const GID: u32 = 0x080;
    pub const DROPPED_STATS: u32 = 0x100;
    pub const APPLY_FEEDBACK: u32 = 1 << 29;
    pub const UPDATE_RELCACHE_FILE: u32 = 1 << 30;
    pub const FORCE_SYNC_COMMIT: u32 = 1 << 31;
}

/// How a prepared transaction's state begins (`TWOPHASE_MAGIC`).
pub const TWO_PHASE_MAGIC: u32 = 0x57F9_4534;

const LOCATOR_SIZE: usize = 12;

/// The end of a transaction (`xl_xact_parsed_commit`, `xl_xact_parsed_abort`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End<'a> {
    /// When, in microseconds since 2000-01-01 UTC.
    pub time: i64,
    /// [`xinfo`] bits.
    pub xinfo: u32,
    /// The transaction's database and its default tablespace, if the record says them.
    pub database: Option<(u32, u32)>,
    subxacts: &'a [u8],
    locators: &'a [u8],
    /// The prepared transaction, for COMMIT_PREPARED and ABORT_PREPARED.
    pub twophase_xid: Option<TransactionId>,
    /// The prepared transaction's name.
    pub gid: Option<&'a [u8]>,
    /// Where the transaction committed on the node it came from, and when.
    pub origin: Option<(Lsn, i64)>,
    /// The statistics of what it drops.
    pub dropped_stats: DroppedStats<'a>,
    /// What other sessions must forget.
    pub messages: Messages<'a>,
}

impl<'a> End<'a> {
    /// Reads main data; `info` is the record's `xl_info`.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what its own fields say.
    pub fn read(main_data: &'a [u8], info: u8, version: &Version) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let end = Self::read_from(&mut cursor, info, version)?;
        cursor.finish("the last part of a transaction's end")?;
        Ok(end)
    }

    /// Reads main data, of which there may be more.
    ///
    /// # Errors
    /// [`CursorError`] if they are too short.
    pub fn read_written(
        main_data: &'a [u8],
        info: u8,
        version: &Version,
    ) -> Result<Self, CursorError> {
        Self::read_from(&mut Cursor::new(main_data), info, version)
    }

    fn read_from(
        cursor: &mut Cursor<'a>,
        info: u8,
        version: &Version,
    ) -> Result<Self, CursorError> {
        let time = cursor.i64("xact_time")?;
        let xinfo = if info & HAS_INFO == 0 { 0 } else { cursor.u32("xinfo")? };
        let has = |bit: u32| xinfo & bit != 0;
        let database = if has(xinfo::DBINFO) {
            Some((cursor.u32("dbId")?, cursor.u32("tsId")?))
        } else {
            None
        };
        let mut array = |present: bool, item_size: usize, field| {
            if !present {
                return Ok(&[][..]);
            }
            let count = cursor.count(item_size, field)?;
            cursor.take(count * item_size, field)
        };
        let subxacts = array(has(xinfo::SUBXACTS), 4, "nsubxacts")?;
        let locators = array(has(xinfo::RELFILENODES), LOCATOR_SIZE, "nrels")?;
        let dropped_stats =
            array(has(xinfo::DROPPED_STATS), version.dropped_stats_item_size, "nitems")?;
        let messages = array(has(xinfo::INVALS), Messages::MESSAGE_SIZE, "nmsgs")?;
        let mut twophase_xid = None;
        let mut gid = None;
        if has(xinfo::TWOPHASE) {
            twophase_xid = Some(TransactionId(cursor.u32("twophase xid")?));
            if has(xinfo::GID) {
                let length = cursor.rest().iter().take_while(|byte| **byte != 0).count();
                gid = Some(cursor.take(length, "twophase_gid")?);
                cursor.u8("end of twophase_gid")?;
            }
        }
        let origin = if has(xinfo::ORIGIN) {
            Some((Lsn(cursor.u64("origin_lsn")?), cursor.i64("origin_timestamp")?))
        } else {
            None
        };
        Ok(Self {
            time,
            xinfo,
            database,
            subxacts,
            locators,
            twophase_xid,
            gid,
            origin,
            dropped_stats: DroppedStats { items: dropped_stats },
            messages: Messages::from_bytes(messages),
        })
    }

    /// The subtransactions that share this outcome.
    pub fn subxacts(&self) -> impl ExactSizeIterator<Item = TransactionId> + 'a {
        xids(self.subxacts)
    }

    /// The relations whose files are removed.
    pub fn dropped_relations(&self) -> impl Iterator<Item = RelFileLocator> + 'a {
        locators(self.locators)
    }

    /// Whether any relation's files are removed.
    #[must_use]
    pub const fn drops_relations(&self) -> bool {
        !self.locators.is_empty()
    }
}

/// Statistics that go with a transaction (`xl_xact_stats_item`s).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DroppedStats<'a> {
    items: &'a [u8],
}

/// The statistics of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StatsItem {
    /// Which kind of statistics (`PgStat_Kind`).
    pub kind: i32,
    /// The object's database, 0 if it is shared.
    pub database: u32,
    /// The object: an OID up to 17, more than that from 18 on.
    pub object: u64,
}

impl<'a> DroppedStats<'a> {
    /// The items.
    pub fn iter(&self, version: &Version) -> impl Iterator<Item = StatsItem> + 'a {
        self.items.chunks_exact(version.dropped_stats_item_size).map(|item| StatsItem {
            kind: i32_at(item, 0),
            database: u32_at(item, 4),
            // The high half, which is not in shorter items, then reads as 0.
            object: u64::from(u32_at(item, 12)) << 32 | u64::from(u32_at(item, 8)),
        })
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.items.is_empty()
    }
}

/// A PREPARE record that is not what it can be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrepareError {
    /// Too few bytes.
    #[error(transparent)]
    Length(#[from] CursorError),
    /// Not the state of a prepared transaction.
    #[error("magic is {found:#010x}, expected {TWO_PHASE_MAGIC:#010x}")]
    Magic {
        /// What is there.
        found: u32,
    },
    /// The state says another length of itself.
    #[error("total_len is {found}, expected {expected}")]
    TotalLength {
        /// What is there, with the checksum of the file.
        expected: u64,
        /// `total_len`.
        found: u32,
    },
    /// Reserved transaction ids do not prepare.
    #[error("transaction id {0} cannot be prepared")]
    Xid(TransactionId),
}

/// A transaction that is prepared (`xl_xact_prepare`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prepare<'a> {
    /// The transaction.
    pub xid: TransactionId,
    /// Its database.
    pub database: u32,
    /// When, in microseconds since 2000-01-01 UTC.
    pub prepared_at: i64,
    /// The role that prepared it.
    pub owner: u32,
    /// The name to commit or abort it by, without the NUL.
    pub gid: &'a [u8],
    /// Where it was prepared on the node it came from; invalid if it came from none.
    pub origin_lsn: Lsn,
    /// When it was prepared there.
    pub origin_timestamp: i64,
    subxacts: &'a [u8],
    commit_locators: &'a [u8],
    abort_locators: &'a [u8],
    /// The statistics of what a commit drops.
    pub dropped_stats_of_commit: DroppedStats<'a>,
    /// The statistics of what an abort drops.
    pub dropped_stats_of_abort: DroppedStats<'a>,
    /// If it commits, the file that new sessions read the relation cache from is out of date.
    pub init_file: bool,
    /// What other sessions must forget if it commits.
    pub messages: Messages<'a>,
}

impl<'a> Prepare<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`PrepareError`] if it contradicts itself.
    pub fn read(main_data: &'a [u8], version: &Version) -> Result<Self, PrepareError> {
        let mut cursor = Cursor::new(main_data);
        let magic = cursor.u32("magic")?;
        if magic != TWO_PHASE_MAGIC {
            return Err(PrepareError::Magic { found: magic });
        }
        let total_length = cursor.u32("total_len")?;
        let expected = main_data.len() as u64 + 4;
        if u64::from(total_length) != expected {
            return Err(PrepareError::TotalLength { expected, found: total_length });
        }
        let prepare = Self::read_from(&mut cursor, version)?;
        if !prepare.xid.is_normal() {
            return Err(PrepareError::Xid(prepare.xid));
        }
        Ok(prepare)
    }

    /// Reads main data as they are written, whether or not they are the state of a transaction that
    /// is prepared.
    ///
    /// # Errors
    /// [`CursorError`] if they are too short.
    pub fn read_written(main_data: &'a [u8], version: &Version) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        cursor.u64("magic and total_len")?;
        Self::read_from(&mut cursor, version)
    }

    /// From `xid` on.
    fn read_from(cursor: &mut Cursor<'a>, version: &Version) -> Result<Self, CursorError> {
        let xid = TransactionId(cursor.u32("xid")?);
        let database = cursor.u32("database")?;
        let prepared_at = cursor.i64("prepared_at")?;
        let owner = cursor.u32("owner")?;
        let nsubxacts = cursor.count(4, "nsubxacts")?;
        let ncommitrels = cursor.count(LOCATOR_SIZE, "ncommitrels")?;
        let nabortrels = cursor.count(LOCATOR_SIZE, "nabortrels")?;
        let ncommitstats = cursor.count(version.dropped_stats_item_size, "ncommitstats")?;
        let nabortstats = cursor.count(version.dropped_stats_item_size, "nabortstats")?;
        let ninvalmsgs = cursor.count(Messages::MESSAGE_SIZE, "ninvalmsgs")?;
        let init_file = cursor.u8("initfileinval")? != 0;
        cursor.u8("padding after initfileinval")?;
        let gid_length = cursor.u16("gidlen")?;
        let origin_lsn = Lsn(cursor.u64("origin_lsn")?);
        let origin_timestamp = cursor.i64("origin_timestamp")?;

        let mut part = |length: usize, field| {
            let padded = cursor.take(length.next_multiple_of(8), field)?;
            Ok::<_, CursorError>(&padded[..length])
        };
        let gid = part(gid_length.into(), "gid")?;
        let subxacts = part(nsubxacts * 4, "subxacts")?;
        let commit_locators = part(ncommitrels * LOCATOR_SIZE, "commitrels")?;
        let abort_locators = part(nabortrels * LOCATOR_SIZE, "abortrels")?;
        let commit_stats = part(ncommitstats * version.dropped_stats_item_size, "commitstats")?;
        let abort_stats = part(nabortstats * version.dropped_stats_item_size, "abortstats")?;
        let messages = part(ninvalmsgs * Messages::MESSAGE_SIZE, "invalmsgs")?;
        Ok(Self {
            xid,
            database,
            prepared_at,
            owner,
            gid: gid.strip_suffix(&[0]).unwrap_or(gid),
            origin_lsn,
            origin_timestamp,
            subxacts,
            commit_locators,
            abort_locators,
            dropped_stats_of_commit: DroppedStats { items: commit_stats },
            dropped_stats_of_abort: DroppedStats { items: abort_stats },
            init_file,
            messages: Messages::from_bytes(messages),
        })
    }

    /// Its subtransactions.
    pub fn subxacts(&self) -> impl ExactSizeIterator<Item = TransactionId> + 'a {
        xids(self.subxacts)
    }

    /// The relations whose files are removed if it commits.
    pub fn dropped_by_commit(&self) -> impl Iterator<Item = RelFileLocator> + 'a {
        locators(self.commit_locators)
    }

    /// The relations whose files are removed if it aborts.
    pub fn dropped_by_abort(&self) -> impl Iterator<Item = RelFileLocator> + 'a {
        locators(self.abort_locators)
    }
}

/// ASSIGNMENT (`xl_xact_assignment`): these subtransactions belong to that transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment<'a> {
    /// The top-level transaction.
    pub top: TransactionId,
    subxacts: &'a [u8],
}

impl<'a> Assignment<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let top = TransactionId(cursor.u32("xtop")?);
        let count = cursor.count(4, "nsubxacts")?;
        Ok(Self { top, subxacts: cursor.take(count * 4, "xsub")? })
    }

    /// Its subtransactions.
    pub fn subxacts(&self) -> impl ExactSizeIterator<Item = TransactionId> + 'a {
        xids(self.subxacts)
    }
}

fn xids(bytes: &[u8]) -> impl ExactSizeIterator<Item = TransactionId> + '_ {
    bytes.chunks_exact(4).map(|xid| TransactionId(u32_at(xid, 0)))
}

fn locators(bytes: &[u8]) -> impl Iterator<Item = RelFileLocator> + '_ {
    bytes.chunks_exact(LOCATOR_SIZE).map(|locator| RelFileLocator {
        tablespace: u32_at(locator, 0),
        database: u32_at(locator, 4),
        relation: u32_at(locator, 8),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::version::VERSIONS;

    fn commit(xinfo: u32, parts: &[&[u8]]) -> Vec<u8> {
        let mut main = 1_i64.to_le_bytes().to_vec();
        main.extend(xinfo.to_le_bytes());
        parts.iter().for_each(|part| main.extend(*part));
        main
    }

    #[test]
    fn all_parts_are_found() {
        let main = commit(
            0x1FF,
            &[
                &[5, 0, 0, 0, 6, 0, 0, 0],
                &[1, 0, 0, 0, 9, 0, 0, 0],
                &[1, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0],
                &[0, 0, 0, 0],
                &[1, 0, 0, 0],
                &[0; 16],
                &[7, 0, 0, 0],
                b"name\0",
                &[0; 16],
            ],
        );
        let end = End::read(&main, COMMIT | HAS_INFO, &VERSIONS[0]).expect("well formed");
        assert_eq!(end.database, Some((5, 6)));
        assert_eq!(end.subxacts().collect::<Vec<_>>(), [TransactionId(9)]);
        let dropped = RelFileLocator { tablespace: 1, database: 2, relation: 3 };
        assert_eq!(end.dropped_relations().collect::<Vec<_>>(), [dropped]);
        assert_eq!(end.twophase_xid, Some(TransactionId(7)));
        assert_eq!(end.gid, Some(&b"name"[..]));
        for length in 0..main.len() {
            assert!(End::read(&main[..length], COMMIT | HAS_INFO, &VERSIONS[0]).is_err());
        }
    }

    #[test]
    fn the_short_form_is_a_time() {
        let main = 1_i64.to_le_bytes();
        let end = End::read(&main, COMMIT, &VERSIONS[0]).expect("well formed");
        assert_eq!((end.time, end.drops_relations()), (1, false));
    }

    #[test]
    fn a_prepared_transaction_is_read() {
        let main = crate::two_phase::fixture::state(TransactionId(700), b"name", &[701, 702, 703]);
        let prepare = Prepare::read(&main, &VERSIONS[0]).expect("well formed");
        assert_eq!((prepare.xid, prepare.gid), (TransactionId(700), &b"name"[..]));
        let subxacts: Vec<_> = prepare.subxacts().map(|xid| xid.0).collect();
        assert_eq!(subxacts, [701, 702, 703]);
        let dropped = RelFileLocator { tablespace: 1, database: 2, relation: 3 };
        assert_eq!(prepare.dropped_by_commit().collect::<Vec<_>>(), [dropped]);
        assert_eq!(prepare.dropped_by_abort().count(), 0);
        for length in 0..main.len() {
            assert!(Prepare::read(&main[..length], &VERSIONS[0]).is_err(), "{length}");
        }
        for (offset, byte) in [(0, 0x35), (4, 0), (8, 2), (28, 255), (54, 255)] {
            let mut spoiled = main.clone();
            spoiled[offset] = byte;
            spoiled[9] = 0;
            assert!(Prepare::read(&spoiled, &VERSIONS[0]).is_err(), "{offset}");
        }
    }
}
