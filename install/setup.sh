#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Everything that `make run` and `make test` need: Debian packages, the virtual environment with the
# locked dependencies, the cffi extension, the BPF objects and the CNI plugin. Says what it installs,
# does nothing twice: each step is skipped when what it provides is there (found by probing, never by
# the name of the distribution).
set -eu
cd "$(dirname "$0")/.."

fail() { printf 'setup: %s\n' "$1" >&2; exit 1; }

# A candidate version in the package index of this machine.
has_candidate() { apt-cache policy "$1" 2>/dev/null | grep -q 'Candidate: [^(]'; }

pick_clang() {
    for name in clang-16 clang-19 clang-18 clang-17 clang; do
        if has_candidate "$name"; then echo "$name"; return; fi
    done
    echo clang
}

have_clang() {
    for name in clang-16 clang-19 clang-18 clang-17 clang-20 clang clang-15 clang-14; do
        command -v "$name" >/dev/null 2>&1 && return 0
    done
    return 1
}

packages() {
    command -v gcc >/dev/null 2>&1 || echo gcc
    echo '#include <stdio.h>' | gcc -E - >/dev/null 2>&1 || echo libc6-dev
    [ -e /usr/include/bpf/libbpf.h ] || echo libbpf-dev
    [ -e /usr/include/linux/bpf.h ] || echo linux-libc-dev
    have_clang || echo CLANG
    command -v python3 >/dev/null 2>&1 || echo python3
    python3 -c 'import ensurepip' 2>/dev/null || echo python3-venv
    python3 -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null ||
        echo python3-dev
    [ -e /etc/ssl/certs/ca-certificates.crt ] || echo ca-certificates
    for extra in ${CILIA_EXTRA_COMMANDS:-}; do  # command:package pairs that a target needs on top
        command -v "${extra%%:*}" >/dev/null 2>&1 || echo "${extra##*:}"
    done
}

wanted=$(packages | sort -u | tr '\n' ' ')
if [ -n "${wanted% }" ]; then
    command -v apt-get >/dev/null 2>&1 ||
        fail "missing: ${wanted}- install them with your package manager (this script knows apt-get only)"
    [ "$(id -u)" = 0 ] || fail "missing: ${wanted}- run once as root, or install them by hand"
    echo "setup: reading the package index"
    DEBIAN_FRONTEND=noninteractive apt-get update -qq
    wanted=$(echo "$wanted" | sed "s/CLANG/$(pick_clang)/")
    echo "setup: installing Debian packages: $wanted"
    # shellcheck disable=SC2086  # a list of words on purpose
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $wanted >/dev/null
fi

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "Python $(python3 -V | cut -d' ' -f2) is too old: cilia needs Python 3.11 or newer (Debian 12, Ubuntu 24.04)"

stamp() { cat "$@" | sha256sum | cut -c1-16; }
marker() { mkdir -p .venv/stamps; rm -f ".venv/stamps/$1-"*; : > ".venv/stamps/$1-$2"; }

# A virtual environment that was moved, or whose interpreter is gone, is made anew.
if ! .venv/bin/python -c 'import sys' 2>/dev/null || [ "$(cat .venv/stamps/home 2>/dev/null)" != "$PWD" ]; then
    echo "setup: making the virtual environment .venv"
    rm -rf .venv
    python3 -m venv .venv
    mkdir -p .venv/stamps && echo "$PWD" > .venv/stamps/home
fi
locked=$(stamp requirements.lock)
if [ ! -e ".venv/stamps/locked-$locked" ]; then
    echo "setup: installing $(grep -c '^[a-z].*==' requirements.lock) locked Python packages"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
    marker locked "$locked"
fi
extension=$(stamp pyproject.toml cffi_build.py bpf/binding.c bpf/binding.cdef bpf/lib/*_types.h requirements.lock)
if [ ! -e ".venv/stamps/extension-$extension" ]; then
    echo "setup: building the libbpf extension and installing cilia (editable)"
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
    marker extension "$extension"
fi
finder=$(stamp cilia/compiled_modules.py)
if [ ! -e ".venv/stamps/finder-$finder" ]; then
    .venv/bin/python cilia/compiled_modules.py  # has this environment use compiled modules that fit
    marker finder "$finder"
fi
sources=$(stamp bpf/compile.py bpf/*.bpf.c bpf/lib/*.h)
if [ ! -e ".venv/stamps/objects-$sources" ]; then
    echo "setup: compiling the BPF objects"
    .venv/bin/python -c 'from bpf.compile import build_prebuilt; build_prebuilt()'
    marker objects "$sources"
fi
# The CNI plugin is for whoever makes cilia the pod network; a machine without a static C library
# does all else.
forwarder=$(stamp cilia/endpoints/cni/forwarder.py cni/*.[ch])
if [ ! -e ".venv/stamps/forwarder-$forwarder" ] || [ ! -x cilia/endpoints/cni/bin/cilia-cni ]; then
    echo "setup: building the CNI plugin"
    if .venv/bin/python -m cilia.endpoints.cni.forwarder; then
        marker forwarder "$forwarder"
    else
        echo "setup: without it nothing else is missing" >&2
    fi
fi
# Compiled Python modules are used while they fit their sources; without them nothing fails. They take
# minutes to compile, so only who asks for speed (make native) waits for them.
if [ "${CILIA_BUILD_COMPILED:-0}" = 1 ]; then
    .venv/bin/python cffi_build.py native || echo "setup: what could not be compiled runs interpreted" >&2
fi
