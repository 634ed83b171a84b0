//! What can go wrong with an archive.

use std::path::PathBuf;

use walfmt::{Lsn, SegmentName, Timeline};

use crate::files::FileError;
use crate::frame::FrameFault;

/// A result of this crate.
pub type Result<T, E = ArchiveError> = std::result::Result<T, E>;

/// What can go wrong with an archive. "Not there yet" is not among it.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The operating system refused a file call.
    #[error(transparent)]
    File(#[from] FileError),

    /// A file of the archive does not hold what was written to it.
    #[error("archive file {segment}.zst is corrupt at byte {offset}: {fault}")]
    Corrupt {
        /// The segment whose file it is.
        segment: SegmentName,
        /// Where in the file, in compressed bytes.
        offset: u64,
        /// What is wrong there.
        fault: FrameFault,
    },

    /// The archive ends before a position that was known to be durable in it.
    #[error(
        "archive file {segment}.zst is damaged from byte {offset} on and holds WAL only up to {found}; \
         it was known to be durable up to {expected}"
    )]
    LostDurable {
        /// The segment whose file it is.
        segment: SegmentName,
        /// Where in the file the good bytes end.
        offset: u64,
        /// Where the WAL that is left ends.
        found: Lsn,
        /// Up to where it must be.
        expected: Lsn,
    },

    /// The archive does not have this segment.
    #[error("segment {segment} is not in the archive, {}", have(.have_from))]
    NotArchived {
        /// The segment that was asked for.
        segment: SegmentName,
        /// The first one of its timeline that is there.
        have_from: Option<SegmentName>,
    },

    /// Compressed bytes from a peer that are not what they should be. Nothing was written.
    #[error("compressed WAL received for {lsn} is wrong at byte {offset}: {fault}")]
    Received {
        /// Where the WAL in the bytes begins.
        lsn: Lsn,
        /// Where in the bytes.
        offset: usize,
        /// What is wrong there.
        fault: FrameFault,
    },

    /// Bytes were given that do not follow those in the archive.
    #[error("the archive ends at {expected} and cannot go on from {found}")]
    NotContiguous {
        /// Where the archive ends.
        expected: Lsn,
        /// Where the bytes begin.
        found: Lsn,
    },

    /// Blocks were given that continue a frame, and no copied frame is open.
    #[error("compressed WAL for {lsn} continues a frame, but the archive has none open there")]
    NoOpenFrame {
        /// Where the archive ends.
        lsn: Lsn,
    },

    /// A timeline's first file must begin with a segment.
    #[error(
        "timeline {timeline} cannot begin at {lsn} in the archive: that is not a segment start"
    )]
    NotASegmentStart {
        /// The timeline.
        timeline: Timeline,
        /// Where it was to begin.
        lsn: Lsn,
    },

    /// WAL can be cut back only as far as the last recovery could not check it.
    #[error("the archive cannot be cut back to {found}: only from {from} to {to} is unchecked")]
    CannotCut {
        /// The position that was asked for.
        found: Lsn,
        /// The first position it may be cut to.
        from: Lsn,
        /// The last.
        to: Lsn,
    },

    /// Another writer has the archive open.
    #[error("another process writes the archive: {} is locked", .path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },

    /// A write failed earlier, so it is not known what the last file holds.
    #[error("the archive writer stopped after an error; it must be opened anew")]
    Stopped,

    /// The zstd library refused to compress.
    #[error("zstd cannot compress: {0}")]
    Compress(&'static str),
}

fn have(have_from: &Option<SegmentName>) -> String {
    match have_from {
        Some(first) => format!("which begins with {first}"),
        None => "which has nothing of that timeline".to_owned(),
    }
}
