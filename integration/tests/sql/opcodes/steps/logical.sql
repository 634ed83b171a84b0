-- What needs wal_level = logical, track_commit_timestamp and max_prepared_transactions; run once, by
-- integration/src/opcodes.rs, in a database of its own.

-- Heap2 REWRITE, NEW_CID: a table that logical decoding takes for a catalog, with a slot that needs its
-- old rows. pgoutput is in every build.
select pg_create_logical_replication_slot('rewritten', 'pgoutput') is null;
create table catalog (id int primary key, t text) with (user_catalog_table = true);
insert into catalog select g, 'first' from generate_series(1, 50) g;
update catalog set t = 'second' where id % 2 = 0;
begin; delete from catalog where id < 10; rollback;
vacuum full catalog;
select pg_drop_replication_slot('rewritten');

-- Heap TRUNCATE, Transaction INVALIDATION.
create table emptied (id serial primary key, t text);
insert into emptied (t) values ('a');
truncate emptied restart identity cascade;
create table referring (id int references emptied);
truncate emptied, referring restart identity;
begin; alter table emptied add c int; insert into emptied values (1, 'b', 2); commit;

-- Transaction COMMIT with all it can say: dropped relations, statistics, subtransactions, invalidations,
-- apply_feedback, an origin.
set synchronous_commit = remote_apply;
begin; savepoint a; insert into emptied values (2, 'c', 3); release a; drop table referring; commit;
set synchronous_commit = on;
begin; create table gone (id int); savepoint a; insert into gone values (1); rollback;
select pg_replication_origin_create('far away') is null;
select pg_replication_origin_create('idle here') is null;
select pg_replication_origin_session_setup('far away');
begin; select pg_replication_origin_xact_setup('0/ABCDEF', '2026-01-01 00:00:00+00') is null;
insert into emptied values (3, 'd', 4); commit;
begin; select pg_replication_origin_xact_setup('0/ABCDFF', '1999-12-31 23:59:59.5+00') is null;
insert into emptied values (4, 'd', 4); prepare transaction 'from far away';
commit prepared 'from far away';
select pg_replication_origin_session_reset();
-- ReplicationOrigin SET, DROP.
select pg_replication_origin_advance('far away', '0/ABCD00') is null;
select pg_replication_origin_advance('idle here', '1/0') is null;
select pg_replication_origin_drop('idle here');
select pg_replication_origin_drop('far away');

-- Prepared: with and without subtransactions, dropped files, a shared catalog.
begin; savepoint a; insert into emptied values (5, 'e', 5); savepoint b; create table prepared_table (id int primary key);
prepare transaction 'prepared with ''quotes'' and more';
commit prepared 'prepared with ''quotes'' and more';
begin; savepoint a; drop table prepared_table; prepare transaction 'dropping'; commit prepared 'dropping';
begin; create table never (id int); insert into emptied values (6, 'f', 6); prepare transaction 'undone'; rollback prepared 'undone';

-- Heap2 LOCK_UPDATED: a row whose new version belongs to a transaction that has not ended.
create table locked (id int primary key, n int) with (fillfactor = 50);
insert into locked values (1, 1), (2, 2);
begin; update locked set n = 3 where id = 1; prepare transaction 'updating';
begin; select * from locked where id = 1 for key share; commit;
commit prepared 'updating';

-- Transaction ASSIGNMENT: more than 64 subtransactions.
do $$ begin for i in 1..200 loop begin insert into locked values (100 + i, i); exception when division_by_zero then null; end; end loop; end $$;

-- Standby LOCK, INVALIDATIONS (messages of a transaction without a number).
create index concurrently on locked (n);
vacuum (freeze, analyze) locked;
reindex table concurrently locked;
begin; lock locked in access exclusive mode; savepoint a; drop index locked_n_idx; rollback to a; commit;

-- LogicalMessage.
select pg_logical_emit_message(false, 'prefix', 'text') is null, pg_logical_emit_message(true, '', decode('00ff10', 'hex')) is null;

-- XLOG RESTORE_POINT, SWITCH, CHECKPOINT_ONLINE, CHECKPOINT_REDO.
select pg_create_restore_point('a name, with commas; and "quotes"') is null;
select pg_switch_wal() is null;
checkpoint;
