# SPDX-License-Identifier: Apache-2.0
"""Sockets that the real programs translated, when the tables lose what they are connected to."""

from __future__ import annotations

import errno
import socket
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from bpf.maps import lb
from bpf.maps.lb_numbers import FrontendType
from cilia.linux.netns import NetNS
from cilia.linux.sockdiag import Socket, SocketDiag
from cilia.loadbalancer.connections import socket_termination
from cilia.loadbalancer.connections.socket_termination import SocketTermination, TerminationConfig
from cilia.loadbalancer.connections.translated_sockets import BackendConnections, count_connections
from statedb import DB
from statedb.status import done
from tables.addressing import L3n4Addr, ServiceName
from tables.loadbalancer.backends import Backend, BackendState, new_backends_table
from tables.loadbalancer.frontends import Frontend, new_frontends_table
from tables.loadbalancer.services import Service
from tables.sources import Source
from tests.bpf.test_sock import SVC_ONE, SVC_ONE_V6, TCP, UDP, Datapath, packed
from tests.bpf.test_sock_node import entries, node
from tests.bpf.world import World

pytestmark = pytest.mark.root

WEB, OTHER = ServiceName("test/web"), ServiceName("test/other")
NAMES = {TCP: "TCP", UDP: "UDP"}
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}
PORT = 80
#: Of no protocol.
UNKNOWN = 254

#: What is dialled, the frontend, the backend's address.
FAMILIES = [
    pytest.param(SVC_ONE, SVC_ONE, "127.0.0.1", id="v4"),
    pytest.param(SVC_ONE_V6, SVC_ONE_V6, "::1", id="v6"),
    pytest.param(f"::ffff:{SVC_ONE}", SVC_ONE, "127.0.0.1", id="mapped"),
]
IPS = [pytest.param(SVC_ONE, "127.0.0.1", id="v4"), pytest.param(SVC_ONE_V6, "::1", id="v6")]


def family_of(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Node:
    """Tables and maps that agree, servers at loopback, and clients."""

    def __init__(self, datapath: Datapath, directory: Path) -> None:
        self.datapath = datapath
        self.db = DB()
        self.frontends = new_frontends_table(self.db)
        self.backends = new_backends_table(self.db)
        self.directory = directory
        self.stack = ExitStack()
        self.health: list[tuple[bool, str]] = []

    def termination(
        self,
        maps_follow: Callable[[int], Awaitable[object]] | None = None,
        **config: Any,
    ) -> SocketTermination:
        async def followed(revision: int) -> None:
            """The maps were written together with the tables."""

        return SocketTermination(
            self.db,
            self.frontends,
            self.backends,
            self.datapath.maps,
            maps_follow or followed,
            lambda part, ok, message: self.health.append((ok, message)),
            TerminationConfig(directories=(self.directory,), settle_s=0.0, **config),
        )

    def server(self, address: str, proto: int, netns: NetNS | None = None) -> int:
        """The port of a new server."""
        make = netns.socket if netns else socket.socket
        made = self.stack.enter_context(make(family_of(address), KINDS[proto]))
        made.bind((address, 0))
        if proto == TCP:
            made.listen()
        return int(made.getsockname()[1])

    def client(self, address: str, port: int, proto: int, netns: NetNS | None = None) -> Any:
        """A connected socket."""
        make = netns.socket if netns else socket.socket
        made = self.stack.enter_context(make(family_of(address), KINDS[proto]))
        made.settimeout(3)
        made.connect((address, port))
        return made

    def serve(
        self,
        service: str,
        proto: int,
        backends: list[tuple[str, int]],
        name: ServiceName = WEB,
        port: int = PORT,
        rev_nat: int = 1,
        state: BackendState = BackendState.ACTIVE,
    ) -> None:
        """A frontend with exactly these backends, in tables and maps."""
        addresses = [L3n4Addr.of(ip, number, NAMES[proto]) for ip, number in backends]
        with self.db.write_txn(self.frontends, self.backends) as wtxn:
            rows = tuple(Backend(name, address, state=state) for address in addresses)
            for row in list(self.backends.all(wtxn)):
                if row.service_name == name:
                    self.backends.delete(wtxn, row)
            for row in rows:
                self.backends.insert(wtxn, row)
            self.frontends.insert(
                wtxn,
                Frontend(
                    L3n4Addr.of(service, port, NAMES[proto]),
                    FrontendType.CLUSTER_IP,
                    name,
                    "",
                    port,
                    Service(name, Source.K8S),
                    rows,
                    rows,
                    None,
                    done(),
                ),
            )
        self.datapath.service(service, port, proto, backends, rev_nat=rev_nat)

    def delete(self, name: ServiceName) -> None:
        """A Service with all that belongs to it."""
        with self.db.write_txn(self.frontends, self.backends) as wtxn:
            for be in list(self.backends.all(wtxn)):
                if be.service_name == name:
                    self.backends.delete(wtxn, be)
            gone = [fe.address for fe in self.frontends.all(wtxn) if fe.service_name == name]
        for address in gone:
            self.delete_frontend(address)

    def delete_frontend(self, address: L3n4Addr) -> None:
        with self.db.write_txn(self.frontends) as wtxn:
            fe = self.frontends.get(wtxn, address)
            assert fe is not None
            self.frontends.delete(wtxn, fe)
        ip, proto = packed(str(address.ip)), TCP if address.protocol == "TCP" else UDP
        self.datapath.maps.of(ip).service.delete(lb.encode_service_key(ip, address.port, 0, proto))

    def redirect(self, address: L3n4Addr, to: ServiceName) -> None:
        with self.db.write_txn(self.frontends) as wtxn:
            fe = self.frontends.get(wtxn, address)
            assert fe is not None
            self.frontends.insert(wtxn, msgspec.structs.replace(fe, redirect_to=to))


def state(sock: socket.socket) -> str:
    """What the owner of a socket finds: open, or the name of the error."""
    sock.setblocking(False)
    try:
        sock.recv(1)
    except BlockingIOError:
        return "open"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "end"


CLOSED = "ECONNABORTED"


@contextmanager
def a_node(world: World, directory: Path, **options: Any) -> Iterator[Node]:
    with node(world, **options) as datapath:
        made = Node(datapath, directory)
        with made.stack:
            yield made


@pytest.mark.parametrize(("dialled", "service", "backend"), FAMILIES)
@pytest.mark.parametrize("proto", [UDP, TCP])
def test_a_socket_is_closed_when_its_backend_is_removed_and_a_direct_one_is_not(
    world: World, tmp_path: Path, dialled: str, service: str, backend: str, proto: int
) -> None:
    def run() -> list[object]:
        with a_node(world, tmp_path) as n:
            gone, stays = n.server(backend, proto), n.server(backend, proto)
            n.serve(service, proto, [(backend, gone)])
            doomed = n.client(dialled, PORT, proto)
            n.serve(service, proto, [(backend, stays)])
            kept = n.client(dialled, PORT, proto)
            direct = n.client(backend, gone, proto)
            termination = n.termination(tcp=True)
            closed = termination.sweep()
            return [
                closed,
                state(doomed),
                state(kept),
                state(direct),
                entries(n.datapath),
                termination.sweep(),
            ]

    assert world.in_child(run) == [1, CLOSED, "open", "open", 1, 0]


@pytest.mark.parametrize(("service", "backend"), IPS)
def test_tcp_is_left_alone_unless_it_is_asked_for(
    world: World, tmp_path: Path, service: str, backend: str
) -> None:
    def run() -> list[str]:
        with a_node(world, tmp_path) as n:
            n.serve(service, TCP, [(backend, n.server(backend, TCP))])
            client = n.client(service, PORT, TCP)
            n.serve(service, TCP, [])
            n.termination().sweep()
            before = state(client)
            n.termination(tcp=True).sweep()
            return [before, state(client)]

    assert world.in_child(run) == ["open", CLOSED]


@pytest.mark.parametrize(
    ("pods", "expected"), [(True, [CLOSED, CLOSED]), (False, [CLOSED, "open"])]
)
@pytest.mark.parametrize(("service", "backend"), IPS)
def test_sockets_of_pods_are_closed_in_their_namespaces(
    world: World, tmp_path: Path, service: str, backend: str, pods: bool, expected: list[str]
) -> None:
    def run() -> list[str]:
        with a_node(world, tmp_path) as n, NetNS.new() as pod:
            (tmp_path / "pod").symlink_to(pod.path)
            n.serve(service, UDP, [(backend, n.server(backend, UDP))])
            up(pod)
            clients = [n.client(service, PORT, UDP), n.client(service, PORT, UDP, pod)]
            n.serve(service, UDP, [])
            n.termination(pods=pods).sweep()
            return [state(client) for client in clients]

    assert world.in_child(run) == expected


def up(netns: NetNS) -> None:
    """Its loopback, so that something can be connected to."""
    subprocess.run(["nsenter", f"--net={netns.path}", "ip", "link", "set", "lo", "up"], check=True)


def test_a_backend_that_another_service_keeps_is_gone_for_the_first_alone(
    world: World, tmp_path: Path
) -> None:
    def run() -> list[str]:
        with a_node(world, tmp_path) as n:
            backend = ("127.0.0.1", n.server("127.0.0.1", UDP))
            n.serve(SVC_ONE, UDP, [backend])
            n.serve("10.96.0.2", UDP, [backend], OTHER, rev_nat=2)
            clients = [n.client(SVC_ONE, PORT, UDP), n.client("10.96.0.2", PORT, UDP)]
            n.delete(WEB)
            n.termination().sweep()
            return [state(client) for client in clients]

    assert world.in_child(run) == [CLOSED, "open"]


@pytest.mark.parametrize(
    "kept",
    [
        BackendState.TERMINATING,
        BackendState.TERMINATING_NOT_SERVING,
        BackendState.QUARANTINED,
        BackendState.MAINTENANCE,
    ],
)
def test_what_a_service_still_has_keeps_its_connections(
    world: World, tmp_path: Path, kept: BackendState
) -> None:
    def run() -> str:
        with a_node(world, tmp_path) as n:
            backend = ("127.0.0.1", n.server("127.0.0.1", UDP))
            n.serve(SVC_ONE, UDP, [backend])
            client = n.client(SVC_ONE, PORT, UDP)
            n.serve(SVC_ONE, UDP, [backend], state=kept)
            n.termination().sweep()
            return state(client)

    assert world.in_child(run) == "open"


def test_a_socket_that_is_connected_elsewhere_by_now_stays(world: World, tmp_path: Path) -> None:
    """Its entry for the removed backend is older than its peer."""

    def run() -> list[object]:
        with a_node(world, tmp_path) as n:
            one, two = n.server("127.0.0.1", UDP), n.server("127.0.0.1", UDP)
            n.serve(SVC_ONE, UDP, [("127.0.0.1", one)])
            client = n.client(SVC_ONE, PORT, UDP)
            client.connect(("127.0.0.1", two))
            n.serve(SVC_ONE, UDP, [])
            return [entries(n.datapath), n.termination().sweep(), state(client)]

    assert world.in_child(run) == [1, 0, "open"]


def test_a_node_port_dialled_by_loopback_belongs_to_its_service(
    world: World, tmp_path: Path
) -> None:
    def run() -> list[str]:
        with a_node(world, tmp_path) as n:
            backend = ("127.0.0.1", n.server("127.0.0.1", UDP))
            n.serve("0.0.0.0", UDP, [backend], port=30080)
            client = n.client("127.0.0.1", 30080, UDP)
            n.termination().sweep()
            before = state(client)
            n.serve("0.0.0.0", UDP, [], port=30080)
            n.termination().sweep()
            return [before, state(client)]

    assert world.in_child(run) == ["open", CLOSED]


# -- events --


async def closed_within(client: socket.socket, seconds: float = 5.0) -> str:
    """The kernel tells the owner of a socket by making it readable."""
    client.setblocking(False)
    with anyio.move_on_after(seconds):
        await anyio.wait_readable(client)
    return state(client)


def test_the_job_closes_sockets_when_a_row_goes(world: World, tmp_path: Path) -> None:
    """A backend, then the last one, then a whole Service; the others stay."""

    async def follow(n: Node) -> list[str]:
        ports = [n.server("127.0.0.1", UDP) for _ in range(3)]
        n.serve(SVC_ONE, UDP, [("127.0.0.1", ports[0])])
        first = n.client(SVC_ONE, PORT, UDP)
        n.serve("10.96.0.2", UDP, [("127.0.0.1", ports[2])], OTHER, rev_nat=2)
        other = n.client("10.96.0.2", PORT, UDP)
        seen = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(n.termination().run)
            n.serve(SVC_ONE, UDP, [("127.0.0.1", ports[1])])
            seen.append(await closed_within(first))
            second = n.client(SVC_ONE, PORT, UDP)
            n.serve(SVC_ONE, UDP, [])
            seen.append(await closed_within(second))
            seen.append(state(other))
            n.delete(OTHER)
            seen.append(await closed_within(other))
            tasks.cancel_scope.cancel()
        return seen

    def run() -> tuple[list[str], list[tuple[bool, str]]]:
        with a_node(world, tmp_path) as n:
            return anyio.run(follow, n), n.health

    assert world.in_child(run) == ([CLOSED, CLOSED, "open", CLOSED], [(True, "Running")])


@pytest.mark.parametrize(
    ("frontend", "dialled"), [(SVC_ONE, SVC_ONE), ("0.0.0.0", "127.0.0.1")], ids=["vip", "node"]
)
def test_the_job_closes_sockets_of_a_frontend_that_goes_alone(
    world: World, tmp_path: Path, frontend: str, dialled: str
) -> None:
    """Its Service and their backend live on behind another one."""

    async def follow(n: Node) -> list[str]:
        backend = ("127.0.0.1", n.server("127.0.0.1", UDP))
        n.serve("10.96.0.9", UDP, [backend], OTHER, rev_nat=9)
        early = n.client("10.96.0.9", PORT, UDP)
        n.delete(OTHER)
        for number in (1, 2):
            n.serve(frontend, UDP, [backend], port=30080 + number, rev_nat=number)
        clients = [n.client(dialled, 30080 + number, UDP) for number in (1, 2)]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(n.termination().run)
            seen = [await closed_within(early)]  # by the first look, so what follows is news
            n.delete_frontend(L3n4Addr.of(frontend, 30081, "UDP"))
            seen += [await closed_within(clients[0]), state(clients[1])]
            tasks.cancel_scope.cancel()
        return seen

    def run() -> list[str]:
        with a_node(world, tmp_path) as n:
            return anyio.run(follow, n)

    assert world.in_child(run) == [CLOSED, CLOSED, "open"]


def test_a_redirected_frontend_keeps_the_sockets_of_both_services(
    world: World, tmp_path: Path
) -> None:
    def run() -> list[str]:
        with a_node(world, tmp_path) as n:
            before, after = (("127.0.0.1", n.server("127.0.0.1", UDP)) for _ in range(2))
            n.serve(SVC_ONE, UDP, [before])
            clients = [n.client(SVC_ONE, PORT, UDP)]
            n.serve("10.96.0.2", UDP, [after], OTHER, rev_nat=2)
            n.redirect(L3n4Addr.of(SVC_ONE, PORT, "UDP"), OTHER)
            n.datapath.service(SVC_ONE, PORT, UDP, [after])
            clients.append(n.client(SVC_ONE, PORT, UDP))
            n.termination().sweep()
            kept = [state(client) for client in clients]
            n.delete(OTHER)
            n.termination().sweep()
            return kept + [state(client) for client in clients]

    assert world.in_child(run) == ["open", "open", "open", CLOSED]


def test_a_start_closes_what_changed_while_nobody_looked(world: World, tmp_path: Path) -> None:
    """Also when the tables have to be filled first, and only then."""

    async def follow(n: Node) -> list[str]:
        kept, gone = n.server("127.0.0.1", UDP), n.server("127.0.0.1", UDP)
        n.serve(SVC_ONE, UDP, [("127.0.0.1", gone)])
        doomed = n.client(SVC_ONE, PORT, UDP)
        n.serve(SVC_ONE, UDP, [("127.0.0.1", kept)])
        client = n.client(SVC_ONE, PORT, UDP)
        again = Node(n.datapath, n.directory)
        with again.db.write_txn(again.backends) as wtxn:
            filled = again.backends.register_initializer(wtxn, "test")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(again.termination().run)
            early = await closed_within(doomed, 0.2)
            again.serve(SVC_ONE, UDP, [("127.0.0.1", kept)])
            with again.db.write_txn(again.backends) as wtxn:
                filled(wtxn)
            seen = [early, await closed_within(doomed), state(client)]
            tasks.cancel_scope.cancel()
        return seen

    def run() -> list[str]:
        with a_node(world, tmp_path) as n:
            return anyio.run(follow, n)

    assert world.in_child(run) == ["open", CLOSED, "open"]


def test_nothing_is_closed_before_the_maps_follow(world: World, tmp_path: Path) -> None:
    """Or its owner would be given the same backend again."""

    async def follow(n: Node) -> list[object]:
        written, asked = anyio.Event(), []

        async def maps_follow(revision: int) -> None:
            asked.append(revision)
            await written.wait()

        n.serve(SVC_ONE, UDP, [("127.0.0.1", n.server("127.0.0.1", UDP))])
        client = n.client(SVC_ONE, PORT, UDP)
        n.serve(SVC_ONE, UDP, [])
        revision = n.frontends.revision(n.db.read_txn())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(n.termination(maps_follow).run)
            before = await closed_within(client, 0.2)
            written.set()
            after = await closed_within(client)
            tasks.cancel_scope.cancel()
        return [before, after, asked[0] == revision]

    def run() -> list[object]:
        with a_node(world, tmp_path) as n:
            return anyio.run(follow, n)

    assert world.in_child(run) == ["open", CLOSED, True]


def test_a_kernel_that_cannot_close_sockets_is_told_of(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_termination, "_can_destroy", lambda: False)

    def run() -> list[tuple[bool, str]]:
        with a_node(world, tmp_path) as n:
            anyio.run(n.termination().run)
            return n.health

    assert world.in_child(run) == [(False, socket_termination.UNABLE)]


@pytest.fixture
def numbers(monkeypatch: pytest.MonkeyPatch) -> dict[int, int]:
    """Numbers under which the kernel is asked for the sockets of a protocol: with one that it does
    not know it answers as without the protocol's module.
    """
    asked: dict[int, int] = {}
    ask = SocketDiag.sockets

    def sockets(self: SocketDiag, family: int, protocol: int, states: int) -> Iterator[Socket]:
        return ask(self, family, asked.get(protocol, protocol), states)

    monkeypatch.setattr(SocketDiag, "sockets", sockets)
    return asked


def test_sockets_that_the_kernel_does_not_list_are_told_of_once_and_closed_once_it_does(
    world: World, tmp_path: Path, numbers: dict[int, int]
) -> None:
    async def follow(n: Node) -> list[object]:
        n.serve(SVC_ONE, UDP, [("127.0.0.1", n.server("127.0.0.1", UDP))])
        n.serve("10.96.0.2", TCP, [("127.0.0.1", n.server("127.0.0.1", TCP))], OTHER, rev_nat=2)
        udp, tcp = n.client(SVC_ONE, PORT, UDP), n.client("10.96.0.2", PORT, TCP)
        numbers[UDP] = UNKNOWN
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(n.termination(tcp=True, prune_interval_s=0.05).run)
            n.serve(SVC_ONE, UDP, [])
            n.delete(OTHER)
            seen: list[object] = [await closed_within(tcp), state(udp), list(n.health)]
            numbers.clear()
            seen += [await closed_within(udp), n.health[2:]]
            tasks.cancel_scope.cancel()
        return seen

    def run() -> list[object]:
        with a_node(world, tmp_path) as n:
            return anyio.run(follow, n)

    told = [(True, "Running"), (False, socket_termination.UNLISTED.format("UDP"))]
    assert world.in_child(run) == [CLOSED, "open", told, CLOSED, [(True, "Running")]]


def test_without_a_list_of_sockets_nothing_is_pruned_and_counts_are_unknown(
    world: World, tmp_path: Path, numbers: dict[int, int]
) -> None:
    def run() -> list[object]:
        with a_node(world, tmp_path) as n:
            n.serve(SVC_ONE, UDP, [("127.0.0.1", n.server("127.0.0.1", UDP))])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"x", (SVC_ONE, PORT))
            numbers[TCP] = UNKNOWN
            eager = n.termination(prune_from=0.0)
            pruned = [eager.prune(), eager.prune()]
            count = BackendConnections(n.datapath.maps, (tmp_path,))
            counts = count([L3n4Addr.of("127.0.0.1", PORT, "UDP")])
            numbers.clear()
            return [pruned, counts, eager.prune(), eager.prune()]

    assert world.in_child(run) == [[0, 0], None, 0, 1]


# -- counting and pruning --


@pytest.mark.parametrize(("dialled", "service", "backend"), FAMILIES)
def test_open_connections_are_counted_by_frontend_and_backend(
    world: World, tmp_path: Path, dialled: str, service: str, backend: str
) -> None:
    def run() -> list[tuple[int, tuple[bytes, int], bytes, int]]:
        with a_node(world, tmp_path) as n, NetNS.new() as pod:
            up(pod)
            n.serve(service, UDP, [(backend, n.server(backend, UDP))])
            n.serve(service, TCP, [(backend, n.server(backend, TCP))], OTHER)
            used = [n.client(dialled, PORT, UDP) for _ in range(3)]
            n.client(dialled, PORT, UDP, pod)
            n.client(dialled, PORT, TCP)
            used[0].close()
            # Connected elsewhere: no use of the service any more.
            used[1].connect((direct(dialled, backend), n.server(backend, UDP)))
            with NetNS.current() as here:
                counted = count_connections(n.datapath.maps, [here, pod])
            return sorted(
                (use.protocol, use.frontend, use.backend[0], number)
                for use, number in counted.items()
            )

    frontend = (packed(service), PORT)
    assert world.in_child(run) == [
        (TCP, frontend, packed(backend), 1),
        (UDP, frontend, packed(backend), 2),
    ]


def test_connections_are_counted_for_the_backends_asked_for(world: World, tmp_path: Path) -> None:
    def run() -> list[int]:
        with a_node(world, tmp_path) as n:
            ports = [n.server("127.0.0.1", UDP) for _ in range(2)]
            v6 = n.server("::1", TCP)
            n.serve(SVC_ONE, UDP, [("127.0.0.1", ports[0])])
            n.serve("10.96.0.2", UDP, [("127.0.0.1", ports[1])], OTHER, rev_nat=2)
            n.serve(SVC_ONE_V6, TCP, [("::1", v6)], ServiceName("test/v6"), rev_nat=3)
            for dialled, proto, times in ((SVC_ONE, UDP, 2), ("10.96.0.2", UDP, 1)):
                for _ in range(times):
                    n.client(dialled, PORT, proto)
            n.client(SVC_ONE_V6, PORT, TCP)
            n.client("127.0.0.1", ports[0], UDP)
            asked = [
                L3n4Addr.of("127.0.0.1", ports[0], "UDP"),
                L3n4Addr.of("127.0.0.1", ports[0], "TCP"),
                L3n4Addr.of("::1", v6, "TCP"),
            ]
            counted = BackendConnections(n.datapath.maps, (tmp_path,))(asked)
            assert counted is not None
            assert counted.keys() == set(asked)
            return [counted[address] for address in asked]

    assert world.in_child(run) == [2, 0, 1]


def direct(dialled: str, backend: str) -> str:
    """The backend's address in the form that the family of a socket wants."""
    return f"::ffff:{backend}" if dialled.startswith("::ffff:") else backend


def test_entries_of_closed_sockets_go_when_the_map_fills_up(world: World, tmp_path: Path) -> None:
    def run() -> list[object]:
        with a_node(world, tmp_path) as n:
            n.serve(SVC_ONE, UDP, [("127.0.0.1", n.server("127.0.0.1", UDP))])
            alive = n.stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            alive.sendto(b"x", (SVC_ONE, PORT))
            connected = n.client(SVC_ONE, PORT, UDP)
            for _ in range(10):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                    sock.sendto(b"x", (SVC_ONE, PORT))
            lazy, eager = n.termination(), n.termination(prune_from=0.0)
            counts = [
                entries(n.datapath),
                lazy.prune(),
                eager.prune(),
                eager.prune(),
                eager.prune(),
            ]
            cookies = {
                lb.decode_socket_key(key).cookie for key, _ in n.datapath.maps.v4.socket.items()
            }
            kept = {cookie_of(alive), cookie_of(connected)}
            return [counts, cookies == kept]

    # Nothing goes at first sight: a socket that is being connected is not listed yet.
    assert world.in_child(run) == [[12, 0, 0, 10, 0], True]


def cookie_of(sock: socket.socket) -> int:
    return int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, 57, 8), "little")
