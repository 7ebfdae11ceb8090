# SPDX-License-Identifier: Apache-2.0
"""Session affinity at real sockets: a namespace stays with its backend as long as it may."""

from __future__ import annotations

import select
import socket
from typing import NamedTuple

import pytest

from bpf import features
from bpf.maps import lb
from bpf.maps.lb import Affinity, AffinityKey, AffinityMatch
from bpf.maps.lb_numbers import ServiceFlag
from tests.bpf.test_sock import (
    SVC_ONE,
    SVC_ONE_V6,
    Datapath,
    datapath,
    packed,
    tcp_server,
    udp_server,
)

__all__ = ["datapath"]

pytestmark = pytest.mark.root

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
REV_NAT = 1
SERVERS = 8
TRIES = 12
DAY_S = 86400
FAMILIES = pytest.mark.parametrize(
    ("service", "backend"), [(SVC_ONE, "127.0.0.1"), (SVC_ONE_V6, "::1")], ids=["v4", "v6"]
)


class Service(NamedTuple):
    """A frontend with affinity and its servers; to be made inside the client's namespace."""

    datapath: Datapath
    address: str
    servers: list[socket.socket]

    @classmethod
    def make(cls, datapath: Datapath, address: str, backend: str, proto: int) -> Service:
        make = tcp_server if proto == TCP else udp_server
        made = [make(backend) for _ in range(SERVERS)]
        service = cls(datapath, address, [server for server, _ in made])
        ports = [(backend, port) for _, port in made]
        flags = ServiceFlag.AFFINITY
        datapath.service(address, 80, proto, ports, rev_nat=REV_NAT, flags=flags, timeout_s=DAY_S)
        for slot in range(1, SERVERS + 1):
            service.maps.affinity_match.update(service.match(slot), lb.PRESENT)
        return service

    @property
    def maps(self) -> lb.LBFamilyMaps:
        return self.datapath.maps.of(packed(self.address))

    def match(self, slot: int) -> bytes:
        return lb.encode_affinity_match(AffinityMatch(REV_NAT * 100 + slot, REV_NAT))

    def held(self) -> tuple[bytes, Affinity]:
        """The one entry that there is."""
        ((key, value),) = self.maps.affinity.items()
        return key, lb.decode_affinity(value)

    def connect(self) -> int:
        """Port of the server that a new connection reaches."""
        with socket.create_connection((self.address, 80), timeout=3) as client:
            mine = client.getsockname()[1]
            server = self.reached()
            accepted, peer = server.accept()
            accepted.close()
            assert peer[1] == mine
            return int(server.getsockname()[1])

    def ask(self) -> int:
        """Port of the server that a datagram of a new socket reaches."""
        with socket.socket(self.servers[0].family, socket.SOCK_DGRAM) as client:
            client.sendto(b"question", (self.address, 80))
            server = self.reached()
            server.recv(100)
            return int(server.getsockname()[1])

    def reached(self) -> socket.socket:
        """The server that has something to take; the last step of a handshake takes its time."""
        ready, _, _ = select.select(self.servers, [], [], 3)
        assert len(ready) == 1, "one server is reached"
        return ready[0]

    def port_of(self, backend_id: int) -> int:
        return int(self.servers[backend_id - REV_NAT * 100 - 1].getsockname()[1])


@FAMILIES
def test_connections_of_a_namespace_stay_with_one_backend(
    datapath: Datapath, service: str, backend: str
) -> None:
    def client() -> None:
        made = Service.make(datapath, service, backend, TCP)
        reached = {made.connect() for _ in range(TRIES)}
        key, value = made.held()
        assert reached == {made.port_of(value.backend_id)}
        cookie = features.netns_cookie().to_bytes(8, "little")
        client = cookie if backend == "127.0.0.1" else cookie + bytes(8)
        family = lb.family_of(packed(service))
        assert key == lb.encode_affinity_key(AffinityKey(client, REV_NAT, True), family)

    datapath.world.in_child(client)


@FAMILIES
def test_datagrams_of_a_namespace_stay_with_one_backend(
    datapath: Datapath, service: str, backend: str
) -> None:
    def client() -> None:
        made = Service.make(datapath, service, backend, UDP)
        assert len({made.ask() for _ in range(TRIES)}) == 1

    datapath.world.in_child(client)


def test_another_namespace_has_an_affinity_of_its_own(datapath: Datapath) -> None:
    def client() -> None:
        made = Service.make(datapath, SVC_ONE, "127.0.0.1", TCP)
        made.connect()

    for _ in range(2):
        datapath.world.in_child(client)
    assert len(list(datapath.maps.v4.affinity.items())) == 2


@FAMILIES
def test_backend_that_matches_no_more_loses_its_clients(
    datapath: Datapath, service: str, backend: str
) -> None:
    def client() -> None:
        made = Service.make(datapath, service, backend, TCP)
        first = made.connect()
        _, before = made.held()
        made.maps.affinity_match.delete(made.match(before.backend_id - 100))
        for _ in range(TRIES * 2):  # its slot is still there: it may be chosen, but not kept
            made.connect()
        _, after = made.held()
        assert after.backend_id != before.backend_id
        assert {made.connect() for _ in range(TRIES)} == {made.port_of(after.backend_id)} != {first}

    datapath.world.in_child(client)


@FAMILIES
def test_backend_that_is_gone_is_replaced_at_once(
    datapath: Datapath, service: str, backend: str
) -> None:
    def client() -> None:
        made = Service.make(datapath, service, backend, TCP)
        key, _ = (made.connect(), made.held())[1]
        made.maps.affinity.update(key, lb.encode_affinity(Affinity(0, 999)))
        chosen = made.connect()
        _, after = made.held()
        assert made.port_of(after.backend_id) == chosen

    datapath.world.in_child(client)


@FAMILIES
def test_affinity_ends_when_its_time_is_over_and_not_before(
    datapath: Datapath, service: str, backend: str
) -> None:
    def client() -> None:
        made = Service.make(datapath, service, backend, TCP)
        made.connect()
        key, first = made.held()
        almost = Affinity(first.last_used_ns - (DAY_S - 60) * 10**9, first.backend_id)
        over = Affinity(first.last_used_ns - (DAY_S + 60) * 10**9, first.backend_id)
        for _ in range(TRIES):
            made.maps.affinity.update(key, encode(almost))
            assert made.connect() == made.port_of(first.backend_id)
            assert made.held()[1].last_used_ns > first.last_used_ns
        reached = set()
        for _ in range(TRIES * 2):
            made.maps.affinity.update(key, encode(over))
            reached.add(made.connect())
        assert len(reached) > 1

    datapath.world.in_child(client)


def encode(value: Affinity) -> bytes:
    """A time before the boot is a negative number of nanoseconds."""
    return lb.AFFINITY_VALUE.pack(value.last_used_ns % 2**64, value.backend_id)
