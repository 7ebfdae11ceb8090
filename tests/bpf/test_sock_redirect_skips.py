# SPDX-License-Identifier: Apache-2.0
"""Redirected frontends at sockets, and the network namespaces that are spared."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from bpf import features
from bpf.datapath import cleanup
from bpf.libbpf import ffi
from bpf.maps import lb, redirect_skips
from bpf.maps.lb import LBMaps
from bpf.maps.lb_numbers import FrontendType
from bpf.sock import SockConfig
from tests.bpf.attaching import AttachingDatapath
from tests.bpf.world import World

pytestmark = pytest.mark.root

LOOPBACK = {4: "127.0.0.1", 6: "::1"}
PLAIN, REDIRECTED = b"what was there", b"the pod"


class Datapath(NamedTuple):
    world: World
    maps: LBMaps
    skip: redirect_skips.SkipMaps

    def redirect(self, address: str, port: int, backend_port: int, kind: FrontendType) -> None:
        key = ipaddress.ip_address(address).packed
        maps, proto = self.maps.of(key), socket.IPPROTO_TCP
        maps.backend.update(
            lb.encode_id(1), lb.encode_backend(lb.BackendValue(key, backend_port, proto))
        )
        maps.service.update(
            lb.encode_service_key(key, port, 1, proto), lb.encode_service(lb.ServiceValue(1))
        )
        maps.service.update(
            lb.encode_service_key(key, port, 0, proto),
            lb.encode_service(lb.ServiceValue(rev_nat=1, count=1, type=kind.number)),
        )

    def spare(self, cookie: int, address: str, port: int) -> None:
        packed = ipaddress.ip_address(address).packed
        raw = redirect_skips.encode_key(redirect_skips.SkipKey(cookie, packed, port))
        self.skip.of(raw).update(raw, redirect_skips.VALUE)


@pytest.fixture
def datapath(world: World) -> Iterator[Datapath]:
    sock = AttachingDatapath(SockConfig(world.bpffs / "node", world.cgroup, 1024, 1024))
    maps = sock.open_maps()
    skip = sock.skip_maps()
    sock.load()
    sock.attach()
    yield Datapath(world, maps, skip)
    skip.close()
    maps.close()
    sock.close()
    cleanup(world.bpffs / "node")


def answering(address: str, words: bytes) -> tuple[socket.socket, int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 0), family=family)
    server.settimeout(3)
    return server, server.getsockname()[1]


def who_answers(servers: dict[bytes, socket.socket], address: str, port: int) -> bytes:
    """The words of the server that a connection reaches."""
    with socket.create_connection((address, port), timeout=3):
        for words, server in servers.items():
            server.setblocking(False)
            try:
                server.accept()[0].close()
            except BlockingIOError:
                continue
            return words
    return b"nobody"


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(
    ("kind", "spared", "other_port", "reached"),
    [
        (FrontendType.LOCAL_REDIRECT, False, 0, REDIRECTED),
        (FrontendType.LOCAL_REDIRECT, True, 0, PLAIN),
        (FrontendType.LOCAL_REDIRECT, True, 1, REDIRECTED),
        (FrontendType.CLUSTER_IP, True, 0, REDIRECTED),
    ],
    ids=["redirected", "spared", "spared-another-port", "no-redirection"],
)
def test_a_spared_namespace_reaches_what_was_there(
    datapath: Datapath,
    family: int,
    kind: FrontendType,
    spared: bool,
    other_port: int,
    reached: bytes,
) -> None:
    address = LOOPBACK[family]

    def client() -> bytes:
        plain, port = answering(address, PLAIN)
        pod, pod_port = answering(address, REDIRECTED)
        datapath.redirect(address, port, pod_port, kind)
        if spared:
            datapath.spare(features.netns_cookie(), address, port + other_port)
        return who_answers({PLAIN: plain, REDIRECTED: pod}, address, port)

    assert datapath.world.in_child(client) == reached


def test_another_namespace_is_not_spared(datapath: Datapath) -> None:
    def client() -> bytes:
        plain, port = answering("127.0.0.1", PLAIN)
        pod, pod_port = answering("127.0.0.1", REDIRECTED)
        datapath.redirect("127.0.0.1", port, pod_port, FrontendType.LOCAL_REDIRECT)
        datapath.spare(features.netns_cookie() + 1, "127.0.0.1", port)
        return who_answers({PLAIN: plain, REDIRECTED: pod}, "127.0.0.1", port)

    assert datapath.world.in_child(client) == REDIRECTED


@pytest.mark.parametrize(
    ("struct", "address"), [("skip_lb4_key", bytes([10, 1, 2, 3])), ("skip_lb6_key", bytes(16))]
)
def test_codec_writes_the_c_struct(struct: str, address: bytes) -> None:
    raw = redirect_skips.encode_key(redirect_skips.SkipKey(0x0102030405060708, address, 0x1F90))
    assert len(raw) == ffi.sizeof(f"struct {struct}")
    view = ffi.from_buffer(f"struct {struct} *", raw)
    assert view.netns_cookie == 0x0102030405060708
    assert bytes(ffi.buffer(ffi.addressof(view[0], "address"))) == address
    assert socket.ntohs(view.port) == 0x1F90
