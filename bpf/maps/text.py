# SPDX-License-Identifier: Apache-2.0
"""Addresses and protocols of map entries as people read them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final, Literal

#: Protocols that services have, by their number of IP; importing `socket` for it would take 2 ms.
PROTOCOL_NAMES: Final[dict[int, Literal["TCP", "UDP", "SCTP"]]] = {6: "TCP", 17: "UDP", 132: "SCTP"}
_ALL_NAMES: Final[dict[int, str]] = {**PROTOCOL_NAMES, 1: "ICMP", 58: "ICMPv6"}


def protocol_name(number: int) -> str:
    """The name of a protocol of IP, or its number."""
    return _ALL_NAMES.get(number, str(number))


def endpoint_text(address: bytes, port: int) -> str:
    """``10.0.0.1:80`` or ``[fd00::1]:80``; ``address`` is 4 or 16 packed bytes."""
    ip = ip_address(address)
    return f"{ip}:{port}" if ip.version == 4 else f"[{ip}]:{port}"
