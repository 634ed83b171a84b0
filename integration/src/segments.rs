//! WAL segments in a directory, as one run of bytes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use walfmt::wal_page::{WAL_PAGE_SIZE, header_size, page_start};
use walfmt::{Lsn, SegmentName, SegmentNumber, SegmentSize, Timeline, WalFileName};

/// The unbroken run of one timeline's segments that a directory begins with.
#[derive(Clone, Debug)]
pub struct Segments {
    directory: PathBuf,
    timeline: Timeline,
    size: SegmentSize,
    first: SegmentNumber,
    /// Behind the last.
    end: SegmentNumber,
}

impl Segments {
    /// Looks which segments of `timeline` are in `directory`.
    ///
    /// # Errors
    /// There is none, or one has not the size it should have.
    pub fn find(directory: &Path, timeline: Timeline, size: SegmentSize) -> Result<Self> {
        let mut numbers = BTreeSet::new();
        let entries = fs::read_dir(directory)
            .with_context(|| format!("cannot read {}", directory.display()))?;
        for entry in entries {
            let entry = entry.context("cannot read a directory entry")?;
            let name = entry.file_name();
            let Ok(WalFileName::Segment(segment)) = name.to_string_lossy().parse() else {
                continue;
            };
            if segment.timeline != timeline {
                continue;
            }
            let length = entry.metadata().context("cannot look at a segment")?.len();
            ensure!(length == size.bytes(), "{segment} has {length} bytes");
            numbers.insert(segment.number(size).context("a segment of another size")?);
        }
        let first = *numbers.first().context("no segments")?;
        let mut end = first;
        while numbers.contains(&end) {
            end = end.next();
        }
        Ok(Self { directory: directory.to_owned(), timeline, size, first, end })
    }

    /// Where they are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The first position.
    #[must_use]
    pub fn start(&self) -> Lsn {
        self.size.start_of(self.first)
    }

    /// The position behind the last segment. WAL may end before it.
    #[must_use]
    pub fn end(&self) -> Lsn {
        self.size.start_of(self.end)
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.end.0 - self.first.0
    }

    /// The segments' size.
    #[must_use]
    pub fn size(&self) -> SegmentSize {
        self.size
    }

    /// The file of the segment that holds the byte at `lsn`.
    #[must_use]
    pub fn path_of(&self, lsn: Lsn) -> PathBuf {
        let name = SegmentName::new(self.timeline, self.size.segment_of(lsn), self.size);
        self.directory.join(name.to_string())
    }

    /// Gives the bytes from `start` to `end` to `take`, in order and in pieces of at most
    /// `piece_length`, until it answers false.
    ///
    /// # Errors
    /// A segment cannot be read; or `take`'s own.
    pub fn read(
        &self,
        start: Lsn,
        end: Lsn,
        piece_length: usize,
        mut take: impl FnMut(&[u8]) -> Result<bool>,
    ) -> Result<()> {
        let mut piece = vec![0; piece_length];
        let mut position = start;
        while position < end {
            let path = self.path_of(position);
            let file =
                File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            let segment_end = end.min(self.size.end_of(self.size.segment_of(position)));
            while position < segment_end {
                let left = usize::try_from(segment_end.bytes_since(position)).unwrap_or(usize::MAX);
                let piece = &mut piece[..left.min(piece_length)];
                file.read_exact_at(piece, self.size.offset_of(position))
                    .with_context(|| format!("cannot read {}", path.display()))?;
                position = position.advance(piece.len() as u64);
                if !take(piece)? {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Where in the WAL the byte lies that is `offset` bytes into the record that begins at `start`: the
/// headers of pages stand between its pieces.
#[must_use]
pub fn position_of(start: Lsn, offset: u32, size: SegmentSize) -> Lsn {
    let (mut position, mut left) = (start, u64::from(offset));
    loop {
        let next_page = page_start(position).advance(WAL_PAGE_SIZE as u64);
        let here = next_page.bytes_since(position);
        if left < here {
            return position.advance(left);
        }
        left -= here;
        position = next_page.advance(header_size(next_page, size) as u64);
    }
}

/// Where the record of `length` bytes that begins at `start` ends, padding included: where the next one
/// begins, or the page whose header stands before it.
#[must_use]
pub fn end_of(start: Lsn, length: u32, size: SegmentSize) -> Lsn {
    position_of(start, length - 1, size).advance(1).align_up()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_pages_stand_between_the_pieces_of_a_record() {
        let size = SegmentSize::DEFAULT;
        let page = Lsn(5 * 8192);
        let before = |bytes| Lsn(page.0 - bytes);
        assert_eq!(end_of(before(128), 114, size), before(8));
        assert_eq!(end_of(before(128), 128, size), page);
        assert_eq!(end_of(before(64), 114, size), page.advance(24 + 56));
        assert_eq!(position_of(before(8), 20, size), page.advance(24 + 12));
        assert_eq!(position_of(before(8), 7, size), before(1));
        assert_eq!(end_of(before(64), 64 + 8168 + 3, size), page.advance(8192 + 24 + 8));
        let segment = size.start_of(SegmentNumber(3));
        assert_eq!(end_of(Lsn(segment.0 - 16), 26, size), segment.advance(40 + 16));
    }
}
