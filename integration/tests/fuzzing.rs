//! What `integration/fuzz.sh` does for minutes, for moments: the same bodies with some thousands of inputs
//! each, those of the corpus among them, as they are and changed.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[path = "../fuzz/bodies.rs"]
mod bodies;

const CASES: u32 = 5000;

/// Any bytes, and bytes of the corpus with some of them changed, doubled or cut off.
fn run(name: &str, body: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths: Vec<_> = fs::read_dir(corpus)
        .map(|entries| entries.map(|entry| entry.expect("a name").path()).collect())
        .unwrap_or_default();
    paths.sort();
    let seeds: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("a file")).collect();
    seeds.iter().for_each(|seed| body(seed));
    let count = seeds.len();
    let bytes = prop::collection::vec(any::<u8>(), 0..300).boxed();
    let inputs = if seeds.is_empty() {
        bytes
    } else {
        let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8);
        let changed =
            (prop::sample::select(seeds), changes, any::<prop::sample::Index>(), any::<bool>())
                .prop_map(|(mut seed, changes, cut, is_cut)| {
                    for (at, byte) in changes {
                        let length = seed.len();
                        if let Some(place) = seed.get_mut(at.index(length.max(1))) {
                            *place = byte;
                        }
                    }
                    if is_cut {
                        seed.truncate(cut.index(seed.len() + 1));
                    }
                    seed
                });
        prop_oneof![bytes, changed].boxed()
    };
    // PROPTEST_RNG_SEED, which integration/test.sh sets; without it the system gives one.
    let config = Config { cases: CASES, ..Config::default() };
    let seed = config.rng_seed;
    let mut runner = TestRunner::new(config);
    let result = runner.run(&inputs, |input| {
        body(&input);
        Ok(())
    });
    println!("{name}: {count} inputs of the corpus, {CASES} others, seed {seed}");
    result.unwrap_or_else(|error| panic!("{name}: {error}"));
}

#[test]
fn stream() {
    run("stream", bodies::stream);
}

#[test]
fn pages() {
    run("pages", bodies::pages);
}

#[test]
fn record() {
    run("record", bodies::record);
}

#[test]
fn image() {
    run("image", bodies::image);
}

#[test]
fn payload() {
    run("payload", bodies::payload);
}

#[test]
fn archive() {
    run("archive", bodies::archive);
}

#[test]
fn wire() {
    run("wire", bodies::wire);
}
