#!/usr/bin/env bash
# All tests, on a real PostgreSQL 15; what reads WAL of 16 to 18 on those, which are fetched first
# (integration/majors.sh). None is skipped: what a test needs and does not find is a failure, and tests
# marked `ignore` run, too. Arguments go to the test runner, for example a name.
set -euo pipefail
cd "$(dirname "$0")/.."
source integration/prepare.sh
prepare_packages
prepare_toolchain
integration/majors.sh

# The tests with random inputs (proptest) take these from the system unless told otherwise: a fault that has
# long been there would refuse a change that has nothing to do with it. Other inputs: a number of your own,
# or `random`, which says none. integration/fuzz.sh looks for new faults, and chooses by itself.
export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-1}
[ "$PROPTEST_RNG_SEED" != random ] || unset PROPTEST_RNG_SEED
echo "proptest: PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-random}"

# A failed test says in words what it found, and a panic where it was. Thirty frames of the test runner
# behind each error would bury that.
export RUST_LIB_BACKTRACE=${RUST_LIB_BACKTRACE:-0}

# The end-to-end tests start the agent; built here, none of them waits for the compiler. With the other
# programs, as the tests are built with those: libraries would be built a second time with other features.
cargo build --locked --workspace --bins
# And by name: a test that asks cargo for it has the libraries built with the features of the agent alone.
WALFERRY_BIN=$(realpath "${CARGO_TARGET_DIR:-target}")/debug/walferry
export WALFERRY_BIN

if cargo nextest --version >/dev/null 2>&1; then
    cargo nextest run --locked --workspace --run-ignored all "$@"
else
    # One test at a time: the tests with servers share few cores.
    cargo test --locked --workspace --lib --bins --tests -- --include-ignored --test-threads 1 "$@"
fi
[ $# -gt 0 ] || cargo test --locked --workspace --doc
