//! Long values that are stored apart, as chunks.
//!
//! ```text
//! row of a TOAST relation:  chunk_id oid | chunk_seq int4 | chunk_data bytea
//! ```
//!
//! A transaction inserts the chunks of a new value and deletes those of one that it removes: either way
//! all of them are among its rows. Those of a value that an update leaves alone were added to them by
//! whoever wrote the rows down. Of a transaction only their places are kept; the values of one row
//! are brought together when it is told.
//!
//! Rules: `toast_save_datum` and `toast_delete_datum` in `src/backend/access/common/toast_internals.c`.

use std::collections::{BTreeMap, HashMap};

use walfmt::bytes::{i32_at, u32_at};
use walfmt::cursor::Cursor;
use walfmt::rmgr::heap::TupleImage;

use crate::decoder::Place;
use crate::tuple::user_data;
use crate::value::ToastPointer;
use crate::value::varlena::Varlena;

/// Where the chunks are that one transaction has inserted or deleted: by TOAST relation and value, with
/// their numbers.
#[derive(Debug, Default)]
pub(crate) struct ToastIndex(HashMap<(u32, u32), Vec<(i32, Place)>>);

/// The long values of one row, by TOAST relation and value.
#[derive(Debug, Default)]
pub(crate) struct ToastValues(HashMap<(u32, u32), Vec<u8>>);

/// One row of a TOAST relation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk<'a> {
    value: u32,
    number: i32,
    data: &'a [u8],
}

impl<'a> Chunk<'a> {
    pub(crate) fn read(tuple: &TupleImage<'a>) -> Result<Self, &'static str> {
        let data = user_data(tuple).map_err(|_| "a chunk's row is broken")?;
        let Some((head, rest)) = data.split_at_checked(8) else {
            return Err("a chunk's row is too short");
        };
        match Varlena::read(rest) {
            Ok((Varlena::Plain(data), _)) => {
                Ok(Self { value: u32_at(head, 0), number: i32_at(head, 4), data })
            }
            _ => Err("a chunk's data cannot be read"),
        }
    }
}

/// How long a value is that is made of these chunks, each a row's contents as in [`walfmt::row`]; one may
/// be there twice. Nothing if one is missing, or none of them.
pub fn chunks_length<'a>(chunks: impl Iterator<Item = &'a [u8]>) -> Option<usize> {
    let mut lengths = BTreeMap::new();
    for contents in chunks {
        let tuple = TupleImage::read(&mut Cursor::new(contents)).ok()?;
        let chunk = Chunk::read(&tuple).ok()?;
        lengths.insert(chunk.number, chunk.data.len());
    }
    let is_whole = lengths.keys().zip(0..).all(|(number, expected)| *number == expected);
    is_whole.then(|| lengths.values().sum())
}

impl ToastIndex {
    /// Notes a chunk.
    pub(crate) fn add(&mut self, relation: u32, chunk: &Chunk<'_>, place: Place) {
        self.0.entry((relation, chunk.value)).or_default().push((chunk.number, place));
    }

    /// The places of a value's chunks in their order; each once, also if it was inserted and deleted in
    /// one transaction. Nothing if one is missing.
    pub(crate) fn places(&self, pointer: &ToastPointer) -> Option<Vec<Place>> {
        let mut chunks = self.0.get(&(pointer.toast_relation, pointer.value_id))?.clone();
        chunks.sort_unstable();
        chunks.dedup_by_key(|(number, _)| *number);
        let is_whole = chunks.iter().zip(0..).all(|((number, _), expected)| *number == expected);
        is_whole.then(|| chunks.into_iter().map(|(_, place)| place).collect())
    }
}

impl ToastValues {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn holds(&self, pointer: &ToastPointer) -> bool {
        self.0.contains_key(&(pointer.toast_relation, pointer.value_id))
    }

    /// Adds the next chunk of a value.
    pub(crate) fn add(&mut self, pointer: &ToastPointer, chunk: &Chunk<'_>) {
        let value = self.0.entry((pointer.toast_relation, pointer.value_id)).or_default();
        value.extend_from_slice(chunk.data);
    }

    /// All chunks of a value together, if they were added.
    pub(crate) fn find(&self, pointer: &ToastPointer) -> Option<&[u8]> {
        let value = self.0.get(&(pointer.toast_relation, pointer.value_id))?;
        (value.len() == pointer.external_size as usize).then_some(&**value)
    }
}
