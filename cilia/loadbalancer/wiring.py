# SPDX-License-Identifier: Apache-2.0
"""Services, wired: objects -> services, frontends, backends -> load-balancer maps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from cilia.cluster.inputs import STATE_FILE_COPIES, file_copies
from cilia.cluster.k8s_watches import K8sWatchReflector
from cilia.cluster.problems import ProblemReflector
from cilia.cluster.wiring import ClusterPart
from cilia.datapath.wiring import DatapathPart
from cilia.k8s.state_file import state_file_source
from cilia.loadbalancer.connections import socket_termination
from cilia.loadbalancer.connections.backend_audit import BackendAudit
from cilia.loadbalancer.connections.backend_flows import BackendFlows
from cilia.loadbalancer.connections.translated_sockets import BackendConnections
from cilia.loadbalancer.convergence import ConvergenceRecorder
from cilia.loadbalancer.draining import ConnectionCounter, DrainController
from cilia.loadbalancer.health_checks import HealthCheckController
from cilia.loadbalancer.host_ports import HostPortController
from cilia.loadbalancer.local_node import LocalNodeController
from cilia.loadbalancer.metrics import convergence_histogram
from cilia.loadbalancer.node_address_follower import NodeAddressFollower
from cilia.loadbalancer.node_port_conflicts import NodePortConflicts
from cilia.loadbalancer.options import LoadBalancerOptions
from cilia.loadbalancer.redirects import wiring as redirects
from cilia.loadbalancer.redirects.controller import RedirectTables
from cilia.loadbalancer.services.orphans import Orphans
from cilia.loadbalancer.services.reflector import ServiceReflector
from cilia.loadbalancer.services.writer import LoadBalancerTables, Writer
from cilia.loadbalancer.this_node import LocalNode
from cilia.loadbalancer.unread_inputs import UnreadInputs
from cilia.node.wiring import NodePart
from cilia.program.parts import Context, Job, Part
from reconcilers.config import Config
from reconcilers.loadbalancer.frontend_start import FrontendStart
from reconcilers.loadbalancer.frontends import FrontendOperations
from reconcilers.loadbalancer.health_check_ports import ANY_ADDRESS, HealthPortOperations
from reconcilers.loadbalancer.machine_addresses import MachineAddresses
from reconcilers.reconciler import Reconciler
from statedb import RWTable, wait_initialized
from tables.addressing import L3n4Addr
from tables.loadbalancer.convergence import Convergence, new_convergence_table
from tables.loadbalancer.draining_backends import DrainingBackend, new_draining_backends_table
from tables.loadbalancer.frontends import Frontend
from tables.loadbalancer.health_check_ports import HealthCheckPort, new_health_check_ports_table
from tables.sources import Source

__all__ = ["LoadBalancerPart", "build"]


@dataclass(kw_only=True)
class LoadBalancerPart(Part):
    tables: LoadBalancerTables
    redirects: RedirectTables
    health_check_ports: RWTable[HealthCheckPort]
    draining: RWTable[DrainingBackend]
    convergence: RWTable[Convergence]
    writer: Writer
    operations: FrontendOperations
    reconciler: Reconciler[Frontend]

    async def synchronised(self) -> None:
        """Wait until all inputs were listed and every frontend was attempted with what they say."""
        db, tables = self.writer.db, self.tables
        inputs = (tables.services, tables.frontends, tables.backends, tables.problems)
        await wait_initialized(db, *inputs)
        await self.reconciler.wait_until_reconciled(db.look(tables.frontends.revision))


def build(
    ctx: Context,
    options: LoadBalancerOptions,
    cluster: ClusterPart,
    node: NodePart,
    datapath: DatapathPart,
    *,
    health_check_address: str = ANY_ADDRESS,
) -> LoadBalancerPart:
    """Serve Services from `ctx.objects`; health checks are answered at an address of the node."""
    tables = LoadBalancerTables(ctx.db, ctx.problems)
    operations = FrontendOperations(
        datapath.edge.maps, tables.frontends, node.addresses, options, _machines(cluster, node)
    )
    part = LoadBalancerPart(
        tables=tables,
        redirects=redirects.new_redirect_tables(ctx, cluster),
        health_check_ports=new_health_check_ports_table(ctx.db),
        draining=new_draining_backends_table(ctx.db),
        convergence=new_convergence_table(ctx.db),
        writer=Writer(ctx.db, tables, options, LocalNode(options.node_name)),
        operations=operations,
        reconciler=_reconciler(ctx, options, tables, operations),
    )
    datapath.pressure.know(operations.map_entries)
    orphans = Orphans()
    part.jobs = {
        **_control_plane(ctx, options, part, orphans, cluster),
        **_datapath(ctx, options, part, cluster, node, datapath),
        **_health_checks(ctx, options, part, cluster, health_check_address),
        **_state_file(ctx, options, part.writer, orphans, cluster),
        **redirects.build(
            ctx,
            options,
            part.redirects,
            part.writer,
            datapath.edge.skip,
            on_node=node.network is not None,
        ).jobs,
    }
    return part


def _reconciler(
    ctx: Context,
    options: LoadBalancerOptions,
    tables: LoadBalancerTables,
    operations: FrontendOperations,
) -> Reconciler[Frontend]:
    retry_min_s, retry_max_s = options.lb_retry_backoff_s
    return ctx.reconciler(
        tables.frontends,
        operations,
        module="loadbalancer",
        config=Config(
            retry_backoff_min_s=retry_min_s,
            retry_backoff_max_s=retry_max_s,
            verify_interval_s=options.lb_verify_interval_s,
            verify_in_thread=True,
        ),
        weight=_weight,
    )


def _weight(fe: Frontend) -> int:
    """A frontend of hundreds of backends takes as long as hundreds that have one."""
    return 1 + len(fe.backends) // 4


def _control_plane(
    ctx: Context,
    options: LoadBalancerOptions,
    part: LoadBalancerPart,
    orphans: Orphans,
    cluster: ClusterPart,
) -> dict[str, Job]:
    """Objects -> services, frontends, backends."""
    convergence = ConvergenceRecorder(
        ctx.db,
        part.convergence,
        part.tables.frontends,
        part.reconciler.wait_until_reconciled,
        convergence_histogram(ctx.registry),
    )
    services = ServiceReflector(
        ctx.objects, part.writer, orphans=orphans, committed=convergence.committed
    )
    local_node = LocalNodeController(
        part.writer, cluster.nodes, changed=services.reconvert_node_dependent
    )
    jobs: dict[str, Job] = {
        "reflect-services": services.run,
        "local-node": local_node.run,
        "convergence": convergence.run,
    }
    if options.kube_proxy_replacement:
        jobs["host-ports"] = HostPortController(part.writer, cluster.pods).run
    return jobs


def _datapath(
    ctx: Context,
    options: LoadBalancerOptions,
    part: LoadBalancerPart,
    cluster: ClusterPart,
    node: NodePart,
    datapath: DatapathPart,
) -> dict[str, Job]:
    """Frontends -> maps, and the connections of backends that go."""
    tables = part.tables
    follower = NodeAddressFollower(
        ctx.db, tables.frontends, node.addresses, _machines(cluster, node)
    )

    start = FrontendStart(
        part.reconciler,
        part.operations,
        tables.frontends,
        (tables.services, tables.backends, cluster.nodes, node.addresses),
        UnreadInputs(tables.frontends, cluster.watches, cluster.nodes, options.node_name),
        # Programs that have traffic may have got it from another proxy a moment ago.
        beside_others=datapath.programs is not None,
    )
    conflicts = NodePortConflicts(ctx.db, tables.frontends, node.addresses, ctx.problems, options)
    jobs: dict[str, Job] = {
        "reconcile-frontends": start.run,
        "node-port-conflicts": conflicts.run,
        "follow-node-addresses": follower.run,
        "draining": DrainController(
            ctx.db, tables.backends, part.draining, _connection_counter(datapath)
        ).run,
    }
    if node.network is not None:
        jobs[socket_termination.NAME] = socket_termination.SocketTermination(
            ctx.db,
            tables.frontends,
            tables.backends,
            datapath.edge.maps,
            part.reconciler.wait_until_reconciled,
            ctx.health_of("loadbalancer"),
            options.termination,
        ).run
    if datapath.edge.flows is not None:
        audit = BackendAudit(datapath.edge.flows.conntrack, datapath.edge.maps, tables.frontends)

        async def audit_backends() -> None:
            await audit.run(ctx.db, part.reconciler)

        jobs["conntrack-audit"] = audit_backends
    return jobs


def _machines(cluster: ClusterPart, node: NodePart) -> MachineAddresses:
    devices = None if node.network is None else node.network.observed.devices
    return MachineAddresses(node.addresses, cluster.nodes, devices, cluster.pods)


def _connection_counter(datapath: DatapathPart) -> ConnectionCounter | None:
    """Sockets of this node, and packets that were no socket's; None where there are none."""
    if datapath.programs is None:
        return None
    sockets = BackendConnections(datapath.edge.maps)
    if datapath.edge.flows is None:
        return sockets
    packets = BackendFlows(datapath.edge.flows.conntrack)

    def count(backends: Collection[L3n4Addr]) -> Mapping[L3n4Addr, int] | None:
        of_sockets = sockets(backends)
        return None if of_sockets is None else Counter(of_sockets) + Counter(packets(backends))

    return count


def _state_file(
    ctx: Context,
    options: LoadBalancerOptions,
    writer: Writer,
    orphans: Orphans,
    cluster: ClusterPart,
) -> dict[str, Job]:
    """Services of `--lb-state-file`, less preferred than those of the API server; or nothing."""
    if options.lb_state_file is None:
        return {}
    copies = file_copies(options, STATE_FILE_COPIES)
    source = state_file_source(options.lb_state_file, options.lb_state_file_interval_s, copies)
    watch = K8sWatchReflector(ctx.db, cluster.watches, ctx.health_of("k8s"))
    source.observe(watch.report)
    services = ServiceReflector(source, writer, origin=Source.API, orphans=orphans)
    refused = ProblemReflector(source, ctx.db, ctx.problems, name="lb-state-file")
    return {
        "watch-state-file": source.run,
        "reflect-state-file": services.run,
        "reflect-state-file-problems": refused.run,
    }


def _health_checks(
    ctx: Context,
    options: LoadBalancerOptions,
    part: LoadBalancerPart,
    cluster: ClusterPart,
    address: str,
) -> dict[str, Job]:
    """Health check node ports, answered at `address`."""
    if not options.enable_health_check_nodeport:
        return {}
    retry_min_s, retry_max_s = options.lb_retry_backoff_s
    ports = part.health_check_ports
    reconciler = ctx.reconciler(
        ports,
        HealthPortOperations(ctx.db, ports, address),
        module="healthserver",
        config=Config(retry_backoff_min_s=retry_min_s, retry_backoff_max_s=retry_max_s),
    )
    return {
        "health-checks": HealthCheckController(part.writer, cluster.nodes, ports).run,
        "reconcile-health-check-ports": reconciler.run,
    }
