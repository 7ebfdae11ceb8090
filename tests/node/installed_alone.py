# SPDX-License-Identifier: Apache-2.0
"""The chart on two nodes that have no other network: cilia is the network of their pods, too.

In the order of the tests. `make test-images` builds the images and runs this.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial

import pytest

from tests.install.images import NAMES, tag
from tests.install.rendered import CHART, helm

from . import test_cluster, test_names, test_outside, test_pods
from .cluster import Cluster
from .installation import NAMESPACE, cilia, find_agents, nodes_with_images, pods_on
from .node_settings import CNI_CONFIGURATION, CNI_PROGRAMS
from .plan import API_PORT, BRIDGE_V4
from .shop import Shop
from .traffic import Traffic, nothing_failed
from .workloads import server_pod

pytestmark = pytest.mark.timeout(600)

RELEASE = "cilia"
_numbers = itertools.count(1)
PORT = 9000


def values() -> list[str]:
    """Settings of the chart that say where this cluster and our images are."""
    repositories = {target: f"localhost/{name}" for target, name in NAMES.items()}
    _, _, version = tag("agent").rpartition(":")
    given = {
        "k8sServiceHost": BRIDGE_V4,
        "k8sServicePort": API_PORT,
        "image.repository": repositories["agent"],
        "image.tag": version,
        "operator.image.repository": repositories["operator"],
        "operator.image.tag": version,
        "podNetwork.enabled": "true",
        "cni.binPath": CNI_PROGRAMS,
        "cni.confPath": CNI_CONFIGURATION,
    }
    return [f"--set={name}={value}" for name, value in given.items()]


def release(cluster: Cluster, command: str, *arguments: str) -> str:
    """Run helm on the release. Raises: CalledProcessError."""
    where = (f"--kubeconfig={cluster.api.kubeconfig}", f"--namespace={NAMESPACE}")
    return helm(command, RELEASE, *where, *arguments)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Installed by the chart; the nodes had no network for pods before."""
    name, directory = f"cilia-alone-{os.getpid()}", tmp_path_factory.mktemp("alone")
    with nodes_with_images(name, directory, pod_network=True) as made:
        assert not any(ready(made).values())
        release(made, "install", str(CHART), *values(), "--wait", "--timeout=3m")
        made.wait_nodes()
        find_agents(made)
        made.start_dns()
        yield made


def ready(cluster: Cluster) -> dict[str, bool]:
    """Whether each node says that it is ready, by its name."""
    nodes = json.loads(cluster.kubectl("", "get", "nodes", "-o=json"))["items"]
    return {
        node["metadata"]["name"]: any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for condition in node["status"].get("conditions", ())
        )
        for node in nodes
    }


@pytest.fixture(scope="module")
def shop(cluster: Cluster) -> Shop:
    cluster.make_namespace(Shop.NAMESPACE)
    return Shop(cluster)


@pytest.fixture
def namespace(cluster: Cluster) -> str:
    name = f"alone-{next(_numbers)}"
    cluster.make_namespace(name)
    return name


@pytest.fixture(scope="module")
def traffic(cluster: Cluster) -> Traffic:
    cluster.make_namespace("traffic")
    return Traffic(cluster, "traffic")


def test_the_agent_has_put_plugin_and_list_on_its_node(cluster: Cluster) -> None:
    for node in cluster.nodes.values():
        listed = json.loads(node.path(f"{CNI_CONFIGURATION}/05-cilia.conflist").read_text())
        assert [plugin["type"] for plugin in listed["plugins"]] == ["cilia-cni"]
        assert node.path(f"{CNI_PROGRAMS}/cilia-cni").stat().st_mode & 0o111
        assert node.run("cat", "/proc/sys/net/ipv4/ip_forward").strip() == "1"


# These run on clusters whose agents are programs of their nodes, too.
test_pods_have_addresses = test_pods.test_pods_have_addresses_of_their_nodes_ranges
test_pods_talk = test_pods.test_pods_of_one_node_and_of_both_talk_in_their_own_names
test_nodes_and_pods_talk = test_pods.test_nodes_reach_pods_and_pods_reach_nodes
test_the_api_server_is_reached = test_pods.test_a_pod_reaches_the_api_server_by_its_service
test_names_are_found = test_names.test_a_pod_finds_a_service_by_its_name
test_node_ports_answer_outside = test_outside.test_a_node_port_reaches_every_server_from_outside
test_node_ports_answer_inside = (
    test_outside.test_a_node_port_of_another_node_is_reached_from_pods_and_nodes
)
test_host_ports_answer = test_outside.test_a_host_port_answers_from_outside_and_from_the_other_node
test_commands_run = test_cluster.test_commands_run_in_a_pod_and_its_log_is_read
test_ports_are_forwarded = test_cluster.test_a_port_is_forwarded_to_a_pod
test_who_is_not_ready_is_not_asked = (
    test_cluster.test_a_pod_that_is_not_ready_gets_no_requests_until_it_is
)
test_who_is_not_alive_starts_again = test_cluster.test_a_pod_that_is_not_alive_is_started_again


def test_nothing_is_lost_while_the_agents_pods_are_replaced(
    cluster: Cluster, shop: Shop, traffic: Traffic
) -> None:
    """Numbered datagrams and open connections from pod to pod, and requests to Services."""
    names = {node: f"echo-{node}" for node in cluster.nodes}
    cluster.create(shop.NAMESPACE, *(server_pod(name, node) for node, name in names.items()))
    cluster.wait_ready(shop.NAMESPACE, *names.values())
    with ExitStack() as stack:
        client = cluster.process_at_pod(shop.NAMESPACE, "client-n1")
        stack.callback(client.close)
        numbered, streams = [], []
        for name in names.values():
            server = cluster.process_at_pod(shop.NAMESPACE, name)
            stack.callback(server.close)
            pod = cluster.get(shop.NAMESPACE, "pod", name)
            for address in (entry["ip"] for entry in pod["status"]["podIPs"]):
                assert server.serve(name, address, PORT) is True
                numbered.append(client.datagrams_start(address, PORT, 100))
                streams.append(client.streams_open(address, PORT, 2))
        nothing_failed(traffic.during(partial(replace_agents, cluster)), 200)
        datagrams = [client.datagrams_stop(number) for number in numbered]
        answered = [client.streams_stop(number) for number in streams]
    print(f"datagrams: {[found['sent'] for found in datagrams]} sent")
    for found in datagrams:
        assert (found["lost"], found["failures"]) == ([], [])
        assert found["sent"] > 200
    for found in answered:
        assert found["failures"] == [] and found["answered"] > 100


def replace_agents(cluster: Cluster) -> None:
    """Returns when new ones are ready, and a pod that was made meanwhile runs."""
    old = {node: pods_on(cluster, node) for node in cluster.nodes}
    cluster.kubectl(NAMESPACE, "delete", "pod", "-l=k8s-app=cilia", "--wait=false")
    cluster.create("traffic", *(server_pod(f"meanwhile-{node}", node) for node in cluster.nodes))
    cluster.eventually(
        lambda: all(set(pods_on(cluster, node)).isdisjoint(old[node]) for node in old),
        "the old agents' end",
    )
    cluster.kubectl(NAMESPACE, "rollout", "status", "daemonset/cilia", "--timeout=120s")
    cluster.wait_ready("traffic", *(f"meanwhile-{node}" for node in cluster.nodes))


def test_nodes_get_back_what_they_had_when_all_is_removed(cluster: Cluster, shop: Shop) -> None:
    """Pods lose their network: another plugin makes them anew."""
    theirs = '{"cniVersion": "1.0.0", "name": "theirs", "plugins": []}'
    for node in cluster.nodes.values():
        node.path(f"{CNI_CONFIGURATION}/90-theirs.conflist").write_text(theirs)
        aside = node.path(f"{CNI_CONFIGURATION}/90-theirs.conflist.cilium_bak")
        cluster.eventually(aside.exists, "a list of another network is set aside")
    cilia(cluster, "uninstall")
    release(cluster, "uninstall")
    for node in cluster.nodes.values():
        assert [path.name for path in node.path(CNI_CONFIGURATION).iterdir()] == [
            "90-theirs.conflist"
        ]
        assert not node.path(f"{CNI_PROGRAMS}/cilia-cni").exists()
        assert cluster.agents[node.name].pins() == []
        devices = node.run("ip", "-brief", "link")
        assert "lxc" not in devices and "cilia" not in devices
        routes = node.run("ip", "route") + node.run("ip", "-6", "route")
        assert "unreachable" not in routes
