//! What `walferry decode` prints, parsed: an object of JSON on each line.
//!
//! ```text
//! {"kind":"begin","database":"postgres","xid":741,"commit_lsn":"0/1A2B3C8","commit_time":"...","ordinal":0,"lsn":"0/1A2B000"}
//! {"kind":"update", ...,"schema":"public","table":"t","old":{"id":"1","note":null},"new":{"id":"2","note":{"unchanged":true}}}
//! {"kind":"truncate", ...,"schema":"public","table":"t"}
//! {"kind":"message", ...,"transactional":true,"prefix":"p","content":"text"}
//! {"kind":"schema", ...,"schema":"public","table":"t","columns":[{"name":"id","type":"integer"}]}
//! {"kind":"commit", ...}
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value as Json, json};

use super::{Change, Column, Decoded, Kind, Message, Relation, Row, Transaction, Value};

/// Parses the lines.
///
/// # Errors
/// One is not as above, with its text; or the last transaction is not complete.
pub fn parse(text: &str) -> Result<Decoded> {
    let mut reader = Reader::default();
    for (number, line) in (1..).zip(text.lines()) {
        reader.read(line).with_context(|| format!("line {number}: {line}"))?;
    }
    ensure!(reader.open.is_none(), "the last transaction has no commit");
    Ok(reader.decoded)
}

#[derive(Default)]
struct Reader {
    decoded: Decoded,
    open: Option<Transaction>,
    /// The last ordinal of the open transaction: they grow, or a reader that was interrupted could
    /// not tell what it has.
    ordinal: u64,
    /// What the last line `schema` of a table has told.
    schemas: BTreeMap<Relation, Vec<String>>,
}

impl Reader {
    fn read(&mut self, line: &str) -> Result<()> {
        let json: Json = serde_json::from_str(line).context("not JSON")?;
        let object = json.as_object().context("not an object")?;
        let kind = string(object, "kind")?;
        if kind == "message" && object.get("transactional") == Some(&Json::Bool(false)) {
            ensure!(self.open.is_none(), "within a transaction");
            let changes = vec![Change::of_message(message(object)?)];
            self.decoded.push(Transaction { changes, ..Transaction::default() });
            return Ok(());
        }
        match kind {
            "begin" => return self.begin(object),
            "sequence" => {
                self.decoded.sequence_lines += 1;
                return Ok(());
            }
            "schema" => return self.schema(object),
            _ => {}
        }
        let open = self.open.as_mut().context("outside of a transaction")?;
        ensure!(object.get("xid").and_then(Json::as_u64) == open.xid.map(u64::from), "xid");
        ensure!(object.get("commit_time").and_then(Json::as_str) == open.commit_time.as_deref());
        let ordinal = object.get("ordinal").and_then(Json::as_u64).context("ordinal")?;
        ensure!(ordinal > self.ordinal, "ordinal {ordinal} follows {}", self.ordinal);
        self.ordinal = ordinal;
        if kind == "commit" {
            self.decoded.push(self.open.take().expect("just looked at"));
            return Ok(());
        }
        let change = change(kind, object)?;
        open.changes.push(change);
        let change = open.changes.last().expect("just pushed");
        self.decoded.schema_faults.extend(schema_fault(&self.schemas, change));
        Ok(())
    }

    fn begin(&mut self, object: &Map<String, Json>) -> Result<()> {
        ensure!(self.open.is_none(), "within a transaction");
        let xid = object.get("xid").and_then(Json::as_u64).context("xid")?;
        self.open = Some(Transaction {
            xid: Some(xid.try_into().context("xid")?),
            commit_time: Some(string(object, "commit_time")?.to_owned()),
            changes: Vec::new(),
        });
        self.ordinal = object.get("ordinal").and_then(Json::as_u64).context("ordinal")?;
        Ok(())
    }

    fn schema(&mut self, object: &Map<String, Json>) -> Result<()> {
        self.decoded.schema_lines += 1;
        let columns = object.get("columns").and_then(Json::as_array).context("columns")?;
        let names = columns.iter().map(|column| {
            ensure!(column["type"].is_string(), "a column without type");
            Ok(column["name"].as_str().context("a column without name")?.to_owned())
        });
        self.schemas.insert(relation(object)?, names.collect::<Result<_>>()?);
        Ok(())
    }
}

fn schema_fault(schemas: &BTreeMap<Relation, Vec<String>>, change: &Change) -> Option<String> {
    let relation = change.relation.as_ref()?;
    let row = change.new.as_ref().or(change.old.as_ref())?;
    match schemas.get(relation) {
        None => Some(format!("no line `schema` came before {change}")),
        Some(names) if !row.names().eq(names.iter().map(String::as_str)) => {
            Some(format!("the line `schema` has told {names:?}, then came {change}"))
        }
        Some(_) => None,
    }
}

fn change(kind: &str, object: &Map<String, Json>) -> Result<Change> {
    let row = |key: &str| {
        let row = object.get(key).with_context(|| format!("no row {key:?}"))?;
        row_of(row).with_context(|| format!("row {key:?}")).map(Some)
    };
    Ok(match kind {
        "message" => Change::of_message(message(object)?),
        "insert" => {
            Change { new: row("new")?, ..Change::of_table(Kind::Insert, relation(object)?) }
        }
        "update" => Change {
            old: row("old")?,
            new: row("new")?,
            ..Change::of_table(Kind::Update, relation(object)?)
        },
        "delete" => {
            Change { old: row("old")?, ..Change::of_table(Kind::Delete, relation(object)?) }
        }
        "truncate" => Change::of_table(Kind::Truncate, relation(object)?),
        _ => bail!("unknown kind {kind:?}"),
    })
}

fn string<'a>(object: &'a Map<String, Json>, key: &str) -> Result<&'a str> {
    object.get(key).and_then(Json::as_str).with_context(|| format!("no string {key:?}"))
}

fn relation(object: &Map<String, Json>) -> Result<Relation> {
    let schema = string(object, "schema")?.to_owned();
    Ok(Relation { schema, table: string(object, "table")?.to_owned() })
}

fn message(object: &Map<String, Json>) -> Result<Message> {
    let content = match object.get("content_hex") {
        None => string(object, "content")?.as_bytes().to_vec(),
        Some(hex) => bytes_of(hex.as_str().context("content_hex")?)?,
    };
    Ok(Message {
        transactional: object.get("transactional").and_then(Json::as_bool).context("bool")?,
        prefix: string(object, "prefix")?.to_owned(),
        content,
    })
}

/// Hexadecimal digits, with `\x` before them or without.
fn bytes_of(hex: &str) -> Result<Vec<u8>> {
    let digits = hex.strip_prefix("\\x").unwrap_or(hex);
    ensure!(digits.len().is_multiple_of(2) && digits.is_ascii(), "not hexadecimal");
    let pairs = (0..digits.len()).step_by(2).map(|at| &digits[at..at + 2]);
    pairs.map(|pair| u8::from_str_radix(pair, 16).context("not hexadecimal")).collect()
}

fn row_of(json: &Json) -> Result<Row> {
    let columns = json.as_object().context("not an object")?.iter().map(|(name, value)| {
        let value = value_of(value).with_context(|| format!("column {name:?}"))?;
        Ok(Column { name: name.clone(), type_name: None, value })
    });
    columns.collect::<Result<_>>().map(Row)
}

fn value_of(json: &Json) -> Result<Value> {
    Ok(match json {
        Json::Null => Value::Null,
        Json::String(text) => Value::Text(text.clone()),
        Json::Object(object) if object.get("unchanged") == Some(&Json::Bool(true)) => {
            Value::Unchanged
        }
        Json::Object(object) => {
            let hex = string(object, "raw")?;
            // A composite value names its type by typmod and OID, which are each server's own.
            let named = if object.get("type") == Some(&"public.pair".into()) { 16 } else { 0 };
            let bytes = hex.strip_prefix("\\x").context("raw bytes are not in hexadecimal")?;
            Value::Raw(bytes.get(named..).context("a composite value is too short")?.to_owned())
        }
        _ => bail!("neither string, null nor object"),
    })
}

/// Writes lines, as a decoder would that has seen just this, so that a comparison can be tried
/// without one. Old rows get the columns that they lack, with this value: NULL makes complete rows of
/// what `test_decoding` prints of tables with `REPLICA IDENTITY FULL`.
#[must_use]
pub fn write(decoded: &Decoded, missing: Value) -> String {
    let mut writer = Writer { missing, text: String::new(), schemas: BTreeMap::new() };
    for transaction in &decoded.transactions {
        writer.transaction(transaction);
    }
    writer.text
}

struct Writer {
    missing: Value,
    text: String,
    schemas: BTreeMap<Relation, Vec<String>>,
}

impl Writer {
    fn transaction(&mut self, transaction: &Transaction) {
        let mut ordinal = 0;
        let mut head = |kind: &str| {
            let head = json!({
                "kind": kind, "database": "postgres", "xid": transaction.xid,
                "commit_lsn": "0/0", "commit_time": transaction.commit_time,
                "ordinal": ordinal, "lsn": "0/0",
            });
            ordinal += 1;
            head
        };
        if transaction.xid.is_some() {
            self.line(&head("begin"));
        }
        for change in &transaction.changes {
            let old = self.completed(change);
            if let Some((relation, columns)) = self.new_schema(change, old.as_ref()) {
                let mut line = head("schema");
                line["schema"] = relation.schema.into();
                line["table"] = relation.table.into();
                line["columns"] = columns;
                self.line(&line);
            }
            let mut line = head(&change.kind.to_string());
            if let Some(relation) = &change.relation {
                line["schema"] = relation.schema.clone().into();
                line["table"] = relation.table.clone().into();
            }
            if let Some(old) = &old {
                line["old"] = json_of(old);
            }
            if let Some(new) = &change.new {
                line["new"] = json_of(&with_unchanged_of(old.as_ref(), new));
            }
            if let Some(message) = &change.message {
                line["transactional"] = message.transactional.into();
                line["prefix"] = message.prefix.clone().into();
                match std::str::from_utf8(&message.content) {
                    Ok(text) => line["content"] = text.into(),
                    Err(_) => line["content_hex"] = hex_of(&message.content).into(),
                }
            }
            self.line(&line);
        }
        if transaction.xid.is_some() {
            self.line(&head("commit"));
        }
    }

    fn line(&mut self, line: &Json) {
        self.text.push_str(&line.to_string());
        self.text.push('\n');
    }

    /// The old row with all columns that its table has had last.
    fn completed(&self, change: &Change) -> Option<Row> {
        if !matches!(change.kind, Kind::Update | Kind::Delete) {
            return None;
        }
        let old = change.old.clone().unwrap_or_default();
        let names = match (&change.new, &change.relation) {
            (Some(new), _) => new.names().map(str::to_owned).collect(),
            (None, Some(table)) => self.schemas.get(table).cloned().unwrap_or_default(),
            (None, None) => Vec::new(),
        };
        let mut known = old.0.iter().peekable();
        let columns = names.iter().map(|name| {
            let found = known.next_if(|column| column.name == *name).cloned();
            let unknown =
                || Column { name: name.clone(), type_name: None, value: self.missing.clone() };
            found.unwrap_or_else(unknown)
        });
        let completed = Row(columns.collect());
        // One that does not fit is of another shape.
        Some(if known.peek().is_none() { completed } else { old })
    }

    fn new_schema(&mut self, change: &Change, old: Option<&Row>) -> Option<(Relation, Json)> {
        let row = change.new.as_ref().or(old)?;
        let relation = change.relation.clone()?;
        let names: Vec<String> = row.names().map(str::to_owned).collect();
        let columns = names.iter().map(|name| json!({"name": name, "type": "?"})).collect();
        let before = self.schemas.insert(relation.clone(), names.clone());
        (before.as_ref() != Some(&names)).then_some((relation, columns))
    }
}

/// The new row with what it has left as it was, if the old row has it.
fn with_unchanged_of(old: Option<&Row>, new: &Row) -> Row {
    let columns = new.0.iter().map(|column| {
        let before = old.and_then(|old| old.column(&column.name));
        match (&column.value, before) {
            (Value::Unchanged, Some(before)) => before.clone(),
            _ => column.clone(),
        }
    });
    Row(columns.collect())
}

fn json_of(row: &Row) -> Json {
    let columns = row.0.iter().map(|column| {
        let value = match &column.value {
            Value::Null => Json::Null,
            Value::Text(text) => text.as_str().into(),
            Value::Raw(hex) => json!({"raw": format!("\\x{hex}"), "type": "?"}),
            Value::Unchanged => json!({"unchanged": true}),
        };
        (column.name.clone(), value)
    });
    Json::Object(columns.collect())
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
