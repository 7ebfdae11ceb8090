# SPDX-License-Identifier: Apache-2.0
"""statedb, compiled and pure, beside the original in Go: the rows of `statedb_rows`.

Each side is a process that is asked for one row at a time, in turns; the peer is `peers/statedb`.
"""

from __future__ import annotations

import os
import subprocess
import sys

from tests.benchmarks.report import Report, alternated
from tests.benchmarks.statedb_rows import ROWS
from tests.build_compiled import COMPILED, INTERPRETED, ROOT, build

PEER_SOURCE = ROOT / "tests/benchmarks/peers/statedb"
PEER = ROOT / "build/peers/statedb"
LESS_IS_BETTER = {"wake_p99_us": "us", "bytes_per_object": "bytes"}
NO_PEER = {"lpm_insert_100", "lpm_get"}


class Side:
    """One process that answers rows; started anew for each row, so that none inherits a heap."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, row: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(row + "\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def measured(row: str, *, peers: bool) -> list[float]:
    """The medians of compiled, pure and (if asked) the peer."""
    ours = [sys.executable, "-m", "tests.benchmarks.statedb_rows"]
    commands = [(ours, COMPILED), (ours, INTERPRETED)]
    if peers:
        commands.append(([str(PEER)], {}))
    if row == "bytes_per_object":
        return alternated([lambda c=c: once(row, *c) for c in commands])  # type: ignore[misc]
    sides = [Side(*command) for command in commands]
    try:
        return alternated([lambda side=side: side(row) for side in sides])  # type: ignore[misc]
    finally:
        for side in sides:
            side.close()


def once(row: str, command: list[str], environment: dict[str, str]) -> float:
    side = Side(command, environment)
    try:
        return side(row)
    finally:
        side.close()


def run(*, peers: bool, only: list[str] | None = None) -> None:
    build()
    if peers:
        PEER.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["go", "build", "-o", str(PEER), "."], cwd=PEER_SOURCE, check=True)
    clock = "processor" if os.environ.get("BENCH_CLOCK") == "cpu" else "wall-clock"
    report = Report(
        f"statedb: compiled, then pure Python; peer: github.com/cilium/statedb v0.5.6; {clock} time"
    )
    for row in only or ROWS:
        compiled, pure, *peer = measured(row, peers=peers and row not in NO_PEER)
        unit = LESS_IS_BETTER.get(row, "/s")
        theirs = peer[0] if peer else None
        for name, value in ((row, compiled), (f"{row}.pure", pure)):
            report.row(
                f"statedb.{name}",
                value,
                unit,
                peer=theirs,
                higher_is_better=row not in LESS_IS_BETTER,
            )


if __name__ == "__main__":
    run(peers=True, only=sys.argv[1:])
