# SPDX-License-Identifier: Apache-2.0
"""Real sockets in namespaces of the tests' own; nobody attached a program."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from cilia.linux.errors import SocketsUnlisted
from cilia.linux.netns import NetNS
from cilia.linux.sockdiag import ALL_STATES, CONNECTED, Socket, SocketDiag, State
from tests.kernel import Kernel

pytestmark = pytest.mark.root

SO_COOKIE = 57
TCP, UDP = int(socket.IPPROTO_TCP), int(socket.IPPROTO_UDP)


def cookie(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")


class Pair:
    """A server and a client that is connected to it, at the loopback of a namespace."""

    def __init__(self, netns: NetNS, address: str, kind: int, client: int | None = None) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.server = netns.socket(family, kind)
        self.server.bind((address, 0))
        if kind == socket.SOCK_STREAM:
            self.server.listen()
        self.port = int(self.server.getsockname()[1])
        self.client = netns.socket(client or family, kind)
        dialled = f"::ffff:{address}" if client and client != family else address
        self.client.connect((dialled, self.port))

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()


@pytest.fixture
def diag(kernel: Kernel) -> Iterator[SocketDiag]:
    with SocketDiag(kernel.netns) as opened:
        yield opened


def found_by_cookie(diag: SocketDiag, sock: socket.socket, states: int = ALL_STATES) -> Socket:
    protocol = TCP if sock.type == socket.SOCK_STREAM else UDP
    number = cookie(sock)
    (found,) = [s for s in diag.sockets(sock.family, protocol, states) if s.cookie == number]
    return found


CASES = [
    ("127.0.0.1", socket.SOCK_STREAM, None),
    ("127.0.0.1", socket.SOCK_DGRAM, None),
    ("::1", socket.SOCK_STREAM, None),
    ("::1", socket.SOCK_DGRAM, None),
    ("127.0.0.1", socket.SOCK_STREAM, socket.AF_INET6),
    ("127.0.0.1", socket.SOCK_DGRAM, socket.AF_INET6),
]


@pytest.mark.parametrize(("address", "kind", "client"), CASES)
def test_a_connected_socket_is_described(
    kernel: Kernel, diag: SocketDiag, address: str, kind: int, client: int | None
) -> None:
    with Pair(kernel.netns, address, kind, client) as pair:
        found = found_by_cookie(diag, pair.client, CONNECTED)
        packed = socket.inet_pton(pair.server.family, address)
        assert (found.state, found.plain_peer, found.peer_port) == (
            State.ESTABLISHED,
            packed,
            pair.port,
        )
        assert found.source_port == pair.client.getsockname()[1]
        assert found.inode == os.fstat(pair.client.fileno()).st_ino


def test_listeners_and_sockets_without_peer_are_not_connected(
    kernel: Kernel, diag: SocketDiag
) -> None:
    with Pair(kernel.netns, "127.0.0.1", socket.SOCK_STREAM) as tcp:
        assert cookie(tcp.server) not in {
            s.cookie for s in diag.sockets(socket.AF_INET, TCP, CONNECTED)
        }
        assert found_by_cookie(diag, tcp.server).state == State.LISTEN
    with Pair(kernel.netns, "127.0.0.1", socket.SOCK_DGRAM) as udp:
        assert cookie(udp.server) not in {
            s.cookie for s in diag.sockets(socket.AF_INET, UDP, CONNECTED)
        }
        assert found_by_cookie(diag, udp.server).state == State.CLOSE


@pytest.mark.parametrize(("address", "kind", "client"), CASES)
def test_the_owner_of_a_destroyed_socket_is_told(
    kernel: Kernel, diag: SocketDiag, address: str, kind: int, client: int | None
) -> None:
    with (
        Pair(kernel.netns, address, kind, client) as pair,
        Pair(kernel.netns, address, kind, client) as other,
    ):
        found = found_by_cookie(diag, pair.client)
        assert diag.destroy(found)
        pair.client.settimeout(3)
        with pytest.raises(OSError) as caught:
            pair.client.recv(1)
        assert caught.value.errno == errno.ECONNABORTED
        assert other.client.getpeername()[1] == other.port
        assert not diag.destroy(found)


def test_a_socket_that_has_the_place_of_another_stays(kernel: Kernel, diag: SocketDiag) -> None:
    with Pair(kernel.netns, "127.0.0.1", socket.SOCK_DGRAM) as pair:
        found = found_by_cookie(diag, pair.client)
        source = pair.client.getsockname()
        pair.client.close()
        with kernel.netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as successor:
            successor.bind(source)
            successor.connect(("127.0.0.1", pair.port))
            assert not diag.destroy(found)
            assert successor.getpeername() == ("127.0.0.1", pair.port)


def test_each_namespace_has_its_own_sockets(kernel: Kernel) -> None:
    with NetNS.new() as other, Pair(kernel.netns, "127.0.0.1", socket.SOCK_DGRAM) as pair:
        with SocketDiag(other) as elsewhere:
            assert list(elsewhere.sockets(socket.AF_INET, UDP)) == []
        with SocketDiag(kernel.netns) as here:
            assert found_by_cookie(here, pair.client).cookie == cookie(pair.client)


def test_more_sockets_than_one_answer_holds(kernel: Kernel, diag: SocketDiag) -> None:
    with ExitStack() as stack:
        made = set()
        for _ in range(700):  # 700 messages of 100 bytes are several datagrams
            sock = stack.enter_context(kernel.netns.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.connect(("127.0.0.1", 9))
            made.add(cookie(sock))
        assert {s.cookie for s in diag.sockets(socket.AF_INET, UDP, CONNECTED)} == made


def test_this_kernel_destroys_sockets(diag: SocketDiag) -> None:
    assert diag.can_destroy()


def test_a_protocol_that_the_kernel_cannot_list_is_refused(diag: SocketDiag) -> None:
    with pytest.raises(SocketsUnlisted, match="list 254 sockets: No such file"):
        list(diag.sockets(socket.AF_INET, 254))
    assert list(diag.sockets(socket.AF_INET, UDP)) == []
    assert [diag.can_list(protocol) for protocol in (TCP, UDP, 254)] == [True, True, False]
