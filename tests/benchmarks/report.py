# SPDX-License-Identifier: Apache-2.0
"""What benchmarks share: alternate two sides, take the median, print a row, keep a JSON line."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

RESULTS = Path(".bench/results.jsonl")


def machine() -> str:
    """One line that says where this was measured."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    load = os.getloadavg()[0]
    return (
        f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}, "
        f"Python {platform.python_version()}, load {load:.2f}, {time.strftime('%Y-%m-%d')}"
    )


def alternated(sides: Sequence[Callable[[], float]], rounds: int = 5) -> list[float]:
    """The median of each side, run in turns so that a noisy minute meets all of them."""
    samples: list[list[float]] = [[] for _ in sides]
    for _ in range(rounds):
        for side, kept in zip(sides, samples, strict=True):
            kept.append(side())
    return [statistics.median(kept) for kept in samples]


def quantity(value: float) -> str:
    """A number with three significant digits: 1.97M, 34.1k, 0.0123."""
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


class Report:
    """Rows of one run, printed as they come and appended to the results file."""

    def __init__(self, title: str, results: Path = RESULTS) -> None:
        self.results = results
        print(f"\n{title}\n{machine()}")
        print(f"{'benchmark':<36} {'ours':>10} {'peer':>10} {'ratio':>7}  unit")

    def row(
        self,
        bench: str,
        ours: float,
        unit: str,
        *,
        peer: float | None = None,
        higher_is_better: bool = True,
    ) -> None:
        """A ratio above 1 always means that ours is better."""
        ratio = None
        if peer:
            ratio = ours / peer if higher_is_better else peer / ours
        shown = f"{ratio:.2f}x" if ratio else ""
        other = quantity(peer) if peer is not None else ""
        print(f"{bench:<36} {quantity(ours):>10} {other:>10} {shown:>7}  {unit}", flush=True)
        entry = {"bench": bench, "ours": ours, "peer": peer, "unit": unit, "ratio": ratio}
        self.results.parent.mkdir(exist_ok=True)
        with self.results.open("a") as file:
            file.write(json.dumps(entry) + "\n")
