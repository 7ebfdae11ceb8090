# SPDX-License-Identifier: Apache-2.0
"""Requests of one attachment come one after the other: a DEL waits for an ADD that was given up."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager

import anyio

__all__ = ["Turns"]


class Turns:
    """Locks by a key, such as an attachment, each there while somebody has it or waits for it."""

    def __init__(self) -> None:
        self._locks: dict[Hashable, anyio.Lock] = {}

    @asynccontextmanager
    async def take(self, key: Hashable | None) -> AsyncIterator[None]:
        """Nobody else is in a block of this key; None is no key."""
        if key is None:
            yield
            return
        lock = self._locks.setdefault(key, anyio.Lock())
        try:
            async with lock:
                yield
        finally:  # one that others wait for is theirs by now
            if not lock.locked() and self._locks.get(key) is lock:
                del self._locks[key]

    def waiting(self, key: Hashable) -> int:
        """Return how many wait for their turn."""
        lock = self._locks.get(key)
        return lock.statistics().tasks_waiting if lock else 0

    def __len__(self) -> int:
        """Return how many attachments somebody has."""
        return len(self._locks)
