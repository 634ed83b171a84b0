-- RelMap: its only opcode.

-- UPDATE of the database's map, and of the shared one.
vacuum full pg_class;
vacuum full pg_database;
reindex table pg_class;
