//! Row changes judged: what `test_decoding` says on the leader and what `walferry decode` says on a
//! follower, both as [`Decoded`], held against each other by a [`Comparison`].
//!
//! ```text
//!  Script ── Sessions ──► leader ── slot of test_decoding ──► text  ──┐
//!  (a seed, or a file)      │                                         ├──► Comparison, Coverage
//!                           └── WAL ── follower ── decode ──► lines ──┘
//! ```

use std::fmt;

pub mod comparison;
pub mod consumer;
pub mod coverage;
pub mod golden;
pub mod lines;
pub mod script;
pub mod sessions;
pub mod slot;
pub mod spoil;
pub mod spool;
pub mod text;

pub use comparison::{Comparison, Rules};
pub use coverage::Coverage;
pub use script::{Action, Script, Step};
pub use sessions::Sessions;
pub use slot::Slot;

/// What was decoded, in commit order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decoded {
    /// Those that are not empty.
    pub transactions: Vec<Transaction>,
    /// Transactions without a change, left out: whether one that changed only catalogs is told is
    /// up to the decoder.
    pub empty_transactions: u64,
    /// Lines of a kind that `test_decoding` does not know, left out.
    pub schema_lines: u64,
    /// As [`Decoded::schema_lines`].
    pub sequence_lines: u64,
    /// Rows whose columns are not those that the last line `schema` of their table told, in words.
    pub schema_faults: Vec<String>,
}

/// A transaction with its changes in order. A message that is not transactional stands alone, as
/// one that has no number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transaction {
    /// Its number, the top-level one.
    pub xid: Option<u32>,
    /// When it was committed, as PostgreSQL prints it.
    pub commit_time: Option<String>,
    /// Its changes.
    pub changes: Vec<Change>,
}

/// What kind of change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A row that is new.
    Insert,
    /// A row that is another.
    Update,
    /// A row that is gone.
    Delete,
    /// A table without rows; each of a statement's tables is a change.
    Truncate,
    /// `pg_logical_emit_message`.
    Message,
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Its kind.
    pub kind: Kind,
    /// The table; of a message there is none.
    pub relation: Option<Relation>,
    /// The row before, or what is known of it.
    pub old: Option<Row>,
    /// The row after.
    pub new: Option<Row>,
    /// Of a message, what it says.
    pub message: Option<Message>,
    /// `CASCADE` and `RESTART IDENTITY` were told.
    pub truncate_flags: bool,
}

/// A table's names, without quotes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Relation {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub table: String,
}

/// Columns in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row(pub Vec<Column>);

/// A column of a row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// Its name, without quotes.
    pub name: String,
    /// Its type as `format_type` prints it, where it is told.
    pub type_name: Option<String>,
    /// Its value.
    pub value: Value,
}

/// A column's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// NULL.
    Null,
    /// What the type's output function gives.
    Text(String),
    /// The bytes of a type that is not printed.
    Raw(String),
    /// An out-of-line value that the change left as it was and that is not told.
    Unchanged,
}

/// A logical message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Whether it is part of its transaction.
    pub transactional: bool,
    /// Its prefix.
    pub prefix: String,
    /// Its content.
    pub content: Vec<u8>,
}

impl Decoded {
    /// All changes.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.transactions.iter().flat_map(|transaction| &transaction.changes)
    }

    /// How many changes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes().count()
    }

    /// Whether there is no change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.transactions.is_empty()
    }

    /// Takes a transaction that is complete.
    fn push(&mut self, transaction: Transaction) {
        if transaction.changes.is_empty() {
            self.empty_transactions += 1;
        } else {
            self.transactions.push(transaction);
        }
    }
}

impl Change {
    fn of_table(kind: Kind, relation: Relation) -> Self {
        let relation = Some(relation);
        Self { kind, relation, old: None, new: None, message: None, truncate_flags: false }
    }

    fn of_message(message: Message) -> Self {
        let message = Some(message);
        let kind = Kind::Message;
        Self { kind, relation: None, old: None, new: None, message, truncate_flags: false }
    }
}

impl Row {
    /// A column by its name.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.0.iter().find(|column| column.name == name)
    }

    /// The columns' names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|column| column.name.as_str())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Message => "message",
        })
    }
}

impl fmt::Display for Relation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.schema, self.table)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 120;
        let shown = |text: &str| match text.char_indices().nth(SHOWN) {
            None => format!("{text:?}"),
            Some((at, _)) => format!("{:?}... ({} bytes)", &text[..at], text.len()),
        };
        match self {
            Self::Null => f.write_str("null"),
            Self::Text(text) => f.write_str(&shown(text)),
            Self::Raw(hex) => write!(f, "raw {}", shown(hex)),
            Self::Unchanged => f.write_str("unchanged"),
        }
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.0.iter().map(|column| format!("{:?} {}", column.name, column.value));
        write!(f, "({})", columns.collect::<Vec<_>>().join(", "))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(relation) = &self.relation {
            write!(f, " {relation}")?;
        }
        if let Some(old) = &self.old {
            write!(f, " old {old}")?;
        }
        if let Some(new) = &self.new {
            write!(f, " new {new}")?;
        }
        if let Some(message) = &self.message {
            let content = String::from_utf8_lossy(&message.content);
            let transactional = if message.transactional { "" } else { " not transactional" };
            write!(f, "{transactional} {:?} {content:?}", message.prefix)?;
        }
        Ok(())
    }
}
