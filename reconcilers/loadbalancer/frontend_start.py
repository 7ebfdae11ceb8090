# SPDX-License-Identifier: Apache-2.0
"""When the reconciler of `frontends` may begin, and what it leaves alone until all inputs are read.

    wait until each input is read or stalled -> run, some rows held back -> all are read: prune

Half-filled tables would take backends away from frontends that are in force, in the maps or with
another proxy: a frontend whose backends are not known yet refuses. So nothing begins while inputs
are on their way. An input that cannot be read may stay so for long: then the others' rows come
into force, but for those that `Holds` names, and nothing is removed.
"""

from collections.abc import Sequence
from typing import Any, Final

import anyio

from reconcilers.loadbalancer.frontend_holds import Holds
from reconcilers.loadbalancer.frontends import FrontendOperations
from reconcilers.reconciler import Reconciler
from statedb import ReadTxn, RWTable, StatusKind, Table, WatchSet, wait_filled
from statedb.status import refreshing, set_status
from tables.loadbalancer.frontends import Frontend

INITIALIZER: Final = "inputs"


class FrontendStart:
    """Runs the reconciler; `run` may be called again after it ended by an error.

    `inputs`: what rows are made from, beside the table itself. Where nothing is in force yet, in
    the maps or (`beside_others`) with another proxy, it waits for nobody.
    """

    def __init__(
        self,
        reconciler: Reconciler[Frontend],
        operations: FrontendOperations,
        frontends: RWTable[Frontend],
        inputs: Sequence[Table[Any]],
        holds: Holds,
        *,
        beside_others: bool = False,
    ) -> None:
        self._reconciler = reconciler
        self._operations = operations
        self._frontends = frontends
        self._inputs = inputs
        self._holds = holds
        self._waits = operations.restored or beside_others
        self._db = reconciler.db
        self._unread: frozenset[str] = frozenset()
        if self._waits:
            operations.hold_back(holds)
            # The prune of frontends waits for all inputs, too.
            with self._db.write_txn(frontends) as wtxn:
                self._all_read = frontends.register_initializer(wtxn, INITIALIZER)

    async def run(self) -> None:
        """Reconcile until cancelled. Raises: whatever is no failure of the target."""
        if not self._waits:
            await self._reconciler.run()
            return
        await wait_filled(self._db, *self._inputs)
        if self._db.look(self._are_read):
            self._let_go()
        self._unread = self._db.look(self._holds.unread)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._follow)
            await self._reconciler.run()

    async def _follow(self) -> None:
        """Have rows that wait tried again when something was read, until everything is."""
        while not self._db.look(self._frontends.initialized):
            if self._db.look(self._are_read):
                self._let_go()
            changed = self._db.look(self._see)
            await changed.wait()

    def _are_read(self, txn: ReadTxn) -> bool:
        is_news = INITIALIZER in self._frontends.pending_initializers(txn)
        return is_news and all(table.initialized(txn) for table in self._inputs)

    def _see(self, txn: ReadTxn) -> WatchSet:
        unread = self._holds.unread(txn)
        if unread != self._unread:
            self._unread = unread
            self._reconciler.retry_now()
        changed = WatchSet(*self._holds.watch(txn))
        changed.add(*(table.filled_watch(txn)[1] for table in self._inputs))
        return changed

    def _let_go(self) -> None:
        """The inputs are read: put what was left out for want of Node objects, then prune."""
        status = refreshing()
        with self._db.write_txn(self._frontends) as wtxn:
            for address in self._operations.doubtful:
                fe = self._frontends.get(wtxn, address)
                if fe is not None and fe.status.kind is StatusKind.DONE:
                    self._frontends.insert(wtxn, set_status(fe, status))
            self._all_read(wtxn)


__all__ = ["INITIALIZER", "FrontendStart"]
