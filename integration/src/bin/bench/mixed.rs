//! Mixed changes of wide rows with three indexes.

use anyhow::{Context, Result};
use integration::{Cluster, Scratch};

/// Wide rows with three indexes.
const MIXED_TABLES: &str = "
create table items (id bigint primary key, owner int, state text, score int, body text);
insert into items select i, i % 5000, 'new', i % 1000, repeat(md5(i::text), 5) from generate_series(1, ROWS) i;
create index on items (owner);
create index on items (score);
create sequence fresh start 100000000 cache 1000;
";

/// Updates that stay on their page and such that do not, inserts, deletes, locks.
const MIXED: &str = r"
\set id random(1, ROWS)
\set other random(1, ROWS)
\set score random(1, 1000)
\set fresh random(100000000, 9000000000000)
begin;
update items set state = 'seen' where id = :id;
update items set score = :score where id = :other;
insert into items values (:fresh, :score, 'fresh', :score, repeat(md5(:fresh::text), 5)) on conflict do nothing;
delete from items where id = (select id from items where owner = :score limit 1);
select 1 from items where id = :id for update;
end;
";

/// Makes the table.
pub(crate) fn prepare(leader: &Cluster, scale: u32) -> Result<()> {
    leader.sql(&MIXED_TABLES.replace("ROWS", &(scale * 30_000).to_string())).map(drop)
}

/// Changes it.
pub(crate) fn run(scratch: &Scratch, leader: &Cluster, scale: u32) -> Result<()> {
    let rows = (scale * 30_000).to_string();
    let script = scratch.file("mixed.sql", MIXED.replace("ROWS", &rows))?;
    let script = script.to_str().context("a UTF-8 path")?;
    let transactions = (scale * 400).to_string();
    let mut load =
        vec!["-n", "-M", "prepared", "-c", "8", "--max-tries", "10", "-t", &transactions];
    load.extend(["-f", script]);
    leader.pgbench_run(&load).map(drop)
}
