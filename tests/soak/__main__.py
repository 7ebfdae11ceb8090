# SPDX-License-Identifier: Apache-2.0
"""`make soak`: churn for a long time; nothing may grow.

Three parts, each for `MINUTES=` minutes (10):

    tables   tables and a reconciler in one process, at the highest rate (`churn.py`)
    files    an agent with a directory of manifests, and everybody around it (`agent/churn.py`)
    api      the same with a real API server

`PARTS=` names those that are wanted; by default all that can run here, and what cannot is told. A
part is one of stretches of ten minutes, each a process of its own that is judged by itself; a run
that was ended goes on with the next.
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

from tests.kube.assets import asset
from tests.soak.journal import journal

STRETCH_MINUTES = 10.0
PROGRAMS = ("kube-apiserver", "etcd")


class Missing(Exception):
    """A part cannot run here; says what it needs."""


class Piece(NamedTuple):
    """One stretch."""

    part: str
    minutes: float

    def command(self) -> list[str]:
        module = [sys.executable, "-m"]
        if self.part == "tables":
            return [*module, "tests.soak.churn", f"--stretch={self.minutes}"]
        options = [f"--source={self.part}", f"--minutes={self.minutes}"]
        return [*module, "tests.soak.agent.churn", *options]


def run(piece: Piece) -> int:
    """Return its exit code. A stretch ends with this process, and cleans up."""
    with subprocess.Popen(piece.command()) as child:
        try:
            return child.wait()
        except BaseException:
            child.terminate()
            raise


def require(part: str) -> None:
    """Raises: Missing."""
    if part != "tables" and os.geteuid() != 0:
        raise Missing("an agent needs root")
    if part != "api":
        return
    try:
        for name in PROGRAMS:
            asset(name)
    except FileNotFoundError as error:
        raise Missing(str(error)) from None


PARTS = ("tables", "files", "api")


def parts(named: str) -> Iterator[str]:
    """Yield what was named, or all that can run. Raises: SystemExit for a name that cannot."""
    for part in named.split() or PARTS:
        if part not in PARTS:
            raise SystemExit(f"no part {part}: there are {', '.join(PARTS)}")
        try:
            require(part)
        except Missing as missing:
            if named:
                raise SystemExit(f"{part} cannot run: {missing}") from None
            print(f"{part} is not run: {missing}", file=sys.stderr)
        else:
            yield part


def main() -> int:
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    minutes = float(os.environ.get("MINUTES", "10"))
    count = math.ceil(minutes / STRETCH_MINUTES)
    wanted = list(parts(os.environ.get("PARTS", "")))
    pieces = [Piece(part, minutes / count) for part in wanted for _ in range(count)]
    with journal("soak", {"minutes": minutes, "parts": wanted}) as kept:
        for piece in pieces[len(kept.pieces) :]:
            failed = run(piece) != 0
            done = len(kept.pieces) + 1
            kept.add({"part": piece.part, "failed": failed}, f"{done} of {len(pieces)} stretches")
        failures = [piece["part"] for piece in kept.pieces if piece["failed"]]
        kept.finish(f"{len(failures)} of {len(pieces)} stretches failed: {' '.join(failures)}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
