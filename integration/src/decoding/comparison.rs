//! Two decoders' changes, one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Result, ensure};

use super::{Change, Column, Decoded, Kind, Relation, Row, Transaction, Value};

/// How many differences are kept in words.
const SHOWN: usize = 10;

/// Who the other side is held against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judge {
    /// `test_decoding`. Of an old row it has the replica identity at most: those columns must be
    /// equal. What it prints as `unchanged-toast-datum` cannot be compared.
    Identity,
    /// `test_decoding` where every table has `REPLICA IDENTITY FULL`: old rows are complete but for
    /// columns that are NULL, and hold what a new row leaves unchanged.
    FullIdentity,
    /// Another run of ours: all must be equal.
    Decoder,
}

/// What to compare.
#[derive(Clone, Debug)]
pub struct Rules {
    /// Who says what is right.
    pub judge: Judge,
    /// Both decoded the same WAL: numbers and times of transactions must be equal, too.
    pub same_wal: bool,
    /// Partitioned tables. They have no files, so nothing but a record that only `logical` has can
    /// tell that one was truncated: those changes are left out, those of its partitions are not.
    pub partitioned: BTreeSet<Relation>,
}

/// What was compared, what was not, and what differs.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// Transactions, and messages that stand alone.
    pub transactions: u64,
    /// Changes.
    pub changes: u64,
    /// Values of columns, those of old rows included.
    pub values: u64,
    /// Values of old rows among them.
    pub old_values: u64,
    /// What was left out, by the reason, and how often.
    pub excluded: BTreeMap<String, u64>,
    /// How many differences there are.
    pub differing: u64,
    /// The first of them in words.
    pub differences: Vec<String>,
}

impl Comparison {
    /// Compares `ours` with the judge's.
    #[must_use]
    pub fn between(judge: &Decoded, ours: &Decoded, rules: &Rules) -> Self {
        let mut comparison = Self::default();
        comparison.exclude("lines `schema`", ours.schema_lines);
        comparison.exclude("lines `sequence`", ours.sequence_lines);
        comparison.exclude("empty transactions of the judge", judge.empty_transactions);
        comparison.exclude("empty transactions of ours", ours.empty_transactions);
        for fault in &ours.schema_faults {
            comparison.differ(|| fault.clone());
        }
        let left = comparison.comparable(judge, rules, "of the judge");
        let right = comparison.comparable(ours, rules, "of ours");
        for number in 0..left.len().max(right.len()) {
            match (left.get(number), right.get(number)) {
                (Some(left), Some(right)) => comparison.transaction(number, left, right, rules),
                (Some((_, changes)), None) => comparison.differ(|| {
                    format!("transaction {number}: only the judge has it: {}", changes[0])
                }),
                (None, Some((_, changes))) => comparison
                    .differ(|| format!("transaction {number}: only we have it: {}", changes[0])),
                (None, None) => unreachable!("a number below both lengths"),
            }
        }
        comparison
    }

    /// # Errors
    /// There is a difference, or fewer than `least` changes were compared.
    pub fn ensure_equal(&self, least: u64) -> Result<()> {
        ensure!(self.differing == 0, "{self}");
        ensure!(self.changes >= least, "{} changes were compared, not {least}", self.changes);
        Ok(())
    }

    fn exclude(&mut self, reason: &str, count: u64) {
        if count > 0 {
            *self.excluded.entry(reason.to_owned()).or_default() += count;
        }
    }

    fn differ(&mut self, words: impl FnOnce() -> String) {
        self.differing += 1;
        if self.differences.len() < SHOWN {
            self.differences.push(words());
        }
    }

    /// Truncations of one statement come in an order of no meaning; those in sequence are sorted.
    fn comparable<'a>(
        &mut self,
        decoded: &'a Decoded,
        rules: &Rules,
        whose: &str,
    ) -> Vec<(&'a Transaction, Vec<&'a Change>)> {
        let mut all = Vec::new();
        for transaction in &decoded.transactions {
            let mut changes: Vec<&Change> = transaction.changes.iter().collect();
            changes.retain(|change| {
                let relation = change.relation.as_ref();
                change.kind != Kind::Truncate
                    || !relation.is_some_and(|relation| rules.partitioned.contains(relation))
            });
            let dropped = transaction.changes.len() - changes.len();
            self.exclude(&format!("truncations of partitioned tables {whose}"), dropped as u64);
            let flags = changes.iter().filter(|change| change.truncate_flags).count();
            self.exclude("CASCADE or RESTART IDENTITY of a truncation", flags as u64);
            for run in changes.chunk_by_mut(|a, b| [a.kind, b.kind] == [Kind::Truncate; 2]) {
                if run.len() > 1 {
                    run.sort_by(|a, b| a.relation.cmp(&b.relation));
                }
            }
            if !changes.is_empty() {
                all.push((transaction, changes));
            }
        }
        all
    }

    fn transaction(
        &mut self,
        number: usize,
        (judge, left): &(&Transaction, Vec<&Change>),
        (ours, right): &(&Transaction, Vec<&Change>),
        rules: &Rules,
    ) {
        self.transactions += 1;
        let xids = [judge.xid, ours.xid]
            .map(|xid| xid.map_or_else(|| "stands alone".to_owned(), |xid| format!("xid {xid}")));
        let name = format!("transaction {number} (judge: {}, ours: {})", xids[0], xids[1]);
        if judge.xid.is_some() != ours.xid.is_some() || rules.same_wal && judge.xid != ours.xid {
            self.differ(|| format!("{name}: {} is not {}", left[0], right[0]));
            return;
        }
        if rules.same_wal && judge.commit_time != ours.commit_time {
            let times = [&judge.commit_time, &ours.commit_time];
            self.differ(|| format!("{name}: committed at {times:?}"));
        }
        for (at, (left, right)) in left.iter().zip(right).enumerate() {
            self.changes += 1;
            if let Err(reason) = self.change(left, right, rules.judge) {
                self.differ(|| {
                    format!("{name}, change {at}: {reason}\n  judge: {left}\n  ours:  {right}")
                });
                // What follows a change that is missing differs as well, and says no more.
                return;
            }
        }
        if left.len() != right.len() {
            let longer = if left.len() > right.len() { left } else { right };
            let next = longer[left.len().min(right.len())];
            let lengths = [left.len(), right.len()];
            self.differ(|| format!("{name}: {lengths:?} changes; the first too many is {next}"));
        }
    }

    fn change(&mut self, judge: &Change, ours: &Change, by: Judge) -> Result<(), String> {
        let equal = |what: &str, equal: bool| {
            if equal { Ok(()) } else { Err(format!("{what} differs")) }
        };
        equal("the kind", judge.kind == ours.kind)?;
        equal("the table", judge.relation == ours.relation)?;
        equal("the message", judge.message == ours.message)?;
        match (&judge.old, &ours.old) {
            (None, None) => {}
            (None, Some(_)) if by != Judge::Decoder => {
                self.exclude("old rows that test_decoding does not have", 1);
            }
            (Some(left), Some(right)) => self.old_row(left, right, by)?,
            _ => return Err("only one has an old row".to_owned()),
        }
        match (&judge.new, &ours.new) {
            (None, None) => Ok(()),
            (Some(left), Some(right)) => self.new_row(judge.old.as_ref(), left, right, by),
            _ => Err("only one has a new row".to_owned()),
        }
    }

    fn old_row(&mut self, judge: &Row, ours: &Row, by: Judge) -> Result<(), String> {
        if by == Judge::Decoder {
            return self.new_row(None, judge, ours, by);
        }
        // In their order, though some are left out.
        let mut rest = ours.0.iter();
        for column in &judge.0 {
            let skipped_null = |ours: &&Column| ours.name == column.name;
            let Some(found) = rest.by_ref().find(skipped_null) else {
                return Err(format!("the old row has no column {:?} in its place", column.name));
            };
            self.value(column, found).map_err(|reason| format!("old row: {reason}"))?;
            self.old_values += 1;
        }
        let missing = ours.0.iter().filter(|column| judge.column(&column.name).is_none());
        if by == Judge::FullIdentity {
            for column in missing {
                if column.value != Value::Null {
                    return Err(format!("old row: column {:?} is NULL", column.name));
                }
                self.values += 1;
                self.old_values += 1;
            }
        } else {
            self.exclude(
                "values of old rows that test_decoding does not have",
                missing.count() as u64,
            );
        }
        Ok(())
    }

    fn new_row(
        &mut self,
        old: Option<&Row>,
        judge: &Row,
        ours: &Row,
        by: Judge,
    ) -> Result<(), String> {
        if !judge.names().eq(ours.names()) {
            return Err("the columns differ".to_owned());
        }
        for (left, right) in judge.0.iter().zip(&ours.0) {
            let before = old.and_then(|old| old.column(&left.name));
            match (&left.value, before) {
                (Value::Unchanged, Some(before)) if by == Judge::FullIdentity => {
                    self.value(before, right)?;
                }
                (Value::Unchanged, _) if by != Judge::Decoder => {
                    self.exclude("values that test_decoding does not have (unchanged TOAST)", 1);
                }
                _ => self.value(left, right)?,
            }
        }
        Ok(())
    }

    fn value(&mut self, judge: &Column, ours: &Column) -> Result<(), String> {
        match &ours.value {
            Value::Unchanged if judge.value != Value::Unchanged => {
                self.exclude("values that we do not have (unchanged TOAST)", 1);
                return Ok(());
            }
            // The bytes say nothing about the text.
            Value::Raw(_) if judge.type_name.is_some() && judge.value != Value::Null => {
                let type_name = judge.type_name.as_deref().unwrap_or_default();
                self.exclude(&format!("raw values of type {type_name}"), 1);
                return Ok(());
            }
            _ => {}
        }
        self.values += 1;
        if judge.value == ours.value {
            return Ok(());
        }
        let of_type =
            judge.type_name.as_ref().map_or_else(String::new, |name| format!(" [{name}]"));
        Err(format!("column {:?}{of_type} is {}, not {}", judge.name, judge.value, ours.value))
    }
}

/// Holds that every old row is there with all columns of its table and all values.
///
/// # Errors
/// One is not; in words.
pub fn ensure_complete_old_rows(decoded: &Decoded) -> Result<u64> {
    let mut shapes: BTreeMap<&Relation, Vec<&str>> = BTreeMap::new();
    let mut count = 0;
    for change in decoded.changes() {
        let Some(relation) = &change.relation else { continue };
        if let Some(new) = &change.new {
            shapes.insert(relation, new.names().collect());
        }
        if !matches!(change.kind, Kind::Update | Kind::Delete) {
            continue;
        }
        let complete = change.old.as_ref().is_some_and(|old| {
            // The shape of a table that saw DDL is that of its last new row only until then: what
            // a deletion shows must be told by a line `schema`, which the parser has compared.
            let fits = change.kind == Kind::Delete
                || shapes.get(relation).is_some_and(|names| old.names().eq(names.iter().copied()));
            fits && !old.0.is_empty() && old.0.iter().all(|column| column.value != Value::Unchanged)
        });
        ensure!(complete, "the old row is not complete: {change}");
        count += 1;
    }
    Ok(count)
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} transactions, {} changes and {} values compared ({} of old rows), {} differences",
            self.transactions, self.changes, self.values, self.old_values, self.differing
        )?;
        for (reason, count) in &self.excluded {
            writeln!(f, "left out: {count} {reason}")?;
        }
        for difference in &self.differences {
            writeln!(f, "{difference}")?;
        }
        Ok(())
    }
}
