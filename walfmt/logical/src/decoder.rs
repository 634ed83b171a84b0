//! Entries in, whole transactions out.
//!
//! A transaction's entries are noted by their places as they come, each with the subtransaction it
//! belongs to. Its commit says which subtransactions count; then their entries are read again, in the
//! order they came, and told. An aborted one is forgotten.
//!
//! Rules: `src/backend/replication/logical/reorderbuffer.c`, `decode.c`.

mod telling;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;

use walfmt::relation::DatabaseLocator;
use walfmt::rmgr::database;
use walfmt::rmgr::logical_message::Message;
use walfmt::rmgr::relmap::{self, RelationMap};
use walfmt::rmgr::sequence::SequenceRow;
use walfmt::rmgr::smgr;
use walfmt::rmgr::standby::RunningXacts;
use walfmt::rmgr::xact::{self, End, Prepare};
use walfmt::rmgr::{RmgrId, xlog};
use walfmt::row::{Entry, EntryError, EntryKind};
use walfmt::{Lsn, Record, RelFileLocator, TransactionId, Version};

use crate::catalog::{CatalogError, Catalogs, PG_CLASS, Role, View};
use crate::event::{Body, Event, EventSink};
use crate::json;
use crate::relation::Relation;
use crate::tuple::TupleError;
use crate::value::VarlenaError;

/// Where an entry is kept; later entries have larger places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place(pub u64);

/// Where an event stands among all: what was told up to here need not be told again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// Where the record of the transaction's commit begins; of a message that is in none, its own.
    pub commit: Lsn,
    /// Which of the transaction's events it is: 0 is its begin.
    pub ordinal: u64,
}

impl fmt::Display for Position {
    /// `LSN/ordinal`, as `--after` of `walferry decode` takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.commit, self.ordinal)
    }
}

/// Who keeps entries.
pub trait EntrySource {
    /// Why one cannot be had.
    type Error;

    /// Gives an entry back.
    ///
    /// # Errors
    /// Its own: decoding stops with it.
    fn entry(&mut self, place: Place) -> Result<Entry<'_>, Self::Error>;
}

/// Why decoding cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError<S, K> {
    /// The entries' keeper failed.
    #[error("{0}")]
    Source(S),
    /// Whoever listens failed.
    #[error("{0}")]
    Sink(K),
    /// An entry is broken.
    #[error("record at {at}: {source}")]
    Entry {
        /// Its record.
        at: Lsn,
        /// What is wrong.
        source: EntryError,
    },
    /// A record is broken.
    #[error("record at {at}: {reason}")]
    Record {
        /// Where it begins.
        at: Lsn,
        /// What is wrong.
        reason: String,
    },
    /// A row of a catalog cannot be read.
    #[error("record at {at}: {source}")]
    Catalog {
        /// The record.
        at: Lsn,
        /// What is wrong.
        source: CatalogError,
    },
    /// A row cannot be read.
    #[error("record at {at}, row of {relation}: {source}")]
    Tuple {
        /// The record.
        at: Lsn,
        /// Schema and name.
        relation: String,
        /// What is wrong.
        source: TupleError,
    },
    /// A long value cannot be read.
    #[error("record at {at}: {source}")]
    Varlena {
        /// The record.
        at: Lsn,
        /// What is wrong.
        source: VarlenaError,
    },
    /// No class has this file.
    #[error("record at {at}: no relation is known with the file {locator}")]
    Relation {
        /// The record.
        at: Lsn,
        /// The file.
        locator: RelFileLocator,
    },
    /// The row was not on its page any more when it was looked for, or half of an update is missing.
    #[error("record at {at}: a row of {locator} was lost")]
    Lost {
        /// The record.
        at: Lsn,
        /// The relation's file.
        locator: RelFileLocator,
    },
}

/// No transaction has more rows of files that are not known: they are few catalogs' own.
const UNKNOWN_MAX: usize = 100_000;

/// What a transaction has done so far, subtransactions apart.
#[derive(Debug, Default)]
struct Open {
    /// The first of its records that was noted.
    first: Lsn,
    changes: Vec<Change>,
    /// Chunks of long values: their relations and places.
    chunks: Vec<(u32, Place)>,
    /// Its records that changed catalogs.
    catalogs: Vec<Lsn>,
    /// Rows of files that nobody has named yet, whole: a relation map may say that they are a
    /// catalog's.
    unknown: Vec<(Place, Vec<u8>)>,
}

/// An entry of a transaction that is looked at again when it commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Change {
    place: Place,
    /// It is a row of `pg_class`.
    is_class: bool,
}

/// Turns entries into events. Entries must come in WAL order.
#[derive(Debug)]
pub struct Decoder {
    catalogs: Catalogs,
    open: HashMap<TransactionId, Open, foldhash::fast::RandomState>,
    /// Prepared transactions with their subtransactions, which outlive a restart of the server.
    prepared: HashSet<TransactionId>,
    /// Transactions that had not ended when decoding began. Until all have, nothing is told: what they
    /// did before is not known.
    incomplete: HashSet<TransactionId>,
    /// Where the first row may be of those, if rows of theirs are kept anywhere.
    oldest: Option<Lsn>,
    has_begun: bool,
    /// Databases whose creation has not been committed: by whom, where, and the record's entry.
    made: Vec<(TransactionId, DatabaseLocator, Vec<u8>)>,
    /// Nothing is told, and no more is kept than what the catalogs need.
    is_watching: bool,
    /// The shapes that were told last, by database and OID.
    told: BTreeMap<(u32, u32), std::sync::Arc<Relation>>,
    scratch: telling::Scratch,
}

impl Decoder {
    /// Begins with nothing: what was loaded comes first among the entries.
    #[must_use]
    pub fn new(version: &'static Version) -> Self {
        Self {
            catalogs: Catalogs::new(version),
            open: HashMap::default(),
            prepared: HashSet::new(),
            incomplete: HashSet::new(),
            oldest: None,
            has_begun: false,
            made: Vec::new(),
            is_watching: false,
            told: BTreeMap::new(),
            scratch: telling::Scratch::default(),
        }
    }

    /// One that tells nothing: it just keeps the catalogs as they are, to be asked of them.
    #[must_use]
    pub fn watching(version: &'static Version) -> Self {
        let catalogs = Catalogs::noting_files(version);
        Self { is_watching: true, catalogs, ..Self::new(version) }
    }

    /// Whether everything that commits from here on is told.
    #[must_use]
    pub fn is_telling(&self) -> bool {
        self.has_begun && self.incomplete.is_empty() && !self.is_watching
    }

    /// The transactions that had begun before, and that nothing is told before they have ended.
    pub fn waits_for(&self) -> impl Iterator<Item = TransactionId> {
        self.incomplete.iter().copied()
    }

    /// Rows of transactions that had not ended when decoding began are kept from there on, by whoever keeps
    /// entries: until all of them have ended, [`write_state`](Self::write_state) says so, too.
    pub fn set_oldest(&mut self, oldest: Option<Lsn>) {
        self.oldest = oldest;
    }

    /// Adds entries with which another decoder can begin at `at`, before any record that begins there.
    /// Gives where the first row may be of a transaction that has not ended.
    pub fn write_state(&self, at: Lsn, out: &mut Vec<u8>) -> Lsn {
        self.catalogs.write(at, out);
        self.made.iter().for_each(|(_, _, entry)| out.extend_from_slice(entry));
        let mut put = |kind, mut xids: Vec<TransactionId>| {
            xids.sort_unstable_by_key(|xid| xid.0);
            xids.dedup();
            let contents: Vec<u8> = xids.iter().flat_map(|xid| xid.0.to_le_bytes()).collect();
            Entry { contents: &contents, ..Entry::empty(at, kind) }.write(out);
        };
        put(EntryKind::Prepared, self.prepared.iter().copied().collect());
        put(EntryKind::Begin, self.open.keys().chain(&self.incomplete).copied().collect());
        let before = self.oldest.filter(|_| !self.incomplete.is_empty());
        self.open.values().map(|open| open.first).chain(before).min().unwrap_or(at).min(at)
    }

    /// Databases whose creation has not been committed, and by whom. What they have is loaded when it is.
    pub fn databases_made(&self) -> impl Iterator<Item = (TransactionId, DatabaseLocator)> {
        self.made.iter().map(|(xid, directory, _)| (*xid, *directory))
    }

    /// The files of a TOAST relation and of its index, as they are now.
    #[must_use]
    pub fn toast_files(
        &self,
        database: u32,
        relation: u32,
    ) -> Option<(RelFileLocator, RelFileLocator)> {
        self.catalogs.toast_files(database, relation)
    }

    /// The files that relations were given since this was last asked: database and file number, and
    /// whether it is of a TOAST relation or its index.
    pub fn take_new_files(&mut self) -> Vec<(u32, u32, bool)> {
        self.catalogs.take_new_files()
    }

    /// The databases that are there now: OIDs and default tablespaces.
    pub fn databases(&self) -> impl Iterator<Item = (u32, u32)> {
        self.catalogs.databases()
    }

    /// Takes the next entry; `place` is where `source` can find it again. Tells `sink` what came of it.
    ///
    /// # Errors
    /// [`DecodeError`]; decoding cannot go on then.
    pub fn push<S: EntrySource, K: EventSink>(
        &mut self,
        entry: &Entry<'_>,
        place: Place,
        source: &mut S,
        sink: &mut K,
    ) -> Result<(), DecodeError<S::Error, K::Error>> {
        match entry.kind {
            EntryKind::Mapped => {
                let (database, file) = (entry.locator.database, entry.locator.relation);
                self.catalogs.map(database, file, entry.block);
                Ok(())
            }
            EntryKind::Database => {
                self.catalogs.forget_database(entry.locator.database);
                Ok(())
            }
            EntryKind::Chunk if self.is_watching => Ok(()),
            EntryKind::Chunk => {
                let relation = entry.locator.relation;
                self.opened(entry).chunks.push((relation, place));
                Ok(())
            }
            EntryKind::Loaded => self.observe(entry.locator.relation, entry),
            EntryKind::Prepared => {
                self.prepared.extend(transactions(entry));
                Ok(())
            }
            EntryKind::Begin => {
                self.incomplete.extend(transactions(entry));
                self.has_begun = true;
                Ok(())
            }
            EntryKind::Record => self.record(entry, place, source, sink),
            EntryKind::Removed | EntryKind::Unindexed => Ok(()),
            _ => self.row(entry, place),
        }
    }

    fn row<S, K>(&mut self, entry: &Entry<'_>, place: Place) -> Result<(), DecodeError<S, K>> {
        let (role, is_known) = self.catalogs.known_role(entry.locator);
        match role {
            Role::Table => {
                let is_watching = self.is_watching;
                let open = self.opened(entry);
                if !is_watching {
                    open.changes.push(Change { place, is_class: false });
                }
                if !is_known && open.unknown.len() < UNKNOWN_MAX {
                    let mut bytes = Vec::new();
                    entry.write(&mut bytes);
                    open.unknown.push((place, bytes));
                }
            }
            Role::Toast(relation) => {
                let is_kept = !self.is_watching && !entry.contents.is_empty();
                let open = self.opened(entry);
                if is_kept {
                    open.chunks.push((relation, place));
                }
            }
            Role::Catalog(catalog) => {
                self.observe(catalog, entry)?;
                let is_watching = self.is_watching;
                let open = self.opened(entry);
                open.catalogs.push(entry.start);
                if catalog == PG_CLASS && !is_watching {
                    open.changes.push(Change { place, is_class: true });
                }
            }
            Role::Other => {}
        }
        Ok(())
    }

    /// The transaction of an entry.
    #[inline]
    fn opened(&mut self, entry: &Entry<'_>) -> &mut Open {
        self.opened_by(entry.xid, entry.start)
    }

    #[inline]
    fn opened_by(&mut self, xid: TransactionId, at: Lsn) -> &mut Open {
        let open = self.open.entry(xid).or_default();
        if !open.first.is_valid() {
            open.first = at;
        }
        open
    }

    fn observe<S, K>(&mut self, catalog: u32, entry: &Entry<'_>) -> Result<(), DecodeError<S, K>> {
        let observed = self.catalogs.observe(catalog, entry);
        observed.map_err(|source| DecodeError::Catalog { at: entry.start, source })
    }

    fn record<S: EntrySource, K: EventSink>(
        &mut self,
        entry: &Entry<'_>,
        place: Place,
        source: &mut S,
        sink: &mut K,
    ) -> Result<(), DecodeError<S::Error, K::Error>> {
        let at = entry.start;
        let raw = entry.record().map_err(|source| DecodeError::Entry { at, source })?;
        let version = self.catalogs.version();
        let record = Record::decode(&raw, version).map_err(|error| broken(at, &error))?;
        let (info, main) = (record.header.info, record.main_data);
        match record.header.rmgr {
            RmgrId::XACT => match info & xact::OPCODE_MASK {
                xact::COMMIT | xact::COMMIT_PREPARED => {
                    let end = End::read(main, info, version).map_err(|error| broken(at, &error))?;
                    self.commit(&record, &end, source, sink)?;
                }
                xact::ABORT | xact::ABORT_PREPARED => {
                    let end = End::read(main, info, version).map_err(|error| broken(at, &error))?;
                    for xid in tree_of(&record, &end) {
                        self.abort(xid);
                    }
                }
                xact::PREPARE => {
                    let prepare =
                        Prepare::read(main, version).map_err(|error| broken(at, &error))?;
                    self.prepared.insert(record.header.xid);
                    self.prepared.extend(prepare.subxacts());
                }
                _ => {}
            },
            RmgrId::DATABASE => {
                let made = database::read_created(record.header.opcode(), main);
                if let Some(directory) = made.map_err(|error| broken(at, &error))? {
                    let mut bytes = Vec::new();
                    entry.write(&mut bytes);
                    self.made.push((record.header.xid, directory, bytes));
                }
            }
            RmgrId::STANDBY => {
                let running = RunningXacts::read(main).map_err(|error| broken(at, &error))?;
                self.end_before(running.oldest_running_xid);
            }
            RmgrId::XLOG if is_a_new_life(record.header.opcode()) => self.end_unprepared(),
            RmgrId::RELMAP if record.header.opcode() == relmap::UPDATE => {
                let map = RelationMap::read(main, version).map_err(|error| broken(at, &error))?;
                self.remap(&map, record.header.xid)?;
            }
            RmgrId::SMGR if record.header.opcode() == smgr::TRUNCATE => {
                let truncate = smgr::Truncate::read(main).map_err(|error| broken(at, &error))?;
                let role = self.catalogs.role(truncate.locator);
                if truncate.blocks == 0 && record.header.xid.is_valid() && role == Role::Table {
                    self.opened(entry).changes.push(Change { place, is_class: false });
                }
            }
            RmgrId::LOGICAL_MESSAGE => {
                let message = Message::read(main).map_err(|error| broken(at, &error))?;
                if message.transactional {
                    self.opened(entry).changes.push(Change { place, is_class: false });
                } else if self.is_telling() {
                    let database = self.catalogs.database_name(message.database, View::now(at));
                    let body = Body::Message {
                        database: &database,
                        transactional: false,
                        prefix: message.prefix,
                        content: message.contents,
                    };
                    tell_alone(at, record.header.xid, body, sink)?;
                }
            }
            RmgrId::SEQUENCE => {
                let row = SequenceRow::read(main).map_err(|error| broken(at, &error))?;
                let relation = self.catalogs.relation(row.locator, View::now(at), false);
                match relation {
                    Some(relation) if self.is_telling() && relation.is_told => {
                        let body = telling::sequence(&relation, row.tuple)
                            .map_err(|reason| broken(at, &reason))?;
                        tell_alone(at, record.header.xid, body, sink)?;
                    }
                    Some(_) => {}
                    // Its file is its maker's own until that commits, whatever becomes of the savepoint
                    // that the record is of; and one that has done nothing else has no number
                    // (`nextval_internal` in `src/backend/commands/sequence.c`).
                    None if self.is_watching => {}
                    None => {
                        let maker = self.catalogs.maker(row.locator).unwrap_or(entry.xid);
                        let change = Change { place, is_class: false };
                        self.opened_by(maker, at).changes.push(change);
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn abort(&mut self, xid: TransactionId) {
        self.open.remove(&xid);
        self.prepared.remove(&xid);
        self.incomplete.remove(&xid);
        self.made.retain(|(by, ..)| *by != xid);
        self.catalogs.abort(xid);
    }

    /// Transactions before `oldest` have ended; those of which no end was seen went with a crash.
    fn end_before(&mut self, oldest: TransactionId) {
        let made = self.made.iter().map(|(xid, ..)| xid);
        let known = self.open.keys().chain(&self.incomplete).chain(made).copied();
        let ended: Vec<_> = known.filter(|xid| xid.precedes(oldest)).collect();
        ended.into_iter().for_each(|xid| self.abort(xid));
    }

    /// The server has started anew: only prepared transactions are left.
    fn end_unprepared(&mut self) {
        let known = self.open.keys().chain(&self.incomplete).copied();
        let ended: Vec<_> = known.filter(|xid| !self.prepared.contains(xid)).collect();
        ended.into_iter().for_each(|xid| self.abort(xid));
    }

    /// A relation map has changed. Rows that came before it, and were taken for a table's, may be a
    /// catalog's: VACUUM FULL of `pg_class` changes its own new file before it says that it is one.
    fn remap<S, K>(
        &mut self,
        map: &RelationMap<'_>,
        xid: TransactionId,
    ) -> Result<(), DecodeError<S, K>> {
        let files = self.catalogs.remap(map);
        let Some(open) = self.open.get_mut(&xid).filter(|_| !files.is_empty()) else {
            return Ok(());
        };
        let unknown = std::mem::take(&mut open.unknown);
        let mut changes = std::mem::take(&mut open.changes);
        for (place, bytes) in unknown {
            let Ok((entry, _)) = Entry::read(&bytes) else { continue };
            let is_new = entry.locator.database == map.database.database
                && files.contains(&entry.locator.relation);
            let Role::Catalog(catalog) = self.catalogs.role(entry.locator) else { continue };
            if !is_new {
                continue;
            }
            self.observe(catalog, &entry)?;
            if let Some(open) = self.open.get_mut(&xid) {
                open.catalogs.push(entry.start);
            }
            if let Ok(at) = changes.binary_search_by_key(&place, |change| change.place) {
                if catalog == PG_CLASS {
                    changes[at].is_class = true;
                } else {
                    changes.remove(at);
                }
            }
        }
        if let Some(open) = self.open.get_mut(&xid) {
            open.changes = changes;
            open.catalogs.sort_unstable();
        }
        Ok(())
    }

    fn commit<S: EntrySource, K: EventSink>(
        &mut self,
        record: &Record<'_>,
        end: &End<'_>,
        source: &mut S,
        sink: &mut K,
    ) -> Result<(), DecodeError<S::Error, K::Error>> {
        let tree = tree_of(record, end);
        let is_telling = self.is_telling();
        let mut done = Open::default();
        for xid in &tree {
            self.prepared.remove(xid);
            self.incomplete.remove(xid);
            self.made.retain(|(by, ..)| by != xid);
            let Some(mut open) = self.open.remove(xid) else { continue };
            if done.changes.is_empty() && done.chunks.is_empty() && done.catalogs.is_empty() {
                done = open;
            } else {
                done.changes.append(&mut open.changes);
                done.chunks.append(&mut open.chunks);
                done.catalogs.append(&mut open.catalogs);
            }
        }
        if tree.len() > 1 {
            done.changes.sort();
            done.catalogs.sort_unstable();
        }
        if is_telling && !done.changes.is_empty() {
            let transaction = telling::Transaction {
                xid: end.twophase_xid.unwrap_or(record.header.xid),
                commit: record.start,
                // A transaction that came from another node committed there.
                time: end.origin.map_or(end.time, |(_, time)| time),
                tree: &tree,
                done: &done,
            };
            let kept = (&mut self.told, &mut self.scratch);
            transaction.tell(&mut self.catalogs, kept, source, sink)?;
        }
        if !done.catalogs.is_empty() || tree.iter().any(|xid| self.catalogs.has_touched(*xid)) {
            self.catalogs.commit(&tree, record.start);
        }
        if self.catalogs.has_history() {
            let first = self.open.values().map(|open| open.first).min();
            self.catalogs.forget(first.unwrap_or(record.end));
        }
        Ok(())
    }
}

/// The transactions that an entry lists.
fn transactions(entry: &Entry<'_>) -> impl Iterator<Item = TransactionId> {
    let xids = entry.contents.chunks_exact(4);
    xids.map(|xid| TransactionId(walfmt::bytes::u32_at(xid, 0)))
}

/// A record after which no transaction of before goes on, but prepared ones.
const fn is_a_new_life(opcode: u8) -> bool {
    matches!(opcode, xlog::CHECKPOINT_SHUTDOWN | xlog::END_OF_RECOVERY)
}

/// The transaction and its subtransactions that share its end, in ascending order.
fn tree_of(record: &Record<'_>, end: &End<'_>) -> Vec<TransactionId> {
    let top = end.twophase_xid.unwrap_or(record.header.xid);
    let mut tree: Vec<_> = std::iter::once(top).chain(end.subxacts()).collect();
    tree.sort_unstable_by_key(|xid| xid.0);
    tree.dedup();
    tree
}

fn broken<S, K>(at: Lsn, reason: &impl fmt::Display) -> DecodeError<S, K> {
    DecodeError::Record { at, reason: reason.to_string() }
}

fn tell_alone<S, K: EventSink>(
    at: Lsn,
    xid: TransactionId,
    body: Body<'_>,
    sink: &mut K,
) -> Result<(), DecodeError<S, K::Error>> {
    let position = Position { commit: at, ordinal: 0 };
    let mut json_common = Vec::new();
    json::common(xid, at, 0, &mut json_common);
    let json_common = &json_common;
    let event = Event { position, lsn: at, xid, commit_time: 0, body, json_common };
    sink.event(&event).map_err(DecodeError::Sink)
}
