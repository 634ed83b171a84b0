//! A fresh base backup becomes a store.
//!
//! This is what a server does when it finds a `backup_label`, up to its first record: the control
//! file says from where to replay and until when nothing is consistent. Then the label is renamed,
//! so that a server that takes over later goes by the control file.
//!
//! Rules: `InitWalRecovery` in `src/backend/access/transam/xlogrecovery.c`, `StartupXLOG` in
//! `src/backend/access/transam/xlog.c`.

use std::path::Path;

use walfmt::Lsn;
use walfmt::backup_label::BackupLabel;
use walfmt::control::{ClusterState, ControlFile};
use walfmt::rmgr::xlog::{CheckPoint, WalLevel};

use crate::control;
use crate::error::{PrepareError, Refusal};
use crate::layout::Layout;

/// The cluster's settings that keep it from being replayed, as its control file shows them.
pub(crate) fn refusal(control: &ControlFile) -> Option<Refusal> {
    if !control.check_point_copy.full_page_writes {
        Some(Refusal::FullPageWritesOff)
    } else if control.wal_level == WalLevel::Minimal as i32 {
        Some(Refusal::WalLevelMinimal)
    } else {
        None
    }
}

/// See [`Store::prepare`](crate::Store::prepare).
pub(crate) fn prepare(
    directory: &Path,
    checkpoint: &CheckPoint,
    checkpoint_lsn: Lsn,
    label: &BackupLabel,
) -> Result<(), PrepareError> {
    compare(checkpoint, checkpoint_lsn, label)?;
    let layout = Layout::new(directory)?;
    let mut control = ControlFile::from_bytes(&control::read(&layout)?)?;
    begin_recovery(&mut control, checkpoint, checkpoint_lsn, label)?;
    if let Some(refusal) = refusal(&control) {
        return Err(PrepareError::Refused(refusal));
    }
    control::write(&layout, &mut control)?;

    // From here on a server that is started by accident refuses: in recovery, without a way to get
    // WAL.
    let signal = layout.at("recovery.signal");
    layout.open_or_create(&signal)?.sync()?;
    layout.remove_file(&layout.at("standby.signal"))?;
    let (label, old_label) = (layout.at("backup_label"), layout.at("backup_label.old"));
    if layout.metadata(&label)?.is_some() {
        layout.rename(&label, &old_label)?;
    }
    layout.sync_directory(layout.root())?;
    Ok(())
}

fn begin_recovery(
    control: &mut ControlFile,
    checkpoint: &CheckPoint,
    checkpoint_lsn: Lsn,
    label: &BackupLabel,
) -> Result<(), PrepareError> {
    control.backup_end_point = Lsn::INVALID;
    if label.from_standby {
        let is_standby = [ClusterState::IN_ARCHIVE_RECOVERY, ClusterState::SHUTDOWNED_IN_RECOVERY]
            .contains(&control.state);
        if !is_standby {
            return Err(PrepareError::NotFromStandby { found: control.state });
        }
        // The copy is as of many times, the last of them this one.
        control.backup_end_point = control.min_recovery_point;
    }
    control.state = ClusterState::IN_ARCHIVE_RECOVERY;
    control.check_point = checkpoint_lsn;
    control.check_point_copy = *checkpoint;
    if control.min_recovery_point < checkpoint.redo {
        control.min_recovery_point = checkpoint.redo;
        control.min_recovery_point_timeline = checkpoint.this_timeline;
    }
    control.backup_start_point = checkpoint.redo;
    control.backup_end_required = label.streamed;
    Ok(())
}

fn compare(
    checkpoint: &CheckPoint,
    checkpoint_lsn: Lsn,
    label: &BackupLabel,
) -> Result<(), PrepareError> {
    let check = |field, expected: String, found: String| {
        if expected == found {
            Ok(())
        } else {
            Err(PrepareError::Checkpoint { field, expected, found })
        }
    };
    check("the position", label.check_point.to_string(), checkpoint_lsn.to_string())?;
    check("the redo pointer", label.redo.to_string(), checkpoint.redo.to_string())?;
    check("the timeline", label.timeline.to_string(), checkpoint.this_timeline.to_string())
}
