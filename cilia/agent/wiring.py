# SPDX-License-Identifier: Apache-2.0
"""The whole agent: its features, in an order in which each finds what it reads."""

from __future__ import annotations

from functools import partial

from cilia.agent import observation
from cilia.agent.agent import Agent
from cilia.agent.config import AgentConfig
from cilia.cluster import wiring as cluster
from cilia.datapath import wiring as datapath
from cilia.datapath.addresses_in_force import addresses_in_force
from cilia.datapath.opening import Datapath
from cilia.datapath.programs import NodePrograms
from cilia.endpoints import wiring as endpoints
from cilia.loadbalancer import wiring as loadbalancer
from cilia.masquerade import wiring as masquerade
from cilia.node import wiring as node
from cilia.node.own_addresses import own_addresses
from cilia.program.parts import Context

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
    families = frozenset({False} if config.enable_ipv4 else ()) | (
        {True} if config.enable_ipv6 else set()
    )
    backends = loadbalancer_.tables.backends
    endpoints_ = endpoints.build(ctx, config, cluster_, node_, datapath_, backends, families)
    masquerade_ = None
    if endpoints_ is not None:
        masquerade_ = masquerade.build(ctx, config, cluster_, datapath_, endpoints_.allocations)
    seen = observation.build(ctx, config, cluster_, node_, datapath_, loadbalancer_, source)
    return Agent(
        config, ctx, cluster_, node_, datapath_, endpoints_, masquerade_, loadbalancer_, seen
    )
