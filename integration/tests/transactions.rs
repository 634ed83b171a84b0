//! What is kept about transactions outside of pages: a follower's is that of a real standby, byte
//! for byte, and a server that takes the follower over goes on with it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use integration::command::output_of;
use integration::identical::Directories;
use integration::standby::{Standby, control_file};
use integration::{Binaries, Cluster, ClusterOptions, Endpoint, PATIENCE, Pair, Scratch, StopMode};
use walfmt::relation::BLOCK_SIZE;
use walfmt::replication_state;
use walfmt::slru::{COMMIT_TS_ENTRY_SIZE, EntryPosition, PAGES_PER_SEGMENT, segment_number};
use walfmt::{Lsn, TransactionId};

/// What is compared, and excluded by [`Files::read`].
const DIRECTORIES: [&str; 6] = [
    "pg_xact",
    "pg_multixact/offsets",
    "pg_multixact/members",
    "pg_commit_ts",
    "pg_twophase",
    "pg_logical",
];

/// Rows enough that each of them in a multixact of its own fills more than a page of each SLRU.
const ROWS: u32 = 5000;

#[test]
fn transactions_are_those_of_a_standby_and_go_on_after_a_promotion() -> Result<()> {
    let scratch = Scratch::new()?;
    let options = quiet(&["wal_keep_size = 4GB"]);
    let store_settings = [("restart_point_interval", "1ms"), ("cache_bytes", "8MB")];
    let mut pair = Pair::start_prepared(&scratch, &options, &store_settings, |leader| {
        create_held(leader)?;
        leader.sql("create table counted (id int)")?;
        leader.sql("create table dropped as select generate_series(1, 1000)")?;
        leader.sql("select pg_replication_origin_create('here before')")?;
        from_origin(leader.endpoint(), "here before", "0/100", "insert into counted values (0)")?;
        prepared(leader.endpoint(), "before the backup", "insert into counted values (1)")
    })?;

    println!("commit timestamps are off");
    let leader = pair.leader.endpoint().clone();
    prepared(&leader, "holder", "select count(*) from (select from held for key share) x")?;
    multixacts(&leader)?;
    prepared(&leader, "committed", "create table born (id int); drop table dropped")?;
    prepared(&leader, "aborted", "create table unborn (id int); insert into unborn values (1)")?;
    prepared(&leader, "many", "select subtransactions(100)")?;
    leader.sql("select pg_replication_origin_create('a')")?;
    leader.sql("select pg_replication_origin_create('b')")?;
    from_origin(&leader, "a", "0/1000", "insert into held values (100001)")?;
    leader.sql("select pg_replication_origin_advance('b', '1/2000')")?;
    leader.sql("checkpoint")?;
    pair.catch_up(PATIENCE)?;
    pair.follower.stop()?;
    let files = Files::read(pair.store())?;
    println!("{} prepared transactions have files", files.count("pg_twophase"));
    ensure!(files.count("pg_twophase") == 5, "{:?}", files.0.keys());
    pair.follower.start()?;
    leader.sql("rollback prepared 'aborted'")?;
    leader.sql("commit prepared 'many'")?;

    println!("commit timestamps are on");
    restart(&mut pair, "on")?;
    let leader = pair.leader.endpoint().clone();
    multixacts(&leader)?;
    from_origin(&leader, "a", "0/3000", "insert into held values (100002)")?;
    leader.sql("checkpoint")?;
    pair.catch_up(PATIENCE)?;
    pair.follower.stop()?;
    let files = Files::read(pair.store())?;
    ensure!(files.count("pg_commit_ts") > 0, "no commit timestamps: {:?}", files.0.keys());
    pair.follower.start()?;
    // After a checkpoint, but before its prepared transactions end: a kill rewinds over the end.
    leader.sql("commit prepared 'committed'")?;
    leader.sql("select pg_replication_origin_advance('b', '1/3000')")?;
    pair.catch_up(PATIENCE)?;
    pair.follower.kill()?;
    pair.follower.start()?;

    println!("commit timestamps are off again");
    restart(&mut pair, "off")?;
    let leader = pair.leader.endpoint().clone();
    leader.sql("insert into held values (100003)")?;
    leader.sql("select pg_replication_origin_drop('here before')")?;
    pair.catch_up(PATIENCE)?;
    pair.follower.stop()?;
    let files = Files::read(pair.store())?;
    ensure!(files.count("pg_commit_ts") == 0, "commit timestamps: {:?}", files.0.keys());
    pair.follower.start()?;

    println!("commit timestamps are on again");
    restart(&mut pair, "on")?;
    let leader = pair.leader.endpoint().clone();
    multixacts(&leader)?;
    prepared(&leader, "brief", "insert into held values (100004)")?;
    leader.sql("commit prepared 'brief'")?;
    prepared(
        &leader,
        "open at the end",
        "insert into held values (100005); select subtransactions(70)",
    )?;
    from_origin(&leader, "a", "0/4000", "insert into held values (100006)")?;
    let sql = "insert into held values (100007); prepare transaction 'from a'";
    from_origin(&leader, "a", "0/5000", sql)?;
    leader.sql("select pg_logical_emit_message(true, 'prefix', 'contents')")?;
    pair.catch_up(PATIENCE)?;
    pair.follower.kill()?;
    pair.follower.start()?;
    pair.catch_up(PATIENCE)?;

    let newest_xid = leader.sql("select xid from pg_last_committed_xact()")?.parse()?;
    let seen = Seen::by(&leader, newest_xid)?;
    let (checkpoint, standby) = end_beside_a_standby(&scratch, &mut pair)?;
    let backup = Pair::backup(&scratch);
    compare(
        &Files::read(&backup)?,
        &Files::read(pair.store())?,
        &Files::read(standby.directory())?,
    )?;

    everything_else(&pair, &standby, checkpoint)?;

    // Its settings are those of the backup; with timestamps off a server removes all of them.
    let configuration = pair.store().join("postgresql.conf");
    let text = fs::read_to_string(&configuration)?;
    fs::write(&configuration, text + "track_commit_timestamp = on\n")?;
    pair.follower.start()?;
    let promoted = pair.follower.promote("promoted", &["--leader-is-dead"])?;
    let promoted = promoted.endpoint();
    let now = Seen::by(promoted, newest_xid)?;
    println!("the promoted server sees {now}");
    ensure!(now == seen, "the leader saw {seen}");
    promoted.sql("rollback prepared 'holder'")?;
    for name in ["before the backup", "open at the end", "from a"] {
        promoted.sql(&format!("commit prepared '{name}'"))?;
    }
    let rows = "select string_agg(id::text, ' ' order by id) from held where id > 100000";
    let expected = "100001 100002 100003 100004 100005 100006 100007";
    ensure!(promoted.sql(rows)? == expected, "rows {}", promoted.sql(rows)?);
    ensure!(promoted.sql("select count(*) from pg_prepared_xacts")? == "0");
    // Rows that multixacts hold are free when those who held them have ended.
    promoted.sql("update held set v = v + 1")?;
    ensure!(promoted.sql("select count(*) from pg_class where relname = 'unborn'")? == "0");
    Ok(())
}

/// Without checksums a standby keeps all of its free space maps, which are compared too. The
/// server's own checkpoints and vacuums would come at another time in each run.
fn quiet(more: &[&str]) -> ClusterOptions {
    let mut options = ClusterOptions { data_checksums: false, ..ClusterOptions::default() };
    let settings = ["autovacuum = off", "checkpoint_timeout = 1h"];
    options.settings.extend(settings.iter().chain(more).map(|line| (*line).to_owned()));
    options
}

fn create_held(leader: &Cluster) -> Result<()> {
    leader
        .sql(&format!(
            "create table held (id int primary key, v int not null default 0);
             insert into held select generate_series(1, {ROWS})"
        ))
        .map(drop)
}

/// A cluster of a certain age: what came before is frozen, and its segments are removed.
#[test]
fn segments_that_nobody_needs_go() -> Result<()> {
    let scratch = Scratch::new()?;
    let options = quiet(&["track_commit_timestamp = on"]);
    let store_settings = [("restart_point_interval", "1ms"), ("cache_bytes", "8MB")];
    let mut pair = Pair::start_prepared(&scratch, &options, &store_settings, |leader| {
        create_held(leader)?;
        leader.sql("update pg_database set datallowconn = true")?;
        leader.stop(StopMode::Fast)?;
        grow_old(&scratch, leader)?;
        leader.start()
    })?;
    let leader = pair.leader.endpoint().clone();
    prepared(&leader, "holder", "select count(*) from (select from held for key share) x")?;
    multixacts(&leader)?;
    leader.sql("rollback prepared 'holder'")?;
    pair.catch_up(PATIENCE)?;
    pair.follower.stop()?;
    pair.follower.start()?;
    for database in ["postgres", "template1", "template0"] {
        leader.sql_in(database, "vacuum freeze")?;
    }
    leader.sql("checkpoint")?;
    leader.sql("insert into held values (0)")?;
    pair.catch_up(PATIENCE)?;
    // Replay from before the truncation writes to segments that are gone.
    pair.follower.kill()?;
    pair.follower.start()?;

    let (checkpoint, standby) = end_beside_a_standby(&scratch, &mut pair)?;
    let backup = Files::read(&Pair::backup(&scratch))?;
    let store = Files::read(pair.store())?;
    let differences = store.differences(&Files::read(standby.directory())?);
    ensure!(differences.is_empty(), "{differences:#?}");
    everything_else(&pair, &standby, checkpoint)?;
    for slru in ["pg_xact", "pg_multixact/offsets", "pg_multixact/members", "pg_commit_ts"] {
        let names = |files: &Files| -> Vec<String> {
            files.0.keys().filter(|name| name.starts_with(slru)).cloned().collect()
        };
        println!("{:?} were left of {:?}", names(&store), names(&backup));
        let first = format!("{slru}/0000");
        ensure!(backup.0.contains_key(&first) && !store.0.contains_key(&first), "{first}");
        ensure!(!names(&store).is_empty(), "{slru} is empty");
    }
    Ok(())
}

/// As if two million transactions and two hundred thousand multixacts had been, whose segments are
/// gone but for the first and the last.
fn grow_old(scratch: &Scratch, server: &Cluster) -> Result<()> {
    let binaries = Binaries::find()?;
    let mut reset = scratch.account().command(binaries.program("pg_resetwal"));
    reset.args(["-x", "2000000", "-m", "200000,1", "-O", "400000", "-D"]);
    output_of(reset.arg(server.data_directory()))?;
    for segment in ["pg_xact/0001", "pg_multixact/offsets/0003", "pg_multixact/members/0007"] {
        let mut zeros = scratch.account().command("truncate");
        let length = (PAGES_PER_SEGMENT * BLOCK_SIZE as u64).to_string();
        output_of(zeros.args(["-s", &length]).arg(server.data_directory().join(segment)))?;
    }
    Ok(())
}

/// Stops the leader, the follower at the leader's shutdown checkpoint, and gives a standby that
/// stopped there, too.
fn end_beside_a_standby(scratch: &Scratch, pair: &mut Pair) -> Result<(Lsn, Standby)> {
    pair.leader.stop(StopMode::Fast)?;
    let checkpoint = control_file(pair.leader.data_directory())?.check_point;
    pair.follower.wait_replayed(checkpoint.advance(1), PATIENCE)?;
    pair.follower.stop()?;
    pair.leader_agent.stop()?;
    ensure!(
        control_file(pair.store())?.check_point == checkpoint,
        "the store's last restart point is not the leader's shutdown checkpoint"
    );
    let wal = pair.leader.wal_directory();
    let standby = Standby::recover(scratch, "standby", &Pair::backup(scratch), &wal, checkpoint)?;
    Ok((checkpoint, standby))
}

/// What is not about transactions is compared too; of commit times see [`Files::read`].
fn everything_else(pair: &Pair, standby: &Standby, checkpoint: Lsn) -> Result<()> {
    let comparison = Directories::new(pair.store(), standby, standby, checkpoint)?.compare()?;
    println!("{comparison}");
    let unexpected =
        comparison.told.iter().find(|difference| !difference.file.starts_with("pg_commit_ts/"));
    ensure!(unexpected.is_none(), "{unexpected:?}");
    Ok(())
}

/// Starts the server anew, with another `track_commit_timestamp`.
fn restart(pair: &mut Pair, track_commit_timestamp: &str) -> Result<()> {
    pair.leader.stop(StopMode::Fast)?;
    let setting = format!("track_commit_timestamp = {track_commit_timestamp}");
    pair.leader.configure(&[setting])?;
    pair.leader.start()?;
    pair.catch_up(PATIENCE).map(drop)
}

/// Each row gets a multixact of its own: the subtransaction that locks it is one of its members.
fn multixacts(server: &Endpoint) -> Result<()> {
    server.sql(&format!(
        "do $$ begin
             for row in 1 .. {ROWS} loop
                 begin
                     perform from held where id = row for key share;
                 exception when division_by_zero then null;
                 end;
             end loop;
         end $$"
    ))?;
    Ok(())
}

fn prepared(server: &Endpoint, name: &str, sql: &str) -> Result<()> {
    server.sql(
        "create or replace function subtransactions(count int) returns void language plpgsql as
         'begin for i in 1 .. count loop begin
             insert into held values (200000 + i); delete from held where id = 200000 + i;
          exception when division_by_zero then null; end; end loop; end'",
    )?;
    server.sql(&format!("begin; {sql}; prepare transaction '{name}'")).map(drop)
}

/// A transaction that comes from a replication origin, where it ended at `lsn`.
fn from_origin(server: &Endpoint, origin: &str, lsn: &str, sql: &str) -> Result<()> {
    let end = if sql.contains("prepare transaction") { "" } else { "; commit" };
    server.sql(&format!(
        "select pg_replication_origin_session_setup('{origin}');
         begin;
         select pg_replication_origin_xact_setup('{lsn}', '2020-02-20 20:20:20+00');
         {sql}{end}"
    ))?;
    Ok(())
}

/// What SQL tells of transactions.
#[derive(Debug, PartialEq, Eq)]
struct Seen(Vec<(&'static str, String)>);

impl Seen {
    fn by(server: &Endpoint, newest_xid: u32) -> Result<Self> {
        let questions = [
            (
                "prepared transactions",
                "select string_agg(gid, ', ' order by gid) from pg_prepared_xacts",
            ),
            (
                "members of multixacts",
                "select count(*) || ' ' || md5(string_agg(m::text, ' ' order by h.id, m::text))
                 from held h, pg_get_multixact_members(h.xmax) m
                 where h.xmax::text::bigint > 0 and h.id <= 5000",
            ),
            (
                "commit times",
                &format!(
                    "select count(t.timestamp) || ' ' || sum(t.roident::text::int) || ' '
                         || md5(string_agg(t.timestamp::text, ' ' order by x))
                     from generate_series({newest_xid} - 4000, {newest_xid}) x,
                     lateral pg_xact_commit_timestamp_origin(x::text::xid) t"
                ),
            ),
            (
                "origins",
                "select string_agg(external_id || ' ' || remote_lsn, ', ' order by external_id)
                 from pg_show_replication_origin_status()",
            ),
        ];
        let answer = |(what, sql): (&'static str, &str)| {
            let answer = server.sql(sql).context(what)?;
            Ok((what, answer))
        };
        questions.into_iter().map(answer).collect::<Result<_>>().map(Self)
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|(what, answer)| write!(f, "\n  {what}: {answer}"))
    }
}

/// The files of [`DIRECTORIES`], by name, as far as they say something.
struct Files(BTreeMap<String, Vec<u8>>);

impl Files {
    /// Left out is what a standby keeps by chance:
    /// - zeros at a file's end;
    /// - commit times from before they were last switched on, which nobody reads. A standby writes
    ///   them again if the page was in its memory when its file was removed;
    /// - the order of origins, which depends on when who was started anew.
    fn read(data_directory: &Path) -> Result<Self> {
        let oldest = control_file(data_directory)?.check_point_copy.oldest_commit_ts_xid;
        let mut files = BTreeMap::new();
        for directory in DIRECTORIES {
            let entries = fs::read_dir(data_directory.join(directory));
            for entry in entries.with_context(|| format!("{directory} is missing"))? {
                let path = entry?.path();
                if path.is_dir() {
                    continue;
                }
                let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
                let mut bytes = fs::read(&path)?;
                match directory {
                    "pg_commit_ts" => forget_older(&mut bytes, name, oldest)?,
                    "pg_logical" => {
                        let mut states = replication_state::read_file(&bytes)?;
                        states.sort_by_key(|state| state.origin);
                        bytes = replication_state::to_file(states);
                    }
                    _ => {}
                }
                if directory != "pg_twophase" && directory != "pg_logical" {
                    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
                    bytes.truncate(used);
                }
                files.insert(format!("{directory}/{name}"), bytes);
            }
        }
        Ok(Self(files))
    }

    fn count(&self, directory: &str) -> usize {
        self.0.keys().filter(|name| name.starts_with(directory)).count()
    }

    fn differences(&self, other: &Self) -> Vec<String> {
        let names: std::collections::BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        let difference = |name: &&String| match (self.0.get(*name), other.0.get(*name)) {
            (Some(ours), Some(theirs)) => {
                let at = (0..ours.len().max(theirs.len()))
                    .find(|at| ours.get(*at) != theirs.get(*at))?;
                let (here, there) = (ours.get(at), theirs.get(at));
                Some(format!("{name}: byte {at} is {here:02x?}, in the standby {there:02x?}"))
            }
            (None, _) => Some(format!("{name} is missing")),
            (_, None) => Some(format!("{name} is not in the standby")),
        };
        names.iter().filter_map(difference).collect()
    }
}

/// Clears entries of a segment of `pg_commit_ts` that are older than `oldest`.
fn forget_older(segment: &mut [u8], name: &str, oldest: TransactionId) -> Result<()> {
    ensure!(oldest.is_normal(), "commit times are kept, and there is no oldest one");
    let first_page = segment_number(name).context("a segment")? * PAGES_PER_SEGMENT;
    let first = EntryPosition::of_commit_ts(oldest);
    for (number, page) in (first_page..).zip(segment.chunks_mut(BLOCK_SIZE)) {
        let older = match number.cmp(&first.page) {
            std::cmp::Ordering::Less => page.len(),
            std::cmp::Ordering::Equal => first.byte,
            std::cmp::Ordering::Greater => 0,
        };
        ensure!(older % COMMIT_TS_ENTRY_SIZE == 0 || older == BLOCK_SIZE);
        page[..older].fill(0);
    }
    Ok(())
}

/// Holds the store's files against the standby's; the backup's say what was in flight.
fn compare(backup: &Files, store: &Files, standby: &Files) -> Result<()> {
    let differences = store.differences(standby);
    ensure!(differences.is_empty(), "{differences:#?}");
    for (name, bytes) in &store.0 {
        println!("{name}: {} bytes are the standby's", bytes.len());
    }
    let changed = store.differences(backup);
    println!("{} of {} files are not as in the backup", changed.len(), store.0.len());
    for name in DIRECTORIES {
        let in_flight = changed.iter().any(|change| change.starts_with(name));
        ensure!(in_flight, "nothing was written to {name}");
    }
    ensure!(store.count("pg_twophase") == 4, "prepared transactions: {:?}", store.0.keys());
    let pages = |name: &str| store.0.get(name).map_or(0, |bytes| bytes.len() / BLOCK_SIZE);
    for slru in ["pg_multixact/offsets/0000", "pg_multixact/members/0000"] {
        ensure!(pages(slru) > 2, "{slru} has no page borders");
    }
    ensure!(pages("pg_commit_ts/0000") > 2, "commit times have no page borders");

    // The control: one bit of each file.
    for (name, bytes) in &store.0 {
        let mut spoiled = bytes.clone();
        let middle = spoiled.len() / 2;
        spoiled[middle] ^= 1;
        let mut files = store.0.clone();
        files.insert(name.clone(), spoiled);
        let found = Files(files).differences(standby);
        ensure!(found.len() == 1 && found[0].starts_with(name), "{name}: {found:?}");
    }
    println!("one flipped bit in each of {} files was found", store.0.len());
    Ok(())
}
