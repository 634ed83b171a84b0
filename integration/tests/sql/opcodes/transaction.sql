-- Transaction: every opcode, and every part that a commit, an abort and a PREPARE can have.
-- The server needs: wal_level = logical, max_prepared_transactions > 0, track_commit_timestamp = on.

-- COMMIT: database, relations, statistics, subtransactions, invalidations, the relation cache's file.
create table xact_rows (id int primary key, note text);
begin;
insert into xact_rows values (1, 'top');
savepoint inner_one;
insert into xact_rows values (2, 'inner');
commit;
-- COMMIT that drops files and statistics.
create table xact_dropped (id serial primary key, note text);
drop table xact_dropped;
create function xact_function() returns int language sql as 'select 1';
drop function xact_function();
-- COMMIT "sync".
create database xact_database;
drop database xact_database;
-- COMMIT "apply_feedback".
set synchronous_commit = remote_apply;
insert into xact_rows values (3, 'remote_apply');
reset synchronous_commit;
-- COMMIT "relcache init file inval".
vacuum full pg_class;

-- ABORT, with files, statistics and subtransactions.
begin;
create table xact_gone (id serial primary key);
savepoint inner_one;
insert into xact_gone default values;
rollback;
begin;
insert into xact_rows values (4, 'plain');
rollback;

-- ASSIGNMENT: 64 subtransactions that nobody else has heard of.
do $$
begin
    for n in 100 .. 250 loop
        begin
            insert into xact_rows values (n, 'subtransaction');
        exception when unique_violation then
            null;
        end;
    end loop;
end
$$;

-- INVALIDATION: a catalog's change that the same transaction goes on from.
begin;
create table xact_seen (id int);
alter table xact_seen add note text;
insert into xact_seen values (1, 'x');
commit;

-- PREPARE, COMMIT_PREPARED: files and statistics that go either way, subtransactions, invalidations.
create table xact_to_drop (id serial primary key);
begin;
create table xact_made (id serial primary key);
drop table xact_to_drop;
savepoint inner_one;
insert into xact_made default values;
prepare transaction 'a name "with" spaces';
commit prepared 'a name "with" spaces';
begin;
insert into xact_rows values (5, 'prepared');
prepare transaction 'short';
commit prepared 'short';
-- PREPARE with the relation cache's file, which a catalog's own row in pg_class is in.
begin;
grant select on pg_class to pg_monitor;
create table xact_aborted (id serial primary key);
drop table xact_seen;
savepoint inner_one;
insert into xact_aborted default values;
prepare transaction 'to be rolled back';
-- ABORT_PREPARED.
rollback prepared 'to be rolled back';

-- Origins: of a COMMIT, a PREPARE, a COMMIT_PREPARED, an ABORT_PREPARED, an ABORT.
select pg_replication_origin_create('xact_origin');
select pg_replication_origin_session_setup('xact_origin');
begin;
select pg_replication_origin_xact_setup('1/ABCDEF', '2020-02-29 12:34:56.000789+00');
insert into xact_rows values (6, 'from elsewhere');
commit;
begin;
select pg_replication_origin_xact_setup('1/ABCDFF', '1999-12-31 23:59:59.999+00');
insert into xact_rows values (7, 'from elsewhere');
prepare transaction 'from elsewhere';
select pg_replication_origin_xact_setup('2/A', '2021-01-01 00:00:00+00');
commit prepared 'from elsewhere';
begin;
insert into xact_rows values (8, 'from elsewhere');
prepare transaction 'from elsewhere too';
select pg_replication_origin_xact_setup('2/B', '2021-01-01 00:00:00+00');
rollback prepared 'from elsewhere too';
begin;
select pg_replication_origin_xact_setup('2/C', '2021-01-01 00:00:00+00');
create table xact_origin_gone (id int);
rollback;
select pg_replication_origin_session_reset();
select pg_replication_origin_drop('xact_origin');

-- "relsync" invalidations, from 18 on; before, invalidations of other kinds.
create publication xact_publication for table xact_rows;
alter publication xact_publication rename to xact_publication_two;
alter publication xact_publication_two set (publish = 'insert');
create publication xact_all for all tables;
alter publication xact_all rename to xact_all_two;
drop publication xact_all_two;
drop publication xact_publication_two;
drop table xact_rows;
