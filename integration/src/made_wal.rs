//! WAL made by hand: records that no server writes, for whoever reads WAL.
//!
//! ```text
//! one segment of 1 MB, number 1 of timeline 1
//!   page header, 40 bytes, on the first page; 24 bytes on others (src/include/access/xlog_internal.h)
//!   records, each at a multiple of 8, going on behind the next page's header where a page ends
//! ```

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use walfmt::record::{RECORD_HEADER_SIZE, record_crc};
use walfmt::rmgr::RmgrId;
use walfmt::wal_page::{LONG_HEADER_SIZE, SHORT_HEADER_SIZE, WAL_PAGE_SIZE};
use walfmt::{Lsn, SegmentName, SegmentNumber, SegmentSize, Timeline, Version};

use crate::opcodes::Wal;
use crate::segments::Segments;

/// A record as it is wished for.
#[derive(Clone, Debug)]
pub struct MadeRecord {
    /// Whose record it is.
    pub rmgr: RmgrId,
    /// `xl_info`.
    pub info: u8,
    /// How many pages it refers to: block 0, 1, ... of one relation, without data.
    pub blocks: u8,
    /// The data that belongs to no page.
    pub main_data: Vec<u8>,
}

const SEGMENT: usize = 1 << 20;
const TIMELINE: Timeline = Timeline(1);

/// Writes the records as a segment into `directory`, which must be empty.
///
/// # Errors
/// They do not fit, or there are none; or the directory cannot be written.
pub fn write(
    directory: &Path,
    name: &str,
    version: &Version,
    records: &[MadeRecord],
) -> Result<Wal> {
    let mut segment = MadeSegment { version, bytes: Vec::with_capacity(SEGMENT) };
    let mut prev = 0;
    for record in records {
        prev = segment.push(record, prev);
    }
    ensure!(prev > 0 && segment.bytes.len() < SEGMENT - WAL_PAGE_SIZE, "one segment of records");
    segment.bytes.resize(SEGMENT, 0);

    let size = SegmentSize::new(SEGMENT as u32).context("a legal size")?;
    let file = directory.join(SegmentName::new(TIMELINE, SegmentNumber(1), size).to_string());
    fs::write(&file, &segment.bytes).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Wal {
        name: name.to_owned(),
        segments: Segments::find(directory, TIMELINE, size)?,
        timeline: TIMELINE,
        last_record: Lsn(prev),
    })
}

struct MadeSegment<'a> {
    version: &'a Version,
    bytes: Vec<u8>,
}

impl MadeSegment<'_> {
    /// Appends a record and gives where it begins.
    fn push(&mut self, record: &MadeRecord, prev: u64) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.page(0);
        let start = (SEGMENT + self.bytes.len()) as u64;
        let bytes = record_bytes(record, prev);
        let mut left = bytes.as_slice();
        while !left.is_empty() {
            self.page(left.len());
            let here = WAL_PAGE_SIZE - self.bytes.len() % WAL_PAGE_SIZE;
            let (piece, rest) = left.split_at(here.min(left.len()));
            self.bytes.extend_from_slice(piece);
            left = rest;
        }
        start
    }

    /// Where a page begins, its header; `left` bytes of the record before go on in it.
    fn page(&mut self, left: usize) {
        if !self.bytes.len().is_multiple_of(WAL_PAGE_SIZE) {
            return;
        }
        let first = self.bytes.is_empty();
        // A record's first piece is at a place that has its header.
        let info = u16::from(left > 0) | if first { 0x0002 } else { 0 };
        let begin = self.bytes.len();
        self.bytes.extend(self.version.page_magic.to_le_bytes());
        self.bytes.extend(info.to_le_bytes());
        self.bytes.extend(TIMELINE.0.to_le_bytes());
        self.bytes.extend(((SEGMENT + begin) as u64).to_le_bytes());
        self.bytes.extend((left as u32).to_le_bytes());
        self.bytes.extend([0; 4]);
        if first {
            self.bytes.extend(7_u64.to_le_bytes());
            self.bytes.extend((SEGMENT as u32).to_le_bytes());
            self.bytes.extend((WAL_PAGE_SIZE as u32).to_le_bytes());
        }
        let length = if first { LONG_HEADER_SIZE } else { SHORT_HEADER_SIZE };
        debug_assert_eq!(self.bytes.len() - begin, length);
    }
}

fn record_bytes(record: &MadeRecord, prev: u64) -> Vec<u8> {
    let mut bytes = vec![0; RECORD_HEADER_SIZE];
    for block in 0..record.blocks {
        // Id, main fork without flags, no data; locator, number.
        bytes.extend([block, 0, 0, 0]);
        for number in [1663_u32, 5, 16_384, block.into()] {
            bytes.extend(number.to_le_bytes());
        }
    }
    let main = &record.main_data;
    match u8::try_from(main.len()) {
        Ok(0) => {}
        Ok(length) => bytes.extend([255, length]),
        Err(_) => {
            bytes.push(254);
            bytes.extend((main.len() as u32).to_le_bytes());
        }
    }
    bytes.extend_from_slice(main);
    let length = bytes.len() as u32;
    bytes[0..4].copy_from_slice(&length.to_le_bytes());
    bytes[8..16].copy_from_slice(&prev.to_le_bytes());
    bytes[16] = record.info;
    bytes[17] = record.rmgr.0;
    let crc = record_crc(&bytes);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    bytes
}
