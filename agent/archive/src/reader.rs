//! Reading WAL from the archive, from any position, while it is being written.

use std::collections::VecDeque;

use walfmt::{Lsn, SegmentName, SegmentNumber, Timeline};

use crate::archive::{Archive, CELL_BYTES, cell_end, corrupt};
use crate::decoder::{DECODING_ROOM, Decoder};
use crate::error::{ArchiveError, Result};
use crate::frame::FrameFault;
use crate::pieces::{PieceError, Pieces};

/// A chunk is handed out when it has this much WAL; the block that passes it is still part of it.
const CHUNK_WAL_BYTES: usize = 256 << 10;

/// Reads one timeline of an archive in order.
///
/// The file may be growing meanwhile, in this process or another: only whole blocks are decoded,
/// and a partial one at the tip is "not yet". Checksums are verified as frames end, so damage is
/// reported at the latest with the last block of its frame; a reader [for
/// records](ArchiveReader::for_records) leaves that to who checks the records.
///
/// - `segment` start `<= begin <= position`, and `wal` holds what was decoded up to `position`.
/// - Everything handed out ends at or before the caller's bound.
#[derive(Debug)]
pub struct ArchiveReader {
    archive: Archive,
    timeline: Timeline,
    segment: SegmentNumber,
    /// None while the segment's file does not exist.
    pieces: Option<Pieces>,
    decoder: Decoder,
    /// The end of what was decoded.
    position: Lsn,
    /// Where the frame of the next piece begins, if one is open.
    frame_start: Lsn,
    /// And where in the file.
    frame_offset: u64,
    /// Where in the file something was wrong, and was looked at again.
    looked_again: Option<u64>,
    /// WAL before this is decoded and thrown away.
    begin: Lsn,
    /// Whether the bytes of the open frame can be copied: they were handed out from its start on.
    copyable: bool,
    chunk: Pending,
    /// A piece decoded beyond the caller's bound.
    ahead: Option<Pending>,
    handed_out: bool,
    /// See [`ArchiveReader::for_records`].
    for_records: bool,
    /// See [`ArchiveReader::for_copies`].
    for_copies: bool,
    /// How long the frames are that are left of a segment that is copied.
    frames: VecDeque<usize>,
}

/// WAL from the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// The segment whose file it comes from.
    pub segment: SegmentName,
    /// The position of the first byte.
    pub start: Lsn,
    /// The position after the last byte; equal to `start` when a frame ends without more WAL.
    pub end: Lsn,
    /// The WAL; empty where a reader [for copies](ArchiveReader::for_copies) has not decoded it.
    pub wal: &'a [u8],
    /// The whole blocks of the file that hold exactly this WAL, or nothing when the reader was
    /// opened in the middle of this frame (a copy of them would lack what they refer to) or
    /// [for records](ArchiveReader::for_records).
    pub file_bytes: Option<&'a [u8]>,
    /// Whether `file_bytes` begin with a frame header.
    pub begins_frame: bool,
    /// Whether `file_bytes` end with a frame's checksum. A chunk never spans two frames.
    pub ends_frame: bool,
}

#[derive(Debug, Default)]
struct Pending {
    start: Lsn,
    wal: Vec<u8>,
    /// How much WAL there is beside `wal`, not decoded.
    copied: u64,
    file_bytes: Vec<u8>,
    begins_frame: bool,
    ends_frame: bool,
    any: bool,
}

impl ArchiveReader {
    /// A reader whose first chunk begins exactly at `lsn`. Decoding begins at the start of the
    /// segment's file, since frames do not say how much they hold; that is done by the first
    /// [`ArchiveReader::next`].
    ///
    /// [`ArchiveError::NotArchived`] if the segment is not here, unless `lsn` is where the
    /// archive's last file ends: then there is nothing *yet*.
    pub fn open(archive: &Archive, timeline: Timeline, lsn: Lsn) -> Result<Self> {
        let size = archive.segment_size();
        let segment = size.segment_of(lsn);
        let name = archive.name(timeline, segment);
        let file = archive.open_segment(name)?;
        if file.is_none() {
            let before = archive.name(timeline, size.segment_before(lsn));
            let at_the_end = size.offset_of(lsn) == 0 && lsn.is_valid() && archive.has(before)?;
            if !at_the_end {
                let have_from = archive.first_segment(timeline)?;
                return Err(ArchiveError::NotArchived { segment: name, have_from });
            }
        }
        let start = size.start_of(segment);
        Ok(Self {
            archive: archive.clone(),
            timeline,
            segment,
            pieces: file.map(|file| Pieces::new(file, 0)),
            decoder: Decoder::new(),
            position: start,
            frame_start: start,
            frame_offset: 0,
            looked_again: None,
            begin: lsn,
            copyable: false,
            chunk: Pending::default(),
            ahead: None,
            handed_out: false,
            for_records: false,
            for_copies: false,
            frames: VecDeque::new(),
        })
    }

    /// For a caller that holds every record's CRC against what it reads, as a
    /// [`walfmt::RecordStream`] does. The checksums of frames would say the same a second time and
    /// are not verified. Chunks come without the file's bytes, and as large as a frame: so they
    /// begin and end with WAL pages, except at the tip and where a writer was restarted.
    #[must_use]
    pub fn for_records(mut self) -> Self {
        self.decoder.ignore_checksums();
        self.for_records = true;
        self.chunk.wal = Self::wal_buffer();
        self
    }

    /// For a caller that only passes the file's bytes on. Of finished segments with one frame for each
    /// cell, whole frames are handed out as they are: `wal` is empty then, and nothing is decoded.
    /// Damage is for the receiver to find, who decodes and checks all of it.
    #[must_use]
    pub fn for_copies(mut self) -> Self {
        self.for_copies = true;
        self
    }

    /// A buffer for the WAL of a chunk; a reader [for records](ArchiveReader::for_records) does not
    /// grow it, except where a chunk had to wait for a larger bound.
    #[must_use]
    pub fn wal_buffer() -> Vec<u8> {
        Vec::with_capacity(CELL_BYTES as usize + DECODING_ROOM)
    }

    /// Goes on at the start of this segment, without what is left of those before it. Does nothing
    /// if it is there already.
    pub fn skip_to(&mut self, segment: SegmentNumber) {
        if segment <= self.segment {
            return;
        }
        let start = self.archive.segment_size().start_of(segment);
        self.segment = segment;
        self.pieces = None;
        (self.position, self.frame_start, self.begin) = (start, start, start);
        self.copyable = false;
        self.looked_again = None;
        self.frames.clear();
        self.chunk.clear();
        self.ahead = None;
        self.handed_out = false;
    }

    /// The timeline that is read.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The segment that was read last, or is to be read next.
    #[must_use]
    pub const fn segment(&self) -> SegmentNumber {
        self.segment
    }

    /// The next WAL up to `bound`, or nothing if there is none yet. Bounds are the positions that
    /// a flush of the writer gave; a block that goes past the bound waits for a larger one.
    pub fn next(&mut self, bound: Lsn) -> Result<Option<Chunk<'_>>> {
        if self.handed_out {
            self.chunk.clear();
            self.handed_out = false;
        }
        if let Some(ahead) = self.ahead.take_if(|ahead| ahead.end() <= bound) {
            self.chunk = ahead;
        }
        if self.for_copies && !self.chunk.any && self.ahead.is_none() {
            self.copy_frame(bound)?;
        }
        while self.ahead.is_none() && !self.chunk.ends_frame && !self.is_full() {
            if !self.step(bound)? {
                break;
            }
        }
        if !self.chunk.any {
            return Ok(None);
        }
        self.handed_out = true;
        let copyable = self.copyable && !self.for_records;
        let chunk = &self.chunk;
        Ok(Some(Chunk {
            segment: self.archive.name(self.timeline, self.segment),
            start: chunk.start,
            end: chunk.end(),
            wal: &chunk.wal,
            file_bytes: copyable.then_some(&chunk.file_bytes),
            begins_frame: copyable && chunk.begins_frame,
            ends_frame: chunk.ends_frame,
        }))
    }

    /// Takes the WAL of the chunk handed out last, for the price of a buffer in which the next one
    /// goes.
    pub fn take_wal(&mut self, buffer: Vec<u8>) -> Vec<u8> {
        debug_assert!(self.handed_out, "a chunk was handed out");
        std::mem::replace(&mut self.chunk.wal, buffer)
    }

    /// Checks that a segment that was read to its last byte ends well: with a whole frame if the
    /// next segment is there, and with nothing after it.
    pub(crate) fn finish_segment(&mut self) -> Result<()> {
        // A frame that ends after the last byte gives one more chunk, without WAL.
        while self.next(self.position)?.is_some() {}
        let next = self.archive.name(self.timeline, self.segment.next());
        if self.in_frame() && self.archive.has(next)? {
            // It may have been ended between the two looks, so look again.
            while self.next(self.position)?.is_some() {}
            if self.in_frame() {
                return Err(self.corrupt(FrameFault::EndsEarly));
            }
        }
        self.check_no_rest()
    }

    /// Takes the next frame as it is, if the whole segment can be copied like that.
    fn copy_frame(&mut self, bound: Lsn) -> Result<()> {
        if self.in_frame() || self.position < self.begin {
            return Ok(());
        }
        let size = self.archive.segment_size();
        let at_segment_end = self.position == size.end_of(self.segment);
        if at_segment_end && !(self.position < bound && self.open_next()?) {
            return Ok(());
        }
        if self.pieces.is_none() {
            return Ok(()); // opened by the other way
        }
        if self.position == size.start_of(self.segment) && bound >= size.end_of(self.segment) {
            self.frames = self.one_frame_for_each_cell()?.unwrap_or_default();
        }
        let (Some(&length), Some(pieces)) = (self.frames.front(), &mut self.pieces) else {
            return Ok(());
        };
        let (offset, bytes) = (pieces.offset(), &mut self.chunk.file_bytes);
        bytes.resize(length, 0);
        if pieces.file().read_at(offset, bytes)? < length {
            // Cut off since it was measured: the other way finds out why.
            bytes.clear();
            self.frames.clear();
            return Ok(());
        }
        self.frames.pop_front();
        pieces.restart(offset + length as u64);
        (self.chunk.start, self.chunk.copied) = (self.position, CELL_BYTES);
        (self.chunk.any, self.chunk.begins_frame, self.chunk.ends_frame) = (true, true, true);
        self.copyable = true;
        self.position = self.position.advance(CELL_BYTES);
        Ok(())
    }

    /// How long the frames of this finished segment are, if there is one for each cell. A frame ends
    /// with each cell, so there are more of them only if a writer was restarted in one.
    fn one_frame_for_each_cell(&self) -> Result<Option<VecDeque<usize>>> {
        let name = self.archive.name(self.timeline, self.segment);
        let next = self.archive.name(self.timeline, self.segment.next());
        if !self.archive.has(next)? {
            return Ok(None);
        }
        let Some(file) = self.archive.open_segment(name)? else { return Ok(None) };
        let mut pieces = Pieces::new(file, 0);
        let (mut frames, mut begin) = (VecDeque::new(), 0);
        loop {
            match pieces.peek() {
                Ok(Some((piece, _))) => {
                    pieces.consume(piece);
                    if piece.ends_frame {
                        let length = usize::try_from(pieces.offset() - begin).unwrap_or(usize::MAX);
                        frames.push_back(length);
                        begin = pieces.offset();
                    }
                }
                Ok(None) => break,
                Err(PieceError::File(error)) => return Err(error.into()),
                // The other way says what is wrong.
                Err(PieceError::Fault(_)) => return Ok(None),
            }
        }
        let cells = self.archive.segment_size().bytes() / CELL_BYTES;
        let is_whole = !pieces.in_frame() && !pieces.has_rest()?;
        Ok((is_whole && frames.len() as u64 == cells).then_some(frames))
    }

    /// Decodes one piece into the chunk; false if there is none, or none that may be handed out.
    fn step(&mut self, bound: Lsn) -> Result<bool> {
        let at_segment_end = self.position == self.archive.segment_size().end_of(self.segment);
        if at_segment_end && !self.in_frame() {
            // What was read belongs to the segment before, so it is handed out first. The next
            // file is not touched before its WAL may be read.
            return Ok(!self.chunk.any && self.position < bound && self.open_next()?);
        }
        let Some(pieces) = &mut self.pieces else {
            let name = self.archive.name(self.timeline, self.segment);
            self.pieces = self.archive.open_segment(name)?.map(|file| Pieces::new(file, 0));
            return if self.pieces.is_some() { Ok(true) } else { self.removed(self.segment) };
        };
        let offset = pieces.offset();
        let (piece, bytes) = match pieces.peek() {
            Ok(Some(found)) => found,
            Ok(None) => return self.check_tip(bound),
            Err(PieceError::File(error)) => return Err(error.into()),
            Err(PieceError::Fault(fault)) => return self.look_again(bound, fault),
        };
        if piece.begins_frame {
            self.decoder.reset();
            (self.frame_start, self.frame_offset) = (self.position, offset);
            self.copyable = self.position >= self.begin;
        }
        let room = cell_end(self.frame_start).bytes_since(self.position);
        let wal_before = self.chunk.wal.len();
        let decoded = self.decoder.decode(bytes, piece.ends_frame, room, &mut self.chunk.wal);
        if let Err(fault) = decoded {
            self.chunk.wal.truncate(wal_before);
            return self.look_again(bound, fault);
        }

        let start = self.position;
        self.position = start.advance((self.chunk.wal.len() - wal_before) as u64);
        let beyond = self.position > bound && self.position > self.begin;
        if self.position < self.begin || (self.position == self.begin && !self.copyable) {
            self.chunk.wal.truncate(wal_before);
        } else {
            let skipped = self.begin.bytes_since(start);
            if skipped > 0 {
                // Only the first chunk is trimmed, so the chunk is empty before this piece.
                self.chunk.wal.drain(..usize::try_from(skipped).expect("less than a block"));
            }
            let mut alone = Pending::default();
            let target = if beyond {
                alone.wal = self.chunk.wal.split_off(wal_before);
                &mut alone
            } else {
                &mut self.chunk
            };
            if !target.any {
                target.start = start.max(self.begin);
                target.begins_frame = piece.begins_frame;
            }
            target.any = true;
            target.ends_frame = piece.ends_frame;
            if !self.for_records {
                target.file_bytes.extend_from_slice(bytes);
            }
            if beyond {
                self.ahead = Some(alone);
            }
        }
        pieces.consume(piece);
        self.frames.clear(); // they were measured from another place on
        Ok(!beyond)
    }

    /// Something is wrong with the next piece. While its writer makes good for a write that failed,
    /// as on a full disk, a file may show bytes of both times; so it is looked at once more, from the
    /// frame's start on. Before the bound it is damage then; behind it, where nothing is promised,
    /// there is nothing yet.
    fn look_again(&mut self, bound: Lsn, fault: FrameFault) -> Result<bool> {
        let at = self.pieces.as_ref().map_or(0, Pieces::offset);
        let is_promised = self.position < bound;
        let before = std::mem::replace(&mut self.looked_again, is_promised.then_some(at));
        if is_promised && before == Some(at) {
            return Err(self.corrupt(fault));
        }
        let name = self.archive.name(self.timeline, self.segment);
        let Some(file) = self.archive.open_segment(name)? else {
            return Err(self.corrupt(fault));
        };
        let in_frame = self.in_frame();
        let from = if in_frame { self.frame_offset } else { at };
        let mut pieces = Pieces::new(file, from);
        self.decoder.reset();
        let mut wal = Self::wal_buffer();
        while pieces.offset() < at {
            let again = match pieces.peek() {
                Ok(Some((piece, bytes))) => {
                    let room = cell_end(self.frame_start).bytes_since(self.frame_start);
                    let room = room.saturating_sub(wal.len() as u64);
                    self.decoder.decode(bytes, piece.ends_frame, room, &mut wal).map(|()| piece)
                }
                Ok(_) => Err(FrameFault::EndsEarly),
                Err(PieceError::File(error)) => return Err(error.into()),
                Err(PieceError::Fault(fault)) => Err(fault),
            };
            match again {
                Ok(piece) => pieces.consume(piece),
                Err(fault) => return Err(self.corrupt(fault)),
            }
        }
        if in_frame && self.frame_start.advance(wal.len() as u64) != self.position {
            return Err(self.corrupt(fault));
        }
        pieces.forget_rest();
        self.pieces = Some(pieces);
        Ok(is_promised)
    }

    /// No whole piece follows: is that "not yet", or must there be one? A segment is followed by
    /// another file only when it is finished.
    fn check_tip(&mut self, bound: Lsn) -> Result<bool> {
        let next = self.archive.name(self.timeline, self.segment.next());
        if self.chunk.any || self.position >= bound || !self.archive.has(next)? {
            return Ok(false);
        }
        // It may have been finished between the two looks, so look again.
        let Some(pieces) = &mut self.pieces else {
            return Ok(false);
        };
        match pieces.peek() {
            Ok(None) => {}
            _ => return Ok(true),
        }
        let fault = if pieces.in_frame() || pieces.has_rest()? {
            FrameFault::EndsEarly
        } else {
            let size = self.archive.segment_size();
            let end = self.position.bytes_since(size.start_of(self.segment));
            FrameFault::SegmentEndsEarly { end, expected: size.bytes() }
        };
        Err(self.corrupt(fault))
    }

    fn open_next(&mut self) -> Result<bool> {
        self.check_no_rest()?;
        let next = self.segment.next();
        let name = self.archive.name(self.timeline, next);
        let Some(file) = self.archive.open_segment(name)? else {
            return self.removed(next);
        };
        self.segment = next;
        self.looked_again = None;
        self.pieces = Some(Pieces::new(file, 0));
        Ok(true)
    }

    /// There is no such file, although its WAL may be read, or soon may be. If there are later ones,
    /// it was removed, and waiting for it would be in vain.
    fn removed(&self, number: SegmentNumber) -> Result<bool> {
        let segment = self.archive.name(self.timeline, number);
        let last = self.archive.last_segment(self.timeline)?;
        if last.is_some_and(|last| self.archive.number(last) > number) {
            let have_from = self.archive.first_segment(self.timeline)?;
            return Err(ArchiveError::NotArchived { segment, have_from });
        }
        Ok(false)
    }

    fn is_full(&self) -> bool {
        // For records a chunk is a frame, and that ends with its cell at the latest.
        !self.for_records && self.chunk.wal.len() >= CHUNK_WAL_BYTES
    }

    fn in_frame(&self) -> bool {
        self.pieces.as_ref().is_some_and(Pieces::in_frame)
    }

    fn check_no_rest(&mut self) -> Result<()> {
        if let Some(pieces) = &mut self.pieces
            && !pieces.in_frame()
            && pieces.has_rest()?
        {
            return Err(self.corrupt(FrameFault::TrailingBytes));
        }
        Ok(())
    }

    fn corrupt(&self, fault: FrameFault) -> ArchiveError {
        let offset = self.pieces.as_ref().map_or(0, Pieces::offset);
        corrupt(self.archive.name(self.timeline, self.segment), offset, fault)
    }
}

impl Pending {
    fn end(&self) -> Lsn {
        self.start.advance(self.wal.len() as u64 + self.copied)
    }

    fn clear(&mut self) {
        self.wal.clear();
        self.copied = 0;
        self.file_bytes.clear();
        (self.any, self.begins_frame, self.ends_frame) = (false, false, false);
    }
}
