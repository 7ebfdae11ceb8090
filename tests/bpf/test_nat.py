# SPDX-License-Identifier: Apache-2.0
"""Source translation on tuples: a program that gives tuples in packets to ``bpf/lib/nat.h``.

Flows of the node itself, which have two entries here; those of clients: ``test_nodeport_nat``.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import pytest

from bpf.maps import nat
from bpf.maps.map import Map
from bpf.maps.nat import NatDirection, NatFlag, NatKey, NatValue
from bpf.maps.types import MapType
from bpf.object import Object
from bpf.program import Program
from bpf.ringbuf import Reader
from tests.bpf.sources import build
from tests.bpf.world import fork_and_run, new_network_namespace

pytestmark = pytest.mark.root

#: After an Ethernet header: key, value, TCP flags, and whether it is a reply.
ASK = """
#include "lib/nat.h"

#define OFFSET 14
#define ASK(family)                                                                     \\
struct ask##family {                                                                    \\
    struct nat##family##_key key;                                                       \\
    struct nat##family##_value value;                                                   \\
    __u8 tcp_flags, reply;                                                              \\
};                                                                                      \\
SEC("tc") int translate##family(struct __sk_buff *skb)                                  \\
{                                                                                       \\
    struct nat##family##_value *found;                                                  \\
    struct ask##family ask;                                                             \\
    bool noted = false;                                                                 \\
    int rc = 0;                                                                         \\
                                                                                        \\
    if (bpf_skb_load_bytes(skb, OFFSET, &ask, sizeof(ask)))                             \\
        return 255;                                                                     \\
    if (ask.reply) {                                                                    \\
        found = nat##family##_reply(&ask.key, ask.tcp_flags, &noted);                   \\
        if (!found)                                                                     \\
            return 254;                                                                 \\
        ask.value = *found;                                                             \\
    } else {                                                                            \\
        struct nat##family##_search search = { .ctx = skb, .value = ask.value };        \\
                                                                                        \\
        rc = nat##family##_source(&search, &ask.key, ask.tcp_flags);                    \\
        ask.value = search.value;                                                       \\
    }                                                                                   \\
    bpf_skb_store_bytes(skb, OFFSET, &ask, sizeof(ask), 0);                             \\
    return rc < 0 ? -rc : rc;                                                           \\
}
ASK(4)
ASK(6)
"""

TCP, UDP, ICMP = socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP
FIN, SYN, RST, ACK = 1, 2, 4, 16

NO_MAPPING = 5
NOT_FOUND = 254

MIN_PORT, MAX_PORT = 40000, 40007
SYN_S, TCP_S, CLOSING_S, ANY_S = 60, 8000, 10, 30

CLIENT = {4: "198.51.100.7", 6: "2001:db8:7::7"}
NODE = {4: "127.0.0.1", 6: "::1"}
BACKEND = {4: "127.0.0.2", 6: "::2"}


class Refused(Exception):
    """The program's answer was this reason."""


class Translation(NamedTuple):
    """The loaded programs of one family and their map."""

    family: int
    program: Program
    entries: Map
    signal: Map
    swept: Map

    def flow(self, sport: int = 1000, proto: int = TCP, dport: int = 8080) -> NatKey:
        to, source = (ipaddress.ip_address(side[self.family]).packed for side in (BACKEND, CLIENT))
        return NatKey(to, source, dport, sport, proto, NatDirection.OUT)

    def wish(self) -> NatValue:
        return NatValue(ipaddress.ip_address(NODE[self.family]).packed, 0)

    def ask(self, key: NatKey, value: NatValue, tcp_flags: int, reply: bool) -> NatValue:
        raw_key, raw_value = nat.encode_key(key), nat.encode_value(value)
        result = self.program.run(
            bytes(14) + raw_key + raw_value + bytes([tcp_flags, reply]) + bytes(4)
        )
        if result.retval:
            raise Refused(result.retval)
        start = 14 + len(raw_key)
        return nat.decode_value(result.data[start : start + len(raw_value)])

    def send(self, key: NatKey, tcp_flags: int = SYN) -> NatValue:
        return self.ask(key, self.wish(), tcp_flags, False)

    def answer(self, key: NatKey, value: NatValue, tcp_flags: int = ACK) -> NatValue:
        return self.ask(nat.partner(key, value), self.wish(), tcp_flags, True)

    def all(self) -> dict[NatKey, NatValue]:
        return dict(nat.translations(self.entries))

    def age(self, seconds: int) -> None:
        """Make every entry as if it was last used that long ago."""
        for key, value in self.all().items():
            older = msgspec.structs.replace(value, expires_s=value.expires_s - seconds)
            self.entries.update(nat.encode_key(key), nat.encode_value(older))


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def translation(request: pytest.FixtureRequest) -> Iterator[Translation]:
    with Object.open("test", build(ASK)) as obj:
        constants = {"nat_min_port": MIN_PORT, "nat_max_port": MAX_PORT}
        constants |= {"ct_timeout_regular_tcp_syn_s": SYN_S, "ct_timeout_regular_tcp_s": TCP_S}
        constants |= {"ct_timeout_regular_tcp_fin_s": CLOSING_S}
        constants |= {"ct_timeout_regular_any_s": ANY_S}
        for name, value in constants.items():
            obj.set_constant(name, value.to_bytes(4, "little"))
        for definition in obj.map_definitions():
            if definition.type == MapType.LRU_HASH:
                obj.set_max_entries(definition.name, 4096)
        obj.load()
        with (
            obj.program(f"translate{request.param}") as program,
            obj.map(f"cilia_snat{request.param}") as entries,
            obj.map("cilia_signal") as signal,
            obj.map("cilia_nat_swept") as swept,
        ):
            yield Translation(request.param, program, entries, signal, swept)


def remaining_s(value: NatValue) -> float:
    return value.expires_s - time.clock_gettime(time.CLOCK_MONOTONIC)


def near(seconds: float) -> object:
    return pytest.approx(seconds, abs=2)


def check_pairs(entries: dict[NatKey, NatValue]) -> None:
    """Each entry has its other half, which leads back to it."""
    for key, value in entries.items():
        other = nat.partner(key, value)
        assert other in entries, f"{key} has no other half"
        assert nat.partner(other, entries[other]) == key
        assert entries[other].expires_s == value.expires_s
        assert entries[other].flags == value.flags


def test_flow_gets_a_port_and_its_reply_comes_back(translation: Translation) -> None:
    flow = translation.flow()
    out = translation.send(flow)
    assert MIN_PORT <= out.port <= MAX_PORT
    assert out.address == translation.wish().address
    back = translation.answer(flow, out)
    assert (back.address, back.port) == (flow.source, flow.source_port)
    assert translation.send(flow, ACK).port == out.port
    entries = translation.all()
    assert len(entries) == 2
    check_pairs(entries)


def test_port_of_the_client_is_kept_when_it_is_free(translation: Translation) -> None:
    assert translation.send(translation.flow(sport=40003)).port == 40003


def test_whole_range_is_used_before_a_flow_is_refused(translation: Translation) -> None:
    size = MAX_PORT - MIN_PORT + 1
    ports = {translation.send(translation.flow(sport=1000 + i)).port for i in range(size)}
    assert ports == set(range(MIN_PORT, MAX_PORT + 1))
    with pytest.raises(Refused, match=f"^{NO_MAPPING}$"):
        translation.send(translation.flow(sport=2000))
    with pytest.raises(Refused, match=f"^{NO_MAPPING}$"):
        translation.send(translation.flow(sport=40003))
    entries = translation.all()
    assert len(entries) == 2 * size, "a refused flow leaves nothing"
    check_pairs(entries)


def test_ports_are_counted_per_destination(translation: Translation) -> None:
    for i in range(MAX_PORT - MIN_PORT + 1):
        translation.send(translation.flow(sport=1000 + i))
    translation.send(translation.flow(sport=1000, dport=8081))
    translation.send(translation.flow(sport=1000, proto=UDP), 0)


@pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])
def test_port_of_a_socket_of_the_node_is_not_taken(translation: Translation, proto: int) -> None:
    size = MAX_PORT - MIN_PORT + 1

    def inside() -> list[int]:
        new_network_namespace()
        family = socket.AF_INET if translation.family == 4 else socket.AF_INET6
        kind = socket.SOCK_STREAM if proto == TCP else socket.SOCK_DGRAM
        with socket.socket(family, kind) as own:
            own.bind((NODE[translation.family], MIN_PORT + 2))
            if proto == TCP:
                own.listen()
            flows = [translation.flow(sport=1000 + i, proto=proto) for i in range(size - 1)]
            return [translation.send(flow, SYN if proto == TCP else 0).port for flow in flows]

    ports = fork_and_run(inside)
    assert sorted([*ports, MIN_PORT + 2]) == list(range(MIN_PORT, MAX_PORT + 1))


def test_lifetime_follows_the_state_of_a_connection(translation: Translation) -> None:
    flow = translation.flow()
    out = translation.send(flow)
    assert remaining_s(out) == near(SYN_S)
    assert remaining_s(translation.answer(flow, out, SYN | ACK)) == near(SYN_S), "half open"
    assert remaining_s(translation.send(flow, ACK)) == near(TCP_S)
    assert remaining_s(translation.send(flow, FIN | ACK)) == near(TCP_S)
    closing = translation.answer(flow, out, FIN | ACK)
    assert remaining_s(closing) == near(CLOSING_S)
    assert closing.flags & NatFlag.CLOSING
    check_pairs(translation.all())
    anew = translation.send(flow)
    assert (anew.port, remaining_s(anew)) == (out.port, near(SYN_S))
    assert not anew.flags & NatFlag.CLOSING
    check_pairs(translation.all())


@pytest.mark.parametrize("reply", [False, True], ids=["client", "backend"])
def test_reset_of_either_side_closes(translation: Translation, reply: bool) -> None:
    flow = translation.flow()
    out = translation.send(flow)
    translation.answer(flow, out, SYN | ACK)
    closed = translation.answer(flow, out, RST) if reply else translation.send(flow, RST)
    assert remaining_s(closed) == near(CLOSING_S)
    check_pairs(translation.all())


@pytest.mark.parametrize("proto", [UDP, ICMP], ids=["udp", "icmp"])
def test_both_halves_are_refreshed(translation: Translation, proto: int) -> None:
    flow = translation.flow(proto=proto)
    out = translation.send(flow, 0)
    for again in (translation.send, lambda key, _: translation.answer(key, out, 0)):
        translation.age(20)
        assert remaining_s(again(flow, 0)) == near(ANY_S)
        check_pairs(translation.all())


@pytest.mark.parametrize("lost", list(NatDirection), ids=lambda direction: direction.name)
def test_lost_half_is_made_anew(translation: Translation, lost: NatDirection) -> None:
    flow = translation.flow()
    out = translation.send(flow)
    (key,) = [key for key in translation.all() if key.direction == lost]
    translation.entries.delete(nat.encode_key(key))
    translation.age(2)
    if lost == NatDirection.IN:
        assert translation.send(flow, ACK).port == out.port
    else:
        assert translation.answer(flow, out).port == flow.source_port
    entries = translation.all()
    assert len(entries) == 2
    check_pairs(entries)


def test_flow_moves_when_its_port_has_become_anothers(translation: Translation) -> None:
    flow = translation.flow()
    out = translation.send(flow)
    thief = translation.flow(sport=4711)
    entries = translation.all()
    (back,) = [key for key in entries if key.direction == NatDirection.IN]
    stolen = msgspec.structs.replace(entries[back], port=thief.source_port)
    translation.entries.update(nat.encode_key(back), nat.encode_value(stolen))
    translation.age(2)
    moved = translation.send(flow, ACK)
    assert moved.port != out.port
    assert translation.answer(thief, out).port == thief.source_port
    check_pairs(translation.all())


def test_stranger_is_no_reply(translation: Translation) -> None:
    flow = translation.flow()
    out = translation.send(flow)
    with pytest.raises(Refused, match=f"^{NOT_FOUND}$"):
        translation.answer(translation.flow(dport=8081), out)


def test_many_cpus_make_one_pair_of_each_flow(translation: Translation) -> None:
    """Children send the same flows at the same time: no flow has two ports, no port two flows."""
    flows = [translation.flow(sport=1000 + i, dport=8000 + i // 4) for i in range(200)]
    children = []
    for _ in range(2):
        pid = os.fork()
        if pid == 0:
            for flow in flows:
                translation.send(flow)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    entries = translation.all()
    assert len(entries) == 2 * len(flows)
    check_pairs(entries)


# -- every port is in use


SIZE = MAX_PORT - MIN_PORT + 1


def filled(translation: Translation, proto: int, *flags: int) -> list[NatKey]:
    """As many flows as there are ports; TCP: the client sends a SYN and these, each answered."""
    flows = [translation.flow(sport=1000 + i, proto=proto) for i in range(SIZE)]
    for flow in flows:
        out = translation.send(flow, SYN if proto == TCP else 0)
        for number in flags:
            translation.answer(flow, out, number)
            translation.send(flow, number & ~SYN)
    return flows


def refused(translation: Translation, flow: NatKey) -> bool:
    try:
        translation.send(flow, SYN if flow.proto == TCP else 0)
    except Refused as refusal:
        if refusal.args != (NO_MAPPING,):
            raise
        return True
    return False


def silent(translation: Translation, port: int, seconds: int) -> None:
    """Make the entries of the flow that has this port as if used that long ago."""
    for key, value in translation.all().items():
        if port in (key.destination_port, value.port):
            older = msgspec.structs.replace(value, expires_s=value.expires_s - seconds)
            translation.entries.update(nat.encode_key(key), nat.encode_value(older))


@pytest.mark.parametrize("end", [RST, FIN | ACK], ids=["reset", "fin"])
def test_port_of_the_oldest_closed_connection_is_taken(translation: Translation, end: int) -> None:
    flows = filled(translation, TCP, SYN | ACK, end)
    port = translation.all()[flows[4]].port
    silent(translation, port, 3)
    assert translation.send(translation.flow(sport=2000)).port == port


def test_ports_of_open_connections_are_not_taken(translation: Translation) -> None:
    filled(translation, TCP, SYN | ACK)
    translation.age(TCP_S - 1)
    assert refused(translation, translation.flow(sport=2000))
    assert len(translation.all()) == 2 * SIZE, "a refused flow leaves nothing"


@pytest.mark.parametrize(
    ("proto", "flags", "young_s", "old_s"),
    [
        pytest.param(TCP, (), 0, 3, id="unanswered"),
        pytest.param(UDP, (), 0, 3, id="unanswered-datagram"),
        pytest.param(UDP, (0,), 8, 11, id="silent-datagram"),
        pytest.param(ICMP, (0,), 8, 11, id="silent-echo"),
    ],
)
def test_port_is_taken_from_a_flow_that_is_silent(
    translation: Translation, proto: int, flags: tuple[int, ...], young_s: int, old_s: int
) -> None:
    first = filled(translation, proto, *flags)[0]
    late = translation.flow(sport=2000, proto=proto)
    translation.age(young_s)
    assert refused(translation, late)
    port = translation.all()[first].port
    silent(translation, port, old_s - young_s)
    assert translation.send(late, SYN if proto == TCP else 0).port == port
    back = translation.answer(late, NatValue(translation.wish().address, port), 0)
    assert back.port == late.source_port
    assert refused(translation, first), "its port is another flow's, and none is left"


def test_half_open_connection_gives_its_port_away(translation: Translation) -> None:
    """A backend has answered each SYN, and nobody has acknowledged that."""
    flows = filled(translation, TCP)
    for flow in flows:
        translation.answer(flow, translation.all()[flow], SYN | ACK)
    late = translation.flow(sport=2000)
    assert refused(translation, late)
    translation.age(3)
    assert not refused(translation, late)


def test_expired_flow_gives_its_port_away(translation: Translation) -> None:
    flows = filled(translation, TCP, SYN | ACK)
    port = translation.all()[flows[0]].port
    silent(translation, port, TCP_S + 2)
    assert translation.send(translation.flow(sport=2000)).port == port


def test_what_a_collection_deletes_is_not_taken_over(translation: Translation) -> None:
    flows = filled(translation, TCP, SYN | ACK)
    silent(translation, translation.all()[flows[0]].port, TCP_S + 20)
    now_s = int(time.monotonic())
    translation.swept.update(bytes(4), (now_s - 10).to_bytes(4, "little"))
    late = translation.flow(sport=2000)
    assert refused(translation, late)
    translation.swept.update(bytes(4), (now_s - 30).to_bytes(4, "little"))
    assert not refused(translation, late)


def test_closed_connection_that_is_opened_again_is_open(translation: Translation) -> None:
    """Its own half is lost, so that it looks for a port as a new one and finds the one it had."""
    flow = translation.flow(sport=40003)
    out = translation.send(flow)
    translation.answer(flow, out, RST)
    translation.entries.delete(nat.encode_key(flow))
    assert translation.send(flow).port == out.port
    check_pairs(translation.all())
    assert all(not value.flags & NatFlag.CLOSING for value in translation.all().values())


def test_many_cpus_take_each_port_over_once(translation: Translation) -> None:
    """Children want the ports of closed connections to many destinations at the same time."""
    dports = range(8000, 8040)
    for dport in dports:
        for i in range(SIZE):
            flow = translation.flow(sport=1000 + i, dport=dport)
            translation.answer(flow, translation.send(flow), RST)
    late = [[(2000 + 10 * child + i, d) for d in dports for i in range(4)] for child in range(2)]
    children = []
    for flows in late:
        pid = os.fork()
        if pid == 0:
            for sport, dport in flows:
                refused(translation, translation.flow(sport=sport, dport=dport))
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
    entries = translation.all()
    ports = [
        nat.partner(key, value)
        for key, value in entries.items()
        if key.direction == NatDirection.OUT and key.source_port >= 2000
    ]
    assert len(ports) == len(set(ports)) > len(dports) * SIZE * 0.9
    for back in ports:
        assert entries[back].port >= 2000


def test_shortage_is_told_with_its_destination(translation: Translation) -> None:
    filled(translation, TCP, SYN | ACK)
    with Reader.ring(translation.signal) as reader:
        assert not reader.read().size, "there were ports"
        assert refused(translation, translation.flow(sport=2000))
        (record,) = reader.read().records()
    destination = translation.flow().destination
    assert nat.decode_pressure(record) == nat.Pressure(destination, 8080, TCP, True)
