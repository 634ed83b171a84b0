-- Relations are made, rewritten, emptied and dropped; some of it is rolled back.
\if :first
create table rewritten (id int primary key, v int, filler text);
insert into rewritten select g, g % 100, repeat('x', g % 90) from generate_series(1, 3000 * :scale) g;
create index rewritten_v on rewritten (v);
create unlogged table unlogged (id int primary key, filler text);
\endif
insert into unlogged select g, repeat('n', 2500) from generate_series(1, 200) g on conflict do nothing;
select format('create table gone_%s (id int primary key, t text)', g),
    format('insert into gone_%s select g, g::text from generate_series(1, 500) g', g),
    format('vacuum gone_%s', g), format('drop table gone_%s', g) from generate_series(1, 10) g \gexec
begin; create table never (n int primary key); insert into never select generate_series(1, 1000); rollback;
begin; truncate rewritten; insert into rewritten values (1, 1, ''); rollback;
begin; drop table rewritten cascade; rollback;
delete from rewritten where id % 3 = 0;
vacuum full rewritten;
cluster rewritten using rewritten_pkey;
reindex table rewritten;
alter table rewritten alter filler type char(9:round);
alter table rewritten add column added_:round int default 7;
update rewritten set added_:round = 8 where id % 9 = 0;
create table emptied_:round (id int, t text);
create index on emptied_:round (t);
insert into emptied_:round select g, md5(g::text) from generate_series(1, 2000) g;
truncate emptied_:round;
insert into emptied_:round select g, md5(g::text) from generate_series(1, 300) g;
begin; create table at_once_:round (id int primary key); insert into at_once_:round values (1);
truncate at_once_:round; insert into at_once_:round values (2); commit;
create materialized view seen_:round as select v, count(*) from rewritten group by v;
refresh materialized view seen_:round;
create unlogged table unlogged_:round (id int primary key, t text);
insert into unlogged_:round select g, repeat('w', 2500) from generate_series(1, 50) g;
create table becomes_:round (id int primary key);
insert into becomes_:round select generate_series(1, 500);
alter table becomes_:round set unlogged;
alter table becomes_:round set logged;
insert into becomes_:round select generate_series(501, 600);
drop table if exists unlogged_1;
create temporary table temporary (id int primary key);
insert into temporary select generate_series(1, 1000);
vacuum (skip_locked, analyze);
