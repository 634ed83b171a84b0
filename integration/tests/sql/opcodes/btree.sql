-- Every opcode of Btree, on a fresh database, as a superuser, at wal_level replica or logical. Nobody else may
-- hold back the removal of old rows.
\set ON_ERROR_STOP on
create schema btree_opcodes;
set search_path = btree_opcodes;
set enable_seqscan = off;
set enable_bitmapscan = off;
set jit = off; -- plans that are not allowed have costs for which it would seem to pay

-- A tree of four levels from few rows: some 10 entries fit on a page.
-- NEWROOT, INSERT_LEAF, INSERT_UPPER, SPLIT_R (ascending keys), SPLIT_L (descending).
create table tall (id int, key text) with (autovacuum_enabled = off);
alter table tall alter key set storage plain;
create index tall_key on tall (key);
insert into tall select n, lpad(n::text, 8, '0') || repeat('x', 700) from generate_series(1, 1500) n;
insert into tall select n, lpad(n::text, 8, '0') || repeat('x', 700) from generate_series(3000, 1501, -1) n;
insert into tall select n, lpad((n * 7919 % 3000)::text, 8, '0') || repeat('z', 690)
    from generate_series(1, 300) n;

-- VACUUM. MARK_PAGE_HALFDEAD and UNLINK_PAGE, of leaves alone and of whole subtrees. META_CLEANUP: pages were
-- deleted that cannot be used again yet.
delete from tall where key > '00000400' and key < '00000410';
delete from tall where key > '00000500' and key < '00001400';
vacuum (index_cleanup on) tall;
-- REUSE_PAGE: no snapshot is left that might still follow a link to the deleted pages.
select txid_current();
select txid_current();
vacuum (index_cleanup on) tall;
select txid_current();
vacuum (index_cleanup on) tall;
insert into tall select n, lpad(n::text, 8, '0') || repeat('y', 700) from generate_series(500, 900) n;

-- UNLINK_PAGE_META: all pages but the rightmost go, and the leaf that remains becomes the fast root.
create table narrow (id int primary key, wide text) with (autovacuum_enabled = off);
insert into narrow select n from generate_series(1, 2000) n;
delete from narrow where id < 1990;
vacuum (index_cleanup on) narrow;
-- INSERT_META: that leaf is split again.
insert into narrow select n from generate_series(2001, 3500) n;

-- DEDUP, INSERT_POST (a row in the place of one that went, between its equals), splits of posting lists, and
-- VACUUM that shortens them.
create table equals (k int, filler text default repeat('x', 20)) with (autovacuum_enabled = off);
create index equals_k on equals (k);
insert into equals select n % 3 from generate_series(1, 6000) n;
delete from equals where ctid in (select ctid from equals order by random() limit 1500);
vacuum (index_cleanup on) equals;
insert into equals select n % 3 from generate_series(1, 3000) n;
delete from equals where ctid in (select ctid from equals where k = 1 order by ctid limit 400);
vacuum (index_cleanup on) equals;
insert into equals select 1 from generate_series(1, 2000) n;
-- SPLIT_L, SPLIT_R in the midst of a posting list: the row that needs the space belongs into one.
create table gaps (k int, filler text default repeat('x', 20)) with (autovacuum_enabled = off);
create index gaps_k on gaps (k);
insert into gaps select n % 2 from generate_series(1, 8000) n;
delete from gaps where k = 0;
vacuum (index_cleanup on) gaps;
insert into gaps select 1 from generate_series(1, 4000) n;

-- DELETE: of entries that an index scan found dead, when their leaf is full; and, before a leaf is split for
-- nothing but new versions of rows, of what these replaced: whole entries, and parts of posting lists.
create table killed (id int primary key) with (autovacuum_enabled = off);
insert into killed select n from generate_series(1, 1000, 2) n;
delete from killed where id between 100 and 300;
select count(*) from killed where id between 1 and 1000;
insert into killed select n from generate_series(2, 1000, 2) n;
insert into killed select n from generate_series(101, 299, 2) n;
create table churned (id int primary key, k int, n int) with (autovacuum_enabled = off);
create index churned_k on churned (k);
create index churned_n on churned (n);
insert into churned select n, n % 4, n from generate_series(1, 300) n;
update churned set n = n + 1000;
update churned set n = n + 1000;
update churned set n = n + 1000;
update churned set n = n + 1000;
update churned set n = n + 1000;
update churned set n = n + 1000;
update churned set n = n + 1000 where id % 3 = 0;
update churned set n = n + 1000 where id % 3 = 1;
update churned set n = n + 1000 where id % 3 = 0;
update churned set n = n + 1000 where id % 3 = 1;
update churned set n = n + 1000;
update churned set n = n + 1000;

-- With page images: after a checkpoint the first change of a page has one.
checkpoint;
insert into tall select n, lpad(n::text, 8, '0') || repeat('w', 700) from generate_series(1, 100) n;
checkpoint;
insert into equals select n % 3 from generate_series(1, 1000) n;
delete from equals where ctid in (select ctid from equals order by random() limit 500);
checkpoint;
vacuum (index_cleanup on) equals;
checkpoint;
update churned set n = n + 1000;
checkpoint;
delete from tall where key > '00001500' and key < '00002000';
vacuum (index_cleanup on) tall;

-- And with images to compare with, which leave the data where they are.
set wal_consistency_checking = 'btree';
insert into equals select n % 3 from generate_series(1, 1000) n;
delete from equals where ctid in (select ctid from equals order by random() limit 500);
vacuum (index_cleanup on) equals;
insert into equals select n % 3 from generate_series(1, 1000) n;
update churned set n = n + 1000;
update churned set n = n + 1000;
delete from tall where key > '00002000' and key < '00002500';
vacuum (index_cleanup on) tall;
reset wal_consistency_checking;
