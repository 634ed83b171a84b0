//! Rows of the catalogs that decoding needs.
//!
//! Which columns a catalog has is in `pg_attribute`, also for itself. So all that is known here are
//! names of columns, and of `pg_attribute` the few columns with which the reading begins: they differ
//! between majors.
//!
//! Rules: `src/include/catalog/pg_attribute.h`, `pg_class.h`, `pg_type.h`, `pg_enum.h`,
//! `pg_namespace.h`, `pg_index.h`, `pg_database.h`.

use std::collections::BTreeMap;

use walfmt::Version;
use walfmt::bytes::{u16_at, u32_at};
use walfmt::rmgr::heap::TupleImage;

use crate::tuple::{Attribute, Shape, TupleError, deform, user_data};
use crate::value::varlena::{PAYLOAD_BYTES_MAX, Varlena};
use crate::value::{Align, VarlenaError};

/// `TypeRelationId`.
pub(super) const PG_TYPE: u32 = 1247;
/// `AttributeRelationId`.
pub const PG_ATTRIBUTE: u32 = 1249;
/// `RelationRelationId`.
pub const PG_CLASS: u32 = 1259;
/// `DatabaseRelationId`.
pub const PG_DATABASE: u32 = 1262;
/// `NamespaceRelationId`.
pub(super) const PG_NAMESPACE: u32 = 2615;
/// `IndexRelationId`.
pub(super) const PG_INDEX: u32 = 2610;
/// `EnumRelationId`.
pub(super) const PG_ENUM: u32 = 3501;

/// The catalogs that are read, in the order in which they must be loaded.
pub const CATALOGS: [u32; 7] =
    [PG_ATTRIBUTE, PG_CLASS, PG_TYPE, PG_ENUM, PG_NAMESPACE, PG_INDEX, PG_DATABASE];

/// A catalog's row that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CatalogError {
    /// The tuple is broken.
    #[error("catalog {catalog}: {source}")]
    Tuple {
        /// Its OID.
        catalog: u32,
        /// What is wrong.
        source: TupleError,
    },
    /// It has no such column, or null there.
    #[error("catalog {catalog} has no {column}")]
    Column {
        /// Its OID.
        catalog: u32,
        /// Which column.
        column: &'static str,
    },
    /// A value that cannot be.
    #[error("{column} cannot be {found}")]
    Value {
        /// Which column.
        column: &'static str,
        /// What it is.
        found: i64,
    },
    /// A varlena in it is broken.
    #[error("{column}: {source}")]
    Varlena {
        /// Which column.
        column: &'static str,
        /// What is wrong.
        source: VarlenaError,
    },
    /// A catalog that must be loaded before.
    #[error("columns of catalog {catalog} are not known yet")]
    Unknown {
        /// Its OID.
        catalog: u32,
    },
}

/// A row of `pg_class`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    pub(crate) oid: u32,
    pub(crate) name: Box<str>,
    pub(crate) namespace: u32,
    pub(crate) filenode: u32,
    pub(crate) tablespace: u32,
    pub(crate) persistence: u8,
    pub(crate) kind: u8,
    /// The table that this one takes the place of, if it is being rewritten.
    pub(crate) rewrite: u32,
}

/// A row of `pg_attribute`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AttributeRow {
    pub(crate) relation: u32,
    pub(crate) number: i16,
    pub(crate) name: Box<str>,
    pub(crate) type_oid: u32,
    pub(crate) shape: Shape,
    pub(crate) is_dropped: bool,
    /// `attgenerated`: 0, `s` for stored, `v` for virtual.
    pub(crate) generated: u8,
    /// `attmissingval` as an attribute of the type, a varlena with its header.
    pub(crate) missing: Option<Box<[u8]>>,
}

/// A row of `pg_type`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TypeRow {
    pub(crate) oid: u32,
    pub(crate) name: Box<str>,
    pub(crate) namespace: u32,
    pub(crate) shape: Shape,
    pub(crate) kind: u8,
    pub(crate) delimiter: u8,
    pub(crate) subscript: u32,
    pub(crate) element: u32,
    pub(crate) base: u32,
}

/// A row of `pg_enum`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct EnumRow {
    pub(crate) oid: u32,
    pub(crate) type_oid: u32,
    pub(crate) label: Box<str>,
}

/// A row of `pg_namespace`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NamespaceRow {
    pub(crate) oid: u32,
    pub(crate) name: Box<str>,
}

/// A row of `pg_index`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct IndexRow {
    pub(crate) index: u32,
    pub(crate) relation: u32,
    /// It has all that it should, and is kept up to date.
    pub(crate) is_valid: bool,
}

/// A row of `pg_database`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct DatabaseRow {
    pub(crate) oid: u32,
    pub(crate) name: Box<str>,
    pub(crate) tablespace: u32,
}

/// The catalogs' own columns.
#[derive(Clone, Debug)]
pub(crate) struct Columns {
    /// By catalog, and number: name and shape.
    catalogs: BTreeMap<u32, BTreeMap<i16, (Box<str>, Shape)>>,
    /// The first columns of `pg_attribute`.
    first: &'static [(&'static str, Shape)],
}

const OID: Shape = Shape { length: 4, align: Align::Int };
const NAME: Shape = Shape { length: 64, align: Align::Char };
const INT2: Shape = Shape { length: 2, align: Align::Short };
const INT4: Shape = OID;
const CHAR: Shape = Shape { length: 1, align: Align::Char };

/// Up to 15.
const FIRST_15: &[(&str, Shape)] = &[
    ("attrelid", OID),
    ("attname", NAME),
    ("atttypid", OID),
    ("attstattarget", INT4),
    ("attlen", INT2),
    ("attnum", INT2),
    ("attndims", INT4),
    ("attcacheoff", INT4),
    ("atttypmod", INT4),
    ("attbyval", CHAR),
    ("attalign", CHAR),
];
/// 16 and 17.
const FIRST_16: &[(&str, Shape)] = &[
    ("attrelid", OID),
    ("attname", NAME),
    ("atttypid", OID),
    ("attlen", INT2),
    ("attnum", INT2),
    ("attcacheoff", INT4),
    ("atttypmod", INT4),
    ("attndims", INT2),
    ("attbyval", CHAR),
    ("attalign", CHAR),
];
/// From 18 on.
const FIRST_18: &[(&str, Shape)] = &[
    ("attrelid", OID),
    ("attname", NAME),
    ("atttypid", OID),
    ("attlen", INT2),
    ("attnum", INT2),
    ("atttypmod", INT4),
    ("attndims", INT2),
    ("attbyval", CHAR),
    ("attalign", CHAR),
];

impl Columns {
    pub(crate) fn new(version: &Version) -> Self {
        let first = match version.major {
            ..=15 => FIRST_15,
            16 | 17 => FIRST_16,
            _ => FIRST_18,
        };
        Self { catalogs: BTreeMap::new(), first }
    }

    /// Learns from a row of `pg_attribute`, as far as it is about a catalog.
    pub(crate) fn learn(&mut self, tuple: &TupleImage<'_>) -> Result<(), CatalogError> {
        let shapes = self.first.iter().map(|(_, shape)| *shape);
        let names = self.first.iter().map(|(name, _)| *name);
        let row = Row::read(PG_ATTRIBUTE, tuple, shapes, names)?;
        let (relation, number) = (row.u32("attrelid")?, row.i16("attnum")?);
        if CATALOGS.contains(&relation) && number > 0 {
            let shape = row.shape("attlen", "attalign")?;
            let name = row.name("attname")?;
            self.catalogs.entry(relation).or_default().insert(number, (name, shape));
        }
        Ok(())
    }

    fn row<'a>(&'a self, catalog: u32, tuple: &TupleImage<'a>) -> Result<Row<'a>, CatalogError> {
        let columns = self.catalogs.get(&catalog).ok_or(CatalogError::Unknown { catalog })?;
        // Without a gap, or what follows would be taken for something else.
        if columns.keys().zip(1..).any(|(number, expected)| *number != expected) {
            return Err(CatalogError::Unknown { catalog });
        }
        let shapes = columns.values().map(|(_, shape)| *shape);
        Row::read(catalog, tuple, shapes, columns.values().map(|(name, _)| &**name))
    }

    pub(crate) fn class(&self, tuple: &TupleImage<'_>) -> Result<Class, CatalogError> {
        let row = self.row(PG_CLASS, tuple)?;
        Ok(Class {
            oid: row.u32("oid")?,
            name: row.name("relname")?,
            namespace: row.u32("relnamespace")?,
            filenode: row.u32("relfilenode")?,
            tablespace: row.u32("reltablespace")?,
            persistence: row.byte("relpersistence")?,
            kind: row.byte("relkind")?,
            rewrite: row.u32("relrewrite")?,
        })
    }

    pub(crate) fn attribute(&self, tuple: &TupleImage<'_>) -> Result<AttributeRow, CatalogError> {
        let row = self.row(PG_ATTRIBUTE, tuple)?;
        let shape = row.shape("attlen", "attalign")?;
        let missing = match row.find("attmissingval")? {
            Some(_) if row.byte("atthasmissing")? == 0 => None,
            Some(bytes) => Some(only_element(bytes, shape)?),
            None => None,
        };
        Ok(AttributeRow {
            relation: row.u32("attrelid")?,
            number: row.i16("attnum")?,
            name: row.name("attname")?,
            type_oid: row.u32("atttypid")?,
            shape,
            is_dropped: row.byte("attisdropped")? != 0,
            generated: row.byte("attgenerated")?,
            missing,
        })
    }

    pub(crate) fn type_row(&self, tuple: &TupleImage<'_>) -> Result<TypeRow, CatalogError> {
        let row = self.row(PG_TYPE, tuple)?;
        Ok(TypeRow {
            oid: row.u32("oid")?,
            name: row.name("typname")?,
            namespace: row.u32("typnamespace")?,
            shape: row.shape("typlen", "typalign")?,
            kind: row.byte("typtype")?,
            delimiter: row.byte("typdelim")?,
            subscript: row.u32("typsubscript")?,
            element: row.u32("typelem")?,
            base: row.u32("typbasetype")?,
        })
    }

    pub(crate) fn enum_row(&self, tuple: &TupleImage<'_>) -> Result<EnumRow, CatalogError> {
        let row = self.row(PG_ENUM, tuple)?;
        Ok(EnumRow {
            oid: row.u32("oid")?,
            type_oid: row.u32("enumtypid")?,
            label: row.name("enumlabel")?,
        })
    }

    pub(crate) fn namespace(&self, tuple: &TupleImage<'_>) -> Result<NamespaceRow, CatalogError> {
        let row = self.row(PG_NAMESPACE, tuple)?;
        Ok(NamespaceRow { oid: row.u32("oid")?, name: row.name("nspname")? })
    }

    pub(crate) fn index(&self, tuple: &TupleImage<'_>) -> Result<IndexRow, CatalogError> {
        let row = self.row(PG_INDEX, tuple)?;
        Ok(IndexRow {
            index: row.u32("indexrelid")?,
            relation: row.u32("indrelid")?,
            is_valid: row.byte("indisvalid")? != 0,
        })
    }

    pub(crate) fn database(&self, tuple: &TupleImage<'_>) -> Result<DatabaseRow, CatalogError> {
        let row = self.row(PG_DATABASE, tuple)?;
        Ok(DatabaseRow {
            oid: row.u32("oid")?,
            name: row.name("datname")?,
            tablespace: row.u32("dattablespace")?,
        })
    }
}

/// The attributes of one row, by name.
struct Row<'a> {
    catalog: u32,
    data: &'a [u8],
    values: Vec<(&'a str, Attribute)>,
}

impl<'a> Row<'a> {
    fn read(
        catalog: u32,
        tuple: &TupleImage<'a>,
        shapes: impl Iterator<Item = Shape>,
        names: impl Iterator<Item = &'a str>,
    ) -> Result<Self, CatalogError> {
        let broken = |source| CatalogError::Tuple { catalog, source };
        let mut attributes = Vec::new();
        deform(tuple, shapes, &mut attributes).map_err(broken)?;
        let data = user_data(tuple).map_err(broken)?;
        Ok(Self { catalog, data, values: names.zip(attributes).collect() })
    }

    /// The value's bytes; nothing if it is null.
    fn find(&self, column: &'static str) -> Result<Option<&'a [u8]>, CatalogError> {
        let found = self.values.iter().find(|(name, _)| *name == column);
        match found.ok_or(CatalogError::Column { catalog: self.catalog, column })? {
            (_, Attribute::At(range)) => Ok(self.data.get(range.clone())),
            _ => Ok(None),
        }
    }

    fn get(&self, column: &'static str) -> Result<&'a [u8], CatalogError> {
        self.find(column)?.ok_or(CatalogError::Column { catalog: self.catalog, column })
    }

    fn u32(&self, column: &'static str) -> Result<u32, CatalogError> {
        Ok(u32_at(self.get(column)?, 0))
    }

    fn i16(&self, column: &'static str) -> Result<i16, CatalogError> {
        Ok(u16_at(self.get(column)?, 0).cast_signed())
    }

    fn byte(&self, column: &'static str) -> Result<u8, CatalogError> {
        Ok(self.get(column)?.first().copied().unwrap_or_default())
    }

    fn name(&self, column: &'static str) -> Result<Box<str>, CatalogError> {
        let bytes = self.get(column)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).into())
    }

    fn shape(&self, length: &'static str, align: &'static str) -> Result<Shape, CatalogError> {
        let letter = self.byte(align)?;
        let found = letter.into();
        let bad = CatalogError::Value { column: align, found };
        let (column, length) = (length, self.i16(length)?);
        if length < -2 || length == 0 {
            return Err(CatalogError::Value { column, found: length.into() });
        }
        Ok(Shape { length, align: Align::from_catalog(letter).ok_or(bad)? })
    }
}

/// The one element of an array with one: an attribute's missing value.
///
/// ```text
/// | ndim 4 | dataoffset 4, 0 without nulls | elemtype 4 | dimensions 4 * ndim | lower bounds | element
/// ```
fn only_element(attribute: &[u8], shape: Shape) -> Result<Box<[u8]>, CatalogError> {
    const COLUMN: &str = "attmissingval";
    let broken = |source| CatalogError::Varlena { column: COLUMN, source };
    let unpacked;
    let array = match Varlena::read(attribute).map_err(broken)?.0 {
        Varlena::Plain(bytes) => bytes,
        Varlena::Compressed(compressed) => {
            unpacked = compressed.decompress(PAYLOAD_BYTES_MAX).map_err(broken)?;
            &unpacked
        }
        Varlena::External(_) => return Err(CatalogError::Value { column: COLUMN, found: 18 }),
    };
    let bad = CatalogError::Value { column: COLUMN, found: i64::from(u32_at(array, 0)) };
    // One dimension, no nulls. With the varlena's header, values begin at a multiple of 8.
    if array.len() < 20 || u32_at(array, 0) != 1 || u32_at(array, 4) != 0 {
        return Err(bad);
    }
    let element = &array[20..];
    let length = match shape.length {
        -1 => Varlena::read(element).map_err(broken)?.1,
        -2 => element.iter().take_while(|byte| **byte != 0).count() + 1,
        length => usize::try_from(length).unwrap_or_default(),
    };
    element.get(..length).map(Into::into).ok_or(bad)
}
