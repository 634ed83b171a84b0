//! What a hostile reading of the agent found, each as a test: moments at which a replica can end up
//! with less than it says, with another history, or beside a second writer.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use integration::command::output_of;
use integration::compare::{Comparison, digests_of};
use integration::metrics::http_get;
use integration::pair::{archive_of, archived_segments, last_record_end, unpacked_equals};
use integration::process::{send_signal, wait_for_exit, wait_until};
use integration::{
    Agent, AgentConfig, BackupWal, Binaries, Cluster, ClusterOptions, PATIENCE, Pair, Scratch,
    Seed, StopMode,
};
use rand::RngExt;
use rustix::process::Signal;
use walfmt::{Lsn, SegmentName, SegmentSize};

const SEGMENT_BYTES: u32 = 1 << 20;
const WAL_PAGE_BYTES: u64 = 8192;

/// A leader loses what it had not synced of its archive, and makes it again from `pg_wal`: in other
/// blocks, but it is the same WAL, and a follower that was ahead of it goes on.
#[test]
fn a_leader_that_lost_the_end_of_its_archive_is_still_the_leader() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &ClusterOptions { keep_segments: true, ..options() }, 1)?;
    let mut generator = Seed::take("moments of a leader's crash", 31).generator();
    let load = pair.leader.pgbench(&["-c", "2", "-T", "600", "-R", "300"])?;
    let mut behind = 0;
    for round in 1..=3 {
        let begun = pair.flush_position()?;
        wait_until("a segment is well begun", PATIENCE, || {
            let durable = pair.follower.position("durable")?;
            let offset = durable.0 % u64::from(SEGMENT_BYTES);
            Ok(durable > begun.advance(50_000) && (300_000..800_000).contains(&offset))
        })?;
        pair.leader_agent.kill()?;
        let (name, file) =
            archived_segments(&pair.leader_agent)?.pop_last().context("the archive is empty")?;
        let length = fs::metadata(&file)?.len();
        fs::OpenOptions::new().write(true).open(&file)?.set_len(length / 2)?;
        let left = archived_end(&pair, &name)?;
        let durable = pair.follower.position("durable")?;
        behind += u32::from(left < durable);
        println!(
            "round {round}: {name} cut to {} bytes, WAL to {left}; follower: {durable}",
            length / 2
        );
        // The server goes on meanwhile: what is read anew does not end where it did.
        thread::sleep(Duration::from_millis(generator.random_range(300..900)));
        pair.leader_agent.start()?;
        let goal = pair.flush_position()?;
        wait_until("the follower goes on", PATIENCE, || {
            let state = pair.follower.state_of("receive")?;
            ensure!(state != "diverged", "{}", stage_of(&pair.follower, "receive")?);
            Ok(pair.follower.position("durable")? >= goal)
        })?;
    }
    ensure!(behind > 0, "the leader never had less than the follower");
    load.stop()?;
    pair.catch_up(PATIENCE)?;
    ensure!(!fs::read_to_string(pair.follower.log_path())?.contains("diverged"));
    let compared = pair.compare_archive()?;
    let kept = pair.leader.kept_segments().context("segments are kept")?;
    let mut of_leader = 0;
    for (name, file) in archived_segments(&pair.leader_agent)? {
        if kept.join(&name).exists() {
            ensure!(unpacked_equals(&file, &kept.join(&name))?, "the leader's {name} differs");
            of_leader += 1;
        }
    }
    println!(
        "leader's archive cut 3 times, {behind} times behind the follower; segments equal to those \
         kept: {compared} on the follower, {of_leader} on the leader"
    );
    another_history_is_told_apart(&scratch, &mut pair)
}

/// The control: the server is set back to a copy of itself and writes other WAL from there.
fn another_history_is_told_apart(scratch: &Scratch, pair: &mut Pair) -> Result<()> {
    pair.leader_agent.stop()?;
    pair.leader.stop(StopMode::Fast)?;
    let directory = pair.leader.data_directory().to_owned();
    let copy = scratch.path().join("leader-before");
    output_of(scratch.account().command("cp").arg("-a").arg(&directory).arg(&copy))?;
    pair.leader.start()?;
    pair.leader_agent.start()?;
    pair.leader.pgbench_run(&["-t", "50"])?;
    let end = pair.catch_up(PATIENCE)?;

    pair.leader_agent.stop()?;
    pair.leader.stop(StopMode::Immediate)?;
    fs::remove_dir_all(&directory)?;
    fs::rename(&copy, &directory)?;
    pair.leader.start()?;
    while pair.flush_position()? < end.advance(100_000) {
        pair.leader.pgbench_run(&["-t", "50"])?;
    }
    // An archive of the history before would stop the leader itself.
    let archive = pair.leader_agent.archive_directory().to_owned();
    fs::rename(&archive, scratch.path().join("archive-before"))?;
    scratch.directory(archive.file_name().and_then(|name| name.to_str()).context("a name")?)?;
    let durable = pair.follower.position("durable")?;
    pair.leader_agent.start()?;
    pair.follower.wait_for_state("receive", "diverged")?;
    ensure!(pair.follower.position("durable")? == durable, "WAL of another history was taken");
    println!("control: {}", stage_of(&pair.follower, "receive")?);
    Ok(())
}

/// Where the WAL ends that a file of the leader's archive holds.
fn archived_end(pair: &Pair, segment: &str) -> Result<Lsn> {
    let archive = archive_of(&pair.leader_agent, pair.leader.data_directory())?;
    let size = archive.segment_size();
    let name: SegmentName = segment.parse()?;
    let start = size.start_of(name.number(size).context("a segment")?);
    Ok(start.advance(archive.read_segment(name)?.len() as u64))
}

/// A server that crashes between a segment switch and its zero fill leaves a recycled file's old
/// bytes there for good. They are no WAL, and no reason to stop.
#[test]
fn old_bytes_behind_a_segment_switch_are_passed_over() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &options(), 1)?;
    pair.leader.sql("create table t (x int)")?;
    pair.leader.sql("select pg_switch_wal()")?;
    pair.catch_up(PATIENCE)?;
    pair.leader_agent.kill()?;
    pair.leader.sql("insert into t select 1")?;
    let segment = pair.leader.sql("select pg_walfile_name(pg_current_wal_insert_lsn())")?;
    let switch: Lsn = pair.leader.sql("select pg_switch_wal()")?.parse()?;
    pair.leader.sql("insert into t select 2")?;
    pair.leader.sql("insert into t select 3")?;
    pair.leader.stop(StopMode::Immediate)?;

    let first_page = (switch.0 % u64::from(SEGMENT_BYTES)).next_multiple_of(WAL_PAGE_BYTES);
    let mut generator = Seed::take("old bytes in the fill", 32).generator();
    let at = first_page + WAL_PAGE_BYTES * generator.random_range(1..8);
    let garbage: Vec<u8> = (0..WAL_PAGE_BYTES * 40).map(|_| generator.random()).collect();
    let file = pair.leader.wal_directory().join(&segment);
    fs::OpenOptions::new().write(true).open(&file)?.write_all_at(&garbage, at)?;
    println!(
        "{segment}: switch up to {switch}, {} random bytes from offset {at} on",
        garbage.len()
    );

    pair.leader.start()?;
    pair.leader.sql("insert into t select 4")?;
    // The second time over WAL that the archive has.
    for _ in 0..2 {
        pair.leader_agent.start()?;
        pair.leader.sql("insert into t select 5")?;
        let end = pair.catch_up(PATIENCE)?;
        pair.leader_agent.wait_for_state("tail", "streaming")?;
        println!("replayed up to {end}");
        pair.leader_agent.stop()?;
    }
    for agent in [&pair.leader_agent, &pair.follower] {
        let archived = archived_segments(agent)?;
        let archived = archived.get(&segment).context("the segment is not archived")?;
        ensure!(unpacked_equals(archived, &file)?, "{} is not in pg_wal", archived.display());
    }
    a_changed_record_is_not(&mut pair)
}

/// The control: one bit of a record.
fn a_changed_record_is_not(pair: &mut Pair) -> Result<()> {
    let begin = pair.flush_position()?;
    let message =
        |length| format!("select pg_logical_emit_message(true, 't', repeat('x', {length}))");
    // More follows, so that the server does not write the page again.
    let lsn: Lsn = pair.leader.sql(&message(2000))?.parse()?;
    pair.leader.sql(&message(50_000))?;
    let name = pair.leader.sql(&format!("select pg_walfile_name('{lsn}')"))?;
    let path = pair.leader.wal_directory().join(&name);
    let file = fs::OpenOptions::new().read(true).write(true).open(&path)?;
    let mut at = begin.0 % u64::from(SEGMENT_BYTES);
    let mut bytes = [0; 8];
    loop {
        file.read_exact_at(&mut bytes, at)?;
        if bytes == *b"xxxxxxxx" {
            break;
        }
        at += 1;
    }
    file.write_all_at(b"y", at)?;
    pair.leader.sql("select pg_switch_wal()")?;
    pair.leader.sql("insert into t select 6")?;
    pair.leader_agent.start()?;
    let stopped = wait_stopped(&pair.leader_agent, "tail")?;
    println!("control, {name} at offset {at}: {stopped}");
    ensure!(stopped.contains("corrupt"), "{stopped}");
    ensure!(pair.leader_agent.position("appended").unwrap_or_default() <= lsn);
    ensure!(pair.follower.position("received")? <= lsn, "a changed record was shipped");
    Ok(())
}

/// A standby is promoted, and has not written a checkpoint since: its last one still names the
/// timeline before.
#[test]
fn a_promoted_server_is_not_followed_on_its_old_timeline() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut primary = Cluster::start_new(&scratch, "primary", &options())?;
    primary.sql("create table t as select generate_series(1, 1000)")?;
    let backup = scratch.path().join("standby");
    primary.base_backup(&backup, BackupWal::Stream)?;
    let mut standby = Cluster::at(&scratch, "standby", &backup, Binaries::find()?)?;
    scratch.file("standby/standby.signal", "")?;
    let conninfo = primary.endpoint().conninfo().replace('\'', "''");
    standby.configure(&[format!("primary_conninfo = '{conninfo}'")])?;
    standby.start()?;
    let mut agent = Agent::new(&scratch, AgentConfig::leader("leader1", &standby)?)?;
    agent.start()?;
    agent.wait_for_state("tail", "waiting")?;

    // Some segments and many dirty pages: the checkpoint after the promotion takes its time.
    primary.sql("insert into t select generate_series(1, 200000)")?;
    let end = primary.sql("select pg_current_wal_flush_lsn()")?;
    wait_until("the standby has it", PATIENCE, || {
        Ok(standby.sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'"))? == "t")
    })?;
    primary.stop(StopMode::Fast)?;
    standby.sql("select pg_promote()")?;
    standby.sql("insert into t select 5")?;
    let checkpointed = standby.sql("select timeline_id from pg_control_checkpoint()")?;
    ensure!(checkpointed == "1", "it has written a checkpoint already");
    let stopped = wait_stopped(&agent, "tail")?;
    println!("promoted: {stopped}");
    refused_for_its_timeline(&agent, &stopped)
}

/// The server is restored in place, to a timeline of its own, while the agent runs.
#[test]
fn a_server_that_went_to_another_timeline_is_not_followed() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut leader = Cluster::start_new(&scratch, "leader", &options())?;
    leader.sql("create table t as select generate_series(1, 1000)")?;
    let mut agent = Agent::new(&scratch, AgentConfig::leader("leader1", &leader)?)?;
    agent.start()?;

    // The control: a server that was merely restarted is the same.
    leader.stop(StopMode::Fast)?;
    leader.start()?;
    leader.crash_and_recover()?;
    leader.sql("insert into t select 1")?;
    let end: Lsn = leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
    agent.wait_for_position("appended", end, PATIENCE)?;
    thread::sleep(Duration::from_secs(2));
    ensure!(agent.state_of("tail")? == "streaming", "{}", stage_of(&agent, "tail")?);
    println!("control: stopped, started, killed and recovered: {}", stage_of(&agent, "tail")?);

    leader.stop(StopMode::Fast)?;
    scratch.file("leader/recovery.signal", "")?;
    leader.configure(&["restore_command = 'false'"])?;
    leader.start()?;
    leader.wait_recovered()?;
    leader.sql("create table u as select generate_series(1, 100000)")?;
    let begun = Instant::now();
    let stopped = wait_stopped(&agent, "tail")?;
    println!("restored, after {:.1} s: {stopped}", begun.elapsed().as_secs_f64());
    refused_for_its_timeline(&agent, &stopped)?;
    for name in archived_segments(&agent)?.keys() {
        ensure!(name.starts_with("00000001"), "{name} is in the archive");
    }
    Ok(())
}

fn refused_for_its_timeline(agent: &Agent, stopped: &str) -> Result<()> {
    ensure!(stopped.contains("timeline 1") && stopped.contains("timeline 2"), "{stopped}");
    let log = fs::read_to_string(agent.log_path())?;
    let said =
        log.lines().any(|line| line.contains("kind=\"refused\"") && line.contains("timeline 2"));
    ensure!(said, "{log}");
    let health = http_get(agent.config.metrics_port, "/healthz").expect_err("it has stopped");
    ensure!(health.to_string().contains("503"), "{health}");
    Ok(())
}

/// The leader lives although it was said to be dead, and is at work. Once the store is a server's,
/// nothing is received for nobody, and the server has all that was acknowledged. An agent that is
/// then started on the store keeps its hands off.
#[test]
fn a_promoted_store_gets_nothing_more_and_is_the_servers() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &options(), 2)?;
    let store = pair.store().to_owned();
    ensure!(store.join("walferry.lock").exists(), "control: an agent's store has its lock");
    let before = pair.follower.position("durable")?;
    let mut load = pair.leader.pgbench(&["-c", "4", "-T", "600"])?;
    wait_until("something of the load is durable", PATIENCE, || {
        Ok(pair.follower.position("durable")? > before)
    })?;
    let begun = Instant::now();
    let mut promoted = pair.follower.promote("promoted", &["--leader-is-dead"])?;
    println!("promoted under load in {:.1} s", begun.elapsed().as_secs_f64());

    let durable = pair.follower.position("durable")?;
    ensure!(durable > before, "nothing came of the load before the promotion");
    let written = pair.flush_position()?;
    // For 1.5 s at least, and until the leader has written something meanwhile.
    let (asked, mut more) = (Instant::now(), 0);
    wait_until("the leader was at work", PATIENCE, || {
        let received = pair.follower.position("received")?;
        let now = pair.follower.position("durable")?;
        ensure!(received == durable && now == durable, "{received} {now}, then {durable}");
        let lasts = asked.elapsed() > Duration::from_millis(1500);
        // The follower's positions are looked at once more when the leader's has moved.
        if more > 0 && lasts {
            return Ok(true);
        }
        more = pair.flush_position()?.bytes_since(written);
        Ok(false)
    })?;
    ensure!(load.is_running()?, "the leader was at work");
    let acknowledged = pair.leader_agent.metrics()?.follower_position("follower1", "durable");
    let acknowledged = acknowledged.context("the follower has reported")?;
    ensure!(acknowledged <= durable, "{acknowledged} was acknowledged, {durable} is there");
    load.stop()?;
    let switch = switch_point(&promoted)?;
    println!(
        "received and durable stay at {durable} while the leader writes {more} bytes; acknowledged \
         {acknowledged}, the promoted server goes on from {switch}"
    );
    // What is durable may end within a record, and that one is nothing yet.
    let whole = last_record_end(&pair.follower, pair.leader.data_directory(), durable)?;
    ensure!(
        whole <= durable && durable.bytes_since(whole) < 64 << 10,
        "{whole} is no record's end"
    );
    ensure!(switch >= whole, "the server has less than was acknowledged: {whole}");

    let running = Traces::of(&store)?;
    pair.follower.kill()?;
    refuses_to_run(&mut pair.follower)?;
    ensure!(Traces::of(&store)? == running, "{:?}, then {running:?}", Traces::of(&store)?);
    ensure!(running.pid_file.is_some());
    ensure!(promoted.sql("select 1")? == "1");

    promoted.stop(StopMode::Fast)?;
    let stopped = Traces::of(&store)?;
    refuses_to_run(&mut pair.follower)?;
    ensure!(Traces::of(&store)? == stopped, "{:?}, then {stopped:?}", Traces::of(&store)?);
    ensure!(stopped.pid_file.is_none() && !stopped.names.contains("walferry.lock"));
    promoted.start()
}

/// It ends with the exit status at which systemd does not try again, and says why.
fn refuses_to_run(agent: &mut Agent) -> Result<()> {
    agent.spawn()?;
    wait_until("the agent ends", PATIENCE, || Ok(!agent.is_running()))?;
    let outcome = agent.verb("run", &[])?;
    println!("agent on a promoted store: {outcome:?}");
    ensure!(outcome.exit == Some(2) && outcome.stderr.contains("is a server's"), "{outcome:?}");
    Ok(())
}

/// What an agent could have left in a data directory.
#[derive(Debug, PartialEq)]
struct Traces {
    names: BTreeSet<String>,
    pid_file: Option<(SystemTime, String)>,
}

impl Traces {
    fn of(directory: &Path) -> Result<Self> {
        let mut names = BTreeSet::new();
        for entry in fs::read_dir(directory)? {
            names.insert(entry?.file_name().to_string_lossy().into_owned());
        }
        let path = directory.join("postmaster.pid");
        let pid_file = if path.exists() {
            Some((fs::metadata(&path)?.modified()?, fs::read_to_string(&path)?))
        } else {
            None
        };
        Ok(Self { names, pid_file })
    }
}

/// Where a promoted server left the timeline before, by its `00000002.history`: timeline and
/// position, then a reason.
fn switch_point(promoted: &Cluster) -> Result<Lsn> {
    let history = fs::read_to_string(promoted.wal_directory().join("00000002.history"))?;
    let switch = history.split_whitespace().nth(1).context("a timeline's end")?;
    switch.parse().with_context(|| history.clone())
}

/// Whoever promotes loses patience while replay is behind, and asks again at once.
#[test]
fn an_interrupted_promotion_is_asked_for_again() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &options(), 1)?;
    pair.follower.stop()?;
    let mut config = pair.follower.config.clone();
    let slow = [("restart_point_interval", "1h".into()), ("workers", toml::Value::from(1))];
    config.more.extend(slow.map(|(key, value)| ("store".to_owned(), key.to_owned(), value)));
    if let Some(store) = &mut config.store {
        store.cache_bytes = "1MB".to_owned();
    }
    pair.follower = Agent::new(&scratch, config)?;
    pair.follower.start()?;
    pair.leader.pgbench_init(10, &[])?;
    pair.catch_up(PATIENCE)?;
    let expected = digests_of(pair.leader.endpoint())?;
    pair.follower.kill()?;
    pair.leader_agent.kill()?;

    // All of it is in the archive, and is replayed again; but not to its end while pages cannot be written.
    let hold = scratch.file("hold-writes", "")?;
    pair.follower.environment = vec![
        ("LD_PRELOAD".to_owned(), preloaded(&scratch, "waiting_pwrite", WAITING_PWRITE)?),
        ("HOLD_WRITES".to_owned(), hold.clone()),
    ];
    pair.follower.start()?;
    let mut first = pair.follower.command("promote");
    let mut first = first.arg("--leader-is-dead").stdout(Stdio::null()).spawn()?;
    wait_until("the promotion has begun", PATIENCE, || {
        Ok(stage_of(&pair.follower, "receive")?.contains("promoted"))
    })?;
    send_signal(first.id(), Signal::INT)?;
    let ended = wait_for_exit(&mut first, PATIENCE)?;
    ensure!(!ended.success(), "it was not interrupted");
    // After its start it has no such position until replay has reported the first time.
    let mut replayed = Lsn::INVALID;
    wait_until("replay has reported", PATIENCE, || {
        replayed = pair.follower.position("replayed").unwrap_or_default();
        Ok(replayed.is_valid())
    })?;
    let durable = pair.follower.position("durable")?;
    println!("interrupted ({ended}): replayed {replayed}, durable {durable}");
    ensure!(replayed < durable, "replay was not behind");
    fs::remove_file(hold)?;

    let begun = Instant::now();
    let promoted = pair.follower.promote("promoted", &["--leader-is-dead"])?;
    println!("the second one took {:.1} s", begun.elapsed().as_secs_f64());
    ensure!(promoted.sql("select pg_is_in_recovery()")? == "f");
    let comparison = Comparison::between(expected, digests_of(promoted.endpoint())?);
    println!("{comparison}");
    ensure!(comparison.all_equal());
    // The control: one row more.
    promoted.sql("insert into pgbench_history values (1, 1, 1, 1, now(), '')")?;
    ensure!(
        !Comparison::between(digests_of(pair.leader.endpoint())?, digests_of(promoted.endpoint())?)
            .all_equal()
    );
    Ok(())
}

/// A server takes silence for the end of WAL. `fetch` says "not there" only of what comes behind
/// the last segment; of a hole or a wrong directory it says what ends a recovery.
#[test]
fn fetch_tells_the_end_from_a_hole() -> Result<()> {
    let scratch = Scratch::new()?;
    let pair = Pair::start(&scratch, &ClusterOptions { keep_segments: true, ..options() }, 1)?;
    pair.leader.pgbench_run(&["-t", "100"])?;
    let compared = pair.compare_archive()?;
    ensure!(compared >= 3, "{compared} segments are too few");
    // The last segment is begun, not whole.
    pair.leader.pgbench_run(&["-t", "10"])?;
    pair.catch_up(PATIENCE)?;
    let names: Vec<String> = archived_segments(&pair.follower)?.into_keys().collect();
    let middle = &names[names.len() / 2];
    let size = SegmentSize::new(SEGMENT_BYTES).context("a segment size")?;
    let last: SegmentName = names[names.len() - 1].parse()?;
    let after = last.number(size).context("a segment")?.next();
    let after = SegmentName::new(last.timeline, after, size).to_string();

    let archive = pair.follower.archive_directory();
    let copy = scratch.path().join("archive-copy");
    output_of(scratch.account().command("cp").arg("-a").arg(archive).arg(&copy))?;
    let wrong = scratch.path().join("archiwe");
    let config = pair.follower.config_file();
    let of_copy = with_archive(&scratch, &pair.follower, "copy.toml", &copy)?;
    let of_wrong = with_archive(&scratch, &pair.follower, "wrong.toml", &wrong)?;

    let fetched = scratch.directory("fetched")?.join("segment");
    let fetch = |what: &str, config: &Path, name: &str, expected: i32| -> Result<()> {
        let _ = fs::remove_file(&fetched);
        let mut command = scratch.account().command(scratch.path().join("walferry"));
        command.arg("fetch").arg("--config").arg(config).arg(name).arg(&fetched);
        let output = command.output()?;
        let words = String::from_utf8_lossy(&output.stderr);
        let exit = output.status.code();
        println!(
            "fetch {what} {name}: {exit:?} {}",
            words.trim().lines().next().unwrap_or_default()
        );
        ensure!(exit == Some(expected), "{what} {name}: {exit:?}, expected {expected}: {words}");
        ensure!(fetched.exists() == (expected == 0), "{what}: the file");
        Ok(())
    };
    fetch("a whole segment", config, middle, 0)?;
    let kept = pair.leader.kept_segments().context("segments are kept")?;
    ensure!(fs::read(&fetched)? == fs::read(kept.join(middle))?, "another segment");
    fetch("the last segment", config, &names[names.len() - 1], 0)?;
    fetch("what comes behind it", config, &after, 3)?;
    fetch("a history that is not", config, "00000002.history", 3)?;
    fetch("control: from the copy", &of_copy, middle, 0)?;
    let hole = archived_segments(&pair.follower)?.remove(middle).context("a segment")?;
    fs::remove_file(copy.join(hole.strip_prefix(archive)?))?;
    fetch("a hole", &of_copy, middle, 126)?;
    fetch("behind the end, with a hole before", &of_copy, &after, 3)?;
    fetch("from a mistyped directory", &of_wrong, middle, 126)?;
    fetch("a history from a mistyped directory", &of_wrong, "00000002.history", 126)?;
    ensure!(!wrong.exists(), "the mistyped directory was made");
    Ok(())
}

/// An agent's configuration file with another archive directory.
fn with_archive(scratch: &Scratch, agent: &Agent, name: &str, archive: &Path) -> Result<PathBuf> {
    let mut config: toml::Table = fs::read_to_string(agent.config_file())?.parse()?;
    let directory = archive.to_str().context("a path in UTF-8")?.to_owned();
    let section = config.get_mut("archive").and_then(toml::Value::as_table_mut);
    section.context("[archive]")?.insert("directory".to_owned(), directory.into());
    scratch.file(name, toml::to_string(&config)?)
}

/// After a failed sync the kernel may have dropped the bytes, and the next sync says nothing of it.
/// One failure is enough: nothing of it is acknowledged, and what was is still worth a promotion.
#[test]
fn a_failed_sync_of_the_followers_archive_ends_receiving() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &options(), 1)?;
    let trigger = scratch.path().join("fail-once");
    pair.follower.stop()?;
    pair.follower.environment = vec![
        ("LD_PRELOAD".to_owned(), preloaded(&scratch, "failing_fdatasync", FAILING_FDATASYNC)?),
        ("FAIL_ONCE".to_owned(), trigger.clone()),
    ];
    pair.follower.start()?;
    // The control: with the same calls in between, but none that fails, it follows.
    pair.leader.pgbench_run(&["-t", "100"])?;
    pair.catch_up(PATIENCE)?;
    http_get(pair.follower.config.metrics_port, "/healthz")?;
    let expected = digests_of(pair.leader.endpoint())?;

    let durable = pair.follower.position("durable")?;
    scratch.file("fail-once", "")?;
    pair.leader.sql("create table lost as select 1")?;
    let end = pair.flush_position()?;
    let stopped = wait_stopped(&pair.follower, "receive")?;
    println!("{stopped}");
    ensure!(!trigger.exists(), "no fdatasync was made to fail");
    // It would succeed now.
    pair.leader.pgbench_run(&["-t", "50"])?;
    thread::sleep(Duration::from_secs(1));
    let now = pair.follower.position("durable")?;
    let acknowledged = pair.leader_agent.metrics()?.follower_position("follower1", "durable");
    let acknowledged = acknowledged.context("the follower has reported")?;
    ensure!(durable <= now && now < end, "durable {durable}, then {now}; the leader is at {end}");
    ensure!(acknowledged <= now, "{acknowledged} was acknowledged, {now} is durable");
    let health = http_get(pair.follower.config.metrics_port, "/healthz").expect_err("stopped");
    ensure!(health.to_string().contains("503"), "{health}");
    println!("1 fdatasync failed: durable {now}, acknowledged {acknowledged}, leader at {end}");

    pair.leader_agent.kill()?;
    let promoted = pair.follower.promote("promoted", &["--leader-is-dead"])?;
    let switch = switch_point(&promoted)?;
    ensure!(switch >= now, "promoted from {switch}, {now} was durable");
    let comparison = Comparison::between(expected, digests_of(promoted.endpoint())?);
    let different: Vec<&str> = comparison
        .tables
        .iter()
        .filter(|table| table.left.is_some() && !table.is_equal())
        .map(|table| table.name.as_str())
        .collect();
    println!("promoted from {switch}; tables that were durable and differ: {different:?}");
    ensure!(different.is_empty() && comparison.rows() > 0);
    Ok(())
}

/// A library made of a function of the C library's.
fn preloaded(scratch: &Scratch, name: &str, source: &str) -> Result<PathBuf> {
    let source = scratch.file(&format!("{name}.c"), source)?;
    let library = scratch.path().join(name).with_extension("so");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl");
    output_of(&mut cc)?;
    Ok(library)
}

/// Has each write of a page of a relation wait while the file is there that `HOLD_WRITES` names.
const WAITING_PWRITE: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset) {
    ssize_t (*real)(int, const void *, size_t, off64_t) =
        (ssize_t (*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, "pwrite64");
    const char *hold = getenv("HOLD_WRITES");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    while (hold && strstr(path, "/base/") && access(hold, F_OK) == 0) {
        usleep(10000);
    }
    return real(fd, bytes, count, offset);
}
"#;

/// Makes one `fdatasync` of an archive's file fail, once the file `FAIL_ONCE` names is there.
const FAILING_FDATASYNC: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int fdatasync(int fd) {
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    const char *trigger = getenv("FAIL_ONCE");
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    if (trigger && strstr(path, ".zst") && unlink(trigger) == 0) {
        errno = EIO;
        return -1;
    }
    return real(fd);
}
"#;

/// Quick segments, and no WAL but the test's own.
fn options() -> ClusterOptions {
    let mut options = ClusterOptions { wal_segment_megabytes: 1, ..ClusterOptions::default() };
    options.settings.extend(["autovacuum = off", "checkpoint_timeout = 1h"].map(str::to_owned));
    options
}

/// Waits until a stage has stopped for good; gives what it says.
fn wait_stopped(agent: &Agent, stage: &str) -> Result<String> {
    let what = format!("{stage} of {} stops", agent.config.name);
    wait_until(&what, PATIENCE, || Ok(agent.state_of(stage).is_ok_and(|state| state == "stopped")))
        .with_context(|| stage_of(agent, stage).unwrap_or_default())?;
    stage_of(agent, stage)
}

/// State, detail and hint of a stage.
fn stage_of(agent: &Agent, stage: &str) -> Result<String> {
    let status = agent.status()?;
    let stages = status["stages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = stages.iter().find(|found| found["stage"] == stage);
    let found = found.with_context(|| format!("no stage {stage} in status {status}"))?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Ok(format!("{}: {} ({})", text("state"), text("detail"), text("hint")))
}
