//! The files of two data directories, and what they contain.
//!
//! ```text
//! base/<database>/<relation>[_fsm|_vm|_init][.<n>]         pages
//! global/<relation>..., pg_tblspc/<oid>/PG_<...>/<database>/<relation>...
//! .../pg_filenode.map                                      a relation map
//! pg_xact, pg_multixact/{offsets,members}, pg_commit_ts    pages without headers
//! pg_twophase                                              a file per prepared transaction
//! everything else                                          bytes
//! ```
//!
//! A directory counts as a file without contents.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use walfmt::ForkNumber;

/// Why a file is not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// WAL: the store has none, its archive does.
    Wal,
    /// What belongs to one server's processes.
    OfAServer,
    /// Not in the WAL: subtransactions, notifications, serializable transactions, snapshots,
    /// shared memory, statistics, slots.
    NotReplayed,
    /// The label of the base backup, which is done with.
    BackupLabel,
    /// Caches of catalogs.
    RelationCache,
    /// Temporary files and relations.
    Temporary,
    /// Unlogged relations but for their init forks: promotion makes them anew.
    Unlogged,
    /// The store's own.
    OfTheStore,
}

/// How a file's bytes are to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// Pages of a relation's fork; the number of the file among those of the fork.
    Fork(ForkNumber, u32),
    /// Pages without headers; of what.
    Slru(&'static str),
    /// Bytes; of what.
    Bytes(&'static str),
}

impl Contents {
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Fork(ForkNumber::Main, _) => "main",
            Self::Fork(ForkNumber::FreeSpace, _) => "fsm",
            Self::Fork(ForkNumber::VisibilityMap, _) => "vm",
            Self::Fork(ForkNumber::Init, _) => "init",
            Self::Slru(kind) | Self::Bytes(kind) => kind,
        }
    }
}

/// Both directories' files, by their names in the directory.
#[derive(Debug, Default)]
pub(super) struct Files {
    pub(super) both: Vec<(String, Contents)>,
    /// And who has it.
    pub(super) only_one: Vec<(String, &'static str)>,
    pub(super) excluded: BTreeMap<Rule, u64>,
}

impl Files {
    pub(super) fn of(store: &Path, standby: &Path) -> Result<Self> {
        let (ours, theirs) = (names_in(store)?, names_in(standby)?);
        let all: BTreeSet<&String> = ours.iter().chain(&theirs).collect();
        let mut files = Self::default();
        for name in &all {
            if name.as_str() == CONTROL_FILE {
                continue; // its fields are compared
            }
            let unlogged = || {
                let init = init_fork_of(name);
                init.is_some_and(|init| ours.contains(&init) || theirs.contains(&init))
            };
            let rule = rule_of(name).or_else(|| unlogged().then_some(Rule::Unlogged));
            if let Some(rule) = rule {
                *files.excluded.entry(rule).or_default() += 1;
            } else if !theirs.contains(*name) {
                files.only_one.push(((*name).clone(), "store"));
            } else if !ours.contains(*name) {
                files.only_one.push(((*name).clone(), "standby"));
            } else if !name.ends_with('/') {
                files.both.push(((*name).clone(), contents_of(name)));
            }
        }
        Ok(files)
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Wal => "pg_wal",
            Self::OfAServer => "postmaster.*",
            Self::NotReplayed => {
                "pg_subtrans, pg_notify, pg_serial, pg_snapshots, pg_dynshmem, pg_stat*, pg_replslot"
            }
            Self::BackupLabel => "backup_label.old",
            Self::RelationCache => "pg_internal.init",
            Self::Temporary => "pgsql_tmp* and temporary relations",
            Self::Unlogged => "unlogged relations but for their init forks",
            Self::OfTheStore => "walferry.*",
        })
    }
}

const CONTROL_FILE: &str = "global/pg_control";

/// The names of all files below a directory, and of all directories with a slash behind.
fn names_in(root: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut directories = vec![String::new()];
    while let Some(directory) = directories.pop() {
        let path = root.join(&directory);
        let entries =
            fs::read_dir(&path).with_context(|| format!("cannot read {}", path.display()))?;
        for entry in entries {
            let entry = entry.context("cannot read a directory entry")?;
            let name = format!("{directory}{}", entry.file_name().to_string_lossy());
            // Followed, so that a tablespace elsewhere counts as the directory it is.
            let metadata =
                fs::metadata(entry.path()).with_context(|| format!("cannot look at {name}"))?;
            if metadata.is_dir() {
                directories.push(format!("{name}/"));
                names.insert(format!("{name}/"));
            } else {
                names.insert(name);
            }
        }
    }
    Ok(names)
}

fn rule_of(name: &str) -> Option<Rule> {
    let (top, rest) = name.split_once('/').unwrap_or((name, ""));
    let file = rest.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    match top {
        "pg_wal" if !rest.is_empty() => Some(Rule::Wal),
        "pg_subtrans" | "pg_notify" | "pg_serial" | "pg_snapshots" | "pg_dynshmem" | "pg_stat"
        | "pg_stat_tmp" | "pg_replslot"
            if !rest.is_empty() =>
        {
            Some(Rule::NotReplayed)
        }
        "postmaster.pid" | "postmaster.opts" => Some(Rule::OfAServer),
        "backup_label.old" => Some(Rule::BackupLabel),
        "walferry.lock" => Some(Rule::OfTheStore),
        _ if file.starts_with("pg_internal.init") => Some(Rule::RelationCache),
        _ if file.starts_with("pgsql_tmp") || is_temporary(file) => Some(Rule::Temporary),
        _ => None,
    }
}

/// `t<backend>_<relation>...`
fn is_temporary(file: &str) -> bool {
    let numbers = file.strip_prefix('t').and_then(|rest| rest.split_once('_'));
    numbers.is_some_and(|(backend, _)| backend.parse::<u32>().is_ok())
}

fn contents_of(name: &str) -> Contents {
    let (directory, file) = name.rsplit_once('/').unwrap_or(("", name));
    match directory {
        "pg_xact" => Contents::Slru("pg_xact"),
        "pg_multixact/offsets" => Contents::Slru("offsets"),
        "pg_multixact/members" => Contents::Slru("members"),
        "pg_commit_ts" => Contents::Slru("pg_commit_ts"),
        "pg_twophase" => Contents::Bytes("pg_twophase"),
        _ if file == "pg_filenode.map" => Contents::Bytes("relation map"),
        _ => match fork_file(name) {
            Some(fork_file) => Contents::Fork(fork_file.fork, fork_file.number),
            None => Contents::Bytes("other"),
        },
    }
}

/// The name of the first file of the init fork of a relation, from that of a file of another fork.
fn init_fork_of(name: &str) -> Option<String> {
    let found = fork_file(name)?;
    (found.fork != ForkNumber::Init).then(|| format!("{}_init", found.relation))
}

struct ForkFile<'a> {
    /// With its directory.
    relation: &'a str,
    fork: ForkNumber,
    number: u32,
}

fn fork_file(name: &str) -> Option<ForkFile<'_>> {
    let (directory, file) = name.rsplit_once('/')?;
    let holds_relations = ["base/", "pg_tblspc/"].iter().any(|top| directory.starts_with(top))
        || directory == "global";
    let (stem, number) = match file.split_once('.') {
        Some((stem, number)) => (stem, number.parse().ok()?),
        None => (file, 0),
    };
    let (relation, suffix) = stem.split_at(stem.find('_').unwrap_or(stem.len()));
    let fork = ForkNumber::ALL.into_iter().find(|fork| fork.file_suffix() == suffix)?;
    let is_relation = holds_relations && relation.parse::<u32>().is_ok();
    let relation = &name[..directory.len() + 1 + relation.len()];
    is_relation.then_some(ForkFile { relation, fork, number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_what_their_names_say() {
        for (name, contents) in [
            ("base/5/16384", Contents::Fork(ForkNumber::Main, 0)),
            ("base/5/16384_vm.2", Contents::Fork(ForkNumber::VisibilityMap, 2)),
            ("global/1262_fsm", Contents::Fork(ForkNumber::FreeSpace, 0)),
            ("pg_tblspc/16390/PG_15_202209061/5/1_init", Contents::Fork(ForkNumber::Init, 0)),
            ("base/5/PG_VERSION", Contents::Bytes("other")),
            ("base/5/pg_filenode.map", Contents::Bytes("relation map")),
            ("pg_multixact/offsets/0000", Contents::Slru("offsets")),
            ("pg_xact/0000", Contents::Slru("pg_xact")),
            ("pg_twophase/000002F1", Contents::Bytes("pg_twophase")),
            ("postgresql.conf", Contents::Bytes("other")),
        ] {
            assert_eq!(contents_of(name), contents, "{name}");
            assert_eq!(rule_of(name), None, "{name}");
        }
        for (name, rule) in [
            ("pg_wal/000000010000000000000001", Some(Rule::Wal)),
            ("pg_stat/pgstat.stat", Some(Rule::NotReplayed)),
            ("pg_subtrans/", None),
            ("base/5/t3_16384_vm", Some(Rule::Temporary)),
            ("base/pgsql_tmp/", Some(Rule::Temporary)),
            ("base/5/pg_internal.init.77", Some(Rule::RelationCache)),
            ("base/5/template", None),
        ] {
            assert_eq!(rule_of(name), rule, "{name}");
        }
        assert_eq!(init_fork_of("base/5/7_vm.1").as_deref(), Some("base/5/7_init"));
        assert_eq!(init_fork_of("base/5/7_init"), None);
    }
}
