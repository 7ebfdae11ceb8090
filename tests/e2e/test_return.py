# SPDX-License-Identifier: Apache-2.0
"""A real agent's Service is deleted and made anew under open connections: they go on with the
backends that they have.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from bpf.maps import lb
from bpf.maps.lb import LBMaps
from tests.bpf.datapath_world import packed
from tests.e2e.nodes import NODE_BITS, Connection, Server, exactly, pod_address
from tests.e2e.passes import (
    FAMILIES,
    KINDS,
    PLACES,
    TARGET_PORT,
    Asked,
    Service,
    asked_world,
)
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(90)]

#: Clients of the first one ask, those of the second one only listen; the third one has none.
ASKED, TICKING, OTHER = Service("asked", 4), Service("ticking", 5), Service("other", 6)
TICKING_PORT = TARGET_PORT + 1
#: Numbers of addresses of each pod: so many backends that a choice at random is another one.
HOSTS = range(21, 25)
#: For each way.
CONNECTIONS = 4


def backend(number: int, family: int, host: int) -> str:
    return pod_address(number, family).removesuffix("10") + str(host)


def manifests(service: Service, addresses: dict[int, list[str]] | None = None) -> tuple[str, str]:
    """The Service, and its slices; all backends unless they are given."""
    every = {
        family: [backend(number, family, host) for number in PLACES.values() for host in HOSTS]
        for family in FAMILIES
    }
    text, *slices = service.manifest(addresses or every).split("---\n")
    port = TICKING_PORT if service is TICKING else TARGET_PORT
    return text, "---\n".join(slices).replace(f"port: {TARGET_PORT}", f"port: {port}")


@pytest.fixture(scope="module")
def w(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    with asked_world(tmp_path_factory.mktemp("anew"), "anew") as made, ExitStack() as stack:
        for number in PLACES.values():
            pod = made.nodes.pod[number]
            for family in FAMILIES:
                nodad = " nodad" if family == 6 else ""
                for host in HOSTS:
                    address = backend(number, family, host)
                    pod.ip(f"addr add {address}/{NODE_BITS[family]} dev eth0{nodad}")
                    for kind in KINDS.values():
                        server = Server(pod, address, address, TARGET_PORT, kind)
                        stack.callback(server.close)
                    stack.callback(Ticker(pod, address, TICKING_PORT).close)
        for service in (ASKED, TICKING):
            write(made, service)
        made.running()
        yield made


def files(w: Asked, service: Service) -> tuple[Path, Path]:
    return w.manifests / f"{service.name}.yaml", w.manifests / f"{service.name}-slices.yaml"


def write(w: Asked, service: Service, addresses: dict[int, list[str]] | None = None) -> None:
    for path, text in zip(files(w, service), manifests(service, addresses), strict=True):
        w.write(path.name, text)


def remove(w: Asked, service: Service) -> None:
    for path in files(w, service):
        path.unlink()


def number_of(w: Asked, service: Service, family: int) -> tuple[int, int]:
    """Id of the cluster address and how many backends it has; (0, 0) if it is gone."""
    address, port = service.frontend("ClusterIP", family)
    maps = LBMaps.open_pinned(w.bpf_root / w.namespace / "maps")
    try:
        key = lb.encode_service_key(packed(address), port, 0, socket.IPPROTO_TCP)
        found = maps.of(packed(address)).service.lookup(key)
    finally:
        maps.close()
    if found is None:
        return 0, 0
    master = lb.decode_service(found)
    return master.rev_nat, master.count


def wait_until_served(w: Asked, service: Service, backends: int = len(PLACES) * len(HOSTS)) -> None:
    def is_served() -> bool:
        found = [number_of(w, service, family) for family in FAMILIES]
        return all(number and count == backends for number, count in found)

    w.eventually(is_served)


def wait_until_gone(w: Asked, service: Service) -> None:
    w.eventually(lambda: not any(number_of(w, service, family)[0] for family in FAMILIES))


def ways(w: Asked, service: Service) -> list[tuple[Kernel, tuple[str, int]]]:
    """Who asks for what: a pod by its packets, and a client outside."""
    asked = [(w.client_pod, "ClusterIP"), (w.client_pod, "NodePort")]
    asked += [(w.nodes.client, "NodePort"), (w.nodes.client, "LoadBalancer")]
    return [(kernel, service.frontend(kind, f)) for kernel, kind in asked for f in FAMILIES]


@pytest.fixture
def connections(w: Asked) -> Iterator[list[Connection]]:
    wait_until_served(w, ASKED)
    with ExitStack() as stack:
        yield [
            stack.enter_context(Connection(kernel, *target, kind, timeout_s=10))
            for kernel, target in ways(w, ASKED)
            for kind in KINDS.values()
            for _ in range(CONNECTIONS)
        ]


def answers(connections: list[Connection]) -> list[str]:
    """Who answers each of them."""
    return [connection.ask()[0] for connection in connections]


def test_connections_go_on_when_their_service_was_gone(
    w: Asked, connections: list[Connection]
) -> None:
    """As when a file of manifests is moved away and back."""
    before, number = answers(connections), number_of(w, ASKED, 4)
    assert len(set(before)) > len(HOSTS)
    remove(w, ASKED)
    wait_until_gone(w, ASKED)
    write(w, ASKED)
    wait_until_served(w, ASKED)
    assert number_of(w, ASKED, 4) != number, "it has another number: that is what this is about"
    for _ in range(2):
        assert answers(connections) == before


def test_connections_go_on_when_backends_come_later_than_their_service(
    w: Asked, connections: list[Connection]
) -> None:
    """As `kubectl replace --force` has it: slices are made when the Service is there."""
    before = answers(connections)
    remove(w, ASKED)
    wait_until_gone(w, ASKED)
    for path, text, backends in zip(files(w, ASKED), manifests(ASKED), (0, 8), strict=True):
        w.write(path.name, text)
        wait_until_served(w, ASKED, backends)
    assert answers(connections) == before


def test_connections_go_on_when_their_service_is_replaced_at_once(
    w: Asked, connections: list[Connection]
) -> None:
    before = answers(connections)
    for _ in range(5):
        remove(w, ASKED)
        write(w, ASKED)
    write(w, OTHER)
    wait_until_served(w, OTHER)  # and so is all that was written before
    wait_until_served(w, ASKED)
    assert answers(connections) == before
    remove(w, OTHER)


def test_connections_that_speak_while_their_service_is_gone_are_not_reset(
    w: Asked, connections: list[Connection]
) -> None:
    """TCP sends again what was not answered, and goes on as soon as the Service is back."""
    streams = [one for one in connections if one.kind == socket.SOCK_STREAM]
    before = answers(streams)
    found: dict[int, str] = {}

    def ask(at: int) -> None:
        with suppress(OSError):
            found[at] = streams[at].ask()[0]

    remove(w, ASKED)
    wait_until_gone(w, ASKED)
    threads = [threading.Thread(target=ask, args=(at,), daemon=True) for at in range(len(streams))]
    for thread in threads:
        thread.start()
    time.sleep(0.5)  # nothing is to happen: each has sent its question twice
    assert found == {}
    write(w, ASKED)
    wait_until_served(w, ASKED)
    for thread in threads:
        thread.join(10)
    assert found == dict(enumerate(before))


class Ticker:
    """Sends numbers to whoever connects, and reads nothing."""

    def __init__(self, kernel: Kernel, address: str, port: int) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self.sock = kernel.netns.socket(family, socket.SOCK_STREAM)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind((address, port))
        self.sock.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                client, _ = self.sock.accept()
                threading.Thread(target=self._tick, args=(client,), daemon=True).start()

    def _tick(self, client: socket.socket) -> None:
        with client, suppress(OSError):  # the client has closed
            for number in range(1 << 31):
                client.sendall(number.to_bytes(4, "big"))
                time.sleep(0.01)

    def close(self) -> None:
        self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


def test_clients_that_only_listen_hear_more_when_their_service_is_back(w: Asked) -> None:
    """They have nothing to say until then: the first packet of each is its backend's."""
    wait_until_served(w, TICKING)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(Connection(kernel, *target, socket.SOCK_STREAM, timeout_s=10)).sock
            for kernel, target in ways(w, TICKING)
        ]
        ticks = dict.fromkeys(clients, 0)

        def hear() -> None:
            for client in clients:
                assert int.from_bytes(exactly(client, 4), "big") == ticks[client]
                ticks[client] += 1

        hear()
        remove(w, TICKING)
        wait_until_gone(w, TICKING)
        write(w, TICKING)
        wait_until_served(w, TICKING)
        for _ in range(100):
            hear()


def backend_of(client: Connection) -> str:
    """Who answers, or what happened instead."""
    try:
        return client.ask()[0]
    except OSError as error:
        return type(error).__name__


def test_connection_ends_whose_backend_is_not_behind_its_service_again(
    w: Asked, connections: list[Connection]
) -> None:
    before = answers(connections)
    left = backend(1, 4, HOSTS[0]), backend(1, 6, HOSTS[0])
    remove(w, ASKED)
    wait_until_gone(w, ASKED)
    addresses = {family: [address] for family, address in zip(FAMILIES, left, strict=True)}
    write(w, ASKED, addresses)
    try:
        wait_until_served(w, ASKED, 1)
        for client, name in zip(connections, before, strict=True):
            answered = backend_of(client)
            if name in left:
                assert answered == name
            elif client.kind == socket.SOCK_DGRAM:
                assert answered in left
            else:
                assert answered == "ConnectionResetError"
    finally:
        write(w, ASKED)
