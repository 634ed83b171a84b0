//! `walferry waldump` beside `pg_waldump`: the same records in the same words, whatever the options, from
//! whichever files; and where there is no more, why.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use integration::agent::binary_in;
use integration::process::{send_signal, wait_for_exit, wait_until};
use integration::segments::{end_of, position_of};
use integration::{Cluster, ClusterOptions, DumpedRecord, PATIENCE, Scratch, Seed, StopMode};
use rand::RngExt;
use rand::rngs::StdRng;
use rustix::process::Signal;
use walferry_archive::{Archive, ArchiveWriter, OsFiles, WriterOptions};
use walfmt::control::ControlFile;
use walfmt::{Lsn, SegmentName, SegmentNumber, SegmentSize, Timeline};

const SEGMENT: SegmentSize = SegmentSize::DEFAULT;

#[test]
fn every_option_prints_what_pg_waldump_prints() -> Result<()> {
    let wal = Wal::write(&[])?;
    let mut generator = Seed::take("options of waldump", 6).generator();
    let (mut combinations, mut lines, mut empty, mut failed) = (0, 0, 0, 0);
    for _ in 0..150 {
        let options = wal.options(&mut generator);
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let zone = ["UTC", "America/New_York", "Asia/Kolkata"][generator.random_range(0..3)];
        let theirs = wal.theirs(&wal.directory, zone, &options)?;
        let ours = wal.ours(&wal.directory, zone, &options)?;
        same(&theirs, &ours).with_context(|| format!("{options:?} in {zone}"))?;
        // It fails at every end of WAL; we do only where what was asked for is not there.
        if theirs.exit == 0 {
            ensure!(ours.exit == 0, "{options:?}: exit {}: {}", ours.exit, ours.stderr);
        }
        combinations += 1;
        lines += theirs.stdout.len();
        empty += u32::from(theirs.stdout.is_empty());
        failed += u32::from(theirs.exit != 0);
    }
    println!(
        "{combinations} combinations, {lines} lines; {empty} print none, {failed} end pg_waldump with an error"
    );
    ensure!(lines > 100_000, "too little was printed");

    // The control: one record fewer, or another one, is seen.
    let start = wal.start.to_string();
    let theirs = wal.theirs(&wal.directory, "UTC", &["-s", &start, "-n", "1000"])?;
    let fewer = wal.ours(&wal.directory, "UTC", &["-s", &start, "-n", "999"])?;
    ensure!(same(&theirs, &fewer).is_err(), "a missing record is not seen");
    let other = wal.records[1].start.to_string();
    let other = wal.ours(&wal.directory, "UTC", &["-s", &other, "-n", "1000"])?;
    ensure!(same(&theirs, &other).is_err(), "another record is not seen");
    wal.json()?;
    wal.wrong_usage()
}

#[test]
fn archives_and_partial_files_read_as_segments_do() -> Result<()> {
    let wal = Wal::write(&[])?;
    let start = wal.start.to_string();
    let theirs = wal.theirs(&wal.directory, "UTC", &["-s", &start])?;

    let root = wal.scratch.directory("archive")?;
    wal.fill_archive(&root)?;
    let archive = root.join(wal.control.system_identifier.to_string());
    for directory in [&root, &archive] {
        same(&theirs, &wal.ours(directory, "UTC", &["-s", &start])?)?;
    }
    let first = wal.name(wal.start);
    let path = archive.join(format!("{first}.zst"));
    let path = path.to_str().context("a UTF-8 path")?;
    let theirs_first = wal.theirs(&wal.directory, "UTC", &[&first])?;
    same(&theirs_first, &run(wal.command("UTC").arg(path))?)?;
    same(&theirs_first, &run(wal.command("UTC").args(["-p"]).arg(&archive).arg(&first))?)?;
    // The configuration's own archive.
    let config = format!(
        "[node]\nname = \"a\"\n[source]\npeers = [\"127.0.0.1:1\"]\n[archive]\ndirectory = \"{}\"\n",
        root.display()
    );
    let config = wal.scratch.file("walferry.toml", config)?;
    let ours = run(wal.command("UTC").arg("--config").arg(&config).args(["-s", &start]))?;
    same(&theirs, &ours)?;

    // The last segment is partial, and cut off behind the last record.
    let partial = wal.copy("partial")?;
    let last = wal.name(wal.end);
    fs::rename(partial.join(&last), partial.join(format!("{last}.partial")))?;
    let file = OpenOptions::new().write(true).open(partial.join(format!("{last}.partial")))?;
    same(&theirs, &wal.ours(&partial, "UTC", &["-s", &start])?)?;
    file.set_len(SEGMENT.offset_of(wal.end))?;
    let ours = wal.ours(&partial, "UTC", &["-s", &start])?;
    same(&theirs, &ours)?;
    ensure!(ours.exit == 0 && ours.stderr.contains(&wal.end.to_string()), "{ours:?}");
    println!(
        "{} records from .zst and .partial files: {}",
        theirs.stdout.len(),
        ours.stderr.trim()
    );

    // The control: it is the files that were read.
    let spoiled = archive.join(format!("{first}.zst"));
    let bytes = fs::read(&spoiled)?;
    fs::write(&spoiled, &bytes[..bytes.len() / 2])?;
    let ours = wal.ours(&archive, "UTC", &["-s", &start])?;
    ensure!(same(&theirs, &ours).is_err() && ours.exit != 0, "half a file is as good as all");
    println!("half a file, exit {}: {}", ours.exit, ours.stderr.trim());
    Ok(())
}

#[test]
fn it_says_where_and_why_it_stops() -> Result<()> {
    let wal = Wal::write(&[])?;
    let start = wal.start.to_string();
    let ours = wal.ours(&wal.directory, "UTC", &["-s", &start])?;
    ensure!(ours.exit == 0 && ours.stderr.contains(&wal.end.to_string()), "{ours:?}");
    println!("the end, exit 0: {}", ours.stderr.trim());
    let beyond = wal.end.advance(1 << 20).to_string();
    let ours = wal.ours(&wal.directory, "UTC", &["-s", &start, "-e", &beyond])?;
    ensure!(ours.exit == 3, "{ours:?}");
    let ours = wal.ours(&wal.directory, "UTC", &["-s", &beyond])?;
    ensure!(ours.exit == 3 && ours.stdout.is_empty(), "{ours:?}");
    println!("no record, exit 3: {}", ours.stderr.trim());

    // In the middle of the last record: zeros follow.
    let last = &wal.records[wal.records.len() - 1];
    let torn = wal.copy("torn")?;
    let file = OpenOptions::new().write(true).open(torn.join(wal.name(last.start)))?;
    let middle = SEGMENT.offset_of(position_of(last.start, last.total_length / 2, SEGMENT));
    file.write_all_at(&vec![0; (SEGMENT.bytes() - middle) as usize], middle)?;
    let ours = wal.ours(&torn, "UTC", &["-s", &start])?;
    ensure!(ours.exit == 0 && ours.stderr.contains(&last.start.to_string()), "{ours:?}");
    ensure!(ours.stdout.len() == wal.records.len() - 1, "{} records", ours.stdout.len());
    println!("in a record, exit 0: {}", ours.stderr.trim());

    // The same in a segment that others follow is damage.
    let first_segment = SEGMENT.segment_of(wal.start);
    let here = |record: &&DumpedRecord| SEGMENT.segment_of(record.start) == first_segment;
    let of_first: Vec<_> = wal.records.iter().filter(here).collect();
    let hit = of_first[of_first.len() / 2];
    let damaged = wal.copy("damaged")?;
    let file = OpenOptions::new().read(true).write(true).open(damaged.join(wal.name(hit.start)))?;
    flip_checksum(&file, hit)?;
    let ours = wal.ours(&damaged, "UTC", &["-s", &start])?;
    ensure!(ours.exit == 1 && ours.stderr.contains(&hit.start.to_string()), "{ours:?}");
    let before = wal.records.iter().filter(|record| record.start < hit.start).count();
    ensure!(ours.stdout.len() == before, "{} records, not {before}", ours.stdout.len());
    println!("damage, exit 1: {}", ours.stderr.trim());

    // Also in the last segment, if it goes on there; whoever follows does not wait for what never comes.
    let last_segment = SEGMENT.segment_of(last.start);
    let of_last: Vec<_> = wal
        .records
        .iter()
        .filter(|record| SEGMENT.segment_of(record.start) == last_segment)
        .collect();
    let hit = of_last[of_last.len() / 4];
    ensure!(last.start.bytes_since(hit.start) > 4 * 8192, "the last segment is too short");
    let damaged = wal.copy("damaged-last")?;
    let file = OpenOptions::new().read(true).write(true).open(damaged.join(wal.name(hit.start)))?;
    flip_checksum(&file, hit)?;
    for options in [&["-s", &start][..], &["-q", "-s", &start], &["-f", "-s", &start]] {
        let ours = wal.ours(&damaged, "UTC", options)?;
        ensure!(
            ours.exit == 1 && ours.stderr.contains(&hit.start.to_string()),
            "{options:?}: {ours:?}"
        );
        println!("damage in the last segment, {options:?}, exit 1: {}", ours.stderr.trim());
    }

    let missing = wal.copy("missing")?;
    let gone = SegmentName::new(Timeline(1), first_segment.next(), SEGMENT).to_string();
    fs::remove_file(missing.join(&gone))?;
    let ours = wal.ours(&missing, "UTC", &["-s", &start])?;
    ensure!(ours.exit == 3 && ours.stderr.contains(&gone), "{ours:?}");
    println!("a gap, exit 3: {}", ours.stderr.trim());
    let ours = wal.ours(&missing, "UTC", &["-f", "-s", &start])?;
    ensure!(ours.exit == 3 && ours.stderr.contains(&gone), "followed: {ours:?}");

    // A history file of others that cannot be read is told, and does not stand in the way.
    fs::write(wal.directory.join("00000009.history"), "garbage")?;
    let ours = wal.ours(&wal.directory, "UTC", &["-s", &start, "-n", "1", "--json"])?;
    fs::remove_file(wal.directory.join("00000009.history"))?;
    ensure!(ours.exit == 0 && ours.stderr.contains("00000009.history"), "{ours:?}");

    // Whatever is told beside records, each line of JSON is an object.
    let within = wal.start.advance(8).to_string();
    let ours = wal.ours(&wal.directory, "UTC", &["-s", &within, "-n", "1", "--json"])?;
    ensure!(ours.stdout.len() == 1 && ours.stdout[0].starts_with('{'), "{ours:?}");
    Ok(())
}

#[test]
fn timelines_are_followed() -> Result<()> {
    let mut wal = Wal::write(&[])?;
    let data = wal.cluster.data_directory().to_owned();
    // A server that has recovered all there is in an archive begins a new timeline.
    fs::write(data.join("recovery.signal"), "")?;
    wal.cluster.configure(&["restore_command = '/bin/false'"])?;
    wal.cluster.start()?;
    wal.cluster.wait_recovered()?;
    wal.cluster.pgbench_run(&["-c", "2", "-t", "300"])?;
    wal.cluster.sql("select pg_switch_wal()")?;
    wal.cluster.pgbench_run(&["-c", "2", "-t", "300"])?;
    let end = wal.cluster.sql("select pg_current_wal_flush_lsn()")?;
    wal.cluster.stop(StopMode::Immediate)?;

    let directory = wal.cluster.wal_directory();
    let history = fs::read_to_string(directory.join("00000002.history"))?;
    let left = history.split_whitespace().nth(1).context("a position")?.to_owned();
    let start = wal.start.to_string();
    let before = wal.theirs(&directory, "UTC", &["-t", "1", "-s", &start, "-e", &left])?;
    let behind = wal.theirs(&directory, "UTC", &["-t", "2", "-s", &left, "-e", &end])?;
    let mut all = before.stdout.clone();
    // It says so when the first record is not exactly at `-s`: where the timeline was left at a page's end.
    all.extend(behind.stdout.into_iter().filter(|line| line.starts_with("rmgr: ")));
    let ours = wal.ours(&directory, "UTC", &["-s", &start, "-e", &end])?;
    same_lines(&all, &ours.stdout)?;
    ensure!(before.stdout.len() > 1000 && all.len() > before.stdout.len() + 1000, "few records");
    println!("{} records, timeline 1 left at {left} after {}", all.len(), before.stdout.len());
    // The control: on one timeline it stays.
    let ours = wal.ours(&directory, "UTC", &["-t", "1", "-s", &start])?;
    same(&before, &ours)?;
    let segments = [
        wal.name(wal.start),
        SegmentName::new(Timeline(2), SEGMENT.segment_before(end.parse()?), SEGMENT).to_string(),
    ];
    let ours =
        run(wal.command("UTC").arg("-p").arg(&directory).args(&segments).args(["-e", &end]))?;
    same_lines(&all, &ours.stdout)?;
    Ok(())
}

#[test]
fn it_follows_a_server_that_writes() -> Result<()> {
    let mut wal = Wal::write(&["max_wal_size = 64MB"])?;
    wal.cluster.start()?;
    let directory = wal.cluster.wal_directory();
    let start = wal.cluster.sql("select pg_current_wal_insert_lsn()")?;
    let output = wal.scratch.path().join("followed");
    let mut follower = wal
        .command("UTC")
        .arg("-p")
        .arg(&directory)
        .args(["-f", "-s", &start])
        .stdout(File::create(&output)?)
        .stderr(Stdio::null())
        .spawn()?;
    for round in 0..4 {
        wal.cluster.pgbench_run(&["-c", "2", "-t", "200"])?;
        wal.cluster.sql("select pg_switch_wal()")?;
        let marker = format!("round {round}");
        let sql = format!("select pg_logical_emit_message(true, 'follow', '{marker}')");
        let lsn: Lsn = wal.cluster.sql(&sql)?.parse()?;
        let end = format!("{:X}/{:08X}", lsn.0 >> 32, lsn.0 & 0xFFFF_FFFF);
        wait_until("the message is printed", PATIENCE, || {
            Ok(fs::read_to_string(&output)?.contains(&end))
        })?;
    }
    let end = wal.cluster.sql("select pg_current_wal_flush_lsn()")?;
    let theirs = wal.theirs(&directory, "UTC", &["-s", &start, "-e", &end])?;
    // The server writes by itself, too: behind the last message, and beyond this end.
    wait_until("all up to the end is printed", PATIENCE, || {
        Ok(fs::read_to_string(&output)?.matches('\n').count() >= theirs.stdout.len())
    })?;
    send_signal(follower.id(), Signal::INT)?;
    let status = wait_for_exit(&mut follower, PATIENCE)?;
    ensure!(status.success(), "{status}");
    let followed: Vec<String> = fs::read_to_string(&output)?.lines().map(str::to_owned).collect();
    ensure!(followed.len() >= theirs.stdout.len(), "{} lines", followed.len());
    same_lines(&theirs.stdout, &followed[..theirs.stdout.len()])?;
    println!("{} records while they were written", theirs.stdout.len());
    Ok(())
}

/// The WAL of a server that has been stopped.
struct Wal {
    cluster: Cluster,
    /// A copy of its `pg_wal`.
    directory: PathBuf,
    control: ControlFile,
    start: Lsn,
    /// Behind the last record.
    end: Lsn,
    records: Vec<DumpedRecord>,
    relations: Vec<String>,
    walferry: PathBuf,
    scratch: Scratch,
}

/// What a program printed.
#[derive(Debug)]
struct Printed {
    stdout: Vec<String>,
    stderr: String,
    exit: i32,
}

impl Wal {
    fn write(settings: &[&str]) -> Result<Self> {
        let scratch = Scratch::new()?;
        let mut options = ClusterOptions { fsync: false, ..ClusterOptions::default() };
        options.settings.extend(settings.iter().map(|&setting| setting.to_owned()));
        let mut cluster = Cluster::start_new(&scratch, "server", &options)?;
        let copied = scratch.path().join("copied");
        let script = format!(
            "\\set rows 5000\n\\set copy_file '{}'\n{}",
            copied.display(),
            include_str!("sql/many_kinds.sql")
        );
        let script = scratch.file("many_kinds.sql", script)?;
        cluster.endpoint().sql_file("postgres", &script)?;
        cluster.pgbench_init(1, &[])?;
        cluster.pgbench_run(&["-c", "4", "-t", "200"])?;
        cluster.sql("select pg_switch_wal()")?;
        cluster.pgbench_run(&["-c", "4", "-t", "200"])?;
        cluster.stop(StopMode::Fast)?;

        let control = fs::read(cluster.data_directory().join("global/pg_control"))?;
        let control = ControlFile::from_bytes(&control)?;
        let mut wal = Self {
            directory: cluster.wal_directory(),
            cluster,
            control,
            start: SEGMENT.start_of(SegmentNumber(1)),
            end: Lsn::INVALID,
            records: Vec::new(),
            relations: Vec::new(),
            walferry: binary_in(&scratch)?,
            scratch,
        };
        wal.directory = wal.copy("wal")?;
        let printed = wal.theirs(&wal.directory, "UTC", &["-s", &wal.start.to_string()])?;
        let mut relations = BTreeMap::<&str, u32>::new();
        for line in &printed.stdout {
            wal.records.push(DumpedRecord::parse(line)?);
            if let Some((_, block)) = line.split_once("blkref #0: rel ") {
                *relations.entry(block.split(' ').next().unwrap_or_default()).or_default() += 1;
            }
        }
        wal.relations = relations.into_keys().map(str::to_owned).collect();
        let last = wal.records.last().context("no records")?;
        wal.end = end_of(last.start, last.total_length, SEGMENT);
        Ok(wal)
    }

    fn copy(&self, name: &str) -> Result<PathBuf> {
        let directory = self.scratch.directory(name)?;
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                let copy = directory.join(entry.file_name());
                fs::copy(entry.path(), &copy)?;
                self.scratch.account().own(&copy)?;
            }
        }
        Ok(directory)
    }

    fn name(&self, lsn: Lsn) -> String {
        SegmentName::new(Timeline(1), SEGMENT.segment_of(lsn), SEGMENT).to_string()
    }

    fn fill_archive(&self, root: &Path) -> Result<()> {
        let identifier = self.control.system_identifier;
        let archive = Archive::open(Arc::new(OsFiles), root, identifier, SEGMENT)?;
        let options = WriterOptions::default();
        let mut writer = ArchiveWriter::open(&archive, Timeline(1), self.start, options)?;
        let mut position = self.start;
        while position < self.end {
            let bytes = fs::read(self.directory.join(self.name(position)))?;
            let length = self.end.bytes_since(position).min(bytes.len() as u64) as usize;
            for piece in bytes[..length].chunks(100_000) {
                writer.append(position, piece)?;
                writer.flush()?;
                position = position.advance(piece.len() as u64);
            }
        }
        writer.sync()?;
        Ok(())
    }

    fn theirs(&self, directory: &Path, zone: &str, options: &[&str]) -> Result<Printed> {
        let program = self.cluster.endpoint().binaries.program("pg_waldump");
        let mut command = self.scratch.account().command(program);
        run(command.env("TZ", zone).arg("-p").arg(directory).args(options))
    }

    fn command(&self, zone: &str) -> Command {
        let mut command = self.scratch.account().command(&self.walferry);
        command.env("TZ", zone).arg("waldump");
        command
    }

    fn ours(&self, directory: &Path, zone: &str, options: &[&str]) -> Result<Printed> {
        run(self.command(zone).arg("-p").arg(directory).args(options))
    }

    /// Some of the options, with values that occur.
    fn options(&self, generator: &mut StdRng) -> Vec<String> {
        let mut options = Vec::new();
        let mut add = |words: &[&str]| options.extend(words.iter().map(|&word| word.to_owned()));
        let mut some = |one_in: u32| generator.random_range(0..one_in) == 0;
        let (from_segment, has_end, exact) = (some(4), some(2), some(2));
        let flags = [some(6), some(4), some(4), some(5), some(3), some(5), some(4), some(6)];
        let two_rmgrs = some(2);
        let mut record = || &self.records[generator.random_range(0..self.records.len())];
        let (one, other) = (record(), record());
        let (first, last) = if one.start < other.start { (one, other) } else { (other, one) };
        if from_segment {
            add(&[&self.name(first.start)]);
            if has_end {
                add(&[&self.name(last.start)]);
            }
        } else {
            let shift = |lsn: Lsn| if exact { lsn } else { Lsn(lsn.0 - 3) };
            add(&["-s", &shift(first.start).to_string()]);
            if has_end {
                add(&["-e", &shift(last.start).to_string()]);
            }
        }
        let [limit, rmgr, images, xid, details, relation, stats, fork] = flags;
        if rmgr {
            add(&["-r", &one.rmgr.to_lowercase()]);
            if two_rmgrs {
                add(&["--rmgr", &other.rmgr]);
            }
        }
        if images {
            add(&["-w"]);
        }
        if xid {
            add(&["-x", &one.xid.to_string()]);
        }
        if details {
            add(&["-b"]);
        }
        let number = generator.random_range(0..self.relations.len());
        if relation {
            add(&["-R", &self.relations[number]]);
            if number % 2 == 0 {
                add(&["-B", &(number % 3).to_string()]);
            }
        }
        if fork {
            add(&["-F", ["main", "fsm", "vm", "init"][number % 4]]);
        }
        if limit {
            add(&["-n", &(number % 50).to_string()]);
        }
        if stats {
            add(&[["-z", "--stats=record", "--stats"][number % 3]]);
        }
        options
    }

    /// One object for each record, with what `pg_waldump` says of it.
    fn json(&self) -> Result<()> {
        let ours = self.ours(&self.directory, "UTC", &["--json", "-s", &self.start.to_string()])?;
        ensure!(ours.stdout.len() == self.records.len(), "{} objects", ours.stdout.len());
        for (line, record) in ours.stdout.iter().zip(&self.records) {
            let object: serde_json::Value = serde_json::from_str(line)?;
            ensure!(object["lsn"] == record.start.to_string(), "{line}");
            ensure!(object["prev"] == record.prev.to_string(), "{line}");
            ensure!(object["rmgr"] == *record.rmgr, "{line}");
            ensure!(object["xid"] == record.xid, "{line}");
            ensure!(object["length"] == record.length_without_images, "{line}");
            ensure!(object["total_length"] == record.total_length, "{line}");
            let blocks = object["blocks"].as_array().context("blocks")?;
            ensure!(blocks.len() == record.blocks, "{line}");
        }
        println!("{} JSON objects say the same", self.records.len());
        Ok(())
    }

    fn wrong_usage(&self) -> Result<()> {
        let start = self.start.to_string();
        let first = self.name(self.start);
        for options in [
            &["-s", "nowhere"][..],
            &["-s", &start, "-B", "1"],
            &["-s", &start, "-r", "nobody"],
            &["-s", &start, "-R", "0/0/0"],
            &["-s", &start, "-t", "0"],
            &["-s", "0/9000000", &first],
            &[],
        ] {
            let ours = self.ours(&self.directory, "UTC", options)?;
            ensure!(ours.exit == 2 && ours.stdout.is_empty(), "{options:?}: {ours:?}");
            ensure!(self.theirs(&self.directory, "UTC", options)?.exit != 0, "{options:?}");
        }
        Ok(())
    }
}

fn run(command: &mut Command) -> Result<Printed> {
    let output = command.stdin(Stdio::null()).output()?;
    Ok(Printed {
        stdout: String::from_utf8(output.stdout)?.lines().map(str::to_owned).collect(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        exit: output.status.code().context("it was killed")?,
    })
}

fn flip_checksum(segment: &File, record: &DumpedRecord) -> Result<()> {
    let position = position_of(record.start, 20, SEGMENT);
    ensure!(SEGMENT.segment_of(position) == SEGMENT.segment_of(record.start), "in another file");
    let mut byte = [0];
    segment.read_exact_at(&mut byte, SEGMENT.offset_of(position))?;
    segment.write_all_at(&[byte[0] ^ 1], SEGMENT.offset_of(position))?;
    Ok(())
}

fn same(theirs: &Printed, ours: &Printed) -> Result<()> {
    same_lines(&theirs.stdout, &ours.stdout).with_context(|| ours.stderr.clone())
}

fn same_lines(theirs: &[String], ours: &[String]) -> Result<()> {
    for (number, (theirs, ours)) in theirs.iter().zip(ours).enumerate() {
        ensure!(theirs == ours, "line {}:\n{theirs}\n{ours}", number + 1);
    }
    ensure!(theirs.len() == ours.len(), "{} lines, ours {}", theirs.len(), ours.len());
    Ok(())
}
