//! Databases, tablespaces, rewritten catalogs, sequences and bloom indexes: all that is more than
//! pages of relations in the default places, made while transactions run, followed, and found again
//! by a stock server.
//!
//! Leader and follower share a host. So a path of the leader's is a place where files are: whoever
//! uses it on the follower's side would write into the leader's tablespace, and be caught here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use integration::compare::{Comparison, digests_of};
use integration::{
    Agent, AgentConfig, Cluster, ClusterOptions, Endpoint, PATIENCE, Scratch, StopMode,
};
use walferry_store::tablespaces_directory;
use walfmt::Lsn;

#[test]
fn databases_tablespaces_and_catalogs_are_followed() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut cluster = ClusterOptions::default();
    cluster.settings.extend(
        ["allow_in_place_tablespaces = on", "autovacuum = off", "wal_level = logical"]
            .map(Into::into),
    );
    let mut leader = Cluster::start_new(&scratch, "leader", &cluster)?;
    leader.pgbench_init(1, &[])?;
    let location = |name: &str| scratch.directory(name);
    let early = location("early")?;
    run(&leader, &format!("create tablespace early location '{}'", early.display()))?;
    run(&leader, EARLY)?;
    let mut leader_agent = Agent::new(&scratch, AgentConfig::leader("leader1", &leader)?)?;
    leader_agent.start()?;
    let mut config = AgentConfig::follower("follower1", &scratch, &leader_agent)?;
    for (key, value) in [("restart_point_interval", "2s"), ("cache_bytes", "8MB")] {
        config.more.push(("store".into(), key.into(), value.into()));
    }
    let store = config.store.as_ref().context("a follower")?.data_directory.clone();
    let mut follower = Agent::new(&scratch, config)?;
    let load = leader.pgbench(&["-c", "2", "-R", "200", "-T", "600"])?;
    follower.bootstrap(&backup(&scratch, &leader, &early)?)?;
    follower.start()?;

    // With a slot, rewrites of catalogs leave mapping files.
    run(&leader, "select pg_create_logical_replication_slot('decoding', 'pgoutput')")?;
    let begin = leader.sql("select pg_current_wal_flush_lsn()")?;

    // All of it under load; the follower is killed where it hurts.
    let late = location("late")?;
    run(&leader, &format!("create tablespace late location '{}'", late.display()))?;
    run(&leader, LATE)?;
    run(&leader, "create database copied template source strategy file_copy")?;
    in_database(&leader, "source", "update t set v = v || ' changed after the copy'")?;
    in_database(&leader, "source", "create table only_in_source as select 1 as n")?;
    catch_up(&leader, &follower)?;
    follower.kill()?;
    in_database(
        &leader,
        "copied",
        "insert into t select g, 'in the copy' from generate_series(1, 500) g",
    )?;
    follower.start()?;
    run(&leader, MOVES)?;
    in_database(
        &leader,
        "moved",
        "insert into t select g, 'moved' from generate_series(1, 700) g",
    )?;
    run(&leader, CATALOGS)?;
    in_database(&leader, "logged", CATALOGS)?;
    run(&leader, "create database of_rewritten template logged strategy wal_log")?;
    run(&leader, SEQUENCES_AND_BLOOM)?;
    run(&leader, DROPS)?;
    catch_up(&leader, &follower)?;
    follower.kill()?;
    run(&leader, "create database last template source strategy file_copy tablespace late")?;
    follower.start()?;
    in_database(&leader, "last", "create table more as select g from generate_series(1, 3000) g")?;
    load.stop()?;
    catch_up(&leader, &follower)?;
    assert_eq!(follower.state_of("replay")?, "streaming");
    let end = leader.sql("select pg_current_wal_flush_lsn()")?;
    let arguments = ["-s", &begin, "-e", &end, "--stats=record"];
    let records = leader.waldump(&leader.wal_directory(), &arguments)?;
    let rewrites = records.lines().find(|line| line.trim().starts_with("Heap2/REWRITE"));
    let rewrites = rewrites.context("no catalog was rewritten with mappings")?;
    println!("{rewrites}");
    let count = rewrites.split_whitespace().nth(1).context("a count")?;
    ensure!(count.parse::<u32>()? > 0, "no mapping was written");

    // No link leads to the leader, and each of its directories has one.
    let links = links_of(&store)?;
    println!("links: {links:?}");
    assert_eq!(links.len(), 2, "early and late");
    let beside = tablespaces_directory(&store);
    assert!(links.iter().all(|(oid, to)| *to == beside.join(oid)), "{links:?}");
    assert_eq!(fs::read_dir(&beside)?.count(), 2, "what was dropped is gone");

    // A server that takes over would create a tablespace again that is not covered by a restart
    // point, where the leader has it: that is refused, and the leader's files are as they were.
    let latest = location("latest")?;
    run(&leader, "checkpoint")?;
    run(&leader, &format!("create tablespace latest location '{}'", latest.display()))?;
    run(
        &leader,
        "create table in_latest tablespace latest as select g from generate_series(1, 9) g",
    )?;
    catch_up(&leader, &follower)?;
    let before = tree_of(&latest)?;
    let refused = follower.verb("promote", &["--leader-is-dead"])?;
    println!("exit {:?}: {}", refused.exit, refused.stderr.trim());
    assert_eq!(refused.exit, Some(1));
    let words = ["creation of tablespace", &*latest.to_string_lossy(), "empty"];
    assert!(words.iter().all(|word| refused.stderr.contains(word)), "{}", refused.stderr);
    assert_eq!(tree_of(&latest)?, before);
    assert_eq!(follower.state_of("replay")?, "streaming");
    run(&leader, "checkpoint")?;
    catch_up(&leader, &follower)?;

    let expected = digests_of(leader.endpoint())?;
    let facts = Facts::of(leader.endpoint())?;
    leader_agent.stop()?;
    leader.stop(StopMode::Fast)?;
    let leaders_trees: Vec<_> =
        [&early, &late, &latest].map(|path| tree_of(path)).into_iter().collect();
    let promoted = follower.promote("promoted", &["--leader-is-dead"])?;
    let comparison = Comparison::between(expected.clone(), digests_of(promoted.endpoint())?);
    println!("{comparison}");
    assert!(comparison.all_equal());
    let names: Vec<_> = expected.keys().filter_map(|name| name.split('.').next()).collect();
    for database in ["copied", "moved", "logged", "of_rewritten", "source", "last", "postgres"] {
        assert!(names.contains(&database), "no table of {database} was compared");
    }
    facts.compare(promoted.endpoint())?;

    // All catalogs are found, their indexes fit, and every tablespace can be used.
    for database in promoted.sql("select datname from pg_database where datallowconn")?.lines() {
        let checked = promoted.endpoint().sql_in(
            database,
            "create extension if not exists amcheck;
             select count(bt_index_check(c.oid, true)) from pg_class c join pg_am a on a.oid = relam
             where amname = 'btree' and relkind = 'i' and relpersistence = 'p'",
        )?;
        println!("{database}: {checked} indexes checked");
        ensure!(checked.parse::<u32>()? > 100);
    }
    for tablespace in ["early", "early_in_place", "late", "late_in_place", "latest"] {
        let sql = format!(
            "create table promoted_{tablespace} tablespace {tablespace} as select 1 as n;
             insert into unlogged_{tablespace} values (1);
             select pg_tablespace_location(oid) from pg_tablespace where spcname = '{tablespace}'",
        );
        let found = promoted.sql(&sql.replace("insert into unlogged_latest values (1);", ""))?;
        let in_place = tablespace.ends_with("in_place");
        assert_eq!(in_place, !found.starts_with(&*beside.to_string_lossy()), "{found}");
    }
    let trees: Vec<_> = [&early, &late, &latest].map(|path| tree_of(path)).into_iter().collect();
    assert_eq!(format!("{trees:?}"), format!("{leaders_trees:?}"), "the leader's directories");

    // The control: one changed row in a copied database is noticed.
    promoted
        .endpoint()
        .sql_in("copied", "update t set v = 'x' where ctid = (select min(ctid) from t)")?;
    let mut spoiled = Comparison::between(expected, digests_of(promoted.endpoint())?);
    spoiled.tables.retain(|table| !table.name.contains("promoted_"));
    assert_eq!(spoiled.different(), 1, "{spoiled}");
    Ok(())
}

const EARLY: &str = "
    create tablespace early_in_place location '';
    create table in_early (n int primary key, v text) tablespace early;
    insert into in_early select g, repeat('e', 100) from generate_series(1, 5000) g;
    create table in_early_in_place tablespace early_in_place as select g from generate_series(1, 5000) g;
    create unlogged table unlogged_early (n int) tablespace early;
    create unlogged table unlogged_early_in_place (n int) tablespace early_in_place;
    insert into unlogged_early select generate_series(1, 1000);
    create database source tablespace early;
    create database doomed_early tablespace early_in_place;
    \\c source
    create table t (n int, v text);
    insert into t select g, 'source' from generate_series(1, 4000) g;
    create index on t (n);";

const LATE: &str = "
    create tablespace late_in_place location '';
    create table in_late (n int primary key, v text) tablespace late;
    insert into in_late select g, repeat('l', 80) from generate_series(1, 5000) g;
    create table in_late_in_place tablespace late_in_place as select g from generate_series(1, 3000) g;
    create unlogged table unlogged_late (n int) tablespace late;
    create unlogged table unlogged_late_in_place (n int primary key) tablespace late_in_place;
    update in_early set v = v || 'u' where n % 3 = 0;
    alter table in_early set tablespace late;
    create index on in_early (v) tablespace early;
    create database logged template source strategy wal_log;
    create database moved template source strategy file_copy tablespace late_in_place;
    create database doomed tablespace late strategy file_copy;
    create database doomed_logged tablespace late strategy wal_log;";

/// A database that moves about, changed in between.
const MOVES: &str = "
    alter database moved set tablespace late;
    \\c moved
    update t set n = n + 1;
    \\c postgres
    alter database moved set tablespace early_in_place;
    \\c moved
    delete from t where n % 5 = 0;
    vacuum t;
    \\c postgres
    alter database moved set tablespace pg_default;
    alter database logged set tablespace late;";

const CATALOGS: &str = "
    vacuum full pg_class;
    vacuum full pg_attribute;
    vacuum full pg_database;
    reindex table pg_class;
    reindex table pg_authid;
    cluster pg_type using pg_type_oid_index;
    create table after_rewrite (n int primary key, v text);
    insert into after_rewrite select g, 'r' from generate_series(1, 2000) g;
    vacuum full pg_class;";

const SEQUENCES_AND_BLOOM: &str = "
    create sequence counting increment by 7 cache 5;
    select nextval('counting') from generate_series(1, 100);
    create table counted (id bigserial primary key, a int, b int);
    insert into counted (a, b) select g % 100, g % 77 from generate_series(1, 9000) g;
    select setval('counting', 12345);
    create unlogged sequence unlogged_counting;
    create extension bloom;
    create index counted_bloom on counted using bloom (a, b) tablespace late;
    delete from counted where id % 4 = 0;
    vacuum counted;
    insert into counted (a, b) select g % 100, g % 77 from generate_series(1, 6000) g;";

const DROPS: &str = "
    drop database doomed;
    drop database doomed_early;
    drop database doomed_logged;
    create tablespace gone_in_place location '';
    create table gone tablespace gone_in_place as select 1 as n;
    drop table gone;
    drop tablespace gone_in_place;
    delete from in_late where n > 100;
    vacuum in_late;
    insert into in_late select g, 'again' from generate_series(6000, 7000) g;
    truncate in_late_in_place;
    insert into in_late_in_place select generate_series(1, 50);";

/// A script, one transaction per statement.
fn run(leader: &Cluster, script: &str) -> Result<()> {
    in_database(leader, "postgres", script)
}

fn in_database(leader: &Cluster, database: &str, script: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    fs::write(file.path(), script)?;
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    fs::set_permissions(file.path(), permissions)?;
    leader.endpoint().sql_file(database, file.path()).map(drop)
}

/// A plain base backup. Its tablespace with a location must go elsewhere, on the same host.
fn backup(scratch: &Scratch, leader: &Cluster, early: &Path) -> Result<PathBuf> {
    let backup = scratch.path().join("backup");
    let elsewhere = scratch.path().join("backup-of-early");
    let mut command = leader.endpoint().command("pg_basebackup");
    command.arg("-D").arg(&backup).args(["-c", "fast", "--no-sync", "-X", "stream", "-T"]);
    command.arg(format!("{}={}", early.display(), elsewhere.display()));
    let output = command.output().context("pg_basebackup")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(backup)
}

fn catch_up(leader: &Cluster, follower: &Agent) -> Result<()> {
    let end: Lsn = leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
    follower.wait_replayed(end, PATIENCE).with_context(|| follower.log_tail(20))
}

fn links_of(store: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let mut links = BTreeMap::new();
    for entry in fs::read_dir(store.join("pg_tblspc"))? {
        let entry = entry?;
        if entry.file_type()?.is_symlink() {
            let name = entry.file_name().into_string().ok().context("a name")?;
            links.insert(name, fs::read_link(entry.path())?);
        }
    }
    Ok(links)
}

/// All files of a directory, with their lengths and times.
fn tree_of(directory: &Path) -> Result<BTreeMap<PathBuf, (u64, std::time::SystemTime)>> {
    let mut files = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        for entry in fs::read_dir(&directory)? {
            let path = entry?.path();
            let metadata = fs::symlink_metadata(&path)?;
            if metadata.is_dir() {
                pending.push(path.clone());
            }
            files.insert(path, (metadata.len(), metadata.modified()?));
        }
    }
    Ok(files)
}

/// What the comparison of tables leaves out.
struct Facts {
    /// By name, what a sequence's row says.
    sequences: BTreeMap<String, i64>,
    /// Rows found through the bloom index.
    bloom: String,
    databases: String,
}

const BLOOM: &str = "select count(*), sum(id) from counted where a = 42 and b = 7";
const NO_SCANS: &str = "set enable_seqscan = off; set enable_indexscan = off;";
const DATABASES: &str = "
    select string_agg(datname || ' in ' || spcname, ', ' order by datname)
    from pg_database join pg_tablespace t on t.oid = dattablespace";

impl Facts {
    fn of(server: &Endpoint) -> Result<Self> {
        let mut sequences = BTreeMap::new();
        for name in ["counting", "counted_id_seq"] {
            let row = server.sql(&format!("select last_value from {name}"))?;
            sequences.insert(name.to_owned(), row.parse()?);
        }
        let plan = server.sql(&format!("{NO_SCANS} explain {BLOOM}"))?;
        ensure!(plan.contains("counted_bloom"), "{plan}");
        let bloom = server.sql(&format!("{NO_SCANS} {BLOOM}"))?;
        Ok(Self { sequences, bloom, databases: server.sql(DATABASES)? })
    }

    /// A sequence is logged up to 32 fetches ahead.
    fn compare(&self, server: &Endpoint) -> Result<()> {
        let found = Self::of(server)?;
        println!("sequences {:?} here, {:?} there", found.sequences, self.sequences);
        for (name, there) in &self.sequences {
            let ahead = found.sequences[name] - there;
            ensure!((0..=32 * 7 * 5).contains(&ahead), "{name} is {ahead} ahead");
        }
        println!("bloom index: {}; databases: {}", found.bloom, found.databases);
        ensure!(found.bloom == self.bloom && found.databases == self.databases);
        Ok(())
    }
}
