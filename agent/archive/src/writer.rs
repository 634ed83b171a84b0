//! Writing the archive. Only a node's source does, and there is one source.

use std::fmt;
use std::path::PathBuf;

use walfmt::{Lsn, SegmentName, SegmentNumber, Timeline};
use xxhash_rust::xxh64::Xxh64;

use crate::archive::{Archive, cell_end, corrupt};
use crate::compressor::FrameCompressor;
use crate::decoder::Decoder;
use crate::error::{ArchiveError, Result};
use crate::files::{File, Lock};
use crate::frame::{FrameFault, Piece, frame_end};
use crate::pieces::{PieceError, Pieces};
use crate::reader::ArchiveReader;
use crate::recovery::{Recovery, Tail, recover};

/// Compressed bytes are written to the file when there are this many, flushed or not.
const UNWRITTEN_BYTES_MAX: usize = 256 << 10;

/// The most WAL that one [`ArchiveWriter::receive`] may decode to: what a malicious peer can make
/// us allocate.
pub const RECEIVED_WAL_BYTES_MAX: u64 = 16 << 20;

/// How an archive is written.
#[derive(Clone, Copy, Debug)]
pub struct WriterOptions {
    /// The zstd level of what is compressed here. On mixed WAL level 1 is better than level 3, in
    /// ratio and speed.
    pub level: i32,
    /// A position up to which the archive is known, from elsewhere, to have been durable. If
    /// less is found, that is corruption. [`Lsn::INVALID`] if nothing is known.
    pub durable_at_least: Lsn,
}

impl Default for WriterOptions {
    fn default() -> Self {
        Self { level: 1, durable_at_least: Lsn::INVALID }
    }
}

/// The one writer of an archive, on one timeline.
///
/// - `durable <= readable <= content_end`, all in the same file or at its borders.
/// - The file of the next segment is created only when this one is finished and durable.
/// - A frame that is open here began in this file; it ends at the latest at its cell's end.
/// - After an error of a write or sync nothing more is written: [`ArchiveError::Stopped`].
pub struct ArchiveWriter {
    archive: Archive,
    timeline: Timeline,
    segment: SegmentNumber,
    file: Box<dyn File>,
    file_bytes: u64,
    content_end: Lsn,
    readable: Lsn,
    durable: Lsn,
    frame: OpenFrame,
    compressor: FrameCompressor,
    /// Compressed, not yet in the file.
    unwritten: Vec<u8>,
    /// What went into files since this writer was opened.
    written_bytes: u64,
    decoder: Decoder,
    /// Whether the decoder stands where the open copied frame ends.
    decoder_in_step: bool,
    file_dirty: bool,
    dir_dirty: bool,
    stopped: bool,
    recovery: Recovery,
    tail: Option<Tail>,
    _lock: Box<dyn Lock>,
}

/// The frame that the file ends in.
#[derive(Clone)]
enum OpenFrame {
    None,
    /// Begun by our compressor, which knows how to end it.
    Own,
    /// Copied from a peer.
    Copied(CopiedFrame),
}

#[derive(Clone)]
struct CopiedFrame {
    /// Where it begins in the file.
    offset: u64,
    start: Lsn,
    /// Of the content so far, for the checksum if we must end it.
    hash: Xxh64,
}

impl ArchiveWriter {
    /// Opens a timeline for writing: takes the archive's lock, recovers the last file (see
    /// [`crate::recovery`]) and makes it durable. If the timeline has no files, it will begin at
    /// `begin`, which must be a segment's start; otherwise `begin` is not looked at, and the caller
    /// goes on from [`ArchiveWriter::content_end`].
    pub fn open(
        archive: &Archive,
        timeline: Timeline,
        begin: Lsn,
        options: WriterOptions,
    ) -> Result<Self> {
        let lock_path = archive.dir().join(".lock");
        let Some(lock) = archive.files().lock(&lock_path)? else {
            return Err(ArchiveError::Locked { path: lock_path });
        };
        let size = archive.segment_size();
        let last = archive.last_segment(timeline)?;
        if last.is_none() && size.offset_of(begin) != 0 {
            return Err(ArchiveError::NotASegmentStart { timeline, lsn: begin });
        }
        let segment = last.unwrap_or_else(|| archive.name(timeline, size.segment_of(begin)));
        let path = archive.segment_path(segment);
        let file = archive.files().open_append(&path)?;
        let reading = archive.files().open_read(&path)?;
        let (recovery, tail) =
            recover(archive, segment, &*file, reading, options.durable_at_least)?;
        let file_bytes = file.len()?;
        let number = archive.number(segment);
        if file_bytes == 0 {
            check_finished(archive, timeline, number)?;
        }
        let mut writer = Self {
            archive: archive.clone(),
            timeline,
            segment: number,
            file,
            file_bytes,
            content_end: recovery.content_end,
            readable: recovery.content_end,
            durable: recovery.content_end,
            frame: OpenFrame::None,
            compressor: FrameCompressor::new(options.level)?,
            unwritten: Vec::new(),
            written_bytes: 0,
            decoder: Decoder::new(),
            decoder_in_step: false,
            // What was found may never have been synced, even when nothing was cut.
            file_dirty: true,
            dir_dirty: true,
            stopped: false,
            recovery,
            tail,
            _lock: lock,
        };
        writer.write_again()?;
        writer.sync()?;
        Ok(writer)
    }

    /// Where the next bytes belong: the position after the last archived byte, readable or not.
    #[must_use]
    pub fn content_end(&self) -> Lsn {
        self.content_end
    }

    /// Up to where readers may read.
    #[must_use]
    pub fn readable(&self) -> Lsn {
        self.readable
    }

    /// Up to where the last [`ArchiveWriter::sync`] made it durable.
    #[must_use]
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// How many compressed bytes have been written since this writer was opened.
    #[must_use]
    pub fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// The timeline that is written.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.timeline
    }

    /// The segment whose file is written.
    #[must_use]
    pub fn segment(&self) -> SegmentName {
        self.archive.name(self.timeline, self.segment)
    }

    /// What opening found.
    #[must_use]
    pub fn recovery(&self) -> Recovery {
        self.recovery
    }

    /// Lets a timeline begin at `begin` instead, if the archive has no WAL of it. On return that is
    /// durable. A power cut may have emptied an archive that was never synced: a caller for whom "no
    /// WAL" is to mean "nobody was given any" syncs before it gives the first.
    ///
    /// [`ArchiveError::NotContiguous`] if there is WAL, and `begin` is not where it ends;
    /// [`ArchiveError::NotASegmentStart`] if `begin` is none. Then all is as before.
    pub fn begin_at(&mut self, begin: Lsn) -> Result<()> {
        self.check_running()?;
        let (timeline, size) = (self.timeline, self.archive.segment_size());
        if size.offset_of(begin) != 0 {
            return Err(ArchiveError::NotASegmentStart { timeline, lsn: begin });
        }
        let has_wal = self.content_end != size.start_of(self.segment)
            || self.archive.first_segment(timeline)? != Some(self.segment());
        if has_wal || begin == self.content_end {
            return self.check_contiguous(begin);
        }
        self.stopped = true;
        // First, or a crash leaves two files, of which the first is not whole.
        self.archive.remove_segment(self.segment())?;
        self.archive.files().sync_dir(self.archive.dir())?;
        self.enter_segment_of(begin)?;
        self.stopped = false;
        (self.content_end, self.readable, self.durable) = (begin, begin, begin);
        let segment = self.segment();
        self.recovery =
            Recovery { segment, cut_bytes: 0, unchecked_from: begin, content_end: begin };
        self.begin_writing();
        Ok(())
    }

    /// Cuts WAL off that recovery could not check, when a record in it turned out to be wrong. Only
    /// before anything was written, and no further than [`Recovery::unchecked_from`]. Returns where
    /// the content ends now: the last block border at or before `to`.
    pub fn cut_back(&mut self, to: Lsn) -> Result<Lsn> {
        self.check_running()?;
        let from = self.recovery.unchecked_from;
        let cannot = ArchiveError::CannotCut { found: to, from, to: self.content_end };
        let Some(tail) = self.tail.as_mut().filter(|_| from <= to && to <= self.content_end) else {
            return if to == self.content_end { Ok(to) } else { Err(cannot) };
        };
        let path = self.archive.segment_path(self.archive.name(self.timeline, self.segment));
        let mut pieces = Pieces::new(self.archive.files().open_read(&path)?, 0);
        self.stopped = true;
        let (file_bytes, content_end) = tail.cut(&*self.file, &mut pieces, to)?;
        self.stopped = false;
        self.file_bytes = file_bytes;
        (self.content_end, self.readable, self.durable) = (content_end, content_end, content_end);
        self.file_dirty = true;
        self.sync()
    }

    /// Appends WAL that follows the content so far. It is readable after the next flush.
    ///
    /// [`ArchiveError::NotContiguous`] if `lsn` is not [`ArchiveWriter::content_end`]; then nothing
    /// was taken.
    pub fn append(&mut self, lsn: Lsn, mut wal: &[u8]) -> Result<()> {
        self.check_running()?;
        self.check_contiguous(lsn)?;
        while !wal.is_empty() {
            if !matches!(self.frame, OpenFrame::Own) {
                self.end_frame()?;
                self.enter_segment_of(self.content_end)?;
                self.begin_writing();
                self.frame = OpenFrame::Own;
            }
            let cell_end = cell_end(self.content_end);
            let room =
                usize::try_from(cell_end.bytes_since(self.content_end)).unwrap_or(usize::MAX);
            let (now, later) = wal.split_at(room.min(wal.len()));
            self.compress(now)?;
            wal = later;
            if self.content_end == cell_end {
                self.end_frame()?;
            } else if self.unwritten.len() >= UNWRITTEN_BYTES_MAX {
                self.write_out()?;
            }
        }
        Ok(())
    }

    /// Makes everything appended so far readable. Callers flush after each group of whole records.
    /// Returns where the content ends.
    pub fn flush(&mut self) -> Result<Lsn> {
        self.check_running()?;
        if matches!(self.frame, OpenFrame::Own) && self.readable < self.content_end {
            self.stopped = true;
            self.compressor.flush(&mut self.unwritten)?;
            self.stopped = false;
            self.write_out()?;
        }
        self.readable = self.content_end;
        Ok(self.readable)
    }

    /// Ends the frame that is open, if one is, so that a copied one can follow. Also makes
    /// everything readable.
    pub fn end_frame(&mut self) -> Result<Lsn> {
        self.check_running()?;
        match std::mem::replace(&mut self.frame, OpenFrame::None) {
            OpenFrame::None => {}
            OpenFrame::Own => {
                self.stopped = true;
                self.compressor.end(&mut self.unwritten)?;
                self.stopped = false;
            }
            OpenFrame::Copied(frame) => {
                self.unwritten.extend_from_slice(&frame_end(frame.hash.digest()));
            }
        }
        self.write_out()?;
        self.readable = self.content_end;
        Ok(self.readable)
    }

    /// Decodes whole zstd blocks that a peer copied from its archive, appends their WAL to
    /// `wal_out` and returns what can be committed once the caller has checked that WAL. Nothing is
    /// written before; dropping it forgets them.
    ///
    /// With `start_of_frame` they begin with a frame header. Otherwise they continue the frame
    /// that the blocks before them left open; [`ArchiveError::NoOpenFrame`] if there is none (it
    /// was ended by a restart, or by an append): the peer must then send raw WAL up to its next
    /// frame. They may hold several frames, but no WAL beyond the segment, and at most
    /// [`RECEIVED_WAL_BYTES_MAX`].
    ///
    /// [`ArchiveError::Received`] says what is wrong with the bytes; `wal_out` is then as before.
    pub fn receive<'w>(
        &'w mut self,
        lsn: Lsn,
        start_of_frame: bool,
        bytes: &'w [u8],
        wal_out: &mut Vec<u8>,
    ) -> Result<Received<'w>> {
        self.check_running()?;
        self.check_contiguous(lsn)?;
        let frame = match (&self.frame, start_of_frame) {
            (_, true) => None,
            (OpenFrame::Copied(frame), false) => Some(frame.clone()),
            (OpenFrame::None | OpenFrame::Own, false) => {
                return Err(ArchiveError::NoOpenFrame { lsn });
            }
        };
        if let Some(frame) = frame.as_ref().filter(|_| !self.decoder_in_step) {
            self.bring_decoder_in_step(frame)?;
        }
        let wal_before = wal_out.len();
        self.decoder_in_step = false;
        let mut blocks = ReceivedBlocks { frame, begins_frame: false, offset: 0, end: lsn };
        let size = self.archive.segment_size();
        let segment_end = if start_of_frame {
            size.end_of(size.segment_of(lsn))
        } else {
            size.end_of(self.segment)
        };
        match blocks.decode(&mut self.decoder, bytes, segment_end, wal_out) {
            Ok(()) => Ok(Received { writer: self, bytes, start_of_frame, blocks }),
            Err(fault) => {
                wal_out.truncate(wal_before);
                Err(ArchiveError::Received { lsn, offset: blocks.offset, fault })
            }
        }
    }

    /// The file that is written.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.archive.segment_path(self.archive.name(self.timeline, self.segment))
    }

    /// Makes durable what is readable, and returns up to where that is. When a segment is
    /// finished, also creates the file of the next one.
    pub fn sync(&mut self) -> Result<Lsn> {
        self.check_running()?;
        self.stopped = true;
        if std::mem::take(&mut self.file_dirty) {
            self.file.fdatasync()?;
        }
        if std::mem::take(&mut self.dir_dirty) {
            self.archive.files().sync_dir(self.archive.dir())?;
        }
        self.durable = self.readable;
        self.stopped = false;
        let finished = self.durable == self.archive.segment_size().end_of(self.segment);
        if finished && matches!(self.frame, OpenFrame::None) {
            self.enter_segment_of(self.durable)?;
        }
        Ok(self.durable)
    }

    /// Stores a timeline's history file as PostgreSQL wrote it. On return it is durable.
    pub fn put_history(&mut self, timeline: Timeline, bytes: &[u8]) -> Result<()> {
        self.check_running()?;
        let files = self.archive.files();
        let path = self.archive.history_path(timeline);
        let temporary = path.with_extension("history.tmp");
        let file = files.open_append(&temporary)?;
        file.set_len(0)?;
        file.write_at(0, bytes)?;
        file.fdatasync()?;
        files.rename(&temporary, &path)?;
        files.sync_dir(self.archive.dir())?;
        Ok(())
    }

    /// Writes the last file's bytes once more, as they are. If the sync of an earlier process
    /// failed, the kernel may hold them as clean although the disk does not have them, and the next
    /// sync would succeed without writing anything.
    fn write_again(&mut self) -> Result<()> {
        let mut buffer = vec![0; UNWRITTEN_BYTES_MAX];
        let mut offset = 0;
        while offset < self.file_bytes {
            let read = self.file.read_at(offset, &mut buffer)?;
            if read == 0 {
                break;
            }
            self.file.write_at(offset, &buffer[..read])?;
            offset += read as u64;
        }
        Ok(())
    }

    fn check_running(&self) -> Result<()> {
        if self.stopped { Err(ArchiveError::Stopped) } else { Ok(()) }
    }

    fn check_contiguous(&self, found: Lsn) -> Result<()> {
        let expected = self.content_end;
        if found == expected {
            Ok(())
        } else {
            Err(ArchiveError::NotContiguous { expected, found })
        }
    }

    /// Goes to the next file if `lsn`, where the content ends, no longer belongs into this one.
    /// The frame is ended and all is written.
    fn enter_segment_of(&mut self, lsn: Lsn) -> Result<()> {
        let segment = self.archive.segment_size().segment_of(lsn);
        if segment == self.segment {
            return Ok(());
        }
        self.stopped = true;
        let files = self.archive.files();
        if self.file_dirty {
            self.file.fdatasync()?;
        }
        if self.dir_dirty {
            files.sync_dir(self.archive.dir())?;
        }
        let name = self.archive.name(self.timeline, segment);
        self.file = files.open_append(&self.archive.segment_path(name))?;
        files.sync_dir(self.archive.dir())?;
        self.segment = segment;
        self.file_bytes = 0;
        self.durable = self.readable;
        (self.file_dirty, self.dir_dirty) = (false, false);
        self.stopped = false;
        Ok(())
    }

    /// What recovery left can no longer be cut.
    fn begin_writing(&mut self) {
        self.tail = None;
    }

    fn compress(&mut self, wal: &[u8]) -> Result<()> {
        self.stopped = true;
        self.compressor.compress(wal, &mut self.unwritten)?;
        self.stopped = false;
        self.content_end = self.content_end.advance(wal.len() as u64);
        Ok(())
    }

    fn write_out(&mut self) -> Result<()> {
        if !self.unwritten.is_empty() {
            self.stopped = true;
            self.file.write_at(self.file_bytes, &self.unwritten)?;
            self.stopped = false;
            self.file_bytes += self.unwritten.len() as u64;
            self.written_bytes += self.unwritten.len() as u64;
            self.file_dirty = true;
            self.unwritten.clear();
        }
        Ok(())
    }

    /// Decodes the open copied frame anew from the file, after blocks were decoded that were then
    /// not committed.
    fn bring_decoder_in_step(&mut self, frame: &CopiedFrame) -> Result<()> {
        let name = self.archive.name(self.timeline, self.segment);
        let reading = self.archive.files().open_read(&self.archive.segment_path(name))?;
        let mut pieces = Pieces::new(reading, frame.offset);
        let mut wal = Vec::new();
        self.decoder.reset();
        while pieces.offset() < self.file_bytes {
            let offset = pieces.offset();
            let (piece, bytes) = match pieces.peek() {
                Ok(Some(found)) => found,
                Ok(None) => return Err(corrupt(name, offset, FrameFault::EndsEarly)),
                Err(PieceError::File(error)) => return Err(error.into()),
                Err(PieceError::Fault(fault)) => return Err(corrupt(name, offset, fault)),
            };
            wal.clear();
            self.decoder
                .decode(bytes, piece.ends_frame, u64::MAX, &mut wal)
                .map_err(|fault| corrupt(name, offset, fault))?;
            pieces.consume(piece);
        }
        Ok(())
    }

    fn commit(
        &mut self,
        bytes: &[u8],
        start_of_frame: bool,
        blocks: ReceivedBlocks,
    ) -> Result<Lsn> {
        if start_of_frame {
            self.end_frame()?;
            self.enter_segment_of(self.content_end)?;
        }
        self.begin_writing();
        let base = self.file_bytes;
        self.unwritten.extend_from_slice(bytes);
        self.write_out()?;
        self.frame = match blocks.frame {
            Some(frame) => {
                let offset = frame.offset + if blocks.begins_frame { base } else { 0 };
                OpenFrame::Copied(CopiedFrame { offset, ..frame })
            }
            None => OpenFrame::None,
        };
        self.decoder_in_step = true;
        (self.content_end, self.readable) = (blocks.end, blocks.end);
        Ok(self.readable)
    }
}

impl fmt::Debug for ArchiveWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveWriter")
            .field("dir", &self.archive.dir())
            .field("timeline", &self.timeline)
            .field("content_end", &self.content_end)
            .field("readable", &self.readable)
            .field("durable", &self.durable)
            .finish_non_exhaustive()
    }
}

/// Blocks from a peer, decoded but not written.
#[must_use = "the blocks are written only when committed"]
pub struct Received<'w> {
    writer: &'w mut ArchiveWriter,
    bytes: &'w [u8],
    start_of_frame: bool,
    blocks: ReceivedBlocks,
}

impl Received<'_> {
    /// The position after their WAL.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.blocks.end
    }

    /// Appends the blocks to the file, as they are, after ending our own frame if one is open.
    /// Returns where the content ends; it is readable.
    pub fn commit(self) -> Result<Lsn> {
        self.writer.commit(self.bytes, self.start_of_frame, self.blocks)
    }
}

impl fmt::Debug for Received<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Received")
            .field("bytes", &self.bytes.len())
            .field("start_of_frame", &self.start_of_frame)
            .field("end", &self.blocks.end)
            .finish_non_exhaustive()
    }
}

struct ReceivedBlocks {
    /// The frame that the blocks leave open.
    frame: Option<CopiedFrame>,
    /// Whether a frame begins in the blocks: then `frame` has its offset in them, not in the file.
    begins_frame: bool,
    /// How many of the bytes were decoded.
    offset: usize,
    /// The end of the WAL decoded.
    end: Lsn,
}

impl ReceivedBlocks {
    fn decode(
        &mut self,
        decoder: &mut Decoder,
        bytes: &[u8],
        segment_end: Lsn,
        wal_out: &mut Vec<u8>,
    ) -> Result<(), FrameFault> {
        let limit = self.end.advance(RECEIVED_WAL_BYTES_MAX);
        // What of the frame's WAL is not in its hash yet. A frame that is whole needs none of ours.
        let mut unhashed = wal_out.len();
        while self.offset < bytes.len() {
            let rest = &bytes[self.offset..];
            let piece = Piece::parse(rest, self.frame.is_some())?.ok_or(FrameFault::EndsEarly)?;
            let frame = self.frame.take().unwrap_or_else(|| {
                decoder.reset();
                self.begins_frame = true;
                unhashed = wal_out.len();
                CopiedFrame { offset: self.offset as u64, start: self.end, hash: Xxh64::new(0) }
            });
            if frame.start >= segment_end {
                return Err(FrameFault::TrailingBytes);
            }
            let room = cell_end(frame.start).min(limit).bytes_since(self.end);
            let before = wal_out.len();
            decoder.decode(&rest[..piece.len], piece.ends_frame, room, wal_out)?;
            self.end = self.end.advance((wal_out.len() - before) as u64);
            self.offset += piece.len;
            self.frame = (!piece.ends_frame).then_some(frame);
        }
        if let Some(frame) = &mut self.frame {
            frame.hash.update(&wal_out[unhashed..]);
        }
        Ok(())
    }
}

/// The file before an empty one was finished; see the rules in [`crate::recovery`].
fn check_finished(archive: &Archive, timeline: Timeline, empty: SegmentNumber) -> Result<()> {
    let size = archive.segment_size();
    let before = archive.name(timeline, SegmentNumber(empty.0.saturating_sub(1)));
    if empty.0 == 0 || !archive.has(before)? {
        return Ok(());
    }
    let mut reader = ArchiveReader::open(archive, timeline, size.start_of(archive.number(before)))?;
    // One byte more than the file before has, so that it must have all of its own.
    let bound = size.start_of(empty).advance(1);
    while reader.next(bound)?.is_some() {}
    Ok(())
}
