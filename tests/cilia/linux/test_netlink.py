# SPDX-License-Identifier: Apache-2.0
import errno
import os
import socket

import anyio
import pytest
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from cilia.linux import rtnl
from cilia.linux.errors import NetlinkError, Overrun
from cilia.linux.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    Group,
    Netlink,
    Request,
    Subscription,
)
from tests.kernel import Kernel

pytestmark = pytest.mark.root


def add_route(destination: str, index: int, table: int = 254) -> Request:
    message = rtmsg()
    message.update(
        {
            "family": socket.AF_INET,
            "dst_len": 32,
            "table": 254,
            "proto": 99,
            "type": 1,
            "scope": 253,
        }
    )
    message["attrs"] = [("RTA_DST", destination), ("RTA_OIF", index), ("RTA_TABLE", table)]
    return Request(
        message, rtnl.RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, f"add route {destination}"
    )


def read_all(events: Subscription) -> list[rtnl.Message]:
    found: list[rtnl.Message] = []
    while messages := events.read():
        found += messages
    return found


def index_of(netlink: Netlink, name: str) -> int:
    return next(link.index for link in netlink.links() if link.name == name)


def test_dumps_show_what_the_ip_command_made(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    kernel.ip_batch(
        [
            "link property add dev v0 altname other",
            "route add 10.9.0.0/16 via 10.0.0.9 metric 7",
            "route add 10.8.0.0/16 dev v0 table 2000 proto 99",
            "neigh add 10.0.0.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent",
            "rule add prio 20 to 10.8.0.0/16 fwmark 0x200/0xf00 lookup 2000",
        ]
    )
    with Netlink(kernel.netns) as netlink:
        v0 = index_of(netlink, "v0")
        links = {link.name: link for link in netlink.links()}
        assert set(links) == {"lo", "v0", "v1"}
        assert (links["v0"].kind, links["v0"].alternative_names) == ("veth", ("other",))
        assert links["v0"].peer == links["v1"].index
        addresses = [a.address for a in netlink.addresses() if a.index == v0]
        assert bytes([10, 0, 0, 1]) in addresses
        (via,) = [r for r in netlink.routes() if r.priority == 7]
        assert (via.gateway, via.index, via.prefix_len) == (bytes([10, 0, 0, 9]), v0, 16)
        (neighbor,) = [n for n in netlink.neighbors() if n.address == bytes([10, 0, 0, 9])]
        assert (neighbor.index, neighbor.state) == (v0, 0x80)
        (rule,) = [r for r in netlink.rules() if r.priority == 20]
        assert (rule.table, rule.mark, rule.mask) == (2000, 0x200, 0xF00)


def test_route_dumps_obey_their_filters(kernel: Kernel) -> None:
    kernel.veth("v0", "v1", "10.0.0.1/24")
    kernel.ip("route add 10.8.0.0/16 dev v0 table 2000 proto 99")
    with Netlink(kernel.netns) as netlink:
        v0 = index_of(netlink, "v0")
        assert [r.table for r in netlink.routes(protocol=99)] == [2000]
        assert [r.protocol for r in netlink.routes(table=2000)] == [99]
        assert {r.index for r in netlink.routes(index=v0)} == {v0}
        assert netlink.routes(index=4711) == []
        assert netlink.routes(table=4711) == []


def test_a_refused_request_carries_errno_and_the_kernels_words(kernel: Kernel) -> None:
    with Netlink(kernel.netns) as netlink:
        with pytest.raises(NetlinkError, match=r"add route 10\.0\.0\.1") as caught:
            netlink.request(add_route("10.0.0.1", 4711))
        assert caught.value.errno == errno.ENODEV
        kernel.veth("v0", "v1")
        bad = add_route("10.0.0.1", index_of(netlink, "v0"))
        bad.message["attrs"].append(("RTA_GATEWAY", "10.99.0.1"))
        with pytest.raises(NetlinkError) as caught:
            netlink.request(bad)
        assert "gateway" in caught.value.detail


def test_a_batch_reports_each_request_and_goes_on_behind_a_refused_one(kernel: Kernel) -> None:
    kernel.veth("v0", "v1")
    with Netlink(kernel.netns) as netlink:
        v0 = index_of(netlink, "v0")
        requests = [add_route(f"10.7.{i >> 8}.{i & 255}", v0) for i in range(1000)]
        requests[500] = add_route("10.7.0.0", v0)  # the first one again
        results = netlink.request_batch(requests)
        assert [i for i, result in enumerate(results) if result] == [500]
        failure = results[500]
        assert failure is not None
        assert failure.errno == errno.EEXIST
        assert len(netlink.routes(protocol=99)) == 999


async def test_events_arrive_in_order(kernel: Kernel) -> None:
    groups = (Group.LINK, Group.IPV4_ADDRESS, Group.IPV4_ROUTE)
    with Subscription(groups, kernel.netns) as events:
        assert events.read() == []
        kernel.veth("v0", "v1", "10.0.0.1/24")
        kernel.ip("link del v0")
        with anyio.fail_after(5):
            await events.wait()
        messages = events.read()
    links = [m for m in messages if isinstance(m, rtnl.LinkMessage) and m.name == "v0"]
    assert not links[0].deleted
    assert links[-1].deleted
    born = messages.index(links[0])
    address = next(i for i, m in enumerate(messages) if isinstance(m, rtnl.AddressMessage))
    assert born < address < messages.index(links[-1])


def test_an_overrun_is_told_and_the_socket_works_on(kernel: Kernel) -> None:
    kernel.veth("v0", "v1")
    with Subscription((Group.IPV4_ROUTE,), kernel.netns, buffer_bytes=4096) as events:
        kernel.ip_batch(f"route add 10.7.0.{i} dev v0" for i in range(200))
        with pytest.raises(Overrun):
            read_all(events)
        events.discard()
        kernel.ip("route add 10.8.0.1 dev v0")
        (message,) = events.read()
        assert isinstance(message, rtnl.RouteMessage)
        assert message.destination == bytes([10, 8, 0, 1])


def test_no_descriptor_is_left(kernel: Kernel) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with Netlink(kernel.netns) as netlink, Subscription((Group.LINK,), kernel.netns):
            netlink.links()
    assert len(os.listdir("/proc/self/fd")) == before
