//! When to connect again.

use std::time::Duration;

/// The delay before the next attempt to connect: a random part ("full jitter") of a ceiling that
/// doubles with each failure, so that followers of a leader that comes back do not come all at
/// once.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    failures: u32,
}

impl Default for Backoff {
    /// Ceilings from 100 ms to 10 s.
    fn default() -> Self {
        Self::new(Duration::from_millis(100), Duration::from_secs(10))
    }
}

impl Backoff {
    /// Ceilings from `first` to `longest`.
    #[must_use]
    pub const fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, failures: 0 }
    }

    /// How long to wait now. `random` is any number, all of them equally likely.
    pub fn next_delay(&mut self, random: u64) -> Duration {
        let factor = 1_u32.checked_shl(self.failures).unwrap_or(u32::MAX);
        let ceiling = self.first.saturating_mul(factor).min(self.longest);
        self.failures = self.failures.saturating_add(1);
        let nanos = (ceiling.as_nanos().saturating_mul(u128::from(random))) >> 64;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// A connection that was welcomed has ended. If it lived longer than the longest delay, the
    /// trouble before it is over; a shorter one may be refused or cut again at once.
    pub fn connection_lived(&mut self, lived: Duration) {
        if lived >= self.longest {
            self.failures = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ceiling_doubles_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let ceilings: Vec<u128> =
            (0..9).map(|_| backoff.next_delay(u64::MAX).as_millis() + 1).collect();
        assert_eq!(ceilings, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
        for _ in 0..100 {
            assert!(backoff.next_delay(u64::MAX) <= Duration::from_secs(10));
        }
        assert_eq!(backoff.next_delay(0), Duration::ZERO);
        assert_eq!(backoff.next_delay(1 << 63), Duration::from_secs(5));
    }

    #[test]
    fn only_a_connection_that_lived_resets() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.next_delay(0);
        }
        backoff.connection_lived(Duration::from_secs(9));
        assert!(backoff.next_delay(u64::MAX) > Duration::from_secs(3));
        backoff.connection_lived(Duration::from_secs(10));
        assert!(backoff.next_delay(u64::MAX) < Duration::from_millis(100));
    }
}
