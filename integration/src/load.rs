//! A `pgbench` that runs beside the test.

use std::process::{Child, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::endpoint::Endpoint;
use crate::process::{PATIENCE, send_signal, wait_for_exit, wait_until};

/// So many were started by this process: each has a name of its own.
static STARTED: AtomicU64 = AtomicU64::new(0);

/// A running `pgbench`; stopped on drop.
#[derive(Debug)]
pub struct Load {
    child: Child,
    endpoint: Endpoint,
    /// The `application_name` of its sessions.
    name: String,
}

impl Load {
    /// Starts `pgbench` in database `postgres` with these arguments, for example
    /// `["-c", "4", "-T", "30"]`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(endpoint: &Endpoint, arguments: &[&str]) -> Result<Self> {
        let mut command = endpoint.command("pgbench");
        command.arg("-n").args(arguments).arg("postgres");
        let name = format!("load-{}", STARTED.fetch_add(1, Ordering::Relaxed));
        let child = command
            .env("PGAPPNAME", &name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start pgbench")?;
        Ok(Self { child, endpoint: endpoint.clone(), name })
    }

    /// Whether it still runs.
    ///
    /// # Errors
    /// The operating system's.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait().context("cannot look at pgbench")?.is_none())
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// It still runs after `limit`.
    pub fn wait(mut self, limit: Duration) -> Result<ExitStatus> {
        wait_for_exit(&mut self.child, limit)
    }

    /// Ends it, and waits until the server has ended its sessions: transactions that were open are
    /// rolled back then, and none commits any more.
    ///
    /// # Errors
    /// It does not end, or the server does not answer.
    pub fn stop(mut self) -> Result<()> {
        self.end()?;
        // A session that waits for its commit's flush sees only later that nobody listens.
        let sessions = format!(
            "select count(*) from pg_stat_activity where application_name = '{}'",
            self.name
        );
        wait_until("the server has ended the load's sessions", PATIENCE, || {
            Ok(self.endpoint.sql(&sessions)? == "0")
        })
    }

    fn end(&mut self) -> Result<()> {
        if self.is_running()? {
            send_signal(self.child.id(), Signal::TERM)?;
            wait_for_exit(&mut self.child, PATIENCE)?;
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if self.end().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
