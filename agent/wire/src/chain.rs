//! The chain that the WAL of one connection forms: no gap, no overlap, no half frame at the start.

use walfmt::{Lsn, SegmentSize, Timeline};

use crate::message::Chunk;

/// A chunk that does not continue what was there before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokenChain {
    /// WAL was left out or comes a second time.
    #[error("WAL data starts at {found}, expected {expected}")]
    Start {
        /// Where the data before ended.
        expected: Lsn,
        /// Where this data starts.
        found: Lsn,
    },
    /// WAL of another timeline than the one the follower asked for.
    #[error("WAL data at {at} is of timeline {found}, expected {expected}")]
    Timeline {
        /// Where this data starts.
        at: Lsn,
        /// The timeline of the follower's hello.
        expected: Timeline,
        /// The timeline of the data.
        found: Timeline,
    },
    /// The data would have to lie in two segment files.
    #[error("WAL data from {start} to {end} crosses a segment border at {border}")]
    AcrossSegments {
        /// Where this data starts.
        start: Lsn,
        /// Where it ends.
        end: Lsn,
        /// The end of the segment it starts in.
        border: Lsn,
    },
    /// A frame must begin where a connection or a segment file begins.
    #[error("WAL data at {at} goes on with a compressed frame, expected the start of one")]
    NoFrameStart {
        /// Where this data starts.
        at: Lsn,
    },
}

/// Where the WAL of one connection stands. Both sides keep one: the leader so as not to send
/// what the follower would have to refuse.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    timeline: Timeline,
    segment_size: SegmentSize,
    next: Lsn,
    /// A frame was started on this connection, so there is one to go on with.
    in_frame: bool,
}

impl Chain {
    pub(crate) const fn new(timeline: Timeline, segment_size: SegmentSize, start: Lsn) -> Self {
        Self { timeline, segment_size, next: start, in_frame: false }
    }

    /// Where the next chunk must start.
    pub(crate) const fn next(&self) -> Lsn {
        self.next
    }

    /// Takes a chunk, if it is the next one. An error leaves the chain as it was.
    pub(crate) fn advance(&mut self, chunk: &Chunk) -> Result<(), BrokenChain> {
        let Chunk { timeline, start, end, starts_frame, .. } = *chunk;
        if start != self.next {
            return Err(BrokenChain::Start { expected: self.next, found: start });
        }
        if timeline != self.timeline {
            let expected = self.timeline;
            return Err(BrokenChain::Timeline { at: start, expected, found: timeline });
        }
        let border = self.segment_size.end_of(self.segment_size.segment_of(start));
        if end > border {
            return Err(BrokenChain::AcrossSegments { start, end, border });
        }
        // A chunk without WAL on a border is the end of the last frame of the segment before.
        let starts_segment = end > start && self.segment_size.offset_of(start) == 0;
        if !starts_frame && (!self.in_frame || starts_segment) {
            return Err(BrokenChain::NoFrameStart { at: start });
        }
        self.in_frame = true;
        self.next = end;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    const BORDER: u64 = 0x200_0000;

    fn chunk(start: u64, end: u64, starts_frame: bool) -> Chunk {
        let bytes = Bytes::from_static(b"x");
        Chunk { timeline: Timeline(1), start: Lsn(start), end: Lsn(end), starts_frame, bytes }
    }

    fn chain(start: u64) -> Chain {
        Chain::new(Timeline(1), SegmentSize::DEFAULT, Lsn(start))
    }

    #[test]
    fn an_unbroken_chain_is_taken() {
        let mut chain = chain(BORDER - 64);
        for next in [
            chunk(BORDER - 64, BORDER - 32, true),
            chunk(BORDER - 32, BORDER, false),
            chunk(BORDER, BORDER, false), // the end of the frame, no WAL in it
            chunk(BORDER, BORDER + 8, true),
        ] {
            assert_eq!(chain.advance(&next), Ok(()));
        }
        assert_eq!(chain.next(), Lsn(BORDER + 8));
    }

    #[test]
    fn every_break_is_seen_and_changes_nothing() {
        let mut chain = chain(BORDER - 64);
        let broken = |chain: &mut Chain, chunk: Chunk| chain.advance(&chunk).expect_err("broken");

        let error = broken(&mut chain, chunk(BORDER - 64, BORDER - 32, false));
        assert_eq!(error, BrokenChain::NoFrameStart { at: Lsn(BORDER - 64) });
        assert_eq!(chain.advance(&chunk(BORDER - 64, BORDER - 32, true)), Ok(()));

        let expected = Lsn(BORDER - 32);
        for found in [BORDER - 64, BORDER - 31, BORDER] {
            let error = broken(&mut chain, chunk(found, BORDER + 8, true));
            assert_eq!(error, BrokenChain::Start { expected, found: Lsn(found) });
        }
        let other = Chunk { timeline: Timeline(2), ..chunk(BORDER - 32, BORDER, false) };
        assert!(matches!(broken(&mut chain, other), BrokenChain::Timeline { .. }));

        let error = broken(&mut chain, chunk(BORDER - 32, BORDER + 1, false));
        assert!(matches!(error, BrokenChain::AcrossSegments { border: Lsn(BORDER), .. }));

        assert_eq!(chain.advance(&chunk(BORDER - 32, BORDER, false)), Ok(()));
        let error = broken(&mut chain, chunk(BORDER, BORDER + 8, false));
        assert_eq!(error, BrokenChain::NoFrameStart { at: Lsn(BORDER) });
    }
}
