# SPDX-License-Identifier: Apache-2.0
"""The one reader: it runs while somebody listens, and tells each listener what is lost."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
import pytest

from bpf.events import EventKind
from bpf.records import Batch, records
from cilia.flows import reader as module
from cilia.flows.listener import Listener
from cilia.flows.reader import EventReader
from cilia.flows.wire import Frame, FrameKind, frames
from tests.cilia.flows.made import FORGED, batch, event

DROP, TRACE = EventKind.DROP, EventKind.TRACE
DROPPED = event(**FORGED)
PASSED = event(**{**FORGED, "kind": TRACE, "reason": 0})


class FakeEvents:
    """A ring buffer in memory; readable through a pipe."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.wanted: list[frozenset[EventKind]] = []
        self.counts: dict[int, int] = {}
        self.is_open = False
        self._readable, self._written = os.pipe()

    def open(self) -> FakeEvents:
        assert not self.is_open
        self.is_open = True
        return self

    def close(self) -> None:
        self.is_open = False

    def want(self, kinds: frozenset[EventKind]) -> None:
        self.wanted.append(kinds)

    def lost(self) -> Mapping[int, int]:
        return dict(self.counts)

    def fileno(self) -> int:
        return self._readable

    def write(self, made: Batch) -> None:
        self.batches.append(made)
        os.write(self._written, b"x")

    def read(self) -> Batch:
        if not self.batches:
            return Batch(b"", 0)
        os.read(self._readable, 1)
        return self.batches.pop(0)

    def end(self) -> None:
        os.close(self._readable)
        os.close(self._written)


@pytest.fixture
async def source() -> AsyncIterator[FakeEvents]:
    made = FakeEvents()
    yield made
    made.end()


@asynccontextmanager
async def running(source: FakeEvents) -> AsyncIterator[EventReader]:
    reader = EventReader(source)
    async with anyio.create_task_group() as group:
        group.start_soon(reader.run)
        await anyio.wait_all_tasks_blocked()
        yield reader
        group.cancel_scope.cancel()


async def until(source: FakeEvents, *kinds: EventKind) -> None:
    """Wait for what the programs are told last."""
    with anyio.fail_after(5):
        while source.wanted[-1] != frozenset(kinds):
            await anyio.sleep(0)


async def frame(listener: Listener) -> Frame:
    """The next frame that says something."""
    with anyio.fail_after(5):
        while True:
            (found,) = frames([await listener.next()])
            if found.kind == FrameKind.RECORDS or "lost" in found.notice():
                return found


async def test_nothing_is_read_or_wanted_before_somebody_listens(source: FakeEvents) -> None:
    async with running(source) as reader:
        assert (source.is_open, source.wanted) == (False, [frozenset()])
        with reader.listening(Listener({DROP})):
            await until(source, DROP)
            assert source.is_open
        assert source.wanted[-1] == frozenset()


async def test_what_is_older_than_the_listener_is_skipped(source: FakeEvents) -> None:
    source.write(batch(DROPPED, DROPPED))
    async with running(source) as reader:
        with reader.listening(Listener({DROP})) as listener:
            await until(source, DROP)
            source.write(batch(DROPPED))
            found = await frame(listener)
    assert len(list(records(found.payload))) == 1


async def test_listeners_have_their_own_kinds(source: FakeEvents) -> None:
    async with running(source) as reader:
        first, second = Listener({DROP}), Listener({DROP, TRACE})
        with reader.listening(first):
            await until(source, DROP)
            with reader.listening(second):
                await until(source, DROP, TRACE)
                source.write(batch(PASSED, DROPPED, PASSED))
                sizes = [
                    len(list(records((await frame(each)).payload))) for each in (first, second)
                ]
            assert source.wanted[-1] == {DROP}
    assert sizes == [1, 3]


async def test_listener_who_comes_while_the_last_one_goes_is_heard(source: FakeEvents) -> None:
    async with running(source) as reader:
        with reader.listening(Listener({DROP})):
            await until(source, DROP)
        with reader.listening(Listener({TRACE})) as listener:
            await until(source, TRACE)
            source.write(batch(PASSED))
            assert (await frame(listener)).payload


async def test_losses_are_told_once_and_from_the_beginning_on(
    source: FakeEvents, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOST_LOOK_S", 0.01)
    source.counts = {DROP: 100}
    async with running(source) as reader:
        with reader.listening(Listener({DROP, TRACE})) as first:
            await until(source, DROP, TRACE)
            source.counts = {DROP: 103, TRACE: 2}
            told = [(await frame(first)).notice() for _ in range(2)]
            source.counts = {DROP: 104, TRACE: 2}
            with reader.listening(Listener({DROP, TRACE})) as second:
                told.append((await frame(first)).notice())
                source.counts = {DROP: 109, TRACE: 2}
                late = (await frame(second)).notice()
    assert told == [
        {"lost": 3, "at": "ring", "kind": 1},
        {"lost": 2, "at": "ring", "kind": 2},
        {"lost": 1, "at": "ring", "kind": 1},
    ]
    assert late["lost"] == 5
