//! Values that updates left alone are found after `kill -9`, too: what was pruned behind them is not on disk
//! before their rows are durable. A real server's table is the judge.
//!
//! ```text
//!  recording ─► a process of its own, killed: store ─► rows ─► notes, written late
//!      └── every value, as the server had it ──── compared ──────┘
//! ```
//!
//! What has taken a row notes its value in a file, and says only then, and late, that it is durable. So a
//! kill costs what a power cut would: all that was not synced. The control is the same with the gate off.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::Write as _;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::recording::Recording;
use integration::segments::Segments;
use integration::{Cluster, ClusterOptions, PATIENCE, Scratch, Seed};
use rand::RngExt;
use walferry_store::{Rows, Store, StoreConfig, ToastRequest};
use walfmt::bytes::{i32_at, u32_at};
use walfmt::control::ControlFile;
use walfmt::relation::DEFAULT_TABLESPACE;
use walfmt::row::{Entry, EntryKind, TUPLE_FROM};
use walfmt::{Lsn, RecordStream, RelFileLocator, Step, StreamStart, Timeline};

const ROWS: u32 = 1500;
/// How many rows a round changes.
const BAND: u32 = 500;
const ROUNDS: u32 = 24;
/// Rows of 1 kB of another table, between an update and that which replaces its values.
const BETWEEN: u32 = 3000;
const KILLS: u32 = 25;
/// How many runs without the gate must all have lost nothing before that is a failure.
const CONTROLS_MAX: u64 = 3;
/// How far a process comes at most, behind what it has noted first, until it is killed.
const ROUNDS_UNTIL_KILL: u64 = 2;
/// Pages in memory, by all workers together.
const CACHE_PAGES: u64 = 128;
/// What is taken at once, and how long it takes to make it durable.
const TAKEN_BYTES: usize = 32 << 10;
const SYNC_TIME: Duration = Duration::from_millis(20);
/// How many times something is taken until it is made durable, unless that is wanted before.
const SYNC_EVERY: u32 = 500;
/// How far replay is ahead of who takes rows, in bytes: if it were far ahead it would have brought again
/// what a kill has spoiled before anybody asks.
const AHEAD_BYTES: u64 = 256 << 10;
/// How the other process finds what it needs: see [`Task`].
const TASK: &str = "WALFERRY_TOAST_RESTART_TASK";

/// Hashes of values, by `chunk_id`.
type Values = BTreeMap<u32, u64>;

/// What the leader did.
#[derive(Default)]
struct Story {
    relations: Relations,
    wal: PathBuf,
    control: PathBuf,
    values: Values,
    /// How many rows were updated whose value was left alone.
    updates: usize,
}

/// Where the table is.
#[derive(Clone, Copy, Default)]
struct Relations {
    table: RelFileLocator,
    heap: RelFileLocator,
    index: RelFileLocator,
}

impl Story {
    fn make(scratch: &Scratch) -> Result<(Recording, Self)> {
        let mut options = ClusterOptions { fsync: false, ..ClusterOptions::default() };
        let settings = ["autovacuum = off", "checkpoint_timeout = 1h", "max_wal_size = 4GB"];
        options.settings.extend(settings.map(str::to_owned));
        let mut story = Self::default();
        let prepare = |leader: &Cluster| {
            leader.sql("create table t (id int primary key, n int, v text)")?;
            leader.sql("alter table t alter v set storage external").map(drop)
        };
        let recording =
            Recording::make(scratch, "restart", &options, prepare, |leader| story.tell(leader))?;
        Ok((recording, story))
    }

    fn tell(&mut self, leader: &Cluster) -> Result<()> {
        let number = |sql: &str| -> Result<u32> { Ok(leader.sql(sql)?.parse()?) };
        let database = number("select oid from pg_database where datname = current_database()")?;
        let toast =
            leader.sql("select reltoastrelid::regclass from pg_class where relname = 't'")?;
        let locator = |name: &str| -> Result<RelFileLocator> {
            let relation = number(&format!("select pg_relation_filenode('{name}')"))?;
            Ok(RelFileLocator { tablespace: DEFAULT_TABLESPACE, database, relation })
        };
        self.relations = Relations {
            table: locator("t")?,
            heap: locator(&toast)?,
            index: locator(&format!("{toast}_index"))?,
        };
        self.wal = leader.wal_directory();
        self.control = leader.data_directory().join("global/pg_control");
        leader.sql(&format!(
            "insert into t select g, 0, repeat(md5(g || '-0'), 80) from generate_series(1, {ROWS}) g"
        ))?;
        self.note_values(leader, &toast)?;
        leader.sql("create table other (v text); alter table other alter v set storage plain")?;
        let other = format!(
            "insert into other select repeat('x', 1000) from generate_series(1, {BETWEEN})"
        );
        for round in 0..ROUNDS {
            // The first record behind it that changes a page brings all of it. So what a kill has spoiled is
            // spoiled from here to the first of those records that take the old values away.
            leader.sql("checkpoint")?;
            let from = round * BAND % ROWS;
            let band = format!("where id > {from} and id <= {from} + {BAND}");
            // The values that this leaves alone are replaced, and vacuumed away, right behind it.
            leader.sql(&format!("update t set n = n + 1 {band}"))?;
            leader.sql(&other)?;
            leader.sql(&format!(
                "update t set v = repeat(md5(id || '-' || {round} + 1), 80) {band}"
            ))?;
            self.updates += BAND as usize;
            self.note_values(leader, &toast)?;
            leader.sql("vacuum t")?;
            // Pages that the vacuum has pruned are written for these, before a restart point asks for notes: a
            // kill within them loses values, if no gate is there.
            leader.sql(&other)?;
        }
        Ok(())
    }

    /// Values that were not there before.
    fn note_values(&mut self, leader: &Cluster, toast: &str) -> Result<()> {
        let last = self.values.last_key_value().map_or(0, |(value, _)| *value);
        let chunks = leader.sql(&format!(
            "select chunk_id || ',' || encode(chunk_data, 'hex') from {toast}
             where chunk_id > {last} order by chunk_id, chunk_seq"
        ))?;
        let mut values: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        for line in chunks.lines() {
            let (value, hex) = line.split_once(',').context("two columns")?;
            let digits = hex.as_bytes().chunks(2);
            let bytes = digits.map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?));
            let whole = values.entry(value.parse()?).or_default();
            whole.extend(bytes.collect::<Result<Vec<u8>>>()?);
        }
        self.values.extend(values.into_iter().map(|(value, bytes)| (value, hash_of(&bytes))));
        Ok(())
    }
}

fn hash_of(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    hasher.finish()
}

#[test]
fn values_that_updates_left_alone_survive_kills() -> Result<()> {
    let seed = Seed::take("values_that_updates_left_alone_survive_kills", 30);
    let scratch = Scratch::new()?;
    let (recording, story) = Story::make(&scratch)?;
    ensure!(story.values.len() == (ROWS + BAND * ROUNDS) as usize, "each of its own");
    let with_gate = kill_often(&recording, &scratch, &story, seed, true)?;
    println!("gate: {with_gate:?}");
    ensure!(with_gate.compared == story.updates && with_gate.missing == 0, "values are lost");
    ensure!(with_gate.held > 0, "no page had to wait");
    ensure!(with_gate.early == 0, "memory did not suffice");
    // Some kills of a run lose values, and it is chance which: with the same gate off, all runs may not.
    for run in 0..CONTROLS_MAX {
        let without = kill_often(&recording, &scratch, &story, Seed(seed.0 + run), false)?;
        println!("control {run}, gate off: {without:?}");
        ensure!(without.compared + without.missing == story.updates, "each row once");
        ensure!(without.held == 0, "a page has waited for a gate that is off");
        if without.missing > 0 {
            return Ok(());
        }
    }
    bail!("without the gate nothing is lost either")
}

#[derive(Debug, Default)]
struct Outcome {
    kills: u32,
    /// Values that are the server's.
    compared: usize,
    missing: usize,
    /// Pages that the gate passed over, as far as it was noted before a kill.
    held: u64,
    early: u64,
}

fn kill_often(
    recording: &Recording,
    scratch: &Scratch,
    story: &Story,
    seed: Seed,
    has_gate: bool,
) -> Result<Outcome> {
    let directory = scratch.path().join(format!("gate-{has_gate}-{}", seed.0));
    recording.new_store(&directory)?;
    let notes = directory.with_extension("notes");
    fs::write(&notes, "")?;
    let task = Task {
        wal: story.wal.clone(),
        control: story.control.clone(),
        store: directory,
        notes: notes.clone(),
        relations: story.relations,
        has_gate,
    };
    let (mut draw, mut outcome) = (seed.generator(), Outcome::default());
    let bytes_until_kill = recording.wal_bytes() / u64::from(ROUNDS) * ROUNDS_UNTIL_KILL;
    loop {
        fs::write(task.taken(), [0; 8])?;
        let length = fs::metadata(&notes)?.len();
        let mut child = task.spawn()?;
        let (mut seen, mut since, mut goal) = ((length, 0), Instant::now(), None);
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break Some(status);
            }
            let taken = u64::from_le_bytes(fs::read(task.taken())?[..].try_into()?);
            let now = (fs::metadata(&notes)?.len(), taken);
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
            // Where it begins again it may have nothing to note for a while. It is killed at a place in the
            // WAL, not at a time: a slow process would die before it has lost anything.
            if outcome.kills < KILLS && seen.0 > length {
                let draw_goal = || taken + draw.random_range(0..bytes_until_kill);
                if taken >= *goal.get_or_insert_with(draw_goal) {
                    child.kill()?;
                    child.wait()?;
                    break None;
                }
            }
            ensure!(since.elapsed() < PATIENCE, "it has come to a standstill");
            thread::sleep(Duration::from_millis(1));
        };
        match status {
            None => outcome.kills += 1,
            Some(status) if status.success() => break,
            Some(status) => bail!("it has failed: {status}"),
        }
    }
    ensure!(outcome.kills >= KILLS / 2, "it was at the end too soon: {outcome:?}");
    outcome.compare(&Notes::read(&notes)?, &story.values)?;
    Ok(outcome)
}

impl Outcome {
    fn compare(&mut self, notes: &Notes, values: &Values) -> Result<()> {
        (self.held, self.early) = (notes.held, notes.early);
        let mut rows = BTreeSet::new();
        for note in &notes.notes {
            ensure!(rows.insert((note.start, note.item)), "{note:?} is told twice");
            match note.hash {
                None => self.missing += 1,
                Some(hash) => {
                    ensure!(values.get(&note.value) == Some(&hash), "{note:?}: not the server's");
                    self.compared += 1;
                }
            }
        }
        Ok(())
    }
}

/// What the other process has to do: as arguments, one for each line.
struct Task {
    wal: PathBuf,
    control: PathBuf,
    store: PathBuf,
    notes: PathBuf,
    relations: Relations,
    has_gate: bool,
}

impl Task {
    /// The file in which it says how far it has taken rows, whether that is durable or not.
    fn taken(&self) -> PathBuf {
        self.notes.with_extension("taken")
    }

    fn spawn(&self) -> Result<Child> {
        let Relations { table, heap, index } = self.relations;
        let paths = [&self.wal, &self.control, &self.store, &self.notes];
        let mut lines: Vec<String> = paths.map(|path| path.display().to_string()).to_vec();
        let numbers = [table.database, table.relation, heap.relation, index.relation];
        lines.extend(numbers.map(|number| number.to_string()));
        lines.push(self.has_gate.to_string());
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--exact", "the_process_that_is_killed", "--nocapture"]);
        command.env(TASK, lines.join("\n")).stdout(Stdio::null());
        command.spawn().context("cannot run this program again")
    }

    fn from_environment() -> Result<Option<Self>> {
        let Ok(text) = std::env::var(TASK) else { return Ok(None) };
        let lines: Vec<&str> = text.lines().collect();
        let [wal, control, store, notes, database, table, heap, index, has_gate] = lines[..] else {
            bail!("nine lines: {text}")
        };
        let database = database.parse()?;
        let locator = |relation: &str| -> Result<RelFileLocator> {
            let relation = relation.parse()?;
            Ok(RelFileLocator { tablespace: DEFAULT_TABLESPACE, database, relation })
        };
        let relations =
            Relations { table: locator(table)?, heap: locator(heap)?, index: locator(index)? };
        let [wal, control, store, notes] = [wal, control, store, notes].map(PathBuf::from);
        Ok(Some(Self { wal, control, store, notes, relations, has_gate: has_gate.parse()? }))
    }
}

/// Not a test: what the test above starts, and kills.
#[test]
fn the_process_that_is_killed() -> Result<()> {
    let Some(task) = Task::from_environment()? else { return Ok(()) };
    let notes = Notes::read(&task.notes)?;
    let rows = Arc::new(Rows::default());
    let Relations { heap, index, .. } = task.relations;
    rows.set_toast(heap.database, &[heap.relation, index.relation]);
    if !task.has_gate {
        rows.switch_gate_off();
    }
    let mut store = Store::open(&StoreConfig {
        data_directory: task.store.clone(),
        workers: 3,
        cache_bytes: CACHE_PAGES * walfmt::BLOCK_SIZE as u64,
        restart_point_interval: Duration::ZERO,
        verify_images: false,
        rows: Some(Arc::clone(&rows)),
    })?;
    let (all_given, taken) = (AtomicBool::new(false), AtomicU64::new(store.replay_from().0));
    thread::scope(|scope| {
        let taking = scope.spawn(|| {
            let taken = Taking::new(&rows, &task, notes)?.take_all(&all_given, &taken);
            rows.abandon(); // or replay waits for who has failed
            taken
        });
        let mut count = 0;
        replay(&task, store.replay_from(), |raw| {
            store.replay(raw)?;
            count += 1;
            if count % 64 == 0 {
                store.hand_over()?;
                store.serve_rows()?;
            }
            while raw.end.0 > taken.load(Ordering::SeqCst) + AHEAD_BYTES && !taking.is_finished() {
                store.hand_over()?;
                store.serve_rows()?;
                thread::sleep(Duration::from_micros(100));
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

/// Gives the leader's records from `start` on, up to the last one, which it wrote as it was shut down.
fn replay(
    task: &Task,
    start: Lsn,
    mut take: impl FnMut(&walfmt::RawRecord<'_>) -> Result<bool>,
) -> Result<()> {
    let control = ControlFile::from_bytes(&fs::read(&task.control)?)?;
    let size = control.segment_size;
    let wal = Segments::find(&task.wal, Timeline(1), size)?;
    let first = size.start_of(size.segment_of(start));
    let mut stream =
        RecordStream::new(StreamStart { lsn: first, segment_size: size, system_identifier: None });
    wal.read(first, wal.end(), 256 << 10, |piece| {
        stream.push(piece);
        loop {
            match stream.poll() {
                Step::Record(raw) if raw.start < start => {}
                Step::Record(raw) => {
                    if !take(&raw)? || raw.start >= control.check_point {
                        return Ok(false);
                    }
                }
                Step::NeedMore => return Ok(true),
                Step::Stop(stop) => bail!("{stop}"),
            }
        }
    })
}

/// A row whose value an update left alone.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Note {
    start: Lsn,
    item: u16,
    value: u32,
    /// Nothing if the value was nowhere.
    hash: Option<u64>,
}

/// What was noted:
///
/// ```text
/// row <start> <item> <value> <hash, or ->
/// end <position> <pages held> <pages written early>     all rows before it are there
/// ```
#[derive(Default)]
struct Notes {
    notes: Vec<Note>,
    end: Lsn,
    held: u64,
    early: u64,
}

impl Notes {
    /// What stands behind the last end that is whole is cut off.
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)?;
        let (mut notes, mut open, mut length) = (Self::default(), Vec::new(), 0);
        let mut whole = 0;
        let (mut held, mut early) = (0, 0);
        for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
            length += line.len();
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["row", start, item, value, hash] => open.push(Note {
                    start: start.parse()?,
                    item: item.parse()?,
                    value: value.parse()?,
                    hash: if hash == "-" { None } else { Some(hash.parse()?) },
                }),
                ["end", end, of_held, of_early] => {
                    notes.notes.append(&mut open);
                    notes.end = end.parse()?;
                    let (of_held, of_early): (u64, u64) = (of_held.parse()?, of_early.parse()?);
                    // Each process begins with nothing.
                    if of_held < held {
                        notes.held += held;
                        notes.early += early;
                    }
                    (held, early) = (of_held, of_early);
                    whole = length;
                }
                _ => bail!("a line of notes: {line}"),
            }
        }
        (notes.held, notes.early) = (notes.held + held, notes.early + early);
        fs::OpenOptions::new().write(true).open(path)?.set_len(whole as u64)?;
        Ok(notes)
    }
}

struct Taking<'a> {
    rows: &'a Rows,
    relations: Relations,
    file: fs::File,
    taken: fs::File,
    /// Before it, all rows are noted; and the same, durably.
    end: Lsn,
    durable: Lsn,
    /// What is noted, but not durable.
    open: String,
    since: u32,
}

impl<'a> Taking<'a> {
    fn new(rows: &'a Rows, task: &Task, notes: Notes) -> Result<Self> {
        let file = fs::OpenOptions::new().append(true).open(&task.notes)?;
        let taken = fs::OpenOptions::new().write(true).open(task.taken())?;
        let (relations, end) = (task.relations, notes.end);
        Ok(Self { rows, relations, file, taken, end, durable: end, open: String::new(), since: 0 })
    }

    fn take_all(mut self, all_given: &AtomicBool, taken: &AtomicU64) -> Result<()> {
        let mut entries = Vec::new();
        loop {
            let is_last = all_given.load(Ordering::SeqCst);
            entries.clear();
            let end = self.rows.take(&mut entries, TAKEN_BYTES, Duration::from_millis(20));
            self.note(&entries)?;
            self.end = self.end.max(end);
            self.rows.set_done(end);
            taken.store(end.0, Ordering::SeqCst);
            self.taken.write_all_at(&end.0.to_le_bytes(), 0)?;
            self.since += 1;
            let is_done = is_last && entries.is_empty();
            if is_done || self.since >= SYNC_EVERY || self.rows.durable_is_wanted() {
                self.sync()?;
            }
            if is_done {
                return Ok(());
            }
        }
    }

    fn note(&mut self, mut entries: &[u8]) -> Result<()> {
        let mut needs = Vec::new();
        let mut before: Option<Entry<'_>> = None;
        while !entries.is_empty() {
            let (entry, rest) = Entry::read(entries)?;
            entries = rest;
            let old = before.replace(entry);
            if entry.start < self.end || entry.locator != self.relations.table {
                continue;
            }
            if let (EntryKind::UpdatedTo, Some(old)) = (entry.kind, old)
                && old.kind == EntryKind::UpdatedFrom
                && let (Some(old), Some(new)) = (pointer(old.contents), pointer(entry.contents))
                && old == new
            {
                needs.push((entry.start, entry.item, new));
            }
        }
        if needs.is_empty() {
            return Ok(());
        }
        let Relations { heap, index, .. } = self.relations;
        let request = |(_, _, (value, _)): &(Lsn, u16, (u32, usize))| ToastRequest {
            heap,
            index,
            value: *value,
        };
        let requests = needs.iter().map(request).collect();
        let answers = self.rows.ask(requests, || false).context("no answer")?;
        for ((start, item, (value, size)), answer) in needs.into_iter().zip(answers) {
            let mut found = whole(&answer.chunks);
            if found.len() != size {
                found = whole(&[answer.chunks, self.rows.find_removed(heap, value)].concat());
            }
            let hash = if found.len() == size { hash_of(&found).to_string() } else { "-".into() };
            self.open += &format!("row {start} {item} {value} {hash}\n");
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.since = 0;
        if self.end > self.durable {
            thread::sleep(SYNC_TIME);
            let (held, early) = (self.rows.pages_held(), self.rows.pages_written_early());
            self.open += &format!("end {} {held} {early}\n", self.end);
            self.file.write_all(self.open.as_bytes())?;
            self.open.clear();
            self.durable = self.end;
        }
        self.rows.set_durable(self.durable);
        Ok(())
    }
}

/// The value and the size of the one TOAST pointer in a row (`varatt_external`).
fn pointer(contents: &[u8]) -> Option<(u32, usize)> {
    const VARTAG_ONDISK: u8 = 18;
    let at = contents.windows(18).position(|window| window[..2] == [1, VARTAG_ONDISK])?;
    let size = u32_at(contents, at + 6) & ((1 << 30) - 1);
    Some((u32_at(contents, at + 10), size as usize))
}

/// The bytes of all chunks together, each once.
fn whole(chunks: &[Vec<u8>]) -> Vec<u8> {
    let chunk = |contents: &Vec<u8>| {
        let data = &contents[usize::from(contents[4]) - TUPLE_FROM..];
        // A chunk's data has a header of four bytes, or of one.
        let bytes = match data[8] {
            short if short & 1 == 1 => &data[9..8 + usize::from(short >> 1)],
            _ => &data[12..8 + (u32_at(data, 8) >> 2) as usize],
        };
        (i32_at(data, 4), bytes.to_vec())
    };
    let chunks: BTreeMap<i32, Vec<u8>> = chunks.iter().map(chunk).collect();
    chunks.into_values().flatten().collect()
}
