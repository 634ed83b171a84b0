//! The machine's two clocks.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use walferry_wire::{Now, Stamp};

/// This moment. A wall clock that stands before 1970 gives 0.
pub(crate) fn now() -> Now {
    let wall = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|elapsed| i64::try_from(elapsed.as_micros()).ok())
        .unwrap_or(0);
    Now { monotonic: Instant::now(), wall: Stamp(wall) }
}
