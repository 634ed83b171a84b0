//! Spools as crashes leave them, and as disks do.
#![allow(clippy::unwrap_used)] // a test that panics has failed, as it should

use std::cell::Cell;
use std::fs;
use std::path::Path;
use std::rc::Rc;

use walfmt::row::{Entry, EntryKind};
use walfmt::{Lsn, RelFileLocator, SegmentSize, Timeline, TransactionId, Version};

use super::reader::{LOOKS_MAX, List};
use super::{CHUNK_HEADER_SIZE, HEADER_SIZE, Reader, Writer, list, path_of};
use crate::identity::Identity;
use crate::trouble::{Kind, Trouble};

fn identity() -> Identity {
    Identity {
        system_identifier: 7,
        timeline: Timeline(1),
        segment_size: SegmentSize::new(16 << 20).unwrap(),
        version: Version::from_major(15).unwrap(),
    }
}

fn open(directory: &Path) -> Writer {
    Writer::open(directory, identity(), 15, |_| Ok(())).unwrap()
}

/// The entries of a record.
fn entries(start: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let entry = Entry {
        start: Lsn(start),
        xid: TransactionId(3),
        locator: RelFileLocator { tablespace: 1663, database: 5, relation: 16384 },
        block: 0,
        item: 1,
        ordinal: 0,
        kind: EntryKind::Inserted,
        flags: 0,
        contents: &vec![u8::try_from(start % 251).unwrap(); length],
    };
    entry.write(&mut bytes);
    bytes
}

/// Chunks that end at 110, 120, ... behind catalogs at 100.
fn write(writer: &mut Writer, ends: impl IntoIterator<Item = u64>) {
    for end in ends {
        writer
            .append(&entries(end - 10, 30 + usize::try_from(end % 7).unwrap()), Lsn(end))
            .unwrap();
        if writer.is_full() {
            // A transaction has been open for two records.
            writer.go_on(&entries(end, 300), Lsn(end - 15)).unwrap();
        }
    }
}

fn spool(directory: &Path, ends: impl IntoIterator<Item = u64>) -> Writer {
    let mut writer = open(directory);
    writer.begin(Lsn(100), &entries(100, 50)).unwrap();
    write(&mut writer, ends);
    writer.sync().unwrap();
    writer
}

/// The ends of all chunks that can be read, and why there are no more.
fn read(directory: &Path, from: Option<u64>) -> (Vec<u64>, Option<Trouble>) {
    let mut ends = Vec::new();
    let mut reader = match Reader::open(directory, from.map(Lsn)) {
        Ok(reader) => reader.unwrap(),
        Err(trouble) => return (ends, Some(trouble)),
    };
    loop {
        match reader.next() {
            Ok(Some(chunk)) => ends.push(chunk.end.0),
            Ok(None) => return (ends, None),
            Err(trouble) => return (ends, Some(trouble)),
        }
    }
}

fn ends(directory: &Path) -> Vec<u64> {
    let (ends, trouble) = read(directory, None);
    assert!(trouble.is_none(), "{trouble:?}");
    ends
}

fn tens(from: u64, to: u64) -> Vec<u64> {
    (from..=to).step_by(10).collect()
}

fn the_file(directory: &Path) -> std::path::PathBuf {
    list(directory).unwrap().pop().unwrap().1
}

#[test]
fn a_torn_tail_is_cut_back_at_every_length() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    drop(spool(directory, tens(110, 140)));
    let path = the_file(directory);
    let whole = fs::read(&path).unwrap();
    let last = whole.len() - (CHUNK_HEADER_SIZE + entries(130, 30).len());
    for length in last..=whole.len() {
        fs::write(&path, &whole[..length]).unwrap();
        let is_whole = length == whole.len();
        let there = if is_whole { 140 } else { 130 };
        // Whoever reads before the agent has cut it back waits.
        let expected = [vec![100], tens(110, there)].concat();
        assert_eq!(ends(directory), expected, "{length}");
        let mut writer = open(directory);
        assert_eq!(writer.end(), Some(Lsn(there)));
        let kept = if is_whole { whole.len() } else { last };
        assert_eq!(fs::metadata(&path).unwrap().len(), kept as u64);
        write(&mut writer, tens(there + 10, 150));
        assert_eq!(ends(directory), [vec![100], tens(110, 150)].concat(), "{length}");
    }
}

#[test]
fn what_a_power_cut_has_left_of_a_tail_is_cut_back() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    drop(spool(directory, tens(110, 140)));
    let path = the_file(directory);
    let whole = fs::read(&path).unwrap();
    // The length was written, what is there was not.
    fs::write(&path, [whole.clone(), vec![0; 500]].concat()).unwrap();
    assert_eq!(ends(directory).last(), Some(&140));
    assert_eq!(open(directory).end(), Some(Lsn(140)));
    assert_eq!(fs::read(&path).unwrap(), whole);
    // So a block of the last chunk itself.
    let mut spoiled = whole.clone();
    let from = spoiled.len() - 20;
    spoiled[from..].fill(0);
    fs::write(&path, &spoiled).unwrap();
    assert_eq!(open(directory).end(), Some(Lsn(130)));
}

#[test]
fn a_reader_goes_on_where_a_tail_was_cut_back() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    drop(spool(directory, tens(110, 120)));
    let path = the_file(directory);
    let mut torn = fs::read(&path).unwrap();
    let half = torn[HEADER_SIZE..HEADER_SIZE + 60].to_vec();
    let mut reader = Reader::open(directory, None).unwrap().unwrap();
    while reader.next().unwrap().is_some() {}
    torn.extend(half);
    fs::write(&path, torn).unwrap();
    let mut writer = open(directory);
    write(&mut writer, [130]);
    assert_eq!(reader.next().unwrap().unwrap().end, Lsn(130));
}

#[test]
fn files_follow_one_another() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut writer = open(directory);
    writer.file_bytes_max = 200;
    // Catalogs alone are longer than a file should be: the next one must not take its place.
    writer.begin(Lsn(100), &entries(100, 300)).unwrap();
    write(&mut writer, tens(110, 190));
    drop(writer);
    let starts: Vec<u64> = list(directory).unwrap().iter().map(|(start, _)| start.0).collect();
    assert!(starts.len() > 3 && starts[0] == 100, "{starts:?}");
    // Whoever comes from the one before passes over the catalogs of the next.
    assert_eq!(ends(directory), [vec![100], tens(110, 190)].concat());

    // Whoever begins later begins where the transactions began that were open then.
    for after in starts[2]..190 {
        let newest = *starts.iter().rfind(|start| **start <= after).unwrap();
        let begun = *starts.iter().rfind(|start| **start <= newest - 15).unwrap();
        let expected = [vec![begun], tens(begun + 10, 190)].concat();
        assert_eq!(read(directory, Some(after)).0, expected, "after {after}");
    }

    // What replay is given again: the last file, from its catalogs on.
    let mut replayed = Vec::new();
    let writer = Writer::open(directory, identity(), 15, |entries| {
        replayed.push(Entry::read(entries).unwrap().0.start.0);
        Ok(())
    });
    assert_eq!(writer.unwrap().end(), Some(Lsn(190)));
    let last = *starts.last().unwrap();
    assert_eq!(replayed, [vec![last], tens(last, 180)].concat());

    // One that has not all of its catalogs is no file.
    let newest = path_of(directory, Lsn(200));
    let whole = fs::read(path_of(directory, Lsn(starts[1]))).unwrap();
    for length in 0..=HEADER_SIZE + CHUNK_HEADER_SIZE + 1 {
        fs::write(&newest, &whole[..length]).unwrap();
        assert_eq!(open(directory).end(), Some(Lsn(190)), "{length}");
        assert!(!newest.exists());
    }

    // One is missing; and one has lost its last chunk, or a part of it.
    let third = path_of(directory, Lsn(starts[2]));
    let whole = fs::read(&third).unwrap();
    fs::remove_file(&third).unwrap();
    let (found, trouble) = read(directory, None);
    assert_eq!(found.last(), Some(&starts[2]));
    assert_eq!(trouble.unwrap().kind(), Kind::NotThere);
    fs::write(&third, &whole[..whole.len() - 1]).unwrap();
    assert!(read(directory, None).1.is_some());
    fs::write(&third, whole).unwrap();
    assert_eq!(ends(directory).last(), Some(&190));

    // The oldest go, but never the last two.
    let writer = open(directory);
    let bytes: u64 = list(directory).unwrap().iter().map(|(_, path)| length_of(path)).sum();
    writer.remove_oldest(bytes).unwrap();
    assert_eq!(list(directory).unwrap().len(), starts.len());
    writer.remove_oldest(bytes - 1).unwrap();
    assert_eq!(list(directory).unwrap()[0].0.0, starts[1]);
    assert_eq!(read(directory, Some(starts[1] - 1)).1.unwrap().kind(), Kind::NotThere);
    writer.remove_oldest(0).unwrap();
    assert_eq!(list(directory).unwrap().len(), 2);
}

fn length_of(path: &Path) -> u64 {
    fs::metadata(path).unwrap().len()
}

#[test]
fn catalogs_are_there_whole_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    drop(spool(directory, [110]));
    // Half made by one that was killed.
    let unfinished = path_of(directory, Lsn(300)).with_extension("new");
    fs::write(&unfinished, "half").unwrap();
    assert_eq!(ends(directory), [100, 110]);
    assert_eq!(open(directory).end(), Some(Lsn(110)));
    assert!(!unfinished.exists());

    // As an older agent or a power cut may have left one: no chunk is whole.
    let path = the_file(directory);
    let whole = fs::read(&path).unwrap();
    for length in [HEADER_SIZE, HEADER_SIZE + 1, HEADER_SIZE + CHUNK_HEADER_SIZE + 3] {
        fs::write(&path, &whole[..length]).unwrap();
        let mut writer = open(directory);
        assert_eq!(writer.end(), None);
        assert!(!path.exists());
        writer.begin(Lsn(100), &entries(100, 50)).unwrap();
        write(&mut writer, [110]);
        assert_eq!(fs::read(&path).unwrap(), whole);
    }
    // Long ones are in several chunks, each of whole entries.
    let mut long = Vec::new();
    for _ in 0..9 {
        long.extend(entries(500, 1 << 20));
    }
    let mut writer = open(directory);
    writer.begin(Lsn(500), &long).unwrap();
    write(&mut writer, [510]);
    let mut reader = Reader::open(directory, Some(Lsn(500))).unwrap().unwrap();
    let mut all = Vec::new();
    while let Some(chunk) = reader.next().unwrap() {
        Entry::read(chunk.entries()).unwrap();
        all.push(chunk.entries().len());
    }
    assert_eq!(all.len(), 4, "{all:?}");
    assert_eq!(all[..3].iter().sum::<usize>(), long.len());
}

/// Lists a spool, and lets the agent remove the oldest file right behind each of the first looks.
fn removing(removed: &Rc<Cell<usize>>, times: usize) -> List {
    let removed = Rc::clone(removed);
    Box::new(move |directory| {
        let files = list(directory)?;
        if removed.get() < times {
            fs::remove_file(&files[0].1)?;
            removed.set(removed.get() + 1);
        }
        Ok(files)
    })
}

#[test]
fn a_file_that_goes_between_a_look_and_its_opening_is_none() {
    let spool = || {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = open(directory.path());
        writer.file_bytes_max = 200;
        writer.begin(Lsn(100), &entries(100, 50)).unwrap();
        write(&mut writer, tens(110, 190));
        let files = list(directory.path()).unwrap();
        assert!(files.len() > 4, "{files:?}");
        (directory, files)
    };
    let opened = |times: usize, after: Option<u64>| {
        let (directory, files) = spool();
        let removed = Rc::new(Cell::new(0));
        let list = removing(&removed, times);
        let reader = Reader::open_by(list, directory.path(), after.map(Lsn));
        (reader, removed.get(), files)
    };
    for times in 0..4 {
        let (reader, removed, files) = opened(times, None);
        assert_eq!(removed, times);
        assert_eq!(reader.unwrap().unwrap().header().start, files[times].0);
        // Whoever needs what has gone learns that.
        let (reader, _, files) = opened(times, Some(files[0].0.0));
        let kind = reader.err().map(|trouble| trouble.kind());
        assert_eq!(kind, (times > 0).then_some(Kind::NotThere), "{files:?}");
    }

    // The same with the file that comes next: what goes behind it is missing.
    let (directory, files) = spool();
    let goes = Rc::new(Cell::new(false));
    let list: List = Box::new({
        let (goes, second) = (Rc::clone(&goes), files[1].1.clone());
        move |directory| {
            let files = list(directory)?;
            if goes.take() {
                fs::remove_file(&second)?;
            }
            Ok(files)
        }
    });
    let mut reader = Reader::open_by(list, directory.path(), None).unwrap().unwrap();
    while reader.end() < files[1].0 {
        reader.next().unwrap().unwrap();
    }
    goes.set(true);
    let trouble = reader.next().err().unwrap();
    assert!(!goes.get());
    assert_eq!(trouble.kind(), Kind::NotThere);
    assert!(trouble.to_string().contains("are missing"), "{trouble}");

    // The control: a file that is listed and never there is told as it is, and not looked for for ever.
    let (directory, files) = spool();
    fs::remove_file(&files[0].1).unwrap();
    let looks = Rc::new(Cell::new(0));
    let list: List = Box::new({
        let looks = Rc::clone(&looks);
        move |_| {
            looks.set(looks.get() + 1);
            Ok(files.clone())
        }
    });
    let trouble = Reader::open_by(list, directory.path(), None).err().unwrap();
    assert_eq!((trouble.kind(), looks.get()), (Kind::Io, LOOKS_MAX));
}

#[test]
fn a_gap_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let mut writer = spool(directory, tens(110, 130));
    writer.begin(Lsn(200), &entries(200, 50)).unwrap();
    write(&mut writer, tens(210, 220));
    for from in [None, Some(100), Some(125), Some(199)] {
        let (ends, trouble) = read(directory, from);
        assert_eq!(ends, [100, 110, 120, 130]);
        let trouble = trouble.unwrap();
        assert_eq!(trouble.kind(), Kind::NotThere);
        assert!(trouble.to_string().contains("are missing"), "{trouble}");
    }
    for from in [200, 215] {
        assert_eq!(read(directory, Some(from)).0, [200, 210, 220]);
    }
    // Before all that is there, with the older file or without it.
    assert_eq!(read(directory, Some(99)).1.unwrap().kind(), Kind::NotThere);
    fs::remove_file(path_of(directory, Lsn(100))).unwrap();
    assert_eq!(read(directory, Some(130)).1.unwrap().kind(), Kind::NotThere);
    assert_eq!(read(directory, None).0, [200, 210, 220]);
}

#[test]
fn every_flipped_bit_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    drop(spool(directory, tens(110, 130)));
    let path = the_file(directory);
    let whole = fs::read(&path).unwrap();
    // The second look at each takes its time: one bit of each byte of the first two chunks' headers, and
    // some of their entries.
    let second = HEADER_SIZE + CHUNK_HEADER_SIZE + entries(100, 50).len();
    let heads = (HEADER_SIZE..HEADER_SIZE + CHUNK_HEADER_SIZE + 2)
        .chain(second..second + CHUNK_HEADER_SIZE + 2);
    for at in heads {
        let mut spoiled = whole.clone();
        spoiled[at] ^= 1 << (at % 8);
        fs::write(&path, spoiled).unwrap();
        let (ends, trouble) = read(directory, None);
        assert_eq!(trouble.map(|trouble| trouble.kind()), Some(Kind::Corrupt), "byte {at}");
        assert!(ends.len() <= 1);
    }
}
