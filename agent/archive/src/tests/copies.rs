//! Copies: the bytes of one archive's files, received by another.

use super::*;

#[test]
fn a_copy_from_a_frame_start_is_the_same_file() {
    let (_, source) = lossy(2);
    let (_, copy) = lossy(2);
    let start = Lsn(2 * MB);
    let wal = wal(2, 5 * MB);
    let mut writer_a = writer(&source, start).expect("opened");
    let mut writer_b = writer(&copy, start).expect("opened");
    let mut reader = ArchiveReader::open(&source, TIMELINE, start).expect("opened");
    let mut random = Random(8);
    let (mut at, mut open) = (0, false);
    let mut received_wal = Vec::new();
    while at < wal.len() {
        let count = random.below(150_000).min(wal.len() - at);
        writer_a.append(start.advance(at as u64), &wal[at..at + count]).expect("appended");
        at += count;
        let mut bound = writer_a.flush().expect("flushed");
        if random.below(5) == 0 {
            // The end of a frame, without WAL.
            bound = writer_a.end_frame().expect("ended");
        }
        while let Some(chunk) = reader.next(bound).expect("read") {
            assert!(chunk.end <= bound);
            assert_eq!(chunk.begins_frame, !open);
            let bytes = chunk.file_bytes.expect("copyable from the start on");
            // Every now and then something is received and not committed.
            if random.below(3) == 0 {
                let mut scratch = Vec::new();
                let dropped =
                    writer_b.receive(chunk.start, chunk.begins_frame, bytes, &mut scratch);
                drop(dropped.expect("received"));
                assert_eq!(scratch, chunk.wal);
            }
            let before = received_wal.len();
            let received = writer_b
                .receive(chunk.start, chunk.begins_frame, bytes, &mut received_wal)
                .expect("received");
            assert_eq!(received.end(), chunk.end);
            assert_eq!(received_wal[before..], *chunk.wal);
            let received = received_is_written_only_by_commit(received);
            assert_eq!(received, chunk.end);
            open = !chunk.ends_frame;
            if random.below(4) == 0 {
                assert_eq!(writer_b.sync().expect("synced"), chunk.end);
            }
        }
        assert_eq!(writer_b.content_end(), bound);
    }
    assert!(received_wal == wal);
    for segment in source.segments(TIMELINE).expect("listed") {
        assert_same_file(&source, &copy, segment);
    }
}

/// A reader that came before its segment did: when it looks, all of it may be there.
#[test]
fn copies_of_a_segment_that_was_not_there_yet() {
    let (_, archive) = lossy(2);
    let wal = wal(4, 7 * MB);
    let mut writer = writer(&archive, Lsn(2 * MB)).expect("opened");
    writer.append(Lsn(2 * MB), &wal[..2 << 20]).expect("appended");
    writer.flush().expect("flushed");
    let reader = ArchiveReader::open(&archive, TIMELINE, Lsn(4 * MB)).expect("at the end");
    let mut reader = reader.for_copies();
    writer.append(Lsn(4 * MB), &wal[2 << 20..]).expect("appended");
    let bound = writer.sync().expect("synced");
    let (_, copy) = lossy(2);
    let mut copied = self::writer(&copy, Lsn(4 * MB)).expect("opened");
    let mut received = Vec::new();
    while let Some(chunk) = reader.next(bound).expect("sound") {
        let bytes = chunk.file_bytes.expect("from a frame's start on");
        let got = copied.receive(chunk.start, chunk.begins_frame, bytes, &mut received);
        received_is_written_only_by_commit(got.expect("whole blocks"));
    }
    assert!(received == wal[2 << 20..]);
}

/// From any position, of archives whose writers were restarted or not: what a reader for copies hands
/// out is, received, the same WAL; and whole segments come frame by frame, not decoded.
#[test]
fn copies_need_no_decoding() {
    let mut random = Random(21);
    let (mut copied, mut decoded) = (0, 0);
    for round in 0..40 {
        let (_, source) = lossy(2);
        let start = Lsn(2 * MB);
        let wal = wal(round, 6 * MB + 5000);
        let mut writer_a = writer(&source, start).expect("opened");
        let mut at = 0;
        while at < wal.len() {
            let count = (1 + random.below(400_000)).min(wal.len() - at);
            write(&mut writer_a, &wal[at..at + count], &mut random, 100_000);
            at += count;
            // A restart in the middle of a cell ends a frame there, in every other archive.
            if round % 2 == 1 && random.below(6) == 0 {
                drop(writer_a);
                writer_a = writer(&source, start).expect("opened");
            }
        }
        let end = start.advance(wal.len() as u64);
        let skip = [0, MB, 2 * MB, 2 * MB + 77_777][random.below(4)];
        let from = start.advance(skip);
        let segment_start = size(2).start_of(size(2).segment_of(from));
        let (_, copy) = lossy(2);
        let mut writer_b = writer(&copy, segment_start).expect("opened");
        let before = from.bytes_since(segment_start) as usize;
        let skipped = segment_start.bytes_since(start) as usize;
        writer_b.append(segment_start, &wal[skipped..skipped + before]).expect("appended");
        writer_b.end_frame().expect("ended");
        let reader = ArchiveReader::open(&source, TIMELINE, from).expect("opened");
        let mut reader = reader.for_copies();
        let mut received = wal[skipped..skipped + before].to_vec();
        // The bound comes in two steps, the first of them anywhere.
        for bound in [start.advance(random.below(wal.len()) as u64).max(from), end] {
            while let Some(chunk) = reader.next(bound).expect("read") {
                assert!(chunk.end <= bound && chunk.start == writer_b.content_end());
                let length = received.len();
                match chunk.file_bytes {
                    Some(bytes) => {
                        let got = writer_b
                            .receive(chunk.start, chunk.begins_frame, bytes, &mut received)
                            .expect("received");
                        assert_eq!(got.end(), chunk.end);
                        received_is_written_only_by_commit(got);
                    }
                    None => {
                        writer_b.append(chunk.start, chunk.wal).expect("appended");
                        received.extend_from_slice(chunk.wal);
                        if chunk.ends_frame {
                            writer_b.end_frame().expect("ended");
                        }
                    }
                }
                let is_copied = chunk.wal.is_empty() && chunk.end > chunk.start;
                *(if is_copied { &mut copied } else { &mut decoded }) += received.len() - length;
            }
        }
        writer_b.end_frame().expect("ended");
        assert!(received == wal[skipped..], "round {round}");
        let read = read(&copy, segment_start, end).expect("the copy is whole");
        assert!(read == wal[skipped..], "round {round}");
    }
    println!("{copied} bytes of WAL were copied, {decoded} decoded");
    assert!(copied > 20 << 20 && decoded > 20 << 20);
}

fn received_is_written_only_by_commit(received: crate::Received<'_>) -> Lsn {
    received.commit().expect("committed")
}

#[test]
fn a_follower_resumes_in_the_middle_of_a_cell() {
    let (_, source) = lossy(4);
    let (files, copy) = lossy(4);
    let start = Lsn(4 * MB);
    let wal = wal(3, 4 * MB);
    let mut writer_a = writer(&source, start).expect("opened");
    write(&mut writer_a, &wal, &mut Random(4), 50_000);

    // The follower has blocks up to the middle of the second cell, and restarts.
    let mut writer_b = writer(&copy, start).expect("opened");
    let mut reader = ArchiveReader::open(&source, TIMELINE, start).expect("opened");
    let mut scratch = Vec::new();
    while writer_b.content_end() < start.advance(MB + 200_000) {
        let chunk = reader.next(writer_a.readable()).expect("read").expect("there");
        let bytes = chunk.file_bytes.expect("copyable");
        let received = writer_b.receive(chunk.start, chunk.begins_frame, bytes, &mut scratch);
        received.expect("received").commit().expect("committed");
    }
    writer_b.sync().expect("synced");
    drop(writer_b);
    files.crash(1);

    let mut writer_b = writer(&copy, start).expect("opened");
    let resume = writer_b.content_end();
    assert!(resume > start.advance(MB) && resume < start.advance(2 * MB), "{resume}");
    let refused = writer_b.receive(resume, false, b"xyz", &mut scratch);
    assert!(matches!(refused, Err(ArchiveError::NoOpenFrame { .. })));

    let mut reader = ArchiveReader::open(&source, TIMELINE, resume).expect("opened");
    let mut position = resume;
    let (mut raw, mut copied) = (0, 0);
    while let Some(chunk) = reader.next(writer_a.readable()).expect("read") {
        assert_eq!(chunk.start, position, "the first chunk begins exactly there");
        match chunk.file_bytes {
            None => {
                raw += chunk.wal.len();
                writer_b.append(chunk.start, chunk.wal).expect("appended");
                writer_b.flush().expect("flushed");
            }
            Some(bytes) => {
                copied += chunk.wal.len();
                let received =
                    writer_b.receive(chunk.start, chunk.begins_frame, bytes, &mut scratch);
                received.expect("received").commit().expect("committed");
            }
        }
        position = chunk.end;
    }
    assert_eq!(raw as u64, start.advance(2 * MB).bytes_since(resume));
    assert_eq!(copied as u64, 2 * MB);
    let segment = copy.last_segment(TIMELINE).expect("listed").expect("one");
    assert!(copy.read_segment(segment).expect("read") == wal);
}

#[test]
fn wrong_compressed_bytes_write_nothing() {
    let sample = Sample::new();
    let first_frame = sample.pieces.iter().find(|p| p.piece.ends_frame).expect("one");
    let good = &sample.file[..first_frame.at + first_frame.piece.len];
    let (files, archive) = lossy(2);
    let mut writer = writer(&archive, Sample::START).expect("opened");
    let calls = files.trace().len();
    let mut wal_out = b"before".to_vec();
    let mut refuse = |bytes: &[u8]| {
        let refused = writer.receive(Sample::START, true, bytes, &mut wal_out).err();
        assert_eq!(wal_out, b"before");
        match refused {
            Some(ArchiveError::Received { lsn: Sample::START, fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    };
    let mut random = Random(6);
    for _ in 0..300 {
        let mut bytes = good.to_vec();
        let position = 6 + random.below(good.len() - 6);
        bytes[position] ^= 1 << random.below(8);
        refuse(&bytes);
    }
    let with = |tail: &[u8]| [good, tail].concat();
    assert_eq!(refuse(&with(b"\x28\xB5")), FrameFault::EndsEarly);
    assert!(matches!(refuse(&with(b"garbage")), FrameFault::Magic { .. }));
    assert_eq!(refuse(&good[..good.len() - 1]), FrameFault::EndsEarly);
    // A run of 128 KB takes 4 bytes: nine of them are more than a cell.
    let run = (1_u32 << 1 | (128 << 10) << 3).to_le_bytes();
    let mut bomb = good[..6].to_vec();
    (0..9).for_each(|_| bomb.extend_from_slice(&[run[0], run[1], run[2], 0]));
    assert_eq!(refuse(&bomb), FrameFault::TooLong { room: 0 });
    // WAL beyond the segment.
    let beyond = [&sample.file[..], good].concat();
    assert_eq!(refuse(&beyond), FrameFault::TrailingBytes);
    assert_eq!(files.trace().len(), calls, "nothing was written");

    let received = writer.receive(Sample::START, true, good, &mut wal_out).expect("good");
    received.commit().expect("committed");
    assert!(files.trace().len() > calls);
    let elsewhere = writer.receive(Sample::START, true, good, &mut wal_out);
    assert!(matches!(elsewhere, Err(ArchiveError::NotContiguous { .. })));
}
