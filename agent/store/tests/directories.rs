//! Databases and tablespaces: directories that are copied, dropped and linked between the changes
//! of pages.

#![allow(clippy::unwrap_used)] // a test that panics has failed, as it should

mod support;

use std::path::Path;

use support::*;
use walferry_store::{CopyFault, PromotionError, ReplayError, tablespaces_directory};
use walfmt::relation::PageId;
use walfmt::rmgr::RmgrId;
use walfmt::{ForkNumber, Lsn, RelFileLocator};

const OWN: &str = "PG_15_202209061";

fn page(tablespace: u32, database: u32, relation: u32, block: u32) -> PageId {
    let locator = RelFileLocator { tablespace, database, relation };
    PageId { locator, fork: ForkNumber::Main, block }
}

/// The byte that fills each page of a file.
fn fills(path: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(path).ok()?;
    Some(bytes.chunks(walfmt::BLOCK_SIZE).map(|page| page[4000]).collect())
}

#[test]
fn a_copy_has_what_was_only_in_memory_and_nothing_of_later() {
    let directory = data_directory(false);
    let base = directory.path().join("base");
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    for record in [
        wal.image(page(1663, 5, 100, 0), some_page(1)),
        wal.image(page(1663, 5, 100, 1), some_page(2)),
        wal.image(page(1663, 5, 101, 20), some_page(3)),
        wal.image(page(1663, 7, 999, 0), some_page(9)), // an earlier attempt
        wal.copy_database((1663, 5), (1663, 7)),
        wal.image(page(1663, 5, 100, 0), some_page(4)),
        wal.image(page(1663, 7, 100, 1), some_page(5)),
        wal.image(page(1663, 7, 102, 0), some_page(6)),
    ] {
        store.replay(&record.raw()).unwrap();
    }
    store.close().unwrap();
    assert_eq!(fills(&base.join("5/100")), Some(vec![4, 2]));
    assert_eq!(fills(&base.join("7/100")), Some(vec![1, 5]));
    assert_eq!(fills(&base.join("7/101")).map(|fills| fills[20]), Some(3));
    assert_eq!(fills(&base.join("7/102")), Some(vec![6]));
    assert_eq!(fills(&base.join("7/999")), None);
}

#[test]
fn a_copy_is_never_made_again_from_a_newer_source() {
    let directory = data_directory(false);
    let path = directory.path().join("base/7/100");
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    let before = wal.image(page(1663, 5, 100, 0), some_page(1));
    let copy = wal.copy_database((1663, 5), (1663, 7));
    // A checkpoint that began before the copy covers nothing; the next one is made at once, though
    // the interval is an hour.
    let early = wal.checkpoint(walfmt::rmgr::xlog::CHECKPOINT_ONLINE, &checkpoint(before.end));
    let covering = wal.checkpoint_here();
    let after = wal.image(page(1663, 5, 100, 0), some_page(2));
    for (record, redo) in [
        (&before, START),
        (&copy, START),
        (&early, START),
        (&covering, covering.start),
        (&after, covering.start),
    ] {
        store.replay(&record.raw()).unwrap();
        assert_eq!(store.restart_redo(), redo, "after the record at {}", record.start);
    }
    store.wait_applied().unwrap();
    drop(store); // a crash
    let store = open(directory.path());
    assert_eq!(store.replay_from(), covering.start);
    store.close().unwrap();
    assert_eq!(fills(&path), Some(vec![1]));
}

#[test]
fn a_copy_of_another_time_is_refused() {
    let directory = data_directory(false);
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    let copy = wal.copy_database((1663, 5), (1663, 7));
    // Of a backup that was taken meanwhile.
    let file = directory.path().join("base/5/100");
    let mut newer = some_page(1);
    newer[4..8].copy_from_slice(&u32::try_from(copy.end.0 + 1).unwrap().to_le_bytes());
    std::fs::write(&file, newer).unwrap();
    match store.replay(&copy.raw()) {
        Err(ReplayError::Copy { at, fault: CopyFault::Newer { block: 0, lsn, .. } }) => {
            assert_eq!((at, lsn), (copy.start, Lsn(copy.end.0 + 1)));
        }
        other => panic!("{other:?}"),
    }
    store.close().unwrap();
    assert!(!directory.path().join("base/7").exists());

    // The control: a page as of the record's own end is old enough.
    newer[4..8].copy_from_slice(&u32::try_from(copy.end.0).unwrap().to_le_bytes());
    std::fs::write(&file, newer).unwrap();
    let mut store = open(directory.path());
    store.replay(&copy.raw()).unwrap();
    store.close().unwrap();
    assert!(directory.path().join("base/7/100").exists());

    // What was moved away after the copy is not lost for it.
    std::fs::remove_dir_all(directory.path().join("base/5")).unwrap();
    let mut store = open(directory.path());
    match store.replay(&copy.raw()) {
        Err(ReplayError::Copy { fault: CopyFault::Gone { .. }, .. }) => {}
        other => panic!("{other:?}"),
    }
    store.close().unwrap();
    assert!(directory.path().join("base/7/100").exists());
}

#[test]
fn a_dropped_database_leaves_nothing_in_memory() {
    let directory = data_directory(false);
    let base = directory.path().join("base");
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    for record in [
        wal.words(RmgrId::DATABASE, 0x10, &[7, 1663]),
        wal.image(page(1663, 7, 100, 0), some_page(1)),
        wal.image(page(1663, 5, 100, 0), some_page(2)),
        wal.drop_database(1663, 7),
    ] {
        store.replay(&record.raw()).unwrap();
    }
    store.restart_point().unwrap();
    assert!(!base.join("7").exists());
    assert_eq!(fills(&base.join("5/100")), Some(vec![2]));
    // Its name may come again, with files of other lengths.
    for record in [
        wal.words(RmgrId::DATABASE, 0x10, &[7, 1663]),
        wal.image(page(1663, 7, 100, 2), some_page(3)),
    ] {
        store.replay(&record.raw()).unwrap();
    }
    store.close().unwrap();
    assert_eq!(fills(&base.join("7/100")), Some(vec![0, 0, 3]));
    assert_eq!(std::fs::read_to_string(base.join("7/PG_VERSION")).unwrap(), "15\n");
}

#[test]
fn missing_pages_are_explained_by_the_drop_of_their_database() {
    let directory = data_directory(false);
    change_control(directory.path(), |control| {
        control.backup_start_point = START;
        control.backup_end_required = true;
    });
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    store.replay(&wal.insert(page(1663, 7, 100, 4), 2, 10, false).raw()).unwrap();
    store.replay(&wal.record(RmgrId::XLOG, 0x50, 0, &[], &START.0.to_le_bytes()).raw()).unwrap();
    store.wait_applied().unwrap();
    assert!(!store.is_consistent());
    store.replay(&wal.drop_database(16390, 7).raw()).unwrap();
    store.wait_applied().unwrap();
    assert!(!store.is_consistent(), "of another tablespace");
    store.replay(&wal.drop_database(1663, 7).raw()).unwrap();
    store.wait_applied().unwrap();
    store.consistency().unwrap();
    store.close().unwrap();
}

#[test]
fn a_tablespace_lies_beside_the_store() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("store");
    std::fs::rename(data_directory(false).keep(), &root).unwrap();
    let target = tablespaces_directory(&root).join("16390");
    let mut wal = Wal::new();
    let records = [
        wal.create_tablespace(16390, "/leader/fast"),
        wal.create_tablespace(16391, ""),
        wal.image(page(16390, 5, 100, 0), some_page(1)),
        wal.image(page(16391, 5, 101, 0), some_page(2)),
        wal.copy_database((1663, 5), (16390, 7)),
    ];
    let mut store = open(&root);
    for record in &records {
        store.replay(&record.raw()).unwrap();
    }
    store.wait_applied().unwrap();
    drop(store); // a crash; all of it comes again
    let mut store = open(&root);
    for record in &records {
        store.replay(&record.raw()).unwrap();
    }
    store.set_consistent_after(records[4].end).unwrap();
    store.wait_applied().unwrap();
    store.consistency().unwrap();
    assert_eq!(std::fs::read_link(root.join("pg_tblspc/16390")).unwrap(), target);

    // A server would create it once more, where the leader has it.
    match store.finish_for_promotion() {
        Err(PromotionError::Tablespace { tablespace: 16390, at, location }) => {
            assert_eq!((at, location.as_path()), (records[0].start, Path::new("/leader/fast")));
        }
        other => panic!("{other:?}"),
    }
    // Not after the next checkpoint.
    store.replay(&wal.checkpoint_here().raw()).unwrap();
    store.finish_for_promotion().unwrap();
    assert_eq!(fills(&target.join(OWN).join("5/100")), Some(vec![1]));
    assert_eq!(fills(&root.join("pg_tblspc/16391").join(OWN).join("5/101")), Some(vec![2]));
    assert!(target.join(OWN).join("7").is_dir());
    drop(store);

    let mut store = open(&root);
    for record in [
        wal.drop_relation(702, page(16390, 5, 100, 0).locator),
        wal.drop_relation(702, page(16391, 5, 101, 0).locator),
        wal.drop_database(16390, 7),
        wal.words(RmgrId::TABLESPACE, 0x10, &[16390]),
        wal.words(RmgrId::TABLESPACE, 0x10, &[16391]),
    ] {
        store.replay(&record.raw()).unwrap();
    }
    store.close().unwrap();
    assert!(!target.exists());
    assert_eq!(std::fs::read_dir(root.join("pg_tblspc")).unwrap().count(), 0);
}

#[test]
fn pages_of_a_tablespace_that_will_be_dropped_are_kept_until_then() {
    let directory = data_directory(false);
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    for record in [
        wal.image(page(16390, 5, 100, 0), some_page(1)),
        wal.drop_relation(702, page(16390, 5, 100, 0).locator),
        wal.words(RmgrId::TABLESPACE, 0x10, &[16390]),
    ] {
        store.replay(&record.raw()).unwrap();
    }
    store.close().unwrap();
    assert_eq!(std::fs::read_dir(directory.path().join("pg_tblspc")).unwrap().count(), 0);
}

#[test]
fn relation_maps_and_mappings_are_files() {
    let directory = data_directory(false);
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    let mut words = vec![5, 1663, 512, 0, 1, 1259, 16400];
    words.resize(3 + 128, 0);
    store.replay(&wal.words(RmgrId::RELMAP, 0, &words).raw()).unwrap();
    let mut words = vec![700, 5, 1259, 0, 0, 0, 1, 0, 9, 0];
    words.resize(10 + 9, 7);
    store.replay(&wal.words(RmgrId::HEAP2, 0, &words).raw()).unwrap();
    let map = std::fs::read(directory.path().join("base/5/pg_filenode.map")).unwrap();
    assert_eq!((map.len(), &map[..4]), (512, &[0x17, 0x27, 0x59, 0][..]));
    let mapping = directory.path().join("pg_logical/mappings/map-5-4eb-0_9-2bc-2bd");
    assert_eq!(std::fs::read(&mapping).unwrap(), [7, 0, 0, 0].repeat(9));
    store.replay(&wal.checkpoint_here().raw()).unwrap();
    store.restart_point().unwrap();
    assert!(!mapping.exists(), "no slot needs it");
    store.close().unwrap();
}
