# SPDX-License-Identifier: Apache-2.0
"""One kind of object into one table, a row an object, for pods, nodes, namespaces and the like."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

from cilia.k8s.objects import K8sObject, ObjectKey
from cilia.k8s.watch import Delete, Event, Listed, Listing, Source, Upsert
from cilia.reflectors.batch import WAIT_S, batches
from statedb import DB, RWTable

K = TypeVar("K", bound=K8sObject)
T = TypeVar("T")

INITIALIZER = "k8s"


class ObjectReflector(Generic[K, T]):
    """Follows one kind of a source. ``run`` ends only when it is cancelled.

    ``convert`` gives the row of an object, or None for one that the table does not want.
    """

    def __init__(
        self,
        source: Source,
        kind: type[K],
        db: DB,
        table: RWTable[T],
        convert: Callable[[K], T | None],
        *,
        wait_s: float = WAIT_S,
    ) -> None:
        self._source = source
        self._kind = kind
        self._db = db
        self._table = table
        self._convert = convert
        self._wait_s = wait_s
        # A cache of the table by the key of the object.
        self._rows: dict[ObjectKey, T] = {}
        # Objects sent while a list is under way.
        self._sent: set[ObjectKey] | None = None
        with db.write_txn(table) as wtxn:
            self._complete = table.register_initializer(wtxn, INITIALIZER)

    async def run(self) -> None:
        async for events in batches(self._source.watch(self._kind), self._wait_s):
            self.apply(events)

    def apply(self, events: Iterable[Event]) -> None:
        """Writes one batch, in one transaction; of several events for an object, the last."""
        wanted: dict[ObjectKey, T | None] = {}
        listed = False
        for event in events:
            match event:
                case Upsert() if isinstance(event.obj, self._kind):
                    key = event.obj.key
                    wanted[key] = self._convert(event.obj)
                    if self._sent is not None:
                        self._sent.add(key)
                case Delete():
                    wanted[event.key] = None
                case Listing():
                    self._sent = set()
                case Listed():
                    sent, self._sent = self._sent or set(), None
                    held = self._rows.keys() | wanted.keys()
                    wanted.update(dict.fromkeys(sorted(held - sent)))
                    listed = True
        self._write(wanted, listed)

    def _write(self, wanted: dict[ObjectKey, T | None], listed: bool) -> None:
        with self._db.write_txn(self._table) as wtxn:
            for key, row in wanted.items():
                before = self._rows.get(key)
                if row is None and before is not None:
                    self._table.delete(wtxn, before)
                elif row is not None and row != before:
                    self._table.insert(wtxn, row)
            if listed:
                self._complete(wtxn)
        for key, row in wanted.items():
            if row is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = row


def seconds(timestamp: str | None) -> float:
    """Seconds since the epoch of an RFC 3339 time; 0 for none, or one that is not understood.

    For times that are only ever shown as an age.
    """
    try:
        return datetime.datetime.fromisoformat(timestamp).timestamp() if timestamp else 0.0
    except ValueError:
        return 0.0
