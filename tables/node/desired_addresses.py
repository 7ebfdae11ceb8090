# SPDX-License-Identifier: Apache-2.0
"""``desired-addresses``: the addresses that devices of this node are to have because we want it.

Several owners may want the same; it goes when the last of them lets go. The reconciler
(`reconcilers/node/addresses.py`) writes back ``status``.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.addressing import IP
from tables.node.routes import RouteScope, scope_text
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "desired-addresses"


class DesiredAddress(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    owner: str
    device: str
    address: IP
    prefix_len: int
    scope: int = RouteScope.UNIVERSE
    #: IPv6: what the node itself sends has this source only where there is no other (RFC 6724).
    deprecated: bool = False
    status: Status = msgspec.field(default_factory=pending)

    @property
    def text(self) -> str:
        return f"{self.address}/{self.prefix_len}"


AddressKey = tuple[str, IP, int]


def kernel_key(row: DesiredAddress) -> AddressKey:
    """What the kernel knows an address by: device, address, length of its prefix."""
    return (row.device, row.address, row.prefix_len)


def _key(row: DesiredAddress) -> tuple[str, str, IP, int]:
    return (row.owner, *kernel_key(row))


def _device(row: DesiredAddress) -> str:
    return row.device


def _parse_key(text: str) -> tuple[Any, ...]:
    """``OWNER[:DEVICE]``."""
    owner, _, device = text.partition(":")
    return (owner, device) if device else (owner,)


ID: Final = Index("id", key=_key, parse=_parse_key)
ADDRESS: Final = Index("address", key=kernel_key, unique=False)
DEVICE: Final = Index("device", key=_device, unique=False, parse=str)

COLUMNS: Final = (
    Column("Owner", lambda row: row.owner),
    Column("Device", lambda row: row.device),
    Column("Address", lambda row: row.text),
    Column("Scope", lambda row: scope_text(row.scope)),
    *STATUS_COLUMNS,
)


def new_desired_addresses_table(db: DB) -> RWTable[DesiredAddress]:
    """Registers ``desired-addresses`` with the database."""
    return new_table(db, TABLE_NAME, ID, ADDRESS, DEVICE, columns=COLUMNS, row_type=DesiredAddress)
