//! What an operator sees of a pair of agents when the line is cut, when nothing happens, and when the
//! follower hangs; and that the README names every metric.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::process::{send_signal, wait_until};
use integration::{Agent, ClusterOptions, PATIENCE, Pair, Scratch, free_port};
use rustix::process::Signal;

const EVERY: Duration = Duration::from_millis(500);
const FOLLOWER_LAG: &str = "walferry_lag_seconds{to=\"replayed\"}";
const LEADERS_VIEW: &str = "walferry_follower_lag_seconds{follower=\"follower1\",to=\"replayed\"}";
const CONNECTED: &str = "walferry_follower_connected{follower=\"follower1\"}";

/// How long the server must have written nothing before a sample tells of an idle pair: a record that
/// it writes by itself takes its time, and longer where a disk is busy.
const QUIET: Duration = Duration::from_secs(10);

/// A sample that took longer was taken on a machine that stood still, and heartbeats with it.
const STANDSTILL: Duration = Duration::from_secs(1);

/// What the two clocks that lag is measured by may differ by, s.
const CLOCKS_DIFFER: f64 = 0.5;

/// The lag that an agent shows while nothing gets on, every so often.
struct Rise<'a> {
    agent: &'a Agent,
    name: &'static str,
    samples: Vec<f64>,
}

impl<'a> Rise<'a> {
    fn new(agent: &'a Agent, name: &'static str) -> Self {
        Self { agent, name, samples: Vec::new() }
    }

    /// Samples once more; `since` is when the lag was below 1 s for sure. All of what is behind now
    /// came after that, or less than 1 s before.
    fn sample(&mut self, since: Instant) -> Result<()> {
        let lag = self.agent.metrics()?.expect(self.name)?;
        let most = since.elapsed().as_secs_f64() + 1.0 + CLOCKS_DIFFER;
        ensure!(
            lag <= most,
            "{lag:.1} s behind, and {most:.1} s is possible: {:.1?}",
            self.samples
        );
        self.samples.push(lag);
        Ok(())
    }
}

/// Samples until all of these have risen beyond `to`.
fn rise(of: &mut [Rise<'_>], since: Instant, to: f64) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !of.iter().all(|one| rises(&one.samples, to)) {
        let samples: Vec<_> = of.iter().map(|one| &one.samples).collect();
        ensure!(Instant::now() < deadline, "not beyond {to} s: {samples:.1?}");
        for one in &mut *of {
            one.sample(since)?;
        }
        thread::sleep(EVERY);
    }
    Ok(())
}

/// Waits until the leader was told what the follower has replayed: before that it shows no such lag.
fn leader_was_told(pair: &Pair) -> Result<()> {
    wait_until("the leader was told what is replayed", PATIENCE, || {
        Ok(pair.leader_agent.metrics()?.get(LEADERS_VIEW).is_some())
    })
}

/// Waits until these stay below 1 s for 2 s in a row; gives a moment when they were.
fn settles(of: &[(&Agent, &str)]) -> Result<Instant> {
    let (mut since, mut newest) = (Instant::now(), Instant::now());
    wait_until("the lag stays below 1 s", PATIENCE, || {
        let asked = Instant::now();
        for (agent, name) in of {
            if agent.metrics()?.expect(name)? >= 1.0 {
                since = Instant::now();
            }
        }
        newest = asked;
        Ok(since.elapsed() >= Duration::from_secs(2))
    })?;
    Ok(newest)
}

/// Whether lag gets beyond `to` and goes on. Before that it may fall: what had come is still
/// replayed, and that a follower hears nothing is no lag for its first 3 s.
fn rises(samples: &[f64], to: f64) -> bool {
    let mut last = samples.iter().rev().take(3);
    let three = [last.next(), last.next(), last.next()];
    matches!(three, [Some(third), Some(second), Some(first)]
        if third > second && second > first && *first >= to)
}

#[test]
fn an_idle_pair_has_no_lag() -> Result<()> {
    let scratch = Scratch::new()?;
    // What writes WAL by itself would leave no minute idle.
    let mut options = ClusterOptions::default();
    options.settings.extend(["autovacuum = off", "checkpoint_timeout = 1h"].map(str::to_owned));
    let pair = Pair::start(&scratch, &options, 1)?;
    pair.leader.sql("checkpoint")?;
    pair.catch_up(PATIENCE)?;
    leader_was_told(&pair)?;
    let written = || pair.leader.sql("select pg_current_wal_insert_lsn()");
    let (mut end, mut since, begun) = (written()?, Instant::now(), Instant::now());
    let (mut here, mut there, mut excluded) = (Vec::new(), Vec::new(), 0);
    // The moment of the newest sample: what comes later was not stood still for.
    let mut before = Instant::now();
    while here.len() < 60 {
        let sample = (
            pair.follower.metrics()?.expect(FOLLOWER_LAG)?,
            pair.leader_agent.metrics()?.expect(LEADERS_VIEW)?,
        );
        let now = written()?;
        if now != end {
            (end, since) = (now, Instant::now());
        }
        if before.elapsed() > Duration::from_secs(1) + STANDSTILL {
            excluded += 1;
            since = Instant::now();
        }
        before = Instant::now();
        if since.elapsed() > QUIET {
            here.push(sample.0);
            there.push(sample.1);
        }
        ensure!(begun.elapsed() < 2 * PATIENCE, "the server writes on and on");
        thread::sleep(Duration::from_secs(1));
    }
    let most = |samples: &[f64]| samples.iter().copied().fold(0.0, f64::max);
    println!(
        "idle for 60 s: at most {} s on the follower, {} s on the leader; {excluded} samples of a \
         machine that stood still",
        most(&here),
        most(&there)
    );
    ensure!(most(&here) == 0.0 && most(&there) == 0.0, "{here:?} {there:?}");
    ensure!(!rises(&here, 4.0) && !rises(&there, 4.0), "the control: an idle pair's lag rises");
    Ok(())
}

#[test]
fn lag_is_what_it_should_be() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &ClusterOptions::default(), 1)?;

    // The line is cut for some seconds under load.
    let load = pair.leader.pgbench(&["-c", "2", "-R", "300", "-T", "3600"])?;
    let start = pair.flush_position()?.advance(100_000);
    wait_until("the load is replayed", PATIENCE, || {
        Ok(pair.follower.position("replayed")? > start)
    })?;
    leader_was_told(&pair)?;
    let both = [(&pair.follower, FOLLOWER_LAG), (&pair.leader_agent, LEADERS_VIEW)];
    let since = settles(&both)?;
    pair.proxy.retarget(free_port()?);
    let mut views = both.map(|(agent, name)| Rise::new(agent, name));
    rise(&mut views, since, 4.0)?;
    ensure!(pair.leader_agent.metrics()?.expect(CONNECTED)? == 0.0, "it is not connected");
    for Rise { name, samples, .. } in &views {
        println!("cut: {name} {samples:.1?}");
    }
    pair.proxy.retarget(pair.leader_agent.config.replication_port);
    let healed = Instant::now();
    let since = settles(&both)?;
    println!("healed: below 1 s for 2 s after {:.1} s", healed.elapsed().as_secs_f64());
    ensure!(pair.leader_agent.metrics()?.expect(CONNECTED)? == 1.0, "it is connected again");

    // A follower that hangs can say nothing; its leader does.
    send_signal(pair.follower.pid().context("it runs")?, Signal::STOP)?;
    let mut view = [Rise::new(&pair.leader_agent, LEADERS_VIEW)];
    rise(&mut view, since, 5.0)?;
    println!("stopped: {:.1?}", view[0].samples);
    send_signal(pair.follower.pid().context("it runs")?, Signal::CONT)?;
    settles(&[(&pair.leader_agent, LEADERS_VIEW)])?;
    load.stop()?;

    names(&mut pair)
}

/// The README's table names every metric of the two agents, and no other.
fn names(pair: &mut Pair) -> Result<()> {
    // So that something has failed on either side.
    pair.leader.stop(integration::StopMode::Fast)?;
    pair.leader_agent.wait_for_state("horizon", "retrying")?;
    let mut found = BTreeSet::new();
    for agent in [&pair.leader_agent, &pair.follower] {
        let text = integration::metrics::http_get(agent.config.metrics_port, "/metrics")?;
        for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE walferry_")) {
            let name = line.split_whitespace().next().context("a name")?;
            found.insert(format!("walferry_{name}"));
        }
    }
    let readme = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme)?;
    let table = readme.lines().filter(|line| line.starts_with("| `walferry_"));
    let cells = table.filter_map(|line| line.split('|').nth(1));
    let listed: BTreeSet<String> = cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(|name| name.split('{').next().unwrap_or(name).to_owned())
        .collect();
    println!("{} metrics, {} in the README", found.len(), listed.len());
    let difference: Vec<_> = found.symmetric_difference(&listed).collect();
    ensure!(difference.is_empty(), "in only one of /metrics and README: {difference:?}");
    Ok(())
}
