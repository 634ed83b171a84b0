-- One transaction locks a row twice, from within and from without a subtransaction: each makes a
-- multixact. A page of offsets has 2048 of them, a page of members 1636 members.
\if :first
create table locked (id int primary key, n int) with (fillfactor = 70);
insert into locked select g, 0 from generate_series(1, 400) g;
\endif
do $$ begin
    for i in 1..3500 loop
        perform 1 from locked where id = 1 + i % 400 for key share;
        begin
            perform 1 from locked where id = 1 + i % 400 for no key update;
            if i % 5 = 0 then raise exception 'undone'; end if;
        exception when raise_exception then null;
        end;
        commit;
    end loop;
end $$;
update locked set n = n + 1 where id % 3 = 0;
begin; select count(*) from (select 1 from locked for share) x; savepoint a; update locked set n = n + 1; commit;
vacuum (freeze) locked;
