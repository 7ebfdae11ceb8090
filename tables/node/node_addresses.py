# SPDX-License-Identifier: Apache-2.0
"""``node-addresses``: the addresses of this node, and which of them answer for node ports.

Rows with device ``*`` are the fallback for devices that are not known one by one.
"""

from __future__ import annotations

from typing import Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from statedb.index import parse_bool
from tables.addressing import IP

TABLE_NAME: Final = "node-addresses"
WILDCARD_DEVICE: Final = "*"


class NodeAddress(msgspec.Struct, frozen=True, gc=False):
    # The names are those of the field's YAML, which people insert rows with.
    address: IP = msgspec.field(name="addr")
    node_port: bool = msgspec.field(default=False, name="nodeport")
    primary: bool = False
    device_name: str = msgspec.field(default="", name="devicename")


def node_address_key(addr: NodeAddress) -> tuple[IP, str]:
    return (addr.address, addr.device_name)


def _device(addr: NodeAddress) -> str:
    return addr.device_name


def _node_port(addr: NodeAddress) -> bool:
    return addr.node_port


def _parse_id(text: str) -> tuple[IP, str] | tuple[IP]:
    address, _, device = text.partition("-")
    return (IP.parse(address), device) if device else (IP.parse(address),)


ID: Final = Index("id", key=node_address_key, parse=_parse_id)
NAME: Final = Index("name", key=_device, unique=False, parse=str)
NODE_PORT: Final = Index("node-port", key=_node_port, unique=False, parse=parse_bool)

COLUMNS: Final = (
    Column("Address", lambda addr: str(addr.address)),
    Column("NodePort", lambda addr: str(addr.node_port).lower()),
    Column("Primary", lambda addr: str(addr.primary).lower()),
    Column("DeviceName", lambda addr: addr.device_name),
)


def new_node_addresses_table(db: DB) -> RWTable[NodeAddress]:
    """Registers ``node-addresses`` with the database."""
    return new_table(
        db,
        TABLE_NAME,
        ID,
        NAME,
        NODE_PORT,
        columns=COLUMNS,
        row_type=NodeAddress,
    )
