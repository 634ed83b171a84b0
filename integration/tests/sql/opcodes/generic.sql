-- Generic, which has one kind of record, at any wal_level from replica on. Of what comes with PostgreSQL only
-- the bloom extension writes it: without contrib there is none.
\set ON_ERROR_STOP on
select exists (select from pg_available_extensions where name = 'bloom') as has_bloom \gset
\if :has_bloom
create extension bloom;
create schema generic_opcodes;
set search_path = generic_opcodes, public;
create table bloomed (a int, b int, c int) with (autovacuum_enabled = off);
create index bloomed_all on bloomed using bloom (a, b, c);
-- A page; more pages, with the meta page; what a checkpoint makes whole pages of; what vacuum leaves.
insert into bloomed values (1, 2, 3);
insert into bloomed select n, n % 7, n % 11 from generate_series(1, 2000) n;
checkpoint;
insert into bloomed values (4, 5, 6);
delete from bloomed where a % 3 = 0;
vacuum bloomed;
set wal_consistency_checking = 'generic';
insert into bloomed values (7, 8, 9);
reset wal_consistency_checking;
\endif
