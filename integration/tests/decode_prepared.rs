//! Transactions that were prepared before rows are captured, or while they are: the first are not told,
//! not even in part, though what they did to catalogs is known when they are committed; the others are
//! told whole. Restarts of leader and agent in between change nothing.
//!
//! ```text
//!            rows are captured ─┐                              ┌─ the first that is told
//! 'early'   begin ... prepare   │      restarts   commit prepared
//! 'partly'  begin ............. │ ... prepare   restarts   commit prepared
//! 'late'                        │                              │ begin ... prepare  restarts  commit prepared
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use integration::decoding::comparison::Judge;
use integration::decoding::spoil::Spoil;
use integration::decoding::{Comparison, Decoded, Rules, Slot, golden, lines};
use integration::postgres::StopMode;
use integration::process::wait_until;
use integration::{ClusterOptions, PATIENCE, Pair, Scratch};
use serde_json::Value;
use tokio_postgres::NoTls;

/// Tables, and transactions on them that are prepared before rows are captured.
const BEFORE: &[&str] = &[
    "create type color as enum ('red', 'blue')",
    "create table other (id int)",
    "create table grown (id int, note text)",
    "create table rewritten (id int, note text)",
    "create table unchanged (id int, note text)",
    "create table part (id int, note text)",
    "create table colored (id int, c color)",
    "begin; insert into grown values (1, 'untold'); alter table grown add c int default 7; savepoint a; \
     alter table grown add d text; insert into grown values (2, 'untold', 8, 'd'); \
     prepare transaction 'grown'",
    "begin; savepoint a; create table made (id int, long text); savepoint b; \
     alter table made alter long set storage external; \
     insert into made values (1, repeat('untold', 1000)); prepare transaction 'made'",
    "begin; insert into rewritten values (1, 'untold'); savepoint a; \
     alter table rewritten alter id type bigint; alter table rewritten drop note, add word text; \
     prepare transaction 'rewritten'",
    "begin; alter table unchanged add x int; insert into unchanged values (1, 'untold', 2); savepoint a; \
     alter table unchanged rename note to never; prepare transaction 'gone'",
    "begin; alter type color rename value 'blue' to 'green'; savepoint a; \
     alter table colored rename c to hue; insert into colored values (1, 'green'); \
     prepare transaction 'colored'",
];

/// What is done to all of these afterwards.
const AFTER: &[&str] = &[
    "insert into grown (id, note) values (10, 'told'); insert into grown values (11, null, 12, 'dd')",
    "update grown set d = 'of all', c = c + 1",
    "insert into made values (2, repeat('told', 1000)); update made set id = id + 10",
    "insert into rewritten values (5000000000, 'told'); update rewritten set word = 'w'; \
     delete from rewritten where id = 1",
    "insert into unchanged values (3, 'told'); update unchanged set note = note || '!'",
    "insert into part values (4, 'told', true); update part set more = false",
    "insert into colored values (2, 'red'); update colored set id = id + 1; \
     delete from colored where hue = 'green'",
];

const TABLES: &[&str] = &["grown", "made", "rewritten", "unchanged", "part", "colored", "other"];

#[test]
fn at_replica() -> Result<()> {
    prepared_transactions_are_told_whole_or_not_at_all("replica")
}

#[test]
fn at_logical() -> Result<()> {
    prepared_transactions_are_told_whole_or_not_at_all("logical")
}

fn prepared_transactions_are_told_whole_or_not_at_all(level: &str) -> Result<()> {
    let scratch = Scratch::new()?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let mut session = None;
    let directory = scratch.directory("decoded")?;
    let directory = directory.to_str().context("a path in UTF-8")?;
    let more = [("decode", "directory", directory), ("store", "restart_point_interval", "1s")];
    let mut options = ClusterOptions::default();
    let settings = [&format!("wal_level = {level}"), "autovacuum = off", "checkpoint_timeout = 1h"];
    options.settings.extend(settings.map(str::to_owned));
    let mut pair = Pair::start_configured(&scratch, &options, &more, |leader| {
        BEFORE.iter().try_for_each(|sql| leader.sql(sql).map(drop))?;
        let conninfo = leader.endpoint().conninfo();
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await?;
            tokio::spawn(connection);
            let begin = "begin; insert into part values (1, 'untold'); savepoint a; \
                         alter table part add more bool";
            client.batch_execute(begin).await?;
            anyhow::Ok(client)
        })?;
        session = Some(client);
        Ok(())
    })?;
    wait_decoded(&pair)?;
    let session = session.context("a session")?;
    runtime.block_on(session.batch_execute(
        "insert into part values (2, 'untold', true); savepoint b; \
         insert into part values (3, 'untold', true); prepare transaction 'partly'",
    ))?;
    drop(session);
    pair.leader.sql("insert into other values (1)")?;
    wait_decoded(&pair)?;
    ensure_waits(&pair)?;
    restart_all(&mut pair)?;
    ensure_waits(&pair)?;
    for gid in ["grown", "rewritten", "made", "colored"] {
        pair.leader.sql(&format!("commit prepared '{gid}'"))?;
    }
    pair.leader.sql("rollback prepared 'gone'")?;
    pair.leader.sql("insert into other values (2)")?;
    wait_decoded(&pair)?;
    ensure_waits(&pair)?; // one is still prepared
    pair.leader.sql("commit prepared 'partly'")?;

    // From here on all is told.
    if level == "logical" {
        Slot::create(&pair.leader)?;
    }
    let copy = contents(&pair)?;
    pair.leader.sql("select pg_logical_emit_message(false, 'script', 'after')")?;
    AFTER.iter().try_for_each(|sql| pair.leader.sql(sql).map(drop))?;
    pair.leader.sql(
        "begin; insert into grown values (20, 'late'); savepoint a; alter table grown add e int; \
         insert into grown values (21, 'late', 1, 'd', 22); savepoint b; drop table made; \
         create table made (one int); rollback to b; \
         update made set id = id + 100; prepare transaction 'late'",
    )?;
    restart_all(&mut pair)?;
    pair.leader.sql("insert into other values (3)")?;
    pair.leader.sql("commit prepared 'late'")?;
    pair.leader.sql("insert into grown values (30, 'last', 1, 'd', 32)")?;
    wait_decoded(&pair)?;

    let text = pair.follower.run_verb("decode", &[])?;
    let told: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let inserted = told.iter().filter(|line| line["kind"] == "insert");
    let untold = inserted.filter(|line| line.to_string().contains("untold")).count();
    ensure!(untold == 0, "{untold} rows of transactions of before");
    let end = contents(&pair)?;
    let rows = apply(&told, &copy)?;
    for table in TABLES {
        ensure!(rows[*table] == end[*table], "{table}: {:?}, told {:?}", end[*table], rows[*table]);
    }
    let total: usize = end.values().map(Vec::len).sum();
    println!("{level}: {} lines, {total} rows are those of the tables", told.len());
    content_controls(&told, &copy, &end)?;

    if level == "logical" {
        let rules = Rules { judge: Judge::Identity, same_wal: true, partitioned: [].into() };
        let part = |decoded: &Decoded| -> Result<Decoded> {
            let (_, part) = golden::parts(decoded).pop().context("the part behind the message")?;
            Ok(part)
        };
        let (judge, ours) = (part(&Slot::of(&pair.leader).peek()?)?, part(&lines::parse(&text)?)?);
        let comparison = Comparison::between(&judge, &ours, &rules);
        println!("test_decoding: {comparison}");
        comparison.ensure_equal(20)?;
        let spoiled = Spoil::ALL.iter().filter_map(|spoil| spoil.apply(&ours).ok());
        let mut found = 0;
        for spoiled in spoiled {
            ensure!(Comparison::between(&judge, &spoiled, &rules).differing > 0, "a control");
            found += 1;
        }
        println!("{found} controls were found");
        ensure!(found > 3);
    }
    Ok(())
}

/// Nothing is told yet, and why is said.
fn ensure_waits(pair: &Pair) -> Result<()> {
    let outcome = pair.follower.verb("decode", &[])?;
    println!("exit {:?}: {}", outcome.exit, outcome.stderr.lines().next().unwrap_or_default());
    ensure!(outcome.stdout.is_empty(), "{}", outcome.stdout);
    ensure!(outcome.exit == Some(3), "{outcome:?}");
    Ok(())
}

/// One row more or less, and one value, is found.
fn content_controls(told: &[Value], copy: &Contents, end: &Contents) -> Result<()> {
    let at = told.iter().position(|line| line["kind"] == "insert").context("an insert")?;
    let without = [&told[..at], &told[at + 1..]].concat();
    let mut other = told.to_vec();
    other[at]["new"]["id"] = "9999".into();
    for spoiled in [without, other] {
        let is_found = apply(&spoiled, copy).map_or(true, |rows| rows != *end);
        ensure!(is_found, "a control was not found");
    }
    Ok(())
}

/// The leader stops and starts, the agent is killed; then the leader crashes.
fn restart_all(pair: &mut Pair) -> Result<()> {
    pair.leader.stop(StopMode::Fast)?;
    pair.leader.start()?;
    wait_decoded(pair)?;
    pair.follower.kill()?;
    pair.follower.start()?;
    pair.leader.crash_and_recover()?;
    wait_decoded(pair)
}

fn wait_decoded(pair: &Pair) -> Result<()> {
    let flush = "select pg_logical_emit_message(true, 'flush', '')";
    let end = pair.leader.sql(flush).and_then(|_| pair.catch_up(PATIENCE))?;
    wait_until("the follower has decoded what there is", PATIENCE, || {
        Ok(pair.follower.metrics()?.position("decoded").is_some_and(|decoded| decoded >= end))
    })
    .with_context(|| pair.follower.log_tail(30))
}

/// Columns by their names.
type Row = BTreeMap<String, Option<String>>;
/// Rows by their table, sorted.
type Contents = BTreeMap<String, Vec<Row>>;

fn contents(pair: &Pair) -> Result<Contents> {
    let tables = TABLES.iter().map(|table| {
        let text = pair.leader.sql(&format!("select row_to_json({table}) from {table}"))?;
        let mut rows = text.lines().map(|line| row(&serde_json::from_str(line)?));
        let mut rows: Vec<Row> = rows.by_ref().collect::<Result<_>>()?;
        rows.sort();
        Ok(((*table).to_owned(), rows))
    });
    tables.collect()
}

/// A row as JSON, whether values are strings or not. A column that a row was told without is null.
fn row(json: &Value) -> Result<Row> {
    let object = json.as_object().with_context(|| json.to_string())?;
    let columns = object.iter().map(|(name, value)| match value {
        Value::Null => Ok((name.clone(), None)),
        Value::String(text) => Ok((name.clone(), Some(text.clone()))),
        Value::Bool(value) => Ok((name.clone(), Some(if *value { "t" } else { "f" }.to_owned()))),
        Value::Number(number) => Ok((name.clone(), Some(number.to_string()))),
        _ => anyhow::bail!("column {name} is {value}"),
    });
    columns.collect()
}

/// Does to a copy what lines tell behind the message that stands after it.
fn apply(told: &[Value], copy: &Contents) -> Result<Contents> {
    let mut contents = copy.clone();
    let begin = told.iter().position(|line| line["content"] == "after").context("the message")?;
    for line in &told[begin..] {
        let Some(table) = line["table"].as_str() else { continue };
        let rows = contents.get_mut(table).with_context(|| line.to_string())?;
        if line["kind"] == "schema" {
            let columns = line["columns"].as_array().context("columns")?;
            let names: Vec<&str> =
                columns.iter().filter_map(|column| column["name"].as_str()).collect();
            for row in rows {
                row.retain(|name, _| names.contains(&name.as_str()));
                for name in &names {
                    row.entry((*name).to_owned()).or_default();
                }
            }
            continue;
        }
        if line["old"].is_object() {
            let old = row(&line["old"])?;
            let at = rows.iter().position(|row| *row == old);
            rows.remove(at.with_context(|| format!("no such row: {line}"))?);
        }
        if line["new"].is_object() {
            rows.push(row(&line["new"])?);
        }
    }
    contents.values_mut().for_each(|rows| rows.sort());
    Ok(contents)
}
