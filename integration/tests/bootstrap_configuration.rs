//! A leader whose configuration lies outside of its data directory, as Debian's: the promoted server
//! behaves as the leader did, lets in whom the leader let in, and starts on another machine.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use integration::agent::{Source, VerbOutcome};
use integration::authority::authority;
use integration::process::wait_until;
use integration::{
    Agent, AgentConfig, Binaries, Cluster, ClusterOptions, PATIENCE, Scratch, StopMode,
};

const FAST: &[&str] = &["--fast-checkpoint"];
const FILES: [&str; 3] = ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"];
/// A locale that only the leader's server has.
const LOCALE: &str = "xx_XX.UTF-8";
/// What the promoted server has otherwise than the leader, and why.
const EXCLUDED: [(&str, &str); 7] = [
    ("cluster_name", "the leader's name"),
    ("external_pid_file", "a path of the leader's"),
    ("lc_messages", "a locale that this machine does not have"),
    ("listen_addresses", "addresses of the leader's machine"),
    ("log_directory", "a path of the leader's"),
    ("restore_command", "for recovery"),
    ("shared_preload_libraries", "one of two libraries is not here"),
];

type Rows = BTreeMap<String, String>;

fn rows(server: &Cluster, which: &str) -> Result<Rows> {
    let text =
        server.sql(&format!("select name || '|' || setting from pg_settings where {which}"))?;
    let pairs = text.lines().filter_map(|line| line.split_once('|'));
    Ok(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
}

/// How many settings were compared, and those that differ: all that stand in a file of one of them.
fn compare_settings(leader: &Cluster, promoted: &Cluster) -> Result<(usize, Vec<String>)> {
    let in_file = "source = 'configuration file'";
    let (of_leader, of_promoted) = (rows(leader, "true")?, rows(promoted, "true")?);
    let mut names: Vec<String> = rows(leader, in_file)?.into_keys().collect();
    names.extend(rows(promoted, in_file)?.into_keys());
    names.sort();
    names.dedup();
    names.retain(|name| EXCLUDED.iter().all(|(excluded, _)| excluded != name));
    let differ = names.iter().filter(|name| of_leader.get(*name) != of_promoted.get(*name));
    let differ = differ
        .map(|name| format!("{name}: {:?}, {:?}", of_leader.get(name), of_promoted.get(name)));
    Ok((names.len(), differ.collect()))
}

fn access(server: &Cluster) -> Result<String> {
    let rules = server.sql(
        "select line_number, type, database, user_name, address, netmask, auth_method, options, \
         error from pg_hba_file_rules",
    )?;
    let maps = server.sql(
        "select line_number, map_name, sys_name, pg_username, error from pg_ident_file_mappings",
    )?;
    Ok(format!("{rules}\n{maps}"))
}

struct Debian {
    scratch: Scratch,
    leader: Cluster,
    etc: PathBuf,
}

impl Debian {
    /// Its configuration in a directory of its own, with settings that a user would miss.
    fn new() -> Result<Self> {
        let scratch = Scratch::new()?;
        let mut leader = Cluster::init(&scratch, "leader", &ClusterOptions::default())?;
        let etc = scratch.directory("etc")?;
        for name in FILES {
            fs::rename(leader.data_directory().join(name), etc.join(name))?;
        }
        let locales = scratch.directory("locales")?;
        let copied = Command::new("cp")
            .args(["-r", "/usr/lib/locale/C.utf8"])
            .arg(locales.join("xx_XX.utf8"))
            .status()?;
        ensure!(copied.success(), "no locale to copy");
        leader.environment.push(("LOCPATH".to_owned(), locales));

        // A library that only the leader has loaded, and certificates in its data directory.
        let libraries = scratch.directory("libraries")?;
        let own = Binaries::find()?.directory().join("../lib/auto_explain.so");
        fs::copy(own, libraries.join("only_here.so")).context("a library")?;
        let certificates = authority(&scratch, "authority", &["leader"], 30)?;
        for (from, to) in [("leader.crt", "server.crt"), ("leader.key", "server.key")] {
            let file = scratch.file(&format!("leader/{to}"), fs::read(certificates.join(from))?)?;
            fs::set_permissions(file, fs::Permissions::from_mode(0o600))?;
        }
        let directory = etc.display();
        let lines = format!(
            "data_directory = '{data}'\n\
             hba_file = '{directory}/pg_hba.conf'\n\
             ident_file = '{directory}/pg_ident.conf'\n\
             external_pid_file = '{directory}/pid'\n\
             log_directory = '{directory}'\n\
             cluster_name = '15/main'\n\
             restore_command = 'false'\n\
             TimeZone = 'Asia/Kathmandu'\n\
             log_timezone = 'Asia/Kathmandu'\n\
             DateStyle = 'SQL, DMY'\n\
             default_text_search_config = 'pg_catalog.german'\n\
             log_line_prefix = 'it''s \\\\ \"%m\" [%p] '\n\
             search_path = '\"$user\", \"a, b\", public'\n\
             lc_messages = '{LOCALE}'\n\
             work_mem = 7MB\n\
             shared_buffers = 48MB\n\
             max_connections = 137\n\
             random_page_cost = 1.3\n\
             statement_timeout = 1h\n\
             log_file_mode = 0640\n\
             ssl = on\n\
             password_encryption = md5\n\
             dynamic_library_path = '$libdir:{libraries}'\n\
             shared_preload_libraries = 'pg_stat_statements, only_here'\n\
             pg_stat_statements.max = 1234\n",
            data = leader.data_directory().display(),
            libraries = libraries.display(),
        );
        append(&etc.join(FILES[0]), &lines)?;
        append(&etc.join(FILES[1]), "host all \"some one\" 10.1.2.0/24 scram-sha-256 # é\n")?;
        append(&etc.join(FILES[2]), "map /^(.*)@example\\.org$ \\1\n")?;
        let file = etc.join(FILES[0]);
        leader.arguments = vec!["-c".to_owned(), format!("config_file={}", file.display())];
        leader.start()?;
        leader.sql("alter system set maintenance_work_mem = '33MB'")?;
        leader.sql("select pg_reload_conf()")?;
        leader.sql(&format!("create database elsewhere template template0 locale '{LOCALE}'"))?;
        leader.sql("create table t as select 1 n")?;
        fs::remove_file(libraries.join("only_here.so"))?;
        Ok(Self { scratch, leader, etc })
    }

    fn follower(&self, name: &str, of: &Agent) -> Result<(Agent, VerbOutcome)> {
        let follower = Agent::new(&self.scratch, AgentConfig::follower(name, &self.scratch, of)?)?;
        let done = follower.verb("bootstrap", FAST)?;
        ensure!(done.exit == Some(0), "{done:?}");
        println!("{}{}", done.stdout, done.stderr);
        Ok((follower, done))
    }
}

/// Starts an agent, and waits until it can give a backup.
fn start(agent: &mut Agent) -> Result<()> {
    agent.start()?;
    agent.wait_for_state("tail", "streaming")?;
    // By then it has asked which locales the server's databases need.
    agent.wait_for_state("horizon", "streaming")
}

fn append(path: &Path, text: &str) -> Result<()> {
    let file = OpenOptions::new().append(true).open(path);
    Ok(file.with_context(|| path.display().to_string())?.write_all(text.as_bytes())?)
}

fn store_of(agent: &Agent) -> Result<&Path> {
    Ok(&agent.config.store.as_ref().context("a follower has a store")?.data_directory)
}

#[test]
fn the_promoted_server_has_the_leaders_settings() -> Result<()> {
    let debian = Debian::new()?;
    let (scratch, leader) = (&debian.scratch, &debian.leader);
    let mut leader_agent = Agent::new(scratch, AgentConfig::leader("leader1", leader)?)?;
    start(&mut leader_agent)?;
    let (mut follower, done) = debian.follower("follower", &leader_agent)?;
    assert!(done.stdout.contains("of the leader's settings was written"), "{done:?}");
    for words in ["only_here", "lc_messages", "need locales that this machine has not: xx_XX.UTF-8"]
    {
        assert!(done.stderr.contains(words), "{words}: {done:?}");
    }
    let written = fs::read_to_string(store_of(&follower)?.join(FILES[0]))?;
    println!("{written}");
    for (name, _) in EXCLUDED.iter().filter(|(name, _)| *name != "listen_addresses") {
        let commented = format!("# {name} = ");
        assert!(written.lines().any(|line| line.starts_with(&commented)), "{name}: {written}");
    }
    assert!(
        !written.contains("maintenance_work_mem"),
        "what ALTER SYSTEM has set is there already"
    );

    follower.start()?;
    let end = leader.sql("select pg_current_wal_flush_lsn()")?.parse()?;
    follower.wait_for_position("replayed", end, PATIENCE)?;
    let promoted = follower.promote("promoted", &["--leader-is-dead"])?;
    let (compared, differ) = compare_settings(leader, &promoted)?;
    println!("{compared} settings compared, {} excluded: {EXCLUDED:?}", EXCLUDED.len());
    assert_eq!(differ, [""; 0]);
    ensure!(compared > 25, "only {compared} settings stand in a file");
    assert_eq!(access(leader)?, access(&promoted)?);
    let show = |name: &str| promoted.sql(&format!("show {name}"));
    assert_eq!(show("shared_preload_libraries")?, "pg_stat_statements");
    assert_eq!(show("log_line_prefix")?, "it's \\ \"%m\" [%p] ");
    assert_eq!(show("maintenance_work_mem")?, "33MB");
    assert_eq!(show("ssl")?, "on");
    // That is what the warning is about.
    assert_eq!(leader.endpoint().sql_in("elsewhere", "select 1")?, "1");
    let refused = promoted.endpoint().sql_in("elsewhere", "select 1").expect_err("no such locale");
    assert!(format!("{refused:#}").contains("xx_XX.UTF-8"), "{refused:#}");

    // The control: what differs is noticed.
    let changed = written.replace("work_mem = '7MB'", "work_mem = '8MB'");
    assert_ne!(changed, written);
    fs::write(store_of(&follower)?.join(FILES[0]), changed)?;
    append(&store_of(&follower)?.join(FILES[1]), "local all nobody reject\n")?;
    promoted.sql("select pg_reload_conf()")?;
    wait_until("it is read again", PATIENCE, || Ok(promoted.sql("show work_mem")? == "8MB"))?;
    let (_, differ) = compare_settings(leader, &promoted)?;
    println!("control: {differ:?}");
    assert_eq!(differ, [r#"work_mem: Some("7168"), Some("8192")"#]);
    assert_ne!(access(leader)?, access(&promoted)?);
    Ok(())
}

/// What cannot be had is said, and the rest is there.
#[test]
fn what_the_leader_cannot_tell_is_said() -> Result<()> {
    let mut debian = Debian::new()?;
    let least = "local all all peer";
    let rules = |follower: &Agent| -> Result<String> {
        Ok(fs::read_to_string(store_of(follower)?.join(FILES[1]))?)
    };

    // A role that may not know where the files are.
    debian.leader.sql("create role weak login replication")?;
    let mut config = AgentConfig::leader("leader1", &debian.leader)?;
    if let Source::Server { conninfo: Some(conninfo), .. } = &mut config.source {
        *conninfo = conninfo.replace("user=postgres", "user=weak");
        ensure!(conninfo.contains("weak"), "{conninfo}");
    }
    let mut agent = Agent::new(&debian.scratch, config)?;
    start(&mut agent)?;
    let (follower, done) = debian.follower("of-weak", &agent)?;
    assert!(done.stderr.contains("GRANT pg_read_all_settings"), "{done:?}");
    assert!(rules(&follower)?.contains(least), "{}", rules(&follower)?);
    let written = fs::read_to_string(store_of(&follower)?.join(FILES[0]))?;
    assert!(written.contains("TimeZone = 'Asia/Kathmandu'\n"), "{written}");
    // The control: the role that the message asks for. And one with a time zone of its own.
    debian
        .leader
        .sql("grant pg_read_all_settings to weak; alter role weak set timezone = 'UTC'")?;
    let (follower, done) = debian.follower("of-granted", &agent)?;
    assert!(!done.stderr.contains("GRANT") && done.stderr.contains("TimeZone"), "{done:?}");
    assert!(rules(&follower)?.contains("some one"), "{}", rules(&follower)?);

    // Rules that lean on another file, and a file that is not readable.
    append(&debian.etc.join(FILES[1]), "host all @admins 10.0.0.0/8 md5\n")?;
    fs::write(debian.etc.join("admins"), "postgres\n")?;
    fs::remove_file(debian.etc.join(FILES[2]))?;
    let (follower, done) = debian.follower("of-referring", &agent)?;
    assert!(done.stderr.contains("refers to other files (@admins)"), "{done:?}");
    assert!(done.stderr.contains("pg_ident.conf: No such file"), "{done:?}");
    assert!(rules(&follower)?.contains(least), "{}", rules(&follower)?);
    agent.stop()?;
    debian.leader.stop(StopMode::Fast)
}
