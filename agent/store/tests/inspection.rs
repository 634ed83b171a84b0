//! Damage of every kind is found, and what is none is not taken for it.
#![allow(clippy::unwrap_used)] // a test that panics has failed, as it should

mod support;

use std::fs::{self, OpenOptions};
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::AtomicU64;

use support::{Page, START, change_control, data_directory, open, some_page};
use walferry_store::{DamageKind, Findings, Inspection, NotConsistent, OpenError};
use walfmt::bytes::put;
use walfmt::checksum::page_checksum;
use walfmt::control::ClusterState;
use walfmt::relation::BLOCKS_PER_FILE;
use walfmt::rmgr::relmap::RelationMap;
use walfmt::rmgr::xact::TWO_PHASE_MAGIC;
use walfmt::version::VERSIONS;
use walfmt::{BLOCK_SIZE, Lsn, replication_state, two_phase};

const FILE: u64 = BLOCKS_PER_FILE as u64 * BLOCK_SIZE as u64;

fn page(block: u32, lsn: Lsn) -> Page {
    let mut page = some_page(block as u8);
    put(&mut page, 0, ((lsn.0 >> 32) as u32).to_le_bytes());
    put(&mut page, 4, (lsn.0 as u32).to_le_bytes());
    let checksum = page_checksum(&page, block);
    put(&mut page, 8, checksum.to_le_bytes());
    page
}

fn pages(blocks: std::ops::Range<u32>) -> Vec<u8> {
    blocks.flat_map(|block| page(block, START)).collect()
}

fn relation_map() -> Vec<u8> {
    let mut main = Vec::new();
    [5_u32, 1663, 512, 0, 1].iter().for_each(|word| main.extend(word.to_le_bytes()));
    main.resize(12 + 512, 0);
    RelationMap::read(&main, &VERSIONS[0]).unwrap().to_file()
}

fn prepared(xid: u32) -> Vec<u8> {
    let mut state = vec![0; 80];
    for (offset, word) in [(0, TWO_PHASE_MAGIC), (4, 84), (8, xid)] {
        put(&mut state, offset, word.to_le_bytes());
    }
    two_phase::to_file(&state)
}

/// A store that was stopped cleanly, with something of everything in it.
fn store(checksums: bool) -> tempfile::TempDir {
    let directory = data_directory(checksums);
    change_control(directory.path(), |control| control.min_recovery_point = START);
    let write = |name: &str, bytes: &[u8]| fs::write(directory.path().join(name), bytes).unwrap();
    let mut small = pages(0..6);
    small[2 * BLOCK_SIZE..3 * BLOCK_SIZE].fill(0);
    write("base/5/16384", &small);
    write("base/5/16384_fsm", &pages(0..3));
    write("base/5/16384_vm", &pages(0..1));
    write("base/5/16390_init", &pages(0..1));
    write("base/5/16391", b"");
    write("global/1262", &pages(0..2));
    for name in ["base/5/pg_filenode.map", "global/pg_filenode.map"] {
        write(name, &relation_map());
    }
    write("base/5/PG_VERSION", b"15\n");
    write("pg_xact/0000", &[0; 2 * BLOCK_SIZE]);
    write("pg_multixact/members/0000", &[0; BLOCK_SIZE]);
    write("pg_twophase/000002BC", &prepared(700));
    write("pg_logical/replorigin_checkpoint", &replication_state::to_file([]));
    directory
}

/// A relation that was never written to but for its end: the second file has one page.
fn add_large(directory: &Path) {
    let first = fs::File::create(directory.join("base/5/20000")).unwrap();
    first.set_len(FILE).unwrap();
    fs::write(directory.join("base/5/20000.1"), page(BLOCKS_PER_FILE, START)).unwrap();
}

fn inspect(directory: &Path) -> Findings {
    let inspection = Inspection::begin(directory).unwrap();
    let (bytes, progress) = (inspection.bytes(), AtomicU64::new(0));
    let findings = inspection.run(NonZero::new(2).unwrap(), &progress).unwrap();
    assert_eq!(progress.into_inner(), bytes);
    findings
}

fn damages(findings: &Findings) -> Vec<String> {
    assert_eq!(findings.damages.count(), findings.damages.listed().len() as u64);
    findings.damages.listed().iter().map(ToString::to_string).collect()
}

/// Flips a bit, looks, and flips it back.
fn with_flip<T>(directory: &Path, name: &str, offset: u64, look: impl FnOnce() -> T) -> T {
    let file = OpenOptions::new().read(true).write(true).open(directory.join(name)).unwrap();
    let flip = || {
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    };
    flip();
    let seen = look();
    flip();
    seen
}

#[test]
fn a_sound_store_is_sound() {
    for checksums in [true, false] {
        let directory = store(checksums);
        let inspection = Inspection::begin(directory.path()).unwrap();
        inspection.consistency().unwrap();
        assert_eq!(inspection.has_checksums(), checksums);
        assert_eq!(inspection.newest(), START);
        drop(inspection);
        let findings = inspect(directory.path());
        assert_eq!(damages(&findings), [""; 0]);
        assert_eq!((findings.pages, findings.empty_pages), (6 + 3 + 1 + 1 + 2, 1));
        assert_eq!((findings.files, findings.slru_pages), (6, 3));
        assert_eq!((findings.relation_maps, findings.prepared_transactions), (2, 1));
        assert_eq!(findings.not_checked, [""; 0]);
    }
}

#[test]
fn a_flipped_bit_is_found_wherever_it_is() {
    let directory = store(true);
    let flip = |name: &str, offset: u64| {
        with_flip(directory.path(), name, offset, || inspect(directory.path()))
    };
    let page = BLOCK_SIZE as u64;
    for (name, offset, expected) in [
        ("base/5/16384", 100, "base/5/16384 block 0: checksum 0x"),
        ("base/5/16384", 3 * page + 8, "base/5/16384 block 3: checksum 0x"),
        ("base/5/16384", 6 * page - 1, "base/5/16384 block 5: checksum 0x"),
        (
            "base/5/16384",
            2 * page + 4000,
            "base/5/16384 block 2: page has upper 0 and is not all zero",
        ),
        ("base/5/16390_init", 14, "base/5/16390_init block 0: checksum 0x"),
        ("global/1262", page, "global/1262 block 1: checksum 0x"),
        ("base/5/pg_filenode.map", 9, "base/5/pg_filenode.map: CRC 0x"),
        ("global/pg_filenode.map", 0, "global/pg_filenode.map: magic 0x"),
        ("pg_twophase/000002BC", 30, "pg_twophase/000002BC: "),
        ("pg_logical/replorigin_checkpoint", 5, "pg_logical/replorigin_checkpoint: "),
    ] {
        let found = damages(&flip(name, offset));
        assert_eq!(found.len(), 1, "{name} at {offset}: {found:?}");
        assert!(found[0].starts_with(expected), "{expected}: {}", found[0]);
    }
    let error = with_flip(directory.path(), "global/pg_control", 140, || {
        Inspection::begin(directory.path()).err().unwrap()
    });
    assert!(matches!(error, OpenError::Control(_)), "{error}");

    // Nothing is lost with those.
    for name in ["base/5/16384_fsm", "base/5/16384_vm"] {
        let findings = flip(name, 50);
        assert_eq!(damages(&findings), [""; 0]);
        let maps = findings.damaged_maps.listed();
        assert_eq!((maps.len(), maps[0].file.as_str(), maps[0].block), (1, name, Some(0)));
    }
    assert_eq!(damages(&inspect(directory.path())), [""; 0]);
}

#[test]
fn pages_are_counted_across_a_forks_files() {
    let directory = store(true);
    add_large(directory.path());
    let findings = inspect(directory.path());
    assert_eq!(damages(&findings), [""; 0]);
    assert_eq!((findings.pages, findings.files), (13 + u64::from(BLOCKS_PER_FILE) + 1, 8));
    assert_eq!(findings.empty_pages, u64::from(BLOCKS_PER_FILE) + 1);
    let found = with_flip(directory.path(), "base/5/20000", FILE - 1, || {
        let page_end = BLOCK_SIZE as u64 - 1;
        let look = || damages(&inspect(directory.path()));
        with_flip(directory.path(), "base/5/20000.1", page_end, look)
    });
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("base/5/20000 block 131071: page has upper 0 and is not all"));
    assert!(found[1].starts_with("base/5/20000.1 block 131072: checksum 0x"), "{found:?}");
}

#[test]
fn without_checksums_headers_are_still_checked() {
    let directory = store(false);
    let flip = |offset: u64| {
        let look = || damages(&inspect(directory.path()));
        with_flip(directory.path(), "base/5/16384", offset, look)
    };
    assert_eq!(flip(100), [""; 0], "nothing tells");
    let found = flip(BLOCK_SIZE as u64 + 11);
    assert!(found[0].starts_with("base/5/16384 block 1: page header is not valid"), "{found:?}");
}

#[test]
fn no_page_is_newer_than_the_store() {
    let directory = store(true);
    let file = OpenOptions::new().write(true).open(directory.path().join("base/5/16384")).unwrap();
    let found = START.advance(8);
    file.write_all_at(&page(4, found), 4 * BLOCK_SIZE as u64).unwrap();
    let findings = inspect(directory.path());
    let kind = DamageKind::Newer { newest: START, found };
    assert_eq!(findings.damages.listed()[0].kind, kind);
    assert_eq!((findings.damages.count(), findings.damages.listed()[0].block), (1, Some(4)));
    assert_eq!(findings.damages.beyond_repair(), 0);

    change_control(directory.path(), |control| control.min_recovery_point = found);
    assert_eq!(damages(&inspect(directory.path())), [""; 0]);
}

#[test]
fn lengths_are_checked() {
    for (name, length, expected) in [
        ("base/5/16384", 3 * 8192 + 100, "base/5/16384: 24676 bytes, expected whole pages"),
        ("base/5/20000", FILE - 8192, "base/5/20000: 1073733632 bytes, expected 1 GB"),
        ("base/5/20000", FILE + 8192, "base/5/20000: 1073750016 bytes, expected 1 GB"),
        ("pg_xact/0000", 8191, "pg_xact/0000: 8191 bytes, expected whole pages"),
        ("pg_xact/0000", 33 * 8192, "pg_xact/0000: 270336 bytes, expected whole pages"),
    ] {
        let directory = store(true);
        if name.contains("20000") {
            add_large(directory.path());
        }
        let file = OpenOptions::new().write(true).open(directory.path().join(name)).unwrap();
        file.set_len(length).unwrap();
        let found = damages(&inspect(directory.path()));
        assert_eq!(found.len(), 1, "{name} {length}: {found:?}");
        assert!(found[0].starts_with(expected), "{expected}: {}", found[0]);
    }
    let directory = store(true);
    add_large(directory.path());
    fs::remove_file(directory.path().join("base/5/20000")).unwrap();
    let found = damages(&inspect(directory.path()));
    assert_eq!(found, ["base/5/20000.1: 8192 bytes, expected the file before it to be there"]);
    // A relation that was cut leaves empty files.
    let directory = store(true);
    fs::write(directory.path().join("base/5/20000"), pages(0..1)).unwrap();
    fs::write(directory.path().join("base/5/20000.1"), "").unwrap();
    assert_eq!(damages(&inspect(directory.path())), [""; 0]);
}

#[test]
fn tablespaces_and_unknown_files_are_told_of() {
    let directory = store(true);
    let space = directory.path().join("pg_tblspc/16400/PG_15_202209061/5");
    fs::create_dir_all(&space).unwrap();
    let mut bytes = pages(0..3);
    bytes[BLOCK_SIZE + 77] ^= 4;
    fs::write(space.join("16384"), bytes).unwrap();
    fs::write(space.join("note"), "none of ours").unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", directory.path().join("pg_tblspc/16401"))
        .unwrap();
    let findings = inspect(directory.path());
    let found = damages(&findings);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].starts_with("pg_tblspc/16400/PG_15_202209061/5/16384 block 1: checksum"));
    assert_eq!(found[1], "pg_tblspc/16401: the tablespace is not there");
    assert_eq!(findings.not_checked, ["pg_tblspc/16400/PG_15_202209061/5/note"]);
}

#[test]
fn the_way_it_was_stopped_decides_what_can_be_said() {
    let directory = data_directory(true);
    let reason = || Inspection::begin(directory.path()).unwrap().consistency().err();
    assert_eq!(reason(), None);

    let store = open(directory.path());
    match Inspection::begin(directory.path()) {
        Err(OpenError::Lock(error)) => assert!(error.to_string().contains("is open already")),
        other => panic!("{other:?}"),
    }
    drop(store); // as after a crash
    assert_eq!(reason(), Some(NotConsistent::UncleanStop));
    let mut store = open(directory.path());
    store.close().unwrap();
    assert_eq!(reason(), Some(NotConsistent::UncleanStop), "it has not caught up in between");
    store = open(directory.path());
    store.set_consistent_after(store.applied()).unwrap();
    store.close().unwrap();
    assert_eq!(reason(), None);

    let inspection = Inspection::begin(directory.path()).unwrap();
    let files = fs::read_dir(directory.path()).unwrap().count();
    assert!(Inspection::begin(directory.path()).is_err(), "one looks at a time");
    drop(inspection);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), files);

    change_control(directory.path(), |control| control.backup_start_point = START);
    assert_eq!(reason(), Some(NotConsistent::BackupEnd { start: START }));
    change_control(directory.path(), |control| control.state = ClusterState::IN_PRODUCTION);
    match Inspection::begin(directory.path()) {
        Err(OpenError::State { found }) => assert_eq!(found, ClusterState::IN_PRODUCTION),
        other => panic!("{other:?}"),
    }
}

/// After an unclean stop, pages from later than the control file's position are no fault, and what
/// replay does not repair is.
#[test]
fn after_an_unclean_stop_only_whole_files_are_judged() {
    let directory = store(true);
    fs::write(directory.path().join("walferry.lock"), "running\n").unwrap();
    let file = OpenOptions::new().write(true).open(directory.path().join("base/5/16384")).unwrap();
    file.write_all_at(&page(4, START.advance(8)), 4 * BLOCK_SIZE as u64).unwrap();
    assert_eq!(damages(&inspect(directory.path())), [""; 0]);
    file.write_all_at(&[9; 4096], BLOCK_SIZE as u64 + 4096).unwrap();
    let findings = inspect(directory.path());
    assert_eq!((findings.damages.count(), findings.damages.beyond_repair()), (1, 0));
    let findings =
        with_flip(directory.path(), "pg_twophase/000002BC", 30, || inspect(directory.path()));
    assert_eq!((findings.damages.count(), findings.damages.beyond_repair()), (2, 1));
}
