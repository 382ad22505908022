#!/usr/bin/env bash
# The tests of what threads share, under ThreadSanitizer: the gate, rings that are swapped under bursts, counters.
#
# Guest memory is shared with who keeps no rules, so its bytes race by nature: they are copied, never referenced, all of them
# in src/memory/copy.rs, which .ci/tsan.supp names. What is ours alone must not race.
set -euo pipefail
cd "$(dirname "$0")/.."
triple=$(rustc +nightly -vV | sed -n 's/^host: //p')
# The standard library too, or its locks would look like none.
export RUSTFLAGS="-Zsanitizer=thread" TSAN_OPTIONS="suppressions=$PWD/.ci/tsan.supp halt_on_error=1"
exec cargo +nightly test -Zbuild-std --no-default-features --target "$triple" --target-dir target/tsan --lib -- \
    gate threads counters swapped under_a_burst descriptors_that_change
