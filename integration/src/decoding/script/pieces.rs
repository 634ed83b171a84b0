//! The kinds of work, each of which begins and ends outside of a transaction.

use super::{Generator, Lane, NEVER, Step};

/// How many kinds there are.
pub(super) const COUNT: usize = 18;

impl Generator {
    pub(super) fn piece(&mut self, piece: usize, lane: usize) -> Vec<Step> {
        let mut out = Lane::new(lane);
        let all: Vec<usize> = (0..self.tables.len()).collect();
        let of = |generator: &Self, names: &[&str]| -> Vec<usize> {
            names.iter().map(|name| generator.table_named(name)).collect()
        };
        match piece {
            0 | 1 => self.nested(&mut out, &all),
            2 => {
                let tables = of(self, &["types", "types_full", "rare"]);
                self.nested(&mut out, &tables);
            }
            3 => {
                let tables = of(self, &["wide", "wide_full"]);
                self.nested(&mut out, &tables);
            }
            4 => self.bulk(&mut out),
            5 => self.hot(&mut out),
            6 => self.conflicts(&mut out),
            7 => self.prepared(&mut out),
            8 | 9 => self.truncations(&mut out),
            10 => self.messages(&mut out),
            11 => self.many_subtransactions(&mut out),
            12 => self.sequences_and_others(&mut out),
            13 => self.references(&mut out),
            14 => self.shapes(&mut out),
            15 => self.concurrent_shapes(&mut out),
            16 => self.enums(&mut out),
            17 => self.copies_of_tables(&mut out),
            _ => unreachable!("a piece beyond the last"),
        }
        out.steps
    }

    fn bulk(&mut self, out: &mut Lane) {
        for _ in 0..2 {
            let table = self.below(self.tables.len());
            let file = format!("{{copy_file}}.{}", out.number);
            out.run("begin");
            let (target, query) = self.many_rows(table, out.number);
            out.run(format!("insert into {target} {query}"));
            let (target, query) = self.many_rows(table, out.number);
            out.run(format!("copy ({query}) to '{file}'"));
            out.run(format!("copy {target} from '{file}'"));
            out.run(self.change_many(table, out.number));
            out.run(self.change_many(table, out.number));
            out.run("commit");
            out.run(self.change_many(table, out.number));
        }
    }

    /// Chains of row versions on one page, cut short by the next who reads it.
    fn hot(&mut self, out: &mut Lane) {
        let table = self.table_named("hot");
        let insert = self.insert_rows(table, out.number);
        out.run(insert);
        let id = *self.tables[table].live[out.number].last().expect("just inserted");
        for n in 0..5 {
            out.run(format!("update hot set n = {n} where id = {id}"));
        }
        out.run("begin");
        for n in 0..5 {
            out.run(format!("select * from hot where id = {id} for key share"));
            out.run(format!("update hot set n = n + {n} where id = {id}"));
        }
        out.run(format!("select n from hot where id = {id} for update"));
        out.run("commit");
    }

    /// `ON CONFLICT`: rows that are written on trial, and stay or do not.
    fn conflicts(&mut self, out: &mut Lane) {
        let number = self.next_number();
        let key = |which: &str| format!("key {which} {number}");
        let note = "(select string_agg(md5(g::text), '') from generate_series(1, 100) g)";
        let nothing = "on conflict (gate(key)) do nothing";
        let update = "on conflict (gate(key)) do update set hits = arbiter.hits + 1";
        let action = if self.in_percent(50) { nothing } else { update };
        let row = |which: &str, note: &str| {
            format!("insert into arbiter values ('{}', 0, {note})", key(which))
        };

        out.run(format!("{} {nothing}", row("a", "'first'")));
        out.run(format!("{} {action}", row("a", "'again'")));
        out.run("begin");
        out.run(format!("{} {action}", row("b", note)));
        out.run(format!("{} {action}", row("b", note)));
        out.run("commit");

        // It waits for a transaction that has the key, before it writes anything.
        let end = if self.in_percent(50) { "commit" } else { "rollback" };
        out.run("begin");
        out.run(row("c", "'waited for'"));
        out.other("begin");
        out.other_blocks(format!("{} {action}", row("c", "'waits'")));
        out.run(end);
        out.other_finishes();
        out.other("commit");

        // It has found no conflict and written its row, when another takes the key: the row, with
        // what of it is out of line, is taken back.
        out.other(format!("set judge.gate = '{number}'; set judge.calls = '0'"));
        out.upkeep(format!("select pg_advisory_lock({number})"));
        out.other("begin");
        out.other_blocks(format!("{} {action}", row("d", note)));
        out.run(row("d", "'was faster'"));
        out.upkeep(format!("select pg_advisory_unlock({number})"));
        out.other_finishes();
        out.other("set local judge.gate = ''");
        out.other(row("e", "'the same transaction'"));
        out.other("commit");
        out.other("set judge.gate = ''");
        out.run(format!("delete from arbiter where gate(key) = '{}'", key("a")));
    }

    fn prepared(&mut self, out: &mut Lane) {
        for _ in 0..2 {
            let name = format!("prepared {}", self.next_number());
            let before = self.remember(out.number);
            let table = self.below(self.tables.len());
            out.run("begin");
            let change = self.change_rows(table, out.number);
            out.run(change);
            out.run("savepoint a");
            let inner = self.remember(out.number);
            let change = self.change_rows(table, out.number);
            out.run(change);
            if self.in_percent(50) {
                out.roll_back_to("a");
                self.restore(out.number, &inner);
            }
            let change = self.insert_rows(table, out.number);
            out.run(change);
            let commits = self.in_percent(70);
            if !commits {
                out.run(format!("insert into {NEVER} values ('prepared')"));
            }
            out.run(format!("prepare transaction '{name}'"));
            // Others go on, and end before it does.
            out.run("insert into counted (note) values ('between')");
            if commits {
                out.other(format!("commit prepared '{name}'"));
            } else {
                out.other(format!("rollback prepared '{name}'"));
                self.restore(out.number, &before);
            }
        }
    }

    fn truncations(&mut self, out: &mut Lane) {
        let number = self.next_number();
        let [a, b, c] = ["a", "b", "c"].map(|which| format!("cut_{which}_{number}"));
        for name in [&a, &b] {
            out.run(format!("create table {name} (id serial primary key, note text)"));
            out.run(self.identity(name, "default"));
        }
        out.run(format!("alter table {b} add column a_id int references {a}"));
        let fill =
            |name: &str| format!("insert into {name} (note) values ('x'), (repeat('y', 3000))");
        out.run("begin");
        out.run(fill(&a));
        out.run(fill(&b));
        out.run(format!("truncate {b}"));
        out.run(fill(&b));
        out.run("savepoint s");
        out.run(format!("truncate {a}, {b} restart identity"));
        out.run(fill(&a));
        if self.in_percent(50) {
            out.roll_back_to("s");
        }
        out.run(format!("update {a} set note = 'z'"));
        // Both were given new files in this transaction already, or were not.
        out.run(format!("truncate {a} cascade"));
        out.run(fill(&a));
        out.run("commit");
        out.run(format!("truncate {b}"));
        out.run("begin");
        out.run(format!("create table {c} (id serial primary key, note text)"));
        out.run(self.identity(&c, "default"));
        out.run(fill(&c));
        out.run(format!("truncate {c}"));
        out.run(fill(&c));
        out.run(format!("copy {c} (note) to '{{copy_file}}.{}'", out.number));
        out.run(format!("truncate {c}"));
        out.run(format!("copy {c} (note) from '{{copy_file}}.{}' (freeze)", out.number));
        out.run("commit");
        out.run(format!("truncate {c}"));
        out.run("begin");
        out.run(format!("truncate {a}, {b}, {c}"));
        out.roll_back();
        out.run(format!("drop table {a}, {b}"));
        if self.in_percent(50) {
            out.run(format!("drop table {c}"));
        }
    }

    fn messages(&mut self, out: &mut Lane) {
        let number = self.next_number();
        let emit = |transactional: bool, prefix: &str, content: &str| {
            format!("select pg_logical_emit_message({transactional}, '{prefix}', {content})")
        };
        out.run(emit(true, "alone", &format!("'{number}'")));
        out.run(emit(false, "alone", &format!("'{number}'")));
        out.run("begin");
        out.run(emit(true, "prefix, sz: 3 content:", &format!("E'two\\nlines {number}'")));
        out.run(emit(false, "goes ahead", "''"));
        out.run("insert into counted (note) values ('with a message')");
        out.run("savepoint s");
        out.run(emit(true, NEVER, "'in a savepoint'"));
        out.run(emit(false, "from a savepoint", "'ü \"quoted\" \\'"));
        out.roll_back_to("s");
        out.run(emit(true, "bytes", "'\\x00ff27'::bytea"));
        out.run(emit(false, "bytes", "'\\xc328'::bytea"));
        out.run("commit");
        out.run("begin");
        out.run(emit(true, NEVER, "'in a transaction'"));
        out.run(emit(false, "survives", "repeat('long ', 2000)"));
        out.roll_back();
        out.run(emit(false, "last", &format!("'{number}'")));
    }

    /// More of them than fit where PostgreSQL keeps those of a transaction that runs.
    fn many_subtransactions(&mut self, out: &mut Lane) {
        out.run("begin");
        out.run(format!(
            "do $$ begin for n in 1..70 loop \
                 begin \
                     insert into counted (note) values ('subtransaction ' || n); \
                     if n % 3 = 0 then \
                         insert into {NEVER} values ('in a block'); \
                         raise exception 'back'; \
                     end if; \
                 exception when raise_exception then \
                     perform pg_logical_emit_message(true, '{}', 'block'); \
                 end; \
             end loop; end $$",
            super::ROLLED_BACK
        ));
        out.run("savepoint a");
        out.run("savepoint b");
        out.run("insert into counted (note) values ('within two')");
        out.run("savepoint c");
        out.fail(format!("insert into {NEVER} values (1 / 0)"));
        out.run("rollback to savepoint c");
        out.run("release savepoint a");
        out.run("commit");
        out.run("begin");
        out.run("insert into counted (note) values ('never')");
        out.fail("select 1 / 0");
        out.run("commit");
    }

    fn sequences_and_others(&mut self, out: &mut Lane) {
        let number = self.next_number();
        out.run("begin");
        out.run("select nextval('numbers') from generate_series(1, 40)");
        out.run("insert into counted (note) select 'counted ' || nextval('numbers') from generate_series(1, 5)");
        out.run(format!(
            "create sequence numbers_{number} start 100 minvalue -100 maxvalue 200 increment -1"
        ));
        out.run(format!("select nextval('numbers_{number}'), setval('numbers', 7000 + {number})"));
        out.run("commit");
        out.run(format!("alter sequence numbers_{number} restart"));
        out.run(format!("drop sequence numbers_{number}"));
        // Tables whose rows are not told.
        out.run("insert into forgotten select g, 'unlogged' from generate_series(1, 10) g");
        out.run("create temporary table passing (id int primary key, note text)");
        out.run("begin");
        out.run("insert into passing select g, 'temporary' from generate_series(1, 10) g");
        out.run("update passing set note = 'still'");
        out.run("insert into counted (note) select note from passing order by id");
        out.run("truncate passing");
        out.run("commit");
        out.run("drop table passing");
        out.run("select lo_unlink(lo_from_bytea(0, 'a large object'))");
        out.run(format!("delete from {NEVER}"));
        out.run("select pg_switch_wal()");
    }

    /// Rows that other rows' changes change: by foreign keys and by a trigger.
    fn references(&mut self, out: &mut Lane) {
        let number = self.next_number();
        let [parent, child] = ["parent", "child"].map(|which| format!("{which}_{number}"));
        out.run(format!("create table {parent} (id int primary key, note text)"));
        out.run(format!(
            "create table {child} (id int primary key, parent_id int references {parent} \
                 on delete cascade on update cascade deferrable initially deferred, note text)"
        ));
        out.run(format!("create index on {child} (parent_id, id)"));
        out.run(self.identity(&parent, "default"));
        out.run(self.identity(&child, "full"));
        out.run("begin");
        out.run(format!(
            "insert into {child} select g, g % 3, 'child' from generate_series(0, 8) g"
        ));
        out.run(format!("insert into {parent} select g, 'parent' from generate_series(0, 2) g"));
        out.run("commit");
        out.run(format!(
            "create function logged_{number}() returns trigger language plpgsql as $$ begin \
                 insert into counted (note) values (tg_op || ' of ' || new.id); \
                 new.note := 'by a trigger'; return new; end $$"
        ));
        out.run(format!(
            "create trigger logged before update on {child} \
                 for each row execute function logged_{number}()"
        ));
        out.run("begin");
        out.run(format!("update {parent} set id = id + 10 where id = 1"));
        out.run(format!("delete from {parent} where id = 2"));
        out.run("commit");
        out.run("begin");
        out.run(format!("delete from {parent} where id = 0"));
        out.roll_back();
        out.run(format!("drop table {child}, {parent}"));
    }
}
