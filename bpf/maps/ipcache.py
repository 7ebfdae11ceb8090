# SPDX-License-Identifier: Apache-2.0
"""The map ``cilia_ipcache``: codec of ``bpf/lib/ipcache_types.h``."""

from __future__ import annotations

from enum import IntFlag
from ipaddress import ip_address, ip_network
from typing import Final, NamedTuple

import msgspec

from bpf.layout import header

NAME: Final = "cilia_ipcache"
#: As in the field; there is no option for it.
ENTRIES: Final = 512_000

_HEADER: Final = header("ipcache_types.h")
_KEY: Final = _HEADER.struct("ipcache_key")
KEY_BYTES: Final = _KEY.size
_VALUE: Final = _HEADER.struct("ipcache_value")
VALUE_BYTES: Final = _VALUE.size

_STATIC_BITS: Final = _HEADER.defines["IPCACHE_STATIC_BITS"]
_FAMILY: Final = _HEADER.numbers("IPCACHE_FAMILY_")
_FLAG: Final = _HEADER.numbers("IPCACHE_FLAG_")


class IPCacheFlag(IntFlag):
    """``IPCACHE_FLAG_*``."""

    SKIPTUNNEL = _FLAG["SKIPTUNNEL"]
    HASTUNNEL = _FLAG["HASTUNNEL"]
    IPV6TUNNEL = _FLAG["IPV6TUNNEL"]
    REMOTECLUSTER = _FLAG["REMOTECLUSTER"]


class IPCacheKey(NamedTuple):
    """A prefix: its packed address, 4 or 16 bytes, its length, and its cluster (0: this one)."""

    address: bytes
    length: int
    cluster_id: int = 0

    def __str__(self) -> str:
        cluster = f"@{self.cluster_id}" if self.cluster_id else ""
        return f"{ip_network((self.address, self.length))}{cluster}"


class IPCacheValue(msgspec.Struct, frozen=True):
    """`tunnel`: the packed address of the node behind which the prefix is; empty: none."""

    identity: int
    tunnel: bytes = b""
    encrypt_key: int = 0
    flags: IPCacheFlag = IPCacheFlag(0)

    def __str__(self) -> str:
        """As people of the field know it."""
        tunnel = ip_address(self.tunnel) if self.tunnel else "0.0.0.0"
        flags = ",".join(flag.name.lower() for flag in self.flags if flag.name)
        return (
            f"identity={self.identity} encryptkey={self.encrypt_key}"
            f" tunnelendpoint={tunnel} flags={flags or '<none>'}"
        )


def encode_key(key: IPCacheKey) -> bytes:
    family = _FAMILY["IPV4" if len(key.address) == 4 else "IPV6"]
    bits = _STATIC_BITS + key.length
    return _KEY.pack(bits, key.cluster_id, family, key.address.ljust(16, b"\0"))


def decode_key(raw: bytes) -> IPCacheKey:
    bits, cluster_id, family, address = _KEY.unpack(raw)
    packed = address[:4] if family == _FAMILY["IPV4"] else address
    return IPCacheKey(bytes(packed), bits - _STATIC_BITS, cluster_id)


def encode_value(value: IPCacheValue) -> bytes:
    """Flags of the tunnel follow from its address."""
    flags = value.flags
    if value.tunnel:
        flags |= IPCacheFlag.HASTUNNEL
    if len(value.tunnel) == 16:
        flags |= IPCacheFlag.IPV6TUNNEL
    return _VALUE.pack(value.identity, value.tunnel.ljust(16, b"\0"), value.encrypt_key, flags)


def decode_value(raw: bytes) -> IPCacheValue:
    identity, tunnel, encrypt_key, number = _VALUE.unpack(raw)
    flags = IPCacheFlag(number)
    if IPCacheFlag.HASTUNNEL not in flags:
        tunnel = b""
    elif IPCacheFlag.IPV6TUNNEL not in flags:
        tunnel = tunnel[:4]
    return IPCacheValue(identity, bytes(tunnel), encrypt_key, flags)
