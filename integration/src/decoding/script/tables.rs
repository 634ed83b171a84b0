//! Rows of the shared tables: what a lane does to those that are its own.

use rand::RngExt;

use super::values::{Type, type_named};
use super::{Action, Generator, LANES, Lane, Step, UPKEEP};

/// A shared table. Its first column is `id`.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) name: String,
    pub(super) identity: &'static str,
    pub(super) is_partitioned: bool,
    columns: Vec<(String, Type)>,
    constraint: &'static str,
    options: &'static str,
    /// Committed rows by the lane that owns them, and those of its open transaction.
    pub(super) live: [Vec<i64>; LANES],
    next: i64,
}

impl Table {
    /// With columns by name and type; one that has no name gets one.
    pub(super) fn new(
        name: &str,
        columns: &[(&str, &'static str)],
        constraint: &'static str,
        identity: &'static str,
    ) -> Self {
        let named = columns.iter().enumerate().map(|(at, (name, type_name))| {
            let name = if name.is_empty() { format!("c{at}") } else { (*name).to_owned() };
            (name, type_named(type_name))
        });
        Self {
            name: name.to_owned(),
            identity,
            is_partitioned: false,
            columns: named.collect(),
            constraint,
            options: "",
            live: Default::default(),
            next: 1,
        }
    }

    pub(super) fn with(self, options: &'static str) -> Self {
        Self { options, ..self }
    }

    pub(super) fn partitioned(self) -> Self {
        Self { is_partitioned: true, ..self }
    }

    pub(super) fn create(&self) -> Vec<String> {
        let (name, constraint) = (&self.name, self.constraint);
        let columns = self.columns.iter().map(|(name, of)| format!(", {name} {}", declared(of)));
        let columns: String = columns.collect();
        let options = if self.options.is_empty() {
            String::new()
        } else {
            format!(" with ({})", self.options)
        };
        let partition = if self.is_partitioned { " partition by list (region)" } else { "" };
        let create =
            format!("create table {name} (id bigint {constraint}{columns}){partition}{options}");
        let mut all = vec![create];
        if self.constraint.is_empty() && !self.is_partitioned {
            all.push(format!("create index on {name} (id)"));
        }
        all
    }

    fn new_ids(&mut self, lane: usize, count: usize) -> Vec<i64> {
        let ids: Vec<i64> = (self.next..).take(count).collect();
        self.next += count as i64;
        self.live[lane].extend(&ids);
        ids
    }
}

/// What a lane's rows were, to go back to.
pub(super) type Memory = Vec<Vec<i64>>;

impl Generator {
    pub(super) fn remember(&self, lane: usize) -> Memory {
        self.tables.iter().map(|table| table.live[lane].clone()).collect()
    }

    pub(super) fn restore(&mut self, lane: usize, memory: &Memory) {
        for (table, live) in self.tables.iter_mut().zip(memory) {
            table.live[lane].clone_from(live);
        }
    }

    pub(super) fn table_named(&self, name: &str) -> usize {
        self.tables.iter().position(|table| table.name == name).expect("a shared table")
    }

    /// A statement that changes one row or several.
    pub(super) fn change_rows(&mut self, table: usize, lane: usize) -> String {
        let rows = self.tables[table].live[lane].len();
        match self.below(10) {
            _ if rows < 4 => self.insert_rows(table, lane),
            0..=3 => self.insert_rows(table, lane),
            4..=7 => self.update_rows(table, lane),
            _ => self.delete_rows(table, lane),
        }
    }

    fn value(&mut self, of: Type) -> String {
        if self.in_percent(10) { "null".to_owned() } else { (of.value)(&mut self.random) }
    }

    pub(super) fn insert_rows(&mut self, table: usize, lane: usize) -> String {
        let count = [1, 1, 2, 5][self.below(4)];
        let ids = self.tables[table].new_ids(lane, count);
        let (name, columns) = (self.tables[table].name.clone(), self.tables[table].columns.clone());
        let names: String = columns.iter().map(|(name, _)| format!(", {name}")).collect();
        let rows: Vec<String> = ids
            .iter()
            .map(|id| {
                let values: String =
                    columns.iter().map(|(_, of)| format!(", {}", self.value(*of))).collect();
                format!("({id}{values})")
            })
            .collect();
        format!("insert into {name} (id{names}) values {}", rows.join(", "))
    }

    /// A range of new rows that differ by their `id` only, as a query; so that they come by
    /// `INSERT ... SELECT` or by `COPY`, whose records hold many rows.
    pub(super) fn many_rows(&mut self, table: usize, lane: usize) -> (String, String) {
        let count = 10 + self.below(40);
        let ids = self.tables[table].new_ids(lane, count);
        let columns = self.tables[table].columns.clone();
        let names: String = columns.iter().map(|(name, _)| format!(", {name}")).collect();
        let values: String = columns
            .iter()
            .map(|(_, of)| format!(", {}::{}", self.value(*of), declared(of)))
            .collect();
        let (first, last) = (ids[0], ids[ids.len() - 1]);
        let name = &self.tables[table].name;
        let query = format!("select g{values} from generate_series({first}, {last}) g order by g");
        (format!("{name} (id{names})"), query)
    }

    fn some_ids(&mut self, table: usize, lane: usize) -> Vec<i64> {
        let count = [1, 1, 1, 3][self.below(4)];
        let mut ids = Vec::new();
        for _ in 0..count {
            let live = &self.tables[table].live[lane];
            let id = live[self.random.random_range(0..live.len())];
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        ids
    }

    pub(super) fn update_rows(&mut self, table: usize, lane: usize) -> String {
        if self.in_percent(20) {
            return self.update_key(table, lane);
        }
        let ids = self.some_ids(table, lane);
        let (name, columns) = (self.tables[table].name.clone(), self.tables[table].columns.clone());
        let (first, count) = (self.below(columns.len()), 1 + self.below(columns.len().min(4)));
        let chosen = columns.iter().cycle().skip(first).take(count);
        let set: Vec<String> =
            chosen.map(|(name, of)| format!("{name} = {}", self.value(*of))).collect();
        format!("update {name} set {} where id in ({})", set.join(", "), list(&ids))
    }

    pub(super) fn update_key(&mut self, table: usize, lane: usize) -> String {
        let old = self.some_ids(table, lane)[0];
        self.tables[table].live[lane].retain(|id| *id != old);
        let new = self.tables[table].new_ids(lane, 1)[0];
        format!("update {} set id = {new} where id = {old}", self.tables[table].name)
    }

    pub(super) fn delete_rows(&mut self, table: usize, lane: usize) -> String {
        let ids = self.some_ids(table, lane);
        self.tables[table].live[lane].retain(|id| !ids.contains(id));
        format!("delete from {} where id in ({})", self.tables[table].name, list(&ids))
    }

    /// A statement that changes many rows of the lane at once.
    pub(super) fn change_many(&mut self, table: usize, lane: usize) -> String {
        let mut ids = self.tables[table].live[lane].clone();
        ids.truncate(40);
        if ids.is_empty() {
            return self.insert_rows(table, lane);
        }
        let name = self.tables[table].name.clone();
        if self.in_percent(30) {
            self.tables[table].live[lane].retain(|id| !ids.contains(id));
            return format!("delete from {name} where id in ({})", list(&ids));
        }
        let at = self.below(self.tables[table].columns.len());
        let (column, of) = self.tables[table].columns[at].clone();
        format!("update {name} set {column} = {} where id in ({})", self.value(of), list(&ids))
    }

    /// Everything in order, and now and then another shape for a shared table.
    pub(super) fn between_rounds(&mut self) -> Vec<Step> {
        let at = self.below(self.tables.len());
        let name = self.tables[at].name.clone();
        let mut all = Vec::new();
        match self.below(10) {
            0 | 1 if !self.tables[at].is_partitioned => {
                let column = format!("added_{}", self.next_number());
                // The value of rows that were there before stands in the catalog only.
                all.push(format!(
                    "alter table {name} add column {column} text default 'it''s new'"
                ));
                self.tables[at].columns.push((column, type_named("label")));
            }
            2 => {
                let added =
                    self.tables[at].columns.iter().position(|(name, _)| name.starts_with("added"));
                if let Some(added) = added {
                    let (column, _) = self.tables[at].columns.remove(added);
                    all.push(format!("alter table {name} drop column {column}"));
                }
            }
            3 => {
                let added =
                    self.tables[at].columns.iter().position(|(name, _)| name.starts_with("added"));
                if let Some(added) = added {
                    let new = format!("added_and_renamed_{}", self.next_number());
                    let old = std::mem::replace(&mut self.tables[at].columns[added].0, new.clone());
                    all.push(format!("alter table {name} rename column {old} to {new}"));
                }
            }
            4 => all.push(format!("vacuum full {name}")),
            5 => all.push(format!("reindex table {name}")),
            6 if name == "types" => all.push("cluster types using types_pkey".to_owned()),
            7 if name == "keyless" || name == "silent" || name == "hot" => {
                all.push(format!("truncate {name}"));
                self.tables[at].live = Default::default();
            }
            8 => all.push("truncate parts".to_owned()),
            9 => all.push("checkpoint".to_owned()),
            _ => {}
        }
        if all.first().is_some_and(|sql| sql == "truncate parts") {
            let parts = self.table_named("parts");
            self.tables[parts].live = Default::default();
        }
        let step = |sql| Step { session: UPKEEP, action: Action::Run, sql };
        all.into_iter().map(step).collect()
    }

    /// A transaction with savepoints in savepoints, some of which are rolled back, as it may be
    /// itself.
    pub(super) fn nested(&mut self, out: &mut Lane, tables: &[usize]) {
        let lane = out.number;
        let before = self.remember(lane);
        let mut savepoints: Vec<(String, Memory)> = Vec::new();
        out.run("begin");
        for _ in 0..8 + self.below(10) {
            let table = tables[self.below(tables.len())];
            match self.below(10) {
                0 | 1 => {
                    let name = format!("s{}", self.next_number());
                    out.run(format!("savepoint {name}"));
                    savepoints.push((name, self.remember(lane)));
                }
                2 | 3 if !savepoints.is_empty() => {
                    let at = self.below(savepoints.len());
                    let (name, memory) = savepoints[at].clone();
                    out.roll_back_to(&name);
                    self.restore(lane, &memory);
                    // It is still there: the next may go back to it again, or release it.
                    savepoints.truncate(at + 1);
                }
                4 if !savepoints.is_empty() => {
                    let (name, _) = savepoints.pop().expect("just looked");
                    out.run(format!("release savepoint {name}"));
                }
                _ => out.run(self.change_rows(table, lane)),
            }
        }
        if self.in_percent(15) {
            out.roll_back();
            self.restore(lane, &before);
        } else {
            out.run("commit");
        }
    }
}

/// A type as it is declared, with the length that some need.
fn declared(of: &Type) -> &'static str {
    match of.name {
        "character" => "character(8)",
        "bit" => "bit(5)",
        other => other,
    }
}

fn list(ids: &[i64]) -> String {
    ids.iter().map(i64::to_string).collect::<Vec<_>>().join(", ")
}
