//! Signs of life: a stage's own loop says that it goes round.
//!
//! Each loop has a [`Heart`] and lets it beat in every round, and in long work on the way. Who asks
//! ([`Hearts::silent`]) learns which of them have not for too long. A loop that ends drops its heart,
//! and nobody waits for it any more: a stage that has stopped, and says so, does not hang.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// No sign of life is expected.
const RESTING: u64 = u64::MAX;

/// The hearts of all loops of a node.
#[derive(Debug)]
pub(crate) struct Hearts {
    begun: Instant,
    all: Mutex<Vec<Weak<Beats>>>,
}

/// A loop's sign of life.
#[derive(Debug)]
pub(crate) struct Heart(Arc<Beats>);

#[derive(Debug)]
struct Beats {
    name: &'static str,
    threads: &'static [&'static str],
    begun: Instant,
    /// Milliseconds from `begun` to the last beat, or [`RESTING`].
    last: AtomicU64,
}

/// A loop that has not shown a sign of life for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Silence {
    pub(crate) name: &'static str,
    /// How the threads that do its work are named, or begin to be.
    pub(crate) threads: &'static [&'static str],
    pub(crate) lasts: Duration,
}

impl Hearts {
    /// A heart for a loop that begins; it has just beaten. `threads` are the names of the threads
    /// that do the loop's work, or their beginnings; none for a task.
    pub(crate) fn start(&self, name: &'static str, threads: &'static [&'static str]) -> Heart {
        let beats = Beats { name, threads, begun: self.begun, last: AtomicU64::new(0) };
        let heart = Heart(Arc::new(beats));
        heart.beat();
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|known| known.strong_count() > 0);
        all.push(Arc::downgrade(&heart.0));
        heart
    }

    /// The loops whose last sign of life is older than `limit`.
    pub(crate) fn silent(&self, limit: Duration) -> Vec<Silence> {
        self.silent_at(Instant::now(), limit)
    }

    /// Lets a heart beat from outside: there is a reason why its loop could not.
    pub(crate) fn excuse(&self, name: &str) {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        for beats in all.iter().filter_map(Weak::upgrade).filter(|beats| beats.name == name) {
            beats.beat();
        }
    }

    /// Whether a loop that this thread goes round has beaten within `limit`: one that rests has not.
    pub(crate) fn has_beaten(&self, thread: &str, limit: Duration) -> bool {
        let now = self.begun.elapsed();
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(Weak::upgrade).filter(|beats| beats.threads.contains(&thread)).any(
            |beats| {
                let last = beats.last.load(Ordering::Relaxed);
                last != RESTING && now.saturating_sub(Duration::from_millis(last)) <= limit
            },
        )
    }

    /// The threads that do the work of the loops that this thread goes round, by their names or their
    /// beginnings; itself among them.
    pub(crate) fn threads_with(&self, thread: &'static str) -> Vec<&'static str> {
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let living = all.iter().filter_map(Weak::upgrade);
        let with = living.filter(|beats| beats.threads.contains(&thread));
        let others = with.flat_map(|beats| beats.threads).filter(|name| **name != thread);
        std::iter::once(thread).chain(others.copied()).collect()
    }

    fn silent_at(&self, now: Instant, limit: Duration) -> Vec<Silence> {
        let now = millis(now.saturating_duration_since(self.begun));
        let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let living = all.iter().filter_map(Weak::upgrade);
        let silences = living.map(|beats| Silence {
            name: beats.name,
            threads: beats.threads,
            lasts: Duration::from_millis(now.saturating_sub(beats.last.load(Ordering::Relaxed))),
        });
        silences.filter(|silence| silence.lasts > limit).collect()
    }
}

impl Default for Hearts {
    fn default() -> Self {
        Self { begun: Instant::now(), all: Mutex::default() }
    }
}

impl Heart {
    /// The loop goes round.
    pub(crate) fn beat(&self) {
        self.0.beat();
    }

    /// The loop waits for somebody else, for however long: nothing is expected before the next beat.
    pub(crate) fn rest(&self) {
        self.0.last.store(RESTING, Ordering::Relaxed);
    }
}

impl Beats {
    fn beat(&self) {
        self.last.store(millis(self.begun.elapsed()), Ordering::Relaxed);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(RESTING - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn silent_names(hearts: &Hearts, after: Duration) -> Vec<&'static str> {
        let silent = hearts.silent_at(Instant::now() + after, LIMIT);
        silent.iter().map(|silence| silence.name).collect()
    }

    #[test]
    fn a_heart_that_stops_beating_is_noticed() {
        let hearts = Hearts::default();
        let _tail = hearts.start("tail", &["tail"]);
        assert!(silent_names(&hearts, LIMIT / 2).is_empty());
        assert_eq!(silent_names(&hearts, LIMIT * 2), ["tail"]);
    }

    #[test]
    fn a_beat_is_good_for_the_limit() {
        let hearts = Hearts { begun: Instant::now() - LIMIT * 3, all: Mutex::default() };
        let tail = hearts.start("tail", &[]);
        tail.0.last.store(0, Ordering::Relaxed);
        assert_eq!(silent_names(&hearts, Duration::ZERO), ["tail"]);
        hearts.excuse("another");
        assert_eq!(silent_names(&hearts, Duration::ZERO), ["tail"]);
        hearts.excuse("tail");
        assert!(silent_names(&hearts, Duration::ZERO).is_empty());
        tail.0.last.store(0, Ordering::Relaxed);
        tail.beat();
        assert!(silent_names(&hearts, Duration::ZERO).is_empty());
    }

    #[test]
    fn nobody_waits_for_one_that_rests_or_has_ended() {
        let hearts = Hearts::default();
        let (resting, ended) = (hearts.start("receive", &[]), hearts.start("replay", &[]));
        resting.rest();
        drop(ended);
        assert!(silent_names(&hearts, LIMIT * 1000).is_empty());
        resting.beat();
        assert_eq!(silent_names(&hearts, LIMIT * 2), ["receive"]);
    }
}
