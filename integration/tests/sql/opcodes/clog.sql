-- CLOG: both opcodes. Also CommitTs, both, if track_commit_timestamp = on.
-- The server needs: autovacuum = off, fsync = off for the sake of time; and databases that were all
-- frozen when the server was made, so that none but these hold the oldest transaction.

-- ZEROPAGE: one for 32768 transaction ids (of CommitTs, for 819). TRUNCATE, of CLOG, needs a whole
-- segment of 32 pages that nobody needs.
set synchronous_commit = off;
do $$
begin
    for n in 1 .. 1100000 loop
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
