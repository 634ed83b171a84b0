//! Events as JSON, one object a line.
//!
//! Values are strings, as PostgreSQL prints them: a number of JSON could not hold each `numeric` or
//! `bigint`. Null is null. A value that has no text here is `{"raw":"\\x...","type":"schema.name"}`, and
//! a long one that the transaction did not touch and whose bytes are not known is `{"unchanged":true}`.

use std::io::Write;
use std::ops::Range;

use walfmt::{Lsn, TransactionId};

use crate::event::{Body, Event, Row, Told};
use crate::relation::{Column, Relation};
use crate::value::{Kind, Type, ValueError};

/// Appends an event and a newline.
///
/// # Errors
/// [`ValueError`] if a value cannot be read; `out` then ends in part of a line.
pub fn write(event: &Event<'_>, out: &mut Vec<u8>) -> Result<(), ValueError> {
    match &event.body {
        Body::Begin { database } => head("begin", database, event, out),
        Body::Commit { database } => head("commit", database, event, out),
        Body::Schema(relation) => {
            of_relation("schema", relation, event, out);
            out.extend_from_slice(b",\"columns\":[");
            for (at, column) in relation.told_columns().enumerate() {
                out.extend_from_slice(if at == 0 { b"{\"name\":" } else { b",{\"name\":" });
                string(column.name.as_bytes(), out);
                out.extend_from_slice(b",\"type\":");
                string(type_name(&column.ty).as_bytes(), out);
                out.push(b'}');
            }
            out.push(b']');
        }
        Body::Insert(row) => {
            of_relation("insert", row.relation, event, out);
            write_row("new", row, &mut Written::default(), out)?;
        }
        Body::Update { old, new } => {
            of_relation("update", new.relation, event, out);
            let mut written = Written::default();
            write_row("old", old, &mut written, out)?;
            written.row = Some(old);
            write_row("new", new, &mut written, out)?;
        }
        Body::Delete(row) => {
            of_relation("delete", row.relation, event, out);
            write_row("old", row, &mut Written::default(), out)?;
        }
        Body::Truncate(relation) => of_relation("truncate", relation, event, out),
        Body::Message { database, transactional, prefix, content } => {
            head("message", database, event, out);
            write_to(out, format_args!(",\"transactional\":{transactional},\"prefix\":"));
            string(String::from_utf8_lossy(prefix).as_bytes(), out);
            if std::str::from_utf8(content).is_ok() {
                out.extend_from_slice(b",\"content\":");
                string(content, out);
            } else {
                out.extend_from_slice(b",\"content_hex\":\"");
                hex(content, out);
                out.push(b'"');
            }
        }
        Body::Sequence { relation, last_value, log_count, is_called } => {
            of_relation("sequence", relation, event, out);
            write_to(
                out,
                format_args!(
                    ",\"last_value\":\"{last_value}\",\"log_cnt\":\"{log_count}\",\
                     \"is_called\":{is_called}"
                ),
            );
        }
    }
    out.extend_from_slice(b"}\n");
    Ok(())
}

fn head(kind: &str, database: &str, event: &Event<'_>, out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"kind\":\"");
    out.extend_from_slice(kind.as_bytes());
    out.extend_from_slice(b"\",\"database\":");
    string(database.as_bytes(), out);
    out.extend_from_slice(event.json_common);
    out.extend_from_slice(itoa::Buffer::new().format(event.position.ordinal).as_bytes());
    out.extend_from_slice(b",\"lsn\":\"");
    lsn(event.lsn, out);
    out.push(b'"');
}

/// What all events of a transaction say alike, up to their ordinals. Printing the time for each of them
/// took as long as half of its values.
pub(crate) fn common(xid: TransactionId, commit: Lsn, commit_time: i64, out: &mut Vec<u8>) {
    out.extend_from_slice(b",\"xid\":");
    out.extend_from_slice(itoa::Buffer::new().format(xid.0).as_bytes());
    out.extend_from_slice(b",\"commit_lsn\":\"");
    lsn(commit, out);
    if commit_time != 0 {
        out.extend_from_slice(b"\",\"commit_time\":\"");
        // Cannot fail: any eight bytes are a time.
        let _ = crate::value::print(&TIMESTAMPTZ_TYPE, &commit_time.to_le_bytes(), out);
    }
    out.extend_from_slice(b"\",\"ordinal\":");
}

static TIMESTAMPTZ_TYPE: std::sync::LazyLock<Type> = std::sync::LazyLock::new(|| Type {
    oid: 1184,
    schema: "pg_catalog".into(),
    name: "timestamptz".into(),
    length: 8,
    align: crate::value::Align::Double,
    delimiter: b',',
    kind: Kind::of_builtin(1184),
});

fn of_relation(kind: &str, relation: &Relation, event: &Event<'_>, out: &mut Vec<u8>) {
    head(kind, &relation.database, event, out);
    out.extend_from_slice(&relation.json_names);
}

/// The names of schema and table.
pub(crate) fn names(schema: &str, table: &str) -> Box<[u8]> {
    let mut out = b",\"schema\":".to_vec();
    string(schema.as_bytes(), &mut out);
    out.extend_from_slice(b",\"table\":");
    string(table.as_bytes(), &mut out);
    out.into()
}

/// Columns behind these are written anew in each version of a row.
const COLUMNS_KEPT_MAX: usize = 64;

/// The version of a row that was written before another one of it: most columns are the same in both.
struct Written<'a> {
    row: Option<&'a Row<'a>>,
    /// Where its columns are in the output, name and value.
    columns: [Range<usize>; COLUMNS_KEPT_MAX],
}

impl Default for Written<'_> {
    fn default() -> Self {
        Self { row: None, columns: [const { 0..0 }; COLUMNS_KEPT_MAX] }
    }
}

fn write_row<'a>(
    key: &str,
    row: &'a Row<'a>,
    written: &mut Written<'a>,
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":{");
    let mut is_first = true;
    for (index, column) in row.columns() {
        if !std::mem::take(&mut is_first) {
            out.push(b',');
        }
        let begun = out.len();
        match (written.row, written.columns.get_mut(index)) {
            (Some(other), Some(place)) if row.has_same(other, index) => {
                out.extend_from_within(place.clone());
            }
            (_, place) => {
                write_column(index, column, row, out)?;
                if let Some(place) = place {
                    *place = begun..out.len();
                }
            }
        }
    }
    out.push(b'}');
    Ok(())
}

fn write_column(
    index: usize,
    column: &Column,
    row: &Row<'_>,
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    out.extend_from_slice(&column.json_key);
    out.push(b'"');
    let begun = out.len();
    match row.print(index, out)? {
        Told::Text => {
            if !column.ty.is_plain() {
                escape_from(begun, out);
            }
            out.push(b'"');
        }
        Told::Null => {
            out.truncate(begun - 1);
            out.extend_from_slice(b"null");
        }
        Told::Unchanged => {
            out.truncate(begun - 1);
            out.extend_from_slice(b"{\"unchanged\":true}");
        }
        Told::Raw => {
            let bytes = out.split_off(begun);
            out.truncate(begun - 1);
            out.extend_from_slice(b"{\"raw\":\"\\\\x");
            hex(&bytes, out);
            out.extend_from_slice(b"\",\"type\":");
            string(type_name(&column.ty).as_bytes(), out);
            out.push(b'}');
        }
    }
    Ok(())
}

/// A name with the colon behind it.
pub(crate) fn key(name: &str) -> Box<[u8]> {
    let mut out = Vec::with_capacity(name.len() + 3);
    string(name.as_bytes(), &mut out);
    out.push(b':');
    out.into()
}

fn type_name(ty: &Type) -> String {
    format!("{}.{}", ty.schema, ty.name)
}

fn string(text: &[u8], out: &mut Vec<u8>) {
    out.push(b'"');
    let begun = out.len();
    out.extend_from_slice(text);
    escape_from(begun, out);
    out.push(b'"');
}

/// Whether any of eight bytes cannot stand in a string of JSON as it is. A borrow into the next byte only
/// follows one that is to be found itself.
#[inline]
const fn any_needs_escape(eight: u64) -> bool {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let quote = eight ^ (EACH * b'"' as u64);
    let backslash = eight ^ (EACH * b'\\' as u64);
    let control = eight.wrapping_sub(EACH * 0x20) & !eight;
    let quote = quote.wrapping_sub(EACH) & !quote;
    let backslash = backslash.wrapping_sub(EACH) & !backslash;
    (control | quote | backslash) & (EACH * 0x80) != 0
}

/// Escapes what `out` has from `begun` on. Mostly there is nothing to do.
#[inline]
fn escape_from(begun: usize, out: &mut Vec<u8>) {
    let text = &out[begun..];
    let (chunks, rest) = text.as_chunks::<8>();
    let last = match text.last_chunk::<8>() {
        Some(last) => *last,
        None => {
            let mut last = [b' '; 8];
            last.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            last
        }
    };
    let any = |chunk: &[u8; 8]| any_needs_escape(u64::from_le_bytes(*chunk));
    if any(&last) || chunks.iter().any(any) {
        escape(begun, out);
    }
}

/// In place, from the end on, until no byte is left that has to move: quotes are in every `jsonb`.
fn escape(from: usize, out: &mut Vec<u8>) {
    let text = &mut out[from..];
    if text.iter().fold(false, |any, byte| any | (*byte < 0x20)) {
        return escape_controls(from, out);
    }
    let is_special = |byte: u8| (byte == b'"') | (byte == b'\\');
    let length = text.len();
    let more = text.iter().map(|byte| usize::from(is_special(*byte))).sum::<usize>();
    out.resize(from + length + more, 0);
    let text = &mut out[from..];
    let (mut read, mut written) = (length, length + more);
    while read < written {
        read -= 1;
        let byte = text[read];
        text[written - 1] = byte;
        // If it is not one, the next byte comes there.
        text[written - 2] = b'\\';
        written -= 1 + usize::from(is_special(byte));
    }
}

#[cold]
fn escape_controls(from: usize, out: &mut Vec<u8>) {
    let text = out.split_off(from);
    for byte in text {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            byte if byte < 0x20 => write_to(out, format_args!("\\u{byte:04x}")),
            byte => out.push(byte),
        }
    }
}

const HEX_LOWER: &[u8; 16] = b"0123456789abcdef";

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    out.reserve(2 * bytes.len());
    for byte in bytes {
        out.push(HEX_LOWER[usize::from(byte >> 4)]);
        out.push(HEX_LOWER[usize::from(byte & 15)]);
    }
}

/// As [`Lsn`] is displayed: it stands twice in each line.
fn lsn(lsn: Lsn, out: &mut Vec<u8>) {
    hex_number((lsn.0 >> 32) as u32, out);
    out.push(b'/');
    hex_number(lsn.0 as u32, out);
}

/// In upper case, without leading zeros.
fn hex_number(number: u32, out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digits: [u8; 8] = std::array::from_fn(|at| DIGITS[(number >> (28 - 4 * at) & 15) as usize]);
    let zeros = (number | 1).leading_zeros() as usize / 4;
    out.extend_from_slice(&digits[zeros..]);
}

/// A vector takes all that is written to it.
fn write_to(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn positions_are_printed_as_they_are_displayed() {
        for number in [0, 1, 0xF, 0x10, 0xABCD_EF01, 0x1_0000_0000, 0x1A_2B3C_0000, u64::MAX] {
            let mut out = Vec::new();
            lsn(Lsn(number), &mut out);
            assert_eq!(String::from_utf8(out).expect("text"), Lsn(number).to_string());
        }
    }

    #[test]
    fn each_byte_is_escaped_in_its_way() {
        let mut out = b"\"before\"".to_vec();
        string(b"a \"quoted\" \\ word\n\r\t\x01\x1f\x7f and \xc3\xa4", &mut out);
        let expected = r#""before""a \"quoted\" \\ word\n\r\t\u0001\u001f"#;
        assert_eq!(out, [expected.as_bytes(), b"\x7f and \xc3\xa4\""].concat());
    }

    proptest! {
        #[test]
        fn any_text_is_one_string_of_json(text in any::<String>()) {
            let mut out = Vec::new();
            string(text.as_bytes(), &mut out);
            let mut expected = String::from("\"");
            for letter in text.chars() {
                match letter {
                    '"' => expected.push_str("\\\""),
                    '\\' => expected.push_str("\\\\"),
                    '\n' => expected.push_str("\\n"),
                    '\r' => expected.push_str("\\r"),
                    '\t' => expected.push_str("\\t"),
                    letter if letter < ' ' => {
                        expected.push_str(&format!("\\u{:04x}", letter as u32));
                    }
                    letter => expected.push(letter),
                }
            }
            expected.push('"');
            prop_assert_eq!(String::from_utf8(out).expect("text"), expected);
        }
    }
}
