# SPDX-License-Identifier: Apache-2.0
"""Applies node and host ports again when the addresses of the node change."""

from reconcilers.loadbalancer.machine_addresses import AddressSet, MachineAddresses
from statedb import DB, RWTable, StatusKind, Table, WatchSet
from statedb.status import refreshing, set_status
from tables.addressing import AT_IP, IP, Prefix
from tables.loadbalancer.frontends import Frontend
from tables.node.node_addresses import NodeAddress


class NodeAddressFollower:
    """Has frontends applied again when addresses of nodes change that matter to them.

    These are all node and host ports when an address comes to answer for them or ceases to, those
    with source ranges when the node gets or loses an address (by which it is let in), and those on
    an address that a machine or a pod got or lost (which has no wildcard entry). What changes after
    the making of this object is followed, also what changes before `run` is first called: a round
    of the reconciler may come in between.
    """

    def __init__(
        self,
        db: DB,
        frontends: RWTable[Frontend],
        node_addresses: Table[NodeAddress],
        machines: MachineAddresses | None = None,
    ) -> None:
        self._db = db
        self._frontends = frontends
        self._node_addresses = node_addresses
        self._machines = machines or MachineAddresses(node_addresses)
        self._known, self._changed = self._look()

    def _look(self) -> tuple[tuple[frozenset[tuple[IP, bool]], frozenset[Prefix]], WatchSet]:
        """The addresses for node ports and those of machines, and what closes when they change."""
        txn = self._db.read_txn()
        rows = self._node_addresses.all(txn)
        node_ports = frozenset((row.address, row.node_port) for row in rows)
        watches = WatchSet()
        watches.add(*self._machines.watch(txn))
        return (node_ports, self._machines.read(txn)), watches

    async def run(self) -> None:
        """Follow for ever."""
        while True:
            await self._changed.wait()
            now, self._changed = self._look()
            if now != self._known:
                (node_ports, machines), (held_ports, held) = now, self._known
                changed = AddressSet(machines ^ held)
                refresh_frontends(
                    self._db, self._frontends, changed, node_ports=node_ports != held_ports
                )
                self._known = now


def refresh_frontends(
    db: DB, frontends: RWTable[Frontend], addresses: AddressSet, *, node_ports: bool
) -> None:
    """Have the frontends on one of `addresses` applied again; `node_ports`: and all node and host
    ports, and what source ranges are for."""
    status = refreshing()
    with db.write_txn(frontends) as wtxn:
        touched = [
            fe
            for fe in frontends.all(wtxn)
            if (node_ports and (fe.address.is_surrogate or fe.service.source_ranges))
            or addresses.has(fe.address[AT_IP])
        ]
        for fe in touched:
            # What is pending or failed is applied anyway, and keeps saying so.
            if fe.status.kind is StatusKind.DONE:
                frontends.insert(wtxn, set_status(fe, status))
