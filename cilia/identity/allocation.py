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

import random
from collections.abc import Sequence
from functools import partial
from typing import Final

import anyio
import structlog

from cilia.cluster.object_reconciler import SEEN_WAIT_S, ObjectReconciler, Plan, Work
from cilia.identity.desired import Labels, watch_claim, with_labels
from cilia.identity.numbers import IdentitiesExhausted, TakenNumber
from cilia.identity.objects import IdentityObjects
from cilia.k8s.errors import StatusError
from cilia.k8s.object_writer import CONFLICT
from cilia.program.health import HealthReporter
from statedb import DB, ReadTxn, RWTable, Table
from tables.identity.desired_identities import DesiredIdentity
from tables.identity.identities import CLUSTER_MAX, CLUSTER_MIN, Identity

__all__ = ["IdentityAllocator"]

log = structlog.get_logger("identity")

#: Numbers that are tried in a row, as in the field, and what is waited between two of them.
MOST_TRIES: Final = 16
CONFLICT_WAIT_S: Final = 0.02
#: Random numbers that are looked at before the free ones are listed.
MOST_GUESSES: Final = 64


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
        self._numbers = numbers
        self._rng = rng or random.Random()
        # Numbers of objects that were made and not seen yet.
        self._made: dict[Labels, int] = {}
        plan = Plan(
            rows=desired,
            objects=objects,
            work=self._work,
            watch=partial(watch_claim, objects),
            well="all endpoints' labels have an identity",
            failed="{} identities are not as they should be: endpoints keep what they have, new"
            " ones wait",
            failures=(IdentitiesExhausted,),
        )
        self._reconciler = ObjectReconciler(db, plan, health, seen_wait_s=seen_wait_s)

    async def run(self) -> None:
        """Follow what is desired for ever, once the objects that there are were read."""
        await self._reconciler.run()

    def _work(self, txn: ReadTxn, row: DesiredIdentity) -> Work | None:
        """Return what is to be done for a row, None for nothing. Raises: Refusal."""
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

    # -- writes --

    async def _make(self, labels: Labels) -> None:
        """Make an object with any free number. Raises: ApiError, IdentitiesExhausted."""
        asked = self._db.look(
            lambda txn: {r.labels for r in self._desired.all(txn) if not r.number}
        )
        self._made = {made: number for made, number in self._made.items() if made in asked}
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
