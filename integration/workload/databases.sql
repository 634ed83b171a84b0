-- Databases are copied by file and by WAL, altered and dropped, some of them under the same number
-- again: files of the same names come back with other contents.
\if :first
create database copied_files strategy file_copy;
create database copied_wal strategy wal_log;
\endif
create database reused oid 60000 strategy wal_log;
\c reused
create table here (id int primary key, t text);
insert into here select g, repeat('h', g % 50) from generate_series(1, 3000) g;
vacuum here;
\c postgres
drop database reused with (force);
create database reused oid 60000 strategy file_copy;
\c reused
create table here (id int primary key, t text);
insert into here select g, repeat('i', g % 30) from generate_series(1, 2000) g;
update here set t = t || 'j' where id % 3 = 0;
\c postgres
create database of_template template reused strategy wal_log;
\c of_template
update here set t = 'k' where id % 5 = 0;
vacuum full pg_class;
\c postgres
drop database reused with (force);
create database of_copy template of_template strategy file_copy;
alter database of_copy rename to renamed_:round;
alter database copied_wal connection limit 9;
drop database of_template with (force);
\c copied_files
create table t_:round (id int primary key);
insert into t_:round select generate_series(1, 1000);
\c copied_wal
create table t_:round (id int primary key);
insert into t_:round select generate_series(1, 1000);
