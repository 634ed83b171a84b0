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
            "select lsn::text, data from pg_logical_slot_peek_binary_changes('{}', null, null, \
                 'include-xids', '1', 'include-timestamp', '1', 'skip-empty-xacts', '0')",
            Self::NAME
        );
        let conninfo = self.server.endpoint().conninfo();
        let runtime = super::sessions::runtime()?;
        let mut rows: Vec<(String, Vec<u8>)> = runtime.block_on(async {
            let (client, connection) =
                tokio_postgres::connect(&conninfo, tokio_postgres::NoTls).await?;
            let connection = tokio::spawn(connection);
            client.batch_execute("set timezone = 'UTC'").await?;
            let rows = client.query(&query, &[]).await?;
            connection.abort();
            anyhow::Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
        })?;
        let moved = put_messages_in_order(&mut rows);
        if moved > 0 {
            println!("test_decoding told {moved} messages behind the record that follows them");
        }
        text::parse(rows.iter().map(|(_, data)| data.as_slice())).context("parsing")
    }
}

/// PostgreSQL puts changes in order by where their records begin, but messages by where theirs end:
/// that is where the next record begins, so that one of another subtransaction may be told first
/// (`logicalmsg_decode`, `src/backend/replication/logical/decode.c`). Gives how many were moved back.
fn put_messages_in_order(rows: &mut [(String, Vec<u8>)]) -> usize {
    let mut moved = 0;
    for at in 1..rows.len() {
        if !rows[at].1.starts_with(b"message: transactional: 1") {
            continue;
        }
        let begun = (0..at).rev().take_while(|before| {
            rows[*before].0 == rows[at].0 && rows[*before].1.starts_with(b"table ")
        });
        if let Some(first) = begun.last() {
            rows[first..=at].rotate_right(1);
            moved += 1;
        }
    }
    moved
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
