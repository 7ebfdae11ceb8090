# SPDX-License-Identifier: Apache-2.0
"""CiliumEndpoints of other nodes to claims in ``ipcache``.

Those of this node are none: the endpoint itself claims its addresses, and when it has ended they
are to be forgotten, however long its object stays. Which node an object is of its address tells.
"""

from __future__ import annotations

import anyio

from cilia.identity.ipcache.claims import ClaimsOf
from cilia.identity.ipcache.follower import Follower
from cilia.identity.ipcache.writer import Claims, IPCacheWriter
from cilia.node.own_addresses import OwnAddresses
from statedb import DB, ReadTxn, RWTable, WatchSet
from tables.addressing import IP
from tables.endpoints.k8s_endpoints import K8sEndpoint

__all__ = ["RemoteEndpoints"]

Own = tuple[IP, ...] | None


class RemoteEndpoints:
    """One task calls `run`."""

    def __init__(
        self,
        db: DB,
        objects: RWTable[K8sEndpoint],
        writer: IPCacheWriter,
        claims: ClaimsOf,
        own: OwnAddresses,
    ) -> None:
        """`own`: the addresses of this node's Node object."""
        self._db = db
        self._addresses = own
        self._claims = claims
        self._own: Own = None
        self._follower = Follower(db, objects, writer, self._claims_of)

    async def run(self) -> None:
        """Follow the table for ever, once this node's addresses are known.

        All rows are looked at again when these change.
        """
        self._own = await self._own_other_than(None)
        while True:
            async with anyio.create_task_group() as group:
                group.start_soon(self._follower.run)
                own = await self._own_other_than(self._own)
                group.cancel_scope.cancel()
            self._own = own

    async def _own_other_than(self, held: Own) -> Own:
        """Wait for addresses of this node that are not `held`; it keeps them if its object goes."""
        while True:
            own, watches = self._db.look(self._look)
            if own is not None and own != held and (own or held is None):
                return own
            await watches.wait()

    def _look(self, txn: ReadTxn) -> tuple[Own, WatchSet]:
        watches = WatchSet()
        return self._addresses(txn, watches), watches

    def _claims_of(self, obj: K8sEndpoint) -> Claims:
        if obj.node is not None and obj.node in (self._own or ()):
            return {}
        return self._claims.remote_endpoint(obj)
