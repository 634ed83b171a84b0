-- Every opcode of BRIN. For psql, on an empty database of any major, with autovacuum off.

-- CREATE_INDEX, REVMAP_EXTEND, INSERT+INIT, INSERT: ranges are summarised.
CREATE TABLE brin_rows (k int, t text) WITH (autovacuum_enabled = off, fillfactor = 10);
CREATE INDEX brin_rows_k ON brin_rows USING brin (k) WITH (pages_per_range = 1);
INSERT INTO brin_rows SELECT i, repeat('x', 700) FROM generate_series(1, 500) i;
SELECT brin_summarize_new_values('brin_rows_k');
VACUUM brin_rows;
-- SAMEPAGE_UPDATE: a range's values change, and so its tuple, which stays where it is.
INSERT INTO brin_rows SELECT -i, 'small' FROM generate_series(1, 200) i;
VACUUM brin_rows;
INSERT INTO brin_rows SELECT -i - 1000, 'small' FROM generate_series(1, 200) i;
-- DESUMMARIZE.
SELECT brin_desummarize_range('brin_rows_k', 3);
SELECT brin_desummarize_range('brin_rows_k', 8);
SELECT brin_summarize_range('brin_rows_k', 3);
-- REVMAP_EXTEND: 1360 ranges need a second map page. Regular pages have to leave its place: INSERT, UPDATE.
INSERT INTO brin_rows SELECT i, repeat('x', 700) FROM generate_series(1, 1500) i;
SELECT brin_summarize_new_values('brin_rows_k');

-- UPDATE, UPDATE+INIT: a range's tuple gets too large for its page.
CREATE TABLE brin_texts (t text) WITH (autovacuum_enabled = off, fillfactor = 10);
CREATE INDEX brin_texts_t ON brin_texts USING brin (t) WITH (pages_per_range = 1);
INSERT INTO brin_texts SELECT 'k' || i || repeat('x', 700) FROM generate_series(1, 30) i;
SELECT brin_summarize_new_values('brin_texts_t');
ALTER TABLE brin_texts SET (fillfactor = 100);
UPDATE brin_texts SET t = 'b' || t WHERE (ctid::text::point)[0] < 10;
INSERT INTO brin_texts SELECT chr(97 + i % 26) || repeat('y', 200 + i) FROM generate_series(1, 500) i;
VACUUM brin_texts;
INSERT INTO brin_texts SELECT chr(97 + i % 26) || repeat('z', 300 + i) FROM generate_series(1, 500) i;
CREATE TABLE brin_growing (t text) WITH (autovacuum_enabled = off, fillfactor = 10);
INSERT INTO brin_growing SELECT repeat('m', 10) || repeat('-', 700) FROM generate_series(1, 200) i;
CREATE INDEX brin_growing_t ON brin_growing USING brin (left(t, 600)) WITH (pages_per_range = 1);
ALTER TABLE brin_growing SET (fillfactor = 100);
VACUUM brin_growing;
INSERT INTO brin_growing SELECT 'z' || repeat('n', 400) || i FROM generate_series(1, 1000) i;

-- Page images: for replay, and for verification only.
CHECKPOINT;
INSERT INTO brin_rows SELECT -i - 5000, 'small' FROM generate_series(1, 20) i;
SET wal_consistency_checking = 'brin';
INSERT INTO brin_rows SELECT -i - 9000, 'small' FROM generate_series(1, 20) i;
SELECT brin_summarize_new_values('brin_rows_k');
RESET wal_consistency_checking;
