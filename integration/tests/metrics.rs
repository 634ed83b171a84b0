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
const FOLLOWER_LAG: &str = "walferry_lag_seconds{to=\"replayed\"}";
const LEADERS_VIEW: &str = "walferry_follower_lag_seconds{follower=\"follower1\",to=\"replayed\"}";
const CONNECTED: &str = "walferry_follower_connected{follower=\"follower1\"}";

/// A metric of an agent, every so often.
fn sample(agent: &Agent, name: &str, every: Duration, lasts: Duration) -> Result<Vec<f64>> {
    let (begun, mut samples) = (Instant::now(), Vec::new());
    while begun.elapsed() < lasts {
        samples.push(agent.metrics()?.expect(name)?);
        thread::sleep(every);
    }
    samples.push(agent.metrics()?.expect(name)?);
    Ok(samples)
}

/// Whether lag rises to `to` at least. That a follower hears nothing is no lag for its first 3 s.
fn rises(samples: &[f64], to: f64) -> bool {
    samples.windows(2).all(|pair| pair[0] < pair[1] || pair == [0.0, 0.0])
        && samples.last().is_some_and(|last| *last >= to)
}

/// Whether nothing is behind: a record that the server writes by itself may be seen under way.
fn is_zero(samples: &[f64]) -> bool {
    let under_way = samples.iter().filter(|sample| **sample != 0.0).count();
    under_way <= samples.len() / 20 && samples.iter().all(|sample| *sample < 0.5)
}

#[test]
fn lag_is_what_it_should_be() -> Result<()> {
    let scratch = Scratch::new()?;
    let options = ClusterOptions::default();
    let mut pair = Pair::start(&scratch, &options, 1)?;
    let every = Duration::from_millis(500);

    // Idle, for a minute.
    pair.leader.sql("checkpoint")?;
    pair.catch_up(PATIENCE)?;
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for _ in 0..60 {
        here.push(pair.follower.metrics()?.expect(FOLLOWER_LAG)?);
        there.push(pair.leader_agent.metrics()?.expect(LEADERS_VIEW)?);
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

    // The line is cut for 5 s under load.
    let load = pair.leader.pgbench(&["-c", "2", "-R", "300", "-T", "120"])?;
    thread::sleep(Duration::from_secs(2));
    let before = sample(&pair.follower, FOLLOWER_LAG, every, Duration::from_secs(2))?;
    ensure!(most(&before) < 1.0, "under load: {before:?}");
    pair.proxy.retarget(free_port()?);
    pair.proxy.cut();
    let cut = Instant::now();
    thread::sleep(Duration::from_secs(1));
    let mut samples = [Vec::new(), Vec::new()];
    while cut.elapsed() < Duration::from_secs(5) {
        samples[0].push(pair.follower.metrics()?.expect(FOLLOWER_LAG)?);
        samples[1].push(pair.leader_agent.metrics()?.expect(LEADERS_VIEW)?);
        thread::sleep(every);
    }
    let lasted = cut.elapsed();
    ensure!(pair.leader_agent.metrics()?.expect(CONNECTED)? == 0.0, "it is not connected");
    samples[0].push(pair.follower.metrics()?.expect(FOLLOWER_LAG)?);
    samples[1].push(pair.leader_agent.metrics()?.expect(LEADERS_VIEW)?);
    pair.proxy.retarget(pair.leader_agent.config.replication_port);
    println!("cut for {:.1} s: {samples:.1?}", lasted.as_secs_f64());
    for samples in &samples {
        ensure!(rises(samples, 4.0), "{samples:?}");
        ensure!(!is_zero(samples), "the control: a cut line looks like an idle one");
    }
    let healed = Instant::now();
    wait_until("the lag is below 1 s", PATIENCE, || {
        Ok(pair.follower.metrics()?.expect(FOLLOWER_LAG)? < 1.0
            && pair.leader_agent.metrics()?.expect(LEADERS_VIEW)? < 1.0)
    })?;
    println!("healed: below 1 s after {:.1} s", healed.elapsed().as_secs_f64());
    let after = sample(&pair.follower, FOLLOWER_LAG, every, Duration::from_secs(3))?;
    ensure!(most(&after) < 1.0, "{after:?}");
    ensure!(pair.leader_agent.metrics()?.expect(CONNECTED)? == 1.0, "it is connected again");

    // A follower that hangs can say nothing; its leader does.
    send_signal(pair.follower.pid().context("it runs")?, Signal::STOP)?;
    thread::sleep(Duration::from_secs(1));
    let hangs = sample(&pair.leader_agent, LEADERS_VIEW, every, Duration::from_secs(5))?;
    println!("stopped: {hangs:.1?}");
    ensure!(rises(&hangs, 5.0), "{hangs:?}");
    send_signal(pair.follower.pid().context("it runs")?, Signal::CONT)?;
    wait_until("the lag is below 1 s", PATIENCE, || {
        Ok(pair.leader_agent.metrics()?.expect(LEADERS_VIEW)? < 1.0)
    })?;
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
