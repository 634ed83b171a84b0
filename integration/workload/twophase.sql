-- Transactions are prepared before the agents are restarted (round 1) and finished after it (2);
-- some are open at the end (3).
\if :first
create table prepared (id int primary key, t text);
insert into prepared select g, 'old' from generate_series(1, 1000) g;
create table dropped_by_prepared as select g from generate_series(1, 1000) g;
begin; insert into prepared values (1001, 'committed later'); update prepared set t = 'new' where id < 50;
prepare transaction 'later';
begin; savepoint a; insert into prepared values (1002, 'aborted later'); savepoint b;
delete from prepared where id between 100 and 150; prepare transaction 'never';
begin; drop table dropped_by_prepared; create table made_by_prepared (id int primary key);
insert into made_by_prepared select generate_series(1, 500); prepare transaction 'ddl';
begin; create table unmade_by_prepared (id int primary key);
insert into unmade_by_prepared select generate_series(1, 500); prepare transaction 'no ddl';
begin; insert into prepared values (1003, 'at once'); prepare transaction 'at once';
commit prepared 'at once';
checkpoint;
begin; insert into prepared values (1004, 'after the checkpoint'); prepare transaction 'after';
\endif
\if :second
commit prepared 'later';
rollback prepared 'never';
commit prepared 'ddl';
rollback prepared 'no ddl';
rollback prepared 'after';
vacuum prepared;
\endif
\if :third
select 'begin', format('insert into prepared values (%s, repeat(''p'', 100))', g), 'savepoint a',
    format('delete from prepared where id = %s - 1999', g), format('prepare transaction ''p%s''', g)
    from generate_series(2000, 2005) g \gexec
begin; create table open_by_prepared (id int primary key); prepare transaction 'open ddl';
commit prepared 'p2001';
rollback prepared 'p2002';
begin; insert into prepared select g, 'many' from generate_series(3000, 3400) g; prepare transaction 'open';
\endif
