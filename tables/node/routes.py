# SPDX-License-Identifier: Apache-2.0
"""``routes``: all routing tables of the node, as the kernel has them; the reflector writes them.

A row is keyed by table, link, destination and metric. The kernel also lets IPv4 routes stand side
by side that differ in their gateway or TOS alone (``ip route append``): they share one row, which
shows the one that the kernel lists first. A multipath route is one row, with link 0 and its ways in
``nexthops``.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final

import msgspec

from statedb import DB, Column, Index, RWTable, new_table
from tables.addressing import IP, Prefix

TABLE_NAME: Final = "routes"

TABLE_MAIN: Final = 254
TABLE_LOCAL: Final = 255

DEFAULT_V4: Final = Prefix.parse("0.0.0.0/0")
DEFAULT_V6: Final = Prefix.parse("::/0")


class RouteScope(IntEnum):
    UNIVERSE = 0
    SITE = 200
    LINK = 253
    HOST = 254
    NOWHERE = 255


class RouteType(IntEnum):
    UNSPEC = 0
    UNICAST = 1
    LOCAL = 2
    BROADCAST = 3
    ANYCAST = 4
    MULTICAST = 5
    BLACKHOLE = 6
    UNREACHABLE = 7
    PROHIBIT = 8
    THROW = 9
    NAT = 10


class RouteHop(msgspec.Struct, frozen=True, gc=False):
    link_index: int
    gateway: IP | None = None
    weight: int = 1


class Route(msgspec.Struct, frozen=True, gc=False):
    table: int
    link_index: int
    destination: Prefix
    priority: int = 0
    tos: int = 0
    gateway: IP | None = None
    source: IP | None = None  # preferred source
    scope: int = RouteScope.UNIVERSE
    type: int = RouteType.UNICAST
    protocol: int = 0  # RTPROT_*: who made it
    mtu: int = 0
    nexthops: tuple[RouteHop, ...] = ()
    shares_key: bool = False  # see above: the kernel has more than this one


def scope_text(scope: int) -> str:
    """``universe``, ``link``, ``host``, ...; a number that has no name stays one."""
    return RouteScope(scope).name.lower() if scope in _SCOPES else str(scope)


def type_text(kind: int) -> str:
    return RouteType(kind).name.lower() if kind in _TYPES else str(kind)


def table_text(table: int) -> str:
    return {TABLE_MAIN: "main", TABLE_LOCAL: "local"}.get(table, str(table))


def parse_table(text: str) -> int:
    """``main``, ``local`` or a number. Raises ValueError for anything else."""
    names = {"main": TABLE_MAIN, "local": TABLE_LOCAL}
    return names[text] if text in names else int(text)


_SCOPES: Final = frozenset(RouteScope)
_TYPES: Final = frozenset(RouteType)


def _address(ip: IP | None) -> str:
    return "" if ip is None else str(ip)


def to_json(route: Route) -> dict[str, Any]:
    return {
        "Table": route.table,
        "LinkIndex": route.link_index,
        "Type": route.type,
        "Scope": route.scope,
        "Dst": str(route.destination),
        "Src": _address(route.source),
        "Gw": _address(route.gateway),
        "Priority": route.priority,
        "MTU": route.mtu,
        "Protocol": route.protocol,
        "Nexthops": [
            {"LinkIndex": hop.link_index, "Gw": _address(hop.gateway), "Weight": hop.weight}
            for hop in route.nexthops
        ],
    }


RouteKey = tuple[int, int, Prefix, int]


def route_key(route: Route) -> RouteKey:
    """Table, link, destination, metric."""
    return (route.table, route.link_index, route.destination, route.priority)


def _parse_key(text: str) -> tuple[Any, ...]:
    """``TABLE:LINK:PREFIX[@METRIC]`` is a key; ``TABLE`` and ``TABLE:LINK`` are beginnings of one.

    >>> _parse_key("main:2:10.0.0.0/8@7")
    (254, 2, Prefix('10.0.0.0/8'), 7)
    """
    parts = text.split(":", 2)
    key: tuple[Any, ...] = (parse_table(parts[0]),)
    if len(parts) > 1:
        key += (int(parts[1]),)
    if len(parts) > 2:
        prefix, _, metric = parts[2].partition("@")
        key += (Prefix.parse(prefix), int(metric or 0))
    return key


def links_of(route: Route) -> tuple[int, ...]:
    """The links that a route uses, itself or through its ways."""
    if route.link_index:
        return (route.link_index,)
    return tuple({hop.link_index for hop in route.nexthops})


def _same(route: Route) -> tuple[int, Prefix, int]:
    return (route.table, route.destination, route.priority)


def _parse_prefix(text: str) -> tuple[Any, ...]:
    """``TABLE:PREFIX``."""
    table, _, prefix = text.partition(":")
    return (parse_table(table), Prefix.parse(prefix)) if prefix else (parse_table(table),)


ID: Final = Index("id", key=route_key, parse=_parse_key)
# Every link that a route uses, also through one of its ways.
LINK_INDEX: Final = Index("LinkIndex", keys=links_of, unique=False, parse=int)
# Routes of one table to one destination, whatever their link.
DESTINATION: Final = Index("destination", key=_same, unique=False, parse=_parse_prefix)

COLUMNS: Final = (
    Column("Destination", lambda route: str(route.destination)),
    Column("Source", lambda route: _address(route.source)),
    Column("Gateway", lambda route: _address(route.gateway)),
    Column("LinkIndex", lambda route: str(route.link_index)),
    Column("Table", lambda route: table_text(route.table)),
    Column("Scope", lambda route: scope_text(route.scope)),
    Column("Priority", lambda route: str(route.priority)),
    Column("Type", lambda route: type_text(route.type)),
    Column("MTU", lambda route: str(route.mtu or "")),
)


def new_routes_table(db: DB) -> RWTable[Route]:
    """Registers ``routes`` with the database."""
    return new_table(
        db,
        TABLE_NAME,
        ID,
        LINK_INDEX,
        DESTINATION,
        columns=COLUMNS,
        row_type=Route,
        to_json=to_json,
    )
