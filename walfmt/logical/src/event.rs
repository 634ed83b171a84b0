//! What decoding tells: transactions, and what they did.

use walfmt::rmgr::heap::TupleImage;
use walfmt::{Lsn, TransactionId};

use crate::decoder::Position;
use crate::relation::{Column, Relation};
use crate::toast::ToastValues;
use crate::tuple::{Attribute, TupleError, deform, user_data};
use crate::value::varlena::{PAYLOAD_BYTES_MAX, Varlena};
use crate::value::{self, ValueError};

/// Who is told.
pub trait EventSink {
    /// Why it could not take an event.
    type Error;

    /// Takes the next event.
    ///
    /// # Errors
    /// Its own: decoding stops with it.
    fn event(&mut self, event: &Event<'_>) -> Result<(), Self::Error>;
}

/// Something that happened.
#[derive(Debug)]
pub struct Event<'a> {
    /// Where it stands among all events.
    pub position: Position,
    /// Where its record begins.
    pub lsn: Lsn,
    /// The transaction; its top level one. Invalid for a message that is in none.
    pub xid: TransactionId,
    /// When it committed, in microseconds since 2000-01-01 UTC; on the node that it came from, if it
    /// was replicated here.
    pub commit_time: i64,
    /// What.
    pub body: Body<'a>,
    /// Transaction and commit as JSON: the same for each of its events, so it is written once.
    pub(crate) json_common: &'a [u8],
}

impl<'a> Event<'a> {
    /// Another event of the same record.
    #[must_use]
    pub const fn beside(&self, position: Position, body: Body<'a>) -> Self {
        let Self { lsn, xid, commit_time, json_common, .. } = *self;
        Self { position, lsn, xid, commit_time, body, json_common }
    }
}

/// What happened.
#[derive(Debug)]
pub enum Body<'a> {
    /// A transaction's events begin.
    Begin {
        /// The name of the database, if any of its changes is in one.
        database: &'a str,
    },
    /// The shape of a table, before the first row that is told of it, and when it is another one.
    Schema(&'a Relation),
    /// A new row.
    Insert(Row<'a>),
    /// A changed row.
    Update {
        /// As it was.
        old: Row<'a>,
        /// As it is.
        new: Row<'a>,
    },
    /// A row is gone.
    Delete(Row<'a>),
    /// All rows are gone.
    Truncate(&'a Relation),
    /// A message for whoever listens (`pg_logical_emit_message`).
    Message {
        /// The name of the database.
        database: &'a str,
        /// Whether it belongs to its transaction; if not, it stands between transactions.
        transactional: bool,
        /// Whom it is for.
        prefix: &'a [u8],
        /// What it says.
        content: &'a [u8],
    },
    /// A sequence has come this far. Numbers before may never be used.
    Sequence {
        /// The sequence.
        relation: &'a Relation,
        /// `last_value`.
        last_value: i64,
        /// `log_cnt`.
        log_count: i64,
        /// `is_called`.
        is_called: bool,
    },
    /// The transaction's events end.
    Commit {
        /// As at its begin.
        database: &'a str,
    },
}

/// One version of a row.
#[derive(Debug)]
pub struct Row<'a> {
    /// The table.
    pub relation: &'a Relation,
    data: &'a [u8],
    attributes: &'a [Attribute],
    toast: &'a ToastValues,
}

/// How a value is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// Null.
    Null,
    /// As the text that was appended.
    Text,
    /// There is no text: as the bytes that were appended, those of the value without a varlena's
    /// header.
    Raw,
    /// A long value that is stored apart, and that the transaction did not touch.
    Unchanged,
}

impl<'a> Row<'a> {
    pub(crate) fn new(
        relation: &'a Relation,
        tuple: &TupleImage<'a>,
        attributes: &'a mut Vec<Attribute>,
        toast: &'a ToastValues,
    ) -> Result<Self, TupleError> {
        deform(tuple, relation.columns.iter().map(|column| column.shape), attributes)?;
        Ok(Self { relation, data: user_data(tuple)?, attributes, toast })
    }

    /// The columns, each with its attribute's number for [`print`](Self::print).
    pub fn columns(&self) -> impl Iterator<Item = (usize, &'a Column)> {
        self.relation.columns.iter().enumerate().filter(|(_, column)| column.is_told)
    }

    /// Whether an attribute has the same bytes in another version of this row, so that it is told alike.
    pub(crate) fn has_same(&self, other: &Self, index: usize) -> bool {
        match (self.attributes.get(index), other.attributes.get(index)) {
            (Some(Attribute::At(own)), Some(Attribute::At(others))) => {
                match (self.data.get(own.clone()), other.data.get(others.clone())) {
                    (Some(own), Some(others)) => own == others,
                    _ => false,
                }
            }
            (Some(own), Some(other)) => own == other,
            _ => false,
        }
    }

    /// Appends a value; says how it is told.
    ///
    /// # Errors
    /// [`ValueError`] if it cannot be read.
    pub fn print(&self, index: usize, out: &mut Vec<u8>) -> Result<Told, ValueError> {
        let Some(column) = self.relation.columns.get(index) else { return Ok(Told::Null) };
        let attribute = match self.attributes.get(index) {
            Some(Attribute::At(range)) => self.data.get(range.clone()).unwrap_or_default(),
            Some(Attribute::Missing) => match &column.missing {
                Some(missing) => missing,
                None => return Ok(Told::Null),
            },
            Some(Attribute::Null) | None => return Ok(Told::Null),
        };
        match column.shape.length {
            -1 => match Varlena::read(attribute)?.0 {
                Varlena::Plain(payload) => Ok(text_or_bytes(column, payload, out)),
                Varlena::Compressed(compressed) => {
                    Ok(text_or_bytes(column, &compressed.decompress(PAYLOAD_BYTES_MAX)?, out))
                }
                Varlena::External(pointer) => match self.toast.find(&pointer) {
                    Some(chunks) => {
                        let payload = pointer.payload(chunks, PAYLOAD_BYTES_MAX)?;
                        Ok(text_or_bytes(column, &payload, out))
                    }
                    None => Ok(Told::Unchanged),
                },
            },
            -2 => Ok(text_or_bytes(column, attribute.strip_suffix(&[0]).unwrap_or(attribute), out)),
            _ => Ok(text_or_bytes(column, attribute, out)),
        }
    }
}

#[inline]
fn text_or_bytes(column: &Column, payload: &[u8], out: &mut Vec<u8>) -> Told {
    match value::print(&column.ty, payload, out) {
        Ok(()) => Told::Text,
        // Text in another encoding, a label that is not there: as raw as what has no rule.
        Err(_) => {
            out.extend_from_slice(payload);
            Told::Raw
        }
    }
}
