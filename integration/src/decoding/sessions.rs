//! Several connections to one server that do what a [`Script`] says, one step after the other.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls};

use super::script::{Action, Script, Step};
use crate::postgres::Cluster;
use crate::process::PATIENCE;

/// How each session begins. Plans are of one kind, by an index, so that rows are changed in the
/// same order on every server. A session that is blocked waits until its script goes on: a limit
/// would end it on a slow disk, and a script that hangs is ended by whoever runs the tests.
const SETTINGS: &str = "set timezone = 'UTC'; set synchronous_commit = off; \
    set lock_timeout = 0; set statement_timeout = '600s'; set client_min_messages = error; \
    set enable_seqscan = off; set enable_bitmapscan = off; set max_parallel_workers_per_gather = 0";

/// The connections.
#[derive(Debug)]
pub struct Sessions {
    runtime: Runtime,
    sessions: Vec<Session>,
    observer: Arc<Client>,
    copy_file: String,
}

#[derive(Debug)]
struct Session {
    client: Arc<Client>,
    pid: i32,
    blocked: Option<JoinHandle<Result<(), String>>>,
}

impl Sessions {
    /// Connects as many as the script needs. `copy_file` is where the server may write what it
    /// copies, and its account must be able to.
    ///
    /// # Errors
    /// The server does not answer.
    pub fn connect(server: &Cluster, script: &Script, copy_file: &Path) -> Result<Self> {
        let runtime = runtime()?;
        let conninfo = server.endpoint().conninfo();
        let count = script.steps.iter().map(|step| step.session + 1).max().unwrap_or(0);
        let observer = Arc::new(runtime.block_on(connect(&conninfo))?.0);
        let sessions = (0..count).map(|_| {
            let (client, pid) = runtime.block_on(connect(&conninfo))?;
            Ok(Session { client: Arc::new(client), pid, blocked: None })
        });
        let sessions = sessions.collect::<Result<_>>()?;
        let copy_file = copy_file.to_str().context("a path in UTF-8")?.to_owned();
        Ok(Self { runtime, sessions, observer, copy_file })
    }

    /// Runs the script to its end, and has all that it did flushed.
    ///
    /// # Errors
    /// A step ends otherwise than it should; the error shows it and its number.
    pub fn run(&mut self, script: &Script) -> Result<()> {
        for (number, step) in script.steps.iter().enumerate() {
            self.step(step).with_context(|| {
                format!("step {number}, session {}, {:?}: {}", step.session, step.action, step.sql)
            })?;
        }
        // Nothing waited for its flush; this does, for all.
        self.runtime.block_on(execute(&self.observer, "checkpoint")).map_err(anyhow::Error::msg)
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        let sql = step.sql.replace("{copy_file}", &self.copy_file);
        let session = &mut self.sessions[step.session];
        ensure!(
            session.blocked.is_some() == (step.action == Action::Finish),
            "the session is blocked, or is not"
        );
        let client = Arc::clone(&session.client);
        match step.action {
            Action::Run => {
                self.runtime.block_on(execute(&client, &sql)).map_err(anyhow::Error::msg)
            }
            Action::Fail => {
                let outcome = self.runtime.block_on(execute(&client, &sql));
                ensure!(outcome.is_err(), "it did not fail");
                Ok(())
            }
            Action::Block => {
                let pid = session.pid;
                let task = self.runtime.spawn(async move { execute(&client, &sql).await });
                session.blocked = Some(task);
                self.wait_blocked(pid)
            }
            Action::Finish => {
                let task = session.blocked.take().expect("just looked at");
                self.runtime.block_on(task)?.map_err(anyhow::Error::msg)
            }
        }
    }

    fn wait_blocked(&self, pid: i32) -> Result<()> {
        let query = "select 1 from pg_stat_activity \
                     where pid = $1 and state = 'active' and wait_event_type = 'Lock'";
        let deadline = Instant::now() + PATIENCE;
        loop {
            let rows = self.runtime.block_on(self.observer.query(query, &[&pid]))?;
            if !rows.is_empty() {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("it is not blocked");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// One thread of it drives the connections while another waits for a statement.
pub(super) fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start a runtime")
}

async fn connect(conninfo: &str) -> Result<(Client, i32)> {
    let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute(SETTINGS).await?;
    let pid = client.query_one("select pg_backend_pid()", &[]).await?.get(0);
    Ok((client, pid))
}

/// The error is the server's message.
async fn execute(client: &Client, sql: &str) -> Result<(), String> {
    client.batch_execute(sql).await.map_err(|error| match error.as_db_error() {
        Some(error) => format!("{} {}: {}", error.severity(), error.code().code(), error.message()),
        None => error.to_string(),
    })
}
