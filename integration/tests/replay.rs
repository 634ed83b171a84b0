//! Replay that has to stop, and replay that is killed.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::compare::{Comparison, digests_of};
use integration::metrics::http_get;
use integration::{ClusterOptions, PATIENCE, Pair, Scratch, Seed, StopMode, Waldump};
use rand::RngExt;
use walfmt::{BLOCK_SIZE, Lsn};

const KILLS: usize = 4;
/// Rows that are written while the follower is dead: 4 MB of WAL.
const ROWS_MEANWHILE: u32 = 4000;

#[test]
fn what_cannot_be_replayed_stops_replay_and_nothing_else() -> Result<()> {
    let scratch = Scratch::new()?;
    let options = ClusterOptions {
        wal_segment_megabytes: 1,
        keep_segments: true,
        ..ClusterOptions::default()
    };
    let mut pair = Pair::start(&scratch, &options, 1)?;
    pair.leader.pgbench_run(&["-c", "2", "-t", "200"])?;
    // Who has stopped writes out no page any more; a restart point does before.
    pair.restart_point_beyond(pair.flush_position()?)?;
    pair.leader.pgbench_run(&["-c", "2", "-t", "200"])?;
    let before = pair.catch_up(PATIENCE)?;
    assert_eq!(pair.follower.state_of("replay")?, "streaming");
    assert_eq!(http_get(pair.follower.config.metrics_port, "/healthz")?, "ok\n");

    pair.leader.sql("create table stops_replay (n int)")?;
    pair.leader.sql("create index on stops_replay using hash (n)")?;
    let stop = hash_record(&pair, before)?;
    pair.follower.wait_for_state("replay", "stopped")?;
    let words = ["Hash", "opcode 0x00", &format!("at {stop}")];
    let status = pair.follower.run_verb("status", &[])?;
    let health = http_get(pair.follower.config.metrics_port, "/healthz");
    let health = format!("{:#}", health.expect_err("a stopped stage is not healthy"));
    println!("the record is at {stop}\n{status}\n{health}");
    for text in [&status, &health] {
        assert!(words.iter().all(|word| text.contains(word)), "{words:?}: {text}");
    }
    let metrics = pair.follower.metrics()?;
    metrics.expect("walferry_state{stage=\"replay\",state=\"stopped\"}")?;
    let replayed = metrics.position("replayed").context("replayed")?;
    assert!(before <= replayed && replayed <= stop, "{before} {replayed} {stop}");

    // The archive goes on, and replay does not.
    pair.leader.pgbench_run(&["-c", "2", "-t", "1000"])?;
    let end = pair.flush_position()?;
    assert!(end > stop);
    for position in ["received", "durable"] {
        pair.follower.wait_for_position(position, end, PATIENCE)?;
    }
    assert_eq!(pair.follower.position("replayed")?, replayed);
    assert_eq!(pair.follower.state_of("receive")?, "streaming");
    println!("{} bytes of WAL were archived behind the stop", end.bytes_since(stop));
    let outcome = pair.follower.verb("promote", &["--leader-is-dead"])?;
    assert_eq!(outcome.exit, Some(1), "{outcome:?}");
    println!("exit 1: {}", outcome.stderr.trim());
    let compared = pair.compare_archive()?;
    println!("{compared} archived segments are the server's");

    pair.follower.stop()?;
    let store = pair.store();
    let pages = Pages::read(store)?;
    println!("{} pages in {} files, the newest as of {}", pages.count, pages.files, pages.newest);
    assert!(pages.beyond(stop).is_empty(), "{:?}", pages.beyond(stop));
    ensure!(pages.count > 1000 && pages.newest > Lsn::INVALID, "these are not all pages");
    let backup = Pages::read(&scratch.path().join("backup"))?;
    assert!(pages.newest > backup.newest, "replay has not touched a page");

    // The control: a page with an LSN beyond the stop is found.
    let (path, block) = pages.newest_place.clone();
    let forged = stop.advance(1);
    let file = OpenOptions::new().write(true).open(&path)?;
    let halves = [(forged.0 >> 32) as u32, forged.0 as u32];
    let bytes: Vec<u8> = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
    file.write_all_at(&bytes, block * BLOCK_SIZE as u64)?;
    assert_eq!(Pages::read(store)?.beyond(stop), [(path, block, forged)]);

    // After a restart it stops at the same place, and still says why.
    pair.follower.start()?;
    pair.follower.wait_for_state("replay", "stopped")?;
    let status = pair.follower.run_verb("status", &[])?;
    assert!(words.iter().all(|word| status.contains(word)), "{words:?}: {status}");
    Ok(())
}

#[test]
fn replay_that_is_killed_catches_up() -> Result<()> {
    let mut random = Seed::take("kills of replay", 8).generator();
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &ClusterOptions::default(), 2)?;
    pair.leader.sql("create table meanwhile (v text)")?;
    let load = pair.leader.pgbench(&["-c", "2", "-R", "400", "-T", "600"])?;
    let mut behind = Vec::new();
    for _ in 0..KILLS {
        pair.follower.kill()?;
        pair.leader.sql(&format!(
            "insert into meanwhile select repeat('x', 1000) from generate_series(1, {ROWS_MEANWHILE})"
        ))?;
        let written = pair.flush_position()?;
        pair.follower.spawn()?;
        let replayed_more = random.random_range(0..3_000_000);
        behind.push(kill_in_mid_replay(&mut pair, replayed_more, written)?);
    }
    println!("WAL that was durable and not replayed at each kill, in bytes: {behind:?}");
    ensure!(behind.iter().all(|bytes| *bytes > 0), "a kill found nothing under way");
    pair.follower.start()?;
    load.stop()?;
    pair.catch_up(PATIENCE)?;
    let expected = digests_of(pair.leader.endpoint())?;
    pair.leader_agent.stop()?;
    pair.leader.stop(StopMode::Fast)?;
    let promoted = pair.follower.promote("promoted", &["--leader-is-dead"])?;
    let comparison = Comparison::between(expected, digests_of(promoted.endpoint())?);
    println!("{comparison}");
    assert!(comparison.all_equal());
    Ok(())
}

/// Kills a follower that has just been started, as soon as it has replayed so many bytes, or up to
/// `written`, and has more to do; gives how much it had. What it had to replay was there before it was
/// started: the load alone makes too little on a slow disk.
fn kill_in_mid_replay(pair: &mut Pair, replayed_more: u64, written: Lsn) -> Result<u64> {
    let deadline = Instant::now() + PATIENCE;
    let mut first = None;
    while Instant::now() < deadline {
        thread::sleep(Duration::from_millis(2));
        // Until it listens there is nothing to see.
        let Ok(metrics) = pair.follower.metrics() else { continue };
        let positions = metrics.position("replayed").zip(metrics.position("durable"));
        let Some((replayed, durable)) = positions else { continue };
        let first = *first.get_or_insert(replayed);
        let goal = first.advance(replayed_more).min(written);
        if durable > replayed && replayed >= goal {
            pair.follower.kill()?;
            return Ok(durable.bytes_since(replayed));
        }
    }
    bail!("replay was never found at work\n{}", pair.follower.log_tail(20))
}

/// Where the first record of resource manager Hash begins, as `pg_waldump` shows it.
fn hash_record(pair: &Pair, from: Lsn) -> Result<Lsn> {
    let directory = pair.leader.wal_directory();
    let mut dump = Waldump::start(pair.leader.endpoint(), &directory, from)?;
    while let Some(record) = dump.next_record()? {
        if record.rmgr == "Hash" {
            let start = record.start.to_string();
            let text = pair.leader.waldump(&directory, &["-s", &start, "-n", "1"])?;
            ensure!(text.contains("desc: INIT_META_PAGE "), "{text}");
            return Ok(record.start);
        }
    }
    bail!("no record of a hash index after {from}")
}

/// The LSNs of all pages of a data directory, read from its files.
struct Pages {
    count: u64,
    files: u64,
    newest: Lsn,
    newest_place: (PathBuf, u64),
    lsns: Vec<(PathBuf, Vec<Lsn>)>,
}

impl Pages {
    fn read(data_directory: &Path) -> Result<Self> {
        let mut pages = Self {
            count: 0,
            files: 0,
            newest: Lsn::INVALID,
            newest_place: Default::default(),
            lsns: Vec::new(),
        };
        let mut directories = vec![data_directory.join("global")];
        for database in fs::read_dir(data_directory.join("base"))? {
            directories.push(database?.path());
        }
        for directory in directories {
            for file in fs::read_dir(directory)? {
                let path = file?.path();
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                // A main fork: a number, and that of a further segment.
                let is_main = name.split('.').all(|part| part.parse::<u32>().is_ok());
                if is_main {
                    pages.add(&path)?;
                }
            }
        }
        Ok(pages)
    }

    /// The LSN is the first field of a page, its high half first (`PageXLogRecPtr`,
    /// `src/include/storage/bufpage.h`).
    fn add(&mut self, path: &Path) -> Result<()> {
        let bytes = fs::read(path)?;
        let (pages, rest) = bytes.as_chunks::<BLOCK_SIZE>();
        ensure!(rest.is_empty(), "{} ends in mid-page", path.display());
        let half = |page: &[u8; BLOCK_SIZE], at: usize| u64::from(walfmt::bytes::u32_at(page, at));
        let lsns: Vec<Lsn> =
            pages.iter().map(|page| Lsn(half(page, 0) << 32 | half(page, 4))).collect();
        for (block, lsn) in (0..).zip(&lsns) {
            if *lsn > self.newest {
                self.newest = *lsn;
                self.newest_place = (path.to_owned(), block);
            }
        }
        self.count += lsns.len() as u64;
        self.files += 1;
        self.lsns.push((path.to_owned(), lsns));
        Ok(())
    }

    /// Pages with an LSN beyond `stop`.
    fn beyond(&self, stop: Lsn) -> Vec<(PathBuf, u64, Lsn)> {
        let pages = self.lsns.iter().flat_map(|(path, lsns)| {
            (0..).zip(lsns).map(|(block, lsn)| (path.clone(), block, *lsn))
        });
        pages.filter(|(.., lsn)| *lsn > stop).collect()
    }
}
