#!/usr/bin/env bash
# Speed as a ratio to PostgreSQL, measured in the same run; prints RATIO lines.
#
#   integration/bench.sh replay        redo of a base backup's WAL; about ten minutes
#   integration/bench.sh ship          catch-up, latency, what it costs the leader; about six minutes
#   integration/bench.sh decode        row changes against logical decoding, and what they cost; about six minutes
#   integration/bench.sh waldump       WAL as text, and counted, against pg_waldump; about five minutes
#
# More arguments go to the bench program (integration/bench.sh replay --help lists them).
set -euo pipefail
cd "$(dirname "$0")/.."
source integration/prepare.sh
prepare_packages
prepare_toolchain

cargo build --locked --release --package walferry --package integration --bin walferry --bin bench
build=${CARGO_TARGET_DIR:-target}/release

# Everything the benchmark makes lives in one folder, also when it is interrupted. User postgres must
# be able to pass through it.
folder=$(mktemp --directory -t walferry-bench.XXXXXX)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"

TMPDIR=$folder WALFERRY_BIN=$build/walferry "$build/bench" "$@"
