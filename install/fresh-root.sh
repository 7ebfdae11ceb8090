#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves that a person with a fresh Debian needs nothing but git and make: clones this repository
# into a new Debian 12 root (mmdebstrap) with mount, pid and network namespaces of its own, and runs
# the commands there. Usage: install/fresh-root.sh [SUITE] -- COMMAND...
# The namespace reaches the network through slirp4netns, in user space: packages come in, and no
# address of the namespace is one of this machine.
set -euo pipefail
suite=bookworm
if [ "${1:-}" != -- ]; then suite=${1:-bookworm}; shift || true; fi
[ "${1:-}" = -- ] && shift
command=${*:-make run ONESHOT=1 && make test}

for program in mmdebstrap slirp4netns unshare git; do
    command -v "$program" >/dev/null || { echo "fresh-root: needs $program" >&2; exit 1; }
done
repository=$(git -C "$(dirname "$0")/.." rev-parse --show-toplevel)
work=$(mktemp -d /var/tmp/cilia-fresh.XXXXXX)
trap 'rm -rf --one-file-system "$work"' EXIT
tarball=${CILIA_FRESH_TARBALL:-}
mkdir "$work/root"
if [ -n "$tarball" ] && [ -e "$tarball" ]; then
    tar -C "$work/root" -xf "$tarball"
else
    echo "fresh-root: making a $suite root"
    mmdebstrap --quiet --variant=minbase --include=git,make,ca-certificates "$suite" "$work/root"
fi
git clone --quiet "$repository" "$work/root/root/cilia"
cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/"
echo "nameserver 10.0.2.3" > "$work/root/etc/resolv.conf"
mkfifo "$work/ready"
cat > "$work/inside" <<INSIDE
set -e
mount --make-rprivate /
mount --bind "$work/root" "$work/root"  # a mount point, as the root of a machine is
ip link set lo up
read -r _ < "$work/ready"
mount --rbind /dev "$work/root/dev"
mount -t proc proc "$work/root/proc"
mount -t sysfs sysfs "$work/root/sys"
mkdir -p "$work/root/sys/fs/cgroup"
mount -t cgroup2 cgroup2 "$work/root/sys/fs/cgroup"
mount -t tmpfs tmpfs "$work/root/run"
exec chroot "$work/root" /usr/bin/env -i HOME=/root TERM=dumb LANG=C.UTF-8 \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    bash -c 'cd /root/cilia && $command'
INSIDE
unshare --mount --net --pid --fork --kill-child bash "$work/inside" &
child=$!
sleep_until() { for _ in $(seq 100); do "$@" && return 0; sleep 0.05; done; return 1; }
namespaced() { [ "$(readlink /proc/$child/ns/net)" != "$(readlink /proc/self/ns/net)" ]; }
sleep_until namespaced
slirp4netns --configure --mtu=1500 --disable-host-loopback "$child" tap0 >"$work/slirp.log" 2>&1 &
slirp=$!
trap 'kill $slirp 2>/dev/null; rm -rf --one-file-system "$work"' EXIT
namespaced_route() { nsenter -t "$child" -n ip route show default | grep -q tap0; }
sleep_until namespaced_route
echo go > "$work/ready"
wait "$child"
