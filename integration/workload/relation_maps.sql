-- Catalogs that are found through a relation map get new files; shared ones, too.
vacuum full pg_class;
vacuum full pg_proc;
reindex table pg_attribute;
reindex index pg_class_oid_index;
vacuum full pg_database;
reindex table pg_authid;
begin; reindex table pg_index; rollback;
begin; savepoint a; cluster pg_trigger using pg_trigger_oid_index; rollback to a; commit;
vacuum full pg_attribute;
