# SPDX-License-Identifier: Apache-2.0
"""`endpoints`: the workloads of this node in the maps ``cilia_endpoints`` and ``cilia_lxc``.

A workload may send only while its addresses are known: what it sends to the world would else leave
with them. So its device is written last and deleted first. While it has no identity it is in no
map, and cannot send.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any

from bpf.errors import NotFound
from bpf.maps import endpoints as codec
from bpf.maps.raw import RawMap
from statedb import ReadTxn
from tables.endpoints.endpoints import Endpoint

__all__ = ["EndpointOperations"]

Entry = tuple[RawMap, bytes, bytes]


class EndpointOperations:
    """Operations with verification; see `reconcilers.operations`."""

    def __init__(self, devices: RawMap, addresses: RawMap) -> None:
        self._devices = devices
        self._addresses = addresses

    def _entries(self, ep: Endpoint) -> Iterator[Entry]:
        if not ep.identity:
            return
        place = codec.encode_place(
            codec.EndpointPlace(ep.index, ep.identity, ep.id, ep.mac, ep.node_mac)
        )
        for ip in ep.addresses:
            yield self._addresses, codec.encode_address(ip.packed), place
        yield self._devices, codec.encode_key(ep.index), _value(ep)

    def update(self, txn: ReadTxn, revision: int, obj: Endpoint) -> None:
        for raw, key, value in self._entries(obj):
            raw.update(key, value)

    def differences(self, ep: Endpoint) -> Iterator[str]:
        """Yield what the maps lack of an endpoint, or have otherwise; a sentence each."""
        for raw, key, value in self._entries(ep):
            found = raw.lookup(key)
            if found != value:
                what, _ = self.describe((raw.name, key), None)
                yield f"{raw.name} has {'no' if found is None else 'another'} entry of {what}"

    def delete(self, txn: ReadTxn, revision: int, obj: Endpoint) -> None:
        for raw, key, _ in reversed(list(self._entries(obj))):
            try:
                raw.delete(key)
            except NotFound:
                continue  # which is what was wanted

    def prune(self, txn: ReadTxn, objects: Iterable[Endpoint]) -> None:
        keep = {(raw.name, key) for obj in objects for raw, key, _ in self._entries(obj)}
        for raw in (self._devices, self._addresses):
            raw.delete_batch([key for key, _ in raw.items() if (raw.name, key) not in keep])

    def actual(self) -> Mapping[Hashable, Any]:
        return {
            (raw.name, key): value
            for raw in (self._devices, self._addresses)
            for key, value in raw.items()
        }

    def expected(
        self, txn: ReadTxn, objects: Iterable[Endpoint]
    ) -> Iterable[tuple[Hashable, Any, Endpoint]]:
        for obj in objects:
            for raw, key, value in self._entries(obj):
                yield (raw.name, key), value, obj

    def describe(self, key: Hashable, value: Any | None) -> tuple[str, str]:
        assert isinstance(key, tuple)
        name, raw = key
        if name == self._devices.name:
            what = f"device {codec.decode_key(raw)}"
        else:
            what = f"address {ipaddress.ip_address(codec.decode_address(raw))}"
        return what, "" if value is None else value.hex()


def _value(ep: Endpoint) -> bytes:
    return codec.encode_value(
        codec.EndpointValue(
            ep.id,
            ep.identity,
            ep.ipv4.packed if ep.ipv4 is not None else b"",
            ep.ipv6.packed if ep.ipv6 is not None else b"",
            ep.mac,
            ep.node_mac,
            codec.CHAINED if ep.is_chained else 0,
        )
    )
