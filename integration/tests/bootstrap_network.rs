//! `walferry bootstrap` over the network: what it makes, what it refuses, and what an interruption
//! leaves.

use std::fs::{self, OpenOptions};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::agent::Source;
use integration::postgres::StopMode;
use integration::process::wait_for_exit;
use integration::proxy::Proxy;
use integration::{Agent, AgentConfig, Cluster, ClusterOptions, PATIENCE, Scratch, Seed};
use rand::RngExt;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::process::{Pid, Signal, kill_process};
use walfmt::Lsn;

const KILLS: u32 = 10;
/// With this delay of each 4 kB a backup that was begun does not end.
const HELD_UP: Duration = Duration::from_secs(1);
const FAST: &[&str] = &["--fast-checkpoint"];

struct Setting {
    scratch: Scratch,
    leader: Cluster,
    leader_agent: Agent,
    proxy: Proxy,
}

impl Setting {
    /// A leader with some hundred MB and tablespaces, which keeps as much WAL as its agent needs.
    fn new(more: &[&str]) -> Result<Self> {
        let scratch = Scratch::new()?;
        let options = ClusterOptions {
            data_checksums: true,
            settings: [
                "max_wal_size = 64MB",
                "wal_keep_size = 128MB",
                // It would write pages anew that a test has spoiled.
                "autovacuum = off",
                "allow_in_place_tablespaces = on",
            ]
            .iter()
            .chain(more)
            .map(|line| (*line).to_owned())
            .collect(),
            ..ClusterOptions::default()
        };
        let leader = Cluster::start_new(&scratch, "leader", &options)?;
        leader.pgbench_init(8, &[])?;
        let place = scratch.directory("elsewhere")?;
        leader.sql(&format!("create tablespace elsewhere location '{}'", place.display()))?;
        leader.sql("create table far tablespace elsewhere as select generate_series(1, 1000) n")?;
        leader.sql("create tablespace in_place location ''")?;
        leader.sql("create table near tablespace in_place as select generate_series(1, 500) n")?;
        leader.sql("create table still as select generate_series(1, 20000) n")?;
        let mut leader_agent = Agent::new(&scratch, AgentConfig::leader("leader1", &leader)?)?;
        start(&mut leader_agent)?;
        let proxy = Proxy::start(leader_agent.config.replication_port)?;
        Ok(Self { scratch, leader, leader_agent, proxy })
    }

    fn follower(&self, name: &str) -> Result<Agent> {
        let mut config = AgentConfig::follower(name, &self.scratch, &self.leader_agent)?;
        config.source = Source::Peers(vec![self.proxy.address()]);
        Agent::new(&self.scratch, config)
    }

    fn sums(server: &Cluster) -> Result<String> {
        server.sql(
            "select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from \
             pgbench_branches), (select count(*) from pgbench_history), (select sum(n) from far), \
             (select sum(n) from still), (select sum(n) from near)",
        )
    }
}

#[test]
fn a_follower_is_made_over_the_network() -> Result<()> {
    let Setting { scratch, mut leader, mut leader_agent, proxy } = {
        let setting = Setting::new(&[])?;
        let mut follower = setting.follower("follower")?;
        let load = setting.leader.pgbench(&["-c", "2", "-R", "400", "-T", "600"])?;

        // As slowly as the server can be told to, so that it can be looked at meanwhile.
        let begun = Instant::now();
        // From its beginning: it must not end before it was looked at.
        setting.proxy.set_delay(HELD_UP);
        let mut child = spawn(&follower, &["--fast-checkpoint", "--max-rate", "2048"])?;
        let held = wait_for_slot(&setting.leader)?;
        for _ in 0..3 {
            setting.leader.sql("select pg_switch_wal()")?;
            setting.leader.sql("checkpoint")?; // removes WAL that nobody holds
        }
        let still_held = slots(&setting.leader)?;
        setting.proxy.set_delay(Duration::ZERO);
        let (exit, words) = outcome(&mut child)?;
        assert_eq!(exit, Some(0), "{words}");
        let start: Lsn = label_field(store_of(&follower)?, "START WAL LOCATION: ")?;
        println!(
            "bootstrapped in {:.1} s, WAL was held from {held}, the backup began at {start}: {words}",
            begun.elapsed().as_secs_f64()
        );
        assert!(words.contains("/s, "), "it says how far it is: {words}");
        assert!(held <= start && still_held.contains("t|t"), "{still_held}");
        // The server's process may still be about to end.
        wait_until(|| slots(&setting.leader).is_ok_and(|slots| slots.is_empty()), "no slots")?;

        follower.start()?;
        thread::sleep(Duration::from_secs(2));
        load.stop()?;
        let end: Lsn = setting.leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
        follower.wait_replayed(end, PATIENCE)?;
        let expected = Setting::sums(&setting.leader)?;
        follower.stop()?;
        let verified = follower.run_verb("verify", &["--store"])?;
        println!("{}", verified.trim());

        let mut parts = setting;
        parts.leader_agent.stop()?;
        parts.leader.stop(StopMode::Immediate)?;
        follower.start()?;
        let promoted = follower.promote("promoted", &["--leader-is-dead"])?;
        assert_eq!(Setting::sums(&promoted)?, expected);
        assert_ne!(expected.split('|').nth(2), Some("0"), "the load did something");
        drop(promoted);
        parts.leader.start()?;
        parts.leader_agent.start()?;
        parts
    };

    // A node that has no server to ask, and a peer that is not there.
    let mut nobody = AgentConfig::follower("nobody", &scratch, &leader_agent)?;
    nobody.source = Source::Peers(vec!["127.0.0.1:9".into()]);
    let refused = Agent::new(&scratch, nobody)?.verb("bootstrap", &[])?;
    assert_eq!(refused.exit, Some(1), "{refused:?}");
    let mut bare = AgentConfig::leader("leader1", &leader)?;
    if let Source::Server { conninfo, .. } = &mut bare.source {
        *conninfo = None;
    }
    leader_agent.stop()?;
    let mut bare = Agent::new(&scratch, bare)?;
    bare.start()?;
    let asking = Agent::new(&scratch, AgentConfig::follower("asking", &scratch, &bare)?)?;
    let refused = asking.verb("bootstrap", FAST)?;
    assert!(refused.exit == Some(1) && refused.stderr.contains("no conninfo"), "{refused:?}");
    bare.stop()?;
    drop(proxy);

    // A user that may not: the follower's operator is told what to change.
    leader.sql("create user weak")?;
    let mut config = AgentConfig::leader("leader1", &leader)?;
    if let Source::Server { conninfo: Some(conninfo), .. } = &mut config.source {
        *conninfo = conninfo.replace("user=postgres", "user=weak");
        ensure!(conninfo.contains("weak"), "{conninfo}");
    }
    let mut agent = Agent::new(&scratch, config)?;
    start(&mut agent)?;
    let asking = Agent::new(&scratch, AgentConfig::follower("asking", &scratch, &agent)?)?;
    let refused = asking.verb("bootstrap", FAST)?;
    println!("{}", refused.stderr.trim());
    assert!(refused.exit == Some(1) && refused.stderr.contains("needs REPLICATION"), "{refused:?}");
    agent.stop()?;

    // With a password, in both ways that a server asks for one.
    let rules = leader.data_directory().join("pg_hba.conf");
    let trusting = fs::read_to_string(&rules)?;
    for method in ["scram-sha-256", "md5"] {
        let user = format!("\"by {method}\"");
        leader.sql(&format!(
            "set password_encryption = '{method}'; create user {user} replication password 's e\\c'"
        ))?;
        fs::write(
            &rules,
            format!("host all,replication {user} 127.0.0.1/32 {method}\n{trusting}"),
        )?;
        leader.sql("select pg_reload_conf()")?;
        let mut config = AgentConfig::leader("leader1", &leader)?;
        if let Source::Server { conninfo, .. } = &mut config.source {
            let port = leader.endpoint().port;
            *conninfo = Some(format!(
                "host=127.0.0.1 port={port} dbname=postgres user='by {method}' password='s e\\\\c'"
            ));
        }
        let mut agent = Agent::new(&scratch, config)?;
        start(&mut agent)?;
        let name = format!("by-{method}");
        let follower = Agent::new(&scratch, AgentConfig::follower(&name, &scratch, &agent)?)?;
        let done = follower.verb("bootstrap", FAST)?;
        assert_eq!(done.exit, Some(0), "{method}: {done:?}");
        agent.stop()?;
    }
    leader.stop(StopMode::Fast)
}

/// An agent that was started a moment ago does not know its archive yet: a backup waits for that, but
/// not for ever.
#[test]
fn a_backup_waits_for_the_archive() -> Result<()> {
    let Setting { scratch, mut leader, mut leader_agent, proxy: _proxy } = Setting::new(&[])?;
    leader_agent.stop()?;
    let in_the_way = leader_agent.archive_directory().to_owned();
    let away = in_the_way.with_extension("away");
    fs::rename(&in_the_way, &away)?;
    fs::write(&in_the_way, "not a directory")?;
    leader_agent.start()?;
    let node = |name| Agent::new(&scratch, AgentConfig::follower(name, &scratch, &leader_agent)?);

    let refused = node("impatient")?.verb("bootstrap", FAST)?;
    println!("{}", refused.stderr.trim());
    assert_eq!(refused.exit, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("the archive is not open yet"), "{refused:?}");

    let checked = node("checking")?.verb("check", &[])?;
    assert!(checked.stdout.contains("does not know yet whose WAL it has"), "{checked:?}");

    let patient = node("patient")?;
    // The leader's agent says so before it looks for its archive, and waits for that for some seconds.
    let asked = || logged(&leader_agent, &["base backup begins"]);
    let before = asked()?;
    let mut child = spawn(&patient, FAST)?;
    wait_until(|| asked().is_ok_and(|times| times > before), "somebody who asks for a backup")?;
    assert!(child.try_wait()?.is_none(), "it waits");
    // In one step: where nothing is, the agent, which tries each second, would make a directory.
    renameat_with(CWD, &in_the_way, CWD, &away, RenameFlags::EXCHANGE)?;
    let (exit, words) = outcome(&mut child)?;
    assert_eq!(exit, Some(0), "{words}");
    leader_agent.stop()?;
    leader.stop(StopMode::Fast)
}

#[test]
fn one_flipped_byte_is_named() -> Result<()> {
    let setting = Setting::new(&[])?;
    let (leader, block) = (&setting.leader, 3);
    leader.sql("checkpoint")?;
    let path = leader.sql("select pg_relation_filepath('still')")?;
    let flip = || -> Result<()> {
        let path = leader.data_directory().join(&path);
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let (mut byte, at) = ([0], block * 8192 + 5000);
        file.read_exact_at(&mut byte, at)?;
        file.write_all_at(&[byte[0] ^ 0x10], at)?;
        Ok(())
    };
    flip()?;
    let follower = setting.follower("follower")?;
    let failed = follower.verb("bootstrap", FAST)?;
    println!("{}", failed.stderr.trim());
    assert_eq!(failed.exit, Some(1), "{failed:?}");
    assert!(failed.stderr.contains(&path), "{path}: {failed:?}");
    assert!(failed.stderr.contains(&format!("block {block}")), "{failed:?}");
    assert_nothing_left(store_of(&follower)?)?;
    // The control: the same byte as it was.
    flip()?;
    let done = follower.verb("bootstrap", FAST)?;
    assert_eq!(done.exit, Some(0), "{done:?}");

    // On the way it is noticed too, wherever it is.
    let mut random = Seed::take("flipped bits on the way", 5).generator();
    let spoiled = setting.follower("spoiled")?;
    for _ in 0..3 {
        let before = setting.proxy.flips();
        setting.proxy.flip_after(random.random_range(200..2_000_000), random.random_range(0..8));
        let failed = spoiled.verb("bootstrap", FAST)?;
        println!("{}", failed.stderr.trim());
        assert_eq!(setting.proxy.flips(), before + 1);
        assert_eq!(failed.exit, Some(1), "{failed:?}");
        assert_nothing_left(store_of(&spoiled)?)?;
    }
    let done = spoiled.verb("bootstrap", FAST)?;
    assert_eq!(done.exit, Some(0), "{done:?}");
    Ok(())
}

#[test]
fn an_interrupted_bootstrap_is_simply_run_again() -> Result<()> {
    let mut random = Seed::take("kills of bootstrap", 11).generator();
    // The backup does not wait for an archive that is not ours.
    let setting = Setting::new(&["archive_mode = on", "archive_command = 'false'"])?;
    let follower = setting.follower("follower")?;
    let store = store_of(&follower)?;
    let remove = || -> Result<()> {
        fs::remove_dir_all(store)?;
        Ok(fs::remove_dir_all(store.with_file_name("follower-store.tablespaces"))?)
    };
    // How long it takes if nothing happens. The server has no pages to write first.
    let whole_run = || -> Result<Duration> {
        setting.leader.sql("checkpoint")?;
        let begun = Instant::now();
        let done = follower.verb("bootstrap", FAST)?;
        assert_eq!(done.exit, Some(0), "{done:?}");
        let whole = begun.elapsed();
        remove()?;
        Ok(whole)
    };
    // The first one is slower than others: files are read from the disk.
    whole_run()?;
    let mut whole = whole_run()?;

    // A word to it, and it cleans up itself. It is too slow to end before.
    wait_for_places(&setting)?;
    let mut child = spawn(&follower, &["--fast-checkpoint", "--max-rate", "32"])?;
    wait_until(|| part_of(store).join("base").exists(), "a part of the store")?;
    setting.proxy.set_delay(HELD_UP);
    let second = follower.verb("bootstrap", FAST)?;
    assert!(second.exit == Some(2) && second.stderr.contains("another bootstrap"), "{second:?}");
    kill_process(Pid::from_child(&child), Signal::INT)?;
    let (exit, words) = outcome(&mut child)?;
    setting.proxy.set_delay(Duration::ZERO);
    assert!(exit == Some(1) && words.contains("interrupted"), "{exit:?} {words}");
    assert_nothing_left(store)?;

    let (mut killed, mut in_flight) = (0, 0);
    while killed < KILLS {
        wait_for_places(&setting)?;
        let mut child = spawn(&follower, FAST)?;
        let delay = whole.mul_f64(random.random_range(0.05..0.95));
        thread::sleep(delay);
        if child.try_wait()?.is_some() {
            // This one was quicker than the kill: the machine is, by now.
            let (exit, words) = outcome(&mut child)?;
            assert_eq!(exit, Some(0), "{words}");
            remove()?;
            whole = whole_run()?;
            continue;
        }
        child.kill()?;
        child.wait()?;
        if store.exists() {
            // It was done, if not at its end.
            remove()?;
            whole = whole_run()?;
            continue;
        }
        killed += 1;
        in_flight += u32::from(part_of(store).exists());
    }
    println!(
        "{killed} killed within {:.1} s, {in_flight} with a part of the store",
        whole.as_secs_f64()
    );
    ensure!(in_flight >= KILLS / 2, "no kill came in time to show anything");
    let done = follower.verb("bootstrap", FAST)?;
    assert_eq!(done.exit, Some(0), "{done:?}");
    assert!(!part_of(store).exists());
    wait_until(|| slots(&setting.leader).is_ok_and(|slots| slots.is_empty()), "no slots")?;
    let Setting { mut leader, mut leader_agent, .. } = setting;
    let mut follower = follower;
    follower.start()?;
    let end: Lsn = leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
    follower.wait_replayed(end, PATIENCE)?;
    let expected = Setting::sums(&leader)?;
    leader_agent.stop()?;
    leader.stop(StopMode::Fast)?;
    let promoted = follower.promote("promoted", &["--leader-is-dead"])?;
    assert_eq!(Setting::sums(&promoted)?, expected);
    Ok(())
}

/// Starts an agent, and waits until it can give a backup.
fn start(agent: &mut Agent) -> Result<()> {
    agent.start()?;
    agent.wait_for_state("tail", "streaming")
}

/// How many lines of an agent's log have one of these words.
fn logged(agent: &Agent, words: &[&str]) -> Result<u64> {
    let log = fs::read_to_string(agent.log_path())?;
    let has_one = |line: &&str| words.iter().any(|words| line.contains(words));
    Ok(log.lines().filter(has_one).count() as u64)
}

/// Waits until the leader's agent has ended all connections that were passed on. It gives two backups at
/// once, and refuses a third: the place of a bootstrap that was killed is free only then.
fn wait_for_places(setting: &Setting) -> Result<()> {
    // Connections are passed on one after the other: when this one has been, so have all before it, also
    // those of a bootstrap that was killed before their turn came.
    let mut last = TcpStream::connect(setting.proxy.address())?;
    last.set_read_timeout(Some(PATIENCE))?;
    last.shutdown(Shutdown::Write)?;
    std::io::copy(&mut last, &mut std::io::sink())?;
    let begun = setting.proxy.connections();
    let ends = ["connection ended: ", "connection lost: ", "no connection: "];
    let all_ended = || logged(&setting.leader_agent, &ends).is_ok_and(|ended| ended >= begun);
    wait_until(all_ended, "the end of all connections")
}

fn spawn(agent: &Agent, arguments: &[&str]) -> Result<Child> {
    let mut command = agent.command("bootstrap");
    command.args(arguments).stdin(Stdio::null());
    Ok(command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
}

/// Its exit status and all it said.
fn outcome(child: &mut Child) -> Result<(Option<i32>, String)> {
    let exit = wait_for_exit(child, PATIENCE)?;
    let mut words = String::new();
    for stream in [
        child.stdout.take().map(|stream| Box::new(stream) as Box<dyn std::io::Read>),
        child.stderr.take().map(|stream| Box::new(stream) as Box<dyn std::io::Read>),
    ] {
        std::io::Read::read_to_string(&mut stream.context("piped")?, &mut words)?;
    }
    Ok((exit.code(), words))
}

/// Whether the slots that the server has are temporary and in use.
fn slots(leader: &Cluster) -> Result<String> {
    leader.sql("select temporary, active from pg_replication_slots")
}

fn wait_for_slot(leader: &Cluster) -> Result<Lsn> {
    let mut found = String::new();
    wait_until(
        || {
            let asked = leader.sql(
                "select s.restart_lsn from pg_replication_slots s, pg_stat_progress_basebackup b \
                 where s.active_pid = b.pid and b.phase = 'streaming database files'",
            );
            found = asked.unwrap_or_default();
            !found.is_empty()
        },
        "a backup that holds WAL",
    )?;
    found.parse().context("an LSN")
}

fn wait_until(mut holds: impl FnMut() -> bool, what: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        ensure!(Instant::now() < deadline, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn label_field(store: &Path, field: &str) -> Result<Lsn> {
    let label = fs::read_to_string(store.join("backup_label.old"))?;
    let (_, rest) = label.split_once(field).with_context(|| label.clone())?;
    rest.split_whitespace().next().unwrap_or_default().parse().context("an LSN")
}

fn store_of(agent: &Agent) -> Result<&Path> {
    Ok(&agent.config.store.as_ref().context("a follower has a store")?.data_directory)
}

fn part_of(store: &Path) -> std::path::PathBuf {
    let name = store.file_name().unwrap_or_default().to_string_lossy();
    store.with_file_name(format!("{name}.part"))
}

fn assert_nothing_left(store: &Path) -> Result<()> {
    let name = store.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for entry in fs::read_dir(store.parent().context("a parent")?)? {
        let found = entry?.file_name().to_string_lossy().into_owned();
        assert!(!found.starts_with(&name), "{found} was left");
    }
    Ok(())
}
