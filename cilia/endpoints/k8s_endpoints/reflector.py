# SPDX-License-Identifier: Apache-2.0
"""CiliumEndpoint objects to rows of ``k8s-endpoints``."""

from __future__ import annotations

from functools import lru_cache
from sys import intern

from cilia.cluster.batch import WAIT_S
from cilia.cluster.objects import ObjectReflector
from cilia.k8s.change_time import seconds
from cilia.k8s.crds.endpoints import CiliumEndpoint
from cilia.k8s.objects import InvalidObject
from cilia.k8s.watch import Source
from statedb import DB, RWTable
from tables.addressing import IP
from tables.endpoints.k8s_endpoints import K8sEndpoint
from tables.identity.identities import RESERVED, is_cluster_number
from tables.problems import Problem

__all__ = ["convert_endpoint", "k8s_endpoint_reflector"]


def k8s_endpoint_reflector(
    source: Source,
    db: DB,
    objects: RWTable[K8sEndpoint],
    problems: RWTable[Problem],
    *,
    wait_s: float = WAIT_S,
) -> ObjectReflector[CiliumEndpoint, K8sEndpoint]:
    """A reflector of the endpoints of all nodes."""
    return ObjectReflector(
        source, CiliumEndpoint, db, objects, convert_endpoint, problems, wait_s=wait_s
    )


def convert_endpoint(obj: CiliumEndpoint) -> K8sEndpoint:
    """Raises: InvalidObject for an identity that is none of this cluster."""
    meta, status = obj.metadata, obj.status
    identity = status.identity.id if status is not None and status.identity is not None else 0
    if identity and not (is_cluster_number(identity) or identity in RESERVED):
        errors = [("status.identity.id", f"{identity} is no identity of this cluster")]
        raise InvalidObject(obj.KIND, meta.namespace, meta.name, errors)
    networking = status.networking if status is not None else None
    pairs = networking.addressing if networking is not None else ()
    node = networking.node if networking is not None else ""
    return K8sEndpoint(
        namespace=intern(meta.namespace),
        name=meta.name,
        uid=meta.uid,
        version=meta.resource_version,
        created_at=seconds(meta.creation_timestamp or ""),
        pod_uid=obj.pod_uid,
        identity=identity,
        addresses=tuple(IP.parse(text) for p in pairs for text in (p.ipv4, p.ipv6) if text),
        node=_node(node) if node else None,
        content=obj.content(),
    )


@lru_cache(maxsize=5000)
def _node(text: str) -> IP:
    """Return the address of a node, the same for all its pods."""
    return IP.parse(text)
