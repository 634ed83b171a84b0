//! The catalogs as the stream of rows itself tells them: which relation a file belongs to, and what
//! its columns are, as of any record that may still be decoded.
//!
//! ```text
//! loaded rows, rows of catalogs ─► versions by (database, key): created, deleted: always
//!                                                                                 pending, by xid
//!                                                                                 committed, at LSN
//! relation(file, as a record's transaction saw it) ─► Relation: name, columns, types
//! ```
//!
//! A transaction's rows are decoded when it commits; only then it is known which subtransactions were
//! its own. So all versions are kept that a transaction may still ask for which has begun. What it
//! sees is what its own records said before, and what was committed before that record: as
//! PostgreSQL's historic snapshots (`src/backend/replication/logical/snapbuild.c`).

mod rows;
mod versions;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use walfmt::rmgr::heap::TupleImage;
use walfmt::rmgr::relmap::RelationMap;
use walfmt::row::{Entry, EntryKind, flags};
use walfmt::{Lsn, RelFileLocator, TransactionId, Version};

pub(crate) use self::rows::AttributeRow;
pub use self::rows::{CATALOGS, CatalogError, PG_ATTRIBUTE, PG_CLASS, PG_DATABASE};
use self::rows::{Class, Columns, DatabaseRow, EnumRow, IndexRow, NamespaceRow, TypeRow};
use self::rows::{PG_ENUM, PG_INDEX, PG_NAMESPACE, PG_TYPE};
pub(crate) use self::versions::View;
use self::versions::{Versions, When};
use crate::json;
use crate::relation::{Column, Relation};
use crate::value::{Align, Kind, Type};

/// The first OID that no catalog has (`FirstUnpinnedObjectId`).
const FIRST_UNPINNED_OID: u32 = 12000;
/// `PG_TOAST_NAMESPACE`: TOAST relations and their indexes.
const PG_TOAST_NAMESPACE: u32 = 99;
/// A domain over a domain, or an array of arrays, no deeper than this.
const TYPE_DEPTH_MAX: usize = 32;
/// `array_subscript_handler`: what makes a type with elements an array.
const ARRAY_SUBSCRIPT_HANDLER: u32 = 6179;

/// What the rows of a file are to decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Rows of a catalog that is read here.
    Catalog(u32),
    /// Chunks of long values; of the TOAST relation with this OID.
    Toast(u32),
    /// Rows of a table, as far as is known.
    Table,
    /// Nothing that anybody is told of: other catalogs.
    Other,
}

/// The catalogs of all databases.
#[derive(Debug)]
pub(crate) struct Catalogs {
    version: &'static Version,
    columns: Columns,
    classes: Versions<(u32, u32), Class>,
    attributes: Versions<(u32, u32, i16), AttributeRow>,
    types: Versions<(u32, u32), TypeRow>,
    enums: Versions<(u32, u32, u32), EnumRow>,
    namespaces: Versions<(u32, u32), NamespaceRow>,
    indexes: Versions<(u32, u32, u32), IndexRow>,
    databases: Versions<u32, DatabaseRow>,
    /// Which classes have, had, or may get the file: by database and file number.
    files: HashMap<(u32, u32), Vec<u32>>,
    /// Catalogs whose files a relation map names: by database and file number.
    mapped: HashMap<(u32, u32), u32>,
    /// What transactions that have not ended have changed.
    touched: HashMap<TransactionId, BTreeSet<Key>>,
    /// Rows with deleted versions that somebody may still ask for.
    dying: BTreeSet<Key>,
    /// The commits that have changed catalogs and that somebody may still have to tell apart.
    changes: VecDeque<Lsn>,
    /// Whether somebody asks for the next.
    notes_files: bool,
    /// Files that classes were given since this was last asked, and whether they are of TOAST relations or
    /// their indexes.
    new_files: Vec<(u32, u32, bool)>,
    /// How many there were before these.
    changes_before: u64,
    roles: HashMap<(u32, u32), Role, foldhash::fast::RandomState>,
    relations: HashMap<RelFileLocator, (u64, Arc<Relation>), foldhash::fast::RandomState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Class(u32, u32),
    Attribute(u32, u32, i16),
    Type(u32, u32),
    Enum(u32, u32, u32),
    Namespace(u32, u32),
    Index(u32, u32, u32),
    Database(u32),
}

impl Catalogs {
    pub(crate) fn new(version: &'static Version) -> Self {
        Self {
            version,
            columns: Columns::new(version),
            classes: Versions::default(),
            attributes: Versions::default(),
            types: Versions::default(),
            enums: Versions::default(),
            namespaces: Versions::default(),
            indexes: Versions::default(),
            databases: Versions::default(),
            files: HashMap::new(),
            mapped: HashMap::new(),
            touched: HashMap::new(),
            dying: BTreeSet::new(),
            changes: VecDeque::new(),
            changes_before: 0,
            notes_files: false,
            new_files: Vec::new(),
            roles: HashMap::default(),
            relations: HashMap::default(),
        }
    }

    /// The same, for who asks for [`take_new_files`](Self::take_new_files).
    pub(crate) fn noting_files(version: &'static Version) -> Self {
        Self { notes_files: true, ..Self::new(version) }
    }

    /// A catalog's rows are in this file.
    pub(crate) fn map(&mut self, database: u32, file: u32, catalog: u32) {
        self.mapped.insert((database, file), catalog);
        self.roles.clear();
    }

    /// A relation map has changed. Gives the files it names that were not known.
    pub(crate) fn remap(&mut self, map: &RelationMap<'_>) -> Vec<u32> {
        let database = map.database.database;
        let mut new = Vec::new();
        for (catalog, file) in map.mappings() {
            if self.mapped.insert((database, file), catalog) != Some(catalog) {
                new.push(file);
            }
        }
        self.roles.clear();
        new
    }

    /// What the rows of a file are.
    #[inline]
    pub(crate) fn role(&mut self, locator: RelFileLocator) -> Role {
        self.known_role(locator).0
    }

    /// What the rows of a file are, and whether some class or relation map has named it.
    #[inline]
    pub(crate) fn known_role(&mut self, locator: RelFileLocator) -> (Role, bool) {
        let key = (locator.database, locator.relation);
        match self.roles.get(&key) {
            Some(role) => (*role, true),
            None => {
                let role = self.find_role(key);
                // A table that is not known may be known at the next row.
                let is_known = role != Role::Table || self.files.contains_key(&key);
                if is_known {
                    self.roles.insert(key, role);
                }
                (role, is_known)
            }
        }
    }

    fn find_role(&self, (database, file): (u32, u32)) -> Role {
        let catalog = self.mapped.get(&(database, file)).copied();
        if let Some(catalog) = catalog {
            return if CATALOGS.contains(&catalog) { Role::Catalog(catalog) } else { Role::Other };
        }
        let classes = self.files.get(&(database, file)).into_iter().flatten();
        let mut classes = classes.filter_map(|oid| self.classes.newest((database, *oid)));
        match classes.next_back() {
            // Whoever is rewritten takes over the rows of the one that is written.
            Some(class) if class.rewrite != 0 && CATALOGS.contains(&class.rewrite) => Role::Other,
            Some(class) if CATALOGS.contains(&class.oid) => Role::Catalog(class.oid),
            Some(class) if class.oid < FIRST_UNPINNED_OID => Role::Other,
            Some(class) if class.kind == b't' => Role::Toast(class.oid),
            _ => Role::Table,
        }
    }

    /// A row of a catalog: as it was loaded, or has changed.
    pub(crate) fn observe(&mut self, catalog: u32, entry: &Entry<'_>) -> Result<(), CatalogError> {
        let pending = |xid| When::Pending { xid, lsn: entry.start };
        let tuple = entry.tuple().map_err(|_| CatalogError::Column { catalog, column: "row" })?;
        let database = if catalog == PG_DATABASE { 0 } else { entry.locator.database };
        match entry.kind {
            EntryKind::Loaded if entry.flags & flags::COLUMNS_ONLY != 0 => {
                self.columns.learn(&tuple)
            }
            EntryKind::Loaded => {
                let inserting = entry.xid.is_valid();
                let created = if inserting { pending(entry.xid) } else { When::Always };
                self.learn(catalog, database, (&tuple, entry.contents), Some(created), None)?;
                if entry.block != 0 {
                    let deleted = pending(TransactionId(entry.block));
                    self.learn(catalog, database, (&tuple, entry.contents), None, Some(deleted))?;
                }
                Ok(())
            }
            EntryKind::UpdatedFrom | EntryKind::Deleted => self.learn(
                catalog,
                database,
                (&tuple, entry.contents),
                None,
                Some(pending(entry.xid)),
            ),
            EntryKind::Inserted | EntryKind::UpdatedTo => self.learn(
                catalog,
                database,
                (&tuple, entry.contents),
                Some(pending(entry.xid)),
                None,
            ),
            _ => Ok(()),
        }
    }

    fn learn(
        &mut self,
        catalog: u32,
        db: u32,
        (tuple, contents): (&TupleImage<'_>, &[u8]),
        created: Option<When>,
        deleted: Option<When>,
    ) -> Result<(), CatalogError> {
        /// One version more, or one fewer.
        fn apply<K: Ord + Copy, V>(
            versions: &mut Versions<K, V>,
            key: K,
            (row, contents): (V, &[u8]),
            created: Option<When>,
            deleted: Option<When>,
        ) {
            if let Some(when) = deleted {
                versions.delete(key, when);
            }
            if let Some(when) = created {
                versions.insert(key, row, contents, when);
            }
        }
        let key = match catalog {
            PG_CLASS => {
                let row = self.columns.class(tuple)?;
                let (oid, file) = (row.oid, (db, row.filenode));
                if self.notes_files && created.is_some() && row.filenode != 0 {
                    self.new_files.push((file.0, file.1, row.namespace == PG_TOAST_NAMESPACE));
                }
                if created.is_some() && row.filenode != 0 {
                    let classes = self.files.entry(file).or_default();
                    classes.retain(|class| *class != oid);
                    classes.push(oid);
                    self.roles.remove(&file);
                }
                apply(&mut self.classes, (db, oid), (row, contents), created, deleted);
                Key::Class(db, oid)
            }
            PG_ATTRIBUTE => {
                let row = self.columns.attribute(tuple)?;
                let (relation, number) = (row.relation, row.number);
                if number <= 0 {
                    return Ok(()); // system columns
                }
                apply(
                    &mut self.attributes,
                    (db, relation, number),
                    (row, contents),
                    created,
                    deleted,
                );
                Key::Attribute(db, relation, number)
            }
            PG_TYPE => {
                let row = self.columns.type_row(tuple)?;
                let oid = row.oid;
                apply(&mut self.types, (db, oid), (row, contents), created, deleted);
                Key::Type(db, oid)
            }
            PG_ENUM => {
                let row = self.columns.enum_row(tuple)?;
                let (oid, of) = (row.oid, row.type_oid);
                apply(&mut self.enums, (db, of, oid), (row, contents), created, deleted);
                Key::Enum(db, of, oid)
            }
            PG_NAMESPACE => {
                let row = self.columns.namespace(tuple)?;
                let oid = row.oid;
                apply(&mut self.namespaces, (db, oid), (row, contents), created, deleted);
                Key::Namespace(db, oid)
            }
            PG_INDEX => {
                let row = self.columns.index(tuple)?;
                let (index, of) = (row.index, row.relation);
                apply(&mut self.indexes, (db, of, index), (row, contents), created, deleted);
                Key::Index(db, of, index)
            }
            PG_DATABASE => {
                let row = self.columns.database(tuple)?;
                let oid = row.oid;
                apply(&mut self.databases, oid, (row, contents), created, deleted);
                Key::Database(oid)
            }
            _ => return Ok(()),
        };
        for when in [created, deleted].into_iter().flatten() {
            if let When::Pending { xid, .. } = when {
                self.touched.entry(xid).or_default().insert(key);
            }
        }
        Ok(())
    }

    /// Whether the transaction has changed catalogs.
    pub(crate) fn has_touched(&self, xid: TransactionId) -> bool {
        self.touched.contains_key(&xid)
    }

    /// The transaction's changes are everybody's.
    pub(crate) fn commit(&mut self, tree: &[TransactionId], lsn: Lsn) {
        let mut any = false;
        for xid in tree {
            for key in self.touched.remove(xid).unwrap_or_default() {
                any = true;
                self.dying.insert(key);
                match key {
                    Key::Class(db, oid) => self.classes.commit((db, oid), *xid, lsn),
                    Key::Attribute(db, of, at) => self.attributes.commit((db, of, at), *xid, lsn),
                    Key::Type(db, oid) => self.types.commit((db, oid), *xid, lsn),
                    Key::Enum(db, of, oid) => self.enums.commit((db, of, oid), *xid, lsn),
                    Key::Namespace(db, oid) => self.namespaces.commit((db, oid), *xid, lsn),
                    Key::Index(db, of, oid) => self.indexes.commit((db, of, oid), *xid, lsn),
                    Key::Database(oid) => self.databases.commit(oid, *xid, lsn),
                }
            }
        }
        if any {
            self.changes.push_back(lsn);
        }
    }

    /// The transaction's changes never were.
    pub(crate) fn abort(&mut self, xid: TransactionId) {
        for key in self.touched.remove(&xid).unwrap_or_default() {
            match key {
                Key::Class(db, oid) => {
                    let file = self.classes.newest((db, oid)).map(|class| class.filenode);
                    self.classes.abort((db, oid), xid);
                    if let Some(file) = file {
                        forget_file(&mut self.files, &self.classes, db, oid, file);
                    }
                }
                Key::Attribute(db, of, at) => self.attributes.abort((db, of, at), xid),
                Key::Type(db, oid) => self.types.abort((db, oid), xid),
                Key::Enum(db, of, oid) => self.enums.abort((db, of, oid), xid),
                Key::Namespace(db, oid) => self.namespaces.abort((db, oid), xid),
                Key::Index(db, of, oid) => self.indexes.abort((db, of, oid), xid),
                Key::Database(oid) => self.databases.abort(oid, xid),
            }
        }
        self.roles.clear();
    }

    /// Whether there is anything that could be forgotten.
    pub(crate) fn has_history(&self) -> bool {
        !self.changes.is_empty()
    }

    /// The name of a database; its OID, if it has none.
    pub(crate) fn database_name(&self, database: u32, view: View<'_>) -> Box<str> {
        let row = self.databases.get(database, view);
        row.map_or_else(|| database.to_string().into(), |row| row.name.clone())
    }

    /// Nobody asks as of records before `horizon` any more.
    pub(crate) fn forget(&mut self, horizon: Lsn) {
        if self.changes.front().is_none_or(|first| *first >= horizon) {
            return;
        }
        while self.changes.front().is_some_and(|first| *first < horizon) {
            self.changes.pop_front();
            self.changes_before += 1;
        }
        let Self {
            classes, attributes, types, enums, namespaces, indexes, databases, files, ..
        } = self;
        self.dying.retain(|key| match *key {
            Key::Class(db, oid) => {
                let mut freed = Vec::new();
                let left = classes.forget((db, oid), horizon, |class| freed.push(class.filenode));
                freed.iter().for_each(|file| forget_file(files, classes, db, oid, *file));
                left
            }
            Key::Attribute(db, of, at) => attributes.forget((db, of, at), horizon, |_| ()),
            Key::Type(db, oid) => types.forget((db, oid), horizon, |_| ()),
            Key::Enum(db, of, oid) => enums.forget((db, of, oid), horizon, |_| ()),
            Key::Namespace(db, oid) => namespaces.forget((db, oid), horizon, |_| ()),
            Key::Index(db, of, oid) => indexes.forget((db, of, oid), horizon, |_| ()),
            Key::Database(oid) => databases.forget(oid, horizon, |_| ()),
        });
        self.roles.clear();
        let epochs = self.changes_before;
        self.relations.retain(|_, (epoch, _)| *epoch >= epochs);
    }

    /// A database is gone, or made anew.
    pub(crate) fn forget_database(&mut self, database: u32) {
        self.classes.retain(|key| key.0 != database);
        self.attributes.retain(|key| key.0 != database);
        self.types.retain(|key| key.0 != database);
        self.enums.retain(|key| key.0 != database);
        self.namespaces.retain(|key| key.0 != database);
        self.indexes.retain(|key| key.0 != database);
        self.files.retain(|key, _| key.0 != database);
        self.mapped.retain(|key, _| key.0 != database);
        self.roles.clear();
        self.relations.clear();
    }

    /// How many commits before this record have changed catalogs.
    pub(crate) fn epoch(&self, at: Lsn) -> u64 {
        let before = match self.changes.back() {
            Some(last) if *last >= at => self.changes.partition_point(|change| *change < at),
            _ => self.changes.len(),
        };
        self.changes_before + before as u64
    }

    /// The relation that a file belongs to. `is_own` says that the transaction has changed catalogs
    /// itself.
    pub(crate) fn relation(
        &mut self,
        locator: RelFileLocator,
        view: View<'_>,
        is_own: bool,
    ) -> Option<Arc<Relation>> {
        if is_own {
            return self.build(locator, view).map(Arc::new);
        }
        let epoch = self.epoch(view.at);
        if let Some((built, relation)) = self.relations.get(&locator)
            && *built == epoch
        {
            return Some(Arc::clone(relation));
        }
        let relation = Arc::new(self.build(locator, view)?);
        self.relations.insert(locator, (epoch, Arc::clone(&relation)));
        Some(relation)
    }

    fn class_of(&self, locator: RelFileLocator, view: View<'_>) -> Option<&Class> {
        let db = locator.database;
        let classes = self.files.get(&(db, locator.relation))?;
        let mut classes = classes.iter().rev().filter_map(|oid| self.classes.get((db, *oid), view));
        classes.find(|class| {
            class.filenode == locator.relation
                && (class.tablespace == 0 || class.tablespace == locator.tablespace)
        })
    }

    /// Whether the transaction itself has begun this file.
    pub(crate) fn is_own_file(&self, locator: RelFileLocator, view: View<'_>) -> bool {
        let (db, file) = (locator.database, locator.relation);
        let classes = self.files.get(&(db, file)).into_iter().flatten();
        classes
            .into_iter()
            .any(|oid| self.classes.is_own((db, *oid), view, |class| class.filenode == file))
    }

    /// The transaction, a subtransaction for itself, that has begun this file and not ended.
    pub(crate) fn maker(&self, locator: RelFileLocator) -> Option<TransactionId> {
        let (db, file) = (locator.database, locator.relation);
        let mut classes = self.files.get(&(db, file)).into_iter().flatten();
        classes.find_map(|oid| self.classes.maker((db, *oid), |class| class.filenode == file))
    }

    /// Both versions of a row of `pg_class`, if it is a table whose file was replaced by an empty one:
    /// TRUNCATE. A rewritten table's new file has been another relation's until then.
    pub(crate) fn truncated(
        &self,
        old: &Entry<'_>,
        new: &Entry<'_>,
        view: View<'_>,
    ) -> Result<Option<RelFileLocator>, CatalogError> {
        let row = |entry: &Entry<'_>| {
            let bad = CatalogError::Column { catalog: PG_CLASS, column: "row" };
            entry.tuple().map_err(|_| bad).and_then(|tuple| self.columns.class(&tuple))
        };
        let (before, after) = (row(old)?, row(new)?);
        let db = old.locator.database;
        let is_new_file = before.filenode != after.filenode
            && before.filenode != 0
            && after.filenode != 0
            && before.tablespace == after.tablespace
            && before.persistence == after.persistence
            && before.rewrite == 0
            && after.kind == b'r'
            && after.persistence == b'p'
            && after.oid >= FIRST_UNPINNED_OID;
        let classes = self.files.get(&(db, after.filenode)).into_iter().flatten();
        let is_anothers = || {
            let others = classes.into_iter().filter(|oid| **oid != after.oid);
            let mut others = others.filter_map(|oid| self.classes.get((db, *oid), view));
            others.any(|other| other.filenode == after.filenode)
        };
        if !is_new_file || is_anothers() {
            return Ok(None);
        }
        let tablespace = old.locator.tablespace;
        let tablespace = if before.tablespace == 0 { tablespace } else { before.tablespace };
        Ok(Some(RelFileLocator { tablespace, database: db, relation: before.filenode }))
    }

    fn build(&self, locator: RelFileLocator, view: View<'_>) -> Option<Relation> {
        let db = locator.database;
        let class = self.class_of(locator, view)?;
        let namespace = self.namespaces.get((db, class.namespace), view);
        let attributes =
            self.attributes.range((db, class.oid, 1)..=(db, class.oid, i16::MAX), view);
        let columns = attributes.map(|(_, row)| self.column(db, row, view)).collect();
        let schema: Box<str> = namespace.map_or_else(|| "?".into(), |row| row.name.clone());
        Some(Relation {
            json_names: json::names(&schema, &class.name),
            database: self.database_name(db, view),
            database_oid: db,
            schema,
            name: class.name.clone(),
            oid: class.oid,
            is_told: matches!(class.kind, b'r' | b'm' | b'S')
                && class.persistence == b'p'
                && class.rewrite == 0
                && class.oid >= FIRST_UNPINNED_OID,
            columns,
        })
    }

    fn column(&self, db: u32, row: &AttributeRow, view: View<'_>) -> Column {
        let ty = if row.is_dropped {
            Arc::new(raw_type(row.type_oid, row.shape.length, row.shape.align))
        } else {
            self.type_of(db, row.type_oid, view, TYPE_DEPTH_MAX)
        };
        Column::new(&row.name, ty, row.shape, row)
    }

    fn type_of(&self, db: u32, oid: u32, view: View<'_>, depth: usize) -> Arc<Type> {
        let Some(row) = self.types.get((db, oid), view).filter(|_| depth > 0) else {
            return Arc::new(raw_type(oid, -1, Align::Int));
        };
        let schema = self.namespaces.get((db, row.namespace), view);
        let builtin = Kind::of_builtin(oid);
        let kind = match (builtin, row.kind) {
            (builtin @ Kind::Builtin(_), _) => builtin,
            (_, b'e') => {
                let labels = self.enums.range((db, oid, 0)..=(db, oid, u32::MAX), view);
                let labels: BTreeMap<_, _> =
                    labels.map(|(_, row)| (row.oid, row.label.clone())).collect();
                Kind::Enum(Arc::new(labels))
            }
            (_, b'd') => Kind::Domain(self.type_of(db, row.base, view, depth - 1)),
            (_, b'b') if row.element != 0 && row.subscript == ARRAY_SUBSCRIPT_HANDLER => {
                Kind::Array(self.type_of(db, row.element, view, depth - 1))
            }
            _ => Kind::Raw,
        };
        Arc::new(Type {
            oid,
            schema: schema.map_or_else(|| "?".into(), |schema| schema.name.clone()),
            name: row.name.clone(),
            length: row.shape.length,
            align: row.shape.align,
            delimiter: row.delimiter,
            kind,
        })
    }

    /// The databases, as everybody sees them at the end: OID and default tablespace.
    pub(crate) fn databases(&self) -> impl Iterator<Item = (u32, u32)> {
        let view = View { at: Lsn(u64::MAX), tree: &[] };
        self.databases.range(.., view).map(|(oid, row)| (oid, row.tablespace))
    }

    /// The files of a TOAST relation and of its index, as they are now.
    pub(crate) fn toast_files(
        &self,
        database: u32,
        relation: u32,
    ) -> Option<(RelFileLocator, RelFileLocator)> {
        let default = self.databases.newest(database)?.tablespace;
        let file = |oid| {
            let class = self.classes.newest((database, oid))?;
            let tablespace = if class.tablespace == 0 { default } else { class.tablespace };
            Some(RelFileLocator { tablespace, database, relation: class.filenode })
        };
        let keys = (database, relation, 0)..=(database, relation, u32::MAX);
        // REINDEX CONCURRENTLY makes another, fills it, and leaves it behind if it fails
        // (`toast_open_indexes` in `src/backend/access/common/toast_internals.c`).
        let (_, index) = self.indexes.living_values(keys).filter(|(_, row)| row.is_valid).last()?;
        Some((file(relation)?, file(index.index)?))
    }

    /// The files that classes were given since this was last asked: database and file number, and whether
    /// it is of a TOAST relation or its index.
    pub(crate) fn take_new_files(&mut self) -> Vec<(u32, u32, bool)> {
        std::mem::take(&mut self.new_files)
    }

    /// Writes down all that is known, as it was loaded once, as of `at`.
    pub(crate) fn write(&self, at: Lsn, out: &mut Vec<u8>) {
        let mut entry = Entry::empty(at, EntryKind::Mapped);
        let mut mapped: Vec<_> = self.mapped.iter().collect();
        mapped.sort_unstable();
        for ((database, file), catalog) in mapped {
            entry.locator = RelFileLocator { tablespace: 0, database: *database, relation: *file };
            entry.block = *catalog;
            entry.write(out);
        }
        let mut put = |catalog, flags, database, row: (&[u8], TransactionId, TransactionId)| {
            let (contents, created, deleted) = row;
            let locator = RelFileLocator { tablespace: 0, database, relation: catalog };
            let (kind, block) = (EntryKind::Loaded, deleted.0);
            Entry { kind, locator, xid: created, block, flags, contents, ..entry }.write(out);
        };
        for (key, contents, created, deleted) in self.attributes.living(..) {
            if CATALOGS.contains(&key.1) && deleted == TransactionId::INVALID {
                put(PG_ATTRIBUTE, flags::COLUMNS_ONLY, key.0, (contents, created, deleted));
            }
        }
        for (key, contents, created, deleted) in self.attributes.living(..) {
            put(PG_ATTRIBUTE, 0, key.0, (contents, created, deleted));
        }
        for (key, contents, created, deleted) in self.classes.living(..) {
            put(PG_CLASS, 0, key.0, (contents, created, deleted));
        }
        for (key, contents, created, deleted) in self.types.living(..) {
            put(PG_TYPE, 0, key.0, (contents, created, deleted));
        }
        for (key, contents, created, deleted) in self.enums.living(..) {
            put(PG_ENUM, 0, key.0, (contents, created, deleted));
        }
        for (key, contents, created, deleted) in self.namespaces.living(..) {
            put(PG_NAMESPACE, 0, key.0, (contents, created, deleted));
        }
        for (key, contents, created, deleted) in self.indexes.living(..) {
            put(PG_INDEX, 0, key.0, (contents, created, deleted));
        }
        for (_, contents, created, deleted) in self.databases.living(..) {
            put(PG_DATABASE, 0, 0, (contents, created, deleted));
        }
    }

    /// The major whose catalogs these are.
    pub(crate) const fn version(&self) -> &'static Version {
        self.version
    }
}

/// The class has no version left with this file.
fn forget_file(
    files: &mut HashMap<(u32, u32), Vec<u32>>,
    classes: &Versions<(u32, u32), Class>,
    database: u32,
    oid: u32,
    file: u32,
) {
    if !classes.any((database, oid), |class| class.filenode == file)
        && let Some(of_file) = files.get_mut(&(database, file))
    {
        of_file.retain(|class| *class != oid);
        if of_file.is_empty() {
            files.remove(&(database, file));
        }
    }
}

fn raw_type(oid: u32, length: i16, align: Align) -> Type {
    Type {
        oid,
        schema: "?".into(),
        name: oid.to_string().into(),
        length,
        align,
        delimiter: b',',
        kind: Kind::Raw,
    }
}
