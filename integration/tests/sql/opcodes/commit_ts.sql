-- CommitTs: both opcodes.
-- The server needs: track_commit_timestamp = on, autovacuum = off.

-- ZEROPAGE: one for 819 transaction ids. TRUNCATE needs a whole segment of 32 pages that nobody needs.
set synchronous_commit = off;
do $$
begin
    for n in 1 .. 30000 loop
        perform pg_current_xact_id();
        commit;
    end loop;
end
$$;
reset synchronous_commit;
-- TRUNCATE: no database needs the old ones.
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
