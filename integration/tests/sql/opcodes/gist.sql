-- Every opcode of Gist but ASSIGN_LSN. For psql, on an empty database of any major, with autovacuum off.
-- With wal_level = logical, isCatalogRel is T once in DELETE and PAGE_REUSE.
--
-- The end, gist_in_one_transaction, gives ASSIGN_LSN if the server runs with wal_level = minimal (and
-- max_wal_senders = 0): the index of a table made in the same transaction is not logged, but its pages
-- need LSNs that grow. Elsewhere it gives the same records as the rest.

-- PAGE_UPDATE, PAGE_SPLIT of leaves, of the root, of inner pages.
CREATE TABLE gist_points (p point) WITH (autovacuum_enabled = off, user_catalog_table = true);
CREATE INDEX gist_points_p ON gist_points USING gist (p);
INSERT INTO gist_points SELECT point(i, (i * 7919) % 10007) FROM generate_series(1, 20000) i;
-- PAGE_DELETE.
DELETE FROM gist_points WHERE p[0] BETWEEN 1000 AND 15000;
VACUUM gist_points;
-- PAGE_REUSE: the next VACUUM finds that nobody can come to the deleted pages any more.
SELECT pg_current_xact_id();
SELECT pg_current_xact_id();
VACUUM gist_points;
INSERT INTO gist_points SELECT point(i, (i * 7919) % 10007) FROM generate_series(1000, 8000) i;
ALTER TABLE gist_points SET (user_catalog_table = false);
INSERT INTO gist_points SELECT point(i, (i * 7919) % 10007) FROM generate_series(8001, 15000) i;

-- DELETE: a full leaf has dead items, which a scan of the index has found out (of a root, scans do not).
CREATE TABLE gist_dead (p point) WITH (autovacuum_enabled = off, user_catalog_table = true);
CREATE INDEX gist_dead_p ON gist_dead USING gist (p);
SET enable_seqscan = off;
SET enable_bitmapscan = off;
INSERT INTO gist_dead SELECT point(i, i) FROM generate_series(1, 400) i;
DELETE FROM gist_dead WHERE p[0] > 10;
SELECT count(*) FROM gist_dead WHERE p <@ box(point(0, 0), point(1000, 1000));
INSERT INTO gist_dead SELECT point(i, i) FROM generate_series(1, 400) i;
ALTER TABLE gist_dead SET (user_catalog_table = false);
DELETE FROM gist_dead WHERE p[0] > 10;
SELECT count(*) FROM gist_dead WHERE p <@ box(point(0, 0), point(1000, 1000));
INSERT INTO gist_dead SELECT point(i, i) FROM generate_series(1, 400) i;
RESET enable_seqscan;
RESET enable_bitmapscan;

-- PAGE_UPDATE that deletes: VACUUM. Wide keys: PAGE_SPLIT into more than two pages.
CREATE TABLE gist_wide (t tsvector) WITH (autovacuum_enabled = off);
CREATE INDEX gist_wide_t ON gist_wide USING gist (t tsvector_ops (siglen = 2024));
INSERT INTO gist_wide SELECT to_tsvector('simple', (SELECT string_agg(md5((i * 1000 + j)::text), ' ')
    FROM generate_series(1, i % 60) j)) FROM generate_series(1, 600) i;
DELETE FROM gist_wide WHERE ctid::text LIKE '%3)';
VACUUM gist_wide;

-- Page images: for replay, and for verification only.
CHECKPOINT;
INSERT INTO gist_points SELECT point(i, i) FROM generate_series(1, 100) i;
SET wal_consistency_checking = 'gist';
INSERT INTO gist_points SELECT point(i, i) FROM generate_series(1, 500) i;
RESET wal_consistency_checking;

-- gist_in_one_transaction
BEGIN;
CREATE TABLE gist_new (p point);
CREATE INDEX gist_new_p ON gist_new USING gist (p);
INSERT INTO gist_new SELECT point(i, i) FROM generate_series(1, 1000) i;
COMMIT;
