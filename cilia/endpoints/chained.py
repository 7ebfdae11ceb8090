# SPDX-License-Identifier: Apache-2.0
"""Endpoints whose devices another plugin made: ours stands behind it in the runtime's list.

The other plugin has the pair of devices, the addresses and the routes, and keeps them. The node's
end of the pair gets a group number of ours while it is an endpoint's, so that a later run knows it
and no program for pods of others is put there.

All of this blocks, and knows no table.
"""

from __future__ import annotations

import errno
from ipaddress import ip_interface
from typing import Final

from cilia.endpoints import links
from cilia.endpoints.cni.results import Result
from cilia.endpoints.links import Pair
from cilia.linux.errors import KernelError, NetlinkError, NoDevice
from cilia.linux.netlink import Netlink
from cilia.linux.netns import NetNS
from cilia.linux.requests import set_link
from tables.addressing import IP
from tables.node.devices import GROUP_CHAINED

__all__ = ["addresses_of", "find_pair", "give_back", "let_go", "take"]

VETH: Final = "veth"
NO_GROUP: Final = 0


def addresses_of(result: Result, families: frozenset[bool]) -> tuple[IP | None, IP | None]:
    """Return the first address of IPv4 and of IPv6 that the other plugin gave.

    `families`: True for IPv6, False for IPv4; those of others are left out.
    """
    found: dict[bool, IP] = {}
    for given in result.ips:
        ip = IP.parse(str(ip_interface(given.address).ip))
        if ip.is_ipv6 in families:
            found.setdefault(ip.is_ipv6, ip)
    return found.get(False), found.get(True)


def find_pair(netlink: Netlink, netns: NetNS, ifname: str) -> Pair:
    """Return the pair of the interface of a container. `netlink` is that of the node.

    Raises: NoDevice; KernelError if it is no pair, or its other end is not on the node.
    """
    with Netlink(netns) as inside:
        end = inside.link(ifname)
    if end is None:
        raise NoDevice(ifname)
    if end.kind != VETH:
        kind = end.kind or "a plain device"
        raise KernelError(errno.EOPNOTSUPP, f"{ifname} is {kind}, not one end of a veth pair")
    for link in netlink.links():
        if (link.index, link.peer, link.kind) == (end.peer, end.index, VETH):
            return Pair(link.name, link.index, link.hardware_address, end.hardware_address)
    raise KernelError(errno.ENODEV, f"the other end of {ifname} is not on the node")


def take(netlink: Netlink, index: int) -> None:
    """Mark a device as that of an endpoint. Raises: NetlinkError."""
    netlink.request(set_link(index, group=GROUP_CHAINED))


def give_back(netlink: Netlink, device: str) -> bool:
    """Leave a device to the plugin that made it; false if it is gone or was not taken.

    Raises: NetlinkError.
    """
    link = netlink.link(device)
    if link is None or link.group != GROUP_CHAINED:
        return False
    try:
        netlink.request(set_link(link.index, group=NO_GROUP))
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
        return False
    return True


def let_go(netlink: Netlink, device: str) -> bool:
    """Remove the pair of an endpoint, or give it back where another plugin made it; false if there
    is none. Raises: NetlinkError; KernelError for a device that is no endpoint's.
    """
    return give_back(netlink, device) or links.delete_pair(netlink, device)
