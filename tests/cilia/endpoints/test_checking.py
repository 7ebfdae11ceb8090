# SPDX-License-Identifier: Apache-2.0
"""CHECK against the kernel: each thing that somebody takes or changes is named."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from bpf.maps import endpoints as codec
from bpf.maps import ipcache as ipcache_codec
from bpf.maps.fake import FakeMap
from cilia.endpoints import links
from cilia.endpoints.checking import EndpointCheck
from cilia.endpoints.links import Interior
from cilia.identity.ipcache.claims import ClaimsOf
from cilia.identity.ipcache.known import KnownAddresses
from cilia.identity.ipcache.writer import IPCacheWriter
from cilia.linux.netlink import Netlink
from cilia.linux.netns import NetNS
from cilia.linux.sysctl import Sysctl
from reconcilers.endpoints.endpoints import EndpointOperations
from reconcilers.identity.ipcache import ipcache_operations
from statedb import DB
from tables.addressing import IP
from tables.endpoints.endpoints import Endpoint
from tables.identity.ipcache import new_ipcache_table
from tests.cilia.identity.ipcache.world import BOTH, endpoint
from tests.kernel import Kernel, new_kernel

pytestmark = pytest.mark.root

DEVICE = links.device_name("c7", "eth0")
MAC, NODE_MAC, FOREIGN = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:99"
V4, V6, ROUTER_V4, ROUTER_V6 = "10.1.0.7", "fd00::7", "10.1.0.1", "fd00::1"
INTERIOR = Interior(
    "eth0", (IP.parse(V4), IP.parse(V6)), (IP.parse(ROUTER_V4), IP.parse(ROUTER_V6))
)


class Made:
    """An endpoint that is in force: devices and routes in namespaces, entries in maps."""

    def __init__(self, node: Kernel, pod: Kernel, netlink: Netlink) -> None:
        self.node, self.pod = node, pod
        mac, node_mac = (bytes.fromhex(text.replace(":", "")) for text in (MAC, NODE_MAC))
        sysctls = Sysctl(node.netns)
        index = links.make_pair(netlink, sysctls, pod.netns, DEVICE, "eth0", mac, node_mac, 1500)
        links.configure(pod.netns, sysctls.inside(pod.netns), INTERIOR)
        for ip in (V4, V6):
            node.ip(f"route add {ip} dev {DEVICE}")
        self.ep = msgspec.structs.replace(
            endpoint(7, V4, V6), device=DEVICE, index=index, mac=mac, node_mac=node_mac
        )
        self.maps = {
            codec.NAME: FakeMap(codec.NAME, codec.KEY_BYTES, codec.VALUE_BYTES),
            codec.BY_ADDRESS: FakeMap(codec.BY_ADDRESS, codec.ADDRESS_BYTES, codec.PLACE_BYTES),
            ipcache_codec.NAME: FakeMap(
                ipcache_codec.NAME, ipcache_codec.KEY_BYTES, ipcache_codec.VALUE_BYTES
            ),
        }
        devices, addresses, ipcache = self.maps.values()
        operations = EndpointOperations(devices, addresses)
        self._write_maps(operations, ipcache)
        self.check = EndpointCheck(netlink, operations, KnownAddresses(self._table, ipcache, BOTH))

    def _write_maps(self, operations: EndpointOperations, ipcache: FakeMap) -> None:
        db = DB()
        self._table = new_ipcache_table(db)
        claims = ClaimsOf(BOTH, "one").endpoint(self.ep)
        with db.write_txn(self._table) as wtxn:
            IPCacheWriter(self._table).exchange(wtxn, [({}, claims)])
            operations.update(wtxn, 0, self.ep)
            for row in self._table.all(wtxn):
                ipcache_operations(ipcache).update(wtxn, 0, row)

    def differences(self, ep: Endpoint | None = None) -> list[str]:
        return self.check.differences(ep or self.ep, self.pod.netns, INTERIOR)


@pytest.fixture
def made() -> Iterator[Made]:
    with new_kernel() as node, NetNS.new() as inside, Netlink(node.netns) as netlink:
        pod = Kernel(inside)
        pod.ip("link set lo up")
        yield Made(node, pod, netlink)


def test_nothing_differs_when_nobody_changed_anything(made: Made) -> None:
    assert made.differences() == []
    # Entries that the kernel learned, or could not.
    made.pod.ip(f"neigh replace {ROUTER_V4} lladdr {NODE_MAC} dev eth0 nud reachable")
    made.node.ip(f"neigh replace {V4} lladdr {MAC} dev {DEVICE} nud stale")
    made.pod.ip(f"neigh replace {ROUTER_V6} lladdr {FOREIGN} dev eth0 nud failed")
    assert made.differences() == []


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (f"addr del {V4}/32 dev eth0", f"eth0 has no address {V4}"),
        (f"addr del {V6}/128 dev eth0", f"eth0 has no address {V6}"),
        ("route del default", f"eth0 has no default route by {ROUTER_V4}"),
        ("-6 route del default", f"eth0 has no default route by {ROUTER_V6}"),
        (f"route del {ROUTER_V4}", f"eth0 has no route to the gateway {ROUTER_V4}"),
        ("route replace default dev eth0", f"eth0 has no default route by {ROUTER_V4}"),
        ("link set eth0 down", "eth0 is down"),
        (f"link set eth0 address {FOREIGN}", f"eth0 has the address {FOREIGN}, not {MAC}"),
        ("link set eth0 name eth1", "there is no device eth0"),
        (
            f"neigh replace {ROUTER_V4} lladdr {FOREIGN} dev eth0 nud permanent",
            f"eth0 takes {FOREIGN} for {ROUTER_V4}, which has {NODE_MAC}",
        ),
    ],
)
def test_what_a_container_has_otherwise_is_said(made: Made, command: str, sentence: str) -> None:
    if " name " in command:
        made.pod.ip("link set eth0 down")
    made.pod.ip(command)
    assert sentence in made.differences()


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (f"route del {V4}", f"the node has no route to {V4} by {DEVICE}"),
        (f"-6 route del {V6}", f"the node has no route to {V6} by {DEVICE}"),
        (f"link set {DEVICE} down", f"{DEVICE} is down"),
        (
            f"link set {DEVICE} address {FOREIGN}",
            f"{DEVICE} has the address {FOREIGN}, not {NODE_MAC}",
        ),
        (f"link set {DEVICE} group 7", f"{DEVICE} is another device than the one that was made"),
        (f"link del {DEVICE}", f"the node has no device {DEVICE}"),
        (
            f"neigh replace {V6} lladdr {FOREIGN} dev {DEVICE} nud permanent",
            f"{DEVICE} takes {FOREIGN} for {V6}, which has {MAC}",
        ),
    ],
)
def test_what_the_node_has_otherwise_is_said(made: Made, command: str, sentence: str) -> None:
    made.node.ip(command)
    assert sentence in made.differences()


def test_what_the_maps_lack_is_said(made: Made) -> None:
    for raw in made.maps.values():
        raw.clear()
    assert made.differences() == [
        f"cilia_lxc has no entry of address {V4}",
        f"cilia_lxc has no entry of address {V6}",
        f"cilia_endpoints has no entry of device {made.ep.index}",
        f"cilia_ipcache has identity 0 behind {V4}, not 300",
        f"cilia_ipcache has identity 0 behind {V6}, not 300",
    ]


def test_what_the_maps_have_otherwise_is_said(made: Made) -> None:
    """The endpoint has other labels by now, and nobody told the maps."""
    assert made.differences(msgspec.structs.replace(made.ep, identity=400)) == [
        f"cilia_lxc has another entry of address {V4}",
        f"cilia_lxc has another entry of address {V6}",
        f"cilia_endpoints has another entry of device {made.ep.index}",
        f"cilia_ipcache has identity 300 behind {V4}, not 400",
        f"cilia_ipcache has identity 300 behind {V6}, not 400",
    ]


def test_all_that_differs_is_said_and_the_node_s_without_a_namespace(made: Made) -> None:
    made.pod.ip(f"addr del {V4}/32 dev eth0")
    made.node.ip(f"route del {V4}")
    on_node = f"the node has no route to {V4} by {DEVICE}"
    assert {on_node, f"eth0 has no address {V4}"} <= set(made.differences())
    assert made.check.differences(made.ep, None, INTERIOR) == [on_node]
