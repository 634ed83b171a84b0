//! What a leader is made to do while it is followed: ordinary work of every kind that redo knows.
//!
//! Each [`Piece`] is a `psql` script in `integration/workload`, run twice while `pgbench` runs, the
//! second time after the agents were restarted. What a piece must leave in the WAL is said here
//! and looked for afterwards: a script that does nothing proves nothing.

use std::collections::BTreeMap;
use std::thread;

use anyhow::{Context, Result, anyhow};
use clap::ValueEnum;
use walfmt::Lsn;

use crate::command::output_of;
use crate::endpoint::Endpoint;
use crate::load::Load;
use crate::postgres::{Cluster, StopMode};
use crate::process::{PATIENCE, wait_until};
use crate::scratch::Scratch;

/// How long `pgbench` may run at most, in seconds: whoever started it stops it.
const LOAD_SECONDS: &str = "1200";

/// One kind of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Piece {
    /// The numbers of dropped relations used again; first, before others take them.
    Reuse,
    /// Rows of all shapes, B-trees, COPY of frozen rows, partitions.
    Heap,
    /// Heaps beyond a page of their maps, cut at their borders.
    Wide,
    /// Relations made, rewritten, emptied, dropped; unlogged ones.
    Ddl,
    /// Savepoints.
    Subtransactions,
    /// Generic records.
    Bloom,
    /// Sequences.
    Sequences,
    /// Multixacts over the borders of their pages.
    Multixact,
    /// New files for mapped catalogs.
    RelationMaps,
    /// Databases created, altered, dropped.
    Databases,
    /// Tablespaces in place.
    Tablespaces,
    /// Logical messages and replication origins.
    Messages,
    /// Prepared transactions.
    Twophase,
}

impl Piece {
    /// Its script.
    fn script(self) -> &'static str {
        match self {
            Self::Reuse => include_str!("../workload/reuse.sql"),
            Self::Heap => include_str!("../workload/heap.sql"),
            Self::Wide => include_str!("../workload/wide.sql"),
            Self::Ddl => include_str!("../workload/ddl.sql"),
            Self::Subtransactions => include_str!("../workload/subtransactions.sql"),
            Self::Bloom => include_str!("../workload/bloom.sql"),
            Self::Sequences => include_str!("../workload/sequences.sql"),
            Self::Multixact => include_str!("../workload/multixact.sql"),
            Self::RelationMaps => include_str!("../workload/relation_maps.sql"),
            Self::Databases => include_str!("../workload/databases.sql"),
            Self::Tablespaces => include_str!("../workload/tablespaces.sql"),
            Self::Messages => include_str!("../workload/messages.sql"),
            Self::Twophase => include_str!("../workload/twophase.sql"),
        }
    }

    /// What several sessions of `pgbench` do at once after its script.
    fn clients_script(self) -> Option<&'static str> {
        (self == Self::Multixact).then_some(include_str!("../workload/multixact.pgbench"))
    }

    /// Whether it is run by the first of two sessions; each runs its pieces one after the other.
    fn is_of_first_session(self) -> bool {
        matches!(self, Self::Wide | Self::Databases | Self::Tablespaces)
    }

    /// Records that it must write, as `pg_waldump --stats=record` calls them.
    fn records(self) -> &'static [&'static str] {
        match self {
            Self::Reuse => &["Storage/CREATE"],
            Self::Heap => &[
                "Heap/INSERT",
                "Heap/INSERT+INIT",
                "Heap/DELETE",
                "Heap/UPDATE",
                "Heap/HOT_UPDATE",
                "Heap/LOCK",
                "Heap/HEAP_CONFIRM",
                "Heap/INPLACE",
                "Heap2/MULTI_INSERT",
                "Heap2/MULTI_INSERT+INIT",
                "Heap2/PRUNE",
                "Heap2/VACUUM",
                "Heap2/FREEZE_PAGE",
                "Heap2/VISIBLE",
                "Btree/INSERT_LEAF",
                "Btree/INSERT_UPPER",
                "Btree/SPLIT_L",
                "Btree/SPLIT_R",
                "Btree/DEDUP",
                "Btree/DELETE",
                "Btree/VACUUM",
                "Btree/UNLINK_PAGE",
                "Btree/MARK_PAGE_HALFDEAD",
                "Btree/NEWROOT",
                "XLOG/FPI",
            ],
            Self::Wide => &["Heap2/VISIBLE", "Storage/TRUNCATE"],
            Self::Ddl => &["Storage/CREATE", "Storage/TRUNCATE", "Transaction/ABORT"],
            Self::Subtransactions => &["CLOG/ZEROPAGE", "Transaction/ASSIGNMENT"],
            Self::Bloom => &["Generic/Generic"],
            Self::Sequences => &["Sequence/LOG"],
            Self::Multixact => {
                &["MultiXact/CREATE_ID", "MultiXact/ZERO_OFF_PAGE", "MultiXact/ZERO_MEM_PAGE"]
            }
            Self::RelationMaps => &["RelMap/UPDATE"],
            Self::Databases => {
                &["Database/CREATE_FILE_COPY", "Database/CREATE_WAL_LOG", "Database/DROP"]
            }
            Self::Tablespaces => &["Tablespace/CREATE", "Tablespace/DROP"],
            Self::Messages => {
                &["LogicalMessage/MESSAGE", "ReplicationOrigin/SET", "ReplicationOrigin/DROP"]
            }
            Self::Twophase => &[
                "Transaction/PREPARE",
                "Transaction/COMMIT_PREPARED",
                "Transaction/ABORT_PREPARED",
            ],
        }
    }
}

/// Pieces, and how much of each.
#[derive(Clone, Debug)]
pub struct Workload {
    /// What is done.
    pub pieces: Vec<Piece>,
    /// 1 is the least that does what the pieces say.
    pub scale: u32,
}

impl Workload {
    /// Every piece.
    #[must_use]
    pub fn whole(scale: u32) -> Self {
        Self { pieces: Piece::value_variants().to_vec(), scale }
    }

    /// What must be there before the base backup. The server runs before and after it.
    ///
    /// # Errors
    /// It fails.
    pub fn prepare(&self, leader: &mut Cluster) -> Result<()> {
        leader.pgbench_init(1, &[])?;
        // Old rows, frozen and visible to all: changes to them clear bits of a map that the backup
        // brought along.
        leader.sql("vacuum freeze pgbench_accounts")?;
        if self.pieces.contains(&Piece::Reuse) {
            leader.sql(
                "do $$ begin for i in 1..20 loop
                     execute format('create table dropped_%s as select generate_series(1, 500) g', i);
                     execute format('create table anew_%s (id int primary key, t text)', i);
                 end loop; end $$",
            )?;
            leader.stop(StopMode::Fast)?;
            leader.set_next_oid(u32::MAX - 5)?;
            leader.start()?;
        }
        Ok(())
    }

    /// Starts what runs beside the rounds.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_load(&self, leader: &Cluster) -> Result<Load> {
        leader.pgbench(&["-c", "2", "-R", "300", "-T", LOAD_SECONDS])
    }

    /// Round 1 or 2.
    ///
    /// # Errors
    /// A script fails.
    pub fn run_round(&self, leader: &Cluster, scratch: &Scratch, round: u32) -> Result<()> {
        let of_session = |first: bool| {
            let pieces = self.pieces.iter().copied();
            pieces.filter(move |piece| {
                ![Piece::Twophase, Piece::RelationMaps].contains(piece)
                    && piece.is_of_first_session() == first
            })
        };
        let sessions = [of_session(true).collect::<Vec<_>>(), of_session(false).collect()];
        thread::scope(|scope| {
            let sessions = sessions.map(|pieces| {
                scope.spawn(move || -> Result<()> {
                    pieces.iter().try_for_each(|piece| self.run(*piece, leader, scratch, round))
                })
            });
            sessions.into_iter().try_for_each(|session| {
                session.join().map_err(|_| anyhow!("a session panicked"))?
            })
        })?;
        if self.pieces.contains(&Piece::Heap) {
            self.vacuum_alone(leader)?;
        }
        // It locks catalogs in an order of its own: beside other DDL it would be in a deadlock.
        if self.pieces.contains(&Piece::RelationMaps) {
            self.run(Piece::RelationMaps, leader, scratch, round)?;
        }
        Ok(())
    }

    /// Has a vacuum remove rows and pages, and an index delete entries, for certain: in a session of
    /// [`Workload::run_round`] they may find that the other one still sees them.
    fn vacuum_alone(&self, leader: &Cluster) -> Result<()> {
        let rows = 3000 * self.scale;
        leader.sql(&format!(
            "insert into keys select md5(g::text), 1000000 + g from generate_series(1, {rows}) g"
        ))?;
        // The load's transactions are short, and some may have begun before.
        let until_nobody_sees = |what: &str| {
            let changed = leader.sql(&format!("{what}; select pg_current_xact_id()"))?;
            let who_sees_it = format!(
                "select count(*) from pg_stat_activity where pid <> pg_backend_pid() \
                 and least(backend_xid::text::bigint, backend_xmin::text::bigint) <= {changed}"
            );
            wait_until("nobody sees the rows before", PATIENCE, || {
                Ok(leader.sql(&who_sees_it)? == "0")
            })
        };
        until_nobody_sees("delete from keys where n > 1000000")?;
        // Btree DELETE: where a page has no more room for versions, those that nobody sees are deleted from it
        // (bottom-up deletion, nbtdedup.c).
        leader.sql(
            "create table if not exists versions (id int primary key, n int); \
             create index if not exists versions_n on versions (n); \
             insert into versions select g, 0 from generate_series(1, 2000) g on conflict do nothing",
        )?;
        for _ in 0..4 {
            until_nobody_sees("update versions set n = n + 1")?;
        }
        // The second one finds pages that the first has emptied.
        leader.sql("vacuum keys")?;
        leader.sql("vacuum keys").map(drop)
    }

    /// Prepares transactions (1), finishes them (2), leaves some open (3); nothing if that is none
    /// of the pieces.
    ///
    /// # Errors
    /// The script fails.
    pub fn run_twophase(&self, leader: &Cluster, scratch: &Scratch, round: u32) -> Result<()> {
        if self.pieces.contains(&Piece::Twophase) {
            self.run(Piece::Twophase, leader, scratch, round)?;
        }
        Ok(())
    }

    /// The records that the pieces must write and that are not among `written`.
    #[must_use]
    pub fn missing(&self, written: &BTreeMap<String, u64>) -> Vec<String> {
        let kinds = self.pieces.iter().flat_map(|piece| {
            piece.records().iter().map(move |kind| (*kind, format!("{kind} of {piece:?}")))
        });
        kinds.filter(|(kind, _)| !written.contains_key(*kind)).map(|(_, missing)| missing).collect()
    }

    fn run(&self, piece: Piece, leader: &Cluster, scratch: &Scratch, round: u32) -> Result<()> {
        let name = format!("{piece:?}");
        let file = scratch.file(&format!("{name}.sql"), piece.script())?;
        let mut psql = psql(leader.endpoint());
        for (number, variable) in [(1, "first"), (2, "second"), (3, "third")] {
            psql.arg("-v").arg(format!("{variable}={}", round == number));
        }
        let databases = self.pieces.contains(&Piece::Databases);
        let copy_file = scratch.path().join("rows.copy");
        psql.arg("-v").arg(format!("round={round}"));
        psql.arg("-v").arg(format!("scale={}", self.scale));
        psql.arg("-v").arg(format!("databases={databases}"));
        psql.arg("-v").arg(format!("copy_file={}", copy_file.display()));
        let context = || format!("{name}, round {round}");
        output_of(psql.arg("-f").arg(file)).with_context(context)?;
        if let Some(script) = piece.clients_script() {
            let file = scratch.file(&format!("{name}.pgbench"), script)?;
            let file = file.to_str().context("a path in UTF-8")?;
            leader.pgbench_run(&["-c", "4", "-t", "200", "-f", file]).with_context(context)?;
        }
        Ok(())
    }
}

fn psql(server: &Endpoint) -> std::process::Command {
    let mut command = server.command("psql");
    command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]);
    command
}

/// How many records of each kind the leader's WAL holds.
///
/// ```text
/// Type                                           N      (%)          Record size ...
/// Heap/INSERT                                  128 ( 12.3)                  ...
/// ```
///
/// # Errors
/// `pg_waldump` fails.
pub fn records_by_kind(leader: &Cluster, start: Lsn, end: Lsn) -> Result<BTreeMap<String, u64>> {
    let (start, end) = (start.to_string(), end.to_string());
    let arguments = ["--stats=record", "-s", &start, "-e", &end];
    let text = leader.waldump(&leader.wal_directory(), &arguments)?;
    let kinds = text.lines().filter_map(|line| {
        let (kind, rest) = line.trim().split_once(' ')?;
        let count = rest.split_whitespace().next()?.parse().ok()?;
        (kind.contains('/') && count > 0).then(|| (kind.to_owned(), count))
    });
    Ok(kinds.collect())
}
