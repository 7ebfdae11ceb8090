# SPDX-License-Identifier: Apache-2.0
"""Devices to node addresses: which addresses this node has, and what each is good for.

*Primary* is the address that a device's traffic leaves with, a public one before a private one.
*Node port* addresses answer for node ports: those in the configured ranges, else one a device and
family, a private one before a public one. The fallback rows of device ``*`` are the best of all
devices, for whoever has no device to go by. The rules are those of cilium's node address table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from statedb import DB, Channel, ReadTxn, RWTable, Table, WatchSet, WriteTxn
from tables.addressing import IP, Prefix
from tables.node.devices import Device, DeviceAddress
from tables.node.node_addresses import WILDCARD_DEVICE, NodeAddress, node_address_key
from tables.node.routes import TABLE_LOCAL, Route, RouteScope, RouteType

__all__ = ["NodeAddressConfig", "NodeAddressController", "device_addresses", "fallback_addresses"]

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


NodeIPs = Callable[[ReadTxn], tuple[frozenset[IP], Channel | None]]
"""The addresses that the cluster knows this node by, and what closes when they change."""


def is_public(ip: IP) -> bool:
    return not any(prefix.contains(ip) for prefix in _PRIVATE)


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
    dev: Device, config: NodeAddressConfig, node_ips: frozenset[IP] = frozenset()
) -> list[NodeAddress]:
    """The rows of one device; none if its addresses are not the node's."""
    if not _usable(dev):
        return []
    host = dev.name in HOST_DEVICES
    wanted = [a for a in sorted_addresses(dev.addresses) if _counts(a, config, host)]
    primary: set[IP] = set()
    node_port: set[IP] = set()
    for ipv6 in (False, True):
        ips = [a.address for a in wanted if a.address.is_ipv6 is ipv6]
        public = _choose([ip for ip in ips if is_public(ip)], node_ips)
        private = _choose([ip for ip in ips if not is_public(ip)], node_ips)
        primary.update(public or private)
        if not config.node_port_ranges and not host and dev.is_up:
            node_port.update(private or public)
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


def _choose(ips: list[IP], preferred: frozenset[IP]) -> list[IP]:
    """The one to use: what the cluster knows the node by, else the first; empty without any."""
    return ([ip for ip in ips if ip in preferred] or ips)[:1]


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
        node_ips: NodeIPs | None = None,
    ) -> None:
        self._db = db
        self._devices = devices
        self._routes = routes
        self._table = node_addresses
        self._config = config or NodeAddressConfig()
        self._node_ips = node_ips or (lambda txn: (frozenset(), None))
        with db.write_txn(node_addresses) as wtxn:
            self._done: Callable[[WriteTxn], None] | None = node_addresses.register_initializer(
                wtxn, "devices"
            )

    async def run(self) -> None:
        """Runs until cancelled."""
        while True:
            watches = WatchSet()
            watches.add(*self.update())
            await watches.wait(settle_s=SETTLE_S)

    def update(self) -> list[Channel]:
        """Writes what changed; what closes when there may be more to do."""
        txn = self._db.read_txn()
        rows, watches = self._wanted(txn)
        ready, became_ready = self._devices.initialized_watch(txn)
        if not ready:
            return [*watches, became_ready]
        with self._db.write_txn(self._table) as wtxn:
            for old in list(self._table.all(wtxn)):
                if node_address_key(old) not in rows:
                    self._table.delete(wtxn, old)
            for key, row in rows.items():
                if self._table.get(wtxn, key) != row:
                    self._table.insert(wtxn, row)
            if self._done is not None:
                self._done(wtxn)
                self._done = None
        return watches

    def _wanted(self, txn: ReadTxn) -> tuple[dict[tuple[IP, str], NodeAddress], list[Channel]]:
        """The rows by key. Until the devices are known, those of another start stay."""
        found, devices_changed = self._devices.all_watch(txn)
        devices = list(found)
        routes, routes_changed = self._routes.prefix_watch(txn, (TABLE_LOCAL,))
        node_ips, ips_changed = self._node_ips(txn)
        rows = [r for dev in devices for r in device_addresses(dev, self._config, node_ips)]
        with_rows = {row.device_name for row in rows}
        rows += self._local_routes(txn, routes, {row.address for row in rows})
        rows += fallback_addresses(dev for dev in devices if dev.name in with_rows)
        watches = [devices_changed, routes_changed]
        if ips_changed is not None:
            watches.append(ips_changed)
        return {node_address_key(row): row for row in rows}, watches

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
