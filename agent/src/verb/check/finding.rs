//! What was found: one line each.

use std::fmt::Display;

use serde_json::{Value, json};

use crate::trouble::Trouble;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// Works, but not as well or not as safely as it could.
    Warning,
    /// Does not work.
    Failed,
}

impl Level {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warning => "WARNING",
            Self::Failed => "FAILED",
        }
    }
}

/// Declares each thing that can be wrong, once: its name for monitoring, and how bad it is.
macro_rules! codes {
    ($($code:ident $name:literal $level:ident,)*) => {
        /// What can be wrong. The README's table lists them; a test holds it against this list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Code { $($code,)* }

        impl Code {
            #[cfg(test)]
            pub(super) const ALL: &[Self] = &[$(Self::$code,)*];

            pub(super) const fn name(self) -> &'static str {
                match self { $(Self::$code => $name,)* }
            }

            pub(super) const fn level(self) -> Level {
                match self { $(Self::$code => Level::$level,)* }
            }
        }
    };
}

codes! {
    Configuration "configuration" Failed,
    AgentDown "agent.down" Warning,
    AgentStage "agent.stage" Failed,
    AccountRoot "account.root" Warning,
    Clock "clock.behind" Warning,
    ClockPeer "clock.peer" Warning,
    DiskAccess "disk.access" Failed,
    DiskSpace "disk.space" Failed,
    DiskShared "disk.shared" Warning,
    Listen "listen.taken" Failed,
    TlsFiles "tls.files" Failed,
    TlsName "tls.name" Failed,
    TlsDates "tls.dates" Failed,
    TlsEndsSoon "tls.ends_soon" Warning,
    TlsPlain "tls.plain" Warning,
    DataDirectory "server.data_directory" Failed,
    PgWal "server.pg_wal" Failed,
    PgWalMode "server.pg_wal_mode" Failed,
    Conninfo "server.conninfo" Warning,
    Unreachable "server.unreachable" Failed,
    OtherServer "server.other" Failed,
    Minor "server.version" Warning,
    Fsync "server.fsync" Failed,
    FullPageWrites "server.full_page_writes" Failed,
    WalLevel "server.wal_level" Failed,
    Standby "server.standby" Warning,
    Checksums "server.checksums" Warning,
    Hold "server.hold" Warning,
    Replication "server.replication" Warning,
    Rights "server.rights" Warning,
    PeerUnreachable "peer.unreachable" Failed,
    PeerCluster "peer.cluster" Failed,
    PeerRole "peer.role" Failed,
    StoreMissing "store.missing" Warning,
    StoreUnusable "store.unusable" Failed,
    StorePrograms "store.programs" Failed,
    StoreConfiguration "store.configuration" Failed,
    StoreLocale "store.locale" Failed,
    StoreSettings "store.settings" Warning,
    StoreMemory "store.memory" Warning,
}

struct Finding {
    level: Level,
    name: &'static str,
    words: String,
    remedy: Option<String>,
}

/// All of it, in the order in which it was looked at.
#[derive(Default)]
pub(super) struct Findings(Vec<Finding>);

impl Findings {
    /// Something is as it should be.
    pub(super) fn ok(&mut self, name: &'static str, words: impl Display) {
        self.0.push(Finding { level: Level::Ok, name, words: words.to_string(), remedy: None });
    }

    /// Something is not, and what to do about it.
    pub(super) fn add(&mut self, code: Code, words: impl Display, remedy: impl Display) {
        self.0.push(Finding {
            level: code.level(),
            name: code.name(),
            words: words.to_string(),
            remedy: Some(remedy.to_string()),
        });
    }

    /// As [`Findings::add`]; trouble that brings a remedy knows better than `remedy`.
    pub(super) fn add_trouble(&mut self, code: Code, trouble: &Trouble, remedy: &str) {
        self.add(code, trouble, trouble.hint().unwrap_or(remedy));
    }

    pub(super) fn failed(&self) -> usize {
        self.count(Level::Failed)
    }

    pub(super) fn warnings(&self) -> usize {
        self.count(Level::Warning)
    }

    fn count(&self, level: Level) -> usize {
        self.0.iter().filter(|finding| finding.level == level).count()
    }

    /// A line each, whatever the words hold.
    pub(super) fn print(&self) {
        for Finding { level, name, words, remedy } in &self.0 {
            let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
            let remedy =
                remedy.as_deref().map(|remedy| format!(" -> {remedy}")).unwrap_or_default();
            println!("{:<8} {name}: {words}{remedy}", level.name());
        }
    }

    pub(super) fn to_json(&self) -> Value {
        let findings: Vec<Value> = self
            .0
            .iter()
            .map(|Finding { level, name, words, remedy }| {
                json!({ "level": level.name(), "name": name, "words": words, "remedy": remedy })
            })
            .collect();
        json!({ "failed": self.failed(), "warnings": self.warnings(), "findings": findings })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The README's table has each of them with its level, and no others.
    #[test]
    fn the_readme_lists_all() {
        let readme = include_str!("../../../../README.md");
        let mut listed: Vec<(&str, &str)> = readme
            .lines()
            .filter_map(|line| {
                let mut cells = line.strip_prefix("| `")?.split('|');
                let name = cells.next()?.trim().strip_suffix('`')?;
                let level = cells.next()?.trim();
                matches!(level, "WARNING" | "FAILED").then_some((name, level))
            })
            .collect();
        let mut all: Vec<(&str, &str)> =
            Code::ALL.iter().map(|code| (code.name(), code.level().name())).collect();
        listed.sort_unstable();
        all.sort_unstable();
        assert_eq!(listed, all);
    }
}
