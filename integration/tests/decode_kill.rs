//! `kill -9` of a follower that captures rows, and of who consumes them, many times: no row is lost, and
//! none is invented or told twice.
//!
//! ```text
//!  sessions ─► leader ─► agent ─► follower (killed) ─► spool ─► walferry decode --follow (killed)
//!                │                                       └────► walferry decode, once ──┐ the same
//!                └── slot of test_decoding ───────────────────────────────────────────┘ rows
//! ```
//!
//! SIGKILL leaves what was written in the page cache. What a power cut leaves is made from copies of the
//! store and the spool: the spool ends where the store's restart point says that it is synced to.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use integration::decoding::comparison::Judge;
use integration::decoding::consumer::{self, Consumed};
use integration::decoding::slot::partitioned_tables;
use integration::decoding::spool::{self, Damage, SpoolWatch};
use integration::decoding::{Comparison, Rules, Slot, lines};
use integration::process::wait_until;
use integration::{Agent, ClusterOptions, PATIENCE, Pair, Scratch, Seed};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio::runtime::Runtime;
use tokio_postgres::{Client, NoTls};
use walfmt::Lsn;
use walfmt::control::ControlFile;

/// The consumer is killed again and again while it reads what the kills of the follower have left.
const LAST_LINE_PATIENCE: Duration = Duration::from_secs(180);
/// How often the follower is killed, unless `WALFERRY_DECODE_KILLS` says otherwise.
const KILLS: u32 = 200;
/// How many of them must be within one and the same transaction.
const KILLS_WITHIN_LEAST: usize = 50;
/// Rows of a big transaction, and in how many pieces they come: one for each kill.
const BIG_ROWS: u32 = 100_000;
const BIG_PIECES: u32 = 62;
const SESSIONS: u32 = 3;
/// What the last message says.
const LAST: &str = "\"prefix\":\"the end\"";

#[test]
fn killed_captures_lose_nothing() -> Result<()> {
    let seed = Seed::take("killed_captures_lose_nothing", 200);
    let kills = std::env::var("WALFERRY_DECODE_KILLS").map_or(Ok(KILLS), |text| text.parse())?;
    let begun = Instant::now();
    let mut stand = Stand::start(seed)?;
    println!("[{:5.1} s] the follower captures rows", begun.elapsed().as_secs_f64());
    let shared = Shared::default();
    let runtime = runtime()?;
    let follow = command_of(&stand.pair.follower);
    let conninfo = stand.pair.leader.endpoint().conninfo();
    let (log, bigs, consumed) = thread::scope(|scope| {
        let _ends = EndsOnDrop(&shared);
        let (shared, runtime, conninfo) = (&shared, &runtime, &conninfo);
        let sessions: Vec<_> = (0..SESSIONS)
            .map(|number| {
                let generator = StdRng::seed_from_u64(seed.0 + 1 + u64::from(number));
                let copied = stand.copied.clone();
                scope.spawn(move || small(runtime, conninfo, number, generator, &copied, shared))
            })
            .collect();
        let checkpoints = scope.spawn(|| checkpoints(runtime, conninfo, shared));
        let bigs = scope.spawn(|| big_transactions(runtime, conninfo, shared));
        let generator = StdRng::seed_from_u64(seed.0 + 100);
        let gives_up = || shared.gives_up();
        let consumer = scope.spawn(move || consumer::consume(follow, LAST, generator, gives_up));
        let log = stand.kill_often(kills, seed.generator(), shared)?;
        println!("[{:5.1} s] {kills} kills are done", begun.elapsed().as_secs_f64());
        shared.end();
        for session in sessions {
            session.join().expect("no panic")?;
        }
        checkpoints.join().expect("no panic")?;
        let bigs = bigs.join().expect("no panic")?;
        stand.pair.leader.sql("select pg_logical_emit_message(false, 'the end', '')")?;
        stand.pair.leader.sql("create table flush_what_is_there ()")?;
        let consumed = consumer.join().expect("no panic");
        let consumed = consumed.with_context(|| stand.pair.follower.log_tail(30))?;
        anyhow::Ok((log, bigs, consumed))
    })?;
    println!("[{:5.1} s] the consumer has the last line", begun.elapsed().as_secs_f64());
    report(seed, &log, &bigs, &consumed, &stand)?;
    stand.compare(&consumed)?;
    println!("[{:5.1} s] all is compared", begun.elapsed().as_secs_f64());
    stand.damaged_spools_are_noticed()?;
    stand.power_cuts(seed.generator())?;
    println!("[{:5.1} s] done", begun.elapsed().as_secs_f64());
    Ok(())
}

/// What threads tell each other.
#[derive(Default)]
struct Shared {
    kills: AtomicU32,
    /// When everything was told to come to its end.
    ending: OnceLock<Instant>,
    /// As a failure does.
    failed: AtomicBool,
}

impl Shared {
    fn end(&self) {
        self.ending.get_or_init(Instant::now);
    }

    fn is_ending(&self) -> bool {
        self.ending.get().is_some()
    }

    /// What has not come by now will not come.
    fn gives_up(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
            || self.ending.get().is_some_and(|since| since.elapsed() > LAST_LINE_PATIENCE)
    }
}

/// Whatever happens to the test, its threads end.
struct EndsOnDrop<'a>(&'a Shared);

impl Drop for EndsOnDrop<'_> {
    fn drop(&mut self) {
        self.0.end();
        self.0.failed.store(true, Ordering::SeqCst);
    }
}

/// A kill of the follower.
#[derive(Clone, Copy, Debug)]
struct Kill {
    /// Where the spool ended before the agent was started, and when it was dead.
    before: Lsn,
    end: Lsn,
    /// From its start until the spool grew.
    until_growth: Option<Duration>,
    torn: bool,
}

/// From where to where a big transaction's records are: its first change, and its commit.
#[derive(Clone, Copy, Debug)]
struct Big {
    begin: Lsn,
    commit: Lsn,
}

struct Stand {
    pair: Pair,
    spool: PathBuf,
    copied: PathBuf,
    scratch: Scratch,
}

impl Stand {
    fn start(seed: Seed) -> Result<Self> {
        let scratch = Scratch::new()?;
        let settings = [
            "wal_level = logical",
            "wal_keep_size = 4GB",
            "autovacuum = off",
            "checkpoint_timeout = 1h",
            "max_wal_size = 4GB",
        ];
        let options = ClusterOptions {
            settings: settings.map(str::to_owned).to_vec(),
            ..ClusterOptions::default()
        };
        let spool = scratch.directory("rows")?;
        let directory = spool.to_str().context("a path in UTF-8")?;
        let more = [
            ("store", "restart_point_interval", "200ms"),
            ("store", "cache_bytes", "16MB"),
            ("decode", "directory", directory),
        ];
        let copied = scratch.directory("copied")?.join("rows");
        let pair = Pair::start_configured(&scratch, &options, &more, |leader| {
            leader.sql("create table big (id int primary key, piece int, note text)")?;
            for number in 0..SESSIONS {
                leader.sql(&format!(
                    "create table small{number} (id serial primary key, note text, long text);
                     alter table small{number} alter long set storage external"
                ))?;
            }
            let copied = copied.display();
            leader.sql(&format!(
                "copy (select 'copied ' || i from generate_series(1, 200) i) to '{copied}'"
            ))?;
            Slot::create(leader).map(drop)
        })?;
        let mut watch = SpoolWatch::new(&spool);
        wait_until("rows are captured", PATIENCE, || Ok(watch.end()?.is_valid()))?;
        // Killed in the moment between both, rows would begin once more.
        wait_until("the store keeps that pages wait for them", PATIENCE, || {
            Ok(fs::read_to_string(pair.store().join("walferry.lock"))?.contains("held"))
        })?;
        println!("seed {}", seed.0);
        Ok(Self { pair, spool, copied, scratch })
    }

    /// Kills the follower again and again, and starts it each time.
    fn kill_often(&mut self, kills: u32, mut draw: StdRng, shared: &Shared) -> Result<Vec<Kill>> {
        let mut watch = SpoolWatch::new(&self.spool);
        let mut log = Vec::new();
        for number in 0..kills {
            let (before, begun) = (watch.end()?, Instant::now());
            if number > 0 {
                self.pair.follower.spawn()?;
            }
            // Some are killed wherever their start is; most when they are at work.
            let mut until_growth = None;
            if draw.random_range(0..8) > 0 {
                let grows = || Ok(watch.end()? > before);
                wait_quickly(grows).with_context(|| {
                    format!("kill {number}: {}", self.pair.follower.log_tail(30))
                })?;
                until_growth = Some(begun.elapsed());
            }
            thread::sleep(Duration::from_millis(draw.random_range(5..150)));
            let running = self.pair.follower.is_running();
            ensure!(running, "the follower has ended\n{}", self.pair.follower.log_tail(30));
            self.pair.follower.kill()?;
            let end = watch.end()?;
            let torn = draw.random_range(0..5) == 0 && watch.tear(draw.random_range(1..1 << 20))?;
            log.push(Kill { before, end, until_growth, torn });
            shared.kills.fetch_add(1, Ordering::SeqCst);
            ensure!(!shared.failed.load(Ordering::SeqCst), "a session has failed");
        }
        self.pair.follower.start()?;
        Ok(log)
    }

    /// The consumer's lines are those that are told in one go, and `test_decoding` has the same rows.
    fn compare(&mut self, consumed: &Consumed) -> Result<()> {
        let text = self.pair.follower.run_verb("decode", &[])?;
        let whole: Vec<&str> = text.lines().collect();
        let at_last = whole.iter().position(|line| line.contains(LAST)).context("the last line")?;
        let whole = &whole[..=at_last];
        let found = || consumed.lines.iter().map(String::as_str);
        let same = consumer::ensure_same(whole.iter().copied(), found())?;
        println!("{same} lines are the same, whether told in one go or in {}", consumed.kills + 1);
        ensure!(consumed.untold_shapes.is_empty(), "{:?}", consumed.untold_shapes.first());
        // Negative controls: one line too late, one too early, in the middle of a transaction.
        let middle = consumed.lines.len() / 2;
        let is_row =
            |line: &String| matches!(consumer::kind_of(line), "insert" | "update" | "delete");
        let at = consumed.lines[middle..].iter().position(is_row).context("a row")? + middle;
        let late = found().take(at).chain(found().skip(at + 1));
        let error = consumer::ensure_same(whole.iter().copied(), late).err();
        println!("control, one too late: {}", shown(&error.context("was not noticed")?));
        let early = found().take(at + 1).chain(found().skip(at));
        let error = consumer::ensure_same(whole.iter().copied(), early).err();
        println!("control, one too early: {}", shown(&error.context("was not noticed")?));

        let judge = Slot::of(&self.pair.leader).peek()?;
        let partitioned = partitioned_tables(&self.pair.leader)?;
        let rules = Rules { judge: Judge::Identity, same_wal: true, partitioned };
        let ours = lines::parse(&found().fold(String::new(), |all, line| all + line + "\n"))?;
        let comparison = Comparison::between(&judge, &ours, &rules);
        println!("test_decoding: {comparison}");
        comparison.ensure_equal(u64::from(BIG_ROWS) * 3)
    }

    /// `walferry decode` says what is wrong with a spool that was damaged.
    fn damaged_spools_are_noticed(&mut self) -> Result<()> {
        self.pair.follower.stop()?;
        let kept = copy_of(&self.spool, &self.scratch.path().join("kept-rows"))?;
        for damage in Damage::ALL {
            // The newest may have begun just now.
            let files = spool::files(&self.spool)?;
            let long = |path: &&PathBuf| {
                spool::chunks(path).is_ok_and(|all| all.len() >= Damage::CHUNKS_MIN)
            };
            damage.apply(files.iter().rev().find(long).context("a file")?)?;
            let outcome = self.pair.follower.verb("decode", &[])?;
            let first = outcome.stderr.lines().next().unwrap_or_default();
            println!("control, {damage:?}: exit {:?}, {first}", outcome.exit);
            ensure!(outcome.exit == Some(1), "{damage:?} was not noticed");
            put_back(&kept, &self.spool)?;
        }
        Ok(())
    }

    /// What a power cut may leave of the spool: all up to the restart point, and no more. Then what
    /// would be left if restart points did not wait for the spool.
    fn power_cuts(&mut self, mut draw: StdRng) -> Result<()> {
        let follower = &mut self.pair.follower;
        let expected = follower.run_verb("decode", &[])?;
        let store = follower.config.store.as_ref().context("a store")?.data_directory.clone();
        let control = fs::read(store.join("global/pg_control"))?;
        let redo = ControlFile::from_bytes(&control)?.check_point_copy.redo;
        let newest = spool::files(&self.spool)?.pop().context("a file")?;
        let chunks = spool::chunks(&newest)?;
        let needed = chunks.iter().position(|chunk| chunk.end >= redo);
        let needed = needed.with_context(|| format!("the spool ends before {redo}"))?;
        let behind = chunks.len() - 1 - needed;
        let kept = chunks[needed];
        let cut = kept.offset + kept.length + u64::from(behind > 0) * draw.random_range(0..20);
        fs::File::options().write(true).open(&newest)?.set_len(cut)?;
        println!("power cut: redo {redo}, {behind} chunks behind {} are gone", kept.end);
        follower.start()?;
        let end = self.pair.catch_up(PATIENCE)?;
        wait_decoded(&mut self.pair.follower, end)?;
        let follower = &mut self.pair.follower;
        let again = follower.run_verb("decode", &[])?;
        let until = expected.lines().count();
        let same = consumer::ensure_same(expected.lines(), again.lines().take(until))?;
        println!("after a power cut: the same {same} lines");

        // The guard off: the last chunk that the restart point relies on is not there. Replay brings
        // rows again, but those before the restart point.
        // A restart point in the newest file of the spool, so that it has a chunk before it.
        self.pair.restart_point_beyond(self.pair.flush_position()?)?;
        self.pair.leader.sql("insert into small0 (note) values ('behind the hole')")?;
        let end = self.pair.catch_up(PATIENCE)?;
        wait_decoded(&mut self.pair.follower, end)?;
        let follower = &mut self.pair.follower;
        let again = follower.run_verb("decode", &[])?;
        ensure!(again.contains("behind the hole"));
        follower.stop()?;
        let control = fs::read(store.join("global/pg_control"))?;
        let redo = ControlFile::from_bytes(&control)?.check_point_copy.redo;
        let newest = spool::files(&self.spool)?.pop().context("a file")?;
        let chunks = spool::chunks(&newest)?;
        let before = chunks.iter().rposition(|chunk| chunk.end < redo).context("a chunk before")?;
        let before = chunks[before];
        fs::File::options().write(true).open(&newest)?.set_len(before.offset + before.length)?;
        follower.start()?;
        self.pair.leader.sql("insert into small0 (note) values ('behind the gap')")?;
        let end = self.pair.catch_up(PATIENCE)?;
        wait_decoded(&mut self.pair.follower, end)?;
        let outcome = self.pair.follower.verb("decode", &[])?;
        println!("control, no guard: exit {:?}, {}", outcome.exit, outcome.stderr.trim());
        ensure!(outcome.exit == Some(3) && outcome.stderr.contains("are missing"), "not noticed");
        let told = outcome.stdout.lines().count();
        consumer::ensure_same(again.lines().take(told), outcome.stdout.lines())?;
        ensure!(!outcome.stdout.contains("behind the"), "told as if nothing were missing");
        // Whoever goes on from before the gap with the new file alone is told as well.
        fs::remove_file(&newest)?;
        let after = format!("{}/0", before.end);
        let outcome = self.pair.follower.verb("decode", &["--after", &after])?;
        ensure!(outcome.exit == Some(3), "{outcome:?}");
        Ok(())
    }
}

/// The numbers, and that they are what the test is for.
fn report(
    seed: Seed,
    log: &[Kill],
    bigs: &[Big],
    consumed: &Consumed,
    stand: &Stand,
) -> Result<()> {
    let grew = log.iter().filter(|kill| kill.end > kill.before).count();
    let torn = log.iter().filter(|kill| kill.torn).count();
    let mut growth: Vec<Duration> = log.iter().filter_map(|kill| kill.until_growth).collect();
    growth.sort_unstable();
    let text = fs::read_to_string(stand.pair.follower.log_path())?;
    let count = |words: &str| text.lines().filter(|line| line.contains(words)).count();
    let cut_back = count("row spool cut back");
    println!(
        "seed {}: {} kills, {grew} of an agent that had added rows since its start (after {:?} in the \
         median, {:?} at most); {} restart points; the spool was cut back {cut_back} times, {torn} of \
         them torn by the test",
        seed.0,
        log.len(),
        growth.get(growth.len() / 2),
        growth.last(),
        count("restart point"),
    );
    // The spool ended behind the first and before the last record of the transaction.
    let is_within = |big: &Big, kill: &&Kill| big.begin < kill.end && kill.end <= big.commit;
    let within = |big: &Big| log.iter().filter(|kill| is_within(big, kill)).count();
    let within: Vec<usize> = bigs.iter().map(within).collect();
    println!("kills within each transaction of {BIG_ROWS} rows: {within:?}");
    println!(
        "consumer: {} kills, {} within a transaction, {} within a line, {} with nothing to read",
        consumed.kills, consumed.kills_within, consumed.torn_lines, consumed.idle_kills
    );
    ensure!(grew * 2 > log.len(), "most kills hit nothing");
    ensure!(within.iter().any(|kills| *kills >= KILLS_WITHIN_LEAST), "too few within one");
    ensure!(
        consumed.kills_within > 0 && consumed.torn_lines > 0,
        "no kill was within a transaction"
    );
    ensure!(torn > 0 && cut_back >= torn, "the spool was not cut back");
    ensure!(spool::bases(&stand.spool)? == 1, "the spool began anew");
    Ok(())
}

/// Polls more often than [`wait_until`].
fn wait_quickly(mut condition: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !condition()? {
        ensure!(Instant::now() < deadline, "no rows within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

fn wait_decoded(follower: &mut Agent, end: Lsn) -> Result<()> {
    let waited = wait_until("rows are decoded", PATIENCE, || {
        Ok(follower.metrics()?.position("decoded").is_some_and(|decoded| decoded >= end))
    });
    waited.with_context(|| follower.log_tail(30))
}

/// Gives `walferry decode --follow`, each time anew.
fn command_of(agent: &Agent) -> impl Fn() -> Command + Send + use<> {
    let template = agent.command("decode");
    let program = template.get_program().to_owned();
    let arguments: Vec<_> = template.get_args().map(ToOwned::to_owned).collect();
    move || {
        let mut command = Command::new(&program);
        command.args(&arguments).arg("--follow");
        command
    }
}

fn copy_of(directory: &Path, copy: &Path) -> Result<PathBuf> {
    fs::create_dir_all(copy)?;
    for path in spool::files(directory)? {
        fs::copy(&path, copy.join(path.file_name().context("a name")?))?;
    }
    Ok(copy.to_owned())
}

fn put_back(copy: &Path, directory: &Path) -> Result<()> {
    for path in spool::files(copy)? {
        // Contents only: the file stays the account's.
        fs::write(directory.join(path.file_name().context("a name")?), fs::read(&path)?)?;
    }
    Ok(())
}

fn shown(error: &anyhow::Error) -> String {
    error.to_string().chars().take(120).collect()
}

fn runtime() -> Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().context("cannot start a runtime")
}

/// A connection to run statements with.
struct Session<'a> {
    runtime: &'a Runtime,
    client: Client,
}

impl<'a> Session<'a> {
    fn connect(runtime: &'a Runtime, conninfo: &str) -> Result<Self> {
        let client = runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await?;
            tokio::spawn(connection);
            anyhow::Ok(client)
        })?;
        Ok(Self { runtime, client })
    }

    fn run(&self, sql: &str) -> Result<()> {
        let result = self.runtime.block_on(self.client.batch_execute(sql));
        result.with_context(|| sql.chars().take(200).collect::<String>())
    }

    fn position(&self) -> Result<Lsn> {
        let query = self.client.query_one("select pg_current_wal_insert_lsn()::text", &[]);
        let row = self.runtime.block_on(query)?;
        row.get::<_, &str>(0).parse().context("an LSN")
    }
}

/// Small transactions of one session, until the end.
fn small(
    runtime: &Runtime,
    conninfo: &str,
    number: u32,
    mut draw: StdRng,
    copied: &Path,
    shared: &Shared,
) -> Result<()> {
    let session = Session::connect(runtime, conninfo)?;
    let table = format!("small{number}");
    for turn in 0_u32.. {
        if shared.is_ending() {
            return Ok(());
        }
        let some = draw.random_range(1..30);
        let sql = match draw.random_range(0..9) {
            0 => format!(
                "begin; insert into {table} (note) values ('before');
                 savepoint a; insert into {table} (note) select 'gone' from generate_series(1, {some});
                 rollback to a; savepoint b; insert into {table} (note) values ('kept {turn}');
                 savepoint c; update {table} set note = note || '.' where id % 50 = {some};
                 release c; commit"
            ),
            1 => format!(
                "begin; insert into {table} (note) select 'never' from generate_series(1, {some});
                 delete from {table} where id % 7 = 1; rollback"
            ),
            2 => format!("copy {table} (note) from '{}'", copied.display()),
            3 => format!(
                "insert into {table} (note, long) select 'long', string_agg(md5(i::text || '{turn}'), '')
                 from generate_series(1, 100 * {some}) i"
            ),
            4 => format!("update {table} set note = 'of turn {turn}' where id % 40 = {some}"),
            5 => format!(
                "update {table} set long = long || 'and more' where long is not null and id % 10 = {some} % 10
                 and length(long) < 50000"
            ),
            6 => format!("delete from {table} where id % 30 = {some}"),
            7 => format!(
                "create table made{number}_{turn} (a int); insert into made{number}_{turn} values (1);
                 begin; alter table made{number}_{turn} add b text default 'new';
                 insert into made{number}_{turn} values (2, 'two'); commit;
                 alter table made{number}_{turn} drop a; update made{number}_{turn} set b = 'changed';
                 truncate made{number}_{turn}; drop table made{number}_{turn}"
            ),
            _ => format!("insert into {table} (note) values ('turn {turn}')"),
        };
        // Not in one transaction, as several statements at once would be.
        let statements: Vec<&str> = sql.split(';').filter(|part| !part.trim().is_empty()).collect();
        for statement in statements {
            session.run(statement).inspect_err(|_| shared.failed.store(true, Ordering::SeqCst))?;
        }
        thread::sleep(Duration::from_millis(draw.random_range(5..60)));
    }
    Ok(())
}

/// Restart points follow from them.
fn checkpoints(runtime: &Runtime, conninfo: &str, shared: &Shared) -> Result<()> {
    let session = Session::connect(runtime, conninfo)?;
    while !shared.is_ending() {
        session.run("checkpoint")?;
        thread::sleep(Duration::from_millis(700));
    }
    Ok(())
}

/// Insertions, then updates, then deletions, a piece for each kill. The last one that is begun when the
/// kills are over is finished in one go.
fn big_transactions(runtime: &Runtime, conninfo: &str, shared: &Shared) -> Result<Vec<Big>> {
    let session = Session::connect(runtime, conninfo)?;
    let mut bigs = Vec::new();
    let size = BIG_ROWS.div_ceil(BIG_PIECES);
    for which in 0..3 {
        session.run("begin")?;
        let begin = session.position()?;
        for piece in 0..BIG_PIECES {
            let (from, to) = (piece * size + 1, (piece * size + size).min(BIG_ROWS));
            let sql = match which {
                0 => format!(
                    "insert into big select i, {piece}, 'row ' || i from generate_series({from}, {to}) i"
                ),
                1 => format!("update big set note = note || '!' where id between {from} and {to}"),
                _ => format!("delete from big where id between {from} and {to}"),
            };
            // Some in a subtransaction, some of those first tried in vain.
            if piece % 5 == 0 {
                session.run("savepoint a")?;
                session.run(&sql)?;
                session.run("rollback to a")?;
            }
            if piece % 3 == 0 {
                session.run("savepoint b")?;
            }
            session.run(&sql)?;
            let seen = shared.kills.load(Ordering::SeqCst);
            while shared.kills.load(Ordering::SeqCst) == seen && !shared.is_ending() {
                thread::sleep(Duration::from_millis(5));
            }
            if shared.failed.load(Ordering::SeqCst) {
                bail!("something else has failed");
            }
        }
        let commit = session.position()?;
        session.run("commit")?;
        bigs.push(Big { begin, commit });
    }
    Ok(bigs)
}
