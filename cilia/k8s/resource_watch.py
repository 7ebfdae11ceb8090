# SPDX-License-Identifier: Apache-2.0
"""One resource, followed for ever: list, watch, and the proof that what was told is true.

    list (pages, one revision) -> watch from there -> ... -> lost: watch from the last revision
      ^                             |         ^
      |  410, disorder, a proof     |         | equal
      +---- that failed <-----------+---- proof: versions of all objects, without their content

A repeated list is compared with what the readers were told, and only the differences are sent: what
a watch missed is repaired and counted. A proof follows each reconnection and otherwise an interval.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import anyio
import msgspec
import structlog

from cilia.k8s.client import Client
from cilia.k8s.discovery import is_absent
from cilia.k8s.errors import ApiError, Garbage, Gone, StatusError, status_error
from cilia.k8s.ledger import Ledger, Verdict
from cilia.k8s.lines import Lines
from cilia.k8s.listing import pages
from cilia.k8s.object_events import ObjectEvents
from cilia.k8s.objects import ObjectKey
from cilia.k8s.proof import prove
from cilia.k8s.resource import (
    BOOKMARK,
    FAILURE,
    HEAD,
    WATCH_EVENT,
    Page,
    Resource,
    decoded,
    number,
)
from cilia.k8s.watch import Event, Listed, Listing
from cilia.k8s.watch_state import Anomaly, State, WatchState

log = structlog.get_logger("k8s")

FIRST_WAIT_S: Final = 0.2
LONGEST_WAIT_S: Final = 10.0
# The server ends a watch after a while, each at another time, so that not all come back at once.
WATCH_S: Final = (300, 600)
# A resource that the server does not have (its definition is not there yet) is asked for again.
ABSENT_S: Final = 10.0


class Options(msgspec.Struct, frozen=True):
    page_size: int = 1000
    proof_interval_s: float = 60.0


class Audience(Protocol):
    """Those who are told."""

    def tell(self, events: list[Event]) -> None: ...

    async def room(self) -> None:
        """Waits while they have too much to read already."""


class _Mistrust(Exception):
    """The stream is not to be believed; the text says why."""


class ResourceWatch:
    """See above. `report` is told each change of the state, and at most once a second how far the
    stream is; `recovered`, that the server answers after it did not. `run` ends only when it is
    cancelled."""

    def __init__(
        self,
        client: Client,
        resource: Resource,
        audience: Audience,
        options: Options | None = None,
        report: Callable[[WatchState], None] = lambda state: None,
        recovered: Callable[[], None] = lambda: None,
    ) -> None:
        self.resource = resource
        self.state = WatchState(resource.name)
        self._client = client
        self._audience = audience
        self._options = options or Options()
        self._report, self._recovered = report, recovered
        self._ledger = Ledger()
        self._events = ObjectEvents(resource.kind)
        # Why the next step is a list; empty: go on with the watch.
        self._list_cause = "start"
        # How many times readers came that know nothing, and how many of these were sent everything.
        self._asked, self._served = 1, 0
        self._stream: anyio.CancelScope | None = None
        self._proof_wanted = asyncio.Event()
        self._moved = asyncio.Event()
        self._failures = 0
        # The last try had no answer; the wait for the next one ends early once others have one.
        self._unanswered = False
        self._others_answered = asyncio.Event()
        self._reported_at = 0.0
        self._begun = False

    async def run(self) -> None:
        if self._begun:
            # Of what was under way when it failed, the ledger may know more than the readers.
            self.send_everything()
        self._begun = True
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._prove_again_and_again())

    def send_everything(self) -> None:
        """A reader came that knows nothing: list again, and send every object."""
        self._asked += 1
        self._list_again("reader")

    def try_now(self) -> None:
        """The server answers others: no reason to wait any longer for it to come back."""
        self._others_answered.set()

    # -- list, watch, and again

    async def _follow(self) -> None:
        while True:
            try:
                reconnected = not self._list_cause
                if self._list_cause:
                    await self._list()
                if not self._list_cause:
                    await self._watch(prove=reconnected)
                # Ended by the server, or by the wish to list.
                wait_s = 0.0 if self._list_cause else random.uniform(0, FIRST_WAIT_S)
            except _Mistrust as error:
                self._list_cause = str(error)
                wait_s = 0.0
            except ApiError as error:
                wait_s = await self._refused_or_absent(error)
            await self._pause(wait_s)

    async def _refused_or_absent(self, error: ApiError) -> float:
        """Note a failure, or that the server has no such resource; return how long to wait."""
        if isinstance(error, StatusError) and error.code == 404:
            try:
                absent = await is_absent(self._client, self.resource)
            except ApiError as no_discovery:
                return self._failed(no_discovery)
            if absent:
                self._answered()
                self._absent()
                return random.uniform(0.5, 1.0) * ABSENT_S
        return self._failed(error)

    async def _pause(self, wait_s: float) -> None:
        self._others_answered.clear()
        if self._unanswered:
            with anyio.move_on_after(wait_s):
                await self._others_answered.wait()
        else:
            await asyncio.sleep(wait_s)

    def _answered(self) -> None:
        if self._unanswered:
            self._unanswered = False
            self._recovered()

    def _failed(self, error: ApiError) -> float:
        """Notes a failure; how long to wait before the next try, in seconds."""
        if isinstance(error, StatusError):
            self._answered()
        else:
            self._unanswered = True
        if isinstance(error, Gone):
            self._anomaly(Anomaly.GONE)
            self._list_cause = self._list_cause or "gone"
        elif isinstance(error, Garbage):
            self._anomaly(Anomaly.GARBAGE)
        self._error(error)
        self._say(State.FAILED)
        longest_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**self._failures)
        self._failures = min(self._failures + 1, 10)
        asked_s = error.retry_after_s if isinstance(error, StatusError) else 0.0
        return asked_s + random.uniform(0, longest_s)

    def _error(self, error: ApiError) -> None:
        state = self.state
        state.errors += 1
        state.error = str(error)
        state.last_error_at = time.time()
        log.warning("reading from the API server failed", resource=state.resource, error=str(error))

    def _absent(self) -> None:
        """The server has no such resource: no objects, and that is a complete answer."""
        now = time.time() if self._ledger.revision else 0.0
        if self._ledger.versions:
            log.warning(
                "the API server has the resource no more; its objects are gone",
                resource=self.state.resource,
                objects=len(self._ledger.versions),
            )
        events: list[Event] = []
        for key in self._ledger.versions:
            events += self._events.of_deletion(key, now)
        if self._asked != self._served:
            kind = self.resource.kind.KIND
            events = [Listing(kind), *events, Listed(kind)]
        self._served = self._asked
        self._ledger = Ledger()
        self._list_cause = "absent"
        if events:
            self._audience.tell(events)
        self.state.objects = 0
        self.state.listed = True
        self._say(State.ABSENT)

    # -- list

    async def _list(self) -> None:
        """Reads all objects and sends what differs from what was told (all, to new readers)."""
        cause, asked = self._list_cause, self._asked
        everything, first = asked != self._served, not self._ledger.revision
        kind = self.resource.kind.KIND
        self._say(State.LISTING)
        if everything:
            self._audience.tell([Listing(kind)])
        listed: dict[ObjectKey, int] = {}
        revision = 0
        expired = partial(self._anomaly, Anomaly.GONE)
        size = self._options.page_size
        async for page in pages(self._client, self.resource, size, expired, self._failed):
            if self.state.state is not State.LISTING:
                self._failures = 0
                self._say(State.LISTING)
            self._answered()
            if page is None:
                listed.clear()
                continue
            revision = number(page.metadata.resource_version)
            self._audience.tell(self._differing(page, listed, everything, first, cause))
            await self._audience.room()
        self._audience.tell(self._unlisted(listed, first, cause))
        self._ledger.revision = revision
        if everything:
            self._served = asked
            self._audience.tell([Listed(kind, self._events.refused)])
        self._list_cause = "" if self._asked == asked else "reader"
        self.state.listed = True
        self._proven(revision)

    def _differing(
        self,
        page: Page,
        listed: dict[ObjectKey, int],
        everything: bool,
        first: bool,
        cause: str,
    ) -> list[Event]:
        """Takes a page in; only objects that differ are decoded, unless all are to be sent."""
        events: list[Event] = []
        versions = self._ledger.versions
        now, before = time.time(), len(listed)
        for raw in page.items or ():
            head = decoded(HEAD, raw)
            key, version = self.resource.key(head), head.version
            listed[key] = version
            known = versions.get(key)
            if known != version:
                versions[key] = version
                if not first:
                    self.state.repairs[cause, "added" if known is None else "changed"] += 1
                events += self._events.of_object(key, raw, 0.0 if first else now)
            elif everything:
                events += self._events.of_object(key, raw, 0.0)
        if page.items and len(listed) == before:
            raise Garbage("a page of a list repeats what came before")
        return events

    def _unlisted(self, listed: dict[ObjectKey, int], first: bool, cause: str) -> list[Event]:
        events: list[Event] = []
        now = 0.0 if first else time.time()
        for key in [key for key in self._ledger.versions if key not in listed]:
            del self._ledger.versions[key]
            if not first:
                self.state.repairs[cause, "deleted"] += 1
            events += self._events.of_deletion(key, now)
        return events

    def _list_again(self, cause: str) -> None:
        self._list_cause = cause
        if self._stream is not None:
            self._stream.cancel()

    # -- watch

    async def _watch(self, *, prove: bool) -> None:
        """Follows the stream until it ends; what came before an error is sent. `prove`: ask for a
        proof once it is there.
        """
        query = {
            **self.resource.query,
            "watch": 1,
            "allowWatchBookmarks": "true",
            "resourceVersion": self._ledger.revision,
            "timeoutSeconds": random.randint(*WATCH_S),
        }
        with anyio.CancelScope() as self._stream:
            async with self._client.get(self.resource.path, query) as response:
                self._answered()
                self._failures = 0
                self._say(State.WATCHING)
                if prove:
                    self._proof_wanted.set()
                lines = Lines()
                async for chunk in response.chunks():
                    self._take_lines(lines.take(chunk))
                    await self._audience.room()
                if lines.rest:
                    raise Garbage("a watch ended in the middle of an event")
        self._stream = None

    def _take_lines(self, lines: list[bytes]) -> None:
        events: list[Event] = []
        try:
            for line in lines:
                self._take(line, events)
        finally:
            if events:
                self._audience.tell(events)
            self._moved.set()
            self._progressed()

    def _take(self, line: bytes, events: list[Event]) -> None:
        """One line of the stream. Raises Garbage, StatusError, _Mistrust."""
        event = decoded(WATCH_EVENT, line)
        match event.type:
            case "ADDED" | "MODIFIED" | "DELETED":
                self._take_object(event.type, event.object, events)
            case "BOOKMARK":
                bookmark = decoded(BOOKMARK, event.object)
                if not self._ledger.reach(number(bookmark.metadata.resource_version)):
                    raise self._mistrust(Anomaly.DISORDER)
            case "ERROR":
                failure = decoded(FAILURE, event.object)
                raise status_error(failure.code, failure.message)
            case _:
                raise Garbage(f"watch event of type {event.type!r}")

    def _take_object(self, type_: str, raw: msgspec.Raw, events: list[Event]) -> None:
        head = decoded(HEAD, raw)
        key = self.resource.key(head)
        verdict = self._ledger.take(key, head.version, type_)
        if verdict is Verdict.DUPLICATE:
            self._anomaly(Anomaly.DUPLICATE)
            return
        if verdict is Verdict.DISORDER:
            raise self._mistrust(Anomaly.DISORDER)
        now = time.time()
        if type_ == "DELETED":
            events += self._events.of_deletion(key, now)
        else:
            events += self._events.of_object(key, raw, now)
        if verdict is Verdict.GAP:
            raise self._mistrust(Anomaly.GAP)

    def _mistrust(self, what: Anomaly) -> _Mistrust:
        self._anomaly(what)
        return _Mistrust(what.value)

    # -- proof

    async def _prove_again_and_again(self) -> None:
        while True:
            with anyio.move_on_after(self._options.proof_interval_s * random.uniform(0.9, 1.0)):
                await self._proof_wanted.wait()
            self._proof_wanted.clear()
            if self.state.state is not State.WATCHING:
                continue  # what comes next, a list or a new watch, is a proof or asks for one
            try:
                await self._prove()
            except ApiError as error:
                self._error(error)
                await asyncio.sleep(random.uniform(0, 2 * FIRST_WAIT_S))
                self._proof_wanted.set()

    async def _prove(self) -> None:
        """Compares the versions of all objects with what was told; a difference means a list."""
        ledger = self._ledger
        proof = await prove(
            self._client,
            self.resource,
            ledger,
            self._moved,
            self._options.page_size,
            lambda: bool(self._list_cause) or ledger is not self._ledger,
        )
        if proof is None:
            return
        self.state.proof_bytes += proof.versions.bytes
        self.state.proof_cpu_s += proof.versions.cpu_s
        if proof.rewound:
            self._anomaly(Anomaly.REWOUND)
            log.warning(
                "versions went back, the API server has another history; listing again",
                resource=self.state.resource,
                told=self._ledger.revision,
                listed=proof.versions.revision,
            )
            self._list_again("history")
            return
        missed = proof.differences
        if not missed:
            self._proven(proof.versions.revision)
            return
        self._anomaly(Anomaly.MISSED)
        log.warning(
            "a watch missed changes; listing again",
            resource=self.state.resource,
            added=len(missed.added),
            changed=len(missed.changed),
            deleted=len(missed.deleted),
        )
        self._list_again("proof")

    # -- state

    def _proven(self, revision: int) -> None:
        self.state.proven_at = time.time()
        self.state.proofs += 1
        self._say(self.state.state)

    def _say(self, state: State) -> None:
        self.state.state = state
        self.state.server = str(self._client.servers.current)
        self.state.revision = self._ledger.revision
        self.state.objects = len(self._ledger.versions)
        self._reported_at = time.monotonic()
        self._report(self.state)

    def _progressed(self) -> None:
        self.state.last_event_at = time.time()
        if time.monotonic() - self._reported_at >= 1.0:
            self._say(self.state.state)

    def _anomaly(self, what: Anomaly) -> None:
        self.state.anomalies[what] += 1
        self.state.last_anomaly_at = time.time()
        self._say(self.state.state)
