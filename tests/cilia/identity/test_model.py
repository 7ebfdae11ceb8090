# SPDX-License-Identifier: Apache-2.0
"""Nodes and an operator at random: lost answers, conflicts, outages, kills, deletions by people.

At any moment no number stands for two sets of labels. Once all are well, every endpoint has the
number of its labels, and there is an object for it which is not to be deleted.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from cilia.identity import wiring
from cilia.identity.allocation import IdentityAllocator
from cilia.k8s.crds.identities import HEARTBEAT
from cilia.k8s.errors import StatusError
from tests.cilia.identity.nodes import Cluster, Faulty, Node, cluster
from tests.cilia.identity.test_shared import labels_of, path_of

pytestmark = pytest.mark.usefixtures("short_grace")

APPS = [f"app{number}" for number in range(5)]


class Model:
    """Three nodes, and what their pods are to have."""

    def __init__(self, c: Cluster, rng: random.Random) -> None:
        self.cluster, self.rng = c, rng
        self.wanted: dict[int, dict[str, str]] = {number: {} for number in range(3)}
        self.writers = [Faulty(c.files, lambda: rng.random() < 0.2) for _ in self.wanted]
        self.nodes: list[Node] = [c.node(writer) for writer in self.writers]
        self._names = itertools.count()

    async def add(self, at: int) -> None:
        name, app = f"pod{next(self._names)}", self.rng.choice(APPS)
        self.wanted[at][name] = app
        self.nodes[at].add(name, app)

    async def remove(self, at: int) -> None:
        if self.wanted[at]:
            name = self.rng.choice(sorted(self.wanted[at]))
            del self.wanted[at][name]
            self.nodes[at].remove(name)

    async def relabel(self, at: int) -> None:
        if self.wanted[at]:
            name, app = self.rng.choice(sorted(self.wanted[at])), self.rng.choice(APPS)
            self.wanted[at][name] = app
            self.nodes[at].label(name, app)

    async def outage(self, at: int) -> None:
        self.writers[at].away = not self.writers[at].away

    async def kill(self, at: int) -> None:
        self.nodes[at] = self.cluster.node(self.writers[at], before=self.nodes[at])

    async def person(self, at: int) -> None:
        """Somebody deletes an object, used or not."""
        objects = self.cluster.objects()
        if objects:
            number = self.rng.choice(sorted(objects))
            await self.cluster.files.delete(path_of(number), objects[number]["metadata"]["uid"], {})

    async def operator(self, at: int) -> None:
        """What is marked is deleted, unless somebody changed it meanwhile; others are marked."""
        for number, form in self.cluster.objects().items():
            metadata = form["metadata"]
            annotations = metadata.setdefault("annotations", {})
            with suppress(StatusError):  # a node was quicker
                if HEARTBEAT in annotations:
                    await self.cluster.files.delete(
                        path_of(number), metadata["uid"], {}, metadata["resourceVersion"]
                    )
                elif not self.spares(number):
                    annotations[HEARTBEAT] = "2026-11-30T12:00:00Z"
                    await self.cluster.files.replace(path_of(number), form)

    def spares(self, number: int) -> bool:
        """True if the operator sees that an identity is in use."""
        return False

    def check(self) -> None:
        """No number is in force for two sets of labels."""
        labels: dict[int, tuple[str, ...]] = {}
        for node in self.nodes:
            for its_labels, number in node.in_force().values():
                if its_labels and number:
                    assert labels.setdefault(number, its_labels) == its_labels

    async def settle(self) -> None:
        """All are well: wait until everything is as it should be."""
        for writer in self.writers:
            writer.away = False
        for at, node in enumerate(self.nodes):
            await node.until(lambda at=at: self.is_settled(at), 15)  # type: ignore[misc]
        await self.cluster.until(lambda: not self.missing(), 15)
        self.check()

    def is_settled(self, at: int) -> bool:
        wanted = {name: labels_of(app) for name, app in self.wanted[at].items()}
        in_force = self.nodes[at].in_force()
        has_numbers = all(number for _, number in in_force.values())
        return has_numbers and {name: labels for name, (labels, _) in in_force.items()} == wanted

    def missing(self) -> list[int]:
        """Numbers in force without an object that has their labels and stays."""
        objects = self.cluster.objects()
        return [
            number
            for node in self.nodes
            for labels, number in node.in_force().values()
            if number not in objects
            or HEARTBEAT in (objects[number]["metadata"].get("annotations") or {})
            or sorted(f"{k}={v}" for k, v in objects[number]["security-labels"].items())
            != sorted(labels)
        ]

    def steps(self) -> list[Callable[[int], Awaitable[None]]]:
        often = [self.add, self.add, self.add, self.relabel, self.remove]
        return [*often, self.outage, self.kill, self.person, self.operator]


class Careful(Model):
    """Few numbers, and an operator that marks none which is in use; nobody else deletes."""

    def spares(self, number: int) -> bool:
        return any(number == used for node in self.nodes for _, used in node.in_force().values())

    def steps(self) -> list[Callable[[int], Awaitable[None]]]:
        return [step for step in super().steps() if step != self.person]


def allocators(monkeypatch: pytest.MonkeyPatch, numbers: Sequence[int], rng: random.Random) -> None:
    def allocator(*given: Any) -> IdentityAllocator:
        seeded = random.Random(rng.random())
        return IdentityAllocator(*given, numbers=numbers, rng=seeded, seen_wait_s=0.5)

    monkeypatch.setattr(wiring, "IdentityAllocator", allocator)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("kind", "numbers"), [(Model, range(256, 65_536)), (Careful, range(256, 272))]
)
@pytest.mark.parametrize("seed", [1])
async def test_nodes_agree_whatever_happens(
    tmp_path: Path,
    kind: type[Model],
    numbers: Sequence[int],
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = random.Random(seed)
    allocators(monkeypatch, numbers, rng)
    async with cluster(tmp_path) as c:
        model = kind(c, rng)
        for _ in range(2):
            for _ in range(15):
                await rng.choice(model.steps())(rng.randrange(3))
                model.check()
                await anyio.sleep(rng.uniform(0, 0.02))  # the moment of the next step
            await model.settle()
