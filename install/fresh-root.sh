#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Proves that a person with a fresh Debian needs nothing but git and make: clones the last commit of
# this repository into a new Debian root (mmdebstrap) and runs commands there, each with its times.
# Usage: install/fresh-root.sh [SUITE] -- COMMAND... (each argument after -- is a line for a shell)
#
# The root has mount, pid, network, UTS, IPC and cgroup namespaces of its own. Its network reaches the
# outside through slirp4netns, in user space: packages come in, and no address or device of the root
# is one of this machine. The root of its cgroup file system is a cgroup made for it, so that what an
# agent attaches there sees none of this machine's processes, and goes with the cgroup.
set -euo pipefail
suite=bookworm
if [ "${1:-}" != -- ]; then suite=${1:-bookworm}; shift || true; fi
if [ "${1:-}" = -- ]; then shift; fi
[ $# -gt 0 ] || set -- "make run ONESHOT=1" "make test"

for program in mmdebstrap slirp4netns unshare git; do
    command -v "$program" >/dev/null || { echo "fresh-root: needs $program" >&2; exit 1; }
done
cgroup2=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
[ -n "$cgroup2" ] || { echo "fresh-root: no cgroup2 is mounted" >&2; exit 1; }
repository=$(git -C "$(dirname "$0")/.." rev-parse --show-toplevel)
work=$(mktemp -d /var/tmp/cilia-fresh.XXXXXX)
group=$cgroup2/${work##*/}
slirp=''

wait_until() { for _ in $(seq 100); do "$@" && return 0; sleep 0.05; done; return 1; }
undo() {
    [ -z "$slirp" ] || kill "$slirp" 2>/dev/null || true
    if [ -d "$group" ]; then
        echo 1 > "$group/cgroup.kill"
        wait_until grep -q "populated 0" "$group/cgroup.events"
        find "$group" -depth -type d -exec rmdir {} \;
    fi
    rm -rf --one-file-system "$work"
}
trap undo EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mkdir "$work/root"
if [ -n "${CILIA_FRESH_TARBALL:-}" ]; then
    tar -C "$work/root" -xf "$CILIA_FRESH_TARBALL"
else
    echo "fresh-root: making a $suite root"
    mmdebstrap --quiet --variant=minbase --include=git,make,ca-certificates "$suite" "$work/root"
fi
git clone --quiet "$repository" "$work/root/root/cilia"
cp /etc/ssl/certs/ca-certificates.crt "$work/root/etc/ssl/certs/"
echo "nameserver 10.0.2.3" > "$work/root/etc/resolv.conf"
printf '%s\n' "$@" > "$work/root/root/commands"
cat > "$work/root/root/run" <<'RUN'
#!/bin/bash
# Each command, then its times; all are run, and fails if one did.
cd /root/cilia
failed=0
while read -r line; do
    TIMEFORMAT="fresh-root: $line: %R s, of which the processors worked %U s for it and %S s in the kernel"
    time bash -c "$line" < /dev/null || { echo "fresh-root: failed: $line"; failed=1; }
done < /root/commands
exit $failed
RUN
mkfifo "$work/ready"
cat > "$work/inside" <<INSIDE
set -e
mount --make-rprivate /
mount --bind "$work/root" "$work/root"  # a mount point, as the root of a machine is
hostname fresh
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
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt bash /root/run
INSIDE

mkdir "$group"
# A new cgroup namespace has its root where the process that asks for it is.
(
    echo 0 > "$group/cgroup.procs"
    exec unshare --mount --net --uts --ipc --cgroup --pid --fork --kill-child bash "$work/inside"
) &
child=$!
namespaced() { [ "$(readlink /proc/$child/ns/net)" != "$(readlink /proc/self/ns/net)" ]; }
wait_until namespaced
slirp4netns --configure --mtu=1500 --disable-host-loopback "$child" tap0 > "$work/slirp.log" 2>&1 &
slirp=$!
namespaced_route() { nsenter -t "$child" -n ip route show default | grep -q tap0; }
wait_until namespaced_route
echo go > "$work/ready"
wait "$child"
