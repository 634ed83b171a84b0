//! What `test_decoding` prints, parsed.
//!
//! ```text
//! BEGIN 741
//! table public.t: INSERT: id[integer]:1 "Name"[character varying[]]:'{a,b}' note[text]:null
//! table public.t: UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:2 note[text]:unchanged-toast-datum
//! table public.t: DELETE: (no-tuple-data)
//! table public.t, public.u: TRUNCATE: restart_seqs cascade
//! message: transactional: 1 prefix: p, sz: 4 content:text
//! COMMIT 741 (at 2026-11-21 18:00:00.123456+00)
//! ```
//!
//! Each comes as a row of `pg_logical_slot_peek_binary_changes`, so it is known where one ends: the
//! content of a message may hold anything.

use anyhow::{Context, Result, bail, ensure};

use super::{Change, Column, Decoded, Kind, Message, Relation, Row, Transaction, Value};

/// Parses the rows of one call.
///
/// # Errors
/// One is not as above, with its text; or the last transaction is not complete.
pub fn parse<'a>(rows: impl IntoIterator<Item = &'a [u8]>) -> Result<Decoded> {
    let mut decoded = Decoded::default();
    let mut open: Option<Transaction> = None;
    for row in rows {
        let step = parse_row(row, &mut open, &mut decoded);
        step.with_context(|| format!("test_decoding printed {:?}", String::from_utf8_lossy(row)))?;
    }
    ensure!(open.is_none(), "the last transaction has no COMMIT");
    Ok(decoded)
}

fn parse_row(row: &[u8], open: &mut Option<Transaction>, decoded: &mut Decoded) -> Result<()> {
    if row.starts_with(b"message: ") {
        let message = parse_message(row)?;
        if message.transactional {
            let transaction = open.as_mut().context("a message outside of its transaction")?;
            transaction.changes.push(Change::of_message(message));
        } else {
            let changes = vec![Change::of_message(message)];
            decoded.push(Transaction { changes, ..Transaction::default() });
        }
        return Ok(());
    }
    let text = std::str::from_utf8(row).context("not UTF-8")?;
    if let Some(xid) = text.strip_prefix("BEGIN ") {
        ensure!(open.is_none(), "BEGIN within a transaction");
        *open = Some(Transaction { xid: Some(xid.parse()?), ..Transaction::default() });
    } else if let Some(rest) = text.strip_prefix("COMMIT ") {
        let mut transaction = open.take().context("COMMIT without BEGIN")?;
        let (xid, time) = rest.split_once(" (at ").context("no time")?;
        ensure!(transaction.xid == Some(xid.parse()?), "COMMIT of another transaction");
        transaction.commit_time = Some(time.strip_suffix(')').context("no `)`")?.to_owned());
        decoded.push(transaction);
    } else if let Some(rest) = text.strip_prefix("table ") {
        let transaction = open.as_mut().context("a change outside of a transaction")?;
        transaction.changes.extend(parse_change(rest)?);
    } else {
        bail!("unknown");
    }
    Ok(())
}

/// `sz` counts the bytes behind `content:`, which tells it from a prefix that looks alike.
fn parse_message(row: &[u8]) -> Result<Message> {
    let rest = row.strip_prefix(b"message: transactional: ").context("transactional")?;
    let transactional = match rest.first() {
        Some(b'0') => false,
        Some(b'1') => true,
        _ => bail!("neither 0 nor 1"),
    };
    let rest = rest[1..].strip_prefix(b" prefix: ").context("prefix")?;
    for at in 0..rest.len() {
        let Some(size) = rest[at..].strip_prefix(b", sz: ") else { continue };
        let digits = size.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let Some(content) = size[digits..].strip_prefix(b" content:") else { continue };
        let length: usize = std::str::from_utf8(&size[..digits])?.parse()?;
        if content.len() == length {
            let prefix = std::str::from_utf8(&rest[..at]).context("prefix")?.to_owned();
            return Ok(Message { transactional, prefix, content: content.to_vec() });
        }
    }
    bail!("no size that fits the content")
}

fn parse_change(text: &str) -> Result<Vec<Change>> {
    let mut cursor = Cursor(text);
    let mut relations = vec![cursor.relation()?];
    while cursor.take(", ") {
        relations.push(cursor.relation()?);
    }
    cursor.expect(": ")?;
    let first = relations[0].clone();
    if cursor.take("TRUNCATE:") {
        let flags = match cursor.0 {
            " (no-flags)" => false,
            " restart_seqs" | " cascade" | " restart_seqs cascade" => true,
            _ => bail!("unknown flags"),
        };
        let changes = relations.into_iter().map(|relation| Change {
            truncate_flags: flags,
            ..Change::of_table(Kind::Truncate, relation)
        });
        return Ok(changes.collect());
    }
    ensure!(relations.len() == 1, "a row of several tables");
    let change = if cursor.take("INSERT:") {
        let new = cursor.row()?;
        Change { new, ..Change::of_table(Kind::Insert, first) }
    } else if cursor.take("UPDATE:") {
        let old = if cursor.take(" old-key:") {
            let old = cursor.row()?;
            cursor.expect(" new-tuple:")?;
            old
        } else {
            None
        };
        let new = cursor.row()?;
        Change { old, new, ..Change::of_table(Kind::Update, first) }
    } else {
        cursor.expect("DELETE:")?;
        let old = cursor.row()?;
        Change { old, ..Change::of_table(Kind::Delete, first) }
    };
    ensure!(cursor.0.is_empty(), "{:?} is left over", cursor.0);
    Ok(vec![change])
}

/// What is not yet read of a line.
struct Cursor<'a>(&'a str);

impl<'a> Cursor<'a> {
    fn take(&mut self, what: &str) -> bool {
        let rest = self.0.strip_prefix(what);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, what: &str) -> Result<()> {
        ensure!(self.take(what), "no {what:?} at {:?}", self.0);
        Ok(())
    }

    fn cut(&mut self, length: usize) -> &'a str {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    fn relation(&mut self) -> Result<Relation> {
        let schema = self.identifier()?;
        self.expect(".")?;
        Ok(Relation { schema, table: self.identifier()? })
    }

    /// As `quote_identifier` writes it: bare if it needs no quotes, which no blank and no sign does.
    fn identifier(&mut self) -> Result<String> {
        if self.0.starts_with('"') {
            return self.quoted('"');
        }
        let is_bare = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
        let end = self.0.find(|c| !is_bare(c)).unwrap_or(self.0.len());
        ensure!(end > 0, "no identifier at {:?}", self.0);
        Ok(self.cut(end).to_owned())
    }

    /// Text in quotes, in which the quote is doubled.
    fn quoted(&mut self, quote: char) -> Result<String> {
        let doubled = [quote, quote].iter().collect::<String>();
        let quote = &doubled[..1];
        self.expect(quote)?;
        let mut text = String::new();
        loop {
            let end = self.0.find(quote).context("a quote is not closed")?;
            text.push_str(self.cut(end));
            if self.take(&doubled) {
                text.push_str(quote);
            } else {
                self.expect(quote)?;
                return Ok(text);
            }
        }
    }

    /// Nothing if there is no row at all.
    fn row(&mut self) -> Result<Option<Row>> {
        if self.take(" (no-tuple-data)") {
            return Ok(None);
        }
        let mut columns = Vec::new();
        // A column called `new-tuple:` would be quoted.
        while !self.0.is_empty() && !self.0.starts_with(" new-tuple:") {
            self.expect(" ")?;
            let name = self.identifier()?;
            self.expect("[")?;
            let type_name = self.type_name()?;
            self.expect(":")?;
            let value = self.value(&type_name).with_context(|| format!("column {name:?}"))?;
            columns.push(Column { name, type_name: Some(type_name), value });
        }
        Ok(Some(Row(columns)))
    }

    /// Up to the `]` that closes it: `[]` and what is in quotes belongs to the type.
    fn type_name(&mut self) -> Result<String> {
        let mut in_quotes = false;
        let mut previous = ' ';
        let mut length = None;
        for (at, c) in self.0.char_indices() {
            if c == '"' {
                in_quotes = !in_quotes;
            } else if c == ']' && !in_quotes && previous != '[' {
                length = Some(at);
                break;
            }
            previous = if in_quotes { ' ' } else { c };
        }
        let name = self.cut(length.context("a type is not closed")?).to_owned();
        self.expect("]")?;
        Ok(name)
    }

    fn value(&mut self, type_name: &str) -> Result<Value> {
        if self.0.starts_with('\'') {
            return self.quoted('\'').map(Value::Text);
        }
        if self.take("B'") {
            let end = self.0.find('\'').context("a bit string is not closed")?;
            let bits = self.cut(end).to_owned();
            self.expect("'")?;
            return Ok(Value::Text(bits));
        }
        let end = self.0.find(' ').unwrap_or(self.0.len());
        Ok(match (self.cut(end), type_name) {
            ("null", _) => Value::Null,
            ("unchanged-toast-datum", _) => Value::Unchanged,
            // The one type whose value it does not print as the type's output function does.
            ("true", "boolean") => Value::Text("t".to_owned()),
            ("false", "boolean") => Value::Text("f".to_owned()),
            ("", _) => bail!("no value"),
            (bare, _) => Value::Text(bare.to_owned()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, type_name: &str, value: Value) -> Column {
        Column { name: name.to_owned(), type_name: Some(type_name.to_owned()), value }
    }

    fn text(value: &str) -> Value {
        Value::Text(value.to_owned())
    }

    #[test]
    fn rows_of_all_shapes() {
        let line = "\"Sch\"\"é\".\"a, b\": UPDATE: old-key: id[integer]:1 new-tuple: id[integer]:-2 \
                    \"a]:b\"[character varying[]]:'{it''s,\"x y\"}' bits[bit varying]:B'0101' \
                    yes[boolean]:true e[\"Odd ] type\"[]]:null \
                    w[text]:unchanged-toast-datum n[numeric]:NaN t[text]:' new-tuple: ''null'''";
        let changes = parse_change(line).expect("an update");
        let [change] = changes.as_slice() else { panic!("{changes:?}") };
        assert_eq!(change.relation.as_ref().expect("a table").schema, "Sch\"é");
        assert_eq!(change.relation.as_ref().expect("a table").table, "a, b");
        assert_eq!(change.old, Some(Row(vec![column("id", "integer", text("1"))])));
        let expected = vec![
            column("id", "integer", text("-2")),
            column("a]:b", "character varying[]", text("{it's,\"x y\"}")),
            column("bits", "bit varying", text("0101")),
            column("yes", "boolean", text("t")),
            column("e", "\"Odd ] type\"[]", Value::Null),
            column("w", "text", Value::Unchanged),
            column("n", "numeric", text("NaN")),
            column("t", "text", text(" new-tuple: 'null'")),
        ];
        assert_eq!(change.new, Some(Row(expected)));
    }

    #[test]
    fn truncations_are_one_for_each_table() {
        let changes = parse_change("public.a, public.\"B\": TRUNCATE: restart_seqs cascade");
        let changes = changes.expect("a truncation");
        assert_eq!(changes.len(), 2);
        assert!(changes.iter().all(|change| change.truncate_flags));
        assert!(parse_change("public.a: TRUNCATE: sideways").is_err());
    }

    #[test]
    fn messages_hold_anything() {
        let row = b"message: transactional: 0 prefix: p, sz: 1 content:x, sz: 3 content:\n\xff'";
        let message = parse_message(row).expect("a message");
        assert!(!message.transactional);
        assert_eq!(message.prefix, "p, sz: 1 content:x");
        assert_eq!(message.content, b"\n\xff'");
    }

    #[test]
    fn transactions_are_whole() {
        let rows: [&[u8]; 6] = [
            b"BEGIN 7",
            b"COMMIT 7 (at 2026-11-21 18:00:00+00)",
            b"BEGIN 8",
            b"message: transactional: 1 prefix: p, sz: 0 content:",
            b"table public.t: DELETE: (no-tuple-data)",
            b"COMMIT 8 (at 2026-11-21 18:00:01+00)",
        ];
        let decoded = parse(rows).expect("transactions");
        assert_eq!((decoded.empty_transactions, decoded.transactions.len()), (1, 1));
        assert_eq!(decoded.transactions[0].xid, Some(8));
        assert_eq!(decoded.len(), 2);
        assert!(parse(rows[..5].to_vec()).is_err());
        assert!(parse(rows[4..].to_vec()).is_err());
    }
}
