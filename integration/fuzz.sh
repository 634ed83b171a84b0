#!/bin/bash
# Fuzzes what reads bytes of others: WAL, records, images, payloads, files of the archive, messages.
#
#     integration/fuzz.sh [SECONDS] [TARGET...]
#
# Each target runs for SECONDS (60), begins with the corpus in integration/fuzz/corpus, and must have been run
# more than 100000 times. Needs a nightly compiler and cargo-fuzz:
#
#     rustup toolchain install nightly && cargo install cargo-fuzz
#
# What it finds is left in integration/fuzz/artifacts. The corpus was cut out of segments of real servers:
#
#     cargo run -p integration --bin corpus integration/fuzz/corpus SEGMENT...

set -euo pipefail
cd "$(dirname "$0")/fuzz"
seconds=${1:-60}
shift || true
if [ $# -gt 0 ]; then targets=("$@"); else targets=(stream pages record image payload archive wire); fi
least=$((100000 * seconds / 60))
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

cargo +nightly fuzz build
for target in "${targets[@]}"; do
    mkdir -p "corpus/$target" "$scratch/$target"
    # New inputs go into the first directory; the committed ones stay as they are.
    cargo +nightly fuzz run "$target" "$scratch/$target" "corpus/$target" -- -max_total_time="$seconds" \
        -print_final_stats=1 -timeout=20 -rss_limit_mb=2048 >"$scratch/out" 2>&1 ||
        { tail -40 "$scratch/out"; echo "$target: failed" >&2; exit 1; }
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$scratch/out")
    echo "$target: $runs executions, $(find "corpus/$target" -type f | wc -l) inputs to begin with, nothing found"
    [ "$runs" -gt "$least" ] || { echo "$target: fewer than $least executions" >&2; exit 1; }
done
