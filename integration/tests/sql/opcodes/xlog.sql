-- XLOG: every opcode that a statement can ask for.
-- The server needs: wal_log_hints = on (or checksums).
--
-- What a statement cannot ask for:
--   CHECKPOINT_SHUTDOWN   stop the server
--   PARAMETER_CHANGE      start it with another max_connections
--   END_OF_RECOVERY       promote a copy that has standby.signal
--   OVERWRITE_CONTRECORD  write a record longer than a segment (the last statement here), stop the
--                         server at once (immediate), remove the segments after the one that the record
--                         begins in, start it
--   NOOP                  no server writes it

-- NEXTOID: the first OID that a server gives out after its start.
create table xlog_rows (id int primary key, note text);
insert into xlog_rows select n, 'x' from generate_series(1, 1000) n;
-- CHECKPOINT_ONLINE, and before it, from 17 on, CHECKPOINT_REDO.
checkpoint;
-- FPI_FOR_HINT: the first who sees the rows after their commit says so on their pages.
select count(*) from xlog_rows;
-- FPI: an index is built; an unlogged relation's init fork is made.
create index on xlog_rows using hash (id);
create index on xlog_rows (note);
create unlogged table xlog_unlogged (id int primary key);
-- SWITCH, RESTORE_POINT.
select pg_create_restore_point('a point "with" spaces');
select pg_switch_wal() is not null;
-- BACKUP_END.
select pg_backup_start('label', true) is not null;
select lsn is not null from pg_backup_stop(false);
-- FPW_CHANGE: off and on; the checkpointer writes it when it hears of it.
alter system set full_page_writes = off;
select pg_reload_conf();
select pg_sleep(1);
checkpoint;
alter system reset full_page_writes;
select pg_reload_conf();
select pg_sleep(1);
checkpoint;
drop table xlog_rows, xlog_unlogged;
-- Longer than a segment of 16 MB; the start of OVERWRITE_CONTRECORD.
select pg_logical_emit_message(true, 'long', repeat('x', 20000000)) is not null;
