//! The tail on the WAL of a real PostgreSQL 15: nothing passes before our own `fdatasync`, and
//! what does not check out is judged rightly.

use std::collections::HashSet;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::MutexGuard;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use integration::{Cluster, ClusterOptions, Scratch, Seed, Segments, StopMode};
use rand::RngExt;
use walferry_archive::OsFiles;
use walferry_archive::files::Lock;
use walfmt::StreamStart;

use super::*;
use crate::positions::Positions;

/// The server and the tail are watched under load until so much was seen: how often it was looked, how
/// often the bound was another one than before, and how many segments' ends it has passed.
const SAMPLES_MIN: usize = 200;
const BOUND_CHANGES_MIN: usize = 50;
const SEGMENT_ENDS_MIN: u64 = 2;
/// A disk that is busy with something else takes its time. The load lasts longer.
const WATCH_LIMIT: Duration = Duration::from_secs(60);
/// How long the tail may need to the end of what the load has left.
const REST_LIMIT: Duration = Duration::from_secs(120);

#[test]
fn every_bound_under_load_is_covered_by_our_own_fdatasync() -> Result<()> {
    let scratch = Scratch::new()?;
    let leader = Cluster::start_new(&scratch, "leader", &lazy_server())?;
    leader.sql("create table bulk (id int, filler text)")?;
    let script = scratch.file(
        "bulk.sql",
        "insert into bulk select g, repeat(md5(random()::text), 8) from generate_series(1, 400) g;",
    )?;

    let probe = Probe::new(Fault::None);
    let watched = Watched::start(&leader, &probe)?;
    let script = script.to_str().context("a path in UTF-8")?;
    let load = leader.pgbench(&["-c", "3", "-T", "600", "-R", "120", "-f", script])?;
    let begun = Instant::now();
    let samples = sample(&leader, &watched)?;
    let lasted = begun.elapsed();
    load.stop()?;
    // A commit that is waited for brings out what the server still holds.
    leader.sql("set synchronous_commit = on; create table the_end ()")?;
    let end: Lsn = leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
    integration::process::wait_until("the tail reaches the end", REST_LIMIT, || {
        ensure!(!watched.thread.is_finished(), "the tail has ended");
        Ok(watched.positions.get(Position::SourceDurable) >= end)
    })?;
    let followed = watched.stop()?;

    let write_ahead = samples.iter().filter(|sample| sample.write > sample.flush).count();
    let bound_ahead = samples.iter().filter(|sample| sample.bound > sample.flush).count();
    let ahead_bytes = samples.iter().map(|sample| sample.write.bytes_since(sample.flush)).max();
    let bound_changes = bound_changes(&samples);
    let trace = probe.trace();
    let coverage = check_coverage(&trace, followed.start, followed.identity)?;
    println!(
        "{} samples in {lasted:?}: server's write > flush in {write_ahead} (by up to {} bytes), \
         bound > server's flush in {bound_ahead} (our fdatasync, not the server's, made it durable), \
         bound changed between samples {bound_changes} times",
        samples.len(),
        ahead_bytes.unwrap_or_default(),
    );
    println!(
        "{} reads, {} fdatasyncs, {} bounds published, {} bytes of WAL, all covered",
        coverage.reads, coverage.syncs, coverage.bounds, coverage.bytes
    );
    let published: HashSet<Lsn> = trace
        .iter()
        .filter_map(|event| match event {
            Event::Published { bound, .. } => Some(*bound),
            _ => None,
        })
        .collect();
    let unknown =
        samples.iter().find(|sample| sample.bound.is_valid() && !published.contains(&sample.bound));
    ensure!(unknown.is_none(), "a bound was seen that is not in the trace");
    ensure!(samples.len() >= SAMPLES_MIN, "only {} samples", samples.len());
    ensure!(
        write_ahead > 0,
        "the server's write position was never seen beyond its flush position"
    );
    ensure!(samples.windows(2).all(|pair| pair[0].bound <= pair[1].bound), "the bound went back");
    ensure!(
        bound_changes >= BOUND_CHANGES_MIN,
        "the bound changed only {bound_changes} times: no load to speak of"
    );
    ensure!(coverage.bounds >= BOUND_CHANGES_MIN && coverage.syncs >= coverage.bounds);

    // What passed is the server's WAL, byte for byte.
    let size = followed.identity.segment_size;
    let segments = Segments::find(&leader.wal_directory(), followed.identity.timeline, size)?;
    let mut crc = 0;
    segments.read(followed.start, followed.bound, 1 << 20, |wal| {
        crc = crc32c::crc32c_append(crc, wal);
        Ok(true)
    })?;
    ensure!(crc == followed.crc, "what passed the tail is not what is in pg_wal");

    let spoiled = spoil_and_check(&trace, &followed)?;
    println!(
        "control: {spoiled} traces with one fdatasync left out, too early or too late, each refused"
    );
    let lying = Probe::new(Fault::SwallowFdatasync);
    let mut tail = followed.tail_through(&lying, &leader.wal_directory());
    let mut bounds = 0;
    while tail.advance(Lsn::INVALID, |_| {})? {
        lying.publish(tail.bound());
        bounds += 1;
    }
    let refusal = check_coverage(&lying.trace(), followed.start, followed.identity)
        .expect_err("a tail without fdatasync is refused");
    println!("control: a tail whose fdatasync does nothing, {bounds} bounds: {refusal:#}");
    ensure!(bounds > 0 && format!("{refusal:#}").contains("no fdatasync"));

    // The same without the lie, so that it is the lie that is refused.
    let honest = Probe::new(Fault::None);
    let mut tail = followed.tail_through(&honest, &leader.wal_directory());
    while tail.advance(Lsn::INVALID, |_| {})? {
        honest.publish(tail.bound());
    }
    check_coverage(&honest.trace(), followed.start, followed.identity)?;
    Ok(())
}

/// A server that writes WAL long before it flushes it: nobody waits for a flush, the WAL writer
/// sleeps, and small buffers make the backends write what they cannot hold.
fn lazy_server() -> ClusterOptions {
    let settings = [
        "synchronous_commit = off",
        "wal_writer_delay = 10s",
        "wal_writer_flush_after = 1GB",
        "wal_buffers = 64kB",
        "checkpoint_timeout = 1h",
        "max_wal_size = 8GB",
        "wal_keep_size = 8GB",
        "bgwriter_lru_maxpages = 0",
        "autovacuum = off",
        "shared_buffers = 512MB",
    ];
    ClusterOptions { settings: settings.map(str::to_owned).to_vec(), ..ClusterOptions::default() }
}

/// One look at the server and the tail. The bound was taken first and the flush position last, so
/// neither `bound > flush` nor `write > flush` is owed to the time between.
struct Sample {
    bound: Lsn,
    write: Lsn,
    flush: Lsn,
}

/// How often the bound was another one than at the look before.
fn bound_changes(samples: &[Sample]) -> usize {
    samples.windows(2).filter(|pair| pair[0].bound != pair[1].bound).count()
}

/// Looks again and again until enough was seen, or for [`WATCH_LIMIT`]; tells the tail the flush position,
/// as `horizon` does.
fn sample(leader: &Cluster, watched: &Watched) -> Result<Vec<Sample>> {
    let (positions, size) = (&watched.positions, watched.segment_size);
    let is_enough = |samples: &[Sample]| {
        let (Some(first), Some(last)) =
            (samples.iter().find(|sample| sample.bound.is_valid()), samples.last())
        else {
            return false;
        };
        let first = size.segment_of(first.bound).0;
        let segment_ends = size.segment_of(last.bound).0.saturating_sub(first);
        samples.len() >= SAMPLES_MIN
            && segment_ends >= SEGMENT_ENDS_MIN
            && samples.iter().any(|sample| sample.write > sample.flush)
            && bound_changes(samples) >= BOUND_CHANGES_MIN
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("a runtime")?;
    runtime.block_on(async {
        let conninfo = leader.endpoint().conninfo();
        let (client, connection) =
            tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        let query = client
            .prepare("select pg_current_wal_lsn()::text, pg_current_wal_flush_lsn()::text")
            .await?;
        let mut samples = Vec::new();
        let begun = Instant::now();
        while !is_enough(&samples) && begun.elapsed() < WATCH_LIMIT {
            let bound = positions.get(Position::SourceDurable);
            let row = client.query_one(&query, &[]).await?;
            let lsn = |column| row.get::<_, &str>(column).parse::<Lsn>();
            let (write, flush) = (lsn(0)?, lsn(1)?);
            positions.advance(Position::ServerFlush, flush);
            samples.push(Sample { bound, write, flush });
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(samples)
    })
}

/// A tail at work on a server's `pg_wal`, in a thread, as `follow` does it.
struct Watched {
    segment_size: SegmentSize,
    positions: Arc<Positions>,
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<Followed>>,
}

/// What a tail went through.
struct Followed {
    identity: Identity,
    start: Lsn,
    bound: Lsn,
    /// Of all that passed.
    crc: u32,
}

impl Watched {
    fn start(leader: &Cluster, probe: &Probe) -> Result<Self> {
        let control = read_control_file(&OsFiles, leader.data_directory())
            .map_err(|trouble| anyhow::anyhow!("{trouble}"))?;
        let identity = identity_of(&control);
        let size = identity.segment_size;
        let start = size.start_of(size.segment_of(control.check_point_copy.redo));
        let (positions, stop) = (Arc::new(Positions::new()), Arc::new(AtomicBool::new(false)));
        let directory = leader.wal_directory();
        let thread = thread::spawn({
            let (positions, stop, probe) =
                (Arc::clone(&positions), Arc::clone(&stop), probe.clone());
            move || {
                let files: Arc<dyn Files> = Arc::new(probe.clone());
                let mut tail = WalTail::new(files, directory.clone(), identity, start);
                let alarm = Arc::new(Alarm::default());
                let _watcher =
                    watch(&directory, &alarm).map_err(|trouble| anyhow::anyhow!("{trouble}"))?;
                let mut crc = 0;
                while !stop.load(Ordering::Acquire) {
                    let begun = Instant::now();
                    if !tail.advance(positions.get(Position::ServerFlush), |_| {})? {
                        alarm.wait(Duration::from_millis(50));
                        continue;
                    }
                    probe.publish(tail.bound());
                    positions.advance(Position::SourceDurable, tail.bound());
                    crc = crc32c::crc32c_append(crc, tail.fresh(start).1);
                    if let Some(pause) = Duration::from_millis(1).checked_sub(begun.elapsed()) {
                        thread::sleep(pause);
                    }
                }
                Ok(Followed { identity, start, bound: tail.bound(), crc })
            }
        });
        Ok(Self { segment_size: size, positions, stop, thread })
    }

    fn stop(self) -> Result<Followed> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the tail's thread does not panic")
    }
}

impl Followed {
    fn tail_through(&self, probe: &Probe, directory: &Path) -> WalTail {
        WalTail::new(Arc::new(probe.clone()), directory.to_owned(), self.identity, self.start)
    }
}

/// What was done, in order.
#[derive(Clone, Debug)]
enum Event {
    Read { path: Arc<Path>, offset: u64, length: u64, begin: Instant, end: Instant },
    Fdatasync { path: Arc<Path>, begin: Instant, end: Instant },
    Published { bound: Lsn, at: Instant },
}

/// What [`check_coverage`] went through.
#[derive(Debug)]
struct Coverage {
    reads: usize,
    syncs: usize,
    bounds: usize,
    bytes: u64,
}

/// Checks the one rule of the tail: when a bound is published, every byte up to it had been read,
/// and after that an `fdatasync` of its segment was begun and has returned. If a byte was read more
/// than once it is the last time that counts, for that is what was shipped.
fn check_coverage(trace: &[Event], start: Lsn, identity: Identity) -> Result<Coverage> {
    let size = identity.segment_size;
    let mut covered = start;
    let mut coverage = Coverage { reads: 0, syncs: 0, bounds: 0, bytes: 0 };
    for (index, event) in trace.iter().enumerate() {
        let (bound, at) = match event {
            Event::Read { .. } => {
                coverage.reads += 1;
                continue;
            }
            Event::Fdatasync { .. } => {
                coverage.syncs += 1;
                continue;
            }
            Event::Published { bound, at } => (*bound, *at),
        };
        ensure!(bound > covered, "bound {bound} after {covered}");
        coverage.bounds += 1;
        coverage.bytes += bound.bytes_since(covered);
        while covered < bound {
            let number = size.segment_of(covered);
            let end = size.end_of(number).min(bound);
            let name = SegmentName::new(identity.timeline, number, size);
            let offset = size.offset_of(covered);
            check_segment(&trace[..index], name, offset..offset + end.bytes_since(covered), at)
                .with_context(|| format!("bound {bound}: segment {name} up to {end}"))?;
            covered = end;
        }
    }
    Ok(coverage)
}

/// Whether `bytes` of a segment were read and then synced, both before `at`.
fn check_segment(
    before: &[Event],
    segment: SegmentName,
    bytes: Range<u64>,
    at: Instant,
) -> Result<()> {
    let name = segment.to_string();
    let is_it = |path: &Path| path.ends_with(&name);
    let synced = before.iter().rev().find_map(|event| match event {
        Event::Fdatasync { path, begin, end } if is_it(path) && *end <= at => Some(*begin),
        _ => None,
    });
    let mut unread = vec![bytes];
    for event in before.iter().rev() {
        let Event::Read { path, offset, length, end, .. } = event else { continue };
        let read = *offset..*offset + *length;
        let overlaps = |part: &Range<u64>| part.start < read.end && read.start < part.end;
        if !is_it(path) || !unread.iter().any(overlaps) {
            continue;
        }
        let after = synced.is_some_and(|begin| *end <= begin);
        ensure!(after, "no fdatasync was begun after bytes {read:?} were read, and has returned");
        let around = |part: Range<u64>| {
            [part.start..part.end.min(read.start), part.start.max(read.end)..part.end]
        };
        unread = unread.into_iter().flat_map(around).filter(|part| !part.is_empty()).collect();
        if unread.is_empty() {
            return Ok(());
        }
    }
    anyhow::bail!("bytes {unread:?} were never read")
}

/// Spoils single calls of `fdatasync` in a good trace: one is left out, begins before the read it is
/// for has returned, or returns after the bound was published. Each such trace must be refused;
/// gives how many there were.
fn spoil_and_check(trace: &[Event], followed: &Followed) -> Result<usize> {
    let size = followed.identity.segment_size;
    let mut generator = Seed::take("spoiled traces", 3).generator();
    let mut spoiled = 0;
    while spoiled < 60 {
        let index = generator.random_range(0..trace.len());
        let Event::Fdatasync { path: synced, .. } = &trace[index] else { continue };
        let published = trace[index..].iter().find_map(|event| match event {
            Event::Published { bound, at } => Some((*bound, *at)),
            _ => None,
        });
        let (bound, at) = published.context("a bound follows each fdatasync")?;
        let name = synced.file_name().and_then(|name| name.to_str()).context("a segment's name")?;
        let number = name.parse::<SegmentName>()?.number(size).context("a segment's number")?;
        let last_byte = size.offset_of(Lsn(bound.min(size.end_of(number)).0 - 1));
        let read = trace[..index].iter().rev().find_map(|event| match event {
            Event::Read { path, offset, length, begin, .. }
                if path == synced && (*offset..*offset + *length).contains(&last_byte) =>
            {
                Some(*begin)
            }
            _ => None,
        });
        let read = read.context("what is published was read")?;

        let mut left_out = trace.to_vec();
        left_out.remove(index);
        let (mut too_early, mut too_late) = (trace.to_vec(), trace.to_vec());
        if let Event::Fdatasync { begin, .. } = &mut too_early[index] {
            *begin = read;
        }
        if let Event::Fdatasync { end, .. } = &mut too_late[index] {
            *end = at + Duration::from_nanos(1);
        }
        for (what, spoilt) in
            [("left out", left_out), ("begun too early", too_early), ("too late", too_late)]
        {
            let verdict = check_coverage(&spoilt, followed.start, followed.identity);
            ensure!(verdict.is_err(), "nothing is said of fdatasync {index}, {what}");
            spoiled += 1;
        }
    }
    Ok(spoiled)
}

/// What goes wrong with file calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// It does nothing and says it did.
    SwallowFdatasync,
    FailFdatasync,
    FailRead,
}

/// The operating system's files, with each read and `fdatasync` written down.
#[derive(Clone, Debug)]
struct Probe {
    fault: Fault,
    trace: Arc<Mutex<Vec<Event>>>,
}

impl Probe {
    fn new(fault: Fault) -> Self {
        Self { fault, trace: Arc::default() }
    }

    fn publish(&self, bound: Lsn) {
        self.events().push(Event::Published { bound, at: Instant::now() });
    }

    fn trace(&self) -> Vec<Event> {
        self.events().clone()
    }

    fn events(&self) -> MutexGuard<'_, Vec<Event>> {
        self.trace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Files for Probe {
    fn open_read(&self, path: &Path) -> Result<Box<dyn File>, FileError> {
        let (file, probe) = (OsFiles.open_read(path)?, self.clone());
        Ok(Box::new(ProbedFile { file, path: path.into(), probe }))
    }

    fn list(&self, dir: &Path) -> Result<Vec<String>, FileError> {
        OsFiles.list(dir)
    }

    fn open_append(&self, path: &Path) -> Result<Box<dyn File>, FileError> {
        Err(refused("open for writing", path))
    }

    fn create_dir(&self, path: &Path) -> Result<(), FileError> {
        Err(refused("create", path))
    }

    fn rename(&self, from: &Path, _to: &Path) -> Result<(), FileError> {
        Err(refused("rename", from))
    }

    fn remove(&self, path: &Path) -> Result<(), FileError> {
        Err(refused("remove", path))
    }

    fn sync_dir(&self, dir: &Path) -> Result<(), FileError> {
        Err(refused("sync directory", dir))
    }

    fn lock(&self, path: &Path) -> Result<Option<Box<dyn Lock>>, FileError> {
        Err(refused("lock", path))
    }
}

#[derive(Debug)]
struct ProbedFile {
    file: Box<dyn File>,
    path: Arc<Path>,
    probe: Probe,
}

impl ProbedFile {
    fn fail_if(&self, fault: Fault, operation: &'static str) -> Result<(), FileError> {
        if self.probe.fault != fault {
            return Ok(());
        }
        let error = std::io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error());
        Err(FileError::new(operation, &self.path, error))
    }
}

impl File for ProbedFile {
    fn len(&self) -> Result<u64, FileError> {
        self.file.len()
    }

    fn modified(&self) -> Result<std::time::SystemTime, FileError> {
        self.file.modified()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize, FileError> {
        self.fail_if(Fault::FailRead, "read")?;
        let begin = Instant::now();
        let length = self.file.read_at(offset, buffer)?;
        let (path, end) = (Arc::clone(&self.path), Instant::now());
        self.probe.events().push(Event::Read { path, offset, length: length as u64, begin, end });
        Ok(length)
    }

    fn fdatasync(&self) -> Result<(), FileError> {
        self.fail_if(Fault::FailFdatasync, "fdatasync")?;
        if self.probe.fault == Fault::SwallowFdatasync {
            return Ok(());
        }
        let begin = Instant::now();
        self.file.fdatasync()?;
        let (path, end) = (Arc::clone(&self.path), Instant::now());
        self.probe.events().push(Event::Fdatasync { path, begin, end });
        Ok(())
    }

    fn write_at(&self, _offset: u64, _bytes: &[u8]) -> Result<(), FileError> {
        Err(refused("write", &self.path))
    }

    fn set_len(&self, _length: u64) -> Result<(), FileError> {
        Err(refused("truncate", &self.path))
    }
}

/// A tail only reads and syncs.
fn refused(operation: &'static str, path: &Path) -> FileError {
    FileError::new(operation, path, std::io::ErrorKind::PermissionDenied.into())
}

fn identity_of(control: &ControlFile) -> Identity {
    Identity {
        system_identifier: control.system_identifier,
        timeline: control.check_point_copy.this_timeline,
        segment_size: control.segment_size,
        version: control.version,
    }
}

/// How often a tail that should wait is asked.
const LOOKS: usize = 20;

/// Segments of 1 MB that a real server wrote, copied to where nobody writes; the last one is
/// unfinished.
struct Copied {
    scratch: Scratch,
    identity: Identity,
    first: SegmentNumber,
    last: SegmentNumber,
    /// Its bytes from the first segment's start to the last record's end.
    wal: Vec<u8>,
    /// Where each record stands.
    records: Vec<Range<Lsn>>,
}

/// What a tail did until it failed or made no headway.
struct Outcome {
    bound: Lsn,
    shipped: Vec<u8>,
    /// How often it waited.
    waited: usize,
    error: Option<TailError>,
}

impl Copied {
    fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let options =
            ClusterOptions { wal_segment_megabytes: 1, fsync: false, ..ClusterOptions::default() };
        let mut server = Cluster::start_new(&scratch, "server", &options)?;
        server.sql("create table t as select g, md5(g::text) from generate_series(1, 40000) g")?;
        server.sql("update t set g = g + 1 where g % 2 = 0")?;
        // Records begin in the last segment, and not only the shutdown's.
        let offset = || -> Result<u64> {
            let end: Lsn = server.sql("select pg_current_wal_insert_lsn()")?.parse()?;
            Ok(end.0 % (1 << 20))
        };
        while !(100_000..900_000).contains(&offset()?) {
            server.sql("insert into t select g, md5(g::text) from generate_series(1, 500) g")?;
        }
        server.stop(StopMode::Fast)?;
        let control = read_control_file(&OsFiles, server.data_directory())
            .map_err(|trouble| anyhow::anyhow!("{trouble}"))?;
        let identity = identity_of(&control);
        let size = identity.segment_size;

        let written = Segments::find(&server.wal_directory(), identity.timeline, size)?;
        let mut stream = RecordStream::new(StreamStart {
            lsn: written.start(),
            segment_size: size,
            system_identifier: Some(identity.system_identifier),
        });
        let (mut wal, mut records) = (Vec::new(), Vec::new());
        written.read(written.start(), written.end(), 1 << 20, |piece| {
            wal.extend_from_slice(piece);
            stream.push(piece);
            loop {
                match stream.poll() {
                    Step::Record(record) => records.push(record.start..record.end),
                    Step::NeedMore => return Ok(true),
                    Step::Stop(_) => return Ok(false),
                }
            }
        })?;
        let end = stream.record_end();
        let directory = scratch.directory("copy")?;
        let (first, last) = (size.segment_of(written.start()), size.segment_before(end));
        for number in first.0..=last.0 {
            let path = written.path_of(size.start_of(SegmentNumber(number)));
            let name = path.file_name().context("a segment has a name")?;
            std::fs::copy(&path, directory.join(name))?;
        }
        wal.truncate(end.bytes_since(written.start()) as usize);
        println!("{} records in {} segments", records.len(), last.0 - first.0 + 1);
        ensure!(last.0 - first.0 >= 6, "too little WAL");
        Ok(Self { scratch, identity, first, last, wal, records })
    }

    fn start(&self) -> Lsn {
        self.identity.segment_size.start_of(self.first)
    }

    fn end(&self) -> Lsn {
        self.start().advance(self.wal.len() as u64)
    }

    fn directory(&self) -> PathBuf {
        self.scratch.path().join("copy")
    }

    fn path_of(&self, number: SegmentNumber) -> PathBuf {
        let Identity { timeline, segment_size, .. } = self.identity;
        self.directory().join(SegmentName::new(timeline, number, segment_size).to_string())
    }

    /// Flips a bit where `at` lies in the copy; a second time mends it.
    fn flip(&self, at: Lsn, bit: u32) -> Result<()> {
        let size = self.identity.segment_size;
        let path = self.path_of(size.segment_of(at));
        let file = std::fs::File::options().read(true).write(true).open(path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, size.offset_of(at))?;
        file.write_all_at(&[byte[0] ^ 1 << bit], size.offset_of(at))?;
        Ok(())
    }

    fn tail(&self, files: impl Files + 'static) -> WalTail {
        WalTail::new(Arc::new(files), self.directory(), self.identity, self.start())
    }

    /// Lets a tail go on until it fails, or has waited [`LOOKS`] times in a row.
    fn follow(&self, tail: &mut WalTail, evidence: Lsn) -> Outcome {
        let (mut shipped, mut waited, mut error) = (Vec::new(), 0, None);
        while waited < LOOKS && error.is_none() {
            match tail.advance(evidence, |_| {}) {
                Ok(true) => shipped.extend_from_slice(tail.fresh(Lsn::INVALID).1),
                Ok(false) => waited += 1,
                Err(found) => error = Some(found),
            }
        }
        Outcome { bound: tail.bound(), shipped, waited, error }
    }

    /// That what a tail of this WAL shipped is its beginning, and nothing from `limit` on.
    fn check_shipped(&self, outcome: &Outcome, limit: Lsn) -> Result<()> {
        ensure!(outcome.bound <= limit, "shipped up to {}, beyond {limit}", outcome.bound);
        let expected = self.wal.get(..outcome.bound.bytes_since(self.start()) as usize);
        ensure!(expected == Some(&outcome.shipped[..]), "what was shipped is not the WAL");
        Ok(())
    }

    /// A byte of a record that lies in these segments.
    fn byte_in_a_record(
        &self,
        generator: &mut impl RngExt,
        of: Range<u64>,
    ) -> (Range<Lsn>, Lsn, u32) {
        loop {
            let record = &self.records[generator.random_range(0..self.records.len())];
            let number = self.identity.segment_size.segment_of(record.start).0;
            let length =
                walfmt::bytes::u32_at(&self.wal, record.start.bytes_since(self.start()) as usize);
            let one_page = record.start.0 % 8192 + u64::from(length) <= 8192;
            if of.contains(&number) && one_page {
                let at = record.start.advance(generator.random_range(0..u64::from(length)));
                return (record.clone(), at, generator.random_range(0..8));
            }
        }
    }
}

#[test]
fn a_flipped_bit_behind_later_wal_is_corrupt_on_the_second_look() -> Result<()> {
    let copied = Copied::new()?;
    let whole = copied.follow(&mut copied.tail(OsFiles), Lsn::INVALID);
    ensure!(whole.error.is_none() && whole.bound == copied.end(), "the control: nothing is wrong");
    copied.check_shipped(&whole, copied.end())?;

    let mut generator = Seed::take("flipped bits", 11).generator();
    let flips = 40;
    for _ in 0..flips {
        let segments = copied.first.0..copied.last.0;
        let (record, at, bit) = copied.byte_in_a_record(&mut generator, segments);
        copied.flip(at, bit)?;
        let outcome = copied.follow(&mut copied.tail(OsFiles), Lsn::INVALID);
        copied.flip(at, bit)?;
        let what = format!("bit {bit} at {at}, in the record at {}", record.start);
        match &outcome.error {
            Some(error @ TailError::Corrupt(stop)) if stop.at == record.start => {
                let Outcome { waited, .. } = outcome;
                ensure!(waited == 1, "{what}: corrupt after {waited} looks: {error}");
            }
            other => anyhow::bail!("{what}: {other:?}"),
        }
        copied.check_shipped(&outcome, record.start).context(what)?;
    }
    println!("{flips} flipped bits, each corrupt on the second look, and nothing of it shipped");
    Ok(())
}

#[test]
fn a_flipped_bit_at_the_tip_waits_until_later_wal_is_known() -> Result<()> {
    let copied = Copied::new()?;
    let mut generator = Seed::take("flipped bits", 12).generator();
    let beyond = copied.identity.segment_size.end_of(copied.last).advance(1);
    let flips = 10;
    for _ in 0..flips {
        let tip = copied.last.0..copied.last.0 + 1;
        let (record, at, bit) = copied.byte_in_a_record(&mut generator, tip);
        let what = format!("bit {bit} at {at}, in the record at {}", record.start);
        copied.flip(at, bit)?;
        let mut tail = copied.tail(OsFiles);
        // Evidence that does not reach beyond what was read is none.
        let mut outcome = copied.follow(&mut tail, record.start);
        ensure!(outcome.error.is_none() && outcome.waited == LOOKS, "{what}: {:?}", outcome.error);
        copied.check_shipped(&outcome, record.start).with_context(|| what.clone())?;

        // The same with the evidence is corrupt.
        let judged = copied.follow(&mut copied.tail(OsFiles), beyond);
        ensure!(
            matches!(&judged.error, Some(TailError::Corrupt(stop)) if stop.at == record.start),
            "{what}: {:?}",
            judged.error
        );
        ensure!(judged.waited == 1, "{what}: corrupt after {} looks", judged.waited);
        copied.check_shipped(&judged, record.start).with_context(|| what.clone())?;

        // And what was waited for is shipped when it is whole.
        copied.flip(at, bit)?;
        let rest = copied.follow(&mut tail, Lsn::INVALID);
        ensure!(rest.error.is_none() && rest.bound == copied.end(), "{what}: did not go on");
        outcome.shipped.extend_from_slice(&rest.shipped);
        outcome.bound = rest.bound;
        copied.check_shipped(&outcome, copied.end()).context(what)?;
    }
    println!("{flips} flipped bits at the tip, each waited for {LOOKS} times");
    Ok(())
}

#[test]
fn a_removed_segment_is_a_gap_unless_it_is_the_next_to_come() -> Result<()> {
    let copied = Copied::new()?;
    let size = copied.identity.segment_size;
    let aside = copied.scratch.path().join("aside");
    for number in copied.first.0..=copied.last.0 {
        let number = SegmentNumber(number);
        std::fs::rename(copied.path_of(number), &aside)?;
        let outcome = copied.follow(&mut copied.tail(OsFiles), Lsn::INVALID);
        copied.check_shipped(&outcome, size.start_of(number))?;
        match outcome.error {
            Some(TailError::Gap { segment }) if number != copied.last => {
                ensure!(segment.number(size) == Some(number), "{segment} is named");
            }
            // The server has not made it yet.
            None if number == copied.last => {}
            other => anyhow::bail!("segment {} is away: {other:?}", number.0),
        }
        std::fs::rename(&aside, copied.path_of(number))?;
    }
    println!(
        "{} segments removed in turn, a gap each but the last",
        copied.last.0 - copied.first.0 + 1
    );
    Ok(())
}

#[test]
fn a_recycled_segment_at_the_tip_is_waited_for() -> Result<()> {
    let copied = Copied::new()?;
    let size = copied.identity.segment_size;
    // As a checkpoint leaves it: old contents under names to come.
    let tip = SegmentNumber(copied.last.0 - 1);
    let real = std::fs::read(copied.path_of(tip))?;
    std::fs::copy(copied.path_of(copied.first), copied.path_of(tip))?;
    std::fs::copy(copied.path_of(copied.first.next()), copied.path_of(copied.last))?;
    let mut tail = copied.tail(OsFiles);
    let mut outcome = copied.follow(&mut tail, size.start_of(tip));
    ensure!(outcome.error.is_none() && outcome.waited == LOOKS, "{:?}", outcome.error);
    ensure!(outcome.bound > size.start_of(SegmentNumber(tip.0 - 1)), "the tip was reached");
    copied.check_shipped(&outcome, size.start_of(tip))?;

    // It is written over from its start: what is new passes, what is old does not.
    let file = std::fs::File::options().write(true).open(copied.path_of(tip))?;
    let mut written = 0;
    for part in real.chunks(100_000) {
        file.write_all_at(part, written)?;
        written += part.len() as u64;
        let more = copied.follow(&mut tail, Lsn::INVALID);
        ensure!(more.error.is_none(), "{written} bytes written: {:?}", more.error);
        ensure!(more.bound > outcome.bound, "{written} bytes written, and none passed");
        outcome.shipped.extend_from_slice(&more.shipped);
        outcome.bound = more.bound;
        copied.check_shipped(&outcome, size.start_of(tip).advance(written))?;
    }

    // Without the first recycled one there is a hole, but nothing that was written lies beyond it.
    std::fs::remove_file(copied.path_of(tip))?;
    let outcome = copied.follow(&mut copied.tail(OsFiles), Lsn::INVALID);
    ensure!(outcome.error.is_none(), "{:?}", outcome.error);
    println!("a recycled segment was waited for, and followed as it was written over");
    Ok(())
}

#[test]
fn eio_from_fdatasync_stops_and_is_not_tried_again() -> Result<()> {
    let copied = Copied::new()?;
    let mut tail = copied.tail(Probe::new(Fault::FailFdatasync));
    let error = tail.advance(Lsn::INVALID, |_| {}).expect_err("fdatasync fails");
    ensure!(tail.bound() == copied.start(), "the bound has moved to {}", tail.bound());
    let trouble = Trouble::from(error);
    println!("{trouble} ({})", trouble.kind().label());
    // `run` tries again what is of this kind, and nothing else.
    ensure!(trouble.kind() != Kind::Io, "it would be tried again");

    // An error of a read may pass.
    let mut tail = copied.tail(Probe::new(Fault::FailRead));
    let error = tail.advance(Lsn::INVALID, |_| {}).expect_err("read fails");
    ensure!(Trouble::from(error).kind() == Kind::Io);
    Ok(())
}
