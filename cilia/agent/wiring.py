# SPDX-License-Identifier: Apache-2.0
"""The whole agent: its features, in an order in which each finds what it reads."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cilia.agent import observation
from cilia.agent.agent import Agent
from cilia.agent.config import AgentConfig
from cilia.cluster import wiring as cluster
from cilia.cluster.wiring import ClusterPart
from cilia.datapath import wiring as datapath
from cilia.datapath.addresses_in_force import addresses_in_force
from cilia.datapath.opening import Datapath
from cilia.datapath.programs import NodePrograms
from cilia.datapath.wiring import DatapathPart
from cilia.flows import wiring as flows
from cilia.loadbalancer import wiring as loadbalancer
from cilia.node import wiring as node
from cilia.node.own_addresses import own_addresses
from cilia.node.wiring import NodePart
from cilia.program.parts import Context
from statedb import Table
from tables.loadbalancer.backends import Backend

if TYPE_CHECKING:
    from cilia.endpoints.wiring import EndpointsPart
    from cilia.masquerade.wiring import MasqueradePart

__all__ = ["Agent", "build"]


def build(
    ctx: Context,
    config: AgentConfig,
    edge: Datapath,
    programs: NodePrograms | None = None,
    *,
    source: str = "test",
    health_check_address: str = "",
) -> Agent:
    """Wire everything but the edges, which the caller opens; `ctx` is `context.new_context`.

    Without `programs` nothing is attached, and the node's network is neither read nor written.
    """
    cluster_ = cluster.build(ctx, config, keeps=programs is not None)
    own = own_addresses(cluster_.nodes, config.node_name)
    node_ = node.build(
        ctx, config, own, observe=programs is not None, before=partial(addresses_in_force, edge)
    )
    datapath_ = datapath.build(ctx, config, cluster_, node_, edge, programs)
    loadbalancer_ = loadbalancer.build(
        ctx, config, cluster_, node_, datapath_, health_check_address=health_check_address
    )
    backends = loadbalancer_.tables.backends
    endpoints_, masquerade_ = None, None
    if config.pod_network:
        endpoints_, masquerade_ = _pod_network(ctx, config, cluster_, node_, datapath_, backends)
    flows_ = flows.build(datapath_)
    reports = {
        key: report
        for part in (endpoints_, masquerade_)
        if part is not None
        for key, report in part.reports.items()
    }
    seen = observation.build(
        ctx, config, cluster_, node_, datapath_, loadbalancer_, source, reports
    )
    return Agent(
        config,
        ctx,
        cluster_,
        node_,
        datapath_,
        endpoints_,
        masquerade_,
        loadbalancer_,
        flows_,
        seen,
    )


def _pod_network(
    ctx: Context,
    config: AgentConfig,
    cluster_: ClusterPart,
    node_: NodePart,
    datapath_: DatapathPart,
    backends: Table[Backend],
) -> tuple[EndpointsPart | None, MasqueradePart | None]:
    from cilia.endpoints import wiring as endpoints  # 70 modules that Services do without
    from cilia.masquerade import wiring as masquerade

    families = frozenset({False} if config.enable_ipv4 else ()) | (
        {True} if config.enable_ipv6 else set()
    )
    endpoints_ = endpoints.build(ctx, config, cluster_, node_, datapath_, backends, families)
    if endpoints_ is None:
        return None, None
    return endpoints_, masquerade.build(ctx, config, cluster_, datapath_, endpoints_.allocations)
