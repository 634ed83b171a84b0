-- What is only written at wal_level = minimal, where new relations skip WAL.

-- Gist ASSIGN_LSN: pages of a new index are split while nothing else writes WAL, so that two splits
-- would have the same LSN (gistGetFakeLSN in src/backend/access/gist/gistutil.c).
begin;
create table points (id int, place point);
create index on points using gist (place);
insert into points select g, point(g % 97, g % 89) from generate_series(1, 5000) g;
delete from points where id % 2 = 0;
commit;
vacuum points;
-- wal_skip_threshold: small relations are logged at commit, page by page.
begin; create table small as select generate_series(1, 2000) g; create index on small (g); commit;
begin; truncate small; insert into small select generate_series(1, 100000); commit;
begin; alter table small alter g type bigint; commit;
begin; create table again (id int primary key); copy again from program 'seq 1 3000'; rollback;
vacuum full small;
checkpoint;
