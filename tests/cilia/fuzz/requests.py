# SPDX-License-Identifier: Apache-2.0
"""Hostile requests to the unix socket of an agent, without the socket: each has to be answered.

An answer of 500 is a failure, and so is an exception, work that holds the event loop, or an answer
that says it is JSON and is not. (503 says that inputs are not read yet.)
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Final
from unittest.mock import patch
from urllib.parse import quote_from_bytes

import msgspec
from starlette.applications import Starlette
from starlette.routing import BaseRoute

from bpf.maps.lb import LBMaps
from cilia.agent import live_target
from cilia.agent.config import AgentConfig
from cilia.agent.context import new_context
from cilia.agent.serving import agent_routes
from cilia.agent.wiring import build
from cilia.datapath.opening import MemoryDatapath
from cilia.k8s.manifests import ManifestSource
from cilia.loadbalancer.replacement import Replacement
from cilia.program import serving
from cilia.script.sessions import Sessions
from tables.problems import Problem
from tests.cilia.fuzz.forms import VALUES
from tests.cilia.fuzz.inputs import spoil_bytes, spoil_form
from tests.cilia.fuzz.world import HELD_S
from tests.patience import PATIENCE

# The first piece of an answer has to come within this time, on a busy machine too; a client that
# has it goes away after the other one, if the answer has no end.
ANSWERED_S: Final = 3.0
LEFT_AFTER_S: Final = 0.02
PATHS: Final = (
    *("/status", "/config", "/logs", "/healthz", "/livez", "/readyz", "/metrics"),
    *(
        "/statedb",
        "/statedb/dump",
        "/statedb/dump/frontends",
        "/statedb/query",
        "/statedb/query",
        "/statedb/query",
    ),
    *(
        "/statedb/changes/frontends",
        "/statedb/changes/problems",
        "/script/commands",
        "/replacement",
        "/",
    ),
    *("/script/run", "/script/run"),
)
QUERY: Final[dict[str, tuple[str, ...]]] = {
    "table": ("frontends", "backends", "services", "problems", "health", "k8s-pods", "nobody"),
    "kind": ("all", "get", "list", "prefix", "lower_bound", "x"),
    "index": ("", "service", "address", "key", "origin", "name", "x"),
    "form": ("object", "cells", "x"),
    "revision": ("", "0", "1", "x:1", "99"),
    "resume": ("", "x", "1:2"),
    "key": ("", "test/echo", "10.96.0.1:80/TCP", "10.96.0.1", "[::1]:80", "2"),
}
BODIES: Final[tuple[Any, ...]] = (
    {"session": "x", "line": "help", "files": {}},
    {"session": "x", "line": "db/show frontends", "files": {"a.txt": "x"}},
    {"session": "x", "line": "", "close": True},
    {"on": True},
    {"on": False},
    [],
)


class Request(msgspec.Struct, frozen=True):
    method: str
    path: bytes
    query: bytes
    body: bytes

    def scope(self) -> dict[str, Any]:
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "path": self.path.decode("utf-8", "replace"),
            "raw_path": self.path,
            "root_path": "",
            "scheme": "http",
            "query_string": self.query,
            "headers": [(b"content-length", b"%d" % len(self.body))],
            "server": ("localhost", 80),
            "client": None,
        }


def make_request(seed: int) -> Request:
    rng = Random(seed)
    path = rng.choice(PATHS)
    method = rng.choice(("GET", "GET", "GET", "POST", "PUT", "HEAD", "X"))
    if path in ("/script/run", "/replacement") and rng.random() < 0.7:
        method = "POST" if path == "/script/run" else "PUT"
    chosen = rng.sample(sorted(QUERY), rng.randrange(len(QUERY)))
    if path == "/statedb/query" and rng.random() < 0.8:
        chosen = ["table", "kind", "index", "key", *chosen]
    query = {name: rng.choice(QUERY[name]) for name in chosen}
    if query and rng.random() < 0.6:
        query[rng.choice(sorted(query))] = str(rng.choice(VALUES)(rng))[:6000]
    encoded = "&".join(
        f"{name}={quote_from_bytes(value.encode('utf-8', 'surrogatepass'))}"
        for name, value in query.items()
    ).encode()
    body: Any = json.loads(json.dumps(rng.choice(BODIES)))
    if rng.random() < 0.5:
        spoil_form(body, rng)
    data = json.dumps(body).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        data = spoil_bytes(data, rng)
    raw_path = path.encode()
    if rng.random() < 0.2:
        raw_path = spoil_bytes(raw_path, rng)
    if rng.random() < 0.1:
        encoded = spoil_bytes(encoded, rng)
    return Request(method, raw_path, encoded, data)


class Answer:
    """What an application sends; the client goes away when the answer ends, or after a while."""

    def __init__(self, request: Request) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.ended = False
        self._request = request
        self._asked = False
        self._begun = asyncio.Event()
        self._gone = asyncio.Event()

    async def receive(self) -> dict[str, Any]:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        with suppress(TimeoutError):
            async with asyncio.timeout(ANSWERED_S):
                await self._begun.wait()
            async with asyncio.timeout(LEFT_AFTER_S):
                await self._gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = dict(message.get("headers", ()))
        else:
            self._begun.set()
            self.body += message.get("body", b"")
            self.ended = not message.get("more_body", False)
            if self.ended:
                self._gone.set()


@contextmanager
def application(directory: Path) -> Iterator[Starlette]:
    """What the unix socket of an agent answers; sessions of its shell end with it."""
    sessions: list[Sessions] = []

    def new_sessions(*args: Any) -> Sessions:
        sessions.append(Sessions(*args))
        return sessions[-1]

    with patch.object(live_target, "Sessions", new_sessions):
        try:
            yield serving.application(new_routes(directory))
        finally:
            for each in sessions:
                each.close_all()


def new_routes(directory: Path) -> list[BaseRoute]:
    config = AgentConfig(k8s_manifests=directory, state_dir=directory / "state")
    edge = MemoryDatapath(LBMaps.fake())
    agent = build(new_context(config, ManifestSource(directory)), config, edge)
    with agent.ctx.db.write_txn(agent.ctx.problems) as wtxn:
        hostile = Problem("x", "a \x1b[2J\u202e\n problem", "x.yaml", 1, "Service", "a", "b")
        agent.ctx.problems.insert(wtxn, hostile)
    replacement = Replacement(edge, agent.loadbalancer.tables.frontends, agent.ctx.db)
    return agent_routes(agent, replacement)


async def answered(app: Any, request: Request) -> str:
    """What is wrong with the answer, or nothing."""
    answer = Answer(request)
    began = time.thread_time()
    try:
        async with asyncio.timeout(5 * PATIENCE):
            await app(request.scope(), answer.receive, answer.send)
    except Exception as error:  # noqa: BLE001 - any exception is the finding
        return f"{type(error).__name__}: {error}"
    took_s = time.thread_time() - began
    if took_s > HELD_S:
        return f"held the loop for {took_s * 1000:.0f} ms"
    if not 200 <= answer.status < 500 and answer.status != 503:
        return f"answers {answer.status}"
    is_json = answer.headers.get(b"content-type") == b"application/json"
    if is_json and answer.ended and request.method != "HEAD":
        try:
            json.loads(answer.body)
        except ValueError as error:
            return f"no JSON: {error}"
    return ""


async def run_requests(
    directory: Path, seeds: range, make: Callable[[int], Request] = make_request
) -> list[tuple[int, str]]:
    with application(directory) as app:
        answers = [(seed, await answered(app, make(seed))) for seed in seeds]
    return [(seed, said) for seed, said in answers if said]
