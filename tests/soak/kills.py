# SPDX-License-Identifier: Apache-2.0
"""`make soak-kills`: kill a start at every point there is, and print the table of what it did.

`tests/e2e/killing.py` says what a point is and what is looked at; a row here is a kind of step.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.benchmarks.report import machine
from tests.e2e.killing import CHANGING, Killing, Outcome, Start, kind
from tests.e2e.restarting import restarting

HEADER = (
    "| start | killed after | kills | connections | failed | datagrams | lost "
    "| pins and objects left |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth point")
    every = parser.parse_args().every
    outcomes: dict[tuple[Start, str], list[Outcome]] = defaultdict(list)
    missed = 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, restarting(Path(directory), "kills") as r:
        k = Killing(r)
        for start in Start:
            missed += _all_points(k, start, every, outcomes)
    print(f"{machine()}\n\n{HEADER}")
    for (start, name), of_kind in outcomes.items():
        print(_row(start, name, of_kind))
    kills = [outcome for of_kind in outcomes.values() for outcome in of_kind]
    harmful = [outcome for outcome in kills if not outcome.harmless()]
    minutes = (time.monotonic() - began) / 60
    print(f"\n{len(kills)} kills in {minutes:.0f} minutes, {len(harmful)} of them did harm;")
    print(f"{missed} points were not reached (the start took another turn).")
    for outcome in harmful:
        print(outcome)
    return 1 if harmful or missed > len(kills) / 50 else 0


def _all_points(
    k: Killing, start: Start, every: int, outcomes: dict[tuple[Start, str], list[Outcome]]
) -> int:
    """How many points were not reached."""
    missed = 0
    steps = k.steps(start)
    for point in range(1, len(steps) + 1, every):
        outcome = k.kill(start, point)
        if outcome is None:
            missed += 1
            continue
        outcomes[start, kind(outcome.step)].append(outcome)
        if not outcome.harmless():
            print(start.value, point, outcome, file=sys.stderr, flush=True)
        if point % 50 == 0:
            print(f"{start.value}: {point} of {len(steps)}", file=sys.stderr, flush=True)
    return missed


def _row(start: Start, name: str, of_kind: Sequence[Outcome]) -> str:
    told = [outcome.told for outcome in of_kind]
    counts = [
        len(of_kind),
        *_or_none(start, sum(one.connections for one in told)),
        *_or_none(start, sum(len(one.failed) for one in told)),
        *_or_none(start, sum(one.datagrams for one in told)),
        *_or_none(start, sum(one.lost for one in told)),
        sum(len(outcome.left) for outcome in of_kind),
    ]
    shown = f"**{name}**" if name in CHANGING else name
    return f"| {start.value} | {shown} | " + " | ".join(map(str, counts)) + " |"


def _or_none(start: Start, count: int) -> Iterable[int | str]:
    """Before the first start nothing is there that could carry traffic."""
    return ["–"] if start is Start.FIRST else [count]


if __name__ == "__main__":
    sys.exit(main())
