# SPDX-License-Identifier: Apache-2.0
"""Numbered streams between namespaces, from a process of their own (`stream_process.py`)."""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import msgspec

from tests.e2e.json_process import JsonProcess
from tests.e2e.world import REPOSITORY


class Way(NamedTuple):
    """A client's namespace, and the address that it asks."""

    name: str
    netns: str
    address: str
    port: int
    kinds: tuple[str, ...] = ("tcp", "new", "udp")


class Told(msgspec.Struct):
    """Sums over all streams of a stretch."""

    packets: int = 0
    lost: int = 0
    #: Longest time between two answers of a stream.
    gap_s: float = 0.0
    #: How late the clients themselves were, at most: part of the gap is theirs.
    late_s: float = 0.0
    broken: int = 0
    failures: list[str] = []
    #: Streams with a loss, by name.
    harmed: dict[str, int] = {}

    def harmless(self) -> bool:
        return not (self.lost or self.broken or self.failures)

    def add(self, other: Told) -> None:
        self.packets += other.packets
        self.lost += other.lost
        self.gap_s, self.late_s = max(self.gap_s, other.gap_s), max(self.late_s, other.late_s)
        self.broken += other.broken
        self.failures = [*self.failures, *other.failures][:50]
        for name, lost in other.harmed.items():
            self.harmed[name] = self.harmed.get(name, 0) + lost


class Streams:
    """The process; `close` ends it."""

    def __init__(self) -> None:
        command = [sys.executable, "-m", "tests.e2e.stream_process"]
        self._process = JsonProcess(command, REPOSITORY)

    def serve(self, netns: str, address: str, port: int) -> None:
        self._call("serve", netns, address, port)

    def open(self, way: Way) -> None:
        for kind in way.kinds:
            name = f"{way.name} {kind}"
            self._call("open", name, kind, way.netns, way.address, way.port)

    def all_answer(self, least: int = 3) -> bool:
        """Each stream had so many answers since the last `read`."""
        return all(count >= least for count in self._call("answered"))

    def read(self) -> Told:
        """Wait for what is out; what was noticed since the last time."""
        read = self._call("read")
        told = Told(late_s=read["late_s"])
        for one in read["clients"]:
            told.packets += one["sent"]
            told.lost += one["lost"]
            told.gap_s = max(told.gap_s, one["gap_s"])
            told.broken += one["broken"]
            told.failures += one["failures"]
            if one["lost"] or one["broken"]:
                told.harmed[one["name"]] = one["lost"] + one["broken"]
        return told

    def close(self) -> None:
        self._process.close()

    def _call(self, name: str, *args: Any) -> Any:
        return self._process.call({"call": name, "args": args})
