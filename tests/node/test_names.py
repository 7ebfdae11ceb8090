# SPDX-License-Identifier: Apache-2.0
"""The cluster's names: CoreDNS behind a Service, asked by pods as their resolv.conf says."""

from __future__ import annotations

from .plan import DNS_ADDRESS
from .shop import Shop
from .workloads import service


def known_to_every_server_of_names(shop: Shop, url: str) -> None:
    """Each of the two learns a name by itself, and keeps for seconds that it is not known."""
    caller = shop.clients["n1"]
    shop.cluster.eventually(lambda: caller.answers(url, times=20), url)


def test_a_pod_finds_a_service_by_its_name(shop: Shop) -> None:
    shop.serve("named")
    for caller in shop.clients.values():
        for zone in ("", f".{shop.NAMESPACE}", f".{shop.NAMESPACE}.svc.cluster.local"):
            assert caller.pods(f"http://named{zone}/", times=4) <= set(shop.servers)
    show = 'while read -r line; do echo "$line"; done </etc/resolv.conf'
    asked = ("exec", "client-n1", "--", "/bin/sh", "-c", show)
    resolver = shop.cluster.kubectl(shop.NAMESPACE, *asked)
    assert f"nameserver {DNS_ADDRESS}" in resolver


def test_a_headless_service_is_its_servers(shop: Shop) -> None:
    shop.cluster.create(shop.NAMESPACE, service("headless", app="web", clusterIP="None"))
    url = "http://headless:8080/"
    caller = shop.clients["n1"]
    known_to_every_server_of_names(shop, url)
    assert caller.pods(url, times=4) <= set(shop.servers)
    for agent in shop.cluster.agents.values():
        assert agent.frontends(shop.NAMESPACE, "headless") == []


def test_an_external_name_leads_to_what_it_says(shop: Shop) -> None:
    shop.serve("target")
    elsewhere = f"target.{shop.NAMESPACE}.svc.cluster.local"
    alias = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "alias"},
        "spec": {"type": "ExternalName", "externalName": elsewhere},
    }
    shop.cluster.create(shop.NAMESPACE, alias)
    caller = shop.clients["n2"]
    known_to_every_server_of_names(shop, "http://alias/")
    assert caller.pods("http://alias/", times=4) <= set(shop.servers)
