//! `pg_xact`: what became of transactions.
//!
//! Rules: `src/backend/access/transam/clog.c`.

use walfmt::TransactionId;
use walfmt::slru::{CLOG, ClogPosition};
use walfmt_physical::TransactionStatus;

use crate::error::FileError;
use crate::layout::Layout;
use crate::slru::Slru;

pub(crate) struct TransactionLog(Slru);

impl TransactionLog {
    pub(crate) fn new(layout: Layout, next_xid: TransactionId) -> Self {
        Self(Slru::new(layout, &CLOG, ClogPosition::of(next_xid).page))
    }

    pub(crate) fn set_status(
        &mut self,
        xid: TransactionId,
        status: TransactionStatus,
    ) -> Result<(), FileError> {
        let bits = match status {
            TransactionStatus::Committed => 1,
            TransactionStatus::Aborted => 2,
        };
        let ClogPosition { page, byte, shift } = ClogPosition::of(xid);
        let byte = &mut self.0.change_page(page)?[byte];
        *byte = *byte & !(0b11 << shift) | bits << shift;
        Ok(())
    }

    /// How a transaction ended, if it did.
    pub(crate) fn status(
        &mut self,
        xid: TransactionId,
    ) -> Result<Option<TransactionStatus>, FileError> {
        let ClogPosition { page, byte, shift } = ClogPosition::of(xid);
        Ok(match self.0.page(page)?[byte] >> shift & 0b11 {
            1 => Some(TransactionStatus::Committed),
            2 => Some(TransactionStatus::Aborted),
            _ => None,
        })
    }

    pub(crate) fn zero_page(&mut self, page: u64) -> Result<(), FileError> {
        self.0.zero_page(page)
    }

    pub(crate) fn truncate(&mut self, cutoff: u64) -> Result<(), FileError> {
        self.0.truncate(cutoff)
    }

    /// Writes what was changed. It is durable after the next sync.
    pub(crate) fn write_changed(&mut self) -> Result<(), FileError> {
        self.0.write_changed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_bits_are_where_a_server_looks_for_them() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("pg_xact")).unwrap();
        let open = || {
            let layout = Layout::new(directory.path()).unwrap();
            TransactionLog::new(layout, TransactionId(3))
        };
        let mut log = open();
        log.set_status(TransactionId(5), TransactionStatus::Committed).unwrap();
        log.set_status(TransactionId(6), TransactionStatus::Aborted).unwrap();
        log.set_status(TransactionId(32 * 32768 + 1), TransactionStatus::Committed).unwrap();
        log.write_changed().unwrap();
        let first = std::fs::read(directory.path().join("pg_xact/0000")).unwrap();
        assert_eq!(first.len(), 8192);
        assert_eq!(first[1], 0b0010_0100);
        let second = std::fs::read(directory.path().join("pg_xact/0001")).unwrap();
        assert_eq!((second.len(), second[0]), (8192, 0b0000_0100));

        // Read back from the files, and turned around.
        let mut log = open();
        let status = log.status(TransactionId(5)).unwrap();
        assert_eq!(status, Some(TransactionStatus::Committed));
        assert_eq!(log.status(TransactionId(7)).unwrap(), None);
        log.set_status(TransactionId(5), TransactionStatus::Aborted).unwrap();
        log.zero_page(2).unwrap();
        log.write_changed().unwrap();
        let first = std::fs::read(directory.path().join("pg_xact/0000")).unwrap();
        assert_eq!((first.len(), first[1]), (3 * 8192, 0b0010_1000));
    }
}
