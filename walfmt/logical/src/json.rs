//! Events as JSON, one object a line.
//!
//! Values are strings, as PostgreSQL prints them: a number of JSON could not hold each `numeric` or
//! `bigint`. Null is null. A value that has no text here is `{"raw":"\\x...","type":"schema.name"}`, and
//! a long one that the transaction did not touch and whose bytes are not known is `{"unchanged":true}`.

use std::io::Write;

use walfmt::Lsn;

use crate::event::{Body, Event, Row, Told};
use crate::relation::Relation;
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
            write_row("new", row, out)?;
        }
        Body::Update { old, new } => {
            of_relation("update", new.relation, event, out);
            write_row("old", old, out)?;
            write_row("new", new, out)?;
        }
        Body::Delete(row) => {
            of_relation("delete", row.relation, event, out);
            write_row("old", row, out)?;
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
                    ",\"last_value\":\"{last_value}\",\"log_count\":\"{log_count}\",\
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
    out.extend_from_slice(b",\"xid\":");
    out.extend_from_slice(itoa::Buffer::new().format(event.xid.0).as_bytes());
    out.extend_from_slice(b",\"commit_lsn\":\"");
    lsn(event.position.commit, out);
    if event.commit_time != 0 {
        out.extend_from_slice(b"\",\"commit_time\":\"");
        let bytes = event.commit_time.to_le_bytes();
        // Cannot fail: any eight bytes are a time.
        let _ = crate::value::print(&TIMESTAMPTZ_TYPE, &bytes, out);
    }
    out.extend_from_slice(b"\",\"ordinal\":");
    out.extend_from_slice(itoa::Buffer::new().format(event.position.ordinal).as_bytes());
    out.extend_from_slice(b",\"lsn\":\"");
    lsn(event.lsn, out);
    out.push(b'"');
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
    out.extend_from_slice(b",\"schema\":");
    string(relation.schema.as_bytes(), out);
    out.extend_from_slice(b",\"table\":");
    string(relation.name.as_bytes(), out);
}

fn write_row(key: &str, row: &Row<'_>, out: &mut Vec<u8>) -> Result<(), ValueError> {
    out.extend_from_slice(b",\"");
    out.extend_from_slice(key.as_bytes());
    out.extend_from_slice(b"\":{");
    let mut is_first = true;
    for (index, column) in row.columns() {
        if !std::mem::take(&mut is_first) {
            out.push(b',');
        }
        string(column.name.as_bytes(), out);
        out.extend_from_slice(b":\"");
        let begun = out.len();
        match row.print(index, out)? {
            Told::Text => {
                escape_from(begun, out);
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
    }
    out.push(b'}');
    Ok(())
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

/// Whether the byte cannot stand in a string of JSON as it is.
#[inline]
const fn needs_escape(byte: u8) -> bool {
    byte < 0x20 || byte == b'"' || byte == b'\\'
}

/// Escapes what `out` has from `begun` on. Mostly there is nothing to do.
#[inline]
fn escape_from(begun: usize, out: &mut Vec<u8>) {
    let first = out[begun..].iter().position(|byte| needs_escape(*byte));
    if let Some(first) = first {
        escape(begun + first, out);
    }
}

#[cold]
fn escape(from: usize, out: &mut Vec<u8>) {
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

fn hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    out.reserve(2 * bytes.len());
    for byte in bytes {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

fn lsn(lsn: Lsn, out: &mut Vec<u8>) {
    write_to(out, format_args!("{lsn}"));
}

/// A vector takes all that is written to it.
fn write_to(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}
