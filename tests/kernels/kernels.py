# SPDX-License-Identifier: Apache-2.0
"""Distribution kernels, fetched as packages and unpacked, not installed."""

from __future__ import annotations

import lzma
import subprocess
from pathlib import Path
from typing import NamedTuple

#: Meta packages of Debian 12: its own kernel, and the newer one of its backports.
PACKAGES = ("linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64")

#: What the tests need that these kernels have as modules; none of them depends on another.
MODULES = ("kernel/drivers/net/veth", "kernel/net/sched/sch_ingress", "kernel/net/sched/cls_bpf")


class Kernel(NamedTuple):
    """An unpacked kernel."""

    name: str
    image: Path
    modules: list[bytes]


def fetch(meta_package: str, directory: Path) -> Kernel:
    """The kernel that a meta package stands for, downloaded once.

    Raises: CalledProcessError when apt does not know it.
    """
    package = _concrete(meta_package)
    target = directory / package
    if not target.is_dir():
        _download(package, target)
    (image,) = (target / "boot").glob("vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    tree = target / "lib" / "modules" / release
    return Kernel(release, image, [_module(tree, name) for name in MODULES])


def _concrete(meta_package: str) -> str:
    """The package that a meta package depends on."""
    command = ["apt-cache", "depends", meta_package]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    raise RuntimeError(f"{meta_package} depends on no kernel image:\n{listing}")


def _download(package: str, target: Path) -> None:
    partial = target.with_name(target.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package]
    subprocess.run(command, cwd=partial, check=True)
    (deb,) = partial.glob("*.deb")
    subprocess.run(["dpkg", "-x", deb.name, "."], cwd=partial, check=True)
    deb.unlink()
    partial.rename(target)


def _module(tree: Path, name: str) -> bytes:
    """A module as the kernel takes it, uncompressed."""
    plain, packed = tree / f"{name}.ko", tree / f"{name}.ko.xz"
    return plain.read_bytes() if plain.exists() else lzma.decompress(packed.read_bytes())
