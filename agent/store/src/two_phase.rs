//! Prepared transactions: kept in memory until they end, or until a restart point gives them a file
//! of `pg_twophase`.
//!
//! ```text
//! PREPARE ─► in memory ─► restart point behind it ─► file ─┐
//!                └────────────────────────────────────────┴─► COMMIT or ABORT PREPARED: forgotten
//! ```
//!
//! Most live so briefly that they never have a file. One that has keeps it although replay may
//! begin before its end again: that replay ends at the same point. And one may have a file already
//! when replay comes to its PREPARE again, if the restart point it was written for was never
//! finished; then the file is believed.
//!
//! Rules: `restoreTwoPhaseData`, `PrepareRedoAdd`, `PrepareRedoRemove` and `CheckPointTwoPhase` in
//! `src/backend/access/transam/twophase.c`.

use std::collections::BTreeMap;

use walfmt::rmgr::xact::Prepare;
use walfmt::two_phase::{file_name, read_file, to_file, xid_of_file_name};
use walfmt::{Lsn, TransactionId, Version};

use crate::disk::Entry;
use crate::error::{FileError, OpenError};
use crate::layout::Layout;
use crate::transaction_log::TransactionLog;

const DIRECTORY: &str = "pg_twophase";

/// The longest file that a server would read (`MaxAllocSize`), in bytes.
pub(crate) const FILE_BYTES_MAX: u64 = 0x3FFF_FFFF;

pub(crate) struct PreparedTransactions {
    layout: Layout,
    transactions: BTreeMap<u32, Prepared>,
}

struct Prepared {
    subxacts: Box<[TransactionId]>,
    state: State,
}

enum State {
    /// Main data of the PREPARE record, which ends at `end`.
    InMemory {
        end: Lsn,
        main_data: Box<[u8]>,
    },
    OnDisk,
}

impl Prepared {
    const fn is_on_disk(&self) -> bool {
        matches!(self.state, State::OnDisk)
    }
}

impl PreparedTransactions {
    /// Reads the files that are there. Those of transactions that have ended are removed, and those
    /// of transactions that the checkpoint which replay begins from, with this next transaction id,
    /// does not know yet: their PREPARE will come.
    pub(crate) fn open(
        layout: Layout,
        next_xid: TransactionId,
        log: &mut TransactionLog,
        version: &Version,
    ) -> Result<Self, OpenError> {
        let directory = layout.at(DIRECTORY);
        let mut transactions = BTreeMap::new();
        for Entry { name, .. } in layout.list(&directory)? {
            let path = directory.join(&name);
            let Some(xid) = xid_of_file_name(&name) else {
                layout.remove_replacement(&path)?;
                continue;
            };
            if !xid.precedes(next_xid) || log.status(xid)?.is_some() {
                tracing::warn!(file = name, "stale two-phase state file removed");
                layout.remove_file(&path)?;
                continue;
            }
            let Some(file) = layout.open_existing(&path)? else { continue };
            let length = file.metadata()?.length.min(FILE_BYTES_MAX);
            let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
            let read = file.read_at(0, &mut bytes)?;
            bytes.truncate(read);
            let prepare = read_file(&bytes, xid, version)
                .map_err(|source| OpenError::TwoPhase { path, source })?;
            let subxacts = prepare.subxacts().collect();
            transactions.insert(xid.0, Prepared { subxacts, state: State::OnDisk });
        }
        Ok(Self { layout, transactions })
    }

    /// The transactions that are prepared, and their subtransactions.
    pub(crate) fn xids(&self) -> impl Iterator<Item = TransactionId> {
        self.transactions.iter().flat_map(|(xid, prepared)| {
            std::iter::once(TransactionId(*xid)).chain(prepared.subxacts.iter().copied())
        })
    }

    /// A transaction is prepared by the record that ends at `end` and has this main data; whether it was
    /// not known yet.
    pub(crate) fn prepare(&mut self, prepare: &Prepare<'_>, end: Lsn, main_data: &[u8]) -> bool {
        let xid = prepare.xid;
        if self.transactions.get(&xid.0).is_some_and(Prepared::is_on_disk) {
            tracing::info!(%xid, "prepared transaction was restored from its file already");
            return false;
        }
        let subxacts = prepare.subxacts().collect();
        let state = State::InMemory { end, main_data: main_data.into() };
        self.transactions.insert(xid.0, Prepared { subxacts, state });
        true
    }

    /// It has committed or aborted. One that is not known is none: its PREPARE lies before the
    /// point that replay began from, and its file was removed when its end was replayed before.
    pub(crate) fn finish(&mut self, xid: TransactionId) -> Result<(), FileError> {
        if self.transactions.remove(&xid.0).is_some_and(|prepared| prepared.is_on_disk()) {
            self.layout.remove_file(&self.layout.at(DIRECTORY).join(file_name(xid)))?;
        }
        Ok(())
    }

    /// Gives a file to each transaction whose PREPARE lies before `redo`, as replay from there will
    /// not see it. Each is synced by itself: a server refuses to start over a torn one.
    pub(crate) fn write_before(&mut self, redo: Lsn) -> Result<(), FileError> {
        for (xid, prepared) in &mut self.transactions {
            if let State::InMemory { end, main_data } = &prepared.state
                && *end <= redo
            {
                let name = file_name(TransactionId(*xid));
                self.layout.replace(&self.layout.at(DIRECTORY).join(name), &to_file(main_data))?;
                prepared.state = State::OnDisk;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use walfmt::rmgr::xact::TWO_PHASE_MAGIC;
    use walfmt::version::VERSIONS;
    use walfmt_physical::TransactionStatus;

    use super::*;

    struct Fixture {
        directory: tempfile::TempDir,
        log: TransactionLog,
    }

    impl Fixture {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            for name in ["pg_twophase", "pg_xact"] {
                std::fs::create_dir(directory.path().join(name)).unwrap();
            }
            let layout = Layout::new(directory.path()).unwrap();
            Self { log: TransactionLog::new(layout, TransactionId(3)), directory }
        }

        fn open(&mut self, next_xid: u32) -> Result<PreparedTransactions, OpenError> {
            let layout = Layout::new(self.directory.path()).unwrap();
            let next_xid = TransactionId(next_xid);
            PreparedTransactions::open(layout, next_xid, &mut self.log, &VERSIONS[0])
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(self.directory.path().join("pg_twophase")).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names
        }
    }

    /// As the record of a transaction with one subtransaction, the next number, that ends at `end`.
    fn prepare(prepared: &mut PreparedTransactions, xid: u32, end: u64) -> bool {
        let state = state(xid);
        let prepare = Prepare::read(&state, &VERSIONS[0]).unwrap();
        prepared.prepare(&prepare, Lsn(end), &state)
    }

    fn state(xid: u32) -> Vec<u8> {
        let mut state = vec![0; 80];
        for (offset, word) in [(0, TWO_PHASE_MAGIC), (4, 84), (8, xid)] {
            walfmt::bytes::put(&mut state, offset, word.to_le_bytes());
        }
        state
    }

    #[test]
    fn only_those_before_a_restart_point_have_files() {
        let mut fixture = Fixture::new();
        let mut prepared = fixture.open(800).unwrap();
        assert!(prepare(&mut prepared, 700, 100));
        assert!(prepare(&mut prepared, 701, 200));
        assert!(prepare(&mut prepared, 702, 300));
        prepared.finish(TransactionId(700)).unwrap();
        prepared.write_before(Lsn(200)).unwrap();
        assert_eq!(fixture.names(), ["000002BD"]);
        let file = std::fs::read(fixture.directory.path().join("pg_twophase/000002BD")).unwrap();
        assert_eq!(file, to_file(&state(701)));
        prepared.finish(TransactionId(701)).unwrap();
        assert!(fixture.names().is_empty());
        prepared.finish(TransactionId(701)).unwrap(); // again, as a replay from before may
    }

    #[test]
    fn files_are_taken_up_again() {
        let mut fixture = Fixture::new();
        let mut prepared = fixture.open(800).unwrap();
        for xid in [700, 701, 702, 900] {
            prepare(&mut prepared, xid, 100);
        }
        prepared.write_before(Lsn(100)).unwrap();
        let leftover = fixture.directory.path().join("pg_twophase/000002BC.walferry");
        std::fs::write(leftover, "half").unwrap();
        let note = fixture.directory.path().join("pg_twophase/note");
        std::fs::write(note, "none of ours").unwrap();

        // 701 has ended, 900 is from later than the checkpoint.
        fixture.log.set_status(TransactionId(701), TransactionStatus::Aborted).unwrap();
        let mut prepared = fixture.open(800).unwrap();
        assert_eq!(fixture.names(), ["000002BC", "000002BE", "note"]);
        assert!(!prepare(&mut prepared, 700, 200));
        assert!(prepare(&mut prepared, 900, 200));
        prepared.finish(TransactionId(700)).unwrap();
        assert_eq!(fixture.names(), ["000002BE", "note"]);
    }

    #[test]
    fn a_torn_file_is_an_error() {
        let mut fixture = Fixture::new();
        let path = fixture.directory.path().join("pg_twophase/000002BC");
        std::fs::write(&path, &to_file(&state(700))[..60]).unwrap();
        let error = fixture.open(800).err().unwrap().to_string();
        assert!(error.contains("000002BC") && error.contains("checksum"), "{error}");
    }
}
