# SPDX-License-Identifier: Apache-2.0
"""``desired-routes``: the routes that this node is to have, each with an owner.

Several owners may want a route to one destination with one metric in one table; the lowest
administrative distance wins and alone is *selected*. Rows are written through
`cilia/node/routes.py`, which decides that; `reconcilers/node/routes.py` puts the selected ones
into the kernel and writes back ``status`` and the device indexes.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, Status, new_table
from statedb.status import pending
from tables.addressing import IP, Prefix
from tables.node.routes import (
    TABLE_LOCAL,
    TABLE_MAIN,
    RouteScope,
    RouteType,
    parse_table,
    scope_text,
    type_text,
)
from tables.status_columns import STATUS_COLUMNS

TABLE_NAME: Final = "desired-routes"

# RTPROT_*: the mark on routes, rules and addresses of ours; no routing daemon uses it
# (linux/rtnetlink.h and iproute2's rt_protos end at 192).
PROTOCOL_CILIA: Final = 196
DISTANCE_DEFAULT: Final = 100


class DesiredHop(msgspec.Struct, frozen=True, gc=False):
    """One way of a multipath route."""

    device: str
    nexthop: IP | None = None
    weight: int = 1
    # Written by the reconciler: the index of the device when the route was installed; 0: not yet.
    device_index: int = 0

    def __str__(self) -> str:
        shown = device_text(self.device, self.device_index)
        return shown if self.nexthop is None else f"{self.nexthop} {shown}"


class DesiredRoute(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    # What the owner wants.
    owner: str
    prefix: Prefix
    table: int = TABLE_MAIN
    priority: int = 0  # the metric; 0: the kernel's default
    admin_distance: int = DISTANCE_DEFAULT
    nexthop: IP | None = None
    source: IP | None = None
    device: str = ""
    multipath: tuple[DesiredHop, ...] = ()  # instead of nexthop and device
    mtu: int = 0
    scope: int = RouteScope.UNIVERSE
    type: int = RouteType.UNSPEC  # UNSPEC: unicast
    # Decided by the writer.
    selected: bool = False
    # Written by the reconciler: see `DesiredHop.device_index`.
    device_index: int = 0
    status: Status = msgspec.field(default_factory=pending)


def check(route: DesiredRoute) -> None:
    """Raises ValueError for a row that no kernel could take, with the field's name."""
    if not route.owner:
        raise ValueError("owner: a route must have one")
    if route.admin_distance < 1:
        raise ValueError("admin_distance: must be at least 1")
    if route.multipath and (route.nexthop is not None or route.device):
        raise ValueError("multipath: excludes nexthop and device")
    if any(not 1 <= hop.weight <= 256 for hop in route.multipath):
        raise ValueError("multipath: a weight is a number from 1 to 256")
    hops = [route.nexthop, *(hop.nexthop for hop in route.multipath)]
    for hop in hops:
        if hop is not None and hop.is_ipv6 != route.prefix.is_ipv6:
            raise ValueError(f"nexthop: {hop} is not of the family of {route.prefix}")


def device_text(name: str, index: int) -> str:
    """``veth0 (2)``; without the index while it is not known."""
    return f"{name} ({index})" if index else name


def _table_cell(table: int) -> str:
    return {TABLE_MAIN: "main (254)", TABLE_LOCAL: "local (255)"}.get(table, str(table))


def _or_none(value: object) -> str:
    return str(value) if value else "none"


def _multipath_cell(route: DesiredRoute) -> str:
    return f"[{', '.join(map(str, route.multipath))}]" if route.multipath else "none"


def to_json(route: DesiredRoute) -> dict[str, Any]:
    return {
        "Owner": route.owner,
        "Table": route.table,
        "Prefix": str(route.prefix),
        "Priority": route.priority,
        "AdminDistance": route.admin_distance,
        "Selected": route.selected,
        "Nexthop": str(route.nexthop or ""),
        "Src": str(route.source or ""),
        "Device": route.device,
        "MultiPath": [
            {"Device": hop.device, "Nexthop": str(hop.nexthop or ""), "Weight": hop.weight}
            for hop in route.multipath
        ],
        "MTU": route.mtu,
        "Scope": route.scope,
        "Type": route.type,
        "Status": str(route.status.kind),
        "Error": route.status.error,
    }


DesiredRouteKey = tuple[str, int, Prefix, int]
KernelKey = tuple[int, Prefix, int]


def desired_route_key(route: DesiredRoute) -> DesiredRouteKey:
    return (route.owner, route.table, route.prefix, route.priority)


def kernel_key(route: DesiredRoute) -> KernelKey:
    """What routes of different owners compete for: table, destination, metric."""
    return (route.table, route.prefix, route.priority)


def _parse_tail(text: str) -> tuple[Any, ...]:
    """``TABLE[:PREFIX[:PRIORITY]]``; an IPv6 prefix has colons itself and ends behind its slash."""
    table, _, rest = text.partition(":")
    key: tuple[Any, ...] = (parse_table(table),)
    if rest:
        address, slash, end = rest.partition("/")
        length, _, priority = end.partition(":")
        key += (Prefix.parse(address + slash + length),)
        if priority:
            key += (int(priority),)
    return key


def _parse_key(text: str) -> tuple[Any, ...]:
    """``OWNER[:TABLE[:PREFIX[:PRIORITY]]]``."""
    owner, _, rest = text.partition(":")
    return (owner, *_parse_tail(rest)) if rest else (owner,)


def _devices(route: DesiredRoute) -> tuple[str, ...]:
    names = {route.device, *(hop.device for hop in route.multipath)}
    return tuple(sorted(names - {""}))


ID: Final = Index("id", key=desired_route_key, parse=_parse_key)
TABLE_PREFIX: Final = Index("table-prefix", key=kernel_key, unique=False, parse=_parse_tail)
DEVICE: Final = Index("device", keys=_devices, unique=False, parse=str)

COLUMNS: Final = (
    Column("Owner", lambda route: route.owner),
    Column("Table", lambda route: _table_cell(route.table)),
    Column("Prefix", lambda route: str(route.prefix)),
    Column("Priority", lambda route: _or_none(route.priority)),
    Column("AD", lambda route: str(route.admin_distance)),
    Column("Selected", lambda route: str(route.selected).lower()),
    Column("Nexthop", lambda route: _or_none(route.nexthop)),
    Column("Src", lambda route: _or_none(route.source)),
    Column("Device", lambda route: _or_none(device_text(route.device, route.device_index))),
    Column("MultiPath", _multipath_cell),
    Column("MTU", lambda route: _or_none(route.mtu)),
    Column("Scope", lambda route: scope_text(route.scope)),
    Column("Type", lambda route: type_text(route.type)),
    *STATUS_COLUMNS,
)


def new_desired_routes_table(db: DB) -> RWTable[DesiredRoute]:
    """Registers ``desired-routes`` with the database."""
    return new_table(
        db,
        TABLE_NAME,
        ID,
        TABLE_PREFIX,
        DEVICE,
        columns=COLUMNS,
        row_type=DesiredRoute,
        to_json=to_json,
    )
