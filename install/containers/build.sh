#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds the images cilia and cilia-operator of this checkout, tagged with its version, with podman or
# buildah, whichever is there. BASE is the image to build on; EXTRA goes to the build as it is.
set -eu
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
if command -v podman >/dev/null; then build="podman build"
elif command -v buildah >/dev/null; then build="buildah build"
else echo "images: needs podman or buildah" >&2; exit 1
fi
for target in agent operator; do
    name=cilia; [ "$target" = agent ] || name=cilia-operator
    echo "images: $name:$version"
    # shellcheck disable=SC2086  # a command and options on purpose
    $build --layers --target "$target" --build-arg "BASE=${BASE:-debian:12}" --tag "$name:$version" \
        --ignorefile install/containers/Containerfile.containerignore ${EXTRA:-} \
        -f install/containers/Containerfile .
done
