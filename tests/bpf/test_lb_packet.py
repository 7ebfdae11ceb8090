# SPDX-License-Identifier: Apache-2.0
"""Which backend a packet's flow gets, and which clients a frontend serves.

``inside`` and ``outside`` translate what a workload, or the world beyond a device, sends.
"""

from __future__ import annotations

import ipaddress
import random
import socket
import time
from array import array
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest
from scapy.layers.l2 import Ether

from bpf.lb import maglev
from bpf.libbpf import lib
from bpf.maps import lb
from bpf.maps.lb import (
    PRESENT,
    Affinity,
    AffinityKey,
    AffinityMatch,
    LBMaps,
    SourceRange,
)
from bpf.maps.lb_numbers import Algorithm, Scope, ServiceFlag
from bpf.maps.tables import padded
from bpf.object import Object
from tests.bpf.datapath_world import Datapath, packed
from tests.bpf.lxc_world import FAMILIES, V6, Family, packet
from tests.bpf.sources import build

pytestmark = pytest.mark.root

SOURCE = """
#include "lib/lb_packet.h"

static __always_inline int one(ctx_t *ctx, struct packet *packet, const bool outside, const bool v6)
{
    struct lb_decision decision = {};
    int refused = lb_resolve(ctx, packet, &decision, outside, v6);

    return refused ? refused : lb_translate(ctx, packet, &decision, v6);
}

#define COPY(name, outside, v6) \\
__noinline int name(ctx_t *ctx, struct packet *packet) \\
{ \\
    return packet ? one(ctx, packet, outside, v6) : LB_PASS; \\
}
COPY(inside4, LB_INSIDE, false)
COPY(inside6, LB_INSIDE, true)
COPY(outside4, LB_OUTSIDE, false)
COPY(outside6, LB_OUTSIDE, true)

SEC("tc") int inside(ctx_t *ctx)
{
    struct packet packet;
    int refused = packet_parse(ctx, &packet, ETH_HLEN);

    if (refused)
        return 1000;
    refused = packet.flags & PACKET_V6 ? inside6(ctx, &packet) : inside4(ctx, &packet);
    return refused < 0 ? -refusal_reason(refused) : refused ? 1000 : 0;
}

SEC("tc") int outside(ctx_t *ctx)
{
    struct packet packet;
    int refused = packet_parse(ctx, &packet, ETH_HLEN);

    if (refused)
        return 1000;
    refused = packet.flags & PACKET_V6 ? outside6(ctx, &packet) : outside4(ctx, &packet);
    return refused < 0 ? -refusal_reason(refused) : refused ? 1000 : 0;
}
"""

PASSED = 1000
TABLE_SIZE = 251
SEED4, SEED6 = 0x1234ABCD, 0x0BADCAFE
TCP = socket.IPPROTO_TCP


@pytest.fixture(scope="module", params=[Algorithm.RANDOM, Algorithm.MAGLEV], ids=str)
def objects(request: pytest.FixtureRequest) -> Iterator[Datapath]:
    yield from load(request.param)


@pytest.fixture(scope="module")
def default_random() -> Iterator[Datapath]:
    yield from load(Algorithm.RANDOM)


def load(algorithm: Algorithm) -> Iterator[Datapath]:
    maps = LBMaps.create(4096, 4096)
    existing = {raw.name: raw for raw in maps.all()}
    with Object.open("test", build(SOURCE)) as obj:
        for definition in obj.map_definitions():
            if definition.name in existing:
                obj.set_max_entries(definition.name, 4096)
                obj.reuse(definition.name, existing[definition.name])  # type: ignore[arg-type]
        obj.set_constant("lb_algorithm", algorithm.to_bytes(4, "little"))
        obj.set_constant("lb_maglev_size", TABLE_SIZE.to_bytes(4, "little"))
        obj.set_constant("lb_hash4_seed", SEED4.to_bytes(4, "little"))
        obj.set_constant("lb_hash6_seed", SEED6.to_bytes(4, "little"))
        obj.load()
        others = {
            definition.name: obj.map(definition.name)
            for definition in obj.map_definitions()
            if definition.name not in existing
        }
        yield Datapath(maps, others, obj.programs())
        for raw in others.values():
            raw.close()
    maps.close()


@pytest.fixture
def node(default_random: Datapath) -> Datapath:
    default_random.clear()
    return default_random


def backends_of(family: Family, count: int) -> list[str]:
    return [f"fd00:9::{n}" if family is V6 else f"10.0.9.{n}" for n in range(1, count + 1)]


def serve(node: Datapath, family: Family, count: int, **fields: int) -> list[str]:
    """Service number 1 with so many backends, which have the ids from 101."""
    backends = backends_of(family, count)
    ports = [(backend, 8080) for backend in backends]
    node.service(family.service, 80, TCP, ports, rev_nat=1, **fields)
    return backends


def change_master(node: Datapath, family: Family, **fields: int) -> None:
    service = node.lb.of(packed(family.service)).service
    key = lb.encode_service_key(packed(family.service), 80, 0, TCP)
    value = lb.decode_service(service.lookup(key) or b"")
    service.update(key, lb.encode_service(msgspec.structs.replace(value, **fields)))


def run(
    node: Datapath, family: Family, sport: int, *, src: str = "", program: str = "inside"
) -> int:
    """What becomes of one packet of a client to the service."""
    sent = packet("tcp", src or family.pod, sport, family.service, 80)
    return node.program(program).run(bytes(sent)).retval


def chosen(node: Datapath, family: Family, sport: int, *, src: str = "") -> str:
    sent = packet("tcp", src or family.pod, sport, family.service, 80)
    result = node.program("inside").run(bytes(sent))
    assert result.retval == 0
    return str(Ether(result.data)[1].dst)


# -- algorithms --


def rotate(word: int, bits: int) -> int:
    return (word << bits | word >> (32 - bits)) & 0xFFFFFFFF


def jenkins(words: list[int], seed: int) -> int:
    """lookup3 by Bob Jenkins over whole words, from his text."""
    mask = 0xFFFFFFFF
    a = b = c = (0xDEADBEEF + 4 * len(words) + seed) & mask
    while len(words) > 3:
        a, b, c = (a + words[0]) & mask, (b + words[1]) & mask, (c + words[2]) & mask
        for bits in (4, 6, 8, 16, 19, 4):
            a = ((a - c) & mask) ^ rotate(c, bits)
            c = (c + b) & mask
            a, b, c = b, c, a
        words = words[3:]
    a, b, c = (a + words[0]) & mask, (b + words[1]) & mask, (c + words[2]) & mask
    for bits in (14, 11, 25, 16, 4, 14, 24):
        c = ((c ^ b) - rotate(b, bits)) & mask
        a, b, c = b, c, a
    return b


def position(src: str, sport: int, dport: int) -> int:
    address = ipaddress.ip_address(src)
    raw = address.packed
    words = [int.from_bytes(raw[at : at + 4], "big") for at in range(0, len(raw), 4)]
    return jenkins([*words, dport << 16 | sport, TCP], SEED4 if address.version == 4 else SEED6) % (
        TABLE_SIZE
    )


def write_table(node: Datapath, family: Family, count: int) -> list[int]:
    turns = [maglev.Turn(7 * n, 1 + n, 1, 100 + n) for n in range(1, count + 1)]
    words = maglev.fill(turns, TABLE_SIZE)
    maps = node.lb.of(packed(family.service))
    maps.maglev.update(lb.encode_id(1), padded(words, bytes(16)))
    return list(array("I", words))


@FAMILIES
@pytest.mark.parametrize("own", [Algorithm.UNDEF, Algorithm.MAGLEV, Algorithm.RANDOM])
def test_flow_goes_where_its_position_in_the_table_says(
    objects: Datapath, family: Family, own: Algorithm, request: pytest.FixtureRequest
) -> None:
    objects.clear()
    default = request.node.callspec.params["objects"]
    backends = serve(objects, family, 5)
    change_master(objects, family, algorithm=own)
    table = write_table(objects, family, 5)
    rng = random.Random(7)
    agreed = 0
    for _ in range(50):
        src = str(ipaddress.ip_address(packed(family.pod)) + rng.randrange(1, 200))
        sport = rng.randrange(1024, 65536)
        expected = backends[table[position(src, sport, 80)] - 101]
        agreed += chosen(objects, family, sport, src=src) == expected
    if Algorithm.MAGLEV in (own, default if own == Algorithm.UNDEF else own):
        assert agreed == 50
    else:
        assert agreed < 30


@FAMILIES
def test_random_choice_uses_every_backend_about_equally(node: Datapath, family: Family) -> None:
    backends = serve(node, family, 4)
    counts = Counter(chosen(node, family, sport) for sport in range(20000, 20200))
    assert set(counts) == set(backends)
    assert all(25 <= count <= 80 for count in counts.values())


@FAMILIES
def test_frontend_without_a_table_is_served_at_random(node: Datapath, family: Family) -> None:
    backends = serve(node, family, 2)
    change_master(node, family, algorithm=Algorithm.MAGLEV)
    assert {chosen(node, family, sport) for sport in range(20000, 20040)} == set(backends)


@FAMILIES
def test_table_that_names_a_removed_backend_is_not_followed(node: Datapath, family: Family) -> None:
    backends = serve(node, family, 2)
    change_master(node, family, algorithm=Algorithm.MAGLEV)
    maps = node.lb.of(packed(family.service))
    maps.maglev.update(lb.encode_id(1), padded(array("I", [999] * TABLE_SIZE).tobytes(), bytes(16)))
    assert chosen(node, family, 20000) in backends


@FAMILIES
def test_slots_behind_the_usable_ones_get_nothing_new(node: Datapath, family: Family) -> None:
    backends = serve(node, family, 4)
    change_master(node, family, count=2, qcount=2)
    counts = Counter(chosen(node, family, sport) for sport in range(20000, 20060))
    assert set(counts) == set(backends[:2])


# -- affinity --


@FAMILIES
@pytest.mark.parametrize("algorithm", [Algorithm.RANDOM, Algorithm.MAGLEV])
def test_client_stays_with_its_backend(
    node: Datapath, family: Family, algorithm: Algorithm
) -> None:
    serve(node, family, 8, flags=ServiceFlag.AFFINITY, timeout_s=600)
    change_master(node, family, algorithm=algorithm)
    write_table(node, family, 8)
    allow(node, family, range(101, 109))
    first = chosen(node, family, 20000)
    assert {chosen(node, family, sport) for sport in range(20001, 20030)} == {first}
    others = {chosen(node, family, 20000, src=client) for client in clients_of(family, 30)}
    assert len(others) > 1


def clients_of(family: Family, count: int) -> list[str]:
    return [str(ipaddress.ip_address(family.pod) + n) for n in range(1, count + 1)]


def allow(node: Datapath, family: Family, numbers: range) -> None:
    matches = node.lb.of(packed(family.service)).affinity_match
    for number in numbers:
        matches.update(lb.encode_affinity_match(AffinityMatch(number, 1)), PRESENT)


def hold(node: Datapath, family: Family, backend_id: int, age_s: float) -> None:
    address = packed(family.pod)
    client = AffinityKey(address.ljust(8, b"\0"), 1)
    key = lb.encode_affinity_key(client, lb.family_of(packed(family.service)))
    used = Affinity(time.monotonic_ns() - int(age_s * 1e9), backend_id)
    node.lb.of(packed(family.service)).affinity.update(key, lb.encode_affinity(used))


@FAMILIES
def test_affinity_ends_with_its_time(node: Datapath, family: Family) -> None:
    backends = serve(node, family, 8, flags=ServiceFlag.AFFINITY, timeout_s=100)
    allow(node, family, range(101, 109))
    hold(node, family, 103, age_s=90)
    assert chosen(node, family, 20000) == backends[2]
    free = set()
    for sport in range(20001, 20031):
        hold(node, family, 103, age_s=110)
        free.add(chosen(node, family, sport))
    assert len(free) > 1


@FAMILIES
def test_backend_that_may_not_keep_clients_loses_them(node: Datapath, family: Family) -> None:
    backends = serve(node, family, 2, flags=ServiceFlag.AFFINITY, timeout_s=100)
    change_master(node, family, count=1)
    allow(node, family, range(101, 102))
    hold(node, family, 102, age_s=0)
    assert chosen(node, family, 20000) == backends[0]


# -- who is served --


@FAMILIES
def test_each_scope_has_its_own_backends(node: Datapath, family: Family) -> None:
    outer, inner = backends_of(family, 2)
    fields = {"flags": ServiceFlag.TWO_SCOPES}
    node.service(family.service, 80, TCP, [(outer, 8080)], rev_nat=1, **fields)
    node.service(
        family.service, 80, TCP, [(inner, 8080)], rev_nat=2, scope=Scope.INTERNAL, **fields
    )
    sent = bytes(packet("tcp", family.pod, 20000, family.service, 80))
    assert Ether(node.program("inside").run(sent).data)[1].dst == inner
    sent = bytes(packet("tcp", family.router, 20000, family.service, 80))
    assert Ether(node.program("outside").run(sent).data)[1].dst == outer


@FAMILIES
def test_cluster_address_is_not_served_outside(node: Datapath, family: Family) -> None:
    serve(node, family, 1, flags=ServiceFlag.NON_ROUTABLE)
    assert run(node, family, 20000) == 0
    assert run(node, family, 20001, program="outside") == -lib.DROP_IS_CLUSTER_IP


@FAMILIES
@pytest.mark.parametrize("deny", [False, True])
def test_source_ranges_hold_for_clients_outside(node: Datapath, family: Family, deny: bool) -> None:
    flags = ServiceFlag.SOURCE_RANGE | (ServiceFlag.SOURCE_DENY if deny else ServiceFlag.NONE)
    serve(node, family, 1, flags=flags)
    named, length = ("2001:db8::", 32) if family is V6 else ("192.0.2.0", 24)
    ranges = node.lb.of(packed(family.service)).source
    ranges.update(lb.encode_source_range(SourceRange(1, packed(named), length)), PRESENT)
    ranges.update(lb.encode_source_range(SourceRange(2, bytes(len(packed(named))), 0)), PRESENT)
    within = run(node, family, 20000, src=family.router, program="outside")
    without = run(node, family, 20000, src=family.pod, program="outside")
    refused = -lib.DROP_NOT_IN_SRC_RANGE
    assert (within, without) == ((refused, 0) if deny else (0, refused))
    assert run(node, family, 20001, src=family.pod) == 0
    assert run(node, family, 20001, src=family.router) == 0


@FAMILIES
@pytest.mark.parametrize("deny", [False, True])
def test_source_range_of_the_other_meaning_does_not_count(
    node: Datapath, family: Family, deny: bool
) -> None:
    """Ranges and their meaning are written one after the other."""
    flags = ServiceFlag.SOURCE_RANGE | (ServiceFlag.SOURCE_DENY if deny else ServiceFlag.NONE)
    serve(node, family, 1, flags=flags)
    ranges = node.lb.of(packed(family.service)).source
    length = 8 * len(packed(family.router))
    for address, denies in ((family.router, deny), (family.pod, not deny)):
        key = lb.encode_source_range(SourceRange(1, packed(address), length))
        ranges.update(key, lb.encode_source_meaning(denies))
    same = run(node, family, 20000, src=family.router, program="outside")
    other = run(node, family, 20000, src=family.pod, program="outside")
    refused = -lib.DROP_NOT_IN_SRC_RANGE
    assert (same, other) == ((refused, 0) if deny else (0, refused))


@FAMILIES
@pytest.mark.parametrize("deny", [False, True])
def test_source_ranges_hold_for_pods_when_they_are_for_clients_inside(
    node: Datapath, family: Family, deny: bool
) -> None:
    flags = ServiceFlag.SOURCE_RANGE | ServiceFlag.SOURCE_INSIDE | ServiceFlag.SOURCE_NOT_NODE
    serve(node, family, 1, flags=flags | (ServiceFlag.SOURCE_DENY if deny else ServiceFlag.NONE))
    ranges = node.lb.of(packed(family.service)).source
    length = 8 * len(packed(family.pod))
    ranges.update(lb.encode_source_range(SourceRange(1, packed(family.pod), length)), PRESENT)
    for program in ("inside", "outside"):
        within = run(node, family, 20000, src=family.pod, program=program)
        without = run(node, family, 20000, src=family.router, program=program)
        refused = -lib.DROP_NOT_IN_SRC_RANGE
        assert (within, without) == ((refused, 0) if deny else (0, refused))


@FAMILIES
def test_existing_connection_is_refused_as_soon_as_its_range_is(
    node: Datapath, family: Family
) -> None:
    serve(node, family, 1)
    assert run(node, family, 20000, program="outside") == 0
    change_master(node, family, flags=ServiceFlag.SOURCE_RANGE)
    assert run(node, family, 20000, program="outside") == -lib.DROP_NOT_IN_SRC_RANGE


@FAMILIES
def test_unknown_address_is_not_ours_from_either_side(node: Datapath, family: Family) -> None:
    serve(node, family, 1)
    other = bytes(packet("tcp", family.pod, 20000, family.other_service, 80))
    for program in ("inside", "outside"):
        result = node.program(program).run(other)
        assert (result.retval, result.data) == (PASSED, other)
