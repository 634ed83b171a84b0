//! What is fuzzed: each takes any bytes, and must not panic, run on, or take more memory than they justify.
//!
//! The fuzzer's targets call these, and so does `integration/tests/fuzzing.rs`, with a bounded number of
//! inputs, in CI.

#![allow(dead_code, unreachable_pub)]

use std::path::Path;
use std::sync::Arc;

use walferry_archive::testing::LossyFiles;
use walferry_archive::{Archive, ArchiveReader, Files};
use walferry_wire::{Decoder, Side};
use walfmt::image::{BlockImage, Compression};
use walfmt::record::{RecordHeader, record_crc};
use walfmt::relation::PageId;
use walfmt::rmgr::RmgrId;
use walfmt::text::{self, Out, Utc};
use walfmt::version::VERSIONS;
use walfmt::{
    BLOCK_SIZE, BlockReference, ForkNumber, Lsn, RawRecord, Record, RelFileLocator, SegmentName,
    SegmentSize, Timeline, TransactionId, Version,
};

#[path = "../../walfmt/format/tests/common/mod.rs"]
pub mod common;

use common::{Outcome, Wal};

/// No text is longer than so many bytes for each byte of its record, and this much beside.
const TEXT_FACTOR: usize = 40;
const TEXT_BESIDE: usize = 4096;

/// Takes bytes off the front.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().unwrap_or((&0, &[]));
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn version(&mut self) -> &'static Version {
        &VERSIONS[usize::from(self.byte()) % VERSIONS.len()]
    }
}

/// WAL as a server writes it, whose records, borders and faults the input chooses: read whole, by the byte
/// and in pieces, it gives the same.
pub fn stream(input: &[u8]) {
    let mut input = Input(input);
    let mut wal = Wal::before_segment_end(u64::from(input.byte() % 4) + 1);
    while input.0.len() > 2 && wal.bytes.len() < 1 << 13 {
        match input.byte() % 8 {
            0 => drop(wal.fill_page_but(usize::from(input.byte() % 4) * 8)),
            1 => drop(wal.switch()),
            2 => {
                let given_up = wal.abandon(usize::from(input.byte() % 3));
                if input.byte() % 4 > 0 {
                    wal.overwrite_contrecord(given_up);
                }
            }
            3 => wal.timeline = Timeline(u32::from(input.byte() % 4)),
            4 => wal.zero_pages(1),
            5 => wal.stale_pages(u64::from(input.byte() % 3), 1),
            _ => {
                let (rmgr, info) = (RmgrId(input.byte()), input.byte());
                let length = usize::from(input.byte()) * usize::from(input.byte());
                let body = input.take(length).to_vec();
                wal.record(rmgr, info, &body);
            }
        }
        if wal.page_left() < 64 {
            wal.filler(wal.page_left() + 40);
        }
    }
    for _ in 0..input.byte() % 4 {
        let (place, bits) = (usize::from(input.number()), input.byte());
        if let Some(byte) = wal.bytes.get_mut(place) {
            *byte ^= bits;
        }
    }
    same_when_cut(&wal, input.byte());
}

/// Bytes as they are, behind a page header.
pub fn pages(input: &[u8]) {
    let mut input = Input(input);
    let mut wal = Wal::before_segment_end(2);
    let flags = u16::from(input.byte() % 16);
    let remaining = usize::from(input.number());
    let size = wal.segment_size;
    wal.bytes = common::page_header(wal.start, size, Timeline(1), flags, remaining);
    wal.bytes.extend_from_slice(input.0);
    same_when_cut(&wal, flags as u8);
}

fn same_when_cut(wal: &Wal, choice: u8) {
    let whole = wal.read();
    let read: usize = whole.records.iter().map(|record| record.bytes.len()).sum();
    assert!(read <= wal.bytes.len());
    // By the byte everything is read in `walfmt/format/tests`; here that would take most of the time.
    let cuts = [&[1, 1, 500][..], &[3, 4093, 1, 24], &[24, 8, 1, 2000], &[8192]];
    let cuts = cuts[usize::from(choice) % cuts.len()];
    let cut = Outcome::of(&mut wal.stream(), &wal.bytes, cuts);
    assert_eq!(cut, whole, "read in pieces of {cuts:?}");
}

/// A record's body: the header before it is made right.
pub fn record(input: &[u8]) {
    let mut input = Input(input);
    let version = input.version();
    let (rmgr, info) = (input.byte(), input.byte());
    let mut bytes = vec![0; 24];
    bytes.extend_from_slice(input.0);
    let length = bytes.len() as u32;
    bytes[..4].copy_from_slice(&length.to_le_bytes());
    (bytes[16], bytes[17]) = (info, rmgr);
    let crc = record_crc(&bytes);
    bytes[20..24].copy_from_slice(&crc.to_le_bytes());
    let header = RecordHeader::from_bytes(&bytes);
    let raw = RawRecord { start: Lsn(0x1000), end: Lsn(0x2000), header, bytes: &bytes };
    if let Ok(record) = Record::decode(&raw, version) {
        write(&record, version, bytes.len());
        let mut page = [0; BLOCK_SIZE];
        for image in record.blocks.iter().filter_map(|block| block.image.as_ref()) {
            let _ = image.restore(&mut page);
        }
    }
}

/// An image that is not as long as it should be, or does not unpack.
pub fn image(input: &[u8]) {
    let mut input = Input(input);
    let compression = [Compression::None, Compression::Pglz, Compression::Lz4, Compression::Zstd];
    let compression = compression[usize::from(input.byte() % 4)];
    let (hole_offset, hole_length) = (input.number(), input.number());
    let image = BlockImage { bytes: input.0, hole_offset, hole_length, compression, apply: true };
    let _ = image.restore(&mut [0; BLOCK_SIZE]);
}

/// What a record says, of any resource manager and major, whatever it has.
pub fn payload(input: &[u8]) {
    let mut input = Input(input);
    let version = input.version();
    let mut record = Record::blank();
    record.header.rmgr = RmgrId(input.byte());
    record.header.info = input.byte();
    let blocks = input.byte();
    for id in 0..blocks % 5 {
        let length = usize::from(input.byte());
        let page = PageId {
            locator: RelFileLocator { tablespace: 1663, database: 5, relation: 16384 },
            fork: ForkNumber::Main,
            block: id.into(),
        };
        let image = (blocks & 0x80 != 0).then_some(BlockImage {
            bytes: &[],
            hole_offset: 0,
            hole_length: 0,
            compression: Compression::None,
            apply: blocks & 0x40 != 0,
        });
        let data = input.take(length);
        record.blocks.push(BlockReference { id, page, will_init: false, image, data });
    }
    record.main_data = input.0;
    record.header.xid = TransactionId(7);
    let length = input.0.len() + record.blocks.iter().map(|block| block.data.len()).sum::<usize>();
    write(&record, version, length);
}

fn write(record: &Record<'_>, version: &Version, length: usize) {
    let mut text = Vec::new();
    for details in [false, true] {
        let _ = text::write(record, version, details, &mut Out::new(&mut text, &Utc));
    }
    assert!(text.len() <= TEXT_BESIDE + TEXT_FACTOR * length, "{} of {length}", text.len());
    assert_eq!(text.last(), Some(&b'\n'));
}

/// A file of the archive.
pub fn archive(input: &[u8]) {
    let files = Arc::new(LossyFiles::new());
    let size = SegmentSize::new(1 << 20).expect("1 MB is legal");
    let start = Lsn(9 << 20);
    let opened = Archive::open(files.clone(), Path::new("/archive"), common::SYSTEM, size);
    let archive = opened.expect("nothing fails in memory");
    let name = SegmentName::new(Timeline(1), size.segment_of(start), size);
    let path = archive.dir().join(format!("{name}.zst"));
    let file = files.open_append(&path).expect("nothing fails in memory");
    file.write_at(0, input).expect("nothing fails in memory");
    let mut reader = ArchiveReader::open(&archive, Timeline(1), start).expect("it is there");
    // Each chunk takes bytes of the file, or is the segment's last.
    for _ in 0..=input.len() + 2 {
        match reader.next(Lsn(u64::MAX)) {
            Ok(Some(chunk)) => assert!(chunk.wal.len() as u64 <= size.bytes()),
            Ok(None) | Err(_) => return,
        }
    }
    panic!("more chunks than bytes");
}

/// Messages of either side; the checksums before the payloads are made right.
pub fn wire(input: &[u8]) {
    let mut input = Input(input);
    let side = if input.byte() % 2 == 0 { Side::Leader } else { Side::Follower };
    let mut decoder = Decoder::new(side);
    let mut bytes = Vec::new();
    while !input.0.is_empty() {
        let kind = input.byte();
        if kind & 0x80 != 0 {
            bytes.extend_from_slice(input.take(usize::from(kind & 0x7F)));
            continue;
        }
        let length = usize::from(input.number()) % 5000;
        let payload = input.take(length);
        bytes.extend_from_slice(&message(kind, payload));
        if kind == 1 {
            decoder.accept_greeting();
        }
    }
    let mut rest = &bytes[..];
    while let Ok(Some(_)) = decoder.poll(&mut rest) {
        assert!(decoder.buffered() <= bytes.len());
    }
}

/// A message as it is sent, whatever it says.
fn message(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32 + 1).to_le_bytes().to_vec();
    bytes.push(kind);
    bytes.extend_from_slice(&crc32c::crc32c(payload).to_le_bytes());
    bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes
}
