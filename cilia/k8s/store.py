# SPDX-License-Identifier: Apache-2.0
"""Objects in memory with any number of readers that list and watch: what the local sources stand
on.

Thread-safe: writers may be in any thread; a reader is woken in the event loop that it reads in.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Iterable

from cilia.k8s.objects import K8sObject, ObjectKey
from cilia.k8s.watch import PROBLEMS, Delete, Event, Invalid, Listed, Listing, Unread, Upsert
from statedb import Channel


class _Reader:
    """Events that one reader has yet to take."""

    def __init__(self, kinds: frozenset[str], pending: list[Event]) -> None:
        self.kinds = kinds
        self.pending = pending
        self._more = Channel()

    def put(self, events: Iterable[Event]) -> None:
        """A reader with events already will take these too: to wake it again would only take the
        interpreter from a thread that reads on."""
        was_idle = not self.pending
        self.pending.extend(event for event in events if _kind(event) in self.kinds)
        if was_idle and self.pending:
            self._more.close()

    async def wait(self) -> None:
        """Wait until events came; what comes meanwhile is seen by whoever looks after this."""
        await self._more.wait()
        self._more = Channel()


def _kind(event: Event) -> str:
    match event:
        case Upsert():
            return event.obj.KIND
        case Delete():
            return event.key[0]
        case Invalid():
            return PROBLEMS
    return event.kind


class ObjectStore:
    """Current objects and problems, and the readers that follow them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._objects: dict[ObjectKey, K8sObject] = {}
        self._invalid: dict[str, Invalid] = {}
        self._complete = False
        self._partly = False
        self._readers: list[_Reader] = []

    @property
    def complete(self) -> bool:
        """True once all that exists has been published."""
        return self._complete

    @property
    def partly(self) -> bool:
        """True while all that can be read has been published, and there may be more."""
        return self._partly

    def __len__(self) -> int:
        return len(self._objects)

    def get(self, key: ObjectKey) -> K8sObject | None:
        return self._objects.get(key)

    def publish(self, events: Iterable[Event]) -> None:
        """Takes changes in and hands them to the readers."""
        events = list(events)
        with self._lock:
            for event in events:
                self._take(event)
            for reader in self._readers:
                reader.put(events)

    def _take(self, event: Event) -> None:
        match event:
            case Upsert():
                self._objects[event.obj.key] = event.obj
            case Delete():
                self._objects.pop(event.key, None)
            case Invalid():
                self._invalid.pop(event.origin, None)
                if event.problems:
                    self._invalid[event.origin] = event

    def set_complete(self) -> None:
        """All that exists has been published: every reader has its list."""
        with self._lock:
            self._complete, self._partly = True, False
            for reader in self._readers:
                reader.put(map(Listed, sorted(reader.kinds)))

    def set_partly(self) -> None:
        """All that can be read has been published; the rest comes once it can be read too."""
        with self._lock:
            self._partly = True
            for reader in self._readers:
                reader.put(map(Unread, sorted(reader.kinds)))

    def relist(self, kind: str, objects: Iterable[K8sObject]) -> None:
        """Replaces all objects of a kind without a word on what went: its readers list again."""
        with self._lock:
            for key in [key for key in self._objects if key[0] == kind]:
                del self._objects[key]
            self._objects.update((obj.key, obj) for obj in objects)
            for reader in self._readers:
                if kind in reader.kinds:
                    reader.put(self._list(kind))

    async def watch(self, *kinds: type[K8sObject]) -> AsyncIterator[list[Event]]:
        """Batches of events, see ``cilia.k8s.watch``."""
        wanted = frozenset(kind.KIND for kind in kinds) or frozenset((PROBLEMS,))
        with self._lock:
            listed = [event for kind in sorted(wanted) for event in self._list(kind)]
            reader = _Reader(wanted, listed)
            self._readers.append(reader)
        try:
            while True:
                with self._lock:
                    batch, reader.pending = reader.pending, []
                if batch:
                    yield batch
                else:
                    await reader.wait()
        finally:
            with self._lock:
                self._readers.remove(reader)

    def _list(self, kind: str) -> list[Event]:
        events: list[Event] = [Listing(kind)]
        events += [Upsert(obj) for key, obj in self._objects.items() if key[0] == kind]
        if kind == PROBLEMS:
            events += self._invalid.values()
        if self._complete:
            events.append(Listed(kind))
        elif self._partly:
            events.append(Unread(kind))
        return events
