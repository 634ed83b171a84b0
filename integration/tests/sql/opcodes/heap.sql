-- Every opcode of Heap, on a fresh database, as a superuser. Needs wal_level = logical (TRUNCATE is written
-- only then) and max_prepared_transactions > 0.
--
-- Not here: HOT_UPDATE+INIT. It has a name, but a HOT update's page holds the old tuple too, so that it is
-- never built from nothing (log_heap_update in heapam.c).
\set ON_ERROR_STOP on
create schema heap_opcodes;
set search_path = heap_opcodes;

-- INSERT+INIT, INSERT.
create table plain (id int primary key, n int, wide text) with (autovacuum_enabled = off, fillfactor = 70);
alter table plain alter wide set storage plain;
insert into plain select n, 0, repeat('x', 200) from generate_series(1, 300) n;
-- HOT_UPDATE: no key changes. UPDATE, UPDATE+INIT: pages are full in the end; the second time also keys change
-- (KEYS_UPDATED).
update plain set n = 1 where id % 10 = 0;
update plain set n = 2, wide = repeat('y', 400);
update plain set id = id + 1000 where id < 50;
-- DELETE, and one that was rolled back.
delete from plain where id % 7 = 0;
begin;
delete from plain where id % 7 = 1;
rollback;

-- From all-visible and all-frozen pages: the map's bits go.
vacuum (freeze) plain;
insert into plain values (-1, 0, 'short');
vacuum (freeze) plain;
delete from plain where id % 11 = 0;
vacuum (freeze) plain;
update plain set n = 3 where id % 11 = 1;
vacuum (freeze) plain;
select count(*) from (select from plain where id % 11 = 2 for update) locked;

-- LOCK, in each strength; then with a multixact, of a transaction that is prepared and of this one.
begin;
select id from plain where id = 60 for key share;
select id from plain where id = 61 for share;
select id from plain where id = 62 for no key update;
select id from plain where id = 64 for update;
prepare transaction 'heap_opcodes_locker';
begin;
select id from plain where id = 60 for share;
select id from plain where id = 61 for key share;
update plain set n = 4 where id = 60; -- by one of the multixact's members
commit;
rollback prepared 'heap_opcodes_locker';
delete from plain where id in (60, 61); -- lockers of which one remained

-- Old tuples and old keys in DELETE and UPDATE, for logical decoding.
alter table plain replica identity full;
update plain set n = 5 where id % 13 = 0;
delete from plain where id % 13 = 1;
alter table plain replica identity default;
update plain set id = id + 5000 where id % 13 = 2;
delete from plain where id % 13 = 3;

-- DELETE of a row that moves to another partition.
create table parted (id int, n int) partition by list (id);
create table part_one partition of parted for values in (1);
create table part_two partition of parted for values in (2);
insert into parted values (1, 1), (1, 2);
update parted set id = 2 where n = 1;

-- TOAST: rows of more than one tuple.
create table toasted (id int primary key, wide text);
alter table toasted alter wide set storage external;
insert into toasted select n, repeat(md5(n::text), 400) from generate_series(1, 5) n;
update toasted set wide = wide || 'longer' where id = 2;
delete from toasted where id = 3;

-- HEAP_CONFIRM.
insert into plain select n, 7, 'confirmed' from generate_series(10001, 10010) n on conflict do nothing;
insert into plain select n, 8, 'confirmed' from generate_series(10006, 10015) n
    on conflict (id) do update set n = excluded.n;

-- TRUNCATE: one table; several; with each of the flags, with both.
create table emptied (id int generated always as identity primary key);
create table referring (id int references emptied);
insert into emptied default values;
insert into referring values (1);
truncate referring;
truncate emptied, referring;
truncate emptied, referring restart identity;
truncate emptied cascade;
truncate emptied restart identity cascade;

-- INPLACE: statistics of tables, of indexes that are built, of shared and mapped catalogs (with those the
-- relation cache's file goes), and of the database (datfrozenxid).
analyze plain;
create index on plain (n);
vacuum pg_catalog.pg_class;
vacuum pg_catalog.pg_attribute;
vacuum pg_catalog.pg_database;
vacuum (freeze) plain;
vacuum (freeze);

-- All of it with page images: after a checkpoint the first change of a page has one.
checkpoint;
insert into plain values (20001, 0, 'short');
checkpoint;
update plain set n = 9 where id between 100 and 140;
checkpoint;
delete from plain where id between 100 and 120;
checkpoint;
select count(*) from (select from plain where id between 130 and 150 for share) locked;
checkpoint;
insert into plain values (20002, 0, 'confirmed') on conflict do nothing;

-- And with images to compare with, which leave the data where they are.
set wal_consistency_checking = 'heap';
insert into plain values (20003, 0, 'short') on conflict do nothing;
update plain set n = 10 where id between 141 and 145;
delete from plain where id = 141;
select count(*) from (select from plain where id between 146 and 150 for update) locked;
analyze plain;
reset wal_consistency_checking;
