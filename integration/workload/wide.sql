-- One row to a page: heaps that need a second page of their visibility map after 32,672 blocks and
-- of their free space map after each 4,069. Bits are set and cleared on both sides of the borders,
-- and heaps are cut at them, before them and behind them.
\if :first
create table wide (id int, filler char(420)) with (fillfactor = 10, autovacuum_enabled = off);
insert into wide select g, '' from generate_series(1, 34000) g;
vacuum wide;
select pg_sleep(0.3);
vacuum wide;
create table tall (id int, filler char(420)) with (fillfactor = 10, autovacuum_enabled = off);
insert into tall select g, '' from generate_series(1, 3000 + 30000 * :scale) g;
vacuum (freeze) tall;
delete from wide where id % 977 = 0 or id between 32600 and 32660;
update wide set id = id where id % 499 = 0;
vacuum wide;
select pg_sleep(0.3);
vacuum wide;
select count(*) from (select 1 from wide where id % 331 = 0 for update) x;
insert into wide select 40000 + g, '' from generate_series(1, 300) g;
vacuum (freeze) wide;
update wide set id = id where id % 997 = 0;
-- To exactly one page of the visibility map, then more of it again.
delete from wide where ctid >= '(32672,0)';
vacuum wide;
select pg_sleep(0.3);
vacuum wide;
insert into wide select 50000 + g, '' from generate_series(1, 2000) g;
vacuum wide;
select pg_sleep(0.3);
vacuum wide;
delete from wide where id % 1009 = 0;
\else
delete from wide where ctid >= '(30001,0)';
vacuum wide;
select pg_sleep(0.3);
vacuum wide;
insert into wide select 60000 + g, '' from generate_series(1, 4000) g;
vacuum (freeze) wide;
-- At a border of the free space map, then in the middle of a page of it.
create table cut (id int, filler char(420)) with (fillfactor = 10, autovacuum_enabled = off);
insert into cut select g, '' from generate_series(1, 10300) g;
vacuum cut;
select pg_sleep(0.3);
vacuum cut;
delete from cut where ctid >= '(8138,0)';
vacuum cut;
select pg_sleep(0.3);
vacuum cut;
insert into cut select g, '' from generate_series(1, 1500) g;
delete from cut where ctid >= '(5000,0)' or id % 3 = 0;
vacuum cut;
select pg_sleep(0.3);
vacuum cut;
insert into cut select g, '' from generate_series(1, 1500) g;
update tall set id = id where id % 809 = 0;
delete from tall where ctid >= format('(%s,17)', 1000 + 30000 * :scale)::tid;
vacuum tall;
\endif
