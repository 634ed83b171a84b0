//! The line between two agents: who is let in, and what a bad line does.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::command::output_of;
use integration::metrics::http_get;
use integration::pair::{archived_segments, end_of_archive, unpacked_equals};
use integration::process::{wait_for_exit, wait_until};
use integration::{
    Agent, AgentConfig, Binaries, Cluster, ClusterOptions, PATIENCE, Pair, Scratch, Seed,
};
use integration::{StopMode, free_port};
use rand::RngExt;
use walfmt::Lsn;

const CUTS: u64 = 10;
const FLIPS: u64 = 6;

/// Small segments, so that many are finished, and all of them kept.
fn many_segments() -> ClusterOptions {
    ClusterOptions { wal_segment_megabytes: 1, keep_segments: true, ..ClusterOptions::default() }
}

#[test]
fn a_listener_beyond_loopback_is_refused() -> Result<()> {
    let scratch = Scratch::new()?;
    let server = Cluster::init(&scratch, "leader", &ClusterOptions::default())?;
    let addresses = [("replication", "0.0.0.0"), ("replication", "[::]"), ("metrics", "192.0.2.1")];
    for (number, (key, host)) in addresses.into_iter().enumerate() {
        let mut config = AgentConfig::leader(&format!("agent{number}"), &server)?;
        let address = format!("{host}:{}", free_port()?);
        config.more.push(("listen".into(), key.into(), address.clone().into()));
        let agent = Agent::new(&scratch, config)?;
        let mut child = agent
            .command("run")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let exit = wait_for_exit(&mut child, PATIENCE);
        let _ = child.kill();
        let words = std::io::read_to_string(child.stderr.take().context("standard error")?)?;
        assert_eq!(exit?.code(), Some(2), "{words}");
        for part in [key, &address, "only loopback addresses are used", "insecure = true"] {
            assert!(words.contains(part), "{part}: {words}");
        }
        println!("exit 2: {}", words.lines().next().unwrap_or_default());
    }
    // The control: the same agent on loopback starts.
    let mut agent = Agent::new(&scratch, AgentConfig::leader("agent", &server)?)?;
    agent.start()?;
    Ok(())
}

/// A line that breaks at any byte costs time, and nothing else: the follower goes on at exactly
/// the byte where it was.
#[test]
fn a_cut_line_heals() -> Result<()> {
    let mut random = Seed::take("cuts", 5).generator();
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &many_segments(), 1)?;
    // Counters begin anew with the agent; so does what it receives.
    pair.follower.stop()?;
    let load = pair.leader.pgbench(&["-c", "2", "-T", "600"])?;
    let begin = end_of_archive(&pair.follower, pair.leader.data_directory())?;
    let connections_before = pair.proxy.connections();
    pair.follower.start()?;

    let mut in_flight = Vec::new();
    for number in 0..CUTS {
        // Every third cut goes through a slow line, on which much is under way.
        let slow = if number % 3 == 0 { 2 } else { 0 };
        pair.proxy.set_delay(Duration::from_millis(slow));
        let connection = pair.proxy.connections();
        pair.proxy.cut_after(random.random_range(1..200_000));
        let cut = || Ok(pair.proxy.cuts() > number);
        wait_until("the line is cut", PATIENCE, cut)?;
        let source = pair.leader_agent.metrics()?.position("appended").context("appended")?;
        let received = pair.follower.metrics()?.position("received").context("received")?;
        in_flight.push(source.bytes_since(received));
        let again = || Ok(pair.proxy.connections() > connection);
        wait_until("the follower connects again", PATIENCE, again)?;
    }
    pair.proxy.set_delay(Duration::ZERO);
    load.stop()?;
    let end = pair.catch_up(PATIENCE)?;

    // A position is taken before the counters: they belong together where it does not change.
    let mut metrics = pair.follower.metrics()?;
    let mut received = metrics.position("received").context("received")?;
    wait_until("no WAL comes", PATIENCE, || {
        let again = pair.follower.metrics()?;
        let before = std::mem::replace(&mut received, again.position("received").context("it")?);
        if before != received {
            metrics = again;
        }
        Ok(before == received)
    })?;
    let reconnects = metrics.expect("walferry_reconnects_total")? as u64;
    let written = metrics.expect("walferry_wal_bytes_total")? as u64;
    println!(
        "{} cuts, WAL not yet received at each: {in_flight:?}; {reconnects} connections; \
         {written} bytes of WAL written once each, {begin} to {received}",
        pair.proxy.cuts()
    );
    assert!(received >= end && pair.proxy.cuts() >= CUTS);
    assert_eq!(reconnects, pair.proxy.connections() - connections_before, "each is counted");
    assert!(reconnects > CUTS);
    assert!(in_flight.iter().sum::<u64>() > 0, "no cut hit a line that was in use");
    // Neither a byte twice nor one left out: it went on where it was.
    assert_eq!(written, received.bytes_since(begin));
    let compared = pair.compare_archive()?;
    println!("{compared} archived segments are the server's");
    ensure!(compared >= 5, "the load was too small to show anything");
    Ok(())
}

/// What a line flips is noticed before it is written, wherever in a message it lies.
#[test]
fn a_flipped_bit_never_gets_into_the_archive() -> Result<()> {
    let mut random = Seed::take("flips", 6).generator();
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &many_segments(), 1)?;
    let begun = pair.flush_position()?;
    let load = pair.leader.pgbench(&["-c", "2", "-T", "600"])?;
    for number in 0..FLIPS {
        let connection = pair.proxy.connections();
        pair.proxy.flip_after(random.random_range(0..100_000), random.random_range(0..8));
        wait_until("a bit is flipped", PATIENCE, || Ok(pair.proxy.flips() > number))?;
        // Not one goes unnoticed: each costs its connection.
        let again = || Ok(pair.proxy.connections() > connection);
        wait_until("the connection is given up for a new one", PATIENCE, again)?;
        let position = pair.leader_agent.position("appended")?;
        pair.follower.wait_for_position("received", position, PATIENCE)?;
    }
    wait_until("some segments are written", PATIENCE, || {
        Ok(pair.flush_position()? > begun.advance(6 << 20))
    })?;
    load.stop()?;
    pair.catch_up(PATIENCE)?;

    // On a line without load there are only heartbeats to hit.
    for number in FLIPS..FLIPS + 3 {
        let connection = pair.proxy.connections();
        pair.proxy.flip_after(random.random_range(0..40), random.random_range(0..8));
        wait_until("a bit is flipped", PATIENCE, || Ok(pair.proxy.flips() > number))?;
        let again = || Ok(pair.proxy.connections() > connection);
        wait_until("the connection is given up for a new one", PATIENCE, again)?;
    }
    let compared = pair.compare_archive()?;
    println!("{} flips; {compared} archived segments are the server's", pair.proxy.flips());
    ensure!(compared >= 5, "the load was too small to show anything");
    // No position that a flipped bit made up is left standing.
    let heard = || Ok(pair.follower.metrics()?.position("server_flush").is_some());
    wait_until("a heartbeat tells the server's position", PATIENCE, heard)?;
    let metrics = pair.follower.metrics()?;
    let written: Lsn = pair.leader.sql("select pg_current_wal_lsn()")?.parse()?;
    for name in ["source_durable", "server_flush"] {
        let position = metrics.position(name).context(name)?;
        assert!(position <= written, "{name} is {position}, the server wrote up to {written}");
    }

    // The controls: the comparison finds one flipped bit, and so does zstd in the archived file.
    let kept = pair.leader.kept_segments().context("kept segments")?;
    let (name, archived) = archived_segments(&pair.follower)?.pop_first().context("a segment")?;
    let mut segment = fs::read(kept.join(&name))?;
    let place = random.random_range(0..segment.len());
    segment[place] ^= 1;
    let spoiled = scratch.file("spoiled", &segment)?;
    assert!(unpacked_equals(&archived, &kept.join(&name))?);
    assert!(!unpacked_equals(&archived, &spoiled)?, "a flipped bit at {place} was not found");
    let mut packed = fs::read(&archived)?;
    // In the checksum that it ends with: a few other bits may change and mean the same.
    let last = packed.len() - 1;
    packed[last] ^= 1;
    let packed = scratch.file("spoiled.zst", &packed)?;
    assert!(!unpacked_equals(&packed, &kept.join(&name)).is_ok_and(|same| same));
    Ok(())
}

/// A leader that is not the follower's is refused, whichever way it differs; nothing is written,
/// the words say why, and with the right leader it goes on.
#[test]
fn another_history_is_refused_and_nothing_is_written() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &ClusterOptions::default(), 1)?;

    // The same cluster, from here on with two histories, and once with segments of another size.
    pair.leader.stop(StopMode::Fast)?;
    let copy = |name: &str| -> Result<Cluster> {
        let directory = scratch.path().join(name);
        let mut copy = scratch.account().command("cp");
        output_of(copy.arg("-a").arg(pair.leader.data_directory()).arg(&directory))?;
        Cluster::at(&scratch, name, &directory, Binaries::find()?)
    };
    let mut fork = copy("fork")?;
    let mut resized = copy("resized")?;
    let resetwal = Binaries::find()?.program("pg_resetwal");
    let mut resetwal = scratch.account().command(resetwal);
    output_of(resetwal.arg("--wal-segsize=4").arg("-D").arg(resized.data_directory()))?;
    pair.leader.start()?;
    fork.start()?;
    resized.start()?;
    let stranger = Cluster::start_new(&scratch, "stranger", &ClusterOptions::default())?;
    let system_of =
        |cluster: &Cluster| cluster.sql("select system_identifier from pg_control_system()");
    let (ours, theirs) = (system_of(&pair.leader)?, system_of(&stranger)?);
    assert_eq!(ours, system_of(&fork)?);
    assert_eq!(ours, system_of(&resized)?);

    let agent_of = |name: &str, cluster: &Cluster| -> Result<Agent> {
        let mut agent = Agent::new(&scratch, AgentConfig::leader(name, cluster)?)?;
        agent.start()?;
        let flushed = cluster.sql("select pg_current_wal_flush_lsn()")?.parse()?;
        agent.wait_for_position("appended", flushed, PATIENCE)?;
        Ok(agent)
    };

    let stranger_agent = agent_of("stranger1", &stranger)?;
    let resized_agent = agent_of("resized1", &resized)?;
    let fork_agent = agent_of("fork1", &fork)?;

    pair.leader.pgbench_run(&["-t", "200"])?;
    pair.catch_up(PATIENCE)?;
    // Its own leader still writes now and then: what must not change is looked at without any.
    pair.proxy.retarget(free_port()?);
    pair.follower.wait_for_state("receive", "retrying")?;
    let end = pair.follower.position("received")?;
    let before = fingerprint(pair.follower.archive_directory())?;

    pair.proxy.retarget(stranger_agent.config.replication_port);
    wait_for_words(&pair.follower, "retrying", &["system identifier", &ours, &theirs])?;

    pair.proxy.retarget(resized_agent.config.replication_port);
    wait_for_words(&pair.follower, "retrying", &["segments of 16777216 bytes", "4194304"])?;

    // The fork has written next to nothing: the follower is ahead of it.
    assert!(fork_agent.position("appended")? < end);
    pair.proxy.retarget(fork_agent.config.replication_port);
    let ahead = ["follower has WAL up to", "only up to"];
    wait_for_words(&pair.follower, "diverged", &ahead)?;
    let health = http_get(pair.follower.config.metrics_port, "/healthz");
    assert!(format!("{:?}", health.expect_err("diverged")).contains("receive diverged"));

    // Now it has written more than the follower has, and something else.
    while fork.sql("select pg_current_wal_flush_lsn()")?.parse::<Lsn>()? <= end {
        fork.pgbench_run(&["-t", "200"])?;
    }
    let past = fork.sql("select pg_current_wal_flush_lsn()")?.parse()?;
    fork_agent.run_verb("status", &[])?;
    wait_until("the fork is past the follower", PATIENCE, || {
        Ok(fork_agent.position("appended")? >= past)
    })?;
    wait_for_words(&pair.follower, "diverged", &["is not the same"])?;

    assert_eq!(pair.follower.position("received")?, end);
    let after = fingerprint(pair.follower.archive_directory())?;
    assert_eq!(before.len(), after.len());
    let changed: Vec<&PathBuf> = after
        .iter()
        .filter(|(path, bytes)| before.get(*path) != Some(*bytes))
        .map(|(path, _)| path)
        .collect();
    assert!(changed.is_empty(), "{changed:?} changed");

    // The control: with its own leader the very same follower goes on, and its archive changes.
    pair.proxy.retarget(pair.leader_agent.config.replication_port);
    pair.leader.pgbench_run(&["-t", "200"])?;
    pair.catch_up(PATIENCE)?;
    assert_eq!(pair.follower.state_of("receive")?, "streaming");
    assert_ne!(before, fingerprint(pair.follower.archive_directory())?);
    Ok(())
}

/// Waits until `walferry status` of a follower shows `receive` in a state, with these words.
fn wait_for_words(follower: &Agent, state: &str, words: &[&str]) -> Result<()> {
    let begun = Instant::now();
    loop {
        let status = follower.run_verb("status", &[])?;
        let mut lines = status.lines().skip_while(|line| !line.starts_with("receive "));
        let line = lines.next().unwrap_or_default();
        let hint = lines.next().unwrap_or_default().trim();
        if line.contains(&format!(" {state} ")) && words.iter().all(|word| line.contains(word)) {
            println!("{line} | {hint}");
            assert!(hint.starts_with("hint: "), "{status}");
            return Ok(());
        }
        if begun.elapsed() > PATIENCE {
            bail!("not {state} with {words:?}:\n{status}\n{}", follower.log_tail(20));
        }
        thread::sleep(Duration::from_millis(50));
    }
}

/// Every file below a directory, with its contents.
fn fingerprint(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else {
                files.insert(path.clone(), fs::read(&path)?);
            }
        }
    }
    Ok(files)
}
