# SPDX-License-Identifier: Apache-2.0
"""Which figures of an agent grew, beyond what their line's confidence leaves open."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from statedb.web.sending import STALL_S
from tests.soak.agent.samples import Sample
from tests.soak.memory import slope

#: What a figure may surely gain in one stretch, whatever its length.
ALLOWED_GAIN = {
    # Its arenas find their size in a quarter of an hour; what is live shows sooner what is kept.
    "resident KiB": 8192.0,
    "live blocks": 10_000.0,
    "live KiB of malloc": 1024.0,
    "open descriptors": 4.0,
    "threads": 2.0,
    "deleted rows kept": 200.0,
    "change iterators": 4.0,
    "time series": 60.0,
    "entries of flows": 400.0,
    "entries of Services": 60.0,
}
#: What a figure may be at any time. A reader of the agent's API that takes nothing is cut off then.
ALLOWED_MOST = {"deleted rows kept": 5_000.0, "oldest snapshot, s": STALL_S + 5.0}
#: Median time of a commit in the last third, to the first; each beside the reference.
ALLOWED_RATIO = 1.5

FIGURES: dict[str, Callable[[Sample], float]] = {
    "resident KiB": lambda s: s.kib,
    "live blocks": lambda s: s.blocks,
    "live KiB of malloc": lambda s: s.malloc_kib,
    "open descriptors": lambda s: s.descriptors,
    "threads": lambda s: s.threads,
    "deleted rows kept": lambda s: s.deleted,
    "change iterators": lambda s: s.trackers,
    "time series": lambda s: s.series,
    "entries of flows": lambda s: s.flows,
    "entries of Services": lambda s: s.services,
    "oldest snapshot, s": lambda s: s.snapshot_s,
}


class Finding(NamedTuple):
    """One line of the verdict."""

    name: str
    text: str
    good: bool

    def __str__(self) -> str:
        return f"{'ok    ' if self.good else 'FAILED'} {self.name:<22} {self.text}"


def verdict(samples: Sequence[Sample]) -> list[Finding]:
    """Judge each figure; the samples are those after the warm-up."""
    findings = [_growth(name, samples) for name in ALLOWED_GAIN]
    findings += [_most(name, samples) for name in ALLOWED_MOST]
    return [*findings, _commits(samples)]


def _growth(name: str, samples: Sequence[Sample]) -> Finding:
    figure = FIGURES[name]
    values = [figure(sample) for sample in samples]
    line = slope([(sample.second, figure(sample)) for sample in samples])
    minutes = (samples[-1].second - samples[0].second) / 60
    allowed = ALLOWED_GAIN[name] / minutes
    spread = f"{values[0]:.0f} at first, {min(values):.0f} to {max(values):.0f}"
    return Finding(
        name,
        f"{line}, allowed {allowed:.1f}; {spread}",
        line.per_minute - line.confidence <= allowed,
    )


def course(samples: Sequence[Sample]) -> str:
    """Resident memory in MiB at a dozen moments, for who wants to see the line."""
    return " ".join(f"{sample.kib / 1024:.1f}" for sample in samples[:: len(samples) // 12 or 1])


def _most(name: str, samples: Sequence[Sample]) -> Finding:
    most, allowed = max(map(FIGURES[name], samples)), ALLOWED_MOST[name]
    return Finding(name, f"at most {most:.1f}, allowed {allowed:.0f}", most <= allowed)


def _commits(samples: Sequence[Sample]) -> Finding:
    """A median of means: one sample that the machine held up says nothing."""
    samples = [sample for sample in samples if sample.commits]
    third = max(1, len(samples) // 3)
    first, last = (
        statistics.median(s.commit_us / s.reference_us for s in part)
        for part in (samples[:third], samples[-third:])
    )
    shown = [
        statistics.median(s.commit_us for s in part) for part in (samples[:third], samples[-third:])
    ]
    text = (
        f"{shown[0]:.0f} us in the first third, {shown[1]:.0f} in the last; beside the reference"
        f" {last / first:.2f} times, allowed {ALLOWED_RATIO}"
    )
    return Finding("time of a commit", text, last <= ALLOWED_RATIO * first)
