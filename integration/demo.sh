#!/usr/bin/env bash
# The main job on a real PostgreSQL 15: two agents, a load, a promotion, every table compared.
#
#   integration/demo.sh                    exit 0: every table is equal
#   DEMO_SABOTAGE=1 integration/demo.sh    one row is changed first; exit 1
#
# Arguments go to the demo program (--help lists them).
set -euo pipefail
cd "$(dirname "$0")/.."
source integration/prepare.sh
prepare_packages
prepare_toolchain

cargo build --locked --release --package walferry --package integration --bin walferry --bin demo
build=${CARGO_TARGET_DIR:-target}/release

# Everything the demo starts lives in one folder, also when it is interrupted. User postgres must be
# able to pass through it.
folder=$(mktemp --directory -t walferry-demo.XXXXXX)
trap 'rm -rf "$folder"' EXIT
chmod 755 "$folder"

TMPDIR=$folder WALFERRY_BIN=$build/walferry "$build/demo" "$@"
