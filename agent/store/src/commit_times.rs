//! `pg_commit_ts`: when transactions committed, and which replication origin they came from.
//!
//! It is kept while the leader's `track_commit_timestamp` is on: the control file says so when
//! replay begins, later records of changed parameters. Switched off, all of it is removed.
//!
//! Rules: `src/backend/access/transam/commit_ts.c`.

use walfmt::TransactionId;
use walfmt::bytes::put;
use walfmt::slru::{COMMIT_TS, EntryPosition};
use walfmt_physical::CommitTsChange;

use crate::error::FileError;
use crate::layout::Layout;
use crate::slru::Slru;

pub(crate) struct CommitTimes {
    slru: Slru,
    is_kept: bool,
}

impl CommitTimes {
    /// `is_kept` is what the control file says, `next_xid` the checkpoint that replay begins from.
    pub(crate) fn open(
        layout: Layout,
        is_kept: bool,
        next_xid: TransactionId,
    ) -> Result<Self, FileError> {
        let latest_page = EntryPosition::of_commit_ts(next_xid).page;
        let mut opened = Self { slru: Slru::new(layout, &COMMIT_TS, latest_page), is_kept: false };
        if is_kept {
            opened.begin(next_xid)?;
        }
        Ok(opened)
    }

    /// `track_commit_timestamp` is as given from now on (`CommitTsParameterChange`).
    ///
    /// It is removed when it is off, whether it was on or not: a server that replays from before
    /// the change, with a control file from after it, leaves files that it removes at its
    /// promotion.
    pub(crate) fn keep(&mut self, is_kept: bool, next_xid: TransactionId) -> Result<(), FileError> {
        match (self.is_kept, is_kept) {
            (false, true) => self.begin(next_xid),
            (true, true) => Ok(()),
            (_, false) => {
                self.is_kept = false;
                self.slru.remove_segments(|_| true)
            }
        }
    }

    pub(crate) fn change(&mut self, change: &CommitTsChange) -> Result<(), FileError> {
        match change {
            CommitTsChange::ZeroPage(page) => self.slru.zero_page(*page),
            CommitTsChange::Truncate(truncate) => {
                // Nothing has said yet which page is the newest, so the guard has nothing to go by.
                self.slru.set_latest_page(truncate.page);
                self.slru.truncate(truncate.page)
            }
        }
    }

    /// Notes when these transactions committed, in microseconds since 2000-01-01 UTC. Whether it is
    /// kept.
    pub(crate) fn set(
        &mut self,
        xids: &mut dyn Iterator<Item = TransactionId>,
        time: i64,
        origin: u16,
    ) -> Result<bool, FileError> {
        if !self.is_kept {
            return Ok(false);
        }
        for xid in xids {
            let EntryPosition { page, byte } = EntryPosition::of_commit_ts(xid);
            let page = self.slru.change_page(page)?;
            put(page, byte, time.to_le_bytes());
            put(page, byte + 8, origin.to_le_bytes());
        }
        Ok(true)
    }

    /// Writes what was changed. It is durable after the next sync.
    pub(crate) fn write_changed(&mut self) -> Result<(), FileError> {
        self.slru.write_changed()
    }

    /// (`ActivateCommitTs`.) No record has begun the page that comes next, as there was nothing to
    /// begin it for.
    fn begin(&mut self, next_xid: TransactionId) -> Result<(), FileError> {
        let page = EntryPosition::of_commit_ts(next_xid).page;
        self.slru.set_latest_page(page);
        if !self.slru.page_exists(page)? {
            self.slru.zero_page(page)?;
        }
        self.is_kept = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use walfmt::rmgr::commit_ts::Truncate;

    use super::*;

    fn open(directory: &tempfile::TempDir, is_kept: bool, next_xid: u32) -> CommitTimes {
        std::fs::create_dir_all(directory.path().join("pg_commit_ts")).unwrap();
        let layout = Layout::new(directory.path()).unwrap();
        CommitTimes::open(layout, is_kept, TransactionId(next_xid)).unwrap()
    }

    fn files(directory: &tempfile::TempDir) -> Vec<(String, Vec<u8>)> {
        let entries = std::fs::read_dir(directory.path().join("pg_commit_ts")).unwrap();
        let mut files: Vec<_> = entries
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, std::fs::read(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    fn xids(xids: &[u32]) -> impl Iterator<Item = TransactionId> {
        xids.iter().map(|xid| TransactionId(*xid))
    }

    #[test]
    fn times_are_kept_while_they_are_switched_on() {
        let directory = tempfile::tempdir().unwrap();
        let mut times = open(&directory, false, 700);
        assert!(!times.set(&mut xids(&[700]), 5, 0).unwrap());
        times.write_changed().unwrap();
        assert!(files(&directory).is_empty());

        times.keep(true, TransactionId(819 + 3)).unwrap();
        assert!(times.set(&mut xids(&[822, 823, 1638]), 0x0102, 0x0304).unwrap());
        times.write_changed().unwrap();
        let [(name, file)] = &files(&directory)[..] else { panic!("one segment") };
        assert_eq!((name.as_str(), file.len()), ("0000", 3 * 8192));
        let entry = [2, 1, 0, 0, 0, 0, 0, 0, 4, 3];
        assert_eq!(file[8192 + 30..][..10], entry);
        assert_eq!(file[8192 + 40..][..10], entry);
        assert_eq!(file[2 * 8192..][..10], entry);

        // What is there stays when it is opened again, and goes when it is switched off.
        let mut times = open(&directory, true, 830);
        times.write_changed().unwrap();
        assert_eq!(files(&directory)[0].1, *file);
        times.set(&mut xids(&[824]), 1, 0).unwrap();
        times.keep(false, TransactionId(830)).unwrap();
        times.write_changed().unwrap();
        assert!(files(&directory).is_empty());
        times.keep(true, TransactionId(830)).unwrap();
        times.write_changed().unwrap();
        assert_eq!(files(&directory)[0].1, vec![0; 2 * 8192]);
    }

    #[test]
    fn old_segments_go() {
        let directory = tempfile::tempdir().unwrap();
        let mut times = open(&directory, true, 3);
        for page in [32, 64] {
            times.change(&CommitTsChange::ZeroPage(page)).unwrap();
        }
        times.write_changed().unwrap();
        let truncate = Truncate { page: 64, oldest_xid: TransactionId(64 * 819) };
        times.change(&CommitTsChange::Truncate(truncate)).unwrap();
        let names: Vec<_> = files(&directory).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["0002"]);
    }
}
