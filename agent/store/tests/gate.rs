//! Pages of TOAST relations are not written before rows are durable up to their LSN.
#![allow(clippy::unwrap_used)] // a test that panics has failed, as it should

mod support;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use support::{START, Wal, config, data_directory, main_page};
use walferry_store::{Rows, Store, StoreConfig, ToastRequest};
use walfmt::{BLOCK_SIZE, Lsn};

/// A TOAST relation, and another one.
const TOAST: u32 = 1;
const OTHER: u32 = 2;

const PATIENCE: Duration = Duration::from_secs(60);

fn open(directory: &Path, rows: &Arc<Rows>, cache_pages: u64) -> Store {
    rows.set_toast(5, &[TOAST]);
    Store::open(&StoreConfig {
        rows: Some(Arc::clone(rows)),
        restart_point_interval: Duration::ZERO,
        ..config(directory, 1, cache_pages)
    })
    .unwrap()
}

/// Adds a row to each of these pages. Gives where the last record ends.
fn change(
    store: &mut Store,
    wal: &mut Wal,
    relation: u32,
    blocks: std::ops::Range<u32>,
    item: u16,
) -> Lsn {
    for block in blocks {
        store.replay(&wal.insert(main_page(relation, block), item, 20, false).raw()).unwrap();
    }
    store.hand_over().unwrap();
    wal.next()
}

/// The LSNs of pages in a relation's file: zero where nothing was written.
fn written(directory: &Path, relation: u32) -> Vec<Lsn> {
    let bytes = std::fs::read(directory.join(format!("base/5/{relation}"))).unwrap_or_default();
    let (pages, rest) = bytes.as_chunks::<BLOCK_SIZE>();
    assert!(rest.is_empty());
    pages.iter().map(walfmt::page::lsn).collect()
}

fn latest(directory: &Path, relation: u32) -> Lsn {
    written(directory, relation).into_iter().max().unwrap_or_default()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn eviction_passes_over_pages_whose_rows_are_not_durable() {
    for has_gate in [true, false] {
        let directory = data_directory(true);
        let rows = Arc::new(Rows::default());
        if !has_gate {
            rows.switch_gate_off();
        }
        let mut store = open(directory.path(), &rows, 8);
        let mut wal = Wal::new();
        let half = change(&mut store, &mut wal, TOAST, 0..2, 1);
        change(&mut store, &mut wal, TOAST, 2..4, 1);
        change(&mut store, &mut wal, OTHER, 0..100, 1);
        store.wait_applied().unwrap();
        assert!(latest(directory.path(), OTHER).is_valid(), "others are written");
        if !has_gate {
            // The control.
            assert!(latest(directory.path(), TOAST) > half && rows.pages_held() == 0);
            continue;
        }
        assert_eq!(latest(directory.path(), TOAST), Lsn::INVALID);
        assert!(rows.pages_held() >= 4);

        rows.set_durable(half);
        change(&mut store, &mut wal, OTHER, 100..200, 1);
        store.wait_applied().unwrap();
        assert_eq!(latest(directory.path(), TOAST), half, "those two, and no more");
        // They are as they should be when they come back.
        change(&mut store, &mut wal, TOAST, 0..4, 2);
        rows.set_durable(Lsn(u64::MAX));
        store.close().unwrap();
        assert_eq!(latest(directory.path(), TOAST), wal.next());
        assert_eq!(rows.pages_written_early(), 0);
    }
}

/// Pages of a file that nobody has told of count, from its creation on, until somebody tells.
#[test]
fn a_new_relation_waits_until_it_is_told_what_it_is() {
    const NEW: u32 = 3;
    for is_told in [false, true] {
        let directory = data_directory(false);
        let rows = Arc::new(Rows::default());
        let mut store = open(directory.path(), &rows, 8);
        let mut wal = Wal::new();
        store.replay(&wal.create(main_page(NEW, 0).locator).raw()).unwrap();
        change(&mut store, &mut wal, NEW, 0..4, 1);
        change(&mut store, &mut wal, OTHER, 0..100, 1);
        store.wait_applied().unwrap();
        assert_eq!(latest(directory.path(), NEW), Lsn::INVALID);
        if is_told {
            rows.set_not_toast(5, &[NEW]);
        }
        change(&mut store, &mut wal, OTHER, 100..200, 1);
        store.wait_applied().unwrap();
        assert_eq!(latest(directory.path(), NEW).is_valid(), is_told);
    }
}

/// All pages have to wait: memory grows, nothing more is replayed, and questions are answered.
#[test]
fn replay_pauses_and_answers_when_all_pages_have_to_wait() {
    let directory = data_directory(false);
    let rows = Arc::new(Rows::default());
    let mut store = open(directory.path(), &rows, 8);
    let mut wal = Wal::new();
    let end = change(&mut store, &mut wal, TOAST, 0..300, 1);
    store.wait_applied().unwrap();
    assert_eq!(latest(directory.path(), TOAST), Lsn::INVALID);
    assert!(rows.durable_is_wanted());

    let goes_on = AtomicBool::new(false);
    thread::scope(|scope| {
        let replaying = scope.spawn(|| {
            change(&mut store, &mut wal, TOAST, 0..300, 2);
            goes_on.store(true, Ordering::SeqCst);
            change(&mut store, &mut wal, OTHER, 0..300, 1);
            store.wait_applied().unwrap();
            wal.next()
        });
        let mut taken = Vec::new();
        assert_eq!(rows.take(&mut taken, usize::MAX, Duration::from_millis(200)), end);
        assert!(!goes_on.load(Ordering::SeqCst), "more is replayed");
        // The dispatcher waits for us, and answers.
        let toast = main_page(TOAST, 0).locator;
        let request = ToastRequest { heap: toast, index: toast, value: 7 };
        assert_eq!(rows.ask(vec![request], || false).unwrap().len(), 1);
        assert!(!goes_on.load(Ordering::SeqCst));
        rows.set_durable(end);
        let begun = Instant::now();
        while !replaying.is_finished() && begun.elapsed() < PATIENCE {
            let end = rows.take(&mut taken, usize::MAX, Duration::from_millis(10));
            assert!(latest(directory.path(), TOAST) <= end);
            rows.set_durable(end);
        }
        let end = replaying.join().unwrap();
        assert_eq!(rows.take(&mut taken, usize::MAX, Duration::from_millis(10)), end);
    });
    assert_eq!(rows.pages_written_early(), 0);
    rows.set_durable(Lsn(u64::MAX));
    store.close().unwrap();
    let lsns = written(directory.path(), TOAST);
    assert!(lsns.len() == 300 && lsns.iter().all(|lsn| *lsn > end), "no change is lost");
}

/// Where memory must not grow any more pages are written, and that is counted.
#[test]
fn what_memory_cannot_hold_is_written_and_counted() {
    let directory = data_directory(false);
    let rows = Arc::new(Rows::default());
    rows.limit_growth(20);
    let mut store = open(directory.path(), &rows, 8);
    let mut wal = Wal::new();
    change(&mut store, &mut wal, TOAST, 0..28, 1);
    store.wait_applied().unwrap();
    assert_eq!((latest(directory.path(), TOAST), rows.pages_written_early()), (Lsn::INVALID, 0));
    drop(store);

    let mut store = open(directory.path(), &rows, 8);
    let mut wal = Wal::new();
    let end = change(&mut store, &mut wal, TOAST, 0..60, 1);
    store.wait_applied().unwrap();
    assert!(latest(directory.path(), TOAST).is_valid() && rows.pages_written_early() >= 32);
    rows.set_durable(end);
    store.close().unwrap();
    assert!(written(directory.path(), TOAST).iter().all(|lsn| lsn.is_valid()));
}

/// A restart point's pages are written as they were when they had to wait, even if they change all the
/// time; and it is not made before.
#[test]
fn a_restart_point_writes_copies_when_rows_are_durable() {
    for has_gate in [true, false] {
        let directory = data_directory(true);
        let rows = Arc::new(Rows::default());
        if !has_gate {
            rows.switch_gate_off();
        }
        let mut store = open(directory.path(), &rows, 4096);
        let mut wal = Wal::new();
        change(&mut store, &mut wal, OTHER, 0..10, 1); // the first to be written, too
        change(&mut store, &mut wal, TOAST, 0..1200, 1);
        let checkpoint = wal.checkpoint_here();
        store.replay(&checkpoint.raw()).unwrap();
        wait_until("others are written", || latest(directory.path(), OTHER).is_valid());
        if !has_gate {
            // The control.
            wait_until("all are written", || latest(directory.path(), TOAST) == checkpoint.start);
            continue;
        }
        wait_until("held", || rows.pages_held() > 0);
        let end = change(&mut store, &mut wal, TOAST, 0..1200, 2);
        store.wait_applied().unwrap();
        assert_eq!(latest(directory.path(), TOAST), Lsn::INVALID);
        // All of the restart point's, of which there are too many to copy at once, and half of the others.
        let half = Lsn(checkpoint.end.0.midpoint(end.0));
        rows.set_durable(half);
        wait_until("copies are written", || latest(directory.path(), TOAST).is_valid());
        thread::sleep(Duration::from_millis(100));
        assert!(latest(directory.path(), TOAST) <= half);
        assert_eq!(store.restart_redo(), START, "some were changed behind what is durable");
        rows.set_durable(end);
        wait_until("a restart point", || store.restart_redo() == checkpoint.start);
        assert!(written(directory.path(), TOAST).iter().all(|lsn| lsn.is_valid()));

        // A relation that goes while its copies wait does not come back.
        change(&mut store, &mut wal, TOAST, 0..1200, 3);
        let held = rows.pages_held();
        let checkpoint = wal.checkpoint_here();
        store.replay(&checkpoint.raw()).unwrap();
        wait_until("held", || rows.pages_held() > held);
        let cut = wal.truncate(main_page(TOAST, 0).locator, 10);
        thread::scope(|scope| {
            let durable = scope.spawn(|| {
                thread::sleep(Duration::from_millis(50));
                rows.set_durable(checkpoint.end);
            });
            store.replay(&cut.raw()).unwrap();
            durable.join().unwrap();
        });
        rows.set_durable(Lsn(u64::MAX));
        store.close().unwrap();
        assert_eq!(written(directory.path(), TOAST).len(), 10);
    }
}

/// Files are complete when somebody looks at them, even if that takes until rows are durable.
#[test]
fn files_are_complete_for_who_looks_at_them() {
    let directory = data_directory(false);
    let rows = Arc::new(Rows::default());
    let mut store = open(directory.path(), &rows, 64);
    let mut wal = Wal::new();
    let end = change(&mut store, &mut wal, TOAST, 0..10, 1);
    thread::scope(|scope| {
        let looking = scope.spawn(|| store.settle_files());
        let mut taken = Vec::new();
        wait_until("it waits", || rows.durable_is_wanted());
        assert_eq!(rows.take(&mut taken, usize::MAX, PATIENCE), end);
        let toast = main_page(TOAST, 0).locator;
        let request = ToastRequest { heap: toast, index: toast, value: 7 };
        assert_eq!(rows.ask(vec![request], || false).unwrap().len(), 1);
        assert!(!looking.is_finished() && latest(directory.path(), TOAST) == Lsn::INVALID);
        rows.set_durable(end);
        looking.join().unwrap().unwrap();
    });
    assert!(written(directory.path(), TOAST).iter().all(|lsn| lsn.is_valid()));
    assert_eq!(latest(directory.path(), TOAST), end);
}

/// Whoever takes no rows any more is not waited for.
#[test]
fn nothing_waits_for_who_has_gone() {
    let directory = data_directory(false);
    let rows = Arc::new(Rows::default());
    let mut store = open(directory.path(), &rows, 8);
    let mut wal = Wal::new();
    change(&mut store, &mut wal, TOAST, 0..100, 1);
    rows.abandon();
    change(&mut store, &mut wal, TOAST, 0..100, 2);
    store.wait_applied().unwrap();
    assert!(latest(directory.path(), TOAST).is_valid());
    store.close().unwrap();
}
