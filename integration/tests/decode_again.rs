//! Rows are captured again after they were not for a while. What an update left alone may be gone by then,
//! on the leader and in the store, where nothing waited for rows: so rows begin anew, and the hole is told.
//!
//! ```text
//! inserted ── restart point ──┤ no [decode]: updated, deleted, vacuumed ├── [decode] again: replayed again
//!                             └── the spool ends here
//! ```

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::process::{send_signal, wait_until};
use integration::standby::control_file;
use integration::{ClusterOptions, PATIENCE, Pair, Scratch};
use rustix::process::Signal;
use walfmt::Lsn;

const ROWS: usize = 60;
/// How often the agent is stopped while it starts.
const STOPS: u64 = 20;
/// What is told of a value that an update left alone and that is nowhere.
const NOWHERE: &str = r#""long":{"unchanged":true}"#;

/// Between update and deletion, more than the queue of rows has room for (64 MB): so that whoever takes rows
/// comes by the update before replay brings images of the pages on which the values were.
const FILLER: &str =
    "insert into filler select g, repeat('x', 1000) from generate_series(1, 90000) g";

/// Where replay begins again.
fn redo(pair: &Pair) -> Result<Lsn> {
    Ok(control_file(pair.store())?.check_point_copy.redo)
}

/// Has one round; gives the exit status of `walferry decode`, what it prints, and what it says.
fn round(pair: &mut Pair, table: &str, is_held: bool) -> Result<(Option<i32>, String, String)> {
    pair.leader.sql(&format!(
        "create table {table} (id int, long text) with (toast_tuple_target = 128); \
         alter table {table} alter long set storage external; \
         insert into {table} select g, repeat(g || ' ', 1000) from generate_series(1, {ROWS}) g"
    ))?;
    // Replay that begins there does not bring the values again.
    pair.restart_point_beyond(pair.flush_position()?)?;
    let spooled = pair.catch_up(PATIENCE)?;
    pair.follower.wait_for_position("decoded", spooled, PATIENCE)?;
    pair.follower.stop()?;
    let before = redo(pair)?;

    let file = pair.follower.config_file().to_owned();
    let whole = fs::read_to_string(&file)?;
    let mut without: toml::Table = whole.parse()?;
    without.remove("decode").context("a follower that decodes")?;
    fs::write(&file, without.to_string())?;
    pair.follower.start()?;
    for statement in
        ["update TABLE set id = id + 1000", FILLER, "delete from TABLE", "vacuum TABLE"]
    {
        pair.leader.sql(&statement.replace("TABLE", table))?;
    }
    pair.catch_up(PATIENCE)?;
    pair.follower.stop()?;
    ensure!(redo(pair)? == before, "replay would not come by the updates again");

    fs::write(&file, whole)?;
    if is_held {
        let lock = pair.store().join("walferry.lock");
        ensure!(
            fs::read_to_string(&lock)? == "stopped\nfree\n",
            "it is not kept what was not held"
        );
        fs::write(&lock, "stopped\nheld\n")?;
    }
    pair.follower.start()?;
    let end = pair.catch_up(PATIENCE)?;
    wait_until("rows are captured", PATIENCE, || {
        let decoded = pair.follower.metrics()?.position("decoded");
        Ok(decoded.is_some_and(|decoded| decoded >= end))
    })?;
    pair.leader.sql(&format!("insert into {table} values (0, 'captured again')"))?;
    let end = pair.catch_up(PATIENCE)?;
    pair.follower.wait_for_position("decoded", end, PATIENCE)?;
    let outcome =
        pair.follower.verb("decode", &["--table", table, "--after", &format!("{spooled}/0")])?;
    Ok((outcome.exit, outcome.stdout, outcome.stderr))
}

#[test]
fn rows_begin_anew_where_values_may_be_gone() -> Result<()> {
    let scratch = Scratch::new()?;
    let directory = scratch.directory("decoded")?;
    let directory = directory.to_str().context("a path in UTF-8")?;
    let more = [("decode", "directory", directory), ("store", "restart_point_interval", "1s")];
    let mut options = ClusterOptions::default();
    options.settings.extend(["autovacuum = off", "checkpoint_timeout = 1h"].map(str::to_owned));
    let mut pair = Pair::start_configured(&scratch, &options, &more, |leader| {
        leader.sql("create table filler (id int, padding text)").map(drop)
    })?;

    let (exit, told, words) = round(&mut pair, "gone", false)?;
    println!("exit {exit:?}: {}", words.trim());
    ensure!(exit == Some(3) && words.contains("are missing"), "a hole is not told: {words}");
    ensure!(!told.contains(NOWHERE), "a value is nowhere");
    // Behind the hole all is told.
    let all =
        pair.follower.verb("decode", &["--after", &format!("{}/0", pair.flush_position()?)])?;
    ensure!(all.exit == Some(0), "{all:?}");

    // Who is stopped while he starts has lost nothing.
    let lock = pair.store().join("walferry.lock");
    let mut stopped = [0, 0];
    for millis in 0..STOPS {
        pair.follower.stop()?;
        pair.follower.spawn()?;
        thread::sleep(Duration::from_millis(millis * 5));
        send_signal(pair.follower.pid().context("it was started")?, Signal::TERM)?;
        wait_until("it has ended", PATIENCE, || Ok(!pair.follower.is_running()))?;
        let text = fs::read_to_string(&lock)?;
        ensure!(text.ends_with("held\n"), "stopped after {} ms: {text}", millis * 5);
        stopped[usize::from(text.starts_with("stopped"))] += 1;
        pair.follower.start()?;
    }
    println!("stopped while it started: {stopped:?}");

    // The control: the store says that nothing was written without waiting for rows.
    let (exit, told, words) = round(&mut pair, "believed", true)?;
    let nowhere = told.lines().filter(|line| line.contains(NOWHERE)).count();
    println!("control: exit {exit:?}, {nowhere} values are nowhere; {}", words.trim());
    ensure!(exit == Some(0) && told.contains("captured again"), "{words}");
    ensure!(nowhere > 0, "nothing hangs on it");
    Ok(())
}
