#!/bin/busybox sh
# First process of the guest: loads the virtio driver, sets up the NIC as the kernel command line says, then serves
# commands on the second serial port. Nobody logs in; after a reboot the guest is back by itself.
#
# Protocol (see vm.rs): a line "ID BASE64(command)" in; out come "<ID RC", the output in base64, and ">ID".

export PATH=/opt:/bin
/bin/busybox mkdir -p /proc /sys /dev /tmp /run
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules/order); do insmod "/modules/$module"; done

id=1
mtu=1500
ipv6=
for word in $(cat /proc/cmdline); do
    case $word in
        e2e.id=*) id=${word#*=} ;;
        e2e.mtu=*) mtu=${word#*=} ;;
        e2e.ipv6) ipv6=yes ;;
    esac
done
ip link set lo up
ip link set eth0 mtu "$mtu"
ip address add "10.99.0.$id/24" dev eth0
# Before the link is up, and with no search for a second owner of the address: it can be used at once.
if [ "$ipv6" ]; then
    echo 0 >/proc/sys/net/ipv6/conf/eth0/accept_dad
    ip address add "fd99::$id/64" dev eth0
fi
ip link set eth0 up
# Fixed neighbours: an outage is then the port's alone, with no address resolution to wait for afterwards.
for peer in 1 2 3 4 251 252 253 254; do
    [ "$peer" = "$id" ] && continue
    arp -i eth0 -s "10.99.0.$peer" "52:54:00:00:00:$(printf %02x "$peer")"
done

# Whoever runs QEMU may press its power button; `virsh shutdown` does.
for event in /sys/class/input/event*; do
    grep -qx 'Power Button' "$event/device/name" || continue
    (dd if="/dev/input/${event##*/}" of=/dev/null bs=24 count=1 2>/dev/null; poweroff -f) &
done

# In a subshell: processes that lose their parent come to process 1, and the SIGCHLD of their end would make the
# shell's read lose what it has read of a line so far.
(
    stty -F /dev/ttyS1 raw -echo
    exec 3<>/dev/ttyS1
    echo READY >&3
    while read -r request command <&3; do
        printf %s "$command" | base64 -d >/tmp/command
        sh /tmp/command >/tmp/output 2>&1 3>&- </dev/null
        status=$?
        { echo "<$request $status"; base64 /tmp/output; echo ">$request"; } >&3
    done
)
