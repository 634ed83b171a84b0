//! A transaction that has committed, told from its begin to its end.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use walfmt::bytes::{i64_at, u8_at};
use walfmt::page::HEAP_HASEXTERNAL;
use walfmt::rmgr::heap::TupleImage;
use walfmt::rmgr::logical_message::Message;
use walfmt::rmgr::sequence::SequenceRow;
use walfmt::rmgr::{RmgrId, smgr};
use walfmt::row::{Entry, EntryKind, flags};
use walfmt::{Lsn, Record, RelFileLocator, TransactionId};

use super::{Change, DecodeError, EntrySource, Open, Place, Position, broken};
use crate::catalog::{Catalogs, View};
use crate::event::{Body, Event, EventSink, Row};
use crate::json;
use crate::relation::Relation;
use crate::toast::{Chunk, ToastIndex, ToastValues};
use crate::tuple::{Attribute, TupleError, deform, user_data};
use crate::value::varlena::Varlena;

/// What a commit has ended.
pub(super) struct Transaction<'a> {
    pub(super) xid: TransactionId,
    pub(super) commit: Lsn,
    pub(super) time: i64,
    pub(super) tree: &'a [TransactionId],
    pub(super) done: &'a Open,
}

impl Transaction<'_> {
    pub(super) fn tell<S: EntrySource, K: EventSink>(
        &self,
        catalogs: &mut Catalogs,
        (told, scratch): (&mut BTreeMap<(u32, u32), Arc<Relation>>, &mut Scratch),
        source: &mut S,
        sink: &mut K,
    ) -> Told<S, K> {
        let mut toast = ToastIndex::default();
        for (relation, place) in &self.done.chunks {
            let entry = source.entry(*place).map_err(DecodeError::Source)?;
            let at = entry.start;
            let tuple = entry.tuple().map_err(|source| DecodeError::Entry { at, source })?;
            let chunk = Chunk::read(&tuple).map_err(|reason| broken(at, &reason))?;
            toast.add(*relation, &chunk, *place);
        }
        let mut telling = Telling {
            transaction: self,
            catalogs,
            told,
            source,
            sink,
            toast,
            relations: HashMap::new(),
            speculation: None,
            next: 0,
            database: None,
            scratch: std::mem::take(scratch),
        };
        telling.tell_all()?;
        *scratch = telling.scratch;
        Ok(())
    }
}

/// What is used again for each row, and for each transaction: most of them are small.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    /// What is written alike for each event, once something was told.
    json_common: Vec<u8>,
    old: Kept,
    new: Kept,
    old_attributes: Vec<Attribute>,
    new_attributes: Vec<Attribute>,
    values: ToastValues,
}

struct Telling<'a, S, K> {
    transaction: &'a Transaction<'a>,
    catalogs: &'a mut Catalogs,
    told: &'a mut BTreeMap<(u32, u32), Arc<Relation>>,
    source: &'a mut S,
    sink: &'a mut K,
    toast: ToastIndex,
    /// Relations as this transaction saw them after so many of its own changes of catalogs, and of
    /// others', if it has any of its own.
    relations: HashMap<RelFileLocator, (usize, u64, Arc<Relation>)>,
    /// An insertion that is not confirmed yet.
    speculation: Option<Kept>,
    /// The ordinal of the next event.
    next: u64,
    /// The database's name, once something was told.
    database: Option<Box<str>>,
    scratch: Scratch,
}

/// An entry that outlives the look at the next one.
#[derive(Debug, Default)]
struct Kept {
    start: Lsn,
    locator: RelFileLocator,
    block: u32,
    item: u16,
    ordinal: u16,
    contents: Vec<u8>,
}

impl Kept {
    fn take(&mut self, entry: &Entry<'_>) {
        (self.start, self.locator) = (entry.start, entry.locator);
        (self.block, self.item, self.ordinal) = (entry.block, entry.item, entry.ordinal);
        self.contents.clear();
        self.contents.extend_from_slice(entry.contents);
    }

    fn entry(&self, kind: EntryKind) -> Entry<'_> {
        Entry {
            start: self.start,
            xid: TransactionId::INVALID,
            locator: self.locator,
            block: self.block,
            item: self.item,
            ordinal: self.ordinal,
            kind,
            flags: 0,
            contents: &self.contents,
        }
    }

    fn tuple<S, K>(&self) -> Result<TupleImage<'_>, DecodeError<S, K>> {
        let tuple = self.entry(EntryKind::Inserted).tuple();
        tuple.map_err(|source| DecodeError::Entry { at: self.start, source })
    }
}

type Told<S, K> = Result<(), DecodeError<<S as EntrySource>::Error, <K as EventSink>::Error>>;

type Found<S, K> =
    Result<Option<Arc<Relation>>, DecodeError<<S as EntrySource>::Error, <K as EventSink>::Error>>;

impl<S: EntrySource, K: EventSink> Telling<'_, S, K> {
    fn tell_all(&mut self) -> Told<S, K> {
        let mut changes = self.transaction.done.changes.iter();
        while let Some(change) = changes.next() {
            let entry = self.source.entry(change.place).map_err(DecodeError::Source)?;
            match entry.kind {
                EntryKind::UpdatedFrom => {
                    self.scratch.old.take(&entry);
                    self.update(*change, changes.next().map(|next| next.place))?;
                }
                _ if change.is_class => {}
                EntryKind::Inserted if entry.flags & flags::SPECULATIVE != 0 => {
                    self.speculation.get_or_insert_default().take(&entry);
                }
                EntryKind::Inserted => {
                    self.scratch.new.take(&entry);
                    self.insert()?;
                }
                EntryKind::SpeculationConfirmed => {
                    let is_it = |kept: &mut Kept| {
                        (kept.locator, kept.block, kept.item)
                            == (entry.locator, entry.block, entry.item)
                    };
                    if let Some(kept) = self.speculation.take_if(is_it) {
                        self.scratch.new = kept;
                        self.insert()?;
                    }
                }
                // Its long values may be taken back, too, by records of the same kind.
                EntryKind::SpeculationFailed => {
                    let at = (entry.locator, entry.block, entry.item);
                    self.speculation.take_if(|kept| (kept.locator, kept.block, kept.item) == at);
                }
                EntryKind::Deleted => {
                    self.scratch.old.take(&entry);
                    self.delete()?;
                }
                EntryKind::Record => {
                    self.scratch.new.take(&entry);
                    self.record()?;
                }
                EntryKind::UpdatedTo
                | EntryKind::Lost
                | EntryKind::Loaded
                | EntryKind::Begin
                | EntryKind::Mapped
                | EntryKind::Database
                | EntryKind::Chunk
                | EntryKind::Removed
                | EntryKind::Prepared
                | EntryKind::Unindexed => {
                    return Err(DecodeError::Lost { at: entry.start, locator: entry.locator });
                }
            }
        }
        if let Some(database) = self.database.take() {
            self.send(self.next, self.transaction.commit, Body::Commit { database: &database })?;
        }
        Ok(())
    }

    fn update(&mut self, change: Change, next: Option<Place>) -> Told<S, K> {
        let (at, locator) = (self.scratch.old.start, self.scratch.old.locator);
        let lost = DecodeError::Lost { at, locator };
        let Some(next) = next else { return Err(lost) };
        let entry = self.source.entry(next).map_err(DecodeError::Source)?;
        if entry.kind != EntryKind::UpdatedTo
            || (entry.start, entry.ordinal) != (at, self.scratch.old.ordinal)
        {
            return Err(lost);
        }
        if change.is_class {
            let old = self.scratch.old.entry(EntryKind::UpdatedFrom);
            let view = View { at, tree: self.transaction.tree };
            let truncated = self.catalogs.truncated(&old, &entry, view);
            let truncated = truncated.map_err(|source| DecodeError::Catalog { at, source })?;
            return match truncated {
                Some(locator) => self.truncate(at, locator),
                None => Ok(()),
            };
        }
        self.scratch.new.take(&entry);
        let Some(relation) = self.relation(at, locator)? else { return Ok(()) };
        let (old, new) =
            (std::mem::take(&mut self.scratch.old), std::mem::take(&mut self.scratch.new));
        let told = self.tell_update(&relation, &old, &new);
        (self.scratch.old, self.scratch.new) = (old, new);
        told
    }

    fn tell_update(&mut self, relation: &Arc<Relation>, old: &Kept, new: &Kept) -> Told<S, K> {
        let at = old.start;
        let (before, after) = (old.tuple()?, new.tuple()?);
        self.load_values(relation, at, &[before, after])?;
        let mut attributes = std::mem::take(&mut self.scratch.old_attributes);
        let mut new_attributes = std::mem::take(&mut self.scratch.new_attributes);
        let values = std::mem::take(&mut self.scratch.values);
        let bad = |source| bad_tuple(at, relation, source);
        let body = Body::Update {
            old: Row::new(relation, &before, &mut attributes, &values).map_err(bad)?,
            new: Row::new(relation, &after, &mut new_attributes, &values).map_err(bad)?,
        };
        let told = self.event(at, body, Some(relation));
        (self.scratch.old_attributes, self.scratch.new_attributes, self.scratch.values) =
            (attributes, new_attributes, values);
        told
    }

    fn insert(&mut self) -> Told<S, K> {
        let kept = std::mem::take(&mut self.scratch.new);
        let told = self.tell_one(&kept, inserted);
        self.scratch.new = kept;
        told
    }

    fn delete(&mut self) -> Told<S, K> {
        let kept = std::mem::take(&mut self.scratch.old);
        let told = self.tell_one(&kept, deleted);
        self.scratch.old = kept;
        told
    }

    fn tell_one(&mut self, kept: &Kept, body: for<'r> fn(Row<'r>) -> Body<'r>) -> Told<S, K> {
        let Some(relation) = self.relation(kept.start, kept.locator)? else { return Ok(()) };
        let tuple = kept.tuple()?;
        self.load_values(&relation, kept.start, &[tuple])?;
        let mut attributes = std::mem::take(&mut self.scratch.old_attributes);
        let values = std::mem::take(&mut self.scratch.values);
        let row = Row::new(&relation, &tuple, &mut attributes, &values)
            .map_err(|source| bad_tuple(kept.start, &relation, source))?;
        let told = self.event(kept.start, body(row), Some(&relation));
        (self.scratch.old_attributes, self.scratch.values) = (attributes, values);
        told
    }

    /// Brings the long values of one row together, as far as this transaction has touched them.
    fn load_values(
        &mut self,
        relation: &Relation,
        at: Lsn,
        tuples: &[TupleImage<'_>],
    ) -> Told<S, K> {
        self.scratch.values.clear();
        let mut attributes = std::mem::take(&mut self.scratch.new_attributes);
        for tuple in tuples {
            if tuple.infomask & HEAP_HASEXTERNAL == 0 {
                continue;
            }
            let bad = |source| bad_tuple(at, relation, source);
            let shapes = relation.columns.iter().map(|column| column.shape);
            deform(tuple, shapes, &mut attributes).map_err(bad)?;
            let data = user_data(tuple).map_err(bad)?;
            for (column, attribute) in relation.columns.iter().zip(&attributes) {
                let Attribute::At(range) = attribute else { continue };
                if column.shape.length != -1 {
                    continue;
                }
                let read = Varlena::read(&data[range.clone()]);
                let (value, _) = read.map_err(|source| DecodeError::Varlena { at, source })?;
                let Varlena::External(pointer) = value else { continue };
                if self.scratch.values.holds(&pointer) {
                    continue;
                }
                for place in self.toast.places(&pointer).unwrap_or_default() {
                    let entry = self.source.entry(place).map_err(DecodeError::Source)?;
                    let chunk = entry.tuple().ok().and_then(|tuple| Chunk::read(&tuple).ok());
                    if let Some(chunk) = chunk {
                        self.scratch.values.add(&pointer, &chunk);
                    }
                }
            }
        }
        self.scratch.new_attributes = attributes;
        Ok(())
    }

    fn truncate(&mut self, at: Lsn, locator: RelFileLocator) -> Told<S, K> {
        match self.relation(at, locator)? {
            Some(relation) => self.event(at, Body::Truncate(&relation), None),
            None => Ok(()),
        }
    }

    fn record(&mut self) -> Told<S, K> {
        let kept = std::mem::take(&mut self.scratch.new);
        let told = self.tell_record(&kept);
        self.scratch.new = kept;
        told
    }

    fn tell_record(&mut self, kept: &Kept) -> Told<S, K> {
        let at = kept.start;
        let entry = kept.entry(EntryKind::Record);
        let raw = entry.record().map_err(|source| DecodeError::Entry { at, source })?;
        let record = Record::decode(&raw, self.catalogs.version());
        let record = record.map_err(|error| broken(at, &error))?;
        let view = View { at, tree: self.transaction.tree };
        match record.header.rmgr {
            RmgrId::SMGR => {
                let truncate = smgr::Truncate::read(record.main_data);
                let locator = truncate.map_err(|error| broken(at, &error))?.locator;
                // VACUUM cuts off the end of tables, too, but of none that its transaction has made.
                if self.catalogs.is_own_file(locator, view) {
                    self.truncate(at, locator)?;
                }
                Ok(())
            }
            RmgrId::LOGICAL_MESSAGE => {
                let message = Message::read(record.main_data);
                let message = message.map_err(|error| broken(at, &error))?;
                let database = self.catalogs.database_name(message.database, view);
                let body = Body::Message {
                    database: &database,
                    transactional: true,
                    prefix: message.prefix,
                    content: message.contents,
                };
                self.event(at, body, None)
            }
            RmgrId::SEQUENCE => {
                let row = SequenceRow::read(record.main_data);
                let row = row.map_err(|error| broken(at, &error))?;
                // Of one that is unlogged the record is of its init fork.
                let Some(relation) = self.relation(at, row.locator)? else { return Ok(()) };
                let body = sequence(&relation, row.tuple);
                self.event(at, body.map_err(|reason| broken(at, &reason))?, None)
            }
            _ => Ok(()),
        }
    }

    /// The table with this file, if anybody is told of it.
    fn relation(&mut self, at: Lsn, locator: RelFileLocator) -> Found<S, K> {
        let relation = self.any_relation(at, locator);
        let relation = relation.ok_or(DecodeError::Relation { at, locator })?;
        Ok(relation.is_told.then_some(relation))
    }

    fn any_relation(&mut self, at: Lsn, locator: RelFileLocator) -> Option<Arc<Relation>> {
        let view = View { at, tree: self.transaction.tree };
        let own = &self.transaction.done.catalogs;
        if own.is_empty() {
            return self.catalogs.relation(locator, view, false);
        }
        let own = own.partition_point(|change| *change < at);
        let epoch = self.catalogs.epoch(at);
        if let Some((seen_own, seen, relation)) = self.relations.get(&locator)
            && (*seen_own, *seen) == (own, epoch)
        {
            return Some(Arc::clone(relation));
        }
        let relation = self.catalogs.relation(locator, view, true)?;
        self.relations.insert(locator, (own, epoch, Arc::clone(&relation)));
        Some(relation)
    }

    /// Tells what happened, after the transaction's begin, and the shape of the table whose row it is.
    fn event(&mut self, lsn: Lsn, body: Body<'_>, table: Option<&Arc<Relation>>) -> Told<S, K> {
        let database = match &body {
            Body::Insert(row) | Body::Delete(row) | Body::Update { new: row, .. } => {
                &*row.relation.database
            }
            Body::Truncate(relation) | Body::Sequence { relation, .. } | Body::Schema(relation) => {
                &*relation.database
            }
            Body::Message { database, .. }
            | Body::Begin { database }
            | Body::Commit { database } => *database,
        };
        if self.next == 0 {
            self.next = 1;
            self.database = Some(database.into());
            let Transaction { xid, commit, time, .. } = *self.transaction;
            self.scratch.json_common.clear();
            json::common(xid, commit, time, &mut self.scratch.json_common);
            self.send(0, self.transaction.commit, Body::Begin { database })?;
        }
        let ordinal = self.next;
        self.next += 1;
        if let Some(table) = table {
            self.tell_shape(ordinal, lsn, table)?;
        }
        self.send(ordinal, lsn, body)
    }

    /// Tells the relation's shape if it is not the one told last.
    fn tell_shape(&mut self, ordinal: u64, lsn: Lsn, relation: &Arc<Relation>) -> Told<S, K> {
        let key = (relation.database_oid, relation.oid);
        let known = self.told.get(&key);
        if known.is_some_and(|known| Arc::ptr_eq(known, relation)) {
            return Ok(());
        }
        if !known.is_some_and(|known| known.has_shape_of(relation)) {
            self.send(ordinal, lsn, Body::Schema(relation))?;
        }
        // The next row is most likely of the very same.
        self.told.insert(key, Arc::clone(relation));
        Ok(())
    }

    fn send(&mut self, ordinal: u64, lsn: Lsn, body: Body<'_>) -> Told<S, K> {
        let Transaction { xid, commit, time, .. } = *self.transaction;
        let position = Position { commit, ordinal };
        let json_common = &self.scratch.json_common;
        let event = Event { position, lsn, xid, commit_time: time, body, json_common };
        self.sink.event(&event).map_err(DecodeError::Sink)
    }
}

const fn inserted(row: Row<'_>) -> Body<'_> {
    Body::Insert(row)
}

const fn deleted(row: Row<'_>) -> Body<'_> {
    Body::Delete(row)
}

/// What a sequence's tuple says: `last_value`, `log_cnt`, `is_called`.
pub(super) fn sequence<'a>(relation: &'a Relation, tuple: &[u8]) -> Result<Body<'a>, &'static str> {
    let hoff = usize::from(u8_at(tuple, 22));
    let data = tuple.get(hoff..).filter(|data| data.len() >= 17);
    let data = data.ok_or("a sequence's row is too short")?;
    Ok(Body::Sequence {
        relation,
        last_value: i64_at(data, 0),
        log_count: i64_at(data, 8),
        is_called: data[16] != 0,
    })
}

fn bad_tuple<S, K>(at: Lsn, relation: &Relation, source: TupleError) -> DecodeError<S, K> {
    let relation = format!("{}.{}", relation.schema, relation.name);
    DecodeError::Tuple { at, relation, source }
}
