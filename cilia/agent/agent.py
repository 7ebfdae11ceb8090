# SPDX-License-Identifier: Apache-2.0
"""An agent as one value: its parts, and what they have in common. `wiring.build` makes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cilia.agent.config import AgentConfig
from cilia.agent.observation import Observation
from cilia.cluster.wiring import ClusterPart
from cilia.datapath.wiring import DatapathPart
from cilia.flows.wiring import FlowsPart
from cilia.loadbalancer.wiring import LoadBalancerPart
from cilia.node.wiring import NodePart
from cilia.program.parts import Context, Job, Part

if TYPE_CHECKING:
    from cilia.endpoints.wiring import EndpointsPart
    from cilia.masquerade.wiring import MasqueradePart

__all__ = ["Agent"]


@dataclass(frozen=True)
class Agent:
    config: AgentConfig
    ctx: Context
    cluster: ClusterPart
    node: NodePart
    datapath: DatapathPart
    # None: another plugin gives pods their network.
    endpoints: EndpointsPart | None
    # None: what pods send to the world keeps its source.
    masquerade: MasqueradePart | None
    loadbalancer: LoadBalancerPart
    # None: maps in memory, nothing is reported.
    flows: FlowsPart | None
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
    def _parts(self) -> list[Part]:
        parts = (
            self.cluster,
            self.node,
            self.datapath,
            self.endpoints,
            self.masquerade,
            self.loadbalancer,
            self.flows,
            self.observation,
        )
        return [part for part in parts if part is not None]
