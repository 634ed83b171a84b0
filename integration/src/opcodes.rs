//! WAL with records of every kind, written by a real server of any major.
//!
//! SQL reaches most kinds; the files in `integration/tests/sql/opcodes` say which. The rest needs more than
//! SQL and is here: crashes, promotion, changed settings, transaction ids near the borders of pages.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walfmt::version::Version;
use walfmt::{Lsn, SegmentSize, Timeline};

use crate::binaries::Binaries;
use crate::command::output_of;
use crate::majors;
use crate::postgres::{BackupWal, Cluster, ClusterOptions, StopMode};
use crate::process::{PATIENCE, wait_until};
use crate::scratch::Scratch;
use crate::segments::Segments;
use crate::workload::{Piece, Workload};

const SETTINGS: [&str; 9] = [
    "wal_keep_size = 100GB",
    "max_wal_size = 4GB",
    "checkpoint_timeout = 1h",
    "synchronous_commit = off",
    // Its records come when they come.
    "autovacuum = off",
    "allow_in_place_tablespaces = on",
    "timezone = UTC",
    "log_timezone = UTC",
    "max_replication_slots = 20",
];

/// WAL of one timeline; its server has been stopped.
#[derive(Debug)]
pub struct Wal {
    /// Who wrote it, in a few words.
    pub name: String,
    /// The segments.
    pub segments: Segments,
    /// The timeline.
    pub timeline: Timeline,
    /// Where the last record begins: the shutdown checkpoint.
    pub last_record: Lsn,
}

/// A major, and a folder to write WAL in.
#[derive(Debug)]
pub struct Writer {
    scratch: Scratch,
    binaries: Binaries,
    version: &'static Version,
}

impl Writer {
    /// A writer of WAL of this major.
    ///
    /// # Errors
    /// The machine does not have the major.
    pub fn new(major: u16) -> Result<Self> {
        let version = Version::from_major(major).context("a major that is not known")?;
        let binaries = majors::binaries(major)?;
        Ok(Self { scratch: Scratch::new()?, binaries, version })
    }

    /// The major's programs.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// Where it writes.
    #[must_use]
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The major.
    #[must_use]
    pub fn version(&self) -> &'static Version {
        self.version
    }

    /// A server with all that makes WAL richer switched on, and a standby of it that is promoted.
    ///
    /// # Errors
    /// A step fails.
    pub fn logical(&self) -> Result<[Wal; 2]> {
        const MEGABYTES: u32 = 16;
        let mut server = self.server(
            "logical",
            MEGABYTES,
            &[
                "wal_level = logical",
                "track_commit_timestamp = on",
                "full_page_writes = on",
                "wal_log_hints = on",
            ],
        )?;
        // A segment of commit times that can go later.
        server.sql("create table early (n int)")?;
        server.stop(StopMode::Fast)?;
        self.grow_old(&server)?;
        server.start()?;
        self.freeze(&server)?;

        self.pieces(&server)?;
        self.files(&server)?;
        self.script(&server, "steps/logical.sql")?;

        let backup = self.scratch.path().join("promoted");
        server.base_backup(&backup, BackupWal::Stream)?;
        full_page_writes(&server)?;
        // XLOG PARAMETER_CHANGE
        server.stop(StopMode::Fast)?;
        server.configure(&[
            "max_connections = 120",
            "wal_log_hints = off",
            "max_wal_senders = 12",
        ])?;
        server.start()?;
        server.sql("create table late as select 1 as n")?;
        let whole = self.end(&mut server, "wal_level=logical", Timeline(1), MEGABYTES)?;

        // XLOG END_OF_RECOVERY
        self.scratch.file("promoted/standby.signal", "")?;
        let mut promoted = Cluster::at(&self.scratch, "promoted", &backup, self.binaries.clone())?;
        promoted.start()?;
        promoted.sql("select pg_promote()")?;
        promoted.wait_recovered()?;
        promoted.sql("create table after_promotion as select generate_series(1, 1000) g")?;
        promoted.sql("select pg_switch_wal()")?;
        let promoted = self.end(&mut promoted, "after a promotion", Timeline(2), MEGABYTES)?;
        Ok([whole, promoted])
    }

    /// A server whose records bring every page along, and that crashes within a record.
    ///
    /// # Errors
    /// A step fails.
    pub fn consistency(&self) -> Result<Wal> {
        const MEGABYTES: u32 = 1;
        let mut server = self.server(
            "consistency",
            MEGABYTES,
            &[
                "wal_level = logical",
                "full_page_writes = on",
                "wal_consistency_checking = all",
                "wal_compression = pglz",
            ],
        )?;
        // The files of opcodes would write gigabytes.
        self.many_kinds(&server, 500)?;
        server.crash_and_recover()?;
        self.crash_within_a_record(&mut server)?;
        self.end(&mut server, "wal_consistency_checking=all", Timeline(1), MEGABYTES)
    }

    /// A server that logs as little as it can.
    ///
    /// # Errors
    /// A step fails.
    pub fn minimal(&self) -> Result<Wal> {
        const MEGABYTES: u32 = 64;
        let mut server = self.server(
            "minimal",
            MEGABYTES,
            &["wal_level = minimal", "max_wal_senders = 0", "full_page_writes = off"],
        )?;
        self.script(&server, "steps/minimal.sql")?;
        self.many_kinds(&server, 2000)?;
        self.end(&mut server, "wal_level=minimal", Timeline(1), MEGABYTES)
    }

    fn server(&self, name: &str, megabytes: u32, settings: &[&str]) -> Result<Cluster> {
        let options = ClusterOptions {
            wal_segment_megabytes: megabytes,
            // It is killed, but its machine is not.
            fsync: false,
            settings: SETTINGS.iter().chain(settings).map(|&line| line.to_owned()).collect(),
            binaries: Some(self.binaries.clone()),
            ..ClusterOptions::default()
        };
        Cluster::start_new(&self.scratch, name, &options)
    }

    /// Stops the server; what it wrote can be read then.
    fn end(
        &self,
        server: &mut Cluster,
        name: &str,
        timeline: Timeline,
        megabytes: u32,
    ) -> Result<Wal> {
        server.stop(StopMode::Fast)?;
        let control = server.control_data()?;
        let last_record = control["Latest checkpoint location"].parse()?;
        let catalog_version: u32 = control["Catalog version number"].parse()?;
        ensure!(self.version.catalog_version == catalog_version, "a server of another major");
        let size = SegmentSize::new(megabytes << 20).context("a legal size")?;
        let segments = Segments::find(&server.wal_directory(), timeline, size)?;
        let name = format!("{}, {name}", self.version.major);
        Ok(Wal { name, segments, timeline, last_record })
    }

    /// As if two million transactions and many multixacts had been; the next are the first of a page
    /// and of a segment, and everything before can be forgotten.
    fn grow_old(&self, server: &Cluster) -> Result<()> {
        // 32768 transactions, 2048 multixacts, 1636 members are a page; 32 pages a segment.
        let (xid, multixact, member) = (32_768 * 64, 2048 * 64, 1636 * 64);
        let mut reset = self.scratch.account().command(self.binaries.program("pg_resetwal"));
        reset.args(["-x", &xid.to_string(), "-m", &format!("{multixact},1")]);
        reset.args(["-O", &member.to_string(), "-D"]);
        output_of(reset.arg(server.data_directory())).map(drop)
    }

    /// CLOG, CommitTs and MultiXact TRUNCATE.
    fn freeze(&self, server: &Cluster) -> Result<()> {
        server.sql("create table held as select g as id from generate_series(1, 100) g")?;
        server.sql(
            "do $$ begin for i in 1..2500 loop
                 perform from held where id = 1 + i % 100 for key share;
                 begin perform from held where id = 1 + i % 100 for no key update;
                 exception when division_by_zero then null; end;
                 commit;
             end loop; end $$",
        )?;
        server.sql("alter database template0 allow_connections true")?;
        let mut vacuum = server.endpoint().command("vacuumdb");
        output_of(vacuum.args(["--all", "--freeze", "--quiet"]))?;
        server.sql("alter database template0 allow_connections false").map(drop)
    }

    /// The workloads of the other tests.
    fn pieces(&self, server: &Cluster) -> Result<()> {
        let has_bloom =
            server.sql("select count(*) from pg_available_extensions where name = 'bloom'")? == "1";
        let all = Workload::whole(1).pieces.into_iter();
        // Wide has large tables, Reuse wants a server at the end of its object numbers; neither has
        // records of its own.
        let pieces = all.filter(|piece| match piece {
            Piece::Wide | Piece::Reuse => false,
            Piece::Bloom => has_bloom,
            _ => true,
        });
        let workload = Workload { pieces: pieces.collect(), scale: 1 };
        server.pgbench_init(1, &[])?;
        server.pgbench_run(&["-c", "2", "-t", "200"])?;
        for round in [1, 2] {
            workload.run_round(server, &self.scratch, round)?;
        }
        // Together: prepared DDL holds locks that a round's rewritten catalogs would wait for.
        for round in [1, 2] {
            workload.run_twophase(server, &self.scratch, round)?;
        }
        Ok(())
    }

    /// The files of `tests/sql/opcodes`.
    fn files(&self, server: &Cluster) -> Result<()> {
        let mut names: Vec<String> = fs::read_dir(directory())
            .with_context(|| format!("cannot read {}", directory().display()))?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        // CLOG's takes a million transactions, where `grow_old` and `freeze` need none.
        names.retain(|name| name.ends_with(".sql") && name != "clog.sql");
        names.sort();
        names.iter().try_for_each(|name| self.script(server, name))
    }

    /// Runs a file in a database of its own.
    fn script(&self, server: &Cluster, name: &str) -> Result<()> {
        let path = directory().join(name);
        let sql =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        // An empty directory of the server's account.
        let outside = self.scratch.directory(&format!("{}-outside", server.name()))?;
        let sql = format!("\\set directory '{}'\n{sql}", outside.display());
        let file = self.scratch.file(&name.replace('/', "-"), sql)?;
        let database = format!("opcodes_{}", name.trim_end_matches(".sql").replace('/', "_"));
        server.sql(&format!("create database {database}"))?;
        let major = self.version.major;
        server
            .endpoint()
            .sql_file(&database, &file)
            .with_context(|| format!("{name} on {major}"))?;
        Ok(())
    }

    /// The script of `tests/waldump.rs`, without what this server lacks.
    fn many_kinds(&self, server: &Cluster, rows: u32) -> Result<()> {
        let methods =
            server.sql("select enumvals::text from pg_settings where name = 'wal_compression'")?;
        let is_minimal = server.sql("show wal_level")? == "minimal";
        let script = include_str!("../tests/sql/many_kinds.sql").lines().filter(|line| {
            let lacks_method = ["lz4", "zstd"].iter().any(|method| {
                line.starts_with(&format!("set wal_compression = {method}"))
                    && !methods.contains(method)
            });
            !(lacks_method || is_minimal && line.contains("pg_create_restore_point"))
        });
        let script: Vec<&str> = script.collect();
        let copied = self.scratch.path().join("copied");
        let script = format!(
            "\\set rows {rows}\n\\set copy_file '{}'\n{}",
            copied.display(),
            script.join("\n")
        );
        let file = self.scratch.file("many_kinds.sql", script)?;
        server.endpoint().sql_file("postgres", &file).map(drop)
    }

    /// XLOG OVERWRITE_CONTRECORD: the last segments are lost in a crash, and with them the end of a
    /// long record. Nothing on disk knows of it yet: there was no checkpoint since.
    fn crash_within_a_record(&self, server: &mut Cluster) -> Result<()> {
        server.sql("checkpoint")?;
        let before: Lsn = server.sql("select pg_current_wal_insert_lsn()")?.parse()?;
        server.sql(
            "set synchronous_commit = on;
             select pg_logical_emit_message(true, 'long', repeat('l', 3 << 20)) is null",
        )?;
        server.kill()?;
        let directory = server.wal_directory();
        let size = SegmentSize::new(1 << 20).context("a legal size")?;
        let segments = Segments::find(&directory, Timeline(1), size)?;
        let mut lsn = size.start_of(size.segment_of(before)).advance(2 << 20);
        let mut lost = 0;
        while lsn < segments.end() {
            fs::remove_file(segments.path_of(lsn)).context("cannot remove a segment")?;
            lsn = lsn.advance(1 << 20);
            lost += 1;
        }
        ensure!(lost > 0, "the record's end was not in a segment of its own");
        server.start()?;
        server.sql("create table after_a_lost_record as select 1 as n").map(drop)
    }
}

/// XLOG FPW_CHANGE, both ways; the checkpointer writes it when it has read the settings.
fn full_page_writes(server: &Cluster) -> Result<()> {
    for value in ["off", "on"] {
        server.sql(&format!("alter system set full_page_writes = {value}"))?;
        let before = server.sql("select pg_current_wal_insert_lsn()")?;
        server.sql("select pg_reload_conf()")?;
        wait_until("full_page_writes is changed", PATIENCE, || {
            let now = server.sql("select pg_current_wal_insert_lsn()")?;
            let value_now = server.sql("show full_page_writes")?;
            Ok(now != before && value_now == value)
        })?;
        server.sql("checkpoint")?;
    }
    Ok(())
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql/opcodes")
}
