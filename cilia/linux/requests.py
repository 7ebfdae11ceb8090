# SPDX-License-Identifier: Apache-2.0
"""Requests that change the kernel, made from the same values that it reports (`rtnl`).

So what we want and what is there compare with `==`, and a test can send a value and read it back.
pyroute2's message classes do the encoding.
"""

from __future__ import annotations

from socket import AF_INET, AF_INET6, inet_ntop
from typing import Any, Final

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cilia.linux import rtnl
from cilia.linux.netlink import NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Request

__all__ = [
    "IFA_F_DEPRECATED",
    "add_address",
    "add_route",
    "add_rule",
    "create_veth",
    "create_vxlan",
    "delete_address",
    "delete_link",
    "delete_route",
    "delete_rule",
    "set_link",
]

IFF_UP: Final = 0x1
IFA_F_DEPRECATED: Final = 0x20
FOR_EVER: Final = 0xFFFFFFFF  # a lifetime
RT_SCOPE_NOWHERE: Final = 255
RT_TABLE_COMPAT: Final = 252  # the table's number stands in an attribute

Attributes = list[tuple[str, Any]]


def _text(packed: bytes) -> str:
    return inet_ntop(AF_INET if len(packed) == 4 else AF_INET6, packed)


def _message(message: Any, fields: dict[str, Any], attributes: Attributes) -> Any:
    message.update(fields)
    message["attrs"] = attributes
    return message


# Routes


def route_text(route: rtnl.RouteMessage) -> str:
    return f"route {_text(route.destination)}/{route.prefix_len} table {route.table}"


def add_route(route: rtnl.RouteMessage, *, replace: bool = False) -> Request:
    """Adds a route; refused (EEXIST) where one of this key is, unless that is to be replaced.

    The key is table, destination, metric and TOS. The kernel replaces in one step: no packet finds
    neither of the two.
    """
    attributes = _route_key(route)
    if route.index:
        attributes.append(("RTA_OIF", route.index))
    if route.gateway:
        attributes.append(("RTA_GATEWAY", _text(route.gateway)))
    if route.source:
        attributes.append(("RTA_PREFSRC", _text(route.source)))
    if route.mtu:
        attributes.append(("RTA_METRICS", {"attrs": [("RTAX_MTU", route.mtu)]}))
    if route.nexthops:
        attributes.append(("RTA_MULTIPATH", [_way(hop) for hop in route.nexthops]))
    fields = _route_fields(route) | {"scope": route.scope, "type": route.kind}
    flags = NLM_F_CREATE | (NLM_F_REPLACE if replace else NLM_F_EXCL)
    what = f"{'replace' if replace else 'add'} {route_text(route)}"
    return Request(_message(rtmsg(), fields, attributes), rtnl.RTM_NEWROUTE, flags, what)


def delete_route(route: rtnl.RouteMessage) -> Request:
    """Deletes the route of this key and protocol, whatever its scope and ways.

    To an IPv4 metric of 0 the kernel takes the first of any metric: look before.
    """
    fields = _route_fields(route) | {"scope": RT_SCOPE_NOWHERE, "type": 0}
    message = _message(rtmsg(), fields, _route_key(route))
    return Request(message, rtnl.RTM_DELROUTE, 0, f"delete {route_text(route)}")


def _route_fields(route: rtnl.RouteMessage) -> dict[str, Any]:
    return {
        "family": route.family,
        "dst_len": route.prefix_len,
        "src_len": 0,
        "tos": route.tos,
        "table": route.table if route.table < 256 else RT_TABLE_COMPAT,
        "proto": route.protocol,
        "flags": 0,
    }


def _route_key(route: rtnl.RouteMessage) -> Attributes:
    found: Attributes = [("RTA_TABLE", route.table)]
    if route.prefix_len:
        found.append(("RTA_DST", _text(route.destination)))
    if route.priority:
        found.append(("RTA_PRIORITY", route.priority))
    return found


def _way(hop: rtnl.NextHop) -> dict[str, Any]:
    attributes = [("RTA_GATEWAY", _text(hop.gateway))] if hop.gateway else []
    return {"oif": hop.index, "hops": hop.weight - 1, "flags": 0, "attrs": attributes}


# Addresses


def add_address(address: rtnl.AddressMessage) -> Request:
    """Adds an address; refused (EEXIST) where the device has it."""
    return Request(_address(address), rtnl.RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, _what(address))


def delete_address(address: rtnl.AddressMessage) -> Request:
    """Deletes an address, whoever made it."""
    return Request(_address(address), rtnl.RTM_DELADDR, 0, f"delete {_what(address)}")


def _what(address: rtnl.AddressMessage) -> str:
    return f"address {_text(address.address)}/{address.prefix_len} of device {address.index}"


def _address(address: rtnl.AddressMessage) -> Any:
    text = _text(address.address)
    fields = {
        "family": AF_INET if len(address.address) == 4 else AF_INET6,
        "prefixlen": address.prefix_len,
        "flags": address.flags & 0xFF,
        "scope": address.scope,
        "index": address.index,
    }
    attributes: Attributes = [
        ("IFA_LOCAL", text),
        ("IFA_ADDRESS", text),
        ("IFA_FLAGS", address.flags),
        ("IFA_PROTO", address.protocol),
    ]
    if address.flags & IFA_F_DEPRECATED:
        attributes.append(("IFA_CACHEINFO", {"ifa_preferred": 0, "ifa_valid": FOR_EVER}))
    return _message(ifaddrmsg(), fields, attributes)


# Rules


def add_rule(rule: rtnl.RuleMessage) -> Request:
    """Adds a rule; refused (EEXIST) where an equal one is, whoever made it."""
    flags = NLM_F_CREATE | NLM_F_EXCL
    return Request(_rule(rule), rtnl.RTM_NEWRULE, flags, f"add rule {rule.priority}")


def delete_rule(rule: rtnl.RuleMessage) -> Request:
    """Deletes an equal rule."""
    return Request(_rule(rule), rtnl.RTM_DELRULE, 0, f"delete rule {rule.priority}")


def _rule(rule: rtnl.RuleMessage) -> Any:
    fields = {
        "family": rule.family,
        "dst_len": rule.destination_len,
        "src_len": rule.source_len,
        "tos": 0,
        "table": rule.table if rule.table < 256 else RT_TABLE_COMPAT,
        "action": rule.action,
        "flags": 2 if rule.invert else 0,
    }
    attributes: Attributes = [("FRA_PRIORITY", rule.priority), ("FRA_TABLE", rule.table)]
    if rule.source:
        attributes.append(("FRA_SRC", _text(rule.source)))
    if rule.destination:
        attributes.append(("FRA_DST", _text(rule.destination)))
    if rule.mark or rule.mask:
        attributes += [("FRA_FWMARK", rule.mark), ("FRA_FWMASK", rule.mask)]
    if rule.input_device:
        attributes.append(("FRA_IIFNAME", rule.input_device))
    if rule.output_device:
        attributes.append(("FRA_OIFNAME", rule.output_device))
    attributes.append(("FRA_PROTOCOL", rule.protocol))
    return _message(fibmsg(), fields, attributes)


# Devices


def _link_fields(index: int, up: bool | None) -> dict[str, Any]:
    change = 0 if up is None else IFF_UP
    return {
        "family": 0,
        "ifi_type": 0,
        "index": index,
        "flags": IFF_UP if up else 0,
        "change": change,
    }


def _link_attributes(mtu: int, hardware_address: bytes) -> Attributes:
    found: Attributes = []
    if mtu:
        found.append(("IFLA_MTU", mtu))
    if hardware_address:
        found.append(("IFLA_ADDRESS", hardware_address.hex(":")))
    return found


def _create(name: str, group: int, up: bool, common: Attributes, kind: str, info: Any) -> Request:
    link_info = {"attrs": [("IFLA_INFO_KIND", kind), ("IFLA_INFO_DATA", info)]}
    attributes = [
        ("IFLA_IFNAME", name),
        ("IFLA_GROUP", group),
        *common,
        ("IFLA_LINKINFO", link_info),
    ]
    message = _message(ifinfmsg(), _link_fields(0, up), attributes)
    return Request(message, rtnl.RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, f"create {kind} {name}")


def create_veth(
    name: str,
    peer: str,
    *,
    group: int,
    mtu: int = 0,
    hardware_address: bytes = b"",
    up: bool,
    peer_hardware_address: bytes = b"",
    peer_netns_fd: int | None = None,
) -> Request:
    """Makes a pair of devices; group, hardware address and `up` are those of the first.

    The second cannot be up already: it is opened before the two know each other (ENOTCONN). With a
    descriptor of a namespace it is made there.
    """
    attributes = [("IFLA_IFNAME", peer), *_link_attributes(mtu, peer_hardware_address)]
    if peer_netns_fd is not None:
        attributes.append(("IFLA_NET_NS_FD", peer_netns_fd))
    end = _link_fields(0, None) | {"attrs": attributes}
    info = {"attrs": [("VETH_INFO_PEER", end)]}
    common = _link_attributes(mtu, hardware_address)
    return _create(name, group, up, common, "veth", info)


def create_vxlan(
    name: str,
    *,
    group: int,
    port: int,
    vni: int | None,
    learning: bool,
    mtu: int = 0,
    hardware_address: bytes = b"",
    up: bool,
) -> Request:
    """Makes a VXLAN device; without a VNI, one whose tunnel is chosen packet by packet."""
    attributes: Attributes = [
        ("IFLA_VXLAN_PORT", port),
        ("IFLA_VXLAN_LEARNING", int(learning)),
    ]
    if vni is None:
        attributes.append(("IFLA_VXLAN_COLLECT_METADATA", 1))
    else:
        attributes.append(("IFLA_VXLAN_ID", vni))
    common = _link_attributes(mtu, hardware_address)
    return _create(name, group, up, common, "vxlan", {"attrs": attributes})


def set_link(
    index: int,
    *,
    mtu: int = 0,
    hardware_address: bytes = b"",
    up: bool | None = None,
    group: int | None = None,
) -> Request:
    """Changes a device; what is 0, empty or None stays as it is."""
    attributes = _link_attributes(mtu, hardware_address)
    if group is not None:
        attributes.append(("IFLA_GROUP", group))
    message = _message(ifinfmsg(), _link_fields(index, up), attributes)
    return Request(message, rtnl.RTM_NEWLINK, 0, f"set device {index}")


def delete_link(index: int) -> Request:
    """Removes a virtual device; of a pair, both ends."""
    message = _message(ifinfmsg(), _link_fields(index, None), [])
    return Request(message, rtnl.RTM_DELLINK, 0, f"delete device {index}")
