//! The page store: a PostgreSQL data directory, kept "in archive recovery" and replayed by us.
//!
//! The store keeps PostgreSQL's on-disk format, so that each page can be checked against a real
//! standby and a stock PostgreSQL can open the directory at any hand-over. What a record does to a
//! page is `walfmt-physical`'s part; this crate owns the files, the threads and the order of
//! things.
//!
//! ```text
//!                        ┌── tasks ──► worker 0 ── pages it owns ──┐
//!  replay(record) ─► dispatcher ─────► worker 1 ── pages it owns ──┼─► relation files
//!                        │            ...                          ┘
//!                        ├── transactions, file actions, counters, control file fields
//!                        └── restart point ─► marker through all workers ─► sync thread ─► pg_control
//! ```
//!
//! - A page belongs to one worker (by relation, fork and run of 16 blocks), who alone reads,
//!   changes and writes it: no locks, and LSN order within the page. A worker is no thread: threads
//!   run whichever worker has something to do, see `crew.rs`.
//! - The dispatcher alone knows how long forks are, and decides per block whether it exists. Free
//!   space maps are the exception: workers create their pages, see `worker.rs`.
//! - File actions (truncate, drop) wait until every worker has passed them. Records behind them
//!   wait too; parking only the relation's own records is left out as long as it does not show.
//! - What looks at more than one relation (a database that is copied or dropped) waits until all is
//!   written or forgotten; after a copy the next checkpoint is a restart point before replay goes on.
//! - Nothing of a record that the dispatcher refuses is handed over: see [`Store::replay`].
//!
//! # What is left by a crash
//!
//! Whatever was not synced may be there or not: each 4 kB of a file on its own, so that pages are
//! torn, each file's length, each name. From the last restart point on, all of it is done again.
//!
//! - The last restart point is whole: one sync of the file systems stands before its control file,
//!   which is replaced by a rename.
//! - A page that was changed since has an image in the WAL at its first change, because the restart
//!   point is a checkpoint of the leader, who writes full pages. It is not read before. Whoever takes rows
//!   does read pages of TOAST relations; so they are not written before the rows before their LSN are
//!   durable, and have had their image when it comes to rows that are not: see `gate.rs`.
//! - What has no image is done again without a look at what is there: bits that visibility maps lose,
//!   transactions, truncations, drops. It is also *written* again if it is there already: after a
//!   failed sync it may be in the kernel's cache only.
//! - A file copy, which reads more than it names, is never made again: see `databases.rs`.
//! - Where checksums show that a page of a map is torn, the page is begun anew, as in a server. A
//!   visibility map may lack bits then, and a free space map know less, never more.
//!
//! [`disk`] is where the file calls are, and `testing` a disk that loses, tears, fills up and fails;
//! `integration/tests/crash.rs` lets it, in the middle of any call, and compares what becomes of the
//! store with one that nothing happened to. Full disks and write errors end replay with the file and
//! the call; opened again, it goes on.
//!
//! Start with [`Store`].
#![deny(unsafe_code)] // but for prefetch.rs
#![cfg_attr(test, allow(clippy::unwrap_used))] // a test that panics has failed, as it should

mod batch;
mod cache;
mod cleanup;
mod commit_times;
mod control;
mod counters;
mod crew;
mod databases;
pub mod disk;
mod dispatcher;
mod error;
mod files;
mod gate;
mod inspection;
mod invalid_pages;
mod layout;
mod lock;
mod mappings;
mod multixact;
mod origins;
mod prefetch;
mod prepare;
mod relation_maps;
mod relations;
mod removals;
mod restart_point;
mod rows;
mod shared;
mod slru;
mod store;
mod tablespaces;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod toast;
mod transaction_log;
mod transactions;
mod two_phase;
mod verify;
mod worker;
mod workers;
mod writeback;

pub use counters::Counters;
pub use crew::SideWork;
pub use dispatcher::StoredRow;
pub use error::{
    CopyFault, FileError, LockError, NotConsistent, OpenError, PageFault, PrepareError,
    PromotionError, Refusal, ReplayError,
};
pub use inspection::{Damage, DamageKind, Findings, Inspection, Listing};
pub use restart_point::RestartPoint;
pub use rows::Rows;
pub use store::{PromotionState, Store, StoreConfig, StoreIdentity};
pub use tablespaces::tablespaces_directory;
pub use toast::{ToastAnswer, ToastRequest};
pub use verify::BrokenRule;
