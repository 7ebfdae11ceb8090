# SPDX-License-Identifier: Apache-2.0
"""Which pod a request is for."""

from __future__ import annotations

import msgspec
import pytest

from cilia.endpoints.cni.errors import CNIError
from cilia.endpoints.cni.network_config import NetworkConfig
from cilia.endpoints.cni.requests import Command, Request
from cilia.endpoints.inputs import Inputs
from statedb import DB
from tables.cluster.namespaces import new_namespaces_table
from tables.cluster.nodes import new_nodes_table
from tables.cluster.pods import MIRROR, Pod, new_pods_table
from tables.endpoints.endpoints import new_endpoints_table
from tables.identity.identities import new_identities_table

CONFIG = {"cniVersion": "1.0.0", "name": "cilia", "type": "cilia-cni"}
ORDINARY = Pod("test", "one", "u1")
STATIC = Pod("kube-system", "etcd-n1", "of-the-mirror", annotations={MIRROR: "of-the-file"})


def request(pod: Pod, uid: str) -> Request:
    args = {"K8S_POD_NAMESPACE": pod.namespace, "K8S_POD_NAME": pod.name, "K8S_POD_UID": uid}
    return Request(
        command=Command.ADD,
        container_id="c",
        ifname="eth0",
        netns="",
        netns_fd=None,
        args=args,
        environment={},
        config=NetworkConfig.model_validate(CONFIG),
        raw_config=b"",
        prev_result=None,
    )


@pytest.mark.parametrize(
    ("pod", "uid"),
    [(ORDINARY, "u1"), (ORDINARY, ""), (STATIC, "of-the-file"), (STATIC, "of-the-mirror")],
)
async def test_a_request_finds_its_pod(pod: Pod, uid: str) -> None:
    assert await inputs().pod(request(pod, uid)) == pod


@pytest.mark.parametrize("pod", [ORDINARY, STATIC])
async def test_a_later_pod_of_the_name_is_another_one(pod: Pod) -> None:
    with pytest.raises(CNIError, match="with uid of-another is not known"):
        await inputs().pod(request(pod, "of-another"))


async def test_a_container_that_podman_names_is_no_pod() -> None:
    """podman gives its container's name as that of a pod, and no namespace."""
    asked = msgspec.structs.replace(request(ORDINARY, ""), args={"K8S_POD_NAME": "web", "A": "1"})
    assert await inputs().pod(asked) is None
    assert Inputs.container_labels(asked) == ("cni:A=1", "cni:io.cilium.k8s.policy.cluster=default")


def inputs() -> Inputs:
    db = DB()
    pods = new_pods_table(db)
    with db.write_txn(pods) as wtxn:
        pods.insert_many(wtxn, [ORDINARY, STATIC])
    return Inputs(
        db,
        pods,
        new_namespaces_table(db),
        new_nodes_table(db),
        new_endpoints_table(db),
        new_identities_table(db),
    )
