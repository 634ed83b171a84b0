//! What a leader did, recorded: a base backup made a store, and the WAL after it. It can be replayed
//! again and again, in this process and with any disk behind the store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use walferry_store::Store;
use walfmt::backup_label::BackupLabel;
use walfmt::control::{ClusterState, ControlFile};
use walfmt::rmgr::xlog::{Change, CheckPoint};
use walfmt::version::Version;
use walfmt::{Lsn, RawRecord, Record, RecordStream, Step, StreamStart};

use crate::command::output_of;
use crate::postgres::{BackupWal, Cluster, ClusterOptions, StopMode};
use crate::scratch::Scratch;
use crate::segments::Segments;

/// Bytes of WAL read at a time.
const PIECE_LENGTH: usize = 256 << 10;

/// A base backup and the WAL after it, up to the leader's shutdown checkpoint.
#[derive(Debug)]
pub struct Recording {
    backup: PathBuf,
    store: PathBuf,
    wal: Segments,
    /// Where the backup's WAL begins.
    pub redo: Lsn,
    /// Where the shutdown checkpoint's record begins.
    pub last_checkpoint: Lsn,
    /// The leader has checksums on data pages.
    pub data_checksums: bool,
    version: &'static Version,
}

impl Recording {
    /// Runs a leader: `prepare`, the base backup, `work`, a shutdown. Its WAL stays where it was
    /// written, in `scratch`.
    ///
    /// # Errors
    /// A server or one of the two scripts fails; or the backup cannot be made a store.
    pub fn make(
        scratch: &Scratch,
        name: &str,
        options: &ClusterOptions,
        prepare: impl FnOnce(&Cluster) -> Result<()>,
        work: impl FnOnce(&Cluster) -> Result<()>,
    ) -> Result<Self> {
        let mut leader = Cluster::start_new(scratch, &format!("{name}-leader"), options)?;
        prepare(&leader)?;
        let backup = scratch.path().join(format!("{name}-backup"));
        leader.base_backup(&backup, BackupWal::None)?;
        work(&leader)?;
        leader.stop(StopMode::Fast)?;

        let control = fs::read(leader.data_directory().join("global/pg_control"))?;
        let control = ControlFile::from_bytes(&control)?;
        ensure!(control.state == ClusterState::SHUTDOWNED, "the leader was not shut down");
        let label = fs::read_to_string(backup.join("backup_label")).context("no base backup")?;
        let label = BackupLabel::parse(&label)?;
        let recording = Self {
            wal: Segments::find(&leader.wal_directory(), label.timeline, control.segment_size)?,
            store: scratch.path().join(format!("{name}-store")),
            backup,
            redo: label.redo,
            last_checkpoint: control.check_point,
            data_checksums: control.data_checksum_version != 0,
            version: control.version,
        };
        let checkpoint = recording.checkpoint_at(label.check_point)?;
        recording.copy(&recording.backup, &recording.store)?;
        // It says what the backup is, which the store soon is not any more.
        fs::remove_file(recording.store.join("backup_manifest")).context("no manifest")?;
        Store::prepare(&recording.store, &checkpoint, label.check_point, &label)?;
        Ok(recording)
    }

    /// The base backup as it came.
    #[must_use]
    pub fn backup(&self) -> &Path {
        &self.backup
    }

    /// Where the leader's WAL is.
    #[must_use]
    pub fn wal(&self) -> &Segments {
        &self.wal
    }

    /// How much WAL there is, in bytes.
    #[must_use]
    pub fn wal_bytes(&self) -> u64 {
        self.last_checkpoint.bytes_since(self.redo)
    }

    /// A new store, of the base backup.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn new_store(&self, directory: &Path) -> Result<()> {
        self.copy(&self.store, directory)
    }

    /// Gives the records from `start` on to `take`, until it answers false or the shutdown
    /// checkpoint was taken.
    ///
    /// # Errors
    /// A segment cannot be read or has no whole records; or `take`'s own.
    pub fn replay(
        &self,
        start: Lsn,
        mut take: impl FnMut(&RawRecord<'_>) -> Result<bool>,
    ) -> Result<()> {
        let size = self.wal.size();
        let first = size.start_of(size.segment_of(start));
        let mut stream = RecordStream::new(StreamStart {
            lsn: first,
            segment_size: size,
            system_identifier: None,
        });
        let mut is_done = false;
        self.wal.read(first, self.wal.end(), PIECE_LENGTH, |piece| {
            stream.push(piece);
            loop {
                match stream.poll() {
                    Step::Record(raw) if raw.start < start => {}
                    Step::Record(raw) => {
                        is_done = raw.start >= self.last_checkpoint;
                        if !take(&raw)? || is_done {
                            is_done = true;
                            return Ok(false);
                        }
                    }
                    Step::NeedMore => return Ok(true),
                    Step::Stop(stop) => bail!("{stop}"),
                }
            }
        })?;
        ensure!(is_done, "the WAL ends before {}", self.last_checkpoint);
        Ok(())
    }

    fn checkpoint_at(&self, lsn: Lsn) -> Result<CheckPoint> {
        let mut found = None;
        self.replay(lsn, |raw| {
            let record = Record::decode(raw, self.version)?;
            found = match Change::read(&record)? {
                Change::CheckpointOnline(contents) | Change::CheckpointShutdown(contents) => {
                    Some(contents)
                }
                _ => None,
            };
            Ok(false)
        })?;
        found.with_context(|| format!("no checkpoint at {lsn}"))
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<()> {
        let mut command = Command::new("cp");
        output_of(command.args(["-a", "--reflink=auto", "--"]).arg(from).arg(to)).map(drop)
    }
}
