# SPDX-License-Identifier: Apache-2.0
"""The map ``cilia_endpoints``: codec of ``bpf/lib/endpoint_types.h``."""

from __future__ import annotations

from typing import Final

import msgspec

from bpf.layout import header
from bpf.maps.fake import FakeMap

NAME: Final = "cilia_endpoints"
ENTRIES: Final = 65_535

_HEADER: Final = header("endpoint_types.h")
_KEY: Final = _HEADER.struct("endpoint_key")
KEY_BYTES: Final = _KEY.size
_VALUE: Final = _HEADER.struct("endpoint")
VALUE_BYTES: Final = _VALUE.size


class EndpointValue(msgspec.Struct, frozen=True):
    """A workload; addresses are packed and empty where there is none."""

    id: int
    identity: int
    ipv4: bytes = b""
    ipv6: bytes = b""
    mac: bytes = b""
    node_mac: bytes = b""


def encode_key(ifindex: int) -> bytes:
    return _KEY.pack(ifindex)


def decode_key(raw: bytes) -> int:
    return int(_KEY.unpack(raw)[0])


def encode_value(value: EndpointValue) -> bytes:
    return _VALUE.pack(value.ipv6, value.ipv4, value.identity, value.id, value.mac, value.node_mac)


def decode_value(raw: bytes) -> EndpointValue:
    ipv6, ipv4, identity, number, mac, node_mac = _VALUE.unpack(raw)
    return EndpointValue(
        number,
        identity,
        ipv4 if any(ipv4) else b"",
        ipv6 if any(ipv6) else b"",
        mac,
        node_mac,
    )


def fake() -> FakeMap:
    """Make the map in memory."""
    return FakeMap(NAME, KEY_BYTES, VALUE_BYTES, ENTRIES)
