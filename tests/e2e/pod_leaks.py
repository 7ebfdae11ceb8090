# SPDX-License-Identifier: Apache-2.0
"""ADD and DEL in a storm, with kills of the agent and of the plugin, and what is left of it.

A runtime's rules: an ADD that failed is followed by DEL, and DEL is repeated until it succeeds. At
the end all that an agent and the kernel have must be as on the node before its first pod.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from ipaddress import ip_address, ip_network
from pathlib import Path

import msgspec

from bpf.maps import ct, endpoints, ipcache
from bpf.maps.map import Map
from tests.e2e.disturbances import AT_ONCE, LIFE_S
from tests.e2e.disturbed import GATEWAY, WIDE_POOLS, Agents
from tests.e2e.pods import CNIFailed, Pod, PodNode, pod_node

#: One request in so many is killed within its first moments.
KILLED_IN, KILLED_AFTER_S = 10, 0.1
#: Flows of a deleted pod end within this time (`--bpf-ct-timeout-regular-tcp-fin`).
ENDING_S = 10
#: Part of the one error of an ADD that kills of the agent explain.
NO_AGENT = "agent does not answer"
POOLS = tuple(map(ip_network, WIDE_POOLS))

Census = dict[str, list[str]]


class Storm(msgspec.Struct):
    """Sums over all operations."""

    operations: int = 0
    agents_killed: int = 0
    plugins_killed: int = 0
    #: How often the answer to ADD was an error, by its beginning.
    adds_failed: dict[str, int] = {}
    left: list[str] = []

    def harmless(self) -> bool:
        return not self.left and set(self.adds_failed) <= {NO_AGENT}


class Leaks:
    """A node on which pods come and go; `census` is what must be there when they are gone."""

    def __init__(self, node: PodNode, agents: Agents) -> None:
        self.node, self.agents = node, agents
        self._numbers = iter(range(1 << 31))
        self._lock = threading.Lock()
        self.names = [f"storm{number}" for number in range(AT_ONCE)]
        node.write_pods(self.names)
        agents.start()
        node.world.eventually(lambda: len(node.rows("k8s-pods")) == AT_ONCE)
        self.clean = self.census()

    # -- operations --

    def storm(self, operations: int, storm: Storm, rng: random.Random) -> None:
        """ADD and DEL so often in all, some at once, while agents are killed."""
        ended = threading.Event()
        killer = threading.Thread(target=self._kill_agents, args=(ended, storm, rng))
        killer.start()
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:
                shares = [len(range(n, operations, AT_ONCE)) for n in range(AT_ONCE)]
                list(pool.map(partial(self._lives, storm), self.names, shares))
        finally:
            ended.set()
            killer.join()
        storm.operations += operations
        if not self.agents.is_synchronised():
            self.node.world.eventually(self.agents.is_synchronised, 30)
        self.node.world.eventually(self.node.world.ready, 30)

    def _kill_agents(self, ended: threading.Event, storm: Storm, rng: random.Random) -> None:
        while not ended.wait(LIFE_S + rng.uniform(0, 2 * LIFE_S)):
            self.agents.kill()
            storm.agents_killed += 1
            self.agents.launch()

    def _lives(self, storm: Storm, name: str, count: int) -> None:
        for _ in range(count):
            self._life(name, storm)

    def _life(self, name: str, storm: Storm) -> None:
        with self._lock:
            number = next(self._numbers)
        pod = self.node.namespace(name, f"{name}-{number}")
        try:
            if random.randrange(KILLED_IN) == 0:
                self._killed("ADD", pod, storm)
            else:
                self._added(pod, storm)
            if random.randrange(KILLED_IN) == 0:
                self._killed("DEL", pod, storm)
            self._deleted(pod)
        finally:
            self.node.forget(pod)
            self.node.pods.pop(name)

    def _added(self, pod: Pod, storm: Storm) -> None:
        try:
            pod.result = self.node.cni("ADD", pod)
        except CNIFailed as error:
            why = f"{error.code}: {error.form.get('msg', error)}".replace(pod.name, "POD")
            why = NO_AGENT if NO_AGENT in why else why
            with self._lock:
                storm.adds_failed[why] = storm.adds_failed.get(why, 0) + 1
            while not self.agents.is_synchronised():  # a runtime asks again after a while, too
                time.sleep(0.05)

    def _deleted(self, pod: Pod) -> None:
        """Raises: CNIFailed if it fails for too long."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.node.cni("DEL", pod)
            except CNIFailed:
                if time.monotonic() > deadline:
                    raise
            else:
                return

    def _killed(self, command: str, pod: Pod, storm: Storm) -> None:
        with self.node.plugin(command, pod) as process:
            time.sleep(random.uniform(0, KILLED_AFTER_S))  # the moment is what is random here
            process.kill()
            process.communicate()
        storm.plugins_killed += 1

    def at_once(self, count: int) -> tuple[float, list[str]]:
        """ADD so many pods at the same time; how long it took, and who failed. They are deleted."""
        names = [f"crowd{number}" for number in range(count)]
        self.node.write_pods(names)
        self.node.world.eventually(lambda: len(self.node.rows("k8s-pods")) >= count, 30)
        pods = [self.node.namespace(name) for name in names]
        begin = time.monotonic()
        with ThreadPoolExecutor(count) as pool:
            failures = [error for error in pool.map(self._error_of_add, pods) if error]
            took_s = time.monotonic() - begin
        with ThreadPoolExecutor(AT_ONCE) as pool:
            list(pool.map(self.node.delete, names))
        self.node.remove_pods(names)
        return took_s, failures

    def _error_of_add(self, pod: Pod) -> str:
        try:
            pod.result = self.node.cni("ADD", pod)
        except CNIFailed as error:
            return str(error)
        return ""

    # -- what is there --

    def left(self, timeout_s: float = 45.0) -> list[str]:
        """How the node differs from one without pods, once identities and flows ended."""
        deadline = time.monotonic() + timeout_s
        while (found := self.census()) != self.clean and time.monotonic() < deadline:
            time.sleep(0.1)  # tables, files and maps have no common event
        return [
            f"{what}: {sorted(set(found[what]) ^ set(self.clean[what]))[:5]}"
            for what in found
            if found[what] != self.clean[what]
        ]

    def census(self) -> Census:
        """All that a pod has, by where it is."""
        node, world = self.node, self.node.world
        pins = world.bpf_root / world.namespace
        routes = (node.node.ip("route") + node.node.ip("-6 route")).splitlines()
        found = {
            "links": [line.split(": ")[1] for line in node.node.ip("-o link").splitlines()],
            "routes": routes,
            "neighbours": [line for line in node.node.ip("neigh").splitlines() if "lxc" in line],
            "endpoint files": _files(world.state_dir / "endpoints"),
            "queued requests": _files(world.state_dir / "cni-queue"),
            "pins": _files(pins),
            "addresses": [
                row["IP"] for row in node.rows("ip-allocations") if row["State"] == "in-use"
            ],
            "endpoints": [row["Pod"] for row in node.rows("endpoints")],
            "identities": [str(row["ID"]) for row in node.rows("identities")],
            "ipcache rows": [row["Prefix"] for row in node.rows("ipcache")],
            "attachments": [row["target"] for row in node.rows("attachments")],
        }
        for name in (ipcache.NAME, endpoints.NAME, endpoints.BY_ADDRESS):
            with Map.open_pinned(pins / "maps" / name) as opened:
                found[name] = [key.hex() for key, _ in opened.items()]
        found["flows of pods"] = list(_flows_of_pods(pins / "maps"))
        return {what: sorted(ones) for what, ones in found.items()}


def _files(directory: Path) -> list[str]:
    if not directory.exists():
        return []
    return [str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()]


def _flows_of_pods(maps: Path) -> Iterator[str]:
    """Entries of addresses of the pools that live on: those of deleted pods end soon."""
    now_s = time.monotonic()
    gateways = {ip_address(address) for address in GATEWAY.values()}
    for name in ct.CT_MAPS:
        with Map.open_pinned(maps / name) as opened:
            for key, entry in ct.connections(opened):
                ends = {ip_address(key.source), ip_address(key.destination)} - gateways
                in_pool = any(end in pool for end in ends for pool in POOLS)
                if in_pool and entry.expires_s > now_s + ENDING_S and not ct.is_over(entry, 0):
                    yield str(key)


@contextmanager
def leaks(directory: Path, name: str) -> Iterator[Leaks]:
    """A node with an agent and no pods."""
    with ExitStack() as stack:
        node = stack.enter_context(pod_node(directory, name, WIDE_POOLS))
        agents = Agents(node, stack)
        stack.callback(agents.kill)
        yield Leaks(node, agents)
