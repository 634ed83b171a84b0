//! `[store] verify_images`: under `wal_consistency_checking` each record carries the pages as the
//! leader had them after its change; the follower compares its own with them and stops at the first
//! that differs.
//!
//! Control: the same store with one rule of redo broken on purpose, for several rules. Each must stop
//! at the first record that the rule is for.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use integration::recording::Recording;
use integration::{Cluster, ClusterOptions, PATIENCE, Pair, Scratch};
use walferry_store::{BrokenRule, PageFault, ReplayError, Store, StoreConfig};
use walfmt::bytes::{put, u32_at};
use walfmt::page::item_range;
use walfmt::rmgr::{RmgrId, btree, heap, heap2};
use walfmt::{Lsn, Record};
use walfmt_physical::{Page, page};

fn options() -> ClusterOptions {
    let mut options = ClusterOptions::default();
    // The first record of a kind is one that the test has caused.
    let settings = [
        "wal_consistency_checking = all",
        "checkpoint_timeout = 1h",
        "max_wal_size = 4GB",
        "autovacuum = off",
    ];
    options.settings.extend(settings.map(str::to_owned));
    options
}

fn work(leader: &Cluster) -> Result<()> {
    leader.pgbench_run(&["-n", "-c", "4", "-t", "300"])?;
    for statement in [
        "create table worked (id serial primary key, v int, t text)",
        "insert into worked (v, t) select g % 10, repeat('x', g % 50) from generate_series(1, 4000) g",
        "create index on worked (v)",
        "update worked set v = v + 1 where id % 3 = 0",
        "delete from worked where id % 5 = 0",
        "vacuum (freeze) worked",
        "update worked set t = 'y' where id % 7 = 0",
        "vacuum pgbench_tellers",
    ] {
        leader.sql(statement)?;
    }
    Ok(())
}

#[test]
fn a_follower_verifies_what_it_replays() -> Result<()> {
    let scratch = Scratch::new()?;
    let store = [("verify_images", "true"), ("cache_bytes", "8MB")];
    let pair =
        Pair::start_prepared(&scratch, &options(), &store, |leader| leader.pgbench_init(1, &[]))?;
    work(&pair.leader)?;
    let end = pair.catch_up(PATIENCE)?;
    let metrics = pair.follower.metrics()?;
    let verified = metrics.expect("walferry_verified_images_total")?;
    println!("{verified} pages compared with the leader's images up to {end}, 0 different");
    ensure!(verified > 5000.0, "only {verified} images were verified");
    ensure!(pair.follower.state_of("replay")? == "streaming");
    Ok(())
}

/// Each a rule, the records it is for, and how it is broken.
const BROKEN: [(&str, RmgrId, u8, u8, BrokenRule); 4] = [
    (
        "a deleted row gets no xmax",
        RmgrId::HEAP,
        heap::OPCODE_MASK,
        heap::DELETE,
        |record, page| {
            change_item(record, heap::DELETE, RmgrId::HEAP, page, |tuple| put(tuple, 4, [0; 4]));
        },
    ),
    (
        "a new row has another xmin",
        RmgrId::HEAP,
        heap::OPCODE_MASK,
        heap::INSERT,
        |record, page| {
            change_item(record, heap::INSERT, RmgrId::HEAP, page, |tuple| {
                let xmin = u32_at(tuple, 0);
                put(tuple, 0, (xmin + 1).to_le_bytes());
            });
        },
    ),
    (
        "an index tuple goes astray",
        RmgrId::BTREE,
        0xF0,
        btree::XLOG_BTREE_INSERT_LEAF,
        |record, page| {
            if is(record, RmgrId::BTREE, 0xF0, btree::XLOG_BTREE_INSERT_LEAF) {
                let last = page::max_offset(page);
                let range = item_range(page, last).expect("a leaf has items");
                page[range.start] ^= 1;
            }
        },
    ),
    (
        "a pruned page keeps its line pointers",
        RmgrId::HEAP2,
        heap2::OPCODE_MASK,
        heap2::PRUNE,
        |record, page| {
            if is(record, RmgrId::HEAP2, heap2::OPCODE_MASK, heap2::PRUNE) {
                page[24] ^= 4; // of the first item
            }
        },
    ),
];

fn is(record: &Record<'_>, rmgr: RmgrId, mask: u8, opcode: u8) -> bool {
    record.header.rmgr == rmgr && record.header.info & mask == opcode
}

/// Changes the item that the record speaks of in the first bytes of its main data.
fn change_item(
    record: &Record<'_>,
    opcode: u8,
    rmgr: RmgrId,
    page: &mut Page,
    change: fn(&mut [u8]),
) {
    if !is(record, rmgr, heap::OPCODE_MASK, opcode) {
        return;
    }
    let at = if opcode == heap::DELETE { 4 } else { 0 };
    let Some(offset) = record.main_data.get(at..at + 2) else { return };
    let offset = u16::from_le_bytes([offset[0], offset[1]]);
    if let Ok(range) = item_range(page, offset) {
        change(&mut page[range]);
    }
}

#[test]
fn a_broken_rule_is_noticed() -> Result<()> {
    let scratch = Scratch::new()?;
    let prepare = |leader: &Cluster| leader.pgbench_init(1, &[]);
    let options = ClusterOptions { fsync: false, ..options() };
    let recording = Recording::make(&scratch, "verified", &options, prepare, work)?;

    let sound = replay(&recording, &scratch, "sound", None)?;
    let Replayed::Whole { images } = sound else { bail!("a sound replay stopped: {sound:?}") };
    println!("sound redo: {images} images compared, 0 different");
    ensure!(images > 5000, "only {images} images were compared");

    for (number, (what, rmgr, mask, opcode, rule)) in BROKEN.into_iter().enumerate() {
        let first = first_compared(&recording, rmgr, mask, opcode)?;
        let found = replay(&recording, &scratch, &format!("broken{number}"), Some(rule))?;
        println!("control: {what}: {found:?}");
        match found {
            Replayed::Stopped { at, rmgr: of, opcode: found, .. }
                if at >= first && of == rmgr && found & mask == opcode => {}
            other => bail!("{what}: first such record at {first}, but {other:?}"),
        }
    }
    Ok(())
}

#[derive(Debug)]
#[allow(dead_code)] // printed
enum Replayed {
    Whole { images: u64 },
    Stopped { at: Lsn, rmgr: RmgrId, opcode: u8, words: String },
}

fn replay(
    recording: &Recording,
    scratch: &Scratch,
    name: &str,
    broken: Option<BrokenRule>,
) -> Result<Replayed> {
    let directory = scratch.path().join(name);
    recording.new_store(&directory)?;
    let config = StoreConfig {
        data_directory: directory,
        workers: 2,
        cache_bytes: 8 << 20,
        restart_point_interval: Duration::from_secs(1),
        verify_images: true,
        rows: None,
    };
    let mut store = match broken {
        None => Store::open(&config)?,
        Some(rule) => Store::open_with_broken_rule(&config, rule)?,
    };
    let mut stopped = None;
    recording.replay(store.replay_from(), |record| match store.replay(record) {
        Ok(()) => Ok(true),
        Err(error) => {
            stopped = Some(error);
            Ok(false)
        }
    })?;
    let stopped = match stopped {
        None => store.wait_applied().err(),
        stopped => stopped,
    };
    match stopped {
        None => Ok(Replayed::Whole { images: store.take_images_verified() }),
        Some(ReplayError::Page {
            at,
            fault: PageFault::Differs { page, rmgr, opcode, offset, expected, found },
            ..
        }) => {
            let fault = PageFault::Differs { page, rmgr, opcode, offset, expected, found };
            Ok(Replayed::Stopped { at, rmgr, opcode, words: fault.to_string() })
        }
        Some(other) => Err(other.into()),
    }
}

/// Where the first record of this kind begins that carries an image to compare with.
fn first_compared(recording: &Recording, rmgr: RmgrId, mask: u8, opcode: u8) -> Result<Lsn> {
    let mut first = None;
    let version = walfmt::Version::from_page_magic(0xD110).context("PostgreSQL 15 is known")?;
    recording.replay(recording.redo, |raw| {
        let record = Record::decode(raw, version)?;
        let compared = record
            .blocks
            .iter()
            .any(|block| block.image.as_ref().is_some_and(|image| !image.apply));
        if is(&record, rmgr, mask, opcode) && compared {
            first = Some(raw.start);
        }
        Ok(first.is_none())
    })?;
    first.context("the workload has no such record")
}
