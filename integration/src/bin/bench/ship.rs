//! Shipping: what it brings, and what it costs the leader.
//!
//! `integration/bench.sh ship` prints, on one machine and in one run:
//!
//! ```text
//! catch-up   a node that has nothing fetches WAL that is there already, until all of it is synced:
//!            pg_receivewal from a slot, walferry from the leader's agent, in turn; time from the start
//!            of the process. Bytes on the wire are counted by a proxy, in a round of their own.
//! latency    commits under pgbench: from the commit's return until a streaming standby, and a walferry
//!            follower with a store, have it synced. Both are asked at once, for the same commits.
//! cost       pgbench with the leader's agent and without it, in turn: transactions per second, the
//!            agent's processor time and its fdatasync calls for each GB of WAL, beside the server's own.
//! idle       the leader's agent when nothing happens: its memory.
//! ```

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::process::{tail_of, wait_until};
use integration::{
    Agent, AgentConfig, Cluster, ClusterOptions, Proxy, Scratch, Source, StopMode, free_port,
};
use tokio_postgres::NoTls;
use walfmt::Lsn;

use crate::{MEGABYTE, PATIENCE, mixed, processor_seconds, settle_disk};

#[derive(Debug, clap::Args)]
pub(crate) struct ShipArguments {
    /// How often each side catches up.
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// How long the workload is that is caught up with, and how large its table: as for `replay`.
    #[arg(long, default_value_t = 20)]
    scale: u32,
    /// Commits whose way is timed.
    #[arg(long, default_value_t = 3000)]
    commits: usize,
    /// Transactions per second of the load beside them.
    #[arg(long, default_value_t = 300)]
    rate: u32,
    /// How often the server runs with an agent and without.
    #[arg(long, default_value_t = 10)]
    pairs: usize,
    /// Seconds of each such run.
    #[arg(long, default_value_t = 8)]
    seconds: u32,
    /// Only one of catch-up, latency, cost.
    #[arg(long)]
    only: Option<String>,
}

pub(crate) fn ship(arguments: &ShipArguments) -> Result<()> {
    let is_wanted = |name: &str| arguments.only.as_ref().is_none_or(|only| only == name);
    if is_wanted("catch-up") {
        catch_up(arguments)?;
    }
    if is_wanted("latency") {
        latency(arguments)?;
    }
    if is_wanted("cost") {
        cost(arguments)?;
    }
    Ok(())
}

fn server(scratch: &Scratch) -> Result<Cluster> {
    let settings = [
        "wal_keep_size = 100GB",
        "shared_buffers = 1GB",
        "max_wal_size = 8GB",
        "checkpoint_timeout = 15min",
        "max_replication_slots = 50",
    ];
    let options = ClusterOptions {
        settings: settings.map(str::to_owned).to_vec(),
        ..ClusterOptions::default()
    };
    Cluster::start_new(scratch, "leader", &options)
}

fn flushed(leader: &Cluster) -> Result<Lsn> {
    leader.sql("select pg_current_wal_flush_lsn()")?.parse().context("a position")
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A node that only keeps WAL, new each time.
fn keeper(scratch: &Scratch, number: usize, peer: String) -> Result<Agent> {
    let config = AgentConfig {
        name: format!("keeper{number}"),
        source: Source::Peers(vec![peer]),
        store: None,
        replication_port: free_port()?,
        metrics_port: free_port()?,
        more: Vec::new(),
    };
    Agent::new(scratch, config)
}

fn catch_up(arguments: &ShipArguments) -> Result<()> {
    let scratch = Scratch::new()?;
    let leader = server(&scratch)?;
    mixed::prepare(&leader, arguments.scale)?;
    let mut leader_agent = Agent::new(&scratch, AgentConfig::leader("leader", &leader)?)?;
    leader.sql("checkpoint")?;
    leader.sql("select pg_switch_wal()")?;
    leader_agent.start()?;
    // The archive begins with the last checkpoint's segment; the slots a little later.
    let slots = arguments.runs + 1;
    for number in 0..slots {
        leader.sql(&format!("select pg_create_physical_replication_slot('s{number}', true)"))?;
    }
    mixed::run(&scratch, &leader, arguments.scale)?;
    leader.sql("select pg_switch_wal()")?;
    leader.sql("checkpoint")?;
    leader.sql("select pg_switch_wal()")?;
    let end = flushed(&leader)?;
    leader_agent.wait_for_position("durable", end, PATIENCE)?;
    let from: Lsn = leader.sql("select min(restart_lsn) from pg_replication_slots")?.parse()?;
    let from = Lsn(from.0 - from.0 % (16 << 20));
    let megabytes = end.bytes_since(from) as f64 / MEGABYTE;
    println!("mixed: {megabytes:.0} MB of WAL from {from} to {end}");

    let receivewal = |number: usize, port: u16| -> Result<f64> {
        let directory = scratch.directory(&format!("received{number}"))?;
        settle_disk(&directory)?;
        let log = scratch.path().join("pg_receivewal.log");
        let mut command = leader.endpoint().command("pg_receivewal");
        command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "--no-loop", "-S"]);
        command.arg(format!("s{number}")).arg("-D").arg(&directory);
        command.args(["--endpos", &end.to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(fs::File::create(&log)?);
        let begun = Instant::now();
        let status = command.status()?;
        let seconds = begun.elapsed().as_secs_f64();
        ensure!(status.success(), "pg_receivewal: {status}\n{}", tail_of(&log, 10));
        fs::remove_dir_all(&directory)?;
        Ok(seconds)
    };
    let walferry = |number: usize, port: u16| -> Result<f64> {
        let mut agent = keeper(&scratch, number, format!("127.0.0.1:{port}"))?;
        settle_disk(agent.archive_directory())?;
        let socket = scratch.path().join(format!("keeper{number}-run/control.sock"));
        let begun = Instant::now();
        agent.spawn()?;
        while !socket.exists() {
            thread::sleep(Duration::from_millis(1));
        }
        Control::connect(&socket)?.wait("durable", end)?;
        let seconds = begun.elapsed().as_secs_f64();
        agent.stop()?;
        fs::remove_dir_all(agent.archive_directory())?;
        Ok(seconds)
    };

    let (server_port, agent_port) = (leader.endpoint().port, leader_agent.config.replication_port);
    let proxies = (Proxy::start(server_port)?, Proxy::start(agent_port)?);
    let port_of = |proxy: &Proxy| -> Result<u16> {
        Ok(proxy.address().rsplit_once(':').context("an address")?.1.parse()?)
    };
    receivewal(0, port_of(&proxies.0)?)?;
    walferry(0, port_of(&proxies.1)?)?;
    let wire = [proxies.0.downstream_bytes(), proxies.1.downstream_bytes()];
    println!(
        "on the wire: pg_receivewal {:.1} MB, walferry {:.1} MB",
        wire[0] as f64 / MEGABYTE,
        wire[1] as f64 / MEGABYTE
    );
    println!("RATIO wire mixed {:.2}", wire[1] as f64 / wire[0] as f64);
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for run in 1..=arguments.runs {
        theirs.push(receivewal(run, server_port)?);
        ours.push(walferry(run, agent_port)?);
        println!(
            "  {run} pg_receivewal {:.2} s ({:.0} MB/s), walferry {:.2} s ({:.0} MB/s)",
            theirs[run - 1],
            megabytes / theirs[run - 1],
            ours[run - 1],
            megabytes / ours[run - 1]
        );
    }
    println!("RATIO catch-up mixed {:.2}", median(&theirs) / median(&ours));
    Ok(())
}

/// An agent's control socket, on one connection.
struct Control(BufReader<UnixStream>);

impl Control {
    fn connect(socket: &Path) -> Result<Self> {
        let mut tried = UnixStream::connect(socket);
        // It may be there a moment before somebody listens.
        for _ in 0..1000 {
            if tried.is_ok() {
                break;
            }
            thread::sleep(Duration::from_millis(1));
            tried = UnixStream::connect(socket);
        }
        Ok(Self(BufReader::new(tried.context("the control socket")?)))
    }

    /// Returns when a position is at or past `lsn`.
    fn wait(&mut self, position: &str, lsn: Lsn) -> Result<()> {
        let lsn = lsn.to_string().replace('/', "%2F");
        let query = format!("position={position}&lsn={lsn}&timeout_millis=600000");
        write!(self.0.get_mut(), "GET /wait?{query} HTTP/1.1\r\nHost: walferry\r\n\r\n")?;
        let (mut length, mut line) = (0, String::new());
        self.0.read_line(&mut line)?;
        ensure!(line.contains(" 200 "), "{line}");
        loop {
            line.clear();
            self.0.read_line(&mut line)?;
            let header = line.to_ascii_lowercase();
            if let Some(value) = header.strip_prefix("content-length:") {
                length = value.trim().parse()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body)?;
        Ok(())
    }
}

fn latency(arguments: &ShipArguments) -> Result<()> {
    let scratch = Scratch::new()?;
    let leader = server(&scratch)?;
    leader.pgbench_init(arguments.scale, &[])?;
    leader.sql("create table probe (at timestamptz)")?;
    let mut leader_agent = Agent::new(&scratch, AgentConfig::leader("leader", &leader)?)?;
    leader_agent.start()?;
    let mut follower =
        Agent::new(&scratch, AgentConfig::follower("follower", &scratch, &leader_agent)?)?;
    follower.run_verb("bootstrap", &["--fast-checkpoint"])?;
    follower.start()?;
    let directory = scratch.path().join("standby");
    leader.base_backup(&directory, integration::BackupWal::Stream)?;
    let mut standby = Cluster::at(&scratch, "standby", &directory, integration::Binaries::find()?)?;
    standby.configure(&[format!("primary_conninfo = '{}'", leader.endpoint().conninfo())])?;
    scratch.file("standby/standby.signal", "")?;
    standby.start()?;
    follower.wait_replayed(flushed(&leader)?, PATIENCE)?;

    let rate = arguments.rate.to_string();
    let load = leader.pgbench(&["-n", "-M", "prepared", "-c", "4", "-R", &rate, "-T", "3600"])?;
    thread::sleep(Duration::from_secs(3));
    let socket = scratch.path().join("follower-run/control.sock");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let connect = |cluster: &Cluster| -> Result<tokio_postgres::Client> {
        runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&cluster.endpoint().conninfo(), NoTls).await?;
            tokio::spawn(connection);
            Ok(client)
        })
    };
    let (writer, reader) = (connect(&leader)?, connect(&standby)?);
    let insert = runtime.block_on(writer.prepare("insert into probe values (now())"))?;
    let position = runtime.block_on(writer.prepare("select pg_current_wal_flush_lsn()::text"))?;
    let received = runtime.block_on(reader.prepare("select pg_last_wal_receive_lsn()::text"))?;

    let (ask, asked) = std::sync::mpsc::channel::<(Instant, Lsn)>();
    let (tell, told) = std::sync::mpsc::channel::<Result<f64>>();
    let waiter = thread::spawn(move || {
        let mut control = match Control::connect(&socket) {
            Ok(control) => control,
            Err(error) => return drop(tell.send(Err(error))),
        };
        for (begun, lsn) in asked {
            let waited = control.wait("durable", lsn).map(|()| begun.elapsed().as_secs_f64());
            if tell.send(waited).is_err() {
                return;
            }
        }
    });
    let (mut theirs, mut ours) = (Vec::new(), Vec::new());
    for _ in 0..arguments.commits {
        let (begun, lsn) = runtime.block_on(async {
            writer.execute(&insert, &[]).await?;
            let begun = Instant::now();
            let row = writer.query_one(&position, &[]).await?;
            Ok::<_, anyhow::Error>((begun, row.get::<_, &str>(0).parse::<Lsn>()?))
        })?;
        ask.send((begun, lsn)).context("the waiter has gone")?;
        theirs.push(runtime.block_on(async {
            loop {
                let row = reader.query_one(&received, &[]).await?;
                if row.get::<_, &str>(0).parse::<Lsn>()? >= lsn {
                    return Ok::<_, anyhow::Error>(begun.elapsed().as_secs_f64());
                }
                tokio::time::sleep(Duration::from_micros(200)).await;
            }
        })?);
        ours.push(told.recv().context("the waiter has gone")??);
        thread::sleep(Duration::from_millis(3));
    }
    drop(ask);
    waiter.join().expect("did not panic");
    load.stop()?;
    let at = |values: &[f64], share: f64| {
        let mut values = values.to_vec();
        values.sort_by(f64::total_cmp);
        values[((values.len() - 1) as f64 * share) as usize] * 1e3
    };
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        let (standby, walferry) = (at(&theirs, share), at(&ours, share));
        println!(
            "commit to durable, {name} of {} at {rate} transactions/s: standby {standby:.2} ms, \
             walferry {walferry:.2} ms",
            ours.len()
        );
        println!("RATIO latency-{name} pgbench {:.2}", standby / walferry);
    }
    standby.stop(StopMode::Fast)?;
    Ok(())
}

/// What a server has done by itself.
struct Server {
    wal_bytes: f64,
    syncs: f64,
}

fn server_of(leader: &Cluster) -> Result<Server> {
    let text = leader.sql("select wal_bytes || ' ' || wal_sync from pg_stat_wal")?;
    let (bytes, syncs) = text.split_once(' ').context("two numbers")?;
    Ok(Server { wal_bytes: bytes.parse()?, syncs: syncs.parse()? })
}

fn cost(arguments: &ShipArguments) -> Result<()> {
    let scratch = Scratch::new()?;
    let leader = server(&scratch)?;
    leader.pgbench_init(arguments.scale, &[])?;
    let mut agent = Agent::new(&scratch, AgentConfig::leader("leader", &leader)?)?;
    let seconds = arguments.seconds.to_string();
    let load = ["-n", "-M", "prepared", "-c", "4", "-j", "2", "-T", &seconds];
    let tps = || -> Result<f64> {
        let text = leader.pgbench_run(&load)?;
        let line = text.lines().find(|line| line.starts_with("tps = ")).context("tps")?;
        Ok(line.trim_start_matches("tps = ").split(' ').next().context("a number")?.parse()?)
    };
    tps()?; // warm
    let (mut with, mut without) = (Vec::new(), Vec::new());
    let (mut gigabytes, mut processor, mut flushes, mut server_syncs) = (0.0, 0.0, 0.0, 0.0);
    for pair in 1..=arguments.pairs {
        // Whoever comes second finds the server warmer, and its disk fuller.
        let is_without_first = pair % 2 == 0;
        if is_without_first {
            without.push(tps()?);
        }
        agent.start()?;
        agent.wait_for_position("appended", flushed(&leader)?, PATIENCE)?;
        let pid = agent.pid().context("it runs")?;
        let count = || agent.metrics()?.expect("walferry_flush_seconds_count");
        let before = (server_of(&leader)?, processor_seconds(pid)?, count()?);
        with.push(tps()?);
        let end = flushed(&leader)?;
        wait_until("the agent has it all", PATIENCE, || Ok(agent.position("appended")? >= end))?;
        let after = (server_of(&leader)?, processor_seconds(pid)?, count()?);
        gigabytes += (after.0.wal_bytes - before.0.wal_bytes) / MEGABYTE / 1024.0;
        server_syncs += after.0.syncs - before.0.syncs;
        processor += after.1 - before.1;
        flushes += after.2 - before.2;
        agent.stop()?;
        if !is_without_first {
            without.push(tps()?);
        }
        println!("  {pair} with {:.0} tps, without {:.0} tps", with[pair - 1], without[pair - 1]);
    }
    println!(
        "for each GB of WAL: {:.1} s of processor time, {:.0} fdatasync calls of the agent, {:.0} of \
         the server",
        processor / gigabytes,
        flushes / gigabytes,
        server_syncs / gigabytes
    );
    println!("RATIO tps pgbench {:.3}", median(&with) / median(&without));
    agent.start()?;
    agent.wait_for_position("appended", flushed(&leader)?, PATIENCE)?;
    thread::sleep(Duration::from_secs(5));
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid().context("it runs")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    println!("idle: the leader's agent has {} resident", line.trim());
    Ok(())
}
