# SPDX-License-Identifier: Apache-2.0
"""What rtnetlink says, as values: one struct a kind of message, decoded from the raw datagram.

Only the attributes that the tables need are looked at, so a route costs a few microseconds where a
general decoder takes tens: a burst of 10,000 routes must not hold up the link event behind it.
Requests are rare and varied; they are built with pyroute2's message classes (`netlink.py`).

Addresses are in network order, 4 or 16 bytes, `b""` where the kernel gave none. Layouts:
linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h, linux/neighbour.h, linux/fib_rules.h.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

__all__ = [
    "AddressMessage",
    "FilterMessage",
    "LinkMessage",
    "Message",
    "NeighborMessage",
    "NextHop",
    "NexthopObjectMessage",
    "RouteMessage",
    "RuleMessage",
    "attributes",
    "decode",
    "headers",
]

NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_DUMP_INTR: Final = 0x10
NLM_F_REPLACE: Final = 0x100
NLM_F_APPEND: Final = 0x800

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE, RTM_GETRULE = 32, 33, 34
RTM_DELQDISC = 37
RTM_NEWTFILTER, RTM_DELTFILTER, RTM_GETTFILTER = 44, 45, 46
RTM_NEWNEXTHOP, RTM_DELNEXTHOP = 104, 105

AF_INET, AF_INET6, AF_BRIDGE = 2, 10, 7
RTM_F_CLONED: Final = 0x200

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_ROUTE = struct.Struct("=BBBBBBBBI")
_NEXTHOP = struct.Struct("=HBBi")
_NEIGHBOR = struct.Struct("=BxxxiHBB")
_RULE = struct.Struct("=BBBBBBBBI")
_FILTER = struct.Struct("=BxxxiIII")
_U32 = struct.Struct("=I")


class LinkMessage(msgspec.Struct, frozen=True, gc=False):
    """RTM_NEWLINK, RTM_DELLINK of the device itself (bridge port messages are left out)."""

    deleted: bool
    index: int
    name: str
    alternative_names: tuple[str, ...]
    kind: str  # IFLA_INFO_KIND: "veth", "vxlan", ...; "" for a plain device
    flags: int  # IFF_*
    mtu: int
    hardware_address: bytes
    master: int  # index of the bridge or bond, 0 = none
    peer: int  # IFLA_LINK: the other end of a veth, the lower device; 0 = none
    peer_netns: int  # IFLA_LINK_NETNSID, -1 = this namespace
    oper_state: int  # IF_OPER_*
    group: int  # a number to tell devices apart by; 0 unless someone set it
    info: bytes  # IFLA_INFO_DATA: attributes that depend on the kind
    xdp: bytes  # IFLA_XDP: attributes


class AddressMessage(msgspec.Struct, frozen=True, gc=False):
    """RTM_NEWADDR, RTM_DELADDR; `address` is the local one of a point-to-point pair."""

    deleted: bool
    index: int
    address: bytes
    prefix_len: int
    scope: int
    flags: int = 0  # IFA_F_*; IFA_F_DEPRECATED is asked for by a lifetime
    protocol: int = 0  # IFA_PROTO: who made it (since Linux 5.18)


class NextHop(msgspec.Struct, frozen=True, gc=False):
    """One way of a multipath route."""

    index: int
    gateway: bytes
    weight: int  # 1..256


class RouteMessage(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """RTM_NEWROUTE, RTM_DELROUTE."""

    deleted: bool = False
    replaces: bool = False  # NLM_F_REPLACE: its predecessor is gone without a message
    family: int
    destination: bytes  # full length of the family, also for 0.0.0.0/0
    prefix_len: int
    table: int
    index: int = 0  # 0 for a multipath route and for types without a device
    gateway: bytes = b""
    source: bytes = b""  # preferred source
    priority: int = 0
    protocol: int = 0
    scope: int = 0
    kind: int = 1  # RTN_*
    tos: int = 0
    mtu: int = 0
    nexthops: tuple[NextHop, ...] = ()


class NeighborMessage(msgspec.Struct, frozen=True, gc=False):
    """RTM_NEWNEIGH, RTM_DELNEIGH of the ARP and ND tables (bridge entries are left out)."""

    deleted: bool
    index: int
    address: bytes
    hardware_address: bytes
    kind: int
    state: int  # NUD_*
    flags: int  # NTF_*
    flags_ext: int  # NTF_EXT_*


class RuleMessage(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    """RTM_NEWRULE, RTM_DELRULE."""

    deleted: bool = False
    family: int
    priority: int
    table: int
    action: int = 1  # FR_ACT_*
    protocol: int = 0
    source: bytes = b""
    source_len: int = 0
    destination: bytes = b""
    destination_len: int = 0
    mark: int = 0
    mask: int = 0
    input_device: str = ""
    output_device: str = ""
    invert: bool = False


class FilterMessage(msgspec.Struct, frozen=True, gc=False):
    """RTM_NEWTFILTER, RTM_DELTFILTER: a tc filter came, changed or went.

    Handle 0 stands for all filters of a priority; one that goes with its qdisc is not announced,
    the qdisc is (RTM_DELQDISC, kind "clsact" or another, shown here with handle 0 too).
    """

    deleted: bool
    index: int
    parent: int  # 0xfffffff2 clsact ingress, 0xfffffff3 egress
    priority: int
    handle: int
    kind: str  # "bpf"
    options: bytes


class NexthopObjectMessage(msgspec.Struct, frozen=True, gc=False):
    """RTM_NEWNEXTHOP, RTM_DELNEXTHOP: routes that use the object change without a message."""

    deleted: bool
    replaces: bool


Message = (
    LinkMessage
    | AddressMessage
    | RouteMessage
    | NeighborMessage
    | RuleMessage
    | FilterMessage
    | NexthopObjectMessage
)


def attributes(payload: bytes, offset: int = 0, end: int | None = None) -> dict[int, bytes]:
    """Attribute number -> value; the nested and byte-order bits of the number are dropped.

    Raises:
        ValueError: a length that leaves the buffer.
    """
    found: dict[int, bytes] = {}
    limit = len(payload) if end is None else end
    unpack = _ATTRIBUTE.unpack_from
    while offset + 4 <= limit:
        length, kind = unpack(payload, offset)
        stop = offset + length
        if length < 4 or stop > limit:
            raise ValueError(f"netlink attribute {kind} of {length} bytes leaves its message")
        found[kind & 0x3FFF] = payload[offset + 4 : stop]
        offset += (length + 3) & ~3
    return found


def headers(data: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """(type, flags, sequence, start of the payload, end) of each message in a datagram.

    Raises:
        ValueError: a truncated message.
    """
    offset, size = 0, len(data)
    while offset + 16 <= size:
        length, kind, flags, sequence, _pid = _HEADER.unpack_from(data, offset)
        if length < 16 or offset + length > size:
            raise ValueError(f"netlink message of {length} bytes leaves its datagram")
        yield kind, flags, sequence, offset + 16, offset + length
        offset += (length + 3) & ~3


def decode(data: bytes) -> list[Message]:
    """The messages of one datagram that this module knows, in order."""
    messages: list[Message] = []
    for kind, flags, _sequence, start, end in headers(data):
        decoder = _DECODERS.get(kind)
        if decoder is not None:
            message = decoder(data, start, end, kind, flags)
            if message is not None:
                messages.append(message)
    return messages


def _u32(value: bytes | None, default: int = 0) -> int:
    return default if value is None else int.from_bytes(value[:4], sys.byteorder)


def _text(value: bytes | None) -> str:
    return "" if value is None else value.rstrip(b"\0").decode(errors="replace")


def _link(data: bytes, start: int, end: int, kind: int, _flags: int) -> Message | None:
    family, _type, index, flags, _change = _LINK.unpack_from(data, start)
    if family == AF_BRIDGE:  # a port joined or left a bridge: the device itself did not change
        return None
    found = attributes(data, start + 16, end)
    info = attributes(found[18]) if 18 in found else {}
    return LinkMessage(
        deleted=kind == RTM_DELLINK,
        index=index,
        name=_text(found.get(3)),
        alternative_names=_alternative_names(found.get(52)),
        kind=_text(info.get(1)),
        flags=flags,
        mtu=_u32(found.get(4)),
        hardware_address=found.get(1, b""),
        master=_u32(found.get(10)),
        peer=_u32(found.get(5)),
        peer_netns=int.from_bytes(found.get(37, b"\xff" * 4), sys.byteorder, signed=True),
        oper_state=found.get(16, b"\0")[0],
        group=_u32(found.get(27)),
        info=info.get(2, b""),
        xdp=found.get(43, b""),
    )


def _alternative_names(properties: bytes | None) -> tuple[str, ...]:
    """IFLA_PROP_LIST is a list of attributes of one number, so `attributes` does not fit."""
    if properties is None:
        return ()
    names, offset = [], 0
    while offset + 4 <= len(properties):
        length, kind = _ATTRIBUTE.unpack_from(properties, offset)
        if length < 4:
            break
        if kind & 0x3FFF == 53:
            names.append(_text(properties[offset + 4 : offset + length]))
        offset += (length + 3) & ~3
    return tuple(names)


def _address(data: bytes, start: int, end: int, kind: int, _flags: int) -> Message | None:
    _family, prefix_len, flags, scope, index = _ADDRESS.unpack_from(data, start)
    found = attributes(data, start + 8, end)
    address = found.get(2) or found.get(1, b"")
    extended = found.get(8)
    return AddressMessage(
        deleted=kind == RTM_DELADDR,
        index=index,
        address=address,
        prefix_len=prefix_len,
        scope=scope,
        flags=flags if extended is None else _U32.unpack(extended)[0],
        protocol=found.get(11, b"\0")[0],
    )


def _route(data: bytes, start: int, end: int, kind: int, flags: int) -> Message | None:
    family, prefix_len, _src_len, tos, table, protocol, scope, type_, route_flags = (
        _ROUTE.unpack_from(data, start)
    )
    # Neither a cached clone (one packet's own route) nor a multicast route is part of the FIB.
    if route_flags & RTM_F_CLONED or family not in (AF_INET, AF_INET6):
        return None
    found = attributes(data, start + 12, end)
    get = found.get
    size = 4 if family == AF_INET else 16
    metrics = get(8)
    return RouteMessage(
        deleted=kind == RTM_DELROUTE,
        replaces=flags & NLM_F_REPLACE != 0,
        family=family,
        destination=get(1, b"").ljust(size, b"\0"),
        prefix_len=prefix_len,
        table=_u32(get(15), table),
        index=_u32(get(4)),
        gateway=get(5) or _via(get(18)),
        source=get(7, b""),
        priority=_u32(get(6)),
        protocol=protocol,
        scope=scope,
        kind=type_,
        tos=tos,
        mtu=_u32(attributes(metrics).get(2)) if metrics is not None else 0,
        nexthops=_nexthops(get(9)),
    )


def _via(value: bytes | None) -> bytes:
    """RTA_VIA: a gateway of the other family, behind its 2-byte family."""
    return b"" if value is None else value[2:]


def _nexthops(value: bytes | None) -> tuple[NextHop, ...]:
    if value is None:
        return ()
    hops, offset = [], 0
    while offset + 8 <= len(value):
        length, _flags, weight, index = _NEXTHOP.unpack_from(value, offset)
        if length < 8:
            raise ValueError(f"nexthop of {length} bytes")
        found = attributes(value, offset + 8, offset + length)
        hops.append(NextHop(index, found.get(5) or _via(found.get(18)), weight + 1))
        offset += (length + 3) & ~3
    return tuple(hops)


def _neighbor(data: bytes, start: int, end: int, kind: int, _flags: int) -> Message | None:
    family, index, state, flags, type_ = _NEIGHBOR.unpack_from(data, start)
    if family not in (AF_INET, AF_INET6):
        return None
    found = attributes(data, start + 12, end)
    return NeighborMessage(
        deleted=kind == RTM_DELNEIGH,
        index=index,
        address=found.get(1, b""),
        hardware_address=found.get(2, b""),
        kind=type_,
        state=state,
        flags=flags,
        flags_ext=_u32(found.get(15)),
    )


def _rule(data: bytes, start: int, end: int, kind: int, _flags: int) -> Message | None:
    family, dst_len, src_len, _tos, table, _res1, _res2, action, flags = _RULE.unpack_from(
        data, start
    )
    if family not in (AF_INET, AF_INET6):
        return None
    found = attributes(data, start + 12, end)
    return RuleMessage(
        deleted=kind == RTM_DELRULE,
        family=family,
        priority=_u32(found.get(6)),
        table=_u32(found.get(15), table),
        action=action,
        protocol=found.get(21, b"\0")[0],
        source=found.get(2, b""),
        source_len=src_len,
        destination=found.get(1, b""),
        destination_len=dst_len,
        mark=_u32(found.get(10)),
        mask=_u32(found.get(16)),
        input_device=_text(found.get(3)),
        output_device=_text(found.get(17)),
        invert=flags & 2 != 0,
    )


def _filter(data: bytes, start: int, end: int, kind: int, _flags: int) -> Message | None:
    _family, index, handle, parent, info = _FILTER.unpack_from(data, start)
    found = attributes(data, start + 20, end)
    return FilterMessage(
        deleted=kind in (RTM_DELTFILTER, RTM_DELQDISC),
        index=index,
        parent=parent,
        priority=info >> 16,
        handle=0 if kind == RTM_DELQDISC else handle,
        kind=_text(found.get(1)),
        options=found.get(2, b""),
    )


def _nexthop_object(_data: bytes, _start: int, _end: int, kind: int, flags: int) -> Message | None:
    return NexthopObjectMessage(kind == RTM_DELNEXTHOP, flags & NLM_F_REPLACE != 0)


_Decoder = Callable[[bytes, int, int, int, int], Message | None]
_DECODERS: Final[dict[int, _Decoder]] = {
    RTM_NEWLINK: _link,
    RTM_DELLINK: _link,
    RTM_NEWADDR: _address,
    RTM_DELADDR: _address,
    RTM_NEWROUTE: _route,
    RTM_DELROUTE: _route,
    RTM_NEWNEIGH: _neighbor,
    RTM_DELNEIGH: _neighbor,
    RTM_NEWRULE: _rule,
    RTM_DELRULE: _rule,
    RTM_NEWTFILTER: _filter,
    RTM_DELTFILTER: _filter,
    RTM_DELQDISC: _filter,
    RTM_NEWNEXTHOP: _nexthop_object,
    RTM_DELNEXTHOP: _nexthop_object,
}
