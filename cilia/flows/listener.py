# SPDX-License-Identifier: Apache-2.0
"""Somebody who listens: a queue of bounded size, and a count of what it had no room for.

A listener that is slow loses events of its own, never those of others, and is told how many at the
place where they are missing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Set
from typing import Final

import anyio

from bpf.events import EventKind
from bpf.records import Batch
from cilia.flows.wire import FrameKind, encode, notice

__all__ = ["QUEUE_BYTES", "Listener"]

#: Some 15,000 events with their packets: what comes while a terminal scrolls.
QUEUE_BYTES: Final = 4 << 20


class Listener:
    """Written to by the reader, and read by one answer."""

    def __init__(self, kinds: Set[EventKind], queue_bytes: int = QUEUE_BYTES) -> None:
        self.kinds = frozenset(kinds)
        self._queue_bytes = queue_bytes
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._missed = 0
        self._came = anyio.Event()
        self._put(notice(listening=True))

    @property
    def bytes_waiting(self) -> int:
        return self._bytes

    def records(self, batch: Batch) -> None:
        """Take records, or count them where the queue is full."""
        if not batch.size:
            return
        if self._bytes + len(batch.raw) > self._queue_bytes:
            self._missed += batch.size
            self._came.set()
            return
        self._tell_missed()
        self._put(encode(FrameKind.RECORDS, batch.raw))

    def lost(self, kind: int, count: int) -> None:
        """Take note of events that the ring buffer had no room for."""
        if kind in self.kinds:
            self._put(notice(lost=count, at="ring", kind=kind))

    async def next(self) -> bytes:
        """Return the next frame; wait for one."""
        while not self._frames:
            if self._missed:
                self._tell_missed()
                break
            self._came = anyio.Event()
            await self._came.wait()
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        return frame

    def _tell_missed(self) -> None:
        if self._missed:
            missed, self._missed = self._missed, 0
            self._put(notice(lost=missed, at="reader"))

    def _put(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._bytes += len(frame)
        self._came.set()
