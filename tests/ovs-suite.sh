#!/usr/bin/env bash
# Open vSwitch's own tests of its vhost-user ports, unmodified, against the plugin and against the stock
# ports. Usage: tests/ovs-suite.sh plugin|stock [TEST-NUMBER...]
#
# What is adjusted is the machine, never a test:
#   * hugepages and hugetlbfs are there, and afterwards as they were found;
#   * EAL gets --no-pci (this machine's own NICs are none of the suite's business), testpmd a map of its
#     three lcores onto the cores there are;
#   * grep gives vswitchd's log a second to say what it looks for: a thread of its own writes that log, and some
#     tests look right after the command that makes the line;
#   * no IPv6: interfaces that come up report to multicast routers by themselves, and where such a packet meets a port
#     that is just being deleted, a warning in the log fails the test;
#   * the missing kernel datapath ("failed to enumerate system datapaths") is allowed in the log;
#   * all of it runs in process, mount and network namespaces of its own: the suite kills helpers by
#     name and makes interfaces, and neither may reach the rest of the machine.
set -euo pipefail

top=$(cd "$(dirname "$0")/.." && pwd)
tree=${OVS_TREE:-$top/target/ovs}
plugin=${OVS_VHOST_PLUGIN:-$top/target/release/libovs_vhost.so}
mode=${1:?usage: tests/ovs-suite.sh plugin|stock [TEST-NUMBER...]}
shift
# The tests of EAL, of vhost-user ports of both types, of their policers and QoS, of their MTU, of dpdk-init turned on
# late, and of commands for the ports; only with plugins, one for tests: types and commands that are a plugin's.
both='1 3 4 5 7 8 9 11 12 13 16 17 20 21 25'
declare -A of_mode=([plugin]="$both 26 28 29" [stock]="$both 29")
tests=("${@:-${of_mode[$mode]}}")
read -ra tests <<<"${tests[*]}"

say() { printf '[ovs-suite] %s\n' "$*"; }

if [ -z "${OVS_SUITE_INSIDE-}" ]; then
    [ "$(id -u)" = 0 ] || { echo "SKIP: OVS's suite needs root"; exit 77; }
    export OVS_SUITE_INSIDE=1
    exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" "$mode" "${tests[@]}"
fi

# One system test at a time: they share hugepages and two cores.
exec 9>"${TMPDIR:-/tmp}/ovs-vhost-e2e.lock"
flock 9

pages=/proc/sys/vm/nr_hugepages
found=$(cat $pages)
restore() { echo "$found" >$pages; }
trap restore EXIT
if [ "$found" -lt 1024 ]; then
    echo 1024 >$pages
fi
mountpoint -q /dev/hugepages || { mkdir -p /dev/hugepages && mount -t hugetlbfs nodev /dev/hugepages; }
mkdir -p /run/netns && mount -t tmpfs tmpfs /run/netns
ip link set lo up
for which in all default; do
    echo 1 2>/dev/null >"/proc/sys/net/ipv6/conf/$which/disable_ipv6" || true # a kernel without IPv6
done

# The suite's script, made by the tree from its own sources; the two adjustments go into a copy.
work=$tree/tests/plugin-suite
mkdir -p "$work/bin"
make -s -C "$tree" tests/system-dpdk-testsuite >"$work/make.log" 2>&1 || { cat "$work/make.log"; exit 1; }
suite=$tree/tests/system-dpdk-testsuite-here
sed -e 's/--log-level=pmd\.\*:error/"--no-pci &"/' \
    -e 's/^\\@does not support MTU configuration,@d$/&\n\\@failed to enumerate system datapaths@d/' \
    "$tree/tests/system-dpdk-testsuite" >"$suite"
chmod +x "$suite"

testpmd=$(command -v dpdk-testpmd)
grep=$(command -v grep)
cat >"$work/bin/dpdk-testpmd" <<EOF
#!/bin/sh
exec $testpmd --lcores '0@0,1@1,2@1' "\$@"
EOF
cat >"$work/bin/grep" <<EOF
#!/bin/sh
for file; do :; done
case \$file in *ovs-vswitchd.log)
    left=20
    until $grep -q "\$@" || [ \$left = 0 ]; do
        left=\$((left - 1))
        sleep 0.05
    done ;;
esac
exec $grep "\$@"
EOF
chmod +x "$work/bin/dpdk-testpmd" "$work/bin/grep"

unset OVS_NETDEV_PLUGINS
[ "$mode" = stock ] || export OVS_NETDEV_PLUGINS=$plugin

run() { # run NUMBER...: keeps each test's directory, so that its log can be read
    (PATH=$work/bin:$PATH "$suite" -C "$tree/tests" -d AUTOTEST_PATH="utilities:vswitchd:ovsdb:vtep:tests:" "$@" </dev/null)
}

served() { # served NUMBER: by whom the ports of a test were provided, as its vswitchd's log says
    local log
    log=$suite.dir/$(printf %02d "$1")/ovs-vswitchd.log
    if grep -q 'ports are provided by a plugin' "$log"; then echo plugin; else echo stock; fi
}

good=0 bad=0
for t in "${tests[@]}"; do
    by=
    if run "$t" >"$work/out" 2>&1 && grep -qE '^[0-9]+ test.* successful' "$work/out" &&
        ! grep -q skipped "$work/out"; then
        by=$(served "$t")
    fi
    if [ "$by" = "$mode" ]; then
        say "ok   $(grep -E "^ *$t: " "$work/out" | sed 's/ *ok.*//') (ports: $by)"
        good=$((good + 1))
        continue
    fi
    bad=$((bad + 1))
    if [ -n "$by" ]; then
        say "FAIL $t: the ports were $by's, not $mode's"
    else
        say "FAIL $t"
        find "$suite.dir/$(printf %02d "$t")" -name '*.log' -exec tail -n 60 {} +
        cat "$work/out"
    fi
done
echo "$good passed, $bad failed"
[ $bad = 0 ]
