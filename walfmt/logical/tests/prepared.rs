//! A decoder that begins where another one is knows which transactions are prepared: a new start of the
//! server ends all others.

use std::convert::Infallible;

use walfmt::record::RecordHeader;
use walfmt::relation::RelFileLocator;
use walfmt::rmgr::{RmgrId, xact, xlog};
use walfmt::row::{Entry, EntryKind};
use walfmt::version::VERSIONS;
use walfmt::{Lsn, RawRecord, TransactionId};
use walfmt_logical::{Decoder, EntrySource, Event, EventSink, Place};

struct Nothing;

impl EntrySource for Nothing {
    type Error = Infallible;

    fn entry(&mut self, _: Place) -> Result<Entry<'_>, Infallible> {
        unreachable!("nothing is told")
    }
}

impl EventSink for Nothing {
    type Error = Infallible;

    fn event(&mut self, _: &Event<'_>) -> Result<(), Infallible> {
        Ok(())
    }
}

fn push(decoder: &mut Decoder, mut entries: &[u8]) {
    while !entries.is_empty() {
        let (entry, rest) = Entry::read(entries).expect("an entry");
        decoder.push(&entry, Place(0), &mut Nothing, &mut Nothing).expect("it is taken");
        entries = rest;
    }
}

fn record(start: u64, rmgr: RmgrId, info: u8, xid: u32, main: &[u8]) -> Vec<u8> {
    let length = 24 + 2 + main.len() as u32;
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(xid.to_le_bytes());
    bytes.extend([0; 8]);
    bytes.extend([info, rmgr.0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([255, main.len() as u8]); // XLR_BLOCK_ID_DATA_SHORT
    bytes.extend(main);
    let header = RecordHeader::from_bytes(&bytes);
    let raw = RawRecord { start: Lsn(start), end: Lsn(start + 100), header, bytes: &bytes };
    let mut entry = Vec::new();
    Entry::write_record(&raw, &mut entry);
    entry
}

/// A row of some table.
fn row(start: u64, xid: u32) -> Vec<u8> {
    let locator = RelFileLocator { tablespace: 1663, database: 5, relation: 16384 };
    let entry = Entry::empty(Lsn(start), EntryKind::Inserted);
    let mut bytes = Vec::new();
    Entry { xid: TransactionId(xid), locator, contents: &[1, 0, 0, 8, 24, 0, 7], ..entry }
        .write(&mut bytes);
    bytes
}

/// `xl_xact_prepare` with one subtransaction.
fn prepare(xid: u32, subxact: u32) -> Vec<u8> {
    let mut main = vec![0; 80];
    let words = [(0, xact::TWO_PHASE_MAGIC), (4, 84), (8, xid), (28, 1), (72, subxact)];
    for (offset, word) in words {
        walfmt::bytes::put(&mut main, offset, word.to_le_bytes());
    }
    main
}

#[test]
fn a_decoder_that_begins_later_knows_who_is_prepared() {
    let mut first = Decoder::new(&VERSIONS[0]);
    let mut begin = Vec::new();
    Entry::empty(Lsn(100), EntryKind::Begin).write(&mut begin);
    push(&mut first, &begin);
    assert!(first.is_telling());
    for (start, xid) in [(200, 10), (300, 11), (400, 12)] {
        push(&mut first, &row(start, xid));
    }
    push(&mut first, &record(500, RmgrId::XACT, xact::PREPARE, 10, &prepare(10, 11)));

    let mut state = Vec::new();
    assert_eq!(first.write_state(Lsn(600), &mut state), Lsn(200));
    let checkpoint = record(600, RmgrId::XLOG, xlog::CHECKPOINT_SHUTDOWN, 0, &[0; 88]);
    let waiting = |entries: &[&[u8]]| {
        let mut decoder = Decoder::new(&VERSIONS[0]);
        entries.iter().for_each(|entries| push(&mut decoder, entries));
        let mut xids: Vec<u32> = decoder.waits_for().map(|xid| xid.0).collect();
        xids.sort_unstable();
        (decoder, xids)
    };
    assert_eq!(waiting(&[&state]).1, [10, 11, 12]);
    let (second, xids) = waiting(&[&state, &checkpoint]);
    assert_eq!(xids, [10, 11], "12 went with the server");
    // And from there to a third.
    state.clear();
    second.write_state(Lsn(700), &mut state);
    let (mut third, xids) = waiting(&[&state, &checkpoint]);
    assert_eq!(xids, [10, 11]);
    assert!(!third.is_telling());

    // XACT_XINFO_HAS_SUBXACTS and XACT_XINFO_HAS_TWOPHASE behind the time.
    let words = [0, 0, 0b1_0010_u32, 1, 11, 10];
    let commit: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    let info = xact::COMMIT_PREPARED | xact::HAS_INFO;
    push(&mut third, &record(800, RmgrId::XACT, info, 0, &commit));
    assert!(third.is_telling() && third.waits_for().count() == 0);

    // Control: who is not told which are prepared takes them for ended.
    let mut without = Vec::new();
    let mut rest = &state[..];
    while !rest.is_empty() {
        let (entry, behind) = Entry::read(rest).expect("an entry");
        if entry.kind != EntryKind::Prepared {
            without.extend(&rest[..rest.len() - behind.len()]);
        }
        rest = behind;
    }
    assert!(waiting(&[&without, &checkpoint]).1.is_empty());
}

/// A decoder that begins with the file at hand does not know of rows in those before it, but that there are
/// such: whoever begins with the next file must be told.
#[test]
fn where_rows_of_unfinished_transactions_begin_is_handed_on() {
    let mut first = Decoder::watching(&VERSIONS[0]);
    push(&mut first, &row(1500, 700));
    let mut state = Vec::new();
    assert_eq!(first.write_state(Lsn(2000), &mut state), Lsn(1500));

    for (oldest, expected) in [(Some(Lsn(1500)), Lsn(1500)), (None, Lsn(2600))] {
        let mut second = Decoder::watching(&VERSIONS[0]);
        second.set_oldest(oldest);
        push(&mut second, &state);
        push(&mut second, &row(2600, 700));
        let mut next = Vec::new();
        assert_eq!(second.write_state(Lsn(3000), &mut next), expected);
        // It has ended.
        push(&mut second, &record(3100, RmgrId::XACT, xact::ABORT, 700, &[0; 8]));
        assert_eq!(second.write_state(Lsn(3200), &mut Vec::new()), Lsn(3200));
    }
}
