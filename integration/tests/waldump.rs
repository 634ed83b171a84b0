//! `pg_waldump` is the judge of [`RecordStream`]: on WAL of a real server, every record has the LSN,
//! prev link, resource manager, transaction, lengths and number of blocks that it prints.
//!
//! And no flipped bit inside a record stays unnoticed.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result, ensure};
use integration::process::wait_until;
use integration::segments::position_of;
use integration::{
    Cluster, ClusterOptions, DumpedRecord, PATIENCE, Scratch, Seed, Segments, StopMode, Waldump,
};
use rand::RngExt;
use rand::rngs::StdRng;
use walfmt::rmgr::{RmgrId, xlog};
use walfmt::wal_page::{WAL_PAGE_SIZE, page_start};
use walfmt::{
    BLOCK_SIZE, Lsn, RawRecord, Record, RecordStream, SegmentSize, Step, Stop, StopKind,
    StreamStart, Timeline, Version,
};

#[test]
fn a_million_records_are_as_pg_waldump_says() -> Result<()> {
    let wal = Wal::write(&Workload { wal_segment_megabytes: 16, rows: 200_000, ..QUIET })?;
    let tally = wal.compare(|_, _| {})?;
    println!("16 MB segments: {tally}");
    ensure!(tally.records >= 1_000_000, "only {} records", tally.records);
    // What was not there was not compared.
    for rmgr in EVERY_RMGR_OF_SQL {
        ensure!(tally.rmgrs.contains_key(rmgr), "no record of {rmgr}");
    }
    for method in ["None", "Pglz", "Lz4", "Zstd"] {
        ensure!(tally.images.contains_key(method), "no page image compressed with {method}");
    }
    every_altered_field_is_noticed(&wal)?;
    every_flipped_bit_is_found(&wal, 200, Seed::take("flipped bits, 16 MB segments", 15))
}

#[test]
fn small_segments_through_crashes() -> Result<()> {
    let wal = Wal::write(&Workload { wal_segment_megabytes: 1, crashes: 5, ..QUIET })?;
    let tally = wal.compare(|_, _| {})?;
    println!("1 MB segments, 5 crashes: {tally}");
    ensure!(tally.overwrites > 0, "no crash left a record to give up: nothing was tested");
    every_flipped_bit_is_found(&wal, 60, Seed::take("flipped bits, 1 MB segments", 1))
}

#[test]
fn large_segments_with_logical_wal() -> Result<()> {
    let settings = &["wal_level = logical", "track_commit_timestamp = on"];
    let wal = Wal::write(&Workload { wal_segment_megabytes: 64, settings, ..QUIET })?;
    let tally = wal.compare(|_, _| {})?;
    println!("64 MB segments, wal_level=logical: {tally}");
    ensure!(tally.toplevel_xids > 0, "no record names its top-level transaction");
    every_flipped_bit_is_found(&wal, 20, Seed::take("flipped bits, 64 MB segments", 64))
}

/// All resource managers that `sql/many_kinds.sql` and `pgbench` make records of. Not there: Generic
/// needs an extension, CommitTs and ReplicationOrigin write when they are truncated or dropped.
const EVERY_RMGR_OF_SQL: [&str; 18] = [
    "XLOG",
    "Transaction",
    "Storage",
    "CLOG",
    "Database",
    "RelMap",
    "MultiXact",
    "Standby",
    "Heap2",
    "Heap",
    "Btree",
    "Hash",
    "Gin",
    "Gist",
    "Sequence",
    "SPGist",
    "BRIN",
    "LogicalMessage",
];

/// What a server does before its WAL is read.
struct Workload {
    wal_segment_megabytes: u32,
    /// How many rows the large tables have.
    rows: u32,
    /// How often the server is killed while it writes long records.
    crashes: u32,
    settings: &'static [&'static str],
}

const QUIET: Workload =
    Workload { wal_segment_megabytes: 16, rows: 5_000, crashes: 0, settings: &[] };

/// The WAL of a server that has been stopped.
struct Wal {
    cluster: Cluster,
    segments: Segments,
    version: &'static Version,
    /// Where the last record begins: the shutdown checkpoint.
    last_record: Lsn,
    _scratch: Scratch,
}

/// What a comparison went through.
#[derive(Default)]
struct Tally {
    records: u64,
    segments: u64,
    blocks: u64,
    toplevel_xids: u64,
    /// Records that were given up in a crash, as the record after it says.
    overwrites: u64,
    rmgrs: BTreeMap<&'static str, u64>,
    /// Page images by compression; all of them were unpacked.
    images: BTreeMap<String, u64>,
}

impl Wal {
    fn write(workload: &Workload) -> Result<Self> {
        let scratch = Scratch::new()?;
        let mut settings = vec![
            "wal_keep_size = 100GB",
            "max_wal_size = 4GB",
            "min_wal_size = 128MB",
            "checkpoint_timeout = 1h",
            "synchronous_commit = off",
            "wal_buffers = 1MB",
        ];
        settings.extend(workload.settings);
        let options = ClusterOptions {
            wal_segment_megabytes: workload.wal_segment_megabytes,
            // It is killed, but its machine is not.
            fsync: false,
            settings: settings.into_iter().map(str::to_owned).collect(),
            ..ClusterOptions::default()
        };
        let mut cluster = Cluster::start_new(&scratch, "server", &options)?;
        let script = scratch.file(
            "many_kinds.sql",
            format!(
                "\\set rows {}\n\\set copy_file '{}'\n{}",
                workload.rows,
                scratch.path().join("copied").display(),
                include_str!("sql/many_kinds.sql"),
            ),
        )?;
        cluster.endpoint().sql_file("postgres", &script)?;
        cluster.pgbench_init(2, &[])?;
        cluster.pgbench_run(&["-c", "4", "-T", "3"])?;
        let long_message = scratch
            .file("long.sql", "select pg_logical_emit_message(false, 'm', repeat('m', 700000));")?;
        for _ in 0..workload.crashes {
            let long_message = long_message.to_str().context("a UTF-8 path")?;
            let position = || -> Result<Lsn> {
                Ok(cluster.sql("select pg_current_wal_insert_lsn()")?.parse()?)
            };
            let begun = position()?.advance(4 << 20);
            let load = cluster.pgbench(&["-c", "2", "-T", "600", "-f", long_message])?;
            wait_until("long records are being written", PATIENCE, || Ok(position()? > begun))?;
            cluster.crash_and_recover()?;
            load.stop()?;
        }
        cluster.stop(StopMode::Fast)?;
        let control = cluster.control_data()?;
        let last_record = control["Latest checkpoint location"].parse()?;
        let version = Version::from_catalog_version(control["Catalog version number"].parse()?)
            .context("a server of a version we do not know")?;
        let size =
            SegmentSize::new(workload.wal_segment_megabytes << 20).context("a legal size")?;
        let segments = Segments::find(&cluster.wal_directory(), Timeline(1), size)?;
        Ok(Self { cluster, segments, version, last_record, _scratch: scratch })
    }

    /// Reads all WAL with [`RecordStream`] and `pg_waldump` side by side, neither of them in memory.
    /// `spoil` may alter what we say of a record before it is compared.
    fn compare(&self, mut spoil: impl FnMut(u64, &mut DumpedRecord)) -> Result<Tally> {
        let directory = self.cluster.wal_directory();
        let mut dump = Waldump::start(self.cluster.endpoint(), &directory, self.segments.start())?;
        let mut tally = Tally::default();
        let mut last = Lsn::INVALID;
        let stop = self.read(|raw| {
            let record =
                Record::decode(raw, self.version).with_context(|| format!("at {}", raw.start))?;
            tally.count(&record)?;
            let mut ours = describe(&record);
            spoil(tally.records, &mut ours);
            let theirs = dump.next_record()?;
            ensure!(
                theirs.as_ref() == Some(&ours),
                "record {}: we say\n{ours:?}, pg_waldump says\n{theirs:?}",
                tally.records
            );
            last = raw.start;
            Ok(())
        })?;
        ensure!(stop == Some(StopKind::End), "the stream ended with {stop:?}");
        ensure!(last == self.last_record, "the last record is {last}, not {}", self.last_record);
        ensure!(dump.next_record()?.is_none(), "pg_waldump has more");
        tally.segments = self.segments.size().segment_of(last).0
            - self.segments.size().segment_of(self.segments.start()).0
            + 1;
        Ok(tally)
    }

    /// Gives every record to `take`, and how the stream ended, if it did.
    fn read(&self, mut take: impl FnMut(&RawRecord<'_>) -> Result<()>) -> Result<Option<StopKind>> {
        let mut stream = self.stream(self.segments.start(), self.last_record);
        let mut stopped = None;
        self.segments.read(self.segments.start(), self.segments.end(), 128 << 10, |bytes| {
            stream.push(bytes);
            stopped = drain(&mut stream, &mut take)?.map(|stop| stop.kind);
            Ok(stopped.is_none())
        })?;
        Ok(stopped)
    }

    fn stream(&self, start: Lsn, known_end: Lsn) -> RecordStream {
        let segment_size = self.segments.size();
        let mut stream =
            RecordStream::new(StreamStart { lsn: start, segment_size, system_identifier: None });
        stream.set_known_end(known_end);
        stream
    }
}

/// Polls until more bytes are needed, or the stream has stopped.
fn drain(
    stream: &mut RecordStream,
    take: &mut impl FnMut(&RawRecord<'_>) -> Result<()>,
) -> Result<Option<Stop>> {
    loop {
        match stream.poll() {
            Step::Record(raw) => take(&raw)?,
            Step::NeedMore => return Ok(None),
            Step::Stop(stop) => return Ok(Some(stop)),
        }
    }
}

/// A record in the words of `pg_waldump`.
fn describe(record: &Record<'_>) -> DumpedRecord {
    let images = record.blocks.iter().filter_map(|block| block.image.as_ref());
    let image_length: usize = images.map(|image| image.bytes.len()).sum();
    let total_length = record.header.total_length;
    DumpedRecord {
        start: record.start,
        prev: record.header.prev,
        rmgr: record.header.rmgr.to_string(),
        xid: record.header.xid.0,
        total_length,
        length_without_images: total_length - u32::try_from(image_length).expect("a part of it"),
        blocks: record.blocks.len(),
    }
}

impl Tally {
    fn count(&mut self, record: &Record<'_>) -> Result<()> {
        self.records += 1;
        self.blocks += record.blocks.len() as u64;
        self.toplevel_xids += u64::from(record.toplevel_xid.is_valid());
        let rmgr = record.header.rmgr;
        *self.rmgrs.entry(rmgr.name().context("no custom resource manager")?).or_default() += 1;
        self.overwrites +=
            u64::from(rmgr == RmgrId::XLOG && record.header.opcode() == xlog::OVERWRITE_CONTRECORD);
        let mut page = [0; BLOCK_SIZE];
        for block in &record.blocks {
            if let Some(image) = &block.image {
                image.restore(&mut page).with_context(|| format!("at {}", record.start))?;
                *self.images.entry(format!("{:?}", image.compression)).or_default() += 1;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} records in {} segments compared with pg_waldump, {} blocks, page images {:?}, \
             {} records given up in crashes, resource managers {:?}",
            self.records, self.segments, self.blocks, self.images, self.overwrites, self.rmgrs
        )
    }
}

/// The negative control of [`Wal::compare`]: one altered field of one record.
fn every_altered_field_is_noticed(wal: &Wal) -> Result<()> {
    let alterations: [fn(&mut DumpedRecord); 7] = [
        |record| record.start = record.start.advance(8),
        |record| record.prev = Lsn(record.prev.0 - 8),
        |record| record.rmgr.push('x'),
        |record| record.xid ^= 1,
        |record| record.total_length += 1,
        |record| record.length_without_images -= 1,
        |record| record.blocks += 1,
    ];
    const AT: u64 = 10_000;
    for alter in alterations {
        let spoiled = wal.compare(|number, record| {
            if number == AT {
                alter(record);
            }
        });
        let error = spoiled.err().context("an altered field was not noticed")?.to_string();
        ensure!(error.starts_with(&format!("record {AT}: ")), "not for the altered field: {error}");
    }
    println!("{} of {} altered fields noticed", alterations.len(), alterations.len());
    Ok(())
}

/// A bit inside a record.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The record.
    start: Lsn,
    end: Lsn,
    /// Where the bit's byte lies, and what it is.
    byte: Lsn,
    value: u8,
    bit: u32,
}

/// Flips one bit at a time in a copy of the WAL around it, and reads that. The stream must end as
/// corrupt, at the record or before it. Without the flip it must give the record.
fn every_flipped_bit_is_found(wal: &Wal, count: usize, seed: Seed) -> Result<()> {
    let mut generator = seed.generator();
    let places = places_in(wal, count, &mut generator)?;
    ensure!(places.len() == count, "only {} places", places.len());
    let mut found = 0;
    let mut faults = BTreeMap::<String, u32>::new();
    for place in places {
        // Not before the segment: the one before may end in the fill of a switch, where no stream
        // can begin.
        let segment_size = wal.segments.size();
        let segment = segment_size.start_of(segment_size.segment_of(place.start));
        let start = Lsn(page_start(place.start).0.saturating_sub(PAGES_BEFORE)).max(segment);
        let end = page_start(place.end).advance(PAGES_AFTER);
        let mut bytes = Vec::new();
        wal.segments.read(start, end, 64 << 10, |piece| {
            bytes.extend_from_slice(piece);
            Ok(true)
        })?;
        let (stop, reached) = read_window(wal, start, &bytes, &mut generator)?;
        ensure!(stop.is_none(), "{place:?}: without a flip: {stop:?}");
        ensure!(reached >= place.start, "{place:?}: without a flip only {reached} was reached");

        let at = usize::try_from(place.byte.bytes_since(start))?;
        ensure!(bytes[at] == place.value, "{place:?}: its byte is not where it should be");
        bytes[at] ^= 1 << place.bit;
        let (stop, reached) = read_window(wal, start, &bytes, &mut generator)?;
        let stop = stop.with_context(|| format!("{place:?}: not found"))?;
        ensure!(stop.kind == StopKind::Corrupt, "{place:?}: {stop}");
        ensure!(stop.at <= place.start && reached < place.start, "{place:?}: found late: {stop}");
        found += 1;
        let fault = format!("{:?}", stop.fault);
        let kind = fault.split([' ', '{']).next().unwrap_or_default();
        *faults.entry(kind.to_owned()).or_default() += 1;
    }
    println!("{count} bits flipped, {found} found, as {faults:?}");
    Ok(())
}

/// How much WAL around a place is read, in bytes. After it, some pages: a flipped length can reach
/// into the next one, whose header then contradicts it.
const PAGES_BEFORE: u64 = 32 * WAL_PAGE_SIZE as u64;
const PAGES_AFTER: u64 = 4 * WAL_PAGE_SIZE as u64;

/// Chooses bits in records, each record as likely as any other (reservoir sampling). The last pages
/// of all WAL are left out: there, no later page can tell a flipped length from an unfinished record.
fn places_in(wal: &Wal, count: usize, generator: &mut StdRng) -> Result<Vec<Place>> {
    let mut places: Vec<Place> = Vec::new();
    let mut seen = 0;
    wal.read(|raw| {
        if page_start(raw.end).advance(PAGES_AFTER) > wal.last_record {
            return Ok(());
        }
        seen += 1;
        let slot =
            if places.len() < count { places.len() } else { generator.random_range(0..seen) };
        if slot < count {
            let offset = generator.random_range(0..raw.bytes.len());
            let place = Place {
                start: raw.start,
                end: raw.end,
                byte: position_of(raw.start, u32::try_from(offset)?, wal.segments.size()),
                value: raw.bytes[offset],
                bit: generator.random_range(0..8),
            };
            places.truncate(count);
            if slot == places.len() {
                places.push(place);
            } else {
                places[slot] = place;
            }
        }
        Ok(())
    })?;
    Ok(places)
}

/// Reads a piece of WAL, pushed in random cuts, all of it known to exist. Gives how the stream
/// stopped, if it did, and the start of the last record it gave.
fn read_window(
    wal: &Wal,
    start: Lsn,
    mut bytes: &[u8],
    generator: &mut StdRng,
) -> Result<(Option<Stop>, Lsn)> {
    let mut stream = wal.stream(start, start.advance(bytes.len() as u64));
    let mut last = Lsn::INVALID;
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at(generator.random_range(1..=bytes.len().min(20_000)));
        bytes = rest;
        stream.push(piece);
        let stop = drain(&mut stream, &mut |raw| {
            last = raw.start;
            Ok(())
        })?;
        if stop.is_some() {
            return Ok((stop, last));
        }
    }
    Ok((None, last))
}
