//! `walferry verify --store` on a store that a real leader's WAL went into: sound after a clean
//! stop, damaged when a bit was flipped, and not to be judged after a kill until replay has been to
//! the archive's end again.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use integration::agent::VerbOutcome;
use integration::process::{send_signal, stands_still, wait_until};
use integration::standby::control_file;
use integration::{Agent, ClusterOptions, PATIENCE, Pair, Scratch, Seed};
use rand::RngExt;
use rand::rngs::StdRng;
use rustix::process::Signal;
use serde_json::Value;
use walfmt::checksum::page_checksum;
use walfmt::relation::BLOCKS_PER_FILE;
use walfmt::{BLOCK_SIZE, page};

const FLIPS: usize = 20;
const NOT_CONSISTENT: &str = "not consistent until replayed to the archive's end";

#[test]
fn a_store_is_verified() -> Result<()> {
    let seed = Seed::take("a_store_is_verified", 15);
    let mut generator = seed.generator();
    let scratch = Scratch::new()?;
    let options = ClusterOptions { data_checksums: true, ..ClusterOptions::default() };
    let mut pair = Pair::start(&scratch, &options, 1)?;
    pair.leader.pgbench_run(&["-t", "200"])?;
    pair.catch_up(PATIENCE)?;
    let store = pair.store().to_owned();

    let outcome = pair.follower.verb("verify", &["--store"])?;
    ensure!(outcome.exit == Some(3) && outcome.stderr.contains("is open already"), "{outcome:?}");
    println!("while the agent runs, exit 3: {}", outcome.stderr.trim());
    pair.follower.stop()?;
    let outcome = pair.follower.verb("verify", &[])?;
    ensure!(outcome.exit == Some(2), "without --store: {outcome:?}");
    let before = control_file(&store)?;
    println!("{}", pair.follower.run_verb("verify", &["--store"])?);
    sound(&pair.follower, &store)?;
    ensure!(before == control_file(&store)?, "verify changed pg_control");

    flipped_bits_are_found(&pair.follower, &store, &mut generator)?;
    sound(&pair.follower, &store)?;

    pair.follower.start()?;
    let load = pair.leader.pgbench(&["-c", "2", "-T", "600"])?;
    // What makes them newer is that the small cache evicts them.
    wait_until("a page is newer than the control file says", PATIENCE, || {
        Ok(pages_newer_than_the_control_file(&store)? > 0)
    })?;
    // It is looked at while it stands still: none of its writes is under way then, and killed it is where it
    // was looked at.
    let pid = pair.follower.pid().context("it runs")?;
    let mut newer = 0;
    wait_until("it stands where a page is newer", PATIENCE, || {
        send_signal(pid, Signal::STOP)?;
        wait_until("it stands still", PATIENCE, || Ok(stands_still(pid)))?;
        newer = pages_newer_than_the_control_file(&store)?;
        if newer == 0 {
            send_signal(pid, Signal::CONT)?;
        }
        Ok(newer > 0)
    })?;
    pair.follower.kill()?;
    println!("killed under load: {newer} pages are newer than the control file says");
    let outcome = pair.follower.verb("verify", &["--store"])?;
    ensure!(outcome.exit == Some(3) && outcome.stderr.contains(NOT_CONSISTENT), "{outcome:?}");
    println!("exit 3: {}", outcome.stderr.trim());
    // Killed is not cut off: what was written is all there, and no page is torn.
    let outcome = pair.follower.verb("verify", &["--store", "--anyway", "--json"])?;
    ensure!(outcome.exit == Some(3) && outcome.stderr.contains(NOT_CONSISTENT), "{outcome:?}");
    let report = report_of(&outcome)?;
    ensure!(report["sound"] == false && report["consistent"] == false, "{report}");
    ensure!(report["damages"] == 0, "{report}");

    pair.follower.start()?;
    load.stop()?;
    pair.catch_up(PATIENCE)?;
    pair.follower.stop()?;
    println!("caught up again and stopped:");
    sound(&pair.follower, &store)?;

    pair.follower.start()?;
    pair.catch_up(PATIENCE)?;
    let _promoted = pair.follower.promote("promoted", &["--leader-is-dead"])?;
    let outcome = pair.follower.verb("verify", &["--store"])?;
    ensure!(outcome.exit == Some(2), "after a promotion: {outcome:?}");
    println!("after a promotion, exit 2: {}", outcome.stderr.trim());
    Ok(())
}

/// Exit status 0, and every page that is there was looked at.
fn sound(follower: &Agent, store: &Path) -> Result<()> {
    let outcome = follower.verb("verify", &["--store", "--json"])?;
    ensure!(outcome.exit == Some(0), "{outcome:?}");
    let report = report_of(&outcome)?;
    let mut expected = 0;
    for file in relation_files(store)? {
        expected += fs::metadata(file)?.len() / BLOCK_SIZE as u64;
    }
    println!(
        "sound: {} pages in {} files, {:.0} MB/s",
        report["pages"],
        report["files"],
        report["bytes_per_second"].as_f64().unwrap_or_default() / 1e6
    );
    ensure!(report["pages"] == expected && expected > 3000, "{expected} pages: {report}");
    ensure!(report["sound"] == true && report["damages"] == 0, "{report}");
    ensure!(report["damaged_map_pages"] == 0, "{report}");
    Ok(())
}

fn report_of(outcome: &VerbOutcome) -> Result<Value> {
    serde_json::from_str(&outcome.stdout).with_context(|| format!("not JSON: {outcome:?}"))
}

/// One bit in each of some pages, in main forks: first one page alone, then all of them at once.
fn flipped_bits_are_found(follower: &Agent, store: &Path, generator: &mut StdRng) -> Result<()> {
    let flips = Flip::choose(store, FLIPS, generator)?;
    flips[0].flip()?;
    let outcome = follower.verb("verify", &["--store"])?;
    let expected = format!("{} block {}: checksum", flips[0].name, flips[0].block);
    ensure!(outcome.exit == Some(1) && outcome.stdout.contains(&expected), "{outcome:?}");
    let line = outcome.stdout.lines().find(|line| line.contains(&expected));
    println!("exit 1: {}; {}", line.unwrap_or_default(), outcome.stderr.trim());

    for flip in &flips[1..] {
        flip.flip()?;
    }
    let outcome = follower.verb("verify", &["--store", "--json"])?;
    for flip in &flips {
        flip.flip()?;
    }
    ensure!(outcome.exit == Some(1), "{outcome:?}");
    let report = report_of(&outcome)?;
    let listed = report["damages_listed"].as_array().context("a list of damages")?;
    let found: BTreeSet<(&str, u64)> = listed
        .iter()
        .filter_map(|damage| Some((damage["file"].as_str()?, damage["block"].as_u64()?)))
        .collect();
    let expected: BTreeSet<(&str, u64)> =
        flips.iter().map(|flip| (flip.name.as_str(), flip.block)).collect();
    println!("{} of {FLIPS} flipped bits were found, and nothing else", found.len());
    ensure!(found == expected, "found {found:?}, flipped {expected:?}");
    ensure!(report["damages"] == FLIPS, "{report}");
    Ok(())
}

/// A bit of a page.
struct Flip {
    path: PathBuf,
    /// Relative to the store.
    name: String,
    /// Counted from the begin of the fork.
    block: u64,
    /// In the file, in bytes.
    offset: u64,
    bit: u8,
}

impl Flip {
    /// In pages that differ from each other, by their share of all pages.
    fn choose(store: &Path, count: usize, generator: &mut StdRng) -> Result<Vec<Self>> {
        let mut pages = Vec::new();
        for path in relation_files(store)? {
            let name = path.strip_prefix(store)?.to_str().context("UTF-8")?.to_owned();
            if !name.contains('_') {
                let length = fs::metadata(&path)?.len() / BLOCK_SIZE as u64;
                pages.extend((0..length).map(|page| (path.clone(), name.clone(), page)));
            }
        }
        let mut flips = Vec::new();
        while flips.len() < count {
            let (path, name, page) = pages.swap_remove(generator.random_range(0..pages.len()));
            let mut header = [0; 24];
            File::open(&path)?.read_exact_at(&mut header, page * BLOCK_SIZE as u64)?;
            if header == [0; 24] {
                continue; // an empty page has no checksum; that it is empty is tested elsewhere
            }
            let number = name.rsplit_once('.').map_or(Ok(0), |(_, number)| number.parse())?;
            let block = page + number * u64::from(BLOCKS_PER_FILE);
            let within = generator.random_range(0..BLOCK_SIZE);
            let bit = generator.random_range(0..8);
            let mut bytes = [0; BLOCK_SIZE];
            File::open(&path)?.read_exact_at(&mut bytes, page * BLOCK_SIZE as u64)?;
            bytes[within] ^= 1 << bit;
            if page_checksum(&bytes, u32::try_from(block)?) == page::checksum(&bytes) {
                continue; // one in 65535
            }
            let offset = page * BLOCK_SIZE as u64 + within as u64;
            flips.push(Self { path, name, block, offset, bit });
        }
        Ok(flips)
    }

    /// Done twice, it was not done.
    fn flip(&self) -> Result<()> {
        let file = OpenOptions::new().read(true).write(true).open(&self.path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, self.offset)?;
        Ok(file.write_all_at(&[byte[0] ^ (1 << self.bit)], self.offset)?)
    }
}

/// All files of relations, by their names alone.
fn relation_files(store: &Path) -> Result<Vec<PathBuf>> {
    let mut directories = vec![store.join("global")];
    for database in fs::read_dir(store.join("base"))? {
        directories.push(database?.path());
    }
    let mut files = Vec::new();
    for directory in directories {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if name.starts_with(|first: char| first.is_ascii_digit()) {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn pages_newer_than_the_control_file(store: &Path) -> Result<usize> {
    let newest = control_file(store)?.min_recovery_point;
    let mut newer = 0;
    for file in relation_files(store)? {
        let bytes = fs::read(file)?;
        let (pages, _) = bytes.as_chunks::<BLOCK_SIZE>();
        newer += pages.iter().filter(|bytes| page::lsn(bytes) > newest).count();
    }
    Ok(newer)
}
