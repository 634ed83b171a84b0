//! Record bodies: each shape decodes, each contradiction is named.

mod common;

use common::record_bytes;
use walfmt::cursor::CursorError;
use walfmt::image::Compression;
use walfmt::record::{RECORD_HEADER_SIZE, RecordHeader};
use walfmt::rmgr::RmgrId;
use walfmt::{
    DecodeError, ForkNumber, Lsn, RawRecord, Record, RelFileLocator, TransactionId, Version,
};

const HAS_IMAGE: u8 = 0x10;
const HAS_DATA: u8 = 0x20;
const WILL_INIT: u8 = 0x40;
const SAME_REL: u8 = 0x80;

const HAS_HOLE: u8 = 0x01;
const APPLY: u8 = 0x02;
const PGLZ: u8 = 0x04;
const LZ4: u8 = 0x08;
const ZSTD: u8 = 0x10;

fn version() -> &'static Version {
    Version::from_major(15).expect("15 is known")
}

fn raw(bytes: &[u8]) -> RawRecord<'_> {
    let (start, end) = (Lsn(0x100_0028), Lsn(0x100_0028 + bytes.len() as u64).align_up());
    RawRecord { start, end, header: RecordHeader::from_bytes(bytes), bytes }
}

fn record(parts: &[&[u8]]) -> Vec<u8> {
    record_bytes(Lsn(0x100), RmgrId::HEAP, 0x10, &parts.concat())
}

#[track_caller]
fn assert_refused(parts: &[&[u8]], expected: &DecodeError) {
    let bytes = record(parts);
    let error = Record::decode(&raw(&bytes), version()).expect_err("contradicts itself");
    assert_eq!(&error, expected);
}

/// The first four bytes of a block header.
fn block(id: u8, fork_flags: u8, data_length: u16) -> Vec<u8> {
    let [low, high] = data_length.to_le_bytes();
    vec![id, fork_flags, low, high]
}

fn image(length: u16, hole_offset: u16, flags: u8, hole_length: Option<u16>) -> Vec<u8> {
    let mut bytes = [length.to_le_bytes(), hole_offset.to_le_bytes()].concat();
    bytes.push(flags);
    bytes.extend(hole_length.into_iter().flat_map(u16::to_le_bytes));
    bytes
}

const RELATION: RelFileLocator = RelFileLocator { tablespace: 1663, database: 5, relation: 16_384 };

fn locator() -> Vec<u8> {
    [RELATION.tablespace, RELATION.database, RELATION.relation]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect()
}

fn number(block: u32) -> [u8; 4] {
    block.to_le_bytes()
}

#[test]
fn a_record_of_nothing() {
    let bytes = record(&[]);
    let record = Record::decode(&raw(&bytes), version()).expect("sound");
    assert_eq!((record.start, record.end), (Lsn(0x100_0028), Lsn(0x100_0040)));
    assert_eq!(record.header.prev, Lsn(0x100));
    assert_eq!(record.header.rmgr, RmgrId::HEAP);
    assert_eq!(record.header.opcode(), 0x10);
    assert_eq!(record.header.total_length as usize, RECORD_HEADER_SIZE);
    assert!(record.blocks.is_empty() && record.main_data.is_empty());
    assert_eq!((record.origin, record.toplevel_xid), (0, TransactionId::INVALID));
}

#[test]
fn short_and_long_main_data() {
    for length in [1_usize, 255, 256, 70_000] {
        let data = vec![7; length];
        let mut forms = vec![[&[254][..], &(length as u32).to_le_bytes(), &data].concat()];
        if let Ok(length) = u8::try_from(length) {
            forms.push([&[255, length][..], &data].concat());
        }
        for form in forms {
            let bytes = record(&[&form]);
            let record = Record::decode(&raw(&bytes), version()).expect("sound");
            assert_eq!(record.main_data, data);
        }
    }
}

#[test]
fn origin_and_toplevel_transaction() {
    let bytes = record(&[&[253, 0x34, 0x12], &[252, 9, 0, 0, 0], &[255, 2], b"ab"]);
    let record = Record::decode(&raw(&bytes), version()).expect("sound");
    assert_eq!(record.origin, 0x1234);
    assert_eq!(record.toplevel_xid, TransactionId(9));
    assert_eq!(record.main_data, b"ab");
}

#[test]
fn blocks_with_and_without_data_image_and_relation() {
    let page = vec![3; 8192 - 100];
    let bytes = record(&[
        &block(0, HAS_DATA, 4),
        &locator(),
        &number(11),
        &block(1, SAME_REL | WILL_INIT | 2, 0),
        &number(12),
        &block(5, SAME_REL | HAS_IMAGE | HAS_DATA, 3),
        &image(8192 - 100, 40, HAS_HOLE | APPLY, None),
        &number(13),
        &block(32, SAME_REL | HAS_IMAGE, 0),
        &image(5, 50, HAS_HOLE | PGLZ, Some(200)),
        &number(14),
        &[255, 2],
        b"data",
        &page,
        b"xyz",
        b"image",
        b"ab",
    ]);
    let record = Record::decode(&raw(&bytes), version()).expect("sound");
    assert_eq!(record.main_data, b"ab");
    let ids: Vec<_> = record.blocks.iter().map(|block| block.id).collect();
    assert_eq!(ids, [0, 1, 5, 32]);
    assert!(record.blocks.iter().all(|block| block.page.locator == RELATION));
    let numbers: Vec<_> = record.blocks.iter().map(|block| block.page.block).collect();
    assert_eq!(numbers, [11, 12, 13, 14]);
    assert!(record.block(2).is_none());

    let plain = record.block(0).expect("there");
    assert_eq!((plain.data, plain.will_init), (&b"data"[..], false));
    assert!(plain.image.is_none() && plain.image_to_apply().is_none());

    let visibility = record.block(1).expect("there");
    assert_eq!(visibility.page.fork, ForkNumber::from_number(2).expect("a fork"));
    assert!(visibility.will_init && visibility.data.is_empty());

    let with_both = record.block(5).expect("there");
    assert_eq!(with_both.data, b"xyz");
    let image = with_both.image_to_apply().expect("to apply");
    assert_eq!((image.hole_offset, image.hole_length), (40, 100));
    assert_eq!((image.compression, image.bytes), (Compression::None, &page[..]));

    let compared = record.block(32).expect("there");
    assert!(compared.image_to_apply().is_none());
    let image = compared.image.expect("for comparison");
    assert_eq!((image.compression, image.bytes), (Compression::Pglz, &b"image"[..]));
    assert_eq!((image.hole_offset, image.hole_length), (50, 200));
}

#[test]
fn a_block_may_name_another_relation_than_the_one_before() {
    let mut other = locator();
    other[8] ^= 1;
    let bytes = record(&[
        &block(0, 0, 0),
        &locator(),
        &number(1),
        &block(1, 0, 0),
        &other,
        &number(1),
        &block(2, SAME_REL, 0),
        &number(2),
    ]);
    let record = Record::decode(&raw(&bytes), version()).expect("sound");
    let relations: Vec<_> = record.blocks.iter().map(|b| b.page.locator.relation).collect();
    assert_eq!(relations, [16_384, 16_385, 16_385]);
}

#[test]
fn all_33_blocks() {
    let mut body = [block(0, 0, 0), locator(), number(0).to_vec()].concat();
    for id in 1..=32 {
        body.extend(block(id, SAME_REL | HAS_DATA, 1));
        body.extend(number(id.into()));
    }
    body.extend(1..=32);
    let bytes = record(&[&body]);
    let record = Record::decode(&raw(&bytes), version()).expect("sound");
    assert_eq!(record.blocks.len(), 33);
    assert!(record.blocks.iter().skip(1).all(|block| block.data == [block.id]));
}

#[test]
fn too_few_bytes_are_refused() {
    let short =
        |field, needed, left| DecodeError::Length(CursorError::Short { field, needed, left });
    assert_refused(&[&[255, 3], b"ab"], &short("main data", 3, 2));
    assert_refused(&[&[254, 1, 0]], &short("main data length", 4, 2));
    assert_refused(&[&[253, 1]], &short("origin", 2, 1));
    assert_refused(&[&[252, 1]], &short("toplevel_xid", 4, 1));
    assert_refused(&[&[0]], &short("fork_flags", 1, 0));
    assert_refused(&[&block(0, 0, 0), &locator()[..7]], &short("locator", 12, 7));
    assert_refused(&[&block(0, 0, 0), &locator(), &[1]], &short("block number", 4, 1));
    assert_refused(&[&block(0, HAS_IMAGE, 0), &[1]], &short("bimg_len", 2, 1));
    assert_refused(
        &[&block(0, HAS_DATA, 4), &locator(), &number(1), b"abc"],
        &short("block data", 4, 3),
    );
    assert_refused(
        &[
            &block(0, HAS_IMAGE, 0),
            &image(4, 40, HAS_HOLE | LZ4, Some(100)),
            &locator(),
            &number(1),
            b"abc",
        ],
        &short("block image", 4, 3),
    );
}

#[test]
fn too_many_bytes_are_refused() {
    let trailing = DecodeError::Length(CursorError::Trailing { field: "main data", left: 1 });
    assert_refused(&[&[255, 2], b"abc"], &trailing);
}

#[test]
fn unknown_and_disordered_block_ids_are_refused() {
    for id in [33, 200, 251] {
        assert_refused(&[&[id]], &DecodeError::BlockId(id));
    }
    for (first, second) in [(0, 0), (1, 0), (32, 31)] {
        assert_refused(
            &[&block(first, 0, 0), &locator(), &number(1), &block(second, SAME_REL, 0), &number(2)],
            &DecodeError::BlockId(second),
        );
    }
}

#[test]
fn unknown_forks_are_refused() {
    for fork in 0..16 {
        let parts = [&block(7, fork, 0)[..], &locator(), &number(1)];
        if fork < 4 {
            let bytes = record(&parts);
            assert!(Record::decode(&raw(&bytes), version()).is_ok());
        } else {
            assert_refused(&parts, &DecodeError::Fork { id: 7, fork });
        }
    }
}

#[test]
fn the_same_relation_as_none_is_refused() {
    assert_refused(&[&block(3, SAME_REL, 0), &number(1)], &DecodeError::NoRelationBefore(3));
}

#[test]
fn a_data_flag_without_data_and_data_without_flag_are_refused() {
    assert_refused(
        &[&block(0, HAS_DATA, 0), &locator(), &number(1)],
        &DecodeError::DataFlag { id: 0, length: 0 },
    );
    assert_refused(
        &[&block(0, 0, 2), &locator(), &number(1), b"ab"],
        &DecodeError::DataFlag { id: 0, length: 2 },
    );
}

#[test]
fn images_that_contradict_themselves_are_refused() {
    // length, hole offset, flags, hole length as stored, hole length as understood
    let wrong = [
        (8191, 0, 0, None, 1),                 // no hole, not compressed, not a page
        (8192, 8, 0, None, 0),                 // no hole, but an offset
        (8192, 8, HAS_HOLE, None, 0),          // a hole of nothing
        (8000, 0, HAS_HOLE, None, 192),        // a hole at 0
        (8000, 8001, HAS_HOLE, None, 192),     // a hole past the page's end
        (9000, 8, HAS_HOLE, None, 0xFCD8),     // longer than a page
        (8192, 0, LZ4, None, 0),               // compressed to no less than a page
        (100, 8, LZ4, None, 0),                // no hole, but an offset
        (100, 8, HAS_HOLE | ZSTD, Some(0), 0), // a hole of nothing
        (100, 0, HAS_HOLE | PGLZ, Some(9), 9), // a hole at 0
        (100, 8000, HAS_HOLE | PGLZ, Some(500), 500), // a hole past the page's end
        (100, 65_535, HAS_HOLE | PGLZ, Some(65_535), 65_535),
        (100, 0, PGLZ | LZ4, None, 0), // two compressions
        (100, 0, LZ4 | ZSTD, None, 0),
    ];
    for (length, hole_offset, flags, stored, hole_length) in wrong {
        let header = image(length, hole_offset, flags, stored);
        let bytes = vec![1; length.into()];
        assert_refused(
            &[&block(4, HAS_IMAGE, 0), &header, &locator(), &number(1), &bytes],
            &DecodeError::Image { id: 4, length, hole_offset, hole_length, flags },
        );
    }
    // Negative control: the closest that are right.
    let right = [
        (8192, 0, 0, None),
        (8191, 8, HAS_HOLE, None),
        (8000, 8000, HAS_HOLE, None),
        (8191, 0, LZ4, None),
        (100, 8000, HAS_HOLE | PGLZ, Some(192)),
    ];
    for (length, hole_offset, flags, stored) in right {
        let header = image(length, hole_offset, flags, stored);
        let body = vec![1; length.into()];
        let bytes = record(&[&block(4, HAS_IMAGE, 0), &header, &locator(), &number(1), &body]);
        Record::decode(&raw(&bytes), version()).expect("sound");
    }
}
