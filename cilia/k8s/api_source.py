# SPDX-License-Identifier: Apache-2.0
"""Kubernetes objects from a real API server: one watch a resource, however many readers there are.

The number of watches is fixed by the resources that are given. Objects are not kept here: a reader
that comes late, or again, has its resources listed again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final

import anyio

from cilia.k8s.api_servers import SERVICE, Servers
from cilia.k8s.client import Client
from cilia.k8s.objects import EndpointSlice, K8sObject
from cilia.k8s.resource import Resource
from cilia.k8s.resource_watch import Options, ResourceWatch
from cilia.k8s.signal import Signal
from cilia.k8s.watch import PROBLEMS, Delete, Event, Invalid, Listed, Listing, Problem, Upsert
from cilia.k8s.watch_state import WatchState

# Events that a reader may have waiting before its watches are read no further.
MOST_WAITING: Final = 2_000


class _Reader:
    """Events that one reader has yet to take. Those before the first `Listing` of their kind belong
    to a list that others asked for."""

    def __init__(self, kinds: frozenset[str]) -> None:
        self.kinds = kinds
        self.pending: list[Event] = []
        self.taken = Signal()
        self.wake = Signal()
        self._begun: set[str] = set()

    def put(self, kind: str, events: list[Event]) -> None:
        if kind not in self._begun:
            starts = (i for i, event in enumerate(events) if isinstance(event, Listing))
            events = events[next(starts, len(events)) :]
            if not events:
                return
            self._begun.add(kind)
        self.pending += events
        self.wake.set()

    async def take(self) -> list[Event]:
        while not self.pending:
            self.wake.clear()
            await self.wake.wait()
        batch, self.pending = self.pending, []
        self.taken.set()
        return batch

    async def room(self) -> None:
        while len(self.pending) > MOST_WAITING:
            self.taken.clear()
            await self.taken.wait()


class _Audience:
    """The readers of one resource."""

    def __init__(self, source: ApiSource, kind: str) -> None:
        self._source, self._kind = source, kind
        self.readers: list[_Reader] = []

    def tell(self, events: list[Event]) -> None:
        problems: list[Event] = [event for event in events if isinstance(event, Invalid)]
        if problems:
            self._source.tell_problems(problems)
            events = [event for event in events if not isinstance(event, Invalid)]
        if self._kind == EndpointSlice.KIND:
            _learn(self._source.client.servers, events)
        if events:
            for reader in self.readers:
                reader.put(self._kind, events)

    async def room(self) -> None:
        for reader in list(self.readers):
            await reader.room()


class ApiSource:
    """See above. All in one event loop: `run` does the work, `watch` is for the readers."""

    def __init__(
        self,
        client: Client,
        resources: Sequence[Resource],
        options: Options | None = None,
    ) -> None:
        self.client = client
        self._observers: list[Callable[[WatchState], None]] = []
        self._audiences = {r.kind.KIND: _Audience(self, r.kind.KIND) for r in resources}
        self.watches = {
            r.kind.KIND: ResourceWatch(
                client, r, self._audiences[r.kind.KIND], options, self._reported, self._recovered
            )
            for r in resources
        }
        self._problems: dict[str, Invalid] = {}
        self._problem_readers: list[_Reader] = []
        self._complete = False
        client.observe_access(self._access_told)

    def observe(self, observer: Callable[[WatchState], None]) -> None:
        """Have each change of a watch's state told from now on."""
        self._observers.append(observer)

    async def run(self) -> None:
        """Follows every resource until cancelled."""
        try:
            async with anyio.create_task_group() as group:
                for watch in self.watches.values():
                    group.start_soon(watch.run)
        finally:
            await self.client.close()

    async def watch(self, *kinds: type[K8sObject]) -> AsyncIterator[list[Event]]:
        """Batches of events, see `cilia.k8s.watch`. Raises KeyError for a kind not followed."""
        names = frozenset(kind.KIND for kind in kinds)
        reader = _Reader(names or frozenset((PROBLEMS,)))
        homes = [self._audiences[name].readers for name in names] or [self._problem_readers]
        for home in homes:
            home.append(reader)
        for name in names:
            self.watches[name].send_everything()
        if not names:
            reader.put(PROBLEMS, self._list_problems())
        try:
            while True:
                yield await reader.take()
        finally:
            for home in homes:
                home.remove(reader)
            reader.pending.clear()
            reader.taken.set()

    def tell_problems(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Invalid):
                self._problems.pop(event.origin, None)
                if event.problems:
                    self._problems[event.origin] = event
        for reader in self._problem_readers:
            reader.put(PROBLEMS, events)

    def _list_problems(self) -> list[Event]:
        listed: list[Event] = [Listed(PROBLEMS)] if self._complete else []
        return [Listing(PROBLEMS), *self._problems.values(), *listed]

    def _access_told(self, problem: str) -> None:
        """Credentials were read again, and what is wrong with them."""
        text = f"{problem}: what was read before is used; mend it before the agent is started anew"
        self.tell_problems([Invalid("api:access", (Problem(text),) if problem else ())])

    def _recovered(self) -> None:
        """One connection carries all: who is answered knows it for the others."""
        for watch in self.watches.values():
            watch.try_now()

    def _reported(self, state: WatchState) -> None:
        """All that is wrong is known when every resource was listed once."""
        if not self._complete and all(watch.state.listed for watch in self.watches.values()):
            self._complete = True
            for reader in self._problem_readers:
                reader.put(PROBLEMS, [Listed(PROBLEMS)])
        for observer in self._observers:
            observer(state)


def _learn(servers: Servers, events: list[Event]) -> None:
    """Where the API servers are is in one of the slices that are read anyway."""
    for event in events:
        match event:
            case Upsert() if isinstance(event.obj, EndpointSlice):
                if event.obj.metadata.namespace == SERVICE[0]:
                    servers.learn(event.obj)
            case Delete() if event.key[1] == SERVICE[0]:
                servers.forget(event.key[2])
