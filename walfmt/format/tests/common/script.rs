//! Scripts that write WAL a person can picture, and say how a reader must end: `tests/ends/*.wal`.
//!
//! One command a line; `#` begins a comment.
//!
//! ```text
//! at PAGES                  go on, with records of a page or so, to so many pages before the segment's end
//! record LENGTH             a record (XLOG NOOP) of this length in all
//! record-until LEFT         one after which so many bytes of the page are left
//! switch                    XLOG SWITCH
//! give-up PAGES             a record that is begun, goes on over so many pages, and is given up
//! witness                   OVERWRITE_CONTRECORD for what was given up
//! timeline NUMBER           pages from here on are of this timeline
//! cut BYTES                 the last bytes were never written
//! keep-pages COUNT          what lies behind so many pages was never written
//! zero-pages COUNT          pages that were never written
//! old-pages SEGMENTS COUNT  pages of a recycled file: of so many segments before, whole records on them
//! in-last FIELD VALUE       changes the last record's header: length, prev, rmgr, info or crc; with
//!                           "sealed" behind it the CRC is made right again
//! in-page FIELD VALUE       changes the last page's header: magic, flags, timeline, address, remaining
//! expect COUNT records, then STOP
//! pg_waldump ...            where it does not end with the same record: how many it has, and why
//! ```
//!
//! Numbers may be hexadecimal, with `0x`. What is not written is zero, up to the segment's end.

use walfmt::record::record_crc;
use walfmt::rmgr::{RmgrId, xlog};
use walfmt::wal_page::{WAL_PAGE_SIZE, page_start};
use walfmt::{Lsn, Timeline};

use super::{PAGE, Wal, record_bytes};

/// What a script says.
pub struct Script {
    pub wal: Wal,
    /// The newest timeline of its pages: the files' names have it.
    pub timeline_max: Timeline,
    /// `COUNT records, then STOP`.
    pub expected: String,
    /// How many records `pg_waldump` has, if not as many.
    pub judged: Option<usize>,
}

/// The segment that scripts begin, of 1 MB.
pub const START: Lsn = Lsn(9 << 20);

impl Script {
    pub fn read(text: &str) -> Result<Self, String> {
        let mut script = Self {
            wal: Wal::new(START),
            timeline_max: Timeline(1),
            expected: String::new(),
            judged: None,
        };
        let mut given_up = None;
        for (number, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default().trim();
            if line.is_empty() {
                continue;
            }
            script
                .command(line, &mut given_up)
                .map_err(|why| format!("line {}: {why}", number + 1))?;
        }
        let used = script.wal.bytes.len();
        let segment = script.wal.segment_size.bytes() as usize;
        script.wal.bytes.resize(used.next_multiple_of(segment), 0);
        Ok(script)
    }

    fn command(&mut self, line: &str, given_up: &mut Option<Lsn>) -> Result<(), String> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        if word == "expect" {
            self.expected = rest.to_owned();
            return Ok(());
        }
        let words: Vec<&str> = rest.split_whitespace().collect();
        let number = |at: usize| -> Result<u64, String> {
            let word = words.get(at).ok_or_else(|| format!("{line}: a number is missing"))?;
            match word.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).map_err(|error| error.to_string()),
                None => word.parse().map_err(|error| format!("{word}: {error}")),
            }
        };
        let wal = &mut self.wal;
        match word {
            "at" => {
                let until = START.0 + wal.segment_size.bytes() - number(0)? * PAGE;
                while wal.end().0 < until {
                    let left = wal.page_left();
                    noop(wal, left);
                }
            }
            "record" => noop(wal, number(0)? as usize),
            "record-until" => {
                let total = wal.page_left() - number(0)? as usize;
                noop(wal, total);
            }
            "switch" => drop(wal.switch()),
            "give-up" => *given_up = Some(wal.abandon(number(0)? as usize)),
            "witness" => drop(wal.overwrite_contrecord(given_up.ok_or("nothing was given up")?)),
            "timeline" => {
                wal.timeline = Timeline(number(0)? as u32);
                self.timeline_max = self.timeline_max.max(wal.timeline);
            }
            "cut" | "keep-pages" => {
                let length = match word {
                    "cut" => wal.bytes.len() - number(0)? as usize,
                    _ => (number(0)? * PAGE) as usize,
                };
                wal.bytes.truncate(length);
                let end = wal.end();
                wal.bytes.resize(wal.bytes.len().next_multiple_of(8), 0);
                wal.records.retain(|record| record.end <= end);
            }
            "zero-pages" => wal.zero_pages(number(0)? as usize),
            "old-pages" => wal.stale_pages(number(0)?, number(1)?),
            "in-last" => self.change_record(words[0], number(1)?, words.get(2) == Some(&"sealed")),
            "in-page" => self.change_page(words[0], number(1)?),
            "pg_waldump" => self.judged = Some(number(0)? as usize),
            _ => return Err(format!("no such command: {line}")),
        }
        Ok(())
    }

    /// Of a record that lies on one page.
    fn change_record(&mut self, field: &str, value: u64, is_sealed: bool) {
        let last = self.wal.records.pop().expect("a record");
        let mut bytes = last.bytes.clone();
        let value = value.to_le_bytes();
        let range = match field {
            "length" => 0..4,
            "prev" => 8..16,
            "info" => 16..17,
            "rmgr" => 17..18,
            "crc" => 20..24,
            _ => panic!("no such field: {field}"),
        };
        let length = range.len();
        bytes[range].copy_from_slice(&value[..length]);
        if is_sealed {
            let crc = record_crc(&bytes);
            bytes[20..24].copy_from_slice(&crc.to_le_bytes());
        }
        self.wal.overwrite(last.start, &bytes);
    }

    fn change_page(&mut self, field: &str, value: u64) {
        let page = page_start(Lsn(self.wal.end().0 - 1));
        let (offset, length) = match field {
            "magic" => (0, 2),
            "flags" => (2, 2),
            "timeline" => (4, 4),
            "address" => (8, 8),
            "remaining" => (16, 4),
            _ => panic!("no such field: {field}"),
        };
        self.wal.overwrite(page.advance(offset), &value.to_le_bytes()[..length]);
        self.wal.records.retain(|record| record.end <= page);
    }
}

/// A record that any reader can decode: its body is one piece of main data.
fn noop(wal: &mut Wal, total: usize) {
    let seed = wal.records.len() as u8;
    let body = match total - 24 {
        0 => Vec::new(),
        length @ 2..=257 => {
            let data = super::body(length - 2, seed);
            [&[255, data.len() as u8][..], &data].concat()
        }
        length => {
            let data = super::body(length - 5, seed);
            [&[254][..], &(data.len() as u32).to_le_bytes(), &data].concat()
        }
    };
    let bytes = record_bytes(wal.prev, RmgrId::XLOG, xlog::NOOP, &body);
    assert_eq!(bytes.len(), total);
    assert!(total < 4 * WAL_PAGE_SIZE);
    wal.raw_record(&bytes);
}
