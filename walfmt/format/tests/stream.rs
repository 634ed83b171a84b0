//! Sound WAL gives exactly the records that were written, however it is cut.

mod common;

use common::{Outcome, PAGE, Wal, Written};
use proptest::prelude::*;
use walfmt::record::RECORD_HEADER_SIZE;
use walfmt::rmgr::{RmgrId, xlog};
use walfmt::wal_page::{LONG_HEADER_SIZE, SHORT_HEADER_SIZE, WAL_PAGE_SIZE, header_size};
use walfmt::{Lsn, SegmentSize, Step, Timeline};

/// Reads `wal` whole, by the byte, and in pieces of odd lengths; gives what all three agree on.
fn read_in_any_cut(wal: &Wal) -> Outcome {
    let whole = wal.read();
    for cuts in [&[1][..], &[3, 4093, 1, 24], &[WAL_PAGE_SIZE]] {
        assert_eq!(Outcome::of(&mut wal.stream(), &wal.bytes, cuts), whole, "cuts {cuts:?}");
        let of_buffers = Outcome::of_buffers(&mut wal.stream(), &wal.bytes, cuts);
        assert_eq!(of_buffers, whole, "buffers, cuts {cuts:?}");
    }
    whole
}

/// All records come, and then the stream asks for more.
#[track_caller]
fn assert_reads_back(wal: &Wal) {
    let outcome = read_in_any_cut(wal);
    assert_eq!(outcome.stop, None);
    assert_eq!(starts_and_ends(&outcome.records), starts_and_ends(&wal.records));
    assert_eq!(outcome.records, wal.records);
}

/// For messages that can be read.
fn starts_and_ends(records: &[Written]) -> Vec<(Lsn, Lsn)> {
    records.iter().map(|record| (record.start, record.end)).collect()
}

#[derive(Clone, Debug)]
enum Entry {
    Record(usize),
    FillPageBut(usize),
    Switch,
    Abandon(usize),
}

fn entries() -> impl Strategy<Value = Vec<Entry>> {
    let entry = prop_oneof![
        20 => (RECORD_HEADER_SIZE..300).prop_map(Entry::Record),
        6 => (300_usize..9_000).prop_map(Entry::Record),
        3 => (9_000_usize..50_000).prop_map(Entry::Record),
        6 => (0_usize..6).prop_map(|eights| Entry::FillPageBut(eights * 8)),
        1 => Just(Entry::Switch),
        2 => (0_usize..3).prop_map(Entry::Abandon),
    ];
    prop::collection::vec(entry, 1..40)
}

fn wal_of(pages_before_segment_end: u64, entries: &[Entry]) -> Wal {
    let mut wal = Wal::before_segment_end(pages_before_segment_end);
    let mut switches = 0;
    for entry in entries {
        match *entry {
            Entry::Record(total) => {
                wal.filler(total);
            }
            Entry::FillPageBut(left) => {
                if wal.page_left() >= RECORD_HEADER_SIZE + left {
                    wal.fill_page_but(left);
                }
            }
            Entry::Switch => {
                // Not at a segment's start, as the server; and not a megabyte each time.
                if switches < 2 && wal.segment_size.offset_of(wal.end()) != 0 {
                    wal.switch();
                    switches += 1;
                }
            }
            Entry::Abandon(pages) => {
                let overwritten = wal.abandon(pages);
                wal.overwrite_contrecord(overwritten);
            }
        }
    }
    wal
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn records_of_any_size_come_back_in_any_cut(
        pages in 0_u64..6,
        entries in entries(),
        cuts in prop::collection::vec(1_usize..20_000, 1..20),
    ) {
        let wal = wal_of(pages, &entries);
        let whole = wal.read();
        prop_assert_eq!(&whole.stop, &None);
        prop_assert_eq!(starts_and_ends(&whole.records), starts_and_ends(&wal.records));
        prop_assert_eq!(&whole.records, &wal.records);
        prop_assert_eq!(&Outcome::of(&mut wal.stream(), &wal.bytes, &cuts), &whole);
        prop_assert_eq!(&Outcome::of(&mut wal.stream(), &wal.bytes, &[1]), &whole);
    }

    #[test]
    fn a_stream_may_begin_on_any_page(pages in 0_u64..6, entries in entries()) {
        let wal = wal_of(pages, &entries);
        let mut page = wal.start;
        while page < wal.end() {
            let from = page.bytes_since(wal.start) as usize;
            let outcome = Outcome::of(&mut wal.stream_at(page), &wal.bytes[from..], &[4096]);
            // Inside a switch nothing tells a reader that what follows is fill.
            let in_switch = wal.records.iter().any(|record| {
                let (info, rmgr) = (record.bytes[16], record.bytes[17]);
                record.start < page && page < record.end && (info, rmgr) == (xlog::SWITCH, 0)
            });
            if !in_switch {
                let expected: Vec<_> =
                    wal.records.iter().filter(|record| record.start >= page).cloned().collect();
                prop_assert_eq!(&outcome.stop, &None);
                prop_assert_eq!(outcome.records, expected);
            }
            page = page.advance(PAGE);
        }
    }
}

#[test]
fn segments_of_every_size() {
    for shift in 20..=30 {
        let size = SegmentSize::new(1 << shift).expect("a legal size");
        let mut wal = Wal::with_segments(Lsn((7 << 30) - 2 * PAGE), size);
        for total in [100, 9_000, 20_000, 24] {
            wal.filler(total);
        }
        assert_reads_back(&wal);
    }
}

#[test]
fn the_first_record_of_a_cluster_points_back_to_nothing() {
    let mut wal = Wal::new(Lsn(1 << 20));
    wal.prev = Lsn::INVALID;
    wal.filler(114);
    wal.filler(30);
    assert_reads_back(&wal);
    assert_eq!(wal.records[0].start, Lsn((1 << 20) + LONG_HEADER_SIZE as u64));
}

#[test]
fn the_stream_knows_version_and_timeline_of_what_it_read() {
    let mut wal = Wal::before_segment_end(2);
    wal.timeline = Timeline(3);
    wal.filler(100);
    let mut stream = wal.stream();
    assert_eq!((stream.version(), stream.timeline()), (None, Timeline(0)));
    assert_eq!(stream.last_record_start(), None);
    Outcome::of(&mut stream, &wal.bytes, &[usize::MAX]);
    assert_eq!(stream.version().map(|version| version.major), Some(15));
    assert_eq!(stream.timeline(), Timeline(3));
    assert_eq!(stream.last_record_start(), Some(wal.records[0].start));
    assert_eq!(stream.pushed_end(), wal.end());
}

#[test]
fn timelines_may_ascend_within_a_segment() {
    let mut wal = Wal::before_segment_end(3);
    wal.filler(9_000);
    wal.timeline = Timeline(4);
    wal.filler(9_000);
    assert_reads_back(&wal);
}

#[test]
fn a_record_that_ends_with_its_page_ends_before_the_next_header() {
    let mut wal = Wal::before_segment_end(3);
    let last = wal.fill_page_but(0);
    assert_eq!(last.end, wal.start.advance(PAGE));
    let next = wal.filler(100);
    assert_eq!(next.start, last.end.advance(SHORT_HEADER_SIZE as u64));
    // The same for a record that came from the page before, and with padding to the border.
    wal.filler(wal.page_left() + (WAL_PAGE_SIZE - LONG_HEADER_SIZE) - 3);
    assert_reads_back(&wal);
}

#[test]
fn a_record_that_ends_with_its_segment_ends_before_the_long_header() {
    let mut wal = Wal::before_segment_end(1);
    let last = wal.fill_page_but(0);
    assert_eq!(wal.segment_size.offset_of(last.end), 0);
    let next = wal.filler(100);
    assert_eq!(next.start, last.end.advance(LONG_HEADER_SIZE as u64));
    assert_reads_back(&wal);
}

#[test]
fn a_record_header_may_lie_across_a_page_or_segment_border() {
    for left in [8, 16, 24, 32] {
        for pages in [1, 2] {
            for total in [24, 25, 32, 100, 30_000] {
                let mut wal = Wal::before_segment_end(pages);
                wal.fill_page_but(left);
                wal.filler(total);
                wal.filler(40);
                assert_reads_back(&wal);
            }
        }
    }
}

#[test]
fn the_rest_of_a_record_from_before_the_stream_is_skipped() {
    // However much of it there is: less than a page, just a page, more pages.
    let room = WAL_PAGE_SIZE - LONG_HEADER_SIZE;
    for rest in [1, 8, 500, room - 8, room - 3, room, room + 1, 3 * room, 100_000] {
        let mut wal = Wal::before_segment_end(1);
        wal.filler(wal.page_left() + rest);
        wal.filler(60);
        wal.filler(9_000);
        let page = wal.start.advance(PAGE);
        for cuts in [&[usize::MAX][..], &[1], &[5_000]] {
            let bytes = &wal.bytes[PAGE as usize..];
            let outcome = Outcome::of(&mut wal.stream_at(page), bytes, cuts);
            assert_eq!(outcome.stop, None, "rest {rest}");
            assert_eq!(outcome.records, wal.records[1..], "rest {rest}");
        }
    }
}

#[test]
fn a_record_that_was_given_up_is_left_out() {
    for pages in [0, 1, 2] {
        for before_segment_end in [1, 2, 3] {
            let mut wal = Wal::before_segment_end(before_segment_end);
            wal.filler(100);
            let overwritten = wal.abandon(pages);
            let witness = wal.overwrite_contrecord(overwritten);
            assert_eq!(witness.prev, wal.records[0].start);
            wal.filler(100);
            assert_reads_back(&wal);
        }
    }
}

#[test]
fn a_record_whose_header_was_cut_by_the_page_may_be_given_up() {
    let mut wal = Wal::before_segment_end(2);
    wal.fill_page_but(8);
    let overwritten = wal.abandon(0);
    wal.overwrite_contrecord(overwritten);
    wal.filler(50);
    assert_reads_back(&wal);
}

#[test]
fn a_stream_may_begin_inside_a_record_that_was_given_up() {
    let mut wal = Wal::before_segment_end(6);
    let overwritten = wal.abandon(3);
    wal.overwrite_contrecord(overwritten);
    wal.filler(50);
    for pages in 1..=4 {
        let page = wal.start.advance(pages * PAGE);
        let bytes = &wal.bytes[(pages * PAGE) as usize..];
        let outcome = Outcome::of(&mut wal.stream_at(page), bytes, &[usize::MAX]);
        assert_eq!((outcome.records, outcome.stop), (wal.records.clone(), None));
    }
}

#[test]
fn a_segment_switch_ends_with_its_segment() {
    let segment_end = Lsn(9 << 20);
    // In the middle of a page, first on it, last on it, across a page border.
    for fill_but in [None, Some(1000), Some(0), Some(24), Some(8), Some(16)] {
        let mut wal = Wal::before_segment_end(3);
        if let Some(left) = fill_but {
            wal.fill_page_but(left);
        }
        assert_eq!(wal.switch().end, segment_end);
        let next = wal.filler(100);
        assert_eq!(next.start, segment_end.advance(LONG_HEADER_SIZE as u64));
        assert_reads_back(&wal);
    }
}

#[test]
fn the_fill_of_a_segment_switch_can_be_left_out() {
    let segment_end = Lsn(9 << 20);
    let mut wal = Wal::before_segment_end(3);
    wal.filler(100);
    let switch = wal.switch();
    wal.filler(100);
    let mut stream = wal.stream();
    let seen = switch.start.bytes_since(wal.start) as usize + 50; // the record and some of its fill
    stream.push(&wal.bytes[..seen]);
    let mut records = Vec::new();
    while let Step::Record(record) = stream.poll() {
        records.push((record.start, record.end));
    }
    assert_eq!(stream.leave_out_fill(segment_end), None, "whether it exists is not known");
    stream.set_known_end(segment_end.advance(PAGE));
    assert_eq!(stream.leave_out_fill(Lsn(segment_end.0 - 1)), None, "beyond the bound");
    assert_eq!(stream.leave_out_fill(segment_end), Some(segment_end));
    assert_eq!(stream.pushed_end(), segment_end);
    stream.push(&wal.bytes[segment_end.bytes_since(wal.start) as usize..]);
    while let Step::Record(record) = stream.poll() {
        records.push((record.start, record.end));
    }
    assert_eq!(records, starts_and_ends(&wal.records));
    assert_eq!(stream.leave_out_fill(Lsn(u64::MAX)), None, "no switch waits");
}

#[test]
fn a_segment_switch_may_end_exactly_with_its_segment() {
    let mut wal = Wal::before_segment_end(1);
    wal.fill_page_but(24);
    assert_eq!(wal.switch().end, Lsn(9 << 20));
    wal.filler(100);
    assert_reads_back(&wal);
}

#[test]
fn a_segment_switch_across_a_segment_border_fills_the_second_segment() {
    for left in [8, 16] {
        let mut wal = Wal::before_segment_end(1);
        wal.fill_page_but(left);
        let switch = wal.switch();
        assert_eq!(switch.start, Lsn((9 << 20) - left as u64));
        assert_eq!(switch.end, Lsn(10 << 20));
        wal.filler(100);
        assert_reads_back(&wal);
    }
}

#[test]
fn a_switch_of_another_resource_manager_is_a_record_like_others() {
    let mut wal = Wal::before_segment_end(1);
    wal.record(RmgrId::HEAP, 0x40, &[]);
    wal.filler(100);
    assert_reads_back(&wal);
}

#[test]
fn rewinding_anywhere_reads_the_rewritten_tip() {
    let mut wal = Wal::before_segment_end(2);
    wal.filler(100);
    wal.fill_page_but(16);
    wal.filler(20_000);
    let overwritten = wal.abandon(1);
    wal.overwrite_contrecord(overwritten);
    wal.fill_page_but(0);
    wal.filler(300);

    let mut stops = 0;
    for cut in (0..=wal.bytes.len()).step_by(8) {
        // What a reader may see at the tip before the rest is written.
        let mut tip = wal.clone();
        tip.bytes.truncate(cut);
        let tips = match cut / 8 % 3 {
            0 => tip.bytes.clone(),
            1 => {
                tip.zero_pages(2);
                tip.bytes
            }
            _ => {
                tip.stale_pages(4, 2);
                tip.bytes
            }
        };
        let mut stream = wal.stream();
        let mut outcome = Outcome::of(&mut stream, &tips, &[1000]);
        stops += usize::from(outcome.stop.is_some());
        stream.rewind();
        assert_eq!(stream.pushed_end(), stream.record_end());
        let from = stream.record_end().bytes_since(wal.start) as usize;
        let rest = Outcome::of(&mut stream, &wal.bytes[from..], &[777]);
        outcome.records.extend(rest.records);
        assert_eq!(rest.stop, None, "cut at {cut}");
        assert_eq!(outcome.records, wal.records, "cut at {cut}");
    }
    assert!(stops > 1000, "only {stops} tips were noticed");
}

#[test]
fn rewinding_inside_a_partial_first_record_or_a_switch_fill() {
    let mut wal = Wal::before_segment_end(2);
    wal.filler(40_000);
    wal.filler(100);
    wal.switch();
    wal.filler(100);
    let page = wal.start.advance(PAGE);
    let bytes = &wal.bytes[PAGE as usize..];
    for cut in [10, 100, 9_000, 30_000, 40_000, 50_000, 500_000] {
        let mut stream = wal.stream_at(page);
        let mut outcome = Outcome::of(&mut stream, &bytes[..cut], &[999]);
        assert_eq!(outcome.stop, None);
        stream.rewind();
        let from = stream.record_end().bytes_since(page) as usize;
        let rest = Outcome::of(&mut stream, &bytes[from..], &[usize::MAX]);
        outcome.records.extend(rest.records);
        assert_eq!(rest.stop, None);
        assert_eq!(outcome.records, wal.records[1..]);
    }
}

#[test]
fn nothing_is_read_twice_and_nothing_left_over() {
    let mut wal = Wal::before_segment_end(2);
    for _ in 0..300 {
        wal.filler(100);
    }
    let page = wal.start;
    assert_eq!(header_size(page, wal.segment_size), SHORT_HEADER_SIZE);
    let mut stream = wal.stream();
    let first = Outcome::of(&mut stream, &wal.bytes, &[usize::MAX]);
    let again = Outcome::of(&mut stream, &[], &[usize::MAX]);
    assert_eq!(first.records.len(), 300);
    assert_eq!((again.records.len(), again.stop), (0, None));
    assert_eq!(stream.record_end(), wal.end());
}
