//! What WAL means: rows that changed, in transactions, as values.
#![forbid(unsafe_code)]

pub mod value;
