-- What the WAL carries for logical replication: messages and origins.
select pg_logical_emit_message(false, 'walferry', repeat('m', 500));
begin; select pg_logical_emit_message(true, 'walferry', 'in a transaction'); commit;
\if :first
create table from_elsewhere (id int primary key);
select pg_replication_origin_create('elsewhere');
select pg_replication_origin_create('dropped');
-- Only an origin with progress leaves a record when it is dropped.
select pg_replication_origin_advance('dropped', '0/1000');
\endif
select pg_replication_origin_session_setup('elsewhere');
begin; select pg_replication_origin_xact_setup(('0/' || to_hex(1000 * :round))::pg_lsn, '2026-01-01');
insert into from_elsewhere values (:round); commit;
select pg_replication_origin_session_reset();
select pg_replication_origin_advance('elsewhere', ('0/' || to_hex(9000 * :round))::pg_lsn);
\if :first
\else
select pg_replication_origin_drop('dropped');
\endif
