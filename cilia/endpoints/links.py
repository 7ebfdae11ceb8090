# SPDX-License-Identifier: Apache-2.0
"""The pair of devices of an endpoint: one end on the node, one in the workload's namespace.

One request makes both ends, each where it belongs and with its final name. The node's end carries a
group number of ours from that moment on, so that no device of ours could be taken for another
plugin's. Its name is a hash of what the runtime knows the endpoint by, as in the field: a request
to delete finds the device even if everything else was lost.

All of this blocks, and knows no table.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import msgspec

from cilia.linux import rtnl
from cilia.linux.errors import KernelError, NetlinkError, NoDevice
from cilia.linux.netlink import Netlink
from cilia.linux.netns import NetNS
from cilia.linux.requests import add_address, add_route, create_veth, delete_link, set_link
from cilia.linux.sysctl import Sysctl
from tables.addressing import IP
from tables.node.devices import GROUP_CHAINED, GROUP_ENDPOINT
from tables.node.routes import TABLE_MAIN, RouteScope

__all__ = [
    "Interior",
    "Pair",
    "configure",
    "delete_pair",
    "device_name",
    "endpoint_devices",
    "make_pair",
]

PREFIX: Final = "lxc"
NAME_DIGITS: Final = 12

#: What is off at the node's end, whatever the node's defaults are: it takes nothing from a
#: workload, and looks for no duplicate of its address on a link of two ends, which would hold up
#: for two seconds what the node sends by IPv6.
OFF: Final = (
    ("ipv6", "accept_dad"),
    ("ipv6", "accept_ra"),
    ("ipv6", "accept_redirects"),
    ("ipv6", "autoconf"),
    ("ipv4", "accept_redirects"),
    ("ipv4", "accept_source_route"),
)

SO_NETNS_COOKIE: Final = 71
RTPROT_BOOT: Final = 3
IFA_F_NODAD: Final = 0x02


@dataclass(frozen=True)
class Pair:
    """The two ends: the node's by name and index, both by Ethernet address."""

    device: str
    index: int
    node_mac: bytes
    mac: bytes


@dataclass(frozen=True)
class Interior:
    """What the workload is to find in its namespace."""

    ifname: str
    addresses: tuple[IP, ...]
    # Gateways, one a family.
    routers: tuple[IP, ...]
    # Of the default route; 0: the device's.
    route_mtu: int = 0


def device_name(container_id: str, ifname: str) -> str:
    """Return the name of the node's end."""
    digest = hashlib.sha256(f"{container_id}:{ifname}".encode()).hexdigest()
    return PREFIX + digest[:NAME_DIGITS]


def new_mac() -> bytes:
    """Return a random address that is nobody's: unicast, locally administered."""
    raw = bytearray(secrets.token_bytes(6))
    raw[0] = raw[0] & 0xFC | 0x02
    return bytes(raw)


def netns_cookie(netns: NetNS) -> int:
    """Return the kernel's number of a namespace, 0 where it has none for sockets (before 5.14)."""
    with netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            raw = sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            return 0
    return int(struct.unpack("=Q", raw)[0])


def make_pair(
    netlink: Netlink,
    sysctls: Sysctl,
    netns: NetNS,
    device: str,
    ifname: str,
    mac: bytes,
    node_mac: bytes,
    mtu: int,
) -> int:
    """Make both ends, the node's one up; return its index. `sysctls` are those of the node.

    A device of ours with this name is left of a request that never ended: it goes first, with its
    other end.

    Raises: NetlinkError; KernelError for a device of this name that is not ours.
    """
    delete_pair(netlink, device)
    request = create_veth(
        device,
        ifname,
        group=GROUP_ENDPOINT,
        mtu=mtu,
        hardware_address=node_mac,
        up=False,
        peer_hardware_address=mac,
        peer_netns_fd=netns.fd,
    )
    try:
        netlink.request(request)
    except NetlinkError as error:
        if error.errno != errno.EEXIST:
            raise
        raise KernelError(errno.EEXIST, f"the container has a device {ifname} already") from None
    link = netlink.link(device)
    if link is None:
        raise NoDevice(device)
    for family, name in OFF:
        try:
            sysctls.write(f"net.{family}.conf.{device}.{name}", "0")
        except FileNotFoundError:
            continue  # a kernel without this family
    netlink.request(set_link(link.index, up=True))
    return link.index


def delete_pair(netlink: Netlink, device: str) -> bool:
    """Remove both ends, which may be gone; return True if they were there.

    Raises: NetlinkError; KernelError for a device of this name that is not ours.
    """
    link = netlink.link(device)
    if link is None:
        return False
    if link.group != GROUP_ENDPOINT:
        raise KernelError(errno.EEXIST, f"device {device} is not ours: it stays")
    try:
        netlink.request(delete_link(link.index))
    except NetlinkError as error:
        if error.errno != errno.ENODEV:
            raise
    return True


def endpoint_devices(netlink: Netlink) -> dict[str, rtnl.LinkMessage]:
    """Return the node's ends of all endpoints' pairs, of chained ones too, by name."""
    groups = (GROUP_ENDPOINT, GROUP_CHAINED)
    return {link.name: link for link in netlink.links() if link.group in groups}


def configure(netns: NetNS, sysctls: Sysctl, interior: Interior) -> None:
    """Give the workload's end its addresses and routes, and bring it up. `sysctls` are those of its
    namespace.

    Raises: NoDevice, NetlinkError, OSError.
    """
    if any(ip.is_ipv6 for ip in interior.addresses):
        _enable_ipv6(sysctls)
    with Netlink(netns) as inside:
        link = inside.link(interior.ifname)
        if link is None:
            raise NoDevice(interior.ifname)
        inside.request(set_link(link.index, up=True))
        for ip in interior.addresses:
            inside.request(add_address(_address(link.index, ip)))
        for router in interior.routers:
            for route in _routes(link.index, router, interior.route_mtu):
                inside.request(add_route(route))


def _enable_ipv6(sysctls: Sysctl) -> None:
    for name in ("all", "default"):
        try:
            sysctls.write(f"net.ipv6.conf.{name}.disable_ipv6", "0")
        except FileNotFoundError:
            raise KernelError(
                errno.EAFNOSUPPORT, "this kernel has no IPv6: start with --enable-ipv6=false"
            ) from None


def _address(index: int, ip: IP) -> rtnl.AddressMessage:
    flags = IFA_F_NODAD if ip.is_ipv6 else 0
    return rtnl.AddressMessage(False, index, ip.packed, ip.bits, RouteScope.UNIVERSE, flags)


def _routes(index: int, router: IP, mtu: int) -> Iterable[rtnl.RouteMessage]:
    """To the gateway, which is on no subnet, and by it to everywhere."""
    packed = router.packed
    to_router = rtnl.RouteMessage(
        family=rtnl.AF_INET6 if router.is_ipv6 else rtnl.AF_INET,
        destination=packed,
        prefix_len=router.bits,
        table=TABLE_MAIN,
        index=index,
        protocol=RTPROT_BOOT,
        scope=RouteScope.LINK,
    )
    yield to_router
    yield msgspec.structs.replace(
        to_router,
        destination=bytes(len(packed)),
        prefix_len=0,
        gateway=packed,
        scope=RouteScope.UNIVERSE,
        mtu=mtu,
    )


def open_netns(fd: int) -> NetNS:
    """Return a namespace that does not close the caller's descriptor."""
    return NetNS(os.dup(fd))
