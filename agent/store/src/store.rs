//! The store as its user sees it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use walfmt::backup_label::BackupLabel;
use walfmt::control::{ClusterState, ControlFile};
use walfmt::relation::{DatabaseLocator, RelFileLocator};
use walfmt::rmgr::xlog::CheckPoint;
use walfmt::{BLOCK_SIZE, Lsn, RawRecord, SegmentSize, Timeline, TransactionId, Version};
use walfmt_physical::RedoContext;

use crate::cleanup::remove_stale_files;
use crate::control;
use crate::counters::Counters;
use crate::crew::SideWork;
use crate::disk::{Disk, OsDisk};
use crate::dispatcher::{Dispatcher, DispatcherParts, StoredRow};
use crate::error::{
    FileError, NotConsistent, OpenError, PrepareError, PromotionError, ReplayError,
};
use crate::layout::Layout;
use crate::lock::StoreLock;
use crate::prepare::{prepare, refusal};
use crate::relations::Relations;
use crate::restart_point::{FileSystems, RestartPoints, end_backup, raise_min_recovery_point};
use crate::rows::Rows;
use crate::shared::Shared;
use crate::tablespaces;
use crate::transactions::Transactions;
use crate::verify::BrokenRule;
use crate::workers::{Workers, WorkersConfig};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The data directory.
    pub data_directory: PathBuf,
    /// How many shares pages have, each of which one thread at a time applies records to: as many
    /// as processors. Threads are one fewer, but at least one, since the one that uses the store
    /// helps while it waits.
    pub workers: usize,
    /// How much memory pages may take, all workers together, in bytes.
    pub cache_bytes: u64,
    /// A checkpoint of the leader becomes a restart point if the last one is at least this old.
    pub restart_point_interval: Duration,
    /// Compare each page with the image that its record carries for that, and stop replay at the
    /// first that differs: `wal_consistency_checking` of the leader makes its WAL carry them.
    pub verify_images: bool,
    /// Who takes the rows that change, if anybody does.
    pub rows: Option<Arc<Rows>>,
}

/// Which cluster a store is a copy of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StoreIdentity {
    /// The cluster's own number.
    pub system_identifier: u64,
    /// The timeline that is replayed.
    pub timeline: Timeline,
    /// The size of its WAL segments.
    pub segment_size: SegmentSize,
    /// Its major.
    pub version: &'static Version,
}

/// What a server finds that takes the directory over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromotionState {
    /// Where the server begins to replay: WAL from here on must be within its reach.
    pub redo: Lsn,
    /// Where the record of that checkpoint begins.
    pub check_point: Lsn,
    /// The end of the last record that is applied: the server must replay up to here.
    pub applied: Lsn,
    /// The timeline of both.
    pub timeline: Timeline,
}

/// A data directory that is replayed by us. One thread uses it; it has threads of its own.
///
/// Dropped without [`close`](Self::close), it is as after a crash.
pub struct Store {
    lock: Option<StoreLock>,
    dispatcher: Dispatcher,
    shared: Arc<Shared>,
    identity: StoreIdentity,
    replay_from: Lsn,
    /// `false` after an unclean stop: pages may be of any time up to one that only the archive
    /// knows.
    pages_are_bounded: bool,
    /// [`applied`](Self::applied) when consistency was last looked at.
    looked_at: Lsn,
}

impl Store {
    /// Takes a store and makes it ready for replay from [`replay_from`](Self::replay_from).
    ///
    /// # Errors
    /// [`OpenError`] if somebody has it, it is not a store, or the cluster has a setting that
    /// cannot be replayed.
    pub fn open(config: &StoreConfig) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(OsDisk), config)
    }

    /// The same on any disk: tests give one that loses what was not synced.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_on(disk: Arc<dyn Disk>, config: &StoreConfig) -> Result<Self, OpenError> {
        Self::open_as(disk, config, None)
    }

    /// The same with a rule of redo that is broken on purpose, to see that it is noticed.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    #[cfg(any(test, feature = "testing"))]
    pub fn open_with_broken_rule(
        config: &StoreConfig,
        rule: BrokenRule,
    ) -> Result<Self, OpenError> {
        Self::open_as(Arc::new(OsDisk), config, Some(rule))
    }

    fn open_as(
        disk: Arc<dyn Disk>,
        config: &StoreConfig,
        broken_rule: Option<BrokenRule>,
    ) -> Result<Self, OpenError> {
        let layout = Layout::on(disk, &config.data_directory)?;
        // Not one file is made in a directory that is none of ours.
        check_state(&ControlFile::from_bytes(&control::read(&layout)?)?)?;
        let lock = StoreLock::take(&layout, config.rows.is_some())?;
        match Self::open_locked(config, &layout, lock.after_unclean_stop, broken_rule) {
            Ok(store) => {
                if let Some(rows) = &config.rows {
                    rows.set_free_toast(lock.free_toast());
                }
                Ok(Self { lock: Some(lock), ..store })
            }
            Err(error) => {
                // Nothing was changed: the next one is told what we were told.
                if lock.after_unclean_stop {
                    lock.release_unclean()?;
                } else {
                    lock.release()?;
                }
                Err(error)
            }
        }
    }

    /// Makes a base backup a store, durably: the control file, `recovery.signal` and the label are
    /// as after the first moments of a server's recovery. `checkpoint` is the contents of the record
    /// that the label speaks of, which begins at `checkpoint_lsn`.
    ///
    /// # Errors
    /// [`PrepareError`] if the backup cannot be replayed, or checkpoint and label contradict each
    /// other.
    pub fn prepare(
        directory: &Path,
        checkpoint: &CheckPoint,
        checkpoint_lsn: Lsn,
        label: &BackupLabel,
    ) -> Result<(), PrepareError> {
        prepare(directory, checkpoint, checkpoint_lsn, label)
    }

    /// Where the first record to be replayed begins.
    #[must_use]
    pub const fn replay_from(&self) -> Lsn {
        self.replay_from
    }

    /// Which cluster this is a copy of.
    #[must_use]
    pub const fn identity(&self) -> &StoreIdentity {
        &self.identity
    }

    /// The leader's counters as of the last record.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        self.dispatcher.counters()
    }

    /// Whether it is known up to where pages may have been changed. It is not after an unclean
    /// stop: then the store does not become consistent before
    /// [`set_consistent_after`](Self::set_consistent_after) was called.
    #[must_use]
    pub const fn pages_are_bounded(&self) -> bool {
        self.pages_are_bounded
    }

    /// Whether, until this store was opened, every page of a TOAST relation waited for rows before it was
    /// written ([`StoreConfig::rows`]). If not, rows that are taken again from
    /// [`replay_from`](Self::replay_from) on may need values that are on no page any more.
    #[must_use]
    pub fn toast_was_held(&self) -> bool {
        self.lock.as_ref().is_some_and(|lock| !lock.after_free_toast)
    }

    /// Says, durably, that such pages wait for rows from now on: all rows before
    /// [`applied`](Self::applied) are durable, or will never be asked for. Or that they do not.
    ///
    /// # Errors
    /// [`ReplayError`] if the lock file cannot be written.
    pub fn hold_toast(&mut self, is_held: bool) -> Result<(), ReplayError> {
        let at = self.applied();
        let written = self.lock.as_ref().map_or(Ok(()), |lock| lock.hold_toast(is_held));
        written.map_err(|source| ReplayError::File { at, source })
    }

    /// Says, after an unclean stop, up to where pages may have been changed: the end of the last
    /// whole record that the archive held when the store was opened. Kept durably.
    ///
    /// # Errors
    /// [`ReplayError`] if the control file cannot be written.
    pub fn set_consistent_after(&mut self, lsn: Lsn) -> Result<(), ReplayError> {
        raise_min_recovery_point(&mut self.dispatcher.control(), lsn);
        self.dispatcher.write_control()?;
        self.pages_are_bounded = true;
        Ok(())
    }

    /// Replays the next record. It is applied later, see [`applied`](Self::applied).
    ///
    /// # Errors
    /// [`ReplayError`] for this record or one before it. If the record was refused, all before it
    /// are applied then, and no page has an LSN beyond its start. If a worker failed at a page, see
    /// [`ReplayError::Page`]. After an error replay goes on only when the store is opened anew.
    pub fn replay(&mut self, record: &RawRecord<'_>) -> Result<(), ReplayError> {
        self.dispatcher.replay(record)?;
        self.look_for_consistency();
        Ok(())
    }

    /// Hands partly filled batches to the workers. To be called when there is nothing to replay at
    /// the moment: else the last records wait for the next ones.
    ///
    /// # Errors
    /// [`ReplayError`] for a record before.
    pub fn hand_over(&mut self) -> Result<(), ReplayError> {
        self.dispatcher.hand_over()?;
        self.look_for_consistency();
        Ok(())
    }

    /// Answers whoever takes rows if he [asks](crate::Rows::ask) for TOAST values. To be called now and then
    /// between records, and when there is nothing to replay; the store itself does while it waits for
    /// him. Next to nothing if nobody asks.
    ///
    /// # Errors
    /// [`ReplayError`] if a thread of the store is gone.
    pub fn serve_rows(&mut self) -> Result<(), ReplayError> {
        self.dispatcher.serve_rows()
    }

    /// Gives the store's threads something to do beside their own work. Only the first call counts.
    pub fn set_side_work(&self, work: Arc<dyn SideWork>) {
        self.dispatcher.workers().set_side_work(work);
    }

    /// Does a piece of what the store's threads have to do, for who would wait otherwise; `false` if
    /// there is nothing.
    #[must_use]
    pub fn help(&self) -> bool {
        self.dispatcher.workers().help()
    }

    /// The end of the last record such that it and all before it are applied.
    #[must_use]
    pub fn applied(&self) -> Lsn {
        self.shared.applied()
    }

    /// [`applied`](Self::applied) for others to watch.
    #[must_use]
    pub fn watch_applied(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.shared.applied)
    }

    /// Where replay begins after a stop: WAL from here on must be kept.
    #[must_use]
    pub fn restart_redo(&self) -> Lsn {
        Lsn(self.dispatcher.restart_points().redo().load(Ordering::SeqCst))
    }

    /// [`restart_redo`](Self::restart_redo) for others to watch.
    #[must_use]
    pub fn watch_restart_redo(&self) -> Arc<AtomicU64> {
        Arc::clone(self.dispatcher.restart_points().redo())
    }

    /// Waits until all records given so far are applied.
    ///
    /// # Errors
    /// [`ReplayError`] for one of them.
    pub fn wait_applied(&mut self) -> Result<(), ReplayError> {
        self.dispatcher.wait_applied()
    }

    /// How many pages were compared with the leader's images of them since this was last asked, see
    /// [`StoreConfig::verify_images`].
    #[must_use]
    pub fn take_images_verified(&self) -> u64 {
        self.shared.images_verified.swap(0, Ordering::Relaxed)
    }

    /// Whether the store is what the leader was at [`applied`](Self::applied).
    ///
    /// # Errors
    /// [`NotConsistent`] says what it waits for.
    pub fn consistency(&self) -> Result<(), NotConsistent> {
        if self.shared.invalid_pages.is_consistent() {
            return Ok(());
        }
        if !self.pages_are_bounded {
            return Err(NotConsistent::UncleanStop);
        }
        let applied = self.applied();
        let required = {
            let mut control = self.dispatcher.control();
            if control.backup_end_point.is_valid() && control.backup_end_point <= applied {
                end_backup(&mut control, applied);
            }
            if control.backup_start_point.is_valid() && control.backup_end_required {
                return Err(NotConsistent::BackupEnd { start: control.backup_start_point });
            }
            control.min_recovery_point.max(control.backup_end_point)
        };
        if applied < required {
            return Err(NotConsistent::Behind { applied, required });
        }
        self.shared.invalid_pages.declare_consistent()
    }

    /// [`consistency`](Self::consistency) without the reason.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.consistency().is_ok()
    }

    /// Waits until all records given so far are applied, and lies in the files, for
    /// [`relation_map`](Self::relation_map) and [`scan`](Self::scan).
    ///
    /// # Errors
    /// [`ReplayError`] for one of them, or a write.
    pub fn settle_files(&mut self) -> Result<(), ReplayError> {
        self.dispatcher.settle_files()
    }

    /// The catalogs without a place of their own in `pg_class`: their OIDs and file numbers. Nothing
    /// if the database has no map (yet).
    ///
    /// # Errors
    /// [`ReplayError::File`].
    pub fn relation_map(&self, database: DatabaseLocator) -> Result<Vec<(u32, u32)>, ReplayError> {
        self.dispatcher.relation_map(database)
    }

    /// Gives all rows of a heap that are not gone for everybody, as of
    /// [`settle_files`](Self::settle_files). Nothing if it has no file.
    ///
    /// # Errors
    /// [`ReplayError::File`].
    pub fn scan(
        &mut self,
        locator: RelFileLocator,
        each: impl FnMut(StoredRow<'_>),
    ) -> Result<(), ReplayError> {
        self.dispatcher.scan(locator, each)
    }

    /// Adds entries to the rows, behind those of the records given so far.
    pub fn put_rows(&mut self, entries: &[u8]) {
        self.dispatcher.put_rows(entries);
    }

    /// The directories of all databases, in whatever tablespace.
    ///
    /// # Errors
    /// [`ReplayError::File`].
    pub fn databases(&self) -> Result<Vec<DatabaseLocator>, ReplayError> {
        self.dispatcher.databases()
    }

    /// The transactions that have not ended as of the last record; after a crash of the leader some
    /// among them that never will.
    ///
    /// # Errors
    /// [`ReplayError::File`].
    pub fn unfinished(&mut self) -> Result<Vec<TransactionId>, ReplayError> {
        self.dispatcher.unfinished()
    }

    /// Those among them that are prepared, with their subtransactions: the end of a server is not theirs.
    #[must_use]
    pub fn prepared(&self) -> Vec<TransactionId> {
        self.dispatcher.prepared()
    }

    /// Makes the last checkpoint of the leader a restart point and waits until it is durable. Gives
    /// the redo pointer then in force: the old one if there was no newer checkpoint, or pages are
    /// missing.
    ///
    /// # Errors
    /// [`ReplayError`] if replay or a write failed.
    pub fn restart_point(&mut self) -> Result<Lsn, ReplayError> {
        self.dispatcher.restart_point(None)
    }

    /// Brings the directory into a state from which a stock server can go on, durably, and lets it
    /// go. The server still needs a `restore_command`. Refused, it leaves the store as it was.
    ///
    /// Replay that stopped at a record it refused can be finished so: the server goes on from
    /// there, or stops at the same record.
    ///
    /// # Errors
    /// [`PromotionError`] if the store is not consistent or replay failed, or the server would take
    /// a path of the leader's for its own.
    pub fn finish_for_promotion(&mut self) -> Result<PromotionState, PromotionError> {
        self.dispatcher.settle()?;
        self.consistency()?;
        self.dispatcher.check_created_tablespaces()?;
        // No other store brings these rows again.
        self.dispatcher.wait_all_rows()?;
        self.dispatcher.finish()?;
        let state = {
            let control = self.dispatcher.control();
            PromotionState {
                redo: control.check_point_copy.redo,
                check_point: control.check_point,
                applied: self.dispatcher.dispatched(),
                timeline: self.dispatcher.timeline(),
            }
        };
        if let Some(lock) = self.lock.take() {
            lock.release_and_forget()?;
        }
        Ok(state)
    }

    /// Stops cleanly: everything applied is durable, and so is how far that is.
    ///
    /// # Errors
    /// [`ReplayError`] if that could not be done; the stop is an unclean one then.
    pub fn close(mut self) -> Result<(), ReplayError> {
        let Some(lock) = self.lock.take() else {
            return Ok(());
        };
        let at = self.applied();
        let finished = self.dispatcher.settle().and_then(|()| self.dispatcher.finish());
        let released = if finished.is_ok() && self.pages_are_bounded {
            lock.release()
        } else {
            lock.release_unclean()
        };
        finished?;
        released.map_err(|source| ReplayError::File { at, source })
    }

    /// Notices early that the store is consistent: from then on a missing page is an error.
    fn look_for_consistency(&mut self) {
        if self.shared.invalid_pages.is_consistent() {
            return;
        }
        let applied = self.applied();
        if applied != self.looked_at {
            self.looked_at = applied;
            // Why it is not is for those who ask.
            let _ = self.consistency();
        }
    }

    fn open_locked(
        config: &StoreConfig,
        layout: &Layout,
        after_unclean_stop: bool,
        broken_rule: Option<BrokenRule>,
    ) -> Result<Self, OpenError> {
        let control = ControlFile::from_bytes(&control::read(layout)?)?;
        let layout = &layout.clone().of_version(control.version);
        check_directory(layout, &control)?;
        let tablespaces = tablespaces::check(layout)?;
        control::remove_leftovers(layout)?;
        remove_stale_files(layout)?;
        keep_servers_out(layout)?;

        let checkpoint = control.check_point_copy;
        let identity = StoreIdentity {
            system_identifier: control.system_identifier,
            timeline: checkpoint.this_timeline,
            segment_size: control.segment_size,
            version: control.version,
        };
        let context = RedoContext {
            version: control.version,
            hint_bits_are_logged: control.hint_bits_are_logged(),
        };
        let transactions = Transactions::open(layout, &control)?;
        let count = config.workers.max(1);
        let shared = Arc::new(Shared::new(control.version, count, checkpoint.redo));
        if let Some(rows) = &config.rows {
            rows.begin(count + 1, Arc::clone(&shared.applied)); // workers, dispatcher
        }
        let relations = Relations::new(layout.clone());
        let workers = Workers::start(&WorkersConfig {
            count,
            cache_pages: usize::try_from(config.cache_bytes / BLOCK_SIZE as u64)
                .unwrap_or(usize::MAX),
            checksums: control.data_checksum_version != 0,
            layout,
            names: relations.names(),
            shared: &shared,
            context,
            verify_images: config.verify_images,
            broken_rule,
            rows: config.rows.as_ref(),
        })
        .map_err(OpenError::Thread)?;
        let file_systems = FileSystems::open(layout)?;
        for directory in tablespaces {
            file_systems.add(layout, &directory)?;
        }
        let control = Arc::new(Mutex::new(control));
        let restart_points = RestartPoints::start(
            layout,
            file_systems,
            &control,
            &shared,
            checkpoint.redo,
            config.rows.clone(),
        )
        .map_err(OpenError::Thread)?;
        let dispatcher = Dispatcher::new(DispatcherParts {
            layout: layout.clone(),
            shared: Arc::clone(&shared),
            control,
            workers,
            restart_points,
            relations,
            transactions,
            context,
            checkpoint,
            restart_point_interval: config.restart_point_interval,
            rows: config.rows.clone(),
        });
        Ok(Self {
            lock: None,
            dispatcher,
            shared,
            identity,
            replay_from: checkpoint.redo,
            pages_are_bounded: !after_unclean_stop,
            looked_at: Lsn::INVALID,
        })
    }
}

/// A promoted store is its server's: nothing of ours has any business there.
fn check_state(control: &ControlFile) -> Result<(), OpenError> {
    if control.state == ClusterState::IN_ARCHIVE_RECOVERY {
        Ok(())
    } else {
        Err(OpenError::State { found: control.state })
    }
}

/// Whether it is a store, or could be one if its leader had other settings.
pub(crate) fn check_directory(layout: &Layout, control: &ControlFile) -> Result<(), OpenError> {
    let path = layout.at("PG_VERSION");
    let found = layout.read(&path)?.unwrap_or_default();
    let found = String::from_utf8_lossy(&found).into_owned();
    if found.trim() != control.version.major.to_string() {
        return Err(OpenError::Major { expected: control.version.major, found });
    }
    check_state(control)?;
    let path = layout.at("backup_label");
    if layout.metadata(&path)?.is_some() {
        return Err(OpenError::BackupLabel { path });
    }
    match refusal(control) {
        Some(refusal) => Err(OpenError::Refused(refusal)),
        None => Ok(()),
    }
}

/// With `recovery.signal` there and no way to get WAL, a server that is started while no agent runs
/// refuses, and never writes on the leader's timeline.
fn keep_servers_out(layout: &Layout) -> Result<(), FileError> {
    let path = layout.at("recovery.signal");
    layout.open_or_create(&path)?.sync()
}
