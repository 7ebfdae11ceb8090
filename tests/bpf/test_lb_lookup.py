# SPDX-License-Identifier: Apache-2.0
"""The look-up of ``bpf/lib/lb.h`` on packets: a program that sends each to the backend that it
finds.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from bpf.maps.lb import LBMaps
from bpf.maps.lb_numbers import Scope, ServiceFlag
from bpf.object import Object
from bpf.program import Program
from tests.bpf.packets import (
    NODE_TWO,
    OK,
    POD_ONE,
    POD_ONE_V6,
    POD_TWO,
    POD_TWO_V6,
    SHOT,
    SVC_ONE,
    SVC_ONE_V6,
    Row,
    Service,
    check,
    packet_diff,
    tcp,
    udp,
)
from tests.bpf.sources import build

pytestmark = pytest.mark.root

#: Rewrites destination address and port and no checksum; refuses a frontend without backends.
LOOK_UP = """
#include "lib/lb.h"
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

struct ports { __be16 source, dest; };

static __always_inline int translate(__be32 *address, struct ports *ports, __u8 proto,
                                     const bool v6)
{
    struct lb_target target = {};
    struct lb_service *svc;
    union lb_key key;

    lb_key_of(&key, address, ports->dest, proto, v6);
    svc = lb_service(&key, v6);
    if (!svc)
        return 0;
    if (!lb_random(&target, &key, svc, v6))
        return 2;
    address_copy(address, target.address, v6);
    ports->dest = target.port;
    return 0;
}

SEC("tc") int look_up(struct __sk_buff *skb)
{
    void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
    struct ethhdr *eth = data;
    struct ipv6hdr *ip6 = (void *)(eth + 1);
    struct iphdr *ip4 = (void *)(eth + 1);

    if ((void *)(eth + 1) > end)
        return 0;
    if (eth->h_proto == bpf_htons(ETH_P_IP) && (void *)(ip4 + 1) + sizeof(struct ports) <= end)
        return translate(&ip4->daddr, (void *)(ip4 + 1), ip4->protocol, false);
    if (eth->h_proto == bpf_htons(ETH_P_IPV6) && (void *)(ip6 + 1) + sizeof(struct ports) <= end)
        return translate(ip6->daddr.in6_u.u6_addr32, (void *)(ip6 + 1), ip6->nexthdr, true);
    return 0;
}
"""

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP


@pytest.fixture(scope="module")
def look_up() -> Iterator[tuple[Program, LBMaps]]:
    maps = LBMaps.create(max_entries=64, socket_entries=64)
    with Object.open("test", build(LOOK_UP)) as obj:
        for definition in obj.map_definitions():
            obj.set_max_entries(definition.name, 64)
            (existing,) = [raw for raw in maps.all() if raw.name == definition.name]
            obj.reuse(definition.name, existing)  # type: ignore[arg-type]
        obj.load()
        yield obj.program("look_up"), maps
    maps.close()


def rewritten(packet: object, dst: str, dport: int) -> object:
    """The packet with another destination and the checksums that it had."""
    from scapy.layers.l2 import Ether

    raw = Ether(bytes(packet))  # type: ignore[call-overload]
    raw[1].dst = dst
    raw[2].dport = dport
    return raw


WEB = Service(SVC_ONE, 80, TCP, [(POD_TWO, 8080)])
WEB_V6 = Service(SVC_ONE_V6, 80, TCP, [(POD_TWO_V6, 8080)])
TO_WEB = tcp(POD_ONE, SVC_ONE, 80)
TO_WEB_V6 = tcp(POD_ONE_V6, SVC_ONE_V6, 80)

ROWS = [
    Row("service-v4", TO_WEB, [WEB], OK, rewritten(TO_WEB, POD_TWO, 8080)),
    Row("service-v6", TO_WEB_V6, [WEB_V6], OK, rewritten(TO_WEB_V6, POD_TWO_V6, 8080)),
    Row("no-service", TO_WEB, [], OK),
    Row("other-address", tcp(POD_ONE, NODE_TWO, 80), [WEB], OK),
    Row("other-port", tcp(POD_ONE, SVC_ONE, 81), [WEB], OK),
    Row("other-protocol", udp(POD_ONE, SVC_ONE, 80), [WEB], OK),
    Row("no-backend", TO_WEB, [WEB._replace(backends=())], SHOT),
    Row("no-backend-v6", TO_WEB_V6, [WEB_V6._replace(backends=())], SHOT),
    Row("internal-entry-alone", TO_WEB, [WEB._replace(scope=Scope.INTERNAL)], OK),
    Row(
        "two-scopes",
        TO_WEB,
        [
            WEB._replace(flags=ServiceFlag.TWO_SCOPES),
            WEB._replace(scope=Scope.INTERNAL, backends=[(NODE_TWO, 9090)]),
        ],
        OK,
        rewritten(TO_WEB, NODE_TWO, 9090),
    ),
    Row(
        "neighbour-port",
        tcp(POD_ONE, SVC_ONE, 443),
        [WEB, WEB._replace(port=443, backends=[(POD_TWO, 8443)])],
        OK,
        rewritten(tcp(POD_ONE, SVC_ONE, 443), POD_TWO, 8443),
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_packet_goes_where_the_maps_say(look_up: tuple[Program, LBMaps], row: Row) -> None:
    check(*look_up, row)


def test_wrong_packet_is_shown_field_by_field(look_up: tuple[Program, LBMaps]) -> None:
    wrong = Row("wrong", TO_WEB, [WEB], OK, rewritten(TO_WEB, POD_TWO, 8081))
    with pytest.raises(AssertionError) as caught:
        check(*look_up, wrong)
    shown = str(caught.value)
    assert "wrong: another packet came out" in shown
    assert "-        dport     = 8081" in shown
    assert "+        dport     = 8080" in shown
    assert "src" not in "".join(line for line in shown.splitlines() if line[:1] in "+-")


def test_equal_packets_have_no_difference() -> None:
    assert packet_diff(bytes(TO_WEB), bytes(TO_WEB)) == ""
