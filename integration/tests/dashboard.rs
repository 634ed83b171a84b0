//! Dashboard and alerts, in a real Prometheus that scrapes a pair of agents: every panel shows
//! something, nothing fires while all is well, and each alert is fired by what it is there for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::command::output_of;
use integration::metrics::http_get;
use integration::pair::archived_segments;
use integration::process::wait_until;
use integration::prometheus::{Alert, Series, hasten_rules, promtool};
use integration::{
    Agent, AgentConfig, Binaries, Cluster, ClusterOptions, PATIENCE, Pair, Prometheus, Scratch,
    StopMode, free_port,
};
use serde_json::Value;
use walfmt::Lsn;

/// For `$__rate_interval`: scrapes are a second apart.
const RATE_INTERVAL: &str = "10s";

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("dashboard").join(name)
}

/// One query of a panel, as it stands in the file.
#[derive(Clone, Debug)]
struct Query {
    panel: String,
    expression: String,
}

fn dashboard() -> Result<Value> {
    serde_json::from_str(&fs::read_to_string(file("walferry.json"))?).context("not JSON")
}

/// The queries of all panels. Each panel says what it shows and in which unit, and asks the data
/// source that was chosen.
fn queries(dashboard: &Value) -> Result<Vec<Query>> {
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().context("panels")? {
        let title = panel["title"].as_str().context("a title")?;
        let described = panel["description"].as_str().is_some_and(|text| text.len() > 30);
        ensure!(described, "panel {title:?} has no description");
        if panel["type"] == "timeseries" || panel["type"] == "stat" {
            let unit = &panel["fieldConfig"]["defaults"]["unit"];
            ensure!(unit.as_str().is_some(), "panel {title:?} has no unit");
        }
        let targets = panel["targets"].as_array().with_context(|| format!("targets of {title}"))?;
        ensure!(!targets.is_empty(), "panel {title:?} shows nothing");
        for target in targets {
            ensure!(target["datasource"]["uid"] == "${datasource}", "{title}: {target}");
            let expression = target["expr"].as_str().context("an expression")?.to_owned();
            queries.push(Query { panel: title.to_owned(), expression });
        }
    }
    Ok(queries)
}

/// What Grafana asks for its variables `job` and `node`, with "All" chosen: every value there is.
fn variables(dashboard: &Value, prometheus: &Prometheus) -> Result<BTreeMap<String, String>> {
    let mut variables = BTreeMap::new();
    for variable in dashboard["templating"]["list"].as_array().context("variables")? {
        let name = variable["name"].as_str().context("a variable's name")?;
        if variable["type"] != "query" {
            continue;
        }
        let query = variable["query"]["query"].as_str().context("a variable's query")?;
        let asked = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
        let (metric, label) =
            asked.and_then(|asked| asked.rsplit_once(", ")).context("its form")?;
        let series = prometheus.query(&filled_in(metric, &variables))?;
        let values: BTreeSet<&str> = series.iter().map(|series| series.label(label)).collect();
        ensure!(!values.contains("") && !values.is_empty(), "variable {name}: {values:?}");
        let values = values.into_iter().collect::<Vec<_>>().join("|");
        variables.insert(name.to_owned(), format!("({values})"));
    }
    Ok(variables)
}

fn filled_in(expression: &str, variables: &BTreeMap<String, String>) -> String {
    let expression = expression.replace("$__rate_interval", RATE_INTERVAL);
    variables
        .iter()
        .fold(expression, |text, (name, values)| text.replace(&format!("${name}"), values))
}

/// What a query gives now; it must give something, and a rate or position of it more than nothing.
fn shown(
    prometheus: &Prometheus,
    query: &Query,
    variables: &BTreeMap<String, String>,
) -> Result<Vec<Series>> {
    let expression = filled_in(&query.expression, variables);
    ensure!(!expression.contains('$'), "{expression}: what is that variable?");
    for trick in ["vector(", "absent", "scalar("] {
        ensure!(!expression.contains(trick), "{expression}: shows something without a series");
    }
    let series = prometheus.query(&expression)?;
    ensure!(!series.is_empty(), "panel {:?} is empty: {expression}", query.panel);
    let most = series.iter().map(|series| series.value).fold(f64::NEG_INFINITY, f64::max);
    let least = series.iter().map(|series| series.value).fold(f64::INFINITY, f64::min);
    ensure!(most.is_finite(), "panel {:?} shows no number: {expression}", query.panel);
    if expression.contains("rate(") || expression.contains("increase(") {
        ensure!(most > 0.0, "rate of panel {:?} is {most}: {expression}", query.panel);
    }
    // What is between two positions may be nothing.
    if expression.contains("_position_bytes") && !expression.contains(" - ") {
        ensure!(least > 0.0, "position of panel {:?} is {least}: {expression}", query.panel);
    }
    Ok(series)
}

/// The metrics that an expression asks for, by the names that the README has.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    let is_in_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c: char| !is_in_name(c));
    let names = words.filter(|word| word.starts_with("walferry_"));
    names.map(|name| name.strip_suffix("_bucket").unwrap_or(name).to_owned()).collect()
}

fn metrics_in_readme() -> Result<BTreeSet<String>> {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = fs::read_to_string(readme)?;
    let rows = readme.lines().filter(|line| line.starts_with("| `walferry_"));
    let cells = rows.filter_map(|line| line.split('|').nth(1));
    Ok(cells.flat_map(metrics_in).collect())
}

#[test]
fn files_are_clean() -> Result<()> {
    let scratch = Scratch::new()?;
    let path = |path: &Path| path.to_str().context("UTF-8").map(str::to_owned);
    let (rules, config) = (path(&file("alerts.yml"))?, path(&file("prometheus.yml"))?);
    println!("{}", promtool(&["check", "rules", "--lint-fatal", &rules], "")?.trim());
    println!("{}", promtool(&["check", "config", "--lint-fatal", &config], "")?.trim());

    // With the waits and windows that they have, on series that are written down.
    let tests = path(&file("alerts_test.yml"))?;
    println!("{}", promtool(&["test", "rules", &tests], "")?.trim());

    // The controls: an expression that is none, and a rule that is there twice.
    let text = fs::read_to_string(&rules)?;
    for (name, spoiled) in [
        ("broken.yml", text.replacen("== 0)", "== )", 1)),
        ("twice.yml", text.replace("WalferryDiverged", "WalferryGap")),
    ] {
        ensure!(spoiled != text, "{name} is not spoiled");
        let spoiled = path(&scratch.file(name, spoiled)?)?;
        let found = promtool(&["check", "rules", "--lint-fatal", &spoiled], "");
        let error = found.expect_err("spoiled rules pass");
        println!("control: {}", format!("{error:#}").replace('\n', " "));
    }

    // Dashboard and rules ask for metrics that the README has; all of them are asked for somewhere.
    let known = metrics_in_readme()?;
    let mut asked: BTreeSet<String> = BTreeSet::new();
    for query in queries(&dashboard()?)? {
        asked.extend(metrics_in(&query.expression));
    }
    let in_rules = text.lines().filter(|line| !line.trim().starts_with('#'));
    asked.extend(in_rules.flat_map(metrics_in));
    let unknown: Vec<_> = asked.difference(&known).collect();
    ensure!(unknown.is_empty(), "not in the README: {unknown:?}");
    let unasked: Vec<_> = known.difference(&asked).collect();
    println!("{} of {} metrics; on no panel: {unasked:?}", asked.len(), known.len());
    ensure!(
        !known.contains("walferry_lag_second"),
        "the control: a misspelt name is in the README"
    );
    Ok(())
}

/// Two agents and a Prometheus; what has fired so far.
struct Watched {
    prometheus: Prometheus,
    pair: Pair,
    fired: BTreeSet<String>,
    /// From when on causes are not mended any more, those of them. They may be gone for a while and fire
    /// again: an alert begins anew with a scrape that was missed.
    stay: Option<BTreeSet<String>>,
}

impl Watched {
    fn firing(&self) -> Result<BTreeSet<String>> {
        let alerts = self.prometheus.alerts()?.into_iter();
        Ok(alerts.filter(|alert| alert.state == "firing").map(|alert| alert.name).collect())
    }

    /// Waits until an alert fires that did not before `cause`, with these labels; no other that did
    /// not may, but those `beside` it. Its texts must be whole.
    fn fires(
        &mut self,
        name: &str,
        labels: &[(&str, &str)],
        beside: &[&str],
        cause: impl FnOnce(&mut Pair) -> Result<()>,
    ) -> Result<()> {
        let before = self.firing()?;
        ensure!(!before.contains(name), "{name} fires before its cause");
        cause(&mut self.pair).with_context(|| format!("the cause of {name}"))?;
        let begun = Instant::now();
        let alert = loop {
            let alerts = self.prometheus.alerts()?;
            let is_it = |alert: &&Alert| {
                let has = |(label, value): &(&str, &str)| {
                    alert.labels.get(*label).is_some_and(|found| found == value)
                };
                alert.name == name && alert.state == "firing" && labels.iter().all(has)
            };
            if let Some(alert) = alerts.iter().find(is_it) {
                break alert.clone();
            }
            if begun.elapsed() > PATIENCE {
                let logs = [&self.pair.leader_agent, &self.pair.follower].map(|a| a.log_tail(15));
                bail!("{name} does not fire: {alerts:?}\n{}", logs.join("\n--\n"));
            }
            thread::sleep(Duration::from_millis(200));
        };
        for (what, text) in &alert.annotations {
            let is_whole =
                !text.contains("<no value>") && !text.contains("<error") && !text.contains("  ");
            ensure!(is_whole, "{what} of {name}: {text}");
        }
        println!(
            "{name} after {:.1} s: {}",
            begun.elapsed().as_secs_f64(),
            alert.annotations["summary"]
        );
        let mut others = self.prometheus.alerts()?;
        others.retain(|other| other.state == "firing" && other.name != name);
        others.retain(|other| !self.stay.as_ref().is_some_and(|stay| stay.contains(&other.name)));
        others.retain(|other| !before.contains(&other.name) && !beside.contains(&&*other.name));
        ensure!(others.is_empty(), "{name} and: {others:?}");
        self.fired.insert(name.to_owned());
        if let Some(stay) = &mut self.stay {
            stay.insert(name.to_owned());
        }
        Ok(())
    }

    /// The number that a panel shows now; of several series, the largest.
    fn number(&self, panel: &str) -> Result<f64> {
        let dashboard = dashboard()?;
        let variables = variables(&dashboard, &self.prometheus)?;
        let mut most = f64::NEG_INFINITY;
        for query in queries(&dashboard)?.iter().filter(|query| query.panel == panel) {
            let series = self.prometheus.query(&filled_in(&query.expression, &variables))?;
            most = series.iter().map(|series| series.value).fold(most, f64::max);
        }
        ensure!(most.is_finite(), "panel {panel:?} shows nothing");
        Ok(most)
    }

    /// Waits until the number that a panel shows is such a one. A scrape that was missed shows none.
    fn shows(&self, panel: &str, is_it: impl Fn(f64) -> bool) -> Result<f64> {
        let mut shown = f64::NAN;
        let came = wait_until(&format!("panel {panel:?} shows it"), PATIENCE, || {
            shown = self.number(panel).unwrap_or(f64::NAN);
            Ok(is_it(shown))
        });
        came.with_context(|| shown.to_string())?;
        Ok(shown)
    }

    /// What was mended is no alert any more.
    fn is_quiet(&self, names: &[&str]) -> Result<()> {
        wait_until(&format!("{names:?} are over"), PATIENCE, || {
            Ok(self.firing()?.iter().all(|firing| !names.contains(&firing.as_str())))
        })
    }
}

/// WAL that is hard to compress.
fn fill(pair: &Pair, megabytes: u32) -> Result<()> {
    for _ in 0..megabytes {
        pair.leader.sql(
            "select pg_logical_emit_message(false, 'fill', string_agg(md5(random()::text), '')) \
             from generate_series(1, 32000)",
        )?;
    }
    Ok(())
}

#[test]
fn panels_show_and_alerts_fire() -> Result<()> {
    let begun = Instant::now();
    let scratch = Scratch::new()?;
    let settings = ["min_wal_size = 2MB", "max_wal_size = 32MB", "max_slot_wal_keep_size = 1GB"];
    let options = ClusterOptions {
        wal_segment_megabytes: 1,
        settings: settings.map(str::to_owned).into(),
        ..ClusterOptions::default()
    };
    let pair = Pair::start(&scratch, &options, 1)?;
    let ports = [&pair.leader_agent, &pair.follower].map(|agent| agent.config.metrics_port);
    let rules = hasten_rules(&scratch, &file("alerts.yml"))?;
    let prometheus = Prometheus::start(&scratch, &ports, &rules)?;
    let mut watched = Watched { prometheus, pair, fired: BTreeSet::new(), stay: None };

    all_is_well(&watched)?;
    every_panel_shows(&watched, &ports)?;
    alerts_come_and_go(&mut watched)?;
    alerts_stay(&scratch, &mut watched)?;

    let rules = watched.prometheus.rules()?;
    let names: BTreeSet<String> =
        rules.iter().filter_map(|rule| rule["name"].as_str().map(str::to_owned)).collect();
    for rule in &rules {
        ensure!(rule["health"] == "ok", "{rule}");
        ensure!(rule["duration"].as_f64().is_some_and(|wait| wait > 0.0), "no wait: {rule}");
        let severity = rule["labels"]["severity"].as_str().unwrap_or_default();
        ensure!(["critical", "warning"].contains(&severity), "{rule}");
        for text in ["summary", "description"] {
            ensure!(rule["annotations"][text].as_str().is_some(), "no {text}: {rule}");
        }
    }
    ensure!(names == watched.fired, "of {names:?} only {:?} have fired", watched.fired);
    println!("{} alerts have fired; {:.0} s in all", names.len(), begun.elapsed().as_secs_f64());
    Ok(())
}

/// The control of all alerts: a pair under load fires none.
fn all_is_well(watched: &Watched) -> Result<()> {
    let Watched { pair, prometheus, .. } = watched;
    wait_until("both agents are scraped", PATIENCE, || {
        let up = prometheus.query("sum(up)")?;
        Ok(up.first().is_some_and(|series| series.value == 2.0))
    })?;
    let load = pair.leader.pgbench(&["-c", "2", "-R", "100", "-T", "600"])?;
    thread::sleep(Duration::from_secs(10));
    let mut scrapes = 0.0;
    // With fewer of them silence would say nothing.
    wait_until("there are 14 scrapes in 9 s", PATIENCE, || {
        let up = prometheus.query("sum(count_over_time(up[9s]))")?;
        scrapes = up.first().map_or(0.0, |series| series.value);
        Ok(scrapes >= 14.0)
    })?;
    load.stop()?;
    let fired = prometheus.query("max_over_time(ALERTS{alertstate=\"firing\"}[10m])")?;
    println!("healthy: {scrapes} scrapes, {} alerts", fired.len());
    ensure!(fired.is_empty(), "fired without a cause: {fired:?}");
    Ok(())
}

fn every_panel_shows(watched: &Watched, ports: &[u16]) -> Result<()> {
    let Watched { prometheus, pair, .. } = watched;
    // Load, checkpoints for restart points, and a line that breaks, so that something fails.
    let load = pair.leader.pgbench(&["-c", "2", "-R", "100", "-T", "600"])?;
    let stir = |breaks: bool| -> Result<()> {
        if breaks {
            pair.proxy.cut();
        }
        pair.leader.sql("checkpoint")?;
        thread::sleep(Duration::from_secs(1));
        Ok(())
    };
    for round in 0..10 {
        stir(round % 2 == 1)?;
    }
    let dashboard = dashboard()?;
    // A node whose scrape was missed is not among them.
    let mut variables = BTreeMap::new();
    wait_until("both nodes are there to be chosen", PATIENCE, || {
        variables = self::variables(&dashboard, prometheus).unwrap_or_default();
        Ok(variables.get("node").is_some_and(|nodes| nodes == "(follower1|leader1)"))
    })?;
    let queries = queries(&dashboard)?;
    // What is shown is of the last seconds, and a scrape may be missed.
    let comes = |query: &Query| -> Result<Vec<Series>> {
        let begun = Instant::now();
        loop {
            match shown(prometheus, query, &variables) {
                Err(_) if begun.elapsed() < PATIENCE => stir(true)?,
                series => return series,
            }
        }
    };
    for query in &queries {
        let series = comes(query)?;
        let most = series.iter().map(|series| series.value).fold(f64::NEG_INFINITY, f64::max);
        println!("{}: {} series, at most {most}", query.panel, series.len());
    }
    println!("{} queries of {variables:?}", queries.len());

    // Who follows whom is there by name.
    let followers = queries.iter().find(|query| query.panel == "Who follows whom");
    let followers = comes(followers.context("the panel")?)?;
    let names =
        |series: &Series| (series.label("node").to_owned(), series.label("follower").to_owned());
    let names: Vec<_> = followers.iter().map(names).collect();
    ensure!(names == [("leader1".to_owned(), "follower1".to_owned())], "{names:?}");

    // The controls: each kind of spoiled query is noticed by what has just found none.
    let lag = queries.iter().find(|query| query.panel == "Lag in seconds").context("the panel")?;
    for (before, after, words) in [
        ("walferry_follower_lag_seconds", "walferry_follower_lag_second", "is empty"),
        ("job=~\"$job\"", "job=~\"other\"", "is empty"),
        ("$job", "$cluster", "what is that variable"),
        (&*lag.expression, "vector(0)", "without a series"),
        (&*lag.expression, "rate(walferry_removed_segments_total[10s])", "rate of panel"),
        (&*lag.expression, "walferry_position_bytes * 0", "position of panel"),
    ] {
        let expression = lag.expression.replace(before, after);
        let spoiled = Query { expression, ..lag.clone() };
        wait_until(&format!("control: {words}"), PATIENCE, || {
            let error =
                shown(prometheus, &spoiled, &variables).expect_err("a spoiled query passes");
            println!("control: {error:#}");
            Ok(format!("{error:#}").contains(words))
        })?;
    }

    for port in ports {
        let text = http_get(*port, "/metrics")?;
        let clean = promtool(&["check", "metrics"], &text)?;
        ensure!(clean.trim().is_empty(), "{clean}");
    }
    let spoiled = "# TYPE walferry_x_total gauge\nwalferry_x_total 1\n";
    ensure!(promtool(&["check", "metrics"], spoiled).is_err(), "the control passes");
    load.stop()?;
    pair.catch_up(PATIENCE).map(drop)
}

/// What the restart of an agent may fire beside what is looked for, if the machine is slow.
const AFTERMATH: [&str; 4] = [
    "WalferryAgentDown",
    "WalferryFollowerDisconnected",
    "WalferryLeaderUnreachable",
    "WalferryLagGrowing",
];
const ON_LEADER: (&str, &str) = ("node", "leader1");
const ON_FOLLOWER: (&str, &str) = ("node", "follower1");

/// What passes when its cause is mended.
fn alerts_come_and_go(watched: &mut Watched) -> Result<()> {
    // A line that is too slow: the follower is connected, and falls behind.
    let load = watched.pair.leader.pgbench(&["-c", "2", "-R", "100", "-T", "600"])?;
    let labels = [ON_LEADER, ("follower", "follower1")];
    watched.fires("WalferryLagGrowing", &labels, &[], |pair| {
        pair.proxy.set_delay(Duration::from_secs(1));
        fill(pair, 1)
    })?;
    let between = watched.shows("WAL between hops", |bytes| bytes > 100_000.0)?;
    println!("at most {between} bytes between hops");
    watched.shows("Longest lag", |seconds| seconds > 30.0)?;
    load.stop()?;
    watched.pair.proxy.set_delay(Duration::ZERO);
    watched.pair.proxy.cut();
    watched.pair.catch_up(PATIENCE)?;
    watched.is_quiet(&["WalferryLagGrowing"])?;

    // The follower's agent is killed: it does not answer, and its leader misses it.
    let [down, disconnected] = ["WalferryAgentDown", "WalferryFollowerDisconnected"];
    let instance = format!("127.0.0.1:{}", watched.pair.follower.config.metrics_port);
    watched
        .fires(down, &[("instance", &instance)], &[disconnected], |pair| pair.follower.kill())?;
    wait_until("the leader misses it", PATIENCE, || Ok(watched.firing()?.contains(disconnected)))?;
    watched.fired.insert(disconnected.to_owned());
    watched.shows("Agents that do not answer", |count| count == 1.0)?;
    watched.shows("Followers away", |count| count == 1.0)?;
    watched.pair.follower.start()?;
    watched.is_quiet(&[down, disconnected])?;

    // The line is cut, and stays so.
    let unreachable = "WalferryLeaderUnreachable";
    watched.fires(unreachable, &[ON_FOLLOWER], &[disconnected], |pair| {
        pair.proxy.retarget(free_port()?);
        Ok(())
    })?;
    watched.shows("Stages in trouble", |count| count == 1.0)?;
    let port = watched.pair.leader_agent.config.replication_port;
    watched.pair.proxy.retarget(port);
    watched.is_quiet(&[unreachable, disconnected])?;

    // The server is down.
    let labels = [ON_LEADER, ("stage", "horizon"), ("kind", "io")];
    watched.fires("WalferryFailing", &labels, &[], |pair| pair.leader.stop(StopMode::Fast))?;
    Ok(())
}

/// What ends with a bootstrap, or worse. The server is down.
fn alerts_stay(scratch: &Scratch, watched: &mut Watched) -> Result<()> {
    let directory = scratch.path().join("fork");
    let mut copy = scratch.account().command("cp");
    output_of(copy.arg("-a").arg(watched.pair.leader.data_directory()).arg(&directory))?;
    watched.pair.leader.start()?;
    watched.pair.leader.sql("select pg_switch_wal()")?;
    watched.pair.catch_up(PATIENCE)?;
    watched.is_quiet(&["WalferryFailing"])?;
    watched.stay = Some(BTreeSet::new());

    // Less is free than is to stay free, whatever is removed.
    watched.fires("WalferryDiskLow", &[ON_LEADER, ("disk", "archive")], &AFTERMATH, |pair| {
        pair.leader_agent.stop()?;
        let mut config = pair.leader_agent.config.clone();
        config.more.push(("archive".into(), "min_free_bytes".into(), "1000TB".into()));
        pair.leader_agent = Agent::new(scratch, config)?;
        pair.leader_agent.start()
    })?;
    watched.pair.catch_up(PATIENCE)?;
    watched.is_quiet(&AFTERMATH)?;

    // A record that redo refuses.
    watched.fires("WalferryReplayStopped", &[ON_FOLLOWER], &[], |pair| {
        pair.leader.sql("create table stops_replay (n int)")?;
        pair.leader.sql("create index on stops_replay using hash (n)").map(drop)
    })?;

    // The follower is away while retention removes what it needs.
    watched.fires("WalferryNeedsBootstrap", &[ON_FOLLOWER], &AFTERMATH, |pair| {
        pair.follower.stop()?;
        // The segment in which the follower's archive ends, and where it would go on.
        let (last, _) = archived_segments(&pair.follower)?.pop_last().context("a segment")?;
        fill(pair, 6)?;
        let end = pair.flush_position()?;
        pair.leader_agent.wait_for_position("appended", end, PATIENCE)?;
        wait_until("retention has removed it", PATIENCE, || {
            Ok(!archived_segments(&pair.leader_agent)?.contains_key(&last))
        })?;
        pair.follower.start()
    })?;

    // Its leader is replaced by a copy from before, which it is ahead of.
    let mut fork = Cluster::at(scratch, "fork", &directory, Binaries::find()?)?;
    fork.start()?;
    let mut fork_agent = Agent::new(scratch, AgentConfig::leader("fork1", &fork)?)?;
    fork_agent.start()?;
    let end: Lsn = fork.sql("select pg_current_wal_flush_lsn()")?.parse()?;
    fork_agent.wait_for_position("appended", end, PATIENCE)?;
    watched.fires("WalferryDiverged", &[ON_FOLLOWER], &AFTERMATH, |pair| {
        pair.proxy.retarget(fork_agent.config.replication_port);
        Ok(())
    })?;

    // The server is told what makes its WAL worthless after a crash.
    let labels = [ON_LEADER, ("stage", "horizon")];
    watched.fires("WalferryStageStopped", &labels, &AFTERMATH, |pair| {
        pair.leader.configure(&["fsync = off"])?;
        pair.leader.sql("select pg_reload_conf()").map(drop)
    })?;
    watched.pair.leader.configure(&["fsync = on"])?;
    watched.pair.leader.sql("select pg_reload_conf()")?;

    // The leader's agent is away for longer than the server keeps WAL.
    watched.fires("WalferryGap", &[ON_LEADER], &AFTERMATH, |pair| {
        pair.leader.configure(&["max_slot_wal_keep_size = 8MB", "max_wal_size = 4MB"])?;
        pair.leader.sql("select pg_reload_conf()")?;
        pair.leader_agent.stop()?;
        for _ in 0..10 {
            fill(pair, 4)?;
            pair.leader.sql("checkpoint")?;
        }
        pair.leader_agent.start()
    })
}
