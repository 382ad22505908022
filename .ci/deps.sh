#!/usr/bin/env bash
# Installs the Debian packages that a part of the work needs and that are missing.
# Usage: .ci/deps.sh build|test|lint ...
set -euo pipefail

declare -A packages=(
    [build]="openvswitch-source libdpdk-dev dpdk-dev libnuma-dev libpcap-dev libssl-dev libcap-ng-dev
        libunbound-dev libbpf-dev libxdp-dev libclang-dev clang gcc autoconf automake libtool make patch
        bzip2 xz-utils pkg-config python3"
    [test]="dpdk qemu-system-x86 busybox-static cpio kmod iproute2 iputils-ping ethtool tcpdump tshark iperf3
        procps util-linux valgrind binutils systemd libvirt-daemon libvirt-clients libvirt-daemon-driver-qemu"
    [lint]="shellcheck"
)

missing=()
for part in "$@"; do
    for package in ${packages[$part]}; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed ||
            missing+=("$package")
    done
done
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "missing packages; as root: apt-get install ${missing[*]}" >&2
    exit 1
fi
echo "[deps] installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ apt-get update -q && apt-get install -q -y --no-install-recommends "${missing[@]}"; } >"$log" 2>&1 || {
    tail -n 30 "$log" >&2
    echo "[deps] could not install ${missing[*]}" >&2
    exit 1
}
