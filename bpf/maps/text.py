# SPDX-License-Identifier: Apache-2.0
"""Addresses and protocols of map entries as people read them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import Final

#: Protocols that services have, by their number.
PROTOCOL_NAMES: Final = {6: "TCP", 17: "UDP", 132: "SCTP"}


def endpoint_text(address: bytes, port: int) -> str:
    """``10.0.0.1:80`` or ``[fd00::1]:80``; ``address`` is 4 or 16 packed bytes."""
    ip = ip_address(address)
    return f"{ip}:{port}" if ip.version == 4 else f"[{ip}]:{port}"
