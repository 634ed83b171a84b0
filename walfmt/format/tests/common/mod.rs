//! Writes WAL as a server does, and reads it back, for tests.

// Each test file uses a part of this.
#![allow(dead_code, unreachable_pub)]

pub mod script;

use walfmt::record::{RECORD_HEADER_SIZE, record_crc};
use walfmt::rmgr::{RmgrId, xlog};
use walfmt::stream::{RecordStream, Step, Stop, StreamStart};
use walfmt::wal_page::{LONG_HEADER_SIZE, WAL_PAGE_SIZE, header_size, page_start};
use walfmt::{Lsn, SegmentSize, Timeline};

pub const PAGE: u64 = WAL_PAGE_SIZE as u64;
pub const SYSTEM: u64 = 0x0123_4567_89AB_CDEF;

pub const FIRST_IS_CONTRECORD: u16 = 0x0001;
pub const LONG_HEADER: u16 = 0x0002;
pub const BKP_REMOVABLE: u16 = 0x0004;
pub const FIRST_IS_OVERWRITE_CONTRECORD: u16 = 0x0008;

/// The smallest there is.
pub fn small_segments() -> SegmentSize {
    SegmentSize::new(1 << 20).expect("1 MB is legal")
}

/// A record, as written or as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub start: Lsn,
    pub end: Lsn,
    pub prev: Lsn,
    pub bytes: Vec<u8>,
}

/// A record with the right length and CRC.
pub fn record_bytes(prev: Lsn, rmgr: RmgrId, info: u8, body: &[u8]) -> Vec<u8> {
    let mut record = vec![0; RECORD_HEADER_SIZE];
    let total = (RECORD_HEADER_SIZE + body.len()) as u32;
    record[0..4].copy_from_slice(&total.to_le_bytes());
    record[4..8].copy_from_slice(&731_u32.to_le_bytes());
    record[8..16].copy_from_slice(&prev.0.to_le_bytes());
    record[16] = info;
    record[17] = rmgr.0;
    record.extend_from_slice(body);
    let crc = record_crc(&record);
    record[20..24].copy_from_slice(&crc.to_le_bytes());
    record
}

/// A page header, short or long as its place demands.
pub fn page_header(
    page: Lsn,
    segment_size: SegmentSize,
    timeline: Timeline,
    flags: u16,
    remaining_length: usize,
) -> Vec<u8> {
    let mut header = vec![0; header_size(page, segment_size)];
    let long = header.len() == LONG_HEADER_SIZE;
    let info = flags | if long { LONG_HEADER } else { 0 };
    header[0..2].copy_from_slice(&0xD110_u16.to_le_bytes());
    header[2..4].copy_from_slice(&info.to_le_bytes());
    header[4..8].copy_from_slice(&timeline.0.to_le_bytes());
    header[8..16].copy_from_slice(&page.0.to_le_bytes());
    header[16..20].copy_from_slice(&(remaining_length as u32).to_le_bytes());
    if long {
        header[24..32].copy_from_slice(&SYSTEM.to_le_bytes());
        header[32..36].copy_from_slice(&(segment_size.bytes() as u32).to_le_bytes());
        header[36..40].copy_from_slice(&(PAGE as u32).to_le_bytes());
    }
    header
}

/// Bytes that differ from record to record and from place to place.
pub fn body(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(at as u8 >> 3) ^ seed).collect()
}

/// WAL from a page's start on.
#[derive(Clone, Debug)]
pub struct Wal {
    pub start: Lsn,
    pub segment_size: SegmentSize,
    pub timeline: Timeline,
    pub bytes: Vec<u8>,
    /// Where the last record that counts begins.
    pub prev: Lsn,
    /// The records that a reader must find.
    pub records: Vec<Written>,
}

impl Wal {
    /// Empty WAL from `start` on, in segments of the smallest size.
    pub fn new(start: Lsn) -> Self {
        Self::with_segments(start, small_segments())
    }

    pub fn with_segments(start: Lsn, segment_size: SegmentSize) -> Self {
        assert_eq!(page_start(start), start);
        let (timeline, prev) = (Timeline(1), Lsn(start.0.saturating_sub(4096)));
        Self { start, segment_size, timeline, bytes: Vec::new(), prev, records: Vec::new() }
    }

    /// WAL that begins `pages` before a segment's end.
    pub fn before_segment_end(pages: u64) -> Self {
        Self::new(Lsn((9 << 20) - pages * PAGE))
    }

    /// Where the next byte goes.
    pub fn end(&self) -> Lsn {
        self.start.advance(self.bytes.len() as u64)
    }

    /// How many bytes are left on the page, after its header.
    pub fn page_left(&self) -> usize {
        let end = self.end();
        let into = (end.0 % PAGE) as usize;
        let header = if into == 0 { header_size(end, self.segment_size) } else { 0 };
        WAL_PAGE_SIZE - into - header
    }

    fn begin_page(&mut self, flags: u16, remaining_length: usize) {
        let page = self.end();
        assert_eq!(page_start(page), page);
        let header = page_header(page, self.segment_size, self.timeline, flags, remaining_length);
        self.bytes.extend_from_slice(&header);
    }

    fn begin_page_if_due(&mut self) {
        if page_start(self.end()) == self.end() {
            self.begin_page(0, 0);
        }
    }

    /// Writes bytes, going on over page borders as a record does; no padding.
    fn flow(&mut self, mut bytes: &[u8]) {
        loop {
            let (here, rest) = bytes.split_at(bytes.len().min(self.page_left()));
            self.bytes.extend_from_slice(here);
            bytes = rest;
            if bytes.is_empty() {
                return;
            }
            self.begin_page(FIRST_IS_CONTRECORD, bytes.len());
        }
    }

    /// Writes these bytes as a record, right or wrong.
    pub fn raw_record(&mut self, bytes: &[u8]) -> Written {
        self.begin_page_if_due();
        let start = self.end();
        self.flow(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        let written = Written { start, end: self.end(), prev: self.prev, bytes: bytes.to_vec() };
        self.prev = start;
        self.records.push(written.clone());
        written
    }

    /// Writes a record.
    pub fn record(&mut self, rmgr: RmgrId, info: u8, body: &[u8]) -> Written {
        self.raw_record(&record_bytes(self.prev, rmgr, info, body))
    }

    /// Writes a record of `total` bytes about nothing.
    pub fn filler(&mut self, total: usize) -> Written {
        let seed = self.records.len() as u8;
        self.record(RmgrId::HEAP, 0x20, &body(total - RECORD_HEADER_SIZE, seed))
    }

    /// Writes a record after which `left` bytes of its page are left.
    pub fn fill_page_but(&mut self, left: usize) -> Written {
        let total = self.page_left() - left;
        let written = self.filler(total);
        assert_eq!(written.end.0 % PAGE, (PAGE - left as u64) % PAGE);
        written
    }

    /// Switches to the next segment.
    pub fn switch(&mut self) -> Written {
        let written = self.record(RmgrId::XLOG, xlog::SWITCH, &[]);
        let segment = self.segment_size.segment_before(written.end);
        let end = self.segment_size.end_of(segment);
        self.bytes.resize(end.bytes_since(self.start) as usize, 0);
        let last = self.records.last_mut().expect("just written");
        last.end = end;
        last.clone()
    }

    /// Begins a record too long for its page, goes on for `pages` more, and gives it up: the next
    /// page says so. Gives the start of what was given up.
    pub fn abandon(&mut self, pages: usize) -> Lsn {
        self.begin_page_if_due();
        let start = self.end();
        let total = self.page_left() + (pages + 2) * WAL_PAGE_SIZE;
        let bytes = record_bytes(self.prev, RmgrId::HEAP, 0x20, &body(total, 77));
        let before = self.bytes.len();
        self.flow(&bytes);
        let keep = WAL_PAGE_SIZE - (start.0 % PAGE) as usize + pages * WAL_PAGE_SIZE;
        self.bytes.truncate(before + keep);
        self.begin_page(FIRST_IS_OVERWRITE_CONTRECORD, 0);
        start
    }

    /// The record that must follow a record that was given up.
    pub fn overwrite_contrecord(&mut self, overwritten: Lsn) -> Written {
        let mut body = vec![255, 16];
        body.extend_from_slice(&overwritten.0.to_le_bytes());
        body.extend_from_slice(&[0; 8]);
        self.record(RmgrId::XLOG, xlog::OVERWRITE_CONTRECORD, &body)
    }

    /// A byte that was written, to be changed.
    pub fn byte_at(&mut self, lsn: Lsn) -> &mut u8 {
        let at = lsn.bytes_since(self.start) as usize;
        &mut self.bytes[at]
    }

    /// Replaces bytes that were written.
    pub fn overwrite(&mut self, lsn: Lsn, bytes: &[u8]) {
        let at = lsn.bytes_since(self.start) as usize;
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Pages that were never written.
    pub fn zero_pages(&mut self, pages: usize) {
        let end = self.bytes.len().next_multiple_of(WAL_PAGE_SIZE) + pages * WAL_PAGE_SIZE;
        self.bytes.resize(end, 0);
    }

    /// Pages of a recycled file: those of the segment `segments_before`, sound in themselves.
    pub fn stale_pages(&mut self, segments_before: u64, pages: u64) {
        self.bytes.resize(self.bytes.len().next_multiple_of(WAL_PAGE_SIZE), 0);
        let address = Lsn(self.end().0 - segments_before * self.segment_size.bytes());
        let mut former = Self::with_segments(address, self.segment_size);
        while former.bytes.len() < (pages * PAGE) as usize {
            former.filler(former.page_left().min(200));
        }
        self.bytes.extend_from_slice(&former.bytes[..(pages * PAGE) as usize]);
    }

    /// A stream that begins where this WAL does.
    pub fn stream(&self) -> RecordStream {
        self.stream_at(self.start)
    }

    pub fn stream_at(&self, lsn: Lsn) -> RecordStream {
        RecordStream::new(StreamStart {
            lsn,
            segment_size: self.segment_size,
            system_identifier: Some(SYSTEM),
        })
    }

    /// Reads all of it at once.
    pub fn read(&self) -> Outcome {
        Outcome::of(&mut self.stream(), &self.bytes, &[usize::MAX])
    }

    /// Reads it with WAL known to exist up to `known_end`.
    pub fn read_known_to(&self, known_end: Lsn) -> Outcome {
        let mut stream = self.stream();
        stream.set_known_end(known_end);
        Outcome::of(&mut stream, &self.bytes, &[usize::MAX])
    }
}

/// What a stream gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    pub records: Vec<Written>,
    /// Why it stopped; nothing if it asks for more.
    pub stop: Option<Stop>,
}

impl Outcome {
    /// Pushes `bytes` in pieces whose lengths go round in `cuts`, and polls after each.
    pub fn of(stream: &mut RecordStream, mut bytes: &[u8], cuts: &[usize]) -> Self {
        let mut outcome = Self { records: Vec::new(), stop: None };
        for &cut in cuts.iter().cycle() {
            let (piece, rest) = bytes.split_at(cut.min(bytes.len()));
            bytes = rest;
            stream.push(piece);
            if outcome.poll_all(stream) || bytes.is_empty() {
                return outcome;
            }
        }
        outcome
    }

    /// The same with buffers, which the stream takes over.
    pub fn of_buffers(stream: &mut RecordStream, mut bytes: &[u8], cuts: &[usize]) -> Self {
        let mut outcome = Self { records: Vec::new(), stop: None };
        for &cut in cuts.iter().cycle() {
            let (piece, rest) = bytes.split_at(cut.min(bytes.len()));
            bytes = rest;
            let end = stream.pushed_end().advance(piece.len() as u64);
            assert_eq!(stream.push_buffer(piece.to_vec()), Vec::<u8>::new());
            assert_eq!(stream.pushed_end(), end);
            if outcome.poll_all(stream) || bytes.is_empty() {
                return outcome;
            }
        }
        outcome
    }

    fn poll_all(&mut self, stream: &mut RecordStream) -> bool {
        loop {
            match stream.poll() {
                Step::Record(record) => {
                    self.records.push(Written {
                        start: record.start,
                        end: record.end,
                        prev: record.header.prev,
                        bytes: record.bytes.to_vec(),
                    });
                    let end = record.end;
                    assert_eq!(stream.record_end(), end);
                }
                Step::NeedMore => return false,
                Step::Stop(stop) => {
                    self.stop = Some(stop);
                    return true;
                }
            }
        }
    }
}
