//! WAL bytes in, records out.
//!
//! ```text
//! segment   | page                     | page                     | page
//!           | LONG ··rest of A·· [ B ] | SHORT [ C ][ D ····· | SHORT ···· D ] [ E ] 0 0 0 0 0
//!
//! push ──►  any cut of these bytes, in order
//! poll ──►  B, C, D, E, then "end: nothing was written here"
//! ```
//!
//! There are three ways not to get a record, and they want different answers:
//! - **end**: nothing has been written here yet. Zeros, or a page of a recycled file's former life,
//!   which its address betrays.
//! - **torn**: a record begins here, and not all of it checks out. At the tip of a live log that
//!   means "not yet".
//! - **corrupt**: the same where WAL is known to go on ([`RecordStream::set_known_end`]), or
//!   something that no unfinished write explains, such as a page of another cluster.
//!
//! What checks out: page magic, flags, address and timeline of each page it lies on, `xl_prev`,
//! lengths, resource manager and CRC-32C. The body is not decoded: that is [`crate::Record`].
//!
//! Rules: `XLogDecodeNextRecord` and `XLogReaderValidatePageHeader` in
//! `src/backend/access/transam/xlogreader.c`.

use std::fmt;
use std::ops::Range;

use crate::bytes::{u32_at, u64_at};
use crate::lsn::{Lsn, Timeline};
use crate::record::{RECORD_HEADER_SIZE, RECORD_SIZE_MAX, RawRecord, RecordHeader, record_crc};
use crate::rmgr::{RmgrId, xlog};
use crate::segment::SegmentSize;
use crate::version::Version;
use crate::wal_page::{WAL_PAGE_SIZE, WalPageHeader, header_size, page_start};

/// Where a stream begins, and what is known of the cluster.
#[derive(Clone, Copy, Debug)]
pub struct StreamStart {
    /// The first byte that will be pushed: the start of a WAL page, usually of a segment. The rest
    /// of a record that began before it is skipped.
    pub lsn: Lsn,
    /// The cluster's segment size.
    pub segment_size: SegmentSize,
    /// The cluster's system identifier, if known; each segment's first page is held against it.
    pub system_identifier: Option<u64>,
}

/// What [`RecordStream::poll`] found.
#[derive(Debug)]
pub enum Step<'a> {
    /// The next record.
    Record(RawRecord<'a>),
    /// All pushed bytes are in order so far; push more.
    NeedMore,
    /// The bytes at hand do not give a record. The stream stands still until
    /// [`RecordStream::rewind`].
    Stop(Stop),
}

/// Why there is no next record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stop {
    /// What it means.
    pub kind: StopKind,
    /// Where the record would begin.
    pub at: Lsn,
    /// What was found.
    pub fault: Fault,
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            StopKind::End => "end of WAL",
            StopKind::Torn => "unfinished record",
            StopKind::Corrupt => "corrupt WAL",
        };
        write!(f, "{kind} at {}: {}", self.at, self.fault)
    }
}

/// What it means that there is no next record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopKind {
    /// Nothing has been written here.
    End,
    /// A record was begun here and does not check out.
    Torn,
    /// WAL that was whole is so no more.
    Corrupt,
}

/// What does not check out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the messages say it
pub enum Fault {
    #[error("record length is 0")]
    ZeroLength,
    #[error("page {page} is all zero")]
    ZeroPage { page: Lsn },
    #[error("page {page} has address {found}: an old page of a recycled file")]
    StalePage { page: Lsn, found: Lsn },
    #[error("page {page} has magic {found:#06x}, which belongs to no PostgreSQL version walferry knows")]
    UnknownMagic { page: Lsn, found: u16 },
    #[error("page {page} has magic {found:#06x}, the pages before have {expected:#06x}")]
    OtherMagic { page: Lsn, expected: u16, found: u16 },
    #[error("page {page} has unknown flags {found:#06x}")]
    PageFlags { page: Lsn, found: u16 },
    #[error("page {page} has no long header though a segment begins there, or has one elsewhere")]
    HeaderSize { page: Lsn },
    #[error("page {page} belongs to system {found}, expected {expected}")]
    SystemIdentifier { page: Lsn, expected: u64, found: u64 },
    #[error("page {page} says segment size {found}, expected {expected}")]
    SegmentSize { page: Lsn, expected: u64, found: u32 },
    #[error("page {page} says WAL page size {found}, only 8192 is supported")]
    PageSize { page: Lsn, found: u32 },
    #[error("page {page} is on timeline {found}, an earlier page on timeline {before}")]
    Timeline { page: Lsn, before: Timeline, found: Timeline },
    #[error("page {page} begins with {found} bytes of a record begun earlier, expected {expected}")]
    Continuation { page: Lsn, expected: u64, found: u32 },
    #[error("record length {found} is impossible")]
    Length { found: u32 },
    #[error("resource manager {found} does not exist")]
    Rmgr { found: u8 },
    #[error("previous-record link is {found}, expected {expected}")]
    Prev { expected: Lsn, found: Lsn },
    #[error("previous-record link {found} does not point back")]
    PrevNotBefore { found: Lsn },
    #[error("CRC is {found:#010x}, the header says {expected:#010x}")]
    Crc { expected: u32, found: u32 },
    #[error("bytes after the segment switch are not zero")]
    SwitchFill,
    #[error("page {page} says the record at {overwritten} was given up, but no matching OVERWRITE_CONTRECORD record follows")]
    Overwrite { page: Lsn, overwritten: Lsn },
}

/// Turns pushed WAL bytes into records; see the module's documentation.
///
/// Invariants:
/// - `buffer_start <= position <= buffer_start + buffer.len()`, unless bytes up to `position`
///   (padding) are still to be pushed.
/// - between two calls `position` is a record's start, a page's start, or inside `partial`.
/// - memory is bounded by the longest record plus what the caller pushes at once.
#[derive(Debug)]
pub struct RecordStream {
    segment_size: SegmentSize,
    system_identifier: Option<u64>,
    known_end: Lsn,
    buffer: Vec<u8>,
    /// The LSN of `buffer[0]`.
    buffer_start: Lsn,
    /// What to look at next.
    position: Lsn,
    /// As of the last whole record: where to return to.
    boundary: Boundary,
    /// The same, as of `position`.
    current: Boundary,
    state: State,
    /// Pieces of a record that lies on several pages.
    assembled: Vec<u8>,
    stopped: Option<Stop>,
}

/// What the next record is held against.
#[derive(Clone, Copy, Debug)]
struct Boundary {
    lsn: Lsn,
    prev: Option<Lsn>,
    version: Option<&'static Version>,
    timeline: Timeline,
    /// A record that was given up; the next one must say so.
    overwritten: Option<Lsn>,
    /// The first record has not been found yet.
    seeking: bool,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// `position` is where a record begins, or a page.
    AtRecord,
    /// Part of a record that began at `start` is in `assembled`; `position` is a page's start.
    Gathering { start: Lsn, total: usize },
    /// A segment switch that began at `start` was read; what follows must be zero up to the
    /// segment's end.
    SwitchFill { start: Lsn },
}

enum Found {
    InBuffer { start: Lsn, range: Range<usize> },
    Assembled { start: Lsn },
}

enum Halt {
    NeedMore,
    Stop(StopKind, Fault),
}

impl RecordStream {
    /// A stream that begins at `start.lsn`, which must be the start of a WAL page.
    #[must_use]
    pub fn new(start: StreamStart) -> Self {
        assert_eq!(page_start(start.lsn), start.lsn, "a stream begins at a page's start");
        let boundary = Boundary {
            lsn: start.lsn,
            prev: None,
            version: None,
            timeline: Timeline(0),
            overwritten: None,
            seeking: true,
        };
        Self {
            segment_size: start.segment_size,
            system_identifier: start.system_identifier,
            known_end: Lsn::INVALID,
            buffer: Vec::new(),
            buffer_start: start.lsn,
            position: start.lsn,
            boundary,
            current: boundary,
            state: State::AtRecord,
            assembled: Vec::new(),
            stopped: None,
        }
    }

    /// Says that WAL is known to exist up to `lsn`: a record that begins before it and does not
    /// check out is corrupt, not unfinished.
    pub fn set_known_end(&mut self, lsn: Lsn) {
        self.known_end = lsn;
    }

    /// Where the next pushed byte belongs.
    #[must_use]
    pub fn pushed_end(&self) -> Lsn {
        self.buffer_start.advance(self.buffer.len() as u64)
    }

    /// The end of the last record given out (or the stream's start): where the next record begins,
    /// or the page whose header stands before it.
    #[must_use]
    pub fn record_end(&self) -> Lsn {
        self.boundary.lsn
    }

    /// The start of the last record given out.
    #[must_use]
    pub fn last_record_start(&self) -> Option<Lsn> {
        self.boundary.prev
    }

    /// The PostgreSQL major, once a page header has been read.
    #[must_use]
    pub fn version(&self) -> Option<&'static Version> {
        self.current.version
    }

    /// The timeline of the last page read; 0 before the first.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.current.timeline
    }

    /// Adds bytes that begin at [`RecordStream::pushed_end`].
    pub fn push(&mut self, bytes: &[u8]) {
        let used = self.position.bytes_since(self.buffer_start);
        let used = usize::try_from(used).unwrap_or(usize::MAX).min(self.buffer.len());
        if used > 0 {
            self.buffer.drain(..used);
            self.buffer_start = self.buffer_start.advance(used as u64);
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// Forgets all that was pushed after the last whole record. What was read at a live tip may
    /// have been rewritten since; the next pushed byte belongs at [`RecordStream::record_end`].
    pub fn rewind(&mut self) {
        self.buffer.clear();
        self.assembled.clear();
        self.buffer_start = self.boundary.lsn;
        self.position = self.boundary.lsn;
        self.current = self.boundary;
        self.state = State::AtRecord;
        self.stopped = None;
    }

    /// The next record, if the pushed bytes hold it.
    pub fn poll(&mut self) -> Step<'_> {
        if let Some(stop) = &self.stopped {
            return Step::Stop(stop.clone());
        }
        match self.find() {
            Ok(found) => {
                let (start, bytes) = match found {
                    Found::InBuffer { start, range } => (start, &self.buffer[range]),
                    Found::Assembled { start } => (start, &self.assembled[..]),
                };
                Step::Record(RawRecord {
                    start,
                    end: self.boundary.lsn,
                    header: RecordHeader::from_bytes(bytes),
                    bytes,
                })
            }
            Err(Halt::NeedMore) => Step::NeedMore,
            Err(Halt::Stop(kind, fault)) => {
                let at = match self.state {
                    State::AtRecord => self.position,
                    State::Gathering { start, .. } | State::SwitchFill { start } => start,
                };
                let kind = if at < self.known_end { StopKind::Corrupt } else { kind };
                let stop = Stop { kind, at, fault };
                self.stopped = Some(stop.clone());
                Step::Stop(stop)
            }
        }
    }

    fn find(&mut self) -> Result<Found, Halt> {
        loop {
            match self.state {
                State::AtRecord => {
                    if page_start(self.position) == self.position {
                        self.enter_page()?;
                        continue; // the position may be a page's start again
                    }
                    if let Some(found) = self.begin_record()? {
                        return Ok(found);
                    }
                }
                State::Gathering { start, total } => {
                    if let Some(found) = self.gather(start, total)? {
                        return Ok(found);
                    }
                }
                State::SwitchFill { start } => return self.skip_switch_fill(start),
            }
        }
    }

    /// The pushed bytes from `position` on.
    fn ahead(&self) -> &[u8] {
        let skip = self.position.bytes_since(self.buffer_start);
        usize::try_from(skip).ok().and_then(|skip| self.buffer.get(skip..)).unwrap_or_default()
    }

    /// Reads and checks the header of the page at `position`, without moving.
    fn page_header(&mut self) -> Result<WalPageHeader, Halt> {
        let page = self.position;
        let size = header_size(page, self.segment_size);
        let ahead = self.ahead();
        if ahead.len() < size {
            return Err(Halt::NeedMore);
        }
        let header = WalPageHeader::from_bytes(ahead)
            .ok_or(Halt::Stop(StopKind::Torn, Fault::HeaderSize { page }))?;
        let unwritten = match self.state {
            State::AtRecord => StopKind::End,
            _ => StopKind::Torn,
        };
        if header.is_zero() {
            return Err(Halt::Stop(unwritten, Fault::ZeroPage { page }));
        }
        if header.address != page {
            let fault = Fault::StalePage { page, found: header.address };
            return Err(Halt::Stop(unwritten, fault));
        }
        let corrupt = |fault| Err(Halt::Stop(StopKind::Corrupt, fault));
        let Some(version) = Version::from_page_magic(header.magic) else {
            return corrupt(Fault::UnknownMagic { page, found: header.magic });
        };
        match self.current.version {
            Some(before) if before.page_magic != version.page_magic => {
                let (expected, found) = (before.page_magic, version.page_magic);
                return corrupt(Fault::OtherMagic { page, expected, found });
            }
            _ => {}
        }
        if header.has_unknown_flags() {
            return corrupt(Fault::PageFlags { page, found: header.info });
        }
        let segment_begins = self.segment_size.offset_of(page) == 0;
        if header.long.is_some() != segment_begins {
            return corrupt(Fault::HeaderSize { page });
        }
        if let Some(long) = header.long {
            let found = long.system_identifier;
            match self.system_identifier {
                Some(expected) if expected != found => {
                    return corrupt(Fault::SystemIdentifier { page, expected, found });
                }
                _ => self.system_identifier = Some(found),
            }
            let (expected, found) = (self.segment_size.bytes(), long.segment_size);
            if expected != u64::from(found) {
                return corrupt(Fault::SegmentSize { page, expected, found });
            }
            if long.page_size as usize != WAL_PAGE_SIZE {
                return corrupt(Fault::PageSize { page, found: long.page_size });
            }
        }
        if header.timeline < self.current.timeline {
            let (before, found) = (self.current.timeline, header.timeline);
            return corrupt(Fault::Timeline { page, before, found });
        }
        self.current.version = Some(version);
        self.current.timeline = header.timeline;
        Ok(header)
    }

    /// Moves from a page's start to the first record that begins on it, or to the next page.
    fn enter_page(&mut self) -> Result<(), Halt> {
        let header = self.page_header()?;
        let page = self.position;
        let size = header_size(page, self.segment_size) as u64;
        if !header.first_is_contrecord() {
            self.current.seeking = false;
            self.position = page.advance(size);
            return Ok(());
        }
        if !self.current.seeking {
            let found = header.remaining_length;
            let fault = Fault::Continuation { page, expected: 0, found };
            return Err(Halt::Stop(StopKind::Torn, fault));
        }
        // The rest of a record that began before the stream did.
        let room = WAL_PAGE_SIZE as u64 - size;
        let rest = Lsn(u64::from(header.remaining_length)).align_up().0;
        if rest > room {
            self.position = page.advance(WAL_PAGE_SIZE as u64);
        } else {
            self.current.seeking = false;
            self.position = page.advance(size + rest);
        }
        Ok(())
    }

    /// Reads the record at `position`, which lies inside a page: all of it, or its first part.
    fn begin_record(&mut self) -> Result<Option<Found>, Halt> {
        let start = self.position;
        let page_left = WAL_PAGE_SIZE - (start.0 as usize % WAL_PAGE_SIZE);
        let ahead = self.ahead();
        if ahead.len() < 4 {
            return Err(Halt::NeedMore);
        }
        let length = u32_at(ahead, 0);
        if length == 0 {
            return Err(Halt::Stop(StopKind::End, Fault::ZeroLength));
        }
        let total = length as usize;
        if !(RECORD_HEADER_SIZE..=RECORD_SIZE_MAX).contains(&total) {
            return Err(Halt::Stop(StopKind::Torn, Fault::Length { found: length }));
        }
        if page_left >= RECORD_HEADER_SIZE {
            // The length is believed, and waited for, only with the rest of a sound header.
            if ahead.len() < RECORD_HEADER_SIZE {
                return Err(Halt::NeedMore);
            }
            self.check_header(start, &RecordHeader::from_bytes(ahead))?;
        }
        if total > page_left {
            if ahead.len() < page_left {
                return Err(Halt::NeedMore);
            }
            let offset = start.bytes_since(self.buffer_start) as usize;
            self.assembled.clear();
            self.assembled.extend_from_slice(&self.buffer[offset..offset + page_left]);
            self.state = State::Gathering { start, total };
            self.position = start.advance(page_left as u64);
            return Ok(None);
        }
        let end = start.advance(total as u64).align_up();
        if ahead.len() < end.bytes_since(start) as usize {
            return Err(Halt::NeedMore);
        }
        self.check_record(start, &ahead[..total])?;
        let offset = start.bytes_since(self.buffer_start) as usize;
        self.accept(start, end, Found::InBuffer { start, range: offset..offset + total })
    }

    /// Adds what the page at `position` holds of the record that began at `start`.
    fn gather(&mut self, start: Lsn, total: usize) -> Result<Option<Found>, Halt> {
        let page = self.position;
        let header = self.page_header()?;
        if header.first_is_overwrite_contrecord() {
            // The server crashed while writing this record and gave it up.
            self.assembled.clear();
            self.current.overwritten = Some(start);
            self.state = State::AtRecord;
            return Ok(None);
        }
        let missing = total - self.assembled.len();
        if !header.first_is_contrecord() || header.remaining_length as usize != missing {
            let found = if header.first_is_contrecord() { header.remaining_length } else { 0 };
            let fault = Fault::Continuation { page, expected: missing as u64, found };
            return Err(Halt::Stop(StopKind::Torn, fault));
        }
        let header_size = header_size(page, self.segment_size);
        let room = WAL_PAGE_SIZE - header_size;
        let here = missing.min(room);
        // The padding after the record belongs to it.
        let needed = header_size + here.next_multiple_of(8).min(room);
        let offset = page.bytes_since(self.buffer_start) as usize;
        if self.buffer.len() < offset + needed {
            return Err(Halt::NeedMore);
        }
        let had_header = self.assembled.len() >= RECORD_HEADER_SIZE;
        let from = offset + header_size;
        self.assembled.extend_from_slice(&self.buffer[from..from + here]);
        if !had_header {
            // It lay across the page's border; at least 8 bytes of it on each side of one.
            if self.assembled.len() < RECORD_HEADER_SIZE {
                let fault = Fault::Length { found: total as u32 };
                return Err(Halt::Stop(StopKind::Torn, fault));
            }
            self.check_header(start, &RecordHeader::from_bytes(&self.assembled))?;
        }
        self.position = page.advance(needed as u64);
        if here < missing {
            return Ok(None);
        }
        self.check_record(start, &self.assembled)?;
        let end = self.position;
        self.accept(start, end, Found::Assembled { start })
    }

    /// What can be said of a record before its body is there.
    fn check_header(&self, start: Lsn, header: &RecordHeader) -> Result<(), Halt> {
        let torn = |fault| Err(Halt::Stop(StopKind::Torn, fault));
        if !header.rmgr.is_possible() {
            return torn(Fault::Rmgr { found: header.rmgr.0 });
        }
        match self.current.prev {
            Some(expected) if header.prev != expected => {
                torn(Fault::Prev { expected, found: header.prev })
            }
            None if header.prev >= start => torn(Fault::PrevNotBefore { found: header.prev }),
            _ => Ok(()),
        }
    }

    fn check_record(&self, start: Lsn, bytes: &[u8]) -> Result<(), Halt> {
        let header = RecordHeader::from_bytes(bytes);
        let found = record_crc(bytes);
        if found != header.crc {
            let fault = Fault::Crc { expected: header.crc, found };
            return Err(Halt::Stop(StopKind::Torn, fault));
        }
        if let Some(overwritten) = self.current.overwritten {
            // Main data with a short header: 255, its length, then overwritten_lsn.
            let says_so = header.rmgr == RmgrId::XLOG
                && header.opcode() == xlog::OVERWRITE_CONTRECORD
                && u64_at(bytes, RECORD_HEADER_SIZE + 2) == overwritten.0;
            if !says_so {
                let fault = Fault::Overwrite { page: page_start(start), overwritten };
                return Err(Halt::Stop(StopKind::Torn, fault));
            }
        }
        Ok(())
    }

    /// A record checked out: it becomes the boundary, unless it is a segment switch whose fill is
    /// still to be seen.
    fn accept(&mut self, start: Lsn, end: Lsn, found: Found) -> Result<Option<Found>, Halt> {
        let bytes = match &found {
            Found::InBuffer { range, .. } => &self.buffer[range.clone()],
            Found::Assembled { .. } => &self.assembled[..],
        };
        let header = RecordHeader::from_bytes(bytes);
        if header.rmgr == RmgrId::XLOG && header.opcode() == xlog::SWITCH {
            self.assembled = bytes.to_vec();
            self.position = end;
            self.state = State::SwitchFill { start };
            return Ok(None);
        }
        self.commit(start, end);
        Ok(Some(found))
    }

    /// Goes from a segment switch to the segment's end. The rest of the segment is zero, headers
    /// of later pages included (`CopyXLogRecordToWAL`, `src/backend/access/transam/xlog.c`).
    fn skip_switch_fill(&mut self, start: Lsn) -> Result<Found, Halt> {
        let end = self.segment_size.end_of(self.segment_size.segment_of(start));
        let left = end.bytes_since(self.position) as usize;
        let ahead = self.ahead();
        let fill = &ahead[..ahead.len().min(left)];
        if fill.iter().any(|&byte| byte != 0) {
            return Err(Halt::Stop(StopKind::Torn, Fault::SwitchFill));
        }
        let seen = fill.len();
        self.position = self.position.advance(seen as u64);
        if seen < left {
            return Err(Halt::NeedMore);
        }
        self.commit(start, end);
        Ok(Found::Assembled { start })
    }

    fn commit(&mut self, start: Lsn, end: Lsn) {
        self.position = end;
        self.state = State::AtRecord;
        self.current.lsn = end;
        self.current.prev = Some(start);
        self.current.overwritten = None;
        self.boundary = self.current;
    }
}
