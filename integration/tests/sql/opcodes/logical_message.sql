-- LogicalMessage, which has one kind of record, at any wal_level from replica on.
\set ON_ERROR_STOP on
select from pg_logical_emit_message(true, 'opcodes', 'in a transaction');
select from pg_logical_emit_message(false, 'opcodes', 'at once');
-- Nothing to say, nobody to say it to, both.
select from pg_logical_emit_message(true, 'opcodes', '');
select from pg_logical_emit_message(true, '', 'to nobody');
select from pg_logical_emit_message(false, '', '');
-- All bytes; a prefix that nobody escapes; one too long for a short main data header.
select from pg_logical_emit_message(
    true, 'opcodes', (select string_agg(set_byte('\x00', 0, n), '' order by n) from generate_series(0, 255) n));
select from pg_logical_emit_message(false, E'a "prefix"\\ of\tmore than a word, ü', E'\n');
select from pg_logical_emit_message(true, 'opcodes', repeat('long ', 5000));
begin;
select from pg_logical_emit_message(true, 'opcodes', 'of a transaction that rolls back');
rollback;
