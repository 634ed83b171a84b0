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
//! # peers = ["10.0.0.1:5480"]               # ... or a peer that has the WAL
//!
//! [archive]
//! directory = "/var/lib/walferry/archive"
//!
//! [store]                                   # replay here
//! data_directory = "/var/lib/walferry/store"
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

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::tls::{PeerAddress, TlsSection};
use crate::trouble::Trouble;

/// The whole file.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    pub(crate) node: NodeSection,
    pub(crate) source: SourceSection,
    pub(crate) archive: ArchiveSection,
    pub(crate) store: Option<StoreSection>,
    #[serde(default)]
    pub(crate) listen: ListenSection,
    pub(crate) tls: Option<TlsSection>,
    /// Where the file lies, absolute.
    #[serde(skip)]
    pub(crate) path: PathBuf,
}

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
        let name = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Trouble::misuse(format_args!("configuration {name}: {error}")))?;
        let mut config: Self = toml::from_str(&text)
            .map_err(|error| Trouble::misuse(format_args!("configuration {name}:\n{error}")))?;
        config.path = std::path::absolute(path)
            .map_err(|error| Trouble::misuse(format_args!("configuration {name}: {error}")))?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), Trouble> {
        self.source()?;
        let name = &self.node.name;
        if let Err(error) = name.parse::<walferry_wire::NodeName>() {
            let words = format_args!("[node] name {name:?}: {error}");
            return Err(Trouble::misuse(words).with_hint(
                "use up to 64 letters, digits, '-', '_' or '.', a letter or digit first",
            ));
        }
        self.check_encryption()?;
        if self.store.as_ref().is_some_and(|store| store.workers == 0) {
            return Err(Trouble::misuse("[store] workers must be at least 1"));
        }
        Ok(())
    }

    /// Plain text stays on this machine, unless that is said.
    fn check_encryption(&self) -> Result<(), Trouble> {
        let roles = self.tls.iter().flat_map(|tls| tls.roles.iter().flatten());
        for (name, _) in roles {
            name.parse::<walferry_wire::NodeName>()
                .map_err(|error| Trouble::misuse(format_args!("[tls.roles] {name:?}: {error}")))?;
        }
        if let Some(address) = self.listen.metrics.filter(|address| !address.ip().is_loopback())
            && !self.listen.insecure
        {
            return Err(Trouble::misuse(format_args!(
                "[listen] metrics = \"{address}\" is refused: metrics are plain text, also with a \
                 [tls] section, and only loopback addresses are used"
            ))
            .with_hint(
                "to let others read them all the same, write insecure = true under [listen]",
            ));
        }
        let may_be_plain = self.tls.is_some() || self.listen.insecure;
        let listens = self.listen.replication.filter(|address| !address.ip().is_loopback());
        let mut plain = listens.map(|address| format!("[listen] replication = \"{address}\""));
        for peer in &self.source.peers {
            if !PeerAddress::parse(peer)?.is_loopback() {
                plain.get_or_insert(format!("[source] peers: {peer:?}"));
            }
        }
        match plain {
            Some(what) if !may_be_plain => Err(Trouble::misuse(format_args!(
                "{what} is refused: without a [tls] section only loopback addresses are used, \
                 because WAL is all of the data"
            ))
            .with_hint(
                "give both sides certificates, see [tls]; or, where the network itself is to be \
                 trusted, write insecure = true under [listen]",
            )),
            _ => Ok(()),
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

const fn default_workers() -> usize {
    2
}

const fn default_cache() -> u64 {
    256 << 20
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
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map_err(|trouble| trouble.to_string())?;
        Ok(config)
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
            let of_leader = ["data_directory", "conninfo"].iter().any(|key| line.starts_with(key));
            if !(section == "[source]" && of_leader) {
                follower.push_str(line);
                follower.push('\n');
            }
        }
        let follower = parse(&follower).expect("a follower's");
        assert_eq!(follower.source.peers, ["db1@10.0.0.1:5480"]);
        // What stands there as a default is one.
        let store = follower.store.expect("a store");
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
            ("peers", "pers", "unknown field `pers`"),
            ("127.0.0.1:5480", "10.0.0.1:5480", "without a [tls] section"),
            ("127.0.0.1:5480", "127.0.0.1", "is no address"),
            ("127.0.0.1:5481", "0.0.0.0:5481", "metrics are plain text"),
            ("metrics", "replication = '0.0.0.0:1'\nmetrics", "without a [tls] section"),
            ("'64MB'", "'64 mb'", "is not a size"),
            ("'5s'", "'soon'", "write it like"),
            ("name = 'b'", "name = 'b b'", "not allowed"),
            ("name = 'b'", "name = ''", "empty"),
            ("peers = ['127.0.0.1:5480']", "peers = []", "and not both"),
        ] {
            let error = parse(&FOLLOWER.replace(from, to)).expect_err(to);
            assert!(error.contains(words), "{to}: {error}");
        }
    }
}
