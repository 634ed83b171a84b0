//! A restart point waits for whoever takes the rows: replay from it does not bring those before it.
#![allow(clippy::unwrap_used)] // a test that panics has failed, as it should

mod support;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use support::{START, Wal, config, control, data_directory, main_page};
use walferry_store::{Rows, Store, StoreConfig, ToastRequest};
use walfmt::Lsn;
use walfmt::row::Entry;

/// How often it is looked whether what is waited for has come.
const LOOK_PAUSE: Duration = Duration::from_millis(5);

fn config_with(directory: &Path, rows: &Arc<Rows>) -> StoreConfig {
    StoreConfig {
        restart_point_interval: Duration::ZERO,
        rows: Some(Arc::clone(rows)),
        ..config(directory, 2, 256)
    }
}

fn count(mut entries: &[u8]) -> usize {
    let mut count = 0;
    while !entries.is_empty() {
        entries = Entry::read(entries).unwrap().1;
        count += 1;
    }
    count
}

/// Replays ten rows, a checkpoint, and ten more rows. Gives where the checkpoint is.
fn replay(store: &mut Store) -> Lsn {
    let mut wal = Wal::new();
    for item in 1..=10 {
        store.replay(&wal.insert(main_page(1, 0), item, 20, false).raw()).unwrap();
    }
    let checkpoint = wal.checkpoint_here();
    store.replay(&checkpoint.raw()).unwrap();
    for item in 1..=10 {
        store.replay(&wal.insert(main_page(1, 1), item, 20, false).raw()).unwrap();
    }
    store.hand_over().unwrap();
    store.wait_applied().unwrap();
    checkpoint.start
}

/// What a power cut leaves is what was synced: here nothing of the rows, and of the store what its
/// control file says. Both ways: with a restart point that waits, and with one that does not.
#[test]
fn a_restart_point_waits_until_rows_are_durable() {
    for is_waited_for in [true, false] {
        let directory = data_directory(false);
        let rows = Arc::new(Rows::default());
        let mut store = Store::open(&config_with(directory.path(), &rows)).unwrap();
        let redo = replay(&mut store);
        let mut taken = Vec::new();
        if !is_waited_for {
            rows.abandon(); // the guard off
        }
        if !is_waited_for {
            // The control: nobody has the ten rows before it, and nobody brings them again.
            while store.restart_redo() == START {
                std::thread::sleep(LOOK_PAUSE);
            }
            let begins_again = control(directory.path()).check_point_copy.redo;
            assert_eq!((begins_again, store.restart_redo()), (redo, redo));
            rows.take(&mut taken, 1 << 20, Duration::ZERO);
            assert_eq!(count(&taken), 0);
            store.close().unwrap();
            continue;
        }
        // Taken, and not synced. One that does not wait never says that it does, and is there at last.
        rows.take(&mut taken, 1 << 20, Duration::from_secs(1));
        while !rows.durable_is_wanted() {
            assert_eq!(store.restart_redo(), START, "it has not waited");
            std::thread::sleep(LOOK_PAUSE);
        }
        let begins_again = control(directory.path()).check_point_copy.redo;
        assert_eq!(begins_again, START, "rows before {redo} are durable nowhere");
        assert_eq!(store.restart_redo(), START);
        assert_eq!(count(&taken), 20);

        // Durable up to just before it is not enough.
        rows.set_durable(Lsn(redo.0 - 1));
        std::thread::sleep(Duration::from_millis(250));
        assert_eq!(store.restart_redo(), START);
        rows.set_durable(redo);
        while store.restart_redo() != redo {
            std::thread::sleep(LOOK_PAUSE);
        }
        assert!(!rows.durable_is_wanted());
        store.close().unwrap();
    }
}

/// After a promotion no store brings rows again: it waits until they are durable, and answers meanwhile.
#[test]
fn a_promotion_waits_until_all_rows_are_durable() {
    for is_waited_for in [true, false] {
        let directory = data_directory(false);
        let rows = Arc::new(Rows::default());
        let mut store = Store::open(&config_with(directory.path(), &rows)).unwrap();
        let redo = replay(&mut store);
        let mut taken = Vec::new();
        let mut end = Lsn(0);
        while count(&taken) < 20 {
            end = rows.take(&mut taken, 1 << 20, Duration::from_secs(1));
        }
        if !is_waited_for {
            rows.abandon(); // the control: nobody takes rows
        }
        // That a restart point waits, too, says nothing of the promotion.
        rows.set_durable(redo);
        let promoting = std::thread::spawn(move || store.finish_for_promotion().map(drop));
        if is_waited_for {
            // One that does not wait never says that it does, and ends.
            while !rows.durable_is_wanted() {
                assert!(!promoting.is_finished(), "it has not waited");
                std::thread::sleep(LOOK_PAUSE);
            }
            // Durable up to just before the end is not enough.
            rows.set_durable(Lsn(end.0 - 1));
            std::thread::sleep(Duration::from_millis(250));
            assert!(rows.durable_is_wanted() && !promoting.is_finished());
            rows.set_durable(end);
        }
        // The control ends though the last rows are durable nowhere.
        promoting.join().unwrap().unwrap();
    }
}

/// Who got no answer has taken rows in vain: they come again from another store, and none behind them before.
#[test]
fn rows_without_an_answer_come_again() {
    let directory = data_directory(false);
    let rows = Arc::new(Rows::default());
    let mut store = Store::open(&config_with(directory.path(), &rows)).unwrap();
    let mut wal = Wal::new();
    let mut insert = |store: &mut Store, items: std::ops::RangeInclusive<u16>| {
        for item in items {
            store.replay(&wal.insert(main_page(1, 0), item, 20, false).raw()).unwrap();
        }
        store.hand_over().unwrap();
        store.wait_applied().unwrap();
    };
    insert(&mut store, 1..=10);
    let (mut taken, patience) = (Vec::new(), Duration::from_millis(10));
    let end = rows.take(&mut taken, 1 << 20, patience);
    assert_eq!((count(&taken), end), (10, store.applied()));
    let locator = main_page(1, 0).locator;
    let request = ToastRequest { heap: locator, index: locator, value: 7 };
    assert!(rows.ask(vec![request], || true).is_none());

    insert(&mut store, 11..=20);
    taken.clear();
    let end = rows.take(&mut taken, 1 << 20, patience);
    assert_eq!((count(&taken), end), (0, Lsn::INVALID), "behind those that are not complete");
    drop(store);

    // Another store begins while somebody waits for rows, and is the one that he asks.
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| {
            let (mut taken, mut end) = (Vec::new(), Lsn::INVALID);
            while count(&taken) < 10 {
                end = rows.take(&mut taken, 1 << 20, Duration::from_secs(20));
            }
            (end, rows.ask(vec![request], || false))
        });
        std::thread::sleep(Duration::from_millis(50));
        let mut store = Store::open(&config_with(directory.path(), &rows)).unwrap();
        let mut wal = Wal::new();
        for item in 1..=10 {
            store.replay(&wal.insert(main_page(1, 0), item, 20, false).raw()).unwrap();
        }
        store.wait_applied().unwrap();
        while !taking.is_finished() {
            store.serve_rows().unwrap();
        }
        let (end, answer) = taking.join().unwrap();
        assert!(end == store.applied() && answer.is_some_and(|answers| answers.len() == 1));
    });
}
