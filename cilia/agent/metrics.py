# SPDX-License-Identifier: Apache-2.0
"""Metrics of the agent that are read from its tables when they are scraped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from statedb import DB, Table
from tables.frontends import Frontend
from tables.problems import Problem


class TableMetrics(Collector):
    """`cilia_problems{kind,file}` and `cilia_frontends{status}`."""

    def __init__(self, db: DB, problems: Table[Problem], frontends: Table[Frontend]) -> None:
        self._db, self._problems, self._frontends = db, problems, frontends

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
