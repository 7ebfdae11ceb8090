# SPDX-License-Identifier: Apache-2.0
"""Workloads that talk through services: real sockets, kernels that verify checksums, two layouts.

::

    client --veth-- [ router ] --veth-- server      each a network namespace
                    routed: an address a device; bridged: both are ports of a bridge
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from bpf.libbpf import lib
from bpf.link import AttachType
from tests.bpf.datapath_world import Datapath, drops, loaded
from tests.bpf.device_hooks import attach
from tests.bpf.ethtool import checksum_offload_off
from tests.bpf.world import NetworkNamespace

pytestmark = pytest.mark.root

TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
TIMEOUT_S = 5
IP_MTU, IP_MTU_DISCOVER, PMTUDISC_DO = 14, 10, 2
IPV6_MTU, IPV6_MTU_DISCOVER = 24, 23

_numbers = itertools.count()


class Family(NamedTuple):
    number: socket.AddressFamily
    client: str
    server: str
    service: str


V4 = Family(socket.AF_INET, "10.0.1.11", "10.0.1.12", "10.96.0.1")
V6 = Family(socket.AF_INET6, "fd00:1::11", "fd00:1::12", "fd00:96::1")
FAMILIES = pytest.mark.parametrize("family", [V4, V6], ids=["v4", "v6"])


class Network:
    """Router, client and server, with the programs at the router's ends of both devices."""

    def __init__(self, stack: ExitStack, datapath: Datapath, *, bridged: bool) -> None:
        self.datapath = datapath
        self.bridged = bridged
        self.router, self.client, self.server = (self._namespace(stack) for _ in range(3))
        with self.router.enter():
            for path in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
                Path("/proc/sys/net", path).write_text("1")
        if bridged:
            self.router.run("link", "add", "br0", "type", "bridge")
            self.router.run("link", "set", "br0", "up")
            self.router.run("addr", "add", "10.0.1.1/24", "dev", "br0")
            self.router.run("addr", "add", "fd00:1::1/64", "dev", "br0", "nodad")
        for pod, device, number in ((self.client, "c0", 11), (self.server, "s0", 12)):
            self._connect(pod, device)
            (self._bridge if bridged else self._route)(pod, device, number)
            self._attach(stack, device)

    @staticmethod
    def _namespace(stack: ExitStack) -> NetworkNamespace:
        namespace = NetworkNamespace(f"cilia-lxc-{os.getpid()}-{next(_numbers)}")
        stack.callback(namespace.close)
        return namespace

    def _connect(self, pod: NetworkNamespace, device: str) -> None:
        peer = ("peer", "name", "eth0", "netns", pod.name)
        self.router.run("link", "add", device, "type", "veth", *peer)
        with self.router.enter():
            Path(f"/proc/sys/net/ipv6/conf/{device}/accept_dad").write_text("0")
        with pod.enter():
            Path("/proc/sys/net/ipv6/conf/eth0/accept_dad").write_text("0")
        self.router.run("link", "set", device, "up")
        pod.run("link", "set", "eth0", "up")

    def _route(self, pod: NetworkNamespace, device: str, number: int) -> None:
        pod.run("addr", "add", f"10.0.1.{number}/32", "dev", "eth0")
        pod.run("route", "add", "169.254.1.1", "dev", "eth0", "scope", "link")
        pod.run("route", "add", "default", "via", "169.254.1.1")
        self.router.run("addr", "add", "169.254.1.1/32", "dev", device)
        self.router.run("route", "add", f"10.0.1.{number}/32", "dev", device)
        pod.run("addr", "add", f"fd00:1::{number}/128", "dev", "eth0", "nodad")
        self.router.run("addr", "add", "fe80::1/64", "dev", device, "nodad")
        pod.run("route", "add", "default", "via", "fe80::1", "dev", "eth0")
        self.router.run("route", "add", f"fd00:1::{number}/128", "dev", device)
        # Errors about packets to the server have a source of the router's.
        self.router.run("addr", "replace", "192.0.2.1/32", "dev", "lo")
        self.router.run("addr", "replace", "2001:db8::1/128", "dev", "lo", "nodad")

    def _bridge(self, pod: NetworkNamespace, device: str, number: int) -> None:
        self.router.run("link", "set", device, "master", "br0")
        pod.run("addr", "add", f"10.0.1.{number}/24", "dev", "eth0")
        pod.run("route", "add", "default", "via", "10.0.1.1")
        pod.run("addr", "add", f"fd00:1::{number}/64", "dev", "eth0", "nodad")
        pod.run("route", "add", "default", "via", "fd00:1::1")

    def _attach(self, stack: ExitStack, device: str) -> None:
        ifindex = self.router.ifindex(device)
        for program, hook in (
            ("from_pod", AttachType.TCX_INGRESS),
            ("to_pod", AttachType.TCX_EGRESS),
        ):
            with self.router.enter():
                link = attach(ifindex, self.datapath.program(program), hook)
            stack.enter_context(link)

    def without_offload(self) -> None:
        """Checksums are made by who sends and verified by who receives, as on a wire."""
        for pod in (self.client, self.server):
            with pod.enter():
                checksum_offload_off("eth0")

    def wrong_checksums(self) -> int:
        """Packets that a receiver found broken."""
        found = 0
        for pod in (self.client, self.server):
            with pod.enter():
                found += sum(counters("InCsumErrors"))
        return found


def counters(name: str) -> Iterator[int]:
    """Every counter of this name in the present namespace."""
    lines = Path("/proc/thread-self/net/snmp").read_text().splitlines()
    for head, values in zip(lines[::2], lines[1::2], strict=True):
        row = dict(zip(head.split()[1:], values.split()[1:], strict=True))
        if name in row:
            yield int(row[name])
    for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines():
        key, value = line.split()
        if key.endswith(name):
            yield int(value)


@pytest.fixture(scope="module")
def objects() -> Iterator[Datapath]:
    with loaded(["lxc"]) as datapath:
        yield datapath


@pytest.fixture(scope="module", params=["routed", "bridged"])
def networks(request: pytest.FixtureRequest, objects: Datapath) -> Iterator[Network]:
    with ExitStack() as stack:
        network = Network(stack, objects, bridged=request.param == "bridged")
        network.without_offload()
        yield network


@pytest.fixture
def network(networks: Network) -> Iterator[Network]:
    networks.datapath.clear()
    yield networks
    assert networks.wrong_checksums() == 0


def new_socket(pod: NetworkNamespace, family: Family, proto: int) -> socket.socket:
    kind = socket.SOCK_STREAM if proto == TCP else socket.SOCK_DGRAM
    with pod.enter():
        made = socket.socket(family.number, kind)
    made.settimeout(TIMEOUT_S)
    return made


def bound(pod: NetworkNamespace, family: Family, proto: int, address: str) -> socket.socket:
    """A server at a port of the kernel's choice."""
    made = new_socket(pod, family, proto)
    made.bind((address, 0))
    if proto == TCP:
        made.listen()
    return made


def serve(network: Network, family: Family, proto: int, address: str, port: int) -> None:
    network.datapath.service(family.service, 80, proto, [(address, port)], rev_nat=1)


def talk_tcp(client: socket.socket, server: socket.socket, family: Family) -> str:
    """A megabyte there and back; the address that the server sees."""
    client.connect((family.service, 80))
    session, peer = server.accept()
    session.settimeout(TIMEOUT_S)
    data = os.urandom(1 << 16)
    with session:
        for _ in range(16):
            client.sendall(data)
            assert receive_exactly(session, len(data)) == data
            session.sendall(data[::-1])
            assert receive_exactly(client, len(data)) == data[::-1]
    assert client.getpeername()[:2] == (family.service, 80)
    return str(peer[0])


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        part = sock.recv(size - len(received))
        assert part, "the connection was closed"
        received += part
    return bytes(received)


@FAMILIES
def test_tcp_through_a_service(network: Network, family: Family) -> None:
    with (
        bound(network.server, family, TCP, family.server) as server,
        new_socket(network.client, family, TCP) as client,
    ):
        serve(network, family, TCP, family.server, server.getsockname()[1])
        assert talk_tcp(client, server, family) == family.client


@FAMILIES
@pytest.mark.parametrize("size", [10, 1400, 8000, 40000])
def test_datagrams_and_their_fragments_both_ways(
    network: Network, family: Family, size: int
) -> None:
    data = os.urandom(size)
    with (
        bound(network.server, family, UDP, family.server) as server,
        new_socket(network.client, family, UDP) as client,
    ):
        serve(network, family, UDP, family.server, server.getsockname()[1])
        for _ in range(3):
            client.sendto(data, (family.service, 80))
            received, peer = server.recvfrom(65535)
            assert (received, peer[0]) == (data, family.client)
            server.sendto(data[::-1], peer)
            received, peer = client.recvfrom(65535)
            assert (received, peer[:2]) == (data[::-1], (family.service, 80))


@FAMILIES
def test_closed_port_of_the_backend_is_an_error_from_the_service(
    network: Network, family: Family
) -> None:
    serve(network, family, UDP, family.server, 9)
    with new_socket(network.client, family, UDP) as client:
        client.connect((family.service, 80))
        client.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)


@FAMILIES
@pytest.mark.parametrize("proto", [TCP, UDP], ids=["tcp", "udp"])
def test_service_without_backends_refuses_at_once(
    network: Network, family: Family, proto: int
) -> None:
    network.datapath.service(family.service, 80, proto, [], rev_nat=1)
    before = drops(network.datapath).get(lib.DROP_NO_BACKEND, 0)
    with new_socket(network.client, family, proto) as client:
        if proto == TCP:
            assert client.connect_ex((family.service, 80)) == errno.ECONNREFUSED
        else:
            client.connect((family.service, 80))
            client.send(b"anybody?")
            assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
    assert drops(network.datapath)[lib.DROP_NO_BACKEND] == before + 1


@FAMILIES
def test_workload_talks_to_itself_by_tcp(network: Network, family: Family) -> None:
    with (
        bound(network.client, family, TCP, family.client) as server,
        new_socket(network.client, family, TCP) as client,
    ):
        serve(network, family, TCP, family.client, server.getsockname()[1])
        loopback = "fd63:696c:6961::1" if family is V6 else "169.254.42.1"
        assert talk_tcp(client, server, family) == loopback


@FAMILIES
@pytest.mark.parametrize("size", [10, 8000])
def test_workload_talks_to_itself_by_udp(network: Network, family: Family, size: int) -> None:
    data = os.urandom(size)
    with (
        bound(network.client, family, UDP, family.client) as server,
        new_socket(network.client, family, UDP) as client,
    ):
        serve(network, family, UDP, family.client, server.getsockname()[1])
        client.connect((family.service, 80))
        client.send(data)
        received, peer = server.recvfrom(65535)
        assert received == data
        server.sendto(data[::-1], peer)
        assert client.recv(65535) == data[::-1]


@FAMILIES
def test_workload_that_does_not_serve_itself_is_refused(network: Network, family: Family) -> None:
    serve(network, family, UDP, family.client, 9)
    with new_socket(network.client, family, UDP) as client:
        client.connect((family.service, 80))
        client.send(b"me?")
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)


@FAMILIES
def test_two_services_with_one_backend_answer_in_turn(network: Network, family: Family) -> None:
    """From one port of a client: the answer comes from the service that was asked last."""
    other = "fd00:96::2" if family is V6 else "10.96.0.2"
    with (
        bound(network.server, family, UDP, family.server) as server,
        new_socket(network.client, family, UDP) as client,
    ):
        port = server.getsockname()[1]
        serve(network, family, UDP, family.server, port)
        network.datapath.service(other, 80, UDP, [(family.server, port)], rev_nat=2)
        for service in (family.service, other, family.service):
            client.sendto(service.encode(), (service, 80))
            question, peer = server.recvfrom(100)
            server.sendto(question, peer)
            answer, source = client.recvfrom(100)
            assert (answer.decode(), source[:2]) == (service, (service, 80))


@FAMILIES
def test_plain_traffic_of_workloads_is_untouched(network: Network, family: Family) -> None:
    with (
        bound(network.server, family, UDP, family.server) as server,
        new_socket(network.client, family, UDP) as client,
    ):
        serve(network, family, UDP, family.server, 9)
        client.sendto(bytes(8000), (family.server, server.getsockname()[1]))
        received, peer = server.recvfrom(65535)
        server.sendto(received, peer)
        assert client.recvfrom(65535)[0] == bytes(8000)
    number = 6 if family is V6 else 4
    assert list(network.datapath.maps[f"cilia_ct{number}_any"].items()) == []


@pytest.fixture
def narrow(objects: Datapath) -> Iterator[Network]:
    """The way from the router to the server takes 1300 bytes; checksums are left to the devices."""
    with ExitStack() as stack:
        network = Network(stack, objects, bridged=False)
        objects.clear()
        network.router.run("link", "set", "s0", "mtu", "1300")
        network.server.run("link", "set", "eth0", "mtu", "1300")
        yield network


@FAMILIES
def test_client_learns_the_mtu_behind_the_service(narrow: Network, family: Family) -> None:
    level, discover, mtu = (
        (socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, IPV6_MTU)
        if family is V6
        else (socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_MTU)
    )
    with (
        bound(narrow.server, family, UDP, family.server) as server,
        new_socket(narrow.client, family, UDP) as client,
    ):
        serve(narrow, family, UDP, family.server, server.getsockname()[1])
        client.connect((family.service, 80))
        client.setsockopt(level, discover, PMTUDISC_DO)
        assert client.getsockopt(level, mtu) == 1500
        client.send(bytes(1400))
        with pytest.raises(OSError, match="Message too long") as caught:
            client.recv(100)
        assert caught.value.errno == errno.EMSGSIZE
        assert client.getsockopt(level, mtu) == 1300
        client.send(bytes(1200))
        assert server.recv(65535) == bytes(1200)


@FAMILIES
def test_tcp_gets_through_a_narrow_path_with_offload(narrow: Network, family: Family) -> None:
    with (
        bound(narrow.server, family, TCP, family.server) as server,
        new_socket(narrow.client, family, TCP) as client,
    ):
        serve(narrow, family, TCP, family.server, server.getsockname()[1])
        talk_tcp(client, server, family)
