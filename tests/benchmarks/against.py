# SPDX-License-Identifier: Apache-2.0
"""`make bench-against COMMIT=...`: two commits beside each other, and which rows became worse.

Each commit has a checkout of its own in `.bench/checkouts`, with its own environment and compiled
modules, and its own benchmark programs run there. In every round each row is measured on both, one
directly after the other, so that a noisy minute meets both; who begins changes with the round.

    statedb    each row of `statedb_rows`
    services   Services to maps in memory: wall and processor time, memory
    agent      an agent with 10,000 Services (root): start, restart, memory, latency

The figure of a row is the ratio of the two commits, above 1 if the newer one is better: its median
over the rounds, and its interquartile range. A row is worse if the median is below `WORSE` and the
range does not contain 1; then the command fails. An interrupted run goes on with the next round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.report import machine, quantity
from tests.build_compiled import COMPILED, ROOT
from tests.soak.journal import DIRECTORY, journal

CHECKOUTS = DIRECTORY / "checkouts"
ROUNDS = 11
WORSE = 0.97
SERVICES = 20_000
#: Rows of this group are rates but for these; of all others less is better.
RATES = "statedb."
NO_RATES = ("statedb.wake_p99_us", "statedb.bytes_per_object")
#: What cannot be told from nothing: one tick of the clock in the five seconds that are looked at.
LEAST = {"agent.idle": 0.2}

#: Unless somebody asks for wall time, rows of statedb count processor time: what other programs do
#: on the machine made one in twenty rows «worse» between two commits with the same statedb.
CLOCK = {"BENCH_CLOCK": "cpu"}

Figures = dict[str, float]


class Checkout(NamedTuple):
    """A commit that is built."""

    path: Path
    environment: dict[str, str] = COMPILED

    def python(self, *arguments: str) -> subprocess.Popen[str]:
        """A Python of its environment, with pipes."""
        return subprocess.Popen(
            [str(self.path / ".venv/bin/python"), *arguments],
            cwd=self.path,
            env=CLOCK | os.environ | self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def output(self, *arguments: str) -> str:
        """Raises: CalledProcessError."""
        with self.python(*arguments) as process:
            text, _ = process.communicate()
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, arguments, text)
        return text


def statedb(checkouts: Sequence[Checkout], rows: Sequence[str]) -> list[Figures]:
    """Rows in turns; memory in a process without a heap from before."""
    program = ("-m", "tests.benchmarks.statedb_rows")
    found: list[Figures] = [{} for _ in checkouts]
    with ExitStack() as stack:
        processes = [stack.enter_context(checkout.python(*program)) for checkout in checkouts]
        for row in rows:
            for checkout, process, figures in zip(checkouts, processes, found, strict=True):
                if row == "bytes_per_object":
                    with checkout.python(*program) as alone:
                        figures[row] = _asked(alone, row)
                else:
                    figures[row] = _asked(process, row)
    return found


def statedb_rows(checkout: Checkout) -> list[str]:
    listing = "from tests.benchmarks.statedb_rows import ROWS; print(*ROWS)"
    return checkout.output("-c", listing).split()


def _asked(process: subprocess.Popen[str], row: str) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(row + "\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def services(checkouts: Sequence[Checkout], rows: Sequence[str]) -> list[Figures]:
    program = ("-m", "tests.benchmarks.services_side", f"--services={SERVICES}")
    return [json.loads(checkout.output(*program)) for checkout in checkouts]


def agent(checkouts: Sequence[Checkout], rows: Sequence[str]) -> list[Figures]:
    return [_agent(checkout) for checkout in checkouts]


def _agent(checkout: Checkout) -> Figures:
    """What the benchmark of the agent leaves in the checkout's file of results."""
    results = checkout.path / ".bench" / "results.jsonl"
    results.unlink(missing_ok=True)
    checkout.output("-m", "tests.benchmarks", "agent")
    entries = map(json.loads, results.read_text().splitlines())
    return {entry["bench"].removeprefix("agent."): entry["ours"] for entry in entries}


GROUPS: dict[str, Callable[[Sequence[Checkout], Sequence[str]], list[Figures]]] = {
    "statedb": statedb,
    "services": services,
    "agent": agent,
}


class Verdict(NamedTuple):
    """A row over all rounds; ratios above 1 say that the newer commit is better."""

    row: str
    older: float
    newer: float
    ratio: float
    low: float
    high: float

    @property
    def worse(self) -> bool:
        return self.ratio < WORSE and not self.low <= 1 <= self.high

    def __str__(self) -> str:
        shown = (
            f"{self.row:<32} {quantity(self.older):>10} {quantity(self.newer):>10} "
            f"{self.ratio:>6.3f}  {self.low:.3f} to {self.high:.3f}"
        )
        return shown + ("  WORSE" if self.worse else "")


def verdict(row: str, pairs: Sequence[Sequence[float]]) -> Verdict:
    """Judge the figures (older, newer) of at least two rounds."""
    is_rate = row.startswith(RATES) and row not in NO_RATES
    least = LEAST.get(row, 0.0)
    ratios = []
    for pair in pairs:
        older, newer = (max(value, least) for value in pair)
        ratios.append(newer / older if is_rate else older / newer)
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    older, newer = (statistics.median(side) for side in zip(*pairs, strict=True))
    return Verdict(row, older, newer, middle, low, high)


def one_round(checkouts: Sequence[Checkout], plan: dict[str, list[str]]) -> dict[str, list[float]]:
    """(first, second) of each row of the plan's groups that both have."""
    found: dict[str, list[float]] = {}
    for group, rows in plan.items():
        first, second = GROUPS[group](checkouts, rows)
        for row in first.keys() & second.keys():
            found[f"{group}.{row}"] = [first[row], second[row]]
    return dict(sorted(found.items()))


def built(commit: str) -> Checkout:
    """A checkout of the commit, with its environment and compiled modules; made once."""
    path = CHECKOUTS / commit
    if not path.exists():
        _git("worktree", "prune")
        _git("worktree", "add", "--quiet", "--detach", str(path), commit)
    print(f"bench-against: building {commit}", file=sys.stderr, flush=True)
    environment = os.environ | {"CILIA_BUILD_COMPILED": "0"}  # an install would compile for nothing
    subprocess.run(["install/setup.sh"], cwd=path, env=environment, check=True)
    subprocess.run([".venv/bin/python", "cffi_build.py", "native"], cwd=path, check=True)
    return Checkout(path)


def _git(*arguments: str) -> str:
    return subprocess.check_output(["git", *arguments], cwd=ROOT, text=True).strip()


def planned(checkouts: Sequence[Checkout], patterns: Sequence[str]) -> dict[str, list[str]]:
    """Which groups run, and with which rows of statedb: those that both commits have."""
    plan: dict[str, list[str]] = {}
    for group in GROUPS:
        if not any(fnmatch(group, pattern.partition(".")[0]) for pattern in patterns):
            continue
        if group == "agent" and os.geteuid() != 0:
            print("bench-against: agent needs root (real maps), not run", file=sys.stderr)
            continue
        plan[group] = []
    if "statedb" in plan:
        older, newer = map(statedb_rows, checkouts)
        both = [row for row in newer if row in older]
        plan["statedb"] = [row for row in both if _matches(f"statedb.{row}", patterns)]
    return plan


def _matches(row: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch(row, pattern if "." in pattern else f"{pattern}.*") for pattern in patterns)


def compare(older: str, newer: str, rounds: int, patterns: Sequence[str]) -> list[Verdict]:
    """Run the rounds that are not in the journal yet, and judge all."""
    name, settings = f"against-{older}", {"older": older, "rows": list(patterns)}
    with journal(name, settings, commit=newer) as kept:
        checkouts = [built(older), built(newer)]
        plan = planned(checkouts, patterns)
        while (number := len(kept.pieces)) < rounds:
            turn = -1 if number % 2 else 1
            found = one_round(checkouts[::turn], plan)
            pairs = {row: pair[::turn] for row, pair in found.items()}
            kept.add(pairs, f"round {number + 1} of {rounds}")
        rows = [row for row in kept.pieces[0] if _matches(row, patterns)]
        verdicts = [verdict(row, [piece[row] for piece in kept.pieces]) for row in rows]
        worse = [found.row for found in verdicts if found.worse]
        kept.finish(f"worse: {' '.join(worse)}" if worse else "none is worse")
    return verdicts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("commit", help="the older commit")
    parser.add_argument("--newer", default="HEAD", help="the newer one")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("rows", nargs="*", help="e.g. statedb agent.start* (default: all)")
    arguments = parser.parse_intermixed_args()
    if arguments.rounds < 2:
        parser.error("a range needs two rounds at least")
    older, newer = (
        _git("rev-parse", "--verify", "--short=12", f"{commit}^{{commit}}")
        for commit in (arguments.commit, arguments.newer)
    )
    if _git("status", "--porcelain", "--untracked-files=no") and arguments.newer == "HEAD":
        print("bench-against: changes that are not committed are not measured", file=sys.stderr)
    verdicts = compare(older, newer, arguments.rounds, arguments.rows or ["*"])
    worse = [found.row for found in verdicts if found.worse]
    print(f"\n{machine()}\n{newer} against {older}, {arguments.rounds} rounds")
    print(f"{'row':<32} {'older':>10} {'newer':>10} {'ratio':>6}  interquartile range")
    for found in verdicts:
        print(found)
    print(f"worse: {', '.join(worse)}" if worse else "none is worse")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
