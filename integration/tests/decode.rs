//! Row changes are those of PostgreSQL's own decoding: `test_decoding` on the same leader is the
//! judge, and a leader at `wal_level=replica` gives the same rows.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::decoding::comparison::{Judge, ensure_complete_old_rows};
use integration::decoding::script::Identities;
use integration::decoding::slot::partitioned_tables;
use integration::decoding::spoil::Spoil;
use integration::decoding::{
    Comparison, Coverage, Decoded, Rules, Script, Sessions, Slot, Value, golden, lines,
};
use integration::process::wait_until;
use integration::{Cluster, ClusterOptions, Pair, Scratch, Seed};
use walfmt::Lsn;

/// How long the follower may take to decode what is there.
const PATIENCE: Duration = Duration::from_secs(300);

/// How many changes must have been compared.
const LEAST: u64 = 10_000;

/// Each lane does each piece about this often.
const TURNS: usize = 6;

/// The judge is judged: it agrees with itself, with another server that was told the same, and with
/// nothing that was spoiled. No decoder of ours has a part in it.
#[test]
fn the_judge_can_tell() -> Result<()> {
    let scratch = Scratch::new()?;
    let mixed = script(Identities::Mixed);
    let full = script(Identities::Full);
    assert_eq!(mixed.steps.len(), full.steps.len());
    let (leader, other) = std::thread::scope(|scope| {
        let other = scope.spawn(|| judged_server(&scratch, "full", &full));
        let leader = judged_server(&scratch, "mixed", &mixed)?;
        anyhow::Ok((leader, other.join().expect("no panic")?))
    })?;
    let (judge, complete) = (Slot::of(&leader).peek()?, Slot::of(&other).peek()?);
    let coverage = Coverage::of(&judge);
    println!("{coverage}");
    coverage.ensure_enough()?;

    let mut rules =
        Rules { judge: Judge::Identity, same_wal: true, partitioned: partitioned_tables(&leader)? };
    // Through lines of ours: both parsers read what the other wrote.
    let again = lines::parse(&lines::write(&judge, Value::Unchanged))?;
    let comparison = Comparison::between(&judge, &again, &rules);
    println!("itself: {comparison}");
    comparison.ensure_equal(LEAST)?;
    controls(&judge, &again, &rules)?;
    let mut other_xid = again.clone();
    *other_xid.transactions[0].xid.as_mut().context("a number")? += 1;
    assert_eq!(Comparison::between(&judge, &other_xid, &rules).differing, 1);

    // What a decoder should have that knows all: of the server where old rows are told.
    rules.same_wal = false;
    let perfect = lines::parse(&lines::write(&complete, Value::Null))?;
    let comparison = Comparison::between(&judge, &perfect, &rules);
    println!("another server: {comparison}");
    comparison.ensure_equal(LEAST)?;
    rules.judge = Judge::FullIdentity;
    let comparison = Comparison::between(&complete, &perfect, &rules);
    println!("complete old rows: {comparison}");
    comparison.ensure_equal(LEAST)?;
    println!("{} old rows are complete", ensure_complete_old_rows(&perfect)?);
    assert!(ensure_complete_old_rows(&again).is_err());
    controls(&complete, &perfect, &rules)?;
    speculative_rows_were_taken_back(&leader)
}

/// The same script on a leader at `logical` and on one at `replica`.
#[test]
fn rows_are_those_of_test_decoding() -> Result<()> {
    let scratch = Scratch::new()?;
    let (judge, logical, mut rules) = decoded_at(&scratch, "logical", &script(Identities::Mixed))?;
    let judge = judge.context("a judge")?;
    let coverage = Coverage::of(&judge);
    println!("{coverage}");
    coverage.ensure_enough()?;
    rules.same_wal = true;
    let comparison = Comparison::between(&judge, &logical, &rules);
    println!("at logical: {comparison}");
    comparison.ensure_equal(LEAST)?;
    ensure_common_types_are_printed(&comparison)?;
    controls(&judge, &logical, &rules)?;

    // A folder of its own: names of agents and servers are the same.
    let scratch = Scratch::new()?;
    let (_, replica, mut rules) = decoded_at(&scratch, "replica", &script(Identities::Mixed))?;
    rules.judge = Judge::Decoder;
    let comparison = Comparison::between(&logical, &replica, &rules);
    println!("at replica, and at logical: {comparison}");
    comparison.ensure_equal(LEAST)?;
    println!("{} old rows are complete", ensure_complete_old_rows(&replica)?);

    let scratch = Scratch::new()?;
    let server = judged_server(&scratch, "full", &script(Identities::Full))?;
    let complete = Slot::of(&server).peek()?;
    rules.judge = Judge::FullIdentity;
    let comparison = Comparison::between(&complete, &replica, &rules);
    println!("at replica, and test_decoding with REPLICA IDENTITY FULL: {comparison}");
    comparison.ensure_equal(LEAST)?;
    controls(&complete, &replica, &rules)
}

/// Each script of `tests/sql/decode`, at both levels.
#[test]
fn golden_scripts_are_decoded() -> Result<()> {
    let all = golden_scripts()?;
    let script = golden::joined(&all);
    let scratch = Scratch::new()?;
    let (judge, logical, mut rules) = decoded_at(&scratch, "logical", &script)?;
    let judge = judge.context("a judge")?;
    let scratch = Scratch::new()?;
    let (_, replica, _) = decoded_at(&scratch, "replica", &script)?;
    let mut faults = compare_parts("logical", &judge, &logical, &rules)?;
    rules.same_wal = false;
    faults.extend(compare_parts("replica", &judge, &replica, &rules)?);
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

/// A database that is made while rows are captured has its template's catalogs, by either strategy, also
/// if the agent was restarted since; and each is told by its name.
#[test]
fn databases_that_are_made_are_told() -> Result<()> {
    let scratch = Scratch::new()?;
    let directory = scratch.directory("decoded")?;
    let directory = directory.to_str().context("a path in UTF-8")?;
    let more = [("decode", "directory", directory)];
    let mut pair = Pair::start_configured(&scratch, &options("replica"), &more, |_| Ok(()))?;
    let mut expected = Vec::new();
    for (name, strategy) in [("logged", "wal_log"), ("copied", "file_copy")] {
        let sql = format!("create type {name} as enum ('of {name}')");
        pair.leader.endpoint().sql_in("template1", &sql)?;
        // A server copies no database that somebody is still about to leave.
        let others = "select count(*) from pg_stat_activity where datname = 'template1'";
        wait_until("nobody is there", PATIENCE, || Ok(pair.leader.sql(others)? == "0"))?;
        pair.leader.sql(&format!("create database {name} strategy {strategy}"))?;
        let sql = format!("create table t (v {name}); insert into t values ('of {name}')");
        pair.leader.endpoint().sql_in(name, &sql)?;
        expected.push((name, format!("\"new\":{{\"v\":\"of {name}\"}}")));
    }
    for round in ["at first", "after a restart"] {
        let end = pair.catch_up(PATIENCE)?;
        wait_until("the follower has decoded what there is", PATIENCE, || {
            Ok(pair.follower.metrics()?.position("decoded").is_some_and(|decoded| decoded >= end))
        })?;
        for (name, row) in &expected {
            let text = pair.follower.run_verb("decode", &["--database", name])?;
            let rows: Vec<&str> = text.lines().filter(|line| line.contains(row.as_str())).collect();
            let others = text.lines().filter(|line| !line.contains(&format!("\"{name}\"")));
            println!("{round}, {name}: {rows:?}");
            ensure!(rows.len() == 1 + usize::from(round != "at first"), "{text}");
            ensure!(others.count() == 0, "{text}");
        }
        ensure!(pair.follower.run_verb("decode", &["--database", "nowhere"])?.is_empty());
        if round == "at first" {
            pair.follower.kill()?;
            pair.follower.start()?;
            for (name, _) in &expected {
                let sql = format!("insert into t values ('of {name}')");
                pair.leader.endpoint().sql_in(name, &sql)?;
            }
        }
    }
    Ok(())
}

/// From the first row on that is told none is missing, however busy the leader is where rows begin.
#[test]
fn rows_begin_without_a_hole() -> Result<()> {
    const ROUNDS: usize = 3;
    /// Rows of one transaction.
    const ROWS: usize = 200;
    for round in 1..=ROUNDS {
        let scratch = Scratch::new()?;
        let directory = scratch.directory("decoded")?;
        let directory = directory.to_str().context("a path in UTF-8")?;
        let more = [("decode", "directory", directory)];
        let (is_over, commits) = (AtomicBool::new(false), AtomicUsize::new(0));
        let (text, written) = std::thread::scope(|scope| -> Result<_> {
            let mut writer = None;
            let started = Pair::start_configured(&scratch, &options("replica"), &more, |leader| {
                leader.sql("create table t (v int)")?;
                let endpoint = leader.endpoint().clone();
                let (is_over, commits) = (&is_over, &commits);
                writer = Some(scope.spawn(move || -> Result<usize> {
                    let mut v = 0;
                    while !is_over.load(Ordering::SeqCst) {
                        let rows: Vec<String> =
                            (v..v + ROWS).map(|v| format!("insert into t values ({v});")).collect();
                        endpoint.sql(&rows.join("\n"))?;
                        v += ROWS;
                        commits.fetch_add(1, Ordering::SeqCst);
                    }
                    Ok(v)
                }));
                // Rows begin when there are some: those are not told.
                wait_until("the first transaction is committed", PATIENCE, || {
                    let has_ended = writer.as_ref().is_none_or(ScopedJoinHandle::is_finished);
                    ensure!(!has_ended, "the writer has ended");
                    Ok(commits.load(Ordering::SeqCst) > 0)
                })
            });
            let told = started.and_then(|pair| {
                pair.follower.wait_for_state("decode", "streaming")?;
                // Of two that commit from here on, the second begins here, too: it is told.
                let before = commits.load(Ordering::SeqCst);
                wait_until("more is committed", PATIENCE, || {
                    Ok(commits.load(Ordering::SeqCst) >= before + 2)
                })?;
                is_over.store(true, Ordering::SeqCst);
                Ok(pair)
            });
            is_over.store(true, Ordering::SeqCst);
            let written = writer.map(|writer| writer.join().expect("no panic"));
            let mut pair = told?; // a server that is gone is not why the writer fails
            let written = written.context("a writer")??;
            let end = pair.catch_up(PATIENCE)?;
            pair.follower.wait_for_position("decoded", end, PATIENCE)?;
            Ok((pair.follower.run_verb("decode", &[])?, written))
        })?;
        let number = |line: &str| -> Option<usize> {
            let (_, rest) = line.split_once("\"new\":{\"v\":\"")?;
            rest.split_once('"')?.0.parse().ok()
        };
        let told: Vec<usize> = text.lines().filter_map(number).collect();
        let first = *told.first().context("no row is told")?;
        println!("round {round}: {} rows, told from {first} to {written}", told.len());
        ensure!(first > 0, "rows began before there were any: nothing was tested");
        ensure!(first % ROWS == 0, "a transaction is told from its {}th row on", first % ROWS);
        let expected: Vec<usize> = (first..written).collect();
        let missing = expected.iter().find(|v| told.binary_search(v).is_err());
        ensure!(
            told == expected,
            "{} of {} rows, {missing:?} is not told",
            told.len(),
            expected.len()
        );
    }
    Ok(())
}

/// A reader that was told where to end prints all that commits before, nothing behind, and ends.
#[test]
fn a_reader_ends_where_it_is_told() -> Result<()> {
    const ROWS: usize = 40;
    let scratch = Scratch::new()?;
    let directory = scratch.directory("decoded")?;
    let directory = directory.to_str().context("a path in UTF-8")?;
    let more = [("decode", "directory", directory)];
    let mut pair = Pair::start_configured(&scratch, &options("replica"), &more, |leader| {
        leader.sql("create table t (v int, padding text)").map(drop)
    })?;
    pair.follower.wait_for_state("decode", "streaming")?;
    let position = |leader: &Cluster| -> Result<Lsn> {
        Ok(leader.sql("select pg_current_wal_insert_lsn()")?.parse()?)
    };
    // The first brings images of catalog pages.
    pair.leader.sql("insert into t values (-1, repeat('x', 1000))")?;
    let until = position(&pair.leader)?.advance(1000 * ROWS as u64 / 2);
    let (text, ends) = std::thread::scope(|scope| -> Result<_> {
        let follower = &pair.follower;
        let reader = scope.spawn(move || {
            follower.run_verb("decode", &["--follow", "--until", &until.to_string()])
        });
        let mut ends = Vec::new();
        for v in 0..ROWS {
            pair.leader.sql(&format!("insert into t values ({v}, repeat('x', 1000))"))?;
            ends.push(position(&pair.leader)?);
        }
        Ok((reader.join().expect("no panic")?, ends))
    })?;
    let told = |v: usize| text.contains(&format!("\"new\":{{\"v\":\"{v}\","));
    let before = ends.iter().filter(|end| **end <= until).count();
    // One may commit on both sides: its records begin before.
    for v in (0..ROWS).filter(|v| *v != before) {
        ensure!(told(v) == (v < before), "row {v} of {before} before {until}: {text}");
    }
    println!("{before} of {ROWS} rows before {until}");
    ensure!(before > 0 && before + 1 < ROWS);

    // Without --follow it ends where the rows do.
    let end = pair.catch_up(PATIENCE)?;
    pair.follower.wait_for_position("decoded", end, PATIENCE)?;
    let again = pair.follower.run_verb("decode", &["--until", &until.to_string()])?;
    ensure!(again == text, "{again}");
    let all = pair.follower.run_verb("decode", &["--until", "FFFFFFFF/0"])?;
    ensure!(all.starts_with(&text) && all.len() > text.len(), "{all}");
    Ok(())
}

/// The golden scripts run, each changes something, and none depends on the server.
#[test]
fn golden_scripts_run() -> Result<()> {
    let all = golden_scripts()?;
    let scratch = Scratch::new()?;
    let server = judged_server(&scratch, "golden", &golden::joined(&all))?;
    let judge = Slot::of(&server).peek()?;
    let parts = golden::parts(&judge);
    for ((name, part), (expected, _)) in parts.iter().zip(&all) {
        assert_eq!(name, expected);
        println!("{name}: {} changes in {} transactions", part.len(), part.transactions.len());
        part.changes().take(12).for_each(|change| println!("  {change}"));
        ensure!(!part.is_empty(), "script {name} changes nothing");
    }
    assert_eq!(parts.len(), all.len());
    ensure!(Coverage::of(&judge).never.is_empty(), "decoded, and rolled back");
    Ok(())
}

/// No decoder tells of them, so the WAL is asked: the workload has rows that were written on trial
/// and stayed, and ones that were taken back.
fn speculative_rows_were_taken_back(leader: &Cluster) -> Result<()> {
    /// In a deletion's flags, as `pg_waldump` prints them in hexadecimal.
    const IS_SUPER: u32 = 1 << 3;
    let start = leader.sql("select restart_lsn from pg_replication_slots")?;
    let end = leader.sql("select pg_current_wal_flush_lsn()")?;
    let arguments = ["--rmgr", "Heap", "--start", &start, "--end", &end];
    let text = leader.waldump(&leader.wal_directory(), &arguments)?;
    let is_super = |line: &&str| {
        let flags = line.split_once("DELETE off").and_then(|(_, rest)| rest.split_once("flags 0x"));
        let digits = flags.map(|(_, flags)| flags.split(' ').next().unwrap_or_default());
        digits.is_some_and(|digits| {
            u32::from_str_radix(digits, 16).is_ok_and(|flags| flags & IS_SUPER != 0)
        })
    };
    let taken_back = text.lines().filter(is_super).count();
    let confirmed = text.lines().filter(|line| line.contains("HEAP_CONFIRM")).count();
    println!("written on trial: {confirmed} rows stayed, {taken_back} were taken back");
    ensure!(taken_back >= 20 && confirmed >= 40, "too few");
    Ok(())
}

fn script(identities: Identities) -> Script {
    Script::generate(Seed::take("script", 5), TURNS * Script::PIECES, identities)
}

fn golden_scripts() -> Result<Vec<(String, Script)>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql/decode");
    golden::read_all(&directory)
}

fn options(level: &str) -> ClusterOptions {
    let mut options = ClusterOptions::default();
    let settings = [
        &format!("wal_level = {level}"),
        "autovacuum = off",
        "checkpoint_timeout = 1h",
        "max_connections = 40",
    ];
    options.settings.extend(settings.map(str::to_owned));
    options
}

/// A server that has done what the script says, with the judge's slot before it.
fn judged_server(scratch: &Scratch, name: &str, script: &Script) -> Result<Cluster> {
    let options = ClusterOptions { fsync: false, ..options("logical") };
    let server = Cluster::start_new(scratch, name, &options)?;
    Slot::create(&server)?;
    run(scratch, &server, script)?;
    Ok(server)
}

fn run(scratch: &Scratch, server: &Cluster, script: &Script) -> Result<()> {
    let begin = Instant::now();
    let directory = scratch.directory(&format!("{}-copy", server.name()))?;
    Sessions::connect(server, script, &directory.join("rows"))?.run(script)?;
    println!("{} steps in {:.1} s", script.steps.len(), begin.elapsed().as_secs_f64());
    Ok(())
}

/// Runs the script on a leader of this `wal_level` that a follower decodes. Gives what the judge
/// has, what we have, and the rules to compare with.
fn decoded_at(
    scratch: &Scratch,
    level: &str,
    script: &Script,
) -> Result<(Option<Decoded>, Decoded, Rules)> {
    let has_slot = level == "logical";
    let directory = scratch.directory("decoded")?;
    let directory = directory.to_str().context("a path in UTF-8")?;
    let more = [("decode", "directory", directory)];
    let mut pair = Pair::start_configured(scratch, &options(level), &more, |leader| {
        if has_slot { Slot::create(leader).map(drop) } else { Ok(()) }
    })?;
    run(scratch, &pair.leader, script)?;
    let end = pair.catch_up(PATIENCE)?;
    wait_until("the follower has decoded what there is", PATIENCE, || {
        let running = pair.follower.is_running();
        ensure!(running, "the follower has ended\n{}", pair.follower.log_tail(30));
        Ok(pair.follower.metrics()?.position("decoded").is_some_and(|decoded| decoded >= end))
    })
    .with_context(|| pair.follower.log_tail(30))?;
    let begin = Instant::now();
    let text = pair.follower.run_verb("decode", &[])?;
    let seconds = begin.elapsed().as_secs_f64();
    println!("walferry decode: {} lines in {seconds:.1} s", text.lines().count());
    let ours = lines::parse(&text)?;
    let judge = if has_slot { Some(Slot::of(&pair.leader).peek()?) } else { None };
    let partitioned = partitioned_tables(&pair.leader)?;
    let rules = Rules { judge: Judge::Identity, same_wal: has_slot, partitioned };
    Ok((judge, ours, rules))
}

/// Each thing that is spoiled must be found.
fn controls(judge: &Decoded, ours: &Decoded, rules: &Rules) -> Result<()> {
    for spoil in Spoil::ALL {
        let comparison = Comparison::between(judge, &spoil.apply(ours)?, rules);
        let found = comparison.differences.first();
        let found = found.with_context(|| format!("control {spoil:?} was not found"))?;
        println!("control {spoil:?}: {}", found.lines().next().unwrap_or_default());
    }
    Ok(())
}

fn ensure_common_types_are_printed(comparison: &Comparison) -> Result<()> {
    for name in integration::decoding::script::COMMON_TYPES {
        let reason = format!("raw values of type {name}");
        ensure!(!comparison.excluded.contains_key(&reason), "type {name} is not printed");
    }
    Ok(())
}

/// Each script's part on its own; gives what differs.
fn compare_parts(
    level: &str,
    judge: &Decoded,
    ours: &Decoded,
    rules: &Rules,
) -> Result<Vec<String>> {
    let (left, right) = (golden::parts(judge), golden::parts(ours));
    ensure!(left.len() == right.len(), "{} scripts, ours {}", left.len(), right.len());
    ensure!(ours.schema_faults.is_empty(), "{:?}", ours.schema_faults);
    let mut faults = Vec::new();
    for ((name, left), (_, right)) in left.iter().zip(&right) {
        let comparison = Comparison::between(left, right, rules);
        println!("{name} at {level}: {} differences", comparison.differing);
        if comparison.differing > 0 {
            faults.push(format!("script {name} at {level}: {comparison}"));
        }
    }
    Ok(faults)
}
