# SPDX-License-Identifier: Apache-2.0
"""`masquerade-exclusions`: prefixes in the maps ``cilia_ipmasq4`` and ``cilia_ipmasq6``."""

from __future__ import annotations

from bpf.maps.masquerade import VALUE, MasqueradeMaps, decode_key, encode_key
from reconcilers.maps.entries import MapEntries
from tables.addressing import IP, Prefix
from tables.masquerade.exclusions import MasqueradeExclusion

__all__ = ["exclusion_operations"]


def exclusion_operations(maps: MasqueradeMaps) -> MapEntries[MasqueradeExclusion]:
    """Operations over the map of each family."""
    return MapEntries(
        *maps,
        of=maps.of,
        key=lambda row: encode_key(row.prefix.ip.packed, row.prefix.length),
        value=lambda row: VALUE,
        text=_text,
    )


def _text(key: bytes) -> str:
    address, length = decode_key(key)
    return f"prefix {Prefix.of(IP.from_packed(address), length)}"
