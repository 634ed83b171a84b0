//! Values that an update leaves alone are told, whatever has become of them by the time that they are
//! looked for: who takes rows is behind, and the store has been through all of it.
//!
//! The follower is down while the leader updates rows and then takes their values away, in one way a
//! table; when it is up again all of that is replayed in one go. `test_decoding` is no judge here: of
//! such a value it tells nothing. What was inserted is.

use anyhow::{Context, Result, ensure};
use integration::process::wait_until;
use integration::{ClusterOptions, PATIENCE, Pair, Scratch};
use serde_json::Value;

/// Rows of a table.
const ROWS: usize = 60;
/// Of each of its two values: in one chunk, and no page of chunks gets so full that whoever looks prunes
/// it. Only a row that is longer than 2 kB has them apart (`TOAST_TUPLE_THRESHOLD`).
const BYTES: usize = 1700;

const FILLER_ROWS: usize = 5000;

/// How values go, by the names of the tables that they go from. Each statement is a transaction.
const WAYS: &[(&str, &[&str])] = &[
    ("none", &[]),
    ("deleted", &["delete from TABLE"]),
    ("dropped", &["drop table TABLE"]),
    (
        "dropped_with_schema",
        &["create schema s", "alter table TABLE set schema s", "drop schema s cascade"],
    ),
    ("truncated", &["truncate TABLE"]),
    (
        "truncated_and_filled",
        &["truncate TABLE", "insert into TABLE values (0, repeat('x', 3000))"],
    ),
    ("rewritten", &["vacuum full TABLE"]),
    ("rewritten_without", &["delete from TABLE", "vacuum full TABLE"]),
    ("altered", &["delete from TABLE", "alter table TABLE alter id type bigint"]),
    ("pruned", &["delete from TABLE", "vacuum TABLE"]),
    ("reindexed", &["delete from TABLE", "reindex table TABLE"]),
    ("reindexed_concurrently", &["delete from TABLE", "reindex table concurrently TABLE"]),
    (
        "unindexed",
        &[
            "delete from TABLE",
            LOOK,
            "insert into TABLE select g, {value}, {value} from generate_series(1, 400) g",
        ],
    ),
    (
        "other_value",
        &[
            "update TABLE set long = 'short', other = 'short'",
            "reindex table TABLE",
            "vacuum TABLE",
        ],
    ),
];

#[test]
fn values_are_told_whatever_becomes_of_them() -> Result<()> {
    let scratch = Scratch::new()?;
    let directory = scratch.directory("decoded")?;
    let directory = directory.to_str().context("a path in UTF-8")?;
    let more = [("decode", "directory", directory)];
    let mut options = ClusterOptions::default();
    options.settings.extend(["autovacuum = off", "checkpoint_timeout = 1h"].map(str::to_owned));
    let mut pair = Pair::start_configured(&scratch, &options, &more, |leader| {
        leader.sql("create table filler (id int)")?;
        for (table, _) in WAYS {
            leader.sql(&format!(
                "create table {table} (id int, long text, other text) with (toast_tuple_target = 128); \
                 alter table {table} alter long set storage external, alter other set storage external; \
                 insert into {table} select g, {value}, {value} from generate_series(1, {ROWS}) g",
                value = value_sql(table, "g")
            ))?;
        }
        Ok(())
    })?;
    pair.follower.stop()?;
    for (table, ways) in WAYS {
        // So that whoever takes rows is behind, and takes in one piece what follows.
        pair.leader.sql(&format!("insert into filler select generate_series(1, {FILLER_ROWS})"))?;
        pair.leader.sql(&format!("update {table} set id = id + 1000"))?;
        for way in *ways {
            let value = value_sql(table, "g");
            pair.leader.sql(&way.replace("TABLE", table).replace("{value}", &value))?;
        }
    }
    receive_alone(&mut pair)?;
    let end = pair.catch_up(PATIENCE)?;
    wait_until("the follower has decoded what there is", PATIENCE, || {
        Ok(pair.follower.metrics()?.position("decoded").is_some_and(|decoded| decoded >= end))
    })?;
    let text = pair.follower.run_verb("decode", &[])?;
    let lines: Vec<Value> = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let faults = faults(&lines)?;
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    println!("{} values in {} ways", ROWS * WAYS.len(), WAYS.len());

    // Control: one value is another, one is not there.
    let at = lines.iter().rposition(is_judged).context("an update")?;
    for spoiled in ["another".into(), serde_json::json!({"unchanged": true})] {
        let mut lines = lines.clone();
        lines[at]["new"]["long"] = spoiled;
        println!("control: {:?}", self::faults(&lines)?.first().context("was not noticed")?);
    }
    Ok(())
}

/// The follower receives what there is before it replays any of it: without its sections `[store]` and
/// `[decode]` it keeps the archive alone.
fn receive_alone(pair: &mut Pair) -> Result<()> {
    let file = pair.follower.config_file().to_owned();
    let whole = std::fs::read_to_string(&file)?;
    let mut table: toml::Table = whole.parse()?;
    ensure!(table.remove("store").is_some() && table.remove("decode").is_some());
    std::fs::write(&file, table.to_string())?;
    pair.follower.start()?;
    pair.follower.wait_durable(pair.flush_position()?, PATIENCE)?;
    pair.follower.stop()?;
    std::fs::write(&file, whole)?;
    pair.follower.start()
}

/// Looks at all entries of the index with a snapshot that does not see what is deleted, so that they are
/// marked as dead; whoever inserts then takes them off the full page.
const LOOK: &str = "do $$ begin set enable_seqscan = off; set enable_bitmapscan = off; \
    execute (select format('select count(chunk_data) from %s where chunk_id > 0', reltoastrelid::regclass) \
             from pg_class where relname = 'TABLE'); end $$";

/// The updates that are looked at: those that leave the value alone.
fn is_judged(line: &Value) -> bool {
    let id = |key: &str| line[key]["id"].as_str().and_then(|id| id.parse::<usize>().ok());
    line["kind"] == "update" && id("old").is_some_and(|id| id <= ROWS) && id("new") > Some(1000)
}

/// What is told otherwise than it was.
fn faults(lines: &[Value]) -> Result<Vec<String>> {
    let mut faults = Vec::new();
    for (table, _) in WAYS {
        let of_table = lines.iter().filter(|line| is_judged(line) && line["table"] == *table);
        let (mut count, mut wrong) = (0, 0);
        for line in of_table {
            count += 1;
            let id = line["old"]["id"].as_str().context("id")?;
            let expected = value(table, id);
            let values = ["old", "new"].map(|row| [&line[row]["long"], &line[row]["other"]]);
            wrong += usize::from(values.iter().flatten().any(|value| **value != *expected));
        }
        if (count, wrong) != (ROWS, 0) {
            faults.push(format!("{table}: {count} updates, {wrong} of them are told wrong"));
        }
    }
    Ok(faults)
}

/// The value of a row: its beginning is its own.
fn value(table: &str, id: &str) -> String {
    format!("{:x<BYTES$}", format!("{table} {id} "))
}

fn value_sql(table: &str, id: &str) -> String {
    format!("rpad('{table} ' || {id} || ' ', {BYTES}, 'x')")
}
