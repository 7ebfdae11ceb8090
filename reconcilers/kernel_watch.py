# SPDX-License-Identifier: Apache-2.0
"""From observed tables back to the reconcilers: what was changed by hand is repaired at once.

The reflector fills tables such as `routes` from netlink events. A watch looks through their changes
for those that touch what we want, and asks the reconciler for a read-back, which records the drift
and repairs it. Rows that failed because what they name was missing are tried when it comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import anyio

from statedb import DB, Change, ChangeIterator, Channel, Index, ReadTxn, RWTable, StatusKind
from statedb.status import get_status, pending, set_status

__all__ = ["Concerns", "KernelWatch", "NamedArrivals"]

Observed = TypeVar("Observed")
T = TypeVar("T")

Concerns = Callable[[ReadTxn, Change[Observed]], bool]
"""Whether a change of an observed table may be drift of what we want."""

# A read-back dumps the whole target: under a storm of changes not more often than this, and yet
# well within the second in which drift is to be repaired.
READ_BACK_INTERVAL_S = 0.2


class KernelWatch(Generic[Observed]):
    """Calls `ask` (a reconciler's `verify_now`) when changes of `observed` concern it."""

    def __init__(
        self,
        db: DB,
        observed: RWTable[Observed],
        concerns: Concerns[Observed],
        ask: Callable[[], None],
    ) -> None:
        self._db = db
        self._concerns = concerns
        self._ask = ask
        with db.write_txn(observed) as wtxn:
            self._changes: ChangeIterator[Observed] = observed.changes(wtxn)

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            concerned, more = self._db.look(self._look)
            if concerned:
                self._ask()
                await anyio.sleep(READ_BACK_INTERVAL_S)
            await more.wait()

    def _look(self, txn: ReadTxn) -> tuple[bool, Channel]:
        changes, more = self._changes.next(txn)
        # All are looked at: what is not taken from the iterator would come again.
        return sum(self._concerns(txn, change) for change in changes) > 0, more


class NamedArrivals(Generic[T]):
    """Has rows that failed tried again as soon as what they name comes or changes.

    ``names_of`` gives the names of an observed object, under which ``by_name`` finds rows.
    """

    def __init__(
        self,
        db: DB,
        observed: RWTable[Any],
        names_of: Callable[[Any], Iterable[str]],
        table: RWTable[T],
        by_name: Index,
    ) -> None:
        self._db = db
        self._table = table
        self._names_of = names_of
        self._by_name = by_name
        with db.write_txn(observed) as wtxn:
            self._changes: ChangeIterator[Any] = observed.changes(wtxn)

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await self._db.look(self._look).wait()

    def _look(self, txn: ReadTxn) -> Channel:
        """Ask for rows of what came or changed; return what closes with the next change."""
        changes, more = self._changes.next(txn)
        names = {
            name for change in changes if not change.deleted for name in self._names_of(change.obj)
        }
        failed = any(
            get_status(row).kind is StatusKind.ERROR
            for name in names
            for row in self._table.list(txn, name, self._by_name)
        )
        if failed:
            self._ask(names)
        return more

    def _ask(self, names: set[str]) -> None:
        with self._db.write_txn(self._table) as wtxn:
            for name in names:
                for row in self._table.list(wtxn, name, self._by_name):
                    if get_status(row).kind is StatusKind.ERROR:
                        self._table.insert(wtxn, set_status(row, pending()))
