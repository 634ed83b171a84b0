//! A `pgbench` that runs beside the test.

use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::Signal;

use crate::endpoint::Endpoint;
use crate::process::{send_signal, wait_for_exit};

/// A running `pgbench`; stopped on drop.
#[derive(Debug)]
pub struct Load {
    child: Child,
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
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start pgbench")?;
        Ok(Self { child })
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

    /// Ends it. Transactions that its connections had open are rolled back by the server a moment
    /// later.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if self.is_running()? {
            send_signal(self.child.id(), Signal::TERM)?;
            wait_for_exit(&mut self.child, Duration::from_secs(10))?;
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
