# SPDX-License-Identifier: Apache-2.0
"""Pods whose network is cilia alone: on nodes with real kubelets, of both families.

Services of every type, names, restarts and updates under load are in the other files, which run on
this cluster as well.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.kube.assets import asset
from tests.kube.programs import Program

from .agent import Agent
from .cluster import Cluster
from .networks import ON_CILIA
from .node_state import difference, state_of
from .plan import NODES
from .shop import Shop
from .traffic import nothing_failed, what_became_of
from .workloads import PORT, Object, deployment, server_pod

pytestmark = ON_CILIA

API_SERVICE = "https://10.96.0.1"


def urls(address: str, port: int = PORT) -> list[str]:
    host = f"[{address}]" if ":" in address else address
    return [f"http://{host}:{port}/", f"udp://{host}:{port}"]


def addresses_of(cluster: Cluster, namespace: str, name: str) -> list[str]:
    found = cluster.get(namespace, "pod", name)["status"]["podIPs"]
    return [entry["ip"] for entry in found]


def host_pod(name: str, node: str) -> Object:
    """A server in the network of its node."""
    made = server_pod(name, node)
    made["spec"]["hostNetwork"] = True
    return made


def test_pods_have_addresses_of_their_nodes_ranges(cluster: Cluster, shop: Shop) -> None:
    pods_on: dict[str, set[str]] = {name: set() for name in cluster.nodes}
    for pod in json.loads(cluster.kubectl(shop.NAMESPACE, "get", "pods", "-o=json"))["items"]:
        pods_on[pod["spec"]["nodeName"]].add(pod["metadata"]["name"])
        node = cluster.get("", "node", pod["spec"]["nodeName"])
        ranges = [ipaddress.ip_network(text) for text in node["spec"]["podCIDRs"]]
        found = [ipaddress.ip_address(entry["ip"]) for entry in pod["status"]["podIPs"]]
        assert len(found) == len(ranges) == 2
        assert all(ip in cidr for ip, cidr in zip(found, ranges, strict=True))
    for name, agent in cluster.agents.items():
        pods = {row["Pod"] for row in agent.rows("endpoints") if row["Namespace"] == "shop"}
        assert pods == pods_on[name]
        assert pods >= {f"client-{name}", *shop.on(name)}
        assert "cni0" not in cluster.nodes[name].run("ip", "-brief", "link")


def test_pods_of_one_node_and_of_both_talk_in_their_own_names(cluster: Cluster, shop: Shop) -> None:
    for node, caller in shop.clients.items():
        own = addresses_of(cluster, shop.NAMESPACE, f"client-{node}")
        for server in shop.servers:
            for address, mine in zip(
                addresses_of(cluster, shop.NAMESPACE, server), own, strict=True
            ):
                for url in urls(address):
                    (answer,) = caller.ask(url)
                    assert (answer.pod, answer.client_address) == (server, mine), url


def test_nodes_reach_pods_and_pods_reach_nodes(
    cluster: Cluster, shop: Shop, namespace: str
) -> None:
    for server in shop.servers:
        for address in addresses_of(cluster, shop.NAMESPACE, server):
            for node in cluster.nodes:
                assert cluster.on_node(node).pods(*urls(address)) == {server}
    cluster.create(namespace, *(host_pod(f"host-{node}", node) for node in cluster.nodes))
    cluster.wait_ready(namespace, *(f"host-{node}" for node in cluster.nodes))
    for name, caller in shop.clients.items():
        own = addresses_of(cluster, shop.NAMESPACE, f"client-{name}")
        for member in NODES:
            for address, mine in zip((member.v4, member.v6), own, strict=True):
                for url in urls(address):
                    (answer,) = caller.ask(url)
                    assert (answer.pod, answer.client_address) == (member.name, mine), url


def test_a_pod_reaches_the_api_server_by_its_service(cluster: Cluster, shop: Shop) -> None:
    kubeconfig = cluster.kubeconfig_inside()
    asked = (f"--kubeconfig={kubeconfig}", f"--server={API_SERVICE}", "get", "--raw=/livez")
    for node in cluster.nodes:
        inside = cluster.at_pod(shop.NAMESPACE, f"client-{node}")
        assert inside.run(str(asset("kubectl")), *asked) == "ok"


def test_kubelet_probes_by_tcp_and_by_a_command(cluster: Cluster, namespace: str) -> None:
    """By HTTP it does in most other tests."""
    probes: dict[str, Object] = {
        "tcp": {"tcpSocket": {"port": PORT}},
        "deaf": {"tcpSocket": {"port": PORT + 1}},
        "command": {"exec": {"command": ["/bin/sh", "-c", ": </tmp/ready"]}},
    }
    cluster.create(
        namespace,
        *(
            server_pod(name, "n1", readinessProbe={**probe, "periodSeconds": 1})
            for name, probe in probes.items()
        ),
    )
    cluster.wait_ready(namespace, "tcp")
    cluster.eventually(partial(_has_run, cluster, namespace, "command"), "its start")
    assert _unready(cluster, namespace) == {"deaf", "command"}
    cluster.kubectl(namespace, "exec", "command", "--", "/bin/sh", "-c", ": >/tmp/ready")
    cluster.wait_ready(namespace, "command")
    assert _unready(cluster, namespace) == {"deaf"}


def _has_run(cluster: Cluster, namespace: str, name: str) -> bool:
    (status,) = cluster.get(namespace, "pod", name)["status"].get("containerStatuses", [{}])
    return bool(status.get("started"))


def _unready(cluster: Cluster, namespace: str) -> set[str]:
    pods = json.loads(cluster.kubectl(namespace, "get", "pods", "-o=json"))["items"]
    return {
        pod["metadata"]["name"]
        for pod in pods
        if not all(status["ready"] for status in pod["status"].get("containerStatuses", [{}]))
    }


def pods_of(cluster: Cluster, node: str) -> list[Any]:
    """The pods of a node that have a network of their own."""
    selected = ("get", "pods", "-A", f"--field-selector=spec.nodeName={node}", "-o=json")
    pods = json.loads(cluster.kubectl("", *selected))["items"]
    return [pod for pod in pods if not pod["spec"].get("hostNetwork")]


def containers(cluster: Cluster, node: str) -> list[str]:
    """Of each pod of a node the container that is ready; empty where none is."""
    return [
        status.get("containerID", "") if status.get("ready") else ""
        for pod in pods_of(cluster, node)
        for status in pod["status"].get("containerStatuses", [{}])
    ]


def run_anew(cluster: Cluster, node: str, lost: list[str]) -> bool:
    return set(containers(cluster, node)).isdisjoint([*lost, ""])


def check_pods(cluster: Cluster) -> None:
    """Both nodes have the endpoints of their pods and no others, and nothing else of any pod."""
    for name, agent in cluster.agents.items():
        wanted = {
            (pod["metadata"]["name"], tuple(ip["ip"] for ip in pod["status"]["podIPs"]))
            for pod in pods_of(cluster, name)
        }
        rows = agent.rows("endpoints")
        assert {(row["Pod"], (row["IPv4"], row["IPv6"])) for row in rows} == wanted
        assert {row["State"] for row in rows} == {"ready"}
        assert len(rows) == len(wanted)
        check_nothing_else(agent, rows)


def check_nothing_else(agent: Agent, rows: list[Any]) -> None:
    """Of pods the node has these endpoints alone: their devices, files, rows, routes, entries."""
    state = state_of(agent)
    devices = sorted(row["Device"] for row in rows)
    addresses = sorted(row[family] for row in rows for family in ("IPv4", "IPv6"))
    text = "\n".join(itertools.chain(*(lines for lines in state.values() if type(lines) is list)))
    assert sorted(set(re.findall(r"\blxc[0-9a-f]+\b", text))) == devices
    assert sorted(re.findall(r"^(lxc\w+)@", "\n".join(state["-brief link"]), re.M)) == devices
    assert sorted(re.findall(r"/endpoints/(\d+)\.json$", text, re.M)) == sorted(
        str(row["ID"]) for row in rows
    )
    routed = "\n".join(state["-4 route show table all"] + state["-6 route show table all"])
    assert sorted(re.findall(r"^(?!fe80:)(\S+) dev lxc", routed, re.M)) == addresses
    pools = [text for text in state["ip-allocations"] if text not in addresses]
    assert len(pools) == 2, "the gateways"
    assert state["entries"] == len(rows)


class Watched:
    """The state of both nodes, to which they come back."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._before = self._state()

    def _state(self) -> dict[str, Any]:
        return {name: state_of(agent) for name, agent in self._cluster.agents.items()}

    def changed(self) -> dict[str, Any]:
        """What is there more or no more, by node and place."""
        now = self._state()
        return {
            f"{name}: {place}": lines
            for name in now
            for place, lines in difference(self._before[name], now[name]).items()
        }

    def comes_back(self) -> None:
        try:
            self._cluster.eventually(lambda: not self.changed(), "all is gone", 60)
        except TimeoutError:
            assert self.changed() == {}
            raise


@pytest.fixture
def watched(cluster: Cluster, shop: Shop) -> Watched:
    """After the shop's pods, which stay, are there, and nothing else goes on."""
    cluster.eventually(partial(_quiet, cluster), "no pod that ends", 60)
    return Watched(cluster)


def _quiet(cluster: Cluster) -> bool:
    """Nothing is being deleted: a namespace ends before its pods are told."""
    if "Terminating" in cluster.kubectl("", "get", "namespaces", "-o=jsonpath={..phase}"):
        return False
    pods = json.loads(cluster.kubectl("", "get", "pods", "-A", "-o=json"))["items"]
    living = {(p["metadata"]["namespace"], p["metadata"]["name"]) for p in pods}
    ending = any("deletionTimestamp" in pod["metadata"] for pod in pods)
    rows = [row for agent in cluster.agents.values() for row in agent.rows("endpoints")]
    return not ending and all((row["Namespace"], row["Pod"]) in living for row in rows)


def start_some(cluster: Cluster, namespace: str) -> None:
    cluster.create(namespace, deployment("some", 6))
    _rolled_out(cluster, namespace)


def _rolled_out(cluster: Cluster, namespace: str) -> None:
    cluster.kubectl(namespace, "rollout", "status", "deployment/some", "--timeout=120s")


def delete_some(cluster: Cluster, namespace: str) -> None:
    """Returns when the API server has none of them."""
    selected = ("deployment,replicaset,pod", "-l=app=some")
    cluster.kubectl(namespace, "delete", "deployment", "some")
    cluster.kubectl(namespace, "delete", *selected, "--grace-period=1", "--timeout=90s")


def test_pods_that_are_deleted_leave_nothing(
    cluster: Cluster, namespace: str, watched: Watched
) -> None:
    start_some(cluster, namespace)
    changed = watched.changed()
    for node in cluster.nodes:
        for place in ("-brief link", "-4 route show table all", "files", "endpoints", "entries"):
            assert f"{node}: {place}" in changed, "the pods are seen"
    delete_some(cluster, namespace)
    watched.comes_back()


def test_pods_that_come_and_go_while_the_agent_is_dead_are_served_and_forgotten(
    cluster: Cluster, namespace: str, watched: Watched
) -> None:
    """Their ends are queued, and their starts wait."""
    start_some(cluster, namespace)
    agent = cluster.agents["n1"]
    agent.kill()
    delete_some(cluster, namespace)
    cluster.create(namespace, deployment("some", 4))
    agent.start()
    _rolled_out(cluster, namespace)
    check_pods(cluster)
    delete_some(cluster, namespace)
    watched.comes_back()


@pytest.mark.timeout(400)
def test_pods_that_come_and_go_while_programs_are_killed_leave_nothing(
    cluster: Cluster, namespace: str, watched: Watched
) -> None:
    """Somewhere in the middle of their requests: containerd, kubelet, agent."""
    victims: list[Callable[[], None]] = []
    for name, node in cluster.nodes.items():
        agent = cluster.agents[name]
        victims += [
            partial(_restart, node.containerd, node.start_containerd),
            partial(_restart, agent.program, agent.start),
            partial(_restart, node.kubelet, node.kubelet.start),
        ]
    cluster.create(namespace, deployment("some", 2))
    for number, kill in enumerate(victims):
        replicas = 8 if number % 2 == 0 else 1
        cluster.kubectl(namespace, "scale", "deployment/some", f"--replicas={replicas}")
        kill()
    cluster.wait_nodes()
    cluster.kubectl(namespace, "scale", "deployment/some", "--replicas=4")
    _rolled_out(cluster, namespace)
    cluster.eventually(partial(_quiet, cluster), "the ends of those that are too many", 60)
    check_pods(cluster)
    delete_some(cluster, namespace)
    watched.comes_back()


def _restart(program: Program, start: Callable[[], None]) -> None:
    program.kill()
    start()


def test_no_request_from_pod_to_pod_fails_while_agents_are_killed(
    cluster: Cluster, shop: Shop, namespace: str
) -> None:
    """At their own addresses, on one node and on both; nor one from a node."""
    servers = [server_pod(f"at-{node}", node, livenessProbe=None) for node in cluster.nodes]
    names = [server["metadata"]["name"] for server in servers]
    cluster.create(namespace, *servers)
    cluster.wait_ready(namespace, *names)
    targets = [
        url
        for name in names
        for address in addresses_of(cluster, namespace, name)
        for url in urls(address)[:1]
    ]

    def act() -> None:
        for agent in cluster.agents.values():
            _restart(agent.program, agent.start)

    loads = {caller.name: caller.load(*targets, rate=50) for caller in shop.callers()}
    nothing_failed(what_became_of(loads, act), 200)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("keeps_disk", [True, False], ids=["disk kept", "disk lost"])
def test_pods_come_back_when_their_node_has_lost_its_power(
    cluster: Cluster, shop: Shop, watched: Watched, keeps_disk: bool
) -> None:
    """Of their network nothing is there any more; of the runtime what it has on disk."""
    kept, lost = state_of(cluster.agents["n2"]), containers(cluster, "n1")
    cluster.reboot("n1", keeps_disk=keeps_disk)
    cluster.eventually(partial(run_anew, cluster, "n1", lost), "its pods", 120)
    shop.find_clients()
    check_pods(cluster)
    assert difference(kept, state_of(cluster.agents["n2"])) == {}
    made = shop.serve("after-reboot")
    for caller in shop.callers():
        for address in made["spec"]["clusterIPs"]:
            for url in urls(address, 80):
                assert caller.pods(url, times=60) == set(shop.servers), f"{caller.name}: {url}"
