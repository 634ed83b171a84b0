//! The store keeps its promises over power cuts, full disks and write errors.
//!
//! Under the store lies a [`LossyDisk`]: when the power goes, each 4 kB sector, length and name that
//! was not synced is kept or lost on its own. A recorded workload is replayed; in the middle of some
//! file call the power goes, the disk is full or fails; the store is opened again and replays on,
//! and so for some lives. The last life replays to the end, and its files are held against those of
//! a store that nothing has ever happened to, byte for byte.
//!
//! What may differ, and is counted: a map page torn by a cut fails its checksum and is begun anew
//! (`RBM_ZERO_ON_ERROR` in `src/backend/access/transam/xlogutils.c`). So with checksums a visibility
//! map may lack bits, never have more, and leaves of a free space map may be 0. What is not a leaf in
//! a free space map is a sum of leaves that servers mend when they meet it.
//!
//! That such a store is what PostgreSQL makes of the same WAL, a real standby says, once for each
//! workload.
//!
//! `WALFERRY_CRASH_POINTS` says how many points there are at least in each workload;
//! `integration/crash.sh` asks for more than the default.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::identical::Directories;
use integration::standby::Standby;
use integration::{Cluster, ClusterOptions, Recording, Scratch, Seed};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use walferry_store::testing::{Fault, Lie, Losses, LossyDisk};
use walferry_store::{Inspection, LockError, OpenError, Store, StoreConfig, tablespaces_directory};
use walfmt::Lsn;
use walfmt::relation::BLOCK_SIZE;

/// How many points one workload gets at least, unless the environment says otherwise.
const POINTS: u64 = 12;

/// So many times as many points there are at most, if nothing was in flight at fewer.
const MORE_POINTS: u64 = 4;

/// How many runs have a disk that lies, of each kind.
const CONTROLS: u64 = 3;

/// Lives of one store at most, before the last one.
const LIVES_MAX: u64 = 8;

#[test]
fn small_transactions_survive() -> Result<()> {
    let workload = Workload {
        name: "small transactions",
        data_checksums: true,
        wal_compression: "lz4",
        prepare: |leader| leader.pgbench_init(1, &[]),
        work: |leader| {
            for round in 0..8 {
                leader.pgbench_run(&["-c", "4", "-j", "2", "-t", "60"])?;
                // Files come and go, so that there are names and lengths to lose.
                leader
                    .sql(&format!("create table made{round} as select generate_series(1, 99)"))?;
                leader.sql(&format!("drop table if exists made{}", (round + 7) % 8))?;
                if round % 3 == 1 {
                    leader.sql("vacuum pgbench_accounts")?;
                    leader.sql("vacuum pgbench_tellers")?;
                }
                leader.sql("checkpoint")?;
            }
            leader.pgbench_run(&["-c", "4", "-j", "2", "-t", "200"]).map(drop)
        },
        has_standby: true,
    };
    workload.survives()
}

#[test]
fn bulk_loads_and_drops_survive() -> Result<()> {
    let workload = Workload {
        name: "bulk loads and drops",
        data_checksums: false,
        wal_compression: "pglz",
        prepare: |leader| {
            each(
                leader,
                "create table kept (id int primary key, v int, filler text);
                 insert into kept select g, g % 100, repeat('x', 60) from generate_series(1, 20000) g;
                 vacuum freeze kept",
            )
        },
        work: |leader| each(leader, BULK),
        has_standby: true,
    };
    workload.survives()
}

#[test]
fn mixed_changes_survive() -> Result<()> {
    let workload = Workload {
        name: "mixed changes",
        data_checksums: true,
        wal_compression: "off",
        prepare: |leader| {
            each(
                leader,
                "create table rows (id int primary key, v int, filler text) with (fillfactor = 80);
                 insert into rows select g, g % 100, repeat('x', 60) from generate_series(1, 8000) g;
                 create index on rows (v);
                 vacuum freeze rows",
            )
        },
        work: |leader| each(leader, MIXED),
        has_standby: true,
    };
    workload.survives()
}

#[test]
fn what_is_kept_about_transactions_survives() -> Result<()> {
    let workload = Workload {
        name: "transactions",
        data_checksums: false,
        wal_compression: "off",
        prepare: |leader| {
            each(
                leader,
                "create table held (id int primary key, v int not null default 0);
                 insert into held select generate_series(1, 2500);
                 create table more (id int primary key, v int, filler text);
                 insert into more select g, 0, repeat('m', 100) from generate_series(1, 4000) g;
                 select pg_replication_origin_create('a'), pg_replication_origin_create('b');
                 begin; insert into held values (10000); prepare transaction 'before the backup'",
            )
        },
        work: |leader| each(leader, TRANSACTIONS),
        has_standby: true,
    };
    workload.survives()
}

#[test]
fn tablespaces_with_a_location_survive() -> Result<()> {
    let workload = Workload {
        name: "tablespaces with a location",
        data_checksums: true,
        wal_compression: "zstd",
        prepare: |leader| {
            each(
                leader,
                "create table rows (id int primary key, v int, filler text);
                 insert into rows select g, 0, repeat('r', 80) from generate_series(1, 5000) g;
                 create tablespace early location '';
                 create table placed_early (id int primary key) tablespace early;
                 insert into placed_early select generate_series(1, 1000)",
            )
        },
        work: |leader| {
            let location = leader.data_directory().with_file_name("space");
            let location = location.display();
            leader
                .sql(&format!("copy (select 1) to program 'cat > /dev/null; mkdir {location}'"))?;
            leader.sql(&format!("create tablespace far location '{location}'"))?;
            each(leader, LOCATIONS)?;
            let tables =
                "create table t as select g, repeat('t', 50) as t from generate_series(1, 3000) g;
                          create index on t (g);
                          delete from t where g % 3 = 0";
            for database in ["by_wal", "by_files"] {
                for statement in tables.split(";\n") {
                    leader.endpoint().sql_in(database, statement)?;
                }
                leader.endpoint().sql_in(database, "vacuum full pg_class")?;
                leader.sql("checkpoint")?;
            }
            each(leader, MORE_LOCATIONS)
        },
        // It would use the leader's directory of the tablespace that has a location.
        has_standby: false,
    };
    workload.survives()
}

const LOCATIONS: &str = "
    create tablespace near location '';
    create table placed (id int primary key, t text) tablespace far;
    insert into placed select g, repeat('p', 60) from generate_series(1, 3000) g;
    vacuum placed;
    create index on placed (t) tablespace near;
    checkpoint;
    update rows set v = 1 where id % 3 = 0;
    create database by_wal strategy wal_log;
    create database by_files strategy file_copy;
    create database doomed tablespace near strategy file_copy;
    alter table placed set tablespace near;
    update placed set t = 'q' where id % 5 = 0;
    vacuum full pg_proc;
    reindex index pg_class_oid_index;
    checkpoint;
    drop database doomed;
    insert into placed_early select generate_series(1001, 4000);
    alter table placed set tablespace far";

const MORE_LOCATIONS: &str = "
    alter database by_files set tablespace far;
    create database of_template template by_wal strategy file_copy;
    vacuum full pg_database;
    update rows set v = 2 where id % 4 = 0;
    drop database by_wal;
    checkpoint;
    create database again template of_template tablespace near strategy wal_log;
    vacuum full pg_class;
    update placed set t = 'r' where id % 6 = 0;
    alter table placed_early set tablespace pg_default;
    drop tablespace early;
    checkpoint;
    drop database by_files;
    drop table placed;
    drop tablespace far;
    update rows set v = 3 where id % 5 = 0;
    alter database again set tablespace pg_default;
    drop tablespace near;
    create tablespace near location '';
    create table placed (id int primary key) tablespace near;
    insert into placed select generate_series(1, 2000)";

/// A multixact for each row; prepared transactions that end before, behind and between checkpoints;
/// origins.
const TRANSACTIONS: &str = "
    begin; select count(*) from (select from held for key share) x; prepare transaction 'holder';
    do $$ begin for i in 1..2500 loop begin perform from held where id = i for key share; exception when division_by_zero then null; end; end loop; end $$;
    begin; create table born (id int); insert into born values (1); prepare transaction 'committed';
    begin; create table unborn (id int); insert into unborn values (1); prepare transaction 'aborted';
    select pg_replication_origin_advance('b', '0/100');
    update more set v = v + 1 where id % 3 = 1;
    insert into more select g, 1, repeat('m', 100) from generate_series(10000, 14000) g;
    checkpoint;
    select pg_replication_origin_session_setup('a'); begin; select pg_replication_origin_xact_setup('0/1000', now()); insert into held values (10001); commit;
    commit prepared 'committed';
    rollback prepared 'aborted';
    begin; insert into held values (10002); prepare transaction 'brief';
    commit prepared 'brief';
    update more set v = v + 1 where id % 3 = 2;
    insert into more select g, 1, repeat('m', 100) from generate_series(20000, 24000) g;
    checkpoint;
    begin; drop table born; prepare transaction 'drops';
    do $$ begin for i in 1..2500 loop begin perform from held where id = i for key share; exception when division_by_zero then null; end; end loop; end $$;
    update more set v = v + 1 where id % 3 = 0;
    insert into more select g, 1, repeat('m', 100) from generate_series(30000, 34000) g;
    checkpoint;
    commit prepared 'drops';
    select pg_replication_origin_drop('b');
    select pg_replication_origin_session_setup('a'); begin; select pg_replication_origin_xact_setup('0/2000', now()); insert into held values (10003); prepare transaction 'from a';
    update more set v = v + 1 where id % 3 = 1;
    insert into more select g, 1, repeat('m', 100) from generate_series(40000, 44000) g;
    checkpoint;
    commit prepared 'before the backup';
    begin; insert into held values (10004); prepare transaction 'to the end';
    update more set v = v + 1 where id % 3 = 2;
    insert into more select g, 1, repeat('m', 100) from generate_series(50000, 54000) g;
    checkpoint;
    rollback prepared 'holder';
    update held set v = v + 1 where id % 5 = 0;
    select pg_replication_origin_session_setup('a'); begin; select pg_replication_origin_xact_setup('0/3000', now()); insert into held values (10005); commit";

/// Above all file copies, which must never be made again from what their source has become.
#[test]
fn databases_and_tablespaces_survive() -> Result<()> {
    let workload = Workload {
        name: "databases and tablespaces",
        data_checksums: true,
        wal_compression: "off",
        prepare: |leader| {
            each(leader, "create tablespace here location '';\ncreate database source")?;
            leader.endpoint().sql_in("source", SOURCE).map(drop)
        },
        work: |leader| {
            for step in DIRECTORIES.split(";\n") {
                match step.trim().split_once(": ") {
                    Some((database, statement)) => {
                        leader.endpoint().sql_in(database, statement).map(drop)?;
                    }
                    None => leader.sql(step).map(drop)?,
                }
            }
            Ok(())
        },
        has_standby: true,
    };
    workload.survives()
}

const SOURCE: &str = "
    create table t (id int primary key, v text);
    insert into t select g, repeat('s', 40) from generate_series(1, 2000) g";

/// Statements of database `postgres`, or of the one named before.
const DIRECTORIES: &str = "
    source: update t set v = 'before the copy' where id % 3 = 0;
    create database copied template source strategy file_copy;
    source: update t set v = 'after the copy' where id % 2 = 0;
    source: create table later (n int primary key);
    source: insert into later select generate_series(1, 1000);
    copied: delete from t where id % 5 = 0;
    source: vacuum t;
    create tablespace there location '';
    create table in_there (n int) tablespace there;
    insert into in_there select generate_series(1, 1000);
    alter database copied set tablespace there;
    copied: update t set v = 'moved' where id % 7 = 0;
    copied: vacuum full pg_class;
    checkpoint;
    create database reused oid 60000 template source strategy wal_log;
    reused: update t set v = 'first life';
    drop database reused;
    create database reused oid 60000 template copied strategy file_copy tablespace here;
    copied: update t set v = 'after the second copy';
    reused: insert into t select g, 'second life' from generate_series(3000, 4000) g;
    reused: vacuum full pg_class;
    alter database copied set tablespace pg_default;
    drop table in_there;
    drop tablespace there;
    copied: update t set v = 'back again' where id % 4 = 0;
    drop database source;
    vacuum full pg_database;
    reused: delete from t where id % 2 = 0;
    reused: vacuum t";

const BULK: &str = "
    create table loaded as select g as id, g % 1000 as v, repeat('y', g % 120) as filler from generate_series(1, 15000) g;
    create index on loaded (id);
    checkpoint;
    create index loaded_v on loaded (v);
    vacuum loaded;
    delete from loaded where id > 4000;
    vacuum loaded;
    checkpoint;
    insert into loaded select g, 1, repeat('z', 90) from generate_series(1, 6000) g;
    truncate kept;
    insert into kept select g, 2, repeat('w', 70) from generate_series(1, 9000) g;
    drop index loaded_v;
    checkpoint;
    create table short (n int primary key, t text);
    insert into short select g, repeat('s', 50) from generate_series(1, 5000) g;
    vacuum short;
    drop table short;
    create table again (n int primary key, t text);
    insert into again select g, repeat('a', 50) from generate_series(1, 5000) g;
    checkpoint;
    vacuum full kept;
    delete from again where n > 100;
    vacuum again;
    insert into again select g, repeat('b', 50) from generate_series(6000, 9000) g;
    vacuum freeze again;
    checkpoint;
    update loaded set v = v + 1 where id % 7 = 0;
    delete from again where n % 5 = 0;
    reindex table loaded;
    begin; create table never (n int primary key); insert into never select generate_series(1, 3000); rollback;
    checkpoint;
    vacuum;
    delete from loaded where id < 2500;
    drop table again";

const MIXED: &str = "
    update rows set v = v where id % 50 = 0;
    delete from rows where id % 11 = 0;
    begin; select count(*) from (select 1 from rows where id % 13 = 0 for update) x; commit;
    checkpoint;
    vacuum rows;
    create table parts (k int, v text) partition by list (k);
    create table parts_1 partition of parts for values in (1);
    create table parts_2 partition of parts for values in (2);
    insert into parts select 1 + g % 2, g::text from generate_series(1, 1500) g;
    begin; insert into parts values (1, 'a'); savepoint a; insert into parts values (2, 'b'); rollback to a; drop table parts_2; rollback;
    update parts set k = 3 - k where v ~ '^[0-9]+$' and v::int % 3 = 0;
    checkpoint;
    create table nested (n int);
    do $$ begin for i in 1..3000 loop begin insert into nested values (i); if i % 3 = 0 then raise 'no'; end if; exception when others then null; end; end loop; end $$;
    vacuum freeze rows;
    update rows set v = v + 1 where id % 3 = 0;
    checkpoint;
    alter table rows add column f int default 7;
    update rows set f = 8 where id % 9 = 0;
    create index rows_f on rows (f);
    insert into rows select g, 1, repeat('n', 40), 1 from generate_series(9001, 11000) g on conflict do nothing;
    vacuum rows;
    checkpoint;
    delete from rows where id > 7000;
    vacuum rows;
    insert into rows select g, 1, repeat('m', 40), 1 from generate_series(9001, 10000) g on conflict (id) do update set v = excluded.v;
    cluster rows using rows_pkey;
    truncate nested;
    checkpoint;
    create table keys (k text, n int);
    create index keys_k on keys (k);
    insert into keys select md5(g::text), g from generate_series(1, 4000) g;
    delete from keys where n between 500 and 3500;
    vacuum keys;
    insert into keys select md5(g::text), g from generate_series(5000, 6500) g;
    checkpoint;
    drop table parts;
    vacuum (freeze) rows;
    update rows set v = -v where id % 4 = 0;
    delete from keys where n < 300;
    alter table rows drop column f;
    select pg_switch_wal();
    update rows set v = -v where id % 5 = 0";

fn each(leader: &Cluster, statements: &str) -> Result<()> {
    for statement in statements.split(";\n") {
        leader.sql(statement)?;
    }
    Ok(())
}

struct Workload {
    name: &'static str,
    data_checksums: bool,
    wal_compression: &'static str,
    prepare: fn(&Cluster) -> Result<()>,
    work: fn(&Cluster) -> Result<()>,
    /// Whether a real standby can replay it beside the leader.
    has_standby: bool,
}

impl Workload {
    fn survives(&self) -> Result<()> {
        let began = Instant::now();
        let Seed(seed) = Seed::take(self.name, 1);
        let points = std::env::var("WALFERRY_CRASH_POINTS")
            .map_or(Ok(POINTS), |text| text.parse().context("WALFERRY_CRASH_POINTS"))?;
        let scratch = Scratch::new()?;
        let recording = self.record(&scratch)?;
        let reference = Reference::make(&scratch, &recording)?;
        if self.has_standby {
            reference.ensure_identical_to_a_standby(&scratch, &recording)?;
        }
        println!(
            "{}: {} MB of WAL, {} file calls, recorded and replayed in {:.1} s",
            self.name,
            recording.wal_bytes() >> 20,
            reference.calls,
            began.elapsed().as_secs_f64()
        );

        let mut report = Report::default();
        for run in 0.. {
            // The seed says in which call a life ends, and the threads which call that is: what comes
            // about at few points may need some more.
            let enough =
                if report.ensure_in_flight().is_ok() { points } else { points * MORE_POINTS };
            if report.points() >= enough {
                break;
            }
            let mut lives = Lives::new(&scratch, &recording, &reference, seed * 1_000_000 + run)?;
            let survived = lives.live(&mut report);
            survived.with_context(|| format!("{}, run {run}\n{}", self.name, lives.story()))?;
        }
        println!("{}: {report}", self.name);
        report.ensure_in_flight()?;

        for lie in [Lie::All, Lie::FileSystems] {
            let mut noticed = 0;
            for run in 0..CONTROLS {
                let seed = seed * 1_000_000 + run;
                let mut lives = Lives::new(&scratch, &recording, &reference, seed)?;
                lives.disk.lose_synced(lie);
                if let Err(error) = lives.live(&mut Report::default()) {
                    noticed += 1;
                    let error = format!("{error:#}");
                    println!("  control, {lie:?}: {}", error.lines().next().unwrap_or_default());
                }
            }
            println!(
                "{}: control: a disk that loses synced bytes ({lie:?}) was noticed in {noticed} of {CONTROLS} runs",
                self.name
            );
            ensure!(noticed * 2 > CONTROLS, "noticed in {noticed} of {CONTROLS} runs only");
        }
        println!("{}: {:.1} s in all", self.name, began.elapsed().as_secs_f64());
        Ok(())
    }

    fn record(&self, scratch: &Scratch) -> Result<Recording> {
        let options = ClusterOptions {
            data_checksums: self.data_checksums,
            fsync: false,
            settings: [
                "autovacuum = off",
                "checkpoint_timeout = 1h",
                "max_wal_size = 16GB",
                "wal_keep_size = 16GB",
                "track_commit_timestamp = on",
                "allow_in_place_tablespaces = on",
                &format!("wal_compression = {}", self.wal_compression),
            ]
            .map(str::to_owned)
            .to_vec(),
            ..ClusterOptions::default()
        };
        Recording::make(scratch, "recorded", &options, self.prepare, self.work)
    }
}

/// A store that nothing has ever happened to.
struct Reference {
    directory: PathBuf,
    files: BTreeMap<String, Vec<u8>>,
    /// How many file calls it took that change or sync something.
    calls: u64,
}

impl Reference {
    fn make(scratch: &Scratch, recording: &Recording) -> Result<Self> {
        let directory = scratch.path().join("reference");
        recording.new_store(&directory)?;
        let attic = scratch.directory("reference-attic")?;
        let disk = LossyDisk::new(&attic, 0);
        let mut store = Store::open_on(Arc::new(disk.clone()), &config(&directory, 2, 100))?;
        recording.replay(store.replay_from(), |raw| {
            store.replay(raw)?;
            Ok(true)
        })?;
        store.wait_applied()?;
        store.consistency()?;
        store.close()?;
        Ok(Self { files: files_of(&directory)?, calls: disk.calls(), directory })
    }

    /// It is, as PostgreSQL itself says.
    fn ensure_identical_to_a_standby(
        &self,
        scratch: &Scratch,
        recording: &Recording,
    ) -> Result<()> {
        let (backup, end) = (recording.backup(), recording.last_checkpoint);
        let segment = recording.wal().path_of(end);
        let wal = segment.parent().context("segments lie in a directory")?;
        let standby = Standby::recover(scratch, "standby", backup, wal, end)?;
        let second;
        let free_space = if recording.data_checksums {
            second = Standby::recover_without_checksums(scratch, "second", backup, wal, end)?;
            &second
        } else {
            &standby
        };
        let comparison = Directories::new(&self.directory, &standby, free_space, end)?.compare()?;
        println!("the reference and a standby: {} pages", comparison.pages_compared());
        comparison.ensure_identical()
    }
}

fn config(directory: &Path, workers: usize, cache_pages: u64) -> StoreConfig {
    StoreConfig {
        data_directory: directory.to_owned(),
        workers,
        cache_bytes: cache_pages * BLOCK_SIZE as u64,
        // Each checkpoint of the leader, unless the one before is not done yet.
        restart_point_interval: Duration::ZERO,
        verify_images: false,
        rows: None,
    }
}

/// What ended the lives of all stores.
#[derive(Debug, Default)]
struct Report {
    runs: u64,
    cuts: u64,
    full: u64,
    failed: u64,
    failed_syncs: u64,
    losses: Losses,
    /// In the middle of which calls the power went.
    cut_calls: BTreeMap<String, u64>,
    restart_points: u64,
    differences: Differences,
    /// Pages of maps that were torn and are still, in stores that are sound.
    damaged_maps: u64,
}

impl Report {
    fn points(&self) -> u64 {
        self.cuts + self.full + self.failed + self.failed_syncs
    }

    fn ensure_in_flight(&self) -> Result<()> {
        let Losses { sectors, torn_pages, lengths, names } = self.losses;
        ensure!(
            sectors > 0 && torn_pages > 0 && lengths + names > 0,
            "nothing was in flight: {:?}",
            self.losses
        );
        ensure!(
            self.full > 0 && self.failed > 0 && self.failed_syncs > 0,
            "no disk was full or failed: {self}"
        );
        ensure!(self.restart_points > 0, "no life began at a restart point");
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Losses { sectors, torn_pages, lengths, names } = self.losses;
        writeln!(
            f,
            "{} points in {} runs: {} power cuts, {} full disks, {} failing disks, {} failing syncs; {} lives began behind the backup",
            self.points(),
            self.runs,
            self.cuts,
            self.full,
            self.failed,
            self.failed_syncs,
            self.restart_points
        )?;
        writeln!(
            f,
            "  lost in flight: {sectors} sectors, {lengths} lengths, {names} names; {torn_pages} pages torn"
        )?;
        let calls = self.cut_calls.iter().map(|(call, count)| format!("{call} {count}"));
        writeln!(f, "  cut in the middle of: {}", calls.collect::<Vec<_>>().join(", "))?;
        writeln!(f, "  {}", self.differences)?;
        write!(
            f,
            "  walferry verify: all sound; {} map pages torn and not touched since",
            self.damaged_maps
        )
    }
}

/// One store and its lives.
struct Lives<'a> {
    recording: &'a Recording,
    reference: &'a Reference,
    directory: PathBuf,
    disk: LossyDisk,
    random: StdRng,
    /// The end of the last record that any life was given.
    known_end: Lsn,
    story: Vec<String>,
}

/// How a life ends.
#[derive(Clone, Copy, Debug)]
enum End {
    PowerCut,
    /// In a call that is not a write: most are.
    PowerCutElsewhere,
    Fault(Fault),
}

impl<'a> Lives<'a> {
    fn new(
        scratch: &Scratch,
        recording: &'a Recording,
        reference: &'a Reference,
        seed: u64,
    ) -> Result<Self> {
        let directory = scratch.path().join("lives");
        let attic = scratch.path().join("lives-attic");
        for old in [&directory, &attic, &tablespaces_directory(&directory)] {
            if old.exists() {
                fs::remove_dir_all(old)?;
            }
        }
        fs::create_dir(&attic)?;
        recording.new_store(&directory)?;
        Ok(Self {
            recording,
            reference,
            directory,
            disk: LossyDisk::new(&attic, seed),
            random: StdRng::seed_from_u64(seed),
            known_end: Lsn::INVALID,
            story: Vec::new(),
        })
    }

    /// Lives on until a life is not cut short, or there were enough; then compares.
    fn live(&mut self, report: &mut Report) -> Result<()> {
        report.runs += 1;
        for _ in 0..LIVES_MAX {
            // In turn, so that each comes about however few points there are.
            let end = match report.points() % 12 {
                2 => End::Fault(Fault::NoSpace),
                5 => End::Fault(Fault::Io),
                8 => End::Fault(Fault::Sync),
                1 | 4 | 7 | 10 => End::PowerCutElsewhere,
                _ => End::PowerCut,
            };
            let calls = match self.random.random_range(0..4) {
                // At the beginning of a life.
                0 => self.random.random_range(0..40),
                _ if matches!(end, End::PowerCutElsewhere) => self.random.random_range(0..80),
                _ => self.random.random_range(0..self.reference.calls / 3),
            };
            match end {
                End::PowerCut => self.disk.crash_after(calls),
                End::PowerCutElsewhere => self.disk.crash_after_rare(calls),
                End::Fault(fault) => self.disk.fail_after(calls, fault),
            }
            let lived = self.one_life(report);
            self.story.push(match (&lived, self.disk.broken_call()) {
                (Ok(()), _) => format!("{end:?} after {calls} calls: came to its end"),
                (Err(error), Some((action, path))) => {
                    format!("{end:?} in {action} {}: {error:#}", path.display())
                }
                (Err(error), None) => format!("{end:?}: {error:#}"),
            });
            let broken = self.disk.broken_call();
            match (lived, end, broken) {
                (_, End::PowerCut | End::PowerCutElsewhere, Some((action, path))) => {
                    ensure!(self.disk.is_off(), "the power did not go");
                    report.cuts += 1;
                    let what = format!("{action} {}", self.kind_of(&path));
                    *report.cut_calls.entry(what).or_default() += 1;
                    report.losses += self.disk.crash(self.random.random())?;
                }
                // A fault that nobody noticed: it hit something that may be left undone.
                (Err(error), End::Fault(fault), Some(_)) => {
                    self.ensure_said(&error, fault)?;
                    self.disk.heal();
                    *(match fault {
                        Fault::NoSpace => &mut report.full,
                        Fault::Io => &mut report.failed,
                        Fault::Sync => &mut report.failed_syncs,
                    }) += 1;
                    // Now and then the power goes as well, before anybody comes to repair.
                    if self.random.random_range(0..2) == 0 {
                        report.losses += self.disk.crash(self.random.random())?;
                    }
                }
                (Ok(()), _, broken) => {
                    ensure!(broken.is_none(), "a failing call went unnoticed: {broken:?}");
                    self.disk.heal();
                    report.losses += self.disk.crash(self.random.random())?;
                    break;
                }
                (Err(error), _, _) => return Err(error),
            }
        }
        self.disk.heal();
        self.one_life(report).context("the last life")?;
        report.losses += self.disk.crash(self.random.random())?; // all is durable now
        report.differences += self.reference.compare(self.recording, &self.directory)?;
        report.damaged_maps += self.inspect().context("walferry verify --store")?;
        Ok(())
    }

    /// What `walferry verify --store` says of it: sound. Gives how many pages of maps were torn and
    /// not touched again.
    fn inspect(&self) -> Result<u64> {
        let inspection = with_patience(|| Inspection::begin(&self.directory))?;
        inspection.consistency()?;
        let findings = inspection.run(NonZero::<usize>::MIN, &AtomicU64::new(0))?;
        let damages = &findings.damages;
        let first = damages.listed().first().map(ToString::to_string).unwrap_or_default();
        ensure!(damages.count() == 0, "{} damages, the first: {first}", damages.count());
        Ok(findings.damaged_maps.count())
    }

    /// Opens the store, replays all there is, closes it.
    fn one_life(&mut self, report: &mut Report) -> Result<()> {
        let workers = self.random.random_range(1..=3);
        let cache_pages = self.random.random_range(20..300);
        let config = config(&self.directory, workers, cache_pages);
        let mut store = self.open(&config)?;
        if !store.pages_are_bounded() {
            store.set_consistent_after(self.known_end)?;
        }
        report.restart_points += u64::from(store.replay_from() > self.recording.redo);
        // Small batches now and then: more can be in flight at different places.
        let hand_over_every = self.random.random_range(1..2000);
        let mut records = 0_u64;
        self.recording.replay(store.replay_from(), |raw| {
            self.known_end = self.known_end.max(raw.end);
            store.replay(raw)?;
            records += 1;
            if records.is_multiple_of(hand_over_every) {
                store.hand_over()?;
            }
            Ok(true)
        })?;
        store.wait_applied()?;
        store.consistency()?;
        store.close()?;
        Ok(())
    }

    fn open(&self, config: &StoreConfig) -> Result<Store, OpenError> {
        with_patience(|| Store::open_on(Arc::new(self.disk.clone()), config))
    }

    fn ensure_said(&self, error: &anyhow::Error, fault: Fault) -> Result<()> {
        let text = format!("{error:#}");
        let errno = if fault == Fault::NoSpace { "os error 28" } else { "os error 5" };
        let names_the_file = text.contains(&format!("{}", self.directory.display()));
        ensure!(
            text.contains("cannot ") && names_the_file && text.contains(errno),
            "an error that does not say what failed: {text}"
        );
        Ok(())
    }

    /// What kind of file it is, for the report.
    fn kind_of(&self, path: &Path) -> String {
        let Ok(name) = path.strip_prefix(&self.directory) else { return "tablespaces".to_owned() };
        let name = name.to_string_lossy();
        let fork = ["_fsm", "_vm", "_init"].into_iter().find(|fork| name.contains(fork));
        match name.split_once('/') {
            None if name.is_empty() => "data directory".to_owned(),
            None => name.into_owned(),
            Some(_) if name.contains("pg_control") => "pg_control".to_owned(),
            Some((directory, _)) => format!("{directory}/*{}", fork.unwrap_or_default()),
        }
    }

    fn story(&self) -> String {
        self.story.join("\n")
    }
}

/// A program that another test starts in this moment has the files of this process, and with them
/// the last life's lock, until it runs.
fn with_patience<T>(open: impl Fn() -> Result<T, OpenError>) -> Result<T, OpenError> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match open() {
            Err(OpenError::Lock(LockError::Agent { .. })) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            opened => return opened,
        }
    }
}

/// What differs and may.
#[derive(Debug, Default)]
struct Differences {
    stores: u64,
    pages: u64,
    /// Pages of visibility maps that lack bits.
    visibility: u64,
    /// Pages of free space maps that know less, or differ in what is not a leaf.
    free_space: u64,
}

/// Where a free space map's page has its leaves: behind 4095 inner nodes.
const FREE_SPACE_LEAVES: usize = 28 + 4095;

impl std::ops::AddAssign for Differences {
    fn add_assign(&mut self, other: Self) {
        self.stores += other.stores;
        self.pages += other.pages;
        self.visibility += other.visibility;
        self.free_space += other.free_space;
    }
}

impl fmt::Display for Differences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} stores compared, {} pages: all equal but {} of visibility maps that lack bits, {} of free space maps",
            self.stores, self.pages, self.visibility, self.free_space
        )
    }
}

impl Reference {
    fn compare(&self, recording: &Recording, directory: &Path) -> Result<Differences> {
        let found = files_of(directory)?;
        let mut differences = Differences { stores: 1, ..Differences::default() };
        let mut wrong = Vec::new();
        let names: std::collections::BTreeSet<_> = self.files.keys().chain(found.keys()).collect();
        for name in names {
            let (Some(expected), Some(found)) = (self.files.get(name), found.get(name)) else {
                let who = if found.contains_key(name) { "too many" } else { "missing" };
                wrong.push(format!("{name}: {who}"));
                continue;
            };
            let pages = expected.len().max(found.len()).div_ceil(BLOCK_SIZE);
            differences.pages += pages as u64;
            for page in 0..pages {
                let (expected, found) = (page_of(expected, page), page_of(found, page));
                if expected == found {
                    continue;
                }
                let may_be_begun_anew = recording.data_checksums;
                if name.contains("_fsm")
                    && knows_less(found, expected, FREE_SPACE_LEAVES, may_be_begun_anew)
                {
                    differences.free_space += 1;
                } else if name.contains("_vm") && may_be_begun_anew && lacks(found, expected) {
                    differences.visibility += 1;
                } else {
                    wrong.push(format!(
                        "{name}, page {page}: {}",
                        first_difference(expected, found)
                    ));
                }
            }
        }
        if !wrong.is_empty() {
            let count = wrong.len();
            wrong.truncate(20);
            bail!("{count} differences:\n{}", wrong.join("\n"));
        }
        Ok(differences)
    }
}

/// A page of a file; zeros behind its end count as not there.
fn page_of(file: &[u8], page: usize) -> &[u8] {
    let bytes =
        &file[(page * BLOCK_SIZE).min(file.len())..((page + 1) * BLOCK_SIZE).min(file.len())];
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    &bytes[..end]
}

/// Whether the leaves of a free space map's page are the same or, if it may have been begun anew,
/// say nothing.
fn knows_less(found: &[u8], expected: &[u8], leaves: usize, may_be_begun_anew: bool) -> bool {
    let byte = |page: &[u8], at: usize| page.get(at).copied().unwrap_or_default();
    (leaves..BLOCK_SIZE).all(|at| {
        let found = byte(found, at);
        found == byte(expected, at) || found == 0 && may_be_begun_anew
    })
}

/// Whether a page of a visibility map has no bit that the other has not.
fn lacks(found: &[u8], expected: &[u8]) -> bool {
    const HEADER: usize = 24;
    let bits = |page: &[u8], at: usize| page.get(at).copied().unwrap_or_default();
    (HEADER..BLOCK_SIZE).all(|at| bits(found, at) & !bits(expected, at) == 0)
}

fn first_difference(expected: &[u8], found: &[u8]) -> String {
    let byte = |page: &[u8], at: usize| page.get(at).copied().unwrap_or_default();
    let differ = (0..BLOCK_SIZE).filter(|at| byte(expected, *at) != byte(found, *at));
    let lsn = |page: &[u8]| {
        let half =
            |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|offset| byte(page, at + offset)));
        Lsn(u64::from(half(0)) << 32 | u64::from(half(4)))
    };
    let at: Vec<_> = differ.clone().take(8).collect();
    format!("{} bytes differ, at {at:?}, LSN {} for {}", differ.count(), lsn(found), lsn(expected))
}

/// All files of a store but those that say who has it and when.
fn files_of(directory: &Path) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(current) = directories.pop() {
        for entry in fs::read_dir(&current)? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let name = path.strip_prefix(directory)?.to_string_lossy().into_owned();
            if ["postmaster.pid", "walferry.lock", "global/pg_control"].contains(&&*name) {
                continue;
            }
            files.insert(name, fs::read(&path)?);
        }
    }
    Ok(files)
}
