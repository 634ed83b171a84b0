//! A table as a row of it needs to be read.

use std::sync::Arc;

use crate::catalog::AttributeRow;
use crate::json;
use crate::tuple::Shape;
use crate::value::Type;

/// A table, a materialized view, or a sequence, as of some record.
#[derive(Clone, Debug)]
pub struct Relation {
    /// The name of its database.
    pub database: Box<str>,
    /// The OID of its database.
    pub database_oid: u32,
    /// The name of its schema.
    pub schema: Box<str>,
    /// Its name.
    pub name: Box<str>,
    /// Its OID.
    pub oid: u32,
    /// Whether anybody is told of its rows: not of those of catalogs, of unlogged tables, or of a table
    /// that is being written anew.
    pub is_told: bool,
    /// Its columns in their order, dropped ones among them.
    pub columns: Vec<Column>,
    /// Schema and name as JSON: each row has them.
    pub(crate) json_names: Box<[u8]>,
}

/// One column.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name.
    pub name: Box<str>,
    /// The type of its values.
    pub ty: Arc<Type>,
    /// How they lie in a tuple.
    pub shape: Shape,
    /// Whether anybody is told of it: not if it was dropped, or has no values of its own on disk.
    pub is_told: bool,
    /// The value of rows that are older than the column, as an attribute; null, if there is none.
    pub missing: Option<Box<[u8]>>,
    /// Its name as a key of JSON, up to where the value begins: each row has it.
    pub(crate) json_key: Box<[u8]>,
}

impl Column {
    pub(crate) fn new(name: &str, ty: Arc<Type>, shape: Shape, row: &AttributeRow) -> Self {
        let is_told = !row.is_dropped && row.generated != b'v';
        let json_key = json::key(name);
        Self { name: name.into(), ty, shape, is_told, missing: row.missing.clone(), json_key }
    }
}

impl Relation {
    /// Its columns that anybody is told of.
    pub fn told_columns(&self) -> impl Iterator<Item = &Column> {
        self.columns.iter().filter(|column| column.is_told)
    }

    /// Whether a row would be told in the same way: name, and names and types of columns.
    #[must_use]
    pub fn has_shape_of(&self, other: &Self) -> bool {
        self.schema == other.schema
            && self.name == other.name
            && self.told_columns().count() == other.told_columns().count()
            && self.told_columns().zip(other.told_columns()).all(|(own, others)| {
                own.name == others.name
                    && own.ty.oid == others.ty.oid
                    && own.ty.name == others.ty.name
            })
    }
}
