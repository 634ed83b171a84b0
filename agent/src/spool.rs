//! The row spool: the rows that replay has seen, in WAL order, in files.
//!
//! Replay writes it, whoever decodes reads it, each at its own pace. A file begins where the one before
//! it ends, with the catalogs as they are there: a reader can begin with any of them, and those of
//! before can be removed.
//!
//! ```text
//! <16 hex digits of its start>.rows
//!   offset  size
//!        0     8  "WALFROWS"
//!        8     4  layout, 1
//!       12     4  major of the server
//!       16     8  system identifier
//!       24     4  timeline
//!       28     4  1 if it goes on where another one ended, else 0: it begins anew
//!       32     8  start: the position before which it has no rows
//!       40     8  oldest: before it lies no row of a transaction that has not ended at the start
//!       48     4  CRC-32C of all before
//!       52        chunks; the first one is the catalogs
//! chunk
//!        0     4  length of what follows the CRC
//!        4     4  CRC-32C of that
//!        8     8  end: all rows before this position are in this chunk or before it
//!       16        entries, see walfmt::row
//! ```
//!
//! Files only grow. What a crash left unfinished is cut off: replay brings it again, since a restart
//! point waits until all rows before it are synced.

mod reader;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use walfmt::bytes::{put, u32_at, u64_at};
use walfmt::{Lsn, Timeline};

pub(crate) use self::reader::Reader;
pub(crate) use self::writer::Writer;
use crate::identity::Identity;
use crate::trouble::{Kind, Trouble};

const MAGIC: &[u8; 8] = b"WALFROWS";
const LAYOUT: u32 = 1;
const HEADER_SIZE: usize = 52;
const CHUNK_HEADER_SIZE: usize = 16;
/// No chunk is longer: the longest entry and what stands before it.
const CHUNK_SIZE_MAX: usize = walfmt::row::ENTRY_SIZE_MAX + (4 << 20);
const SUFFIX: &str = "rows";

/// What a file says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) major: u16,
    pub(crate) system_identifier: u64,
    pub(crate) timeline: Timeline,
    /// It goes on where another one ended.
    pub(crate) continues: bool,
    pub(crate) start: Lsn,
    /// Before it lies no row of a transaction that has not ended at the start.
    pub(crate) oldest: Lsn,
}

impl FileHeader {
    fn to_bytes(self) -> [u8; HEADER_SIZE] {
        let mut bytes = [0; HEADER_SIZE];
        put(&mut bytes, 0, *MAGIC);
        put(&mut bytes, 8, LAYOUT.to_le_bytes());
        put(&mut bytes, 12, u32::from(self.major).to_le_bytes());
        put(&mut bytes, 16, self.system_identifier.to_le_bytes());
        put(&mut bytes, 24, self.timeline.0.to_le_bytes());
        put(&mut bytes, 28, u32::from(self.continues).to_le_bytes());
        put(&mut bytes, 32, self.start.0.to_le_bytes());
        put(&mut bytes, 40, self.oldest.0.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..48]);
        put(&mut bytes, 48, crc.to_le_bytes());
        bytes
    }

    /// Nothing if these are not the bytes of one.
    fn from_bytes(bytes: &[u8; HEADER_SIZE]) -> Option<Self> {
        let is_one = bytes.starts_with(MAGIC)
            && u32_at(bytes, 8) == LAYOUT
            && u32_at(bytes, 48) == crc32c::crc32c(&bytes[..48]);
        is_one.then(|| Self {
            major: u16::try_from(u32_at(bytes, 12)).unwrap_or_default(),
            system_identifier: u64_at(bytes, 16),
            timeline: Timeline(u32_at(bytes, 24)),
            continues: u32_at(bytes, 28) != 0,
            start: Lsn(u64_at(bytes, 32)),
            oldest: Lsn(u64_at(bytes, 40)),
        })
    }

    fn is_of(&self, identity: &Identity) -> bool {
        self.system_identifier == identity.system_identifier && self.timeline == identity.timeline
    }
}

/// The files of a spool, by their starts.
fn list(directory: &Path) -> io::Result<Vec<(Lsn, PathBuf)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let start = path.file_stem().and_then(|stem| stem.to_str());
        let start = start.filter(|stem| stem.len() == 16);
        let start = start.and_then(|stem| u64::from_str_radix(stem, 16).ok());
        if let Some(start) = start
            && path.extension().is_some_and(|extension| extension == SUFFIX)
        {
            files.push((Lsn(start), path));
        }
    }
    files.sort_unstable();
    Ok(files)
}

fn path_of(directory: &Path, start: Lsn) -> PathBuf {
    directory.join(format!("{:016X}.{SUFFIX}", start.0))
}

fn trouble(doing: &str, path: &Path, error: io::Error) -> Trouble {
    Trouble::io(format_args!("{doing} {}", path.display()), error)
}

fn corrupt(path: &Path, at: u64, words: &str) -> Trouble {
    Trouble::new(
        Kind::Corrupt,
        format_args!("row spool {} at byte {at}: {words}", path.display()),
    )
    .with_hint(
        "stop the agent, move the files of [decode] directory away, and start it: decoding begins \
         anew from there",
    )
}
