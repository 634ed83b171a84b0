//! Types, and values of them as SQL.

use rand::RngExt;
use rand::rngs::StdRng;

/// A type and where its values come from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Type {
    /// As `format_type` prints it.
    pub(super) name: &'static str,
    /// An expression.
    pub(super) value: fn(&mut StdRng) -> String,
}

/// Types that a decoder must print, as `format_type` prints them; the script has values of each.
pub const COMMON_TYPES: [&str; 33] = [
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "real",
    "double precision",
    "boolean",
    "text",
    "character varying",
    "character",
    "bytea",
    "date",
    "time without time zone",
    "time with time zone",
    "timestamp without time zone",
    "timestamp with time zone",
    "interval",
    "uuid",
    "json",
    "jsonb",
    "integer[]",
    "bigint[]",
    "numeric[]",
    "text[]",
    "character varying[]",
    "boolean[]",
    "timestamp with time zone[]",
    "uuid[]",
    "jsonb[]",
    "mood",
    "mood[]",
    "posint",
    "short_text",
];

/// Types that a decoder may leave as bytes.
pub const RARE_TYPES: [&str; 18] = [
    "\"char\"",
    "name",
    "oid",
    "bit",
    "bit varying",
    "money",
    "inet",
    "cidr",
    "macaddr",
    "point",
    "box",
    "int4range",
    "tstzrange",
    "int4multirange",
    "tsvector",
    "xml",
    "pg_lsn",
    "pair",
];

/// The generator of a type's values.
///
/// # Panics
/// There is none.
pub(super) fn type_named(name: &'static str) -> Type {
    let value: fn(&mut StdRng) -> String = match name {
        "smallint" => |r| one(r, &["'-32768'", "'32767'", "0", "'-1'", "1234"]),
        "integer" => |r| {
            let n: i32 = r.random();
            format!("'{}'", n >> r.random_range(0..31))
        },
        "bigint" => |r| {
            let n: i64 = r.random();
            format!("'{}'", n >> r.random_range(0..63))
        },
        "numeric" => |r| numeric(r),
        "real" => |r| match r.random_range(0..3) {
            0 => {
                one(r, &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "'1e-40'", "'3.4028235e38'"])
            }
            1 => format!("'{}'", f32::from_bits(r.random_range(0x0080_0000..0x7f00_0000))),
            _ => format!("'{}'", r.random_range(-1_000_000..1_000_000) as f32 / 100.0),
        },
        "double precision" => |r| match r.random_range(0..3) {
            0 => one(
                r,
                &["'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "'5e-324'", "'1e15'", "'1e16'"],
            ),
            1 => format!("'{:e}'", f64::from_bits(r.random_range(1 << 52..0x7fe << 52))),
            _ => format!("'{}'", f64::from(r.random_range(-1_000_000..1_000_000)) / 1000.0),
        },
        "boolean" => |r| one(r, &["true", "false"]),
        "text" => |r| text(r),
        "character varying" | "short_text" => |r| {
            one(
                r,
                &[
                    "''",
                    "'short'",
                    "'ends in blanks  '",
                    "'käse'",
                    "'quote '''",
                    "'back\\slash'",
                    "'日本'",
                ],
            )
        },
        "character" => |r| one(r, &["'a'", "'padded'", "'ü'", "''", "'12345678'"]),
        "bytea" => |r| {
            one(
                r,
                &[
                    "''",
                    "'\\x00'",
                    "'\\xdeadbeef'",
                    "'\\x00ff00ff27'",
                    "decode(repeat('ab', 200), 'hex')",
                ],
            )
        },
        "date" => |r| {
            one(
                r,
                &[
                    "'2000-01-01'",
                    "'infinity'",
                    "'-infinity'",
                    "'0044-03-15 BC'",
                    "'5874897-12-31'",
                    "'1999-12-31'",
                    "'2024-02-29'",
                ],
            )
        },
        "time without time zone" => {
            |r| one(r, &["'00:00'", "'24:00'", "'23:59:59.999999'", "'12:34:56.7'"])
        }
        "time with time zone" => |r| {
            one(r, &["'00:00+00'", "'24:00-12'", "'23:59:59.999999+05:30'", "'12:34:56-03:30:15'"])
        },
        "timestamp without time zone" => |r| {
            one(
                r,
                &[
                    "'2000-01-01 00:00'",
                    "'infinity'",
                    "'-infinity'",
                    "'0001-01-01 00:00:00 BC'",
                    "'294276-12-31 23:59:59.999999'",
                    "'2026-07-04 12:00:00.5'",
                ],
            )
        },
        "timestamp with time zone" => |r| timestamptz(r),
        "interval" => |r| {
            one(
                r,
                &[
                    "'0'",
                    "'1 year 2 mons 3 days'",
                    "'-1 year +2 days -03:04:05.6'",
                    "'1 mon -1 days'",
                    "'-00:00:00.000001'",
                    "'178000000 years'",
                    "'100:00:00'",
                ],
            )
        },
        "uuid" => |r| {
            let n: u128 = r.random();
            let hex = format!("{n:032x}");
            format!("'{hex}'")
        },
        "json" => |r| {
            one(
                r,
                &[
                    "'{ \"b\" : 1,  \"a\":[1, 2.50] , \"b\":2}'",
                    "'null'",
                    "'\"\\u00fc\"'",
                    "'[]'",
                    "' 1 '",
                ],
            )
        },
        "jsonb" => |r| {
            one(
                r,
                &[
                    "'{ \"b\" : 1,  \"a\":[1, 2.50] , \"b\":2}'",
                    "'null'",
                    "'\"\\u00fc \\n\\t \\\" \\\\\"'",
                    "'[]'",
                    "'{}'",
                    "'1e3'",
                    "'[true, {\"x\": {\"y\": [null]}}]'",
                    "'\"\\u0001\"'",
                ],
            )
        },
        "integer[]" | "bigint[]" => |r| {
            one(
                r,
                &[
                    "'{}'",
                    "'{1,-2,NULL}'",
                    "'{{1,2},{3,4}}'",
                    "'[2:3]={5,6}'",
                    "'[-1:0][1:1]={{1},{2}}'",
                    "'{32000}'",
                ],
            )
        },
        "numeric[]" => |r| {
            one(r, &["'{}'", "'{1.50,NaN,NULL}'", "'{0.000001,123456789012345678901234567890}'"])
        },
        "text[]" | "character varying[]" => |r| {
            one(
                r,
                &[
                    "'{}'",
                    "'{a,NULL,\"NULL\",null}'",
                    "array['', ' ', 'a\"b', 'c\\d', '{', ',', 'ü', '''']",
                    "array[['x', 'y'], ['z', null]]",
                    "array[E'a\\nb', E'\\t']",
                ],
            )
        },
        "boolean[]" => |r| one(r, &["'{t,f,NULL}'", "'{}'"]),
        "timestamp with time zone[]" => |r| format!("array[{}::timestamptz, null]", timestamptz(r)),
        "uuid[]" => |_| "'{00000000-0000-0000-0000-000000000001}'".to_owned(),
        "jsonb[]" => |r| one(r, &["array['{\"a\": 1}'::jsonb, '\"x\"', null]", "'{}'"]),
        "mood" => |r| one(r, &["'sad'", "'so so'", "'it''s \"fine\"'", "'glücklich'"]),
        "mood[]" => |r| {
            one(
                r,
                &[
                    "'{sad,\"so so\"}'",
                    "array['it''s \"fine\"', 'glücklich', null]::mood[]",
                    "'{}'",
                ],
            )
        },
        "posint" => |r| format!("{}", r.random_range(1..1_000_000)),
        "\"char\"" => |r| one(r, &["'a'", "''", "'\\'"]),
        "name" => |r| one(r, &["'a name'", "''", "'Ü'"]),
        "oid" => |r| one(r, &["0", "4294967295", "42"]),
        "bit" => |r| one(r, &["b'10110'", "b'00000'"]),
        "bit varying" => |r| one(r, &["b''", "b'1'", "b'101010101'"]),
        "money" => |r| one(r, &["'0'", "'-1234567.89'", "'12.30'"]),
        "inet" => |r| {
            one(r, &["'10.1.2.3'", "'10.1.2.3/8'", "'::1'", "'2001:db8::/32'", "'::ffff:1.2.3.4'"])
        },
        "cidr" => |r| one(r, &["'10.0.0.0/8'", "'2001:db8::/32'", "'10.1.2.3'"]),
        "macaddr" => |_| "'08:00:2b:01:02:03'".to_owned(),
        "point" => |r| one(r, &["'(1.5,-2)'", "'(1e30,NaN)'"]),
        "box" => |_| "'((0,0),(1.5,2))'".to_owned(),
        "int4range" => |r| one(r, &["'[1,5)'", "'empty'", "'(,7]'", "'(,)'"]),
        "tstzrange" => |_| "'[2000-01-01 00:00+00, infinity)'".to_owned(),
        "int4multirange" => |r| one(r, &["'{}'", "'{[1,2),[5,8)}'"]),
        "tsvector" => |r| one(r, &["'a:1A fat:2B,4C ''qu ote'':3'", "''", "'x y'"]),
        "xml" => |_| "'<a b=\"c\">d</a>'".to_owned(),
        "pg_lsn" => |r| one(r, &["'0/0'", "'16/B374D848'", "'FFFFFFFF/FFFFFFFF'"]),
        "pair" => {
            |r| one(r, &["row(1, 'a \"b\"')::pair", "row(null, '')::pair", "row(-5, '(,)')::pair"])
        }
        "region" => {
            return Type {
                name: "text",
                value: |r| one(r, &["'north'", "'south'", "'east'", "'west'"]),
            };
        }
        "label" => {
            return Type {
                name: "text",
                value: |r| format!("'label {}'", r.random_range(0..1000)),
            };
        }
        "compressible" => return Type { name: "text", value: compressible },
        "incompressible" => return Type { name: "text", value: incompressible },
        "wide jsonb" => {
            return Type {
                name: "jsonb",
                value: |r| format!("jsonb_build_object('k', {})", incompressible(r)),
            };
        }
        "wide bytea" => {
            return Type {
                name: "bytea",
                value: |r| format!("convert_to({}, 'UTF8')", incompressible(r)),
            };
        }
        _ => panic!("no values of type {name}"),
    };
    Type { name, value }
}

fn one(random: &mut StdRng, choices: &[&str]) -> String {
    choices[random.random_range(0..choices.len())].to_owned()
}

fn numeric(random: &mut StdRng) -> String {
    match random.random_range(0..4) {
        0 => one(
            random,
            &[
                "'NaN'",
                "'Infinity'",
                "'-Infinity'",
                "'0'",
                "'0.000'",
                "'1e100'",
                "'-1e-30'",
                "'10000'",
                "'0.00010000'",
            ],
        ),
        1 => {
            let digits: u128 = random.random();
            let scale = random.random_range(0..30);
            format!("'-{}e-{scale}'", digits >> random.random_range(0..120))
        }
        _ => format!("'{}.{:02}'", random.random_range(-99999..99999), random.random_range(0..100)),
    }
}

fn text(random: &mut StdRng) -> String {
    match random.random_range(0..4) {
        0 => one(
            random,
            &[
                "''",
                "'it''s'",
                "E'two\\nlines'",
                "E'tab\\tand \\\\ and \"quotes\"'",
                "'日本語 ü 😀'",
                "'null'",
                "' unchanged-toast-datum'",
                "'a:b[c]:''d'''",
                "E'\\x01\\x7f'",
            ],
        ),
        // Just around where a short header of one byte ends.
        1 => format!("repeat('x', {})", random.random_range(120..135)),
        _ => format!("'words {} and {}'", random.random::<u16>(), random.random::<u16>()),
    }
}

fn timestamptz(random: &mut StdRng) -> String {
    one(
        random,
        &[
            "'2000-01-01 00:00+00'",
            "'infinity'",
            "'-infinity'",
            "'0044-03-15 12:00:00 BC'",
            "'2026-11-21 18:00:00.123456+01'",
            "'294276-12-31 23:59:59.999999+00'",
            "'1900-01-01 00:00:00.1-05'",
        ],
    )
}

/// Some of it stays in its row after it was compressed, some does not.
fn compressible(random: &mut StdRng) -> String {
    let words = random.random::<u16>();
    format!("repeat('some words {words} ', {})", random.random_range(150..3000))
}

/// Of one chunk of TOAST or of several; a short one stays in its row.
fn incompressible(random: &mut StdRng) -> String {
    let from: u32 = random.random_range(0..1 << 30);
    let to = from + [40, 80, 130, 260][random.random_range(0..4)];
    format!("(select string_agg(md5(g::text), '' order by g) from generate_series({from}, {to}) g)")
}
