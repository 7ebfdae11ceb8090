# SPDX-License-Identifier: Apache-2.0
"""The reconciler with a target that does nothing, beside the original in Go.

Every figure is of a process of its own, so that none inherits a heap; the sides run in turns.
`--full` is the size that the marks are for.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys

from tests.benchmarks.report import Report
from tests.build_compiled import COMPILED, INTERPRETED, ROOT, build

PEER_SOURCE = ROOT / "tests/benchmarks/peers/reconciler"
PEER = ROOT / "build/peers/reconciler"
SHORT, FULL = 100_000, 1_000_000
ROUNDS = 5

Command = tuple[list[str], dict[str, str]]


def once(command: Command, objects: int) -> tuple[float, float]:
    """Objects per second and bytes for each object."""
    line, environment = command
    sizes = [f"--objects={objects}", "--batch=1000"]
    answer = subprocess.run(
        [*line, *sizes],
        cwd=ROOT,
        env=os.environ | environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    return float(answer[0]), float(answer[1]) / objects


def medians(sides: dict[str, Command], objects: int) -> dict[str, tuple[float, float]]:
    """The median of each side, all sides in turns."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, command in sides.items():
            samples[name].append(once(command, objects))
    return {
        name: (
            statistics.median(rate for rate, _ in kept),
            statistics.median(size for _, size in kept),
        )
        for name, kept in samples.items()
    }


def run(*, peers: bool, full: bool = False) -> None:
    build()
    side = [sys.executable, "-m", "tests.benchmarks.reconciler_side"]
    sides: dict[str, Command] = {
        "": (side, COMPILED),
        ".batches": ([*side, "--in-batches"], COMPILED),
        ".pure": (side, INTERPRETED),
    }
    if peers:
        PEER.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["go", "build", "-o", str(PEER), "."], cwd=PEER_SOURCE, check=True)
        sides["peer"] = ([str(PEER)], {})
    objects = FULL if full else SHORT
    report = Report(
        f"reconciler, {objects} objects, batch of 1000: statedb compiled, with batch operations, "
        "pure Python; peer: github.com/cilium/statedb v0.5.6"
    )
    found = medians(sides, objects)
    peer_rate, peer_size = found.pop("peer", (None, None))
    for name, (rate, size) in found.items():
        report.row(f"reconciler{name}", rate, "objects/s", peer=peer_rate)
        report.row(
            f"reconciler.memory{name}", size, "bytes/object", peer=peer_size, higher_is_better=False
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    run(peers=arguments.peers, full=arguments.full)
