# SPDX-License-Identifier: Apache-2.0
"""The life of an agent: requirements, locks, datapath, jobs, and an end that leaves all in force.

The order of a start: nothing is touched before the requirements are checked and the locks are held;
programs that are in force stay until their successors are verified; where the maps have a new
layout, the successors are attached only after the first reconciliation filled them.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.to_thread
import structlog
from starlette.applications import Starlette

from bpf.errors import BPFError
from bpf.maps.lb import Algorithm, LBMaps
from bpf.maps.lb_dump import dump
from cilia.agent import server
from cilia.agent.config import AgentConfig
from cilia.agent.shell import shell_routes
from cilia.agent.wiring import Agent, build
from cilia.cluster.inputs import Input, open_input
from cilia.datapath import mounts
from cilia.datapath.datapath import Datapath, KernelDatapath, MemoryDatapath
from cilia.datapath.packets import packet_config
from cilia.datapath.programs import NodePrograms, Succession
from cilia.linux.lock import AlreadyRunning, InstanceLock
from cilia.loadbalancer.connections.backend_flows import BackendFlows
from cilia.loadbalancer.connections.translated_sockets import BackendConnections
from cilia.loadbalancer.draining import ConnectionCounter
from cilia.loadbalancer.proxy_healthz import proxy_healthz_app
from cilia.loadbalancer.replacement import Replacement, replacement_routes
from cilia.node.device_selection import DeviceFilter
from cilia.node.wiring import KernelOptions
from cilia.program.errors import ProgramError
from cilia.program.jobs import run_job
from cilia.program.serving import metrics_routes, tcp_socket, unix_socket
from cilia.program.serving import serve as serve_http
from statedb.web import server as tables_server

if TYPE_CHECKING:
    from bpf.sock import SockConfig

log = structlog.get_logger("agent")


async def serve(config: AgentConfig) -> None:
    """Run the agent until cancelled.

    Raises:
        ProgramError: something is missing; one sentence for the person at the terminal.
    """
    # Tables are many small objects in no cycles: with the default thresholds the collector walks
    # them again and again (p99 of a commit on a million rows: 20 ms; with these: 1 ms).
    gc.set_threshold(50_000, 50, 100)
    objects = open_input(config)
    with _locked(config) as cgroup:
        datapath = await anyio.to_thread.run_sync(_open_datapath, config, cgroup)
        try:
            await _run(config, objects, datapath)
        finally:
            datapath.close()


async def dry_run(config: AgentConfig) -> int:
    """Reconcile into maps in memory, print what would be programmed; 1 if input was refused."""
    objects = open_input(config)
    datapath = MemoryDatapath(LBMaps.fake(config.bpf_lb_map_max))
    agent = build(config, objects.source, objects.name, datapath)
    async with anyio.create_task_group() as group:
        _start_jobs(group, agent, objects)
        await _synchronised(agent)
        group.cancel_scope.cancel()
    print(dump(datapath.maps), end="")
    problems = list(agent.tables.problems.all(agent.tables.db.read_txn()))
    for problem in problems:
        log.error("refused", problem=str(problem))
    return 1 if problems else 0


@contextmanager
def _locked(config: AgentConfig) -> Iterator[Path]:
    """Holds the state directory, the pin directory and the cgroup, which is the value."""
    lock = InstanceLock()
    try:
        config.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire(config.run_dir)
        mounts.prepare_bpf_root(config)
        cgroup = mounts.prepare_cgroup_root(config)
        config.pin_dir.mkdir(mode=0o700, exist_ok=True)
        lock.acquire(config.pin_dir, cgroup)
        yield cgroup
    except AlreadyRunning as error:
        raise ProgramError(str(error)) from None
    except PermissionError as error:
        raise ProgramError(f"{error.filename}: {error.strerror}: run the agent as root") from None
    finally:
        lock.release()


def _open_datapath(config: AgentConfig, cgroup: Path) -> KernelDatapath:
    try:
        return KernelDatapath(_sock_config(config, cgroup), packet_config(config))
    except (BPFError, ImportError) as error:
        raise ProgramError(str(error)) from None


def _sock_config(config: AgentConfig, cgroup: Path) -> SockConfig:
    from bpf.sock import SockConfig

    return SockConfig(
        config.pin_dir,
        cgroup,
        service_entries=config.bpf_lb_map_max,
        own_entries=config.own_map_sizes,
        translate=config.bpf_lb_sock,
        host_only=config.bpf_lb_sock_hostns_only,
        protect_ports=config.node_port_bind_protection and config.kube_proxy_replacement,
        no_backend=config.service_no_backend_response,
        algorithm=Algorithm.named(config.bpf_lb_algorithm),
        algorithm_annotation=config.bpf_lb_algorithm_annotation,
        wildcard_entries=config.bpf_lb_enable_wildcard_entries,
    )


async def _run(config: AgentConfig, objects: Input, datapath: KernelDatapath) -> None:
    kernel = _kernel_options(config, datapath.programs)
    agent = build(
        config,
        objects.source,
        objects.name,
        datapath,
        kernel,
        programs=datapath.programs,
        count_connections=_connection_counter(datapath),
    )
    try:
        await _run_agent(config, agent, objects, datapath)
    finally:
        agent.close()


def _connection_counter(datapath: Datapath) -> ConnectionCounter:
    """Sockets of this node, and packets that were no socket's."""
    sockets = BackendConnections(datapath.maps)
    if datapath.flows is None:
        return sockets
    packets = BackendFlows(datapath.flows.conntrack)
    return lambda backends: Counter(sockets(backends)) + Counter(packets(backends))


def _kernel_options(config: AgentConfig, programs: NodePrograms) -> KernelOptions:
    patterns = tuple(name for name in config.devices.split(",") if name)
    return KernelOptions(devices=DeviceFilter(patterns), attaching=programs.attaching())


async def _run_agent(
    config: AgentConfig, agent: Agent, objects: Input, datapath: KernelDatapath
) -> None:
    succession = _succession(agent, datapath.programs)
    async with anyio.create_task_group() as group:
        replacement = Replacement(datapath, agent.tables.lb.frontends, agent.tables.db)
        _start_servers(group, config, agent, datapath, replacement)
        _start_jobs(group, agent, objects)
        log.info("started", instance=config.instance, socket=str(config.socket_path))
        await succession.begin()
        await _synchronised(agent)
        await succession.finish()
        group.start_soon(run_job, "take-over", replacement.run, agent.reporter("job-take-over"))
        log.info("synchronised", **agent.status.frontend_counts())


def _succession(agent: Agent, programs: NodePrograms) -> Succession:
    edge = agent.kernel
    assert edge is not None
    reconciler = edge.reconcilers[edge.attachments.name]
    return Succession(agent.tables.db, edge.attachments, reconciler, programs)


def _start_jobs(group: anyio.abc.TaskGroup, agent: Agent, objects: Input) -> None:
    agent.jobs[objects.job] = objects.source.run
    for name, work in agent.jobs.items():
        group.start_soon(run_job, name, work, agent.reporter(f"job-{name}"))


def _start_servers(
    group: anyio.abc.TaskGroup,
    config: AgentConfig,
    agent: Agent,
    datapath: Datapath,
    replacement: Replacement,
) -> None:
    """Bind all sockets first, so that a wrong address ends the start; then serve."""
    routes = [
        *server.status_routes(agent.status),
        *server.config_routes(config),
        *server.log_routes(),
        *server.health_routes(agent.status),
        *metrics_routes(agent.registry),
        *tables_server.routes(agent.tables.db),
        *shell_routes(agent, datapath),
        *replacement_routes(replacement),
    ]
    serving = [(Starlette(routes=routes), unix_socket(config.socket_path))]
    if config.prometheus_serve_addr:
        listener = tcp_socket("--prometheus-serve-addr", config.prometheus_serve_addr)
        serving.append((server.metrics_app(agent.registry), listener))
    if config.agent_health_port:
        listener = tcp_socket("--agent-health-port", f"127.0.0.1:{config.agent_health_port}")
        serving.append((server.health_app(agent.status), listener))
    if address := config.kube_proxy_replacement_healthz_bind_address:
        listener = tcp_socket("--kube-proxy-replacement-healthz-bind-address", address)
        app = proxy_healthz_app(agent.tables.db, agent.tables.health)
        serving.append((app, listener))
    for app, listener in serving:
        group.start_soon(serve_http, app, listener)


async def _synchronised(agent: Agent) -> None:
    """Wait until all inputs were listed and every frontend was attempted with what they say."""
    tables = agent.tables
    await agent.listed()
    revision = tables.lb.frontends.revision(tables.db.read_txn())
    await agent.frontend_reconciler.wait_until_reconciled(revision)
