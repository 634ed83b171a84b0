//! WAL segments: their size, numbers and file names.
//!
//! ```text
//! 00000001 00000016 000000B3            timeline, log, segment within the log: a segment
//! 0000000100000016000000B3.partial     its unfinished end, left by a promotion or pg_receivewal
//! 0000000100000016000000B3.0000D848.backup   where a base backup began
//! 00000002.history                      how timeline 2 came to be
//! ```
//!
//! Rules: `src/include/access/xlog_internal.h`.

use std::fmt;
use std::str::FromStr;

use crate::lsn::{Lsn, Timeline};

/// The size of a cluster's WAL segments: a power of two from 1 MB to 1 GB, fixed by `initdb`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentSize(u32);

impl SegmentSize {
    /// PostgreSQL's default, 16 MB.
    pub const DEFAULT: Self = Self(16 << 20);

    /// The size, if PostgreSQL would accept it.
    #[must_use]
    pub const fn new(bytes: u32) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 1 << 20 && bytes <= 1 << 30 {
            Some(Self(bytes))
        } else {
            None
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0 as u64
    }

    /// The segment that holds the byte at `lsn`.
    #[must_use]
    pub const fn segment_of(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.0 / self.bytes())
    }

    /// The segment that holds the last byte before `lsn`: for an exclusive end that lies on a
    /// segment border, the segment that just ended (`XLByteToPrevSeg`).
    #[must_use]
    pub const fn segment_before(self, lsn: Lsn) -> SegmentNumber {
        SegmentNumber(lsn.0.saturating_sub(1) / self.bytes())
    }

    /// How far into its segment `lsn` lies.
    #[must_use]
    pub const fn offset_of(self, lsn: Lsn) -> u64 {
        lsn.0 % self.bytes()
    }

    /// The first position of a segment.
    #[must_use]
    pub const fn start_of(self, segment: SegmentNumber) -> Lsn {
        Lsn(segment.0.saturating_mul(self.bytes()))
    }

    /// The first position after a segment.
    #[must_use]
    pub const fn end_of(self, segment: SegmentNumber) -> Lsn {
        Lsn(segment.0.saturating_add(1).saturating_mul(self.bytes()))
    }

    const fn segments_per_log(self) -> u64 {
        (1 << 32) / self.bytes()
    }
}

/// A segment's number within its timeline (`XLogSegNo`): LSN divided by segment size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentNumber(pub u64);

impl SegmentNumber {
    /// The segment after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

/// A segment's file name: 24 upper-case hexadecimal digits.
///
/// The last two groups depend on the segment size, so the name keeps them as they are; use
/// [`SegmentName::number`] with the cluster's size.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentName {
    /// The timeline whose file this is.
    pub timeline: Timeline,
    log: u32,
    segment: u32,
}

impl SegmentName {
    /// The name of a segment.
    #[must_use]
    pub fn new(timeline: Timeline, number: SegmentNumber, size: SegmentSize) -> Self {
        let per_log = size.segments_per_log();
        let log = number.0 / per_log;
        Self {
            timeline,
            log: u32::try_from(log).unwrap_or(u32::MAX),
            segment: u32::try_from(number.0 % per_log).unwrap_or(u32::MAX),
        }
    }

    /// The segment's number, or nothing if a cluster with segments of this size has no such file.
    #[must_use]
    pub fn number(self, size: SegmentSize) -> Option<SegmentNumber> {
        let per_log = size.segments_per_log();
        (u64::from(self.segment) < per_log)
            .then(|| SegmentNumber(u64::from(self.log) * per_log + u64::from(self.segment)))
    }
}

impl fmt::Display for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08X}{:08X}{:08X}", self.timeline.0, self.log, self.segment)
    }
}

impl fmt::Debug for SegmentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for SegmentName {
    type Err = NotAWalFile;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse()? {
            WalFileName::Segment(name) => Ok(name),
            _ => Err(NotAWalFile(text.to_owned())),
        }
    }
}

/// The names that `pg_wal` and WAL archives hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalFileName {
    /// A whole segment.
    Segment(SegmentName),
    /// A segment whose end is not there.
    Partial(SegmentName),
    /// A timeline's history.
    History(Timeline),
    /// Where in a segment a base backup began.
    Backup(SegmentName, u32),
}

/// A file name that is none of PostgreSQL's WAL file names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a WAL segment, history or backup file")]
pub struct NotAWalFile(String);

impl FromStr for WalFileName {
    type Err = NotAWalFile;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        fn hex(digits: &str) -> Option<u32> {
            let upper = |b: u8| b.is_ascii_digit() || (b'A'..=b'F').contains(&b);
            (digits.len() == 8 && digits.bytes().all(upper))
                .then(|| u32::from_str_radix(digits, 16).ok())
                .flatten()
        }
        fn segment(digits: &str) -> Option<SegmentName> {
            Some(SegmentName {
                timeline: Timeline(hex(digits.get(..8)?)?),
                log: hex(digits.get(8..16)?)?,
                segment: hex(digits.get(16..)?)?,
            })
        }
        let parsed = match text.split_once('.') {
            None => segment(text).map(Self::Segment),
            Some((stem, "partial")) => segment(stem).map(Self::Partial),
            Some((stem, "history")) => hex(stem).map(|tli| Self::History(Timeline(tli))),
            Some((stem, rest)) => rest
                .strip_suffix(".backup")
                .and_then(|offset| Some(Self::Backup(segment(stem)?, hex(offset)?))),
        };
        parsed.ok_or_else(|| NotAWalFile(text.to_owned()))
    }
}

impl fmt::Display for WalFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Segment(name) => name.fmt(f),
            Self::Partial(name) => write!(f, "{name}.partial"),
            Self::History(timeline) => write!(f, "{:08X}.history", timeline.0),
            Self::Backup(name, offset) => write!(f, "{name}.{offset:08X}.backup"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_for_every_segment_size() {
        for shift in 20..=30 {
            let size = SegmentSize::new(1 << shift).expect("a legal size");
            for lsn in [Lsn(0x100_0028), Lsn(0x16_B374_D848), Lsn(0xFFFF_FFFF_0000)] {
                let number = size.segment_of(lsn);
                let name = SegmentName::new(Timeline(3), number, size);
                assert_eq!(name.to_string().parse(), Ok(name));
                assert_eq!(name.number(size), Some(number));
                assert!(size.start_of(number) <= lsn && lsn < size.end_of(number));
            }
        }
        assert_eq!(SegmentSize::new(3 << 20), None);
        assert_eq!(SegmentSize::new(1 << 19), None);
    }

    #[test]
    fn file_names() {
        for text in [
            "0000000100000016000000B3",
            "0000000100000016000000B3.partial",
            "0000000100000016000000B3.0000D848.backup",
            "00000002.history",
        ] {
            assert_eq!(text.parse::<WalFileName>().expect("valid").to_string(), text);
        }
        for text in ["", "xlogtemp.12", "0000000100000016000000b3", "000000010000001600000 B3"] {
            assert!(text.parse::<WalFileName>().is_err(), "{text}");
        }
        let beyond: SegmentName = "000000010000000000000100".parse().expect("a name");
        assert_eq!(beyond.number(SegmentSize::DEFAULT), None);
    }
}
