//! Where segments are: a directory, what is known of the cluster it belongs to, and which file holds
//! which segment.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use walfmt::history::TimelineHistory;
use walfmt::wal_page::{
    LONG_HEADER_SIZE, SHORT_HEADER_SIZE, WAL_PAGE_SIZE, WalPageHeader, page_start,
};
use walfmt::{Lsn, SegmentName, SegmentNumber, SegmentSize, Timeline, Version, WalFileName};

use super::file::SegmentFile;
use crate::trouble::{Kind, Trouble};

/// A directory with WAL.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) directory: PathBuf,
    pub(super) segment_size: SegmentSize,
    pub(super) system_identifier: u64,
    /// Files that were named, for segments that may have others too.
    named: Vec<(SegmentName, PathBuf)>,
}

/// Which timeline each segment is read from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    /// Where it leads to.
    pub(super) target: Timeline,
    /// How it gets there; empty if it stays on the target.
    pub(super) history: TimelineHistory,
}

/// A segment's file, and how far it is to be believed.
pub(super) struct Opened {
    pub(super) file: SegmentFile,
    /// The way leaves the file's timeline here.
    pub(super) end: Lsn,
}

/// The forms that a segment's file may have, the best first.
const SUFFIXES: [&str; 3] = ["", ".zst", ".partial"];

/// No history file is longer, in bytes.
const HISTORY_BYTES_MAX: u64 = 1 << 20;

impl Place {
    /// Finds the first of these directories that has the file, or any segment if none is given.
    ///
    /// Each may also be a data directory with a `pg_wal`, or an archive of walferry with one system.
    pub(super) fn find(
        directories: &[PathBuf],
        named: &[(SegmentName, String)],
    ) -> Result<Self, Trouble> {
        let mut unreadable = None;
        for directory in directories {
            for directory in places_in(directory)? {
                let files = named.iter().map(|(name, file)| {
                    let exact = directory.join(file);
                    let other = || segment_paths(&directory, *name).find(|path| path.is_file());
                    let path = if exact.is_file() { Some(exact) } else { other() };
                    path.map(|path| (*name, path))
                });
                let Some(named) = files.collect::<Option<Vec<_>>>() else {
                    // Not there, or nobody lets us look.
                    if let Err(error) = fs::read_dir(&directory) {
                        unreadable.get_or_insert_with(|| failed(&directory)(error));
                    }
                    continue;
                };
                let mut candidates: Vec<_> = named.iter().map(|(_, path)| path.clone()).collect();
                let mut others = segments(&directory)?;
                others.sort_unstable();
                candidates.extend(others.into_iter().map(|(_, path)| path));
                for path in candidates {
                    match first_page(&path) {
                        Ok(Some((segment_size, system_identifier))) => {
                            return Ok(Self { directory, segment_size, system_identifier, named });
                        }
                        // A file that is there for WAL to come says nothing.
                        Ok(None) => {}
                        Err(error) => {
                            unreadable.get_or_insert_with(|| failed(&path)(error));
                        }
                    }
                }
            }
        }
        if let Some(trouble) = unreadable {
            return Err(trouble);
        }
        let places: Vec<_> = directories.iter().map(|path| path.display().to_string()).collect();
        let what = match named.first() {
            Some((_, file)) => format!("{file} with WAL"),
            None => "WAL".to_owned(),
        };
        let words = format!("there is no {what} in {}", places.join(", "));
        Err(Trouble::new(Kind::NotThere, words).with_hint(
            "--path takes the directory with the segments, a data directory, or an archive of walferry",
        ))
    }

    /// The segments that there are files for, in any order.
    pub(super) fn segments(&self) -> Result<Vec<SegmentName>, Trouble> {
        Ok(segments(&self.directory)?.into_iter().map(|(name, _)| name).collect())
    }

    /// Opens the file of a segment on the way; nothing if there is none.
    pub(super) fn open(
        &self,
        way: &Way,
        segment: SegmentNumber,
    ) -> Result<Option<Opened>, Trouble> {
        for (timeline, end) in way.timelines_of(segment, self.segment_size) {
            let name = SegmentName::new(timeline, segment, self.segment_size);
            let named =
                self.named.iter().filter(|(of, _)| *of == name).map(|(_, path)| path.clone());
            for path in named.chain(segment_paths(&self.directory, name)) {
                let failed = |error| failed(&path)(error);
                if let Some(file) = SegmentFile::open(path.clone()).map_err(failed)? {
                    return Ok(Some(Opened { file, end }));
                }
            }
        }
        Ok(None)
    }

    /// Whether the segment's file begins with WAL that belongs there.
    pub(super) fn has_begun(&self, way: &Way, segment: SegmentNumber) -> Result<bool, Trouble> {
        let Some(Opened { mut file, .. }) = self.open(way, segment)? else { return Ok(false) };
        let mut page = Vec::new();
        let read = file.read(0, LONG_HEADER_SIZE, &mut page);
        if read.is_err() {
            return Ok(false); // whoever reads it says so
        }
        let header = WalPageHeader::from_bytes(&page);
        let address = self.segment_size.start_of(segment);
        Ok(header.is_some_and(|header| {
            header.address == address
                && header.long.is_some_and(|long| long.system_identifier == self.system_identifier)
        }))
    }

    /// Whether more was written in the segment behind the page of `at` than the rest of one record, if one
    /// was begun there.
    pub(super) fn goes_on_within(
        &self,
        way: &Way,
        at: Lsn,
        mut is_rest: bool,
    ) -> Result<bool, Trouble> {
        let segment = self.segment_size.segment_of(at);
        let Some(Opened { mut file, .. }) = self.open(way, segment)? else { return Ok(false) };
        let mut header = Vec::new();
        let mut page = page_start(at).advance(WAL_PAGE_SIZE as u64);
        while page < self.segment_size.end_of(segment) {
            let offset = self.segment_size.offset_of(page);
            let read = file.read(offset, SHORT_HEADER_SIZE, &mut header);
            if read.is_err() || header.len() < SHORT_HEADER_SIZE {
                break;
            }
            let found = WalPageHeader::from_bytes(&header).filter(|header| {
                header.address == page
                    && way.has(header.timeline)
                    && Version::from_page_magic(header.magic).is_some()
            });
            match found {
                Some(header) if !is_rest || !header.first_is_contrecord() => return Ok(true),
                // Behind the page where it ends nothing belongs to it.
                Some(header) => {
                    is_rest = header.remaining_length as usize > WAL_PAGE_SIZE - SHORT_HEADER_SIZE;
                }
                None => is_rest = false,
            }
            page = page.advance(WAL_PAGE_SIZE as u64);
        }
        Ok(false)
    }

    /// The way from `from` to the newest timeline that a history file here leads to, and what is wrong with
    /// those that cannot be read.
    pub(super) fn newest_way(&self, from: Timeline) -> Result<(Way, Vec<Trouble>), Trouble> {
        let (mut newest, mut unreadable) = (Way::stay(from), Vec::new());
        for name in names(&self.directory)? {
            let Ok(WalFileName::History(timeline)) = name.parse() else { continue };
            if timeline <= newest.target {
                continue;
            }
            let way = match self.way_to(timeline) {
                Ok(way) => way,
                Err(trouble) => {
                    unreadable.push(trouble);
                    continue;
                }
            };
            if way.history.ancestors.iter().any(|ancestor| ancestor.timeline == from) {
                newest = way;
            }
        }
        Ok((newest, unreadable))
    }

    /// The way to a timeline, by its history file.
    pub(super) fn way_to(&self, target: Timeline) -> Result<Way, Trouble> {
        let path = self.directory.join(WalFileName::History(target).to_string());
        let text = match read_history(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Way::stay(target)),
            Err(error) => return Err(failed(&path)(error)),
        };
        let history = TimelineHistory::parse(target, &text).map_err(|error| {
            Trouble::new(Kind::Corrupt, format_args!("{}: {error}", path.display()))
        })?;
        Ok(Way { target, history })
    }
}

impl Way {
    pub(super) fn stay(target: Timeline) -> Self {
        Self { target, history: TimelineHistory::default() }
    }

    /// Whether it leads through a timeline.
    pub(super) fn has(&self, timeline: Timeline) -> bool {
        timeline == self.target
            || self.history.ancestors.iter().any(|ancestor| ancestor.timeline == timeline)
    }

    /// The timelines that may have a segment, newest first, each with the position where the way
    /// leaves it. The newest one's file has what the others wrote in the segment, too.
    fn timelines_of(
        &self,
        segment: SegmentNumber,
        size: SegmentSize,
    ) -> impl Iterator<Item = (Timeline, Lsn)> {
        let (start, end) = (size.start_of(segment), size.end_of(segment));
        let own = (self.target, Lsn(u64::MAX));
        let ancestors = self.history.ancestors.iter().map(|of| (of.timeline, of.end));
        let ends: Vec<_> = ancestors.chain([own]).collect();
        let mut begin = Lsn::INVALID;
        let mut here = Vec::new();
        for (timeline, until) in ends {
            if begin < end && until > start {
                here.push((timeline, until));
            }
            begin = until;
        }
        here.into_iter().rev()
    }
}

/// The directories that are meant by one.
fn places_in(directory: &Path) -> Result<Vec<PathBuf>, Trouble> {
    let mut places = vec![directory.to_owned(), directory.join("pg_wal")];
    let is_system = |name: &String| name.bytes().all(|byte| byte.is_ascii_digit());
    let systems: Vec<_> = match names(directory) {
        Ok(names) => names.into_iter().filter(is_system).map(|name| directory.join(name)).collect(),
        Err(_) => Vec::new(),
    };
    let systems: Vec<_> = systems.into_iter().filter(|path| path.is_dir()).collect();
    match &systems[..] {
        [system] => places.push(system.clone()),
        [] => {}
        // A directory of PostgreSQL's has such names too, below `base`; there is no WAL in them.
        _ => {
            for system in systems {
                if !segments(&system)?.is_empty() {
                    places.push(system);
                }
            }
            if places.len() > 3 {
                let words =
                    format_args!("{} holds WAL of more than one system", directory.display());
                return Err(Trouble::misuse(words)
                    .with_hint("choose one of the directories in it with --path"));
            }
        }
    }
    places.retain(|place| place.is_dir());
    Ok(places)
}

fn segment_paths(directory: &Path, name: SegmentName) -> impl Iterator<Item = PathBuf> {
    SUFFIXES.iter().map(move |suffix| directory.join(format!("{name}{suffix}")))
}

/// The segment that a file's name speaks of.
pub(super) fn segment_of_file(name: &str) -> Option<SegmentName> {
    match name.strip_suffix(".zst").unwrap_or(name).parse() {
        Ok(WalFileName::Segment(segment) | WalFileName::Partial(segment)) => Some(segment),
        _ => None,
    }
}

fn segments(directory: &Path) -> Result<Vec<(SegmentName, PathBuf)>, Trouble> {
    let names = names(directory)?;
    let segment = |name: String| Some((segment_of_file(&name)?, directory.join(name)));
    Ok(names.into_iter().filter_map(segment).collect())
}

fn names(directory: &Path) -> Result<Vec<String>, Trouble> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed(directory))? {
        // What is not UTF-8 is no name of PostgreSQL's.
        names.extend(entry.map_err(failed(directory))?.file_name().into_string());
    }
    Ok(names)
}

/// What the first page of a file says, if it is a segment's.
fn first_page(path: &Path) -> io::Result<Option<(SegmentSize, u64)>> {
    let mut page = Vec::new();
    let Some(mut file) = SegmentFile::open(path.to_owned())? else { return Ok(None) };
    file.read(0, LONG_HEADER_SIZE, &mut page)?;
    Ok(WalPageHeader::from_bytes(&page).and_then(|header| {
        let long = header.long?;
        let size = SegmentSize::new(long.segment_size)?;
        Version::from_page_magic(header.magic).map(|_| (size, long.system_identifier))
    }))
}

/// A history file, which has a line for each promotion there was.
fn read_history(path: &Path) -> io::Result<String> {
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "not a regular file"));
    }
    let mut text = String::new();
    let read = fs::File::open(path)?.take(HISTORY_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > HISTORY_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too long for a history file"));
    }
    Ok(text)
}

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> Trouble {
    let what = path.display().to_string();
    move |error| Trouble::io(what, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_leads_through_each_timeline_that_wrote_in_a_segment() {
        let history = TimelineHistory::parse(Timeline(3), "1\t0/2000100\tx\n2\t0/4000000\ty\n");
        let way = Way { target: Timeline(3), history: history.expect("a history") };
        let of = |number| {
            let found = way.timelines_of(SegmentNumber(number), SegmentSize::DEFAULT);
            found.map(|(timeline, end)| (timeline.0, end.0)).collect::<Vec<_>>()
        };
        assert_eq!(of(1), [(1, 0x200_0100)]);
        assert_eq!(of(2), [(2, 0x400_0000), (1, 0x200_0100)]);
        assert_eq!(of(3), [(2, 0x400_0000)]);
        assert_eq!(of(4), [(3, u64::MAX)]);
    }

    #[test]
    fn segment_files_are_known_by_their_names() {
        for name in ["000000010000000000000002", "000000010000000000000002.zst"] {
            assert!(segment_of_file(name).is_some(), "{name}");
        }
        assert!(segment_of_file("000000010000000000000002.partial").is_some());
        for name in ["00000002.history", "000000010000000000000002.00000028.backup", "x", ".zst"] {
            assert!(segment_of_file(name).is_none(), "{name}");
        }
    }
}
