//! What PostgreSQL's write-ahead log and data files contain.
//!
//! This crate reads bytes and says what they are. It does no I/O, has no clock, starts no thread
//! and has no `unsafe`: it must run in a fuzzer. Applying a record to a page is
//! `walfmt-physical`'s part.
//!
//! Start with [`RecordStream`], which turns pushed WAL bytes into records, and [`Record`], which
//! is one decoded record. What differs between PostgreSQL majors is one row of [`version`].
//!
//! All integers on disk are little endian. Every reader goes through [`cursor::Cursor`] or the
//! fixed-offset readers in [`bytes`], so no input can make this crate panic or allocate more than
//! a record's own size.
#![forbid(unsafe_code)]

pub mod backup_label;
pub mod bytes;
pub mod checksum;
pub mod control;
pub mod cursor;
pub mod history;
pub mod image;
pub mod lsn;
pub mod page;
pub mod pglz;
pub mod record;
pub mod relation;
pub mod replication_state;
pub mod rmgr;
pub mod row;
pub mod segment;
pub mod slru;
pub mod stream;
pub mod text;
pub mod two_phase;
pub mod version;
pub mod wal_page;

pub use lsn::{Lsn, Timeline, TransactionId};
pub use record::{BlockReference, DecodeError, RawRecord, Record};
pub use relation::{BLOCK_SIZE, BlockNumber, ForkNumber, RelFileLocator};
pub use segment::{SegmentName, SegmentNumber, SegmentSize, WalFileName};
pub use stream::{Fault, RecordStream, Step, Stop, StopKind, StreamStart};
pub use version::Version;
