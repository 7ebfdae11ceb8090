# SPDX-License-Identifier: Apache-2.0
"""Endpoints to what is said of them, and objects to those that are to go: pure functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from cilia.endpoints.k8s_endpoints.controller import desired_of, leftovers
from cilia.endpoints.k8s_endpoints.objects import EndpointObjects, content_of, endpoint_form
from cilia.endpoints.k8s_endpoints.reflector import convert_endpoint
from cilia.k8s.crds import CiliumEndpoint
from cilia.k8s.object_files import ObjectFiles
from cilia.k8s.objects import InvalidObject, decode
from statedb import DB
from tables.addressing import IP
from tables.cluster.pods import Container, ContainerPort, Pod
from tables.endpoints.desired_k8s_endpoints import DesiredK8sEndpoint
from tables.endpoints.endpoints import Attachment, Endpoint, EndpointState
from tables.endpoints.k8s_endpoints import K8sEndpoint, new_k8s_endpoints_table

NODE = IP.parse("192.0.2.1")
OTHER_NODE = IP.parse("192.0.2.2")
POD = Pod(
    "test",
    "web",
    uid="u1",
    containers=(Container("main", (ContainerPort(80), ContainerPort(8080, "TCP", "http"))),),
)


def endpoint(number: int, **changes: Any) -> Endpoint:
    ep = Endpoint(
        id=number,
        attachment=Attachment("cilia", "c1", "eth0"),
        namespace="test",
        pod="web",
        pod_uid="u1",
        ipv4=IP.parse(f"10.1.0.{number}"),
        device=f"lxc{number}",
        node_mac=bytes(6),
        mac=bytes(6),
        created_at=float(number),
        state=EndpointState.READY,
        labels=("k8s:app=web",),
        identity=300,
    )
    return msgspec.structs.replace(ep, **changes)


def said(*endpoints: Endpoint, pod: Pod | None = POD) -> DesiredK8sEndpoint:
    (row,) = desired_of(endpoints, lambda ep: pod, NODE).values()
    return row


def found(row: DesiredK8sEndpoint, uid: str = "o1") -> K8sEndpoint:
    """The row of the object that a desired row makes."""
    form = endpoint_form(row)
    form["metadata"] |= {"uid": uid, "resourceVersion": "7"}
    obj = decode(form)
    assert isinstance(obj, CiliumEndpoint)
    return convert_endpoint(obj)


def test_an_object_is_as_the_field_has_it() -> None:
    row = said(endpoint(7, ipv6=IP.parse("fd00::7")))
    assert endpoint_form(row) == {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumEndpoint",
        "metadata": {
            "name": "web",
            "namespace": "test",
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "web", "uid": "u1"}],
        },
        "status": {
            "id": 7,
            "state": "ready",
            "identity": {"id": 300, "labels": ["k8s:app=web"]},
            "networking": {
                "addressing": [{"ipv4": "10.1.0.7", "ipv6": "fd00::7"}],
                "node": "192.0.2.1",
            },
            "external-identifiers": {
                "cni-attachment-id": "c1:eth0",
                "container-id": "c1",
                "k8s-namespace": "test",
                "k8s-pod-name": "web",
                "pod-name": "test/web",
            },
            "named-ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        },
    }


def test_what_is_read_back_is_what_was_written() -> None:
    row = said(endpoint(7))
    obj = found(row)
    assert (obj.identity, obj.node, obj.pod_uid) == (300, NODE, "u1")
    assert obj.addresses == (IP.parse("10.1.0.7"),)
    assert obj.content == content_of(row)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": 8},
        {"identity": 301},
        {"labels": ("k8s:app=db",)},
        {"ipv4": IP.parse("10.1.0.9")},
        {"pod_uid": "u2"},
        {"state": EndpointState.DISCONNECTED},
        {"attachment": Attachment("cilia", "c2", "eth0")},
    ],
)
def test_each_change_asks_for_a_write(changes: dict[str, Any]) -> None:
    assert content_of(said(endpoint(7, **changes))) != content_of(said(endpoint(7)))


@pytest.mark.parametrize(
    "state", [EndpointState.READY, EndpointState.REGENERATING, EndpointState.RESTORING]
)
def test_states_that_last_for_moments_ask_for_none(state: EndpointState) -> None:
    assert content_of(said(endpoint(7, state=state))) == content_of(said(endpoint(7)))


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": 0},
        {"pod": ""},
        {"state": EndpointState.WAITING_FOR_IDENTITY},
        {"state": EndpointState.WAITING_TO_REGENERATE},
        {"state": EndpointState.DISCONNECTING},
    ],
)
def test_nothing_is_said_of_an_endpoint_that_is_not_in_force(changes: dict[str, Any]) -> None:
    assert desired_of([endpoint(7, **changes)], lambda ep: POD, NODE) == {}


def test_of_two_containers_of_a_pod_the_newer_one_is_said() -> None:
    old = endpoint(9, created_at=1.0)
    new = endpoint(4, created_at=2.0, attachment=Attachment("cilia", "c2", "eth0"))
    assert said(old, new).endpoint_id == 4
    # The newer one is not in force yet: the older one is what there is.
    waiting = msgspec.structs.replace(new, identity=0)
    assert said(old, waiting).endpoint_id == 9


def test_all_interfaces_of_a_container_are_said() -> None:
    second = endpoint(8, attachment=Attachment("other", "c1", "net1"))
    row = said(second, endpoint(7))
    assert (row.endpoint_id, row.ifname) == (7, "eth0")
    assert found(row).addresses == (IP.parse("10.1.0.7"), IP.parse("10.1.0.8"))


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_a_pod_that_has_ended_is_not_known(phase: str) -> None:
    assert said(endpoint(7)).is_known
    assert not said(endpoint(7), pod=msgspec.structs.replace(POD, phase=phase)).is_known
    assert not said(endpoint(7), pod=None).is_known


def test_objects_without_an_endpoint_are_to_go() -> None:
    obj = found(said(endpoint(7)))
    ((name, row),) = leftovers([obj], [], {}).items()
    assert (name, row.gone_uid, row.node) == ("test/web", "o1", NODE)


@pytest.mark.parametrize("state", [EndpointState.WAITING_FOR_IDENTITY, EndpointState.READY])
def test_the_object_of_a_pod_stays_while_it_has_an_endpoint(state: EndpointState) -> None:
    """A new sandbox of the pod, which has no identity yet, will have the object."""
    obj = found(said(endpoint(7)))
    assert leftovers([obj], [endpoint(8, identity=0, state=state)], {}) == {}


def test_an_object_stays_while_an_endpoint_of_its_address_has_no_name() -> None:
    """Its file was lost: its pod is found by the address, once pods are read."""
    obj = found(said(endpoint(7)))
    assert leftovers([obj], [endpoint(7, pod="", pod_uid="", namespace="")], {}) == {}
    assert leftovers([obj], [endpoint(8, pod="", pod_uid="", namespace="")], {})


@pytest.mark.parametrize(
    ("now", "is_deleted"),
    [
        ({}, True),
        ({"version": "8"}, True),  # and the version that is known now is named
        ({"uid": "o2"}, False),
        ({"node": OTHER_NODE}, False),
    ],
)
def test_an_object_that_is_another_one_by_now_is_left(
    tmp_path: Path, now: dict[str, Any], *, is_deleted: bool
) -> None:
    """The row that says so is older than the object."""
    obj = found(said(endpoint(7)))
    (row,) = leftovers([obj], [], {}).values()
    db = DB()
    objects = new_k8s_endpoints_table(db)
    edge = EndpointObjects(objects, ObjectFiles(tmp_path))
    assert db.look(lambda txn: edge.work(txn, row)) is None, "it is gone"
    with db.write_txn(objects) as wtxn:
        objects.insert(wtxn, msgspec.structs.replace(obj, **now))
    assert (db.look(lambda txn: edge.work(txn, row)) is not None) is is_deleted


def test_an_identity_of_another_cluster_is_refused() -> None:
    with pytest.raises(InvalidObject, match="65536 is no identity of this cluster"):
        found(said(endpoint(7, identity=65_536)))


def test_the_objects_of_other_writers_are_read() -> None:
    form: Any = {
        "apiVersion": "cilium.io/v2",
        "kind": "CiliumEndpoint",
        "metadata": {"name": "web", "namespace": "test"},
        "status": {"encryption": {}, "health": {"bpf": "OK"}, "networking": {"addressing": [{}]}},
    }
    obj = decode(form)
    assert isinstance(obj, CiliumEndpoint)
    row = convert_endpoint(obj)
    assert (row.identity, row.addresses, row.node, row.pod_uid) == (0, (), None, "")
