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
//!   which its address or timeline betrays.
//! - **torn**: a record begins here, and not all of it checks out. At the tip of a live log that
//!   means "not yet".
//! - **corrupt**: either of them where WAL is known to exist ([`RecordStream::set_known_end`]), or
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
use crate::wal_page::{LONG_HEADER_SIZE, WAL_PAGE_SIZE, WalPageHeader, header_size, page_start};

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
    #[error(
        "page {page} has magic {found:#06x}, which belongs to no PostgreSQL version walferry knows"
    )]
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
    #[error(
        "page {page} says the record at {overwritten} was given up, but no matching OVERWRITE_CONTRECORD record follows"
    )]
    Overwrite { page: Lsn, overwritten: Lsn },
}

/// Turns pushed WAL bytes into records; see the module's documentation.
///
/// Invariants:
/// - `buffer_start <= position`; `position` lies past what was pushed only while the rest of the
///   stream's partial first record is still to come.
/// - between two calls `position` is a record's start, a page's start, or in a segment switch's
///   fill; always a multiple of 8, except in that fill.
/// - what a call answers depends on the bytes pushed so far, not on how they were cut.
/// - memory is bounded by the longest record plus what the caller pushes at once.
#[derive(Debug)]
pub struct RecordStream {
    /// The first byte of all.
    origin: Lsn,
    segment_size: SegmentSize,
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
    /// A segment switch is given out without a look at the fill behind it.
    leaves_out_fill: bool,
    stopped: Option<Stop>,
}

/// What the next record is held against.
#[derive(Clone, Copy, Debug)]
struct Boundary {
    lsn: Lsn,
    prev: Option<Lsn>,
    version: Option<&'static Version>,
    timeline: Timeline,
    system_identifier: Option<u64>,
    /// A record that was given up; the next one must say so.
    overwritten: Option<Lsn>,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// `position` is where a record begins, or a page.
    AtRecord,
    /// The stream began inside a record; `left` bytes of it follow the header of the page at
    /// `position`.
    Skipping { left: usize },
    /// Part of a record that began at `start` is in `assembled`; `position` is a page's start.
    Gathering { start: Lsn, total: usize },
    /// A segment switch that began at `start` is in `assembled`; what follows up to the segment's
    /// `end` is fill.
    SwitchFill { start: Lsn, end: Lsn },
}

/// A record that checked out.
struct Found {
    start: Lsn,
    header: RecordHeader,
    /// Where in `buffer` it lies; nothing if it is in `assembled`.
    in_buffer: Option<Range<usize>>,
}

enum Halt {
    NeedMore,
    Stop {
        kind: StopKind,
        fault: Fault,
        /// The end of the bytes this judgement rests on. If WAL is known to exist up to here, no
        /// write to come can heal it.
        read_to: Lsn,
    },
}

impl Halt {
    fn torn<T>(fault: Fault, read_to: Lsn) -> Result<T, Self> {
        Err(Self::Stop { kind: StopKind::Torn, fault, read_to })
    }
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
            system_identifier: start.system_identifier,
            overwritten: None,
        };
        Self {
            origin: start.lsn,
            segment_size: start.segment_size,
            known_end: Lsn::INVALID,
            buffer: Vec::new(),
            buffer_start: start.lsn,
            position: start.lsn,
            boundary,
            current: boundary,
            state: State::AtRecord,
            assembled: Vec::new(),
            leaves_out_fill: false,
            stopped: None,
        }
    }

    /// For a caller that looks at WAL and relies on nothing: a segment switch is a record as soon as it
    /// is whole itself, whatever stands in the rest of its segment. After it the next pushed byte
    /// belongs to the start of the next segment, see [`RecordStream::pushed_end`].
    #[must_use]
    pub fn without_fill(mut self) -> Self {
        self.leaves_out_fill = true;
        self
    }

    /// Says that WAL is known to exist up to `lsn`: what lies before it and does not check out is
    /// corrupt, not unfinished.
    ///
    /// `lsn` need not be the end of a record: a flush position, or the start of a page or segment
    /// that is there, will do. So a record that claims to reach beyond it may still be unfinished.
    /// A stop already answered stays what it was; [`RecordStream::rewind`] and read anew.
    pub fn set_known_end(&mut self, lsn: Lsn) {
        let page = page_start(lsn);
        let header_size = header_size(page, self.segment_size) as u64;
        // The server calls the position before a page's header and the one after it the same, and
        // does not write a page for its header alone.
        self.known_end = if lsn.bytes_since(page) <= header_size { page } else { lsn };
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

    /// The start of a record of which some was pushed and the rest was not, where that rest begins a
    /// page. So when a page's end was pushed: the record that goes on behind it.
    #[must_use]
    pub fn unfinished_record(&self) -> Option<Lsn> {
        match self.state {
            State::Gathering { start, .. } | State::SwitchFill { start, .. } => Some(start),
            State::AtRecord | State::Skipping { .. } => None,
        }
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

    /// [`RecordStream::push`] of a whole buffer; gives an emptied one back. Nothing is copied if
    /// the stream is done with what was pushed before, as it is at a page's end.
    pub fn push_buffer(&mut self, mut bytes: Vec<u8>) -> Vec<u8> {
        if self.position < self.pushed_end() {
            self.push(&bytes);
        } else {
            self.buffer_start = self.pushed_end();
            std::mem::swap(&mut self.buffer, &mut bytes);
        }
        bytes.clear();
        bytes
    }

    /// Leaves out the rest of the segment that a switch is waiting for, provided that it is known to
    /// exist and ends at or before `bound`. Gives where the next pushed byte belongs then: the start
    /// of the next segment. The switch is the next record.
    pub fn leave_out_fill(&mut self, bound: Lsn) -> Option<Lsn> {
        let State::SwitchFill { end, .. } = self.state else { return None };
        if end > self.known_end.min(bound) {
            return None;
        }
        self.buffer.clear();
        self.buffer_start = end;
        self.position = end;
        Some(end)
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
            Ok(Found { start, header, in_buffer }) => {
                let bytes = match in_buffer {
                    Some(range) => &self.buffer[range],
                    None => &self.assembled[..],
                };
                Step::Record(RawRecord { start, end: self.boundary.lsn, header, bytes })
            }
            Err(Halt::NeedMore) => Step::NeedMore,
            Err(Halt::Stop { kind, fault, read_to }) => {
                let at = match self.state {
                    State::AtRecord | State::Skipping { .. } => self.position,
                    State::Gathering { start, .. } | State::SwitchFill { start, .. } => start,
                };
                let kind = if read_to <= self.known_end { StopKind::Corrupt } else { kind };
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
                State::Skipping { left } => self.skip(left)?,
                State::Gathering { start, total } => {
                    if let Some(found) = self.gather(start, total)? {
                        return Ok(found);
                    }
                }
                State::SwitchFill { start, end } if self.leaves_out_fill => {
                    if self.pushed_end() < end {
                        self.buffer.clear();
                        self.buffer_start = end;
                    }
                    return Ok(self.finish_switch(start, end));
                }
                State::SwitchFill { start, end } => return self.skip_switch_fill(start, end),
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
        let read_to = page.advance(size as u64);
        let Some(found) = self.ahead().get(..size) else {
            return Err(Halt::NeedMore);
        };
        // Zeros stand in for a long header that is announced where none belongs.
        let mut bytes = [0; LONG_HEADER_SIZE];
        bytes[..size].copy_from_slice(found);
        let header = WalPageHeader::from_bytes(&bytes).expect("as long as any page header");

        // A page not written yet: zeros, or what a recycled file held before. Its address was
        // another one then; or, where a timeline ended and its later segments were recycled for
        // the next one, its timeline was an earlier one.
        let unwritten = |fault| {
            let kind = match self.state {
                State::AtRecord => StopKind::End,
                _ => StopKind::Torn,
            };
            Err(Halt::Stop { kind, fault, read_to })
        };
        if header.is_zero() {
            return unwritten(Fault::ZeroPage { page });
        }
        if header.address != page {
            return unwritten(Fault::StalePage { page, found: header.address });
        }
        if header.timeline < self.current.timeline {
            let (before, found) = (self.current.timeline, header.timeline);
            return unwritten(Fault::Timeline { page, before, found });
        }

        let corrupt = |fault| Err(Halt::Stop { kind: StopKind::Corrupt, fault, read_to });
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
            match self.current.system_identifier {
                Some(expected) if expected != found => {
                    return corrupt(Fault::SystemIdentifier { page, expected, found });
                }
                _ => {}
            }
            let (expected, found) = (self.segment_size.bytes(), long.segment_size);
            if expected != u64::from(found) {
                return corrupt(Fault::SegmentSize { page, expected, found });
            }
            if long.page_size as usize != WAL_PAGE_SIZE {
                return corrupt(Fault::PageSize { page, found: long.page_size });
            }
            self.current.system_identifier = Some(long.system_identifier);
        }
        self.current.version = Some(version);
        self.current.timeline = header.timeline;
        Ok(header)
    }

    /// Moves from a page's start to the first record that begins on it.
    fn enter_page(&mut self) -> Result<(), Halt> {
        let header = self.page_header()?;
        let page = self.position;
        let size = header_size(page, self.segment_size) as u64;
        if !header.first_is_contrecord() {
            self.position = page.advance(size);
            return Ok(());
        }
        if page != self.origin {
            let found = header.remaining_length;
            return Halt::torn(
                Fault::Continuation { page, expected: 0, found },
                page.advance(size),
            );
        }
        self.skip_on_page(header.remaining_length as usize);
        Ok(())
    }

    /// Goes on over the rest of the record that began before the stream did, which has `left`
    /// bytes on the page at `position` and later.
    fn skip(&mut self, left: usize) -> Result<(), Halt> {
        let page = self.position;
        let header = self.page_header()?;
        if header.first_is_overwrite_contrecord() {
            // The record was given up. Where it began is not known here, so the record that says
            // so cannot be held against it.
            self.state = State::AtRecord;
            return Ok(());
        }
        self.check_continuation(page, &header, left)?;
        self.skip_on_page(left);
        Ok(())
    }

    fn skip_on_page(&mut self, left: usize) {
        let page = self.position;
        let size = header_size(page, self.segment_size);
        let room = WAL_PAGE_SIZE - size;
        if left > room {
            self.position = page.advance(WAL_PAGE_SIZE as u64);
            self.state = State::Skipping { left: left - room };
        } else {
            self.position = page.advance((size + left.next_multiple_of(8)) as u64);
            self.state = State::AtRecord;
        }
    }

    /// The page must go on with a record that misses `missing` bytes.
    fn check_continuation(
        &self,
        page: Lsn,
        header: &WalPageHeader,
        missing: usize,
    ) -> Result<(), Halt> {
        let found = if header.first_is_contrecord() { header.remaining_length } else { 0 };
        if found as usize == missing {
            return Ok(());
        }
        let read_to = page.advance(header_size(page, self.segment_size) as u64);
        Halt::torn(Fault::Continuation { page, expected: missing as u64, found }, read_to)
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
            let (kind, fault) = (StopKind::End, Fault::ZeroLength);
            return Err(Halt::Stop { kind, fault, read_to: start.advance(4) });
        }
        let total = length as usize;
        if !(RECORD_HEADER_SIZE..=RECORD_SIZE_MAX).contains(&total) {
            return Halt::torn(Fault::Length { found: length }, start.advance(4));
        }
        let header = RecordHeader::from_bytes(ahead);
        if page_left >= RECORD_HEADER_SIZE {
            // The length is believed, and waited for, only with the rest of a sound header.
            if ahead.len() < RECORD_HEADER_SIZE {
                return Err(Halt::NeedMore);
            }
            self.check_header(start, &header, start.advance(RECORD_HEADER_SIZE as u64))?;
        }
        let offset = start.bytes_since(self.buffer_start) as usize;
        if total > page_left {
            if ahead.len() < page_left {
                return Err(Halt::NeedMore);
            }
            self.assembled.clear();
            self.assembled.extend_from_slice(&self.buffer[offset..offset + page_left]);
            self.state = State::Gathering { start, total };
            self.position = start.advance(page_left as u64);
            return Ok(None);
        }
        // The padding after the record belongs to it.
        let padded = total.next_multiple_of(8);
        if ahead.len() < padded {
            return Err(Halt::NeedMore);
        }
        let end = start.advance(padded as u64);
        self.check_record(start, &header, &ahead[..total], end)?;
        let range = offset..offset + total;
        if is_switch(&header) {
            self.assembled.clear();
            self.assembled.extend_from_slice(&self.buffer[range]);
            self.begin_switch_fill(start, end);
            return Ok(None);
        }
        self.commit(start, end);
        Ok(Some(Found { start, header, in_buffer: Some(range) }))
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
        self.check_continuation(page, &header, missing)?;
        let header_size = header_size(page, self.segment_size);
        let room = WAL_PAGE_SIZE - header_size;
        let here = missing.min(room);
        let needed = header_size + here.next_multiple_of(8);
        let offset = page.bytes_since(self.buffer_start) as usize;
        if self.buffer.len() < offset + needed {
            return Err(Halt::NeedMore);
        }
        let had_header = self.assembled.len() >= RECORD_HEADER_SIZE;
        let from = offset + header_size;
        self.assembled.extend_from_slice(&self.buffer[from..from + here]);
        let end = page.advance(needed as u64);
        if !had_header {
            // It lay across the page's border, and is whole now: a page has room for all of it.
            self.check_header(start, &RecordHeader::from_bytes(&self.assembled), end)?;
        }
        self.position = end;
        if here < missing {
            return Ok(None);
        }
        let header = RecordHeader::from_bytes(&self.assembled);
        self.check_record(start, &header, &self.assembled, end)?;
        if is_switch(&header) {
            self.begin_switch_fill(start, end);
            return Ok(None);
        }
        self.commit(start, end);
        Ok(Some(Found { start, header, in_buffer: None }))
    }

    /// What can be said of a record before its body is there.
    fn check_header(&self, start: Lsn, header: &RecordHeader, read_to: Lsn) -> Result<(), Halt> {
        if !header.rmgr.is_possible() {
            return Halt::torn(Fault::Rmgr { found: header.rmgr.0 }, read_to);
        }
        match self.current.prev {
            Some(expected) if header.prev != expected => {
                Halt::torn(Fault::Prev { expected, found: header.prev }, read_to)
            }
            None if header.prev >= start => {
                Halt::torn(Fault::PrevNotBefore { found: header.prev }, read_to)
            }
            _ => Ok(()),
        }
    }

    /// What can be said of a record when all of it is there.
    fn check_record(
        &self,
        start: Lsn,
        header: &RecordHeader,
        bytes: &[u8],
        end: Lsn,
    ) -> Result<(), Halt> {
        let found = record_crc(bytes);
        if found != header.crc {
            return Halt::torn(Fault::Crc { expected: header.crc, found }, end);
        }
        if let Some(overwritten) = self.current.overwritten {
            // Main data with a short header: 255, its length, then overwritten_lsn.
            let says_so = header.rmgr == RmgrId::XLOG
                && header.opcode() == xlog::OVERWRITE_CONTRECORD
                && u64_at(bytes, RECORD_HEADER_SIZE + 2) == overwritten.0;
            if !says_so {
                // A whole record, but another one: no write to come can heal that.
                let fault = Fault::Overwrite { page: page_start(start), overwritten };
                return Err(Halt::Stop { kind: StopKind::Corrupt, fault, read_to: end });
            }
        }
        Ok(())
    }

    /// A segment switch, now in `assembled`, ends at `end`; it takes the rest of the segment too.
    fn begin_switch_fill(&mut self, start: Lsn, end: Lsn) {
        // The record itself may reach into the next segment: then that one is filled.
        let segment = self.segment_size.segment_before(end);
        self.position = end;
        self.state = State::SwitchFill { start, end: self.segment_size.end_of(segment) };
    }

    /// Goes from a segment switch to the segment's end. The server leaves the rest zero, headers
    /// of later pages included (`CopyXLogRecordToWAL`, `src/backend/access/transam/xlog.c`):
    /// anything else means that it has not got there yet. Unless it is known to have gone on: then
    /// it crashed in between, and began the next segment without coming back to the fill.
    fn skip_switch_fill(&mut self, start: Lsn, end: Lsn) -> Result<Found, Halt> {
        let left = end.bytes_since(self.position) as usize;
        let ahead = self.ahead();
        let fill = &ahead[..ahead.len().min(left)];
        if self.known_end < end && fill.iter().any(|&byte| byte != 0) {
            return Halt::torn(Fault::SwitchFill, end);
        }
        let seen = fill.len();
        self.position = self.position.advance(seen as u64);
        if seen < left {
            return Err(Halt::NeedMore);
        }
        Ok(self.finish_switch(start, end))
    }

    fn finish_switch(&mut self, start: Lsn, end: Lsn) -> Found {
        self.commit(start, end);
        let header = RecordHeader::from_bytes(&self.assembled);
        Found { start, header, in_buffer: None }
    }

    fn commit(&mut self, start: Lsn, end: Lsn) {
        self.position = end;
        self.state = State::AtRecord;
        self.current.lsn = end;
        self.current.prev = Some(start);
        self.current.overwritten = None;
        // Field by field: a copy of the whole would wait for what was just written in parts.
        let Boundary { version, timeline, system_identifier, .. } = self.current;
        self.boundary.lsn = end;
        self.boundary.prev = Some(start);
        self.boundary.version = version;
        self.boundary.timeline = timeline;
        self.boundary.system_identifier = system_identifier;
        self.boundary.overwritten = None;
    }
}

fn is_switch(header: &RecordHeader) -> bool {
    header.rmgr == RmgrId::XLOG && header.opcode() == xlog::SWITCH
}
