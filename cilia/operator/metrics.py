# SPDX-License-Identifier: Apache-2.0
"""Metrics of the operator that are read from its parts when they are scraped."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cilia.operator.election import Election


class ElectionMetrics(Collector):
    """`cilia_operator_leading` and `cilia_operator_lease_transitions_total`."""

    def __init__(self, election: Election) -> None:
        self._election = election

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "cilia_operator_leading", "1 while this replica leads.", self._election.leading
        )
        yield CounterMetricFamily(
            "cilia_operator_lease_transitions",
            "How often the Lease went from one replica to another.",
            self._election.transitions,
        )
