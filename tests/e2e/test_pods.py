# SPDX-License-Identifier: Apache-2.0
"""Pods of one node, from the runtime's request to packets and back."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from ipaddress import ip_address
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import ICMPv6ND_RA, IPv6, IPv6ExtHdrDestOpt
from scapy.layers.l2 import Ether
from scapy.packet import Raw
from scapy.utils6 import in6_mactoifaceid

from bpf.maps import ipcache
from bpf.maps.map import Map
from cilia.api.client import ApiError
from cilia.endpoints.annotations import MAC_ADDRESS
from tests.e2e.manifests import endpoint_slice, service
from tests.e2e.nodes import Connection, Server, ask, run, write_sysctl
from tests.e2e.pods import FAMILIES, POOLS, CNIFailed, Pod, PodNode, pod_node
from tests.e2e.world import POD_V4, POD_V6, REPOSITORY
from tests.kernel import Kernel

pytestmark = [pytest.mark.root, pytest.mark.timeout(120)]

TCP, UDP_KIND = socket.SOCK_STREAM, socket.SOCK_DGRAM
KINDS = pytest.mark.parametrize("kind", [TCP, UDP_KIND], ids=["tcp", "udp"])
EACH_FAMILY = pytest.mark.parametrize("family", FAMILIES)
SERVICES = {4: "10.203.0.10", 6: "fd00:203::10"}
IP_RECVERR = 11
ports = itertools.count(9000)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodNode]:
    with pod_node(tmp_path_factory.mktemp("pods"), "pods") as made:
        made.start()
        for name in ("one", "two"):
            made.add(name)
        yield made


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[PodNode]:
    """A node of this test alone."""
    with pod_node(tmp_path, "fresh") as made:
        yield made


def serve(stack: ExitStack, pod: Kernel, name: str, address: str, kind: int) -> int:
    """Answer in a pod; the port."""
    port = next(ports)
    stack.callback(Server(pod, name, address, port, kind).close)
    return port


def left_of(node: PodNode, pod: Pod) -> dict[str, object]:
    """All that is there of a pod, by where it was looked for."""
    links = node.node.ip("-o link").count("lxc")
    addresses = {pod.address(family) for family in FAMILIES}
    routes = [
        line
        for line in (node.node.ip("route") + node.node.ip("-6 route")).splitlines()
        if line.split()[0] in addresses
    ]
    owners = {f"test/{pod.name}"}
    return {
        "links": links,
        "files": sorted(path.name for path in (node.world.state_dir / "endpoints").iterdir()),
        "routes": routes,
        "endpoints": [row["Pod"] for row in node.rows("endpoints")],
        "addresses": [
            row["IP"]
            for row in node.rows("ip-allocations")
            if row["Owner"] in owners and row["State"] == "in-use"
        ],
        "attachments": [
            row["target"] for row in node.rows("attachments") if row["target"].startswith("lxc")
        ],
    }


NOTHING: dict[str, object] = {
    "links": 0,
    "files": [],
    "routes": [],
    "endpoints": [],
    "addresses": [],
    "attachments": [],
}


@EACH_FAMILY
@KINDS
def test_two_pods_talk(node: PodNode, family: int, kind: int) -> None:
    one, two = node.pods["one"], node.pods["two"]
    with ExitStack() as stack:
        port = serve(stack, two, "two", two.address(family), kind)
        assert ask(one, two.address(family), port, kind)[:2] == ["two", one.address(family)]


@EACH_FAMILY
@KINDS
def test_node_and_pod_talk(node: PodNode, family: int, kind: int) -> None:
    one = node.pods["one"]
    gateway = {4: "10.207.0.1", 6: "fd00:207::1"}[family]
    with ExitStack() as stack:
        port = serve(stack, one, "one", one.address(family), kind)
        assert ask(node.node, one.address(family), port, kind)[0] == "one"
        port = serve(stack, node.node, "node", gateway, kind)
        assert ask(one, gateway, port, kind)[:2] == ["node", one.address(family)]


def test_the_node_speaks_ipv6_to_a_pod_as_soon_as_add_answers(node: PodNode) -> None:
    """An address that the kernel still looks for duplicates of asks for no neighbour."""
    made = node.add("fresh")
    device = made.result["interfaces"][0]["name"]
    found = node.node.ip(f"-6 addr show dev {device}")
    node.delete("fresh")
    assert "inet6 fe80:" in found
    assert "tentative" not in found


@EACH_FAMILY
def test_the_node_speaks_to_pods_with_its_own_addresses(node: PodNode, family: int) -> None:
    """A server at all addresses lets the kernel choose the source of its answer: had it the
    gateway's, a pod that asked at another address would not know it.
    """
    kind, wildcard, own = {
        4: (socket.AF_INET, "0.0.0.0", POD_V4),
        6: (socket.AF_INET6, "::", POD_V6),
    }[family]
    server = node.node.netns.socket(kind, socket.SOCK_DGRAM)
    client = node.pods["one"].netns.socket(kind, socket.SOCK_DGRAM)
    with server, client:
        server.bind((wildcard, 0))
        server.settimeout(3)
        client.settimeout(3)
        client.sendto(b"asked", (own[0], server.getsockname()[1]))
        server.sendto(b"told", server.recvfrom(10)[1])
        assert client.recvfrom(10)[1][0] in own


@EACH_FAMILY
@KINDS
def test_a_pod_reaches_a_service_of_another_and_of_itself(
    node: PodNode, family: int, kind: int
) -> None:
    one, two = node.pods["one"], node.pods["two"]
    address = SERVICES[family]
    for backend, name in ((two, "two"), (one, "one")):
        node.world.write(
            f"service{family}.yaml",
            service(f"web{family}", address)
            + "---\n"
            + endpoint_slice(f"web{family}", [backend.address(family)]),
        )
        with ExitStack() as stack:
            stack.callback(Server(backend, name, backend.address(family), 8080, kind).close)
            node.world.eventually(lambda name=name: answers(one, address, kind) == name)  # type: ignore[misc]


def answers(pod: Kernel, address: str, kind: int) -> str:
    try:
        with Connection(pod, address, 80, kind, timeout_s=0.3) as connection:
            return connection.ask()[0]
    except OSError as error:
        return str(error)


def test_a_pod_cannot_send_in_anothers_name(node: PodNode) -> None:
    one, two = node.pods["one"], node.pods["two"]
    listener = two.netns.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sender = one.netns.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with listener, sender:
        listener.bind((two.address(4), 0))
        listener.settimeout(2)
        sender.bind(("eth0", 0))
        port = listener.getsockname()[1]
        macs = [interface["mac"] for interface in one.result["interfaces"]]
        for source, content in (("10.207.0.77", b"forged"), (one.address(4), b"honest")):
            frame = Ether(src=macs[1], dst=macs[0]) / IP(src=source, dst=two.address(4))
            sender.send(bytes(frame / UDP(sport=1, dport=port) / Raw(content)))
        assert listener.recvfrom(100) == (b"honest", (one.address(4), 1))


def test_a_pod_is_no_router_whatever_the_node_listens_to(fresh: PodNode) -> None:
    """Defaults that some nodes have; extension headers hide an advertisement from the program."""
    for name in ("all/accept_ra", "default/accept_ra"):
        write_sysctl(fresh.node, f"ipv6/conf/{name}", "2")
    write_sysctl(fresh.node, "ipv4/conf/all/route_localnet", "1")
    fresh.start()
    one = fresh.add("one")
    node_mac, mac = (interface["mac"] for interface in one.result["interfaces"])
    sender = one.netns.socket(socket.AF_PACKET, socket.SOCK_RAW)
    listener = fresh.node.netns.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender, listener:
        sender.bind(("eth0", 0))
        listener.bind(("0.0.0.0", 10248))
        listener.settimeout(3)
        source = str(in6_mactoifaceid(mac.upper())).lower()
        ether, ip = Ether(src=mac, dst="33:33:00:00:00:01"), IPv6(dst="ff02::1", hlim=255)
        ip.src = f"fe80::{source}"
        for hidden in (ip, ip / IPv6ExtHdrDestOpt()):
            sender.send(bytes(ether / hidden / ICMPv6ND_RA(routerlifetime=1800)))
        ether = Ether(src=mac, dst=node_mac)
        for destination in ("127.0.0.1", "10.207.0.1"):
            packet = IP(src=one.address(4), dst=destination) / UDP(sport=5, dport=10248)
            sender.send(bytes(ether / packet / Raw(destination.encode())))
        # The last one arrived, so the others would have.
        assert listener.recv(100) == b"10.207.0.1"
    assert "proto ra" not in fresh.node.ip("-6 route")


def test_what_no_pod_has_is_refused_at_the_node(node: PodNode) -> None:
    """And goes nowhere: the sender is told by ICMP, which TCP takes for a passing trouble."""
    with pytest.raises(OSError, match="No route to host"):
        ask(node.node, "10.207.0.200", 80, TCP)
    # A pod of its own: the kernel limits how many errors it sends to one address.
    asker = node.add("asker")
    with asker.netns.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sender.settimeout(3)
        sender.connect(("10.207.0.200", 80))
        sender.send(b"x")
        with pytest.raises(OSError, match="No route to host"):
            sender.recv(1)
    node.delete("asker")


FORWARD_DROP = """
table inet elsewhere {
    chain forward { type filter hook forward priority 0; policy drop; }
}
"""


@pytest.mark.parametrize("options", [(), ("--enable-host-legacy-routing",)])
def test_rules_of_the_node_see_what_takes_its_stack(
    fresh: PodNode, options: tuple[str, ...]
) -> None:
    """A firewall of somebody else that forwards nothing: Docker's is one."""
    fresh.start(*options)
    one, two = fresh.add("one"), fresh.add("two")
    run(fresh.node, "nft", FORWARD_DROP)
    with ExitStack() as stack:
        for family in FAMILIES:
            port = serve(stack, two, "two", two.address(family), UDP_KIND)
            client = Connection(one, two.address(family), port, UDP_KIND, timeout_s=0.5)
            stack.callback(client.close)
            if options:
                with pytest.raises(TimeoutError):
                    client.ask()
            else:
                assert client.ask()[0] == "two"


#: As in a container: /proc/sys cannot be written, and the node's network part is mounted besides.
IN_A_CONTAINER = """
set -e
mount --bind /proc/sys/net "$0/sys/net"
mount --bind /proc/sys /proc/sys
mount -o remount,bind,ro /proc/sys
exec "$@"
"""


def test_kernel_parameters_are_written_where_the_nodes_are(fresh: PodNode) -> None:
    procfs = fresh.world.directory / "proc"
    (procfs / "sys/net").mkdir(parents=True)
    start = ["unshare", "--mount", "sh", "-c", IN_A_CONTAINER, str(procfs)]
    fresh.world.program = [*start, *fresh.world.program]
    one = fresh.namespace("one")
    for name in ("default/disable_ipv6", "all/disable_ipv6"):
        write_sysctl(one, f"ipv6/conf/{name}", "1")
    fresh.start(f"--procfs={procfs}")
    fresh.write_pod("one")
    one.result = fresh.cni("ADD", one)
    with ExitStack() as stack:
        for family in FAMILIES:
            port = serve(stack, one, "one", one.address(family), TCP)
            assert ask(fresh.node, one.address(family), port, TCP)[0] == "one"


def test_a_deleted_pod_leaves_nothing(fresh: PodNode) -> None:
    fresh.start()
    pod = fresh.add("short")
    assert left_of(fresh, pod)["links"] == 1
    fresh.cni("CHECK", pod)
    fresh.cni("DEL", pod)
    assert left_of(fresh, pod) == NOTHING
    fresh.world.eventually(lambda: pod.address(4) not in in_ipcache(fresh))
    fresh.cni("DEL", pod)
    fresh.cni("DEL", pod, environment={"CNI_NETNS": ""})
    with pytest.raises(CNIFailed, match="no endpoint is known"):
        fresh.cni("CHECK", pod)
    # Its addresses rest: the next one gets others.
    assert fresh.add("next").address(4) != pod.address(4)


def test_a_check_finds_all_that_somebody_took(fresh: PodNode) -> None:
    fresh.start()
    pod = fresh.add("one")
    fresh.cni("CHECK", pod)
    v4, v6, foreign = pod.address(4), pod.address(6), "02:00:00:00:00:99"
    pod.ip(f"addr del {v4}/32 dev eth0")
    pod.ip(f"neigh replace 10.207.0.1 lladdr {foreign} dev eth0 nud permanent")
    with Map.open_pinned(pinned_ipcache(fresh)) as opened:
        opened.delete(ipcache.encode_key(ipcache.IPCacheKey(ip_address(v6).packed, 128)))
    with pytest.raises(CNIFailed) as failed:
        fresh.cni("CHECK", pod)
    assert failed.value.code == 101
    for sentence in (
        f"eth0 has no address {v4}",
        f"eth0 takes {foreign} for 10.207.0.1",
        f"cilia_ipcache has identity 10 behind {v6}, not ",
    ):
        assert sentence in failed.value.form["msg"]


def test_connections_outlive_kills_and_rows_come_back(fresh: PodNode) -> None:
    agent = fresh.start()
    one, two = fresh.add("one"), fresh.add("two", app="other")
    keys = ("ID", "Pod", "IPv4", "IPv6", "Device", "Index", "MAC", "Identity", "Labels")
    before = [{key: row[key] for key in keys} for row in fresh.rows("endpoints")]
    with ExitStack() as stack:
        open_: list[Connection] = []
        for family in FAMILIES:
            for kind in (TCP, UDP_KIND):
                port = serve(stack, two, "two", two.address(family), kind)
                open_.append(Connection(one, two.address(family), port, kind))
                stack.callback(open_[-1].close)
        for _ in range(2):
            agent.send_signal(signal.SIGKILL)
            agent.wait()
            assert [connection.ask()[0] for connection in open_] == ["two"] * 4
            agent = fresh.start()
            assert [connection.ask()[0] for connection in open_] == ["two"] * 4
            fresh.world.eventually(
                lambda: {row["State"] for row in fresh.rows("endpoints")} == {"ready"}
            )
            assert [{key: row[key] for key in keys} for row in fresh.rows("endpoints")] == before
    fresh.cni("CHECK", one)
    # Nobody gets their addresses or numbers.
    third = fresh.add("three")
    assert third.address(4) not in (one.address(4), two.address(4))
    assert len({row["ID"] for row in fresh.rows("endpoints")}) == 3


def test_an_endpoint_whose_file_is_gone_is_known_by_the_kernel(fresh: PodNode) -> None:
    agent = fresh.start()
    one, two = fresh.add("one"), fresh.add("two")
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    for path in (fresh.world.state_dir / "endpoints").iterdir():
        path.unlink()
    fresh.start()
    fresh.world.eventually(lambda: {row["State"] for row in fresh.rows("endpoints")} == {"ready"})
    with ExitStack() as stack:
        port = serve(stack, two, "two", two.address(4), TCP)
        assert ask(one, two.address(4), port, TCP)[0] == "two"
    assert fresh.add("three").address(4) not in (one.address(4), two.address(4))
    fresh.cni("CHECK", one)
    fresh.delete("one")
    fresh.delete("two")
    assert len(fresh.rows("endpoints")) == 1


def test_an_identity_outlives_a_restart(fresh: PodNode) -> None:
    agent = fresh.start()
    fresh.add("one", app="first")
    fresh.add("two", app="second")
    fresh.delete("one")
    (before,) = fresh.rows("endpoints")
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    fresh.start()
    fresh.world.eventually(lambda: fresh.rows("endpoints")[0]["State"] == "ready")
    (after,) = fresh.rows("endpoints")
    assert (after["Identity"], after["Labels"]) == (before["Identity"], before["Labels"])


def test_files_that_somebody_changed_are_not_believed(fresh: PodNode) -> None:
    agent = fresh.start()
    one, two = fresh.add("one"), fresh.add("two")
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    first, second = (fresh.world.state_dir / "endpoints" / f"{n}.json" for n in (1, 2))
    text = second.read_text()
    for family in FAMILIES:
        text = text.replace(two.address(family), one.address(family))
    second.write_text(text)
    fresh.start()
    fresh.world.eventually(lambda: {row["State"] for row in fresh.rows("endpoints")} == {"ready"})
    with ExitStack() as stack:
        for pod, other in ((one, two), (two, one)):
            port = serve(stack, pod, pod.name, pod.address(4), TCP)
            assert ask(other, pod.address(4), port, TCP)[:2] == [pod.name, other.address(4)]
    assert two.address(4) in second.read_text()
    assert first.exists()


def test_a_prefix_that_this_node_loses_is_another_nodes(fresh: PodNode) -> None:
    fresh.start()
    fresh.add("one")
    fresh.write_node(["10.208.0.0/24", "fd00:208::/120"])
    fresh.world.eventually(lambda: "10.208.0.0/24" in fresh.node.ip("route"))
    # Its pod still has an address of the former one.
    assert "unreachable 10.207.0.0/24" in fresh.node.ip("route")
    assert fresh.add("two").address(4).startswith("10.208.0.")
    fresh.world.kill_agent()
    fresh.start()
    assert "10.207.0.1/32" in fresh.node.ip("addr show cilia_host"), "its gateway stays"
    assert "unreachable 10.207.0.0/24" in fresh.node.ip("route")
    assert "unreachable fd00:207::/120" in fresh.node.ip("-6 route")
    fresh.delete("one")
    fresh.world.eventually(lambda: "10.207.0." not in fresh.node.ip("route"))
    fresh.world.eventually(lambda: "10.207.0.1" not in fresh.node.ip("addr"))
    assert "10.208.0.1" in fresh.node.ip("addr")


def test_a_pod_that_goes_while_no_agent_runs_is_forgotten(fresh: PodNode) -> None:
    agent = fresh.start()
    pod, other = fresh.add("one"), fresh.add("two")
    gone = {pod.address(family) for family in FAMILIES} | {other.address(6)}
    assert gone <= in_ipcache(fresh)
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    assert gone <= in_ipcache(fresh), "what is in force stays without an agent"
    fresh.cni("DEL", pod)  # the plugin queues it
    fresh.forget(fresh.pods.pop("two"))  # the machine's own end of a container
    fresh.start()
    fresh.world.eventually(lambda: left_of(fresh, pod) == NOTHING)
    assert left_of(fresh, other) == NOTHING
    fresh.world.eventually(lambda: not gone & in_ipcache(fresh))


def in_ipcache(node: PodNode) -> set[str]:
    """The addresses that the datapath knows an identity of, by the pinned map."""
    with Map.open_pinned(pinned_ipcache(node)) as opened:
        keys = [ipcache.decode_key(key) for key, _ in opened.items()]
    return {str(ip_address(key.address)) for key in keys}


def pinned_ipcache(node: PodNode) -> Path:
    return node.world.bpf_root / node.world.namespace / "maps" / ipcache.NAME


def test_an_add_that_was_killed_leaves_nothing(fresh: PodNode) -> None:
    """Kills at several times into an ADD; the runtime deletes what failed."""
    agent = fresh.start()
    for attempt in range(4):
        name = f"pod{attempt}"
        fresh.write_pod(name)
        pod = fresh.namespace(name)
        killer = os.fork()
        if killer == 0:
            import time

            time.sleep(0.02 * (attempt + 1))
            os.kill(agent.pid, signal.SIGKILL)
            os._exit(0)
        with suppress(CNIFailed):
            pod.result = fresh.cni("ADD", pod)
        os.waitpid(killer, 0)
        agent.wait()
        agent = fresh.start()
        fresh.cni("DEL", pod)
        fresh.forget(fresh.pods.pop(name))
        assert fresh.rows("endpoints") == []
        assert fresh.node.ip("-o link").count("lxc") == 0
        assert list((fresh.world.state_dir / "endpoints").iterdir()) == []


def test_a_pod_that_deletes_its_device_is_its_own_trouble(fresh: PodNode) -> None:
    fresh.start()
    one, two = fresh.add("one"), fresh.add("two")
    one.ip("link del eth0")
    states = {"one": "disconnected", "two": "ready"}
    fresh.world.eventually(
        lambda: {row["Pod"]: row["State"] for row in fresh.rows("endpoints")} == states
    )
    assert fresh.world.get("/healthz")["status"] == "ok"
    with pytest.raises(CNIFailed, match=r"there is no device eth0|not asked for"):
        fresh.cni("CHECK", one)
    fresh.delete("one")
    fresh.cni("CHECK", two)
    assert [row["Pod"] for row in fresh.rows("endpoints")] == ["two"]


def test_an_add_that_cannot_be_says_why(fresh: PodNode) -> None:
    fresh.start()
    stranger = fresh.namespace("stranger")
    with pytest.raises(CNIFailed, match="is not known on this node") as failed:
        fresh.cni("ADD", stranger)
    assert failed.value.code == 11
    chained = fresh.namespace("chained")
    fresh.write_pod("chained")
    previous = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.1.1/32"}]}
    with pytest.raises(CNIFailed, match="must be the first one") as failed:
        fresh.cni("ADD", chained, prevResult=previous)
    assert failed.value.code == 7
    assert fresh.rows("endpoints") == []


@pytest.mark.parametrize(
    ("prefix", "why"),
    [
        ("10.204.0.0/24", "has the node's own address 10.204.0.1"),
        ("127.0.0.0/8", "a loopback address is in it"),
        ("224.0.0.0/24", "a multicast address is in it"),
        ("0.0.0.0/0", "the unspecified address is in it"),
    ],
)
def test_a_prefix_that_is_not_for_pods_is_refused(fresh: PodNode, prefix: str, why: str) -> None:
    fresh.write_node([prefix, "fd00:207::/120"])
    fresh.start()
    fresh.write_pod("one")
    with pytest.raises(CNIFailed, match=why) as failed:
        fresh.cni("ADD", fresh.namespace("one"))
    assert failed.value.code == 11
    with pytest.raises(ApiError, match=why):  # 503
        fresh.world.get("/healthz")
    assert prefix not in fresh.node.ip("route")


def test_a_container_is_told_what_it_has_already(fresh: PodNode) -> None:
    fresh.start()
    pod = fresh.add("one")
    fresh.cni("DEL", pod, name="elsewhere")
    fresh.cni("CHECK", pod)
    fresh.write_pod("two")
    two = fresh.namespace("two")
    two.veth("eth0", "eth1")
    with pytest.raises(CNIFailed, match="the container has a device eth0 already"):
        fresh.cni("ADD", two)


def test_a_full_pool_refuses_and_recovers(tmp_path: Path) -> None:
    with pod_node(tmp_path, "full", ["10.207.0.0/29"]) as node:
        node.start("--enable-ipv6=false")
        for number in range(5):
            node.add(f"pod{number}")
        node.write_pod("more")
        more = node.namespace("more")
        with pytest.raises(CNIFailed, match="is free: 6 in use"):
            node.cni("ADD", more)
        status = {"CNI_CONTAINERID": "", "CNI_IFNAME": "", "CNI_NETNS": ""}
        with pytest.raises(CNIFailed, match="no address") as failed:
            node.cni("STATUS", more, environment=status, cniVersion="1.1.0")
        assert failed.value.code == 50
        node.delete("pod0")
        with pytest.raises(CNIFailed, match="1 of deleted pods rest for up to 30 s"):
            node.cni("ADD", more)


def test_labels_that_change_make_another_identity(fresh: PodNode) -> None:
    fresh.start()
    fresh.add("one", app="web")
    (row,) = fresh.rows("endpoints")
    fresh.write_pod("one", app="db")
    fresh.world.eventually(lambda: "k8s:app=db" in fresh.rows("endpoints")[0]["Labels"])
    (changed,) = fresh.rows("endpoints")
    assert changed["Identity"] != row["Identity"]

    def known() -> set[int]:
        return {identity["ID"] for identity in fresh.rows("identities")}

    assert changed["Identity"] in known()
    fresh.world.eventually(lambda: row["Identity"] not in known())


def test_commands_show_what_there_is(node: PodNode) -> None:
    w, one = node.world, node.pods["one"]
    (row,) = [row for row in node.rows("endpoints") if row["Pod"] == "one"]
    before = revisions(node)
    for arguments, shown in (
        (("endpoint", "list"), rf"test/one +{row['Identity']} +{one.address(4)} .* ready"),
        (
            ("endpoint", "list", "-n", "test", "-o", "wide"),
            rf"{row['Device']} .*datapath=[0-9.]+ms",
        ),
        (("endpoint", "get", str(row["ID"])), f"Device: {row['Device']}"),
        (("endpoint", "get", "pod-name:test/one", "-o", "json"), f'"IPv4": "{one.address(4)}"'),
        (("endpoint", "get", f"ipv6:{one.address(6)}"), "Pod: one"),
        (("endpoint", "get", f"cni-attachment-id:{one.container_id}:eth0"), "Pod: one"),
        (("endpoint", "health", "pod-name:test/one"), rf"{row['ID']} +OK +yes"),
        (("endpoint", "log", str(row["ID"])), rf"T[0-9:.]+Z +{row['ID']} +ready"),
        (
            ("status",),
            r"Endpoints: +\d+ ready, routing native\nIPAM: +kubernetes, 10\.207\.0\.0/\d+ ",
        ),
        (("status",), r"Masquerade: +IPv4 and IPv6 by programs of devices, but not to "),
        (("ipam", "list"), rf"{one.address(4)} +test/one +{row['ID']} +in-use"),
        (("ipam", "list"), r"IPv4: \d+ in-use"),
        (("identity", "list", "k8s:app=web"), rf"{row['Identity']} +k8s:app=web"),
        (("identity", "get", "1"), "reserved:host"),
        (("ip", "list"), rf"{one.address(4)}/32 +k8s:app=web +local\n +k8s:io.c"),
        (("ip", "list", "-l", "reserved:host"), r"10\.207\.0\.1/32 +reserved:host +local"),
        (("ip", "get", one.address(6), "-n"), rf"{one.address(6)}/128 +{row['Identity']} +local"),
        (("ip", "get", "192.0.2.7", "-o", "wide"), r"0\.0\.0\.0/0 +reserved:world-ipv4 .* done"),
        (
            ("bpf", "ipcache", "get", one.address(4), f"--bpf-root={w.bpf_root}"),
            f"{one.address(4)} maps to identity identity={row['Identity']} encryptkey=0",
        ),
    ):
        done = w.cilia(*arguments)
        assert done.returncode == 0, done.stderr
        assert re.search(shown, done.stdout), f"{arguments}: {done.stdout}"
    for arguments, error in (
        (("endpoint", "get", "9999"), "no endpoint 9999"),
        (("endpoint", "get", "x:1"), "'x' is no kind of id"),
        (("identity", "get", "9999"), "this node knows no identity 9999"),
        (("ip", "get", "10.207.0.1@7"), "no prefix covers 10.207.0.1@7"),
    ):
        done = w.cilia(*arguments)
        assert done.returncode != 0
        assert error in done.stderr
    assert "cilia_ipcache" in {row["name"] for row in w.get("/status")["datapath"]["maps"]}
    assert revisions(node) == before, "an agent with nothing to do writes its tables"


def test_annotations_are_in_force_or_named(node: PodNode) -> None:
    mac = "02:00:5e:00:53:01"
    asked = {MAC_ADDRESS: mac, "kubernetes.io/egress-bandwidth": "1M"}
    node.write_pod("annotated", annotations=asked)
    pod = node.namespace("annotated")
    pod.result = node.cni("ADD", pod)
    try:
        assert mac in pod.ip("link show eth0")
        assert pod.result["interfaces"][1]["mac"] == mac
        (row,) = [row for row in node.rows("endpoints") if row["Pod"] == "annotated"]
        assert row["IgnoredAnnotations"] == ["kubernetes.io/egress-bandwidth"]
        shown = node.world.cilia("status").stdout
        assert "Annotations: not in force: kubernetes.io/egress-bandwidth (1)" in shown
    finally:
        node.delete("annotated")
        node.remove_pod("annotated")
    node.write_pod("wrong", annotations={MAC_ADDRESS: "ff:ff:ff:ff:ff:ff"})
    pod = node.namespace("wrong")
    with pytest.raises(CNIFailed, match="is no Ethernet address of a device"):
        node.cni("ADD", pod)
    node.delete("wrong")
    node.remove_pod("wrong")


@EACH_FAMILY
def test_a_node_of_one_family_has_nothing_of_the_other(tmp_path: Path, family: int) -> None:
    """Pods, their node, a Service and a restart, without an address of the other family."""
    other = {4: 6, 6: 4}[family]
    pools = [pool for pool in POOLS if (":" in pool) == (family == 6)]
    kind = socket.SOCK_STREAM
    with ExitStack() as stack:
        node = stack.enter_context(pod_node(tmp_path, f"one-family-{family}", pools))
        node.start(f"--enable-ipv{other}=false")
        one, two = node.add("one"), node.add("two")
        assert len(one.result["ips"]) == 1
        scope = "-4" if other == 4 else "-6"
        assert one.ip(f"{scope} -o addr show dev eth0 scope global") == ""
        port = serve(stack, two, "two", two.address(family), kind)
        assert ask(one, two.address(family), port, kind)[:2] == ["two", one.address(family)]
        assert ask(node.node, two.address(family), port, kind)[0] == "two"
        address = SERVICES[family]
        slices = endpoint_slice("web", [two.address(family)])
        node.world.write("service.yaml", service("web", address) + "---\n" + slices)
        stack.callback(Server(two, "web", two.address(family), 8080, kind).close)
        node.world.eventually(lambda: answers(one, address, kind) == "web")
        with Connection(one, address, 80, kind) as connection:
            assert connection.ask()[0] == "web"
            node.world.kill_agent()
            assert connection.ask()[0] == "web"
            node.start(f"--enable-ipv{other}=false")
            assert connection.ask()[0] == "web"
        node.cni("CHECK", one)
        assert node.world.get("/status")["healthy"]


def revisions(node: PodNode) -> dict[str, int]:
    """Revisions of the tables of pods."""
    tables = {row["name"]: row["revision"] for row in node.world.get("/status")["tables"]}
    names = ("endpoints", "identities", "ip-allocations", "ipcache", "attachments")
    return {name: tables[name] for name in (*names, "desired-routes", "desired-addresses")}


def test_a_broken_manifest_keeps_no_pod_from_its_network(fresh: PodNode) -> None:
    """Nobody knows what was in it: nothing is removed, and others are served."""
    fresh.world.write("broken.yaml", "apiVersion: v1\nkind: [\n")
    fresh.world.start_agent("--pod-network", "--node-name=node-one")
    fresh.write_pod("one")
    pod = fresh.namespace("one")
    fresh.world.eventually((fresh.world.state_dir / "cni.sock").exists, 30.0)
    fresh.world.eventually(lambda: added(fresh, pod), 30.0)
    assert fresh.rows("endpoints")[0]["State"] == "ready"


def added(node: PodNode, pod: Pod) -> bool:
    """Ask as a runtime does, which tries again later."""
    try:
        pod.result = node.cni("ADD", pod)
    except CNIFailed as error:
        if error.code != 11:
            raise
        return False
    return True


def test_the_runtime_is_offered_the_node_when_it_can_be_served(fresh: PodNode) -> None:
    lists, programs = fresh.world.directory / "net.d", fresh.world.directory / "bin"
    lists.mkdir()
    programs.mkdir()
    (lists / "00-other.conflist").write_text("{}")
    (fresh.world.manifests / "node.yaml").unlink()
    fresh.start(f"--cni-conf-path={lists}", f"--cni-bin-path={programs}")
    pod = fresh.namespace("early")
    fresh.write_pod("early")
    with pytest.raises(CNIFailed, match="no prefix for its pods yet"):
        fresh.cni("ADD", pod)
    assert [path.name for path in lists.iterdir()] == ["00-other.conflist"]
    fresh.write_node()
    ours = lists / "05-cilia.conflist"
    fresh.world.eventually(ours.exists)
    assert os.access(programs / "cilia-cni", os.X_OK)
    (plugin,) = json.loads(ours.read_text())["plugins"]
    assert plugin["socket-path"] == str(fresh.world.state_dir / "cni.sock")
    aside = ["00-other.conflist.cilium_bak", "05-cilia.conflist"]
    fresh.world.eventually(lambda: sorted(path.name for path in lists.iterdir()) == aside)
    ours.unlink()
    fresh.world.eventually(ours.exists)
    (programs / "cilia-cni").write_bytes(b"broken")
    fresh.world.eventually(lambda: (programs / "cilia-cni").stat().st_size > 6)
    pod.result = fresh.cni("ADD", pod)


@pytest.mark.parametrize("pods", [1, 0])
def test_a_cleanup_takes_all_away(fresh: PodNode, pods: int) -> None:
    lists, programs = fresh.world.directory / "net.d", fresh.world.directory / "bin"
    lists.mkdir()
    programs.mkdir()
    (lists / "10-other.conflist").write_text("{}")
    agent = fresh.start(f"--cni-conf-path={lists}", f"--cni-bin-path={programs}")
    fresh.world.eventually((lists / "10-other.conflist.cilium_bak").exists)
    for number in range(pods):
        fresh.add(f"pod{number}")
    agent.terminate()
    agent.wait()
    w = fresh.world
    places = [f"--state-dir={w.state_dir}", f"--bpf-root={w.bpf_root}"]
    command = [sys.executable, "-m", "cilia", f"--instance={w.namespace}", "cleanup", *places]
    done = subprocess.run(
        [*w.entering(), *command],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert ("devices of 1 endpoints" in done.stdout) is bool(pods)
    assert "left:" not in done.stdout
    assert not w.state_dir.exists()
    assert [path.name for path in lists.iterdir()] == ["10-other.conflist"]
    assert list(programs.iterdir()) == []
    links, routes = fresh.node.ip("-o link"), fresh.node.ip("route") + fresh.node.ip("-6 route")
    assert "lxc" not in links
    assert "cilia_" not in links
    assert "207" not in routes
