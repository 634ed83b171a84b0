//! The archive's files, made by real agents from a real server's WAL: what the `zstd` program makes
//! of them is the segment that PostgreSQL's own `archive_command` kept aside, and one that is cut
//! anywhere goes on.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use integration::pair::{archived_segments, unpacked_equals};
use integration::process::wait_until;
use integration::{Agent, ClusterOptions, PATIENCE, Pair, Scratch, Seed};
use rand::RngExt;
use rand::rngs::StdRng;
use walferry_archive::frame::Piece;
use walferry_archive::{Archive, ArchiveWriter, CELL_BYTES, OsFiles, WriterOptions};
use walfmt::{Lsn, SegmentName, SegmentSize};

/// Both agents must have at least this many finished segments.
const SEGMENTS_MIN: usize = 6;

#[test]
fn finished_files_are_the_segments_and_cut_ones_go_on() -> Result<()> {
    let run =
        Run { segment_megabytes: 16, rounds: 1, bulk_inserts: 180, transactions_per_second: 130 };
    let archived = run.archive(1)?;
    // Every block boundary, and a sample of the places between.
    let file = archived.finished_file()?;
    let boundaries = file.boundaries();
    let middles: Vec<usize> = file.middles().into_iter().step_by(4).collect();
    file.cut_and_go_on(&boundaries, &middles)
}

#[test]
fn so_are_those_of_segments_of_one_megabyte() -> Result<()> {
    let run =
        Run { segment_megabytes: 1, rounds: 2, bulk_inserts: 1, transactions_per_second: 400 };
    let archived = run.archive(2)?;
    let file = archived.finished_file()?;
    file.cut_and_go_on(&file.boundaries(), &file.middles())
}

/// A leader under load and two agents that are stopped and killed.
struct Run {
    segment_megabytes: u32,
    /// How often each agent is stopped and killed.
    rounds: usize,
    /// How many bulk inserts come on 20 small transactions.
    bulk_inserts: u32,
    transactions_per_second: u32,
}

/// What a [`Run`] left behind.
struct Archived {
    pair: Pair,
    scratch: Scratch,
    size: SegmentSize,
    /// The last segment that is compared.
    last: String,
}

impl Run {
    /// Makes both archives and compares them with what `archive_command` kept.
    fn archive(&self, seed: u64) -> Result<Archived> {
        let scratch = Scratch::new()?;
        let options = ClusterOptions {
            wal_segment_megabytes: self.segment_megabytes,
            keep_segments: true,
            ..ClusterOptions::default()
        };
        let size = SegmentSize::new(self.segment_megabytes << 20).context("a segment size")?;
        let pair = Pair::start(&scratch, &options, 1)?;
        let mut archived = Archived { pair, scratch, size, last: String::new() };
        let mut generator = Seed::take("moments of restarts", seed).generator();
        archived.disturb(self, &mut generator)?;
        archived.compare(&mut generator)?;
        Ok(archived)
    }
}

impl Archived {
    /// Stops and kills both agents under load, each time after more than a segment of WAL, and
    /// switches segments in between.
    fn disturb(&mut self, run: &Run, generator: &mut StdRng) -> Result<()> {
        let Self { pair, scratch, .. } = self;
        pair.leader.sql("create table bulk (id int, filler text)")?;
        let script = scratch.file(
            "bulk.sql",
            "insert into bulk select g, repeat(md5(random()::text), 8) from generate_series(1, 400) g;",
        )?;
        let path = script.to_str().context("a path in UTF-8")?;
        let script = format!("{path}@{}", run.bulk_inserts);
        let rate = run.transactions_per_second.to_string();
        let arguments = ["-c", "3", "-T", "600", "-R", &rate, "-b", "tpcb-like@20", "-f", &script];
        let load = pair.leader.pgbench(&arguments)?;
        let grow = |pair: &mut Pair, generator: &mut StdRng| -> Result<()> {
            let begun = pair.flush_position()?;
            let bytes = self.size.bytes() * generator.random_range(110..160) / 100;
            wait_until("the load writes WAL", PATIENCE, || {
                Ok(pair.flush_position()? >= begun.advance(bytes))
            })?;
            // The follower has joined in again before the next disturbance.
            pair.follower.wait_for_position("durable", begun, PATIENCE)
        };
        for _ in 0..run.rounds {
            grow(pair, generator)?;
            pair.follower.stop()?;
            pair.follower.start()?;
            grow(pair, generator)?;
            pair.leader_agent.kill()?;
            pair.leader_agent.start()?;
            grow(pair, generator)?;
            pair.leader.sql("select pg_switch_wal()")?;
            grow(pair, generator)?;
            pair.follower.kill()?;
            pair.follower.start()?;
            grow(pair, generator)?;
            pair.leader_agent.stop()?;
            pair.leader_agent.start()?;
        }
        grow(pair, generator)?;
        load.stop()
    }

    /// Compares every finished file of both agents with the segment that the server kept.
    fn compare(&mut self, generator: &mut StdRng) -> Result<()> {
        let last = "select pg_walfile_name(pg_current_wal_insert_lsn())";
        self.last = self.pair.leader.sql(last)?;
        self.pair.leader.sql("select pg_switch_wal()")?;
        let end = self.pair.flush_position()?;
        let kept = self.kept()?.to_owned();
        wait_until("the last segment is kept", PATIENCE, || Ok(kept.join(&self.last).exists()))?;
        self.pair.leader_agent.wait_for_position("durable", end, PATIENCE)?;
        self.pair.follower.wait_for_position("durable", end, PATIENCE)?;

        let on_leader = self.compare_agent(&self.pair.leader_agent)?;
        let on_follower = self.compare_agent(&self.pair.follower)?;
        println!(
            "segments of {} MB equal to those that archive_command kept: {on_leader} on the \
             leader, {on_follower} on the follower",
            self.size.bytes() >> 20
        );
        ensure!(on_leader.min(on_follower) >= SEGMENTS_MIN, "too few segments");

        // Where an agent was restarted, a frame was cut or compressed anew: other bytes, same WAL.
        let leaders = self.finished_files(&self.pair.leader_agent)?;
        let (mut different, mut cut_frames) = (0, [0, 0]);
        for (name, file) in &self.finished_files(&self.pair.follower)? {
            let theirs = leaders.get(name).with_context(|| format!("the leader has no {name}"))?;
            let (ours, theirs) = (fs::read(file)?, fs::read(theirs)?);
            different += usize::from(ours != theirs);
            // Without a cut there is one frame per cell.
            let cells = usize::try_from(self.size.bytes() / CELL_BYTES).expect("few cells");
            cut_frames[0] += frames_of(&theirs)? - cells;
            cut_frames[1] += frames_of(&ours)? - cells;
        }
        println!(
            "{different} of the follower's files are not the leader's byte for byte; frames that \
             were ended early: {} on the leader, {} on the follower",
            cut_frames[0], cut_frames[1]
        );
        ensure!(different > 0, "nothing was compressed anew: the restarts did nothing");
        ensure!(cut_frames.iter().all(|frames| *frames > 0), "no frame was cut");
        self.check_control(generator)
    }

    /// An agent's files by segment, up to the last that is compared.
    fn finished_files(&self, agent: &Agent) -> Result<BTreeMap<String, PathBuf>> {
        let mut files = archived_segments(agent)?;
        files.retain(|name, _| *name <= self.last);
        Ok(files)
    }

    /// How many finished files an agent has; each is the server's segment, and none
    /// is missing.
    fn compare_agent(&self, agent: &Agent) -> Result<usize> {
        let archived = self.finished_files(agent)?;
        let first = archived.keys().next().context("the archive is empty")?;
        let mut names = Vec::new();
        for entry in fs::read_dir(self.kept()?)? {
            let name = entry?.file_name().into_string().unwrap_or_default();
            if name.parse::<SegmentName>().is_ok() && *first <= name && name <= self.last {
                names.push(name);
            }
        }
        for name in &names {
            let file = archived.get(name).with_context(|| format!("{name} is not archived"))?;
            let same = unpacked_equals(file, &self.kept()?.join(name))?;
            ensure!(same, "{} is not the segment that the server wrote", file.display());
        }
        let finished = archived.len();
        ensure!(names.len() == finished, "{finished} files for {} segments", names.len());
        Ok(finished)
    }

    /// One byte wrong in a copy of a file is found by the same comparison.
    fn check_control(&self, generator: &mut StdRng) -> Result<()> {
        let archived = self.finished_files(&self.pair.follower)?;
        let copy = self.scratch.path().join("spoiled.zst");
        let mut found = 0;
        for (name, file) in &archived {
            let mut bytes = fs::read(file)?;
            let at = generator.random_range(0..bytes.len());
            bytes[at] ^= 0xFF;
            fs::write(&copy, bytes)?;
            let same = unpacked_equals(&copy, &self.kept()?.join(name)).unwrap_or(false);
            ensure!(!same, "{name}: nothing is said of a wrong byte at {at}");
            found += 1;
        }
        println!("control: one wrong byte in a copy of each of {found} files, found each time");
        Ok(())
    }

    fn kept(&self) -> Result<&Path> {
        self.pair.leader.kept_segments().context("the server keeps its segments")
    }

    /// The finished file of the leader that was written in the most blocks: the agent flushes after
    /// each group of records, so that is one from the thick of the load.
    fn finished_file(&self) -> Result<FinishedFile> {
        let mut files = Vec::new();
        for (name, path) in &self.finished_files(&self.pair.leader_agent)? {
            let (bytes, wal) = (fs::read(path)?, fs::read(self.kept()?.join(name))?);
            let blocks = pieces_of(&bytes)?.iter().map(|(at, piece)| *at..at + piece.len).collect();
            files.push(FinishedFile { name: name.parse()?, size: self.size, bytes, wal, blocks });
        }
        files.into_iter().max_by_key(|file| file.blocks.len()).context("no finished file")
    }
}

/// A finished file of an archive, and the segment it stands for.
struct FinishedFile {
    name: SegmentName,
    size: SegmentSize,
    bytes: Vec<u8>,
    wal: Vec<u8>,
    /// Where its blocks stand, frame headers and checksums included.
    blocks: Vec<Range<usize>>,
}

/// The blocks of a file, each with where it begins.
fn pieces_of(file: &[u8]) -> Result<Vec<(usize, Piece)>> {
    let (mut pieces, mut at, mut in_frame) = (Vec::new(), 0, false);
    while at < file.len() {
        let piece = Piece::parse(&file[at..], in_frame)?.context("a file ends inside a block")?;
        pieces.push((at, piece));
        (at, in_frame) = (at + piece.len, !piece.ends_frame);
    }
    Ok(pieces)
}

fn frames_of(file: &[u8]) -> Result<usize> {
    Ok(pieces_of(file)?.iter().filter(|(_, piece)| piece.ends_frame).count())
}

impl FinishedFile {
    fn boundaries(&self) -> Vec<usize> {
        std::iter::once(0).chain(self.blocks.iter().map(|block| block.end)).collect()
    }

    fn middles(&self) -> Vec<usize> {
        self.blocks.iter().map(|block| block.start + block.len() / 2).collect()
    }

    /// Cuts the file at each of these places, lets the archive's writer go on with the rest of the
    /// real segment, and compares what the file then holds with that segment.
    fn cut_and_go_on(&self, boundaries: &[usize], middles: &[usize]) -> Result<()> {
        let begun = Instant::now();
        let mut cuts = [boundaries, middles].concat();
        cuts.sort_unstable();
        // As many threads as a small machine has cores.
        let halves = cuts.chunks(cuts.len().div_ceil(2));
        let ends = thread::scope(|scope| {
            let threads: Vec<_> =
                halves.map(|cuts| scope.spawn(|| self.go_on_after_each(cuts))).collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Result<Vec<Lsn>>>| {
                thread.join().expect("no thread panics")
            };
            threads.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?
        .concat();

        // A cut costs the block it goes through, and no other: what is left ends where it ends
        // after a cut at the boundary before, and each whole block adds to it. Only the empty block
        // that ends a cut frame holds nothing.
        for (pair, end) in cuts.windows(2).zip(ends.windows(2)) {
            let whole =
                self.blocks.iter().filter(|block| pair[0] < block.end && block.end <= pair[1]);
            let whole: Vec<_> = whole.collect();
            let grows = whole.iter().any(|block| block.len() > EMPTY_LAST_BLOCK_BYTES);
            ensure!(end[0] <= end[1], "a cut at {} leaves more than one at {}", pair[0], pair[1]);
            ensure!(!grows || end[0] < end[1], "a whole block before {} is lost", pair[1]);
            ensure!(!whole.is_empty() || end[0] == end[1], "part of a block before {}", pair[1]);
        }
        println!(
            "{}: {} bytes in {} blocks, cut at {} block boundaries and {} times inside a block; \
             each went on to the whole segment ({:.1} s)",
            self.name,
            self.bytes.len(),
            self.blocks.len(),
            boundaries.len(),
            middles.len(),
            begun.elapsed().as_secs_f64(),
        );
        Ok(())
    }

    /// Gives where the WAL ended that each cut left.
    fn go_on_after_each(&self, cuts: &[usize]) -> Result<Vec<Lsn>> {
        let root = tempfile::tempdir()?;
        let archive = Archive::open(Arc::new(OsFiles), root.path(), 1, self.size)?;
        let path = archive.dir().join(format!("{}.zst", self.name));
        let start = self.size.start_of(self.name.number(self.size).context("a segment")?);
        let segment = root.path().join("segment");
        fs::write(&segment, &self.wal)?;
        let mut ends = Vec::new();
        for (index, &cut) in cuts.iter().enumerate() {
            let what = format!("{} cut at {cut}", self.name);
            for file in fs::read_dir(archive.dir())? {
                fs::remove_file(file?.path())?;
            }
            fs::write(&path, &self.bytes[..cut])?;
            let options = WriterOptions::default();
            let mut writer = ArchiveWriter::open(&archive, self.name.timeline, start, options)
                .with_context(|| what.clone())?;
            let end = writer.content_end();
            let rest = usize::try_from(end.bytes_since(start)).expect("within a segment");
            writer.append(end, &self.wal[rest..])?;
            writer.sync()?;
            drop(writer);
            ensure!(archive.read_segment(self.name)? == self.wal, "{what}: another segment");
            ends.push(end);
            if index % 32 == 0 {
                ensure!(unpacked_equals(&path, &segment)?, "{what}: another segment, says zstd");
                // And it is not equal to whatever is there.
                let mut bytes = fs::read(&path)?;
                bytes[cut / 2] ^= 0xFF;
                fs::write(&path, bytes)?;
                let spoiled = archive.read_segment(self.name).is_ok_and(|wal| wal == self.wal);
                ensure!(!spoiled, "{what}: nothing is said of a wrong byte");
            }
        }
        Ok(ends)
    }
}

/// Header and checksum.
const EMPTY_LAST_BLOCK_BYTES: usize = 7;
