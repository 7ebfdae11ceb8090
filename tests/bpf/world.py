# SPDX-License-Identifier: Apache-2.0
"""What privileged tests stand on: a cgroup, a bpffs directory and a network namespace of their own.

``World.in_child`` runs a function in a forked process inside the cgroup and in a new network
namespace that has only loopback, so a packet that was not translated has nowhere to go.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pickle
import signal
import socket
import struct
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")

CLONE_NEWNET = 0x40000000
MNT_DETACH = 2
SIOCSIFFLAGS = 0x8914
IFF_UP = 1

CHILD_TIMEOUT_S = 15

_libc = ctypes.CDLL(None, use_errno=True)


class ChildFailed(AssertionError):
    """The function raised in the child; the message is its traceback."""


class World(NamedTuple):
    """Where one test may put things."""

    bpffs: Path
    cgroup: Path

    def in_child(self, function: Callable[[], T]) -> T:
        """Run ``function`` in the cgroup and a new network namespace; its result must pickle."""
        return fork_and_run(lambda: self._enter_and_run(function))

    def _enter_and_run(self, function: Callable[[], T]) -> T:
        (self.cgroup / "cgroup.procs").write_text(str(os.getpid()))
        new_network_namespace()
        return function()


def fork_and_run(function: Callable[[], T]) -> T:
    """Run ``function`` in a forked process. Raises: ChildFailed with the child's traceback."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _run_and_exit(function, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        raw = pipe.read()
    _, status = os.waitpid(pid, 0)
    if not raw:
        raise ChildFailed(f"the child ended with status {status} and said nothing")
    ok, result = pickle.loads(raw)
    if not ok:
        raise ChildFailed(result)
    return result  # type: ignore[no-any-return]


def _run_and_exit(function: Callable[[], object], writer: int) -> None:
    signal.alarm(CHILD_TIMEOUT_S)
    try:
        answer = (True, function())
    except BaseException:  # noqa: BLE001  (everything goes to the parent)
        answer = (False, traceback.format_exc())
    with os.fdopen(writer, "wb") as pipe:
        pipe.write(pickle.dumps(answer))
    os._exit(0)


def new_network_namespace() -> None:
    """Move this thread to a new network namespace with loopback up."""
    if _libc.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))


def unmount(path: Path) -> None:
    """Take a mount away now; what still uses it keeps it alive."""
    if _libc.umount2(os.fsencode(path), MNT_DETACH):
        raise OSError(ctypes.get_errno(), "umount", str(path))


class NetworkNamespace:
    """A named namespace of the test's own; ``enter`` moves this thread there and back."""

    def __init__(self, name: str) -> None:
        self.name = name
        run_ip("netns", "add", name)
        self.run("link", "set", "lo", "up")

    def close(self) -> None:
        run_ip("netns", "del", self.name)

    def run(self, *args: str) -> None:
        """``ip`` inside the namespace."""
        run_ip("-n", self.name, *args)

    def veth(self, name: str, peer: str) -> None:
        """A pair of devices, both in the namespace and up."""
        self.run("link", "add", name, "type", "veth", "peer", "name", peer)
        for device in (name, peer):
            self.run("link", "set", device, "up")

    def ifindex(self, device: str) -> int:
        with self.enter():
            return socket.if_nametoindex(device)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Run the block with this thread in the namespace."""
        with open("/proc/thread-self/ns/net") as home, open(f"/run/netns/{self.name}") as there:
            if _libc.setns(there.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
            try:
                yield
            finally:
                if _libc.setns(home.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")


def run_ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True)


def open_descriptors() -> list[str]:
    """What the descriptors of this process point to, sorted."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return sorted(found)


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 5.0) -> None:
    """Poll for what the kernel does later and announces nowhere (freeing after a grace period)."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.01)
