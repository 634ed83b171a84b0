-- The counter of object ids stands just before its end, see `Workload::prepare`: the file numbers
-- of relations that were dropped are given to others.
\if :first
create table numbers as select relfilenode as number from pg_class where relname ~ '^dropped_';
select format('drop table dropped_%s', g) from generate_series(1, 20) g \gexec
checkpoint;
select format('truncate anew_%s', g), format('insert into anew_%s
    select g, repeat(''a'', %1$s) from generate_series(1, 50 * %1$s) g', g) from generate_series(1, 20) g \gexec
select 'numbers used again', 1 / count(*) from pg_class join numbers on relfilenode = number;
\else
select format('drop table anew_%s', g) from generate_series(1, 10) g \gexec
select format('vacuum full anew_%s', g) from generate_series(11, 20) g \gexec
\endif
