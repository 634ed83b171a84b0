//! Speed, as a ratio to PostgreSQL on the same machine, in the same run, on the same WAL.
//!
//! `integration/bench.sh ship` is in `ship.rs`, `integration/bench.sh decode` in `decode.rs`,
//! `integration/bench.sh waldump` in `waldump.rs`.
//! `integration/bench.sh replay` builds and runs it. For each workload a server writes WAL once. Then
//! PostgreSQL and walferry replay it in turn, from copies of one base backup:
//!
//! ```text
//!              reads                      time
//! PostgreSQL   pg_wal, local              from "redo starts" to "redo done" in its log
//! walferry     its compressed archive     from the first record to the last one applied,
//!                                         and then until all of it is durable
//! ```
//!
//! Both have the same memory for pages (`shared_buffers` is `cache_bytes`), and both find their files
//! in the page cache: they were copied and synced right before. PostgreSQL is a server in archive
//! recovery with `hot_standby = off`, all else is as installed.
#![forbid(unsafe_code)]

mod decode;
mod mixed;
mod ship;
mod waldump;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use integration::command::output_of;
use integration::process::wait_until;
use integration::segments::end_of;
use integration::{
    Agent, AgentConfig, BackupWal, Binaries, Cluster, ClusterOptions, Scratch, Segments, Source,
    StopMode, StoreConfig,
};
use walferry_archive::{Archive, ArchiveWriter, OsFiles, WriterOptions};
use walfmt::control::ControlFile;
use walfmt::{Lsn, SegmentSize, Timeline};

const MEGABYTE: f64 = 1024.0 * 1024.0;
/// How long one replay may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// WAL is archived in pieces of this size, as a tail does under load.
const PIECE: usize = 128 << 10;

/// Record header, main data header, `CheckPoint` of 15.
const SHUTDOWN_CHECKPOINT_BYTES: u32 = 24 + 2 + 88;

#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Replay of a base backup's WAL.
    Replay(ReplayArguments),
    /// From the leader to a follower's disk.
    Ship(ship::ShipArguments),
    /// Row changes.
    Decode(decode::DecodeArguments),
    /// WAL as text.
    Waldump(waldump::WaldumpArguments),
}

#[derive(Debug, clap::Args)]
struct ReplayArguments {
    /// How often each side replays each workload.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Memory for pages, on both sides.
    #[arg(long, default_value_t = 1024)]
    cache_megabytes: u32,
    /// Threads that apply records.
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// How large tables are, and how long the workload: 100000 rows of pgbench's accounts, 3000
    /// small transactions of each of 8 connections, or 400 larger ones, each.
    #[arg(long, default_value_t = 20)]
    scale: u32,
    /// Only this workload.
    #[arg(long)]
    workload: Option<String>,
    /// Write the workload and keep its files here, or take them from here; for profiling.
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Only walferry.
    #[arg(long)]
    alone: bool,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().what {
        What::Replay(arguments) => replay(&arguments),
        What::Ship(arguments) => ship::ship(&arguments),
        What::Decode(arguments) => decode::decode(&arguments),
        What::Waldump(arguments) => waldump::waldump(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:?}");
            ExitCode::FAILURE
        }
    }
}

fn replay(arguments: &ReplayArguments) -> Result<()> {
    let workloads: Vec<_> = WORKLOADS
        .iter()
        .filter(|workload| arguments.workload.as_ref().is_none_or(|only| only == workload.name))
        .collect();
    ensure!(!workloads.is_empty(), "no such workload");
    for workload in workloads {
        let scratch = Scratch::new()?;
        let material = Material::make(&scratch, workload, arguments)?;
        println!(
            "{}: {:.0} MB of WAL from {} to {}, {:.0} MB archived; data directory {:.0} MB; \
             cache {} MB, {} workers",
            workload.name,
            material.wal_bytes() as f64 / MEGABYTE,
            material.from,
            material.to,
            size_of(&material.archive)? as f64 / MEGABYTE,
            size_of(&material.store)? as f64 / MEGABYTE,
            arguments.cache_megabytes,
            arguments.workers,
        );
        if !workload.is_compared {
            material.restart_points(&scratch, arguments)?;
            material.kill(&scratch, arguments)?;
            continue;
        }
        let (mut theirs, mut ours) = (Vec::new(), Vec::new());
        for run in 1..=arguments.runs {
            if !arguments.alone {
                theirs.push(material.postgresql(&scratch, arguments)?);
                println!("  {run} PostgreSQL {}", theirs[run - 1]);
            }
            ours.push(material.walferry(&scratch, arguments)?);
            println!("  {run} walferry   {}", ours[run - 1]);
        }
        if arguments.alone {
            continue;
        }
        let median = |runs: &[Run], field: fn(&Run) -> f64| -> f64 {
            let mut values: Vec<f64> = runs.iter().map(field).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        let postgresql = median(&theirs, |run| run.applied);
        let applied = postgresql / median(&ours, |run| run.applied);
        let durable = postgresql / median(&ours, |run| run.durable);
        println!("RATIO applied {} {applied:.2}", workload.name);
        println!("RATIO durable {} {durable:.2}", workload.name);
        material.kill(&scratch, arguments)?;
    }
    Ok(())
}

struct Workload {
    name: &'static str,
    /// Whether both sides replay it in turn; if not, it is for interruptions.
    is_compared: bool,
    /// Before the base backup.
    prepare: fn(&Cluster, &ReplayArguments) -> Result<()>,
    /// What is replayed.
    run: fn(&Scratch, &Cluster, &ReplayArguments) -> Result<()>,
}

const WORKLOADS: [Workload; 4] = [
    Workload {
        name: "tpcb",
        is_compared: true,
        prepare: |leader, arguments| leader.pgbench_init(arguments.scale, &[]),
        run: |_, leader, arguments| {
            let transactions = (arguments.scale * 3000).to_string();
            let load = ["-n", "-M", "prepared", "-c", "8", "-t", &transactions];
            leader.pgbench_run(&load).map(drop)
        },
    },
    Workload {
        name: "bulk",
        is_compared: true,
        prepare: |_, _| Ok(()),
        run: |_, leader, arguments| {
            let script = BULK.replace("ROWS", &(arguments.scale * 100_000).to_string());
            // One by one: VACUUM does not run among others.
            script.split_terminator(';').try_for_each(|statement| leader.sql(statement).map(drop))
        },
    },
    Workload {
        name: "mixed",
        is_compared: true,
        prepare: |leader, arguments| mixed::prepare(leader, arguments.scale),
        run: |scratch, leader, arguments| mixed::run(scratch, leader, arguments.scale),
    },
    Workload {
        name: "checkpoints",
        is_compared: false,
        prepare: |leader, arguments| leader.pgbench_init(arguments.scale, &[]),
        run: |_, leader, arguments| {
            // As in TPC-B, half as much, but for a checkpoint every tenth of the way, while it runs.
            let transactions = (arguments.scale * 150).to_string();
            let load = ["-n", "-M", "prepared", "-c", "8", "-t", &transactions];
            for _ in 0..10 {
                thread::scope(|scope| {
                    let loading = scope.spawn(|| leader.pgbench_run(&load));
                    thread::sleep(Duration::from_millis(300));
                    leader.sql("checkpoint")?;
                    loading.join().expect("did not panic").map(drop)
                })?;
            }
            Ok(())
        },
    },
];

/// Rows in order and out of order, indexes built afterwards, and maintained while loading.
const BULK: &str = "
create table plain (id bigint, at timestamptz, name text, amount numeric);
insert into plain select i, now() + i * interval '1 second', md5(i::text), i % 9973 from generate_series(1, ROWS) i;
create unique index on plain (id);
create index on plain (name);
create table loaded (id bigint primary key, name text);
create index on loaded (name);
insert into loaded select i, md5(i::text) from generate_series(1, ROWS / 3) i;
vacuum plain;
create table copied as select * from plain;
create index on copied (amount, at);
";

/// A base backup that is a store, and the WAL that follows, as segments and as an archive.
struct Material {
    store: PathBuf,
    wal: PathBuf,
    archive: PathBuf,
    from: Lsn,
    to: Lsn,
}

impl Material {
    fn make(scratch: &Scratch, workload: &Workload, arguments: &ReplayArguments) -> Result<Self> {
        let folder = match &arguments.keep {
            Some(keep) => keep.join(workload.name),
            None => scratch.path().join(workload.name),
        };
        let ends = folder.join("ends");
        let mut material = Self {
            store: folder.join("store"),
            wal: folder.join("wal"),
            archive: folder.join("archive"),
            from: Lsn::INVALID,
            to: Lsn::INVALID,
        };
        if !ends.exists() {
            material.write(scratch, workload, arguments, &folder)?;
            fs::write(&ends, format!("{} {}", material.from, material.to))?;
        }
        let text = fs::read_to_string(&ends)?;
        let (from, to) = text.split_once(' ').context("two positions")?;
        (material.from, material.to) = (from.parse()?, to.parse()?);
        Ok(material)
    }

    fn write(
        &mut self,
        scratch: &Scratch,
        workload: &Workload,
        arguments: &ReplayArguments,
        folder: &Path,
    ) -> Result<()> {
        fs::create_dir_all(folder)?;
        let options = ClusterOptions {
            fsync: false,
            settings: vec![
                "wal_keep_size = 100GB".to_owned(),
                "shared_buffers = 1GB".to_owned(),
                // As anybody sets it whose server is busy: a checkpoint now and then.
                "max_wal_size = 8GB".to_owned(),
                "checkpoint_timeout = 15min".to_owned(),
            ],
            ..ClusterOptions::default()
        };
        let mut leader = Cluster::start_new(scratch, "leader", &options)?;
        (workload.prepare)(&leader, arguments)?;
        let backup = scratch.path().join("backup");
        leader.base_backup(&backup, BackupWal::Stream)?;
        (workload.run)(scratch, &leader, arguments)?;
        leader.stop(StopMode::Fast)?;

        let control =
            ControlFile::from_bytes(&fs::read(leader.data_directory().join("global/pg_control"))?)?;
        let config = agent_config("bootstrap", scratch.path().join("bootstrap-store"), arguments)?;
        let agent = Agent::new(scratch, config)?;
        agent.bootstrap(&backup)?;
        fs::remove_dir_all(&backup)?;
        copy(&scratch.path().join("bootstrap-store"), &self.store)?;
        copy(agent.archive_directory(), &self.archive)?;
        copy(&leader.wal_directory(), &self.wal)?;
        fs::remove_dir_all(leader.data_directory())?;
        fs::remove_dir_all(scratch.path().join("bootstrap-store"))?;

        let store = ControlFile::from_bytes(&fs::read(self.store.join("global/pg_control"))?)?;
        self.from = store.check_point_copy.redo;
        self.to = self.fill_archive(&control)?;
        Ok(())
    }

    /// Archives what follows the backup's own WAL, up to the end of the leader's last record.
    fn fill_archive(&self, control: &ControlFile) -> Result<Lsn> {
        let size: SegmentSize = control.segment_size;
        let timeline = Timeline(1);
        let identifier = control.system_identifier;
        let archive = Archive::open(Arc::new(OsFiles), &self.archive, identifier, size)?;
        let segments = Segments::find(&self.wal, timeline, size)?;
        let mut writer =
            ArchiveWriter::open(&archive, timeline, segments.start(), WriterOptions::default())?;
        // The last record is the checkpoint of the shutdown; zeros follow.
        let end = end_of(control.check_point, SHUTDOWN_CHECKPOINT_BYTES, size);
        let mut position = writer.content_end();
        segments.read(position, end, PIECE, |piece| {
            writer.append(position, piece)?;
            writer.flush()?;
            position = position.advance(piece.len() as u64);
            Ok(true)
        })?;
        writer.sync()?;
        Ok(control.check_point)
    }

    const fn wal_bytes(&self) -> u64 {
        self.to.bytes_since(self.from)
    }

    fn postgresql(&self, scratch: &Scratch, arguments: &ReplayArguments) -> Result<Run> {
        let directory = scratch.path().join("standby");
        copy(&self.store, &directory)?;
        fs::remove_dir_all(directory.join("pg_wal"))?;
        copy(&self.wal, &directory.join("pg_wal"))?;
        own(&directory, scratch)?;
        let mut standby = Cluster::at(scratch, "standby", &directory, Binaries::find()?)?;
        standby.configure(&[
            "restore_command = '/bin/false'",
            "hot_standby = off",
            "fsync = on",
            &format!("shared_buffers = {}MB", arguments.cache_megabytes),
        ])?;
        settle_disk(&directory)?;
        let _ = fs::remove_file(standby.log_path());
        standby.spawn()?;
        let mut memory = 0;
        let done = wait_until("PostgreSQL has replayed", PATIENCE, || {
            if let Some(postmaster) = standby.pid() {
                let processes = integration::process::children_of(postmaster);
                memory = memory.max(processes.into_iter().map(peak_memory).max().unwrap_or(0));
            }
            let log = fs::read_to_string(standby.log_path()).unwrap_or_default();
            ensure!(!log.contains("FATAL"), "{}", standby.log_tail(20));
            Ok(log.contains("redo done at"))
        });
        done.with_context(|| standby.log_tail(20))?;
        let log = fs::read_to_string(standby.log_path())?;
        standby.kill()?;
        fs::remove_dir_all(&directory)?;
        // "redo done at 0/... system usage: CPU: user: 1.00 s, system: 0.10 s, elapsed: 1.20 s"
        let number = |name: &str| -> Result<f64> {
            let line =
                log.lines().find(|line| line.contains("redo done at")).context("redo done")?;
            let (_, rest) = line.split_once(name).context("a number")?;
            Ok(rest.trim_start().split(' ').next().unwrap_or_default().parse()?)
        };
        let applied = number("elapsed:")?;
        let processor = number("user:")? + number("system:")?;
        Ok(Run {
            applied,
            durable: f64::NAN,
            processor,
            memory,
            bytes: self.wal_bytes(),
            pause: f64::NAN,
        })
    }

    fn walferry(&self, scratch: &Scratch, arguments: &ReplayArguments) -> Result<Run> {
        self.run(self.agent(scratch, arguments, &[])?)
    }

    /// Lets an agent replay all, and removes what it had.
    fn run(&self, mut agent: Agent) -> Result<Run> {
        agent.spawn()?;
        let line = self.wait_caught_up(&agent)?;
        let memory = agent.pid().map_or(0, peak_memory);
        let processor = agent.pid().map_or(Ok(0.0), processor_seconds)?;
        let stopping = Instant::now();
        agent.stop()?;
        let closing = stopping.elapsed().as_secs_f64();
        let applied = field(&line, "seconds")?;
        let pause = field(&line, "longest_pause")?;
        self.remove(&agent)?;
        Ok(Run {
            applied,
            durable: applied + closing,
            processor,
            memory,
            bytes: self.wal_bytes(),
            pause,
        })
    }

    /// What restart points cost: as rarely as it is usual, and as often as the leader's checkpoints
    /// allow.
    fn restart_points(&self, scratch: &Scratch, arguments: &ReplayArguments) -> Result<()> {
        for interval in ["1h", "100ms"] {
            let interval =
                ("store".to_owned(), "restart_point_interval".to_owned(), interval.into());
            let mut agent = self.agent(scratch, arguments, &[interval])?;
            agent.spawn()?;
            let line = self.wait_caught_up(&agent)?;
            let log = fs::read_to_string(agent.log_path())?;
            let (before, _) = log.split_once("caught up with the archive").context("the end")?;
            println!(
                "  {} restart points on the way: applied in {:.2} s, longest pause {:.0} ms",
                before.matches("restart point").count(),
                field(&line, "seconds")?,
                1000.0 * field(&line, "longest_pause")?,
            );
            agent.stop()?;
            self.remove(&agent)?;
        }
        Ok(())
    }

    /// What a kill at full load costs.
    fn kill(&self, scratch: &Scratch, arguments: &ReplayArguments) -> Result<()> {
        let often = ("store".to_owned(), "restart_point_interval".to_owned(), "100ms".into());
        let mut agent = self.agent(scratch, arguments, &[often])?;
        agent.spawn()?;
        let half = self.from.advance(self.wal_bytes() / 2);
        agent.wait_for_position("replayed", half, PATIENCE)?;
        agent.kill()?;
        let restarting = Instant::now();
        agent.spawn()?;
        agent.wait_for_position("replayed", half, PATIENCE)?;
        println!(
            "  kill -9 behind half of it, while it replays: started again, it is behind half of it \
             after {:.2} s",
            restarting.elapsed().as_secs_f64()
        );
        agent.kill()?;
        self.remove(&agent)
    }

    fn agent(
        &self,
        scratch: &Scratch,
        arguments: &ReplayArguments,
        more: &[(String, String, toml::Value)],
    ) -> Result<Agent> {
        let store = scratch.path().join("bench-store");
        copy(&self.store, &store)?;
        own(&store, scratch)?;
        let mut config = agent_config("bench", store, arguments)?;
        config.more.extend_from_slice(more);
        let agent = Agent::new(scratch, config)?;
        let archive = agent.archive_directory();
        fs::remove_dir_all(archive)?;
        copy(&self.archive, archive)?;
        own(archive, scratch)?;
        settle_disk(archive)?;
        let _ = fs::remove_file(agent.log_path());
        Ok(agent)
    }

    fn remove(&self, agent: &Agent) -> Result<()> {
        let store = agent.config.store.as_ref().context("a store")?;
        fs::remove_dir_all(&store.data_directory)?;
        fs::remove_dir_all(agent.archive_directory())?;
        Ok(())
    }

    fn wait_caught_up(&self, agent: &Agent) -> Result<String> {
        let mut line = String::new();
        wait_until("walferry has replayed", PATIENCE, || {
            let log = fs::read_to_string(agent.log_path()).unwrap_or_default();
            ensure!(!log.contains("ERROR"), "{log}");
            if let Some(found) =
                log.lines().find(|line| line.contains("caught up with the archive"))
            {
                line = found.to_owned();
            }
            Ok(!line.is_empty())
        })?;
        let to: Lsn = word(&line, "to")?.parse()?;
        ensure!(to > self.to, "replay ended at {to}, before the last record at {}", self.to);
        Ok(line)
    }
}

/// One replay: seconds, bytes.
struct Run {
    applied: f64,
    durable: f64,
    processor: f64,
    memory: u64,
    bytes: u64,
    pause: f64,
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "applied {:6.2} s ({:4.0} MB/s)",
            self.applied,
            self.bytes as f64 / MEGABYTE / self.applied
        )?;
        if self.durable.is_finite() {
            write!(f, ", durable {:6.2} s", self.durable)?;
        }
        write!(f, ", processor {:6.2} s", self.processor)?;
        write!(f, ", peak memory {:4.0} MB", self.memory as f64 / MEGABYTE)?;
        if self.pause.is_finite() {
            write!(f, ", longest pause {:.0} ms", 1000.0 * self.pause)?;
        }
        Ok(())
    }
}

fn agent_config(name: &str, store: PathBuf, arguments: &ReplayArguments) -> Result<AgentConfig> {
    Ok(AgentConfig {
        name: name.to_owned(),
        // Nobody is there: replay lives from the archive.
        source: Source::Peers(vec!["127.0.0.1:9".to_owned()]),
        store: Some(StoreConfig {
            data_directory: store,
            workers: arguments.workers,
            cache_bytes: format!("{}MB", arguments.cache_megabytes),
        }),
        replication_port: integration::free_port()?,
        metrics_port: integration::free_port()?,
        more: Vec::new(),
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    output_of(Command::new("cp").arg("-a").arg(from).arg(to)).map(drop)
}

/// Gives a copied directory to whom the scratch folder's servers run as.
fn own(directory: &Path, scratch: &Scratch) -> Result<()> {
    let owned = scratch.directory("owned")?;
    let mut reference = std::ffi::OsString::from("--reference=");
    reference.push(owned);
    output_of(Command::new("chown").arg("-R").arg(reference).arg(directory)).map(drop)
}

/// Copies are on disk before the clock runs, so that no side pays for them.
fn settle_disk(directory: &Path) -> Result<()> {
    rustix::fs::syncfs(fs::File::open(directory)?)?;
    thread::sleep(Duration::from_millis(200));
    Ok(())
}

fn size_of(directory: &Path) -> Result<u64> {
    let output = output_of(Command::new("du").args(["-sb"]).arg(directory))?;
    Ok(output.split_whitespace().next().context("du says nothing")?.parse()?)
}

/// `VmHWM`, in bytes.
fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kilobytes.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0) << 10
}

/// User and system time so far. Clock ticks are hundredths of a second.
fn processor_seconds(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, rest) = stat.rsplit_once(')').context("a name in brackets")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}

fn word<'a>(line: &'a str, name: &str) -> Result<&'a str> {
    let found = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    match found {
        Some(value) => Ok(value),
        None => bail!("no {name} in: {line}"),
    }
}

fn field(line: &str, name: &str) -> Result<f64> {
    Ok(word(line, name)?.parse()?)
}
