//! Transaction.
//!
//! Rules: `src/backend/access/rmgrdesc/xactdesc.c`.

use super::{Out, TextError, standby};
use crate::cursor::Cursor;
use crate::lsn::Lsn;
use crate::record::Record;
use crate::relation::{ForkNumber, RelFileLocator, RelFork};
use crate::rmgr::standby::Messages;
use crate::rmgr::xact::{self, Assignment, DroppedStats, End, Prepare, xinfo};
use crate::version::Version;

pub(super) fn identify(info: u8, _: &Version) -> Option<&'static str> {
    match info & xact::OPCODE_MASK {
        xact::COMMIT => Some("COMMIT"),
        xact::PREPARE => Some("PREPARE"),
        xact::ABORT => Some("ABORT"),
        xact::COMMIT_PREPARED => Some("COMMIT_PREPARED"),
        xact::ABORT_PREPARED => Some("ABORT_PREPARED"),
        xact::ASSIGNMENT => Some("ASSIGNMENT"),
        // One, other than its constant's name.
        xact::INVALIDATIONS => Some("INVALIDATION"),
        _ => None,
    }
}

pub(super) fn describe(
    record: &Record<'_>,
    version: &Version,
    out: &mut Out<'_>,
) -> Result<(), TextError> {
    let (main, info) = (record.main_data, record.header.info);
    match info & xact::OPCODE_MASK {
        xact::COMMIT | xact::COMMIT_PREPARED => {
            commit(&End::read_written(main, info, version)?, record.origin, version, out);
        }
        xact::ABORT | xact::ABORT_PREPARED => {
            abort(&End::read_written(main, info, version)?, record.origin, version, out);
        }
        xact::PREPARE => {
            prepare(&Prepare::read_written(main, version)?, record.origin, version, out);
        }
        xact::ASSIGNMENT => {
            let assignment = Assignment::read(main)?;
            out.text("xtop ").xid(assignment.top).text(": subxacts:");
            standby::xids(assignment.subxacts(), out);
        }
        xact::INVALIDATIONS => {
            let messages = Messages::read(&mut Cursor::new(main))?;
            standby::invalidations(messages, None, version, out);
        }
        _ => (),
    }
    Ok(())
}

fn commit(end: &End<'_>, node: u16, version: &Version, out: &mut Out<'_>) {
    let has = |bit: u32| end.xinfo & bit != 0;
    outcome(end, version, out);
    dropped_stats("", end.dropped_stats, version, out);
    let init_file = has(xinfo::UPDATE_RELCACHE_FILE).then_some(end.database.unwrap_or_default());
    standby::invalidations(end.messages, init_file, version, out);
    if has(xinfo::APPLY_FEEDBACK) {
        out.text("; apply_feedback");
    }
    if has(xinfo::FORCE_SYNC_COMMIT) {
        out.text("; sync");
    }
    if let Some(at) = end.origin {
        origin(node, at, out);
    }
}

fn abort(end: &End<'_>, node: u16, version: &Version, out: &mut Out<'_>) {
    outcome(end, version, out);
    // Other than in a commit, before the statistics.
    if let Some(at) = end.origin {
        origin(node, at, out);
    }
    dropped_stats("", end.dropped_stats, version, out);
}

/// What commits and aborts begin with.
fn outcome(end: &End<'_>, version: &Version, out: &mut Out<'_>) {
    if let Some(xid) = end.twophase_xid.filter(|xid| xid.is_valid()) {
        out.xid(xid).text(": ");
    }
    out.time(end.time);
    relations("rels", end.dropped_relations(), version, out);
    subxacts(end.subxacts(), out);
}

fn prepare(prepare: &Prepare<'_>, node: u16, version: &Version, out: &mut Out<'_>) {
    let gid = prepare.gid.split(|byte| *byte == 0).next().unwrap_or_default();
    out.text("gid ").raw(gid).text(": ").time(prepare.prepared_at);
    relations("rels(commit)", prepare.dropped_by_commit(), version, out);
    relations("rels(abort)", prepare.dropped_by_abort(), version, out);
    dropped_stats("commit ", prepare.dropped_stats_of_commit, version, out);
    dropped_stats("abort ", prepare.dropped_stats_of_abort, version, out);
    subxacts(prepare.subxacts(), out);
    // The record does not say the tablespace: always 0.
    let init_file = prepare.init_file.then_some((prepare.database, 0));
    standby::invalidations(prepare.messages, init_file, version, out);
    if node != 0 {
        origin(node, (prepare.origin_lsn, prepare.origin_timestamp), out);
    }
}

fn relations(
    label: &str,
    relations: impl Iterator<Item = RelFileLocator>,
    version: &Version,
    out: &mut Out<'_>,
) {
    for (at, locator) in relations.enumerate() {
        if at == 0 {
            out.text("; ").text(label).text(":");
        }
        out.text(" ").path(RelFork { locator, fork: ForkNumber::Main }, version);
    }
}

fn subxacts(xids: impl ExactSizeIterator<Item = crate::TransactionId>, out: &mut Out<'_>) {
    if xids.len() > 0 {
        out.text("; subxacts:");
        standby::xids(xids, out);
    }
}

fn dropped_stats(label: &str, dropped: DroppedStats<'_>, version: &Version, out: &mut Out<'_>) {
    if dropped.is_empty() {
        return;
    }
    out.text("; ").text(label).text("dropped stats:");
    for item in dropped.iter(version) {
        out.text(" ").int(item.kind).text("/").uint(item.database).text("/").uint(item.object);
    }
}

fn origin(node: u16, (lsn, time): (Lsn, i64), out: &mut Out<'_>) {
    out.text("; origin: node ").uint(node).text(", lsn ").lsn(lsn).text(", at ").time(time);
}
