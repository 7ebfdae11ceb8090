# SPDX-License-Identifier: Apache-2.0
"""The labels and the number in force of each endpoint, into its file.

A request to add an endpoint writes its file before its labels are known, and labels change. The
next run is to know which labels a number in force stands for, whatever became of the objects of the
cluster meanwhile. What somebody removes is written again: without its file an endpoint has no name
after a restart.
"""

from __future__ import annotations

from functools import partial

import anyio.to_thread

from cilia.endpoints.cni.turns import Turns
from cilia.endpoints.saved import SavedEndpoints
from cilia.identity.desired import Claim
from cilia.linux.path_watch import PathWatch
from statedb import DB, Channel, ReadTxn, RWTable
from tables.endpoints.endpoints import Endpoint, EndpointState

__all__ = ["EndpointFiles"]


class EndpointFiles:
    """One task calls `run`, one `keep`.

    `turns`: those of requests, by device, so that no file comes back.
    """

    def __init__(
        self, db: DB, endpoints: RWTable[Endpoint], saved: SavedEndpoints, turns: Turns
    ) -> None:
        self._db = db
        self._endpoints = endpoints
        self._saved = saved
        self._turns = turns
        # Numbers of endpoints that changed, and what their files have.
        self._changed: set[int] = set()
        self._written: dict[int, Claim] = {}
        with db.write_txn(endpoints) as wtxn:
            self._changes = endpoints.changes(wtxn)

    async def run(self) -> None:
        """Follow the table for ever.

        Raises: OSError (a full disk); another run writes what is left.
        """
        while True:
            more = self._db.look(self._take_changes)
            while self._changed:
                number = next(iter(self._changed))
                await self._save(number)
                self._changed.discard(number)
            await more.wait()

    async def keep(self) -> None:
        """Write again what somebody removes or breaks, for ever. Raises: OSError."""
        while True:
            self._saved.make_directory()
            directory = self._saved.directory
            with PathWatch([directory], [directory]) as watch:
                for number in self._db.look(self._numbers):
                    await self._save_anew(number)
                while not watch.leads_elsewhere(changed := await watch.wait()):
                    for number in filter(None, map(self._saved.number_of, changed)):
                        await self._save_anew(number)

    def _numbers(self, txn: ReadTxn) -> list[int]:
        return [ep.id for ep in self._endpoints.all(txn)]

    async def _save_anew(self, number: int) -> None:
        """Raises: OSError."""
        self._written.pop(number, None)
        await self._save(number)

    def _take_changes(self, txn: ReadTxn) -> Channel:
        """Note what changed; return what closes at the next change."""
        found, more = self._changes.next(txn)
        self._changed.update(change.obj.id for change in found)
        return more

    async def _save(self, number: int) -> None:
        """Raises: OSError."""
        ep = self._endpoint(number)
        if ep is None:
            self._written.pop(number, None)
            return
        if self._written.get(number) == (ep.labels, ep.identity):
            return
        async with self._turns.take(ep.device):
            ep = self._endpoint(number)
            if ep is not None:
                await anyio.to_thread.run_sync(partial(self._saved.update, ep))
                self._written[number] = (ep.labels, ep.identity)

    def _endpoint(self, number: int) -> Endpoint | None:
        """Return an endpoint whose identity is in force and to stay."""
        ep = self._db.look(lambda txn: self._endpoints.get(txn, number))
        is_going = ep is not None and ep.state is EndpointState.DISCONNECTING
        return None if ep is None or is_going or not ep.identity else ep
