//! What is not as it should be: each time the words say what to do, and nothing durable is lost or
//! changed.
//!
//! Elsewhere: another system identifier, another segment size, a follower that is ahead, and two
//! leaders with one system identifier and timeline are in `replication.rs`, beside bits that are
//! flipped on the wire; findings that `check` has for all of them in `check.rs`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use integration::command::output_of;
use integration::pair::archived_segments;
use integration::process::wait_until;
use integration::{
    Agent, AgentConfig, BackupWal, Cluster, ClusterOptions, PATIENCE, Pair, Scratch, free_port,
};
use walferry_archive::{Archive, OsFiles};
use walferry_wire::{
    Identity, LeaderPositions, Limits, Now, PlainText, Sender, SenderConfig, SenderEvent, Stamp,
};
use walfmt::control::ControlFile;
use walfmt::{SegmentName, SegmentSize, Timeline};

const MB: u64 = 1 << 20;

fn many_segments() -> ClusterOptions {
    ClusterOptions { wal_segment_megabytes: 1, keep_segments: true, ..ClusterOptions::default() }
}

/// Waits until a stage is in a state, and gives its words and hint.
fn wait_for(agent: &Agent, stage: &str, state: &str, words: &str) -> Result<()> {
    wait_while(agent, stage, state, words, || Ok(()))
}

/// As [`wait_for`], and does something before each look.
fn wait_while(
    agent: &Agent,
    stage: &str,
    state: &str,
    words: &str,
    mut meanwhile: impl FnMut() -> Result<()>,
) -> Result<()> {
    let begun = Instant::now();
    loop {
        meanwhile()?;
        let status = agent.status()?;
        let stages = status["stages"].as_array().context("stages")?;
        let found = stages.iter().find(|found| found["stage"] == stage).context("the stage")?;
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        if text("state") == state && text("detail").contains(words) {
            println!("{stage} {state}: {} | {}", text("detail"), text("hint"));
            ensure!(words.is_empty() || !text("hint").is_empty(), "no hint: {found}");
            return Ok(());
        }
        ensure!(
            begun.elapsed() < PATIENCE,
            "not {state} with {words:?}: {found}\n{}",
            agent.log_tail(20)
        );
        thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn misuse_ends_the_agent_before_anything_begins() -> Result<()> {
    let scratch = Scratch::new()?;
    let leader = Cluster::start_new(&scratch, "leader", &ClusterOptions::default())?;
    let config = AgentConfig::leader("one", &leader)?;
    let refused = |config: AgentConfig, words: &[&str]| -> Result<()> {
        let outcome = Agent::new(&scratch, config)?.verb("run", &[])?;
        println!("exit {:?}: {}", outcome.exit, outcome.stderr.trim());
        ensure!(outcome.exit == Some(2), "{outcome:?}");
        for words in words {
            ensure!(outcome.stderr.contains(words), "{words:?} is not in {}", outcome.stderr);
        }
        Ok(())
    };

    let mut unknown = config.clone();
    unknown.more.push(("archive".into(), "compresion_level".into(), 3.into()));
    refused(
        unknown,
        &["one.toml:", "[archive] compresion_level: unknown key", "compression_level"],
    )?;

    // A second agent on the same archive and control socket.
    let mut first = Agent::new(&scratch, config.clone())?;
    first.start()?;
    refused(config.clone(), &["an agent is running already"])?;

    // A store that another agent has. (One that a server has: `hazards.rs`.)
    let backup = scratch.path().join("backup");
    leader.base_backup(&backup, BackupWal::Stream)?;
    let mut second = Agent::new(&scratch, AgentConfig::follower("two", &scratch, &first)?)?;
    second.bootstrap(&backup)?;
    second.start()?;
    wait_for(&second, "replay", "streaming", "")?;
    let before = leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
    let thief =
        AgentConfig { name: "three".into(), ..AgentConfig::follower("two", &scratch, &first)? };
    let archive = scratch.directory("three-archive")?;
    ensure!(
        Command::new("cp")
            .arg("-a")
            .arg(second.archive_directory().join("."))
            .arg(&archive)
            .status()?
            .success()
    );
    let mut thief = Agent::new(&scratch, thief)?;
    thief.spawn()?;
    wait_until("the thief says why it does not replay", PATIENCE, || {
        Ok(!thief.is_running() || thief.state_of("replay").is_ok_and(|state| state == "stopped"))
    })?;
    println!("{}", thief.log_tail(4));
    let log = fs::read_to_string(thief.log_path())?;
    ensure!(log.contains("a server or another agent has the store"), "{log}");
    thief.kill()?;
    second.wait_for_position("replayed", before, PATIENCE)?;
    Ok(())
}

/// A control file and a leader of a major that the agent does not know, or that is not the store's.
#[test]
fn another_major_is_refused() -> Result<()> {
    let scratch = Scratch::new()?;
    let pair = Pair::start(&scratch, &ClusterOptions::default(), 1)?;
    pair.catch_up(PATIENCE)?;

    // PostgreSQL 12: the numbers of its control file (`src/include/catalog/catversion.h`).
    let data = scratch.directory("old")?;
    scratch.directory("old/global")?;
    scratch.directory("old/pg_wal")?;
    let file = fs::read(pair.leader.data_directory().join("global/pg_control"))?;
    let mut old = ControlFile::from_bytes(&file)?.to_bytes();
    for (at, number) in [(8, 1201_u32), (12, 201_909_212)] {
        old[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    scratch.file("old/global/pg_control", old)?;
    let mut config = AgentConfig::leader("old-agent", &pair.leader)?;
    config.source = integration::Source::Server { data_directory: data, conninfo: None };
    let mut agent = Agent::new(&scratch, config)?;
    agent.start()?;
    wait_for(&agent, "tail", "stopped", "catalog version 201909212")?;
    agent.stop()?;

    // Its own leader still writes now and then: what must not change is looked at without any.
    pair.proxy.retarget(free_port()?);
    // Each try is counted when it begins, and then waits until all that came before is written: when a
    // second one begins, nothing of the old connection is still to come.
    let reconnects =
        || -> Result<f64> { pair.follower.metrics()?.expect("walferry_reconnects_total") };
    let begun = reconnects()?;
    wait_until("the follower has no leader", PATIENCE, || Ok(reconnects()? >= begun + 2.0))?;
    let end = pair.follower.position("received")?;
    let before = fingerprint(pair.follower.archive_directory())?;
    let system = pair.leader.sql("select system_identifier from pg_control_system()")?.parse()?;
    let over = Arc::new(AtomicBool::new(false));
    let (port, served) = leader_of_major(16, system, &over)?;
    pair.proxy.retarget(port);
    wait_for(&pair.follower, "receive", "retrying", "follower is of PostgreSQL 15, leader of 16")?;
    over.store(true, Ordering::SeqCst);
    // Wakes it, if the follower has not.
    let _ = TcpStream::connect(("127.0.0.1", port));
    let refused = served.join().expect("the fake leader's thread")?;
    ensure!(refused > 0, "the fake leader has refused nobody");
    ensure!(before == fingerprint(pair.follower.archive_directory())?, "the archive has changed");
    ensure!(pair.follower.position("received")? == end);

    pair.proxy.retarget(pair.leader_agent.config.replication_port);
    pair.leader.pgbench_run(&["-t", "50"])?;
    pair.catch_up(PATIENCE)?;
    Ok(())
}

/// A leader of that major, which refuses whoever connects, until it is `over` and somebody connects once
/// more; gives how many it has refused.
fn leader_of_major(
    major: u16,
    system_identifier: u64,
    over: &Arc<AtomicBool>,
) -> Result<(u16, thread::JoinHandle<Result<usize>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let over = Arc::clone(over);
    let served = thread::spawn(move || -> Result<usize> {
        let wall = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
        let now = Now { monotonic: Instant::now(), wall: Stamp(wall) };
        let identity = Identity {
            node: "fake".parse()?,
            agent_version: PlainText::fitted("0"),
            system_identifier,
            timeline: Timeline(1),
            segment_size: SegmentSize::DEFAULT,
            server_major: major,
            server_version_num: u32::from(major) * 10_000,
        };
        let positions = LeaderPositions::default();
        let config = SenderConfig { identity, positions, limits: Limits::default() };
        let mut refused = 0;
        loop {
            let (mut stream, _) = listener.accept()?;
            if over.load(Ordering::SeqCst) {
                return Ok(refused);
            }
            let mut sender = Sender::new(config.clone(), now);
            let mut buffer = [0; 4096];
            while !sender.is_closed() {
                // Whoever goes away again has asked nothing, or comes again.
                let Ok(read @ 1..) = stream.read(&mut buffer) else { break };
                sender.handle_bytes(now, &buffer[..read])?;
            }
            while let Some(bytes) = sender.poll_transmit() {
                let _ = stream.write_all(&bytes);
            }
            let events = std::iter::from_fn(|| sender.poll_event());
            refused += events.filter(|event| matches!(event, SenderEvent::Refused(_))).count();
        }
    });
    Ok((port, served))
}

#[test]
fn a_pg_wal_that_cannot_be_read_is_waited_for() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &many_segments(), 1)?;
    let wal = pair.leader.wal_directory();
    // The server's own processes have no other rights: it must be stopped while it is so.
    pair.leader_agent.stop()?;
    pair.leader.stop(integration::StopMode::Fast)?;
    fs::set_permissions(&wal, fs::Permissions::from_mode(0o000))?;
    pair.leader_agent.start()?;
    let said = wait_for(&pair.leader_agent, "tail", "retrying", "Permission denied");
    fs::set_permissions(&wal, fs::Permissions::from_mode(0o700))?;
    said?;
    pair.leader.start()?;
    pair.leader.pgbench_run(&["-t", "100"])?;
    pair.catch_up(PATIENCE)?;
    println!("{} segments are equal", pair.compare_archive()?);
    Ok(())
}

/// Every 1000th bit of a real file: what is read is the WAL that was written, or an error.
#[test]
fn a_flipped_bit_in_an_archive_file_is_found() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &many_segments(), 1)?;
    pair.leader.pgbench_run(&["-c", "2", "-t", "1500"])?;
    pair.catch_up(PATIENCE)?;
    pair.compare_archive()?;
    pair.follower.stop()?;
    let system: u64 =
        pair.leader.sql("select system_identifier from pg_control_system()")?.parse()?;
    let size = SegmentSize::new(1 << 20).context("a size")?;
    // The largest finished one.
    let mut segments: Vec<(String, PathBuf)> =
        archived_segments(&pair.follower)?.into_iter().collect();
    segments.pop();
    let (name, path) = segments
        .into_iter()
        .max_by_key(|(_, path)| fs::metadata(path).map(|found| found.len()).unwrap_or_default())
        .context("a segment")?;
    let segment: SegmentName = name.parse()?;
    let whole = fs::read(&path)?;
    let archive =
        Archive::open(Arc::new(OsFiles), pair.follower.archive_directory(), system, size)?;
    let wal = archive.read_segment(segment)?;

    let (mut found, mut harmless, mut sample) = (0, 0, None);
    for bit in (0..whole.len() * 8).step_by(1000) {
        let mut spoiled = whole.clone();
        spoiled[bit / 8] ^= 1 << (bit % 8);
        fs::write(&path, &spoiled)?;
        match archive.read_segment(segment) {
            Err(error) => {
                found += 1;
                sample.get_or_insert((bit, error.to_string()));
            }
            // As a flag that says nothing of the contents.
            Ok(read) if read == wal => harmless += 1,
            Ok(_) => anyhow::bail!("bit {bit} of {}: other WAL was read", path.display()),
        }
    }
    let (bit, words) = sample.context("nothing was found")?;
    println!(
        "{} of {} bytes: {} bits flipped, {found} found, {harmless} read as they were; bit {bit}: \
         {words}",
        name,
        whole.len(),
        found + harmless
    );
    ensure!(harmless * 50 <= found, "{harmless} of them changed nothing");

    // Whoever asks for that segment is told, and gets no file.
    let mut spoiled = whole.clone();
    spoiled[bit / 8] ^= 1 << (bit % 8);
    fs::write(&path, &spoiled)?;
    let target = scratch.path().join("fetched");
    let outcome = pair.follower.verb("fetch", &[&name, &target.display().to_string()])?;
    println!("fetch: exit {:?}: {}", outcome.exit, outcome.stderr.trim());
    ensure!(outcome.exit == Some(126) && outcome.stderr.contains("hint: "), "{outcome:?}");
    ensure!(!target.exists(), "a file was written");
    // The control: as it was, it is the segment.
    fs::write(&path, &whole)?;
    let outcome = pair.follower.verb("fetch", &[&name, &target.display().to_string()])?;
    ensure!(outcome.exit == Some(0) && fs::read(&target)? == wal, "{outcome:?}");
    Ok(())
}

/// A file system of a few megabytes, which can be made larger.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(scratch: &Scratch, name: &str, megabytes: u64) -> Result<Self> {
        let directory = scratch.directory(name)?;
        let options = format!("size={megabytes}m,mode=0777");
        output_of(
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&directory),
        )?;
        Ok(Self(directory))
    }

    fn grow(&self, megabytes: u64) -> Result<()> {
        let options = format!("remount,size={megabytes}m");
        output_of(Command::new("mount").args(["-o", &options]).arg(&self.0)).map(drop)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: whoever has files open there keeps them.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// So much WAL that does not compress.
fn bulk(leader: &Cluster, megabytes: u64) -> Result<()> {
    leader
        .sql(&format!(
            "create table if not exists bulk (filler bytea); insert into bulk \
         select decode(string_agg(md5(random()::text), ''), 'hex') \
         from generate_series(1, {}) g, generate_series(1, 64) group by g",
            megabytes * 1000
        ))
        .map(drop)
}

/// The disk of the leader's archive, of the follower's, and of the store: full, and larger again.
///
/// It takes root, to mount file systems.
#[test]
fn a_full_disk_is_waited_for() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        println!("left out: it takes root to mount a small file system (the README says so)");
        return Ok(());
    }
    let scratch = Scratch::new()?;
    let leaders_disk = SmallDisk::mount(&scratch, "leader1-archive", 100)?;
    let followers_disk = SmallDisk::mount(&scratch, "follower1-archive", 100)?;
    let stores_disk = SmallDisk::mount(&scratch, "store-disk", 150)?;
    let leader = Cluster::start_new(&scratch, "leader", &many_segments())?;
    leader.pgbench_init(1, &[])?;
    let reserve = |config: &mut AgentConfig| {
        config.more.push(("archive".into(), "min_free_bytes".into(), "0B".into()));
    };
    let mut config = AgentConfig::leader("leader1", &leader)?;
    reserve(&mut config);
    let mut leader_agent = Agent::new(&scratch, config)?;
    leader_agent.start()?;
    // A backup waits for that only for some seconds.
    wait_for(&leader_agent, "tail", "streaming", "")?;
    let mut config = AgentConfig::follower("follower1", &scratch, &leader_agent)?;
    reserve(&mut config);
    let store = stores_disk.0.join("store");
    config.store.as_mut().context("a store")?.data_directory = store;
    config.more.push(("store".into(), "restart_point_interval".into(), "1s".into()));
    let mut follower = Agent::new(&scratch, config)?;
    follower.run_verb("bootstrap", &["--fast-checkpoint"])?;
    follower.start()?;
    let flushed =
        || -> Result<walfmt::Lsn> { Ok(leader.sql("select pg_current_wal_flush_lsn()")?.parse()?) };
    follower.wait_replayed(flushed()?, PATIENCE)?;

    // Each is made as small as what is on it, and so is full at once.
    let used = |disk: &SmallDisk| -> Result<u64> {
        let found = rustix::fs::statvfs(&disk.0)?;
        Ok((found.f_blocks - found.f_bfree) * found.f_frsize / MB + 1)
    };
    for (disk, agent, stage) in [
        (&leaders_disk, &leader_agent, "tail"),
        (&followers_disk, &follower, "receive"),
        (&stores_disk, &follower, "replay"),
    ] {
        // Nothing is being written back when it is measured.
        let reached = flushed()?;
        wait_until("the store has a restart point behind that", PATIENCE, || {
            leader.sql("checkpoint")?;
            Ok(follower.position("restart_point").is_ok_and(|position| position > reached))
        })?;
        let tight = used(disk)?;
        disk.grow(tight)?;
        bulk(&leader, 12)?;
        // Pages go to the store for a restart point, and not each checkpoint becomes one.
        wait_while(agent, stage, "retrying", "No space left on device", || {
            leader.sql("checkpoint").map(drop)
        })?;
        // The server does not mind.
        bulk(&leader, 1)?;
        disk.grow(400)?;
        follower.wait_replayed(flushed()?, PATIENCE)?;
        wait_for(agent, stage, "streaming", "")?;
        println!("{stage}: full at {tight} MB, and on it goes");
    }
    let pair = Pair { follower, proxy: integration::Proxy::start(1)?, leader_agent, leader };
    println!("{} segments are equal", pair.compare_archive()?);
    let Pair { mut follower, leader, .. } = pair;
    follower.stop()?;
    println!("{}", follower.run_verb("verify", &["--store"])?);
    follower.start()?;
    let sum = "select count(*), sum(hashtext(filler::text)::bigint) from bulk";
    let expected = leader.sql(sum)?;
    let promoted = follower.promote("promoted", &["--leader-is-dead"])?;
    ensure!(promoted.sql(sum)? == expected, "the promoted server has something else");
    Ok(())
}

/// Every file below a directory, with its contents.
fn fingerprint(directory: &Path) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            files.append(&mut fingerprint(&path)?);
        } else {
            files.insert(path.clone(), fs::read(&path)?);
        }
    }
    Ok(files)
}
