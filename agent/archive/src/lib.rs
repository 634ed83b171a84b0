//! The archive: PostgreSQL's WAL in files that a person can read with `zstd -d`.
//!
//! ```text
//! <root>/<system identifier>/
//!     .lock                            held by the one writer
//!     00000002.history                 as PostgreSQL wrote it
//!     0000000100000000000000A1.zst     a finished segment: decodes to exactly its bytes
//!     0000000100000000000000A2.zst     the segment being written: readable up to the last flush
//! ```
//!
//! A file is zstd frames one after the other. A frame ends at every multiple of [`CELL_BYTES`] of
//! WAL offset and carries a content checksum; a *flush* ends a zstd block, so that everything
//! before it can be decoded. Files only grow; the one exception is the cut that [`recovery`]
//! makes after a crash.
//!
//! What holds at every moment, and what the other modules rest on:
//!
//! - A segment's file begins with the segment's first byte and has no holes.
//! - **A file exists only if the file of the segment before it is finished and durable** (unless it
//!   is the first of its timeline here). So only the last file can have a torn tail; damage in any
//!   other is corruption. An empty last file is this mark for the one before it, not a loss.
//! - `durable <= readable <= content_end` in the writer.
//!
//! [`Archive`] is the directory, [`ArchiveWriter`] the one who writes, [`ArchiveReader`] one of
//! many who read. Every file call goes through [`Files`], so that a test can lose what was not
//! synced.
//!
//! Left out: an index (what can be derived is not stored; opening a reader decodes its first
//! segment from the start, some milliseconds for 16 MB) and `.partial` files, which promotion
//! leaves in `pg_wal`.
#![forbid(unsafe_code)]

pub mod archive;
mod compressor;
mod decoder;
pub mod error;
pub mod files;
pub mod frame;
mod pieces;
pub mod reader;
pub mod recovery;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
#[cfg(test)]
mod tests;
pub mod writer;

pub use archive::{Archive, CELL_BYTES, Extent, SegmentFile};
pub use compressor::FrameCompressor;
pub use error::{ArchiveError, Result};
pub use files::{File, FileError, Files, OsFiles};
pub use frame::FrameFault;
pub use reader::{ArchiveReader, Chunk};
pub use writer::{ArchiveWriter, Received, WriterOptions};
