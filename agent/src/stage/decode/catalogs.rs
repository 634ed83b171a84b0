//! The catalogs, read from the store at a position where nothing is under way.

use std::collections::HashMap;

use walferry_store::{ReplayError, Rows, Store};
use walfmt::relation::{DatabaseLocator, GLOBAL_TABLESPACE, RelFileLocator};
use walfmt::rmgr::{RmgrId, database, xact};
use walfmt::row::{Entry, EntryKind, flags};
use walfmt::{Lsn, RawRecord, Record, TransactionId, Version};
use walfmt_logical::{CATALOGS, PG_ATTRIBUTE, PG_CLASS, PG_DATABASE};

use crate::trouble::{Kind, Trouble};

/// All catalogs that decoding needs, as entries at `at`, up to where all is applied.
pub(crate) fn load_all(store: &mut Store, at: Lsn) -> Result<Vec<u8>, Trouble> {
    store.settle_files()?;
    let mut loading = Loading { store, at, entries: Vec::new() };
    let shared = DatabaseLocator { tablespace: GLOBAL_TABLESPACE, database: 0 };
    let mapped = loading.map(shared)?;
    for directory in loading.store.databases()? {
        loading.database(directory)?;
    }
    if let Some(file) = mapped.get(&PG_DATABASE) {
        loading.scan(shared, *file, PG_DATABASE, 0)?;
    }
    let prepared = loading.store.prepared();
    loading.transactions(EntryKind::Prepared, &prepared);
    let unfinished = loading.store.unfinished()?;
    loading.transactions(EntryKind::Begin, &unfinished);
    Ok(loading.entries)
}

struct Loading<'a> {
    store: &'a mut Store,
    at: Lsn,
    entries: Vec<u8>,
}

impl Loading<'_> {
    const fn entry(&self, kind: EntryKind, database: u32) -> Entry<'static> {
        let locator = RelFileLocator { tablespace: 0, database, relation: 0 };
        Entry { locator, ..Entry::empty(self.at, kind) }
    }

    fn transactions(&mut self, kind: EntryKind, xids: &[TransactionId]) {
        let contents: Vec<u8> = xids.iter().flat_map(|xid| xid.0.to_le_bytes()).collect();
        Entry { contents: &contents, ..self.entry(kind, 0) }.write(&mut self.entries);
    }

    /// The catalogs that a relation map names, and their files.
    fn map(&mut self, directory: DatabaseLocator) -> Result<HashMap<u32, u32>, ReplayError> {
        let map = self.store.relation_map(directory)?;
        for (catalog, file) in &map {
            let mut entry = self.entry(EntryKind::Mapped, directory.database);
            (entry.locator.relation, entry.block) = (*file, *catalog);
            entry.write(&mut self.entries);
        }
        Ok(map.into_iter().collect())
    }

    fn database(&mut self, directory: DatabaseLocator) -> Result<(), Trouble> {
        let mut files = self.map(directory)?;
        let (Some(attributes), Some(classes)) =
            (files.get(&PG_ATTRIBUTE).copied(), files.get(&PG_CLASS).copied())
        else {
            return Ok(()); // it is just being made, or removed
        };
        // Twice: what columns the catalogs have comes before all else.
        self.scan(directory, attributes, PG_ATTRIBUTE, flags::COLUMNS_ONLY)?;
        self.scan(directory, attributes, PG_ATTRIBUTE, 0)?;
        let begun = self.entries.len();
        self.scan(directory, classes, PG_CLASS, 0)?;
        files.extend(files_of(&self.entries[begun..])?);
        for catalog in CATALOGS {
            if let Some(file) = files.get(&catalog)
                && !matches!(catalog, PG_ATTRIBUTE | PG_CLASS | PG_DATABASE)
            {
                self.scan(directory, *file, catalog, 0)?;
            }
        }
        Ok(())
    }

    fn scan(
        &mut self,
        directory: DatabaseLocator,
        file: u32,
        catalog: u32,
        flags: u8,
    ) -> Result<(), ReplayError> {
        let DatabaseLocator { tablespace, database } = directory;
        let empty = self.entry(EntryKind::Loaded, database);
        let Self { store, entries, .. } = self;
        let locator = RelFileLocator { tablespace, database, relation: file };
        store.scan(locator, |row| {
            let mut entry = Entry { flags, contents: row.contents, ..empty };
            entry.locator = RelFileLocator { relation: catalog, ..locator };
            entry.xid = row.inserting.unwrap_or(TransactionId::INVALID);
            entry.block = row.deleting.map_or(0, |xid| xid.0);
            entry.write(entries);
        })
    }
}

/// The files of the catalogs that have theirs in `pg_class`: `oid` is its first column, `relfilenode`
/// the eighth, behind a name and six OIDs in all majors.
fn files_of(mut entries: &[u8]) -> Result<Vec<(u32, u32)>, Trouble> {
    const RELFILENODE: usize = 4 + 64 + 5 * 4;
    let mut files = Vec::new();
    while !entries.is_empty() {
        let broken = |error| Trouble::new(Kind::Corrupt, format_args!("pg_class: {error}"));
        let (entry, rest) = Entry::read(entries).map_err(broken)?;
        let tuple = entry.tuple().map_err(broken)?;
        let data = walfmt_logical::tuple::user_data(&tuple);
        let data = data.map_err(|error| Trouble::new(Kind::Corrupt, format_args!("{error}")))?;
        let oid = walfmt::bytes::u32_at(data, 0);
        let file = walfmt::bytes::u32_at(data, RELFILENODE);
        if CATALOGS.contains(&oid) && file != 0 {
            files.push((oid, file));
        }
        entries = rest;
    }
    Ok(files)
}

/// Watches for databases that are made while rows are captured.
#[derive(Default)]
pub(crate) struct Watch {
    /// Those whose transaction has not ended.
    made: HashMap<TransactionId, Vec<DatabaseLocator>>,
}

impl Watch {
    /// Goes on with those that are known already.
    pub(crate) fn of(made: impl IntoIterator<Item = (TransactionId, DatabaseLocator)>) -> Self {
        let mut watch = Self::default();
        for (xid, directory) in made {
            watch.made.entry(xid).or_default().push(directory);
        }
        watch
    }

    /// Looks at a record that was given to the store; loads the catalogs of a database when the
    /// transaction that has made it commits: nobody can have changed them before.
    pub(crate) fn observe(
        &mut self,
        raw: &RawRecord<'_>,
        version: &'static Version,
        store: &mut Store,
        rows: &Rows,
    ) -> Result<(), Trouble> {
        let is_database = raw.header.rmgr == RmgrId::DATABASE;
        if !is_database && (self.made.is_empty() || raw.header.rmgr != RmgrId::XACT) {
            return Ok(());
        }
        let broken = |error: &dyn std::fmt::Display| {
            Trouble::new(Kind::Corrupt, format_args!("record at {}: {error}", raw.start))
        };
        let record = Record::decode(raw, version).map_err(|error| broken(&error))?;
        if is_database {
            let made = database::read_created(record.header.opcode(), record.main_data)
                .map_err(|error| broken(&error))?;
            if let Some(directory) = made {
                let of_xid = self.made.entry(record.header.xid).or_default();
                if !of_xid.contains(&directory) {
                    of_xid.push(directory);
                }
            }
            return Ok(());
        }
        match record.header.info & xact::OPCODE_MASK {
            xact::ABORT => drop(self.made.remove(&record.header.xid)),
            xact::COMMIT => {
                for directory in self.made.remove(&record.header.xid).unwrap_or_default() {
                    store.settle_files()?;
                    let mut loading = Loading { store, at: raw.end, entries: Vec::new() };
                    let begin = loading.entry(EntryKind::Database, directory.database);
                    begin.write(&mut loading.entries);
                    loading.database(directory)?;
                    let entries = loading.entries;
                    super::tell_files(&entries, version, rows)?;
                    store.put_rows(&entries);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
