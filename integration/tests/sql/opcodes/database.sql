-- Database: every opcode.
-- The server needs: allow_in_place_tablespaces = on.

-- CREATE_WAL_LOG, CREATE_FILE_COPY.
create database database_logged template template0 strategy wal_log;
create database database_copied template template0 strategy file_copy;
-- CREATE_FILE_COPY and DROP of a database that moves; a database in two tablespaces.
set allow_in_place_tablespaces = on;
create tablespace database_place location '';
alter database database_copied set tablespace database_place;
select current_database() as here \gset
\c database_logged
create table elsewhere (id int) tablespace database_place;
\c :here
-- DROP: of one directory, of two.
drop database database_copied;
drop database database_logged;
drop tablespace database_place;
