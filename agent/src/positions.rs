//! Every WAL position this node knows, in one place.
//!
//! ```text
//! leader:    server write ≥ server flush        source_durable ≥ appended ≥ durable
//! follower:                                     received ≥ durable ≥ replayed, decoded
//! ```
//!
//! Acknowledgements, metrics, status and retention read them here; nothing else keeps a copy. A
//! position only ever grows: a smaller value is not taken. That `durable` or `replayed` never
//! passes what it depends on is asserted, because a follower that claims more than it has is the
//! one mistake that loses data.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use walferry_wire::{LagClock, Now};
use walfmt::Lsn;

/// One of a node's positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    /// End of the whole records of `pg_wal` that a completed `fdatasync` of ours covers.
    SourceDurable,
    /// End of what readers of the archive may read on the source node.
    Appended,
    /// End of what has been received, checked and written.
    Received,
    /// End of what is synced in this node's archive.
    Durable,
    /// End of the last record whose effects, and those of all before it, are in the store.
    Replayed,
    /// All rows before it are in the row spool.
    Decoded,
    /// Where the store would begin to replay after a crash: WAL from here on is needed.
    RestartPoint,
    /// The server's own word of what it has flushed. Evidence and metric, never a bound.
    ServerFlush,
}

impl Position {
    pub(crate) const ALL: [Self; 8] = [
        Self::SourceDurable,
        Self::Appended,
        Self::Received,
        Self::Durable,
        Self::Replayed,
        Self::Decoded,
        Self::RestartPoint,
        Self::ServerFlush,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::SourceDurable => "source_durable",
            Self::Appended => "appended",
            Self::Received => "received",
            Self::Durable => "durable",
            Self::Replayed => "replayed",
            Self::Decoded => "decoded",
            Self::RestartPoint => "restart_point",
            Self::ServerFlush => "server_flush",
        }
    }

    /// What this position may never pass, on any node.
    const fn bound(self) -> Option<Self> {
        match self {
            Self::Appended => Some(Self::SourceDurable),
            Self::Replayed => Some(Self::Durable),
            _ => None,
        }
    }
}

/// What a follower has told us of itself.
#[derive(Clone, Debug)]
pub(crate) struct Follower {
    /// More than one for a moment, when it came back before its old connection was given up.
    pub(crate) connections: usize,
    /// End of what has been sent to it.
    pub(crate) shipped: Lsn,
    pub(crate) received: Lsn,
    pub(crate) durable: Lsn,
    pub(crate) replayed: Lsn,
    /// From where on it may ask for WAL; invalid before it is known.
    pub(crate) needs: Lsn,
    /// Bytes of the archive that were sent to it.
    pub(crate) sent_bytes: u64,
    /// When something was last heard of it.
    heard_at: Instant,
    /// Since when there has been WAL that it does not have.
    lag_clock: LagClock,
}

/// How many followers are remembered. Those that are gone the longest are forgotten.
const FOLLOWERS_MAX: usize = 128;
/// The clock of this node's own positions is looked at more often than that.
const CLOCK_FRESH: Duration = Duration::from_secs(3);

/// How far a follower is behind this node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FollowerLag {
    /// `replayed`; `durable` of a follower without a store.
    pub(crate) to: Position,
    pub(crate) bytes: u64,
    pub(crate) seconds: f64,
}

impl Follower {
    fn new(now: Instant) -> Self {
        Self {
            connections: 0,
            shipped: Lsn::INVALID,
            received: Lsn::INVALID,
            durable: Lsn::INVALID,
            replayed: Lsn::INVALID,
            needs: Lsn::INVALID,
            sent_bytes: 0,
            heard_at: now,
            lag_clock: LagClock::new(now, CLOCK_FRESH),
        }
    }

    /// How far it is behind `end`; nothing before it has reported anything.
    pub(crate) fn lag(&mut self, now: Instant, end: Lsn) -> Option<FollowerLag> {
        let (to, reached) = match (self.replayed.is_valid(), self.durable.is_valid()) {
            (true, _) => (Position::Replayed, self.replayed),
            (false, true) => (Position::Durable, self.durable),
            (false, false) => return None,
        };
        let seconds = self.lag_clock.lag_seconds(now, reached)?;
        Some(FollowerLag { to, bytes: end.bytes_since(reached), seconds })
    }

    /// What it acknowledges now. What it had once it has still, even while it replays again from
    /// its restart point.
    pub(crate) fn acknowledge(&mut self, received: Lsn, durable: Lsn, replayed: Lsn) {
        self.received = self.received.max(received);
        self.durable = self.durable.max(durable);
        self.replayed = self.replayed.max(replayed);
        self.needs = self.needs.max(durable);
    }
}

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Positions {
    values: [AtomicU64; Position::ALL.len()],
    generation: Mutex<u64>,
    changed: Condvar,
    notify: watch::Sender<u64>,
    followers: Mutex<BTreeMap<String, Follower>>,
}

impl Positions {
    pub(crate) fn new() -> Self {
        Self {
            values: Default::default(),
            generation: Mutex::new(0),
            changed: Condvar::new(),
            notify: watch::Sender::new(0),
            followers: Mutex::default(),
        }
    }

    pub(crate) fn get(&self, position: Position) -> Lsn {
        Lsn(self.values[position as usize].load(Ordering::Acquire))
    }

    /// Raises a position. A smaller value than the present one changes nothing.
    pub(crate) fn advance(&self, position: Position, lsn: Lsn) {
        if let Some(bound) = position.bound() {
            let limit = self.get(bound);
            assert!(lsn <= limit, "{position:?} {lsn} would pass {bound:?} {limit}");
        }
        let before = self.values[position as usize].fetch_max(lsn.0, Ordering::AcqRel);
        if before < lsn.0 {
            self.wake();
        }
    }

    /// Wakes everyone who waits, without a change: for a stop.
    pub(crate) fn wake(&self) {
        let generation = {
            let mut generation = lock(&self.generation);
            *generation += 1;
            *generation
        };
        self.changed.notify_all();
        self.notify.send_replace(generation);
    }

    /// For threads: waits until a position passes `lsn`, something else wakes this up, or `limit`
    /// has passed; gives the position.
    pub(crate) fn wait_beyond(&self, position: Position, lsn: Lsn, limit: Duration) -> Lsn {
        let deadline = Instant::now() + limit;
        let mut generation = lock(&self.generation);
        let first = *generation;
        loop {
            let now = self.get(position);
            let left = deadline.saturating_duration_since(Instant::now());
            if now > lsn || *generation != first || left.is_zero() {
                return now;
            }
            let (again, _) =
                self.changed.wait_timeout(generation, left).unwrap_or_else(PoisonError::into_inner);
            generation = again;
        }
    }

    /// For async code: a receiver whose `changed()` completes when any position has grown.
    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.notify.subscribe()
    }

    /// Changes what is known of a follower.
    pub(crate) fn with_follower(&self, name: &str, change: impl FnOnce(&mut Follower)) {
        {
            let mut followers = lock(&self.followers);
            let now = Instant::now();
            if !followers.contains_key(name) && followers.len() >= FOLLOWERS_MAX {
                forget_one(&mut followers);
            }
            let new = || Follower::new(now);
            let follower = followers.entry(name.to_owned()).or_insert_with(new);
            change(follower);
            follower.heard_at = now;
        }
        self.wake();
    }

    /// From where on the followers need WAL that are connected, or were heard of within `expected`;
    /// nothing if there are none.
    pub(crate) fn needed_by_followers(&self, expected: Duration) -> Option<Lsn> {
        let counts = |follower: &&Follower| {
            follower.connections > 0 || follower.heard_at.elapsed() < expected
        };
        lock(&self.followers).values().filter(counts).map(|follower| follower.needs).min()
    }

    /// This node has WAL up to `end`, now: from that the followers' lag in seconds is known.
    pub(crate) fn note_time(&self, now: Now, end: Lsn) {
        for follower in lock(&self.followers).values_mut() {
            follower.lag_clock.note(now.monotonic, now.wall, end);
            // So that what it has caught up with is forgotten.
            let _ = follower.lag(now.monotonic, end);
        }
    }

    pub(crate) fn followers(&self) -> BTreeMap<String, Follower> {
        lock(&self.followers).clone()
    }
}

fn forget_one(followers: &mut BTreeMap<String, Follower>) {
    let gone = followers.iter().filter(|(_, follower)| follower.connections == 0);
    let longest = gone.min_by_key(|(_, follower)| follower.heard_at).map(|(name, _)| name.clone());
    if let Some(name) = longest {
        followers.remove(&name);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_only_grow() {
        let positions = Positions::new();
        positions.advance(Position::Durable, Lsn(100));
        positions.advance(Position::Durable, Lsn(50));
        assert_eq!(positions.get(Position::Durable), Lsn(100));
        positions.advance(Position::Replayed, Lsn(100));
    }

    #[test]
    #[should_panic(expected = "would pass")]
    fn nothing_is_replayed_before_it_is_durable() {
        let positions = Positions::new();
        positions.advance(Position::Durable, Lsn(100));
        positions.advance(Position::Replayed, Lsn(101));
    }

    #[test]
    fn followers_lag_by_this_nodes_own_clock() {
        let (positions, begun) = (Positions::new(), Instant::now());
        let at = |millis: u64| Now {
            monotonic: begun + Duration::from_millis(millis),
            wall: walferry_wire::Stamp(i64::try_from(millis * 1000).expect("small") + 1),
        };
        let lag = |millis: u64| {
            let mut follower = positions.followers().remove("f").expect("known");
            let lag = follower.lag(at(millis).monotonic, Lsn(1000)).expect("it has reported");
            (lag.to, lag.bytes, (lag.seconds * 10.0).round() / 10.0)
        };
        positions.with_follower("f", |f| f.acknowledge(Lsn(900), Lsn(900), Lsn::INVALID));
        assert!(positions.followers().remove("f").expect("known").lag(begun, Lsn(1)).is_none());
        positions.note_time(at(0), Lsn(900));
        positions.note_time(at(100), Lsn(1000));
        assert_eq!(lag(2_100), (Position::Durable, 100, 2.0));
        positions.note_time(at(2_000), Lsn(1000));
        assert_eq!(lag(9_100), (Position::Durable, 100, 9.0), "it grows with time alone");
        positions.with_follower("f", |f| f.acknowledge(Lsn(1000), Lsn(1000), Lsn(950)));
        assert_eq!(lag(9_200), (Position::Replayed, 50, 9.1));
        positions.with_follower("f", |f| f.acknowledge(Lsn(1000), Lsn(1000), Lsn(1000)));
        positions.note_time(at(9_300), Lsn(1000));
        assert_eq!(lag(9_400), (Position::Replayed, 0, 0.0));
    }

    #[test]
    fn followers_that_are_gone_are_forgotten_one_day() {
        let positions = Positions::new();
        positions.with_follower("stays", |follower| follower.connections = 1);
        for number in 0..2 * FOLLOWERS_MAX {
            positions.with_follower(&format!("f{number}"), |_| {});
        }
        let left = positions.followers();
        assert_eq!(left.len(), FOLLOWERS_MAX);
        assert!(left.contains_key("stays") && !left.contains_key("f0"));
    }

    #[test]
    fn a_thread_waits_for_a_position() {
        let positions = Positions::new();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| {
                let mut at = Lsn::INVALID;
                while at < Lsn(8) {
                    at = positions.wait_beyond(Position::Durable, at, Duration::from_secs(10));
                }
                at
            });
            positions.advance(Position::Durable, Lsn(8));
            assert_eq!(waiter.join().expect("waiter"), Lsn(8));
        });
    }
}
