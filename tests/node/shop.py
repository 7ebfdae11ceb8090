# SPDX-License-Identifier: Apache-2.0
"""Four servers on two nodes and a client pod on each: what most tests of Services ask."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .callers import Caller
from .cluster import Cluster
from .workloads import client_pod, deployment, service


class Shop:
    """A namespace with the Deployment `web`; a test adds the Service that it is about."""

    NAMESPACE = "shop"
    REPLICAS = 4

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        clients = [client_pod(f"client-{node}", node) for node in cluster.nodes]
        cluster.create(self.NAMESPACE, deployment("web", self.REPLICAS), *clients)
        cluster.kubectl(self.NAMESPACE, "rollout", "status", "deployment/web", "--timeout=90s")
        cluster.wait_ready(self.NAMESPACE, *(client["metadata"]["name"] for client in clients))
        self.find_clients()
        listed = cluster.kubectl(self.NAMESPACE, "get", "pods", "-l=app=web", "-o=json")
        self.servers = {
            pod["metadata"]["name"]: pod["spec"]["nodeName"] for pod in json.loads(listed)["items"]
        }

    def find_clients(self) -> None:
        """Anew when their containers are others."""
        self.clients = {
            node: self.cluster.pod(self.NAMESPACE, f"client-{node}") for node in self.cluster.nodes
        }

    def on(self, node: str) -> set[str]:
        """The servers of one node."""
        return {name for name, there in self.servers.items() if there == node}

    def callers(self) -> list[Caller]:
        """Everybody in the cluster whose sockets the agents see."""
        nodes = [self.cluster.on_node(name) for name in self.cluster.nodes]
        return [*self.clients.values(), *nodes]

    def serve(self, name: str, backends: Mapping[str, int] | None = None, **spec: Any) -> Any:
        """Create a Service over the servers; the object, when every agent has it in force.

        `backends`: how many each node has; all four, if not said.
        """
        self.cluster.create(self.NAMESPACE, service(name, app="web", **spec))
        everywhere = dict.fromkeys(self.cluster.nodes, self.REPLICAS)
        self.cluster.in_force(self.NAMESPACE, name, backends or everywhere)
        return self.cluster.get(self.NAMESPACE, "services", name)
