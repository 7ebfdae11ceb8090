# SPDX-License-Identifier: Apache-2.0
"""Two pods of one node beside a bare pair of devices, and what ADD takes.

The peer of the traffic is a veth pair between two namespaces with no node in between. Ours are two
pods with all that is on by default: sources verified, flows tracked, Services, masquerading. ADD is
from the plugin's start to its end, everything in force; its peer with ``--peers`` is Debian's
bridge with host-local, which puts nothing in force but a bridge port.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from cilia.linux.netns import NetNS
from tests.benchmarks.report import Report, alternated
from tests.e2e.pods import PodNode, pod_node
from tests.kernel import Kernel
from tests.kube.assets import asset

SECONDS = 1.0
ROUNDS = 7
ADDS = 40
UNITS = {"rr": "transactions/s", "crr": "connections/s", "stream": "bytes/s"}
ADDRESSES = ("10.230.0.1", "10.230.0.2")


class Side:
    """A server in one namespace and a client in another one."""

    def __init__(self, stack: ExitStack, server: str, client: str, address: str) -> None:
        self._server = stack.enter_context(_process("server", server, address))
        self._client = stack.enter_context(_process("client", client, address))

    def measure(self, kind: str) -> float:
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        self._client.stdin.write(json.dumps([kind, SECONDS]) + "\n")
        self._client.stdin.flush()
        return float(json.loads(self._client.stdout.readline()))


@contextmanager
def _process(role: str, namespace: str, address: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.benchmarks.pod_traffic", role, namespace, address]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.stdin.close()


def _bare(stack: ExitStack) -> Side:
    names = [f"cilia-bench-{role}-{os.getpid()}" for role in ("server", "client")]
    kernels = []
    for name in names:
        stack.callback(NetNS.remove, name)
        kernels.append(Kernel(stack.enter_context(NetNS.create(name))))
    kernels[0].ip(f"link add eth0 type veth peer eth0 netns {names[1]}")
    for kernel, address in zip(kernels, ADDRESSES, strict=True):
        kernel.ip(f"addr add {address}/24 dev eth0")
        kernel.ip("link set eth0 up")
    return Side(stack, names[0], names[1], ADDRESSES[0])


def _name(node: PodNode, pod: str) -> str:
    return Path(node.pods[pod].path).name


def traffic(report: Report, node: PodNode, stack: ExitStack) -> None:
    bare = _bare(stack)
    ours = Side(stack, _name(node, "one"), _name(node, "two"), node.pods["one"].address(4))
    for kind, unit in UNITS.items():
        measured = alternated(
            [lambda kind=kind: ours.measure(kind), lambda kind=kind: bare.measure(kind)],  # type: ignore[misc]
            ROUNDS,
        )
        report.row(f"pods.{kind}", measured[0], unit, peer=measured[1])


class Bridge:
    """Debian's plugins, called as ours are."""

    def __init__(self, node: PodNode, directory: Path) -> None:
        self._plugins = asset("cni")
        self._namespace = node.world.namespace
        self._config = {
            "cniVersion": "1.0.0",
            "name": "peer",
            "type": "bridge",
            "bridge": "peer0",
            "isGateway": True,
            "ipam": {
                "type": "host-local",
                "dataDir": str(directory),
                "ranges": [[{"subnet": "10.231.0.0/24"}], [{"subnet": "fd00:231::/120"}]],
            },
        }

    def call(self, command: str, name: str, path: str) -> None:
        environment = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": name,
            "CNI_NETNS": path,
            "CNI_IFNAME": "eth1",
            "CNI_PATH": str(self._plugins),
        }
        environment["PATH"] = os.environ["PATH"]
        subprocess.run(
            ["nsenter", f"--net=/run/netns/{self._namespace}", str(self._plugins / "bridge")],
            input=json.dumps(self._config),
            env=environment,
            text=True,
            check=True,
            capture_output=True,
        )


def adds(report: Report, node: PodNode, bridge: Bridge | None) -> None:
    for number in range(ADDS):
        node.write_pod(f"add{number}")
    node.world.eventually(lambda: len(node.rows("k8s-pods")) >= ADDS)
    ours: list[float] = []
    peer: list[float] = []
    for number in range(ADDS):
        pod = node.namespace(f"add{number}")
        ours.append(_timed(node.cni, "ADD", pod))
        if bridge is not None:
            peer.append(_timed(bridge.call, "ADD", pod.container_id, pod.path))
            bridge.call("DEL", pod.container_id, pod.path)
    for name, of in (("p50", statistics.median), ("p99", max)):
        report.row(
            f"pods.add_{name}",
            of(ours) * 1000,
            "ms",
            peer=of(peer) * 1000 if peer else None,
            higher_is_better=False,
        )


def _timed(call: Any, *arguments: Any) -> float:
    begin = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - begin


def run(*, peers: bool = False) -> None:
    """Needs root. `peers`: with ADD of Debian's plugins."""
    report = Report("pods of one node")
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        node = stack.enter_context(pod_node(Path(directory), "bench"))
        node.start()
        for name in ("one", "two"):
            node.add(name)
        traffic(report, node, stack)
        adds(report, node, Bridge(node, Path(directory) / "peer") if peers else None)


if __name__ == "__main__":
    run(peers="--peers" in sys.argv)
