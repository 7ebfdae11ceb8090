# SPDX-License-Identifier: Apache-2.0
"""Metrics of the last two hours, sampled by the agent itself, and metrics that nobody wants.

What happened before somebody looked is then known without a Prometheus. The samples are few and
kept in memory; they go with the process.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import anyio
from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import Metric

__all__ = ["AGES", "MetricsSampler", "SelectiveRegistry"]

# Samples kept: two hours of the default interval.
KEPT: Final = 24
# Columns of `metrics -s`: what an age is called at the default interval, and the sample it is.
AGES: Final[Mapping[str, int]] = {"5min": 0, "30min": 5, "60min": 11, "120min": 23}
# Metric and labels, as `k=v` joined by blanks.
Series = tuple[str, str]


class SelectiveRegistry(CollectorRegistry):
    """Leaves out families by name. `choice`: words `-name` and `+name`, the last on a name counts.

    The field's prefix `cilium_` stands for this project's.
    """

    def __init__(self, choice: str) -> None:
        super().__init__()
        self._hidden: set[str] = set()
        for word in choice.replace(",", " ").split():
            name = word[1:].replace("cilium_", "cilia_", 1)
            if word.startswith("-"):
                self._hidden.add(name)
            else:
                self._hidden.discard(name)

    def collect(self) -> Iterator[Metric]:
        for family in super().collect():
            if family.name not in self._hidden and f"{family.name}_total" not in self._hidden:
                yield family


def series_of(families: Iterable[Metric]) -> Iterator[tuple[Series, float]]:
    for family in families:
        for sample in family.samples:
            labels = " ".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            yield (sample.name, labels), sample.value


class MetricsSampler:
    """Takes a sample each `interval_s` seconds; never, if that is 0."""

    def __init__(self, registry: CollectorRegistry, interval_s: float) -> None:
        self._registry = registry
        self._interval_s = interval_s
        # The newest first.
        self._samples: deque[dict[Series, float]] = deque(maxlen=KEPT)

    async def run(self) -> None:
        """Ends only when it is cancelled, or at once if nothing is to be sampled."""
        while self._interval_s > 0:
            self.sample()
            await anyio.sleep(self._interval_s)

    def sample(self) -> None:
        """Take one now. It shares the names of the last one: they are most of its memory."""
        known = {series: series for series in self._samples[0]} if self._samples else {}
        found = series_of(self._registry.collect())
        self._samples.appendleft({known.get(series, series): value for series, value in found})

    def history(self) -> dict[Series, list[float | None]]:
        """Each series with its values, the newest first; None where it was not there."""
        samples = list(self._samples)
        names = sorted({series for sample in samples for series in sample})
        return {series: [sample.get(series) for sample in samples] for series in names}
