# SPDX-License-Identifier: Apache-2.0
"""One kind of object into one table, a row an object, for pods, nodes, namespaces and the like.

An object whose row cannot be made is a problem for as long as it is so, and the row that it had
stays in force. So is what a reader remarks of an object whose row is made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, TypeVar

from cilia.cluster.batch import WAIT_S, batches
from cilia.cluster.sweep import Sweep
from cilia.k8s.objects import MOST_ERRORS, InvalidObject, K8sObject, ObjectKey, unexpected
from cilia.k8s.watch import Delete, Event, Listed, Listing, Source, Unread, Upsert
from statedb import DB, RWTable
from tables.problems import Problem, replace_problems

K = TypeVar("K", bound=K8sObject)
T = TypeVar("T")

# Field path and message of all that is wrong with an object; empty: all is well.
Remarks = Sequence[tuple[str, str]]

INITIALIZER = "k8s"


class ObjectReflector(Generic[K, T]):
    """Follows one kind of a source. ``run`` ends only when it is cancelled.

    ``convert`` gives the row of an object, or None for one that the table does not want. What it
    raises is a problem of that object.
    ``remarks`` says what else is wrong with an object, its row being made all the same.
    ``restored`` are rows of before, which stay until the first whole list says what became of them.
    """

    def __init__(
        self,
        source: Source,
        kind: type[K],
        db: DB,
        table: RWTable[T],
        convert: Callable[[K], T | None],
        problems: RWTable[Problem],
        *,
        wait_s: float = WAIT_S,
        remarks: Callable[[K], Remarks] = lambda obj: (),
        restored: Mapping[ObjectKey, T] = MappingProxyType({}),
    ) -> None:
        self._source = source
        self._problems = problems
        self._remarks = remarks
        # Objects of which something is wrong, so that all others cost no look-up.
        self._wrong: set[ObjectKey] = set()
        self._kind = kind
        self._db = db
        self._table = table
        self._convert = convert
        self._wait_s = wait_s
        # A cache of the table by the key of the object.
        self._rows = dict(restored)
        self._sweep = Sweep[ObjectKey]()
        with db.write_txn(table) as wtxn:
            self._complete = table.register_initializer(wtxn, INITIALIZER)
            table.insert_many(wtxn, restored.values())

    async def run(self) -> None:
        async for events in batches(self._source.watch(self._kind), self._wait_s):
            self.apply(events)

    def apply(self, events: Iterable[Event]) -> None:
        """Writes one batch, in one transaction; of several events for an object, the last."""
        wanted: dict[ObjectKey, T | None] = {}
        wrong: dict[ObjectKey, Remarks] = {}
        listed = unread = False
        for event in events:
            match event:
                case Upsert() if isinstance(event.obj, self._kind):
                    key = event.obj.key
                    self._take(key, event.obj, wanted, wrong)
                    self._sweep.seen(key[0], key)
                case Delete():
                    wanted[event.key] = None
                    wrong[event.key] = ()
                    self._sweep.seen(event.key[0], event.key)
                case Listing():
                    held = self._rows.keys() | self._wrong | wanted.keys() | wrong.keys()
                    self._sweep.begin(event.kind, held)
                case Listed():
                    gone = self._sweep.end(event.kind, event.refused)
                    wanted.update(dict.fromkeys(gone))
                    wrong.update(dict.fromkeys(gone, ()))
                    listed = True
                case Unread():
                    unread = True
        self._complain(wrong)
        self._write(wanted, listed=listed, unread=unread)

    def _take(
        self,
        key: ObjectKey,
        obj: K,
        wanted: dict[ObjectKey, T | None],
        wrong: dict[ObjectKey, Remarks],
    ) -> None:
        wrong[key] = ()
        try:
            wrong[key] = self._remarks(obj)[:MOST_ERRORS]
            wanted[key] = self._convert(obj)
        except InvalidObject as error:
            wrong[key] = [*error.errors, *wrong[key]]
        except Exception as error:  # noqa: BLE001 - of this object alone
            wrong[key] = [*wrong[key], ("", unexpected(error))]

    def _complain(self, wrong: dict[ObjectKey, Remarks]) -> None:
        changed = {key: said for key, said in wrong.items() if said or key in self._wrong}
        if not changed:
            return
        with self._db.write_txn(self._problems) as wtxn:
            for key, said in changed.items():
                origin = f"{key[0]}:{key[1]}/{key[2]}"
                rows = [Problem(origin, text, "", 0, *key, field) for field, text in said]
                replace_problems(self._problems, wtxn, origin, rows, time.time())
        for key, said in changed.items():
            if said:
                self._wrong.add(key)
            else:
                self._wrong.discard(key)

    def _write(self, wanted: dict[ObjectKey, T | None], *, listed: bool, unread: bool) -> None:
        with self._db.write_txn(self._table) as wtxn:
            for key, row in wanted.items():
                before = self._rows.get(key)
                if row is None and before is not None:
                    self._table.delete(wtxn, before)
                elif row is not None and row != before:
                    self._table.insert(wtxn, row)
            if listed:
                self._complete(wtxn)
            elif unread:
                self._complete.stall(wtxn)
        for key, row in wanted.items():
            if row is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = row
