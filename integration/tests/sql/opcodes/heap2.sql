-- Every opcode of Heap2, on a fresh database, as a superuser. Needs wal_level = logical (NEW_CID, REWRITE), a
-- free replication slot and max_prepared_transactions > 0. The slot is dropped at the end.
--
-- PRUNE, VACUUM and FREEZE_PAGE are of 14 to 16; since 17 the same statements make PRUNE_ON_ACCESS,
-- PRUNE_VACUUM_SCAN and PRUNE_VACUUM_CLEANUP.
\set ON_ERROR_STOP on
create schema heap2_opcodes;
set search_path = heap2_opcodes;
select from pg_create_logical_replication_slot('heap2_opcodes', 'pgoutput');

-- MULTI_INSERT+INIT, MULTI_INSERT: COPY into new pages, and into pages with some space left. Frozen rows.
create table copied (id int primary key, n int default 0, wide text default repeat('x', 60))
    with (autovacuum_enabled = off, fillfactor = 60);
copy copied (id) from program 'seq 1 1000';
delete from copied where id % 3 = 0;
vacuum copied;
copy copied (id) from program 'seq 3 3 600';
copy copied (id) from stdin;
2000
\.
create table frozen (id int);
begin;
truncate frozen;
copy frozen from program 'seq 1 500' (freeze);
commit;

-- PRUNE, with redirections, with dead and with unused items: chains of HOT updates of committed and of
-- aborted transactions, and what else updates and deletes leave behind; VACUUM.
create table pruned (id int primary key, n int, k int) with (autovacuum_enabled = off, fillfactor = 40);
create index on pruned (k);
insert into pruned select n, 0, n from generate_series(1, 400) n;
update pruned set n = n + 1;
select count(*) from pruned;
update pruned set n = n + 1;
begin;
update pruned set n = n + 1 where id % 2 = 0;
rollback;
select count(*) from pruned;
update pruned set k = k + 1 where id % 3 = 0;
delete from pruned where id % 5 = 0;
select count(*) from pruned;
update pruned set n = n + 1;
select count(*) from pruned;
vacuum pruned;
delete from pruned where id > 390;
vacuum (index_cleanup off) pruned;
vacuum (index_cleanup on) pruned;

-- FREEZE_PAGE, with plans that differ: rows that were inserted, updated, locked by a transaction and by two,
-- and such as were not deleted in the end. VISIBLE.
create table aged (id int primary key, n int) with (autovacuum_enabled = off);
insert into aged select n, 0 from generate_series(1, 600) n;
update aged set n = 1 where id % 7 = 0;
begin;
select count(*) from (select from aged where id % 5 = 0 for update) locked;
select count(*) from (select from aged where id % 5 = 1 for key share) locked;
commit;
begin;
delete from aged where id % 5 = 2;
rollback;
begin;
select count(*) from (select from aged where id % 5 = 3 for key share) locked;
prepare transaction 'heap2_opcodes_locker';
begin;
select count(*) from (select from aged where id % 5 = 3 for share) locked;
update aged set n = 2 where id % 15 = 3;
commit;
rollback prepared 'heap2_opcodes_locker';
vacuum aged;
insert into aged values (1000, 0);
vacuum (freeze) aged;
-- Of a catalog.
vacuum (freeze) pg_catalog.pg_class;
vacuum (freeze) pg_catalog.pg_attribute;

-- LOCK_UPDATED: a row is locked whose next version is of a transaction that has not ended, and does not stand
-- in the way.
insert into aged select n, 0 from generate_series(2001, 2010) n;
vacuum (freeze) aged;
begin;
update aged set n = 3 where id between 2001 and 2005;
prepare transaction 'heap2_opcodes_updater';
select id from aged where id between 2001 and 2003 for key share;
begin;
select id from aged where id between 2002 and 2004 for key share;
commit;
commit prepared 'heap2_opcodes_updater';

-- NEW_CID: changes of catalogs, also several of the same tuple in a transaction, by a subtransaction too.
begin;
create table renewed (id int);
alter table renewed add column n int;
alter table renewed alter column n set not null;
savepoint inside;
alter table renewed add column m int;
drop table renewed;
commit;

-- REWRITE: a catalog is rewritten while a slot may still need its tuples, one that is of this database and
-- one that all share.
create table remapped (id int);
alter table remapped rename to remapped_too;
vacuum full pg_catalog.pg_class;
vacuum full pg_catalog.pg_attribute;
comment on database postgres is 'remapped';
vacuum full pg_catalog.pg_shdescription;
select from pg_drop_replication_slot('heap2_opcodes');

-- With page images: after a checkpoint the first change of a page has one.
insert into copied select n from generate_series(3001, 3300) n;
delete from copied where id % 4 = 0;
checkpoint;
vacuum (freeze) copied;
checkpoint;
copy copied (id) from program 'seq 4000 4020';
checkpoint;
update pruned set n = n + 1;
checkpoint;
select count(*) from pruned;

-- And with images to compare with, which leave the data where they are.
set wal_consistency_checking = 'heap2';
update pruned set n = n + 1;
select count(*) from pruned;
delete from pruned where id % 6 = 0;
vacuum (freeze) pruned;
copy copied (id) from program 'seq 5000 5100';
begin;
update aged set n = 4 where id = 2008;
prepare transaction 'heap2_opcodes_updater';
select id from aged where id = 2008 for key share;
commit prepared 'heap2_opcodes_updater';
reset wal_consistency_checking;
