//! Long values that an update leaves alone: their bytes come from the store.
//!
//! ```text
//! entries of a transaction        UpdatedFrom UpdatedTo        Inserted ...
//!                                       │ the same TOAST pointer in both
//!                                       ▼
//! what goes into the spool        UpdatedFrom UpdatedTo Chunk Chunk ... Inserted ...
//! ```
//!
//! Chunks never change, they only vanish. The store is ahead of the entries at hand; what it has taken
//! off a page since is among the entries that are still to come, and is looked for there.
//!
//! A pointer is found by its bytes, not by the table's columns: that something else looks like one costs
//! a look in vain.

use std::borrow::Cow;
use std::collections::BTreeMap;

use walferry_store::{Rows, ToastRequest};
use walfmt::RelFileLocator;
use walfmt::page::HEAP_HASEXTERNAL;
use walfmt::row::{Entry, EntryKind};
use walfmt_logical::value::ToastPointer;
use walfmt_logical::value::varlena::pointers;

use super::{Catalogs, broken};
use crate::trouble::Trouble;

/// A value that one row needs.
struct Need {
    /// Behind which byte of the entries its chunks go.
    behind: usize,
    /// Whose they are.
    entry: (walfmt::Lsn, walfmt::TransactionId),
    value: Value,
}

/// Database, TOAST relation and value.
type Value = (u32, u32, u32);

/// Adds to entries the chunks of values that updates have left alone. Nothing if the store is gone before
/// it could be asked; `unknown` counts the values that are nowhere.
pub(super) fn complete<'a>(
    entries: &'a [u8],
    Needed { needs, values }: Needed,
    rows: &Rows,
    stop: impl Fn() -> bool,
    unknown: &mut u64,
) -> Result<Option<Cow<'a, [u8]>>, Trouble> {
    if needs.is_empty() {
        return Ok(Some(Cow::Borrowed(entries)));
    }
    let requests = values.iter().map(|(value, (_, heap, index))| ToastRequest {
        heap: *heap,
        index: *index,
        value: value.2,
    });
    let Some(answers) = rows.ask(requests.collect(), stop) else { return Ok(None) };
    let mut chunks = BTreeMap::new();
    for ((value, (pointer, heap, _)), answer) in values.iter().zip(answers) {
        let mut found = answer.chunks;
        if !is_whole(pointer, &found) {
            found.extend(rows.find_removed(*heap, value.2));
        }
        if is_whole(pointer, &found) {
            chunks.insert(*value, found);
        } else {
            *unknown += 1;
        }
    }
    let mut whole = Vec::with_capacity(entries.len() * 2);
    let mut done = 0;
    for Need { behind, entry, value } in needs {
        whole.extend_from_slice(&entries[done..behind]);
        done = behind;
        let (database, relation, _) = value;
        for contents in chunks.get(&value).into_iter().flatten() {
            let locator = RelFileLocator { tablespace: 0, database, relation };
            let (start, xid) = entry;
            Entry { xid, locator, contents, ..Entry::empty(start, EntryKind::Chunk) }
                .write(&mut whole);
        }
    }
    whole.extend_from_slice(&entries[done..]);
    Ok(Some(Cow::Owned(whole)))
}

type Values = BTreeMap<Value, (ToastPointer, RelFileLocator, RelFileLocator)>;

/// What updates have left alone: what each row needs, and where to look for it.
pub(super) struct Needed {
    needs: Vec<Need>,
    values: Values,
}

/// Gives entries to the catalogs, and finds what updates have left alone. A value is looked for in the
/// files that its relation and index have where the row stands: those that TRUNCATE, REINDEX or VACUUM
/// FULL give them afterwards lack it, and the old ones stay until nobody asks.
pub(super) fn needed(entries: &[u8], catalogs: &mut Catalogs) -> Result<Needed, Trouble> {
    let (mut needs, mut values) = (Vec::new(), Values::new());
    let mut rest = entries;
    let mut before: Option<Entry<'_>> = None;
    while !rest.is_empty() {
        let (entry, behind) = Entry::read(rest).map_err(|error| broken(&error))?;
        rest = behind;
        catalogs.put_one(&entry)?;
        let old = before.replace(entry);
        let Some(old) = old.filter(|old| is_successor(old, &entry)) else { continue };
        let infomask = entry.tuple().map_err(|error| broken(&error))?.infomask;
        if infomask & HEAP_HASEXTERNAL == 0 {
            continue;
        }
        let database = entry.locator.database;
        for (bytes, pointer) in pointers(old.contents) {
            if !entry.contents.windows(bytes.len()).any(|window| window == bytes) {
                continue;
            }
            let relation = pointer.toast_relation;
            let Some((heap, index)) = catalogs.decoder.toast_files(database, relation) else {
                continue;
            };
            let value = (database, relation, pointer.value_id);
            values.insert(value, (pointer, heap, index));
            let behind = entries.len() - rest.len();
            needs.push(Need { behind, entry: (entry.start, entry.xid), value });
        }
    }
    Ok(Needed { needs, values })
}

/// Whether these are both versions of one updated row.
fn is_successor(old: &Entry<'_>, new: &Entry<'_>) -> bool {
    old.kind == EntryKind::UpdatedFrom
        && new.kind == EntryKind::UpdatedTo
        && (old.start, old.ordinal) == (new.start, new.ordinal)
}

/// Whether all chunks of a value are there, each once or more.
fn is_whole(pointer: &ToastPointer, chunks: &[Vec<u8>]) -> bool {
    walfmt_logical::chunks_length(chunks.iter().map(Vec::as_slice))
        == Some(pointer.external_size as usize)
}
