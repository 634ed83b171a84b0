//! What is kept about transactions outside of pages: across restart points, stops and replay from
//! before.
#![allow(clippy::unwrap_used)] // a test that panics has failed, as it should

mod support;

use support::{Made, Wal, change_control, checkpoint, data_directory, files, open};
use walferry_store::{ReplayError, Store};
use walfmt::bytes::put;
use walfmt::replication_state::{self, ReplicationState};
use walfmt::rmgr::xact::{self, TWO_PHASE_MAGIC};
use walfmt::rmgr::{RmgrId, commit_ts, multixact, replication_origin, xlog};
use walfmt::{Lsn, two_phase};

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn state(xid: u32) -> Vec<u8> {
    let mut state = vec![0; 80];
    for (offset, word) in [(0, TWO_PHASE_MAGIC), (4, 84), (8, xid)] {
        put(&mut state, offset, word.to_le_bytes());
    }
    state
}

fn prepare(wal: &mut Wal, xid: u32) -> Made {
    wal.record(RmgrId::XACT, xact::PREPARE, xid, &[], &state(xid))
}

fn finish_prepared(wal: &mut Wal, opcode: u8, xid: u32) -> Made {
    let mut main = vec![0; 8];
    main.extend(xact::xinfo::TWOPHASE.to_le_bytes());
    main.extend(xid.to_le_bytes());
    wal.record(RmgrId::XACT, opcode | xact::HAS_INFO, 0, &[], &main)
}

/// A commit on another node, up to `lsn` there.
fn commit_from(wal: &mut Wal, origin: u16, xid: u32, lsn: u64) -> Made {
    let mut main = vec![0; 8];
    main.extend(xact::xinfo::ORIGIN.to_le_bytes());
    main.extend(lsn.to_le_bytes());
    main.extend(77_i64.to_le_bytes());
    wal.origin = origin;
    let record = wal.record(RmgrId::XACT, xact::COMMIT | xact::HAS_INFO, xid, &[], &main);
    wal.origin = 0;
    record
}

fn track_commit_timestamp(wal: &mut Wal, on: bool) -> Made {
    let mut main = [0; 28];
    main[20] = 1;
    main[25] = u8::from(on);
    wal.record(RmgrId::XLOG, xlog::PARAMETER_CHANGE, 0, &[], &main)
}

fn multixact(wal: &mut Wal, multi: u32, offset: u32, xids: &[u32]) -> Made {
    let mut main = words(&[multi, offset, xids.len() as u32]);
    main.extend(xids.iter().flat_map(|xid| words(&[*xid, 1])));
    wal.record(RmgrId::MULTIXACT, multixact::CREATE_ID, 700, &[], &main)
}

fn replay(store: &mut Store, records: &[Made]) {
    for record in records {
        store.replay(&record.raw()).unwrap();
    }
}

fn two_phase_files(directory: &std::path::Path) -> Vec<String> {
    let names = files(directory).into_keys();
    names.filter_map(|name| name.strip_prefix("pg_twophase/").map(str::to_owned)).collect()
}

#[test]
fn prepared_transactions_survive_stops() {
    let directory = data_directory(false);
    let mut wal = Wal::new();
    let records = [
        prepare(&mut wal, 700),
        prepare(&mut wal, 701),
        prepare(&mut wal, 702),
        finish_prepared(&mut wal, xact::COMMIT_PREPARED, 701),
    ];
    let mut contents = checkpoint(wal.next());
    contents.next_xid = 710;
    let checkpoint_record = wal.checkpoint(xlog::CHECKPOINT_ONLINE, &contents);
    let late = prepare(&mut wal, 703);

    let mut store = open(directory.path());
    replay(&mut store, &records);
    assert!(two_phase_files(directory.path()).is_empty());
    replay(&mut store, &[checkpoint_record, late]);
    store.close().unwrap();
    let found = files(directory.path());
    assert_eq!(two_phase_files(directory.path()), ["000002BC", "000002BE"]);
    assert_eq!(found["pg_twophase/000002BC"], two_phase::to_file(&state(700)));
    assert_eq!(found["pg_xact/0000"][701 / 4] >> 2 & 3, 1, "701 has committed");

    // Its end removes the file; so it does when it is replayed again.
    let end = finish_prepared(&mut wal, xact::ABORT_PREPARED, 700);
    let mut store = open(directory.path());
    replay(&mut store, std::slice::from_ref(&end));
    assert_eq!(two_phase_files(directory.path()), ["000002BE"]);
    store.close().unwrap();
    std::fs::write(directory.path().join("pg_twophase/000002BC"), &found["pg_twophase/000002BC"])
        .unwrap();
    let mut store = open(directory.path());
    assert_eq!(two_phase_files(directory.path()), ["000002BE"], "700 has aborted: a stale file");
    replay(&mut store, std::slice::from_ref(&end));
    store.close().unwrap();
    assert_eq!(files(directory.path())["pg_xact/0000"][700 / 4] & 3, 2);
}

#[test]
fn a_prepared_transaction_is_known_once() {
    // The restart point it has a file for was never finished: its PREPARE comes again.
    let directory = data_directory(false);
    let path = directory.path().join("pg_twophase/000002B5");
    std::fs::write(&path, two_phase::to_file(&state(693))).unwrap();
    let mut wal = Wal::new();
    let mut store = open(directory.path());
    replay(&mut store, &[prepare(&mut wal, 693)]);
    replay(&mut store, &[finish_prepared(&mut wal, xact::COMMIT_PREPARED, 693)]);
    assert!(!path.exists());
    store.close().unwrap();
}

#[test]
fn origins_go_on_where_they_were() {
    let directory = data_directory(false);
    let mut wal = Wal::new();
    let set = |wal: &mut Wal, origin: u16, lsn: u64, force: u8| {
        let mut main = lsn.to_le_bytes().to_vec();
        main.extend(origin.to_le_bytes());
        main.extend([force, 0, 0, 0, 0, 0]);
        wal.record(RmgrId::REPLICATION_ORIGIN, replication_origin::SET, 0, &[], &main)
    };
    let mut store = open(directory.path());
    replay(&mut store, &[commit_from(&mut wal, 5, 700, 100), commit_from(&mut wal, 6, 701, 30)]);
    replay(&mut store, &[commit_from(&mut wal, 5, 702, 90), set(&mut wal, 6, 20, 1)]);
    replay(&mut store, &[commit_from(&mut wal, u16::MAX, 703, 1)]);
    let contents = checkpoint(wal.next());
    replay(&mut store, &[wal.checkpoint(xlog::CHECKPOINT_SHUTDOWN, &contents)]);
    store.close().unwrap();
    let file = |states: &[(u16, u64)]| {
        let states = states.iter();
        replication_state::to_file(
            states.map(|(origin, lsn)| ReplicationState { origin: *origin, remote_lsn: Lsn(*lsn) }),
        )
    };
    let name = "pg_logical/replorigin_checkpoint";
    assert_eq!(files(directory.path())[name], file(&[(5, 100), (6, 20)]));

    let mut store = open(directory.path());
    let dropped = wal.record(RmgrId::REPLICATION_ORIGIN, replication_origin::DROP, 0, &[], &[5, 0]);
    replay(&mut store, &[dropped, commit_from(&mut wal, 9, 704, 7)]);
    let contents = checkpoint(wal.next());
    replay(&mut store, &[wal.checkpoint(xlog::CHECKPOINT_SHUTDOWN, &contents)]);
    store.close().unwrap();
    assert_eq!(files(directory.path())[name], file(&[(9, 7), (6, 20)]));

    let mut store = open(directory.path());
    let nowhere = store.replay(&commit_from(&mut wal, 0, 705, 7).raw()).unwrap_err();
    assert!(matches!(nowhere, ReplayError::Redo(_)), "{nowhere:?}");
}

#[test]
fn commit_times_follow_the_leaders_setting() {
    let directory = data_directory(false);
    let mut wal = Wal::new();
    let mut store = open(directory.path());
    replay(&mut store, &[wal.commit(700), track_commit_timestamp(&mut wal, true)]);
    let counters = *store.counters();
    assert_eq!((counters.oldest_commit_ts_xid.0, counters.newest_commit_ts_xid.0), (701, 701));
    replay(&mut store, &[commit_from(&mut wal, 5, 702, 1)]);
    assert_eq!(store.counters().newest_commit_ts_xid.0, 702);
    store.close().unwrap();
    let file = &files(directory.path())["pg_commit_ts/0000"];
    assert_eq!(file.len(), 8192);
    assert_eq!(file[7000..7010], [0; 10], "it was not kept when 700 committed");
    assert_eq!(file[7020..7030], [77, 0, 0, 0, 0, 0, 0, 0, 5, 0]);

    // The control file says so at the next start.
    let mut store = open(directory.path());
    replay(&mut store, &[commit_from(&mut wal, 5, 703, 1)]);
    store.close().unwrap();
    assert_eq!(files(directory.path())["pg_commit_ts/0000"][7030], 77);

    let mut store = open(directory.path());
    let page = words(&[40]);
    let zero = wal.record(RmgrId::COMMIT_TS, commit_ts::ZEROPAGE, 0, &[], &page);
    replay(&mut store, &[zero, track_commit_timestamp(&mut wal, false), wal.commit(705)]);
    assert_eq!(store.counters().oldest_commit_ts_xid.0, 0);
    store.close().unwrap();
    assert!(files(directory.path()).keys().all(|name| !name.starts_with("pg_commit_ts")));

    // As a base backup of such a cluster finds it.
    change_control(directory.path(), |control| control.track_commit_timestamp = true);
    open(directory.path()).close().unwrap();
    assert_eq!(files(directory.path())["pg_commit_ts/0000"], [0; 8192]);
}

#[test]
fn replay_from_before_gives_the_same_multixacts() {
    let directory = data_directory(false);
    let mut wal = Wal::new();
    let records = [
        multixact(&mut wal, 1, 1, &[700, 701]),
        wal.record(RmgrId::MULTIXACT, multixact::ZERO_OFF_PAGE, 0, &[], &words(&[1])),
        wal.record(RmgrId::MULTIXACT, multixact::ZERO_MEM_PAGE, 0, &[], &words(&[1])),
        multixact(&mut wal, 2047, 1634, &[700, 701, 702]),
        multixact(&mut wal, 2048, 1637, &[702, 703]),
    ];
    let mut store = open(directory.path());
    replay(&mut store, &records);
    let counters = *store.counters();
    assert_eq!((counters.next_multi, counters.next_multi_offset), (2049, 1639));
    assert_eq!(counters.next_xid, 704, "members have been given out");
    store.close().unwrap();
    let first = files(directory.path());
    assert_eq!(first["pg_multixact/offsets/0000"].len(), 2 * 8192);
    assert_eq!(first["pg_multixact/members/0000"].len(), 2 * 8192);
    assert_eq!(first["pg_multixact/offsets/0000"][8192..8200], words(&[1637, 1639]));

    let mut store = open(directory.path());
    replay(&mut store, &records);
    store.close().unwrap();
    assert_eq!(files(directory.path()), first);

    // The control: what is not there any more comes again from the records.
    std::fs::remove_file(directory.path().join("pg_multixact/members/0000")).unwrap();
    let mut store = open(directory.path());
    replay(&mut store, &records[..4]);
    store.close().unwrap();
    let less = files(directory.path());
    assert_ne!(less["pg_multixact/members/0000"], first["pg_multixact/members/0000"]);
    let mut store = open(directory.path());
    replay(&mut store, &records[4..]);
    store.close().unwrap();
    assert_eq!(files(directory.path()), first);
}
