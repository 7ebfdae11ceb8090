# SPDX-License-Identifier: Apache-2.0
"""Pods' network, wired: CNI requests -> endpoints -> devices, programs, routes, identities.

Nothing of it is there unless `--pod-network` says so.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import anyio

from cilia.cluster.wiring import ClusterPart
from cilia.datapath.wiring import DatapathPart
from cilia.endpoints.cni.server import Server
from cilia.endpoints.cni_files import CNIFiles
from cilia.endpoints.controller import OWNER, EndpointsController
from cilia.endpoints.inputs import Inputs
from cilia.endpoints.known import Known
from cilia.endpoints.options import EndpointOptions
from cilia.endpoints.plugin import EndpointPlugin
from cilia.endpoints.registry import Registry
from cilia.endpoints.restoring import Restoring
from cilia.endpoints.router import RouterController
from cilia.endpoints.saved import SavedEndpoints
from cilia.ipam.allocator import Allocator
from cilia.ipam.pools import Pools, node_pools
from cilia.node import desired
from cilia.node.repairs import Desired, Repairs
from cilia.node.wiring import Network, NodePart
from cilia.program.health import HealthReporter
from cilia.program.parts import Context, Part
from reconcilers.endpoints.endpoints import endpoint_operations
from reconcilers.reconciler import Reconciler
from statedb import DB, RWTable, wait_initialized
from tables.endpoints.endpoints import Endpoint, new_endpoints_table
from tables.identity.identities import Identity, new_identities_table
from tables.ipam.ip_allocations import IPAllocation, new_ip_allocations_table
from tables.node.desired_routes import DesiredRoute
from tables.node.devices import SELECTED

__all__ = ["EndpointsPart", "build"]

#: Where no device leads to other nodes.
MTU_DEFAULT = 1500


@dataclass(kw_only=True)
class EndpointsPart(Part):
    endpoints: RWTable[Endpoint]
    identities: RWTable[Identity]
    allocations: RWTable[IPAllocation]
    reconciler: Reconciler[Endpoint]

    async def synchronised(self, db: DB) -> None:
        """Wait until the endpoints of the run before are in the map."""
        await wait_initialized(db, self.endpoints)
        await self.reconciler.wait_until_reconciled(db.look(self.endpoints.revision))


def build(
    ctx: Context,
    options: EndpointOptions,
    cluster: ClusterPart,
    node: NodePart,
    datapath: DatapathPart,
    families: frozenset[bool],
) -> EndpointsPart | None:
    """Be the pod network of this node, or not; `families`: True for IPv6, False for IPv4."""
    flows, network = datapath.edge.flows, node.network
    if not options.pod_network or flows is None or network is None or datapath.attachments is None:
        return None
    endpoints = new_endpoints_table(ctx.db)
    reconciler = ctx.reconciler(endpoints, endpoint_operations(flows.endpoints))
    part = EndpointsPart(
        endpoints=endpoints,
        identities=new_identities_table(ctx.db),
        allocations=new_ip_allocations_table(ctx.db),
        reconciler=reconciler,
    )
    datapath.needed.append(endpoints)
    repairs = Repairs(ctx, network)
    routes = desired.build_routes(repairs)
    allocator = Allocator(part.allocations)
    pools = node_pools(options, cluster.nodes, families)
    controller = EndpointsController(
        ctx.db,
        endpoints,
        part.identities,
        cluster.pods,
        cluster.namespaces,
        datapath.attachments.table,
        routes.table,
        flows.programs_dir,
        HealthReporter(ctx.db, ctx.health, "endpoints", "identities"),
    )
    restoring = Restoring(
        ctx.db,
        endpoints,
        part.allocations,
        part.identities,
        controller.identities_of,
        allocator,
        SavedEndpoints(options.run_dir),
        network.netlink,
        flows.endpoints,
    )
    known = Known(ctx.db, OWNER, datapath.attachments.table, routes.table)

    async def follow() -> None:
        if not known.said:
            await restoring.run()
            controller.step()
            known.say()
        await controller.run()

    registry = Registry(
        ctx.db,
        endpoints,
        part.allocations,
        allocator,
        pools,
        controller,
        datapath.attachments.table,
        routes.table,
    )
    plugin = EndpointPlugin(
        Inputs(ctx.db, cluster.pods, cluster.namespaces, endpoints),
        registry,
        SavedEndpoints(options.run_dir),
        network.netlink,
        partial(_mtu, options, network, ctx.db),
    )
    server = Server(options.cni_socket_path, plugin)
    files = CNIFiles(ctx.db, options, pools, HealthReporter(ctx.db, ctx.health, "endpoints", "cni"))
    serving = anyio.Event()
    part.jobs = {
        "endpoints": follow,
        "reconcile-endpoints": reconciler.run,
        "router": _router(ctx, repairs, pools, part, allocator, routes).run,
        "cni": partial(server.serve, serving.set),
        "cni-files": partial(files.run, serving),
        "cni-queue": server.follow_queue,
        **repairs.jobs,
    }
    routes.owners_known(ctx.db)
    return part


def _router(
    ctx: Context,
    repairs: Repairs,
    pools: Pools,
    part: EndpointsPart,
    allocator: Allocator,
    routes: Desired[DesiredRoute],
) -> RouterController:
    devices, addresses = desired.build_devices(repairs), desired.build_addresses(repairs)
    sysctls = desired.build_sysctl(repairs)
    controller = RouterController(
        ctx.db,
        pools,
        part.allocations,
        allocator,
        devices.table,
        addresses.table,
        routes.table,
        sysctls.table,
        HealthReporter(ctx.db, ctx.health, "endpoints", "pools"),
    )
    for wanted in (devices, addresses, sysctls):
        wanted.owners_known(ctx.db)
    return controller


def _mtu(options: EndpointOptions, network: Network, db: DB) -> int:
    """MTU of pods' devices: the smallest of the devices that lead to other nodes."""
    if options.mtu:
        return options.mtu
    selected = db.look(lambda txn: network.observed.devices.list(txn, True, SELECTED))
    return min((dev.mtu for dev in selected), default=MTU_DEFAULT)
