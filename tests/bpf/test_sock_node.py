# SPDX-License-Identifier: Apache-2.0
"""What a node's own sockets meet: ports that are taken, answers without backends, closed sockets.

Everything runs in a namespace that is the node, because it loads the programs, and where a pod is
wanted in a second one.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from bpf.datapath import cleanup
from bpf.maps import lb
from bpf.maps.lb import LBMaps, ServiceValue
from bpf.maps.lb_numbers import FrontendType, ServiceFlag
from bpf.maps.map import Map
from bpf.maps.percpu import PerCpuMap
from bpf.sock import SockConfig
from cilia.linux.netns import NetNS
from tests.bpf.attaching import AttachingDatapath
from tests.bpf.test_sock import (
    SVC_ONE,
    SVC_ONE_V6,
    TCP,
    UDP,
    Datapath,
    echo_once,
    packed,
    peer_of,
    tcp_server,
    udp_server,
)
from tests.bpf.world import World

pytestmark = pytest.mark.root

NODE_PORT = 30080

#: ``DROP_*`` of drop_types.h.
NO_BACKEND, MAP_FULL, NO_SERVICE = -2, -3, -4
NOT_IN_SRC_RANGE = -17


@contextmanager
def node(world: World, **options: Any) -> Iterator[Datapath]:
    """The datapath of a node, which is the namespace of the caller."""
    config = SockConfig(world.bpffs / "node", world.cgroup, 256, 256)._replace(**options)
    sock = AttachingDatapath(config)
    maps = sock.open_maps()
    sock.load()
    sock.attach()
    sock.retire()
    try:
        yield Datapath(world, sock, maps)
    finally:
        maps.close()
        sock.close()
        cleanup(config.pin_dir)


def errno_of(call: Callable[[], object]) -> str:
    """The name of the errno that a call fails with, or "ok"."""
    try:
        call()
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return "ok"


def master(
    maps: LBMaps, address: str, port: int, proto: int, kind: FrontendType, flags: int = 0
) -> None:
    """A frontend without backends; whether it serves does not matter to a listener."""
    maps.of(packed(address)).service.update(
        lb.encode_service_key(packed(address), port, 0, proto),
        lb.encode_service(ServiceValue(rev_nat=9, type=kind.number, flags=flags)),
    )


def bind(address: str, port: int, kind: int = socket.SOCK_STREAM, v6: bool = False) -> str:
    """The errno of binding a new socket."""
    family = socket.AF_INET6 if ":" in address or v6 else socket.AF_INET
    with socket.socket(family, kind) as sock:
        return errno_of(lambda: sock.bind((address, port)))


def refusals(datapath: Datapath) -> dict[int, int]:
    """What the counters say: reason -> times, summed over places and CPUs."""
    found: dict[int, int] = {}
    path = datapath.sock.maps_dir / "cilia_metrics"
    with PerCpuMap(Map.open_pinned(path).detach_fd()) as metrics:
        for key, values in metrics.items_each():
            reason = int.from_bytes(key[:2], "little", signed=True)
            packets = sum(int.from_bytes(value[:8], "little") for value in values)
            found[reason] = found.get(reason, 0) + packets
    return found


#: What is bound, what the map holds, and the answer.
TAKEN = "EADDRINUSE"
BINDS: list[tuple[str, str, FrontendType, int, str]] = [
    ("0.0.0.0", "0.0.0.0", FrontendType.NODE_PORT, 0, TAKEN),
    ("127.0.0.1", "0.0.0.0", FrontendType.NODE_PORT, 0, TAKEN),
    ("127.0.0.1", "0.0.0.0", FrontendType.HOST_PORT, 0, TAKEN),
    ("127.0.0.9", "0.0.0.0", FrontendType.NODE_PORT, 0, TAKEN),
    ("0.0.0.0", "0.0.0.0", FrontendType.HOST_PORT, ServiceFlag.LOOPBACK, TAKEN),
    ("0.0.0.0", "0.0.0.0", FrontendType.CLUSTER_IP, 0, "ok"),
    ("0.0.0.0", "10.9.9.9", FrontendType.LOAD_BALANCER, 0, "ok"),
    ("::", "::", FrontendType.NODE_PORT, 0, TAKEN),
    ("::1", "::", FrontendType.NODE_PORT, 0, TAKEN),
    ("::", "0.0.0.0", FrontendType.NODE_PORT, 0, TAKEN),
    ("::1", "0.0.0.0", FrontendType.NODE_PORT, 0, "ok"),
    ("::ffff:127.0.0.1", "0.0.0.0", FrontendType.NODE_PORT, 0, TAKEN),
    ("::", "::", FrontendType.HOST_PORT, ServiceFlag.LOOPBACK, TAKEN),
    ("::", "::", FrontendType.CLUSTER_IP, 0, "ok"),
    ("::ffff:0.0.0.0", "0.0.0.0", FrontendType.NODE_PORT, 0, TAKEN),
    ("::ffff:127.0.0.1", "::", FrontendType.NODE_PORT, 0, "ok"),
    ("0.0.0.0", "::", FrontendType.NODE_PORT, 0, "ok"),
]


@pytest.mark.parametrize(("bound", "frontend", "kind", "flags", "answer"), BINDS)
def test_listener_cannot_have_the_port_of_a_frontend_of_the_node(
    world: World, bound: str, frontend: str, kind: FrontendType, flags: int, answer: str
) -> None:
    def run() -> list[str]:
        with node(world) as datapath:
            before = bind(bound, NODE_PORT)
            master(datapath.maps, frontend, NODE_PORT, TCP, kind, flags)
            return [
                before,
                bind(bound, NODE_PORT),
                bind(bound, NODE_PORT, socket.SOCK_DGRAM),
                bind(bound, NODE_PORT + 1),
            ]

    assert world.in_child(run) == ["ok", answer, "ok", "ok"]


#: An address that the node has, and the frontends there.
ADDRESSES: list[tuple[str, FrontendType, int, str]] = [
    ("192.0.2.7", FrontendType.NODE_PORT, 0, TAKEN),
    ("192.0.2.7", FrontendType.HOST_PORT, 0, TAKEN),
    ("192.0.2.7", FrontendType.EXTERNAL_IPS, 0, TAKEN),
    ("192.0.2.7", FrontendType.LOAD_BALANCER, 0, TAKEN),
    ("192.0.2.7", FrontendType.CLUSTER_IP, 0, "ok"),
    ("192.0.2.7", FrontendType.HOST_PORT, ServiceFlag.LOOPBACK, "ok"),
    ("2001:db8::7", FrontendType.NODE_PORT, 0, TAKEN),
    ("2001:db8::7", FrontendType.CLUSTER_IP, 0, "ok"),
    ("2001:db8::7", FrontendType.HOST_PORT, ServiceFlag.LOOPBACK, "ok"),
]


def own_address(address: str) -> None:
    """Give the loopback of this namespace an address."""
    bits = 128 if ":" in address else 32
    family = ["-6"] if ":" in address else []
    assert (
        os.spawnlp(os.P_WAIT, "ip", "ip", *family, *f"addr add {address}/{bits} dev lo".split())
        == 0
    )


@pytest.mark.parametrize(("address", "kind", "flags", "answer"), ADDRESSES)
def test_listener_cannot_have_a_node_address_of_a_frontend(
    world: World, address: str, kind: FrontendType, flags: int, answer: str
) -> None:
    def run() -> list[str]:
        own_address(address)
        with node(world) as datapath:
            before = bind(address, NODE_PORT)
            master(datapath.maps, address, NODE_PORT, TCP, kind, flags)
            return [before, bind(address, NODE_PORT)]

    assert world.in_child(run) == ["ok", answer]


def test_a_pod_may_have_any_port(world: World) -> None:
    def run() -> list[str]:
        with node(world) as datapath, NetNS.new() as pod:
            for address in ("0.0.0.0", "::"):
                master(datapath.maps, address, NODE_PORT, TCP, FrontendType.NODE_PORT)
            here = [bind("0.0.0.0", NODE_PORT), bind("::", NODE_PORT)]
            return here + pod.run(lambda: [bind("0.0.0.0", NODE_PORT), bind("::", NODE_PORT)])

    assert world.in_child(run) == [TAKEN, TAKEN, "ok", "ok"]


def test_ports_are_free_when_protection_is_off(world: World) -> None:
    def run() -> tuple[str, list[str]]:
        with node(world, protect_ports=False) as datapath:
            master(datapath.maps, "0.0.0.0", NODE_PORT, TCP, FrontendType.NODE_PORT)
            links = sorted(path.name for path in datapath.sock.links_dir.iterdir())
            return bind("0.0.0.0", NODE_PORT), links

    answer, links = world.in_child(run)
    assert answer == "ok"
    assert not [name for name in links if name.startswith("post_bind")]
    assert "connect4" in links


# -- nobody serves --


@pytest.mark.parametrize("service", [SVC_ONE, SVC_ONE_V6])
@pytest.mark.parametrize(
    ("response", "answer"), [("reject", "ECONNREFUSED"), ("drop", "EHOSTUNREACH")]
)
def test_each_answer_without_a_backend_is_counted(
    world: World, service: str, response: str, answer: str
) -> None:
    def run() -> tuple[list[str], dict[int, int]]:
        family = socket.AF_INET6 if ":" in service else socket.AF_INET
        with node(world, no_backend=response) as datapath:
            datapath.service(service, 80, TCP, [])
            datapath.service(service, 53, UDP, [])
            with socket.socket(family) as tcp, socket.socket(family, socket.SOCK_DGRAM) as udp:
                answers = [
                    errno_of(lambda: tcp.connect((service, 80))),
                    errno_of(lambda: udp.connect((service, 53))),
                    errno_of(lambda: udp.sendto(b"x", (service, 53))),
                ]
            return answers, refusals(datapath)

    assert world.in_child(run) == ([answer] * 3, {NO_BACKEND: 3})


@pytest.mark.parametrize("service", [SVC_ONE, SVC_ONE_V6])
@pytest.mark.parametrize(
    ("wildcards", "answer", "counted"),
    [(True, "ECONNREFUSED", {NO_SERVICE: 2}), (False, "ENETUNREACH", {})],
)
def test_port_that_a_service_lacks_is_refused_if_its_address_is_known(
    world: World, service: str, wildcards: bool, answer: str, counted: dict[int, int]
) -> None:
    def run() -> tuple[list[str], dict[int, int]]:
        family = socket.AF_INET6 if ":" in service else socket.AF_INET
        with node(world, wildcard_entries=wildcards) as datapath:
            server, port = tcp_server("::1" if ":" in service else "127.0.0.1")
            datapath.service(service, 80, TCP, [(server.getsockname()[0], port)])
            datapath.maps.of(packed(service)).service.update(
                lb.encode_service_key(packed(service), 0, 0, 0),
                lb.encode_service(ServiceValue(flags=ServiceFlag.NON_ROUTABLE)),
            )
            answers = []
            for number in (80, 81):
                with socket.socket(family) as tcp:
                    answers.append(errno_of(lambda: tcp.connect((service, number))))  # noqa: B023
            with socket.socket(family, socket.SOCK_DGRAM) as udp:
                answers.append(errno_of(lambda: udp.sendto(b"x", (service, 80))))
            server.close()
            return answers, refusals(datapath)

    assert world.in_child(run) == (["ok", answer, answer], counted)


# -- source ranges --

INSIDE = ServiceFlag.SOURCE_RANGE | ServiceFlag.SOURCE_INSIDE
NOT_NODE = INSIDE | ServiceFlag.SOURCE_NOT_NODE
TRANSLATED, LEFT_TO_PACKETS = True, False


@pytest.mark.parametrize("proto", [TCP, UDP])
@pytest.mark.parametrize("service", [SVC_ONE, SVC_ONE_V6])
@pytest.mark.parametrize(
    ("flags", "of_node", "of_pod"),
    [
        (ServiceFlag.NONE, "ok", TRANSLATED),
        (ServiceFlag.SOURCE_RANGE, "ok", TRANSLATED),  # for clients outside alone
        (INSIDE, "ok", LEFT_TO_PACKETS),
        (NOT_NODE, "ECONNREFUSED", LEFT_TO_PACKETS),
        (NOT_NODE | ServiceFlag.SOURCE_DENY, "ECONNREFUSED", LEFT_TO_PACKETS),
    ],
)
def test_source_ranges_at_sockets(
    world: World, service: str, proto: int, flags: ServiceFlag, of_node: str, of_pod: bool
) -> None:
    """The agent says whether the node is let in; a pod's packets have a source, its socket none."""

    def run() -> tuple[str, str, int]:
        with node(world) as datapath, NetNS.new() as pod:
            local = "::1" if ":" in service else "127.0.0.1"
            server, port = tcp_server(local) if proto == TCP else udp_server(local)
            datapath.service(service, 80, proto, [(local, port)], flags=flags)
            family = socket.AF_INET6 if ":" in service else socket.AF_INET
            kind = socket.SOCK_STREAM if proto == TCP else socket.SOCK_DGRAM

            def dial() -> str:
                with socket.socket(family, kind) as sock:
                    sock.settimeout(3)
                    return errno_of(lambda: sock.connect((service, 80)))

            pod.run(lambda: subprocess.run(["ip", "link", "set", "lo", "up"], check=True))
            here, there = dial(), pod.run(dial)
            server.close()
            return here, there, refusals(datapath).get(NOT_IN_SRC_RANGE, 0)

    here, there, counted = world.in_child(run)
    assert here == of_node
    # A pod here has loopback alone, on which nobody listens.
    at_loopback = "ECONNREFUSED" if proto == TCP else "ok"
    assert there == at_loopback if of_pod else there in ("ENETUNREACH", "EADDRNOTAVAIL")
    assert counted == (of_node != "ok")


# -- options --


def test_pods_are_left_to_packets_when_sockets_of_the_host_alone_are_translated(
    world: World,
) -> None:
    def run() -> list[str]:
        with node(world, host_only=True) as datapath, NetNS.new() as pod:
            server, port = tcp_server("127.0.0.1")
            datapath.service(SVC_ONE, 80, TCP, [("127.0.0.1", port)])
            datapath.service("10.96.0.2", 80, TCP, [])

            def dial(address: str) -> str:
                with socket.socket() as sock:
                    sock.settimeout(3)
                    return errno_of(lambda: sock.connect((address, 80)))

            addresses = (SVC_ONE, "10.96.0.2")
            here = [dial(address) for address in addresses]
            there = pod.run(lambda: [dial(address) for address in addresses])
            server.close()
            return here + there

    expected = ["ok", "ECONNREFUSED", "ENETUNREACH", "ENETUNREACH"]
    assert world.in_child(run) == expected


def test_switched_off_translation_keeps_the_way_back(world: World) -> None:
    """A client that was translated before still hears the service, new ones dial untranslated."""

    def run() -> list[object]:
        with ExitStack() as stack:
            datapath = stack.enter_context(node(world))
            server, port = udp_server("127.0.0.1")
            datapath.service(SVC_ONE, 53, UDP, [("127.0.0.1", port)])
            client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            client.settimeout(3)
            client.connect((SVC_ONE, 53))
            off = AttachingDatapath(datapath.sock.config._replace(translate=False))
            off.open_maps().close()
            off.load()
            off.attach()
            off.retire()
            client.send(b"x")
            echo_once(server)
            seen = client.recvfrom(10)[1]
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
                return [seen, errno_of(lambda: other.connect((SVC_ONE, 53)))]

    assert world.in_child(run) == [(SVC_ONE, 53), "ENETUNREACH"]


@pytest.mark.parametrize(
    ("loopback", "surrogate", "own"),
    [("127.0.0.1", "0.0.0.0", "192.0.2.7"), ("::1", "::", "2001:db8::7")],
    ids=["v4", "v6"],
)
def test_host_port_for_loopback_alone_is_not_found_elsewhere(
    world: World, loopback: str, surrogate: str, own: str
) -> None:
    def run() -> list[object]:
        own_address(own)
        with node(world) as datapath:
            server, port = tcp_server(loopback)
            flags = ServiceFlag.LOOPBACK
            for address in (surrogate, own):
                datapath.service(address, 8080, TCP, [(loopback, port)], flags=flags)
            with socket.create_connection((loopback, 8080), timeout=3) as sock:
                peer = peer_of(sock)
            with socket.socket(server.family) as sock:
                elsewhere = errno_of(lambda: sock.connect((own, 8080)))
            server.close()
            return [peer, elsewhere]

    assert world.in_child(run) == [(loopback, 8080), "ECONNREFUSED"]


@pytest.mark.parametrize("flag", [ServiceFlag.L7, ServiceFlag.TRANSLATE_46X64])
@pytest.mark.parametrize(
    ("service", "backend"), [(SVC_ONE, "127.0.0.1"), (SVC_ONE_V6, "::1")], ids=["v4", "v6"]
)
def test_what_a_proxy_or_the_other_family_serves_is_left_to_packets(
    world: World, service: str, backend: str, flag: ServiceFlag
) -> None:
    def run() -> str:
        with node(world) as datapath:
            server, port = tcp_server(backend)
            datapath.service(service, 80, TCP, [(backend, port)], flags=flag)
            with socket.socket(server.family) as sock:
                answer = errno_of(lambda: sock.connect((service, 80)))
            server.close()
            return answer

    assert world.in_child(run) in ("ENETUNREACH", "EADDRNOTAVAIL")


# -- closed sockets --


def entries(datapath: Datapath) -> int:
    return sum(1 for maps in (datapath.maps.v4, datapath.maps.v6) for _ in maps.socket.items())


@pytest.mark.parametrize(
    ("dialled", "service", "backend", "kind"),
    [
        (SVC_ONE, SVC_ONE, "127.0.0.1", socket.SOCK_STREAM),
        (SVC_ONE, SVC_ONE, "127.0.0.1", socket.SOCK_DGRAM),
        (SVC_ONE_V6, SVC_ONE_V6, "::1", socket.SOCK_STREAM),
        (SVC_ONE_V6, SVC_ONE_V6, "::1", socket.SOCK_DGRAM),
        (f"::ffff:{SVC_ONE}", SVC_ONE, "127.0.0.1", socket.SOCK_STREAM),
        (f"::ffff:{SVC_ONE}", SVC_ONE, "127.0.0.1", socket.SOCK_DGRAM),
    ],
)
def test_closed_socket_leaves_no_entry(
    world: World, dialled: str, service: str, backend: str, kind: int
) -> None:
    def run() -> list[int]:
        with node(world) as datapath:
            make = tcp_server if kind == socket.SOCK_STREAM else udp_server
            proto = TCP if kind == socket.SOCK_STREAM else UDP
            server, port = make(backend)
            datapath.service(service, 80, proto, [(backend, port)])
            family = socket.AF_INET6 if ":" in dialled else socket.AF_INET
            counts = []
            one, two = socket.socket(family, kind), socket.socket(family, kind)
            for sock in (one, two):
                sock.settimeout(3)
                sock.connect((dialled, 80))
                counts.append(entries(datapath))
            for sock in (one, two):
                sock.close()
                counts.append(entries(datapath))
            server.close()
            return counts

    assert world.in_child(run) == [1, 2, 1, 0]


def test_unconnected_socket_leaves_its_entries_to_user_space(world: World) -> None:
    def run() -> list[int]:
        with node(world) as datapath:
            server, port = udp_server("127.0.0.1")
            datapath.service(SVC_ONE, 53, UDP, [("127.0.0.1", port)])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", (SVC_ONE, 53))
                used = entries(datapath)
            server.close()
            return [used, entries(datapath)]

    assert world.in_child(run) == [1, 1]
