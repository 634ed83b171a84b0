//! The smallest replication: a leader with its agent, a follower, and a line between them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use walferry_archive::{Archive, ArchiveReader, OsFiles};
use walfmt::{Lsn, RecordStream, SegmentName, Step, StreamStart, WalFileName};

use crate::agent::{Agent, AgentConfig, Source};
use crate::command::command_line;
use crate::postgres::{BackupWal, Cluster, ClusterOptions};
use crate::process::{PATIENCE, wait_until};
use crate::proxy::Proxy;
use crate::scratch::Scratch;
use crate::standby::control_file;

/// A server with `pgbench`'s tables, its agent, and a follower that replays it.
#[derive(Debug)]
pub struct Pair {
    /// The agent that replays. Dropped, and with it stopped, before those it depends on.
    pub follower: Agent,
    /// What the follower takes for its leader.
    pub proxy: Proxy,
    /// The agent beside the server.
    pub leader_agent: Agent,
    /// The server.
    pub leader: Cluster,
}

impl Pair {
    /// Makes all of it, from `initdb` to a follower that has replayed what there is.
    ///
    /// # Errors
    /// A part of it fails.
    pub fn start(scratch: &Scratch, options: &ClusterOptions, scale: u32) -> Result<Self> {
        // A short time and a small cache: pages are written and read back during a test.
        let store = [("restart_point_interval", "2s"), ("cache_bytes", "8MB")];
        Self::start_prepared(scratch, options, &store, |leader| leader.pgbench_init(scale, &[]))
    }

    /// As [`Pair::start`], with a server that was given what `prepare` gives it, and settings of
    /// the follower's section `[store]`.
    ///
    /// # Errors
    /// A part of it fails.
    pub fn start_prepared(
        scratch: &Scratch,
        options: &ClusterOptions,
        store: &[(&str, &str)],
        prepare: impl FnOnce(&mut Cluster) -> Result<()>,
    ) -> Result<Self> {
        let more: Vec<_> = store.iter().map(|(key, value)| ("store", *key, *value)).collect();
        Self::start_configured(scratch, options, &more, prepare)
    }

    /// As [`Pair::start_prepared`], with settings of any section of the follower's.
    ///
    /// # Errors
    /// A part of it fails.
    pub fn start_configured(
        scratch: &Scratch,
        options: &ClusterOptions,
        more: &[(&str, &str, &str)],
        prepare: impl FnOnce(&mut Cluster) -> Result<()>,
    ) -> Result<Self> {
        let mut leader = Cluster::start_new(scratch, "leader", options)?;
        prepare(&mut leader)?;
        let mut leader_agent = Agent::new(scratch, AgentConfig::leader("leader1", &leader)?)?;
        // A checkpoint that is under way may remove what the agent begins to read at.
        leader.sql("checkpoint")?;
        leader_agent.start()?;
        // What it has not read before the backup's checkpoint, the server may remove then.
        let end = leader.sql("select pg_current_wal_flush_lsn()")?.parse().context("an LSN")?;
        leader_agent.wait_for_position("appended", end, PATIENCE)?;
        if leader.sql("show max_slot_wal_keep_size")? != "-1" {
            let slots = "select count(*) from pg_replication_slots where restart_lsn is not null";
            wait_until("the agent has its slot", PATIENCE, || Ok(leader.sql(slots)? != "0"))?;
        }
        let proxy = Proxy::start(leader_agent.config.replication_port)?;
        let mut config = AgentConfig::follower("follower1", scratch, &leader_agent)?;
        config.source = Source::Peers(vec![proxy.address()]);
        for (section, key, value) in more {
            let value = value.parse::<bool>().map_or_else(|_| (*value).into(), toml::Value::from);
            config.more.push(((*section).into(), (*key).into(), value));
        }
        let mut follower = Agent::new(scratch, config)?;
        let backup = Self::backup(scratch);
        leader.base_backup(&backup, BackupWal::Stream)?;
        follower.bootstrap(&backup)?;
        follower.start()?;
        let pair = Self { follower, proxy, leader_agent, leader };
        pair.catch_up(PATIENCE)?;
        Ok(pair)
    }

    /// The base backup that the follower was made from; it stays as it was taken.
    #[must_use]
    pub fn backup(scratch: &Scratch) -> PathBuf {
        scratch.path().join("backup")
    }

    /// Waits until the follower has replayed all that the server has flushed; gives up to where.
    ///
    /// # Errors
    /// It has not within `limit`.
    pub fn catch_up(&self, limit: Duration) -> Result<Lsn> {
        let end = self.flush_position()?;
        let waited = self.follower.wait_replayed(end, limit);
        waited
            .with_context(|| format!("the leader's agent:\n{}", self.leader_agent.log_tail(20)))?;
        Ok(end)
    }

    /// How far the server has flushed its WAL.
    ///
    /// # Errors
    /// It does not answer.
    pub fn flush_position(&self) -> Result<Lsn> {
        self.leader.sql("select pg_current_wal_flush_lsn()")?.parse().context("an LSN")
    }

    /// Waits until the store has a restart point beyond `lsn`: for that there are checkpoints, more than
    /// one, as not each becomes a restart point.
    ///
    /// # Errors
    /// There is none in good time.
    pub fn restart_point_beyond(&self, lsn: Lsn) -> Result<()> {
        wait_until("the store has a later restart point", PATIENCE, || {
            self.leader.sql("checkpoint")?;
            // It has none for a moment after its start.
            Ok(self.follower.position("restart_point").is_ok_and(|position| position > lsn))
        })
    }

    /// The path of the follower's store.
    #[must_use]
    pub fn store(&self) -> &Path {
        let store = self.follower.config.store.as_ref().expect("a pair's follower has a store");
        &store.data_directory
    }

    /// Ends the server's present segment, and holds every finished segment of the follower's
    /// archive against the one that `archive_command` kept ([`ClusterOptions::keep_segments`]);
    /// gives how many there were. None may be missing between the first and the last.
    ///
    /// # Errors
    /// One differs or is missing; or none is there.
    pub fn compare_archive(&self) -> Result<usize> {
        let kept = self.leader.kept_segments().context("the server keeps no segments")?;
        // The segment that ends with it; where nothing was written since the last switch, the one before.
        let last = self.leader.sql("select pg_walfile_name(pg_switch_wal())")?;
        self.follower.wait_durable(self.flush_position()?, PATIENCE)?;
        wait_until("the last segment is kept", PATIENCE, || Ok(kept.join(&last).exists()))?;

        let archived = archived_segments(&self.follower)?;
        let mut names: Vec<String> = fs::read_dir(kept)
            .context("cannot read the kept segments")?
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| matches!(name.parse(), Ok(WalFileName::Segment(_))) && *name <= last)
            .collect();
        names.sort();
        let first = archived.keys().next().context("the archive is empty")?;
        names.retain(|name| name >= first);
        for name in &names {
            let file = archived.get(name).with_context(|| format!("{name} is not archived"))?;
            let same = unpacked_equals(file, &kept.join(name))?;
            ensure!(same, "{} is not the segment that the server wrote", file.display());
        }
        ensure!(!names.is_empty(), "no finished segment to compare");
        Ok(names.len())
    }
}

/// The segments in an agent's archive: file by name.
///
/// # Errors
/// The archive cannot be read.
pub fn archived_segments(agent: &Agent) -> Result<BTreeMap<String, PathBuf>> {
    let mut found = BTreeMap::new();
    for cluster in fs::read_dir(agent.archive_directory()).context("no archive")? {
        for file in fs::read_dir(cluster?.path()).context("no archive of a cluster")? {
            let path = file?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            if let Some(name) = name.and_then(|name| name.strip_suffix(".zst")) {
                found.insert(name.to_owned(), path);
            }
        }
    }
    Ok(found)
}

/// Where an agent's archive ends, as another process reads it: what it acknowledged last may be less.
/// `server` is as for [`archive_of`].
///
/// # Errors
/// The archive is empty, or it or the server's control file cannot be read.
pub fn end_of_archive(agent: &Agent, server: &Path) -> Result<Lsn> {
    let archive = archive_of(agent, server)?;
    let size = archive.segment_size();
    let (last, _) = archived_segments(agent)?.pop_last().context("a segment")?;
    let last: SegmentName = last.parse()?;
    let mut end = size.start_of(last.number(size).context("a segment's number")?);
    let mut reader = ArchiveReader::open(&archive, last.timeline, end)?;
    while let Some(chunk) = reader.next(Lsn(u64::MAX))? {
        end = chunk.end;
    }
    Ok(end)
}

/// Where the last whole record ends that an agent's archive has before `bound`. `server` is as for
/// [`archive_of`].
///
/// # Errors
/// As for [`end_of_archive`].
pub fn last_record_end(agent: &Agent, server: &Path, bound: Lsn) -> Result<Lsn> {
    let archive = archive_of(agent, server)?;
    let segment_size = archive.segment_size();
    let (first, _) = archived_segments(agent)?.pop_first().context("a segment")?;
    let first: SegmentName = first.parse()?;
    let number = first.number(segment_size).context("a segment's number")?;
    let lsn = segment_size.start_of(number);
    let mut reader = ArchiveReader::open(&archive, first.timeline, lsn)?;
    let system_identifier = Some(archive.system_identifier());
    let mut stream = RecordStream::new(StreamStart { lsn, segment_size, system_identifier });
    while let Some(chunk) = reader.next(bound)? {
        stream.push(chunk.wal);
        while let Step::Record(_) = stream.poll() {}
    }
    Ok(stream.record_end())
}

/// An agent's archive, opened for reading. `server` is the data directory of the server whose WAL it is.
///
/// # Errors
/// The archive, or the server's control file, cannot be read.
pub fn archive_of(agent: &Agent, server: &Path) -> Result<Archive> {
    let control = control_file(server)?;
    let (system, size) = (control.system_identifier, control.segment_size);
    Ok(Archive::open(Arc::new(OsFiles), agent.archive_directory(), system, size)?)
}

/// Whether the `zstd` program unpacks `archived` to exactly `segment`.
///
/// # Errors
/// There is no `zstd`, it finds the file damaged, or `segment` cannot be read.
pub fn unpacked_equals(archived: &Path, segment: &Path) -> Result<bool> {
    let mut zstd = Command::new("zstd");
    zstd.args(["-q", "-d", "-c"]).arg(archived).stdin(Stdio::null());
    let output = zstd.output().context("cannot start zstd")?;
    ensure!(
        output.status.success(),
        "{}: {}",
        command_line(&zstd),
        String::from_utf8_lossy(&output.stderr)
    );
    let expected = fs::read(segment).with_context(|| segment.display().to_string())?;
    Ok(output.stdout == expected)
}
