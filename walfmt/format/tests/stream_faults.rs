//! What does not check out is noticed, and told apart: end, torn, corrupt.

mod common;

use common::{
    BKP_REMOVABLE, FIRST_IS_CONTRECORD, FIRST_IS_OVERWRITE_CONTRECORD, LONG_HEADER, Outcome, PAGE,
    SYSTEM, Wal, page_header, record_bytes,
};
use proptest::prelude::*;
use walfmt::record::{RECORD_HEADER_SIZE, RECORD_SIZE_MAX, record_crc};
use walfmt::rmgr::RmgrId;
use walfmt::{Fault, Lsn, SegmentSize, Stop, StopKind, Timeline};

/// Reads `wal` whole, by the byte, and in pieces of odd lengths; gives what all three agree on.
#[track_caller]
fn read(wal: &Wal) -> Outcome {
    read_known_to(wal, Lsn::INVALID)
}

#[track_caller]
fn read_known_to(wal: &Wal, known_end: Lsn) -> Outcome {
    let whole = wal.read_known_to(known_end);
    for cuts in [&[1][..], &[3, 4093, 1, 24]] {
        let mut stream = wal.stream();
        stream.set_known_end(known_end);
        assert_eq!(Outcome::of(&mut stream, &wal.bytes, cuts), whole, "cuts {cuts:?}");
    }
    whole
}

/// The stream gives all records before `at` and stops there; and calls it corrupt as soon as WAL
/// is known to exist up to `corrupt_from`, not before.
#[track_caller]
fn assert_stops(wal: &Wal, kind: StopKind, at: Lsn, fault: &Fault, corrupt_from: Lsn) {
    let sound: Vec<_> = wal.records.iter().filter(|r| r.end <= at).cloned().collect();
    for (known_end, kind) in [
        (Lsn::INVALID, kind),
        (Lsn(corrupt_from.0 - 1), kind),
        (corrupt_from, StopKind::Corrupt),
        (at.advance(1 << 20), StopKind::Corrupt),
    ] {
        let outcome = read_known_to(wal, known_end);
        let expected = Stop { kind, at, fault: fault.clone() };
        assert_eq!(outcome.stop, Some(expected), "known end {known_end}");
        assert_eq!(outcome.records, sound);
    }
}

/// Corrupt, whatever is known.
#[track_caller]
fn assert_corrupt(wal: &Wal, at: Lsn, fault: &Fault) {
    let expected = Stop { kind: StopKind::Corrupt, at, fault: fault.clone() };
    assert_eq!(read(wal).stop, Some(expected));
}

/// Two records in the middle of a page.
fn two_records() -> Wal {
    let mut wal = Wal::before_segment_end(3);
    wal.filler(100);
    wal.filler(200);
    wal
}

/// A record, and one that goes on on the next page, whose start is given.
fn a_record_across_a_border() -> (Wal, Lsn) {
    let mut wal = Wal::before_segment_end(3);
    wal.fill_page_but(400);
    wal.filler(1000);
    let page = wal.start.advance(PAGE);
    (wal, page)
}

/// Puts the right CRC into a record's header, so that only what was changed before is wrong.
fn reseal(record: &mut [u8]) {
    let crc = record_crc(record);
    record[20..24].copy_from_slice(&crc.to_le_bytes());
}

#[test]
fn zero_length_is_the_end() {
    let mut wal = two_records();
    let at = wal.end();
    wal.zero_pages(1);
    assert_stops(&wal, StopKind::End, at, &Fault::ZeroLength, at.advance(4));
}

#[test]
fn a_zero_page_is_the_end_between_records() {
    let mut wal = two_records();
    let page = wal.fill_page_but(0).end;
    wal.zero_pages(1);
    // WAL that ends with a page's header has nothing on that page.
    let corrupt_from = page.advance(24 + 1);
    assert_stops(&wal, StopKind::End, page, &Fault::ZeroPage { page }, corrupt_from);
}

#[test]
fn a_zero_page_is_the_end_where_the_stream_begins() {
    let mut wal = Wal::before_segment_end(3);
    wal.zero_pages(1);
    let page = wal.start;
    assert_stops(&wal, StopKind::End, page, &Fault::ZeroPage { page }, page.advance(25));
}

#[test]
fn a_zero_page_inside_a_record_is_torn() {
    let (mut wal, page) = a_record_across_a_border();
    wal.bytes.truncate(PAGE as usize);
    wal.zero_pages(1);
    let at = wal.records[1].start;
    assert_stops(&wal, StopKind::Torn, at, &Fault::ZeroPage { page }, page.advance(25));
}

#[test]
fn a_recycled_page_is_the_end_between_records() {
    let mut wal = two_records();
    let page = wal.fill_page_but(0).end;
    wal.stale_pages(5, 1);
    let found = Lsn(page.0 - (5 << 20));
    let fault = Fault::StalePage { page, found };
    assert_stops(&wal, StopKind::End, page, &fault, page.advance(25));
}

#[test]
fn a_recycled_page_inside_a_record_is_torn() {
    let (mut wal, page) = a_record_across_a_border();
    wal.bytes.truncate(PAGE as usize);
    wal.stale_pages(5, 1);
    let fault = Fault::StalePage { page, found: Lsn(page.0 - (5 << 20)) };
    assert_stops(&wal, StopKind::Torn, wal.records[1].start, &fault, page.advance(25));
}

#[test]
fn a_recycled_segment_is_the_end_at_its_first_page() {
    let mut wal = Wal::before_segment_end(1);
    let page = wal.fill_page_but(0).end;
    wal.stale_pages(2, 1);
    let fault = Fault::StalePage { page, found: Lsn(page.0 - (2 << 20)) };
    assert_stops(&wal, StopKind::End, page, &fault, page.advance(41));
}

#[test]
fn a_page_of_an_earlier_timeline_at_the_right_address_is_the_end() {
    // After a promotion, later segments of the old timeline are recycled for the new one; some
    // for the very place they came from.
    let mut wal = Wal::before_segment_end(3);
    wal.timeline = Timeline(2);
    let page = wal.fill_page_but(0).end;
    wal.timeline = Timeline(1);
    wal.filler(100);
    let fault = Fault::Timeline { page, before: Timeline(2), found: Timeline(1) };
    assert_stops(&wal, StopKind::End, page, &fault, page.advance(25));
}

#[test]
fn an_unwritten_page_inside_the_partial_first_record_is_torn() {
    let mut whole = Wal::before_segment_end(6);
    whole.filler(30_000);
    let mut wal = whole.clone();
    wal.start = whole.start.advance(PAGE);
    wal.records.clear();
    wal.bytes = whole.bytes[PAGE as usize..2 * PAGE as usize].to_vec();
    wal.zero_pages(1);
    let page = wal.start.advance(PAGE);
    assert_stops(&wal, StopKind::Torn, page, &Fault::ZeroPage { page }, page.advance(25));
}

#[test]
fn a_partial_first_record_must_go_on_as_announced() {
    let mut whole = Wal::before_segment_end(6);
    whole.filler(30_000);
    let mut wal = whole.clone();
    wal.start = whole.start.advance(PAGE);
    wal.records.clear();
    wal.bytes = whole.bytes[PAGE as usize..].to_vec();
    let page = wal.start.advance(PAGE);
    let expected = 30_000 - 2 * (PAGE - 24);
    assert_eq!(read(&wal).stop, None); // as it was written
    *wal.byte_at(page.advance(16)) ^= 1;
    let fault = Fault::Continuation { page, expected, found: expected as u32 ^ 1 };
    assert_stops(&wal, StopKind::Torn, page, &fault, page.advance(25));
}

#[test]
fn a_wrong_previous_link_is_torn() {
    let mut wal = two_records();
    let (expected, found) = (wal.records[1].start, wal.records[0].start);
    wal.prev = found;
    let bad = wal.filler(100);
    let fault = Fault::Prev { expected, found };
    assert_stops(&wal, StopKind::Torn, bad.start, &fault, bad.start.advance(24));
}

#[test]
fn the_first_record_must_point_back() {
    let mut wal = Wal::before_segment_end(3);
    let found = wal.start.advance(24);
    wal.prev = found;
    let bad = wal.filler(100);
    let fault = Fault::PrevNotBefore { found };
    assert_stops(&wal, StopKind::Torn, bad.start, &fault, bad.start.advance(24));
}

#[test]
fn a_wrong_crc_is_torn() {
    let mut wal = two_records();
    let bad = wal.filler(100);
    *wal.byte_at(bad.start.advance(60)) ^= 0x40;
    wal.filler(100);
    let outcome = read(&wal);
    let stop = outcome.stop.expect("noticed");
    assert!(matches!(stop.fault, Fault::Crc { .. }), "{stop}");
    assert_stops(&wal, StopKind::Torn, bad.start, &stop.fault, bad.end);
}

#[test]
fn a_wrong_crc_across_pages_is_torn() {
    let mut wal = two_records();
    let bad = wal.filler(30_000);
    *wal.byte_at(Lsn(bad.end.0 - 8)) ^= 0x40;
    let stop = read(&wal).stop.expect("noticed");
    assert!(matches!(stop.fault, Fault::Crc { .. }), "{stop}");
    assert_stops(&wal, StopKind::Torn, bad.start, &stop.fault, bad.end);
}

#[test]
fn an_impossible_resource_manager_is_torn() {
    for (rmgr, possible) in [(0, true), (21, true), (22, false), (127, false), (128, true)] {
        let mut wal = two_records();
        let written = wal.record(RmgrId(rmgr), 0x10, &[7; 40]);
        if possible {
            assert_eq!(read(&wal).records, wal.records);
            continue;
        }
        let fault = Fault::Rmgr { found: rmgr };
        assert_stops(&wal, StopKind::Torn, written.start, &fault, written.start.advance(24));
    }
}

#[test]
fn an_impossible_length_is_torn_and_nothing_is_waited_for() {
    for found in [1, 23, RECORD_SIZE_MAX as u32 + 1, u32::MAX] {
        let mut wal = two_records();
        let at = wal.filler(100).start;
        wal.overwrite(at, &found.to_le_bytes());
        let fault = Fault::Length { found };
        assert_stops(&wal, StopKind::Torn, at, &fault, at.advance(4));
    }
}

#[test]
fn a_garbage_length_is_not_believed_before_the_header_is_sound() {
    // A gigabyte would have to be waited for, were the link not looked at first.
    let mut wal = two_records();
    let expected = wal.prev;
    let at = wal.filler(100).start;
    wal.overwrite(at, &(RECORD_SIZE_MAX as u32).to_le_bytes());
    wal.overwrite(at.advance(8), &[0; 8]);
    let fault = Fault::Prev { expected, found: Lsn(0) };
    assert_stops(&wal, StopKind::Torn, at, &fault, at.advance(24));
}

#[test]
fn a_header_across_the_border_is_checked_on_the_second_page() {
    for left in [8, 16] {
        let mut wal = Wal::before_segment_end(3);
        let first = wal.fill_page_but(left);
        wal.prev = Lsn(0x42);
        let bad = wal.filler(100);
        let fault = Fault::Prev { expected: first.start, found: Lsn(0x42) };
        assert_stops(&wal, StopKind::Torn, bad.start, &fault, bad.end);
    }
}

#[test]
fn a_record_must_go_on_as_announced() {
    let (sound, page) = a_record_across_a_border();
    let at = sound.records[1].start;
    // Another length; no record goes on here; it goes on with nothing.
    for (flags, found) in [(FIRST_IS_CONTRECORD, 601), (0, 0), (FIRST_IS_CONTRECORD, 0)] {
        let mut wal = sound.clone();
        let header = page_header(page, wal.segment_size, wal.timeline, flags, found as usize);
        wal.overwrite(page, &header);
        let fault = Fault::Continuation { page, expected: 600, found };
        assert_stops(&wal, StopKind::Torn, at, &fault, page.advance(25));
    }
    // Negative control.
    let mut wal = sound;
    let header = page_header(page, wal.segment_size, wal.timeline, FIRST_IS_CONTRECORD, 600);
    wal.overwrite(page, &header);
    assert_eq!(read(&wal).records, wal.records);
}

#[test]
fn a_page_must_not_go_on_with_a_record_that_is_whole() {
    let mut wal = two_records();
    let page = wal.fill_page_but(0).end;
    let flags = FIRST_IS_CONTRECORD;
    wal.bytes.extend(page_header(page, wal.segment_size, wal.timeline, flags, 100));
    wal.zero_pages(1);
    let fault = Fault::Continuation { page, expected: 0, found: 100 };
    assert_stops(&wal, StopKind::Torn, page, &fault, page.advance(25));
}

#[test]
fn a_record_that_reaches_beyond_the_known_end_may_be_unfinished() {
    // Flush positions and segment starts lie inside records.
    let (mut wal, page) = a_record_across_a_border();
    let at = wal.records[1].start;
    wal.bytes.truncate(PAGE as usize);
    wal.zero_pages(1);
    for known_end in [at.advance(8), page, page.advance(24)] {
        let stop = read_known_to(&wal, known_end).stop.expect("unfinished");
        assert_eq!((stop.kind, stop.at), (StopKind::Torn, at), "known end {known_end}");
    }
}

#[test]
fn a_stop_stands_until_rewound() {
    let mut wal = two_records();
    let at = wal.end();
    wal.zero_pages(1);
    let mut stream = wal.stream();
    let outcome = Outcome::of(&mut stream, &wal.bytes, &[usize::MAX]);
    assert_eq!(outcome.stop.map(|stop| stop.kind), Some(StopKind::End));
    stream.set_known_end(at.advance(100));
    let again = Outcome::of(&mut stream, &[1; 100], &[usize::MAX]);
    assert_eq!(again.stop.map(|stop| stop.kind), Some(StopKind::End));
    stream.rewind();
    assert_eq!(stream.pushed_end(), at);
    let anew = Outcome::of(&mut stream, &[0; 100], &[usize::MAX]);
    assert_eq!(anew.stop.map(|stop| (stop.kind, stop.at)), Some((StopKind::Corrupt, at)));
}

#[test]
fn what_follows_a_given_up_record_must_be_its_witness() {
    for (pages, wrong) in [(0, true), (2, true), (0, false)] {
        let mut wal = two_records();
        let overwritten = wal.abandon(pages);
        let page = Lsn(overwritten.0 - overwritten.0 % PAGE).advance((pages as u64 + 1) * PAGE);
        let other = if wrong { overwritten.advance(8) } else { overwritten };
        let witness = wal.overwrite_contrecord(other);
        if wrong {
            assert_corrupt(&wal, witness.start, &Fault::Overwrite { page, overwritten });
        } else {
            assert_eq!(read(&wal).records, wal.records);
        }
    }
    let mut wal = two_records();
    let overwritten = wal.abandon(0);
    let at = wal.filler(100).start;
    let page = Lsn(at.0 - at.0 % PAGE);
    assert_corrupt(&wal, at, &Fault::Overwrite { page, overwritten });
}

#[test]
fn a_witness_that_was_not_written_yet_is_waited_for() {
    let mut wal = two_records();
    wal.abandon(0);
    let at = wal.end();
    wal.zero_pages(1);
    assert_stops(&wal, StopKind::End, at, &Fault::ZeroLength, at.advance(4));
}

#[test]
fn a_segment_switch_counts_only_with_its_fill() {
    let mut wal = two_records();
    let switch = wal.switch();
    wal.filler(100);
    for at in [switch.start.advance(24), switch.start.advance(PAGE), Lsn(switch.end.0 - 1)] {
        let mut wal = wal.clone();
        *wal.byte_at(at) = 1;
        let outcome = read(&wal);
        let stop = Stop { kind: StopKind::Torn, at: switch.start, fault: Fault::SwitchFill };
        assert_eq!(outcome.stop, Some(stop));
        assert_eq!(outcome.records, wal.records[..2]);
        // Known only into the fill: still not there.
        let outcome = read_known_to(&wal, Lsn(switch.end.0 - 8));
        assert_eq!(outcome.stop.map(|stop| stop.kind), Some(StopKind::Torn));
        // The server went on to the next segment: it will not come back.
        let outcome = read_known_to(&wal, switch.end);
        assert_eq!((outcome.records, outcome.stop), (wal.records.clone(), None));
    }
}

#[test]
fn a_segment_of_another_cluster_is_corrupt() {
    let mut wal = Wal::before_segment_end(1);
    let page = wal.fill_page_but(0).end;
    wal.filler(100);
    let size = wal.segment_size.bytes();
    let with = |at: u64, bytes: &[u8]| {
        let mut wal = wal.clone();
        wal.overwrite(page.advance(at), bytes);
        wal
    };
    let system = with(24, &99_u64.to_le_bytes());
    assert_corrupt(&system, page, &Fault::SystemIdentifier { page, expected: SYSTEM, found: 99 });
    let segments = with(32, &(16_u32 << 20).to_le_bytes());
    assert_corrupt(&segments, page, &Fault::SegmentSize { page, expected: size, found: 16 << 20 });
    let pages = with(36, &16_384_u32.to_le_bytes());
    assert_corrupt(&pages, page, &Fault::PageSize { page, found: 16_384 });
    // Negative control.
    assert_eq!(read(&with(24, &SYSTEM.to_le_bytes())).records, wal.records);
}

#[test]
fn the_first_system_identifier_is_kept_if_none_was_given() {
    let mut wal = Wal::with_segments(Lsn(9 << 20), SegmentSize::new(1 << 20).expect("legal"));
    wal.filler(100);
    wal.switch();
    wal.filler(100);
    wal.overwrite(Lsn((10 << 20) + 24), &99_u64.to_le_bytes());
    let mut stream = walfmt::RecordStream::new(walfmt::StreamStart {
        lsn: wal.start,
        segment_size: wal.segment_size,
        system_identifier: None,
    });
    let outcome = Outcome::of(&mut stream, &wal.bytes, &[usize::MAX]);
    let page = Lsn(10 << 20);
    assert_eq!(outcome.records.len(), 2);
    assert_eq!(
        outcome.stop.map(|stop| stop.fault),
        Some(Fault::SystemIdentifier { page, expected: SYSTEM, found: 99 })
    );
}

#[test]
fn a_page_that_no_server_writes_is_corrupt() {
    let mut wal = Wal::before_segment_end(3);
    let page = wal.fill_page_but(0).end;
    wal.filler(100);
    let with = |at: u64, bytes: &[u8]| {
        let mut wal = wal.clone();
        wal.overwrite(page.advance(at), bytes);
        wal
    };
    let magic = with(0, &0xD0FF_u16.to_le_bytes());
    assert_corrupt(&magic, page, &Fault::UnknownMagic { page, found: 0xD0FF });
    let flags = with(2, &0x0010_u16.to_le_bytes());
    assert_corrupt(&flags, page, &Fault::PageFlags { page, found: 0x0010 });
    let long = with(2, &LONG_HEADER.to_le_bytes());
    assert_corrupt(&long, page, &Fault::HeaderSize { page });
    // Flags that say nothing about how to read on.
    let harmless = with(2, &(BKP_REMOVABLE | FIRST_IS_OVERWRITE_CONTRECORD).to_le_bytes());
    assert_eq!(read(&harmless).records, wal.records);

    let mut wal = Wal::before_segment_end(1);
    let page = wal.fill_page_but(0).end;
    wal.filler(100);
    wal.overwrite(page.advance(2), &0_u16.to_le_bytes());
    assert_corrupt(&wal, page, &Fault::HeaderSize { page });
}

#[test]
fn every_flipped_bit_of_every_record_is_noticed() {
    let mut wal = Wal::before_segment_end(2);
    wal.filler(24);
    wal.filler(61);
    wal.record(RmgrId::XLOG, 0x20, &[]);
    wal.fill_page_but(16);
    wal.filler(120); // its header lies across the page's border
    wal.fill_page_but(40);
    wal.filler(300); // goes on in the next segment
    let spoiled = wal.records.clone();
    // WAL that goes on: a flipped length must not reach beyond what is known.
    wal.filler(20_000);
    let known_end = wal.end();
    let control = wal.read_known_to(known_end);
    assert_eq!((control.records, control.stop), (wal.records.clone(), None));

    let mut flips = 0;
    for (index, record) in spoiled.iter().enumerate() {
        let mut at = record.start;
        for _ in 0..record.bytes.len() {
            if at.0 % PAGE == 0 {
                at = at.advance(if wal.segment_size.offset_of(at) == 0 { 40 } else { 24 });
            }
            // Long fillers between the records of interest: some bytes of each will do.
            let every_bit = record.bytes.len() < 1000 || at.0 % 64 < 2;
            for bit in (0..8).filter(|_| every_bit) {
                *wal.byte_at(at) ^= 1 << bit;
                let outcome = wal.read_known_to(known_end);
                let stop = outcome.stop.unwrap_or_else(|| panic!("bit {bit} at {at}: unnoticed"));
                assert_eq!((stop.kind, stop.at), (StopKind::Corrupt, record.start), "{stop}");
                assert_eq!(outcome.records, spoiled[..index], "bit {bit} at {at}");
                *wal.byte_at(at) ^= 1 << bit;
                flips += 1;
            }
            at = at.advance(1);
        }
    }
    println!("{flips} flipped bits, all noticed");
    assert!(flips > 4000, "only {flips}");
}

#[test]
fn a_record_from_this_place_of_an_earlier_life_is_not_taken() {
    // A page whose start was rewritten while its tail still holds a sound record of old: only
    // the link betrays it.
    let mut wal = two_records();
    let at = wal.end();
    let old = record_bytes(Lsn(at.0 - 5000), RmgrId::HEAP, 0x20, &[9; 76]);
    let expected = wal.prev;
    wal.raw_record(&old);
    let fault = Fault::Prev { expected, found: Lsn(at.0 - 5000) };
    assert_stops(&wal, StopKind::Torn, at, &fault, at.advance(24));
}

#[test]
fn resealing_makes_a_changed_record_sound() {
    // Negative control of this file's method: what is noticed is the change, not the builder.
    let mut wal = two_records();
    let mut bytes = record_bytes(wal.prev, RmgrId::HEAP, 0x20, &[9; 76]);
    bytes[RECORD_HEADER_SIZE] ^= 1;
    let mut sealed = bytes.clone();
    reseal(&mut sealed);
    let mut spoiled = wal.clone();
    spoiled.raw_record(&bytes);
    wal.raw_record(&sealed);
    assert_eq!(read(&spoiled).records.len(), 2);
    assert_eq!(read(&wal).records.len(), 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whatever was spoiled, the answer depends on the bytes alone, not on how they came.
    #[test]
    fn spoiled_wal_reads_the_same_in_any_cut(
        totals in prop::collection::vec(24_usize..6_000, 1..12),
        pages in 0_u64..4,
        spoils in prop::collection::vec((any::<prop::sample::Index>(), 1_u8..), 1..4),
        headers_only in any::<bool>(),
        cuts in prop::collection::vec(1_usize..9_000, 1..20),
        known in any::<prop::sample::Index>(),
    ) {
        let mut wal = Wal::before_segment_end(pages);
        totals.iter().for_each(|&total| drop(wal.filler(total)));
        let overwritten = wal.abandon(1);
        wal.overwrite_contrecord(overwritten);
        for (place, mask) in spoils {
            let mut at = place.index(wal.bytes.len());
            if headers_only {
                at = at - at % PAGE as usize + at % 24;
                at = at.min(wal.bytes.len() - 1);
            }
            wal.bytes[at] ^= mask;
        }
        let known_end = wal.start.advance(known.index(wal.bytes.len() + 1) as u64);
        let whole = wal.read_known_to(known_end);
        for cuts in [&cuts[..], &[1]] {
            let mut stream = wal.stream();
            stream.set_known_end(known_end);
            prop_assert_eq!(&Outcome::of(&mut stream, &wal.bytes, cuts), &whole);
        }
    }
}
