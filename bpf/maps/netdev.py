# SPDX-License-Identifier: Apache-2.0
"""The map ``cilia_netdev``: codec of ``bpf/lib/netdev_types.h``."""

from __future__ import annotations

from struct import Struct
from typing import Final

import msgspec

NAME: Final = "cilia_netdev"
KEY_BYTES: Final = 4

_VALUE: Final = Struct("=16s4s4x")
VALUE_BYTES: Final = _VALUE.size


class NetdevValue(msgspec.Struct, frozen=True):
    """Packed addresses that translated packets leave a device with; empty: none."""

    ipv4: bytes = b""
    ipv6: bytes = b""


def encode_key(ifindex: int) -> bytes:
    return ifindex.to_bytes(KEY_BYTES, "little")


def decode_key(raw: bytes) -> int:
    return int.from_bytes(raw, "little")


def encode_value(value: NetdevValue) -> bytes:
    return _VALUE.pack(value.ipv6, value.ipv4)


def decode_value(raw: bytes) -> NetdevValue:
    ipv6, ipv4 = _VALUE.unpack(raw)
    return NetdevValue(ipv4 if any(ipv4) else b"", ipv6 if any(ipv6) else b"")
