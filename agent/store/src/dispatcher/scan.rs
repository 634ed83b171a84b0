//! Looking at a relation's rows between two records: how decoding gets to know the catalogs.

use walfmt::bytes::{i32_at, u32_at};
use walfmt::page::{
    self, HEAP_XMAX_INVALID, HEAP_XMAX_IS_MULTI, HEAP_XMAX_LOCK_ONLY, HEAP_XMIN_COMMITTED,
    HEAP_XMIN_INVALID, HeapTupleHeader, LP_NORMAL, Page,
};
use walfmt::relation::{DatabaseLocator, RelFork};
use walfmt::rmgr::relmap;
use walfmt::row::TUPLE_FROM;
use walfmt::{BLOCK_SIZE, ForkNumber, Lsn, RelFileLocator, TransactionId};
use walfmt_physical::TransactionStatus;

use crate::dispatcher::Dispatcher;
use crate::error::{FileError, ReplayError};
use crate::layout::place_of;
use crate::workers::ThreadGone;

/// A version of a row that is, or may become, visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoredRow<'a> {
    /// Who has inserted it, if that transaction has not ended.
    pub inserting: Option<TransactionId>,
    /// Who has deleted it, if that transaction has not ended.
    pub deleting: Option<TransactionId>,
    /// The tuple from `t_infomask2` on, as in [`walfmt::row`].
    pub contents: &'a [u8],
}

impl Dispatcher {
    /// Waits until all is applied and written to the files, though not synced.
    pub(crate) fn settle_files(&mut self) -> Result<(), ReplayError> {
        self.wait_applied()?;
        let written = self.try_write_all_back();
        written.map_err(|ThreadGone| ReplayError::ThreadGone)?;
        self.check()
    }

    /// Adds entries to the rows, behind those of the records so far.
    pub(crate) fn put_rows(&mut self, entries: &[u8]) {
        if let Some(rows) = &mut self.rows {
            rows.entries.extend_from_slice(entries);
        }
    }

    /// The directories of all databases.
    pub(crate) fn databases(&self) -> Result<Vec<DatabaseLocator>, ReplayError> {
        self.layout.databases().map_err(|source| self.file_error(source))
    }

    /// A map of relations as it is on disk: catalogs' OIDs and file numbers.
    pub(crate) fn relation_map(
        &self,
        database: DatabaseLocator,
    ) -> Result<Vec<(u32, u32)>, ReplayError> {
        let path = self.layout.database_directory(database).join(relmap::FILE_NAME);
        let read = self.layout.read(&path);
        let bytes = read.map_err(|source| self.file_error(source))?.unwrap_or_default();
        let version = self.context.version;
        if relmap::check_file(&bytes, version).is_err() {
            return Ok(Vec::new()); // a database that is just being made has none yet
        }
        let count = usize::try_from(i32_at(&bytes, 4)).unwrap_or(0);
        let count = count.min(version.relation_map_slots);
        Ok((0..count).map(|at| (u32_at(&bytes, 8 + 8 * at), u32_at(&bytes, 12 + 8 * at))).collect())
    }

    /// Gives all rows of a heap that count. All must be written to the files.
    pub(crate) fn scan(
        &mut self,
        locator: RelFileLocator,
        mut each: impl FnMut(StoredRow<'_>),
    ) -> Result<(), ReplayError> {
        let fork = RelFork { locator, fork: ForkNumber::Main };
        let mut page: Box<Page> = Box::new([0; BLOCK_SIZE]);
        let mut open = None;
        for block in 0.. {
            let (number, offset) = place_of(block);
            if open.as_ref().is_none_or(|(at, _)| *at != number) {
                let path = self.layout.fork_file(fork, number);
                let file = self.layout.open_existing(&path);
                match file.map_err(|source| self.file_error(source))? {
                    Some(file) => open = Some((number, file)),
                    None => return Ok(()),
                }
            }
            let Some((_, file)) = &open else { return Ok(()) };
            let read = file.read_at(offset, &mut page[..]);
            if read.map_err(|source| self.file_error(source))? < BLOCK_SIZE {
                return Ok(());
            }
            for item in 1..=page::max_offset(&page) {
                if page::item_id(&page, item).is_ok_and(|id| id.flags == LP_NORMAL)
                    && let Ok(tuple) = page::item(&page, item)
                    && let Some(row) = self.row(tuple)?
                {
                    each(row);
                }
            }
        }
        Ok(())
    }

    /// The row, if it is not gone for everybody (`HeapTupleSatisfiesVacuum`).
    fn row<'a>(&mut self, tuple: &'a [u8]) -> Result<Option<StoredRow<'a>>, ReplayError> {
        let Ok(header) = HeapTupleHeader::read(tuple) else { return Ok(None) };
        let inserting = match header.infomask & (HEAP_XMIN_COMMITTED | HEAP_XMIN_INVALID) {
            HEAP_XMIN_INVALID => return Ok(None),
            0 => match self.status(header.xmin)? {
                Some(TransactionStatus::Committed) => None,
                Some(TransactionStatus::Aborted) => return Ok(None),
                None => Some(header.xmin),
            },
            _ => None,
        };
        let mut deleting = None;
        let is_deleted = header.infomask & (HEAP_XMAX_INVALID | HEAP_XMAX_LOCK_ONLY) == 0;
        if is_deleted && header.xmax.is_valid() {
            let updater = if header.infomask & HEAP_XMAX_IS_MULTI == 0 {
                Some(header.xmax)
            } else {
                let updater = self.transactions.multixacts.updater(header.xmax.0);
                updater.map_err(|source| self.file_error(source))?
            };
            if let Some(updater) = updater {
                match self.status(updater)? {
                    Some(TransactionStatus::Committed) => return Ok(None),
                    Some(TransactionStatus::Aborted) => {}
                    None => deleting = Some(updater),
                }
            }
        }
        Ok(Some(StoredRow { inserting, deleting, contents: &tuple[TUPLE_FROM..] }))
    }

    fn status(&mut self, xid: TransactionId) -> Result<Option<TransactionStatus>, ReplayError> {
        if !xid.is_normal() {
            return Ok(Some(TransactionStatus::Committed)); // frozen, or from initdb
        }
        let status = self.transactions.log.status(xid);
        status.map_err(|source| self.file_error(source))
    }

    /// The transactions that have not ended. Some of before a crash of the leader may be among them:
    /// a later record of all that run tells.
    pub(crate) fn unfinished(&mut self) -> Result<Vec<TransactionId>, ReplayError> {
        let next = TransactionId(self.counters().next_xid as u32);
        let checkpoint = self.control().check_point_copy;
        // At rest there were none but prepared ones.
        let oldest = match checkpoint.oldest_active_xid {
            TransactionId::INVALID => TransactionId(checkpoint.next_xid as u32),
            oldest => oldest,
        };
        let mut unfinished: Vec<_> = self.transactions.prepared.xids().collect();
        unfinished.retain(|xid| xid.precedes(oldest));
        let mut xid = oldest;
        while xid.precedes(next) {
            if self.status(xid)?.is_none() {
                unfinished.push(xid);
            }
            xid = TransactionId(xid.0.wrapping_add(1).max(TransactionId::FIRST_NORMAL.0));
        }
        Ok(unfinished)
    }

    /// The transactions that are prepared, and their subtransactions.
    pub(crate) fn prepared(&self) -> Vec<TransactionId> {
        self.transactions.prepared.xids().collect()
    }

    fn file_error(&self, source: FileError) -> ReplayError {
        let at: Lsn = self.dispatched();
        ReplayError::File { at, source }
    }
}
