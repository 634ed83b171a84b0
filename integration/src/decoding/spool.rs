//! The files of a follower's row spool, read on their own: how far it reaches, and spoiled copies.
//!
//! The layout is that of `agent/src/spool.rs`; whether CRCs are right is the agent's to say.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walfmt::Lsn;

const FILE_HEADER_BYTES: u64 = 52;
const CHUNK_HEADER_BYTES: u64 = 20;

/// A chunk of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkAt {
    /// Where it begins.
    pub offset: u64,
    /// How long it is.
    pub length: u64,
    /// All rows before this position are in it or before it.
    pub end: Lsn,
}

/// Looks at a spool again and again. What was whole once must stay.
#[derive(Debug)]
pub struct SpoolWatch {
    directory: PathBuf,
    file: Option<PathBuf>,
    chunks: Vec<ChunkAt>,
}

impl SpoolWatch {
    /// Looks at a directory that may not be there yet.
    #[must_use]
    pub fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), file: None, chunks: Vec::new() }
    }

    /// The end of the last whole chunk; invalid if there is none.
    ///
    /// # Errors
    /// What was there before is gone.
    pub fn end(&mut self) -> Result<Lsn> {
        let newest = files(&self.directory)?.pop();
        if newest != self.file {
            (self.file, self.chunks) = (newest, Vec::new());
        }
        let Some(path) = &self.file else { return Ok(Lsn::INVALID) };
        let begin = self.offset();
        let (file, length) = open(path)?;
        ensure!(length >= begin || self.chunks.is_empty(), "whole chunks of {path:?} were cut off");
        chunks_from(&file, length, begin, &mut self.chunks)?;
        Ok(self.chunks.last().map_or(Lsn::INVALID, |chunk| chunk.end))
    }

    /// Leaves the first `bytes` bytes of a chunk of twice that at the end, as a kill in the middle of a
    /// write does. Nobody may be writing. False if there is no chunk yet that it could follow.
    ///
    /// # Errors
    /// The operating system's.
    pub fn tear(&mut self, bytes: u32) -> Result<bool> {
        self.end()?;
        let (Some(path), Some(last)) = (&self.file, self.chunks.last()) else { return Ok(false) };
        let (file, length) = open(path)?;
        if length > self.offset() {
            return Ok(false); // a kill has done it
        }
        let mut before = [0; 4];
        file.read_exact_at(&mut before, last.offset + 16)?;
        let mut torn = Vec::new();
        torn.extend((2 * bytes).to_le_bytes());
        torn.extend(last.end.advance(1000).0.to_le_bytes());
        torn.extend(crc32c(u32::from_le_bytes(before), &torn).to_le_bytes());
        torn.resize(bytes as usize, 7);
        OpenOptions::new().append(true).open(path)?.write_all(&torn)?;
        Ok(true)
    }

    fn offset(&self) -> u64 {
        self.chunks.last().map_or(FILE_HEADER_BYTES, |chunk| chunk.offset + chunk.length)
    }
}

/// CRC-32C, going on from `before`.
fn crc32c(before: u32, bytes: &[u8]) -> u32 {
    let next = |crc: u32, _| (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
    !bytes.iter().fold(!before, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), next))
}

/// The files of a spool, oldest first.
///
/// # Errors
/// The operating system's.
pub fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).context("the spool's directory")? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rows") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// How many files do not go on where another one ended: all but the first are there because of a gap.
///
/// # Errors
/// The operating system's.
pub fn bases(directory: &Path) -> Result<usize> {
    let mut bases = 0;
    for path in files(directory)? {
        let mut continues = [0; 4];
        open(&path)?.0.read_exact_at(&mut continues, 28)?;
        bases += usize::from(continues == [0; 4]);
    }
    Ok(bases)
}

/// The whole chunks of a file.
///
/// # Errors
/// The operating system's.
pub fn chunks(path: &Path) -> Result<Vec<ChunkAt>> {
    let (file, length) = open(path)?;
    let mut chunks = Vec::new();
    chunks_from(&file, length, FILE_HEADER_BYTES, &mut chunks)?;
    Ok(chunks)
}

fn open(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).with_context(|| path.display().to_string())?;
    let length = file.metadata()?.len();
    Ok((file, length))
}

fn chunks_from(file: &File, length: u64, begin: u64, chunks: &mut Vec<ChunkAt>) -> Result<()> {
    let mut offset = begin;
    while offset + CHUNK_HEADER_BYTES <= length {
        let mut head = [0; 12];
        match file.read_exact_at(&mut head, offset) {
            // A capture that starts has cut off what was not whole, since the length was asked for.
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
            read => read?,
        }
        let entries = walfmt::bytes::u32_at(&head, 0);
        let end = Lsn(walfmt::bytes::u64_at(&head, 4));
        let whole = CHUNK_HEADER_BYTES + u64::from(entries);
        if offset + whole > length {
            break;
        }
        chunks.push(ChunkAt { offset, length: whole, end });
        offset += whole;
    }
    Ok(())
}

/// How a file of a spool is spoiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Damage {
    /// One bit of a chunk's entries is another.
    Entries,
    /// One bit of a chunk's length is another, so that it seems to end behind the file.
    Length,
    /// One chunk is not there.
    Missing,
    /// One chunk stands there twice.
    Twice,
    /// Two chunks have changed places.
    Swapped,
}

impl Damage {
    /// Every one.
    pub const ALL: [Self; 5] =
        [Self::Entries, Self::Length, Self::Missing, Self::Twice, Self::Swapped];

    /// How many chunks a file must have to be spoiled in its middle.
    pub const CHUNKS_MIN: usize = 5;

    /// Spoils the chunk in the middle of the file.
    ///
    /// # Errors
    /// It has too few.
    pub fn apply(self, path: &Path) -> Result<()> {
        let chunks = chunks(path)?;
        ensure!(chunks.len() >= Self::CHUNKS_MIN, "{} chunks are too few", chunks.len());
        let bytes = fs::read(path)?;
        let at = |chunk: ChunkAt| -> Result<_> {
            let begin = usize::try_from(chunk.offset)?;
            Ok(begin..begin + usize::try_from(chunk.length)?)
        };
        let longest_behind = chunks.len() / 2..chunks.len() - 1;
        let number = longest_behind.max_by_key(|number| chunks[*number].length);
        let number = number.context("chunks in the middle")?;
        let (chunk, next) = (at(chunks[number])?, at(chunks[number + 1])?);
        let mut spoiled = bytes[..chunk.start].to_vec();
        let (whole, behind) = (&bytes[chunk.clone()], &bytes[chunk.end..]);
        match self {
            Self::Entries | Self::Length => {
                let mut whole = whole.to_vec();
                let (byte, bit) =
                    if self == Self::Length { (3, 0x08) } else { (whole.len() / 2, 1) };
                whole[byte] ^= bit;
                spoiled.extend([&whole, behind].concat());
            }
            Self::Missing => spoiled.extend(behind),
            Self::Twice => spoiled.extend([whole, whole, behind].concat()),
            Self::Swapped => {
                spoiled.extend([&bytes[next.clone()], whole, &bytes[next.end..]].concat());
            }
        }
        fs::write(path, spoiled).context("cannot spoil a file")
    }
}
