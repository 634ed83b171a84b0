//! The configuration file: TOML, sections by mechanism, not by role.
//!
//! ```toml
//! [node]
//! name = "db1"                              # shown to peers
//! run_directory = "/run/walferry"           # control socket
//!
//! [source]                                  # the server beside us ...
//! data_directory = "/var/lib/postgresql/15/main"
//! conninfo = "host=/run/postgresql user=walferry dbname=postgres"
//! gap_command = "pgbackrest --stanza=main archive-get %f %p"
//! # peers = ["10.0.0.1:5480"]               # ... or a peer that has the WAL
//!
//! [archive]
//! directory = "/var/lib/walferry/archive"
//! keep_age = "14d"                          # and keep_bytes, max_bytes, min_free_bytes
//!
//! [store]                                   # replay here
//! data_directory = "/var/lib/walferry/store"
//!
//! [decode]                                  # capture the rows that change, for walferry decode
//! directory = "/var/lib/walferry/rows"
//! max_bytes = "16GB"
//!
//! [listen]
//! replication = "10.0.0.1:5480"             # followers connect here; off loopback only with [tls]
//! metrics = "127.0.0.1:5481"                # /metrics, /healthz
//!
//! [tls]                                     # between agents, on both sides
//! certificate = "/etc/walferry/tls/node.crt"
//! key = "/etc/walferry/tls/node.key"
//! authority = "/etc/walferry/tls/ca.crt"
//! [tls.roles]                               # without it, all with a certificate may have both
//! db2 = ["follower", "bootstrap"]
//! ```

mod reading;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

pub(crate) use self::reading::Problem;
use self::reading::Sections;
use crate::tls::{PeerAddress, TlsSection};
use crate::trouble::Trouble;

/// The whole file.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) node: NodeSection,
    pub(crate) source: SourceSection,
    pub(crate) archive: ArchiveSection,
    pub(crate) store: Option<StoreSection>,
    pub(crate) decode: Option<DecodeSection>,
    pub(crate) listen: ListenSection,
    pub(crate) tls: Option<TlsSection>,
    /// Where the file lies, absolute.
    pub(crate) path: PathBuf,
}

/// `NAMEDATALEN` - 1.
const SLOT_NAME_MAX: usize = 63;
const SECTIONS: [&str; 7] = ["node", "source", "archive", "store", "decode", "listen", "tls"];

/// `[node]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeSection {
    /// The node's name, as peers and metrics show it.
    pub(crate) name: String,
    /// Where the control socket is made.
    #[serde(default = "default_run_directory")]
    pub(crate) run_directory: PathBuf,
}

/// `[source]`: where WAL comes from.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SourceSection {
    /// A primary's data directory on this machine: tail its `pg_wal`.
    pub(crate) data_directory: Option<PathBuf>,
    /// How to ask that server for its settings and positions.
    pub(crate) conninfo: Option<String>,
    /// Agents to receive from, `host:port`, tried in turn.
    #[serde(default)]
    pub(crate) peers: Vec<String>,
    /// The physical slot that holds WAL while the agent is down; `walferry_` and the node's name, if
    /// none is given, and no slot at all if it is empty. Only used if `max_slot_wal_keep_size` is
    /// bounded.
    pub(crate) slot: Option<String>,
    /// Fetches a segment that `pg_wal` no longer has, as `restore_command` does: `%f` is its name,
    /// `%p` where to put it.
    pub(crate) gap_command: Option<String>,
    /// The shortest time between two `fdatasync` calls on `pg_wal`.
    #[serde(default = "default_flush_interval", deserialize_with = "duration")]
    pub(crate) flush_interval: Duration,
    /// How often `pg_wal` is looked at when no notification comes.
    #[serde(default = "default_poll_interval", deserialize_with = "duration")]
    pub(crate) poll_interval: Duration,
}

/// Where a node's WAL comes from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// The server beside us.
    Tail(PathBuf),
    /// A peer.
    Receive(Vec<String>),
}

/// `[archive]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ArchiveSection {
    /// A directory per system identifier is made here.
    pub(crate) directory: PathBuf,
    /// zstd level.
    #[serde(default = "default_level")]
    pub(crate) compression_level: i32,
    /// Older WAL is removed when the files take more than this, once no reader needs it.
    #[serde(default, deserialize_with = "some_size")]
    pub(crate) keep_bytes: Option<u64>,
    /// WAL that is older than this is removed, once no reader needs it.
    #[serde(default, deserialize_with = "some_duration")]
    pub(crate) keep_age: Option<Duration>,
    /// For how long a follower that is gone is expected back, and any follower after a start.
    #[serde(default = "default_expect_followers", deserialize_with = "duration")]
    pub(crate) expect_followers: Duration,
    /// The files never take more than this: the oldest are removed, whoever needs them.
    #[serde(default, deserialize_with = "some_size")]
    pub(crate) max_bytes: Option<u64>,
    /// The file system is to have this much free: the oldest WAL is removed for it, whoever needs it.
    #[serde(default = "default_min_free", deserialize_with = "size")]
    pub(crate) min_free_bytes: u64,
}

/// `[store]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoreSection {
    /// The data directory that is kept replayed.
    pub(crate) data_directory: PathBuf,
    /// Threads that replay, reading the archive included; at least two are used. Pages have as many
    /// shares.
    #[serde(default = "default_workers")]
    pub(crate) workers: usize,
    /// Memory for pages.
    #[serde(default = "default_cache", deserialize_with = "size")]
    pub(crate) cache_bytes: u64,
    /// The shortest time between two restart points.
    #[serde(default = "default_restart_point_interval", deserialize_with = "duration")]
    pub(crate) restart_point_interval: Duration,
    /// Compare replayed pages with the images that WAL written under `wal_consistency_checking`
    /// carries, and stop at the first that differs.
    #[serde(default)]
    pub(crate) verify_images: bool,
    /// Where the server's programs are (`pg_ctl`, `postgres`).
    #[serde(default = "default_bin_directory")]
    pub(crate) bin_directory: PathBuf,
}

/// `[decode]`: capture the rows that change, as replay sees them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DecodeSection {
    /// Where the row spool is kept.
    pub(crate) directory: PathBuf,
    /// How much of it is kept; the oldest rows go first, whether anybody has read them or not.
    #[serde(default = "default_spool_bytes", deserialize_with = "size")]
    pub(crate) max_bytes: u64,
}

/// `[listen]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ListenSection {
    /// For followers.
    pub(crate) replication: Option<SocketAddr>,
    /// For `/metrics` and `/healthz`, in plain text.
    pub(crate) metrics: Option<SocketAddr>,
    /// Plain text may leave this machine: metrics, and without `[tls]` the WAL, which whoever can reach
    /// the port gets then, and whoever is in between can read.
    #[serde(default)]
    pub(crate) insecure: bool,
}

impl Config {
    /// Reads and checks the file.
    pub(crate) fn load(path: &Path) -> Result<Self, Trouble> {
        Self::read(path).map_err(|mut problems| {
            // A single hint stands by itself, many beside what they are for.
            let single = match problems.as_mut_slice() {
                [problem] => problem.hint.take(),
                _ => None,
            };
            let all: Vec<String> = problems
                .iter()
                .map(|Problem { line, words, hint }| {
                    let line = line.map(|line| format!(":{line}")).unwrap_or_default();
                    let hint = hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
                    format!("{}{line}: {words}{hint}", path.display())
                })
                .collect();
            let trouble = Trouble::misuse(format_args!("configuration {}", all.join("\n")));
            match single {
                Some(hint) => trouble.with_hint(hint),
                None => trouble,
            }
        })
    }

    /// Reads and checks the file; gives everything that is wrong with it.
    pub(crate) fn read(path: &Path) -> Result<Self, Vec<Problem>> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            vec![
                Problem::new(format_args!("cannot be read: {error}"))
                    .with_hint("--config FILE names another one"),
            ]
        })?;
        let absolute =
            std::path::absolute(path).map_err(|error| vec![Problem::new(error.to_string())])?;
        Self::parse(&text, absolute)
    }

    fn parse(text: &str, path: PathBuf) -> Result<Self, Vec<Problem>> {
        let mut sections = Sections::parse(text).map_err(|problem| vec![problem])?;
        let node = sections.require("node");
        let source = sections.require("source");
        let archive = sections.require("archive");
        let store = sections.take("store");
        let decode = sections.take("decode");
        let listen = sections.take("listen").unwrap_or_default();
        let tls = sections.take("tls");
        let problems = sections.finish(&SECTIONS);
        let (Some(node), Some(source), Some(archive), true) =
            (node, source, archive, problems.is_empty())
        else {
            return Err(problems);
        };
        let config = Self { node, source, archive, store, decode, listen, tls, path };
        let problems: Vec<Problem> = config.check().into_iter().map(Problem::from).collect();
        if problems.is_empty() { Ok(config) } else { Err(problems) }
    }

    /// What contradicts itself.
    fn check(&self) -> Vec<Trouble> {
        let mut all: Vec<Trouble> = self.source().err().into_iter().collect();
        let name = &self.node.name;
        if let Err(error) = name.parse::<walferry_wire::NodeName>() {
            let words = format_args!("[node] name {name:?}: {error}");
            all.push(Trouble::misuse(words).with_hint(
                "use up to 64 letters, digits, '-', '_' or '.', a letter or digit first",
            ));
        }
        self.check_encryption(&mut all);
        if let Err(trouble) = self.slot() {
            all.push(trouble);
        }
        if let (Some(keep), Some(max)) = (self.archive.keep_bytes, self.archive.max_bytes)
            && keep > max
        {
            all.push(Trouble::misuse("[archive] keep_bytes is more than max_bytes").with_hint(
                "max_bytes is the hard limit, keep_bytes what is kept while nobody needs more",
            ));
        }
        if self.decode.is_some() && self.store.is_none() {
            all.push(Trouble::misuse("[decode] needs a [store]: rows are seen while replaying"));
        }
        if self.store.as_ref().is_some_and(|store| store.workers == 0) {
            all.push(Trouble::misuse("[store] workers must be at least 1"));
        }
        all
    }

    /// Plain text stays on this machine, unless that is said.
    fn check_encryption(&self, all: &mut Vec<Trouble>) {
        let roles = self.tls.iter().flat_map(|tls| tls.roles.iter().flatten());
        for (name, _) in roles {
            if let Err(error) = name.parse::<walferry_wire::NodeName>() {
                all.push(Trouble::misuse(format_args!("[tls.roles] {name:?}: {error}")));
            }
        }
        if let Some(address) = self.listen.metrics.filter(|address| !address.ip().is_loopback())
            && !self.listen.insecure
        {
            all.push(
                Trouble::misuse(format_args!(
                    "[listen] metrics = \"{address}\" is refused: metrics are plain text, also \
                     with a [tls] section, and only loopback addresses are used"
                ))
                .with_hint(
                    "to let others read them all the same, write insecure = true under [listen]",
                ),
            );
        }
        let may_be_plain = self.tls.is_some() || self.listen.insecure;
        let listens = self.listen.replication.filter(|address| !address.ip().is_loopback());
        let mut plain = listens.map(|address| format!("[listen] replication = \"{address}\""));
        for peer in &self.source.peers {
            match PeerAddress::parse(peer) {
                Ok(address) if address.is_loopback() => {}
                Ok(_) => {
                    plain.get_or_insert(format!("[source] peers: {peer:?}"));
                }
                Err(trouble) => all.push(trouble),
            }
        }
        if let Some(what) = plain.filter(|_| !may_be_plain) {
            all.push(
                Trouble::misuse(format_args!(
                    "{what} is refused: without a [tls] section only loopback addresses are used, \
                     because WAL is all of the data"
                ))
                .with_hint(
                    "give both sides certificates, see [tls]; or, where the network itself is to \
                     be trusted, write insecure = true under [listen]",
                ),
            );
        }
    }

    /// Where WAL comes from: exactly one of a data directory and peers.
    pub(crate) fn source(&self) -> Result<Source, Trouble> {
        match (&self.source.data_directory, self.source.peers.as_slice()) {
            (Some(directory), []) => Ok(Source::Tail(directory.clone())),
            (None, peers @ [_, ..]) => Ok(Source::Receive(peers.to_vec())),
            _ => Err(Trouble::misuse(
                "[source] needs either data_directory (the server beside this agent) or peers \
                 (agents to receive from), and not both",
            )),
        }
    }

    /// The name of the slot that holds WAL on the server; nothing if none is to be used.
    pub(crate) fn slot(&self) -> Result<Option<String>, Trouble> {
        let name = match &self.source.slot {
            Some(name) if name.is_empty() => return Ok(None),
            Some(name) => name.clone(),
            None => {
                let fit =
                    |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
                let name: String = self.node.name.chars().map(fit).collect();
                format!("walferry_{name}").chars().take(SLOT_NAME_MAX).collect()
            }
        };
        // As the server has it (`ReplicationSlotValidateName`, `src/backend/replication/slot.c`).
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        if name.len() <= SLOT_NAME_MAX && name.chars().all(valid) {
            return Ok(Some(name));
        }
        Err(Trouble::misuse(format_args!("[source] slot = {name:?} is no name of a slot"))
            .with_hint("use up to 63 lower case letters, digits and underscores; \"\" for none"))
    }

    /// The store's section, for verbs that cannot do without.
    pub(crate) fn store(&self) -> Result<&StoreSection, Trouble> {
        self.store.as_ref().ok_or_else(|| {
            Trouble::misuse(
                "the configuration has no [store] section, so this node replays nothing",
            )
        })
    }

    /// Where the running agent is talked to.
    pub(crate) fn control_socket(&self) -> PathBuf {
        self.node.run_directory.join("control.sock")
    }
}

impl From<Trouble> for Problem {
    fn from(trouble: Trouble) -> Self {
        Self { hint: trouble.hint().map(str::to_owned), ..Self::new(trouble) }
    }
}

fn default_run_directory() -> PathBuf {
    "/run/walferry".into()
}

const fn default_flush_interval() -> Duration {
    Duration::from_millis(1)
}

const fn default_poll_interval() -> Duration {
    Duration::from_millis(50)
}

const fn default_level() -> i32 {
    1
}

const fn default_expect_followers() -> Duration {
    Duration::from_secs(600)
}

const fn default_min_free() -> u64 {
    1 << 30
}

const fn default_workers() -> usize {
    2
}

const fn default_cache() -> u64 {
    256 << 20
}

const fn default_spool_bytes() -> u64 {
    16 << 30
}

const fn default_restart_point_interval() -> Duration {
    Duration::from_secs(30)
}

fn default_bin_directory() -> PathBuf {
    "/usr/lib/postgresql/15/bin".into()
}

/// A duration as text: `10s`, `1ms`.
fn duration<'de, D: Deserializer<'de>>(value: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(value)?;
    humantime::parse_duration(&text)
        .map_err(|error| serde::de::Error::custom(format!("{error}; write it like \"10s\"")))
}

fn some_duration<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    duration(value).map(Some)
}

fn some_size<'de, D: Deserializer<'de>>(value: D) -> Result<Option<u64>, D::Error> {
    size(value).map(Some)
}

/// A size as text, `256MB`, or a plain number of bytes. Units are PostgreSQL's: powers of 1024.
fn size<'de, D: Deserializer<'de>>(value: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    let text = match Size::deserialize(value)? {
        Size::Bytes(bytes) => return Ok(bytes),
        Size::Text(text) => text,
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: Option<u64> = match unit.trim() {
        "B" => Some(1),
        "kB" => Some(1 << 10),
        "MB" => Some(1 << 20),
        "GB" => Some(1 << 30),
        "TB" => Some(1 << 40),
        _ => None,
    };
    number
        .parse::<u64>()
        .ok()
        .zip(factor)
        .and_then(|(number, factor)| number.checked_mul(factor))
        .ok_or_else(|| {
            serde::de::Error::custom(format!("{text:?} is not a size; write it like \"256MB\""))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOLLOWER: &str = "
        [node]
        name = 'b'
        [source]
        peers = ['127.0.0.1:5480']
        [archive]
        directory = '/a'
        [store]
        data_directory = '/s'
        cache_bytes = '64MB'
        restart_point_interval = '5s'
        [listen]
        metrics = '127.0.0.1:5481'
    ";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, PathBuf::new()).map_err(|problems| {
            let all = problems.iter().map(|problem| {
                let hint = problem.hint.as_deref().unwrap_or_default();
                format!("{:?} {} ({hint})\n", problem.line, problem.words)
            });
            all.collect()
        })
    }

    #[test]
    fn a_followers_file() {
        let store = parse(FOLLOWER).expect("valid").store.expect("a store");
        assert_eq!(store.cache_bytes, 64 << 20);
        assert_eq!(store.restart_point_interval, Duration::from_secs(5));
    }

    /// As it is, it is a leader's; with every setting uncommented, and without those of a leader's
    /// `[source]`, a follower's.
    #[test]
    fn the_example_that_is_installed() {
        let example = include_str!("../../systemd/walferry.toml");
        let leader = parse(example).expect("a leader's");
        assert!(leader.store.is_none() && leader.tls.is_none());
        let mut section = "";
        let mut follower = String::new();
        for line in example.lines() {
            let line =
                line.strip_prefix('#').filter(|it| !it.starts_with([' ', '#'])).unwrap_or(line);
            section = if line.starts_with('[') { line } else { section };
            let of_leader = ["data_directory", "conninfo", "gap_command"]
                .iter()
                .any(|key| line.starts_with(key));
            if !(section == "[source]" && of_leader) {
                follower.push_str(line);
                follower.push('\n');
            }
        }
        let follower = parse(&follower).expect("a follower's");
        assert_eq!(follower.source.peers, ["db1@10.0.0.1:5480"]);
        // What stands there as a default is one.
        let store = follower.store.expect("a store");
        assert_eq!(follower.archive.min_free_bytes, default_min_free());
        assert_eq!((store.cache_bytes, store.workers), (default_cache(), default_workers()));
        assert_eq!(store.bin_directory, default_bin_directory());
        assert!(follower.tls.is_some_and(|tls| tls.roles.is_some()));
    }

    #[test]
    fn plain_text_off_loopback_must_be_asked_for() {
        let far = FOLLOWER.replace("127.0.0.1:5480", "10.0.0.1:5480");
        assert!(parse(&far).is_err());
        parse(&format!("{far}\ninsecure = true")).expect("said so");
        let tls = "[tls]\ncertificate = 'a'\nkey = 'b'\nauthority = 'c'\n";
        let parsed = parse(&format!("{far}\n{tls}[tls.roles]\ndb2 = ['follower']")).expect("TLS");
        assert!(parsed.tls.is_some_and(|tls| tls.roles.is_some()));
        assert!(parse(&format!("{far}\n{tls}[tls.roles]\ndb2 = ['leader']")).is_err());
        let metrics = FOLLOWER.replace("127.0.0.1:5481", "0.0.0.0:5481");
        assert!(parse(&format!("{metrics}\n{tls}")).is_err(), "TLS is between agents");
        parse(&format!("{metrics}\ninsecure = true")).expect("said so");
    }

    #[test]
    fn mistakes_are_named() {
        for (from, to, words) in [
            ("peers", "pers", "Some(5) [source] pers: unknown key (did you mean \"peers\"?)"),
            ("[store]", "[stroe]", "Some(8) stroe: unknown section"),
            ("[node]", "[[node]]", "Some(2) [node]"),
            ("directory = '/a'", "", "missing field `directory`"),
            ("[archive]\n        directory = '/a'", "", "[archive] is missing"),
            ("'64MB'", "'64MB", "Some(10)"),
            ("127.0.0.1:5480", "10.0.0.1:5480", "without a [tls] section"),
            ("127.0.0.1:5480", "127.0.0.1", "is no address"),
            ("127.0.0.1:5481", "0.0.0.0:5481", "metrics are plain text"),
            ("metrics", "replication = '0.0.0.0:1'\nmetrics", "without a [tls] section"),
            ("'64MB'", "'64 mb'", "is not a size"),
            ("'5s'", "'soon'", "write it like"),
            ("peers", "slot = 'Walferry'\npeers", "no name of a slot"),
            ("directory = '/a'", "directory = '/a'\nkeep_bytes = '2GB'\nmax_bytes = '1GB'", "hard"),
            ("name = 'b'", "name = 'b b'", "not allowed"),
            ("name = 'b'", "name = ''", "empty"),
            ("peers = ['127.0.0.1:5480']", "peers = []", "and not both"),
        ] {
            let error = parse(&FOLLOWER.replace(from, to)).expect_err(to);
            assert!(error.contains(words), "{to}: {error}");
        }
    }

    #[test]
    fn all_mistakes_are_told_at_once() {
        let text = FOLLOWER
            .replace("name = 'b'", "nmae = 'b'")
            .replace("peers", "conn_info = 1\n        peers")
            .replace("'64MB'", "'64 mb'")
            .replace("'5s'", "true")
            .replace("[listen]", "[listne]");
        let error = parse(&text).expect_err("five mistakes");
        for (line, words) in [
            (3, "[node] nmae: unknown key (did you mean \"name\"?)"),
            (5, "[source] conn_info: unknown key (did you mean \"conninfo\"?)"),
            (11, "[store] cache_bytes: \"64 mb\" is not a size"),
            (12, "[store] restart_point_interval: invalid type: boolean"),
            (13, "listne: unknown section or key outside of sections (did you mean \"listen\"?)"),
        ] {
            let whole = format!("Some({line}) {words}");
            assert!(error.contains(&whole), "no {whole} in\n{error}");
        }
        assert_eq!(error.lines().count(), 5, "{error}");
        // And what contradicts itself.
        let text = FOLLOWER.replace("'b'", "'b b'").replace("127.0.0.1:5480", "10.0.0.1:5480");
        let error = parse(&text).expect_err("two mistakes");
        assert_eq!(error.lines().count(), 2, "{error}");
    }
}
