# SPDX-License-Identifier: Apache-2.0
"""The one reader of the ring buffer of events, which runs only while somebody listens.

The programs are told which kinds somebody listens to (`cilia_listeners`), and write no others. What
the buffer has from before is skipped: it is as old as the last listener. Each batch goes to every
listener as it is, without being decoded, so that 200,000 events a second do not hold up the agent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final, Protocol

import anyio

from bpf.events import EventKind, kind_of
from bpf.records import Batch
from cilia.flows.listener import Listener

__all__ = ["EventReader", "EventSource", "RingReader"]

#: Between two looks at what the buffer had no room for.
LOST_LOOK_S: Final = 1.0


class RingReader(Protocol):
    """An open ring buffer."""

    def read(self) -> Batch: ...
    def fileno(self) -> int: ...
    def close(self) -> None: ...


class EventSource(Protocol):
    """The maps of events."""

    def open(self) -> RingReader: ...

    def want(self, kinds: frozenset[EventKind]) -> None:
        """Tell the programs which kinds somebody listens to."""
        ...

    def lost(self) -> Mapping[int, int]:
        """Return how many events had no room so far, by kind."""
        ...


class EventReader:
    """`run` is a job; `listening` is called by whoever answers a request."""

    def __init__(self, source: EventSource) -> None:
        self._source = source
        self._listeners: list[Listener] = []
        self._asked = anyio.Event()
        self._is_reading = False
        self._lost: dict[int, int] = {}
        # A run before may have been killed while somebody listened.
        source.want(frozenset())

    @property
    def listeners(self) -> int:
        return len(self._listeners)

    @contextmanager
    def listening(self, listener: Listener) -> Iterator[Listener]:
        """Let somebody have all events from now on, until the block ends."""
        self._tell_lost()
        self._listeners.append(listener)
        self._asked.set()
        if self._is_reading:
            self._want()
        try:
            yield listener
        finally:
            self._listeners.remove(listener)
            self._want()

    async def run(self) -> None:
        """Read while somebody listens, for ever."""
        while True:
            await self._asked.wait()
            self._asked = anyio.Event()
            reader = self._source.open()
            try:
                await self._read(reader)
            finally:
                self._is_reading = False
                reader.close()

    async def _read(self, reader: RingReader) -> None:
        while reader.read().size:
            await anyio.sleep(0)
        self._lost = dict(self._source.lost())
        self._is_reading = True
        self._want()
        look_at = anyio.current_time() + LOST_LOOK_S
        while self._listeners:
            batch = reader.read()
            if batch.size:
                self._tell(batch)
                await anyio.sleep(0)
            else:
                with anyio.move_on_at(look_at):
                    await anyio.wait_readable(reader.fileno())
            if anyio.current_time() >= look_at:
                self._tell_lost()
                look_at = anyio.current_time() + LOST_LOOK_S

    def _tell(self, batch: Batch) -> None:
        wanted = self._wanted
        for listener in self._listeners:
            listener.records(batch if listener.kinds == wanted else only(batch, listener.kinds))

    def _tell_lost(self) -> None:
        """Tell the listeners there are of what was lost since the last look."""
        if not self._listeners:
            return
        now = dict(self._source.lost())
        for kind, count in now.items():
            if count > self._lost.get(kind, 0):
                for listener in self._listeners:
                    listener.lost(kind, count - self._lost.get(kind, 0))
        self._lost = now

    @property
    def _wanted(self) -> frozenset[EventKind]:
        return frozenset(kind for listener in self._listeners for kind in listener.kinds)

    def _want(self) -> None:
        self._source.want(self._wanted)


def only(batch: Batch, kinds: frozenset[EventKind]) -> Batch:
    """Return the records of these kinds, for a listener beside one of other kinds."""
    return batch.only(lambda record: kind_of(record) in kinds)
