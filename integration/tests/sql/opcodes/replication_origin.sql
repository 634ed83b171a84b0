-- ReplicationOrigin: both opcodes. (SET with "force: 0" is a subscriber's.)

-- SET.
select pg_replication_origin_create('origin_one');
select pg_replication_origin_advance('origin_one', '1/ABCDEF');
select pg_replication_origin_advance('origin_one', '0/1');
-- DROP.
select pg_replication_origin_drop('origin_one');
