# SPDX-License-Identifier: Apache-2.0
"""An agent in this process, with the maps in memory, on any source of objects."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio

from bpf.maps.lb import LBMaps
from cilia.agent.config import AgentConfig
from cilia.agent.context import new_context
from cilia.agent.resources import resources
from cilia.agent.wiring import Agent, build
from cilia.cluster.access_options import open_client
from cilia.datapath.opening import MemoryDatapath
from cilia.k8s.api_source import ApiSource
from cilia.k8s.resource_watch import Options
from cilia.k8s.watch import Source

# What is the same object, seen at another moment.
VOLATILE = ("Since", "Age")


def api_source(config: AgentConfig) -> ApiSource:
    """As the agent has it."""
    options = Options(config.k8s_watch_list_page_size, config.proof_interval_s)
    return ApiSource(open_client(config), resources(config), options)


@contextlib.asynccontextmanager
async def running_agent(
    config: AgentConfig,
    source: Source,
    run_source: Callable[[], Awaitable[object]] | None = None,
    *,
    datapath: MemoryDatapath | None = None,
    health_check_address: str = "127.0.0.1",
    synchronised: bool = True,
) -> AsyncIterator[Agent]:
    """Until all inputs are listed and all frontends were attempted, unless not `synchronised`; then
    as long as the block.
    """
    agent = build(
        new_context(config, source),
        config,
        datapath or MemoryDatapath(LBMaps.fake(config.bpf_lb_map_max)),
        health_check_address=health_check_address,
    )
    jobs = agent.jobs if run_source is None else {**agent.jobs, "source": run_source}
    async with anyio.create_task_group() as group:
        agent.ctx.start(group, jobs)
        try:
            with anyio.fail_after(30):
                if synchronised:
                    await agent.loadbalancer.synchronised()
            yield agent
        finally:
            group.cancel_scope.cancel()
            agent.close()


def rows(agent: Agent, table: str) -> list[dict[str, str]]:
    """A table as it is printed, without what changes with the clock."""
    db = agent.ctx.db
    columns: Any = [c for c in db.table(table).columns if c.name not in VOLATILE]
    return [
        {column.name: column.cell(row) for column in columns}
        for row in db.table(table).all(db.read_txn())
    ]


def config_for(kubeconfig: Path | None, **options: Any) -> AgentConfig:
    return AgentConfig(k8s_kubeconfig_path=kubeconfig, node_name="testnode", **options)
