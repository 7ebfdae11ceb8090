# SPDX-License-Identifier: Apache-2.0
"""The map ``cilia_netdev``: codec of ``bpf/lib/netdev_types.h``."""

from __future__ import annotations

from typing import Final

import msgspec

from bpf.layout import header

NAME: Final = "cilia_netdev"

_HEADER: Final = header("netdev_types.h")
_KEY: Final = _HEADER.struct("netdev_key")
KEY_BYTES: Final = _KEY.size
_VALUE: Final = _HEADER.struct("netdev")
VALUE_BYTES: Final = _VALUE.size


class NetdevValue(msgspec.Struct, frozen=True):
    """Packed addresses that translated packets leave a device with; empty: none."""

    ipv4: bytes = b""
    ipv6: bytes = b""


def encode_key(ifindex: int) -> bytes:
    return _KEY.pack(ifindex)


def decode_key(raw: bytes) -> int:
    return int(_KEY.unpack(raw)[0])


def encode_value(value: NetdevValue) -> bytes:
    return _VALUE.pack(value.ipv6, value.ipv4)


def decode_value(raw: bytes) -> NetdevValue:
    ipv6, ipv4 = _VALUE.unpack(raw)
    return NetdevValue(ipv4 if any(ipv4) else b"", ipv6 if any(ipv6) else b"")
