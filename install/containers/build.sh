#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the images cilia and cilia-operator of this checkout, tagged with its version, with podman or
# buildah, whichever is there. BASE is the image to build on; EXTRA goes to the build as it is; into
# the directory ARCHIVES, if there is one, the images are also written as files for `ctr images import`.
# CA_FILE: certificates of who signs for the package registry here, as PIP_CERT names them for this machine's
# own pip; they do not come into the images.
set -eu
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
for tool in podman buildah; do command -v "$tool" >/dev/null && break; done
command -v "$tool" >/dev/null || { echo "images: needs podman or buildah" >&2; exit 1; }
ca_file=${CA_FILE:-${PIP_CERT:-${SSL_CERT_FILE:-}}}
for target in agent operator; do
    name=cilia; [ "$target" = agent ] || name=cilia-operator
    echo "images: $name:$version"
    # shellcheck disable=SC2086  # a command and options on purpose
    $tool build --layers --target "$target" --build-arg "BASE=${BASE:-debian:12}" \
        --tag "$name:$version" --ignorefile install/containers/Containerfile.containerignore \
        ${ca_file:+--secret "id=ca,src=$ca_file"} ${EXTRA:-} -f install/containers/Containerfile .
    if [ -n "${ARCHIVES:-}" ]; then
        mkdir -p "$ARCHIVES"
        rm -f "$ARCHIVES/$name.tar"  # an archive there would get a second image
        $tool push --quiet "$name:$version" "docker-archive:$ARCHIVES/$name.tar:localhost/$name:$version"
    fi
done
