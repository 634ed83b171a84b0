//! `kill -9`: of both agents, many times, while bytes are under way between them; and of the
//! leader's PostgreSQL with both agents running. What was acknowledged must be there afterwards,
//! every archived segment must be the server's own, and the promoted copy must hold every row.
//!
//! SIGKILL takes a process's memory and nothing else: what it wrote and did not sync is still in
//! the page cache. What a power cut takes is tested in `walferry-archive`, whose file calls can
//! lose un-synced bytes.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::compare::{Comparison, digests_of};
use integration::process::wait_until;
use integration::{
    Agent, AgentConfig, BackupWal, Cluster, ClusterOptions, Load, Scratch, Seed, Source, StopMode,
};
use rand::RngExt;
use rand::rngs::StdRng;
use walferry_archive::{Archive, ArchiveReader, OsFiles};
use walfmt::control::ControlFile;
use walfmt::{Lsn, Timeline};

/// Each agent is killed once per round.
const ROUNDS: u32 = 20;
const SERVER_KILLS: u32 = 5;
/// How long anything that should happen by itself may take.
const PATIENCE: Duration = Duration::from_secs(40);
const FOLLOWER: &str = "follower1";
/// Records of 1 MB, which with `wal_buffers` far smaller reach the files piece by piece.
const LARGE_RECORDS: &str =
    "select pg_logical_emit_message(false, 'large', repeat('large record ', 80000));";

#[test]
fn killed_agents_lose_nothing() -> Result<()> {
    let seed = Seed::take("killed_agents_lose_nothing", 10);
    let mut generator = seed.generator();
    let mut pair = Pair::start(16)?;
    let load = pair.leader.pgbench(&["-c", "3", "-T", "600"])?;
    let mut acknowledged = Acknowledged::default();
    let mut kills = Vec::new();
    for round in 0..ROUNDS {
        let mut both = [Who::LeaderAgent, Who::FollowerAgent];
        if generator.random() {
            both.reverse();
        }
        for who in both {
            pair.link.set_rate([300_000, 1_000_000, Link::UNLIMITED][generator.random_range(0..3)]);
            // Some are killed again before they are quite there.
            let early = round > 0 && generator.random_range(0..6) == 0;
            if !early {
                pair.wait_for_progress(&mut acknowledged)?;
            }
            thread::sleep(Duration::from_millis(generator.random_range(20..700)));
            let kill = pair.kill_agent(who, &mut acknowledged)?;
            println!("round {round:2}: {kill}");
            kills.push(kill);
            // What the link still holds arrives, or is lost as well.
            if generator.random() {
                pair.link.cut();
            }
            thread::sleep(Duration::from_millis(generator.random_range(0..150)));
            pair.restart_agent(who, &mut acknowledged)?;
        }
    }
    pair.link.set_rate(Link::UNLIMITED);
    let in_flight = InFlight::sums(&kills);
    println!("{} kills (seed {}); in flight in all: {in_flight}", kills.len(), seed.0);
    in_flight.check()?;
    println!("what was acknowledged was there {} times", acknowledged.times_checked);

    pair.finish(load, &mut generator)
}

#[test]
fn a_killed_server_is_followed_on() -> Result<()> {
    let seed = Seed::take("a_killed_server_is_followed_on", 5);
    let mut generator = seed.generator();
    let mut pair = Pair::start(1)?;
    let large = pair.scratch.file("large.sql", LARGE_RECORDS)?;
    let large = large.to_str().context("a path in UTF-8")?;
    let mut acknowledged = Acknowledged::default();
    let agents = (pair.leader_agent.pid(), pair.follower_agent.pid());
    for kill in 0..SERVER_KILLS {
        let load = pair.leader.pgbench(&["-c", "2", "-T", "600"])?;
        pair.wait_for_progress(&mut acknowledged)?;
        thread::sleep(Duration::from_millis(generator.random_range(100..500)));
        let burst = pair.leader.pgbench(&["-c", "2", "-T", "600", "-f", large])?;
        thread::sleep(Duration::from_millis(generator.random_range(60..160)));
        let (shipped, durable) = (pair.source_durable()?, pair.follower_durable()?);
        pair.leader.kill()?;
        drop((load, burst));
        let begun = Instant::now();
        pair.leader.start()?;
        println!(
            "server kill {kill}: shipping was at {shipped}, {} bytes ahead of the follower; server \
             back after {:.2} s",
            shipped.bytes_since(durable),
            begun.elapsed().as_secs_f64()
        );
        // The agents were not told anything: streaming goes on by itself.
        let mark: Lsn = pair.leader.sql("select pg_current_wal_insert_lsn()")?.parse()?;
        pair.leader.sql("create table if not exists after_kill (at timestamptz default now())")?;
        pair.leader.sql("insert into after_kill default values")?;
        pair.leader_agent.wait_for_position("source_durable", mark.advance(1), PATIENCE)?;
        pair.follower_agent.wait_for_position("replayed", mark.advance(1), PATIENCE)?;
        pair.wait_until_all_stages_stream()?;
    }
    ensure!(pair.leader_agent.is_running() && pair.follower_agent.is_running());
    let still = (pair.leader_agent.pid(), pair.follower_agent.pid());
    ensure!(agents == still, "agents {agents:?} were replaced by {still:?}");
    let rows = pair.leader.sql("select count(*) from after_kill")?;
    ensure!(rows == SERVER_KILLS.to_string(), "{rows} rows after {SERVER_KILLS} kills");

    let load = pair.leader.pgbench(&["-c", "2", "-T", "600"])?;
    thread::sleep(Duration::from_millis(300));
    let torn = pair.finish_counting(load, &mut generator)?;
    println!(
        "{SERVER_KILLS} server kills (seed {}) left {torn} overwritten contrecords in the WAL",
        seed.0
    );
    Ok(())
}

/// Whom to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    LeaderAgent,
    FollowerAgent,
}

/// A server, its agent, a slow link, and a follower with a store.
struct Pair {
    scratch: Scratch,
    leader: Cluster,
    leader_agent: Agent,
    link: Link,
    follower_agent: Agent,
    system: ControlFile,
}

impl Pair {
    fn start(wal_segment_megabytes: u32) -> Result<Self> {
        let scratch = Scratch::new()?;
        let options = ClusterOptions {
            wal_segment_megabytes,
            keep_segments: true,
            settings: [
                "wal_keep_size = 4GB",
                // Often a checkpoint, so that the follower has restart points to come back to.
                "checkpoint_timeout = 30s",
                "max_wal_size = 64MB",
                "wal_buffers = 64kB",
            ]
            .map(str::to_owned)
            .to_vec(),
            ..ClusterOptions::default()
        };
        let leader = Cluster::start_new(&scratch, "leader", &options)?;
        leader.pgbench_init(2, &[])?;
        let mut leader_agent = Agent::new(&scratch, AgentConfig::leader("leader1", &leader)?)?;
        leader_agent.start()?;
        let backup = scratch.path().join("backup");
        leader.base_backup(&backup, BackupWal::Stream)?;
        let link = Link::to(leader_agent.config.replication_port)?;
        let mut config = AgentConfig::follower(FOLLOWER, &scratch, &leader_agent)?;
        config.source = Source::Peers(vec![link.address.to_string()]);
        config.more.push(("store".to_owned(), "restart_point_interval".to_owned(), "1s".into()));
        let mut follower_agent = Agent::new(&scratch, config)?;
        follower_agent.bootstrap(&backup)?;
        follower_agent.start()?;
        let system = ControlFile::from_bytes(&fs::read(backup.join("global/pg_control"))?)?;
        Ok(Self { scratch, leader, leader_agent, link, follower_agent, system })
    }

    /// Waits until the follower has something durable that it had not when asked, and replays.
    fn wait_for_progress(&mut self, acknowledged: &mut Acknowledged) -> Result<()> {
        let before = self.follower_durable()?;
        let waited = wait_until("the follower gets on", PATIENCE, || {
            let durable = self.follower_durable()?;
            acknowledged.note(durable)?;
            Ok(durable > before)
        });
        waited.with_context(|| self.reports())
    }

    /// Kills an agent right after the positions were read, which are then a little too low.
    fn kill_agent(&mut self, who: Who, acknowledged: &mut Acknowledged) -> Result<Kill> {
        let server: Lsn = self.leader.sql("select pg_current_wal_lsn()")?.parse()?;
        // What was shipped is read first: what became durable since then counts as not in flight.
        let source = self.leader_agent.metrics()?;
        let copy = self.follower_agent.metrics()?;
        match who {
            Who::LeaderAgent => self.leader_agent.kill()?,
            Who::FollowerAgent => self.follower_agent.kill()?,
        }
        let durable = copy.position("durable").unwrap_or(acknowledged.durable);
        let replayed = copy.position("replayed").unwrap_or(durable);
        let source_durable = source.position("source_durable").unwrap_or(durable);
        // An agent that has just been started has shipped nothing yet.
        let shipped = source.follower_position(FOLLOWER, "shipped").unwrap_or_default();
        // What the leader was told, and what the follower says of itself.
        if let Some(told) = source.follower_position(FOLLOWER, "durable")
            && told.is_valid()
        {
            ensure!(told <= durable, "acknowledged {told}, and only {durable} is durable");
            acknowledged.note_late(told);
        }
        acknowledged.note(durable)?;
        let in_flight = InFlight {
            not_read: server.bytes_since(source_durable),
            not_sent: source_durable.bytes_since(shipped.max(durable)),
            on_the_way: shipped.bytes_since(durable),
            not_replayed: durable.bytes_since(replayed),
        };
        if who == Who::FollowerAgent {
            // Nobody writes the archive now: what it holds is what is there.
            let end = self.end_of_archive(&self.follower_agent, acknowledged.durable)?;
            acknowledged.check("the dead follower's archive", end)?;
        }
        Ok(Kill { who, durable, in_flight })
    }

    fn restart_agent(&mut self, who: Who, acknowledged: &mut Acknowledged) -> Result<()> {
        match who {
            Who::LeaderAgent => return self.leader_agent.start(),
            Who::FollowerAgent => self.follower_agent.start()?,
        }
        let mut first = Lsn::INVALID;
        wait_until("the follower knows what it has", PATIENCE, || {
            first = self.follower_durable()?;
            Ok(first.is_valid())
        })
        .with_context(|| self.reports())?;
        acknowledged.check("the restarted follower", first)
    }

    fn source_durable(&self) -> Result<Lsn> {
        Ok(self.leader_agent.metrics()?.position("source_durable").unwrap_or_default())
    }

    /// Invalid as long as the follower does not know.
    fn follower_durable(&self) -> Result<Lsn> {
        Ok(self.follower_agent.metrics()?.position("durable").unwrap_or_default())
    }

    /// Where an agent's archive ends, as another process reads it.
    fn end_of_archive(&self, agent: &Agent, near: Lsn) -> Result<Lsn> {
        let size = self.system.segment_size;
        let archive = Archive::open(
            Arc::new(OsFiles),
            agent.archive_directory(),
            self.system.system_identifier,
            size,
        )?;
        let start = size.start_of(size.segment_before(near));
        let mut reader = ArchiveReader::open(&archive, Timeline(1), start)?;
        let mut end = start;
        while let Some(chunk) = reader.next(Lsn(u64::MAX))? {
            end = chunk.end;
        }
        Ok(end)
    }

    /// Waits until every stage of both agents streams again; none may have stopped.
    fn wait_until_all_stages_stream(&self) -> Result<()> {
        let waited = wait_until("every stage streams", PATIENCE, || {
            let mut all = true;
            for agent in [&self.leader_agent, &self.follower_agent] {
                let status = agent.status()?;
                for stage in status["stages"].as_array().context("stages")? {
                    let state = stage["state"].as_str().context("a stage's state")?;
                    let passing = ["starting", "waiting", "retrying", "streaming"];
                    ensure!(passing.contains(&state), "{stage}");
                    all &= state == "streaming";
                }
            }
            Ok(all)
        });
        waited.with_context(|| self.reports())
    }

    fn reports(&self) -> String {
        let of = |agent: &Agent| format!("status {:?}\n{}", agent.status(), agent.log_tail(20));
        format!("leader: {}\nfollower: {}", of(&self.leader_agent), of(&self.follower_agent))
    }

    /// Ends the load; then compares archives, promotes, and compares tables.
    fn finish(self, load: Load, generator: &mut StdRng) -> Result<()> {
        self.finish_counting(load, generator).map(drop)
    }

    /// As [`Pair::finish`]; gives how many records of the WAL were torn by a crash and given up.
    fn finish_counting(mut self, load: Load, generator: &mut StdRng) -> Result<usize> {
        load.stop()?;
        // Transactions of the stopped load are rolled back a moment later.
        thread::sleep(Duration::from_millis(500));
        let last = self.leader.sql("select pg_walfile_name(pg_switch_wal())")?;
        let kept = self.leader.kept_segments().context("segments are kept")?.to_owned();
        wait_until("the server has archived the last segment", PATIENCE, || {
            Ok(kept.join(&last).exists())
        })
        .with_context(|| self.leader.log_tail(20))?;
        let end: Lsn = self.leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
        self.follower_agent.wait_replayed(end, Duration::from_secs(60)).with_context(|| self.reports())?;
        self.wait_until_all_stages_stream()?;
        let expected = digests_of(self.leader.endpoint())?;
        let history: u64 = self.leader.sql("select count(*) from pgbench_history")?.parse()?;
        ensure!(history > 0, "the load wrote nothing");
        self.leader_agent.stop()?;
        self.leader.stop(StopMode::Fast)?;
        // No leader answers: not even the link does.
        drop(self.link);

        for agent in [&self.leader_agent, &self.follower_agent] {
            let directory =
                agent.archive_directory().join(self.system.system_identifier.to_string());
            let compared = compare_archive(&directory, &kept)?;
            println!("archive of {}: {compared} finished segments equal", agent.config.name);
            ensure!(compared > 0, "no segment was finished");
            spoiled_segments_are_noticed(&self.scratch, &directory, &kept, generator)?;
        }

        let promoted = self.follower_agent.promote("promoted", &[])?;
        let comparison = Comparison::between(expected.clone(), digests_of(promoted.endpoint())?);
        println!("{comparison}\n{history} transactions of the load");
        ensure!(comparison.all_equal(), "the promoted server has other rows");
        // Negative control: one changed row is noticed.
        promoted.sql("update pgbench_accounts set abalance = abalance + 1 where aid = 7")?;
        let comparison = Comparison::between(expected, digests_of(promoted.endpoint())?);
        ensure!(comparison.different() == 1, "a changed row was not noticed");

        let first = first_name(&kept)?;
        let overwritten = self.leader.waldump(&kept, &["--rmgr=XLOG", &first, &last])?;
        Ok(overwritten.lines().filter(|line| line.contains("OVERWRITE_CONTRECORD")).count())
    }
}

/// What the follower has said it holds. It may never hold less.
#[derive(Clone, Debug, Default)]
struct Acknowledged {
    durable: Lsn,
    times_checked: u32,
}

impl Acknowledged {
    /// Takes a position that a running follower shows (invalid: it does not know yet).
    fn note(&mut self, durable: Lsn) -> Result<()> {
        if durable.is_valid() {
            self.check("the follower", durable)?;
            self.durable = durable;
        }
        Ok(())
    }

    /// Takes a position that took a way round and may be an older one.
    fn note_late(&mut self, durable: Lsn) {
        self.durable = self.durable.max(durable);
    }

    fn check(&mut self, whose: &str, durable: Lsn) -> Result<()> {
        let acknowledged = self.durable;
        ensure!(
            durable >= acknowledged,
            "{whose} has WAL up to {durable}, and had acknowledged {acknowledged}"
        );
        self.times_checked += 1;
        Ok(())
    }
}

#[test]
fn a_durable_position_that_goes_back_is_noticed() -> Result<()> {
    let mut acknowledged = Acknowledged::default();
    acknowledged.note(Lsn(0x300_0100))?;
    acknowledged.note(Lsn::INVALID)?;
    acknowledged.check("the same", Lsn(0x300_0100))?;
    assert!(acknowledged.check("one byte less", Lsn(0x300_00FF)).is_err());
    assert!(acknowledged.note(Lsn(0x300_00FF)).is_err());
    acknowledged.note_late(Lsn(0x300_0200));
    assert!(acknowledged.note(Lsn(0x300_01FF)).is_err());
    Ok(())
}

/// One kill, and what was under way then.
struct Kill {
    who: Who,
    /// What the follower had made durable.
    durable: Lsn,
    in_flight: InFlight,
}

/// Bytes of WAL between two places, by the positions last seen before a kill.
#[derive(Clone, Copy, Default)]
struct InFlight {
    /// The server has written it; the leader's agent has not read and synced it.
    not_read: u64,
    /// The leader's agent may send it, and has not.
    not_sent: u64,
    /// It was sent and the follower has not made it durable.
    on_the_way: u64,
    /// The follower has it and has not replayed it.
    not_replayed: u64,
}

impl InFlight {
    /// The sums over the kills of the leader's agent, and over those of the follower's.
    fn sums(kills: &[Kill]) -> InFlightSums {
        let sum = |who: Who| {
            let of = kills.iter().filter(|kill| kill.who == who).map(|kill| kill.in_flight);
            of.fold(Self::default(), |sum, next| Self {
                not_read: sum.not_read + next.not_read,
                not_sent: sum.not_sent + next.not_sent,
                on_the_way: sum.on_the_way + next.on_the_way,
                not_replayed: sum.not_replayed + next.not_replayed,
            })
        };
        InFlightSums { leader: sum(Who::LeaderAgent), follower: sum(Who::FollowerAgent) }
    }
}

struct InFlightSums {
    leader: InFlight,
    follower: InFlight,
}

impl InFlightSums {
    /// Kills when nothing was under way would prove nothing.
    fn check(&self) -> Result<()> {
        ensure!(self.leader.on_the_way > 0, "no kill of the leader's agent had bytes on the way");
        ensure!(self.follower.on_the_way > 0, "no kill of the follower had bytes on the way");
        ensure!(self.follower.not_replayed > 0, "no kill of the follower interrupted replay");
        Ok(())
    }
}

#[test]
fn kills_with_nothing_in_flight_are_noticed() {
    let kill = |who, on_the_way, not_replayed| Kill {
        who,
        durable: Lsn(1),
        in_flight: InFlight { on_the_way, not_replayed, not_read: 1, not_sent: 1 },
    };
    let (leader, follower) = (Who::LeaderAgent, Who::FollowerAgent);
    let check = |kills: &[Kill]| InFlight::sums(kills).check();
    assert!(check(&[kill(leader, 1, 0), kill(follower, 1, 0), kill(follower, 0, 1)]).is_ok());
    assert!(check(&[kill(leader, 0, 1), kill(follower, 1, 1)]).is_err());
    assert!(check(&[kill(leader, 1, 1), kill(follower, 0, 1)]).is_err());
    assert!(check(&[kill(leader, 1, 1), kill(follower, 1, 0)]).is_err());
}

impl fmt::Display for Kill {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kill -9 {:?} at {}: {}", self.who, self.durable, self.in_flight)
    }
}

impl fmt::Display for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { not_read, not_sent, on_the_way, not_replayed } = self;
        write!(
            f,
            "{on_the_way} bytes on the way, {not_replayed} not replayed ({not_sent} not sent, \
             {not_read} not read)"
        )
    }
}

impl fmt::Display for InFlightSums {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leader's agent: {}; follower's: {}", self.leader, self.follower)
    }
}

/// Holds every finished segment of an archive against the file that `archive_command` kept; gives
/// how many there are.
fn compare_archive(archive: &Path, kept: &Path) -> Result<u64> {
    let archived: BTreeSet<String> = names_in(archive)?
        .iter()
        .filter_map(|name| name.strip_suffix(".zst").map(str::to_owned))
        .collect();
    let first = archived.first().context("the archive is empty")?;
    let mut kept_names = names_in(kept)?;
    kept_names.retain(|name| name.len() == 24 && name >= first);
    let mut compared = 0;
    for name in &kept_names {
        ensure!(archived.contains(name), "{name} is not in the archive");
        compare_segment(&archive.join(format!("{name}.zst")), &kept.join(name))?;
        compared += 1;
    }
    // The one being written is the only one that the server has not finished.
    let more: Vec<&String> = archived.difference(&kept_names).collect();
    ensure!(
        more.is_empty() || more == [archived.last().context("not empty")?],
        "{more:?} are in the archive, and the server never finished them"
    );
    Ok(compared)
}

/// `zstd -dc` of an archive's file must give exactly the bytes of the segment.
fn compare_segment(archived: &Path, segment: &Path) -> Result<()> {
    let output =
        Command::new("zstd").arg("-dc").arg(archived).output().context("cannot start zstd")?;
    let (archived, words) = (archived.display(), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "zstd -dc {archived}: {words}");
    let segment = fs::read(segment)?;
    let same = output.stdout.iter().zip(&segment).take_while(|(ours, theirs)| ours == theirs);
    let same = same.count();
    ensure!(
        output.stdout == segment,
        "{archived} decodes to {} bytes instead of {}; the first {same} are equal",
        output.stdout.len(),
        segment.len()
    );
    Ok(())
}

/// Negative control: a copy of an archive's file with one flipped bit, or a segment with one, is
/// noticed; unspoiled they are equal.
fn spoiled_segments_are_noticed(
    scratch: &Scratch,
    archive: &Path,
    kept: &Path,
    generator: &mut StdRng,
) -> Result<()> {
    let mut names = names_in(kept)?;
    names.retain(|name| name.len() == 24 && archive.join(format!("{name}.zst")).exists());
    let names: Vec<&String> = names.iter().collect();
    let name = names[generator.random_range(0..names.len())];
    let archived = fs::read(archive.join(format!("{name}.zst")))?;
    let segment = fs::read(kept.join(name))?;
    let holds = |archived: &[u8], segment: &[u8]| -> Result<bool> {
        let archived = scratch.file("spoiled.zst", archived)?;
        Ok(compare_segment(&archived, &scratch.file("spoiled", segment)?).is_ok())
    };
    ensure!(holds(&archived, &segment)?, "a copy is not equal");
    let mut flipped = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        // The frame header's first bytes hold a window size, which may change unnoticed.
        let at = generator.random_range(16..bytes.len());
        bytes[at] ^= 1 << generator.random_range(0..8);
        bytes
    };
    let (spoiled, other) = (flipped(&archived), flipped(&segment));
    ensure!(!holds(&spoiled, &segment)?, "a flipped bit of {name}.zst was not noticed");
    ensure!(!holds(&archived, &other)?, "a flipped bit of {name} was not noticed");
    Ok(())
}

fn names_in(directory: &Path) -> Result<BTreeSet<String>> {
    let entries = fs::read_dir(directory)
        .with_context(|| format!("cannot read {}", directory.display()))?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

fn first_name(kept: &Path) -> Result<String> {
    let mut names = names_in(kept)?;
    names.retain(|name| name.len() == 24);
    Ok(names.first().context("no segments")?.clone())
}

/// A TCP link to a port of this machine that passes bytes on towards its client no faster than it
/// is told. Ends with the value.
struct Link {
    address: SocketAddr,
    state: Arc<LinkState>,
    listener: Option<JoinHandle<()>>,
}

struct LinkState {
    target: SocketAddr,
    bytes_per_second: AtomicU64,
    closed: AtomicBool,
    /// Both ends of every connection there was.
    ends: Mutex<Vec<TcpStream>>,
}

impl Link {
    const UNLIMITED: u64 = u64::MAX;

    fn to(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let state = Arc::new(LinkState {
            target: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            bytes_per_second: AtomicU64::new(Self::UNLIMITED),
            closed: AtomicBool::new(false),
            ends: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let listener = thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.closed.load(Ordering::Acquire) {
                    return;
                }
                // If nobody listens there, the client sees its connection end.
                let _ = connect(&shared, client);
            }
        });
        Ok(Self { address, state, listener: Some(listener) })
    }

    fn set_rate(&self, bytes_per_second: u64) {
        self.state.bytes_per_second.store(bytes_per_second, Ordering::Relaxed);
    }

    /// Ends all connections; what they hold is lost.
    fn cut(&self) {
        for end in self.state.ends.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.state.closed.store(true, Ordering::Release);
        // Wakes the listener, which then ends.
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
        self.cut();
    }
}

fn connect(state: &Arc<LinkState>, client: TcpStream) -> io::Result<()> {
    let server = TcpStream::connect(state.target)?;
    state
        .ends
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .extend([client.try_clone()?, server.try_clone()?]);
    for (from, to, limited) in
        [(client.try_clone()?, server.try_clone()?, false), (server, client, true)]
    {
        let state = Arc::clone(state);
        thread::spawn(move || {
            let _ = pass_on(&state, &from, &to, limited);
            let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
        });
    }
    Ok(())
}

fn pass_on(
    state: &LinkState,
    mut from: &TcpStream,
    mut to: &TcpStream,
    limited: bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..length])?;
        let rate = state.bytes_per_second.load(Ordering::Relaxed);
        if limited && rate != Link::UNLIMITED {
            thread::sleep(Duration::from_secs_f64(length as f64 / rate as f64));
        }
    }
}
