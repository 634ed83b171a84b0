//! Standby.
//!
//! Rules: `src/backend/access/rmgrdesc/standbydesc.c`.

use super::{Out, TextError};
use crate::lsn::TransactionId;
use crate::record::Record;
use crate::rmgr::standby::{self, Invalidations, Locks, Message, Messages, RunningXacts};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    match info {
        standby::LOCK => Some("LOCK"),
        standby::RUNNING_XACTS => Some("RUNNING_XACTS"),
        standby::INVALIDATIONS => Some("INVALIDATIONS"),
        _ => None,
    }
}

pub(super) fn describe(
    record: &Record<'_>,
    version: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    let main = record.main_data;
    match record.header.opcode() {
        standby::LOCK => {
            // A space after each, the last too.
            for lock in Locks::read(main)?.iter() {
                out.text("xid ").xid(lock.xid).text(" db ").uint(lock.database);
                out.text(" rel ").uint(lock.relation).text(" ");
            }
        }
        standby::RUNNING_XACTS => running_xacts(&RunningXacts::read(main)?, version, out),
        standby::INVALIDATIONS => {
            let all = Invalidations::read(main)?;
            let init_file = all.init_file.then_some((all.database, all.tablespace));
            invalidations(all.messages, init_file, version, out);
        }
        _ => (),
    }
    Ok(())
}

fn running_xacts(running: &RunningXacts<'_>, version: &Version, out: &mut Out<'_>) {
    out.text("nextXid ").xid(running.next_xid);
    out.text(" latestCompletedXid ").xid(running.latest_completed_xid);
    out.text(" oldestRunningXid ").xid(running.oldest_running_xid);
    let (top, all) = (running.toplevel_count, running.xids().len());
    if top > 0 {
        out.text("; ").uint(top as u64).text(" xacts:");
        xids(running.xids().take(top), out);
    }
    if running.subxid_overflow {
        let listed = version.text.lists_running_subxacts;
        out.text(if listed { "; subxid overflowed" } else { "; subxid ovf" });
    }
    if version.text.lists_running_subxacts && all > top {
        out.text("; ").uint((all - top) as u64).text(" subxacts:");
        xids(running.xids().skip(top), out);
    }
}

/// Each with a space before it.
pub(super) fn xids(xids: impl Iterator<Item = TransactionId>, out: &mut Out<'_>) {
    for xid in xids {
        out.text(" ").xid(xid);
    }
}

/// `standby_desc_invalidations`: nothing if there are no messages. `init_file` is the database and its
/// default tablespace if the relation cache's file is out of date. It begins with a separator even
/// where nothing is before it.
pub(super) fn invalidations(
    messages: Messages<'_>,
    init_file: Option<(u32, u32)>,
    version: &Version,
    out: &mut Out<'_>,
) {
    if messages.is_empty() {
        return;
    }
    if let Some((database, tablespace)) = init_file {
        out.text("; relcache init file inval dbid ").uint(database);
        out.text(" tsid ").uint(tablespace);
    }
    out.text("; inval msgs:");
    for message in messages.iter(version) {
        match message {
            Message::CatCache(cache) => out.text(" catcache ").int(cache),
            Message::Catalog(catalog) => out.text(" catalog ").uint(catalog),
            Message::RelCache(relation) => out.text(" relcache ").uint(relation),
            Message::Smgr => out.text(" smgr"),
            Message::RelMap(database) => out.text(" relmap db ").uint(database),
            Message::Snapshot(catalog) => out.text(" snapshot ").uint(catalog),
            Message::RelSync(relation) => out.text(" relsync ").uint(relation),
            Message::Unknown(id) => out.text(" unrecognized id ").int(id),
        };
    }
}
