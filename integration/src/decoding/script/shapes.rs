//! The kinds of work that change what tables and types are, under rows and beside them.

use super::{Generator, Lane};

/// A table of one lane while its shape changes.
struct Shaped {
    name: String,
    columns: Vec<String>,
    id: u32,
}

impl Shaped {
    fn insert(&mut self) -> String {
        self.id += 1;
        let values =
            self.columns.iter().enumerate().map(|(at, _)| format!("'{}'", self.id + at as u32));
        let values: Vec<String> = values.collect();
        let (name, columns) = (&self.name, self.columns.join(", "));
        format!("insert into {name} ({columns}) values ({})", values.join(", "))
    }

    fn update(&self) -> String {
        let last = self.columns.last().expect("there is always `id`");
        format!("update {} set {last} = '{}' where id = {}", self.name, self.id + 50_000, self.id)
    }
}

impl Generator {
    /// Rows and DDL in turns, in one transaction or in many.
    pub(super) fn shapes(&mut self, out: &mut Lane) {
        let number = self.next_number();
        let mut table =
            Shaped { name: format!("shaped_{number}"), columns: vec!["id".into()], id: 0 };
        let in_transaction = self.in_percent(60);
        let schema = format!("moved_{number}");
        out.run(format!("create schema {schema}"));
        if in_transaction {
            out.run("begin");
        }
        out.run(format!("create table {} (id int primary key)", table.name));
        out.run(self.identity(&table.name, "default"));
        for step in 0..14 {
            out.run(table.insert());
            if self.in_percent(30) {
                out.run(table.update());
            }
            let in_savepoint = in_transaction && self.in_percent(25);
            let before = (table.name.clone(), table.columns.clone(), table.id);
            if in_savepoint {
                out.run(format!("savepoint s{step}"));
            }
            let change = self.change_shape(&mut table, &schema);
            out.run(change);
            if in_savepoint {
                out.run(table.insert());
                out.roll_back_to(&format!("s{step}"));
                (table.name, table.columns, table.id) = before;
            }
            out.run(table.update());
        }
        if in_transaction && self.in_percent(20) {
            out.roll_back();
            out.run(format!("drop schema {schema}"));
            return;
        }
        if in_transaction {
            out.run("commit");
        }
        for rewrite in ["vacuum full", "cluster", "reindex table"] {
            let by = if rewrite == "cluster" {
                format!(" using shaped_{number}_pkey")
            } else {
                String::new()
            };
            out.run(format!("{rewrite} {}{by}", table.name));
            out.run(table.insert());
            out.run(table.update());
        }
        out.run("begin");
        out.run(format!("delete from {} where id < 4", table.name));
        out.run(format!("drop table {}", table.name));
        // The same name, and another table.
        out.run(format!("create table {} (other text)", table.name));
        out.run(self.identity(&table.name, "full"));
        out.run(format!("insert into {} values ('of the same name')", table.name));
        out.run("commit");
        out.run(format!("drop table {}", table.name));
        out.run(format!("drop schema {schema}"));
    }

    fn change_shape(&mut self, table: &mut Shaped, schema: &str) -> String {
        let name = table.name.clone();
        let number = self.next_number();
        let last = table.columns.last().cloned().expect("there is always `id`");
        let has_more = table.columns.len() > 1;
        match self.below(10) {
            0 | 1 => {
                table.columns.push(format!("a{number}"));
                format!("alter table {name} add column a{number} int default {number}")
            }
            2 => {
                table.columns.push(format!("\"B {number}\""));
                format!(
                    "alter table {name} add column \"B {number}\" text default 'it''s {number}' not null"
                )
            }
            // Not by what the catalog says: every row is written anew.
            3 => {
                table.columns.push(format!("c{number}"));
                format!("alter table {name} add column c{number} serial")
            }
            4 if has_more => {
                table.columns.pop();
                format!("alter table {name} drop column {last}")
            }
            5 if has_more => {
                *table.columns.last_mut().expect("just looked") = format!("d{number}");
                format!("alter table {name} rename column {last} to d{number}")
            }
            6 if has_more => {
                let of = self.one_of(&["text", "numeric", "varchar", "bigint"]);
                // Of a default it is not known how to make it the new type.
                format!(
                    "alter table {name} alter {last} drop default, \
                         alter {last} type {of} using length({last}::text)::{of}"
                )
            }
            7 => format!(
                "alter table {name} add column g{number} bigint generated always as (id * 2) stored"
            ),
            8 if !name.contains('.') => {
                table.name = format!("{schema}.{name}");
                format!("alter table {name} set schema {schema}")
            }
            8 => {
                let (_, bare) = name.split_once('.').expect("just looked");
                table.name = bare.to_owned();
                format!("alter table {name} set schema public")
            }
            9 => self.identity(&name, "full"),
            _ => format!("alter table {name} add column n{number} int"),
        }
    }

    /// A transaction writes to a table whose shape another changes meanwhile.
    pub(super) fn concurrent_shapes(&mut self, out: &mut Lane) {
        let number = self.next_number();
        let [x, y] = ["x", "y"].map(|which| format!("beside_{which}_{number}"));
        for name in [&x, &y] {
            out.run(format!("create table {name} (id int primary key, a text, b int)"));
            out.run(self.identity(name, "default"));
        }
        out.run(format!("insert into {y} select g, 'old', g from generate_series(1, 9) g"));
        out.run("begin");
        out.run(format!("insert into {x} values (1, 'opens', 1)"));
        let mut id = 10;
        for _ in 0..5 {
            id += 1;
            let (change, insert) = match self.below(6) {
                0 => (format!("add column c{id} text default 'fast {id}'"), "(id) values"),
                1 => ("alter b type text using 'b' || b".to_owned(), "(id) values"),
                2 => ("alter b type bigint using length(b::text)".to_owned(), "(id) values"),
                3 => ("drop column if exists a".to_owned(), "(id) values"),
                4 => ("add column if not exists a int default 7".to_owned(), "(id) values"),
                _ => (format!("add column r{id} serial"), "(id) values"),
            };
            let rolls_back = self.in_percent(25);
            if rolls_back || self.in_percent(50) {
                out.other("begin");
                out.other(format!("insert into {y} (id) values ({})", id + 100));
                out.other(format!("alter table {y} {change}"));
                out.other(format!("insert into {y} (id) values ({})", id + 200));
                out.run(format!("insert into {x} values ({id}, 'meanwhile', 2)"));
                out.other(if rolls_back { "rollback" } else { "commit" });
            } else {
                out.other(format!("alter table {y} {change}"));
            }
            // Until now it had no lock of it: from here on nobody else may change its shape.
            if self.in_percent(50) {
                out.run(format!("insert into {y} {insert} ({id})"));
                out.run(format!("update {y} set id = {} where id = {id}", id + 300));
                out.run("commit");
                out.run("begin");
                out.run(format!("insert into {x} values ({}, 'opens again', 3)", id + 400));
            }
        }
        out.run(format!("delete from {y} where id < 5"));
        out.run("commit");
        out.run(format!("drop table {x}, {y}"));
    }

    /// Labels that are added and renamed while rows use them: no table is locked.
    pub(super) fn enums(&mut self, out: &mut Lane) {
        let number = self.next_number();
        let (of, table) = (format!("state_{number}"), format!("states_{number}"));
        out.run(format!("create type {of} as enum ('low', 'high')"));
        out.run(format!("create table {table} (id int primary key, state {of}, states {of}[])"));
        out.run(self.identity(&table, "full"));
        let insert = |id: u32, label: &str| {
            format!("insert into {table} values ({id}, '{label}', array['{label}', null]::{of}[])")
        };
        out.run(insert(1, "low"));
        out.other("begin");
        out.other(insert(2, "low"));
        out.run(format!("alter type {of} add value 'middle' before 'high'"));
        out.run(insert(3, "middle"));
        out.other(insert(4, "middle"));
        out.run(format!("alter type {of} rename value 'low' to 'lowest'"));
        out.other(insert(5, "lowest"));
        out.other(format!("update {table} set state = 'high' where id in (1, 2)"));
        out.other("commit");
        out.run("begin");
        out.run(insert(6, "lowest"));
        out.run(format!("alter type {of} rename value 'lowest' to 'least'"));
        out.run(insert(7, "least"));
        out.run("savepoint s");
        out.run(format!("alter type {of} rename value 'least' to 'nothing'"));
        out.run(insert(8, "nothing"));
        out.roll_back_to("s");
        out.run(insert(9, "least"));
        out.run("commit");
        out.run("begin");
        out.run(format!("create type fresh_{number} as enum ('a')"));
        out.run(format!("alter type fresh_{number} add value 'b'"));
        out.run(format!("create table fresh_of_{number} (v fresh_{number})"));
        out.run(self.identity(&format!("fresh_of_{number}"), "full"));
        out.run(format!("insert into fresh_of_{number} values ('a'), ('a')"));
        out.run("commit");
        out.run(format!("alter type {of} rename to renamed_{number}"));
        out.run(format!("delete from {table} where id < 5"));
        out.run(format!("drop table {table}, fresh_of_{number}"));
    }

    /// Tables made of others' rows, and views that hold theirs.
    pub(super) fn copies_of_tables(&mut self, out: &mut Lane) {
        let number = self.next_number();
        let [base, copy, view] = ["base", "copy", "view"].map(|which| format!("{which}_{number}"));
        out.run(format!("create table {base} (id int primary key, note text)"));
        out.run(self.identity(&base, "default"));
        out.run(format!("insert into {base} select g, 'row ' || g from generate_series(1, 20) g"));
        out.run(format!("create table {copy} as select * from {base} order by id"));
        out.run(self.identity(&copy, "full"));
        out.run(format!("create index on {copy} (id)"));
        out.run(format!(
            "create materialized view {view} as select id, note from {base} order by id"
        ));
        out.run(self.identity(&view, "full"));
        out.run(format!("create unique index on {view} (id)"));
        out.run("begin");
        out.run(format!("update {copy} set note = 'other' where id in (2, 3)"));
        out.run(format!("update {base} set note = 'other' where id = 2"));
        out.run(format!("refresh materialized view {view}"));
        out.run("commit");
        out.run(format!("update {base} set note = 'again' where id = 2"));
        out.run(format!("refresh materialized view concurrently {view}"));
        out.run(format!("alter table {copy} set unlogged"));
        out.run(format!("update {copy} set note = 'not logged' where id = 4"));
        out.run(format!("alter table {copy} set logged"));
        out.run(format!("update {copy} set note = 'logged' where id = 4"));
        out.run("begin");
        out.run(format!("create table {copy}_of as select * from {copy} order by id limit 3"));
        out.run(format!("alter table {copy}_of add column more int default 3"));
        out.run(self.identity(&format!("{copy}_of"), "full"));
        out.run(format!("update {copy}_of set note = 'x' where id = 1"));
        out.run("commit");
        out.run(format!("drop materialized view {view}"));
        out.run(format!("drop table {base}, {copy}, {copy}_of"));
    }
}
