//! Heap: changes of one or two tuples.
//!
//! The opcode is `xl_info & 0x70`; bit 0x80 says that the tuple's page is built from nothing.
//!
//! ```text
//! main data                                              block references
//! INSERT      offnum u16, flags u8                       0 heap page; data: tuple
//! DELETE      xmax u32, offnum u16, infobits u8,         0 heap page
//!             flags u8 [, old tuple]
//! UPDATE,     old_xmax u32, old_offnum u16,              0 new page; data: [prefixlen u16]
//! HOT_UPDATE  old_infobits u8, flags u8, new_xmax u32,     [suffixlen u16] tuple without them
//!             new_offnum u16 [, old tuple]               1 old page, if it is another one
//! TRUNCATE    dbId u32, nrelids u32, flags u8, 3 unused, none
//!             relids u32[]
//! CONFIRM     offnum u16                                 0 heap page
//! LOCK        xid u32, offnum u16, infobits u8, flags u8 0 heap page
//! INPLACE     offnum u16 [, 2 unused, dbId u32,          0 heap page; data: bytes from t_hoff on
//!             tsId u32, relcacheInitFileInval u8,
//!             3 unused, nmsgs i32, messages]
//!
//! Of INPLACE, what stands in brackets is there in majors that say so. A page of the visibility map whose
//! bits go may be a block reference too: block 1, of an UPDATE block 2 (new page) and 3 (old page).
//!
//! tuple (xl_heap_header and what follows)
//! offset  size  field
//!      0     2  t_infomask2
//!      2     2  t_infomask
//!      4     1  t_hoff
//!      5        the tuple from its byte 23 on: null bitmap, padding, attributes
//! ```
//!
//! Rules: `src/include/access/heapam_xlog.h`, `src/backend/access/heap/heapam.c`.

use crate::bytes::u32_at;
use crate::cursor::{Cursor, CursorError};
use crate::lsn::TransactionId;
use crate::rmgr::standby::Messages;
use crate::version::Version;

/// The bits of `xl_info` that are the opcode (`XLOG_HEAP_OPMASK`).
pub const OPCODE_MASK: u8 = 0x70;
/// The page of the new tuple is built from nothing (`XLOG_HEAP_INIT_PAGE`).
pub const INIT_PAGE: u8 = 0x80;

/// `XLOG_HEAP_INSERT`.
pub const INSERT: u8 = 0x00;
/// `XLOG_HEAP_DELETE`.
pub const DELETE: u8 = 0x10;
/// `XLOG_HEAP_UPDATE`.
pub const UPDATE: u8 = 0x20;
/// `XLOG_HEAP_TRUNCATE`.
pub const TRUNCATE: u8 = 0x30;
/// `XLOG_HEAP_HOT_UPDATE`.
pub const HOT_UPDATE: u8 = 0x40;
/// `XLOG_HEAP_CONFIRM`.
pub const CONFIRM: u8 = 0x50;
/// `XLOG_HEAP_LOCK`.
pub const LOCK: u8 = 0x60;
/// `XLOG_HEAP_INPLACE`.
pub const INPLACE: u8 = 0x70;

/// Flags of INSERT and of HEAP2's MULTI_INSERT (`XLH_INSERT_*`).
#[allow(missing_docs)] // the names are PostgreSQL's
pub mod insert_flags {
    pub const ALL_VISIBLE_CLEARED: u8 = 0x01;
    pub const LAST_IN_MULTI: u8 = 0x02;
    pub const IS_SPECULATIVE: u8 = 0x04;
    pub const CONTAINS_NEW_TUPLE: u8 = 0x08;
    pub const ON_TOAST_RELATION: u8 = 0x10;
    pub const ALL_FROZEN_SET: u8 = 0x20;
}

/// Flags of DELETE (`XLH_DELETE_*`).
#[allow(missing_docs)] // the names are PostgreSQL's
pub mod delete_flags {
    pub const ALL_VISIBLE_CLEARED: u8 = 0x01;
    pub const CONTAINS_OLD_TUPLE: u8 = 0x02;
    pub const CONTAINS_OLD_KEY: u8 = 0x04;
    pub const IS_SUPER: u8 = 0x08;
    pub const IS_PARTITION_MOVE: u8 = 0x10;
}

/// Flags of UPDATE and HOT_UPDATE (`XLH_UPDATE_*`).
#[allow(missing_docs)] // the names are PostgreSQL's
pub mod update_flags {
    pub const OLD_ALL_VISIBLE_CLEARED: u8 = 0x01;
    pub const NEW_ALL_VISIBLE_CLEARED: u8 = 0x02;
    pub const CONTAINS_OLD_TUPLE: u8 = 0x04;
    pub const CONTAINS_OLD_KEY: u8 = 0x08;
    pub const CONTAINS_NEW_TUPLE: u8 = 0x10;
    pub const PREFIX_FROM_OLD: u8 = 0x20;
    pub const SUFFIX_FROM_OLD: u8 = 0x40;
}

/// Flag of LOCK and of HEAP2's LOCK_UPDATED: the page is no longer all-frozen
/// (`XLH_LOCK_ALL_FROZEN_CLEARED`).
pub const LOCK_ALL_FROZEN_CLEARED: u8 = 0x01;

/// Bits of an `infobits_set` field: what becomes of the old tuple's infomasks (`XLHL_*`).
#[allow(missing_docs)] // the names are PostgreSQL's
pub mod infobits {
    pub const XMAX_IS_MULTI: u8 = 0x01;
    pub const XMAX_LOCK_ONLY: u8 = 0x02;
    pub const XMAX_EXCL_LOCK: u8 = 0x04;
    pub const XMAX_KEYSHR_LOCK: u8 = 0x08;
    pub const KEYS_UPDATED: u8 = 0x10;
}

/// A tuple as records carry it: what its header cannot be rebuilt from is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TupleImage<'a> {
    /// `t_infomask2`.
    pub infomask2: u16,
    /// `t_infomask`.
    pub infomask: u16,
    /// `t_hoff`: where the attributes begin, in bytes from the tuple's start.
    pub hoff: u8,
    /// The tuple from its byte 23 on.
    pub bytes: &'a [u8],
}

impl<'a> TupleImage<'a> {
    /// Reads a tuple that takes up the rest of `cursor`.
    ///
    /// # Errors
    /// [`CursorError`] if not even its header is there.
    #[inline]
    pub fn read(cursor: &mut Cursor<'a>) -> Result<Self, CursorError> {
        let infomask2 = cursor.u16("t_infomask2")?;
        let infomask = cursor.u16("t_infomask")?;
        let hoff = cursor.u8("t_hoff")?;
        let bytes = cursor.take(cursor.rest().len(), "tuple")?;
        Ok(Self { infomask2, infomask, hoff, bytes })
    }
}

/// INSERT (`xl_heap_insert`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insert {
    /// The new tuple's line pointer.
    pub offnum: u16,
    /// [`insert_flags`].
    pub flags: u8,
}

impl Insert {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    #[inline]
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        Ok(Self { offnum: cursor.u16("offnum")?, flags: cursor.u8("flags")? })
    }
}

/// DELETE (`xl_heap_delete`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delete<'a> {
    /// The deleting transaction, or a multixact.
    pub xmax: TransactionId,
    /// The tuple's line pointer.
    pub offnum: u16,
    /// [`infobits`].
    pub infobits: u8,
    /// [`delete_flags`].
    pub flags: u8,
    /// The old tuple or its key columns, when the server logs them for logical decoding.
    pub old_tuple: Option<TupleImage<'a>>,
}

impl<'a> Delete<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    #[inline]
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let mut delete = Self {
            xmax: TransactionId(cursor.u32("xmax")?),
            offnum: cursor.u16("offnum")?,
            infobits: cursor.u8("infobits_set")?,
            flags: cursor.u8("flags")?,
            old_tuple: None,
        };
        if delete.flags & (delete_flags::CONTAINS_OLD_TUPLE | delete_flags::CONTAINS_OLD_KEY) != 0 {
            delete.old_tuple = Some(TupleImage::read(&mut cursor)?);
        }
        Ok(delete)
    }
}

/// UPDATE and HOT_UPDATE (`xl_heap_update`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update<'a> {
    /// The old tuple's new xmax.
    pub old_xmax: TransactionId,
    /// The old tuple's line pointer.
    pub old_offnum: u16,
    /// [`infobits`] for the old tuple.
    pub old_infobits: u8,
    /// [`update_flags`].
    pub flags: u8,
    /// The new tuple's xmax: lockers of the old tuple go on holding the new one.
    pub new_xmax: TransactionId,
    /// The new tuple's line pointer.
    pub new_offnum: u16,
    /// The old tuple or its key columns, when the server logs them for logical decoding.
    pub old_tuple: Option<TupleImage<'a>>,
}

impl<'a> Update<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    #[inline]
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let mut update = Self {
            old_xmax: TransactionId(cursor.u32("old_xmax")?),
            old_offnum: cursor.u16("old_offnum")?,
            old_infobits: cursor.u8("old_infobits_set")?,
            flags: cursor.u8("flags")?,
            new_xmax: TransactionId(cursor.u32("new_xmax")?),
            new_offnum: cursor.u16("new_offnum")?,
            old_tuple: None,
        };
        if update.flags & (update_flags::CONTAINS_OLD_TUPLE | update_flags::CONTAINS_OLD_KEY) != 0 {
            update.old_tuple = Some(TupleImage::read(&mut cursor)?);
        }
        Ok(update)
    }
}

/// The new tuple of an UPDATE: bytes it shares with the old one at the beginning and the end of
/// its attributes may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpdatedTuple<'a> {
    /// How many bytes are the old tuple's, from where its attributes begin.
    pub prefix_length: u16,
    /// How many bytes are the old tuple's, up to its end.
    pub suffix_length: u16,
    /// The tuple without these bytes.
    pub tuple: TupleImage<'a>,
}

impl<'a> UpdatedTuple<'a> {
    /// Reads the data of an UPDATE's block 0.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    #[inline]
    pub fn read(block_data: &'a [u8], flags: u8) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(block_data);
        let mut length = |flag: u8, field| {
            if flags & flag == 0 { Ok(0) } else { cursor.u16(field) }
        };
        let prefix_length = length(update_flags::PREFIX_FROM_OLD, "prefixlen")?;
        let suffix_length = length(update_flags::SUFFIX_FROM_OLD, "suffixlen")?;
        let tuple = TupleImage::read(&mut cursor)?;
        Ok(Self { prefix_length, suffix_length, tuple })
    }
}

/// LOCK (`xl_heap_lock`) and HEAP2's LOCK_UPDATED (`xl_heap_lock_updated`), which look the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The locking transaction, or a multixact.
    pub xmax: TransactionId,
    /// The tuple's line pointer.
    pub offnum: u16,
    /// [`infobits`].
    pub infobits: u8,
    /// [`LOCK_ALL_FROZEN_CLEARED`] or 0.
    pub flags: u8,
}

impl Lock {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    #[inline]
    pub fn read(main_data: &[u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        Ok(Self {
            xmax: TransactionId(cursor.u32("xmax")?),
            offnum: cursor.u16("offnum")?,
            infobits: cursor.u8("infobits_set")?,
            flags: cursor.u8("flags")?,
        })
    }
}

/// The line pointer that CONFIRM and INPLACE speak of, which is all their main data.
///
/// # Errors
/// [`CursorError`] if it is too short.
pub fn read_offnum(main_data: &[u8]) -> Result<u16, CursorError> {
    Cursor::new(main_data).u16("offnum")
}

/// INPLACE (`xl_heap_inplace`): a tuple overwritten where it lies, outside of any transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inplace<'a> {
    /// The tuple's line pointer.
    pub offnum: u16,
    /// Database and tablespace in which backends must not begin with the cached relation descriptors they
    /// find there (`relcacheInitFileInval`).
    pub init_file: Option<(u32, u32)>,
    /// What other sessions must forget; none in majors that do not tell it.
    pub messages: Messages<'a>,
}

impl<'a> Inplace<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    pub fn read(main_data: &'a [u8], version: &Version) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let offnum = cursor.u16("offnum")?;
        let mut inplace = Self { offnum, init_file: None, messages: Messages::default() };
        if version.tables.inplace_has_invalidations {
            cursor.take(2, "padding")?;
            let place = (cursor.u32("dbId")?, cursor.u32("tsId")?);
            inplace.init_file = (cursor.u8("relcacheInitFileInval")? != 0).then_some(place);
            cursor.take(3, "padding")?;
            inplace.messages = Messages::read(&mut cursor)?;
        }
        Ok(inplace)
    }
}

/// Flags of TRUNCATE (`XLH_TRUNCATE_*`).
#[allow(missing_docs)] // the names are PostgreSQL's
pub mod truncate_flags {
    pub const CASCADE: u8 = 0x01;
    pub const RESTART_SEQS: u8 = 0x02;
}

/// TRUNCATE (`xl_heap_truncate`): which tables one SQL command emptied. Their files are changed by
/// other records; this one is for logical decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncate<'a> {
    /// The tables' database.
    pub database: u32,
    /// [`truncate_flags`].
    pub flags: u8,
    relations: &'a [u8],
}

impl<'a> Truncate<'a> {
    /// Reads main data.
    ///
    /// # Errors
    /// [`CursorError`] if it is too short.
    #[inline]
    pub fn read(main_data: &'a [u8]) -> Result<Self, CursorError> {
        let mut cursor = Cursor::new(main_data);
        let database = cursor.u32("dbId")?;
        let count = cursor.u32("nrelids")? as usize;
        let flags = cursor.u8("flags")?;
        cursor.take(3, "padding")?;
        let relations = cursor.take(count.saturating_mul(4), "relids")?;
        Ok(Self { database, flags, relations })
    }

    /// The tables' OIDs.
    pub fn relations(&self) -> impl ExactSizeIterator<Item = u32> + use<'a> {
        self.relations.chunks_exact(4).map(|relation| u32_at(relation, 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rmgr::standby::Message;

    #[test]
    fn an_update_says_what_it_takes_from_the_old_tuple() {
        let data = [9, 0, 4, 0, 2, 0, 0x02, 0x08, 24, 0, 0xAA];
        let both = update_flags::PREFIX_FROM_OLD | update_flags::SUFFIX_FROM_OLD;
        let updated = UpdatedTuple::read(&data, both).expect("long enough");
        assert_eq!((updated.prefix_length, updated.suffix_length), (9, 4));
        assert_eq!(updated.tuple.hoff, 24);
        assert_eq!(updated.tuple.bytes, [0, 0xAA]);

        let none = UpdatedTuple::read(&data, 0).expect("long enough");
        assert_eq!((none.prefix_length, none.tuple.infomask2), (0, 9));
        assert!(UpdatedTuple::read(&data[..8], both).is_err());
    }

    #[test]
    fn an_old_tuple_follows_only_if_the_flags_say_so() {
        let mut main = vec![1, 0, 0, 0, 5, 0, 0x10, 0];
        let old = [2, 0, 0x02, 0x08, 24, 0, 0xAA];
        main.extend(old);
        assert_eq!(Delete::read(&main).expect("long enough").old_tuple, None);
        main[7] = delete_flags::CONTAINS_OLD_KEY;
        let delete = Delete::read(&main).expect("long enough");
        assert_eq!(delete.old_tuple.expect("present").bytes, [0, 0xAA]);
        assert!(Delete::read(&main[..10]).is_err());
    }

    #[test]
    fn truncate_does_not_believe_its_count() {
        let mut main = vec![0; 12];
        main[4] = 1;
        main.extend(7_u32.to_le_bytes());
        let truncate = Truncate::read(&main).expect("long enough");
        assert_eq!(truncate.relations().collect::<Vec<_>>(), [7]);
        main[7] = 0x7F;
        assert!(Truncate::read(&main).is_err());
    }

    #[test]
    fn inplace_has_messages_in_majors_that_say_so() {
        let [without, with] = [17, 18].map(|major| Version::from_major(major).expect("known"));
        let mut main = vec![3, 0, 0, 0, 5, 0, 0, 0, 7, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0];
        main.extend([0xFB, 0, 0, 0, 5, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0]);
        let inplace = Inplace::read(&main, with).expect("long enough");
        assert_eq!((inplace.offnum, inplace.init_file), (3, Some((5, 7))));
        let messages: Vec<_> = inplace.messages.iter(with).collect();
        assert_eq!(messages, [Message::Snapshot(9)]);
        assert!(Inplace::read(&main[..35], with).is_err());
        let inplace = Inplace::read(&main[..2], without).expect("long enough");
        assert_eq!((inplace.init_file, inplace.messages.is_empty()), (None, true));
    }
}
