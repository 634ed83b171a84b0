//! The dispatcher: records in, tasks for the workers out, and everything that is not a page.
//!
//! What a record does is collected first and handed over when all of it was accepted: a record that
//! is refused leaves no trace. In the steady state a record costs no allocation, no lock and no
//! system call; those come once per batch.

mod routing;
mod scan;
mod toast;

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use walfmt::control::ControlFile;
use walfmt::rmgr::xlog::CheckPoint;
use walfmt::rmgr::{RmgrId, heap, standby, xlog};
use walfmt::row::Entry;
use walfmt::{Lsn, RawRecord, Record, Timeline};
use walfmt_physical::{RedoContext, RouteError, route};

use crate::batch::{Batch, RecordBuffer, Task};
use crate::counters::Counters;
use crate::dispatcher::routing::Routing;
pub use crate::dispatcher::scan::StoredRow;
use crate::error::{PromotionError, ReplayError};
use crate::layout::Layout;
use crate::mappings;
use crate::relations::Relations;
use crate::restart_point::{Job, RestartPoint, RestartPoints};
use crate::rows::Rows;
use crate::shared::{Failure, Shared};
use crate::tablespaces;
use crate::transactions::Transactions;
use crate::workers::{ThreadGone, Workers};

/// A batch is handed over when its records have this many bytes.
const BATCH_BYTES: usize = 64 << 10;

/// Batches per worker that may be under way: bounds the memory of buffers to 1 MB each.
const BATCHES_PER_WORKER_MAX: usize = 8;

pub(crate) struct Dispatcher {
    layout: Layout,
    shared: Arc<Shared>,
    control: Arc<Mutex<ControlFile>>,
    workers: Workers,
    restart_points: RestartPoints,
    relations: Relations,
    transactions: Transactions,
    counters: Counters,
    context: RedoContext,
    timeline: Timeline,
    rows: Option<RecordRows>,

    /// The batch that is being filled.
    records: RecordBuffer,
    tasks: Vec<Vec<Task>>,
    /// Where the record at hand is in `records`, once it has a task. Until all of it is accepted its
    /// tasks, the last ones, may be taken back.
    staged_record: Option<u32>,

    /// Buffers that workers may still read, oldest first.
    lent_records: VecDeque<Arc<RecordBuffer>>,
    /// Emptied buffers and task lists, to be filled again.
    spare_records: Vec<RecordBuffer>,
    spare_tasks: Vec<Vec<Task>>,

    /// The end of the last record that was accepted.
    dispatched: Lsn,
    /// The end of the last batch that each worker was given.
    handed_over: Vec<Lsn>,

    /// The last checkpoint that replay could begin from.
    candidate: Option<RestartPoint>,
    restart_point_interval: Duration,
    last_restart_point: Instant,
    restart_point_is_due: bool,
    /// Where the last file copy of a database began, as long as it would be made again after a
    /// crash.
    file_copy: Option<Lsn>,
    /// Tablespaces created since the restart point, or before.
    created_tablespaces: Vec<tablespaces::Created>,

    /// Where replay stopped, and how.
    stopped: Option<Stopped>,
}

#[derive(Clone, Copy)]
struct Stopped {
    at: Lsn,
    /// Everything before `at` is applied, and nothing of what follows.
    at_a_record: bool,
}

/// What a dispatcher is made of.
pub(crate) struct DispatcherParts {
    pub(crate) layout: Layout,
    pub(crate) shared: Arc<Shared>,
    pub(crate) control: Arc<Mutex<ControlFile>>,
    pub(crate) workers: Workers,
    pub(crate) restart_points: RestartPoints,
    pub(crate) relations: Relations,
    pub(crate) transactions: Transactions,
    pub(crate) context: RedoContext,
    pub(crate) checkpoint: CheckPoint,
    pub(crate) restart_point_interval: Duration,
    pub(crate) rows: Option<Arc<Rows>>,
}

/// Records for whoever takes rows, as long as their batch is being filled.
struct RecordRows {
    rows: Arc<Rows>,
    entries: Vec<u8>,
}

impl Dispatcher {
    pub(crate) fn new(parts: DispatcherParts) -> Self {
        let count = parts.workers.count();
        Self {
            layout: parts.layout,
            shared: parts.shared,
            control: parts.control,
            workers: parts.workers,
            restart_points: parts.restart_points,
            relations: parts.relations,
            transactions: parts.transactions,
            counters: Counters::from_checkpoint(&parts.checkpoint),
            rows: parts.rows.map(|rows| RecordRows { rows, entries: Vec::new() }),
            context: parts.context,
            timeline: parts.checkpoint.this_timeline,
            records: empty_records(),
            tasks: (0..count).map(|_| empty_tasks()).collect(),
            staged_record: None,
            lent_records: VecDeque::new(),
            spare_records: Vec::new(),
            spare_tasks: Vec::new(),
            dispatched: parts.checkpoint.redo,
            handed_over: vec![parts.checkpoint.redo; count],
            candidate: None,
            restart_point_interval: parts.restart_point_interval,
            last_restart_point: Instant::now(),
            restart_point_is_due: false,
            file_copy: None,
            created_tablespaces: Vec::new(),
            stopped: None,
        }
    }

    pub(crate) const fn counters(&self) -> &Counters {
        &self.counters
    }

    pub(crate) const fn dispatched(&self) -> Lsn {
        self.dispatched
    }

    /// Has all changed pages written to their files, and waits for it. Why one could not be is in
    /// `shared`.
    fn try_write_all_back(&mut self) -> Result<(), ThreadGone> {
        self.wait_restart_point()?;
        let mut writing = self.workers.write_back()?;
        while !writing.is_done() {
            let answer = self.workers.wait(&writing.answers)?;
            let Ok(held) = writing.take(answer) else { return Ok(()) };
            if let Some((worker, until)) = held {
                // If something has failed meanwhile, the worker says so.
                self.wait_rows_durable(until)?;
                writing.go_on(worker)?;
            }
        }
        Ok(())
    }

    pub(crate) const fn timeline(&self) -> Timeline {
        self.timeline
    }

    pub(crate) const fn workers(&self) -> &Workers {
        &self.workers
    }

    pub(crate) const fn restart_points(&self) -> &RestartPoints {
        &self.restart_points
    }

    pub(crate) fn control(&self) -> MutexGuard<'_, ControlFile> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Dispatches one record.
    pub(crate) fn replay(&mut self, raw: &RawRecord<'_>) -> Result<(), ReplayError> {
        self.check()?;
        if raw.start < self.dispatched {
            let error = ReplayError::Order { expected: self.dispatched, found: raw.start };
            return Err(self.stop(raw.start, error));
        }
        match self.stage(raw) {
            Ok(()) => {}
            Err(error) => return Err(self.stop(raw.start, error)),
        }
        self.staged_record = None;
        self.dispatched = raw.end;
        if let Some(rows) = &mut self.rows
            && is_of_use_to_decoding(raw)
        {
            Entry::write_record(raw, &mut rows.entries);
        }
        if self.records.len() >= BATCH_BYTES {
            self.hand_over()?;
        }
        if self.restart_point_is_due {
            self.restart_point_is_due = false;
            self.begin_restart_point(None)?;
        }
        if self.file_copy.is_some() {
            self.cover_file_copy()?;
        }
        Ok(())
    }

    /// After the first checkpoint that a file copy lies before, nothing may be replayed until that
    /// is the restart point: from then on the leader may change what was copied, and a second copy
    /// would be of something else. Until the table of invalid pages is empty it cannot be one; a
    /// copy that is made again too late is noticed, see `databases.rs`.
    fn cover_file_copy(&mut self) -> Result<(), ReplayError> {
        let redo = self.candidate.map(|checkpoint| checkpoint.contents.redo);
        if redo > self.file_copy && self.shared.invalid_pages.is_empty() {
            self.restart_point(None)?;
        }
        if Some(Lsn(self.restart_points.redo().load(Ordering::SeqCst))) > self.file_copy {
            self.file_copy = None;
        }
        Ok(())
    }

    /// Whether a server that takes over can create all tablespaces again that it will.
    pub(crate) fn check_created_tablespaces(&mut self) -> Result<(), PromotionError> {
        let redo = Lsn(self.restart_points.redo().load(Ordering::SeqCst));
        let candidate = self.candidate.map_or(redo, |checkpoint| checkpoint.contents.redo);
        self.created_tablespaces.retain(|created| created.at >= redo);
        let refused = self
            .created_tablespaces
            .iter()
            .find(|created| created.at >= candidate && !created.location_is_ready(&self.layout));
        match refused.cloned() {
            Some(tablespaces::Created { at, tablespace, location }) => {
                Err(PromotionError::Tablespace { tablespace, at, location })
            }
            None => Ok(()),
        }
    }

    /// Hands the batch over as far as it is filled.
    pub(crate) fn hand_over(&mut self) -> Result<(), ReplayError> {
        self.check()?;
        let handed_over = self.try_hand_over(self.dispatched);
        handed_over.map_err(|ThreadGone| self.stop(self.dispatched, ReplayError::ThreadGone))
    }

    /// Waits until everything is applied, also what workers told each other.
    pub(crate) fn wait_applied(&mut self) -> Result<(), ReplayError> {
        self.hand_over()?;
        let settled = self.workers.settle();
        settled.map_err(|ThreadGone| self.stop(self.dispatched, ReplayError::ThreadGone))?;
        self.check()
    }

    /// Makes a restart point and waits for it. Gives its redo pointer, old or new.
    pub(crate) fn restart_point(
        &mut self,
        min_recovery_point: Option<Lsn>,
    ) -> Result<Lsn, ReplayError> {
        self.check()?;
        let begun = self.begin_restart_point(min_recovery_point);
        begun?;
        let waited = self.wait_restart_point();
        waited.map_err(|ThreadGone| self.stop(self.dispatched, ReplayError::ThreadGone))?;
        self.check()?;
        Ok(self.control().check_point_copy.redo)
    }

    /// Waits until everything that was accepted is applied, also if replay stopped at a record it
    /// refused.
    pub(crate) fn settle(&mut self) -> Result<(), ReplayError> {
        match self.stopped {
            None => self.wait_applied(),
            Some(Stopped { at_a_record: true, .. }) => Ok(()), // done when it stopped
            Some(Stopped { at, .. }) => Err(ReplayError::Stopped { at }),
        }
    }

    /// Makes everything that was accepted durable, and says in the control file how far that is.
    /// Replay is over then. [`settle`](Self::settle) comes first.
    pub(crate) fn finish(&mut self) -> Result<(), ReplayError> {
        let stopped = self.stopped.take();
        let finished = self.restart_point(Some(self.dispatched));
        let at = self.dispatched;
        self.stopped = self.stopped.or(stopped).or(Some(Stopped { at, at_a_record: true }));
        finished.map(drop)
    }

    /// Waits until all rows so far are durable with whoever takes them, if anybody does.
    pub(crate) fn wait_all_rows(&mut self) -> Result<(), ReplayError> {
        let waited = self.wait_rows_durable(self.dispatched);
        waited.map_err(|ThreadGone| self.stop(self.dispatched, ReplayError::ThreadGone))
    }

    /// Writes the control file as it is in memory.
    pub(crate) fn write_control(&mut self) -> Result<(), ReplayError> {
        let written = {
            let mut control = self.control();
            crate::control::write(&self.layout, &mut control)
        };
        written.map_err(|source| {
            let at = self.dispatched;
            self.stop(at, ReplayError::File { at, source })
        })
    }

    /// Stops at a record: what came before is finished. The reason goes to the caller, who gets it
    /// once.
    fn stop(&mut self, at: Lsn, error: ReplayError) -> ReplayError {
        if let Some(place) = self.staged_record.take() {
            self.records.truncate(place);
            for tasks in &mut self.tasks {
                while tasks.pop_if(|task| task.record == place).is_some() {}
            }
        }
        let at_a_record = matches!(
            error,
            ReplayError::Decode { .. }
                | ReplayError::Redo(_)
                | ReplayError::Refused { .. }
                | ReplayError::Missing { .. }
                | ReplayError::Copy { .. }
                | ReplayError::Order { .. }
        );
        if at_a_record && self.stopped.is_none() {
            let finished = self.try_hand_over(self.dispatched).and_then(|()| self.workers.settle());
            // A worker's failure lies before this one, and counts.
            match (finished, self.shared.has_failed()) {
                (Ok(_), false) => {}
                (Ok(_), true) => {
                    if let Err(earlier) = self.check() {
                        return earlier;
                    }
                }
                (Err(ThreadGone), _) => {
                    self.stopped = Some(Stopped { at, at_a_record: false });
                    return ReplayError::ThreadGone;
                }
            }
        }
        self.stopped.get_or_insert(Stopped { at, at_a_record });
        error
    }

    /// Whether replay can go on; if not, why it stopped.
    fn check(&mut self) -> Result<(), ReplayError> {
        if let Some(stopped) = self.stopped {
            return Err(ReplayError::Stopped { at: stopped.at });
        }
        if !self.shared.has_failed() {
            return Ok(());
        }
        // Workers that are behind the failing record go on up to it.
        let handed_over = self.try_hand_over(self.dispatched);
        let reached = handed_over.and_then(|()| self.workers.settle());
        let error = match (self.shared.take_failure(), reached) {
            (Some(Failure::Page { at, fault }), Ok(others_reached)) => {
                ReplayError::Page { at, fault, others_reached }
            }
            (Some(Failure::Sync(source)), _) => {
                ReplayError::File { at: self.shared.applied(), source }
            }
            (_, Err(ThreadGone)) | (None, _) => ReplayError::ThreadGone,
        };
        let at = match &error {
            ReplayError::Page { at, .. } => *at,
            _ => self.shared.applied(),
        };
        self.stopped = Some(Stopped { at, at_a_record: false });
        Err(error)
    }

    fn stage(&mut self, raw: &RawRecord<'_>) -> Result<(), ReplayError> {
        let mut record = Record::blank();
        record
            .read(raw, self.context.version)
            .map_err(|source| ReplayError::Decode { at: raw.start, source })?;
        let context = self.context;
        let mut routing = Routing { dispatcher: self, raw };
        route(&record, &context, &mut routing).map_err(|error| match error {
            RouteError::Redo(error) => ReplayError::Redo(error),
            RouteError::Access(error) => error,
        })
    }

    /// Gives each worker its tasks. `end` is the end of the last record that is whole in the batch.
    fn try_hand_over(&mut self, end: Lsn) -> Result<(), ThreadGone> {
        if self.records.len() == 0 && self.handed_over.iter().all(|given| *given == end) {
            return Ok(());
        }
        if self.rows.is_some() {
            let given = self.handed_over.iter().copied().max().unwrap_or(end);
            self.wait_for_rows(|rows| rows.may_go_on(given))?;
        }
        if let Some(RecordRows { rows, entries }) = &mut self.rows {
            // Before all workers are there.
            rows.put(self.workers.count(), std::mem::take(entries), Vec::new());
        }
        let empty = self.spare_records.pop().unwrap_or_else(empty_records);
        let records = Arc::new(std::mem::replace(&mut self.records, empty));
        for worker in 0..self.workers.count() {
            if self.tasks[worker].is_empty()
                && self.shared.progress(worker) == self.handed_over[worker]
            {
                // It has nothing to do and sleeps: let it.
                self.handed_over[worker] = end;
                self.shared.publish(worker, end);
                continue;
            }
            self.handed_over[worker] = end;
            let empty = self.spare_tasks.pop().unwrap_or_else(empty_tasks);
            let batch = Batch {
                records: Arc::clone(&records),
                tasks: std::mem::replace(&mut self.tasks[worker], empty),
                context: self.context,
                end,
            };
            self.workers.hand_over(worker, batch)?;
        }
        self.lent_records.push_back(records);
        self.take_back()
    }

    /// Takes back what workers are done with, and waits for some if too much is under way.
    fn take_back(&mut self) -> Result<(), ThreadGone> {
        while let Some(tasks) = self.workers.take_back() {
            self.spare_tasks.push(tasks);
        }
        let limit = BATCHES_PER_WORKER_MAX * self.workers.count();
        self.spare_tasks.extend(self.workers.wait_for_room(limit)?);
        while let Some(oldest) = self.lent_records.pop_front() {
            match Arc::try_unwrap(oldest) {
                Ok(mut records) => {
                    records.reset(4 * BATCH_BYTES);
                    self.spare_records.push(records);
                }
                Err(oldest) => {
                    self.lent_records.push_front(oldest);
                    break;
                }
            }
        }
        Ok(())
    }

    fn begin_restart_point(&mut self, min_recovery_point: Option<Lsn>) -> Result<(), ReplayError> {
        let begun = self.try_begin_restart_point(min_recovery_point);
        begun.map_err(|error| self.stop(self.dispatched, error))
    }

    fn try_begin_restart_point(
        &mut self,
        min_recovery_point: Option<Lsn>,
    ) -> Result<(), ReplayError> {
        let gone = |ThreadGone| ReplayError::ThreadGone;
        self.wait_restart_point().map_err(gone)?;
        self.try_hand_over(self.dispatched).map_err(gone)?;
        self.transactions
            .write_changed(self.candidate.map(|candidate| candidate.contents.redo))
            .and_then(|()| mappings::remove_all(&self.layout))
            .map_err(|source| ReplayError::File { at: self.dispatched, source })?;
        let writing = self.workers.write_back().map_err(gone)?;
        self.last_restart_point = Instant::now();
        let origins = self.transactions.origins.clone();
        let checkpoint = self.candidate;
        self.restart_points
            .begin(Job { writing, origins, checkpoint, min_recovery_point })
            .map_err(gone)
    }
}

/// Whether decoding needs to know of a record that changes no rows, or speaks of none.
fn is_of_use_to_decoding(raw: &RawRecord<'_>) -> bool {
    match raw.header.rmgr {
        RmgrId::XACT
        | RmgrId::SMGR
        | RmgrId::DATABASE
        | RmgrId::RELMAP
        | RmgrId::SEQUENCE
        | RmgrId::LOGICAL_MESSAGE => true,
        RmgrId::STANDBY => raw.header.opcode() == standby::RUNNING_XACTS,
        RmgrId::HEAP => raw.header.info & heap::OPCODE_MASK == heap::TRUNCATE,
        RmgrId::XLOG => matches!(
            raw.header.opcode(),
            xlog::CHECKPOINT_SHUTDOWN | xlog::END_OF_RECOVERY | xlog::PARAMETER_CHANGE
        ),
        _ => false,
    }
}

// Buffers get their full size at once: an allocator that lets one grow asks the kernel time and
// again, and waits there while workers get memory for pages.

fn empty_records() -> RecordBuffer {
    RecordBuffer::with_capacity(BATCH_BYTES + BATCH_BYTES / 8)
}

fn empty_tasks() -> Vec<Task> {
    Vec::with_capacity(BATCH_BYTES / 128)
}
