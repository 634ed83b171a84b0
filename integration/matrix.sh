#!/usr/bin/env bash
# A store against a real standby, byte for byte, under every combination of checksums, segment size,
# wal_compression and track_commit_timestamp: one line for each, exit 1 if one differs. Takes about
# a minute for each. `integration/tests/identical.rs` does two of them.
#
#   integration/matrix.sh
#   integration/matrix.sh --checksums true --segments 1 --pieces heap,wide --verbose
#
# Arguments go to the program (--help lists them).
set -euo pipefail
cd "$(dirname "$0")/.."
source integration/prepare.sh
prepare_packages
prepare_toolchain

cargo build --locked --release --package walferry --package integration --bin walferry --bin matrix
build=${CARGO_TARGET_DIR:-target}/release

# Everything the matrix starts lives in one folder, also when it is interrupted. User postgres must
# be able to pass through it.
folder=$(mktemp --directory -t walferry-matrix.XXXXXX)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"

TMPDIR=$folder WALFERRY_BIN=$build/walferry "$build/matrix" "$@"
