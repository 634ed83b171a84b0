//! A node that receives and has no store: it keeps WAL, and nothing else.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::agent::Source;
use integration::pair::{archived_segments, unpacked_equals};
use integration::process::wait_until;
use integration::{
    Agent, AgentConfig, BackupWal, Binaries, Cluster, ClusterOptions, PATIENCE, Scratch,
};
use integration::{StopMode, free_port};
use walfmt::Lsn;

#[test]
fn a_node_without_a_store_keeps_the_wal() -> Result<()> {
    let scratch = Scratch::new()?;
    let options = ClusterOptions {
        wal_segment_megabytes: 1,
        keep_segments: true,
        ..ClusterOptions::default()
    };
    let mut leader = Cluster::start_new(&scratch, "leader", &options)?;
    leader.pgbench_init(1, &[])?;
    let backup = scratch.path().join("backup");
    leader.base_backup(&backup, BackupWal::None)?;
    let flushed = |leader: &Cluster| -> Result<Lsn> {
        Ok(leader.sql("select pg_current_wal_flush_lsn()")?.parse()?)
    };

    // It begins before there is anybody who could tell whose WAL it will have.
    let mut leader_agent = Agent::new(&scratch, AgentConfig::leader("leader1", &leader)?)?;
    let config = AgentConfig {
        name: "keeper".into(),
        source: Source::Peers(vec![format!("127.0.0.1:{}", leader_agent.config.replication_port)]),
        store: None,
        replication_port: free_port()?,
        metrics_port: free_port()?,
        more: Vec::new(),
    };
    let mut keeper = Agent::new(&scratch, config)?;
    keeper.start()?;
    keeper.wait_for_state("receive", "retrying")?;
    leader_agent.start()?;
    leader.pgbench_run(&["-t", "500"])?;
    keeper.wait_for_position("durable", flushed(&leader)?, PATIENCE)?;
    wait_until("it is behind nobody", PATIENCE, || {
        Ok(keeper.metrics()?.lag_seconds() == Some(0.0))
    })?;

    // Killed, and started again while no peer is there: its archive says whose WAL it has.
    keeper.kill()?;
    leader_agent.stop()?;
    leader.pgbench_run(&["-t", "500"])?;
    keeper.start()?;
    ensure!(keeper.status()?["system_identifier"].is_string(), "{}", keeper.status()?);
    leader_agent.start()?;
    leader.pgbench_run(&["-t", "500"])?;
    keeper.wait_for_position("durable", flushed(&leader)?, PATIENCE)?;

    // A follower of it, and what it keeps: the server's segments.
    let mut config = AgentConfig::follower("follower1", &scratch, &leader_agent)?;
    config.source = Source::Peers(vec![format!("127.0.0.1:{}", keeper.config.replication_port)]);
    let mut follower = Agent::new(&scratch, config)?;
    let with_wal = scratch.path().join("backup-with-wal");
    leader.base_backup(&with_wal, BackupWal::Stream)?;
    follower.bootstrap(&with_wal)?;
    follower.start()?;
    follower.wait_replayed(flushed(&leader)?, PATIENCE)?;
    // The segment that ends with it; where nothing was written since the last switch, the one before.
    let last = leader.sql("select pg_walfile_name(pg_switch_wal())")?;
    keeper.wait_for_position("durable", flushed(&leader)?, PATIENCE)?;
    let kept = leader.kept_segments().context("segments are kept")?.to_owned();
    wait_until("the last segment is kept", PATIENCE, || Ok(kept.join(&last).exists()))?;
    let mut compared = 0;
    let archived = archived_segments(&keeper)?;
    for (name, path) in &archived {
        if kept.join(name).exists() {
            ensure!(unpacked_equals(path, &kept.join(name))?, "{name} is not the server's");
            compared += 1;
        }
    }
    ensure!(compared > 3, "{compared} segments are too few to compare");
    println!("{compared} of {} segments are the server's", archived.len());
    let first = archived.values().next().context("a segment")?;
    let spoiled = scratch.file(
        "spoiled",
        fs::read(kept.join(archived.keys().last().context("one")?)).unwrap_or_default(),
    )?;
    ensure!(!unpacked_equals(first, &spoiled)?, "the control: another segment is no different");

    // The server is lost. A stock PostgreSQL restores from a base backup and this archive.
    let rows = "select count(*), sum(abalance) from pgbench_accounts";
    let expected = (leader.sql(rows)?, leader.sql("select count(*) from pgbench_history")?);
    leader.stop(StopMode::Immediate)?;
    leader_agent.kill()?;
    let fetch = keeper.command("fetch");
    let fetch = format!(
        "restore_command = '{} fetch --config {} %f %p'",
        fetch.get_program().to_string_lossy(),
        keeper.config_file().display()
    );
    let mut restored = Cluster::at(&scratch, "restored", &backup, Binaries::find()?)?;
    restored.configure(&[fetch.as_str(), "recovery_target_action = promote"])?;
    scratch.file("backup/recovery.signal", "")?;
    restored.start()?;
    restored.wait_recovered()?;
    let found = (restored.sql(rows)?, restored.sql("select count(*) from pgbench_history")?);
    ensure!(found == expected, "{found:?} instead of {expected:?}");
    println!("restored from base backup and archive: {found:?}");

    // An archive of two systems belongs to nobody who has no store.
    keeper.stop()?;
    let system = fs::read_dir(keeper.archive_directory())?.next().context("a system")??.path();
    let other = keeper.archive_directory().join("1");
    ensure!(Command::new("cp").arg("-a").arg(&system).arg(&other).status()?.success());
    let outcome = keeper.verb("run", &[])?;
    ensure!(outcome.exit == Some(2) && outcome.stderr.contains("two systems"), "{outcome:?}");
    Ok(())
}
