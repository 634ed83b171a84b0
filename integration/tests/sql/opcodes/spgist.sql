-- Every opcode of SPGist. For psql, on an empty database of any major, with autovacuum off.
-- With wal_level = logical, isCatalogRel is T once.

-- ADD_LEAF (newpage), VACUUM_ROOT: few rows, all on the root, which is a leaf; those with NULL have their own.
CREATE TABLE spgist_few (t text) WITH (autovacuum_enabled = off);
CREATE INDEX spgist_few_t ON spgist_few USING spgist (t);
INSERT INTO spgist_few SELECT 'few ' || i FROM generate_series(1, 20) i;
INSERT INTO spgist_few SELECT NULL FROM generate_series(1, 20) i;
DELETE FROM spgist_few WHERE ctid::text LIKE '%5)';
VACUUM spgist_few;

-- PICKSPLIT (isRootSplit, innerIsParent, nulls), ADD_LEAF, MOVE_LEAFS.
INSERT INTO spgist_few SELECT NULL FROM generate_series(1, 3000) i;
CREATE TABLE spgist_points (p point) WITH (autovacuum_enabled = off, user_catalog_table = true);
CREATE INDEX spgist_points_p ON spgist_points USING spgist (p);
INSERT INTO spgist_points SELECT point((i * 7919) % 1009, (i * 9973) % 2003) FROM generate_series(1, 20000) i;

-- VACUUM_LEAF (ndead, nplaceholder, nmove, nchain), VACUUM_REDIRECT.
DELETE FROM spgist_points WHERE p[0] BETWEEN 100 AND 300;
VACUUM spgist_points;
SELECT pg_current_xact_id();
VACUUM spgist_points;
ALTER TABLE spgist_points SET (user_catalog_table = false);
-- ADD_LEAF in the place of a dead tuple (off and headoff are the same).
INSERT INTO spgist_points SELECT point((i * 7919) % 1009, (i * 9973) % 2003) FROM generate_series(20000, 40000) i;
DELETE FROM spgist_points WHERE ctid::text LIKE '%3)';
VACUUM spgist_points;
SELECT pg_current_xact_id();
VACUUM spgist_points;

-- MOVE_LEAFS (replacedead): the dead head of a chain is on a page that other chains have filled, which
-- comes soon if but a few leaves fit on a page.
CREATE TABLE spgist_wide (t text) WITH (autovacuum_enabled = off);
CREATE INDEX spgist_wide_t ON spgist_wide USING spgist (t);
INSERT INTO spgist_wide SELECT (SELECT string_agg(md5(i || '-' || j), '') FROM generate_series(1, 40) j)
    FROM generate_series(1, 1000) i;
DELETE FROM spgist_wide WHERE t ~ '^..[0-3]';
VACUUM spgist_wide;
INSERT INTO spgist_wide SELECT t FROM (SELECT (SELECT string_agg(md5(i || '+' || j), '')
    FROM generate_series(1, 40) j) t FROM generate_series(1, 800) i) rows WHERE t !~ '^..[0-3]';
INSERT INTO spgist_wide SELECT t FROM (SELECT (SELECT string_agg(md5(i || '*' || j), '')
    FROM generate_series(1, 40) j) t FROM generate_series(1, 800) i) rows WHERE t ~ '^..[0-3]';

-- SPLIT_TUPLE to another page: long prefixes fill the inner pages, and then only half of each
-- is what texts have in common.
CREATE TABLE spgist_prefixes (t text) WITH (autovacuum_enabled = off);
CREATE INDEX spgist_prefixes_t ON spgist_prefixes USING spgist (t);
INSERT INTO spgist_prefixes SELECT (SELECT string_agg(md5(i || '/' || k), '') FROM generate_series(1, 20) k)
    || chr(64 + j) || (SELECT string_agg(md5(i || '/' || j || '/' || k), '') FROM generate_series(1, 10) k)
    FROM generate_series(1, 100) i, generate_series(1, 10) j;
INSERT INTO spgist_prefixes SELECT left((SELECT string_agg(md5(i || '/' || k), '') FROM generate_series(1, 20) k), n)
    || '!' || i FROM generate_series(1, 100) i, unnest(ARRAY[450, 300, 150, 75]) n;

-- ADD_NODE, in place and to another page (newpage); SPLIT_TUPLE (same): texts with common prefixes that end
-- in more and more ways.
CREATE TABLE spgist_texts (t text) WITH (autovacuum_enabled = off);
CREATE INDEX spgist_texts_t ON spgist_texts USING spgist (t);
INSERT INTO spgist_texts SELECT repeat('a', i % 50) || chr(33 + i % 90) || md5((i % 97)::text) || i
    FROM generate_series(1, 20000) i;
INSERT INTO spgist_texts SELECT repeat('baaaaaaaaaaaaaar', 60) || md5(i::text) FROM generate_series(1, 2000) i;
INSERT INTO spgist_texts SELECT left(repeat('baaaaaaaaaaaaaar', 60), 1000 - i * 7) || chr(1000 + i) || i
    FROM generate_series(1, 140) i;
INSERT INTO spgist_texts SELECT 'f' || repeat('o', 200) || chr(200 + i) || repeat('g', 300) || i
    FROM generate_series(1, 700) i;
INSERT INTO spgist_texts SELECT repeat(chr(33 + i % 90), i % 30) || chr(256 + i) || 'x' FROM generate_series(1, 5000) i;
DELETE FROM spgist_texts WHERE t LIKE 'aaa%' AND ctid::text LIKE '%2)';
VACUUM spgist_texts;
SELECT pg_current_xact_id();
VACUUM spgist_texts;

-- Page images: for replay, and for verification only.
CHECKPOINT;
INSERT INTO spgist_points SELECT point(i, i) FROM generate_series(1, 100) i;
SET wal_consistency_checking = 'spgist';
INSERT INTO spgist_points SELECT point(i, i) FROM generate_series(1, 100) i;
RESET wal_consistency_checking;
