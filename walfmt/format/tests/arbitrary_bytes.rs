//! No bytes make a reader panic or run on.

mod common;

use common::{Wal, page_header, record_bytes};
use proptest::prelude::*;
use walfmt::backup_label::BackupLabel;
use walfmt::control::{CONTROL_FILE_SIZE, ControlFile};
use walfmt::history::TimelineHistory;
use walfmt::image::{BlockImage, Compression};
use walfmt::record::RecordHeader;
use walfmt::rmgr::logical_message::Message;
use walfmt::rmgr::xact::{End, Prepare, TWO_PHASE_MAGIC};
use walfmt::rmgr::{RmgrId, multixact};
use walfmt::{
    BLOCK_SIZE, Lsn, RawRecord, Record, RecordStream, SegmentSize, Step, StreamStart, Timeline,
    TransactionId, Version, replication_state, two_phase,
};

fn bytes(size: std::ops::Range<usize>) -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(any::<u8>(), size)
}

/// Polls until there is no more; each record takes bytes, so that there is an end to it.
fn poll_all(stream: &mut RecordStream, pushed: usize) {
    for _ in 0..=pushed / 8 {
        match stream.poll() {
            Step::Record(record) => {
                let version = Version::from_major(15).expect("15 is known");
                let _ = Record::decode(&record, version);
            }
            Step::NeedMore | Step::Stop(_) => return,
        }
    }
    panic!("more records than bytes");
}

proptest! {
    #[test]
    fn a_stream_takes_any_bytes(
        page in prop_oneof![0_u64..1 << 20, Just(u64::MAX >> 13), (0_u64..1 << 50)],
        known_end in any::<u64>(),
        pieces in prop::collection::vec(bytes(0..9_000), 1..5),
        with_header in any::<bool>(),
        flags in 0_u16..16,
        remaining_length in prop_oneof![0_usize..20_000, any::<u32>().prop_map(|n| n as usize)],
        length in prop_oneof![0_u32..20_000, any::<u32>()],
    ) {
        let start = Lsn(page * 8192);
        let segment_size = SegmentSize::DEFAULT;
        let mut stream =
            RecordStream::new(StreamStart { lsn: start, segment_size, system_identifier: None });
        stream.set_known_end(Lsn(known_end));
        let mut pushed = 0;
        if with_header {
            // Past the first checks, into the record.
            let header = page_header(start, segment_size, Timeline(1), flags, remaining_length);
            stream.push(&header);
            stream.push(&length.to_le_bytes());
            pushed += header.len() + 4;
        }
        for piece in pieces {
            stream.push(&piece);
            pushed += piece.len();
            poll_all(&mut stream, pushed);
        }
        stream.rewind();
        poll_all(&mut stream, 0);
        prop_assert_eq!(stream.pushed_end(), stream.record_end());
    }

    #[test]
    fn a_stream_takes_the_last_positions_there_are(
        totals in prop::collection::vec(24_usize..9_000, 1..6),
    ) {
        // Sound WAL up to where positions run out; then more bytes than there are positions.
        let mut wal = Wal::new(Lsn(u64::MAX - 8191 - 3 * 8192));
        for total in totals {
            if wal.end().0 < u64::MAX - 8191 - 9_000 {
                wal.filler(total.min(wal.page_left() + 5_000));
            }
        }
        let mut stream = wal.stream();
        for piece in [&wal.bytes[..], &[1; 40_000], &[0; 40_000]] {
            stream.push(piece);
            poll_all(&mut stream, 120_000);
        }
        stream.rewind();
        stream.push(&wal.bytes);
        poll_all(&mut stream, 120_000);
    }

    #[test]
    fn a_record_decodes_from_any_body(body in bytes(0..300), first in 0_u8..6, flags in any::<u8>()) {
        let version = Version::from_major(15).expect("15 is known");
        for body in [body.clone(), [&[first, flags][..], &body].concat()] {
            let record = record_bytes(Lsn(0), RmgrId::HEAP, 0, &body);
            for bytes in [&record[..], &body[..]] {
                let header = RecordHeader::from_bytes(bytes);
                let raw = RawRecord { start: Lsn(8), end: Lsn(800), header, bytes };
                let Ok(record) = Record::decode(&raw, version) else { continue };
                let mut page = [0; BLOCK_SIZE];
                for image in record.blocks.iter().filter_map(|block| block.image) {
                    let _ = image.restore(&mut page);
                }
            }
        }
    }

    #[test]
    fn an_image_restores_from_any_bytes(
        bytes in bytes(0..9_000),
        hole_offset in any::<u16>(),
        hole_length in any::<u16>(),
        small in any::<bool>(),
    ) {
        let limit = if small { 8192 } else { u16::MAX };
        let (hole_offset, hole_length) = (hole_offset % limit, hole_length % limit);
        let mut page = [0; BLOCK_SIZE];
        for compression in
            [Compression::None, Compression::Pglz, Compression::Lz4, Compression::Zstd]
        {
            let image =
                BlockImage { bytes: &bytes, hole_offset, hole_length, compression, apply: true };
            let _ = image.restore(&mut page);
        }
    }

    #[test]
    fn a_spoiled_compressed_image_does_not_panic(
        compression in prop::sample::select(vec![Compression::Lz4, Compression::Zstd]),
        spoils in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let plain: Vec<u8> = (0..BLOCK_SIZE).map(|at| (at % 251 * (at / 700)) as u8).collect();
        let mut packed = match compression {
            Compression::Lz4 => lz4_flex::block::compress(&plain),
            _ => zstd::bulk::compress(&plain, 1).expect("compresses"),
        };
        for (place, byte) in spoils {
            let at = place.index(packed.len());
            packed[at] = byte;
        }
        let image = BlockImage {
            bytes: &packed,
            hole_offset: 0,
            hole_length: 0,
            compression,
            apply: true,
        };
        let _ = image.restore(&mut [0; BLOCK_SIZE]);
    }

    #[test]
    fn a_control_file_reads_from_any_bytes(bytes in bytes(0..400), whole in any::<bool>()) {
        let mut bytes = bytes;
        if whole {
            bytes.resize(CONTROL_FILE_SIZE, 0);
            // Past the first checks: a known version and a right CRC.
            bytes[8..12].copy_from_slice(&1300_u32.to_le_bytes());
            bytes[12..16].copy_from_slice(&202_209_061_u32.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[..288]);
            bytes[288..292].copy_from_slice(&crc.to_le_bytes());
        }
        let _ = ControlFile::from_bytes(&bytes);
    }

    #[test]
    fn what_is_kept_about_transactions_reads_from_any_bytes(
        bytes in bytes(0..300),
        counts in prop::collection::vec(0_u8..4, 6),
        whole in any::<bool>(),
        info in any::<u8>(),
    ) {
        let version = Version::from_major(15).expect("15 is known");
        let mut bytes = bytes;
        if whole && bytes.len() >= 72 {
            // Past the first checks: magic, length, and counts that may fit.
            let length = bytes.len() as u32 + 4;
            bytes[..4].copy_from_slice(&TWO_PHASE_MAGIC.to_le_bytes());
            bytes[4..8].copy_from_slice(&length.to_le_bytes());
            bytes[28..52].fill(0);
            for (at, count) in counts.iter().enumerate() {
                bytes[28 + 4 * at] = *count;
            }
            bytes[55] = 0;
        }
        if let Ok(prepare) = Prepare::read(&bytes, version) {
            let lists = prepare.dropped_by_commit().count() + prepare.dropped_by_abort().count();
            prop_assert!(lists + prepare.subxacts().count() <= bytes.len());
        }
        if let Ok(end) = End::read(&bytes, info, version) {
            prop_assert!(end.subxacts().count() + end.dropped_relations().count() <= bytes.len());
        }
        if let Ok(create) = multixact::Create::read(&bytes) {
            prop_assert!(create.members().all(|member| member.status <= 5));
        }
        let _ = Message::read(&bytes);
        let _ = two_phase::read_file(&two_phase::to_file(&bytes), TransactionId(3), version);
        let _ = two_phase::read_file(&bytes, TransactionId(3), version);
        let _ = replication_state::read_file(&bytes);
    }

    #[test]
    fn texts_parse_from_any_characters(text in any::<String>(), line in "[0-9A-F/ \t:()a-z\n#]{0,60}") {
        let label = format!(
            "START WAL LOCATION: {line} (file {line})\nCHECKPOINT LOCATION: {text}\n{line}"
        );
        for text in [&text, &line, &label] {
            let _ = BackupLabel::parse(text);
            let _ = TimelineHistory::parse(Timeline(7), text);
        }
    }
}
