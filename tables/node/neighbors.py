# SPDX-License-Identifier: Apache-2.0
"""``neighbors``: the ARP and neighbour discovery tables of the node, as the kernel has them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import IP
from tables.node.devices import mac_text

TABLE_NAME: Final = "neighbors"

# Bit by bit, lowest first (linux/neighbour.h: NUD_*, NTF_*, NTF_EXT_*); types are NDA_*.
_STATES: Final = (
    "INCOMPLETE",
    "REACHABLE",
    "STALE",
    "DELAY",
    "PROBE",
    "FAILED",
    "NOARP",
    "PERMANENT",
)
_FLAGS: Final = (
    "USE",
    "SELF",
    "MASTER",
    "PROXY",
    "EXT_LEARNED",
    "OFFLOADED",
    "STICKY",
    "ROUTER",
)
_FLAGS_EXT: Final = ("MANAGED", "LOCKED", "EXT_VALIDATED")
_TYPES: Final = (
    "UNSPEC",
    "DST",
    "LLADDR",
    "CACHEINFO",
    "PROBES",
    "VLAN",
    "PORT",
    "VNI",
    "IFINDEX",
    "MASTER",
    "LINK_NETNSID",
    "SRC_VNI",
    "PROTOCOL",
    "NH_ID",
    "FDB_EXT_ATTRS",
    "FLAGS_EXT",
)


class Neighbor(msgspec.Struct, frozen=True, gc=False):
    link_index: int
    ip: IP
    hardware_address: bytes = b""
    type: int = 0
    state: int = 0  # NUD_*
    flags: int = 0  # NTF_*
    flags_ext: int = 0  # NTF_EXT_*


def bits_text(bits: int, names: Sequence[str]) -> str:
    """The names of the set bits joined by ``|``; a bit without a name is its number; 0 is ``NONE``.

    >>> bits_text(0b110, ("A", "B")), bits_text(0, ("A",))
    ('B|UNKNOWN(2)', 'NONE')
    """
    found = [
        names[bit] if bit < len(names) else f"UNKNOWN({bit})"
        for bit in range(bits.bit_length())
        if bits >> bit & 1
    ]
    return "|".join(found) or "NONE"


def type_text(kind: int) -> str:
    return _TYPES[kind] if kind < len(_TYPES) else f"UNKNOWN({kind})"


def to_json(neighbor: Neighbor) -> dict[str, Any]:
    return {
        "LinkIndex": neighbor.link_index,
        "IPAddr": str(neighbor.ip),
        "HardwareAddr": mac_text(neighbor.hardware_address),
        "Type": neighbor.type,
        "State": neighbor.state,
        "Flags": neighbor.flags,
        "FlagsExt": neighbor.flags_ext,
    }


def neighbor_key(neighbor: Neighbor) -> tuple[int, IP]:
    return (neighbor.link_index, neighbor.ip)


def _parse_key(text: str) -> tuple[Any, ...]:
    """``LINK[:IP]``."""
    link, _, address = text.partition(":")
    return (int(link), IP.parse(address)) if address else (int(link),)


def _link(neighbor: Neighbor) -> int:
    return neighbor.link_index


def _ip(neighbor: Neighbor) -> IP:
    return neighbor.ip


ID: Final = Index("id", key=neighbor_key, parse=_parse_key)
LINK_INDEX: Final = Index("LinkIndex", key=_link, unique=False, parse=int)
IP_ADDR: Final = Index("IPAddr", key=_ip, unique=False, parse=IP.parse)

COLUMNS: Final = (
    Column("LinkIndex", lambda n: str(n.link_index)),
    Column("IPAddr", lambda n: str(n.ip)),
    Column("HardwareAddr", lambda n: mac_text(n.hardware_address)),
    Column("Type", lambda n: type_text(n.type)),
    Column("State", lambda n: bits_text(n.state, _STATES)),
    Column("Flags", lambda n: bits_text(n.flags, _FLAGS)),
    Column("FlagsExt", lambda n: bits_text(n.flags_ext, _FLAGS_EXT)),
)


def new_neighbors_table(db: DB) -> RWTable[Neighbor]:
    """Registers ``neighbors`` with the database."""
    return new_table(
        db, TABLE_NAME, ID, LINK_INDEX, IP_ADDR, columns=COLUMNS, row_type=Neighbor, to_json=to_json
    )
