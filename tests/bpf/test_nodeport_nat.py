# SPDX-License-Identifier: Apache-2.0
"""What is kept of a client's flow whose source is translated: its own entry of connection tracking,
and the way back. Through the programs of a node's device, by tc and by XDP.
"""

from __future__ import annotations

import os
import socket
import time
from typing import NamedTuple

import msgspec
import pytest
from scapy.layers.inet import TCP, UDP
from scapy.packet import Packet

from bpf.maps import ct, nat
from bpf.maps.ct import CtEntry, CtFlag, CtKey
from bpf.maps.map import Map
from bpf.maps.nat import NatDirection, NatFlag, NatKey, NatValue
from tests.bpf.datapath_world import packed
from tests.bpf.host_world import (
    BACKEND,
    CLIENT,
    FAMILIES,
    NODE,
    PORT,
    REV_NAT,
    SENT,
    Node,
    frame,
    proto_of,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(60)]

#: Like a client's ephemeral port: in the range that translation uses; and one below it.
CLIENT_PORT, LOW_PORT = 40000, 1000

TCP_S, SYN_S, CLOSING_S, ANY_S = 8000, 60, 10, 60


class Flow(NamedTuple):
    """One client's flow through a node, and what the maps say of it."""

    node: Node
    family: int
    transport: type[Packet]
    sport: int = CLIENT_PORT
    #: Of the frontend.
    port: int = PORT

    def send(self, flags: str = "S") -> int:
        """A packet of the client; the port that it leaves with."""
        sent = frame(
            CLIENT[self.family], NODE[self.family], self._head(self.sport, self.port, flags)
        )
        verdict, out = self.node.run(sent)
        assert verdict == SENT[self.node.hook]
        assert (out[1].src, out[1].dst) == (NODE[self.family], BACKEND[self.family])
        return int(out[self.transport].sport)

    def answer(self, port: int, flags: str = "SA") -> None:
        """A packet of the backend to that port, which must come to the client."""
        sent = frame(BACKEND[self.family], NODE[self.family], self._head(8080, port, flags))
        verdict, out = self.node.run(sent)
        assert verdict == SENT[self.node.hook]
        assert (out[1].src, out[1].dst) == (NODE[self.family], CLIENT[self.family])
        assert (out[self.transport].sport, out[self.transport].dport) == (self.port, self.sport)

    def _head(self, sport: int, dport: int, flags: str) -> Packet:
        if self.transport is TCP:
            return TCP(sport=sport, dport=dport, flags=flags)
        return UDP(sport=sport, dport=dport)

    @property
    def there(self) -> Map:
        kind = "tcp" if self.transport is TCP else "any"
        return self.node.datapath.maps[f"cilia_ct{self.family}_{kind}"]

    @property
    def back(self) -> Map:
        return self.node.datapath.maps[f"cilia_snat{self.family}"]

    def entries(self) -> dict[CtKey, CtEntry]:
        return dict(ct.connections(self.there))

    def ways_back(self) -> dict[NatKey, NatValue]:
        return dict(nat.translations(self.back))

    def entry(self) -> CtEntry:
        """The only entry of connection tracking."""
        (found,) = self.entries().values()
        return found

    def way_back(self) -> NatValue:
        """The only entry of translation."""
        (found,) = self.ways_back().values()
        return found

    def age(self, seconds: int = 2) -> None:
        """Make all entries as if they were last used that long ago."""
        for key, entry in self.entries().items():
            older = msgspec.structs.replace(entry, expires_s=entry.expires_s - seconds)
            self.there.update(ct.encode_key(key), ct.encode_entry(older))
        for back, value in self.ways_back().items():
            older_value = msgspec.structs.replace(value, expires_s=value.expires_s - seconds)
            self.back.update(nat.encode_key(back), nat.encode_value(older_value))


def opened(node: Node, family: int, transport: type[Packet], sport: int = CLIENT_PORT) -> Flow:
    node.serve(family, proto_of(transport))
    return Flow(node, family, transport, sport)


def near(seconds: float) -> object:
    return pytest.approx(time.monotonic() + seconds, abs=2)


@pytest.mark.parametrize("sport", [CLIENT_PORT, LOW_PORT], ids=["own-port", "other-port"])
@pytest.mark.parametrize("transport", [TCP, UDP], ids=["tcp", "udp"])
@FAMILIES
def test_two_entries_are_the_whole_state(
    node: Node, family: int, transport: type[Packet], sport: int
) -> None:
    flow = opened(node, family, transport, sport)
    port = flow.send()
    assert port == CLIENT_PORT if sport == CLIENT_PORT else 32768 <= port <= 65535
    ((key, entry),) = flow.entries().items()
    client, frontend = packed(CLIENT[family]), packed(NODE[family])
    proto = proto_of(transport)
    assert key == CtKey(frontend, client, PORT, sport, proto, ct.Direction.SERVICE)
    assert entry.translated_source(key) == (packed(NODE[family]), port)
    assert (entry.rev_nat, entry.flags) == (REV_NAT, CtFlag.NODE_PORT | CtFlag.SNAT)
    ((back, value),) = flow.ways_back().items()
    backend = packed(BACKEND[family])
    assert back == NatKey(frontend, backend, port, 8080, proto, NatDirection.IN)
    assert (value.address, value.port, value.rev_nat) == (client, sport, REV_NAT)
    flow.answer(port)
    assert flow.send("A") == port
    assert (len(flow.entries()), len(flow.ways_back())) == (1, 1)


@FAMILIES
def test_state_of_a_connection_is_known_on_both_ways(node: Node, family: int) -> None:
    flow = opened(node, family, TCP)
    port = flow.send()
    flow.answer(port, "SA")
    assert flow.entry().flags & CtFlag.SEEN_REPLY
    flow.send("A")
    assert (flow.entry().expires_s, flow.way_back().expires_s) == (near(TCP_S), near(TCP_S))
    flow.send("FA")
    assert not flow.way_back().flags & NatFlag.CLOSING
    flow.answer(port, "FA")
    assert flow.way_back().flags & NatFlag.CLOSING
    assert (flow.entry().expires_s, flow.way_back().expires_s) == (near(CLOSING_S),) * 2
    assert ct.is_over(flow.entry(), int(time.monotonic()))
    assert flow.send("S") == port, "the next connection has the port of the last one"
    assert not flow.way_back().flags & NatFlag.CLOSING
    assert not ct.is_over(flow.entry(), int(time.monotonic()))


@FAMILIES
def test_half_open_connection_holds_its_port_for_as_long_as_its_entry(
    node: Node, family: int
) -> None:
    flow = opened(node, family, TCP)
    flow.answer(flow.send(), "SA")
    assert (flow.entry().expires_s, flow.way_back().expires_s) == (near(SYN_S), near(SYN_S))


@FAMILIES
def test_client_alone_keeps_the_way_back_alive(node: Node, family: int) -> None:
    flow = opened(node, family, UDP)
    flow.send()
    flow.age(20)
    flow.send()
    assert (flow.entry().expires_s, flow.way_back().expires_s) == (near(ANY_S), near(ANY_S))


@pytest.mark.parametrize("transport", [TCP, UDP], ids=["tcp", "udp"])
@FAMILIES
def test_backend_alone_keeps_the_entry_of_the_client_alive(
    node: Node, family: int, transport: type[Packet]
) -> None:
    flow = opened(node, family, transport)
    port = flow.send()
    flow.answer(port, "SA")
    flow.send("A")
    flow.age(20)
    flow.answer(port, "A")
    life_s = TCP_S if transport is TCP else ANY_S
    assert (flow.entry().expires_s, flow.way_back().expires_s) == (near(life_s),) * 2


@FAMILIES
def test_lost_way_back_is_made_anew(node: Node, family: int) -> None:
    flow = opened(node, family, TCP, LOW_PORT)
    port = flow.send()
    flow.answer(port)
    flow.send("A")
    flow.back.clear()
    flow.age()
    assert flow.send("A") == port
    flow.answer(port, "A")


@FAMILIES
def test_lost_entry_of_the_client_finds_its_port_again(node: Node, family: int) -> None:
    flow = opened(node, family, TCP)
    port = flow.send()
    flow.there.clear()
    assert flow.send("A") == port
    assert len(flow.ways_back()) == 1
    flow.answer(port, "A")


@FAMILIES
def test_flow_moves_when_its_port_has_become_anothers(node: Node, family: int) -> None:
    flow = opened(node, family, TCP, LOW_PORT)
    port = flow.send()
    ((back, value),) = flow.ways_back().items()
    stolen = msgspec.structs.replace(value, port=4711)
    flow.back.update(nat.encode_key(back), nat.encode_value(stolen))
    flow.age()
    moved = flow.send("A")
    assert moved != port
    assert flow.ways_back()[back].port == 4711
    flow.answer(moved, "A")
    assert flow.send("A") == moved


@FAMILIES
def test_late_end_of_a_flow_does_not_end_its_successor(node: Node, family: int) -> None:
    """The client has reused its port and got another one here: what comes to the first is old."""
    rival = opened(node, family, TCP, 32768 + LOW_PORT)
    assert rival.send() == rival.sport, "it has the port that follows from the other's"
    flow = Flow(node, family, TCP, LOW_PORT)
    first = flow.send()
    flow.there.clear()
    second = flow.send()
    assert second != first
    flow.answer(first, "RA")
    assert not ct.is_over(flow.entry(), int(time.monotonic()))
    flow.answer(second, "RA")
    assert ct.is_over(flow.entry(), int(time.monotonic()))


@pytest.mark.parametrize("sport", [CLIENT_PORT, LOW_PORT], ids=["own-port", "other-port"])
@pytest.mark.parametrize("transport", [TCP, UDP], ids=["tcp", "udp"])
@FAMILIES
def test_two_frontends_of_a_backend_are_told_apart_at_one_port_of_a_client(
    node: Node, family: int, transport: type[Packet], sport: int
) -> None:
    one = opened(node, family, transport, sport)
    two = one._replace(port=PORT + 1)
    backend = [(BACKEND[family], 8080)]
    node.datapath.service(NODE[family], two.port, proto_of(transport), backend, rev_nat=REV_NAT + 1)
    ports = {flow: flow.send() for flow in (one, two)}
    assert ports[one] != ports[two]
    for flow in (one, two, one):
        assert flow.send("A") == ports[flow]
        flow.answer(ports[flow])


@FAMILIES
def test_two_cpus_give_each_flow_one_port(node: Node, family: int) -> None:
    """Children send the first packets of the same flows at the same time."""
    node.serve(family, socket.IPPROTO_UDP)
    flows = [Flow(node, family, UDP, CLIENT_PORT + number) for number in range(100)]
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            for flow in flows:
                flow.send()
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    ports = {flow.send() for flow in flows}
    assert len(ports) == len(flows[0].ways_back()) == len(flows)
