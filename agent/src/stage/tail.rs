//! Tail: from the server's `pg_wal` into the archive, as it is written.
//!
//! **What may be shipped.** A reader of `pg_wal` sees bytes that the server has written but not
//! flushed. Shipped too early, a power cut leaves the follower ahead of its leader. So nothing
//! passes [`WalTail`] unless it is part of an unbroken chain of whole, checked records, *and* our
//! own `fdatasync` of its segments, issued after it was read, has returned. That is one bound and
//! one code path, and it needs no word of the server's. A read-only descriptor of another user is
//! enough for `fdatasync` to write back the file's dirty pages.
//!
//! **What is not there yet, and what is broken.** At the tip a record that does not check out is
//! simply not finished. It is corrupt only if it fails again when read anew after later WAL has
//! been seen: a flush position of the server's, or a later segment, beyond all that was read.
//!
//! The archive on a source node is not synced with every record: what is in it is durable in
//! `pg_wal`, and the tail is made again after a crash. It is synced when a segment is finished, and
//! when no more WAL comes.

mod gap;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use notify::Watcher;
use walferry_archive::{Archive, ArchiveError, ArchiveWriter, File, FileError, Files};
use walfmt::control::{ClusterState, ControlError, ControlFile};
use walfmt::wal_page::{LONG_HEADER_SIZE, WalPageHeader};
use walfmt::{
    Lsn, RecordStream, SegmentName, SegmentNumber, SegmentSize, Step, Stop, StopKind, Timeline,
};

use self::gap::GapFiller;
use crate::identity::Identity;
use crate::node::Node;
use crate::positions::Position;
use crate::stage::State;
use crate::stage::heart::Heart;
use crate::trouble::{Kind, Trouble};

pub(super) const STAGE: &str = "tail";

/// The first read beyond the bound; each further one of a round is twice as long.
const READ_BYTES_MIN: usize = 16 << 10;
const READ_BYTES_MAX: usize = 1 << 20;
/// A round ends once it has this much, if it holds a whole record.
const ROUND_BYTES_MAX: usize = 4 << 20;
/// How often a server that is not in production is looked at again.
const NOT_IN_PRODUCTION_PAUSE: Duration = Duration::from_secs(1);
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How often it is tried to fill a gap. Somebody may mend what its command needs.
const GAP_PAUSE: Duration = Duration::from_secs(10);
const CONTROL_FILE_TRIES: usize = 20;
/// How often the server is asked, through `pg_control`, whether it is still the same.
const IDENTITY_CHECK_PAUSE: Duration = Duration::from_secs(1);
/// The archive is synced when no WAL has come for this long.
const IDLE_SYNC_PAUSE: Duration = Duration::from_millis(500);

/// Tails until the node stops, or until something is wrong that time does not mend.
pub(crate) fn run(node: &Arc<Node>, data_directory: &Path) {
    let heart = node.hearts.start(STAGE, &[STAGE]);
    while !node.stopping() {
        heart.beat();
        let Err(trouble) = follow(node, data_directory, &heart) else { continue };
        if trouble.kind() == Kind::NotThere {
            // Nothing is skipped: until it is filled, the archive ends here.
            node.stages.fail(STAGE, State::Gap, &trouble);
            heart.rest();
            node.sleep(GAP_PAUSE);
            continue;
        }
        if trouble.kind() != Kind::Io {
            node.stages.fail(STAGE, State::Stopped, &trouble);
            return;
        }
        node.stages.fail(STAGE, State::Retrying, &trouble);
        node.sleep(RETRY_PAUSE);
    }
}

/// Reads `pg_control`, opens the archive, finds where they meet, and follows from there.
fn follow(node: &Arc<Node>, data_directory: &Path, heart: &Heart) -> Result<(), Trouble> {
    if !node.stages.is_in(STAGE, State::Gap) {
        node.stages.set(STAGE, State::Starting, "");
    }
    let Some(control) = wait_for_production(node, data_directory, heart)? else { return Ok(()) };
    check_timeline(&control)?;
    let identity = Identity {
        system_identifier: control.system_identifier,
        timeline: current_timeline(&control),
        segment_size: control.segment_size,
        version: control.version,
    };
    let archive = node.open_archive(identity)?;
    let size = identity.segment_size;
    let redo_segment = size.start_of(size.segment_of(control.check_point_copy.redo));
    let mut writer = node.open_writer(&archive, redo_segment)?;
    let wal_directory = data_directory.join("pg_wal");
    let mut tail =
        WalTail::new(Arc::clone(node.files()), wal_directory.clone(), identity, redo_segment);
    tail.gap = GapFiller::new(node, identity);
    meet(&archive, &mut writer, &mut tail)?;
    let begin = writer.content_end();

    let alarm = Arc::new(Alarm::default());
    let _watcher = watch(&wal_directory, &alarm)?;
    let mut caught_up = false;
    let mut progress_at = Instant::now();
    let mut identity_checked_at = progress_at;
    while !node.stopping() {
        heart.beat();
        if tail.gap.as_mut().is_some_and(GapFiller::take_fetched) {
            caught_up = false;
        }
        // Until then a follower that has all of the archive seems to be ahead of us.
        if !caught_up && tail.bound() >= begin {
            node.stages.set(STAGE, State::Streaming, "");
            caught_up = true;
        }
        if let Some(trouble) = node.shipping_forbidden() {
            return Err(trouble);
        }
        let evidence = node.positions.get(Position::ServerFlush);
        let begun = Instant::now();
        let advanced = tail.advance(evidence, |duration| node.metrics.observe_flush(duration));
        if advanced.is_err() || identity_checked_at.elapsed() >= IDENTITY_CHECK_PAUSE {
            // A restored or promoted server goes on elsewhere; that is no corruption of this WAL.
            check_identity(node, data_directory, identity)?;
            identity_checked_at = begun;
        }
        if !advanced? {
            if progress_at.elapsed() >= IDLE_SYNC_PAUSE && writer.durable() < writer.readable() {
                node.positions.advance(Position::Durable, writer.sync()?.min(tail.bound()));
            }
            alarm.wait(node.config.source.poll_interval);
            continue;
        }
        progress_at = begun;
        // Right after a restart the tail goes through WAL that the archive has already.
        let (lsn, wal) = tail.fresh(begin);
        let written_before = writer.written_bytes();
        if !wal.is_empty() {
            writer.append(lsn, wal)?;
        }
        let durable = node.positions.get(Position::Durable);
        publish(node, &mut writer, size, tail.bound())?;
        let now_durable = size.segment_of(node.positions.get(Position::Durable));
        if let Some(gap) = tail.gap.as_ref().filter(|_| now_durable > size.segment_of(durable)) {
            gap.forget_before(SegmentName::new(identity.timeline, now_durable, size));
        }
        node.metrics.count_archived(wal.len() as u64, writer.written_bytes() - written_before);
        if let Some(pause) = node.config.source.flush_interval.checked_sub(begun.elapsed()) {
            std::thread::sleep(pause);
        }
    }
    writer.sync()?;
    Ok(())
}

/// Makes what was appended readable, and says so. The archive is synced with each segment.
fn publish(
    node: &Node,
    writer: &mut ArchiveWriter,
    size: SegmentSize,
    bound: Lsn,
) -> Result<(), Trouble> {
    node.positions.advance(Position::SourceDurable, bound);
    writer.flush()?;
    if node.positions.get(Position::Durable) == Lsn::INVALID {
        // Before anybody is given anything: an archive that a power cut left empty has given nothing
        // then, and may begin elsewhere (`begin_archive`).
        writer.sync()?;
    }
    node.positions.advance(Position::Appended, bound);
    if size.segment_of(bound) > size.segment_of(node.positions.get(Position::Durable)) {
        node.positions.advance(Position::Durable, writer.sync()?.min(bound));
    }
    Ok(())
}

/// The control file, once it says that the server is in production; nothing if the node stops.
fn wait_for_production(
    node: &Node,
    data_directory: &Path,
    heart: &Heart,
) -> Result<Option<ControlFile>, Trouble> {
    while !node.stopping() {
        heart.beat();
        let control = read_control_file(node.files().as_ref(), data_directory)?;
        let waiting = match control.state {
            ClusterState::IN_PRODUCTION
            | ClusterState::SHUTDOWNED
            | ClusterState::SHUTDOWNING
            | ClusterState::IN_CRASH_RECOVERY => return Ok(Some(control)),
            ClusterState::IN_ARCHIVE_RECOVERY | ClusterState::SHUTDOWNED_IN_RECOVERY => {
                "the server is a standby; its WAL is its primary's to ship"
            }
            _ => "the server is starting for the first time",
        };
        node.stages.set(STAGE, State::Waiting, waiting);
        node.sleep(NOT_IN_PRODUCTION_PAUSE);
    }
    Ok(None)
}

/// Whether the server has written a checkpoint on the timeline that it writes on: an archive begins
/// with the last checkpoint's segment, and goes over no switch.
fn check_timeline(control: &ControlFile) -> Result<(), Trouble> {
    let (before, now) = (control.check_point_copy.this_timeline, current_timeline(control));
    if before == now {
        return Ok(());
    }
    let words = format_args!(
        "the server went from timeline {before} to timeline {now}, and has written no checkpoint \
         since"
    );
    Err(Trouble::new(Kind::Refused, words)
        .with_hint("run CHECKPOINT on the server, then restart the agent"))
}

/// Whether the server still writes the WAL that is followed.
fn check_identity(node: &Node, data_directory: &Path, identity: Identity) -> Result<(), Trouble> {
    let control = read_control_file(node.files().as_ref(), data_directory)?;
    let timeline = current_timeline(&control);
    if control.system_identifier == identity.system_identifier && timeline == identity.timeline {
        return Ok(());
    }
    Err(Trouble::new(
        Kind::Refused,
        format_args!(
            "the server is now of system {}, timeline {timeline}; this archive is of system {}, \
             timeline {}",
            control.system_identifier, identity.system_identifier, identity.timeline
        ),
    )
    .with_hint(
        "timeline switches are not followed yet: start anew with a new archive directory, and \
         bootstrap the followers again",
    ))
}

/// The timeline that a server writes on. After a promotion without a checkpoint, the last
/// checkpoint still names the one before.
fn current_timeline(control: &ControlFile) -> Timeline {
    control.check_point_copy.this_timeline.max(control.min_recovery_point_timeline)
}

/// Reads `global/pg_control` of a cluster.
pub(crate) fn read_control_file(
    files: &dyn Files,
    data_directory: &Path,
) -> Result<ControlFile, Trouble> {
    let path = data_directory.join("global/pg_control");
    let read = || {
        let file = files.open_read(&path).map_err(file_trouble)?;
        let mut bytes = vec![0; walfmt::control::CONTROL_FILE_SIZE];
        let length = file.read_at(0, &mut bytes).map_err(file_trouble)?;
        bytes.truncate(length);
        Ok::<_, Trouble>(ControlFile::from_bytes(&bytes))
    };
    let mut control = read()?;
    for _ in 0..CONTROL_FILE_TRIES {
        // The server overwrites it in place: it can be seen half written.
        if !matches!(control, Err(ControlError::Crc { .. })) {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
        control = read()?;
    }
    control.map_err(|error| {
        Trouble::new(Kind::Unsupported, format_args!("{}: {error}", path.display()))
            .with_hint("walferry replays PostgreSQL 15 as it is built by default, with 8 kB pages")
    })
}

/// Holds the last segment of the archive against `pg_wal`, so that an archive is never added to by
/// another history, and lets the tail begin with that segment: its records are checked again, and
/// the next one has a predecessor. An archive that has none is begun.
fn meet(archive: &Archive, writer: &mut ArchiveWriter, tail: &mut WalTail) -> Result<(), Trouble> {
    let identity = tail.identity;
    let size = identity.segment_size;
    let archive_end = writer.content_end();
    let number = size.segment_before(archive_end);
    let name = SegmentName::new(identity.timeline, number, size);
    let start = size.start_of(number);
    let ours = match archive.read_segment(name) {
        Ok(ours) => ours,
        Err(ArchiveError::NotArchived { .. }) => return begin_archive(writer, tail),
        Err(error) => return Err(error.into()),
    };
    tail.seek(start);
    let mut theirs = vec![0; ours.len()];
    let mut length = 0;
    while length < theirs.len() {
        match tail.read(start.advance(length as u64), &mut theirs[length..])? {
            0 => break,
            read => length += read,
        }
    }
    if length == 0 && size.end_of(number) == archive_end {
        // The server has removed this segment, and the archive has all of it.
        tail.seek(archive_end);
        return Ok(());
    }
    if length == 0 {
        return Err(TailError::Gap { segment: name }.into());
    }
    let Some(same) = ours.iter().zip(&theirs).position(|(ours, theirs)| ours != theirs) else {
        return Ok(());
    };
    let differs_at = start.advance(same as u64);
    if tail.reject_fetched(name) {
        let words =
            format!("what gap_command gave is not what the archive has, from {differs_at} on");
        return Err(TailError::NotFetched { segment: name, words }.into());
    }
    if differs_at >= writer.recovery().unchecked_from {
        // A crash of this machine left garbage in the archive's last, unfinished frame.
        writer.cut_back(differs_at)?;
        return Ok(());
    }
    Err(Trouble::new(
        Kind::Refused,
        format_args!(
            "segment {name} in the archive is not the one in pg_wal, from {differs_at} on"
        ),
    )
    .with_hint(
        "they are different histories; if the server was restored, move the archive directory \
         away and start anew",
    ))
}

/// Begins an archive that has nothing yet: where an earlier try was to begin, or, where that is gone from
/// `pg_wal` by now, as late as where the tail stands. Nobody was given anything, so nobody misses it.
fn begin_archive(writer: &mut ArchiveWriter, tail: &mut WalTail) -> Result<(), Trouble> {
    let (begin, latest) = (writer.content_end(), tail.bound());
    tail.seek(begin);
    match tail.read(begin, &mut [0]) {
        Err(TailError::Gap { segment }) if begin < latest => {
            tracing::warn!(%segment, "gone before anything was archived: the archive begins at {latest}");
            writer.begin_at(latest)?;
            tail.seek(latest);
            Ok(())
        }
        read => Ok(read.map(drop)?),
    }
}

/// Follows the segments of one timeline in a directory; see the module's documentation.
///
/// Invariant: `bound` is a record's end (or where the tail began), and every byte before it was
/// covered by a completed `fdatasync` that was issued after the byte had been read.
pub(crate) struct WalTail {
    files: Arc<dyn Files>,
    directory: PathBuf,
    identity: Identity,
    stream: RecordStream,
    bound: Lsn,
    /// What the last round read: first the bytes between `fresh_start` and `bound`.
    wal: Vec<u8>,
    fresh_start: Lsn,
    /// The segments that were read and are not done with.
    open: Vec<(SegmentNumber, Box<dyn File>)>,
    /// A record that did not check out although later WAL was there; read once more before it
    /// counts as corrupt.
    suspect: Option<Lsn>,
    /// Fetches what is gone from the directory, if the configuration says how.
    gap: Option<GapFiller>,
    /// Up to here WAL is known to exist, beyond what was read when this was seen.
    known_end: Lsn,
}

/// Why a tail cannot go on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TailError {
    #[error(transparent)]
    File(FileError),
    #[error("{0}, and later WAL is there")]
    Corrupt(Stop),
    #[error("segment {segment} is gone from pg_wal, and later ones are there")]
    Gap { segment: SegmentName },
    #[error("segment {segment} is gone from pg_wal, later ones are there, and {words}")]
    NotFetched { segment: SegmentName, words: String },
}

impl WalTail {
    /// A tail that begins at `start`, a segment's first byte.
    pub(crate) fn new(
        files: Arc<dyn Files>,
        directory: PathBuf,
        identity: Identity,
        start: Lsn,
    ) -> Self {
        let size = identity.segment_size;
        let start = size.start_of(size.segment_of(start));
        Self {
            files,
            directory,
            identity,
            stream: new_stream(identity, start),
            bound: start,
            wal: Vec::new(),
            fresh_start: start,
            open: Vec::new(),
            suspect: None,
            gap: None,
            known_end: Lsn::INVALID,
        }
    }

    /// Begins anew at `start`, a segment's first byte.
    fn seek(&mut self, start: Lsn) {
        self.stream = new_stream(self.identity, start);
        self.bound = start;
        self.fresh_start = start;
        self.wal.clear();
    }

    /// The end of what may be shipped.
    pub(crate) fn bound(&self) -> Lsn {
        self.bound
    }

    /// What the last round added, less what lies before `begin`: WAL that may be shipped.
    pub(crate) fn fresh(&self, begin: Lsn) -> (Lsn, &[u8]) {
        let from = self.fresh_start.max(begin);
        let skip = from.bytes_since(self.fresh_start) as usize;
        (from, self.wal.get(skip..).unwrap_or_default())
    }

    /// Reads what is new, and raises the bound if there are whole records and they are durable;
    /// says whether it did. `evidence` is a position up to which WAL is known to exist (or 0).
    pub(crate) fn advance(
        &mut self,
        evidence: Lsn,
        mut observe_flush: impl FnMut(Duration),
    ) -> Result<bool, TailError> {
        let size = self.identity.segment_size;
        self.wal.clear();
        self.wal.shrink_to(ROUND_BYTES_MAX); // after a huge record
        self.fresh_start = self.bound;
        self.stream.rewind();
        self.stream.set_known_end(self.known_end);
        let stop = self.read_records()?;
        let end = self.stream.record_end();
        if end == self.bound {
            // What is open may have been recycled: the next round goes by the names again.
            self.open.clear();
            if let Some(stop) = stop {
                self.judge(stop, evidence).map_err(|error| self.blame(error))?;
            }
            return Ok(false);
        }
        self.suspect = None;
        self.wal.truncate(end.bytes_since(self.fresh_start) as usize);
        let last = size.segment_before(end);
        for (_, file) in self.open.iter().filter(|(number, _)| *number <= last) {
            let begun = Instant::now();
            file.fdatasync().map_err(TailError::File)?;
            observe_flush(begun.elapsed());
        }
        // A segment stays readable while it is open, also when the server has removed it.
        self.open.retain(|(number, _)| *number >= size.segment_of(end));
        self.bound = end;
        Ok(true)
    }

    /// Reads and checks records until they end, or the round is long enough.
    fn read_records(&mut self) -> Result<Option<Stop>, TailError> {
        let mut length = READ_BYTES_MIN;
        loop {
            let at = self.stream.pushed_end();
            let filled = self.wal.len();
            self.wal.resize(filled + length, 0);
            let mut chunk = std::mem::take(&mut self.wal);
            let read = self.read(at, &mut chunk[filled..]);
            self.wal = chunk;
            let read = read?;
            self.wal.truncate(filled + read);
            self.stream.push(&self.wal[filled..]);
            loop {
                match self.stream.poll() {
                    Step::Record(_) => {}
                    Step::NeedMore => break,
                    Step::Stop(stop) => return Ok(Some(stop)),
                }
            }
            let has_record = self.stream.record_end() > self.bound;
            if read == 0 || (has_record && self.wal.len() >= ROUND_BYTES_MAX) {
                return Ok(None);
            }
            length = (length * 2).min(READ_BYTES_MAX);
        }
    }

    /// Reads from the segment that `at` lies in, not beyond it; 0 if it is not there.
    fn read(&mut self, at: Lsn, buffer: &mut [u8]) -> Result<usize, TailError> {
        let size = self.identity.segment_size;
        let number = size.segment_of(at);
        let file = match self.open.iter().position(|(open, _)| *open == number) {
            Some(index) => &self.open[index].1,
            None => {
                let Some(file) = self.open_segment(number)? else { return Ok(0) };
                self.open.push((number, file));
                &self.open[self.open.len() - 1].1
            }
        };
        let offset = size.offset_of(at);
        let room = usize::try_from(size.bytes() - offset).unwrap_or(usize::MAX);
        let length = buffer.len().min(room);
        file.read_at(offset, &mut buffer[..length]).map_err(TailError::File)
    }

    /// A segment of the directory, or one that was fetched because it is gone from there; nothing if
    /// it is still to come.
    fn open_segment(&mut self, number: SegmentNumber) -> Result<Option<Box<dyn File>>, TailError> {
        let name = SegmentName::new(self.identity.timeline, number, self.identity.segment_size);
        let open = |path: &Path| match self.files.open_read(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(TailError::File(error)),
        };
        let here = open(&self.directory.join(name.to_string()))?;
        let fetched = self.gap.as_ref().map(|gap| gap.path(name));
        let (None, Some(fetched)) = (&here, &fetched) else {
            if here.is_none() {
                self.check_gap(number, name)?;
            }
            return Ok(here);
        };
        if let Some(file) = open(fetched)? {
            return Ok(Some(file));
        }
        match (self.check_gap(number, name), &mut self.gap) {
            (Err(TailError::Gap { segment }), Some(gap)) => {
                gap.fetch(segment).map_err(|words| TailError::NotFetched { segment, words })?
            }
            (result, _) => return result.map(|()| None),
        }
        self.files.open_read(fetched).map(Some).map_err(TailError::File)
    }

    /// What does not check out in a segment that was fetched is the command's fault, and fetched anew.
    fn blame(&self, error: TailError) -> TailError {
        let size = self.identity.segment_size;
        let TailError::Corrupt(stop) = &error else { return error };
        // A record may begin in one segment and be wrong in the next.
        let first = size.segment_of(stop.at);
        let last = size.segment_before(self.stream.pushed_end());
        let name = |number| SegmentName::new(self.identity.timeline, SegmentNumber(number), size);
        let all = (first.0..=last.0).map(name);
        let rejected: Vec<_> = all.filter(|&name| self.reject_fetched(name)).collect();
        match rejected.last() {
            Some(&segment) => {
                let words = format!("what gap_command gave does not check out: {stop}");
                TailError::NotFetched { segment, words }
            }
            None => error,
        }
    }

    /// Removes a segment that was fetched, if it was.
    fn reject_fetched(&self, segment: SegmentName) -> bool {
        self.gap.as_ref().is_some_and(|gap| std::fs::remove_file(gap.path(segment)).is_ok())
    }

    /// A segment that is not there was removed too early if a later one has been written.
    fn check_gap(&self, missing: SegmentNumber, segment: SegmentName) -> Result<(), TailError> {
        let size = self.identity.segment_size;
        for name in self.files.list(&self.directory).map_err(TailError::File)? {
            let later = name
                .parse::<SegmentName>()
                .ok()
                .filter(|name| name.timeline == self.identity.timeline)
                .and_then(|name| name.number(size))
                .filter(|number| *number > missing);
            if let Some(later) = later
                && self.is_written(later)?
            {
                return Err(TailError::Gap { segment });
            }
        }
        Ok(())
    }

    /// Whether a segment holds WAL of its own; a recycled file's old contents have another address.
    fn is_written(&self, number: SegmentNumber) -> Result<bool, TailError> {
        let size = self.identity.segment_size;
        let name = SegmentName::new(self.identity.timeline, number, size);
        let path = self.directory.join(name.to_string());
        let mut header = [0; LONG_HEADER_SIZE];
        match self.files.open_read(&path).and_then(|file| file.read_at(0, &mut header)) {
            Ok(_) => Ok(WalPageHeader::from_bytes(&header)
                .is_some_and(|header| header.address == size.start_of(number))),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(TailError::File(error)),
        }
    }

    /// Whether a record that does not check out is unfinished, or corrupt.
    fn judge(&mut self, stop: Stop, evidence: Lsn) -> Result<(), TailError> {
        if self.suspect.take() == Some(stop.at) {
            return Err(TailError::Corrupt(stop));
        }
        let size = self.identity.segment_size;
        let read_to = self.stream.pushed_end();
        let next = size.segment_before(read_to).next();
        if evidence > read_to {
            self.known_end = evidence;
        } else if self.is_written(next)? {
            self.known_end = size.start_of(next);
        } else if stop.kind != StopKind::Corrupt {
            return Ok(()); // not yet
        }
        self.suspect = Some(stop.at);
        Ok(())
    }
}

fn new_stream(identity: Identity, start: Lsn) -> RecordStream {
    RecordStream::new(walfmt::StreamStart {
        lsn: start,
        segment_size: identity.segment_size,
        system_identifier: Some(identity.system_identifier),
    })
}

impl From<TailError> for Trouble {
    fn from(error: TailError) -> Self {
        match error {
            // After a failed fdatasync the kernel may have dropped the bytes: nothing later can
            // be trusted to be durable.
            TailError::File(error) if error.is_sync() => {
                Self::new(Kind::Corrupt, format_args!("{error}; shipping has stopped"))
                    .with_hint("check the leader's disk, then restart the server and the agent")
            }
            TailError::File(error) => file_trouble(error),
            TailError::Corrupt(_) => Self::new(Kind::Corrupt, error)
                .with_hint("pg_waldump the segment; the server itself could not recover from it"),
            TailError::Gap { .. } => Self::new(Kind::NotThere, error).with_hint(
                "the agent was down for longer than the server kept WAL. If it is archived \
                 elsewhere, set [source] gap_command to fetch it and restart the agent; otherwise \
                 start anew with a new archive directory, and bootstrap the followers again",
            ),
            TailError::NotFetched { .. } => Self::new(Kind::NotThere, error).with_hint(
                "mend [source] gap_command, or what it needs: it is tried again. If the segment is \
                 lost, start anew with a new archive directory, and bootstrap the followers again",
            ),
        }
    }
}

pub(crate) fn file_trouble(error: FileError) -> Trouble {
    ArchiveError::from(error).into()
}

/// "Something happened in `pg_wal`", from the notification thread to the tail's.
#[derive(Default)]
struct Alarm {
    rung: Mutex<bool>,
    changed: Condvar,
}

impl Alarm {
    fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_one();
    }

    /// Returns when it has been rung since the last wait, or when `limit` has passed:
    /// notifications can be lost.
    fn wait(&self, limit: Duration) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) = self
            .changed
            .wait_timeout_while(rung, limit, |rung| !*rung)
            .unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

fn watch(directory: &Path, alarm: &Arc<Alarm>) -> Result<notify::RecommendedWatcher, Trouble> {
    let alarm = Arc::clone(alarm);
    let what = format!("watching {}", directory.display());
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Opening and closing, our own included, say nothing.
        let silent = event.as_ref().is_ok_and(|event| event.kind.is_access());
        if !silent {
            alarm.ring();
        }
    })
    .map_err(|error| Trouble::io(&what, error))?;
    watcher
        .watch(directory, notify::RecursiveMode::NonRecursive)
        .map_err(|error| Trouble::io(&what, error))?;
    Ok(watcher)
}

#[cfg(test)]
mod tests;
