# SPDX-License-Identifier: Apache-2.0
"""Clients notice nothing: rolling updates and restarts, under 200 requests a second through the
cluster addresses of a Service and 200 through its node port."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.kube.programs import Program

from .cluster import Cluster
from .traffic import REPLICAS, Traffic, nothing_failed

#: How a program ends: asked to, or as by a crash.
ENDS: dict[str, Callable[[Program], None]] = {"SIGTERM": Program.stop, "SIGKILL": Program.kill}
End = Callable[[Program], None]


def restart_agents(traffic: Traffic, end: End) -> None:
    for agent in traffic.cluster.agents.values():
        end(agent.program)
        agent.start()


def restart_kubelets(traffic: Traffic, end: End) -> None:
    """Each starts with no memory of its probes, so that it takes its servers for not ready until
    it has asked them: one after the other, as anybody would."""
    for node in traffic.cluster.nodes.values():
        end(node.kubelet)
        node.kubelet.start()
        all_ready_again(traffic.cluster, traffic)


def restart_containerds(traffic: Traffic, end: End) -> None:
    for node in traffic.cluster.nodes.values():
        end(node.containerd)
        node.start_containerd()
        all_ready_again(traffic.cluster, traffic)


def restart_api_server(traffic: Traffic, end: End) -> None:
    traffic.cluster.restart_api_server(end)


def all_ready_again(cluster: Cluster, traffic: Traffic) -> None:
    cluster.wait_nodes()
    traffic.rolled_out()


RESTARTS = {
    "agents": restart_agents,
    "kubelets": restart_kubelets,
    "containerds": restart_containerds,
    "API server": restart_api_server,
}


def test_no_request_fails_while_ten_servers_are_replaced(traffic: Traffic) -> None:
    before = traffic.servers()
    results = traffic.during(traffic.roll)
    nothing_failed(results, 1000)
    for result in results:
        seen = {f"pod/{name}" for name in result["pods"]}
        assert len(seen - before) == REPLICAS, "each of the new servers answered"


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("what", RESTARTS)
def test_no_request_fails_while_a_program_restarts_and_the_cluster_works_after(
    traffic: Traffic, what: str, end: str
) -> None:
    def act() -> None:
        RESTARTS[what](traffic, ENDS[end])
        traffic.change()

    nothing_failed(traffic.during(act), 200)


def test_servers_are_replaced_after_an_agent_was_killed(traffic: Traffic) -> None:
    """What changes while an agent is away is in force once it is back, and nothing fails."""
    agent = traffic.cluster.agents["n1"]

    def act() -> None:
        agent.kill()
        traffic.order(REPLICAS + 2)
        if not traffic.cluster.pod_network:  # else the new server of its node waits for the agent
            traffic.scaled(REPLICAS + 2)
        agent.start()
        traffic.scaled(REPLICAS + 2)
        everywhere = dict.fromkeys(traffic.cluster.nodes, REPLICAS + 2)
        traffic.cluster.in_force(traffic.namespace, "rolled", everywhere)
        traffic.scale(REPLICAS)

    nothing_failed(traffic.during(act), 500)


def test_servers_are_replaced_after_the_api_server_was_away(traffic: Traffic) -> None:
    def act() -> None:
        traffic.cluster.restart_api_server(Program.kill)
        traffic.roll()

    nothing_failed(traffic.during(act), 500)
