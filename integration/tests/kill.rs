//! `kill -9`: of both agents, many times, while bytes are under way between them; and of the
//! leader's PostgreSQL with both agents running. What was acknowledged must be there afterwards,
//! every archived segment must be the server's own, and the promoted copy must hold every row.
//!
//! SIGKILL takes a process's memory and nothing else: what it wrote and did not sync is still in
//! the page cache. What a power cut takes is tested in `walferry-archive`, whose file calls can
//! lose un-synced bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::compare::{Comparison, digests_of};
use integration::pair::{archived_segments, end_of_archive, unpacked_equals};
use integration::process::wait_until;
use integration::standby::control_file;
use integration::{Agent, ClusterOptions, Load, PATIENCE, Pair, Scratch, Seed, StopMode};
use rand::RngExt;
use rand::rngs::StdRng;
use walfmt::control::ControlFile;
use walfmt::{Lsn, SegmentName, Timeline};

/// Each agent is killed once per round.
const ROUNDS: u32 = 20;
const SERVER_KILLS: usize = 5;
/// The line passes 4 kB on per delay: about 300 kB/s, 1 MB/s, and as fast as it goes. It is WAL as
/// it is sent, compressed.
const DELAYS: [Duration; 3] = [Duration::from_millis(13), Duration::from_millis(4), Duration::ZERO];
/// Records of 1 MB, which with `wal_buffers` far smaller reach the files piece by piece.
const LARGE_RECORDS: &str =
    "select pg_logical_emit_message(false, 'large', repeat('large record ', 80000));";

#[test]
fn killed_agents_lose_nothing() -> Result<()> {
    let seed = Seed::take("killed_agents_lose_nothing", 10);
    let mut generator = seed.generator();
    let mut stand = Stand::start(16)?;
    let load = stand.pair.leader.pgbench(&["-c", "3", "-T", "600"])?;
    let mut kills = Vec::new();
    for round in 0..ROUNDS {
        let mut both = [Who::LeaderAgent, Who::FollowerAgent];
        if generator.random() {
            both.reverse();
        }
        for who in both {
            stand.pair.proxy.set_delay(DELAYS[generator.random_range(0..DELAYS.len())]);
            // Some are killed again before they are quite there.
            let early = round > 0 && generator.random_range(0..6) == 0;
            if !early {
                stand.wait_for_progress()?;
            }
            thread::sleep(Duration::from_millis(generator.random_range(20..700)));
            let kill = stand.kill_agent(who)?;
            println!("[{:5.1} s] round {round}: {kill}", stand.seconds());
            kills.push(kill);
            // What the line still holds arrives, or is lost as well.
            if generator.random() {
                stand.pair.proxy.cut();
            }
            thread::sleep(Duration::from_millis(generator.random_range(0..150)));
            stand.restart_agent(who)?;
        }
    }
    stand.pair.proxy.set_delay(Duration::ZERO);
    let in_flight = InFlight::sums(&kills);
    println!("{} kills (seed {}); in flight in all: {in_flight}", kills.len(), seed.0);
    in_flight.check()?;
    println!("what was acknowledged was there {} times", stand.acknowledged.times_checked);
    stand.finish(load, &mut generator, 0).map(drop)
}

#[test]
fn a_killed_server_is_followed_on() -> Result<()> {
    let seed = Seed::take("a_killed_server_is_followed_on", 5);
    let mut generator = seed.generator();
    let mut stand = Stand::start(1)?;
    let large = stand.scratch.file("large.sql", LARGE_RECORDS)?;
    let large = large.to_str().context("a path in UTF-8")?;
    let agents = (stand.pair.leader_agent.pid(), stand.pair.follower.pid());
    for kill in 0..SERVER_KILLS {
        let load = stand.pair.leader.pgbench(&["-c", "2", "-T", "600"])?;
        stand.wait_for_progress()?;
        thread::sleep(Duration::from_millis(generator.random_range(100..500)));
        let begun = stand.pair.leader.sql("select pg_current_wal_insert_lsn()")?;
        let burst = stand.pair.leader.pgbench(&["-c", "2", "-T", "600", "-f", large])?;
        // From here on there is a large record under way nearly always.
        let is_large = format!(
            "select pg_current_wal_insert_lsn() - '{begun}'::pg_lsn > 2000000 and exists (select from \
             pg_stat_activity where query like 'select pg_logical_emit_message%')"
        );
        wait_until("large records are written", PATIENCE, || {
            Ok(stand.pair.leader.sql(&is_large)? == "t")
        })?;
        thread::sleep(Duration::from_millis(generator.random_range(60..160)));
        let shipped = stand.pair.leader_agent.metrics()?.position("source_durable");
        let shipped = shipped.context("the leader's agent ships")?;
        let durable = stand.follower_durable()?;
        stand.pair.leader.kill()?;
        drop((load, burst));
        println!(
            "[{:5.1} s] server kill {kill}: shipping was at {shipped}, {} bytes ahead of the \
             follower",
            stand.seconds(),
            shipped.bytes_since(durable)
        );
        stand.pair.leader.start()?;

        // The agents are not told anything: streaming goes on by itself.
        let leader = &stand.pair.leader;
        let mark: Lsn = leader.sql("select pg_current_wal_insert_lsn()")?.parse()?;
        leader.sql("create table if not exists after_kill (at timestamptz default now())")?;
        leader.sql("insert into after_kill default values")?;
        let beyond = mark.advance(1);
        stand.pair.leader_agent.wait_for_position("source_durable", beyond, PATIENCE)?;
        stand.pair.follower.wait_for_position("replayed", beyond, PATIENCE)?;
        stand.wait_until_all_stages_stream()?;
        println!("[{:5.1} s] replayed beyond {mark}", stand.seconds());
    }
    let pair = &mut stand.pair;
    ensure!(pair.leader_agent.is_running() && pair.follower.is_running());
    let still = (pair.leader_agent.pid(), pair.follower.pid());
    ensure!(agents == still, "agents {agents:?} were replaced by {still:?}");
    let rows = pair.leader.sql("select count(*) from after_kill")?;
    ensure!(rows == SERVER_KILLS.to_string(), "{rows} rows after {SERVER_KILLS} kills");

    let load = pair.leader.pgbench(&["-c", "2", "-T", "600"])?;
    thread::sleep(Duration::from_millis(300));
    let torn = stand.finish(load, &mut generator, SERVER_KILLS)?;
    println!("{SERVER_KILLS} server kills (seed {}): {torn} overwritten contrecords", seed.0);
    ensure!(torn > 0, "no kill tore a record: the test should be made to do so");
    Ok(())
}

/// Whom to kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    LeaderAgent,
    FollowerAgent,
}

/// What is killed, and what is known of it.
struct Stand {
    pair: Pair,
    acknowledged: Acknowledged,
    system: ControlFile,
    scratch: Scratch,
    begun: Instant,
}

impl Stand {
    fn start(wal_segment_megabytes: u32) -> Result<Self> {
        let begun = Instant::now();
        let scratch = Scratch::new()?;
        let settings = [
            "wal_keep_size = 4GB",
            // Often a checkpoint, so that the follower has restart points to come back to.
            "checkpoint_timeout = 30s",
            "max_wal_size = 64MB",
            "wal_buffers = 64kB",
        ];
        let options = ClusterOptions {
            wal_segment_megabytes,
            keep_segments: true,
            settings: settings.map(str::to_owned).to_vec(),
            ..ClusterOptions::default()
        };
        let pair = Pair::start(&scratch, &options, 2)?;
        let system = control_file(pair.leader.data_directory())?;
        Ok(Self { pair, acknowledged: Acknowledged::default(), system, scratch, begun })
    }

    fn seconds(&self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// Invalid as long as the follower does not know.
    fn follower_durable(&self) -> Result<Lsn> {
        Ok(self.pair.follower.metrics()?.position("durable").unwrap_or_default())
    }

    /// Waits until the follower has something durable that it had not when asked.
    fn wait_for_progress(&mut self) -> Result<()> {
        let before = self.follower_durable()?;
        let waited = wait_until("the follower gets on", PATIENCE, || {
            let durable = self.follower_durable()?;
            self.acknowledged.note(durable)?;
            Ok(durable > before)
        });
        waited.with_context(|| self.reports())
    }

    /// Kills an agent right after the positions were read.
    fn kill_agent(&mut self, who: Who) -> Result<Kill> {
        let server: Lsn = self.pair.leader.sql("select pg_current_wal_lsn()")?.parse()?;
        // What was shipped is read first: what becomes durable meanwhile counts as not in flight.
        let source = self.pair.leader_agent.metrics()?;
        let copy = self.pair.follower.metrics()?;
        match who {
            Who::LeaderAgent => self.pair.leader_agent.kill()?,
            Who::FollowerAgent => self.pair.follower.kill()?,
        }
        let durable = copy.position("durable").unwrap_or(self.acknowledged.durable);
        self.acknowledged.note(durable)?;
        let follower = &self.pair.follower.config.name;
        // What the leader was told; nothing if either was only just started.
        let told = source.follower_position(follower, "durable").unwrap_or_default();
        ensure!(told <= durable, "acknowledged {told}, and only {durable} is durable");
        if who == Who::FollowerAgent {
            // Nobody writes the archive now: what it holds is what is there.
            let end = end_of_archive(&self.pair.follower, self.pair.leader.data_directory())?;
            self.acknowledged.check("the dead follower's archive", end)?;
        }
        let shipped = source.follower_position(follower, "shipped").unwrap_or_default();
        let source_durable = source.position("source_durable").unwrap_or(durable);
        let replayed = copy.position("replayed").unwrap_or(durable);
        let in_flight = InFlight {
            not_read: server.bytes_since(source_durable),
            not_sent: source_durable.bytes_since(shipped.max(durable)),
            on_the_way: shipped.bytes_since(durable),
            not_replayed: durable.bytes_since(replayed),
        };
        Ok(Kill { who, durable, in_flight })
    }

    fn restart_agent(&mut self, who: Who) -> Result<()> {
        match who {
            Who::LeaderAgent => return self.pair.leader_agent.start(),
            Who::FollowerAgent => self.pair.follower.start()?,
        }
        let mut first = Lsn::INVALID;
        let waited = wait_until("the follower knows what it has", PATIENCE, || {
            first = self.follower_durable()?;
            Ok(first.is_valid())
        });
        waited.with_context(|| self.reports())?;
        self.acknowledged.check("the restarted follower", first)
    }

    /// Waits until every stage of both agents streams; none may have stopped.
    fn wait_until_all_stages_stream(&self) -> Result<()> {
        let waited = wait_until("every stage streams", PATIENCE, || {
            let mut all = true;
            for agent in [&self.pair.leader_agent, &self.pair.follower] {
                let status = agent.status()?;
                for stage in status["stages"].as_array().context("no stages")? {
                    let state = stage["state"].as_str().context("no state")?;
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
        let (leader, follower) = (of(&self.pair.leader_agent), of(&self.pair.follower));
        format!("[{:5.1} s]\nleader: {leader}\nfollower: {follower}", self.seconds())
    }

    /// Ends the load; then compares both archives, promotes, and compares the tables. Gives how
    /// many records of the WAL were torn by a crash and given up by the server.
    fn finish(mut self, load: Load, generator: &mut StdRng, server_kills: usize) -> Result<usize> {
        load.stop()?;
        let expected = digests_of(self.pair.leader.endpoint())?;
        let history = self.pair.leader.sql("select count(*) from pgbench_history")?;
        ensure!(history != "0", "the load wrote nothing");
        let last = self.pair.leader.sql("select pg_walfile_name(pg_switch_wal())")?;
        self.pair.catch_up(PATIENCE).with_context(|| self.reports())?;
        self.wait_until_all_stages_stream()?;
        println!("[{:5.1} s] the follower has caught up", self.seconds());
        self.pair.leader_agent.stop()?;
        // The server archives all it has before it ends.
        self.pair.leader.stop(StopMode::Fast)?;

        let written = self.segments_written(server_kills)?;
        for agent in [&self.pair.leader_agent, &self.pair.follower] {
            let archived = archived_segments(agent)?;
            ensure!(archived.contains_key(&last), "{last} is not archived");
            let compared = compare_archive(&archived, &written)?;
            println!("archive of {}: {compared} finished segments equal", agent.config.name);
            self.spoiled_segments_are_noticed(&archived, &written, generator)?;
        }

        // The line would take a connection, as a leader that is alive does.
        let promoted = self.pair.follower.promote("promoted", &["--leader-is-dead"])?;
        let comparison = Comparison::between(expected.clone(), digests_of(promoted.endpoint())?);
        println!("{comparison}\n{history} transactions of the load");
        ensure!(comparison.all_equal(), "the promoted server has other rows");
        // Negative control: one changed row is noticed.
        promoted.sql("update pgbench_accounts set abalance = abalance + 1 where aid = 7")?;
        let comparison = Comparison::between(expected, digests_of(promoted.endpoint())?);
        ensure!(comparison.different() == 1, "a changed row was not noticed");

        let first = written.keys().next().context("no segments")?;
        let wal = self.pair.leader.wal_directory();
        let records = self.pair.leader.waldump(&wal, &["--rmgr=XLOG", first, &last])?;
        Ok(records.lines().filter(|line| line.contains("OVERWRITE_CONTRECORD")).count())
    }

    /// The server's finished segments: file by name, as `archive_command` kept them.
    ///
    /// A server that is killed between finishing a segment and marking it as ready never asks to
    /// archive it, or only when a checkpoint would remove it (`XLogArchiveCheckDone` in
    /// `src/backend/access/transam/xlogarchive.c`). Of such a segment its `pg_wal` has the file.
    fn segments_written(&self, server_kills: usize) -> Result<BTreeMap<String, PathBuf>> {
        let kept = self.pair.leader.kept_segments().context("segments are kept")?;
        let mut written = BTreeMap::new();
        for entry in fs::read_dir(kept)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.parse::<SegmentName>().is_ok() {
                written.insert(name.clone(), kept.join(name));
            }
        }
        let numbers: Vec<_> = written
            .keys()
            .filter_map(|name| name.parse::<SegmentName>().ok()?.number(self.system.segment_size))
            .collect();
        let wal = self.pair.leader.wal_directory();
        let mut never_asked = 0;
        for pair in numbers.windows(2) {
            let mut number = pair[0].next();
            while number < pair[1] {
                let segment = SegmentName::new(Timeline(1), number, self.system.segment_size);
                let name = segment.to_string();
                for status in ["ready", "done"] {
                    let status = wal.join("archive_status").join(format!("{name}.{status}"));
                    ensure!(!status.exists(), "{} is there, {name} is not", status.display());
                }
                written.insert(name.clone(), wal.join(name));
                never_asked += 1;
                number = number.next();
            }
        }
        ensure!(never_asked <= server_kills, "{never_asked} segments were not kept");
        println!("{} segments kept, {never_asked} never asked for", written.len() - never_asked);
        Ok(written)
    }

    /// Negative control: an archive's file with a flipped bit, or a segment with one, is noticed.
    fn spoiled_segments_are_noticed(
        &self,
        archived: &BTreeMap<String, PathBuf>,
        written: &BTreeMap<String, PathBuf>,
        generator: &mut StdRng,
    ) -> Result<()> {
        let mut finished = written.keys().filter_map(|name| archived.get_key_value(name));
        let (name, file) = finished.next().context("no finished segment")?;
        let (archived, segment) = (fs::read(file)?, fs::read(&written[name])?);
        let equal = |archived: &[u8], segment: &[u8]| -> Result<bool> {
            let archived = self.scratch.file("spoiled.zst", archived)?;
            let segment = self.scratch.file("spoiled", segment)?;
            // What `zstd` itself refuses is noticed, too.
            Ok(unpacked_equals(&archived, &segment).unwrap_or(false))
        };
        let mut flipped = |bytes: &[u8], places: Range<usize>| {
            let mut bytes = bytes.to_vec();
            bytes[generator.random_range(places)] ^= 1 << generator.random_range(0..8);
            bytes
        };
        ensure!(equal(&archived, &segment)?, "a copy is not equal");
        // In the checksum that it ends with: a few other bits may change and mean the same.
        let spoiled = flipped(&archived, archived.len() - 4..archived.len());
        ensure!(!equal(&spoiled, &segment)?, "a flipped bit was not noticed");
        let spoiled = flipped(&segment, 0..segment.len());
        ensure!(!equal(&archived, &spoiled)?, "a flipped bit was not noticed");
        Ok(())
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

/// Holds every finished segment of an archive, which is every one but the last, against the
/// server's; gives how many there are.
fn compare_archive(
    archived: &BTreeMap<String, PathBuf>,
    written: &BTreeMap<String, PathBuf>,
) -> Result<usize> {
    let mut finished = archived.clone();
    let (unfinished, _) = finished.pop_last().context("the archive is empty")?;
    let (first, _) = finished.first_key_value().context("no segment was finished")?;
    let expected = written.range(first.clone()..unfinished);
    let (names, expected_names): (Vec<_>, Vec<_>) =
        (finished.keys().collect(), expected.map(|(name, _)| name).collect());
    ensure!(names == expected_names, "archive: {names:?}; server: {expected_names:?}");
    for (name, file) in &finished {
        ensure!(unpacked_equals(file, &written[name])?, "{} is another", file.display());
    }
    Ok(finished.len())
}
