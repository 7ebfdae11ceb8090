# SPDX-License-Identifier: Apache-2.0
"""Real sockets in a cgroup with the translation attached, in a namespace with loopback only."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

import pytest

from bpf import features
from bpf.datapath import cleanup
from bpf.maps import lb
from bpf.maps.lb import BackendValue, LBMaps, ServiceValue
from bpf.maps.lb_numbers import Scope, ServiceFlag
from bpf.sock import SockConfig
from tests.bpf.attaching import AttachingDatapath
from tests.bpf.world import World

pytestmark = pytest.mark.root

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP

SVC_ONE = "10.96.0.1"
SVC_ONE_V6 = "fd00:96::1"
BACKENDS = {4: "127.0.0.1", 6: "::1"}


def packed(address: str) -> bytes:
    return ipaddress.ip_address(address).packed


class Datapath(NamedTuple):
    """The attached programs and what a test does with their maps."""

    world: World
    sock: AttachingDatapath
    maps: LBMaps

    def service(
        self,
        address: str,
        port: int,
        proto: int,
        backends: list[tuple[str, int]],
        *,
        rev_nat: int = 1,
        flags: int = 0,
        scope: int = Scope.EXTERNAL,
        count: int | None = None,
        timeout_s: int = 0,
    ) -> None:
        """Write backends, slots, then the master entry; backend ids are rev_nat * 100 + slot."""
        key = packed(address)
        maps = self.maps.of(key)
        for slot, (backend, backend_port) in enumerate(backends, start=1):
            number = rev_nat * 100 + slot
            value = BackendValue(packed(backend), backend_port, proto)
            maps.backend.update(lb.encode_id(number), lb.encode_backend(value))
            maps.service.update(
                lb.encode_service_key(key, port, slot, proto, scope),
                lb.encode_service(ServiceValue(backend_id=number)),
            )
        usable = len(backends) if count is None else count
        maps.service.update(
            lb.encode_service_key(key, port, 0, proto, scope),
            lb.encode_service(
                ServiceValue(
                    rev_nat=rev_nat, count=usable, flags=flags, affinity_timeout_s=timeout_s
                )
            ),
        )


@pytest.fixture
def datapath(world: World) -> Iterator[Datapath]:
    sock = AttachingDatapath(SockConfig(world.bpffs / "node", world.cgroup, 1024, 1024))
    maps = sock.open_maps()
    sock.load()
    sock.attach()
    yield Datapath(world, sock, maps)
    maps.close()
    sock.close()
    cleanup(world.bpffs / "node")


def peer_of(sock: socket.socket) -> tuple[str, int]:
    """getpeername without the flow label and scope of IPv6."""
    address, port = sock.getpeername()[:2]
    return str(address), int(port)


def tcp_server(address: str) -> tuple[socket.socket, int]:
    """A listener; the kernel completes connections whether or not they are accepted."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 0), family=family)
    return server, server.getsockname()[1]


def udp_server(address: str) -> tuple[socket.socket, int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.socket(family, socket.SOCK_DGRAM)
    server.bind((address, 0))
    server.settimeout(3)
    return server, server.getsockname()[1]


def echo_once(server: socket.socket) -> bytes:
    """Answer one datagram with its content."""
    content, client = server.recvfrom(1500)
    server.sendto(content, client)
    return content


@pytest.mark.parametrize(
    ("service", "backend"), [(SVC_ONE, "127.0.0.1"), (SVC_ONE_V6, "::1")], ids=["v4", "v6"]
)
def test_tcp_client_reaches_a_backend_and_sees_the_service(
    datapath: Datapath, service: str, backend: str
) -> None:
    def client() -> tuple[str, int]:
        server, port = tcp_server(backend)
        datapath.service(service, 80, TCP, [(backend, port)])
        with socket.create_connection((service, 80), timeout=3) as connection:
            accepted, _ = server.accept()
            accepted.sendall(b"hello")
            assert connection.recv(16) == b"hello"
            return peer_of(connection)

    assert datapath.world.in_child(client) == (service, 80)


@pytest.mark.parametrize(
    ("service", "backend"), [(SVC_ONE, "127.0.0.1"), (SVC_ONE_V6, "::1")], ids=["v4", "v6"]
)
def test_connected_udp_socket_sees_only_the_service(
    datapath: Datapath, service: str, backend: str
) -> None:
    def client() -> tuple[object, object]:
        server, port = udp_server(backend)
        datapath.service(service, 53, UDP, [(backend, port)])
        with socket.socket(server.family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.connect((service, 53))
            sock.send(b"question")
            assert echo_once(server) == b"question"
            content, peer = sock.recvfrom(100)
            assert content == b"question"
            return peer[:2], sock.getpeername()[:2]

    assert datapath.world.in_child(client) == ((service, 53), (service, 53))


@pytest.mark.parametrize(
    ("service", "backend"), [(SVC_ONE, "127.0.0.1"), (SVC_ONE_V6, "::1")], ids=["v4", "v6"]
)
def test_unconnected_udp_socket_gets_replies_from_the_service(
    datapath: Datapath, service: str, backend: str
) -> None:
    def client() -> list[object]:
        server, port = udp_server(backend)
        datapath.service(service, 53, UDP, [(backend, port)])
        peers: list[object] = []
        with socket.socket(server.family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            for content in (b"one", b"two"):
                sock.sendto(content, (service, 53))
                assert echo_once(server) == content
                answer, peer = sock.recvfrom(100)
                assert answer == content
                peers.append(peer[:2])
        return peers

    assert datapath.world.in_child(client) == [(service, 53)] * 2


def test_mapped_ipv6_sockets_use_the_ipv4_service(datapath: Datapath) -> None:
    mapped = f"::ffff:{SVC_ONE}"

    def client() -> list[object]:
        tcp, tcp_port = tcp_server("127.0.0.1")
        udp, udp_port = udp_server("127.0.0.1")
        datapath.service(SVC_ONE, 80, TCP, [("127.0.0.1", tcp_port)])
        datapath.service(SVC_ONE, 53, UDP, [("127.0.0.1", udp_port)], rev_nat=2)
        seen: list[object] = []
        with socket.socket(socket.AF_INET6) as sock:
            sock.settimeout(3)
            sock.connect((mapped, 80))
            seen.append(sock.getpeername()[:2])
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.sendto(b"q", (mapped, 53))
            echo_once(udp)
            seen.append(sock.recvfrom(10)[1][:2])
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.connect((mapped, 53))
            sock.send(b"q")
            echo_once(udp)
            seen.append(sock.recvfrom(10)[1][:2])
            seen.append(sock.getpeername()[:2])
        tcp.close()
        return seen

    expected = [(mapped, 80), (mapped, 53), (mapped, 53), (mapped, 53)]
    assert datapath.world.in_child(client) == expected


def test_all_usable_backends_are_chosen_and_no_other(datapath: Datapath) -> None:
    def client() -> list[int]:
        servers = [udp_server("127.0.0.1") for _ in range(4)]
        backends = [("127.0.0.1", port) for _, port in servers]
        datapath.service(SVC_ONE, 53, UDP, backends, count=3)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            for _ in range(300):
                sock.sendto(b"x", (SVC_ONE, 53))
        return [queued(server) for server, _ in servers]

    counts = datapath.world.in_child(client)
    assert sum(counts) == 300
    assert counts[3] == 0
    # 100 each are expected; 50 is 6 standard deviations away.
    assert min(counts[:3]) > 50


def queued(server: socket.socket) -> int:
    """How many datagrams wait in a socket."""
    server.setblocking(False)
    count = 0
    while True:
        try:
            server.recv(100)
        except BlockingIOError:
            return count
        count += 1


@pytest.mark.parametrize("service", [SVC_ONE, SVC_ONE_V6])
def test_service_without_backends_refuses_at_once(datapath: Datapath, service: str) -> None:
    def client() -> list[str]:
        datapath.service(service, 80, TCP, [])
        datapath.service(service, 53, UDP, [])
        family = socket.AF_INET6 if ":" in service else socket.AF_INET
        refused = []
        with socket.socket(family, socket.SOCK_STREAM) as tcp:
            refused.append(outcome(lambda: tcp.connect((service, 80))))
        with socket.socket(family, socket.SOCK_DGRAM) as udp:
            refused.append(outcome(lambda: udp.sendto(b"x", (service, 53))))
            refused.append(outcome(lambda: udp.connect((service, 53))))
        return refused

    assert datapath.world.in_child(client) == ["ConnectionRefusedError"] * 3


def test_kernel_without_set_retval_refuses_with_eperm(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "has_helper", lambda program_type, helper: False)
    sock = AttachingDatapath(SockConfig(world.bpffs / "node", world.cgroup, 64, 64))
    maps = sock.open_maps()
    sock.load()
    sock.attach()

    def client() -> str:
        Datapath(world, sock, maps).service(SVC_ONE, 80, TCP, [])
        with socket.socket() as tcp:
            return outcome(lambda: tcp.connect((SVC_ONE, 80)))

    assert world.in_child(client) == "PermissionError"
    maps.close()
    sock.close()
    cleanup(world.bpffs / "node")


def outcome(call: Callable[[], object]) -> str:
    """The name of what a call raises, or "ok"."""
    try:
        call()
    except OSError as error:
        return type(error).__name__ if type(error) is not OSError else os.strerror(error.errno or 0)
    return "ok"


def test_what_is_no_frontend_passes_untouched(datapath: Datapath) -> None:
    def client() -> list[object]:
        server, port = tcp_server("127.0.0.1")
        datapath.service(SVC_ONE, 80, TCP, [("127.0.0.1", port)])
        with socket.create_connection(("127.0.0.1", port), timeout=3) as direct:
            peer = direct.getpeername()
        with socket.socket() as other_port:
            unreachable = outcome(lambda: other_port.connect((SVC_ONE, 81)))
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other_protocol:
            udp = outcome(lambda: other_protocol.connect((SVC_ONE, 80)))
        server.close()
        return [peer == ("127.0.0.1", port), unreachable, udp]

    unreachable = os.strerror(101)
    assert datapath.world.in_child(client) == [True, unreachable, unreachable]


def test_two_scopes_lead_a_client_inside_to_the_internal_entry(datapath: Datapath) -> None:
    def client() -> str:
        server, port = tcp_server("127.0.0.1")
        flags = ServiceFlag.TWO_SCOPES
        datapath.service(SVC_ONE, 80, TCP, [], flags=flags)
        datapath.service(SVC_ONE, 80, TCP, [("127.0.0.1", port)], rev_nat=2, scope=Scope.INTERNAL)
        with socket.socket() as sock:
            result = outcome(lambda: sock.connect((SVC_ONE, 80)))
        server.close()
        return result

    assert datapath.world.in_child(client) == "ok"


def test_surrogate_is_no_address_that_can_be_dialled(datapath: Datapath) -> None:
    """0.0.0.0:30080 in the map must not catch a pod that dials 0.0.0.0 or its own loopback."""

    def client() -> list[str]:
        server, port = tcp_server("127.0.0.1")
        flags = ServiceFlag.NON_ROUTABLE
        datapath.service("0.0.0.0", 30080, TCP, [("127.0.0.1", port)], flags=flags)
        datapath.service("::", 30080, TCP, [("::1", port)], flags=flags)
        results = []
        for family, address in (
            (socket.AF_INET, "0.0.0.0"),
            (socket.AF_INET, "127.0.0.1"),
            (socket.AF_INET6, "::"),
            (socket.AF_INET6, "::1"),
        ):
            with socket.socket(family) as sock:
                results.append(outcome(partial(sock.connect, (address, 30080))))
        server.close()
        return results

    assert datapath.world.in_child(client) == ["ConnectionRefusedError"] * 4


def test_node_reaches_its_surrogate_by_loopback(world: World) -> None:
    def node() -> list[object]:
        sock = AttachingDatapath(SockConfig(world.bpffs / "node", world.cgroup, 64, 64))
        maps = sock.open_maps()
        sock.load()  # here, so that this namespace is the node's
        sock.attach()
        datapath = Datapath(world, sock, maps)
        v4, v4_port = tcp_server("127.0.0.1")
        v6, v6_port = tcp_server("::1")
        datapath.service("0.0.0.0", 30080, TCP, [("127.0.0.1", v4_port)])
        datapath.service("::", 30080, TCP, [("::1", v6_port)])
        peers: list[object] = []
        for address in ("127.0.0.1", "127.0.0.9", "::1"):
            with socket.create_connection((address, 30080), timeout=3) as connection:
                peers.append(connection.getpeername()[:2])
        with socket.socket() as sock_any:
            peers.append(outcome(lambda: sock_any.connect(("0.0.0.0", 30080))))
        v4.close()
        v6.close()
        cleanup(world.bpffs / "node")
        return peers

    assert world.in_child(node) == [
        ("127.0.0.1", 30080),
        ("127.0.0.9", 30080),
        ("::1", 30080),
        "ConnectionRefusedError",
    ]


@pytest.mark.parametrize(
    ("service", "backend"), [(SVC_ONE, "127.0.0.1"), (SVC_ONE_V6, "::1")], ids=["v4", "v6"]
)
def test_slot_that_vanishes_leads_to_another_look_at_the_master_entry(
    datapath: Datapath, service: str, backend: str
) -> None:
    """A master entry that counts a slot too many still finds the backend that is left."""

    def client() -> int:
        server, port = udp_server(backend)
        datapath.service(service, 53, UDP, [(backend, port)], count=2)
        with socket.socket(server.family, socket.SOCK_DGRAM) as sock:
            for _ in range(256):
                outcome(lambda: sock.sendto(b"x", (service, 53)))
        return queued(server)

    # One try finds it half of the time (128 of 256, deviation 8), two tries three quarters (192).
    assert datapath.world.in_child(client) > 160


def test_entry_for_the_way_back_names_socket_backend_and_frontend(datapath: Datapath) -> None:
    def client() -> tuple[int, list[tuple[bytes, bytes]]]:
        server, port = tcp_server("127.0.0.1")
        datapath.service(SVC_ONE, 80, TCP, [("127.0.0.1", port)], rev_nat=77)
        with server, socket.create_connection((SVC_ONE, 80), timeout=3):
            return port, list(datapath.maps.v4.socket.items())

    port, raw = datapath.world.in_child(client)
    entries = [(lb.decode_socket_key(key), lb.decode_socket(value)) for key, value in raw]
    assert [(key.address, key.port) for key, _ in entries] == [(packed("127.0.0.1"), port)]
    assert entries[0][1] == lb.SocketValue(packed(SVC_ONE), 80, 77)
    assert entries[0][0].cookie > 0
