//! How WAL ends, in every shape: one script each, in `tests/ends`, with what a reader must say.
//! `integration/tests/ends.rs` has `pg_waldump` judge the same scripts.

mod common;

use std::fs;

use common::Outcome;
use common::script::Script;

#[test]
fn wal_ends_as_the_scripts_say() {
    let mut paths: Vec<_> = fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/ends"))
        .expect("the scripts")
        .map(|entry| entry.expect("a script").path())
        .collect();
    paths.sort();
    let mut wrong = 0;
    for path in &paths {
        let name = path.file_stem().expect("a name").display().to_string();
        let text = fs::read_to_string(path).expect("a script");
        let script = Script::read(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let whole = script.wal.read();
        // As few bytes at a time as there can be, and pieces that fit nothing.
        for cuts in [&[1][..], &[3, 4093, 1, 24]] {
            let cut = Outcome::of(&mut script.wal.stream(), &script.wal.bytes, cuts);
            assert_eq!(cut, whole, "{name}: read in pieces of {cuts:?}");
        }
        let stop = match &whole.stop {
            Some(stop) => stop.to_string(),
            None => "nothing more".to_owned(),
        };
        let found = format!("{} records, then {stop}", whole.records.len());
        if found != script.expected {
            println!("{name}:\n  expect {}\n  found  {found}", script.expected);
            wrong += 1;
        }
        // The negative control: one record less, and nothing that follows it, is not the same.
        if let Some(last) = whole.records.last() {
            let mut spoiled = script.wal.clone();
            *spoiled.byte_at(last.start.advance(20)) ^= 1; // its CRC
            let spoiled = spoiled.read();
            assert_eq!(spoiled.records.len() + 1, whole.records.len(), "{name}");
        }
    }
    println!("{} scripts", paths.len());
    assert!(paths.len() >= 12);
    assert_eq!(wrong, 0);
}
