# SPDX-License-Identifier: Apache-2.0
"""Identities of prefixes, wired: endpoints, devices, nodes, API servers -> ipcache -> its map.

Nothing in the map changes before all claims are known, or all that can be had: what a weaker source
says first would for a moment be in force in the place of what a stronger one says.
"""

from __future__ import annotations

from dataclasses import dataclass

from bpf.maps.raw import RawMap
from cilia.identity.ipcache.apiservers import ApiServersController
from cilia.identity.ipcache.claims import ClaimsOf
from cilia.identity.ipcache.follower import Follower
from cilia.identity.ipcache.known import KnownAddresses
from cilia.identity.ipcache.remote import RemoteEndpoints
from cilia.identity.ipcache.writer import IPCacheWriter
from cilia.node.own_addresses import OwnAddresses, none_known
from cilia.program.parts import Context, Part
from reconcilers.identity.ipcache import CONFIG, ipcache_operations
from reconcilers.reconciler import Reconciler
from statedb import DB, RWTable, Table, wait_filled
from tables.cluster.nodes import Node
from tables.endpoints.endpoints import Endpoint
from tables.endpoints.k8s_endpoints import K8sEndpoint
from tables.identity.ipcache import IPCacheEntry, new_ipcache_table
from tables.loadbalancer.backends import Backend
from tables.node.devices import Device

__all__ = ["IPCachePart", "Inputs", "build"]


@dataclass(frozen=True)
class Inputs:
    """Tables that claims are made from."""

    endpoints: RWTable[Endpoint]
    devices: RWTable[Device]
    nodes: RWTable[Node]
    backends: Table[Backend]
    # None: nobody tells of other nodes' pods.
    remote: RWTable[K8sEndpoint] | None = None


@dataclass(kw_only=True)
class IPCachePart(Part):
    table: RWTable[IPCacheEntry]
    reconciler: Reconciler[IPCacheEntry]
    known: KnownAddresses

    def entries(self, db: DB) -> int:
        """Return how many prefixes are to be in the map."""
        return db.look(self.table.num_objects)

    async def reconcile(self) -> None:
        """Carry the table out once all claims that can be had are in it."""
        await wait_filled(self.reconciler.db, self.table)
        await self.reconciler.run()

    async def synchronised(self, db: DB) -> None:
        """Wait until all claims that can be had are in the map."""
        await wait_filled(db, self.table)
        await self.reconciler.wait_until_reconciled(db.look(self.table.revision))


def build(
    ctx: Context,
    inputs: Inputs,
    raw: RawMap,
    node_name: str,
    families: frozenset[bool],
    own: OwnAddresses = none_known,
) -> IPCachePart:
    """Make the table and all that writes and reads it; `families`: True for IPv6.

    `own`: the addresses of this node's Node object.
    """
    db = ctx.db
    table = new_ipcache_table(db)
    reconciler = ctx.reconciler(table, ipcache_operations(raw), config=CONFIG)
    writer, claims = IPCacheWriter(table), ClaimsOf(families, node_name)
    with db.write_txn(table) as wtxn:
        writer.exchange(wtxn, [({}, claims.world())])
    known = KnownAddresses(table, raw, families)
    part = IPCachePart(table=table, reconciler=reconciler, known=known)
    local = frozenset({inputs.endpoints.name, inputs.devices.name})
    part.jobs = {
        "ipcache-endpoints": Follower(db, inputs.endpoints, writer, claims.endpoint).run,
        "ipcache-devices": Follower(db, inputs.devices, writer, claims.device).run,
        "ipcache-nodes": Follower(db, inputs.nodes, writer, claims.node).run,
        "ipcache-api-servers": ApiServersController(
            db, inputs.backends, writer, local, families
        ).run,
        "reconcile-ipcache": part.reconcile,
    }
    if inputs.remote is not None:
        remote = RemoteEndpoints(db, inputs.remote, writer, claims, own)
        part.jobs["ipcache-remote-endpoints"] = remote.run
    return part
