# SPDX-License-Identifier: Apache-2.0
"""How full the BPF maps are: a gauge a map, and a word in the log when one is nearly full.

The maps that a reconciler writes are known from its own state. The others, which programs write,
are counted at a low rate and in a worker thread, because the kernel tells no number of entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import anyio
import anyio.to_thread
import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bpf.maps.raw import RawMap

log = structlog.get_logger("map-pressure")

# Reading 500,000 connections takes a quarter of a second of one core.
COUNT_INTERVAL_S: Final = 300.0
# From here on an operator has to act: what does not fit is refused, or evicts what is in use.
NEARLY_FULL: Final = 0.8

# The option that sizes a map, for those that programs fill, and those that grow with the cluster.
OPTIONS: Final = {
    "cilia_ct4_tcp": "--bpf-ct-global-tcp-max",
    "cilia_ct6_tcp": "--bpf-ct-global-tcp-max",
    "cilia_ct4_any": "--bpf-ct-global-any-max",
    "cilia_ct6_any": "--bpf-ct-global-any-max",
    "cilia_snat4": "--bpf-nat-global-max",
    "cilia_snat6": "--bpf-nat-global-max",
    "cilia_nodes4": "--bpf-node-map-max",
    "cilia_nodes6": "--bpf-node-map-max",
}


def _untold(ok: bool, message: str) -> None:
    """Tell nobody."""


class MapPressure(Collector):
    """`cilia_bpf_map_pressure`, the used part of each map."""

    def __init__(
        self,
        maps: Iterable[RawMap],
        interval_s: float = COUNT_INTERVAL_S,
        tell: Callable[[bool, str], None] = _untold,
    ) -> None:
        """`tell`: gets False and a sentence while maps that `OPTIONS` names are nearly full."""
        self._maps = {raw.name: raw for raw in maps}
        self._known: list[Callable[[], Mapping[str, int]]] = []
        self._watched: dict[str, Callable[[], int]] = {}
        self._interval_s = interval_s
        self._tell = tell
        self._counted: dict[str, int] = {}
        self._full: set[str] = set()

    def watch(self, raw: RawMap, entries: Callable[[], int]) -> None:
        """Look at a further map, whose entries a feature knows; the status shows it too."""
        self._maps[raw.name] = raw
        self._watched[raw.name] = entries
        self.know(lambda: {raw.name: entries()})

    def watched(self) -> list[dict[str, Any]]:
        """Return what the status shows of the maps that features named."""
        return [
            {"name": name, "entries": entries(), "max_entries": self._maps[name].max_entries}
            for name, entries in self._watched.items()
        ]

    def know(self, entries: Callable[[], Mapping[str, int]]) -> None:
        """Name entries by the name of the map, of maps that need not be counted."""
        self._known.append(entries)

    def _known_entries(self) -> dict[str, int]:
        return {name: count for known in self._known for name, count in known().items()}

    def pressures(self) -> dict[str, float]:
        """The used part by the name of the map, of those whose entries are known."""
        entries = {**self._counted, **self._known_entries()}
        return {
            name: entries[name] / raw.max_entries
            for name, raw in self._maps.items()
            if name in entries
        }

    def collect(self) -> Iterator[Metric]:
        gauge = GaugeMetricFamily(
            "cilia_bpf_map_pressure", "Used part of a BPF map.", labels=["map_name"]
        )
        for name, used in self.pressures().items():
            gauge.add_metric([name], used)
        yield gauge

    async def run(self) -> None:
        """Count what nobody knows, and say what is nearly full; runs forever."""
        while True:
            self._counted = await anyio.to_thread.run_sync(self._count)
            self._warn()
            await anyio.sleep(self._interval_s)

    def _count(self) -> dict[str, int]:
        known = self._known_entries()
        return {name: raw.count() for name, raw in self._maps.items() if name not in known}

    def _warn(self) -> None:
        """Each map once, until it has room again."""
        full = {name: used for name, used in self.pressures().items() if used >= NEARLY_FULL}
        for name in full.keys() - self._full:
            log.warning("map is nearly full", map=name, used=f"{full[name]:.0%}")
        self._full = set(full)
        sentences = [
            f"{name} is {used:.0%} full: {OPTIONS[name]} raises its size"
            for name, used in sorted(full.items())
            if name in OPTIONS
        ]
        self._tell(not sentences, "; ".join(sentences) or "maps of flows and nodes have room")
