//! A real `walferry` process.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::process::Signal;
use serde_json::Value;
use walfmt::Lsn;

use crate::command::{command_line, output_of};
use crate::metrics::Metrics;
use crate::ports::free_port;
use crate::postgres::Cluster;
use crate::process::{PATIENCE, POLL_INTERVAL, send_signal, tail_of, wait_for_exit, wait_until};
use crate::scratch::Scratch;

/// Where an agent's WAL comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A server beside it.
    Server {
        /// The server's data directory.
        data_directory: PathBuf,
        /// How to ask it; without, the agent lives from its files alone.
        conninfo: Option<String>,
    },
    /// Other agents' replication ports, `host:port`.
    Peers(Vec<String>),
}

/// The page store of a follower.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// The store: a data directory.
    pub data_directory: PathBuf,
    /// How many threads replay.
    pub workers: u32,
    /// Memory for pages, for example `256MB`.
    pub cache_bytes: String,
}

/// An agent's configuration file.
#[derive(Clone, Debug, PartialEq)]
pub struct AgentConfig {
    /// Its name, which is also that of its directories and files in the scratch folder.
    pub name: String,
    /// Where its WAL comes from.
    pub source: Source,
    /// Its page store, if it is to replay.
    pub store: Option<StoreConfig>,
    /// Its replication port.
    pub replication_port: u16,
    /// The port of `/metrics`.
    pub metrics_port: u16,
    /// More keys, by section and name, for example `("source", "flush_interval", "5ms".into())`.
    /// They replace those above.
    pub more: Vec<(String, String, toml::Value)>,
}

impl AgentConfig {
    /// The agent beside a server.
    ///
    /// # Errors
    /// No free port.
    pub fn leader(name: &str, server: &Cluster) -> Result<Self> {
        let source = Source::Server {
            data_directory: server.data_directory().to_owned(),
            conninfo: Some(server.endpoint().conninfo()),
        };
        Self::with_source(name, source)
    }

    /// An agent that receives from another and replays into a store in the scratch folder.
    ///
    /// # Errors
    /// No free port.
    pub fn follower(name: &str, scratch: &Scratch, of: &Agent) -> Result<Self> {
        let peer = format!("127.0.0.1:{}", of.config.replication_port);
        let store = StoreConfig {
            data_directory: scratch.path().join(format!("{name}-store")),
            workers: 2,
            cache_bytes: "256MB".to_owned(),
        };
        let config = Self::with_source(name, Source::Peers(vec![peer]))?;
        Ok(Self { store: Some(store), ..config })
    }

    fn with_source(name: &str, source: Source) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            source,
            store: None,
            replication_port: free_port()?,
            metrics_port: free_port()?,
            more: Vec::new(),
        })
    }

    fn to_toml(&self, run: &Path, archive: &Path, binaries: &Path) -> Result<String> {
        let text = |path: &Path| -> Result<toml::Value> {
            let text = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
            Ok(text.into())
        };
        let mut file = toml::Table::new();
        let mut set = |section: &str, key: &str, value: toml::Value| {
            let section = file.entry(section).or_insert_with(|| toml::Table::new().into());
            section.as_table_mut().expect("sections are tables").insert(key.to_owned(), value);
        };
        set("node", "name", self.name.as_str().into());
        set("node", "run_directory", text(run)?);
        match &self.source {
            Source::Server { data_directory, conninfo } => {
                set("source", "data_directory", text(data_directory)?);
                if let Some(conninfo) = conninfo {
                    set("source", "conninfo", conninfo.as_str().into());
                }
            }
            Source::Peers(peers) => set("source", "peers", peers.clone().into()),
        }
        set("archive", "directory", text(archive)?);
        if let Some(store) = &self.store {
            set("store", "data_directory", text(&store.data_directory)?);
            set("store", "workers", i64::from(store.workers).into());
            set("store", "cache_bytes", store.cache_bytes.as_str().into());
            set("store", "bin_directory", text(binaries)?);
        }
        let local = |port: u16| format!("127.0.0.1:{port}").into();
        set("listen", "replication", local(self.replication_port));
        set("listen", "metrics", local(self.metrics_port));
        for (section, key, value) in &self.more {
            set(section, key, value.clone());
        }
        toml::to_string(&file).context("cannot write a configuration")
    }
}

/// What a verb did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerbOutcome {
    /// Exit status: 0 done, 1 failed, 2 wrong usage or configuration, 3 not there (yet); nothing if
    /// a signal ended it.
    pub exit: Option<i32>,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// An agent and its configuration; stopped on drop.
#[derive(Debug)]
pub struct Agent {
    scratch: Scratch,
    /// As it was when the configuration file was written.
    pub config: AgentConfig,
    /// Environment variables that `walferry run` is started with.
    pub environment: Vec<(String, PathBuf)>,
    binary: PathBuf,
    config_file: PathBuf,
    archive: PathBuf,
    child: Option<Child>,
}

impl Agent {
    /// Writes an agent's configuration and creates its directories; it is not started. A store's
    /// directory is not created: `bootstrap` does that.
    ///
    /// # Errors
    /// There is no `walferry` and it cannot be built; or the scratch folder cannot be written.
    pub fn new(scratch: &Scratch, config: AgentConfig) -> Result<Self> {
        let run = scratch.directory(&format!("{}-run", config.name))?;
        let archive = scratch.directory(&format!("{}-archive", config.name))?;
        let binaries = crate::binaries::Binaries::find()?;
        let text = config.to_toml(&run, &archive, binaries.directory())?;
        let config_file = scratch.file(&format!("{}.toml", config.name), text)?;
        let binary = binary_in(scratch)?;
        Ok(Self {
            scratch: scratch.clone(),
            config,
            environment: Vec::new(),
            binary,
            config_file,
            archive,
            child: None,
        })
    }

    /// Starts `walferry run` and waits until `walferry status` gets an answer from it.
    ///
    /// # Errors
    /// It ends instead, or does not answer within half a minute; the error shows its log's end.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        let deadline = Instant::now() + PATIENCE;
        while self.status().is_err() {
            if !self.is_running() {
                bail!(
                    "agent {} ended instead of starting\n{}",
                    self.config.name,
                    self.log_tail(30)
                );
            }
            if Instant::now() > deadline {
                bail!("agent {} does not answer\n{}", self.config.name, self.log_tail(30));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Starts `walferry run` without waiting for anything.
    ///
    /// # Errors
    /// It runs already or cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(!self.is_running(), "agent {} runs already", self.config.name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_path())
            .context("cannot open the agent's log")?;
        let stdout = log.try_clone().context("cannot share the agent's log")?;
        let mut command = self.command("run");
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let child = command.stdin(Stdio::null()).stdout(stdout).stderr(log).spawn();
        self.child =
            Some(child.with_context(|| format!("cannot start {}", command_line(&command)))?);
        Ok(())
    }

    /// Stops the agent with SIGTERM; one that does not run is no error.
    ///
    /// # Errors
    /// It does not end within [`PATIENCE`], or its exit status is not 0.
    pub fn stop(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        send_signal(child.id(), Signal::TERM)?;
        // Its last restart point syncs what everybody has written on the file system.
        let status = wait_for_exit(child, PATIENCE)
            .with_context(|| format!("stopping agent {}", self.config.name))?;
        self.child = None;
        ensure!(
            status.success(),
            "agent {} ended with {status} when stopped\n{}",
            self.config.name,
            self.log_tail(30)
        );
        Ok(())
    }

    /// Kills the agent with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    /// The operating system's.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("cannot kill the agent")?;
            child.wait().context("cannot wait for the killed agent")?;
        }
        Ok(())
    }

    /// Whether its process is there.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Its process id, if it was started.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// `walferry VERB --config FILE`, to be given more arguments.
    #[must_use]
    pub fn command(&self, verb: &str) -> Command {
        let mut command = self.scratch.account().command(&self.binary);
        command.arg(verb).arg("--config").arg(&self.config_file);
        command
    }

    /// Runs a verb to its end, whatever that is.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn verb(&self, verb: &str, arguments: &[&str]) -> Result<VerbOutcome> {
        let mut command = self.command(verb);
        let output = command
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start {}", command_line(&command)))?;
        Ok(VerbOutcome {
            exit: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a verb that must succeed and gives its standard output.
    ///
    /// # Errors
    /// Its exit status is not 0.
    pub fn run_verb(&self, verb: &str, arguments: &[&str]) -> Result<String> {
        output_of(self.command(verb).args(arguments))
    }

    /// `walferry bootstrap --from DIR`.
    ///
    /// # Errors
    /// It fails.
    pub fn bootstrap(&self, from: &Path) -> Result<String> {
        output_of(self.command("bootstrap").arg("--from").arg(from))
    }

    /// `walferry status --json`.
    ///
    /// # Errors
    /// The agent does not answer.
    pub fn status(&self) -> Result<Value> {
        let text = self.run_verb("status", &["--json"])?;
        serde_json::from_str(&text).with_context(|| format!("status is not JSON: {text}"))
    }

    /// One of the positions in [`Agent::status`], for example `durable`.
    ///
    /// # Errors
    /// The agent does not answer, or has no such position (yet).
    pub fn position(&self, name: &str) -> Result<Lsn> {
        let status = self.status()?;
        let text = status["positions"][name].as_str();
        let text = text.ok_or_else(|| anyhow!("no position {name} in status {status}"))?;
        text.parse().with_context(|| format!("position {name}"))
    }

    /// Waits until a position in [`Agent::status`] is at or past `lsn`.
    ///
    /// # Errors
    /// It is not within `limit`, or the agent ended; the error shows its log's end.
    pub fn wait_for_position(&mut self, name: &str, lsn: Lsn, limit: Duration) -> Result<()> {
        let what = format!("position {name} of agent {} reaches {lsn}", self.config.name);
        wait_until(&what, limit, || {
            ensure!(self.is_running(), "agent {} is not running", self.config.name);
            Ok(self.position(name).is_ok_and(|reached| reached >= lsn))
        })
        .with_context(|| format!("status {:?}\n{}", self.status(), self.log_tail(30)))
    }

    /// `walferry wait --replayed LSN`.
    ///
    /// # Errors
    /// It is not replayed within `limit`.
    pub fn wait_replayed(&self, lsn: Lsn, limit: Duration) -> Result<()> {
        self.wait("--replayed", lsn, limit)
    }

    /// `walferry wait --durable LSN`.
    ///
    /// # Errors
    /// It is not durable within `limit`.
    pub fn wait_durable(&self, lsn: Lsn, limit: Duration) -> Result<()> {
        self.wait("--durable", lsn, limit)
    }

    fn wait(&self, position: &str, lsn: Lsn, limit: Duration) -> Result<()> {
        let limit = format!("{}s", limit.as_secs());
        self.run_verb("wait", &[position, &lsn.to_string(), "--timeout", &limit])
            .map(drop)
            .with_context(|| format!("log of agent {}:\n{}", self.config.name, self.log_tail(30)))
    }

    /// The state of a stage in [`Agent::status`], for example of `tail`.
    ///
    /// # Errors
    /// The agent does not answer, or has no such stage.
    pub fn state_of(&self, stage: &str) -> Result<String> {
        let status = self.status()?;
        let stages = status["stages"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found = stages.iter().find(|found| found["stage"] == stage);
        let state = found.and_then(|found| found["state"].as_str());
        Ok(state.with_context(|| format!("no stage {stage} in status {status}"))?.to_owned())
    }

    /// Waits until a stage is in this state.
    ///
    /// # Errors
    /// It is not in good time; the error shows the end of the log.
    pub fn wait_for_state(&self, stage: &str, state: &str) -> Result<()> {
        let what = format!("{stage} of {} is {state}", self.config.name);
        wait_until(&what, PATIENCE, || Ok(self.state_of(stage).is_ok_and(|found| found == state)))
            .with_context(|| self.log_tail(20))
    }

    /// Scrapes its `/metrics`.
    ///
    /// # Errors
    /// As [`Metrics::scrape`].
    pub fn metrics(&self) -> Result<Metrics> {
        Metrics::scrape(self.config.metrics_port)
    }

    /// `walferry promote`; gives the stock server that runs on the store from then on.
    ///
    /// # Errors
    /// It fails; or no server runs afterwards.
    pub fn promote(&self, name: &str, arguments: &[&str]) -> Result<Cluster> {
        let store = self.config.store.as_ref().context("an agent without store cannot promote")?;
        let sockets = self.scratch.directory("sockets")?;
        let options = format!("-k {} -c listen_addresses=127.0.0.1", sockets.display());
        let port = free_port()?.to_string();
        let server_log = store.data_directory.join("walferry-promote.log");
        let mut command = self.command("promote");
        command.args(["--port", &port, "--options", &options]).args(arguments);
        output_of(&mut command).with_context(|| {
            let (agent, server) = (self.log_tail(30), tail_of(&server_log, 30));
            format!("log of agent {}:\n{agent}\nlog of server:\n{server}", self.config.name)
        })?;
        Cluster::adopt(&self.scratch, name, &store.data_directory, &server_log)
    }

    /// The directory of its archive, as configured; below it is one per system identifier.
    #[must_use]
    pub fn archive_directory(&self) -> &Path {
        &self.archive
    }

    /// Its configuration file.
    #[must_use]
    pub fn config_file(&self) -> &Path {
        &self.config_file
    }

    /// The file that holds what it wrote.
    #[must_use]
    pub fn log_path(&self) -> PathBuf {
        self.scratch.path().join(format!("{}-agent.log", self.config.name))
    }

    /// The last lines it wrote.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail_of(&self.log_path(), lines)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of agent {}:\n{}", self.config.name, self.log_tail(30));
        }
        if let Some(child) = &mut self.child
            && (send_signal(child.id(), Signal::TERM).is_err()
                || wait_for_exit(child, Duration::from_secs(5)).is_err())
        {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A copy of `walferry` in the scratch folder: the account may not be able to reach the build's.
///
/// # Errors
/// It cannot be built or copied.
pub fn binary_in(scratch: &Scratch) -> Result<PathBuf> {
    let copy = scratch.path().join("walferry");
    if !copy.exists() {
        // By another process: what this one has open for writing, any child that is forked meanwhile has, too,
        // and a program that somebody may write cannot be started.
        output_of(Command::new("cp").arg(built_binary()?).arg(&copy))?;
    }
    Ok(copy)
}

/// `WALFERRY_BIN` if it is set, else the binary beside this very program, of the same profile. Cargo
/// is asked to bring that up to date first, once per process: a test of an old binary says nothing,
/// and Cargo by itself builds the binary only for tests in its own crate.
fn built_binary() -> Result<&'static Path> {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    if let Some(binary) = BINARY.get() {
        return Ok(binary);
    }
    if let Some(binary) = std::env::var_os("WALFERRY_BIN") {
        return Ok(BINARY.get_or_init(|| binary.into()));
    }
    let program = std::env::current_exe().context("which program is this")?;
    let mut profile_directory = program.parent().context("a program lies in a directory")?;
    if profile_directory.ends_with("deps") {
        profile_directory = profile_directory.parent().context("deps lies in a directory")?;
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--package", "walferry", "--bin", "walferry", "--manifest-path"]);
    cargo.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml"));
    if profile_directory.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.arg("--target-dir").arg(profile_directory.parent().context("no target directory")?);
    output_of(&mut cargo)?;
    Ok(BINARY.get_or_init(|| profile_directory.join("walferry")))
}
