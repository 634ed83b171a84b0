-- Writes WAL records of as many kinds as SQL can ask for. The reader is `tests/waldump.rs`.

-- Heap and B-tree, plain: most of the million.
create table plain (id bigint, payload text);
insert into plain select n, 'row ' || n from generate_series(1, :rows) n;
create table keyed (id bigint primary key, amount int, note text);
insert into keyed select n * 7919 % :rows, 0, md5(n::text) from generate_series(1, :rows) n
    on conflict do nothing;
update keyed set amount = amount + 1 where id % 3 = 0;
delete from keyed where id % 5 = 0;
vacuum (freeze, analyze) keyed;

-- COPY, TOAST, HOT chains, pruning, row locks, multixacts, TRUNCATE.
copy (select n, repeat(md5(n::text), 300) from generate_series(1, 300) n) to :'copy_file';
create table toasted (id int, wide text);
alter table toasted alter wide set storage external;
copy toasted from :'copy_file';
create table hot (id int primary key, n int) with (fillfactor = 50);
insert into hot select n, 0 from generate_series(1, 500) n;
update hot set n = n + 1;
update hot set n = n + 1;
select count(*) from hot;
begin;
select count(*) from (select * from hot for key share) locked;
savepoint inner_one;
select count(*) from (select * from hot for no key update) locked;
commit;
create table emptied (id int);
insert into emptied values (1);
truncate emptied;
drop table emptied;

-- Page images: none compressed, then each method.
set wal_compression = off;   checkpoint; update keyed set amount = 10 where id % 11 = 0;
set wal_compression = pglz;  checkpoint; update keyed set amount = 11 where id % 11 = 1;
set wal_compression = lz4;   checkpoint; update keyed set amount = 12 where id % 11 = 2;
set wal_compression = zstd;  checkpoint; update keyed set amount = 13 where id % 11 = 3;

-- Every access method: build, insert, delete, vacuum. Index builds log whole pages.
create table indexed (id int, words int[], place point, word text);
insert into indexed select n, array[n % 10, n % 100, n], point(n % 97, n % 89), 'word ' || n % 1000
    from generate_series(1, 5000) n;
create index on indexed using gin (words);
create index on indexed using gist (place);
create index on indexed using hash (id);
create index on indexed using brin (id) with (pages_per_range = 4, autosummarize = on);
create index on indexed using spgist (word);
create index concurrently on indexed using btree (word, id);
set wal_compression = off;
insert into indexed select n, array[n % 10, n], point(n % 97, n % 83), 'word ' || n % 3000
    from generate_series(5001, 12000) n;
delete from indexed where id % 4 = 0;
vacuum indexed;
select count(brin_summarize_new_values(indexrelid)) from pg_index join pg_class on pg_class.oid = indexrelid
    where indrelid = 'indexed'::regclass and relam = (select oid from pg_am where amname = 'brin');

-- Sequences, subtransactions, two-phase commit.
create sequence counter;
select count(nextval('counter')) from generate_series(1, 2000);
-- More transaction ids than a page of pg_xact has room for (32768): a CLOG record.
do $$ begin
    for n in 1..33000 loop
        begin insert into plain values (-n, 'in a subtransaction');
            if n % 300 = 0 then raise 'rolled back'; end if;
        exception when raise_exception then null; end;
    end loop;
end $$;
begin; insert into plain values (-1000, 'prepared'); prepare transaction 'first';
begin; insert into plain values (-1001, 'prepared'); prepare transaction 'second';
commit prepared 'first';
rollback prepared 'second';

-- Logical messages: empty, short, longer than pages, and one longer than a small segment.
select pg_logical_emit_message(false, 'p', '') is null, pg_logical_emit_message(true, 'p', 'x') is null;
select count(pg_logical_emit_message(false, 'long', repeat('m', n * 997))) from generate_series(1, 60) n;
select pg_logical_emit_message(false, 'very long', repeat('m', 3000000)) is null;

-- Databases, tablespaces, relation maps, roles, switches, restore points.
create database by_log strategy wal_log;
create database by_copy strategy file_copy;
alter database by_log set work_mem = '8MB';
drop database by_copy;
vacuum full pg_class;
create role somebody;
select pg_replication_origin_create('somewhere') is null;
select pg_create_restore_point('here') is null;
select pg_switch_wal() is null;
insert into plain values (0, 'after a switch');
select pg_switch_wal() is null;
checkpoint;
