-- Standby: every opcode.
-- The server needs: wal_level = replica or logical.

-- LOCK: one, and several that RUNNING_XACTS finds held at a checkpoint.
create table standby_one (id int primary key);
create table standby_two (id int primary key);
begin;
lock table standby_one in access exclusive mode;
lock table standby_two in access exclusive mode;
checkpoint;
commit;
-- RUNNING_XACTS: nobody; a transaction with subtransactions; with too many of them.
checkpoint;
begin;
insert into standby_one values (1);
savepoint a;
insert into standby_one values (2);
savepoint b;
insert into standby_one values (3);
checkpoint;
commit;
begin;
do $$
begin
    for n in 10 .. 150 loop
        begin
            insert into standby_one values (n);
        exception when unique_violation then
            null;
        end;
    end loop;
end
$$;
checkpoint;
commit;
-- INVALIDATIONS: of a vacuum, which has no transaction id; of a catalog's, which puts the relation
-- cache's file out of date.
vacuum standby_one;
analyze standby_one;
delete from standby_one;
vacuum standby_one;
vacuum pg_class;
vacuum pg_attribute;
drop table standby_one, standby_two;
