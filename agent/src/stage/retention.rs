//! Retention: old WAL leaves the archive.
//!
//! ```text
//!  oldest                                                          newest
//!    ├──────── nobody needs it ────────┤── a reader needs it ──┤─ the last two ─┤
//!    soft limits remove from here ...   ... hard limits from here   never removed
//! ```
//!
//! `keep_bytes` and `keep_age` are wishes: what a reader still needs outlives them. Readers are the
//! followers that are connected or were a moment ago, nodes that are being bootstrapped, and the store
//! of this node, which replays from its restart point after a crash. `max_bytes` and `min_free_bytes`
//! are hard: past them the oldest goes, whoever needs it, since a full disk ends more than that. A
//! follower whose WAL is gone is told that it needs a new bootstrap.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use indicatif::HumanBytes;
use rustix::fs::statvfs;
use walferry_archive::{Archive, SegmentFile};
use walfmt::{Lsn, SegmentName, SegmentSize};

use crate::config::ArchiveSection;
use crate::node::Node;
use crate::positions::Position;
use crate::stage::State;
use crate::trouble::Trouble;

const STAGE: &str = "retention";
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// The end of the archive stays: its writer, and whoever checks where it ends, reads it again.
const KEEP_LAST: usize = 2;

/// A follower that comes back shows the last record it has whole, which begins before what it lacks:
/// in the segment before, or, if it is long, earlier. One that is longer than this costs a bootstrap,
/// if the follower was away just then and the limits are that tight.
const RECORD_BYTES: u64 = 4 << 20;

/// Looks from time to time, until the node stops.
pub(crate) fn run(node: &Arc<Node>) {
    let begun = Instant::now();
    node.metrics.set_min_free(node.config.archive.min_free_bytes);
    let mut known = BTreeMap::new();
    let heart = node.hearts.start(STAGE, &[STAGE]);
    while !node.stopping() {
        heart.beat();
        disks(node);
        if let (Some(archive), Some(identity)) = (node.archive(), node.identity()) {
            let round = segments(archive, identity.timeline, &mut known)
                .and_then(|segments| look(node, archive, &segments, begun.elapsed()));
            match round {
                Ok(()) => node.stages.set(STAGE, State::Streaming, ""),
                Err(trouble) => node.stages.fail(STAGE, State::Retrying, &trouble),
            }
        } else {
            node.stages.set(STAGE, State::Waiting, "for the archive");
        }
        node.sleep(LOOK_EVERY);
    }
}

/// Measures the file systems that this node fills.
fn disks(node: &Node) {
    let store = node.config.store.as_ref().map(|store| store.data_directory.as_path());
    for (disk, path) in
        [("archive", Some(node.config.archive.directory.as_path())), ("store", store)]
    {
        // A store that is not there yet has no disk.
        let Some(Ok(Space { size, free })) = path.map(space) else { continue };
        node.metrics.set_disk(disk, size, free);
    }
}

/// A file system, in bytes.
pub(crate) struct Space {
    pub(crate) size: u64,
    /// What this user may still take.
    pub(crate) free: u64,
}

/// The file system that a path is on.
pub(crate) fn space(path: &Path) -> std::io::Result<Space> {
    let found = statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Ok(Space { size: bytes(found.f_blocks), free: bytes(found.f_bavail) })
}

/// A segment's file in the archive.
#[derive(Clone, Copy, Debug)]
struct Kept {
    name: SegmentName,
    /// Where its WAL ends, if it is whole.
    end: Lsn,
    file: SegmentFile,
}

/// The files of a timeline, oldest first. Those that are whole do not change, and are looked at once.
fn segments(
    archive: &Archive,
    timeline: walfmt::Timeline,
    known: &mut BTreeMap<SegmentName, SegmentFile>,
) -> Result<Vec<Kept>, Trouble> {
    let size = archive.segment_size();
    let names = archive.segments(timeline)?;
    known.retain(|name, _| names.binary_search(name).is_ok());
    let growing = names.len().saturating_sub(KEEP_LAST);
    let mut segments = Vec::with_capacity(names.len());
    for (index, name) in names.into_iter().enumerate() {
        let file = match known.get(&name) {
            Some(file) if index < growing => *file,
            _ => archive.segment_file(name)?,
        };
        if index < growing {
            known.insert(name, file);
        }
        let end = size.end_of(name.number(size).unwrap_or_default());
        segments.push(Kept { name, end, file });
    }
    Ok(segments)
}

fn look(
    node: &Node,
    archive: &Archive,
    segments: &[Kept],
    running: Duration,
) -> Result<(), Trouble> {
    let Space { free, .. } =
        space(archive.dir()).map_err(|error| Trouble::io(archive.dir().display(), error))?;
    let total: u64 = segments.iter().map(|kept| kept.file.bytes).sum();
    node.metrics.set_archive(total);
    let now = SystemTime::now();
    let needed = needed_from(node, archive.segment_size(), running);
    let remove = plan(segments, needed, &node.config.archive, free, now);
    for (number, kept) in segments.iter().enumerate().take(remove) {
        archive.remove_segment(kept.name)?;
        if kept.end > needed {
            tracing::warn!(
                segment = %kept.name,
                "removed from the archive although a reader needs it: max_bytes or min_free_bytes is \
                 reached ({} in {} files, {} free)",
                HumanBytes(total),
                segments.len(),
                HumanBytes(free)
            );
        } else if number == 0 {
            tracing::info!(segment = %kept.name, segments = remove, "old WAL removed");
        }
    }
    if remove > 0 {
        node.metrics.count_removed(remove as u64);
    }
    Ok(())
}

/// From where on WAL is needed by anybody.
fn needed_from(node: &Node, size: SegmentSize, running: Duration) -> Lsn {
    let before = size.bytes() + RECORD_BYTES;
    let expected = node.config.archive.expect_followers;
    let by_followers = node.positions.needed_by_followers(expected);
    let mut needed = by_followers.map_or(Lsn(u64::MAX), |lsn| Lsn(lsn.0.saturating_sub(before)));
    if node.config.store.is_some() {
        needed = needed.min(node.positions.get(Position::RestartPoint));
    }
    // After a start it is not known who they are.
    if node.config.listen.replication.is_some() && running < expected {
        needed = Lsn::INVALID;
    }
    needed
}

/// How many go, from the oldest on.
fn plan(
    segments: &[Kept],
    needed: Lsn,
    limits: &ArchiveSection,
    mut free: u64,
    now: SystemTime,
) -> usize {
    let mut total: u64 = segments.iter().map(|kept| kept.file.bytes).sum();
    let mut remove = 0;
    for kept in &segments[..segments.len().saturating_sub(KEEP_LAST)] {
        // A file of tomorrow, after the clock was set, has no age.
        let age = now.duration_since(kept.file.modified).unwrap_or_default();
        let wanted = limits.keep_bytes.is_some_and(|keep| total > keep)
            || limits.keep_age.is_some_and(|keep| age > keep);
        let must = limits.max_bytes.is_some_and(|max| total > max) || free < limits.min_free_bytes;
        if !must && (!wanted || kept.end > needed) {
            break;
        }
        remove += 1;
        total -= kept.file.bytes;
        free = free.saturating_add(kept.file.bytes);
    }
    remove
}

#[cfg(test)]
mod tests {
    use super::*;

    use walfmt::{SegmentNumber, Timeline};

    /// Ten files of 100 bytes; the oldest is 10 hours old, the newest 1 hour.
    fn ten(now: SystemTime) -> Vec<Kept> {
        let size = SegmentSize::DEFAULT;
        (0..10)
            .map(|number| Kept {
                name: SegmentName::new(Timeline(1), SegmentNumber(number), size),
                end: size.end_of(SegmentNumber(number)),
                file: SegmentFile {
                    bytes: 100,
                    modified: now - Duration::from_secs(3600 * (10 - number)),
                },
            })
            .collect()
    }

    #[test]
    fn what_goes() {
        let now = SystemTime::now();
        let segments = ten(now);
        let size = SegmentSize::DEFAULT;
        let (all, nobody) = (Lsn::INVALID, Lsn(u64::MAX));
        let from_third = size.start_of(SegmentNumber(2));
        let in_third = Lsn(from_third.0 + 1);
        let hours = |hours: u64| Some(Duration::from_secs(3600 * hours - 60));
        // keep_bytes, keep_age, max_bytes, min_free of 1000 free; who needs what; how many go
        for (keep, age, max, min_free, needed, remove) in [
            (None, None, None, 0, nobody, 0),
            (Some(650), None, None, 0, nobody, 4),
            (Some(650), None, None, 0, all, 0),
            (Some(650), None, None, 0, from_third, 2),
            (Some(650), None, None, 0, in_third, 2),
            (Some(0), None, None, 0, nobody, 8),
            (None, hours(8), None, 0, nobody, 3),
            (None, hours(8), None, 0, from_third, 2),
            (None, None, Some(650), 0, all, 4),
            (Some(300), None, Some(650), 0, all, 4),
            (Some(300), None, Some(650), 0, from_third, 4),
            (Some(300), None, Some(950), 0, from_third, 2),
            (None, None, None, 1250, all, 3),
            (None, None, None, u64::MAX, all, 8),
            (None, None, None, 1000, nobody, 0),
        ] {
            let limits = ArchiveSection {
                directory: "/".into(),
                compression_level: 1,
                keep_bytes: keep,
                keep_age: age,
                max_bytes: max,
                min_free_bytes: min_free,
                expect_followers: Duration::ZERO,
            };
            let planned = plan(&segments, needed, &limits, 1000, now);
            assert_eq!(planned, remove, "{limits:?}, needed from {needed}");
        }
        let limits = ArchiveSection {
            directory: "/".into(),
            compression_level: 1,
            keep_bytes: Some(0),
            keep_age: hours(1),
            max_bytes: Some(0),
            min_free_bytes: u64::MAX,
            expect_followers: Duration::ZERO,
        };
        for few in 0..=2 {
            assert_eq!(plan(&segments[..few], nobody, &limits, 0, now), 0);
        }
    }
}
