# SPDX-License-Identifier: Apache-2.0
"""The stream of a watch: lines to events, each checked against what was told before."""

from __future__ import annotations

import time
from collections.abc import Iterable

import msgspec

from cilia.k8s.errors import Garbage, status_error
from cilia.k8s.followed import Followed
from cilia.k8s.ledger import Verdict
from cilia.k8s.resource import BOOKMARK, FAILURE, HEAD, WATCH_EVENT, decoded, number
from cilia.k8s.signal import Signal
from cilia.k8s.watch import Event
from cilia.k8s.watch_state import Anomaly


class Mistrust(Exception):
    """The stream is not to be believed; the text says why."""


class StreamReader:
    """Tells what the stream brings. `moved` is set when it has brought something."""

    def __init__(self, followed: Followed) -> None:
        self.moved = Signal()
        self._followed = followed

    def take(self, lines: Iterable[bytes]) -> None:
        """Tell the events of these lines; what comes before an error is told.

        Raises:
            Garbage: a line is no event.
            StatusError: the server ends the watch by an error.
            Mistrust: something was lost, or came out of order.
        """
        events: list[Event] = []
        try:
            for line in lines:
                self._take(line, events)
        finally:
            if events:
                self._followed.audience.tell(events)
            self.moved.set()
            self._followed.report.progressed()

    def _take(self, line: bytes, events: list[Event]) -> None:
        event = decoded(WATCH_EVENT, line)
        match event.type:
            case "ADDED" | "MODIFIED" | "DELETED":
                self._take_object(event.type, event.object, events)
            case "BOOKMARK":
                bookmark = decoded(BOOKMARK, event.object)
                if not self._followed.ledger.reach(number(bookmark.metadata.resource_version)):
                    raise self._mistrust(Anomaly.DISORDER)
            case "ERROR":
                failure = decoded(FAILURE, event.object)
                raise status_error(failure.code, failure.message)
            case _:
                raise Garbage(f"watch event of type {event.type!r}")

    def _take_object(self, type_: str, raw: msgspec.Raw, events: list[Event]) -> None:
        followed = self._followed
        head = decoded(HEAD, raw)
        key = followed.resource.key(head)
        verdict = followed.ledger.take(key, head.version, type_)
        if verdict is Verdict.DUPLICATE:
            followed.report.anomaly(Anomaly.DUPLICATE)
            return
        if verdict is Verdict.DISORDER:
            raise self._mistrust(Anomaly.DISORDER)
        now = time.time()
        if type_ == "DELETED":
            events += followed.events.of_deletion(key, now)
        else:
            events += followed.events.of_object(key, raw, now)
        if verdict is Verdict.GAP:
            raise self._mistrust(Anomaly.GAP)

    def _mistrust(self, what: Anomaly) -> Mistrust:
        self._followed.report.anomaly(what)
        return Mistrust(what.value)
