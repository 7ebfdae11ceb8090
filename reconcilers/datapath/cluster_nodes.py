# SPDX-License-Identifier: Apache-2.0
"""`cluster-nodes`: the addresses of nodes in the maps ``cilia_nodes4`` and ``cilia_nodes6``."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping

from bpf.errors import NotFound
from bpf.maps.cluster_nodes import ClusterNodeFlag, ClusterNodeMaps, encode_value
from statedb import ReadTxn
from tables.datapath.cluster_nodes import ClusterNode

__all__ = ["ClusterNodeOperations"]


class ClusterNodeOperations:
    """Operations with verification; see `reconcilers.operations`."""

    def __init__(self, maps: ClusterNodeMaps) -> None:
        self._maps = maps

    def update(self, txn: ReadTxn, revision: int, obj: ClusterNode) -> ClusterNode | None:
        key = obj.address.packed
        self._maps.of(key).update(key, _value(obj))
        return None

    def delete(self, txn: ReadTxn, revision: int, obj: ClusterNode) -> None:
        key = obj.address.packed
        try:
            self._maps.of(key).delete(key)
        except NotFound:
            return  # which is what was wanted

    def prune(self, txn: ReadTxn, objects: Iterable[ClusterNode]) -> None:
        keep = {obj.address.packed for obj in objects}
        for raw in self._maps:
            raw.delete_batch([key for key, _ in raw.items() if key not in keep])

    def actual(self) -> Mapping[bytes, bytes]:
        return dict(self._maps.items())

    def expected(
        self, txn: ReadTxn, objects: Iterable[ClusterNode]
    ) -> Iterable[tuple[bytes, bytes, ClusterNode]]:
        for obj in objects:
            yield obj.address.packed, _value(obj), obj

    def describe(self, key: bytes, value: bytes | None) -> tuple[str, str]:
        return f"node {ipaddress.ip_address(key)}", "" if value is None else value.hex()


def _value(obj: ClusterNode) -> bytes:
    return encode_value(ClusterNodeFlag.SELF if obj.is_self else ClusterNodeFlag.NONE)
