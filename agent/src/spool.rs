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
//!       52        chunks; those of the catalogs, which end at the start, come first
//! chunk
//!        0     4  length of the entries
//!        4     8  end: all rows before this position are in this chunk or before it
//!       12     4  CRC-32C of all before, begun with the last CRC of what stands before the chunk
//!       16     4  CRC-32C of the entries, begun with the CRC before
//!       20        entries, see walfmt::row
//! ```
//!
//! Each CRC goes on from the one before it, so a chunk that is missing, stands twice, or is left from
//! another time is noticed as well as one that is damaged.
//!
//! Files only grow. What a crash left unfinished is cut off: replay brings it again, since a restart
//! point waits until all rows before it are synced. A file gets its name when it has all of its catalogs.

mod reader;
#[cfg(test)]
mod tests;
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
const CHUNK_HEADER_SIZE: usize = 20;
/// No chunk is longer: the longest entry and what stands before it.
const CHUNK_SIZE_MAX: usize = walfmt::row::ENTRY_SIZE_MAX + (4 << 20);
const SUFFIX: &str = "rows";
/// Of a file that has not all of its catalogs yet.
const UNFINISHED_SUFFIX: &str = "new";

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

    /// What the CRC of the first chunk begins with.
    fn crc(self) -> u32 {
        u32_at(&self.to_bytes(), 48)
    }

    fn is_of(&self, identity: &Identity) -> bool {
        self.system_identifier == identity.system_identifier && self.timeline == identity.timeline
    }
}

/// What stands before the entries of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct ChunkHeader {
    /// How many bytes of entries follow.
    length: usize,
    end: Lsn,
    head_crc: u32,
    /// Of all of it: the next chunk's CRC goes on from it.
    crc: u32,
}

impl ChunkHeader {
    fn of(entries: &[u8], end: Lsn, crc_before: u32) -> Self {
        let (length, mut head) = (entries.len(), [0; 12]);
        put(&mut head, 0, u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        put(&mut head, 4, end.0.to_le_bytes());
        let head_crc = crc32c::crc32c_append(crc_before, &head);
        Self { length, end, head_crc, crc: crc32c::crc32c_append(head_crc, entries) }
    }

    fn to_bytes(self) -> [u8; CHUNK_HEADER_SIZE] {
        let mut bytes = [0; CHUNK_HEADER_SIZE];
        put(&mut bytes, 0, u32::try_from(self.length).unwrap_or(u32::MAX).to_le_bytes());
        put(&mut bytes, 4, self.end.0.to_le_bytes());
        put(&mut bytes, 12, self.head_crc.to_le_bytes());
        put(&mut bytes, 16, self.crc.to_le_bytes());
        bytes
    }

    /// Nothing if these are not the bytes of one that follows what has this CRC: its length is known
    /// to be right before anything is read or waited for.
    fn from_bytes(bytes: &[u8; CHUNK_HEADER_SIZE], crc_before: u32) -> Option<Self> {
        let header = Self {
            length: u32_at(bytes, 0) as usize,
            end: Lsn(u64_at(bytes, 4)),
            head_crc: u32_at(bytes, 12),
            crc: u32_at(bytes, 16),
        };
        let is_one = header.head_crc == crc32c::crc32c_append(crc_before, &bytes[..12])
            && header.length <= CHUNK_SIZE_MAX;
        is_one.then_some(header)
    }

    fn fits(&self, entries: &[u8]) -> bool {
        entries.len() == self.length && crc32c::crc32c_append(self.head_crc, entries) == self.crc
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
        "start the agent if it does not run: it cuts off what a power cut has left; if that is not it, \
         stop the agent, move the files of [decode] directory away, and start it: decoding begins anew \
         from there",
    )
}
