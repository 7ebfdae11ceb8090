# SPDX-License-Identifier: Apache-2.0
"""The whole agent: its features, in an order in which each finds what it reads."""

from __future__ import annotations

from dataclasses import dataclass

from cilia.agent import observation
from cilia.agent.config import AgentConfig
from cilia.agent.context import new_context
from cilia.agent.observation import Observation
from cilia.cluster import wiring as cluster
from cilia.datapath import wiring as datapath
from cilia.datapath.opening import Datapath
from cilia.datapath.programs import NodePrograms
from cilia.k8s.watch import Source
from cilia.loadbalancer import wiring as loadbalancer
from cilia.node import wiring as node
from cilia.program.parts import Context, Job, Part

__all__ = ["Agent", "build"]


@dataclass(frozen=True)
class Agent:
    """The parts, and what they have in common."""

    config: AgentConfig
    ctx: Context
    cluster: cluster.ClusterPart
    node: node.NodePart
    datapath: datapath.DatapathPart
    loadbalancer: loadbalancer.LoadBalancerPart
    observation: Observation

    @property
    def jobs(self) -> dict[str, Job]:
        """Return all that runs, by name."""
        return {name: job for part in self._parts for name, job in part.jobs.items()}

    def close(self) -> None:
        """Give back what the parts hold open; what is in force stays."""
        for close in (close for part in self._parts for close in part.closing):
            close()

    @property
    def _parts(self) -> tuple[Part, ...]:
        return self.cluster, self.node, self.datapath, self.loadbalancer, self.observation


def build(
    config: AgentConfig,
    objects: Source,
    edge: Datapath,
    programs: NodePrograms | None = None,
    *,
    source: str = "test",
    health_check_address: str = "",
) -> Agent:
    """Wire everything but the edges, which the caller opens.

    Without `programs` nothing is attached, and the node's network is neither read nor written.
    """
    ctx = new_context(config, objects)
    cluster_ = cluster.build(ctx, config)
    node_ = node.build(ctx, config, observe=programs is not None)
    datapath_ = datapath.build(ctx, config, node_, edge, programs)
    loadbalancer_ = loadbalancer.build(
        ctx, config, cluster_, node_, datapath_, health_check_address=health_check_address
    )
    seen = observation.build(ctx, config, cluster_, node_, datapath_, loadbalancer_, source)
    return Agent(config, ctx, cluster_, node_, datapath_, loadbalancer_, seen)
