# SPDX-License-Identifier: Apache-2.0
"""Devices to node addresses: which addresses this node has, and what each is good for.

*Primary* is the address that a device's traffic leaves with, a public one before a private one.
*Node port* addresses answer for node ports: those in the configured ranges, else one a device and
family, a private one before a public one. In both, an address of the Node object goes before all
others, and then the one that is used already: another address on the device changes nothing. The
fallback rows of device ``*`` are the best of all devices, for whoever has no device to go by. The
rules are else those of cilium's node address table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, NamedTuple

import msgspec

from cilia.node.own_addresses import OwnAddresses, none_known
from statedb import DB, ReadTxn, RWTable, Table, WatchSet, WriteTxn
from tables.addressing import IP, Prefix
from tables.node.devices import Device, DeviceAddress
from tables.node.node_addresses import WILDCARD_DEVICE, NodeAddress, node_address_key
from tables.node.routes import TABLE_LOCAL, Route, RouteScope, RouteType

__all__ = [
    "InForce",
    "NodeAddressConfig",
    "NodeAddressController",
    "choose_address",
    "device_addresses",
    "fallback_addresses",
]

HOST_DEVICES: Final = ("cilia_host", "cilium_host")
# Their addresses are the node's although nothing of ours is attached to them.
_ALWAYS_USED: Final = (*HOST_DEVICES, "lo")
SETTLE_S: Final = 0.005

# Addresses that mean nothing in the Internet (the special-purpose registries of RFC 6890).
_PRIVATE: Final = tuple(
    map(
        Prefix.parse,
        (
            "0.0.0.0/8",
            "10.0.0.0/8",
            "100.64.0.0/10",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",
            "192.168.0.0/16",
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "224.0.0.0/3",
            "::/127",
            "100::/64",
            "2001:db8::/32",
            "fc00::/7",
            "fe80::/10",
            "ff00::/8",
        ),
    )
)


class NodeAddressConfig(msgspec.Struct, frozen=True):
    # Addresses in these ranges answer for node ports; empty: one a device and family.
    node_port_ranges: tuple[Prefix, ...] = ()
    # The largest scope that still counts: 252 leaves out link-local and host-local ones.
    scope_max: int = RouteScope.LINK - 1


class InForce(NamedTuple):
    """Addresses that are in use by what an agent before left in the kernel."""

    primary: Sequence[IP] = ()
    node_port: Sequence[IP] = ()


NOTHING: Final = InForce()


def is_public(ip: IP) -> bool:
    return not any(prefix.contains(ip) for prefix in _PRIVATE)


def is_private(ip: IP) -> bool:
    return not is_public(ip)


def sorted_addresses(addresses: Iterable[DeviceAddress]) -> list[DeviceAddress]:
    """Best first: not secondary, smaller scope, public, lower address."""
    return sorted(
        addresses, key=lambda a: (a.secondary, a.scope, not is_public(a.address), a.address)
    )


def _usable(dev: Device) -> bool:
    """A dummy device may stay down and unselected: node-local DNS caches keep addresses on one."""
    if dev.type == "dummy":
        return True
    return dev.is_up and (dev.selected or dev.name in _ALWAYS_USED)


def device_addresses(
    dev: Device,
    config: NodeAddressConfig,
    own: Sequence[IP] = (),
    held: Collection[NodeAddress] = (),
    before: InForce = NOTHING,
) -> list[NodeAddress]:
    """Return the rows of one device; none if its addresses are not the node's.

    Args:
        own: addresses of the Node object.
        held: the rows that there are now, of any device.
        before: what an agent before left in force.
    """
    if not _usable(dev):
        return []
    host = dev.name in HOST_DEVICES
    used = [row for row in held if row.device_name == dev.name]
    primaries = [*own, *(row.address for row in used if row.primary), *before.primary]
    node_ports = [*own, *(row.address for row in used if row.node_port), *before.node_port]
    wanted = [a for a in sorted_addresses(dev.addresses) if _counts(a, config, host)]
    primary: set[IP] = set()
    node_port: set[IP] = set()
    for ipv6 in (False, True):
        ips = [a.address for a in wanted if a.address.is_ipv6 is ipv6]
        primary.update(choose_address(sorted(ips, key=is_private), primaries))
        if not config.node_port_ranges and not host and dev.is_up:
            node_port.update(choose_address(sorted(ips, key=is_public), node_ports))
    if config.node_port_ranges and not host:
        node_port = {a.address for a in wanted if in_ranges(a.address, config)}
    return [
        NodeAddress(a.address, a.address in node_port, a.address in primary, dev.name)
        for a in wanted
    ]


def in_ranges(ip: IP, config: NodeAddressConfig) -> bool:
    return any(prefix.contains(ip) for prefix in config.node_port_ranges)


def _counts(address: DeviceAddress, config: NodeAddressConfig, host: bool) -> bool:
    """Our own host device may have link-local addresses only; they count nevertheless."""
    if host and address.scope == RouteScope.LINK:
        return True
    return address.scope <= config.scope_max and not address.address.is_loopback


def choose_address(ips: Sequence[IP], preferred: Iterable[IP]) -> Sequence[IP]:
    """Return the first preferred one that is there, else the first of `ips`; empty without any."""
    return next(([ip] for ip in preferred if ip in ips), ips[:1])


def fallback_addresses(devices: Iterable[Device]) -> list[NodeAddress]:
    """The best address of each family: selected device, public, scope, device index, address."""
    candidates = [
        (not dev.selected, not is_public(a.address), a.scope, dev.index, a.address)
        for dev in devices
        if not dev.name.startswith("lxc") and dev.name not in HOST_DEVICES
        for a in dev.addresses
        if not a.secondary
    ]
    found = []
    for ipv6 in (False, True):
        best = min((c for c in candidates if c[-1].is_ipv6 is ipv6), default=None)
        if best is not None:
            found.append(NodeAddress(best[-1], False, True, WILDCARD_DEVICE))
    return found


class NodeAddressController:
    """Keeps `node_addresses` what follows from devices and local routes."""

    def __init__(
        self,
        db: DB,
        devices: Table[Device],
        routes: Table[Route],
        node_addresses: RWTable[NodeAddress],
        config: NodeAddressConfig | None = None,
        own: OwnAddresses = none_known,
        before: Callable[[], InForce] = InForce,
    ) -> None:
        """`before`: reads what is in force; asked once, if there is no Node object then."""
        self._db = db
        self._devices = devices
        self._routes = routes
        self._table = node_addresses
        self._config = config or NodeAddressConfig()
        self._own = own
        self._read_before = before
        self._before: InForce | None = None
        with db.write_txn(node_addresses) as wtxn:
            self._done: Callable[[WriteTxn], None] | None = node_addresses.register_initializer(
                wtxn, "devices"
            )

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            await self.update().wait(settle_s=SETTLE_S)

    def update(self) -> WatchSet:
        """Write what changed; return what closes when there may be more to do.

        The table is initialized once devices and Node objects are known.
        """
        watches = WatchSet()
        txn = self._db.read_txn()
        ready, became_ready = self._devices.initialized_watch(txn)
        own = self._own(txn, watches)
        rows = self._wanted(txn, own or (), watches)
        if not ready:
            watches.add(became_ready)
            return watches
        with self._db.write_txn(self._table) as wtxn:
            for old in list(self._table.all(wtxn)):
                if node_address_key(old) not in rows:
                    self._table.delete(wtxn, old)
            for key, row in rows.items():
                if self._table.get(wtxn, key) != row:
                    self._table.insert(wtxn, row)
            if self._done is not None and own is not None:
                self._done(wtxn)
                self._done = None
        return watches

    def _wanted(
        self, txn: ReadTxn, own: Sequence[IP], watches: WatchSet
    ) -> dict[tuple[IP, str], NodeAddress]:
        """The rows by key. Until the devices are known, those of another start stay."""
        found, devices_changed = self._devices.all_watch(txn)
        devices, held = list(found), list(self._table.all(txn))
        routes, routes_changed = self._routes.prefix_watch(txn, (TABLE_LOCAL,))
        watches.add(devices_changed, routes_changed)
        before = self._in_force(own)
        rows = [
            row for dev in devices for row in device_addresses(dev, self._config, own, held, before)
        ]
        with_rows = {row.device_name for row in rows}
        rows += self._local_routes(txn, routes, {row.address for row in rows})
        rows += fallback_addresses(dev for dev in devices if dev.name in with_rows)
        return {node_address_key(row): row for row in rows}

    def _in_force(self, own: Sequence[IP]) -> InForce:
        """What an agent before had chosen, as long as nobody says better."""
        if self._before is None:
            self._before = NOTHING if own else self._read_before()
        return self._before

    def _local_routes(
        self, txn: ReadTxn, routes: Iterable[Route], known: set[IP]
    ) -> list[NodeAddress]:
        """Addresses that are the node's by a route alone: cloud agents make such ones."""
        found = []
        for route in routes:
            ip = route.destination.ip
            local = route.type == RouteType.LOCAL and route.scope == RouteScope.HOST
            if not local or route.source is not None or not route.destination.is_host:
                continue
            if ip in known or ip.is_loopback or ip.is_unspecified:
                continue
            dev = self._devices.get(txn, route.link_index)
            if dev is None or not _usable(dev):
                continue
            node_port = dev.name not in HOST_DEVICES and in_ranges(ip, self._config)
            found.append(NodeAddress(ip, node_port, True, dev.name))
            known.add(ip)
        return found
