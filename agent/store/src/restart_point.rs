//! Restart points: from where replay begins again after a stop.
//!
//! ```text
//! dispatcher   checkpoint record ─► transactions written ─► marker to all workers ─► next record ...
//! workers                                    each writes what was changed at its marker
//! sync thread                       all have answered ─► origins written ─► sync ─► pg_control
//! ```
//!
//! A worker that must [hold back](crate::gate) pages of TOAST relations says so instead, and is told when
//! it may write them.
//!
//! Replay does not wait for any of it. Pages may be written with later changes than the marker's:
//! replay from the restart point brings those again. A restart point is abandoned if the table of
//! invalid pages is not empty when its pages are written: replay from it would not see the
//! references that the table holds (`RecoveryRestartPoint` in
//! `src/backend/access/transam/xlog.c`).

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use walfmt::Lsn;
use walfmt::control::ControlFile;
use walfmt::rmgr::xlog::CheckPoint;

use crate::control;
use crate::disk::FileSystem;
use crate::error::FileError;
use crate::layout::Layout;
use crate::origins::Origins;
use crate::rows::Rows;
use crate::shared::{Failure, Shared};
use crate::workers::{ThreadGone, Workers, WritingBack};

/// A checkpoint of the leader that replay can begin from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestartPoint {
    /// Where the checkpoint's record begins.
    pub check_point: Lsn,
    /// Where it ends.
    pub end: Lsn,
    /// What it says.
    pub contents: CheckPoint,
}

/// What the sync thread does once the workers have written.
pub(crate) struct Job {
    /// The workers, who write.
    pub(crate) writing: WritingBack,
    /// The replication origins, to be written.
    pub(crate) origins: Origins,
    /// The checkpoint for the control file, if there is a new one.
    pub(crate) checkpoint: Option<RestartPoint>,
    /// The control file's minimum recovery point, if it is to be raised.
    pub(crate) min_recovery_point: Option<Lsn>,
}

/// The sync thread, and what it has done.
pub(crate) struct RestartPoints {
    jobs: Option<Sender<Job>>,
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
    /// Jobs that were not waited for.
    running: Arc<AtomicBool>,
    redo: Arc<AtomicU64>,
    file_systems: Arc<FileSystems>,
}

impl RestartPoints {
    pub(crate) fn start(
        layout: &Layout,
        file_systems: FileSystems,
        control: &Arc<Mutex<ControlFile>>,
        shared: &Arc<Shared>,
        redo: Lsn,
        rows: Option<Arc<Rows>>,
    ) -> io::Result<Self> {
        let (jobs, inbox) = unbounded();
        let (done_sender, done) = unbounded();
        let running = Arc::new(AtomicBool::new(false));
        let redo = Arc::new(AtomicU64::new(redo.0));
        let file_systems = Arc::new(file_systems);
        let sync = SyncThread {
            layout: layout.clone(),
            file_systems: Arc::clone(&file_systems),
            control: Arc::clone(control),
            shared: Arc::clone(shared),
            redo: Arc::clone(&redo),
            rows,
        };
        let is_running = Arc::clone(&running);
        let work = move || {
            for mut job in inbox {
                sync.finish(&mut job);
                is_running.store(false, Ordering::SeqCst);
                let _ = done_sender.send(());
            }
        };
        let thread = std::thread::Builder::new().name("store-sync".to_owned()).spawn(work)?;
        Ok(Self { jobs: Some(jobs), done, thread: Some(thread), running, redo, file_systems })
    }

    /// What is synced for one.
    pub(crate) fn file_systems(&self) -> &FileSystems {
        &self.file_systems
    }

    /// Where replay begins after a stop: WAL from here on must be kept.
    pub(crate) fn redo(&self) -> &Arc<AtomicU64> {
        &self.redo
    }

    /// Whether one is being made.
    pub(crate) fn is_running(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Begins one. There must be none under way.
    pub(crate) fn begin(&self, job: Job) -> Result<(), ThreadGone> {
        while self.done.try_recv().is_ok() {} // of those that nobody waited for
        self.running.store(true, Ordering::SeqCst);
        let jobs = self.jobs.as_ref().ok_or(ThreadGone)?;
        jobs.send(job).map_err(|_| ThreadGone)
    }

    /// Waits until none is under way, and helps the workers meanwhile.
    pub(crate) fn wait(&self, workers: &Workers) -> Result<(), ThreadGone> {
        while self.is_running() {
            workers.wait(&self.done)?;
        }
        Ok(())
    }
}

impl RestartPoints {
    /// Does something useful, or waits until none is under way for at most `patience`.
    pub(crate) fn wait_at_most(
        &self,
        workers: &Workers,
        patience: Duration,
    ) -> Result<(), ThreadGone> {
        workers.wait_at_most(&self.done, patience).map(drop)
    }
}

impl Drop for RestartPoints {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct SyncThread {
    layout: Layout,
    file_systems: Arc<FileSystems>,
    control: Arc<Mutex<ControlFile>>,
    shared: Arc<Shared>,
    redo: Arc<AtomicU64>,
    rows: Option<Arc<Rows>>,
}

impl SyncThread {
    fn finish(&self, job: &mut Job) {
        // A worker that could not write has said why; one that is gone is noticed elsewhere.
        while !job.writing.is_done() {
            let Ok(answer) = job.writing.answers.recv() else { return };
            let Ok(held) = job.writing.take(answer) else { return };
            if let Some((worker, until)) = held {
                // If something has failed meanwhile, the worker says so.
                let may_go_on = self.wait_rows_durable(until) || self.shared.has_failed();
                if !may_go_on || job.writing.go_on(worker).is_err() {
                    return;
                }
            }
        }
        if let Some(checkpoint) = &job.checkpoint
            && !self.wait_rows_durable(checkpoint.contents.redo)
        {
            return;
        }
        let finished = job
            .origins
            .write(&self.layout)
            .and_then(|()| self.file_systems.sync())
            .and_then(|()| self.update_control(job));
        if let Err(error) = finished {
            self.shared.fail(Failure::Sync(error));
        }
    }

    fn wait_rows_durable(&self, lsn: Lsn) -> bool {
        let has_failed = || self.shared.has_failed();
        self.rows.as_ref().is_none_or(|rows| rows.wait_durable(lsn, has_failed))
    }

    fn update_control(&self, job: &Job) -> Result<(), FileError> {
        let mut control = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        let checkpoint = job.checkpoint.filter(|checkpoint| {
            checkpoint.contents.redo > control.check_point_copy.redo
                && self.shared.invalid_pages.is_empty()
        });
        if checkpoint.is_none() && job.min_recovery_point.is_none() {
            return Ok(());
        }
        let min_recovery_points =
            [checkpoint.map(|checkpoint| checkpoint.end), job.min_recovery_point];
        for lsn in min_recovery_points.into_iter().flatten() {
            raise_min_recovery_point(&mut control, lsn);
        }
        if let Some(checkpoint) = checkpoint {
            control.check_point = checkpoint.check_point;
            control.check_point_copy = checkpoint.contents;
        }
        control::write(&self.layout, &mut control)?;
        self.redo.store(control.check_point_copy.redo.0, Ordering::SeqCst);
        if let Some(checkpoint) = checkpoint {
            tracing::info!(redo = %checkpoint.contents.redo, "restart point");
        }
        Ok(())
    }
}

/// Pages may be as of `lsn`: the store is consistent only from there on.
pub(crate) fn raise_min_recovery_point(control: &mut ControlFile, lsn: Lsn) {
    if control.min_recovery_point < lsn {
        control.min_recovery_point = lsn;
        control.min_recovery_point_timeline = control.check_point_copy.this_timeline;
    }
}

/// The base backup's last WAL is replayed: consistent from `end` on (`ReachedEndOfBackup`).
pub(crate) fn end_backup(control: &mut ControlFile, end: Lsn) {
    raise_min_recovery_point(control, end);
    control.backup_start_point = Lsn::INVALID;
    control.backup_end_point = Lsn::INVALID;
    control.backup_end_required = false;
}

/// The file systems that the store lies on: one, unless a directory of it is a mount of its own.
///
/// The directories are held open from the start, so that the kernel reports every write error since
/// then at the next sync. Tablespaces are added as they come; they stay when they are dropped.
pub(crate) struct FileSystems(Mutex<Vec<Box<dyn FileSystem>>>);

/// The directories that may be mounts of their own; the first is the data directory itself.
const DIRECTORIES: [&str; 8] =
    ["", "base", "global", "pg_xact", "pg_multixact", "pg_commit_ts", "pg_twophase", "pg_logical"];

impl FileSystems {
    pub(crate) fn open(layout: &Layout) -> Result<Self, FileError> {
        let open = Self(Mutex::default());
        for path in DIRECTORIES.map(|name| layout.at(name)) {
            open.add(layout, &path)?;
        }
        Ok(open)
    }

    /// A directory of the store lies here, too.
    pub(crate) fn add(&self, layout: &Layout, path: &Path) -> Result<(), FileError> {
        let found = layout.file_system(path)?;
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if open.iter().all(|known| known.device() != found.device()) {
            open.push(found);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), FileError> {
        let open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        open.iter().try_for_each(|file_system| file_system.sync())
    }
}
