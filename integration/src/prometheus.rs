//! A real Prometheus.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::metrics::http_get;
use crate::ports::free_port;
use crate::process::{PATIENCE, POLL_INTERVAL, send_signal, tail_of, wait_for_exit};
use crate::scratch::Scratch;

/// A Prometheus that scrapes agents and evaluates rules every second; stopped on drop.
#[derive(Debug)]
pub struct Prometheus {
    child: Child,
    port: u16,
    log: PathBuf,
}

/// One series of an answer: its labels, and its value now.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// By name; that of the metric is `__name__`.
    pub labels: BTreeMap<String, String>,
    /// Not a number where a quantile of nothing was asked for.
    pub value: f64,
}

impl Series {
    /// A label's value; empty, as in Prometheus, if there is none.
    #[must_use]
    pub fn label(&self, name: &str) -> &str {
        self.labels.get(name).map_or("", String::as_str)
    }
}

/// An alert that is pending or firing.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// Its name, `alertname`.
    pub name: String,
    /// `pending` or `firing`.
    pub state: String,
    /// With `severity` and `alertname`.
    pub labels: BTreeMap<String, String>,
    /// The texts, filled in.
    pub annotations: BTreeMap<String, String>,
}

impl Prometheus {
    /// Starts one that scrapes these ports of 127.0.0.1 as job `walferry`, with the rules in a file.
    ///
    /// # Errors
    /// There is no `prometheus`, or it does not come up.
    pub fn start(scratch: &Scratch, targets: &[u16], rules: &Path) -> Result<Self> {
        let (port, data) = (free_port()?, scratch.directory("prometheus")?);
        let targets: Vec<String> =
            targets.iter().map(|target| format!("\"127.0.0.1:{target}\"")).collect();
        let config = format!(
            "global: {{scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}}\n\
             rule_files: [{}]\n\
             scrape_configs:\n  - job_name: walferry\n    static_configs:\n      - targets: [{}]\n",
            rules.display(),
            targets.join(", ")
        );
        let config = scratch.file("prometheus.yml", config)?;
        let log = scratch.path().join("prometheus.log");
        let stderr = File::create(&log).context("cannot create Prometheus' log")?;
        let mut command = scratch.account().command("prometheus");
        command.arg("--config.file").arg(config).arg("--storage.tsdb.path").arg(data);
        command.args(["--web.listen-address", &format!("127.0.0.1:{port}")]);
        command.args(["--log.level", "warn"]);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .context("cannot start prometheus: install Debian's package of that name")?;
        let mut prometheus = Self { child, port, log };
        prometheus.wait_ready()?;
        Ok(prometheus)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while http_get(self.port, "/-/ready").is_err() {
            let ended = self.child.try_wait().context("cannot look at prometheus")?.is_some();
            ensure!(
                !ended && Instant::now() < deadline,
                "no Prometheus\n{}",
                tail_of(&self.log, 20)
            );
            thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// What an expression gives now: a vector.
    ///
    /// # Errors
    /// It is no expression, or one that gives something else.
    pub fn query(&self, expression: &str) -> Result<Vec<Series>> {
        let data = self.get(&format!("query?query={}", in_url(expression)))?;
        ensure!(data["resultType"] == "vector", "{expression} gives a {}", data["resultType"]);
        let series = data["result"].as_array().context("a vector")?;
        series
            .iter()
            .map(|series| {
                let value = series["value"][1].as_str().context("a value")?;
                let value = value.parse().context("a number")?;
                Ok(Series { labels: texts(&series["metric"]), value })
            })
            .collect()
    }

    /// The alerting rules, as it read them: `name`, `query`, `duration`, `labels`, `annotations`,
    /// `health`, `lastError`.
    ///
    /// # Errors
    /// It does not answer.
    pub fn rules(&self) -> Result<Vec<Value>> {
        let data = self.get("rules?type=alert")?;
        let groups = data["groups"].as_array().context("groups")?;
        Ok(groups.iter().filter_map(|group| group["rules"].as_array()).flatten().cloned().collect())
    }

    /// The alerts that are pending or firing now.
    ///
    /// # Errors
    /// It does not answer.
    pub fn alerts(&self) -> Result<Vec<Alert>> {
        let data = self.get("alerts")?;
        let alerts = data["alerts"].as_array().context("alerts")?.iter();
        let alert = |alert: &Value| {
            let labels = texts(&alert["labels"]);
            Ok(Alert {
                name: labels.get("alertname").context("an alert's name")?.clone(),
                state: alert["state"].as_str().context("an alert's state")?.to_owned(),
                labels,
                annotations: texts(&alert["annotations"]),
            })
        };
        alerts.map(alert).collect()
    }

    fn get(&self, path: &str) -> Result<Value> {
        let answer: Value = serde_json::from_str(&http_get(self.port, &format!("/api/v1/{path}"))?)
            .context("the answer is not JSON")?;
        ensure!(answer["status"] == "success", "{path}: {answer}");
        Ok(answer["data"].clone())
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("log of Prometheus:\n{}", tail_of(&self.log, 20));
        }
        if send_signal(self.child.id(), Signal::TERM).is_err()
            || wait_for_exit(&mut self.child, Duration::from_secs(10)).is_err()
        {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs `promtool` with `input` and gives all it wrote.
///
/// # Errors
/// There is none, or its exit status is not 0: it has found something.
pub fn promtool(arguments: &[&str], input: &str) -> Result<String> {
    let mut child = Command::new("promtool")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start promtool: install Debian's package prometheus")?;
    // It reads all of its input before it writes, if it reads any.
    let _ = child.stdin.take().context("promtool's input")?.write_all(input.as_bytes());
    let output = child.wait_with_output().context("cannot wait for promtool")?;
    let text =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    if !output.status.success() {
        bail!("promtool {} ({})\n{}", arguments.join(" "), output.status, text.concat());
    }
    Ok(text.concat())
}

/// Copies a file of rules with every wait a thirtieth as long, and every window a sixtieth: `for: 2m` becomes
/// `for: 4s`, so that a busy machine can miss a scrape or two, and `[10m]` becomes `[10s]`. Nothing else is
/// changed; a rule that has another unit is an error.
///
/// # Errors
/// That; or a file cannot be read or written.
pub fn hasten_rules(scratch: &Scratch, rules: &Path) -> Result<PathBuf> {
    let text = fs::read_to_string(rules).with_context(|| rules.display().to_string())?;
    let text = hastened(&text).with_context(|| rules.display().to_string())?;
    scratch.file("hastened.yml", text)
}

fn hastened(rules: &str) -> Result<String> {
    let mut lines = Vec::new();
    for line in rules.lines() {
        let trimmed = line.trim();
        let changed = if let Some(wait) = trimmed.strip_prefix("for: ") {
            line.replace(wait, &seconds(wait, 2)?)
        } else if trimmed.starts_with('#') {
            line.to_owned()
        } else {
            let mut parts = line.split('[');
            let mut changed = parts.next().unwrap_or_default().to_owned();
            for part in parts {
                // What stands in brackets and is no number is a section of the configuration.
                let (window, rest) = part.split_once(']').with_context(|| line.to_owned())?;
                let is_window = window.starts_with(|c: char| c.is_ascii_digit());
                let window = if is_window { seconds(window, 1)? } else { window.to_owned() };
                changed.push_str(&format!("[{window}]{rest}"));
            }
            changed
        };
        lines.push(changed);
    }
    Ok(lines.join("\n") + "\n")
}

/// So many seconds for each minute.
fn seconds(minutes: &str, for_each: u32) -> Result<String> {
    let number = minutes.strip_suffix('m').and_then(|number| number.parse::<u32>().ok());
    let number = number.with_context(|| format!("{minutes} is not in whole minutes"))?;
    Ok(format!("{}s", number * for_each))
}

fn texts(object: &Value) -> BTreeMap<String, String> {
    let entries = object.as_object().into_iter().flatten();
    entries.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned()))).collect()
}

fn in_url(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_hastened() {
        let rules = "# for: 1h [1h]\nexpr: a[10m] > 10 * b[2m]\nfor: 5m\ntext: 5m of [archive] x\n";
        let quick =
            "# for: 1h [1h]\nexpr: a[10s] > 10 * b[2s]\nfor: 10s\ntext: 5m of [archive] x\n";
        assert_eq!(hastened(rules).expect("minutes"), quick);
        for other in ["for: 30s", "expr: a[1h]"] {
            assert!(hastened(other).is_err(), "{other}");
        }
    }
}
