# SPDX-License-Identifier: Apache-2.0
"""Metrics of convergence: how long a change takes from its object to the maps."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Histogram

from tables.loadbalancer.convergence import Convergence

__all__ = ["convergence_histogram"]

# Seconds: from one table change to an API server that was away.
BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


def convergence_histogram(registry: CollectorRegistry) -> Callable[[Convergence], None]:
    """`cilia_convergence_seconds`; call the result with each change that reached the maps."""
    histogram = Histogram(
        "cilia_convergence_seconds",
        "From a change to the tables (api, table), to the maps (map), and all of it (total).",
        ("kind", "stage", "time_source"),
        buckets=BUCKETS,
        registry=registry,
    )

    def observe(row: Convergence) -> None:
        for stage, seconds in row.stages_s.items():
            histogram.labels(row.kind, stage, row.time_source).observe(seconds)

    return observe
