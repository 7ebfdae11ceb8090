# SPDX-License-Identifier: Apache-2.0
"""The decoders against messages that another implementation (pyroute2) encoded."""

import socket
from typing import Any

import pytest
from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cilia.linux import rtnl


def encode(
    message: Any, kind: int, fields: dict[str, Any], attributes: list[Any], flags: int = 0
) -> bytes:
    message.update(fields)
    message["attrs"] = attributes
    message["header"] = {"type": kind, "flags": flags, "sequence_number": 7, "pid": 0}
    message.encode()
    data = bytes(message.data)
    return data + bytes(-len(data) % 4)


def one(data: bytes) -> Any:
    (message,) = rtnl.decode(data)
    return message


def test_link_with_kind_names_and_master() -> None:
    data = encode(
        ifinfmsg(),
        rtnl.RTM_NEWLINK,
        {"family": 0, "index": 9, "flags": 0x1043, "change": 0, "ifi_type": 1},
        [
            ("IFLA_IFNAME", "v0"),
            ("IFLA_MTU", 1450),
            ("IFLA_ADDRESS", "02:00:00:00:00:01"),
            ("IFLA_MASTER", 3),
            ("IFLA_LINK", 8),
            ("IFLA_LINK_NETNSID", 4),
            ("IFLA_OPERSTATE", "UP"),
            ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "veth")]}),
            (
                "IFLA_PROP_LIST",
                {"attrs": [("IFLA_ALT_IFNAME", "alt1"), ("IFLA_ALT_IFNAME", "alt2")]},
            ),
        ],
    )
    link = one(data)
    assert (link.index, link.name, link.kind, link.mtu, link.master) == (9, "v0", "veth", 1450, 3)
    assert link.alternative_names == ("alt1", "alt2")
    assert link.hardware_address == bytes.fromhex("020000000001")
    assert (link.peer, link.peer_netns, link.oper_state) == (8, 4, 6)
    assert link.flags == 0x1043
    assert not link.deleted


def test_a_bridge_port_message_is_not_the_device() -> None:
    fields = {"family": socket.AF_BRIDGE, "index": 9, "flags": 0, "change": 0, "ifi_type": 1}
    data = encode(ifinfmsg(), rtnl.RTM_DELLINK, fields, [("IFLA_IFNAME", "v0")])
    assert rtnl.decode(data) == []


def test_address_takes_the_local_side_and_the_wide_flags() -> None:
    data = encode(
        ifaddrmsg(),
        rtnl.RTM_DELADDR,
        {"family": socket.AF_INET, "prefixlen": 32, "flags": 0x80, "scope": 254, "index": 4},
        [("IFA_ADDRESS", "10.0.0.2"), ("IFA_LOCAL", "10.0.0.1"), ("IFA_FLAGS", 0x281)],
    )
    address = one(data)
    assert address == rtnl.AddressMessage(True, 4, bytes([10, 0, 0, 1]), 32, 254, 0x281, 0)


def route(family: int, attributes: list[Any], flags: int = 0, **fields: int) -> rtnl.RouteMessage:
    base = {
        "family": family,
        "dst_len": 0,
        "src_len": 0,
        "tos": 0,
        "table": 254,
        "proto": 3,
        "scope": 0,
        "type": 1,
        "flags": 0,
    }
    message = one(encode(rtmsg(), rtnl.RTM_NEWROUTE, base | fields, attributes, flags))
    assert isinstance(message, rtnl.RouteMessage)
    return message


def test_default_route_of_each_family_has_a_whole_destination() -> None:
    assert route(socket.AF_INET, [("RTA_OIF", 2)]).destination == bytes(4)
    assert route(socket.AF_INET6, [("RTA_OIF", 2)]).destination == bytes(16)


def test_route_with_wide_table_metric_and_mtu() -> None:
    message = route(
        socket.AF_INET,
        [
            ("RTA_DST", "10.1.0.0"),
            ("RTA_TABLE", 2000),
            ("RTA_PRIORITY", 5),
            ("RTA_PREFSRC", "10.0.0.1"),
            ("RTA_GATEWAY", "10.0.0.9"),
            ("RTA_METRICS", {"attrs": [("RTAX_MTU", 1400)]}),
        ],
        flags=rtnl.NLM_F_REPLACE,
        dst_len=16,
        table=252,
    )
    assert (message.table, message.priority, message.mtu) == (2000, 5, 1400)
    assert message.gateway == bytes([10, 0, 0, 9])
    assert message.source == bytes([10, 0, 0, 1])
    assert message.replaces


def test_multipath_route_has_its_ways_with_weights() -> None:
    ways = [
        {"oif": 2, "hops": 0, "flags": 0, "attrs": []},
        {"oif": 3, "hops": 4, "flags": 0, "attrs": [("RTA_GATEWAY", "10.0.0.9")]},
    ]
    message = route(socket.AF_INET, [("RTA_DST", "10.1.0.0"), ("RTA_MULTIPATH", ways)], dst_len=16)
    assert message.nexthops == (
        rtnl.NextHop(2, b"", 1),
        rtnl.NextHop(3, bytes([10, 0, 0, 9]), 5),
    )


def test_a_cached_clone_is_no_route() -> None:
    fields = {
        "family": socket.AF_INET,
        "dst_len": 32,
        "src_len": 0,
        "tos": 0,
        "table": 254,
        "proto": 0,
        "scope": 0,
        "type": 1,
        "flags": rtnl.RTM_F_CLONED,
    }
    data = encode(rtmsg(), rtnl.RTM_NEWROUTE, fields, [("RTA_DST", "10.0.0.1")])
    assert rtnl.decode(data) == []


def test_neighbor_and_bridge_entry() -> None:
    fields = {"family": socket.AF_INET, "ifindex": 3, "state": 2, "flags": 16, "ndm_type": 1}
    attributes = [("NDA_DST", "10.0.0.9"), ("NDA_LLADDR", "02:00:00:00:00:09")]
    neighbor = one(encode(ndmsg(), rtnl.RTM_NEWNEIGH, fields, attributes))
    assert (neighbor.index, neighbor.state, neighbor.flags, neighbor.kind) == (3, 2, 16, 1)
    assert neighbor.address == bytes([10, 0, 0, 9])
    assert neighbor.hardware_address == bytes.fromhex("020000000009")
    fields["family"] = socket.AF_BRIDGE
    assert rtnl.decode(encode(ndmsg(), rtnl.RTM_NEWNEIGH, fields, attributes)) == []


def test_rule_with_selector() -> None:
    data = encode(
        fibmsg(),
        rtnl.RTM_NEWRULE,
        {"family": socket.AF_INET, "dst_len": 16, "src_len": 8, "table": 252, "action": 1}
        | {"tos": 0, "res1": 0, "res2": 0, "flags": 2},
        [
            ("FRA_DST", "10.8.0.0"),
            ("FRA_SRC", "10.0.0.0"),
            ("FRA_TABLE", 2000),
            ("FRA_PRIORITY", 20),
            ("FRA_FWMARK", 0x200),
            ("FRA_FWMASK", 0xF00),
            ("FRA_IIFNAME", "v0"),
            ("FRA_PROTOCOL", 7),
        ],
    )
    rule = one(data)
    assert (rule.priority, rule.table, rule.mark, rule.mask) == (20, 2000, 0x200, 0xF00)
    assert (rule.destination, rule.destination_len) == (bytes([10, 8, 0, 0]), 16)
    assert (rule.source, rule.source_len) == (bytes([10, 0, 0, 0]), 8)
    assert (rule.input_device, rule.protocol, rule.invert) == ("v0", 7, True)


def test_several_messages_in_one_datagram_keep_their_order() -> None:
    def address(index: int) -> bytes:
        fields = {"family": 2, "prefixlen": 8, "flags": 0, "scope": 0, "index": index}
        return encode(ifaddrmsg(), rtnl.RTM_NEWADDR, fields, [("IFA_LOCAL", "10.0.0.1")])

    found = rtnl.decode(b"".join(map(address, range(1, 6))))
    assert [m.index for m in found if isinstance(m, rtnl.AddressMessage)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("cut", [17, 25, 30])
def test_a_truncated_message_is_refused(cut: int) -> None:
    fields = {"family": 2, "prefixlen": 8, "flags": 0, "scope": 0, "index": 1}
    data = encode(ifaddrmsg(), rtnl.RTM_NEWADDR, fields, [("IFA_LOCAL", "10.0.0.1")])
    with pytest.raises(ValueError, match="leaves its"):
        rtnl.decode(data[:cut])


def test_an_attribute_that_leaves_its_message_is_refused() -> None:
    with pytest.raises(ValueError, match="attribute 5 of 99 bytes"):
        rtnl.attributes(bytes([99, 0, 5, 0]) + bytes(8))
