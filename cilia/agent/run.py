# SPDX-License-Identifier: Apache-2.0
"""The life of an agent: requirements, locks, datapath, jobs, and an end that leaves all in force.

The order of a start: the state directory is locked before anything else; nothing is touched before
the requirements are checked and the other locks are held;
programs that are in force stay until their successors are verified; where the maps have a new
layout, the successors are attached only after the first reconciliation filled them.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import structlog

from bpf.errors import BPFError
from bpf.maps.lb import LBMaps
from bpf.maps.lb_dump import dump
from cilia.agent.config import AgentConfig
from cilia.agent.context import new_context
from cilia.agent.resources import resources, shared_kinds
from cilia.agent.serving import start_servers
from cilia.agent.state_directory import sentence
from cilia.agent.wiring import Agent, build
from cilia.cluster.inputs import open_input
from cilia.datapath import mounts
from cilia.datapath.netfilter_lookup import NetfilterLookup
from cilia.datapath.opening import KernelDatapath, MemoryDatapath
from cilia.datapath.packets import packet_config
from cilia.datapath.programs import Succession
from cilia.flows import options as events
from cilia.linux.lock import InstanceLock
from cilia.loadbalancer.programs import packet_constants, sock_config
from cilia.loadbalancer.replacement import Replacement
from cilia.masquerade import options as masquerade
from cilia.program.errors import ProgramError
from cilia.program.serving import allow_many_files

log = structlog.get_logger("agent")

#: Open files: maps, programs and sockets are 150; a link each to the cgroup's hooks and to the two
#: of each device; connections, and what is read.
LEAST_FILES: Final = 512
#: Python's own is 5 ms: a start makes 500 calls of the kernel while files are decoded.
SWITCH_INTERVAL_S: Final = 0.001


async def serve(config: AgentConfig, lock: InstanceLock) -> None:
    """Run the agent until cancelled. `lock` holds the state directory.

    Raises:
        ProgramError: something is missing; one sentence for the person at the terminal.
    """
    allow_many_files(LEAST_FILES)
    # Who comes back from a system call waits this long for a thread that decodes files.
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    objects = open_input(config, resources(config), shared_kinds(config))
    with sentence():
        cgroup = _prepare(config, lock)
    ctx = new_context(config, objects.source, objects.shared)
    async with objects.writing, anyio.create_task_group() as group:
        # Objects are read while the kernel verifies the programs.
        ctx.start(group, objects.jobs)
        datapath = await anyio.to_thread.run_sync(_open_datapath, config, cgroup, lock)
        try:
            agent = build(ctx, config, datapath, datapath.programs, source=objects.name)
            try:
                await _run_agent(agent, datapath, lock)
            finally:
                agent.close()
        finally:
            datapath.close()


async def dry_run(config: AgentConfig) -> int:
    """Reconcile into maps in memory, print what would be programmed; 1 if input was refused."""
    objects = open_input(config, resources(config))
    datapath = MemoryDatapath(LBMaps.fake(config.bpf_lb_map_max))
    agent = build(new_context(config, objects.source), config, datapath, source=objects.name)
    async with anyio.create_task_group() as group:
        agent.ctx.start(group, {**agent.jobs, **objects.jobs})
        await agent.loadbalancer.synchronised()
        group.cancel_scope.cancel()
    print(dump(datapath.maps), end="")
    frontends = agent.loadbalancer.tables.frontends
    if agent.ctx.db.look(
        lambda txn: any(row.address.ip.is_unspecified for row in frontends.all(txn))
    ):
        log.info(
            "devices are not looked at: node ports and host ports at the addresses of this node are"
            " left out, and a service's address that is the node's own is shown as any other"
        )
    problems = agent.ctx.db.look(lambda txn: list(agent.ctx.problems.all(txn)))
    for problem in problems:
        log.error("refused", problem=str(problem))
    return 1 if problems else 0


def _prepare(config: AgentConfig, lock: InstanceLock) -> Path:
    """Find or mount what is needed, lock the pin directory and the cgroup, which is the value.

    Raises: AlreadyRunning, ProgramError, OSError.
    """
    mounts.prepare_bpf_root(config)
    cgroup = mounts.prepare_cgroup_root(config)
    mounts.prepare_pin_dir(config)
    mounts.remember_pins(config.run_dir, config.pin_dir)
    lock.acquire(config.pin_dir, cgroup)
    return cgroup


def _open_datapath(config: AgentConfig, cgroup: Path, lock: InstanceLock) -> KernelDatapath:
    try:
        constants = {
            **packet_constants(config),
            **masquerade.packet_constants(config),
            **events.packet_constants(config),
        }
        packets = packet_config(config, constants)
        prepare = partial(mounts.keep_pin_dir, config, lock)
        return KernelDatapath(sock_config(config, cgroup), packets, prepare)
    except (BPFError, ImportError) as error:
        raise ProgramError(str(error)) from None


async def _run_agent(agent: Agent, datapath: KernelDatapath, lock: InstanceLock) -> None:
    ctx, loadbalancer, attachments = agent.ctx, agent.loadbalancer, agent.datapath.attachments
    assert attachments is not None  # there are programs
    succession = Succession(ctx.db, attachments.table, attachments.reconciler, datapath.programs)
    async with anyio.create_task_group() as group:
        replacement = Replacement(datapath, loadbalancer.tables.frontends, ctx.db)
        start_servers(group, agent, replacement, lock)
        ctx.start(group, agent.jobs)
        config = agent.config
        log.info("started", instance=config.instance, socket=str(config.socket_path))
        await succession.begin()
        await loadbalancer.synchronised()
        await agent.datapath.synchronised(ctx.db)
        if agent.endpoints is not None:
            await agent.endpoints.synchronised(ctx.db)
        if agent.masquerade is not None:
            await agent.masquerade.synchronised(ctx.db)
        await succession.finish()
        lookup = NetfilterLookup(
            ctx.db, attachments.table, datapath.programs, ctx.health_of("datapath")
        )
        ctx.start(group, {"take-over": replacement.run, "netfilter-lookup": lookup.run})
        log.info("synchronised", **agent.observation.status.frontend_counts())
