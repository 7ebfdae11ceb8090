# SPDX-License-Identifier: Apache-2.0
"""A node with pods under numbered streams, and the causes that may not disturb them.

::

    pod one ──┐
              ├── node ── router ── far        (`outside.wire`)
    pod two ──┘

Every way that leads from or to a pod of one node has streams of both families: pod to pod, pod to
node, node to pod, pod to Service, pod to the world (masqueraded), and the world to a node port.
The agents are forked from `killed_agent.Nursery`, so that a start costs what a start does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from cilia.linux.netns import NetNS
from tests.e2e.killed_agent import Nursery
from tests.e2e.manifests import endpoint_slice, service
from tests.e2e.outside import FAR, NODE, wire
from tests.e2e.pods import FAMILIES, PodNode, pod_node
from tests.e2e.pods import NODE as NODE_NAME
from tests.e2e.streams import Streams, Told, Way
from tests.kernel import Kernel

PORT = 8080
GATEWAY = {4: "10.207.0.1", 6: "fd00:207::1"}
SERVICE = {4: "10.203.0.70", 6: "fd00:203::70"}
NODE_PORT = {4: 30074, 6: 30076}
#: A node's own range has 254 addresses; those of deleted pods rest for a while.
WIDE_POOLS = ("10.207.0.0/16", "fd00:207::/112")
#: Room for the new connections of a storm.
ROOM = ("--bpf-ct-global-tcp-max=65536", "--bpf-ct-global-any-max=65536")
PINGED = ("tcp", "new", "udp", "ping")


class Agents:
    """The agents of a node, one after the other, of one build or several."""

    def __init__(self, node: PodNode, stack: ExitStack) -> None:
        self._node, self._stack = node, stack
        self._builds: dict[str, Nursery] = {}
        self.build, self.pid = "", 0
        self.add_build("this")

    def add_build(self, name: str, root: Path | None = None) -> None:
        entering = self._node.world.entering()
        nursery = Nursery(root, entering=entering) if root else Nursery(entering=entering)
        self._stack.callback(nursery.close)
        self._builds[name] = nursery

    @property
    def log(self) -> Path:
        return self._node.world.directory / "start.log"

    def launch(self, build: str = "this") -> None:
        """Start an agent and wait for nothing."""
        world = self._node.world
        self.build = build
        self.pid = self._builds[build].start(
            [*world.command()[3:], "--pod-network", f"--node-name={NODE_NAME}", *ROOM],
            log=self.log,
            points=world.directory / "points",
        )

    def start(self, build: str = "this") -> None:
        """Start an agent, and wait until all is in force."""
        self.launch(build)
        self._node.world.eventually(self.is_synchronised, 30)
        self._node.world.eventually(self._node.world.ready, 30)

    def is_synchronised(self) -> bool:
        return '"synchronised"' in self.log.read_text()

    def kill(self) -> None:
        """kill -9, if one lives."""
        if self.pid:
            self._builds[self.build].kill(self.pid)
        self.pid = 0


class Disturbed:
    """A node, its pods `one` and `two`, the world, and streams between all of them."""

    def __init__(self, node: PodNode, router: Kernel, far: Kernel, stack: ExitStack) -> None:
        self.node, self.router, self.far = node, router, far
        self.agents = Agents(node, stack)
        stack.callback(self.agents.kill)
        self.agents.start()
        for name in ("one", "two"):
            node.add(name)
        for family in FAMILIES:
            self.write_service(family)
        self.streams = Streams()
        stack.callback(self.streams.close)

    def write_service(self, family: int) -> None:
        """One with a node port, in front of pod two."""
        name = f"streams{family}"
        text = service(name, SERVICE[family])
        text = text.replace("spec:\n", "spec:\n  type: NodePort\n")
        text = text.replace("port: 80,", f"port: 80, nodePort: {NODE_PORT[family]},")
        text += "---\n" + endpoint_slice(name, [self.node.pods["two"].address(family)])
        self.node.world.write(f"{name}.yaml", text)

    def ways(self) -> Iterator[Way]:
        host, far = f"/run/netns/{self.node.world.namespace}", self.far.netns.path
        one, two = self.node.pods["one"], self.node.pods["two"]
        for family in FAMILIES:
            v, pod = f"IPv{family}", two.address(family)
            yield Way(f"pod to pod {v}", one.path, pod, PORT, PINGED)
            yield Way(f"pod to node {v}", one.path, GATEWAY[family], PORT, PINGED)
            yield Way(f"node to pod {v}", host, pod, PORT, PINGED)
            yield Way(f"pod to service {v}", one.path, SERVICE[family], 80)
            yield Way(f"pod to world {v}", one.path, FAR[family], PORT, PINGED)
            yield Way(f"world to node port {v}", far, NODE[family], NODE_PORT[family])

    def open_streams(self) -> None:
        """Begin, and wait until all of them are answered."""
        host = f"/run/netns/{self.node.world.namespace}"
        for family in FAMILIES:
            two = self.node.pods["two"]
            self.streams.serve(two.path, two.address(family), PORT)
            self.streams.serve(host, GATEWAY[family], PORT)
            self.streams.serve(self.far.netns.path, FAR[family], PORT)
        self.node.world.eventually(self._services_are_in_force)
        for way in self.ways():
            self.streams.open(way)
        self.node.world.eventually(self.streams.all_answer)
        self.streams.read()

    def _services_are_in_force(self) -> bool:
        rows = self.node.rows("frontends")
        ports = {row["Address"].rpartition(":")[2].partition("/")[0] for row in rows}
        return {str(port) for port in NODE_PORT.values()} <= ports and all(
            row["Status"]["kind"] == "done" for row in rows
        )

    def told(self) -> Told:
        """Hear of each stream once more; what they noticed since the last time."""
        self.node.world.eventually(lambda: self.streams.all_answer(1))
        return self.streams.read()


@contextmanager
def disturbed(directory: Path, name: str, pools: Sequence[str] = WIDE_POOLS) -> Iterator[Disturbed]:
    """The node, its agent and the streams."""
    with ExitStack() as stack:
        node = stack.enter_context(pod_node(directory, name, pools))
        router, far = (Kernel(stack.enter_context(NetNS.new())) for _ in range(2))
        wire(node.node, router, far)
        for kernel in (router, far):
            kernel.ip("link set lo up")
        made = Disturbed(node, router, far, stack)
        made.open_streams()
        yield made
