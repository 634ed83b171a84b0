//! `backup_label`: where replay of a base backup begins.
//!
//! ```text
//! START WAL LOCATION: 0/2000028 (file 000000010000000000000002)     redo pointer
//! CHECKPOINT LOCATION: 0/2000060                                    the checkpoint's record
//! BACKUP METHOD: streamed
//! BACKUP FROM: primary
//! START TIME: 2026-11-20 12:00:00 UTC
//! LABEL: pg_basebackup base backup
//! START TIMELINE: 1
//! ```
//!
//! Rules: `read_backup_label` in `src/backend/access/transam/xlogrecovery.c`.

use crate::lsn::{Lsn, Timeline};
use crate::segment::SegmentName;

/// What a backup label says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupLabel {
    /// Where replay begins: the redo pointer of the backup's checkpoint.
    pub redo: Lsn,
    /// Where that checkpoint's record begins.
    pub check_point: Lsn,
    /// The timeline the backup was taken on.
    pub timeline: Timeline,
    /// The backup was taken by the replication protocol or `pg_backup_start`, so a `BACKUP_END`
    /// record ends it.
    pub streamed: bool,
    /// The backup was taken from a standby.
    pub from_standby: bool,
}

/// A backup label that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum BackupLabelError {
    #[error("backup_label has no valid line {0:?}")]
    Missing(&'static str),
    #[error("backup_label is of an incremental backup; combine it with pg_combinebackup first")]
    Incremental,
    #[error("backup_label names timeline {label} and a WAL file of timeline {file}")]
    Timeline { label: Timeline, file: Timeline },
}

impl BackupLabel {
    /// Reads the file's contents.
    ///
    /// # Errors
    /// [`BackupLabelError`] if a line that replay depends on is missing or cannot be right.
    pub fn parse(text: &str) -> Result<Self, BackupLabelError> {
        let value = |key: &'static str| {
            text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(": "))
        };
        if value("INCREMENTAL FROM LSN").is_some() {
            return Err(BackupLabelError::Incremental);
        }
        let start = "START WAL LOCATION";
        let (redo, file) = value(start)
            .and_then(|value| value.split_once(" (file "))
            .and_then(|(lsn, file)| {
                let file: SegmentName = file.strip_suffix(')')?.parse().ok()?;
                Some((lsn.parse().ok()?, file))
            })
            .ok_or(BackupLabelError::Missing(start))?;
        let location = "CHECKPOINT LOCATION";
        let check_point = value(location)
            .and_then(|lsn| lsn.parse().ok())
            .ok_or(BackupLabelError::Missing(location))?;
        if let Some(label) = value("START TIMELINE") {
            let label = label
                .parse()
                .map(Timeline)
                .map_err(|_| BackupLabelError::Missing("START TIMELINE"))?;
            if label != file.timeline {
                return Err(BackupLabelError::Timeline { label, file: file.timeline });
            }
        }
        Ok(Self {
            redo,
            check_point,
            timeline: file.timeline,
            streamed: value("BACKUP METHOD") == Some("streamed"),
            from_standby: value("BACKUP FROM") == Some("standby"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABEL: &str = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\n\
        CHECKPOINT LOCATION: 0/2000060\nBACKUP METHOD: streamed\nBACKUP FROM: primary\n\
        START TIME: 2026-11-20 12:00:00 UTC\nLABEL: base backup\nSTART TIMELINE: 1\n";

    #[test]
    fn parses_what_a_server_writes() {
        let expected = BackupLabel {
            redo: Lsn(0x200_0028),
            check_point: Lsn(0x200_0060),
            timeline: Timeline(1),
            streamed: true,
            from_standby: false,
        };
        assert_eq!(BackupLabel::parse(LABEL), Ok(expected));
    }

    #[test]
    fn refuses_what_replay_could_not_start_from() {
        let other_timeline = LABEL.replace("TIMELINE: 1", "TIMELINE: 2");
        assert!(matches!(
            BackupLabel::parse(&other_timeline),
            Err(BackupLabelError::Timeline { .. })
        ));
        let incremental = format!("{LABEL}INCREMENTAL FROM LSN: 0/1000028\n");
        assert_eq!(BackupLabel::parse(&incremental), Err(BackupLabelError::Incremental));
        for line in ["START WAL", "CHECKPOINT"] {
            let text = LABEL.replace(line, "x");
            assert!(matches!(BackupLabel::parse(&text), Err(BackupLabelError::Missing(_))));
        }
    }
}
