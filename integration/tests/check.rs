//! `walferry check`: each thing that it can find is found where it is, and not where it is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use integration::agent::{Source, StoreConfig};
use integration::authority::{authority, with_tls};
use integration::process::wait_until;
use integration::standby::control_file;
use integration::{
    Agent, AgentConfig, BackupWal, Cluster, ClusterOptions, PATIENCE, Scratch, StopMode, free_port,
};
use serde_json::Value;
use walferry_wire::{
    Identity, LeaderPositions, Limits, Now, PlainText, ProbeReply, Sender, SenderConfig,
    SenderEvent, Stamp,
};
use walfmt::control::{ClusterState, ControlFile};
use walfmt::{Lsn, SegmentSize, Timeline};

/// What a check found beside what is as it should be: words and remedy by name.
type Found = BTreeMap<String, (String, String)>;

/// What no test here can bring about, and where it is tested instead.
const ELSEWHERE: [(&str, &str); 1] =
    [("server.version", "a minor that is not released: unit test of `verb/check/server.rs`")];
/// What only root can bring about, because it takes a second user.
const ROOT_ONLY: &str = "server.pg_wal_mode";

struct Bench {
    scratch: Scratch,
    /// What was found anywhere, with the level it had.
    seen: BTreeSet<(String, String)>,
    number: usize,
}

impl Bench {
    fn agent(&mut self, config: AgentConfig) -> Result<Agent> {
        self.number += 1;
        Agent::new(&self.scratch, AgentConfig { name: format!("n{}", self.number), ..config })
    }

    /// What `check` finds, and its exit status.
    fn check(&mut self, agent: &Agent, arguments: &[&str]) -> Result<(Found, Option<i32>)> {
        self.check_by(agent.command("check"), arguments)
    }

    fn check_by(
        &mut self,
        mut command: Command,
        arguments: &[&str],
    ) -> Result<(Found, Option<i32>)> {
        let output = command.arg("--json").args(arguments).output()?;
        let text = String::from_utf8(output.stdout)?;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let report: Value = serde_json::from_str(&text).with_context(|| text + &errors)?;
        let mut found = Found::new();
        for finding in report["findings"].as_array().context("findings")? {
            let text = |key: &str| finding[key].as_str().unwrap_or_default().to_owned();
            let (level, name) = (text("level"), text("name"));
            if level == "OK" {
                continue;
            }
            let (words, remedy) = (text("words"), text("remedy"));
            ensure!(!words.is_empty() && !remedy.is_empty(), "no remedy: {finding}");
            self.seen.insert((name.clone(), level));
            found.entry(name).or_insert((words, remedy));
        }
        Ok((found, output.status.code()))
    }

    /// Changes a configuration, and expects exactly these findings more than before.
    fn expect(
        &mut self,
        config: &AgentConfig,
        before: &Found,
        more: &[(&str, &str)],
    ) -> Result<()> {
        let agent = self.agent(config.clone())?;
        let (found, exit) = self.check(&agent, &[])?;
        compare(&found, before, more)?;
        let failed = self.seen_as_failed(&found);
        ensure!(exit == Some(i32::from(failed)), "exit {exit:?} with {found:?}");
        Ok(())
    }

    fn seen_as_failed(&self, found: &Found) -> bool {
        found.keys().any(|name| self.seen.contains(&(name.clone(), "FAILED".to_owned())))
    }
}

/// `more` are names, and words that the finding must have.
fn compare(found: &Found, before: &Found, more: &[(&str, &str)]) -> Result<()> {
    for (name, words) in more {
        let (all, remedy) = found.get(*name).with_context(|| format!("no {name} in {found:?}"))?;
        println!("{name}: {all} -> {remedy}");
        ensure!(all.contains(words), "{name} does not say {words:?}: {all}");
        ensure!(!before.contains_key(*name), "{name} was there before it was brought about");
    }
    let new = found.keys().filter(|name| !before.contains_key(*name)).count();
    ensure!(new == more.len(), "more than {more:?} was found: {found:?}");
    Ok(())
}

fn set(
    config: &AgentConfig,
    section: &str,
    key: &str,
    value: impl Into<toml::Value>,
) -> AgentConfig {
    let mut config = config.clone();
    config.more.push((section.into(), key.into(), value.into()));
    config
}

fn follower_of(peer: &str, store: &Path) -> Result<AgentConfig> {
    Ok(AgentConfig {
        name: String::new(),
        source: Source::Peers(vec![peer.to_owned()]),
        store: Some(StoreConfig {
            data_directory: store.to_owned(),
            workers: 2,
            cache_bytes: "64MB".to_owned(),
        }),
        replication_port: free_port()?,
        metrics_port: free_port()?,
        more: Vec::new(),
    })
}

/// Starts an agent, and waits until it knows its WAL, as a check of who has it for a peer gives it seconds; and
/// has its slot, as the server keeps nothing for it while it is stopped otherwise.
fn start(agent: &mut Agent) -> Result<()> {
    agent.start()?;
    agent.wait_for_state("tail", "streaming")?;
    agent.wait_for_state("horizon", "streaming")
}

#[test]
fn each_finding_where_it_is_and_only_there() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut bench = Bench { scratch: scratch.clone(), seen: BTreeSet::new(), number: 0 };
    let options = ClusterOptions {
        settings: vec!["max_slot_wal_keep_size = 1GB".into()],
        ..ClusterOptions::default()
    };
    // A server with a locale that the rest of this machine does not have: C.UTF-8 by another name.
    let mut leader = Cluster::init(&scratch, "leader", &options)?;
    let locales = scratch.directory("locales")?;
    let own = locales.join("xx_XX.utf8");
    ensure!(
        Command::new("cp").args(["-r", "/usr/lib/locale/C.utf8"]).arg(&own).status()?.success()
    );
    leader.environment.push(("LOCPATH".to_owned(), locales));
    leader.start()?;
    let config = AgentConfig::leader("leader", &leader)?;
    let mut agent = bench.agent(config.clone())?;
    let (base, exit) = bench.check(&agent, &[])?;
    let empty = Found::new();
    let shared = ("disk.shared", "same file system");
    compare(&base, &empty, &[("agent.down", "no agent answers"), shared])?;
    assert_eq!(exit, Some(0), "warnings are no failure");
    assert_eq!(bench.check(&agent, &["--strict"])?.1, Some(1), "unless that is asked for");

    start(&mut agent)?;
    let (found, exit) = bench.check(&agent, &[])?;
    compare(&found, &empty, &[shared])?;
    assert_eq!(exit, Some(0));
    let text = agent.run_verb("check", &[])?;
    println!("{text}");
    let is_line = |line: &str| line.starts_with("OK  ") || line.starts_with("WARNING ");
    assert!(text.lines().all(is_line), "{text}");

    agent.stop()?;

    leaders(&mut bench, &leader, &config, &base)?;
    other_server(&mut bench, &config, &base)?;
    machine(&mut bench, &leader, &config, &base)?;
    certificates(&mut bench, &config, &base)?;
    start(&mut agent)?;
    followers(&mut bench, &leader, &agent)?;
    all_were_seen(&bench)
}

/// The server beside the agent, and its files.
fn leaders(bench: &mut Bench, leader: &Cluster, config: &AgentConfig, base: &Found) -> Result<()> {
    let data = leader.data_directory().to_owned();
    let source = |data_directory: &Path, conninfo: Option<String>| AgentConfig {
        source: Source::Server { data_directory: data_directory.to_owned(), conninfo },
        ..config.clone()
    };
    let conninfo = leader.endpoint().conninfo();

    let wrong = set(config, "source", "conn_info", "x");
    let agent = bench.agent(wrong)?;
    let (found, exit) = bench.check(&agent, &[])?;
    compare(&found, &Found::new(), &[("configuration", "[source] conn_info: unknown key")])?;
    assert_eq!(exit, Some(2));

    bench.expect(&source(&data, None), base, &[("server.conninfo", "not set")])?;
    let port = format!("port={}", leader.endpoint().port);
    let elsewhere = conninfo.replace(&port, &format!("port={}", free_port()?));
    ensure!(elsewhere != conninfo, "no {port} in {conninfo}");
    bench.expect(&source(&data, Some(elsewhere)), base, &[("server.unreachable", "connecting")])?;
    leader.sql("create role weak login replication")?;
    let weak = format!("{conninfo} user=weak");
    bench.expect(&source(&data, Some(weak)), base, &[("server.rights", "may not see all")])?;
    let slotless = set(config, "source", "slot", "");
    bench.expect(&slotless, base, &[("server.hold", "wal_keep_size is 0")])?;
    let nowhere = source(Path::new("/nonexistent"), Some(conninfo));
    bench.expect(&nowhere, base, &[("server.data_directory", "pg_control")])?;

    // One that the server is done with: a process of it that could not open its own would not live.
    let segment = leader.sql("select pg_walfile_name(pg_current_wal_insert_lsn())")?;
    leader.sql("select pg_logical_emit_message(true, 'check', 'this segment'), pg_switch_wal()")?;
    leader.sql("select pg_logical_emit_message(true, 'check', 'the next segment')")?;
    wait_until("the server writes another segment", PATIENCE, || {
        Ok(leader.sql("select pg_walfile_name(pg_current_wal_flush_lsn())")? != segment)
    })?;
    let segment = data.join("pg_wal").join(segment);
    fs::set_permissions(&segment, fs::Permissions::from_mode(0o000))?;
    let found = bench.expect(config, base, &[("server.pg_wal", "Permission denied")]);
    fs::set_permissions(&segment, fs::Permissions::from_mode(0o600))?;
    found?;
    bench.expect(config, base, &[])?;

    // Nobody may read what is there, but not what the server makes next.
    if rustix::process::geteuid().is_root() {
        let open = bench.scratch.directory("open")?;
        let copy = open.join("data");
        leader.base_backup(&copy, BackupWal::Stream)?;
        ensure!(Command::new("chmod").args(["-R", "a+rX"]).arg(&open).status()?.success());
        let path = bench.scratch.path().to_owned();
        let mode = fs::metadata(&path)?.permissions();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let agent = bench.agent(source(&copy, None))?;
        let by_hand = agent.command("check");
        let mut command = Command::new("setpriv");
        command.args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"]);
        command.arg(by_hand.get_program()).args(by_hand.get_args());
        let (found, _) = bench.check_by(command, &[])?;
        fs::set_permissions(&path, mode)?;
        println!("{:?}", found.get(ROOT_ONLY));
        ensure!(found.contains_key(ROOT_ONLY), "{found:?}");

        let by_root = bench.agent(config.clone())?;
        let by_root = by_root.command("check");
        let mut command = Command::new(by_root.get_program());
        command.args(by_root.get_args());
        let (found, _) = bench.check_by(command, &[])?;
        compare(&found, base, &[("account.root", "runs as root")])?;
    } else {
        let agent = bench.agent(config.clone())?;
        let by_hand = agent.command("check");
        let mut command = Command::new("unshare");
        command.arg("-r").arg(by_hand.get_program()).args(by_hand.get_args());
        let (found, _) = bench.check_by(command, &[])?;
        compare(&found, base, &[("account.root", "runs as root")])?;
    }

    // A control file of tomorrow.
    let tomorrow = bench.scratch.directory("tomorrow")?;
    for directory in ["global", "pg_wal"] {
        bench.scratch.directory(&format!("tomorrow/{directory}"))?;
    }
    let file = fs::read(data.join("global/pg_control"))?;
    let mut control = ControlFile::from_bytes(&file)?;
    control.time += 86_400;
    bench.scratch.file("tomorrow/global/pg_control", control.to_bytes())?;
    fs::set_permissions(&tomorrow, fs::Permissions::from_mode(0o700))?;
    bench.expect(
        &source(&tomorrow, Some(leader.endpoint().conninfo())),
        base,
        &[("clock.behind", "stands 86")],
    )
}

/// A server with all that a server can have wrong.
fn other_server(bench: &mut Bench, config: &AgentConfig, base: &Found) -> Result<()> {
    let options = ClusterOptions {
        data_checksums: false,
        fsync: false,
        settings: ["full_page_writes = off", "wal_level = minimal", "max_wal_senders = 0"]
            .map(str::to_owned)
            .to_vec(),
        ..ClusterOptions::default()
    };
    let mut other = Cluster::start_new(&bench.scratch, "other", &options)?;
    bench.expect(
        &AgentConfig::leader("other", &other)?,
        base,
        &[
            ("server.fsync", "fsync = off"),
            ("server.full_page_writes", "full_page_writes = off"),
            ("server.wal_level", "wal_level = minimal"),
            ("server.checksums", "no data checksums"),
            ("server.hold", "the server keeps no WAL"),
            ("server.replication", "max_wal_senders"),
        ],
    )?;
    let Source::Server { data_directory, .. } = &config.source else { bail!("a leader's") };
    let crossed = AgentConfig {
        source: Source::Server {
            data_directory: data_directory.clone(),
            conninfo: Some(other.endpoint().conninfo()),
        },
        ..config.clone()
    };
    bench.expect(&crossed, base, &[("server.other", "conninfo leads to system")])?;

    // The same with all of that mended is a standby.
    other.stop(StopMode::Fast)?;
    other.configure(&[
        "fsync = on",
        "full_page_writes = on",
        "wal_level = replica",
        "max_wal_senders = 10",
        "max_slot_wal_keep_size = 1GB",
    ])?;
    other.start()?;
    other.stop(StopMode::Fast)?;
    bench.scratch.file("other/standby.signal", "")?;
    other.start()?;
    bench.expect(
        &AgentConfig::leader("other", &other)?,
        base,
        &[("server.standby", "a standby"), ("server.checksums", "no data checksums")],
    )
}

/// Disks and addresses.
fn machine(bench: &mut Bench, leader: &Cluster, config: &AgentConfig, base: &Found) -> Result<()> {
    let apart = set(config, "archive", "directory", "/dev/shm");
    let agent = bench.agent(apart)?;
    let (found, _) = bench.check(&agent, &[])?;
    assert!(!found.contains_key("disk.shared"), "/dev/shm is apart: {found:?}");

    let full = set(config, "archive", "min_free_bytes", "1000TB");
    bench.expect(&full, base, &[("disk.space", "less than [archive] min_free_bytes")])?;
    let closed = bench.scratch.directory("closed")?;
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o500))?;
    let closed = set(config, "archive", "directory", closed.join("archive").display().to_string());
    bench.expect(&closed, base, &[("disk.access", "cannot be written")])?;

    let taken = TcpListener::bind("127.0.0.1:0")?;
    let address = taken.local_addr()?.to_string();
    let listens = set(config, "listen", "metrics", address);
    bench.expect(&listens, base, &[("listen.taken", "Address already in use")])?;
    drop(taken);
    bench.expect(&AgentConfig::leader("leader", leader)?, base, &[])
}

fn certificates(bench: &mut Bench, config: &AgentConfig, base: &Found) -> Result<()> {
    let open = set(config, "listen", "replication", format!("0.0.0.0:{}", free_port()?));
    let open = set(&open, "listen", "insecure", true);
    bench.expect(&open, base, &[("tls.plain", "insecure = true")])?;

    // Agents here are called n and a number; the number of the next is known.
    let next = |bench: &Bench| format!("n{}", bench.number + 1);
    let name = next(bench);
    let directory = authority(&bench.scratch, "authority", &[&name, "somebody"], 30)?;
    bench.expect(&with_tls(config.clone(), &directory, &name), base, &[])?;
    bench.expect(
        &with_tls(config.clone(), &directory, "somebody"),
        base,
        &[("tls.name", "is not one of [node] name")],
    )?;
    bench.expect(
        &with_tls(config.clone(), &directory, "nobody"),
        base,
        &[("tls.files", "No such file")],
    )?;
    let name = next(bench);
    authority(&bench.scratch, "authority", &[&name], 5)?;
    bench.expect(
        &with_tls(config.clone(), &directory, &name),
        base,
        &[("tls.ends_soon", "ends in 4 days")],
    )?;
    let name = next(bench);
    authority(&bench.scratch, "authority", &[&name], -1)?;
    bench.expect(&with_tls(config.clone(), &directory, &name), base, &[("tls.dates", "has ended")])
}

/// A node that receives: its peers and its store.
fn followers(bench: &mut Bench, leader: &Cluster, agent: &Agent) -> Result<()> {
    let peer = format!("127.0.0.1:{}", agent.config.replication_port);
    let missing = bench.scratch.path().join("no-store");
    let config = follower_of(&peer, &missing)?;
    let fresh = bench.agent(config.clone())?;
    let (base, exit) = bench.check(&fresh, &[])?;
    compare(
        &base,
        &Found::new(),
        &[("agent.down", "no agent answers"), ("store.missing", "there is no store")],
    )?;
    assert_eq!(exit, Some(0), "a node that can be bootstrapped");

    let closed = follower_of(&format!("127.0.0.1:{}", free_port()?), &missing)?;
    bench.expect(&closed, &base, &[("peer.unreachable", "refused")])?;
    let mute = TcpListener::bind("127.0.0.1:0")?;
    let mute = follower_of(&mute.local_addr()?.to_string(), &missing)?;
    bench.expect(&mute, &base, &[("peer.unreachable", "")])?;

    // Any data directory may stand for a store here.
    let without = |name: &str| {
        let mut base = base.clone();
        base.remove(name);
        base
    };
    let there = without("store.missing");
    let of_leader = follower_of(&peer, leader.data_directory())?;
    bench.expect(&of_leader, &there, &[])?;
    let other = bench.scratch.path().join("other");
    bench.expect(
        &follower_of(&peer, &other)?,
        &there,
        &[("peer.cluster", "the store is of system")],
    )?;
    let empty = bench.scratch.directory("empty")?;
    bench.expect(&follower_of(&peer, &empty)?, &there, &[("store.unusable", "pg_control")])?;
    let open = bench.scratch.directory("open-store")?;
    bench.scratch.directory("open-store/global")?;
    let mut control = control_file(leader.data_directory())?;
    bench.scratch.file("open-store/global/pg_control", control.to_bytes())?;
    // As a store has it; what belongs to a server is that server's matter.
    let unusable = ("store.unusable", "mode 0755");
    fs::set_permissions(&open, fs::Permissions::from_mode(0o755))?;
    bench.expect(&follower_of(&peer, &open)?, &there, &[unusable])?;
    control.state = ClusterState::IN_ARCHIVE_RECOVERY;
    bench.scratch.file("open-store/global/pg_control", control.to_bytes())?;
    bench.expect(
        &follower_of(&peer, &open)?,
        &there,
        &[unusable, ("store.configuration", "postgresql.conf")],
    )?;
    // The leader's own configuration, copied whole.
    bench.scratch.file("open-store/postgresql.conf", "data_directory = '/var/lib/elsewhere'\n")?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o700))?;
    bench.expect(
        &follower_of(&peer, &open)?,
        &there,
        &[("store.configuration", "leads to /var/lib/elsewhere")],
    )?;
    let refused = "# lc_monetary = 'xx_XX'    # a server on this machine refuses the value\n";
    bench.scratch.file("open-store/postgresql.conf", refused)?;
    bench.expect(&follower_of(&peer, &open)?, &there, &[("store.settings", "lc_monetary")])?;
    bench.scratch.file("open-store/postgresql.conf", "")?;
    bench.expect(&follower_of(&peer, &open)?, &there, &[])?;
    bench.expect(
        &set(&of_leader, "store", "bin_directory", "/nonexistent"),
        &there,
        &[("store.programs", "No such file")],
    )?;
    bench.expect(
        &set(&of_leader, "store", "cache_bytes", "100TB"),
        &there,
        &[("store.memory", "more than half")],
    )?;

    locale(bench, leader, agent, &config, &base)?;

    // A leader whose clock is an hour ahead.
    let (fake, served) = leader_ahead(3_600)?;
    let fresh = bench.agent(follower_of(&fake, &missing)?)?;
    let begun = Instant::now();
    let (found, exit) = bench.check(&fresh, &[])?;
    let elapsed = begun.elapsed().as_secs_f64();
    let words = " s ahead of this machine's";
    compare(&found, &base, &[("clock.peer", words)])?;
    ensure!(exit == Some(i32::from(bench.seen_as_failed(&found))), "exit {exit:?} with {found:?}");
    // It looks at its own clock after the leader has; one decimal is told.
    let told = &found["clock.peer"].0;
    let ahead = told.split_once(words).and_then(|(text, _)| text.rsplit(' ').next());
    let ahead: f64 = ahead.context("a number")?.parse()?;
    ensure!((3_600.0 - elapsed - 0.05..=3_600.05).contains(&ahead), "{ahead} after {elapsed} s");
    served.join().expect("the fake leader's thread")?;
    let (fake, served) = leader_ahead(0)?;
    bench.expect(&follower_of(&fake, &missing)?, &base, &[])?;
    served.join().expect("the fake leader's thread")?;

    // A leader that knows who may.
    let next = format!("n{}", bench.number + 2);
    let nodes = ["n0=127.0.0.1", &next, "somebody"];
    let directory = authority(&bench.scratch, "roles", &nodes, 30)?;
    let mut strict = with_tls(AgentConfig::leader("n0", leader)?, &directory, "n0");
    let roles: toml::Table = format!("{next} = [\"follower\"]").parse()?;
    strict.more.push(("tls".into(), "roles".into(), roles.into()));
    let mut strict = Agent::new(&bench.scratch, strict)?;
    start(&mut strict)?;
    let peer = format!("127.0.0.1:{}", strict.config.replication_port);
    let config = follower_of(&peer, &missing)?;
    let plain = bench.agent(config.clone())?;
    compare(&bench.check(&plain, &[])?.0, &base, &[("peer.unreachable", "")])?;
    bench.expect(
        &with_tls(config.clone(), &directory, &next),
        &base,
        &[("peer.role", "has not the role bootstrap at n0")],
    )?;
    bench.expect(
        &with_tls(config.clone(), &directory, "somebody"),
        &base,
        &[("peer.role", "refuses this node"), ("tls.name", "")],
    )?;

    // An agent that runs, and cannot do what it is there for.
    let broken = bench.scratch.directory("broken")?;
    fs::create_dir(broken.join("global"))?;
    fs::write(broken.join("global/pg_control"), [0; 8192])?;
    let mut config = AgentConfig::leader("lost", leader)?;
    config.source = Source::Server { data_directory: broken, conninfo: None };
    let mut lost = bench.agent(config)?;
    lost.spawn()?;
    let begun = Instant::now();
    loop {
        let (found, exit) = bench.check(&lost, &[])?;
        if let Some((words, remedy)) = found.get("agent.stage") {
            println!("agent.stage: {words} -> {remedy}");
            assert_eq!(exit, Some(1));
            break;
        }
        ensure!(begun.elapsed() < PATIENCE, "{found:?}");
    }
    lost.kill()
}

/// A database that could not be opened here after a promotion.
fn locale(
    bench: &mut Bench,
    leader: &Cluster,
    agent: &Agent,
    config: &AgentConfig,
    base: &Found,
) -> Result<()> {
    bench.expect(config, base, &[])?;
    let make = "create database elsewhere template template0 locale 'xx_XX.UTF-8'";
    leader.sql(make)?;
    // The agent asks once when it has connected, and then each minute.
    let sessions = "select pg_terminate_backend(pid) from pg_stat_activity \
                    where application_name = 'walferry'";
    leader.sql(sessions)?;
    let fresh = bench.agent(config.clone())?;
    let begun = Instant::now();
    let found = loop {
        let (found, exit) = bench.check(&fresh, &[])?;
        if found.contains_key("store.locale") {
            assert_eq!(exit, Some(1));
            break found;
        }
        ensure!(begun.elapsed() < PATIENCE, "{found:?}\n{}", agent.log_tail(20));
    };
    compare(&found, base, &[("store.locale", "has not: xx_XX.UTF-8")])?;
    // A machine that has it, by one of its other names; one that does not tell; a node that will
    // never open a database.
    let programs = bench.scratch.directory("programs")?;
    let scratch = bench.scratch.clone();
    let script = |text: &str| -> Result<()> {
        let path = scratch.file("programs/locale", format!("#!/bin/sh\n{text}\n"))?;
        Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
    };
    let path = format!("{}:{}", programs.display(), std::env::var("PATH")?);
    script("exit 1")?;
    let mut command = fresh.command("check");
    command.env("PATH", &path);
    let (found, _) = bench.check_by(command, &[])?;
    compare(&found, base, &[("store.locale", "does not tell")])?;
    script("echo C; echo xx_XX.utf8")?;
    let mut command = fresh.command("check");
    command.env("PATH", &path);
    let (found, _) = bench.check_by(command, &[])?;
    compare(&found, base, &[])?;
    let archive_only = AgentConfig { store: None, ..config.clone() };
    let (found, _) = {
        let agent = bench.agent(archive_only)?;
        bench.check(&agent, &[])?
    };
    ensure!(!found.contains_key("store.locale"), "{found:?}");
    leader.sql("drop database elsewhere")?;
    leader.sql(sessions)?;
    let begun = Instant::now();
    while bench.check(&fresh, &[])?.0.contains_key("store.locale") {
        ensure!(begun.elapsed() < PATIENCE, "{}", agent.log_tail(20));
    }
    Ok(())
}

/// A leader that answers one probe, with a clock that many seconds ahead.
fn leader_ahead(seconds: i64) -> Result<(String, thread::JoinHandle<Result<()>>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let served = thread::spawn(move || {
        let now = || -> Result<Now> {
            let wall = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_micros())?;
            Ok(Now { monotonic: Instant::now(), wall: Stamp(wall + seconds * 1_000_000) })
        };
        let identity = Identity {
            node: "fake".parse()?,
            agent_version: PlainText::fitted("0"),
            system_identifier: 1,
            timeline: Timeline(1),
            segment_size: SegmentSize::DEFAULT,
            server_major: 15,
            server_version_num: 150_020,
        };
        let positions = LeaderPositions::default();
        let config = SenderConfig { identity, positions, limits: Limits::default() };
        let mut sender = Sender::new(config, now()?);
        let (mut stream, _) = listener.accept()?;
        let mut buffer = [0; 4096];
        while !sender.is_closed() {
            let read = stream.read(&mut buffer)?;
            ensure!(read > 0, "nothing was asked");
            sender.handle_bytes(now()?, &buffer[..read])?;
            if let Some(SenderEvent::Probed(_)) = sender.poll_event() {
                sender.answer_probe(
                    now()?,
                    ProbeReply {
                        may_follow: true,
                        may_bootstrap: true,
                        first: Lsn::INVALID,
                        locales: Vec::new(),
                    },
                )?;
            }
            while let Some(bytes) = sender.poll_transmit() {
                stream.write_all(&bytes)?;
            }
        }
        Ok(())
    });
    Ok((address, served))
}

/// Each line of the README's table was found by a check above, with its level.
fn all_were_seen(bench: &Bench) -> Result<()> {
    let readme =
        fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../README.md"))?;
    let listed: BTreeSet<(String, String)> = readme
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix("| `")?.split('|');
            let name = cells.next()?.trim().strip_suffix('`')?;
            let level = cells.next()?.trim();
            matches!(level, "WARNING" | "FAILED").then(|| (name.to_owned(), level.to_owned()))
        })
        .collect();
    ensure!(listed.len() > 30, "the README's table has {} lines", listed.len());
    let mut missing: Vec<_> = listed.difference(&bench.seen).collect();
    for (name, why) in ELSEWHERE {
        println!("not found here: {name}: {why}");
        missing.retain(|(missing, _)| missing != name);
    }
    if !rustix::process::geteuid().is_root() {
        println!("not found here: {ROOT_ONLY}: it takes root; a unit test has the rule");
        missing.retain(|(missing, _)| missing != ROOT_ONLY);
    }
    ensure!(missing.is_empty(), "never found: {missing:?}");
    let unlisted: Vec<_> = bench.seen.difference(&listed).collect();
    ensure!(unlisted.is_empty(), "not in the README: {unlisted:?}");
    println!("{} of {} findings were brought about", bench.seen.len(), listed.len());
    Ok(())
}
