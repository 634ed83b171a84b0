//! Reads one unit of WAL: the records that begin between two positions, and what they look like.
//!
//! ```text
//! unit        |·· rest of A ··[ B ][ C ][ D ···|
//! unit                                         |··· rest of D ·····[ E ] ...
//!                                               ───────────────►
//! read for B, C and D                             a little more
//! ```
//!
//! Units do not depend on each other, so they can be read on several threads. That each begins where the
//! one before it ended is seen when they are put together: the first record's link to the one before.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError, RwLock};

use walfmt::bytes::{u16_at, u32_at};
use walfmt::rmgr::{RmgrId, xlog};
use walfmt::text::{self, Out};
use walfmt::wal_page::{SHORT_HEADER_SIZE, WAL_PAGE_SIZE, header_size};
use walfmt::{
    Lsn, RawRecord, Record, RecordStream, SegmentName, SegmentNumber, SegmentSize, Step, Stop,
    StreamStart, Timeline, Version,
};

use super::filter::Filter;
use super::json;
use super::place::{Opened, Place, Way, failed};
use super::stats::Stats;
use super::zone::LocalZone;
use crate::trouble::{Kind, Trouble};

/// How much is read at once: it stays in the processor's cache.
const CHUNK_BYTES: usize = 256 << 10;
/// How much more is read for a unit's last record.
const MORE_BYTES: usize = 2 * WAL_PAGE_SIZE;

/// What is made of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Show {
    Text { details: bool },
    Json,
    Stats,
    Nothing,
}

/// What all who read have in common.
pub(super) struct Context {
    pub(super) place: Place,
    pub(super) way: RwLock<Way>,
    /// Only records that begin here or later.
    pub(super) start: Lsn,
    /// Only records that are whole before this.
    pub(super) end: Lsn,
    pub(super) filter: Filter,
    pub(super) show: Show,
    pub(super) zone: LocalZone,
    /// What is left to read is wanted no more.
    pub(super) is_over: AtomicBool,
    /// Buffers that were written out, to be filled again.
    pub(super) used: Mutex<Vec<Output>>,
}

/// Where records go.
#[derive(Debug, Default)]
pub(super) struct Output {
    pub(super) bytes: Vec<u8>,
    pub(super) stats: Option<Box<Stats>>,
}

/// From one page's start to another's.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unit {
    pub(super) from: Lsn,
    pub(super) to: Lsn,
}

/// A record's place, and its link to the one before it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Link {
    pub(super) start: Lsn,
    pub(super) prev: Lsn,
}

/// What a unit gave.
#[derive(Debug, Default)]
pub(super) struct Part {
    pub(super) output: Output,
    /// Of the first record that begins here.
    pub(super) first: Option<Link>,
    /// Where the first record begins that was asked for, filters aside.
    pub(super) first_asked: Option<Lsn>,
    /// Where the last record begins and ends.
    pub(super) last: Option<(Lsn, Lsn)>,
    /// Where the last record ends that was shown.
    pub(super) shown_end: Option<Lsn>,
    /// How many were shown.
    pub(super) shown: u64,
    pub(super) version: Option<&'static Version>,
    /// Of the first page.
    pub(super) first_timeline: Timeline,
    /// Of the last page.
    pub(super) last_timeline: Timeline,
    /// How many records could not be described in full, and the first of them.
    pub(super) undescribed: Option<(u64, Lsn, String)>,
    /// Why there is nothing behind this part.
    pub(super) why: Option<Why>,
}

/// Why reading ended.
#[derive(Debug)]
pub(super) enum Why {
    /// All that was asked for is read.
    Asked,
    /// As many records as were asked for.
    Limit,
    /// Interrupted.
    Interrupted,
    /// Whoever read what we write has had enough.
    Unread,
    /// WAL that is not whole, or not there yet.
    Stop(Stop),
    /// There is no file for the segment.
    NoSegment {
        name: SegmentName,
        at: Lsn,
    },
    /// The file ends before the segment does.
    FileEnds {
        path: String,
        at: Lsn,
    },
    Trouble(Trouble),
}

/// Reads units, with what can be kept from one to the next.
pub(super) struct Reader<'a> {
    context: &'a Context,
    file: Option<(SegmentNumber, Opened)>,
    chunk: Vec<u8>,
    more: Vec<u8>,
    description: Vec<u8>,
}

impl Context {
    pub(super) fn way(&self) -> Way {
        self.way.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn output(&self) -> Output {
        let mut used = self.used.lock().unwrap_or_else(PoisonError::into_inner);
        used.pop().unwrap_or_default()
    }

    pub(super) fn give_back(&self, mut output: Output) {
        output.bytes.clear();
        if let Some(stats) = &mut output.stats {
            stats.clear();
        }
        self.used.lock().unwrap_or_else(PoisonError::into_inner).push(output);
    }

    /// A stream that begins at a page's start.
    pub(super) fn stream(&self, lsn: Lsn) -> RecordStream {
        RecordStream::new(StreamStart {
            lsn,
            segment_size: self.place.segment_size,
            system_identifier: Some(self.place.system_identifier),
        })
        .without_fill()
    }
}

impl<'a> Reader<'a> {
    pub(super) fn new(context: &'a Context) -> Self {
        Self {
            context,
            file: None,
            chunk: Vec::with_capacity(CHUNK_BYTES),
            more: Vec::new(),
            description: Vec::new(),
        }
    }

    /// Closes the open file, whose name may mean another one now, unless that only grows.
    pub(super) fn forget(&mut self) {
        self.file.take_if(|(_, opened)| !opened.file.only_grows());
    }

    /// Reads a unit; no more than `limit` of its records are shown.
    pub(super) fn read(&mut self, unit: Unit, limit: u64) -> Part {
        let mut part = Part { output: self.context.output(), ..Part::default() };
        let mut stream = self.context.stream(unit.from);
        part.why = self.read_records(unit, limit, &mut stream, &mut part).err();
        part.last_timeline = stream.timeline();
        part
    }

    fn read_records(
        &mut self,
        unit: Unit,
        limit: u64,
        stream: &mut RecordStream,
        part: &mut Part,
    ) -> Result<(), Why> {
        loop {
            let at = stream.pushed_end();
            if at >= unit.to && stream.unfinished_record().is_none_or(|start| start >= unit.to) {
                return Ok(());
            }
            if self.context.is_over.load(Ordering::Relaxed) {
                return Err(Why::Unread);
            }
            if at < unit.to {
                let length = usize::try_from(unit.to.bytes_since(at)).unwrap_or(usize::MAX);
                let mut chunk = std::mem::take(&mut self.chunk);
                let read = self.read_bytes(at, length.min(CHUNK_BYTES), &mut chunk);
                let read = read.and_then(|()| self.look_at_page(at == unit.from, &chunk, at, part));
                self.chunk = if read.is_ok() { stream.push_buffer(chunk) } else { chunk };
                read?;
            } else {
                let mut more = std::mem::take(&mut self.more);
                let read = self.read_bytes(at, MORE_BYTES, &mut more);
                stream.push(&more);
                self.more = more;
                read?;
            }
            if self.take(unit, limit, stream, part)? {
                return Ok(());
            }
        }
    }

    /// Looks at the header of a unit's first page.
    pub(super) fn look_at_page(
        &self,
        is_first: bool,
        page: &[u8],
        at: Lsn,
        part: &mut Part,
    ) -> Result<(), Why> {
        if !is_first {
            return Ok(());
        }
        if page.len() < SHORT_HEADER_SIZE {
            return Err(self.file_ends(at));
        }
        part.note_page(page);
        Ok(())
    }

    fn file_ends(&self, at: Lsn) -> Why {
        let path = self.file.as_ref().map(|(_, opened)| opened.file.path().display().to_string());
        Why::FileEnds { path: path.unwrap_or_default(), at }
    }

    /// Takes the records that the pushed bytes hold and that begin in the unit; whether it is over.
    pub(super) fn take(
        &mut self,
        unit: Unit,
        limit: u64,
        stream: &mut RecordStream,
        part: &mut Part,
    ) -> Result<bool, Why> {
        loop {
            match stream.poll() {
                Step::NeedMore => return Ok(false),
                // What is not whole behind the unit is for those to say who read there.
                Step::Stop(stop) if stop.at >= unit.to => return Ok(true),
                Step::Stop(stop) => return Err(Why::Stop(stop)),
                Step::Record(raw) => {
                    if raw.start >= unit.to {
                        return Ok(true);
                    }
                    if last_byte_end(&raw, self.context.place.segment_size) > self.context.end {
                        return Err(Why::Asked);
                    }
                    if raw.start < unit.from {
                        continue;
                    }
                    let link = Link { start: raw.start, prev: raw.header.prev };
                    part.first.get_or_insert(link);
                    part.last = Some((raw.start, raw.end));
                    if raw.start >= self.context.start {
                        part.first_asked.get_or_insert(raw.start);
                        self.show(&raw, part)?;
                        if part.shown >= limit {
                            return Err(Why::Limit);
                        }
                    }
                }
            }
        }
    }

    #[inline]
    fn show(&mut self, raw: &RawRecord<'_>, part: &mut Part) -> Result<(), Why> {
        let context = self.context;
        if !context.filter.passes_header(&raw.header) {
            return Ok(());
        }
        let version = part.version.expect("a record lies on a page with a magic that is known");
        let mut record = Record::blank();
        record.read(raw, version).map_err(|error| {
            let words = format_args!("the record at {} cannot be read: {error}", raw.start);
            Why::Trouble(Trouble::new(Kind::Corrupt, words))
        })?;
        if !context.filter.passes_blocks(&record) {
            return Ok(());
        }
        part.shown += 1;
        part.shown_end = Some(raw.end);
        let Output { bytes, stats } = &mut part.output;
        let described = match context.show {
            Show::Text { details } => {
                text::write(&record, version, details, &mut Out::new(bytes, &context.zone))
            }
            Show::Json => {
                json::write(&record, version, &context.zone, &mut self.description, bytes)
            }
            Show::Stats => {
                stats.get_or_insert_default().count(&record);
                Ok(())
            }
            Show::Nothing => Ok(()),
        };
        if let Err(error) = described {
            let (count, ..) =
                part.undescribed.get_or_insert_with(|| (0, raw.start, error.to_string()));
            *count += 1;
        }
        Ok(())
    }

    /// Reads what there is of the bytes from `at` on into an empty buffer: not beyond the segment's end,
    /// nor beyond what was asked for, and one at least.
    pub(super) fn read_bytes(
        &mut self,
        at: Lsn,
        length: usize,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Why> {
        buffer.clear();
        let context = self.context;
        // The padding of the last record is looked at.
        let asked = context.end.align_up();
        if at >= asked {
            return Err(Why::Asked);
        }
        let size = context.place.segment_size;
        let segment = size.segment_of(at);
        if self.file.as_ref().is_none_or(|(open, _)| *open != segment) {
            self.file = None;
            let way = context.way();
            let Some(opened) = context.place.open(&way, segment).map_err(Why::Trouble)? else {
                let timeline = way.history.timeline_at(way.target, at);
                return Err(Why::NoSegment { name: SegmentName::new(timeline, segment, size), at });
            };
            self.file = Some((segment, opened));
        }
        let (_, Opened { file, end }) = self.file.as_mut().expect("opened above");
        let end = size.end_of(segment).min(asked).min(*end);
        let length = length.min(usize::try_from(end.bytes_since(at)).unwrap_or(usize::MAX));
        if length > 0 {
            let read = file.read(size.offset_of(at), length, buffer);
            read.map_err(|error| Why::Trouble(failed(file.path())(error)))?;
        }
        if buffer.is_empty() {
            return Err(self.file_ends(at));
        }
        Ok(())
    }
}

impl Part {
    /// Takes from a page's header what the stream does not tell while it gives records.
    pub(super) fn note_page(&mut self, page: &[u8]) {
        self.version = Version::from_page_magic(u16_at(page, 0));
        self.first_timeline = Timeline(u32_at(page, 4));
    }
}

/// Where the record's last byte ends, padding and the fill behind a segment switch left out: with this
/// `pg_waldump` compares the end that was asked for.
fn last_byte_end(raw: &RawRecord<'_>, size: SegmentSize) -> Lsn {
    let length = u64::from(raw.header.total_length);
    if raw.header.rmgr != RmgrId::XLOG || raw.header.opcode() != xlog::SWITCH {
        return Lsn(raw.end.0 - (length.next_multiple_of(8) - length));
    }
    // It has no body, so it lies on two pages at most.
    let page = WAL_PAGE_SIZE as u64;
    let next_page = Lsn(raw.start.0 - raw.start.0 % page).advance(page);
    let here = next_page.bytes_since(raw.start);
    if length <= here {
        return raw.start.advance(length);
    }
    next_page.advance(header_size(next_page, size) as u64 + length - here)
}
