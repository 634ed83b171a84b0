//! What a crash or a failed sync can leave that hardly any workload brings about.
#![allow(clippy::unwrap_used)] // a test that panics has failed, as it should

mod support;

use std::path::Path;
use std::sync::Arc;

use support::{Made, Wal, config, data_directory, main_page, some_page};
use walferry_store::testing::{Fault, LossyDisk};
use walferry_store::{ReplayError, Store};
use walfmt::bytes::put;
use walfmt::relation::{BLOCK_SIZE, BLOCKS_PER_FILE};

const SEEDS: u64 = 12;

fn length(directory: &Path, name: &str) -> Option<u64> {
    std::fs::metadata(directory.join(name)).ok().map(|metadata| metadata.len())
}

/// A store on a disk that can lose things.
struct Life {
    directory: tempfile::TempDir,
    _attic: tempfile::TempDir,
    disk: LossyDisk,
}

impl Life {
    fn new(seed: u64) -> Self {
        let attic = tempfile::tempdir().unwrap();
        let disk = LossyDisk::new(attic.path(), seed);
        Self { directory: data_directory(true), _attic: attic, disk }
    }

    fn open(&self) -> Store {
        let config = config(self.directory.path(), 2, 1000);
        Store::open_on(Arc::new(self.disk.clone()), &config).unwrap()
    }

    /// Replays `records`, of which all but the last are made durable, and loses power.
    fn replay_and_crash(&self, records: &[Made], seed: u64) {
        let mut store = self.open();
        let (last, before) = records.split_last().unwrap();
        for record in before {
            store.replay(&record.raw()).unwrap();
        }
        store.restart_point().unwrap();
        store.replay(&last.raw()).unwrap();
        store.wait_applied().unwrap();
        drop(store);
        self.disk.crash(seed).unwrap();
    }

    /// Opens it after a crash and replays what is left to be replayed of `records`.
    fn replay_again(&self, records: &[Made]) -> Store {
        let mut store = self.open();
        assert!(!store.pages_are_bounded());
        store.set_consistent_after(records.last().unwrap().end).unwrap();
        let from = store.replay_from();
        for record in records.iter().filter(|record| record.start >= from) {
            store.replay(&record.raw()).unwrap();
        }
        store.wait_applied().unwrap();
        store.consistency().unwrap();
        store
    }
}

#[test]
fn a_bit_that_was_cleared_before_a_failed_sync_is_written_again() {
    let mut failed = 0;
    for seed in 0..2 * SEEDS {
        let life = Life::new(seed);
        let mut map = [0; BLOCK_SIZE];
        for (offset, value) in [(12, 24_u16), (14, 8192), (16, 8192), (18, 0x2004)] {
            put(&mut map, offset, value.to_le_bytes());
        }
        map[24] = 0x03;
        let checksum = walfmt::checksum::page_checksum(&map, 0);
        put(&mut map, 8, checksum.to_le_bytes());
        let map_path = life.directory.path().join("base/5/16384_vm");
        std::fs::write(&map_path, map).unwrap();

        let mut wal = Wal::new();
        let records = vec![
            wal.insert(main_page(16384, 0), 1, 300, false),
            wal.insert(main_page(16384, 0), 2, 300, true),
            wal.checkpoint_here(),
        ];
        let mut store = life.open();
        for record in &records {
            store.replay(&record.raw()).unwrap();
        }
        life.disk.fail_after(seed, Fault::Sync);
        match store.restart_point() {
            Err(ReplayError::File { source, .. }) => assert!(source.is_sync(), "{source}"),
            Ok(_) => break, // that was all it syncs
            other => panic!("{other:?}"),
        }
        assert!(store.close().is_err());
        let (action, _) = life.disk.broken_call().unwrap();
        failed += u32::from(action == "sync the file system of");
        life.disk.heal();
        assert_eq!(std::fs::read(&map_path).unwrap()[24], 0, "in the kernel's cache");

        life.replay_again(&records).close().unwrap();
        life.disk.crash(seed).unwrap();
        assert_eq!(std::fs::read(&map_path).unwrap()[24], 0, "seed {seed}: an all-visible page");
    }
    println!("the sync of the file system failed {failed} times");
    assert!(failed > 1);
}

#[test]
fn no_file_of_a_dropped_relation_comes_back_for_good() {
    let mut left_behind = 0;
    for seed in 0..3 * SEEDS {
        let life = Life::new(seed);
        let mut wal = Wal::new();
        let relation = main_page(16384, 0).locator;
        let records = vec![
            wal.image(main_page(16384, 0), some_page(1)),
            wal.image(main_page(16384, BLOCKS_PER_FILE), some_page(1)),
            wal.checkpoint_here(),
            wal.drop_relation(900, relation),
        ];
        life.replay_and_crash(&records, seed);

        let there = |name| length(life.directory.path(), name).is_some();
        left_behind += u32::from(!there("base/5/16384") && there("base/5/16384.1"));
        life.replay_again(&records).close().unwrap();
        for name in ["base/5/16384", "base/5/16384.1"] {
            assert!(!there(name), "seed {seed}: {name}");
        }
    }
    println!("{left_behind} of {} crashes left the second file only", 3 * SEEDS);
    assert!(left_behind > 0);
}

#[test]
fn a_cut_of_which_one_half_was_lost_is_made_whole() {
    let life = Life::new(0);
    let mut wal = Wal::new();
    let records = [
        wal.image(main_page(16384, 0), some_page(1)),
        wal.image(main_page(16384, BLOCKS_PER_FILE + 2), some_page(1)),
        wal.checkpoint_here(),
        wal.truncate(main_page(16384, 0).locator, 2),
    ];
    let mut store = life.open();
    for record in &records[..3] {
        store.replay(&record.raw()).unwrap();
    }
    store.restart_point().unwrap();
    drop(store);
    // The first file was cut, and the cut of the second one was lost.
    let block = BLOCK_SIZE as u64;
    let path = life.directory.path().join("base/5/16384");
    std::fs::File::options().write(true).open(path).unwrap().set_len(2 * block).unwrap();
    let length = |name| length(life.directory.path(), name).unwrap();
    assert_eq!(length("base/5/16384.1"), 3 * block);
    life.replay_again(&records).close().unwrap();
    assert_eq!((length("base/5/16384"), length("base/5/16384.1")), (2 * block, 0));
}
