//! The agent beside a server is down while the server goes on. What happens is what the README says,
//! and the server's disk stays bounded:
//!
//! | down for | slot (`max_slot_wal_keep_size`) | no slot (`wal_keep_size`) |
//! |---|---|---|
//! | less than is held | goes on | goes on |
//! | more than is held | gap, until `gap_command` fills it | gap, until `gap_command` fills it |

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::pair::archived_segments;
use integration::process::{send_signal, wait_for_exit, wait_until};
use integration::{
    Agent, AgentConfig, BackupWal, Cluster, ClusterOptions, PATIENCE, Pair, Scratch, Seed,
};
use integration::{Source, StopMode};
use rand::RngExt;
use rustix::process::Signal;
use walfmt::Lsn;

const MB: u64 = 1 << 20;
/// What the server holds for an agent.
const HOLD: u64 = 16 * MB;
/// What it has beside that: up to `max_wal_size`, and some segments made in advance.
const OWN: u64 = 12 * MB;
const LESS: u64 = 8;
const MORE: u64 = 60;
const SLOT: &str = "walferry_leader1";

fn options(settings: &[&str]) -> ClusterOptions {
    let own = ["min_wal_size = 2MB", "max_wal_size = 4MB"];
    ClusterOptions {
        wal_segment_megabytes: 1,
        keep_segments: true,
        settings: own.iter().chain(settings).map(|&line| line.to_owned()).collect(),
        ..ClusterOptions::default()
    }
}

/// Writes so many megabytes of WAL, with checkpoints between that let old WAL go; gives the most
/// that `pg_wal` had.
fn write(pair: &Pair, megabytes: u64) -> Result<u64> {
    let mut most = 0;
    for number in 1..=megabytes {
        pair.leader.sql(
            "select pg_logical_emit_message(false, 'fill', repeat(md5(random()::text), 32000)); \
             update pgbench_accounts set abalance = abalance + 1 where aid % 1000 = 7",
        )?;
        if number % 2 == 0 {
            // What the server has yet to archive, it keeps on its own account.
            let ready = "select count(*) from pg_ls_archive_statusdir() where name like '%.ready'";
            wait_until("all is archived", PATIENCE, || Ok(pair.leader.sql(ready)? == "0"))?;
            pair.leader.sql("checkpoint")?;
        }
        most = most.max(wal_bytes(pair)?);
    }
    Ok(most)
}

fn wal_bytes(pair: &Pair) -> Result<u64> {
    let sum = "select coalesce(sum(size), 0) from pg_ls_waldir()";
    pair.leader.sql(sum)?.parse().context("a size")
}

fn slots(pair: &Pair) -> Result<String> {
    pair.leader.sql("select coalesce(string_agg(slot_name, ','), '') from pg_replication_slots")
}

/// The same agent, with more settings.
fn replace(scratch: &Scratch, agent: &mut Agent, more: &[(&str, &str, &str)]) -> Result<()> {
    agent.kill()?;
    let mut config = agent.config.clone();
    for (section, key, value) in more {
        config.more.push(((*section).into(), (*key).into(), (*value).into()));
    }
    *agent = Agent::new(scratch, config)?;
    agent.start()
}

fn in_gap(pair: &Pair) -> Result<String> {
    pair.leader_agent.wait_for_state("tail", "gap")?;
    let text = pair.leader_agent.run_verb("status", &[])?;
    let lines: Vec<&str> =
        text.lines().skip_while(|line| !line.contains("tail ")).take(2).collect();
    Ok(lines.join(" "))
}

/// Follower and server agree, byte by byte.
fn agrees(pair: &Pair) -> Result<usize> {
    pair.catch_up(PATIENCE)?;
    pair.compare_archive()
}

#[test]
fn with_a_slot() -> Result<()> {
    let scratch = Scratch::new()?;
    let settings = ["max_slot_wal_keep_size = 16MB", "wal_keep_size = 0"];
    let mut pair = Pair::start(&scratch, &options(&settings), 1)?;
    wait_until("the slot is there", PATIENCE, || Ok(slots(&pair)? == SLOT))?;

    // While the agent runs, the slot follows it.
    write(&pair, 20)?;
    let behind = "select pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)::bigint \
                  from pg_replication_slots";
    wait_until("the slot has moved", PATIENCE, || {
        // One that was lost is made anew, and has no position for a moment.
        Ok(pair.leader.sql(behind)?.parse::<u64>().is_ok_and(|behind| behind < 3 * MB))
    })?;

    pair.leader_agent.kill()?;
    let most = write(&pair, LESS)?;
    pair.leader_agent.start()?;
    let segments = agrees(&pair)?;
    println!(
        "slot, down for {LESS} MB of {} MB: goes on, {segments} segments are equal, pg_wal had at \
         most {} MB",
        HOLD / MB,
        most / MB
    );

    pair.leader_agent.kill()?;
    let most = write(&pair, MORE)?;
    ensure!(most < HOLD + OWN, "pg_wal had {most} bytes");
    let status = pair.leader.sql("select wal_status from pg_replication_slots")?;
    ensure!(status == "lost", "the slot is {status}");
    pair.leader_agent.start()?;
    let words = in_gap(&pair)?;
    println!("slot, down for {MORE} MB: {words}; pg_wal had at most {} MB", most / MB);
    filled(&scratch, &mut pair)?;
    wait_until("a slot is there again", PATIENCE, || {
        Ok(pair.leader.sql("select wal_status from pg_replication_slots")? == "reserved")
    })
}

#[test]
fn without_a_slot() -> Result<()> {
    let scratch = Scratch::new()?;
    let settings = ["max_slot_wal_keep_size = -1", "wal_keep_size = 16MB"];
    let mut pair = Pair::start(&scratch, &options(&settings), 1)?;
    wait_until("the agent says why it has no slot", PATIENCE, || {
        let status = pair.leader_agent.run_verb("status", &[])?;
        Ok(status.contains("max_slot_wal_keep_size is not bounded"))
    })?;
    ensure!(slots(&pair)?.is_empty(), "a slot that is not bounded fills the disk");

    pair.leader_agent.kill()?;
    let most = write(&pair, LESS)?;
    pair.leader_agent.start()?;
    let segments = agrees(&pair)?;
    println!(
        "no slot, down for {LESS} MB of {} MB: goes on, {segments} segments are equal, pg_wal had \
         at most {} MB",
        HOLD / MB,
        most / MB
    );

    pair.leader_agent.kill()?;
    let most = write(&pair, MORE)?;
    ensure!(most < HOLD + OWN, "pg_wal had {most} bytes");
    pair.leader_agent.start()?;
    println!(
        "no slot, down for {MORE} MB: {}; pg_wal had at most {} MB",
        in_gap(&pair)?,
        most / MB
    );

    // The control: what a slot would have done here.
    pair.leader.sql("select pg_create_physical_replication_slot('control', true)")?;
    let most = write(&pair, MORE)?;
    ensure!(most > HOLD + OWN, "an unbounded slot has held {most} bytes only");
    println!("control: with an unbounded slot pg_wal had {} MB", most / MB);
    pair.leader.sql("select pg_drop_replication_slot('control')")?;
    filled(&scratch, &mut pair)?;

    // A bound that comes and goes makes the slot come and go.
    let reload = |line: &str| -> Result<()> {
        pair.leader.configure(&[line])?;
        pair.leader.sql("select pg_reload_conf()").map(drop)
    };
    reload("max_slot_wal_keep_size = 16MB")?;
    wait_until("the slot is made", PATIENCE, || Ok(slots(&pair)? == SLOT))?;
    reload("max_slot_wal_keep_size = -1")?;
    wait_until("the slot is dropped", PATIENCE, || Ok(slots(&pair)?.is_empty()))
}

/// Commands that bring nothing, or something else, fill no gap; one that does, does.
fn filled(scratch: &Scratch, pair: &mut Pair) -> Result<()> {
    let kept = pair.leader.kept_segments().context("segments are kept")?.to_owned();
    let stands = pair.leader_agent.position("appended").ok();
    let flipped = scratch.directory("flipped")?;
    let kept = kept.display();
    let flip = format!(
        "cp {kept}/%f {0}/%f && printf '\\001' | dd of={0}/%f bs=1 seek=500000 conv=notrunc \
         status=none && cp {0}/%f %p",
        flipped.display()
    );
    for (command, words) in [
        ("false", "exit status: 1"),
        ("true", "gave no segment"),
        ("head -c 1000 /dev/zero > %p", "1000 bytes instead of 1048576"),
        (
            &format!("ls {kept} | head -n 1 | xargs -I@ cp {kept}/@ %p"),
            "it begins with the page of",
        ),
        ("head -c 1048576 /dev/zero > %p", "gave no segment"),
    ] {
        replace(scratch, &mut pair.leader_agent, &[("source", "gap_command", command)])?;
        let said = in_gap(pair)?;
        println!("{command}: {said}");
        ensure!(said.contains(words), "{words}: {said}");
    }
    // One flipped byte in a record is noticed, in what the archive has a part of and behind it.
    let mut random = Seed::take("a byte", 4).generator();
    let seek = format!("seek={}", random.random_range(300_000..900_000));
    let flip = flip.replace("seek=500000", &seek);
    let missing = tail_detail(&pair.leader_agent)?;
    let missing = missing.split_whitespace().nth(1).context("a segment's name")?.to_owned();
    let later = format!("if [ %f = {missing} ]; then cp {kept}/%f %p; else {flip}; fi");
    for command in [flip, later] {
        replace(scratch, &mut pair.leader_agent, &[("source", "gap_command", &command)])?;
        let said = in_gap(pair)?;
        println!("flipped at {seek}: {said}");
        ensure!(said.contains("what gap_command gave"), "{said}");
    }

    let right = format!("cp {kept}/%f %p");
    replace(scratch, &mut pair.leader_agent, &[("source", "gap_command", &right)])?;
    let segments = agrees(pair)?;
    let left = fetched(&pair.leader_agent)?.len();
    println!("{right}: {segments} segments are equal, {left} left beside the archive");
    ensure!(left == 0, "{left} segments stay beside the archive");
    ensure!(pair.leader_agent.position("appended").ok() > stands, "nothing was added");
    Ok(())
}

fn tail_detail(agent: &Agent) -> Result<String> {
    let status = agent.status()?;
    let stages = status["stages"].as_array().context("stages")?;
    let tail = stages.iter().find(|stage| stage["stage"] == "tail").context("tail")?;
    Ok(tail["detail"].as_str().unwrap_or_default().to_owned())
}

fn fetched(agent: &Agent) -> Result<Vec<PathBuf>> {
    let directory = agent.archive_directory().join("gap");
    fs::read_dir(directory)?.map(|entry| Ok(entry?.path())).collect()
}

/// Where the agent has nothing to ship, no slot of its own stays to hold WAL.
#[test]
fn no_slot_is_left_behind() -> Result<()> {
    let scratch = Scratch::new()?;
    let bounded = options(&["max_slot_wal_keep_size = 16MB"]);
    let mut server = Cluster::start_new(&scratch, "server", &bounded)?;
    let other = Cluster::start_new(&scratch, "other", &bounded)?;
    let slots = |server: &Cluster| {
        server.sql("select coalesce(string_agg(slot_name, ','), '') from pg_replication_slots")
    };
    let mut agent = Agent::new(&scratch, AgentConfig::leader("leader1", &server)?)?;
    agent.start()?;
    wait_until("the slot is there", PATIENCE, || Ok(slots(&server)? == SLOT))?;

    // The server comes back as a standby.
    server.stop(StopMode::Fast)?;
    scratch.file("server/standby.signal", "")?;
    server.start()?;
    wait_until("the slot is dropped on a standby", PATIENCE, || Ok(slots(&server)?.is_empty()))?;
    agent.kill()?;

    // conninfo leads elsewhere: nothing is made there, and it is said.
    fs::remove_file(server.data_directory().join("standby.signal"))?;
    server.stop(StopMode::Fast)?;
    server.start()?;
    let mut config = AgentConfig::leader("leader1", &server)?;
    config.source = Source::Server {
        data_directory: server.data_directory().to_owned(),
        conninfo: Some(other.endpoint().conninfo()),
    };
    let mut agent = Agent::new(&scratch, config)?;
    agent.start()?;
    wait_until("it is said", PATIENCE, || {
        Ok(agent.run_verb("status", &[])?.contains("conninfo leads to system"))
    })?;
    ensure!(slots(&other)?.is_empty(), "a slot on another server: {}", slots(&other)?);
    Ok(())
}

/// An agent that ended before it had archived anything, and comes back too late for where it was to begin,
/// misses nothing: nobody was given anything. If anything is archived, it is a gap.
#[test]
fn an_archive_of_nothing_has_no_gap() -> Result<()> {
    let scratch = Scratch::new()?;
    // Nothing is held for the agent: only the checkpoints here remove anything, while none runs.
    let seldom = ["max_wal_size = 1GB", "checkpoint_timeout = 1h"];
    let settings = [&["max_slot_wal_keep_size = -1", "wal_keep_size = 0"], &seldom[..]].concat();
    let leader = Cluster::start_new(&scratch, "leader", &options(&settings))?;
    let mut agent = Agent::new(&scratch, AgentConfig::leader("leader1", &leader)?)?;
    let written = || leader.sql("select pg_walfile_name(pg_current_wal_lsn())");
    let leaves = |segment: &str| -> Result<()> {
        let there = format!("select count(*) from pg_ls_waldir() where name = '{segment}'");
        wait_until("the server removes a segment", PATIENCE, || {
            fill(&leader, 2, Until::EVER)?;
            leader.sql("checkpoint")?;
            Ok(leader.sql(&there)? == "0")
        })
    };
    let first = written()?;
    leaves(&first)?;
    agent.start()?;
    agent.wait_for_state("tail", "streaming")?;
    agent.kill()?;

    let mut directory = None;
    for (_, path) in archived_segments(&agent)? {
        fs::remove_file(&path)?;
        directory = path.parent().map(PathBuf::from);
    }
    let empty = directory.context("a segment")?.join(format!("{first}.zst"));
    fs::write(&empty, "")?;
    scratch.account().own(&empty)?;
    agent.start()?;
    agent.wait_for_state("tail", "streaming")?;
    fill(&leader, 3, Until::EVER)?;
    let end = leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
    agent.wait_for_position("appended", end, PATIENCE)?;
    agent.kill()?;
    let segments: Vec<String> = archived_segments(&agent)?.into_keys().collect();
    ensure!(!segments.contains(&first) && segments.len() > 1, "{segments:?}");
    println!("was to begin with {first}, which was gone: begins with {}", segments[0]);

    leaves(&written()?)?;
    agent.start()?;
    agent.wait_for_state("tail", "gap")?;
    let still: Vec<String> = archived_segments(&agent)?.into_keys().collect();
    ensure!(still == segments, "{still:?}");
    println!(
        "control: with something in it, it stays at its end, {}",
        segments[segments.len() - 1]
    );
    Ok(())
}

/// Readers hold WAL against wishes, not against hard limits; who comes too late is told.
#[test]
fn retention() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &options(&["wal_keep_size = 16MB"]), 1)?;
    // What is written is hard to compress: archive bytes are like WAL bytes, or half of it.
    let bulk = |pair: &Pair, until: Until| -> Result<()> {
        for _ in 0..15 {
            until.check()?;
            pair.leader.sql(
                "create table if not exists bulk (filler bytea); truncate bulk; \
                 insert into bulk select decode(md5(random()::text) || md5(random()::text), 'hex') \
                 from generate_series(1, 20000)",
            )?;
        }
        Ok(())
    };
    replace(
        &scratch,
        &mut pair.leader_agent,
        &[
            ("archive", "keep_bytes", "2MB"),
            ("archive", "max_bytes", "24MB"),
            ("archive", "expect_followers", "30s"),
        ],
    )?;
    // For as long as followers are expected to come, everything is kept: that time is to be over.
    wait_for_removal(&pair.leader, &pair.leader_agent)?;

    // A follower that is connected and takes nothing: the wish waits for it. One that says nothing is given
    // up 10 s later, and is waited for as long as for one that is to come.
    let held_for = Duration::from_secs(30);
    let held = beside_one_that_hangs(&pair, held_for, |until| {
        bulk(&pair, until)?;
        retention_looks(&pair.leader, &pair.leader_agent, until)
    })?;
    println!("held for a follower: {held} bytes");
    ensure!(held > 10 * MB, "only {held} bytes are there for a follower that needs them");
    ensure!(held < 24 * MB, "{held} bytes: the hard limit must not be reached yet");
    caught_up(&pair)?;
    let removed = pair.leader_agent.metrics()?.expect("walferry_removed_segments_total")?;
    println!(
        "caught up: {} bytes left, {removed} segments removed",
        file_bytes(&pair.leader_agent)?
    );

    // Past the hard limit it is removed all the same, and the follower is told.
    let write = |until: Until| -> Result<()> {
        bulk(&pair, until)?;
        wait_until("the limit is kept", PATIENCE, || {
            until.check()?;
            Ok(file_bytes(&pair.leader_agent)? < 26 * MB)
        })
    };
    beside_one_that_hangs(&pair, held_for, |until| {
        let words = "although a reader needs it";
        while !fs::read_to_string(pair.leader_agent.log_path())?.contains(words) {
            write(until)?;
        }
        let begun: Lsn = pair.flush_position()?;
        while pair.flush_position()?.bytes_since(begun) < 100 * MB {
            write(Until::EVER)?;
        }
        Ok(())
    })?;
    pair.follower.wait_for_state("receive", "needs_bootstrap")?;
    println!("{}", pair.follower.run_verb("status", &[])?);
    // It asks again and again, and nothing is kept for what it cannot have.
    bulk(&pair, Until::EVER)?;
    nothing_is_held(&pair.leader_agent)?;
    // It may be asking just now.
    pair.follower.wait_for_state("receive", "needs_bootstrap")
}

fn file_bytes(agent: &Agent) -> Result<u64> {
    Ok(agent.metrics()?.expect("walferry_archive_size_bytes")? as u64)
}

/// Waits until the follower has everything, and what was kept for it is gone.
fn caught_up(pair: &Pair) -> Result<()> {
    pair.catch_up(PATIENCE)?;
    nothing_is_held(&pair.leader_agent)
}

fn nothing_is_held(agent: &Agent) -> Result<()> {
    wait_until("nobody needs it, so it goes", PATIENCE, || Ok(file_bytes(agent)? < 8 * MB))
        .with_context(|| format!("{:?}", file_bytes(agent)))
}

/// Until when something is to be done.
#[derive(Clone, Copy)]
struct Until(Option<Instant>);

impl Until {
    const EVER: Self = Self(None);

    fn check(self) -> Result<()> {
        ensure!(self.0.is_none_or(|end| Instant::now() < end), TooSlow);
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
#[error("this machine was too slow")]
struct TooSlow;

/// Does something while the follower is connected and says nothing. On a machine so slow that the follower
/// might be given up meanwhile, it goes on in time, and all begins again.
fn beside_one_that_hangs<T>(
    pair: &Pair,
    limit: Duration,
    act: impl Fn(Until) -> Result<T>,
) -> Result<T> {
    let follower = pair.follower.pid().context("it runs")?;
    loop {
        caught_up(pair)?;
        send_signal(follower, Signal::STOP)?;
        let done = act(Until(Some(Instant::now() + limit)));
        send_signal(follower, Signal::CONT)?;
        match done {
            Err(error) if error.is::<TooSlow>() => println!("again: {error}"),
            done => return done,
        }
    }
}

/// An archive that keeps next to nothing but what somebody needs. For as long as followers are expected
/// to come it keeps everything, and a follower that hangs is needed for so long, and 10 s more.
const TIGHT: [(&str, &str, &str); 2] =
    [("archive", "keep_bytes", "1MB"), ("archive", "expect_followers", "10s")];

/// Writes WAL that is hard to compress, so that the archive's files grow.
fn fill(leader: &Cluster, megabytes: u32, until: Until) -> Result<()> {
    for _ in 0..megabytes {
        until.check()?;
        leader.sql(
            "select pg_logical_emit_message(true, 'fill', string_agg(md5(random()::text), '')) \
             from generate_series(1, 32000)",
        )?;
    }
    Ok(())
}

/// The segment that the server writes now; then more of them, and time for retention. Says whether the
/// archive still has it.
fn pass_by(leader: &Cluster, agent: &Agent, until: Until) -> Result<(String, bool)> {
    let segment = leader.sql("select pg_walfile_name(pg_current_wal_insert_lsn())")?;
    fill(leader, 12, until)?;
    retention_looks(leader, agent, until)?;
    let has = has(agent, &segment)?;
    until.check()?;
    Ok((segment, has))
}

/// Waits until retention has judged all that the server has written; gives the archive's bytes then.
fn retention_looks(leader: &Cluster, agent: &Agent, until: Until) -> Result<u64> {
    let end: Lsn = leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
    wait_until("the archive has it", PATIENCE, || {
        until.check()?;
        Ok(agent.position("appended").is_ok_and(|appended| appended >= end))
    })?;
    // Retention tells the size first in each of its rounds. The first that is told may have been
    // measured before, and what follows of the second is done when the third is told.
    for _ in 0..3 {
        let before = file_bytes(agent)?;
        fill(leader, 1, until)?;
        wait_until("retention looks again", PATIENCE, || {
            until.check()?;
            Ok(file_bytes(agent)? != before)
        })?;
    }
    let bytes = file_bytes(agent)?;
    until.check()?;
    Ok(bytes)
}

/// Waits until retention removes something: the time for followers to come is over.
fn wait_for_removal(leader: &Cluster, agent: &Agent) -> Result<()> {
    let removed = || agent.metrics()?.expect("walferry_removed_segments_total");
    let before = removed()?;
    fill(leader, 12, Until::EVER)?;
    wait_until("retention removes something", PATIENCE, || Ok(removed()? > before))
}

fn has(agent: &Agent, segment: &str) -> Result<bool> {
    Ok(archived_segments(agent)?.contains_key(segment))
}

/// A node that is refused, however often it asks, holds no WAL; the same one of this cluster does.
#[test]
fn who_is_refused_holds_nothing() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &options(&["wal_keep_size = 64MB"]), 1)?;
    replace(&scratch, &mut pair.leader_agent, &TIGHT)?;
    // The control: the follower that may have WAL, and takes none.
    wait_for_removal(&pair.leader, &pair.leader_agent)?;
    let (segment, held) = beside_one_that_hangs(&pair, Duration::from_secs(10), |until| {
        pass_by(&pair.leader, &pair.leader_agent, until)
    })?;
    ensure!(held, "{segment} was not kept for a follower");
    wait_until("it has it", PATIENCE, || Ok(!has(&pair.leader_agent, &segment)?))?;
    println!("control: {segment} was kept for a follower that took nothing");
    pair.follower.stop()?;

    let other = Cluster::start_new(&scratch, "other", &options(&[]))?;
    let backup = scratch.path().join("other-backup");
    other.base_backup(&backup, BackupWal::Stream)?;
    let config = AgentConfig::follower("stranger", &scratch, &pair.leader_agent)?;
    let mut stranger = Agent::new(&scratch, config)?;
    stranger.bootstrap(&backup)?;
    stranger.start()?;
    let refusals = |agent: &Agent| -> Result<usize> {
        Ok(fs::read_to_string(agent.log_path())?.matches("belongs to system identifier").count())
    };
    wait_until("it is refused", PATIENCE, || Ok(refusals(&pair.leader_agent)? > 0))
        .with_context(|| pair.leader_agent.log_tail(20))?;
    let (segment, _) = pass_by(&pair.leader, &pair.leader_agent, Until::EVER)?;
    wait_until("nothing is kept for it", PATIENCE, || Ok(!has(&pair.leader_agent, &segment)?))?;
    let status = stranger.run_verb("status", &[])?;
    println!(
        "{segment} is gone, the stranger was refused {} times: {status}",
        refusals(&pair.leader_agent)?
    );
    ensure!(stranger.is_running(), "{}", stranger.log_tail(20));
    Ok(())
}

/// The archive keeps what a bootstrap will need while the server's checkpoint is still under way: WAL
/// from then on belongs to the backup.
#[test]
fn a_bootstrap_holds_wal_from_before_its_checkpoint() -> Result<()> {
    let scratch = Scratch::new()?;
    let slow = ["max_wal_size = 4GB", "checkpoint_timeout = 1h", "wal_keep_size = 64MB"];
    let leader = Cluster::start_new(&scratch, "leader", &options(&slow))?;
    let config = AgentConfig::leader("leader1", &leader)?;
    let mut leader_agent = Agent::new(&scratch, config)?;
    leader_agent.start()?;
    replace(&scratch, &mut leader_agent, &TIGHT)?;
    leader_agent.wait_for_state("tail", "streaming")?;
    wait_for_removal(&leader, &leader_agent)?;
    let follower = AgentConfig::follower("follower1", &scratch, &leader_agent)?;
    let mut follower = Agent::new(&scratch, follower)?;
    let begin = |follower: &Agent| -> Result<Child> {
        // Pages for a checkpoint that is spread over nearly an hour.
        leader.pgbench_init(2, &[])?;
        // One that was killed before may still be there for a moment.
        wait_until("no backup is under way", PATIENCE, || {
            Ok(leader.sql("select count(*) from pg_stat_progress_basebackup")? == "0")
        })?;
        let mut command = follower.command("bootstrap");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = child.spawn()?;
        wait_until("the backup waits for its checkpoint", PATIENCE, || {
            let query = "select count(*) from pg_stat_progress_basebackup \
                         where phase = 'waiting for checkpoint to finish'";
            Ok(leader.sql(query)? == "1")
        })?;
        Ok(child)
    };

    let mut child = begin(&follower)?;
    let (segment, held) = pass_by(&leader, &leader_agent, Until::EVER)?;
    ensure!(held, "{segment} was not kept for a bootstrap");
    // The control: nobody waits any more.
    child.kill()?;
    child.wait()?;
    wait_until("it is kept no longer", PATIENCE, || Ok(!has(&leader_agent, &segment)?))?;
    println!("{segment} was kept for a bootstrap, and went when that was killed");

    // And one that is not killed gets what it needs. The other's checkpoint is not to be waited for.
    leader.sql("checkpoint")?;
    let mut child = begin(&follower)?;
    let (segment, held) = pass_by(&leader, &leader_agent, Until::EVER)?;
    ensure!(held, "{segment} was not kept for a bootstrap");
    leader.sql("checkpoint")?;
    let exit = wait_for_exit(&mut child, PATIENCE)?;
    ensure!(exit.success(), "bootstrap: {exit}, {}", leader_agent.log_tail(20));
    ensure!(has(&follower, &segment)?, "the backup began before {segment}");
    follower.start()?;
    let end = leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
    follower.wait_replayed(end, PATIENCE)
}
