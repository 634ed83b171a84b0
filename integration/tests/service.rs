//! The agent as a service: what it tells systemd, and what the units in `systemd/` are worth.
//!
//! systemd itself is not needed for the first: the tests listen where it would (`NOTIFY_SOCKET`).
//! That it all holds under a systemd that boots is `integration/service.sh`'s to show.

use std::fs::{self, OpenOptions, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::command::output_of;
use integration::{
    Agent, AgentConfig, Cluster, ClusterOptions, PATIENCE, Pair, Scratch, Source, StopMode,
    free_port,
};

/// A stage may be silent for half of it.
const WATCHDOG: Duration = Duration::from_secs(2);
/// The shortest time to listen: none at all would be for ever.
const TICK: Duration = Duration::from_millis(1);

#[test]
fn ready_comes_when_tail_streams_and_a_hang_starves_the_watchdog() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut leader = Cluster::start_new(&scratch, "leader", &ClusterOptions::default())?;
    let mut agent = Agent::new(&scratch, AgentConfig::leader("leader1", &leader)?)?;
    let systemd = Systemd::beside(&mut agent, &scratch)?;

    let begun = Instant::now();
    agent.spawn()?;
    let first = systemd.wait_for("READY=1", PATIENCE)?;
    println!("ready after {:?}: {first:?}", begun.elapsed());
    // All doors are open, and there is nothing left to wait for.
    assert_eq!(agent.state_of("tail")?, "streaming");
    assert_eq!(agent.state_of("send")?, "streaming");
    assert!(agent.metrics().is_ok());

    let heard = systemd.listen(WATCHDOG * 2)?;
    let fed = count(&heard, "WATCHDOG=1");
    println!("fed {fed} times in {:?}: {heard:?}", WATCHDOG * 2);
    assert!(fed >= 4, "fed {fed} times");
    assert_eq!(count(&heard, "READY=1"), 0, "said twice");
    let says = |line: &&String| {
        line.starts_with("STATUS=") && line.contains("send streaming, tail streaming")
    };
    assert!(first.iter().chain(&heard).any(|line| says(&line)), "no status: {heard:?}");

    // From here on tail hangs: it looks at pg_control every second, and whoever opens a pipe waits
    // for its other end. It is no wait for the disk.
    leader.stop(StopMode::Fast)?;
    let pipe = Pipe::instead_of(leader.data_directory().join("global/pg_control"))?;
    // It is fed until the silence is long enough.
    let heard = systemd.starves(WATCHDOG * 2, PATIENCE)?;
    println!("while tail hangs: {heard:?}");
    let log = fs::read_to_string(agent.log_path())?;
    assert!(log.contains("no sign of life"), "{}", agent.log_tail(20));

    // The control: it was that hang alone.
    pipe.remove()?;
    systemd.wait_for("WATCHDOG=1", PATIENCE)?;
    let heard = systemd.listen(WATCHDOG * 2)?;
    assert!(count(&heard, "WATCHDOG=1") >= 2, "{heard:?}");

    agent.stop()?;
    let heard = systemd.listen(Duration::from_millis(200))?;
    assert_eq!(heard.last().map(String::as_str), Some("STOPPING=1"), "{heard:?}");
    Ok(())
}

#[test]
fn not_ready_before_tail_has_begun() -> Result<()> {
    let scratch = Scratch::new()?;
    let data_directory = scratch.directory("nothing-but-a-pipe")?;
    fs::create_dir(data_directory.join("global"))?;
    let pipe = Pipe::instead_of(data_directory.join("global/pg_control"))?;
    let config = AgentConfig {
        name: "leader1".to_owned(),
        source: Source::Server { data_directory, conninfo: None },
        store: None,
        replication_port: free_port()?,
        metrics_port: free_port()?,
        more: Vec::new(),
    };
    let mut agent = Agent::new(&scratch, config)?;
    let systemd = Systemd::beside(&mut agent, &scratch)?;
    agent.start()?;
    assert_eq!(agent.state_of("tail")?, "starting");
    let first = systemd.wait_for("EXTEND_TIMEOUT_USEC=30000000", PATIENCE)?;
    println!("at first: {first:?}");
    assert_eq!(count(&first, "READY=1"), 0, "{first:?}");
    // More time is asked for only while there are signs of life.
    let heard = systemd.listen(WATCHDOG * 4)?;
    println!("later: {heard:?}");
    let asked = heard.iter().any(|line| line.starts_with("EXTEND_TIMEOUT_USEC"));
    assert!(!asked && count(&heard, "READY=1") == 0, "{heard:?}");

    // A stage that fails and tries again has said so.
    pipe.remove_all()?;
    systemd.wait_for("READY=1", PATIENCE)?;
    assert_ne!(agent.state_of("tail")?, "starting");
    Ok(())
}

#[test]
fn a_follower_is_ready_without_its_leader() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut pair = Pair::start(&scratch, &ClusterOptions::default(), 1)?;
    pair.follower.stop()?;
    pair.leader_agent.stop()?;
    let systemd = Systemd::beside(&mut pair.follower, &scratch)?;
    pair.follower.spawn()?;
    systemd.wait_for("READY=1", PATIENCE)?;
    assert_eq!(pair.follower.state_of("replay")?, "streaming");
    assert_eq!(pair.follower.state_of("receive")?, "retrying");
    // Idle as it is, with nothing to receive and nothing to replay, it shows signs of life.
    let heard = systemd.listen(WATCHDOG * 3)?;
    assert!(count(&heard, "WATCHDOG=1") >= 6, "{heard:?}");
    Ok(())
}

#[test]
fn wrong_configuration_ends_it_as_the_unit_expects() -> Result<()> {
    let scratch = Scratch::new()?;
    let cluster = Cluster::start_new(&scratch, "leader", &ClusterOptions::default())?;
    let mut config = AgentConfig::leader("leader1", &cluster)?;
    config.more.push(("node".into(), "nmae".into(), "x".into()));
    let mut agent = Agent::new(&scratch, config)?;
    let systemd = Systemd::beside(&mut agent, &scratch)?;
    let outcome = agent.verb("run", &[])?;
    assert_eq!(outcome.exit, Some(2), "{outcome:?}");
    assert_eq!(systemd.listen(Duration::from_millis(100))?, [""; 0]);
    let unit = fs::read_to_string(unit("walferry.service"))?;
    assert!(unit.lines().any(|line| line == "RestartPreventExitStatus=2"));
    Ok(())
}

const UNITS: [&str; 2] = ["walferry.service", "walferry-bootstrap.service"];
/// The exposure that is let pass, times ten.
const EXPOSURE_MAX: &str = "15";

#[test]
fn systemd_finds_nothing_wrong_with_the_units() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let verify = |name: &str, change: &dyn Fn(String) -> String| {
        // The program need not be installed here, and must be one.
        let text = fs::read_to_string(unit(name))?.replace("/usr/bin/walferry", "/bin/true");
        let copy = folder.path().join(name);
        fs::write(&copy, change(text))?;
        let output = analyze().args(["verify", "--man=no"]).arg(&copy).output()?;
        Ok::<_, anyhow::Error>((output.status.success(), String::from_utf8(output.stderr)?))
    };
    for name in UNITS {
        let (success, words) = verify(name, &|text| text)?;
        ensure!(success && words.is_empty(), "{name}: {words}");
        let (_, words) = verify(name, &|text| text.replace("UMask=", "Umask="))?;
        ensure!(words.contains("Unknown key"), "{name}: a wrong key went unnoticed: {words}");
        let (success, words) = verify(name, &|text| text.replace("/bin/true", "/bin/flase"))?;
        ensure!(!success, "{name}: a wrong program went unnoticed: {words}");
    }
    Ok(())
}

#[test]
fn the_units_expose_little() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let exposure = |path: &Path| {
        let output = analyze()
            .args(["security", "--offline=true", "--no-pager", "--threshold", EXPOSURE_MAX])
            .arg(path)
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        let overall = text.lines().find(|line| line.contains("Overall exposure"));
        let overall = overall.with_context(|| format!("no exposure in {text}"))?;
        Ok::<_, anyhow::Error>((output.status.success(), overall.trim().to_owned()))
    };
    for name in UNITS {
        let (success, words) = exposure(&unit(name))?;
        println!("{words}");
        ensure!(success, "{words}");
        // Each of these lines bears weight.
        for sharp in ["CapabilityBoundingSet=", "SystemCallFilter=@", "ProtectSystem=", "User="] {
            let text = fs::read_to_string(unit(name))?;
            let kept: Vec<&str> = text.lines().filter(|line| !line.starts_with(sharp)).collect();
            ensure!(kept.len() < text.lines().count(), "{name} has no {sharp}");
            let spoiled = folder.path().join(name);
            fs::write(&spoiled, kept.join("\n"))?;
            let (success, words) = exposure(&spoiled)?;
            println!("without {sharp}: {words}");
            if sharp.starts_with("Cap") {
                ensure!(!success, "without {sharp} it went unnoticed: {words}");
            }
        }
    }
    // What the score would like, and what would take the server's shared memory away.
    for name in UNITS {
        ensure!(fs::read_to_string(unit(name))?.lines().any(|line| line == "RemoveIPC=no"));
    }
    Ok(())
}

fn unit(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd").join(name)
}

fn analyze() -> Command {
    let mut command = Command::new("systemd-analyze");
    command.env("LC_ALL", "C.UTF-8").env("SYSTEMD_LOG_LEVEL", "warning");
    command
}

/// Listens where systemd would.
struct Systemd(UnixDatagram);

impl Systemd {
    /// The agent will be started with this one to talk to, and a watchdog.
    fn beside(agent: &mut Agent, scratch: &Scratch) -> Result<Self> {
        let path = scratch.path().join("notify");
        let socket = UnixDatagram::bind(&path).context("a socket")?;
        fs::set_permissions(&path, Permissions::from_mode(0o666))?;
        agent.environment.push(("NOTIFY_SOCKET".to_owned(), path));
        let micros = WATCHDOG.as_micros().to_string();
        agent.environment.push(("WATCHDOG_USEC".to_owned(), micros.into()));
        Ok(Self(socket))
    }

    /// The lines that come within this time.
    fn listen(&self, time: Duration) -> Result<Vec<String>> {
        let until = Instant::now() + time;
        let mut lines = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(lines);
            }
            lines.extend(self.datagram(left)?);
        }
    }

    /// The lines that come up to the datagram with this one.
    fn wait_for(&self, line: &str, limit: Duration) -> Result<Vec<String>> {
        let until = Instant::now() + limit;
        let mut lines = Vec::new();
        while let left = until.saturating_duration_since(Instant::now())
            && !left.is_zero()
        {
            lines.extend(self.datagram(left)?);
            if lines.iter().any(|found| found == line) {
                return Ok(lines);
            }
        }
        bail!("no {line} within {limit:?}, only {lines:?}")
    }

    /// Waits until the watchdog was not fed for this time; gives the lines that came in it.
    fn starves(&self, time: Duration, limit: Duration) -> Result<Vec<String>> {
        let until = Instant::now() + limit;
        let (mut fed, mut lines) = (Instant::now(), Vec::new());
        while fed.elapsed() < time {
            ensure!(Instant::now() < until, "a watchdog is fed that must starve: {lines:?}");
            let more = self.datagram(time.saturating_sub(fed.elapsed()).max(TICK))?;
            if more.iter().any(|line| line == "WATCHDOG=1") {
                fed = Instant::now();
                lines.clear();
            }
            lines.extend(more);
        }
        Ok(lines)
    }

    fn datagram(&self, limit: Duration) -> Result<Vec<String>> {
        self.0.set_read_timeout(Some(limit))?;
        let mut buffer = vec![0; 64 << 10];
        match self.0.recv(&mut buffer) {
            Ok(length) => {
                let text = std::str::from_utf8(&buffer[..length])?;
                Ok(text.lines().map(str::to_owned).collect())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }
}

fn count(lines: &[String], line: &str) -> usize {
    lines.iter().filter(|found| *found == line).count()
}

/// A pipe where a file was: whoever opens it to read waits.
struct Pipe {
    path: PathBuf,
    kept: PathBuf,
}

impl Pipe {
    fn instead_of(path: PathBuf) -> Result<Self> {
        let kept = path.with_extension("kept");
        if path.exists() {
            fs::rename(&path, &kept)?;
        }
        output_of(Command::new("mkfifo").args(["-m", "666"]).arg(&path))?;
        Ok(Self { path, kept })
    }

    /// The file is back, and who has waited goes on.
    fn remove(self) -> Result<()> {
        let pipe = self.path.with_extension("pipe");
        fs::rename(&self.path, &pipe)?;
        fs::rename(&self.kept, &self.path)?;
        drop(OpenOptions::new().write(true).open(pipe)?);
        Ok(())
    }

    /// There is no file, and who has waited goes on.
    fn remove_all(self) -> Result<()> {
        let pipe = self.path.with_extension("pipe");
        fs::rename(&self.path, &pipe)?;
        drop(OpenOptions::new().write(true).open(pipe)?);
        Ok(())
    }
}
