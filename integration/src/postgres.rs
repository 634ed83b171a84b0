//! A real PostgreSQL server with its own data directory.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::binaries::Binaries;
use crate::command::output_of;
use crate::endpoint::Endpoint;
use crate::load::Load;
use crate::ports::free_port;
use crate::process::{
    PATIENCE, POLL_INTERVAL, children_of, is_alive, processes_of, send_signal, tail_of,
    wait_for_exit, wait_until,
};
use crate::scratch::Scratch;

/// What `initdb` is told, and the settings that go into `postgresql.conf`.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Size of a WAL segment in megabytes (`initdb --wal-segsize`).
    pub wal_segment_megabytes: u32,
    /// Checksums on data pages.
    pub data_checksums: bool,
    /// `fsync`. A leader's must be on, the agent refuses another; a server that is only there to
    /// write WAL quickly may do without.
    pub fsync: bool,
    /// Keep each finished segment in [`Cluster::kept_segments`] by `archive_command`.
    pub keep_segments: bool,
    /// More lines for `postgresql.conf`, such as `checkpoint_timeout = 30s`.
    pub settings: Vec<String>,
    /// Which PostgreSQL; [`Binaries::find`] if none is given.
    pub binaries: Option<Binaries>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self {
            wal_segment_megabytes: 16,
            data_checksums: true,
            fsync: true,
            keep_segments: false,
            // An agent that is down or behind finds its WAL again.
            settings: vec!["wal_keep_size = 2GB".to_owned()],
            binaries: None,
        }
    }
}

/// How a server is told to stop (`pg_ctl stop -m`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopMode {
    /// Ends sessions, writes a checkpoint.
    Fast,
    /// Ends at once; the next start goes through crash recovery.
    Immediate,
}

/// The WAL that a base backup brings with it (`pg_basebackup -X`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupWal {
    /// All it needs.
    Stream,
    /// None.
    None,
}

/// A server and its data directory; stopped on drop.
///
/// Port, socket directory and `archive_command` are given on the command line, so that a base
/// backup of this cluster carries none of them.
#[derive(Debug)]
pub struct Cluster {
    /// More arguments for `postgres`, such as `-c` and `config_file=...`; they count from the next start.
    pub arguments: Vec<String>,
    /// Environment variables that it is started with.
    pub environment: Vec<(String, PathBuf)>,
    scratch: Scratch,
    name: String,
    data_directory: PathBuf,
    log: PathBuf,
    kept_segments: Option<PathBuf>,
    endpoint: Endpoint,
    server: Server,
}

#[derive(Debug)]
enum Server {
    Stopped,
    /// Started by us.
    Child(Child),
    /// Started by somebody else, for example `walferry promote`; the postmaster's process id.
    Adopted(u32),
}

impl Cluster {
    /// Creates a cluster in `scratch` with `initdb` and starts it.
    ///
    /// # Errors
    /// As [`Cluster::init`] and [`Cluster::start`].
    pub fn start_new(scratch: &Scratch, name: &str, options: &ClusterOptions) -> Result<Self> {
        let mut cluster = Self::init(scratch, name, options)?;
        cluster.start()?;
        Ok(cluster)
    }

    /// Creates a cluster in `scratch` with `initdb`, in the directory `name`.
    ///
    /// # Errors
    /// There is no PostgreSQL, or `initdb` fails.
    pub fn init(scratch: &Scratch, name: &str, options: &ClusterOptions) -> Result<Self> {
        let binaries = options.binaries.clone().map_or_else(Binaries::find, Ok)?;
        let data_directory = scratch.path().join(name);
        let mut initdb = scratch.account().command(binaries.program("initdb"));
        initdb.arg("-D").arg(&data_directory).args(["-U", "postgres", "-A", "trust"]);
        initdb.args(["-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]);
        initdb.arg(format!("--wal-segsize={}", options.wal_segment_megabytes));
        if options.data_checksums {
            initdb.arg("--data-checksums");
        }
        output_of(&mut initdb)?;

        let mut cluster = Self::at(scratch, name, &data_directory, binaries)?;
        if options.keep_segments {
            cluster.kept_segments = Some(scratch.directory(&format!("{name}-kept-segments"))?);
        }
        cluster.configure(&[
            "max_prepared_transactions = 20",
            "shared_buffers = 64MB",
            // Where tables were never analyzed, it compiles for longer than queries take.
            "jit = off",
            if options.fsync { "fsync = on" } else { "fsync = off" },
        ])?;
        cluster.configure(&options.settings)?;
        Ok(cluster)
    }

    /// A cluster whose data directory is there already, for example a base backup; not started.
    ///
    /// # Errors
    /// No free port; or the scratch folder cannot be written.
    pub fn at(
        scratch: &Scratch,
        name: &str,
        data_directory: &Path,
        binaries: Binaries,
    ) -> Result<Self> {
        let endpoint = Endpoint {
            socket_directory: scratch.directory("sockets")?,
            port: free_port()?,
            binaries,
            account: scratch.account(),
        };
        Ok(Self {
            arguments: Vec::new(),
            environment: Vec::new(),
            scratch: scratch.clone(),
            name: name.to_owned(),
            data_directory: data_directory.to_owned(),
            log: scratch.path().join(format!("{name}.log")),
            kept_segments: None,
            endpoint,
            server: Server::Stopped,
        })
    }

    /// Takes over a running server that somebody else started on `data_directory`, with its log in
    /// the file `log`; where it listens is read from its `postmaster.pid`.
    ///
    /// ```text
    /// line 1 process id   2 data directory   3 start time   4 port   5 socket directory   ...
    /// ```
    ///
    /// # Errors
    /// No server runs there.
    pub fn adopt(scratch: &Scratch, name: &str, data_directory: &Path, log: &Path) -> Result<Self> {
        let mut cluster = Self::at(scratch, name, data_directory, Binaries::find()?)?;
        let pid_file = data_directory.join("postmaster.pid");
        let text = fs::read_to_string(&pid_file)
            .with_context(|| format!("no server runs: cannot read {}", pid_file.display()))?;
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        let line = |number: usize, what: &str| {
            lines.get(number - 1).copied().with_context(|| format!("postmaster.pid has no {what}"))
        };
        let pid: u32 = line(1, "process id")?.parse().context("process id in postmaster.pid")?;
        ensure!(is_alive(pid), "postmaster.pid names process {pid}, which is gone");
        cluster.endpoint.port = line(4, "port")?.parse().context("port in postmaster.pid")?;
        cluster.endpoint.socket_directory = line(5, "socket directory")?.into();
        cluster.server = Server::Adopted(pid);
        cluster.log = log.to_owned();
        Ok(cluster)
    }

    /// Appends lines to `postgresql.conf`; they count from the next start or reload.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn configure(&self, lines: &[impl AsRef<str>]) -> Result<()> {
        let path = self.data_directory.join("postgresql.conf");
        let mut file = OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        for line in lines {
            writeln!(file, "{}", line.as_ref()).context("cannot write postgresql.conf")?;
        }
        Ok(())
    }

    /// Starts the server and waits until it answers, through crash recovery if there is any.
    ///
    /// # Errors
    /// It ends instead, or does not answer within [`PATIENCE`]; the error shows its log's end.
    pub fn start(&mut self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Starts the server without waiting until it answers.
    ///
    /// # Errors
    /// It runs already or cannot be started.
    pub fn spawn(&mut self) -> Result<()> {
        ensure!(!self.is_running(), "server {} runs already", self.name);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .context("cannot open the server's log")?;
        let binaries = &self.endpoint.binaries;
        let mut command = self.scratch.account().command(binaries.program("postgres"));
        command.arg("-D").arg(&self.data_directory);
        command.arg("-p").arg(self.endpoint.port.to_string());
        command.arg("-k").arg(&self.endpoint.socket_directory);
        command.args(["-c", "listen_addresses=127.0.0.1", "-c", "logging_collector=off"]);
        if let Some(directory) = &self.kept_segments {
            // Written under another name first: a file with a segment's name is whole. One that is
            // there already is fine if it is the same: a server that was killed asks again, and as the
            // command that it began may still run, each shell ($$) writes a file of its own.
            let kept = directory.display();
            command.args(["-c", "archive_mode=on", "-c"]).arg(format!(
                "archive_command=if test -f {kept}/%f; then cmp %p {kept}/%f; \
                 else cp %p {kept}/%f.$$.part && mv {kept}/%f.$$.part {kept}/%f; fi"
            ));
        }
        command.args(&self.arguments);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let stdout = log.try_clone().context("cannot share the server's log")?;
        let child = command
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(log)
            .spawn()
            .context("cannot start postgres")?;
        self.server = Server::Child(child);
        Ok(())
    }

    /// Waits until the server answers.
    ///
    /// # Errors
    /// It ends instead, or does not answer within [`PATIENCE`]; the error shows its log's end.
    pub fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.endpoint.answers() {
            if !self.is_running() {
                bail!("server {} ended instead of starting\n{}", self.name, self.log_tail(30));
            }
            if Instant::now() > deadline {
                bail!("server {} does not answer\n{}", self.name, self.log_tail(30));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// Waits until the server's recovery has ended. With archive recovery it answers before.
    ///
    /// # Errors
    /// It does not end, or the server does.
    pub fn wait_recovered(&self) -> Result<()> {
        wait_until("recovery ends", PATIENCE, || Ok(self.sql("select pg_is_in_recovery()")? == "f"))
            .with_context(|| format!("log of server {}:\n{}", self.name, self.log_tail(30)))
    }

    /// Whether a server process is there.
    pub fn is_running(&mut self) -> bool {
        match &mut self.server {
            Server::Stopped => false,
            Server::Child(child) => matches!(child.try_wait(), Ok(None)),
            Server::Adopted(pid) => is_alive(*pid),
        }
    }

    /// Stops the server; one that does not run is no error.
    ///
    /// # Errors
    /// It does not end within [`PATIENCE`].
    pub fn stop(&mut self, mode: StopMode) -> Result<()> {
        let signal = match mode {
            StopMode::Fast => Signal::INT,
            StopMode::Immediate => Signal::QUIT,
        };
        if let Some(pid) = self.pid() {
            send_signal(pid, signal)?;
        }
        self.wait_stopped()
    }

    /// Kills the postmaster and every process of its with SIGKILL, all at once as far as that goes,
    /// and waits until all are gone.
    ///
    /// # Errors
    /// They are still there after [`PATIENCE`].
    pub fn kill(&mut self) -> Result<()> {
        let Some(pid) = self.pid() else { return Ok(()) };
        let children = children_of(pid);
        send_signal(pid, Signal::KILL)?;
        for child in &children {
            send_signal(*child, Signal::KILL)?;
        }
        self.wait_stopped()?;
        // One that was forked between that look and the postmaster's end is no child of anybody's any
        // more. It keeps the server's shared memory, without which another does not start.
        wait_until("the killed server's processes are gone", PATIENCE, || {
            let left = processes_of("postgres", &self.data_directory);
            left.iter().try_for_each(|process| send_signal(*process, Signal::KILL))?;
            Ok(left.is_empty() && !children.iter().any(|child| is_alive(*child)))
        })
    }

    /// Stops without warning and starts again, through crash recovery.
    ///
    /// # Errors
    /// As [`Cluster::kill`] and [`Cluster::start`].
    pub fn crash_and_recover(&mut self) -> Result<()> {
        self.kill()?;
        self.start()
    }

    /// Where the server listens.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Runs SQL in database `postgres`, see [`Endpoint::sql_in`].
    ///
    /// # Errors
    /// As [`Endpoint::sql_in`].
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.endpoint.sql(sql)
    }

    /// Creates `pgbench`'s tables in database `postgres`.
    ///
    /// # Errors
    /// `pgbench` fails.
    pub fn pgbench_init(&self, scale: u32, arguments: &[&str]) -> Result<()> {
        let mut command = self.endpoint.command("pgbench");
        command.args(["-i", "-q", "-s"]).arg(scale.to_string()).args(arguments).arg("postgres");
        output_of(&mut command).map(drop)
    }

    /// Runs `pgbench` beside the test, see [`Load::start`].
    ///
    /// # Errors
    /// It cannot be started.
    pub fn pgbench(&self, arguments: &[&str]) -> Result<Load> {
        Load::start(&self.endpoint, arguments)
    }

    /// Runs `pgbench` to its end.
    ///
    /// # Errors
    /// It fails.
    pub fn pgbench_run(&self, arguments: &[&str]) -> Result<String> {
        output_of(self.endpoint.command("pgbench").arg("-n").args(arguments).arg("postgres"))
    }

    /// Takes a base backup into `directory`, which must be empty or not exist.
    ///
    /// # Errors
    /// `pg_basebackup` fails.
    pub fn base_backup(&self, directory: &Path, wal: BackupWal) -> Result<()> {
        let mut command = self.endpoint.command("pg_basebackup");
        command.arg("-D").arg(directory).args(["-c", "fast", "--no-sync", "-X"]);
        command.arg(match wal {
            BackupWal::Stream => "stream",
            BackupWal::None => "none",
        });
        output_of(&mut command).map(drop)
    }

    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its data directory.
    #[must_use]
    pub fn data_directory(&self) -> &Path {
        &self.data_directory
    }

    /// Its `pg_wal`.
    #[must_use]
    pub fn wal_directory(&self) -> PathBuf {
        self.data_directory.join("pg_wal")
    }

    /// Where `archive_command` keeps finished segments, if it was asked to.
    #[must_use]
    pub fn kept_segments(&self) -> Option<&Path> {
        self.kept_segments.as_deref()
    }

    /// The postmaster's process id, if the server runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        match &self.server {
            Server::Stopped => None,
            Server::Child(child) => Some(child.id()),
            Server::Adopted(pid) => Some(*pid),
        }
    }

    /// Runs `pg_controldata` and gives its lines by name.
    ///
    /// # Errors
    /// It fails.
    pub fn control_data(&self) -> Result<BTreeMap<String, String>> {
        let program = self.endpoint.binaries.program("pg_controldata");
        let text = output_of(self.scratch.account().command(program).arg(&self.data_directory))?;
        let pairs = text.lines().filter_map(|line| line.split_once(':'));
        Ok(pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect())
    }

    /// Runs `pg_waldump` over the segments in `directory` and gives its output. What it prints can
    /// be long; to read it line by line, start the program from [`Endpoint::binaries`].
    ///
    /// # Errors
    /// It fails, which it also does when the WAL ends before the end it was given.
    pub fn waldump(&self, directory: &Path, arguments: &[&str]) -> Result<String> {
        let program = self.endpoint.binaries.program("pg_waldump");
        let mut command = self.scratch.account().command(program);
        output_of(command.arg("-p").arg(directory).args(arguments))
    }

    /// Has the next object that is created take the number `oid`; the server must be stopped, and
    /// its WAL begins anew (`pg_resetwal`).
    ///
    /// # Errors
    /// `pg_resetwal` fails.
    pub fn set_next_oid(&mut self, oid: u32) -> Result<()> {
        ensure!(!self.is_running(), "server {} runs", self.name);
        let program = self.endpoint.binaries.program("pg_resetwal");
        let mut command = self.scratch.account().command(program);
        output_of(command.args(["-o", &oid.to_string(), "-D"]).arg(&self.data_directory)).map(drop)
    }

    /// The file that holds the server's log.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log_tail(&self, lines: usize) -> String {
        tail_of(&self.log, lines)
    }

    /// Forgets the log so far, so that [`Cluster::log_tail`] shows what comes from here.
    ///
    /// # Errors
    /// The operating system's.
    pub fn truncate_log(&self) -> Result<()> {
        File::options()
            .write(true)
            .open(&self.log)
            .and_then(|log| log.set_len(0))
            .context("cannot empty the server's log")
    }

    fn wait_stopped(&mut self) -> Result<()> {
        match &mut self.server {
            Server::Stopped => {}
            Server::Child(child) => {
                wait_for_exit(child, PATIENCE)?;
            }
            Server::Adopted(pid) => {
                let pid = *pid;
                wait_until("the server ends", PATIENCE, || Ok(!is_alive(pid)))?;
            }
        }
        self.server = Server::Stopped;
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("log of server {}:\n{}", self.name, self.log_tail(30));
        }
        // Not `PATIENCE`: whatever happens, a test ends.
        let stopped = self.pid().is_none_or(|pid| {
            send_signal(pid, Signal::QUIT).is_ok()
                && wait_until("", Duration::from_secs(10), || Ok(!self.is_running())).is_ok()
        });
        if !stopped {
            let _ = self.kill();
        }
    }
}
