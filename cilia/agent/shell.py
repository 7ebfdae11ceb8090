# SPDX-License-Identifier: Apache-2.0
"""The agent's side of `cilia shell`: its commands are loaded when the first line comes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from cilia.agent.agent import Agent
from cilia.program.serving import json_object

if TYPE_CHECKING:
    from cilia.script.sessions import Sessions

__all__ = ["shell_routes"]


def shell_routes(agent: Agent) -> list[BaseRoute]:
    """`GET /script/commands` and `POST /script/run`."""

    known: list[Sessions] = []

    async def sessions() -> Sessions:
        live = await anyio.to_thread.run_sync(import_module, "cilia.agent.live_target")
        if not known:
            known.append(live.new_sessions(agent))
        return known[0]

    async def describe(_: Request) -> Response:
        return JSONResponse({"commands": (await sessions()).describe()})

    async def run(request: Request) -> Response:
        try:
            body = await json_object(request)
            answer = await anyio.to_thread.run_sync((await sessions()).answer, body)
        except ValueError as error:
            return JSONResponse({"error": str(error)}, status_code=400)
        return JSONResponse(answer)

    return [Route("/script/commands", describe), Route("/script/run", run, methods=["POST"])]
