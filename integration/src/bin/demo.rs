//! The main job, shown on a real PostgreSQL: a leader under load, two agents, a promotion, and every
//! table compared.
//!
//! `integration/demo.sh` builds and runs it. With `DEMO_SABOTAGE=1` one row is changed on the
//! promoted server before the comparison, which must then fail.
#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use integration::compare::{Comparison, digests_of};
use integration::process::processes_in;
use integration::{
    Agent, AgentConfig, BackupWal, Cluster, ClusterOptions, Metrics, Scratch, StopMode,
};
use walfmt::Lsn;

/// Shows walferry at work on a real PostgreSQL, and checks what it did.
#[derive(Debug, Parser)]
struct Arguments {
    /// How large pgbench's tables are: 100000 accounts each (pgbench -s).
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// How many connections write (pgbench -c).
    #[arg(long, default_value_t = 4)]
    clients: u32,
    /// For how many seconds positions are shown.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

fn main() -> ExitCode {
    let outcome = run(&Arguments::parse());
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error:?}");
            ExitCode::FAILURE
        }
    }
}

/// Gives whether every table is equal.
fn run(arguments: &Arguments) -> Result<bool> {
    let steps = Steps { begin: Instant::now() };
    let scratch = Scratch::new()?;

    steps.say("a PostgreSQL: initdb and start");
    let options = ClusterOptions::default();
    let mut leader = Cluster::start_new(&scratch, "leader", &options)?;
    println!("    {}", leader.sql("select version()")?);

    steps.say(&format!(
        "pgbench: {} accounts, then {} writing connections",
        arguments.scale * 100_000,
        arguments.clients
    ));
    leader.pgbench_init(arguments.scale, &[])?;
    let clients = arguments.clients.to_string();
    let load = leader.pgbench(&["-c", &clients, "-T", "600"])?;

    steps.say("the leader's agent");
    let mut leader_agent = Agent::new(&scratch, AgentConfig::leader("leader1", &leader)?)?;
    leader_agent.start()?;

    steps.say("pg_basebackup under load, and `walferry bootstrap --from` of it");
    let backup = scratch.path().join("backup");
    leader.base_backup(&backup, BackupWal::Stream)?;
    let config = AgentConfig::follower("follower1", &scratch, &leader_agent)?;
    let mut follower_agent = Agent::new(&scratch, config)?;
    follower_agent.bootstrap(&backup)?;

    steps.say("the follower's agent: archive and replay");
    follower_agent.start()?;
    show_positions(&leader, &leader_agent, &follower_agent, arguments.seconds)?;

    steps.say("the load stops; the follower replays what is left");
    load.stop()?;
    let end: Lsn = leader.sql("select pg_current_wal_flush_lsn()")?.parse().context("an LSN")?;
    let stopped = Instant::now();
    follower_agent.wait_replayed(end, Duration::from_secs(60))?;
    println!("    {end} is replayed, after {:.2} s", stopped.elapsed().as_secs_f64());
    let expected = digests_of(leader.endpoint())?;
    let history = leader.sql("select count(*) from pgbench_history")?;
    ensure!(history != "0", "the load wrote nothing");

    steps.say("the leader is lost: its agent and its PostgreSQL stop");
    leader_agent.stop()?;
    leader.stop(StopMode::Fast)?;

    steps.say("`walferry promote`: a stock PostgreSQL opens the store");
    let promoting = Instant::now();
    let promoted = follower_agent.promote("promoted", &[])?;
    println!("    promoted after {:.2} s", promoting.elapsed().as_secs_f64());
    let state = "select timeline_id, pg_is_in_recovery() from pg_control_checkpoint()";
    println!("    timeline | in recovery: {}", promoted.sql(state)?);
    ensure!(
        promoted.sql("select pg_is_in_recovery()")? == "f",
        "the promoted server is no primary"
    );

    if std::env::var("DEMO_SABOTAGE").is_ok_and(|value| value == "1") {
        steps.say("SABOTAGE: one row is changed on the promoted server");
        promoted.sql("update pgbench_accounts set abalance = abalance + 1 where aid = 1")?;
    }

    steps
        .say("every table of both servers: count(*) and two order-free hashes [leader] [promoted]");
    let comparison = Comparison::between(expected, digests_of(promoted.endpoint())?);
    println!("{comparison}");
    println!("    of these, {history} transactions of the load");
    promoted.sql("create table written_after (at timestamptz default now()); insert into written_after default values")?;

    steps.say("everything is stopped");
    let folder = scratch.path().to_owned();
    drop((promoted, follower_agent, leader_agent, leader, scratch));
    let left = processes_in(&folder);
    ensure!(left.is_empty(), "processes {left:?} are still running");
    ensure!(!folder.exists(), "{} is still there", folder.display());
    steps.say(if comparison.all_equal() { "EQUAL" } else { "NOT EQUAL" });
    Ok(comparison.all_equal())
}

/// Prints the time since the start before each step.
struct Steps {
    begin: Instant,
}

impl Steps {
    fn say(&self, what: &str) {
        println!("[{:5.1} s] {what}", self.begin.elapsed().as_secs_f64());
    }
}

/// Prints, once a second, where each stage is.
fn show_positions(
    leader: &Cluster,
    leader_agent: &Agent,
    follower_agent: &Agent,
    seconds: u32,
) -> Result<()> {
    println!(
        "    {:>12} {:>12} {:>12} {:>12} {:>12} {:>12} {:>9} {:>7}",
        "server", "source", "appended", "received", "durable", "replayed", "lag bytes", "lag s"
    );
    for _ in 0..seconds {
        let (source, copy) = (leader_agent.metrics()?, follower_agent.metrics()?);
        let server = leader.sql("select pg_current_wal_flush_lsn()")?;
        let of = |agent: &Metrics, name: &str| {
            agent.position(name).map_or_else(|| "-".to_owned(), |lsn| lsn.to_string())
        };
        println!(
            "    {server:>12} {:>12} {:>12} {:>12} {:>12} {:>12} {:>9} {:>7}",
            of(&source, "source_durable"),
            of(&source, "appended"),
            of(&copy, "received"),
            of(&copy, "durable"),
            of(&copy, "replayed"),
            copy.lag_bytes().context("no lag in bytes")?,
            copy.lag_seconds().map_or_else(|| "-".to_owned(), |lag| format!("{lag:.3}")),
        );
        thread::sleep(Duration::from_secs(1));
    }
    Ok(())
}
