//! The judge: a slot of `test_decoding` on the leader.

use anyhow::{Context, Result};

use super::{Decoded, Relation, text};
use crate::postgres::Cluster;
use std::collections::BTreeSet;

/// A slot on a server at `wal_level=logical`.
#[derive(Clone, Copy, Debug)]
pub struct Slot<'a> {
    server: &'a Cluster,
}

impl<'a> Slot<'a> {
    const NAME: &'static str = "judge";

    /// Makes the slot; what is committed from here on is decoded.
    ///
    /// # Errors
    /// The server is not at `logical`, or has no `test_decoding`.
    pub fn create(server: &'a Cluster) -> Result<Self> {
        server.sql(&format!(
            "select pg_create_logical_replication_slot('{}', 'test_decoding')",
            Self::NAME
        ))?;
        Ok(Self { server })
    }

    /// The slot that was made before.
    #[must_use]
    pub fn of(server: &'a Cluster) -> Self {
        Self { server }
    }

    /// What is there, and stays there.
    ///
    /// Empty transactions are asked for: with `skip-empty-xacts`, PostgreSQL 15 prints a message
    /// that comes first in its transaction before `BEGIN`.
    ///
    /// # Errors
    /// The server fails; or it prints what is not known.
    pub fn peek(&self) -> Result<Decoded> {
        let query = format!(
            "select data from pg_logical_slot_peek_binary_changes('{}', null, null, \
                 'include-xids', '1', 'include-timestamp', '1', 'skip-empty-xacts', '0')",
            Self::NAME
        );
        let conninfo = self.server.endpoint().conninfo();
        let runtime = super::sessions::runtime()?;
        let rows: Vec<Vec<u8>> = runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await?;
            let connection = tokio::spawn(connection);
            client.batch_execute("set timezone = 'UTC'").await?;
            let rows = client.query(&query, &[]).await?;
            connection.abort();
            anyhow::Ok(rows.iter().map(|row| row.get(0)).collect())
        })?;
        text::parse(rows.iter().map(Vec::as_slice)).context("parsing")
    }
}

/// The partitioned tables of a server.
///
/// # Errors
/// It does not answer.
pub fn partitioned_tables(server: &Cluster) -> Result<BTreeSet<Relation>> {
    let query = "select relnamespace::regnamespace, relname from pg_class where relkind = 'p'";
    let rows = server.sql(query)?;
    let relations = rows.lines().filter_map(|line| line.split_once('|'));
    let relation = |(schema, table): (&str, &str)| Relation {
        schema: schema.to_owned(),
        table: table.to_owned(),
    };
    Ok(relations.map(relation).collect())
}
