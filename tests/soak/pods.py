# SPDX-License-Identifier: Apache-2.0
"""`make soak-pods`: disturb the pod network in every way, and print the table of what it did.

`tests/e2e/disturbances.py` has the causes, `tests/e2e/pod_leaks.py` the storm of ADD and DEL that
comes after them. `KILLS=` (1000) is how often the agent is killed under streams, `OPERATIONS=`
(10000) how many pods come and go in the storm. A run that was ended goes on where it was.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from tests.benchmarks.report import machine
from tests.e2e import other_build
from tests.e2e.disturbances import CAUSES
from tests.e2e.disturbed import Disturbed, disturbed
from tests.e2e.pod_leaks import Storm, leaks
from tests.e2e.streams import Told
from tests.soak.journal import Journal, journal

#: How often each cause acts that has no setting; a storm is of 20 pods.
TIMES = {
    "agent is another build": 10,
    "objects are away": 30,
    "pods come and go": 25,
    "devices change": 100,
}
#: Acts between two looks at the streams; the numbers so far are written down then too.
ROUND = 10
STORM_ROUND = 500
AT_ONCE = 200
HEADER = (
    "| cause | times | packets | lost | connections broken | longest gap | client late by |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
)


class Stretch(msgspec.Struct, tag=True):
    """A piece of the run: a cause that acted some times."""

    cause: str
    times: int
    told: Told


class Stormed(msgspec.Struct, tag=True):
    """A piece of the run: a storm, or pods that were added at once."""

    storm: Storm
    at_once: int = 0
    took_s: float = 0.0


Piece = Stretch | Stormed


def disturb(
    d: Disturbed, cause: str, times: int, rng: random.Random, keep: Callable[[Stretch], None]
) -> None:
    """Let a cause act so often; `keep` is called after each round."""
    done = 0
    while done < times:
        count = min(ROUND, times - done)
        for _ in range(count):
            CAUSES[cause](d, rng)
        d.agents.kill()
        d.agents.start()
        keep(Stretch(cause, count, d.told()))
        done += count


def main() -> int:
    kills = int(os.environ.get("KILLS", "1000"))
    operations = int(os.environ.get("OPERATIONS", "10000"))
    with journal("soak-pods", {"kills": kills, "operations": operations}) as kept:
        rng = random.Random()
        # The longest part last, so that an early end has all rows.
        _disturb_all(TIMES, rng, kept)
        _storm(operations, rng, kept)
        _disturb_all({"agent is killed": kills}, rng, kept)
        pieces = _pieces(kept)
        harm = any(not piece.told.harmless() for piece in pieces if isinstance(piece, Stretch))
        harm |= any(not piece.storm.harmless() for piece in pieces if isinstance(piece, Stormed))
        kept.finish("did harm" if harm else "harmless")
    print(table(pieces))
    return 1 if harm else 0


def _pieces(kept: Journal) -> list[Piece]:
    return [msgspec.convert(piece, Piece) for piece in kept.pieces]


def _disturb_all(times: Mapping[str, int], rng: random.Random, kept: Journal) -> None:
    done = dict.fromkeys((*TIMES, *times), 0)
    for piece in _pieces(kept):
        if isinstance(piece, Stretch):
            done[piece.cause] += piece.times
    if all(done[cause] >= times[cause] for cause in times):
        return

    def keep(stretch: Stretch) -> None:
        done[stretch.cause] += stretch.times
        if not stretch.told.harmless():
            print(stretch, file=sys.stderr, flush=True)
        progress = f"{stretch.cause}, {done[stretch.cause]} of {times[stretch.cause]}"
        kept.add(msgspec.to_builtins(stretch), progress)

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        other = directory / "other"
        other_build.make(other, other_build.OTHER_LAYOUT)
        with disturbed(directory, "soakpods") as d:
            d.agents.add_build("other", other)
            d.streams.read()
            for cause, wanted in times.items():
                disturb(d, cause, wanted - done[cause], rng, keep)


def _storm(operations: int, rng: random.Random, kept: Journal) -> None:
    stormed = [piece for piece in _pieces(kept) if isinstance(piece, Stormed)]
    done = sum(piece.storm.operations for piece in stormed)
    if done >= operations:
        return
    with tempfile.TemporaryDirectory() as directory, leaks(Path(directory), "soakleaks") as node:
        if not any(piece.at_once for piece in stormed):
            took_s, failures = node.at_once(AT_ONCE)
            storm = Storm(adds_failed=dict.fromkeys(failures, 1), left=node.left())
            piece = Stormed(storm, AT_ONCE, took_s)
            kept.add(msgspec.to_builtins(piece), f"{AT_ONCE} at once")
        while done < operations:
            storm = Storm()
            node.storm(min(STORM_ROUND, operations - done), storm, rng)
            storm.left = node.left()
            done += storm.operations
            if not storm.harmless():
                print(storm, file=sys.stderr, flush=True)
            progress = f"{done} of {operations} operations"
            kept.add(msgspec.to_builtins(Stormed(storm)), progress)


def table(pieces: list[Piece]) -> str:
    """All rows as Markdown, and what failed below them."""
    sums: dict[str, Stretch] = {}
    for piece in pieces:
        if isinstance(piece, Stretch):
            row = sums.setdefault(piece.cause, Stretch(piece.cause, 0, Told()))
            row.times += piece.times
            row.told.add(piece.told)
    lines = [machine(), "", HEADER]
    for row in sums.values():
        told = row.told
        lines.append(
            f"| {row.cause} | {row.times:,} | {told.packets:,} | {told.lost:,} | {told.broken:,} "
            f"| {told.gap_s * 1000:.0f} ms | {told.late_s * 1000:.0f} ms |"
        )
        lines += [f"{row.cause}: {line}" for line in (*told.failures[:20], told.harmed) if line]
    return "\n".join([*lines, "", *_storm_lines(pieces)])


def _storm_lines(pieces: list[Piece]) -> list[str]:
    """Sums of the storm, a line each."""
    storms = [piece for piece in pieces if isinstance(piece, Stormed)]
    failed: dict[str, int] = {}
    for piece in storms:
        for why, count in piece.storm.adds_failed.items():
            failed[why] = failed.get(why, 0) + count
    return [
        *(f"{piece.at_once} ADDs at once: {piece.took_s:.1f} s" for piece in storms[:1]),
        f"pods that came and went: {sum(piece.storm.operations for piece in storms)}",
        f"agents killed: {sum(piece.storm.agents_killed for piece in storms)}",
        f"plugins killed: {sum(piece.storm.plugins_killed for piece in storms)}",
        *(f"ADDs that failed: {count} ({why})" for why, count in failed.items()),
        f"left: {[line for piece in storms for line in piece.storm.left]}",
    ]


if __name__ == "__main__":
    sys.exit(main())
