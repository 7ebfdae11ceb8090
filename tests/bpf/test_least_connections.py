# SPDX-License-Identifier: Apache-2.0
"""The choice by number of connections, at real sockets: between two backends nothing is random."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from bpf.maps import lb
from bpf.maps.lb_numbers import Algorithm, Scope
from tests.bpf.test_sock import SVC_ONE, SVC_ONE_V6, Datapath, packed, tcp_server, udp_server
from tests.bpf.test_sock_node import node
from tests.bpf.world import World

pytestmark = pytest.mark.root

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
REV_NAT = 1
FAMILIES = pytest.mark.parametrize(
    ("service", "backend"), [(SVC_ONE, "127.0.0.1"), (SVC_ONE_V6, "::1")], ids=["v4", "v6"]
)


class Balanced:
    """A frontend that chooses so, and its clients; to be made inside the client's namespace."""

    def __init__(
        self, datapath: Datapath, stack: ExitStack, address: str, backend: str, proto: int = TCP
    ) -> None:
        self._datapath, self._stack, self.address = datapath, stack, address
        make = tcp_server if proto == TCP else udp_server
        servers = [make(backend) for _ in range(2)]
        for server, _ in servers:
            stack.enter_context(server)
        self.ports = [port for _, port in servers]
        self._key = packed(address)
        self._proto = proto
        datapath.service(address, 80, proto, [(backend, port) for port in self.ports])

    def weigh(self, weights: Sequence[int]) -> None:
        for slot, weight in enumerate(weights, 1):
            self._edit(slot, weight=weight)

    def name(self, algorithm: Algorithm) -> None:
        self._edit(0, algorithm=algorithm)

    def _edit(self, slot: int, **fields: Any) -> None:
        services = self._datapath.maps.of(self._key).service
        key = lb.encode_service_key(self._key, 80, slot, self._proto, Scope.EXTERNAL)
        held = services.lookup(key)
        assert held is not None
        entry = msgspec.structs.replace(lb.decode_service(held), **fields)
        services.update(key, lb.encode_service(entry))

    def client(self, sock: socket.socket | None = None) -> tuple[socket.socket, int]:
        """A connected socket, and which server it has, from 0."""
        kind = socket.SOCK_STREAM if self._proto == TCP else socket.SOCK_DGRAM
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        sock = sock or self._stack.enter_context(socket.socket(family, kind))
        before = self.counts()
        sock.connect((self.address, 80))
        grown = [slot for slot, count in enumerate(self.counts()) if count > before[slot]]
        return sock, grown[0] if grown else -1

    def counts(self) -> list[int]:
        """Connections by server, as the programs count them."""
        ids = (REV_NAT * 100 + slot for slot in (1, 2))
        places = (2 * number + (len(self._key) == 16) for number in ids)
        loads = self._datapath.sock.map("cilia_lb_load")
        raw = [loads.lookup(place.to_bytes(4, "little")) for place in places]
        return [int.from_bytes(value or b"", "little", signed=True) for value in raw]


def run(world: World, work: Callable[[Datapath, ExitStack], Any], **options: Any) -> Any:
    wanted = {"algorithm": Algorithm.LEAST_CONNECTIONS, **options}

    def inside() -> Any:
        with node(world, **wanted) as datapath, ExitStack() as stack:
            return work(datapath, stack)

    return world.in_child(inside)


@FAMILIES
def test_those_with_fewer_connections_get_the_next(
    world: World, service: str, backend: str
) -> None:
    def work(datapath: Datapath, stack: ExitStack) -> list[Any]:
        made = Balanced(datapath, stack, service, backend)
        clients = [made.client() for _ in range(10)]
        even = made.counts()
        for sock, server in clients:
            if server == 0:
                sock.close()
        one_side = made.counts()
        refilled = Counter(made.client()[1] for _ in range(5))
        return [even, one_side, refilled]

    assert run(world, work) == [[5, 5], [0, 5], {0: 5}]


def test_no_count_is_left_by_sockets_that_are_gone(world: World) -> None:
    def work(datapath: Datapath, stack: ExitStack) -> list[int]:
        made = Balanced(datapath, stack, SVC_ONE, "127.0.0.1")
        with ExitStack() as clients:
            for _ in range(20):
                sock, _ = made.client()
                clients.callback(sock.close)
            sock.shutdown(socket.SHUT_RDWR)
        return made.counts()

    assert run(world, work) == [0, 0]


def test_a_backend_of_three_times_the_weight_gets_three_times_as_many(world: World) -> None:
    def work(datapath: Datapath, stack: ExitStack) -> list[int]:
        made = Balanced(datapath, stack, SVC_ONE, "127.0.0.1")
        made.weigh([100, 300])
        for _ in range(40):
            made.client()
        return made.counts()

    assert run(world, work) == [10, 30]


@FAMILIES
def test_a_datagram_socket_counts_where_it_is_connected(
    world: World, service: str, backend: str
) -> None:
    def work(datapath: Datapath, stack: ExitStack) -> list[Any]:
        made = Balanced(datapath, stack, service, backend, UDP)
        sock, _ = made.client()
        first = sum(made.counts())
        for _ in range(5):
            made.client(sock)
        again = sum(made.counts())
        family = socket.AF_INET6 if ":" in service else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as free:
            free.sendto(b"x", (service, 80))
        sent = sum(made.counts())
        sock.close()
        return [first, again, sent, made.counts()]

    assert run(world, work) == [1, 1, 1, [0, 0]]


@pytest.mark.parametrize("named", [True, False])
def test_a_service_may_name_it(world: World, named: bool) -> None:
    def work(datapath: Datapath, stack: ExitStack) -> list[int]:
        made = Balanced(datapath, stack, SVC_ONE, "127.0.0.1")
        made.name(Algorithm.LEAST_CONNECTIONS if named else Algorithm.UNDEF)
        for _ in range(6):
            made.client()
        return made.counts()

    options = {"algorithm": Algorithm.RANDOM, "algorithm_annotation": True}
    assert run(world, work, **options) == ([3, 3] if named else [0, 0])
