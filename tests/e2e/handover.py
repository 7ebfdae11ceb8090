# SPDX-License-Identifier: Apache-2.0
"""A node with pods, an uplink and another proxy of its Services: rules of nftables.

::

    caller 10.244.1.11 ──+                        +── client 192.0.2.9
                         +── node 192.0.2.1 ──────+
    server 10.244.1.10 ──+   (the world's)        +── remote server 192.0.2.2

The rules are those that kube-proxy writes for one Service: a map of addresses, a chain a Service,
a chain an endpoint, a mark for what is masqueraded. A CNI plugin's table stays all the time: as
long as any rule translates, netfilter goes on with the connections of rules that are gone.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cilia.linux.cgroup import find_cgroup2
from cilia.linux.netns import NetNS
from tests.e2e.nodes import forward, nft
from tests.e2e.world import Inside, World, world
from tests.kernel import Kernel

CLUSTER_IP, CLUSTER_PORT = "10.203.0.10", 80
NODE, REMOTE, CLIENT = "192.0.2.1", "192.0.2.2", "192.0.2.9"
GATEWAY, SERVER, CALLER = "10.244.1.1", "10.244.1.10", "10.244.1.11"
NODE_PORT, TARGET_PORT = 30080, 8080

MANIFEST = f"""\
apiVersion: v1
kind: Service
metadata: {{name: shop, namespace: test}}
spec:
  type: NodePort
  clusterIP: {CLUSTER_IP}
  clusterIPs: [{CLUSTER_IP}]
  ports: [{{protocol: TCP, port: {CLUSTER_PORT}, targetPort: {TARGET_PORT}, nodePort: {NODE_PORT}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: shop-1
  namespace: test
  labels: {{kubernetes.io/service-name: shop}}
addressType: IPv4
ports: [{{protocol: TCP, port: {TARGET_PORT}}}]
endpoints: [{{addresses: ["{SERVER}"]}}, {{addresses: ["{REMOTE}"]}}]
"""

OTHER_PROXY = f"""
table ip other-proxy {{
  chain endpoint-1 {{ meta l4proto tcp dnat to {SERVER}:{TARGET_PORT} ; }}
  chain endpoint-2 {{ meta l4proto tcp dnat to {REMOTE}:{TARGET_PORT} ; }}
  chain service {{ numgen random mod 2 vmap {{ 0 : goto endpoint-1, 1 : goto endpoint-2 }} ; }}
  chain external {{
    meta mark set meta mark or 0x4000 counter comment "outside"
    goto service
  }}
  map service-ips {{
    type ipv4_addr . inet_proto . inet_service : verdict
    elements = {{ {CLUSTER_IP} . tcp . {CLUSTER_PORT} : goto service }}
  }}
  map service-nodeports {{
    type inet_proto . inet_service : verdict
    elements = {{ tcp . {NODE_PORT} : goto external }}
  }}
  chain services {{
    ip daddr . meta l4proto . th dport vmap @service-ips
    fib daddr type local meta l4proto . th dport vmap @service-nodeports
  }}
  chain prerouting {{
    type nat hook prerouting priority -100 ;
    ip daddr {CLUSTER_IP} counter comment "pod"
    jump services
  }}
  chain output {{
    type nat hook output priority -100 ;
    ip daddr {CLUSTER_IP} counter comment "host"
    jump services
  }}
  chain postrouting {{
    type nat hook postrouting priority 100 ;
    meta mark & 0x4000 != 0 masquerade fully-random
  }}
}}
"""

CNI = (
    "add table inet cni; add chain inet cni post { type nat hook postrouting priority 110; }; "
    "add rule inet cni post ip saddr 10.99.0.0/16 masquerade"
)


class Handover:
    """The world, and the processes inside its other namespaces."""

    def __init__(self, made: World, node: Kernel, others: dict[str, Inside]) -> None:
        self.world, self.node = made, node
        self.caller, self.client = others["caller"], others["client"]

    def add_rules(self) -> None:
        rules = self.world.directory / "rules.nft"
        rules.write_text(OTHER_PROXY)
        self.node._run("nft", "-f", str(rules))

    def remove_rules(self) -> None:
        nft(self.node, "delete table ip other-proxy")

    def connections_of_rules(self) -> dict[str, int]:
        """How many the rules translated since they were made, by who asked."""
        listed = self.node._run("nft", "list", "table", "ip", "other-proxy")
        found = re.findall(r'counter packets (\d+) bytes \d+ comment "(\w+)"', listed)
        return {asker: int(count) for count, asker in found}

    def status(self) -> dict[str, Any]:
        done = self.world.cilia("replacement", "status", "-o", "json")
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@contextmanager
def handover(directory: Path) -> Iterator[Handover]:
    """Everything but rules and agent."""
    with ExitStack() as stack:
        made = stack.enter_context(world(directory, "handover"))
        node = Kernel(stack.enter_context(NetNS.named(made.namespace)))
        kernels = {
            role: _namespace(stack, role) for role in ("caller", "server", "client", "remote")
        }
        _network(node, {role: kernel for role, (kernel, _) in kernels.items()})
        outside = _cgroup(stack)
        inside = {
            role: Inside(name, made.cgroup if role in ("caller", "server") else outside)
            for role, (_, name) in kernels.items()
        }
        for process in inside.values():
            stack.callback(process.close)
        inside["server"].serve("server", SERVER, TARGET_PORT)
        inside["remote"].serve("remote", REMOTE, TARGET_PORT)
        made.write("shop.yaml", MANIFEST)
        nft(node, CNI)
        yield Handover(made, node, inside)


def _namespace(stack: ExitStack, role: str) -> tuple[Kernel, str]:
    name = f"cilia-test-{role}-{os.getpid()}"
    stack.callback(NetNS.remove, name)
    kernel = Kernel(stack.enter_context(NetNS.create(name)))
    kernel.ip("link set lo up")
    return kernel, name


def _cgroup(stack: ExitStack) -> Path:
    """For those that are other machines: no program is attached to it."""
    root = find_cgroup2()
    assert root is not None, "no cgroup2 hierarchy is mounted"
    path = root / f"cilia-test-outside-{os.getpid()}"
    path.mkdir()
    stack.callback(path.rmdir)
    return path


def _network(node: Kernel, others: dict[str, Kernel]) -> None:
    client, remote = others["client"], others["remote"]
    client.ip_batch(
        [
            "link add br0 type bridge",
            "link set br0 up",
            f"addr add {CLIENT}/24 dev br0",
            f"link add port1 type veth peer name eth0 netns {node.netns.path}",
            f"link add port2 type veth peer name eth0 netns {remote.netns.path}",
            *(f"link set {port} master br0 up" for port in ("port1", "port2")),
        ]
    )
    remote.ip_batch(
        [
            "link set eth0 up",
            f"addr add {REMOTE}/24 dev eth0",
            f"route add 10.244.1.0/24 via {NODE}",
        ]
    )
    # Another proxy's packets have a route to the Service before they are translated. It ends at the
    # client, which forwards nothing.
    node.ip_batch(
        [
            "link set eth0 up",
            f"addr add {NODE}/24 dev eth0",
            f"route add {CLUSTER_IP}/32 via {CLIENT}",
        ]
    )
    forward(node)
    for number, (role, address) in enumerate((("server", SERVER), ("caller", CALLER))):
        pod = others[role]
        node.ip_batch(
            [
                f"link add lxc{number} type veth peer name eth0 netns {pod.netns.path}",
                f"link set lxc{number} up",
                f"addr add {GATEWAY}/32 dev lxc{number}",
                f"route add {address}/32 dev lxc{number}",
            ]
        )
        pod.ip_batch(
            [
                "link set eth0 up",
                f"addr add {address}/32 dev eth0",
                f"route add {GATEWAY}/32 dev eth0",
                f"route add default via {GATEWAY}",
            ]
        )
