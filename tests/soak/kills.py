# SPDX-License-Identifier: Apache-2.0
"""`make soak-kills`: kill a start at every point there is, and print the table of what it did.

`tests/e2e/killing.py` says what a point is and what is looked at; a row here is a kind of step.
A run that was ended goes on with the points that are left.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from tests.benchmarks.report import machine
from tests.e2e.killing import CHANGING, Killing, Outcome, Start, kind
from tests.e2e.restarting import restarting
from tests.soak.journal import Journal, journal

HEADER = (
    "| start | killed after | kills | connections | failed | datagrams | lost "
    "| pins and objects left |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)


class Kill(NamedTuple):
    """A piece of the run: one point of a start, and what a kill there did."""

    start: Start
    point: int
    #: None if the start did not come to its point: it took another turn.
    outcome: Outcome | None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="only each so-manieth point")
    every = parser.parse_args().every
    with journal("soak-kills", {"every": every}) as kept:
        with tempfile.TemporaryDirectory() as directory, restarting(Path(directory), "kills") as r:
            k = Killing(r)
            for start in Start:
                _all_points(k, start, every, kept)
        kills = [_kill(piece) for piece in kept.pieces]
        result, harm = _told(kills)
        kept.finish(result)
    return 1 if harm else 0


def _kill(piece: Any) -> Kill:
    return msgspec.convert(piece, Kill)


def _told(kills: Sequence[Kill]) -> tuple[str, bool]:
    """Print the table; the sentence about it, and whether the run failed."""
    outcomes: dict[tuple[Start, str], list[Outcome]] = defaultdict(list)
    for start, _, outcome in kills:
        if outcome is not None:
            outcomes[start, kind(outcome.step)].append(outcome)
    print(f"{machine()}\n\n{HEADER}")
    for (start, name), of_kind in outcomes.items():
        print(_row(start, name, of_kind))
    killed = [outcome for of_kind in outcomes.values() for outcome in of_kind]
    harmful = [outcome for outcome in killed if not outcome.harmless()]
    missed = len(kills) - len(killed)
    for outcome in harmful:
        print(outcome)
    result = (
        f"{len(killed)} kills, {len(harmful)} of them did harm; "
        f"{missed} points were not reached (the start took another turn)"
    )
    print(f"\n{result}")
    return result, bool(harmful) or missed > len(killed) / 50


def _all_points(k: Killing, start: Start, every: int, kept: Journal) -> None:
    """Kill at each point that the journal does not have yet."""
    done = {kill.point for kill in map(_kill, kept.pieces) if kill.start is start}
    steps = k.steps(start)
    for point in range(1, len(steps) + 1, every):
        if point in done:
            continue
        outcome = k.kill(start, point)
        if outcome is not None and not outcome.harmless():
            print(start.value, point, outcome, file=sys.stderr, flush=True)
        piece = msgspec.to_builtins(Kill(start, point, outcome))
        kept.add(piece, f"{start.value}, point {point} of {len(steps)}")


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
