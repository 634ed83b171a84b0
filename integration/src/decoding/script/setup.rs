//! The tables that all lanes share, and what goes with them.

use super::tables::Table;
use super::values::{COMMON_TYPES, RARE_TYPES};
use super::{Action, Generator, Identities, NEVER, Step, UPKEEP};

/// Tables with an `id` first.
pub(super) fn tables() -> Vec<Table> {
    let common = || COMMON_TYPES.iter().map(|name| ("", *name)).collect::<Vec<_>>();
    let rare = || RARE_TYPES.iter().map(|name| ("", *name)).collect::<Vec<_>>();
    let few = || vec![("a", "integer"), ("b", "text"), ("c", "numeric"), ("d", "boolean")];
    vec![
        Table::new("types", &common(), "primary key", "default"),
        Table::new("types_full", &common(), "primary key", "full"),
        Table::new("rare", &rare(), "primary key", "default"),
        Table::new("keyless", &few(), "", "default"),
        Table::new("keyless_full", &few(), "", "full"),
        Table::new("silent", &few(), "primary key", "nothing"),
        Table::new("by_index", &few(), "not null unique", "using index by_index_id_key"),
        Table::new(
            "\"Mixed Schéma\".\"Odd \"\"name\"\", ü\"",
            &[
                ("\"Ä b\"", "text"),
                ("\"select\"", "integer"),
                ("\"a]:b\"", "text"),
                ("\"Q\"\"\"", "date"),
            ],
            "primary key",
            "default",
        ),
        Table::new("hot", &[("n", "integer"), ("note", "label")], "primary key", "default")
            .with("fillfactor = 40"),
        Table::new("wide", &wide(), "primary key", "default"),
        Table::new("wide_full", &wide(), "primary key", "full"),
        Table::new("parts", &[("region", "region"), ("note", "label")], "", "default")
            .partitioned(),
    ]
}

fn wide() -> Vec<(&'static str, &'static str)> {
    vec![
        ("note", "label"),
        ("packed", "compressible"),
        ("chunked", "incompressible"),
        ("document", "wide jsonb"),
        ("bytes", "wide bytea"),
        ("n", "integer"),
    ]
}

/// The function evaluates to its argument. In a session that asks for it, the second call since
/// then waits for a lock: `ON CONFLICT` calls it once to look, and again when the row is written.
const GATE: &str = "create function gate(key text) returns text language plpgsql immutable as $$
declare
    lock text := current_setting('judge.gate', true);
    calls int;
begin
    if lock <> '' then
        calls := current_setting('judge.calls')::int + 1;
        perform set_config('judge.calls', calls::text, false);
        if calls = 2 then
            perform pg_advisory_lock(lock::int);
            perform pg_advisory_unlock(lock::int);
        end if;
    end if;
    return key;
end $$";

impl Generator {
    /// The first steps of a script.
    pub(super) fn set_up(&mut self) -> Vec<Step> {
        let mut all: Vec<String> = vec![
            "create type mood as enum ('sad', 'so so', 'it''s \"fine\"', 'glücklich')".into(),
            "create domain posint as int check (value > 0)".into(),
            "create domain short_text as varchar(20)".into(),
            "create type pair as (a int, b text)".into(),
            "create schema \"Mixed Schéma\"".into(),
            format!("create table {NEVER} (note text)"),
            GATE.into(),
            "create table arbiter (key text not null, hits int default 0, note text)".into(),
            "create unique index arbiter_key on arbiter (gate(key))".into(),
            "create table counted (id serial primary key, note text)".into(),
            "create sequence numbers".into(),
            "create unlogged table forgotten (id int, note text)".into(),
        ];
        for table in &self.tables {
            all.extend(table.create());
            if table.is_partitioned {
                all.extend(
                    [
                        "create table parts_north partition of parts for values in ('north')",
                        // Other places for the same columns, and one that is gone.
                        "create table parts_south (note text, gone int, region text, id bigint)",
                        "alter table parts_south drop column gone",
                        "alter table parts attach partition parts_south for values in ('south')",
                        "create table parts_rest partition of parts default partition by hash (id)",
                        "create table parts_rest_0 partition of parts_rest for values with (modulus 2, remainder 0)",
                        "create table parts_rest_1 partition of parts_rest for values with (modulus 2, remainder 1)",
                        "create index on parts (id)",
                    ]
                    .map(str::to_owned),
                );
            }
        }
        all.extend(
            self.tables.iter().filter(|table| table.name.starts_with("wide")).map(|table| {
                format!("alter table {} alter chunked set storage external", table.name)
            }),
        );
        let given: Vec<(String, &str)> =
            self.tables.iter().map(|table| (table.name.clone(), table.identity)).collect();
        for (name, identity) in given {
            all.push(self.identity(&name, identity));
        }
        for name in ["arbiter", "counted", "parts_south", "parts_rest_0", "parts_rest_1"] {
            all.push(self.identity(name, "default"));
        }
        all.push(self.identity("parts_north", "full"));
        let step = |sql| Step { session: UPKEEP, action: Action::Run, sql };
        all.into_iter().map(step).collect()
    }

    /// The statement that gives a table its replica identity.
    pub(super) fn identity(&self, table: &str, mixed: &str) -> String {
        let identity = match self.identities {
            Identities::Mixed => mixed,
            Identities::Full => "full",
        };
        format!("alter table {table} replica identity {identity}")
    }
}
