#!/usr/bin/env bash
# Open vSwitch's own tests of what is not the plugin's, unmodified: with it loaded into every vswitchd, each must end as
# it ends without. Usage: tests/ovs-unchanged.sh pmd|system-userspace [TEST-NUMBER|FIRST-LAST|-k KEYWORD]...
#
# Both sides run at the same time, each in several shards that take tests in turn: most of a test is waiting. A shard
# has process, mount and network namespaces of its own, where the tests make interfaces and end processes by name.
# A test that ends otherwise than on the other side runs again on both, alone on the machine: these tests have
# time limits, and some lose races. What differs each time is a regression.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
tree=${OVS_TREE:-$top/target/ovs}
plugin=${OVS_VHOST_PLUGIN:-$top/target/release/libovs_vhost.so}
usage='usage: tests/ovs-unchanged.sh pmd|system-userspace [TEST-NUMBER|FIRST-LAST|-k KEYWORD]...'
suite=${1:?$usage}
shift
shards=${SHARDS:-4}
retries=3

case $suite in
    pmd)
        script=testsuite
        [ $# -gt 0 ] || set -- -k pmd
        ;;
    system-userspace) script=system-userspace-testsuite ;;
    *) echo "$usage" >&2 && exit 2 ;;
esac

say() { printf '[ovs-unchanged] %s\n' "$*"; }

# Within the namespaces: runs the tests TEST... on SIDE, and keeps their directories, where their logs are.
if [ "${OVS_UNCHANGED_SIDE-}" ]; then
    mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns
    ip link set lo up
    unset OVS_NETDEV_PLUGINS
    [ "$OVS_UNCHANGED_SIDE" = stock ] || export OVS_NETDEV_PLUGINS=$plugin
    exec "$OVS_UNCHANGED_COPY" -C "$tree/tests" -d \
        AUTOTEST_PATH="utilities:vswitchd:ovsdb:vtep:tests:ipsec:" "$@" </dev/null
fi

[ "$(id -u)" = 0 ] || { echo "SKIP: OVS's suites need root"; exit 77; }
# One system test at a time: they share the processors.
exec 9>"${TMPDIR:-/tmp}/ovs-vhost-e2e.lock"
flock 9

make -s -C "$tree" "tests/$script" >/dev/null
work=$tree/tests/unchanged
rm -rf "$work"
mkdir -p "$work"

finish() {
    # A shard's processes end with it.
    mapfile -t running < <(jobs -p)
    [ ${#running[@]} = 0 ] || kill "${running[@]}" 2>/dev/null || true
    rm -rf "$tree"/tests/unchanged-*
}
trap finish EXIT
trap 'exit 1' TERM INT HUP

# shard SIDE NUMBER TEST...: becomes a run of these tests, by a copy of the suite: its directory is named after it.
shard() {
    local side=$1 copy=$tree/tests/unchanged-$1-$2 out=$work/$1-$2.out
    # Before it goes where it is told to, a suite tries out links under names made of its process id, which is 1 for all.
    mkdir -p "$work/$1-$2" && cd "$work/$1-$2"
    shift 2
    cp "$tree/tests/$script" "$copy"
    export OVS_UNCHANGED_SIDE=$side OVS_UNCHANGED_COPY=$copy
    exec unshare --mount --net --pid --fork --kill-child --mount-proc "$top/tests/ovs-unchanged.sh" "$suite" "$@" >"$out" 2>&1
}

# outcomes SIDE: "NUMBER TITLE: ok|skipped|FAILED" of each test that ran, in order.
outcomes() {
    sed -nE 's/^ *([0-9]+): (.*[^ ]) +(ok|skipped|FAILED|expected failure|UNEXPECTED PASS)( .*)?$/\1 \2: \3/p' \
        "$work/$1"-*.out | sort -n -u
}

# proven SIDE: every vswitchd that wrote a log says that it has loaded the plugin, or none does.
proven() {
    local logs
    mapfile -t logs < <(find "$tree/tests/unchanged-$1"-*.dir -name ovs-vswitchd.log)
    [ ${#logs[@]} -gt 0 ] || { say "FAIL no test of the $1 side has started a vswitchd"; return 1; }
    local loaded
    loaded=$(grep -l 'netdev_plugin|INFO|loaded netdev plugin' "${logs[@]}" | wc -l)
    say "$1: $loaded of ${#logs[@]} switches have loaded the plugin"
    case $1 in
        stock) [ "$loaded" = 0 ] ;;
        plugin) [ "$loaded" = ${#logs[@]} ] ;;
    esac
}

# both SHARDS TEST...: runs the tests on both sides.
both() {
    local count=$1 side number
    shift
    rm -rf "$work"/*.out "$tree"/tests/unchanged-*
    for side in stock plugin; do
        for number in $(seq 1 "$count"); do
            mapfile -t mine < <(printf '%s\n' "$@" | awk -v n="$number" -v of="$count" 'NR % of == n % of')
            [ ${#mine[@]} = 0 ] || shard "$side" "$number" "${mine[@]}" &
        done
    done
    wait
    proven stock && proven plugin
}

mapfile -t tests < <("$tree/tests/$script" -C "$tree/tests" -l "$@" | sed -nE 's/^ *([0-9]+): .*/\1/p')
[ ${#tests[@]} -gt 0 ] || { say "no such tests"; exit 2; }
both "$shards" "${tests[@]}"
for side in stock plugin; do outcomes $side >"$work/$side"; done

# The numbers of the tests that ended otherwise on one side than on the other, or on one only.
differ() { diff "$work/stock" "$work/plugin" | sed -nE 's/^[<>] ([0-9]+) .*/\1/p' | sort -nu; }

for try in $(seq $retries); do
    mapfile -t odd < <(differ)
    [ ${#odd[@]} -gt 0 ] || break
    say "again, as the sides differ (attempt $try of $retries):"
    diff "$work/stock" "$work/plugin" || true
    both 1 "${odd[@]}"
    for side in stock plugin; do
        { outcomes $side && cat "$work/$side"; } | sort -n -s -u -k1,1 >"$work/$side.new"
        mv "$work/$side.new" "$work/$side"
    done
done

cat "$work/plugin"
say "$suite: $(sed 's/.*: //' "$work/plugin" | sort | uniq -c | xargs)"
[ "$(wc -l <"$work/plugin")" = ${#tests[@]} ] || { say "FAIL of ${#tests[@]} tests some did not end"; exit 1; }
diff "$work/stock" "$work/plugin" || { say "FAIL with the plugin these end otherwise"; exit 1; }
