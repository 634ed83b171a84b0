//! Records out of WAL, on one core: framing and CRC, then the body, then its text.
//!
//! ```sh
//! cargo bench -p walfmt                                # records as pgbench writes them, made here
//! WALFERRY_BENCH_WAL=SEGMENT cargo bench -p walfmt     # those of a segment
//! ```

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;

use common::Wal;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use walfmt::rmgr::RmgrId;
use walfmt::text::{self, Out, Utc};
use walfmt::version::VERSIONS;
use walfmt::{Lsn, Record, RecordStream, SegmentSize, Step, StreamStart, Version};

/// Pushed at once, as a reader of files does.
const PIECE: usize = 256 << 10;

struct Material {
    bytes: Vec<u8>,
    start: Lsn,
    segment_size: SegmentSize,
    version: &'static Version,
}

impl Material {
    fn find() -> Self {
        match std::env::var("WALFERRY_BENCH_WAL") {
            Ok(path) => Self::read(&path),
            Err(_) => Self::made(),
        }
    }

    fn read(path: &str) -> Self {
        let bytes = std::fs::read(path).expect("a segment");
        let magic = walfmt::bytes::u16_at(&bytes, 0);
        let version = Version::from_page_magic(magic).expect("WAL of a known major");
        let start = Lsn(walfmt::bytes::u64_at(&bytes, 8));
        let segment_size = SegmentSize::new(walfmt::bytes::u32_at(&bytes, 32)).expect("a size");
        Self { bytes, start, segment_size, version }
    }

    /// 16 MB: HOT updates, inserts and commits, in pgbench's proportions.
    fn made() -> Self {
        let mut wal = Wal::with_segments(Lsn(1 << 30), SegmentSize::DEFAULT);
        let block = |data: &[u8], main: &[u8]| -> Vec<u8> {
            let length = (data.len() as u16).to_le_bytes();
            let locator = [127, 6, 0, 0, 5, 0, 0, 0, 0, 64, 0, 0];
            let head = [&[0, 0x20][..], &length, &locator, &[9, 0, 0, 0]].concat();
            [&head[..], &[255, main.len() as u8], data, main].concat()
        };
        let update = block(&[7; 24], &[1, 0, 0, 0, 3, 0, 0x10, 0x60, 0, 0, 0, 0, 5, 0]);
        let insert = block(&[3; 35], &[5, 0, 0]);
        let commit = [&[255, 8][..], &[1; 8]].concat();
        while wal.bytes.len() < 16 << 20 {
            for _ in 0..3 {
                wal.record(RmgrId::HEAP, 0x40, &update);
            }
            wal.record(RmgrId::HEAP, 0x00, &insert);
            wal.record(RmgrId::XACT, 0x00, &commit);
        }
        let Wal { bytes, start, segment_size, .. } = wal;
        Self { bytes, start, segment_size, version: &VERSIONS[0] }
    }

    /// Reads all; gives how many records there were.
    fn each(&self, mut see: impl FnMut(&walfmt::RawRecord<'_>)) -> usize {
        let (lsn, segment_size) = (self.start, self.segment_size);
        let mut stream =
            RecordStream::new(StreamStart { lsn, segment_size, system_identifier: None });
        let mut count = 0;
        for piece in self.bytes.chunks(PIECE) {
            stream.push(piece);
            while let Step::Record(raw) = stream.poll() {
                see(&raw);
                count += 1;
            }
        }
        count
    }
}

fn records(criterion: &mut Criterion) {
    let material = Material::find();
    let count = material.each(|_| ());
    println!("{count} records in {} MB", material.bytes.len() >> 20);
    let mut group = criterion.benchmark_group("records");
    group.throughput(Throughput::Bytes(material.bytes.len() as u64));
    group.bench_function("stream", |bench| {
        bench.iter(|| {
            material.each(|raw| {
                black_box(raw.header);
            })
        });
    });
    group.bench_function("stream and decode", |bench| {
        bench.iter(|| {
            let mut blocks = 0;
            material.each(|raw| {
                let decoded = Record::decode(raw, material.version);
                blocks += decoded.map_or(0, |decoded| decoded.blocks.len());
            });
            black_box(blocks);
        });
    });
    group.bench_function("stream, decode and text", |bench| {
        let mut bytes = Vec::new();
        bench.iter(|| {
            material.each(|raw| {
                if let Ok(record) = Record::decode(raw, material.version) {
                    let mut out = Out::new(&mut bytes, &Utc);
                    let _ = text::write(&record, material.version, false, &mut out);
                }
                if bytes.len() > 1 << 20 {
                    bytes.clear();
                }
            })
        });
    });
    group.finish();
}

criterion_group!(benches, records);
criterion_main!(benches);
