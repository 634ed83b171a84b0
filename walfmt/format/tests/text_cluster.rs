//! Records of a cluster as a whole, as text: what servers write seldom or never, and any bytes. What they
//! do write is compared with `pg_waldump` itself.

use proptest::prelude::*;
use walfmt::record::RecordHeader;
use walfmt::rmgr::RmgrId;
use walfmt::text::{self, Out, TextError, Utc};
use walfmt::version::VERSIONS;
use walfmt::{Lsn, Record, TransactionId, Version};

/// A record of these main data, from origin 3.
fn record(rmgr: RmgrId, info: u8, main_data: &[u8]) -> Record<'_> {
    let header = RecordHeader {
        total_length: 24,
        xid: TransactionId(700),
        prev: Lsn(40),
        info,
        rmgr,
        crc: 0,
    };
    Record { header, main_data, origin: 3, ..Record::blank() }
}

/// What the record says, or that it cannot.
fn described(record: &Record<'_>, version: &Version) -> (String, Result<(), TextError>) {
    let mut text = Vec::new();
    let result = text::describe(record, version, &mut Out::new(&mut text, &Utc));
    (String::from_utf8_lossy(&text).into_owned(), result)
}

/// By major, 15 to 18: the kind and what it says.
fn texts(rmgr: RmgrId, info: u8, main_data: &[u8]) -> [String; 4] {
    [15, 16, 17, 18].map(|major| {
        let version = Version::from_major(major).expect("known");
        let (text, result) = described(&record(rmgr, info, main_data), version);
        result.expect("well formed");
        format!("{} {text}", text::identify(rmgr, info, version).unwrap_or("-"))
    })
}

/// The same in all majors.
fn same(rmgr: RmgrId, info: u8, main_data: &[u8]) -> String {
    let texts = texts(rmgr, info, main_data);
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    texts[0].clone()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn message(id: i8, database: u32, what: u32) -> Vec<u8> {
    let mut message = words(&[0, database, what, 0]);
    message[0] = id as u8;
    message
}

#[test]
fn what_no_server_writes_is_said_all_the_same() {
    assert_eq!(same(RmgrId::XLOG, 0x20, b"any"), "NOOP ");
    assert_eq!(same(RmgrId::XLOG, 0xC0, b"any"), "- ");
    let origin = [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 9, 9, 9, 9, 9];
    assert_eq!(same(RmgrId::REPLICATION_ORIGIN, 0, &origin), "SET set 3; lsn 2/1; force: 0");
    let multi = words(&[7, 8, 2, 700, 0, 701, 256]);
    let multi = same(RmgrId::MULTIXACT, 0x20, &multi);
    assert_eq!(multi, "CREATE_ID 7 offset 8 nmembers 2: 700 (keysh) 701 (unk) ");
    let dropped = words(&[0, 2, 1664, 5]);
    assert_eq!(same(RmgrId::DATABASE, 0x20, &dropped), "DROP dir 1664/0 5/0");
    assert_eq!(same(RmgrId::TABLESPACE, 0x10, &words(&[1663])), "DROP 1663");
    assert_eq!(same(RmgrId::TABLESPACE, 0, b"\x01\0\0\0/a \"b\"\0c"), "CREATE 1 \"/a \"b\"\"");
    let map = words(&[0, 1663, u32::MAX]);
    assert_eq!(same(RmgrId::RELMAP, 0, &map), "UPDATE database 0 tablespace 1663 size -1");
}

#[test]
fn a_page_number_has_a_sign_and_its_majors_size() {
    let main = words(&[u32::MAX, u32::MAX, 5, 0]);
    let [fifteen, sixteen, seventeen, eighteen] = texts(RmgrId::CLOG, 0x10, &main);
    assert_eq!(fifteen, "TRUNCATE page -1; oldestXact 4294967295");
    assert_eq!(seventeen, "TRUNCATE page -1; oldestXact 5");
    assert_eq!((fifteen, seventeen), (sixteen, eighteen));
}

#[test]
fn levels_are_said_where_they_are_written() {
    let mut end = words(&[0, 0, 2, 1]);
    end.extend(words(&[9, 0]));
    let [fifteen, sixteen, seventeen, eighteen] = texts(RmgrId::XLOG, 0x90, &end);
    assert_eq!(fifteen, "END_OF_RECOVERY tli 2; prev tli 1; time 2000-01-01 00:00:00.000000 UTC");
    assert_eq!(seventeen, format!("{fifteen}; wal_level ?"));
    assert_eq!((fifteen, seventeen), (sixteen, eighteen));
    let [fifteen, _, seventeen, _] = texts(RmgrId::XLOG, 0xE0, &words(&[2]));
    assert_eq!((fifteen.as_str(), seventeen.as_str()), ("- ", "CHECKPOINT_REDO wal_level logical"));
}

#[test]
fn invalidations_begin_with_a_separator_and_are_of_their_majors_kinds() {
    let kinds = [(80, 1), (-1, 2), (-2, 3), (-3, 4), (-4, 5), (-5, 6), (-6, 7), (-7, 8)];
    let mut main = words(&[kinds.len() as u32]);
    kinds.into_iter().for_each(|(id, what)| main.extend(message(id, 90 + what, what)));
    let known = "INVALIDATION ; inval msgs: catcache 80 catalog 2 relcache 3 smgr relmap db 95 \
                 snapshot 6";
    let [fifteen, _, seventeen, eighteen] = texts(RmgrId::XACT, 0x60, &main);
    assert_eq!(fifteen, format!("{known} unrecognized id -6 unrecognized id -7"));
    assert_eq!(seventeen, fifteen);
    assert_eq!(eighteen, format!("{known} relsync 7 unrecognized id -7"));

    // Nothing at all without messages, not even that the file is out of date.
    let nothing = same(RmgrId::STANDBY, 0x20, &words(&[5, 1663, 1, 0]));
    assert_eq!(nothing, "INVALIDATIONS ");
    let mut one = words(&[5, 1663, 1, 1]);
    one.extend(message(0, 5, 6));
    let one = same(RmgrId::STANDBY, 0x20, &one);
    let said = "INVALIDATIONS ; relcache init file inval dbid 5 tsid 1663; inval msgs: catcache 0";
    assert_eq!(one, said);
}

#[test]
fn running_subtransactions_are_listed_from_16_on() {
    let main = words(&[1, 2, 1, 800, 700, 799, 700, 701, 702]);
    let [fifteen, sixteen, seventeen, eighteen] = texts(RmgrId::STANDBY, 0x10, &main);
    let common =
        "RUNNING_XACTS nextXid 800 latestCompletedXid 799 oldestRunningXid 700; 1 xacts: 700";
    assert_eq!(fifteen, format!("{common}; subxid ovf"));
    assert_eq!(sixteen, format!("{common}; subxid overflowed; 2 subxacts: 701 702"));
    assert_eq!((&sixteen, &sixteen), (&seventeen, &eighteen));
}

#[test]
fn all_parts_of_an_end_are_said_in_their_order() {
    let dropped: &[&[u32]] = &[&[1, 3, 5, 0xFFFF_FFFF], &[1, 3, 5, 0xFFFF_FFFF, 1]];
    let end = |dropped: &[u32], xinfo: u32| {
        let mut main = words(&[0, 0, xinfo, 5, 1663]); // at, xinfo, DBINFO
        main.extend(words(&[1, 9])); // SUBXACTS
        main.extend(words(&[2, 1663, 5, 6, 16400, 7, 8])); // RELFILENODES
        main.extend(words(dropped));
        if xinfo & 0x008 != 0 {
            main.extend([words(&[1]), message(0, 0, 0)].concat());
        }
        main.extend([&words(&[77])[..], b"gid\0", &[0xAB, 0, 0, 0, 1, 0, 0, 0], &[0; 8]].concat());
        main
    };
    let begin = "77: 2000-01-01 00:00:00.000000 UTC; rels: base/5/6 \
                 pg_tblspc/16400/PG_15_202209061/7/8; subxacts: 9";
    let origin = "; origin: node 3, lsn 1/AB, at 2000-01-01 00:00:00.000000 UTC";
    let says =
        |info: u8, main: &[u8], version| described(&record(RmgrId::XACT, info, main), version);
    let fifteen = says(0xB0, &end(dropped[0], 0xE000_01FF), &VERSIONS[0]);
    let rest = "; dropped stats: 3/5/4294967295; relcache init file inval dbid 5 tsid 1663; \
                inval msgs: catcache 0; apply_feedback; sync";
    assert_eq!(fifteen, (format!("{begin}{rest}{origin}"), Ok(())));
    let fifteen = says(0xC0, &end(dropped[0], 0x1F7), &VERSIONS[0]);
    assert_eq!(fifteen, (format!("{begin}{origin}; dropped stats: 3/5/4294967295"), Ok(())));

    // The same with the longer items of 18, which are not what 17 takes them for.
    let main = end(dropped[1], 0x1F7);
    let eighteen = format!("{begin}{origin}; dropped stats: 3/5/8589934591");
    let eighteen = eighteen.replace("PG_15_202209061", "PG_18_202506291");
    assert_eq!(says(0xC0, &main, &VERSIONS[3]), (eighteen.clone(), Ok(())));
    assert_ne!(says(0xC0, &main, &VERSIONS[2]).0, eighteen.replace("18_202506291", "17_202406281"));
}

#[test]
fn too_few_bytes_are_an_error_in_place_of_the_text() {
    let main = words(&[1663, 5, 6, 4]);
    let (text, result) = described(&record(RmgrId::SMGR, 0x10, &main), &VERSIONS[0]);
    assert_eq!(text, "");
    assert!(matches!(result, Err(TextError::Contents(_))), "{result:?}");
    let main = words(&[1663, 5, 6, 3]);
    assert_eq!(same(RmgrId::SMGR, 0x10, &main), "CREATE base/5/6_init");
    for length in 0..main.len() {
        let short = record(RmgrId::SMGR, 0x10, &main[..length]);
        assert!(matches!(described(&short, &VERSIONS[0]).1, Err(TextError::Length(_))));
        let mut text = Vec::new();
        let _ = text::write(&short, &VERSIONS[0], false, &mut Out::new(&mut text, &Utc));
        let text = String::from_utf8(text).expect("text");
        assert!(text.contains("desc: CREATE  (cannot be read: "), "{text}");
        assert!(text.ends_with(" are left)\n"), "{text}");
    }
}

/// Counts are often small, so that what follows them is reached.
fn main_data() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![0_u32..4, any::<u32>()];
    (prop::collection::vec(word, 0..40), 0_usize..4).prop_map(|(all, cut)| {
        let mut bytes = words(&all);
        bytes.truncate(bytes.len().saturating_sub(cut));
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_bytes_are_text_or_an_error(
        rmgr in 0_u8..22,
        info in any::<u8>(),
        main in prop_oneof![main_data(), prop::collection::vec(any::<u8>(), 0..200)],
        details in any::<bool>(),
    ) {
        for version in VERSIONS {
            let record = record(RmgrId(rmgr), info, &main);
            let mut text = Vec::new();
            let written = text::write(&record, version, details, &mut Out::new(&mut text, &Utc));
            prop_assert!(text.ends_with(b"\n"));
            // No count can make it longer than what is there: the longest word of all, a tablespace's
            // relation, has some 70 bytes, of 12.
            prop_assert!(text.len() < 1000 + 16 * main.len(), "{written:?}");
        }
    }
}
