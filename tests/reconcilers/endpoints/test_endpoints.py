# SPDX-License-Identifier: Apache-2.0
"""Endpoints into the maps that programs know them by."""

from __future__ import annotations

import msgspec

from bpf.maps import endpoints as codec
from bpf.maps.fake import FakeMap
from reconcilers.endpoints.endpoints import EndpointOperations
from statedb import DB
from tables.addressing import IP
from tables.endpoints.endpoints import Attachment, Endpoint, EndpointState

EP = Endpoint(
    id=7,
    attachment=Attachment("cilia", "c", "eth0"),
    ipv4=IP.parse("10.207.0.7"),
    device="lxc7",
    index=70,
    node_mac=b"\2\0\0\0\0\1",
    mac=b"\2\0\0\0\0\2",
    created_at=1.0,
    state=EndpointState.WAITING_FOR_IDENTITY,
)


def test_an_endpoint_without_an_identity_is_in_no_map() -> None:
    """Programs drop what comes from a device that is in none."""
    devices = FakeMap("cilia_endpoints", codec.KEY_BYTES, codec.VALUE_BYTES)
    addresses = FakeMap("cilia_lxc", codec.ADDRESS_BYTES, codec.PLACE_BYTES)
    operations, txn = EndpointOperations(devices, addresses), DB().read_txn()
    operations.update(txn, 1, EP)
    assert (devices.count(), addresses.count()) == (0, 0)
    assert list(operations.expected(txn, [EP])) == []
    known = msgspec.structs.replace(EP, identity=300)
    operations.update(txn, 2, known)
    value = devices.lookup(codec.encode_key(70))
    assert value is not None
    assert codec.decode_value(value).identity == 300
    operations.prune(txn, [known])
    assert (devices.count(), addresses.count()) == (1, 1)
    operations.delete(txn, 3, known)
    assert (devices.count(), addresses.count()) == (0, 0)
