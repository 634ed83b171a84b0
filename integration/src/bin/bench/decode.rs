//! Row changes: end to end against logical decoding of the server itself, and what they cost replay.
//!
//! `integration/bench.sh decode` prints, for each workload, on the same WAL and in one run:
//!
//! ```text
//! pgoutput,          pg_recvlogical --start --endpos from a copied slot, to /dev/null: the whole process;
//! test_decoding      the leader, at wal_level=logical, has nothing else to do
//! end to end         from the start of an agent with [decode], until `walferry decode --follow --until`, which
//!                    runs beside it, has printed the last commit, to /dev/null, and ends; and the same from
//!                    the first record that is replayed
//! replay             PostgreSQL's redo; ours without [decode]; ours with it, and nobody who reads
//! reader             `walferry decode` of a finished spool, to /dev/null: the whole process
//! ```
//!
//! A row is an insert, an update or a delete; both sides must tell as many of each. Behind each number
//! stands the load of the machine in the minute that it was measured in, its own included.
//!
//! walferry's side begins with a store that was consistent with `[decode]` once, as a follower has it: rows
//! are captured from there on.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use integration::process::wait_until;
use integration::{Agent, BackupWal, Cluster, ClusterOptions, Scratch, StopMode};
use walfmt::Lsn;
use walfmt::control::ControlFile;

use crate::{MEGABYTE, Material, PATIENCE, ReplayArguments, Run, copy, field, own, size_of};

#[derive(Debug, clap::Args)]
pub(crate) struct DecodeArguments {
    /// How often each side does each thing.
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Memory for pages, on both sides of replay.
    #[arg(long, default_value_t = 1024)]
    cache_megabytes: u32,
    /// Threads that apply records.
    #[arg(long, default_value_t = 2)]
    workers: u32,
    /// How long the workload is: about 120000 changed rows each.
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// Only this workload.
    #[arg(long)]
    workload: Option<String>,
    /// Keep store, archive and spool here; for profiling.
    #[arg(long)]
    keep: Option<PathBuf>,
}

impl DecodeArguments {
    const fn replay(&self) -> ReplayArguments {
        ReplayArguments {
            runs: self.runs,
            cache_megabytes: self.cache_megabytes,
            workers: self.workers,
            scale: self.scale,
            workload: None,
            keep: None,
            alone: false,
        }
    }
}

struct Workload {
    name: &'static str,
    /// Before the slots and the base backup.
    prepare: fn(&Cluster, u32) -> Result<()>,
    run: fn(&Scratch, &Cluster, u32) -> Result<()>,
}

const WORKLOADS: [Workload; 2] = [
    Workload {
        name: "tpcb",
        prepare: |leader, scale| {
            leader.pgbench_init(scale, &[])?;
            leader.sql(&ORDERS.replace("ROWS", &(scale * 10_000).to_string())).map(drop)
        },
        run: |scratch, leader, scale| {
            let script = ORDER.replace("ROWS", &(scale * 10_000).to_string());
            let script = scratch.file("order.sql", script)?;
            let script = format!("{}@1", script.to_str().context("a UTF-8 path")?);
            let transactions = (scale * 4000).to_string();
            let mut load = vec!["-n", "-M", "prepared", "-c", "8", "-t", &transactions];
            load.extend(["-b", "tpcb-like@3", "-f", &script]);
            leader.pgbench_run(&load).map(drop)
        },
    },
    Workload {
        name: "bulk",
        prepare: |leader, _| leader.sql(EVENTS).map(drop),
        run: |scratch, leader, scale| {
            let script = scratch.file("bulk.sql", bulk(scale))?;
            leader.endpoint().sql_file("postgres", &script).map(drop)
        },
    },
];

/// Rows of several types beside pgbench's tables.
const ORDERS: &str = "
create table orders (id bigserial primary key, customer int, at timestamptz, amount numeric(12,2), state text,
    note text, extra jsonb);
insert into orders (customer, at, amount, state, note, extra) select i % 1000, now(), i / 7.0, 'new', md5(i::text),
    jsonb_build_object('source', 'web', 'items', i % 10) from generate_series(1, ROWS) i;
";

/// A fourth of pgbench's transactions.
const ORDER: &str = r#"
\set customer random(1, 1000)
\set other random(1, ROWS)
begin;
insert into orders (customer, at, amount, state, note, extra) values (:customer, now(), :other / 100.0, 'new',
    'a note for customer ' || :customer::text, jsonb_build_object('source', 'app', 'items', :customer::int));
update orders set state = 'paid', at = now(), amount = amount + 1 where id = :other;
update orders set extra = extra || '{"seen": true}' where id = :customer;
end;
"#;

const EVENTS: &str = "
create table events (id bigint primary key, customer int, at timestamptz, amount numeric, name text, extra jsonb)
";

/// Statements that insert, or change, from 1000 to 100000 rows; each is a transaction.
fn bulk(scale: u32) -> String {
    let mut script = String::new();
    let mut next: u32 = 1;
    for _ in 0..scale {
        // 60000 rows come, as many are changed, some go.
        for rows in [1000; 10].into_iter().chain([10_000, 10_000, 30_000]) {
            let last = next + rows - 1;
            script.push_str(&format!(
                "insert into events select i, i % 5000, now() + i * interval '1 second', i / 17.0, md5(i::text), \
                 jsonb_build_object('kind', 'seen', 'weight', i % 100) from generate_series({next}, {last}) i;\n\
                 update events set amount = amount + 1, name = name || '!' where id between {next} and {last};\n\
                 delete from events where id between {next} and {};\n",
                next + rows / 50
            ));
            next += rows;
        }
    }
    script.push_str(&format!(
        "update events set customer = customer + 1 where id between {} and {next};\n",
        next.saturating_sub(100_000)
    ));
    script
}

/// The table whose row is the last one that the workload changes.
const END: &str = "bench_end";

pub(crate) fn decode(arguments: &DecodeArguments) -> Result<()> {
    let wanted =
        |workload: &&Workload| arguments.workload.as_ref().is_none_or(|only| only == workload.name);
    let workloads: Vec<_> = WORKLOADS.iter().filter(wanted).collect();
    ensure!(!workloads.is_empty(), "no such workload");
    for workload in workloads {
        let scratch = Scratch::new()?;
        let bench = Bench::make(&scratch, workload, arguments)?;
        bench.compare(workload.name, arguments.runs)?;
        if let Some(keep) = &arguments.keep {
            let keep = keep.join(workload.name);
            fs::create_dir_all(&keep)?;
            copy(&bench.ours.store, &keep.join("store"))?;
            copy(&bench.ours.archive, &keep.join("archive"))?;
            copy(&bench.begun_rows, &keep.join("rows-begun"))?;
            copy(&bench.rows, &keep.join("rows"))?;
        }
    }
    Ok(())
}

/// A leader with what it has written, and what both sides begin with.
struct Bench {
    scratch: Scratch,
    arguments: ReplayArguments,
    leader: Cluster,
    /// Where the workload ends.
    end: Lsn,
    /// With the backup as it is, for PostgreSQL's redo.
    theirs: Material,
    /// With the store that has captured rows already.
    ours: Material,
    /// That store's spool.
    begun_rows: PathBuf,
    /// Where the spool of a run is.
    rows: PathBuf,
}

/// How many rows were told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    inserts: u64,
    updates: u64,
    deletes: u64,
}

impl Counts {
    const fn rows(self) -> u64 {
        self.inserts + self.updates + self.deletes
    }
}

impl Bench {
    fn make(scratch: &Scratch, workload: &Workload, arguments: &DecodeArguments) -> Result<Self> {
        let replay = arguments.replay();
        let options = ClusterOptions {
            fsync: false,
            settings: [
                "wal_level = logical",
                "wal_keep_size = 100GB",
                "shared_buffers = 1GB",
                "max_wal_size = 8GB",
                "checkpoint_timeout = 1h",
                "max_replication_slots = 20",
            ]
            .map(str::to_owned)
            .to_vec(),
            ..ClusterOptions::default()
        };
        let mut leader = Cluster::start_new(scratch, "leader", &options)?;
        (workload.prepare)(&leader, arguments.scale)?;
        leader.sql(&format!("create table {END} (id int)"))?;
        leader.sql("create publication everything for all tables")?;
        for plugin in ["pgoutput", "test_decoding"] {
            leader.sql(&format!(
                "select pg_create_logical_replication_slot('{plugin}', '{plugin}')"
            ))?;
        }
        let backup = scratch.path().join("backup");
        leader.base_backup(&backup, BackupWal::Stream)?;
        (workload.run)(scratch, &leader, arguments.scale)?;
        leader.sql(&format!("insert into {END} values (1)"))?;
        let end: Lsn = leader.sql("select pg_current_wal_insert_lsn()")?.parse()?;
        // So that there is WAL behind it.
        leader.sql("select pg_logical_emit_message(false, 'bench', 'end')")?;
        leader.stop(StopMode::Fast)?;
        let control =
            ControlFile::from_bytes(&fs::read(leader.data_directory().join("global/pg_control"))?)?;

        let material = |name: &str| Material {
            store: scratch.path().join(name),
            wal: scratch.path().join("wal"),
            archive: scratch.path().join("archive"),
            from: Lsn::INVALID,
            to: Lsn::INVALID,
        };
        let mut bench = Self {
            scratch: scratch.clone(),
            arguments: replay,
            leader,
            end,
            theirs: material("store-theirs"),
            ours: material("store-ours"),
            begun_rows: scratch.path().join("rows-begun"),
            rows: scratch.path().join("rows"),
        };
        bench.begin(&backup)?;
        fs::remove_dir_all(&backup)?;
        copy(&bench.leader.wal_directory(), &bench.ours.wal)?;
        bench.ours.to = bench.ours.fill_archive(&control)?;
        bench.theirs.to = bench.ours.to;
        for material in [&mut bench.theirs, &mut bench.ours] {
            let control =
                ControlFile::from_bytes(&fs::read(material.store.join("global/pg_control"))?)?;
            material.from = control.check_point_copy.redo;
        }
        ensure!(bench.ours.from == bench.theirs.from, "both do not replay the same WAL");
        // It has only slots to serve from here on.
        bench.leader.arguments.extend(["-c", "autovacuum=off"].map(str::to_owned));
        bench.leader.start()?;
        Ok(bench)
    }

    /// The store from the backup, once as it is, and once more when rows are captured.
    fn begin(&self, backup: &Path) -> Result<()> {
        let store = self.scratch.path().join("begin-store");
        let rows = self.scratch.directory("begin-rows")?;
        let mut config = crate::agent_config("begin", store.clone(), &self.arguments)?;
        config.more.extend(capturing(&rows)?);
        let mut agent = Agent::new(&self.scratch, config)?;
        agent.bootstrap(backup)?;
        copy(&store, &self.theirs.store)?;
        agent.start()?;
        agent.wait_for_state("decode", "streaming")?;
        agent.stop()?;
        copy(&store, &self.ours.store)?;
        copy(&rows, &self.begun_rows)?;
        copy(agent.archive_directory(), &self.ours.archive)?;
        fs::remove_dir_all(&store)?;
        Ok(())
    }

    fn compare(&self, name: &str, runs: usize) -> Result<()> {
        println!(
            "{name}: {:.0} MB of WAL from {} to {}; data directory {:.0} MB; {} workers",
            self.ours.wal_bytes() as f64 / MEGABYTE,
            self.ours.from,
            self.ours.to,
            size_of(&self.ours.store)? as f64 / MEGABYTE,
            self.arguments.workers,
        );
        self.capture()?; // for those who count
        let (theirs, ours) = (self.count_theirs()?, self.count_ours()?);
        println!(
            "  both tell {} inserts, {} updates, {} deletes; spool {:.0} MB",
            ours.inserts,
            ours.updates,
            ours.deletes,
            size_of(&self.rows)? as f64 / MEGABYTE
        );
        ensure!(theirs == ours, "test_decoding tells {theirs:?}, walferry {ours:?}");
        let rows = ours.rows() as f64;
        let mut all: [Vec<f64>; 8] = Default::default();
        for run in 1..=runs {
            let mut note = |at: usize, what: &str, seconds: f64| -> Result<()> {
                let rate = rows / seconds;
                println!("  {run} {what:<34} {seconds:6.2} s {rate:8.0} rows/s  {}", load()?);
                all[at].push(seconds);
                Ok(())
            };
            note(0, "pgoutput", self.server_decodes("pgoutput")?)?;
            note(1, "test_decoding", self.server_decodes("test_decoding")?)?;
            let (process, records) = self.end_to_end()?;
            note(2, "walferry end to end", process)?;
            note(3, "walferry from the first record", records)?;
            note(
                4,
                "PostgreSQL redo",
                self.theirs.postgresql(&self.scratch, &self.arguments)?.applied,
            )?;
            let off = self.ours.walferry(&self.scratch, &self.arguments)?;
            note(5, "walferry replay, decode off", off.applied)?;
            let on = self.capture()?;
            note(6, "walferry replay, decode on", on.applied)?;
            println!("      processor time: off {:.2} s, on {:.2} s", off.processor, on.processor);
            note(7, "walferry reader alone", self.read_spool()?)?;
        }
        let medians = all.map(|mut seconds| {
            seconds.sort_by(f64::total_cmp);
            seconds[seconds.len() / 2]
        });
        let [pgoutput, test_decoding, process, records, redo, off, on, _] = medians;
        println!("RATIO decode-vs-pgoutput {name} {:.2}", pgoutput / process);
        println!("RATIO decode-vs-test_decoding {name} {:.2}", test_decoding / process);
        println!("RATIO decode-records-vs-pgoutput {name} {:.2}", pgoutput / records);
        println!("RATIO decode-records-vs-test_decoding {name} {:.2}", test_decoding / records);
        println!("RATIO replay-decode-off {name} {:.2}", redo / off);
        println!("RATIO replay-decode-on {name} {:.2}", redo / on);
        println!("RATIO replay-on-vs-off {name} {:.2}", off / on);
        Ok(())
    }

    /// `pg_recvlogical` from the beginning of a slot up to the workload's end.
    fn receive(&self, plugin: &str) -> Result<Command> {
        let copied = format!("select pg_copy_logical_replication_slot('{plugin}', 'copied')");
        self.leader.sql(&copied)?;
        let mut command = self.leader.endpoint().command("pg_recvlogical");
        command.args(["-d", "postgres", "--start", "--no-loop", "-S", "copied"]);
        command.args(["--endpos", &self.end.to_string()]);
        if plugin == "pgoutput" {
            command.args(["-o", "proto_version=1", "-o", "publication_names=everything"]);
        }
        command.stdin(Stdio::null());
        Ok(command)
    }

    fn drop_copied(&self) -> Result<()> {
        wait_until("the slot is free", PATIENCE, || {
            Ok(self
                .leader
                .sql("select active from pg_replication_slots where slot_name = 'copied'")?
                == "f")
        })?;
        self.leader.sql("select pg_drop_replication_slot('copied')").map(drop)
    }

    fn server_decodes(&self, plugin: &str) -> Result<f64> {
        let mut command = self.receive(plugin)?;
        command.args(["-f", "/dev/null"]).stdout(Stdio::null());
        let begun = Instant::now();
        let status = command.status()?;
        let seconds = begun.elapsed().as_secs_f64();
        ensure!(status.success(), "pg_recvlogical: {status}");
        self.drop_copied()?;
        Ok(seconds)
    }

    fn count_theirs(&self) -> Result<Counts> {
        let mut command = self.receive("test_decoding")?;
        let mut child = command.args(["-f", "-"]).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?);
        // "table public.orders: INSERT: id[bigint]:1 ..."; no name and no value has a line feed.
        let counts = count(lines, |line| {
            let (_, rest) = line.strip_prefix("table ")?.split_once(": ")?;
            Some(rest.split_once(':')?.0)
        })?;
        ensure!(child.wait()?.success(), "pg_recvlogical failed");
        self.drop_copied()?;
        Ok(counts)
    }

    fn count_ours(&self) -> Result<Counts> {
        let mut child =
            self.reader(&["--until", &self.end.to_string()])?.stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?);
        let counts =
            count(lines, |line| Some(line.strip_prefix("{\"kind\":\"")?.split_once('"')?.0))?;
        ensure!(child.wait()?.success(), "walferry decode failed");
        Ok(counts)
    }

    /// An agent that captures, with a spool as it was before the workload.
    fn capturing_agent(&self) -> Result<Agent> {
        if self.rows.exists() {
            fs::remove_dir_all(&self.rows)?;
        }
        copy(&self.begun_rows, &self.rows)?;
        own(&self.rows, &self.scratch)?;
        self.ours.agent(&self.scratch, &self.arguments, &capturing(&self.rows)?)
    }

    /// Replays with capture; the spool stays.
    fn capture(&self) -> Result<Run> {
        self.ours.run(self.capturing_agent()?)
    }

    /// `walferry decode` by the configuration of an agent that is gone.
    fn reader(&self, arguments: &[&str]) -> Result<Command> {
        let mut config =
            crate::agent_config("reader", self.scratch.path().join("none"), &self.arguments)?;
        config.more.extend(capturing(&self.rows)?);
        let mut command = Agent::new(&self.scratch, config)?.command("decode");
        command.args(arguments).stdin(Stdio::null());
        Ok(command)
    }

    fn read_spool(&self) -> Result<f64> {
        let mut command = self.reader(&["--until", &self.end.to_string()])?;
        command.stdout(Stdio::null());
        let begun = Instant::now();
        let status = command.status()?;
        ensure!(status.success(), "walferry decode: {status}");
        Ok(begun.elapsed().as_secs_f64())
    }

    /// Seconds from the agent's start, and from the first record, to the last commit's line.
    fn end_to_end(&self) -> Result<(f64, f64)> {
        let mut agent = self.capturing_agent()?;
        let mut reader = agent.command("decode");
        reader.args(["--follow", "--until", &self.end.to_string()]);
        reader.stdin(Stdio::null()).stdout(Stdio::null());
        let begun = Instant::now();
        agent.spawn()?;
        let status = reader.status()?;
        let (seconds, ended) = (begun.elapsed().as_secs_f64(), seconds_of_day()?);
        ensure!(status.success(), "walferry decode: {status}: {}", agent.log_tail(30));
        let line = self.ours.wait_caught_up(&agent)?;
        let first = second_of(&line)? - field(&line, "seconds")?;
        agent.stop()?;
        self.ours.remove(&agent)?;
        Ok((seconds, (ended - first).rem_euclid(DAY)))
    }
}

fn capturing(rows: &Path) -> Result<Vec<(String, String, toml::Value)>> {
    let rows = rows.to_str().context("a path in UTF-8")?;
    let setting = |key: &str, value: &str| ("decode".to_owned(), key.to_owned(), value.into());
    Ok(vec![setting("directory", rows), setting("max_bytes", "100GB")])
}

/// Counts lines by the word that `kind` finds in them.
fn count(mut lines: impl BufRead, kind: impl Fn(&str) -> Option<&str>) -> Result<Counts> {
    let (mut counts, mut line) = (Counts::default(), String::new());
    while lines.read_line(&mut line)? > 0 {
        match kind(&line) {
            Some("INSERT" | "insert") => counts.inserts += 1,
            Some("UPDATE" | "update") => counts.updates += 1,
            Some("DELETE" | "delete") => counts.deletes += 1,
            _ => {}
        }
        line.clear();
    }
    Ok(counts)
}

const DAY: f64 = 24.0 * 3600.0;

fn seconds_of_day() -> Result<f64> {
    let now: Duration = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(now.as_secs_f64().rem_euclid(DAY))
}

/// When a line was logged, as it says itself: `2026-11-21T18:00:00.123456Z`.
fn second_of(line: &str) -> Result<f64> {
    let time = line.split_whitespace().find_map(|word| {
        let (_, time) = word.split_once('T')?;
        let mut parts = time.strip_suffix('Z')?.splitn(3, ':').map(|part| part.parse::<f64>().ok());
        Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
    });
    let Some(time) = time else { bail!("no time in: {line}") };
    Ok(time)
}

/// The load average of the last minute.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(format!("load {}", text.split(' ').next().unwrap_or_default()))
}
