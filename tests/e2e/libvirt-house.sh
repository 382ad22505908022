#!/bin/sh
# Furnishes a mount namespace for libvirt (see libvirt.rs), so that it finds what a host with its system packages has, and
# what it writes comes into a folder of the case.
# Usage: libvirt-house.sh FOLDER RUN_DIRECTORY_OF_OPEN_VSWITCH
set -eu
house=$1
switch=$2

for place in /etc/libvirt /run /var/cache /var/lib /var/log; do
    mkdir -p "$house$place"
    mount --bind "$house$place" "$place"
done
mkdir -p /run/openvswitch /var/lib/libvirt /var/log/libvirt/qemu
mount --bind "$switch" /run/openvswitch

# QEMU's user, with Debian's number.
for file in /etc/passwd /etc/group; do
    cp "$file" "$house$file"
    mount --bind "$house$file" "$file"
done
if ! grep -q '^libvirt-qemu:' /etc/passwd; then
    echo 'libvirt-qemu:x:64055:64055::/var/lib/libvirt:/usr/sbin/nologin' >>/etc/passwd
    echo 'libvirt-qemu:x:64055:' >>/etc/group
fi

# Where KVM is of no use, libvirt would look for it again with each definition, for seconds.
if [ -e /dev/kvm ]; then
    : >"$house/no-kvm"
    chmod 600 "$house/no-kvm"
    mount --bind "$house/no-kvm" /dev/kvm
fi

echo 'auth_unix_rw = "none"' >/etc/libvirt/libvirtd.conf
# No control groups, no AppArmor, no /dev of QEMU's own: a machine for tests may lack them. No huge pages: nothing is to be
# left on their file system, which is the machine's.
cat >/etc/libvirt/qemu.conf <<END
cgroup_controllers = []
security_driver = "none"
namespaces = []
hugetlbfs_mount = []
END
