-- Every opcode of Gin. For psql, on an empty database of any major, with autovacuum off.

-- INSERT into the entry tree, SPLIT of its root and of leaves; INSERT of downlinks (children), which end
-- splits; with keys that compression makes no shorter, SPLIT of inner pages.
CREATE TABLE gin_keys (k text[]) WITH (autovacuum_enabled = off);
CREATE INDEX gin_keys_k ON gin_keys USING gin (k) WITH (fastupdate = off);
INSERT INTO gin_keys SELECT ARRAY[(SELECT string_agg(md5(i || '-' || j), '') FROM generate_series(1, 14) j)]
    FROM generate_series(1, 3000) i;

-- CREATE_PTREE: a key has too many rows for its entry, so it gets a posting tree, and the entry is replaced
-- (isdelete: T). INSERT into posting tree leaves with items added, segments replaced and inserted; SPLIT of
-- leaves (isdata: T), of the root, INSERT of a downlink (pitem).
CREATE TABLE gin_rows (k int[], filler text) WITH (autovacuum_enabled = off);
CREATE INDEX gin_rows_k ON gin_rows USING gin (k) WITH (fastupdate = off);
INSERT INTO gin_rows SELECT ARRAY[1, i % 7] FROM generate_series(1, 60000) i;
-- Rows that are far from each other have few to a posting tree page: its root is split too.
CREATE TABLE gin_sparse (k int[], filler text) WITH (autovacuum_enabled = off, fillfactor = 10);
CREATE INDEX gin_sparse_k ON gin_sparse USING gin (k) WITH (fastupdate = off);
INSERT INTO gin_sparse SELECT ARRAY[1], repeat('x', 600) FROM generate_series(1, 20000) i;
-- Rows with numbers between others: segments in the middle are changed (replace, insert, add items).
DELETE FROM gin_rows WHERE ctid::text LIKE '%3)' OR ctid::text LIKE '%5)';
-- VACUUM_DATA_LEAF_PAGE (replace), VACUUM_PAGE.
VACUUM gin_rows;
INSERT INTO gin_rows SELECT ARRAY[1, 2] FROM generate_series(1, 3000) i;
INSERT INTO gin_rows SELECT ARRAY[1, 3] FROM generate_series(1, 3000) i;
CREATE TABLE gin_few (k int[]) WITH (autovacuum_enabled = off);
CREATE INDEX gin_few_k ON gin_few USING gin (k) WITH (fastupdate = off);
INSERT INTO gin_few SELECT ARRAY[i % 10] FROM generate_series(1, 100) i;
DELETE FROM gin_few WHERE k = ARRAY[3];
VACUUM gin_few;
-- DELETE_PAGE, and VACUUM_DATA_LEAF_PAGE (delete): pages of a posting tree become empty.
DELETE FROM gin_rows WHERE (ctid::text::point)[0] BETWEEN 20 AND 300;
VACUUM gin_rows;
INSERT INTO gin_rows SELECT ARRAY[1, 4] FROM generate_series(1, 30000) i;
-- Some of a leaf's segments go whole.
DELETE FROM gin_rows WHERE (ctid::text::point)[0] BETWEEN 302 AND 306 AND (ctid::text::point)[1] > 3;
VACUUM gin_rows;

-- INSERT_LISTPAGE, UPDATE_META_PAGE: the pending list, with a new tail and with rows added to the tail.
CREATE TABLE gin_pending (k int[]) WITH (autovacuum_enabled = off);
CREATE INDEX gin_pending_k ON gin_pending USING gin (k) WITH (fastupdate = on, gin_pending_list_limit = 64);
INSERT INTO gin_pending VALUES (ARRAY[1, 2, 3]);
INSERT INTO gin_pending VALUES (ARRAY[4, 5, 6]);
INSERT INTO gin_pending SELECT ARRAY(SELECT generate_series(1, 700));
INSERT INTO gin_pending SELECT ARRAY(SELECT generate_series(1, 700));
-- DELETE_LISTPAGE: the list is worked off.
VACUUM gin_pending;
INSERT INTO gin_pending SELECT ARRAY[i, i + 1, i + 2] FROM generate_series(1, 5000) i;
SELECT gin_clean_pending_list('gin_pending_k');

-- Page images: for replay, and for verification only.
CHECKPOINT;
INSERT INTO gin_rows SELECT ARRAY[1, i % 7] FROM generate_series(1, 20) i;
INSERT INTO gin_keys SELECT ARRAY['new ' || i] FROM generate_series(1, 20) i;
DELETE FROM gin_few WHERE k = ARRAY[4];
CHECKPOINT;
VACUUM gin_few;
DELETE FROM gin_rows WHERE ctid::text LIKE '%9)';
VACUUM gin_rows;
SET wal_consistency_checking = 'gin';
INSERT INTO gin_rows SELECT ARRAY[1, i % 7] FROM generate_series(1, 20) i;
INSERT INTO gin_pending SELECT ARRAY[i] FROM generate_series(1, 200) i;
INSERT INTO gin_keys SELECT ARRAY[(SELECT string_agg(md5(i || '+' || j), '') FROM generate_series(1, 14) j)]
    FROM generate_series(1, 300) i;
DELETE FROM gin_rows WHERE ctid::text LIKE '%8)';
VACUUM gin_rows;
VACUUM gin_pending;
RESET wal_consistency_checking;
