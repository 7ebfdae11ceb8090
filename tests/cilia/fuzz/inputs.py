# SPDX-License-Identifier: Apache-2.0
"""Inputs from numbers: a form of some kind, spoilt in a few places, written in some way.

Every step that spoils has a number and draws from a generator of its own, so that steps can be left
out one by one when a failure is made smaller, and the others stay what they were.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

import yaml

from tests.cilia.fuzz.forms import KINDS, VALUES, Form
from tests.cilia.k8s.forms import service_form

ROUTES = ("file", "file", "file", "state file", "object", "stream")
MOST_STEPS = 6
# Characters that one step may add: steps multiply each other.
MOST_ADDED = 300_000
# Of an input; what is longer ends there.
MOST_BYTES = 1_500_000


@dataclass(frozen=True)
class Plan:
    """An input by its number, without some of the steps that spoil it."""

    seed: int
    dropped: frozenset[int] = frozenset()

    def without(self, step: int) -> Plan:
        return replace(self, dropped=self.dropped | {step})


@dataclass(frozen=True)
class Input:
    plan: Plan
    route: str
    kind: str
    name: str
    data: bytes
    # A good document stands in the same file.
    mixed: bool = False
    # What it becomes before it goes.
    later: tuple[Input, ...] = ()


BESIDE = service_form("beside", "10.96.55.1", namespace="mixed")


def make(plan: Plan) -> Input:
    rng = Random(plan.seed)
    form = rng.choice(KINDS)(rng)
    kind, route = form["kind"], rng.choice(ROUTES)
    as_json = route in ("object", "stream") or rng.random() < 0.5
    suffix = "json" if as_json and rng.random() < 0.5 else rng.choice(("yaml", "yml"))
    textual = rng.random() < 0.4
    mixed = route == "file" and suffix != "json" and not textual and rng.random() < 0.3
    steps = {n: Random(rng.getrandbits(64)) for n in range(rng.randrange(MOST_STEPS))}
    steps = {n: step for n, step in steps.items() if n not in plan.dropped}
    wrapped = wrap(form, route, rng)
    versions: list[Input] = []
    # The first half of the steps makes the first version, all together the second.
    for numbers in (range(MOST_STEPS // 2), range(MOST_STEPS // 2, MOST_STEPS)):
        chosen = [steps[number] for number in numbers if number in steps]
        if versions and not chosen:
            break
        for step in chosen if not textual else chosen[::2]:
            spoil_form(wrapped, step)
        data = write(wrapped, as_json=as_json, rng=rng)
        for step in chosen[1::2] if textual else ():
            data = spoil_bytes(data, step)
        data = data[:MOST_BYTES]
        if mixed and len(data) < MOST_BYTES:
            data = json.dumps(BESIDE).encode() + b"\n---\n" + data
        name = f"bad-{plan.seed}.{suffix}"
        versions.append(Input(plan, route, kind, name, data, mixed and len(data) < MOST_BYTES))
    return replace(versions[0], later=tuple(versions[1:]))


def wrap(form: Form, route: str, rng: Random) -> Any:
    if route == "stream":
        return {"type": rng.choice(("ADDED", "MODIFIED", "DELETED", "BOOKMARK")), "object": form}
    if route == "state file":
        return {"services": [form], "endpoints": [form]}
    if route == "file" and rng.random() < 0.2:
        return {"kind": "List", "apiVersion": "v1", "items": [form]}
    return form


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each container with each of its keys."""
    found: list[tuple[Any, Any]] = []
    stack = [value]
    while stack and len(found) < 500:
        item = stack.pop()
        keys: Any = ()
        if isinstance(item, dict):
            keys = list(item)
        elif isinstance(item, list):
            keys = range(len(item))
        for key in keys:
            found.append((item, key))
            stack.append(item[key])
    return found


def spoil_form(form: Any, rng: Random) -> None:
    everywhere = places(form)
    if not everywhere:
        return
    container, key = rng.choice(everywhere)
    what = rng.random()
    if what < 0.65:
        container[key] = rng.choice(VALUES)(rng)
    elif what < 0.75:
        del container[key]
    elif isinstance(container, list):
        widen(container, container[key], rng.choice((1, 2, 300)))
    elif what < 0.85:
        other, there = rng.choice(everywhere)
        text = json.dumps(other[there]) if is_there(other, there) else "null"
        container[key] = json.loads(text if len(text) < MOST_ADDED else "null")
    else:
        container[str(rng.choice(VALUES)(rng))[:1000]] = rng.choice(VALUES)(rng)


def widen(items: list[Any], item: Any, number: int) -> None:
    """Add more like an item, the same or each a little different."""
    for more in range(min(number, MOST_ADDED // len(json.dumps(item)))):
        copy = json.loads(json.dumps(item))
        if isinstance(copy, dict) and number > 1:
            for key, value in copy.items():
                if isinstance(value, int):
                    copy[key] = value + more + 1
                elif key == "name":
                    copy[key] = f"{value}{more}"
                elif key == "addresses":
                    copy[key] = [f"10.3.{more // 250}.{more % 250}"]
        elif isinstance(copy, str) and number > 1:
            copy = f"10.4.{more // 250}.{more % 250}"
        items.append(copy)


def is_there(container: Any, key: Any) -> bool:
    return key in container if isinstance(container, dict) else key < len(container)


def write(form: Any, *, as_json: bool, rng: Random) -> bytes:
    if as_json:
        return json.dumps(form, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    flow = rng.choice((None, True, False))
    try:
        text = yaml.dump(form, Dumper=yaml.CSafeDumper, default_flow_style=flow, allow_unicode=True)
    except RecursionError:  # too deep for PyYAML, not for whoever reads it
        text = json.dumps(form)
    return text.encode()


# What a piece of text is replaced by, or what is put in.
PIECES: tuple[bytes, ...] = (
    *(b"\0", b"\xff", b"\xed\xa0\x80", b"\t", b"\r", b"\n", b"\n\n", b" " * 40, b"\xef\xbb\xbf"),
    *(b"---\n", b"\n---\n", b"...\n", b"\n...\n--- ", b"%YAML 1.2\n---\n", b"#", b": ", b"- "),
    *(
        b"&a ",
        b"*a",
        b"<<: *a",
        b"!!int ",
        b"!!binary ",
        b"!x ",
        b"? ",
        b"|\n",
        b">-\n",
        b"'",
        b'"',
    ),
    *(b"[", b"]", b"{", b"}", b",", b"[" * 70, b"{a: " * 70, b"[" * 1100, b"\\ud800", b"\\u0000"),
    *(b"9" * 4301, b"1e999", b".inf", b".nan", b"0x1F", b"0o17", b"yes", b"~", b"null", b"NaN"),
    b"".join(b"\n    k%d: v" % i for i in range(30)),
    b"\n" + b"".join(b"l%d: &l%d [*l%d,*l%d]\n" % (i + 1, i + 1, i, i) for i in range(20)),
)
SPOILERS: tuple[Callable[[bytes, Random, int], bytes], ...] = (
    lambda data, rng, at: data[:at] + rng.choice(PIECES) + data[at:],
    lambda data, rng, at: data[:at] + rng.choice(PIECES) + data[at + rng.choice((1, 5, 50)) :],
    lambda data, rng, at: data[:at],
    lambda data, rng, at: data[at:],
    lambda data, rng, at: data[:at] + bytes((rng.randrange(256),)) + data[at + 1 :],
    lambda data, rng, at: data[:at] + data[:at] + data[at:],
    lambda data, rng, at: data[:at] + rng.choice(PIECES) * 100 + data[at:],
)


def spoil_bytes(data: bytes, rng: Random) -> bytes:
    return rng.choice(SPOILERS)(data, rng, rng.randrange(len(data) + 1))
