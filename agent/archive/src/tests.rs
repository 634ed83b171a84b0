//! The archive as a whole: written, read, cut, damaged, crashed and copied.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use walfmt::{Lsn, SegmentName, SegmentSize, Timeline};

use crate::decoder::Decoder;
use crate::files::Files;
use crate::frame::Piece;
use crate::testing::{LossyFiles, Random};
use crate::{
    Archive, ArchiveError, ArchiveReader, ArchiveWriter, FrameFault, OsFiles, WriterOptions,
};

mod copies;

const MB: u64 = 1 << 20;
const TIMELINE: Timeline = Timeline(1);

#[test]
fn a_finished_file_is_the_segment_for_the_zstd_program_too() {
    for segment_mb in [1, 16] {
        let root = tempfile::tempdir().expect("scratch directory");
        let archive =
            Archive::open(Arc::new(OsFiles), root.path(), 7, size(segment_mb)).expect("opened");
        let start = Lsn(3 * segment_mb * MB);
        let wal = wal(segment_mb, 2 * segment_mb * MB + 300_000);
        let mut writer = writer(&archive, start).expect("opened");
        write(&mut writer, &wal, &mut Random(1), 40_000);
        assert_eq!(writer.sync().expect("synced"), start.advance(wal.len() as u64));

        assert_eq!(read(&archive, start, writer.readable()).expect("read"), wal);
        let segments = archive.segments(TIMELINE).expect("listed");
        assert_eq!(segments.len(), 3);
        for (segment, expected) in segments.iter().zip(wal.chunks((segment_mb * MB) as usize)) {
            assert!(archive.read_segment(*segment).expect("read") == expected, "{segment}");
            if expected.len() as u64 == segment_mb * MB {
                let path = root.path().join("7").join(format!("{segment}.zst"));
                let output = Command::new("zstd").arg("-dc").arg(path).output().expect("zstd runs");
                assert!(output.status.success() && output.stdout == expected, "{segment}");
            }
        }
        let taken: u64 =
            segments.iter().map(|&s| archive.segment_file(s).expect("there").bytes).sum();
        assert!(taken * 3 < wal.len() as u64 * 2, "{taken} bytes for {}", wal.len());
    }
}

/// A file of one segment of 2 MB, with small blocks, and where they end.
struct Sample {
    wal: Vec<u8>,
    file: Vec<u8>,
    pieces: Vec<SamplePiece>,
}

struct SamplePiece {
    at: usize,
    piece: Piece,
    wal_end: usize,
}

impl Sample {
    const START: Lsn = Lsn(4 * MB);

    fn new() -> Self {
        let wal = wal(11, 2 * MB);
        let (files, archive) = lossy(2);
        let mut writer = writer(&archive, Self::START).expect("opened");
        write(&mut writer, &wal, &mut Random(5), 60_000);
        let file = files.content(&archive.segment_path(Self::name())).expect("a file");
        let mut pieces = Vec::new();
        let (mut at, mut in_frame, mut decoder, mut out) = (0, false, Decoder::new(), Vec::new());
        while at < file.len() {
            let piece = Piece::parse(&file[at..], in_frame).expect("legal").expect("whole");
            let bytes = &file[at..at + piece.len];
            decoder.decode(bytes, piece.ends_frame, u64::MAX, &mut out).expect("decodes");
            pieces.push(SamplePiece { at, piece, wal_end: out.len() });
            (at, in_frame) = (at + piece.len, !piece.ends_frame);
        }
        assert!(out == wal && pieces.len() > 40, "{} pieces", pieces.len());
        Self { wal, file, pieces }
    }

    fn name() -> SegmentName {
        SegmentName::new(TIMELINE, size(2).segment_of(Self::START), size(2))
    }

    /// An archive whose last file has these bytes.
    fn archive(file: &[u8]) -> (LossyFiles, Archive) {
        let (files, archive) = lossy(2);
        let made = files.open_append(&archive.segment_path(Self::name())).expect("created");
        made.write_at(0, file).expect("written");
        (files, archive)
    }

    /// An archive in which a file with these bytes has an empty successor: it was finished.
    fn finished_archive(file: &[u8]) -> Archive {
        let (files, archive) = Self::archive(file);
        let next = archive.name(TIMELINE, archive.number(Self::name()).next());
        files.open_append(&archive.segment_path(next)).expect("created");
        archive
    }

    /// How much WAL the whole pieces before `cut` hold.
    fn wal_before(&self, cut: usize) -> usize {
        let whole = self.pieces.iter().take_while(|p| p.at + p.piece.len <= cut);
        whole.last().map_or(0, |p| p.wal_end)
    }

    /// Recovers `file`, checks that `expected` bytes of WAL are left, and appends the rest.
    fn recover_and_go_on(&self, file: &[u8], expected: usize, what: &str) {
        let (_, archive) = Self::archive(file);
        let mut writer = writer(&archive, Self::START).unwrap_or_else(|e| panic!("{what}: {e}"));
        let reached = writer.content_end();
        assert_eq!(reached, Self::START.advance(expected as u64), "{what}");
        assert_eq!(writer.durable(), reached);
        let recovered = read(&archive, Self::START, reached).expect(what);
        assert!(recovered == self.wal[..expected], "{what}: the content is not a prefix");
        writer.append(reached, &self.wal[expected..]).expect(what);
        writer.flush().expect(what);
        assert!(archive.read_segment(Self::name()).expect(what) == self.wal, "{what}");
    }
}

#[test]
fn cut_anywhere_and_continue() {
    let sample = Sample::new();
    let mut cuts = vec![sample.file.len()];
    for SamplePiece { at, piece, .. } in &sample.pieces {
        // The header of the frame and of the block byte by byte, and the checksum.
        cuts.extend(*at..=*at + if piece.begins_frame { 10 } else { 4 });
        cuts.extend([at + piece.len / 3, at + piece.len / 2, at + piece.len - 1]);
        if piece.ends_frame {
            cuts.extend(at + piece.len - 5..at + piece.len);
        }
    }
    cuts.retain(|&cut| cut <= sample.file.len());
    cuts.sort_unstable();
    cuts.dedup();
    println!("{} cuts in a file of {} bytes", cuts.len(), sample.file.len());
    for cut in cuts {
        let expected = sample.wal_before(cut);
        sample.recover_and_go_on(&sample.file[..cut], expected, &format!("cut at {cut}"));
    }
}

#[test]
fn garbage_and_zeros_after_the_last_whole_block_are_cut() {
    let sample = Sample::new();
    let mut random = Random(9);
    let garbage: Vec<u8> = (0..3000).map(|_| random.draw() as u8).collect();
    for SamplePiece { at, piece, wal_end } in &sample.pieces {
        let cut = at + piece.len;
        for tail in [&garbage[..], &garbage[..2], &[0; 5000], &[0; 1]] {
            let mut file = sample.file[..cut].to_vec();
            file.extend_from_slice(tail);
            if cut == sample.file.len() {
                // A finished frame, and then bytes that are no frame.
                sample.recover_and_go_on(&file, *wal_end, "after the segment");
            } else {
                sample.recover_and_go_on(&file, *wal_end, &format!("garbage at {cut}"));
            }
        }
    }
}

/// Positions over the whole file, and every byte of every header and checksum.
fn positions_to_damage(sample: &Sample) -> Vec<usize> {
    let mut positions: Vec<usize> = (0..sample.file.len()).step_by(1709).collect();
    for SamplePiece { at, piece, .. } in &sample.pieces {
        positions.extend(*at..at + if piece.begins_frame { 10 } else { 4 });
        if piece.ends_frame {
            positions.extend(at + piece.len - 5..at + piece.len);
        }
    }
    positions.sort_unstable();
    positions.dedup();
    positions
}

#[test]
fn every_damage_in_a_finished_file_is_noticed() {
    let sample = Sample::new();
    let end = Sample::START.advance(sample.wal.len() as u64);
    let intact = Sample::finished_archive(&sample.file);
    assert!(read(&intact, Sample::START, end.advance(1)).expect("read") == sample.wal);
    assert_eq!(writer(&intact, Lsn(0)).expect("opened").content_end(), end);

    let window_bytes: Vec<usize> =
        sample.pieces.iter().filter(|p| p.piece.begins_frame).map(|p| p.at + 5).collect();
    let positions = positions_to_damage(&sample);
    let mut random = Random(3);
    let mut harmless = 0;
    for &position in &positions {
        let mut file = sample.file.clone();
        file[position] ^= 1 << random.below(8);
        let archive = Sample::finished_archive(&file);
        // A reader that goes on to the next segment, as it always has something to look for.
        let read = read(&archive, Sample::START, end.advance(1));
        let recovered = writer(&archive, Lsn(0)).map(|writer| writer.content_end());
        match (read, recovered) {
            (Err(ArchiveError::Corrupt { .. }), Err(ArchiveError::Corrupt { segment, .. })) => {
                assert_eq!(segment, Sample::name());
            }
            (Ok(wal), Ok(_)) if window_bytes.contains(&position) => {
                // A larger window than needed changes nothing that is decoded.
                assert!(wal == sample.wal);
                harmless += 1;
            }
            (read, recovered) => {
                let read = read.map(|wal| wal.len());
                panic!("byte {position} of {}: {read:?}, {recovered:?}", sample.file.len());
            }
        }
    }
    println!("{} damaged files, {harmless} with another window", positions.len());
    assert!(positions.len() > 300);
}

#[test]
fn a_finished_file_that_lost_its_end_is_noticed() {
    let sample = Sample::new();
    let end = Sample::START.advance(sample.wal.len() as u64);
    let length = sample.file.len();
    let mut cuts: Vec<usize> = sample.pieces.iter().map(|p| p.at).collect();
    cuts.extend(length - 10..length);
    for cut in cuts {
        let archive = Sample::finished_archive(&sample.file[..cut]);
        let read = read(&archive, Sample::START, end.advance(1));
        assert!(matches!(read, Err(ArchiveError::Corrupt { .. })), "{cut}");
        let segment = archive.read_segment(Sample::name());
        assert!(matches!(segment, Err(ArchiveError::Corrupt { .. })), "{cut}");
        let opened = writer(&archive, Lsn(0));
        assert!(matches!(opened, Err(ArchiveError::Corrupt { .. })), "{cut}");
    }
}

#[test]
fn a_frame_may_end_after_the_last_byte_of_its_segment() {
    let sample = Sample::new();
    let (files, archive) = lossy(2);
    let end = Sample::START.advance(sample.wal.len() as u64);
    // As a peer's file would be whose last block was flushed before its frame was ended.
    let last = sample.pieces.last().expect("some");
    let mut bytes = sample.file[..last.at + last.piece.len - 4].to_vec();
    bytes[last.at] &= !1;
    let frame_start = sample.pieces.iter().rfind(|p| p.piece.begins_frame).expect("one");
    let before = sample.pieces.iter().rfind(|p| p.at < frame_start.at).expect("one").wal_end;
    let frame_end = crate::frame::frame_end(xxhash_rust::xxh64::xxh64(&sample.wal[before..], 0));

    let mut writer = writer(&archive, Sample::START).expect("opened");
    let mut wal = Vec::new();
    let received = writer.receive(Sample::START, true, &bytes, &mut wal).expect("received");
    assert_eq!(received.commit().expect("committed"), end);
    assert_eq!(writer.sync().expect("synced"), end);
    assert_eq!(archive.segments(TIMELINE).expect("listed").len(), 1, "it is not finished");
    let wrong = writer.receive(end, false, &[1, 0, 0, 9, 9, 9, 9], &mut wal);
    assert!(matches!(wrong, Err(ArchiveError::Received { .. })));
    let received = writer.receive(end, false, &frame_end, &mut wal).expect("received");
    received.commit().expect("committed");
    writer.sync().expect("synced");
    assert_eq!(archive.segments(TIMELINE).expect("listed").len(), 2);
    assert!(wal == sample.wal && archive.read_segment(Sample::name()).expect("read") == wal);

    let mut reader = ArchiveReader::open(&archive, TIMELINE, Sample::START).expect("opened");
    let mut copied = Vec::new();
    while let Some(chunk) = reader.next(end).expect("read") {
        copied.extend_from_slice(chunk.file_bytes.expect("copyable"));
    }
    let path = archive.segment_path(Sample::name());
    assert!(files.content(&path).expect("a file") == copied);
}

/// For who checks records: all WAL, whatever checksums say, in chunks that end with frames.
#[test]
fn reading_for_records_steps_over_checksums() {
    let sample = Sample::new();
    let first_end = sample.pieces.iter().find(|p| p.piece.ends_frame).expect("two frames");
    let mut file = sample.file.clone();
    file[first_end.at + first_end.piece.len - 1] ^= 1;
    let end = Sample::START.advance(sample.wal.len() as u64);
    for (file, is_damaged) in [(&sample.file, false), (&file, true)] {
        let archive = Sample::finished_archive(file);
        let checked = read(&archive, Sample::START, end);
        assert_eq!(checked.is_err(), is_damaged, "the control");
        for skipped in [0, 5, 1_000_000, 1_500_000] {
            let start = Sample::START.advance(skipped);
            let reader = ArchiveReader::open(&archive, TIMELINE, start).expect("opened");
            let (mut reader, mut wal, mut chunks) = (reader.for_records(), Vec::new(), 0);
            while let Some(chunk) = reader.next(end).expect("read") {
                assert_eq!(chunk.start, start.advance(wal.len() as u64));
                assert!(chunk.file_bytes.is_none() && chunk.ends_frame && !chunk.begins_frame);
                wal.extend_from_slice(chunk.wal);
                chunks += 1;
            }
            assert!(wal == sample.wal[skipped as usize..]);
            assert_eq!(chunks, if skipped > MB { 1 } else { 2 });
        }
    }
}

/// What is left of a segment is neither read nor checked.
#[test]
fn reading_skips_to_a_segment() {
    let sample = Sample::new();
    let (files, archive) = Sample::archive(&sample.file[..sample.pieces[1].at]);
    let segment = archive.segment_size().segment_of(Sample::START);
    let next_start = archive.segment_size().end_of(segment);
    let mut reader = ArchiveReader::open(&archive, TIMELINE, Sample::START).expect("opened");
    assert!(reader.next(next_start).expect("read").is_some());
    reader.skip_to(segment);
    assert_eq!(reader.next(next_start).expect("read"), None, "it is there already, and at the end");

    reader.skip_to(segment.next());
    assert_eq!(reader.segment(), segment.next());
    assert_eq!(reader.next(next_start.advance(MB)).expect("nothing yet"), None);
    let next = archive.segment_path(archive.name(TIMELINE, segment.next()));
    let next = files.open_append(&next).expect("created");
    next.write_at(0, &sample.file).expect("written");
    let end = next_start.advance(sample.wal.len() as u64);
    let mut wal = Vec::new();
    while let Some(chunk) = reader.next(end).expect("read") {
        assert_eq!(chunk.start, next_start.advance(wal.len() as u64));
        wal.extend_from_slice(chunk.wal);
    }
    assert!(wal == sample.wal);
}

#[test]
fn damage_in_the_last_file_is_reported_or_cut_never_passed_on() {
    let sample = Sample::new();
    let last_frame = sample.pieces.iter().rfind(|p| p.piece.begins_frame).expect("a frame").at;
    let (mut reported, mut cut, mut reported_in_last) = (0, 0, 0);
    for position in positions_to_damage(&sample) {
        let mut file = sample.file.clone();
        file[position] ^= 0x10;
        let (files, archive) = Sample::archive(&file);
        match writer(&archive, Lsn(0)) {
            Err(ArchiveError::Corrupt { .. }) => {
                let path = archive.segment_path(Sample::name());
                assert!(files.content(&path).expect("a file") == file, "it must not be touched");
                reported += 1;
                reported_in_last += usize::from(position >= last_frame);
            }
            Err(error) => panic!("byte {position}: {error}"),
            Ok(writer) => {
                let length = writer.content_end().bytes_since(Sample::START) as usize;
                let window =
                    sample.pieces.iter().any(|p| p.piece.begins_frame && p.at + 5 == position);
                assert!(window || position >= last_frame, "byte {position} was cut");
                let unchecked = writer.recovery().unchecked_from;
                let checked = unchecked.bytes_since(Sample::START) as usize;
                let wal = read(&archive, Sample::START, writer.content_end()).expect("read");
                assert!(wal.len() == length && wal[..checked] == sample.wal[..checked]);
                // What was known to be durable is not cut.
                let options = WriterOptions {
                    durable_at_least: Sample::START.advance(2 * MB),
                    ..WriterOptions::default()
                };
                let (_, archive) = Sample::archive(&file);
                let known = ArchiveWriter::open(&archive, TIMELINE, Lsn(0), options);
                assert!(
                    window || matches!(known, Err(ArchiveError::LostDurable { .. })),
                    "{known:?}"
                );
                cut += 1;
            }
        }
    }
    println!("{reported} reported ({reported_in_last} in the last frame), {cut} cut");
    assert!(reported > 150 && reported_in_last > 50);
}

#[test]
fn what_recovery_could_not_check_can_be_cut_back() {
    let sample = Sample::new();
    let cut = sample.pieces[10].at + 2;
    let (_, archive) = Sample::archive(&sample.file[..cut]);
    let mut first = writer(&archive, Lsn(0)).expect("opened");
    let lsn = |bytes: usize| Sample::START.advance(bytes as u64);
    assert_eq!(first.recovery().unchecked_from, Sample::START);
    assert_eq!(first.content_end(), lsn(sample.pieces[9].wal_end));
    assert!(matches!(first.cut_back(Lsn(MB)), Err(ArchiveError::CannotCut { .. })));
    let to = lsn(sample.pieces[5].wal_end);
    assert_eq!(first.cut_back(to.advance(10)).expect("cut"), to);
    first.append(to, &sample.wal[sample.pieces[5].wal_end..]).expect("appended");
    first.flush().expect("flushed");
    assert!(matches!(first.cut_back(to), Err(ArchiveError::CannotCut { .. })));
    assert!(archive.read_segment(Sample::name()).expect("read") == sample.wal);
}

#[derive(Default)]
struct CrashReport {
    faults: usize,
    /// How often recovery cut something off.
    cuts: usize,
    /// How often WAL that recovery calls unchecked was indeed wrong.
    wrong: usize,
}

/// Writes with syncs here and there, loses power, opens again, several times over. An error when
/// durable WAL is gone or checked WAL is wrong.
fn crash_run(seed: u64, lies: bool) -> Result<CrashReport, String> {
    const SEGMENT_MB: u64 = 2;
    let mut random = Random(seed);
    let (files, archive) = lossy(SEGMENT_MB);
    if lies {
        files.lie_about_sync();
    }
    let wal = wal(seed % 4, 7 * MB);
    let start = Lsn(SEGMENT_MB * MB);
    let (mut durable, mut report) = (start, CrashReport::default());
    for _ in 0..4 {
        let mut writer = writer(&archive, start).map_err(|error| error.to_string())?;
        let reached = writer.content_end();
        if reached < durable {
            return Err(format!("durable {durable}, but only {reached} is there"));
        }
        let recovered = read(&archive, start, reached).map_err(|error| error.to_string())?;
        let checked = durable.max(writer.recovery().unchecked_from).bytes_since(start) as usize;
        if recovered[..checked] != wal[..checked] {
            return Err(format!("WAL before {durable} is not what was written"));
        }
        // What nothing has checked may be wrong; a caller finds that by its records.
        let wrong = recovered.iter().zip(&wal).position(|(a, b)| a != b);
        report.cuts += usize::from(writer.recovery().cut_bytes > 0);
        if let Some(wrong) = wrong {
            report.wrong += 1;
            writer.cut_back(start.advance(wrong as u64)).map_err(|error| error.to_string())?;
        }
        durable = writer.durable();
        let mut at = writer.content_end().bytes_since(start) as usize;
        for _ in 0..random.below(100) {
            let count = random.below(80_000).min(wal.len() - at);
            writer.append(start.advance(at as u64), &wal[at..at + count]).expect("appended");
            at += count;
            if random.below(3) > 0 {
                writer.flush().expect("flushed");
            }
            if random.below(25) == 0 {
                durable = writer.sync().expect("synced");
            }
        }
        durable = durable.max(writer.durable());
        drop(writer);
        // A process may also just end, and what it had not synced is lost by a later power cut.
        if random.below(3) > 0 {
            report.faults += files.crash(random.draw());
        }
    }
    Ok(report)
}

#[test]
fn what_was_durable_survives_a_power_cut() {
    let mut total = CrashReport::default();
    for seed in 0..240 {
        let report = crash_run(seed, false).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        total.faults += report.faults;
        total.cuts += report.cuts;
        total.wrong += report.wrong;
    }
    let CrashReport { faults, cuts, wrong } = total;
    println!("seeds 0..240: {faults} faults, {cuts} tails cut, {wrong} wrong but unchecked");
    assert!(faults > 1000 && cuts > 100 && wrong < 10);
}

#[test]
fn a_disk_that_lies_about_sync_is_found_out() {
    let failed = (0..30).filter(|&seed| crash_run(seed, true).is_err()).count();
    println!("seeds 0..30, {failed} noticed");
    assert!(failed > 20, "only {failed}");
}

/// Retention was faster than a reader: that is told, not waited for.
#[test]
fn a_reader_whose_next_segment_is_gone_says_so() {
    let (_, archive) = lossy(1);
    let wal = wal(3, 4 * MB);
    let mut writer = writer(&archive, Lsn(MB)).expect("opened");
    writer.append(Lsn(MB), &wal).expect("appended");
    writer.sync().expect("synced");
    let end = Lsn(5 * MB);
    for copies in [false, true] {
        let reader = ArchiveReader::open(&archive, TIMELINE, Lsn(MB)).expect("opened");
        let mut reader = if copies { reader.for_copies() } else { reader };
        let mut read = Lsn(MB);
        while read < Lsn(2 * MB) {
            read = reader.next(Lsn(2 * MB)).expect("read").expect("it is there").end;
        }
        let segment = archive.segments(TIMELINE).expect("listed")[1];
        let path = archive.segment_path(segment);
        let files = archive.files();
        files.rename(&path, &path.with_extension("away")).expect("gone");
        let error = loop {
            match reader.next(end) {
                Ok(Some(chunk)) => assert!(chunk.wal.is_empty() && chunk.end <= Lsn(2 * MB)),
                Ok(None) => panic!("it waits for what never comes"),
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ArchiveError::NotArchived { .. }), "{error}");
        files.rename(&path.with_extension("away"), &path).expect("back");
        assert!(reader.next(end).expect("read").is_some(), "the control");
    }
}

#[test]
fn a_reader_stays_within_its_bound_and_waits_at_the_tip() {
    let (files, archive) = lossy(2);
    let start = Lsn(2 * MB);
    let wal = wal(1, 3 * MB);
    let mut writer = writer(&archive, start).expect("opened");
    let mut reader = ArchiveReader::open(&archive, TIMELINE, start).expect("opened");
    assert!(reader.next(start).expect("read").is_none());
    let at = |bytes: usize| start.advance(bytes as u64);

    writer.append(at(0), &wal[..1000]).expect("appended");
    assert!(reader.next(at(1000)).expect("read").is_none(), "not flushed");
    writer.flush().expect("flushed");
    writer.append(at(1000), &wal[1000..3000]).expect("appended");
    writer.flush().expect("flushed");
    let chunk = reader.next(at(1000)).expect("read").expect("there");
    assert_eq!((chunk.start, chunk.end, chunk.begins_frame), (at(0), at(1000), true));
    assert_eq!(chunk.wal, &wal[..1000]);
    assert!(reader.next(at(1000)).expect("read").is_none());
    assert!(reader.next(at(2999)).expect("read").is_none(), "a block beyond the bound waits");
    let chunk = reader.next(at(3000)).expect("read").expect("there");
    assert_eq!((chunk.start, chunk.wal), (at(1000), &wal[1000..3000]));

    // The end of a frame is handed out even when the bound is reached.
    writer.end_frame().expect("ended");
    let chunk = reader.next(at(3000)).expect("read").expect("there");
    assert_eq!((chunk.start, chunk.end, chunk.ends_frame), (at(3000), at(3000), true));
    assert_eq!(chunk.file_bytes.map(<[u8]>::len), Some(7));
    assert!(reader.next(at(3000)).expect("read").is_none());

    // A partial block at the tip is "not yet"; in a segment that has a successor it is damage.
    writer.append(at(3000), &wal[3000..50_000]).expect("appended");
    writer.flush().expect("flushed");
    let path = archive.segment_path(writer.segment());
    let whole = files.content(&path).expect("a file");
    let file = files.open_append(&path).expect("opened");
    file.set_len(whole.len() as u64 - 1).expect("cut");
    assert!(reader.next(at(50_000)).expect("read").is_none());
    let next = archive.name(TIMELINE, archive.number(writer.segment()).next());
    files.open_append(&archive.segment_path(next)).expect("created");
    let error = reader.next(at(50_000)).expect_err("ends early");
    assert!(
        matches!(&error, ArchiveError::Corrupt { fault: FrameFault::EndsEarly, .. }),
        "{error}"
    );
    file.write_at(0, &whole).expect("restored");
    let chunk = reader.next(at(50_000)).expect("read").expect("there");
    assert_eq!(chunk.end, at(50_000));
}

/// A disk that was full: a reader has seen the part of a write that came through, or looks while the
/// file is cut back. What is written in its place is read as if nothing had been.
#[test]
fn a_reader_survives_a_write_that_failed_half_way() {
    let mut random = Random(7);
    for round in 0..200_u64 {
        let (files, archive) = lossy(1);
        let start = Lsn(MB);
        let wal = wal(round, 400_000);
        let mut writer = writer(&archive, start).expect("opened");
        let for_records = round % 2 == 0;
        let reader = ArchiveReader::open(&archive, TIMELINE, start).expect("opened");
        let mut reader = if for_records { reader.for_records() } else { reader };
        let (mut read, mut at, mut bound) = (Vec::new(), 0, start);
        while at < wal.len() {
            let end = (at + 1 + random.below(60_000)).min(wal.len());
            // What of the file is there when the write fails: garbage, or a part of what comes.
            let path = archive.segment_path(writer.segment());
            let whole = files.content(&path).unwrap_or_default().len() as u64;
            let mut rest = vec![0; 1 + random.below(5000)];
            let kind = random.below(3);
            rest.iter_mut().for_each(|byte| *byte = random.draw() as u8);
            // A block's first byte: too long to be whole yet, or of a type that there is not.
            rest[0] = if kind == 0 { 0b110 } else { rest[0] & !0b110 | 0b100 };
            let file = files.open_append(&path).expect("opened");
            file.write_at(whole, &rest).expect("written");
            if kind < 2 {
                let more = reader.next(bound).expect("nothing is promised there");
                assert!(more.is_none_or(|chunk| chunk.wal.is_empty()));
            }
            file.set_len(whole).expect("cut");
            writer.append(start.advance(at as u64), &wal[at..end]).expect("appended");
            bound = writer.flush().expect("flushed");
            at = end;
            while let Some(chunk) = reader.next(bound).expect("what was promised is there") {
                read.extend_from_slice(chunk.wal);
            }
            assert!(read == wal[..end], "round {round}, up to {end}");
        }
    }
}

#[test]
fn a_reader_begins_anywhere() {
    let (_, archive) = lossy(2);
    let start = Lsn(4 * MB);
    let wal = wal(0, 5 * MB);
    let mut writer = writer(&archive, start).expect("opened");
    write(&mut writer, &wal, &mut Random(2), 30_000);
    let mut random = Random(1);
    let mut offsets: Vec<usize> = (0..40).map(|_| random.below(wal.len())).collect();
    offsets.extend([0, 1 << 20, 2 << 20, 4 << 20, wal.len()]);
    for offset in offsets {
        let from = start.advance(offset as u64);
        assert!(
            read(&archive, from, writer.readable()).expect("read") == wal[offset..],
            "{offset}"
        );
        let mut reader = ArchiveReader::open(&archive, TIMELINE, from).expect("opened");
        while let Some(chunk) = reader.next(writer.readable()).expect("read") {
            let in_first_cell = chunk.start.0 / MB == from.0 / MB;
            let copyable = !in_first_cell || from.0.is_multiple_of(MB);
            assert_eq!(
                chunk.file_bytes.is_some(),
                copyable || chunk.wal.is_empty() && !in_first_cell
            );
        }
    }
    let error = ArchiveReader::open(&archive, TIMELINE, Lsn(3 * MB)).expect_err("not there");
    assert_eq!(
        error.to_string(),
        "segment 000000010000000000000001 is not in the archive, \
         which begins with 000000010000000000000002"
    );
    let far = ArchiveReader::open(&archive, TIMELINE, Lsn(30 * MB));
    assert!(matches!(far, Err(ArchiveError::NotArchived { .. })));
}

#[test]
fn the_next_segment_is_created_when_this_one_is_durable() {
    let (files, archive) = lossy(1);
    let mut writer = writer(&archive, Lsn(MB)).expect("opened");
    writer.append(Lsn(MB), &vec![7; MB as usize + 10]).expect("appended");
    writer.flush().expect("flushed");
    writer.sync().expect("synced");
    let one = "000000010000000000000001.zst";
    let two = "000000010000000000000002.zst";
    let calls: Vec<String> = files
        .trace()
        .iter()
        .map(|call| call.split(' ').take(2).collect::<Vec<_>>().join(" "))
        .collect();
    let expected = [
        "sync_dir root",
        &format!("create {one}"),
        &format!("fdatasync {one}"),
        "sync_dir 7",
        &format!("write {one}"),
        &format!("fdatasync {one}"),
        &format!("create {two}"),
        "sync_dir 7",
        &format!("write {two}"),
        &format!("fdatasync {two}"),
    ];
    assert_eq!(calls, expected);
}

#[test]
fn after_a_failed_write_nothing_more_is_written() {
    let wal = wal(1, 3 * MB);
    for calls in 0..12 {
        let (files, archive) = lossy(1);
        let start = Lsn(MB);
        let mut first = writer(&archive, start).expect("opened");
        files.fail_after(calls);
        let mut durable = start;
        let mut at = 0;
        let error = loop {
            let count = 100_000.min(wal.len() - at);
            let step = first
                .append(start.advance(at as u64), &wal[at..at + count])
                .and_then(|()| first.flush())
                .and_then(|_| first.sync());
            match step {
                Ok(lsn) => durable = lsn,
                Err(error) => break error,
            }
            at += count;
        };
        assert!(matches!(error, ArchiveError::File(_)), "{error}");
        let length = files.trace().len();
        assert!(matches!(first.flush(), Err(ArchiveError::Stopped)));
        assert!(matches!(first.sync(), Err(ArchiveError::Stopped)));
        assert_eq!(files.trace().len(), length);
        drop(first);
        files.crash(calls as u64);
        let second = writer(&archive, start).expect("opened");
        assert!(second.content_end() >= durable, "{} < {durable}", second.content_end());
        let length = second.content_end().bytes_since(start) as usize;
        assert!(read(&archive, start, second.content_end()).expect("read") == wal[..length]);
    }
}

#[test]
fn one_writer_at_a_time_and_only_what_follows() {
    let (_, archive) = lossy(2);
    let begin = ArchiveWriter::open(&archive, TIMELINE, Lsn(MB), WriterOptions::default());
    assert!(matches!(begin, Err(ArchiveError::NotASegmentStart { .. })));
    let mut first = writer(&archive, Lsn(2 * MB)).expect("opened");
    assert!(matches!(writer(&archive, Lsn(2 * MB)), Err(ArchiveError::Locked { .. })));
    let error = first.append(Lsn(2 * MB + 8), b"x").expect_err("a gap");
    assert_eq!(error.to_string(), "the archive ends at 0/200000 and cannot go on from 0/200008");
    first.append(Lsn(2 * MB), b"x").expect("appended");
    drop(first);
    // What was not flushed was never in the file.
    assert_eq!(writer(&archive, Lsn(0)).expect("opened").content_end(), Lsn(2 * MB));
}

#[test]
fn a_timeline_begins_elsewhere_while_nothing_of_it_is_archived() {
    let (mut moved, mut left) = (0, 0);
    for seed in 0..60 {
        let (files, archive) = lossy(1);
        let mut writer = writer(&archive, Lsn(3 * MB)).expect("opened");
        files.fail_after(seed as usize % 6);
        let begun = writer.begin_at(Lsn(7 * MB));
        drop(writer);
        files.crash(seed);
        // Wherever it stopped: one file or none, and so it begins where it is told.
        let segments = archive.segments(TIMELINE).expect("listed");
        assert!(segments.len() < 2, "seed {seed}: {segments:?}");
        let mut writer = self::writer(&archive, Lsn(9 * MB)).expect("opened");
        let at = writer.content_end();
        assert!([3, 7, 9].map(|at| Lsn(at * MB)).contains(&at), "seed {seed}: {at}");
        assert!(begun.is_err() || at == Lsn(7 * MB), "seed {seed}: durable on return");
        *(if begun.is_ok() { &mut moved } else { &mut left }) += 1;
        writer.append(at, &wal(seed, MB + 5)).expect("appended");
        let end = writer.flush().expect("flushed");
        assert!(read(&archive, at, end).expect("read") == wal(seed, MB + 5));
    }
    assert!(moved > 8 && left > 8, "{moved} {left}");
}

#[test]
fn a_timeline_of_which_something_is_archived_stays_where_it_is() {
    let (_, archive) = lossy(1);
    let mut first = writer(&archive, Lsn(3 * MB)).expect("opened");
    assert!(matches!(first.begin_at(Lsn(7 * MB + 1)), Err(ArchiveError::NotASegmentStart { .. })));
    first.begin_at(Lsn(3 * MB)).expect("it is there");
    assert_eq!(archive.segments(TIMELINE).expect("listed"), [first.segment()]);
    // Taken, and not in the file yet.
    first.append(Lsn(3 * MB), &wal(1, 100)).expect("appended");
    for _ in 0..2 {
        let refused = first.begin_at(Lsn(7 * MB));
        assert!(matches!(refused, Err(ArchiveError::NotContiguous { .. })), "{refused:?}");
        first.sync().expect("synced");
    }
    // The next file is empty, but not the only one.
    first.append(Lsn(3 * MB + 100), &wal(1, MB)[100..]).expect("appended");
    first.end_frame().expect("ended");
    first.sync().expect("synced");
    assert_eq!(archive.segment_file(first.segment()).expect("there").bytes, 0);
    assert!(matches!(first.begin_at(Lsn(7 * MB)), Err(ArchiveError::NotContiguous { .. })));
    assert!(read(&archive, Lsn(3 * MB), Lsn(4 * MB)).expect("read") == wal(1, MB));
}

#[test]
fn a_history_file_is_there_whole_or_not_at_all() {
    let text = b"1\t0/3000000\tno recovery target specified\n";
    let mut there = 0;
    for seed in 0..60 {
        let (files, archive) = lossy(1);
        let mut writer = writer(&archive, Lsn(0)).expect("opened");
        let stop = seed as usize % 7;
        files.fail_after(stop);
        let put = writer.put_history(Timeline(2), text);
        drop(writer);
        files.crash(seed);
        let found = archive.history(Timeline(2)).expect("read");
        assert!(put.is_err() || found.is_some(), "seed {seed}: durable on return");
        if let Some(found) = found {
            assert_eq!(found, text, "seed {seed}");
            there += 1;
        }
    }
    assert!(there > 8 && there < 50, "{there}");
}

#[test]
fn what_the_archive_holds() {
    let (files, archive) = lossy(1);
    for name in [
        "000000010000000000000003.zst",
        "000000010000000000000005.zst",
        "000000010000000000000006.zst",
        "000000020000000000000006.zst",
        "00000002.history",
        "000000010000000000000009.partial",
        "notes.zst",
    ] {
        files.open_append(&archive.dir().join(name)).expect("created");
    }
    assert_eq!(archive.timelines().expect("listed"), [Timeline(1), Timeline(2)]);
    let extent = archive.extent(TIMELINE).expect("listed").expect("some");
    assert_eq!(extent.first.to_string(), "000000010000000000000005");
    assert_eq!(extent.last.to_string(), "000000010000000000000006");
    let first = archive.first_segment(TIMELINE).expect("listed").expect("one");
    assert_eq!(first.to_string(), "000000010000000000000003");
    archive.remove_segment(first).expect("removed");
    assert_eq!(archive.first_segment(TIMELINE).expect("listed"), Some(extent.first));
    assert_eq!(archive.extent(Timeline(3)).expect("listed"), None);
}

#[test]
fn a_reader_follows_a_writer_in_another_thread() {
    let root = tempfile::tempdir().expect("scratch directory");
    let archive = Archive::open(Arc::new(OsFiles), root.path(), 7, size(1)).expect("opened");
    let start = Lsn(MB);
    let wal = wal(5, 12 * MB);
    let readable = std::sync::atomic::AtomicU64::new(start.0);
    let mut writer = writer(&archive, start).expect("opened");
    let mut reader = ArchiveReader::open(&archive, TIMELINE, start).expect("opened");
    std::thread::scope(|scope| {
        let (wal, readable) = (&wal, &readable);
        scope.spawn(move || {
            let mut random = Random(1);
            while (writer.content_end().bytes_since(start) as usize) < wal.len() {
                let at = writer.content_end().bytes_since(start) as usize;
                let count = (1 + random.below(9_000)).min(wal.len() - at);
                writer.append(writer.content_end(), &wal[at..at + count]).expect("appended");
                let flushed = writer.flush().expect("flushed");
                readable.store(flushed.0, std::sync::atomic::Ordering::Release);
            }
        });
        let mut seen = 0;
        while seen < wal.len() {
            let bound = Lsn(readable.load(std::sync::atomic::Ordering::Acquire));
            while let Some(chunk) = reader.next(bound).expect("read") {
                assert!(chunk.wal == &wal[seen..seen + chunk.wal.len()]);
                seen += chunk.wal.len();
            }
            assert_eq!(start.advance(seen as u64), bound, "all that is flushed can be read");
        }
    });
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(200))]

    #[test]
    fn no_file_makes_opening_panic(
        mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..3000),
        raw_blocks in proptest::prelude::any::<bool>(),
    ) {
        if raw_blocks {
            // A frame of small raw blocks, with whatever the bytes are for the last of them.
            let content = std::mem::take(&mut bytes);
            bytes.extend_from_slice(&[0x28, 0xB5, 0x2F, 0xFD, 0x04, 0x48]);
            for block in content.chunks(100) {
                bytes.extend_from_slice(&[(block.len() << 3) as u8, (block.len() >> 5) as u8, 0]);
                bytes.extend_from_slice(block);
            }
        }
        let (_, archive) = Sample::archive(&bytes);
        if let Ok(writer) = writer(&archive, Lsn(0)) {
            let wal = read(&archive, Sample::START, writer.content_end()).expect("recovered");
            assert_eq!(wal.len() as u64, writer.content_end().bytes_since(Sample::START));
            assert!(!raw_blocks || !wal.is_empty() || bytes.len() == 6);
        }
        let archive = Sample::finished_archive(&bytes);
        let end = Sample::START.advance(2 * MB);
        proptest::prop_assert!(read(&archive, Sample::START, end).is_err());
    }
}

fn size(megabytes: u64) -> SegmentSize {
    SegmentSize::new(u32::try_from(megabytes * MB).expect("small")).expect("legal")
}

fn lossy(segment_mb: u64) -> (LossyFiles, Archive) {
    let files = LossyFiles::new();
    let root = PathBuf::from("/root");
    let archive = Archive::open(Arc::new(files.clone()), Path::new(&root), 7, size(segment_mb))
        .expect("opened");
    (files, archive)
}

fn writer(archive: &Archive, begin: Lsn) -> crate::Result<ArchiveWriter> {
    ArchiveWriter::open(archive, TIMELINE, begin, WriterOptions::default())
}

/// Appends `wal` in groups of random size, each flushed.
fn write(writer: &mut ArchiveWriter, wal: &[u8], random: &mut Random, group_bytes_max: usize) {
    let start = writer.content_end();
    let mut at = 0;
    while at < wal.len() {
        let count = (1 + random.below(group_bytes_max)).min(wal.len() - at);
        writer.append(start.advance(at as u64), &wal[at..at + count]).expect("appended");
        at += count;
        assert_eq!(writer.flush().expect("flushed"), start.advance(at as u64));
    }
}

/// Everything from `from` up to `bound`.
fn read(archive: &Archive, from: Lsn, bound: Lsn) -> crate::Result<Vec<u8>> {
    let mut reader = ArchiveReader::open(archive, TIMELINE, from)?;
    let mut wal = Vec::new();
    while let Some(chunk) = reader.next(bound)? {
        assert_eq!(chunk.start, from.advance(wal.len() as u64));
        assert!(chunk.wal.len() <= 384 << 10);
        wal.extend_from_slice(chunk.wal);
    }
    Ok(wal)
}

fn assert_same_file(a: &Archive, b: &Archive, segment: SegmentName) {
    let bytes = |archive: &Archive| {
        let path = archive.segment_path(segment);
        let file = archive.files().open_read(&path).expect("opened");
        let mut bytes = vec![0; file.len().expect("length") as usize];
        file.read_at(0, &mut bytes).expect("read");
        bytes
    };
    assert!(bytes(a) == bytes(b), "{segment} differs");
}

/// Bytes like WAL: pages with headers, records with counters and text, and now and then images and
/// values that do not compress.
fn wal(seed: u64, length: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(977));
    let mut wal = Vec::with_capacity(length as usize + 10_000);
    let mut xid = 700_u32;
    while (wal.len() as u64) < length {
        if wal.len() % 8192 < 200 {
            wal.extend_from_slice(&[0x10, 0xD1, 5, 0, 1, 0, 0, 0]);
        }
        xid += u32::from(random.below(8) == 0);
        wal.extend_from_slice(&xid.to_le_bytes());
        wal.extend_from_slice(&(wal.len() as u64).to_le_bytes());
        wal.extend_from_slice(&(random.draw() as u32).to_le_bytes());
        match random.below(60) {
            0 => wal.extend((0..random.below(8192)).map(|_| random.draw() as u8)),
            1 => wal.resize(wal.len() + random.below(4000), 0),
            _ => {
                let name = ["alice", "bob", "carol", "dave"][random.below(4)];
                wal.extend_from_slice(
                    format!("INSERT accounts {name} balance {:07}", random.below(100_000))
                        .as_bytes(),
                );
            }
        }
    }
    wal.truncate(length as usize);
    wal
}
