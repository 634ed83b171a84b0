//! `walferry bootstrap --from`: what it refuses, what it fetches, and what an interruption leaves.

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use integration::pair::archived_segments;
use integration::process::wait_for_exit;
use integration::{
    Agent, AgentConfig, BackupWal, Cluster, ClusterOptions, PATIENCE, Scratch, Seed,
};
use rand::RngExt;
use walfmt::Lsn;

const KILLS: u32 = 10;

#[test]
fn a_base_backup_becomes_a_store() -> Result<()> {
    let mut random = Seed::take("kills of bootstrap", 7).generator();
    let scratch = Scratch::new()?;
    let leader = Cluster::start_new(&scratch, "leader", &ClusterOptions::default())?;
    leader.pgbench_init(2, &[])?;
    let mut leader_agent = Agent::new(&scratch, AgentConfig::leader("leader1", &leader)?)?;
    leader_agent.start()?;
    let load = leader.pgbench(&["-c", "2", "-R", "200", "-T", "600"])?;
    let [streamed, bare] = ["streamed", "bare"].map(|name| scratch.path().join(name));
    leader.base_backup(&streamed, BackupWal::Stream)?;
    leader.base_backup(&bare, BackupWal::None)?;
    let blueprint = AgentConfig::follower("follower", &scratch, &leader_agent)?;
    let follower = |name: &str| Agent::new(&scratch, renamed(&blueprint, name, &scratch));

    // What is in the way stays as it is.
    let occupied = follower("occupied")?;
    let target = scratch.directory("occupied-store")?;
    let precious = scratch.file("occupied-store/precious", "data")?;
    let words = refused(&occupied, &streamed, "is not empty")?;
    assert!(words.contains(&*target.to_string_lossy()), "{words}");
    assert_eq!(fs::read_to_string(&precious)?, "data");
    fs::remove_file(&precious)?;
    assert_eq!(fs::read_dir(&target)?.count(), 0);
    // The control: an empty directory is no obstacle.
    occupied.bootstrap(&streamed)?;
    assert_is_store(&scratch, &leader, &target)?;

    // Not every copy of a data directory is a backup.
    let copy = follower("copy")?;
    refused(&copy, leader.data_directory(), "backup_label")?;
    refused(&copy, &scratch.path().join("nowhere"), "backup_label")?;
    assert!(!store_of(&copy)?.exists());

    // A backup without WAL of its own: the leader's agent has it, and nobody else.
    let mut fetching = follower("fetching")?;
    let done = fetching.bootstrap(&bare)?;
    let facts = Facts::read(&done)?;
    let label = fs::read_to_string(bare.join("backup_label"))?;
    assert!(label.contains(&format!("START WAL LOCATION: {} ", facts.begins)), "{label}");
    let segment = leader.sql(&format!("select pg_walfile_name('{}')", facts.archived))?;
    let archived = archived_segments(&fetching)?;
    println!("{}: {:?}", done.trim(), archived.keys());
    assert!(facts.archived >= facts.ended && facts.ended > facts.begins);
    assert!(archived.contains_key(&segment), "{segment} is not in {archived:?}");
    assert_is_store(&scratch, &leader, store_of(&fetching)?)?;
    fetching.start()?;
    fetching.wait_for_position("replayed", facts.ended, PATIENCE)?;

    // Not while the agent runs, even into another place.
    let mut config = renamed(&blueprint, "second", &scratch);
    let run = scratch.path().join("fetching-run").to_string_lossy().into_owned();
    config.more.push(("node".into(), "run_directory".into(), run.into()));
    let second = Agent::new(&scratch, config)?;
    refused(&second, &streamed, "is running")?;
    fetching.stop()?;
    second.bootstrap(&streamed)?;

    // Interrupted at any time it leaves nothing under the store's name, and is simply run again.
    let interrupted = follower("interrupted")?;
    let store = store_of(&interrupted)?;
    let part = store.with_file_name("interrupted-store.part");
    let (mut killed, mut left) = (0, 0);
    for _ in 0..KILLS {
        let mut command = interrupted.command("bootstrap");
        command.arg("--from").arg(&streamed).stdin(Stdio::null());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        thread::sleep(Duration::from_millis(random.random_range(1..250)));
        if child.try_wait()?.is_some() {
            // This one was quicker than the kill.
            assert_is_store(&scratch, &leader, store)?;
            fs::remove_dir_all(store)?;
            continue;
        }
        child.kill()?;
        child.wait()?;
        if store.exists() {
            // It was done, if not at its end: what stands there is no part of a store.
            assert_is_store(&scratch, &leader, store)?;
            fs::remove_dir_all(store)?;
            continue;
        }
        killed += 1;
        left += u32::from(part.exists());
    }
    println!("{killed} of {KILLS} were killed, {left} of these left a part");
    ensure!(left > 0, "no kill came in time to show anything");
    interrupted.bootstrap(&streamed)?;
    assert!(!part.exists());
    assert_is_store(&scratch, &leader, store)?;

    // A backup with its WAL needs nobody.
    leader_agent.stop()?;
    let alone = follower("alone")?;
    let facts = Facts::read(&alone.bootstrap(&streamed)?)?;
    assert!(facts.archived >= facts.ended);
    assert_is_store(&scratch, &leader, store_of(&alone)?)?;
    // Nor does one that was killed while its WAL went into the archive.
    let halfway = follower("halfway")?;
    halfway.bootstrap(&streamed)?;
    fs::remove_dir_all(store_of(&halfway)?)?;
    let mut archived = archived_segments(&halfway)?;
    let (name, first) = archived.pop_first().context("a segment")?;
    for later in archived.values() {
        fs::remove_file(later)?;
    }
    let length = fs::metadata(&first)?.len();
    OpenOptions::new().write(true).open(&first)?.set_len(length / 2)?;
    let mut command = halfway.command("bootstrap");
    command.arg("--from").arg(&streamed).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::null()).spawn()?;
    let exit = wait_for_exit(&mut child, PATIENCE);
    let _ = child.kill();
    assert_eq!(exit?.code(), Some(0), "{name} was cut, and the backup has all of it");
    assert_is_store(&scratch, &leader, store_of(&halfway)?)?;
    // The control: one without waits for a peer, says so, and may be killed.
    let waiting = follower("waiting")?;
    let mut command = waiting.command("bootstrap");
    command.arg("--from").arg(&bare).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let waited = wait_for_exit(&mut child, Duration::from_secs(2));
    child.kill()?;
    child.wait()?;
    assert!(waited.is_err(), "there was nobody to ask: {waited:?}");
    assert!(!store_of(&waiting)?.exists());
    leader_agent.start()?;
    waiting.bootstrap(&bare)?;

    load.stop()?;
    for mut agent in [interrupted, alone, waiting] {
        agent.start()?;
        let end: Lsn = leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
        agent.wait_for_position("replayed", end, PATIENCE)?;
        agent.stop()?;
    }
    Ok(())
}

/// A cluster whose configuration lies elsewhere, as Debian's: the store gets the least that a server
/// needs, with what recovery demands, and is promoted with it.
#[test]
fn a_backup_without_configuration_can_be_promoted() -> Result<()> {
    let scratch = Scratch::new()?;
    let settings =
        ["max_connections = 137", "max_prepared_transactions = 21", "wal_keep_size = 1GB"];
    let options = ClusterOptions {
        settings: settings.map(str::to_owned).to_vec(),
        ..ClusterOptions::default()
    };
    let leader = Cluster::start_new(&scratch, "leader", &options)?;
    leader.pgbench_init(1, &[])?;
    let mut leader_agent = Agent::new(&scratch, AgentConfig::leader("leader1", &leader)?)?;
    leader_agent.start()?;
    let backup = scratch.path().join("backup");
    leader.base_backup(&backup, BackupWal::Stream)?;
    // The control: with a configuration of its own nothing is written.
    let with = Agent::new(&scratch, AgentConfig::follower("with", &scratch, &leader_agent)?)?;
    let said = with.bootstrap(&backup)?;
    assert!(!said.contains("postgresql.conf"), "{said}");
    let name = "postgresql.conf";
    assert_eq!(fs::read(backup.join(name))?, fs::read(store_of(&with)?.join(name))?);

    for name in [name, "pg_hba.conf", "pg_ident.conf"] {
        fs::remove_file(backup.join(name))?;
    }
    let mut follower =
        Agent::new(&scratch, AgentConfig::follower("without", &scratch, &leader_agent)?)?;
    let said = follower.bootstrap(&backup)?;
    println!("{said}");
    assert!(said.contains("the backup has no postgresql.conf"), "{said}");
    let written = fs::read_to_string(store_of(&follower)?.join(name))?;
    for line in ["max_connections = 137\n", "max_prepared_transactions = 21\n"] {
        assert!(written.contains(line), "{written}");
    }
    follower.start()?;
    let end = leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
    follower.wait_for_position("replayed", end, PATIENCE)?;
    let promoted = follower.promote("promoted", &["--leader-is-dead"])?;
    // Whoever runs the server may connect as the role of the same name, and that is all.
    let rows = promoted.sql("select count(*) from pgbench_accounts");
    if rustix::process::geteuid().is_root() {
        assert_eq!(rows?, "100000");
    }
    Ok(())
}

/// What `bootstrap` says when it is done.
#[derive(Debug)]
struct Facts {
    begins: Lsn,
    ended: Lsn,
    archived: Lsn,
}

impl Facts {
    fn read(text: &str) -> Result<Self> {
        let after = |words: &str| -> Result<Lsn> {
            let (_, rest) = text.split_once(words).with_context(|| text.to_owned())?;
            let lsn = rest.trim_start().split([',', '\n']).next().unwrap_or_default();
            lsn.parse().with_context(|| text.to_owned())
        };
        Ok(Self {
            begins: after("replay begins at")?,
            ended: after("the backup ended at")?,
            archived: after("the archive holds WAL up to")?,
        })
    }
}

/// A follower of the same leader under another name, with its own store; only one of them runs at a
/// time.
fn renamed(blueprint: &AgentConfig, name: &str, scratch: &Scratch) -> AgentConfig {
    let mut config = AgentConfig { name: name.to_owned(), ..blueprint.clone() };
    if let Some(store) = &mut config.store {
        store.data_directory = scratch.path().join(format!("{name}-store"));
    }
    config
}

fn store_of(agent: &Agent) -> Result<&Path> {
    Ok(&agent.config.store.as_ref().context("a follower has a store")?.data_directory)
}

/// Bootstraps, which must be refused as wrong usage; gives the words.
fn refused(agent: &Agent, from: &Path, because: &str) -> Result<String> {
    let from = from.to_str().context("a path in UTF-8")?;
    let outcome = agent.verb("bootstrap", &["--from", from])?;
    assert_eq!(outcome.exit, Some(2), "{outcome:?}");
    assert!(outcome.stderr.contains(because), "{outcome:?}");
    assert!(outcome.stderr.contains("hint: "), "{outcome:?}");
    println!("exit 2: {}", outcome.stderr.lines().next().unwrap_or_default());
    Ok(outcome.stderr)
}

/// What stands in a directory is a store that an agent can replay into, and that no server opens.
fn assert_is_store(scratch: &Scratch, leader: &Cluster, store: &Path) -> Result<()> {
    let binaries = leader.endpoint().binaries.clone();
    let data = Cluster::at(scratch, "store", store, binaries)?.control_data()?;
    assert_eq!(data["Database cluster state"], "in archive recovery");
    assert_eq!(
        data["Database system identifier"],
        leader.control_data()?["Database system identifier"]
    );
    assert!(store.join("recovery.signal").exists());
    assert!(store.join("backup_label.old").exists() && !store.join("backup_label").exists());
    assert_eq!(fs::read_dir(store.join("pg_wal"))?.count(), 1, "archive_status only");
    assert!(!store.join("postmaster.pid").exists());
    Ok(())
}
