//! Where the effects of a record go: pages to their owners' tasks, the rest is done here.

use std::sync::PoisonError;

use walfmt::relation::{BlockNumber, DatabaseLocator, PageId, RelFork};
use walfmt::rmgr::heap2::RewriteMapping;
use walfmt::rmgr::relmap::RelationMap;
use walfmt::rmgr::tablespace::CreateTablespace;
use walfmt::rmgr::xact::Prepare;
use walfmt::rmgr::xlog::{Change, CheckPoint, ParameterChange, WalLevel};
use walfmt::{ForkNumber, Lsn, RawRecord, Record, RelFileLocator, TransactionId};
use walfmt_physical::{
    CommitTsChange, MultiXactChange, OriginChange, PageAccess, PageChange, PageNeed,
    TransactionStatus, page_need,
};

use crate::batch::Task;
use crate::dispatcher::Dispatcher;
use crate::error::{FileError, Refusal, ReplayError};
use crate::files::owner_of;
use crate::layout::Layout;
use crate::relations::ForkId;
use crate::restart_point::{RestartPoint, end_backup};
use crate::toast::ToastFiles;
use crate::worker::Doomed;
use crate::workers::ThreadGone;
use crate::{databases, mappings, relation_maps, tablespaces};

/// The record at hand, and the dispatcher that takes its effects.
pub(super) struct Routing<'a> {
    pub(super) dispatcher: &'a mut Dispatcher,
    pub(super) raw: &'a RawRecord<'a>,
}

impl Routing<'_> {
    fn file_error(&self) -> impl FnOnce(FileError) -> ReplayError + use<> {
        let at = self.raw.start;
        move |source| ReplayError::File { at, source }
    }

    fn refused(&self, refusal: Refusal) -> ReplayError {
        ReplayError::Refused { at: self.raw.start, refusal }
    }

    fn intern(&mut self, fork: RelFork) -> Result<ForkId, ReplayError> {
        if !Layout::holds(fork.locator) {
            return Err(self.refused(Refusal::Place(fork.locator)));
        }
        Ok(self.dispatcher.relations.intern(fork))
    }

    /// Decides whether the page is there, and with that whether its owner gets the change.
    fn is_taken(&mut self, id: ForkId, page: PageId, need: PageNeed) -> Result<Taken, ReplayError> {
        let relations = &mut self.dispatcher.relations;
        if relations.known_blocks(id).is_some_and(|blocks| page.block < blocks) {
            return Ok(Taken::Exists);
        }
        let fork = page.rel_fork();
        let at = self.raw.start;
        let file_error = |source| ReplayError::File { at, source };
        if need != PageNeed::IfExists {
            // A file whose relation is dropped later is made nevertheless, as a server does.
            relations.create(id, fork).map_err(file_error)?;
        }
        let blocks = relations.blocks(id, fork).map_err(file_error)?;
        if page.block < blocks {
            return Ok(Taken::Exists);
        }
        match need {
            PageNeed::Nothing | PageNeed::ExistingOrZero => {
                let blocks = page.block.saturating_add(1);
                relations.extend(id, fork, blocks).map_err(file_error)?;
                Ok(Taken::Extends)
            }
            // Its owner may know better: see worker.rs.
            PageNeed::Existing | PageNeed::IfExists if page.fork == ForkNumber::FreeSpace => {
                Ok(Taken::Exists)
            }
            PageNeed::Existing => {
                let reported = self.dispatcher.shared.invalid_pages.report(page, at);
                reported.map_err(|_consistent| ReplayError::Missing { at, page })?;
                Ok(Taken::No)
            }
            PageNeed::IfExists => Ok(Taken::No),
        }
    }

    /// Finishes what the record has done so far, before a file action.
    fn before_file_action(&mut self) -> Result<(), ReplayError> {
        let dispatcher = &mut *self.dispatcher;
        dispatcher.staged_record = None;
        let end = dispatcher.dispatched;
        dispatcher.try_hand_over(end).map_err(|ThreadGone| ReplayError::ThreadGone)?;
        if dispatcher.shared.has_failed() {
            dispatcher.check()?;
        }
        Ok(())
    }

    /// Waits until all that the records so far do to pages is done, for an action that looks at
    /// more than its own relation.
    fn settle(&mut self) -> Result<(), ReplayError> {
        self.before_file_action()?;
        self.dispatcher.workers.settle().map_err(|ThreadGone| ReplayError::ThreadGone)?;
        if self.dispatcher.shared.has_failed() {
            self.dispatcher.check()?;
        }
        Ok(())
    }

    /// Has all changed pages written to their files, and waits for it.
    fn write_all_back(&mut self) -> Result<(), ReplayError> {
        self.settle()?;
        let written = self.dispatcher.try_write_all_back();
        written.map_err(|ThreadGone| ReplayError::ThreadGone)?;
        self.dispatcher.check()
    }

    /// Forgets all relations in these directories, which are going to be removed.
    fn forget_directories(&mut self, directories: &[DatabaseLocator]) -> Result<(), ReplayError> {
        let locators = self.dispatcher.relations.in_directories(directories);
        let mut numbers = self.dispatcher.relations.known(&locators);
        numbers.sort_unstable();
        self.forget(Doomed::Relations(numbers))?;
        if let Some(files) = self.toast_files() {
            files.numbers_changed();
        }
        for locator in locators {
            self.dispatcher.relations.forget(locator);
        }
        Ok(())
    }

    fn forget(&mut self, doomed: Doomed) -> Result<(), ReplayError> {
        self.before_file_action()?;
        let forgotten = self.dispatcher.workers.forget(doomed);
        forgotten.map_err(|ThreadGone| ReplayError::ThreadGone)?;
        // Nothing may be removed that a record before this one could not get at.
        if self.dispatcher.shared.has_failed() {
            self.dispatcher.check()?;
        }
        Ok(())
    }

    /// Waits until nobody asks for TOAST values that rows before this record need, if files of these
    /// relations are to go or become shorter and some may hold values. Others go at once.
    fn wait_for_rows(
        &mut self,
        hold_values: impl FnOnce(&ToastFiles) -> bool,
    ) -> Result<(), ReplayError> {
        let Some(rows) = &self.dispatcher.rows else { return Ok(()) };
        if !hold_values(rows.rows.files()) {
            return Ok(());
        }
        self.before_file_action()?;
        let at = self.dispatcher.dispatched;
        let waited = self.dispatcher.wait_rows_durable(at);
        waited.map_err(|ThreadGone| ReplayError::ThreadGone)?;
        if self.dispatcher.shared.has_failed() {
            self.dispatcher.check()?;
        }
        Ok(())
    }

    fn toast_files(&self) -> Option<&ToastFiles> {
        self.dispatcher.rows.as_ref().map(|rows| rows.rows.files())
    }

    fn checkpoint(
        &mut self,
        record: &Record<'_>,
        contents: &CheckPoint,
    ) -> Result<(), ReplayError> {
        if contents.this_timeline != self.dispatcher.timeline {
            let (from, to) = (self.dispatcher.timeline, contents.this_timeline);
            return Err(self.refused(Refusal::Timeline { from, to }));
        }
        if !contents.full_page_writes {
            return Err(self.refused(Refusal::FullPageWritesOff));
        }
        let dispatcher = &mut *self.dispatcher;
        // After a file copy the restart point may be made late, when no page is missing any more:
        // whatever explained them will be replayed again.
        let covers_file_copy = dispatcher.file_copy.is_some_and(|copy| contents.redo > copy);
        if covers_file_copy || dispatcher.shared.invalid_pages.is_empty() {
            dispatcher.candidate = Some(RestartPoint {
                check_point: record.start,
                end: record.end,
                contents: *contents,
            });
            dispatcher.restart_point_is_due = !dispatcher.restart_points.is_running()
                && dispatcher.last_restart_point.elapsed() >= dispatcher.restart_point_interval;
        }
        Ok(())
    }

    fn parameters(&mut self, new: &ParameterChange) -> Result<(), ReplayError> {
        if new.wal_level == WalLevel::Minimal {
            return Err(self.refused(Refusal::WalLevelMinimal));
        }
        // Records before this one are redone by the rules in force before.
        self.before_file_action()?;
        let dispatcher = &mut *self.dispatcher;
        let mut control = dispatcher.control.lock().unwrap_or_else(PoisonError::into_inner);
        control.max_connections = new.max_connections;
        control.max_worker_processes = new.max_worker_processes;
        control.max_wal_senders = new.max_wal_senders;
        control.max_prepared_transactions = new.max_prepared_xacts;
        control.max_locks_per_transaction = new.max_locks_per_xact;
        control.wal_level = new.wal_level as i32;
        control.wal_log_hints = new.wal_log_hints;
        control.track_commit_timestamp = new.track_commit_timestamp;
        dispatcher.context.hint_bits_are_logged = control.hint_bits_are_logged();
        drop(control);
        let next_xid = TransactionId(dispatcher.counters.next_xid as u32);
        let kept = dispatcher.transactions.commit_times.keep(new.track_commit_timestamp, next_xid);
        dispatcher.counters.keep_commit_times(new.track_commit_timestamp);
        kept.map_err(self.file_error())
    }

    /// The end of the backup that the store comes from, or of another one, which is no matter.
    fn backup_end(&mut self, record: &Record<'_>, start_point: Lsn) {
        let mut control = self.dispatcher.control();
        if control.backup_start_point.is_valid() && control.backup_start_point == start_point {
            end_backup(&mut control, record.end);
        }
    }
}

/// Whether a task is made for a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taken {
    No,
    Exists,
    Extends,
}

impl PageAccess for Routing<'_> {
    type Error = ReplayError;

    fn change_page(
        &mut self,
        record: &Record<'_>,
        page: PageId,
        change: PageChange,
    ) -> Result<(), ReplayError> {
        let fork = self.intern(page.rel_fork())?;
        if matches!(change, PageChange::TruncateFreeSpace { .. }) {
            // What is under way about blocks behind the cut must not come after it.
            self.settle()?;
        }
        let need = page_need(record, change);
        let taken = self.is_taken(fork, page, need)?;
        if taken == Taken::No {
            return Ok(());
        }
        let dispatcher = &mut *self.dispatcher;
        let place = match dispatcher.staged_record {
            Some(place) => place,
            None => *dispatcher.staged_record.insert(dispatcher.records.push(self.raw)),
        };
        let owner = owner_of(fork, page.block, dispatcher.workers.count());
        let task = Task {
            record: place,
            fork,
            block: page.block,
            change,
            need,
            extends: taken == Taken::Extends,
        };
        dispatcher.tasks[owner].push(task);
        Ok(())
    }

    fn create_fork(&mut self, fork: RelFork) -> Result<(), ReplayError> {
        let id = self.intern(fork)?;
        if fork.fork == ForkNumber::Main
            && let Some(files) = self.toast_files()
        {
            files.created(fork.locator);
        }
        self.dispatcher.relations.create(id, fork).map_err(self.file_error())
    }

    fn truncate_fork(&mut self, fork: RelFork, blocks: BlockNumber) -> Result<(), ReplayError> {
        let id = self.intern(fork)?;
        if fork.fork == ForkNumber::Main {
            self.wait_for_rows(|files| files.holds_any(&[fork.locator]))?;
        }
        self.forget(Doomed::Tail { fork: id, blocks })?;
        self.dispatcher.relations.truncate(id, fork, blocks).map_err(self.file_error())?;
        self.dispatcher.shared.invalid_pages.forget_truncated(fork, blocks);
        Ok(())
    }

    fn drop_relations(
        &mut self,
        locators: &mut dyn Iterator<Item = RelFileLocator>,
    ) -> Result<(), ReplayError> {
        let locators: Vec<_> = locators.collect();
        if let Some(elsewhere) = locators.iter().find(|locator| !Layout::holds(**locator)) {
            return Err(self.refused(Refusal::Place(*elsewhere)));
        }
        self.wait_for_rows(|files| files.holds_any(&locators))?;
        let mut numbers = self.dispatcher.relations.known(&locators);
        numbers.sort_unstable();
        self.forget(Doomed::Relations(numbers))?;
        if let Some(files) = self.toast_files() {
            files.dropped(&locators);
        }
        for locator in locators {
            self.dispatcher.relations.remove(locator).map_err(self.file_error())?;
            self.dispatcher.shared.invalid_pages.forget_dropped(locator);
        }
        Ok(())
    }

    fn write_relation_map(&mut self, map: &RelationMap<'_>) -> Result<(), ReplayError> {
        self.settle()?;
        relation_maps::write(&self.dispatcher.layout, map).map_err(self.file_error())
    }

    fn create_database(&mut self, directory: DatabaseLocator) -> Result<(), ReplayError> {
        let version = self.dispatcher.context.version;
        databases::create(&self.dispatcher.layout, directory, version).map_err(self.file_error())
    }

    fn copy_database(
        &mut self,
        from: DatabaseLocator,
        to: DatabaseLocator,
    ) -> Result<(), ReplayError> {
        self.write_all_back()?;
        let layout = self.dispatcher.layout.clone();
        let at = self.raw.start;
        let fault = databases::copy_fault(&layout, from, to, self.raw.end);
        if let Some(fault) = fault.map_err(self.file_error())? {
            return Err(ReplayError::Copy { at, fault });
        }
        self.forget_directories(&[to])?;
        databases::copy(&layout, from, to).map_err(self.file_error())?;
        self.dispatcher.file_copy = Some(at);
        Ok(())
    }

    fn drop_databases(
        &mut self,
        directories: &mut dyn Iterator<Item = DatabaseLocator>,
    ) -> Result<(), ReplayError> {
        let directories: Vec<_> = directories.collect();
        let databases = || directories.iter().map(|directory| directory.database);
        self.wait_for_rows(|files| databases().any(|database| files.holds_database(database)))?;
        self.forget_directories(&directories)?;
        for directory in directories {
            databases::remove(&self.dispatcher.layout, directory).map_err(self.file_error())?;
            self.dispatcher.shared.invalid_pages.forget_directory(directory);
        }
        Ok(())
    }

    fn create_tablespace(&mut self, create: &CreateTablespace<'_>) -> Result<(), ReplayError> {
        let layout = &self.dispatcher.layout;
        tablespaces::create(layout, create)
            .and_then(|()| {
                let directory = layout.tablespace_directory(create.tablespace);
                self.dispatcher.restart_points.file_systems().add(layout, &directory)
            })
            .map_err(self.file_error())?;
        let created = tablespaces::Created::new(self.raw.start, create);
        self.dispatcher.created_tablespaces.extend(created);
        Ok(())
    }

    fn drop_tablespace(&mut self, tablespace: u32) -> Result<(), ReplayError> {
        self.wait_for_rows(|files| !files.is_empty())?;
        self.settle()?;
        tablespaces::remove(&self.dispatcher.layout, tablespace).map_err(self.file_error())
    }

    fn write_rewrite_mapping(
        &mut self,
        record: &Record<'_>,
        mapping: &RewriteMapping<'_>,
    ) -> Result<(), ReplayError> {
        let name = mapping.file_name(record.header.xid);
        mappings::write(&self.dispatcher.layout, &name, mapping.offset, mapping.mappings)
            .map_err(self.file_error())
    }

    fn set_transaction_status(
        &mut self,
        xids: &mut dyn Iterator<Item = TransactionId>,
        status: TransactionStatus,
    ) -> Result<(), ReplayError> {
        for xid in xids {
            self.dispatcher.transactions.log.set_status(xid, status).map_err(self.file_error())?;
        }
        Ok(())
    }

    fn zero_clog_page(&mut self, page: u64) -> Result<(), ReplayError> {
        self.dispatcher.transactions.log.zero_page(page).map_err(self.file_error())
    }

    fn truncate_clog(&mut self, page: u64) -> Result<(), ReplayError> {
        self.dispatcher.transactions.log.truncate(page).map_err(self.file_error())
    }

    fn change_multixacts(&mut self, change: &MultiXactChange<'_>) -> Result<(), ReplayError> {
        let counters = &mut self.dispatcher.counters;
        match change {
            MultiXactChange::Create(create) => {
                counters.advance_past_multi(create.multi, create.end_offset());
            }
            MultiXactChange::Truncate(truncate) => counters.oldest_multi = truncate.end_multi,
            MultiXactChange::ZeroOffsetsPage(_) | MultiXactChange::ZeroMembersPage(_) => {}
        }
        self.dispatcher.transactions.multixacts.change(change).map_err(self.file_error())
    }

    fn change_commit_times(&mut self, change: &CommitTsChange) -> Result<(), ReplayError> {
        if let CommitTsChange::Truncate(truncate) = change {
            self.dispatcher.counters.advance_oldest_commit_time(truncate.oldest_xid);
        }
        self.dispatcher.transactions.commit_times.change(change).map_err(self.file_error())
    }

    fn set_commit_time(
        &mut self,
        xids: &mut dyn Iterator<Item = TransactionId>,
        time: i64,
        origin: u16,
    ) -> Result<(), ReplayError> {
        let mut newest = None;
        let mut noted = xids.inspect(|xid| newest = Some(*xid));
        let times = &mut self.dispatcher.transactions.commit_times;
        let is_kept = times.set(&mut noted, time, origin).map_err(self.file_error())?;
        if is_kept && let Some(newest) = newest {
            self.dispatcher.counters.advance_newest_commit_time(newest);
        }
        Ok(())
    }

    fn prepare_transaction(
        &mut self,
        record: &Record<'_>,
        prepare: &Prepare<'_>,
    ) -> Result<bool, ReplayError> {
        Ok(self.dispatcher.transactions.prepared.prepare(prepare, record.end, record.main_data))
    }

    fn finish_prepared(&mut self, xid: TransactionId) -> Result<(), ReplayError> {
        self.dispatcher.transactions.prepared.finish(xid).map_err(self.file_error())
    }

    fn change_origin(&mut self, change: &OriginChange) -> Result<(), ReplayError> {
        self.dispatcher.transactions.origins.change(change);
        Ok(())
    }

    fn advance_next_xid(&mut self, xid: TransactionId) -> Result<(), ReplayError> {
        self.dispatcher.counters.advance_past_xid(xid);
        Ok(())
    }

    fn server_state(&mut self, record: &Record<'_>, change: &Change) -> Result<(), ReplayError> {
        match change {
            Change::CheckpointShutdown(contents) => {
                let backup_is_running = {
                    let control = self.dispatcher.control();
                    control.backup_start_point.is_valid() && !control.backup_end_point.is_valid()
                };
                if backup_is_running {
                    return Err(self.refused(Refusal::BackupCanceled));
                }
                self.checkpoint(record, contents)?;
                self.dispatcher.counters.set(contents);
            }
            Change::CheckpointOnline(contents) => {
                self.checkpoint(record, contents)?;
                self.dispatcher.counters.advance(contents);
            }
            Change::NextOid(oid) => self.dispatcher.counters.set_next_oid(*oid),
            Change::BackupEnd { start_point } => self.backup_end(record, *start_point),
            Change::ParameterChange(parameters) => self.parameters(parameters)?,
            Change::FullPageWrites(false) => {
                return Err(self.refused(Refusal::FullPageWritesOff));
            }
            Change::EndOfRecovery { this_timeline, .. } => {
                let from = self.dispatcher.timeline;
                if *this_timeline != from {
                    return Err(self.refused(Refusal::Timeline { from, to: *this_timeline }));
                }
            }
            Change::FullPageWrites(true)
            | Change::RestorePoint { .. }
            | Change::OverwriteContrecord { .. }
            | Change::Switch
            | Change::Noop => {}
        }
        Ok(())
    }
}
