# SPDX-License-Identifier: Apache-2.0
"""The whole agent on one screen: every part, and who talks to whom.

Plain constructor calls in three groups: infrastructure (tables, health, metrics), control plane (a
source of objects, reflectors, the writer), datapath (maps, reconcilers). Each part gets the tables
that it may read, and the one kind of thing that it may write. What runs is a list of named jobs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import structlog
from prometheus_client import CollectorRegistry

from cilia.agent.budgets import give_budgets
from cilia.agent.config import AgentConfig
from cilia.agent.health_history import HealthHistory
from cilia.agent.metrics import TableMetrics
from cilia.agent.metrics_samples import MetricsSampler, SelectiveRegistry
from cilia.agent.status import StatusView
from cilia.cluster.k8s_watches import K8sWatchReflector
from cilia.cluster.metrics import WatchMetrics
from cilia.cluster.nodes import namespace_reflector, node_reflector
from cilia.cluster.pod_namespaces import PodNamespaceReflector
from cilia.cluster.pods import pod_reflector
from cilia.cluster.problems import ProblemLog, ProblemReflector
from cilia.datapath.coexistence import Coexistence
from cilia.datapath.datapath import Datapath
from cilia.datapath.map_pressure import MapPressure
from cilia.datapath.metrics import DatapathMetrics
from cilia.datapath.packets import PacketTables, packet_jobs
from cilia.datapath.programs import NodePrograms
from cilia.k8s.watch import FollowedSource, Source
from cilia.loadbalancer.connections import socket_termination as sockets
from cilia.loadbalancer.convergence import ConvergenceRecorder
from cilia.loadbalancer.draining import ConnectionCounter, DrainController
from cilia.loadbalancer.host_ports import HostPortController
from cilia.loadbalancer.local_node import LocalNodeController
from cilia.loadbalancer.metrics import convergence_histogram
from cilia.loadbalancer.node_address_follower import NodeAddressFollower
from cilia.loadbalancer.redirects.controller import RedirectTables
from cilia.loadbalancer.reflector import ServiceReflector
from cilia.loadbalancer.this_node import LocalNode
from cilia.loadbalancer.wiring import (
    health_check_jobs,
    new_redirect_tables,
    redirect_jobs,
    state_file_jobs,
)
from cilia.loadbalancer.writer import LoadBalancerTables, Writer
from cilia.node.wiring import KernelEdge, KernelOptions, build_kernel
from cilia.program.health import HealthReporter, ModuleHealth
from reconcilers.config import Config
from reconcilers.loadbalancer.frontends import FrontendOperations, run_frontends
from reconcilers.loadbalancer.health_check_ports import ANY_ADDRESS
from reconcilers.metrics import PrometheusMetrics
from reconcilers.reconciler import Reconciler
from reconcilers.verify import Drift, new_drift_table
from statedb import DB, RWTable, wait_initialized
from statedb.metrics import observe
from tables.cluster.k8s_watches import K8sWatch, new_k8s_watches_table
from tables.cluster.namespaces import Namespace, new_namespaces_table
from tables.cluster.nodes import Node, new_nodes_table
from tables.cluster.pods import Pod, new_pods_table
from tables.health import Health, new_health_table
from tables.loadbalancer.convergence import Convergence, new_convergence_table
from tables.loadbalancer.draining_backends import DrainingBackend, new_draining_backends_table
from tables.loadbalancer.frontends import Frontend, get_status, set_status
from tables.loadbalancer.health_check_ports import HealthCheckPort, new_health_check_ports_table
from tables.node.node_addresses import NodeAddress, new_node_addresses_table
from tables.problems import Problem, new_problems_table

Job = Callable[[], Awaitable[object]]
log = structlog.get_logger("agent")


@dataclass
class Tables:
    """Every table of the agent."""

    db: DB
    health: RWTable[Health]
    problems: RWTable[Problem]
    k8s_watches: RWTable[K8sWatch]
    convergence: RWTable[Convergence]
    node_addresses: RWTable[NodeAddress]
    pods: RWTable[Pod]
    nodes: RWTable[Node]
    namespaces: RWTable[Namespace]
    drift: RWTable[Drift]
    lb: LoadBalancerTables
    redirects: RedirectTables
    health_check_ports: RWTable[HealthCheckPort]
    draining: RWTable[DrainingBackend]

    @classmethod
    def new(cls, name: str, history: int) -> Tables:
        db = DB(name, history=history)
        problems = new_problems_table(db)
        pods = new_pods_table(db)
        return cls(
            db=db,
            health=new_health_table(db),
            problems=problems,
            k8s_watches=new_k8s_watches_table(db),
            convergence=new_convergence_table(db),
            node_addresses=new_node_addresses_table(db),
            pods=pods,
            nodes=new_nodes_table(db),
            namespaces=new_namespaces_table(db),
            drift=new_drift_table(db),
            lb=LoadBalancerTables(db, problems),
            redirects=new_redirect_tables(db, pods),
            health_check_ports=new_health_check_ports_table(db),
            draining=new_draining_backends_table(db),
        )


@dataclass
class Agent:
    """The parts that programs around the wiring use."""

    config: AgentConfig
    tables: Tables
    registry: CollectorRegistry
    writer: Writer
    frontend_operations: FrontendOperations
    frontend_reconciler: Reconciler[Frontend]
    status: StatusView
    sampler: MetricsSampler
    health_history: HealthHistory
    # Its programs have traffic, which another proxy may have until now.
    on_node: bool = False
    kernel: KernelEdge | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    closing: list[Callable[[], None]] = field(default_factory=list)

    async def listed(self) -> None:
        """Wait until every input has said all that exists, and all that is wrong with it."""
        lb, problems = self.tables.lb, self.tables.problems
        await wait_initialized(self.tables.db, lb.services, lb.frontends, lb.backends, problems)

    async def reconcile_frontends(self) -> None:
        lb = self.tables.lb
        await run_frontends(
            self.frontend_reconciler,
            self.frontend_operations,
            lb.services,
            lb.frontends,
            lb.backends,
            beside_others=self.on_node,
        )

    def close(self) -> None:
        """Give back what the parts hold open; what is in force stays."""
        for close in self.closing:
            close()

    def reporter(self, name: str) -> HealthReporter:
        return HealthReporter(self.tables.db, self.tables.health, "agent", name)


def _packet_jobs(
    config: AgentConfig,
    tables: Tables,
    edge: KernelEdge,
    datapath: Datapath,
    frontends: Reconciler[Frontend],
    metrics: PrometheusMetrics,
    registry: CollectorRegistry,
) -> Mapping[str, Job]:
    """What runs around programs of packets; nothing where there are none."""
    if datapath.flows is None:
        return {}
    counters = DatapathMetrics(datapath.flows.read_metrics)
    registry.register(counters)
    return packet_jobs(
        config,
        tables.db,
        PacketTables(
            edge.observed.devices,
            edge.netdevs,
            edge.attachments,
            tables.lb.frontends,
            tables.drift,
        ),
        datapath.maps,
        datapath.flows,
        frontends,
        health=partial(ModuleHealth, tables.db, tables.health),
        metrics=metrics,
        datapath_metrics=counters,
    )


def build(
    config: AgentConfig,
    source: Source,
    source_name: str,
    datapath: Datapath,
    kernel: KernelOptions | None = None,
    *,
    programs: NodePrograms | None = None,
    health_check_address: str = ANY_ADDRESS,
    count_connections: ConnectionCounter | None = None,
) -> Agent:
    """Everything but the edges, which the caller opens: the source of objects and the datapath.

    Without `kernel` nothing is read from or written to the node's network: `node-addresses` is
    what others put there. Without `programs` nothing is attached.
    """
    # Infrastructure.
    tables = Tables.new(config.instance, config.statedb_history)
    registry = SelectiveRegistry(config.metrics)
    observe(tables.db, registry, "cilia_statedb")
    metrics = PrometheusMetrics(registry)
    registry.register(
        TableMetrics(
            tables.db,
            tables.problems,
            tables.lb.frontends,
            {} if programs is None else programs.timings,
        )
    )

    registry.register(WatchMetrics(tables.db, tables.k8s_watches))

    # Control plane: objects -> services, frontends, backends.
    writer = Writer(
        tables.db,
        tables.lb,
        config,
        LocalNode(config.node_name),
    )
    convergence = ConvergenceRecorder(
        tables.db,
        tables.convergence,
        tables.lb.frontends,
        lambda revision: frontends.wait_until_reconciled(revision),
        convergence_histogram(registry),
    )
    services = ServiceReflector(source, writer, committed=convergence.committed)
    problems = ProblemReflector(source, tables.db, tables.problems)
    pods = pod_reflector(source, tables.db, tables.pods, config.node_name)
    nodes = node_reflector(source, tables.db, tables.nodes)
    namespaces = namespace_reflector(source, tables.db, tables.namespaces)
    local_node = LocalNodeController(
        writer, tables.nodes, changed=services.reconvert_node_dependent
    )

    if isinstance(source, FollowedSource):
        health = ModuleHealth(tables.db, tables.health, "k8s")
        source.observe(K8sWatchReflector(tables.db, tables.k8s_watches, health).report)

    # Datapath: frontends -> maps.
    operations = FrontendOperations(
        datapath.maps,
        tables.lb.frontends,
        tables.node_addresses,
        config,
    )
    pressure = MapPressure(datapath.all_maps(), operations.map_entries)
    registry.register(pressure)
    retry_min_s, retry_max_s = config.lb_retry_backoff_s
    frontends = Reconciler(
        tables.db,
        tables.lb.frontends,
        operations,
        get_status=get_status,
        set_status=set_status,
        config=Config(
            retry_backoff_min_s=retry_min_s,
            retry_backoff_max_s=retry_max_s,
            verify_interval_s=config.lb_verify_interval_s,
            verify_in_thread=True,
        ),
        health=ModuleHealth(tables.db, tables.health, "loadbalancer"),
        metrics=metrics,
        drift=tables.drift,
    )

    # Datapath: the node's devices, addresses and routes.
    edge = None
    if kernel is not None:
        edge = build_kernel(
            tables.db,
            tables.drift,
            tables.node_addresses,
            kernel,
            health=partial(ModuleHealth, tables.db, tables.health),
            metrics=metrics,
        )
        packets = _packet_jobs(config, tables, edge, datapath, frontends, metrics, registry)
        edge.jobs |= packets
        edge.owners_known()  # whoever wants more has an initializer of its own

    for unknown in give_budgets(tables.db, config.table_budgets):
        log.warning("budget of a table that is not there", table=unknown)

    status = StatusView(
        tables.db,
        config.instance,
        source_name,
        tables.lb.frontends,
        tables.health,
        tables.problems,
        tables.k8s_watches,
        datapath,
        _coexistence(tables, edge, programs),
        programs,
    )
    agent = Agent(
        config,
        tables,
        registry,
        writer,
        operations,
        frontends,
        status,
        MetricsSampler(registry, config.metrics_sampling_interval_s),
        HealthHistory(tables.db, tables.health),
        on_node=programs is not None,
        kernel=edge,
    )
    agent.jobs = {
        "reflect-services": services.run,
        "reflect-problems": problems.run,
        "log-problems": ProblemLog(tables.db, tables.problems).run,
        "reflect-pods": pods.run,
        "reflect-nodes": nodes.run,
        "reflect-namespaces": namespaces.run,
        "local-node": local_node.run,
        "convergence": convergence.run,
        "reconcile-frontends": agent.reconcile_frontends,
        "draining": DrainController(
            tables.db, tables.lb.backends, tables.draining, count_connections
        ).run,
        "sample-metrics": agent.sampler.run,
        "map-pressure": pressure.run,
        "health-history": agent.health_history.run,
        "follow-node-addresses": NodeAddressFollower(
            tables.db, tables.lb.frontends, tables.node_addresses
        ).run,
    }
    agent.jobs |= health_check_jobs(
        config,
        tables.health_check_ports,
        tables.nodes,
        writer,
        health_check_address,
        health=ModuleHealth(tables.db, tables.health, "healthserver"),
        metrics=metrics,
    )
    agent.jobs |= state_file_jobs(config, tables.db, tables.problems, writer)
    if kernel is not None and config.enable_local_redirect_policy:
        agent.jobs["reflect-pod-namespaces"] = PodNamespaceReflector(
            tables.db, tables.pods, tables.redirects.namespaces
        ).run
    agent.jobs |= redirect_jobs(
        config,
        tables.db,
        tables.redirects,
        source,
        writer,
        datapath.skip,
        drift=tables.drift,
        health=ModuleHealth(tables.db, tables.health, "redirectpolicy"),
        metrics=metrics,
    )
    if config.kube_proxy_replacement:
        agent.jobs["host-ports"] = HostPortController(writer, tables.pods).run
    if edge is not None:
        agent.jobs |= edge.jobs
        agent.jobs[sockets.NAME] = sockets.SocketTermination(
            tables.db,
            tables.lb.frontends,
            tables.lb.backends,
            datapath.maps,
            frontends.wait_until_reconciled,
            ModuleHealth(tables.db, tables.health, "loadbalancer"),
            config.termination,
        ).run
        agent.closing.append(edge.close)
    return agent


def _coexistence(
    tables: Tables, edge: KernelEdge | None, programs: NodePrograms | None
) -> Coexistence | None:
    if edge is None or programs is None:
        return None
    return Coexistence(tables.lb.frontends, edge.attachments, programs, edge.netlink)
