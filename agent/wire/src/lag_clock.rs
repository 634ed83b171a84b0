//! How many seconds a follower is behind.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use walfmt::Lsn;

use crate::time::Stamp;

/// Lag in seconds, from what the leader says of itself: "at this time by my clock, WAL was durable
/// up to here".
///
/// - Zero when everything heard of is replayed and the leader was heard from lately. An idle leader
///   sends heartbeats, so an idle follower has no lag.
/// - Behind: the time since the leader first had the oldest WAL that is not replayed.
/// - Disconnected: it grows, also when all that was heard of is replayed. WAL that turns up after a
///   silence may be as old as the silence, and counts as that old until it is replayed.
///
/// The last two err upwards. There is one case in which it reads too low: a clock that was made a
/// moment ago does not know when the WAL it first hears of was written.
///
/// The clocks of the two machines need not agree, only run equally fast. The difference between
/// them is estimated as the smallest seen lately between a stamp and its arrival, so a message that
/// waited in a buffer counts as late.
///
/// Memory is bounded: past [`LagClock::ENTRIES_MAX`] remembered positions neighbours are merged, so
/// that a lag of hours is still known within a few seconds.
#[derive(Clone, Debug)]
pub struct LagClock {
    started: Instant,
    fresh_for: i64,
    newest: Option<Heard>,
    /// WAL that was not replayed when last asked: `since` never falls and `end` rises.
    unreached: VecDeque<Unreached>,
    /// Entries begin at least this far apart.
    spacing: i64,
    clocks: ClockDifference,
}

/// The newest thing the leader said. All times are in microseconds.
#[derive(Clone, Copy, Debug)]
struct Heard {
    /// By the leader's clock.
    stamp: i64,
    /// By ours, since `started`.
    at: i64,
    source_durable: Lsn,
}

/// A stretch of WAL: from the end of the entry before to `end`, none of it older than `since`.
#[derive(Clone, Copy, Debug)]
struct Unreached {
    since: i64,
    end: Lsn,
}

impl LagClock {
    /// How many positions are remembered at most.
    pub const ENTRIES_MAX: usize = 1024;

    const SPACING_MIN: i64 = 1_000;

    /// A clock that has heard nothing. Silence is normal for `fresh_for`: a few times the leader's
    /// heartbeat interval.
    #[must_use]
    pub fn new(now: Instant, fresh_for: Duration) -> Self {
        Self {
            started: now,
            fresh_for: micros(fresh_for),
            newest: None,
            unreached: VecDeque::new(),
            spacing: Self::SPACING_MIN,
            clocks: ClockDifference::default(),
        }
    }

    /// The leader said, in a [`Data`](crate::Data) or a [`Heartbeat`](crate::Heartbeat), that WAL
    /// was durable at its source up to `source_durable` at `stamp`.
    pub fn note(&mut self, now: Instant, stamp: Stamp, source_durable: Lsn) {
        let (at, stamp) = (self.elapsed(now), stamp.0);
        let mut since = stamp;
        let mut known = Lsn::INVALID;
        if let Some(newest) = self.newest {
            if stamp < newest.stamp {
                self.leader_clock_set_back(newest.stamp.saturating_sub(stamp));
            } else if stamp.saturating_sub(newest.stamp) > self.fresh_for {
                since = newest.stamp;
            }
            known = newest.source_durable;
        }
        self.clocks.observe(at, stamp);
        if source_durable > known {
            self.push(Unreached { since, end: source_durable });
        }
        self.newest = Some(Heard { stamp, at, source_durable: known.max(source_durable) });
    }

    /// The lag of a follower that has replayed up to `replayed`, or nothing if the leader was never
    /// heard from. `replayed` must not go back.
    pub fn lag(&mut self, now: Instant, replayed: Lsn) -> Option<Duration> {
        let newest = self.newest?;
        while self.unreached.front().is_some_and(|entry| entry.end <= replayed) {
            self.unreached.pop_front();
        }
        if self.unreached.len() < Self::ENTRIES_MAX / 4 {
            self.spacing = (self.spacing / 2).max(Self::SPACING_MIN);
        }
        let at = self.elapsed(now);
        let since = match self.unreached.front() {
            Some(oldest) => oldest.since,
            None if at.saturating_sub(newest.at) <= self.fresh_for => return Some(Duration::ZERO),
            None => newest.stamp,
        };
        let lag = self.clocks.leader_time(at)?.saturating_sub(since);
        Some(Duration::from_micros(u64::try_from(lag).unwrap_or(0)))
    }

    /// [`LagClock::lag`] as a metric wants it.
    pub fn lag_seconds(&mut self, now: Instant, replayed: Lsn) -> Option<f64> {
        self.lag(now, replayed).map(|lag| lag.as_secs_f64())
    }

    fn elapsed(&self, now: Instant) -> i64 {
        micros(now.saturating_duration_since(self.started))
    }

    /// Moves what is remembered along with the leader's clock: the lag shown stays what it was.
    fn leader_clock_set_back(&mut self, by: i64) {
        for entry in &mut self.unreached {
            entry.since = entry.since.saturating_sub(by);
        }
        self.clocks = ClockDifference::default();
    }

    fn push(&mut self, entry: Unreached) {
        match self.unreached.back_mut() {
            Some(last) if entry.since.saturating_sub(last.since) < self.spacing => {
                last.end = entry.end;
            }
            _ => self.unreached.push_back(entry),
        }
        while self.unreached.len() > Self::ENTRIES_MAX {
            self.thin();
        }
    }

    /// Merges neighbours until entries lie twice as far apart as before. The older time stays, so
    /// no lag is understated.
    fn thin(&mut self) {
        self.spacing = self.spacing.saturating_mul(2);
        let entries = std::mem::take(&mut self.unreached);
        for entry in entries {
            match self.unreached.back_mut() {
                Some(last) if entry.since.saturating_sub(last.since) < self.spacing => {
                    last.end = entry.end;
                }
                _ => self.unreached.push_back(entry),
            }
        }
    }
}

/// By how much our clock's reading exceeds the leader's: the smallest difference of the current
/// period and the one before it, so that a drift or a clock set by hand is forgotten.
#[derive(Clone, Copy, Debug, Default)]
struct ClockDifference {
    period: i64,
    current: Option<i64>,
    before: Option<i64>,
}

impl ClockDifference {
    const PERIOD: i64 = 60_000_000;

    fn observe(&mut self, at: i64, stamp: i64) {
        let period = at / Self::PERIOD;
        if period != self.period {
            self.before = self.current.take();
            self.period = period;
        }
        let difference = at.saturating_sub(stamp);
        self.current = Some(self.current.map_or(difference, |least| least.min(difference)));
    }

    fn leader_time(&self, at: i64) -> Option<i64> {
        let least = self.current.into_iter().chain(self.before).min()?;
        Some(at.saturating_sub(least))
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A leader whose clock shows some other year.
    struct Leader {
        start: Instant,
        clock: i64,
    }

    impl Leader {
        fn at(&self, seconds: f64) -> Instant {
            self.start + Duration::from_secs_f64(seconds)
        }

        fn stamp(&self, seconds: f64) -> Stamp {
            Stamp(self.clock + (seconds * 1e6) as i64)
        }
    }

    fn new() -> (Leader, LagClock) {
        let leader = Leader { start: Instant::now(), clock: 1_000_000_000_000 };
        let clock = LagClock::new(leader.start, Duration::from_secs(3));
        (leader, clock)
    }

    fn lag(clock: &mut LagClock, now: Instant, replayed: u64) -> f64 {
        clock.lag_seconds(now, Lsn(replayed)).expect("heard from")
    }

    #[track_caller]
    fn assert_near(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance, "{found}, expected about {expected}");
    }

    #[test]
    fn nothing_is_known_before_the_first_word() {
        let (leader, mut clock) = new();
        assert_eq!(clock.lag(leader.at(5.0), Lsn(100)), None);
    }

    #[test]
    fn zero_when_idle_and_caught_up() {
        let (leader, mut clock) = new();
        for second in 0..1000 {
            let t = f64::from(second);
            clock.note(leader.at(t + 0.2), leader.stamp(t), Lsn(100));
            assert_eq!(lag(&mut clock, leader.at(t + 0.9), 100), 0.0);
        }
        assert_eq!(clock.unreached.len(), 0);
    }

    #[test]
    fn behind_counts_from_the_oldest_wal_not_reached() {
        let (leader, mut clock) = new();
        for second in 0..=10 {
            let t = f64::from(second);
            clock.note(leader.at(t), leader.stamp(t), Lsn(100 + second as u64));
        }
        let now = leader.at(10.5);
        assert_near(lag(&mut clock, now, 100), 9.5, 0.001);
        assert_near(lag(&mut clock, now, 105), 4.5, 0.001);
        assert_near(lag(&mut clock, now, 109), 0.5, 0.001);
        assert_eq!(lag(&mut clock, now, 110), 0.0);
    }

    #[test]
    fn grows_while_disconnected_and_falls_only_when_replayed() {
        let (leader, mut clock) = new();
        clock.note(leader.at(0.0), leader.stamp(0.0), Lsn(100));
        assert_eq!(lag(&mut clock, leader.at(2.9), 100), 0.0);
        assert_near(lag(&mut clock, leader.at(60.0), 100), 60.0, 0.001);
        assert_near(lag(&mut clock, leader.at(600.0), 100), 600.0, 0.001);

        // Back again: what the leader wrote meanwhile may be as old as the silence.
        clock.note(leader.at(600.0), leader.stamp(600.0), Lsn(900));
        assert_near(lag(&mut clock, leader.at(601.0), 500), 601.0, 0.001);
        assert_eq!(lag(&mut clock, leader.at(601.0), 900), 0.0);

        // A silence in which nothing was written leaves no lag behind.
        clock.note(leader.at(700.0), leader.stamp(700.0), Lsn(900));
        assert_eq!(lag(&mut clock, leader.at(700.0), 900), 0.0);
    }

    #[test]
    fn wal_that_waited_in_a_buffer_is_late() {
        let (leader, mut clock) = new();
        clock.note(leader.at(0.0), leader.stamp(0.0), Lsn(100));
        assert_eq!(lag(&mut clock, leader.at(0.1), 100), 0.0);
        for tenth in 1..=40 {
            let t = f64::from(tenth) / 10.0;
            clock.note(leader.at(t + 2.0), leader.stamp(t), Lsn(100 + tenth as u64));
        }
        assert_near(lag(&mut clock, leader.at(6.0), 139), 2.0, 0.001);
    }

    #[test]
    fn a_leader_clock_that_is_set_back_or_forward() {
        let (mut leader, mut clock) = new();
        clock.note(leader.at(0.0), leader.stamp(0.0), Lsn(100));
        clock.note(leader.at(1.0), leader.stamp(1.0), Lsn(200));
        leader.clock -= 3_600_000_000;
        clock.note(leader.at(2.0), leader.stamp(2.0), Lsn(300));
        assert_near(lag(&mut clock, leader.at(3.0), 100), 1.0, 0.001);
        assert_near(lag(&mut clock, leader.at(3.0), 200), 1.0, 0.001);
        assert_eq!(lag(&mut clock, leader.at(3.0), 300), 0.0);

        leader.clock += 7_200_000_000;
        clock.note(leader.at(4.0), leader.stamp(4.0), Lsn(300));
        assert_eq!(lag(&mut clock, leader.at(4.5), 300), 0.0);
        clock.note(leader.at(5.0), leader.stamp(5.0), Lsn(400));
        assert_near(lag(&mut clock, leader.at(6.0), 300), 1.0, 0.001);
    }

    #[test]
    fn memory_is_bounded_and_hours_of_lag_stay_precise() {
        let (leader, mut clock) = new();
        let hour = 3600.0;
        let steps = 360_000_u64;
        for step in 0..=steps {
            let t = hour * step as f64 / steps as f64;
            clock.note(leader.at(t), leader.stamp(t), Lsn(1 + step));
            assert!(clock.unreached.len() <= LagClock::ENTRIES_MAX);
        }
        for part in [0.0, 0.25, 0.5, 0.9] {
            let replayed = 1 + (part * steps as f64) as u64;
            let found = lag(&mut clock, leader.at(hour), replayed);
            let exact = hour * (1.0 - part);
            assert!(found >= exact - 0.02, "{found} understates {exact}");
            assert_near(found, exact, 8.0);
        }

        // Precise again once the backlog is gone, though the follower never quite catches up.
        for step in 0..2000_u64 {
            let t = hour + step as f64 / 100.0;
            clock.note(leader.at(t), leader.stamp(t), Lsn(steps + 2 + step));
            lag(&mut clock, leader.at(t), steps + step);
        }
        assert_near(lag(&mut clock, leader.at(hour + 20.0), steps + 2000), 0.02, 0.02);
    }

    #[test]
    fn absurd_stamps_do_no_harm() {
        let (leader, mut clock) = new();
        let stamps = [i64::MAX, i64::MIN, 0, -1, i64::MAX, i64::MIN + 1];
        for (step, stamp) in stamps.into_iter().cycle().take(10_000).enumerate() {
            let now = leader.at(step as f64);
            clock.note(now, Stamp(stamp), Lsn(step as u64));
            clock.lag(now, Lsn(step as u64 / 2));
            assert!(clock.unreached.len() <= LagClock::ENTRIES_MAX);
        }
    }
}
