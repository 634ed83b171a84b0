//! TOAST values are found in the store by their index, whatever replay has done to them meanwhile: a
//! real server's index, and its own `SELECT` is the judge.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::recording::Recording;
use integration::{Cluster, ClusterOptions, Scratch};
use walferry_store::{Rows, Store, StoreConfig, ToastRequest};
use walfmt::bytes::{i32_at, u32_at};
use walfmt::relation::DEFAULT_TABLESPACE;
use walfmt::row::{Entry, EntryKind, TUPLE_FROM};
use walfmt::{Lsn, RelFileLocator};

/// So many that the index has three levels.
const VALUES: u32 = ROWS * COLUMNS;
const ROWS: u32 = 12_000;
/// Short values leave a row only if it is long.
const COLUMNS: u32 = 14;
/// Values are asked for so many at once.
const AT_ONCE: usize = 5000;
const BATCH_BYTES: usize = 1 << 20;

/// Chunks by their number, by value.
type Values = BTreeMap<u32, BTreeMap<i32, Vec<u8>>>;

/// What the leader did, and what it had where.
#[derive(Default)]
struct Story {
    heap: RelFileLocator,
    index: RelFileLocator,
    /// All values were written.
    written: Lsn,
    values: Values,
    /// A part was deleted, and then vacuumed.
    deleted: Lsn,
    vacuumed: Lsn,
    left: BTreeSet<u32>,
    /// The same again, after a checkpoint.
    vacuumed_again: Lsn,
    left_at_last: BTreeSet<u32>,
    /// More is deleted from here on, and before here the files are gone that it was in.
    deleted_from: Lsn,
    rewritten: Lsn,
    levels: u32,
}

impl Story {
    fn make(scratch: &Scratch) -> Result<(Recording, Self)> {
        let mut options = ClusterOptions { fsync: false, ..ClusterOptions::default() };
        let settings = ["autovacuum = off", "checkpoint_timeout = 1h", "max_wal_size = 4GB"];
        options.settings.extend(settings.map(str::to_owned));
        let mut story = Self::default();
        let prepare = |leader: &Cluster| {
            let of_each = |words: &dyn Fn(u32) -> String| {
                (0..COLUMNS).map(words).collect::<Vec<_>>().join(", ")
            };
            let columns = of_each(&|column| format!("v{column} text"));
            leader.sql(&format!(
                "create table t (id int, {columns}) with (toast_tuple_target = 128)"
            ))?;
            let storage = of_each(&|column| format!("alter v{column} set storage external"));
            leader.sql(&format!("alter table t {storage}")).map(drop)
        };
        let work = |leader: &Cluster| story.tell(leader);
        let recording = Recording::make(scratch, "toast", &options, prepare, work)?;
        Ok((recording, story))
    }

    fn tell(&mut self, leader: &Cluster) -> Result<()> {
        let number = |sql: &str| -> Result<u32> { Ok(leader.sql(sql)?.parse()?) };
        let database = number("select oid from pg_database where datname = current_database()")?;
        let toast =
            leader.sql("select reltoastrelid::regclass from pg_class where relname = 't'")?;
        let locator =
            |relation| RelFileLocator { tablespace: DEFAULT_TABLESPACE, database, relation };
        self.heap = locator(number(&format!("select pg_relation_filenode('{toast}')"))?);
        self.index = locator(number(&format!("select pg_relation_filenode('{toast}_index')"))?);
        let position = || -> Result<Lsn> {
            let lsn = leader.sql("select pg_current_wal_insert_lsn()")?;
            lsn.parse().ok().with_context(|| format!("a position: {lsn}"))
        };
        // Of several chunks, too; and some that a transaction takes back.
        let expressions: String = (0..COLUMNS)
            .map(|column| {
                format!(", repeat(md5(g || '-{column}'), case when g % 500 = {column} then 300 else 5 end)")
            })
            .collect();
        let series = format!("from generate_series(1, {ROWS}) g");
        leader.sql(&format!("insert into t select g{expressions} {series}"))?;
        leader.sql(
            "begin; insert into t select g, repeat('x', 2500) from generate_series(1, 500) g; rollback",
        )?;
        self.written = position()?;
        let all = format!(
            "select chunk_id || ',' || chunk_seq || ',' || encode(chunk_data, 'hex') from {toast}"
        );
        for line in leader.sql(&all)?.lines() {
            let mut fields = line.split(',');
            let mut field = || fields.next().context("three columns");
            let (value, seq) = (field()?.parse()?, field()?.parse()?);
            self.values.entry(value).or_default().insert(seq, from_hex(field()?)?);
        }
        let left = || -> Result<BTreeSet<u32>> {
            let values = leader.sql(&format!("select distinct chunk_id from {toast}"))?;
            values.lines().map(|line| Ok(line.parse()?)).collect()
        };
        leader.sql("delete from t where id % 3 = 0")?;
        self.deleted = position()?;
        self.left = left()?; // whoever looks prunes, too
        leader.sql("vacuum t")?;
        self.vacuumed = position()?;
        leader.sql("checkpoint")?; // records that prune carry images after that
        leader.sql("delete from t where id % 3 = 1 and id < 5000")?;
        self.left_at_last = left()?;
        leader.sql("vacuum t")?;
        self.vacuumed_again = position()?;
        leader.sql("create extension pageinspect")?;
        let level = format!("select level from bt_metap('{toast}_index')");
        self.levels = number(&level)? + 1;
        // It is rewritten: the files go that all of this is in.
        self.deleted_from = position()?;
        leader.sql("delete from t where id % 7 = 0")?;
        leader.sql("vacuum full t")?;
        self.rewritten = position()?;
        leader.sql("drop table t").map(drop)
    }

    fn request(&self, value: u32) -> ToastRequest {
        ToastRequest { heap: self.heap, index: self.index, value }
    }
}

fn from_hex(text: &str) -> Result<Vec<u8>> {
    let digits = text.as_bytes().chunks(2);
    digits.map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?)).collect()
}

/// The value, number and bytes of a chunk as entries hold it.
fn chunk(contents: &[u8]) -> (u32, i32, Vec<u8>) {
    let data = &contents[usize::from(contents[4]) - TUPLE_FROM..];
    let bytes = match data[8] {
        short if short & 1 == 1 => &data[9..8 + usize::from(short >> 1)],
        _ => &data[12..8 + (u32_at(data, 8) >> 2) as usize],
    };
    (u32_at(data, 0), i32_at(data, 4), bytes.to_vec())
}

fn chunks(found: &[Vec<u8>], value: u32) -> Result<BTreeMap<i32, Vec<u8>>> {
    let mut chunks = BTreeMap::new();
    for contents in found {
        let (of, seq, bytes) = chunk(contents);
        ensure!(of == value, "a chunk of {of}, asked for {value}");
        chunks.insert(seq, bytes);
    }
    Ok(chunks)
}

/// Most pages are not in memory when they are looked for.
const TIGHT: u64 = 4 << 20;
/// All of them are.
const ROOMY: u64 = 256 << 20;

fn open(recording: &Recording, directory: &Path, cache_bytes: u64) -> Result<(Store, Arc<Rows>)> {
    recording.new_store(directory)?;
    let rows = Arc::new(Rows::default());
    let store = Store::open(&StoreConfig {
        data_directory: directory.to_owned(),
        workers: 3,
        cache_bytes,
        restart_point_interval: Duration::from_secs(1),
        verify_images: false,
        rows: Some(Arc::clone(&rows)),
    })?;
    Ok((store, rows))
}

/// A store that replays a recording, a part at a time.
struct Replaying<'a> {
    recording: &'a Recording,
    store: Store,
    rows: Arc<Rows>,
    position: Lsn,
}

impl<'a> Replaying<'a> {
    fn open(recording: &'a Recording, scratch: &Scratch, name: &str) -> Result<Self> {
        let (store, rows) = open(recording, &scratch.path().join(name), TIGHT)?;
        let position = store.replay_from();
        // One thread replays, asks and takes: it must not wait for itself before files become shorter.
        rows.set_durable(Lsn(u64::MAX));
        Ok(Self { recording, store, rows, position })
    }

    /// Replays all before `end`, and takes rows as they come.
    fn replay_to(&mut self, end: Lsn) -> Result<()> {
        let (mut taken, mut count) = (Vec::new(), 0);
        let Self { recording, store, rows, position } = self;
        recording.replay(*position, |raw| {
            if raw.start >= end {
                return Ok(false);
            }
            store.replay(raw)?;
            *position = raw.end;
            count += 1;
            if count % 1000 == 0 {
                taken.clear();
                rows.take(&mut taken, usize::MAX, Duration::ZERO);
            }
            Ok(true)
        })?;
        store.wait_applied()?;
        taken.clear();
        rows.take(&mut taken, usize::MAX, Duration::ZERO);
        Ok(())
    }

    /// Asks for values; those that have no chunks are left out.
    fn look_up(&mut self, story: &Story, values: &[u32]) -> Result<Values> {
        let mut found = Values::new();
        for values in values.chunks(AT_ONCE) {
            let requests: Vec<_> = values.iter().map(|value| story.request(*value)).collect();
            let rows = &self.rows;
            let answers = std::thread::scope(|scope| {
                let asking = scope.spawn(|| rows.ask(requests, || false));
                while !asking.is_finished() {
                    self.store.serve_rows()?;
                }
                anyhow::Ok(asking.join().expect("no panic"))
            })?;
            let answers = answers.context("an answer")?;
            ensure!(answers.len() == values.len());
            for (value, answer) in values.iter().zip(answers) {
                let chunks = chunks(&answer.chunks, *value)?;
                if !chunks.is_empty() {
                    found.insert(*value, chunks);
                }
            }
        }
        Ok(found)
    }
}

#[test]
fn values_are_found_by_their_index_and_after_they_have_left_it() -> Result<()> {
    let scratch = Scratch::new()?;
    let (recording, story) = Story::make(&scratch)?;
    let many = story.values.values().filter(|chunks| chunks.len() > 1).count();
    println!("{} values, {many} of several chunks, {} levels", story.values.len(), story.levels);
    ensure!(story.values.len() == VALUES as usize && story.levels == 3 && many > 200);
    let all: Vec<u32> = story.values.keys().copied().collect();

    let mut replaying = Replaying::open(&recording, &scratch, "store")?;
    let database = story.heap.database;
    replaying.rows.set_toast(database, &[story.heap.relation, story.index.relation]);
    replaying.replay_to(story.written)?;
    let begin = std::time::Instant::now();
    let found = replaying.look_up(&story, &all)?;
    println!("written: {} found in {:.2} s", found.len(), begin.elapsed().as_secs_f64());
    ensure!(found == story.values, "not the server's");
    // What no row has is not found: of a transaction that was rolled back its chunks are.
    let last = *all.last().context("some")?;
    let strangers: Vec<u32> = (last + 600..last + 700).chain([0, 1, u32::MAX]).collect();
    ensure!(replaying.look_up(&story, &strangers)?.is_empty());
    let nowhere = RelFileLocator { relation: 99_999, ..story.heap };
    let lost = Story { heap: nowhere, index: nowhere, ..Story::default() };
    ensure!(replaying.look_up(&lost, &all[..10])?.is_empty());
    let swapped = Story { heap: story.index, index: story.heap, ..Story::default() };
    ensure!(replaying.look_up(&swapped, &all[..10])?.is_empty(), "a heap is no index");

    replaying.replay_to(story.deleted)?;
    ensure!(replaying.look_up(&story, &all)? == story.values, "deleted, but still there");

    for (end, left) in [(story.vacuumed, &story.left), (story.vacuumed_again, &story.left_at_last)]
    {
        replaying.replay_to(end)?;
        let found = replaying.look_up(&story, &all)?;
        println!("vacuumed: {} found, {} removed", found.len(), all.len() - found.len());
        ensure!(found.keys().eq(left), "those that are left");
        let mut begin = std::time::Instant::now();
        let mut removed = 0;
        for value in all.iter().filter(|value| !left.contains(value)).step_by(11) {
            let chunks = chunks(&replaying.rows.find_removed(story.heap, *value), *value)?;
            ensure!(story.values.get(value) == Some(&chunks), "value {value} was removed");
            removed += 1;
        }
        println!("{removed} of them looked at in {:.2} s", begin.elapsed().as_secs_f64());
        ensure!(removed > 3000);
        begin = std::time::Instant::now();
        let stays = left.first().context("some")?;
        ensure!(replaying.rows.find_removed(story.heap, *stays).is_empty());
        println!("one: {:?}", begin.elapsed());
    }
    let gone = *all.iter().find(|value| !story.left.contains(value)).context("one")?;
    ensure!(!replaying.rows.find_removed(story.heap, gone).is_empty());
    replaying.rows.set_done(replaying.store.applied());
    ensure!(replaying.rows.find_removed(story.heap, gone).is_empty(), "done is done");
    drop(replaying);

    // Control: who does not say which relations count gets nothing of what has left its page.
    let mut control = Replaying::open(&recording, &scratch, "control")?;
    control.replay_to(story.vacuumed)?;
    ensure!(control.look_up(&story, &[gone])?.is_empty());
    ensure!(control.rows.find_removed(story.heap, gone).is_empty());
    Ok(())
}

/// Whoever takes rows is behind all the time, and asks for each value whose chunks are deleted: they
/// are there, even though the store vacuums and drops the relation while he asks.
#[test]
fn values_are_there_for_who_is_behind() -> Result<()> {
    let scratch = Scratch::new()?;
    let (recording, story) = Story::make(&scratch)?;
    let mut removed = 0;
    // With little memory the store waits for him, and more or less is removed before he asks; with much of
    // it, all that was deleted.
    for cache_bytes in [TIGHT, ROOMY] {
        let begin = std::time::Instant::now();
        let honest = take_behind(&recording, &scratch, &story, true, cache_bytes)?;
        println!("{cache_bytes}: {honest:?} in {:.2} s", begin.elapsed().as_secs_f64());
        ensure!(honest.asked > 60_000 && honest.missing == 0);
        removed = honest.removed;
    }
    ensure!(removed > 40_000, "only {removed} were gone when they were asked for");
    let hasty = take_behind(&recording, &scratch, &story, false, TIGHT)?;
    println!("control, all durable from the start: {hasty:?}");
    ensure!(hasty.missing > 1000, "nothing waited, and nothing was missing");
    Ok(())
}

#[derive(Debug, Default)]
struct Behind {
    asked: u64,
    /// In the queue, no more on pages.
    removed: u64,
    missing: u64,
}

fn take_behind(
    recording: &Recording,
    scratch: &Scratch,
    story: &Story,
    honest: bool,
    cache_bytes: u64,
) -> Result<Behind> {
    let directory = scratch.path().join(format!("{honest}-{cache_bytes}"));
    let (mut store, rows) = open(recording, &directory, cache_bytes)?;
    let position = store.replay_from();
    rows.set_toast(story.heap.database, &[story.heap.relation, story.index.relation]);
    if !honest {
        rows.set_durable(Lsn(u64::MAX));
    }
    // Between these he waits before he looks: on a busy machine he would be no more behind than the store.
    let (from, until) = if honest {
        (story.written, story.vacuumed)
    } else {
        (story.deleted_from, story.rewritten)
    };
    let applied = store.watch_applied();
    let all_given = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let taking = scope.spawn(|| -> Result<Behind> {
            let (mut behind, mut taken) = (Behind::default(), Vec::new());
            loop {
                let is_last = all_given.load(Ordering::SeqCst);
                taken.clear();
                let end = rows.take(&mut taken, BATCH_BYTES, Duration::from_millis(20));
                std::thread::sleep(Duration::from_millis(10)); // so that he is behind
                // The store may be the one that waits: for rows of pages that it has pruned already.
                while end > from
                    && applied.load(Ordering::SeqCst) < until.0
                    && !rows.durable_is_wanted()
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                behind.look_at(&rows, story, &taken)?;
                rows.set_done(end);
                rows.set_durable(end);
                if is_last && taken.is_empty() {
                    return Ok(behind);
                }
            }
        });
        let mut count = 0;
        recording.replay(position, |raw| {
            store.replay(raw)?;
            count += 1;
            if count % 256 == 0 {
                store.serve_rows()?;
            }
            Ok(!taking.is_finished())
        })?;
        store.wait_applied()?;
        all_given.store(true, Ordering::SeqCst);
        while !taking.is_finished() {
            store.serve_rows()?;
        }
        taking.join().expect("no panic")
    })
}

impl Behind {
    fn look_at(&mut self, rows: &Rows, story: &Story, mut taken: &[u8]) -> Result<()> {
        let mut values = BTreeSet::new();
        while !taken.is_empty() {
            let (entry, rest) = Entry::read(taken)?;
            taken = rest;
            ensure!(entry.kind != EntryKind::Removed, "it is no part of what happened");
            if entry.kind == EntryKind::Deleted && entry.locator == story.heap {
                values.insert(chunk(entry.contents).0);
            }
        }
        if values.is_empty() {
            return Ok(());
        }
        let requests: Vec<_> = values.iter().map(|value| story.request(*value)).collect();
        let answers = rows.ask(requests, || false).context("an answer")?;
        for (value, answer) in values.iter().zip(answers) {
            self.asked += 1;
            let mut found = chunks(&answer.chunks, *value)?;
            let expected = &story.values[value];
            if found != *expected {
                found.extend(chunks(&rows.find_removed(story.heap, *value), *value)?);
                self.removed += 1;
            }
            self.missing += u64::from(found != *expected);
        }
        Ok(())
    }
}

/// The test's own reading of a tuple.
#[test]
fn chunks_are_read_as_they_lie() {
    let contents = [3, 0, 2, 8, 24, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0x07, 0xAA, 0xBB];
    assert_eq!(chunk(&contents), (7, 1, vec![0xAA, 0xBB]));
    let contents = [3, 0, 2, 8, 24, 0, 7, 0, 0, 0, 1, 0, 0, 0, 0x18, 0, 0, 0, 0xAA, 0xBB];
    assert_eq!(chunk(&contents), (7, 1, vec![0xAA, 0xBB]));
}
