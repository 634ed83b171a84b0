#!/usr/bin/env bash
# Crash safety of the store: 100 power cuts, full disks and failing disks in each of six workloads.
# What the tests do in passing (tests/crash.rs), at length. Some three minutes on two cores, building aside.
#
#   WALFERRY_SEED=7 integration/crash.sh             other points
#   WALFERRY_CRASH_POINTS=1000 integration/crash.sh  more of them, in each workload
set -euo pipefail
cd "$(dirname "$0")/.."
source integration/prepare.sh
prepare_packages
prepare_toolchain

export WALFERRY_CRASH_POINTS=${WALFERRY_CRASH_POINTS:-100}
cargo test --locked --package integration --test crash -- --nocapture --test-threads 1 "$@"
