# SPDX-License-Identifier: Apache-2.0
"""`netdevs`: the devices of the node in the map ``cilia_netdev``."""

from __future__ import annotations

from bpf.maps import netdev
from bpf.maps.raw import RawMap
from reconcilers.maps.entries import MapEntries
from tables.datapath.netdevs import Netdev

__all__ = ["netdev_operations"]


def netdev_operations(raw: RawMap) -> MapEntries[Netdev]:
    """Operations over the map, given as bytes."""
    return MapEntries(
        raw,
        key=lambda row: netdev.encode_key(row.index),
        value=_value,
        text=lambda key: f"device {netdev.decode_key(key)}",
    )


def _value(row: Netdev) -> bytes:
    ipv4 = row.ipv4.packed if row.ipv4 is not None else b""
    ipv6 = row.ipv6.packed if row.ipv6 is not None else b""
    return netdev.encode_value(netdev.NetdevValue(ipv4, ipv6))
