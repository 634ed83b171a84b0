//! A real standby: what PostgreSQL's own recovery makes of a base backup and the WAL after it.
//!
//! It recovers without queries (`hot_standby = off`): a reader would set hint bits, which are not
//! in the WAL. It stops by itself behind the leader's shutdown checkpoint, and that checkpoint
//! becomes its last restart point. Without one it would leave most of its pages in memory: a clean
//! stop of a standby writes nothing unless it has replayed a checkpoint since the last restart point
//! (`CreateRestartPoint` in `src/backend/access/transam/xlog.c`).
//!
//! With checksums (or `wal_log_hints`) a server in recovery may change a page of a free space map in
//! memory and not write it: 15.20 does so again, 15.18 did not (`XLogRecordPageWithFreeSpace` in
//! `src/backend/storage/freespace/freespace.c` calls `MarkBufferDirtyHint`, which does nothing
//! then). What such a standby has on disk depends on when it wrote. So there is a second one, whose
//! control file says that there are no checksums: its free space maps are complete.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use walfmt::Lsn;
use walfmt::backup_label::BackupLabel;
use walfmt::control::{ClusterState, ControlFile};

use crate::binaries::Binaries;
use crate::command::output_of;
use crate::ports::free_port;
use crate::process::{tail_of, wait_for_exit};
use crate::scratch::Scratch;

/// How long recovery may take.
const PATIENCE: Duration = Duration::from_secs(1800);

/// A data directory that a server recovered and let go of.
#[derive(Debug)]
pub struct Standby {
    directory: PathBuf,
    redo: Lsn,
}

impl Standby {
    /// Recovers a copy of `backup` from the segments in the directory `wal`, up to the end of the
    /// shutdown checkpoint that begins at `last_checkpoint`. Its settings are those of the backup.
    ///
    /// # Errors
    /// The server fails, or its last restart point is not that checkpoint.
    pub fn recover(
        scratch: &Scratch,
        name: &str,
        backup: &Path,
        wal: &Path,
        last_checkpoint: Lsn,
    ) -> Result<Self> {
        let directory = copy(scratch, name, backup)?;
        Self::recover_copy(scratch, name, directory, wal, last_checkpoint)
    }

    /// The same as if the cluster had no checksums. Pages of the backup keep theirs, which nobody
    /// looks at, and changes to hints need no LSN.
    ///
    /// # Errors
    /// As [`Standby::recover`].
    pub fn recover_without_checksums(
        scratch: &Scratch,
        name: &str,
        backup: &Path,
        wal: &Path,
        last_checkpoint: Lsn,
    ) -> Result<Self> {
        let directory = copy(scratch, name, backup)?;
        let mut control = control_file(&directory)?;
        control.data_checksum_version = 0;
        control.wal_log_hints = false;
        fs::write(directory.join(CONTROL_FILE), control.to_bytes())
            .context("cannot write a control file")?;
        Self::recover_copy(scratch, name, directory, wal, last_checkpoint)
    }

    fn recover_copy(
        scratch: &Scratch,
        name: &str,
        directory: PathBuf,
        wal: &Path,
        last_checkpoint: Lsn,
    ) -> Result<Self> {
        let label = fs::read_to_string(directory.join("backup_label")).context("no base backup")?;
        let redo = BackupLabel::parse(&label)?.redo;
        // It would compare as a file that the store lacks; it is the backup's, and not replayed.
        fs::remove_file(directory.join("backup_manifest")).context("no manifest")?;
        scratch.file(&format!("{name}/recovery.signal"), "")?;

        let log = scratch.path().join(format!("{name}.log"));
        let output = fs::File::create(&log).context("cannot write the standby's log")?;
        let binaries = Binaries::find()?;
        let mut server = scratch.account().command(binaries.program("postgres"));
        server.arg("-D").arg(&directory).arg("-k").arg(scratch.directory("sockets")?);
        server.arg("-p").arg(free_port()?.to_string());
        // Settings on the command line: `postgresql.conf` stays the backup's, and is compared.
        for setting in [
            "hot_standby=off".to_owned(),
            format!("restore_command=cp {}/%f %p", wal.display()),
            format!("recovery_target_lsn={last_checkpoint}"),
            "recovery_target_inclusive=on".to_owned(),
            "recovery_target_action=shutdown".to_owned(),
            "archive_mode=off".to_owned(),
            "fsync=off".to_owned(),
            "listen_addresses=".to_owned(),
            "logging_collector=off".to_owned(),
        ] {
            server.arg("-c").arg(setting);
        }
        let mut child = server
            .stdin(Stdio::null())
            .stdout(output.try_clone().context("cannot share the standby's log")?)
            .stderr(output)
            .spawn()
            .context("cannot start postgres")?;
        let waited = wait_for_exit(&mut child, PATIENCE);
        if waited.is_err() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let status = waited.context("a standby recovers")?;
        ensure!(status.success(), "the standby ended with {status}\n{}", tail_of(&log, 30));

        let standby = Self { directory, redo };
        let control = standby.control_file()?;
        ensure!(
            control.state == ClusterState::SHUTDOWNED_IN_RECOVERY
                && control.check_point == last_checkpoint,
            "the standby's restart point is {}, the leader's shutdown checkpoint {last_checkpoint}\n{}",
            control.check_point,
            tail_of(&log, 30)
        );
        Ok(standby)
    }

    /// Its data directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Where the backup's WAL begins to be replayed: an unchanged page is not newer.
    #[must_use]
    pub fn redo(&self) -> Lsn {
        self.redo
    }

    /// Its control file.
    ///
    /// # Errors
    /// As [`control_file`].
    pub fn control_file(&self) -> Result<ControlFile> {
        control_file(&self.directory)
    }
}

const CONTROL_FILE: &str = "global/pg_control";

/// Copies a base backup to the directory `name` of the scratch folder.
fn copy(scratch: &Scratch, name: &str, backup: &Path) -> Result<PathBuf> {
    let directory = scratch.path().join(name);
    let mut copy = scratch.account().command("cp");
    output_of(copy.args(["-a", "--"]).arg(backup).arg(&directory))?;
    Ok(directory)
}

/// The control file of a data directory.
///
/// # Errors
/// It cannot be read.
pub fn control_file(directory: &Path) -> Result<ControlFile> {
    let path = directory.join(CONTROL_FILE);
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    ControlFile::from_bytes(&bytes).with_context(|| path.display().to_string())
}
