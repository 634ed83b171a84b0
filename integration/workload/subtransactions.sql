-- Savepoints, more of them than a commit record's cache holds (64), rolled back and released.
\if :first
create table nested (n int);
\endif
begin; insert into nested values (1); savepoint a; insert into nested values (2); rollback to a;
insert into nested values (3); savepoint b; insert into nested values (4); commit;
do $$ begin
    for i in 1..300 loop
        begin
            insert into nested values (i);
            if i % 3 = 0 then raise exception 'undone'; end if;
        exception when raise_exception then null;
        end;
    end loop;
end $$;
-- A page of pg_xact has 32,768 transactions.
do $$ begin
    for i in 1..17000 loop
        begin insert into nested values (i); exception when others then null; end;
    end loop;
end $$;
begin; savepoint a; insert into nested values (5); savepoint b; insert into nested values (6); rollback;
vacuum nested;
