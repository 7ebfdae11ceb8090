# SPDX-License-Identifier: Apache-2.0
"""Our kinds at a real API server: what it accepts the agent reads, and nothing is pruned."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import ValidationError

from cilia.cluster.access_options import open_writing_client
from cilia.k8s.crds import CiliumLocalRedirectPolicy
from cilia.operator.config import OperatorConfig
from cilia.operator.crds import register

from .apiserver import ApiServer

FRONTENDS: list[tuple[Any, bool]] = [
    ({"serviceMatcher": {"serviceName": "dns", "namespace": "kube-system"}}, True),
    ({"addressMatcher": {"ip": "169.254.169.254", "toPorts": []}}, True),
    ({"addressMatcher": {"ip": "fd00::1", "toPorts": [{"port": "1", "protocol": "TCP"}]}}, True),
    ({}, False),
    ({"addressMatcher": {"toPorts": []}}, False),
    ({"addressMatcher": {"ip": "not an address", "toPorts": []}}, False),
    ({"serviceMatcher": {"serviceName": "Dns", "namespace": "kube-system"}}, False),
    ({"serviceMatcher": {"serviceName": "dns"}}, False),
]
PORTS: list[tuple[Any, bool]] = [
    ({"port": "53", "protocol": "UDP"}, True),
    ({"port": "65535", "protocol": "TCP", "name": "a-1"}, True),
    ({"port": "0", "protocol": "UDP"}, False),
    ({"port": "65536", "protocol": "UDP"}, False),
    ({"port": 53, "protocol": "UDP"}, False),
    ({"port": "53", "protocol": "ICMP"}, False),
    ({"port": "53"}, False),
    ({"port": "53", "protocol": "UDP", "name": "123"}, False),
    ({"port": "53", "protocol": "UDP", "name": "a-name-of-16-char"}, False),
]


@pytest.fixture(scope="module", autouse=True)
def _registered(api_server: ApiServer) -> None:
    async def once() -> None:
        config = OperatorConfig(k8s_kubeconfig_path=api_server.kubeconfig)
        async with open_writing_client(config) as client:
            await register(client)

    asyncio.run(once())


def policy(name: str, frontend: Any, port: Any) -> dict[str, Any]:
    backend = {"localEndpointSelector": {"matchLabels": {"app": "dns"}}, "toPorts": [port]}
    return {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumLocalRedirectPolicy",
        "metadata": {"name": name},
        "spec": {"redirectFrontend": frontend, "redirectBackend": backend},
    }


CASES = [(frontend, PORTS[0][0], good) for frontend, good in FRONTENDS]
CASES += [(FRONTENDS[0][0], port, good) for port, good in PORTS]


@pytest.mark.parametrize(("frontend", "port", "good"), CASES)
def test_the_server_and_the_agent_agree_on_what_is_right(
    api_server: ApiServer, namespace: str, frontend: Any, port: Any, good: bool
) -> None:
    form = policy("p", frontend, port)
    path = f"/apis/cilium.io/v2/namespaces/{namespace}/ciliumlocalredirectpolicies"
    status, body = api_server.request("POST", path, form)
    assert (status == 201) is good, body
    if good:
        read = CiliumLocalRedirectPolicy.model_validate_json(body)
        assert read.spec.redirect_backend.to_ports[0].port == port["port"]
    else:
        with pytest.raises(ValidationError):
            CiliumLocalRedirectPolicy.model_validate(form)


def test_unknown_fields_come_to_the_agent_and_are_named(
    api_server: ApiServer, namespace: str
) -> None:
    form = policy("p", {"serviceMatcher": {"serviceName": "d", "namespace": "n"}}, PORTS[0][0])
    form["spec"]["redirectBackend"]["weigth"] = 5
    path = f"/apis/cilium.io/v2/namespaces/{namespace}/ciliumlocalredirectpolicies"
    stored = api_server.post(path, form)
    assert CiliumLocalRedirectPolicy.model_validate(stored).unknown_fields() == [
        "spec.redirectBackend.weigth"
    ]


def test_what_would_not_come_to_the_agent_is_refused_by_strict_clients(
    api_server: ApiServer, namespace: str
) -> None:
    """What stands beside the spec is pruned; kubectl asks to be told, and others may."""
    form = policy("p", {"serviceMatcher": {"serviceName": "d", "namespace": "n"}}, PORTS[0][0])
    form["specc"], form["metadata"]["label"] = {"a": "b"}, {"c": "d"}
    path = f"/apis/cilium.io/v2/namespaces/{namespace}/ciliumlocalredirectpolicies"
    status, body = api_server.request("POST", f"{path}?fieldValidation=Strict", form)
    assert status == 400
    assert b'unknown field \\"specc\\"' in body and b'unknown field \\"metadata.label\\"' in body


def test_where_a_policy_sends_traffic_is_not_changed_under_it(
    api_server: ApiServer, namespace: str
) -> None:
    form = policy("p", {"serviceMatcher": {"serviceName": "d", "namespace": "n"}}, PORTS[0][0])
    path = f"/apis/cilium.io/v2/namespaces/{namespace}/ciliumlocalredirectpolicies"
    api_server.post(path, form)
    change = {"spec": {"redirectBackend": {"toPorts": [{"port": "54", "protocol": "UDP"}]}}}
    status, body = api_server.request("PATCH", f"{path}/p", change)
    assert status == 422 and b"make a new policy" in body
    assert api_server.patch(f"{path}/p", {"spec": {"description": "why"}})["spec"]["description"]


def test_node_configs_need_their_selector(api_server: ApiServer, namespace: str) -> None:
    path = f"/apis/cilium.io/v2/namespaces/{namespace}/ciliumnodeconfigs"
    form: dict[str, Any] = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumNodeConfig",
        "metadata": {"name": "c"},
        "spec": {"defaults": {"enable-ipv6": "false"}},
    }
    assert api_server.request("POST", path, form)[0] == 422
    form["spec"]["nodeSelector"] = {"matchLabels": {"a": "b"}}
    assert api_server.post(path, form)["spec"]["defaults"] == {"enable-ipv6": "false"}
    form["metadata"]["name"], form["spec"]["defaults"] = "d", {"enable-ipv6": False}
    assert api_server.request("POST", path, form)[0] == 422, "options are texts, as in a ConfigMap"


def test_large_objects_are_written_whole(api_server: ApiServer, namespace: str) -> None:
    form = {"metadata": {"name": "large"}, "data": {"text": "0123456789abcdef" * 50_000}}

    async def write() -> None:
        config = OperatorConfig(k8s_kubeconfig_path=api_server.kubeconfig)
        async with open_writing_client(config) as client:
            await client.create(f"/api/v1/namespaces/{namespace}/configmaps/large", form)

    asyncio.run(write())
    read = api_server.get(f"/api/v1/namespaces/{namespace}/configmaps/large")
    assert read["data"] == form["data"]
