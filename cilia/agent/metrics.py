# SPDX-License-Identifier: Apache-2.0
"""Metrics of the agent that are read from its tables when they are scraped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from statedb import DB, Table
from tables.loadbalancer.frontends import Frontend
from tables.problems import Problem


class TableMetrics(Collector):
    """`cilia_problems`, `cilia_frontends` and `cilia_datapath_start_seconds`."""

    def __init__(
        self,
        db: DB,
        problems: Table[Problem],
        frontends: Table[Frontend],
        timings: Mapping[str, float],
    ) -> None:
        self._db, self._problems, self._frontends = db, problems, frontends
        self._timings = timings

    def collect(self) -> Iterator[Metric]:
        txn = self._db.read_txn()
        refused = GaugeMetricFamily(
            "cilia_problems", "Input that is refused now.", labels=["kind", "file"]
        )
        for (kind, file), count in Counter(
            (row.kind, row.file) for row in self._problems.all(txn)
        ).items():
            refused.add_metric([kind, file], count)
        yield refused
        states = GaugeMetricFamily(
            "cilia_frontends", "Frontends by reconciliation status.", labels=["status"]
        )
        for status, count in Counter(
            fe.status.kind.value for fe in self._frontends.all(txn)
        ).items():
            states.add_metric([status], count)
        yield states
        start = GaugeMetricFamily(
            "cilia_datapath_start_seconds", "Duration of the phases of the start.", labels=["phase"]
        )
        for phase, seconds in list(self._timings.items()):
            start.add_metric([phase], seconds)
        yield start
