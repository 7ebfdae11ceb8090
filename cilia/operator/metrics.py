# SPDX-License-Identifier: Apache-2.0
"""Metrics of the operator that are read from its parts when they are scraped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter
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


class CollectionMetrics:
    """`cilia_operator_gc_runs_total` and `cilia_operator_gc_objects_total`, by collector."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._runs = Counter(
            "cilia_operator_gc_runs",
            "Looks at all objects for those that nobody uses.",
            ["collector", "outcome"],
            registry=registry,
        )
        self._objects = Counter(
            "cilia_operator_gc_objects",
            "Objects by what became of them; those in use count at each look.",
            ["collector", "outcome"],
            registry=registry,
        )

    def collected(self, collector: str, outcomes: Mapping[str, int]) -> None:
        """Count a look that did not fail."""
        self._runs.labels(collector, "success").inc()
        for outcome, number in outcomes.items():
            self._objects.labels(collector, outcome).inc(number)

    def failed(self, collector: str) -> None:
        """Count a look that failed."""
        self._runs.labels(collector, "fail").inc()
