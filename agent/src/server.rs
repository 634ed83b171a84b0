//! The only file that talks SQL to PostgreSQL; beside it, [`replication`] asks for base backups.

pub(crate) mod replication;

use std::fmt;

use indicatif::HumanBytes;
use tokio_postgres::{Client, NoTls, Row};
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

/// Everything that `walferry check` asks a server.
pub(crate) struct Survey {
    /// `server_version_num`.
    pub(crate) version_num: u32,
    pub(crate) system_identifier: u64,
    /// `pg_is_in_recovery()`.
    pub(crate) in_recovery: bool,
    pub(crate) fsync: bool,
    pub(crate) full_page_writes: bool,
    pub(crate) hold: Hold,
}

/// What has the server keep WAL for an agent that is down or behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hold {
    /// `max_slot_wal_keep_size`, in bytes; nothing if it is not bounded. Without a bound no slot is
    /// used: a dead agent must never fill the server's disk.
    pub(crate) slot_bytes: Option<u64>,
    /// `wal_keep_size`, in bytes.
    pub(crate) keep_bytes: u64,
}

impl Hold {
    const QUERY: &str = "SELECT max(setting::bigint) FILTER (WHERE name = 'wal_keep_size'), \
        max(setting::bigint) FILTER (WHERE name = 'max_slot_wal_keep_size') FROM pg_settings";

    /// From [`Self::QUERY`]'s row; both settings are in MB.
    fn from_row(row: &Row) -> Self {
        let bytes = |column: usize| {
            let megabytes = u64::try_from(row.get::<_, Option<i64>>(column)?).ok()?;
            Some(megabytes.saturating_mul(1 << 20))
        };
        Self { keep_bytes: bytes(0).unwrap_or(0), slot_bytes: bytes(1) }
    }

    /// Why that is not as it should be, and what to do.
    pub(crate) fn objection(self) -> Option<(String, &'static str)> {
        let remedy = "ALTER SYSTEM SET max_slot_wal_keep_size = '16GB'; SELECT pg_reload_conf();";
        match self {
            Self { slot_bytes: Some(1..), .. } => None,
            Self { slot_bytes, keep_bytes } => {
                let slot = if slot_bytes.is_none() { "not bounded" } else { "0" };
                let kept = if keep_bytes == 0 {
                    "the server keeps no WAL for an agent that is down or behind".to_owned()
                } else {
                    format!("only wal_keep_size ({}) holds WAL", HumanBytes(keep_bytes))
                };
                let words = format!("max_slot_wal_keep_size is {slot}, so no slot is used: {kept}");
                Some((words, remedy))
            }
        }
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = self.slot_bytes.unwrap_or(0).max(self.keep_bytes);
        write!(
            f,
            "while the agent is down the server keeps up to {} of WAL for it",
            HumanBytes(held)
        )
    }
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

    /// Everything that can be asked at once, without a judgement.
    pub(crate) async fn survey(&self) -> Result<Survey, Trouble> {
        let ask = async |query: &str| {
            let row = self.client.query_one(query, &[]).await;
            row.map_err(|error| Trouble::io("asking the server", describe(&error)))
        };
        let row = ask("SELECT current_setting('server_version_num'), current_setting('fsync'), \
             current_setting('full_page_writes'), pg_is_in_recovery(), \
             (SELECT system_identifier FROM pg_control_system())")
        .await?;
        Ok(Survey {
            version_num: row.get::<_, &str>(0).parse().unwrap_or(0),
            fsync: row.get::<_, &str>(1) == "on",
            full_page_writes: row.get::<_, &str>(2) == "on",
            in_recovery: row.get(3),
            system_identifier: row.get::<_, i64>(4).cast_unsigned(),
            hold: Hold::from_row(&ask(Hold::QUERY).await?),
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
