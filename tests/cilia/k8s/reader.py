# SPDX-License-Identifier: Apache-2.0
"""A reader of a source, and what it was told so far."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cilia.k8s.objects import K8sObject
from cilia.k8s.watch import Delete, Event, Listed, Listing, Source, Upsert


class Reader:
    """Takes everything that a source says of some kinds."""

    def __init__(self, source: Source, *kinds: type[K8sObject]) -> None:
        self.events: list[Event] = []
        self._changed = asyncio.Event()
        self.task = asyncio.create_task(self._run(source, kinds))

    async def _run(self, source: Source, kinds: tuple[type[K8sObject], ...]) -> None:
        async for events in source.watch(*kinds):
            self.events += events
            self._changed.set()

    async def until(self, condition: Callable[[list[Event]], bool]) -> list[Event]:
        async with asyncio.timeout(10):
            while not condition(self.events):
                self._changed.clear()
                await self._changed.wait()
        return self.events

    async def listed(self) -> list[Event]:
        return await self.until(lambda events: any(isinstance(e, Listed) for e in events))

    async def names(self, *expected: str) -> None:
        """Waits until these objects, and no others, are what was told."""
        await self.until(lambda events: self.held() == set(expected))

    def held(self) -> set[str]:
        held: set[str] = set()
        sent: set[str] | None = None
        for event in self.events:
            match event:
                case Upsert():
                    held.add(event.obj.metadata.name)
                    if sent is not None:
                        sent.add(event.obj.metadata.name)
                case Delete():
                    held.discard(event.key[2])
                case Listing():
                    sent = set()
                case Listed():
                    held &= sent or set()
                    sent = None
        return held
