# SPDX-License-Identifier: Apache-2.0
"""The agent's side of `cilia shell`: script commands on the tables and maps of an agent at work.

The same commands as in scripts, without those that would write behind the back of their owners
(`db/insert`, `db/delete`, `--delete`, `k8s/*`, map restore).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import anyio.from_thread
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from bpf.maps.lb import LBMaps
from bpf.maps.redirect_skips import SkipMaps
from cilia.agent.script.lb import lb_commands
from cilia.agent.script.observe import observe_commands
from cilia.agent.script.redirects import redirect_commands
from cilia.agent.wiring import Agent
from cilia.program.serving import json_object
from cilia.script import CommandLike, Sessions
from cilia.script.documents import DOCUMENT_COMMANDS
from cilia.script.sessions import describe_commands
from statedb.shown.commands import db_commands

T = TypeVar("T")


class LiveTarget:
    """See `cilia.agent.script.target.Target`; commands run in anyio's worker threads."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.world: LBMaps = agent.datapath.edge.maps
        self.skip: SkipMaps | None = agent.datapath.edge.skip

    def call(self, function: Callable[[], T]) -> T:
        return anyio.from_thread.run_sync(function)


def commands(target: LiveTarget) -> Iterable[CommandLike]:
    tables = db_commands(target.agent.ctx.db, read_only=True)
    return (
        *DOCUMENT_COMMANDS,
        *tables,
        *observe_commands(target),
        *lb_commands(target),
        *redirect_commands(target),
    )


def shell_routes(agent: Agent) -> list[BaseRoute]:
    """`GET /script/commands` and `POST /script/run`."""
    target = LiveTarget(agent)
    sessions = Sessions(lambda: commands(target))

    async def describe(_: Request) -> Response:
        return JSONResponse({"commands": describe_commands(sessions.commands())})

    async def run(request: Request) -> Response:
        try:
            body = await json_object(request)
            answer = await anyio.to_thread.run_sync(sessions.answer, body)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        return JSONResponse(answer)

    return [Route("/script/commands", describe), Route("/script/run", run, methods=["POST"])]
