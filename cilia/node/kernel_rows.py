# SPDX-License-Identifier: Apache-2.0
"""What rtnetlink says, as rows of the tables: one function a kind of message, none with a state."""

from __future__ import annotations

from cilia.linux import rtnl
from tables.addressing import IP, Prefix
from tables.node.devices import Device, DeviceAddress
from tables.node.neighbors import Neighbor
from tables.node.routes import Route, RouteHop
from tables.node.rules import Rule

__all__ = ["address_row", "device_row", "neighbor_row", "route_row", "rule_row"]

IFA_F_SECONDARY = 0x01


def device_row(message: rtnl.LinkMessage, old: Device | None) -> Device:
    """The device of a message; its addresses and its selection are kept from `old`."""
    return Device(
        index=message.index,
        name=message.name,
        alternative_names=message.alternative_names,
        type=message.kind or "device",
        mtu=message.mtu,
        hardware_address=message.hardware_address,
        flags=message.flags,
        master_index=message.master,
        peer_index=message.peer,
        oper_state=message.oper_state,
        group=message.group,
        addresses=old.addresses if old else (),
        selected=old.selected if old else False,
        not_selected_reason=old.not_selected_reason if old else "",
    )


def address_row(message: rtnl.AddressMessage) -> DeviceAddress:
    return DeviceAddress(
        address=IP.from_packed(message.address),
        prefix_len=message.prefix_len,
        scope=message.scope,
        secondary=message.flags & IFA_F_SECONDARY != 0,
    )


def _ip(packed: bytes) -> IP | None:
    return IP.from_packed(packed) if packed else None


def _prefix(packed: bytes, length: int) -> Prefix | None:
    return Prefix.of(IP.from_packed(packed), length) if packed else None


def route_row(message: rtnl.RouteMessage) -> Route:
    return Route(
        table=message.table,
        link_index=message.index,
        destination=Prefix.of(IP.from_packed(message.destination), message.prefix_len),
        priority=message.priority,
        tos=message.tos,
        gateway=_ip(message.gateway),
        source=_ip(message.source),
        scope=message.scope,
        type=message.kind,
        protocol=message.protocol,
        mtu=message.mtu,
        nexthops=_hops(message.nexthops),
    )


def _hops(hops: tuple[rtnl.NextHop, ...]) -> tuple[RouteHop, ...]:
    """Sorted: events and dumps of IPv6 list the ways in different orders."""
    if not hops:
        return ()
    ordered = sorted(hops, key=lambda hop: (hop.index, hop.gateway, hop.weight))
    return tuple(RouteHop(hop.index, _ip(hop.gateway), hop.weight) for hop in ordered)


def neighbor_row(message: rtnl.NeighborMessage) -> Neighbor:
    return Neighbor(
        link_index=message.index,
        ip=IP.from_packed(message.address),
        hardware_address=message.hardware_address,
        type=message.kind,
        state=message.state,
        flags=message.flags,
        flags_ext=message.flags_ext,
    )


def rule_row(message: rtnl.RuleMessage) -> Rule:
    return Rule(
        family=message.family,
        priority=message.priority,
        table=message.table,
        source=_prefix(message.source, message.source_len),
        destination=_prefix(message.destination, message.destination_len),
        mark=message.mark,
        mask=message.mask,
        input_device=message.input_device,
        output_device=message.output_device,
        action=message.action,
        invert=message.invert,
        protocol=message.protocol,
    )
