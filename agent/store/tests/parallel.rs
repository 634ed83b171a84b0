//! The files do not depend on how many threads and how much memory replay has, nor on restart
//! points on the way.
#![allow(clippy::unwrap_used)] // a test that panics has failed, as it should

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use support::{Made, Random, Wal, config, control, data_directory, files, main_page, some_page};
use walferry_store::{ReplayError, SideWork, Store, StoreConfig};

/// Some thousand records on a few relations: inserts, images far apart, truncations, drops,
/// commits, checkpoints.
fn workload(seed: u64, records: usize) -> Vec<Made> {
    const HEAPS: u32 = 4;
    const INDEX: u32 = 20_000;
    let mut random = Random::new(seed);
    let mut wal = Wal::new();
    let mut made = Vec::new();
    // Per heap: generation (a new file number after each drop), block, items on it.
    let mut heaps = vec![(0_u32, 0_u32, 0_u16); HEAPS as usize];
    while made.len() < records {
        let heap = random.below(HEAPS);
        let (generation, block, items) = &mut heaps[heap as usize];
        let relation = 16384 + heap + 100 * *generation;
        let page = main_page(relation, *block);
        match random.below(200) {
            0 => {
                made.push(wal.drop_relation(800 + random.below(50_000), page.locator));
                (*generation, *block, *items) = (*generation + random.below(2), 0, 0);
                let page = main_page(16384 + heap + 100 * *generation, 0);
                made.push(wal.create(page.locator));
            }
            1 | 2 => {
                let blocks = random.below(*block + 1);
                made.push(wal.truncate(page.locator, blocks));
                (*block, *items) = (blocks, 0);
            }
            3..=12 => made.push(wal.commit(800 + random.below(200_000))),
            13 | 14 => made.push(wal.checkpoint_here()),
            15..=40 => {
                let page = main_page(INDEX, random.below(600));
                made.push(wal.image(page, some_page(random.below(256) as u8)));
            }
            _ => {
                *items += 1;
                let cleared = random.below(8) == 0;
                made.push(wal.insert(page, *items, 300 + random.below(150) as usize, cleared));
                if *items == 16 {
                    (*block, *items) = (*block + 1, 0);
                }
            }
        }
    }
    made
}

fn replay(
    records: &[Made],
    checksums: bool,
    config_of: impl Fn(&std::path::Path) -> StoreConfig,
) -> BTreeMap<String, Vec<u8>> {
    let directory = data_directory(checksums);
    let mut store = Store::open(&config_of(directory.path())).unwrap();
    for (number, record) in records.iter().enumerate() {
        store.replay(&record.raw()).unwrap();
        if number % 97 == 0 {
            store.hand_over().unwrap();
        }
    }
    store.wait_applied().unwrap();
    assert_eq!(store.applied(), records.last().unwrap().end);
    assert!(store.is_consistent());
    store.close().unwrap();
    let control = control(directory.path());
    assert_eq!(control.min_recovery_point, records.last().unwrap().end);
    files(directory.path())
}

fn assert_same(expected: &BTreeMap<String, Vec<u8>>, found: &BTreeMap<String, Vec<u8>>) {
    assert!(expected.keys().eq(found.keys()), "{:?} {:?}", expected.keys(), found.keys());
    for (name, bytes) in expected {
        let difference = bytes.iter().zip(&found[name]).position(|(a, b)| a != b);
        assert_eq!(bytes.len(), found[name].len(), "{name}");
        assert_eq!(difference.map(|at| (at / 8192, at % 8192)), None, "{name}: block, byte");
    }
}

#[test]
fn same_files_whatever_threads_and_memory() {
    for seed in 1..=3 {
        println!("seed {seed}");
        let records = workload(seed, 5000);
        let expected = replay(&records, true, |path| config(path, 1, 100_000));
        assert!(expected.keys().any(|name| name.ends_with("_fsm")), "{:?}", expected.keys());
        assert!(expected.keys().any(|name| name.ends_with("_vm")), "{:?}", expected.keys());
        let four = replay(&records, true, |path| config(path, 4, 100_000));
        assert_same(&expected, &four);
        // Three pages for each of four workers.
        let little_memory = replay(&records, true, |path| config(path, 4, 12));
        assert_same(&expected, &little_memory);
        let restart_points = replay(&records, true, |path| StoreConfig {
            restart_point_interval: Duration::ZERO,
            ..config(path, 3, 64)
        });
        assert_same(&expected, &restart_points);
    }
}

#[test]
fn one_record_left_out_shows() {
    let mut records = workload(1, 3000);
    let expected = replay(&records, true, |path| config(path, 1, 100_000));
    let image = records.iter().rposition(|record| record.raw().bytes.len() > 8192).unwrap();
    records.remove(image);
    let spoiled = replay(&records, true, |path| config(path, 4, 12));
    assert!(expected != spoiled);
}

#[test]
fn a_second_replay_from_the_restart_point_gives_the_same_files() {
    let records = workload(7, 4000);
    let expected = replay(&records, true, |path| config(path, 2, 1000));
    let directory = data_directory(true);
    let mut crashes = 0;
    let mut random = Random::new(7);
    let config =
        StoreConfig { restart_point_interval: Duration::ZERO, ..config(directory.path(), 3, 40) };
    // Each time a little further, then dropped without being closed.
    for stop in [500, 1200, 2500, 3900, 4000] {
        let mut store = Store::open(&config).unwrap();
        if !store.pages_are_bounded() {
            assert!(!store.is_consistent());
            store.set_consistent_after(records[records.len() - 1].end).unwrap();
        }
        let from = store.replay_from();
        let stop = (stop + random.below(50) as usize).min(records.len());
        for record in records[..stop].iter().filter(|record| record.start >= from) {
            store.replay(&record.raw()).unwrap();
        }
        if stop == records.len() {
            store.wait_applied().unwrap();
            store.consistency().unwrap();
            store.close().unwrap();
        } else {
            crashes += 1;
        }
    }
    println!("seed 7, {crashes} crashes");
    assert_eq!(crashes, 4);
    // A free space map may miss what a heap page written before the crash had to tell: redo skips
    // that page by its LSN, as in a server.
    let without_free_space = |mut files: BTreeMap<String, Vec<u8>>| {
        files.retain(|name, _| !name.ends_with("_fsm"));
        files
    };
    assert_same(&without_free_space(expected), &without_free_space(files(directory.path())));
}

/// Replays until that is refused; gives why.
fn error_of(mut store: Store, records: &[Made]) -> ReplayError {
    for record in records {
        if let Err(error) = store.replay(&record.raw()) {
            return error;
        }
    }
    store.wait_applied().unwrap_err()
    // And dropping the store comes to an end.
}

/// Whoever runs the worker when it panics, a thread of the store or the caller's while it waits.
#[test]
fn a_panic_ends_replay_and_nothing_waits_for_what_it_took_along() {
    let records = workload(5, 3000);
    for workers in 1..=3 {
        let directory = data_directory(true);
        let config = config(directory.path(), workers, 1000);
        let store = Store::open_with_broken_rule(&config, |record, _| {
            assert!(record.start.0 % 0x4_0000 < 0x3_F000, "on purpose");
        });
        let error = error_of(store.unwrap(), &records);
        assert!(matches!(error, ReplayError::ThreadGone), "{workers} workers: {error}");
    }
}

/// So many pieces, then a panic if there is to be one.
struct Pieces {
    left: AtomicU32,
    asked: AtomicU32,
    panics: bool,
}

impl Pieces {
    fn new(pieces: u32, panics: bool) -> Arc<Self> {
        Arc::new(Self { left: pieces.into(), asked: 0.into(), panics })
    }
}

impl SideWork for Pieces {
    fn urgent(&self) -> bool {
        self.asked.fetch_add(1, Ordering::SeqCst);
        false
    }

    fn idle(&self) -> bool {
        let left = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
        assert!(left.is_ok() || !self.panics, "on purpose");
        left.is_ok()
    }
}

#[test]
fn side_work_is_done_beside_replay_and_may_panic() {
    let records = workload(6, 2000);
    for (panics, workers) in [(false, 1), (false, 2), (true, 1), (true, 2)] {
        let directory = data_directory(true);
        let mut store = Store::open(&config(directory.path(), workers, 1000)).unwrap();
        let pieces = Pieces::new(100, panics);
        store.set_side_work(Arc::<Pieces>::clone(&pieces));
        for record in &records {
            store.replay(&record.raw()).unwrap();
        }
        store.wait_applied().unwrap();
        while store.help() {}
        assert_eq!(pieces.left.load(Ordering::SeqCst), 0);
        let asked = pieces.asked.load(Ordering::SeqCst);
        assert!(asked > 100, "before each other piece");
        assert!(!store.help());
        assert_eq!(pieces.asked.load(Ordering::SeqCst) > asked, !panics, "not after a panic");
        store.close().unwrap();
    }
}
