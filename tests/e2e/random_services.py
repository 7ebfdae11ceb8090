# SPDX-License-Identifier: Apache-2.0
"""Services as a person may write them at random, and a naive idea of what must be served then.

The state of the cluster is what a list of steps leaves; each step replaces or removes one file, so
that any part of a list is a list, too. `shrink` makes use of that.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from tests.e2e.world import POD_V4, POD_V6

NAMES = ("ant", "bee", "cow")
#: The last is of the other family.
ADDRESS = {"ant": "10.203.0.10", "bee": "10.203.0.11", "cow": "fd00:203::12"}
PORTS = (80, 81)
TARGET_PORT = 8080
HERE, THERE = "here", "there"
CONDITIONS = {
    "ready": "{ready: true, serving: true, terminating: false}",
    "unready": "{ready: false, serving: false, terminating: false}",
    "draining": "{ready: false, serving: true, terminating: true}",
    "dying": "{ready: false, serving: false, terminating: true}",
}
#: Slices of one Service have addresses of their own, so that no two say different things of one.
SLICE_PODS = {1: slice(0, 2), 2: slice(2, 4)}

SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: test}}
spec:
  clusterIP: "{address}"
  clusterIPs: ["{address}"]
  internalTrafficPolicy: {policy}
  sessionAffinity: {affinity}
  ports:
    - {{name: tcp, protocol: TCP, port: {port}, targetPort: 8080}}
    - {{name: udp, protocol: UDP, port: {port}, targetPort: 8080}}
"""
SLICE = """\
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}-{number}
  namespace: test
  labels: {{kubernetes.io/service-name: {name}}}
addressType: {family}
ports:
  - {{name: tcp, protocol: TCP, port: 8080}}
  - {{name: udp, protocol: UDP, port: 8080}}
endpoints:{endpoints}
"""
ENDPOINT = '\n  - {{addresses: ["{address}"], nodeName: {node}, conditions: {conditions}}}'


class Service(NamedTuple):
    """What a step writes into the file of a Service."""

    name: str
    port: int
    local: bool = False
    affinity: bool = False

    def manifest(self) -> str:
        return SERVICE.format(
            name=self.name,
            address=ADDRESS[self.name],
            port=self.port,
            policy="Local" if self.local else "Cluster",
            affinity="ClientIP" if self.affinity else "None",
        )


class Endpoint(NamedTuple):
    """One pod of a slice."""

    address: str
    node: str
    condition: str


class Slice(NamedTuple):
    """What a step writes into the file of a slice."""

    name: str
    number: int
    endpoints: tuple[Endpoint, ...]

    def manifest(self) -> str:
        lines = (
            ENDPOINT.format(
                address=endpoint.address,
                node=endpoint.node,
                conditions=CONDITIONS[endpoint.condition],
            )
            for endpoint in self.endpoints
        )
        endpoints = "".join(lines) or " []"
        family = "IPv6" if ":" in ADDRESS[self.name] else "IPv4"
        return SLICE.format(name=self.name, number=self.number, family=family, endpoints=endpoints)


class Step(NamedTuple):
    """A file gets new contents; None: it goes."""

    file: str
    wrote: Service | Slice | None

    def manifest(self) -> str | None:
        return None if self.wrote is None else self.wrote.manifest()


def pods(name: str) -> list[str]:
    """Those that may serve a Service."""
    return POD_V6 if ":" in ADDRESS[name] else POD_V4


def address_text(name: str, port: int, protocol: str) -> str:
    """A frontend as tables show it."""
    address = ADDRESS[name]
    host = f"[{address}]" if ":" in address else address
    return f"{host}:{port}/{protocol}"


def random_step(rng: random.Random) -> Step:
    """Of four steps three write, and mostly slices: there is more in them."""
    name, removes = rng.choice(NAMES), rng.random() < 0.25
    if rng.random() < 0.4:
        service = Service(name, rng.choice(PORTS), rng.random() < 0.3, rng.random() < 0.3)
        return Step(f"{name}.yaml", None if removes else service)
    number = rng.choice(tuple(SLICE_PODS))
    endpoints = tuple(
        Endpoint(address, rng.choice((HERE, HERE, THERE)), rng.choice(tuple(CONDITIONS)))
        for address in pods(name)[SLICE_PODS[number]]
        if rng.random() < 0.8
    )
    return Step(f"{name}-{number}.yaml", None if removes else Slice(name, number, endpoints))


class Chosen(NamedTuple):
    """What new connections to a frontend get."""

    backends: frozenset[str]
    #: A client stays with one of them.
    sticky: bool = False


def served(steps: Iterable[Step]) -> dict[str, Chosen]:
    """By the frontend's address."""
    files = {step.file: step.wrote for step in steps}
    slices = [wrote for wrote in files.values() if isinstance(wrote, Slice)]
    found = {}
    for service in files.values():
        if isinstance(service, Service):
            chosen = _chosen(service, slices)
            for protocol in ("TCP", "UDP"):
                found[address_text(service.name, service.port, protocol)] = chosen
    return found


def _chosen(service: Service, slices: Iterable[Slice]) -> Chosen:
    """Those that are ready, or else those that are on their way out and still serve."""
    endpoints = [
        endpoint
        for of in slices
        if of.name == service.name
        for endpoint in of.endpoints
        if endpoint.node == HERE or not service.local
    ]
    for condition in ("ready", "draining"):
        chosen = frozenset(e.address for e in endpoints if e.condition == condition)
        if chosen:
            return Chosen(chosen, service.affinity)
    return Chosen(frozenset())


def shrink(
    steps: Sequence[Step], fails: Callable[[Sequence[Step]], bool], budget_s: float
) -> list[Step]:
    """A part of steps that fails, too: halves, quarters, ... are left out, in the end single steps.

    Stops early when the budget is used up; what it returns has failed.
    """
    left, size = list(steps), max(1, len(steps) // 2)
    deadline = time.monotonic() + budget_s
    while True:
        start = 0
        while start < len(left):
            if time.monotonic() > deadline:
                return left
            rest = left[:start] + left[start + size :]
            if rest and fails(rest):
                left = rest
            else:
                start += size
        if size == 1:
            return left
        size //= 2


def golden_script(steps: Sequence[Step]) -> str:
    """The steps as a script of ``testdata``, each file under a name of its own."""
    commands, files, current = ["hive start"], [], dict[str, str]()
    for number, step in enumerate(steps):
        text, name = step.manifest(), f"{number}-{step.file}"
        if text is not None:
            commands.append(f"k8s/add {name}")
            files.append(f"-- {name} --\n{text}")
            current[step.file] = name
        elif step.file in current:
            commands.append(f"k8s/delete {current.pop(step.file)}")
    expected = [
        f"# {address} is served by {', '.join(sorted(chosen.backends)) or 'nobody'}"
        for address, chosen in sorted(served(steps).items())
    ]
    return "\n".join([*commands, "db/show frontends", "lb/maps-dump", *expected, "", *files])
