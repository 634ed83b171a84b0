-- Sequence: its only opcode.

-- LOG.
create sequence sequence_one;
select nextval('sequence_one'), setval('sequence_one', 100);
select nextval('sequence_one');
alter sequence sequence_one restart;
create unlogged table sequence_owner (id serial);
drop table sequence_owner;
drop sequence sequence_one;
