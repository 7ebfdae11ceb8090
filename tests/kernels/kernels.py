# SPDX-License-Identifier: Apache-2.0
"""Distribution kernels, fetched as packages and unpacked, not installed."""

from __future__ import annotations

import lzma
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

#: Meta packages of Debian 12: its own kernel, and the newer one of its backports.
PACKAGES = ("linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64")

#: What the tests need that these kernels have as modules.
MODULES = (
    *("veth", "bridge", "sch_ingress", "cls_bpf"),
    *("nf_tables", "nft_chain_nat", "nft_masq"),
)

#: What the kernel loads itself when a program needs it.
ON_DEMAND = ("inet_diag", "tcp_diag", "udp_diag")


class Kernel(NamedTuple):
    """An unpacked kernel."""

    name: str
    image: Path
    #: Contents, each behind those that it depends on.
    modules: list[bytes]
    #: The same for each alias by which the kernel asks for a module.
    on_demand: dict[str, list[bytes]]


def fetch(meta_package: str, directory: Path) -> Kernel:
    """The kernel that a meta package stands for, downloaded once.

    Raises: RuntimeError when apt does not know it, CalledProcessError when it cannot be had.
    """
    package = _concrete(meta_package)
    target = directory / package
    if not target.is_dir():
        _download(package, target)
    (image,) = (target / "boot").glob("vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    tree = target / "lib" / "modules" / release
    modules: dict[str, bytes] = {}
    for name in MODULES:
        _add_with_dependencies(tree, name, modules)
    return Kernel(release, image, list(modules.values()), _on_demand(tree))


def _on_demand(tree: Path) -> dict[str, list[bytes]]:
    found = {}
    for name in ON_DEMAND:
        modules: dict[str, bytes] = {}
        _add_with_dependencies(tree, name, modules)
        for alias in _told(modules.get(name, b""), "alias"):
            found[alias] = list(modules.values())
    return found


def _concrete(meta_package: str) -> str:
    """The package that a meta package depends on; the package index is read if it is missing."""
    found = _depends(meta_package)
    if not found:
        subprocess.run(["apt-get", "update", "-qq", "-o", "APT::Sandbox::User=root"], check=True)
        found = _depends(meta_package)
    if not found:
        raise RuntimeError(f"{meta_package} depends on no kernel image")
    return found


def _depends(meta_package: str) -> str:
    """The kernel image that a meta package depends on, empty if the index does not tell."""
    command = ["apt-cache", "depends", meta_package]
    listing = subprocess.run(command, check=False, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("linux-image-"):
            return name
    return ""


def _download(package: str, target: Path) -> None:
    partial = target.with_name(target.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    command = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", package]
    subprocess.run(command, cwd=partial, check=True)
    (deb,) = partial.glob("*.deb")
    subprocess.run(["dpkg", "-x", deb.name, "."], cwd=partial, check=True)
    deb.unlink()
    partial.rename(target)


def _add_with_dependencies(tree: Path, name: str, found: dict[str, bytes]) -> None:
    """A module behind those that its own text names; what is built in has no file."""
    files = [path for path in tree.rglob("*.ko*") if _module_name(path) == name]
    if name in found or not files:
        return
    content = files[0].read_bytes()
    if files[0].suffix == ".xz":
        content = lzma.decompress(content)
    for depends in _told(content, "depends"):
        for other in depends.split(","):
            _add_with_dependencies(tree, other, found)
    found[name] = content


def _told(module: bytes, field: str) -> list[str]:
    """The values of a field that a module has in its own text."""
    return [
        value.decode() for value in re.findall(rb"\0%b=([^\0]*)(?=\0)" % field.encode(), module)
    ]


def _module_name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")
