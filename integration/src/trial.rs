//! A trial of redo: a leader under a [`Workload`], a follower, and a real standby as the judge.
//!
//! ```text
//! leader ── base backup ──┬──► store ◄── agents, restarted and killed on the way
//!   │ workload            └──► standby ◄── the leader's WAL, afterwards
//!   └ shutdown checkpoint ═════ both have it as their last restart point ═════► compared
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, ensure};
use walfmt::Lsn;
use walfmt::control::ClusterState;

use crate::agent::Agent;
use crate::identical::{Comparison, Directories, Flips};
use crate::pair::Pair;
use crate::postgres::{ClusterOptions, StopMode};
use crate::process::wait_until;
use crate::scratch::Scratch;
use crate::seed::Seed;
use crate::standby::{Standby, control_file};
use crate::workload::{Workload, records_by_kind};

/// How long the follower may take to replay the rest when the leader has stopped.
const PATIENCE: Duration = Duration::from_secs(900);

/// How many bits are flipped as a control.
const FLIPS: u64 = 50;

/// What is tried.
#[derive(Clone, Debug)]
pub struct Trial {
    /// Checksums on data pages.
    pub data_checksums: bool,
    /// Size of a WAL segment in megabytes.
    pub wal_segment_megabytes: u32,
    /// `off`, `pglz`, `lz4` or `zstd`.
    pub wal_compression: String,
    /// `track_commit_timestamp`.
    pub commit_timestamps: bool,
    /// What the leader does.
    pub workload: Workload,
    /// More settings of the follower's section `[store]`.
    pub store: Vec<(String, String)>,
}

/// What a trial found.
#[derive(Debug)]
pub struct Verdict {
    /// Records from the base backup on, by kind.
    pub records: BTreeMap<String, u64>,
    /// Records that the workload should have written and did not.
    pub missing: Vec<String>,
    /// WAL from the base backup on, in bytes.
    pub wal_bytes: u64,
    /// Store and standby.
    pub comparison: Comparison,
    /// The control; nothing if there are differences.
    pub flips: Option<Flips>,
    /// What took how long.
    pub times: Vec<(&'static str, Duration)>,
}

impl Trial {
    /// Runs it to its end.
    ///
    /// # Errors
    /// A part of it fails. That something differs is no error: the verdict says so.
    pub fn run(&self, scratch: &Scratch, seed: Seed) -> Result<Verdict> {
        let mut times = Times(Vec::new(), Instant::now());
        let store: Vec<_> =
            self.store.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        let mut pair = Pair::start_prepared(scratch, &self.options(), &store, |leader| {
            self.workload.prepare(leader)
        })?;
        times.note("set up");

        let load = self.workload.start_load(&pair.leader)?;
        self.workload.run_round(&pair.leader, scratch, 1)?;
        self.workload.run_twophase(&pair.leader, scratch, 1)?;
        times.note("round 1");
        pair.follower.stop()?;
        pair.leader_agent.stop()?;
        pair.leader_agent.start()?;
        pair.follower.start()?;
        wait_replayed(&pair.follower, pair.flush_position()?)?;
        self.workload.run_twophase(&pair.leader, scratch, 2)?;
        pair.follower.kill()?;
        pair.follower.start()?;
        times.note("restarts");
        self.workload.run_round(&pair.leader, scratch, 2)?;
        load.stop()?;
        self.workload.run_twophase(&pair.leader, scratch, 3)?;
        times.note("round 2");

        pair.leader.stop(StopMode::Fast)?;
        let control = control_file(pair.leader.data_directory())?;
        ensure!(control.state == ClusterState::SHUTDOWNED, "the leader was not shut down");
        let checkpoint = control.check_point;
        // Positions are ends of records: the first behind its begin is the end of it.
        wait_replayed(&pair.follower, checkpoint.advance(1))?;
        pair.follower.stop()?;
        pair.leader_agent.stop()?;
        times.note("replay of the rest");

        let backup = Pair::backup(scratch);
        let wal = pair.leader.wal_directory();
        let hints_are_logged = control.hint_bits_are_logged();
        let recover = Standby::recover_without_checksums;
        let (standby, without_checksums) = thread::scope(|scope| {
            let second = hints_are_logged.then(|| {
                scope.spawn(|| recover(scratch, "second-standby", &backup, &wal, checkpoint))
            });
            let standby = Standby::recover(scratch, "standby", &backup, &wal, checkpoint)?;
            let second = second.map(|thread| thread.join().map_err(|_| anyhow!("it panicked"))?);
            Ok::<_, Error>((standby, second.transpose()?))
        })?;
        times.note("the standby");
        let free_space = without_checksums.as_ref().unwrap_or(&standby);
        let directories = Directories::new(pair.store(), &standby, free_space, checkpoint)?;
        let comparison = directories.compare()?;
        times.note("comparison");
        let flips = if comparison.is_identical() {
            Some(directories.flip_bits(FLIPS, &mut seed.generator())?)
        } else {
            None
        };
        times.note("control");
        let records = records_by_kind(&pair.leader, standby.redo(), checkpoint)?;
        let missing = self.workload.missing(&records);
        let wal_bytes = checkpoint.bytes_since(standby.redo());
        Ok(Verdict { records, missing, wal_bytes, comparison, flips, times: times.0 })
    }

    fn options(&self) -> ClusterOptions {
        let switch = |on: bool| if on { "on" } else { "off" };
        let settings = [
            "wal_keep_size = 16GB",
            // The agents are told by files, and what they are told is durable.
            "synchronous_commit = off",
            "autovacuum_naptime = 2s",
            "max_wal_size = 128MB",
            // A script that hangs is a failure, not a night.
            "statement_timeout = 300s",
            &format!("wal_compression = {}", self.wal_compression),
            &format!("track_commit_timestamp = {}", switch(self.commit_timestamps)),
        ];
        ClusterOptions {
            wal_segment_megabytes: self.wal_segment_megabytes,
            data_checksums: self.data_checksums,
            settings: settings.map(str::to_owned).to_vec(),
            ..ClusterOptions::default()
        }
    }
}

impl Verdict {
    /// # Errors
    /// Something differs; or the workload did less than it should; or fewer than `pages` were compared; or a flipped bit was not found.
    pub fn ensure_identical(&self, pages: u64) -> Result<()> {
        self.comparison.ensure_identical()?;
        ensure!(self.missing.is_empty(), "the workload has not written {:?}", self.missing);
        let compared = self.comparison.pages_compared();
        ensure!(compared >= pages, "{compared} pages were compared, not {pages}");
        self.flips.as_ref().context("no control")?.ensure_all_found(FLIPS)
    }
}

impl fmt::Display for Trial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "checksums {}, segments of {} MB, wal_compression {}, commit timestamps {}, scale {}",
            if self.data_checksums { "on" } else { "off" },
            self.wal_segment_megabytes,
            self.wal_compression,
            if self.commit_timestamps { "on" } else { "off" },
            self.workload.scale
        )
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let records: u64 = self.records.values().sum();
        let megabytes = self.wal_bytes >> 20;
        let kinds = self.records.len();
        writeln!(f, "{records} records of {kinds} kinds, {megabytes} MB of WAL")?;
        writeln!(f, "{}", self.comparison)?;
        match &self.flips {
            Some(flips) => writeln!(f, "{flips}")?,
            None => writeln!(f, "control: not run")?,
        }
        let times =
            self.times.iter().map(|(what, time)| format!("{what} {:.1} s", time.as_secs_f64()));
        write!(f, "{}", times.collect::<Vec<_>>().join(", "))
    }
}

struct Times(Vec<(&'static str, Duration)>, Instant);

impl Times {
    fn note(&mut self, what: &'static str) {
        self.0.push((what, self.1.elapsed()));
        self.1 = Instant::now();
    }
}

/// Waits until the follower has replayed up to `lsn`, or has stopped to replay.
fn wait_replayed(follower: &Agent, lsn: Lsn) -> Result<()> {
    wait_until(&format!("{lsn} is replayed"), PATIENCE, || {
        let state = follower.state_of("replay")?;
        ensure!(state != "stopped", "replay has stopped:\n{}", follower.run_verb("status", &[])?);
        Ok(follower.position("replayed").is_ok_and(|replayed| replayed >= lsn))
    })
}
