//! The one number a random test is repeated with.

use rand::SeedableRng;
use rand::rngs::StdRng;

/// A seed, taken from `WALFERRY_SEED` if that is set, otherwise fixed per test: a failure seen once
/// is seen again. It is printed when taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seed(pub u64);

impl Seed {
    /// The seed to use for `what`; `default` unless the environment says otherwise.
    ///
    /// # Panics
    /// `WALFERRY_SEED` is not a number.
    #[must_use]
    pub fn take(what: &str, default: u64) -> Self {
        let seed = std::env::var("WALFERRY_SEED")
            .map_or(default, |text| text.parse().expect("WALFERRY_SEED is a number"));
        println!("{what}: seed {seed} (WALFERRY_SEED={seed} repeats this run)");
        Self(seed)
    }

    /// A generator that starts from it.
    #[must_use]
    pub fn generator(self) -> StdRng {
        StdRng::seed_from_u64(self.0)
    }
}
