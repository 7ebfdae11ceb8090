# SPDX-License-Identifier: Apache-2.0
"""The tables that claims are made from, and what the agent of node `one` makes of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from cilia.identity.ipcache.apiservers import ApiServersController
from cilia.identity.ipcache.claims import ClaimsOf
from cilia.identity.ipcache.follower import Follower
from cilia.identity.ipcache.remote import RemoteEndpoints
from cilia.identity.ipcache.writer import IPCacheWriter
from cilia.node.own_addresses import own_addresses
from statedb import DB, RWTable
from tables.addressing import IP, L3n4Addr, ServiceName
from tables.cluster.nodes import Node, new_nodes_table
from tables.endpoints.endpoints import Attachment, Endpoint, EndpointState, new_endpoints_table
from tables.endpoints.k8s_endpoints import NODE, K8sEndpoint, new_k8s_endpoints_table
from tables.identity.ipcache import new_ipcache_table, prefix_text
from tables.loadbalancer.backends import Backend, new_backends_table
from tables.node.devices import Device, DeviceAddress, new_devices_table
from tables.sources import Source

BOTH = frozenset({False, True})
KUBERNETES = ServiceName("default/kubernetes")


def endpoint(number: int, *ips: str, identity: int = 300, pod: str = "web") -> Endpoint:
    addresses = [IP.parse(ip) for ip in ips]
    return Endpoint(
        id=number,
        attachment=Attachment("cilia", f"c{number}", "eth0"),
        namespace="test",
        pod=pod,
        ipv4=next((ip for ip in addresses if not ip.is_ipv6), None),
        ipv6=next((ip for ip in addresses if ip.is_ipv6), None),
        device=f"lxc{number}",
        node_mac=bytes(6),
        mac=bytes(6),
        created_at=0.0,
        state=EndpointState.READY,
        identity=identity,
    )


def remote(
    pod: str, *ips: str, at: str, identity: int = 400, created_at: float = 0.0
) -> K8sEndpoint:
    """The CiliumEndpoint of a pod of the node at an address."""
    return K8sEndpoint(
        namespace="test",
        name=pod,
        uid=f"o-{pod}",
        version="1",
        created_at=created_at,
        pod_uid=f"u-{pod}",
        identity=identity,
        addresses=tuple(map(IP.parse, ips)),
        node=IP.parse(at) if at else None,
        content=0,
    )


def device(index: int, name: str, *ips: str) -> Device:
    return Device(index, name, addresses=tuple(DeviceAddress(IP.parse(ip), 24) for ip in ips))


def node(name: str, *ips: str, external: str = "") -> Node:
    outside = (IP.parse(external),) if external else ()
    return Node(name, internal_ips=tuple(map(IP.parse, ips)), external_ips=outside)


def apiserver(ip: str, source: Source = Source.K8S) -> Backend:
    return Backend(KUBERNETES, L3n4Addr.of(ip, 6443, "TCP"), source)


class World:
    def __init__(self, families: frozenset[bool] = BOTH) -> None:
        self.db = db = DB()
        self.endpoints = new_endpoints_table(db)
        self.devices = new_devices_table(db)
        self.nodes = new_nodes_table(db)
        self.backends = new_backends_table(db)
        self.remote = new_k8s_endpoints_table(db, NODE)
        self.inputs: tuple[RWTable[Any], ...] = (
            *(self.endpoints, self.devices, self.nodes, self.backends, self.remote),
        )
        with db.write_txn(*self.inputs) as wtxn:
            self.read = {t.name: t.register_initializer(wtxn, "test") for t in self.inputs}
        self.table = new_ipcache_table(db)
        writer, claims = IPCacheWriter(self.table), ClaimsOf(families, "one")
        with db.write_txn(self.table) as wtxn:
            writer.exchange(wtxn, [({}, claims.world())])
        self.followers: list[Follower[Any]] = [
            Follower(db, self.endpoints, writer, claims.endpoint),
            Follower(db, self.devices, writer, claims.device),
            Follower(db, self.nodes, writer, claims.node),
        ]
        own = own_addresses(self.nodes, "one")
        self.remotes = RemoteEndpoints(db, self.remote, writer, claims, own)
        local = frozenset({"endpoints", "devices"})
        self.apiservers = ApiServersController(db, self.backends, writer, local, families)

    def write(self, *rows: Any) -> None:
        """Insert rows of any kind, each kind in a transaction."""
        for table in self.inputs:
            mine = [row for row in rows if isinstance(row, table.row_type or ())]
            if mine:
                with self.db.write_txn(table) as wtxn:
                    table.insert_many(wtxn, mine)

    def remove(self, *rows: Any) -> None:
        for table in self.inputs:
            with self.db.write_txn(table) as wtxn:
                for row in rows:
                    if isinstance(row, table.row_type or ()):
                        table.delete(wtxn, row)

    def all_read(self, *names: str) -> None:
        """All inputs, or these, were read."""
        for table in self.inputs:
            if not names or table.name in names:
                with self.db.write_txn(table) as wtxn:
                    self.read[table.name](wtxn)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as group:
            for follower in self.followers:
                group.start_soon(follower.run)
            group.start_soon(self.remotes.run)
            group.start_soon(self.apiservers.run)
            yield
            group.cancel_scope.cancel()

    def shown(self) -> dict[str, tuple[str, int]]:
        """Source and identity in force, by prefix; without the world's."""
        rows = self.db.look(lambda txn: list(self.table.all(txn)))
        return {
            prefix_text(row): (row.in_force.source.value, row.in_force.identity)
            for row in rows
            if row.prefix.length
        }

    async def until(self, condition: Callable[[], bool]) -> None:
        with anyio.fail_after(5):
            while not condition():
                changed = self.db.look(lambda txn: self.table.all_watch(txn)[1])
                if not condition():
                    await changed.wait()
