//! What is told of sequences is what they are: a stock standby that has replayed the same WAL says so.
//!
//! ```text
//!  steps ─► leader ─► agent ─► follower ─► walferry decode --after ... ─► last told of each sequence
//!             └─ streaming ─► standby ─► select last_value, log_cnt, is_called ──┘ the same
//! ```
//!
//! The leader would be no judge: `nextval` writes to WAL what the sequence will be 32 values later
//! (`SEQ_LOG_VALS` in `src/backend/commands/sequence.c`), so that a standby's `last_value` is the leader's
//! and `log_cnt` increments.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use integration::binaries::Binaries;
use integration::command::output_of;
use integration::process::wait_until;
use integration::{Cluster, ClusterOptions, PATIENCE, Pair, Scratch};
use serde_json::Value;

/// Before rows are captured.
const BEFORE: &str = "create sequence untouched; create sequence early; select nextval('early'); \
    create table old_serial (id serial primary key, note text); insert into old_serial (note) values ('a')";

/// What is done, and what it should have told.
struct Step {
    name: &'static str,
    sql: &'static str,
    expect: Expect,
}

/// What a step does to the names of sequences: of that alone nothing is told.
enum Expect {
    /// Nothing.
    Same,
    /// These have other names now: old and new.
    Renamed(&'static [(&'static str, &'static str)]),
    /// These are gone.
    Dropped(&'static [&'static str]),
}

const fn step(name: &'static str, sql: &'static str) -> Step {
    Step { name, sql, expect: Expect::Same }
}

const STEPS: &[Step] = &[
    // One that everybody knows: at once, whatever becomes of the transaction.
    step("the first value", "select nextval('early')"),
    step("more than was logged", "select nextval('early') from generate_series(1, 100)"),
    step("committed", "begin; select nextval('early') from generate_series(1, 40); commit"),
    step("rolled back", "begin; select nextval('early') from generate_series(1, 40); rollback"),
    step(
        "in a savepoint without a number",
        "begin; savepoint a; select nextval('early') from generate_series(1, 40); commit",
    ),
    step(
        "in a savepoint, rolled back",
        "begin; savepoint a; create table gone (); select nextval('early') from generate_series(1, 40); \
         rollback to a; commit",
    ),
    step("setval", "select setval('early', 1000)"),
    step("setval, not called", "select setval('early', 2000, false)"),
    step("setval, rolled back", "begin; select setval('early', 3000); rollback"),
    step("after a checkpoint", "select nextval('early')"),
    // New ones: with their transaction.
    step("created", "create sequence s1"),
    step("created and used", "begin; create sequence s2 start 50; select nextval('s2'); commit"),
    step(
        "created, rolled back",
        "begin; create sequence never1; select nextval('never1'); rollback",
    ),
    step(
        "used in a savepoint without a number",
        "begin; create sequence s3; savepoint a; select nextval('s3'); release a; commit",
    ),
    step(
        "used in a savepoint without a number, rolled back",
        "begin; create sequence s4; savepoint a; select nextval('s4'); rollback to a; commit",
    ),
    step(
        "used in a savepoint, rolled back",
        "begin; create sequence s5; savepoint a; create table gone (); select nextval('s5'); \
         rollback to a; commit",
    ),
    step(
        "created in a savepoint, used outside",
        "begin; savepoint a; create sequence s6; release a; select nextval('s6'); commit",
    ),
    step(
        "created in a savepoint, rolled back",
        "begin; create table t6 (); savepoint a; create sequence never2; savepoint b; \
         select nextval('never2'); rollback to a; commit",
    ),
    step(
        "created, used in savepoints, rolled back",
        "begin; create sequence never3; savepoint a; select nextval('never3'); release a; rollback",
    ),
    // New files of old ones.
    step("restarted", "alter sequence s1 restart with 77"),
    step("restarted and used", "begin; alter sequence s1 restart; select nextval('s1'); commit"),
    step(
        "restarted, rolled back",
        "begin; alter sequence s1 restart with 5; select nextval('s1'); rollback",
    ),
    step("used after that", "select nextval('s1') from generate_series(1, 40)"),
    step(
        "restarted in a savepoint, rolled back, and used",
        "begin; savepoint a; alter sequence s1 restart with 5; select nextval('s1'); rollback to a; \
         select nextval('s1') from generate_series(1, 40); commit",
    ),
    step(
        "restarted twice, once in vain",
        "begin; alter sequence s1 restart with 300; savepoint a; alter sequence s1 restart with 400; \
         select nextval('s1'); rollback to a; savepoint b; select nextval('s1'); commit",
    ),
    step("other increments", "alter sequence s2 increment -3 minvalue -1000 cache 5"),
    step("down", "select nextval('s2') from generate_series(1, 7)"),
    step(
        "cycle",
        "alter sequence s2 increment 1 minvalue 1 maxvalue 5 start 1 restart cycle cache 1",
    ),
    step("round", "select nextval('s2') from generate_series(1, 8)"),
    step(
        "as smallint",
        "begin; create sequence s7 as smallint; alter sequence s7 maxvalue 9; commit",
    ),
    // Names.
    Step {
        name: "renamed",
        sql: "alter sequence s1 rename to r1",
        expect: Expect::Renamed(&[("public.s1", "public.r1")]),
    },
    step("used after that", "select nextval('r1') from generate_series(1, 40)"),
    Step {
        name: "renamed and used",
        sql: "begin; alter sequence r1 rename to r2; select nextval('r2') from generate_series(1, 40); commit",
        expect: Expect::Renamed(&[("public.r1", "public.r2")]),
    },
    Step {
        name: "to another schema",
        sql: "begin; create schema other; alter sequence r2 set schema other; commit",
        expect: Expect::Renamed(&[("public.r2", "other.r2")]),
    },
    step("used there", "select nextval('other.r2') from generate_series(1, 40)"),
    Step {
        name: "names exchanged",
        sql: "begin; alter sequence s3 rename to x; alter sequence s4 rename to s3; commit",
        expect: Expect::Renamed(&[("public.s3", "public.x"), ("public.s4", "public.s3")]),
    },
    step("one restarted", "alter sequence s3 restart with 30"),
    step(
        "made anew with the same name",
        "begin; drop sequence s5; create sequence s5 start 9; select nextval('s5'); commit",
    ),
    Step {
        name: "dropped",
        sql: "begin; select nextval('s5') from generate_series(1, 40); drop sequence s5; commit",
        expect: Expect::Dropped(&["public.s5"]),
    },
    // Of columns.
    step(
        "serial of before",
        "insert into old_serial (note) select 'x' from generate_series(1, 40)",
    ),
    step(
        "serial and identity",
        "create table owned (id serial, other int generated always as identity (start 10 increment 10))",
    ),
    step("rows", "insert into owned select from generate_series(1, 40)"),
    step(
        "rows, rolled back",
        "begin; insert into owned select from generate_series(1, 40); rollback",
    ),
    step("identity restarted", "alter table owned alter other restart with 5"),
    step("truncated, restarted", "truncate owned restart identity"),
    step(
        "truncated, restarted, and filled",
        "begin; truncate owned restart identity; insert into owned default values; commit",
    ),
    step("truncated, rolled back", "begin; truncate owned restart identity; rollback"),
    step("truncated, continued", "truncate owned continue identity"),
    step(
        "owned by",
        "begin; alter sequence s6 owned by owned.id; select nextval('s6') from generate_series(1, 40); commit",
    ),
    Step {
        name: "dropped with its column",
        sql: "alter table owned drop column other",
        expect: Expect::Dropped(&["public.owned_other_seq"]),
    },
    Step {
        name: "dropped with its table",
        sql: "drop table owned cascade",
        expect: Expect::Dropped(&["public.owned_id_seq", "public.s6"]),
    },
    // Of no standby's concern.
    step("temporary", "begin; create temp sequence t1; select nextval('t1'); commit"),
    step("unlogged", "begin; create unlogged sequence u1; select nextval('u1'); commit"),
    step("logged from now on", "begin; select nextval('u1'); alter sequence u1 set logged; commit"),
    step("used after that", "select nextval('u1') from generate_series(1, 40)"),
    Step {
        name: "no more logged",
        sql: "alter sequence u1 set unlogged",
        expect: Expect::Dropped(&["public.u1"]),
    },
    // Prepared.
    step(
        "prepared",
        "begin; create sequence p1; savepoint a; select nextval('p1'); \
         select nextval('early') from generate_series(1, 40); prepare transaction 'p1'",
    ),
    step("and committed", "commit prepared 'p1'"),
    step("prepared again", "begin; alter sequence p1 restart with 7; prepare transaction 'p1'"),
    step("and rolled back", "rollback prepared 'p1'"),
];

/// `last_value`, `log_cnt`, `is_called`.
type State = (i64, i64, bool);

/// By schema and name.
type Sequences = BTreeMap<String, State>;

#[test]
fn sequences_are_told_as_a_standby_has_them() -> Result<()> {
    let scratch = Scratch::new()?;
    let directory = scratch.directory("decoded")?;
    let directory = directory.to_str().context("a path in UTF-8")?;
    let more = [("decode", "directory", directory)];
    let mut options = ClusterOptions::default();
    options.settings.extend(["autovacuum = off", "checkpoint_timeout = 1h"].map(str::to_owned));
    let pair = Pair::start_configured(&scratch, &options, &more, |leader| {
        BEFORE.split(';').try_for_each(|sql| leader.sql(sql).map(drop))
    })?;
    let standby = start_standby(&scratch, &pair)?;

    // Whoever reads begins with a copy.
    let (mut told, mut lines) = (states(&standby)?, Vec::new());
    let mut dropped = BTreeSet::new();
    ensure!(told.len() == 3);
    let mut faults = Vec::new();
    for Step { name, sql, expect } in STEPS {
        if name.contains("checkpoint") {
            pair.leader.sql("checkpoint")?;
        }
        pair.leader.sql(sql).with_context(|| format!("step {name:?}"))?;
        let new = decode_new(&pair, &standby, &lines)?;
        take(&new, &mut told)?;
        lines.extend(new);
        match expect {
            Expect::Same => {}
            Expect::Renamed(names) => {
                for (from, to) in *names {
                    if let Some(state) = told.remove(*from) {
                        told.insert((*to).to_owned(), state);
                    }
                }
            }
            Expect::Dropped(names) => dropped.extend(names.iter().map(|name| (*name).to_owned())),
        }
        if let Err(fault) = compare(&states(&standby)?, &told, &dropped) {
            faults.push(format!("step {name:?} ({sql}): {fault}"));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    println!("{} steps, {} lines, {} sequences", STEPS.len(), lines.len(), told.len());
    ensure!(told.len() > 10 && !lines.iter().any(|line| line.contains("\"table\":\"untouched\"")));

    // In one go they are the same lines, but for the shapes that are told to each reader.
    let whole = pair.follower.run_verb("decode", &[])?;
    let is_row = |line: &&str| !line.contains("\"kind\":\"schema\"");
    ensure!(whole.lines().filter(is_row).eq(lines.iter().map(String::as_str).filter(is_row)));

    controls(&states(&standby)?, &told, &dropped, &lines)
}

/// Each thing that is spoiled must be found.
fn controls(
    states: &Sequences,
    told: &Sequences,
    dropped: &BTreeSet<String>,
    lines: &[String],
) -> Result<()> {
    let (name, (last_value, log_cnt, is_called)) = told.first_key_value().context("one")?;
    for state in [
        (last_value + 1, *log_cnt, *is_called),
        (*last_value, log_cnt + 1, *is_called),
        (*last_value, *log_cnt, !is_called),
    ] {
        let mut spoiled = told.clone();
        spoiled.insert(name.clone(), state);
        let fault = compare(states, &spoiled, dropped).err().context("was not noticed")?;
        println!("control: {fault}");
    }
    // The last line of one of them is missing, or that of a sequence that never was is there.
    let is_last = |line: &&String| line.contains("\"kind\":\"sequence\"") && line.contains("early");
    let last = lines.iter().rfind(is_last).context("a line")?;
    let mut without = Sequences::new();
    let others: Vec<_> = lines.iter().filter(|line| *line != last).cloned().collect();
    take(&others, &mut without)?;
    let early = without.get("public.early").copied().context("an older line")?;
    let spoiled = told.iter().map(|(name, state)| (name.clone(), *state));
    let spoiled = spoiled.chain([("public.early".to_owned(), early)]).collect();
    println!("control: {}", compare(states, &spoiled, dropped).err().context("was not noticed")?);
    let mut spoiled = told.clone();
    spoiled.insert("public.never1".to_owned(), (1, 0, false));
    println!("control: {}", compare(states, &spoiled, dropped).err().context("was not noticed")?);
    Ok(())
}

/// A server that replays the leader's WAL and answers.
fn start_standby(scratch: &Scratch, pair: &Pair) -> Result<Cluster> {
    let directory = scratch.path().join("standby");
    let mut copy = scratch.account().command("cp");
    output_of(copy.arg("-a").arg(Pair::backup(scratch)).arg(&directory))?;
    let mut standby = Cluster::at(scratch, "standby", &directory, Binaries::find()?)?;
    scratch.file("standby/standby.signal", "")?;
    let conninfo = pair.leader.endpoint().conninfo();
    standby.configure(&[format!("primary_conninfo = '{conninfo}'")])?;
    standby.start()?;
    Ok(standby)
}

/// All that was told since, when the standby has replayed what there is.
fn decode_new(pair: &Pair, standby: &Cluster, lines: &[String]) -> Result<Vec<String>> {
    // What a transaction wrote that was rolled back is flushed with one that commits.
    pair.leader.sql("select pg_logical_emit_message(true, 'flush', '')")?;
    let end = pair.flush_position()?;
    wait_until("the standby has replayed what there is", PATIENCE, || {
        Ok(standby.sql(&format!("select pg_last_wal_replay_lsn() >= '{end}'"))? == "t")
    })?;
    wait_until("the follower has decoded what there is", PATIENCE, || {
        Ok(pair.follower.metrics()?.position("decoded").is_some_and(|decoded| decoded >= end))
    })?;
    let after = lines.last().map(|line| -> Result<String> {
        let line: Value = serde_json::from_str(line)?;
        let commit = line["commit_lsn"].as_str().context("commit_lsn")?;
        Ok(format!("{commit}/{}", line["ordinal"].as_u64().context("ordinal")?))
    });
    let after = after.transpose()?;
    let arguments: Vec<&str> = after.iter().flat_map(|after| ["--after", after.as_str()]).collect();
    let text = pair.follower.run_verb("decode", &arguments)?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Notes what lines say of sequences, when it is everybody's: of a transaction at its commit.
fn take(lines: &[String], told: &mut Sequences) -> Result<()> {
    let mut open: Option<Vec<(String, State)>> = None;
    for line in lines {
        let json: Value = serde_json::from_str(line).with_context(|| line.clone())?;
        match json["kind"].as_str().context("kind")? {
            "begin" => ensure!(open.replace(Vec::new()).is_none(), "within a transaction: {line}"),
            "commit" => told.extend(open.take().context("no begin")?),
            "sequence" => {
                let text = |key: &str| json[key].as_str().with_context(|| line.clone());
                let name = format!("{}.{}", text("schema")?, text("table")?);
                let state = (text("last_value")?.parse()?, text("log_cnt")?.parse()?);
                let is_called = json["is_called"].as_bool().with_context(|| line.clone())?;
                let state = (state.0, state.1, is_called);
                match &mut open {
                    Some(open) => open.push((name, state)),
                    None => drop(told.insert(name, state)),
                }
            }
            _ => {}
        }
    }
    ensure!(open.is_none(), "a transaction without its commit");
    Ok(())
}

/// What the standby has. It cannot read those that are not in WAL.
fn states(standby: &Cluster) -> Result<Sequences> {
    let names = standby.sql(
        "select relnamespace::regnamespace || '.' || relname from pg_class \
         where relkind = 'S' and relpersistence = 'p'",
    )?;
    let each = names
        .lines()
        .map(|name| format!("select '{name}', last_value, log_cnt, is_called from {name}"));
    let all = standby.sql(&each.collect::<Vec<_>>().join(" union all "))?;
    let states = all.lines().map(|line| {
        let fields: Vec<&str> = line.split('|').collect();
        let [name, last_value, log_cnt, is_called] = fields[..] else { anyhow::bail!("{line}") };
        Ok((name.to_owned(), (last_value.parse()?, log_cnt.parse()?, is_called == "t")))
    });
    states.collect()
}

/// Each sequence of the standby's was told as it is, and no other.
fn compare(states: &Sequences, told: &Sequences, dropped: &BTreeSet<String>) -> Result<()> {
    let mut faults = Vec::new();
    for (name, state) in states {
        match told.get(name) {
            Some(told) if told == state => {}
            Some(told) => faults.push(format!("{name} is {state:?}, was told as {told:?}")),
            None => faults.push(format!("{name} was not told")),
        }
    }
    let strange =
        told.keys().filter(|name| !states.contains_key(*name) && !dropped.contains(*name));
    faults.extend(strange.map(|name| format!("{name} was told, and is not there")));
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(())
}
