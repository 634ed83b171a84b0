//! `pg_waldump` of each major is the judge of [`walfmt::text`]: over WAL of real servers in which every
//! kind of record of every resource manager is found, both print the same bytes.
//!
//! Which kinds there are, the judge says itself: records with every number, made by hand, are counted by
//! `pg_waldump --stats=record`, and each name that it knows must have been found in what a server
//! wrote, unless [`UNREACHABLE`] says why none can.

use std::collections::BTreeMap;
use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use integration::made_wal::{self, MadeRecord};
use integration::opcodes::{Wal, Writer};
use integration::wal_text::{Kind, Tally, compare};
use walfmt::rmgr::{RmgrId, heap, xlog};
use walfmt::text;

#[test]
fn records_of_15_are_printed_as_by_pg_waldump() -> Result<()> {
    judge(15)
}

#[test]
fn records_of_16_are_printed_as_by_pg_waldump() -> Result<()> {
    judge(16)
}

#[test]
fn records_of_17_are_printed_as_by_pg_waldump() -> Result<()> {
    judge(17)
}

#[test]
fn records_of_18_are_printed_as_by_pg_waldump() -> Result<()> {
    judge(18)
}

/// Kinds that have a name and that no server writes: resource manager, kind, where PostgreSQL says so.
const UNREACHABLE: [(&str, &str, &str); 2] = [
    (
        "XLOG",
        "NOOP",
        "src/backend/access/transam/xlog.c:7866 (15), 8503 (17), 8510 (18): replayed, inserted nowhere",
    ),
    (
        "Heap",
        "HOT_UPDATE+INIT",
        "src/backend/access/heap/heapam.c:8887 (15), 9326 (17), 9204 (18): only if the new row is alone \
         on its page, but the old one of a HOT update is on the same",
    ),
];

/// A kind that only extensions write, with src/backend/access/transam/generic_xlog.c:395 (15), 399 (17
/// and 18): where there is no contrib, there is none.
const OF_EXTENSIONS: (&str, &str) = ("Generic", "Generic");

fn judge(major: u16) -> Result<()> {
    let writer = Writer::new(major)?;
    let names = names(&writer)?;
    let misnamed = misnamed(&names, &writer);

    let mut wals = vec![writer.minimal()?, writer.consistency()?];
    wals.extend(writer.logical()?);
    let mut written = Tally::default();
    for wal in &wals {
        written.add(compare_both(&writer, wal)?);
    }
    let made = compare_both(&writer, &made_by_hand(&writer, &names)?)?;
    println!("PostgreSQL {major}, written by servers: {}\n{written}", written.total());
    println!("PostgreSQL {major}, made by hand: {}\n{made}", made.total());
    for (kind, compared) in written.different().chain(made.different()) {
        let (ours, theirs) = compared.difference.as_ref().context("no difference")?;
        println!("{}/{}: {compared}, first\n- {ours}\n+ {theirs}", kind.0, kind.1);
    }

    let missing = missing(&names, &written, &writer);
    let different = written.different().chain(made.different()).count();
    println!("{} numbers, {} misnamed, no record of {missing:?}", names.len(), misnamed.len());
    ensure!(misnamed.is_empty(), "PostgreSQL {major}: {misnamed:#?}");
    ensure!(missing.is_empty(), "PostgreSQL {major}: no record of {missing:?}");
    ensure!(different == 0, "PostgreSQL {major}: {different} kinds are printed differently");
    every_altered_character_is_noticed(&writer, &wals)
}

/// Without and with `--bkp-details`.
fn compare_both(writer: &Writer, wal: &Wal) -> Result<Tally> {
    let mut both = Tally::default();
    for details in [false, true] {
        let tally = compared(writer, wal, details, |_, _, _| {})?;
        println!("{}, details {details}: {}", wal.name, tally.total());
        both.add(tally);
    }
    Ok(both)
}

fn compared(
    writer: &Writer,
    wal: &Wal,
    details: bool,
    spoil: impl FnMut(u64, &Kind, &mut Vec<u8>),
) -> Result<Tally> {
    let account = writer.scratch().account();
    compare(wal, writer.version(), writer.binaries(), account, details, spoil)
        .with_context(|| format!("{}, details {details}", wal.name))
}

/// What `pg_waldump` calls a record, by resource manager and number; those without a name are `UNKNOWN`.
type Names = BTreeMap<(u8, u8), String>;

/// Asks it by records that differ in nothing else: statistics have them in this order.
fn names(writer: &Writer) -> Result<Names> {
    // Of Transaction, the highest bit says something else (XLOG_XACT_HAS_INFO).
    let numbers = (0..22_u8).flat_map(|rmgr| {
        let count = if rmgr == RmgrId::XACT.0 { 8 } else { 16 };
        (0..count).map(move |number: u8| (rmgr, number << 4))
    });
    let numbers: Vec<(u8, u8)> = numbers
        // What stands behind a switch of segments is not read.
        .filter(|&number| number != (RmgrId::XLOG.0, xlog::SWITCH))
        .collect();
    let records: Vec<MadeRecord> = numbers
        .iter()
        .map(|&(rmgr, info)| MadeRecord { rmgr: RmgrId(rmgr), info, blocks: 0, main_data: vec![0] })
        .collect();
    let directory = writer.scratch().directory("names")?;
    let wal = made_wal::write(&directory, "names", writer.version(), &records)?;
    let mut dump = writer.scratch().account().command(writer.binaries().program("pg_waldump"));
    dump.arg("-p").arg(&directory).arg("-s").arg(wal.segments.start().to_string());
    // It fails at the end of WAL, having printed what it counted.
    let output = dump.arg("--stats=record").stdin(Stdio::null()).output()?;
    let rows = String::from_utf8(output.stdout).context("statistics are text")?;
    // Below "WAL statistics between ... and ...:" and "Type  N  (%) ..."; sums have no slash.
    let rows = rows.lines().filter(|row| row.contains('/') && !row.starts_with("WAL statistics "));
    let rows: Vec<&str> = rows.collect();
    ensure!(rows.len() == numbers.len(), "{} rows of {} numbers", rows.len(), numbers.len());
    let mut names = Names::from([((RmgrId::XLOG.0, xlog::SWITCH), "SWITCH".to_owned())]);
    for ((rmgr, info), row) in numbers.into_iter().zip(rows) {
        let (of, name) = row.split_once('/').context("a row without a slash")?;
        ensure!(Some(of) == RmgrId(rmgr).name(), "{row} is not of {}", RmgrId(rmgr));
        let name = name.split(' ').next().unwrap_or_default();
        names.insert((rmgr, info), name.to_owned());
    }
    Ok(names)
}

/// Numbers that [`text::identify`] calls otherwise.
fn misnamed(names: &Names, writer: &Writer) -> Vec<String> {
    let misnamed = names.iter().filter_map(|(&(rmgr, info), theirs)| {
        let ours = text::identify(RmgrId(rmgr), info, writer.version()).unwrap_or("UNKNOWN");
        (ours != theirs).then(|| format!("{}/{info:02x}: {ours}, not {theirs}", RmgrId(rmgr)))
    });
    misnamed.collect()
}

/// Records that no server writes: each number without a name, the unreachable, those of extensions.
fn made_by_hand(writer: &Writer, names: &Names) -> Result<Wal> {
    let unknown = names.iter().filter(|(_, name)| *name == "UNKNOWN").map(|(&number, _)| number);
    let mut records: Vec<MadeRecord> = unknown
        .chain([
            (RmgrId::XLOG.0, xlog::NOOP),
            (RmgrId::HEAP.0, heap::HOT_UPDATE | heap::INIT_PAGE),
            (128, 0x00),
            (200, 0x30),
            (255, 0xF0),
        ])
        .map(|(rmgr, info)| MadeRecord {
            rmgr: RmgrId(rmgr),
            info,
            blocks: 2,
            main_data: vec![0; main_length(names, rmgr, info)],
        })
        .collect();
    // Two stretches of a page: offset, length, bytes.
    records.push(MadeRecord {
        rmgr: RmgrId::GENERIC,
        info: 0,
        blocks: 1,
        main_data: vec![20, 0, 3, 0, b'a', b'b', b'c', 0, 1, 2, 0, b'd', b'e'],
    });
    let directory = writer.scratch().directory("made")?;
    let name = format!("{}, made by hand", writer.version().major);
    made_wal::write(&directory, &name, writer.version(), &records)
}

/// Data for a record without a name: of some, `pg_waldump` reads what the number without its highest bit
/// contains, and we refuse some of them if they go on behind that. (Servers do not write such.)
fn main_length(names: &Names, rmgr: u8, info: u8) -> usize {
    // XLOG_HEAP_INIT_PAGE, XLOG_BRIN_INIT_PAGE
    let plain = names.get(&(rmgr, info & !heap::INIT_PAGE)).map_or("", String::as_str);
    match (RmgrId(rmgr), plain) {
        // xl_heap_prune of 17 in src/include/access/heapam_xlog.h
        (RmgrId::HEAP2, "PRUNE_ON_ACCESS" | "PRUNE_VACUUM_SCAN" | "PRUNE_VACUUM_CLEANUP") => 2,
        // xl_brin_createidx and so on in src/include/access/brin_xlog.h
        (RmgrId::BRIN, "CREATE_INDEX") => 6,
        (RmgrId::BRIN, "SAMEPAGE_UPDATE") => 2,
        (RmgrId::BRIN, "REVMAP_EXTEND") => 4,
        (RmgrId::BRIN, "DESUMMARIZE") => 10,
        _ => 300,
    }
}

/// Names that no server's record had, although it could have.
fn missing(names: &Names, written: &Tally, writer: &Writer) -> Vec<String> {
    let library = writer.binaries().directory().join("../lib/bloom.so");
    let debian = writer.binaries().directory().join("../lib/postgresql/bloom.so");
    let has_extensions = library.exists() || debian.exists();
    let kinds = names
        .iter()
        .filter(|(_, name)| *name != "UNKNOWN")
        .filter_map(|((rmgr, _), name)| Some((RmgrId(*rmgr).name()?.to_owned(), name.clone())));
    let mut missing: Vec<String> = kinds
        .filter(|kind| !written.0.contains_key(kind))
        .filter(|(rmgr, name)| {
            let is = |(of, kind): (&str, &str)| of == rmgr && kind == name;
            let unreachable = UNREACHABLE.iter().any(|&(of, kind, _)| is((of, kind)));
            !unreachable && (has_extensions || !is(OF_EXTENSIONS))
        })
        .map(|(rmgr, name)| format!("{rmgr}/{name}"))
        .collect();
    missing.dedup();
    missing
}

/// The control: in the first record of each kind a letter of our description is another, then a digit.
/// Both are noticed, at each kind, and nothing else is.
fn every_altered_character_is_noticed(writer: &Writer, wals: &[Wal]) -> Result<()> {
    let is_letter: fn(&u8) -> bool = |byte| byte.is_ascii_lowercase();
    let is_digit: fn(&u8) -> bool = |byte| byte.is_ascii_digit();
    for (what, is_meant) in [("letter", is_letter), ("digit", is_digit)] {
        let mut altered: BTreeMap<Kind, u64> = BTreeMap::new();
        let mut tally = Tally::default();
        for wal in wals {
            tally.add(compared(writer, wal, false, |_, kind, line| {
                let begin = line.windows(8).position(|part| part == b", desc: ").unwrap_or(0) + 8;
                if altered.contains_key(kind) {
                    return;
                }
                if let Some(at) = line[begin..].iter().rposition(is_meant) {
                    line[begin + at] ^= 1;
                    altered.insert(kind.clone(), 1);
                }
            })?);
        }
        let noticed: BTreeMap<Kind, u64> = tally
            .different()
            .map(|(kind, compared)| (kind.clone(), compared.records - compared.equal))
            .collect();
        ensure!(noticed == altered, "altered {altered:?}, noticed {noticed:?}");
        ensure!(altered.len() > 50, "only {} kinds have a {what}", altered.len());
        println!("a {what} altered in {} kinds of records: all noticed", altered.len());
    }
    Ok(())
}
