# SPDX-License-Identifier: Apache-2.0
"""The maps ``cilia_endpoints`` and ``cilia_lxc``: codec of ``bpf/lib/endpoint_types.h``."""

from __future__ import annotations

from typing import Final

import msgspec

from bpf.layout import header

#: By device, and by address.
NAME: Final = "cilia_endpoints"
BY_ADDRESS: Final = "cilia_lxc"
ENTRIES: Final = 65_535

_HEADER: Final = header("endpoint_types.h")
_KEY: Final = _HEADER.struct("endpoint_key")
KEY_BYTES: Final = _KEY.size
_VALUE: Final = _HEADER.struct("endpoint")
VALUE_BYTES: Final = _VALUE.size
_ADDRESS: Final = _HEADER.struct("endpoint_address")
ADDRESS_BYTES: Final = _ADDRESS.size
_PLACE: Final = _HEADER.struct("endpoint_place")
PLACE_BYTES: Final = _PLACE.size
#: Flag of an endpoint whose devices another plugin made.
CHAINED: Final = _HEADER.defines["ENDPOINT_CHAINED"]


class EndpointValue(msgspec.Struct, frozen=True):
    """A workload; addresses are packed and empty where there is none."""

    id: int
    identity: int
    ipv4: bytes = b""
    ipv6: bytes = b""
    mac: bytes = b""
    node_mac: bytes = b""
    flags: int = 0


def encode_key(ifindex: int) -> bytes:
    return _KEY.pack(ifindex)


def decode_key(raw: bytes) -> int:
    return int(_KEY.unpack(raw)[0])


def encode_value(value: EndpointValue) -> bytes:
    macs = (value.mac, value.node_mac)
    return _VALUE.pack(value.ipv6, value.ipv4, value.identity, value.id, *macs, value.flags)


def decode_value(raw: bytes) -> EndpointValue:
    ipv6, ipv4, identity, number, mac, node_mac, flags = _VALUE.unpack(raw)
    return EndpointValue(
        number,
        identity,
        ipv4 if any(ipv4) else b"",
        ipv6 if any(ipv6) else b"",
        mac,
        node_mac,
        flags,
    )


def encode_address(packed: bytes) -> bytes:
    """`packed`: 4 or 16 bytes."""
    return _ADDRESS.pack(packed.ljust(16, b"\0"), len(packed) == 16)


def decode_address(raw: bytes) -> bytes:
    address, v6 = _ADDRESS.unpack(raw)
    return bytes(address if v6 else address[:4])


class EndpointPlace(msgspec.Struct, frozen=True):
    """The place of a workload: index of the node's end of its pair, Ethernet addresses of both."""

    ifindex: int
    identity: int
    id: int
    mac: bytes
    node_mac: bytes


def encode_place(place: EndpointPlace) -> bytes:
    return _PLACE.pack(place.ifindex, place.identity, place.id, place.mac, place.node_mac)


def decode_place(raw: bytes) -> EndpointPlace:
    return EndpointPlace(*_PLACE.unpack(raw))
