# SPDX-License-Identifier: Apache-2.0
"""From the agents to kube-proxy and back, under traffic, by the steps of docs/kube-proxy.md."""

from __future__ import annotations

import re

from .agent import Agent
from .cluster import KUBE_PROXY
from .kube_proxy import KubeProxy
from .networks import ON_BRIDGE
from .traffic import Traffic, nothing_failed

pytestmark = ON_BRIDGE


def named_in_status(agent: Agent) -> set[str]:
    """The families in which `cilia status` says that kube-proxy has rules for addresses that are
    served here."""
    said = agent.cilia("status")
    line = re.compile(
        r"kube-proxy's rules \(nftables, table (ip6?) kube-proxy\): "
        r"(\d+) addresses, (\d+) of them served here"
    )
    found = line.findall(said)
    assert all(int(served) > 0 for _, _, served in found), said
    return {family for family, _, _ in found}


def test_no_request_fails_on_the_way_to_kube_proxy_and_back(traffic: Traffic) -> None:
    cluster = traffic.cluster
    kubeconfig = cluster.kubeconfig_inside(KUBE_PROXY)
    proxies = {name: KubeProxy(node, kubeconfig) for name, node in cluster.nodes.items()}

    def away() -> None:
        for proxy in proxies.values():
            proxy.start(*traffic.addresses)
        for agent in cluster.agents.values():
            assert named_in_status(agent) == {"ip", "ip6"}
            agent.cilia("replacement", "off", "--wait", "--wait-duration=120")
            agent.stop()
            agent.cilia("cleanup")

    def back() -> None:
        for agent in cluster.agents.values():
            agent.start()
            assert named_in_status(agent) == {"ip", "ip6"}
        for proxy in proxies.values():
            proxy.stop()
            proxy.remove_rules()
        for agent in cluster.agents.values():
            assert "kube-proxy's rules" not in agent.cilia("status")

    assert all(agent.pins() for agent in cluster.agents.values())
    nothing_failed(traffic.during(away), 200)
    for name, proxy in proxies.items():
        assert set(traffic.addresses) <= proxy.addresses()
        assert cluster.agents[name].pins() == []
    nothing_failed(traffic.during(traffic.roll), 500)  # kube-proxy alone
    nothing_failed(traffic.during(back), 200)
    for proxy in proxies.values():
        assert "kube-proxy" not in proxy.rules()
    nothing_failed(traffic.during(traffic.roll), 500)  # the agents alone
