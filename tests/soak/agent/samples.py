# SPDX-License-Identifier: Apache-2.0
"""What an agent holds at one moment: its process from outside, its metrics, its maps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from bpf.maps.ct import CT_MAPS
from bpf.maps.map import Map
from bpf.maps.nat import NAT_MAPS
from cilia.api.client import request_text
from statedb.holders import OLD_S
from statedb.web.remote import RemoteDB
from tests.soak.memory import PAGE_KIB

#: Metrics of what is live, which the agent of the soak has beside its own.
BLOCKS = "cilia_soak_live_blocks"
MALLOC = "cilia_soak_live_malloc_kib"
#: Its time is taken beside that of commits: a machine that is busier is slower at both.
REFERENCE_STEPS = 20_000


class Sample(NamedTuple):
    """At `second` of the run; times in microseconds."""

    second: float
    kib: int
    #: Blocks of Python's allocator that are in use and no garbage.
    blocks: int
    #: What malloc has given out: larger objects, and what libraries have.
    malloc_kib: int
    descriptors: int
    threads: int
    #: Deleted rows that are kept for somebody, of all tables.
    deleted: int
    #: Age of the oldest snapshot that somebody holds.
    snapshot_s: float
    trackers: int
    #: Time series of its metrics: a label that is never forgotten shows here.
    series: int
    #: Entries of the maps that programs fill, and of those of Services.
    flows: int
    services: int
    #: Mean time that a write transaction held its tables since the sample before.
    commit_us: float
    commits: int
    reference_us: float


class Sampler:
    """Takes samples of one agent."""

    def __init__(self, pid: int, socket: Path, maps: Path) -> None:
        self._proc = Path(f"/proc/{pid}")
        self._socket = str(socket)
        self._maps = maps
        self._start = time.monotonic()
        self._commits = (0.0, 0.0)
        #: Places in the agent's code that had an old snapshot.
        self.holders: set[str] = set()

    def take(self) -> Sample:
        values = list(self._values())
        total = _Sums(values)
        count = total["cilia_statedb_write_txn_duration_seconds_count"]
        spent = total["cilia_statedb_write_txn_duration_seconds_sum"]
        before, self._commits = self._commits, (count, spent)
        commits = count - before[0]
        snapshot_s = total["cilia_statedb_oldest_snapshot_seconds"]
        if snapshot_s > OLD_S:
            held = RemoteDB(self._socket).summary()["oldest_snapshot"]
            self.holders.update(held["places"] if held else ())
        return Sample(
            second=time.monotonic() - self._start,
            kib=int((self._proc / "statm").read_text().split()[1]) * PAGE_KIB,
            blocks=int(total[BLOCKS]),
            malloc_kib=int(total[MALLOC]),
            descriptors=len(list((self._proc / "fd").iterdir())),
            threads=len(list((self._proc / "task").iterdir())),
            deleted=int(total["cilia_statedb_table_deleted_objects"]),
            snapshot_s=snapshot_s,
            trackers=int(total["cilia_statedb_table_trackers"]),
            series=len(values),
            flows=sum(self._entries(name) for name in (*CT_MAPS, *NAT_MAPS)),
            services=sum(
                self._entries(path.name) for path in sorted(self._maps.glob("cilia_lb[46]_svc"))
            ),
            commit_us=(spent - before[1]) / commits * 1e6 if commits else 0.0,
            commits=int(commits),
            reference_us=reference_us(),
        )

    def _values(self) -> Iterator[tuple[str, float]]:
        text = request_text(self._socket, "/metrics", timeout_s=60.0)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                yield sample.name, sample.value

    def _entries(self, name: str) -> int:
        with Map.open_pinned(self._maps / name) as opened:
            return sum(1 for _ in opened.items())


class _Sums:
    """Values of metrics, added over their labels."""

    def __init__(self, values: list[tuple[str, float]]) -> None:
        self._values: dict[str, float] = {}
        for name, value in values:
            self._values[name] = self._values.get(name, 0.0) + value

    def __getitem__(self, name: str) -> float:
        return self._values[name]


def reference_us() -> float:
    """Time of a fixed piece of work of this process."""
    began = time.perf_counter()
    held: dict[int, int] = {}
    for number in range(REFERENCE_STEPS):
        held[number % 997] = held.get(number % 991, 0) + 1
    return (time.perf_counter() - began) * 1e6
