//! The time, always given by the caller.

use std::time::Instant;

/// A moment by some machine's wall clock: microseconds since the Unix epoch.
///
/// Two stamps are only comparable when the same machine gave both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub i64);

/// What the caller's two clocks say at one moment.
///
/// Deadlines go by the monotonic clock, which nobody sets. The wall clock is only ever sent to the
/// peer, never compared with here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// The monotonic clock.
    pub monotonic: Instant,
    /// The wall clock.
    pub wall: Stamp,
}
