//! The only file that talks SQL to PostgreSQL; beside it, [`replication`] asks for base backups.

pub(crate) mod replication;

use tokio_postgres::{Client, NoTls};
use walfmt::Lsn;

use crate::trouble::{Kind, Trouble};

/// A connection to the server beside us.
pub(crate) struct Server {
    client: Client,
}

/// What the agent must know of the server before it ships its WAL.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// `server_version_num`.
    pub(crate) version_num: u32,
    /// `pg_is_in_recovery()`.
    pub(crate) in_recovery: bool,
    /// `wal_keep_size` is not 0: the server keeps some WAL for an agent that is behind.
    pub(crate) keeps_wal: bool,
}

impl Server {
    /// Connects; the connection's own work goes on in a task of its own.
    pub(crate) async fn connect(conninfo: &str) -> Result<Self, Trouble> {
        let (client, connection) = tokio_postgres::connect(conninfo, NoTls)
            .await
            .map_err(|error| Trouble::io("connecting to the server", describe(&error)))?;
        tokio::spawn(async move {
            // The next query reports a broken connection; here there is nothing to add.
            let _ = connection.await;
        });
        Ok(Self { client })
    }

    /// Reads the settings, and refuses a server whose WAL means nothing.
    pub(crate) async fn settings(&self) -> Result<Settings, Trouble> {
        let row = self
            .client
            .query_one(
                "SELECT current_setting('fsync'), current_setting('full_page_writes'), \
                 current_setting('wal_keep_size'), current_setting('server_version_num'), \
                 pg_is_in_recovery()",
                &[],
            )
            .await
            .map_err(|error| Trouble::io("reading the server's settings", describe(&error)))?;
        let setting = |column: usize| row.get::<_, &str>(column);
        for (column, name, why) in [
            (0, "fsync", "a crash of its machine may leave its own WAL behind what was shipped"),
            (1, "full_page_writes", "pages torn by a crash could not be repaired by replay"),
        ] {
            if setting(column) != "on" {
                let words = format!("the server runs with {name} = off: {why}");
                let hint = format!("set {name} = on, reload the server, start the agent again");
                return Err(Trouble::new(Kind::Misuse, words).with_hint(hint));
            }
        }
        Ok(Settings {
            version_num: setting(3).parse().unwrap_or(0),
            in_recovery: row.get(4),
            keeps_wal: setting(2) != "0",
        })
    }

    /// How far the server says it has flushed its WAL.
    pub(crate) async fn flush_position(&self) -> Result<Lsn, Trouble> {
        let row = self
            .client
            .query_one("SELECT pg_current_wal_flush_lsn()::text", &[])
            .await
            .map_err(|error| Trouble::io("asking the server", describe(&error)))?;
        let text: &str = row.get(0);
        text.parse().map_err(|error| Trouble::io("the server's flush position", error))
    }
}

/// `tokio_postgres` keeps what the server said in the error's source.
fn describe(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(said) => said.message().to_owned(),
        None => match std::error::Error::source(error) {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        },
    }
}
