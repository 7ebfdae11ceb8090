# SPDX-License-Identifier: Apache-2.0
"""CiliumIdentity objects into ``k8s-identities``."""

from __future__ import annotations

from cilia.cluster.batch import WAIT_S
from cilia.cluster.objects import ObjectReflector
from cilia.k8s.change_time import seconds
from cilia.k8s.crds.identities import CiliumIdentity
from cilia.k8s.objects import InvalidObject
from cilia.k8s.watch import Source
from statedb import DB, RWTable
from tables.identity.identities import CLUSTER_MAX, CLUSTER_MIN, Identity, is_cluster_number
from tables.problems import Problem

__all__ = ["convert_identity", "identity_reflector"]


def identity_reflector(
    source: Source,
    db: DB,
    objects: RWTable[Identity],
    problems: RWTable[Problem],
    *,
    wait_s: float = WAIT_S,
) -> ObjectReflector[CiliumIdentity, Identity]:
    """A reflector of the identities that nodes agree on."""
    return ObjectReflector(
        source, CiliumIdentity, db, objects, convert_identity, problems, wait_s=wait_s
    )


def convert_identity(obj: CiliumIdentity) -> Identity:
    """Raises: InvalidObject for a name that is no number of this cluster."""
    name = obj.metadata.name
    number = int(name) if name.isdecimal() and len(name) < 9 else 0
    if not is_cluster_number(number) or name != str(number):
        raise InvalidObject(
            obj.KIND,
            "",
            name,
            [("metadata.name", f"{name!r} is no number from {CLUSTER_MIN} to {CLUSTER_MAX}")],
        )
    return Identity(
        number,
        obj.labels,
        created_at=seconds(obj.metadata.creation_timestamp or ""),
        is_marked=obj.is_marked,
    )
