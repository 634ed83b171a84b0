//! The follower in front of a tired operator: what it shows, and how its store becomes a primary.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::compare::{Comparison, digests_of};
use integration::free_port;
use integration::process::{tail_of, wait_until};
use integration::{
    Binaries, Cluster, ClusterOptions, Endpoint, Metrics, PATIENCE, Pair, Scratch, StopMode,
};
use walfmt::{BLOCK_SIZE, Lsn};

#[test]
fn a_follower_shows_where_it_is_and_is_promoted() -> Result<()> {
    let scratch = Scratch::new()?;
    // What writes WAL by itself would move positions that are expected to stand still.
    let quiet = ["autovacuum = off", "checkpoint_timeout = 1h"].map(str::to_owned);
    let mut options = ClusterOptions::default();
    options.settings.extend(quiet);
    let mut pair = Pair::start(&scratch, &options, 2)?;

    positions_meet_when_the_load_stops(&pair)?;
    the_verbs_report(&pair)?;

    let outcome = pair.follower.verb("promote", &[])?;
    assert_eq!(outcome.exit, Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("the leader's agent answers"), "{outcome:?}");
    assert!(outcome.stderr.contains("--leader-is-dead"), "{outcome:?}");
    println!("exit 1: {}", outcome.stderr.trim());
    // Refused is refused: it follows on.
    pair.leader.pgbench_run(&["-t", "100"])?;
    pair.catch_up(PATIENCE)?;

    let store = pair.store().to_owned();
    stray_start(
        &scratch,
        &store,
        "while the agent runs",
        "lock file \"postmaster.pid\" already exists",
    )?;
    pair.follower.stop()?;
    let control_file = fs::read(store.join("global/pg_control"))?;
    stray_start(&scratch, &store, "while it does not", "restore_command")?;
    assert!(control_file == fs::read(store.join("global/pg_control"))?, "pg_control was changed");
    pair.follower.start()?;
    pair.leader.pgbench_run(&["-t", "100"])?;
    let end = pair.catch_up(PATIENCE)?;

    let expected = digests_of(pair.leader.endpoint())?;
    assert_eq!(pair.leader_agent.state_of("tail")?, "streaming", "the leader still answers");
    let mut promoted = pair.follower.promote("promoted", &["--leader-is-dead"])?;
    assert_eq!(promoted.sql("select pg_is_in_recovery()")?, "f");
    let timeline = "select timeline_id from pg_control_checkpoint()";
    assert_eq!(promoted.sql(timeline)?, "2");
    assert_eq!(pair.leader.sql(timeline)?, "1");
    let comparison = Comparison::between(expected, digests_of(promoted.endpoint())?);
    println!("{comparison}");
    assert!(comparison.all_equal());
    let begin: Lsn = promoted.sql("select pg_current_wal_lsn()")?.parse()?;
    assert!(begin > end);
    println!(
        "amcheck: {} B-trees and {} heaps are sound",
        btrees(promoted.endpoint())?,
        heaps(promoted.endpoint())?
    );
    promoted.sql("create table written_after (x int primary key)")?;
    promoted.sql("insert into written_after select generate_series(1, 100)")?;
    assert_eq!(promoted.sql("select count(*) from written_after")?, "100");

    let outcome = pair.follower.verb("promote", &["--leader-is-dead"])?;
    assert_eq!(outcome.exit, Some(1), "{outcome:?}");
    println!("a second promotion, exit 1: {}", outcome.stderr.trim());
    assert!(promoted.is_running());
    assert_eq!(pair.follower.state_of("replay")?, "promoted");

    promoted.stop(StopMode::Fast)?;
    println!("{}", checksums(&scratch, &store)?.trim());
    judges_find_damage(&scratch, &mut promoted)
}

/// All positions that a caught-up pair has; 0 for what is not told yet.
fn spread(leader: &Metrics, follower: &Metrics) -> Vec<(String, Lsn)> {
    let mut found = Vec::new();
    for name in ["source_durable", "appended", "durable", "server_flush"] {
        found.push((format!("leader {name}"), leader.position(name)));
    }
    for name in ["shipped", "received", "durable", "replayed"] {
        let lsn = leader.follower_position("follower1", name);
        found.push((format!("reported {name}"), lsn));
    }
    for name in ["source_durable", "received", "durable", "replayed", "server_flush"] {
        found.push((format!("follower {name}"), follower.position(name)));
    }
    found.into_iter().map(|(name, lsn)| (name, lsn.unwrap_or_default())).collect()
}

fn all_equal(positions: &[(String, Lsn)]) -> bool {
    positions.iter().all(|(_, lsn)| *lsn == positions[0].1)
}

fn positions_meet_when_the_load_stops(pair: &Pair) -> Result<()> {
    let load = pair.leader.pgbench(&["-c", "2", "-T", "600"])?;
    thread::sleep(Duration::from_millis(500));
    let (mut samples, mut apart) = (0, 0);
    let begun = Instant::now();
    while samples < 20 || (apart == 0 && begun.elapsed() < PATIENCE) {
        let mut positions = spread(&pair.leader_agent.metrics()?, &pair.follower.metrics()?);
        // What was not told yet is no difference.
        positions.retain(|(_, lsn)| lsn.is_valid());
        samples += 1;
        apart += u32::from(!all_equal(&positions));
        thread::sleep(Duration::from_millis(50));
    }
    println!("under load the positions were apart in {apart} of {samples} samples");
    ensure!(apart > 0, "the comparison cannot tell positions apart");

    load.stop()?;
    // A sample counts if the server wrote nothing while it was taken: its background writer logs
    // running transactions when it likes, and until that has arrived the positions are apart again.
    let end = || pair.leader.sql("select pg_current_wal_insert_lsn()");
    let mut shown = String::new();
    wait_until("all positions meet", PATIENCE, || {
        let before = end()?;
        let (leader, follower) = (pair.leader_agent.metrics()?, pair.follower.metrics()?);
        let after = end()?;
        let positions = spread(&leader, &follower);
        let words: Vec<String> =
            positions.iter().map(|(name, lsn)| format!("{name} {lsn}")).collect();
        let lag = (follower.lag_bytes(), follower.lag_seconds());
        shown = format!("server at {after}, lag {lag:?}: {}", words.join(", "));
        ensure!(leader.lag_bytes().is_none(), "a leader is behind nobody");
        Ok(before == after
            && all_equal(&positions)
            && positions[0].1 == after.parse()?
            && lag == (Some(0.0), Some(0.0)))
    })
    .with_context(|| shown.clone())?;
    println!("after it: {shown}");
    Ok(())
}

fn the_verbs_report(pair: &Pair) -> Result<()> {
    let end = pair.flush_position()?;
    pair.follower.wait_replayed(end, PATIENCE)?;
    let text = pair.follower.run_verb("status", &[])?;
    println!("{text}");
    for words in ["node      follower1", "replayed", "durable", "lag", "streaming"] {
        assert!(text.contains(words), "{words}: {text}");
    }
    // The server may have written something by itself since it was asked.
    let (_, replayed) = text.split_once(&format!("{:<15} ", "replayed")).context("replayed")?;
    let replayed: Lsn = replayed.split_whitespace().next().context("a position")?.parse()?;
    assert!(replayed >= end, "{end}: {text}");
    let text = pair.leader_agent.run_verb("status", &[])?;
    println!("{text}");
    assert!(text.contains("follower follower1  connected"), "{text}");

    let status = pair.follower.status()?;
    assert_eq!(status["node"], "follower1");
    let replayed: Lsn = status["positions"]["replayed"].as_str().context("replayed")?.parse()?;
    assert!(replayed >= end, "{end}: {status}");
    wait_until("nothing is behind", PATIENCE, || Ok(pair.follower.status()?["lag_bytes"] == 0))?;
    let system = pair.leader.sql("select system_identifier from pg_control_system()")?;
    assert_eq!(status["system_identifier"], system);

    let (reached, ahead) = (end.to_string(), end.advance(1 << 30).to_string());
    for (position, lsn, exit) in [
        ("--replayed", &reached, 0),
        ("--durable", &reached, 0),
        ("--replayed", &ahead, 3),
        ("--durable", &ahead, 3),
    ] {
        let outcome = pair.follower.verb("wait", &[position, lsn, "--timeout", "300ms"])?;
        assert_eq!(outcome.exit, Some(exit), "{position} {lsn}: {outcome:?}");
    }
    assert_eq!(pair.follower.verb("wait", &[])?.exit, Some(2));
    Ok(())
}

/// `pg_ctl start`, as anyone might type it.
fn pg_ctl_start(scratch: &Scratch, directory: &Path, log: &Path) -> Result<Command> {
    let sockets = scratch.directory("sockets")?;
    let options =
        format!("-p {} -k {} -c listen_addresses=127.0.0.1", free_port()?, sockets.display());
    let mut command = scratch.account().command(Binaries::find()?.program("pg_ctl"));
    command.arg("-D").arg(directory).arg("-l").arg(log).args(["-w", "-t", "180", "-o", &options]);
    command.arg("start");
    Ok(command)
}

/// Starts a server on the store by accident; it must fail, for this reason.
fn stray_start(scratch: &Scratch, store: &Path, when: &str, reason: &str) -> Result<()> {
    let log = scratch.path().join("stray.log");
    let _ = fs::remove_file(&log);
    let output = pg_ctl_start(scratch, store, &log)?.output()?;
    let log = tail_of(&log, 20);
    println!("pg_ctl start {when}:\n{log}");
    assert!(!output.status.success(), "it started");
    assert!(log.contains("FATAL") && log.contains(reason), "{log}");
    Ok(())
}

/// Checks every B-tree of every database, that it holds all of its heap's rows, too; gives how many.
fn btrees(server: &Endpoint) -> Result<u64> {
    count(
        server,
        "select count(bt_index_check(i.indexrelid, true)) from pg_index i
             join pg_class c on c.oid = i.indexrelid join pg_am a on a.oid = c.relam
             where a.amname = 'btree' and c.relkind = 'i' and i.indisvalid",
    )
}

/// Checks every heap of every database; gives how many.
fn heaps(server: &Endpoint) -> Result<u64> {
    let tables = "pg_class c where relkind in ('r', 't', 'm')";
    let found = count(
        server,
        &format!("select count(v.*) from (select oid from {tables}) c, verify_heapam(c.oid) v"),
    )?;
    ensure!(found == 0, "verify_heapam found {found} faults");
    count(server, &format!("select count(*) from {tables}"))
}

/// The sum of what a query gives in each database that has `amcheck`, which it gets.
fn count(server: &Endpoint, query: &str) -> Result<u64> {
    let mut sum = 0;
    for database in ["postgres", "template1"] {
        server.sql_in(
            database,
            "set client_min_messages = error; create extension if not exists amcheck",
        )?;
        sum += server.sql_in(database, query)?.parse::<u64>().context("a number")?;
    }
    Ok(sum)
}

fn checksums(scratch: &Scratch, directory: &Path) -> Result<String> {
    let program = Binaries::find()?.program("pg_checksums");
    let mut command = scratch.account().command(program);
    integration::command::output_of(command.arg("--check").arg("-D").arg(directory))
}

/// The controls: `pg_ctl start` opens a store that was promoted, and `amcheck` and `pg_checksums`
/// find one changed byte in it.
fn judges_find_damage(scratch: &Scratch, promoted: &mut Cluster) -> Result<()> {
    let directory = promoted.data_directory().to_owned();
    let log = scratch.path().join("again.log");
    let output = pg_ctl_start(scratch, &directory, &log)?.output()?;
    ensure!(output.status.success(), "a promoted store does not open: {}", tail_of(&log, 20));
    let mut again = Cluster::adopt(scratch, "again", &directory, &log)?;
    let file = again.sql("select pg_relation_filepath('written_after_pkey')")?;
    btrees(again.endpoint())?;
    again.stop(StopMode::Fast)?;
    checksums(scratch, &directory)?;

    // Block 1, the only leaf: the first key that was inserted stands before the special space of 16
    // bytes, behind its index tuple header of 8.
    let key = 2 * BLOCK_SIZE as u64 - 16 - 8;
    let index = OpenOptions::new().read(true).write(true).open(directory.join(file))?;
    let mut byte = [0];
    index.read_exact_at(&mut byte, key + 2)?;
    index.write_all_at(&[byte[0] ^ 1], key + 2)?;
    let error = checksums(scratch, &directory).expect_err("a changed byte");
    println!("control: {}", format!("{error}").lines().nth(1).unwrap_or_default());
    promoted.configure(&["ignore_checksum_failure = on"])?;
    promoted.start()?;
    let error = btrees(promoted.endpoint()).expect_err("a changed byte");
    println!("control: {}", format!("{error}").lines().last().unwrap_or_default());
    Ok(())
}
