#!/usr/bin/env bash
# The tests of what touches a guest's memory, under Miri: no access beside the bytes that were checked, none that is not
# aligned, no byte that nobody wrote, no race in what threads share. src/memory/pages_miri.rs is the memory.
#
# Miri takes a thousand times as long as a processor, so tests that try everything try some of it (src/effort.rs). Those that
# want a kernel, or race on purpose, say so where they are.
set -euo pipefail
cd "$(dirname "$0")/.."
# Guest memory is in files. A driver publishes 16 bits of a word that the device gives back whole: Miri can follow that only
# where no thread is shown a stale value, which is loom's business. Sockets stand for eventfds, which are never read in part.
export MIRIFLAGS="-Zmiri-disable-isolation -Zmiri-strict-provenance -Zmiri-disable-weak-memory-emulation \
    -Zmiri-no-short-fd-operations"

miri() {
    cargo +nightly miri test -q --no-default-features --target-dir target/miri --lib "$@"
}

# The tests whose names contain one of these words, but those that are skipped; what they say in one piece.
part() {
    local words output code=0
    read -ra words <<<"$1"
    output=$(miri -- "${words[@]}" 2>&1) || code=$?
    printf '%s:\n%s\n' "$1" "$output"
    return "$code"
}
export -f miri part

miri --no-run
large=(datapath::split datapath::packed datapath::miss datapath::offload datapath::tests datapath::dirty)
{
    printf '%s\n' "${large[@]}"
    echo "memory:: virtio:: datapath:: vhost_user::decode vhost_user::message ${large[*]/#/--skip }"
} | xargs -P "$(nproc)" -d '\n' -n 1 bash -c 'part "$@"' _
