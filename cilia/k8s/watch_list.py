# SPDX-License-Identifier: Apache-2.0
"""Lists of one resource, compared with what its readers were told.

Only differences are decoded and told, unless a reader came that knows nothing: then all readers are
sent everything, between `Listing` and `Listed`.
"""

from __future__ import annotations

import time
from functools import partial

import structlog

from cilia.k8s.errors import ApiError, Garbage
from cilia.k8s.followed import Followed
from cilia.k8s.listing import pages
from cilia.k8s.objects import ObjectKey
from cilia.k8s.resource import HEAD, Page, decoded, number
from cilia.k8s.watch import Event, Listed, Listing, Unread
from cilia.k8s.watch_retry import Retry
from cilia.k8s.watch_state import Anomaly, State

log = structlog.get_logger("k8s")


class ListReader:
    """Knows how many readers came that know nothing."""

    def __init__(self, followed: Followed, retry: Retry, page_size: int) -> None:
        self._followed = followed
        self._retry = retry
        self._page_size = page_size
        # How many times readers came that know nothing, and how many of these were sent everything.
        self._asked, self._served = 1, 0

    @property
    def asked(self) -> int:
        """Grows with each reader that knows nothing."""
        return self._asked

    def send_everything(self) -> None:
        """Have the next list send every object."""
        self._asked += 1

    def failed(self, error: ApiError) -> float:
        """Note a failure; return how long to wait."""
        wait_s = self._retry.failed(error)
        self.tell_unread()
        return wait_s

    def tell_unread(self) -> None:
        """Tell who was told no list yet that it cannot be read now."""
        _, resource, audience, _, _, report = self._followed
        if not report.state.listed:
            audience.tell([Unread(resource.kind.KIND)])

    async def read(self, cause: str) -> None:
        """Read all objects; tell what differs from what was told (all, to new readers).

        Raises ApiError.
        """
        client, resource, audience, _, events, report = self._followed
        kind, asked = resource.kind.KIND, self._asked
        everything = asked != self._served
        comparison = _Comparison(self._followed, cause, everything)
        report.enter(State.LISTING)
        if everything:
            audience.tell([Listing(kind)])
        expired = partial(report.anomaly, Anomaly.GONE)
        async for page in pages(client, resource, self._page_size, expired, self.failed):
            if report.state.state is not State.LISTING:
                self._retry.succeeded()
                report.enter(State.LISTING)
            self._retry.answered()
            if page is None:
                comparison.begin_again()
                continue
            audience.tell(comparison.take(page))
            await audience.room()
        audience.tell(comparison.end())
        if everything:
            self._served = asked
            audience.tell([Listed(kind, events.refused)])
        report.listed()
        report.proven()

    def tell_absent(self) -> None:
        """The server has no such resource: no objects, and that is a complete answer."""
        _, resource, audience, ledger, events, report = self._followed
        now = time.time() if ledger.revision else 0.0
        if ledger.versions:
            log.warning(
                "the API server has the resource no more; its objects are gone",
                resource=resource.name,
                objects=len(ledger.versions),
            )
        told: list[Event] = []
        for key in ledger.versions:
            told += events.of_deletion(key, now)
        if self._asked != self._served:
            kind = resource.kind.KIND
            told = [Listing(kind), *told, Listed(kind)]
        self._served = self._asked
        ledger.forget()
        if told:
            audience.tell(told)
        report.listed()
        report.enter(State.ABSENT)


class _Comparison:
    """One list, taken in page by page."""

    def __init__(self, followed: Followed, cause: str, everything: bool) -> None:
        self._resource = followed.resource
        self._ledger = followed.ledger
        self._events = followed.events
        self._report = followed.report
        self._cause, self._everything = cause, everything
        # What a first list brings is no change and no repair.
        self._first = not followed.ledger.revision
        self._listed: dict[ObjectKey, int] = {}
        self._revision = 0

    def begin_again(self) -> None:
        """The pages that were read expired."""
        self._listed.clear()

    def take(self, page: Page) -> list[Event]:
        """Decode the objects that differ, or all if all are to be sent. Raises Garbage."""
        told: list[Event] = []
        versions = self._ledger.versions
        now, before = time.time(), len(self._listed)
        self._revision = number(page.metadata.resource_version)
        for raw in page.items or ():
            head = decoded(HEAD, raw)
            key, version = self._resource.key(head), head.version
            self._listed[key] = version
            known = versions.get(key)
            if known != version:
                versions[key] = version
                self._repaired("added" if known is None else "changed")
                told += self._events.of_object(key, raw, 0.0 if self._first else now)
            elif self._everything:
                told += self._events.of_object(key, raw, 0.0)
        if page.items and len(self._listed) == before:
            raise Garbage("a page of a list repeats what came before")
        return told

    def end(self) -> list[Event]:
        """Forget the objects that the list had not, and reach its revision."""
        told: list[Event] = []
        now = 0.0 if self._first else time.time()
        for key in [key for key in self._ledger.versions if key not in self._listed]:
            del self._ledger.versions[key]
            self._repaired("deleted")
            told += self._events.of_deletion(key, now)
        self._ledger.revision = self._revision
        return told

    def _repaired(self, what: str) -> None:
        if not self._first:
            self._report.repaired(self._cause, what)
