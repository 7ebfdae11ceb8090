# SPDX-License-Identifier: Apache-2.0
"""``k8s-pods``: the pods that run on this node, as the API server has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import IP
from tables.times import age

TABLE_NAME: Final = "k8s-pods"


class ContainerPort(msgspec.Struct, frozen=True, gc=False):
    port: int
    protocol: str = "TCP"
    name: str = ""
    # 0: the port is not opened on the node.
    host_port: int = 0
    # None: on every address of the node.
    host_ip: IP | None = None

    def __str__(self) -> str:
        return f"{self.port}/{self.protocol}"


#: Annotation of the object of a static pod.
MIRROR: Final = "kubernetes.io/config.mirror"


class Container(msgspec.Struct, frozen=True, gc=False):
    name: str
    ports: tuple[ContainerPort, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.ports))})" if self.ports else self.name


class Pod(msgspec.Struct, frozen=True, gc=False):
    namespace: str
    name: str
    uid: str = ""
    host_network: bool = False
    ips: tuple[IP, ...] = ()
    # Init containers come first, as they run first.
    containers: tuple[Container, ...] = ()
    # Pending, Running, Succeeded, Failed, Unknown, or empty when the node has not said.
    phase: str = ""
    ready: bool = False
    deleting: bool = False
    labels: Mapping[str, str] = {}
    annotations: Mapping[str, str] = {}
    service_account: str = ""
    # Seconds since the epoch; 0: unknown.
    created_at: float = 0.0

    @property
    def runtime_uid(self) -> str:
        """The uid that kubelet and the container runtime know the pod by. A static pod has one that
        is made of its file; its object is a mirror, and has another one.
        """
        return self.annotations.get(MIRROR, self.uid)


def pod_key(pod: Pod) -> str:
    return f"{pod.namespace}/{pod.name}"


NAME: Final = Index("name", key=pod_key, parse=str)

COLUMNS: Final = (
    Column("Name", pod_key),
    Column("HostNetwork", lambda pod: str(pod.host_network).lower()),
    Column("PodIPs", lambda pod: ", ".join(map(str, pod.ips))),
    Column("Containers", lambda pod: ", ".join(map(str, pod.containers))),
    Column("Phase", lambda pod: pod.phase),
    Column("Age", lambda pod: age(pod.created_at) if pod.created_at else ""),
)


def new_pods_table(db: DB) -> RWTable[Pod]:
    """Registers ``k8s-pods`` with the database."""
    return new_table(db, TABLE_NAME, NAME, columns=COLUMNS, row_type=Pod)
