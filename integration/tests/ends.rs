//! `pg_waldump` judges how WAL ends: the scripts of `walfmt/format/tests/ends`, as files.
//!
//! It has the same records as our reader, at the same places, and stops behind the same one.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::{Binaries, Scratch};
use walfmt::{Lsn, SegmentName};

#[path = "../../walfmt/format/tests/common/mod.rs"]
mod common;

use common::script::Script;

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../walfmt/format/tests/ends");

#[test]
fn wal_ends_for_pg_waldump_as_it_does_for_us() -> Result<()> {
    let scratch = Scratch::new()?;
    let (mut scripts, mut records, mut noticed, mut excused) = (0, 0, 0, 0);
    for entry in fs::read_dir(SCRIPTS)? {
        let path = entry?.path();
        let name = path.file_stem().context("a name")?.display().to_string();
        let text = fs::read_to_string(&path)?;
        let script = Script::read(&text).map_err(anyhow::Error::msg)?;
        let ours: Vec<Lsn> = script.wal.read().records.iter().map(|record| record.start).collect();
        let directory = scratch.directory(&name)?;
        write_segments(&script, &directory)?;
        let (theirs, why) = judge(&script, &directory)?;
        println!("{name}: {} records, then {why}", theirs.len());
        match script.judged {
            None => ensure!(theirs == ours, "{name}: ours {ours:?}, pg_waldump's {theirs:?}"),
            Some(count) => {
                ensure!(theirs.len() == count, "{name}: pg_waldump has {} records", theirs.len());
                let common = count.min(ours.len());
                ensure!(theirs[..common] == ours[..common], "{name}: they differ before");
                excused += 1;
            }
        }
        (scripts, records) = (scripts + 1, records + ours.len());

        // The negative control: a damaged record ends it earlier for the judge, too.
        let Some(last) = theirs.last() else { continue };
        let mut spoiled = script;
        *spoiled.wal.byte_at(last.advance(20)) ^= 1; // its CRC
        write_segments(&spoiled, &directory)?;
        let (fewer, _) = judge(&spoiled, &directory)?;
        ensure!(fewer.len() + 1 == theirs.len(), "{name}: spoiled, {} records", fewer.len());
        noticed += 1;
    }
    println!(
        "{scripts} scripts, {records} records compared, {excused} scripts where pg_waldump is known to go on; \
         {noticed} spoiled ones noticed"
    );
    ensure!(scripts >= 12 && noticed == scripts);
    Ok(())
}

fn write_segments(script: &Script, directory: &Path) -> Result<()> {
    let wal = &script.wal;
    let size = wal.segment_size;
    for (index, bytes) in wal.bytes.chunks(usize::try_from(size.bytes())?).enumerate() {
        let number = size.segment_of(wal.start.advance(index as u64 * size.bytes()));
        let name = SegmentName::new(script.timeline_max, number, size);
        fs::write(directory.join(name.to_string()), bytes)?;
    }
    Ok(())
}

/// Where the records begin that `pg_waldump` prints, and why it stops.
fn judge(script: &Script, directory: &Path) -> Result<(Vec<Lsn>, String)> {
    let mut command = Command::new(Binaries::find()?.directory().join("pg_waldump"));
    command.arg("-p").arg(directory).args(["-t", &script.timeline_max.0.to_string()]);
    // Of the first record.
    let output = command.args(["-s", &script.wal.start.advance(40).to_string()]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let mut starts = Vec::new();
    for line in text.lines() {
        let (_, rest) = line.split_once("lsn: ").with_context(|| format!("no record: {line}"))?;
        let (lsn, _) = rest.split_once(',').context("no end of an LSN")?;
        starts.push(lsn.parse()?);
    }
    let error = String::from_utf8(output.stderr)?;
    Ok((starts, error.trim().to_owned()))
}
