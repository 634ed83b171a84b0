//! Values: the bytes of one attribute, and the text that PostgreSQL prints for them.
//!
//! A tuple's bytes are read in two steps. [`varlena`] takes one attribute of variable length out
//! of its header, its compression and its TOAST chunks; what remains is the *payload*. [`print()`]
//! turns a payload into the text that the type's output function gives for these settings, which
//! are fixed so that a value has one text everywhere:
//!
//! | setting              | value      |
//! |----------------------|------------|
//! | `TimeZone`           | `UTC`      |
//! | `DateStyle`          | `ISO`      |
//! | `IntervalStyle`      | `postgres` |
//! | `extra_float_digits` | `1`        |
//! | `bytea_output`       | `hex`      |
//! | encodings            | `UTF8`, of the database and of the client |
//!
//! What a built-in type's text is, is one row of [`Builtin`]'s table. Types with no row are
//! [`Kind::Raw`]: their text depends on more than their bytes (`money`, `regclass`), or nobody
//! wrote it down here yet (ranges, composite types, geometry, `tsvector`, extensions). Whoever
//! prints a row shows their bytes and says so.
//!
//! Bytes from disk never make this module panic, loop, or allocate without a bound: work is
//! linear in the payload and the text, and no text is longer than [`TEXT_BYTES_MAX`].

use std::collections::BTreeMap;
use std::sync::Arc;

use walfmt::cursor::CursorError;

mod array;
mod builtin;
mod datetime;
mod float;
mod jsonb;
mod network;
mod numeric;
mod simple;
mod text;
pub mod varlena;

pub use builtin::Builtin;
pub use varlena::{ToastPointer, Varlena, VarlenaError};

/// No text is longer, in bytes; PostgreSQL cannot print such a value either (`MaxAllocSize`).
pub const TEXT_BYTES_MAX: usize = 0x3FFF_FFFE;

/// What must be known of a type to find and print its values (a row of `pg_type`).
#[derive(Clone, Debug)]
pub struct Type {
    /// `oid`.
    pub oid: u32,
    /// The name of the schema that `typnamespace` is.
    pub schema: Box<str>,
    /// `typname`.
    pub name: Box<str>,
    /// `typlen`: the size in bytes, -1 for a varlena, -2 for a C string.
    pub length: i16,
    /// `typalign`.
    pub align: Align,
    /// `typdelim`: what stands between two values of this type in an array's text.
    pub delimiter: u8,
    /// How a value's bytes become text.
    pub kind: Kind,
}

/// How a value's bytes become text.
#[derive(Clone, Debug)]
pub enum Kind {
    /// By a rule that is in this crate.
    Builtin(&'static Builtin),
    /// A label for each OID of `pg_enum`.
    Enum(Arc<BTreeMap<u32, Box<str>>>),
    /// An array of values of this type (`typelem`): a type whose `typsubscript` is
    /// `array_subscript_handler`, unless [`Kind::of_builtin`] knows it. `int2vector` and
    /// `oidvector` look like arrays in `pg_type`, and have a text of their own.
    Array(Arc<Type>),
    /// As the type that the domain is over (`typbasetype`).
    Domain(Arc<Type>),
    /// Not at all.
    Raw,
}

/// Where values of a type may begin (`typalign`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// `c`: anywhere.
    Char,
    /// `s`: at a multiple of 2 bytes.
    Short,
    /// `i`: at a multiple of 4 bytes.
    Int,
    /// `d`: at a multiple of 8 bytes.
    Double,
}

/// A value that has no text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// Nothing is wrong: there is no rule for this type.
    #[error("values of type {oid} have no text here")]
    Unsupported {
        /// The OID of the type; of an array or domain, of what it is made of.
        oid: u32,
    },
    /// A payload of the wrong size.
    #[error("{name}: {found} bytes, must be {expected}")]
    Length {
        /// The type's name.
        name: &'static str,
        /// How many there must be.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// A payload ends early or late.
    #[error(transparent)]
    Cursor(#[from] CursorError),
    /// A varlena within the value cannot be read.
    #[error(transparent)]
    Varlena(#[from] VarlenaError),
    /// A field has a value that it cannot have.
    #[error("{field} cannot be {found}")]
    Field {
        /// Which field, by PostgreSQL's name.
        field: &'static str,
        /// What it is.
        found: i64,
    },
    /// Text that is not UTF-8, or that contains a NUL byte.
    #[error("text is not UTF-8 at byte {at}")]
    Encoding {
        /// Where in the text.
        at: usize,
    },
    /// An enum's value that has no label.
    #[error("enum {oid} has no label {label}")]
    Label {
        /// The type's OID.
        oid: u32,
        /// The value, an OID of `pg_enum`.
        label: u32,
    },
    /// A document nested deeper than anyone should.
    #[error("nested more than {limit} levels deep")]
    Depth {
        /// How deep it may be.
        limit: usize,
    },
    /// The text would be longer than [`TEXT_BYTES_MAX`].
    #[error("text is longer than {TEXT_BYTES_MAX} bytes")]
    TooLong,
}

/// Appends the text of one value to `out`; it is always valid UTF-8.
///
/// `datum` is the payload: of a varlena the bytes after header and decompression, of a type of
/// fixed size its `typlen` bytes, of a C string the bytes before the NUL.
///
/// # Errors
/// [`ValueError::Unsupported`] if the type has no rule, another [`ValueError`] if these bytes
/// cannot be a value of the type. `out` is then as it was.
#[inline]
pub fn print(ty: &Type, datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let start = out.len();
    let result = append(ty, datum, out);
    if result.is_err() {
        out.truncate(start);
    }
    result
}

/// As [`print()`]; after an error `out` may end in part of a text.
fn append(ty: &Type, datum: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    match &ty.kind {
        Kind::Builtin(builtin) => builtin.append(datum, out),
        Kind::Enum(labels) => {
            let label = datum.try_into().map(u32::from_le_bytes).map_err(|_| {
                ValueError::Length { name: "enum", expected: 4, found: datum.len() }
            })?;
            let text = labels.get(&label).ok_or(ValueError::Label { oid: ty.oid, label })?;
            out.extend_from_slice(text.as_bytes());
            Ok(())
        }
        Kind::Array(element) => array::append(element, datum, out),
        Kind::Domain(base) => append(base, datum, out),
        Kind::Raw => Err(ValueError::Unsupported { oid: ty.oid }),
    }
}

impl Type {
    /// Whether no text of it has quotes, backslashes or control characters.
    pub(crate) fn is_plain(&self) -> bool {
        match &self.kind {
            Kind::Builtin(builtin) => builtin.is_plain,
            Kind::Domain(base) => base.is_plain(),
            Kind::Enum(_) | Kind::Array(_) | Kind::Raw => false,
        }
    }

    /// Whether [`print()`] has a rule for this type.
    #[must_use]
    pub fn is_printable(&self) -> bool {
        match &self.kind {
            Kind::Builtin(_) | Kind::Enum(_) => true,
            Kind::Array(inner) | Kind::Domain(inner) => inner.is_printable(),
            Kind::Raw => false,
        }
    }
}

impl Kind {
    /// The rule of the built-in type with this OID, or [`Kind::Raw`].
    #[must_use]
    pub fn of_builtin(oid: u32) -> Self {
        Builtin::from_oid(oid).map_or(Self::Raw, Self::Builtin)
    }
}

impl Align {
    /// What `typalign` or `attalign` says.
    #[must_use]
    pub const fn from_catalog(letter: u8) -> Option<Self> {
        match letter {
            b'c' => Some(Self::Char),
            b's' => Some(Self::Short),
            b'i' => Some(Self::Int),
            b'd' => Some(Self::Double),
            _ => None,
        }
    }

    /// The first offset from `offset` on where a value may begin (`att_align_nominal`).
    #[inline]
    #[must_use]
    pub const fn up(self, offset: usize) -> usize {
        let mask = match self {
            Self::Char => 0,
            Self::Short => 1,
            Self::Int => 3,
            Self::Double => 7,
        };
        offset.saturating_add(mask) & !mask
    }
}
