//! The built-in types that have a text here: one row each.

use super::{ValueError, datetime, float, jsonb, network, numeric, simple, text};

/// A built-in type and the rule for its text.
#[derive(Debug)]
pub struct Builtin {
    /// The type's OID, the same in every database (`src/include/catalog/pg_type.dat`).
    pub oid: u32,
    /// `typname`.
    pub name: &'static str,
    /// `typlen`.
    pub length: i16,
    /// No text of it has quotes, backslashes or control characters.
    pub is_plain: bool,
    /// Appends the text. Of a type of fixed size it is given exactly `length` bytes.
    append: fn(&[u8], &mut Vec<u8>) -> Result<(), ValueError>,
}

impl Builtin {
    /// The row of a type, if it has one.
    #[must_use]
    pub fn from_oid(oid: u32) -> Option<&'static Self> {
        let index = BUILTINS.binary_search_by_key(&oid, |builtin| builtin.oid).ok()?;
        BUILTINS.get(index)
    }

    /// All rows, by OID.
    #[must_use]
    pub const fn all() -> &'static [Self] {
        BUILTINS
    }

    #[inline]
    pub(super) fn append(&self, datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
        if let Ok(expected) = usize::try_from(self.length)
            && expected != datum.len()
        {
            return Err(ValueError::Length { name: self.name, expected, found: datum.len() });
        }
        (self.append)(datum, out)
    }
}

const fn row(
    oid: u32,
    name: &'static str,
    length: i16,
    append: fn(&[u8], &mut Vec<u8>) -> Result<(), ValueError>,
) -> Builtin {
    Builtin { oid, name, length, is_plain: true, append }
}

/// One whose text may be anything.
const fn free(
    oid: u32,
    name: &'static str,
    length: i16,
    append: fn(&[u8], &mut Vec<u8>) -> Result<(), ValueError>,
) -> Builtin {
    Builtin { is_plain: false, ..row(oid, name, length, append) }
}

/// Sorted by OID.
const BUILTINS: &[Builtin] = &[
    row(16, "bool", 1, simple::boolean),
    free(17, "bytea", -1, simple::bytea),
    free(18, "char", 1, text::char),
    free(19, "name", 64, text::name),
    row(20, "int8", 8, simple::int8),
    row(21, "int2", 2, simple::int2),
    row(22, "int2vector", -1, simple::int2vector),
    row(23, "int4", 4, simple::int4),
    free(25, "text", -1, text::text),
    row(26, "oid", 4, simple::uint4),
    row(27, "tid", 6, simple::tid),
    row(28, "xid", 4, simple::uint4),
    row(29, "cid", 4, simple::uint4),
    row(30, "oidvector", -1, simple::oidvector),
    free(114, "json", -1, text::text),
    free(194, "pg_node_tree", -1, text::text),
    row(650, "cidr", -1, network::cidr),
    row(700, "float4", 4, float::float4),
    row(701, "float8", 8, float::float8),
    row(774, "macaddr8", 8, network::macaddr),
    row(829, "macaddr", 6, network::macaddr),
    row(869, "inet", -1, network::inet),
    free(1042, "bpchar", -1, text::text),
    free(1043, "varchar", -1, text::text),
    row(1082, "date", 4, datetime::date),
    row(1083, "time", 8, datetime::time),
    row(1114, "timestamp", 8, datetime::timestamp),
    row(1184, "timestamptz", 8, datetime::timestamptz),
    row(1186, "interval", 16, datetime::interval),
    row(1266, "timetz", 12, datetime::timetz),
    row(1560, "bit", -1, simple::bit),
    row(1562, "varbit", -1, simple::bit),
    row(1700, "numeric", -1, numeric::numeric),
    free(1790, "refcursor", -1, text::text),
    free(2275, "cstring", -2, text::text),
    row(2950, "uuid", 16, simple::uuid),
    row(3220, "pg_lsn", 8, simple::pg_lsn),
    free(3802, "jsonb", -1, jsonb::jsonb),
    row(5069, "xid8", 8, simple::uint8),
];
