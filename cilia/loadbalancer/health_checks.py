# SPDX-License-Identifier: Apache-2.0
"""Health checks from outside: ports of services with a Local policy, and how many serve here.

A load balancer sends traffic to nodes that answer well, so that none is sent where no backend is.
The answer is given at the node's addresses; with ``health_check_loadbalancer_ip`` also at those of
the load balancer, by a service ``ns/name:healthserver`` that leads to the node itself.
"""

from __future__ import annotations

from typing import Final

import msgspec

from bpf.maps.lb_numbers import FrontendType
from cilia.loadbalancer.services.conversion import ConvertedService
from cilia.loadbalancer.services.selection import local_backends_of_service
from cilia.loadbalancer.services.writer import ServiceChange, Writer
from cilia.loadbalancer.this_node import LocalNode
from statedb import ChangeIterator, ReadTxn, RWTable, Table, WatchSet
from tables.addressing import SCOPE_EXTERNAL, L3n4Addr, ServiceName
from tables.cluster.nodes import Node
from tables.loadbalancer import backends as be_table
from tables.loadbalancer.backends import Backend, BackendState
from tables.loadbalancer.frontends import FrontendParams
from tables.loadbalancer.health_check_ports import HealthCheckPort
from tables.loadbalancer.services import Service, TrafficPolicy
from tables.sources import Source

HEALTH_SUFFIX: Final = ":healthserver"


def wants_health_check(service: Service) -> bool:
    return bool(
        service.health_check_node_port and service.ext_traffic_policy is TrafficPolicy.LOCAL
    )


def health_service(converted: ConvertedService, node: LocalNode) -> ServiceChange:
    """The service that answers health checks at the addresses of the load balancer, or its end."""
    name = ServiceName(f"{converted.name}{HEALTH_SUFFIX}")
    service = converted.service
    if service is None or not wants_health_check(service):
        return ServiceChange(name, None, (), (), Source.LOCAL)
    port = service.health_check_node_port
    addresses = sorted(
        {
            L3n4Addr.of(params.address.ip, port, "TCP")
            for params in converted.frontends
            if params.type is FrontendType.LOAD_BALANCER and params.address.scope == SCOPE_EXTERNAL
        }
    )
    return ServiceChange(
        name,
        Service(name, Source.LOCAL),  # no policy: its only backend is this node
        [FrontendParams(addr, FrontendType.LOAD_BALANCER, "", port) for addr in addresses],
        [
            Backend(name, L3n4Addr.of(ip, port, "TCP"), Source.LOCAL, node_name=node.name)
            for ip in sorted(node.addresses)
        ],
        Source.LOCAL,
    )


def count_local(service: Service, backends: list[Backend], node: LocalNode) -> int:
    """Addresses, not ports: a pod with two ports is one endpoint, as kube-proxy counts them."""
    local = local_backends_of_service(service, backends, node)
    return len({be.address.ip for be in local if be.state is BackendState.ACTIVE})


class HealthCheckController:
    """Keeps ``health-check-ports`` equal to services and backends."""

    def __init__(self, writer: Writer, nodes: Table[Node], ports: RWTable[HealthCheckPort]) -> None:
        self._writer = writer
        self._nodes = nodes
        self._ports = ports
        # A cache of the table: its services.
        self._held: dict[ServiceName, Service] = {}

    async def run(self) -> None:
        """Ends only when it is cancelled; may be called again after a failure."""
        services = self._writer.tables.services
        with self._writer.db.write_txn(services) as wtxn:
            changes = services.changes(wtxn)
        try:
            while True:
                await self.step(changes).wait()
        finally:
            changes.close()

    def step(self, iterator: ChangeIterator[Service]) -> WatchSet:
        """Does what there is to do; returns what to wait for."""
        writer = self._writer
        txn = writer.db.read_txn()
        changes, changed = iterator.next(txn)
        for change in changes:
            if change.deleted or not wants_health_check(change.obj):
                self._held.pop(change.obj.name, None)
            else:
                self._held[change.obj.name] = change.obj
        watch = WatchSet(changed)
        if self._held:
            watch.add(self._nodes.get_watch(txn, writer.node.name)[1])
        self._write(txn, [self._row(txn, service, watch) for service in self._held.values()])
        return watch

    def _row(self, txn: ReadTxn, service: Service, watch: WatchSet) -> HealthCheckPort:
        table = self._writer.tables.backends
        backends, changed = table.list_watch(txn, service.name, be_table.SERVICE)
        watch.add(changed)
        count = count_local(service, backends, self._writer.node)
        return HealthCheckPort(service.name, service.health_check_node_port, count)

    def _write(self, txn: ReadTxn, rows: list[HealthCheckPort]) -> None:
        held = {row.service: row for row in self._ports.all(txn)}
        if not held and not rows:
            return
        with self._writer.db.write_txn(self._ports) as wtxn:
            for row in rows:
                before = held.pop(row.service, None)
                if before is None or msgspec.structs.replace(row, status=before.status) != before:
                    self._ports.insert(wtxn, row)
            for gone in held.values():
                self._ports.delete(wtxn, gone)
