//! The operating system user that servers and agents run as.

use std::ffi::OsStr;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::command::output_of;

/// User `postgres` when the tests run as root, because servers refuse root; otherwise whoever runs
/// the tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// User and group id to change to; nothing when no change is needed.
    change_to: Option<(u32, u32)>,
}

impl Account {
    /// The account to use in this process.
    ///
    /// # Errors
    /// We are root and there is no user `postgres`.
    pub fn of_server() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Ok(Self { change_to: None });
        }
        let id = |flag: &str| -> Result<u32> {
            let text = output_of(Command::new("id").args([flag, "postgres"]))
                .context("servers refuse root, and there is no user `postgres` to run them")?;
            text.trim().parse().with_context(|| format!("`id {flag}` printed {text:?}"))
        };
        Ok(Self { change_to: Some((id("-u")?, id("-g")?)) })
    }

    /// A command that runs as this account, in `/` (the account may not be able to read the tests'
    /// own directory), without any `PG*` variable of ours, and with messages in English.
    #[must_use]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.current_dir("/").env("LC_ALL", "C").env("TZ", "UTC");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PG") {
                command.env_remove(name);
            }
        }
        // The change of user is made between fork and exec by the standard library, so the child's
        // id is the server's own: no `runuser` stands between a signal and its receiver.
        if let Some((user, group)) = self.change_to {
            command.gid(group).uid(user);
        }
        command
    }

    /// Makes the account the owner of a file or directory.
    ///
    /// # Errors
    /// The operating system's.
    pub fn own(&self, path: &Path) -> Result<()> {
        if let Some((user, group)) = self.change_to {
            chown(path, Some(user), Some(group))
                .with_context(|| format!("cannot give {} to `postgres`", path.display()))?;
        }
        Ok(())
    }
}
