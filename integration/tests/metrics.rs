//! What an operator sees of a pair of agents when the line is cut, when nothing happens, and when the
//! follower hangs; and that the README names every metric.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::process::{send_signal, wait_until};
use integration::{Agent, ClusterOptions, Pair, Scratch, free_port};
use rustix::process::Signal;

const PATIENCE: Duration = Duration::from_secs(30);
const EVERY: Duration = Duration::from_millis(500);
const FOLLOWER_LAG: &str = "walferry_lag_seconds{to=\"replayed\"}";
const LEADERS_VIEW: &str = "walferry_follower_lag_seconds{follower=\"follower1\",to=\"replayed\"}";
const CONNECTED: &str = "walferry_follower_connected{follower=\"follower1\"}";

/// How long the server must have written nothing before a sample tells of an idle pair: a record that
/// it writes by itself takes its time, and longer where a disk is busy.
const QUIET: Duration = Duration::from_secs(10);

/// A metric of an agent, every so often, until it is as large as this; or has not become so.
fn sample(agent: &Agent, name: &str, to: f64) -> Result<Vec<f64>> {
    let (begun, mut samples) = (Instant::now(), Vec::new());
    while begun.elapsed() < PATIENCE {
        samples.push(agent.metrics()?.expect(name)?);
        if samples.last().is_some_and(|last| *last >= to) {
            break;
        }
        thread::sleep(EVERY);
    }
    Ok(samples)
}

/// Waits until these metrics stay below 1 s for 2 s in a row.
fn settles(of: &[(&Agent, &str)]) -> Result<()> {
    let mut since = Instant::now();
    wait_until("the lag stays below 1 s", PATIENCE, || {
        for (agent, name) in of {
            if agent.metrics()?.expect(name)? >= 1.0 {
                since = Instant::now();
            }
        }
        Ok(since.elapsed() >= Duration::from_secs(2))
    })
}

/// Whether lag rises to `to` at least. That a follower hears nothing is no lag for its first 3 s.
fn rises(samples: &[f64], to: f64) -> bool {
    samples.windows(2).all(|pair| pair[0] < pair[1] || pair == [0.0, 0.0])
        && samples.last().is_some_and(|last| *last >= to)
}

/// Whether nothing is behind.
fn is_zero(samples: &[f64]) -> bool {
    samples.iter().all(|sample| *sample == 0.0)
}

#[test]
fn lag_is_what_it_should_be() -> Result<()> {
    let scratch = Scratch::new()?;
    // What writes WAL by itself would leave no minute idle.
    let mut options = ClusterOptions::default();
    options.settings.extend(["autovacuum = off", "checkpoint_timeout = 1h"].map(str::to_owned));
    let mut pair = Pair::start(&scratch, &options, 1)?;

    // Idle, for a minute.
    pair.leader.sql("checkpoint")?;
    pair.catch_up(PATIENCE)?;
    let written = || pair.leader.sql("select pg_current_wal_insert_lsn()");
    let (mut end, mut since, begun) = (written()?, Instant::now(), Instant::now());
    let (mut here, mut there) = (Vec::new(), Vec::new());
    while here.len() < 60 {
        let sample = (
            pair.follower.metrics()?.expect(FOLLOWER_LAG)?,
            pair.leader_agent.metrics()?.expect(LEADERS_VIEW)?,
        );
        let now = written()?;
        if now != end {
            (end, since) = (now, Instant::now());
        }
        if since.elapsed() > QUIET {
            here.push(sample.0);
            there.push(sample.1);
        }
        ensure!(begun.elapsed() < 10 * PATIENCE, "the server writes on and on");
        thread::sleep(Duration::from_secs(1));
    }
    let most = |samples: &[f64]| samples.iter().copied().fold(0.0, f64::max);
    println!(
        "idle for 60 s: at most {} s on the follower, {} s on the leader",
        most(&here),
        most(&there)
    );
    ensure!(is_zero(&here) && is_zero(&there), "{here:?} {there:?}");
    ensure!(!rises(&here, 4.0) && !rises(&there, 4.0), "the control: an idle pair's lag rises");

    // The line is cut for some seconds under load.
    let load = pair.leader.pgbench(&["-c", "2", "-R", "300", "-T", "600"])?;
    let start = pair.flush_position()?.advance(100_000);
    wait_until("the load is replayed", PATIENCE, || {
        Ok(pair.follower.position("replayed")? > start)
    })?;
    let both = [(&pair.follower, FOLLOWER_LAG), (&pair.leader_agent, LEADERS_VIEW)];
    settles(&both)?;
    pair.proxy.retarget(free_port()?);
    let cut = Instant::now();
    thread::sleep(Duration::from_secs(1));
    let mut samples = [Vec::new(), Vec::new()];
    while cut.elapsed() < PATIENCE {
        for (samples, (agent, name)) in samples.iter_mut().zip(both) {
            samples.push(agent.metrics()?.expect(name)?);
        }
        if samples.iter().all(|samples| samples.last().is_some_and(|last| *last >= 4.0)) {
            break;
        }
        thread::sleep(EVERY);
    }
    let lasted = cut.elapsed();
    ensure!(pair.leader_agent.metrics()?.expect(CONNECTED)? == 0.0, "it is not connected");
    pair.proxy.retarget(pair.leader_agent.config.replication_port);
    println!("cut for {:.1} s: {samples:.1?}", lasted.as_secs_f64());
    for samples in &samples {
        ensure!(rises(samples, 4.0), "{samples:?}");
        ensure!(!is_zero(samples), "the control: a cut line looks like an idle one");
    }
    let healed = Instant::now();
    settles(&both)?;
    println!("healed: below 1 s for 2 s after {:.1} s", healed.elapsed().as_secs_f64());
    ensure!(pair.leader_agent.metrics()?.expect(CONNECTED)? == 1.0, "it is connected again");

    // A follower that hangs can say nothing; its leader does.
    send_signal(pair.follower.pid().context("it runs")?, Signal::STOP)?;
    thread::sleep(Duration::from_secs(1));
    let hangs = sample(&pair.leader_agent, LEADERS_VIEW, 5.0)?;
    println!("stopped: {hangs:.1?}");
    ensure!(rises(&hangs, 5.0), "{hangs:?}");
    send_signal(pair.follower.pid().context("it runs")?, Signal::CONT)?;
    settles(&[(&pair.leader_agent, LEADERS_VIEW)])?;
    load.stop()?;

    names(&mut pair)
}

/// The README's table names every metric of the two agents, and no other.
fn names(pair: &mut Pair) -> Result<()> {
    // So that something has failed on either side.
    pair.leader.stop(integration::StopMode::Fast)?;
    wait_until("the leader's agent misses its server", PATIENCE, || {
        Ok(pair.leader_agent.state_of("horizon").is_ok_and(|state| state == "retrying"))
    })?;
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
