//! The only file that talks SQL to PostgreSQL; beside it, [`replication`] asks for base backups.

pub(crate) mod replication;

use std::fmt;

use indicatif::HumanBytes;
use tokio_postgres::{Client, NoTls, Row};
use walferry_wire::{LOCALES_MAX, LocaleName};
use walfmt::Lsn;

use crate::configuration::Setting;
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
    pub(crate) system_identifier: u64,
}

/// A slot that holds WAL for this agent.
#[derive(Clone, Debug)]
pub(crate) struct Slot {
    /// From where on it holds WAL; nothing if the server has given it up.
    pub(crate) restart: Option<Lsn>,
    /// Physical, and not in use by somebody else.
    pub(crate) is_ours: bool,
}

/// What the server's configuration files set, as it runs with it.
#[derive(Debug, Default)]
pub(crate) struct Configured {
    pub(crate) settings: Vec<Setting>,
    /// Names of settings that have another value in a file, which waits for a restart.
    pub(crate) pending_restart: Vec<String>,
    /// Names of settings whose value in the file cannot be seen from this connection.
    pub(crate) unreadable: Vec<String>,
    pub(crate) hba_file: Option<String>,
    pub(crate) ident_file: Option<String>,
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
    /// The role may see all settings.
    pub(crate) sees_settings: bool,
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

    /// In words, where no slot is wanted.
    pub(crate) fn without_slot(self) -> String {
        match self.keep_bytes {
            0 => "the server keeps no WAL for an agent that is down or behind: no slot, and \
                  wal_keep_size is 0"
                .to_owned(),
            bytes => format!("no slot; wal_keep_size holds {} of WAL", HumanBytes(bytes)),
        }
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
        let mut config: tokio_postgres::Config = conninfo
            .parse()
            .map_err(|error| Trouble::io("connecting to the server", describe(&error)))?;
        if config.get_application_name().is_none() {
            config.application_name("walferry");
        }
        let (client, connection) = config
            .connect(NoTls)
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
                 current_setting('server_version_num'), \
                 pg_is_in_recovery(), (SELECT system_identifier FROM pg_control_system())",
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
            version_num: setting(2).parse().unwrap_or(0),
            in_recovery: row.get(3),
            system_identifier: row.get::<_, i64>(4).cast_unsigned(),
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
             (SELECT system_identifier FROM pg_control_system()), \
             pg_has_role('pg_read_all_settings', 'USAGE')")
        .await?;
        Ok(Survey {
            version_num: row.get::<_, &str>(0).parse().unwrap_or(0),
            fsync: row.get::<_, &str>(1) == "on",
            full_page_writes: row.get::<_, &str>(2) == "on",
            in_recovery: row.get(3),
            system_identifier: row.get::<_, i64>(4).cast_unsigned(),
            sees_settings: row.get(5),
            hold: Hold::from_row(&ask(Hold::QUERY).await?),
        })
    }

    pub(crate) async fn hold(&self) -> Result<Hold, Trouble> {
        let row = self.client.query_one(Hold::QUERY, &[]).await;
        Ok(Hold::from_row(&row.map_err(|error| slot_trouble(&error))?))
    }

    /// The slot with this name, if there is one.
    pub(crate) async fn slot(&self, name: &str) -> Result<Option<Slot>, Trouble> {
        let found = self
            .client
            .query_opt(
                "SELECT CASE WHEN wal_status <> 'lost' THEN restart_lsn::text END, \
                 slot_type = 'physical' AND NOT active FROM pg_replication_slots \
                 WHERE slot_name = $1",
                &[&name],
            )
            .await
            .map_err(|error| slot_trouble(&error))?;
        Ok(found.map(|row| Slot {
            restart: row.get::<_, Option<&str>>(0).and_then(|text| text.parse().ok()),
            is_ours: row.get(1),
        }))
    }

    /// Makes a slot that holds WAL from the last checkpoint's redo pointer on, at once.
    pub(crate) async fn create_slot(&self, name: &str) -> Result<(), Trouble> {
        let query = "SELECT pg_create_physical_replication_slot($1, true)";
        self.client.query_one(query, &[&name]).await.map_err(|error| slot_trouble(&error))?;
        Ok(())
    }

    /// Lets the server have WAL before `to` back. Not before the slot's own position.
    pub(crate) async fn move_slot(&self, name: &str, to: Lsn) -> Result<(), Trouble> {
        let query = "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)";
        let to = to.to_string();
        self.client.query_one(query, &[&name, &to]).await.map_err(|error| slot_trouble(&error))?;
        Ok(())
    }

    pub(crate) async fn drop_slot(&self, name: &str) -> Result<(), Trouble> {
        let query = "SELECT pg_drop_replication_slot($1)";
        self.client.query_one(query, &[&name]).await.map_err(|error| slot_trouble(&error))?;
        Ok(())
    }

    /// The locales that a machine must have for its databases to be opened. A server sets both for
    /// every connection, whatever the provider is (`CheckMyDatabase`,
    /// `src/backend/utils/init/postinit.c`).
    pub(crate) async fn locales(&self) -> Result<Vec<LocaleName>, Trouble> {
        let query = "SELECT DISTINCT locale::text FROM pg_database, \
                     LATERAL (VALUES (datcollate), (datctype)) AS names (locale) ORDER BY 1";
        let rows = self.client.query(query, &[]).await;
        let rows = rows.map_err(|error| Trouble::io("asking for locales", describe(&error)))?;
        let names = rows.iter().filter_map(|row| row.try_get::<_, &str>(0).ok());
        Ok(names.filter_map(|name| name.parse().ok()).take(LOCALES_MAX).collect())
    }

    /// What its configuration files set.
    pub(crate) async fn configuration(&self) -> Result<Configured, Trouble> {
        let failed = |error: tokio_postgres::Error| {
            Trouble::io("asking for the server's configuration", describe(&error))
        };
        // The raw value of a number is in the setting's own unit; with it is what SHOW would say,
        // which is exact for whole numbers only (`ShowGUCOption`, `src/backend/utils/misc/guc.c`).
        // What the agent's own role or database is given hides what the files say.
        let query = "SELECT name, setting, \
             CASE WHEN vartype = 'integer' THEN current_setting(name) ELSE setting END, \
             coalesce(sourcefile ~ '/postgresql[.]auto[.]conf$', false), pending_restart, \
             source <> 'configuration file' \
             FROM pg_settings WHERE source = 'configuration file' \
             OR source IN ('database', 'user', 'database user') ORDER BY name";
        let mut configured = Configured::default();
        for row in self.client.query(query, &[]).await.map_err(failed)? {
            let Ok(name) = row.try_get::<_, String>(0) else { continue };
            let (Ok(raw), Ok(value)) = (row.try_get(1), row.try_get(2)) else {
                configured.unreadable.push(name);
                continue;
            };
            if row.get(5) {
                configured.unreadable.push(name);
                continue;
            }
            if row.get(4) {
                configured.pending_restart.push(name.clone());
            }
            configured.settings.push(Setting { name, value, raw, is_auto: row.get(3) });
        }
        // Nothing for who may not know.
        let query = "SELECT max(setting) FILTER (WHERE name = 'hba_file'), \
                     max(setting) FILTER (WHERE name = 'ident_file') FROM pg_settings";
        let row = self.client.query_one(query, &[]).await.map_err(failed)?;
        configured.hba_file = row.try_get(0).unwrap_or_default();
        configured.ident_file = row.try_get(1).unwrap_or_default();
        Ok(configured)
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

fn slot_trouble(error: &tokio_postgres::Error) -> Trouble {
    Trouble::io("the slot that holds WAL", describe(error)).with_hint(
        "the user of [source] conninfo needs REPLICATION and pg_read_all_settings, the server a \
         free slot (max_replication_slots); slot = \"\" under [source] does without",
    )
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
