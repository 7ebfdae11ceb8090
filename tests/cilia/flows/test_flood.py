# SPDX-License-Identifier: Apache-2.0
"""More events than anybody reads: the event loop goes on, memory stays bounded, all is counted."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import anyio
import anyio.to_thread
import pytest

from bpf import events
from bpf.events import EventKind
from bpf.maps.listeners import NAME, Listeners
from bpf.maps.percpu import PerCpuMap
from bpf.object import Object
from bpf.records import records
from bpf.ringbuf import Reader
from cilia.flows import reader as module
from cilia.flows.listener import Listener
from cilia.flows.reader import EventReader
from cilia.flows.wire import FrameKind, frames
from tests.bpf.sources import build
from tests.patience import PATIENCE

pytestmark = pytest.mark.root

SOURCE = """
#include "lib/event.h"
SEC("tc") int refuse(struct __sk_buff *skb)
{
    drop(skb, DROP_NO_BACKEND, DIRECTION_EGRESS);
    return 0;
}
"""
PACKET = bytes(200)

RATE = 200_000
FLOOD_S = 1.0
STEP_S = 0.01
#: Of the listener that reads nothing.
QUEUE_BYTES = 1 << 20
HELD_MS = 100


class KernelEvents:
    """The maps of one object."""

    def __init__(self, obj: Object) -> None:
        self._ring = obj.map("cilia_events")
        self._lost = PerCpuMap(obj.map("cilia_lost").detach_fd())
        self._listeners = Listeners(obj.map(NAME))

    def open(self) -> Reader:
        return Reader.ring(self._ring)

    def want(self, kinds: frozenset[EventKind]) -> None:
        self._listeners.kinds = kinds

    def lost(self) -> Mapping[int, int]:
        return events.lost_events(self._lost)


@pytest.fixture
def obj() -> Iterator[Object]:
    with Object.open("test", build(SOURCE)) as made:
        made.load()
        yield made


class Heard:
    """What one listener is told."""

    def __init__(self) -> None:
        self.records = 0
        self.lost = {"ring": 0, "reader": 0}

    @property
    def total(self) -> int:
        return self.records + sum(self.lost.values())

    def frame(self, raw: bytes) -> None:
        (found,) = frames([raw])
        if found.kind == FrameKind.RECORDS:
            self.records += sum(1 for _ in records(found.payload))
        elif "lost" in (notice := found.notice()):
            self.lost[notice["at"]] += notice["lost"]


async def hear(listener: Listener, heard: Heard) -> None:
    while True:
        heard.frame(await listener.next())
        await anyio.sleep(0)


def flood(obj: Object) -> int:
    """Report at the rate; how many."""
    program = obj.program("refuse")
    steps, begun = round(FLOOD_S / STEP_S), time.monotonic()
    for step in range(steps):
        program.run(PACKET, repeat=round(RATE * STEP_S))
        time.sleep(max(0.0, begun + (step + 1) * STEP_S - time.monotonic()))
    return steps * round(RATE * STEP_S)


class Pulse:
    """The longest time for which the event loop was held."""

    def __init__(self) -> None:
        self.longest_ms = 0.0

    async def run(self) -> None:
        while True:
            before = time.monotonic()
            await anyio.sleep(0.001)
            self.longest_ms = max(self.longest_ms, (time.monotonic() - before) * 1000)


async def test_flood_holds_up_nobody_and_is_counted(
    obj: Object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOST_LOOK_S", 0.05)
    reader, pulse, heard, late = EventReader(KernelEvents(obj)), Pulse(), Heard(), Heard()
    busy = Listener({EventKind.DROP})
    idle = Listener({EventKind.DROP}, QUEUE_BYTES)
    async with anyio.create_task_group() as group:
        group.start_soon(reader.run)
        with reader.listening(busy), reader.listening(idle):
            await anyio.wait_all_tasks_blocked()
            group.start_soon(hear, busy, heard)
            group.start_soon(pulse.run)
            reported = await anyio.to_thread.run_sync(flood, obj)
            with anyio.fail_after(5 * PATIENCE):
                while heard.total < reported:
                    await anyio.sleep(0.01)
            assert idle.bytes_waiting < QUEUE_BYTES + 4096
            group.start_soon(hear, idle, late)
            with anyio.fail_after(5 * PATIENCE):
                while late.total < reported:
                    await anyio.sleep(0.01)
        group.cancel_scope.cancel()
    print(f"{heard.records} read, lost {heard.lost}; {late.lost}; held {pulse.longest_ms:.1f} ms")
    assert heard.total == late.total == reported
    assert late.lost["reader"] > 0
    assert heard.lost["ring"] == late.lost["ring"]
    assert pulse.longest_ms < HELD_MS * PATIENCE
