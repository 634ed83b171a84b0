//! How much the judge alone has seen: a comparison of little proves little.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Result, ensure};

use super::script::{COMMON_TYPES, NEVER, RARE_TYPES, ROLLED_BACK};
use super::{Decoded, Kind, Value};

/// Changes by kind, values by type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Transactions that are not empty.
    pub transactions: u64,
    /// Changes.
    pub changes: u64,
    /// Changes by their kind, as [`Coverage::KINDS`] calls them.
    pub kinds: BTreeMap<&'static str, u64>,
    /// Values of new rows that are not NULL, by their type.
    pub types: BTreeMap<String, u64>,
    /// Savepoints that were rolled back, each told by the message behind it.
    pub rolled_back_savepoints: u64,
    /// Changes that only a transaction or savepoint has made that was rolled back, in words.
    pub never: Vec<String>,
}

impl Coverage {
    /// All kinds that are counted. The last three are also counted as what they are.
    pub const KINDS: [&'static str; 9] = [
        "insert",
        "update",
        "delete",
        "truncate",
        "message",
        "message, not transactional",
        "update of a key",
        "update with a value unchanged in TOAST",
        "old row",
    ];

    /// Counts what `test_decoding` has printed: its changes have types.
    #[must_use]
    pub fn of(judge: &Decoded) -> Self {
        let mut coverage =
            Self { transactions: judge.transactions.len() as u64, ..Self::default() };
        for change in judge.changes() {
            coverage.changes += 1;
            let message = change.message.as_ref();
            let kind = match change.kind {
                Kind::Insert => "insert",
                Kind::Update => "update",
                Kind::Delete => "delete",
                Kind::Truncate => "truncate",
                Kind::Message if message.is_some_and(|message| !message.transactional) => {
                    "message, not transactional"
                }
                Kind::Message => "message",
            };
            coverage.count(kind);
            if change.old.is_some() {
                coverage.count("old row");
                // Of tables without FULL, an old key comes with an update that changes it.
                let is_key = change.old.as_ref().is_some_and(|old| old.0.len() == 1);
                if change.kind == Kind::Update && is_key {
                    coverage.count("update of a key");
                }
            }
            let columns = change.new.iter().flat_map(|row| &row.0);
            for column in columns.clone().filter(|column| column.value != Value::Null) {
                *coverage.types.entry(column.type_name.clone().unwrap_or_default()).or_default() +=
                    1;
            }
            if columns.clone().any(|column| column.value == Value::Unchanged) {
                coverage.count("update with a value unchanged in TOAST");
            }
            coverage.rolled_back_savepoints +=
                u64::from(message.is_some_and(|message| message.prefix == ROLLED_BACK));
            let is_never = change.relation.as_ref().is_some_and(|relation| relation.table == NEVER)
                || message.is_some_and(|message| message.prefix == NEVER);
            if is_never {
                coverage.never.push(change.to_string());
            }
        }
        coverage
    }

    fn count(&mut self, kind: &'static str) {
        *self.kinds.entry(kind).or_default() += 1;
    }

    /// # Errors
    /// There are fewer than 10 000 changes, 100 of a kind, 100 of a common type or 200 savepoints
    /// that were rolled back; or something of those was decoded.
    pub fn ensure_enough(&self) -> Result<()> {
        ensure!(self.changes >= 10_000, "only {} changes", self.changes);
        for kind in Self::KINDS {
            let count = self.kinds.get(kind).copied().unwrap_or_default();
            ensure!(count >= 100, "only {count} of kind {kind:?}\n{self}");
        }
        for name in COMMON_TYPES {
            let count = self.types.get(name).copied().unwrap_or_default();
            ensure!(count >= 100, "only {count} of type {name:?}\n{self}");
        }
        let savepoints = self.rolled_back_savepoints;
        ensure!(savepoints >= 200, "only {savepoints} savepoints were rolled back");
        ensure!(self.never.is_empty(), "decoded, and rolled back: {:?}", self.never);
        Ok(())
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = |counts: &mut dyn Iterator<Item = (&str, u64)>| {
            counts.map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join("; ")
        };
        writeln!(
            f,
            "{} changes in {} transactions, {} savepoints rolled back",
            self.changes, self.transactions, self.rolled_back_savepoints
        )?;
        let mut kinds = self.kinds.iter().map(|(name, count)| (*name, *count));
        writeln!(f, "kinds: {}", counts(&mut kinds))?;
        let is_named = |name: &&str| COMMON_TYPES.contains(name) || RARE_TYPES.contains(name);
        let all = self.types.iter().map(|(name, count)| (name.as_str(), *count));
        let mut types = all.clone().filter(|(name, _)| is_named(name));
        let others: u64 = all.clone().filter(|(name, _)| !is_named(name)).map(|(_, n)| n).sum();
        write!(f, "types: {}; of others {others}", counts(&mut types))
    }
}
