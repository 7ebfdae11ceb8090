# SPDX-License-Identifier: Apache-2.0
"""CiliumIdentity objects for what is desired: made, and kept while in use.

    what is desired                    what there is                what is done
    a number for these labels          an object with the labels    nothing
                                       one that is to be deleted    its mark is taken away
                                       none                         one is made, of a free number
    this number, in force for labels   its object                   nothing
                                       it is to be deleted          its mark is taken away
                                       none                         it is made, with this number
                                       one of other labels          told: its owner takes another

The name of an object is its number, so two nodes never make one number. They may make two for one
set of labels at the same time, which is legal. A write counts once the table shows it: an object
that was made and is not seen yet is looked for before another one is made.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Final

import anyio
import structlog
from anyio.abc import TaskGroup

from cilia.identity.desired import Labels, watch_claim, with_labels
from cilia.identity.numbers import IdentitiesExhausted, TakenNumber
from cilia.identity.objects import IdentityObjects
from cilia.k8s.errors import ApiError, StatusError
from cilia.k8s.object_writer import CONFLICT
from cilia.program.health import HealthReporter
from reconcilers.retries import Retries
from statedb import (
    DB,
    Channel,
    ReadTxn,
    RWTable,
    Status,
    StatusKind,
    Table,
    WatchSet,
    wait_filled,
    wait_initialized,
)
from statedb.status import done, error, set_status
from tables.identity.desired_identities import DesiredIdentity, Key, desired_identity_key
from tables.identity.identities import CLUSTER_MAX, CLUSTER_MIN, Identity

__all__ = ["IdentityAllocator"]

log = structlog.get_logger("identity")

#: Between tries of one row: others change objects within milliseconds, a server is away for longer.
RETRY_MIN_S: Final = 0.05
RETRY_MAX_S: Final = 5.0
#: Numbers that are tried in a row, as in the field, and what is waited between two of them.
MOST_TRIES: Final = 16
CONFLICT_WAIT_S: Final = 0.02
#: Random numbers that are looked at before the free ones are listed.
MOST_GUESSES: Final = 64
#: How long an object that was written may take to be seen.
SEEN_WAIT_S: Final = 5.0

Work = Callable[[], Awaitable[None]]


class NotSeen(ApiError):
    """A write succeeded, and the watch of identities does not show it."""


class IdentityAllocator:
    """One task calls `run`. `numbers` are those that it may give."""

    def __init__(
        self,
        db: DB,
        objects: Table[Identity],
        desired: RWTable[DesiredIdentity],
        edge: IdentityObjects,
        health: HealthReporter,
        *,
        numbers: Sequence[int] = range(CLUSTER_MIN, CLUSTER_MAX + 1),
        rng: random.Random | None = None,
        seen_wait_s: float = SEEN_WAIT_S,
    ) -> None:
        self._db = db
        self._objects = objects
        self._desired = desired
        self._edge = edge
        self._health = health
        self._numbers = numbers
        self._rng = rng or random.Random()
        self._seen_wait_s = seen_wait_s
        self._retries = Retries[DesiredIdentity](RETRY_MIN_S, RETRY_MAX_S, 0.5, time.monotonic)
        self._busy: set[Key] = set()
        # Numbers of objects that were made and not seen yet.
        self._made: dict[Labels, int] = {}
        self._ended = Channel()

    async def run(self) -> None:
        """Follow what is desired for ever, once the objects that there are were read."""
        await wait_filled(self._db, self._objects)
        await wait_initialized(self._db, self._desired)
        self._busy.clear()  # of a run that failed
        self._forget_others({})
        async with anyio.create_task_group() as group:
            while True:
                watches = self._look(group)
                next_due = self._retries.next_due()
                wait_s = math.inf if next_due is None else next_due - time.monotonic()
                with anyio.move_on_after(max(wait_s, 0)):
                    await watches.wait()

    def _look(self, group: TaskGroup) -> WatchSet:
        """Begin what is to be done; return what to wait for."""
        txn = self._db.read_txn()
        found, changed = self._desired.all_watch(txn)
        rows = {desired_identity_key(row): row for row in found}
        self._ended = Channel()
        watches = WatchSet(changed, self._ended)
        self._forget_others(rows)
        due = {item.key for item in self._retries.take_due(len(self._retries))}
        for key, row in rows.items():
            watches.add(watch_claim(self._objects, txn, row))
            if key not in self._busy:
                self._consider(txn, key, row, group, is_due=key in due)
        self._tell_health(rows.values())
        return watches

    def _forget_others(self, rows: dict[Key, DesiredIdentity]) -> None:
        for item in list(self._retries):
            if item.key not in rows:
                self._retries.clear(item.key)
        labels = {row.labels for row in rows.values() if not row.number}
        self._made = {made: number for made, number in self._made.items() if made in labels}

    def _consider(
        self, txn: ReadTxn, key: Key, row: DesiredIdentity, group: TaskGroup, *, is_due: bool
    ) -> None:
        try:
            work = self._work(txn, row)
        except TakenNumber as failure:
            self._retries.clear(key)
            self._tell(key, error(str(failure)))
            return
        if work is None:
            self._retries.clear(key)
            self._tell(key, done())
        elif is_due or key not in self._retries:
            self._busy.add(key)
            group.start_soon(self._do, key, row, work)

    def _work(self, txn: ReadTxn, row: DesiredIdentity) -> Work | None:
        """Return what is to be done for a row, None for nothing. Raises: TakenNumber."""
        if not row.labels:
            return None
        if row.number:
            return self._work_of_number(txn, row)
        found = with_labels(self._objects, txn, row.labels)
        if any(not identity.is_marked for identity in found):
            return None
        return partial(self._edge.unmark, found[0].id) if found else partial(self._make, row.labels)

    def _work_of_number(self, txn: ReadTxn, row: DesiredIdentity) -> Work | None:
        found = self._objects.get(txn, row.number)
        if found is None:
            return partial(self._make_again, row.number, row.labels)
        if found.labels != row.labels:
            raise TakenNumber(row.number, found.labels)
        return partial(self._edge.unmark, row.number) if found.is_marked else None

    async def _do(self, key: Key, row: DesiredIdentity, work: Work) -> None:
        try:
            await work()
            await self._seen(key, row)
        except (ApiError, IdentitiesExhausted) as failure:
            self._retries.add(key, row, 0, False, str(failure))
            self._tell(key, error(str(failure)))
        else:
            self._retries.clear(key)
        finally:
            self._busy.discard(key)
            self._ended.close()

    async def _seen(self, key: Key, row: DesiredIdentity) -> None:
        """Wait until nothing is to be done for a row, or it is gone. Raises: NotSeen."""
        with anyio.move_on_after(self._seen_wait_s):
            look = partial(self._watch_unmet, key=key, row=row)
            while watches := self._db.look(look):
                await watches.wait()
            return
        raise NotSeen(
            f"an identity was written {self._seen_wait_s:g} s ago and its watch does not show it"
        )

    def _watch_unmet(self, txn: ReadTxn, key: Key, row: DesiredIdentity) -> WatchSet | None:
        """Return what to wait for while something is to be done for a row; else None."""
        there, changed = self._desired.get_watch(txn, key)
        try:
            work = None if there is None else self._work(txn, row)
        except TakenNumber:
            work = None  # nothing that could be done here
        return None if work is None else WatchSet(changed, watch_claim(self._objects, txn, row))

    # -- writes --

    async def _make(self, labels: Labels) -> None:
        """Make an object with any free number. Raises: ApiError, IdentitiesExhausted."""
        made = self._made.get(labels)
        if made is not None and await self._edge.has(made, labels):
            return
        tried: set[int] = set()
        for _ in range(MOST_TRIES):
            number = self._made[labels] = self._free(tried)  # the answer may be lost
            if await self._edge.create(number, labels):
                log.info("made an identity", id=number, labels=list(labels))
                return
            tried.add(number)
            await anyio.sleep(CONFLICT_WAIT_S)  # others make some too: the table will show them
        raise StatusError(CONFLICT, f"{MOST_TRIES} free numbers were taken before this node could")

    async def _make_again(self, number: int, labels: Labels) -> None:
        """Make the object of a number that is in force. Raises: ApiError."""
        if await self._edge.create(number, labels):
            log.warning("made an identity again, which is in use", id=number, labels=list(labels))

    def _free(self, tried: set[int]) -> int:
        """Raises: IdentitiesExhausted."""
        txn = self._db.read_txn()
        taken = {row.number for row in self._desired.all(txn)} | tried
        for _ in range(MOST_GUESSES):
            number = self._rng.choice(self._numbers)
            if number not in taken and self._objects.get(txn, number) is None:
                return number
        taken |= {identity.id for identity in self._objects.all(txn)}
        free = [number for number in self._numbers if number not in taken]
        if not free:
            raise IdentitiesExhausted
        return self._rng.choice(free)

    # -- what people see --

    def _tell(self, key: Key, status: Status) -> None:
        row = self._desired.get(self._db.read_txn(), key)
        if row is None or (row.status.kind, row.status.error) == (status.kind, status.error):
            return
        with self._db.write_txn(self._desired) as wtxn:
            row = self._desired.get(wtxn, key)
            if row is not None:
                self._desired.insert(wtxn, set_status(row, status))

    def _tell_health(self, rows: Iterable[DesiredIdentity]) -> None:
        failed = [row.status.error for row in rows if row.status.kind is StatusKind.ERROR]
        if failed:
            self._health.degraded(
                f"{len(failed)} identities are not as they should be: endpoints keep what they"
                " have, new ones wait",
                failed[0],
            )
        else:
            self._health.ok("all endpoints' labels have an identity")
