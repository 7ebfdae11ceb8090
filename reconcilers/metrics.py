# SPDX-License-Identifier: Apache-2.0
"""What a reconciler counts, as a protocol, and the same for Prometheus.

The engine takes any object of this shape and needs no metrics library itself.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry


class Metrics(Protocol):
    """Receives figures of the reconciler called `name`; durations in seconds."""

    def round_done(
        self, name: str, duration_s: float, updated: int, deleted: int, failed: int
    ) -> None: ...

    def prune_done(self, name: str, duration_s: float, ok: bool) -> None: ...

    def verify_done(self, name: str, duration_s: float, differences: int) -> None: ...

    def waiting(self, name: str, retries: int) -> None: ...


class NoMetrics:
    """Counts nothing."""

    def round_done(
        self, name: str, duration_s: float, updated: int, deleted: int, failed: int
    ) -> None:
        pass

    def prune_done(self, name: str, duration_s: float, ok: bool) -> None:
        pass

    def verify_done(self, name: str, duration_s: float, differences: int) -> None:
        pass

    def waiting(self, name: str, retries: int) -> None:
        pass


class PrometheusMetrics:
    """`cilia_reconciler_*`, labelled by the reconciler's name; one for all reconcilers.

    Raises: ImportError without prometheus-client.
    """

    def __init__(self, registry: "CollectorRegistry") -> None:
        from prometheus_client import Counter, Gauge, Histogram

        label = ("reconciler",)
        self._round = Histogram(
            "cilia_reconciler_round_seconds",
            "Duration of incremental rounds",
            label,
            registry=registry,
        )
        self._operations = Counter(
            "cilia_reconciler_operations",
            "Objects applied to the target, by operation and outcome",
            ("reconciler", "operation", "outcome"),
            registry=registry,
        )
        self._prune = Histogram(
            "cilia_reconciler_prune_seconds", "Duration of full prunes", label, registry=registry
        )
        self._prune_errors = Counter(
            "cilia_reconciler_prune_errors", "Prunes that failed", label, registry=registry
        )
        self._verify = Histogram(
            "cilia_reconciler_verify_seconds",
            "Duration of read-backs of the target",
            label,
            registry=registry,
        )
        self._drift = Gauge(
            "cilia_reconciler_drift",
            "Differences that the last read-back found",
            label,
            registry=registry,
        )
        self._retries = Gauge(
            "cilia_reconciler_retries", "Objects that wait for a retry", label, registry=registry
        )

    def round_done(
        self, name: str, duration_s: float, updated: int, deleted: int, failed: int
    ) -> None:
        self._round.labels(name).observe(duration_s)
        self._operations.labels(name, "update", "done").inc(updated)
        self._operations.labels(name, "delete", "done").inc(deleted)
        self._operations.labels(name, "any", "error").inc(failed)

    def prune_done(self, name: str, duration_s: float, ok: bool) -> None:
        self._prune.labels(name).observe(duration_s)
        self._prune_errors.labels(name).inc(not ok)

    def verify_done(self, name: str, duration_s: float, differences: int) -> None:
        self._verify.labels(name).observe(duration_s)
        self._drift.labels(name).set(differences)

    def waiting(self, name: str, retries: int) -> None:
        self._retries.labels(name).set(retries)
