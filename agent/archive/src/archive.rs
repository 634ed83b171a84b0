//! The archive as a directory: which files there are, and what they are called.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use walfmt::{Lsn, SegmentName, SegmentNumber, SegmentSize, Timeline, WalFileName};

use crate::error::{ArchiveError, Result};
use crate::files::{File, FileError, Files};
use crate::frame::FrameFault;
use crate::reader::ArchiveReader;

/// How much WAL a zstd frame holds at most: a frame ends at each multiple of this. It bounds what
/// must be compressed anew for a follower that resumes in mid-frame. Every segment size is a
/// multiple of it.
pub const CELL_BYTES: u64 = 1 << 20;

/// More than any history file has; PostgreSQL writes some dozens of bytes per timeline.
const HISTORY_BYTES_MAX: usize = 1 << 20;

/// The archive of one cluster. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Archive {
    files: Arc<dyn Files>,
    dir: PathBuf,
    system_identifier: u64,
    segment_size: SegmentSize,
}

/// The segments of a timeline that follow each other without a gap up to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// The first.
    pub first: SegmentName,
    /// The last; it may be unfinished, or empty.
    pub last: SegmentName,
}

/// A file of the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFile {
    /// Its length.
    pub bytes: u64,
    /// When it was last written.
    pub modified: SystemTime,
}

impl Archive {
    /// The archive of a cluster under `root`; makes the directory
    /// `<root>/<system identifier in decimal>` if it is not there.
    pub fn open(
        files: Arc<dyn Files>,
        root: &Path,
        system_identifier: u64,
        segment_size: SegmentSize,
    ) -> Result<Self> {
        let dir = root.join(system_identifier.to_string());
        files.create_dir(&dir)?;
        files.sync_dir(root)?;
        Ok(Self { files, dir, system_identifier, segment_size })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whose WAL it is.
    #[must_use]
    pub fn system_identifier(&self) -> u64 {
        self.system_identifier
    }

    /// The cluster's segment size.
    #[must_use]
    pub fn segment_size(&self) -> SegmentSize {
        self.segment_size
    }

    /// The timelines that have segments here, ascending.
    pub fn timelines(&self) -> Result<Vec<Timeline>> {
        let mut timelines: Vec<_> =
            self.all_segments()?.iter().map(|segment| segment.timeline).collect();
        timelines.dedup();
        Ok(timelines)
    }

    /// The segments of a timeline, ascending. The last may be unfinished, or empty.
    pub fn segments(&self, timeline: Timeline) -> Result<Vec<SegmentName>> {
        let mut segments = self.all_segments()?;
        segments.retain(|segment| segment.timeline == timeline);
        Ok(segments)
    }

    /// The first segment of a timeline.
    pub fn first_segment(&self, timeline: Timeline) -> Result<Option<SegmentName>> {
        Ok(self.segments(timeline)?.first().copied())
    }

    /// The last segment of a timeline.
    pub fn last_segment(&self, timeline: Timeline) -> Result<Option<SegmentName>> {
        Ok(self.segments(timeline)?.last().copied())
    }

    /// The segments of a timeline that lie without a gap before its last.
    pub fn extent(&self, timeline: Timeline) -> Result<Option<Extent>> {
        let segments = self.segments(timeline)?;
        let Some(&last) = segments.last() else {
            return Ok(None);
        };
        let first = segments.iter().rev().copied().reduce(|later, earlier| {
            let follows = self.number(earlier).next() == self.number(later);
            if follows { earlier } else { later }
        });
        Ok(Some(Extent { first: first.unwrap_or(last), last }))
    }

    /// A segment's WAL, decoded and checked: all of it, or what there is of an unfinished one.
    /// [`ArchiveError::NotArchived`] if there is no such file.
    pub fn read_segment(&self, segment: SegmentName) -> Result<Vec<u8>> {
        let number = self.number(segment);
        let start = self.segment_size.start_of(number);
        let end = self.segment_size.end_of(number);
        if !self.has(segment)? {
            let have_from = self.first_segment(segment.timeline)?;
            return Err(ArchiveError::NotArchived { segment, have_from });
        }
        let mut reader = ArchiveReader::open(self, segment.timeline, start)?;
        let mut wal = Vec::new();
        while (wal.len() as u64) < end.bytes_since(start) {
            match reader.next(end)? {
                Some(chunk) => wal.extend_from_slice(chunk.wal),
                None => return Ok(wal),
            }
        }
        reader.finish_segment()?;
        Ok(wal)
    }

    /// A segment's file: how much it takes, and since when it is as it is.
    pub fn segment_file(&self, segment: SegmentName) -> Result<SegmentFile> {
        let file = self.files.open_read(&self.segment_path(segment))?;
        Ok(SegmentFile { bytes: file.len()?, modified: file.modified()? })
    }

    /// Removes a segment's file. For retention: the caller removes from the first segment on, so
    /// that no gap is made, and never the last.
    pub fn remove_segment(&self, segment: SegmentName) -> Result<()> {
        Ok(self.files.remove(&self.segment_path(segment))?)
    }

    /// A timeline's history file, or nothing if it is not here. Timeline 1 has none.
    pub fn history(&self, timeline: Timeline) -> Result<Option<Vec<u8>>> {
        let file = match self.files.open_read(&self.history_path(timeline)) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut bytes = vec![0; HISTORY_BYTES_MAX];
        let length = file.read_at(0, &mut bytes)?;
        bytes.truncate(length);
        Ok(Some(bytes))
    }

    pub(crate) fn files(&self) -> &dyn Files {
        &*self.files
    }

    pub(crate) fn segment_path(&self, segment: SegmentName) -> PathBuf {
        self.dir.join(format!("{segment}.zst"))
    }

    pub(crate) fn history_path(&self, timeline: Timeline) -> PathBuf {
        self.dir.join(WalFileName::History(timeline).to_string())
    }

    pub(crate) fn name(&self, timeline: Timeline, number: SegmentNumber) -> SegmentName {
        SegmentName::new(timeline, number, self.segment_size)
    }

    pub(crate) fn open_segment(&self, segment: SegmentName) -> Result<Option<Box<dyn File>>> {
        match self.files.open_read(&self.segment_path(segment)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn has(&self, segment: SegmentName) -> Result<bool> {
        Ok(self.open_segment(segment)?.is_some())
    }

    /// A listed name's number; one that no cluster with this segment size has is not listed.
    pub(crate) fn number(&self, segment: SegmentName) -> SegmentNumber {
        segment.number(self.segment_size).unwrap_or_default()
    }

    fn all_segments(&self) -> Result<Vec<SegmentName>, FileError> {
        let mut segments: Vec<SegmentName> = self
            .files
            .list(&self.dir)?
            .iter()
            .filter_map(|name| name.strip_suffix(".zst")?.parse().ok())
            .filter(|segment: &SegmentName| segment.number(self.segment_size).is_some())
            .collect();
        segments.sort_unstable();
        Ok(segments)
    }
}

/// The first position after the cell that holds the byte at `lsn`.
pub(crate) fn cell_end(lsn: Lsn) -> Lsn {
    Lsn((lsn.0 / CELL_BYTES).saturating_add(1).saturating_mul(CELL_BYTES))
}

pub(crate) fn corrupt(segment: SegmentName, offset: u64, fault: FrameFault) -> ArchiveError {
    ArchiveError::Corrupt { segment, offset, fault }
}
