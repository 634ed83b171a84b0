//! A folder for one test.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::account::Account;

/// A folder that the server's account owns and that is removed when the last clone is dropped.
///
/// Servers and agents keep a clone, so the folder is there for as long as they run, in whatever
/// order a test drops its variables. `WALFERRY_KEEP_SCRATCH=1` keeps it, to look at.
#[derive(Clone, Debug)]
pub struct Scratch {
    folder: Arc<TempDir>,
    account: Account,
}

impl Scratch {
    /// Creates the folder, below the system's directory for temporary files.
    ///
    /// # Errors
    /// The operating system's; or we are root and there is no user `postgres`.
    pub fn new() -> Result<Self> {
        let account = Account::of_server()?;
        // A short name: the path of a Unix socket in it may have at most 107 bytes.
        let mut folder = tempfile::Builder::new()
            .prefix("walferry-")
            .tempdir()
            .context("cannot create a scratch folder")?;
        account.own(folder.path())?;
        if std::env::var_os("WALFERRY_KEEP_SCRATCH").is_some() {
            folder.disable_cleanup(true);
            eprintln!("scratch folder stays: {}", folder.path().display());
        }
        Ok(Self { folder: Arc::new(folder), account })
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The account that owns it.
    #[must_use]
    pub fn account(&self) -> Account {
        self.account
    }

    /// Creates a directory in it, owned by the account.
    ///
    /// # Errors
    /// The operating system's.
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        self.account.own(&path)?;
        Ok(path)
    }

    /// Writes a file in it, owned by the account.
    ///
    /// # Errors
    /// The operating system's.
    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path().join(name);
        fs::write(&path, contents).with_context(|| format!("cannot write {}", path.display()))?;
        self.account.own(&path)?;
        Ok(path)
    }
}
