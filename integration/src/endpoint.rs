//! A server that answers, whoever runs it.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::account::Account;
use crate::binaries::Binaries;
use crate::command::output_of;

/// Where a server listens, and the programs to talk to it with.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The directory of its Unix socket.
    pub socket_directory: PathBuf,
    /// Its port, of the Unix socket and of 127.0.0.1.
    pub port: u16,
    /// Its major's programs.
    pub binaries: Binaries,
    /// Who runs those programs.
    pub account: Account,
}

impl Endpoint {
    /// Runs SQL in database `postgres`, see [`Endpoint::sql_in`].
    ///
    /// # Errors
    /// As [`Endpoint::sql_in`].
    pub fn sql(&self, sql: &str) -> Result<String> {
        self.sql_in("postgres", sql)
    }

    /// Runs SQL through `psql` and gives its unaligned output, without the last line feed: columns
    /// separated by `|`, rows by line feeds. Several statements are one transaction, as with
    /// `psql -c`, unless they say otherwise.
    ///
    /// # Errors
    /// The server does not answer, or a statement failed.
    pub fn sql_in(&self, database: &str, sql: &str) -> Result<String> {
        let mut command = self.command("psql");
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-c", sql]);
        Ok(output_of(&mut command)?.trim_end_matches('\n').to_owned())
    }

    /// Runs a file of SQL through `psql`, one transaction per statement. For statements that may
    /// not stand in a transaction with others.
    ///
    /// # Errors
    /// As [`Endpoint::sql_in`].
    pub fn sql_file(&self, database: &str, file: &std::path::Path) -> Result<String> {
        let mut command = self.command("psql");
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", database, "-f"]);
        output_of(command.arg(file))
    }

    /// One of PostgreSQL's client programs, told where this server is.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = self.account.command(self.binaries.program(program));
        command.arg("-h").arg(&self.socket_directory).arg("-p").arg(self.port.to_string());
        command.args(["-U", "postgres"]);
        command
    }

    /// A libpq connection string over TCP.
    #[must_use]
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres dbname=postgres", self.port)
    }

    /// Whether the server takes connections.
    #[must_use]
    pub fn answers(&self) -> bool {
        output_of(self.command("pg_isready").args(["-q", "-t", "2"])).is_ok()
    }
}
