# SPDX-License-Identifier: Apache-2.0
"""The agent of the soak, in which what is left is held by somebody.

Run as `python -m tests.soak.agent.inside KIND agent [OPTION]...`. Garbage is no growth, and comes
and goes with the collector (on an agent that does little it is up to 50,000 objects), so a job
collects it. With a KIND other than `none` the agent leaks on purpose, to see that the soak sees it.
"""

from __future__ import annotations

import gc
import os
import sys
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import anyio
from prometheus_client import Gauge

from cilia.__main__ import main as cilia
from cilia.agent import run, wiring
from cilia.agent.agent import Agent
from tests.soak.agent.samples import BLOCKS, MALLOC
from tests.soak.memory import live_blocks, live_malloc_kib

#: No leak.
NONE = "none"
COLLECT_S = 5.0
#: Superseded rows that a table may keep: with 1,024 memory is even after a quarter of an hour.
SLACK_ROWS = 64
#: Between two steps of what leaks bit by bit.
STEP_S = 0.5

Leak = Callable[[Agent], Awaitable[object]]


async def snapshot(agent: Agent) -> None:
    """Wait with a snapshot in hand, as a loop does by mistake."""
    txn = agent.ctx.db.read_txn()
    await anyio.sleep_forever()
    agent.ctx.db.tables()[0].revision(txn)


async def snapshots(agent: Agent) -> None:
    """Keep a snapshot with each step: each commit looks at all of them."""
    held = []
    while True:
        held.append(agent.ctx.db.read_txn())
        await anyio.sleep(STEP_S / 20)


async def tracker(agent: Agent) -> None:
    """Open change iterators and forget to close them."""
    table = agent.loadbalancer.tables.frontends
    held = []
    while True:
        with agent.ctx.db.write_txn(table) as wtxn:
            held.append(table.changes(wtxn))
        await anyio.sleep(STEP_S)


async def memory(agent: Agent) -> None:
    """Keep 20 KiB with each step."""
    held = []
    while True:
        held.append([object() for _ in range(20 << 10 >> 4)])
        await anyio.sleep(STEP_S)


async def descriptor(agent: Agent) -> None:
    held = []
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
        await anyio.sleep(STEP_S)


async def thread(agent: Agent) -> None:
    never = threading.Event()
    while True:
        threading.Thread(target=never.wait, daemon=True).start()
        await anyio.sleep(STEP_S)


async def series(agent: Agent) -> None:
    """A metric whose label is the name of something that goes."""
    gauge = Gauge("cilia_leak", "A label a step.", ["name"], registry=agent.ctx.registry)
    step = 0
    while True:
        gauge.labels(str(step)).set(1)
        step += 1
        await anyio.sleep(STEP_S)


async def collected(agent: Agent) -> None:
    """Collect garbage from time to time, and tell how much is left."""
    registry = agent.ctx.registry
    blocks = Gauge(BLOCKS, "Blocks of Python's allocator in use.", registry=registry)
    malloc = Gauge(MALLOC, "KiB that malloc has given out.", registry=registry)
    while True:
        gc.collect()
        blocks.set(live_blocks())
        malloc.set(live_malloc_kib())
        await anyio.sleep(COLLECT_S)


LEAKS: dict[str, Leak] = {
    leak.__name__: leak
    for leak in (snapshot, snapshots, tracker, memory, descriptor, thread, series)
}


def main() -> None:
    kind, built = sys.argv.pop(1), wiring.build

    def build(*arguments: Any, **options: Any) -> Agent:
        agent = built(*arguments, **options)
        for table in agent.ctx.db.tables():
            table._store.slack_rows = SLACK_ROWS
        agent.observation.jobs["collect"] = partial(collected, agent)
        if kind != NONE:
            agent.observation.jobs["leak"] = partial(LEAKS[kind], agent)
        return agent

    run.build = build  # type: ignore[attr-defined]
    cilia()


if __name__ == "__main__":
    main()
