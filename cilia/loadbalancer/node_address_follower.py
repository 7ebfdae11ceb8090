# SPDX-License-Identifier: Apache-2.0
"""Applies node and host ports again when the addresses of the node change."""

from statedb import DB, Channel, RWTable, StatusKind, Table
from statedb.status import refreshing
from tables.addressing import IP
from tables.loadbalancer.frontends import Frontend, set_status
from tables.node.node_addresses import NodeAddress


class NodeAddressFollower:
    """Has frontends applied again when node addresses change that matter to them.

    These are all node and host ports, and frontends on an address that came or went (a node
    address has no wildcard entry). What changes after the making of this object is followed, also
    what changes before `run` is first called: a round of the reconciler may come in between.
    """

    def __init__(
        self, db: DB, frontends: RWTable[Frontend], node_addresses: Table[NodeAddress]
    ) -> None:
        self._db = db
        self._frontends = frontends
        self._node_addresses = node_addresses
        self._known, self._changed = self._look()

    def _look(self) -> tuple[set[tuple[IP, bool]], Channel]:
        rows, changed = self._node_addresses.all_watch(self._db.read_txn())
        return {(row.address, row.node_port) for row in rows}, changed

    async def run(self) -> None:
        """Follow for ever."""
        while True:
            await self._changed.wait()
            now, self._changed = self._look()
            if now != self._known:
                changed = {address for address, _ in now ^ self._known}
                refresh_frontends(self._db, self._frontends, changed)
                self._known = now


def refresh_frontends(db: DB, frontends: RWTable[Frontend], addresses: set[IP]) -> None:
    """Have all node and host ports applied again, and the frontends on one of `addresses`."""
    status = refreshing()
    with db.write_txn(frontends) as wtxn:
        touched = [
            fe
            for fe in frontends.all(wtxn)
            if fe.address.is_surrogate or fe.address.ip in addresses
        ]
        for fe in touched:
            # What is pending or failed is applied anyway, and keeps saying so.
            if fe.status.kind is StatusKind.DONE:
                frontends.insert(wtxn, set_status(fe, status))
