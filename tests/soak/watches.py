# SPDX-License-Identifier: Apache-2.0
"""Random faults between the agent's source and an API server: what they leave, when they show.

    python -m tests.soak.watches --faults 10000

Each world has a server, a proxy and a source of its own, with the agent's default times (proofs
every 5 s instead of 60). Most of the time is waiting, so that many worlds run side by side. Faults
during which this process itself stood still are told apart: the machine was too busy.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import sys
import time

import click
import structlog

from tests.cilia.k8s.fault_proxy import Fault
from tests.cilia.k8s.fault_world import FaultWorld, Outcome, Times

SILENT = (Fault.DROP,)
VISIBLE_S = 5.0
# A machine that is so busy that this process stands still for longer says nothing of the source.
STALLED_S = 0.25


async def one_world(seed: int, faults: list[Fault], outcomes: list[Outcome]) -> int:
    """Injects the faults one after the other; stale rows at the very end, after a proof."""
    async with FaultWorld(seed, Times()).running() as world:
        for fault in faults:
            outcome = await world.inject(fault)
            outcomes.append(outcome)  # at once: progress is read from it
        await asyncio.sleep(Times().proof_s + 1.0)
        return world.stale()


async def soak(count: int, worlds: int, seed: int, outcomes: list[Outcome]) -> int:
    """Stale rows at the end; `outcomes` grows meanwhile."""
    rng = random.Random(seed)
    plan = [rng.choice(list(Fault)) for _ in range(count)]
    shares = [plan[i::worlds] for i in range(worlds)]
    runs = [
        asyncio.create_task(one_world(seed + i, share, outcomes)) for i, share in enumerate(shares)
    ]
    progress = asyncio.create_task(_progress(outcomes, count))
    stale = await asyncio.gather(*runs)
    progress.cancel()
    return sum(stale)


async def _progress(outcomes: list[Outcome], count: int) -> None:
    while True:
        await asyncio.sleep(30)
        print(f"{len(outcomes)} of {count}", file=sys.stderr, flush=True)


def table(outcomes: list[Outcome]) -> tuple[list[str], bool]:
    """The fault table, and whether every line is as it should be."""
    titles = ("fault", "injected", "stale rows", "noticed", "p50", "max", "of which stalled", "max")
    lines = ["{:<10} {:>8} {:>10} {:>8} {:>8} {:>8} {:>17} {:>8}".format(*titles)]
    well = True
    for fault in Fault:
        rows = [outcome for outcome in outcomes if outcome.fault is fault]
        if not rows:
            continue
        times = [outcome.noticed_s for outcome in rows if outcome.noticed_s is not None]
        own = [o.noticed_s for o in rows if o.noticed_s is not None and o.stalled_s <= STALLED_S]
        stalled = [o.noticed_s for o in rows if o.noticed_s is not None and o.stalled_s > STALLED_S]
        stale = sum(outcome.stale for outcome in rows)
        most = max(own, default=0.0)
        in_time = len(times) == len(rows) and (fault in SILENT or most <= VISIBLE_S)
        well = well and in_time and not stale
        p50 = statistics.median(times) if times else 0.0
        lines.append(
            f"{fault:<10} {len(rows):>8} {stale:>10} {len(times):>8} {p50:>7.3f}s {most:>7.3f}s"
            f" {len(stalled):>17} {max(stalled, default=0.0):>7.3f}s"
        )
    return lines, well


@click.command()
@click.option("--faults", default=10_000, show_default=True)
@click.option("--worlds", default=40, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(faults: int, worlds: int, seed: int) -> None:
    """Print the fault table; ends with 1 if something was stale or noticed too late."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    started = time.monotonic()
    outcomes: list[Outcome] = []
    stale = 0
    try:
        stale = asyncio.run(soak(faults, worlds, seed, outcomes))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    lines, well = table(outcomes)
    print("\n".join(lines))
    print(f"{len(outcomes)} faults in {time.monotonic() - started:.0f} s, {stale} stale at the end")
    sys.exit(0 if well and not stale else 1)


if __name__ == "__main__":
    main()
