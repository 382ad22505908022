#!/usr/bin/env bash
# Builds the fuzzers with AddressSanitizer on a nightly toolchain, and runs each for a while.
# Usage: .ci/fuzz.sh SECONDS [TARGET]
#
# What they find worth keeping while they run goes into target/fuzz-corpus, a finding into target/fuzz-findings. Plain cargo
# with the flags that cargo-fuzz would give: nothing needs to be installed but the toolchain.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=$1 only=${2:-}
triple=x86_64-unknown-linux-gnu
[ "$(uname -m)" = x86_64 ] || triple=$(uname -m)-unknown-linux-gnu

flags=(--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Ccodegen-units=4)
for pass in level=4 inline-8bit-counters pc-table trace-compares; do
    flags+=("-Cllvm-args=-sanitizer-coverage-$pass")
done
RUSTFLAGS="${flags[*]}" cargo +nightly build --release --manifest-path fuzz/Cargo.toml \
    --target "$triple" --target-dir target/fuzz

# Leaks are looked for in the end-to-end tests; here the control thread lives on, which looks like one.
export ASAN_OPTIONS=detect_leaks=0
findings=target/fuzz-findings
for folder in fuzz/corpus/*/; do
    target=$(basename "$folder")
    [ -z "$only" ] || [ "$only" = "$target" ] || continue
    found=target/fuzz-corpus/$target program=target/fuzz/$triple/release/$target
    mkdir -p "$found" "$findings"
    echo "[fuzz] $target, $seconds seconds on $(nproc) cores"
    set +e
    "$program" -fork="$(nproc)" -ignore_crashes=0 -max_total_time="$seconds" -max_len=1024 -timeout=10 \
        -rss_limit_mb=2048 -artifact_prefix="$findings/$target-" "$found" "$folder" 2>&1 |
        tee "target/fuzz-corpus/$target.log" | grep -E --line-buffered '^#[0-9]+: cov|panicked|ERROR|SUMMARY|assertion'
    status=${PIPESTATUS[0]}
    set -e
    if [ "$status" != 0 ]; then
        # shellcheck disable=SC2012 # names that we gave ourselves
        input=$(ls -t "$findings/$target"-* | head -n 1)
        echo "[fuzz] $target: a finding; the input is $input" >&2
        echo "[fuzz] again: ASAN_OPTIONS=$ASAN_OPTIONS $program $input" >&2
        echo "[fuzz] smaller: $program -minimize_crash=1 -runs=10000 $input; then into fuzz/corpus/$target, with a name" >&2
        exit 1
    fi
done
