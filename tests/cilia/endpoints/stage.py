# SPDX-License-Identifier: Apache-2.0
"""The tables of an agent that an ADD writes and waits for, with those who follow them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cilia.endpoints.controller import OWNER, EndpointsController
from cilia.endpoints.known import Known
from cilia.endpoints.registry import Registry
from cilia.identity import wiring
from cilia.ipam.allocator import ROUTER, Allocator, router_of
from cilia.ipam.options import IPAMOptions
from cilia.ipam.pools import NodePools
from tables.cluster.namespaces import new_namespaces_table
from tables.cluster.pods import new_pods_table
from tables.datapath.attachments import new_attachments_table
from tables.ipam.ip_allocations import new_ip_allocations_table
from tables.node.desired_routes import new_desired_routes_table
from tests.cilia.identity.ipcache.agent import Agent
from tests.cilia.identity.ipcache.world import BOTH

POOLS: Final = IPAMOptions(ipam="static", ipv4_range="10.1.0.0/24", ipv6_range="fd00::/120")


class Stage:
    """What an ADD writes and waits for, without a kernel."""

    def __init__(self, agent: Agent) -> None:
        db = agent.db
        self.pods, self.namespaces = new_pods_table(db), new_namespaces_table(db)
        self.allocations = new_ip_allocations_table(db)
        allocator = Allocator(self.allocations)
        with db.write_txn(self.allocations) as wtxn:
            for pool in POOLS.static_pools:
                allocator.claim(wtxn, router_of(pool), ROUTER)
        self.identity = wiring.build(agent.ctx)
        attachments, routes = new_attachments_table(db), new_desired_routes_table(db)
        controller = EndpointsController(
            db,
            agent.endpoints,
            self.identity.owned_by(OWNER),
            self.pods,
            self.namespaces,
            attachments,
            routes,
            agent.devices,
            Path("/nowhere"),
        )
        self.registry = Registry(
            db,
            agent.endpoints,
            self.allocations,
            allocator,
            NodePools(POOLS, agent.nodes, agent.devices, BOTH, frozenset()),
            controller,
            agent.part.known,
        )
        known = Known(db, OWNER, attachments, routes, self.identity.desired)

        async def follow() -> None:
            controller.step()
            known.say()
            await controller.run()

        self.jobs = {**self.identity.jobs, "endpoints": follow}
