-- Tablespaces that lie in the data directory itself, for leader and follower share a host.
set allow_in_place_tablespaces = on;
create tablespace space_:round location '';
create tablespace dropped_space location '';
create table moved_:round (id int primary key, t text) tablespace space_:round;
insert into moved_:round select g, repeat('m', g % 70) from generate_series(1, 3000) g;
vacuum moved_:round;
alter table moved_:round set tablespace dropped_space;
update moved_:round set t = 'n' where id % 3 = 0;
alter table moved_:round set tablespace space_:round;
select format('alter index %I set tablespace %I', 'moved_' || :round || '_pkey', 'space_' || :round) \gexec
create unlogged table unlogged_elsewhere_:round (id int primary key) tablespace space_:round;
drop tablespace dropped_space;
\if :databases
create database elsewhere_:round tablespace space_:round strategy wal_log;
create database elsewhere_too_:round tablespace space_:round strategy file_copy;
\c elsewhere_:round
create table t (id int primary key);
insert into t select generate_series(1, 2000);
\c postgres
alter database elsewhere_:round set tablespace pg_default;
\c elsewhere_:round
insert into t select generate_series(2001, 3000);
\c postgres
alter database elsewhere_:round set tablespace space_:round;
drop database elsewhere_too_:round;
\endif
