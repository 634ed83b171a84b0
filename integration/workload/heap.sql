-- Rows of all shapes come, change and go; B-trees over them split and shrink.
\if :first
create table mixed (id int primary key, a int, b text, c text, d bool) with (fillfactor = 80);
alter table mixed alter c set storage external;
create index mixed_b on mixed (b, a);
create table keys (k text, n int);
create index keys_k on keys (k);
create unique index keys_n on keys (n);
create table hot (id int primary key, n int, m int) with (fillfactor = 50);
create index hot_n on hot (n);
insert into hot select g, g, g from generate_series(1, 300) g;
create table parts (k int, v text) partition by list (k);
create table parts_1 partition of parts for values in (1);
create table parts_2 partition of parts for values in (2);
\endif
select count(*) as base from mixed \gset
insert into mixed select :base + g, nullif(g % 3, 0), nullif(repeat('q', g % 40), ''),
    case when g % 200 = 0 then repeat('t', 9000) end, g % 2 = 0
    from generate_series(1, 3000 * :scale) g on conflict do nothing;
update mixed set a = a + 1 where id % 2 = 0;
update mixed set b = b || 'r' where id % 5 = 0;
update mixed set c = repeat('u', 7000) where id % 1000 = 0;
delete from mixed where id % 4 = 1;
vacuum mixed;
begin; update mixed set d = not d where id % 7 = 0; delete from mixed where id % 3 = 0; rollback;
begin; select count(*) from (select 1 from mixed where id % 13 = 0 for update) x; commit;
begin; select count(*) from (select 1 from mixed where id % 17 = 0 for key share) x; commit;
begin; select count(*) from (select 1 from mixed where id % 19 = 0 for no key update) x; rollback;
vacuum (freeze, truncate off) mixed;
update mixed set b = 'late' where id % 50 = 0;
-- Copies, also of frozen rows: pages are visible to all from the start.
copy (select id, a, b from mixed) to :'copy_file';
create table copied_:round (id int, a int, b text);
create index on copied_:round (a);
copy copied_:round from :'copy_file';
begin;
create table frozen_:round (id int, a int, b text);
copy frozen_:round from :'copy_file' (freeze);
commit;
insert into frozen_:round values (1, 1, 'late');
delete from copied_:round where id % 3 = 0;
vacuum copied_:round;
copy copied_:round from :'copy_file';
delete from frozen_:round where id % 11 = 0;
-- Random keys: splits everywhere; then ranges go: pages are deleted and used again.
insert into keys select md5(g::text), g from generate_series(1, 6000 * :scale) g on conflict do nothing;
delete from keys where n between 1000 and 5000 * :scale;
vacuum keys;
vacuum keys;
insert into keys select md5(g::text), -g from generate_series(1, 3000 * :scale) g on conflict do nothing;
delete from keys;
vacuum keys;
vacuum keys;
insert into keys select md5(g::text), g from generate_series(1, 500) g;
-- Many versions of few rows: pruning, heap-only tuples, bottom-up deletion.
do $$ begin for i in 1..30 loop update hot set m = m + 1; commit; end loop; end $$;
do $$ begin for i in 1..30 loop update hot set n = n + 1000; commit; end loop; end $$;
insert into hot select g, 1, 1 from generate_series(200, 400) g
    on conflict (id) do update set m = excluded.m;
insert into hot select g, 1, 1 from generate_series(300, 600) g on conflict do nothing;
select count(*) from hot;
-- Rows that move to another partition.
insert into parts select 1 + g % 2, g::text from generate_series(1, 500) g;
update parts set k = 3 - k where v::int % 3 = 0;
vacuum parts;
