# SPDX-License-Identifier: Apache-2.0
"""A server whose plugin records what it is asked for."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio

from cilia.endpoints.cni.requests import Command, Request
from cilia.endpoints.cni.results import IP, Interface, Result
from cilia.endpoints.cni.server import LIMITS_S, Server
from tests.cilia.endpoints.cni.runtime import NETNS

RESULT = Result(
    interfaces=(Interface(name="eth0", mac="02:00:00:00:00:01", mtu=1500, sandbox=NETNS),),
    ips=(IP(address="10.0.0.5/32", gateway="10.0.0.1", interface=0),),
)

Work = Callable[[Request], Awaitable[None]]


class Recorder:
    """A plugin that records its requests, and does what a test wants."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        #: The namespaces that came, by their inodes.
        self.namespaces: list[int | None] = []
        self.work: dict[Command, Work] = {}
        self.result = RESULT
        self.waits_for: Work | None = None

    @property
    def commands(self) -> list[str]:
        return [str(request.command) for request in self.requests]

    async def _do(self, request: Request) -> None:
        self.requests.append(request)
        netns = request.netns_fd
        self.namespaces.append(None if netns is None else os.fstat(netns).st_ino)
        if work := self.work.get(request.command):
            await work(request)

    async def wait(self, request: Request) -> None:
        if self.waits_for is not None:
            await self.waits_for(request)

    async def add(self, request: Request) -> Result:
        await self._do(request)
        return self.result

    async def delete(self, request: Request) -> None:
        await self._do(request)

    async def check(self, request: Request) -> None:
        await self._do(request)

    async def status(self, request: Request) -> None:
        await self._do(request)

    async def gc(self, request: Request) -> None:
        await self._do(request)


@asynccontextmanager
async def serving(
    path: Path, plugin: Recorder, limits_s: Mapping[Command, float] | None = None
) -> AsyncIterator[Server]:
    """A server that listens, until the end of the block; its queue is followed too."""
    server, started = Server(path, plugin, {**LIMITS_S, **(limits_s or {})}), anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve, started.set)
        await started.wait()
        group.start_soon(server.follow_queue)
        await anyio.wait_all_tasks_blocked()
        yield server
        group.cancel_scope.cancel()
