# SPDX-License-Identifier: Apache-2.0
"""CHECK: what the kernel has of an endpoint, compared with what it was given.

On the node: device, routes, neighbours, entries of the maps. In the workload's namespace: device,
addresses, routes, neighbours. A neighbour entry is nobody's to make: the kernel learns it. One that
leads elsewhere cuts the workload off.

All of this blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from cilia.endpoints.links import Interior
from cilia.identity.ipcache.known import KnownAddresses
from cilia.linux import rtnl
from cilia.linux.netlink import Netlink
from cilia.linux.netns import NetNS
from reconcilers.endpoints.endpoints import EndpointOperations
from tables.addressing import IP
from tables.endpoints.endpoints import Endpoint
from tables.node.devices import GROUP_CHAINED, GROUP_ENDPOINT
from tables.node.routes import TABLE_MAIN

__all__ = ["EndpointCheck"]

IFF_UP: Final = 0x1
#: States of a neighbour whose address is used: reachable, stale, delay, probe, noarp, permanent.
NUD_VALID: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x40 | 0x80


class EndpointCheck:
    """`netlink` is that of the node."""

    def __init__(
        self, netlink: Netlink, operations: EndpointOperations, addresses: KnownAddresses
    ) -> None:
        self._netlink = netlink
        self._operations = operations
        self._addresses = addresses

    def differences(self, ep: Endpoint, netns: NetNS | None, interior: Interior) -> list[str]:
        """Return what differs, a sentence each; without a namespace what is on the node alone.

        Raises: OSError.
        """
        found = [
            *self._device(ep),
            *self._operations.differences(ep),
            *self._addresses.differences(ep.addresses, ep.identity),
        ]
        if netns is not None:
            with Netlink(netns) as inside:
                found += _interior(inside, ep, interior)
        return found

    def _device(self, ep: Endpoint) -> Iterator[str]:
        link = self._netlink.link(ep.device)
        if link is None:
            yield f"the node has no device {ep.device}"
            return
        group = GROUP_CHAINED if ep.is_chained else GROUP_ENDPOINT
        if link.index != ep.index or link.group != group:
            yield f"{ep.device} is another device than the one that was made"
            return
        yield from _link(link, ep.node_mac)
        if ep.is_chained:
            return  # the plugin that has the routes is asked itself
        routes = self._netlink.routes(index=link.index, table=TABLE_MAIN)
        ways = {(route.destination, route.prefix_len) for route in routes}
        for ip in ep.addresses:
            if (ip.packed, ip.bits) not in ways:
                yield f"the node has no route to {ip} by {ep.device}"
        yield from _neighbors(self._netlink, link, ep.addresses, ep.mac)


def _interior(inside: Netlink, ep: Endpoint, interior: Interior) -> Iterator[str]:
    link = inside.link(interior.ifname)
    if link is None:
        yield f"there is no device {interior.ifname}"
        return
    yield from _link(link, ep.mac)
    addresses = {row.address for row in inside.addresses() if row.index == link.index}
    for ip in interior.addresses:
        if ip.packed not in addresses:
            yield f"{interior.ifname} has no address {ip}"
    routes = inside.routes(index=link.index, table=TABLE_MAIN)
    ways = {(route.destination, route.prefix_len, route.gateway) for route in routes}
    for router in interior.routers:
        if (router.packed, router.bits, b"") not in ways:
            yield f"{interior.ifname} has no route to the gateway {router}"
        if (bytes(len(router.packed)), 0, router.packed) not in ways:
            yield f"{interior.ifname} has no default route by {router}"
    yield from _neighbors(inside, link, interior.routers, ep.node_mac)


def _link(link: rtnl.LinkMessage, mac: bytes) -> Iterator[str]:
    if not link.flags & IFF_UP:
        yield f"{link.name} is down"
    if link.hardware_address != mac:
        yield f"{link.name} has the address {link.hardware_address.hex(':')}, not {mac.hex(':')}"


def _neighbors(
    netlink: Netlink, link: rtnl.LinkMessage, ips: Iterable[IP], mac: bytes
) -> Iterator[str]:
    """Yield the entries of these addresses that lead to another Ethernet address."""
    known = {ip.packed: ip for ip in ips}
    for entry in netlink.neighbors():
        if entry.index != link.index or entry.address not in known:
            continue
        if entry.state & NUD_VALID and entry.hardware_address != mac:
            where = entry.hardware_address.hex(":")
            yield f"{link.name} takes {where} for {known[entry.address]}, which has {mac.hex(':')}"
