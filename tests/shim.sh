#!/bin/sh
# Tests files of the C shim with Open vSwitch's own packets, under sanitizers.
#
# usage: tests/shim.sh TREE
#
# TREE is a built tree of Open vSwitch, configured without DPDK.

set -eu

[ $# -eq 1 ] || {
    sed -n 's/^# usage/usage/p' "$0" >&2
    exit 2
}
tree=$1
here=$(dirname -- "$0")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# What Open vSwitch's library needs of the system, as libtool says; without its own.
libraries() {
    sed -n "s/^dependency_libs='\(.*\)'/\1/p" "$tree/lib/libopenvswitch.la" |
        tr ' ' '\n' | grep '^-l'
}

# Its headers want no warnings of ours.
compile() {
    # The libraries are words of their own.
    # shellcheck disable=SC2046
    cc -g -O1 "-fsanitize=$1" -Wall -Wextra -Werror -fno-strict-aliasing \
        -DHAVE_CONFIG_H -I"$here/../c-shim" \
        -isystem "$tree" -isystem "$tree/include" -isystem "$tree/lib" \
        "$here/shim/packet_heap.c" "$here/../c-shim/packet_heap.c" \
        "$tree/lib/.libs/libopenvswitch.a" $(libraries) -lpthread -o "$work/$1"
}

for sanitizer in address,undefined thread; do
    echo "-fsanitize=$sanitizer"
    compile "$sanitizer"
    "$work/$sanitizer"
done
