//! Standby: what a server that answers queries during replay must know. Nothing of it is on disk.
//!
//! ```text
//! LOCK           nlocks i32, { xid u32, dbOid u32, relOid u32 }[]
//! RUNNING_XACTS  offset  size  field
//!                     0     4  xcnt
//!                     4     4  subxcnt
//!                     8     1  subxid_overflow
//!                    12     4  nextXid
//!                    16     4  oldestRunningXid
//!                    20     4  latestCompletedXid
//!                    24        xids u32[xcnt + subxcnt]: top-level ones first
//! INVALIDATIONS  dbId u32, tsId u32, relcacheInitFileInval bool, 3 unused, nmsgs i32,
//!                messages 16 bytes[]
//!
//! message, 16 bytes (SharedInvalidationMessage)
//! offset  size  field
//!      0     1  id        a catalog cache's number, or below 0 another kind
//!      4     4  dbId      0: all
//!      8     4  what      of the catalog cache: a hash value; else an OID
//! ```
//!
//! Rules: `src/include/storage/standbydefs.h`, `src/include/storage/sinval.h`.

use crate::bytes::{u8_at, u32_at};
use crate::cursor::{Cursor, CursorError};
use crate::lsn::TransactionId;
use crate::version::Version;

/// `XLOG_STANDBY_LOCK`.
pub const LOCK: u8 = 0x00;
/// `XLOG_RUNNING_XACTS`.
pub const RUNNING_XACTS: u8 = 0x10;
/// `XLOG_INVALIDATIONS`.
pub const INVALIDATIONS: u8 = 0x20;

const LOCK_SIZE: usize = 12;

/// RUNNING_XACTS (`xl_running_xacts`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunningXacts<'a> {
    /// Subtransactions are missing from the list: there were too many.
    pub subxid_overflow: bool,
    /// The next transaction id to be given out.
    pub next_xid: TransactionId,
    /// The oldest transaction that still runs.
    pub oldest_running_xid: TransactionId,
    /// The newest transaction that has ended.
    pub latest_completed_xid: TransactionId,
    /// How many of the listed ones are top-level transactions.
    pub toplevel_count: usize,
    xids: &'a [u8],
}

impl<'a> RunningXacts<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let toplevel_count = cursor.u32("xcnt")? as usize;
        let subxid_count = cursor.u32("subxcnt")? as usize;
        let subxid_overflow = cursor.u8("subxid_overflow")? != 0;
        cursor.take(3, "padding")?;
        let next_xid = TransactionId(cursor.u32("nextXid")?);
        let oldest_running_xid = TransactionId(cursor.u32("oldestRunningXid")?);
        let latest_completed_xid = TransactionId(cursor.u32("latestCompletedXid")?);
        let length = toplevel_count.saturating_add(subxid_count).saturating_mul(4);
        let xids = cursor.take(length, "xids")?;
        Ok(Self {
            subxid_overflow,
            next_xid,
            oldest_running_xid,
            latest_completed_xid,
            toplevel_count,
            xids,
        })
    }

    /// The running transactions, top-level ones first.
    pub fn xids(&self) -> impl ExactSizeIterator<Item = TransactionId> + 'a {
        self.xids.chunks_exact(4).map(|xid| TransactionId(u32_at(xid, 0)))
    }
}

/// LOCK (`xl_standby_locks`): locks that exclude even readers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Locks<'a> {
    locks: &'a [u8],
}

/// A lock (`xl_standby_lock`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// Who holds it.
    pub xid: TransactionId,
    /// The relation's database, 0 if it is shared.
    pub database: u32,
    /// The relation's OID.
    pub relation: u32,
}

impl<'a> Locks<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let count = cursor.count(LOCK_SIZE, "nlocks")?;
        Ok(Self { locks: cursor.take(count * LOCK_SIZE, "locks")? })
    }

    /// The locks.
    pub fn iter(&self) -> impl Iterator<Item = Lock> + 'a {
        self.locks.chunks_exact(LOCK_SIZE).map(|lock| Lock {
            xid: TransactionId(u32_at(lock, 0)),
            database: u32_at(lock, 4),
            relation: u32_at(lock, 8),
        })
    }
}

/// INVALIDATIONS (`xl_invalidations`): of transactions that have no id, and so no commit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidations<'a> {
    /// The database.
    pub database: u32,
    /// Its default tablespace.
    pub tablespace: u32,
    /// The file that new sessions read the relation cache from is out of date.
    pub init_file: bool,
    /// What is out of date else.
    pub messages: Messages<'a>,
}

impl<'a> Invalidations<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let database = cursor.u32("dbId")?;
        let tablespace = cursor.u32("tsId")?;
        let init_file = cursor.u8("relcacheInitFileInval")? != 0;
        cursor.take(3, "padding")?;
        let messages = Messages::read(&mut cursor)?;
        Ok(Self { database, tablespace, init_file, messages })
    }
}

/// Invalidation messages, in the order they were sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Messages<'a> {
    messages: &'a [u8],
}

/// What cached knowledge is out of date (`SharedInvalidationMessage`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Message {
    /// An entry of a catalog cache; the cache's number.
    CatCache(i8),
    /// All entries from a catalog; its OID.
    Catalog(u32),
    /// A relation's entry; its OID, 0 for all.
    RelCache(u32),
    /// A relation's files.
    Smgr,
    /// The relation map of a database; its OID, 0 for the shared one.
    RelMap(u32),
    /// Snapshots of a catalog; its OID.
    Snapshot(u32),
    /// What a relation publishes; its OID, 0 for all.
    RelSync(u32),
    /// A kind that this major does not know.
    Unknown(i8),
}

impl<'a> Messages<'a> {
    /// Reads a count and as many messages.
    ///
    /// # Errors
    /// [`CursorError`] if there are fewer.
    pub fn read(cursor: &mut Cursor<'a>) -> Result<Self, CursorError> {
        let count = cursor.count(Self::MESSAGE_SIZE, "nmsgs")?;
        Ok(Self { messages: cursor.take(count * Self::MESSAGE_SIZE, "msgs")? })
    }

    /// Of bytes that are nothing but messages.
    #[must_use]
    pub const fn from_bytes(messages: &'a [u8]) -> Self {
        Self { messages }
    }

    /// A message's size in bytes.
    pub const MESSAGE_SIZE: usize = 16;

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// The messages.
    pub fn iter(&self, version: &Version) -> impl Iterator<Item = Message> + 'a {
        let relsync = version.relsync_invalidations;
        self.messages.chunks_exact(Self::MESSAGE_SIZE).map(move |message| {
            let (database, what) = (u32_at(message, 4), u32_at(message, 8));
            match u8_at(message, 0).cast_signed() {
                cache @ 0.. => Message::CatCache(cache),
                -1 => Message::Catalog(what),
                -2 => Message::RelCache(what),
                -3 => Message::Smgr,
                -4 => Message::RelMap(database),
                -5 => Message::Snapshot(what),
                -6 if relsync => Message::RelSync(what),
                id => Message::Unknown(id),
            }
        })
    }
}
