-- Every opcode of Hash. For psql, on an empty database of any major, with autovacuum off.
-- With wal_level = logical, isCatalogRel is T once.

-- INIT_META_PAGE, INIT_BITMAP_PAGE, and the pages of the first buckets.
CREATE TABLE hash_rows (k int, filler text) WITH (autovacuum_enabled = off);
CREATE INDEX hash_rows_k ON hash_rows USING hash (k) WITH (fillfactor = 10);

-- INSERT; SPLIT_ALLOCATE_PAGE with both flags and without, SPLIT_PAGE, SPLIT_COMPLETE: buckets are split.
INSERT INTO hash_rows SELECT i, 'split' FROM generate_series(1, 6000) i;
-- ADD_OVFL_PAGE, with a free bit in the bitmap and without: one bucket gets many pages.
INSERT INTO hash_rows SELECT 42, 'overflow' FROM generate_series(1, 3000) i;
-- SPLIT_CLEANUP, DELETE with the bucket's first page and with others: VACUUM removes what splits left behind.
-- UPDATE_META_PAGE.
DELETE FROM hash_rows WHERE k % 2 = 1;
VACUUM hash_rows;
-- MOVE_PAGE_CONTENTS, SQUEEZE_PAGE: pages of a bucket that became emptier are put together.
DELETE FROM hash_rows WHERE k = 42 AND ctid::text LIKE '%0)';
VACUUM hash_rows;
DELETE FROM hash_rows WHERE k = 42 AND ctid::text LIKE '%,_2%';
VACUUM hash_rows;
DELETE FROM hash_rows WHERE k = 42 AND ctid::text NOT LIKE '%3)';
VACUUM hash_rows;
-- ADD_OVFL_PAGE with bmpage_found: a page that was freed is used again.
INSERT INTO hash_rows SELECT 42, 'overflow again' FROM generate_series(1, 2000) i;
DELETE FROM hash_rows WHERE k = 42;
VACUUM hash_rows;

-- MOVE_PAGE_CONTENTS: what is squeezed out of one page needs several others to go to.
CREATE TABLE hash_chain (k int) WITH (autovacuum_enabled = off);
CREATE INDEX hash_chain_k ON hash_chain USING hash (k);
INSERT INTO hash_chain SELECT 7 FROM generate_series(1, 4000) i;
DELETE FROM hash_chain WHERE ctid IN (SELECT ctid FROM hash_chain LIMIT 1500 OFFSET 200);
VACUUM hash_chain;
DELETE FROM hash_chain WHERE ctid IN (SELECT ctid FROM hash_chain WHERE ctid::text LIKE '%3)' OR ctid::text LIKE '%7)');
VACUUM hash_chain;

-- VACUUM_ONE_PAGE: a full page has dead items, which a scan of the index has found out.
CREATE TABLE hash_dead (k int) WITH (autovacuum_enabled = off, user_catalog_table = true);
CREATE INDEX hash_dead_k ON hash_dead USING hash (k);
INSERT INTO hash_dead SELECT 1 FROM generate_series(1, 400) i;
DELETE FROM hash_dead;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT count(*) FROM hash_dead WHERE k = 1;
INSERT INTO hash_dead SELECT 1 FROM generate_series(1, 300) i;
ALTER TABLE hash_dead SET (user_catalog_table = false);
DELETE FROM hash_dead;
SELECT count(*) FROM hash_dead WHERE k = 1;
INSERT INTO hash_dead SELECT 1 FROM generate_series(1, 300) i;
-- DELETE with clear_dead_marking: VACUUM comes before an insertion does.
DELETE FROM hash_dead;
SELECT count(*) FROM hash_dead WHERE k = 1;
VACUUM hash_dead;
RESET enable_seqscan;
RESET enable_bitmapscan;

-- Meta page with a row count that needs an exponent, or several digits.
CREATE TABLE hash_many (k int) WITH (autovacuum_enabled = off);
INSERT INTO hash_many SELECT i FROM generate_series(1, 1234) i;
CREATE INDEX hash_many_k ON hash_many USING hash (k);
ANALYZE hash_many;
CREATE INDEX hash_many_k2 ON hash_many USING hash (k) WITH (fillfactor = 100);
DELETE FROM hash_many WHERE k < 10;
VACUUM hash_many;
-- An estimate that needs an exponent (%g).
UPDATE pg_class SET reltuples = 1234567.5 WHERE relname = 'hash_many';
CREATE INDEX hash_many_k3 ON hash_many USING hash (k) WITH (fillfactor = 100);

-- Page images: for replay, and for verification only.
CHECKPOINT;
INSERT INTO hash_rows SELECT i, 'after a checkpoint' FROM generate_series(1, 100) i;
SET wal_consistency_checking = 'hash';
INSERT INTO hash_rows SELECT i, 'verified' FROM generate_series(1, 100) i;
RESET wal_consistency_checking;
