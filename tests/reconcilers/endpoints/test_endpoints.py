# SPDX-License-Identifier: Apache-2.0
"""Endpoints into the maps that programs know them by, and in which order."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from bpf.maps import endpoints as codec
from bpf.maps.fake import FakeMap
from reconcilers.endpoints.endpoints import EndpointOperations
from statedb import DB
from tables.addressing import IP
from tables.endpoints.endpoints import Attachment, Endpoint, EndpointState

EP = Endpoint(
    id=7,
    attachment=Attachment("cilia", "container", "eth0"),
    device="lxc1",
    index=5,
    mac=bytes(6),
    node_mac=bytes(6),
    ipv4=IP.parse("10.207.0.10"),
    ipv6=IP.parse("fd00:207::a"),
    identity=300,
    state=EndpointState.READY,
    created_at=0.0,
)


class Recorded(FakeMap):
    """Notes after each change whether a device may send of which an address is not known."""

    def __init__(self, name: str, key: int, value: int, wrong: list[str]) -> None:
        super().__init__(name, key, value)
        self.others: list[FakeMap] = []
        self.wrong = wrong

    def _look(self, what: str) -> None:
        devices, addresses = self.others
        if devices.count() and addresses.count() < len(EP.addresses):
            self.wrong.append(what)

    def update(self, key: bytes, value: bytes, flags: int = 0) -> None:
        super().update(key, value, flags)
        self._look(f"update {self.name}")

    def delete(self, key: bytes) -> None:
        super().delete(key)
        self._look(f"delete {self.name}")

    def delete_batch(self, keys: Sequence[bytes]) -> None:
        for key in keys:
            self.delete(key)


def test_a_device_sends_only_while_all_its_addresses_are_known() -> None:
    """Its packets to the world would leave with an address that nobody takes for a workload's."""
    wrong: list[str] = []
    devices = Recorded(codec.NAME, codec.KEY_BYTES, codec.VALUE_BYTES, wrong)
    addresses = Recorded(codec.BY_ADDRESS, codec.ADDRESS_BYTES, codec.PLACE_BYTES, wrong)
    for raw in (devices, addresses):
        raw.others = [devices, addresses]
    operations, txn = EndpointOperations(devices, addresses), DB().read_txn()
    operations.update(txn, 1, EP)
    assert (devices.count(), addresses.count()) == (1, 2)
    operations.delete(txn, 2, EP)
    assert (devices.count(), addresses.count()) == (0, 0)
    operations.update(txn, 3, EP)
    operations.prune(txn, [])
    assert (devices.count(), addresses.count()) == (0, 0)
    assert wrong == []


def test_an_endpoint_without_an_identity_is_in_no_map() -> None:
    """Programs drop what comes from a device that is in none."""
    devices = FakeMap("cilia_endpoints", codec.KEY_BYTES, codec.VALUE_BYTES)
    addresses = FakeMap("cilia_lxc", codec.ADDRESS_BYTES, codec.PLACE_BYTES)
    unknown = msgspec.structs.replace(EP, identity=0)
    operations, txn = EndpointOperations(devices, addresses), DB().read_txn()
    operations.update(txn, 1, unknown)
    assert (devices.count(), addresses.count()) == (0, 0)
    assert list(operations.expected(txn, [unknown])) == []
    operations.update(txn, 2, EP)
    value = devices.lookup(codec.encode_key(5))
    assert value is not None
    assert codec.decode_value(value).identity == 300
    operations.prune(txn, [EP])
    assert (devices.count(), addresses.count()) == (1, 2)
    operations.delete(txn, 3, EP)
    assert (devices.count(), addresses.count()) == (0, 0)
