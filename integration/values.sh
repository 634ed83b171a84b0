#!/usr/bin/env bash
# Writes walfmt/logical/tests/values.tsv anew: values as they lie on a real server's pages, beside the
# texts the same server prints for them. walfmt-logical's tests compare its own texts with those.
#
#   PATH=/usr/lib/postgresql/15/bin:$PATH integration/values.sh
#
# Needs a PostgreSQL with contrib's pageinspect. As root the server runs as the user postgres. The values
# are picked by hand or follow from a seed, so two runs differ only where the server does.
#
# Lines, with tabs between the fields, escaped as COPY does:
#   type   oid, typtype, oid of the element's or base type, typlen, typalign, typdelim, schema, name
#   label  oid of the enum, oid of the label, label
#   toast  chunk_id, all chunks in hexadecimal
#   value  oid of the type, the attribute in hexadecimal with its header, text
set -euo pipefail
cd "$(dirname "$0")/.."
output=$PWD/walfmt/logical/tests/values.tsv

scratch=$(mktemp -d)
as_server=()
if [ "$(id -u)" -eq 0 ]; then
    as_server=(runuser -u postgres --)
    chown postgres "$scratch"
fi
server() { (cd "$scratch" && "${as_server[@]}" env PATH="$PATH" "$@"); }
cleanup() {
    server pg_ctl --pgdata "$scratch/data" --mode immediate stop >/dev/null 2>&1 || true
    rm -rf "$scratch"
}
trap cleanup EXIT

# The socket is in the scratch folder and there is no other, so no port can be taken.
server initdb --pgdata "$scratch/data" --username postgres --encoding UTF8 --locale C.UTF-8 --no-sync >/dev/null
server pg_ctl --pgdata "$scratch/data" --wait --log "$scratch/log" --options \
    "-c listen_addresses='' -c unix_socket_directories='$scratch' -c fsync=off -c autovacuum=off -c timezone=UTC" \
    start >/dev/null

server psql --no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1 \
    --host "$scratch" --username postgres postgres >"$scratch/values.tsv" <<'SQL'
SET client_min_messages = warning;
SET datestyle = 'ISO, MDY';
SET intervalstyle = postgres;
SET extra_float_digits = 1;
SET bytea_output = hex;
SET client_encoding = 'UTF8';
CREATE EXTENSION pageinspect;
CREATE SCHEMA made;
CREATE TYPE made.mood AS ENUM ('sad', 'ok', 'happy', 'NULL', 'two words', 'a,b', '{}', E'qu"ote\\', 'größer', '42');
CREATE DOMAIN made.positive AS int4 CHECK (VALUE > 0);
CREATE DOMAIN made.code AS varchar(40);
CREATE DOMAIN made.row_of_ints AS int4[];
CREATE TABLE tables (id serial PRIMARY KEY, relation text, type text);

-- A table of one type: what was picked, then what an expression of i gives.
CREATE PROCEDURE fill(type text, picked text[], expression text, rows int DEFAULT 31) LANGUAGE plpgsql AS $$
DECLARE
    relation text := 'v' || nextval('tables_id_seq');
    pick text;
BEGIN
    INSERT INTO tables (relation, type) VALUES (relation, type);
    EXECUTE format('CREATE TABLE %I (id serial, v %s)', relation, type);
    FOREACH pick IN ARRAY picked LOOP
        EXECUTE format('INSERT INTO %I (v) VALUES (%L)', relation, pick);
    END LOOP;
    EXECUTE format('INSERT INTO %I (v) SELECT (%s)::%s FROM generate_series(1, %s) AS i', relation, expression, type, rows);
END $$;

-- Arrays of the short ones among a table's values: plain, with nulls, with two and three dimensions, with bounds.
CREATE PROCEDURE fill_arrays(source text, type text, rows int DEFAULT 28) LANGUAGE plpgsql AS $$
DECLARE
    relation text := 'v' || nextval('tables_id_seq');
    items text := format('(SELECT array_agg(v) FROM (SELECT v FROM %I WHERE pg_column_size(v) < 70 ORDER BY random() LIMIT $1) AS chosen)', source);
    shape text;
BEGIN
    INSERT INTO tables (relation, type) VALUES (relation, type || '[]');
    EXECUTE format('CREATE TABLE %I (id serial, v %s[])', relation, type);
    FOR i IN 1..rows LOOP
        shape := CASE i % 8
            WHEN 0 THEN format('array_cat(ARRAY[NULL]::%s[], %s)', type, items)
            WHEN 1 THEN format('(''[-2:'' || $1 - 3 || '']='' || %s::text)::%s[]', items, type)
            WHEN 2 THEN format('ARRAY[%s, %s]', items, items)
            WHEN 3 THEN format('array_append(array_append(%s, NULL), %s[1])', items, items)
            WHEN 4 THEN format('(''[0:0][3:4][7:'' || $1 + 6 || '']={{'' || %s::text || '','' || %s::text || ''}}'')::%s[]', items, items, type)
            WHEN 5 THEN format('array_fill(%s[1], ARRAY[2, 1])', items)
            ELSE items END;
        EXECUTE format('INSERT INTO %I (v) SELECT %s', relation, shape) USING 1 + i % 3;
    END LOOP;
    EXECUTE format('INSERT INTO %I (v) VALUES (''{}''), (''{NULL}'')', relation);
END $$;

-- Text of i characters, of one to four bytes each.
CREATE FUNCTION letters(i int) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(string_agg(chr((ARRAY[33, 97, 48, 65, 34, 92, 44, 9, 228, 8364, 128512])[1 + (random() * 10)::int] + (random() * 6)::int), ''), '')
    FROM generate_series(1, i)
$$;
-- i bytes.
CREATE FUNCTION noise(i int) RETURNS bytea LANGUAGE sql VOLATILE AS $$
    SELECT coalesce(string_agg(decode(lpad(to_hex((random() * 255)::int), 2, '0'), 'hex'), ''), '') FROM generate_series(1, i)
$$;
-- A document of depth i or less.
CREATE FUNCTION document(i int) RETURNS jsonb LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN CASE WHEN i > 0 AND random() < 0.35 THEN
            (SELECT jsonb_object_agg(letters(1 + n), document(i - 1)) FROM generate_series(1, 1 + (random() * 3)::int) AS n)
        WHEN i > 0 AND random() < 0.6 THEN
            (SELECT jsonb_agg(document(i - 1)) FROM generate_series(1, 1 + (random() * 4)::int) AS n)
        WHEN random() < 0.3 THEN to_jsonb(letters((random() * 9)::int))
        WHEN random() < 0.6 THEN to_jsonb(round(((random() - 0.5) * 10 ^ (random() * 12))::numeric, (random() * 7)::int))
        WHEN random() < 0.3 THEN 'null'
        ELSE to_jsonb(random() < 0.5) END;
END $$;
SELECT setseed(0.15) \g /dev/null

CALL fill('bool', '{t,f}', 'i % 3 = 0');
CALL fill('"char"', '{a,"\\",","," ",""}', '(i * 7 - 129)');
CALL fill('name', '{a,"NULL","",größer,"two words"}', 'left(md5(i::text) || md5((-i)::text), 1 + i * 2 % 63)');
CALL fill('text', ARRAY['', 'NULL', 'null', 'nUlL', 'NULLs', 'a"b', 'a\b', '{', '}', ',', ';', ' ', E'\t', E'\n', E'\r', E'\v', E'\f', E'\b', E'\x01', 'ünï', '😀', 'plain', '\N', '\.', repeat('a', 125), repeat('b', 126), repeat('c', 127), repeat('d', 128)], 'letters(i)');
CALL fill('varchar(30)', ARRAY['', ' ', 'x '], 'letters(i % 30)');
CALL fill('bpchar', ARRAY['', ' ', 'x  '], 'letters(i % 9)');
CALL fill('char(12)', ARRAY['', ' ', 'x  ', 'ü'], 'letters(i % 12)');
CALL fill('refcursor', ARRAY['', 'c1'], 'letters(i % 12)');
CALL fill('int2', '{0,1,-1,9,10,99,100,32767,-32768}', '(random() * 65535)::int - 32768');
CALL fill('int4', '{0,1,-1,99999,100000,2147483647,-2147483648}', '(random() - 0.5) * 10 ^ (i % 10)');
CALL fill('int8', '{0,1,-1,4294967296,9223372036854775807,-9223372036854775808}', '(random() - 0.5) * 10 ^ (i % 19)');
CALL fill('oid', '{0,1,4294967295}', '(random() * 4294967295)::int8');
CALL fill('xid', '{0,1,4294967295}', '(random() * 2147483647)::int8::text');
CALL fill('cid', '{0,1,4294967295}', '(random() * 2147483647)::int8::text');
CALL fill('xid8', '{0,1,18446744073709551615}', '(random() * 9e18)::int8::text');
CALL fill('tid', '{"(0,0)","(4294967295,65535)","(65536,1)"}', 'format(''(%s,%s)'', (random() * 4e9)::int8, i)');
CALL fill('pg_lsn', '{0/0,FFFFFFFF/FFFFFFFF,1/0,0/1,A/BCDEF}', '''0/0''::pg_lsn + (random() * 16 ^ (i % 15))::int8');
CALL fill('float4', '{0,-0,NaN,Infinity,-Infinity,1e5,1e6,999999,1234567,9999999,16777216,16777217,33554432,8589934592,8589934000,0.1,0.0001,0.00001,0.00012345678,1e-45,1.1754944e-38,3.4028235e38,1.5,-2.5,123456.7}', '(random() - 0.5) * 10 ^ (random() * 70 - 35)', 60);
CALL fill('float4', '{}', '2.0 ^ (i * 3 - 140)', 80);
CALL fill('float4', '{}', '(1 + (random() * 200)::int) * 10 ^ (i % 12)', 60);
CALL fill('float8', '{0,-0,NaN,Infinity,-Infinity,1e14,1e15,1e16,123456789012345,999999999999999,1234567890123456,9007199254740991,9007199254740992,9007199254740993,0.1,0.3,0.0001,0.00001,1e-5,0.00012345,5e-324,2.2250738585072014e-308,2.225073858507201e-308,1.7976931348623157e308,1e22,1e23,1e24,1.5,-2.5,4503599627370496.5,100,100000,9007199254740992e7,5e-6}', '(random() - 0.5) * 10 ^ (random() * 600 - 300)', 80);
CALL fill('float8', '{}', '2::float8 ^ (i * 29 - 1074)', 70);
CALL fill('float8', '{}', '((1 + (random() * 10 ^ (i % 5))::int) || ''e'' || 15 + i % 10)', 100);
CALL fill('numeric', ARRAY['0', '0.0', '0.000', '-0.00', '1', '-1', '10', '9999', '10000', '10001', '99999999', '100000000', '0.1', '0.0001', '0.00001', '-0.5', '1.10', '123.4500', 'NaN', 'Infinity', '-Infinity', '1e100', '-1e255', '1e256', '1e260', '1.5e-62', '1e-63', '1e-64', '1e-70', '12345678901234567890.123456789', '1e-120', '1000000000000000.0001'], 'round(((random() - 0.5) * 10 ^ (i % 20))::numeric, i % 12) * 10 ^ (i % 3)::numeric', 50);
CALL fill('numeric(12,4)', ARRAY['0', '1'], '(random() - 0.5) * 10 ^ (i % 8)');
CALL fill('bytea', ARRAY['', '\x00', '\xff', '\x5c22'], 'noise(i)', 30);
CALL fill('date', ARRAY['infinity', '-infinity', '4714-11-24 BC', '5874897-12-31', '0001-01-01', '0001-12-31 BC', '0001-01-01 BC', '0001-02-29 BC', '0005-02-29 BC', '2000-01-01', '1999-12-31', '2000-02-29', '2000-03-01', '1900-02-28', '1900-03-01', '1600-02-29', '2400-02-29', '9999-12-31', '10000-01-01', '1970-01-01', '2100-02-28', '2100-03-01'], 'date ''4714-11-24 BC'' + (random() * (ARRAY[3e6, 3e7, 2e9])[1 + i % 3])::int', 50);
CALL fill('time', ARRAY['00:00:00', '24:00:00', '23:59:59.999999', '12:00:00.1', '12:00:00.000001', '12:00:00.10001', '01:02:03'], 'time ''00:00'' + random() * interval ''24 hours''');
CALL fill('timetz', ARRAY['00:00:00+00', '24:00:00+15:59:59', '23:59:59.999999-15:59:59', '12:00-08', '12:00+05:30', '12:00+00:00:01', '12:00-00:30', '01:02:03.5+10:00:59'], '((time ''00:00'' + random() * interval ''24 hours'')::text || (ARRAY[''+'',''-''])[1 + i % 2] || i % 16 || '':'' || lpad((i * 7 % 60)::text, 2, ''0''))');
CALL fill('timestamp', ARRAY['infinity', '-infinity', '4714-11-24 00:00:00 BC', '294276-12-31 23:59:59.999999', '2000-01-01', '1999-12-31 23:59:59.999999', '0001-01-01 00:00:00', '0001-12-31 23:59:59.5 BC', '1970-01-01', '2024-02-29 12:34:56.789', '9999-12-31 23:59:59', '10000-01-01', '0099-01-01', '0044-03-15 12:00 BC'], 'timestamp ''2000-01-01'' + (random() - 0.3) * (ARRAY[interval ''1 day'', interval ''100 years'', interval ''9000 years''])[1 + i % 3]', 50);
CALL fill('timestamp(0)', ARRAY['2000-01-01 00:00:00.5'], 'timestamp ''2000-01-01'' + random() * interval ''100 years''');
CALL fill('timestamptz', ARRAY['infinity', '-infinity', '4714-11-24 00:00:00+00 BC', '294276-12-31 23:59:59.999999+00', '2000-01-01 00:00+00', '2000-01-01 00:00-08', '2024-03-31 01:30 Europe/Berlin', '0001-12-31 23:59:59.5+00 BC', '1970-01-01 00:00+05:30', '10000-01-01 00:00+00', '1883-11-18 12:00 America/New_York'], 'timestamptz ''2000-01-01'' + (random() - 0.3) * (ARRAY[interval ''1 day'', interval ''100 years'', interval ''9000 years''])[1 + i % 3]', 50);
CALL fill('interval', ARRAY['0', '1 year', '-1 year', '1 mon', '-1 mon', '1 day', '-1 day', '1 second', '-1 second', '0.000001 second', '-0.000001 second', '1 year -1 mon', '-1 year 13 mon', '1 mon -1 day', '-1 mon 1 day', '-1 day 1 hour', '1 day -1 hour', '-1 mon -1 day -01:02:03.5', '-1 mon 00:00:01', '-1 year 2 days -00:00:00.5', '100 hours', '-100:00:00', '2562047788:00:54.775807', '-2562047788:00:54.775807', '178956970 years 7 mons', '-178956970 years -8 mons', '2147483647 days', '-2147483648 days', '2 years 2 mons 2 days 02:02:02.02'], 'make_interval(((random() - 0.5) * i)::int, ((random() - 0.5) * 30)::int, 0, ((random() - 0.5) * 60)::int, ((random() - 0.5) * 60)::int, 0, (random() - 0.5) * 10 ^ (i % 6))', 60);
CALL fill('uuid', ARRAY['00000000-0000-0000-0000-000000000000', 'ffffffff-ffff-ffff-ffff-ffffffffffff'], 'md5(i::text)');
CALL fill('json', ARRAY['null', '{}', '[]', '{"a" :  1}', '[1 , "x"]', '"\u00e4"', '{"b":1,"a":2,"a":3}'], 'document(2)', 30);
CALL fill('jsonb', ARRAY['null', 'true', 'false', '0', '-0.0', '1.50', '1e30', '1e-10', '""', '"x"', '"\"\\\/\b\f\n\r\t\u0001\u001f\u007f\u00e4\ud83d\ude00"', '{}', '[]', '[[]]', '[{}]', '{"a": {}}', '{"a": [], "b": {"c": [1, [2, [3, {"d": null}]]]}}', '{"b":1,"a":2,"aa":3,"":4}', '[null, true, false, 1, "s", [1.5], {"k": "v"}]', '["a", 1, "ab", 2, "abc", 3.25, "abcd", {"x": [1]}]', '[12345678901234567890.123456789, -1]', '{"quote\"key": "back\\slash"}'], 'document(3)', 30);
CALL fill('jsonb', '{}', '(SELECT jsonb_agg(CASE n % 4 WHEN 0 THEN to_jsonb(n) WHEN 1 THEN to_jsonb(n::text) WHEN 2 THEN ''[1]'' ELSE ''null'' END) FROM generate_series(1, i * 20) AS n)', 2);
CALL fill('jsonb', '{}', '(SELECT jsonb_object_agg(n, n / 2.0) FROM generate_series(1, i * 20) AS n)', 2);
CALL fill('inet', ARRAY['0.0.0.0', '255.255.255.255', '10.1.2.3/8', '10.0.0.0/0', '::', '::1', '::2', '::/0', '::ffff:1.2.3.4', '::1.2.3.4', '::ffff:0:0', '::0.1.0.0', 'fe80::1/64', '1::', '1:0:0:2::', '1:0:0:2:0:0:0:3', '0:1::', '1:2:3:4:5:6:7:8', '1:2:3:0:5:6:7:8', '2001:db8::ff00:42:8329/127', '0:0:1::/48'], '(ARRAY[''10.'' || i || ''.'' || i * 3 || ''.1/'' || i % 33, ''2001:db8:'' || to_hex(i * 999) || ''::'' || to_hex(i) || ''/'' || i * 3])[1 + i % 2]');
CALL fill('cidr', ARRAY['0.0.0.0/0', '255.255.255.255', '10.0.0.0/8', '::/0', '::1', '::ffff:1.2.3.4/128', 'fe80::/64', '192.168.100.128/25'], '(ARRAY[''10.'' || i || ''.0.0/16'', ''2001:db8:'' || to_hex(i * 999) || ''::/48''])[1 + i % 2]');
CALL fill('macaddr', ARRAY['00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff'], 'left(md5(i::text), 12)');
CALL fill('macaddr8', ARRAY['00:00:00:00:00:00:00:00', 'ff:ff:ff:ff:ff:ff:ff:ff'], 'left(md5(i::text), 16)');
CALL fill('bit(11)', ARRAY['00000000000', '11111111111'], '(i * 1021)::bit(11)');
CALL fill('bit varying', ARRAY['', '0', '1', '10101010', '101010101'], 'right((i::int8 * 123456789012)::bit(64)::text, i)');
CALL fill('int2vector', ARRAY['', '0', '-32768 32767'], '(SELECT string_agg((n * i - 100)::text, '' '') FROM generate_series(1, i % 7) AS n)');
CALL fill('oidvector', ARRAY['', '0', '4294967295 1'], '(SELECT string_agg((n * i)::text, '' '') FROM generate_series(1, i % 7) AS n)');
CALL fill('made.mood', ARRAY['sad', 'ok', 'happy', 'NULL', 'two words', 'a,b', '{}', E'qu"ote\\', 'größer', '42'], '(enum_range(NULL::made.mood))[1 + i % 10]');
CALL fill('made.positive', '{1,2147483647}', 'i * i');
CALL fill('made.code', '{"",x,"NULL"}', 'letters(i % 20)');
CALL fill('made.row_of_ints', '{"{}","{1}","{{1,2},{3,4}}","[5:6]={7,NULL}"}', '(SELECT array_agg(n * i) FROM generate_series(1, i % 6) AS n)');
CALL fill('made.row_of_ints[]', ARRAY['{}', '{"{1,2}","{}",NULL}', '[0:1]={"{{1,2},{3,NULL}}","[3:3]={4}"}'], '(SELECT format(''{"{%s,%s}","{%s}"}'', i, i * i, -i))', 30);
ALTER TYPE made.mood ADD VALUE 'later' BEFORE 'sad';
CALL fill('made.mood', '{later}', '''later''', 2);

-- In PL/pgSQL there is no CALL of a table's rows in one go; each type once, by its first table.
DO $$
DECLARE source record;
BEGIN
    FOR source IN SELECT min(id) AS id, (array_agg(relation ORDER BY id))[1] AS relation, type FROM tables
        WHERE type !~ '[\[(]|vector|row_of_ints' GROUP BY type ORDER BY 1
    LOOP
        CALL fill_arrays(source.relation, source.type);
    END LOOP;
END $$;

-- Long values: compressed in the row, compressed outside, plain outside, by both methods. Half a page in
-- random words compresses, but not to nothing.
CREATE FUNCTION words(i int) RETURNS text LANGUAGE sql VOLATILE AS $$
    SELECT left(string_agg((ARRAY['write', 'ahead', 'log', 'page', 'row', '42', 'Größe', 'tuple', 'xid'])[1 + (random() * 8)::int], ' '), i)
    FROM generate_series(1, i)
$$;
SET default_toast_compression = pglz;
CALL fill('text', ARRAY[repeat('abc', 700)], 'words(2100 + i * 37)', 1);
CALL fill('text', ARRAY[]::text[], 'words(4600)', 1);
CALL fill('bytea', ARRAY[]::text[], 'convert_to(words(2200), ''UTF8'')', 1);
CALL fill('jsonb', ARRAY[]::text[], '(SELECT jsonb_agg(n % 7) FROM generate_series(1, 300 + i) AS n)', 1);
CALL fill('int4[]', ARRAY[]::text[], '(SELECT array_agg(n % 3) FROM generate_series(1, 700 + i) AS n)', 1);
CALL fill('varchar', ARRAY[]::text[], 'encode(noise(1650), ''base64'')', 1);
SET default_toast_compression = lz4;
CALL fill('text', ARRAY[repeat('abc', 700)], 'words(2100 + i * 37)', 1);
CALL fill('text', ARRAY[]::text[], 'words(4600)', 1);
CALL fill('bytea', ARRAY[]::text[], 'convert_to(words(2200), ''UTF8'')', 1);
CALL fill('jsonb', ARRAY[]::text[], '(SELECT jsonb_agg(n % 7) FROM generate_series(1, 300 + i) AS n)', 1);
CALL fill('int4[]', ARRAY[]::text[], '(SELECT array_agg(n % 3) FROM generate_series(1, 700 + i) AS n)', 1);
CALL fill('varchar', ARRAY[]::text[], 'encode(noise(1650), ''base64'')', 1);
CHECKPOINT;

CREATE FUNCTION rows_of(relation text) RETURNS TABLE (at tid, attributes bytea[]) LANGUAGE sql AS $$
    SELECT format('(%s,%s)', block, lp)::tid, t_attrs
    FROM generate_series(0, pg_relation_size(relation::regclass) / 8192 - 1) AS block,
        heap_page_item_attrs(get_raw_page(relation, block::int), relation::regclass)
$$;

COPY (
    WITH RECURSIVE used AS (
        SELECT a.atttypid AS oid FROM tables JOIN pg_attribute AS a ON a.attrelid = relation::regclass AND a.attname = 'v'
        UNION
        SELECT unnest(ARRAY[t.typbasetype, CASE WHEN t.typlen = -1 THEN t.typelem ELSE 0 END]) FROM used JOIN pg_type AS t USING (oid)
    )
    SELECT 'type', t.oid, t.typtype, CASE WHEN t.typtype = 'd' THEN t.typbasetype WHEN t.typsubscript = 'array_subscript_handler'::regproc AND t.typlen = -1 THEN t.typelem ELSE 0 END,
        t.typlen, t.typalign, t.typdelim, n.nspname, t.typname
    FROM used JOIN pg_type AS t USING (oid) JOIN pg_namespace AS n ON n.oid = t.typnamespace ORDER BY t.oid
) TO STDOUT;
COPY (SELECT 'label', enumtypid, oid, enumlabel FROM pg_enum ORDER BY oid) TO STDOUT;
SELECT format('COPY (SELECT ''toast'', chunk_id, encode(string_agg(chunk_data, '''' ORDER BY chunk_seq), ''hex'') FROM %s GROUP BY chunk_id ORDER BY chunk_id) TO STDOUT', reltoastrelid::regclass)
FROM tables JOIN pg_class AS c ON c.oid = relation::regclass WHERE reltoastrelid <> 0 ORDER BY id \gexec
SELECT format('COPY (SELECT ''value'', %L::regtype::oid, encode(attributes[2], ''hex''), v FROM rows_of(%L) JOIN %I AS t ON t.ctid = at WHERE v IS NOT NULL ORDER BY t.id) TO STDOUT', type, relation, relation)
FROM tables ORDER BY id \gexec
SQL

mkdir -p "${output%/*}"
cp "$scratch/values.tsv" "$output"
printf '%s lines, %s bytes\n' "$(wc -l <"$output")" "$(wc -c <"$output")"
