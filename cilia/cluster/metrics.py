# SPDX-License-Identifier: Apache-2.0
"""Metrics of the watches, read from their table when they are scraped."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from statedb import DB, Table
from tables.cluster.k8s_watches import K8sWatch

__all__ = ["WatchMetrics"]

_GAUGES: dict[str, tuple[str, Callable[[K8sWatch, float], float]]] = {
    "up": ("1 while the resource is followed, or is not there.", lambda w, now: float(w.well)),
    "objects": ("Objects as they were told.", lambda w, now: w.objects),
    "proof_age_seconds": (
        "Time since what was told was last equal to a list.",
        lambda w, now: now - w.proven_at,
    ),
}
_COUNTERS: dict[str, tuple[str, Callable[[K8sWatch], float]]] = {
    "proofs": ("Comparisons with a list that found both equal.", lambda w: w.proofs),
    "proof_bytes": ("Bytes that were read for proofs.", lambda w: w.proof_bytes),
    "proof_cpu_seconds": (
        "Time spent on decoding and comparing for proofs.",
        lambda w: w.proof_cpu_s,
    ),
    "errors": ("Requests that failed.", lambda w: w.errors),
}


class WatchMetrics(Collector):
    """`cilia_k8s_watch_*`, by resource."""

    def __init__(self, db: DB, watches: Table[K8sWatch]) -> None:
        self._db, self._watches = db, watches

    def collect(self) -> Iterator[Metric]:
        now = time.time()
        rows = list(self._watches.all(self._db.read_txn()))
        for name, (text, gauge) in _GAUGES.items():
            family = GaugeMetricFamily(f"cilia_k8s_watch_{name}", text, labels=["resource"])
            for row in rows:
                if name != "proof_age_seconds" or row.proven_at:
                    family.add_metric([row.resource], gauge(row, now))
            yield family
        for name, (text, counter) in _COUNTERS.items():
            counts = CounterMetricFamily(f"cilia_k8s_watch_{name}", text, labels=["resource"])
            for row in rows:
                counts.add_metric([row.resource], counter(row))
            yield counts
        yield from self._by_kind(rows)

    def _by_kind(self, rows: list[K8sWatch]) -> Iterator[Metric]:
        repairs = CounterMetricFamily(
            "cilia_k8s_watch_repairs",
            "Objects that a list had to put right, by what made it be read.",
            labels=["resource", "cause", "kind"],
        )
        anomalies = CounterMetricFamily(
            "cilia_k8s_watch_anomalies",
            "What streams did that they should not.",
            labels=["resource", "kind"],
        )
        for row in rows:
            for key, count in row.repairs.items():
                repairs.add_metric([row.resource, *key.split("/")], count)
            for kind, count in row.anomalies.items():
                anomalies.add_metric([row.resource, kind], count)
        yield repairs
        yield anomalies
