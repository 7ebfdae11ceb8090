# SPDX-License-Identifier: Apache-2.0
"""Traffic policies and source ranges as clients of a real agent meet them, as packets and at
sockets.
"""

from __future__ import annotations

from collections.abc import Iterator
from errno import errorcode

import pytest

from tests.e2e.nodes import client_address, node_address, pod_address
from tests.e2e.passes import (
    CLIENT_POD,
    DROPPED,
    FAMILIES,
    KINDS,
    SILENCE_S,
    Asked,
    Service,
    asked_world,
    backends,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]

POLICY = Service("policy", 4)
BOTH = {family: [*backends(1)[family], *backends(2)[family]] for family in FAMILIES}
OUTSIDE, POD = "outside", "pod packets"
#: Family, and what was met there.
Met = tuple[int, str]
REFUSED = {(family, "ECONNREFUSED") for family in FAMILIES}


@pytest.fixture(scope="module")
def w(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with asked_world(tmp_path_factory.mktemp("policies"), "policies") as made:
        made.running()
        yield made


def serve(w: Asked, of_family: dict[int, list[str]], *fields: str, annotation: str = "") -> None:
    """The Service with more fields in its spec, in force."""
    text = POLICY.manifest(of_family)
    text = text.replace("spec:\n", "".join(["spec:\n", *(f"  {field}\n" for field in fields)]), 1)
    text = text.replace("namespace: test}", f"namespace: test, annotations: {{{annotation}}}}}", 1)
    for node in (1, 2):
        for family in FAMILIES:
            endpoint = f'- addresses: ["{pod_address(node, family)}"]'
            text = text.replace(endpoint, f"{endpoint}\n    nodeName: node{node}")
    w.write("policy.yaml", text)


def becomes(w: Asked, expected: set[Met], client: str, kind: str, tries: int = 1) -> None:
    """Wait until all protocols and families of a client meet this, of so many tries each."""
    found: set[Met] = set()

    def met() -> bool:
        found.clear()
        found.update(everywhere(w, client, kind, tries))
        return found == expected

    try:
        w.eventually(met, 10)
    except AssertionError:
        assert found == expected
        raise


def asked(w: Asked, client: str, kind: str, family: int, proto: str) -> str:
    """«server saw source», or why there was no answer."""
    address, port = POLICY.frontend(kind, family)
    try:
        name, source, _ = w.clients()[client](address, port, KINDS[proto], SILENCE_S)
    except TimeoutError:
        return DROPPED
    except OSError as error:
        if "timed out" in str(error):  # a helper inside tells of it so
            return DROPPED
        return errorcode.get(error.errno or 0, str(error))
    return f"{name} saw {source}"


def everywhere(w: Asked, client: str, kind: str, tries: int = 1) -> set[Met]:
    """What all protocols and families get."""
    return {
        (family, asked(w, client, kind, family, proto))
        for family in FAMILIES
        for proto in KINDS
        for _ in range(tries)
    }


def test_external_policy_local_keeps_clients_at_their_node_and_their_addresses(w: Asked) -> None:
    serve(w, BOTH, "externalTrafficPolicy: Local", "healthCheckNodePort: 31999")
    own = {(family, f"local saw {client_address(family)}") for family in FAMILIES}
    for kind in ("NodePort", "LoadBalancer", "ExternalIP"):
        becomes(w, own, OUTSIDE, kind, 4)
    # From the cluster a load balancer's address leads to all backends.
    source = {family: pod_address(CLIENT_POD, family) for family in FAMILIES}
    both = {(f, f"{server} saw {source[f]}") for f in FAMILIES for server in ("local", "remote")}
    becomes(w, both, POD, "LoadBalancer", 12)

    serve(w, backends(2), "externalTrafficPolicy: Local", "healthCheckNodePort: 31999")
    becomes(w, REFUSED, OUTSIDE, "NodePort")


def test_policy_cluster_leads_to_all_and_hides_clients_of_remote_backends(w: Asked) -> None:
    serve(w, BOTH)
    local = {(family, f"local saw {client_address(family)}") for family in FAMILIES}
    remote = {(family, f"remote saw {node_address(1, family)}") for family in FAMILIES}
    becomes(w, local | remote, OUTSIDE, "NodePort", 12)


def test_internal_policy_local_keeps_pods_at_their_node(w: Asked) -> None:
    serve(w, BOTH, "internalTrafficPolicy: Local")
    source = {family: pod_address(CLIENT_POD, family) for family in FAMILIES}
    own = {(family, f"local saw {source[family]}") for family in FAMILIES}
    for client in (POD, "pod sockets"):
        becomes(w, own, client, "ClusterIP", 6)
    serve(w, backends(2), "internalTrafficPolicy: Local")
    for client in (POD, "pod sockets"):
        becomes(w, REFUSED, client, "ClusterIP")


@pytest.mark.parametrize("policy", ["allow", "deny"])
@pytest.mark.parametrize("named", ["clients", "strangers"])
def test_source_ranges_choose_who_may_use_a_load_balancer(
    w: Asked, policy: str, named: str
) -> None:
    ranges = {
        "clients": f'["{client_address(4)}/32", "{client_address(6)}/128"]',
        "strangers": '["203.0.113.0/24", "2001:db8:99::/48"]',
    }
    serve(
        w,
        backends(1),
        f"loadBalancerSourceRanges: {ranges[named]}",
        annotation=f"service.cilium.io/src-ranges-policy: {policy}",
    )
    allowed = {(family, f"local saw {client_address(family)}") for family in FAMILIES}
    silence = {(family, DROPPED) for family in FAMILIES}
    let_in = (named == "clients") == (policy == "allow")
    becomes(w, allowed if let_in else silence, OUTSIDE, "LoadBalancer")
    # They are for the load balancer's address alone.
    assert everywhere(w, OUTSIDE, "NodePort") == allowed


HOST = "host sockets"


@pytest.mark.parametrize("policy", ["allow", "deny"])
@pytest.mark.parametrize("named", ["pod", "node"])
def test_source_ranges_hold_for_pods_and_the_node(w: Asked, policy: str, named: str) -> None:
    address = {"pod": lambda f: pod_address(CLIENT_POD, f), "node": lambda f: node_address(1, f)}
    ranges = f'["{address[named](4)}/32", "{address[named](6)}/128"]'
    serve(
        w,
        backends(1),
        f"loadBalancerSourceRanges: {ranges}",
        annotation=f"service.cilium.io/src-ranges-policy: {policy}",
    )
    of_pod = {(family, f"local saw {pod_address(CLIENT_POD, family)}") for family in FAMILIES}
    silence = {(family, DROPPED) for family in FAMILIES}
    # Who is kept out shows that the ranges are in force.
    if (named == "pod") is (policy == "allow"):
        becomes(w, REFUSED, HOST, "LoadBalancer")
        assert everywhere(w, POD, "LoadBalancer") == of_pod
        assert everywhere(w, "pod sockets", "LoadBalancer") == of_pod
    else:
        becomes(w, silence, POD, "LoadBalancer")
        assert everywhere(w, "pod sockets", "LoadBalancer") == silence
        answers = {answer for _, answer in everywhere(w, HOST, "LoadBalancer")}
        assert {answer.split()[0] for answer in answers} == {"local"}
    # They are for the load balancer's address alone.
    assert everywhere(w, POD, "NodePort") == of_pod
