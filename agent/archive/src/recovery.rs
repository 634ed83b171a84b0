//! What the last file of a timeline holds after a crash, and where to go on.
//!
//! # Torn tail or corruption?
//!
//! A torn tail is cut; corruption is reported and nothing is touched, for a cut would hide that
//! WAL was lost. No state file says how far the archive was synced, so the evidence is taken from
//! the files themselves:
//!
//! 1. *Any file but the last* was finished and durable before its successor was created. Whatever
//!    is wrong with it is corruption. Readers apply this rule to every file; recovery checks the
//!    file before the last when the last is empty.
//! 2. In the last file, *a frame that is followed by nothing wrong* (it ends, and the file or the
//!    next frame follows) but does not decode or has the wrong checksum is corruption: an
//!    interrupted append leaves a frame without an end.
//! 3. So is *anything wrong before an intact frame*: one that decodes with the right checksum, and
//!    from which the blocks go on without fault to the end of the file. Appends are in order. (That
//!    they go on matters: a table may hold zstd files of its own, which stand as they are in
//!    incompressible WAL.)
//! 4. Rules 2 and 3 do not hold when there is *a lost write*: a whole sector of zeros, or zeros
//!    from the start of a block to the end of its sector. The kernel writes back un-synced pages in
//!    any order, and a power cut leaves zeros for those that were not. Compressed blocks have no
//!    such runs.
//! 5. Everything else is a torn tail: the file ends inside a block, or garbage follows the last
//!    whole block.
//! 6. Whatever the rules say, a cut below a position *known to be durable* by the caller
//!    ([`WriterOptions::durable_at_least`](crate::WriterOptions)) is corruption.
//!
//! What remains in doubt is the last frame, when it was not ended: its blocks decode, but nothing
//! has checked their content. [`Recovery::unchecked_from`] says where it begins. The caller checks
//! the records in it, and uses [`ArchiveWriter::cut_back`](crate::ArchiveWriter::cut_back) if one is
//! wrong. Damage to the header of the last frame, or of a block in it, looks like a torn tail; it
//! costs at most one cell of WAL, which the source is asked for again.

use walfmt::{Lsn, SegmentName};
use xxhash_rust::xxh64::Xxh64;

use crate::archive::{Archive, cell_end, corrupt};
use crate::decoder::Decoder;
use crate::error::{ArchiveError, Result};
use crate::files::{File, FileError};
use crate::frame::{FrameFault, MAGIC, frame_end};
use crate::pieces::{PieceError, Pieces};

/// The unit in which a disk loses writes.
const SECTOR_BYTES: u64 = 512;

/// A run of zeros shorter than this, at the end of a file, is no evidence.
const LOST_BYTES_MIN: usize = 16;

/// What opening the archive for writing found and did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recovery {
    /// The segment whose file is the last.
    pub segment: SegmentName,
    /// How many bytes of the file were cut off; 0 after a clean stop.
    pub cut_bytes: u64,
    /// From here to [`Recovery::content_end`] the WAL had no checksum: its frame was not ended.
    pub unchecked_from: Lsn,
    /// Where the WAL ends that is left.
    pub content_end: Lsn,
}

/// The last frame of a file that was recovered: what may be cut further.
#[derive(Debug)]
pub(crate) struct Tail {
    segment: SegmentName,
    frame_offset: u64,
    frame_start: Lsn,
    blocks: Vec<BlockEnd>,
}

#[derive(Clone, Copy, Debug)]
struct BlockEnd {
    offset: u64,
    lsn: Lsn,
    compressed: bool,
}

/// Recovers the file of `segment`, the last of its timeline. On return the file ends with a
/// whole frame, but is not synced. `file` and `reading` are two handles of it.
pub(crate) fn recover(
    archive: &Archive,
    segment: SegmentName,
    file: &dyn File,
    reading: Box<dyn File>,
    durable_at_least: Lsn,
) -> Result<(Recovery, Option<Tail>)> {
    let file_bytes = file.len()?;
    let start = archive.segment_size().start_of(archive.number(segment));
    let mut scan = Scan::new(
        segment,
        Pieces::new(reading, 0),
        start,
        start.advance(archive.segment_size().bytes()),
    );
    let problem = scan.run()?;
    let frame_start = scan.tail.frame_start;
    if problem.is_none() {
        // Every frame is whole. An empty file may also be one that lost its content.
        if frame_start < durable_at_least {
            let (offset, found, expected) = (file_bytes, frame_start, durable_at_least);
            return Err(ArchiveError::LostDurable { segment, offset, found, expected });
        }
        let (cut_bytes, unchecked_from, content_end) = (0, frame_start, frame_start);
        return Ok((Recovery { segment, cut_bytes, unchecked_from, content_end }, None));
    }

    if let Some((offset, fault)) = scan.proof_of_corruption(problem.flatten(), file_bytes)? {
        return Err(corrupt(segment, offset, fault));
    }
    scan.distrust_lost_writes(file_bytes)?;
    let found = scan.tail.blocks.last().map_or(frame_start, |block| block.lsn);
    let kept_bytes = scan.tail.blocks.last().map_or(scan.tail.frame_offset, |block| block.offset);
    if found < durable_at_least {
        let (offset, expected) = (kept_bytes, durable_at_least);
        return Err(ArchiveError::LostDurable { segment, offset, found, expected });
    }
    let Scan { mut pieces, mut tail, .. } = scan;
    tail.cut(file, &mut pieces, Lsn(u64::MAX))?;
    let recovery = Recovery {
        segment,
        cut_bytes: file_bytes - kept_bytes,
        unchecked_from: frame_start,
        content_end: found,
    };
    Ok((recovery, Some(tail)))
}

impl Tail {
    /// Cuts the file after the last block that ends at or before `limit`, and ends the frame.
    /// Returns the length of the file and the position that were reached.
    pub(crate) fn cut(
        &mut self,
        file: &dyn File,
        pieces: &mut Pieces,
        limit: Lsn,
    ) -> Result<(u64, Lsn)> {
        self.blocks.retain(|block| block.lsn <= limit);
        let Some(&BlockEnd { offset: kept, lsn, .. }) = self.blocks.last() else {
            file.set_len(self.frame_offset)?;
            return Ok((self.frame_offset, self.frame_start));
        };
        let hash = self.hash(pieces).map_err(|error| match error {
            PieceError::File(error) => ArchiveError::from(error),
            PieceError::Fault(fault) => corrupt(self.segment, pieces.offset(), fault),
        })?;
        file.set_len(kept)?;
        let end = frame_end(hash);
        file.write_at(kept, &end)?;
        Ok((kept + end.len() as u64, lsn))
    }

    /// The hash of what the kept blocks decode to.
    fn hash(&self, pieces: &mut Pieces) -> Result<u64, PieceError> {
        let mut decoder = Decoder::new();
        let mut hash = Xxh64::new(0);
        let mut wal = Vec::new();
        pieces.restart(self.frame_offset);
        for _ in &self.blocks {
            let (piece, bytes) = pieces.peek()?.ok_or(PieceError::Fault(FrameFault::EndsEarly))?;
            wal.clear();
            decoder.decode(bytes, false, u64::MAX, &mut wal).map_err(PieceError::Fault)?;
            hash.update(&wal);
            pieces.consume(piece);
        }
        Ok(hash.digest())
    }
}

/// A walk over a file. After [`Scan::run`], `tail` is the frame that was reached.
struct Scan {
    pieces: Pieces,
    decoder: Decoder,
    tail: Tail,
    segment_end: Lsn,
}

/// Where a file is wrong, and how; nothing if it just ends.
type Problem = Option<(u64, FrameFault)>;

impl Scan {
    fn new(segment: SegmentName, pieces: Pieces, start: Lsn, segment_end: Lsn) -> Self {
        let tail =
            Tail { segment, frame_offset: pieces.offset(), frame_start: start, blocks: Vec::new() };
        Self { pieces, decoder: Decoder::new(), tail, segment_end }
    }

    /// Walks and decodes to the end of the file, or to the first problem. Nothing is wrong if the
    /// file ends with a frame.
    fn run(&mut self) -> Result<Option<Problem>, FileError> {
        let mut wal = Vec::new();
        loop {
            let (position, offset) = (self.position(), self.pieces.offset());
            let (piece, bytes) = match self.pieces.peek() {
                Ok(Some(found)) => found,
                Ok(None) => {
                    let whole = !self.pieces.in_frame() && !self.pieces.has_rest()?;
                    return Ok((!whole).then_some(None));
                }
                Err(PieceError::File(error)) => return Err(error),
                Err(PieceError::Fault(fault)) => return Ok(Some(Some((offset, fault)))),
            };
            if piece.begins_frame {
                if position >= self.segment_end {
                    return Ok(Some(Some((offset, FrameFault::TrailingBytes))));
                }
                self.decoder.reset();
            }
            let room = cell_end(self.tail.frame_start).bytes_since(position);
            wal.clear();
            if let Err(fault) = self.decoder.decode(bytes, piece.ends_frame, room, &mut wal) {
                return Ok(Some(Some((offset, fault))));
            }
            let lsn = position.advance(wal.len() as u64);
            self.pieces.consume(piece);
            let offset = self.pieces.offset();
            if piece.ends_frame {
                self.tail.frame_offset = offset;
                self.tail.frame_start = lsn;
                self.tail.blocks.clear();
            } else {
                let compressed = piece.compressed;
                self.tail.blocks.push(BlockEnd { offset, lsn, compressed });
            }
        }
    }

    fn position(&self) -> Lsn {
        self.tail.blocks.last().map_or(self.tail.frame_start, |block| block.lsn)
    }

    /// Rules 2 to 4 of the module's comment.
    fn proof_of_corruption(
        &mut self,
        problem: Problem,
        file_bytes: u64,
    ) -> Result<Problem, FileError> {
        let frame_offset = self.tail.frame_offset;
        let at = self.tail.blocks.last().map_or(frame_offset, |block| block.offset);
        let intact = self.intact_frame_after(at)?;
        let finished = problem.is_some() && self.frame_is_finished()?;
        if intact.is_none() && !finished {
            return Ok(None);
        }
        let until = intact.unwrap_or(file_bytes);
        if self.has_lost_write(frame_offset, until, file_bytes)? {
            return Ok(None);
        }
        Ok(Some(problem.unwrap_or((at, FrameFault::EndsEarly))))
    }

    /// Whether the frame at the tail has an end, with another frame or the end of file after it.
    fn frame_is_finished(&mut self) -> Result<bool, FileError> {
        self.pieces.restart(self.tail.frame_offset);
        loop {
            match self.pieces.peek() {
                Ok(Some((piece, _))) => {
                    self.pieces.consume(piece);
                    if piece.ends_frame {
                        break;
                    }
                }
                Err(PieceError::File(error)) => return Err(error),
                Ok(None) | Err(PieceError::Fault(_)) => return Ok(false),
            }
        }
        match self.pieces.peek() {
            Ok(_) => Ok(true),
            Err(PieceError::File(error)) => Err(error),
            Err(PieceError::Fault(_)) => Ok(false),
        }
    }

    /// The first offset after `from` of a frame that decodes, with no fault up to the end of file.
    fn intact_frame_after(&mut self, from: u64) -> Result<Option<u64>, FileError> {
        let magic = MAGIC.to_le_bytes();
        let mut window = vec![0; 256 << 10];
        let mut at = from + 1;
        loop {
            let length = self.pieces.file().read_at(at, &mut window)?;
            if length < magic.len() {
                return Ok(None);
            }
            for (found, _) in
                window[..length].windows(magic.len()).enumerate().filter(|w| w.1 == magic)
            {
                let offset = at + found as u64;
                if self.is_intact_from(offset)? {
                    return Ok(Some(offset));
                }
            }
            at += (length - magic.len() + 1) as u64;
        }
    }

    fn is_intact_from(&mut self, offset: u64) -> Result<bool, FileError> {
        let mut wal = Vec::new();
        let mut decoded = false;
        self.decoder.reset();
        self.pieces.restart(offset);
        loop {
            let (piece, bytes) = match self.pieces.peek() {
                Ok(Some(found)) => found,
                Ok(None) => return Ok(decoded),
                Err(PieceError::File(error)) => return Err(error),
                Err(PieceError::Fault(_)) => return Ok(false),
            };
            if !decoded {
                wal.clear();
                if self.decoder.decode(bytes, piece.ends_frame, u64::MAX, &mut wal).is_err() {
                    return Ok(false);
                }
                decoded = piece.ends_frame;
            }
            self.pieces.consume(piece);
        }
    }

    fn has_lost_write(&self, from: u64, until: u64, file_bytes: u64) -> Result<bool, FileError> {
        let file = self.pieces.file();
        let mut sector = from / SECTOR_BYTES * SECTOR_BYTES;
        while sector < until {
            if is_lost(file, sector, file_bytes, LOST_BYTES_MIN)? {
                return Ok(true);
            }
            sector += SECTOR_BYTES;
        }
        let starts = self.tail.blocks.iter().map(|block| block.offset);
        for start in std::iter::once(from).chain(starts) {
            if is_lost(file, start, file_bytes, 1)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Drops blocks from the first compressed one on that a lost write has touched. (A raw block
    /// may well hold a sector of zeros.)
    fn distrust_lost_writes(&mut self, file_bytes: u64) -> Result<(), FileError> {
        let mut start = self.tail.frame_offset;
        for (index, block) in self.tail.blocks.iter().enumerate() {
            let mut sector = start / SECTOR_BYTES * SECTOR_BYTES;
            while block.compressed && sector < block.offset {
                if is_lost(self.pieces.file(), sector, file_bytes, LOST_BYTES_MIN)? {
                    self.tail.blocks.truncate(index);
                    return Ok(());
                }
                sector += SECTOR_BYTES;
            }
            start = block.offset;
        }
        Ok(())
    }
}

/// Whether the file has only zeros from `offset` to the end of that sector, or of the file.
fn is_lost(file: &dyn File, offset: u64, file_bytes: u64, least: usize) -> Result<bool, FileError> {
    let end = (offset / SECTOR_BYTES + 1) * SECTOR_BYTES;
    let length = end.min(file_bytes).saturating_sub(offset) as usize;
    let mut sector = [0; SECTOR_BYTES as usize];
    let length = file.read_at(offset, &mut sector[..length])?;
    Ok(length >= least && sector[..length].iter().all(|&byte| byte == 0))
}
