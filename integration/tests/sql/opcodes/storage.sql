-- Storage: both opcodes, every fork, every kind of place.
-- The server needs: allow_in_place_tablespaces = on.

-- CREATE of main forks; of an init fork.
create table storage_plain (id int, note text);
create unlogged table storage_unlogged (id int primary key);
insert into storage_plain select n, repeat('x', 100) from generate_series(1, 5000) n;
delete from storage_plain where id > 10;
-- TRUNCATE by vacuum: heap, free space map, visibility map.
vacuum storage_plain;
-- CREATE of fsm and vm forks, in a tablespace.
set allow_in_place_tablespaces = on;
create tablespace storage_place location '';
alter table storage_plain set tablespace storage_place;
alter table storage_unlogged set tablespace storage_place;
insert into storage_plain select n, repeat('x', 100) from generate_series(11, 5000) n;
delete from storage_plain where id > 10;
-- TRUNCATE in a tablespace.
vacuum storage_plain;
-- CREATE among the shared relations.
vacuum full pg_tablespace;
-- TRUNCATE to nothing, of a table that its own transaction has made.
begin;
create table storage_again (id int primary key);
insert into storage_again values (1);
truncate storage_again;
commit;
drop table storage_plain, storage_unlogged, storage_again;
drop tablespace storage_place;
