//! Connections between agents: who gets in, as what, and who does not.

use std::io::Read;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use integration::agent::{Source, VerbOutcome};
use integration::authority::{authority, with_tls};
use integration::{Agent, AgentConfig, Cluster, ClusterOptions, PATIENCE, Scratch};
use walfmt::Lsn;

const FAST: &[&str] = &["--fast-checkpoint"];

struct Setting {
    scratch: Scratch,
    leader: Cluster,
    leader_agent: Agent,
    authority: PathBuf,
}

impl Setting {
    fn new(roles: Option<&str>) -> Result<Self> {
        let scratch = Scratch::new()?;
        let leader = Cluster::start_new(&scratch, "leader", &ClusterOptions::default())?;
        leader.pgbench_init(1, &[])?;
        let nodes = ["leader1=127.0.0.1", "db2", "db3"];
        let authority = authority(&scratch, "authority", &nodes, 30)?;
        let mut config = with_tls(AgentConfig::leader("leader1", &leader)?, &authority, "leader1");
        if let Some(roles) = roles {
            let roles: toml::Table = roles.parse()?;
            config.more.push(("tls".into(), "roles".into(), roles.into()));
        }
        let mut leader_agent = Agent::new(&scratch, config)?;
        leader_agent.start()?;
        // A backup waits for that only for some seconds.
        leader_agent.wait_for_state("tail", "streaming")?;
        Ok(Self { scratch, leader, leader_agent, authority })
    }

    /// A follower of this name; `certificate` is the name in the one it shows.
    fn follower(&self, name: &str, certificate: Option<&str>) -> Result<AgentConfig> {
        let config = AgentConfig::follower(name, &self.scratch, &self.leader_agent)?;
        Ok(match certificate {
            Some(certificate) => with_tls(config, &self.authority, certificate),
            None => config,
        })
    }

    fn bootstrap(&self, config: AgentConfig) -> Result<(Agent, VerbOutcome)> {
        let agent = Agent::new(&self.scratch, config)?;
        let outcome = agent.verb("bootstrap", FAST)?;
        println!("{:?} {}", outcome.exit, outcome.stderr.lines().next().unwrap_or_default());
        Ok((agent, outcome))
    }

    fn refused(&self, config: AgentConfig, because: &str) -> Result<()> {
        let (_, outcome) = self.bootstrap(config)?;
        assert_eq!(outcome.exit, Some(1), "{outcome:?}");
        assert!(outcome.stderr.contains(because), "{because}: {outcome:?}");
        Ok(())
    }

    fn flushed(&self) -> Result<Lsn> {
        self.leader.sql("select pg_current_wal_flush_lsn()")?.parse().context("an LSN")
    }
}

#[test]
fn only_who_shows_its_own_certificate_gets_in() -> Result<()> {
    let setting = Setting::new(None)?;
    let elsewhere = authority(&setting.scratch, "elsewhere", &["db2", "leader1=127.0.0.1"], 30)?;

    // Plain text, another authority, another node's certificate.
    setting.refused(setting.follower("db2", None)?, "it may want TLS")?;
    let stranger = with_tls(setting.follower("db2", None)?, &elsewhere, "db2");
    setting.refused(stranger, "TLS with peer")?;
    let mut mixed = setting.follower("db2", Some("db2"))?;
    for (key, file) in [("certificate", "db2.crt"), ("key", "db2.key")] {
        let path = elsewhere.join(file).to_string_lossy().into_owned();
        mixed.more.push(("tls".into(), key.into(), path.into()));
    }
    setting.refused(mixed, "peer")?;
    setting.refused(setting.follower("db3", Some("db2"))?, "is not one of db3")?;
    // A leader under another name than the one that is wanted.
    let mut astray = setting.follower("db2", Some("db2"))?;
    astray.source = Source::Peers(vec![format!(
        "db3@127.0.0.1:{}",
        setting.leader_agent.config.replication_port
    )]);
    setting.refused(astray, "TLS with peer")?;

    // The control: its own certificate, and the leader by address or by name.
    let mut config = setting.follower("db2", Some("db2"))?;
    let port = setting.leader_agent.config.replication_port;
    config.source = Source::Peers(vec![format!("leader1@127.0.0.1:{port}")]);
    let (mut follower, outcome) = setting.bootstrap(config)?;
    assert_eq!(outcome.exit, Some(0), "{outcome:?}");
    follower.start()?;
    setting.leader.pgbench_run(&["-t", "500"])?;
    follower.wait_replayed(setting.flushed()?, PATIENCE)?;
    let (_, outcome) = setting.bootstrap(setting.follower("db3", Some("db3"))?)?;
    assert_eq!(outcome.exit, Some(0), "by address: {outcome:?}");

    // What goes over the wire is no plain text.
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    std::io::Write::write_all(&mut stream, b"WALFERRY plain text, is anybody there?")?;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    assert!(!answer.windows(8).any(|bytes| bytes == b"WALFERRY"), "{answer:?}");

    // New certificates, of a new authority, without a restart. First the leader trusts both.
    let both = [setting.authority.join("ca.crt"), elsewhere.join("ca.crt")];
    let both: Vec<String> = both.iter().map(std::fs::read_to_string).collect::<Result<_, _>>()?;
    replace(&setting.authority.join("ca.crt"), both.concat().as_bytes())?;
    for file in ["leader1.crt", "leader1.key"] {
        replace(&setting.authority.join(file), &std::fs::read(elsewhere.join(file))?)?;
    }
    follower.stop()?;
    let config = with_tls(setting.follower("db2", None)?, &elsewhere, "db2");
    let mut follower = Agent::new(&setting.scratch, config)?;
    follower.start()?;
    setting.leader.pgbench_run(&["-t", "500"])?;
    follower.wait_replayed(setting.flushed()?, PATIENCE)?;
    // A file that cannot be read leaves the ones from before.
    replace(&setting.authority.join("leader1.crt"), b"no certificate")?;
    follower.stop()?;
    follower.start()?;
    setting.leader.pgbench_run(&["-t", "500"])?;
    follower.wait_replayed(setting.flushed()?, PATIENCE)?;
    let log = std::fs::read_to_string(setting.leader_agent.log_path())?;
    assert!(log.contains("certificates from before go on"), "{log}");
    // And the old authority's word counts no more once it is gone.
    for file in ["leader1.crt", "ca.crt"] {
        replace(&setting.authority.join(file), &std::fs::read(elsewhere.join(file))?)?;
    }
    let mut old = setting.follower("db3", Some("db3"))?;
    old.store.as_mut().context("a store")?.data_directory = setting.scratch.path().join("old");
    let path = elsewhere.join("ca.crt").to_string_lossy().into_owned();
    old.more.push(("tls".into(), "authority".into(), path.into()));
    setting.refused(old, "peer")
}

#[test]
fn a_node_gets_what_its_roles_say() -> Result<()> {
    let setting = Setting::new(Some("db2 = ['bootstrap', 'follower']\ndb3 = ['follower']"))?;
    setting
        .refused(setting.follower("db3", Some("db3"))?, "db3 has not the role bootstrap here")?;
    let (mut follower, outcome) = setting.bootstrap(setting.follower("db2", Some("db2"))?)?;
    assert_eq!(outcome.exit, Some(0), "{outcome:?}");
    follower.start()?;
    follower.wait_replayed(setting.flushed()?, PATIENCE)?;
    follower.stop()?;

    // The same node with another one's certificate gets no WAL either.
    let reached = setting.flushed()?;
    let mut posing = Agent::new(&setting.scratch, setting.follower("db2", Some("db3"))?)?;
    posing.start()?;
    setting.leader.pgbench_run(&["-t", "100"])?;
    let deadline = Instant::now() + PATIENCE;
    while !posing.log_tail(50).contains("is not one of db2") {
        ensure!(Instant::now() < deadline, "it was not refused: {}", posing.log_tail(50));
        thread::sleep(Duration::from_millis(100));
    }
    assert!(posing.position("durable")? <= reached, "it got WAL");
    posing.stop()?;
    // The control: with its own again.
    let mut follower = Agent::new(&setting.scratch, setting.follower("db2", Some("db2"))?)?;
    follower.start()?;
    follower.wait_replayed(setting.flushed()?, PATIENCE)
}

#[test]
fn whoever_says_nothing_is_let_go() -> Result<()> {
    let setting = Setting::new(None)?;
    let port = setting.leader_agent.config.replication_port;
    let pid = setting.leader_agent.pid().context("it runs")?;
    // What its own start takes is not theirs.
    setting.leader_agent.wait_durable(setting.flushed()?, PATIENCE)?;
    setting.leader_agent.wait_for_state("horizon", "streaming")?;
    let before = resident_kilobytes(pid)?;
    // As many as there are places, and as many again.
    let silent: Vec<_> =
        (0..64).map(|_| TcpStream::connect(("127.0.0.1", port))).collect::<Result<_, _>>()?;
    thread::sleep(Duration::from_millis(500));
    let grown = resident_kilobytes(pid)?.saturating_sub(before);
    println!("64 silent connections take {grown} kB");
    assert!(grown < 16 << 10, "{grown} kB");
    let begun = Instant::now();
    let (_, outcome) = loop {
        let config = setting.follower("db2", Some("db2"))?;
        let tried = setting.bootstrap(config)?;
        if tried.1.exit == Some(0) || begun.elapsed() > PATIENCE {
            break tried;
        }
        thread::sleep(Duration::from_secs(1));
    };
    assert_eq!(outcome.exit, Some(0), "{outcome:?}");
    println!("served after {:.1} s", begun.elapsed().as_secs_f64());
    drop(silent);
    Ok(())
}

#[test]
fn what_cannot_be_used_is_refused_at_the_start() -> Result<()> {
    let scratch = Scratch::new()?;
    let directory = authority(&scratch, "authority", &["db2"], 30)?;
    let plain = |peer: &str| AgentConfig {
        name: "db2".into(),
        source: Source::Peers(vec![peer.into()]),
        store: None,
        replication_port: 1,
        metrics_port: 2,
        more: Vec::new(),
    };
    let far = plain("10.0.0.1:5480");
    let readable = with_tls(far.clone(), &directory, "readable");
    for file in ["crt", "key"] {
        std::fs::copy(
            directory.join(format!("db2.{file}")),
            directory.join(format!("readable.{file}")),
        )?;
    }
    Command::new("chmod").arg("0644").arg(directory.join("readable.key")).status()?;
    let mut swapped = with_tls(far.clone(), &directory, "db2");
    let other = directory.join("ca.key").to_string_lossy().into_owned();
    swapped.more.push(("tls".into(), "key".into(), other.into()));
    for (config, words) in [
        (far, "without a [tls] section"),
        (with_tls(plain("10.0.0.1:5480"), &directory, "nobody"), "No such file"),
        (readable, "can be read by others"),
        (swapped, "[tls] certificate"),
    ] {
        let outcome = Agent::new(&scratch, config)?.verb("run", &[])?;
        println!("exit {:?}: {}", outcome.exit, outcome.stderr.lines().next().unwrap_or_default());
        assert_eq!(outcome.exit, Some(2), "{outcome:?}");
        assert!(outcome.stderr.contains(words), "{words}: {outcome:?}");
        assert!(outcome.stderr.contains("hint: ") || words == "No such file", "{outcome:?}");
    }
    Ok(())
}

/// As an operator would: the new file takes the old one's name.
fn replace(path: &Path, contents: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    std::fs::write(&new, contents)?;
    let old = std::fs::metadata(path)?;
    std::fs::set_permissions(&new, old.permissions())?;
    std::os::unix::fs::chown(
        &new,
        Some(std::os::unix::fs::MetadataExt::uid(&old)),
        Some(std::os::unix::fs::MetadataExt::gid(&old)),
    )?;
    Ok(std::fs::rename(new, path)?)
}

fn resident_kilobytes(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS")).context("VmRSS")?;
    line.split_whitespace().nth(1).context("a number")?.parse().context("a number")
}
