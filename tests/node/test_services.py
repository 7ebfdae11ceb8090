# SPDX-License-Identifier: Apache-2.0
"""Services of every type, asked from pods and from nodes, over both families and protocols."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from .callers import Caller, NoAnswer
from .plan import NODES, Member
from .shop import Shop
from .workloads import PORT, server_pod, service


def urls(address: str, port: int = 80) -> list[str]:
    """The same place over TCP and UDP."""
    host = f"[{address}]" if ":" in address else address
    return [f"http://{host}:{port}/", f"udp://{host}:{port}"]


def all_answer(caller: Caller, urls: list[str]) -> set[str]:
    """Every address answers; the pods that did. Enough requests that each of four does:
    (3/4)^60 is one in thirty million."""
    return set.union(*(caller.pods(url, times=60) for url in urls))


def cluster_addresses(made: Any) -> list[str]:
    addresses: list[str] = made["spec"]["clusterIPs"]
    return addresses


def test_a_cluster_address_of_each_family_reaches_every_server(shop: Shop) -> None:
    addresses = cluster_addresses(shop.serve("plain"))
    assert len(addresses) == 2
    for caller in shop.callers():
        for address in addresses:
            for url in urls(address):
                assert caller.pods(url, times=60) == set(shop.servers), f"{caller.name}: {url}"


def test_a_pod_keeps_its_address_towards_the_server(shop: Shop) -> None:
    (address, _) = cluster_addresses(shop.serve("plain"))
    for node, caller in shop.clients.items():
        pod = shop.cluster.get(shop.NAMESPACE, "pod", f"client-{node}")
        (answer,) = caller.ask(f"http://{address}/")
        assert answer.client_address == pod["status"]["podIP"]
        assert answer.port == str(PORT)


def test_a_node_port_answers_at_every_address_of_the_own_node(shop: Shop) -> None:
    made = shop.serve("on-nodes", type="NodePort")
    ports = {port["protocol"]: port["nodePort"] for port in made["spec"]["ports"]}
    for node in NODES:
        for caller in (shop.clients[node.name], shop.cluster.on_node(node.name)):
            for address in (node.v4, node.v6):
                (tcp, _), (_, udp) = urls(address, ports["TCP"]), urls(address, ports["UDP"])
                assert all_answer(caller, [tcp, udp]) == set(shop.servers), caller.name


def test_a_load_balancers_address_answers_once_it_is_in_the_status(shop: Shop) -> None:
    shop.serve("balanced", type="LoadBalancer")
    (caller, *_) = shop.callers()
    address = "192.0.2.50"
    assert not caller.answers(f"http://{address}/")
    ingress = [{"ip": address}, {"ip": "2001:db8:2::50"}]
    path = f"/api/v1/namespaces/{shop.NAMESPACE}/services/balanced/status"
    shop.cluster.api.patch(path, {"status": {"loadBalancer": {"ingress": ingress}}})
    for caller in shop.callers():
        for entry in ingress:
            (url, _) = urls(entry["ip"])
            shop.cluster.eventually(partial(caller.answers, url), url)
            assert all_answer(caller, urls(entry["ip"])) == set(shop.servers), caller.name


def test_external_addresses_answer(shop: Shop) -> None:
    addresses = ["192.0.2.60", "2001:db8:2::60"]
    shop.serve("external", externalIPs=addresses)
    for caller in shop.callers():
        for address in addresses:
            assert all_answer(caller, urls(address)) == set(shop.servers), caller.name


def test_a_host_port_answers_on_its_node(shop: Shop) -> None:
    ports = [
        {"containerPort": PORT, "hostPort": 8088, "protocol": protocol}
        for protocol in ("TCP", "UDP")
    ]
    shop.cluster.create(shop.NAMESPACE, server_pod("hosted", "n1", ports=ports))
    shop.cluster.wait_ready(shop.NAMESPACE, "hosted")
    node, *_ = NODES
    for caller in (shop.clients["n1"], shop.cluster.on_node("n1")):
        for address in (node.v4, node.v6):
            for url in urls(address, 8088):
                shop.cluster.eventually(partial(caller.answers, url), url)
                assert caller.pods(url) == {"hosted"}
    shop.cluster.kubectl(shop.NAMESPACE, "delete", "pod", "hosted", "--now")
    local = f"http://{node.v4}:8088/"
    shop.cluster.eventually(lambda: not shop.clients["n1"].answers(local), "its end")


def test_affinity_sends_a_client_to_one_server(shop: Shop) -> None:
    (address, _) = cluster_addresses(shop.serve("sticky", sessionAffinity="ClientIP"))
    for caller in shop.callers():
        for url in urls(address):
            assert len(caller.pods(url, times=20)) == 1, f"{caller.name}: {url}"


def test_an_internal_local_policy_keeps_requests_on_the_node(shop: Shop) -> None:
    backends = {node: len(shop.on(node)) for node in shop.clients}
    (address, _) = cluster_addresses(shop.serve("near", backends, internalTrafficPolicy="Local"))
    for node, caller in shop.clients.items():
        for url in urls(address):
            assert caller.pods(url, times=40) == shop.on(node), f"{caller.name}: {url}"


def test_an_internal_local_policy_refuses_where_no_server_is(shop: Shop) -> None:
    cluster = shop.cluster
    cluster.create(shop.NAMESPACE, server_pod("lonely", "n1"))
    cluster.wait_ready(shop.NAMESPACE, "lonely")
    made = shop.serve(
        *("lonely", {"n1": 1, "n2": 0}),
        selector={"app": "lonely"},
        internalTrafficPolicy="Local",
    )
    url = f"http://{made['spec']['clusterIP']}/"
    assert shop.clients["n1"].pods(url) == {"lonely"}
    with pytest.raises(NoAnswer):
        shop.clients["n2"].ask(url)


def test_nodes_say_to_a_load_balancer_whether_they_have_a_server(shop: Shop) -> None:
    cluster = shop.cluster
    cluster.create(shop.NAMESPACE, server_pod("checked", "n2"))
    cluster.wait_ready(shop.NAMESPACE, "checked")
    local = {"type": "LoadBalancer", "externalTrafficPolicy": "Local"}
    cluster.create(shop.NAMESPACE, service("checked", **local))
    made = cluster.get(shop.NAMESPACE, "service", "checked")
    port = made["spec"]["healthCheckNodePort"]

    def said(node: Member) -> str:
        asked = ("-s", "-o/dev/null", "-w%{http_code}", f"http://{node.v4}:{port}/")
        return cluster.outside().run("curl", *asked)

    one, two = NODES
    cluster.eventually(lambda: said(two) == "200", "the node with the server")
    assert said(one) == "503"
