//! What WAL means: rows that changed, in transactions, as values.
//!
//! ```text
//! entries in WAL order ─► Decoder ─┬─ catalogs: what a file is, and what its columns are
//! (walfmt::row)                    ├─ transactions that have not ended: where their entries are
//!                                  └─ at each commit ─► Event ... ─► whoever listens, as JSON for one
//! ```
//!
//! The crate does no I/O: where entries are kept, and read again when their transaction commits, is
//! behind [`EntrySource`].
#![forbid(unsafe_code)]

mod catalog;
mod decoder;
pub mod event;
pub mod json;
pub mod relation;
mod toast;
pub mod tuple;
pub mod value;

pub use catalog::{CATALOGS, CatalogError, PG_ATTRIBUTE, PG_CLASS, PG_DATABASE};
pub use decoder::{DecodeError, Decoder, EntrySource, Place, Position};
pub use event::{Body, Event, EventSink};
pub use relation::{Column, Relation};
pub use toast::chunks_length;
