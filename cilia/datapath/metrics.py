# SPDX-License-Identifier: Apache-2.0
"""Metrics read from the datapath when scraped: drops, what was forwarded, what sweeps found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bpf import events, reasons
from cilia.datapath.conntrack import SweepResult

LABELS = ["reason", "direction"]


class DatapathMetrics(Collector):
    """`cilia_drop_*`, `cilia_forward_*` and `cilia_datapath_conntrack_*`."""

    def __init__(self, read: Callable[[], Iterable[events.Metric]]) -> None:
        self._read = read
        self._sweep = SweepResult({}, {}, 0.0)
        self._collected: Counter[str] = Counter()

    def swept(self, result: SweepResult) -> None:
        """Told after each sweep."""
        self._sweep = result
        self._collected.update(result.deleted)

    def collect(self) -> Iterator[Metric]:
        yield from self._packets()
        yield from self._conntrack()

    def _packets(self) -> Iterator[Metric]:
        packets: Counter[tuple[str, str]] = Counter()
        size: Counter[tuple[str, str]] = Counter()
        for counter in self._read():
            direction = events.Direction(counter.direction).name.lower()
            key = (reasons.reason_label(counter.reason) if counter.reason else "", direction)
            packets[key] += counter.packets
            size[key] += counter.bytes
        for what, counts in (("count", packets), ("bytes", size)):
            dropped = CounterMetricFamily(
                f"cilia_drop_{what}", "Refused by the datapath, by reason.", labels=LABELS
            )
            forwarded = CounterMetricFamily(
                f"cilia_forward_{what}", "Forwarded by the datapath.", labels=["direction"]
            )
            for (reason, direction), count in sorted(counts.items()):
                if reason:
                    dropped.add_metric([reason, direction], count)
                else:
                    forwarded.add_metric([direction], count)
            yield from (dropped, forwarded)

    def _conntrack(self) -> Iterator[Metric]:
        alive = GaugeMetricFamily(
            "cilia_datapath_conntrack_entries",
            "Entries that the last sweep left alive.",
            labels=["map"],
        )
        for name, count in self._sweep.alive.items():
            alive.add_metric([name], count)
        deleted = CounterMetricFamily(
            "cilia_datapath_conntrack_gc_deleted",
            "Expired entries that were collected.",
            labels=["map"],
        )
        for name, count in self._collected.items():
            deleted.add_metric([name], count)
        duration = GaugeMetricFamily(
            "cilia_datapath_conntrack_gc_duration_seconds", "Duration of the last sweep."
        )
        duration.add_metric([], self._sweep.duration_s)
        yield from (alive, deleted, duration)
