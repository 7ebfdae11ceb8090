# SPDX-License-Identifier: Apache-2.0
"""One resource, followed for ever: list, watch, and the proof that what was told is true.

    list (pages, one revision) -> watch from there -> ... -> lost: watch from the last revision
      ^                             |         ^
      |  410, disorder, a proof     |         | equal
      +---- that failed <-----------+---- proof: versions of all objects, without their content

A repeated list is compared with what the readers were told, and only the differences are sent: what
a watch missed is repaired and counted. Here is the order of steps; the steps themselves are
`watch_list`, `watch_stream` and `watch_proofs`, the waits between them `watch_retry`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from cilia.k8s.client import Client
from cilia.k8s.discovery import is_absent
from cilia.k8s.errors import ApiError, Garbage, Gone, StatusError
from cilia.k8s.followed import Audience, Followed
from cilia.k8s.ledger import Ledger
from cilia.k8s.lines import Lines
from cilia.k8s.object_events import ObjectEvents
from cilia.k8s.resource import Resource
from cilia.k8s.watch_list import ListReader
from cilia.k8s.watch_proofs import Prover
from cilia.k8s.watch_report import WatchReport
from cilia.k8s.watch_retry import Retry, moment_s
from cilia.k8s.watch_state import State, WatchState
from cilia.k8s.watch_stream import Mistrust, StreamReader

# The server ends a watch after a while, each at another time, so that not all come back at once.
WATCH_S: Final = (300, 600)
# A resource that the server does not have (its definition is not there yet) is asked for again.
ABSENT_S: Final = 10.0


class Options(msgspec.Struct, frozen=True):
    page_size: int = 1000
    proof_interval_s: float = 60.0
    # A first list that takes longer is told as one that cannot be read now: others need not wait.
    slow_list_s: float = 5.0


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
        options = options or Options()
        ledger = Ledger()
        self._report = WatchReport(resource.name, ledger, client.servers, report)
        self._followed = Followed(
            client, resource, audience, ledger, ObjectEvents(resource.kind), self._report
        )
        self._retry = Retry(self._report, recovered)
        self._list = ListReader(self._followed, self._retry, options.page_size)
        self._stream = StreamReader(self._followed)
        self._prover = Prover(
            self._followed,
            self._stream.moved,
            options.page_size,
            options.proof_interval_s,
            lambda: bool(self._list_cause),
            self._list_again,
        )
        # Why the next step is a list; empty: go on with the watch.
        self._list_cause = "start"
        self._watching: anyio.CancelScope | None = None
        self._begun = False
        self._slow_list_s = options.slow_list_s

    @property
    def resource(self) -> Resource:
        return self._followed.resource

    @property
    def state(self) -> WatchState:
        return self._report.state

    async def run(self) -> None:
        if self._begun:
            # Of what was under way when it failed, the ledger may know more than the readers.
            self.send_everything()
        self._begun = True
        async with anyio.create_task_group() as group:
            group.start_soon(self._follow)
            group.start_soon(self._prover.run)
            group.start_soon(self._tell_slow)

    def send_everything(self) -> None:
        """A reader came that knows nothing: list again, and send every object."""
        self._list.send_everything()
        self._list_again("reader")

    def try_now(self) -> None:
        """The server answers others: no reason to wait any longer for it to come back."""
        self._retry.try_now()

    async def _tell_slow(self) -> None:
        await anyio.sleep(self._slow_list_s)
        self._list.tell_unread()

    async def _follow(self) -> None:
        while True:
            try:
                wait_s = await self._step()
            except Mistrust as error:
                self._list_cause = str(error)
                wait_s = 0.0
            except ApiError as error:
                wait_s = await self._refused_or_absent(error)
            await self._retry.wait(wait_s)

    async def _step(self) -> float:
        """List if there is a cause, then watch until the stream ends; return how long to wait.

        Raises Mistrust and ApiError.
        """
        reconnected = not self._list_cause
        if self._list_cause:
            asked = self._list.asked
            await self._list.read(self._list_cause)
            self._list_cause = "" if self._list.asked == asked else "reader"
        if not self._list_cause:
            await self._watch(prove=reconnected)
        # Ended by the server, or by the wish to list.
        return 0.0 if self._list_cause else moment_s()

    async def _watch(self, *, prove: bool) -> None:
        """Follow the stream until it ends. `prove`: ask for a proof once it is there."""
        client, resource, audience, ledger, _, report = self._followed
        query = {
            **resource.query,
            "watch": 1,
            "allowWatchBookmarks": "true",
            "resourceVersion": ledger.revision,
            "timeoutSeconds": random.randint(*WATCH_S),
        }
        with anyio.CancelScope() as self._watching:
            async with client.get(resource.path, query) as response:
                self._retry.answered()
                self._retry.succeeded()
                report.enter(State.WATCHING)
                if prove:
                    self._prover.prove_now()
                lines = Lines()
                async for chunk in response.chunks():
                    self._stream.take(lines.take(chunk))
                    await audience.room()
                if lines.rest:
                    raise Garbage("a watch ended in the middle of an event")
        self._watching = None

    def _list_again(self, cause: str) -> None:
        self._list_cause = cause
        if self._watching is not None:
            self._watching.cancel()

    async def _refused_or_absent(self, error: ApiError) -> float:
        """Note a failure, or that the server has no such resource; return how long to wait."""
        if isinstance(error, StatusError) and error.code == 404:
            try:
                absent = await is_absent(self._followed.client, self._followed.resource)
            except ApiError as no_discovery:
                return self._failed(no_discovery)
            if absent:
                self._retry.answered()
                self._list.tell_absent()
                self._list_cause = "absent"
                return random.uniform(0.5, 1.0) * ABSENT_S
        return self._failed(error)

    def _failed(self, error: ApiError) -> float:
        if isinstance(error, Gone):
            self._list_cause = self._list_cause or "gone"
        return self._list.failed(error)
