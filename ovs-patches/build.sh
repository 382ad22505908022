#!/bin/sh
# Builds the Open vSwitch that the plugin is compiled against and loaded into:
# a copy of the source, the series of patches for its version, configure, make.
# README.md beside this file says what the patches are for.
#
# DEST is both source and build tree.  A stamp in it holds a checksum of
# everything that went into the build, so that a second call has nothing to do.
# Besides DEST, only DEST.log and DEST.lock are written.

set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(dirname -- "$here")
script=$here/$(basename -- "$0")

usage() {
    cat <<USAGE
usage: ovs-patches/build.sh [--without-dpdk] [--stock] [DEST]

Builds Open vSwitch in DEST, unless DEST is up to date.

  --without-dpdk  configure without DPDK
  --stock         do not apply the patches, for comparison
  DEST            default: target/ovs, target/ovs-nodpdk, target/ovs-stock or
                  target/ovs-stock-nodpdk, according to the options

The source is the tree \$OVS_SRC if that is set (it is copied, never modified),
otherwise $tarball.
USAGE
}

say() {
    echo "[ovs] $*"
}

die() {
    echo "[ovs] error: $*" >&2
    exit 1
}

# Runs a function or command with its output in the log.  Shows the end of the
# log if it fails.
step() {
    say "$1"
    shift
    "$@" >>"$log" 2>&1 || {
        tail -n 40 -- "$log" >&2
        die "that failed, the whole output is in $log"
    }
}

configure_ac() {
    if [ -n "$source_tree" ]; then
        cat -- "$source_tree/configure.ac"
    else
        # The first occurrence ends the reading of the archive.
        tar -xzOf "$tarball" --occurrence=1 openvswitch/configure.ac
    fi
}

# Identifies the content of the source.  Names, sizes and times stand in for
# the content of a tree, which would take too long to read.
source_id() {
    if [ -n "$source_tree" ]; then
        (cd -- "$source_tree" &&
            find . -name .git -prune -o -type f -printf '%P %s %T@\n' | sort)
    else
        sha256sum <"$tarball"
    fi
}

patches() {
    [ "$stock" = yes ] || grep -v -e '^#' -e '^ *$' "$series/series"
}

# The checksum of everything that a build depends on and that may change.
fingerprint() {
    {
        echo "$dpdk_arg"
        source_id
        cat -- "$script"
        patches | while read -r patch; do
            echo "$patch"
            cat -- "$series/$patch"
        done
        "${CC:-cc}" --version
        [ "$dpdk" = no ] || pkg-config --modversion libdpdk
    } 2>&1 | sha256sum
}

up_to_date() {
    [ -f "$stamp" ] && [ "$(cat -- "$stamp")" = "$wanted" ]
}

unpack() {
    rm -rf -- "$dest" && mkdir -p -- "$dest" && : >"$dest/$marker" || return
    if [ -n "$source_tree" ]; then
        tar -C "$source_tree" --exclude-vcs -cf - . | tar -C "$dest" -xf -
    else
        tar -C "$dest" --strip-components=1 --no-same-owner -xzf "$tarball"
    fi
}

apply_patches() {
    patches | while read -r patch; do
        echo "applying $patch"
        patch -d "$dest" -p1 --batch --forward <"$series/$patch" || exit
    done
}

# The patches touch the input of autoconf and automake, hence boot.sh.
configure() (
    cd -- "$dest" && ./boot.sh &&
        ./configure "$dpdk_arg" CFLAGS='-g -O2'
)

build() {
    make -C "$dest" -j"$(nproc)"
}

# The settings of a build around this script are not meant for Open vSwitch.
unset MAKEFLAGS MFLAGS MAKELEVEL MAKEOVERRIDES CPPFLAGS LDFLAGS
export LC_ALL=C

tarball=/usr/src/openvswitch/openvswitch.tar.gz
source_tree=${OVS_SRC:-}
marker=.ovs-build
dpdk=yes
stock=no
dest=

while [ $# -gt 0 ]; do
    case $1 in
        --without-dpdk) dpdk=no ;;
        --stock) stock=yes ;;
        -h | --help)
            usage
            exit
            ;;
        -*)
            usage >&2
            exit 2
            ;;
        *)
            if [ -n "$dest" ]; then
                usage >&2
                exit 2
            fi
            dest=$1
            ;;
    esac
    shift
done

if [ -z "$dest" ]; then
    dest=$root/target/ovs
    [ "$stock" = no ] || dest=$dest-stock
    [ "$dpdk" = yes ] || dest=$dest-nodpdk
fi
mkdir -p -- "$(dirname -- "$dest")"
dest=$(CDPATH='' cd -- "$(dirname -- "$dest")" && pwd)/$(basename -- "$dest")
log=$dest.log
stamp=$dest/$marker

if [ "$dpdk" = yes ]; then
    dpdk_arg=--with-dpdk=shared
else
    dpdk_arg=--without-dpdk
fi

if [ -n "$source_tree" ]; then
    [ -f "$source_tree/configure.ac" ] ||
        die "OVS_SRC=$source_tree is not an Open vSwitch source tree"
    [ ! -e "$source_tree/config.status" ] ||
        die "OVS_SRC=$source_tree is configured, a clean tree is needed"
else
    [ -f "$tarball" ] ||
        die "no source: set OVS_SRC or install package openvswitch-source"
fi

version=$(configure_ac |
    sed -n 's/^AC_INIT(\[*openvswitch\]*, *\[*\([0-9.]*\).*/\1/p')
[ -n "$version" ] || die "no version of openvswitch in configure.ac"
series=$here/$(echo "$version" | cut -d. -f1,2)
[ "$stock" = yes ] || [ -f "$series/series" ] ||
    die "there are no patches for Open vSwitch $version (no $series/series)"

wanted=$(fingerprint)
if up_to_date; then
    say "$dest is up to date"
    exit
fi

# Two builds in one place would ruin each other.  The second one to come waits
# and then, usually, has nothing left to do.
exec 9>"$dest.lock"
flock -n 9 || {
    say "waiting for another build of $dest"
    flock 9
}
if up_to_date; then
    say "$dest is up to date"
    exit
fi

# DEST is about to be deleted: only if this script made it.
[ ! -d "$dest" ] || [ -f "$dest/$marker" ] || rmdir -- "$dest" 2>/dev/null ||
    die "$dest exists and was not made by this script, move it away"

: >"$log"
step "unpack Open vSwitch $version into $dest" unpack
[ "$stock" = yes ] || step "patch" apply_patches
step "configure $dpdk_arg" configure
step "build" build

# Last, and at once: an interrupted build must not look complete.
echo "$wanted" >"$stamp.tmp"
mv -f -- "$stamp.tmp" "$stamp"
say "done: $dest"
