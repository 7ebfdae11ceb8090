# SPDX-License-Identifier: Apache-2.0
"""What is seen of an agent from outside: status, metrics of its tables, samples, past health."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import structlog

from cilia.agent.budgets import give_budgets
from cilia.agent.config import AgentConfig
from cilia.agent.health_history import HealthHistory
from cilia.agent.metrics import TableMetrics
from cilia.agent.metrics_samples import MetricsSampler
from cilia.agent.set_aside import SetAside
from cilia.agent.status import StatusView
from cilia.cluster.wiring import ClusterPart
from cilia.datapath.coexistence import Coexistence
from cilia.datapath.wiring import DatapathPart
from cilia.endpoints.state_files import DELETE_QUEUE, ENDPOINTS
from cilia.loadbalancer.wiring import LoadBalancerPart
from cilia.node.wiring import NodePart
from cilia.program.parts import Context, Part, Report

__all__ = ["Observation", "build"]

log = structlog.get_logger("agent")


@dataclass(kw_only=True)
class Observation(Part):
    status: StatusView
    sampler: MetricsSampler
    health_history: HealthHistory


def build(
    ctx: Context,
    config: AgentConfig,
    cluster: ClusterPart,
    node: NodePart,
    datapath: DatapathPart,
    loadbalancer: LoadBalancerPart,
    source: str,
    reports: Mapping[str, Report],
) -> Observation:
    """Call it last: it looks at all tables. `source`: what people call the source of objects."""
    programs, frontends = datapath.programs, loadbalancer.tables.frontends
    timings = {} if programs is None else programs.timings
    ctx.registry.register(TableMetrics(ctx.db, ctx.problems, frontends, timings))
    for unknown in give_budgets(ctx.db, config.table_budgets):
        log.warning("budget of a table that is not there", table=unknown)
    part = Observation(
        status=StatusView(
            ctx.db,
            config.instance,
            source,
            frontends,
            ctx.health,
            ctx.problems,
            cluster.watches,
            datapath.edge,
            _coexistence(config, node, datapath, loadbalancer),
            programs,
            datapath.needed,
            datapath.pressure.watched,
            "none" if programs is None else config.translated_sockets,
            reports,
        ),
        sampler=MetricsSampler(ctx.registry, config.metrics_sampling_interval_s),
        health_history=HealthHistory(ctx.db, ctx.health),
    )
    part.jobs = {"sample-metrics": part.sampler.run, "health-history": part.health_history.run}
    if programs is not None:
        run_dir = config.run_dir
        directories = [run_dir, run_dir / ENDPOINTS, run_dir / DELETE_QUEUE]
        part.jobs["set-aside"] = SetAside(ctx.db, ctx.problems, directories).run
    return part


def _coexistence(
    config: AgentConfig, node: NodePart, datapath: DatapathPart, loadbalancer: LoadBalancerPart
) -> Coexistence | None:
    if node.network is None or datapath.programs is None or datapath.attachments is None:
        return None
    return Coexistence(
        loadbalancer.tables.frontends,
        datapath.attachments.table,
        datapath.programs,
        node.network.netlink,
        config.pin_dir,
    )
