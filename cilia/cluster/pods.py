# SPDX-License-Identifier: Apache-2.0
"""Pods of this node into ``k8s-pods``."""

from __future__ import annotations

from collections.abc import Iterator

from cilia.cluster.batch import WAIT_S
from cilia.cluster.objects import ObjectReflector
from cilia.k8s import objects as k8s
from cilia.k8s.change_time import seconds
from cilia.k8s.watch import Source
from statedb import DB, RWTable
from tables.addressing import IP
from tables.cluster.pods import Container, ContainerPort, Pod
from tables.problems import Problem


def pod_reflector(
    source: Source,
    db: DB,
    pods: RWTable[Pod],
    node_name: str,
    problems: RWTable[Problem],
    *,
    wait_s: float = WAIT_S,
) -> ObjectReflector[k8s.Pod, Pod]:
    """A reflector of the pods that were given to this node."""

    def convert(obj: k8s.Pod) -> Pod | None:
        return convert_pod(obj) if obj.spec.node_name == node_name else None

    return ObjectReflector(source, k8s.Pod, db, pods, convert, problems, wait_s=wait_s)


def convert_pod(obj: k8s.Pod) -> Pod:
    meta, spec, status = obj.metadata, obj.spec, obj.status or k8s.PodStatus()
    return Pod(
        meta.namespace,
        meta.name,
        uid=meta.uid,
        host_network=spec.host_network,
        ips=tuple(_ips(status)),
        containers=tuple(
            Container(container.name, tuple(map(_port, container.ports or ())))
            for container in (*(spec.init_containers or ()), *(spec.containers or ()))
        ),
        phase=status.phase,
        ready=any(c.type == "Ready" and c.status == "True" for c in status.conditions or ()),
        deleting=meta.deletion_timestamp is not None,
        labels=meta.labels or {},
        annotations=meta.annotations or {},
        service_account=spec.service_account_name,
        created_at=seconds(meta.creation_timestamp or ""),
    )


def _ips(status: k8s.PodStatus) -> Iterator[IP]:
    texts = [item.ip for item in status.pod_ips or ()] or [status.pod_ip]
    return (IP.parse(text) for text in texts if text)


def _port(port: k8s.ContainerPort) -> ContainerPort:
    return ContainerPort(
        port.container_port,
        port.protocol,
        port.name,
        port.host_port,
        IP.parse(port.host_ip) if port.host_ip else None,
    )
