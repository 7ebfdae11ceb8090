#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# A Debian image from no registry, made by mmdebstrap from packages, for `make images BASE=NAME`.
# Usage: install/containers/local-base.sh NAME [SUITE]. Does nothing if there is an image NAME.
set -eu
name=$1 suite=${2:-bookworm}
for tool in podman buildah; do command -v "$tool" >/dev/null && break; done
command -v "$tool" >/dev/null || { echo "local-base: needs podman or buildah" >&2; exit 1; }
command -v mmdebstrap >/dev/null || { echo "local-base: needs mmdebstrap" >&2; exit 1; }
if [ -n "$($tool images --quiet "$name" 2>/dev/null)" ]; then exit 0; fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
echo "local-base: $name, a Debian $suite"
mmdebstrap --quiet --variant=minbase "$suite" "$work/root.tar"
printf 'FROM scratch\nADD root.tar /\nCMD ["/bin/bash"]\n' > "$work/Containerfile"
$tool build --quiet --tag "$name" -f "$work/Containerfile" "$work"
