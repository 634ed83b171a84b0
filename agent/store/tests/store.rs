//! What the store promises: order, errors, restart points, consistency, hand-over.
#![allow(clippy::unwrap_used)] // a test that panics has failed, as it should

mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use support::{
    Block, START, Wal, change_control, checkpoint, config, control, data_directory, files,
    main_page, open, page_lsns, some_page,
};
use walferry_store::{
    LockError, NotConsistent, OpenError, PageFault, PromotionError, Refusal, ReplayError, Store,
    StoreConfig,
};
use walfmt::backup_label::BackupLabel;
use walfmt::bytes::put;
use walfmt::control::ClusterState;
use walfmt::relation::{BLOCK_SIZE, ForkNumber, PageId};
use walfmt::rmgr::RmgrId;
use walfmt::rmgr::xlog::{self, CheckPoint};
use walfmt::{Lsn, RelFileLocator, Timeline};

fn length(directory: &Path, name: &str) -> Option<u64> {
    std::fs::metadata(directory.join(name)).ok().map(|metadata| metadata.len())
}

#[test]
fn an_unsupported_record_leaves_no_trace() {
    for spoiled in [false, true] {
        let directory = data_directory(false);
        let mut store = open(directory.path());
        let mut wal = Wal::new();
        for block in 0..50 {
            store.replay(&wal.image(main_page(1, block), some_page(1)).raw()).unwrap();
        }
        let end = wal.next();
        let unsupported = wal.unsupported();
        let behind: Vec<_> =
            (0..50).map(|block| wal.image(main_page(1, block), some_page(2))).collect();
        if spoiled {
            // The control: without the record that stops it, replay goes past.
            store.replay(&behind[0].raw()).unwrap();
        } else {
            match store.replay(&unsupported.raw()) {
                Err(ReplayError::Redo(error)) => {
                    assert!(error.to_string().contains("custom200"), "{error}")
                }
                other => panic!("{other:?}"),
            }
            assert_eq!(store.applied(), end, "all before is applied when the error is told");
            match store.replay(&behind[0].raw()) {
                Err(ReplayError::Stopped { at }) => assert_eq!(at, end),
                other => panic!("{other:?}"),
            }
            assert!(matches!(store.hand_over(), Err(ReplayError::Stopped { .. })));
        }
        store.close().unwrap();
        let latest = page_lsns(directory.path()).into_iter().max().unwrap();
        assert_eq!(latest > unsupported.start, spoiled, "{latest}");
        assert_eq!(page_lsns(directory.path()).len(), 50);
        if !spoiled {
            assert_eq!(control(directory.path()).min_recovery_point, end);
        }
    }
}

#[test]
fn a_record_refused_for_its_second_page_changes_not_even_its_first() {
    let directory = data_directory(false);
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    store.replay(&wal.image(main_page(1, 0), some_page(1)).raw()).unwrap();
    let elsewhere = RelFileLocator { tablespace: 1664, database: 5, relation: 1 };
    let elsewhere = PageId { locator: elsewhere, fork: ForkNumber::Main, block: 0 };
    let block =
        |page| Block { page, will_init: false, image: Some(Box::new(some_page(9))), data: vec![] };
    let blocks = [block(main_page(1, 0)), block(elsewhere)];
    let record = wal.record(RmgrId::XLOG, xlog::FPI, 0, &blocks, &[]);
    match store.replay(&record.raw()) {
        Err(ReplayError::Refused { at, refusal: Refusal::Place(locator) }) => {
            assert_eq!((at, locator), (record.start, elsewhere.locator));
        }
        other => panic!("{other:?}"),
    }
    store.close().unwrap();
    assert_eq!(page_lsns(directory.path()), [record.start]);
}

#[test]
fn refuses_what_it_does_not_follow() {
    let off = |contents: &mut CheckPoint| contents.full_page_writes = false;
    let timeline = |contents: &mut CheckPoint| contents.this_timeline = Timeline(2);
    let mut minimal = [0_u8; 28];
    minimal[20..24].copy_from_slice(&0_u32.to_le_bytes());
    let altered = |change: &dyn Fn(&mut CheckPoint)| {
        let mut contents = checkpoint(START);
        change(&mut contents);
        contents.to_bytes().to_vec()
    };
    let end_of_recovery = [[0; 8].as_slice(), &[2, 0, 0, 0, 1, 0, 0, 0]].concat();
    let new_timeline = Refusal::Timeline { from: Timeline(1), to: Timeline(2) };
    let cases: [(u8, Vec<u8>, Option<Refusal>); 8] = [
        (xlog::FPW_CHANGE, vec![0], Some(Refusal::FullPageWritesOff)),
        (xlog::FPW_CHANGE, vec![1], None),
        (xlog::CHECKPOINT_ONLINE, altered(&off), Some(Refusal::FullPageWritesOff)),
        (xlog::CHECKPOINT_SHUTDOWN, altered(&timeline), Some(new_timeline)),
        (xlog::END_OF_RECOVERY, end_of_recovery, Some(new_timeline)),
        (xlog::PARAMETER_CHANGE, minimal.to_vec(), Some(Refusal::WalLevelMinimal)),
        (xlog::NEXTOID, 24576_u32.to_le_bytes().to_vec(), None),
        (xlog::BACKUP_END, 1_u64.to_le_bytes().to_vec(), None),
    ];
    for (opcode, main, expected) in cases {
        let directory = data_directory(false);
        let mut store = open(directory.path());
        let record = Wal::new().record(RmgrId::XLOG, opcode, 0, &[], &main);
        let found = match store.replay(&record.raw()) {
            Ok(()) => None,
            Err(ReplayError::Refused { refusal, .. }) => Some(refusal),
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(found, expected, "{opcode:#04x} {main:?}");
        store.close().unwrap();
    }
}

#[test]
fn parameters_reach_the_control_file() {
    let directory = data_directory(false);
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    let mut main = [0_u8; 28];
    for (offset, value) in [(0, 250_u32), (4, 16), (8, 12), (12, 3), (16, 128), (20, 2)] {
        put(&mut main, offset, value.to_le_bytes());
    }
    main[24] = 1;
    store.replay(&wal.record(RmgrId::XLOG, xlog::PARAMETER_CHANGE, 0, &[], &main).raw()).unwrap();
    store.close().unwrap();
    let control = control(directory.path());
    assert_eq!((control.max_connections, control.max_prepared_transactions), (250, 3));
    assert_eq!((control.wal_level, control.wal_log_hints), (2, true));
    assert_eq!(control.state, ClusterState::IN_ARCHIVE_RECOVERY);
}

#[test]
fn truncate_drop_and_create_again() {
    let directory = data_directory(false);
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    let page = main_page(16384, 0);
    store.replay(&wal.image(main_page(16384, 9), some_page(7)).raw()).unwrap();
    store.replay(&wal.image(main_page(16384, 1), some_page(7)).raw()).unwrap();
    store.replay(&wal.truncate(page.locator, 2).raw()).unwrap();
    store.replay(&wal.image(main_page(16384, 5), some_page(8)).raw()).unwrap();
    store.wait_applied().unwrap();
    store.replay(&wal.create(main_page(16385, 0).locator).raw()).unwrap();
    assert_eq!(length(directory.path(), "base/5/16385"), Some(0));
    store.replay(&wal.drop_relation(900, main_page(16385, 0).locator).raw()).unwrap();
    assert_eq!(length(directory.path(), "base/5/16385"), None);
    // Its own number again, and one in a database without a directory.
    store.replay(&wal.image(main_page(16385, 0), some_page(9)).raw()).unwrap();
    let other_database = RelFileLocator { tablespace: 1663, database: 77, relation: 1 };
    store.replay(&wal.create(other_database).raw()).unwrap();
    store.close().unwrap();

    assert_eq!(length(directory.path(), "base/77/1"), Some(0));
    let files = files(directory.path());
    let pages: Vec<_> = files["base/5/16384"].chunks(BLOCK_SIZE).map(|page| page[100]).collect();
    assert_eq!(pages, [0, 7, 0, 0, 0, 8], "block 9 is gone, what it had behind the cut too");
    assert_eq!(files["base/5/16385"][100], 9);
    assert_eq!(files["pg_xact/0000"][900 / 4] & 3, 1);
}

#[test]
fn forks_go_on_in_a_second_file() {
    let directory = data_directory(true);
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    for block in [131_070, 131_073] {
        store.replay(&wal.image(main_page(1, block), some_page(3)).raw()).unwrap();
    }
    store.close().unwrap();
    assert_eq!(length(directory.path(), "base/5/1"), Some(1 << 30));
    assert_eq!(length(directory.path(), "base/5/1.1"), Some(2 * 8192));
    // The checksum is over the block's number in the fork, not in the file.
    let mut page = [0; BLOCK_SIZE];
    let file = std::fs::File::open(directory.path().join("base/5/1.1")).unwrap();
    file.read_exact_at(&mut page, 8192).unwrap();
    let found = u16::from_le_bytes([page[8], page[9]]);
    assert_eq!(found, walfmt::checksum::page_checksum(&page, 131_073));
    assert_ne!(found, walfmt::checksum::page_checksum(&page, 1));

    let mut store = open(directory.path());
    store.replay(&wal.image(main_page(1, 131_074), some_page(3)).raw()).unwrap();
    store.replay(&wal.truncate(main_page(1, 0).locator, 131_071).raw()).unwrap();
    store.close().unwrap();
    assert_eq!(length(directory.path(), "base/5/1"), Some(131_071 * 8192));
    assert_eq!(length(directory.path(), "base/5/1.1"), Some(0), "kept, as a server does");
}

#[test]
fn a_damaged_page_stops_replay_and_a_damaged_map_page_does_not() {
    let directory = data_directory(true);
    let mut wal = Wal::new();
    let mut store = open(directory.path());
    store.replay(&wal.insert(main_page(16384, 0), 1, 300, true).raw()).unwrap();
    store.replay(&wal.insert(main_page(16384, 1), 1, 300, true).raw()).unwrap();
    store.close().unwrap();
    let damage = |name: &str, offset: u64| {
        let file = std::fs::File::options().write(true).open(directory.path().join(name)).unwrap();
        file.write_all_at(&[0xFF], offset).unwrap();
    };
    damage("base/5/16384_vm", 5000);
    let mut store = open(directory.path());
    let third = wal.insert(main_page(16384, 0), 2, 300, true);
    store.replay(&third.raw()).unwrap();
    store.wait_applied().unwrap();
    store.close().unwrap();

    damage("base/5/16384", 8192 + 7000);
    let mut store = open(directory.path());
    let fourth = wal.insert(main_page(16384, 1), 2, 300, false);
    store.replay(&fourth.raw()).unwrap();
    match store.wait_applied() {
        Err(ReplayError::Page {
            at,
            fault: PageFault::Checksum { page, file, offset, .. },
            ..
        }) => {
            assert_eq!((at, page, offset), (fourth.start, main_page(16384, 1), 8192));
            assert!(file.ends_with("base/5/16384"));
        }
        other => panic!("{other:?}"),
    }
    let fifth = wal.insert(main_page(16384, 0), 3, 300, false);
    assert!(matches!(store.replay(&fifth.raw()), Err(ReplayError::Stopped { .. })));
    assert!(store.close().is_err());
    let lsns = page_lsns(directory.path());
    assert!(lsns.iter().all(|lsn| *lsn <= fourth.start), "{lsns:?}");
    assert!(!open(directory.path()).pages_are_bounded(), "that was no clean stop");
}

#[test]
fn a_restart_point_holds_all_before_it() {
    let directory = data_directory(false);
    let config = StoreConfig {
        restart_point_interval: Duration::ZERO,
        ..config(directory.path(), 2, 10_000)
    };
    let mut store = Store::open(&config).unwrap();
    let mut wal = Wal::new();
    assert_eq!((store.replay_from(), store.restart_redo()), (START, START));
    for block in 0..1000 {
        store.replay(&wal.image(main_page(1, block), some_page(3)).raw()).unwrap();
    }
    store.replay(&wal.commit(900).raw()).unwrap();
    assert_eq!(store.restart_point().unwrap(), START, "no checkpoint yet");
    let made = wal.checkpoint_here();
    store.replay(&made.raw()).unwrap();
    let behind = wal.image(main_page(1, 0), some_page(4));
    store.replay(&behind.raw()).unwrap();
    while store.restart_redo() != made.start {
        std::thread::sleep(Duration::from_millis(1));
    }
    let written = control(directory.path());
    assert_eq!(written.check_point, made.start);
    assert_eq!(written.check_point_copy, checkpoint(made.start));
    assert_eq!(written.min_recovery_point, made.end);
    assert_eq!(written.state, ClusterState::IN_ARCHIVE_RECOVERY);
    let lsns = page_lsns(directory.path());
    assert_eq!(lsns.len(), 1000);
    assert!(lsns.iter().all(|lsn| lsn.is_valid()));
    assert_eq!(files(directory.path())["pg_xact/0000"][900 / 4], 1);

    // A crash: replay begins at the restart point.
    drop(store);
    let mut store = Store::open(&config).unwrap();
    assert_eq!(store.replay_from(), made.start);
    assert!(!store.pages_are_bounded());
    assert_eq!(store.consistency(), Err(NotConsistent::UncleanStop));
    assert!(matches!(
        store.finish_for_promotion(),
        Err(PromotionError::NotConsistent(NotConsistent::UncleanStop))
    ));
    store.set_consistent_after(behind.end).unwrap();
    store.replay(&made.raw()).unwrap();
    store.wait_applied().unwrap();
    assert_eq!(
        store.consistency(),
        Err(NotConsistent::Behind { applied: made.end, required: behind.end })
    );
    // The bound survives another stop, even a clean one.
    store.close().unwrap();
    let mut store = Store::open(&config).unwrap();
    assert!(store.pages_are_bounded());
    assert!(!store.is_consistent());
    store.replay(&made.raw()).unwrap();
    store.replay(&behind.raw()).unwrap();
    store.wait_applied().unwrap();
    store.consistency().unwrap();
    store.close().unwrap();
}

#[test]
fn no_restart_point_while_pages_are_missing() {
    for dropped in [false, true] {
        let directory = data_directory(false);
        change_control(directory.path(), |control| control.min_recovery_point = Lsn(1 << 40));
        let mut store = open(directory.path());
        let mut wal = Wal::new();
        let page = main_page(16384, 3);
        store.replay(&wal.insert(page, 2, 100, false).raw()).unwrap();
        if dropped {
            store.replay(&wal.drop_relation(900, page.locator).raw()).unwrap();
        }
        let made = wal.checkpoint_here();
        store.replay(&made.raw()).unwrap();
        let redo = store.restart_point().unwrap();
        assert_eq!(redo, if dropped { made.start } else { START });
        store.close().unwrap();
        assert_eq!(control(directory.path()).check_point_copy.redo, redo);
    }
}

#[test]
fn missing_pages_are_explained_before_and_an_error_after_consistency() {
    let directory = data_directory(false);
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    // One beyond the fork's end, one that is there but empty.
    let beyond = wal.insert(main_page(16384, 3), 2, 100, false);
    store.replay(&beyond.raw()).unwrap();
    store.replay(&wal.image(main_page(16385, 1), some_page(1)).raw()).unwrap();
    store.replay(&wal.insert(main_page(16385, 0), 2, 100, false).raw()).unwrap();
    store.wait_applied().unwrap();
    let first = main_page(16384, 3);
    assert_eq!(
        store.consistency(),
        Err(NotConsistent::InvalidPages { count: 2, first, at: beyond.start })
    );
    store.replay(&wal.truncate(first.locator, 3).raw()).unwrap();
    store.replay(&wal.drop_relation(900, main_page(16385, 0).locator).raw()).unwrap();
    store.wait_applied().unwrap();
    store.consistency().unwrap();

    let missing = wal.insert(main_page(16384, 4), 2, 100, false);
    match store.replay(&missing.raw()) {
        Err(ReplayError::Missing { at, page }) => {
            assert_eq!((at, page), (missing.start, main_page(16384, 4)));
        }
        other => panic!("{other:?}"),
    }
    store.close().unwrap();
}

#[test]
fn a_base_backup_is_prepared_replayed_and_handed_over() {
    let directory = data_directory(false);
    change_control(directory.path(), |control| {
        control.state = ClusterState::IN_PRODUCTION;
        control.check_point = Lsn(0x100_0028);
        control.check_point_copy = checkpoint(Lsn(0x100_0028));
    });
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("backup_label"), "as the server wrote it").unwrap();
    std::fs::write(at("standby.signal"), "").unwrap();
    match Store::open(&config(directory.path(), 1, 10)) {
        Err(OpenError::State { found }) => assert_eq!(found, ClusterState::IN_PRODUCTION),
        other => panic!("{:?}", other.map(drop)),
    }
    assert!(!at("postmaster.pid").exists());

    let label = BackupLabel {
        redo: START,
        check_point: START,
        timeline: Timeline(1),
        streamed: true,
        from_standby: false,
    };
    let wrong = checkpoint(Lsn(0x100_0028));
    assert!(Store::prepare(directory.path(), &wrong, START, &label).is_err());
    Store::prepare(directory.path(), &checkpoint(START), START, &label).unwrap();
    for (name, there) in [
        ("backup_label", false),
        ("backup_label.old", true),
        ("standby.signal", false),
        ("recovery.signal", true),
    ] {
        assert_eq!(at(name).exists(), there, "{name}");
    }
    let prepared = control(directory.path());
    assert_eq!(prepared.state, ClusterState::IN_ARCHIVE_RECOVERY);
    assert_eq!((prepared.check_point, prepared.check_point_copy), (START, checkpoint(START)));
    assert_eq!((prepared.min_recovery_point, prepared.backup_start_point), (START, START));
    assert!(prepared.backup_end_required);

    let mut store = open(directory.path());
    match Store::open(&config(directory.path(), 1, 10)) {
        Err(OpenError::Lock(LockError::Agent { .. })) => {}
        other => panic!("{:?}", other.map(drop)),
    }
    let mut wal = Wal::new();
    store.replay(&wal.checkpoint_here().raw()).unwrap();
    store.replay(&wal.image(main_page(1, 0), some_page(3)).raw()).unwrap();
    let backup_end = |start: Lsn| start.0.to_le_bytes();
    let end_of = |wal: &mut Wal, start| {
        wal.record(RmgrId::XLOG, xlog::BACKUP_END, 0, &[], &backup_end(start))
    };
    store.replay(&end_of(&mut wal, Lsn(0x123)).raw()).unwrap(); // of another backup
    store.wait_applied().unwrap();
    assert!(matches!(
        store.finish_for_promotion(),
        Err(PromotionError::NotConsistent(NotConsistent::BackupEnd { start: START }))
    ));
    let end = end_of(&mut wal, START);
    store.replay(&end.raw()).unwrap();
    let made = wal.checkpoint_here();
    store.replay(&made.raw()).unwrap();
    let last = wal.image(main_page(1, 1), some_page(3));
    store.replay(&last.raw()).unwrap();

    let state = store.finish_for_promotion().unwrap();
    assert_eq!((state.redo, state.check_point, state.applied), (made.start, made.start, last.end));
    let promoted = control(directory.path());
    assert_eq!(promoted.state, ClusterState::IN_ARCHIVE_RECOVERY);
    assert_eq!(promoted.min_recovery_point, last.end);
    assert_eq!(promoted.min_recovery_point_timeline, Timeline(1));
    assert_eq!((promoted.backup_start_point, promoted.backup_end_required), (Lsn::INVALID, false));
    assert_eq!(promoted.check_point, made.start);
    assert!(!at("postmaster.pid").exists() && !at("walferry.lock").exists());
    assert_eq!(length(directory.path(), "base/5/1"), Some(2 * 8192));
    assert!(matches!(store.replay(&last.raw()), Err(ReplayError::Stopped { .. })));
    store.close().unwrap();
    assert_eq!(control(directory.path()), promoted);
}

#[test]
fn a_backup_whose_leader_was_shut_down_meanwhile_is_useless() {
    let directory = data_directory(false);
    change_control(directory.path(), |control| {
        control.backup_start_point = START;
        control.backup_end_required = true;
    });
    let mut store = open(directory.path());
    let shutdown = Wal::new().checkpoint(xlog::CHECKPOINT_SHUTDOWN, &checkpoint(START));
    match store.replay(&shutdown.raw()) {
        Err(ReplayError::Refused { refusal: Refusal::BackupCanceled, .. }) => {}
        other => panic!("{other:?}"),
    }
    store.close().unwrap();
}

#[test]
fn refuses_directories_that_are_no_stores() {
    let refused = |change: &dyn Fn(&Path)| {
        let directory = data_directory(false);
        change(directory.path());
        let error = Store::open(&config(directory.path(), 1, 10)).map(drop).unwrap_err();
        assert!(!directory.path().join("postmaster.pid").exists());
        error.to_string()
    };
    let tablespace = refused(&|path| {
        std::os::unix::fs::symlink("/leader", path.join("pg_tblspc/16400")).unwrap();
    });
    assert!(tablespace.contains("it points to /leader"), "{tablespace}");
    let full_page_writes = refused(&|path| {
        change_control(path, |control| control.check_point_copy.full_page_writes = false);
    });
    assert!(full_page_writes.contains("full_page_writes"), "{full_page_writes}");
    let prepared = refused(&|path| std::fs::write(path.join("pg_twophase/000002BB"), "").unwrap());
    assert!(prepared.contains("pg_twophase"), "{prepared}");
    let origins = refused(&|path| {
        std::fs::write(path.join("pg_logical/replorigin_checkpoint"), "").unwrap();
    });
    assert!(origins.contains("replorigin_checkpoint"), "{origins}");
    let major = refused(&|path| std::fs::write(path.join("PG_VERSION"), "16\n").unwrap());
    assert!(major.contains("PG_VERSION"), "{major}");
    let label = refused(&|path| std::fs::write(path.join("backup_label"), "").unwrap());
    assert!(label.contains("backup_label"), "{label}");
    let damaged = refused(&|path| {
        let file =
            std::fs::File::options().write(true).open(path.join("global/pg_control")).unwrap();
        file.write_all_at(&[0xFF], 100).unwrap();
    });
    assert!(damaged.contains("CRC"), "{damaged}");
    // The control: the same directory, left alone.
    let directory = data_directory(false);
    Store::open(&config(directory.path(), 1, 10)).unwrap().close().unwrap();
}

#[test]
fn records_come_in_order() {
    let directory = data_directory(false);
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    let (first, second) = (wal.commit(900), wal.commit(901));
    store.replay(&second.raw()).unwrap();
    assert!(matches!(store.replay(&first.raw()), Err(ReplayError::Order { .. })));
    store.close().unwrap();
}

#[test]
fn a_store_can_be_given_to_a_thread() {
    const fn is_send<T: Send>() {}
    is_send::<Store>();
}

#[test]
fn counters_follow_the_records() {
    let directory = data_directory(false);
    let mut store = open(directory.path());
    let mut wal = Wal::new();
    store.replay(&wal.commit(90_000).raw()).unwrap();
    let next_oid = 30_000_u32.to_le_bytes();
    store.replay(&wal.record(RmgrId::XLOG, xlog::NEXTOID, 0, &[], &next_oid).raw()).unwrap();
    assert_eq!((store.counters().next_xid, store.counters().next_oid), (90_001, 30_000));
    assert_eq!(store.identity().timeline, Timeline(1));
    store.close().unwrap();
}
