# SPDX-License-Identifier: Apache-2.0
"""`desired-routes` into the kernel's routing tables.

Our routes carry our protocol number; nothing else is changed or removed. A route is added with
«only if there is none», and what is in its place is replaced, in one step, only where it is ours.
"""

from __future__ import annotations

import errno
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from cilia.linux import rtnl
from cilia.linux.errors import NoDevice, NotOurs
from cilia.linux.netlink import Netlink
from cilia.linux.requests import add_route, delete_route
from reconcilers.kernel_watch import Concerns
from reconcilers.operations import Entry
from statedb import Change, ReadTxn, Table
from tables.addressing import IP, Prefix
from tables.node.desired_routes import (
    PROTOCOL_CILIA,
    TABLE_PREFIX,
    DesiredHop,
    DesiredRoute,
    KernelKey,
    kernel_key,
)
from tables.node.devices import Device, device_by_name
from tables.node.routes import Route, RouteScope, RouteType, table_text

__all__ = ["RouteOperations", "concerns_routes"]

# What the kernel makes of an IPv6 metric of 0 (IP6_RT_PRIO_USER).
IPV6_METRIC_DEFAULT = 1024


class RouteOperations:
    """Operations, in batches and with verification; see `reconcilers.operations`."""

    def __init__(
        self, netlink: Netlink, devices: Table[Device], desired: Table[DesiredRoute]
    ) -> None:
        self._netlink = netlink
        self._devices = devices
        self._desired = desired
        # Of the last read-back; `expected` takes from it what only the kernel knows.
        self._actual: dict[KernelKey, rtnl.RouteMessage] = {}

    # Update

    def update(self, txn: ReadTxn, revision: int, obj: DesiredRoute) -> DesiredRoute | None:
        return _single(self.update_batch, txn, revision, obj).result

    def delete(self, txn: ReadTxn, revision: int, obj: DesiredRoute) -> None:
        _single(self.delete_batch, txn, revision, obj)

    def update_batch(self, txn: ReadTxn, entries: Sequence[Entry[DesiredRoute]]) -> None:
        wanted: list[tuple[Entry[DesiredRoute], rtnl.RouteMessage]] = []
        for entry in entries:
            if not entry.obj.selected:
                continue  # another owner's route stands for this destination
            try:
                entry.result = self._with_indexes(txn, entry.obj)
            except NoDevice as missing:
                entry.error = missing
                continue
            wanted.append((entry, _message(entry.result)))
        answers = self._netlink.request_batch([add_route(message) for _, message in wanted])
        taken = []
        for (entry, message), error in zip(wanted, answers, strict=True):
            if error is not None and error.errno == errno.EEXIST:
                taken.append((entry, message))
            else:
                entry.error = error
        if taken:
            self._replace(taken)

    def _replace(self, taken: list[tuple[Entry[DesiredRoute], rtnl.RouteMessage]]) -> None:
        """What has a predecessor of ours replaces it, unless they are equal."""
        found: dict[KernelKey, list[rtnl.RouteMessage]] = {}
        for table in {message.table for _, message in taken}:
            for route in self._netlink.routes(table=table):
                found.setdefault(_key_of(route), []).append(route)
        replaced = []
        for entry, message in taken:
            there = found.get(_key_of(message), [])
            foreign = [route for route in there if route.protocol != PROTOCOL_CILIA]
            if foreign:
                entry.error = NotOurs(f"a route of protocol {foreign[0].protocol} is there already")
            elif len(there) != 1 or _resolved(_normal(message), there[0]) != _normal(there[0]):
                replaced.append((entry, message))
        requests = [add_route(message, replace=True) for _, message in replaced]
        for (entry, _), error in zip(replaced, self._netlink.request_batch(requests), strict=True):
            entry.error = error

    def _with_indexes(self, txn: ReadTxn, route: DesiredRoute) -> DesiredRoute:
        """The route with the indexes that its devices have now.

        Raises:
            NoDevice: one of them is not there.
        """
        hops = tuple(
            msgspec.structs.replace(hop, device_index=self._index(txn, hop.device))
            for hop in route.multipath
        )
        index = self._index(txn, route.device)
        return msgspec.structs.replace(route, device_index=index, multipath=hops)

    def _index(self, txn: ReadTxn, name: str) -> int:
        if not name:
            return 0
        dev = device_by_name(self._devices, txn, name)
        if dev is None:
            raise NoDevice(name)
        return dev.index

    # Delete

    def delete_batch(self, txn: ReadTxn, entries: Sequence[Entry[DesiredRoute]]) -> None:
        gone = {}
        for entry in entries:
            key = kernel_key(entry.obj)
            if entry.obj.selected and not self._desired.list(txn, key, TABLE_PREFIX):
                gone[_normal_key(key)] = entry
        if not gone:
            return
        found = [route for route in self._ours() if _key_of(route) in gone]
        answers = self._netlink.request_batch([delete_route(route) for route in found])
        for route, error in zip(found, answers, strict=True):
            if error is not None and error.errno != errno.ESRCH:
                gone[_key_of(route)].error = error

    def prune(self, txn: ReadTxn, objects: Iterable[DesiredRoute]) -> None:
        keep = {_normal_key(kernel_key(obj)) for obj in objects}
        foreign = [route for route in self._ours() if _key_of(route) not in keep]
        failures = [
            error
            for error in self._netlink.request_batch([delete_route(route) for route in foreign])
            if error is not None and error.errno != errno.ESRCH
        ]
        if failures:
            raise failures[0]

    def _ours(self) -> list[rtnl.RouteMessage]:
        return self._netlink.routes(protocol=PROTOCOL_CILIA)

    # Verify

    def actual(self) -> Mapping[Hashable, Any]:
        self._actual = {_key_of(route): _normal(route) for route in self._ours()}
        found: dict[Hashable, Any] = dict(self._actual.items())
        return found

    def expected(
        self, txn: ReadTxn, objects: Iterable[DesiredRoute]
    ) -> Iterable[tuple[Hashable, Any, DesiredRoute]]:
        for obj in objects:
            if not obj.selected:
                continue
            try:
                message = _normal(_message(self._with_indexes(txn, obj)))
            except NoDevice:
                message = _normal(_message(obj))  # not there; the update will say why in the row
            there = self._actual.get(_key_of(message))
            yield _key_of(message), _resolved(message, there), obj

    def describe(self, key: Hashable, value: Any | None) -> tuple[str, str]:
        assert isinstance(key, tuple)
        table, prefix, priority = key
        name = f"{prefix} table {table_text(table)} metric {priority}"
        return name, "" if value is None else route_text(value)


def concerns_routes(desired: Table[DesiredRoute]) -> Concerns[Route]:
    """Which changes of the table `routes` may be drift: not what our own writes look like."""

    def concerns(txn: ReadTxn, change: Change[Route]) -> bool:
        route = change.obj
        keys = [(route.table, route.destination, route.priority)]
        if route.destination.is_ipv6 and route.priority == IPV6_METRIC_DEFAULT:
            keys.append((route.table, route.destination, 0))
        rivals = [row for key in keys for row in desired.list(txn, key, TABLE_PREFIX)]
        wanted = next((row for row in rivals if row.selected), None)
        ours = route.protocol == PROTOCOL_CILIA
        if wanted is None:
            return ours and not change.deleted
        return change.deleted or not ours or not _looks_like(route, wanted)

    return concerns


def _looks_like(route: Route, wanted: DesiredRoute) -> bool:
    """Whether an observed route may be the wanted one; an index that is not known yet fits any."""
    if route.mtu != wanted.mtu or route.source != wanted.source:
        return False
    if wanted.multipath:
        gateways = sorted(hop.nexthop or b"" for hop in wanted.multipath)
        hops = [hop.gateway or b"" for hop in route.nexthops] or [route.gateway or b""]
        return sorted(hops) == gateways
    fits_device = wanted.device_index in (0, route.link_index) or not wanted.device
    return fits_device and route.gateway == wanted.nexthop


def _single(method: Any, txn: ReadTxn, revision: int, obj: DesiredRoute) -> Entry[DesiredRoute]:
    entry = Entry(obj, revision)
    method(txn, [entry])
    if entry.error is not None:
        raise entry.error
    return entry


def _packed(ip: IP | None) -> bytes:
    return b"" if ip is None else ip.packed


def _message(route: DesiredRoute) -> rtnl.RouteMessage:
    """The route as the kernel is asked for it; device indexes must be set."""
    ipv6 = route.prefix.is_ipv6
    return rtnl.RouteMessage(
        family=rtnl.AF_INET6 if ipv6 else rtnl.AF_INET,
        destination=route.prefix.ip.packed,
        prefix_len=route.prefix.length,
        table=route.table,
        index=route.device_index,
        gateway=_packed(route.nexthop),
        source=_packed(route.source),
        priority=_metric(ipv6, route.priority),
        protocol=PROTOCOL_CILIA,
        scope=RouteScope.UNIVERSE if ipv6 else route.scope,
        kind=route.type or RouteType.UNICAST,
        mtu=route.mtu,
        nexthops=tuple(map(_hop, route.multipath)),
    )


def _hop(hop: DesiredHop) -> rtnl.NextHop:
    return rtnl.NextHop(hop.device_index, _packed(hop.nexthop), hop.weight)


def _metric(ipv6: bool, priority: int) -> int:
    return IPV6_METRIC_DEFAULT if ipv6 and not priority else priority


def _normal_key(key: KernelKey) -> KernelKey:
    table, prefix, priority = key
    return table, prefix, _metric(prefix.is_ipv6, priority)


def _key_of(route: rtnl.RouteMessage) -> KernelKey:
    prefix = Prefix.of(IP.from_packed(route.destination), route.prefix_len)
    return route.table, prefix, route.priority


def _normal(route: rtnl.RouteMessage) -> rtnl.RouteMessage:
    """One form for what means the same: a single way, the order of ways, routes to nowhere."""
    changes: dict[str, Any] = {"replaces": False, "deleted": False}
    if len(route.nexthops) == 1:
        (hop,) = route.nexthops
        changes |= {"index": hop.index, "gateway": hop.gateway, "nexthops": ()}
    elif route.nexthops:
        ordered = sorted(route.nexthops, key=lambda hop: (hop.index, hop.gateway))
        changes["nexthops"] = tuple(ordered)
    if route.kind >= RouteType.BLACKHOLE:
        changes["index"] = 0  # IPv6 shows the loopback device
    return msgspec.structs.replace(route, **changes)


def _resolved(want: rtnl.RouteMessage, have: rtnl.RouteMessage | None) -> rtnl.RouteMessage:
    """For a gateway without a device the kernel chooses the device: what it chose is right."""
    if have is None or want.index or not want.gateway:
        return want
    return msgspec.structs.replace(want, index=have.index)


def route_text(route: rtnl.RouteMessage) -> str:
    """``via 10.0.0.9 dev 2 mtu 1400``; several ways one after another."""
    parts = []
    if route.kind != RouteType.UNICAST:
        parts.append(f"type {route.kind}")
    ways = route.nexthops or (rtnl.NextHop(route.index, route.gateway, 1),)
    for hop in ways:
        if hop.gateway:
            parts.append(f"via {IP.from_packed(hop.gateway)}")
        if hop.index:
            parts.append(f"dev {hop.index}")
    if route.source:
        parts.append(f"src {IP.from_packed(route.source)}")
    if route.mtu:
        parts.append(f"mtu {route.mtu}")
    return " ".join(parts)
