//! Whether two servers hold the same rows.
//!
//! Each table is summed up on each server by SQL: its number of rows, and the sums of two
//! differently seeded 64-bit hashes of every row's text. A sum does not depend on the order of
//! rows, so tables without a primary key need nothing special, and a row that is there twice counts
//! twice.
//!
//! Left out, because they are not the same even when nothing is lost: the system catalogs (object
//! ids are, but statistics and horizons are not), temporary and unlogged tables (empty after a
//! promotion), sequences (WAL runs up to 32 values ahead of them), and what is not stored (views,
//! foreign tables). Partitioned tables are compared partition by partition.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context, Result};

use crate::endpoint::Endpoint;

/// What a table is summed up to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Digest {
    /// `count(*)`.
    pub rows: u64,
    /// The two sums of hashes, as the server writes them.
    pub hashes: [String; 2],
}

/// One table on two servers; nothing where it does not exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ComparedTable {
    /// `database.schema.table`, quoted as SQL needs it.
    pub name: String,
    /// The table on the first server.
    pub left: Option<Digest>,
    /// The table on the second server.
    pub right: Option<Digest>,
}

impl ComparedTable {
    /// Whether both servers hold the same rows.
    #[must_use]
    pub fn is_equal(&self) -> bool {
        self.left == self.right
    }
}

/// Every table of two servers. Its `Display` is one line per table with the values of both, then a
/// line that counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// Ordered by name.
    pub tables: Vec<ComparedTable>,
}

impl Comparison {
    /// Compares what [`digests_of`] gave, perhaps at different times.
    #[must_use]
    pub fn between(
        mut left: BTreeMap<String, Digest>,
        mut right: BTreeMap<String, Digest>,
    ) -> Self {
        let names: BTreeSet<String> = left.keys().chain(right.keys()).cloned().collect();
        let tables = names.into_iter().map(|name| ComparedTable {
            left: left.remove(&name),
            right: right.remove(&name),
            name,
        });
        Self { tables: tables.collect() }
    }

    /// How many tables either server has.
    #[must_use]
    pub fn compared(&self) -> usize {
        self.tables.len()
    }

    /// How many of them are equal.
    #[must_use]
    pub fn equal(&self) -> usize {
        self.tables.iter().filter(|table| table.is_equal()).count()
    }

    /// How many of them differ or are missing on one side.
    #[must_use]
    pub fn different(&self) -> usize {
        self.compared() - self.equal()
    }

    /// How many rows the first server's tables have.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.tables.iter().filter_map(|table| table.left.as_ref()).map(|digest| digest.rows).sum()
    }

    /// Whether every table is equal; not if there is nothing to compare, which says nothing.
    #[must_use]
    pub fn all_equal(&self) -> bool {
        self.rows() > 0 && self.different() == 0
    }
}

/// Compares every table of every database of two servers.
///
/// # Errors
/// A server does not answer.
pub fn compare_servers(left: &Endpoint, right: &Endpoint) -> Result<Comparison> {
    Ok(Comparison::between(digests_of(left)?, digests_of(right)?))
}

/// Every table of a server, by `database.schema.table`.
///
/// # Errors
/// The server does not answer.
pub fn digests_of(server: &Endpoint) -> Result<BTreeMap<String, Digest>> {
    let mut digests = BTreeMap::new();
    let databases = "select datname from pg_database where datallowconn order by datname";
    for database in server.sql(databases)?.lines() {
        let query = server.sql_in(database, QUERY_OF_TABLES)?;
        if query.is_empty() {
            continue;
        }
        // Text of a value can depend on settings; the two servers may have different ones.
        let settings = "set timezone = 'UTC'; set datestyle = 'ISO'; set intervalstyle = 'postgres'; \
                        set extra_float_digits = 1; set bytea_output = 'hex'; set xmloption = 'content';";
        for line in server.sql_in(database, &format!("{settings} {query}"))?.lines() {
            // The name is last: it may hold the separator.
            let mut fields = line.splitn(4, '|');
            let mut field = || fields.next().with_context(|| format!("unexpected line {line:?}"));
            let rows = field()?.parse().with_context(|| format!("row count in {line:?}"))?;
            let hashes = [field()?.to_owned(), field()?.to_owned()];
            digests.insert(format!("{database}.{}", field()?), Digest { rows, hashes });
        }
    }
    Ok(digests)
}

/// Gives one query that sums up every table of a database, in one snapshot.
///
/// `(it.*)` is the whole row even where a column is called `it`; a bare `it` would be that column.
const QUERY_OF_TABLES: &str = r#"
    select string_agg(format(
        'select count(*), '
            'coalesce(sum(hashtextextended((it.*)::text, 0)::numeric), 0), '
            'coalesce(sum(hashtextextended((it.*)::text, 1)::numeric), 0), %L '
        'from only %I.%I as it',
        format('%I.%I', nspname, relname), nspname, relname), ' union all ')
    from pg_class join pg_namespace on relnamespace = pg_namespace.oid
    where relkind in ('r', 'm') and relpersistence = 'p' and relispopulated
        and nspname not in ('pg_catalog', 'information_schema') and nspname !~ '^pg_t'
"#;

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} rows, {} {}", self.rows, self.hashes[0], self.hashes[1])
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = |digest: &Option<Digest>| {
            digest.as_ref().map_or_else(|| "(missing)".to_owned(), ToString::to_string)
        };
        for table in &self.tables {
            let verdict = if table.is_equal() { "equal    " } else { "DIFFERENT" };
            let (left, right) = (side(&table.left), side(&table.right));
            writeln!(f, "{verdict} {}: [{left}] [{right}]", table.name)?;
        }
        write!(
            f,
            "{} tables compared, {} equal, {} different (catalogs, sequences, temporary and unlogged tables left out)",
            self.compared(),
            self.equal(),
            self.different()
        )
    }
}
