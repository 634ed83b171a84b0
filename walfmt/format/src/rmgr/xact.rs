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
//!   nitems i32, items 12 bytes[]                    DROPPED_STATS
//!   nmsgs i32, messages 16 bytes[]                  INVALS
//!   xid u32                                         TWOPHASE
//!   gid, NUL-terminated                             GID
//!   origin_lsn u64, origin_timestamp i64            ORIGIN
//!
//! ASSIGNMENT     xtop u32, nsubxacts i32, xids u32[]
//! INVALIDATIONS  nmsgs i32, messages 16 bytes[]
//! PREPARE        the state of a prepared transaction, not read here
//! ```
//!
//! Rules: `src/include/access/xact.h`, `ParseCommitRecord` in
//! `src/backend/access/rmgrdesc/xactdesc.c`.

use crate::bytes::u32_at;
use crate::cursor::{Cursor, CursorError};
use crate::lsn::{Lsn, TransactionId};
use crate::relation::RelFileLocator;
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

/// Bits of `xinfo` (`XACT_XINFO_HAS_*`).
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
}

const LOCATOR_SIZE: usize = 12;
const INVALIDATION_SIZE: usize = 16;

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
}

impl<'a> End<'a> {
    /// Reads main data; `info` is the record's `xl_info`.
    ///
    /// # Errors
    /// [`CursorError`] if its length is not what its own fields say.
    pub fn read(main_data: &'a [u8], info: u8, version: &Version) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
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
        array(has(xinfo::DROPPED_STATS), version.dropped_stats_item_size, "nitems")?;
        array(has(xinfo::INVALS), INVALIDATION_SIZE, "nmsgs")?;
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
        cursor.finish("the last part of a transaction's end")?;
        Ok(Self { time, xinfo, database, subxacts, locators, twophase_xid, gid, origin })
    }

    /// The subtransactions that share this outcome.
    pub fn subxacts(&self) -> impl Iterator<Item = TransactionId> + 'a {
        self.subxacts.chunks_exact(4).map(|xid| TransactionId(u32_at(xid, 0)))
    }

    /// The relations whose files are removed.
    pub fn dropped_relations(&self) -> impl Iterator<Item = RelFileLocator> + 'a {
        self.locators.chunks_exact(LOCATOR_SIZE).map(|locator| RelFileLocator {
            tablespace: u32_at(locator, 0),
            database: u32_at(locator, 4),
            relation: u32_at(locator, 8),
        })
    }

    /// Whether any relation's files are removed.
    #[must_use]
    pub const fn drops_relations(&self) -> bool {
        !self.locators.is_empty()
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
    pub fn subxacts(&self) -> impl Iterator<Item = TransactionId> + 'a {
        self.subxacts.chunks_exact(4).map(|xid| TransactionId(u32_at(xid, 0)))
    }
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
}
