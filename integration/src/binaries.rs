//! Where PostgreSQL's programs are.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// The directory of one PostgreSQL major's programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binaries(PathBuf);

impl Binaries {
    /// `WALFERRY_PG_BIN` if it is set, else where Debian puts PostgreSQL 15.
    ///
    /// # Errors
    /// There is no `postgres` in it.
    pub fn find() -> Result<Self> {
        let directory = std::env::var_os("WALFERRY_PG_BIN")
            .map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from);
        Self::at(directory)
    }

    /// The programs in `directory`.
    ///
    /// # Errors
    /// There is no `postgres` in it.
    pub fn at(directory: PathBuf) -> Result<Self> {
        ensure!(
            directory.join("postgres").is_file(),
            "no PostgreSQL in {}: install postgresql-15, or set WALFERRY_PG_BIN",
            directory.display()
        );
        Ok(Self(directory))
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.0
    }

    /// The path of one program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}
