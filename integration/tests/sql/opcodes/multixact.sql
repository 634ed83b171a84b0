-- MultiXact: every opcode, every status of a member.

-- CREATE_ID: a transaction and its subtransactions may be members beside each other.
create table multi_rows (id int primary key, n int) with (fillfactor = 50);
insert into multi_rows select n, 0 from generate_series(1, 10) n;
begin;
select from multi_rows where id = 1 for key share;
savepoint a;
select from multi_rows where id = 1 for share;
savepoint b;
select from multi_rows where id = 1 for no key update;
savepoint c;
select from multi_rows where id = 1 for update;
savepoint d;
update multi_rows set n = 1 where id = 1;
commit;
begin;
select from multi_rows where id = 2 for share;
savepoint a;
update multi_rows set id = 20 where id = 2;
commit;
begin;
select from multi_rows where id = 3 for key share;
savepoint a;
update multi_rows set n = 1 where id = 3;
savepoint b;
select from multi_rows where id = 3 for key share;
savepoint c;
delete from multi_rows where id = 3;
commit;

-- ZERO_OFF_PAGE: one for 2048 multixacts; ZERO_MEM_PAGE: one for 1636 members.
create table multi_many (id int primary key);
insert into multi_many select generate_series(1, 2500);
do $$
begin
    for n in 1 .. 2500 loop
        perform from multi_many where id = n for key share;
        begin
            perform from multi_many where id = n for no key update;
        exception when division_by_zero then
            null;
        end;
    end loop;
end
$$;

-- TRUNCATE_ID: no database needs the old ones.
update pg_database set datallowconn = true where datname = 'template0';
select current_database() as here \gset
\c template0
vacuum (freeze);
\c template1
vacuum (freeze);
\c postgres
vacuum (freeze);
\c :here
vacuum (freeze);
update pg_database set datallowconn = false where datname = 'template0';
drop table multi_rows, multi_many;
