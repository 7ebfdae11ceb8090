# SPDX-License-Identifier: Apache-2.0
"""A network namespace of a test's own, and «someone else» in it: the ip command, not our code."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from cilia.linux.netns import NetNS


class Kernel:
    """A namespace without a way out; `ip` runs in it."""

    def __init__(self, netns: NetNS) -> None:
        self.netns = netns

    def _run(self, *command: str, text: str | None = None, check: bool = True) -> str:
        done = subprocess.run(
            ["nsenter", f"--net={self.netns.path}", *command],
            input=text,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(command)}: {done.stderr}{text or ''}")
        return done.stdout

    def ip(self, arguments: str) -> str:
        """``ip ARGUMENTS``; fails the test if the command does."""
        return self._run("ip", *arguments.split())

    def ip_batch(self, lines: Iterable[str]) -> None:
        """Many commands in one process, in order."""
        self._run("ip", "-batch", "-", text="\n".join(lines) + "\n")

    def tc(self, arguments: str) -> str:
        """``tc ARGUMENTS``."""
        return self._run("tc", *arguments.split())

    def veth(self, name: str, peer: str, *addresses: str, up: bool = True) -> None:
        """A pair of devices, up, with addresses on the first."""
        lines = [f"link add {name} type veth peer name {peer}"]
        if up:
            lines += [f"link set {name} up", f"link set {peer} up"]
        lines += [f"addr add {address} dev {name}" for address in addresses]
        self.ip_batch(lines)


@contextmanager
def new_kernel() -> Iterator[Kernel]:
    """A fresh namespace with its loopback up, gone at the end."""
    with NetNS.new() as netns:
        kernel = Kernel(netns)
        kernel.ip("link set lo up")
        yield kernel
