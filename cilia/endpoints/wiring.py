# SPDX-License-Identifier: Apache-2.0
"""Pods' network, wired: CNI requests -> endpoints -> devices, programs, routes, identities.

Nothing of it is there unless `--pod-network` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import anyio

from cilia.cluster.wiring import ClusterPart
from cilia.datapath.packets import FlowMaps
from cilia.datapath.wiring import DatapathPart
from cilia.endpoints.chaining import Chaining
from cilia.endpoints.checking import EndpointCheck
from cilia.endpoints.cni.server import Server
from cilia.endpoints.cni.turns import Turns
from cilia.endpoints.cni_files import CNIFiles
from cilia.endpoints.collector import Collector
from cilia.endpoints.controller import OWNER, EndpointsController
from cilia.endpoints.ended_connections import EndedConnections
from cilia.endpoints.inputs import Inputs
from cilia.endpoints.k8s_endpoints import wiring as k8s_endpoints
from cilia.endpoints.k8s_endpoints.wiring import K8sEndpointsPart
from cilia.endpoints.known import Known
from cilia.endpoints.options import EndpointOptions
from cilia.endpoints.plugin import EndpointPlugin
from cilia.endpoints.registry import Registry
from cilia.endpoints.restoring import Restoring
from cilia.endpoints.router import HOST_DEVICE, RouterController
from cilia.endpoints.saved import SavedEndpoints
from cilia.endpoints.saving import EndpointFiles
from cilia.endpoints.status import PodNetworkStatus
from cilia.identity import wiring as identity
from cilia.identity.ipcache import wiring as ipcache
from cilia.identity.ipcache.wiring import IPCachePart
from cilia.identity.wiring import IdentityPart
from cilia.ipam.allocator import Allocator
from cilia.ipam.pools import NodePools
from cilia.ipam.quarantine import Quarantine
from cilia.node import desired
from cilia.node.own_addresses import sole_addresses
from cilia.node.repairs import Repairs
from cilia.node.wiring import Network, NodePart
from cilia.program.health import HealthReporter
from cilia.program.parts import Context, Job, Part
from reconcilers.endpoints.endpoints import EndpointOperations
from reconcilers.reconciler import Reconciler
from statedb import DB, RWTable, Table, wait_initialized
from tables.datapath.attachments import Attachment
from tables.endpoints.endpoints import Endpoint, new_endpoints_table
from tables.ipam.ip_allocations import IPAllocation, new_ip_allocations_table
from tables.loadbalancer.backends import Backend
from tables.node.desired_routes import DesiredRoute
from tables.node.devices import SELECTED

__all__ = ["EndpointsPart", "build"]

#: Where no device leads to other nodes.
MTU_DEFAULT = 1500


@dataclass(kw_only=True)
class EndpointsPart(Part):
    endpoints: RWTable[Endpoint]
    operations: EndpointOperations
    identity: IdentityPart
    allocations: RWTable[IPAllocation]
    reconciler: Reconciler[Endpoint]
    ipcache: IPCachePart
    # None: this node is alone.
    k8s_endpoints: K8sEndpointsPart | None

    async def synchronised(self, db: DB) -> None:
        """Wait until the endpoints of the run before are in the maps."""
        await wait_initialized(db, self.endpoints)
        await self.reconciler.wait_until_reconciled(db.look(self.endpoints.revision))
        await self.ipcache.synchronised(db)


@dataclass(frozen=True)
class _Ground:
    """What all of it stands on."""

    ctx: Context
    options: EndpointOptions
    cluster: ClusterPart
    network: Network
    flows: FlowMaps
    families: frozenset[bool]
    pools: NodePools
    allocator: Allocator
    attachments: RWTable[Attachment]
    routes: RWTable[DesiredRoute]
    saved: SavedEndpoints

    def health(self, component: str) -> HealthReporter:
        return HealthReporter(self.ctx.db, self.ctx.health, "endpoints", component)


def build(
    ctx: Context,
    options: EndpointOptions,
    cluster: ClusterPart,
    node: NodePart,
    datapath: DatapathPart,
    backends: Table[Backend],
    families: frozenset[bool],
) -> EndpointsPart | None:
    """Be the pod network of this node; None where no kernel is there, as in a dry run.

    `families`: True for IPv6, False for IPv4.
    """
    flows, network, attachments = datapath.edge.flows, node.network, datapath.attachments
    if flows is None or network is None or attachments is None:
        return None
    endpoints = new_endpoints_table(ctx.db)
    operations = EndpointOperations(flows.endpoints, flows.endpoint_addresses)
    reconciler = ctx.reconciler(endpoints, operations)
    k8s = None
    if ctx.shared is not None:
        sole = sole_addresses(cluster.nodes, options.node_name)
        k8s = k8s_endpoints.build(ctx, ctx.shared, endpoints, cluster.pods, node.own, sole)
    inputs = ipcache.Inputs(
        endpoints,
        network.observed.devices,
        cluster.nodes,
        backends,
        None if k8s is None else k8s.objects,
    )
    part = EndpointsPart(
        endpoints=endpoints,
        operations=operations,
        identity=identity.build(ctx),
        allocations=new_ip_allocations_table(ctx.db),
        reconciler=reconciler,
        ipcache=ipcache.build(ctx, inputs, flows.ipcache, options.node_name, families, node.own),
        k8s_endpoints=k8s,
    )
    datapath.needed.append(endpoints)
    datapath.pressure.watch(flows.ipcache, lambda: part.ipcache.entries(ctx.db))
    repairs = Repairs(ctx, network)
    routes = desired.build_routes(repairs)
    pools = NodePools(
        options,
        cluster.nodes,
        network.observed.devices,
        families,
        frozenset({HOST_DEVICE}),
        options.is_behind,
    )
    ground = _Ground(
        ctx,
        options,
        cluster,
        network,
        flows,
        families,
        pools,
        Allocator(part.allocations),
        attachments.table,
        routes.table,
        SavedEndpoints(options.run_dir),
    )
    controller = _controller(ground, part)
    closed_s = options.conntrack_timeouts_s["regular_tcp_fin"]
    connections = flows.conntrack.connections
    part.jobs = {
        "ended-connections": EndedConnections(ctx.db, part.allocations, connections, closed_s).run,
        "endpoints": _following(ground, part, controller),
        "reconcile-endpoints": reconciler.run,
        "router": _router(ground, repairs, part).run,
        "quarantine": _quarantine(ground, part).run,
        **part.ipcache.jobs,
        **_requests(ground, part, controller),
        **part.identity.jobs,
        **({} if k8s is None else k8s.jobs),
        **repairs.jobs,
    }
    part.reports["pod_network"] = PodNetworkStatus(options, endpoints, part.allocations, pools)
    routes.owners_known(ctx.db)
    return part


def _controller(ground: _Ground, part: EndpointsPart) -> EndpointsController:
    return EndpointsController(
        ground.ctx.db,
        part.endpoints,
        part.identity.owned_by(OWNER),
        ground.cluster.pods,
        ground.cluster.namespaces,
        ground.attachments,
        ground.routes,
        ground.network.observed.devices,
        ground.flows.programs_dir,
    )


def _following(ground: _Ground, part: EndpointsPart, controller: EndpointsController) -> Job:
    """Restore what the run before left, once, then follow the tables."""
    restoring = Restoring(
        ground.ctx.db,
        part.endpoints,
        part.allocations,
        ground.allocator,
        ground.saved,
        ground.network.netlink,
        ground.flows.endpoints,
    )
    known = Known(ground.ctx.db, OWNER, ground.attachments, ground.routes, part.identity.desired)

    async def follow() -> None:
        if not known.said:
            await restoring.run()
            controller.step()
            known.say()
        await controller.run()

    return follow


def _requests(
    ground: _Ground, part: EndpointsPart, controller: EndpointsController
) -> dict[str, Job]:
    """Jobs that answer container runtimes."""
    db, options, cluster = ground.ctx.db, ground.options, ground.cluster
    registry = Registry(
        db,
        part.endpoints,
        part.allocations,
        ground.allocator,
        ground.pools,
        controller,
        part.ipcache.known,
    )
    turns = Turns()
    plugin = EndpointPlugin(
        Inputs(
            db,
            cluster.pods,
            cluster.namespaces,
            cluster.nodes,
            part.endpoints,
            part.identity.identities,
        ),
        registry,
        ground.saved,
        ground.network.netlink,
        ground.network.sysctls,
        partial(_mtu, options, ground.network, db),
        turns,
        EndpointCheck(ground.network.netlink, part.operations, part.ipcache.known),
        Chaining(ground.network.netlink, ground.families if options.is_behind else None),
    )
    server = Server(options.cni_socket_path, plugin)
    files = CNIFiles(db, options, ground.pools, ground.health("cni"))
    saving = EndpointFiles(db, part.endpoints, ground.saved, turns)
    serving = anyio.Event()
    collector = Collector(db, part.endpoints, ground.network.netlink, plugin.remove)
    return {
        "cni": partial(server.serve, serving.set),
        "cni-files": partial(files.run, serving),
        "cni-queue": server.follow_queue,
        "collect-endpoints": collector.run,
        "save-endpoints": saving.run,
        "keep-endpoint-files": saving.keep,
    }


def _router(ground: _Ground, repairs: Repairs, part: EndpointsPart) -> RouterController:
    devices, addresses = desired.build_devices(repairs), desired.build_addresses(repairs)
    sysctls = desired.build_sysctl(repairs)
    controller = RouterController(
        ground.ctx.db,
        ground.pools,
        part.allocations,
        ground.allocator,
        devices.table,
        addresses.table,
        ground.routes,
        sysctls.table,
        ground.health("pools"),
        ground.network.observed.routes,
        ground.options.is_behind,
    )
    for wanted in (devices, addresses, sysctls):
        wanted.owners_known(ground.ctx.db)
    return controller


def _quarantine(ground: _Ground, part: EndpointsPart) -> Quarantine:
    return Quarantine(
        ground.ctx.db,
        part.allocations,
        ground.allocator,
        part.ipcache.table,
        part.ipcache.reconciler,
    )


def _mtu(options: EndpointOptions, network: Network, db: DB) -> int:
    """MTU of pods' devices: the smallest of the devices that lead to other nodes."""
    if options.mtu:
        return options.mtu
    selected = db.look(lambda txn: network.observed.devices.list(txn, True, SELECTED))
    return min((dev.mtu for dev in selected), default=MTU_DEFAULT)
