//! XLOG.
//!
//! Rules: `src/backend/access/rmgrdesc/xlogdesc.c`.

use super::{Out, TextError};
use crate::cursor::Cursor;
use crate::lsn::{Lsn, Timeline};
use crate::record::Record;
use crate::rmgr::xlog::{self, CheckPoint, ParameterChange};
use crate::version::Version;

pub(super) fn identify(info: u8, version: &Version) -> Option<&'static str> {
    match info {
        xlog::CHECKPOINT_SHUTDOWN => Some("CHECKPOINT_SHUTDOWN"),
        xlog::CHECKPOINT_ONLINE => Some("CHECKPOINT_ONLINE"),
        xlog::NOOP => Some("NOOP"),
        xlog::NEXTOID => Some("NEXTOID"),
        xlog::SWITCH => Some("SWITCH"),
        xlog::BACKUP_END => Some("BACKUP_END"),
        xlog::PARAMETER_CHANGE => Some("PARAMETER_CHANGE"),
        xlog::RESTORE_POINT => Some("RESTORE_POINT"),
        xlog::FPW_CHANGE => Some("FPW_CHANGE"),
        xlog::END_OF_RECOVERY => Some("END_OF_RECOVERY"),
        xlog::OVERWRITE_CONTRECORD => Some("OVERWRITE_CONTRECORD"),
        xlog::FPI => Some("FPI"),
        xlog::FPI_FOR_HINT => Some("FPI_FOR_HINT"),
        xlog::CHECKPOINT_REDO if version.checkpoints_say_wal_level => Some("CHECKPOINT_REDO"),
        _ => None,
    }
}

pub(super) fn describe(
    record: &Record<'_>,
    version: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    let main = record.main_data;
    let mut cursor = Cursor::new(main);
    match record.header.opcode() {
        kind @ (xlog::CHECKPOINT_SHUTDOWN | xlog::CHECKPOINT_ONLINE) => {
            let checkpoint = CheckPoint::from_bytes(cursor.array("CheckPoint")?);
            write_checkpoint(&checkpoint, xlog::checkpoint_wal_level(main, version)?, out);
            let shutdown = kind == xlog::CHECKPOINT_SHUTDOWN;
            out.text(if shutdown { "shutdown" } else { "online" });
        }
        xlog::NEXTOID => {
            out.uint(cursor.u32("nextOid")?);
        }
        xlog::BACKUP_END => {
            out.lsn(Lsn(cursor.u64("startpoint")?));
        }
        xlog::PARAMETER_CHANGE => {
            write_parameters(&ParameterChange::<i32>::read_written(main)?, out);
        }
        xlog::RESTORE_POINT => {
            let (_, name) = xlog::read_restore_point(main)?;
            out.raw(name);
        }
        xlog::FPW_CHANGE => {
            out.boolean(cursor.u8("fullPageWrites")? != 0);
        }
        xlog::END_OF_RECOVERY => {
            let time = cursor.i64("end_time")?;
            out.text("tli ").timeline(Timeline(cursor.u32("ThisTimeLineID")?));
            out.text("; prev tli ").timeline(Timeline(cursor.u32("PrevTimeLineID")?));
            out.text("; time ").time(time);
            if let Some(level) = xlog::end_of_recovery_wal_level(main, version)? {
                out.text("; wal_level ").text(wal_level(level));
            }
        }
        xlog::OVERWRITE_CONTRECORD => {
            out.text("lsn ").lsn(Lsn(cursor.u64("overwritten_lsn")?));
            out.text("; time ").time(cursor.i64("overwrite_time")?);
        }
        xlog::CHECKPOINT_REDO if version.checkpoints_say_wal_level => {
            out.text("wal_level ").text(wal_level(xlog::read_checkpoint_redo(main)?));
        }
        _ => (),
    }
    Ok(())
}

/// All but how it came about.
fn write_checkpoint(checkpoint: &CheckPoint, level: Option<i32>, out: &mut Out<'_>) {
    out.text("redo ").lsn(checkpoint.redo).text("; tli ").timeline(checkpoint.this_timeline);
    out.text("; prev tli ").timeline(checkpoint.prev_timeline);
    out.text("; fpw ").boolean(checkpoint.full_page_writes);
    if let Some(level) = level {
        out.text("; wal_level ").text(wal_level(level));
    }
    let (epoch, xid) = (checkpoint.next_xid >> 32, checkpoint.next_xid & 0xFFFF_FFFF);
    out.text("; xid ").uint(epoch).text(":").uint(xid).text("; oid ").uint(checkpoint.next_oid);
    out.text("; multi ").uint(checkpoint.next_multi);
    out.text("; offset ").uint(checkpoint.next_multi_offset);
    out.text("; oldest xid ").xid(checkpoint.oldest_xid);
    out.text(" in DB ").uint(checkpoint.oldest_xid_db);
    out.text("; oldest multi ").uint(checkpoint.oldest_multi);
    out.text(" in DB ").uint(checkpoint.oldest_multi_db);
    out.text("; oldest/newest commit timestamp xid: ").xid(checkpoint.oldest_commit_ts_xid);
    out.text("/").xid(checkpoint.newest_commit_ts_xid);
    out.text("; oldest running xid ").xid(checkpoint.oldest_active_xid).text("; ");
}

fn write_parameters(parameters: &ParameterChange<i32>, out: &mut Out<'_>) {
    out.text("max_connections=").int(parameters.max_connections);
    out.text(" max_worker_processes=").int(parameters.max_worker_processes);
    out.text(" max_wal_senders=").int(parameters.max_wal_senders);
    out.text(" max_prepared_xacts=").int(parameters.max_prepared_xacts);
    out.text(" max_locks_per_xact=").int(parameters.max_locks_per_xact);
    out.text(" wal_level=").text(wal_level(parameters.wal_level));
    out.text(" wal_log_hints=").text(on_or_off(parameters.wal_log_hints));
    out.text(" track_commit_timestamp=").text(on_or_off(parameters.track_commit_timestamp));
}

const fn on_or_off(value: bool) -> &'static str {
    if value { "on" } else { "off" }
}

/// A `wal_level`'s name; a question mark if there is no such level.
const fn wal_level(number: i32) -> &'static str {
    match number {
        0 => "minimal",
        1 => "replica",
        2 => "logical",
        _ => "?",
    }
}
