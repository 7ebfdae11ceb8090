# SPDX-License-Identifier: Apache-2.0
"""What has to hold, whatever comes in; and a failure made as small as it can be."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any, Final

from cilia.k8s.manifest_files import FileContent
from cilia.k8s.watch import Delete, Event, Invalid, Upsert
from statedb.shown.text import visible
from tests.cilia.fuzz import forms
from tests.cilia.fuzz.inputs import MOST_STEPS, Input, Plan, make
from tests.cilia.fuzz.world import HELD_S, World, decoded
from tests.cilia.k8s.forms import Form, service_form, slice_form

# Decoding is done in a thread beside the event loop, but others wait for it.
DECODED_S: Final = 1.0
LONGEST_PROBLEM: Final = 2_000
# Ordinary objects take a hundredth of it, lists in lists nearly as much; an object has 1.5 MB.
DECODED_S_PER_BYTE: Final = 5e-7
HELD: Final = "held the loop"
# Rows of one input that are shown.
MOST_SHOWN: Final = 50

POD: Final = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "good", "namespace": "test", "uid": "g", "labels": {"app": "good"}},
    "spec": {
        "nodeName": forms.NODE,
        "containers": [{"name": "c", "ports": [{"containerPort": 8080, "hostPort": 8080}]}],
    },
    "status": {
        "phase": "Running",
        "podIPs": [{"ip": "10.1.0.7"}],
        "conditions": [{"type": "Ready", "status": "True"}],
    },
}
POLICY: Final = {
    "apiVersion": "cilium.io/v2",
    "kind": "CiliumLocalRedirectPolicy",
    "metadata": {"name": "good", "namespace": "test"},
    "spec": {
        "redirectFrontend": {
            "addressMatcher": {"ip": "169.254.0.1", "toPorts": [{"port": "80", "protocol": "TCP"}]}
        },
        "redirectBackend": {
            "localEndpointSelector": {"matchLabels": {"app": "good"}},
            "toPorts": [{"port": "8080", "protocol": "TCP"}],
        },
    },
}


def old_service(*args: str, **spec: Any) -> Form:
    """A service older than any hostile one, which therefore has no right to its addresses."""
    form = service_form(*args, **spec)
    form["metadata"]["creationTimestamp"] = "1970-01-02T00:00:00Z"
    return form


GOOD: Final = (
    old_service("one", type="NodePort", ports=[{"port": 80, "nodePort": 30001}]),
    slice_form("one-1", "one", ("10.1.0.1", "10.1.0.2"), ports=[{"port": 8080}]),
    old_service("two", "10.96.0.2"),
    slice_form("two-1", "two", ("10.1.0.3",)),
    POD,
    POLICY,
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "test"}},
)
OTHERS: Final = {"kind": "List", "apiVersion": "v1", "items": list(GOOD)}


class Broken(Exception):
    """Something that has to hold does not."""


class Fuzz:
    """A world with good objects, and what it is like without any hostile one."""

    def __init__(self, first: Input | None = None) -> None:
        """`first` is there before the list is complete."""
        self.world = World()
        if first is not None and first.route in self.world.manifests:
            self.world.put_file(first.route, first.name, content_of(first))
        good = decoded("file", "good.json", json.dumps(OTHERS).encode())
        assert len(good.objects) == len(GOOD)
        self.world.put_file("file", "good.json", good)
        self.complete()
        if first is not None and first.route in self.world.manifests:
            self.world.remove_file(first.route, first.name)
        self.rows, self.entries = self.world.rows(), self.world.entries()
        self.sizes = self.world.sizes()
        self.world.slowest_s = 0.0

    def complete(self) -> None:
        world = self.world
        world.services.begin()
        with world.writer.write_txn() as wtxn:
            world.services._complete(wtxn)

    def check(self, given: Input) -> None:
        """Let an input come, change and go. Raises Broken."""
        events: list[Event] = []
        for version in (given, *given.later):
            events += self._come(version)
            now = self.world.rows()
            self._check_others(given, events, now)
            self._check_doors(now)
        self._go(given, events)
        self._check_nothing_is_left()
        if self.world.slowest_s > HELD_S + decoding_s(given):
            slowest_s, self.world.slowest_s = self.world.slowest_s, 0.0
            raise Broken(f"{self.world.slowest} {HELD} for {slowest_s * 1000:.0f} ms")

    def _come(self, given: Input) -> list[Event]:
        world = self.world
        if given.route in world.manifests:
            content = content_of(given)
            events = world.put_file(given.route, given.name, content)
            if content.keep or content.keep_all:
                self._check_problems(given.name)
            return events
        if given.route == "object":
            events = world.take_object(given.kind, given.data)
            if not any(isinstance(event, Upsert | Invalid) for event in events):
                raise Broken("an object is neither taken nor refused")
            return events
        return world.take_line(given.kind, given.data)

    def _check_problems(self, name: str) -> None:
        txn = self.world.db.read_txn()
        found = [row for row in self.world.problems.all(txn) if row.file == name]
        if not found:
            raise Broken("what is refused is not named")
        for row in found:
            if len(str(row)) > LONGEST_PROBLEM:
                raise Broken(f"a problem of {len(str(row))} characters")

    def _check_others(self, given: Input, events: list[Event], now: dict[Any, Any]) -> None:
        for event in events:
            if isinstance(event, Delete) and event.key[1] == "test":
                raise Broken(f"{event.key} is deleted")
        self._compare(self.rows, now)
        entries = self.world.entries()
        lost = [key for key, value in self.entries.items() if entries.get(key) != value]
        if lost:
            raise Broken(f"entries of others changed: {lost[:3]}")
        beside = ("services", "mixed/beside")
        if given.mixed and beside not in now:
            raise Broken("a document beside the hostile one is not served")

    def _check_doors(self, now: dict[Any, Any]) -> None:
        hostile = [
            (table, row) for (table, key), row in now.items() if (table, key) not in self.rows
        ]
        for text in self.world.show(hostile[:MOST_SHOWN]):
            visible(text)

    @staticmethod
    def _compare(before: dict[Any, Any], now: dict[Any, Any]) -> None:
        for key, row in before.items():
            if now.get(key) != row:
                raise Broken(f"{key} was {row}, is {now.get(key)}")

    def _go(self, given: Input, events: list[Event]) -> None:
        if given.route in self.world.manifests:
            self.world.remove_file(given.route, given.name)
            return
        keys = dict.fromkeys(event.obj.key for event in events if isinstance(event, Upsert))
        origins = dict.fromkeys(event.origin for event in events if isinstance(event, Invalid))
        self.world._take([*map(Delete, keys), *map(Invalid, origins)])

    def _check_nothing_is_left(self) -> None:
        rows, entries, sizes = self.world.rows(), self.world.entries(), self.world.sizes()
        self._compare(self.rows, rows)
        self._compare(rows, self.rows)
        if entries != self.entries:
            raise Broken(f"entries are left: {sorted(set(entries) ^ set(self.entries))[:3]}")
        for name, size in sizes.items():
            if size != self.sizes.get(name):
                raise Broken(f"{name} holds {size}, and {self.sizes.get(name)} before")


def decoding_s(given: Input) -> float:
    """What the loop may take for the bytes: objects of the API server are decoded in it."""
    if given.route in ("file", "state file"):
        return 0.0
    return DECODED_S_PER_BYTE * max(len(version.data) for version in (given, *given.later))


def content_of(given: Input) -> FileContent:
    began = time.thread_time()
    content = decoded(given.route, given.name, given.data)
    if (took_s := time.thread_time() - began) > DECODED_S:
        raise Broken(f"decoding {len(given.data)} bytes took {took_s:.1f} s")
    return content


def failure(plan: Plan) -> str:
    """What breaks in a new world, or nothing."""
    try:
        given = make(plan)
        Fuzz(given).check(given)
    except Exception as error:  # noqa: BLE001 - any exception is the finding
        return f"{type(error).__name__}: {error}"
    return ""


def smallest(plan: Plan, steps: int, fails: Callable[[Plan], str] = failure) -> Plan:
    """The plan without each step that the failure does not need."""
    for step in range(steps):
        fewer = plan.without(step)
        if fails(fewer):
            plan = fewer
    return plan


def run(seeds: range, each_world: int = 200) -> list[tuple[Plan, str]]:
    """Try inputs one after the other in a few worlds; the smallest plans that fail, and why."""
    found: list[tuple[Plan, str]] = []
    fuzz: Fuzz | None = None
    for number, seed in enumerate(seeds):
        plan = Plan(seed)
        try:
            given = make(plan)
            if fuzz is None or number % each_world == 0:
                fuzz = Fuzz(given)
            fuzz.check(given)
        except Exception as error:  # noqa: BLE001 - any exception is the finding
            said = f"{type(error).__name__}: {error}"
            fuzz = None
            if not failure(plan):
                if HELD in said:
                    continue  # by a collection of garbage, which comes with any input
            else:
                plan = smallest(plan, MOST_STEPS)
                said = failure(plan) or said
            found.append((plan, said))
    return found
