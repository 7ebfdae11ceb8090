# SPDX-License-Identifier: Apache-2.0
"""Pod → ClusterIP: connections with one byte each way, per second, through a node to a server.

Three namespaces in a row: pod, node, server. Ours: the socket programs on the pod's cgroup. Peers:
the node's nftables or iptables with the rules that kube-proxy makes for the same Services (a chain
a Service and one an endpoint). «no rules» is the pod dialling the server itself. All sides are run
in turns; the rules of peers go up to 10,000 Services, ours to 100,000.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from cilia.linux.cgroup import find_cgroup2
from cilia.linux.netns import NetNS
from tests.benchmarks.report import Report, alternated

SIZES = (10, 1_000, 10_000, 100_000)
PEERS_UP_TO = 10_000
SECONDS = 1.5
ROUNDS = 5
FIRST = IPv4Address("10.96.0.1")
SERVERS = [f"10.220.2.{n}" for n in range(2, 10)]
PORT = 80


class Topology:
    """pod — node — server; nothing leads out."""

    def __init__(self, stack: ExitStack) -> None:
        self.names = {role: f"cilia-bench-{role}-{os.getpid()}" for role in ("pod", "node", "srv")}
        for name in self.names.values():
            stack.callback(NetNS.remove, name)
            NetNS.create(name).close()
        self._link("pod", "10.220.1.2/24", "10.220.1.1/24")
        self._link("srv", "10.220.2.2/24", "10.220.2.1/24")
        for address in SERVERS[1:]:
            self.ip("srv", "addr", "add", f"{address}/24", "dev", "eth0")
        for namespace in ("pod", "srv"):
            gateway = "10.220.1.1" if namespace == "pod" else "10.220.2.1"
            self.ip(namespace, "route", "add", "default", "via", gateway)
        self.ip("node", "route", "add", "unreachable", "10.96.0.0/12")
        self.in_node("sysctl", "-qw", "net.ipv4.ip_forward=1")

    def _link(self, role: str, inner: str, outer: str) -> None:
        self.ip(
            "node", "link", "add", role, "type", "veth", "peer", "eth0", "netns", self.names[role]
        )
        for namespace, device, address in ((role, "eth0", inner), ("node", role, outer)):
            self.ip(namespace, "addr", "add", address, "dev", device)
            self.ip(namespace, "link", "set", device, "up")

    def ip(self, role: str, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.names[role], *arguments], check=True)

    def in_node(self, *command: str, text: str | None = None) -> None:
        net = f"--net=/run/netns/{self.names['node']}"
        subprocess.run(["nsenter", net, *command], input=text, text=True, check=True)


class Worker:
    """A process of `short_connections`, ready."""

    def __init__(self, stack: ExitStack, *arguments: str) -> None:
        command = [sys.executable, "-m", "tests.benchmarks.short_connections", *arguments]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin and process.stdout
        self._input, self._output = process.stdin, process.stdout
        stack.callback(process.wait)
        stack.callback(process.stdin.close)
        assert json.loads(self._output.readline()) == "ready"

    def rate(self, first: str, count: int) -> float:
        self._input.write(json.dumps([first, count, PORT, SECONDS]) + "\n")
        self._input.flush()
        return float(json.loads(self._output.readline()))


def run(*, peers: bool) -> None:
    report = Report(
        "pod → ClusterIP, connections/s; peers: rules of the node for the same Services"
    )
    if os.geteuid() != 0:
        print("not run: needs root")
        return
    with ExitStack() as stack:
        topology = Topology(stack)
        pod = topology.names["pod"]
        Worker(stack, "server", topology.names["srv"], "", str(PORT), *SERVERS)
        plain = Worker(stack, "client", pod, "")
        cgroup = stack.enter_context(_cgroup())
        ours = Worker(stack, "client", pod, str(cgroup))
        for size in SIZES:
            _measure(report, topology, plain, ours, cgroup, size, peers=peers)


def _measure(
    report: Report,
    topology: Topology,
    plain: Worker,
    ours: Worker,
    cgroup: Path,
    size: int,
    *,
    peers: bool,
) -> None:
    sides: dict[str, Callable[[], float]] = {"no rules": lambda: plain.rate(SERVERS[0], 8)}
    with _socket_programs(cgroup, size):
        sides["ours"] = lambda: ours.rate(str(FIRST), size)
        if peers and size <= PEERS_UP_TO:
            for name, rules in (("nftables", _nftables), ("iptables", _iptables)):
                sides[name] = lambda rules=rules: _with_rules(topology, plain, size, rules)  # type: ignore[misc]
        rates = dict(zip(sides, alternated(list(sides.values()), ROUNDS), strict=True))
    for peer, rate in rates.items():
        if peer != "ours":
            row = f"clusterip.{size}.vs_{peer.replace(' ', '_')}"
            report.row(row, rates["ours"], "connections/s", peer=rate)


def _with_rules(
    topology: Topology, plain: Worker, size: int, rules: Callable[[Topology, int], None]
) -> float:
    rules(topology, size)
    try:
        return plain.rate(str(FIRST), size)
    finally:
        topology.in_node("nft", "flush", "ruleset")
        topology.in_node("iptables-legacy", "-t", "nat", "-F")
        topology.in_node("iptables-legacy", "-t", "nat", "-X")


def _nftables(topology: Topology, size: int) -> None:
    """As kube-proxy's nftables mode writes them."""
    chains, elements = [], []
    for n in range(size):
        server = SERVERS[n % len(SERVERS)]
        chains.append(f"chain endpoint-{n} {{ meta l4proto tcp dnat to {server}:{PORT} ; }}")
        chains.append(
            f"chain service-{n} {{ numgen random mod 1 vmap {{ 0 : goto endpoint-{n} }} ; }}"
        )
        elements.append(f"{FIRST + n} . tcp . {PORT} : goto service-{n}")
    text = "\n".join(
        [
            "table ip bench {",
            *chains,
            "map service-ips { type ipv4_addr . inet_proto . inet_service : verdict",
            f"elements = {{ {', '.join(elements)} }} }}",
            "chain prerouting { type nat hook prerouting priority -100;",
            "ip daddr . meta l4proto . th dport vmap @service-ips",
            "}",
            "}",
            "",
        ]
    )
    topology.in_node("nft", "-f", "-", text=text)


def _iptables(topology: Topology, size: int) -> None:
    """As kube-proxy's iptables mode writes them: one rule a Service in the first chain."""
    lines = ["*nat", ":KUBE-SERVICES - [0:0]"]
    lines += [f":KUBE-SVC-{n} - [0:0]\n:KUBE-SEP-{n} - [0:0]" for n in range(size)]
    lines.append("-A PREROUTING -j KUBE-SERVICES")
    for n in range(size):
        server = SERVERS[n % len(SERVERS)]
        lines += [
            f"-A KUBE-SERVICES -d {FIRST + n}/32 -p tcp -m tcp --dport {PORT} -j KUBE-SVC-{n}",
            f"-A KUBE-SVC-{n} -j KUBE-SEP-{n}",
            f"-A KUBE-SEP-{n} -p tcp -m tcp -j DNAT --to-destination {server}:{PORT}",
        ]
    topology.in_node("iptables-legacy-restore", text="\n".join([*lines, "COMMIT", ""]))


@contextmanager
def _cgroup() -> Iterator[Path]:
    root = find_cgroup2()
    assert root is not None, "no cgroup2 hierarchy is mounted"
    path = root / f"cilia-bench-{os.getpid()}"
    path.mkdir()
    try:
        yield path
    finally:
        path.rmdir()


@contextmanager
def _socket_programs(cgroup: Path, size: int) -> Iterator[None]:
    """The datapath as the agent starts it, with this many Services in its maps."""
    from bpf.datapath import cleanup
    from bpf.features import mount_bpffs
    from bpf.sock import SockConfig
    from tests.bpf.attaching import AttachingDatapath
    from tests.bpf.world import unmount

    with tempfile.TemporaryDirectory() as directory:
        bpffs = Path(directory, "bpffs")
        bpffs.mkdir()
        mount_bpffs(bpffs)
        config = SockConfig(bpffs / "bench", cgroup, service_entries=4 * size + 16)
        sock = AttachingDatapath(config)
        try:
            with ExitStack() as stack:
                maps = sock.open_maps()
                stack.callback(maps.close)
                _fill(maps, size)
                sock.load()
                sock.attach()
                yield
        finally:
            sock.close()
            cleanup(config.pin_dir)
            unmount(bpffs)


def _fill(maps: object, size: int) -> None:
    from bpf.maps import lb

    assert isinstance(maps, lb.LBMaps)
    backends = [
        lb.encode_backend(lb.BackendValue(IPv4Address(server).packed, PORT, 6))
        for server in SERVERS
    ]
    maps.v4.backend.update_batch([lb.encode_id(n + 1) for n in range(len(backends))], backends)
    addresses = [(FIRST + n).packed for n in range(size)]
    ids = [lb.encode_id(n + 1) for n in range(size)]
    maps.v4.rev_nat.update_batch(
        ids, [lb.encode_rev_nat(lb.RevNatValue(address, PORT)) for address in addresses]
    )
    slots = [
        lb.encode_service(lb.ServiceValue(backend_id=n % len(SERVERS) + 1)) for n in range(size)
    ]
    masters = [lb.encode_service(lb.ServiceValue(rev_nat=n + 1, count=1)) for n in range(size)]
    for slot, values in ((1, slots), (0, masters)):
        keys = [lb.encode_service_key(address, PORT, slot, 6) for address in addresses]
        maps.v4.service.update_batch(keys, values)
