# SPDX-License-Identifier: Apache-2.0
"""Connections from outside go on through a frontend that is deleted and made anew: translated ones,
those of backends on the node, and those that are returned directly.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

import msgspec
import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from bpf.maps import ct, nat
from bpf.maps.lb_numbers import ServiceFlag
from tests.bpf.datapath_world import drops, packed
from tests.bpf.host_world import (
    BACKEND,
    CLIENT,
    FAMILIES,
    NODE,
    PASS,
    POD,
    PORT,
    PROTOCOLS,
    SENT,
    Node,
    frame,
    made,
    proto_of,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

#: A port in the range that translation uses, and one below it.
CLIENT_PORT, LOW_PORT = 40000, 1000
CLIENTS = (*range(CLIENT_PORT, CLIENT_PORT + 5), *range(LOW_PORT, LOW_PORT + 5))
#: So many that a choice at random is another one.
BACKENDS = range(20, 32)
REV_NAT, REV_NAT_ANEW = 7, 9
NO_SERVICE = -4


def remote(family: int) -> list[str]:
    """Backends of another node."""
    base = BACKEND[family].removesuffix("10")
    return [f"{base}{number}" for number in BACKENDS]


def serve(
    node: Node,
    family: int,
    transport: type[Packet],
    addresses: list[str],
    number: int = REV_NAT,
    flags: int = 0,
) -> None:
    backends = [(address, 8080) for address in addresses]
    proto = proto_of(transport)
    node.datapath.service(NODE[family], PORT, proto, backends, rev_nat=number, flags=flags)


def serve_anew(
    node: Node, family: int, transport: type[Packet], addresses: list[str], flags: int = 0
) -> None:
    """Delete the node port and make it again; the order of backends is another one."""
    node.datapath.delete_service(NODE[family], PORT, proto_of(transport))
    serve(node, family, transport, addresses[::-1], REV_NAT_ANEW, flags)


def request(family: int, transport: type[Packet], port: int, flags: str) -> Packet:
    fields = {"flags": flags} if transport is TCP else {}
    return frame(CLIENT[family], NODE[family], transport(sport=port, dport=PORT, **fields))


def through(node: Node, sent: Packet) -> tuple[int, Packet]:
    """Run a packet by the hook, and by tc if XDP leaves it to that."""
    verdict, out = node.run(sent)
    if node.hook == "xdp" and verdict == PASS["xdp"]:
        assert bytes(out) == bytes(Ether(bytes(sent))), "it goes on untouched"
        node = node._replace(hook="tc")
        verdict, out = node.run(sent)
    return verdict == SENT[node.hook], out


def ask(
    node: Node, family: int, transport: type[Packet], port: int, flags: str = "A"
) -> tuple[str, int]:
    """The backend that a client's packet is sent to, and the port that it comes from there."""
    sent, out = through(node, request(family, transport, port, flags))
    assert sent
    return str(out[1].dst), int(out[transport].sport)


def answered(
    node: Node, family: int, transport: type[Packet], end: tuple[str, int], port: int
) -> None:
    """The backend's answer comes to the client's port from the node port."""
    fields = {"flags": "SA"} if transport is TCP else {}
    head = transport(sport=8080, dport=end[1], **fields)
    sent, out = through(node, frame(end[0], NODE[family], head))
    assert sent
    assert (out[1].src, out[transport].sport) == (NODE[family], PORT)
    assert (out[1].dst, out[transport].dport) == (CLIENT[family], port)


def open_all(node: Node, family: int, transport: type[Packet]) -> dict[int, tuple[str, int]]:
    """Connections of several clients, whose answers were acknowledged."""
    found = {port: ask(node, family, transport, port, "S") for port in CLIENTS}
    for port, end in found.items():
        answered(node, family, transport, end, port)
        assert ask(node, family, transport, port) == end
    return found


def entries(
    node: Node, family: int, transport: type[Packet]
) -> tuple[dict[ct.CtKey, ct.CtEntry], dict[nat.NatKey, nat.NatValue]]:
    kind = "tcp" if transport is TCP else "any"
    maps = node.datapath.maps
    return (
        dict(ct.connections(maps[f"cilia_ct{family}_{kind}"])),
        dict(nat.translations(maps[f"cilia_snat{family}"])),
    )


@FAMILIES
@PROTOCOLS
def test_translated_connections_go_on_when_their_node_port_is_made_anew(
    node: Node, family: int, transport: type[Packet]
) -> None:
    node.datapath.clear()
    serve(node, family, transport, remote(family))
    before = open_all(node, family, transport)
    assert len({backend for backend, _ in before.values()}) > 1
    serve_anew(node, family, transport, remote(family))
    for _ in range(2):
        after = {port: ask(node, family, transport, port) for port in CLIENTS}
        assert after == before
    for port, end in before.items():
        answered(node, family, transport, end, port)
    there, back = entries(node, family, transport)
    assert (len(there), len(back)) == (len(CLIENTS), len(CLIENTS))
    assert {entry.rev_nat for entry in there.values()} == {REV_NAT_ANEW}


@FAMILIES
@PROTOCOLS
def test_backend_that_speaks_first_is_heard_when_its_node_port_is_back(
    node: Node, family: int, transport: type[Packet]
) -> None:
    """And not before."""
    node.datapath.clear()
    serve(node, family, transport, remote(family))
    end = open_all(node, family, transport)[LOW_PORT]
    node.datapath.delete_service(NODE[family], PORT, proto_of(transport))
    refused = drops(node.datapath).get(NO_SERVICE, 0)
    through(node, frame(end[0], NODE[family], transport(sport=8080, dport=end[1])))
    assert drops(node.datapath)[NO_SERVICE] == refused + 1
    serve(node, family, transport, remote(family), REV_NAT_ANEW)
    answered(node, family, transport, end, LOW_PORT)


@FAMILIES
@PROTOCOLS
def test_translated_connection_does_not_keep_a_backend_that_is_not_behind_it_again(
    node: Node, family: int, transport: type[Packet]
) -> None:
    node.datapath.clear()
    serve(node, family, transport, remote(family))
    open_all(node, family, transport)
    serve_anew(node, family, transport, [BACKEND[family]])
    assert {ask(node, family, transport, port)[0] for port in CLIENTS} == {BACKEND[family]}


@FAMILIES
@PROTOCOLS
def test_client_whose_entry_is_lost_finds_its_port_again(
    node: Node, family: int, transport: type[Packet]
) -> None:
    """The way back tells the frontend by its address, whatever number that has."""
    node.datapath.clear()
    serve(node, family, transport, [BACKEND[family]])
    before = ask(node, family, transport, CLIENT_PORT, "S")
    kind = "tcp" if transport is TCP else "any"
    node.datapath.maps[f"cilia_ct{family}_{kind}"].clear()
    serve_anew(node, family, transport, [BACKEND[family]])
    assert ask(node, family, transport, CLIENT_PORT) == before
    ((_, value),) = entries(node, family, transport)[1].items()
    assert value.rev_nat == REV_NAT_ANEW


def as_an_earlier_version_left_it(node: Node, family: int) -> None:
    """The way back of the only flow names its frontend by number alone."""
    ((key, value),) = entries(node, family, TCP)[1].items()
    older = msgspec.structs.replace(value, frontend=b"", frontend_port=0)
    node.datapath.maps[f"cilia_snat{family}"].update(nat.encode_key(key), nat.encode_value(older))


@FAMILIES
def test_way_back_of_an_earlier_version_learns_its_frontend(node: Node, family: int) -> None:
    """It has the number alone, which tells the frontend until that is made anew."""
    node.datapath.clear()
    serve(node, family, TCP, remote(family))
    end = ask(node, family, TCP, LOW_PORT, "S")
    as_an_earlier_version_left_it(node, family)
    answered(node, family, TCP, end, LOW_PORT)
    assert ask(node, family, TCP, LOW_PORT) == end
    ((_, value),) = entries(node, family, TCP)[1].items()
    assert (value.frontend, value.frontend_port) == (packed(NODE[family]), PORT)
    serve_anew(node, family, TCP, remote(family))
    answered(node, family, TCP, end, LOW_PORT)
    assert ask(node, family, TCP, LOW_PORT) == end


@FAMILIES
def test_way_back_of_an_earlier_version_goes_on_with_no_packet_since_the_upgrade(
    node: Node, family: int
) -> None:
    node.datapath.clear()
    serve(node, family, TCP, remote(family))
    end = ask(node, family, TCP, LOW_PORT, "S")
    as_an_earlier_version_left_it(node, family)
    serve_anew(node, family, TCP, remote(family))
    for _ in range(2):
        assert ask(node, family, TCP, LOW_PORT) == end
    answered(node, family, TCP, end, LOW_PORT)


# -- what is left to the stack --


@pytest.fixture(scope="module", params=["opt", "ipip"])
def by_tc(request: pytest.FixtureRequest) -> Iterator[Node]:
    with ExitStack() as stack:
        yield made("tc", 0 if request.param == "opt" else 1, stack)


@pytest.fixture
def tc(by_tc: Node) -> Node:
    by_tc.datapath.clear()
    return by_tc


def arrives(node: Node, family: int, transport: type[Packet], flags: str = "A") -> Packet:
    """A client's packet as it goes on to the stack or out of the node."""
    verdict, out = node.run(request(family, transport, CLIENT_PORT, flags))
    assert verdict in (PASS["tc"], SENT["tc"])
    return out


@FAMILIES
@PROTOCOLS
def test_connection_to_a_backend_of_the_node_goes_on(
    tc: Node, family: int, transport: type[Packet]
) -> None:
    serve(tc, family, transport, [POD[family]])
    assert arrives(tc, family, transport, "S")[1].dst == POD[family]
    serve_anew(tc, family, transport, [POD[family], *remote(family)])
    for _ in range(2):
        out = arrives(tc, family, transport)
        assert (out[1].dst, out[transport].sport) == (POD[family], CLIENT_PORT)
        head = transport(sport=8080, dport=CLIENT_PORT)
        _, out = tc.run(frame(POD[family], CLIENT[family], head), "to_netdev")
        assert (out[1].src, out[transport].sport) == (NODE[family], PORT)


@FAMILIES
@PROTOCOLS
def test_connection_that_is_returned_directly_goes_on(
    tc: Node, family: int, transport: type[Packet]
) -> None:
    serve(tc, family, transport, remote(family), flags=ServiceFlag.DSR)
    before = arrives(tc, family, transport, "S")
    serve_anew(tc, family, transport, remote(family), flags=ServiceFlag.DSR)
    for _ in range(2):
        out = arrives(tc, family, transport)
        assert out[1].dst == before[1].dst
        assert out[transport].sport == CLIENT_PORT


@FAMILIES
def test_open_connection_is_not_reset_by_the_node_while_its_port_may_come_back(
    tc: Node, family: int
) -> None:
    serve(tc, family, TCP, [POD[family]])
    arrives(tc, family, TCP, "S")
    arrives(tc, family, TCP)
    tc.datapath.delete_service(NODE[family], PORT, proto_of(TCP))
    refused = drops(tc.datapath).get(NO_SERVICE, 0)
    verdict, _ = tc.run(request(family, TCP, CLIENT_PORT, "PA"))
    assert verdict != PASS["tc"]
    assert drops(tc.datapath)[NO_SERVICE] == refused + 1
    raw = tc.datapath.maps[f"cilia_ct{family}_tcp"]
    for key, entry in entries(tc, family, TCP)[0].items():
        if key.direction == ct.Direction.SERVICE:
            assert 28 <= entry.expires_s - time.monotonic() <= 31
            over = msgspec.structs.replace(entry, expires_s=int(time.monotonic()) - 5)
            raw.update(ct.encode_key(key), ct.encode_entry(over))
    assert tc.run(request(family, TCP, CLIENT_PORT, "PA"))[0] == PASS["tc"]


@FAMILIES
def test_node_answers_at_the_port_of_a_frontend_that_is_gone(tc: Node, family: int) -> None:
    """A process of the node listens there now, and a client uses its port again."""
    serve(tc, family, TCP, [POD[family]])
    arrives(tc, family, TCP, "S")
    tc.datapath.delete_service(NODE[family], PORT, proto_of(TCP))
    for flags in ("S", "A", "PA"):
        sent = request(family, TCP, CLIENT_PORT, flags)
        verdict, out = tc.run(sent)
        assert verdict == PASS["tc"]
        assert bytes(out) == bytes(Ether(bytes(sent)))
