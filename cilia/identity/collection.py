# SPDX-License-Identifier: Apache-2.0
"""Deletes identities that nobody uses any more: marked first, deleted later if the mark is there.

::

    used or new --unused for the timeout--> marked --an interval later--> deleted
         ^                                    |
         +---- somebody takes the mark away --+

An identity is used if a CiliumEndpoint has it, or if it is the one for the labels of a pod: its
agent may take it without a word. An agent never takes a marked one, and takes the mark away from
one that it uses (`allocation.py`); what is deleted has the version that was marked. So an identity
in use goes only if its agent cannot write for an interval and nothing tells of its pod.

Times are counted from when this process saw it: who begins anew may have missed what was used.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial

import anyio
import structlog

from cilia.cluster.collection import Collected, Unread
from cilia.identity.desired import Labels, with_labels
from cilia.identity.labels import pod_labels
from cilia.identity.objects import IdentityObjects
from cilia.k8s.errors import StatusError
from cilia.k8s.object_writer import CONFLICT, NOT_FOUND
from statedb import DB, ReadTxn, Table
from tables.cluster.namespaces import Namespace
from tables.cluster.pods import Pod
from tables.endpoints.k8s_endpoints import IDENTITY, K8sEndpoint
from tables.identity.identities import Identity

__all__ = ["IdentityCollector", "Inputs", "Rate", "Step", "Unused", "labels_of_pods"]

log = structlog.get_logger("identity")

#: Number and time of creation: a number that is made anew is another identity.
Key = tuple[int, float]


class Step(StrEnum):
    """What is done with an identity."""

    MARK = "marked"
    DELETE = "deleted"


class Unused:
    """Since when identities are unused. Times are seconds of one clock."""

    def __init__(self, timeout_s: float, interval_s: float) -> None:
        """`interval_s`: the least time between mark and deletion."""
        self._timeout_s = timeout_s
        self._interval_s = interval_s
        self._used_at: dict[Key, float] = {}
        self._marked_at: dict[Key, float] = {}

    def look(
        self, now: float, identities: Iterable[Identity], used: Set[int]
    ) -> list[tuple[Step, Identity]]:
        """Note what is used, by number, and return what is to be done."""
        there = {(identity.id, identity.created_at): identity for identity in identities}
        for times in (self._used_at, self._marked_at):
            for key in times.keys() - there.keys():
                del times[key]
        steps = [
            (self._step(now, key, identity, is_used=identity.id in used), identity)
            for key, identity in there.items()
        ]
        return [(step, identity) for step, identity in steps if step is not None]

    def _step(self, now: float, key: Key, identity: Identity, *, is_used: bool) -> Step | None:
        is_taken = key in self._marked_at and not identity.is_marked
        if is_taken or is_used:
            self.used(now, identity)
        if now - self._used_at.setdefault(key, now) < self._timeout_s:
            return None
        if not identity.is_marked:
            return Step.MARK
        # A mark of a leader before counts from when it was seen.
        if now - self._marked_at.setdefault(key, now) < self._interval_s:
            return None
        return Step.DELETE

    def used(self, now: float, identity: Identity) -> None:
        """Somebody uses an identity."""
        key = (identity.id, identity.created_at)
        self._used_at[key] = now
        self._marked_at.pop(key, None)

    def marked(self, now: float, identity: Identity) -> None:
        """An identity was marked."""
        self._marked_at[identity.id, identity.created_at] = now


class Rate:
    """At most `limit` in any `interval_s` seconds."""

    def __init__(self, limit: int, interval_s: float, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._interval_s = interval_s
        self._clock = clock
        self._taken = deque[float](maxlen=limit)

    async def take(self) -> None:
        """Wait until there may be another one."""
        if len(self._taken) == self._limit:
            await anyio.sleep(max(0.0, self._taken[0] + self._interval_s - self._clock()))
        self._taken.append(self._clock())


def labels_of_pods(pods: Iterable[Pod], namespaces: Iterable[Namespace]) -> set[Labels]:
    """Return the sets of labels that pods make identities of, or will."""
    of_namespace = {namespace.name: namespace.labels for namespace in namespaces}
    alike = {
        (tuple(sorted(pod.labels.items())), pod.namespace, pod.service_account)
        for pod in pods
        if not pod.host_network
    }
    return {
        pod_labels(dict(own), namespace, of_namespace.get(namespace, {}), account)
        for own, namespace, account in alike
    }


@dataclass(frozen=True)
class Inputs:
    """Tables of the whole cluster, and what tells that one of them is not read whole."""

    identities: Table[Identity]
    endpoints: Table[K8sEndpoint]
    pods: Table[Pod]
    namespaces: Table[Namespace]
    unread: Unread


class IdentityCollector:
    """`collect` is called every now and then, by one task of the whole cluster."""

    def __init__(
        self,
        db: DB,
        inputs: Inputs,
        edge: IdentityObjects,
        unused: Unused,
        rate: Rate,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`rate`: of writes."""
        self._db = db
        self._inputs = inputs
        self._edge = edge
        self._unused = unused
        self._rate = rate
        self._clock = clock

    async def collect(self) -> Collected:
        """Look at all identities once. Raises: ApiError."""
        unread, alive, steps = self._db.look(self._look)
        outcomes = Counter(alive=alive, **{step.value: 0 for step in Step})
        for step, identity in steps:
            await self._rate.take()
            is_current = self._db.look(partial(self._is_current, identity))
            if is_current and await self._carry_out(step, identity):
                outcomes[step.value] += 1
        return Collected(unread, {} if unread else outcomes)

    def _look(self, txn: ReadTxn) -> tuple[list[str], int, list[tuple[Step, Identity]]]:
        """Return what is not read whole, how many identities are used, and what is to be done."""
        if unread := self._inputs.unread(txn):
            return unread, 0, []
        pods, namespaces = self._inputs.pods.all(txn), self._inputs.namespaces.all(txn)
        chosen = self._chosen(txn, labels_of_pods(pods, namespaces))
        identities = list(self._inputs.identities.all(txn))
        used = {
            identity.id
            for identity in identities
            if identity.id in chosen or self._has_endpoint(txn, identity)
        }
        steps = self._unused.look(self._clock(), identities, used)
        return [], len(used), steps

    def _chosen(self, txn: ReadTxn, wanted: Iterable[Labels]) -> set[int]:
        """Return the numbers that agents would take for sets of labels, of those that there are."""
        found = (with_labels(self._inputs.identities, txn, labels) for labels in wanted)
        return {
            next((row.id for row in rows if not row.is_marked), rows[0].id)
            for rows in found
            if rows
        }

    def _has_endpoint(self, txn: ReadTxn, identity: Identity) -> bool:
        return bool(self._inputs.endpoints.list(txn, identity.id, IDENTITY))

    def _is_current(self, identity: Identity, txn: ReadTxn) -> bool:
        """Return True if an identity is as it was looked at, and no endpoint has it since."""
        now = self._inputs.identities.get(txn, identity.id)
        return now == identity and not self._has_endpoint(txn, identity)

    async def _carry_out(self, step: Step, identity: Identity) -> bool:
        """Return False if somebody uses the identity: it has changed. Raises: ApiError."""
        try:
            if step is Step.MARK:
                is_done = await self._edge.mark(identity.id, datetime.now(UTC).isoformat())
            else:
                is_done = await self._edge.delete_marked(identity.id)
        except StatusError as failure:
            if failure.code not in (CONFLICT, NOT_FOUND):
                raise
            is_done = False
        if not is_done:
            self._unused.used(self._clock(), identity)
            return False
        log.info("an unused identity", id=identity.id, step=step.value, labels=identity.labels)
        if step is Step.MARK:
            self._unused.marked(self._clock(), identity)
        return True
