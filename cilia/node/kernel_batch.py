# SPDX-License-Identifier: Apache-2.0
"""One write transaction over the kernel's tables: events in, changed rows out.

Netlink does not say everything. When a link goes down or away, its IPv4 routes vanish without a
message; a replaced route is announced by its successor alone; IPv6 folds routes with gateways into
one multipath route. What follows from the events is done here; what does not is noted
(`stale_links`, `routes_uncertain`), and the reflector reads the routes again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from cilia.linux import rtnl
from cilia.node.device_selection import NO_GLOBAL_ROUTE, DeviceFilter, select
from cilia.node.kernel_rows import address_row, device_row, neighbor_row, route_row, rule_row
from statedb import RWTable, WriteTxn
from tables.addressing import IP
from tables.node import neighbors as neighbor_table
from tables.node import routes as route_table
from tables.node.devices import Device, DeviceAddress
from tables.node.neighbors import Neighbor, neighbor_key
from tables.node.routes import Route, route_key
from tables.node.rules import Rule, rule_key

__all__ = ["KernelBatch", "KernelTables"]

T = TypeVar("T")

_DEFAULTS = (route_table.DEFAULT_V4, route_table.DEFAULT_V6)


class KernelTables(msgspec.Struct, frozen=True):
    """The tables that one reflector keeps equal to the kernel."""

    devices: RWTable[Device]
    routes: RWTable[Route]
    neighbors: RWTable[Neighbor]
    rules: RWTable[Rule]

    def all(self) -> tuple[RWTable[Any], ...]:
        return (self.devices, self.routes, self.neighbors, self.rules)


class KernelBatch:
    """Applies events inside `wtxn`; `finish` writes the devices, which many events may touch."""

    def __init__(self, wtxn: WriteTxn, tables: KernelTables, patterns: DeviceFilter) -> None:
        self._wtxn = wtxn
        self._tables = tables
        self._patterns = patterns
        # Devices as they will be after this batch; None: gone.
        self._touched: dict[int, Device | None] = {}
        # Links whose routes changed: their selection may change with them.
        self._rerouted: set[int] = set()
        self.stale_links: set[int] = set()
        self.routes_uncertain = False

    def apply(self, messages: Iterable[rtnl.Message]) -> None:
        for message in messages:
            match message:
                case rtnl.RouteMessage():
                    self._route(message)
                case rtnl.LinkMessage():
                    self._link(message)
                case rtnl.AddressMessage():
                    self._address(message)
                case rtnl.NeighborMessage():
                    self._neighbor(message)
                case rtnl.RuleMessage():
                    self._put(self._tables.rules, rule_key, rule_row(message), message.deleted)
                case rtnl.NexthopObjectMessage():
                    self.routes_uncertain |= message.deleted or message.replaces
                case rtnl.FilterMessage():
                    pass

    # Links and addresses

    def _device(self, index: int) -> Device | None:
        if index in self._touched:
            return self._touched[index]
        return self._tables.devices.get(self._wtxn, index)

    def _link(self, message: rtnl.LinkMessage) -> None:
        old = self._device(message.index)
        if message.deleted:
            self._touched[message.index] = None
            self.stale_links.discard(message.index)
            self._forget(message.index)
            return
        new = self._touched[message.index] = device_row(message, old)
        if old is not None and old.is_up and not new.is_up:
            self.stale_links.add(new.index)
        if message.kind == "veth" and message.peer and message.peer_netns < 0:
            self._pair(message.peer, new.index)

    def _pair(self, index: int, peer: int) -> None:
        """The first end of a pair is announced before it has a peer, and not again."""
        dev = self._device(index)
        if dev is not None and dev.type == "veth" and dev.peer_index != peer:
            self._touched[index] = msgspec.structs.replace(dev, peer_index=peer)

    def _forget(self, index: int) -> None:
        """Takes away what hung on a link that is gone: the kernel announces only part of it."""
        routes = list(self._tables.routes.list(self._wtxn, index, route_table.LINK_INDEX))
        for route in routes:
            self._tables.routes.delete(self._wtxn, route)
            self.routes_uncertain |= bool(route.nexthops)
        for row in list(self._tables.neighbors.list(self._wtxn, index, neighbor_table.LINK_INDEX)):
            self._tables.neighbors.delete(self._wtxn, row)

    def _address(self, message: rtnl.AddressMessage) -> None:
        dev = self._device(message.index)
        if dev is None:
            return  # of a link that is gone, or whose own message is on its way
        new = address_row(message)
        rows = [known for known in dev.addresses if not _same_address(known, new)]
        if not message.deleted:
            rows.append(new)
            rows.sort(key=_address_order)
        self._touched[dev.index] = msgspec.structs.replace(dev, addresses=tuple(rows))

    # Routes

    def _route(self, message: rtnl.RouteMessage) -> None:
        route = route_row(message)
        if message.deleted or route.destination in _DEFAULTS:
            self._rerouted.update(route_table.links_of(route))
        else:
            self._rerouted.update(filter(self._waits_for_route, route_table.links_of(route)))
        if message.deleted:
            self._route_gone(route)
        else:
            self._supersede(route, message)
            self._route_there(route, message.replaces)

    def _route_there(self, route: Route, replaces: bool) -> None:
        """A route beside one of the same key (`shares_key`) does not take the row from it."""
        old = self._tables.routes.get(self._wtxn, route_key(route))
        if old is not None and replaces:
            self.routes_uncertain |= old.shares_key
        elif old is not None and _is_other(old, route):
            route = msgspec.structs.replace(old, shares_key=True)
        elif old is not None:
            route = msgspec.structs.replace(route, shares_key=old.shares_key)
        self._put(self._tables.routes, route_key, route, False)

    def _route_gone(self, route: Route) -> None:
        old = self._tables.routes.get(self._wtxn, route_key(route))
        if old is None:
            # One way of a multipath route went: which row that makes is the kernel's to say.
            self.routes_uncertain |= any(map(_has_ways, self._others(route)))
        elif old.shares_key or _is_other(old, route):
            self.routes_uncertain = True
        else:
            self._tables.routes.delete(self._wtxn, old)

    def _waits_for_route(self, index: int) -> bool:
        """Whether a route more can change the selection: it is not looked at for each of 10,000."""
        dev = self._device(index)
        return dev is not None and dev.not_selected_reason == NO_GLOBAL_ROUTE

    def _others(self, route: Route) -> list[Route]:
        destination = (route.table, route.destination, route.priority)
        found = self._tables.routes.list(self._wtxn, destination, route_table.DESTINATION)
        key = route_key(route)
        return [other for other in found if route_key(other) != key]

    def _supersede(self, route: Route, message: rtnl.RouteMessage) -> None:
        """Removes the rows that this route stands in for."""
        folds = message.family == rtnl.AF_INET6 and _has_ways(route)
        if not (message.replaces or folds):
            return
        if message.replaces:
            others = [other for other in self._others(route) if other.tos == route.tos]
        else:
            others = [other for other in self._others(route) if _has_ways(other)]
        if len(others) == 1 and (message.replaces or route.nexthops):
            self._rerouted.update(route_table.links_of(others[0]))
            self._tables.routes.delete(self._wtxn, others[0])
        elif others:
            self.routes_uncertain = True

    # Neighbours, rules

    def _neighbor(self, message: rtnl.NeighborMessage) -> None:
        if self._device(message.index) is not None:
            self._put(self._tables.neighbors, neighbor_key, neighbor_row(message), message.deleted)

    def _put(
        self, table: RWTable[T], key_of: Callable[[T], Hashable], row: T, deleted: bool
    ) -> bool:
        """Inserts or deletes a row; whether that changed anything. Equal rows are not written."""
        old = table.get(self._wtxn, key_of(row))
        if deleted:
            if old is not None:
                table.delete(self._wtxn, old)
        elif old != row:
            table.insert(self._wtxn, row)
        return old is not None if deleted else old != row

    # Whole tables

    def replace_devices(
        self, links: Iterable[rtnl.LinkMessage], addresses: Iterable[rtnl.AddressMessage]
    ) -> None:
        """Makes the devices those of a dump."""
        found = {message.index: message for message in links}
        for dev in list(self._tables.devices.all(self._wtxn)):
            if dev.index not in found:
                self._touched[dev.index] = None
        for message in found.values():
            row = device_row(message, self._device(message.index))
            self._touched[row.index] = msgspec.structs.replace(row, addresses=())
        self.apply(addresses)

    def replace_routes(self, routes: Iterable[rtnl.RouteMessage]) -> None:
        """Makes the routes those of a dump."""
        self._replace_rows(self._tables.routes, route_key, _merged(map(route_row, routes)))
        self._rerouted.update(dev.index for dev in self._tables.devices.all(self._wtxn))
        self.routes_uncertain = False

    def replace_routes_of(self, index: int, routes: Iterable[rtnl.RouteMessage]) -> None:
        """Makes the routes of one link those of a dump."""
        known = self._tables.routes.list(self._wtxn, index, route_table.LINK_INDEX)
        rows = _merged(map(route_row, routes))
        self._replace_rows(self._tables.routes, route_key, rows, list(known))
        self._rerouted.add(index)

    def replace_neighbors(self, neighbors: Iterable[rtnl.NeighborMessage]) -> None:
        """Makes the neighbours those of a dump."""
        self._replace_rows(self._tables.neighbors, neighbor_key, map(neighbor_row, neighbors))

    def replace_rules(self, rules: Iterable[rtnl.RuleMessage]) -> None:
        """Makes the rules those of a dump."""
        self._replace_rows(self._tables.rules, rule_key, map(rule_row, rules))

    def _replace_rows(
        self,
        table: RWTable[T],
        key_of: Callable[[T], Hashable],
        rows: Iterable[T],
        known: Iterable[T] | None = None,
    ) -> None:
        wanted = {key_of(row): row for row in rows}
        for old in list(table.all(self._wtxn)) if known is None else known:
            if key_of(old) not in wanted:
                table.delete(self._wtxn, old)
        for row in wanted.values():
            self._put(table, key_of, row, False)

    # The end

    def finish(self) -> None:
        """Decides which of the touched devices are selected, and writes those that changed."""
        devices = self._tables.devices
        for index in self._rerouted - self._touched.keys():
            self._touched[index] = devices.get(self._wtxn, index)
        for index, dev in self._touched.items():
            old = devices.get(self._wtxn, index)
            if dev is None:
                if old is not None:
                    devices.delete(self._wtxn, old)
                continue
            selected, reason = select(dev, self._routes_of(index), self._patterns)
            new = msgspec.structs.replace(dev, selected=selected, not_selected_reason=reason)
            if new != old:
                devices.insert(self._wtxn, new)
        self._touched.clear()
        self._rerouted.clear()

    def _routes_of(self, index: int) -> Iterator[Route]:
        """Not looked up before they are asked for: most devices are refused earlier."""
        yield from self._tables.routes.list(self._wtxn, index, route_table.LINK_INDEX)


def _same_address(one: DeviceAddress, other: DeviceAddress) -> bool:
    """An address is named by itself and its prefix: IPv4 allows 10.0.0.1/24 beside 10.0.0.1/32."""
    return one.address == other.address and one.prefix_len == other.prefix_len


def _address_order(row: DeviceAddress) -> tuple[bool, IP, int]:
    return (row.address.is_ipv6, row.address, row.prefix_len)


def _is_other(one: Route, other: Route) -> bool:
    """Whether two routes of one key are two for the kernel."""
    return (one.gateway, one.tos) != (other.gateway, other.tos)


def _merged(routes: Iterable[Route]) -> Iterator[Route]:
    """One row a key: the first that the kernel lists, marked where there are more."""
    rows: dict[Hashable, Route] = {}
    for route in routes:
        first = rows.setdefault(route_key(route), route)
        if first is not route:
            rows[route_key(route)] = msgspec.structs.replace(first, shares_key=True)
    yield from rows.values()


def _has_ways(route: Route) -> bool:
    return route.gateway is not None or bool(route.nexthops)
