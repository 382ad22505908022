#!/usr/bin/env bash
# What is depended on, against deny.toml and against RustSec's list of known holes, which cargo-deny fetches. Takes cargo-deny
# where there is none: minutes to compile.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=$PWD/target/tools
export PATH=$tools/bin:$PATH
command -v cargo-deny >/dev/null || cargo install --locked --root "$tools" cargo-deny
for manifest in Cargo.toml fuzz/Cargo.toml; do
    cargo deny --manifest-path "$manifest" --config "$PWD/deny.toml" check
done
