# SPDX-License-Identifier: Apache-2.0
"""Services asked from outside the cluster, and across nodes: where packets are translated."""

from __future__ import annotations

from functools import partial
from typing import Any

from .plan import CLIENT, NODES
from .shop import Shop
from .traffic import Traffic, nothing_failed, what_became_of
from .workloads import PORT, server_pod, service


def host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


def node_urls(made: Any, address: str) -> list[str]:
    """A Service's node ports at an address, over TCP and UDP."""
    ports = {port["protocol"]: port["nodePort"] for port in made["spec"]["ports"]}
    return [f"http://{host(address)}:{ports['TCP']}/", f"udp://{host(address)}:{ports['UDP']}"]


def test_a_node_port_reaches_every_server_from_outside(shop: Shop) -> None:
    made = shop.serve("outside", type="NodePort")
    caller = shop.cluster.outside()
    for node in NODES:
        for address in (node.v4, node.v6):
            for url in node_urls(made, address):
                assert caller.pods(url, times=60) == set(shop.servers), url


def test_a_node_port_of_another_node_is_reached_from_pods_and_nodes(shop: Shop) -> None:
    made = shop.serve("across", type="NodePort")
    for caller in shop.callers():
        for node in NODES:
            for url in (*node_urls(made, node.v4), *node_urls(made, node.v6)):
                assert caller.pods(url, times=60) == set(shop.servers), f"{caller.name}: {url}"


def test_an_external_local_policy_keeps_the_clients_address(shop: Shop) -> None:
    cluster = shop.cluster
    local = {"type": "NodePort", "externalTrafficPolicy": "Local"}
    cluster.create(shop.NAMESPACE, service("kept", app="web", **local))
    made = cluster.get(shop.NAMESPACE, "service", "kept")
    caller = cluster.outside()
    for node in NODES:
        for address, ours in ((node.v4, CLIENT.v4), (node.v6, CLIENT.v6)):
            for url in node_urls(made, address):
                cluster.eventually(partial(caller.answers, url), url)
                answers = caller.ask(url, times=40)
                assert {answer.pod for answer in answers} == shop.on(node.name), url
                assert {answer.client_address for answer in answers} == {ours}, url


def test_an_external_local_policy_refuses_where_no_server_is(shop: Shop) -> None:
    cluster = shop.cluster
    cluster.create(shop.NAMESPACE, server_pod("far", "n2"))
    cluster.wait_ready(shop.NAMESPACE, "far")
    local = {"type": "NodePort", "externalTrafficPolicy": "Local"}
    cluster.create(shop.NAMESPACE, service("far", app="far", **local))
    made = cluster.get(shop.NAMESPACE, "service", "far")
    caller = cluster.outside()
    one, two = NODES
    (there, _), (here, _) = node_urls(made, two.v4), node_urls(made, one.v4)
    cluster.eventually(partial(caller.answers, there), there)
    assert not caller.answers(here)


def test_addresses_of_balancers_and_external_ones_answer_outside(shop: Shop) -> None:
    external = ["192.0.2.70", "2001:db8:2::70"]
    balanced = ["192.0.2.71", "2001:db8:2::71"]
    shop.serve("from-afar", type="LoadBalancer", externalIPs=external)
    path = f"/api/v1/namespaces/{shop.NAMESPACE}/services/from-afar/status"
    ingress = [{"ip": address} for address in balanced]
    shop.cluster.api.patch(path, {"status": {"loadBalancer": {"ingress": ingress}}})
    caller = shop.cluster.outside()
    for address in (*external, *balanced):
        for url in (f"http://{host(address)}/", f"udp://{host(address)}:80"):
            shop.cluster.eventually(partial(caller.answers, url), url)
            assert caller.pods(url, times=60) == set(shop.servers), url


def test_a_cluster_address_does_not_answer_outside(shop: Shop) -> None:
    made = shop.serve("inner")
    (inside, *_) = shop.callers()
    for address in made["spec"]["clusterIPs"]:
        url = f"http://{host(address)}/"
        assert inside.answers(url)
        assert not shop.cluster.outside().answers(url)


def test_a_host_port_answers_from_outside_and_from_the_other_node(shop: Shop) -> None:
    ports = [
        {"containerPort": PORT, "hostPort": 8089, "protocol": protocol}
        for protocol in ("TCP", "UDP")
    ]
    shop.cluster.create(shop.NAMESPACE, server_pod("door", "n1", ports=ports))
    shop.cluster.wait_ready(shop.NAMESPACE, "door")
    node, *_ = NODES
    for caller in (shop.cluster.outside(), shop.clients["n2"], shop.cluster.on_node("n2")):
        for address in (node.v4, node.v6):
            for url in (f"http://{host(address)}:8089/", f"udp://{host(address)}:8089"):
                shop.cluster.eventually(partial(caller.answers, url), url)
                assert caller.pods(url) == {"door"}
    shop.cluster.kubectl(shop.NAMESPACE, "delete", "pod", "door", "--now")


def test_affinity_holds_for_a_client_outside(shop: Shop) -> None:
    made = shop.serve("sticky-outside", type="NodePort", sessionAffinity="ClientIP")
    caller = shop.cluster.outside()
    for url in node_urls(made, NODES[0].v4):
        assert len(caller.pods(url, times=20)) == 1


def test_no_request_from_outside_fails_while_ten_servers_are_replaced(traffic: Traffic) -> None:
    outside = traffic.cluster.outside()
    nodes = [address for node in NODES for address in (node.v4, node.v6)]
    urls = [f"http://{host(address)}:{traffic.node_port}/" for address in nodes]
    nothing_failed(what_became_of({"outside": outside.load(*urls)}, traffic.roll), 1000)
